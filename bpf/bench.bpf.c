/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The two ends of a measurement of bmc_rx by BPF_PROG_TEST_RUN with live
 * frames: a reflector, the least that any program which answers must do, and a
 * sink at the other end of a veth pair; and the reflector for sockets of `bmc
 * bench`. Not part of what `bmc attach` loads.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

enum { SINK_MAX = 512 };

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
