// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The life cycle of an attached instance: its pins, locks, hooks and replacement.

pub mod conflict;
pub mod hook;
pub mod lock;
pub mod pins;
pub mod state;
pub mod transaction;

use std::fmt;
use std::os::fd::AsFd as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::{MapCore as _, MapFlags};

use self::hook::{Hook, Place};
use self::lock::Lock;
use self::pins::{CONFIG, GONE, PROGRAMS, Pins};
use self::state::Activity;
use crate::abi::LAYOUT;
use crate::abi::types::{bmc_config, rodata};
use crate::host::sys::{self, ProgInfo};

/// The instance is not attached: exit code 3.
#[derive(Debug)]
pub struct NotAttached(String);

impl NotAttached {
    /// An interface is not attached.
    pub fn interface(name: &str) -> Self {
        Self(format!("{name} is not attached"))
    }

    /// An instance is not attached; the message lists those that are.
    pub fn instance(name: &str) -> Self {
        let others = pins::names().unwrap_or_default();
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

/// An attached instance.
pub struct Instance {
    /// Its pins.
    pub pins: Pins,
    /// Its name.
    pub name: String,
}

impl Instance {
    /// Finds an attached instance. The caller holds the lock.
    pub fn find(name: &str) -> Result<Self> {
        let pins = Pins::of(name);
        if !pins.exists() {
            bail!(NotAttached::instance(name));
        }
        Ok(Self { pins, name: name.into() })
    }

    /// Locks and finds an attached instance to look at.
    pub fn open(name: &str) -> Result<(Self, Option<Lock>)> {
        let lock = Lock::shared()?;
        Ok((Self::find(name)?, lock))
    }

    /// All instances but the one of this name.
    pub fn others(than: &str) -> Result<Vec<Self>> {
        let mut names = pins::names().context("cannot list the instances")?;
        names.retain(|name| name != than);
        Ok(names.into_iter().map(|name| Self { pins: Pins::of(&name), name }).collect())
    }

    /// The options that it was attached with.
    pub fn config(&self) -> Result<bmc_config> {
        self.rodata()?.map(|rodata| rodata.cfg).filter(|cfg| cfg.layout == LAYOUT).with_context(
            || {
                format!(
                    "instance {} is another version's (bmc attach --replace exchanges it)",
                    self.name
                )
            },
        )
    }

    /// All constants of its programs; `None` if another version made them.
    pub fn rodata(&self) -> Result<Option<rodata>> {
        let bytes = self.pins.map(CONFIG)?.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        Ok(bytes.and_then(|bytes| sys::plain_from(&bytes)))
    }

    /// Its programs, always in the same order; `bmc_rx` first.
    pub fn programs(&self) -> Result<Vec<ProgInfo>> {
        let watches = self.pins.watches_memcached();
        let names = PROGRAMS.into_iter().filter(|name| watches || *name != GONE);
        names.map(|name| Ok(sys::prog_info(self.pins.program(name)?.as_fd())?)).collect()
    }

    /// The ids of the programs that its hooks run.
    pub fn running(&self) -> Vec<u32> {
        let (owner, links) = (self.pins.owner(), self.pins.links());
        let hooks = self.hooks().unwrap_or_default();
        hooks.iter().filter_map(|hook| hook.program_id(owner, &links)).collect()
    }

    /// What the cache is doing.
    pub fn activity(&self) -> Result<Activity> {
        state::activity(&self.pins)
    }

    /// Whether the cache idles.
    pub fn is_idle(&self) -> Result<bool> {
        Ok(self.activity()? == Activity::Idle)
    }

    /// The interfaces that it is attached to, without the loopback.
    pub fn interfaces(&self) -> Result<Vec<AttachedInterface>> {
        let hooks = self.hooks()?;
        let links = self.pins.links();
        let is_here = self.pins.is_here();
        let mut interfaces = Vec::new();
        for hooks in hooks.chunk_by(|a, b| a.device.record() == b.device.record()) {
            if hooks[0].is_on_loopback() {
                continue;
            }
            let name = self.pins.name_of(&hooks[0].device);
            let mut running = 0;
            for hook in hooks {
                let owner = self.pins.owner();
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
            let health = match running {
                0 => Health::Gone,
                n if n == hooks.len() && all => Health::Up,
                _ => Health::Incomplete,
            };
            let mode = match hooks.iter().map(|hook| hook.place).max() {
                Some(Place::Native) => "native",
                Some(Place::Generic) => "generic",
                _ => "tc",
            };
            interfaces.push(AttachedInterface { name, mode, health });
        }
        Ok(interfaces)
    }

    /// Whether it watches the loopback.
    pub fn watches_loopback(&self) -> Result<bool> {
        Ok(self.hooks()?.iter().any(Hook::is_on_loopback))
    }

    /// Its hooks.
    pub fn hooks(&self) -> Result<Vec<Hook>> {
        self.pins
            .hooks()
            .with_context(|| format!("cannot list what instance {} is attached to", self.name))
    }

    /// Bytes of memory that its maps lock.
    pub fn memory_locked(&self) -> Result<u64> {
        let mut bytes = 0;
        for map in self.pins.maps()? {
            let memlock = map.query_fdinfo().context("cannot ask for a map's memory")?.memlock;
            bytes += memlock.unwrap_or_default();
        }
        Ok(bytes)
    }

    /// When its counters started at zero.
    pub fn since(&self) -> Option<SystemTime> {
        let secs = self.pins.noted("since")?.to_str()?.parse().ok()?;
        Some(UNIX_EPOCH + Duration::from_secs(secs))
    }

    /// The same in seconds since 1970.
    pub fn since_unix(&self) -> Option<u64> {
        Some(self.since()?.duration_since(UNIX_EPOCH).ok()?.as_secs())
    }
}

/// An interface that an instance is attached to.
#[derive(Clone, Debug)]
pub struct AttachedInterface {
    /// Its name.
    pub name: String,
    /// How bmc answers there: native, generic or tc.
    pub mode: &'static str,
    /// Whether all programs are in their places.
    pub health: Health,
}

/// Whether an interface's programs are in their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All of them are.
    Up,
    /// Some are not.
    Incomplete,
    /// None is: the interface has disappeared.
    Gone,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Incomplete => "incomplete",
            Self::Gone => "gone",
        })
    }
}
