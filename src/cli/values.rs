// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How the values of options are read.

use std::time::Duration;

use crate::abi::KEY_MAX;
use crate::command::bench::cases::{self, Case};
use crate::load::layout;

const INSTANCE_MAX: usize = 128;

/// A key, any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(pub Vec<u8>);

pub(super) fn instance(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || text.len() > INSTANCE_MAX || !text.chars().all(valid) {
        return Err("up to 128 letters, digits, '-' and '_'".into());
    }
    Ok(text.into())
}

pub(super) fn iface(text: &str) -> Result<String, String> {
    match text {
        "lo" => Err("the loopback interface is watched anyway, and never served".into()),
        "" => Err("an interface has a name".into()),
        _ => Ok(text.into()),
    }
}

pub(super) fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if !layout::MEMORY.contains(&bytes) {
        return Err(layout::not_within());
    }
    Ok(bytes)
}

/// A number of bytes: digits and perhaps K, M, G or T, or KiB and so on.
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_number(text)?;
    let shift = match unit.strip_suffix("iB").unwrap_or(unit).to_ascii_uppercase().as_str() {
        "" if unit.is_empty() => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("not a size: bytes, or a number with K, M, G or T".into()),
    };
    digits.checked_mul(1 << shift).ok_or_else(|| "too much".into())
}

pub(super) fn age(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if !(Duration::from_millis(10)..=Duration::from_secs(7 * 86400)).contains(&time) {
        return Err("not within 10ms and 7d".into());
    }
    Ok(time)
}

/// A time: a number with ms, s, m, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text)?;
    let ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(format!("no unit: {text}s, {text}ms, or with m, h or d")),
        _ => return Err("not a time: a number with ms, s, m, h or d".into()),
    };
    let ms = number.checked_mul(ms).ok_or("too long")?;
    Ok(Duration::from_millis(ms))
}

/// Splits "64M" in two.
fn split_number(text: &str) -> Result<(u64, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err("does not start with a whole number".into());
    }
    Ok((digits.parse().map_err(|_| "too large a number")?, unit))
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    seconds_within(text, 0.01, 86400.0)
}

/// The length of a measurement.
pub(super) fn turn(text: &str) -> Result<Duration, String> {
    seconds_within(text, 0.05, 3600.0)
}

fn seconds_within(text: &str, least: f64, most: f64) -> Result<Duration, String> {
    let secs: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if !(least..=most).contains(&secs) {
        return Err(format!("not within {least} and {most} seconds"));
    }
    Ok(Duration::from_secs_f64(secs))
}

pub(super) fn key(text: &str) -> Result<Key, String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend(before.bytes());
        let byte = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.ok_or("\\x is not followed by two hexadecimal digits")?);
        rest = &after[2..];
    }
    bytes.extend(rest.bytes());
    if bytes.is_empty() || bytes.len() > KEY_MAX {
        return Err(format!("a key has 1 to {KEY_MAX} bytes"));
    }
    Ok(Key(bytes))
}

/// A case of `bmc bench`.
pub(super) fn case(name: &str) -> Result<&'static Case, String> {
    cases::by_name(name).ok_or_else(|| "no such case (bmc bench --list shows all)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [
            ("16777216", 16 << 20),
            ("256M", 256 << 20),
            ("256m", 256 << 20),
            ("256MiB", 256 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("20480K", 20 << 20),
        ] {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for (text, why) in [
            ("", "does not start with a whole number"),
            ("M", "does not start with a whole number"),
            ("-1M", "does not start with a whole number"),
            ("1.5G", "not a size: bytes, or a number with K, M, G or T"),
            ("256 M", "not a size: bytes, or a number with K, M, G or T"),
            ("256iB", "not a size: bytes, or a number with K, M, G or T"),
            ("256MB", "not a size: bytes, or a number with K, M, G or T"),
            ("99999999999999999999", "too large a number"),
            ("99999999999999T", "too much"),
            ("15M", "not within 16M and 64G"),
            ("65G", "not within 16M and 64G"),
        ] {
            assert_eq!(memory(text), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn reads_times() {
        for (text, ms) in [
            ("10ms", 10),
            ("500ms", 500),
            ("60s", 60_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(age(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_time() {
        for (text, why) in [
            ("60", "no unit: 60s, 60ms, or with m, h or d"),
            ("s", "does not start with a whole number"),
            ("1.5s", "not a time: a number with ms, s, m, h or d"),
            ("1w", "not a time: a number with ms, s, m, h or d"),
            ("9ms", "not within 10ms and 7d"),
            ("8d", "not within 10ms and 7d"),
            ("99999999999999999d", "too long"),
        ] {
            assert_eq!(age(text), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn reads_keys_with_escapes() {
        assert_eq!(key("a\\x00b\\xff"), Ok(Key(b"a\0b\xff".to_vec())));
        assert_eq!(key("a\\b"), Ok(Key(b"a\\b".to_vec())));
        assert!(key("\\x0").is_err());
        assert!(key("\\xé").is_err());
        assert!(key("").is_err());
        assert!(key(&"k".repeat(251)).is_err());
    }

    #[test]
    fn refuses_instances_that_bpffs_or_bmc_could_mistake() {
        for text in ["", ".", "..", "a.b", "a/b", "new~default", "a b", &"x".repeat(129)] {
            assert!(instance(text).is_err(), "{text}");
        }
        assert_eq!(instance("web-1_a"), Ok("web-1_a".into()));
    }
}
