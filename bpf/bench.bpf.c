/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The two ends of a measurement of bmc_rx by BPF_PROG_TEST_RUN with live
 * frames: a reflector, the least that any program which answers must do, and a
 * sink at the other end of a veth pair. Not part of what `bmc attach` loads.
 */
#include "vmlinux.h"

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
