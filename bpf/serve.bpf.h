/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * A GET answered: the two carriers, XDP frames and skbs, brought to the code
 * that they share.
 *
 * The functions that take a packet apart are global: the verifier checks each
 * once, on its own, and a caller sees only a number, instead of every path
 * through the headers times every path through the keys. What they find out is
 * in the scratch memory.
 */
#ifndef SERVE_BPF_H
#define SERVE_BPF_H

enum {
	TC_ACT_UNSPEC = -1, /* TCX_NEXT: the next one's turn */
	PACKET_HOST = 0,
	LOOPBACK_IFINDEX = 1,
	HEADERS_LINEAR = 128, /* what packet_parse() may want to see */
	/* Room in front of a frame that XDP_TX leaves to drivers, of the 256
	 * bytes that XDP guarantees.
	 */
	HEAD_GROWTH = 192,
	MTU_SAFE = 576,
	SHORT_KEY = 40, /* bytes, whole words */
};

/*
 * Loaded anew at each use: to a pointer that it has just loaded the verifier
 * brings nothing of what the headers before showed, and goes on with one state.
 */
#define DATA(ctx) ((void *)(long)READ_ONCE((ctx)->data))
#define DATA_END(ctx) ((void *)(long)READ_ONCE((ctx)->data_end))

/* What plain_parse() left to judge. */
__noinline int xdp_packet(struct xdp_md *ctx, struct bmc_scratch *s)
{
	if (!s)
		return PACKET_OTHER;
	return packet_parse(DATA(ctx), DATA_END(ctx), s->size, WAY_IN, false, 0,
			    false, s);
}

/* The keys behind the first, whose texts go behind the first's. */
__noinline int xdp_key(struct xdp_md *ctx, struct bmc_scratch *s, __u32 off)
{
	return s ? request_key(DATA(ctx), DATA_END(ctx), off, s) : -1;
}

__noinline int xdp_intact(struct xdp_md *ctx, struct bmc_scratch *s)
{
	return s ? packet_intact(DATA(ctx), DATA_END(ctx), s, cfg.generic)
		 : INTACT_NO;
}

/* For TC, the same steps as functions: a call is little to what comes after. */
__noinline int tc_packet(struct __sk_buff *skb, struct bmc_scratch *s, int way)
{
	bool tag = skb->vlan_present;

	if (!s)
		return PACKET_OTHER;
	return packet_parse(DATA(skb), DATA_END(skb), skb->len,
			    way == WAY_IN ? WAY_IN : WAY_OUT, tag,
			    tag ? skb->vlan_tci & VLAN_VID : 0, true, s);
}

__noinline int tc_request(struct __sk_buff *skb, struct bmc_scratch *s)
{
	return s ? request_parse(DATA(skb), DATA_END(skb), s)
		 : -COUNTER(pass_length);
}

__noinline int tc_key(struct __sk_buff *skb, struct bmc_scratch *s, __u32 off)
{
	return s ? request_key(DATA(skb), DATA_END(skb), off, s) : -1;
}

__noinline int tc_intact(struct __sk_buff *skb, struct bmc_scratch *s)
{
	return s ? packet_intact(DATA(skb), DATA_END(skb), s, true) : INTACT_NO;
}

/* The eight bytes before offset `end`, most often in linear memory. */
static __always_inline bool tc_before(struct __sk_buff *skb, __u32 end, __u64 *w)
{
	return word_before(DATA(skb), DATA_END(skb), end, w) ||
	       !bpf_skb_load_bytes(skb, end - 8, w, 8);
}

/*
 * Whether a reply of `len` bytes may leave by the device that the request came
 * in on. Not asked for what every device can send (RFC 791: 576 bytes).
 */
static __always_inline bool fits_device(void *ctx, const struct bmc_scratch *s,
					__u32 len)
{
	__u32 mtu = len - s->ip;

	return mtu <= MTU_SAFE || !bpf_check_mtu(ctx, 0, &mtu, 0, 0);
}

/* Makes the first `want` bytes of the skb linear, if it has as many. */
static __always_inline bool tc_linear(struct __sk_buff *skb, __u32 want)
{
	__u32 linear = skb->data_end - skb->data;

	if (want > skb->len)
		want = skb->len;
	return linear >= want || !bpf_skb_pull_data(skb, want);
}

static __always_inline void count_served(struct bmc_stats *st, __u32 keys)
{
	st->get_requests++;
	st->get_keys += keys;
	st->hits += keys;
}

static __always_inline void count(struct bmc_stats *st, int counter)
{
	__u64 n = (__u32)counter;

	barrier_var(n);
	if (n < sizeof(*st) / sizeof(__u64))
		((__u64 *)st)[n]++;
}

/* The headers of the reply in front of the text in s->frame: where it then starts. */
static __always_inline __u8 *frame_write(struct bmc_scratch *s, bool partial)
{
	__u64 ip = s->ip, start = HEAD_MAX - s->text;
	__u8 *frame = s->frame;

	barrier_var(ip);
	barrier_var(start);
	if (ip > LINK_MAX || start > HEAD_MAX - LINK_WORDS * 8)
		return NULL;
	bounded(ip, 31);
	bounded(start, 127);
	frame += start;
	reply_head(s, frame, frame + ip, partial);
	return frame;
}

/* Whether XDP may answer, given what became of the request on its way. */
static __always_inline bool xdp_may(int intact)
{
	/* On an skb that has its checksum completed later, XDP would have to
	 * keep the headers where they are: bmc_rx_tc does.
	 */
	return intact == INTACT_YES || (intact == INTACT_PARTIAL && !cfg.generic);
}

/*
 * Makes the frame longer by `grow`, at its head if there is room: returns how much
 * further in front it starts, or -1.
 */
static __always_inline int xdp_grow(struct xdp_md *ctx, int grow)
{
	if (grow > 0 && grow <= HEAD_GROWTH && !bpf_xdp_adjust_head(ctx, -grow))
		return grow;
	return grow && bpf_xdp_adjust_tail(ctx, grow) ? -1 : 0;
}

/* The text of the entry and the end into the frame, which is as long as they. */
static __always_inline bool xdp_write(struct xdp_md *ctx, struct bmc_scratch *s,
				      const struct hit *hit)
{
	void *data = DATA(ctx), *data_end = DATA_END(ctx), *to, *end;
	__u64 text = s->text, last = hit->len + END_LEN - 16, near, i;
	struct text *from = (void *)slot_text(hit->slot);

	barrier_var(text);
	barrier_var(last);
	if (text > HEAD_MAX || last > BMC_REPLY_MAX - 16)
		return false;
	bounded(text, 127);
	bounded(last, 2047);
	near = last;
	/* A long one by a helper, which copies faster but has to be called. */
	if (last >= COPY_FIRST) {
		if (bpf_xdp_store_bytes(ctx, text, from, last + 16))
			return false;
		data = DATA(ctx);
		data_end = DATA_END(ctx);
	}
	to = data + text;
	end = to + last;
	barrier_var(end);
	if (to + 16 > data_end || end + 16 > data_end)
		return false;
	/* By lines, then two words at a time, the last two up to the end. */
	if (near < COPY_FIRST) {
		for (i = 0; i < COPY_FIRST; i += COPY_LINE) {
			if (i + COPY_LINE > near + 16)
				break;
			if (to + i + COPY_LINE > data_end)
				return false;
			line_copy(to + i, from->bytes + i);
		}
		for (int step = 0; step < COPY_LINE / 16; step++, i += 16) {
			if (i >= near)
				break;
			if (to + i + 16 > data_end)
				return false;
			pair_copy(to + i, from->bytes + i);
		}
		bounded(near, COPY_FIRST - 1);
		pair_copy(end, from->bytes + near);
	}
	text_end(end + 16 - END_LEN);
	*(__u64 *)to = text_first(from);
	return true;
}

/* The headers of the reply into the frame. */
static __always_inline bool xdp_head(struct xdp_md *ctx, struct bmc_scratch *s)
{
	void *data = DATA(ctx), *data_end = DATA_END(ctx);
	__u64 ip = s->ip;

	barrier_var(ip);
	if (ip > LINK_MAX)
		return false;
	bounded(ip, 31);
	if (data + LINK_WORDS * 8 > data_end || data + ip + REPLY_HEAD > data_end)
		return false;
	reply_head(s, data, data + ip, false);
	return true;
}

/*
 * Keeps the headers of the request, as far as they are not in s->head: in words, for
 * which there are enough bytes behind them ("get ", a key, "\r\n").
 */
static __always_inline bool xdp_keep(struct xdp_md *ctx, struct bmc_scratch *s)
{
	enum { IPV4_WORDS = 7 };
	__u64 *data = DATA(ctx);
	void *data_end = DATA_END(ctx);

	if ((void *)(data + IPV4_WORDS) > data_end)
		return false;
	for (int i = LINK_WORDS; i < IPV4_WORDS; i++)
		s->head[i] = data[i];
	for (__u32 i = IPV4_WORDS; i * 8 < s->text; i++) {
		if (i >= HEAD_MAX / 8 || (void *)(data + i + 1) > data_end)
			return false;
		s->head[i] = data[i];
	}
	return true;
}

/*
 * The GET of one key as it was, after xdp_grow() returned `front` and xdp_write()
 * overwrote it: memcached gets to see what its client sent.
 */
__noinline int xdp_undo(struct xdp_md *ctx, struct bmc_scratch *s, int front)
{
	__u64 klen, head, len;

	if (!s)
		return XDP_PASS;
	if (front > 0)
		bpf_xdp_adjust_head(ctx, front);
	else
		bpf_xdp_adjust_tail(ctx,
				    s->size - s->text - s->reply_len - END_LEN);
	head = s->text - 1;
	len = s->text_len - 1;
	klen = s->klen;
	barrier_var(klen);
	barrier_var(head);
	barrier_var(len);
	if (klen > BMC_KEY_MAX || head >= HEAD_MAX || len >= 2 * BMC_KEY_MAX)
		return XDP_PASS;
	bounded(klen, 255);
	*(__u32 *)s->frame = TEXT_GET;
	for (__u32 i = 0; i < KEY_WORDS; i++)
		*(__u64 *)(s->frame + GET_LEN + i * 8) = s->key[i];
	*(__u16 *)(s->frame + GET_LEN + klen) = TEXT_CRLF;
	if (front > 0)
		bpf_xdp_store_bytes(ctx, 0, s->head, head + 1);
	bpf_xdp_store_bytes(ctx, head + 1, s->frame, len + 1);
	return XDP_PASS;
}

/*
 * Answers any GET, of which the first key has been parsed, if every key is there; else
 * the frame is as it came. Their texts are put together in this CPU's memory.
 */
static __always_inline int xdp_several(struct xdp_md *ctx, struct bmc_scratch *s,
				       struct bmc_stats *st)
{
	__u32 keys, off = 0;
	__u8 *frame;
	__u64 len;

	s->reply_len = 0;
	s->reply_csum = 0;
	for (keys = 1; keys <= BMC_KEYS_MAX; keys++) {
		if (cache_find(s) != FIND_HIT)
			return XDP_PASS;
		off = READ_ONCE(s->next);
		if (!off)
			break;
		if (xdp_key(ctx, s, off))
			return XDP_PASS;
	}
	/* Through memory: the verifier goes on with one number, not 32. */
	WRITE_ONCE(s->keys, keys);
	if (off || !xdp_may(xdp_intact(ctx, s)) || !reply_end(s))
		return XDP_PASS;
	len = s->text + READ_ONCE(s->reply_len) + END_LEN;
	if (!fits_device(ctx, s, len) || xdp_grow(ctx, len - s->size) < 0)
		return XDP_PASS;
	frame = frame_write(s, false);
	len--; /* see skb_load() */
	barrier_var(len);
	if (!frame || len >= HEAD_MAX + BMC_REPLY_MAX ||
	    bpf_xdp_store_bytes(ctx, 0, frame, len + 1))
		return XDP_PASS; /* cannot be: the frame is that long */
	count_served(st, READ_ONCE(s->keys));
	return XDP_TX;
}

/*
 * Answers a GET. Of one key, in a frame without padding, as most are, with as few
 * calls and copies as can be: the text goes straight into the frame, and if the
 * entry changed meanwhile, the request is written there again.
 */
static __always_inline int serve_xdp(struct xdp_md *ctx, struct bmc_scratch *s)
{
	struct bmc_stats *st = stats();
	struct hit hit;
	int front;

	if (!st || request_parse(DATA(ctx), DATA_END(ctx), s) ||
	    request_key(DATA(ctx), DATA_END(ctx), s->text + GET_LEN, s))
		return XDP_PASS;
	if (READ_ONCE(s->next) || s->size != s->text + s->text_len)
		return xdp_several(ctx, s, st);
	if (find(s, &hit) != FIND_HIT || !xdp_may(request_intact(s)))
		return XDP_PASS;
	s->reply_len = hit.len;
	s->reply_csum = hit.slot->csum + csum_behind(TEXT_END, hit.len);
	if (!fits_device(ctx, s, s->text + hit.len + END_LEN) ||
	    !xdp_keep(ctx, s))
		return XDP_PASS;
	front = xdp_grow(ctx, s->text + hit.len + END_LEN - s->size);
	if (front < 0)
		return XDP_PASS;
	if (!xdp_write(ctx, s, &hit) || !hit_stands(&hit, s) || !xdp_head(ctx, s))
		return xdp_undo(ctx, s, front);
	count_served(st, 1);
	return XDP_TX;
}

/* The reply into the skb, which is as long as it: `len` bytes in all. */
static __always_inline bool tc_write(struct __sk_buff *skb, struct bmc_scratch *s,
				     __u64 len, bool partial)
{
	__u8 *frame = frame_write(s, partial);

	len--; /* see skb_load() */
	barrier_var(len);
	return frame && len < HEAD_MAX + BMC_REPLY_MAX &&
	       !bpf_skb_store_bytes(skb, 0, frame, len + 1, BPF_F_RECOMPUTE_CSUM);
}

/*
 * The same from TC, which counts and notes what goes on. On return the action;
 * TC_ACT_UNSPEC with the skb as it came.
 */
static __always_inline int serve_tc(struct __sk_buff *skb,
				    struct bmc_scratch *s, struct bmc_stats *st)
{
	int why, found = FIND_HIT, intact;
	__u32 keys, off, len;

	(void)cache_sleeps();
	s->reply_len = 0;
	s->reply_csum = 0;
	off = s->text + GET_LEN;
	for (keys = 1; keys <= BMC_KEYS_MAX; keys++) {
		why = tc_key(skb, s, off);
		if (why)
			return why;
		if (found == FIND_HIT)
			found = cache_find(s);
		off = s->next;
		if (!off)
			break;
	}
	if (off)
		return -COUNTER(pass_keys);
	/* Through memory: the verifier goes on with one number, not 32. */
	WRITE_ONCE(s->keys, keys);
	keys = READ_ONCE(s->keys);

	if (found == FIND_HIT) {
		intact = tc_intact(skb, s);
		len = s->text + s->reply_len + END_LEN;
		if (!intact) {
			st->pass_checksum++;
		} else if (!reply_end(s) || !fits_device(skb, s, len) ||
			   bpf_skb_change_tail(skb, len, 0)) {
			st->pass_room++;
		} else if (tc_write(skb, s, len, intact == INTACT_PARTIAL)) {
			count_served(st, keys);
			st->tc_replies++;
			return bpf_redirect(skb->ifindex, 0);
		}
	} else if (found == FIND_SIZE) {
		st->pass_size++;
	} else if (found == FIND_MISPREDICTION) {
		st->hit_mispredictions++;
	}
	st->get_requests++;
	st->get_keys += keys;
	st->misses += keys;
	if (keys == 1 && found != FIND_HIT)
		lease_take(s, st);
	else
		lease_refuse(s);
	return TC_ACT_UNSPEC;
}

/* A UDP datagram to memcached that is no GET of bmc's kind goes on. */
static __always_inline void udp_passed(struct __sk_buff *skb,
				       struct bmc_scratch *s,
				       struct bmc_stats *st, int why)
{
	count(st, why);
	if (!s->text_len) {
		/* It does not get there, or is one of several, which memcached
		 * does not read.
		 */
		if (s->l4_len && why != COUNTER(pass_frame))
			flush_all(st, bpf_ktime_get_coarse_ns() + BMC_APPLY_NS);
		return;
	}
	lease_refuse(s);
	walk_datagram(skb, s);
}

/* A datagram from memcached: if it answers a lease, fill. */
static __always_inline void reply_seen(struct __sk_buff *skb,
				       struct bmc_scratch *s)
{
	struct bmc_stats *st = stats();
	__u32 off = s->l4 + UDP_LEN + FRAME_LEN, len, at, n;
	struct window *win = &s->window;
	bool leased;
	__u64 frame;
	__s64 bytes;

	if (!st || s->l4_len <= UDP_LEN + FRAME_LEN)
		return;
	len = s->l4_len - UDP_LEN - FRAME_LEN;
	n = len < LINE_MAX ? len : LINE_MAX;
	if (!tc_before(skb, off, &frame))
		return;
	/* Every request gets one datagram with the sequence number 0. */
	if ((__u16)(frame >> 16) || !skb_load(skb, off, win->bytes, n, LINE_MAX))
		return;
	s->request.id = (__u16)frame;
	/* Before the lease is touched: such a reply ends nothing. */
	if (!is_memcacheds(skb, s)) {
		st->fill_user++;
		return;
	}
	leased = lease_return(s);
	if ((__u32)window_word(win, 0) == (__u32)TEXT_END) {
		st->get_replies++;
		return;
	}
	if ((__u32)window_word(win, 0) != TEXT_VALU || n < VALUE_LEN)
		return;
	st->get_replies++;
	if (!leased) {
		st->fill_unleased++;
		return;
	}
	if ((__u16)(frame >> 32) != bpf_htons(1))
		goto refuse;

	/* VALUE <key> <flags> <bytes>\r\n<data>\r\nEND\r\n, nothing else. */
	if ((__u16)window_word(win, 4) != TEXT_E_SPACE)
		goto refuse;
	/* Most keys are short. */
	if (s->klen <= SHORT_KEY)
		__builtin_memcpy(s->key, win->bytes + VALUE_LEN, SHORT_KEY);
	else
		__builtin_memcpy(s->key, win->bytes + VALUE_LEN, KEY_WORDS * 8);
	if (window_hash(win, VALUE_LEN, s->klen) != s->hash)
		goto refuse;
	at = VALUE_LEN + s->klen;
	if (window_at(win, at) != ' ')
		goto refuse;
	at = window_token(win, at, n) >> 16; /* flags */
	at = window_token(win, at, n);
	bytes = window_number(win, at & 0xffff, at >> 16, false);
	at >>= 16;
	if (bytes < 0 || bytes > BMC_REPLY_MAX ||
	    (__u16)window_word(win, at) != TEXT_CRLF)
		goto refuse;
	at += 2 + (__u32)bytes; /* where the value ends */
	if (at + 2 + END_LEN != len || len > BMC_REPLY_MAX)
		goto refuse;
	if (!tc_before(skb, off + len, &frame) ||
	    frame >> 8 != (TEXT_CRLF | TEXT_END << 16))
		goto refuse;
	switch (cache_fill(skb, s, off, at + 2)) {
	case FILL_DONE:
		st->fills++;
		break;
	case FILL_RACED:
		st->fill_raced++;
		break;
	case FILL_EXPIRY:
		st->fill_expiry++;
		break;
	default:
		st->fill_admission++;
	}
	return;
refuse:
	st->fill_reply++;
}

#endif /* SERVE_BPF_H */
