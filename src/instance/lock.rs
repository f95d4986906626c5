// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The lock of all instances, and the repair of what a killed command has left.
//!
//! An instance is built and taken apart under a name that no instance can have; a single
//! rename gives and takes its own name. So wherever a command is killed, the next one that
//! changes something can tell what is left, and remove it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use super::pins::{Pins, ROOT, unfinished};
use super::state::{self, Activity};
use crate::host::facts;
use crate::message;

/// Keeps other processes from changing any instance.
pub struct Lock {
    #[expect(dead_code, reason = "held, not used")]
    root: Flock<File>,
    is_exclusive: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_exclusive {
            // Fails while there is an instance, as it should.
            let _ = fs::remove_dir(ROOT);
        }
    }
}

impl Lock {
    /// For commands that only look; any number may hold it. `None` if no instance exists.
    pub fn shared() -> Result<Option<Self>> {
        Self::take(FlockArg::LockShared)
    }

    /// For commands that change an existing instance; leftovers are removed first. `None`
    /// if no instance exists.
    pub fn exclusive() -> Result<Option<Self>> {
        let lock = Self::take(FlockArg::LockExclusive)?;
        if lock.is_some() {
            sweep().context("cannot remove what an interrupted bmc left")?;
        }
        Ok(lock)
    }

    /// For attach: like [`Lock::exclusive`], but creates the directory to lock.
    pub fn create() -> Result<Self> {
        loop {
            facts::make_directory(Path::new(ROOT))
                .with_context(|| format!("cannot create {ROOT}"))?;
            if let Some(lock) = Self::exclusive()? {
                return Ok(lock);
            }
        }
    }

    fn take(how: FlockArg) -> Result<Option<Self>> {
        loop {
            let root = match File::open(ROOT) {
                Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
                file => file.with_context(|| format!("cannot open {ROOT}"))?,
            };
            let root = Flock::lock(root, how)
                .map_err(|(_, err)| err)
                .with_context(|| format!("cannot lock {ROOT}"))?;
            // The directory goes with the last instance: was it removed before it was locked?
            let locked = root.metadata()?;
            if fs::metadata(ROOT).is_ok_and(|now| now.ino() == locked.ino()) {
                let is_exclusive = matches!(how, FlockArg::LockExclusive);
                return Ok(Some(Self { root, is_exclusive }));
            }
        }
    }
}

/// Removes what interrupted commands left, and undoes exchanges that they did not finish.
fn sweep() -> Result<()> {
    for instance in unfinished()? {
        let own = Pins::of(&instance);
        let left = own.unfinished();
        if !left.is_reachable() || !own.is_reachable() {
            message::detail(&format!("instance {instance} left something in another namespace"));
            continue;
        }
        if !own.exists() {
            left.remove(None)?;
            continue;
        }
        if let Err(err) = own.restore_programs() {
            message::tell(&format!("cannot put back what an interrupted bmc exchanged: {err:#}"));
        }
        left.remove(Some(&own))?;
        if state::activity(&own)? == Activity::Idle {
            state::flush(&own)?;
        }
    }
    Ok(())
}
