// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How `--memory` is shared out: what is locked is what was asked for.

use std::fmt;

use crate::skel::types::bmc_bucket;
use crate::skel::types::bmc_expiry;
use crate::skel::types::bmc_flow;
use crate::skel::types::bmc_flow_set;
use crate::skel::types::bmc_lease;
use crate::skel::types::bmc_slab;
use crate::skel::types::bmc_slab_meta;

/// `BMC_LAYOUT` of `bpf/bmc.h`.
pub const LAYOUT: u32 = 15;

/// Least and most that `--memory` may be. A slot's address has 18 bits for its
/// slab, less the one that stands for "none".
pub const MEMORY: std::ops::RangeInclusive<u64> = 16 << 20..=64 << 30;

const LEASES: std::ops::RangeInclusive<u64> = 256..=16384;

/// Sets of TCP connections: as many as a thirty-second part of the memory holds.
const FLOW_SETS: std::ops::RangeInclusive<u64> = 16..=4096;
const FLOW_WAYS: u64 = 16;
const FLOW_SET: u64 = size_of::<bmc_flow_set>() as u64 + FLOW_WAYS * size_of::<bmc_flow>() as u64;

/// The kernel's own part of a map: its head, rounded to pages where user space
/// can map it. Generous; the index gets what is left of it.
const MAP_HEAD: u64 = 8192;

/// An index bucket, its half of a line of expiry records, and the slots it is meant to
/// lead to: 80 bytes a slot (a 16-byte key and a 32-byte value), buckets seven eighths
/// full.
const BUCKET: u64 = (size_of::<bmc_bucket>() + size_of::<bmc_expiry>() / 2) as u64;
const BUCKET_SLOTS: u64 = 7 * 80;

const SLAB: u64 = (size_of::<bmc_slab>() + size_of::<bmc_slab_meta>()) as u64;

/// Sizes of the maps that depend on `--memory`, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Buckets of the index.
    pub buckets: u32,
    /// Slabs of 256 KiB.
    pub slabs: u32,
    /// Requests that wait for an answer; a power of two.
    pub senders: u32,
    /// Leases; a power of two.
    pub leases: u32,
    /// Lines of expiry records.
    pub expiries: u32,
    /// Sets of 16 TCP connections; a power of two.
    pub flow_sets: u32,
}

/// `--memory` cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfRange(u64);

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of memory are {}", self.0, not_within())
    }
}

/// What is wrong with any other `--memory`.
pub fn not_within() -> String {
    format!("not within {}M and {}G", MEMORY.start() >> 20, MEMORY.end() >> 30)
}

impl std::error::Error for OutOfRange {}

impl Layout {
    /// Shares `memory` bytes out, of which `fixed` go to the other maps.
    pub fn new(memory: u64, fixed: u64) -> Result<Self, OutOfRange> {
        if !MEMORY.contains(&memory) {
            return Err(OutOfRange(memory));
        }
        let senders = power_of_two(memory / 64 / 8);
        let leases = power_of_two(memory / 128 / 96).clamp(*LEASES.start(), *LEASES.end());
        let flow_sets = power_of_two(memory / 32 / FLOW_SET);
        let flow_sets = flow_sets.clamp(*FLOW_SETS.start(), *FLOW_SETS.end());
        let sized = senders * 8 + leases * size_of::<bmc_lease>() as u64 + flow_sets * FLOW_SET;
        let rest = memory
            .checked_sub(fixed + sized)
            .and_then(|rest| rest.checked_sub(9 * MAP_HEAD))
            .ok_or(OutOfRange(memory))?;
        let index = rest / (BUCKET + BUCKET_SLOTS) * BUCKET;
        let slabs = (rest - index) / SLAB;
        // The index takes what does not make a whole slab.
        let buckets = (rest - slabs * SLAB) / BUCKET;
        let entries = |n: u64| u32::try_from(n).map_err(|_| OutOfRange(memory));
        Ok(Self {
            buckets: entries(buckets)?,
            slabs: entries(slabs)?,
            senders: entries(senders)?,
            leases: entries(leases)?,
            expiries: entries((buckets / 2).max(1))?,
            flow_sets: entries(flow_sets)?,
        })
    }

    /// The entries of a map, if they depend on `--memory`.
    pub fn entries(&self, map: &str) -> Option<u32> {
        match map {
            "bmc_index" => Some(self.buckets),
            "bmc_slabs" | "bmc_slab_meta" => Some(self.slabs),
            "bmc_senders" => Some(self.senders),
            "bmc_leases" => Some(self.leases),
            "bmc_expiry" => Some(self.expiries),
            "bmc_flow_sets" => Some(self.flow_sets),
            "bmc_flows" => Some(self.flow_sets * FLOW_WAYS as u32),
            _ => None,
        }
    }
}

fn power_of_two(most: u64) -> u64 {
    1 << most.max(1).ilog2()
}

/// What a map of fixed size costs: for arrays, the kernel's `map_mem_usage`.
/// `copies` is the number of CPUs if each has its own.
pub fn map_bytes(value: u32, entries: u32, copies: Option<u64>) -> u64 {
    let value = u64::from(value).next_multiple_of(8);
    MAP_HEAD + u64::from(entries) * copies.map_or(value, |cpus| 8 + value * cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: u64 = 4 << 20;

    fn total(layout: Layout, fixed: u64) -> u64 {
        fixed
            + u64::from(layout.buckets) * BUCKET
            + u64::from(layout.slabs) * SLAB
            + u64::from(layout.senders) * 8
            + u64::from(layout.leases) * size_of::<bmc_lease>() as u64
            + u64::from(layout.flow_sets) * FLOW_SET
    }

    #[test]
    fn uses_what_was_asked_for_and_no_more() {
        for shift in 24..36 {
            for memory in [1 << shift, (1 << shift) + 12_345, 3 << (shift - 1)] {
                let layout = Layout::new(memory, FIXED).expect("within the range");
                let total = total(layout, FIXED);
                assert!(total <= memory, "{memory}: {layout:?} takes {total}");
                assert!(total >= memory / 100 * 98, "{memory}: {layout:?} takes {total}");
            }
        }
    }

    #[test]
    fn refuses_memory_out_of_range() {
        for memory in [0, (16 << 20) - 1, (64 << 30) + 1, u64::MAX] {
            assert_eq!(Layout::new(memory, FIXED), Err(OutOfRange(memory)));
        }
        assert_eq!(OutOfRange(5).to_string(), "5 bytes of memory are not within 16M and 64G");
    }

    #[test]
    fn refuses_memory_that_the_fixed_maps_use_up() {
        assert!(Layout::new(16 << 20, 16 << 20).is_err());
    }

    #[test]
    fn keeps_powers_of_two_where_the_programs_mask() {
        for memory in [16 << 20, 100 << 20, 1 << 30, 64 << 30] {
            let layout = Layout::new(memory, FIXED).expect("within the range");
            assert!(layout.senders.is_power_of_two());
            assert!(layout.leases.is_power_of_two());
            assert!(LEASES.contains(&layout.leases.into()));
        }
    }

    #[test]
    fn leaves_every_slab_a_reference_of_32_bits() {
        let layout = Layout::new(*MEMORY.end(), 0).expect("within the range");
        assert!(u64::from(layout.slabs) * (1 << 14) < (1 << 32) - (1 << 14));
    }

    #[test]
    fn has_an_index_that_is_about_seven_eighths_full() {
        let layout = Layout::new(256 << 20, FIXED).expect("within the range");
        let slots = f64::from(layout.slabs) * f64::from(1 << 18) / 80.0;
        let load = slots / f64::from(layout.buckets * 8);
        assert!((0.85..0.89).contains(&load), "{load}");
    }

    #[test]
    fn agrees_with_the_header_on_the_layout() {
        let header = include_str!("../bpf/bmc.h");
        assert!(header.contains(&format!("BMC_LAYOUT = {LAYOUT},")));
    }
}
