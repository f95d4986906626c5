// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How things look: numbers, times, bytes, and `bmc status`.

use std::fmt::Write as _;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use clap::CommandFactory as _;
use clap_mangen::Man;
use serde_json::Value;
use serde_json::json;

use crate::cli::Cli;
use crate::instance::Activity;
use crate::instance::Class;
use crate::instance::Instance;
use crate::instance::Interface;
use crate::instance::ports;
use crate::kernel::ProgInfo;
use crate::skel::types::bmc_config;
use crate::system;

/// What has the kernel measure how long programs run.
pub const MEASURE: &str = "sysctl kernel.bpf_stats_enabled=1";

/// 1234567 as 1,234,567.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in its two largest units, as in "1h 3m".
pub fn span(time: Duration) -> String {
    const UNITS: [(u128, &str); 5] =
        [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];

    let mut rest = time.as_millis();
    let mut parts = Vec::new();
    for (ms, unit) in UNITS {
        if rest >= ms && parts.len() < 2 {
            parts.push(format!("{}{unit}", rest / ms));
        } else if !parts.is_empty() {
            break;
        }
        rest %= ms;
    }
    if parts.is_empty() { "0ms".into() } else { parts.join(" ") }
}

/// Bytes as text: what is not printable ASCII, and the backslash, as \xNN.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'!'..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            // Writing to a string cannot fail.
            _ => _ = write!(text, "\\x{byte:02x}"),
        }
    }
    text
}

/// As in "254.6 MiB".
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The sources that are answered.
fn allowed(cfg: &bmc_config) -> Vec<String> {
    let v4 = cfg.allow4.iter().take(cfg.nr_allow4 as usize).map(|prefix| {
        let addr = Ipv4Addr::from(prefix.net.to_ne_bytes());
        format!("{addr}/{}", prefix.mask.count_ones())
    });
    let v6 = cfg.allow6.iter().take(cfg.nr_allow6 as usize).map(|prefix| {
        let [high, low] = prefix.net.map(|half| u128::from(u64::from_be(half)));
        let bits = prefix.mask.map(u64::count_ones).iter().sum::<u32>();
        format!("{}/{bits}", Ipv6Addr::from(high << 64 | low))
    });
    v4.chain(v6).collect()
}

/// `bmc status`.
pub fn status(name: &str, as_json: bool, out: &mut impl Write) -> Result<()> {
    let (instance, _lock) = Instance::open(name)?;
    let cfg = instance.config()?;
    let programs = instance.programs()?;
    if as_json {
        writeln!(out, "{}", status_json(&instance, &cfg, &programs)?)?;
    } else {
        write!(out, "{}", status_text(&instance, &cfg, &programs)?)?;
    }
    Ok(())
}

fn status_json(instance: &Instance, cfg: &bmc_config, programs: &[ProgInfo]) -> Result<Value> {
    let programs: Vec<_> = programs
        .iter()
        .map(|p| json!({ "name": p.name, "id": p.id, "runs": p.runs, "ns_per_run": p.cost() }))
        .collect();
    let activity = instance.activity()?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": instance.name,
        "state": state_name(activity),
        "asleep": activity == Activity::Asleep,
        "since": instance.since_unix(),
        "interfaces": interfaces_json(&instance.interfaces()?),
        "loopback": instance.watches_loopback()?,
        "ports": ports(cfg),
        "max_age_ms": cfg.max_age / 1_000_000,
        "unknown_ttl_ms": cfg.unknown_ttl / 1_000_000,
        "allow": allowed(cfg),
        "memory_bytes": cfg.memory,
        "memory_locked_bytes": instance.memory_locked()?,
        "classes": classes_json(&instance.classes()?),
        "programs": programs,
    }))
}

/// What a cache does, as in `status --json`, where being asleep has a field of its own.
pub fn state_name(activity: Activity) -> &'static str {
    match activity {
        Activity::Caching | Activity::Asleep => "caching",
        Activity::Idle => "idle",
    }
}

/// What is attached where, as in `status --json`.
pub fn interfaces_json(interfaces: &[Interface]) -> Value {
    let object =
        |i: &Interface| json!({ "name": i.name, "mode": i.mode, "state": i.state.to_string() });
    interfaces.iter().map(object).collect()
}

/// What became of the memory for slots, as in `status --json`.
pub fn classes_json(classes: &[Class]) -> Value {
    let object = |c: &Class| {
        json!({
            "slot_bytes": c.size,
            "slabs": c.slabs,
            "bytes": c.bytes(),
            "slots": c.slots,
            "used": c.used,
        })
    };
    classes.iter().map(object).collect()
}

fn status_text(instance: &Instance, cfg: &bmc_config, programs: &[ProgInfo]) -> Result<String> {
    let mut text = String::new();
    let mut row = |title: &str, value: &str| text += &format!("{title:<12}{value}\n");
    row("instance", &instance.name);
    let state = match instance.activity()? {
        Activity::Caching => "caching",
        Activity::Asleep => "asleep: too little is asked over UDP for it to pay",
        Activity::Idle => "idle: an attach or detach was interrupted (bmc flush ends that)",
    };
    row("state", state);
    for (i, iface) in instance.interfaces()?.iter().enumerate() {
        let title = if i == 0 { "interfaces" } else { "" };
        row(title, &format!("{} ({}) {}", iface.name, iface.mode, iface.state));
    }
    row("loopback", if instance.watches_loopback()? { "watched" } else { "not watched" });
    if let Some(up) = instance.since().and_then(|since| since.elapsed().ok()) {
        row("up", &span(up));
    }
    let locked = instance.memory_locked()?;
    row("memory", &format!("{} locked of {}", mebibytes(locked), mebibytes(cfg.memory)));
    for (i, class) in instance.classes()?.iter().enumerate() {
        let title = if i == 0 { "slots" } else { "" };
        let (used, slots) = (grouped(class.used), grouped(class.slots));
        let memory = mebibytes(class.bytes());
        row(title, &format!("{:>4} B: {used} of {slots} used, {memory}", class.size));
    }
    row("max age", &span(Duration::from_nanos(cfg.max_age)));
    row("unknown ttl", &span(Duration::from_nanos(cfg.unknown_ttl)));
    let ports: Vec<_> = ports(cfg).iter().map(ToString::to_string).collect();
    row("ports", &ports.join(" "));
    for (i, line) in allowed(cfg).chunks(4).enumerate() {
        row(if i == 0 { "allow" } else { "" }, &line.join(" "));
    }
    for (i, program) in programs.iter().enumerate() {
        let title = if i == 0 { "programs" } else { "" };
        let cost = match program.cost() {
            Some(cost) => format!("  {cost} ns a run, {} runs", grouped(program.runs)),
            None => String::new(),
        };
        row(title, &format!("{:<10} id {}{cost}", program.name, program.id));
    }
    if !system::measures_run_time() {
        row("", &format!("(their cost: {MEASURE})"));
    }
    Ok(text)
}

/// `bmc man`: one page for all commands.
pub fn man(out: &mut impl Write) -> Result<()> {
    let cli = Cli::command();
    let page = Man::new(cli.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    writeln!(out, ".SH COMMANDS")?;
    for command in cli.get_subcommands() {
        let mut text = Vec::new();
        let page = Man::new(command.clone());
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
        writeln!(out, ".SS \"bmc {}\"", command.get_name())?;
        for line in String::from_utf8(text)?.lines().filter(|line| !line.starts_with(".SH")) {
            writeln!(out, "{line}")?;
        }
    }
    let mut text = Vec::new();
    page.render_extra_section(&mut text)?;
    write!(out, "{}", String::from_utf8(text)?.replace(".SH EXTRA", ".SH \"EXIT STATUS\""))?;
    Ok(())
}

/// `bmc man <COMMAND>`: the page of one command.
pub fn man_of(name: &str, out: &mut impl Write) -> Result<()> {
    let mut cli = Cli::command();
    // Gives the page the name "bmc-attach", and the global options.
    cli.build();
    let command = cli.find_subcommand(name);
    let command = command.with_context(|| format!("no such command: {name} (see bmc --help)"))?;
    Man::new(command.clone()).render(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_digits_by_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn shows_times_in_two_units_at_most() {
        for (ms, text) in [
            (0, "0ms"),
            (10, "10ms"),
            (1000, "1s"),
            (1500, "1s 500ms"),
            (60_000, "1m"),
            (3_785_000, "1h 3m"),
            (90_061_001, "1d 1h"),
            (86_400_001, "1d"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn escapes_what_is_not_printable() {
        assert_eq!(escaped(b"key:1"), "key:1");
        assert_eq!(escaped(b"a b\0\xff"), "a\\x20b\\x00\\xff");
    }

    #[test]
    fn shows_the_networks_that_were_given() {
        let mut cfg = bmc_config { nr_allow4: 1, nr_allow6: 1, ..Default::default() };
        cfg.allow4[0].net = u32::from_ne_bytes([10, 0, 0, 0]);
        cfg.allow4[0].mask = u32::from_ne_bytes([255, 0, 0, 0]);
        cfg.allow6[0].net[0] = u64::from_ne_bytes([0xfd, 0, 0, 0, 0, 0, 0, 0]);
        cfg.allow6[0].mask[0] = u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(allowed(&cfg), ["10.0.0.0/8", "fd00::/8"]);
    }
}
