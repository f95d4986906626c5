/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * What the BPF programs and the tool share: limits, the configuration, the
 * counters and the layout of the cache. The Rust side takes these types from
 * the skeleton (that is, from the object's BTF), so there is no second copy.
 * Only fixed-width types here; constants are enums because macros do not reach
 * BTF, and stay below 32 bits because clang 14 truncates wider enumerators.
 */
#ifndef BMC_H
#define BMC_H

enum bmc_limit {
	/* Raised whenever a map's layout changes; --replace keeps the cache
	 * only between equal numbers.
	 */
	BMC_LAYOUT = 15,

	BMC_KEY_MAX = 250, /* memcached's KEY_MAX_LENGTH */
	BMC_KEYS_MAX = 32, /* keys of one get that bmc answers */
	/* Largest reply text, END included, that memcached sends in one
	 * datagram: UDP_MAX_PAYLOAD_SIZE (1400) less the 8-byte frame header.
	 */
	BMC_REPLY_MAX = 1392,

	BMC_PORTS_MAX = 16, /* --port */
	BMC_ALLOW_MAX = 32, /* --allow, for each address family */

	BMC_WAYS = 8, /* entries of one index bucket */

	BMC_SLAB_SHIFT = 18, /* a slab is 256 KiB */
	BMC_SLAB_SIZE = 1 << BMC_SLAB_SHIFT,
	BMC_UNIT_SHIFT = 4, /* slots are quarters of cache lines */
	BMC_UNIT = 1 << BMC_UNIT_SHIFT,
	BMC_SLOT_MAX = 1408, /* the largest text in its place, in whole units */
	BMC_CLASSES = 32,

	BMC_SERVERS = 128, /* addresses and ports that memcacheds answer from */
	BMC_SERVER_TAKEN = 1, /* in place of its port */
	BMC_AGE_SHIFT = 26, /* ages are in 2^26 ns, which is 67 ms */
};

/* Where the key of a slot is, and where its text would start with "VALUE ". */
enum bmc_slot_offset {
	BMC_SLOT_TEXT = 16,
	BMC_SLOT_KEY = 22,
};

/*
 * The coherence word ("W") of a bucket, and the same word once for the whole
 * cache ("G"):
 *
 *   bit 0       LOCK  a fill is writing an entry of this bucket
 *   bits 1-16   PEND  writes seen on their way in and not yet acknowledged
 *   bits 17-63  GEN   grows with every write and every fill; never comes back
 *
 * It is clean when LOCK and PEND are zero. Hits, leases and fills need a clean
 * word. See lease.bpf.h for the rules. In G a single PEND says that the cache is
 * asleep: see sleep.bpf.h.
 */
enum bmc_word {
	BMC_LOCK = 1 << 0,
	BMC_PEND = 1 << 1,
	BMC_ASLEEP = BMC_PEND,
	BMC_GEN = 1 << 17,
};

/* One cache line. A way is 0 when empty, else see cache.bpf.h. */
struct bmc_bucket {
	__u64 word;
	__u64 asked; /* how often for what is not there, see heat.bpf.h */
	__u32 ways[BMC_WAYS];
	__u16 tags[BMC_WAYS];
};

/*
 * The head of a slot and, reaching beyond it, the text that memcached sent:
 * "VALUE <key> <flags> <bytes>\r\n<data>\r\n", without "VALUE " and "END\r\n".
 */
struct bmc_slot {
	__u64 epoch_len; /* GEN of G when the lease was taken, above 16 bits: text */
	__u32 seq; /* odd while the slot is being written */
	__u32 deadline; /* as an age; no hit from then on */
	__u16 csum; /* ones' complement sum of the whole text, not inverted */
	__u8 klen;
	__u8 heat; /* how often it is asked for, see heat.bpf.h */
	__u8 server; /* memcached's number in bmc_servers */
	__u8 class;
	__u8 key[2]; /* its start */
};

/* A memcached as its clients write it. Numbers are handed out once and stay. */
struct bmc_server {
	__u64 addr[2]; /* IPv4 mapped into IPv6, network byte order */
	/* Above 16 bits the port, network byte order, above 32 the tags: outer id,
	 * inner id << 12, 0 untagged. 0: free, BMC_SERVER_TAKEN: is being written.
	 */
	__u64 port_vlan;
};

_Static_assert(sizeof(struct bmc_bucket) == 64, "a bucket is a cache line");

/* How much of each thing there is, and how to behave: set before load. */
struct bmc_prefix4 {
	__be32 net;
	__be32 mask;
};

struct bmc_prefix6 {
	__u64 net[2]; /* network byte order */
	__u64 mask[2];
};

struct bmc_config {
	/* What each packet needs first, in two cache lines. */
	__u64 seed[2]; /* random, for each load of the maps */
	__u64 tick; /* a jiffy, ns */
	__u32 flow_sets; /* of bmc_flow_sets, a power of two */
	__u32 nr_ports;
	__be16 ports[BMC_PORTS_MAX];
	__u32 nh[2 * BMC_KEY_MAX / 8 + 4]; /* random, likewise: the hash's key */
	__u64 memory; /* --memory, bytes */
	__u64 max_age; /* --max-age, ns */
	__u64 unknown_ttl; /* --unknown-ttl, ns */
	__u64 wall; /* the time of day when the clock of the programs was 0, s */
	__u64 tai; /* by which CLOCK_TAI is ahead of the time of day, s */
	__u32 layout; /* BMC_LAYOUT of whoever made the maps */
	__u32 buckets; /* of bmc_index */
	__u32 slabs; /* of bmc_slabs */
	__u32 senders; /* of bmc_senders */
	__u32 leases; /* of bmc_leases */
	__u32 expiries; /* of bmc_expiry */
	__u32 netns; /* the number of memcached's network namespace */
	__u32 sk_uid; /* where the kernel's struct sock has its user; 0: unknown */
	__u32 generic; /* XDP runs on skbs: --mode generic */
	__u32 nr_allow4;
	__u32 nr_allow6;
	struct bmc_prefix4 allow4[BMC_ALLOW_MAX];
	struct bmc_prefix6 allow6[BMC_ALLOW_MAX];
};

/*
 * Counters, one struct a CPU; only u64s. The tool's table in stats.rs names
 * and explains them in this order.
 */
struct bmc_stats {
	__u64 get_requests;
	__u64 get_keys;
	__u64 hits;
	__u64 misses;
	__u64 hit_mispredictions;
	__u64 tc_replies;
	__u64 get_replies;
	__u64 leases;
	__u64 fills;
	__u64 evictions;
	__u64 tcp_requests;
	__u64 tcp_writes;
	__u64 write_requests;
	__u64 invalidations;
	__u64 flushes;
	__u64 memcached_gone;
	__u64 sleeps;
	/* GETs that went to memcached although every key was there. */
	__u64 pass_room;
	__u64 pass_size;
	/* UDP requests to a memcached port that bmc did not even look up. */
	__u64 pass_source;
	__u64 pass_address;
	__u64 pass_fragment;
	__u64 pass_header;
	__u64 pass_length;
	__u64 pass_checksum;
	__u64 pass_frame;
	__u64 pass_command;
	__u64 pass_key;
	__u64 pass_keys;
	__u64 pass_line;
	/* Leases not given. */
	__u64 lease_dirty;
	__u64 lease_quarantine;
	__u64 lease_outstanding;
	/* Replies that filled nothing although they held a value. */
	__u64 fill_user;
	__u64 fill_unleased;
	__u64 fill_raced;
	__u64 fill_reply;
	__u64 fill_admission;
	__u64 fill_expiry;
	/* Writes of which bmc could not follow the reply. */
	__u64 write_untracked;
	/* TCP: what had to be taken for a change of any key. */
	__u64 tcp_unparsed;
	__u64 tcp_unfollowed;
	__u64 tcp_unmatched;
};

#endif /* BMC_H */
