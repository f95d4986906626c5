// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc attach`: checks that nothing is in the way, loads the programs, makes or takes over
//! the maps, and puts the programs in their places.

use std::io::Write;
use std::mem::MaybeUninit;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{detach, stats};
use crate::host::facts;
use crate::instance::conflict::Conflict;
use crate::instance::hook::{Device, Place};
use crate::instance::lock::Lock;
use crate::instance::pins::Pins;
use crate::instance::transaction::{Target, Transaction, take_over};
use crate::instance::{Instance, NotAttached};
use crate::load::config::keeps_entries_valid;
use crate::load::options::{self, Mode};
use crate::load::programs::Loading;
use crate::memcached::probe;
use crate::message;

/// How often `--foreground` prints statistics.
const INTERVAL: Duration = Duration::from_secs(1);

/// The options of `bmc attach`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Interfaces that memcached's clients come in by.
    pub interfaces: Vec<String>,
    /// How the cache is set up.
    pub cache: options::Options,
    /// Whether the loopback is watched for writes.
    pub watch_loopback: bool,
    /// Whether what is attached may be replaced.
    pub replace: bool,
    /// Whether this process stays until it is interrupted, and then detaches.
    pub foreground: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            cache: options::Options::default(),
            watch_loopback: true,
            replace: false,
            foreground: false,
        }
    }
}

/// `bmc attach`, with `--foreground` or without.
pub fn run(options: &Options, name: &str, out: &mut impl Write) -> Result<()> {
    if options.foreground { foreground(options, name, out) } else { attach(options, name) }
}

/// Attaches an instance.
pub fn attach(options: &Options, name: &str) -> Result<()> {
    facts::check_capabilities()?;
    facts::mount_bpffs(options.foreground)?;
    let _lock = Lock::create()?;
    let old = Pins::of(name).exists().then(|| Instance::find(name)).transpose()?;
    if let Some(old) = &old {
        check_replaceable(old, options)?;
    }
    let targets = targets(options)?;
    for target in &targets {
        check_free(target, name, old.as_ref())?;
    }

    let cache = &options.cache;
    let mut storage = MaybeUninit::uninit();
    let mut loading = Loading::open(cache.memory, &mut storage)?;
    let kept = match &old {
        Some(old) => take_over(&mut loading, old)?,
        None => None,
    };
    if kept.is_none() {
        check_memory(cache.memory)?;
    }
    probe::check(&options.interfaces, &cache.ports)?;
    let config = loading.configure(cache, kept.as_ref())?;
    let skel = loading.load()?;

    let pins = Pins::of(name);
    let mut transaction = Transaction::begin(&pins, old.as_ref(), &skel, kept.is_some())?;
    transaction.watch_memcached(&config);
    // The cache keeps working meanwhile only if no entry can become wrong by that: a place
    // that was not watched may have let writes through.
    let keeps_caching = match (&kept, &old) {
        (Some(was), Some(old)) => {
            keeps_entries_valid(was, &config)
                && watches_all(old, &targets)?
                && old.pins.watches_memcached()
                && !old.is_idle()?
        }
        _ => false,
    };
    if !keeps_caching {
        transaction.idle()?;
    }
    for target in &targets {
        transaction.place(target)?;
    }
    if !keeps_caching {
        // Later ones will be seen on the wire.
        let pending = probe::pending_flushes(&options.interfaces, &cache.ports)?;
        transaction.expect_flushes(pending)?;
    }
    transaction.commit(!keeps_caching)
}

/// Whether an instance watches every place of these, in tc.
fn watches_all(old: &Instance, targets: &[Target]) -> Result<bool> {
    let hooks = old.hooks()?;
    Ok(targets.iter().filter(|target| !target.place.is_xdp()).all(|target| {
        hooks.iter().any(|hook| {
            hook.device.index == target.device.index
                && hook.place == target.place
                && hook.is_in_place(old.pins.owner(), &old.pins.links())
        })
    }))
}

fn check_replaceable(old: &Instance, options: &Options) -> Result<()> {
    if !options.replace {
        let ifaces: Vec<_> = old.interfaces()?.into_iter().map(|iface| iface.name).collect();
        bail!("already attached to {} (use --replace to change that)", ifaces.join(", "));
    }
    if !old.pins.is_here() {
        bail!(
            "instance {} is attached in another network namespace (bmc detach it, or use another \
             --instance)",
            old.name
        );
    }
    Ok(())
}

/// All places, in the order in which they are taken, the loopback first.
fn targets(options: &Options) -> Result<Vec<Target>> {
    let mut devices: Vec<Device> = Vec::new();
    if options.watch_loopback {
        devices.push(Device::named("lo")?);
    }
    for iface in &options.interfaces {
        if !devices.iter().any(|other| other.first_name == *iface) {
            devices.push(Device::named(iface)?);
        }
    }
    let mode = options.cache.mode;
    let xdp = match mode {
        Mode::Auto | Mode::Native => Some(Place::Native),
        Mode::Generic => Some(Place::Generic),
        Mode::Tc => None,
    };
    let mut targets = Vec::new();
    for place in [Some(Place::Egress), Some(Place::Ingress), xdp].into_iter().flatten() {
        for device in &devices {
            if !(place.is_xdp() && device.first_name == "lo") {
                let optional = mode == Mode::Auto && place.is_xdp();
                targets.push(Target { device: device.clone(), place, optional });
            }
        }
    }
    Ok(targets)
}

/// Fails if another instance or a foreign XDP program is in a place that bmc wants.
fn check_free(target: &Target, name: &str, old: Option<&Instance>) -> Result<()> {
    let iface = &target.device.first_name;
    match Conflict::find(&target.device, target.place, name, old)? {
        Some(conflict) => bail!("{iface} {conflict} ({})", conflict.way_out()),
        None => Ok(()),
    }
}

/// Fails if locking so much memory could make the kernel kill processes.
fn check_memory(memory: u64) -> Result<()> {
    let available = facts::memory_available()?;
    if memory > facts::memory_to_lock(available) {
        bail!("--memory {}M is more than is available: {}M", memory >> 20, available >> 20);
    }
    Ok(())
}

/// Attaches, prints statistics until a signal arrives, and detaches.
fn foreground(options: &Options, name: &str, out: &mut impl Write) -> Result<()> {
    let (ended, end) = mpsc::channel();
    // Set before anything is attached: a signal must not leave that behind.
    ctrlc::set_handler(move || _ = ended.send(())).context("cannot wait for signals")?;
    attach(options, name)?;
    let guard = Attached(name);
    let followed = stats::follow(name, || end.recv_timeout(INTERVAL).is_err(), out);
    if followed.as_ref().is_err_and(anyhow::Error::is::<NotAttached>) {
        std::mem::forget(guard); // somebody else has detached it
        return followed;
    }
    guard.detach().and(followed)
}

/// Detaches the instance of this name on drop, even in a panic.
pub struct Attached<'a>(pub &'a str);

impl Attached<'_> {
    /// Detaches it, and returns whether that worked.
    pub fn detach(self) -> Result<()> {
        let name = self.0;
        std::mem::forget(self);
        detach::run(name, &[])
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Err(err) = detach::run(self.0, &[]) {
            message::tell(&format!("{err:#}"));
        }
    }
}
