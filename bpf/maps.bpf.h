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

/*
 * Order of loads: x86 keeps it, the compiler has to be told; elsewhere a
 * full barrier, for which BPF has an atomic that returns its old value.
 */
#ifdef __TARGET_ARCH_x86
#define smp_rmb() asm volatile("" ::: "memory")
#else
#define smp_rmb()                                      \
	do {                                           \
		__u64 fence = 0;                       \
		(void)__sync_fetch_and_add(&fence, 1); \
		asm volatile("" ::: "memory");         \
	} while (0)
#endif

/* A store that everything before it precedes, for whoever takes turns. */
#ifdef __TARGET_ARCH_x86
#define smp_store_release(x, v)                \
	do {                                   \
		asm volatile("" ::: "memory"); \
		WRITE_ONCE(x, v);              \
	} while (0)
#else
#define smp_store_release(x, v) ((void)__sync_lock_test_and_set(&(x), v))
#endif

/*
 * Reads what will be written at once, if it is another CPU's line: it comes from
 * there only once then, not for the load and again for the store.
 */
static __always_inline __u64 read_to_write(__u64 *word)
{
	return __sync_fetch_and_add(word, 0);
}

/* One CPU at a time takes its turn at something; nobody waits. */
static __always_inline bool turn_take(__u32 *turn)
{
	return !__sync_val_compare_and_swap(turn, 0, 1);
}

static __always_inline void turn_end(__u32 *turn)
{
	smp_store_release(*turn, 0);
}

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

/* Slabs of slots of one size, see slab.bpf.h. Fills write. */
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
 * the slots taken from it. `next` chains the slabs of a class, oldest first: the
 * eviction hand walks it.
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
	__u32 slots; /* in all of them */
	__u32 begun; /* classes that have one */
	struct bmc_class classes[BMC_CLASSES];
	/* Slabs on their way from class to class, see slab.bpf.h. */
	__u32 turn; /* taken by whoever works on what follows */
	__u32 probe; /* class that is asked for a slab next */
	__u32 empty; /* slab + 1 that is being emptied; 0: none */
	__u32 empty_at; /* its next slot */
	__u32 empty_units; /* of its slots */
	__u32 rest_first; /* slab + 1; 0: none rests */
	__u32 rest_last;
	__u32 resting;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_pool);
} bmc_pool SEC(".maps");

/* Who the entries are from: see cache.bpf.h. Fills write, hits read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, BMC_SERVERS);
	__type(key, __u32);
	__type(value, struct bmc_server);
} bmc_servers SEC(".maps");

/* For each slab: its class and the next slab (plus one) of that class. */
struct bmc_slab_meta {
	__u64 since; /* when it began to rest, ns */
	__u32 class;
	__u32 next;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_slab_meta);
} bmc_slab_meta SEC(".maps");

/* Where this CPU's eviction hand stands in each class. */
struct bmc_hand {
	__u32 slab; /* + 1; 0: not started */
	__u32 slot;
};

struct bmc_hands {
	struct bmc_hand classes[BMC_CLASSES];
	__u64 misses; /* since it last ended an era, see heat.bpf.h */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_hands);
} bmc_hands SEC(".maps");

enum { BMC_DUES = 2 };

/* Until when no lease is given, because a write may be on its way: see lease.bpf.h. */
struct bmc_hold {
	__u64 until; /* ns */
	__u64 held; /* ns, or until the ticket's reply has left */
	__u64 ticket; /* 0: none was given out yet */
};

/* What every hit reads; written seldom. */
struct bmc_global {
	__u64 word; /* G, the coherence word of the whole cache */
	__u64 era; /* of counts of requests, see heat.bpf.h */
	struct bmc_hold hold; /* its `until` is all ones while the cache idles */
	__u64 due[BMC_DUES]; /* when a delayed flush_all takes effect, ns; 0: none */
	__u64 looked; /* when it was looked whether it pays, see sleep.bpf.h */
	__u64 balance; /* as it was then */
	__u64 since; /* from when on every segment was seen, ns */
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
	struct bmc_hold hold;
	__u64 mark; /* of the word that was last found with writes pending */
	__u64 since; /* when it was found first, ns */
};

enum { BMC_QUARANTINES = 1 << 14 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BMC_QUARANTINES);
	__type(key, __u32);
	__type(value, struct bmc_quarantine);
} bmc_quarantine SEC(".maps");

/* Who has asked memcached and was not answered yet: see lease.bpf.h. Aligned as the
 * index is.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bmc_senders SEC(".maps");

/* A client and the memcached it talks to. */
struct bmc_peers {
	__u64 client[2]; /* network byte order, IPv4 mapped into IPv6 */
	__u64 server[2];
	/* The client's, above 16 bits memcached's as in struct bmc_server. In one
	 * word: it is read sooner than parts of it would have been put together.
	 */
	__u64 ports;
};

static __always_inline __be16 client_port(const struct bmc_peers *peers)
{
	return peers->ports;
}

static __always_inline __be16 server_port(const struct bmc_peers *peers)
{
	return peers->ports >> 16;
}

/* As in struct bmc_server. */
static __always_inline __u64 port_vlan(const struct bmc_peers *peers)
{
	return peers->ports >> 16 << 16;
}

/* One UDP request: who asks whom, under which request id. */
struct bmc_request {
	struct bmc_peers peers;
	__u64 id; /* as on the wire, in the low 16 bits */
};

/*
 * A lease: the right to fill one bucket from the reply to one request. Whoever
 * brings it from one state to LEASE_TAKEN has it to himself until he says
 * what it is then.
 */
enum lease_state { LEASE_NONE = 0, LEASE_LIVE, LEASE_TAKEN };

struct bmc_lease {
	__u32 state; /* enum lease_state */
	__u32 klen;
	struct bmc_request request;
	__u64 hash; /* of the key */
	__u64 word; /* W and G, clean, read before the request went on */
	__u64 epoch;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_lease);
} bmc_leases SEC(".maps");

/*
 * When the items end that were written last: see expiry.bpf.h. One cache line
 * for the keys of two buckets.
 */
enum { BMC_EXPIRIES = 7 };

struct bmc_expiry {
	__u64 epoch; /* G when its firm records were made */
	__u64 cells[BMC_EXPIRIES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_expiry);
} bmc_expiry SEC(".maps");

/* A reply that memcached owes to a connection, see flow.bpf.h. */
struct bmc_owed {
	__u64 hash; /* of the key that the command writes */
	__u64 what;
	__u64 before; /* replies that the connection gets before its own */
};

/*
 * A TCP connection, see flow.bpf.h. One CPU at a time works on its way to
 * memcached, and one on its way back; whose it is changes only while neither
 * does. Two cache lines for most packets: both ways read the first one, which
 * seldom changes; then each has its own, and does not need the other's for a get. A
 * line that goes from CPU to CPU with each packet costs more than all of the rest;
 * and a CPU fetches lines in pairs, so that what is one way's begins with a pair.
 */
enum { BMC_OWED = 32 };

enum flow_mode {
	FLOW_NEW = 0,
	FLOW_FOLLOWED,
	FLOW_MUTE,
	FLOW_ASLEEP,
	FLOW_CLOSED, /* by memcached, which reads nothing of it any more */
};

struct bmc_flow {
	__u64 hash; /* of the peers; 0: nobody's */
	struct bmc_peers peers;
	__u32 mode;
	__u32 place; /* in the table */
	__u32 alike; /* a reply that is owed may look as if it were a get's */
	bool binary; /* which protocol it speaks */
	bool deep; /* more was owed than the ring holds when it became mute */
	bool guess; /* where its commands start is not certain */
	__u8 life; /* see lease.bpf.h: tickets */

	/* Of the way to memcached too, but seldom used. */
	__u32 guessed; /* bytes that do not contradict the guess */
	bool loose_open; /* there are commands that are owed and not in the ring */
	bool loose_quiet; /* quiet meta commands among them */
	bool loose_meta; /* other meta commands among them */
	__u8 pad[57];

	struct bmc_owed owed[BMC_OWED];

	__u32 in_turn; /* taken by whoever works on that way */
	__u32 in_next; /* sequence number after the last byte looked at */
	__u32 in_skip; /* bytes of a data block that are still to come */
	__u32 in_part; /* bytes of a command line whose end is still to come */
	__u32 in_block; /* sequence number of the latest data block's start */
	__u32 in_seen; /* out_next when it last sent something */
	__u32 head; /* commands put into the ring */
	__u32 in_tail; /* tail, or what it was */
	__u64 in_last; /* when it last sent something, ns */
	__u64 in_hash; /* of the key whose data block goes on */
	__u32 found; /* segments of whole commands, while its stream is lost */
	__u32 asked; /* commands that get a reply */
	__u32 loose; /* `answered` when the last one that is not in the ring is done */
	__u8 in_pad[4];
	__u8 in_line[LINE_MAX];

	__u32 out_turn;
	__u32 out_next;
	__u32 out_skip;
	__u32 out_part;
	__u32 tail; /* commands taken out of the ring */
	__u32 vague; /* a quiet command may have been taken out for another's reply */
	__u32 answered; /* replies to them */
	__u32 doubt; /* nothing is known about it any more */
	__u32 blocks; /* commands with a data block came, while mute */
	__u32 good; /* how often it seemed that nothing is owed */
	__u64 good_since; /* ns */
	__u32 base; /* asked - answered when it did */
	__u8 out_pad[12];
	__u8 out_line[LINE_MAX];
};

_Static_assert(__builtin_offsetof(struct bmc_flow, owed) == 2 * 64 &&
		       __builtin_offsetof(struct bmc_flow, in_turn) == 14 * 64 &&
		       __builtin_offsetof(struct bmc_flow, out_turn) == 20 * 64 &&
		       sizeof(struct bmc_flow) == 26 * 64,
	       "the ways share no pair of cache lines");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_flow);
} bmc_flows SEC(".maps");

/* The table's index: one cache line for the tags of as many flows, see there. */
enum { BMC_FLOW_WAYS = 16 };

struct bmc_flow_set {
	__u32 tags[BMC_FLOW_WAYS]; /* 0: free */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bmc_flow_set);
} bmc_flow_sets SEC(".maps");

/*
 * Counters. Each run for a packet is on one CPU with softirqs off, so nothing
 * else writes that CPU's copy meanwhile and no atomics are needed; what runs
 * otherwise (bmc_flush, bmc_gone) counts with atomics.
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
	KEY_WORDS_MAX = 34, /* room for whole words beyond BMC_KEY_MAX */
	BELIEVED = 4, /* sockets of memcached's that are known: a power of two */
};

/*
 * How far the walk through a packet's commands or replies has come. Here and not
 * on the stack, because the verifier follows every value that a stack may hold.
 */
struct walk {
	__u64 lag; /* within which memcached applies what is not followed, ns */
	__u64 hash; /* of the last key written */
	__u32 loaded; /* offset in the packet behind what is in the window */
	__u32 end; /* of the packet */
	__u32 skip; /* how far the last data block reaches beyond it */
	__u32 block; /* how long it is, what was in the packet included */
	__u32 part; /* bytes in the window at the end: of a line that goes on */
	__u32 asked; /* commands that will get a reply */
	__u32 owed; /* of them, those put into the ring */
	bool followed;
	bool binary;
	bool keys; /* within a gat: more of its keys follow */
	bool line; /* within a read's line, a long one */
	bool doubt; /* the number of replies is unknown */
	bool blocks; /* there are commands with a data block */
	bool opens; /* the first command that is known of the connection */
	bool resumes; /* after something was missing */
	bool probes; /* likewise, but it is not certain enough */
	bool lost; /* not understood */
	bool alike; /* a reply that is owed may look as if it were a get's */
	bool guesses; /* where its commands start is a guess */
	bool closed; /* memcached has refused the connection */
	__u32 loose; /* as in a flow; 0: none of its commands is */
};

struct bmc_scratch {
	struct bmc_request request;
	/* The packet: offsets from its first byte, lengths in bytes. */
	__u64 size; /* XDP only */
	__u64 head[HEAD_MAX / 8]; /* its first bytes; of most three words */
	__u32 ip; /* offset of the IP header */
	__u32 ip_first; /* the IP header's first four bytes */
	__u32 ip_id;
	__u32 ip_csum; /* the sum over the IP header: 0xffff if it is whole */
	__u32 l4; /* offset of the UDP or TCP header */
	__u32 l4_len; /* UDP or TCP header and payload */
	struct tcphdr tcp;
	__u64 udp; /* the UDP header */
	__u64 datagram; /* memcached's own, behind it */
	__u32 text; /* offset of the memcached text, or of TCP's payload */
	__u32 text_len;
	struct walk walk;
	struct window window;
	/* The key at hand, padded with zeroes to whole words. */
	__u32 klen;
	__u64 key[KEY_WORDS_MAX];
	__u64 key_csum; /* the sum of these words */
	__u64 hash; /* `bmc top` looks at it now and then */
	__u32 next; /* offset of the next key; 0 after the last */
	__u32 keys; /* how many keys the request has */
	/* Of memcached's socket, before this segment gets there. */
	__u32 rcv_nxt;
	__u32 snd_nxt;
	bool received; /* it has got data before */
	bool asleep; /* the cache is, for this segment */
	bool dead; /* memcached has closed the connection */
	__u64 socket; /* the kernel's address of one */
	/* Memcached's, until the next flush: see is_memcacheds(). */
	struct {
		__u64 socket;
		__u64 epoch;
	} believed[BELIEVED];
	/* The command or reply at hand. */
	struct command command;
	struct reply reply;
	/* The reply so far, END not included. */
	__u32 reply_len;
	__u64 reply_csum;
	__u64 peers_csum; /* see csum_peers() */
	/* memcached's number, plus 1; 0: it has none yet. */
	__u32 server;
	/* What cache_find() saw: the words a lease would carry. */
	__u64 word;
	__u64 epoch;
	__u8 frame[HEAD_MAX + 2 * BMC_REPLY_MAX + 16]; /* text at HEAD_MAX */
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
