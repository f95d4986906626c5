/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The cache: an index of buckets that leads to slots (slab.bpf.h), where the
 * entries are. It knows nothing of packets.
 *
 * A key's bucket depends on the key alone, never on which memcached it was
 * asked from: a write that reaches memcached by another address, port or
 * family must find the same bucket. Which memcached an entry belongs to is
 * part of the slot: a number, given to each address, port and tag that one
 * answers from, and compared with them in full.
 *
 * A way of a bucket is the address of a slot, plus 1, and has a tag: 16 bits of the
 * key's hash. A slot proves itself by its content: a way that leads to a slot which
 * has meanwhile been given to another key, or one whose tag is another one's, is
 * just a miss.
 *
 * Who may do what:
 *   - find() takes no lock and writes nothing but the slot's heat, and that only
 *     until it is full. What was copied since is trusted if the slot's sequence
 *     number and the bucket's word did not move meanwhile: hit_stands().
 *   - cache_fill() works under the LOCK bit of the bucket's word and, for the
 *     slot, under its odd sequence number (another bucket may want the slot).
 *   - cache_forget() only clears ways, after the caller has moved the word: a
 *     fill that was under way then fails to publish.
 */
#ifndef CACHE_BPF_H
#define CACHE_BPF_H

enum {
	COPY_LINE = 64, /* bytes */
	COPY_FIRST = 4 * COPY_LINE,
	SERVER_STEPS = 8, /* numbers that one memcached may have */
};

#define EACH_TAG 0x0001000100010001ULL

static __always_inline bool is_clean(__u64 word)
{
	return !(word & (BMC_GEN - 1));
}

/* Whether the slot holds the key in s, for the memcached that s asks. */
static __always_inline bool slot_is(const struct slot_key *k,
				    const struct bmc_scratch *s)
{
	/* A byte: the verifier sees that no word is beyond the key's room. */
	__u32 klen = READ_ONCE(k->slot.klen);
	__u32 words = klen / 8, rest = klen % 8 * 8;
	__u64 differ;

	if (klen != s->klen || k->slot.server != s->server)
		return false;
	/* The bits of the last word that are the key's: none if rest is 0. */
	differ = (slot_key_word(k, words) ^ s->key[words]) & ((1ULL << rest) - 1);
	for (__u32 i = 0; i < KEY_WORDS - 1; i++) {
		if (i >= words)
			break;
		differ |= slot_key_word(k, i) ^ s->key[i];
	}
	return !differ;
}

/* The number that is tried first. */
static __always_inline __u32 server_first(const struct bmc_peers *peers)
{
	return ((peers->server[0] + peers->server[1] + port_vlan(peers)) *
		0x9e3779b97f4a7c15ULL) >>
	       57;
}

static __always_inline bool server_is(const struct bmc_server *server,
				      const struct bmc_peers *peers)
{
	return READ_ONCE(server->port_vlan) == port_vlan(peers) &&
	       server->addr[0] == peers->server[0] &&
	       server->addr[1] == peers->server[1];
}

/*
 * Sets s->server to the number, plus 1, of the memcached that s asks; with `add`
 * it gets one if it has none and there is one left. memcacheds at work when their
 * numbers are handed out may get two: one of them is found then.
 */
__noinline int server_seek(struct bmc_scratch *s, bool add)
{
	const struct bmc_peers *peers;
	__u32 first;

	if (!s)
		return 0;
	peers = &s->request.peers;
	first = server_first(peers);
	s->server = 0;
	for (__u32 i = 0; i < SERVER_STEPS; i++) {
		__u32 nr = (first + i) & (BMC_SERVERS - 1);
		struct bmc_server *server;

		server = bpf_map_lookup_elem(&bmc_servers, &nr);
		if (!server)
			break;
		if (server_is(server, peers)) {
			s->server = nr + 1;
			break;
		}
		if (READ_ONCE(server->port_vlan))
			continue;
		if (!add)
			break;
		if (__sync_val_compare_and_swap(&server->port_vlan, 0,
						BMC_SERVER_TAKEN))
			continue;
		server->addr[0] = peers->server[0];
		server->addr[1] = peers->server[1];
		smp_store_release(server->port_vlan, port_vlan(peers));
		s->server = nr + 1;
		break;
	}
	return 0;
}

/* The same, seldom with a call. */
static __always_inline void server_find(struct bmc_scratch *s, bool add)
{
	__u32 nr = server_first(&s->request.peers);
	struct bmc_server *server = bpf_map_lookup_elem(&bmc_servers, &nr);

	if (server && server_is(server, &s->request.peers))
		s->server = nr + 1;
	else
		server_seek(s, add);
}

/* The same, checked by the verifier on its own: for loops that need not race. */
__noinline int slot_holds(const struct slot_key *k, const struct bmc_scratch *s)
{
	return k && s && slot_is(k, s);
}

/* Copies COPY_LINE bytes. */
static __always_inline void line_copy(__u8 *to, const __u8 *from)
{
	for (int word = 0; word < COPY_LINE; word += 8)
		*(__u64 *)(to + word) = *(const __u64 *)(from + word);
}

static __always_inline void pair_copy(__u8 *to, const __u8 *from)
{
	*(__u64 *)to = *(const __u64 *)from;
	*(__u64 *)(to + 8) = *(const __u64 *)(from + 8);
}

/* What a slot's text is, and a little more. */
struct text {
	__u8 bytes[(BMC_REPLY_MAX + COPY_LINE - 1) / COPY_LINE * COPY_LINE];
};

/* The lines behind the first few, as a function for the verifier's sake. */
__noinline int text_rest(struct bmc_scratch *s, const struct text *text, __u32 len)
{
	__u64 at;

	if (!s || !text)
		return 0;
	at = s->reply_len;
	barrier_var(at);
	if (at > BMC_REPLY_MAX)
		return 0;
	for (__u32 i = COPY_FIRST; i < BMC_REPLY_MAX; i += COPY_LINE) {
		if (i >= len)
			break;
		line_copy(s->frame + HEAD_MAX + at + i, text->bytes + i);
	}
	return 0;
}

/* The first eight bytes of a slot's text. */
static __always_inline __u64 text_first(const struct text *text)
{
	return *(const __u64 *)text >> 48 << 48 | TEXT_VALUE_;
}

/*
 * Copies a text to this CPU's memory, behind those that are there; there is room.
 * Not by a helper: a call costs as much as many words, where returns are guarded
 * against speculation.
 */
static __always_inline void text_copy(struct bmc_scratch *s, __u64 at,
				      const struct text *text, __u64 len)
{
	for (__u32 i = 0; i < COPY_FIRST; i += COPY_LINE) {
		if (i >= len)
			break;
		line_copy(s->frame + HEAD_MAX + at + i, text->bytes + i);
	}
	*(__u64 *)(s->frame + HEAD_MAX + at) = text_first(text);
	if (len > COPY_FIRST)
		text_rest(s, text, len);
}

/*
 * Now, as an age: from jiffies, which the verifier makes a load, no call. It
 * turns over after nine years.
 */
static __always_inline __u32 age_now(void)
{
	return bpf_jiffies64() * cfg.tick >> BMC_AGE_SHIFT;
}

/*
 * The ways whose tags are `tag`, four of them at a time: a bit for each, that of way
 * n at 16n, that of way 4 + n at 16n + 8.
 */
static __always_inline __u64 ways_alike(const struct bmc_bucket *b, __u16 tag)
{
	__u64 marks = 0;

	for (int half = 0; half < 2; half++) {
		__u64 differ = ((const volatile __u64 *)b->tags)[half] ^
			       tag * EACH_TAG;

		/* Then the top bit of a tag is set if any is. */
		differ |= (differ & ~(EACH_TAG << 15)) + EACH_TAG * 0x7fff;
		marks |= (~differ >> 15 & EACH_TAG) << half * 8;
	}
	return marks;
}

/* The way of the lowest mark. */
static __always_inline __u64 way_marked(__u64 marks)
{
	__u64 at = word_count(marks & -marks);

	at = at >> 1 | (at & 1) << 2;
	bounded(at, BMC_WAYS - 1);
	return at;
}

_Static_assert(BMC_WAYS == 8, "two words of four tags");

enum found { FIND_MISS = 0, FIND_HIT, FIND_MISPREDICTION, FIND_SIZE };

/* An entry that was found, to be read while it stands. */
struct hit {
	struct bmc_bucket *bucket;
	struct bmc_slot *slot;
	__u32 seq;
	__u64 len; /* of its text */
};

/*
 * Looks the key in s up. In s->word and s->epoch it leaves the words it went by:
 * loaded before anything else, so that a lease made from them is older than the
 * request's pass to memcached.
 */
static __always_inline int find(struct bmc_scratch *s, struct hit *hit)
{
	struct bmc_global *g = cache_global();
	struct bmc_bucket *b = cache_bucket(s->hash);
	int found = FIND_MISS;
	__u64 word, epoch, marks;

	if (!g || !b)
		return FIND_MISS;
	s->word = word = READ_ONCE(b->word);
	smp_rmb();
	s->epoch = epoch = READ_ONCE(g->word);
	smp_rmb();
	if (!is_clean(word | epoch))
		return FIND_MISS;
	marks = ways_alike(b, way_tag(s->hash));
	if (!marks)
		return FIND_MISS;
	server_find(s, false);
	if (!s->server)
		return FIND_MISS;

	for (int i = 0; i < BMC_WAYS && marks; i++, marks &= marks - 1) {
		struct bmc_slot *slot;
		__u64 len;
		__u32 seq;

		slot = way_slot(READ_ONCE(b->ways[way_marked(marks)]));
		if (!slot)
			continue;
		seq = READ_ONCE(slot->seq);
		smp_rmb();
		if (seq & 1)
			continue;
		if (!slot_is((void *)slot, s)) {
			found = FIND_MISPREDICTION;
			continue;
		}
		if (slot_is_dead(slot, age_now(), epoch))
			continue;
		len = (__u16)slot->epoch_len;
		barrier_var(len);
		if (len > BMC_REPLY_MAX - END_LEN)
			return FIND_MISS;
		*hit = (struct hit){ b, slot, seq, len };
		heat_hit(slot, READ_ONCE(g->era));
		return FIND_HIT;
	}
	return found;
}

/*
 * Whether what was read of the entry since find() is memcached's value: neither
 * the slot nor the bucket's word moved. Linearized: between its two loads the word
 * stood still.
 */
static __always_inline bool hit_stands(const struct hit *hit,
				       const struct bmc_scratch *s)
{
	smp_rmb();
	return READ_ONCE(hit->slot->seq) == hit->seq &&
	       READ_ONCE(hit->bucket->word) == s->word;
}

/*
 * Looks the key in s up and, on a hit, appends its text to s->frame: to memory of
 * this CPU, as the packet must be fit to go to memcached until the last key's last
 * check.
 */
__noinline int cache_find(struct bmc_scratch *s)
{
	struct hit hit;
	__u16 csum;
	int found;
	__u64 at;

	if (!s)
		return FIND_MISS;
	found = find(s, &hit);
	if (found != FIND_HIT)
		return found;
	at = s->reply_len;
	barrier_var(at);
	if (at > BMC_REPLY_MAX - END_LEN || at + hit.len > BMC_REPLY_MAX - END_LEN)
		return FIND_SIZE;
	bounded(at, 2047);
	csum = hit.slot->csum;
	text_copy(s, at, (void *)slot_text(hit.slot), hit.len);
	if (!hit_stands(&hit, s))
		return FIND_MISS;
	s->reply_csum += at & 1 ? (__u16)(csum << 8 | csum >> 8) : csum;
	s->reply_len = at + hit.len;
	return FIND_HIT;
}

/* Clears every way that may be the key's, whichever memcached it is for. */
static __always_inline void bucket_forget(struct bmc_bucket *b, __u64 hash)
{
	for (int i = 0; i < BMC_WAYS; i++) {
		__u32 way = READ_ONCE(b->ways[i]);
		struct bmc_slot *slot;

		if (!way || READ_ONCE(b->tags[i]) != way_tag(hash))
			continue;
		WRITE_ONCE(b->ways[i], 0);
		/* Tell the eviction. If the slot has a new owner by now, that
		 * one loses an entry, nothing else.
		 */
		slot = way_slot(way);
		if (slot)
			WRITE_ONCE(slot->deadline, 0);
	}
}

enum fill { FILL_DONE = 0, FILL_RACED, FILL_ADMISSION, FILL_EXPIRY };

/*
 * Which way of a locked bucket the key in s shall have: its own, an empty one,
 * a dead one, or that asked for least, if that is less than the newcomer. Its number,
 * or BMC_WAYS if there is none. Other keys' slots are looked at only if no way is
 * empty: each is memory far from here.
 */
__noinline __u32 bucket_way(const struct bmc_bucket *b,
			    const struct bmc_scratch *s,
			    const struct choice *choice)
{
	__u32 empty = BMC_WAYS, cold = BMC_WAYS, least;

	if (!b || !s || !choice)
		return BMC_WAYS;
	for (__u32 i = 0; i < BMC_WAYS; i++) {
		__u32 way = READ_ONCE(b->ways[i]);
		struct bmc_slot *slot;

		if (!way)
			empty = i;
		if (!way || READ_ONCE(b->tags[i]) != way_tag(s->hash))
			continue;
		slot = way_slot(way);
		if (slot && slot_holds((void *)slot, s))
			return i;
	}
	if (empty < BMC_WAYS)
		return empty;
	least = choice->count;
	for (__u32 i = 0; i < BMC_WAYS; i++) {
		struct bmc_slot *slot = way_slot(READ_ONCE(b->ways[i]));
		__u32 count = slot ? slot_count(slot, choice) : 0;

		if (!count)
			return i;
		if (count < least) {
			cold = i;
			least = count;
		}
	}
	return cold;
}

/* The ones' complement sum of the slot's text, of which `len` bytes are there. */
static __always_inline __u16 text_csum(__u8 *text, __u64 len)
{
	__u64 rest = len & 3, whole = len & ~3ULL;
	__s64 sum = TEXT_VALUE_SUM;
	__u8 *last;

	/* bpf_csum_diff() wants whole words: what is left over is masked out of
	 * the last one, which may reach beyond the slot.
	 */
	barrier_var(whole);
	if (whole > BMC_REPLY_MAX)
		return 0;
	last = text + whole;
	for (int i = 0; i < 3; i++) {
		__u32 n = whole > CSUM_CHUNK ? CSUM_CHUNK : whole;

		if (!n)
			break;
		sum = bpf_csum_diff(NULL, 0, (__be32 *)text, n, sum);
		text += CSUM_CHUNK;
		whole -= n;
	}
	return csum_fold((__u64)(__u32)sum +
			 (*(__u32 *)last & ((1ULL << rest * 8) - 1)));
}

/*
 * Puts the text at `off` of the packet into the cache, for the key and the
 * memcached in s, under the lease in s: W and G, clean when the request went to
 * memcached. Succeeds only if since then no write to the bucket was seen,
 * begun or pending: the value is then memcached's at this moment.
 *
 * No early return between taking the LOCK bit and giving it back.
 */
__noinline int cache_fill(struct __sk_buff *skb, struct bmc_scratch *s,
			  __u32 off, __u32 len)
{
	struct bmc_global *g = cache_global();
	__u32 c = class_for(len), slab, unit;
	struct bmc_pool *pool = slab_pool();
	struct bmc_hands *hands = slab_hands();
	struct choice choice = { .now = age_now() };
	__u64 word, life, stored = (__u64)len - VALUE_LEN;
	int done = FILL_ADMISSION;
	__u32 n, *way, old;
	struct bmc_slot *slot;
	struct bmc_bucket *b;
	__s64 ref;

	if (!s || !g || !pool || !hands || c >= BMC_CLASSES)
		return FILL_RACED;
	b = cache_bucket(s->hash);
	if (!b || READ_ONCE(g->word) != s->epoch || stored > BMC_REPLY_MAX)
		return FILL_RACED;
	life = expiry_life(s->hash, s->epoch) >> BMC_AGE_SHIFT;
	if (!life)
		return FILL_EXPIRY;
	server_find(s, true);
	if (!s->server)
		return FILL_ADMISSION;
	era_step(g, pool, hands);
	choice.epoch = s->epoch;
	choice.era = READ_ONCE(g->era);
	choice.count = heat_miss(b, s->hash, choice.era);
	word = s->word;
	if (__sync_val_compare_and_swap(&b->word, word, word | BMC_LOCK) != word)
		return FILL_RACED;

	n = bucket_way(b, s, &choice);
	if (n >= BMC_WAYS)
		goto unlock;
	bounded(n, BMC_WAYS - 1);
	/* The way's own slot is used again if the size fits, else freed. */
	way = &b->ways[n];
	old = READ_ONCE(*way);
	ref = -1;
	slot = old ? way_slot(old) : NULL;
	if (slot && slot_take(slot)) {
		/* Between look and take it may have changed hands. */
		if (READ_ONCE(*way) != old) {
			slot_release(slot);
		} else {
			if (!slot_holds((void *)slot, s))
				count_eviction(slot, &choice);
			if (slot->class == c) {
				ref = old - 1;
			} else {
				slot->deadline = 0;
				slot_release(slot);
			}
		}
	}
	if (ref < 0) {
		ref = slot_fresh(c);
		bounded(c, BMC_CLASSES - 1);
		if (ref < 0 && !READ_ONCE(pool->classes[c].first)) {
			c = class_larger(c);
			ref = slot_fresh(c);
		}
		if (ref < 0) {
			ref = slot_victim(c, &choice);
			if (READ_ONCE(pool->empty) ||
			    !(hands->misses % SEEK_EVERY))
				slab_move(c, &choice);
		}
		if (ref < 0)
			goto unlock;
	}
	slab = ref >> UNITS_SHIFT;
	unit = ref & (UNITS - 1);
	slot = slot_at(slab, unit);
	if (!slot)
		goto unlock;

	/* From here on the slot is ours: its number is odd. */
	slot->epoch_len = s->epoch >> 17 << 16 | len;
	slot->deadline = choice.now + life;
	slot->server = s->server;
	slot->klen = s->klen;
	slot->heat = heat_make(choice.count, choice.era);
	slot->class = c;
	/* By its key whoever takes the slot next finds the way to it: the packet
	 * must not have changed since it was looked at.
	 */
	if (!skb_load(skb, off + VALUE_LEN, (__u8 *)slot + BMC_SLOT_KEY, stored,
		      BMC_REPLY_MAX) ||
	    !slot_holds((void *)slot, s)) {
		slot->klen = 0;
		slot->deadline = 0;
		WRITE_ONCE(*way, 0);
		slot_release(slot);
		goto unlock;
	}
	slot->csum = text_csum((__u8 *)slot + BMC_SLOT_KEY, stored);
	/* While the slot is still ours: whoever takes it next finds it. */
	WRITE_ONCE(b->tags[n], way_tag(s->hash));
	WRITE_ONCE(*way, way_make(ref));
	slot_release(slot);

	if (__sync_val_compare_and_swap(&b->word, word | BMC_LOCK,
					word + BMC_GEN) == (word | BMC_LOCK))
		return FILL_DONE;
	done = FILL_RACED;
	WRITE_ONCE(*way, 0);
	WRITE_ONCE(slot->deadline, 0);
unlock:
	/* Never a store: writes have added to the word meanwhile. The new
	 * generation keeps the word from ever coming back.
	 */
	(void)__sync_fetch_and_add(&b->word, BMC_GEN - BMC_LOCK);
	return done;
}

#endif /* CACHE_BPF_H */
