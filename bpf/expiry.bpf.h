/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * When items end. memcached does not say so in its replies; it is learnt from
 * the commands that write them, and kept until the item is filled.
 *
 * It is not always clear which command gave an item its end: an add may have failed,
 * and either of two concurrent sets may have been the last. So a key may have several
 * cells, and each is a candidate: an end that its item may have. The keys of two
 * buckets share a line of cells.
 *
 *   bits 32-63  tag, from the key's hash
 *   bits 28-31  LATE, see below
 *   bit 27      OLD: the write had finished when a later write began
 *   bit 26      FIRM, see below
 *   bits 0-25   the second (of CLOCK_MONOTONIC) from which on the item may be
 *               gone; EXPIRY_NEVER; 0 in an empty cell
 *
 * memcached counts an exptime from the moment it executes the command, which is later
 * than the moment bmc sees it. LATE bounds that delay, in late_seconds(). An item with
 * this end is certainly there before the second above, and certainly gone EXPIRY_SLACK
 * + late_seconds(LATE) after it. So when a value is filled, a candidate that is certainly
 * past cannot be the item's end, because the item is there; the least of the others
 * bounds the entry's life. While that one is due but not certainly past, nothing is
 * filled.
 *
 * Candidates are removed in two cases only:
 *  - A write that succeeded removes the OLD ones, since it was applied after all
 *    of them.
 *  - A write that failed removes its own, if it was alone in its bucket.
 * Everything else adds candidates, or merges two into one that covers both.
 *
 * FIRM, in any of a key's cells, says that the cells are complete: the item's end is one
 * of them. A write sets it that was certainly alone in its bucket, see write_end(). To
 * take a cell from another key means to clear FIRM in all of that key's cells first.
 * Without FIRM the item may also have an end that was never seen, and then
 * --unknown-ttl limits the entry. A flush means that for every key: `epoch` is the
 * one in which the line's FIRM bits were set.
 *
 * There are no locks. Every change is an atomic change of one word, and the line is
 * right, or stricter than needed, before and after each. The changes that one write makes
 * to its own key need not be seen at once: meanwhile it is pending in the bucket, or
 * the bucket is quarantined, so that no lease is given and no fill succeeds. Changes by
 * the keys of other buckets may come at any time.
 */
#ifndef EXPIRY_BPF_H
#define EXPIRY_BPF_H

#define SECOND 1000000000ULL

enum {
	EXPIRY_BITS = 26, /* two years of uptime; then every end is unknown */
	EXPIRY_NEVER = (1 << EXPIRY_BITS) - 1,
	EXPIRY_FIRM = 1 << EXPIRY_BITS,
	EXPIRY_OLD = 1 << 27,
	EXPIRY_LATE = 28,
	EXPIRY_TAG = 32,
	EXPIRY_OWN = 3, /* cells of one key; then it shares one */
	/*
	 * memcached's clock counts seconds, and a timer that may be late reads
	 * it once a second: it is up to two behind when it stores an item.
	 */
	CLOCK_LAG = 2,
	/*
	 * From a cell's second until the item is certainly gone: the lag that was
	 * subtracted, the lag of the clock by which memcached finds it expired, two
	 * seconds for rounding (one of them for times of day) and BMC_REPLY_NS, as
	 * memcached may have read the item that long ago.
	 */
	EXPIRY_SLACK = 2 * CLOCK_LAG + 3,
	/* Of LATE, which is a logarithm otherwise. */
	LATE_EVER = 14, /* unbounded: never certainly past */
	LATE_OPEN = 15, /* likewise, until the reply to its write */
};

#define EXPIRY_ALL (~0ULL) /* bits of a cell */
#define EXPIRY_TAGS (~0ULL << EXPIRY_TAG)

static __always_inline __u32 late_seconds(__u32 late)
{
	return 1U << (late & 15) >> 1;
}

/* The least LATE for so many seconds. */
static __always_inline __u64 late_code(__u32 seconds)
{
	__u64 late = 0;

	while (late < LATE_EVER && late_seconds(late) < seconds)
		late++;
	return late;
}

static __always_inline __u32 cell_end(__u64 cell)
{
	return cell & EXPIRY_NEVER;
}

static __always_inline __u32 cell_late(__u64 cell)
{
	return cell >> EXPIRY_LATE & 15;
}

/* The second from which on an item of this end is certainly gone. */
static __always_inline __u32 cell_past(__u64 cell)
{
	__u32 late = cell_late(cell);

	return late >= LATE_EVER
		       ? ~0U
		       : cell_end(cell) + EXPIRY_SLACK + late_seconds(late);
}

/* What covers both, to replace `cell`. */
static __always_inline __u64 cell_both(__u64 cell, __u64 other)
{
	__u32 end = cell_end(cell), past = cell_past(cell);
	__u64 late = LATE_EVER;

	if (cell_end(other) < end)
		end = cell_end(other);
	if (cell_past(other) > past)
		past = cell_past(other);
	if (past != ~0U)
		late = late_code(past - EXPIRY_SLACK - end);
	return (cell & (EXPIRY_TAGS | EXPIRY_FIRM)) |
	       (cell & other & EXPIRY_OLD) | late << EXPIRY_LATE | end;
}

/* The time of day, for an absolute exptime. A function, for the stack of its caller. */
__noinline __s64 expiry_day(void)
{
	return bpf_ktime_get_tai_ns() / SECOND - cfg.tai;
}

/*
 * The second before which an item with this exptime is certainly there. memcached
 * goes by what the time of day was when it started; if somebody has set the clock
 * since bmc was attached, that may have been before or after: the later one is sure.
 */
static __always_inline __u32 expiry_second(__s64 exptime)
{
	__s64 now = bpf_ktime_get_coarse_ns() / SECOND, end, day, old;

	if (!exptime)
		return EXPIRY_NEVER;
	end = now + exptime - CLOCK_LAG;
	if (exptime > RELATIVE_MAX) {
		day = expiry_day();
		old = now + cfg.wall;
		end -= day > old ? day : old;
	}
	if (end < 1 || exptime < 0)
		return 1;
	return end < EXPIRY_NEVER ? end : EXPIRY_NEVER - 1;
}

/* By how many seconds the item may end later because somebody set the clock. */
static __always_inline __u32 expiry_vague(__s64 exptime)
{
	__s64 set;

	if (exptime <= RELATIVE_MAX)
		return 0;
	set = expiry_day() - (__s64)(bpf_ktime_get_coarse_ns() / SECOND) -
	      cfg.wall;
	return set < 0 ? -set : set;
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

/* Clears FIRM in those cells of the hash's line whose `bits` are `value`. */
__noinline int expiry_doubt(__u64 hash, __u64 bits, __u64 value)
{
	struct bmc_expiry *line = expiry_line(hash);
	int found = false;

	if (!line)
		return 0;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 cell = READ_ONCE(line->cells[i]);

		if ((cell & bits) != value || !(cell & EXPIRY_FIRM))
			continue;
		/* Not a compare-and-swap, which fails if OLD is set meanwhile. */
		cell = __sync_fetch_and_and(&line->cells[i], ~(__u64)EXPIRY_FIRM);
		found |= !!(cell & EXPIRY_FIRM);
	}
	return found;
}

/*
 * Changes the cells of the hash's line whose `bits` are `value`: `keep` masks what stays,
 * `set` is added. Changes only the first one if there is something to add, or if `bits`
 * is EXPIRY_ALL. Returns whether there was one.
 */
__noinline int expiry_edit(__u64 hash, __u64 bits, __u64 value, __u64 keep,
			   __u64 set)
{
	struct bmc_expiry *line = expiry_line(hash);
	int found = false;

	if (!line)
		return 0;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 cell = READ_ONCE(line->cells[i]);

		if ((cell & bits) != value || !cell_end(cell))
			continue;
		/* If it has changed meanwhile, another key has taken it, or it has lost
		 * FIRM: leaving it is stricter.
		 */
		if (__sync_val_compare_and_swap(&line->cells[i], cell,
						(cell & keep) | set) != cell)
			continue;
		found = true;
		if (set || bits == EXPIRY_ALL)
			break;
	}
	return found;
}

/*
 * How well a cell suits to be replaced by a new one: its kind in the topmost bits,
 * then what ranks it among its kind, then its number. Empty cells and those certainly
 * past come first. Next are cells that say never, as no entry then lives longer than
 * it should, and last any other; a new cell that says never replaces neither. Cells of
 * the same key are for merging.
 *
 * A function, because its result is an unknown number to the verifier, which would
 * otherwise follow a path for each cell.
 */
enum {
	WORTH = 32, /* bits below */
	WORTH_NR = 7, /* the cell's number */
	WORTH_NONE = 0,
	WORTH_OTHER,
	WORTH_NEVER,
	WORTH_FREE,
	WORTH_SAME, /* of the same key, like the next two */
	WORTH_FIRM,
	WORTH_OWN,
};

__noinline __u64 expiry_worth(__u64 cell, __u64 new, __u32 now, __u32 nr)
{
	__u64 worth = WORTH_OTHER, more = (cell >> EXPIRY_TAG) + now & 15;

	if (!cell_end(cell) || cell_past(cell) <= now) {
		worth = WORTH_FREE;
	} else if (cell >> EXPIRY_TAG == new >> EXPIRY_TAG) {
		/* Merging with the latest end covers the least time. But the cell
		 * must change by it, or a write that began before this one and
		 * has looked at it would make it OLD.
		 */
		worth = cell & EXPIRY_FIRM ? WORTH_FIRM : WORTH_OWN;
		more = cell_end(cell);
		if (cell_end(cell) <= cell_end(new) &&
		    cell_past(cell) >= cell_past(new) && !(cell & EXPIRY_OLD))
			worth = WORTH_SAME;
	} else if (cell_end(cell) == EXPIRY_NEVER) {
		worth = WORTH_NEVER;
	} else if (cell_end(new) == EXPIRY_NEVER) {
		worth = WORTH_NONE;
	}
	return worth << WORTH | more << 3 | (nr & WORTH_NR);
}

/* Where in the hash's line the new cell shall go; BMC_EXPIRIES: nowhere. */
__noinline __u32 expiry_place(__u64 hash, __u64 new)
{
	__u32 now = bpf_ktime_get_coarse_ns() / SECOND, own = 0;
	struct bmc_expiry *line = expiry_line(hash);
	__u64 best = 0, best_own = 0;

	if (!line)
		return BMC_EXPIRIES;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 worth =
			expiry_worth(READ_ONCE(line->cells[i]), new, now, i);

		own += worth >> WORTH >> 2;
		if (worth >> WORTH >> 2)
			best_own = worth > best_own ? worth : best_own;
		else
			best = worth > best ? worth : best;
	}
	if (own >= EXPIRY_OWN && best_own >> WORTH > WORTH_SAME)
		best = best_own;
	return best >> WORTH == WORTH_NONE ? BMC_EXPIRIES : best & WORTH_NR;
}

enum { PUT_NOT = 0, PUT_ALONE, PUT_SHARED };

/* Puts the new cell there, unless the old one changes meanwhile. */
__noinline int expiry_put_at(__u64 hash, __u64 new, __u32 place)
{
	__u32 now = bpf_ktime_get_coarse_ns() / SECOND;
	struct bmc_expiry *line = expiry_line(hash);
	__u64 at = place & 7, cell, to = new;

	barrier_var(at); /* or clang makes it "==", which bounds nothing */
	if (!line || at >= BMC_EXPIRIES)
		return PUT_NOT;
	/* By what is there now. */
	cell = READ_ONCE(line->cells[at]);
	if (cell_end(cell) && cell_past(cell) > now) {
		if (cell >> EXPIRY_TAG == new >> EXPIRY_TAG) {
			to = cell_both(cell, new);
		} else {
			/* That key's cells are no longer complete. */
			expiry_doubt(hash, EXPIRY_TAGS, cell & EXPIRY_TAGS);
			cell &= ~(__u64)EXPIRY_FIRM;
		}
	}
	if (__sync_val_compare_and_swap(&line->cells[at], cell, to) != cell)
		return PUT_NOT;
	return to == new ? PUT_ALONE : PUT_SHARED;
}

/*
 * Adds a candidate. Returns whether it got a cell of its own: a key with EXPIRY_OWN
 * cells merges it into one of them. If the place changes twice meanwhile, the candidate
 * is dropped, as if another key had taken its cell. The calls are made one after the
 * other, not nested: a chain of calls may be eight deep, with 512 bytes of stack
 * in all.
 */
static __always_inline bool expiry_put(__u64 hash, __u64 new)
{
	int put;

	new = (new & ~EXPIRY_TAGS) | expiry_tag(hash) << EXPIRY_TAG;
	put = expiry_put_at(hash, new, expiry_place(hash, new));
	if (put == PUT_NOT)
		put = expiry_put_at(hash, new, expiry_place(hash, new));
	if (put == PUT_NOT) /* its cells are not complete */
		expiry_doubt(hash, EXPIRY_TAGS, EXPIRY_TAGS & new);
	return put == PUT_ALONE;
}

/* Notes the key's cells for expiry_age(). */
__noinline int expiry_look(__u64 hash, struct bmc_scratch *s)
{
	struct bmc_expiry *line = expiry_line(hash);
	__u64 tag = expiry_tag(hash);

	if (!line || !s)
		return 0;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 cell = READ_ONCE(line->cells[i]);

		s->ends[i] =
			cell >> EXPIRY_TAG == tag && cell_end(cell) ? cell : 0;
	}
	return 0;
}

/*
 * Makes the cells OLD that expiry_look() has noted: the caller now knows that their
 * writes had finished by then. Cells of writes that have begun since are not touched.
 */
__noinline int expiry_age(__u64 hash, const struct bmc_scratch *s)
{
	struct bmc_expiry *line = expiry_line(hash);

	if (!line || !s)
		return 0;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 cell = s->ends[i];

		if (cell)
			(void)__sync_val_compare_and_swap(&line->cells[i], cell,
							  cell | EXPIRY_OLD);
	}
	return 0;
}

/* What is known of a candidate once its write has finished. */
enum expiry_outcome {
	OUTCOME_STAYS, /* the item may have this end */
	OUTCOME_NONE, /* it does not have it */
	OUTCOME_LAST, /* it has it, or that of a concurrent write */
	OUTCOME_ONLY, /* it has it */
};

/*
 * A write has finished; its candidate, `own`, was open. If the item cannot have an OLD
 * end any more, the OLD cells are removed, and before the candidate is closed: a later
 * write may make that one OLD at once. An OLD cell with FIRM is not removed but turned
 * into the candidate, in one step, so that FIRM is always in a place where a CPU that
 * takes a cell from this key finds it. Returns what remains to be put into the line.
 */
static __always_inline __u64 expiry_close(__u64 hash, __u64 own, int outcome,
					  __u64 epoch)
{
	__u64 tag = expiry_tag(hash) << EXPIRY_TAG, old = tag | EXPIRY_OLD;
	__u64 open = tag | (__u64)LATE_OPEN << EXPIRY_LATE | cell_end(own);
	__u64 bits = EXPIRY_TAGS | EXPIRY_OLD | EXPIRY_FIRM;
	struct bmc_expiry *line = expiry_line(hash);

	if (!line)
		return 0;
	own |= tag;
	if (outcome == OUTCOME_NONE) {
		expiry_edit(hash, EXPIRY_ALL, open, 0, 0);
		return 0;
	}
	if (outcome == OUTCOME_ONLY) {
		if (READ_ONCE(line->epoch) != epoch) {
			expiry_doubt(hash, 0, 0);
			smp_store_release(line->epoch, epoch);
		}
		own |= EXPIRY_FIRM;
		bits &= ~(__u64)EXPIRY_FIRM;
	}
	if (outcome >= OUTCOME_LAST)
		expiry_edit(hash, bits, old, 0, 0);
	if (outcome == OUTCOME_LAST &&
	    expiry_edit(hash, bits, old | EXPIRY_FIRM, 0, own | EXPIRY_FIRM))
		own = 0;
	/* An end that is never bounds nothing. Any other is kept even if another cell
	 * says the same, as that one may become OLD.
	 */
	if (!(own & EXPIRY_FIRM) && cell_end(own) == EXPIRY_NEVER)
		own = 0;
	if (expiry_edit(hash, EXPIRY_ALL, open, 0, own))
		own = 0;
	return own;
}

/*
 * When the item ends that was there just now: the least of its candidates, with
 * EXPIRY_FIRM if they are complete; 0 if there is none. FIRM is read again after all
 * the rest, because it is cleared before a cell is taken from the key and before the
 * line gets a new epoch.
 */
__noinline __u32 expiry_get(__u64 hash, __u64 epoch, __u32 now)
{
	struct bmc_expiry *line = expiry_line(hash);
	__u64 tag = expiry_tag(hash), firm = 0;
	__u32 least = 0, still = 0;

	if (!line)
		return 0;
	for (int i = 0; i < BMC_EXPIRIES; i++) {
		__u64 cell = READ_ONCE(line->cells[i]);
		__u32 end = cell_end(cell);

		if (!end || cell >> EXPIRY_TAG != tag)
			continue;
		if (cell & EXPIRY_FIRM)
			firm = cell;
		if (cell_past(cell) > now && (!least || end < least))
			least = end;
	}
	smp_rmb();
	if (!firm || !least || READ_ONCE(line->epoch) != epoch)
		return least;
	smp_rmb();
	for (int i = 0; i < BMC_EXPIRIES; i++)
		if (READ_ONCE(line->cells[i]) == firm)
			still = EXPIRY_FIRM;
	return least | still;
}

/*
 * For how many nanoseconds an entry filled now may live: until its item may be
 * gone, and until a delayed flush_all is near. 0: not at all.
 */
__noinline __u64 expiry_life(__u64 hash, __u64 epoch)
{
	__u64 now = bpf_ktime_get_coarse_ns(), life = cfg.max_age, left;
	__u32 zero = 0, found = expiry_get(hash, epoch, now / SECOND);
	__u64 end = (found & EXPIRY_NEVER) * SECOND;
	struct bmc_global *g = bpf_map_lookup_elem(&bmc_global, &zero);

	if (!g)
		return 0;
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
