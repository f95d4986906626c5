// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The arguments of `bmc stats`.

use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::values::seconds;
use crate::command::stats::{Format, Options};

/// Arguments of `bmc stats`.
#[derive(Args, Debug)]
pub struct Stats {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::default())]
    pub format: Format,

    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,

    /// Show each CPU as well
    #[arg(long)]
    pub per_cpu: bool,

    /// Print repeatedly, with this many seconds in between
    ///
    /// Ends when the instance is detached (exit code 3) or by a signal (0). If the
    /// instance is replaced without its cache, counters restart at 0, and "since"
    /// in JSON changes.
    #[arg(
        long,
        value_name = "SECS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = seconds
    )]
    pub watch: Option<Duration>,

    /// Stop after printing this many times
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

impl Stats {
    /// The options that these arguments stand for.
    pub fn options(&self) -> Options {
        Options {
            format: if self.json { Format::Json } else { self.format },
            per_cpu: self.per_cpu,
            watch: self.watch,
            count: self.count,
        }
    }
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Table, Self::Json, Self::Csv, Self::Prometheus]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Table => ("table", "For people"),
            Self::Json => ("json", "An object a line"),
            Self::Csv => ("csv", "Comma-separated, a header first"),
            Self::Prometheus => ("prometheus", "Prometheus' text format"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}
