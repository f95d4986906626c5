// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Requests and replies as text.

use std::io::Write as _;

/// Makes requests, and the replies that memcached should give.
pub struct Texts {
    value: Vec<u8>,
}

impl Texts {
    /// For values of this many bytes.
    pub fn new(value: usize) -> Self {
        Self { value: (0..value).map(|i| b'a' + (i % 26) as u8).collect() }
    }

    fn key(number: usize, to: &mut Vec<u8>) {
        to.extend(b"key-000000000000");
        let (mut rest, mut at) = (number, to.len());
        while rest > 0 {
            at -= 1;
            to[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    /// The value of a key: the key, and letters.
    fn value(&self, number: usize, to: &mut Vec<u8>) {
        let start = to.len();
        Self::key(number, to);
        to.truncate(start + self.value.len().min(16));
        to.extend_from_slice(self.value.get(16..).unwrap_or_default());
    }

    fn length(&self, to: &mut Vec<u8>) {
        // Writing to a vector cannot fail.
        let _ = write!(to, " 0 {}", self.value.len());
    }

    /// A SET.
    pub fn set(&self, key: usize, noreply: bool, to: &mut Vec<u8>) {
        to.extend(b"set ");
        Self::key(key, to);
        to.extend(b" 0");
        self.length(to);
        to.extend(if noreply { &b" noreply\r\n"[..] } else { b"\r\n" });
        self.value(key, to);
        to.extend(b"\r\n");
    }

    /// A GET.
    pub fn get(keys: impl Iterator<Item = usize>, to: &mut Vec<u8>) {
        to.extend(b"get");
        for key in keys {
            to.push(b' ');
            Self::key(key, to);
        }
        to.extend(b"\r\n");
    }

    /// The reply to a GET of existing keys, without END.
    pub fn items(&self, keys: impl Iterator<Item = usize>, to: &mut Vec<u8>) {
        for key in keys {
            to.extend(b"VALUE ");
            Self::key(key, to);
            self.length(to);
            to.extend(b"\r\n");
            self.value(key, to);
            to.extend(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_memcacheds() {
        let texts = Texts::new(20);
        let mut text = Vec::new();
        texts.set(42, false, &mut text);
        assert_eq!(
            text.escape_ascii().to_string(),
            "set key-000000000042 0 0 20\\r\\nkey-000000000042qrst\\r\\n"
        );
        text.clear();
        Texts::get([1, 23].into_iter(), &mut text);
        assert_eq!(text, b"get key-000000000001 key-000000000023\r\n");
        text.clear();
        texts.items([7].into_iter(), &mut text);
        assert_eq!(text, b"VALUE key-000000000007 0 20\r\nkey-000000000007qrst\r\n");
    }
}
