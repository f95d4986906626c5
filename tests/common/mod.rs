// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the tests that need a network share: namespaces, a real memcached and
//! its clients, an attached bmc. Everything is undone on drop, also when the
//! test panics; what a killed run left behind, the next one removes.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test binary uses its own part")]

mod bmc;
mod copy;
mod memcached;
mod net;
mod process;
mod random;
mod skipped;

pub use bmc::Bmc;
pub use bmc::COUNTERS;
pub use bmc::PINS;
pub use bmc::pins;
pub use bmc::total;
pub(crate) use copy::Copy;
pub use memcached::Impostor;
pub use memcached::Item;
pub use memcached::Memcached;
pub use memcached::PORT;
pub use memcached::Reply;
pub use memcached::TLS;
pub use memcached::Tcp;
pub use memcached::Udp;
pub use memcached::items;
pub use net::Frames;
pub use net::Namespace;
pub use net::Net;
pub use net::PATIENCE;
pub use process::Process;
pub use random::Rng;
pub use random::RngExt;
pub use random::Zipf;
pub(crate) use skipped::skipped;

use std::process::Command;
use std::time::Duration;
use std::time::Instant;

/// Debian's, for which its packages are, whatever else is installed.
pub const PYTHON: &str = "/usr/bin/python3";

/// Whether tests of the network can run here; prints why when they cannot.
pub fn can_run(test: &str) -> bool {
    can_run_with(test, &[])
}

/// The same for one that needs these tools besides.
pub fn can_run_with(test: &str, tools: &[&str]) -> bool {
    let missing = if nix::unistd::geteuid().is_root() {
        ["ip", "nsenter", "setpriv", "taskset", "ethtool", "bpftool", "memcached"]
            .iter()
            .chain(tools)
            .find(|tool| !is_installed(tool))
            .map(|tool| format!("{tool} is not installed"))
    } else {
        Some("it needs root".to_string())
    };
    if let Some(missing) = &missing {
        skipped(test, missing);
    }
    missing.is_none()
}

/// Runs a command to its end and returns what it printed.
///
/// # Panics
/// When it cannot be run or fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asks until the answer is yes, or for `limit`; returns the last answer.
pub fn eventually(limit: Duration, mut question: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if question() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}
