/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * A miss on its way from bmc_rx to bmc_rx_tc. bmc_rx puts what it found out about a GET
 * of one key that is not in the cache in front of the frame, as XDP metadata: 32 bytes
 * that reach TC on this host and nobody else. bmc_rx_tc then does not parse the key,
 * hash it and look it up again.
 *
 * Where there is no metadata, bmc_rx_tc does all of that itself: without XDP (--mode
 * tc), with a driver that has no room for metadata or loses it, for a frame with VLAN
 * tags or padding, and whenever W or G was not clean in XDP.
 *
 * The metadata begins with a secret of this load, because others can bring metadata
 * too: another XDP program writes what it likes, and if a tunnel's headers are taken
 * off an skb that has metadata, the sender's own bytes are found in its place.
 *
 * Beyond that bmc_rx_tc relies on the metadata for the key's hash and length and the
 * words W and G only. Who asks whom it reads from the headers as they are now: under
 * that name the request is outstanding. The hash and the words would do no harm even if
 * they were another frame's: a reply fills from such a lease only if its own key has
 * that hash, and no write to that key's bucket was seen since XDP loaded W, which was
 * before this request goes on to memcached.
 */
#ifndef MISS_BPF_H
#define MISS_BPF_H

enum { PACKET_HOST = 0 };

struct miss {
	__u64 secret;
	__u64 hash; /* of the key */
	__u64 word; /* W; clean, so that its low bits have room for the key's length */
	__u64 epoch; /* G likewise, and for enum found */
};

/* The bits that are zero in a clean word. */
#define MISS_LOW ((__u64)BMC_GEN - 1)

/* Older kernels (6.1) take no more, and only whole words of four bytes. */
_Static_assert(sizeof(struct miss) == 32, "metadata has its limits");
_Static_assert(BMC_KEY_MAX < (int)BMC_GEN,
	       "a key's length fits where W is clean");

/* bmc_rx: the key in s is not there; `found` is what find() returned. */
static __always_inline void miss_note(struct xdp_md *ctx,
				      const struct bmc_scratch *s, int found)
{
	struct miss *miss;

	if (s->ip != sizeof(struct ethhdr) || !is_clean(s->word | s->epoch) ||
	    bpf_xdp_adjust_meta(ctx, -(int)sizeof(*miss)))
		return;
	miss = (void *)(long)READ_ONCE(ctx->data_meta);
	if ((void *)(miss + 1) > DATA(ctx))
		return; /* cannot be */
	*miss = (struct miss){ .secret = cfg.seed[0],
			       .hash = s->hash,
			       .word = s->word | s->klen,
			       .epoch = s->epoch | (__u32)found };
}

/*
 * Who asks whom, if the headers are plain ones. XDP has checked their lengths and
 * checksums already.
 */
static __always_inline bool miss_request(void *data, void *data_end,
					 struct bmc_request *r)
{
	const struct ethhdr *eth = data;
	const struct udphdr *udp;

	*r = (struct bmc_request){};
	if (data + LINK_WORDS * 8 > data_end)
		return false;
	if (likely(eth->h_proto == bpf_htons(ETH_P_IP))) {
		const struct iphdr *ip4 = (void *)(eth + 1);

		udp = (void *)(ip4 + 1);
		if ((void *)(udp + 1) + FRAME_LEN > data_end ||
		    ip4->version_ihl != 0x45 || ip4->protocol != IPPROTO_UDP ||
		    ip4->frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return false;
		r->peers.client[1] = mapped(ip4->saddr);
		r->peers.server[1] = mapped(ip4->daddr);
	} else {
		const struct ipv6hdr *ip6 = (void *)(eth + 1);

		udp = (void *)(ip6 + 1);
		if ((void *)(udp + 1) + FRAME_LEN > data_end ||
		    eth->h_proto != bpf_htons(ETH_P_IPV6) ||
		    ip6->nexthdr != IPPROTO_UDP)
			return false;
		__builtin_memcpy(r->peers.client, ip6->saddr,
				 sizeof(r->peers.client));
		__builtin_memcpy(r->peers.server, ip6->daddr,
				 sizeof(r->peers.server));
	}
	r->peers.ports = *(__u32 *)udp;
	r->id = *(__u16 *)(udp + 1);
	return is_memcached_port(udp->dest);
}

/* What bmc_rx noted in front of the frame; NULL if it noted nothing. */
static __always_inline const struct miss *miss_of(const struct __sk_buff *skb)
{
	const struct miss *miss = (void *)(long)READ_ONCE(skb->data_meta);

	if (likely((void *)(miss + 1) > DATA(skb)) || miss->secret != cfg.seed[0])
		return NULL;
	return miss;
}

/*
 * bmc_rx_tc: counts and leases the miss that bmc_rx noted. False if bmc_rx_tc has to
 * look at the frame itself. A function, because its caller has no stack left.
 */
__noinline int miss_take(struct __sk_buff *skb)
{
	void *data = DATA(skb), *data_end = DATA_END(skb);
	const struct miss *miss = miss_of(skb);
	struct bmc_request request;
	struct bmc_stats *st = stats();

	/* GRO puts GETs of the same key together, which have equal metadata. */
	if (!miss || !st || skb->gso_size || skb->pkt_type != PACKET_HOST ||
	    skb->vlan_present || !miss_request(data, data_end, &request))
		return false;
	(void)cache_sleeps();
	if ((miss->epoch & MISS_LOW) == FIND_MISPREDICTION)
		st->hit_mispredictions++;
	st->get_requests++;
	st->get_keys++;
	st->misses++;
	lease_take(&request, miss->hash, miss->word & MISS_LOW,
		   miss->word & ~MISS_LOW, miss->epoch & ~MISS_LOW, st);
	return true;
}

#endif /* MISS_BPF_H */
