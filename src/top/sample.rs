// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What `bmc top` shows: two readings a refresh apart, and between them samples of
//! which keys are asked for.
//!
//! No program counts requests by key: a hit would pay for it. But each CPU keeps the
//! hash of the key that it was asked for last. Looked at now and then it stands for
//! all GETs that this CPU got since: their number is known. Of a GET with several keys
//! the last stands for it. So what this costs depends neither on the load nor on the
//! size of the cache.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::mem::offset_of;
use std::ops::Range;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::entries::Entry;
use crate::entries::Finder;
use crate::instance::Activity;
use crate::instance::Class;
use crate::instance::Dir;
use crate::instance::Instance;
use crate::instance::Interface;
use crate::kernel::ProgInfo;
use crate::output::classes_json;
use crate::output::escaped;
use crate::output::interfaces_json;
use crate::output::state_name;
use crate::skel::types::bmc_scratch;
use crate::stats;
use crate::stats::Rates;
use crate::stats::per_cpu_json;
use crate::stats::tenths;
use crate::stats::unix_time;
use crate::system;

/// The rates that are shown with their history: title and counter.
pub const FIGURES: [(&str, &str); 5] = [
    ("requests", "get_requests"),
    ("hits", "hits"),
    ("misses", "misses"),
    ("fills", "fills"),
    ("invalidations", "invalidations"),
];

/// Intervals that are remembered.
const HISTORY: usize = 512;

/// Keys that are shown at most.
const KEYS: usize = 64;

/// Keys that are told apart at most; a short memory is as good for the hottest.
const TOLD_APART: usize = 8192;

/// A sample counts half after this time.
const HALF_LIFE: Duration = Duration::from_secs(5);

/// From sample to sample, in microseconds: at random within these, or a client that
/// asks for its keys in turn would be met at the same ones again and again.
const PAUSE: Range<u64> = 5_000..15_000;

/// A sample copies 4 KB from each CPU: this many CPUs for each [`PAUSE`].
const CPUS: usize = 32;

/// Everything that is shown.
#[derive(Clone, Debug)]
pub struct State {
    /// The instance's name.
    pub instance: String,
    /// What the cache does.
    pub activity: Activity,
    /// Since it was attached.
    pub up: Option<Duration>,
    /// What it is attached to, but for the loopback.
    pub interfaces: Vec<Interface>,
    /// Whether that is watched.
    pub loopback: bool,
    /// Bytes that its maps lock.
    pub locked: u64,
    /// `--memory`, in bytes.
    pub memory: u64,
    /// What became of the memory for slots.
    pub classes: Vec<Class>,
    /// Since the refresh before; none at the first.
    pub rates: Option<Rates>,
    /// Hit ratios in percent, oldest first.
    pub ratios: VecDeque<u64>,
    /// The [`FIGURES`], a second, oldest first.
    pub history: [VecDeque<u64>; FIGURES.len()],
    /// The same as `rates` for each CPU.
    pub cpus: Vec<Rates>,
    /// Since the refresh before.
    pub programs: Vec<Cost>,
    /// Whether the kernel measures what they cost.
    pub is_measured: bool,
    /// The hottest first.
    pub keys: Vec<HotKey>,
    /// Samples that these come from.
    pub samples: u64,
}

/// What a program cost since the refresh before.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Its name.
    pub name: String,
    /// Runs a second, if they are counted.
    pub runs: Option<f64>,
    /// Nanoseconds of a run, if it ran.
    pub ns: Option<u64>,
}

/// A key that is asked for often.
#[derive(Clone, Debug)]
pub struct HotKey {
    /// What is cached of it.
    pub entry: Entry,
    /// Requests a second, estimated.
    pub rate: f64,
    /// Percentage of all requests, likewise.
    pub share: f64,
}

impl State {
    /// The titles of [`State::line`].
    pub fn title() -> String {
        format!("{}  hottest key", Rates::TITLE)
    }

    /// In one line: the rates, and the hottest key.
    pub fn line(&self) -> String {
        let key = self.keys.first().map_or("-".into(), |hot| escaped(&hot.entry.key));
        format!("{}  {key}", self.rates.as_ref().map_or_else(String::new, Rates::line))
    }

    /// As one object; null is what is not known.
    ///
    /// # Panics
    ///
    /// If an entry were not written as JSON.
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

/// An attached instance that is looked at again and again.
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

/// Two of an attachment's maps.
struct Maps {
    dir: Dir,
    identity: Option<u64>,
    stats: MapHandle,
    scratch: MapHandle,
    /// GETs that each CPU had got at the last sample.
    counts: Vec<u64>,
}

/// What only grows.
struct Reading {
    counters: stats::Sample,
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

    /// Looks at what each CPU was asked for last. Fails when the instance is gone.
    pub fn sample(&mut self) -> Result<()> {
        if !self.maps.are_current() {
            self.maps = Maps::open(&Instance::open(&self.name)?.0)?;
            // Hashes are another attachment's otherwise.
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

    /// Reads everything anew.
    pub fn refresh(&mut self) -> Result<State> {
        let (instance, _lock) = Instance::open(&self.name)?;
        let reading =
            Reading { counters: stats::Sample::take(&instance)?, programs: instance.programs()? };
        let is_measured = system::measures_run_time();
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
        Ok(State {
            activity: instance.activity()?,
            up: instance.since().and_then(|since| since.elapsed().ok()),
            interfaces: instance.interfaces()?,
            loopback: instance.watches_loopback()?,
            locked: instance.memory_locked()?,
            memory: instance.config()?.memory,
            classes: instance.classes()?,
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

/// How much of the time since the last sample this one stands for: one that is late
/// must not outweigh the others.
fn part(since: Duration, planned: Duration) -> f64 {
    let most = planned.max(Duration::from_micros(PAUSE.start)) * 2;
    (most.as_secs_f64() / since.as_secs_f64().max(1e-9)).min(1.0)
}

/// Another time each time.
fn pause() -> Duration {
    let random = RandomState::new().hash_one(());
    Duration::from_micros(PAUSE.start + random % (PAUSE.end - PAUSE.start))
}

impl Cost {
    /// Of a program, within so many seconds if it is measured, since it was among
    /// others.
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
        // Fails for another version's.
        instance.config()?;
        let scratch = instance.dir.map("scratch")?;
        if scratch.value_size() as usize != size_of::<bmc_scratch>() {
            bail!(
                "the programs of instance {} are another version's (bmc attach --replace \
                 exchanges them)",
                instance.name
            );
        }
        let stats = instance.dir.map("stats")?;
        let counts = gets(&stats)?;
        Ok(Self {
            dir: instance.dir.clone(),
            identity: instance.dir.identity(),
            stats,
            scratch,
            counts,
        })
    }

    /// Whether they are those of the attachment that there is now, if any.
    fn are_current(&self) -> bool {
        self.identity.is_some() && self.dir.identity() == self.identity
    }

    /// For each CPU that was asked for something since it was last looked at: the hash
    /// of its last key, and how many GETs there were.
    fn sample(&mut self) -> Result<Vec<(u64, u64)>> {
        // In this order: the last key may not be counted yet, and is then next time.
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

/// The kernel copies words whole, so it is of one key.
fn last_hash(scratch: &[u8]) -> Option<u64> {
    let bytes = scratch.get(offset_of!(bmc_scratch, hash)..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

fn gets(stats: &MapHandle) -> Result<Vec<u64>> {
    let sample = stats::Sample::read(stats)?;
    Ok(sample.cpus().iter().map(|cpu| cpu.get("get_requests")).collect())
}

/// How often keys were asked for, by their hashes; less for what is long ago.
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

    /// The keys asked for most first.
    fn by_count(&self) -> Vec<(u64, f64)> {
        let mut keys: Vec<_> = self.keys.iter().map(|(hash, count)| (*hash, *count)).collect();
        keys.sort_unstable_by(|(a, one), (b, other)| other.total_cmp(one).then(a.cmp(b)));
        keys
    }

    /// The keys asked for most, as far as `find` knows an entry.
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

    /// Has everything so far count for less, the seconds that it took as well.
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
