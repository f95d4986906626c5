/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * When items end. memcached does not say so in its replies; it is learnt from
 * the commands that write them, and kept until the item is filled.
 *
 * A record is one word of a line that the keys of two buckets share, so that it
 * changes in one store:
 *
 *   bits 27-63  tag, from the key's hash
 *   bit 26      firm, see below
 *   bits 0-25   the second (of CLOCK_MONOTONIC) from which on the item may be
 *               gone; EXPIRY_NEVER; 0 in an empty record
 *
 * A firm record is a lower bound, in whatever order memcached applies writes;
 * it is made by a write that was certainly the only one of its bucket, see
 * write_end(). Any other record tells of an end that the item may have, or else
 * it is unknown. After a flush every record is of that kind: the line has the
 * epoch in which its firm records were made.
 */
#ifndef EXPIRY_BPF_H
#define EXPIRY_BPF_H

#define SECOND 1000000000ULL

enum {
	EXPIRY_BITS = 26, /* two years of uptime; then every end is unknown */
	EXPIRY_NEVER = (1 << EXPIRY_BITS) - 1,
	EXPIRY_FIRM = 1 << EXPIRY_BITS,
	EXPIRY_TAG = EXPIRY_BITS + 1,
	/*
	 * memcached's clock counts seconds, and a timer that may be late reads
	 * it once a second: it is up to two behind when it stores an item.
	 */
	CLOCK_LAG = 2,
};

/*
 * The time of day, for an absolute exptime. memcached goes by what it was when it
 * started; if somebody has set the clock since bmc was attached, that may have been
 * before or after: the later one is sure. A function, for the stack of its caller.
 */
__noinline __s64 expiry_day(__s64 now)
{
	__s64 day = bpf_ktime_get_tai_ns() / SECOND - cfg.tai;
	__s64 old = now + cfg.wall;

	return day > old ? day : old;
}

/* The second before which an item with this exptime is certainly there. */
static __always_inline __u32 expiry_second(__s64 exptime)
{
	__s64 now = bpf_ktime_get_coarse_ns() / SECOND, end;

	if (!exptime)
		return EXPIRY_NEVER;
	end = now + exptime - CLOCK_LAG;
	if (exptime > RELATIVE_MAX)
		end -= expiry_day(now);
	if (end < 1 || exptime < 0)
		return 1;
	return end < EXPIRY_NEVER ? end : EXPIRY_NEVER - 1;
}

static __always_inline __u64 expiry_tag(__u64 hash)
{
	return hash * 0xd6e8feb86659fd93ULL >> EXPIRY_TAG;
}

static __always_inline struct bmc_expiry *expiry_line(__u64 hash)
{
	__u32 line = (hash & 0xffffffff) * cfg.expiries >> 32;

	return bpf_map_lookup_elem(&bmc_expiry, &line);
}

/*
 * When the key's item ends: the least of what is recorded, with EXPIRY_FIRM if
 * that is firm; 0 if nothing is.
 */
__noinline __u32 expiry_get(__u64 hash, __u64 epoch)
{
	struct bmc_expiry *line = expiry_line(hash);
	__u32 least = 0, firm = EXPIRY_FIRM;
	__u64 tag = expiry_tag(hash);

	if (!line)
		return 0;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 cell = READ_ONCE(line->cells[i]);
		__u32 end = cell & EXPIRY_NEVER;

		if (!end || cell >> EXPIRY_TAG != tag)
			continue;
		firm &= cell;
		if (!least || end < least)
			least = end;
	}
	smp_rmb();
	if (READ_ONCE(line->epoch) != epoch)
		firm = 0;
	return least ? least | firm : 0;
}

/*
 * Records when the key's item ends, instead of whatever was recorded, in place
 * of an item that has ended long ago or of any: a word at a time, each by itself
 * right.
 */
__noinline int expiry_put(__u64 hash, __u64 epoch, __u64 end)
{
	__u32 now = bpf_ktime_get_coarse_ns() / SECOND;
	__u32 place = bpf_get_prandom_u32();
	struct bmc_expiry *line = expiry_line(hash);
	__u64 tag = expiry_tag(hash);
	bool old;

	if (!line)
		return 0;
	old = READ_ONCE(line->epoch) != epoch;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 cell = READ_ONCE(line->cells[i]);

		if (old && cell & EXPIRY_FIRM)
			WRITE_ONCE(line->cells[i], cell & ~(__u64)EXPIRY_FIRM);
		if (cell >> EXPIRY_TAG == tag)
			WRITE_ONCE(line->cells[i], 0);
		else if ((cell & EXPIRY_NEVER) + 2 * CLOCK_LAG > now)
			continue; /* of use still: see expiry_life() */
		place = i;
	}
	if (old)
		smp_store_release(line->epoch, epoch);
	place &= BMC_EXPIRIES;
	barrier_var(place); /* or clang makes it "==", which bounds nothing */
	if (place >= BMC_EXPIRIES)
		place /= 2;
	WRITE_ONCE(line->cells[place], tag << EXPIRY_TAG | end);
	return 0;
}

/* Whether anything is recorded; what is, is no later than `end` from now on. */
__noinline int expiry_lower(__u64 hash, __u32 end)
{
	struct bmc_expiry *line = expiry_line(hash);
	__u64 tag = expiry_tag(hash);
	bool found = false;

	if (!line)
		return 0;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 cell = READ_ONCE(line->cells[i]), less;

		if (cell >> EXPIRY_TAG != tag || !(cell & EXPIRY_NEVER))
			continue;
		found = true;
		if (end >= (cell & EXPIRY_NEVER))
			continue;
		less = (cell & ~(__u64)EXPIRY_NEVER) | end;
		/* If another one was faster: the lesser of both, or any. */
		if (__sync_val_compare_and_swap(&line->cells[i], cell, less) !=
		    cell)
			WRITE_ONCE(line->cells[i], less & ~(__u64)EXPIRY_FIRM);
	}
	return found;
}

/*
 * The item may end then, or as was recorded: nobody knows in which order. If
 * nothing was, there is no telling what it is otherwise: that is so without a
 * record too, and one that says never is not needed. Two calls in turn, not
 * one within the other: Linux 6.1 gives all that are under way 512 bytes of stack.
 */
static __always_inline void expiry_less(__u64 hash, __u64 epoch, __u32 end)
{
	if (end != EXPIRY_NEVER && !expiry_lower(hash, end))
		expiry_put(hash, epoch, end);
}

/*
 * For how many nanoseconds an entry filled now may live: until its item may be
 * gone, and until a delayed flush_all is near. 0: not at all.
 */
__noinline __u64 expiry_life(__u64 hash, __u64 epoch)
{
	__u64 now = bpf_ktime_get_coarse_ns(), life = cfg.max_age, left;
	__u32 zero = 0, found = expiry_get(hash, epoch);
	__u64 end = (found & EXPIRY_NEVER) * SECOND;
	struct bmc_global *g = bpf_map_lookup_elem(&bmc_global, &zero);

	if (!g)
		return 0;
	/* An item that is there long after its end has got another one. */
	if (found && now >= end + 2 * CLOCK_LAG * SECOND)
		found = 0;
	if (!(found & EXPIRY_FIRM) && life > cfg.unknown_ttl)
		life = cfg.unknown_ttl;
	if (found && (found & EXPIRY_NEVER) != EXPIRY_NEVER) {
		if (end <= now)
			return 0;
		if (life > end - now)
			life = end - now;
	}
	for (int i = 0; i < BMC_DUES; i++) {
		__u64 due = READ_ONCE(g->due[i]);

		if (!due || now > due + CLOCK_LAG * SECOND)
			continue;
		if (now + CLOCK_LAG * SECOND >= due)
			return 0;
		left = due - CLOCK_LAG * SECOND - now;
		if (life > left)
			life = left;
	}
	return life;
}

#endif /* EXPIRY_BPF_H */
