/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * The grammar of memcached (doc/protocol.txt) and the hash of its keys. No BPF
 * helper and no map in here, so that it also compiles natively for unit tests
 * and fuzzing. Little-endian, as everything that bmc runs on.
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
	TEXT_ERRO = 'E' | 'R' << 8 | 'R' << 16 | 'O' << 24,
	TEXT_CLIE = 'C' | 'L' << 8 | 'I' << 16 | 'E' << 24,
	TEXT_SERV = 'S' | 'E' << 8 | 'R' << 16 | 'V' << 24,
	TEXT_VALU = 'V' | 'A' << 8 | 'L' << 16 | 'U' << 24,
	TEXT_E_SPACE = 'E' | ' ' << 8,
	TEXT_END_ = 'E' | 'N' << 8 | 'D' << 16 | '\r' << 24,
	TEXT_CRLF = '\r' | '\n'
				   << 8,
	GET_LEN = 4, /* "get " */
	VALUE_LEN = 6, /* "VALUE " */
	END_LEN = 5, /* "END\r\n" */
};

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
 * of the key, with a secret key as long as the longest memcached key. Two
 * different keys collide with probability 2^-32 whoever chose them, as long as
 * the secret is one.
 */
static __always_inline __u64 hash_word(__u32 i, __u64 w)
{
	__u32 lo = (__u32)w + cfg.nh[2 * i];
	__u32 hi = (__u32)(w >> 32) + cfg.nh[2 * i + 1];

	return (__u64)lo * hi;
}

/* Spread the sum over all 64 bits: index below, tag above. */
static __always_inline __u64 hash_end(__u64 sum, __u32 len)
{
	sum += cfg.seed[0] + len * 0x9e3779b97f4a7c15ULL;
	sum ^= sum >> 32;
	sum *= 0xd6e8feb86659fd93ULL;
	sum ^= sum >> 32;
	sum *= 0xd6e8feb86659fd93ULL;
	return sum ^ sum >> 32;
}

#endif /* PROTO_H */
