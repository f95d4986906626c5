/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Headers that packet_parse() does not look behind, which few packets have: IPv4
 * options, extension headers, fragments, a third VLAN tag. The stack walks them, so a
 * write behind them gets to memcached. TC ingress only, but for memcached's replies.
 *
 * What cannot be walked and may be for a memcached counts as a write of any key
 * (packet_unparsed). What each carrier of IP packets comes to:
 *
 *   carrier                           what bmc does                   counter
 *   up to 2 VLAN tags (802.1Q, ad)    all that it does untagged       -
 *   3 to 8 VLAN tags                  walks the commands              pass_header
 *   more tags                         flushes                         packet_unparsed
 *   IPv4 options, up to 8 extension   walks the commands              pass_header
 *     headers, AH in transport mode
 *   more, ESP, IPComp, ESP in UDP     flushes                         packet_unparsed
 *   first fragment, to memcached      flushes                         pass_fragment
 *   later fragments of that           flush                           pass_fragment
 *   other fragments                   nothing
 *   IP in IP behind a routing header  flushes: SRv6 needs no device   packet_unparsed
 *   UDP jumbograms                    flushes                         pass_length
 *   TCP, longer than IP's field says  walks the commands (BIG TCP)    -
 *   several datagrams in one packet   walks the commands of each      pass_gso
 *   IPIP, SIT, GRE, VXLAN, Geneve,    nothing: what is inside comes in by the
 *     L2TP, PPPoE, WireGuard, MACsec    device that unwraps it
 *   IPsec in tunnel mode              flushes, for it cannot be told from transport
 *                                       mode; what is inside comes by once more
 *   MPLS                              nothing: what is inside comes in by lo
 */
#ifndef CHAIN_BPF_H
#define CHAIN_BPF_H

enum {
	TAGS_MAX = 8,
	CHAIN_MAX = 8, /* extension headers */
	/* UDP_MAX_SEGMENTS; GRO puts no more together. */
	DATAGRAMS_MAX = 128,
};

/* No datagram waits longer for its fragments: twice what IPv6 allows by default. */
#define FRAGMENT_NS (120 * SECOND)

enum fragment { FRAGMENT_NONE = 0, FRAGMENT_FIRST, FRAGMENT_LATER };

/* What tc_extension() found. */
enum chain {
	CHAIN_GOES_ON = 0,
	CHAIN_ENDS, /* not an extension header */
	CHAIN_UNKNOWN,
};

/* Where it is noted that fragments of this datagram may come. */
static __always_inline __u64 *fragment_cell(const struct bmc_scratch *s)
{
	const struct bmc_peers *peers = &s->request.peers;
	__u64 hash = hash_end(
		cfg.seed[1] + hash_word(0, peers->client[0]) +
		hash_word(1, peers->client[1]) + hash_word(2, peers->server[0]) +
		hash_word(3, peers->server[1]) + hash_word(4, s->fragment_id));
	__u32 i = hash & (BMC_FRAGMENTS - 1);

	return bpf_map_lookup_elem(&bmc_fragments, &i);
}

/* A packet that may be a write, and is not looked into. */
static __always_inline int chain_flush(struct bmc_scratch *s, enum way way,
				       int why)
{
	__u64 *cell;

	if (way != WAY_IN)
		return PACKET_OTHER;
	/* With the last of its fragments, whichever that is, it gets to memcached. */
	if (s->fragment == FRAGMENT_FIRST) {
		cell = fragment_cell(s);
		if (cell)
			WRITE_ONCE(*cell, bpf_ktime_get_coarse_ns());
	}
	s->l4_len = 1; /* the stack will not drop it */
	return -why;
}

/*
 * A fragment behind the first. It has no ports: it is memcached's if the first
 * fragment of its datagram was. Should that come later, the datagram is not complete
 * before, and the first one flushes.
 */
static __always_inline int chain_later(struct bmc_scratch *s, enum way way)
{
	__u64 *cell = fragment_cell(s), first;

	if (!cell)
		return PACKET_OTHER;
	first = READ_ONCE(*cell);
	if (!first ||
	    (__s64)(bpf_ktime_get_coarse_ns() - first) >= (__s64)FRAGMENT_NS)
		return PACKET_OTHER;
	return chain_flush(s, way, COUNTER(pass_fragment));
}

/* Goes behind the header at s->l4, if it is an extension header. */
__noinline int tc_extension(struct __sk_buff *skb, struct bmc_scratch *s)
{
	struct {
		__u8 next;
		__u8 len;
		__be16 offset; /* a fragment's, and whether more follow */
		__be32 id;
	} header;
	__u32 len;

	if (!s)
		return CHAIN_UNKNOWN;
	switch (s->header) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_DSTOPTS:
	case IPPROTO_AH:
		break;
	case IPPROTO_ESP:
	case IPPROTO_COMP:
		return CHAIN_UNKNOWN;
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
	case IPPROTO_ETHERNET:
		return s->routed ? CHAIN_UNKNOWN : CHAIN_ENDS;
	default:
		return CHAIN_ENDS;
	}
	if (bpf_skb_load_bytes(skb, s->l4, &header, sizeof(header)))
		return s->fragment ? CHAIN_UNKNOWN : CHAIN_ENDS;
	len = (header.len + 1) * 8;
	if (s->header == IPPROTO_AH) {
		len = (header.len + 2) * 4;
	} else if (s->header == IPPROTO_FRAGMENT) {
		len = sizeof(header);
		s->fragment_id = header.id;
		s->fragment = header.offset & bpf_htons(0xfff8) ? FRAGMENT_LATER
								: FRAGMENT_FIRST;
	} else if (s->header == IPPROTO_ROUTING) {
		s->routed = true;
	}
	s->header = header.next;
	s->l4 += len;
	return s->fragment == FRAGMENT_LATER ? CHAIN_ENDS : CHAIN_GOES_ON;
}

/*
 * The IP header at s->ip, behind which s->l4, header and fragment then are. Returns
 * where the packet ends, at s->l4 or before if it does not say; 0 if the stack drops
 * it, or it is no IP packet.
 */
__noinline __u32 tc_network(struct __sk_buff *skb, struct bmc_scratch *s, int way)
{
	__u64 src[2] = {}, dst[2] = {};
	struct bmc_peers *peers;
	union {
		struct iphdr ip4;
		struct ipv6hdr ip6;
	} header;
	__u32 len;

	if (!s)
		return 0;
	peers = &s->request.peers;
	if (s->proto == ETH_P_IP) {
		__u16 part;

		if (bpf_skb_load_bytes(skb, s->ip, &header.ip4,
				       sizeof(header.ip4)))
			return 0;
		len = (header.ip4.version_ihl & 0xf) * 4;
		if (header.ip4.version_ihl >> 4 != 4 || len < sizeof(header.ip4))
			return 0;
		part = bpf_ntohs(header.ip4.frag_off);
		if (part & IP_OFFSET)
			s->fragment = FRAGMENT_LATER;
		else if (part & IP_MF)
			s->fragment = FRAGMENT_FIRST;
		s->fragment_id = header.ip4.id;
		s->header = header.ip4.protocol;
		s->l4 = s->ip + len;
		src[1] = mapped(header.ip4.saddr);
		dst[1] = mapped(header.ip4.daddr);
		len = bpf_ntohs(header.ip4.tot_len);
	} else {
		if (s->proto != ETH_P_IPV6 ||
		    bpf_skb_load_bytes(skb, s->ip, &header.ip6,
				       sizeof(header.ip6)) ||
		    *(__u8 *)&header >> 4 != 6)
			return 0;
		s->header = header.ip6.nexthdr;
		s->l4 = s->ip + sizeof(header.ip6);
		__builtin_memcpy(src, header.ip6.saddr, sizeof(src));
		__builtin_memcpy(dst, header.ip6.daddr, sizeof(dst));
		if (is_mapped(src))
			return 0;
		len = sizeof(header.ip6) + bpf_ntohs(header.ip6.payload_len);
	}
	__builtin_memcpy(way == WAY_IN ? peers->client : peers->server, src,
			 sizeof(src));
	__builtin_memcpy(way == WAY_IN ? peers->server : peers->client, dst,
			 sizeof(dst));
	return s->ip + len;
}

/*
 * What packet_parse() leaves as PACKET_CHAIN: sets what it would have set, but for
 * what only an answer needs. A UDP datagram that is walked to its end is
 * -COUNTER(pass_header).
 */
__noinline int tc_headers(struct __sk_buff *skb, struct bmc_scratch *s, int to)
{
	enum way way = to == WAY_IN ? WAY_IN : WAY_OUT;
	struct bmc_peers *peers;
	struct vlan_hdr tag;
	struct udphdr head;
	__u32 end, spi;
	int how;

	if (!s)
		return PACKET_OTHER;
	peers = &s->request.peers;
	s->fragment = FRAGMENT_NONE;
	s->routed = false;
	/* Which VLAN it is matters only to an answer. */
	for (int i = 0; i < TAGS_MAX && is_tag(s->proto); i++) {
		if (bpf_skb_load_bytes(skb, s->ip, &tag, sizeof(tag)))
			return PACKET_OTHER;
		s->proto = bpf_ntohs(tag.h_vlan_encapsulated_proto);
		s->ip += sizeof(tag);
	}
	if (is_tag(s->proto))
		return chain_flush(s, way, COUNTER(packet_unparsed));
	end = tc_network(skb, s, way);
	if (!end)
		return PACKET_OTHER;
	how = s->fragment == FRAGMENT_LATER ? CHAIN_ENDS : CHAIN_GOES_ON;
	for (int i = 0; i < CHAIN_MAX + 1 && how == CHAIN_GOES_ON; i++)
		how = tc_extension(skb, s);
	if (s->fragment == FRAGMENT_LATER)
		return chain_later(s, way);
	if (how != CHAIN_ENDS)
		return chain_flush(s, way, COUNTER(packet_unparsed));
	if (s->header != IPPROTO_UDP && s->header != IPPROTO_TCP)
		return PACKET_OTHER;
	/* UDP's header begins like TCP's. */
	if (bpf_skb_load_bytes(skb, s->l4, &head, sizeof(head)))
		return s->fragment
			       ? chain_flush(s, way, COUNTER(packet_unparsed))
			       : PACKET_OTHER;
	if (!is_memcached_port(way == WAY_IN ? head.dest : head.source)) {
		/* IKE has four zeroes there. */
		if (way == WAY_IN && is_hidden(s->header, head.dest) &&
		    !bpf_skb_load_bytes(skb, s->l4 + UDP_LEN, &spi, 4) && spi)
			return chain_flush(s, way, COUNTER(packet_unparsed));
		return PACKET_OTHER;
	}
	peers->ports |= way == WAY_IN ? head.source | (__u64)head.dest << 16
				      : head.dest | (__u64)head.source << 16;
	if (s->fragment)
		return chain_flush(s, way, COUNTER(pass_fragment));
	/* No address of IPv6's, but who knows what listens there. */
	if (s->proto == ETH_P_IPV6 && is_mapped(peers->server))
		return chain_flush(s, way, COUNTER(packet_unparsed));
	if (s->header == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, s->l4, &s->tcp, sizeof(s->tcp)))
			return PACKET_OTHER;
		if (end <= s->l4)
			end = skb->len; /* BIG TCP: too long for its field */
		s->l4_len = end - s->l4;
		return PACKET_TCP;
	}
	/* A jumbogram. */
	if (end == s->ip + sizeof(struct ipv6hdr) && s->proto == ETH_P_IPV6)
		return chain_flush(s, way, COUNTER(pass_length));
	s->l4_len = end - s->l4;
	if (end > skb->len || end < s->l4 + UDP_LEN ||
	    s->l4_len < bpf_ntohs(head.len))
		s->l4_len = 0; /* the stack drops it */
	if (s->l4_len != bpf_ntohs(head.len))
		return -COUNTER(pass_length);
	return -COUNTER(pass_header);
}

/* What datagram_next() found. */
enum next { NEXT_NONE = 0, NEXT_SKIP, NEXT_WALK };

/*
 * Stands at the next of the datagrams in a packet, and notes that it goes on to
 * memcached. SKIP is for one that memcached does not read.
 *
 * A packet with gso_size may be one long datagram as well, which a virtual machine
 * wants to have cut into fragments (UFO). What would not be a request at the start of
 * a datagram may be its middle then: the frame header of each but the first has to
 * say that memcached would read it, or the packet may have been anything.
 */
__noinline int datagram_next(struct __sk_buff *skb, struct bmc_scratch *s)
{
	struct bmc_stats *st = stats();
	struct datagrams *d;
	__u32 at, len;
	__u64 frame;

	if (!s || !st)
		return NEXT_NONE;
	d = &s->datagrams;
	at = d->at;
	len = d->end - at;
	if (!len)
		return NEXT_NONE;
	if (len > d->size)
		len = d->size;
	d->at += len;
	st->pass_gso += skb->gso_size != 0;
	if (len <= FRAME_LEN ||
	    bpf_skb_load_bytes(skb, at, &frame, sizeof(frame)) ||
	    (__u16)(frame >> 32) != bpf_htons(1)) {
		st->pass_frame++;
		d->unsure |= at != d->first;
		return NEXT_SKIP;
	}
	s->request.id = (__u16)frame;
	s->text = at + FRAME_LEN;
	s->text_len = len - FRAME_LEN;
	lease_refuse(s);
	return NEXT_WALK;
}

/* Stands before the first of them. */
static __always_inline void datagrams_begin(struct __sk_buff *skb,
					    struct bmc_scratch *s)
{
	struct datagrams *d = &s->datagrams;

	d->first = s->l4 + UDP_LEN;
	d->at = d->first;
	d->end = s->l4 + s->l4_len;
	d->size = skb->gso_size ?: d->end;
	d->unsure = false;
}

/*
 * A UDP packet to memcached that bmc does not answer, but can walk. A loop here and no
 * bpf_loop(): the walk through each datagram needs all the stack there is.
 */
static __always_inline void walk_datagrams(struct __sk_buff *skb,
					   struct bmc_scratch *s,
					   struct bmc_stats *st)
{
	int found = NEXT_NONE;

	datagrams_begin(skb, s);
	for (int i = 0; i < DATAGRAMS_MAX; i++) {
		found = datagram_next(skb, s);
		if (found == NEXT_NONE)
			break;
		if (found == NEXT_WALK)
			walk_datagram(skb, s);
	}
	if (READ_ONCE(s->datagrams.unsure) ||
	    READ_ONCE(s->datagrams.at) != READ_ONCE(s->datagrams.end))
		flush_all(skb, s, st, bpf_ktime_get_coarse_ns() + BMC_APPLY_NS,
			  FLUSH_UNREAD);
}

#endif /* CHAIN_BPF_H */
