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
 * order of the commands; each reply takes its command out, and a write is
 * pending in its bucket (lease.bpf.h) until then. A command that may have no
 * reply (noreply, quiet) is taken out by the next reply that cannot be its own:
 * memcached executes the commands of a connection in order.
 *
 * A connection is MUTE while it is unknown which command a reply belongs to:
 * from before the attach, after an error, when too much is owed. Its writes are
 * quarantined. It is followed again when it seems certain that nothing is owed:
 *  - it has been silent for BMC_APPLY_NS; or
 *  - it has started to send a command while everything that memcached sent was
 *    acknowledged, GOOD_TIMES in GOOD_NS, and each time as many replies were
 *    missing, never less: a client that waits for its replies.
 * If that was wrong, a reply of the wrong kind or one too many will tell.
 *
 * Where a stream cannot be walked at all (STREAM_LOST), each segment flushes. A
 * command stream is found again when memcached has answered, the client goes
 * on, and all of its segment turns out to be commands; or when FOUND_TIMES
 * segments in a row do.
 */
#ifndef FLOW_BPF_H
#define FLOW_BPF_H

enum {
	TCP_FIN = 0x01,
	TCP_RST = 0x04,
	TCP_LISTEN = 10,
	TCP_NEW_SYN_RECV = 12,
	STEPS_MAX = 8192, /* commands of one packet: GRO makes them 64 KiB long */
	GOOD_TIMES = 8,
	GOOD_NS = 250000000,
	FOUND_TIMES = 8,
	/* Instead of what is left of a data block: */
	STREAM_LOST = -1, /* something is missing before what comes next */
	LINE_GOES_ON = -2, /* a read's long line, up to its end */
};

/*
 * Within this time memcached applies what comes over a connection that does not
 * wait: megabytes may be queued before it.
 */
#define DEEP_NS (BMC_LOST_S * SECOND)

enum flow_mode { FLOW_NEW = 0, FLOW_FOLLOWED, FLOW_MUTE };

/* One CPU at a time works on a part of a flow; nobody waits. */
static __always_inline bool turn_take(__u32 *turn)
{
	return !__sync_val_compare_and_swap(turn, 0, 1);
}

static __always_inline void turn_end(__u32 *turn)
{
	smp_store_release(*turn, 0);
}

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

/* Which reply belongs to which command is unknown from now on. */
__noinline int flow_mute(struct bmc_flow *flow)
{
	if (!flow)
		return 0;
	WRITE_ONCE(flow->doubt, true);
	(void)__sync_lock_test_and_set(&flow->mode, FLOW_MUTE);
	for (int i = 0; i < BMC_OWED; i++) {
		struct bmc_owed *owed = &flow->owed[i];
		__u64 what = __sync_lock_test_and_set(&owed->what, 0);

		if (what & OWED_BLOCK)
			flow->blocks = true;
		if (what & OWED_WRITE)
			write_abandon(owed->hash, what,
				      flow->deep ? DEEP_NS : BMC_APPLY_NS);
	}
	return 0;
}

/* The hash of the key at `at` of the window. */
__noinline __u64 window_hash(struct window *w, __u32 at, __u32 klen)
{
	__u32 words = klen / 8;
	__u64 sum = 0;

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
	return hash_end(sum, klen);
}

/* What bpf_loop() hands from one command or reply of a packet to the next. */
struct walker {
	struct __sk_buff *skb;
	struct bmc_scratch *s;
	struct bmc_stats *st;
	struct bmc_flow *flow; /* NULL: replies are not followed */
};

/* Gets as much of the packet into the window as fits behind what is there. */
static __always_inline bool walk_load(struct __sk_buff *skb,
				      struct bmc_scratch *s)
{
	struct walk *w = &s->walk;
	struct window *win = &s->window;
	__u64 have = win->len - win->at, from = win->at;
	__u32 more = w->end - w->loaded;

	barrier_var(have);
	barrier_var(from);
	if (have > LINE_MAX || from > WINDOW)
		return false;
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
	if (block <= w->end - w->loaded) {
		w->loaded += block;
		return;
	}
	w->skip = block - (w->end - w->loaded);
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

/* The flow has room for one more in the ring. */
static __always_inline bool walk_may_owe(struct bmc_flow *flow, struct walk *w)
{
	if (!flow || !w->followed)
		return false;
	if (flow->head + w->owed - READ_ONCE(flow->tail) < BMC_OWED)
		return true;
	w->followed = false;
	w->doubt = true;
	w->lag = DEEP_NS;
	flow->deep = true;
	flow_mute(flow);
	return false;
}

static __always_inline void walk_owe(struct bmc_flow *flow, struct walk *w,
				     __u64 hash, __u64 what)
{
	struct bmc_owed *owed =
		&flow->owed[(flow->head + w->owed) & (BMC_OWED - 1)];

	owed->hash = hash;
	WRITE_ONCE(owed->what, what);
	w->owed++;
}

/* The same for a command that writes no key, if there is room. */
static __always_inline void walk_owe_no_key(struct bmc_flow *flow,
					    struct walk *w, __u64 what)
{
	if (walk_may_owe(flow, w) && flow)
		walk_owe(flow, w, 0, what);
}

/* What is owed for the command, whatever it does. */
static __always_inline __u64 command_owed(const struct command *c)
{
	return c->reply | (c->optional ? OWED_OPTIONAL : 0) |
	       c->opcode << OWED_OPCODE;
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
	__u64 hash;
	bool pending;

	if (!s || !st || !g)
		return 0;
	c = &s->command;
	pending = walk_may_owe(flow, &s->walk);
	hash = window_hash(&s->window, c->key, c->klen);
	s->walk.hash = hash;
	st->invalidations++;
	if (c->expiry != EXPIRY_KEEP)
		what |= (__u64)c->expiry << OWED_EXPIRY |
			(__u64)expiry_second(c->exptime) << OWED_END;
	what |= OWED_WRITE | write_begin(hash, pending, s->walk.lag);
	if (c->expiry != EXPIRY_KEEP)
		expiry_less(hash, READ_ONCE(g->word), what >> OWED_END);
	if (pending && flow)
		walk_owe(flow, &s->walk, hash, what);
	else
		st->write_untracked++;
	return 0;
}

static __always_inline void walk_flush(struct bmc_stats *st, __u64 lag,
				       const struct command *c)
{
	struct bmc_global *g = cache_global();

	if (!g)
		return;
	if (c->exptime > 0) {
		/* memcached's clock lags likewise: see expiry_life(). */
		WRITE_ONCE(g->due[1], READ_ONCE(g->due[0]));
		WRITE_ONCE(g->due[0],
			   (expiry_second(c->exptime) + CLOCK_LAG) * SECOND);
	}
	flush_all(st, bpf_ktime_get_coarse_ns() + lag);
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
	if (win->at >= win->len && w->loaded >= w->end)
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
		walk_owe_no_key(flow, w, what);
		goto asked;
	}
	k->st->write_requests++;
	if (c->kind == COMMAND_FLUSH) {
		walk_flush(k->st, w->lag, c);
		walk_owe_no_key(flow, w, what | OWED_FLUSH);
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
		walk_owe_no_key(flow, w, what); /* too long, as its reply says */
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
	return win->at >= win->len && w->loaded >= w->end;
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
__noinline int walk_commands(struct __sk_buff *skb, struct bmc_scratch *s,
			     struct bmc_flow *flow)
{
	struct walker k = { .skb = skb, .s = s, .st = stats(), .flow = flow };

	if (!s || !k.st)
		return 0;
	/* Most packets hold one, which is not worth a loop. */
	if (!command_step(&k))
		bpf_loop(STEPS_MAX, walk_command, &k, 0);
	if (!walk_is_over(s) || s->walk.keys)
		s->walk.lost = true;
	return 0;
}

static __always_inline void walk_begin(struct bmc_scratch *s, __u32 off, __u32 len)
{
	__builtin_memset(&s->walk, 0, sizeof(s->walk));
	s->walk.loaded = off;
	s->walk.end = off + len;
	s->walk.lag = BMC_APPLY_NS;
	s->window.at = 0;
	s->window.len = 0;
}

/* The commands of a UDP datagram. */
static __always_inline void walk_datagram(struct __sk_buff *skb,
					  struct bmc_scratch *s,
					  struct bmc_stats *st)
{
	struct walk *w = &s->walk;

	walk_begin(s, s->text, s->text_len);
	walk_commands(skb, s, NULL);
	if (w->lost || w->part || w->skip || w->line) {
		st->tcp_unparsed++;
		flush_all(st, bpf_ktime_get_coarse_ns() + BMC_APPLY_NS);
	}
}

/*
 * The flow that is kept in this socket; if it is new, what came before there was
 * a socket goes on in it.
 */
static __always_inline struct bmc_flow *
flow_of(struct bpf_sock *sk, const struct bmc_peers *peers, bool create)
{
	struct bmc_flow *flow = bpf_sk_storage_get(&bmc_flows, sk, NULL, 0);
	struct bmc_flow *early;

	if (flow)
		return flow;
	early = bpf_map_lookup_elem(&bmc_early, peers);
	/* Not what an earlier connection has left, nor what is being worked on. */
	if (early && (early->mode != FLOW_FOLLOWED || early->in_turn ||
		      bpf_ktime_get_coarse_ns() - early->in_last > BMC_APPLY_NS)) {
		bpf_map_delete_elem(&bmc_early, peers);
		early = NULL;
	}
	if (early) {
		flow = bpf_sk_storage_get(&bmc_flows, sk, early,
					  BPF_SK_STORAGE_GET_F_CREATE);
		bpf_map_delete_elem(&bmc_early, peers);
	} else if (create) {
		flow = bpf_sk_storage_get(&bmc_flows, sk, NULL,
					  BPF_SK_STORAGE_GET_F_CREATE);
	}
	return flow;
}

/*
 * The flow of a segment to memcached; NULL if there is no socket for it, or no
 * memory. Notes in the scratch memory how far the socket is.
 *
 * A segment may get here before the stack has made a socket of the handshake: a
 * driver hands on several at once, and each passes here before the first one
 * gets there. What it says is kept elsewhere for that long.
 */
static __always_inline struct bmc_flow *flow_get(struct __sk_buff *skb,
						 struct bmc_scratch *s, __u32 len)
{
	const struct bmc_peers *peers = &s->request.peers;
	struct bpf_sock_tuple tuple = {};
	__u32 size = sizeof(tuple.ipv6), zero = 0;
	struct bmc_flow *flow = NULL, *blank;
	struct bpf_tcp_sock *tcp;
	struct bpf_sock *sk;
	bool early = false;

	if (is_mapped(peers->client)) {
		tuple.ipv4.saddr = peers->client[1] >> 32;
		tuple.ipv4.daddr = peers->server[1] >> 32;
		tuple.ipv4.sport = peers->client_port;
		tuple.ipv4.dport = peers->server_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, peers->client, 16);
		__builtin_memcpy(tuple.ipv6.daddr, peers->server, 16);
		tuple.ipv6.sport = peers->client_port;
		tuple.ipv6.dport = peers->server_port;
	}
	sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return NULL;
	tcp = bpf_tcp_sock(sk);
	if (sk->state == TCP_LISTEN || sk->state == TCP_NEW_SYN_RECV) {
		early = true;
	} else if (tcp) {
		s->rcv_nxt = tcp->rcv_nxt;
		s->snd_nxt = tcp->snd_nxt;
		s->received = tcp->bytes_received;
		flow = flow_of(sk, peers, true);
	}
	bpf_sk_release(sk);
	if (early) {
		s->rcv_nxt = bpf_ntohl(s->tcp.seq);
		s->snd_nxt = bpf_ntohl(s->tcp.ack_seq);
		s->received = false;
		flow = bpf_map_lookup_elem(&bmc_early, peers);
		blank = bpf_map_lookup_elem(&bmc_blank, &zero);
		if (!flow && blank && len) {
			bpf_map_update_elem(&bmc_early, peers, blank,
					    BPF_NOEXIST);
			flow = bpf_map_lookup_elem(&bmc_early, peers);
		}
	}
	if (flow && flow->deep)
		s->walk.lag = DEEP_NS;
	return flow;
}

/* The first segment of a connection that is seen. Is it its first at all? */
static __always_inline bool flow_start(struct bmc_flow *flow,
				       const struct bmc_scratch *s, __u32 seq,
				       __u64 now)
{
	struct bmc_global *g = cache_global();

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
	if (g && (__s64)(now - READ_ONCE(g->since)) > BMC_APPLY_NS)
		flow->in_last = READ_ONCE(g->since);
	smp_store_release(flow->mode, FLOW_MUTE);
	return false;
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
		flow->deep = false;
		flow->vague = false;
		flow->blocks = false;
		smp_store_release(flow->mode, FLOW_FOLLOWED);
	}
	turn_end(&flow->out_turn);
}

/*
 * Where in the segment the next command starts, and what of it is in the window
 * already. False if there is nothing to walk; w->lost if nobody can tell.
 */
static __always_inline bool flow_continue(struct bmc_flow *flow,
					  struct bmc_scratch *s)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct walk *w = &s->walk;
	__u32 seq = bpf_ntohl(s->tcp.seq), len = w->end - w->loaded, n;
	bool paused, answered, caught_up;
	__s32 ahead;

	if (flow->mode == FLOW_NEW)
		w->opens = flow_start(flow, s, seq, now);
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
			write_begin(flow->in_hash, false, w->lag);
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
	/* Who goes on without the answers may always have some coming. */
	if (!caught_up)
		flow->doubt = true;
	if (caught_up && !w->lost && !flow->in_skip && !flow->in_part) {
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
	w->followed = flow->mode == FLOW_FOLLOWED;
	if (flow->in_skip == (__u32)LINE_GOES_ON) {
		w->line = true;
		return true;
	}
	n = flow->in_skip < len ? flow->in_skip : len;
	flow->in_skip -= n;
	w->loaded += n;
	/* Not applied before the end of its data block. */
	if (n && !w->followed)
		write_begin(flow->in_hash, false, w->lag);
	return n < len;
}

/* Puts the line that the last segment began into the window, then the packet. */
static __always_inline bool flow_load(struct __sk_buff *skb,
				      struct bmc_scratch *s, const __u8 *line,
				      __u64 part)
{
	barrier_var(part);
	if (part && part < LINE_MAX) {
		bpf_probe_read_kernel(s->window.bytes, part, line);
		s->window.len = part;
	}
	return walk_load(skb, s);
}

/* Keeps the line that the segment begins and does not end. */
static __always_inline __u32 flow_keep(struct bmc_scratch *s, __u8 *line)
{
	__u64 part = s->walk.part;

	barrier_var(part);
	if (part && part < LINE_MAX)
		bpf_probe_read_kernel(line, part,
				      s->window.bytes +
					      (s->window.at & (WINDOW - 1)));
	return part;
}

/* A TCP segment to memcached: its payload is at `off`, `len` bytes long. */
static __always_inline void flow_in(struct __sk_buff *skb, struct bmc_scratch *s,
				    struct bmc_stats *st, __u32 off, __u32 len)
{
	struct walk *w = &s->walk;
	struct bmc_flow *flow;

	walk_begin(s, off, len);
	flow = flow_get(skb, s, len);
	if (!flow || !turn_take(&flow->in_turn)) {
		if (len) {
			st->tcp_unfollowed++;
			flush_all(st, bpf_ktime_get_coarse_ns() + w->lag);
		}
		return;
	}
	if (len && flow_continue(flow, s)) {
		if (!flow_load(skb, s, flow->in_line, flow->in_part))
			w->lost = true;
		if (w->opens)
			flow->binary = window_at(&s->window, 0) == MAGIC_REQUEST;
		w->binary = flow->binary;
		walk_commands(skb, s, flow);
		flow->in_part = flow_keep(s, flow->in_line);
		flow->in_skip = w->line ? (__u32)LINE_GOES_ON : w->skip;
		flow->in_block = flow->in_next - (w->block - w->skip);
		if (w->part || w->line)
			flow->in_block = flow->in_next;
		flow->in_hash = w->hash;
		if (w->resumes && (w->skip || w->part || w->line))
			w->lost = true;
		flow->found = w->lost ? 0 : flow->found + 1;
		if (w->probes && flow->found < FOUND_TIMES)
			w->lost = true;
		/* From now on the replies may come; unless meanwhile it was
		 * found that they cannot be told apart.
		 */
		if (w->owed) {
			(void)__sync_fetch_and_add(&flow->head, w->owed);
			if (READ_ONCE(flow->mode) != FLOW_FOLLOWED)
				flow_mute(flow);
		}
		if (!w->followed) {
			flow->asked += w->asked;
			flow->blocks |= w->blocks;
		}
		if (w->doubt)
			WRITE_ONCE(flow->doubt, true);
	}
	if (w->lost) {
		st->tcp_unparsed++;
		flow->in_skip = STREAM_LOST;
		flow->in_part = 0;
		flow_mute(flow);
		flush_all(st, bpf_ktime_get_coarse_ns() + w->lag);
	}
	if (s->tcp.flags & (TCP_FIN | TCP_RST))
		flow_mute(flow);
	turn_end(&flow->in_turn);
}

enum answer { ANSWERS_NONE = 0, ANSWERS_LATER, ANSWERS };

/*
 * A reply has come: takes the command out of the ring whose turn it is. Says
 * LATER if that one needs no reply, and this is another's.
 */
__noinline int flow_answer(struct bmc_flow *flow, struct reply *r)
{
	struct bmc_owed *owed;
	__u64 what;
	bool its;

	if (!flow || !r || flow->tail == READ_ONCE(flow->head))
		return ANSWERS_NONE;
	owed = &flow->owed[flow->tail & (BMC_OWED - 1)];
	what = READ_ONCE(owed->what);
	its = what & r->kind && (r->kind != REPLY_BINARY ||
				 (what >> OWED_OPCODE & 0xff) == r->opcode);
	if (what & OWED_OPTIONAL &&
	    (!its || !(what & (REPLY_META | REPLY_BINARY)))) {
		/* Only errors come in reply to noreply. */
		if (r->error)
			return ANSWERS_NONE;
		its = false;
	} else if (!its || (r->refused && what & OWED_BLOCK)) {
		/* It may have taken the data block for commands. */
		return ANSWERS_NONE;
	}
	if (what & (OWED_WRITE | OWED_FLUSH))
		what = __sync_lock_test_and_set(&owed->what, 0);
	flow->tail++;
	/* If it was the reply to a later one, that one stays behind. */
	flow->vague |= its && what & OWED_OPTIONAL;
	if (flow->tail == READ_ONCE(flow->head))
		flow->vague = false;
	owed_end(owed, what,
		 its ? !r->failed
		     : what & OWED_WHOLE && owed_expiry(what) == EXPIRY_SET);
	return its ? ANSWERS : ANSWERS_LATER;
}

/* flow_answer() for what comes most, without a call. */
static __always_inline bool answers_read(struct bmc_flow *flow,
					 const struct reply *r)
{
	const struct bmc_owed *owed = &flow->owed[flow->tail & (BMC_OWED - 1)];

	if (flow->tail == READ_ONCE(flow->head) ||
	    READ_ONCE(owed->what) != REPLY_LIST || !(r->kind & REPLY_LIST))
		return false;
	flow->tail++;
	return true;
}

/* The same for the next reply, or part of one. */
static __always_inline long reply_step(struct walker *k)
{
	struct bmc_scratch *s = k->s;
	struct walk *w = &s->walk;
	struct window *win = &s->window;
	struct reply *r = &s->reply;
	int found;

	if (win->at >= win->len && w->loaded >= w->end)
		return 1;
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
	if (w->followed) {
		if (answers_read(k->flow, r))
			goto on;
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
	return win->at >= win->len && w->loaded >= w->end;
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
	/* A value and END */
	if (!reply_step(&k) && !reply_step(&k))
		bpf_loop(STEPS_MAX, walk_reply, &k, 0);
	if (!walk_is_over(s))
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
	__u32 seq = bpf_ntohl(s->tcp.seq), len = w->end - w->loaded, n;
	__s32 ahead = seq - flow->out_next;

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
	if (READ_ONCE(flow->in_skip) == (__u32)STREAM_LOST)
		flush_all(st, 0);
	if (flow->out_skip == (__u32)STREAM_LOST)
		return false;
	n = flow->out_skip < len ? flow->out_skip : len;
	flow->out_skip -= n;
	w->loaded += n;
	return n < len;
}

/* A TCP segment from memcached: which commands does it answer? */
static __always_inline void flow_out(struct __sk_buff *skb, struct bmc_scratch *s,
				     struct bmc_stats *st, __u32 off, __u32 len)
{
	struct walk *w = &s->walk;
	struct bmc_flow *flow = NULL;
	struct bpf_sock *sk = (void *)(long)skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk)
		flow = flow_of(sk, &s->request.peers, false);
	if (!flow || flow->mode == FLOW_NEW || !turn_take(&flow->out_turn)) {
		/* The reply to what? Whatever it was is applied by now. */
		if (len) {
			st->tcp_unmatched++;
			flush_all(st, 0);
		}
		return;
	}
	walk_begin(s, off, len);
	if (len && flow_continue_out(flow, s, st)) {
		w->followed = READ_ONCE(flow->mode) == FLOW_FOLLOWED;
		w->binary = flow->binary;
		if (!flow_load(skb, s, flow->out_line, flow->out_part))
			w->lost = true;
		walk_replies(skb, s, flow);
		flow->out_skip = w->skip;
		flow->out_part = flow_keep(s, flow->out_line);
		if (w->asked)
			WRITE_ONCE(flow->answered, flow->answered + w->asked);
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
	if (s->tcp.flags & (TCP_FIN | TCP_RST))
		flow_mute(flow);
	turn_end(&flow->out_turn);
}

#endif /* FLOW_BPF_H */
