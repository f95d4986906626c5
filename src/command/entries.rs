// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc entries`: prints the entries of the cache.

use std::io::Write;

use anyhow::Result;

use crate::instance::Instance;
use crate::view::entries::{Cache, Entry};

/// The options of `bmc entries`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Print at most this many entries.
    pub limit: Option<usize>,
    /// Print the entries of this key only.
    pub key: Option<Vec<u8>>,
    /// Print a JSON object.
    pub json: bool,
}

/// Prints the entries of an instance.
pub fn run(options: &Options, name: &str, out: &mut impl Write) -> Result<()> {
    let (instance, lock) = Instance::open(name)?;
    let cache = Cache::open(&instance)?;
    drop(lock);
    let mut left = options.limit.unwrap_or(usize::MAX);
    let mut separator = "";
    if options.json {
        write!(out, "{{\"entries\":[")?;
    } else {
        writeln!(out, "{}", Entry::title())?;
    }
    cache.walk(|entry| {
        if left == 0 {
            return Ok(false);
        }
        if options.key.as_ref().is_some_and(|key| *key != entry.key) {
            return Ok(true);
        }
        left -= 1;
        if options.json {
            write!(out, "{separator}{}", entry.to_json())?;
            separator = ",";
        } else {
            writeln!(out, "{}", entry.row())?;
        }
        Ok(true)
    })?;
    if options.json {
        writeln!(out, "]}}")?;
    }
    Ok(())
}
