// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What a cache is doing, and the orders that it takes: idle, flush, expect a flush.
//!
//! While programs are exchanged or only some are in place, the cache idles: it is empty
//! and gives no leases.

use std::mem::offset_of;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::pins::Pins;
use crate::abi::types::bmc_global;
use crate::abi::{DIRTY, FLUSHES_MAX};
use crate::host::sys;

/// What a cache is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It answers what it can.
    Caching,
    /// Compared with the TCP traffic there are so few requests over UDP that caching would
    /// cost more than it saves. The cache is empty, and TCP replies are not looked at.
    Asleep,
    /// Nothing, because an attach or detach was interrupted.
    Idle,
}

/// Asks what a cache is doing.
pub fn activity(pins: &Pins) -> Result<Activity> {
    let bytes = pins.map("global")?.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
    let global = bytes.and_then(|bytes| sys::plain_from::<bmc_global>(&bytes));
    Ok(match global.context("the map global is another version's")? {
        bmc_global { quarantine: u64::MAX, .. } => Activity::Idle,
        bmc_global { word, .. } if word & DIRTY != 0 => Activity::Asleep,
        _ => Activity::Caching,
    })
}

/// Empties a cache and lets it idle until it is flushed.
pub fn idle(pins: &Pins) -> Result<()> {
    flush(pins)?;
    set_idle(&pins.map("global")?)
}

/// Lets a cache idle until it is flushed: a quarantine that never ends allows no leases,
/// so nothing is filled, and an empty cache stays empty.
pub fn set_idle(global: &MapHandle) -> Result<()> {
    sys::store(global, offset_of!(bmc_global, quarantine), u64::MAX)
        .context("cannot let the cache idle")
}

/// Removes every entry, and ends idling.
pub fn flush(pins: &Pins) -> Result<()> {
    let flush = pins.program("flush")?;
    match sys::prog_run(flush.as_fd()).context("cannot run the program that flushes")? {
        0 => Ok(()),
        ret => bail!("the program that flushes failed: {ret}"),
    }
}

/// Tells a cache when delayed `flush_all`s take effect, in seconds of `CLOCK_MONOTONIC`; at
/// most [`FLUSHES_MAX`] of them. Places are filled from the last, because the programs use
/// the first for the `flush_all`s that they see.
pub fn set_due(global: &MapHandle, seconds: &[u64]) -> Result<()> {
    let due = offset_of!(bmc_global, due);
    for (place, second) in (0..FLUSHES_MAX).rev().zip(seconds) {
        sys::store(global, due + place * size_of::<u64>(), second * 1_000_000_000)
            .context("cannot tell the cache of a flush_all")?;
    }
    Ok(())
}

/// The present age, in the units of deadlines.
pub fn now(pins: &Pins) -> Result<u32> {
    let now = pins.program("now")?;
    sys::prog_run(now.as_fd()).context("cannot run the program that tells the time")
}
