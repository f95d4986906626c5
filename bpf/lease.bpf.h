/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Leases and writes: when a reply may fill the cache, and how a write keeps it
 * from doing so.
 *
 * A write, seen on its way in, moves the word of its key's bucket (GEN) and
 * counts itself as pending (PEND) before memcached can see it, then clears the
 * key's ways. When its reply leaves, it moves the word again and is no longer
 * pending. Nothing is served, leased or filled in a bucket with a write
 * pending, because memcached may have applied it or not.
 *
 * A GET that goes to memcached may take a lease: the words W and G, loaded
 * clean before the GET went on. Its reply fills only if W is still the same,
 * so that no write was seen from before the GET until after its reply.
 *
 * A write whose reply bmc cannot recognise (UDP, a connection that it does not
 * follow) cannot be counted. It sets a quarantine instead, before it moves the
 * word: no lease from the bucket for BMC_APPLY_NS. The reader loads in the
 * opposite order: word, then quarantine.
 *
 * Where a connection is owed more replies than its ring has room for, the
 * quarantine has a ticket: it ends when that many replies have left.
 *
 * A reply must be the reply to the very GET that took the lease. Clients reuse
 * their request ids, so an older reply to the same id may still be on its way.
 * Every UDP request that goes on is therefore noted by client and id in
 * bmc_senders, and a lease is given only if nothing else can be outstanding
 * under that name: all its requests are answered, or the last one is so old
 * (BMC_REPLY_NS) that its reply is lost. A cell looks like this:
 *
 *   bits 40-63  name, from the hash of client, memcached and all of the id but what
 *               tells which cell of a line it is
 *   bits 32-39  requests outstanding; SENDERS_MANY: unknown
 *   bits 0-31   when the last one went on, in 2^20 ns; another CPU's clock may
 *               be ahead of this one's
 *
 * Two names that want one cell, or a request that may get several replies (more
 * than one key or command), make the number unknown until the cell has been
 * quiet for BMC_REPLY_NS.
 */
#ifndef LEASE_BPF_H
#define LEASE_BPF_H

enum {
	BMC_REPLY_NS = 1000000000, /* no reply of memcached is older */
	BMC_APPLY_NS = 1000000000, /* no write is applied later */
	BMC_LOST_S = 10, /* a write still pending then has lost its reply */
	SENDERS_MANY = 0xff,
	SENDERS_SHIFT = 32,
	SENDERS_NAME = 40,
	SENDERS_TICK = 20, /* 2^20 ns */
	SENDERS_LINE = 8, /* cells of a cache line */
};

/*
 * Within this time memcached applies what comes over a connection that does not
 * wait: megabytes may be queued before it.
 */
#define DEEP_NS (BMC_LOST_S * SECOND)

/*
 * Under what a UDP request is noted, and where: eight ids in a row of one client
 * share a cache line, which a client that counts its requests has to wait for once.
 * Which line is up to chance: by the id alone, a client that counts in the other
 * byte order would want the same cells for requests that are under way at once.
 */
struct sender {
	__u64 name; /* in the upper bits; of all SENDERS_LINE */
	__u32 place;
};

static __always_inline struct sender sender_of(const struct bmc_request *r)
{
	const __u64 *w = (const void *)r;
	__u64 sum = cfg.seed[1], id = bpf_ntohs(r->id);
	struct sender sender;

	_Static_assert(sizeof(*r) == 6 * sizeof(__u64), "six words, no holes");
	for (int i = 0; i < 5; i++)
		sum += hash_word(i, w[i]);
	sender.name = hash_end(sum + hash_word(5, id / SENDERS_LINE));
	sender.place =
		sender.name / SENDERS_LINE * SENDERS_LINE + id % SENDERS_LINE;
	return sender;
}

static __always_inline __u64 *sender_cell(const struct sender *sender)
{
	__u32 i = sender->place & (cfg.senders - 1);

	return bpf_map_lookup_elem(&bmc_senders, &i);
}

/*
 * Notes a UDP request that goes on to memcached; `one` if it can only get one
 * reply. Returns whether its reply will be recognised beyond doubt.
 */
static __always_inline bool sender_ask(const struct sender *sender, bool one,
				       __u64 now)
{
	__u64 *cell = sender_cell(sender), old, new,
	      tick = (__u32)(now >> SENDERS_TICK);
	__u64 name = sender->name >> SENDERS_NAME;
	bool alone;

	if (!cell)
		return false;
	for (int i = 0; i < 4; i++) {
		__u32 out, quiet;

		old = READ_ONCE(*cell);
		out = (old >> SENDERS_SHIFT) & 0xff;
		quiet = (__s32)(tick - old) > BMC_REPLY_NS >> SENDERS_TICK;
		alone = !out || quiet;
		if (!one || (!alone && (out >= SENDERS_MANY - 1 ||
					old >> SENDERS_NAME != name)))
			out = SENDERS_MANY;
		else
			out = alone ? 1 : out + 1;
		new = name << SENDERS_NAME | (__u64)out << SENDERS_SHIFT | tick;
		if (__sync_val_compare_and_swap(cell, old, new) == old)
			return alone && one;
	}
	/* Too much of a crowd to count. */
	new = name << SENDERS_NAME | (__u64)SENDERS_MANY << SENDERS_SHIFT | tick;
	(void)__sync_lock_test_and_set(cell, new);
	return false;
}

/* Notes a UDP reply. */
static __always_inline void sender_answer(const struct sender *sender)
{
	__u64 *cell = sender_cell(sender), old;

	if (!cell)
		return;
	for (int i = 0; i < 4; i++) {
		__u32 out;

		old = READ_ONCE(*cell);
		out = (old >> SENDERS_SHIFT) & 0xff;
		if (!out || out == SENDERS_MANY ||
		    old >> SENDERS_NAME != sender->name >> SENDERS_NAME)
			return;
		if (__sync_val_compare_and_swap(
			    cell, old, old - (1ULL << SENDERS_SHIFT)) == old)
			return;
	}
}

static __always_inline struct bmc_quarantine *quarantine_of(__u32 bucket)
{
	__u32 i = bucket & (BMC_QUARANTINES - 1);

	return bpf_map_lookup_elem(&bmc_quarantine, &i);
}

static __always_inline struct bmc_lease *lease_at(const struct sender *sender)
{
	__u32 i = sender->place & (cfg.leases - 1);

	return bpf_map_lookup_elem(&bmc_leases, &i);
}

/*
 * To oneself from this state; nobody waits. A lease that cannot be had when its
 * reply leaves stays, as one does whose reply was lost.
 */
static __always_inline bool lease_own(struct bmc_lease *lease, __u32 state)
{
	return state != LEASE_TAKEN &&
	       __sync_val_compare_and_swap(&lease->state, state, LEASE_TAKEN) ==
		       state;
}

/*
 * A ticket names a connection's flow and the number of replies that must have left:
 *
 *   bits 40-63  flow's place, plus 1
 *   bits 32-39  flow's life
 *   bits 0-31   the flow's `answered` from which on the ticket is redeemed
 *
 * A flow whose replies can no longer be counted begins another life if it has tickets
 * out; from then on they count for nothing, and time alone ends the quarantine.
 */
enum { TICKET_LIFE = 32, TICKET_PLACE = 40 };

static __always_inline __u64 ticket_of(const struct bmc_flow *flow, __u32 answered)
{
	return (__u64)(flow->place + 1) << TICKET_PLACE |
	       (__u64)READ_ONCE(flow->life) << TICKET_LIFE | answered;
}

/*
 * Whether the ticket's reply has left. The life is read last: if it is the same still,
 * the replies were counted rightly until then.
 */
__noinline int ticket_is_redeemed(__u64 ticket)
{
	__u32 place = (ticket >> TICKET_PLACE) - 1, answered;
	struct bmc_flow *flow = bpf_map_lookup_elem(&bmc_flows, &place);

	if (!flow)
		return false;
	answered = READ_ONCE(flow->answered);
	smp_rmb();
	if ((ticket_of(flow, 0) ^ ticket) >> TICKET_LIFE)
		return false;
	return (__s32)(answered - (__u32)ticket) >= 0;
}

/* Whether the hold lets a lease be given. */
static __always_inline bool hold_is_over(const struct bmc_hold *hold, __u64 now)
{
	if (now < READ_ONCE(hold->until))
		return false;
	return likely(now >= READ_ONCE(hold->held)) ||
	       ticket_is_redeemed(READ_ONCE(hold->ticket));
}

/* No lease before this time; never less than it was. */
__noinline int quarantine_raise(__u64 *quarantine, __u64 until)
{
	if (!quarantine)
		return 0;
	for (int i = 0; i < 4; i++) {
		__u64 old = READ_ONCE(*quarantine);

		if (old >= until ||
		    __sync_val_compare_and_swap(quarantine, old, until) == old)
			return 0;
	}
	if (READ_ONCE(*quarantine) < until)
		WRITE_ONCE(*quarantine, until);
	return 0;
}

/*
 * Holds leases back until the ticket is redeemed, at most until this time. False if
 * the hold has another connection's ticket, which is not redeemed: it has one only.
 */
__noinline int hold_take(struct bmc_hold *hold, __u64 until, __u64 ticket)
{
	__u64 old;

	if (!hold)
		return false;
	old = READ_ONCE(hold->ticket);
	if (bpf_ktime_get_coarse_ns() < READ_ONCE(hold->held) &&
	    old >> TICKET_LIFE != ticket >> TICKET_LIFE &&
	    !ticket_is_redeemed(old))
		return false;
	quarantine_raise(&hold->held, until);
	return __sync_val_compare_and_swap(&hold->ticket, old, ticket) == old;
}

/*
 * Holds leases back until this time or, given a ticket, until that is redeemed. Must
 * precede the step of the word: whoever loads the word after that step sees the hold.
 */
static __always_inline void hold_raise(struct bmc_hold *hold, __u64 until,
				       __u64 ticket)
{
	if (!ticket || !hold_take(hold, until, ticket))
		quarantine_raise(&hold->until, until);
}

/*
 * The bucket has writes pending. If the last of them came very long ago their
 * replies were lost (memcached gone, an interface detached): count them out.
 */
static __always_inline void bucket_reap(struct bmc_scratch *s,
					struct bmc_quarantine *q, __u64 now)
{
	struct bmc_bucket *b = cache_bucket(s->hash);
	__u64 word = s->word, mark = word ^ s->hash << 32;

	if (!b || !(word & (BMC_GEN - BMC_PEND)))
		return;
	/* Every write of the bucket moves the word. */
	if (READ_ONCE(q->mark) != mark) {
		WRITE_ONCE(q->mark, mark);
		WRITE_ONCE(q->since, now);
		return;
	}
	if ((__s64)(now - READ_ONCE(q->since)) < BMC_LOST_S * 1000000000LL)
		return;
	(void)__sync_val_compare_and_swap(
		&b->word, word, (word & ~(__u64)(BMC_GEN - BMC_PEND)) + BMC_GEN);
}

/*
 * A GET for the one key in s, which cache_find() did not find, goes on to
 * memcached: lease its bucket if that is safe. A lease may be overwritten by
 * another request's: that one only loses its right to fill.
 */
static __always_inline void lease_take(struct bmc_scratch *s, struct bmc_stats *st)
{
	struct sender sender = sender_of(&s->request);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct bmc_quarantine *q = quarantine_of(bucket_of(s->hash));
	struct bmc_global *g = cache_global();
	struct bmc_lease *lease = lease_at(&sender);

	if (!sender_ask(&sender, true, now)) {
		st->lease_outstanding++;
		return;
	}
	if (!q || !g || !lease)
		return;
	if (!is_clean(s->word) || !is_clean(s->epoch)) {
		bucket_reap(s, q, now);
		st->lease_dirty++;
		return;
	}
	smp_rmb();
	if (!hold_is_over(&q->hold, now) || !hold_is_over(&g->hold, now)) {
		st->lease_quarantine++;
		return;
	}
	if (!lease_own(lease, READ_ONCE(lease->state))) {
		st->lease_outstanding++;
		return;
	}
	lease->request = s->request;
	lease->hash = s->hash;
	lease->klen = s->klen;
	lease->word = s->word;
	lease->epoch = s->epoch;
	smp_store_release(lease->state, LEASE_LIVE);
	st->leases++;
}

/* Any other UDP request goes on to memcached. */
static __always_inline void lease_refuse(struct bmc_scratch *s)
{
	struct sender sender = sender_of(&s->request);

	sender_ask(&sender, false, bpf_ktime_get_coarse_ns());
}

/*
 * The reply to s->request leaves, its first datagram: take the lease back that
 * its request may have. If there is one, the key's hash and length and the
 * words are then in s.
 */
static __always_inline bool lease_return(struct bmc_scratch *s)
{
	struct sender sender = sender_of(&s->request);
	const __u64 *mine = (void *)&s->request, *its;
	struct bmc_lease *lease = lease_at(&sender);
	bool live = false;

	if (lease && READ_ONCE(lease->state) == LEASE_LIVE &&
	    lease_own(lease, LEASE_LIVE)) {
		its = (void *)&lease->request;
		live = its[0] == mine[0] && its[1] == mine[1] &&
		       its[2] == mine[2] && its[3] == mine[3] &&
		       its[4] == mine[4] && its[5] == mine[5];
		if (live) {
			s->hash = lease->hash;
			s->klen = lease->klen;
			s->word = lease->word;
			s->epoch = lease->epoch;
		}
		smp_store_release(lease->state, live ? LEASE_NONE : LEASE_LIVE);
	}
	/* Only now: the next request under this name may take a lease at once,
	 * and that one is not this reply's.
	 */
	sender_answer(&sender);
	return live;
}

/*
 * What is known of a write from when it comes in until its reply leaves, in one
 * word, so that whoever exchanges it for 0 has it to himself:
 *
 *   bits 0-6    the reply that it waits for (enum reply_kind)
 *   bits 7-15   OWED_...
 *   bits 16-23  the binary protocol's opcode
 *   bits 24-37  the words W and G after the write began, what is left of their
 *               sum: it grows with either
 *   bits 38-63  when the item ends that it makes, as in a record
 */
enum {
	OWED_OPTIONAL = 1 << 7, /* there may be no reply */
	OWED_WRITE = 1 << 8,
	OWED_FLUSH = 1 << 9,
	OWED_BLOCK = 1 << 10, /* it has a data block */
	OWED_SOLE = 1 << 11, /* no other write could be on its way when it began */
	OWED_WHOLE = 1 << 12, /* its data block was seen to end as it should */
	OWED_EXPIRY = 13, /* two bits: enum expiry_kind */
	OWED_OPCODE = 16,
	OWED_WORDS = 24,
	OWED_WORDS_MASK = (1 << 14) - 1,
	OWED_END = 38,
	/* Values, or END, may be the reply, or it stays when they come. */
	OWED_ALIKE = OWED_OPTIONAL | REPLY_LIST | REPLY_STATS | REPLY_STREAM,
};

static __always_inline __u64 owed_words(__u64 word, const struct bmc_global *g)
{
	return ((word >> 17) + (READ_ONCE(g->word) >> 17)) & OWED_WORDS_MASK;
}

static __always_inline __u32 owed_expiry(__u64 what)
{
	return what >> OWED_EXPIRY & 3;
}

/*
 * A write of the key with this hash is on its way in: moves its bucket's word.
 * With `pending` its reply will be followed: write_end() or write_abandon() must
 * come. Without, it is applied within `lag` ns from now, or when `ticket` is redeemed.
 *
 * Returns the words as they are owed, and OWED_SOLE if no other write can be on
 * its way: none was counted, and if one was not, it moved the word either later,
 * which the word will tell, or before, and then its quarantine is there.
 */
__noinline __u64 write_begin(__u64 hash, bool pending, __u64 lag, __u64 ticket)
{
	__u64 now = bpf_ktime_get_coarse_ns(), old;
	struct bmc_quarantine *q = quarantine_of(bucket_of(hash));
	struct bmc_bucket *b = cache_bucket(hash);
	struct bmc_global *g = cache_global();

	if (!b || !q || !g)
		return 0;
	if (!pending)
		hold_raise(&q->hold, now + lag, ticket);
	old = __sync_fetch_and_add(&b->word,
				   pending ? BMC_GEN + BMC_PEND : BMC_GEN);
	bucket_forget(b, hash);
	if (!is_clean(old) || !hold_is_over(&q->hold, now) ||
	    !hold_is_over(&g->hold, now))
		return 0;
	return OWED_SOLE | owed_words(old + BMC_GEN, g) << OWED_WORDS;
}

/*
 * The reply to a pending write leaves; `done` if the write did what it should.
 * Not a plain addition: if the write was given up for lost, its count is gone
 * already.
 *
 * If it was the only one of its bucket since before it began, its expiry is the
 * item's: recorded before the word moves, because after that another write may
 * begin.
 */
__noinline int write_end(__u64 hash, __u64 what, bool done)
{
	struct bmc_bucket *b = cache_bucket(hash);
	struct bmc_global *g = cache_global();
	bool exact = false;

	if (!b || !g)
		return 0;
	for (int i = 0; i < 16; i++) {
		__u64 old = read_to_write(&b->word);
		__u64 epoch = READ_ONCE(g->word);

		if (!(old & (BMC_GEN - BMC_PEND))) {
			/* Since then the bucket may have been filled. */
			(void)__sync_fetch_and_add(&b->word, BMC_GEN);
			for (int way = 0; way < BMC_WAYS; way++)
				WRITE_ONCE(b->ways[way], 0);
			expiry_put(hash, epoch, what >> OWED_END ?: 1);
			break;
		}
		if (!i && owed_expiry(what)) {
			exact = done && what & OWED_SOLE &&
				owed_expiry(what) != EXPIRY_LESS &&
				hold_is_over(&g->hold, bpf_ktime_get_coarse_ns()) &&
				owed_words(old, g) ==
					(what >> OWED_WORDS & OWED_WORDS_MASK);
			if (exact)
				expiry_put(hash, epoch,
					   what >> OWED_END | EXPIRY_FIRM);
			else
				expiry_less(hash, epoch, what >> OWED_END);
			/* A flush that comes later finds the record there. */
			if (exact && READ_ONCE(g->word) != epoch)
				expiry_put(hash, epoch, what >> OWED_END);
		}
		if (__sync_val_compare_and_swap(&b->word, old,
						old + BMC_GEN - BMC_PEND) == old)
			break;
		if (exact)
			expiry_put(hash, epoch, what >> OWED_END);
		exact = false;
	}
	/* If none of them succeeded: left to bucket_reap(). */
	return 0;
}

/*
 * The reply to a pending write will not be recognised after all; it is applied
 * within `lag` ns.
 */
static __always_inline void write_abandon(__u64 hash, __u64 what, __u64 lag)
{
	struct bmc_quarantine *q = quarantine_of(bucket_of(hash));

	if (q)
		hold_raise(&q->hold, bpf_ktime_get_coarse_ns() + lag, 0);
	write_end(hash, what, false);
}

/*
 * Every entry may have changed, by what may be applied until `until` (ns) or, given
 * a ticket, until that is redeemed.
 */
static __always_inline void flush_all_held(struct bmc_stats *st, __u64 until,
					   __u64 ticket)
{
	struct bmc_global *g = cache_global();

	if (!g)
		return;
	hold_raise(&g->hold, until, ticket);
	(void)__sync_fetch_and_add(&g->word, BMC_GEN);
	/* Atomic, because a packet may interrupt bmc_flush and bmc_gone. */
	(void)__sync_fetch_and_add(&st->flushes, 1);
}

static __always_inline void flush_all(struct bmc_stats *st, __u64 until)
{
	flush_all_held(st, until, 0);
}

#endif /* LEASE_BPF_H */
