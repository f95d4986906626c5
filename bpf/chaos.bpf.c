// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
/*
 * A bad network, for tests/stress: attached to the client's device, both ways.
 * What goes to memcached or comes from it is lost, doubled, or sent on a detour:
 * out by a second device, whose other end the test reads. It sends the frame
 * back when it sees fit, and bmc_back puts it where it was taken from. Address
 * resolution can be stopped, too. Not part of what `bmc attach` loads.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

enum {
	TC_ACT_UNSPEC = -1,
	TC_ACT_SHOT = 2,
	ETH_IP = 0x0800,
	ETH_ARP = 0x0806,
	ARP_TARGET = 38, /* from the start of the frame */
	IP_PROTOCOL = 23,
	PORTS = 34, /* no IP options here */
	TCP_FLAGS = 47,
	TCP_SYN = 2,
	PROTOCOL_TCP = 6,
	PROTOCOL_UDP = 17,
	MEMCACHED = 11211,
	INGRESS = 1, /* BPF_F_INGRESS */
};

enum way { OUT, IN, WAYS };
enum protocol { UDP, TCP, PROTOCOLS };
enum fault { LOSS, COPY, DETOUR, FAULTS };

/* Out of 65536 packets; the test writes. */
struct bmc_faults {
	__u32 rate[WAYS][PROTOCOLS][FAULTS];
	__u32 device; /* of the client */
	__u32 detour;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_faults);
} bmc_faults SEC(".maps");

/* The address that the server cannot resolve; the test writes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __be32);
} bmc_stalled SEC(".maps");

/* How often it happened; the test reads. */
struct bmc_injected {
	__u64 count[WAYS][PROTOCOLS][FAULTS];
	__u64 stalls;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_injected);
} bmc_injected SEC(".maps");

static __always_inline int resolve(struct __sk_buff *skb,
				   struct bmc_injected *done)
{
	__u32 zero = 0;
	__be32 *stalled = bpf_map_lookup_elem(&bmc_stalled, &zero), target;

	if (!stalled || bpf_skb_load_bytes(skb, ARP_TARGET, &target, 4) ||
	    target != *stalled)
		return TC_ACT_UNSPEC;
	__sync_fetch_and_add(&done->stalls, 1);
	return TC_ACT_SHOT;
}

static __always_inline int chaos(struct __sk_buff *skb, enum way way)
{
	__u32 zero = 0, dice = bpf_get_prandom_u32() & 0xffff;
	struct bmc_faults *faults = bpf_map_lookup_elem(&bmc_faults, &zero);
	struct bmc_injected *done = bpf_map_lookup_elem(&bmc_injected, &zero);
	__u8 protocol, flags;
	enum protocol p;
	__be16 ports[2];

	if (!faults || !done)
		return TC_ACT_UNSPEC;
	if (skb->protocol == bpf_htons(ETH_ARP) && way == IN)
		return resolve(skb, done);
	if (skb->protocol != bpf_htons(ETH_IP) ||
	    bpf_skb_load_bytes(skb, IP_PROTOCOL, &protocol, 1) ||
	    bpf_skb_load_bytes(skb, PORTS, ports, sizeof(ports)) ||
	    ports[way == OUT] != bpf_htons(MEMCACHED))
		return TC_ACT_UNSPEC;
	if (protocol == PROTOCOL_UDP)
		p = UDP;
	else if (protocol == PROTOCOL_TCP)
		p = TCP;
	else
		return TC_ACT_UNSPEC;
	/* A lost SYN only costs a second. */
	if (p == TCP &&
	    (bpf_skb_load_bytes(skb, TCP_FLAGS, &flags, 1) || flags & TCP_SYN))
		return TC_ACT_UNSPEC;

	if (dice < faults->rate[way][p][LOSS]) {
		__sync_fetch_and_add(&done->count[way][p][LOSS], 1);
		return TC_ACT_SHOT;
	}
	dice -= faults->rate[way][p][LOSS];
	if (dice < faults->rate[way][p][COPY]) {
		if (!bpf_clone_redirect(skb, skb->ifindex,
					way == IN ? INGRESS : 0))
			__sync_fetch_and_add(&done->count[way][p][COPY], 1);
		return TC_ACT_UNSPEC;
	}
	dice -= faults->rate[way][p][COPY];
	if (dice < faults->rate[way][p][DETOUR]) {
		__sync_fetch_and_add(&done->count[way][p][DETOUR], 1);
		return bpf_redirect(faults->detour, 0);
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int bmc_out(struct __sk_buff *skb)
{
	return chaos(skb, OUT);
}

SEC("tc")
int bmc_in(struct __sk_buff *skb)
{
	return chaos(skb, IN);
}

/* A frame comes back from its detour: on its way as if it had never left. */
SEC("tc")
int bmc_back(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct bmc_faults *faults = bpf_map_lookup_elem(&bmc_faults, &zero);
	__be16 port;

	if (!faults || skb->protocol != bpf_htons(ETH_IP) ||
	    bpf_skb_load_bytes(skb, PORTS + 2, &port, sizeof(port)))
		return TC_ACT_SHOT;
	return bpf_redirect(faults->device,
			    port == bpf_htons(MEMCACHED) ? 0 : INGRESS);
}
