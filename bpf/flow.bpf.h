/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Commands of TCP segments and UDP datagrams on their way to memcached, and
 * memcached's replies to them. TC programs only.
 *
 * Both streams of a connection are walked, each by its own sequence numbers:
 * commands one after the other, data blocks skipped by length and never
 * searched. What is not understood may have changed anything: the whole cache
 * is flushed.
 *
 * What memcached owes to a connection that is FOLLOWED stands in a ring, in the
 * order of the commands, each with the number of replies that come before its own;
 * its reply takes it out, and a write is pending in its bucket (lease.bpf.h) until
 * then. A command that may have no reply (noreply, quiet) is taken out by the next
 * reply that cannot be its own: memcached executes the commands of a connection in
 * order.
 *
 * Most commands are gets. They do not stand in the ring, they only count, and so do
 * values and END on their way back, without a look at what they reply to (unless
 * the ring has a command whose reply is like that: `alike`). Should one have been
 * the reply to something else, the next one that is looked at comes out of turn.
 * What is pending stays so until then.
 *
 * When the ring is full, other commands are counted as gets are. A write among them
 * is quarantined until as many replies have left as were owed up to its own, of
 * whatever kind (lease.bpf.h: tickets). The ring is used again once all of these
 * commands are answered.
 *
 * A connection is MUTE while it is unknown which command a reply belongs to: it is
 * from before the attach, or an error came. Its writes are quarantined. It is followed
 * again when it seems certain that nothing is owed:
 *  - it has been silent for BMC_APPLY_NS; or
 *  - it has started to send a command while everything that memcached sent was
 *    acknowledged, GOOD_TIMES in GOOD_NS, and each time as many replies were
 *    missing, never less: a client that waits for its replies.
 * If that was wrong, a reply of the wrong kind or one too many will tell.
 *
 * While the cache sleeps (sleep.bpf.h), a connection that sends something is ASLEEP,
 * which is like MUTE, but what memcached sends is not looked at. When both are awake
 * again memcached's socket tells how far that is, and the connection is MUTE.
 *
 * Where a stream cannot be walked at all (STREAM_LOST), each segment flushes. A
 * command stream is found again when memcached has answered, the client goes
 * on, and all of its segment turns out to be commands; or when FOUND_TIMES
 * segments in a row do. The stream of a client that never waits is found by a guess: a
 * line that looks like a set's is taken for one, and its length leads to the next
 * command. A guess that began inside a data block fails where that block ends, and no
 * block is longer than an item: a guess that holds for GUESS_BYTES is right. Until then
 * each segment flushes.
 *
 * What comes over a connection that memcached has CLOSED is read by nobody.
 */
#ifndef FLOW_BPF_H
#define FLOW_BPF_H

enum {
	TCP_FIN = 0x01,
	TCP_RST = 0x04,
	STEPS_MAX = 8192, /* commands of one packet: GRO makes them 64 KiB long */
	GOOD_TIMES = 8,
	GOOD_NS = 250000000,
	FOUND_TIMES = 8,
	GUESS_BYTES = 2 << 20, /* twice memcached's default for -I */
	GUESS_LINES = 24, /* at a segment's start, where a guess may begin */
	GETS_MAX = 8, /* of one go */
	/* Instead of what is left of a data block: */
	STREAM_LOST = -1, /* something is missing before what comes next */
	LINE_GOES_ON = -2, /* a read's long line, up to its end */
};

/* What is owed for a command is owed no longer. */
static __always_inline void owed_end(const struct bmc_owed *owed, __u64 what,
				     bool done)
{
	struct bmc_global *g;

	if (what & OWED_WRITE)
		write_end(owed->hash, what, done);
	if (what & OWED_FLUSH) {
		g = cache_global();
		if (g)
			(void)__sync_fetch_and_add(&g->word, BMC_GEN);
	}
}

/* The hash of the key at `at` of the window. */
__noinline __u64 window_hash(struct window *w, __u32 at, __u32 klen)
{
	__u32 words = klen / 8;
	__u64 sum = cfg.seed[0];

	if (!w || klen > BMC_KEY_MAX)
		return 0;
	for (__u32 i = 0; i < KEY_WORDS; i++) {
		__u64 word = window_word(w, at + i * 8);

		if (i >= words) {
			sum += hash_word(i, word & ((1ULL << klen % 8 * 8) - 1));
			break;
		}
		sum += hash_word(i, word);
	}
	return hash_end(sum);
}

/* What bpf_loop() hands from one command or reply of a packet to the next. */
struct walker {
	struct __sk_buff *skb;
	struct bmc_scratch *s;
	struct bmc_stats *st;
	struct bmc_flow *flow; /* NULL: replies are not followed */
};

/* How much of the packet is not in the window yet. */
static __always_inline __u32 walk_len(const struct walk *w)
{
	return READ_ONCE(w->end) - READ_ONCE(w->loaded);
}

/* Gets as much of the packet into the window as fits behind what is there. */
static __always_inline bool walk_load(struct __sk_buff *skb,
				      struct bmc_scratch *s)
{
	struct walk *w = &s->walk;
	struct window *win = &s->window;
	__u64 have = win->len - win->at, from = win->at;
	__u32 more = walk_len(w);

	barrier_var(have);
	barrier_var(from);
	if (have > LINE_MAX || from > WINDOW)
		return false;
	/* For Linux 6.1, which loses that: see bounded(). */
	barrier_var(have);
	have &= 511;
	if (have && from)
		bpf_probe_read_kernel(win->bytes, have, win->bytes + from);
	if (more > WINDOW - LINE_MAX)
		more = WINDOW - LINE_MAX;
	if (!skb_load(skb, w->loaded, win->bytes + have, more, WINDOW - LINE_MAX))
		return false;
	win->at = 0;
	win->len = have + more;
	w->loaded += more;
	return true;
}

/* Goes behind head and block of what was parsed. */
static __always_inline void walk_on(struct bmc_scratch *s, __u32 head, __u32 block)
{
	struct walk *w = &s->walk;
	struct window *win = &s->window;
	__u32 have = win->len - win->at;

	w->block = block;
	if (head + block <= have) {
		win->at += head + block;
		return;
	}
	block -= have - head;
	win->at = win->len;
	if (block <= walk_len(w)) {
		w->loaded += block;
		return;
	}
	w->skip = block - walk_len(w);
	w->loaded = w->end;
}

/* Whether the command's data block is in the window, and ends as it should. */
static __always_inline bool window_is_whole(const struct window *win,
					    const struct command *c)
{
	__u32 end = win->at + c->head + c->block;

	return c->block <= WINDOW && end <= win->len &&
	       (__u16)window_word(win, end - 2) == TEXT_CRLF;
}

/* How the reply to a command will be recognised. */
enum owing {
	OWING_NONE = 0, /* not at all */
	OWING_RING, /* the command stands in the ring */
	OWING_COUNT, /* by the number of replies before it */
};

/*
 * Whether the command at hand stands in the ring or is counted, when the ring looked
 * full or earlier commands were counted and are not all answered. Quiet meta
 * commands may have a reply each, which looks like those of meta commands that must
 * have one: with both the replies cannot be counted.
 */
__noinline int walk_count(struct bmc_flow *flow, struct bmc_scratch *s)
{
	struct command *c;
	struct walk *w;

	if (!flow || !s)
		return OWING_NONE;
	w = &s->walk;
	c = &s->command;
	if (!w->loose && (__s32)(flow->loose - READ_ONCE(flow->answered)) <= 0) {
		flow->loose_open = false;
		flow->loose_quiet = false;
		flow->loose_meta = false;
	}
	flow->in_tail = READ_ONCE(flow->tail);
	if (!flow->loose_open && flow->head + w->owed - flow->in_tail < BMC_OWED)
		return OWING_RING;
	flow->loose_open = true;
	flow->loose_quiet |= c->reply == REPLY_META && c->optional;
	flow->loose_meta |= c->reply == REPLY_META && !c->optional;
	/* Its own reply or, if it may have none, that to the next command. */
	w->loose = flow->asked + w->asked + 1;
	if (!(flow->loose_quiet && flow->loose_meta))
		return OWING_COUNT;
	w->followed = false;
	w->doubt = true;
	w->lag = DEEP_NS;
	flow->deep = true;
	flow_mute(flow);
	return OWING_NONE;
}

/*
 * How the reply to the command at hand will be recognised. Most often without a look at
 * the line that the other way writes.
 */
static __always_inline int walk_owing(struct bmc_flow *flow,
				      struct bmc_scratch *s)
{
	const struct walk *w = &s->walk;

	if (!flow || !w->followed)
		return OWING_NONE;
	if (likely(!flow->loose_open &&
		   flow->head + w->owed - flow->in_tail < BMC_OWED))
		return OWING_RING;
	return walk_count(flow, s);
}

static __always_inline void walk_owe(struct bmc_flow *flow, struct walk *w,
				     __u64 hash, __u64 what)
{
	__u32 place = (flow->head + w->owed) & (BMC_OWED - 1);
	struct bmc_owed *owed = &flow->owed[place];

	owed->hash = hash;
	owed->before = flow->asked + w->asked;
	smp_store_release(owed->what, what);
	w->alike |= !!(what & OWED_ALIKE);
	w->owed++;
}

/* The same for a command that writes no key, if there is room. */
static __always_inline int walk_owe_no_key(struct bmc_flow *flow,
					   struct bmc_scratch *s, __u64 what)
{
	int owing = walk_owing(flow, s);

	if (owing == OWING_RING && flow)
		walk_owe(flow, &s->walk, 0, what);
	return owing;
}

/* What is owed for the command, whatever it does. */
static __always_inline __u64 command_owed(const struct command *c)
{
	return c->reply | (c->optional ? OWED_OPTIONAL : 0) |
	       c->opcode << OWED_OPCODE;
}

/* How long the get of one key at `at` of the window is; 0 if it is not that. */
static __always_inline __u32 window_get(const struct window *win, __u32 at)
{
	__u32 key = at + GET_LEN, end;

	if ((__u32)window_word(win, at) != TEXT_GET)
		return 0;
	end = token_end(win, key, KEY_WORDS);
	if ((__u16)window_word(win, end) != TEXT_CRLF || end == key ||
	    end + 2 > win->len)
		return 0;
	return end + 2 - at;
}

/*
 * The gets of one key that come next in the window, all at once: most of what is
 * pipelined. True if there was one.
 */
__noinline int walk_gets(struct bmc_scratch *s)
{
	const struct window *win;
	__u32 at, n, len;

	if (!s)
		return false;
	win = &s->window;
	at = win->at;
	for (n = 0; n < GETS_MAX; n++) {
		len = window_get(win, at);
		if (!len)
			break;
		at += len;
	}
	if (!n)
		return false;
	s->window.at = at;
	s->walk.block = 0;
	s->walk.asked += n;
	return true;
}

/* Whether nothing of the packet is left. */
static __always_inline bool walk_at_end(const struct bmc_scratch *s)
{
	return s->window.at >= s->window.len && s->walk.loaded >= s->walk.end;
}

/* Whether all of the packet was walked, but for a line that goes on. */
static __always_inline bool walk_is_over(const struct bmc_scratch *s)
{
	return s->walk.loaded >= s->walk.end &&
	       s->window.len - s->window.at == s->walk.part;
}

/* A key that the command at hand writes. */
__noinline int walk_write(struct bmc_scratch *s, struct bmc_flow *flow, __u64 what)
{
	const struct command *c;
	struct bmc_global *g = cache_global();
	struct bmc_stats *st = stats();
	__u64 hash, ticket = 0;
	bool pending;
	int owing;

	if (!s || !st || !g)
		return 0;
	c = &s->command;
	owing = walk_owing(flow, s);
	pending = owing == OWING_RING;
	if (owing == OWING_COUNT && flow)
		ticket = ticket_of(flow, s->walk.loose);
	hash = window_hash(&s->window, c->key, c->klen);
	s->walk.hash = hash;
	st->invalidations++;
	if (c->expiry != EXPIRY_KEEP)
		what |= (__u64)c->expiry << OWED_EXPIRY |
			(__u64)expiry_second(c->exptime) << OWED_END;
	what |= OWED_WRITE | write_begin(hash, pending,
					 ticket ? DEEP_NS : s->walk.lag, ticket);
	if (c->expiry != EXPIRY_KEEP)
		expiry_less(hash, READ_ONCE(g->word), what >> OWED_END);
	if (pending && flow)
		walk_owe(flow, &s->walk, hash, what);
	else if (!ticket)
		st->write_untracked++;
	return 0;
}

/*
 * Notes when a delayed flush_all takes effect: each memcached waits for one. The one
 * that finds no room any more is returned, else one that is over. Before the word of
 * the cache is moved: who looks meanwhile may find it nowhere.
 */
static __always_inline __u64 due_put(struct bmc_global *g, __u64 due, __u64 now)
{
	for (int i = 0; i < BMC_DUES && due + CLOCK_LAG * SECOND >= now; i++)
		due = __sync_lock_test_and_set(&g->due[i], due);
	return due;
}

/* The flush_all at hand. */
static __always_inline void
walk_flush(struct bmc_scratch *s, struct bmc_flow *flow, struct bmc_stats *st)
{
	__u64 now = bpf_ktime_get_coarse_ns(), until, over = 0, ticket = 0;
	const struct command *c = &s->command;
	struct bmc_global *g = cache_global();

	if (walk_owe_no_key(flow, s, command_owed(c) | OWED_FLUSH) == OWING_COUNT &&
	    flow)
		ticket = ticket_of(flow, s->walk.loose);
	if (!g)
		return;
	/* memcached does it a second early; its clock lags likewise: see
	 * expiry_life().
	 */
	if (c->exptime > 0)
		over = due_put(g,
			       (expiry_second(c->exptime) + CLOCK_LAG - 1) *
				       SECOND,
			       now) +
		       (CLOCK_LAG + 1) * SECOND;
	/* Until one that found no room is over, nothing is cached. */
	until = now + (ticket ? DEEP_NS : s->walk.lag);
	if (over > until)
		flush_all(st, over);
	else
		flush_all_held(st, until, ticket);
}

/* The next command in the window. Returns 1 after the last, for bpf_loop(). */
static __always_inline long command_step(struct walker *k)
{
	struct bmc_scratch *s = k->s;
	struct bmc_flow *flow = k->flow;
	struct walk *w = &s->walk;
	struct window *win = &s->window;
	struct command *c = &s->command;
	__u64 what;
	int found;

	if (w->keys)
		goto key;
	if (walk_at_end(s))
		return 1;
	if (w->line) {
		found = window_line(win);
		if (!found && win->len - win->at > LINE_MAX) {
			win->at += LINE_MAX; /* as far as was looked */
			return 0;
		}
		if (!found) {
			win->at = win->len;
			return w->loaded < w->end ? !walk_load(k->skb, s) : 1;
		}
		w->line = false;
		win->at += found;
		return 0;
	}
	if (!w->binary && (__u32)window_word(win, win->at) == TEXT_GET &&
	    walk_gets(s))
		return walk_at_end(s);
	found = command_parse(win, c, w->binary);
	if (found < 0) {
		if (w->loaded < w->end) {
			if (walk_load(k->skb, s))
				return 0;
			goto lost;
		}
		w->part = win->len - win->at;
		return 1;
	}
	if (!found) {
		__u32 four = window_word(win, win->at);

		/* "get " and "gets " may name any number of keys. */
		if (w->binary || win->len - win->at < LINE_MAX ||
		    window_line(win) || (four != TEXT_GET && four != TEXT_GETS))
			goto lost;
		c->kind = COMMAND_READ;
		c->reply = REPLY_LIST;
		w->line = true;
	}
	if (c->reply == REPLY_STREAM) {
		w->doubt = true;
		w->followed = false;
		flow_mute(flow);
	}
	what = command_owed(c);
	if (c->kind == COMMAND_READ) {
		if (c->reply == REPLY_BINARY && c->optional)
			goto on; /* see is_quiet_read() */
		if (c->reply != REPLY_LIST)
			walk_owe_no_key(flow, s, what);
		goto asked;
	}
	k->st->write_requests++;
	k->st->tcp_writes += !!flow;
	if (c->kind == COMMAND_FLUSH) {
		walk_flush(s, flow, k->st);
		goto asked;
	}
key:
	what = command_owed(c);
	w->keys = false;
	if (c->keys) {
		/* The reply comes after the last of the keys. */
		__u32 next = window_token(win, c->keys, win->at + c->head);

		w->keys = (next & 0xffff) < next >> 16;
		if (w->keys)
			what |= OWED_OPTIONAL;
	}
	if (c->block) {
		w->blocks = true;
		what |= OWED_BLOCK;
		if (c->reply == REPLY_BINARY || window_is_whole(win, c))
			what |= OWED_WHOLE;
	}
	if (c->klen && c->klen <= BMC_KEY_MAX)
		walk_write(s, flow, what);
	else
		walk_owe_no_key(flow, s, what); /* too long, as its reply says */
	if (w->keys) {
		command_next_key(win, c);
		return 0;
	}
asked:
	if (!c->optional)
		w->asked++;
	else if (c->reply & (REPLY_META | REPLY_BINARY))
		w->doubt = true; /* there may be one nevertheless */
	if (w->line) {
		win->at += LINE_MAX;
		return 0;
	}
on:
	walk_on(s, c->head, c->block);
	return walk_at_end(s);
lost:
	w->lost = true;
	return 1;
}

static long walk_command(__u32 i, void *arg)
{
	(void)i;
	return command_step(arg);
}

/*
 * The commands of the packet from walk.loaded on, behind what is in the window
 * already. Moves the words of the buckets that they change; walk.lost if one is
 * not understood. Here and below `flow` may be NULL.
 */
static __always_inline void walk_commands(struct __sk_buff *skb,
					  struct bmc_scratch *s,
					  struct bmc_stats *st,
					  struct bmc_flow *flow)
{
	struct walker k = { .skb = skb, .s = s, .st = st, .flow = flow };

	/* Most packets hold one, which is not worth a loop. */
	if (!command_step(&k))
		bpf_loop(STEPS_MAX, walk_command, &k, 0);
	if (!walk_is_over(s) || s->walk.keys)
		s->walk.lost = true;
}

/* Nothing of the text is in the window yet. */
static __always_inline void window_empty(struct window *w)
{
	w->at = 0;
	w->len = 0;
}

/* Stands at the text of the packet. */
static __always_inline void walk_begin(struct bmc_scratch *s)
{
	__builtin_memset(&s->walk, 0, sizeof(s->walk));
	s->walk.loaded = s->text;
	s->walk.end = s->text + s->text_len;
	s->walk.lag = BMC_APPLY_NS;
}

/* The commands of a UDP datagram. */
__noinline int walk_datagram(struct __sk_buff *skb, struct bmc_scratch *s)
{
	struct bmc_stats *st = stats();
	struct walk *w;

	if (!s || !st)
		return 0;
	w = &s->walk;
	window_empty(&s->window);
	walk_begin(s);
	walk_commands(skb, s, st, NULL);
	if (w->lost || w->part || w->skip || w->line) {
		st->tcp_unparsed++;
		flush_all(st, bpf_ktime_get_coarse_ns() + BMC_APPLY_NS);
	}
	return 0;
}

/* The first segment of a connection that is seen. Is it its first at all? */
static __always_inline bool flow_start(struct bmc_flow *flow,
				       const struct bmc_scratch *s, __u32 seq,
				       __u64 now)
{
	struct bmc_global *g = cache_global();
	__s64 seen;

	flow->in_next = seq;
	flow->out_next = s->snd_nxt;
	flow->in_seen = s->snd_nxt;
	flow->in_last = now;
	if (!s->received && seq == s->rcv_nxt) {
		smp_store_release(flow->mode, FLOW_FOLLOWED);
		return true;
	}
	flow->in_skip = STREAM_LOST;
	flow->out_skip = STREAM_LOST;
	flow->doubt = true;
	/* Silent ever since the attach. */
	seen = g ? bpf_ktime_get_coarse_ns() - READ_ONCE(g->since) : 0;
	if (seen > BMC_APPLY_NS)
		flow->in_last = now - seen;
	smp_store_release(flow->mode, FLOW_MUTE);
	return false;
}

/*
 * The flow is what another connection has left, whose client had the same
 * address and port: memcached's socket is new, and this its first segment.
 */
static __always_inline void flow_restart(struct bmc_flow *flow)
{
	if (!turn_take(&flow->out_turn))
		return;
	flow_reset(flow);
	turn_end(&flow->out_turn);
}

/* The cache is asleep: what memcached sends from now on will not be looked at. */
static __always_inline void flow_sleep(struct bmc_flow *flow)
{
	if (flow->mode == FLOW_FOLLOWED)
		flow_mute(flow);
	if (flow->mode == FLOW_MUTE)
		smp_store_release(flow->mode, FLOW_ASLEEP);
}

/* The flow fell asleep with the cache, which is awake by now. */
static __always_inline bool flow_may_wake(const struct bmc_flow *flow,
					  const struct bmc_scratch *s)
{
	return flow->mode == FLOW_ASLEEP && !s->asleep;
}

/*
 * What memcached has sent since then was not looked at: its socket knows how much. How
 * much it owes nobody knows.
 */
static __always_inline void flow_wake(struct bmc_flow *flow,
				      struct bmc_scratch *s)
{
	if (!turn_take(&flow->out_turn))
		return;
	flow->out_next = s->snd_nxt;
	flow->out_skip = STREAM_LOST;
	flow->in_seen = s->snd_nxt;
	flow->deep = true;
	s->walk.lag = DEEP_NS;
	smp_store_release(flow->mode, FLOW_MUTE);
	turn_end(&flow->out_turn);
}

/*
 * A client goes on with a command, having acknowledged all that memcached sent.
 * Is it time to follow its connection?
 */
static __always_inline void flow_heal(struct bmc_flow *flow, __u64 now,
				      bool paused)
{
	__u32 missing = flow->asked - READ_ONCE(flow->answered);

	if (!turn_take(&flow->out_turn))
		return;
	if (flow->out_skip == (__u32)STREAM_LOST) {
		flow->out_skip = 0;
		flow->out_part = 0;
		flow->doubt = true;
	}
	if (flow->doubt || (__s32)(missing - flow->base) < 0) {
		flow->doubt = false;
		flow->base = missing;
		flow->good = 0;
		flow->good_since = now;
	} else if (missing == flow->base && flow->in_seen != flow->out_next) {
		flow->good++;
	}
	if (paused ||
	    (flow->good >= GOOD_TIMES && now - flow->good_since > GOOD_NS)) {
		flow->tail = flow->head;
		flow->answered = flow->asked;
		flow->deep = false;
		flow->vague = false;
		flow->blocks = false;
		flow->loose = flow->asked;
		smp_store_release(flow->mode, FLOW_FOLLOWED);
	}
	turn_end(&flow->out_turn);
}

/*
 * Where in the segment the next command starts, and what of it is in the window
 * already. False if there is nothing to walk; w->lost if nobody can tell.
 */
static __always_inline bool flow_continue(struct __sk_buff *skb,
					  struct bmc_flow *flow,
					  struct bmc_scratch *s)
{
	__u64 now = flow_now();
	struct walk *w = &s->walk;
	__u32 seq = bpf_ntohl(s->tcp.seq), len = walk_len(w), n;
	bool paused, answered, caught_up;
	bool idle = (__s64)(now - flow->in_last) > BMC_APPLY_NS;
	__s32 ahead;
	int found;

	if (flow->mode == FLOW_NEW || flow->mode == FLOW_CLOSED ||
	    flow_may_wake(flow, s) || seq != flow->in_next ||
	    flow->in_skip == (__u32)STREAM_LOST) {
		found = socket_look(skb, s);
		if (found == SOCKET_CLOSED ||
		    (found == SOCKET_NONE && flow->mode == FLOW_CLOSED))
			return false;
		if (flow->mode == FLOW_CLOSED)
			flow_restart(flow);
		if (found == SOCKET_NONE || flow->mode == FLOW_CLOSED) {
			w->lost = true;
			return false;
		}
		/* Without a socket yet, it may be the second. */
		if (!s->received && seq == s->rcv_nxt &&
		    (idle ||
		     (found == SOCKET_FULL && flow->mode != FLOW_FOLLOWED)))
			flow_restart(flow);
		if (flow->mode == FLOW_NEW)
			w->opens = flow_start(flow, s, seq, now);
		else if (flow_may_wake(flow, s) && found == SOCKET_FULL)
			flow_wake(flow, s);
	}
	ahead = seq - flow->in_next;
	if (ahead < 0) {
		n = -ahead;
		if (n > len)
			n = len;
		/* Seen before. If the socket has not got it, it was dropped, and
		 * may have been another text; but the middle of a data block is
		 * one whatever it says.
		 */
		if ((__s32)(seq + n - s->rcv_nxt) > 0) {
			if ((__s32)(seq - flow->in_block) < 0 ||
			    flow->in_skip == (__u32)STREAM_LOST) {
				flow->in_next = seq + len;
				w->lost = true;
				return false;
			}
			write_begin(flow->in_hash, false, w->lag, 0);
		}
		if (n == len)
			return false;
		w->loaded += n;
		len -= n;
		seq += n;
		ahead = 0;
	}
	if (ahead > 0 && flow->in_skip < (__u32)LINE_GOES_ON &&
	    ahead <= (__s32)flow->in_skip) {
		flow->in_skip -= ahead;
		ahead = 0;
	}
	paused = (__s64)(now - flow->in_last) > BMC_APPLY_NS;
	caught_up = bpf_ntohl(s->tcp.ack_seq) == flow->out_next;
	answered = flow->in_seen != flow->out_next;
	/* Better than a guess: a command starts here. */
	if (flow->guess && (paused || (answered && caught_up))) {
		flow->guess = false;
		flow->in_skip = STREAM_LOST;
	}
	if (ahead) {
		w->lost = true;
	} else if (flow->in_skip == (__u32)STREAM_LOST) {
		/* Not behind a hole that memcached waits to be filled. */
		if ((__s32)(seq - s->rcv_nxt) <= 0) {
			flow->in_skip = 0;
			flow->in_part = 0;
			w->opens = true;
			w->resumes = true;
			w->probes = !paused && !(answered && caught_up);
		} else {
			w->lost = true;
		}
	}
	w->guesses = flow->guess;
	/* Who goes on without the answers may always have some coming. */
	if (!caught_up)
		flow->doubt = true;
	if (caught_up && !w->lost && !w->guesses && !flow->in_skip &&
	    !flow->in_part) {
		/* Quiet commands without a reply, or memcached is stuck. */
		if (paused && flow->head != READ_ONCE(flow->tail))
			flow_mute(flow);
		if (flow->mode == FLOW_MUTE)
			flow_heal(flow, now, paused);
	}
	flow->in_seen = flow->out_next;
	flow->in_last = now;
	flow->in_next = seq + len;
	if (w->lost)
		return false;
	w->followed = flow->mode == FLOW_FOLLOWED && !s->asleep;
	if (flow->in_skip == (__u32)LINE_GOES_ON) {
		w->line = true;
		return true;
	}
	n = flow->in_skip < len ? flow->in_skip : len;
	flow->in_skip -= n;
	w->loaded += n;
	/* Not applied before the end of its data block. */
	if (n && !w->followed)
		write_begin(flow->in_hash, false, w->lag, 0);
	return n < len;
}

/* Puts the line that the last segment began into the window, then the packet. */
static __always_inline bool flow_load(struct __sk_buff *skb,
				      struct bmc_scratch *s, const __u8 *line,
				      __u64 part)
{
	if (s->window.len) { /* by text_peek() */
		s->walk.loaded = s->walk.end;
		return true;
	}
	barrier_var(part);
	if (part < LINE_MAX) {
		bpf_probe_read_kernel(s->window.bytes, part, line);
		s->window.len = part;
	}
	return walk_load(skb, s);
}

/* Keeps the line that the segment begins and does not end. */
static __always_inline __u32 flow_keep(struct bmc_scratch *s, __u8 *line)
{
	__u64 part = s->walk.part;

	if (!part)
		return 0;
	barrier_var(part);
	if (part < LINE_MAX)
		bpf_probe_read_kernel(line, part,
				      s->window.bytes +
					      (s->window.at & (WINDOW - 1)));
	return s->walk.part;
}

/* Gets all of the text into the window, if it fits. */
static __always_inline bool text_peek(struct __sk_buff *skb,
				      struct bmc_scratch *s)
{
	__u32 len = s->text_len;

	if (!skb_load(skb, s->text, s->window.bytes, len, WINDOW - LINE_MAX))
		return false;
	s->window.len = len;
	return true;
}

/*
 * Whether the segment goes on where the last one ended, with a command, on a
 * connection that is followed. Then it is noted.
 */
static __always_inline bool flow_goes_on(struct bmc_flow *flow,
					 const struct bmc_scratch *s)
{
	__u32 seq = bpf_ntohl(s->tcp.seq);
	__u64 now = flow_now();

	if (READ_ONCE(flow->mode) != (s->asleep ? FLOW_ASLEEP : FLOW_FOLLOWED) ||
	    seq != flow->in_next ||
	    flow->in_skip | flow->in_part | flow->binary | flow->deep |
		    flow->guess ||
	    s->tcp.flags & (TCP_FIN | TCP_RST) ||
	    now - flow->in_last > BMC_APPLY_NS)
		return false;
	flow->in_last = now;
	flow->in_next = seq + s->text_len;
	/* That, or less: then it sends more before it has got all. */
	flow->in_seen = bpf_ntohl(s->tcp.ack_seq);
	return true;
}

/*
 * What most segments are, with as little code as can be: one get of one key, from
 * its first byte to its last. False if it is not that; nothing has changed then.
 */
static __always_inline bool flow_in_get(struct bmc_scratch *s,
					struct bmc_flow *flow)
{
	struct bmc_stats *st = stats();

	if (!st || window_get(&s->window, 0) != s->text_len)
		return false;
	st->tcp_requests++;
	flow->in_block = flow->in_next;
	flow->asked++;
	return true;
}

/* What was found out on the walk through the segment. */
static __always_inline void flow_note(struct bmc_flow *flow,
				      const struct walk *w, struct bmc_stats *st)
{
	st->tcp_requests += w->asked;
	flow->in_hash = w->hash;
	flow->in_block = flow->in_next;
	if (!w->part && !w->line)
		flow->in_block -= w->block - w->skip;
	/* From now on the replies may come; unless meanwhile it was found that
	 * they cannot be told apart.
	 */
	if (w->owed) {
		(void)__sync_fetch_and_add(&flow->head, w->owed);
		if (w->alike)
			WRITE_ONCE(flow->alike, true);
		if (READ_ONCE(flow->mode) != FLOW_FOLLOWED)
			flow_mute(flow);
	}
	flow->asked += w->asked;
	if (w->loose) {
		(void)__sync_lock_test_and_set(&flow->loose, w->loose);
		if (READ_ONCE(flow->mode) != FLOW_FOLLOWED)
			flow_mute(flow);
	}
	if (!w->followed)
		flow->blocks |= w->blocks;
	if (w->doubt)
		WRITE_ONCE(flow->doubt, true);
}

/* Likewise what comes next to gets: one set, its data block included. */
__noinline int flow_in_set(struct bmc_scratch *s, struct bmc_flow *flow)
{
	struct bmc_stats *st = stats();
	struct command *c;

	if (!s || !st || !flow)
		return false;
	c = &s->command;
	if (!command_set(&s->window, c) || !window_is_whole(&s->window, c) ||
	    c->head + c->block != s->text_len)
		return false;
	st->write_requests++;
	st->tcp_writes++;
	walk_begin(s);
	s->walk.followed = !s->asleep;
	s->walk.blocks = true;
	s->walk.block = c->block;
	walk_write(s, flow, REPLY_LINE | OWED_BLOCK | OWED_WHOLE);
	s->walk.asked = 1;
	flow_note(flow, &s->walk, st);
	return true;
}

/*
 * Looks for a line near the segment's start with which a store command may begin, and
 * goes there. If there is none, the walk will fail at once.
 */
__noinline int walk_guess(struct bmc_scratch *s)
{
	struct window *win;
	struct command *c;
	__u32 line;

	if (!s)
		return 0;
	win = &s->window;
	c = &s->command;
	for (int i = 0; i < GUESS_LINES; i++) {
		if (command_parse(win, c, false) > 0 &&
		    c->kind == COMMAND_WRITE && c->block)
			return 0;
		line = window_line(win);
		if (!line)
			break;
		win->at += line;
	}
	win->at = 0;
	return 0;
}

/*
 * The segment, of `len` bytes, does not contradict the guess where its commands start:
 * is that certain by now? It is if many segments in a row began and ended with a
 * command, or if no data block can be as long as all that was walked.
 */
static __always_inline void flow_guess(struct bmc_flow *flow,
				       const struct walk *w, __u32 len)
{
	if (w->lost)
		return;
	if (!flow->guess)
		flow->guessed = 0;
	if (flow->in_skip || flow->in_part)
		flow->found = 0;
	else
		flow->found++;
	flow->guessed += len;
	flow->guess = flow->found < FOUND_TIMES && flow->guessed < GUESS_BYTES;
}

/* Any other segment to memcached; `next` if flow_goes_on(). */
__noinline int flow_in_any(struct __sk_buff *skb, struct bmc_scratch *s,
			   struct bmc_flow *flow, bool next)
{
	struct bmc_stats *st = stats();
	struct walk *w;

	if (!s || !st || !flow)
		return 0;
	w = &s->walk;
	walk_begin(s);
	if (flow->deep || flow->loose_open)
		w->lag = DEEP_NS;
	w->followed = next && !s->asleep;
	if (walk_len(w) && (next || flow_continue(skb, flow, s))) {
		if (!flow_load(skb, s, flow->in_line, flow->in_part))
			w->lost = true;
		if (w->opens)
			flow->binary = window_at(&s->window, 0) == MAGIC_REQUEST;
		w->binary = flow->binary;
		if (w->probes && !w->binary)
			walk_guess(s);
		walk_commands(skb, s, st, flow);
		flow->in_part = flow_keep(s, flow->in_line);
		flow->in_skip = w->line ? (__u32)LINE_GOES_ON : w->skip;
		if (w->probes || w->guesses)
			flow_guess(flow, w, s->text_len);
		else if (w->resumes && (w->skip || w->part || w->line))
			w->lost = true;
		flow_note(flow, w, st);
	} else if (w->guesses && !w->lost) {
		flow_guess(flow, w, s->text_len);
	}
	if (flow->guess) {
		/* Where its commands start is not certain yet. */
		st->tcp_unparsed++;
		flow_mute(flow);
		flush_all(st, bpf_ktime_get_coarse_ns() + w->lag);
	}
	if (w->lost) {
		st->tcp_unparsed++;
		flow->guess = false;
		flow->found = 0;
		flow->in_skip = STREAM_LOST;
		flow->in_part = 0;
		flow_mute(flow);
		flush_all(st, bpf_ktime_get_coarse_ns() + w->lag);
	}
	if (s->asleep)
		flow_sleep(flow);
	/* Asleep it owes nothing, and when memcached ends it will not be seen. */
	if (s->tcp.flags & TCP_RST || (s->asleep && s->tcp.flags & TCP_FIN))
		flow_leave(flow);
	else if (s->tcp.flags & TCP_FIN)
		flow_mute(flow);
	turn_end(&flow->in_turn);
	return 0;
}

/* A TCP segment to memcached. */
static __always_inline void flow_in(struct __sk_buff *skb, struct bmc_scratch *s)
{
	struct bmc_flow *flow = flow_take(&s->request.peers, WAY_IN);
	struct bmc_stats *st;
	bool next;

	s->asleep = cache_sleeps();
	if (unlikely(!flow && s->text_len))
		flow = flow_new(skb, s);
	if (likely(flow)) {
		next = flow_goes_on(flow, s);
		if (likely(next && text_peek(skb, s) &&
			   (flow_in_get(s, flow) || flow_in_set(s, flow))))
			turn_end(&flow->in_turn);
		else
			flow_in_any(skb, s, flow, next);
	} else if (s->text_len && !s->dead) {
		st = stats();
		if (!st)
			return;
		st->tcp_unfollowed++;
		flush_all(st, bpf_ktime_get_coarse_ns() + BMC_APPLY_NS);
	}
}

enum answer { ANSWERS_NONE = 0, ANSWERS_LATER, ANSWERS };

/* The next one in the ring; what it says is 0 if there is none. */
static __always_inline struct bmc_owed *flow_next(struct bmc_flow *flow)
{
	return &flow->owed[flow->tail & (BMC_OWED - 1)];
}

/*
 * Nothing is owed but replies to gets. That something was put into the ring is
 * said after it is there: who takes the word back has to look again.
 */
static __always_inline void flow_alone(struct bmc_flow *flow)
{
	(void)__sync_lock_test_and_set(&flow->alike, false);
	if (READ_ONCE(flow_next(flow)->what))
		WRITE_ONCE(flow->alike, true);
}

/*
 * Counts a reply that answers no command of the ring: one to a get, or to any command
 * that found the ring full. An error, which suits every command, has to be owed.
 */
static __always_inline int flow_count(struct bmc_flow *flow,
				      const struct reply *r)
{
	bool loose = (__s32)(READ_ONCE(flow->loose) - flow->answered) > 0;

	if (r->kind & REPLY_LIST && !r->error) {
		flow->answered++;
		return ANSWERS;
	}
	if (READ_ONCE(flow->asked) == flow->answered)
		return ANSWERS_NONE;
	if (loose) {
		/* memcached may have taken a data block for commands. */
		if (r->refused)
			return ANSWERS_NONE;
		/* To a quiet command, which is not counted. */
		if (r->kind & REPLY_BINARY && opcode_of(r->opcode).quiet)
			return ANSWERS;
		if (r->kind & REPLY_META && READ_ONCE(flow->loose_quiet))
			return r->error ? ANSWERS_NONE : ANSWERS;
	} else if (!(r->kind & REPLY_LIST)) {
		return ANSWERS_NONE;
	}
	flow->answered++;
	return ANSWERS;
}

/*
 * A reply has come: takes the command out of the ring whose turn it is, if it is
 * not a get's. Says LATER if that one needs no reply, and this is another's.
 */
__noinline int flow_answer(struct bmc_flow *flow, struct reply *r)
{
	struct bmc_owed *owed;
	__s32 before;
	__u64 what;
	bool its;

	if (!flow || !r)
		return ANSWERS_NONE;
	owed = flow_next(flow);
	what = read_to_write(&owed->what);
	if (!what && READ_ONCE(flow->alike))
		flow_alone(flow);
	before = (__u32)owed->before - flow->answered;
	if (!what || before > 0)
		return flow_count(flow, r);
	its = !before && what & r->kind &&
	      (r->kind != REPLY_BINARY ||
	       (what >> OWED_OPCODE & 0xff) == r->opcode);
	if (what & OWED_OPTIONAL &&
	    (!its || !(what & (REPLY_META | REPLY_BINARY)))) {
		/* memcached keeps a noreply command's error to itself, but its
		 * data block may not have ended where it should: then what comes
		 * behind that is taken for commands, and this is in reply to them.
		 */
		if (r->error && what & OWED_BLOCK && !(what & OWED_WHOLE))
			return ANSWERS_NONE;
		its = false;
	} else if (!its || (r->refused && what & OWED_BLOCK)) {
		/* It may have taken the data block for commands. */
		return ANSWERS_NONE;
	}
	what = __sync_lock_test_and_set(&owed->what, 0);
	flow->tail++;
	if (!(what & OWED_OPTIONAL))
		flow->answered++;
	/* If it was the reply to a later one, that one stays behind. */
	flow->vague |= its && what & OWED_OPTIONAL;
	if (!READ_ONCE(flow_next(flow)->what))
		flow->vague = false;
	owed_end(owed, what,
		 its ? !r->failed
		     : what & OWED_WHOLE && owed_expiry(what) == EXPIRY_SET);
	return its ? ANSWERS : ANSWERS_LATER;
}

/*
 * How much of the window, from `at` on, replies to a get: a value and END, or END
 * alone; 0 if it is not that.
 */
static __always_inline __u32 window_values(const struct window *win, __u32 at)
{
	struct reply r = {};
	__u32 end;

	if (!reply_quick(win, at, win->len, &r) || !(r.kind & REPLY_LIST))
		return 0;
	end = at + r.head + r.block;
	if (r.last)
		return r.head;
	return end + END_LEN <= win->len && is_end(win, end) ? end + END_LEN - at
							     : 0;
}

/* Whether a reply that looks like a get's is one. */
static __always_inline bool flow_counts(const struct bmc_flow *flow)
{
	return !(READ_ONCE(flow->alike) | flow->vague | flow->binary);
}

/* The replies to gets that come next in the window, all at once, if there are. */
__noinline int walk_values(struct bmc_scratch *s, struct bmc_flow *flow)
{
	__u32 at, n, len;

	if (!s || !flow)
		return false;
	at = s->window.at;
	for (n = 0; n < GETS_MAX; n++) {
		len = window_values(&s->window, at);
		if (!len)
			break;
		at += len;
	}
	s->window.at = at;
	flow->answered += n;
	return n;
}

/* Goes behind the next reply in the window, or part of one. */
static __always_inline long reply_step(struct walker *k)
{
	struct bmc_scratch *s = k->s;
	struct walk *w = &s->walk;
	struct window *win = &s->window;
	struct reply *r = &s->reply;
	int found;

	if (walk_at_end(s))
		return 1;
	if (w->followed && flow_counts(k->flow) && walk_values(s, k->flow))
		return walk_at_end(s);
	found = reply_parse(win, r, w->binary);
	if (found < 0) {
		if (w->loaded < w->end) {
			if (walk_load(k->skb, s))
				return 0;
			goto lost;
		}
		w->part = win->len - win->at;
		return 1;
	}
	if (!found)
		goto lost;
	if (!r->last || (r->kind == REPLY_BINARY && is_quiet_read(r->opcode)))
		goto on;
	if (r->closes) {
		/* Whatever was asked, memcached has not read it. */
		w->closed = true;
		return 1;
	}
	if (w->followed) {
		found = flow_answer(k->flow, r);
		if (found == ANSWERS_LATER)
			return 0;
		if (found == ANSWERS_NONE)
			goto lost;
	} else {
		w->asked++;
		w->doubt |= r->refused && READ_ONCE(k->flow->blocks);
	}
on:
	walk_on(s, r->head, r->block);
	return walk_at_end(s);
lost:
	w->lost = true;
	return 1;
}

static long walk_reply(__u32 i, void *arg)
{
	(void)i;
	return reply_step(arg);
}

/* The replies of the packet, likewise. */
__noinline int walk_replies(struct __sk_buff *skb, struct bmc_scratch *s,
			    struct bmc_flow *flow)
{
	struct walker k = { .skb = skb, .s = s, .flow = flow };

	if (!s || !flow)
		return 0;
	if (!reply_step(&k))
		bpf_loop(STEPS_MAX, walk_reply, &k, 0);
	if (!walk_is_over(s) && !s->walk.closed)
		s->walk.lost = true;
	return 0;
}

/*
 * Where in the segment the next reply starts. False if there is nothing to walk;
 * walk.lost if nobody can tell.
 */
static __always_inline bool flow_continue_out(struct bmc_flow *flow,
					      struct bmc_scratch *s,
					      struct bmc_stats *st)
{
	struct walk *w = &s->walk;
	__u32 seq = bpf_ntohl(s->tcp.seq), len = walk_len(w), n;
	__s32 ahead;

	if (READ_ONCE(flow->mode) == FLOW_ASLEEP) {
		/* What came before this was not looked at. */
		flow->out_next = seq;
		flow->out_skip = STREAM_LOST;
	}
	ahead = seq - flow->out_next;
	if (ahead < 0) {
		n = -ahead;
		if (n >= len)
			return false; /* sent again */
		w->loaded += n;
		len -= n;
		seq += n;
	}
	flow->out_next = seq + len;
	if (ahead > 0) {
		w->lost = true;
		return false;
	}
	/* To a command that may have changed anything, and is applied by now. */
	if (READ_ONCE(flow->mode) != FLOW_FOLLOWED &&
	    (READ_ONCE(flow->in_skip) == (__u32)STREAM_LOST ||
	     READ_ONCE(flow->guess)))
		flush_all(st, 0);
	if (flow->out_skip == (__u32)STREAM_LOST)
		return false;
	n = flow->out_skip < len ? flow->out_skip : len;
	flow->out_skip -= n;
	w->loaded += n;
	return n < len;
}

/* The same on the way back: the reply to one get or set. */
static __always_inline bool flow_out_one(struct __sk_buff *skb,
					 struct bmc_scratch *s,
					 struct bmc_flow *flow)
{
	__u32 seq = bpf_ntohl(s->tcp.seq), len = s->text_len;

	if (READ_ONCE(flow->mode) != FLOW_FOLLOWED || seq != flow->out_next ||
	    flow->out_skip | flow->out_part ||
	    s->tcp.flags & (TCP_FIN | TCP_RST) || !text_peek(skb, s))
		return false;
	if (likely(flow_counts(flow) && window_values(&s->window, 0) == len)) {
		flow->answered++;
	} else {
		if (flow->binary || len != STORED_LEN ||
		    window_word(&s->window, 0) != TEXT_STORED)
			return false;
		__builtin_memset(&s->reply, 0, sizeof(s->reply));
		s->reply.kind = REPLY_LINE | REPLY_STATS;
		if (flow_answer(flow, &s->reply) != ANSWERS)
			return false;
	}
	flow->out_next = seq + len;
	return true;
}

/* Any other segment from memcached. */
__noinline int flow_out_any(struct __sk_buff *skb, struct bmc_scratch *s,
			    struct bmc_flow *flow)
{
	struct bmc_stats *st = stats();
	struct walk *w;

	if (!s || !st || !flow)
		return 0;
	w = &s->walk;
	walk_begin(s);
	if (walk_len(w) && flow_continue_out(flow, s, st)) {
		w->followed = READ_ONCE(flow->mode) == FLOW_FOLLOWED;
		w->binary = flow->binary;
		if (!flow_load(skb, s, flow->out_line, flow->out_part))
			w->lost = true;
		walk_replies(skb, s, flow);
		flow->out_skip = w->skip;
		flow->out_part = flow_keep(s, flow->out_line);
		flow->answered += w->asked;
	}
	if (w->lost) {
		flow->out_skip = STREAM_LOST;
		flow->out_part = 0;
		flow_mute(flow);
	}
	if (w->doubt || (w->lost && w->followed && !flow->vague)) {
		/* Not the reply that was expected. */
		st->tcp_unmatched++;
		flush_all(st, bpf_ktime_get_coarse_ns() + BMC_APPLY_NS);
	}
	if (w->closed || s->tcp.flags & (TCP_FIN | TCP_RST))
		flow_close(flow);
	turn_end(&flow->out_turn);
	return 0;
}

/*
 * Whether the client of memcached's socket has not sent anything yet. FIN counts as a
 * byte.
 */
__noinline int socket_is_unasked(struct __sk_buff *skb)
{
	struct bpf_sock *sk = (void *)(long)skb->sk;
	struct bpf_tcp_sock *tcp;

	if (!sk)
		return false;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return false;
	tcp = bpf_tcp_sock(sk);
	return tcp && tcp->bytes_received <= (sk->state != TCP_ESTABLISHED);
}

/* A TCP segment from memcached: which commands does it answer? */
static __always_inline void flow_out(struct __sk_buff *skb, struct bmc_scratch *s)
{
	struct bmc_flow *flow = flow_take(&s->request.peers, WAY_OUT);
	struct bmc_stats *st;

	if (unlikely(flow && flow->mode == FLOW_NEW)) {
		turn_end(&flow->out_turn);
		flow = NULL;
	}
	if (!flow) {
		/* The reply to what? Whatever it was is applied by now. Nothing
		 * was, if memcached refuses a connection that it cannot serve.
		 */
		st = stats();
		if (s->text_len && st && !socket_is_unasked(skb)) {
			st->tcp_unmatched++;
			flush_all(st, 0);
		}
		return;
	}
	if (likely(flow_out_one(skb, s, flow)))
		turn_end(&flow->out_turn);
	else
		flow_out_any(skb, s, flow);
}

#endif /* FLOW_BPF_H */
