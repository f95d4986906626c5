/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * A client in the kernel, for servers that answer faster than a process can ask:
 * one program makes requests, run by BPF_PROG_TEST_RUN with live frames, and
 * another counts the replies where they come back. For the benchmark `peak`.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

enum {
	FLOOD_KEYS = 1 << 20,
	FLOOD_PORT = 34, /* offsets in the frame: IPv4 without options */
	FLOOD_ID = 42,
	FLOOD_TEXT = 50,
	FLOOD_KEY = 54,
	FLOOD_LEN = 72,
	FLOOD_PORTS = 64, /* so that an id is not used again too soon */
};

struct bmc_flood {
	__u64 sent;
	__u64 due; /* when the next one may be sent, ns */
	__u64 gap; /* between two of them, ns; 0: none */
	__u8 frame[FLOOD_LEN]; /* one of the requests */
	__u8 pad[32]; /* what follows has a cache line of its own */
	/* By the other end, on any CPU. */
	__u64 replies;
	__u64 values; /* of them, those that begin with one */
};

struct bmc_flood bmc_flood_data = {};

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

/*
 * Makes its frame the request for the next key of the list, whatever it held
 * before: the kernel runs the same frames over and over.
 */
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
