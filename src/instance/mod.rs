// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! An attached bmc, as its pins record it:
//!
//! ```text
//! /sys/fs/bpf/bmc/                     the lock of all instances
//!     <instance>/
//!         config                       the programs' .rodata: every option
//!         index slabs stats ...        the other maps
//!         rx rx_tc tx now flush gone   the programs
//!         watch                        the link of the last, if the kernel can
//!         netns since                  symbolic links to no file: plain text
//!         links/eth0_native ...        the hooks (hook.rs)
//!     new~<instance>/                  one that is being made or removed
//! ```
//!
//! An instance is built and taken apart under a name that no instance can have,
//! and given and taken its own name by one rename. Wherever the tool is killed,
//! the next verb removes what is left under the other name. While programs are
//! exchanged or only some are in place, the cache idles: it is empty and no
//! lease is given (see [`set_idle`]).

pub mod hook;

use std::fmt;
use std::fs;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use nix::fcntl::RenameFlags;
use nix::fcntl::renameat2;
use nix::unistd::AccessFlags;
use nix::unistd::eaccess;

use crate::host::facts as system;
use crate::host::sys as kernel;
use crate::host::sys::ProgInfo;
use crate::instance::hook::Carrier;
use crate::instance::hook::Device;
use crate::instance::hook::Hook;
use crate::instance::hook::Owner;
use crate::instance::hook::Place;
use crate::instance::hook::qdisc_name;
use crate::instance::hook::qdiscs;
use crate::instance::hook::remove_qdisc;
use crate::load::layout::LAYOUT;
use crate::message;
use crate::skel::types::bmc_class;
use crate::skel::types::bmc_config;
use crate::skel::types::bmc_global;
use crate::skel::types::bmc_pool;
use crate::skel::types::bmc_slab;
use crate::skel::types::bmc_slot;
use crate::skel::types::rodata;
use crate::view::entries;

/// `BMC_UNIT`, `BMC_SLAB_SIZE` and `SLOT_REACH` of `bpf/`, in bytes.
const UNIT: u64 = entries::UNIT as u64;
const SLAB: u64 = size_of::<bmc_slab>() as u64;
const SLOT_REACH: u64 = std::mem::offset_of!(bmc_slot, key) as u64 + 3 * 512;

const ROOT: &str = "/sys/fs/bpf/bmc";
const NEW: &str = "new~";

/// The programs, as they are pinned.
const PROGRAMS: [&str; 6] = ["rx", "rx_tc", "tx", "now", "flush", GONE];

/// The one that is told when memcached stops to listen.
pub const GONE: &str = "gone";

/// Its link.
pub const WATCH: &str = "watch";

/// The instance is not attached: exit code 3.
#[derive(Debug)]
pub struct NotAttached(String);

impl NotAttached {
    /// Says so about an interface.
    fn interface(name: &str) -> Self {
        Self(format!("{name} is not attached"))
    }

    /// Says so about an instance, and which ones are.
    fn instance(name: &str) -> Self {
        let mut others = names().unwrap_or_default();
        others.retain(|other| !other.starts_with(NEW));
        let hint = if others.is_empty() {
            String::new()
        } else {
            format!(" (attached are: {}; --instance chooses)", others.join(", "))
        };
        Self(format!("instance {name} is not attached{hint}"))
    }
}

impl fmt::Display for NotAttached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotAttached {}

/// Keeps other processes from changing any instance.
pub struct Lock {
    #[expect(dead_code, reason = "held, not used")]
    root: Flock<File>,
    is_exclusive: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_exclusive {
            // Fails if there is an instance, which is as good.
            let _ = fs::remove_dir(ROOT);
        }
    }
}

impl Lock {
    /// For nouns: any number at once. None if there is nothing to lock.
    pub fn shared() -> Result<Option<Self>> {
        Self::take(FlockArg::LockShared)
    }

    /// For verbs on what there is: alone, and without leftovers.
    pub fn exclusive() -> Result<Option<Self>> {
        let lock = Self::take(FlockArg::LockExclusive)?;
        if lock.is_some() {
            sweep().context("cannot remove what an interrupted bmc left")?;
        }
        Ok(lock)
    }

    /// For attach: as [`Lock::exclusive`], but makes what there is to lock.
    pub fn create() -> Result<Self> {
        loop {
            system::make_directory(Path::new(ROOT))
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
            // The last instance's end removes the directory.
            let locked = root.metadata()?;
            if fs::metadata(ROOT).is_ok_and(|now| now.ino() == locked.ino()) {
                let is_exclusive = matches!(how, FlockArg::LockExclusive);
                return Ok(Some(Self { root, is_exclusive }));
            }
        }
    }
}

/// Removes what interrupted verbs have left, and puts back what they exchanged.
fn sweep() -> Result<()> {
    for name in names()? {
        let Some(instance) = name.strip_prefix(NEW) else { continue };
        let own = Dir::of(instance);
        let left = own.building();
        if !left.is_reachable() || !own.is_reachable() {
            message::detail(&format!("instance {instance} left something in another namespace"));
            continue;
        }
        if !own.exists() {
            left.remove(None)?;
            continue;
        }
        if let Err(err) = own.put_back() {
            message::tell(&format!("cannot put back what an interrupted bmc exchanged: {err:#}"));
        }
        left.remove(Some(&own))?;
        if (Instance { dir: own.clone(), name: instance.into() }).is_idle()? {
            flush(&own)?;
        }
    }
    Ok(())
}

fn names() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(ROOT) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<_> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

/// The pins of one instance.
#[derive(Clone, Debug)]
pub struct Dir {
    path: PathBuf,
    owner: Owner,
}

impl Dir {
    /// Where an instance is or would be.
    pub fn of(instance: &str) -> Self {
        Self { path: Path::new(ROOT).join(instance), owner: Owner::new(instance) }
    }

    /// Where it is made or removed.
    #[must_use]
    pub fn building(&self) -> Self {
        let mut name = std::ffi::OsString::from(NEW);
        name.push(self.path.file_name().unwrap_or_default());
        Self { path: self.path.with_file_name(name), owner: self.owner }
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// What tells it from what was or will be attached by the same name; `None` if
    /// it is not there.
    pub fn identity(&self) -> Option<u64> {
        fs::metadata(&self.path).ok().map(|directory| directory.ino())
    }

    /// Makes it, empty.
    pub fn create(&self) -> io::Result<()> {
        system::make_directory(&self.path)?;
        system::make_directory(&self.links())
    }

    /// Of whom its filters are.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Where its hooks are.
    pub fn links(&self) -> PathBuf {
        self.path.join("links")
    }

    /// Where something else is.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Its hooks.
    pub fn hooks(&self) -> io::Result<Vec<Hook>> {
        let mut hooks = Vec::new();
        let links = self.links();
        for entry in fs::read_dir(&links)? {
            let name = entry?.file_name();
            hooks.extend(name.to_str().and_then(|name| Hook::pinned(name, &links)));
        }
        hooks.sort_by_key(|hook| (hook.device.record(), hook.place));
        Ok(hooks)
    }

    /// Opens one of the maps.
    pub fn map(&self, name: &str) -> Result<MapHandle> {
        MapHandle::from_pinned_path(self.join(name))
            .with_context(|| format!("cannot open the map {}", self.join(name).display()))
    }

    /// Opens all of the maps.
    fn maps(&self) -> Result<Vec<MapHandle>> {
        let mut maps = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_map = !PROGRAMS.iter().chain([&WATCH]).any(|other| name == *other);
            if entry.file_type()?.is_file() && is_map {
                maps.push(self.map(&name.to_string_lossy())?);
            }
        }
        Ok(maps)
    }

    /// Opens one of the programs.
    pub fn program(&self, name: &str) -> Result<OwnedFd> {
        kernel::pinned(&self.join(name))
            .with_context(|| format!("cannot open the program {}", self.join(name).display()))
    }

    /// Whether it is noticed when memcached stops to listen.
    pub fn watches_memcached(&self) -> bool {
        self.join(WATCH).exists()
    }

    /// Records a word of text.
    pub fn note(&self, name: &str, text: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(text, self.join(name))
    }

    /// Reads what was noted.
    pub fn noted(&self, name: &str) -> Option<PathBuf> {
        fs::read_link(self.join(name)).ok()
    }

    /// Gives the hooks that have another program the one that is pinned.
    fn put_back(&self) -> Result<()> {
        for hook in self.hooks()? {
            let prog = self.program(hook.place.program())?;
            let id = kernel::prog_info(prog.as_fd())?.id;
            if hook.program_id(self.owner, &self.links()).is_some_and(|other| other != id) {
                hook.exchange(&self.links(), prog.as_fd(), self.owner)?;
            }
        }
        Ok(())
    }

    /// Whether its hooks can be removed from here. Filters can only be in their
    /// network namespace, and go with it.
    fn is_reachable(&self) -> bool {
        let has_filters = || {
            let is_filter = |hook: &Hook| hook.carrier == Carrier::Filter;
            self.hooks().unwrap_or_default().iter().any(is_filter)
                || qdiscs(&self.links()).is_ok_and(|qdiscs| !qdiscs.is_empty())
        };
        self.is_here()
            || !has_filters()
            || !self.noted("netns").is_some_and(|ns| system::network_namespace_exists(&ns))
    }

    /// What an interface is called, as far as that can be known here.
    pub fn name_of(&self, device: &Device) -> String {
        if self.is_here() { device.name() } else { device.first_name.clone() }
    }

    /// Whether it was attached in this network namespace.
    pub fn is_here(&self) -> bool {
        self.noted("netns") == system::network_namespace().ok()
    }

    /// Takes the instance's own name.
    pub fn rename_to(&self, to: &Self) -> io::Result<()> {
        fs::rename(&self.path, &to.path)
    }

    /// Changes names with another.
    pub fn exchange(&self, with: &Self) -> io::Result<()> {
        renameat2(AT_FDCWD, &self.path, AT_FDCWD, &with.path, RenameFlags::RENAME_EXCHANGE)?;
        Ok(())
    }

    /// Removes it and all its hooks, but for filters and qdiscs that `kept`
    /// records as well.
    pub fn remove(&self, kept: Option<&Self>) -> io::Result<()> {
        let links = self.links();
        if links.is_dir() {
            // What a namespace had is gone with it.
            let is_here = self.is_here();
            let stays = |name: String| {
                !is_here || kept.is_some_and(|kept| kept.links().join(name).exists())
            };
            let mut hooks = self.hooks()?;
            // What serves goes first.
            hooks.sort_by_key(|hook| std::cmp::Reverse(hook.place));
            for hook in hooks {
                hook.remove(&links, self.owner, stays(hook.name()))?;
            }
            for device in qdiscs(&links)? {
                remove_qdisc(&device, &links, stays(qdisc_name(&device)))?;
            }
            fs::remove_dir(links)?;
        }
        for entry in fs::read_dir(&self.path)? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir(&self.path)
    }

    /// Empties the cache and lets it idle.
    pub fn idle(&self) -> Result<()> {
        flush(self)?;
        set_idle(&self.map("global")?)
    }
}

/// Has a cache idle until it is flushed: no lease is given before the end of
/// time, so nothing is filled. An empty one thus stays empty.
pub fn set_idle(global: &MapHandle) -> Result<()> {
    kernel::store(global, std::mem::offset_of!(bmc_global, quarantine), u64::MAX)
        .context("cannot let the cache idle")
}

/// What a cache does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It answers what it can.
    Caching,
    /// So little is asked over UDP, for what goes on over TCP, that it would cost more than
    /// it saves. So it holds nothing, and what memcached sends over TCP is not looked at.
    Asleep,
    /// Nothing, because an attach or detach was interrupted.
    Idle,
}

/// How many delayed `flush_all`s a cache can keep in mind: `BMC_DUES`.
pub const FLUSHES_MAX: usize = {
    const fn len<const N: usize>(_: fn(&bmc_global) -> &[u64; N]) -> usize {
        N
    }
    len(|global| &global.due)
};

/// Has a cache keep in mind when delayed `flush_all`s take effect, in seconds of
/// `CLOCK_MONOTONIC`; no more than [`FLUSHES_MAX`]. The last place first: the first one is
/// for those that come by.
pub fn set_due(global: &MapHandle, seconds: &[u64]) -> Result<()> {
    let due = std::mem::offset_of!(bmc_global, due);
    for (place, second) in (0..FLUSHES_MAX).rev().zip(seconds) {
        kernel::store(global, due + place * size_of::<u64>(), second * 1_000_000_000)
            .context("cannot tell the cache of a flush_all")?;
    }
    Ok(())
}

/// Forgets every entry, and ends idling.
pub fn flush(dir: &Dir) -> Result<()> {
    let flush = dir.program("flush")?;
    match kernel::prog_run(flush.as_fd()).context("cannot run the program that flushes")? {
        0 => Ok(()),
        ret => bail!("the program that flushes failed: {ret}"),
    }
}

/// The time by which entries end, in jiffies: its lower 32 bits.
pub fn now(dir: &Dir) -> Result<u32> {
    let now = dir.program("now")?;
    kernel::prog_run(now.as_fd()).context("cannot run the program that tells the time")
}

/// The ports that are watched with these options.
pub fn ports(config: &bmc_config) -> Vec<u16> {
    config.ports.iter().take(config.nr_ports as usize).map(|port| u16::from_be(*port)).collect()
}

/// Fails if this process may not make an instance, for want of permission at bpffs.
pub fn check_access() -> io::Result<()> {
    let all = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    match eaccess(ROOT, all) {
        Err(Errno::ENOENT) => Ok(eaccess(system::BPFFS, AccessFlags::W_OK | AccessFlags::X_OK)?),
        access => Ok(access?),
    }
}

/// An attached bmc.
pub struct Instance {
    /// Its pins.
    pub dir: Dir,
    /// Its name.
    pub name: String,
}

impl Instance {
    /// Finds an attached instance, for which the caller has the lock.
    pub fn find(name: &str) -> Result<Self> {
        let dir = Dir::of(name);
        if !dir.exists() {
            bail!(NotAttached::instance(name));
        }
        Ok(Self { dir, name: name.into() })
    }

    /// Finds an attached instance to look at.
    pub fn open(name: &str) -> Result<(Self, Option<Lock>)> {
        let lock = Lock::shared()?;
        Ok((Self::find(name)?, lock))
    }

    /// The options that it was attached with.
    pub fn config(&self) -> Result<bmc_config> {
        let bytes = self.dir.map("config")?.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        bytes
            .and_then(|bytes| kernel::plain_from::<rodata>(&bytes))
            .map(|rodata| rodata.cfg)
            .filter(|cfg| cfg.layout == LAYOUT)
            .with_context(|| {
                format!(
                    "instance {} is another version's (bmc attach --replace exchanges it)",
                    self.name
                )
            })
    }

    /// Its programs, from `bmc_rx` on, always in the same order.
    pub fn programs(&self) -> Result<Vec<ProgInfo>> {
        let watches = self.dir.watches_memcached();
        let names = PROGRAMS.into_iter().filter(|name| watches || *name != GONE);
        names.map(|name| Ok(kernel::prog_info(self.dir.program(name)?.as_fd())?)).collect()
    }

    /// What the cache does at present.
    pub fn activity(&self) -> Result<Activity> {
        let bytes = self.dir.map("global")?.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        let global = bytes.and_then(|bytes| kernel::plain_from::<bmc_global>(&bytes));
        Ok(match global.context("the map global is another version's")? {
            bmc_global { quarantine: u64::MAX, .. } => Activity::Idle,
            bmc_global { word, .. } if word & entries::DIRTY != 0 => Activity::Asleep,
            _ => Activity::Caching,
        })
    }

    /// Whether it idles.
    pub fn is_idle(&self) -> Result<bool> {
        Ok(self.activity()? == Activity::Idle)
    }

    /// The interfaces that it is attached to; not the loopback.
    pub fn interfaces(&self) -> Result<Vec<Interface>> {
        let hooks = self.hooks()?;
        let links = self.dir.links();
        let is_here = self.dir.is_here();
        let mut interfaces = Vec::new();
        for hooks in hooks.chunk_by(|a, b| a.device.record() == b.device.record()) {
            if hooks[0].is_on_loopback() {
                continue;
            }
            let name = self.dir.name_of(&hooks[0].device);
            let mut running = 0;
            for hook in hooks {
                let owner = self.dir.owner();
                let runs = if is_here {
                    let in_place = hook.try_is_in_place(owner, &links);
                    in_place.with_context(|| format!("cannot see what runs on {name}"))?
                } else {
                    hook.program_id(owner, &links).is_some()
                };
                running += usize::from(runs);
            }
            let all = [Place::Egress, Place::Ingress]
                .iter()
                .all(|place| hooks.iter().any(|hook| hook.place == *place));
            let state = match running {
                0 => State::Gone,
                n if n == hooks.len() && all => State::Up,
                _ => State::Incomplete,
            };
            let mode = match hooks.iter().map(|hook| hook.place).max() {
                Some(Place::Native) => "native",
                Some(Place::Generic) => "generic",
                _ => "tc",
            };
            interfaces.push(Interface { name, mode, state });
        }
        Ok(interfaces)
    }

    /// Whether it watches the loopback.
    pub fn watches_loopback(&self) -> Result<bool> {
        Ok(self.hooks()?.iter().any(Hook::is_on_loopback))
    }

    /// Its hooks.
    pub fn hooks(&self) -> Result<Vec<Hook>> {
        self.dir
            .hooks()
            .with_context(|| format!("cannot list what instance {} is attached to", self.name))
    }

    /// Bytes of memory that its maps lock.
    pub fn memory_locked(&self) -> Result<u64> {
        let mut bytes = 0;
        for map in self.dir.maps()? {
            let memlock = map.query_fdinfo().context("cannot ask for a map's memory")?.memlock;
            bytes += memlock.unwrap_or_default();
        }
        Ok(bytes)
    }

    /// What became of the memory for slots, by their size; classes that have none
    /// are left out.
    pub fn classes(&self) -> Result<Vec<Class>> {
        let first = 0_u32.to_ne_bytes();
        let lookup = |map| -> Result<_> { Ok(self.dir.map(map)?.lookup(&first, MapFlags::ANY)?) };
        let rodata = lookup("config")?.and_then(|bytes| kernel::plain_from::<rodata>(&bytes));
        let pool = lookup("pool")?.and_then(|bytes| kernel::plain_from::<bmc_pool>(&bytes));
        let (Some(rodata), Some(pool)) = (rodata, pool) else {
            bail!("the cache is another version's");
        };
        let classes = rodata.class_units.iter().zip(&pool.classes);
        Ok(classes.filter_map(|(units, class)| Class::new(*units, class)).collect())
    }

    /// Since when its counters count.
    pub fn since(&self) -> Option<SystemTime> {
        let secs = self.dir.noted("since")?.to_str()?.parse().ok()?;
        Some(UNIX_EPOCH + Duration::from_secs(secs))
    }

    /// The same in seconds since 1970.
    pub fn since_unix(&self) -> Option<u64> {
        Some(self.since()?.duration_since(UNIX_EPOCH).ok()?.as_secs())
    }
}

/// The slots of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Bytes of a slot.
    pub size: u64,
    /// Slabs of 256 KiB that are cut into them.
    pub slabs: u64,
    /// How many that makes.
    pub slots: u64,
    /// Of them, those that hold, or once held, an entry.
    pub used: u64,
}

impl Class {
    /// Memory of the slabs, in bytes.
    pub fn bytes(&self) -> u64 {
        self.slabs * SLAB
    }

    fn new(units: u8, class: &bmc_class) -> Option<Self> {
        let size = u64::from(units) * UNIT;
        let each = (SLAB - SLOT_REACH) / UNIT / u64::from(units) + 1;
        let slabs = u64::from(class.slabs);
        let older = slabs.checked_sub(1)?;
        Some(Self {
            size,
            slabs,
            slots: slabs * each,
            used: older * each + u64::from(class.taken).min(each),
        })
    }
}

/// How an interface is attached to.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it came to: native, generic or tc.
    pub mode: &'static str,
    /// Whether everything is in its place.
    pub state: State,
}

/// Whether an interface's programs are in their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They are.
    Up,
    /// Some are not.
    Incomplete,
    /// The interface has disappeared.
    Gone,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Incomplete => "incomplete",
            Self::Gone => "gone",
        })
    }
}

/// All instances but one.
pub fn others(than: &str) -> Result<Vec<Instance>> {
    let mut names = names().context("cannot list the instances")?;
    names.retain(|name| name != than && !name.starts_with(NEW));
    Ok(names.into_iter().map(|name| Instance { dir: Dir::of(&name), name }).collect())
}

/// Detaches an instance from interfaces, or from all when none is given.
pub fn detach(name: &str, interfaces: &[String]) -> Result<()> {
    let Some(_lock) = Lock::exclusive()? else {
        bail!(NotAttached::instance(name));
    };
    let instance = Instance::find(name)?;
    let dir = &instance.dir;
    if !dir.is_reachable() {
        bail!("instance {name} is attached in another network namespace: detach it there");
    }
    let hooks = instance.hooks()?;
    let is_named = |device: &Device| interfaces.contains(&dir.name_of(device));
    let is_attached = |iface: &String| hooks.iter().any(|hook| dir.name_of(&hook.device) == *iface);
    if let Some(iface) = interfaces.iter().find(|iface| !is_attached(iface)) {
        bail!(NotAttached::interface(iface));
    }
    let stays = |hook: &Hook| !hook.is_on_loopback() && !is_named(&hook.device);
    if interfaces.is_empty() || !hooks.iter().any(stays) {
        message::detail(&format!("detaching instance {name}"));
        // A cache that cannot idle, because it is damaged, must go all the more.
        if let Err(err) = dir.idle() {
            message::detail(&format!("{err:#}"));
        }
        return remove(dir).context("cannot detach");
    }
    let mut hooks = hooks;
    hooks.retain(|hook| is_named(&hook.device));
    hooks.sort_by_key(|hook| std::cmp::Reverse(hook.place));
    for hook in hooks {
        let iface = dir.name_of(&hook.device);
        message::detail(&format!("detaching from {iface}"));
        hook.remove(&dir.links(), dir.owner(), false)
            .with_context(|| format!("cannot detach from {iface}"))?;
    }
    for device in qdiscs(&dir.links())?.iter().filter(|device| is_named(device)) {
        remove_qdisc(device, &dir.links(), false)
            .with_context(|| format!("cannot remove the qdisc of {}", dir.name_of(device)))?;
    }
    Ok(())
}

fn remove(dir: &Dir) -> io::Result<()> {
    let leaving = dir.building();
    dir.rename_to(&leaving)?;
    leaving.remove(None)
}

/// `bmc flush`.
pub fn flush_named(name: &str) -> Result<()> {
    let _lock = Lock::exclusive()?;
    flush(&Instance::find(name)?.dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_slots_of_a_class_as_the_programs_do() {
        let header = include_str!("../../bpf/slab.bpf.h");
        assert!(header.contains("SLOT_REACH = BMC_SLOT_KEY + 3 * CSUM_CHUNK,"));
        assert!(header.contains("(BMC_SLAB_SIZE - SLOT_REACH) / BMC_UNIT / units + 1"));

        let class = |slabs, taken| Class::new(5, &bmc_class { slabs, taken, ..Default::default() });
        assert_eq!(class(0, 0), None);
        assert_eq!(class(1, 5), Some(Class { size: 80, slabs: 1, slots: 3258, used: 5 }));
        assert_eq!(
            class(3, 7),
            Some(Class { size: 80, slabs: 3, slots: 9774, used: 6523 }),
            "all of the older slabs are used"
        );
    }
}
