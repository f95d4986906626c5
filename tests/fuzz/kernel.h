/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * bpf/flow.bpf.h and all below it, compiled for this machine: what the kernel
 * and libbpf provide, as far as a walk through a stream needs it. A packet is
 * packet[0..packet_len). There are no maps but the counters and G.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmlinux.h"

#define SEC(name)
#define __uint(name, value) int(*name)[value]
#define __type(name, value) value *name
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#define __noinline static __attribute__((noinline, unused))
#define barrier_var(x) ((void)(x))
#define likely(x) (!!(x))
#define unlikely(x) (!!(x))
#define bpf_htons __builtin_bswap16
#define bpf_ntohs __builtin_bswap16
#define bpf_htonl __builtin_bswap32
#define bpf_ntohl __builtin_bswap32

#if defined(__x86_64__)
#define __TARGET_ARCH_x86
#endif

#define TIME 1000000000000ULL /* since boot, ns; it stands still */
#define bpf_ktime_get_coarse_ns() TIME
#define bpf_ktime_get_ns() TIME
#define bpf_ktime_get_tai_ns() (TIME + (cfg.wall + cfg.tai) * SECOND)
#define bpf_jiffies64() (TIME / 1000000)
#define bpf_get_prandom_u32() 0
#define bpf_spin_lock(lock) ((void)(lock))
#define bpf_spin_unlock(lock) ((void)(lock))
#define bpf_csum_diff(from, from_size, to, to_size, seed) (-1)

static const __u8 *packet;
static __u32 packet_len;

#define bpf_probe_read_kernel(to, len, from) memmove(to, from, len)
#define bpf_skb_load_bytes(skb, off, to, len) \
	((off) + (len) > packet_len           \
		 ? -1                         \
		 : (memcpy(to, packet + (off), len), (void)(skb), 0))

static inline long native_loop(__u32 n, long (*step)(__u32, void *), void *arg)
{
	for (__u32 i = 0; i < n; i++)
		if (step(i, arg))
			return i + 1;
	return n;
}
#define bpf_loop(n, step, arg, flags) native_loop(n, step, arg)

/* memcached's socket, and the one connection there is. */
static struct bpf_sock sock = { .state = 1 };
static struct bpf_tcp_sock tcp_sock;
static struct bmc_flow *the_flow;
#define bpf_skc_lookup_tcp(skb, tuple, size, netns, flags) \
	((void)(tuple), (void)(size), &sock)
#define bpf_tcp_sock(sk) (&tcp_sock)
#define bpf_sk_fullsock(sk) (sk)
#define bpf_sk_release(sk) ((void)(sk))

static void *map_value(const void *map);
#define bpf_map_lookup_elem(map, key) ((void)(key), map_value(map))
#define bpf_map_lookup_percpu_elem(map, key, cpu) \
	((void)(key), (cpu) ? NULL : map_value(map))
#define bpf_map_update_elem(map, key, value, flags) ((void)(key))
#define bpf_map_delete_elem(map, key) ((void)(key))

#include "bmc.h"

static struct bmc_config cfg;

#include "proto.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "expiry.bpf.h"
#include "heat.bpf.h"
#include "slab.bpf.h"
#include "cache.bpf.h"

/* What a walk comes to: the tests look at it instead of at the buckets. */
#define write_begin bucket_write_begin
#define flush_all bucket_flush_all
#define flush_all_held bucket_flush_all_held
#include "lease.bpf.h"
#undef write_begin
#undef flush_all
#undef flush_all_held
static __u64 write_begin(__u64 hash, bool pending, __u64 lag, __u64 ticket);
static void flush_all(struct bmc_stats *st, __u64 until);
static void flush_all_held(struct bmc_stats *st, __u64 until, __u64 ticket);

#include "table.bpf.h"
#include "sleep.bpf.h"
#include "flow.bpf.h"

static struct bmc_stats native_stats;
static struct bmc_global native_global;
static struct bmc_flow_set native_set;
static void *map_value(const void *map)
{
	return map == &bmc_stats       ? (void *)&native_stats
	       : map == &bmc_global    ? (void *)&native_global
	       : map == &bmc_flows     ? (void *)the_flow
	       : map == &bmc_flow_sets ? (void *)&native_set
				       : NULL;
}

#endif /* KERNEL_H */
