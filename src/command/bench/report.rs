// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What `bmc bench` prints.

use std::fmt;
use std::fs;
use std::io::Write;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::cases::{CASES, Case};
use super::histogram::PERCENTILES;
use super::options::Options;
use super::sides::{AGE, Load, PACE, Side};
use super::{client, server};
use crate::format::grouped;
use crate::host::facts;

/// The machine and the memcached of a measurement.
pub struct Machine {
    cpu: String,
    cpus: usize,
    kernel: String,
    memcached: String,
}

impl Machine {
    /// Asks the kernel about the machine.
    pub fn look(memcached: String) -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            cpu: model.map_or("unknown CPU", |(_, model)| model).into(),
            cpus: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: facts::release()?,
            memcached,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cpus, kernel, memcached } = self;
        write!(f, "{cpus} x {cpu}, Linux {kernel}, memcached {memcached}")
    }
}

/// How the measurement was made.
pub struct Settings<'a> {
    /// The options.
    pub options: &'a Options,
    /// Which CPUs were used for what.
    pub wiring: String,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Answered requests per second.
    pub rate: f64,
    /// The [`PERCENTILES`] of the latency, in microseconds.
    pub latency: [f64; PERCENTILES.len()],
    /// Keys that bmc looked up.
    pub lookups: u64,
    /// Keys that bmc found.
    pub hits: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests without a reply.
    pub lost: u64,
    /// The share of the time during which the client or memcached, whichever is more, was ready to
    /// run but waited for the CPU.
    pub waited: f64,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, _, p99, ..] = self.latency;
        write!(f, "{:.0}/s, p50 {p50:.0} us, p99 {p99:.0} us", self.rate)?;
        if self.hits > 0 {
            write!(f, ", hits {:.1} %", ratio(self.hits, self.lookups) * 100.0)?;
        }
        if self.lost > 0 {
            write!(f, ", {} of {} lost", self.lost, self.requests)?;
        }
        Ok(())
    }
}

/// One side under one load: medians over the rounds, and sums of requests.
pub struct Row {
    /// Answered requests per second.
    pub rate: f64,
    side: Side,
    load: Load,
    latency: [f64; PERCENTILES.len()],
    hit_ratio: f64,
    requests: u64,
    lost: u64,
    waited: f64,
}

impl Row {
    /// Summarizes the measurements of the rounds.
    pub fn new(side: Side, load: Load, turns: &[Turn]) -> Self {
        let sum = |of: fn(&Turn) -> u64| turns.iter().map(of).sum::<u64>();
        Self {
            side,
            load,
            rate: median(turns.iter().map(|turn| turn.rate)),
            latency: std::array::from_fn(|i| median(turns.iter().map(|turn| turn.latency[i]))),
            hit_ratio: ratio(sum(|turn| turn.hits), sum(|turn| turn.lookups)),
            requests: sum(|turn| turn.requests),
            lost: sum(|turn| turn.lost),
            waited: median(turns.iter().map(|turn| turn.waited)),
        }
    }
}

/// A case, measured or not.
pub struct Measured {
    /// The case.
    pub case: &'static Case,
    /// Why it was not measured.
    pub skipped: Option<String>,
    /// The results of all sides, first saturated, then paced.
    pub rows: Vec<Row>,
}

impl Measured {
    fn saturated(&self, side: Side) -> Option<f64> {
        let is_it = |row: &&Row| row.side == side && row.load == Load::Saturated;
        self.rows.iter().find(is_it).map(|row| row.rate)
    }

    /// The rate of a side relative to memcached alone.
    fn gain(&self, side: Side) -> Option<f64> {
        let base = self.saturated(Side::Without).filter(|rate| *rate > 0.0)?;
        Some(self.saturated(side)? / base)
    }
}

/// `part / of`, or 0 if `of` is 0.
pub fn ratio(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

/// The median; 0 of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => values[len / 2 - 1].midpoint(values[len / 2]),
    }
}

/// Prints the list of cases.
pub fn list(out: &mut impl Write) -> Result<()> {
    for case in &CASES {
        writeln!(out, "{:<10} {}", case.name, case.description)?;
    }
    Ok(())
}

/// The report as a table.
pub fn table(machine: &Machine, settings: &Settings<'_>, all: &[Measured]) -> String {
    let mut text = header(machine, settings);
    for measured in all {
        let case = measured.case;
        text += &format!("\n{}: {}\n", case.name, case.description);
        if let Some(why) = &measured.skipped {
            text += &format!("  skipped: {why}\n");
            continue;
        }
        text += &format!("  {:<10}{:<16}{:>12}{:>8}", "load", "side", "requests/s", "gain");
        for (name, _) in PERCENTILES {
            text += &format!("{:>10}", format!("{name} us"));
        }
        text += &format!("{:>8}{:>9}{:>8}\n", "hits %", "lost", "wait %");
        for row in &measured.rows {
            let gain = match row.load {
                Load::Saturated => measured.gain(row.side).map(|gain| format!("{gain:.2}x")),
                Load::Paced(_) => None,
            };
            let rate = grouped(row.rate.round() as u64);
            text += &format!(
                "  {:<10}{:<16}{rate:>12}{:>8}",
                row.load.name(),
                row.side.name(),
                gain.unwrap_or_default()
            );
            for latency in row.latency {
                text += &format!("{latency:>10.1}");
            }
            let [hits, waited] = [row.hit_ratio, row.waited].map(|share| share * 100.0);
            text += &format!("{hits:>8.1}{:>9}{waited:>8.1}\n", grouped(row.lost));
        }
    }
    text
}

fn header(machine: &Machine, settings: &Settings<'_>) -> String {
    let Settings { options, wiring } = settings;
    format!(
        "{machine} ({}), bmc {}\n\
         {wiring}.\n\
         Each side has a veth pair, whose client's end has an XDP program that passes everything.\n\
         On veth a frame is received by the CPU that sent it, so bmc works on the client's CPU, and\n\
         what that can send is the limit. The reflector, the least program that answers, shows it;\n\
         its answers are the requests themselves.\n\
         saturated: {} requests under way for each client, of which a reply makes room for the\n\
         next. paced: {:.0} % of what memcached does without bmc, latency from the time at which\n\
         each request was due. Medians of {} rounds of {} s; all replies are checked byte by byte.\n\
         lost: no reply within {} ms. hits %: keys found of those looked up, by bmc's counters.\n\
         wait %: time in which the client or memcached was ready to run and others had the CPU;\n\
         what was measured with much of that is not worth much.\n",
        server::OPTIONS.join(" "),
        env!("CARGO_PKG_VERSION"),
        client::WINDOW,
        PACE * 100.0,
        options.rounds,
        options.seconds.as_secs_f64(),
        client::LOST.as_millis(),
    )
}

/// The report as JSON.
pub fn json(machine: &Machine, settings: &Settings<'_>, all: &[Measured]) -> Value {
    let Settings { options, wiring } = settings;
    json!({
        "machine": {
            "cpu": machine.cpu,
            "cpus": machine.cpus,
            "kernel": machine.kernel,
            "memcached": machine.memcached,
            "bmc": env!("CARGO_PKG_VERSION"),
        },
        "settings": {
            "seconds": options.seconds.as_secs_f64(),
            "rounds": options.rounds,
            "memory_bytes": options.memory,
            "max_age_ms": AGE.as_millis() as u64,
            "unknown_ttl_ms": AGE.as_millis() as u64,
            "memcached_options": server::OPTIONS,
            "wiring": format!("veth; {wiring}"),
            "window": client::WINDOW,
            "pace": PACE,
            "lost_after_ms": client::LOST.as_millis() as u64,
        },
        "cases": all.iter().map(case_json).collect::<Vec<_>>(),
    })
}

fn case_json(measured: &Measured) -> Value {
    let sides: Vec<_> = measured.rows.iter().map(row_json).collect();
    let mut object = json!({
        "name": measured.case.name,
        "description": measured.case.description,
        "workers": measured.case.workers,
        "sides": sides,
        "gain": measured.gain(Side::Native).map(|gain| rounded(gain, 1e3)),
    });
    if let Some(why) = &measured.skipped {
        object["skipped"] = why.as_str().into();
    }
    object
}

fn row_json(row: &Row) -> Value {
    let latency: Map<_, _> = PERCENTILES
        .iter()
        .zip(row.latency)
        .map(|((name, _), us)| ((*name).into(), rounded(us, 1e3).into()))
        .collect();
    json!({
        "side": row.side.name(),
        "load": row.load.name(),
        "rate": rounded(row.rate, 10.0),
        "offered": row.load.rate().map(|rate| rounded(rate, 10.0)),
        "latency_us": latency,
        "hit_ratio": rounded(row.hit_ratio, 1e6),
        "lost": row.lost,
        "requests": row.requests,
        "waited": rounded(row.waited, 1e4),
    })
}

/// Rounds to a multiple of `1 / parts`.
fn rounded(number: f64, parts: f64) -> f64 {
    (number * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_middle() {
        for (values, middle) in
            [(&[][..], 0.0), (&[3.0], 3.0), (&[1.0, 2.0], 1.5), (&[9.0, 1.0, 5.0], 5.0)]
        {
            assert!((median(values.iter().copied()) - middle).abs() < 1e-9, "{values:?}");
        }
    }
}
