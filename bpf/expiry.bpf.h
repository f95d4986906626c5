/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * When items end. memcached does not say so in its replies; it is learnt from
 * the commands that write them, and kept until the item is filled.
 *
 * It is not always clear which command gave the item its end: an add may have
 * failed, and of two writes at the same time either may have come last. So a key
 * has several cells in a line that the keys of two buckets share, and each cell is a
 * candidate: an end that the item may have.
 *
 *   bits 32-63  tag, from the key's hash
 *   bits 28-31  LATE, see below
 *   bit 27      OLD: the write that told of it was over when another one began
 *   bit 26      FIRM, see below
 *   bits 0-25   the second (of CLOCK_MONOTONIC) from which on the item may be
 *               gone; EXPIRY_NEVER; 0 in an empty cell
 *
 * memcached counts an exptime from the moment at which it executes the command,
 * which is later than the moment at which bmc sees it. LATE is how much later that may
 * have been. So an item with this end is there until the second above, and
 * EXPIRY_SLACK + late_seconds(LATE) after it the item is certainly gone. Hence the
 * rule for a fill: whoever is certainly past is no candidate any more, because the
 * item is there; of the others the least counts. No entry is made while an end is
 * neither to come nor certainly past.
 *
 * What removes a candidate:
 *  - a write that did what it should removes the OLD ones: it was applied after
 *    all of them;
 *  - a write that failed removes its own, if it was alone in its bucket.
 * Everything else only adds candidates, or makes two into one that covers both.
 *
 * FIRM in any cell says that the key's cells are all that there can be: the item
 * has one of these ends. It is made by a write that was certainly alone in its
 * bucket, see write_end(); whoever takes a cell away from another key takes FIRM
 * away from all of that key's cells first. Without it the item may also have an end
 * that nobody knows: then --unknown-ttl is the limit. After a flush that is so for
 * every key: the line has the epoch in which its FIRM bits were made.
 *
 * There are no locks. Each change is one of one word, and what is there after it is
 * right, or too strict, by itself. The changes for one key need not be seen by a
 * fill all at once: while they are made a write is pending in the key's bucket, or
 * quarantined, and then no lease is given and no fill succeeds. What another
 * bucket's keys do to the line can happen at any time.
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
	 * A cell's second is that much before the one at which the item is certainly
	 * gone: the lag that was taken off, the lag when memcached looks, three
	 * for what was rounded (one of them for times of day), and BMC_REPLY_NS.
	 */
	EXPIRY_SLACK = 2 * CLOCK_LAG + 3,
	/* Of LATE, which is a logarithm otherwise. */
	LATE_EVER = 14, /* never certainly past */
	LATE_OPEN = 15, /* nor is this; its write is pending, and will say */
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

/* One cell that says what both say, in place of `cell`. */
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

/* By how many seconds the item may end later, for what is not known of the clock. */
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

/* Takes FIRM from those cells of the hash's line that have this in these bits. */
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
		/* Not an exchange: OLD may be set at the same time. */
		cell = __sync_fetch_and_and(&line->cells[i], ~(__u64)EXPIRY_FIRM);
		found |= !!(cell & EXPIRY_FIRM);
	}
	return found;
}

/*
 * Changes the cells of the hash's line that have `value` in `bits`: what is in `keep`
 * stays, `set` is added. One of them if there is something to add, or if all bits
 * are given, else all. False if there was none.
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
		/* If it has changed meanwhile it is another key's, or of less use. */
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
 * How good a cell's place is for a new one: in the topmost bits what it is, then
 * what tells it from others like it, then its number. An empty one is best, or one that
 * is certainly past. Then one that says never, as its entry is none the worse for it, and
 * then any: but neither if the new one says never itself. A cell of the same key
 * is another matter. A function, because what comes of it is just a number to the
 * verifier then; it would walk on with each one otherwise.
 */
enum {
	WORTH = 32, /* bits below */
	WORTH_NR = 7, /* the cell's number */
	WORTH_NONE = 0,
	WORTH_OTHER,
	WORTH_NEVER,
	WORTH_FREE,
	WORTH_SAME, /* of the same key, as are the next */
	WORTH_FIRM,
	WORTH_OWN,
};

__noinline __u64 expiry_worth(__u64 cell, __u64 new, __u32 now, __u32 nr)
{
	__u64 worth = WORTH_OTHER, more = (cell >> EXPIRY_TAG) + now & 15;

	if (!cell_end(cell) || cell_past(cell) <= now) {
		worth = WORTH_FREE;
	} else if (cell >> EXPIRY_TAG == new >> EXPIRY_TAG) {
		/* The one that ends last: so does the new one, as a rule. But the
		 * cell must change: whoever is about to make it OLD goes by what
		 * it was.
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

/* Puts it there, unless somebody else was faster. */
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
			/* What is left to that key is not all. */
			expiry_doubt(hash, EXPIRY_TAGS, cell & EXPIRY_TAGS);
			cell &= ~(__u64)EXPIRY_FIRM;
		}
	}
	if (__sync_val_compare_and_swap(&line->cells[at], cell, to) != cell)
		return PUT_NOT;
	return to == new ? PUT_ALONE : PUT_SHARED;
}

/*
 * Adds a candidate. True if it has a cell of its own; a key that has several shares
 * one. If others are faster twice it gets none: that is as if another key had
 * taken it. Calls in turn, not one within the other: eight may be under way, and Linux
 * 6.1 gives all of them 512 bytes of stack.
 */
static __always_inline bool expiry_put(__u64 hash, __u64 new)
{
	int put;

	new = (new & ~EXPIRY_TAGS) | expiry_tag(hash) << EXPIRY_TAG;
	put = expiry_put_at(hash, new, expiry_place(hash, new));
	if (put == PUT_NOT)
		put = expiry_put_at(hash, new, expiry_place(hash, new));
	/* Nor is what the key has all that there can be. */
	if (put == PUT_NOT)
		expiry_doubt(hash, EXPIRY_TAGS, new &EXPIRY_TAGS);
	return put == PUT_ALONE;
}

/* Keeps in mind what is recorded of the key: see expiry_age(). */
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
 * What was recorded of the key when expiry_look() was called is OLD: it is now known
 * that all who told of it were over by then. Whoever has begun since then is not among
 * them, though his cell may be there by now.
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

/* What a write's reply, or that none comes, says of its candidate. */
enum expiry_outcome {
	OUTCOME_STAYS, /* the item may have this end or not */
	OUTCOME_NONE, /* it has not */
	OUTCOME_LAST, /* it has, or one of those who were under way meanwhile */
	OUTCOME_ONLY, /* it has */
};

/*
 * A write is over, whose candidate, `own`, was open. If the item has no end that is
 * OLD any more, FIRM goes on from an OLD cell to this one in one step: whoever
 * takes a cell from the key meanwhile finds it in the same place. Returns what
 * is left to be put into the line.
 */
static __always_inline __u64 expiry_close(__u64 hash, __u64 own, int outcome,
					  __u64 epoch)
{
	__u64 tag = expiry_tag(hash) << EXPIRY_TAG, old = tag | EXPIRY_OLD;
	__u64 open = tag | (__u64)LATE_OPEN << EXPIRY_LATE | cell_end(own);
	struct bmc_expiry *line = expiry_line(hash);
	__u64 bits = EXPIRY_TAGS | EXPIRY_OLD;

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
	}
	if (outcome == OUTCOME_LAST &&
	    expiry_edit(hash, bits | EXPIRY_FIRM, old | EXPIRY_FIRM, 0,
			own | EXPIRY_FIRM))
		own = 0;
	if (outcome == OUTCOME_ONLY && expiry_edit(hash, bits, old, 0, own))
		own = 0;
	/* Never makes nothing end sooner. That another cell says the same already is
	 * not enough: it may be about to be OLD.
	 */
	if (!(own & EXPIRY_FIRM) && cell_end(own) == EXPIRY_NEVER)
		own = 0;
	if (expiry_edit(hash, EXPIRY_ALL, open, 0, own))
		own = 0;
	if (outcome >= OUTCOME_LAST)
		expiry_edit(hash, bits, old, 0, 0);
	return own;
}

/*
 * When the item ends that was there just now: the least of its candidates, with
 * EXPIRY_FIRM if there can be no others; 0 if there is none. FIRM is looked at again
 * after the rest: it goes first when something is taken from the key, and when the line
 * gets a new epoch.
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
