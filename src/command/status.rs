// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc status`: prints what is attached where, and how.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::abi::types::bmc_config;
use crate::format::{grouped, mebibytes, span};
use crate::host::facts;
use crate::host::sys::ProgInfo;
use crate::instance::Instance;
use crate::instance::state::Activity;
use crate::load::config::{allow, ports};
use crate::view::classes::{Class, classes_json};
use crate::view::state::{MEASURE, interfaces_json, state_name};

/// Prints the status of an instance.
pub fn run(name: &str, as_json: bool, out: &mut impl Write) -> Result<()> {
    let (instance, _lock) = Instance::open(name)?;
    let config = instance.config()?;
    let programs = instance.programs()?;
    if as_json {
        writeln!(out, "{}", json(&instance, &config, &programs)?)?;
    } else {
        write!(out, "{}", text(&instance, &config, &programs)?)?;
    }
    Ok(())
}

fn json(instance: &Instance, config: &bmc_config, programs: &[ProgInfo]) -> Result<Value> {
    let programs: Vec<_> = programs
        .iter()
        .map(|p| json!({ "name": p.name, "id": p.id, "runs": p.runs, "ns_per_run": p.cost() }))
        .collect();
    let activity = instance.activity()?;
    let allow: Vec<_> = allow(config).iter().map(ToString::to_string).collect();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": instance.name,
        "state": state_name(activity),
        "asleep": activity == Activity::Asleep,
        "since": instance.since_unix(),
        "interfaces": interfaces_json(&instance.interfaces()?),
        "loopback": instance.watches_loopback()?,
        "ports": ports(config),
        "max_age_ms": config.max_age / 1_000_000,
        "unknown_ttl_ms": config.unknown_ttl / 1_000_000,
        "allow": allow,
        "memory_bytes": config.memory,
        "memory_locked_bytes": instance.memory_locked()?,
        "classes": classes_json(&Class::read_all(instance)?),
        "programs": programs,
    }))
}

fn text(instance: &Instance, config: &bmc_config, programs: &[ProgInfo]) -> Result<String> {
    let mut text = String::new();
    let mut row = |title: &str, value: &str| text += &format!("{title:<12}{value}\n");
    row("instance", &instance.name);
    let state = match instance.activity()? {
        Activity::Caching => "caching",
        Activity::Asleep => "asleep: too few requests come over UDP to be worth it",
        Activity::Idle => "idle: an attach or detach was interrupted (bmc flush ends that)",
    };
    row("state", state);
    for (i, iface) in instance.interfaces()?.iter().enumerate() {
        let title = if i == 0 { "interfaces" } else { "" };
        row(title, &format!("{} ({}) {}", iface.name, iface.mode, iface.health));
    }
    row("loopback", if instance.watches_loopback()? { "watched" } else { "not watched" });
    if let Some(up) = instance.since().and_then(|since| since.elapsed().ok()) {
        row("up", &span(up));
    }
    let locked = instance.memory_locked()?;
    row("memory", &format!("{} locked of {}", mebibytes(locked), mebibytes(config.memory)));
    for (i, class) in Class::read_all(instance)?.iter().enumerate() {
        let title = if i == 0 { "slots" } else { "" };
        let (used, slots) = (grouped(class.used), grouped(class.slots));
        let memory = mebibytes(class.bytes());
        row(title, &format!("{:>4} B: {used} of {slots} used, {memory}", class.size));
    }
    row("max age", &span(Duration::from_nanos(config.max_age)));
    row("unknown ttl", &span(Duration::from_nanos(config.unknown_ttl)));
    let words = |words: Vec<String>| words.join(" ");
    row("ports", &words(ports(config).iter().map(ToString::to_string).collect()));
    for (i, line) in allow(config).chunks(4).enumerate() {
        let title = if i == 0 { "allow" } else { "" };
        row(title, &words(line.iter().map(ToString::to_string).collect()));
    }
    for (i, program) in programs.iter().enumerate() {
        let title = if i == 0 { "programs" } else { "" };
        let cost = match program.cost() {
            Some(cost) => format!("  {cost} ns a run, {} runs", grouped(program.runs)),
            None => String::new(),
        };
        row(title, &format!("{:<10} id {}{cost}", program.name, program.id));
    }
    if !facts::measures_run_time() {
        row("", &format!("(their cost: {MEASURE})"));
    }
    Ok(text)
}
