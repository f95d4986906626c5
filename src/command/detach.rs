// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc detach`: takes an instance off interfaces, or removes it.

use std::io;

use anyhow::{Context as _, Result, bail};

use crate::instance::hook::{Device, Hook, qdiscs, remove_qdisc};
use crate::instance::lock::Lock;
use crate::instance::pins::Pins;
use crate::instance::{Instance, NotAttached, state};
use crate::message;

/// Detaches an instance from these interfaces, or from all if there are none.
pub fn run(name: &str, interfaces: &[String]) -> Result<()> {
    let Some(_lock) = Lock::exclusive()? else {
        bail!(NotAttached::instance(name));
    };
    let instance = Instance::find(name)?;
    let pins = &instance.pins;
    if !pins.is_reachable() {
        bail!("instance {name} is attached in another network namespace: detach it there");
    }
    let mut hooks = instance.hooks()?;
    let is_named = |device: &Device| interfaces.contains(&pins.name_of(device));
    let is_attached =
        |iface: &String| hooks.iter().any(|hook| pins.name_of(&hook.device) == *iface);
    if let Some(iface) = interfaces.iter().find(|iface| !is_attached(iface)) {
        bail!(NotAttached::interface(iface));
    }
    let stays = |hook: &Hook| !hook.is_on_loopback() && !is_named(&hook.device);
    if interfaces.is_empty() || !hooks.iter().any(stays) {
        message::detail(&format!("detaching instance {name}"));
        // A damaged cache may fail to idle, and needs detaching all the more.
        if let Err(err) = state::idle(pins) {
            message::detail(&format!("{err:#}"));
        }
        return remove(pins).context("cannot detach");
    }
    hooks.retain(|hook| is_named(&hook.device));
    hooks.sort_by_key(|hook| std::cmp::Reverse(hook.place));
    for hook in hooks {
        let iface = pins.name_of(&hook.device);
        message::detail(&format!("detaching from {iface}"));
        hook.remove(&pins.links(), pins.owner(), false)
            .with_context(|| format!("cannot detach from {iface}"))?;
    }
    for device in qdiscs(&pins.links())?.iter().filter(|device| is_named(device)) {
        remove_qdisc(device, &pins.links(), false)
            .with_context(|| format!("cannot remove the qdisc of {}", pins.name_of(device)))?;
    }
    Ok(())
}

fn remove(pins: &Pins) -> io::Result<()> {
    let leaving = pins.unfinished();
    pins.rename_to(&leaving)?;
    leaving.remove(None)
}
