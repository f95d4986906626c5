/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Commands of TCP segments and UDP datagrams on their way to memcached, and
 * memcached's replies to them. TC programs only.
 *
 * Understood are text commands, any number of them, split over segments in any
 * way. Data blocks are skipped by length, never searched. What is not
 * understood may have changed anything: the whole cache is flushed.
 *
 * A write is pending in its bucket (lease.bpf.h) if its reply will be
 * recognised: when a connection sends one command and waits for the reply
 * before it sends another, as most clients do. What is known of a connection:
 *
 *   FLOW_IDLE             nothing is owed to it
 *   FLOW_READ             the reply to one read
 *   FLOW_PENDING | bucket the reply to one write
 *   FLOW_MUTE             more than one reply, or nobody knows: which is whose
 *                         is anyone's guess until it pauses
 *
 * Writes that come in any state but FLOW_IDLE go to the quarantine.
 */
#ifndef FLOW_BPF_H
#define FLOW_BPF_H

enum {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	COMMANDS_MAX = 4096, /* in one packet: GRO makes them 64 KiB long */
	TOKENS_MAX = 24, /* of a command line, its end included */
	SET_TOKENS_MAX = 7, /* cas <key> <flags> <exptime> <bytes> <cas> noreply */
	META_TOKENS_MAX = 18,
	/* For a data block's length: */
	LINE_GOES_ON = -1, /* a read's long line, up to its end */
	STREAM_LOST = -2, /* something is missing before what comes next */
};

#define FLOW_IDLE 0ULL
#define FLOW_READ (1ULL << 32)
#define FLOW_PENDING (2ULL << 32)
#define FLOW_MUTE (4ULL << 32)

/* What a command does to the cache. */
enum command {
	COMMAND_UNKNOWN = 0,
	COMMAND_READ, /* nothing */
	COMMAND_WRITE, /* changes a key */
	COMMAND_FLUSH, /* may change any key */
};

/* What line_parse() knows of a command. */
struct grammar {
	enum command command;
	__u32 key; /* which token it is; 0 is the name */
	__u32 bytes; /* which token is the length of the data block; 0: no block */
	bool meta; /* flags follow the key */
	bool writes; /* whatever its flags */
};

/* A command name of up to eight letters, as it lies in memory. */
#define NAME(a, b, c, d, e, f, g, h)                                          \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | \
	 (__u64)(e) << 32 | (__u64)(f) << 40 | (__u64)(g) << 48 |             \
	 (__u64)(h) << 56)

/* The commands of doc/protocol.txt. Any other is new, or data, or broken. */
static __always_inline struct grammar grammar_of(__u64 name)
{
	struct grammar g = {};

	switch (name) {
	case NAME('s', 'e', 't', 0, 0, 0, 0, 0):
	case NAME('a', 'd', 'd', 0, 0, 0, 0, 0):
	case NAME('r', 'e', 'p', 'l', 'a', 'c', 'e', 0):
	case NAME('a', 'p', 'p', 'e', 'n', 'd', 0, 0):
	case NAME('p', 'r', 'e', 'p', 'e', 'n', 'd', 0):
	case NAME('c', 'a', 's', 0, 0, 0, 0, 0):
		/* set <key> <flags> <exptime> <bytes> [<cas>] [noreply] */
		g = (struct grammar){ COMMAND_WRITE, 1, 4, false, true };
		break;
	case NAME('i', 'n', 'c', 'r', 0, 0, 0, 0):
	case NAME('d', 'e', 'c', 'r', 0, 0, 0, 0):
	case NAME('d', 'e', 'l', 'e', 't', 'e', 0, 0):
	case NAME('t', 'o', 'u', 'c', 'h', 0, 0, 0):
		/* incr <key> <value> [noreply] */
		g = (struct grammar){ COMMAND_WRITE, 1, 0, false, true };
		break;
	case NAME('g', 'a', 't', 0, 0, 0, 0, 0):
	case NAME('g', 'a', 't', 's', 0, 0, 0, 0):
		/* gat <exptime> <key>* */
		g = (struct grammar){ COMMAND_WRITE, 2, 0, false, true };
		break;
	case NAME('m', 's', 0, 0, 0, 0, 0, 0):
		/* ms <key> <datalen> <flags>* */
		g = (struct grammar){ COMMAND_WRITE, 1, 2, true, true };
		break;
	case NAME('m', 'd', 0, 0, 0, 0, 0, 0):
	case NAME('m', 'a', 0, 0, 0, 0, 0, 0):
		/* md <key> <flags>* */
		g = (struct grammar){ COMMAND_WRITE, 1, 0, true, true };
		break;
	case NAME('m', 'g', 0, 0, 0, 0, 0, 0):
		/* mg <key> <flags>*: some of the flags make it a write */
		g = (struct grammar){ COMMAND_WRITE, 1, 0, true, false };
		break;
	case NAME('g', 'e', 't', 0, 0, 0, 0, 0):
	case NAME('g', 'e', 't', 's', 0, 0, 0, 0):
	case NAME('m', 'e', 0, 0, 0, 0, 0, 0):
	case NAME('m', 'n', 0, 0, 0, 0, 0, 0):
	case NAME('s', 't', 'a', 't', 's', 0, 0, 0):
	case NAME('v', 'e', 'r', 's', 'i', 'o', 'n', 0):
	case NAME('v', 'e', 'r', 'b', 'o', 's', 'i', 't'):
	case NAME('w', 'a', 't', 'c', 'h', 0, 0, 0):
	case NAME('q', 'u', 'i', 't', 0, 0, 0, 0):
		g.command = COMMAND_READ;
		break;
	case NAME('f', 'l', 'u', 's', 'h', '_', 'a', 'l'):
	case NAME('s', 'h', 'u', 't', 'd', 'o', 'w', 'n'):
		g.command = COMMAND_FLUSH;
		break;
	}
	return g;
}

static __always_inline __u8 window_at(const struct bmc_scratch *s, __u32 i)
{
	return s->window[i & (WINDOW_MAX - 1)];
}

/*
 * The token at `at` or behind the spaces there: where it starts and, shifted
 * by 16, where it ends, at a byte below 0x21 or at `len`. They are the same at
 * the end of the line.
 */
__noinline __u32 window_token(struct bmc_scratch *s, __u32 at, __u32 len)
{
	__u32 end;

	if (!s)
		return 0;
	for (int i = 0; i < LINE_MAX && at < len && window_at(s, at) == ' '; i++)
		at++;
	end = at;
	for (int i = 0; i < LINE_MAX && end < len && window_at(s, end) > ' '; i++)
		end++;
	return at | end << 16;
}

/* Where the line that starts at 0 ends, "\n" included; 0: not within `len`. */
__noinline int window_line(struct bmc_scratch *s, __u32 len)
{
	if (!s)
		return 0;
	for (__u32 i = 0; i < len && i < LINE_MAX; i++)
		if (window_at(s, i) == '\n')
			return i + 1;
	return 0;
}

/* A decimal of at most ten digits, or -1. */
__noinline __s64 window_number(struct bmc_scratch *s, __u32 at, __u32 end)
{
	__u64 n = 0;

	if (!s || at >= end || end - at > 10)
		return -1;
	for (__u32 i = 0; i < 10 && at + i < end; i++) {
		__u8 c = window_at(s, at + i) - '0';

		if (c > 9)
			return -1;
		n = n * 10 + c;
	}
	return n;
}

/* Whether there are digits only, up to what 64 bits need. */
__noinline int window_digits(struct bmc_scratch *s, __u32 at, __u32 end)
{
	if (!s || at >= end || end - at > 20)
		return false;
	for (__u32 i = 0; i < 20 && at + i < end; i++)
		if ((__u8)(window_at(s, at + i) - '0') > 9)
			return false;
	return true;
}

static __always_inline bool is_noreply(const struct bmc_scratch *s, __u32 at,
				       __u32 end)
{
	__u64 w = *(__u64 *)(s->window + (at & (WINDOW_MAX - 1)));

	return end - at == 7 &&
	       w << 8 == NAME('n', 'o', 'r', 'e', 'p', 'l', 'y', 0) << 8;
}

/*
 * The command whose line starts the window, of which `len` bytes are there.
 * Sets command, replied, silent, key_at, key_len. Returns the length of line and data
 * block, 0 if it is not understood.
 */
__noinline __s64 line_parse(struct bmc_scratch *s, __u32 len)
{
	bool writes, quiet = false, silent = false;
	__u32 start, end, pos, token;
	__s64 block = 0;
	struct grammar g;
	__u64 name;
	int line;

	if (!s)
		return 0;
	s->command = COMMAND_UNKNOWN;
	s->replied = 0;
	s->silent = 0;
	s->key_at = 0;
	s->key_len = 0;
	line = window_line(s, len);
	if (line <= 0 || line > LINE_MAX)
		return 0;
	end = window_token(s, 0, line) >> 16;
	name = *(__u64 *)s->window;
	if (end < 8)
		name &= (1ULL << end * 8) - 1;
	g = grammar_of(name);
	if (g.command == COMMAND_READ || g.command == COMMAND_FLUSH) {
		s->command = g.command;
		s->replied = g.command == COMMAND_READ;
		return line;
	}
	if (g.command == COMMAND_UNKNOWN || end > 7)
		return 0;
	writes = g.writes;
	for (token = 1; token < TOKENS_MAX; token++) {
		__u8 first;

		pos = window_token(s, end, line);
		start = pos & 0xffff;
		end = pos >> 16;
		if (start == end)
			break;
		first = window_at(s, start);
		if (token == g.key) {
			s->key_at = start;
			s->key_len = end - start;
		} else if (g.bytes && token == g.bytes) {
			block = window_number(s, start, end);
			/* An error to memcached; what it skips is its guess. */
			if (block < 0 || block > 1 << 30)
				return 0;
			block += 2;
		} else if (g.meta) {
			writes |= first == 'T' || first == 'N' ||
				  first == 'R' || first == 'E';
			quiet |= first == 'q';
			if (first == 'b')
				return 0; /* an encoded key */
		} else if (token > g.key && g.key == 2) {
			return 0; /* gat of several keys */
		} else if (is_noreply(s, start, end)) {
			silent = true;
		} else if (g.bytes && token < 6) {
			/* flags, exptime, cas */
			if (first == '-')
				start++;
			if (!window_digits(s, start, end))
				return 0;
		}
	}
	if (!s->key_len || (g.bytes && !block))
		return 0;
	/*
	 * What memcached refuses for its form, it may refuse without skipping
	 * the data block, and take that for commands.
	 */
	if (g.bytes && (s->key_len > BMC_KEY_MAX ||
			token > (g.meta ? META_TOKENS_MAX : SET_TOKENS_MAX)))
		return 0;
	if (token == TOKENS_MAX)
		return 0;
	s->command = writes ? COMMAND_WRITE : COMMAND_READ;
	s->replied = !quiet && !silent;
	s->silent = silent;
	return line + block;
}

/* The hash of the s->klen bytes in s->key, which gets its padding. */
__noinline __u64 key_hash(struct bmc_scratch *s)
{
	__u64 sum = 0;
	__u32 words;

	if (!s || s->klen > BMC_KEY_MAX)
		return 0;
	words = s->klen / 8;
	s->key[words] &= (1ULL << s->klen % 8 * 8) - 1;
	for (__u32 i = 0; i < KEY_WORDS; i++) {
		if (i > words)
			break;
		sum += hash_word(i, s->key[i]);
	}
	return hash_end(sum, s->klen);
}

/* What bpf_loop() hands from one command of a packet to the next. */
struct walk {
	struct __sk_buff *skb;
	struct bmc_scratch *s;
	struct bmc_stats *st;
	struct bmc_flow *flow; /* NULL: replies are not followed */
	__u32 at; /* offset of the next command, or of the rest of one */
	__u32 end; /* of the packet */
	__u32 skip; /* how far the last data block reaches beyond it */
	__u32 part; /* how much of a line is in the window already */
	__u32 commands;
	__u32 replies; /* that memcached owes for them */
	__u32 silent; /* those with noreply */
	__u64 hash; /* of the last key written */
	bool pending; /* the one write is */
	bool line; /* within a read's line, a long one */
	bool resumes; /* after something was missing */
	bool lost; /* not understood */
};

/* Changes the state; what was waited for will not be recognised any more. */
static __always_inline void flow_abandon(struct bmc_flow *flow, __u64 state)
{
	__u64 old = __sync_lock_test_and_set(&flow->state, state);

	if (old & FLOW_PENDING)
		write_abandon((__u32)old);
}

/* The state may change only if nothing is owed. */
static __always_inline bool flow_owe(struct bmc_flow *flow, __u64 state)
{
	return __sync_val_compare_and_swap(&flow->state, FLOW_IDLE, state) ==
	       FLOW_IDLE;
}

/*
 * The line's end is still to come: keep what is there. Not the binary protocol,
 * whose requests start with 0x80.
 */
static __always_inline bool walk_keep(struct walk *w, __u32 have)
{
	struct bmc_flow *flow = w->flow;

	if (!flow || have >= LINE_MAX || w->s->window[0] > 'z')
		return false;
	bpf_probe_read_kernel(flow->part, sizeof(flow->part), w->s->window);
	flow->part_len = have;
	w->at = w->end;
	return true;
}

static long walk_command(__u32 i, void *arg)
{
	struct walk *w = arg;
	struct bmc_scratch *s = w->s;
	__u64 part = w->part, klen;
	__u32 left = w->end - w->at, have;
	bool pending = false;
	__s64 len;

	(void)i;
	if (w->at >= w->end)
		return 1;
	barrier_var(part);
	if (part >= LINE_MAX)
		goto lost;
	if (left > LINE_MAX - part)
		left = LINE_MAX - part;
	if (!skb_load(w->skb, w->at, s->window + part, left, LINE_MAX))
		goto lost;
	have = part + left;
	if (w->line) {
		len = window_line(s, have);
		w->line = !len;
		w->at += len ?: left;
		return 0;
	}
	len = line_parse(s, have);
	if (len <= 0) {
		if (window_line(s, have))
			goto lost;
		if (walk_keep(w, have))
			return 1;
		/* "get " and "gets " may name any number of keys. */
		if (*(__u32 *)s->window != TEXT_GET &&
		    *(__u32 *)s->window != TEXT_GETS)
			goto lost;
		w->replies++;
		w->commands++;
		w->line = true;
		w->part = 0;
		w->at += left;
		return 0;
	}
	w->commands++;
	w->replies += s->replied;
	w->silent += s->silent;
	len -= part;
	w->part = 0;
	klen = s->key_len;
	barrier_var(klen);
	if (s->command == COMMAND_FLUSH) {
		w->st->write_requests++;
		flush_all(w->st, bpf_ktime_get_coarse_ns());
		w->replies++;
	} else if (s->command == COMMAND_WRITE && klen && klen <= BMC_KEY_MAX) {
		bpf_probe_read_kernel(s->key, klen,
				      s->window + (s->key_at & (WINDOW_MAX - 1)));
		s->klen = klen;
		s->hash = key_hash(s);
		w->st->write_requests++;
		w->st->invalidations++;
		w->hash = s->hash;
		/* The only command, and nothing before it is unanswered. */
		if (w->flow && s->replied && w->commands == 1 &&
		    len >= w->end - w->at)
			pending = flow_owe(w->flow,
					   FLOW_PENDING | bucket_of(s->hash));
		if (!pending)
			w->st->write_untracked++;
		w->pending = pending;
		write_begin(s->hash, pending);
	}
	/* else a read, or the key is too long, and memcached says so. */
	if (len > w->end - w->at) {
		w->skip = len - (w->end - w->at);
		w->at = w->end;
	} else {
		w->at += len;
	}
	return 0;
lost:
	w->lost = true;
	return 1;
}

/*
 * The commands between `at` and `end` of the packet. Counts them, moves the
 * words of the buckets that they change, and flushes everything if it comes to
 * one that it does not understand.
 */
static __always_inline void walk_commands(struct walk *w)
{
	bpf_loop(COMMANDS_MAX, walk_command, w, 0);
	if (w->line)
		w->skip = LINE_GOES_ON;
	if (!w->lost && w->at >= w->end)
		return;
	w->lost = true;
	w->st->tcp_unparsed++;
	flush_all(w->st, bpf_ktime_get_coarse_ns());
}

static __always_inline struct bmc_flow *flow_get(const struct bmc_peers *peers)
{
	struct bmc_flow *flow = bpf_map_lookup_elem(&bmc_flows, peers);
	struct bmc_global *g = cache_global();
	struct bmc_scratch *s = scratch();
	struct bmc_flow *fresh;

	if (flow || !g || !s)
		return flow;
	fresh = (void *)s->frame;
	_Static_assert(sizeof(*fresh) <= sizeof(s->frame), "a flow fits");
	fresh->state = FLOW_IDLE;
	fresh->last = 0;
	fresh->next = 0;
	fresh->skip = 0;
	fresh->part_len = 0;
	fresh->replied = 0;
	fresh->answered = 0;
	fresh->silent = 0;
	fresh->hash = 0;
	/* Shortly after an attach, a reply to what was not seen may come. */
	if (bpf_ktime_get_coarse_ns() < READ_ONCE(g->quarantine))
		fresh->state = FLOW_MUTE;
	bpf_map_update_elem(&bmc_flows, peers, fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&bmc_flows, peers);
}

/*
 * Where in the segment the next command starts, as the connection's history
 * has it; false if the segment needs no walk, because it was there before or
 * because nobody can tell.
 */
static __always_inline bool flow_continue(struct bmc_flow *flow, struct walk *w,
					  const struct tcphdr *tcp, __u32 len)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	bool fresh = !flow->last;
	bool paused = !fresh && (__s64)(now - flow->last) > BMC_APPLY_NS;
	__u32 seq = bpf_ntohl(tcp->seq), n;
	struct bmc_global *g = cache_global();
	__s32 ahead = fresh ? 0 : seq - flow->next;
	bool answered =
		flow->answered && bpf_ntohl(tcp->ack_seq) == flow->next_out;

	if (ahead < 0 && (__s32)(ahead + len) <= 0) {
		/* Seen before, but what it says may be applied only now, unless
		 * it is answered or its bucket is closed anyway.
		 */
		if (flow->state & FLOW_PENDING || !g ||
		    (flow->state == FLOW_IDLE && !flow->skip && !flow->part_len))
			return false;
		if (paused)
			flush_all(w->st, now);
		else
			WRITE_ONCE(g->quarantine, now + BMC_APPLY_NS);
		return false;
	}
	flow->last = now;
	flow->answered = 0;
	flow->next = seq + len;
	if (flow->state == FLOW_MUTE && paused)
		flow_abandon(flow, FLOW_IDLE);
	if (ahead || (flow->skip == (__u32)STREAM_LOST && !answered && !paused)) {
		flow->skip = STREAM_LOST;
		flow->part_len = 0;
		flow_abandon(flow, FLOW_MUTE);
		w->st->tcp_unparsed++;
		flush_all(w->st, now);
		return false;
	}
	if (flow->skip == (__u32)STREAM_LOST) {
		/* The client has its answer and goes on: with a command, if all
		 * of the segment turns out to be one.
		 */
		flow->skip = 0;
		w->resumes = true;
		return true;
	}
	if (flow->skip == (__u32)LINE_GOES_ON) {
		w->line = true;
		return true;
	}
	n = flow->skip < len ? flow->skip : len;
	flow->skip -= n;
	w->at += n;
	w->commands += n && !flow->silent; /* the one the block belongs to */
	if (n && !(flow->state & FLOW_PENDING))
		write_begin(flow->hash, false); /* not applied before its end */
	if (n == len)
		return false;
	if (flow->part_len) {
		bpf_probe_read_kernel(w->s->window, sizeof(flow->part),
				      flow->part);
		w->part = flow->part_len;
		flow->part_len = 0;
	}
	return true;
}

/* A TCP segment to memcached: its payload is at `off`, `len` bytes long. */
static __always_inline void flow_in(struct __sk_buff *skb,
				    struct bmc_scratch *s, struct bmc_stats *st,
				    const struct tcphdr *tcp, __u32 off,
				    __u32 len)
{
	const struct bmc_peers *peers = &s->request.peers;
	struct walk w = {
		.skb = skb, .s = s, .st = st, .at = off, .end = off + len
	};
	bool ends = tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST);
	struct bmc_flow *flow = NULL;

	if (ends) {
		flow = bpf_map_lookup_elem(&bmc_flows, peers);
		if (flow) {
			flow_abandon(flow, FLOW_MUTE);
			bpf_map_delete_elem(&bmc_flows, peers);
		}
		flow = NULL;
	} else if (len) {
		flow = flow_get(peers);
	}
	if (!len)
		return;
	if (!flow) {
		/* What came before is forgotten, or was never kept. */
		st->tcp_unparsed++;
		flush_all(st, bpf_ktime_get_coarse_ns());
		return;
	}
	if (!flow_continue(flow, &w, tcp, len))
		return;
	w.flow = flow;
	walk_commands(&w);
	flow->skip = w.skip;
	flow->hash = w.hash;
	flow->silent = s->silent;
	if (w.lost || (w.resumes && (w.skip || flow->part_len))) {
		if (!w.lost)
			flush_all(st, bpf_ktime_get_coarse_ns());
		flow->skip = STREAM_LOST;
		flow->part_len = 0;
	} else if (w.commands == 1 &&
		   (w.pending ||
		    (w.replies == 1 && !w.hash && flow_owe(flow, FLOW_READ)))) {
		return; /* one command, and its one reply will be known */
	}
	/* An error in reply to noreply is no reply to anything else either: see
	 * is_one_reply().
	 */
	if (w.lost || w.commands > w.silent)
		flow_abandon(flow, FLOW_MUTE);
}

/*
 * Whether the `len` bytes that a segment brings from memcached are one whole
 * reply; `n` of them are in the window. A line, or a value and END, or a value
 * of the meta commands.
 */
static __always_inline bool is_one_reply(struct bmc_scratch *s, __u32 n, __u32 len)
{
	bool text = *(__u32 *)s->window == TEXT_VALU;
	bool meta = *(__u16 *)s->window == ('V' | 'A' << 8) &&
		    window_at(s, 2) == ' ';
	__u32 line = window_line(s, n), at;
	__s64 bytes;

	if (!line)
		return false;
	if (!text && !meta) /* an error may not be the only one */
		return line == len && *(__u32 *)s->window != TEXT_ERRO &&
		       *(__u32 *)s->window != TEXT_CLIE &&
		       *(__u32 *)s->window != TEXT_SERV;
	/* VALUE <key> <flags> <bytes>, VA <bytes> */
	at = window_token(s, 0, line) >> 16;
	if (text) {
		at = window_token(s, at, line) >> 16;
		at = window_token(s, at, line) >> 16;
	}
	at = window_token(s, at, line);
	bytes = window_number(s, at & 0xffff, at >> 16);
	return bytes >= 0 && line + bytes + 2 + (text ? END_LEN : 0) == len;
}

/* A TCP segment from memcached: is it the reply that its connection waits for? */
static __always_inline void flow_out(struct __sk_buff *skb,
				     struct bmc_scratch *s, struct bmc_stats *st,
				     const struct tcphdr *tcp, __u32 off,
				     __u32 len)
{
	const struct bmc_peers *peers = &s->request.peers;
	bool over = tcp->flags & (TCP_FIN | TCP_RST);
	__u32 n = len < LINE_MAX ? len : LINE_MAX;
	struct bmc_flow *flow;
	__u64 state;

	if (!len && !over)
		return;
	flow = bpf_map_lookup_elem(&bmc_flows, peers);
	if (!flow)
		return;
	state = READ_ONCE(flow->state);
	if (len) {
		__u32 next = bpf_ntohl(tcp->seq) + len;
		bool again = flow->replied && (__s32)(next - flow->next_out) <= 0;

		if (again)
			return;
		flow->next_out = next;
		flow->replied = 1;
		flow->answered = 1;
	}
	if (len && state != FLOW_MUTE) {
		if (state == FLOW_IDLE) {
			/* To what? Whatever it was is applied by now. */
			flush_all(st, bpf_ktime_get_coarse_ns());
			flow_abandon(flow, FLOW_MUTE);
		} else if (skb_load(skb, off, s->window, n, LINE_MAX) &&
			   is_one_reply(s, n, len) &&
			   __sync_val_compare_and_swap(&flow->state, state,
						       FLOW_IDLE) == state) {
			if (state & FLOW_PENDING)
				write_end((__u32)state);
		} else {
			flow_abandon(flow, FLOW_MUTE);
		}
	}
	if (over) {
		flow_abandon(flow, FLOW_MUTE);
		bpf_map_delete_elem(&bmc_flows, peers);
	}
}

#endif /* FLOW_BPF_H */
