/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Where hardly anybody asks over UDP, bmc costs more than it saves: the cache falls
 * asleep. G is not clean then, so that nothing is served, leased or filled, and no
 * program looks at what memcached sends over TCP: that is a segment for each reply,
 * where a client may put many commands into one, and most of what bmc costs those who
 * use it.
 *
 * When it wakes G moves, so that what was there before is of no use any more, and there
 * is no lease for DEEP_NS, within which whatever has come meanwhile is applied: nobody
 * knows how much each connection waits for. What goes to memcached is looked at even in
 * its sleep, as if each connection were mute (flow.bpf.h): when items end, what waits
 * for a delayed flush_all, and where in its stream each connection is.
 *
 * What it saves is guessed high: as if each key that is asked for were a hit. So a cache
 * that still has to be filled does not sleep.
 */
#ifndef SLEEP_BPF_H
#define SLEEP_BPF_H

/* So often somebody looks whether it pays to be awake. */
#define SLEEP_NS (10 * SECOND)

enum {
	CPUS_MAX = 8192,
	/* Of what memcached and the stack need for a key, some 3 us: what a request
	 * over TCP costs, and besides that a write, or a segment that flushes.
	 */
	GAIN_KEY = 20,
	COST_REQUEST = 1,
	COST_WRITE = 3,
	COST_FLUSH = 3,
	/* To sleep saves no less than a four-thousandth of a CPU. */
	SLEEP_GAIN = 1 << 14,
};

struct balance {
	__u64 sum;
};

/* Adds what a CPU's requests saved, less what they cost, since the attach. */
static long balance_add(__u32 cpu, void *arg)
{
	struct balance *balance = arg;
	struct bmc_stats *st;
	__u32 zero = 0;

	st = bpf_map_lookup_percpu_elem(&bmc_stats, &zero, cpu);
	if (!st)
		return 1;
	balance->sum += READ_ONCE(st->get_keys) * GAIN_KEY -
			READ_ONCE(st->tcp_requests) * COST_REQUEST -
			READ_ONCE(st->tcp_writes) * COST_WRITE -
			READ_ONCE(st->tcp_unfollowed) * COST_FLUSH -
			READ_ONCE(st->tcp_unparsed) * COST_FLUSH;
	return 0;
}

/* The quarantine comes first, as for a write. */
static __always_inline void cache_wake(struct bmc_global *g, __u64 word)
{
	hold_raise(&g->hold, bpf_ktime_get_coarse_ns() + DEEP_NS, 0);
	(void)__sync_val_compare_and_swap(&g->word, word,
					  word + BMC_GEN - BMC_ASLEEP);
}

/*
 * Falls asleep or wakes, by what was asked since the last look, which was at `looked`;
 * one CPU does. If G moves meanwhile, the next look will do it.
 */
__noinline int cache_look(__u64 looked, __u64 now)
{
	struct bmc_global *g = cache_global();
	struct balance balance = {};
	struct bmc_stats *st = stats();
	__u64 word;
	__s64 gain;

	if (!g || !st ||
	    __sync_val_compare_and_swap(&g->looked, looked, now) != looked)
		return 0;
	bpf_loop(CPUS_MAX, balance_add, &balance, 0);
	gain = balance.sum - g->balance;
	g->balance = balance.sum;
	word = READ_ONCE(g->word);
	if (word & BMC_ASLEEP) {
		if (gain > 0)
			cache_wake(g, word);
	} else if (gain <= -SLEEP_GAIN && is_clean(word) &&
		   __sync_val_compare_and_swap(&g->word, word,
					       word + BMC_ASLEEP) == word) {
		st->sleeps++;
	}
	return 0;
}

static __always_inline bool cache_is_asleep(void)
{
	struct bmc_global *g = cache_global();

	return g && READ_ONCE(g->word) & BMC_ASLEEP;
}

/* The same for what goes to memcached, which looks now and then. */
static __always_inline bool cache_sleeps(void)
{
	struct bmc_global *g = cache_global();
	__u64 now = flow_now(), looked;

	if (!g)
		return false;
	looked = READ_ONCE(g->looked);
	if (unlikely((__s64)(now - looked) >= (__s64)SLEEP_NS))
		cache_look(looked, now);
	return READ_ONCE(g->word) & BMC_ASLEEP;
}

#endif /* SLEEP_BPF_H */
