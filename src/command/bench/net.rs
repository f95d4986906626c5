// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A network that lives only as long as this process: two anonymous network namespaces, connected
//! by veth pairs.
//!
//! The main thread is in the server's namespace, where it starts memcached and bmc. Each client has
//! a thread in the client's namespace. The pins are in a private mount namespace. So nothing has to
//! be removed at the end, however this process ends.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::Link;
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns, unshare};
use nix::unistd::Pid;

use crate::host::facts;
use crate::skel::bench::BenchSkelBuilder;

/// The port of memcached. `bmc_echo` has the same constant.
pub const PORT: u16 = 11211;

/// The client's side of the network.
pub struct Net {
    client: Namespace,
    /// The links keep the programs attached.
    #[expect(dead_code, reason = "held, not used")]
    links: Vec<Link>,
}

impl Net {
    /// Enters new namespaces and makes a veth pair for each name. The one named `echo` gets a
    /// program that answers.
    pub fn new(names: &[&str], echo: &str) -> Result<Self> {
        enter_new(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        hide_mounts().context("cannot make a mount namespace of its own")?;
        let client = Namespace::new()?;
        ip("link set lo up")?;
        let mut links = Vec::new();
        for (pair, name) in names.iter().enumerate() {
            let netns = format!("/proc/{}/fd/{}", std::process::id(), client.0.as_raw_fd());
            ip(&format!("link add {name} type veth peer name {name} netns {netns}"))
                .context("cannot make a veth pair (does the kernel have CONFIG_VETH?)")?;
            set_up(name, pair, 1)?;
            // A veth accepts frames that XDP sends from the other end only while it has an XDP
            // program itself. All pairs get one, to be comparable.
            links.push(client.within(|| {
                set_up(name, pair, 2)?;
                attach(name, false)
            })?);
            if *name == echo {
                links.push(attach(name, true)?);
            }
        }
        Ok(Self { client, links })
    }

    /// The address of a memcached that listens on a port, on the pair with this number.
    pub fn server(pair: usize, port: u16) -> SocketAddr {
        (address(pair, 1), port).into()
    }

    /// Runs a closure in the client's namespace, pinned to a CPU if one is given. Sockets that it
    /// opens stay in that namespace.
    pub fn within<T: Send>(
        &self,
        cpu: Option<usize>,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        self.client.within(|| {
            cpu.map_or(Ok(()), |cpu| pin(&[cpu]))?;
            work()
        })
    }
}

/// A network namespace.
struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self> {
        in_thread(|| {
            enter_new(CloneFlags::CLONE_NEWNET)?;
            let file = File::open("/proc/thread-self/ns/net");
            Ok(Self(file.context("cannot open the client's network namespace")?))
        })
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .context("cannot enter the client's network namespace")?;
            work()
        })
    }
}

/// Runs a closure in a new thread, because each thread has its own network namespace.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, work)
            .context("cannot start a thread")?
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn enter_new(namespaces: CloneFlags) -> Result<()> {
    unshare(namespaces)
        .map_err(io::Error::from)
        .context("cannot make namespaces (in a container? it needs CAP_SYS_ADMIN)")
}

/// Hides later mounts from other processes, and mounts an empty bpffs.
fn hide_mounts() -> Result<()> {
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(io::Error::from)?;
    mount(Some("bpf"), facts::BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(io::Error::from)
        .with_context(|| format!("cannot mount a bpf file system on {}", facts::BPFFS))
}

fn address(pair: usize, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 11, 20 + pair as u8, host)
}

fn set_up(name: &str, pair: usize, host: u8) -> Result<()> {
    ip(&format!("address add {}/24 dev {name}", address(pair, host)))?;
    ip(&format!("link set {name} up"))
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip (Debian: apt install iproute2)")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Attaches the program that answers, or the one that passes all packets.
pub fn attach(device: &str, answers: bool) -> Result<Link> {
    let mut storage = MaybeUninit::uninit();
    let skel = BenchSkelBuilder::default().open(&mut storage)?.load();
    let skel = skel.context("cannot load the benchmark's programs")?;
    let program = if answers { &skel.progs.bmc_echo } else { &skel.progs.bmc_pass };
    let link = program.attach_xdp(facts::interface(device)?);
    link.with_context(|| format!("cannot attach a program to {device}"))
}

/// The CPUs that this process may use.
pub fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask for the CPUs")?;
    Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect())
}

/// Pins this thread, and the processes that it starts, to these CPUs.
pub fn pin(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter()
        .try_for_each(|cpu| set.set(*cpu))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("cannot run on the CPUs {cpus:?}"))
}
