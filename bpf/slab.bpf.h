/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Where entries lie: slots of several sizes, the classes, cut from slabs of 256
 * KiB of ONE array map. Which slot a newcomer gets: one of its class that was never
 * used, or that of the victim. Fills only.
 *
 * Memory follows what is stored. Where the victim of one class was asked for more
 * often, for its bytes, than a sample of another class's oldest slab, that slab is
 * emptied, a few slots with each fill. An emptied slot stays taken and no way leads
 * to it. What still has its address, from before, must not meet the text of
 * another class there: the slab rests for longer than any program runs. Then a
 * class that needs one gets it.
 */
#ifndef SLAB_BPF_H
#define SLAB_BPF_H

enum {
	UNITS_SHIFT = BMC_SLAB_SHIFT - BMC_UNIT_SHIFT,
	UNITS = 1 << UNITS_SHIFT,
	HAND_STEPS = 8, /* slots that one fill looks at for a victim */
	CSUM_CHUNK = 512, /* bpf_csum_diff() takes no more before Linux 6.13 */
	/* What the verifier takes a slot for: head and text in whole chunks. */
	SLOT_REACH = BMC_SLOT_KEY + 3 * CSUM_CHUNK,
	EMPTY_STEPS = 8, /* slots that one fill empties */
	SAMPLE = 8, /* slots that stand for a slab */
	SEEK_EVERY = 16, /* misses from sample to sample */
	GAIN = 2, /* so much more often must a byte be asked for */
	REST_SHARE = 8, /* of the slabs so many rest, at most */
	KEPT_SHARE = 16, /* and are kept for sizes that nobody has stored yet */
	CLASS_NONE = BMC_CLASSES,
};

/* No program runs for so long. */
#define REST_NS (10 * SECOND)

/* Sizes of the classes in units: those that waste least of them on the values of
 * Facebook's ETC and USR pools (Atikoglu et al., SIGMETRICS 2012) and of Twitter's
 * clusters (Yang et al., OSDI 2020), taken together: see tests/bench/density.rs.
 */
const volatile __u8 class_units[BMC_CLASSES] = {
	3,  4,	5,  6,	7,  8,	9,  10, 11, 12, 13, 14, 16, 18, 20, 22,
	24, 26, 28, 31, 34, 37, 40, 43, 47, 51, 55, 60, 66, 73, 80, 88,
};

_Static_assert(BMC_SLOT_TEXT + BMC_REPLY_MAX - END_LEN <= BMC_SLOT_MAX,
	       "the largest reply fits the largest slot");
_Static_assert(88 * BMC_UNIT == BMC_SLOT_MAX,
	       "the last class is the largest slot");

static __always_inline struct bmc_global *cache_global(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bmc_global, &zero);
}

static __always_inline struct bmc_pool *slab_pool(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bmc_pool, &zero);
}

static __always_inline struct bmc_hands *slab_hands(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bmc_hands, &zero);
}

static __always_inline __u32 bucket_of(__u64 hash)
{
	return (hash & 0xffffffff) * cfg.buckets >> 32;
}

static __always_inline struct bmc_bucket *cache_bucket(__u64 hash)
{
	__u32 bucket = bucket_of(hash);

	return bpf_map_lookup_elem(&bmc_index, &bucket);
}

/* A slot's address is "slab << UNITS_SHIFT | unit". */
static __always_inline __u32 way_make(__u32 address)
{
	return address + 1;
}

static __always_inline __u16 way_tag(__u64 hash)
{
	return hash >> 48;
}

/*
 * A slot starts so low in its slab that the largest one fits behind it: one
 * bound serves all classes, at the price of 0.6 % of the slab.
 */
static __always_inline struct bmc_slot *slot_at(__u32 slab, __u32 unit)
{
	__u32 off = (unit & (UNITS - 1)) << BMC_UNIT_SHIFT;
	struct bmc_slab *s = bpf_map_lookup_elem(&bmc_slabs, &slab);

	if (!s || off > BMC_SLAB_SIZE - SLOT_REACH)
		return NULL;
	/* Or clang adds before it has checked. */
	barrier_var(s);
	return (void *)s + off;
}

static __always_inline struct bmc_slot *way_slot(__u32 way)
{
	__u32 address = way - 1;

	return slot_at(address >> UNITS_SHIFT, address);
}

/* Where its text would start: "VALUE " is not there, but what precedes the key. */
static __always_inline __u8 *slot_text(struct bmc_slot *slot)
{
	return (__u8 *)slot + BMC_SLOT_TEXT;
}

/* Whether nobody misses the slot's content: too old, or from before a flush. */
static __always_inline bool slot_is_dead(const struct bmc_slot *slot, __u32 now,
					 __u64 epoch)
{
	return READ_ONCE(slot->deadline) <= now ||
	       slot->epoch_len >> 16 != epoch >> 17;
}

/* The class of a text of so many bytes. For the verifier's sake a function: its
 * caller goes on with one number.
 */
__noinline __u32 class_for(__u32 len)
{
	__u32 units = (BMC_SLOT_TEXT + len + BMC_UNIT - 1) >> BMC_UNIT_SHIFT;
	__u32 c = 0;

	for (__u32 step = BMC_CLASSES / 2; step; step /= 2)
		if (class_units[c + step - 1] < units)
			c += step;
	return c;
}

/* Where entries of class c are kept that has no memory: the next one that has. */
__noinline __u32 class_larger(__u32 c)
{
	struct bmc_pool *pool = slab_pool();

	if (!pool)
		return c;
	for (__u32 i = 0; i < BMC_CLASSES; i++)
		if (i >= c && READ_ONCE(pool->classes[i].first))
			return i;
	return c;
}

static __always_inline __u32 class_slots(__u32 units)
{
	return (BMC_SLAB_SIZE - SLOT_REACH) / BMC_UNIT / units + 1;
}

/* Takes a slot if it can be had: makes its sequence number odd. */
static __always_inline bool slot_take(struct bmc_slot *slot)
{
	__u32 seq = READ_ONCE(slot->seq);

	return !(seq & 1) &&
	       __sync_val_compare_and_swap(&slot->seq, seq, seq + 1) == seq;
}

/* Gives a slot back that was taken: its content is there before the number. */
static __always_inline void slot_release(struct bmc_slot *slot)
{
	smp_store_release(slot->seq, slot->seq + 1);
}

/* A slot as far as its key goes. */
struct slot_key {
	struct bmc_slot slot;
	__u8 text[BMC_SLOT_KEY - sizeof(struct bmc_slot) + KEY_WORDS * 8];
};

static __always_inline __u64 slot_key_word(const struct slot_key *k, __u32 i)
{
	return *(const __u64 *)((const __u8 *)k + BMC_SLOT_KEY + i * 8);
}

/* The hash of its key, which nobody may be writing. */
__noinline __u64 slot_hash(const struct slot_key *k)
{
	__u32 klen, words, rest;
	__u64 sum;

	if (!k)
		return 0;
	/* A byte: the verifier sees that no word is beyond the key's room. */
	klen = READ_ONCE(k->slot.klen);
	words = klen / 8;
	rest = klen % 8 * 8;
	sum = cfg.seed[0] +
	      hash_word(words, slot_key_word(k, words) & ((1ULL << rest) - 1));
	for (__u32 i = 0; i < KEY_WORDS - 1; i++) {
		if (i >= words)
			break;
		sum += hash_word(i, slot_key_word(k, i));
	}
	return hash_end(sum);
}

/* Removes the way that leads to the slot, if its bucket still has it. */
static __always_inline void slot_unlink(struct bmc_slot *slot, __u32 address)
{
	struct bmc_bucket *b = cache_bucket(slot_hash((void *)slot));
	__u32 way = way_make(address);

	if (!b)
		return;
	for (int i = 0; i < BMC_WAYS; i++)
		if (READ_ONCE(b->ways[i]) == way)
			(void)__sync_val_compare_and_swap(&b->ways[i], way, 0);
}

/*
 * Takes the slab (plus one) that has rested for longest from the chain, if it has
 * rested for long enough. The pool's turn must be taken.
 */
static __always_inline __u32 slab_rested(struct bmc_pool *pool)
{
	__u32 first = pool->rest_first, slab = first - 1;
	struct bmc_slab_meta *meta = bpf_map_lookup_elem(&bmc_slab_meta, &slab);

	if (!first || !meta || bpf_ktime_get_coarse_ns() - meta->since < REST_NS)
		return 0;
	pool->rest_first = meta->next;
	pool->resting--;
	meta->next = 0;
	return first;
}

/* Puts a slab at the end of the chain. The pool's turn must be taken. */
static __always_inline void slab_rest(struct bmc_pool *pool, __u32 slab)
{
	struct bmc_slab_meta *meta = bpf_map_lookup_elem(&bmc_slab_meta, &slab);
	__u32 last = pool->rest_last - 1;

	if (!meta)
		return;
	meta->since = bpf_ktime_get_coarse_ns();
	meta->next = 0;
	if (pool->rest_first) {
		meta = bpf_map_lookup_elem(&bmc_slab_meta, &last);
		if (!meta)
			return;
		meta->next = slab + 1;
	} else {
		pool->rest_first = slab + 1;
	}
	pool->rest_last = slab + 1;
	pool->resting++;
}

/*
 * Gives the class a slab: one that rested (plus one), or a new one. Says whether
 * there was any; not if another CPU was faster, and the one that rested is left.
 */
static __always_inline bool class_grow(struct bmc_pool *pool, __u32 c,
				       __u32 slots, __u32 rested)
{
	struct bmc_class *class = &pool->classes[c];
	struct bmc_slab_meta *meta;
	__u32 slab, older, kept;

	bpf_spin_lock(&pool->lock);
	/* The last slabs are for the classes that have none yet. */
	kept = BMC_CLASSES - pool->begun;
	if (kept > cfg.slabs / KEPT_SHARE)
		kept = cfg.slabs / KEPT_SHARE;
	if ((class->newest && class->taken < slots) ||
	    (!rested && pool->slabs + (class->first ? kept : 0) >= cfg.slabs)) {
		bpf_spin_unlock(&pool->lock);
		return false;
	}
	slab = rested ? rested - 1 : pool->slabs++;
	older = class->newest;
	class->newest = slab + 1;
	class->taken = 0;
	class->slabs++;
	pool->slots += slots;
	if (!class->first) {
		class->first = slab + 1;
		pool->begun++;
	}
	bpf_spin_unlock(&pool->lock);

	/* Until the chain is mended the hand takes it for shorter. */
	meta = bpf_map_lookup_elem(&bmc_slab_meta, &slab);
	if (meta)
		meta->class = c;
	if (older) {
		older--;
		meta = bpf_map_lookup_elem(&bmc_slab_meta, &older);
		if (meta)
			meta->next = slab + 1;
	}
	return true;
}

/*
 * A slot never used before, or not since its slab was another class's, returned
 * taken: its address. -1 if there is none.
 */
__noinline __s64 slot_fresh(__u32 c)
{
	__u32 units, slots, newest, taken, rested;
	struct bmc_pool *pool = slab_pool();
	struct bmc_class *class;
	struct bmc_slot *slot;

	if (!pool || c >= BMC_CLASSES)
		return -1;
	bounded(c, BMC_CLASSES - 1);
	class = &pool->classes[c];
	units = class_units[c];
	slots = class_slots(units);
	for (int i = 0; i < 2; i++) {
		bool mine;

		newest = READ_ONCE(class->newest);
		taken = READ_ONCE(class->taken);
		if (!newest || taken >= slots) {
			if (class_grow(pool, c, slots, 0))
				continue;
			if (!READ_ONCE(pool->rest_first) ||
			    !turn_take(&pool->turn))
				return -1;
			rested = slab_rested(pool);
			if (rested && !class_grow(pool, c, slots, rested))
				slab_rest(pool, rested - 1);
			turn_end(&pool->turn);
			if (!rested)
				return -1;
			continue;
		}
		slot = slot_at(newest - 1, taken * units);
		if (!slot)
			return -1;
		bpf_spin_lock(&pool->lock);
		mine = class->newest == newest && class->taken == taken;
		if (mine) {
			/* What was here before was text, and is nobody's. */
			slot->seq |= 1;
			slot->deadline = 0;
			slot->klen = 0;
			class->taken = taken + 1;
		}
		bpf_spin_unlock(&pool->lock);
		if (mine)
			return (__u64)(newest - 1) << UNITS_SHIFT | taken * units;
	}
	return -1;
}

/* What the choice of who makes room for a newcomer goes by. */
struct choice {
	__u64 epoch;
	__u64 era;
	__u32 now;
	__u32 count; /* how often the newcomer was asked for */
	__u32 worth; /* how often a slot more would be: of slot_victim() */
};

/* How often the entry was asked for; 0 if it is of no use any more. */
static __always_inline __u32 slot_count(const struct bmc_slot *slot,
					const struct choice *choice)
{
	if (slot_is_dead(slot, choice->now, choice->epoch))
		return 0;
	return heat_count(READ_ONCE(slot->heat), choice->era);
}

/* Counts an entry that makes room, if it was of use still. */
static __always_inline void count_eviction(const struct bmc_slot *slot,
					   const struct choice *choice)
{
	struct bmc_stats *st = stats();

	if (st && !slot_is_dead(slot, choice->now, choice->epoch))
		st->evictions++;
}

/* Takes a slot from the entry that it may hold. Not if somebody writes it. */
static __always_inline bool slot_evict(struct bmc_slot *slot, __u32 address,
				       const struct choice *choice)
{
	if (!slot_take(slot))
		return false;
	if (slot->klen) {
		count_eviction(slot, choice);
		slot_unlink(slot, address);
	}
	return true;
}

/* How often a few slots of the slab were asked for, together. */
static __always_inline __u32 slab_count(__u32 slab, __u32 units,
					const struct choice *choice)
{
	__u32 from = bpf_get_prandom_u32(), slots = class_slots(units), sum = 0;

	for (__u32 i = 0; i < SAMPLE; i++) {
		struct bmc_slot *slot = slot_at(slab, (from + i) % slots * units);

		if (slot)
			sum += slot_count(slot, choice);
	}
	return sum;
}

/*
 * Shall the next class in turn give a slab, so that class c gets one? Begins to
 * empty it then. The pool's turn must be taken.
 */
static __always_inline void slab_seek(struct bmc_pool *pool, __u32 c,
				      const struct choice *choice)
{
	__u32 d = pool->probe++ % BMC_CLASSES, first, units, slab;
	struct bmc_class *class = &pool->classes[d];
	struct bmc_slab_meta *meta;

	first = READ_ONCE(class->first);
	slab = first - 1;
	units = class_units[d];
	meta = bpf_map_lookup_elem(&bmc_slab_meta, &slab);
	if (d == c || !meta || !meta->next || first == READ_ONCE(class->newest))
		return;
	if (choice->worth * SAMPLE * units <=
	    slab_count(slab, units, choice) * class_units[c] * GAIN)
		return;
	bpf_spin_lock(&pool->lock);
	class->first = meta->next;
	class->slabs--;
	pool->slots -= class_slots(units);
	bpf_spin_unlock(&pool->lock);
	meta->class = CLASS_NONE;
	pool->empty_units = units;
	pool->empty_at = 0;
	pool->empty = first;
}

/* Goes on to empty a slab. The pool's turn must be taken. */
static __always_inline void slab_empty(struct bmc_pool *pool,
				       const struct choice *choice)
{
	__u32 slab = pool->empty - 1, units = pool->empty_units;

	for (int i = 0; i < EMPTY_STEPS; i++) {
		__u32 unit = pool->empty_at * units;
		struct bmc_slot *slot;

		if (pool->empty_at >= class_slots(units)) {
			pool->empty = 0;
			slab_rest(pool, slab);
			return;
		}
		slot = slot_at(slab, unit);
		if (!slot ||
		    !slot_evict(slot, slab << UNITS_SHIFT | unit, choice))
			return; /* later */
		pool->empty_at++;
	}
}

/*
 * Moves memory to class c, a little, if that is of use. Not called by slot_victim():
 * Linux 6.1 gives all that are under way 512 bytes of stack.
 */
__noinline int slab_move(__u32 c, const struct choice *choice)
{
	struct bmc_pool *pool = slab_pool();

	if (!pool || !choice || c >= BMC_CLASSES || !turn_take(&pool->turn))
		return 0;
	if (pool->empty)
		slab_empty(pool, choice);
	else if (pool->resting <= cfg.slabs / REST_SHARE)
		slab_seek(pool, c, choice);
	turn_end(&pool->turn);
	return 0;
}

/*
 * The slab (plus one) of class c where this CPU's hand stands, and in *end up to
 * where its slots are in use; 0 if the class has none.
 */
static __always_inline __u32 hand_slab(struct bmc_hand *hand,
				       const struct bmc_class *class, __u32 c,
				       __u32 slots, __u32 *end)
{
	struct bmc_slab_meta *meta;

	for (int i = 0; i < 3; i++) {
		__u32 slab = hand->slab - 1;

		meta = bpf_map_lookup_elem(&bmc_slab_meta, &slab);
		*end = hand->slab == READ_ONCE(class->newest)
			       ? READ_ONCE(class->taken)
			       : slots;
		if (!meta || READ_ONCE(meta->class) != c)
			hand->slab = READ_ONCE(class->first); /* it has moved */
		else if (hand->slot >= *end)
			hand->slab = READ_ONCE(meta->next)
					     ?: READ_ONCE(class->first);
		else
			return hand->slab;
		hand->slot = 0;
	}
	return 0;
}

/*
 * The victim's address, returned taken: a hand goes round the slots of a class, and
 * of the next few the one asked for least gives way, if that is less than the
 * newcomer.
 */
__noinline __s64 slot_victim(__u32 c, struct choice *choice)
{
	__u32 least = HEAT_MAX + 1, units, end, slab;
	struct bmc_pool *pool = slab_pool();
	struct bmc_hands *hands = slab_hands();
	struct bmc_hand *hand;
	struct bmc_slot *slot;
	__u32 found = 0;

	if (!pool || !hands || !choice || c >= BMC_CLASSES)
		return -1;
	bounded(c, BMC_CLASSES - 1);
	hand = &hands->classes[c];
	units = class_units[c];
	slab = hand_slab(hand, &pool->classes[c], c, class_slots(units), &end);
	for (int i = 0; slab && i < HAND_STEPS && hand->slot < end && least; i++) {
		__u32 unit = hand->slot++ * units, count;

		slot = slot_at(slab - 1, unit);
		if (!slot)
			continue;
		count = slot_count(slot, choice);
		if (count < least) {
			least = count;
			found = unit;
		}
	}
	choice->worth = least < choice->count ? least : choice->count;
	if (!slab || least > HEAT_MAX || (least && least >= choice->count))
		return -1;
	slab--;
	slot = slot_at(slab, found);
	found |= slab << UNITS_SHIFT;
	return slot && slot_evict(slot, found, choice) ? (__u64)found : -1;
}

#endif /* SLAB_BPF_H */
