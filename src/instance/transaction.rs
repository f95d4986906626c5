// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Puts a new instance in place of an old one, or of none: completely or not at all.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use libbpf_rs::MapCore as _;
use libbpf_rs::skel::Skel as _;
use nix::errno::Errno;

use super::hook::{Device, Hook, Place, carry_qdisc_over};
use super::pins::{CONFIG, GONE, Pins, WATCH, map_pin};
use super::{Instance, state};
use crate::abi::FLUSHES_MAX;
use crate::abi::types::bmc_config;
use crate::host::{facts, netlink, sys};
use crate::load::programs::{Loading, load_gone};
use crate::message;
use crate::skel::BmcSkel;

/// A place that is to get a program.
pub struct Target {
    /// The interface.
    pub device: Device,
    /// The place on it.
    pub place: Place,
    /// Whether to do without the program if the driver refuses it.
    pub optional: bool,
}

/// Has the programs use the maps of an existing instance, and returns its configuration.
/// `None` if its maps are not exactly what would be created.
pub fn take_over(loading: &mut Loading<'_>, old: &Instance) -> Result<Option<bmc_config>> {
    let Ok(config) = old.config() else {
        message::tell("the cache is another version's: starting with an empty one");
        return Ok(None);
    };
    let mut handles = Vec::new();
    for map in loading.object().maps() {
        let name = map.name().to_string_lossy().into_owned();
        let Some(pin) = map_pin(&name).filter(|pin| *pin != CONFIG) else { continue };
        let handle = old.pins.map(pin).ok().filter(|handle| {
            handle.map_type() == map.map_type()
                && handle.key_size() == map.key_size()
                && handle.value_size() == map.value_size()
                && handle.max_entries() == map.max_entries()
        });
        let Some(handle) = handle else {
            message::tell("the cache has another size or layout: starting with an empty one");
            return Ok(None);
        };
        handles.push((name, handle));
    }
    for mut map in loading.maps_mut() {
        if let Some((_, handle)) = handles.iter().find(|(name, _)| map.name() == name.as_str()) {
            map.reuse_fd(handle.as_fd()).context("cannot take the maps over")?;
        }
    }
    Ok(Some(config))
}

/// An instance in the making. Unless it is committed, everything is undone on drop.
pub struct Transaction<'a> {
    own: &'a Pins,
    /// The pins of the new instance, until they get its name.
    new: Pins,
    old: Option<&'a Instance>,
    skel: &'a BmcSkel<'a>,
    keeps_maps: bool,
    /// Whether the old instance was made to idle.
    idled: bool,
    undo: Vec<Undo>,
    is_committed: bool,
}

/// How to restore one place of the old instance.
enum Undo {
    Exchange(Hook),
    Reattach(Hook),
}

impl<'a> Transaction<'a> {
    /// Pins the loaded maps and programs. `keeps_maps` says that the maps are those of the
    /// old instance.
    pub fn begin(
        own: &'a Pins,
        old: Option<&'a Instance>,
        skel: &'a BmcSkel<'a>,
        keeps_maps: bool,
    ) -> Result<Self> {
        let transaction = Self {
            own,
            new: own.unfinished(),
            old,
            skel,
            keeps_maps,
            idled: false,
            undo: Vec::new(),
            is_committed: false,
        };
        transaction.pin().context("cannot pin the maps and programs")?;
        Ok(transaction)
    }

    fn pin(&self) -> Result<()> {
        self.new.create()?;
        let object = self.skel.object();
        for map in object.maps() {
            if let Some(name) = map.name().to_str().and_then(map_pin) {
                sys::pin(map.as_fd(), &self.new.join(name))?;
            }
        }
        for (name, prog) in self.programs() {
            sys::pin(prog, &self.new.join(name))?;
        }
        self.new.note("netns", &facts::network_namespace()?)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
        let since = self.old.filter(|_| self.keeps_maps).and_then(|old| old.pins.noted("since"));
        self.new.note("since", &since.unwrap_or_else(|| now.into()))?;
        Ok(())
    }

    /// Attaches the program that notices when memcached stops listening, if the kernel can.
    pub fn watch_memcached(&self, config: &bmc_config) {
        let Err(err) = self.attach_gone(config) else { return };
        let said = message::libbpf();
        message::detail(&format!("{err:#}\n{said}"));
        message::tell(
            "this kernel does not report when memcached stops (-v says why): run bmc flush \
             after each restart of memcached, or stale values are served for up to --max-age",
        );
    }

    fn attach_gone(&self, config: &bmc_config) -> Result<()> {
        let mut storage = MaybeUninit::uninit();
        let gone = load_gone(self.skel, config, &mut storage)?;
        let link = gone.progs.bmc_gone.attach_trace().context("cannot attach bmc_gone")?;
        sys::pin(gone.progs.bmc_gone.as_fd(), &self.new.join(GONE))?;
        sys::pin(link.as_fd(), &self.new.join(WATCH))?;
        Ok(())
    }

    fn programs(&self) -> [(&'static str, BorrowedFd<'a>); 5] {
        let progs = &self.skel.progs;
        [
            (Place::Native.program(), progs.bmc_rx.as_fd()),
            (Place::Ingress.program(), progs.bmc_rx_tc.as_fd()),
            (Place::Egress.program(), progs.bmc_tx.as_fd()),
            ("now", progs.bmc_now.as_fd()),
            ("flush", progs.bmc_flush.as_fd()),
        ]
    }

    fn program(&self, place: Place) -> BorrowedFd<'a> {
        match place {
            Place::Egress => self.skel.progs.bmc_tx.as_fd(),
            Place::Ingress => self.skel.progs.bmc_rx_tc.as_fd(),
            Place::Native | Place::Generic => self.skel.progs.bmc_rx.as_fd(),
        }
    }

    /// Lets both the old cache and the new one idle.
    pub fn idle(&mut self) -> Result<()> {
        if let Some(old) = self.old {
            self.idled = true;
            state::idle(&old.pins)?;
        }
        state::set_idle(&self.new.map("global")?)
    }

    /// Tells the new cache of delayed `flush_all`s that memcached got before, by their due
    /// times in seconds of `CLOCK_MONOTONIC`.
    pub fn expect_flushes(&self, mut flushes: Vec<u64>) -> Result<()> {
        if let Some(more) = flushes.len().checked_sub(FLUSHES_MAX + 1) {
            flushes.sort_unstable();
            let wait = flushes[more].saturating_sub(facts::uptime()?) + 3;
            bail!(
                "{} memcacheds have a delayed flush_all pending, and bmc can track {FLUSHES_MAX} \
                 (try again in {wait} s)",
                flushes.len()
            );
        }
        state::set_due(&self.new.map("global")?, &flushes)
    }

    /// Puts a program in its place. If the old instance has that place, the program is
    /// exchanged without a gap.
    pub fn place(&mut self, target: &Target) -> Result<()> {
        let Target { device, place, optional } = target;
        let iface = &device.first_name;
        let prog = self.program(*place);
        let drops = if *place == Place::Native { drops_replies(device)? } else { Some(false) };
        if *optional && drops != Some(false) {
            message::detail(&format!("{iface}: its peer may drop what XDP sends: using tc"));
            return Ok(());
        }
        ensure!(
            drops != Some(true),
            "cannot attach to {iface}: its peer drops what XDP sends (use --mode tc)"
        );
        if let Some(old) = self.old {
            let links = old.pins.links();
            carry_qdisc_over(device, &links, &self.new.links())?;
            for hook in old.hooks()? {
                let rivals = hook.place == *place || hook.place.is_xdp() && place.is_xdp();
                if hook.device.index != device.index
                    || !rivals
                    || !hook.is_in_place(old.pins.owner(), &links)
                {
                    continue;
                }
                if hook.place == *place {
                    message::detail(&format!("{iface}: exchanging the program {place}"));
                    return self
                        .exchange(hook, old)
                        .with_context(|| format!("cannot exchange the program on {iface}"));
                }
                // An interface cannot have native and generic XDP at once.
                let (link, _) = hook.link(&links)?;
                sys::link_detach(link.as_fd())
                    .with_context(|| format!("cannot change the mode of {iface}"))?;
                self.undo.push(Undo::Reattach(hook));
            }
        }
        message::detail(&format!("{iface}: attaching the program {place}"));
        let links = self.new.links();
        match Hook::attach(device, *place, prog, self.new.owner(), &links) {
            Err(err) if *optional && !is_refusal(&err) => {
                message::detail(&format!("{iface} has no native XDP ({err}): using tc"));
                Ok(())
            }
            Err(err) => Err(attach_failed(err, iface, *place)),
            Ok(_) => Ok(()),
        }
    }

    fn exchange(&mut self, hook: Hook, old: &Instance) -> Result<()> {
        let prog = self.program(hook.place);
        let links = old.pins.links();
        hook.carry_over(&links, &self.new.links(), prog)?;
        hook.exchange(&links, prog, self.new.owner())?;
        self.undo.push(Undo::Exchange(hook));
        Ok(())
    }

    /// Gives the new instance its name, flushes it if asked to, and removes the old one.
    pub fn commit(mut self, flush: bool) -> Result<()> {
        if self.old.is_some() { self.new.exchange(self.own) } else { self.new.rename_to(self.own) }
            .context("cannot rename the instance's directory")?;
        self.is_committed = true;
        if flush {
            state::flush(self.own)?;
        }
        if self.old.is_some() {
            self.new.remove(Some(self.own)).context("cannot remove what was replaced")?;
        }
        Ok(())
    }

    /// Puts the programs of the old instance back.
    fn restore(&self, old: &Instance) -> Result<()> {
        let links = old.pins.links();
        for undo in self.undo.iter().rev() {
            match undo {
                Undo::Exchange(hook) => {
                    let prog = old.pins.program(hook.place.program())?;
                    hook.exchange(&links, prog.as_fd(), old.pins.owner())?;
                }
                Undo::Reattach(hook) => {
                    let prog = old.pins.program(hook.place.program())?;
                    fs::remove_file(links.join(hook.name()))?;
                    let owner = old.pins.owner();
                    Hook::attach(&hook.device, hook.place, prog.as_fd(), owner, &links)?;
                }
            }
        }
        if self.idled {
            state::flush(&old.pins)?;
        }
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.is_committed {
            return;
        }
        // If this fails the old instance stays idle, and the rest is removed all the same.
        if let Some(Err(err)) = self.old.map(|old| self.restore(old)) {
            message::tell(&format!("cannot restore what was attached: {err:#}"));
        }
        let kept = self.old.map(|old| &old.pins);
        if let Err(err) = self.new.remove(kept) {
            message::tell(&format!("cannot remove what was begun: {err}"));
        }
    }
}

/// See [`netlink::Link::drops_replies`].
fn drops_replies(device: &Device) -> Result<Option<bool>> {
    match netlink::link(device.index) {
        Ok(link) => Ok(link.drops_replies()),
        // It has disappeared, which attaching will report.
        Err(err) if err.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(Some(false)),
        Err(err) => Err(err).with_context(|| format!("cannot look at {}", device.first_name)),
    }
}

/// Whether the kernel refused an XDP program for lack of permission or because the place is
/// taken, not because of what the driver can do.
fn is_refusal(err: &io::Error) -> bool {
    let errno = err.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EPERM | Errno::EACCES | Errno::EBUSY | Errno::EEXIST))
}

fn attach_failed(err: io::Error, iface: &str, place: Place) -> anyhow::Error {
    let errno = err.raw_os_error().map(Errno::from_raw);
    let hint = match (errno, place) {
        (Some(Errno::EOPNOTSUPP), Place::Native) => {
            ": its driver has no native XDP (--mode auto uses tc then)"
        }
        (Some(Errno::EBUSY | Errno::EEXIST), place) if place.is_xdp() => {
            ": another XDP program was put there meanwhile"
        }
        (_, Place::Native) if !is_refusal(&err) => {
            ": its driver refuses native XDP, perhaps for the MTU (--mode auto uses tc then)"
        }
        _ => "",
    };
    anyhow::Error::new(err).context(format!("cannot attach to {iface}{hint}"))
}
