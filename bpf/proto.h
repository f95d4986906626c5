/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The grammar of memcached (doc/protocol.txt, protocol_binary.h) and the hash
 * of its keys. No BPF helper and no map in here, so that it also compiles
 * natively, for fuzzing. Little-endian, as everything that bmc runs on.
 *
 * A command is understood only if it is certain how much of the stream it takes
 * and which key it changes. What memcached may refuse for its form is not:
 * memcached then takes a data block for commands.
 */
#ifndef PROTO_H
#define PROTO_H

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bmc reads words from the wire; big-endian machines are not supported"
#endif

/* The words of the longest key, the last one padded with zeroes. */
enum { KEY_WORDS = (BMC_KEY_MAX + 7) / 8 };

/* "get ", "VALU", "E " and the rest as they lie in memory. */
enum {
	TEXT_GET = 'g' | 'e' << 8 | 't' << 16 | ' ' << 24,
	TEXT_GETS = 'g' | 'e' << 8 | 't' << 16 | 's' << 24,
	TEXT_SET = 's' | 'e' << 8 | 't' << 16 | ' ' << 24,
	TEXT_VALU = 'V' | 'A' << 8 | 'L' << 16 | 'U' << 24,
	TEXT_E_SPACE = 'E' | ' ' << 8,
	TEXT_NO_FLAGS = ' ' | '0' << 8 | ' ' << 16,
	TEXT_CRLF = '\r' | '\n'
				   << 8,
	GET_LEN = 4, /* "get " */
	STORE_LEN = 4, /* "set " */
	VALUE_LEN = 6, /* "VALUE " */
	END_LEN = 5, /* "END\r\n" */
	STORED_LEN = 8,
};

/* A word of up to eight letters, as it lies in memory. */
#define NAME(a, b, c, d, e, f, g, h)                                          \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | \
	 (__u64)(e) << 32 | (__u64)(f) << 40 | (__u64)(g) << 48 |             \
	 (__u64)(h) << 56)

#define TEXT_VALUE_ NAME('V', 'A', 'L', 'U', 'E', ' ', 0, 0)
#define TEXT_VALUE_SUM (('V' | 'A' << 8) + ('L' | 'U' << 8) + ('E' | ' ' << 8))
#define TEXT_END NAME('E', 'N', 'D', '\r', '\n', 0, 0, 0)
#define TEXT_STORED NAME('S', 'T', 'O', 'R', 'E', 'D', '\r', '\n')

/*
 * The bytes below 0x21 of a word: the first of them is marked exactly by the
 * lowest set bit (bit 7 of its byte). These are the bytes that end a key.
 */
static __always_inline __u64 word_ends(__u64 w)
{
	return (w - 0x2121212121212121ULL) & ~w & 0x8080808080808080ULL;
}

/* 1 << (8 * n) where n is how many bytes lie before the first marked one. */
static __always_inline __u64 word_first(__u64 ends)
{
	return (ends & -ends) >> 7;
}

/* n of word_first(): the constant's bytes count down from the top. */
static __always_inline __u32 word_count(__u64 first)
{
	return (first * 0x0001020304050607ULL) >> 56;
}

/*
 * NH (Black et al., "UMAC", CRYPTO '99): a sum of products, one for each word
 * of the key, padded with zeroes, to begin with cfg.seed[0], with a secret key as
 * long as the longest memcached key. Two different keys collide with probability
 * 2^-31 whoever chose them, as long as the secret is one; unless zeroes at the end
 * are all that differs, which the binary protocol allows: such keys end together.
 */
static __always_inline __u64 hash_word(__u32 i, __u64 w)
{
	__u32 lo = (__u32)w + cfg.nh[2 * i];
	__u32 hi = (__u32)(w >> 32) + cfg.nh[2 * i + 1];

	return (__u64)lo * hi;
}

/* Spread the sum over all 64 bits: index below, tag above. */
static __always_inline __u64 hash_end(__u64 sum)
{
	sum ^= sum >> 32;
	sum *= 0xd6e8feb86659fd93ULL;
	return sum ^ sum >> 32;
}

/* What a command does to the cache. */
enum command_kind {
	COMMAND_UNKNOWN = 0,
	COMMAND_READ, /* nothing */
	COMMAND_WRITE, /* changes a key */
	COMMAND_FLUSH, /* may change any key */
};

/* What memcached sends in return; a command has one, a reply may suit several. */
enum reply_kind {
	REPLY_NONE = 0,
	REPLY_LINE = 1, /* a line */
	REPLY_LIST = 2, /* values, then END */
	REPLY_META = 4, /* a line of two letters, perhaps a value */
	REPLY_NOOP = 8, /* MN: to nothing but mn */
	REPLY_STATS = 16, /* lines of several forms, the last one END or short */
	REPLY_BINARY = 32,
	REPLY_STREAM = 64, /* any number of lines at any time */
};

/* What a command says of the time at which its item ends. */
enum expiry_kind {
	EXPIRY_KEEP = 0, /* nothing */
	EXPIRY_SET, /* exptime, for certain */
	EXPIRY_MAY, /* exptime, if the command succeeds */
	EXPIRY_LESS, /* perhaps exptime, perhaps nothing */
};

/* What is known of a text command by its name. */
struct grammar {
	__u32 kind;
	__u32 reply;
	__u32 key; /* which token it is; 0 is the name */
	__u32 block; /* which token is the length of the data block; 0: no block */
	__u32 expiry; /* of enum expiry_kind */
	__u32 exptime; /* which token it is; 0: none */
	__u32 cas; /* likewise */
	__u32 silent; /* it has no key, but may say noreply */
	__u32 ends; /* the connection, without a reply unless refused */
};

struct command {
	__u32 kind;
	__u32 reply; /* one of enum reply_kind */
	__u32 optional; /* noreply or quiet: there may be no reply */
	__u32 key; /* where it starts; an encoded one was decoded in place */
	__u32 klen;
	__u32 keys; /* gat only: where the next key starts; 0: that was the last */
	__u32 head; /* bytes of the line, or of header and key */
	__u32 block; /* bytes of the data block that follows, its end included */
	__u32 opcode; /* binary only */
	__u32 expiry; /* one of enum expiry_kind */
	__s64 exptime; /* as on the wire */
	/* Only while a text command is being taken apart. */
	struct grammar grammar;
	__u32 encoded; /* its key */
	__u32 conditional;
};

struct reply {
	__u32 kind; /* those of enum reply_kind that it may be; 0: not understood */
	__u32 last; /* nothing more comes in reply to that command */
	__u32 failed; /* the command did not do what it should */
	__u32 error;
	__u32 refused; /* for its form: memcached may not have skipped its data */
	__u32 closes; /* the connection, of which memcached has read nothing */
	__u32 head; /* as in a command */
	__u32 block;
	__u32 opcode;
};

enum {
	LINE_MAX = 320, /* of a command line: a key and all that may follow */
	WINDOW = 1024, /* bytes of a stream that are looked at, at a time */
	TOKENS_MAX = 24, /* of a command line, its end included */
	STORE_TOKENS = 5, /* set <key> <flags> <exptime> <bytes> */
	EXPTIME_MAX = 0x7fffffff,
	RELATIVE_MAX = 30 * 24 * 3600, /* exptime is a time of day above it */
	META_TOKENS_MAX = 18,
	BLOCK_MAX = 1 << 30,
	MAGIC_REQUEST = 0x80, /* the binary protocol's first byte */
	MAGIC_REPLY = 0x81,
	BINARY_HEAD = 24,
	BINARY_EXTRAS_MAX = 20,
};

/* A part of a stream. Positions in it count from its first byte. */
struct window {
	__u32 at; /* where the next command or reply starts */
	__u32 len; /* how many bytes there are */
	__u8 bytes[WINDOW];
	__u64 beyond; /* so that a word can be read anywhere */
};

static __always_inline __u8 window_at(const struct window *w, __u32 i)
{
	return w->bytes[i & (WINDOW - 1)];
}

static __always_inline __u64 window_word(const struct window *w, __u32 i)
{
	return *(const __u64 *)(w->bytes + (i & (WINDOW - 1)));
}

static __always_inline __u32 window_be32(const struct window *w, __u32 i)
{
	return __builtin_bswap32((__u32)window_word(w, i));
}

static __always_inline __u32 window_be16(const struct window *w, __u32 i)
{
	return __builtin_bswap16((__u16)window_word(w, i));
}

/* Length of the line at w->at, "\n" included; 0: its end is not there. */
__noinline int window_line(struct window *w)
{
	__u32 at, len;

	if (!w)
		return 0;
	at = w->at;
	len = w->len;
	for (__u32 i = 0; i < LINE_MAX / 8; i++) {
		__u64 v = window_word(w, at + i * 8) ^ 0x0a0a0a0a0a0a0a0aULL;
		__u64 zero = (v - 0x0101010101010101ULL) & ~v &
			     0x8080808080808080ULL;

		if (zero) {
			__u32 n = i * 8 + word_count(word_first(zero)) + 1;

			return at + n <= len ? n : 0;
		}
		if (at + i * 8 >= len)
			break;
	}
	return 0;
}

/*
 * The token at `at` or behind the spaces there: where it starts and, shifted
 * by 16, where it ends, at a byte below 0x21 or at `stop`. They are the same at
 * the end of the line.
 */
__noinline __u32 window_token(struct window *w, __u32 at, __u32 stop)
{
	__u32 end;

	if (!w)
		return 0;
	for (int i = 0; i < LINE_MAX && at < stop && window_at(w, at) == ' '; i++)
		at++;
	end = at;
	for (int i = 0; i < LINE_MAX / 8 + 1 && end < stop; i++) {
		__u64 ends = word_ends(window_word(w, end));

		if (ends) {
			end += word_count(word_first(ends));
			break;
		}
		end += 8;
	}
	if (end > stop)
		end = stop;
	return at | end << 16;
}

/*
 * The decimal between `at` and `end`, a minus sign in front if `is_signed`; a
 * number above every limit if there is something else or too many digits.
 */
enum { NUMBER_DIGITS = 19 };
#define NUMBER_NONE (1LL << 62)

__noinline __s64 window_number(struct window *w, __u32 at, __u32 end,
			       bool is_signed)
{
	bool minus;
	__s64 n = 0;

	if (!w)
		return NUMBER_NONE;
	minus = is_signed && window_at(w, at) == '-';
	at += minus;
	if (at >= end || end - at > NUMBER_DIGITS - 1)
		return NUMBER_NONE;
	for (__u32 i = 0; i < NUMBER_DIGITS - 1 && at + i < end; i++) {
		__u8 c = window_at(w, at + i) - '0';

		if (c > 9)
			return NUMBER_NONE;
		n = n * 10 + c;
	}
	return minus ? -n : n;
}

/* Where the token at `at` ends, if that is within `words` words. */
static __always_inline __u32 token_end(const struct window *w, __u32 at,
				       __u32 words)
{
	for (__u32 i = 0; i < words; i++) {
		__u64 ends = word_ends(window_word(w, at));

		if (ends)
			return at + word_count(word_first(ends));
		at += 8;
	}
	return at;
}

/*
 * The number of up to seven digits at `at` and behind it whatever ends a key:
 * shifted by 8, below it how many digits there are; 0 if it is not that. Without
 * a call or a loop.
 */
static __always_inline __u64 window_digits(const struct window *w, __u32 at)
{
	__u64 word = window_word(w, at), n;
	__u32 digits = word_count(word_first(word_ends(word)));

	if (!word_ends(word) || !digits)
		return 0;
	/* Put to the end of a word behind zeroes. */
	word <<= 64 - digits * 8;
	n = word ^ (0x3030303030303030ULL << (64 - digits * 8));
	if ((n | (n + 0x7676767676767676ULL)) & 0x8080808080808080ULL)
		return 0;
	/* Pairs, fours and eights of digits, each step all at once. */
	n = (n * 10 + (n >> 8)) & 0x00ff00ff00ff00ffULL;
	n = (n * 100 + (n >> 16)) & 0x0000ffff0000ffffULL;
	n = (n * 10000 + (n >> 32)) & 0xffffffffULL;
	return n << 8 | digits;
}

/*
 * The same of up to four digits, for what has seldom more: less code, which is
 * what a short function costs. What ends it is for the caller to look at.
 */
static __always_inline __u64 window_few_digits(const struct window *w, __u32 at)
{
	__u64 word = window_word(w, at), n = 0;
	__u32 digits;

#pragma unroll
	for (digits = 0; digits < 4; digits++, word >>= 8) {
		__u32 digit = (__u8)word - '0';

		if (digit > 9)
			break;
		n = n * 10 + digit;
	}
	return n << 8 | digits;
}

/* The six bits that a character of base64 stands for (RFC 4648), plus one. */
const __u8 sextets[256] = {
	['A'] = 1,  ['B'] = 2,	['C'] = 3,  ['D'] = 4,	['E'] = 5,  ['F'] = 6,
	['G'] = 7,  ['H'] = 8,	['I'] = 9,  ['J'] = 10, ['K'] = 11, ['L'] = 12,
	['M'] = 13, ['N'] = 14, ['O'] = 15, ['P'] = 16, ['Q'] = 17, ['R'] = 18,
	['S'] = 19, ['T'] = 20, ['U'] = 21, ['V'] = 22, ['W'] = 23, ['X'] = 24,
	['Y'] = 25, ['Z'] = 26, ['a'] = 27, ['b'] = 28, ['c'] = 29, ['d'] = 30,
	['e'] = 31, ['f'] = 32, ['g'] = 33, ['h'] = 34, ['i'] = 35, ['j'] = 36,
	['k'] = 37, ['l'] = 38, ['m'] = 39, ['n'] = 40, ['o'] = 41, ['p'] = 42,
	['q'] = 43, ['r'] = 44, ['s'] = 45, ['t'] = 46, ['u'] = 47, ['v'] = 48,
	['w'] = 49, ['x'] = 50, ['y'] = 51, ['z'] = 52, ['0'] = 53, ['1'] = 54,
	['2'] = 55, ['3'] = 56, ['4'] = 57, ['5'] = 58, ['6'] = 59, ['7'] = 60,
	['8'] = 61, ['9'] = 62, ['+'] = 63, ['/'] = 64,
};

/*
 * Decodes four characters at `from` to three bytes at `to`, which is not behind
 * them. Returns how many of the bytes count, 0 if it is no base64.
 */
__noinline int window_decode_four(struct window *w, __u32 from, __u32 to)
{
	__u32 bits = 0, pad = 0, none = 0;

	if (!w)
		return 0;
	for (__u32 i = 0; i < 4; i++) {
		__u8 c = window_at(w, from + i);
		__u32 six = sextets[c];

		if (c == '=' && i >= 2)
			pad++;
		else
			none |= !six || pad;
		bits = bits << 6 | ((six - 1) & (six ? 0x3f : 0));
	}
	w->bytes[to & (WINDOW - 1)] = bits >> 16;
	w->bytes[(to + 1) & (WINDOW - 1)] = bits >> 8;
	w->bytes[(to + 2) & (WINDOW - 1)] = bits;
	return none ? 0 : 3 - pad;
}

/*
 * Decodes the base64 text of `len` bytes at `at` in place. Returns its new
 * length, 0 if it is not in the one form that every decoder takes alike.
 */
__noinline __u32 window_decode(struct window *w, __u32 at, __u32 len)
{
	__u32 n = 3, total = 0;

	if (!w || !len || len % 4 || len > BMC_KEY_MAX)
		return 0;
	for (__u32 i = 0; i < BMC_KEY_MAX / 4; i++) {
		if (i >= len / 4)
			break;
		if (n != 3) /* padding, and not at the end */
			return 0;
		n = window_decode_four(w, at + i * 4, at + i * 3);
		if (!n)
			return 0;
		total += n;
	}
	return total;
}

/* The commands of doc/protocol.txt. Any other is new, or data, or broken. */
static __always_inline struct grammar grammar_of(__u64 name)
{
	struct grammar g = {};

	switch (name) {
	case NAME('s', 'e', 't', 0, 0, 0, 0, 0):
		/* set <key> <flags> <exptime> <bytes> [noreply] */
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_LINE,
				      .key = 1,
				      .block = 4,
				      .expiry = EXPIRY_SET,
				      .exptime = 3 };
		break;
	case NAME('a', 'd', 'd', 0, 0, 0, 0, 0):
	case NAME('r', 'e', 'p', 'l', 'a', 'c', 'e', 0):
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_LINE,
				      .key = 1,
				      .block = 4,
				      .expiry = EXPIRY_MAY,
				      .exptime = 3 };
		break;
	case NAME('c', 'a', 's', 0, 0, 0, 0, 0):
		/* cas <key> <flags> <exptime> <bytes> <cas> [noreply] */
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_LINE,
				      .key = 1,
				      .block = 4,
				      .expiry = EXPIRY_MAY,
				      .exptime = 3,
				      .cas = 5 };
		break;
	case NAME('a', 'p', 'p', 'e', 'n', 'd', 0, 0):
	case NAME('p', 'r', 'e', 'p', 'e', 'n', 'd', 0):
		/* They leave flags and exptime alone, but want them. */
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_LINE,
				      .key = 1,
				      .block = 4,
				      .exptime = 3 };
		break;
	case NAME('i', 'n', 'c', 'r', 0, 0, 0, 0):
	case NAME('d', 'e', 'c', 'r', 0, 0, 0, 0):
	case NAME('d', 'e', 'l', 'e', 't', 'e', 0, 0):
		/* incr <key> <value> [noreply] */
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_LINE,
				      .key = 1 };
		break;
	case NAME('t', 'o', 'u', 'c', 'h', 0, 0, 0):
		/* touch <key> <exptime> [noreply] */
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_LINE,
				      .key = 1,
				      .expiry = EXPIRY_MAY,
				      .exptime = 2 };
		break;
	case NAME('g', 'a', 't', 0, 0, 0, 0, 0):
	case NAME('g', 'a', 't', 's', 0, 0, 0, 0):
		/* gat <exptime> <key>* */
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_LIST,
				      .key = 2,
				      .expiry = EXPIRY_LESS,
				      .exptime = 1 };
		break;
	case NAME('m', 's', 0, 0, 0, 0, 0, 0):
		/* ms <key> <datalen> <flags>*; it never expires without a T */
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_META,
				      .key = 1,
				      .block = 2,
				      .expiry = EXPIRY_SET };
		break;
	case NAME('m', 'd', 0, 0, 0, 0, 0, 0):
	case NAME('m', 'a', 0, 0, 0, 0, 0, 0):
		/* md <key> <flags>* */
		g = (struct grammar){ .kind = COMMAND_WRITE,
				      .reply = REPLY_META,
				      .key = 1 };
		break;
	case NAME('m', 'g', 0, 0, 0, 0, 0, 0):
		/* mg <key> <flags>*: some of the flags make it a write */
		g = (struct grammar){ .kind = COMMAND_READ,
				      .reply = REPLY_META,
				      .key = 1 };
		break;
	case NAME('m', 'e', 0, 0, 0, 0, 0, 0):
		g = (struct grammar){ .kind = COMMAND_READ, .reply = REPLY_META };
		break;
	case NAME('m', 'n', 0, 0, 0, 0, 0, 0):
		g = (struct grammar){ .kind = COMMAND_READ, .reply = REPLY_NOOP };
		break;
	case NAME('g', 'e', 't', 0, 0, 0, 0, 0):
	case NAME('g', 'e', 't', 's', 0, 0, 0, 0):
		g = (struct grammar){ .kind = COMMAND_READ, .reply = REPLY_LIST };
		break;
	case NAME('s', 't', 'a', 't', 's', 0, 0, 0):
		g = (struct grammar){ .kind = COMMAND_READ, .reply = REPLY_STATS };
		break;
	case NAME('v', 'e', 'r', 's', 'i', 'o', 'n', 0):
		g = (struct grammar){ .kind = COMMAND_READ, .reply = REPLY_LINE };
		break;
	case NAME('v', 'e', 'r', 'b', 'o', 's', 'i', 't'):
		/* verbosity <level> [noreply] */
		g = (struct grammar){ .kind = COMMAND_READ,
				      .reply = REPLY_LINE,
				      .silent = true };
		break;
	case NAME('w', 'a', 't', 'c', 'h', 0, 0, 0):
		g = (struct grammar){ .kind = COMMAND_READ,
				      .reply = REPLY_STREAM };
		break;
	case NAME('q', 'u', 'i', 't', 0, 0, 0, 0):
		g = (struct grammar){ .kind = COMMAND_READ,
				      .reply = REPLY_LINE,
				      .ends = true };
		break;
	case NAME('f', 'l', 'u', 's', 'h', '_', 'a', 'l'):
		/* flush_all [delay] [noreply] */
		g = (struct grammar){ .kind = COMMAND_FLUSH,
				      .reply = REPLY_LINE,
				      .exptime = 1 };
		break;
	case NAME('s', 'h', 'u', 't', 'd', 'o', 'w', 'n'):
		g = (struct grammar){ .kind = COMMAND_FLUSH,
				      .reply = REPLY_STREAM };
		break;
	}
	return g;
}

static __always_inline bool is_noreply(const struct window *w, __u32 at, __u32 end)
{
	return end - at == 7 &&
	       window_word(w, at) << 8 ==
		       NAME('n', 'o', 'r', 'e', 'p', 'l', 'y', 0) << 8;
}

/* A flag of a meta command: a letter, perhaps with something behind it. */
__noinline int command_flag(struct window *w, struct command *c, __u32 start,
			    __u32 end)
{
	__u8 mode;
	__s64 n;

	if (!w || !c)
		return false;
	switch (window_at(w, start)) {
	case 'T':
	case 'N':
		n = window_number(w, start + 1, end, true);
		if (n > EXPTIME_MAX || n < -EXPTIME_MAX)
			return false;
		/* The lesser one, if there are both and they compare. */
		if (c->exptime && n &&
		    (c->exptime > RELATIVE_MAX) != (n > RELATIVE_MAX))
			return false;
		if (!c->exptime || (n && n < c->exptime))
			c->exptime = n;
		if (window_at(w, start) == 'N')
			c->expiry = EXPIRY_LESS;
		else if (c->expiry == EXPIRY_KEEP)
			c->expiry = EXPIRY_MAY;
		c->kind = COMMAND_WRITE;
		break;
	case 'R':
	case 'E':
		c->kind = COMMAND_WRITE;
		break;
	case 'q':
		c->optional = true;
		break;
	case 'b':
		c->encoded = true;
		break;
	case 'M': /* the mode: append and prepend leave the item's time alone */
		mode = window_at(w, start + 1) & ~0x20;
		if (mode == 'A' || mode == 'P')
			c->expiry = EXPIRY_LESS;
		c->conditional |= mode != 'S';
		break;
	case 'I': /* an outdated one keeps the item's time */
		c->expiry = EXPIRY_LESS;
		break;
	case 'C':
		c->conditional = true;
		break;
	}
	return true;
}

/* A token of the command, not its name or key. False if memcached may refuse it. */
__noinline int command_token(struct window *w, struct command *c, __u32 token,
			     __u32 start, __u32 end)
{
	const struct grammar *g;
	__s64 n;

	if (!w || !c)
		return false;
	g = &c->grammar;
	if (token == g->block) {
		n = window_number(w, start, end, false);
		c->block = n + 2;
		return n <= BLOCK_MAX;
	}
	if (g->reply == REPLY_META)
		return command_flag(w, c, start, end);
	if ((!g->block || token > g->block + !!g->cas) && end - start == 7 &&
	    window_word(w, start) << 8 ==
		    NAME('n', 'o', 'r', 'e', 'p', 'l', 'y', 0) << 8) {
		c->optional = true;
		return true;
	}
	if (token == g->exptime) {
		n = window_number(w, start, end, true);
		c->exptime = n;
		return n <= EXPTIME_MAX && n >= -EXPTIME_MAX;
	}
	if (token == g->cas)
		return window_number(w, start, end, false) != NUMBER_NONE;
	/* flags, of 32 bits */
	if (g->block && token == 2)
		return window_number(w, start, end, false) <= 0xffffffffLL;
	return true;
}

/*
 * Whether the line from `at` to `stop` has no control characters but those that
 * end it: memcached has its own mind about them.
 */
static __always_inline bool line_is_plain(const struct window *w, __u32 at,
					  __u32 stop)
{
	for (__u32 i = 0; i < LINE_MAX / 8; i++) {
		__u64 v = window_word(w, at);
		__u64 less = (v - 0x2020202020202020ULL) & ~v &
			     0x8080808080808080ULL;

		if (less) {
			at += word_count(word_first(less));
			return at + 1 == stop ||
			       (at + 2 == stop && window_at(w, at) == '\r');
		}
		at += 8;
	}
	return false;
}

/*
 * The text command at w->at, whose line is `line` bytes long. False if it is
 * not understood. All that is found out stays in memory: the verifier then goes
 * on with one state from token to token (see command_token()), not with one for
 * each command there is.
 */
__noinline int command_text(struct window *w, struct command *c, __u32 line)
{
	__u32 start, end, pos, token, stop, fewest;
	struct grammar *g;
	__u64 name;

	if (!w || !c || line < 2 || line > LINE_MAX)
		return false;
	g = &c->grammar;
	start = w->at;
	stop = start + line;
	end = window_token(w, start, stop) >> 16;
	name = window_word(w, start);
	if (end - start < 8)
		name &= (1ULL << (end - start) * 8) - 1;
	*g = grammar_of(name);
	c->kind = g->kind;
	c->reply = g->reply;
	c->expiry = g->expiry;
	c->optional = g->ends;
	c->head = line;
	if ((g->kind != COMMAND_READ || g->key || g->silent) &&
	    !line_is_plain(w, start, stop))
		return false;
	for (token = 1; token < TOKENS_MAX; token++) {
		pos = window_token(w, end, stop);
		start = pos & 0xffff;
		end = pos >> 16;
		if (start >= end)
			break;
		if (token == g->key) {
			c->key = start;
			c->klen = end - start;
			/* gat: the others are for command_next_key(). */
			if (g->reply == REPLY_LIST)
				break;
		} else if ((g->key || g->exptime || g->silent) &&
			   !command_token(w, c, token, start, end)) {
			return false;
		}
	}
	if (c->kind != COMMAND_WRITE)
		return c->kind && (token <= 3 || c->kind == COMMAND_READ);
	if (g->reply == REPLY_LIST) {
		c->keys = end;
		return c->klen && g->key;
	}
	if (!c->klen || token <= g->exptime || token == TOKENS_MAX)
		return false;
	if (c->expiry == EXPIRY_SET && c->conditional)
		c->expiry = EXPIRY_MAY;
	if (g->block) {
		/* Just as many tokens as memcached wants, or it refuses. */
		fewest = g->cas ? STORE_TOKENS + 1 : STORE_TOKENS;
		if (!c->block || c->klen > BMC_KEY_MAX)
			return false;
		if (g->exptime ? token < fewest || token > fewest + 1
			       : token > META_TOKENS_MAX)
			return false;
	}
	if (c->encoded) {
		c->klen = window_decode(w, c->key, c->klen);
		return c->klen > 0;
	}
	return true;
}

/* The next of the keys that a gat names; false after the last. */
static __always_inline bool command_next_key(struct window *w, struct command *c)
{
	__u32 pos;

	if (!c->keys)
		return false;
	pos = window_token(w, c->keys, w->at + c->head);
	c->key = pos & 0xffff;
	c->keys = pos >> 16;
	c->klen = c->keys - c->key;
	return c->klen;
}

/* What a binary request does (protocol_binary.h): kind, extras, quiet. */
struct opcode {
	__u32 kind;
	__u32 extras; /* how long they are */
	__u32 other; /* or else this long */
	__u32 exptime; /* where in the extras it is, plus 1; 0: nowhere */
	__u32 expiry;
	bool quiet;
};

static __always_inline struct opcode opcode_of(__u32 opcode)
{
	struct opcode o = {};

	switch (opcode) {
	case 0x00: /* get */
	case 0x0a: /* noop */
	case 0x0b: /* version */
	case 0x0c: /* getk */
	case 0x10: /* stat */
	case 0x07: /* quit */
	case 0x20: /* sasl: mechanisms, auth, step */
	case 0x21:
	case 0x22:
		o.kind = COMMAND_READ;
		break;
	case 0x09: /* getq */
	case 0x0d: /* getkq */
	case 0x17: /* quitq */
		o.kind = COMMAND_READ;
		o.quiet = true;
		break;
	case 0x01: /* set */
	case 0x11: /* setq */
		o = (struct opcode){ COMMAND_WRITE, 8, 8, 5, EXPIRY_SET,
				     opcode == 0x11 };
		break;
	case 0x02: /* add, replace */
	case 0x03:
	case 0x12:
	case 0x13:
		o = (struct opcode){ COMMAND_WRITE, 8, 8, 5, EXPIRY_MAY,
				     opcode > 0x10 };
		break;
	case 0x04: /* delete, append, prepend */
	case 0x0e:
	case 0x0f:
	case 0x14:
	case 0x19:
	case 0x1a:
		o = (struct opcode){ COMMAND_WRITE, 0, 0, 0, EXPIRY_KEEP,
				     opcode > 0x10 };
		break;
	case 0x05: /* incr, decr; they may make the item */
	case 0x06:
	case 0x15:
	case 0x16:
		o = (struct opcode){ COMMAND_WRITE, 20,		  20, 17,
				     EXPIRY_LESS,   opcode > 0x10 };
		break;
	case 0x1c: /* touch, gat */
	case 0x1d:
	case 0x1e:
	case 0x23:
	case 0x24:
		o = (struct opcode){ COMMAND_WRITE,
				     4,
				     4,
				     1,
				     EXPIRY_MAY,
				     opcode == 0x1e || opcode == 0x24 };
		break;
	case 0x08: /* flush */
	case 0x18:
		o = (struct opcode){ COMMAND_FLUSH, 4, 0, 1, EXPIRY_KEEP,
				     opcode == 0x18 };
		break;
	}
	return o;
}

/* Something follows the key. */
static __always_inline bool has_value(__u32 opcode)
{
	switch (opcode) {
	case 0x01: /* set, add, replace */
	case 0x02:
	case 0x03:
	case 0x11:
	case 0x12:
	case 0x13:
	case 0x0e: /* append, prepend */
	case 0x0f:
	case 0x19:
	case 0x1a:
	case 0x21: /* sasl: auth, step */
	case 0x22:
		return true;
	}
	return false;
}

/* Quiet reads: what they get is recognised by its opcode, and changes nothing. */
static __always_inline bool is_quiet_read(__u32 opcode)
{
	return opcode == 0x09 || opcode == 0x0d;
}

/*
 * The binary request at w->at. 1: understood, 0: not, -1: more of it must be in
 * the window.
 */
__noinline int command_binary(struct window *w, struct command *c)
{
	__u32 at, len, klen, extras, body;
	struct opcode o;

	if (!w || !c)
		return 0;
	at = w->at;
	len = w->len - at;
	if (len < BINARY_HEAD)
		return -1;
	c->opcode = window_at(w, at + 1);
	o = opcode_of(c->opcode);
	klen = window_be16(w, at + 2);
	extras = window_at(w, at + 4);
	body = window_be32(w, at + 8);
	c->kind = o.kind;
	c->reply = REPLY_BINARY;
	c->optional = o.quiet;
	if (!o.kind || body > BLOCK_MAX || klen + extras > body)
		return 0;
	/* What memcached does not expect, it takes for the next request. */
	if (body != klen + extras && !has_value(c->opcode))
		return 0;
	c->head = BINARY_HEAD;
	c->block = body;
	if (o.kind == COMMAND_READ)
		return !extras;
	/* memcached closes the connection over a wrong length. */
	if (extras != o.extras && extras != o.other)
		return 0;
	if (o.kind == COMMAND_WRITE ? !klen || klen > BMC_KEY_MAX : klen)
		return 0;
	if (len < BINARY_HEAD + extras + klen)
		return -1;
	c->head = BINARY_HEAD + extras + klen;
	c->block = body - extras - klen;
	c->key = at + BINARY_HEAD + extras;
	c->klen = klen;
	c->expiry = o.expiry;
	if (o.exptime && extras >= o.exptime + 3)
		c->exptime = window_be32(w, at + BINARY_HEAD - 1 + o.exptime);
	/* With a CAS number, set is cas. */
	if (o.expiry == EXPIRY_SET && window_word(w, at + 16))
		c->expiry = EXPIRY_MAY;
	/* incr with all ones does not make the item. */
	if (extras == BINARY_EXTRAS_MAX && c->exptime == 0xffffffff)
		c->expiry = EXPIRY_KEEP;
	return 1;
}

/*
 * The write that comes most, "set <key> <flags> <exptime> <bytes>", without
 * looking at each token for itself. False if it has another form, or not all of
 * its line is there.
 */
__noinline int command_set(struct window *w, struct command *c)
{
	__u64 flags, exptime, bytes;
	__u32 key, at;

	if (!w || !c)
		return false;
	key = w->at + STORE_LEN;
	at = token_end(w, key, KEY_WORDS);
	if ((__u32)window_word(w, w->at) != TEXT_SET || at == key ||
	    window_at(w, at) != ' ')
		return false;
	c->klen = at - key;
	flags = window_digits(w, at + 1);
	at += 1 + (flags & 0xff);
	if (!flags || window_at(w, at) != ' ')
		return false;
	exptime = window_digits(w, at + 1);
	at += 1 + (exptime & 0xff);
	if (!exptime || window_at(w, at) != ' ')
		return false;
	bytes = window_digits(w, at + 1);
	at += 1 + (bytes & 0xff);
	if (!bytes || (__u16)window_word(w, at) != TEXT_CRLF ||
	    at + 2 > w->len || c->klen > BMC_KEY_MAX)
		return false;
	c->kind = COMMAND_WRITE;
	c->reply = REPLY_LINE;
	c->key = key;
	c->head = at + 2 - w->at;
	c->block = (bytes >> 8) + 2;
	c->expiry = EXPIRY_SET;
	c->exptime = exptime >> 8;
	return true;
}

/*
 * The command at w->at, in the protocol that its connection speaks. 1:
 * understood, 0: not, -1: its line or head goes on beyond the window.
 */
static __always_inline int command_parse(struct window *w, struct command *c,
					 bool binary)
{
	int line;

	__builtin_memset(c, 0, sizeof(*c));
	if (w->at >= w->len)
		return -1;
	if (binary)
		return window_at(w, w->at) == MAGIC_REQUEST
			       ? command_binary(w, c)
			       : 0;
	if (command_set(w, c))
		return 1;
	c->klen = 0;
	line = window_line(w);
	if (!line)
		return w->len - w->at < LINE_MAX ? -1 : 0;
	/* The most frequent one has no secrets. */
	if ((__u32)window_word(w, w->at) == TEXT_GET) {
		c->kind = COMMAND_READ;
		c->reply = REPLY_LIST;
		c->head = line;
		return 1;
	}
	return command_text(w, c, line);
}

/* The number that is a line's token: VALUE <key> <flags> <bytes>, VA <bytes>. */
static __always_inline int reply_value(struct window *w, struct reply *r,
				       int token)
{
	__u32 stop = w->at + r->head, at = window_token(w, w->at, stop);
	__s64 n;

	for (int i = 0; i < token; i++)
		at = window_token(w, at >> 16, stop);
	n = window_number(w, at & 0xffff, at >> 16, false);
	r->block = n + 2;
	return n <= BLOCK_MAX;
}

/* The reply, or part of one, that is a line: r->head bytes at w->at. */
__noinline int reply_line(struct window *w, struct reply *r)
{
	__u8 first, second, third;
	__u64 word;

	if (!w || !r)
		return 0;
	word = window_word(w, w->at);
	first = word;
	second = word >> 8;
	third = word >> 16;
	if ((__u32)word == TEXT_VALU && (word >> 32 & 0xffff) == TEXT_E_SPACE) {
		r->kind = REPLY_LIST;
		return reply_value(w, r, 3);
	}
	r->last = true;
	if ((__u32)word == (__u32)TEXT_END) {
		r->kind = REPLY_LIST | REPLY_STATS;
		return 1;
	}
	if (first == 'V' && second == 'A' && third == ' ') {
		r->kind = REPLY_META;
		return reply_value(w, r, 1);
	}
	if (first >= 'A' && second >= 'A' && third <= ' ') {
		/* HD EN NF NS EX ME; MN; OK, which meta commands once had */
		bool ok = first == 'O' && second == 'K';

		r->kind = REPLY_META;
		if (first == 'M' && second == 'N')
			r->kind = REPLY_NOOP;
		else if (ok)
			r->kind = REPLY_META | REPLY_LINE | REPLY_STATS;
		r->failed = !ok && !(first == 'H' && second == 'D');
		return 1;
	}
	switch (word & 0xffffffffffULL) {
	case NAME('S', 'T', 'A', 'T', ' ', 0, 0, 0):
	case NAME('I', 'T', 'E', 'M', ' ', 0, 0, 0):
	case NAME('P', 'R', 'E', 'F', 'I', 0, 0, 0):
		r->kind = REPLY_STATS;
		r->last = false;
		return 1;
	case NAME('N', 'O', 'T', '_', 'S', 0, 0, 0):
	case NAME('N', 'O', 'T', '_', 'F', 0, 0, 0):
	case NAME('E', 'X', 'I', 'S', 'T', 0, 0, 0):
		r->kind = REPLY_LINE;
		r->failed = true;
		return 1;
	case NAME('E', 'R', 'R', 'O', 'R', 0, 0, 0):
		/* "ERROR Too many open connections" */
		r->closes = word >> 40 == NAME(' ', 'T', 'o', 0, 0, 0, 0, 0);
		/* fallthrough */
	case NAME('C', 'L', 'I', 'E', 'N', 0, 0, 0):
		r->refused = true;
		/* fallthrough */
	case NAME('S', 'E', 'R', 'V', 'E', 0, 0, 0):
		r->kind = REPLY_LINE | REPLY_LIST | REPLY_META | REPLY_STATS;
		r->failed = true;
		r->error = true;
		return 1;
	}
	r->kind = REPLY_LINE | REPLY_STATS;
	return 1;
}

static __always_inline bool is_end(const struct window *w, __u32 at)
{
	return window_word(w, at) << 24 ==
	       NAME('E', 'N', 'D', '\r', '\n', 0, 0, 0) << 24;
}

/*
 * The replies that come most, without a loop over the line: "END", "STORED" and
 * the first line of a value, "VALUE <key> <flags> <bytes>". False if it is another,
 * or not all of it is there.
 */
static __always_inline bool reply_quick(const struct window *w, __u32 from,
					__u32 len, struct reply *r)
{
	__u64 word = window_word(w, from), bytes;
	__u32 at = from, have = len - at;

	if (word << 16 != NAME('V', 'A', 'L', 'U', 'E', ' ', 0, 0) << 16) {
		if (is_end(w, from) && have >= END_LEN) {
			r->kind = REPLY_LIST | REPLY_STATS;
			r->head = END_LEN;
		} else if (word == TEXT_STORED && have >= STORED_LEN) {
			r->kind = REPLY_LINE | REPLY_STATS;
			r->head = STORED_LEN;
		} else {
			return false;
		}
		r->last = true;
		return true;
	}
	at = token_end(w, at + VALUE_LEN, KEY_WORDS);
	if (at == from + VALUE_LEN)
		return false;
	if ((window_word(w, at) & 0xffffff) == TEXT_NO_FLAGS) {
		at += 3;
	} else {
		if (window_at(w, at) != ' ')
			return false;
		at = token_end(w, at + 1, 2);
		if (window_at(w, at) != ' ')
			return false;
		at++;
	}
	bytes = window_few_digits(w, at);
	at += bytes & 0xff;
	if (!bytes || (__u16)window_word(w, at) != TEXT_CRLF || at + 2 > len)
		return false;
	r->kind = REPLY_LIST;
	r->head = at + 2 - from;
	r->block = (bytes >> 8) + 2;
	return true;
}

__noinline int reply_often(struct window *w, struct reply *r)
{
	return w && r && reply_quick(w, w->at, w->len, r);
}

/*
 * The reply, or the part of one, at w->at. 1: understood, 0: not, -1: its line
 * or head goes on beyond the window.
 */
static __always_inline int reply_parse(struct window *w, struct reply *r,
				       bool binary)
{
	__u32 at = w->at;
	int line;

	__builtin_memset(r, 0, sizeof(*r));
	if (at >= w->len)
		return -1;
	if (binary) {
		if (window_at(w, at) != MAGIC_REPLY)
			return 0;
		if (w->len - at < BINARY_HEAD)
			return -1;
		r->opcode = window_at(w, at + 1);
		r->kind = REPLY_BINARY;
		r->head = BINARY_HEAD;
		r->block = window_be32(w, at + 8);
		r->failed = window_be16(w, at + 6) != 0;
		/* stat ends with one that has neither key nor value */
		r->last = r->opcode != 0x10 || !r->block || r->failed;
		return r->block <= BLOCK_MAX;
	}
	if (reply_often(w, r))
		return 1;
	line = window_line(w);
	if (!line)
		return w->len - at < LINE_MAX ? -1 : 0;
	r->head = line;
	return reply_line(w, r);
}

#endif /* PROTO_H */
