// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The arithmetic by which the programs find a slot, once more in Rust. `tests/abi.rs` compares
//! it with theirs.

use crate::abi::types::bmc_config;
use crate::abi::{HEAT_BITS, SLAB_SIZE, SLOT_REACH, UNIT};

/// Units of a slab.
const UNITS: usize = SLAB_SIZE / UNIT;

/// The hash of a key of 1 to 250 bytes: `request_key()` in `bpf/proto.h`.
pub fn hash_of(config: &bmc_config, key: &[u8]) -> u64 {
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

/// The bucket of a hash: `bucket_of()` in `bpf/slab.bpf.h`.
pub fn bucket_of(hash: u64, buckets: u32) -> u32 {
    (((hash & 0xffff_ffff) * u64::from(buckets)) >> 32) as u32
}

/// The offset in the slabs of the slot that a way of a bucket refers to; `None` if the way is
/// empty.
pub fn slot_of(way: u32) -> Option<usize> {
    let unit = way.checked_sub(1)? as usize;
    Some(unit / UNITS * SLAB_SIZE + unit % UNITS * UNIT)
}

/// How often an entry is asked for, with its present age taken into account: `heat_count()` in
/// `bpf/heat.bpf.h`.
pub fn heat_count(heat: u8, era: u64) -> u8 {
    const MAX: u8 = (1 << HEAT_BITS) - 1;
    const ERAS: u8 = u8::MAX >> HEAT_BITS;

    let eras = (era as u8).wrapping_sub(heat >> HEAT_BITS) & ERAS;
    (heat & MAX) >> u32::from(eras).min(HEAT_BITS)
}

/// Slots of a slab whose slots have this many units: `class_slots()` in `bpf/slab.bpf.h`.
pub fn slots_of_slab(units: u64) -> u64 {
    ((SLAB_SIZE - SLOT_REACH) / UNIT) as u64 / units + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_the_count_with_each_era() {
        assert_eq!(heat_count(5 << 3 | 7, 5), 7);
        assert_eq!(heat_count(5 << 3 | 7, 6), 3);
        assert_eq!(heat_count(31 << 3 | 7, 32), 3, "eras wrap around");
        assert_eq!(heat_count(5 << 3 | 7, 5 + 31), 0);
    }

    #[test]
    fn spreads_hashes_over_all_buckets() {
        assert_eq!(bucket_of(0xffff_ffff_0000_0000, 1000), 0);
        assert_eq!(bucket_of(0x8000_0000, 1000), 500);
        assert_eq!(bucket_of(u64::MAX, u32::MAX), u32::MAX - 1);
    }

    #[test]
    fn finds_the_slot_of_a_way() {
        assert_eq!(slot_of(0), None, "an empty way has no slot");
        assert_eq!(slot_of(1), Some(0));
        assert_eq!(slot_of(3), Some(2 * UNIT));
        assert_eq!(slot_of(1 + UNITS as u32), Some(SLAB_SIZE));
    }
}
