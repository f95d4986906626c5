/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Fuzzes the grammar (bpf/proto.h) and the walk through a stream
 * (bpf/flow.bpf.h) against a slow reader of the same bytes, written after
 * memcached 1.6.18: proto_text.c, proto_bin.c, base64.c, util.c. What the
 * programs say they understood must be what memcached does:
 *
 *  - as many bytes of line or header and of data block;
 *  - every key that memcached changes, decoded;
 *  - a read only if memcached changes nothing;
 *  - whether there may be no reply, and when the item ends.
 *
 * That a command is not understood is fine; scripts/fuzz.sh checks with the seeds
 * that common ones are.
 *
 * An input is a letter for the kind of stream (c, C: text and binary commands;
 * r, R: replies), one byte that says how often it is repeated (2 bits) and into
 * packets of what length it is cut (6 bits; 0: one packet), and the stream.
 */
#include "kernel.h"

enum {
	STREAM_MAX = 1 << 15,
	KEYS_MAX = STREAM_MAX / 2,
	EVENTS_MAX = 1 << 16,
	PACKETS_MAX = 256,
	WALL = 1700000000, /* the time of day when the machine started, s */
};

static bool all_known; /* every command must be understood: for the seeds */
static const char *doing = "";

static void fail(const char *what, __u64 have, __u64 want)
{
	fprintf(stderr, "%s: %s: %llu instead of %llu\n", doing, what, have,
		want);
	abort();
}

#define EXPECT(have, want) \
	((have) == (want) ? (void)0 : fail(#have, have, want))
#define REQUIRE(what) ((what) ? (void)0 : fail("not so: " #what, 0, 1))

/* What memcached does with a command. */
enum silence { ANSWERED, PERHAPS, SILENT };

#define END_NEVER (1LL << 60)

struct truth {
	bool whole; /* else its line or header goes on */
	bool closes; /* the connection; nothing else happens */
	bool refused; /* nothing happens but an error */
	__u32 kind; /* what it changes */
	__u32 reply; /* as enum reply_kind; 0: any will do */
	enum silence silence;
	__u64 head;
	__u64 block;
	/* The times at which the item may end, relative; or it keeps its own. */
	int ends;
	__s64 end[2];
	bool keeps;
	__s64 delay; /* of a flush */
	__u32 keys;
	struct {
		const char *at;
		size_t len;
	} key[KEYS_MAX];
};

static struct truth truth;
static char line[STREAM_MAX + 1];
static char *token[STREAM_MAX / 2 + 1];

/* memcached's realtime() and EXPTIME_TO_POSITIVE_TIME(): 0 is now. */
static __s64 end_of(__s64 exptime)
{
	if (!exptime)
		return END_NEVER;
	if (exptime < 0)
		return 0;
	if (exptime > 30 * 24 * 3600) {
		exptime -= WALL + TIME / SECOND;
		return exptime < 0 ? 0 : exptime;
	}
	return exptime;
}

static void ends_at(__s64 exptime)
{
	truth.end[truth.ends++] = end_of(exptime);
}

static void changes(const char *key, size_t len)
{
	truth.kind = COMMAND_WRITE;
	truth.key[truth.keys].at = key;
	truth.key[truth.keys++].len = len;
}

/* safe_strtol() and its like: what ends a number is its end or a blank. */
static bool blank_or_end(const char *s, const char *end)
{
	return end != s && !errno && (!*end || strchr(" \t\n\v\f\r", *end));
}

static bool number32(const char *s, __s32 *n)
{
	char *end;

	errno = 0;
	*n = strtol(s, &end, 10);
	return blank_or_end(s, end);
}

static bool number64(const char *s, __u64 *n)
{
	char *end;

	errno = 0;
	*n = strtoull(s, &end, 10);
	return blank_or_end(s, end) && !((__s64)*n < 0 && strchr(s, '-'));
}

/* base64.c: other characters are skipped, what follows padding is ignored. */
static size_t decode(char *s, size_t len)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t count = 0, pads = 0, n = 0;
	__u32 bits = 0;

	for (size_t i = 0; i < len; i++)
		count += s[i] == '=' || (s[i] && strchr(alphabet, s[i]));
	if (!count || count % 4)
		return 0;
	count = 0;
	for (size_t i = 0; i < len; i++) {
		const char *c = s[i] ? strchr(alphabet, s[i]) : NULL;

		if (!c && s[i] != '=')
			continue;
		pads += s[i] == '=';
		bits = bits << 6 | (c ? c - alphabet : 0);
		if (++count % 4)
			continue;
		if (pads > 2)
			return 0;
		for (size_t k = 0; k < 3 - pads; k++)
			s[n++] = bits >> (16 - 8 * k);
		if (pads)
			break;
	}
	return n;
}

/* The flags of a meta command, from token `i` on; false if it is refused. */
struct flags {
	bool set[128];
	__s32 t, n;
	char mode;
};

static bool meta_flags(struct flags *f, int i, int tokens, size_t *klen)
{
	bool good = true;
	__u64 big;
	__s32 small;

	memset(f, 0, sizeof(*f));
	for (; i < tokens; i++) {
		__u8 c = token[i][0];

		if (c >= 127 || f->set[c] ||
		    !strchr("bNTRlOPLkstcfvhuqFCMJDI", c))
			return false;
		f->set[c] = true;
		if (c == 'b')
			good &= (*klen = decode(token[1], *klen)) > 0;
		else if (c == 'N')
			good &= number32(token[i] + 1, &f->n);
		else if (c == 'T')
			good &= number32(token[i] + 1, &f->t);
		else if (c == 'R')
			good &= number32(token[i] + 1, &small);
		else if (c == 'F' || c == 'C' || c == 'J' || c == 'D')
			good &= number64(token[i] + 1, &big);
		else if (c == 'M')
			good &= strlen(token[i]) == 2;
		if (c == 'M')
			f->mode = token[i][1];
	}
	return good;
}

static void refused(bool noreply)
{
	truth.refused = true;
	truth.silence = noreply ? SILENT : ANSWERED;
}

/* mg, ms, md, ma; `n` counts as ntokens does, one more than there are. */
static void truth_meta(int n)
{
	char what = token[0][1];
	size_t klen;
	struct flags f;
	bool good, long_opaque = false;
	__s32 bytes = 0;

	truth.reply = what == 'n' ? REPLY_NOOP : REPLY_META;
	if (what == 'n' || what == 'e')
		return;
	if (n < 3 || n > 20 || (klen = strlen(token[1])) > BMC_KEY_MAX)
		return refused(false);
	if (what == 's') {
		if (n == 3 || !number32(token[2], &bytes) || bytes < 0 ||
		    bytes > 0x7fffffff - 2)
			return refused(false);
		truth.block = bytes + 2LL;
	}
	good = meta_flags(&f, what == 's' ? 3 : 2, n - 1, &klen);
	for (int i = 2; i < n - 1; i++)
		long_opaque |= token[i][0] == 'O' && strlen(token[i]) > 32;
	if (!good || (what != 'g' && long_opaque) ||
	    (what == 's' && f.mode && !strchr("EAPRS", f.mode)) ||
	    (what == 'a' && f.mode && !strchr("I+D-", f.mode)))
		return refused(false);
	truth.silence = f.set['q'] ? PERHAPS : ANSWERED;
	if (what == 'g') {
		/* R takes the right to refresh the item, which mg shows. */
		if (f.set['T'] || f.set['N'] || f.set['R'])
			changes(token[1], klen);
	} else {
		changes(token[1], klen);
	}
	if (what == 's') {
		if (f.mode == 'A' || f.mode == 'P')
			truth.keeps = true;
		else
			ends_at(f.t);
	} else if (what == 'd') {
		/* Without I it is gone. */
		if (f.set['I'] && f.set['T'])
			ends_at(f.t);
		else
			truth.keeps = f.set['I'];
	} else {
		if (f.set['T'])
			ends_at(f.t);
		if (f.set['N'])
			ends_at(f.n);
		truth.keeps = !f.set['T'];
	}
}

static void truth_store(int n, bool cas, bool keeps)
{
	bool noreply = !strcmp(token[n - 2], "noreply");
	__s32 exptime, bytes;
	__u64 number;

	if (strlen(token[1]) > BMC_KEY_MAX || !number64(token[2], &number) ||
	    !number32(token[3], &exptime) || !number32(token[4], &bytes) ||
	    (cas && !number64(token[5], &number)) || bytes < 0 ||
	    bytes > 0x7fffffff - 2)
		return refused(noreply);
	truth.block = bytes + 2LL;
	truth.silence = noreply ? SILENT : ANSWERED;
	changes(token[1], strlen(token[1]));
	if (keeps)
		truth.keeps = true;
	else
		ends_at(exptime);
}

static bool is(const char *name)
{
	return !strcmp(token[0], name);
}

static void truth_text(const __u8 *s, size_t len)
{
	const __u8 *el = memchr(s, '\n', len), *end = el;
	int tokens = 0, n;
	char *save = NULL;
	bool noreply;
	__s32 exptime;
	__u64 number;

	if (!el)
		return;
	truth.whole = true;
	truth.head = el + 1 - s;
	if (el - s > 1 && el[-1] == '\r')
		end--;
	memcpy(line, s, end - s);
	line[end - s] = 0;
	for (char *t = strtok_r(line, " ", &save); t;
	     t = strtok_r(NULL, " ", &save))
		token[tokens++] = t;
	/* memcached looks at 23 tokens at a time; only gat goes on. */
	n = (tokens < 23 ? tokens : 23) + 1;
	if (n < 2 || strlen(token[0]) < 2)
		return refused(false);
	noreply = !strcmp(token[n - 2], "noreply");
	if (token[0][0] == 'm' && strlen(token[0]) == 2) {
		if (!strchr("gsdnae", token[0][1]))
			return refused(false);
		return truth_meta(n);
	}
	truth.reply = REPLY_LINE;
	if (is("get") || is("gets") || is("bget")) {
		truth.reply = REPLY_LIST;
	} else if (is("gat") || is("gats")) {
		truth.reply = REPLY_LIST;
		if (n < 3 || !number32(token[1], &exptime))
			return refused(false);
		for (int i = 2; i < tokens; i++) {
			if (strlen(token[i]) > BMC_KEY_MAX)
				break;
			changes(token[i], strlen(token[i]));
		}
		ends_at(exptime);
		truth.keeps = true; /* END does not say whether it was there */
	} else if (is("set") || is("add") || is("replace")) {
		if (n != 6 && n != 7)
			return refused(false);
		truth_store(n, false, false);
	} else if (is("append") || is("prepend")) {
		if (n != 6 && n != 7)
			return refused(false);
		truth_store(n, false, true);
	} else if (is("cas")) {
		if (n != 7 && n != 8)
			return refused(false);
		truth_store(n, true, false);
	} else if (is("incr") || is("decr") || is("touch")) {
		bool touch = is("touch");

		if (n != 4 && n != 5)
			return refused(false);
		if (strlen(token[1]) > BMC_KEY_MAX ||
		    !(touch ? number32(token[2], &exptime)
			    : number64(token[2], &number)))
			return refused(noreply);
		truth.silence = noreply ? SILENT : ANSWERED;
		changes(token[1], strlen(token[1]));
		if (touch)
			ends_at(exptime);
		truth.keeps = !touch;
	} else if (is("delete")) {
		if (n < 3 || n > 5)
			return refused(false);
		if (n > 3) {
			bool zero = !strcmp(token[2], "0");

			if (n == 4 ? !zero && !noreply : !zero || !noreply)
				return refused(noreply);
			truth.silence = noreply ? SILENT : ANSWERED;
		}
		if (strlen(token[1]) > BMC_KEY_MAX)
			return refused(truth.silence == SILENT);
		changes(token[1], strlen(token[1]));
		truth.keeps = true;
	} else if (is("flush_all")) {
		if (n > 4)
			return refused(false);
		exptime = 0;
		if (n != (noreply ? 3 : 2) && !number32(token[1], &exptime))
			return refused(noreply);
		truth.kind = COMMAND_FLUSH;
		truth.silence = noreply ? SILENT : ANSWERED;
		truth.delay = exptime > 0 ? exptime : 0;
	} else if (is("verbosity")) {
		if (n != 3 && n != 4)
			return refused(false);
		truth.silence = noreply ? SILENT : ANSWERED;
	} else if (is("version")) {
	} else if (is("stats")) {
		truth.reply = REPLY_STATS;
	} else if (is("watch") || is("shutdown")) {
		truth.reply = REPLY_STREAM;
	} else if (is("quit")) {
		truth.closes = true;
	} else {
		truth.closes = !strncmp(token[n - 2], "HTTP/", 5);
		refused(false);
	}
}

static __u32 be32(const __u8 *s)
{
	return (__u32)s[0] << 24 | s[1] << 16 | s[2] << 8 | s[3];
}

/* The opcodes that are another one, but quiet. */
static __u8 loud(__u8 opcode)
{
	switch (opcode) {
	case 0x09:
		return 0x00;
	case 0x0d:
		return 0x0c;
	case 0x11 ... 0x18:
		return opcode - 0x10;
	case 0x19:
	case 0x1a:
		return opcode - 0x0b;
	case 0x1e:
		return 0x1d;
	case 0x24:
		return 0x23;
	}
	return opcode;
}

static void truth_binary(const __u8 *s, size_t len)
{
	__u32 klen, extras, body, exptime;
	const __u8 *extra = s + BINARY_HEAD;
	__u8 opcode;

	if (len && s[0] != MAGIC_REQUEST) {
		truth.whole = truth.closes = true;
		return;
	}
	if (len < BINARY_HEAD)
		return;
	klen = s[2] << 8 | s[3];
	extras = s[4];
	body = be32(s + 8);
	if (len < BINARY_HEAD + klen + extras)
		return;
	truth.whole = true;
	truth.head = BINARY_HEAD + klen + extras;
	truth.reply = REPLY_BINARY;
	truth.closes = true;
	if (klen + extras > body || klen > BMC_KEY_MAX)
		return;
	/* As long as it is not said that memcached skips it, it does not. */
	truth.block = 0;
	opcode = loud(s[1]);
	truth.silence = opcode != s[1] ? PERHAPS : ANSWERED;
	switch (opcode) {
	case 0x0a: /* noop, version, list mechanisms, quit */
	case 0x0b:
	case 0x20:
		truth.closes = body > 0;
		return;
	case 0x08: /* flush */
		truth.closes = klen || body != extras || (extras && extras != 4);
		truth.kind = COMMAND_FLUSH;
		truth.delay = extras ? be32(extra) : 0;
		return;
	case 0x01: /* set, add, replace */
	case 0x02:
	case 0x03:
		truth.closes = extras != 8 || !klen;
		truth.block = body - klen - extras;
		changes((const char *)extra + extras, klen);
		if (extras == 8)
			ends_at(be32(extra + 4));
		return;
	case 0x00: /* get, getk */
	case 0x0c:
		truth.closes = extras || body != klen || !klen;
		return;
	case 0x04: /* delete */
		truth.closes = !klen || extras || body != klen;
		changes((const char *)extra, klen);
		truth.keeps = true;
		return;
	case 0x05: /* incr, decr */
	case 0x06:
		truth.closes = !klen || extras != 20 || body != klen + extras;
		changes((const char *)extra + extras, klen);
		truth.keeps = true;
		if (extras == 20 && (exptime = be32(extra + 16)) != 0xffffffff)
			ends_at(exptime);
		return;
	case 0x0e: /* append, prepend */
	case 0x0f:
		truth.closes = !klen || extras;
		truth.block = body - klen - extras;
		changes((const char *)extra, klen);
		truth.keeps = true;
		return;
	case 0x10: /* stat */
		truth.closes = extras;
		return;
	case 0x21: /* authenticate; without SASL it skips the rest, too */
	case 0x22:
		truth.closes = extras || !klen;
		truth.block = body - klen;
		return;
	case 0x1c: /* touch, gat, gatk */
	case 0x1d:
	case 0x23:
		truth.closes = extras != 4 || !klen;
		changes((const char *)extra + extras, klen);
		if (extras == 4)
			ends_at(be32(extra));
		return;
	case 0x07: /* quit */
		return;
	}
	truth.closes = false;
	truth.refused = true;
	truth.block = body;
}

static void truth_command(const __u8 *s, size_t len, bool binary)
{
	memset(&truth, 0, offsetof(struct truth, key));
	truth.kind = COMMAND_READ;
	if (binary)
		truth_binary(s, len);
	else
		truth_text(s, len);
	if (truth.closes || truth.refused) {
		truth.kind = COMMAND_READ;
		truth.keys = 0;
	}
}

/*
 * A window with the stream at `at`, and something behind it that the parser
 * must not look at.
 */
static struct window window;

static __u8 behind[2][sizeof(window.bytes)];

static void behind_fill(void)
{
	static const char tricky[] = " noreply\r\n 0 99999999\r\n \x80\x81\n";

	for (size_t i = 0; i < sizeof(window.bytes); i++) {
		behind[0][i] = 'x';
		behind[1][i] = tricky[i % (sizeof(tricky) - 1)];
	}
}

static void window_fill(const __u8 *s, size_t len, __u32 at, int which)
{
	if (len > WINDOW - at)
		len = WINDOW - at;
	memcpy(window.bytes, behind[which], sizeof(window.bytes));
	memcpy(&window.beyond, behind[which], 8);
	memcpy(window.bytes + at, s, len);
	window.at = at;
	window.len = at + len;
}

static void inside(const struct command *c)
{
	REQUIRE(window.at + c->head <= window.len);
	REQUIRE(c->head > 0);
	if (!c->klen)
		return;
	REQUIRE(c->key >= window.at);
	REQUIRE(c->key + c->klen <= window.at + c->head);
	REQUIRE(c->keys <= window.at + c->head);
}

/* bmc's GET ends a key at a byte below 0x21: no other is ever in the cache. */
static bool may_be_cached(const char *key, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if ((__u8)key[i] < 0x21)
			return false;
	return len > 0;
}

static void check_keys(struct command *c)
{
	bool more = true;

	for (__u32 i = 0; i < truth.keys; i++) {
		const char *key = truth.key[i].at;
		size_t len = truth.key[i].len;

		if (!may_be_cached(key, len)) {
			more = more && command_next_key(&window, c);
			continue;
		}
		REQUIRE(more);
		inside(c);
		EXPECT(c->klen, len);
		REQUIRE(!memcmp(window.bytes + c->key, key, len));
		more = command_next_key(&window, c);
	}
}

static void check_expiry(const struct command *c)
{
	__s64 end = end_of(c->exptime);

	for (int i = 0; i < truth.ends; i++) {
		REQUIRE(c->expiry != EXPIRY_KEEP);
		if (c->expiry == EXPIRY_LESS)
			REQUIRE(end <= truth.end[i]);
		else
			EXPECT(end, truth.end[i]);
	}
	if (truth.keeps && (truth.ends || c->expiry != EXPIRY_KEEP))
		EXPECT(c->expiry, EXPIRY_LESS);
}

static void check_command(struct command *c)
{
	EXPECT((__u64)c->head + c->block, truth.head + truth.block);
	if (truth.reply != REPLY_BINARY)
		EXPECT(c->head, truth.head);
	inside(c);
	if (truth.reply && !truth.refused)
		EXPECT(c->reply, truth.reply);
	if (truth.silence != ANSWERED)
		REQUIRE(c->optional);
	else if (!truth.refused)
		REQUIRE(!c->optional);
	if (truth.kind == COMMAND_FLUSH) {
		EXPECT(c->kind, COMMAND_FLUSH);
		EXPECT(c->exptime > 0 ? c->exptime : 0, truth.delay);
	} else if (truth.kind == COMMAND_WRITE) {
		EXPECT(c->kind, COMMAND_WRITE);
		check_expiry(c);
		check_keys(c);
	}
}

/* What changes, and when: from the byte that tells to the last of the command. */
struct event {
	__u64 hash;
	__u32 from; /* of what the walk does: the packet */
	__u32 to;
	bool flush;
};

static struct event must[EVENTS_MAX], did[EVENTS_MAX];
static __u32 musts, dids, packet_nr;
static bool understood; /* all commands of the stream */

static __u64 hash_of(const char *key, size_t len)
{
	static struct window w;

	memset(w.bytes, 0, BMC_KEY_MAX + 8);
	memcpy(w.bytes, key, len);
	return window_hash(&w, 0, len);
}

static void note_truth(__u32 pos)
{
	__u64 last = pos + truth.head + truth.block - 1;
	struct event e = { .from = pos + truth.head - 1,
			   .to = last > 0xffffffff ? 0xffffffff : last,
			   .flush = truth.kind == COMMAND_FLUSH };

	if (e.flush && musts < EVENTS_MAX)
		must[musts++] = e;
	for (__u32 i = 0; i < truth.keys && musts < EVENTS_MAX; i++) {
		if (!may_be_cached(truth.key[i].at, truth.key[i].len) ||
		    truth.key[i].len > BMC_KEY_MAX)
			continue;
		e.hash = hash_of(truth.key[i].at, truth.key[i].len);
		must[musts++] = e;
	}
}

/*
 * The command at the start of `s`, in whatever window; false if nothing follows.
 */
static bool one_command(const __u8 *s, size_t len, bool binary, __u32 at)
{
	struct command c[2];
	int found[2];

	for (int i = 0; i < 2; i++) {
		window_fill(s, len, at, i);
		found[i] = command_parse(&window, &c[i], binary);
		found[i] = found[i] > 0 ? 1 : found[i];
	}
	EXPECT(found[0], found[1]);
	if (found[0] == 1)
		REQUIRE(!memcmp(&c[0], &c[1], sizeof(c[0])));
	truth_command(s, len, binary);
	if (all_known)
		EXPECT(found[0], 1);
	if (!found[0] || truth.closes)
		understood = false;
	if (found[0] == 1 && !truth.whole) {
		/* memcached waits for the key, which a read needs not. */
		REQUIRE(binary);
		EXPECT(c[0].kind, COMMAND_READ);
	} else if (found[0] == 1 && !truth.closes) {
		check_command(&c[0]);
	}
	if (found[0] < 0)
		REQUIRE(!truth.whole || binary);
	return truth.whole && !truth.closes && truth.head + truth.block < len;
}

/* The walk itself: flow_in() and flow_out(), with packets of their own. */
static __u64 write_begin(__u64 hash, bool pending, __u64 lag, __u64 ticket)
{
	(void)pending;
	(void)lag;
	(void)ticket;
	if (dids < EVENTS_MAX)
		did[dids++] = (struct event){ .hash = hash, .from = packet_nr };
	return 0;
}

static void flush_all(struct bmc_stats *st, __u64 until)
{
	(void)st;
	(void)until;
	if (dids < EVENTS_MAX)
		did[dids++] = (struct event){ .flush = true, .from = packet_nr };
}

static void flush_all_held(struct bmc_stats *st, __u64 until, __u64 ticket)
{
	(void)ticket;
	flush_all(st, until);
}

static struct bmc_flow flow;
static struct bmc_scratch scratch_memory;
static __u32 cut[PACKETS_MAX + 1]; /* where the packets end */

/* As a new connection's; or, if it is `followed`, behind others of the same. */
static void flow_walk(const __u8 *s, int packets, bool replies, bool followed)
{
	struct bmc_scratch *sc = &scratch_memory;
	struct __sk_buff skb = { .sk = 1 };
	__u32 from = 0;

	memset(&flow, 0, sizeof(flow));
	memset(&native_stats, 0, sizeof(native_stats));
	the_flow = &flow;
	flow.hash = peers_hash(&sc->request.peers);
	dids = 0;
	if (followed) {
		flow.mode = FLOW_FOLLOWED;
		flow.binary = !replies && s[0] == MAGIC_REQUEST;
		flow.in_last = flow_now();
	} else if (replies) {
		flow.mode = FLOW_MUTE;
	}
	for (packet_nr = 0; packet_nr < (__u32)packets; packet_nr++) {
		__u32 n = cut[packet_nr] - from;

		memset(&sc->window, '\n', sizeof(sc->window));
		packet = s + from;
		packet_len = n;
		sc->tcp.seq = bpf_htonl(from);
		tcp_sock.rcv_nxt = from;
		tcp_sock.bytes_received = from;
		sc->text = 0;
		sc->text_len = n;
		window_empty(&sc->window);
		if (replies)
			flow_out(&skb, sc);
		else
			flow_in(&skb, sc);
		from += n;
	}
}

/* Each change that memcached makes is one that the walk saw in time. */
static void check_walk(int packets)
{
	for (__u32 i = 0; i < musts; i++) {
		const struct event *m = &must[i];
		bool seen = false;

		if (m->from >= cut[packets - 1])
			continue;
		for (__u32 k = 0; k < dids && !seen; k++) {
			const struct event *d = &did[k];
			__u32 start = d->from ? cut[d->from - 1] : 0;

			seen = (d->flush || (!m->flush && d->hash == m->hash)) &&
			       cut[d->from] > m->from && start <= m->to;
		}
		REQUIRE(seen);
	}
}

/* Cuts the stream: `how` 0 not at all, else packets of about that many bytes. */
static int cut_up(__u32 len, __u32 how)
{
	__u32 random = how * 0x9e3779b9 + 1, at = 0;
	int n = 0;

	while (at < len) {
		random = random * 1664525 + 1013904223;
		at += !how ? len : 1 + (random >> 16) % (how * 8);
		if (at > len || n == PACKETS_MAX - 1)
			at = len;
		cut[n++] = at;
	}
	return n;
}

/* As many replies, and as much of the last one. */
static void check_replies(const struct bmc_flow *whole)
{
	EXPECT(flow.out_skip, whole->out_skip);
	EXPECT(flow.out_part, whole->out_part);
	EXPECT(flow.answered, whole->answered);
}

/* The short way through a segment comes to the same as the long one. */
static void check_same(const struct bmc_flow *whole, const struct bmc_stats *st)
{
	REQUIRE(!memcmp(&native_stats, st, sizeof(*st)));
	EXPECT(flow.mode, whole->mode);
	EXPECT(flow.deep, whole->deep);
	EXPECT(flow.alike, whole->alike);
	EXPECT(flow.doubt, whole->doubt);
	EXPECT(flow.in_next, whole->in_next);
	EXPECT(flow.in_skip, whole->in_skip);
	EXPECT(flow.in_part, whole->in_part);
	EXPECT(flow.in_block, whole->in_block);
	EXPECT(flow.in_hash, whole->in_hash);
	EXPECT(flow.asked, whole->asked);
	EXPECT(flow.head, whole->head);
	REQUIRE(!memcmp(flow.owed, whole->owed, sizeof(flow.owed)));
}

static void walk_both(const __u8 *s, __u32 len, __u32 how, bool replies)
{
	struct bmc_flow whole;
	struct bmc_stats st;

	doing = "in one packet";
	if (!cut_up(len, 0))
		return;
	flow_walk(s, 1, replies, false);
	check_walk(1);
	if (understood)
		EXPECT(native_stats.tcp_unparsed, 0);
	whole = flow;
	st = native_stats;
	doing = "in one packet behind others";
	flow_walk(s, 1, replies, true);
	if (!replies)
		check_same(&whole, &st);
	else if (!native_stats.tcp_unmatched)
		check_replies(&whole);
	if (!how)
		return;
	doing = "cut into packets";
	how = cut_up(len, how);
	flow_walk(s, how, replies, false);
	check_walk(how);
	EXPECT(!!native_stats.tcp_unparsed, !!st.tcp_unparsed);
	EXPECT(!!native_stats.tcp_unmatched, !!st.tcp_unmatched);
	if (native_stats.tcp_unparsed || native_stats.tcp_unmatched)
		return;
	EXPECT(native_stats.invalidations, st.invalidations);
	EXPECT(native_stats.write_requests, st.write_requests);
	EXPECT(flow.in_skip, whole.in_skip);
	EXPECT(flow.in_part, whole.in_part);
	check_replies(&whole);
}

static void commands(const __u8 *s, __u32 len, bool binary, __u32 how)
{
	__u32 pos = 0;

	musts = 0;
	understood = true;
	while (pos < len) {
		bool more;

		doing = "a command";
		more = one_command(s + pos, len - pos, binary,
				   (how + pos) % LINE_MAX);
		if (truth.whole && !truth.closes)
			note_truth(pos);
		if (!more)
			break;
		pos += truth.head + truth.block;
	}
	/* Its first byte tells which protocol a connection speaks. */
	if (binary == (s[0] == MAGIC_REQUEST))
		walk_both(s, len, how, false);
}

/* What a reply is, if it is one that memcached sends; a kind of 0 if not. */
static void truth_reply(struct reply *r, const __u8 *s, size_t len)
{
	static const struct {
		const char *text;
		bool starts; /* only; else it is all there is */
		struct reply reply;
	} replies[] = {
		{ "END", false, { REPLY_LIST | REPLY_STATS, 1 } },
		{ "STORED", false, { REPLY_LINE, 1 } },
		{ "DELETED", false, { REPLY_LINE, 1 } },
		{ "TOUCHED", false, { REPLY_LINE, 1 } },
		{ "OK", false, { REPLY_LINE | REPLY_STATS, 1 } },
		{ "RESET", false, { REPLY_STATS, 1 } },
		{ "NOT_STORED", false, { REPLY_LINE, 1, 1 } },
		{ "NOT_FOUND", false, { REPLY_LINE, 1, 1 } },
		{ "EXISTS", false, { REPLY_LINE, 1, 1 } },
		{ "VERSION ", true, { REPLY_LINE, 1 } },
		{ "ERROR", false, { 23, 1, 1, 1, 1 } },
		{ "CLIENT_ERROR ", true, { 23, 1, 1, 1, 1 } },
		{ "SERVER_ERROR ", true, { 23, 1, 1, 1 } },
		{ "STAT ", true, { REPLY_STATS } },
		{ "ITEM ", true, { REPLY_STATS } },
		{ "PREFIX ", true, { REPLY_STATS } },
		{ "HD", false, { REPLY_META, 1 } },
		{ "HD ", true, { REPLY_META, 1 } },
		{ "EN", false, { REPLY_META, 1, 1 } },
		{ "EN ", true, { REPLY_META, 1, 1 } },
		{ "NF", false, { REPLY_META, 1, 1 } },
		{ "NF ", true, { REPLY_META, 1, 1 } },
		{ "NS", false, { REPLY_META, 1, 1 } },
		{ "NS ", true, { REPLY_META, 1, 1 } },
		{ "EX", false, { REPLY_META, 1, 1 } },
		{ "EX ", true, { REPLY_META, 1, 1 } },
		{ "ME ", true, { REPLY_META, 1, 1 } },
		{ "MN", false, { REPLY_NOOP, 1, 1 } },
	};
	const __u8 *el = memchr(s, '\n', len);
	int tokens = 0, which;
	char *save = NULL, *number;
	__u64 bytes;

	memset(r, 0, sizeof(*r));
	if (!el || el == s || el[-1] != '\r')
		return;
	memcpy(line, s, el - 1 - s);
	line[el - 1 - s] = 0;
	if (strlen(line) != (size_t)(el - 1 - s))
		return;
	for (size_t i = 0; i < sizeof(replies) / sizeof(replies[0]); i++) {
		const char *text = replies[i].text;

		if (replies[i].starts ? !strncmp(line, text, strlen(text))
				      : !strcmp(line, text))
			*r = replies[i].reply;
	}
	r->head = el + 1 - s;
	if (r->kind)
		return;
	if (*line && strspn(line, "0123456789") == strlen(line)) {
		r->kind = REPLY_LINE; /* incr */
		r->last = true;
		return;
	}
	which = !strncmp(line, "VALUE ", 6) ? 3
		: !strncmp(line, "VA ", 3)  ? 1
					    : 0;
	if (!which)
		return;
	for (char *t = strtok_r(line, " ", &save); t;
	     t = strtok_r(NULL, " ", &save))
		token[tokens++] = t;
	if (tokens <= which ||
	    strspn(token[which], "0123456789") != strlen(token[which]))
		return;
	errno = 0;
	bytes = strtoull(token[which], &number, 10);
	if (errno || bytes > BLOCK_MAX)
		return;
	r->kind = which == 3 ? REPLY_LIST : REPLY_META;
	r->last = which == 1;
	r->block = bytes + 2;
}

/* Whether a decimal of the line is this number. */
static bool line_has(const __u8 *s, size_t len, __u64 number)
{
	memcpy(line, s, len);
	line[len] = 0;
	for (char *p = line; *(p += strcspn(p, "0123456789"));
	     p += strspn(p, "0123456789"))
		if (strtoull(p, NULL, 10) == number)
			return true;
	return false;
}

static bool one_reply(const __u8 *s, size_t len, bool binary, __u32 at,
		      __u64 *taken)
{
	struct reply r[3] = {}, want;
	int found[2];

	for (int i = 0; i < 2; i++) {
		window_fill(s, len, at, i);
		found[i] = reply_parse(&window, &r[i], binary);
	}
	EXPECT(found[0], found[1]);
	if (all_known)
		EXPECT(found[0], 1);
	if (found[0] != 1)
		return false;
	REQUIRE(!memcmp(&r[0], &r[1], sizeof(r[0])));
	REQUIRE(at + r[0].head <= window.len);
	*taken = (__u64)r[0].head + r[0].block;
	if (binary) {
		EXPECT(r[0].head, 24);
		EXPECT(r[0].block, be32(s + 8));
		EXPECT(r[0].opcode, s[1]);
		EXPECT(r[0].failed, s[6] || s[7]);
		EXPECT(r[0].last, s[1] != 0x10 || !be32(s + 8) || s[6] || s[7]);
		return true;
	}
	truth_reply(&want, s, len);
	EXPECT(r[0].head, (const __u8 *)memchr(s, '\n', len) + 1 - s);
	if (!want.kind) {
		/* Not memcached's: no block unless its length is there. */
		REQUIRE(!r[0].block || line_has(s, r[0].head, r[0].block - 2));
		return true;
	}
	/* The quick way and the other one agree. */
	r[2].head = window_line(&window);
	REQUIRE(r[2].head);
	EXPECT(reply_line(&window, &r[2]), 1);
	REQUIRE(!memcmp(&r[0], &r[2], sizeof(r[0])));
	EXPECT(r[0].kind & want.kind, want.kind);
	EXPECT(r[0].last, want.last);
	EXPECT(r[0].failed, want.failed);
	EXPECT(r[0].error, want.error);
	EXPECT(r[0].refused, want.refused);
	EXPECT(r[0].block, want.block);
	return true;
}

static void replies(const __u8 *s, __u32 len, bool binary, __u32 how)
{
	__u64 pos = 0, taken;

	musts = 0;
	understood = false;
	while (pos < len) {
		doing = "a reply";
		if (!one_reply(s + pos, len - pos, binary,
			       (how + pos) % LINE_MAX, &taken))
			break;
		pos += taken;
	}
	if (!binary)
		walk_both(s, len, how, true);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	__u32 random = 1;

	(void)argc;
	(void)argv;
	all_known = getenv("BMC_FUZZ_ALL_KNOWN");
	cfg.wall = WALL;
	cfg.flow_sets = 1;
	behind_fill();
	for (size_t i = 0; i < sizeof(cfg.nh) / sizeof(cfg.nh[0]); i++) {
		random = random * 1664525 + 1013904223;
		cfg.nh[i] = random;
	}
	return 0;
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	static __u8 stream[STREAM_MAX];
	__u32 len, how, times;

	if (size < 3 || size > 4096)
		return 0;
	/* Repeated up to 8 times, so that it goes beyond a window. */
	times = 1 << (data[1] & 3);
	how = data[1] >> 2;
	len = 0;
	for (__u32 i = 0; i < times; i++) {
		memcpy(stream + len, data + 2, size - 2);
		len += size - 2;
	}
	switch (data[0]) {
	case 'C':
		commands(stream, len, true, how);
		break;
	case 'r':
		replies(stream, len, false, how);
		break;
	case 'R':
		replies(stream, len, true, how);
		break;
	default:
		commands(stream, len, false, how);
	}
	return 0;
}
