// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc entries`: walks the index and decodes the slots that it leads to.

use std::io::Write;
use std::mem::offset_of;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;

use crate::cli::Key;
use crate::instance;
use crate::instance::Instance;
use crate::kernel::Shared;
use crate::output::escaped;
use crate::output::span;
use crate::skel::types::bmc_bucket;
use crate::skel::types::bmc_global;
use crate::skel::types::bmc_server;
use crate::skel::types::bmc_slab;
use crate::skel::types::bmc_slot;

/// The low bits of a coherence word, which are zero while it is clean:
/// `BMC_GEN - 1`.
const DIRTY: u64 = (1 << 17) - 1;

/// `BMC_UNIT`: slots start at multiples of it.
const UNIT: usize = size_of::<bmc_slot>();
const UNITS: usize = size_of::<bmc_slab>() / UNIT;

/// `BMC_SLOT_TEXT`: the text starts here, and six bytes on, its key.
const TEXT: usize = offset_of!(bmc_slot, text);
const SLOT_MAX: usize = 1440; // BMC_SLOT_MAX

/// `BMC_AGE_SHIFT`: the unit of a deadline is so many powers of two, in ns.
const AGE_SHIFT: u32 = 26;

/// What may follow the key: flags, a length, the line's end.
const NUMBERS: usize = " 4294967295 1048576\r\n".len();

/// An entry that would be a hit.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    key: Vec<u8>,
    address: IpAddr,
    port: u16,
    vlan: u32,
    flags: u32,
    bytes: u32,
    left: Duration,
    heat: u8,
}

/// The cache, mapped.
struct Cache {
    index: Shared,
    slabs: Shared,
    servers: Shared,
    buckets: usize,
    epoch: u64,
    era: u64,
    now: u32,
}

impl Cache {
    fn open(instance: &Instance) -> Result<Self> {
        let map = |name| {
            let map = instance.dir.map(name)?;
            Shared::new(&map).with_context(|| format!("cannot map the {name}"))
        };
        let global: bmc_global = map("global")?.read(0).context("the map global is too small")?;
        let config = instance.config()?;
        Ok(Self {
            index: map("index")?,
            slabs: map("slabs")?,
            servers: map("servers")?,
            buckets: config.buckets as usize,
            epoch: global.word,
            era: global.era,
            now: instance::now(&instance.dir)?,
        })
    }

    /// Calls `each` for every live entry until it returns false.
    fn walk(&self, mut each: impl FnMut(Entry) -> Result<bool>) -> Result<()> {
        if self.epoch & DIRTY != 0 {
            return Ok(());
        }
        for bucket in 0..self.buckets {
            let Some(bucket) = self.index.read::<bmc_bucket>(bucket * size_of::<bmc_bucket>())
            else {
                break;
            };
            if bucket.word & DIRTY != 0 {
                continue;
            }
            for way in bucket.ways.into_iter().filter(|way| *way != 0) {
                if let Some(entry) = self.entry(way) {
                    if !each(entry)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// The entry that a way leads to, by the rules of `cache_find()`.
    fn entry(&self, way: u64) -> Option<Entry> {
        let unit = (way as u32).checked_sub(1)? as usize;
        let offset = unit / UNITS * size_of::<bmc_slab>() + unit % UNITS * UNIT;
        let head: bmc_slot = self.slabs.read(offset)?;
        if head.seq % 2 != 0
            || head.hash >> 32 != way >> 32
            || head.epoch_len >> 16 != self.epoch >> 17
        {
            return None;
        }
        // The line before the value is all there is to show.
        let len = usize::from(head.epoch_len as u16)
            .min("VALUE ".len() + usize::from(head.klen) + NUMBERS);
        let mut words = [0; SLOT_MAX / 8];
        let words = words.get_mut(..(TEXT + len).div_ceil(8))?;
        self.slabs.copy(offset, words)?;
        let again: bmc_slot = self.slabs.read(offset)?;
        if again.seq != head.seq {
            return None;
        }
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let server = usize::from(head.server).checked_sub(1)?;
        let server = self.servers.read(server * size_of::<bmc_server>())?;
        let left = time_left(head.deadline, self.now)?;
        let asked = count(head.heat, self.era);
        decode(&bmc_slot { heat: asked, ..head }, &server, bytes.get(TEXT..TEXT + len)?, left)
    }
}

/// How often it was asked for, as `heat_count()` of `bpf/heat.bpf.h` sees it.
fn count(heat: u8, era: u64) -> u8 {
    let eras = (era as u8).wrapping_sub(heat >> 3) & 31;
    (heat & 7) >> eras.min(3)
}

/// The time until the deadline, `None` if it has passed.
fn time_left(deadline: u32, now: u32) -> Option<Duration> {
    let left = deadline.checked_sub(now).filter(|left| *left > 0)?;
    Some(Duration::from_nanos(u64::from(left) << AGE_SHIFT))
}

/// Reads "VALUE <key> <flags> <bytes>\r\n...".
fn decode(head: &bmc_slot, server: &bmc_server, text: &[u8], left: Duration) -> Option<Entry> {
    let (key, rest) = text.strip_prefix(b"VALUE ")?.split_at_checked(head.klen.into())?;
    let line = rest.split(|byte| *byte == b'\r').next()?;
    let mut numbers = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let mut number = || numbers.next()?.parse().ok();
    let mut addr = [0; 16];
    addr[..8].copy_from_slice(&server.addr[0].to_ne_bytes());
    addr[8..].copy_from_slice(&server.addr[1].to_ne_bytes());
    Some(Entry {
        key: key.to_vec(),
        address: Ipv6Addr::from(addr).to_canonical(),
        port: u16::from_be(server.port),
        vlan: server.vlan,
        flags: number()?,
        bytes: number()?,
        left,
        heat: head.heat,
    })
}

/// 0 as "-", an id as it is, two as "outer.inner".
fn vlan(vlan: u32) -> String {
    match (vlan & 0xfff, vlan >> 12) {
        (0, 0) => "-".into(),
        (outer, 0) => outer.to_string(),
        (outer, inner) => format!("{outer}.{inner}"),
    }
}

/// Prints the entries.
pub fn show(
    name: &str,
    limit: Option<usize>,
    key: Option<&Key>,
    as_json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let (instance, lock) = Instance::open(name)?;
    let cache = Cache::open(&instance)?;
    drop(lock);
    let mut left = limit.unwrap_or(usize::MAX);
    let mut separator = "";
    if as_json {
        write!(out, "{{\"entries\":[")?;
    } else {
        writeln!(
            out,
            "{:>10} {:>7} {:>9} {:>4} {:>6}  {:<23} key",
            "flags", "bytes", "left", "heat", "vlan", "memcached"
        )?;
    }
    cache.walk(|entry| {
        if left == 0 {
            return Ok(false);
        }
        if key.is_some_and(|key| key.0 != entry.key) {
            return Ok(true);
        }
        left -= 1;
        if as_json {
            write!(out, "{separator}{}", entry.to_json())?;
            separator = ",";
        } else {
            writeln!(out, "{}", entry.row())?;
        }
        Ok(true)
    })?;
    if as_json {
        writeln!(out, "]}}")?;
    }
    Ok(())
}

impl Entry {
    fn row(&self) -> String {
        let memcached = std::net::SocketAddr::new(self.address, self.port).to_string();
        format!(
            "{:>10} {:>7} {:>9} {:>4} {:>6}  {memcached:<23} {}",
            self.flags,
            self.bytes,
            span(self.left),
            self.heat,
            vlan(self.vlan),
            escaped(&self.key)
        )
    }

    /// Written by hand: there may be millions.
    fn to_json(&self) -> String {
        format!(
            "{{\"key\":\"{}\",\"address\":\"{}\",\"port\":{},\"vlan\":\"{}\",\"flags\":{},\
             \"bytes\":{},\"left_ms\":{},\"heat\":{}}}",
            // Only a backslash and a quote need escaping in printable ASCII.
            escaped(&self.key).replace('\\', "\\\\").replace('"', "\\\""),
            self.address,
            self.port,
            vlan(self.vlan),
            self.flags,
            self.bytes,
            self.left.as_millis(),
            self.heat
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Duration = Duration::from_millis(500);

    fn decoded(klen: u8, text: &[u8]) -> Option<Entry> {
        let mut addr = [0; 16];
        addr[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
        let half = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| addr[at + i]));
        let server =
            bmc_server { addr: [half(0), half(8)], port: 11211_u16.to_be(), ..Default::default() };
        decode(&bmc_slot { klen, heat: 2, ..Default::default() }, &server, text, LEFT)
    }

    #[test]
    fn decodes_what_memcached_sent() {
        let entry = decoded(5, b"VALUE a\"b\\\xff 4294967295 3\r\nxyz\r\n");
        let entry = entry.expect("is valid");
        assert_eq!(entry.key, b"a\"b\\\xff");
        assert_eq!(entry.address.to_string(), "10.0.0.1");
        assert_eq!((entry.flags, entry.bytes), (u32::MAX, 3));
        assert_eq!(entry.left, LEFT);
        let json: serde_json::Value = serde_json::from_str(&entry.to_json()).expect("is JSON");
        assert_eq!(json["key"], r#"a"b\x5c\xff"#);
        assert_eq!(json["port"], 11211);
    }

    #[test]
    fn takes_nothing_torn_for_an_entry() {
        for text in
            [&b""[..], b"VALUE ", b"VALUE key", b"VALUE key 1", b"END\r\n", b"VALUE key x 1\r\n"]
        {
            assert_eq!(decoded(3, text), None, "{text:?}");
        }
    }

    #[test]
    fn knows_which_deadlines_have_passed() {
        assert_eq!(time_left(6, 5), Some(Duration::from_nanos(1 << 26)));
        assert_eq!(time_left(5, 5), None);
        assert_eq!(time_left(0, 5), None, "a slot given up");
    }

    #[test]
    fn halves_the_count_with_each_era() {
        assert_eq!(count(5 << 3 | 7, 5), 7);
        assert_eq!(count(5 << 3 | 7, 6), 3);
        assert_eq!(count(31 << 3 | 7, 32), 3, "eras turn over");
        assert_eq!(count(5 << 3 | 7, 5 + 31), 0);
    }

    #[test]
    fn shows_both_tags() {
        assert_eq!(vlan(0), "-");
        assert_eq!(vlan(100), "100");
        assert_eq!(vlan(100 + (200 << 12)), "100.200");
    }

    #[test]
    fn agrees_with_the_header() {
        let header = include_str!("../bpf/bmc.h");
        for line in [
            &format!("BMC_SLOT_TEXT = {TEXT},"),
            &format!("BMC_SLOT_MAX = {SLOT_MAX},"),
            &format!("BMC_UNIT_SHIFT = {},", UNIT.ilog2()),
            &format!("BMC_AGE_SHIFT = {AGE_SHIFT},"),
            "BMC_GEN = 1 << 17,",
        ] {
            assert!(header.contains(line), "{line}");
        }
    }
}
