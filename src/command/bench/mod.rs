// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc bench`: what bmc gains on this machine.
//!
//! One memcached has a network device for each side, to which that side's
//! programs stay attached while a case is measured. The sides take turns by the
//! client asking at one address after the other, so that whatever else the
//! machine does hits all of them, and each cache stays as warm as it was.
//!
//! Every measurement is proved: what was answered must be what bmc's counters
//! and memcached's own say, together.

pub mod cases;
pub mod client;
pub mod histogram;
pub mod keys;
pub mod measure;
pub mod net;
pub mod options;
pub mod random;
pub mod report;
pub mod server;
pub mod sides;
pub mod texts;

use std::io::Write;

use anyhow::{Context as _, Result};

use self::measure::{Bench, Cpus};
use self::net::Net;
pub use self::options::Options;
use self::report::Machine;
use self::sides::Side;
use crate::host::facts;
use crate::memcached::probe;

/// Measures the cases and prints the report.
pub fn run(options: &Options, out: &mut impl Write) -> Result<()> {
    if options.list {
        return report::list(out);
    }
    facts::check_capabilities()?;
    let memcached = probe::version(&options.memcached, "--memcached")?;
    let cpus = Cpus::choose()?;
    let machine = Machine::look(memcached)?;
    let net = Net::new(&Side::ALL.map(Side::name), Side::Reflector.name())?;
    let bench = Bench { options, net, cpus };
    let mut measured = Vec::new();
    for case in &options.cases {
        measured.push(bench.measure(case).with_context(|| format!("case {}", case.name))?);
    }
    let settings = report::Settings { options, wiring: bench.cpus.describe() };
    if options.json {
        writeln!(out, "{}", report::json(&machine, &settings, &measured))?;
    } else {
        write!(out, "{}", report::table(&machine, &settings, &measured))?;
    }
    Ok(())
}
