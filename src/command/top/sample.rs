// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What `bmc top` shows: the difference of two readings, and samples in between of the keys that
//! are requested.
//!
//! The programs do not count requests by key, because that would slow hits down. But each CPU
//! stores the hash of the key that was requested last. bmc top reads these hashes periodically,
//! and lets each stand for all GETs that its CPU received since the last sample: their number is
//! known. A GET of several keys counts for its last key. The cost of sampling thus depends
//! neither on the load nor on the size of the cache.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::mem::offset_of;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use serde_json::{Map, Value, json};

use crate::abi::types::bmc_scratch;
use crate::format::{escaped, tenths};
use crate::host::facts::{self, unix_time};
use crate::host::sys::ProgInfo;
use crate::instance::pins::Pins;
use crate::instance::state::Activity;
use crate::instance::{AttachedInterface, Instance};
use crate::view::classes::{Class, classes_json};
use crate::view::counters::{self, Rates, per_cpu_json};
use crate::view::entries::{Entry, Finder};
use crate::view::state::{interfaces_json, state_name};

/// The rates that are shown with their history: title and counter.
pub const FIGURES: [(&str, &str); 5] = [
    ("requests", "get_requests"),
    ("hits", "hits"),
    ("misses", "misses"),
    ("fills", "fills"),
    ("invalidations", "invalidations"),
];

/// The number of intervals in the history.
const HISTORY: usize = 512;

/// The most keys that are shown.
const KEYS: usize = 64;

/// The most keys that are counted; that is plenty to find the hottest.
const TOLD_APART: usize = 8192;

/// The time after which a sample counts half.
const HALF_LIFE: Duration = Duration::from_secs(5);

/// The range of the random pauses between samples, in microseconds. Fixed pauses would always
/// meet a client that cycles through its keys at the same keys.
const PAUSE: Range<u64> = 5_000..15_000;

/// A sample copies 4 KB from each CPU. For each further such number of CPUs, a [`PAUSE`] is added.
const CPUS: usize = 32;

/// Everything that is shown.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The instance's name.
    pub instance: String,
    /// What the cache is doing.
    pub activity: Activity,
    /// The time since it was attached.
    pub up: Option<Duration>,
    /// The interfaces that it is attached to, without the loopback.
    pub interfaces: Vec<AttachedInterface>,
    /// Whether the loopback is watched.
    pub loopback: bool,
    /// Bytes that its maps lock.
    pub locked: u64,
    /// `--memory`, in bytes.
    pub memory: u64,
    /// How the memory for slots is divided.
    pub classes: Vec<Class>,
    /// The rates since the last refresh; `None` at the first.
    pub rates: Option<Rates>,
    /// Hit ratios in percent, oldest first.
    pub ratios: VecDeque<u64>,
    /// The rates of the [`FIGURES`], oldest first.
    pub history: [VecDeque<u64>; FIGURES.len()],
    /// The rates of each CPU.
    pub cpus: Vec<Rates>,
    /// What each program has cost since the last refresh.
    pub programs: Vec<Cost>,
    /// Whether the kernel measures the cost of programs.
    pub is_measured: bool,
    /// The hottest keys, hottest first.
    pub keys: Vec<HotKey>,
    /// The number of samples behind `keys`.
    pub samples: u64,
}

/// What a program has cost since the last refresh.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Its name.
    pub name: String,
    /// Runs per second; `None` if they are not counted.
    pub runs: Option<f64>,
    /// Nanoseconds per run; `None` if it did not run.
    pub ns: Option<u64>,
}

/// A key that is requested often.
#[derive(Clone, Debug)]
pub struct HotKey {
    /// Its entry in the cache.
    pub entry: Entry,
    /// Estimated requests per second.
    pub rate: f64,
    /// Estimated percentage of all requests.
    pub share: f64,
}

impl Snapshot {
    /// The titles of the columns of [`Snapshot::line`].
    pub fn title() -> String {
        format!("{}  hottest key", Rates::TITLE)
    }

    /// The rates and the hottest key in one line.
    pub fn line(&self) -> String {
        let key = self.keys.first().map_or("-".into(), |hot| escaped(&hot.entry.key));
        format!("{}  {key}", self.rates.as_ref().map_or_else(String::new, Rates::line))
    }

    /// A JSON object, with null for what is unknown.
    ///
    /// # Panics
    ///
    /// If [`Entry::to_json`] is not JSON.
    pub fn to_json(&self) -> Value {
        let programs = self
            .programs
            .iter()
            .map(|p| json!({ "name": p.name, "runs": p.runs.map(tenths), "ns_per_run": p.ns }));
        let keys = self.keys.iter().map(|hot| {
            let entry = serde_json::from_str(&hot.entry.to_json());
            let mut object: Map<_, _> = entry.expect("it is written as JSON");
            object.insert("requests".into(), tenths(hot.rate).into());
            object.insert("share".into(), tenths(hot.share).into());
            Value::from(object)
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": self.instance,
            "time": unix_time(),
            "state": state_name(self.activity),
            "asleep": self.activity == Activity::Asleep,
            "up_s": self.up.map(|up| up.as_secs()),
            "seconds": self.rates.as_ref().map(Rates::seconds),
            "rates": self.rates.as_ref().map(Rates::to_json),
            "hit_ratio": self.rates.as_ref().and_then(Rates::hit_ratio).map(tenths),
            "per_cpu": per_cpu_json(self.cpus.iter().map(Rates::to_json)),
            "interfaces": interfaces_json(&self.interfaces),
            "loopback": self.loopback,
            "memory_bytes": self.memory,
            "memory_locked_bytes": self.locked,
            "classes": classes_json(&self.classes),
            "programs": programs.collect::<Value>(),
            "samples": self.samples,
            "keys": keys.collect::<Value>(),
        })
    }
}

/// An instance that is watched.
pub struct Watch {
    name: String,
    maps: Maps,
    asked: Asked,
    sampled: Instant,
    next: Instant,
    aged: Instant,
    before: Option<Reading>,
    ratios: VecDeque<u64>,
    history: [VecDeque<u64>; FIGURES.len()],
}

/// The maps that are sampled.
struct Maps {
    pins: Pins,
    identity: Option<u64>,
    stats: MapHandle,
    scratch: MapHandle,
    /// The number of GETs of each CPU at the last sample.
    counts: Vec<u64>,
}

/// A reading of everything that only grows.
struct Reading {
    counters: counters::Sample,
    programs: Vec<ProgInfo>,
}

impl Watch {
    /// Finds an attached instance.
    pub fn open(name: &str) -> Result<Self> {
        Ok(Self {
            name: name.into(),
            maps: Maps::open(&Instance::open(name)?.0)?,
            asked: Asked::default(),
            sampled: Instant::now(),
            next: Instant::now(),
            aged: Instant::now(),
            before: None,
            ratios: VecDeque::new(),
            history: Default::default(),
        })
    }

    /// When [`Watch::sample`] wants to be called.
    pub fn next_sample(&self) -> Instant {
        self.next
    }

    /// Samples the key that was requested last on each CPU. Fails if the instance is gone.
    pub fn sample(&mut self) -> Result<()> {
        if !self.maps.are_current() {
            self.maps = Maps::open(&Instance::open(&self.name)?.0)?;
            // The hashes of another attachment have other seeds.
            self.asked = Asked::default();
        }
        let now = Instant::now();
        let part = part(now - self.sampled, self.next.saturating_duration_since(self.sampled));
        self.asked.seconds += part * (now - self.sampled).as_secs_f64();
        for (hash, gets) in self.maps.sample()? {
            self.asked.add(hash, part * gets as f64);
        }
        self.sampled = now;
        self.next = now + pause() * self.maps.counts.len().div_ceil(CPUS) as u32;
        Ok(())
    }

    /// Reads everything again.
    pub fn refresh(&mut self) -> Result<Snapshot> {
        let (instance, _lock) = Instance::open(&self.name)?;
        let reading = Reading {
            counters: counters::Sample::take(&instance)?,
            programs: instance.programs()?,
        };
        let is_measured = facts::measures_run_time();
        let before = self.before.as_ref();
        let rates = before.map(|before| Rates::between(&before.counters, &reading.counters));
        let cpus = before.map(|before| Rates::of_cpus(&before.counters, &reading.counters));
        let old = before.map_or(&[][..], |before| &before.programs);
        let seconds = rates.as_ref().filter(|_| is_measured).map(Rates::seconds);
        let programs = reading.programs.iter().map(|new| Cost::since(old, new, seconds)).collect();
        self.before = Some(reading);
        if let Some(rates) = &rates {
            remember(&mut self.ratios, rates.hit_ratio().unwrap_or_default());
            for (history, (_, counter)) in self.history.iter_mut().zip(FIGURES) {
                remember(history, rates.of(counter));
            }
        }
        let finder = Finder::new(&instance)?;
        let keys = self.asked.hottest(|hash| finder.find(hash))?;
        let samples = self.asked.samples.round() as u64;
        self.asked.age(self.aged.elapsed());
        self.aged = Instant::now();
        Ok(Snapshot {
            activity: instance.activity()?,
            up: instance.since().and_then(|since| since.elapsed().ok()),
            interfaces: instance.interfaces()?,
            loopback: instance.watches_loopback()?,
            locked: instance.memory_locked()?,
            memory: instance.config()?.memory,
            classes: Class::read_all(&instance)?,
            instance: instance.name,
            rates,
            ratios: self.ratios.clone(),
            history: self.history.clone(),
            cpus: cpus.unwrap_or_default(),
            programs,
            is_measured,
            keys,
            samples,
        })
    }
}

/// The share of the time since the last sample that this sample stands for. It is limited, so that
/// a late sample does not outweigh the others.
fn part(since: Duration, planned: Duration) -> f64 {
    let most = planned.max(Duration::from_micros(PAUSE.start)) * 2;
    (most.as_secs_f64() / since.as_secs_f64().max(1e-9)).min(1.0)
}

/// A random pause.
fn pause() -> Duration {
    let random = RandomState::new().hash_one(());
    Duration::from_micros(PAUSE.start + random % (PAUSE.end - PAUSE.start))
}

impl Cost {
    /// The cost of a program since `before`, `seconds` ago; those are `None` if nothing is
    /// measured.
    fn since(before: &[ProgInfo], now: &ProgInfo, seconds: Option<f64>) -> Self {
        let before = before.iter().find(|before| before.id == now.id);
        let measured = before.zip(seconds).map(|(before, seconds)| {
            let runs = now.runs.saturating_sub(before.runs);
            let time = now.run_time.saturating_sub(before.run_time);
            (runs as f64 / seconds.max(1e-9), (time.as_nanos() as u64).checked_div(runs))
        });
        Self {
            name: now.name.clone(),
            runs: measured.map(|(runs, _)| runs),
            ns: measured.and_then(|(_, ns)| ns),
        }
    }
}

fn remember(history: &mut VecDeque<u64>, number: f64) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(number.round() as u64);
}

impl Maps {
    fn open(instance: &Instance) -> Result<Self> {
        // Fails if another version made the maps.
        instance.config()?;
        let scratch = instance.pins.map("scratch")?;
        if scratch.value_size() as usize != size_of::<bmc_scratch>() {
            bail!(
                "the programs of instance {} are another version's (bmc attach --replace \
                 exchanges them)",
                instance.name
            );
        }
        let stats = instance.pins.map("stats")?;
        let counts = gets(&stats)?;
        Ok(Self {
            pins: instance.pins.clone(),
            identity: instance.pins.identity(),
            stats,
            scratch,
            counts,
        })
    }

    /// Whether they belong to the present attachment.
    fn are_current(&self) -> bool {
        self.identity.is_some() && self.pins.identity() == self.identity
    }

    /// For each CPU with requests since the last sample: the hash of the last key, and the number
    /// of GETs.
    fn sample(&mut self) -> Result<Vec<(u64, u64)>> {
        // The counters are read first. A key that is not counted yet is counted next time.
        let counts = gets(&self.stats)?;
        let before = std::mem::replace(&mut self.counts, counts);
        if before == self.counts {
            return Ok(Vec::new());
        }
        let values = self
            .scratch
            .lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .context("cannot read what was asked for last")?
            .unwrap_or_default();
        let asked =
            self.counts.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before));
        let sampled = values.iter().zip(asked).filter(|(_, asked)| *asked != 0);
        Ok(sampled.filter_map(|(value, asked)| Some((last_hash(value)?, asked))).collect())
    }
}

/// The hash in a CPU's scratch area. The kernel copies words atomically, so it is never torn.
fn last_hash(scratch: &[u8]) -> Option<u64> {
    let bytes = scratch.get(offset_of!(bmc_scratch, hash)..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

fn gets(stats: &MapHandle) -> Result<Vec<u64>> {
    let sample = counters::Sample::read(stats)?;
    Ok(sample.cpus().iter().map(|cpu| cpu.get("get_requests")).collect())
}

/// How often keys were requested, by hash. Older requests count less.
#[derive(Debug, Default)]
struct Asked {
    keys: HashMap<u64, f64>,
    all: f64,
    seconds: f64,
    samples: f64,
}

impl Asked {
    fn add(&mut self, hash: u64, gets: f64) {
        *self.keys.entry(hash).or_default() += gets;
        self.all += gets;
        self.samples += 1.0;
        if self.keys.len() > TOLD_APART {
            self.keys = self.by_count().into_iter().take(TOLD_APART / 2).collect();
        }
    }

    /// The hashes, the most requested first.
    fn by_count(&self) -> Vec<(u64, f64)> {
        let mut keys: Vec<_> = self.keys.iter().map(|(hash, count)| (*hash, *count)).collect();
        keys.sort_unstable_by(|(a, one), (b, other)| other.total_cmp(one).then(a.cmp(b)));
        keys
    }

    /// The most requested keys, as far as `find` finds entries for them.
    fn hottest(&self, find: impl Fn(u64) -> Result<Option<Entry>>) -> Result<Vec<HotKey>> {
        let mut keys = Vec::new();
        for (hash, count) in self.by_count().into_iter().take(KEYS) {
            if let Some(entry) = find(hash)? {
                let (rate, share) = (count / self.seconds.max(1e-9), count * 100.0 / self.all);
                keys.push(HotKey { entry, rate, share });
            }
        }
        Ok(keys)
    }

    /// Reduces the weight of everything so far, including the seconds that it took.
    fn age(&mut self, by: Duration) {
        let left = 0.5_f64.powf(by.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.all *= left;
        self.seconds *= left;
        self.samples *= left;
        self.keys.retain(|_, count| {
            *count *= left;
            *count > 1e-3
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn entry(hash: u64) -> Entry {
        Entry {
            key: hash.to_string().into_bytes(),
            address: Ipv4Addr::LOCALHOST.into(),
            port: 11211,
            vlan: 0,
            flags: 0,
            bytes: 1,
            left: Duration::from_secs(1),
            heat: 1,
        }
    }

    fn keys(asked: &Asked) -> Vec<(String, f64, f64)> {
        // Odd ones are not in the cache.
        let find = |hash| Ok((hash % 2 == 0).then(|| entry(hash)));
        let keys = asked.hottest(find).expect("nothing fails");
        let row = |hot: HotKey| {
            (String::from_utf8_lossy(&hot.entry.key).into_owned(), hot.rate, hot.share)
        };
        keys.into_iter().map(row).collect()
    }

    #[test]
    fn a_sample_stands_for_all_that_its_cpu_was_asked_for() {
        let mut asked = Asked { seconds: 2.0, ..Asked::default() };
        for (hash, keys) in [(4, 10.0), (2, 30.0), (3, 50.0), (4, 10.0)] {
            asked.add(hash, keys);
        }
        assert_eq!(keys(&asked), [("2".into(), 15.0, 30.0), ("4".into(), 10.0, 20.0)]);
    }

    #[test]
    fn what_is_long_ago_counts_less_but_rates_stay() {
        let mut asked = Asked { seconds: 1.0, ..Asked::default() };
        asked.add(2, 100.0);
        asked.age(HALF_LIFE);
        assert_eq!(keys(&asked), [("2".into(), 100.0, 100.0)]);
        asked.seconds += 0.5;
        asked.add(4, 50.0);
        assert_eq!(keys(&asked), [("2".into(), 50.0, 50.0), ("4".into(), 50.0, 50.0)]);
        asked.age(HALF_LIFE * 40);
        assert_eq!(keys(&asked), []);
    }

    #[test]
    fn tells_a_bounded_number_of_keys_apart_and_keeps_the_hottest() {
        let mut asked = Asked { seconds: 1.0, ..Asked::default() };
        asked.add(0, 1e6);
        for hash in 1..10 * TOLD_APART as u64 {
            asked.add(hash, 1.0);
            assert!(asked.keys.len() <= TOLD_APART);
        }
        assert_eq!(keys(&asked)[0].0, "0");
        assert!(keys(&asked).len() > 1);
    }

    #[test]
    fn finds_the_hash_in_what_a_cpu_works_with() {
        let mut scratch = vec![0; size_of::<bmc_scratch>()];
        let at = offset_of!(bmc_scratch, hash);
        scratch[at..at + 8].copy_from_slice(&7_u64.to_ne_bytes());
        assert_eq!(last_hash(&scratch), Some(7));
        assert_eq!(last_hash(&scratch[..at + 7]), None);
    }

    #[test]
    fn a_sample_that_is_late_does_not_outweigh_the_others() {
        let ms = Duration::from_millis;
        for (since, planned, expected) in
            [(3, 10, 1.0), (10, 10, 1.0), (20, 10, 1.0), (200, 10, 0.1), (0, 0, 1.0), (20, 0, 0.5)]
        {
            let part = part(ms(since), ms(planned));
            assert!((part - expected).abs() < 1e-9, "{since} {planned}: {part}");
        }
    }

    #[test]
    fn pauses_are_of_all_lengths() {
        let pauses: Vec<_> = (0..1000).map(|_| pause().as_micros() as u64).collect();
        assert!(pauses.iter().all(|pause| PAUSE.contains(pause)));
        for slice in PAUSE.step_by(1000) {
            let within = pauses.iter().filter(|pause| (slice..slice + 1000).contains(*pause));
            assert!((50..200).contains(&within.count()), "from {slice}: {pauses:?}");
        }
    }

    #[test]
    fn costs_are_those_since_the_refresh_before() {
        let info = |id, runs, ns| ProgInfo {
            id,
            name: "bmc_rx".into(),
            runs,
            run_time: Duration::from_nanos(ns),
        };
        let cost = |runs, ns| Cost { name: "bmc_rx".into(), runs, ns };
        let before = [info(1, 0, 0), info(2, 100, 50_000)];
        let now = info(2, 300, 70_000);
        assert_eq!(Cost::since(&before, &now, Some(2.0)), cost(Some(100.0), Some(100)));
        assert_eq!(Cost::since(&before, &before[1], Some(2.0)), cost(Some(0.0), None), "no run");
        assert_eq!(Cost::since(&before, &now, None), cost(None, None), "not measured");
        assert_eq!(Cost::since(&before[..1], &now, Some(2.0)), cost(None, None), "it is new");
    }

    #[test]
    fn forgets_the_oldest_of_a_long_history() {
        let mut history = VecDeque::new();
        for n in 0..HISTORY + 2 {
            remember(&mut history, n as f64 + 0.4);
        }
        assert_eq!((history.len(), history.front()), (HISTORY, Some(&2)));
    }
}
