// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the tool computes as the BPF programs do, it computes as they do. Root only: the
//! programs' own code is run and compared.

#[path = "common/skipped.rs"]
mod skipped;

use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;

use bmc::abi::KEY_MAX;
use bmc::command::bench::random::Rng;
use bmc::host::sys;
use bmc::skel::abi::types::bmc_config;
use bmc::skel::abi::{AbiSkel, AbiSkelBuilder};
use bmc::view::lookup::{bucket_of, hash_of, heat_count, slots_of_slab};
use libbpf_rs::OpenObject;
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};

use skipped::skipped;

const BUCKETS: u32 = 12_345;

/// The program, with a configuration of random seeds.
fn load<'obj>(
    rng: &mut Rng,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> (AbiSkel<'obj>, bmc_config) {
    let mut skel = AbiSkelBuilder::default().open(storage).expect("it is an object");
    let config = &mut skel.maps.rodata_data.as_deref_mut().expect("it has constants").cfg;
    config.seed = std::array::from_fn(|_| rng.number());
    config.nh = std::array::from_fn(|_| rng.number() as u32);
    config.buckets = BUCKETS;
    let config = *config;
    (skel.load().expect("the kernel takes it"), config)
}

#[test]
fn finds_entries_as_the_programs_do() {
    const TEST: &str = "finds_entries_as_the_programs_do";

    if !nix::unistd::geteuid().is_root() {
        skipped(TEST, "not root");
        return;
    }
    let mut rng = Rng::new(1);
    let mut storage = MaybeUninit::uninit();
    let (mut skel, config) = load(&mut rng, &mut storage);
    let mut config_of_bmc = bmc::abi::types::bmc_config::default();
    (config_of_bmc.seed, config_of_bmc.nh) = (config.seed, config.nh);
    let lengths = (1..=KEY_MAX).chain([1, 2, 7, 8, 9, 16, 248]);
    for len in lengths {
        let key: Vec<u8> = (0..len).map(|_| rng.number() as u8).collect();
        let (era, heat) = (rng.number(), rng.number() as u8);
        let units = 1 + rng.below(88) as u32;

        let data = skel.maps.bss_data.as_deref_mut().expect("it has variables");
        let text: Vec<u8> = key.iter().copied().chain([b' '; 8]).collect();
        let question = &mut data.question;
        question.key.slot.klen = len as u8;
        let (start, rest) = text.split_at(question.key.slot.key.len());
        question.key.slot.key.copy_from_slice(start);
        let rest = &rest[..rest.len().min(question.key.text.len())];
        question.key.text[..rest.len()].copy_from_slice(rest);
        (question.era, question.heat, question.units) = (era, heat, units);
        let done = sys::prog_run(skel.progs.bmc_lookup.as_fd()).expect("it runs");
        assert_eq!(done, 0);
        let answer = skel.maps.bss_data.as_deref().expect("it has variables").answer;

        let hash = hash_of(&config_of_bmc, &key);
        assert_eq!(answer.hash, hash, "a key of {len} bytes: {}", key.escape_ascii());
        assert_eq!(answer.bucket, bucket_of(hash, BUCKETS));
        assert_eq!(answer.heat, u32::from(heat_count(heat, era)), "{heat:#x} in era {era}");
        assert_eq!(u64::from(answer.slots), slots_of_slab(units.into()), "{units} units");
    }
}
