/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The grammar of memcached (doc/protocol.txt, protocol_binary.h) and the hash
 * of its keys. No BPF helper and no map in here, so that it also compiles
 * natively, for fuzzing. Little-endian, as everything that bmc runs on.
 *
 * A command is understood if it is certain how much of the stream it takes and
 * which keys it may change, in every version of memcached (1.4.39, 1.5.22, 1.6.18
 * and 1.6.45 were read): see the table of text commands below.
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

/* The same of the bytes that are `byte`. */
static __always_inline __u64 word_bytes(__u64 w, __u8 byte)
{
	w ^= byte * 0x0101010101010101ULL;
	return (w - 0x0101010101010101ULL) & ~w & 0x8080808080808080ULL;
}

/* And of all other bytes: each of them is marked exactly. */
static __always_inline __u64 word_others(__u64 w, __u8 byte)
{
	const __u64 low = 0x7f7f7f7f7f7f7f7fULL;

	w ^= byte * 0x0101010101010101ULL;
	return (((w & low) + low) | w) & ~low;
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

/* Flags of a meta command that say something of its item's end. */
enum meta_flag {
	META_T = 1,
	META_N = 2,
	META_I = 4,
	META_APPEND = 8, /* M with A or P */
	META_UNSURE =
		16, /* a number of which it is not known what memcached takes */
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
	__u8 kind;
	__u8 reply;
	__u8 key; /* which token it is; 0 is the name */
	__u8 block; /* which token is the length of the data block; 0: no block */
	__u8 exptime; /* which token it is; 0: none */
	__u8 expiry; /* of enum expiry_kind */
	__u8 cas; /* which token it is; 0: none */
	/*
	 * A noreply at the end is heeded by every memcached if it stands before
	 * this token, and by some behind it; 0: it means nothing.
	 */
	__u8 noreply;
	__u8 other; /* of enum grammar_other */
} __attribute__((aligned(8))); /* copied by words */

enum grammar_other {
	OTHER_ENDS = 1, /* the connection, without a reply unless refused */
	OTHER_DUMPS, /* a stream of lines if the first argument begins with m */
};

struct command {
	__u32 kind;
	__u32 reply; /* one of enum reply_kind */
	__u32 optional; /* noreply or quiet: there may be no reply */
	__u32 key; /* where it starts; an encoded one was decoded in place */
	__u32 klen;
	__u32 keys; /* gat only: where the next key starts; 0: that was the last */
	__u32 stop; /* text only: where the line's end starts, "\r\n" or "\n" */
	__u32 head; /* bytes of the line, or of header and key */
	__u32 block; /* bytes of the data block that follows, its end included */
	__u32 opcode; /* binary only */
	__u32 expiry; /* one of enum expiry_kind */
	__s64 exptime; /* as on the wire */
	__u32 vague; /* by how many seconds the end may be later than by exptime */
	/* Only while a text command is being taken apart. */
	struct grammar grammar;
	__u32 flags; /* of enum meta_flag */
	__s64 vivify; /* N's exptime */
	__u32 encoded; /* its key */
	__u32 conditional; /* whether the exptime is set, or it may be refused */
	__u32 refused; /* by every memcached: it changes nothing */
	__u32 sized; /* ms: perhaps as until 1.6.9, with a flag S */
	__u32 last; /* the last token is noreply */
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
	RELATIVE_MAX = 30 * 24 * 3600, /* exptime is a time of day above it */
	VAGUE_MAX = 1 << 24, /* seconds */
	META_TOKENS_MAX = 18,
	BLOCK_MAX = 1 << 30,
	LENGTH_DIGITS = 11, /* of a data block's length, zeroes in front included */
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

/* Where the line at `at`, of `line` bytes, has its end: "\r\n" or "\n". */
static __always_inline __u32 line_stop(const struct window *w, __u32 at,
				       __u32 line)
{
	__u32 stop = at + line - 1;

	return stop - (line > 1 && window_at(w, stop - 1) == '\r');
}

/*
 * The token at `at` or behind the spaces there: where it starts and, shifted
 * by 16, where it ends, at a space or at `stop`, which is where the line's end
 * starts. They are the same at the end of the line. Only a space ends a token:
 * keys may have any other byte.
 */
__noinline __u32 window_token(struct window *w, __u32 at, __u32 stop)
{
	__u32 end;

	if (!w)
		return 0;
	for (int i = 0; i < LINE_MAX / 8 + 1 && at < stop; i++) {
		__u64 others = word_others(window_word(w, at), ' ');

		if (others) {
			at += word_count(word_first(others));
			break;
		}
		at += 8;
	}
	if (at > stop)
		at = stop;
	end = at;
	for (int i = 0; i < LINE_MAX / 8 + 1 && end < stop; i++) {
		__u64 spaces = word_bytes(window_word(w, end), ' ');

		if (spaces) {
			end += word_count(word_first(spaces));
			break;
		}
		end += 8;
	}
	if (end > stop)
		end = stop;
	return at | end << 16;
}

enum {
	NUMBER_DIGITS = 18, /* of one whose value is known */
	NUMBER_LONG = 20, /* of the longest one of 64 bits */
};
/* A decimal of 64 bits, without a sign, of more digits. */
#define NUMBER_BIG (1LL << 62)
/* Some memcached reads a number, another none, or another one. */
#define NUMBER_UNSURE (NUMBER_BIG + 1)
/* No memcached reads a number. */
#define NUMBER_NONE (NUMBER_BIG + 2)
#define INT_LIMIT (1LL << 31)

/*
 * The decimal between `at` and `end`, or one of the above. Up to 1.6.45 some are
 * read by strtol(), which takes blanks and a sign before the digits, and whatever
 * follows a blank; newer ones only digits, and a minus sign where it makes sense.
 */
__noinline __s64 window_number(struct window *w, __u32 at, __u32 end)
{
	__u32 control = 0, other = 0, len;
	bool plus, minus;
	__u8 first;
	__u64 n = 0;

	if (!w)
		return NUMBER_NONE;
	minus = window_at(w, at) == '-';
	plus = window_at(w, at) == '+';
	if (at >= end)
		return NUMBER_NONE;
	at += minus | plus;
	len = end - at;
	first = window_at(w, at);
	for (__u32 i = 0; i < NUMBER_LONG && at + i < end; i++) {
		__u32 c = window_at(w, at + i), digit = c - '0' & 0xff;

		/* Without a branch: the verifier would follow each. */
		control |= (c - 0x21) >> 31;
		other |= (digit + 0xf6) >> 8;
		n = n * 10 + digit;
	}
	if (len > NUMBER_LONG || control)
		return NUMBER_UNSURE;
	if (other)
		return NUMBER_NONE;
	if (plus || !len)
		return NUMBER_UNSURE;
	if (len <= NUMBER_DIGITS)
		return minus ? -(__s64)n : (__s64)n;
	/* Of those of 20 digits that begin with 1, the ones beyond 64 bits have
	 * gone round to less.
	 */
	if (minus || (len == NUMBER_LONG && first > '0' &&
		      (first > '1' || n < 10000000000000000000ULL)))
		return NUMBER_UNSURE;
	return NUMBER_BIG;
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

/*
 * The text commands: what each may change, and how it is answered. Versions of
 * memcached differ, most of all those up to 1.6.39 ("old") and those from 1.6.40 on
 * ("new"), which have another parser. What some version may do counts as done.
 *
 *  - An unknown name may be a new command, which may change anything. A name of
 *    fewer than two letters never is one: the answer is an error.
 *  - A data block is skipped when the command is carried out, when the item is not
 *    stored (too large, no memory, bad data chunk), and when ms refuses a flag.
 *  - There is no data block when its length is missing, not a number, negative or
 *    beyond an int: every version refuses that, and takes what follows for commands.
 *  - When another part is refused (flags that are not a number, a key that is too
 *    long), old versions take the block for commands and new ones skip it. With too
 *    many tokens, with "$" in place of a flag of ms, and with a space before the
 *    name it is the other way round. Then anything may change.
 *  - A number that its type cannot hold is cut to its low bits, or refused: the
 *    reply tells which. The length of a block is the exception, see above.
 *  - A command without a block is an error, and changes nothing, when its key is
 *    missing, or the exptime of touch, gat or flush_all is missing or not a number.
 *    Otherwise it may change its key, whatever else is wrong with it: new versions
 *    do not look at what follows the last token that they need.
 *  - Where only some versions heed noreply, there may be a reply or none
 *    (REPLY_STREAM).
 *  - Old versions end the line at a byte 0: anything may change.
 *  - lru_crawler, lru, slabs, cache_memlimit and extstore may evict items, as
 *    memcached may at any time, or free those that have expired: a GET finds no
 *    other value for it.
 *  - debugtime and debugitem, which only debug builds know, may change anything.
 *
 * A datagram is all binary or all text, by its first byte. A line or a header whose
 * end is not in the datagram is forgotten when the next one comes.
 */
struct text_command {
	char name[16];
	struct grammar grammar;
};

/* clang-format off: the columns are those of struct grammar */
const struct text_command text_commands[] = {
	/* <name> <key> <flags> <exptime> <bytes> [noreply] */
	{ "set", { COMMAND_WRITE, REPLY_LINE, 1, 4, 3, EXPIRY_SET, 0, 6, 0 } },
	{ "add", { COMMAND_WRITE, REPLY_LINE, 1, 4, 3, EXPIRY_MAY, 0, 6, 0 } },
	{ "replace", { COMMAND_WRITE, REPLY_LINE, 1, 4, 3, EXPIRY_MAY, 0, 6, 0 } },
	/* They leave flags and exptime alone, but want them. */
	{ "append", { COMMAND_WRITE, REPLY_LINE, 1, 4, 3, EXPIRY_KEEP, 0, 6, 0 } },
	{ "prepend",
	  { COMMAND_WRITE, REPLY_LINE, 1, 4, 3, EXPIRY_KEEP, 0, 6, 0 } },
	/* cas <key> <flags> <exptime> <bytes> <cas> [noreply] */
	{ "cas", { COMMAND_WRITE, REPLY_LINE, 1, 4, 3, EXPIRY_MAY, 5, 7, 0 } },
	/* <name> <key> <value> [noreply] */
	{ "incr", { COMMAND_WRITE, REPLY_LINE, 1, 0, 0, EXPIRY_KEEP, 0, 4, 0 } },
	{ "decr", { COMMAND_WRITE, REPLY_LINE, 1, 0, 0, EXPIRY_KEEP, 0, 4, 0 } },
	/* delete <key> [0] [noreply] */
	{ "delete", { COMMAND_WRITE, REPLY_LINE, 1, 0, 0, EXPIRY_KEEP, 0, 4, 0 } },
	/* touch <key> <exptime> [noreply] */
	{ "touch", { COMMAND_WRITE, REPLY_LINE, 1, 0, 2, EXPIRY_MAY, 0, 4, 0 } },
	/* gat <exptime> <key>* */
	{ "gat", { COMMAND_WRITE, REPLY_LIST, 2, 0, 1, EXPIRY_LESS, 0, 0, 0 } },
	{ "gats", { COMMAND_WRITE, REPLY_LIST, 2, 0, 1, EXPIRY_LESS, 0, 0, 0 } },
	/* ms <key> <datalen> <flags>*: it never expires without a T */
	{ "ms", { COMMAND_WRITE, REPLY_META, 1, 2, 0, EXPIRY_SET, 0, 0, 0 } },
	/* <name> <key> <flags>*: some of the flags make mg a write */
	{ "md", { COMMAND_WRITE, REPLY_META, 1, 0, 0, EXPIRY_KEEP, 0, 0, 0 } },
	{ "ma", { COMMAND_WRITE, REPLY_META, 1, 0, 0, EXPIRY_KEEP, 0, 0, 0 } },
	{ "mg", { COMMAND_READ, REPLY_META, 1, 0, 0, EXPIRY_KEEP, 0, 0, 0 } },
	{ "me", { COMMAND_READ, REPLY_META, 0, 0, 0, 0, 0, 0, 0 } },
	{ "mn", { COMMAND_READ, REPLY_NOOP, 0, 0, 0, 0, 0, 0, 0 } },
	/* <name> <key>*; from 1.6.40 on there is no bget */
	{ "get", { COMMAND_READ, REPLY_LIST, 0, 0, 0, 0, 0, 0, 0 } },
	{ "gets", { COMMAND_READ, REPLY_LIST, 0, 0, 0, 0, 0, 0, 0 } },
	{ "bget", { COMMAND_READ, REPLY_LIST, 0, 0, 0, 0, 0, 1, 0 } },
	/* Whatever follows. */
	{ "stats", { COMMAND_READ, REPLY_STATS, 0, 0, 0, 0, 0, 0, 0 } },
	{ "version", { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 0, 0 } },
	{ "watch", { COMMAND_READ, REPLY_STREAM, 0, 0, 0, 0, 0, 0, 0 } },
	{ "quit", { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 0, OTHER_ENDS } },
	/* <name> <number> [noreply] */
	{ "verbosity", { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 3, 0 } },
	{ "cache_memlimit", { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 3, 0 } },
	/* Whatever follows; but noreply is not the same to every memcached. */
	{ "lru", { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 1, 0 } },
	{ "slabs", { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 1, 0 } },
	{ "extstore", { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 1, 0 } },
	{ "misbehave", { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 1, 0 } },
	/* metadump and mgdump list the keys. */
	{ "lru_crawler",
	  { COMMAND_READ, REPLY_LINE, 0, 0, 0, 0, 0, 1, OTHER_DUMPS } },
	/* OK, or whatever the TLS library has to say. */
	{ "refresh_certs", { COMMAND_READ, REPLY_STREAM, 0, 0, 0, 0, 0, 0, 0 } },
	/* flush_all [delay] [noreply] */
	{ "flush_all", { COMMAND_FLUSH, REPLY_LINE, 0, 0, 1, 0, 0, 3, 0 } },
	/* shutdown [graceful]: an error, or the end of all. */
	{ "shutdown", { COMMAND_FLUSH, REPLY_STREAM, 0, 0, 0, 0, 0, 0, 0 } },
};
/* clang-format on */

enum { TEXT_COMMANDS = sizeof(text_commands) / sizeof(text_commands[0]) };

/* The eight bytes at `at`, of which `len` belong to a name. */
static __always_inline __u64 name_word(const struct window *w, __u32 at, __u32 len)
{
	__u64 word = window_word(w, at);

	return len < 8 ? word & ((1ULL << len * 8) - 1) : word;
}

/* Finds the grammar of the command whose name is there. False if it is unknown. */
__noinline int command_name(struct window *w, struct command *c, __u32 at,
			    __u32 end)
{
	__u32 len = end - at;
	__u64 name, rest;

	if (!w || !c || len > sizeof(text_commands[0].name))
		return false;
	if (len < 2) {
		c->grammar.kind = COMMAND_READ;
		c->grammar.reply = REPLY_LIST;
		c->grammar.noreply = 1;
		return true;
	}
	name = name_word(w, at, len);
	rest = len > 8 ? name_word(w, at + 8, len - 8) : 0;
	for (__u32 i = 0; i < TEXT_COMMANDS; i++) {
		const __u64 *words = (const __u64 *)text_commands[i].name;

		__u64 differs = words[0] ^ name;

		/* As one: the verifier would go on with each first half. */
		barrier_var(differs);
		if (differs | (words[1] ^ rest))
			continue;
		c->grammar = text_commands[i].grammar;
		return true;
	}
	return false;
}

static __always_inline bool is_noreply(const struct window *w, __u32 at, __u32 end)
{
	return end - at == 7 &&
	       window_word(w, at) << 8 ==
		       NAME('n', 'o', 'r', 'e', 'p', 'l', 'y', 0) << 8;
}

/*
 * An exptime, cut as memcached may cut it. If it is not known the item may end at
 * once: then it is one of which nothing is known.
 */
static __always_inline void command_ends(struct command *c, __s64 exptime)
{
	c->conditional |= exptime != (__s32)exptime;
	c->exptime = (__s32)exptime;
	if (exptime < NUMBER_BIG)
		return;
	c->exptime = -1;
	c->vague = VAGUE_MAX;
	c->expiry = EXPIRY_LESS;
}

/*
 * What a meta command's flags say of its item's end, all of them together:
 *
 *  - ms has T's, or none; N says nothing. If it appends or prepends, an item
 *    that is there keeps its own and T says nothing; one that it makes, which it does
 *    with N, has N's. An outdated one (I) keeps the item's own.
 *  - mg and ma: T's for any item; N's for one that they make. With both, the flag that
 *    comes last counts: it is one of the two.
 *  - md with I: T's, or the item keeps its own. With x and without T it ends never,
 *    and otherwise it is gone: a candidate too many does no harm.
 *
 * Of two times that do not compare, a time of day and another, nothing is known.
 */
__noinline int command_meta_expiry(struct command *c)
{
	__u32 t, n;
	__s64 end;

	if (!c)
		return false;
	t = c->flags & META_T;
	n = c->flags & META_N;
	if (c->grammar.block) {
		t = !(c->flags & META_APPEND);
		n = n && !t;
	}
	end = t ? c->exptime : c->vivify;
	c->expiry = EXPIRY_KEEP;
	if (t)
		c->expiry = c->grammar.expiry == EXPIRY_SET ? EXPIRY_SET
							    : EXPIRY_MAY;
	if (n || (t && c->flags & META_I))
		c->expiry = EXPIRY_LESS;
	if (t && n && c->exptime != c->vivify) {
		/* The lesser one, and how far the other is. */
		if (!end || (c->vivify && c->vivify < end))
			end = c->vivify;
		if (c->exptime && c->vivify) {
			if ((c->exptime > RELATIVE_MAX) !=
			    (c->vivify > RELATIVE_MAX))
				c->flags |= META_UNSURE;
			c->vague = c->exptime + c->vivify - 2 * end;
			if (end < 0)
				c->vague = VAGUE_MAX;
		}
	}
	c->exptime = end;
	if (c->flags & META_UNSURE)
		command_ends(c, NUMBER_UNSURE);
	return true;
}

/*
 * A flag of a meta command: a letter, perhaps with something behind it. False if a
 * data block may be taken for commands because of it.
 */
__noinline int command_flag(struct window *w, struct command *c, __u32 start,
			    __u32 end)
{
	__u8 flag, mode;
	__s64 n;

	if (!w || !c)
		return false;
	flag = window_at(w, start);
	switch (flag) {
	case 'T':
	case 'N':
		n = window_number(w, start + 1, end);
		c->kind = COMMAND_WRITE;
		if (n == NUMBER_NONE)
			break; /* refused */
		if (n >= NUMBER_BIG)
			c->flags |= META_UNSURE;
		c->conditional |= n != (__s32)n;
		if (flag == 'N') {
			c->vivify = (__s32)n;
			c->flags |= META_N;
		} else {
			c->exptime = (__s32)n;
			c->flags |= META_T;
		}
		break;
	case 'q':
		c->optional = true;
		break;
	case 'b':
		c->encoded = true;
		break;
	case 'M':
		mode = window_at(w, start + 1) & ~0x20;
		if (mode == 'A' || mode == 'P')
			c->flags |= META_APPEND;
		c->conditional |= mode != 'S';
		break;
	case 'I':
		c->flags |= META_I;
		break;
	case 'S':
		c->sized = true;
		c->kind = COMMAND_WRITE;
		break;
	case 'C':
		c->conditional = true;
		break;
	/* They change nothing. */
	case 'D':
	case 'F':
	case 'J':
	case 'L':
	case 'O':
	case 'P':
	case 'c':
	case 'f':
	case 'h':
	case 'k':
	case 'l':
	case 's':
	case 't':
	case 'u':
	case 'v':
		break;
	default: /* R, E, x, and what is to come */
		c->kind = COMMAND_WRITE;
	}
	/* From 1.6.40 on what begins with another byte is not even a flag. */
	return !c->grammar.block || (flag > 64 && flag < 123) ||
	       (flag >= '0' && flag <= '9');
}

/* A token of the command, not its name or key. False if anything may happen. */
__noinline int command_token(struct window *w, struct command *c, __u32 token,
			     __u32 start, __u32 end)
{
	const struct grammar *g;
	__s64 n;

	if (!w || !c)
		return false;
	g = &c->grammar;
	if (g->reply == REPLY_META && token != g->block)
		return command_flag(w, c, start, end);
	if (token != g->block && token != g->exptime && token != g->cas &&
	    !(g->block && token == 2))
		return true;
	n = window_number(w, start, end);
	if (token == g->block) {
		c->block = n + 2;
		c->sized |= window_at(w, start) == 'S';
		if (n >= 0 && n <= BLOCK_MAX)
			return end - start <= LENGTH_DIGITS;
		/* One that every memcached refuses has no block. */
		c->refused = true;
		return n == NUMBER_NONE || (n < 0 && n >= -INT_LIMIT) ||
		       (n > INT_LIMIT - 3 && n < 2 * INT_LIMIT);
	}
	if (token == g->exptime) {
		command_ends(c, n);
		if (g->block)
			return n < NUMBER_BIG;
		c->refused = n == NUMBER_NONE;
		/* When a flush takes effect must be known. */
		return n < NUMBER_BIG || c->refused || g->kind == COMMAND_WRITE;
	}
	/* flags, of which the low bits count, or the unique number */
	c->conditional |= n > 0xffffffffLL;
	return n >= 0 && n <= NUMBER_BIG;
}

/* Whether there is a byte 0 from `at` on and before `stop`. */
static __always_inline bool line_has_zero(const struct window *w, __u32 at,
					  __u32 stop)
{
	for (__u32 i = 0; i < LINE_MAX / 8 && at < stop; i++) {
		__u64 zeroes = word_bytes(window_word(w, at), 0);

		if (zeroes)
			return at + word_count(word_first(zeroes)) < stop;
		at += 8;
	}
	return false;
}

/* The text command is an error to every memcached; its line is all there is of it. */
static __always_inline void command_refuse(struct command *c, bool certain)
{
	c->kind = COMMAND_READ;
	c->reply = certain ? REPLY_LIST : REPLY_STREAM;
	c->block = 0;
}

/*
 * What the text command comes to, all of its tokens but for the keys of a gat
 * having been looked at: of `tokens` there are. `spaces` come before its name.
 */
__noinline int command_whole(struct window *w, struct command *c, __u32 tokens,
			     bool spaces)
{
	const struct grammar *g;
	__u32 most;

	if (!w || !c)
		return false;
	g = &c->grammar;
	/* A token is missing: an error, even with noreply. */
	if (g->key && (!c->klen || tokens <= g->block || tokens <= g->exptime)) {
		command_refuse(c, !spaces);
		return true;
	}
	if (g->block) {
		if (c->refused) {
			command_refuse(c, !c->last);
			return !c->sized;
		}
		/* Old versions take just so many. */
		most = g->cas ? g->cas + 2 : g->block + 2;
		if (!g->noreply)
			most = META_TOKENS_MAX;
		if (tokens > most || tokens <= g->cas || c->klen > BMC_KEY_MAX)
			return false;
	}
	/* But in "flush_all noreply" that is not the exptime. */
	if (c->refused && !(g->kind == COMMAND_FLUSH && c->last && tokens == 2))
		command_refuse(c, true);
	if (g->noreply && (c->last || tokens == TOKENS_MAX)) {
		c->optional = true;
		if (tokens - 1 <= g->key || tokens > g->noreply)
			c->reply = REPLY_STREAM;
	}
	/* "mn\n" is too short for 1.6.40 and later. */
	if (spaces || (g->reply == REPLY_NOOP && c->head < 4))
		c->reply = REPLY_STREAM;
	if (c->reply == REPLY_STREAM)
		c->optional = false;
	if (c->kind == COMMAND_WRITE && g->reply == REPLY_META)
		command_meta_expiry(c);
	if (c->expiry == EXPIRY_SET && c->conditional)
		c->expiry = EXPIRY_MAY;
	if (c->kind == COMMAND_WRITE && g->reply == REPLY_LIST)
		c->keys = c->key + c->klen;
	if (c->kind == COMMAND_WRITE && c->encoded) {
		c->klen = window_decode(w, c->key, c->klen);
		return c->klen > 0;
	}
	return true;
}

/*
 * The text command at w->at, whose line is `line` bytes long. False if it is
 * not understood. All that is found out stays in memory: the verifier then goes
 * on with one state from token to token (see command_token()), not with one for
 * each command there is.
 */
__noinline int command_text(struct window *w, struct command *c, __u32 line)
{
	__u32 start, end, pos, token, stop;
	const struct grammar *g;
	bool spaces;

	if (!w || !c || !line || line > LINE_MAX)
		return false;
	g = &c->grammar;
	stop = line_stop(w, w->at, line);
	c->stop = stop;
	c->head = line;
	pos = window_token(w, w->at, stop);
	start = pos & 0xffff;
	end = pos >> 16;
	/* From 1.6.40 on many names are not found behind a space. */
	spaces = start != w->at && end - start > 1;
	if (!command_name(w, c, start, end) || (spaces && g->block) ||
	    line_has_zero(w, w->at, stop))
		return false;
	c->kind = g->kind;
	c->reply = g->reply;
	c->expiry = g->expiry;
	c->optional = g->other == OTHER_ENDS;
	for (token = 1; token < TOKENS_MAX; token++) {
		pos = window_token(w, end, stop);
		start = pos & 0xffff;
		end = pos >> 16;
		if (start >= end)
			break;
		c->last = is_noreply(w, start, end);
		if (token == g->key) {
			c->key = start;
			c->klen = end - start;
			/* gat: the others are for command_next_key(). */
			if (g->reply == REPLY_LIST)
				break;
		} else if (g->key || g->exptime) {
			if (!command_token(w, c, token, start, end))
				return false;
		} else if (g->other == OTHER_DUMPS && token == 1 &&
			   window_at(w, start) == 'm') {
			c->reply = REPLY_STREAM;
		}
	}
	return command_whole(w, c, token, spaces);
}

/* The next of the keys that a gat names; false after the last. */
static __always_inline bool command_next_key(struct window *w, struct command *c)
{
	__u32 pos;

	if (!c->keys)
		return false;
	pos = window_token(w, c->keys, c->stop);
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
	__u32 stop = line_stop(w, w->at, r->head);
	__u32 at = window_token(w, w->at, stop);
	__s64 n;

	for (int i = 0; i < token; i++)
		at = window_token(w, at >> 16, stop);
	n = window_number(w, at & 0xffff, at >> 16);
	r->block = n + 2;
	return n >= 0 && n <= BLOCK_MAX;
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
