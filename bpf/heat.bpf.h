/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * How often keys are asked for: what the choice of who stays goes by. An entry
 * counts its hits, until the count is full: what is asked for most writes least.
 * Keys that are not there are counted in their bucket, and a newcomer takes the
 * place of what was asked for less often than itself (TinyLFU: Einziger et al., ACM
 * TOS 2017).
 *
 * Every count says in which era it was last touched, and is halved for each that
 * has passed since: so all of them age and nobody has to go round. An era ends
 * after as many misses as ERA_MISSES times the entries that there is room for.
 *
 * A bucket has a word for this, which holds the four keys that count most. Tags
 * tell them apart: what counts little is lost when another one comes, not added to
 * another one's count as in a sketch of counters, which needs four times the memory
 * to keep the same entries.
 *
 *   bits 60-63  era
 *   4 times     tag, 12 bits, above a count of 3
 *
 * Each is one word that several CPUs may write; a request is not counted then.
 * Fills only, but for heat_hit().
 */
#ifndef HEAT_BPF_H
#define HEAT_BPF_H

enum {
	HEAT_BITS = 3,
	HEAT_MAX = (1 << HEAT_BITS) - 1,
	HEAT_ERAS = (1 << (8 - HEAT_BITS)) - 1, /* eras that an entry tells apart */
	ERA_MISSES = 7,
	ASKED_CELLS = 4,
	ASKED_CELL = 15, /* bits */
	ASKED_ERA = ASKED_CELLS * ASKED_CELL,
};

#define ASKED_MASK ((1ULL << ASKED_CELL) - 1)

/* A bit at the bottom of each cell. */
#define ASKED_EACH                                            \
	(1ULL | 1ULL << ASKED_CELL | 1ULL << 2 * ASKED_CELL | \
	 1ULL << 3 * ASKED_CELL)

/* What is left of an entry's count. */
static __always_inline __u32 heat_count(__u8 heat, __u64 era)
{
	return (heat & HEAT_MAX) >> ((era - (heat >> HEAT_BITS)) & HEAT_ERAS);
}

static __always_inline __u8 heat_make(__u32 count, __u64 era)
{
	return count | era << HEAT_BITS;
}

/* One more, as far as there is room. Without a branch, which each hit would pay. */
static __always_inline __u32 heat_more(__u32 count)
{
	return count + 1 - ((count + 1) >> HEAT_BITS);
}

/* The entry was asked for. */
static __always_inline void heat_hit(struct bmc_slot *slot, __u64 era)
{
	__u8 old = READ_ONCE(slot->heat), heat;

	/* As most that are hit. */
	if (likely(old == heat_make(HEAT_MAX, era)))
		return;
	heat = heat_make(heat_more(heat_count(old, era)), era);
	if (heat != old)
		WRITE_ONCE(slot->heat, heat);
}

/* A key of that bucket was asked for and not there. Says how often by now. */
__noinline __u32 heat_miss(struct bmc_bucket *b, __u64 hash, __u64 era)
{
	__u32 tag = hash >> (64 - ASKED_CELL + HEAT_BITS), eras;
	__u32 place = 0, least = HEAT_MAX + 1, count = 0;
	__u64 w;

	if (!b)
		return 0;
	w = READ_ONCE(b->asked);
	eras = (era - (w >> ASKED_ERA)) & 15;
	if (eras > HEAT_BITS)
		eras = HEAT_BITS;
	/* All four halved that often at once. */
	w = (w & ~(HEAT_MAX * ASKED_EACH)) |
	    (w >> eras & (HEAT_MAX >> eras) * ASKED_EACH);
	for (__u32 i = 0; i < ASKED_CELLS; i++) {
		__u32 at = (tag + i) % ASKED_CELLS * ASKED_CELL;
		__u32 cell = w >> at & ASKED_MASK;

		if (cell >> HEAT_BITS == tag) {
			place = at;
			count = cell & HEAT_MAX;
			break;
		}
		if ((cell & HEAT_MAX) < least) {
			place = at;
			least = cell & HEAT_MAX;
		}
	}
	count = heat_more(count);
	w &= ~(ASKED_MASK << place | 15ULL << ASKED_ERA);
	WRITE_ONCE(b->asked, w | ((__u64)tag << HEAT_BITS | count) << place |
				     era << ASKED_ERA);
	return count;
}

/* One miss more: does it end the era? Each CPU counts its own. */
static __always_inline void era_step(struct bmc_global *g,
				     const struct bmc_pool *pool,
				     struct bmc_hands *hands)
{
	if (++hands->misses <= (__u64)READ_ONCE(pool->slots) * ERA_MISSES)
		return;
	hands->misses = 0;
	(void)__sync_fetch_and_add(&g->era, 1);
}

#endif /* HEAT_BPF_H */
