// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Numbers, times and bytes as text.

use std::fmt::Write as _;
use std::time::Duration;

/// Groups the digits of a number: 1234567 becomes "1,234,567".
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in its two largest units, as in "1h 3m".
pub fn span(time: Duration) -> String {
    const UNITS: [(u128, &str); 5] =
        [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];

    let mut rest = time.as_millis();
    let mut parts = Vec::new();
    for (ms, unit) in UNITS {
        if rest >= ms && parts.len() < 2 {
            parts.push(format!("{}{unit}", rest / ms));
        } else if !parts.is_empty() {
            break;
        }
        rest %= ms;
    }
    if parts.is_empty() { "0ms".into() } else { parts.join(" ") }
}

/// Bytes as printable ASCII. Backslashes and all other bytes become \xNN.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'!'..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            // Writing to a string cannot fail.
            _ => _ = write!(text, "\\x{byte:02x}"),
        }
    }
    text
}

/// A number of bytes, as in "254.6 MiB".
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Rounds to one decimal place.
pub fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_digits_by_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn shows_times_in_two_units_at_most() {
        for (ms, text) in [
            (0, "0ms"),
            (10, "10ms"),
            (1000, "1s"),
            (1500, "1s 500ms"),
            (60_000, "1m"),
            (3_785_000, "1h 3m"),
            (90_061_001, "1d 1h"),
            (86_400_001, "1d"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn escapes_what_is_not_printable() {
        assert_eq!(escaped(b"key:1"), "key:1");
        assert_eq!(escaped(b"a b\0\xff"), "a\\x20b\\x00\\xff");
    }
}
