// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The counters: read per CPU, summed, compared and printed.

use std::time::Instant;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use serde_json::{Map, Value, json};

use crate::abi::{COUNTERS, GROUPS, Group};
use crate::format::{grouped, tenths};
use crate::host::facts::unix_time;
use crate::instance::Instance;

const COUNT: usize = COUNTERS.len();

/// All counters, in the order of [`COUNTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters([u64; COUNT]);

impl Counters {
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut counters = [0; COUNT];
        if bytes.len() != size_of_val(&counters) {
            return None;
        }
        for (to, from) in counters.iter_mut().zip(bytes.chunks_exact(8)) {
            *to = u64::from_ne_bytes(from.try_into().ok()?);
        }
        Some(Self(counters))
    }

    /// Adds the counters of several CPUs.
    pub fn sum(all: &[Self]) -> Self {
        Self(std::array::from_fn(|i| all.iter().fold(0, |sum: u64, c| sum.wrapping_add(c.0[i]))))
    }

    /// What was counted since `before`. A counter that went back counts as 0: other maps have
    /// replaced those that were read before.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_sub(before.0[i])))
    }

    /// A counter by its name.
    ///
    /// # Panics
    ///
    /// If there is no counter of that name.
    pub fn get(&self, name: &str) -> u64 {
        let position = COUNTERS.iter().position(|counter| counter.name == name);
        self.0[position.expect("callers name counters of the table")]
    }

    /// The counters that belong to no group, by name.
    pub fn single(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = COUNTERS.iter().zip(self.0).filter(|(counter, _)| counter.reason().is_none());
        all.map(|(counter, count)| (counter.name, count))
    }

    /// The counters of a group, by their names in the group.
    pub fn of_group(&self, group: &Group) -> impl Iterator<Item = (&'static str, u64)> {
        let prefix = group.prefix;
        let all = COUNTERS.iter().zip(self.0);
        all.filter_map(move |(counter, count)| Some((counter.name.strip_prefix(prefix)?, count)))
    }

    fn group_sum(&self, group: &Group) -> u64 {
        self.of_group(group).map(|(_, count)| count).sum()
    }

    /// The totals of `stats --json`.
    pub fn to_json(self) -> Map<String, Value> {
        self.to_json_as(Value::from)
    }

    /// The same with each count converted by `value`.
    fn to_json_as(self, value: impl Fn(u64) -> Value) -> Map<String, Value> {
        let mut object = Map::new();
        for (name, count) in self.single() {
            object.insert(name.into(), value(count));
        }
        for group in &GROUPS {
            let reasons: Map<_, _> =
                self.of_group(group).map(|(reason, count)| (reason.into(), value(count))).collect();
            object.insert(group.name.into(), reasons.into());
        }
        object
    }

    /// The percentage of lookups that hit; `None` without lookups.
    fn hit_ratio(&self) -> Option<f64> {
        let hits = self.get("hits");
        let all = hits + self.get("misses");
        (all != 0).then(|| hits as f64 * 100.0 / all as f64)
    }
}

/// The reasons why requests passed.
fn passes() -> &'static Group {
    let passes = GROUPS.iter().find(|group| group.name == "passes");
    passes.expect("it is a group of the table")
}

/// The counters of every CPU at one time.
pub struct Sample {
    at: Instant,
    cpus: Vec<Counters>,
}

impl Sample {
    /// Reads the counters of an instance.
    pub fn take(instance: &Instance) -> Result<Self> {
        Self::read(&instance.pins.map("stats")?)
    }

    /// Reads the counters from their map.
    pub fn read(map: &MapHandle) -> Result<Self> {
        let values = map
            .lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .context("cannot read the counters")?
            .unwrap_or_default();
        let cpus = values.iter().map(|bytes| Counters::from_bytes(bytes)).collect::<Option<_>>();
        let cpus = cpus.context("the counters are another version's")?;
        Ok(Self { at: Instant::now(), cpus })
    }

    /// The counters of each CPU.
    pub fn cpus(&self) -> &[Counters] {
        &self.cpus
    }

    /// The sums over all CPUs.
    pub fn total(&self) -> Counters {
        Counters::sum(&self.cpus)
    }
}

/// Rates between two samples.
#[derive(Clone, Debug)]
pub struct Rates {
    counted: Counters,
    seconds: f64,
}

impl Rates {
    /// The rates of all CPUs together.
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = (after.at - before.at).as_secs_f64();
        Self { counted: after.total().since(&before.total()), seconds }
    }

    /// The rates of each CPU.
    pub fn of_cpus(before: &Sample, after: &Sample) -> Vec<Self> {
        let seconds = (after.at - before.at).as_secs_f64();
        let cpus = after.cpus.iter().zip(&before.cpus);
        cpus.map(|(after, before)| Self { counted: after.since(before), seconds }).collect()
    }

    fn rate(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }

    /// The rate of a counter, per second.
    ///
    /// # Panics
    ///
    /// If there is no counter of that name.
    pub fn of(&self, name: &str) -> f64 {
        self.rate(self.counted.get(name))
    }

    /// The percentage of lookups that hit; `None` without lookups.
    pub fn hit_ratio(&self) -> Option<f64> {
        self.counted.hit_ratio()
    }

    /// The reasons why requests passed, the most frequent first, with their rates.
    pub fn passes(&self) -> Vec<(&'static str, f64)> {
        let mut reasons: Vec<_> =
            self.counted.of_group(passes()).filter(|(_, count)| *count != 0).collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        reasons.into_iter().map(|(reason, count)| (reason, self.rate(count))).collect()
    }

    /// The seconds between the samples.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The same structure as the totals of `stats --json`, rounded to a tenth.
    pub fn to_json(&self) -> Map<String, Value> {
        self.counted.to_json_as(|count| tenths(self.rate(count)).into())
    }

    /// Rates of these counts within this time; all other counters are 0.
    #[cfg(test)]
    pub fn of_counts(counts: &[(&str, u64)], seconds: f64) -> Self {
        let count = |name| counts.iter().find(|(n, _)| *n == name).map_or(0, |(_, count)| *count);
        Self { counted: Counters(COUNTERS.map(|counter| count(counter.name))), seconds }
    }

    /// The titles of the columns of [`Rates::line`].
    pub const TITLE: &str =
        "     gets/s      hits/s   hit %  misses/s   fills/s  writes/s  passes/s";

    /// The rates in one line.
    pub fn line(&self) -> String {
        let c = &self.counted;
        let rate = |count| grouped(self.rate(count).round() as u64);
        format!(
            "{:>11} {:>11} {:>7} {:>9} {:>9} {:>9} {:>9}",
            rate(c.get("get_requests")),
            rate(c.get("hits")),
            c.hit_ratio().map_or("-".into(), |ratio| format!("{ratio:.1}")),
            rate(c.get("misses")),
            rate(c.get("fills")),
            rate(c.get("write_requests")),
            rate(c.group_sum(passes())),
        )
    }
}

/// The counters as a table for people.
pub fn table(sample: &Sample, per_cpu: bool) -> String {
    let total = sample.total();
    let mut text = String::new();
    let mut row = |name: &str, count: u64, note: &str| {
        text += format!("{name:<24}{:>20}{note}", grouped(count)).trim_end();
        text += "\n";
    };
    for (name, count) in total.single() {
        let ratio = total.hit_ratio().filter(|_| name == "hits");
        row(name, count, &ratio.map_or(String::new(), |ratio| format!("  {ratio:.1} %")));
    }
    for group in &GROUPS {
        row(group.name, total.group_sum(group), "");
        for (reason, count) in total.of_group(group).filter(|(_, count)| *count != 0) {
            row(&format!("  {reason}"), count, "");
        }
    }
    if per_cpu {
        let columns = ["get_requests", "hits", "misses", "fills", "write_requests"];
        let [gets, hits, misses, fills, writes] = columns;
        text += &format!("\n{:<8}{gets:>14}{hits:>14}{misses:>14}{fills:>14}{writes:>15}\n", "cpu");
        for (cpu, counters) in sample.cpus.iter().enumerate() {
            let [gets, hits, misses, fills, writes] =
                columns.map(|name| grouped(counters.get(name)));
            text += &format!("{cpu:<8}{gets:>14}{hits:>14}{misses:>14}{fills:>14}{writes:>15}\n");
        }
    }
    text
}

/// An object for each CPU, with the number of the CPU first.
pub fn per_cpu_json(cpus: impl Iterator<Item = Map<String, Value>>) -> Value {
    let object = |(cpu, counters): (usize, Map<_, _>)| {
        let number = ("cpu".to_string(), json!(cpu));
        Value::Object(std::iter::once(number).chain(counters).collect())
    };
    cpus.enumerate().map(object).collect()
}

/// The counters as comma-separated lines: a line for all CPUs, then one for each if asked for.
pub fn csv(sample: &Sample, per_cpu: bool, with_header: bool) -> String {
    let mut text = String::new();
    if with_header {
        text += "time,cpu";
        for counter in &COUNTERS {
            text += ",";
            text += counter.name;
        }
        text += "\n";
    }
    let time = unix_time();
    let mut row = |cpu: &str, counters: &Counters| {
        text += &format!("{time:.3},{cpu}");
        for count in counters.0 {
            text += &format!(",{count}");
        }
        text += "\n";
    };
    row("all", &sample.total());
    if per_cpu {
        for (cpu, counters) in sample.cpus.iter().enumerate() {
            row(&cpu.to_string(), counters);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(first: u64) -> Counters {
        Counters(std::array::from_fn(|i| first + i as u64))
    }

    #[test]
    fn adds_cpus_up() {
        let sum = Counters::sum(&[counters(1), counters(10)]);
        assert_eq!(sum.get("get_requests"), 11);
        assert_eq!(sum.get("get_keys"), 13);
        assert_eq!(Counters::sum(&[]), Counters([0; COUNT]));
    }

    #[test]
    fn counts_nothing_where_a_counter_went_back() {
        let since = counters(5).since(&counters(7));
        assert_eq!(since, Counters([0; COUNT]));
        assert_eq!(counters(7).since(&counters(5)), Counters([2; COUNT]));
    }

    #[test]
    fn rates_are_zero_in_no_time() {
        let rates = Rates { counted: counters(5), seconds: 0.0 };
        assert!(rates.rate(5).abs() < f64::EPSILON);
        let rates = Rates { counted: counters(5), seconds: 2.0 };
        assert!((rates.rate(5) - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn refuses_bytes_of_another_number() {
        assert!(Counters::from_bytes(&[0; COUNT * 8]).is_some());
        assert!(Counters::from_bytes(&[0; COUNT * 8 + 8]).is_none());
        assert!(Counters::from_bytes(&[0; 8]).is_none());
    }

    #[test]
    fn json_groups_the_reasons() {
        let json = Value::from(counters(0).to_json());
        assert_eq!(json["get_requests"], 0);
        assert_eq!(json["get_keys"], 1);
        assert_eq!(json["passes"]["room"], counters(0).get("pass_room"));
        assert_eq!(json["lease_refusals"]["dirty"], counters(0).get("lease_dirty"));
        assert_eq!(json["fill_refusals"]["raced"], counters(0).get("fill_raced"));
        assert_eq!(json["leases"], counters(0).get("leases"));
        assert!(json.get("pass_room").is_none());
    }

    #[test]
    fn tables_fit_a_terminal_and_leave_out_reasons_that_did_not_occur() {
        let mut huge = Counters([u64::MAX / 100; COUNT]);
        huge.0[COUNTERS.iter().position(|c| c.name == "pass_room").expect("there is")] = 0;
        let sample = Sample { at: Instant::now(), cpus: vec![huge, huge] };
        let one_cpu = Counters([99_999_999_999; COUNT]);
        let cpus = Sample { at: Instant::now(), cpus: vec![one_cpu; 2] };
        for line in table(&sample, false).lines().chain(table(&cpus, true).lines()) {
            assert!(line.len() < 80, "{line}");
        }
        assert!(!table(&sample, false).contains("room"));
        assert!(table(&sample, false).contains("  source"));
    }

    #[test]
    fn a_line_of_rates_stands_below_its_titles() {
        let rates = Rates { counted: counters(100_000), seconds: 1.0 };
        assert_eq!(rates.line().len(), Rates::TITLE.len());
        assert!(Rates::TITLE.len() < 80);
    }

    #[test]
    fn csv_has_as_many_fields_as_titles() {
        let sample = Sample { at: Instant::now(), cpus: vec![counters(1), counters(2)] };
        let text = csv(&sample, true, true);
        let fields: Vec<_> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(fields, [COUNT + 2; 4]);
        assert_eq!(csv(&sample, false, false).lines().count(), 1);
    }
}
