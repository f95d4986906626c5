/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Every counter, declared once. bmc.h makes struct bmc_stats of this list; build.rs
 * reads it too, so that bmc stats, the page for Prometheus and the manual page show
 * the same counters with the same help. To add one, add a line here, count it, and
 * let the tests write the table in README.md:
 *
 *   UPDATE_README=1 cargo test --test metrics readme
 *
 * No include guard: whoever includes this defines both macros first.
 *
 *   COUNTER(name, unit, kind, help)  what one more stands for, and its kind: "total",
 *                                    or the GROUP whose name its own begins with
 *   GROUP(kind, name, help)          counters that are shown together, as reasons
 */
GROUP(pass, passes,
      "UDP requests left to memcached although they might be answered")
GROUP(lease, lease_refusals, "Leases not given")
GROUP(fill, fill_refusals, "Values in replies that did not become entries")

COUNTER(get_requests, requests, total, "GET requests looked up")
COUNTER(get_keys, keys, total, "Keys of these requests: hits and misses")
COUNTER(hits, keys, total, "Keys answered by bmc")
COUNTER(misses, keys, total, "Keys of GET requests that went on to memcached")
COUNTER(hit_mispredictions, lookups, total,
	"Lookups that found a slot of another key")
COUNTER(tc_replies, requests, total,
	"GET requests answered behind the driver (tc)")
COUNTER(get_replies, replies, total, "Replies of memcached to GET requests")
COUNTER(leases, leases, total, "Rights to fill given to GET requests that missed")
COUNTER(fills, entries, total, "Entries filled")
COUNTER(evictions, entries, total, "Entries that gave way to others")
COUNTER(tcp_requests, commands, total, "Commands over TCP that get a reply")
COUNTER(tcp_writes, commands, total, "Writes over TCP")
COUNTER(write_requests, commands, total, "Writes seen")
COUNTER(invalidations, entries, total, "Entries dropped for a write")
COUNTER(flushes, flushes, total, "Times that every entry was forgotten")
COUNTER(memcached_gone, memcacheds, total,
	"Times that a memcached stopped listening")
COUNTER(sleeps, sleeps, total,
	"Times that the cache fell asleep, because it would cost more than it saves")

/* GETs that went to memcached although every key was there. */
COUNTER(pass_room, requests, pass, "no room in the packet for the reply")
COUNTER(pass_size, requests, pass, "reply larger than one datagram")

/* UDP requests to a memcached port that bmc did not even look up. */
COUNTER(pass_source, requests, pass, "client not within --allow")
COUNTER(pass_address, requests, pass, "multicast, or no address to answer to")
COUNTER(pass_fragment, requests, pass, "IP fragment")
COUNTER(pass_header, requests, pass, "IP options or extension headers")
COUNTER(pass_length, requests, pass, "lengths that do not agree")
COUNTER(pass_checksum, requests, pass, "wrong UDP checksum")
COUNTER(pass_frame, requests, pass,
	"request of several datagrams, or no memcached frame")
COUNTER(pass_command, requests, pass, "another command than get")
COUNTER(pass_key, requests, pass, "key empty, too long or with control characters")
COUNTER(pass_keys, requests, pass, "too many keys")
COUNTER(pass_line, requests, pass, "line not ended as one get is")

/* Leases not given. */
COUNTER(lease_dirty, requests, lease, "a write of the bucket was pending")
COUNTER(lease_quarantine, requests, lease,
	"a write that cannot be followed was too recent")
COUNTER(lease_outstanding, requests, lease,
	"an earlier request of the same id was unanswered")

/* Replies that filled nothing although they held a value. */
COUNTER(fill_user, values, fill,
	"not sent by memcached but by another user's process")
COUNTER(fill_unleased, values, fill, "the request had no lease")
COUNTER(fill_raced, values, fill, "a write came in between")
COUNTER(fill_reply, values, fill, "not the reply to one key in one datagram")
COUNTER(fill_admission, values, fill, "everything in its place was in more demand")
COUNTER(fill_expiry, values, fill, "the item was about to end")

/* Writes whose reply bmc could not follow. */
COUNTER(write_untracked, commands, total, "Writes whose reply cannot be followed")

/* TCP traffic that had to be taken for a change of any key. */
COUNTER(tcp_unparsed, packets, total,
	"Packets with a command that is not known, or behind a gap")
COUNTER(tcp_unfollowed, packets, total,
	"TCP packets to memcached without a connection to follow")
COUNTER(tcp_unmatched, packets, total,
	"TCP packets of memcached that answer no command")
