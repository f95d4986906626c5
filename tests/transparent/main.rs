// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Nobody can tell that bmc is there: two memcacheds are told the same, one
//! behind bmc and one alone, and must answer the same. Root only.
//!
//! `BMC_TRANSPARENT_COMMANDS` sets how many commands, GETs that check not
//! counted; `BMC_TEST_SEED` which; `BMC_ENDS_SECONDS` how long ends.rs goes on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
#[path = "../common/mod.rs"]
mod common;
mod differs;
mod ends;
mod expiry;
mod lane;
mod pair;
mod restart;

use std::thread;

use common::Net;
use common::Rng;
use common::RngExt as _;
use common::can_run;
use lane::Lane;
use lane::Tally;
use nix::sched::CpuSet;
use nix::sched::sched_getaffinity;
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;

/// Entries outlive the test.
const LASTING: &[&str] = &["--unknown-ttl", "60s"];

/// Mode, and the address that most clients use.
const LANES: [(&str, std::net::IpAddr); 8] = [
    ("native", Net::SERVER4),
    ("native", Net::SERVER6),
    ("tc", Net::SERVER4),
    ("tc", Net::SERVER6),
    ("native", Net::SERVER4),
    ("native", Net::SERVER6),
    ("tc", Net::SERVER4),
    ("tc", Net::SERVER6),
];

#[test]
fn answers_as_memcached_alone_does() {
    let name = "answers_as_memcached_alone_does";
    if !can_run(name) {
        return;
    }
    let count: usize = std::env::var("BMC_TRANSPARENT_COMMANDS")
        .map_or(20_000, |count| count.parse().expect("a number"));
    let mut rng = Rng::from_env(name);
    // Most of a lane's time is waiting for bmc to trust its eyes again.
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let lanes: Vec<_> = LANES
            .iter()
            .enumerate()
            .map(|(i, &(mode, server))| {
                let seed = rng.number();
                scope.spawn(move || {
                    stay_on_one_cpu(i);
                    let name = format!("transparent-{i}");
                    Lane::new(&name, mode, server, seed).run(count / LANES.len())
                })
            })
            .collect();
        let results: Vec<_> = lanes.into_iter().map(thread::ScopedJoinHandle::join).collect();
        results
            .into_iter()
            .map(|tally| tally.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut sum = Tally::default();
    for tally in &tallies {
        println!("{tally:?}");
        assert!(tally.hits * 20 > tally.asked, "few GETs were answered by the kernel: {tally:?}");
        assert!(tally.fills > 0 && tally.writes > 0 && tally.flushes > 0, "{tally:?}");
        sum.add(tally);
    }
    println!("in all {sum:?}");
}

/// Keeps this thread and what it starts on one CPU: most of their time they
/// wait for each other.
fn stay_on_one_cpu(which: usize) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("a thread may ask where it runs");
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true)).collect();
    let mut one = CpuSet::new();
    one.set(cpus[which % cpus.len()]).expect("a CPU there is");
    sched_setaffinity(Pid::from_raw(0), &one).expect("a thread may choose where it runs");
}
