/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Every map: who writes it, who reads it, why it has that size. The sizes that
 * depend on --memory are set by the tool before load (src/layout.rs).
 */
#ifndef MAPS_BPF_H
#define MAPS_BPF_H

/* Loads and stores that the compiler neither leaves out nor repeats. */
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* The knobs; frozen at load. Every program reads it, so does the tool. */
const volatile struct bmc_config cfg;

/*
 * The index: one cache line a bucket. BPF_F_MMAPABLE makes the kernel align
 * the values to a page, and so every bucket to its line; a plain array starts
 * 16 bytes into one.
 * Fills and writes change it with atomics (cache.bpf.h), hits read it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_bucket);
} bmc_index SEC(".maps");

/* Slabs of slots; a slab belongs to one size class for good. Fills write. */
struct bmc_slab {
	union {
		struct bmc_slot slot; /* the first; so that the tool knows it */
		__u8 bytes[BMC_SLAB_SIZE];
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_slab);
} bmc_slabs SEC(".maps");

/*
 * Slabs handed out so far and, for each class, its newest slab (plus one) and
 * the slots taken from it. `next` chains the slabs of a class: the eviction
 * hand walks it.
 */
struct bmc_class {
	__u32 first; /* slab + 1; 0: none yet */
	__u32 newest; /* slab + 1 */
	__u32 taken; /* slots handed out of the newest slab */
	__u32 slabs;
};

struct bmc_pool {
	struct bpf_spin_lock lock;
	__u32 slabs; /* handed out to classes */
	struct bmc_class classes[BMC_CLASSES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_pool);
} bmc_pool SEC(".maps");

/* For each slab: its class and the next slab (plus one) of that class. */
struct bmc_slab_meta {
	__u32 class;
	__u32 next;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_slab_meta);
} bmc_slab_meta SEC(".maps");

/* G, the coherence word of the whole cache. flush and flush_all write. */
struct bmc_global {
	__u64 word;
	__u64 quarantine; /* no lease before this time, ns */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_global);
} bmc_global SEC(".maps");

/*
 * What cannot be told from a bucket's word. Many buckets share a cell, which
 * only makes it stricter.
 */
struct bmc_quarantine {
	__u64 until; /* no lease before this time, ns: a write may be on its way */
	__u64 pending; /* when the last write that is to be acknowledged came, ns */
};

enum { BMC_QUARANTINES = 1 << 14 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BMC_QUARANTINES);
	__type(key, __u32);
	__type(value, struct bmc_quarantine);
} bmc_quarantine SEC(".maps");

/* Who has asked memcached and was not answered yet: see lease.bpf.h. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bmc_senders SEC(".maps");

/* A client and the memcached it talks to. */
struct bmc_peers {
	__u64 client[2]; /* network byte order, IPv4 mapped into IPv6 */
	__u64 server[2];
	__be16 client_port;
	__be16 server_port;
	__u32 vlan; /* as in struct bmc_slot */
};

/* One UDP request: who asks whom, under which request id. */
struct bmc_request {
	struct bmc_peers peers;
	__u64 id; /* as on the wire, in the low 16 bits */
};

/* A lease: the right to fill one bucket from the reply to one request. */
struct bmc_lease {
	struct bpf_spin_lock lock;
	__u32 live;
	struct bmc_request request;
	__u64 hash; /* of the key */
	__u64 klen;
	__u64 word; /* W and G, clean, read before the request went on */
	__u64 epoch;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_lease);
} bmc_leases SEC(".maps");

/* A TCP connection. TC programs only: see flow.bpf.h. */
enum {
	BMC_FLOWS = 1 << 13,
	LINE_MAX = 320, /* of a command line: a key and all that may follow */
};

struct bmc_flow {
	__u64 state;
	__u64 last; /* when it last sent something, ns */
	__u32 next; /* sequence number after the last byte looked at */
	__u32 skip; /* bytes of a data block that are still to come */
	__u32 part_len; /* of a command line whose end is still to come */
	__u32 next_out; /* as next, for what memcached sent */
	__u32 replied; /* next_out is set */
	__u16 answered; /* memcached has sent something since */
	__u16 silent; /* the command whose data block goes on says noreply */
	__u64 hash; /* of the key whose data block goes on */
	__u8 part[LINE_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BMC_FLOWS);
	__type(key, struct bmc_peers);
	__type(value, struct bmc_flow);
} bmc_flows SEC(".maps");

/*
 * Counters. Each program run is on one CPU with softirqs off, so nothing else
 * writes that CPU's copy meanwhile and no atomics are needed.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_stats);
} bmc_stats SEC(".maps");

/*
 * The working memory of one program run: what the stack has no room for, and
 * what must not be a packet pointer. One run at a time uses a CPU's copy, for
 * the same reason as above.
 */
enum {
	HEAD_MAX = 96, /* Ethernet + 2 tags + IPv6 + UDP + frame header is 78 */
	WINDOW_MAX = 1024, /* a power of two that two lines fit */
	KEY_WORDS_MAX = 34, /* room for whole words beyond BMC_KEY_MAX */
};

struct bmc_scratch {
	struct bmc_request request;
	/* The packet: offsets from its first byte, lengths in bytes. */
	__u64 size; /* XDP only */
	__u64 mac[3]; /* its first 24 bytes */
	__u32 ip; /* offset of the IP header */
	__u32 ip_first; /* the IP header's first four bytes */
	__u32 ip_id;
	__u32 ip_csum; /* the sum over the IP header: 0xffff if it is whole */
	__u32 l4; /* offset of the UDP or TCP header */
	__u32 l4_len; /* UDP or TCP header and payload */
	__u32 text; /* offset of the memcached text */
	__u32 text_len;
	/* The key at hand, padded with zeroes to whole words. */
	__u32 klen;
	__u64 key[KEY_WORDS_MAX];
	__u64 hash;
	__u32 next; /* offset of the next key; 0 after the last */
	/* The command that line_parse() found in the window. */
	__u32 command;
	__u32 replied;
	__u32 silent; /* noreply: at most an error comes back */
	__u32 key_at; /* in the window */
	__u32 key_len;
	/* The reply so far, END not included. */
	__u32 reply_len;
	__u64 reply_csum;
	/* What cache_find() saw: the words a lease would carry. */
	__u64 word;
	__u64 epoch;
	__u8 frame[HEAD_MAX + 2 * BMC_REPLY_MAX + 16]; /* text at HEAD_MAX */
	__u8 window[WINDOW_MAX + 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_scratch);
} bmc_scratch SEC(".maps");

static __always_inline struct bmc_scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bmc_scratch, &zero);
}

static __always_inline struct bmc_stats *stats(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bmc_stats, &zero);
}

#endif /* MAPS_BPF_H */
