// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The memcached that is measured.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cases::Case;
use super::client;
use super::net::{Net, PORT};
use super::texts::Texts;
use crate::host::sys;
use crate::memcached::reuseport::{self, Steer};

/// memcached's options besides ports and threads: enough memory for every case.
pub const OPTIONS: [&str; 2] = ["-m", "1024"];

/// A time limit for anything that happens on one machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the workers of a memcached get datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sockets {
    /// From one socket for all.
    Shared,
    /// From a socket each.
    Own(Steer),
}

impl Sockets {
    /// The port to listen on. Each kind has its own, so that all can run at the same time.
    pub fn port(self) -> u16 {
        match self {
            Self::Shared => PORT,
            Self::Own(steer) => PORT + 1 + steer as u16,
        }
    }
}

/// A memcached. It is killed on drop, or when this process ends.
pub struct Memcached {
    child: Child,
    control: BufReader<TcpStream>,
}

impl Memcached {
    /// Starts one in the namespace of this thread, and waits until it answers the client at an
    /// address.
    pub fn start(
        path: &Path,
        sockets: Sockets,
        workers: usize,
        net: &Net,
        at: SocketAddr,
    ) -> Result<Self> {
        let (port, threads) = (sockets.port().to_string(), workers.to_string());
        // As root: a change of the user would undo die_with_parent().
        let mut command = Command::new(path);
        command.args(["-u", "root", "-p", &port, "-U", &port, "-t", &threads]).args(OPTIONS);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let library = match sockets {
            Sockets::Shared => None,
            Sockets::Own(steer) => Some(reuseport::preload(&mut command, steer)?),
        };
        let child = sys::die_with_parent(&mut command).spawn();
        drop(library);
        let mut child = child.with_context(|| format!("cannot run {}", path.display()))?;
        match Self::connect(&mut child, net, at) {
            Ok(stream) => Ok(Self { child, control: BufReader::new(stream) }),
            Err(err) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(err)
            }
        }
    }

    fn connect(child: &mut Child, net: &Net, at: SocketAddr) -> Result<TcpStream> {
        let start = Instant::now();
        loop {
            match net.within(None, || Ok(TcpStream::connect_timeout(&at, PATIENCE)?)) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
                Err(err) if start.elapsed() > PATIENCE => {
                    return Err(err.context("memcached does not answer"));
                }
                Err(_) => {}
            }
            if let Some(status) = child.try_wait()? {
                bail!("memcached ended at once: {status}");
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Stores all keys of a case.
    pub fn store(&mut self, case: &Case) -> Result<()> {
        const CHUNK: usize = 1 << 16;

        let texts = Texts::new(case.value);
        let mut text = Vec::with_capacity(2 * CHUNK);
        for key in 0..case.keys {
            texts.set(key, true, &mut text);
            if text.len() >= CHUNK || key + 1 == case.keys {
                self.control.get_mut().write_all(&text).context("cannot fill memcached")?;
                text.clear();
            }
        }
        let stored = self.stat("curr_items")?;
        if stored != case.keys as u64 {
            bail!("memcached has {stored} of {} keys that were stored", case.keys);
        }
        Ok(())
    }

    /// How long its threads waited for their CPU.
    pub fn waited(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        tasks.into_iter().flatten().flatten().map(|task| client::cpu_wait(&task.path())).sum()
    }

    /// The number of keys that it was asked for, after it has processed all requests: until then
    /// the number grows from one query to the next.
    pub fn gets(&mut self) -> Result<u64> {
        let mut gets = self.stat("cmd_get")?;
        loop {
            let now = self.stat("cmd_get")?;
            if now == gets {
                return Ok(gets);
            }
            gets = now;
        }
    }

    /// One of its own counters.
    fn stat(&mut self, name: &str) -> Result<u64> {
        let mut found = None;
        self.control.get_mut().write_all(b"stats\r\n").context("cannot ask memcached")?;
        loop {
            let mut line = String::new();
            self.control.read_line(&mut line).context("memcached does not answer")?;
            match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                ["STAT", other, value] if other == name => found = Some(value.parse()?),
                ["STAT", ..] => {}
                ["END"] => {
                    return found.with_context(|| format!("memcached has no counter {name}"));
                }
                _ => bail!("memcached says {line:?} instead of its counters"),
            }
        }
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        // Both fail if the child has ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
