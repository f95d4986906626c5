// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The entries of a cache: all of them, or that of one key.

use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::lookup::{bucket_of, hash_of, heat_count, slot_of};
use crate::abi::types::{bmc_bucket, bmc_config, bmc_global, bmc_server, bmc_slot};
use crate::abi::{AGE_SHIFT, DIRTY, GENERATION_SHIFT, SLOT_MAX};
use crate::format::{escaped, span};
use crate::host::sys::{self, Shared};
use crate::instance::{Instance, state};

/// The offset of the key in a slot.
const KEY: usize = offset_of!(bmc_slot, key);

/// The longest text that may follow the key on its line: flags, a length, the end of line.
const NUMBERS: usize = " 4294967295 1048576\r\n".len();

/// An entry that a GET would hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, any bytes.
    pub key: Vec<u8>,
    /// The address of the memcached that sent it.
    pub address: IpAddr,
    /// The port of that memcached.
    pub port: u16,
    /// The VLAN tags of that memcached, as in `struct bmc_server`.
    pub vlan: u32,
    /// The client's flags.
    pub flags: u32,
    /// Length of the value.
    pub bytes: u32,
    /// The time until it is fetched again.
    pub left: Duration,
    /// How often it is asked for: 0 to 7, counting what is long ago for less.
    pub heat: u8,
}

/// Maps all of a map's values into memory.
fn map(instance: &Instance, name: &str) -> Result<Shared> {
    Shared::new(&instance.pins.map(name)?).with_context(|| format!("cannot map the {name}"))
}

/// All of a cache, mapped into memory.
pub struct Cache {
    index: Shared,
    slabs: Shared,
    buckets: usize,
    present: Present,
}

impl Cache {
    /// Maps the cache of an instance.
    pub fn open(instance: &Instance) -> Result<Self> {
        Ok(Self {
            index: map(instance, "index")?,
            slabs: map(instance, "slabs")?,
            buckets: instance.config()?.buckets as usize,
            present: Present::read(instance)?,
        })
    }

    /// Calls `each` for every valid entry, in the order of the index, until it returns false.
    pub fn walk(&self, mut each: impl FnMut(Entry) -> Result<bool>) -> Result<()> {
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

/// Looks entries up by the hashes of their keys. It maps only small parts of the cache,
/// however large that is.
pub struct Finder {
    index: MapHandle,
    slabs: MapHandle,
    config: bmc_config,
    present: Present,
}

impl Finder {
    /// Looks at the cache of an instance as it is now.
    pub fn new(instance: &Instance) -> Result<Self> {
        Ok(Self {
            index: instance.pins.map("index")?,
            slabs: instance.pins.map("slabs")?,
            config: instance.config()?,
            present: Present::read(instance)?,
        })
    }

    /// The entry of a key; if several memcacheds have it, the one asked for most.
    pub fn find(&self, hash: u64) -> Result<Option<Entry>> {
        let bucket = bucket_of(hash, self.config.buckets).to_ne_bytes();
        let bytes = self.index.lookup(&bucket, MapFlags::ANY).context("cannot read the index")?;
        let bucket = bytes.and_then(|bytes| sys::plain_from::<bmc_bucket>(&bytes));
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

/// What decides, besides an entry itself, whether the entry is valid.
struct Present {
    servers: Shared,
    /// The coherence word of the whole cache.
    word: u64,
    era: u64,
    now: u32,
}

impl Present {
    fn read(instance: &Instance) -> Result<Self> {
        let global: bmc_global =
            map(instance, "global")?.read(0).context("the map global is too small")?;
        Ok(Self {
            servers: map(instance, "servers")?,
            word: global.word,
            era: global.era,
            now: state::now(&instance.pins)?,
        })
    }

    /// The ways in use of a bucket; none if its entries may not be served at present.
    fn ways(&self, bucket: &bmc_bucket) -> impl Iterator<Item = u32> + use<> {
        let is_clean = (self.word | bucket.word) & DIRTY == 0;
        bucket.ways.into_iter().filter(move |way| is_clean && *way != 0)
    }

    /// The entry in a slot, by the rules of `cache_find()` in `bpf/cache.bpf.h`.
    fn entry(&self, slabs: &Shared, at: usize) -> Option<Entry> {
        let slot: bmc_slot = slabs.read(at)?;
        if !slot.seq.is_multiple_of(2) || slot.epoch_len >> 16 != self.word >> GENERATION_SHIFT {
            return None;
        }
        // Only the line before the value is needed.
        let len = usize::from(slot.epoch_len as u16).checked_sub("VALUE ".len())?;
        let len = len.min(usize::from(slot.klen) + NUMBERS);
        let mut words = [0; SLOT_MAX / 8];
        let words = words.get_mut(..(KEY + len).div_ceil(8))?;
        slabs.copy(at, words)?;
        let again: bmc_slot = slabs.read(at)?;
        if again.seq != slot.seq {
            return None;
        }
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let server = usize::from(slot.server).checked_sub(1)?;
        let server = self.servers.read(server * size_of::<bmc_server>())?;
        let left = time_left(slot.deadline, self.now)?;
        let heat = heat_count(slot.heat, self.era);
        Entry::decode(&slot, heat, &server, bytes.get(KEY..KEY + len)?, left)
    }
}

/// The time until a deadline; `None` if it has passed.
fn time_left(deadline: u32, now: u32) -> Option<Duration> {
    let left = deadline.checked_sub(now).filter(|left| *left > 0)?;
    Some(Duration::from_nanos(u64::from(left) << AGE_SHIFT))
}

/// VLAN tags as text: "-" for none, an id, or "outer.inner".
fn vlan(vlan: u32) -> String {
    match (vlan & 0xfff, vlan >> 12) {
        (0, 0) => "-".into(),
        (outer, 0) => outer.to_string(),
        (outer, inner) => format!("{outer}.{inner}"),
    }
}

impl Entry {
    /// Reads an entry whose text is `<key> <flags> <bytes>\r\n...`.
    fn decode(
        slot: &bmc_slot,
        heat: u8,
        server: &bmc_server,
        text: &[u8],
        left: Duration,
    ) -> Option<Self> {
        let (key, rest) = text.split_at_checked(slot.klen.into())?;
        let line = rest.split(|byte| *byte == b'\r').next()?;
        let mut numbers = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        let mut number = || numbers.next()?.parse().ok();
        let mut addr = [0; 16];
        addr[..8].copy_from_slice(&server.addr[0].to_ne_bytes());
        addr[8..].copy_from_slice(&server.addr[1].to_ne_bytes());
        Some(Self {
            key: key.to_vec(),
            address: Ipv6Addr::from(addr).to_canonical(),
            port: u16::from_be((server.port_vlan >> 16) as u16),
            vlan: (server.port_vlan >> 32) as u32,
            flags: number()?,
            bytes: number()?,
            left,
            heat,
        })
    }

    /// The memcached that sent it, as in 10.0.0.1:11211.
    pub fn memcached(&self) -> String {
        SocketAddr::new(self.address, self.port).to_string()
    }

    /// The titles of the columns of [`Entry::row`].
    pub fn title() -> String {
        format!(
            "{:>10} {:>7} {:>9} {:>4} {:>6}  {:<23} key",
            "flags", "bytes", "left", "heat", "vlan", "memcached"
        )
    }

    /// One line of a table.
    pub fn row(&self) -> String {
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

    /// A JSON object, written by hand because there may be millions.
    pub fn to_json(&self) -> String {
        format!(
            "{{\"key\":\"{}\",\"address\":\"{}\",\"port\":{},\"vlan\":\"{}\",\"flags\":{},\
             \"bytes\":{},\"left_ms\":{},\"heat\":{}}}",
            // In printable ASCII only the backslash and the quote need escaping.
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
        Entry::decode(&bmc_slot { klen, ..Default::default() }, 2, &server, text, LEFT)
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
        assert_eq!(time_left(0, 5), None, "a slot that was given up");
    }

    #[test]
    fn shows_both_tags() {
        assert_eq!(vlan(0), "-");
        assert_eq!(vlan(100), "100");
        assert_eq!(vlan(100 + (200 << 12)), "100.200");
    }
}
