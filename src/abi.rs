// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the BPF programs and the tool agree on: types, sizes and limits.

pub use crate::skel::types;
use crate::skel::types::{bmc_config, bmc_global, bmc_slab};

/// The layout of the maps: `BMC_LAYOUT`.
pub const LAYOUT: u32 = 14;

/// The longest key of memcached.
pub const KEY_MAX: usize = 250;

/// How many ports a configuration has room for.
pub const PORTS_MAX: usize = {
    const fn len<T, const N: usize>(_: fn(&bmc_config) -> &[T; N]) -> usize {
        N
    }
    len(|config| &config.ports)
};

/// How many allowed networks of each address family a configuration has room for.
pub const ALLOW_MAX: usize = {
    const fn len<T, const N: usize>(_: fn(&bmc_config) -> &[T; N]) -> usize {
        N
    }
    len(|config| &config.allow4)
};

/// How many delayed `flush_all`s a cache keeps in mind.
pub const FLUSHES_MAX: usize = {
    const fn len<const N: usize>(_: fn(&bmc_global) -> &[u64; N]) -> usize {
        N
    }
    len(|global| &global.due)
};

/// The bits of a coherence word that are zero while the word is clean.
pub const DIRTY: u64 = (1 << 17) - 1;

/// Slots start at multiples of this many bytes.
pub const UNIT: usize = 16;

/// The size of a slab in bytes.
pub const SLAB_SIZE: usize = size_of::<bmc_slab>();

/// The largest slot, in bytes.
pub const SLOT_MAX: usize = 1408;

/// How far behind the start of a slot the programs may read.
pub const SLOT_REACH: usize = std::mem::offset_of!(types::bmc_slot, key) + 3 * 512;

/// Ages are in units of 2^26 ns.
pub const AGE_SHIFT: u32 = 26;

/// How many TCP connections a set holds.
pub const FLOW_WAYS: u32 = 16;
