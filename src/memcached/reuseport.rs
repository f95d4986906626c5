// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Gives each worker of memcached a UDP socket of its own.
//!
//! A small library (`preload.c`) does that. It is part of this binary, and the dynamic
//! loader loads it into memcached from a file in memory.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};

static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// What chooses the worker that gets a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Steer {
    /// Chance, for each datagram: all workers get as much to do, however few the clients.
    #[default]
    Datagram,
    /// The client's address and port: each client keeps to one worker.
    Client,
    /// The CPU that received it, for a network card with a queue for each CPU.
    Cpu,
}

/// Has the library loaded into a memcached. The returned file must live until memcached
/// has been started.
pub fn preload(command: &mut Command, steer: Steer) -> Result<File> {
    let mut library =
        File::from(memfd_create(c"bmc-preload", MFdFlags::empty()).context("no memory")?);
    library.write_all(LIBRARY).context("no memory for the library")?;
    let mut preload = OsString::from(format!("/proc/self/fd/{}", library.as_raw_fd()));
    if let Some(before) = env::var_os("LD_PRELOAD").filter(|before| !before.is_empty()) {
        preload.push(":");
        preload.push(&before);
        command.env("BMC_LD_PRELOAD", before);
    }
    match steer {
        Steer::Datagram => command.env("BMC_STEER", "datagram"),
        Steer::Cpu => command.env("BMC_STEER", "cpu"),
        Steer::Client => command, // as the kernel does by itself
    };
    command.env("LD_PRELOAD", preload);
    Ok(library)
}

/// Fails if the dynamic loader would not load the library into a program.
pub fn check_loadable(binary: &Path) -> Result<()> {
    let name = binary.display();
    let file = std::fs::read(binary).with_context(|| format!("cannot read {name}"))?;
    let mode = binary.metadata().with_context(|| format!("cannot read {name}"))?.permissions();
    ensure!(
        mode.mode() & 0o6000 == 0,
        "{name} is set-uid or set-gid, so nothing can be loaded into it: use a copy that is not"
    );
    match is_dynamic(&file) {
        None => bail!("{name} is no program of this machine's kind"),
        Some(false) => {
            bail!(
                "{name} is linked statically, so nothing can be loaded into it: use one that is not"
            )
        }
        Some(true) => Ok(()),
    }
}

/// Whether a 64-bit ELF file asks for a dynamic loader (elf(5), `PT_INTERP`); `None` if it is
/// not such a file.
fn is_dynamic(file: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_ne_bytes(*file.get(at..)?.first_chunk()?));
    let offset = u64::from_ne_bytes(*file.get(32..)?.first_chunk()?);
    if !file.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let (size, count) = (half(54)?, half(56)?);
    let start = usize::try_from(offset).ok()?;
    let mut types = (0..usize::from(count)).map(|nth| {
        let head = file.get(start.checked_add(nth * usize::from(size))?..)?;
        Some(u32::from_ne_bytes(*head.first_chunk()?))
    });
    types.try_fold(false, |found, kind| Some(found || kind? == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_dynamic_programs_from_others() {
        let own = std::fs::read("/proc/self/exe").expect("this is a program");
        assert_eq!(is_dynamic(&own), Some(true));
        assert_eq!(is_dynamic(b"#!/bin/sh\n"), None);
        assert_eq!(is_dynamic(&own[..40]), None);
    }
}
