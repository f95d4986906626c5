// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc stats`: prints the counters, once or again and again.

use std::io::{self, Write};
use std::process;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};
use serde_json::json;

use crate::host::facts::unix_time;
use crate::instance::{Instance, NotAttached};
use crate::view::counters::{Counters, Rates, Sample, csv, per_cpu_json, table};
use crate::view::prometheus;
use crate::view::state::interfaces_json;

/// The options of `bmc stats`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How to print.
    pub format: Format,
    /// Print each CPU as well.
    pub per_cpu: bool,
    /// Print again after each such interval.
    pub watch: Option<Duration>,
    /// Stop after printing this often.
    pub count: Option<u64>,
}

/// How to print counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// An object a line.
    Json,
    /// Comma-separated, with a header.
    Csv,
    /// Prometheus' text format.
    Prometheus,
}

/// Prints the counters of an instance.
pub fn run(options: &Options, name: &str, out: &mut impl Write) -> Result<()> {
    let Some(interval) = options.watch else {
        return print(options, name, true, out);
    };
    // Each line is written by a single call, so this cannot cut a line in two.
    ctrlc::set_handler(|| process::exit(0)).context("cannot wait for signals")?;
    let mut rounds = 0..options.count.unwrap_or(u64::MAX);
    if options.format == Format::Table && !options.per_cpu {
        let wait = || rounds.next().inspect(|_| sleep(interval)).is_some();
        return follow(name, wait, out);
    }
    if rounds.next().is_some() {
        print(options, name, true, out)?;
    }
    for _ in rounds {
        sleep(interval);
        print(options, name, false, out).map_err(ended)?;
    }
    Ok(())
}

/// Tells an instance that disappeared from one that was never there.
fn ended(err: Error) -> Error {
    if err.is::<NotAttached>() { err.context("nothing is left to watch") } else { err }
}

fn print(options: &Options, name: &str, is_first: bool, out: &mut impl Write) -> Result<()> {
    let per_cpu = options.per_cpu;
    let (instance, lock) = Instance::open(name)?;
    let sample = Sample::take(&instance)?;
    let text = match options.format {
        Format::Table => table(&sample, per_cpu),
        Format::Json => json(&instance, &sample, per_cpu)?,
        Format::Csv => csv(&sample, per_cpu, is_first),
        Format::Prometheus => prometheus::page(&instance, &sample, per_cpu)?,
    };
    drop(lock);
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn json(instance: &Instance, sample: &Sample, per_cpu: bool) -> Result<String> {
    let mut object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": instance.name,
        "time": unix_time(),
        "since": instance.since_unix(),
        "interfaces": interfaces_json(&instance.interfaces()?),
        "totals": sample.total().to_json(),
    });
    if per_cpu {
        object["per_cpu"] = per_cpu_json(sample.cpus().iter().copied().map(Counters::to_json));
    }
    Ok(format!("{object}\n"))
}

/// Prints a line of rates whenever `wait` returns true, until it returns false.
pub fn follow(name: &str, mut wait: impl FnMut() -> bool, out: &mut impl Write) -> Result<()> {
    let take = || Sample::take(&Instance::open(name)?.0);
    let mut before = take()?;
    for line in 0_u64.. {
        if !wait() {
            break;
        }
        let after = take().map_err(ended)?;
        print_line(line, Rates::TITLE, &Rates::between(&before, &after).line(), out)?;
        before = after;
    }
    Ok(())
}

/// Prints a line; before the first and each twentieth after it, the titles.
pub fn print_line(number: u64, title: &str, line: &str, out: &mut impl Write) -> io::Result<()> {
    if number.is_multiple_of(20) {
        writeln!(out, "{title}")?;
    }
    writeln!(out, "{line}")?;
    out.flush()
}
