// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc memcached`: runs the installed memcached with one UDP socket for each worker.
//!
//! This process becomes memcached, so that signals, exit codes and its supervisor work as
//! if bmc were not there.

use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::memcached::probe;
use crate::memcached::reuseport::{Steer, check_loadable, preload};
use crate::message;

/// The oldest memcached that is known to make its UDP sockets as the library expects: the
/// first of the series that Debian 10 and later have.
const OLDEST: [u32; 2] = [1, 5];

/// The options of `bmc memcached`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The memcached to run; by default the one on PATH.
    pub binary: Option<PathBuf>,
    /// What chooses the worker that gets a datagram.
    pub steer: Steer,
    /// The arguments of memcached.
    pub args: Vec<OsString>,
}

/// Becomes memcached.
///
/// # Errors
///
/// If there is no memcached, the library cannot be loaded into it, or it was not
/// told to listen on UDP.
pub fn run(options: &Options) -> Result<Infallible> {
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => search(OsStr::new("memcached")).context(
            "no memcached found on PATH: install it (Debian: apt install memcached) \
             or name it with --binary",
        )?,
    };
    check_loadable(&binary)?;
    check_version(&binary)?;
    ensure!(
        udp_port(&options.args).is_some_and(|port| port != "0"),
        "memcached would not listen on UDP, without which neither this nor bmc is useful: \
         add -U 11211"
    );
    if has_several_addresses(&options.args) {
        message::tell(
            "memcached serves each of several -l addresses with one worker only: \
             name one, or none for all",
        );
    }

    let mut command = Command::new(&binary);
    let _library = preload(&mut command, options.steer)?;
    let err = command.args(&options.args).exec();
    Err(err).with_context(|| format!("cannot run {}", binary.display()))
}

/// The program that a shell would run.
fn search(name: &OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| {
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Fails if memcached is older than [`OLDEST`].
fn check_version(binary: &Path) -> Result<()> {
    let version = probe::version(binary, "--binary")?;
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

/// The value of memcached's last `-U`.
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
}
