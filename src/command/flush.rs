// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc flush`: removes every entry.

use anyhow::Result;

use crate::instance::lock::Lock;
use crate::instance::{Instance, state};

/// Flushes the cache of an instance.
pub fn run(name: &str) -> Result<()> {
    let _lock = Lock::exclusive()?;
    state::flush(&Instance::find(name)?.pins)
}
