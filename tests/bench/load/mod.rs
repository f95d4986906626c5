// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the benchmarks with a real memcached share: the machine they ran on and
//! clients that cost little.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each benchmark uses its own part")]

mod closed;
mod mixed;

pub use closed::Batch;
pub use closed::Clients;
pub use closed::batches;
pub use mixed::Generator;
pub use mixed::Load;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use nix::sched::CpuSet;
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;

use crate::common::Namespace;
use crate::common::run;

/// Where memcached runs (tests/common takes the first CPU it may have).
pub const SERVER_CPU: usize = 0;
/// Where its clients run.
pub const CLIENT_CPU: usize = 1;

/// After it was attached bmc trusts nothing for a second, and takes connections
/// that are used meanwhile for ones that it has not seen from their start.
pub const SETTLED: Duration = Duration::from_millis(1500);

/// Keeps this thread, and what it starts from now on, on one CPU.
pub fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).expect("a small number fits any set");
    sched_setaffinity(Pid::from_raw(0), &cpus)
        .unwrap_or_else(|error| panic!("the benchmarks need two CPUs: {error}"));
}

/// Prints what was measured, and on what.
pub fn print_machine() {
    let cpus = fs::read_to_string("/proc/cpuinfo").expect("/proc is mounted");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let memcached = run(Command::new("memcached").arg("-V"));
    let bmc = run(Command::new(env!("CARGO_BIN_EXE_bmc")).arg("--version"));
    println!(
        "{} x {}, Linux {}, {}, {}",
        cpus.lines().filter(|line| line.starts_with("processor")).count(),
        model.map_or("unknown CPU", |(_, model)| model),
        kernel.trim(),
        memcached.trim(),
        bmc.trim()
    );
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { sorted[middle - 1].midpoint(sorted[middle]) }
}

/// A key of 16 bytes.
pub fn key(number: usize) -> String {
    format!("key-{number:012}")
}

/// A SET of an item that does not expire.
pub fn set_request(key: &str, value: &str) -> String {
    format!("set {key} 0 0 {}\r\n{value}\r\n", value.len())
}

/// Opens connections inside a namespace that never block.
pub fn connect(namespace: &Namespace, server: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let all = || (0..count).map(|_| connect()).collect::<io::Result<_>>();
    namespace.within(all).expect("memcached accepts")
}
