/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Who emptied the cache. Whatever has every entry forgotten is noted in a few
 * records of the CPU that saw it: whose packet it was, why, when, how often and how
 * its text starts. The tool reads them (offenders.rs).
 *
 * A storm, which may be a flush for each packet, must not cost much more for being
 * noted, nor keep the tool from reading:
 *  - The same client for the same reason is one record. To note it again takes
 *    three stores; its text is replaced only if it was quiet for a second.
 *  - Another one takes the place of the record that is oldest, unless even that one
 *    is of this tick. So each record is at rest for a tick at least.
 *
 * A record that is replaced has an odd sequence number meanwhile. No other CPU
 * writes it, but a packet may interrupt bmc_flush and bmc_gone: who finds the number
 * odd notes nothing.
 */
#ifndef OFFENDER_BPF_H
#define OFFENDER_BPF_H

/* A client that was quiet for so long has its text noted anew. */
#define OFFENDER_NS SECOND

/*
 * Notes that these peers emptied the cache. Returns the record's place if its text is
 * to be written, to be followed by offender_end(); -1 if there is nothing more to do.
 */
__noinline int offender_begin(const struct bmc_peers *peers, __u32 reason,
			      __u64 until, __u64 now)
{
	__u64 when, seq;
	struct bmc_offenders *all;
	struct bmc_offender *o;
	__u32 place = 0;
	bool again = false;

	all = bpf_map_lookup_elem(&bmc_offenders, &place);
	if (!all || !peers)
		return -1;
	WRITE_ONCE(all->oldest, ~0ULL);
	for (__u32 i = 0; i < BMC_OFFENDERS; i++) {
		o = &all->last[i];
		when = READ_ONCE(o->when);
		/* At once: four branches are more than they spare. */
		if (!((o->reason ^ reason) | (o->peers.ports ^ peers->ports) |
		      (o->peers.client[0] ^ peers->client[0]) |
		      (o->peers.client[1] ^ peers->client[1]))) {
			WRITE_ONCE(o->when, now);
			WRITE_ONCE(o->until, until);
			WRITE_ONCE(o->count, o->count + 1);
			if ((__s64)(now - when) < (__s64)OFFENDER_NS)
				return -1;
			place = i;
			again = true;
			break;
		}
		/* Through memory: the verifier goes on with one state. */
		when = when * BMC_OFFENDERS | i;
		if (when < READ_ONCE(all->oldest))
			WRITE_ONCE(all->oldest, when);
	}
	if (!again) {
		when = READ_ONCE(all->oldest);
		if (when / BMC_OFFENDERS >= now)
			return -1;
		place = when % BMC_OFFENDERS;
	}
	o = &all->last[place & (BMC_OFFENDERS - 1)];
	seq = READ_ONCE(o->seq);
	if (seq & 1 || __sync_val_compare_and_swap(&o->seq, seq, seq + 1) != seq)
		return -1;
	if (!again) {
		o->when = now;
		o->until = until;
		o->count = 1;
		o->reason = reason;
		o->peers = *peers;
		o->len = 0;
		o->protocol = 0;
	}
	return place;
}

static __always_inline struct bmc_offender *offender_at(int place)
{
	struct bmc_offenders *all;
	__u32 zero = 0;

	all = bpf_map_lookup_elem(&bmc_offenders, &zero);
	return all && place >= 0 ? &all->last[place & (BMC_OFFENDERS - 1)] : NULL;
}

static __always_inline void offender_end(struct bmc_offender *o)
{
	smp_store_release(o->seq, o->seq + 1);
}

/* The same where no packet is the reason. */
static __always_inline void offender_none(const struct bmc_peers *peers,
					  enum bmc_flush_reason reason,
					  __u64 until, __u64 now)
{
	struct bmc_offender *o;

	o = offender_at(offender_begin(peers, reason, until, now));
	if (o)
		offender_end(o);
}

/*
 * The same because of the packet at hand: its text is what is left in the window, or
 * else what it starts with.
 */
__noinline int offender_packet(struct __sk_buff *skb, struct bmc_scratch *s,
			       __u32 reason, __u64 until)
{
	struct bmc_offender *o;
	struct window *win;
	__u32 len;

	if (!s)
		return 0;
	o = offender_at(offender_begin(&s->request.peers, reason, until,
				       bpf_ktime_get_coarse_ns()));
	if (!o)
		return 0;
	/* More exactly: offenders of one tick are told in their order. */
	WRITE_ONCE(o->when, bpf_ktime_get_ns());
	/* There is less before the text than a TCP header. */
	o->protocol = s->text - s->l4 < sizeof(struct tcphdr) ? IPPROTO_UDP
							      : IPPROTO_TCP;
	win = &s->window;
	len = win->at < win->len ? win->len - win->at : s->text_len;
	if (len > BMC_OFFENDER_TEXT)
		len = BMC_OFFENDER_TEXT;
	if (win->at < win->len) {
		for (int i = 0; i < BMC_OFFENDER_TEXT / 8; i++)
			o->text[i] = window_word(win, win->at + i * 8);
	} else if (!skb_load(skb, s->text, o->text, len, BMC_OFFENDER_TEXT)) {
		len = 0;
	}
	o->len = len;
	offender_end(o);
	return 0;
}

#endif /* OFFENDER_BPF_H */
