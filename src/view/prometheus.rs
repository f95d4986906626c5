// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc stats --format prometheus`: the counters and the state in Prometheus'
//! text format, version 0.0.4.
//!
//! [`families`] has every name once, and README.md documents exactly these. The label of the
//! instance is not `instance`, which Prometheus reserves for the target of a scrape.

use std::fmt;

use anyhow::Result;

use super::classes::Class;
use super::counters::{Counters, Sample};
use crate::abi::{COUNTERS, GROUPS};
use crate::host::facts;
use crate::instance::state::Activity;
use crate::instance::{Health, Instance};

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; restarts at 0 with a new cache.
    Counter,
    /// May rise and fall.
    Gauge,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        })
    }
}

/// A metric: all series of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name, without the common prefix `bmc_`.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// The labels besides `bmc_instance` and, with `--per-cpu`, `cpu`.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

type Row = (&'static str, Kind, &'static [&'static str], &'static str);

/// The metrics that are not counters of the programs.
const STATE: [Row; 14] = [
    ("up", Kind::Gauge, &[], "Whether the cache works (1) or idles (0)"),
    ("asleep", Kind::Gauge, &[], "Whether it sleeps (1), because it would cost more than it saves"),
    ("info", Kind::Gauge, &["version"], "Always 1; the version of the tool"),
    ("start_time_seconds", Kind::Gauge, &[], "When the counters began, in seconds since 1970"),
    ("interface_info", Kind::Gauge, &["interface", "mode"], "Always 1; where hits are answered"),
    ("interface_up", Kind::Gauge, &["interface"], "Whether all its programs are in place (1)"),
    ("memory_limit_bytes", Kind::Gauge, &[], "What --memory allows"),
    ("memory_locked_bytes", Kind::Gauge, &[], "Memory that the maps lock"),
    ("class_bytes", Kind::Gauge, &["slot_bytes"], "Memory cut into slots of this size"),
    ("class_used_bytes", Kind::Gauge, &["slot_bytes"], "Of it, in slots that ever held an entry"),
    ("class_slots", Kind::Gauge, &["slot_bytes"], "Slots of this size"),
    ("class_used_slots", Kind::Gauge, &["slot_bytes"], "Of them, those that ever held an entry"),
    ("program_runs_total", Kind::Counter, &["program"], "Runs while kernel.bpf_stats_enabled is 1"),
    ("program_run_seconds_total", Kind::Counter, &["program"], "The time that these runs took"),
];

/// All metrics, in the order in which they are printed.
pub fn families() -> Vec<Family> {
    let counter = |name: &str, labels, help| Family {
        name: format!("{name}_total"),
        kind: Kind::Counter,
        labels,
        help,
    };
    let single = COUNTERS.iter().filter(|counter| counter.reason().is_none());
    let single = single.map(|single| counter(single.name, &[][..], single.help));
    let groups = GROUPS.iter().map(|group| counter(group.name, &["reason"][..], group.help));
    let state = STATE.iter().map(|(name, kind, labels, help)| Family {
        name: (*name).into(),
        kind: *kind,
        labels,
        help,
    });
    single.chain(groups).chain(state).collect()
}

/// A value with all its labels except the instance.
struct Series {
    family: String,
    labels: Vec<(&'static str, String)>,
    value: String,
}

impl Series {
    fn new(
        family: impl Into<String>,
        labels: &[(&'static str, &dyn fmt::Display)],
        value: impl fmt::Display,
    ) -> Self {
        let labels = labels.iter().map(|(name, value)| (*name, value.to_string())).collect();
        Self { family: family.into(), labels, value: value.to_string() }
    }
}

/// All metrics of an instance. With `per_cpu` each CPU has a series of its own instead of the
/// sum: Prometheus can add them.
pub fn page(instance: &Instance, sample: &Sample, per_cpu: bool) -> Result<String> {
    let mut all = Vec::new();
    if per_cpu {
        for (cpu, counters) in sample.cpus().iter().enumerate() {
            count(&mut all, counters, &[("cpu", &cpu)]);
        }
    } else {
        count(&mut all, &sample.total(), &[]);
    }
    state(&mut all, instance)?;
    Ok(text(&instance.name, &all))
}

fn count(all: &mut Vec<Series>, counters: &Counters, labels: &[(&'static str, &dyn fmt::Display)]) {
    for (name, count) in counters.single() {
        all.push(Series::new(format!("{name}_total"), labels, count));
    }
    for group in &GROUPS {
        for (reason, count) in counters.of_group(group) {
            let labels = [labels, &[("reason", &reason)]].concat();
            all.push(Series::new(format!("{}_total", group.name), &labels, count));
        }
    }
}

fn state(all: &mut Vec<Series>, instance: &Instance) -> Result<()> {
    let activity = instance.activity()?;
    all.push(Series::new("up", &[], u8::from(activity != Activity::Idle)));
    all.push(Series::new("asleep", &[], u8::from(activity == Activity::Asleep)));
    all.push(Series::new("info", &[("version", &env!("CARGO_PKG_VERSION"))], 1));
    if let Some(since) = instance.since_unix() {
        all.push(Series::new("start_time_seconds", &[], since));
    }
    for interface in instance.interfaces()? {
        let name = &interface.name;
        all.push(Series::new(
            "interface_info",
            &[("interface", name), ("mode", &interface.mode)],
            1,
        ));
        let is_up = u8::from(interface.health == Health::Up);
        all.push(Series::new("interface_up", &[("interface", name)], is_up));
    }
    all.push(Series::new("memory_limit_bytes", &[], instance.config()?.memory));
    all.push(Series::new("memory_locked_bytes", &[], instance.memory_locked()?));
    for class in Class::read_all(instance)? {
        let label: [(_, &dyn fmt::Display); 1] = [("slot_bytes", &class.size)];
        all.push(Series::new("class_bytes", &label, class.slots * class.size));
        all.push(Series::new("class_used_bytes", &label, class.used * class.size));
        all.push(Series::new("class_slots", &label, class.slots));
        all.push(Series::new("class_used_slots", &label, class.used));
    }
    if facts::measures_run_time() {
        for program in instance.programs()? {
            let label: [(_, &dyn fmt::Display); 1] = [("program", &program.name)];
            all.push(Series::new("program_runs_total", &label, program.runs));
            let seconds = program.run_time.as_secs_f64();
            all.push(Series::new("program_run_seconds_total", &label, seconds));
        }
    }
    Ok(())
}

/// The metrics as text, each with its help and type; those without a series are left out.
fn text(instance: &str, all: &[Series]) -> String {
    let mut text = String::new();
    for Family { name, kind, help, .. } in families() {
        let mut ours = all.iter().filter(|series| series.family == name).peekable();
        if ours.peek().is_some() {
            text += &format!("# HELP bmc_{name} {help}.\n# TYPE bmc_{name} {kind}\n");
        }
        for series in ours {
            text += &format!("bmc_{name}{{bmc_instance=\"{}\"", escape(instance));
            for (label, value) in &series.labels {
                text += &format!(",{label}=\"{}\"", escape(value));
            }
            text += &format!("}} {}\n", series.value);
        }
    }
    text
}

/// Escapes the value of a label, which stands between quotes.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let series = Series::new("interface_up", &[("interface", &"a\"b\\c\nd")], 1);
        let text = text("default", &[series]);
        let line = "bmc_interface_up{bmc_instance=\"default\",interface=\"a\\\"b\\\\c\\nd\"} 1";
        assert_eq!(text.lines().nth(2), Some(line));
    }

    #[test]
    fn families_without_a_series_are_left_out() {
        assert_eq!(text("default", &[]), "");
        assert_eq!(text("default", &[Series::new("up", &[], 1)]).lines().count(), 3);
    }

    #[test]
    fn no_help_needs_escapes() {
        for family in families() {
            assert!(!family.help.contains(['\\', '\n']), "{}", family.name);
            assert!(!family.help.ends_with('.'), "{}: one is added", family.name);
        }
    }
}
