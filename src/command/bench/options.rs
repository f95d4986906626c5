// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The options of `bmc bench`.

use std::path::PathBuf;
use std::time::Duration;

use super::cases::{CASES, Case};

/// The options of `bmc bench`. The defaults are those of the command.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Print a JSON object.
    pub json: bool,
    /// Length of each measurement.
    pub seconds: Duration,
    /// How often each measurement is repeated.
    pub rounds: u32,
    /// What to measure.
    pub cases: Vec<&'static Case>,
    /// List the cases and measure nothing.
    pub list: bool,
    /// The memcached to run.
    pub memcached: PathBuf,
    /// Bytes of memory for bmc, in cases that do not set it themselves.
    pub memory: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            json: false,
            seconds: Duration::from_secs(2),
            rounds: 3,
            cases: CASES.iter().collect(),
            list: false,
            memcached: "memcached".into(),
            memory: 64 << 20,
        }
    }
}
