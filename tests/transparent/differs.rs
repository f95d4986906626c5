// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What may differ between a memcached alone and one behind bmc. Everything
//! else is compared byte for byte, the unique numbers of items included: both
//! see the same writes in the same order.
//!
//! - The values, not the names, of statistics: process, clock, and gets that
//!   memcached did not see.
//! - What meta commands tell of time and use: t, l and h of `mg` and `ma`; exp,
//!   la and fetch of `me`. The clocks of two processes tick apart, and what the
//!   kernel answers is no use of an item to memcached.
//! - A GET of several keys over UDP that all are there: memcached 1.6 answers
//!   each by a datagram of its own, bmc all of them by one.

/// An answer without what may differ in those of statistics and meta commands.
pub(crate) fn without_use(answer: &[u8]) -> Vec<u8> {
    let lines = answer.split(|&byte| byte == b'\n').map(|line| {
        let words = line.split(|&byte| byte == b' ');
        let (kept, dropped): (usize, &[&[u8]]) = match line.get(..3) {
            Some(b"STA") => (2, &[]),
            Some(b"HD " | b"VA " | b"EN ") => (usize::MAX, &[b"t", b"l", b"h"]),
            Some(b"ME ") => (usize::MAX, &[b"exp=", b"la=", b"fetch="]),
            _ => (usize::MAX, &[]),
        };
        let words: Vec<&[u8]> = words
            .take(kept)
            .filter(|word| !dropped.iter().any(|start| word.starts_with(start)))
            .map(<[u8]>::trim_ascii_end)
            .collect();
        words.join(&b' ')
    });
    lines.collect::<Vec<_>>().join(&b'\n')
}

/// Whether two answers over UDP are the same, frames included, save that one
/// datagram may hold what memcached alone sends in one for each key.
pub(crate) fn is_same_over_udp(alone: &[Vec<u8>], behind: &[Vec<u8>]) -> bool {
    alone == behind || matches!(behind, [all] if *all == in_one_datagram(alone))
}

/// The answer to a GET that found several keys as the protocol describes it;
/// empty if the datagrams are anything else.
fn in_one_datagram(datagrams: &[Vec<u8>]) -> Vec<u8> {
    let Some(first) = datagrams.first() else {
        return Vec::new();
    };
    let frame = first[..8].to_vec();
    let is_value = |datagram: &Vec<u8>| {
        datagram[..8] == frame
            && frame[2..] == [0, 0, 0, 1, 0, 0]
            && datagram[8..].starts_with(b"VALUE ")
    };
    if !datagrams.iter().all(is_value) {
        return Vec::new();
    }
    datagrams.iter().fold(frame, |all, datagram| [&all, &datagram[8..]].concat())
}
