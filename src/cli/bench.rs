// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The arguments of `bmc bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::{case, memory, turn};
use crate::command::bench::Options;
use crate::command::bench::cases::Case;

/// Arguments of `bmc bench`.
#[derive(Args, Debug)]
pub struct Bench {
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,

    /// Seconds of each measurement: 0.05 to 3600
    #[arg(long, value_name = "N", default_value = "2", value_parser = turn)]
    pub seconds: Duration,

    /// Repetitions of each measurement: 1 to 99
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..100))]
    pub rounds: u32,

    /// Cases to measure, by repeating or with commas; by default all
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = case)]
    pub cases: Vec<&'static Case>,

    /// List the cases and measure nothing
    #[arg(long)]
    pub list: bool,

    /// The memcached to run
    #[arg(long, value_name = "PATH", default_value = "memcached")]
    pub memcached: PathBuf,

    /// Memory for bmc: 16M to 64G; the zipf cases always have 16M
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = memory)]
    pub memory: u64,
}

impl Bench {
    /// The options that these arguments stand for.
    pub fn options(self) -> Options {
        let Self { json, seconds, rounds, cases, list, memcached, memory } = self;
        let mut options =
            Options { json, seconds, rounds, list, memcached, memory, ..Options::default() };
        if !cases.is_empty() {
            options.cases = cases;
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    #[test]
    fn the_defaults_that_help_shows_are_those_of_the_options() {
        let cli = Cli::try_parse_from(["bmc", "bench"]).expect("it needs no arguments");
        let Command::Bench(bench) = cli.command else { panic!("it is bench") };
        assert_eq!(bench.options(), Options::default());
    }
}
