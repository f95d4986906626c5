// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What runs of a program cost by the kernel's count, and the programs that bmc's
//! are compared with.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;

use bmc::kernel::prog_info;
use bmc::skel::bench::BenchSkel;
use bmc::skel::bench::BenchSkelBuilder;
use bmc::skel::bench::OpenBenchSkel;
use libbpf_rs::OpenObject;
use libbpf_rs::ProgramInput;
use libbpf_rs::ProgramMut;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 2;

/// Opens the programs of `bpf/bench.bpf.c`.
///
/// # Panics
/// When there is no memory.
pub(crate) fn open(storage: &mut MaybeUninit<OpenObject>) -> OpenBenchSkel<'_> {
    BenchSkelBuilder::default().open(storage).expect("the benchmark's programs are whole")
}

/// Loads them.
///
/// # Panics
/// When the kernel refuses them.
pub(crate) fn load(storage: &mut MaybeUninit<OpenObject>) -> BenchSkel<'_> {
    open(storage).load().expect("the benchmark's programs load")
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

/// Has that many frames come in by the device, to which the program is attached.
///
/// # Panics
/// Before Linux 5.18.
pub(crate) fn run_live(program: &ProgramMut<'_>, device: u32, frame: &[u8], frames: u32) {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, ...
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&device.to_ne_bytes());
    program
        .test_run(ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(frame),
            flags: LIVE_FRAMES,
            repeat: frames,
            ..ProgramInput::default()
        })
        .expect("the kernel can run live frames (Linux 5.18)");
}
