/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The two ends of a measurement of bmc_rx by BPF_PROG_TEST_RUN with live
 * frames: a reflector, the least that any program which answers must do, and a
 * sink at the other end of a veth pair; the reflector for sockets of `bmc
 * bench`; and, for requests that go on to memcached, the programs that do
 * nothing and one behind bmc_rx_tc that takes memcached's place. Not part of
 * what `bmc attach` loads.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

enum { SINK_MAX = 512, TCX_NEXT = -1, TCX_DROP = 2 };

/*
 * What the sink puts back into a frame: the kernel runs the same frames over
 * and over, as the program left them.
 */
struct bmc_sink {
	__u64 frames; /* that came */
	__u64 replies; /* of them, those of the length that was expected */
	__u32 expect;
	__u32 at; /* where the request was in the reply's frame */
	__u32 len;
	__u32 pad;
	__u8 request[SINK_MAX];
};

struct bmc_sink bmc_sink_data = {};

SEC("xdp")
int bmc_reflect(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data,
	     *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct ethhdr old;

	if ((void *)(eth + 1) > data_end)
		return XDP_PASS;
	old = *eth;
	__builtin_memcpy(eth->h_dest, old.h_source, sizeof(eth->h_dest));
	__builtin_memcpy(eth->h_source, old.h_dest, sizeof(eth->h_source));
	return XDP_TX;
}

/*
 * The same for a request that a socket sent and whose answer a socket waits
 * for: addresses and ports change places as well.
 */
SEC("xdp")
int bmc_echo(struct xdp_md *ctx)
{
	enum { IPV4 = 0x0800, NO_OPTIONS = 0x45, UDP = 17, PORT = 11211 };

	void *data = (void *)(long)ctx->data,
	     *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data, old;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__be32 addr;

	if ((void *)(udp + 1) > data_end || eth->h_proto != bpf_htons(IPV4) ||
	    ip->version_ihl != NO_OPTIONS || ip->protocol != UDP ||
	    udp->dest != bpf_htons(PORT))
		return XDP_PASS;
	old = *eth;
	__builtin_memcpy(eth->h_dest, old.h_source, sizeof(eth->h_dest));
	__builtin_memcpy(eth->h_source, old.h_dest, sizeof(eth->h_source));
	addr = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = addr;
	udp->dest = udp->source;
	udp->source = bpf_htons(PORT);
	/* None, as a veth leaves it to be filled in by a card. */
	udp->check = 0;
	return XDP_TX;
}

SEC("xdp")
int bmc_sink(struct xdp_md *ctx)
{
	__u64 len = bmc_sink_data.len - 1;

	bmc_sink_data.frames++;
	if (ctx->data_end - ctx->data == bmc_sink_data.expect)
		bmc_sink_data.replies++;
	barrier_var(len);
	if (len < SINK_MAX)
		bpf_xdp_store_bytes(ctx, bmc_sink_data.at,
				    bmc_sink_data.request, len + 1);
	return XDP_DROP;
}

/* What XDP costs by itself. */
SEC("xdp")
int bmc_pass(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

/* What TC costs by itself. */
SEC("tc")
int bmc_pass_tc(struct __sk_buff *skb)
{
	(void)skb;
	return TCX_NEXT;
}

/* bmc's own, of the least size: see bpf/maps.bpf.h. */
enum { SENDERS = 8 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SENDERS);
	__type(key, __u32);
	__type(value, __u64);
} bmc_senders SEC(".maps");

/* What bmc_swallow has seen: frames to one receiver, and those with metadata. */
struct bmc_swallowed {
	__u64 frames;
	__u64 noted;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_swallowed);
} bmc_swallowed SEC(".maps");

/*
 * A request comes here instead of to memcached, and counts as answered at once: the
 * next one, which is the same, gets a lease too.
 */
SEC("tc")
int bmc_swallow(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data;
	struct bmc_swallowed *swallowed;
	__u32 zero = 0;

	swallowed = bpf_map_lookup_elem(&bmc_swallowed, &zero);
	if (!swallowed || data + 1 > (__u8 *)(long)skb->data_end || *data & 1)
		return TCX_NEXT; /* what hosts tell all others */
	swallowed->noted += skb->data_meta != skb->data;
	for (__u32 i = 0; i < SENDERS; i++) {
		__u32 nr = i;
		__u64 *cell = bpf_map_lookup_elem(&bmc_senders, &nr);

		if (cell)
			*cell = 0;
	}
	__sync_fetch_and_add(&swallowed->frames, 1);
	return TCX_DROP;
}

/* Metadata that bmc_forge puts in front of a frame. */
struct bmc_forged {
	__u64 words[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_forged);
} bmc_forged SEC(".maps");

/* Another's XDP program in the place of bmc_rx. */
SEC("xdp")
int bmc_forge(struct xdp_md *ctx)
{
	struct bmc_forged *forged, *meta;
	__u32 zero = 0;

	forged = bpf_map_lookup_elem(&bmc_forged, &zero);
	if (!forged || bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta)))
		return XDP_ABORTED;
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return XDP_ABORTED;
	*meta = *forged;
	return XDP_PASS;
}
