// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What runs of a program cost by the kernel's count, and the programs that bmc's
//! are compared with.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;

use bmc::host::sys::prog_info;
use bmc::skel::bench::BenchSkel;
use bmc::skel::bench::BenchSkelBuilder;
use libbpf_rs::OpenObject;
use libbpf_rs::ProgramMut;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder as _;

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Loads the programs of `bpf/bench.bpf.c`.
///
/// # Panics
/// When the kernel refuses them.
pub(crate) fn load(storage: &mut MaybeUninit<OpenObject>) -> BenchSkel<'_> {
    let opened = BenchSkelBuilder::default().open(storage);
    opened.and_then(OpenSkel::load).expect("the benchmark's programs load")
}

/// Has the kernel count what programs cost, until it is dropped.
pub(crate) struct Counting;

impl Counting {
    /// From now on.
    ///
    /// # Panics
    /// Without root.
    pub(crate) fn start() -> Self {
        fs::write(STATS, "1").expect("root may have runs counted");
        Self
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = fs::write(STATS, "0");
    }
}

/// Nanoseconds of each run of the program meanwhile, which must be counted.
pub(crate) fn cost(program: &ProgramMut<'_>, meanwhile: impl FnOnce()) -> f64 {
    let info = || prog_info(program.as_fd()).expect("the program has counts");
    let before = info();
    meanwhile();
    let after = info();
    let time = after.run_time.saturating_sub(before.run_time).as_nanos() as f64;
    time / (after.runs - before.runs) as f64
}
