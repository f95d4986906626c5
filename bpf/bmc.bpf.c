/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * bmc: memcached's GETs answered before the network stack sees them.
 *
 *  client -> NIC -> bmc_rx (XDP) --+-- GET, every key hit --> reply, XDP_TX
 *                                  |
 *                                  `-> bmc_rx_tc (TC ingress)
 *                                        GET, every key hit --> reply, redirect
 *                                        GET, a miss: lease
 *                                        write: invalidate
 *                                        `-> stack -> memcached
 *
 *  client <- NIC <- bmc_tx (TC egress) <- stack <- memcached
 *                     reply to a leased GET: fill
 *                     reply to a write: no longer pending
 *
 * bmc_rx does nothing but answer. All state is changed by the TC programs, so
 * that there is one place for it whether XDP runs or not (--mode tc), and so
 * that a packet which XDP passed is counted, leased or noted exactly once.
 *
 * Whatever is not understood goes on unchanged; no packet is ever dropped. TC
 * programs return TC_ACT_UNSPEC: other filters and tcx programs take their turn.
 *
 * On loopback nothing is answered or filled, only writes are looked at.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bmc.h"

/* The knobs; frozen at load. Every program reads it, so does the tool. */
const volatile struct bmc_config cfg;

#include "proto.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "expiry.bpf.h"
#include "heat.bpf.h"
#include "slab.bpf.h"
#include "cache.bpf.h"
#include "lease.bpf.h"
#include "table.bpf.h"
#include "sleep.bpf.h"
#include "flow.bpf.h"
#include "serve.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("xdp")
int bmc_rx(struct xdp_md *ctx)
{
	struct bmc_scratch *s = scratch();
	int found;

	if (!s)
		return XDP_PASS;
	s->size = ctx->data_end - ctx->data;
	found = plain_parse(DATA(ctx), DATA_END(ctx), s->size, WAY_IN, false, s);
	if (found == PACKET_UNSURE)
		found = xdp_packet(ctx, s);
	return found == PACKET_UDP ? serve_xdp(ctx, s) : XDP_PASS;
}

/*
 * What an skb holds. Most have their headers in linear memory; pulling more of
 * it there means a copy of an skb that is shared, as TCP's own are.
 */
static __always_inline int tc_look(struct __sk_buff *skb, struct bmc_scratch *s,
				   enum way way)
{
	int found = PACKET_UNSURE;

	if (!skb->vlan_present)
		found = plain_parse(DATA(skb), DATA_END(skb), skb->len, way,
				    true, s);
	if (likely(found != PACKET_UNSURE))
		return found;
	found = tc_packet(skb, s, way);
	if (found == PACKET_SHORT && tc_linear(skb, HEADERS_LINEAR))
		found = tc_packet(skb, s, way);
	return found == PACKET_SHORT ? PACKET_OTHER : found;
}

/* Whether it is a TCP segment, at a glance: of an IP packet of either version. */
static __always_inline bool tc_is_tcp(struct __sk_buff *skb)
{
	void *data = DATA(skb);
	const struct ethhdr *eth = data;
	const struct iphdr *ip4 = data + sizeof(*eth);
	const struct ipv6hdr *ip6 = data + sizeof(*eth);

	if ((void *)(ip4 + 1) > DATA_END(skb))
		return false;
	return eth->h_proto == bpf_htons(ETH_P_IP)
		       ? ip4->protocol == IPPROTO_TCP
		       : eth->h_proto == bpf_htons(ETH_P_IPV6) &&
				 ip6->nexthdr == IPPROTO_TCP;
}

/*
 * Whether it is a datagram behind the first of a reply, at a glance: nothing in it is
 * of use (doc/protocol.txt: the sequence number, two bytes into the frame's header).
 */
static __always_inline bool tc_is_later(struct __sk_buff *skb)
{
	void *data = DATA(skb);
	const struct ethhdr *eth = data;
	const struct iphdr *ip4 = data + sizeof(*eth);
	const struct ipv6hdr *ip6 = data + sizeof(*eth);
	const __be16 *frame = (void *)(ip4 + 1) + UDP_LEN;

	if ((void *)(frame + 2) > DATA_END(skb))
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return ip4->protocol == IPPROTO_UDP && frame[1] &&
		       ip4->version_ihl == 0x45 &&
		       !(ip4->frag_off & bpf_htons(IP_MF | IP_OFFSET));
	frame = (void *)(ip6 + 1) + UDP_LEN;
	return eth->h_proto == bpf_htons(ETH_P_IPV6) &&
	       ip6->nexthdr == IPPROTO_UDP &&
	       (void *)(frame + 2) <= DATA_END(skb) && frame[1];
}

/*
 * Stands at the payload of a TCP segment; false if there is nothing to follow. An
 * ACK alone is nothing. All that is known of the segment is in the scratch
 * memory then, and nothing on the stack: the verifier goes on with one state.
 */
static __always_inline bool tcp_payload(struct bmc_scratch *s)
{
	__u32 head = s->tcp.doff >> 4 << 2, len = s->l4_len - head;

	if (head < sizeof(s->tcp) || head > s->l4_len)
		return false;
	s->text = s->l4 + head;
	s->text_len = len;
	window_empty(&s->window);
	return len || s->tcp.flags & (TCP_FIN | TCP_RST);
}

SEC("tc")
int bmc_rx_tc(struct __sk_buff *skb)
{
	struct bmc_scratch *s = scratch();
	struct bmc_stats *st;
	int found;

	if (!s)
		return TC_ACT_UNSPEC;
	found = tc_look(skb, s, WAY_IN);
	if (found == PACKET_TCP) {
		if (tcp_payload(s))
			flow_in(skb, s);
		return TC_ACT_UNSPEC;
	}
	st = stats();
	if (found == PACKET_OTHER || !st)
		return TC_ACT_UNSPEC;
	s->text_len = 0;
	if (found == PACKET_UDP) {
		tc_linear(skb, skb->len);
		found = tc_request(skb, s);
		if (!found && skb->pkt_type != PACKET_HOST)
			found = -COUNTER(pass_address);
		if (!found && skb->ifindex == LOOPBACK_IFINDEX)
			return TC_ACT_UNSPEC;
		if (!found)
			found = serve_tc(skb, s, st);
		if (found >= 0 || found == TC_ACT_UNSPEC)
			return found;
	}
	udp_passed(skb, s, st, -found);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bmc_tx(struct __sk_buff *skb)
{
	struct bmc_scratch *s = scratch();
	bool asleep = cache_is_asleep();

	if (asleep && tc_is_tcp(skb))
		return TC_ACT_UNSPEC;
	/* Only what a socket of this host sends: not what it forwards nor what
	 * bmc_rx_tc answered. Both came in by some interface; on veth the answer
	 * still has a socket, the client's.
	 */
	if (!s || !skb->sk || skb->ingress_ifindex || tc_is_later(skb))
		return TC_ACT_UNSPEC;
	switch (tc_look(skb, s, WAY_OUT)) {
	case PACKET_TCP:
		if (!asleep && tcp_payload(s))
			flow_out(skb, s);
		break;
	case PACKET_UDP:
		if (skb->ifindex != LOOPBACK_IFINDEX)
			reply_seen(skb, s);
		break;
	}
	return TC_ACT_UNSPEC;
}

/* Run by the tool: the time by which entries end. */
SEC("syscall")
int bmc_now(void *ctx)
{
	(void)ctx;
	return age_now();
}

/* Run by the tool: forget every entry. */
SEC("syscall")
int bmc_flush(void *ctx)
{
	/* The coarse clock is not for programs of this kind. */
	__u64 now = bpf_ktime_get_ns();
	struct bmc_global *g = cache_global();
	struct bmc_stats *st = stats();

	(void)ctx;
	if (!st || !g)
		return 1;
	WRITE_ONCE(g->since, now);
	flush_all(st, now + BMC_APPLY_NS);
	/* The end of idling too, but of no other quarantine. */
	if (READ_ONCE(g->hold.until) == ~0ULL)
		WRITE_ONCE(g->hold.until, now + BMC_APPLY_NS);
	return 0;
}
