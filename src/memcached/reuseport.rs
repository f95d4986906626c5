// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc memcached`: the installed memcached, with one UDP socket for each worker.
//!
//! What does it is a small library (`preload.c`), part of this binary, that is
//! loaded into memcached from a file in memory. This process becomes memcached,
//! so that signals, exit codes and whoever supervises it see nothing else.

use std::convert::Infallible;
use std::env;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;

use crate::cli;
use crate::cli::Steer;
use crate::memcached::probe as memcached;
use crate::message;

static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// The oldest memcached that is known to make its UDP sockets as the library
/// expects: the first of the series that Debian 10 and later have.
const OLDEST: [u32; 2] = [1, 5];

/// Becomes memcached.
///
/// # Errors
///
/// If there is no memcached, the library cannot be loaded into it, or it was not
/// told to listen on UDP.
pub fn exec(args: &cli::Memcached) -> Result<Infallible> {
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => search(OsStr::new("memcached")).context(
            "no memcached found on PATH: install it (Debian: apt install memcached) \
             or name it with --binary",
        )?,
    };
    check_loadable(&binary)?;
    check_version(&binary)?;
    ensure!(
        udp_port(&args.args).is_some_and(|port| port != "0"),
        "memcached would not listen on UDP, without which neither this nor bmc is of use: \
         add -U 11211"
    );
    if has_several_addresses(&args.args) {
        message::tell(
            "memcached serves each of several -l addresses with one worker only: \
             name one, or none for all",
        );
    }

    let mut command = Command::new(&binary);
    let _library = preload(&mut command, args.steer)?;
    let err = command.args(&args.args).exec();
    Err(err).with_context(|| format!("cannot run {}", binary.display()))
}

/// Has the library loaded into a memcached. Until it was started, what is returned
/// must live.
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
        Steer::Client => command, // as the kernel does
    };
    command.env("LD_PRELOAD", preload);
    Ok(library)
}

/// The program of that name that a shell would run.
fn search(name: &OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| {
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Whether the dynamic loader would load the library into it.
fn check_loadable(binary: &Path) -> Result<()> {
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

/// Whether a 64-bit ELF file asks for a dynamic loader (elf(5), `PT_INTERP`).
/// `None` if it is no such file.
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

/// Whether it is new enough.
fn check_version(binary: &Path) -> Result<()> {
    let version = memcached::version(binary, "--binary")?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let version_is = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    let [major, minor] = OLDEST;
    ensure!(
        version_is >= OLDEST,
        "{} is memcached {version}, which is older than {major}.{minor}: install a newer one",
        binary.display()
    );
    Ok(())
}

/// What memcached's last `-U` says.
fn udp_port(args: &[OsString]) -> Option<String> {
    let mut port = None;
    let mut args = args.iter().map(|arg| arg.to_string_lossy());
    while let Some(arg) = args.next() {
        if arg == "-U" || arg == "--udp-port" {
            port = args.next().map(String::from);
        } else if let Some(value) =
            arg.strip_prefix("--udp-port=").or_else(|| arg.strip_prefix("-U"))
        {
            port = Some(value.to_string());
        }
    }
    port
}

/// Whether `-l` names several addresses.
fn has_several_addresses(args: &[OsString]) -> bool {
    let lists = args.windows(2).filter(|pair| pair[0] == "-l" || pair[0] == "--listen");
    let lists: Vec<_> = lists.map(|pair| pair[1].as_bytes()).collect();
    lists.len() > 1 || lists.iter().any(|list| list.contains(&b','))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn finds_the_udp_port_however_it_is_written() {
        for (line, port) in [
            ("-p 1 -U 2 -t 4", Some("2")),
            ("-U2", Some("2")),
            ("--udp-port=2", Some("2")),
            ("--udp-port 2", Some("2")),
            ("-U 1 -U 0", Some("0")),
            ("-p 11211 -u nobody", None),
            ("-U", None),
        ] {
            assert_eq!(udp_port(&args(line)).as_deref(), port, "{line}");
        }
    }

    #[test]
    fn sees_several_addresses() {
        assert!(has_several_addresses(&args("-l 127.0.0.1,::1")));
        assert!(has_several_addresses(&args("-l 127.0.0.1 -l ::1")));
        assert!(!has_several_addresses(&args("-l 127.0.0.1 -p 1")));
    }

    #[test]
    fn tells_dynamic_programs_from_others() {
        let own = std::fs::read("/proc/self/exe").expect("this is a program");
        assert_eq!(is_dynamic(&own), Some(true));
        assert_eq!(is_dynamic(b"#!/bin/sh\n"), None);
        assert_eq!(is_dynamic(&own[..40]), None);
    }
}
