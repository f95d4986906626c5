/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The table of TCP connections: finds the flow, which is what is known of one, by
 * its addresses and ports, for each segment. TC programs only.
 *
 * A hash leads to one place, or else to a set of tags around it and, if that is
 * full, to another; a tag that fits leads to a flow, which proves itself by its
 * peers once its turn is taken. A connection gets in when memcached has a socket
 * for it, or is about to have one, so that nobody can fill the table with segments
 * alone; it goes when memcached's end is closed, or the client's while the cache
 * sleeps. Where there is no room, one that was idle for IDLE_NS makes it. Without a
 * place it is not followed, which is safe: each of its segments flushes.
 */
#ifndef TABLE_BPF_H
#define TABLE_BPF_H

enum sock_stage { SOCKET_NONE = 0, SOCKET_EARLY, SOCKET_FULL, SOCKET_CLOSED };

enum {
	TCP_ESTABLISHED = 1,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
	TCP_NEW_SYN_RECV = 12,
};

/* For so long nothing has come over a connection that makes room. */
#define IDLE_NS (BMC_LOST_S * SECOND)

/*
 * Now, in ns from some time on: jiffies, which the verifier makes a load. Only to
 * be compared with another of its kind.
 */
static __always_inline __u64 flow_now(void)
{
	return bpf_jiffies64() * cfg.tick;
}

/* Which reply belongs to which command is unknown from now on. */
__noinline int flow_mute(struct bmc_flow *flow)
{
	if (!flow)
		return 0;
	WRITE_ONCE(flow->doubt, true);
	if (READ_ONCE(flow->mode) != FLOW_CLOSED)
		(void)__sync_lock_test_and_set(&flow->mode, FLOW_MUTE);
	/* Either this sees the tickets, or flow_note() sees the mode. */
	if ((__s32)(READ_ONCE(flow->loose) - READ_ONCE(flow->answered)) > 0) {
		WRITE_ONCE(flow->life, flow->life + 1);
		flow->deep = true;
	}
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

/*
 * The two ends of a segment to memcached, for the kernel to look up; returns how
 * much of them it needs. No connection has the client's port 0: that finds who
 * listens.
 */
static __always_inline __u32 tuple_of(const struct bmc_peers *peers,
				      __be16 from, struct bpf_sock_tuple *tuple)
{
	if (is_mapped(peers->client)) {
		tuple->ipv4.saddr = peers->client[1] >> 32;
		tuple->ipv4.daddr = peers->server[1] >> 32;
		tuple->ipv4.sport = from;
		tuple->ipv4.dport = server_port(peers);
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, peers->client, 16);
	__builtin_memcpy(tuple->ipv6.daddr, peers->server, 16);
	tuple->ipv6.sport = from;
	tuple->ipv6.dport = server_port(peers);
	return sizeof(tuple->ipv6);
}

/* The user whose socket it is, by the kernel's own number. */
static __always_inline __u32 socket_user(struct bmc_scratch *s, __u64 sk)
{
	__u32 user = 0;

	/* Through memory: the verifier adds nothing to a socket's address. */
	WRITE_ONCE(s->socket, sk);
	bpf_probe_read_kernel(&user, sizeof(user),
			      (void *)(long)(READ_ONCE(s->socket) + cfg.sk_uid));
	return user;
}

/*
 * Whether the socket of a datagram belongs to the user who listens over TCP. If
 * nobody does, it may be anybody's, of which something would stay until memcached
 * is there.
 */
__noinline int is_listeners(struct __sk_buff *skb, struct bmc_scratch *s)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	int same = false;
	__u32 size;

	if (!s || !skb->sk)
		return false;
	size = tuple_of(&s->request.peers, 0, &tuple);
	sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	if (sk->state == TCP_LISTEN)
		same = socket_user(s, (long)sk) == socket_user(s, skb->sk);
	bpf_sk_release(sk);
	return same;
}

/*
 * Whether a datagram is memcached's, and not of another user who opened a socket
 * on the same port, as SO_REUSEADDR lets anybody do. Over TCP only one user can
 * listen on an address and port: memcached's. Without the kernel's BTF everybody
 * is believed.
 *
 * A socket that was found to be memcached's is believed until the next flush. It
 * goes when memcached ends, and that is one.
 */
static __always_inline bool is_memcacheds(struct __sk_buff *skb,
					  struct bmc_scratch *s)
{
	struct bmc_global *g = cache_global();
	__u64 socket, epoch, place;

	if (!g || !cfg.sk_uid)
		return true;
	epoch = READ_ONCE(g->word);
	WRITE_ONCE(s->socket, (long)skb->sk);
	socket = READ_ONCE(s->socket);
	/* A socket takes some 1 KB. */
	place = socket >> 10 & (BELIEVED - 1);
	if (s->believed[place].socket == socket &&
	    s->believed[place].epoch == epoch)
		return true;
	if (!is_listeners(skb, s))
		return false;
	s->believed[place].socket = socket;
	s->believed[place].epoch = epoch;
	return true;
}

/*
 * Looks for memcached's socket, for what happens seldom: it costs as much as all
 * of the rest. Notes in the scratch memory how far the socket is.
 *
 * A segment may get here before the stack has made a socket of the handshake: a
 * driver hands on several at once, and each passes here before the first one
 * gets there.
 */
__noinline int socket_look(struct __sk_buff *skb, struct bmc_scratch *s)
{
	const struct bmc_peers *peers;
	struct bpf_sock_tuple tuple = {};
	int found = SOCKET_NONE;
	struct bpf_tcp_sock *tcp;
	struct bpf_sock *sk;
	__u32 size;

	if (!s)
		return SOCKET_NONE;
	peers = &s->request.peers;
	size = tuple_of(peers, client_port(peers), &tuple);
	sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return SOCKET_NONE;
	tcp = bpf_tcp_sock(sk);
	if (sk->state == TCP_FIN_WAIT1 || sk->state == TCP_FIN_WAIT2 ||
	    sk->state == TCP_CLOSING || sk->state == TCP_TIME_WAIT ||
	    sk->state == TCP_LAST_ACK) {
		found = SOCKET_CLOSED;
	} else if (sk->state == TCP_NEW_SYN_RECV) {
		found = SOCKET_EARLY;
		s->rcv_nxt = bpf_ntohl(s->tcp.seq);
		s->snd_nxt = bpf_ntohl(s->tcp.ack_seq);
		s->received = false;
	} else if (sk->state != TCP_LISTEN && tcp) {
		found = SOCKET_FULL;
		s->rcv_nxt = tcp->rcv_nxt;
		s->snd_nxt = tcp->snd_nxt;
		s->received = tcp->bytes_received;
	}
	bpf_sk_release(sk);
	return found;
}

/*
 * The tag of a hash is in its upper half, the number of a set in its lower. This
 * host has few addresses, and nobody chooses them: there they need no product of
 * their own.
 */
static __always_inline __u64 peers_hash(const struct bmc_peers *peers)
{
	return hash_end(cfg.seed[0] +
			hash_word(0, peers->client[0] ^ peers->server[0]) +
			hash_word(1, peers->client[1] ^ peers->server[1]) +
			hash_word(2, (__u32)peers->ports));
}

static __always_inline bool peers_match(const struct bmc_peers *a,
					const struct bmc_peers *b)
{
	return a->client[0] == b->client[0] && a->client[1] == b->client[1] &&
	       a->server[0] == b->server[0] && a->server[1] == b->server[1] &&
	       (__u32)a->ports == (__u32)b->ports;
}

static __always_inline __u32 flow_tag(__u64 hash)
{
	return hash >> 32 | 1;
}

/* The first or second set of a hash. */
static __always_inline __u32 flow_set(__u64 hash, __u32 nth)
{
	return (__u32)(nth ? hash ^ hash >> 35 : hash) & (cfg.flow_sets - 1);
}

/* The place in a set that is tried first. */
static __always_inline __u32 flow_way(__u64 hash)
{
	return hash >> 60;
}

/*
 * Where the hash's tag is in its sets: the number of the flow, plus 1; 0 if it is
 * nowhere. No branch for each tag, which the verifier would follow; should it be
 * there twice, what is found does not prove itself.
 */
__noinline __u32 flow_seek(__u64 hash)
{
	__u32 found = 0;

	for (__u32 nth = 0; nth < 2; nth++) {
		__u32 nr = flow_set(hash, nth);
		const struct bmc_flow_set *set;
		__u64 way = 0;

		set = bpf_map_lookup_elem(&bmc_flow_sets, &nr);
		if (!set)
			continue;
		for (__u32 i = 0; i < BMC_FLOW_WAYS; i++) {
			__u64 same = (__u64)(READ_ONCE(set->tags[i]) ^
					     flow_tag(hash)) -
				     1;

			same >>= 63;
			barrier_var(same); /* or clang makes it a branch */
			way |= same * (i + 1);
		}
		if (way && !found)
			found = nr * BMC_FLOW_WAYS + way;
	}
	return found;
}

/* Most are in the place that is tried first. */
static __always_inline struct bmc_flow *flow_find(__u64 hash)
{
	__u32 place = flow_set(hash, 0) * BMC_FLOW_WAYS + flow_way(hash);
	struct bmc_flow *flow = bpf_map_lookup_elem(&bmc_flows, &place);

	if (likely(flow && READ_ONCE(flow->hash) == hash))
		return flow;
	place = flow_seek(hash) - 1;
	return bpf_map_lookup_elem(&bmc_flows, &place);
}

/* The flow, if it is of these two and its turn for that way can be had. */
static __always_inline struct bmc_flow *
turn_of(struct bmc_flow *flow, const struct bmc_peers *peers, enum way way)
{
	__u32 *turn;

	if (!flow)
		return NULL;
	turn = way == WAY_IN ? &flow->in_turn : &flow->out_turn;
	if (unlikely(!turn_take(turn)))
		return NULL;
	if (likely(peers_match(&flow->peers, peers)))
		return flow;
	turn_end(turn);
	return NULL;
}

static __always_inline struct bmc_flow *flow_take(const struct bmc_peers *peers,
						  enum way way)
{
	return turn_of(flow_find(peers_hash(peers)), peers, way);
}

/*
 * Gives up what is owed and forgets what was known. Both turns must be taken.
 */
static __always_inline void flow_reset(struct bmc_flow *flow)
{
	flow_mute(flow);
	WRITE_ONCE(flow->mode, FLOW_NEW);
	flow->loose_open = false;
	flow->loose = flow->answered;
	flow->guess = false;
	flow->in_skip = 0;
	flow->in_part = 0;
	flow->out_skip = 0;
	flow->out_part = 0;
	flow->tail = flow->head;
	flow->in_tail = flow->head;
	flow->alike = false;
	flow->doubt = false;
	flow->deep = false;
	flow->vague = false;
	flow->found = 0;
	flow->good = 0;
	flow->asked = flow->answered;
	flow->blocks = false;
}

/* The flow is to be another connection's, if nobody works on it. */
__noinline int flow_move_in(struct bmc_flow *flow, __u32 *tag, __u32 old,
			    const struct bmc_peers *peers, __u64 hash)
{
	int moved = false;

	if (!flow || !tag || !peers || !turn_take(&flow->in_turn))
		return false;
	if (turn_take(&flow->out_turn)) {
		moved = __sync_val_compare_and_swap(tag, old, flow_tag(hash)) ==
			old;
		if (moved) {
			flow_reset(flow);
			flow->peers = *peers;
			WRITE_ONCE(flow->hash, hash);
		}
		turn_end(&flow->out_turn);
	}
	turn_end(&flow->in_turn);
	return moved;
}

/* A connection that looks for a place. */
struct mover {
	const struct bmc_peers *peers;
	__u64 hash;
	__u32 place; /* plus 1; 0: none yet */
};

/*
 * Tries one place. First whether the connection has one of them already, then
 * which is free, then which was idle. Returns 1, for bpf_loop(), at the end.
 */
static long mover_step(__u32 i, void *arg)
{
	struct mover *m = arg;
	__u32 pass = i / BMC_FLOW_WAYS, nr = flow_set(m->hash, pass & 1);
	__u32 way = (flow_way(m->hash) + i) & (BMC_FLOW_WAYS - 1);
	__u32 place = nr * BMC_FLOW_WAYS + way, old;
	struct bmc_flow_set *set = bpf_map_lookup_elem(&bmc_flow_sets, &nr);
	struct bmc_flow *flow = bpf_map_lookup_elem(&bmc_flows, &place);

	if (!set || !flow)
		return 0;
	old = READ_ONCE(set->tags[way]);
	if (pass < 2)
		return old == flow_tag(m->hash);
	if (old && READ_ONCE(flow->mode) != FLOW_CLOSED &&
	    (pass < 4 || flow_now() - READ_ONCE(flow->in_last) < IDLE_NS))
		return 0;
	flow->place = place;
	if (!flow_move_in(flow, &set->tags[way], old, m->peers, m->hash))
		return 0;
	m->place = place + 1;
	return 1;
}

/*
 * Gives a connection a place in the table, if it is not there and memcached has
 * a socket for it. Returns its number plus 1, 0 if there is none; `dead` is set if
 * that is because memcached has closed the connection.
 */
__noinline __u32 flow_meet(struct __sk_buff *skb, struct bmc_scratch *s)
{
	struct bmc_global *g = cache_global();
	struct mover m = {};
	int found;

	if (!s)
		return 0;
	found = socket_look(skb, s);
	s->dead = found == SOCKET_CLOSED;
	if (found == SOCKET_NONE || s->dead)
		return 0;
	m.peers = &s->request.peers;
	m.hash = peers_hash(m.peers);
	bpf_loop(6 * BMC_FLOW_WAYS, mover_step, &m, 0);
	/* It was not silent until now, should it be met again. */
	if (!m.place && g)
		WRITE_ONCE(g->since, bpf_ktime_get_coarse_ns());
	return m.place;
}

/* The flow of a connection that was not in the table, its turn taken. */
static __always_inline struct bmc_flow *flow_new(struct __sk_buff *skb,
						 struct bmc_scratch *s)
{
	__u32 place = flow_meet(skb, s) - 1;

	return turn_of(bpf_map_lookup_elem(&bmc_flows, &place),
		       &s->request.peers, WAY_IN);
}

/* The client has torn the connection down. Its turn of the way in must be taken. */
static __always_inline void flow_leave(struct bmc_flow *flow)
{
	__u32 place = flow->place, nr = place / BMC_FLOW_WAYS;
	struct bmc_flow_set *set = bpf_map_lookup_elem(&bmc_flow_sets, &nr);

	flow_mute(flow);
	if (!set || !turn_take(&flow->out_turn))
		return; /* it goes when it was idle for long enough */
	WRITE_ONCE(flow->hash, 0);
	WRITE_ONCE(set->tags[place & (BMC_FLOW_WAYS - 1)], 0);
	turn_end(&flow->out_turn);
}

/*
 * memcached has closed the connection: it reads no more of it. The flow stays until
 * another connection wants its place, to tell that from a connection that memcached
 * reads under another name (a translated address), of which no socket is found either.
 */
static __always_inline void flow_close(struct bmc_flow *flow)
{
	flow_mute(flow);
	(void)__sync_lock_test_and_set(&flow->mode, FLOW_CLOSED);
}

#endif /* TABLE_BPF_H */
