/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The two ends of a measurement of bmc_rx by BPF_PROG_TEST_RUN with live
 * frames: a reflector, the least that any program which answers must do, and a
 * sink at the other end of a veth pair; the reflector for sockets of `bmc
 * bench`; and a client in the kernel, for servers that are faster than a process
 * can ask. Not part of what `bmc attach` loads.
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

/*
 * The client: each run makes its frame the request for the next key of a list,
 * of keys of 16 bytes. Whatever the frame held before, as the kernel runs the
 * same frames over and over.
 */
enum {
	FLOOD_KEYS = 1 << 20,
	FLOOD_PORT = 34, /* offsets in the frame: IPv4 without options */
	FLOOD_ID = 42,
	FLOOD_TEXT = 50,
	FLOOD_KEY = 54,
	FLOOD_LEN = 72,
	FLOOD_PORTS = 64, /* so that ids are not used again too soon */
};

struct bmc_flood {
	__u64 sent;
	__u64 due; /* when the next one may be sent, ns */
	__u64 gap; /* between two of them, ns; 0: none */
	__u8 frame[FLOOD_LEN]; /* one of the requests */
	__u8 pad[32];
	/* By the other end, on any CPU. */
	__u64 replies;
	__u64 values; /* of them, those that begin with one */
};

struct bmc_flood bmc_flood_data SEC(".data.flood") = {};

struct bmc_key {
	__u64 words[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOOD_KEYS);
	__type(key, __u32);
	__type(value, struct bmc_key);
} bmc_flood_keys SEC(".maps");

static long flood_wait(__u32 i, void *arg)
{
	(void)i;
	return bpf_ktime_get_ns() >= *(__u64 *)arg;
}

SEC("xdp")
int bmc_flood(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	__u64 sent = bmc_flood_data.sent++, due = bmc_flood_data.due;
	__u32 nr = sent & (FLOOD_KEYS - 1);
	struct bmc_key *key = bpf_map_lookup_elem(&bmc_flood_keys, &nr);

	if (data + FLOOD_LEN > (void *)(long)ctx->data_end || !key)
		return XDP_ABORTED;
	if (bmc_flood_data.gap) {
		bpf_loop(1 << 16, flood_wait, &due, 0);
		bmc_flood_data.due = due + bmc_flood_data.gap;
	}
	for (int i = 0; i < FLOOD_LEN; i += 8)
		*(__u64 *)(data + i) = *(__u64 *)(bmc_flood_data.frame + i);
	*(__u16 *)(data + FLOOD_PORT) += sent >> 16 & (FLOOD_PORTS - 1);
	*(__u16 *)(data + FLOOD_ID) = sent;
	*(__u64 *)(data + FLOOD_KEY) = key->words[0];
	*(__u64 *)(data + FLOOD_KEY + 8) = key->words[1];
	return XDP_TX;
}

/* Where its replies come back. */
SEC("xdp")
int bmc_flooded(struct xdp_md *ctx)
{
	enum { PROTOCOL = 23, UDP = 17, VALUE = 0x554c4156 };

	void *data = (void *)(long)ctx->data;

	if (data + FLOOD_KEY > (void *)(long)ctx->data_end ||
	    *(__u8 *)(data + PROTOCOL) != UDP)
		return XDP_PASS; /* ARP */
	__sync_fetch_and_add(&bmc_flood_data.replies, 1);
	if (*(__u32 *)(data + FLOOD_TEXT) == VALUE)
		__sync_fetch_and_add(&bmc_flood_data.values, 1);
	return XDP_DROP;
}
