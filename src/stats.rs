// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The counters: read, summed, subtracted, shown.

use std::io;
use std::io::Write;
use std::process;
use std::thread::sleep;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context as _;
use anyhow::Error;
use anyhow::Result;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::cli;
use crate::cli::Format;
use crate::instance::Instance;
use crate::instance::NotAttached;
use crate::metrics;
use crate::output::grouped;
use crate::output::interfaces_json;
use crate::skel::types::bmc_stats;

/// Names and meanings, in the order of `struct bmc_stats`.
pub const COUNTERS: [(&str, &str); 43] = [
    ("get_requests", "GET requests looked up"),
    ("get_keys", "Keys of these requests: hits and misses"),
    ("hits", "Keys answered by bmc"),
    ("misses", "Keys of GET requests that went on to memcached"),
    ("hit_mispredictions", "Lookups that found a slot of another key"),
    ("tc_replies", "GET requests answered behind the driver (tc)"),
    ("get_replies", "Replies of memcached to GET requests"),
    ("leases", "Rights to fill given to GET requests that missed"),
    ("fills", "Entries filled"),
    ("evictions", "Entries that gave way to others"),
    ("tcp_requests", "Commands over TCP that get a reply"),
    ("tcp_writes", "Writes over TCP"),
    ("write_requests", "Writes seen"),
    ("invalidations", "Entries dropped for a write"),
    ("flushes", "Times that every entry was forgotten"),
    ("memcached_gone", "Times that a memcached stopped listening"),
    ("sleeps", "Times that the cache fell asleep, because it would cost more than it saves"),
    ("pass_room", "no room in the packet for the reply"),
    ("pass_size", "reply larger than one datagram"),
    ("pass_source", "client not within --allow"),
    ("pass_address", "multicast, or no address to answer to"),
    ("pass_fragment", "IP fragment"),
    ("pass_header", "IP options or extension headers"),
    ("pass_length", "lengths that do not agree"),
    ("pass_checksum", "wrong UDP checksum"),
    ("pass_frame", "request of several datagrams, or no memcached frame"),
    ("pass_command", "another command than get"),
    ("pass_key", "key empty, too long or with control characters"),
    ("pass_keys", "too many keys"),
    ("pass_line", "line not ended as one get is"),
    ("lease_dirty", "a write of the bucket was pending"),
    ("lease_quarantine", "a write that cannot be followed was too recent"),
    ("lease_outstanding", "an earlier request of the same id was unanswered"),
    ("fill_user", "not sent by memcached but by another user's process"),
    ("fill_unleased", "the request had no lease"),
    ("fill_raced", "a write came in between"),
    ("fill_reply", "not the reply to one key in one datagram"),
    ("fill_admission", "everything in its place was in more demand"),
    ("fill_expiry", "the item was about to end"),
    ("write_untracked", "Writes whose reply cannot be followed"),
    ("tcp_unparsed", "Packets with a command that is not known, or behind a gap"),
    ("tcp_unfollowed", "TCP packets to memcached without a connection to follow"),
    ("tcp_unmatched", "TCP packets of memcached that answer no command"),
];

const COUNT: usize = COUNTERS.len();

const _: () = assert!(size_of::<bmc_stats>() == COUNT * size_of::<u64>());

/// Counters that are shown together: their prefix, the name of all, and what
/// it means.
pub const GROUPS: [(&str, &str, &str); 3] = [
    ("pass_", "passes", "UDP requests left to memcached although they might be answered"),
    ("lease_", "lease_refusals", "Leases not given"),
    ("fill_", "fill_refusals", "Values in replies that did not become entries"),
];

/// The group of a counter, and its name therein.
pub fn group(name: &str) -> Option<(&'static str, &str)> {
    GROUPS.iter().find_map(|(prefix, group, _)| Some((*group, name.strip_prefix(prefix)?)))
}

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

    /// Adds up those of several CPUs.
    pub fn sum(all: &[Self]) -> Self {
        Self(std::array::from_fn(|i| all.iter().fold(0, |sum: u64, c| sum.wrapping_add(c.0[i]))))
    }

    /// What was counted since. Nothing where a counter went back, as it does
    /// when other maps took the place of those read before.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_sub(before.0[i])))
    }

    /// One of them.
    ///
    /// # Panics
    ///
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> u64 {
        let position = COUNTERS.iter().position(|(n, _)| *n == name);
        self.0[position.expect("callers name counters of the table")]
    }

    /// Each with its name, in the order of [`COUNTERS`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        COUNTERS.iter().zip(self.0).map(|((name, _), count)| (*name, count))
    }

    /// Those of a group, by their names therein.
    pub fn of_group<'a>(&'a self, of: &'a str) -> impl Iterator<Item = (&'static str, u64)> + 'a {
        self.iter().filter_map(move |(name, count)| {
            group(name).filter(|(g, _)| *g == of).map(|(_, rest)| (rest, count))
        })
    }

    fn group_sum(&self, of: &str) -> u64 {
        self.of_group(of).map(|(_, count)| count).sum()
    }

    /// As in `stats --json`.
    fn to_json(self) -> Map<String, Value> {
        self.to_json_as(Value::from)
    }

    /// The same with each of them as `value` says.
    fn to_json_as(self, value: impl Fn(u64) -> Value) -> Map<String, Value> {
        let mut object = Map::new();
        for (name, count) in self.iter().filter(|(name, _)| group(name).is_none()) {
            object.insert(name.into(), value(count));
        }
        for (_, of, _) in GROUPS {
            let reasons: Map<_, _> =
                self.of_group(of).map(|(reason, count)| (reason.into(), value(count))).collect();
            object.insert(of.into(), reasons.into());
        }
        object
    }

    /// Percentage of the lookups that hit.
    fn hit_ratio(&self) -> Option<f64> {
        let hits = self.get("hits");
        let all = hits + self.get("misses");
        (all != 0).then(|| hits as f64 * 100.0 / all as f64)
    }
}

/// The counters of every CPU at one time.
pub struct Sample {
    at: Instant,
    cpus: Vec<Counters>,
}

impl Sample {
    /// Reads them.
    pub fn take(instance: &Instance) -> Result<Self> {
        Self::read(&instance.dir.map("stats")?)
    }

    /// Reads them from their map.
    pub fn read(map: &MapHandle) -> Result<Self> {
        let values = map
            .lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .context("cannot read the counters")?
            .unwrap_or_default();
        let cpus = values.iter().map(|bytes| Counters::from_bytes(bytes)).collect::<Option<_>>();
        let cpus = cpus.context("the counters are another version's")?;
        Ok(Self { at: Instant::now(), cpus })
    }

    /// Of each CPU.
    pub fn cpus(&self) -> &[Counters] {
        &self.cpus
    }

    /// Of all CPUs together.
    pub fn total(&self) -> Counters {
        Counters::sum(&self.cpus)
    }
}

/// What happened between two samples, a second.
#[derive(Clone, Debug)]
pub struct Rates {
    counted: Counters,
    seconds: f64,
}

impl Rates {
    /// Of all CPUs together.
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = (after.at - before.at).as_secs_f64();
        Self { counted: after.total().since(&before.total()), seconds }
    }

    /// Of each CPU.
    pub fn of_cpus(before: &Sample, after: &Sample) -> Vec<Self> {
        let seconds = (after.at - before.at).as_secs_f64();
        let cpus = after.cpus.iter().zip(&before.cpus);
        cpus.map(|(after, before)| Self { counted: after.since(before), seconds }).collect()
    }

    fn rate(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }

    /// Of one counter.
    ///
    /// # Panics
    ///
    /// If there is none of that name.
    pub fn of(&self, name: &str) -> f64 {
        self.rate(self.counted.get(name))
    }

    /// Percentage of the lookups that hit; None if there were none.
    pub fn hit_ratio(&self) -> Option<f64> {
        self.counted.hit_ratio()
    }

    /// Why requests passed, by how many did.
    pub fn passes(&self) -> Vec<(&'static str, f64)> {
        let mut reasons: Vec<_> =
            self.counted.of_group("passes").filter(|(_, count)| *count != 0).collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        reasons.into_iter().map(|(reason, count)| (reason, self.rate(count))).collect()
    }

    /// Seconds between the two.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// As the totals in `stats --json`, to a tenth.
    pub fn to_json(&self) -> Map<String, Value> {
        self.counted.to_json_as(|count| tenths(self.rate(count)).into())
    }

    /// With these counts within so many seconds, and no others.
    #[cfg(test)]
    pub fn of_counts(counts: &[(&str, u64)], seconds: f64) -> Self {
        let count = |name| counts.iter().find(|(n, _)| *n == name).map_or(0, |(_, count)| *count);
        Self { counted: Counters(COUNTERS.map(|(name, _)| count(name))), seconds }
    }

    /// The titles of [`Rates::line`].
    pub const TITLE: &str =
        "     gets/s      hits/s   hit %  misses/s   fills/s  writes/s  passes/s";

    /// In one line.
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
            rate(c.group_sum("passes")),
        )
    }
}

/// `bmc stats`.
pub fn show(args: &cli::Stats, name: &str, out: &mut impl Write) -> Result<()> {
    let format = if args.json { Format::Json } else { args.format };
    let Some(interval) = args.watch else {
        return print(format, args.per_cpu, name, true, out);
    };
    // Each line is written by one call, so this never cuts one off.
    ctrlc::set_handler(|| process::exit(0)).context("cannot wait for signals")?;
    let mut rounds = 0..args.count.unwrap_or(u64::MAX);
    if format == Format::Table && !args.per_cpu {
        let wait = || rounds.next().inspect(|_| sleep(interval)).is_some();
        return follow(name, wait, out);
    }
    if rounds.next().is_some() {
        print(format, args.per_cpu, name, true, out)?;
    }
    for _ in rounds {
        sleep(interval);
        print(format, args.per_cpu, name, false, out).map_err(ended)?;
    }
    Ok(())
}

/// Says that it is not the first look at an instance that found none.
fn ended(err: Error) -> Error {
    if err.is::<NotAttached>() { err.context("nothing is left to watch") } else { err }
}

fn print(
    format: Format,
    per_cpu: bool,
    name: &str,
    is_first: bool,
    out: &mut impl Write,
) -> Result<()> {
    let (instance, lock) = Instance::open(name)?;
    let sample = Sample::take(&instance)?;
    let text = match format {
        Format::Table => table(&sample, per_cpu),
        Format::Json => json(&instance, &sample, per_cpu)?,
        Format::Csv => csv(&sample, per_cpu, is_first),
        Format::Prometheus => metrics::page(&instance, &sample, per_cpu)?,
    };
    drop(lock);
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn table(sample: &Sample, per_cpu: bool) -> String {
    let total = sample.total();
    let mut text = String::new();
    let mut row = |name: &str, count: u64, note: &str| {
        text += format!("{name:<24}{:>20}{note}", grouped(count)).trim_end();
        text += "\n";
    };
    for (name, count) in total.iter().filter(|(name, _)| group(name).is_none()) {
        let ratio = total.hit_ratio().filter(|_| name == "hits");
        row(name, count, &ratio.map_or(String::new(), |ratio| format!("  {ratio:.1} %")));
    }
    for (_, of, _) in GROUPS {
        row(of, total.group_sum(of), "");
        for (reason, count) in total.of_group(of).filter(|(_, count)| *count != 0) {
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

fn json(instance: &Instance, sample: &Sample, per_cpu: bool) -> Result<String> {
    let mut object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": instance.name,
        "time": unix_time(),
        "since": instance.since_unix(),
        "interfaces": interfaces_json(&instance.interfaces()?),
        "totals": sample.total().to_json(),
    });
    if per_cpu {
        object["per_cpu"] = per_cpu_json(sample.cpus.iter().copied().map(Counters::to_json));
    }
    Ok(format!("{object}\n"))
}

/// What is known of each CPU, with its number first.
pub fn per_cpu_json(cpus: impl Iterator<Item = Map<String, Value>>) -> Value {
    let object = |(cpu, counters): (usize, Map<_, _>)| {
        let number = ("cpu".to_string(), json!(cpu));
        Value::Object(std::iter::once(number).chain(counters).collect())
    };
    cpus.enumerate().map(object).collect()
}

/// Rounded to a tenth.
pub fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// Seconds since 1970, to the millisecond.
pub fn unix_time() -> f64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    time.as_millis() as f64 / 1e3
}

fn csv(sample: &Sample, per_cpu: bool, with_header: bool) -> String {
    let mut text = String::new();
    if with_header {
        text += "time,cpu";
        for (name, _) in COUNTERS {
            text += ",";
            text += name;
        }
        text += "\n";
    }
    let time = unix_time();
    let mut row = |cpu: &str, counters: &Counters| {
        text += &format!("{time:.3},{cpu}");
        for (_, count) in counters.iter() {
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

/// Prints a line of rates after each wait, until that says to end.
pub fn follow(name: &str, mut wait: impl FnMut() -> bool, out: &mut impl Write) -> Result<()> {
    let take = || Sample::take(&Instance::open(name)?.0);
    let mut before = take()?;
    for line in 0_u64.. {
        if !wait() {
            break;
        }
        let after = take().map_err(ended)?;
        print_line(line, Rates::TITLE, &Rates::between(&before, &after).line(), out)?;
        before = after;
    }
    Ok(())
}

/// Prints a line, and the titles again before each twentieth; `number` is from 0.
pub fn print_line(number: u64, title: &str, line: &str, out: &mut impl Write) -> io::Result<()> {
    if number.is_multiple_of(20) {
        writeln!(out, "{title}")?;
    }
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(first: u64) -> Counters {
        Counters(std::array::from_fn(|i| first + i as u64))
    }

    #[test]
    fn names_the_counters_as_the_header_does_and_in_its_order() {
        let header = include_str!("../bpf/bmc.h");
        let start = header.find("struct bmc_stats {").expect("the struct is there");
        let body = &header[start..];
        let body = &body[..body.find("};").expect("the struct ends")];
        let names: Vec<_> = body
            .lines()
            .filter_map(|line| line.trim().strip_prefix("__u64 ")?.split(';').next())
            .collect();
        assert_eq!(names, COUNTERS.map(|(name, _)| name));
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
        huge.0[COUNTERS.iter().position(|(n, _)| *n == "pass_room").expect("there is")] = 0;
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
