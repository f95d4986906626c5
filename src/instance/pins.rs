// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The pins that record an attached instance:
//!
//! ```text
//! /sys/fs/bpf/bmc/                     locked by every command
//!     <instance>/
//!         config                       the .rodata of the programs: every option
//!         index slabs stats ...        the other maps
//!         rx rx_tc tx now flush gone   the programs
//!         watch                        the link of "gone", if the kernel can notice
//!         netns since                  text, as the target of a dangling symbolic link
//!         links/eth0_2_native ...      the hooks (hook.rs)
//!     new~<instance>/                  an instance that is being made or removed
//! ```

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use libbpf_rs::MapHandle;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::{AccessFlags, eaccess};

use super::hook::{Carrier, Device, Hook, Owner, qdisc_name, qdiscs, remove_qdisc};
use crate::host::{facts, sys};

/// The directory of all instances.
pub const ROOT: &str = "/sys/fs/bpf/bmc";

/// What the name of an unfinished instance starts with. No finished one can have it.
const UNFINISHED: &str = "new~";

/// The names of the pinned programs.
pub const PROGRAMS: [&str; 6] = ["rx", "rx_tc", "tx", "now", "flush", GONE];

/// The program that notices when memcached stops listening.
pub const GONE: &str = "gone";

/// The link of that program.
pub const WATCH: &str = "watch";

/// The map that holds the options.
pub const CONFIG: &str = "config";

/// The name that a map is pinned by; `None` for maps of libbpf's own making.
pub fn map_pin(map: &str) -> Option<&str> {
    if map.ends_with(".rodata") {
        return Some(CONFIG);
    }
    (!map.contains('.')).then(|| map.strip_prefix("bmc_").unwrap_or(map))
}

/// The names of all instances, sorted.
pub fn names() -> io::Result<Vec<String>> {
    let mut names = directories()?;
    names.retain(|name| !name.starts_with(UNFINISHED));
    Ok(names)
}

/// The names of all instances that a command has left unfinished, sorted.
pub fn unfinished() -> io::Result<Vec<String>> {
    let names = directories()?;
    Ok(names.iter().filter_map(|name| name.strip_prefix(UNFINISHED)).map(String::from).collect())
}

fn directories() -> io::Result<Vec<String>> {
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

/// Fails if this process may not create an instance on bpffs.
pub fn check_access() -> io::Result<()> {
    let all = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    match eaccess(ROOT, all) {
        Err(Errno::ENOENT) => Ok(eaccess(facts::BPFFS, AccessFlags::W_OK | AccessFlags::X_OK)?),
        access => Ok(access?),
    }
}

/// The pins of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    path: PathBuf,
    owner: Owner,
}

impl Pins {
    /// The place of an instance, whether it exists or not.
    pub fn of(instance: &str) -> Self {
        Self { path: Path::new(ROOT).join(instance), owner: Owner::new(instance) }
    }

    /// The place where this instance is made and removed.
    #[must_use]
    pub fn unfinished(&self) -> Self {
        let mut name = OsString::from(UNFINISHED);
        name.push(self.path.file_name().unwrap_or_default());
        Self { path: self.path.with_file_name(name), owner: self.owner }
    }

    /// Whether there is anything.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// A number that no other instance of this name has had or will have; `None` if there
    /// is none.
    pub fn identity(&self) -> Option<u64> {
        fs::metadata(&self.path).ok().map(|directory| directory.ino())
    }

    /// Makes an empty directory for an instance.
    pub fn create(&self) -> io::Result<()> {
        facts::make_directory(&self.path)?;
        facts::make_directory(&self.links())
    }

    /// The owner of this instance's filters.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The directory of the hooks.
    pub fn links(&self) -> PathBuf {
        self.path.join("links")
    }

    /// The path of any other pin.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The hooks, sorted by interface.
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
    pub fn maps(&self) -> Result<Vec<MapHandle>> {
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
        sys::pinned(&self.join(name))
            .with_context(|| format!("cannot open the program {}", self.join(name).display()))
    }

    /// Whether bmc notices when memcached stops listening.
    pub fn watches_memcached(&self) -> bool {
        self.join(WATCH).exists()
    }

    /// Records a line of text.
    pub fn note(&self, name: &str, text: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(text, self.join(name))
    }

    /// Reads text that [`Pins::note`] recorded.
    pub fn noted(&self, name: &str) -> Option<PathBuf> {
        fs::read_link(self.join(name)).ok()
    }

    /// Gives every hook the pinned program again, if it runs another one.
    pub fn restore_programs(&self) -> Result<()> {
        for hook in self.hooks()? {
            let prog = self.program(hook.place.program())?;
            let id = sys::prog_info(prog.as_fd())?.id;
            if hook.program_id(self.owner, &self.links()).is_some_and(|other| other != id) {
                hook.exchange(&self.links(), prog.as_fd(), self.owner)?;
            }
        }
        Ok(())
    }

    /// Whether the hooks can be removed from this network namespace. Filters can be
    /// removed only in their own, but they disappear with it.
    pub fn is_reachable(&self) -> bool {
        let has_filters = || {
            let is_filter = |hook: &Hook| hook.carrier == Carrier::Filter;
            self.hooks().unwrap_or_default().iter().any(is_filter)
                || qdiscs(&self.links()).is_ok_and(|qdiscs| !qdiscs.is_empty())
        };
        self.is_here()
            || !has_filters()
            || !self.noted("netns").is_some_and(|ns| facts::network_namespace_exists(&ns))
    }

    /// The name of an interface: the present one, if it can be seen from here.
    pub fn name_of(&self, device: &Device) -> String {
        if self.is_here() { device.name() } else { device.first_name.clone() }
    }

    /// Whether the instance was attached in this network namespace.
    pub fn is_here(&self) -> bool {
        self.noted("netns") == facts::network_namespace().ok()
    }

    /// Renames the directory.
    pub fn rename_to(&self, to: &Self) -> io::Result<()> {
        fs::rename(&self.path, &to.path)
    }

    /// Swaps the names of two directories, atomically.
    pub fn exchange(&self, with: &Self) -> io::Result<()> {
        renameat2(AT_FDCWD, &self.path, AT_FDCWD, &with.path, RenameFlags::RENAME_EXCHANGE)?;
        Ok(())
    }

    /// Removes everything: pins, hooks, filters and qdiscs; but not the filters and qdiscs
    /// that `kept` records as well.
    pub fn remove(&self, kept: Option<&Self>) -> io::Result<()> {
        let links = self.links();
        if links.is_dir() {
            // Filters and qdiscs of another network namespace are gone with it.
            let is_here = self.is_here();
            let stays = |name: String| {
                !is_here || kept.is_some_and(|kept| kept.links().join(name).exists())
            };
            let mut hooks = self.hooks()?;
            // Stop serving before watching.
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
}
