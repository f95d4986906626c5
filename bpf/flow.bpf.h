/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Writes: the commands of a TCP segment or a UDP datagram on their way to
 * memcached, and memcached's replies to them. TC programs only.
 *
 * Understood are text commands whose line arrives whole in a segment, any
 * number of them, with their data blocks, which may go on over the segments
 * that follow. Data is skipped by length, never searched. What is not
 * understood may have changed anything: the whole cache is flushed.
 *
 * A write is pending in its bucket (lease.bpf.h) if its reply will be
 * recognised: that is when a connection sends one write and then waits. The
 * entry of the connection in bmc_flows is in one of these states:
 *
 *   FLOW_IDLE             nothing pending
 *   FLOW_PENDING | bucket one write, alone in its segments, not yet answered
 *   FLOW_MUTE             it sent more before the reply came: which reply is
 *                         whose is anyone's guess until it pauses
 *
 * All other writes go to the quarantine.
 */
#ifndef FLOW_BPF_H
#define FLOW_BPF_H

enum {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	LINE_MAX = 320, /* of a command line: a key and all that may follow */
	COMMANDS_MAX = 4096, /* in one packet: GRO makes them 64 KiB long */
	TOKENS_MAX = 24, /* of a command line */
	LINE_GOES_ON = -1, /* for a data block: a read's line, up to its end */
};

#define FLOW_IDLE 0ULL
#define FLOW_PENDING (1ULL << 32)
#define FLOW_MUTE (2ULL << 32)

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
	bool reply; /* one line, nothing else */
};

/* A command name of up to eight letters, as it lies in memory. */
#define NAME(a, b, c, d, e, f, g, h)                                          \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | \
	 (__u64)(e) << 32 | (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)

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
		g = (struct grammar){ COMMAND_WRITE, 2, 0, false, false };
		break;
	case NAME('m', 's', 0, 0, 0, 0, 0, 0):
		/* ms <key> <datalen> <flags>* */
		g = (struct grammar){ COMMAND_WRITE, 1, 2, true, true };
		break;
	case NAME('m', 'd', 0, 0, 0, 0, 0, 0):
		/* md <key> <flags>* */
		g = (struct grammar){ COMMAND_WRITE, 1, 0, true, true };
		break;
	case NAME('m', 'a', 0, 0, 0, 0, 0, 0):
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

/*
 * The command whose line starts the window, of which `len` bytes are there.
 * Sets command, replied, key_at, key_len. Returns the length of line and data
 * block, 0 if it is not understood.
 */
__noinline __s64 line_parse(struct bmc_scratch *s, __u32 len)
{
	bool writes = true, quiet = false;
	__u32 start, end, pos, token;
	__s64 block = 0;
	struct grammar g;
	__u64 name;
	int line;

	if (!s)
		return 0;
	s->command = COMMAND_UNKNOWN;
	s->replied = 0;
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
		return line;
	}
	if (g.command == COMMAND_UNKNOWN || end > 7)
		return 0;
	/* mg without one of these reads; what ma sends is not one line only. */
	if (g.meta && !g.reply)
		writes = *(__u16 *)s->window == ('m' | 'a' << 8);

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
			writes |= first == 'T' || first == 'N' || first == 'R' ||
				  first == 'E';
			quiet |= first == 'q';
			if (first == 'b')
				return 0; /* an encoded key */
		} else {
			quiet |= first == 'n'; /* noreply, more or less */
			if (token > g.key && !g.reply)
				return 0; /* gat of several keys */
		}
	}
	if (token == TOKENS_MAX || !s->key_len || (g.bytes && !block))
		return 0;
	s->command = writes ? COMMAND_WRITE : COMMAND_READ;
	s->replied = g.reply && !quiet;
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
	__u32 start;
	__u32 at; /* offset of the next command */
	__u32 end; /* of the packet */
	__u32 skip; /* how far the last data block reaches beyond it */
	bool line; /* within a read's line, a long one */
	bool read; /* a read's reply is to come */
	bool replied; /* a write's reply is to come that is not followed */
	bool lost; /* not understood */
};

static __always_inline __u64 flow_set(struct bmc_flow *flow, __u64 state)
{
	return __sync_lock_test_and_set(&flow->state, state);
}

/* Whatever the connection waited for will not be recognised any more. */
static __always_inline void flow_abandon(struct bmc_flow *flow, __u64 state)
{
	__u64 old = flow_set(flow, state);

	if (old & FLOW_PENDING)
		write_abandon((__u32)old);
}

static long walk_command(__u32 i, void *arg)
{
	struct walk *w = arg;
	struct bmc_scratch *s = w->s;
	__u32 left = w->end - w->at;
	bool pending = false;
	__s64 len;

	(void)i;
	if (w->at >= w->end)
		return 1;
	if (left > LINE_MAX)
		left = LINE_MAX;
	if (!skb_load(w->skb, w->at, s->window, left, LINE_MAX)) {
		w->lost = true;
		return 1;
	}
	if (w->line) {
		len = window_line(s, left);
		w->line = !len;
		w->at += len ?: left;
		return 0;
	}
	len = line_parse(s, left);
	if (len <= 0) {
		/* "get " and "gets " may name any number of keys. */
		if (*(__u32 *)s->window != TEXT_GET &&
		    *(__u32 *)s->window != TEXT_GETS) {
			w->lost = true;
			return 1;
		}
		w->read = w->line = true;
		w->at += left;
		return 0;
	}
	if (s->command == COMMAND_FLUSH) {
		w->st->write_requests++;
		flush_all(bpf_ktime_get_coarse_ns());
		w->replied = true;
	} else if (s->command == COMMAND_READ) {
		w->read = true;
	} else if (skb_load(w->skb, w->at + s->key_at, s->key, s->key_len,
			    BMC_KEY_MAX)) {
		s->klen = s->key_len;
		s->hash = key_hash(s);
		w->st->write_requests++;
		w->st->invalidations++;
		/* Alone in its segment, and nothing before it is unanswered. */
		if (w->flow && s->replied && w->at == w->start &&
		    len >= w->end - w->at)
			pending = __sync_val_compare_and_swap(
					  &w->flow->state, FLOW_IDLE,
					  FLOW_PENDING | bucket_of(s->hash)) ==
				  FLOW_IDLE;
		if (!pending) {
			w->st->write_untracked++;
			w->replied |= s->replied;
		}
		write_begin(s->hash, pending);
	}
	/* else the key is too long, and memcached says so. */
	if (len > w->end - w->at) {
		w->skip = len - (w->end - w->at);
		w->at = w->end;
	} else {
		w->at += len;
	}
	return 0;
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
	w->replied = true;
	w->st->tcp_unparsed++;
	flush_all(bpf_ktime_get_coarse_ns());
}

static __always_inline struct bmc_flow *flow_get(const struct bmc_peers *peers)
{
	struct bmc_flow *flow = bpf_map_lookup_elem(&bmc_flows, peers);
	struct bmc_global *g = cache_global();
	struct bmc_flow new = {};

	if (flow || !g)
		return flow;
	/* Shortly after an attach, a reply to what was not seen may come. */
	if (bpf_ktime_get_coarse_ns() < READ_ONCE(g->quarantine))
		new.state = FLOW_MUTE;
	bpf_map_update_elem(&bmc_flows, peers, &new, BPF_NOEXIST);
	return bpf_map_lookup_elem(&bmc_flows, peers);
}

/* A TCP segment to memcached: its payload is at `off`, `len` bytes long. */
static __always_inline void flow_in(struct __sk_buff *skb, struct bmc_scratch *s,
				    struct bmc_stats *st, const struct tcphdr *tcp,
				    __u32 off, __u32 len)
{
	const struct bmc_peers *peers = &s->request.peers;
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 seq = bpf_ntohl(tcp->seq);
	struct walk w = { .skb = skb, .s = s, .st = st,
			  .start = off, .at = off, .end = off + len };
	struct bmc_flow *flow;

	if (tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST)) {
		flow = bpf_map_lookup_elem(&bmc_flows, peers);
		if (flow) {
			flow_abandon(flow, FLOW_MUTE);
			bpf_map_delete_elem(&bmc_flows, peers);
		}
		flow = NULL;
	} else if (len) {
		flow = flow_get(peers);
	} else {
		return;
	}
	if (!len)
		return;
	if (flow) {
		__s32 ahead = seq - flow->next;

		if (flow->state == FLOW_MUTE && now - flow->last > BMC_APPLY_NS)
			flow_set(flow, FLOW_IDLE);
		if (flow->last && ahead < 0 && now - flow->last < BMC_APPLY_NS) {
			/* Seen before. What it says may be applied only now. */
			flow_abandon(flow, FLOW_MUTE);
		} else if (flow->skip == (__u32)LINE_GOES_ON && !ahead) {
			w.line = true;
		} else if (flow->skip && !ahead) {
			__u32 n = flow->skip < len ? flow->skip : len;

			flow->skip -= n;
			flow->next += n;
			flow->last = now;
			if (n == len)
				return;
			/* More behind the block of a pending write. */
			w.at += n;
		}
		flow->last = now;
		w.flow = flow;
	}
	walk_commands(&w);
	if (!flow)
		return;
	flow->next = seq + len;
	flow->skip = w.skip;
	/* Several replies to come: they could not be told apart. */
	if (w.replied || (w.read && flow->state != FLOW_IDLE))
		flow_abandon(flow, FLOW_MUTE);
}

/*
 * A TCP segment from memcached: does it hold the reply that its connection
 * waits for? One line, and not one that a read gets.
 */
static __always_inline void flow_out(struct __sk_buff *skb, struct bmc_scratch *s,
				     const struct tcphdr *tcp, __u32 off, __u32 len)
{
	const struct bmc_peers *peers = &s->request.peers;
	bool over = tcp->flags & (TCP_FIN | TCP_RST);
	struct bmc_flow *flow;
	__u64 state;

	if (!len && !over)
		return;
	flow = bpf_map_lookup_elem(&bmc_flows, peers);
	if (!flow)
		return;
	state = flow->state;
	if (len && state & FLOW_PENDING) {
		__u32 first, n = len < 64 ? len : 64;

		if (skb_load(skb, off, s->window, n, 64) &&
		    window_line(s, n) == (int)len) {
			first = *(__u32 *)s->window;
			if (first != TEXT_VALU && first != TEXT_END_ &&
			    (__u16)first != ('V' | 'A' << 8) &&
			    (__u16)first != ('E' | 'N' << 8)) {
				if (__sync_val_compare_and_swap(
					    &flow->state, state, FLOW_IDLE) == state)
					write_end((__u32)state);
				state = FLOW_IDLE;
			}
		}
		if (state != FLOW_IDLE)
			flow_abandon(flow, FLOW_MUTE);
	}
	if (over) {
		flow_abandon(flow, FLOW_MUTE);
		bpf_map_delete_elem(&bmc_flows, peers);
	}
}

#endif /* FLOW_BPF_H */
