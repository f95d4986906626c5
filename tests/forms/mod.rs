// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Forms of memcached's text commands, and what memcached 1.6.18 replies.

/// A command that cannot change what a GET returns, and its reply.
pub(crate) type Form = (&'static [u8], &'static [u8]);

/// Those whose reply is as certain as what they do. Some have another one if memcached
/// was started with other options; but one, all of them.
pub(crate) const HARMLESS: &[Form] = &[
    (b"bget key\r\n", b"VALUE key 0 1\r\nx\r\nEND\r\n"),
    (b"lru_crawler enable\r\n", b"OK\r\n"),
    (b"lru_crawler crawl all\r\n", b"BUSY currently processing crawler request\r\n"),
    (b"lru_crawler sleep 100\r\n", b"OK\r\n"),
    (b"lru_crawler tocrawl 0\r\n", b"OK\r\n"),
    (b"lru tune 10 20 0.1 2.0\r\n", b"OK\r\n"),
    (b"lru mode flat\r\n", b"ERROR\r\n"),
    (b"slabs reassign 1 2\r\n", b"NOSPARE source class has no spare pages\r\n"),
    (b"slabs automove 1\r\n", b"OK\r\n"),
    (b"cache_memlimit 1\r\n", b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"),
    (b"cache_memlimit 1024 noreply\r\n", b""),
    (b"verbosity 1\r\n", b"OK\r\n"),
    (b"verbosity 1 noreply\r\n", b""),
    (b"verbosity\r\n", b"ERROR\r\n"),
    (b"extstore item_age 1\r\n", b"OK\r\n"),
    (b"misbehave\r\n", b"ERROR\r\n"),
    (b"stats reset\r\n", b"RESET\r\n"),
    (b"stats detail on\r\n", b"OK\r\n"),
    (b"stats detail dump\r\n", b"PREFIX a get 1\r\nEND\r\n"),
    (b"stats cachedump 1 1\r\n", b"ITEM a [1 b; 0 s]\r\nEND\r\n"),
    // No commands at all.
    (b"\r\n", b"ERROR\r\n"),
    (b"\n", b"ERROR\r\n"),
    (b"   \r\n", b"ERROR\r\n"),
    (b"x\r\n", b"ERROR\r\n"),
    // A key or a number is missing or none: there is no data block then.
    (b"get\r\n", b"ERROR\r\n"),
    (b"delete\r\n", b"ERROR\r\n"),
    (b"mg\r\n", b"ERROR\r\n"),
    (b"md\r\n", b"ERROR\r\n"),
    (b"touch key\r\n", b"ERROR\r\n"),
    (b"touch key x\r\n", b"CLIENT_ERROR invalid exptime argument\r\n"),
    (b"touch key x noreply\r\n", b""),
    (b"gat 0\r\n", b"ERROR\r\n"),
    (b"gat x key\r\n", b"CLIENT_ERROR invalid exptime argument\r\n"),
    (b"flush_all abc\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"set key\r\n", b"ERROR\r\n"),
    (b"set key 0 0\r\n", b"ERROR\r\n"),
    (b"set key 0 0 x\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"set key 0 0 -1\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"set key 0 0 2147483647\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"append key 0 0 4294967295\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"cas key 0 0 x 1\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"ms key\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"ms new MA\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"ms key -1\r\n", b"CLIENT_ERROR bad command line format\r\n"),
];

/// Those that have a reply or none, or many lines, as the version has it.
pub(crate) const STREAMS: &[Form] = &[
    (b"watch fetchers\r\n", b"OK\r\nts=1.2 gid=1 type=item_get\r\n"),
    (b"lru_crawler metadump all\r\n", b"key=a exp=-1 la=1 cas=1 fetch=no\nEND\r\n"),
    (b"lru_crawler mgdump 1\r\n", b"mg a\r\nEN\r\n"),
    (b"lru_crawler enable noreply\r\n", b"ERROR\r\n"),
    (b"slabs automove 0 noreply\r\n", b""),
    (b"refresh_certs\r\n", b"SSL not enabled\r\n"),
    (b" version\r\n", b"VERSION 1\r\n"),
    (b"mn\n", b"MN\r\n"),
    (b"set key 0 0 x noreply\r\n", b""),
];

/// A form of a write that some memcached refuses, and what that one replies.
pub(crate) const ODD_WRITES: &[(&str, &str)] = &[
    ("delete key 5\r\n", "CLIENT_ERROR bad command line format.\r\n"),
    ("delete key 5 noreply\r\n", ""),
    ("incr key 1 2 3\r\n", "ERROR\r\n"),
    ("incr key 99999999999999999999\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n"),
    ("incr key 18446744073709551615\r\n", "5\r\n"),
    ("touch key 99999999999\r\n", "TOUCHED\r\n"),
    ("touch key 5\tx\r\n", "TOUCHED\r\n"),
    ("gat 99999999999 key\r\n", "END\r\n"),
    ("mg key T99999999999\r\n", "HD\r\n"),
    ("mg key T+5\r\n", "HD\r\n"),
    ("mg key T1700000000 N30\r\n", "HD\r\n"),
    ("mg key Z\r\n", "CLIENT_ERROR invalid flag\r\n"),
    ("md key x\r\n", "HD\r\n"),
    // Numbers are cut to their low bits, or the command fails.
    ("set key 4294967296 0 1\r\nx\r\n", "STORED\r\n"),
    ("set key 18446744073709551615 0 1\r\nx\r\n", "STORED\r\n"),
    ("set key 0 99999999999 1\r\nx\r\n", "STORED\r\n"),
    ("set key 0 -2147483649 1\r\nx\r\n", "STORED\r\n"),
    ("cas key 0 0 1 18446744073709551615\r\nx\r\n", "EXISTS\r\n"),
    ("cas key 0 0 1 10000000000000000000 noreply\r\nx\r\n", ""),
    ("ms key 1 F4294967296\r\nx\r\n", "HD\r\n"),
    ("ms key 1 MA\r\nx\r\n", "NS\r\n"),
];
