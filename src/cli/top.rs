// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The arguments of `bmc top`.

use std::time::Duration;

use clap::Args;

use super::values::seconds;
use crate::command::top::Options;

/// Arguments of `bmc top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Seconds between refreshes: 0.01 to 86400
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = seconds)]
    pub interval: Duration,

    /// Stop after this many intervals
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Print a JSON object after each interval, even on a terminal
    #[arg(long)]
    pub json: bool,
}

impl Top {
    /// The options that these arguments stand for.
    pub fn options(&self) -> Options {
        Options { interval: self.interval, count: self.count, json: self.json }
    }
}
