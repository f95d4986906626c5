// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc entries`: walks the index and decodes the slots that it leads to. And finds
//! single entries.

use std::io::Write;
use std::mem::offset_of;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;

use crate::cli::Key;
use crate::command::status::escaped;
use crate::command::status::span;
use crate::host::sys as kernel;
use crate::host::sys::Shared;
use crate::instance;
use crate::instance::Instance;
use crate::skel::types::bmc_bucket;
use crate::skel::types::bmc_config;
use crate::skel::types::bmc_global;
use crate::skel::types::bmc_server;
use crate::skel::types::bmc_slab;
use crate::skel::types::bmc_slot;

/// The low bits of a coherence word, which are zero while it is clean:
/// `BMC_GEN - 1`.
pub const DIRTY: u64 = (1 << 17) - 1;

/// `BMC_UNIT`: slots start at multiples of it.
pub const UNIT: usize = 16;
const UNITS: usize = size_of::<bmc_slab>() / UNIT;

/// `BMC_SLOT_KEY`: the text starts here, but for "VALUE ".
const KEY: usize = offset_of!(bmc_slot, key);
const SLOT_MAX: usize = 1408; // BMC_SLOT_MAX

/// `BMC_AGE_SHIFT`: the unit of a deadline is so many powers of two, in ns.
const AGE_SHIFT: u32 = 26;

/// What may follow the key: flags, a length, the line's end.
const NUMBERS: usize = " 4294967295 1048576\r\n".len();

/// An entry that would be a hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Any bytes.
    pub key: Vec<u8>,
    /// Of the memcached that it is from.
    pub address: IpAddr,
    /// Likewise.
    pub port: u16,
    /// Likewise, as in `struct bmc_server`.
    pub vlan: u32,
    /// The client's flags.
    pub flags: u32,
    /// Length of the value.
    pub bytes: u32,
    /// Until it is fetched anew.
    pub left: Duration,
    /// How often it was asked for: 0 to 7, less for what is long ago.
    pub heat: u8,
}

fn map(instance: &Instance, name: &str) -> Result<Shared> {
    Shared::new(&instance.dir.map(name)?).with_context(|| format!("cannot map the {name}"))
}

/// The cache, mapped.
struct Cache {
    index: Shared,
    slabs: Shared,
    buckets: usize,
    present: Present,
}

/// What an entry depends on besides itself.
struct Present {
    servers: Shared,
    epoch: u64,
    era: u64,
    now: u32,
}

/// Looks entries up by the hashes of their keys. Maps next to nothing, however large
/// the cache is.
pub struct Finder {
    index: MapHandle,
    slabs: MapHandle,
    config: bmc_config,
    present: Present,
}

impl Finder {
    /// For the entries as they are now.
    pub fn new(instance: &Instance) -> Result<Self> {
        Ok(Self {
            index: instance.dir.map("index")?,
            slabs: instance.dir.map("slabs")?,
            config: instance.config()?,
            present: Present::of(instance)?,
        })
    }

    /// The entry of a key; if several memcacheds have it, the one asked for most.
    pub fn find(&self, hash: u64) -> Result<Option<Entry>> {
        let bucket = (bucket_of(hash, self.config.buckets.into()) as u32).to_ne_bytes();
        let bytes = self.index.lookup(&bucket, MapFlags::ANY).context("cannot read the index")?;
        let bucket = bytes.and_then(|bytes| kernel::plain_from::<bmc_bucket>(&bytes));
        let mut found: Option<Entry> = None;
        for way in bucket.iter().flat_map(|bucket| self.present.ways(bucket)) {
            let Some(offset) = slot_of(way) else { continue };
            let (slab, at) = Shared::around(&self.slabs, offset, SLOT_MAX)
                .context("cannot map a part of the slabs")?;
            if let Some(entry) = self.present.entry(&slab, at)
                && hash_of(&self.config, &entry.key) == hash
                && found.as_ref().is_none_or(|other| other.heat < entry.heat)
            {
                found = Some(entry);
            }
        }
        Ok(found)
    }
}

/// As in `bpf/slab.bpf.h`.
fn bucket_of(hash: u64, buckets: u64) -> u64 {
    ((hash & 0xffff_ffff) * buckets) >> 32
}

/// The hash of a key of 1 to 250 bytes, as in `bpf/proto.h`.
fn hash_of(config: &bmc_config, key: &[u8]) -> u64 {
    const SPREAD: u64 = 0xd6e8_feb8_6659_fd93;
    let mut words = [[0; 4]; 64];
    words.as_flattened_mut()[..key.len()].copy_from_slice(key);
    let halves = words.iter().take((key.len() / 8 + 1) * 2).zip(&config.nh);
    let halves: Vec<_> =
        halves.map(|(half, nh)| u32::from_ne_bytes(*half).wrapping_add(*nh)).collect();
    let product = |pair: &[u32]| u64::from(pair[0]).wrapping_mul(pair[1].into());
    let sum = halves.chunks(2).map(product).fold(config.seed[0], u64::wrapping_add);
    let sum = (sum ^ sum >> 32).wrapping_mul(SPREAD);
    sum ^ sum >> 32
}

/// The offset in the slabs of the slot that a way leads to.
fn slot_of(way: u32) -> Option<usize> {
    let unit = way.checked_sub(1)? as usize;
    Some(unit / UNITS * size_of::<bmc_slab>() + unit % UNITS * UNIT)
}

impl Cache {
    fn open(instance: &Instance) -> Result<Self> {
        Ok(Self {
            index: map(instance, "index")?,
            slabs: map(instance, "slabs")?,
            buckets: instance.config()?.buckets as usize,
            present: Present::of(instance)?,
        })
    }

    /// Calls `each` for every live entry until it returns false.
    fn walk(&self, mut each: impl FnMut(Entry) -> Result<bool>) -> Result<()> {
        for bucket in 0..self.buckets {
            let Some(bucket) = self.index.read::<bmc_bucket>(bucket * size_of::<bmc_bucket>())
            else {
                break;
            };
            for way in self.present.ways(&bucket) {
                let entry = slot_of(way).and_then(|at| self.present.entry(&self.slabs, at));
                if let Some(entry) = entry
                    && !each(entry)?
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Present {
    fn of(instance: &Instance) -> Result<Self> {
        let global: bmc_global =
            map(instance, "global")?.read(0).context("the map global is too small")?;
        Ok(Self {
            servers: map(instance, "servers")?,
            epoch: global.word,
            era: global.era,
            now: instance::now(&instance.dir)?,
        })
    }

    /// The ways of a bucket, unless nothing in it may be served.
    fn ways(&self, bucket: &bmc_bucket) -> impl Iterator<Item = u32> + use<> {
        let is_clean = (self.epoch | bucket.word) & DIRTY == 0;
        bucket.ways.into_iter().filter(move |way| is_clean && *way != 0)
    }

    /// The entry at an offset that a way leads to, by the rules of `cache_find()`.
    fn entry(&self, slabs: &Shared, at: usize) -> Option<Entry> {
        let head: bmc_slot = slabs.read(at)?;
        if !head.seq.is_multiple_of(2) || head.epoch_len >> 16 != self.epoch >> 17 {
            return None;
        }
        // The line before the value is all there is to show.
        let len = usize::from(head.epoch_len as u16).checked_sub("VALUE ".len())?;
        let len = len.min(usize::from(head.klen) + NUMBERS);
        let mut words = [0; SLOT_MAX / 8];
        let words = words.get_mut(..(KEY + len).div_ceil(8))?;
        slabs.copy(at, words)?;
        let again: bmc_slot = slabs.read(at)?;
        if again.seq != head.seq {
            return None;
        }
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let server = usize::from(head.server).checked_sub(1)?;
        let server = self.servers.read(server * size_of::<bmc_server>())?;
        let left = time_left(head.deadline, self.now)?;
        let asked = count(head.heat, self.era);
        decode(&bmc_slot { heat: asked, ..head }, &server, bytes.get(KEY..KEY + len)?, left)
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

/// Reads `<key> <flags> <bytes>\r\n...`.
fn decode(head: &bmc_slot, server: &bmc_server, text: &[u8], left: Duration) -> Option<Entry> {
    let (key, rest) = text.split_at_checked(head.klen.into())?;
    let line = rest.split(|byte| *byte == b'\r').next()?;
    let mut numbers = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let mut number = || numbers.next()?.parse().ok();
    let mut addr = [0; 16];
    addr[..8].copy_from_slice(&server.addr[0].to_ne_bytes());
    addr[8..].copy_from_slice(&server.addr[1].to_ne_bytes());
    Some(Entry {
        key: key.to_vec(),
        address: Ipv6Addr::from(addr).to_canonical(),
        port: u16::from_be((server.port_vlan >> 16) as u16),
        vlan: (server.port_vlan >> 32) as u32,
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
    /// The memcached that it is from, as in 10.0.0.1:11211.
    pub fn memcached(&self) -> String {
        SocketAddr::new(self.address, self.port).to_string()
    }

    fn row(&self) -> String {
        let memcached = self.memcached();
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

    /// As in `entries --json`. Written by hand: there may be millions.
    pub fn to_json(&self) -> String {
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
        let port_vlan = u64::from(11211_u16.to_be()) << 16;
        let server = bmc_server { addr: [half(0), half(8)], port_vlan };
        decode(&bmc_slot { klen, heat: 2, ..Default::default() }, &server, text, LEFT)
    }

    #[test]
    fn decodes_what_memcached_sent() {
        let entry = decoded(5, b"a\"b\\\xff 4294967295 3\r\nxyz\r\n");
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
        for text in [&b""[..], b"ke", b"key", b"key 1", b"END\r\n", b"key x 1\r\n"] {
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
    fn finds_the_bucket_that_the_programs_use() {
        let header = include_str!("../../bpf/slab.bpf.h");
        assert!(header.contains("return (hash & 0xffffffff) * cfg.buckets >> 32;"));
        assert_eq!(bucket_of(0xffff_ffff_0000_0000, 1000), 0);
        assert_eq!(bucket_of(0x8000_0000, 1000), 500);
        assert_eq!(bucket_of(u64::MAX, u32::MAX.into()), u64::from(u32::MAX) - 1);
    }

    #[test]
    fn finds_the_slot_that_a_way_leads_to() {
        assert_eq!(slot_of(0), None, "an empty way has no address");
        assert_eq!(slot_of(1), Some(0));
        assert_eq!(slot_of(3), Some(2 * UNIT));
        assert_eq!(slot_of(1 + UNITS as u32), Some(1 << 18));
    }

    #[test]
    fn agrees_with_the_header() {
        let header = include_str!("../../bpf/bmc.h");
        for line in [
            &format!("BMC_SLOT_KEY = {KEY},"),
            &format!("BMC_SLOT_MAX = {SLOT_MAX},"),
            &format!("BMC_UNIT_SHIFT = {},", UNIT.ilog2()),
            &format!("BMC_AGE_SHIFT = {AGE_SHIFT},"),
            "BMC_GEN = 1 << 17,",
        ] {
            assert!(header.contains(line), "{line}");
        }
    }
}
