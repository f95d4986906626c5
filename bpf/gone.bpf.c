/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * bmc_gone: forgets every entry when memcached stops to listen, for whoever
 * listens there next has other content. It is an object of its own because it
 * alone needs the kernel's BTF: where there is none, the rest works without it.
 *
 * Nobody else can listen on that address before this has run, and what a dying
 * memcached still answers fills nothing: flush_all() lets no lease be taken for
 * BMC_APPLY_NS.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bmc.h"

/* Only the ports and the namespace are set. */
const volatile struct bmc_config cfg;

#include "proto.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "expiry.bpf.h"
#include "heat.bpf.h"
#include "slab.bpf.h"
#include "cache.bpf.h"
#include "lease.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* Of the kernel's own types only what is read, wherever it may be by now. */
struct ns_common {
	__u32 inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct sock_common {
	__u16 skc_num; /* local port, host byte order */
	possible_net_t skc_net;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
} __attribute__((preserve_access_index));

enum { TCP_CLOSE = 7, TCP_LISTEN = 10 };

/*
 * Called with struct sock *sk, int oldstate, int newstate. A connection that is
 * accepted comes from TCP_LISTEN too, being a copy of the listener.
 */
SEC("tp_btf/inet_sock_set_state")
int bmc_gone(const __u64 *ctx)
{
	const struct sock *sk = (const void *)ctx[0];
	struct bmc_stats *st = stats();

	if (!st || (int)ctx[1] != TCP_LISTEN || (int)ctx[2] != TCP_CLOSE ||
	    !is_memcached_port(bpf_htons(sk->__sk_common.skc_num)) ||
	    sk->__sk_common.skc_net.net->ns.inum != cfg.netns)
		return 0;
	/* Atomic, because a packet may interrupt this. */
	(void)__sync_fetch_and_add(&st->memcached_gone, 1);
	flush_all(st, bpf_ktime_get_ns() + BMC_APPLY_NS);
	return 0;
}
