// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the BPF programs and the tool agree on: types, limits and counters. All of it comes
//! from `bpf/`: types and enumerators by the BTF of the objects, counters by `counters.h`.

pub use crate::skel::types;

use crate::skel::abi::types::{bmc_abi, bmc_limit, bmc_word};

/// The layout of the maps. A cache is kept only between equal layouts.
pub const LAYOUT: u32 = bmc_limit::BMC_LAYOUT.0;

/// The longest key of memcached.
pub const KEY_MAX: usize = bmc_limit::BMC_KEY_MAX.0 as usize;

/// How many ports a configuration has room for.
pub const PORTS_MAX: usize = bmc_limit::BMC_PORTS_MAX.0 as usize;

/// How many allowed networks of each address family a configuration has room for.
pub const ALLOW_MAX: usize = bmc_limit::BMC_ALLOW_MAX.0 as usize;

/// How many delayed `flush_all`s a cache keeps in mind.
pub const FLUSHES_MAX: usize = {
    const fn len<const N: usize>(_: fn(&types::bmc_global) -> &[u64; N]) -> usize {
        N
    }
    len(|global| &global.due)
};

/// Where the generation starts in a coherence word. The bits below are zero while the word is
/// clean.
pub const GENERATION_SHIFT: u32 = bmc_word::BMC_GEN.0.ilog2();

/// The bits of a coherence word that are zero while the word is clean.
pub const DIRTY: u64 = (1 << GENERATION_SHIFT) - 1;

/// Slots start at multiples of this many bytes.
pub const UNIT: usize = bmc_limit::BMC_UNIT.0 as usize;

/// The size of a slab in bytes.
pub const SLAB_SIZE: usize = bmc_limit::BMC_SLAB_SIZE.0 as usize;

/// The largest slot, in bytes.
pub const SLOT_MAX: usize = bmc_limit::BMC_SLOT_MAX.0 as usize;

/// How far behind the start of a slot the programs may read, in bytes.
pub const SLOT_REACH: usize = bmc_abi::ABI_SLOT_REACH.0 as usize;

/// Ages are in units of this power of two of nanoseconds.
pub const AGE_SHIFT: u32 = bmc_limit::BMC_AGE_SHIFT.0;

/// How many TCP connections a set holds.
pub const FLOW_WAYS: u32 = bmc_abi::ABI_FLOW_WAYS.0;

/// Bits of the count in a slot's heat; above them is the era of the count.
pub const HEAT_BITS: u32 = bmc_abi::ABI_HEAT_BITS.0;

/// A counter of the programs.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// Its name in C, JSON and Prometheus.
    pub name: &'static str,
    /// What it counts, in the plural.
    pub unit: &'static str,
    /// What one more means.
    pub help: &'static str,
    /// Its place in `struct bmc_stats`, in bytes.
    pub offset: usize,
}

impl Counter {
    /// The group that it is shown in, and its name there.
    pub fn reason(&self) -> Option<(&'static Group, &'static str)> {
        GROUPS.iter().find_map(|group| Some((group, self.name.strip_prefix(group.prefix)?)))
    }
}

/// Counters that are shown together, as the reasons for one thing.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What the names of the counters start with.
    pub prefix: &'static str,
    /// The name of all together.
    pub name: &'static str,
    /// What they have in common.
    pub help: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/counters.rs"));

// The struct has the counters, in this order, and nothing else.
const _: () = {
    let mut place = 0;
    while place < COUNTERS.len() {
        assert!(COUNTERS[place].offset == place * size_of::<u64>());
        place += 1;
    }
    assert!(size_of::<types::bmc_stats>() == place * size_of::<u64>());
};
