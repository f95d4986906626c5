/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Frames: from Ethernet to the memcached text, and from a request to its
 * reply. XDP and TC share all of it: they differ only in where a frame begins
 * and ends (data, data_end) and in how it grows.
 */
#ifndef PACKET_BPF_H
#define PACKET_BPF_H

enum {
	ETH_P_IP = 0x0800,
	ETH_P_IPV6 = 0x86dd,
	ETH_P_8021Q = 0x8100,
	ETH_P_8021AD = 0x88a8,
	IPPROTO_HOPOPTS = 0,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_DSTOPTS = 60,
	IP_MF = 0x2000,
	IP_OFFSET = 0x1fff,
	VLAN_VID = 0x0fff,
	VLAN_SHIFT = 12,
	UDP_LEN = 8,
	FRAME_LEN = 8, /* memcached's own header in each datagram */
	TEXT_MAX = 1472, /* of a request: what an Ethernet frame can hold */
	REPLY_TTL = 64,
	LINK_MAX = 22, /* Ethernet and two tags */
	LINK_WORDS = 3,
	REPLY_HEAD = 56, /* IPv6, UDP, frame header; IPv4 and any text are longer */
};

/* What a parser found; below zero: -COUNTER(...) of why it is left alone. */
enum packet {
	PACKET_OTHER = 0,
	PACKET_UDP,
	PACKET_TCP,
	PACKET_SHORT,
	PACKET_UNSURE
};

/* Which way the packet goes, seen from memcached. */
enum way { WAY_IN, WAY_OUT };

/* The counters as numbers, so that a parser can return one. */
#define COUNTER(name) ((int)(offsetof(struct bmc_stats, name) / sizeof(__u64)))

/* Ones' complement arithmetic on sums of 32-bit words (RFC 1071). */
static __always_inline __u64 csum_word(__u64 w)
{
	return (w & 0xffffffff) + (w >> 32);
}

/* Of a sum below 2^48. */
static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/*
 * Whether a sum, not 0, that has the checksum in it folds to 0xffff, as it should:
 * whether 65535 divides it. Such a number times the inverse of 65535 (modulo 2^64,
 * -CSUM_MOST) is the quotient, of which CSUM_MOST is the largest; all others come to
 * more.
 */
#define CSUM_MOST 0x0001000100010001ULL

static __always_inline bool csum_is_right(__u64 sum)
{
	return sum * -CSUM_MOST <= CSUM_MOST;
}

static __always_inline bool is_memcached_port(__be16 port)
{
	/* There is one at least. */
	if (likely(cfg.ports[0] == port))
		return true;
	for (__u32 i = 1; i < BMC_PORTS_MAX && i < cfg.nr_ports; i++)
		if (cfg.ports[i] == port)
			return true;
	return false;
}

/*
 * Offsets and lengths come as __u64 through barrier_var() before they are
 * checked: clang would otherwise check one copy, 32 bits wide, and use another
 * that the verifier takes for unbounded (clang 14 to 19, Linux 6.18).
 *
 * Older kernels lose what was checked of a variable that clang puts on the stack
 * in between (6.1): bounded() says it again. `mask` is one less than a power of
 * two, and not less than what was checked: nothing changes.
 */
#define bounded(var, mask) asm volatile("%0 &= %1" : "+r"(var) : "i"(mask))

/*
 * Whether bmc may answer this client: --allow. Never a group: nobody sends from
 * such an address (224.0.0.0/4, the reserved rest with broadcast, ff00::/8).
 */
static __always_inline bool is_allowed4(__be32 addr)
{
	if ((addr & bpf_htonl(0xe0000000)) == bpf_htonl(0xe0000000))
		return false;
	for (__u32 i = 0; i < BMC_ALLOW_MAX && i < cfg.nr_allow4; i++)
		if ((addr & cfg.allow4[i].mask) == cfg.allow4[i].net)
			return true;
	return false;
}

static __always_inline bool is_allowed6(const __u64 addr[2])
{
	if ((addr[0] & 0xff) == 0xff)
		return false;
	for (__u32 i = 0; i < BMC_ALLOW_MAX && i < cfg.nr_allow6; i++)
		if ((addr[0] & cfg.allow6[i].mask[0]) == cfg.allow6[i].net[0] &&
		    (addr[1] & cfg.allow6[i].mask[1]) == cfg.allow6[i].net[1])
			return true;
	return false;
}

static __always_inline bool is_mapped(const __u64 addr[2])
{
	return !addr[0] && (__u32)addr[1] == 0xffff0000;
}

static __always_inline __u64 mapped(__be32 addr)
{
	return (__u64)addr << 32 | 0xffff0000;
}

/*
 * The sum of UDP's pseudo header but for the length: that of the request and the
 * reply.
 */
static __always_inline __u64 csum_peers(const struct bmc_peers *peers)
{
	/* The ffff of a mapped address is zero in ones' complement. */
	return csum_word(peers->client[0]) + csum_word(peers->client[1]) +
	       csum_word(peers->server[0]) + csum_word(peers->server[1]) +
	       ((__u64)IPPROTO_UDP << 8);
}

/*
 * Ethernet, tags, IP and the ports. Sets request.peers, head, ip*, l4, l4_len (0
 * if the stack will drop the packet), udp, peers_csum.
 * `vlan` is the tag that the kernel keeps outside the frame (TC), if there is one:
 * the frame's own come after it.
 * Says OTHER for anything that is not memcached's, and SHORT if it has to see
 * more than is in linear memory; l4_len is checked against `len`, the whole
 * frame. Without `tcp` only UDP is of interest.
 */
static __always_inline int packet_parse(void *data, void *data_end, __u32 len,
					enum way way, bool tag_outside,
					__u32 vlan, bool tcp,
					struct bmc_scratch *s)
{
	struct bmc_peers *peers = &s->request.peers;
	__u64 src[2] = {}, dst[2] = {};
	__u32 off = sizeof(struct ethhdr);
	__u32 shift = tag_outside ? VLAN_SHIFT : 0;
	__u32 l4, l4_end;
	bool fragment = false, options = false;
	struct ethhdr *eth = data;
	struct udphdr *l4h;
	__u16 proto;
	__u8 next;

	if (data + LINK_WORDS * 8 > data_end)
		return PACKET_SHORT;
	proto = bpf_ntohs(eth->h_proto);
	for (int i = 0; i < 2; i++) {
		struct vlan_hdr *tag = data + off;

		if (proto != ETH_P_8021Q && proto != ETH_P_8021AD)
			break;
		if ((void *)(tag + 1) > data_end)
			return PACKET_SHORT;
		if (shift > VLAN_SHIFT)
			return PACKET_OTHER;
		vlan |= (bpf_ntohs(tag->h_vlan_TCI) & VLAN_VID) << shift;
		proto = bpf_ntohs(tag->h_vlan_encapsulated_proto);
		shift += VLAN_SHIFT;
		off += sizeof(*tag);
	}

	if (proto == ETH_P_IP) {
		struct iphdr *ip = data + off;
		__u32 ihl;

		if ((void *)(ip + 1) > data_end)
			return PACKET_SHORT;
		next = ip->protocol;
		if (next != IPPROTO_UDP && (next != IPPROTO_TCP || !tcp))
			return PACKET_OTHER;
		if (bpf_ntohs(ip->frag_off) & IP_OFFSET)
			return PACKET_OTHER; /* no ports in there */
		fragment = bpf_ntohs(ip->frag_off) & IP_MF;
		ihl = (ip->version_ihl & 0xf) * 4;
		if (ip->version_ihl >> 4 != 4 || ihl < sizeof(*ip))
			return PACKET_OTHER;
		options = ihl != sizeof(*ip);
		src[1] = mapped(ip->saddr);
		dst[1] = mapped(ip->daddr);
		s->ip_first = *(__u32 *)ip;
		s->ip_id = ip->id;
		s->ip_csum = csum_fold(csum_word(*(__u64 *)ip) +
				       csum_word(*(__u64 *)&ip->ttl) + ip->daddr);
		l4 = off + ihl;
		l4_end = off + bpf_ntohs(ip->tot_len);
	} else if (proto == ETH_P_IPV6) {
		struct ipv6hdr *ip = data + off;

		if ((void *)(ip + 1) > data_end)
			return PACKET_SHORT;
		if ((*(__u8 *)ip >> 4) != 6)
			return PACKET_OTHER;
		next = ip->nexthdr;
		l4 = off + sizeof(*ip);
		l4_end = l4 + bpf_ntohs(ip->payload_len);
		__builtin_memcpy(src, ip->saddr, sizeof(src));
		__builtin_memcpy(dst, ip->daddr, sizeof(dst));
		/* An address of the other family has no business here, and
		 * would be taken for it later.
		 */
		if (is_mapped(src) || is_mapped(dst))
			return PACKET_OTHER;
		s->ip_first = ip->version_class_label;
		s->ip_csum = 0xffff; /* it has none */
		/* One extension header is looked behind, to count it. */
		if (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING ||
		    next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT) {
			__u8 *ext = (void *)(ip + 1);

			if ((void *)(ext + 8) > data_end)
				return PACKET_SHORT;
			if (next == IPPROTO_FRAGMENT) {
				if (ext[2] || ext[3] & 0xf8)
					return PACKET_OTHER;
				fragment = true;
				l4 += 8;
			} else {
				options = true;
				l4 += (ext[1] + 1) * 8;
			}
			next = ext[0];
		}
		if (next != IPPROTO_UDP && (next != IPPROTO_TCP || !tcp))
			return PACKET_OTHER;
	} else {
		return PACKET_OTHER;
	}

	l4h = data + l4;
	if ((void *)(l4h + 1) > data_end)
		return PACKET_SHORT;
	if (way == WAY_IN) {
		if (!is_memcached_port(l4h->dest))
			return PACKET_OTHER;
		peers->client[0] = src[0];
		peers->client[1] = src[1];
		peers->server[0] = dst[0];
		peers->server[1] = dst[1];
		peers->ports = l4h->source | (__u64)l4h->dest << 16 |
			       (__u64)vlan << 32;
	} else {
		if (!is_memcached_port(l4h->source))
			return PACKET_OTHER;
		peers->client[0] = dst[0];
		peers->client[1] = dst[1];
		peers->server[0] = src[0];
		peers->server[1] = src[1];
		peers->ports = l4h->dest | (__u64)l4h->source << 16 |
			       (__u64)vlan << 32;
	}
	if (next == IPPROTO_TCP) {
		if ((void *)l4h + sizeof(s->tcp) > data_end)
			return PACKET_SHORT;
		s->tcp = *(struct tcphdr *)l4h;
		if (l4_end <= l4)
			l4_end = len; /* BIG TCP: too long for its field */
	}
	s->head[0] = ((__u64 *)data)[0];
	s->head[1] = ((__u64 *)data)[1];
	s->head[2] = ((__u64 *)data)[2];
	s->ip = off;
	s->l4 = l4;
	s->l4_len = l4_end - l4;
	if (fragment)
		return -COUNTER(pass_fragment);
	if (next == IPPROTO_TCP)
		return PACKET_TCP;
	if (options)
		return -COUNTER(pass_header);
	/* The stack drops what is cut short; what has more bytes than UDP says
	 * memcached gets to see without them.
	 */
	if (l4_end > len || l4_end < l4 + UDP_LEN ||
	    l4_end - l4 < bpf_ntohs(l4h->len)) {
		s->l4_len = 0;
		return -COUNTER(pass_length);
	}
	if (l4_end - l4 > bpf_ntohs(l4h->len))
		return -COUNTER(pass_length);
	s->udp = *(__u64 *)l4h;
	s->peers_csum = csum_peers(peers);
	return PACKET_UDP;
}

/*
 * What packet_parse() finds in a packet with nothing but the plain headers, as
 * most are; in a TCP segment less what only a reply in place would want to know.
 * UNSURE is for packet_parse() to judge.
 */
static __always_inline int plain_parse(void *data, void *data_end, __u32 len,
				       enum way way, bool tcp,
				       struct bmc_scratch *s)
{
	struct bmc_peers *peers = &s->request.peers;
	__u64 src[2] = {}, dst[2] = {}, sum, ip_sum = 0xffff, w;
	struct ethhdr *eth = data;
	struct udphdr *l4h;
	void *ip = eth + 1;
	__u32 ports;
	__u8 next;

	if (unlikely(ip + sizeof(struct iphdr) + sizeof(*l4h) > data_end))
		return PACKET_UNSURE;
	if (likely(eth->h_proto == bpf_htons(ETH_P_IP))) {
		struct iphdr *ip4 = ip;

		next = ip4->protocol;
		if (unlikely(next != IPPROTO_UDP && (next != IPPROTO_TCP || !tcp)))
			return PACKET_OTHER;
		if (unlikely(ip4->version_ihl != 0x45 ||
			     ip4->frag_off & bpf_htons(IP_MF | IP_OFFSET)))
			return PACKET_UNSURE;
		src[1] = mapped(ip4->saddr);
		dst[1] = mapped(ip4->daddr);
		sum = (__u64)ip4->saddr + ip4->daddr;
		s->l4_len = bpf_ntohs(ip4->tot_len) - sizeof(*ip4);
		l4h = (void *)(ip4 + 1);
		if (next == IPPROTO_UDP) {
			w = *(__u64 *)ip;
			s->ip_first = w;
			s->ip_id = (__u16)(w >> 32);
			ip_sum = csum_word(w) + *(__u32 *)&ip4->ttl + sum;
		}
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = ip;

		l4h = (void *)(ip6 + 1);
		if ((void *)(l4h + 1) > data_end)
			return PACKET_UNSURE;
		next = ip6->nexthdr;
		if (next == IPPROTO_TCP && !tcp)
			return PACKET_OTHER;
		if ((next != IPPROTO_UDP && next != IPPROTO_TCP) ||
		    *(__u8 *)ip >> 4 != 6)
			return PACKET_UNSURE;
		__builtin_memcpy(src, ip6->saddr, sizeof(src));
		__builtin_memcpy(dst, ip6->daddr, sizeof(dst));
		if (is_mapped(src) || is_mapped(dst))
			return PACKET_OTHER;
		sum = csum_word(src[0]) + csum_word(src[1]) +
		      csum_word(dst[0]) + csum_word(dst[1]);
		s->l4_len = bpf_ntohs(ip6->payload_len);
		s->ip_first = ip6->version_class_label;
	} else {
		return PACKET_UNSURE;
	}
	if (!is_memcached_port(way == WAY_IN ? l4h->dest : l4h->source))
		return PACKET_OTHER;
	/* Without a length: see BIG TCP above. */
	if (unlikely((__s32)s->l4_len <= 0))
		return PACKET_UNSURE;
	ports = *(__u32 *)l4h;
	*peers = way == WAY_IN
			 ? (struct bmc_peers){ .client = { src[0], src[1] },
					       .server = { dst[0], dst[1] },
					       .ports = ports }
			 : (struct bmc_peers){ .client = { dst[0], dst[1] },
					       .server = { src[0], src[1] },
					       .ports = ports >> 16 |
							(__u32)ports << 16 };
	s->l4 = (void *)l4h - data;
	if (next == IPPROTO_TCP) {
		struct tcphdr *head = (void *)l4h;

		if (unlikely((void *)(head + 1) > data_end))
			return PACKET_UNSURE;
		s->tcp = *head;
		return PACKET_TCP;
	}
	if (!csum_is_right(ip_sum) || s->l4_len < UDP_LEN ||
	    s->l4_len != bpf_ntohs(l4h->len) || s->l4 + s->l4_len > len)
		return PACKET_UNSURE;
	s->head[0] = ((__u64 *)data)[0];
	s->head[1] = ((__u64 *)data)[1];
	s->head[2] = ((__u64 *)data)[2];
	s->ip = sizeof(*eth);
	s->ip_csum = 0xffff;
	s->udp = *(__u64 *)l4h;
	s->peers_csum = sum + (IPPROTO_UDP << 8);
	return PACKET_UDP;
}

/* The eight bytes before offset `end`. */
static __always_inline bool word_before(void *data, void *data_end, __u64 end,
					__u64 *w)
{
	__u64 at = end - 8;

	/* Not data + end - 8: the verifier refuses a negative step. */
	barrier_var(at);
	if (at > 2 * HEAD_MAX + TEXT_MAX)
		return false;
	bounded(at, 2047);
	data += at;
	if (data + 8 > data_end)
		return false;
	*w = *(__u64 *)data;
	return true;
}

/*
 * The datagram of a UDP request, after packet_parse() and with all of it in
 * linear memory: memcached's frame header and "get ". Sets request.id, datagram,
 * text, text_len. Returns 0, or -COUNTER(...) of why bmc leaves it alone; text_len
 * is 0 if memcached will not read the text either.
 */
static __always_inline int request_parse(void *data, void *data_end,
					 struct bmc_scratch *s)
{
	const struct bmc_peers *peers = &s->request.peers;
	__u64 l4 = s->l4, len = (__u32)(s->l4_len - UDP_LEN - FRAME_LEN);
	__u64 frame;
	__u8 *text;

	s->text_len = 0;
	if (s->ip_csum != 0xffff) {
		s->l4_len = 0;
		return -COUNTER(pass_checksum);
	}
	barrier_var(l4);
	barrier_var(len);
	if (s->l4_len <= UDP_LEN + FRAME_LEN)
		return -COUNTER(pass_frame);
	if (l4 > HEAD_MAX || len > TEXT_MAX)
		return -COUNTER(pass_length);
	bounded(l4, 127);
	bounded(len, 2047);
	text = data + l4 + UDP_LEN + FRAME_LEN;
	if ((void *)text > data_end)
		return -COUNTER(pass_length);
	frame = *(__u64 *)(text - FRAME_LEN);
	/* doc/protocol.txt: id, sequence, total; the rest is reserved. */
	if ((__u16)(frame >> 32) != bpf_htons(1))
		return -COUNTER(pass_frame);
	s->request.id = (__u16)frame;
	s->datagram = frame;
	s->text = l4 + UDP_LEN + FRAME_LEN;
	s->text_len = len;
	if ((__u16)(frame >> 16)) /* memcached does not look */
		return -COUNTER(pass_frame);

	/* Multicast and broadcast are nobody's in particular: such a frame is not
	 * for us alone, or the reply would not be for its sender alone.
	 */
	if ((s->head[0] | s->head[0] >> 48) & 1 || !client_port(peers))
		return -COUNTER(pass_address);
	if (is_mapped(peers->client) ? !is_allowed4(peers->client[1] >> 32)
				     : !is_allowed6(peers->client))
		return -COUNTER(pass_source);
	if (len < GET_LEN || (void *)text + GET_LEN > data_end ||
	    *(__u32 *)text != TEXT_GET)
		return -COUNTER(pass_command);
	return 0;
}

/*
 * The key that starts at offset `off`: its words, their sum, length and hash, and
 * in `next` where the one behind it starts; 0 if the text ends there with "\r\n".
 * Word by word, until one holds a byte that ends a key. Returns 0 or -COUNTER(...).
 */
static __always_inline int request_key(void *data, void *data_end, __u32 off,
				       struct bmc_scratch *s)
{
	__u64 from = off, end = s->text + s->text_len;
	__u64 sum = cfg.seed[0], csum = 0, w, ends, first = 0, klen;
	__u8 *p;

	barrier_var(from);
	barrier_var(end);
	if (from > HEAD_MAX + TEXT_MAX || end > HEAD_MAX + TEXT_MAX || from >= end)
		return -COUNTER(pass_line);
	bounded(from, 2047);
	p = data + from;
	for (__u32 i = 0; i < KEY_WORDS + 1; i++, p += 8) {
		if ((void *)p + 8 <= data_end) {
			w = *(__u64 *)p;
		} else {
			/* The text's last bytes: at most 7, the line end among
			 * them, taken from the word that ends with the text.
			 */
			__u32 left = end - from - i * 8;

			if (left - 1 > 6 || !word_before(data, data_end, end, &w))
				return -COUNTER(pass_line);
			w >>= 64 - left * 8;
		}
		ends = word_ends(w);
		if (ends) {
			first = word_first(ends);
			w &= first - 1;
			s->key[i] = w;
			sum += hash_word(i, w);
			csum += csum_word(w);
			WRITE_ONCE(s->klen, i * 8 + word_count(first));
			break;
		}
		s->key[i] = w;
		sum += hash_word(i, w);
		csum += csum_word(w);
	}
	if (!first)
		return -COUNTER(pass_key);
	/* Through memory: the verifier goes on with one length, not 33. */
	klen = READ_ONCE(s->klen);
	if (!klen)
		return -COUNTER(pass_line);
	if (klen > BMC_KEY_MAX)
		return -COUNTER(pass_key);
	bounded(klen, 255);
	s->hash = hash_end(sum);
	s->key_csum = csum;
	from += klen;
	p = data + from;
	if ((void *)p + 2 > data_end)
		return -COUNTER(pass_line);
	if (*(__u16 *)p == TEXT_CRLF && from + 2 == end)
		s->next = 0;
	else if (*p == ' ')
		s->next = from + 1;
	else
		return *p == '\r' || *p == '\n' ? -COUNTER(pass_line)
						: -COUNTER(pass_key);
	return 0;
}

/* bpf_skb_load_bytes() of 1 to `max` bytes; anything else is refused. */
static __always_inline bool skb_load(struct __sk_buff *skb, __u32 off, void *to,
				     __u64 len, __u32 max)
{
	/* From 0 up, so that the verifier sees that len is not 0. */
	len--;
	barrier_var(len);
	return len < max && !bpf_skb_load_bytes(skb, off, to, len + 1);
}

enum intact { INTACT_NO = 0, INTACT_YES, INTACT_PARTIAL };

/* The sum of up to seven bytes that are `len` bytes behind an even place. */
static __always_inline __u64 csum_behind(__u64 bytes, __u64 len)
{
	return csum_word(bytes << (len & 1) * 8);
}

/*
 * Whether the request is what its sender sent, `sum` being that of all of its UDP
 * datagram. The stack would check it; a hit never gets there. A sender on this
 * machine leaves the checksum to hardware that does not exist: its field holds the
 * sum of the addresses only (CHECKSUM_PARTIAL), and nothing can have damaged the
 * rest. One request in 65536 looks like both; with `sure` it is taken for neither.
 */
static __always_inline int csum_intact(const struct bmc_scratch *s, __u64 sum,
				       bool sure)
{
	__u64 pseudo = s->peers_csum + bpf_htons(s->l4_len);
	__u16 check = s->udp >> 48;
	bool whole, partial;

	if (!check)
		return is_mapped(s->request.peers.client) ? INTACT_YES
							  : INTACT_NO;
	whole = csum_is_right(pseudo + sum);
	if (whole && !sure)
		return INTACT_YES;
	partial = csum_is_right(pseudo + (__u16)~check);
	if (partial)
		return whole ? INTACT_NO : INTACT_PARTIAL;
	return whole ? INTACT_YES : INTACT_NO;
}

/* The same of a GET of one key, by what has been read of it. */
static __always_inline int request_intact(const struct bmc_scratch *s)
{
	return csum_intact(s,
			   csum_word(s->udp) + csum_word(s->datagram) + TEXT_GET +
				   s->key_csum + csum_behind(TEXT_CRLF, s->klen),
			   cfg.generic);
}

/* The same of any, read once more. */
static __always_inline int packet_intact(void *data, void *data_end,
					 const struct bmc_scratch *s, bool sure)
{
	__u64 len = s->l4_len, l4 = s->l4, i;
	__u64 sum = 0, w;
	__u8 *p;

	barrier_var(l4);
	barrier_var(len);
	if (l4 > HEAD_MAX || len > TEXT_MAX + UDP_LEN + FRAME_LEN)
		return INTACT_NO;
	bounded(l4, 127);
	bounded(len, 2047);
	p = data + l4;
	/* Sixteen bytes at a time, then eight, then what is left. */
	for (i = 16; i <= TEXT_MAX + UDP_LEN + FRAME_LEN; i += 16, p += 16) {
		if (i > len)
			break;
		if ((void *)p + 16 > data_end)
			return INTACT_NO;
		sum += (__u64)((__u32 *)p)[0] + ((__u32 *)p)[1];
		sum += (__u64)((__u32 *)p)[2] + ((__u32 *)p)[3];
	}
	if (len & 8) {
		if ((void *)p + 8 > data_end)
			return INTACT_NO;
		sum += (__u64)((__u32 *)p)[0] + ((__u32 *)p)[1];
	}
	if (len & 7) {
		if (!word_before(data, data_end, l4 + len, &w))
			return INTACT_NO;
		sum += csum_word(w >> (64 - (len & 7) * 8));
	}
	return csum_intact(s, sum, sure);
}

static __always_inline void text_end(__u8 *to)
{
	*(__u32 *)to = (__u32)TEXT_END;
	to[4] = TEXT_END >> 32;
}

/*
 * Ends the text in s->frame; the sum is then that of all of it. True, as
 * cache_find() leaves room for the end.
 */
static __always_inline bool reply_end(struct bmc_scratch *s)
{
	__u32 len = s->reply_len;

	if (len > BMC_REPLY_MAX - END_LEN)
		return false;
	text_end(s->frame + HEAD_MAX + len);
	s->reply_csum += csum_behind(TEXT_END, len);
	return true;
}

/*
 * Writes the headers of the request, answered: from `l2` on what is before the IP
 * header, LINK_WORDS words, and from `ip` on the others. With `partial` the
 * checksum covers the addresses only, for whoever completes it.
 */
static __always_inline void reply_head(const struct bmc_scratch *s, __u8 *l2,
				       __u8 *ip, bool partial)
{
	const struct bmc_peers *peers = &s->request.peers;
	__u64 dst = s->head[0] & 0xffffffffffffULL, sum, id = s->request.id;
	__u64 src = s->head[0] >> 48 | (s->head[1] & 0xffffffff) << 16;
	__u32 udp_len = UDP_LEN + FRAME_LEN + s->reply_len + END_LEN;
	__u32 ports = (__u32)s->udp >> 16 | (__u32)s->udp << 16;

	*(__u64 *)l2 = src | dst << 48;
	*(__u64 *)(l2 + 8) = dst >> 16 | (s->head[1] >> 32 << 32);
	*(__u64 *)(l2 + 16) = s->head[2];

	sum = s->peers_csum + bpf_htons(udp_len);
	if (partial) {
		sum = csum_fold(sum);
	} else {
		sum += s->reply_csum + ports + bpf_htons(udp_len) + id +
		       bpf_htons(1);
		sum = (__u16)~csum_fold(sum);
		if (!sum)
			sum = 0xffff; /* RFC 768: zero would mean none */
	}
	if (is_mapped(peers->client)) {
		__u32 total = sizeof(struct iphdr) + udp_len;
		__u32 from = peers->server[1] >> 32, to = peers->client[1] >> 32;
		/* No DF: what the path cannot carry whole may be split. */
		__u64 first = (s->ip_first & 0xffff) |
			      (__u64)bpf_htons(total) << 16 |
			      (__u64)s->ip_id << 32;
		__u64 ttl = REPLY_TTL | IPPROTO_UDP << 8;

		ttl |= (__u64)(__u16)~csum_fold(csum_word(first) + ttl + from + to)
		       << 16;
		*(__u64 *)ip = first;
		*(__u64 *)(ip + 8) = ttl | (__u64)from << 32;
		*(__u32 *)(ip + 16) = to;
		ip += sizeof(struct iphdr);
	} else {
		*(__u64 *)ip = s->ip_first | (__u64)bpf_htons(udp_len) << 32 |
			       (__u64)IPPROTO_UDP << 48 | (__u64)REPLY_TTL << 56;
		*(__u64 *)(ip + 8) = peers->server[0];
		*(__u64 *)(ip + 16) = peers->server[1];
		*(__u64 *)(ip + 24) = peers->client[0];
		*(__u64 *)(ip + 32) = peers->client[1];
		ip += sizeof(struct ipv6hdr);
	}
	*(__u64 *)ip = ports | (__u64)bpf_htons(udp_len) << 32 | sum << 48;
	/* The same id, sequence 0, total 1. */
	*(__u64 *)(ip + UDP_LEN) = id | (__u64)bpf_htons(1) << 32;
}

#endif /* PACKET_BPF_H */
