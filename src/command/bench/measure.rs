// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Measures one case: starts the memcacheds, attaches bmc, and lets the sides take turns.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::cases::Case;
use super::client::{Client, Outcome};
use super::net::{self, Net};
use super::options::Options;
use super::report::{self, Measured, Row, Turn};
use super::server::{Memcached, Sockets};
use super::sides::{AGE, Load, PACE, Side};
use crate::command::attach::{self, Attached};
use crate::instance::Instance;
use crate::load;
use crate::load::options::Mode;
use crate::message;
use crate::view::counters::Sample;

/// How long to wait after bmc was attached. For a second it gives no leases, and connections that
/// are used meanwhile count as ones whose start it has not seen.
pub const SETTLED: Duration = Duration::from_millis(1500);

/// The load before each measurement, which is not measured.
const WARM_UP: Duration = Duration::from_millis(50);

/// A cache is warm when its hit ratio is stable from one span of time to the next, or after a
/// number of spans.
const SPAN: Duration = Duration::from_millis(400);
const SPANS: u32 = 30;
const STABLE: f64 = 0.005;

/// By then bmc has compared UDP and TCP load for ten seconds, and sleeps if too little goes over
/// UDP.
const DECIDED: Duration = Duration::from_secs(12);

/// The CPUs of memcached and of the clients.
pub struct Cpus {
    /// The CPUs of memcached's workers.
    workers: Vec<usize>,
    /// The CPU of each client.
    clients: Vec<usize>,
}

impl Cpus {
    /// Chooses among the CPUs that this process may use.
    pub fn choose() -> Result<Self> {
        let (workers, clients) = match net::cpus()?[..] {
            [] => bail!("there is no CPU to run on"),
            [only] => (vec![only], vec![only]),
            [one, other] => (vec![one, other], vec![other, one]),
            [one, first, second] => (vec![one, second], vec![first, second]),
            [one, first, second, other, ..] => (vec![one, other], vec![first, second]),
        };
        Ok(Self { workers, clients })
    }

    /// Whether there are enough for a case.
    fn suffice(&self, case: &Case) -> bool {
        case.clients.max(case.workers) <= self.clients.len()
    }

    /// A description for the report.
    pub fn describe(&self) -> String {
        let ([worker, other], [client, second]) = (&self.workers[..], &self.clients[..]) else {
            return format!("memcached and the client share the only CPU, {}", self.workers[0]);
        };
        format!(
            "memcached on CPU {worker} (a second worker on CPU {other}), the client on CPU \
             {client} (a second one on CPU {second})"
        )
    }
}

/// Measures cases, one after the other.
pub struct Bench<'a> {
    /// What to measure.
    pub options: &'a Options,
    /// The network that it is measured on.
    pub net: Net,
    /// The CPUs.
    pub cpus: Cpus,
}

impl Bench<'_> {
    /// Measures a case.
    pub fn measure(&self, case: &'static Case) -> Result<Measured> {
        if !self.cpus.suffice(case) {
            let skipped = String::from("it needs 2 CPUs");
            message::tell(&format!("{}: skipped, {skipped}", case.name));
            return Ok(Measured { case, skipped: Some(skipped), rows: Vec::new() });
        }
        message::tell(&format!("{}: {}", case.name, case.description));
        net::pin(&self.cpus.workers[..case.workers])?;
        let sides = Side::of(case);
        let mut memcacheds = BTreeMap::new();
        for side in &sides {
            if let Entry::Vacant(place) = memcacheds.entry(side.sockets()) {
                let memcached = place.insert(self.start(case, *side)?);
                if case.present {
                    memcached.store(case)?;
                }
            }
        }
        let attached: Vec<_> = sides
            .iter()
            .filter_map(|side| Some((*side, side.mode()?)))
            .map(|(side, mode)| self.attach(case, side, mode))
            .collect::<Result<_>>()?;
        sleep(SETTLED);
        let mut lanes = sides
            .into_iter()
            .map(|side| Lane::open(self, case, side))
            .collect::<Result<Vec<_>>>()?;
        for lane in &mut lanes {
            lane.warm_up()?;
        }
        let start = Instant::now();
        while case.uses_tcp() && start.elapsed() < DECIDED {
            for lane in lanes.iter_mut().filter(|lane| lane.side.mode().is_some()) {
                lane.run(Load::Saturated, SPAN)?;
            }
        }
        let mut rows = self.rounds(Load::Saturated, &mut lanes, &mut memcacheds)?;
        let base = rows[0].rate;
        if base > 0.0 {
            rows.extend(self.rounds(Load::Paced(base * PACE), &mut lanes, &mut memcacheds)?);
        }
        drop(lanes);
        for bmc in attached {
            bmc.detach()?;
        }
        Ok(Measured { case, skipped: None, rows })
    }

    fn start(&self, case: &Case, side: Side) -> Result<Memcached> {
        let at = side.address();
        Memcached::start(&self.options.memcached, side.sockets(), case.workers, &self.net, at)
    }

    fn attach(&self, case: &Case, side: Side, mode: Mode) -> Result<Attached<'static>> {
        let options = attach::Options {
            interfaces: vec![side.name().into()],
            cache: load::options::Options {
                ports: vec![side.sockets().port()],
                mode,
                memory: case.memory.unwrap_or(self.options.memory),
                max_age: AGE,
                unknown_ttl: AGE,
                ..Default::default()
            },
            watch_loopback: true,
            ..Default::default()
        };
        attach::attach(&options, side.name())
            .with_context(|| format!("cannot attach in mode {}", side.name()))?;
        Ok(Attached(side.name()))
    }

    /// Measures all sides in turn. Each round starts with another side.
    fn rounds(
        &self,
        load: Load,
        lanes: &mut [Lane<'_>],
        memcacheds: &mut BTreeMap<Sockets, Memcached>,
    ) -> Result<Vec<Row>> {
        let mut turns: Vec<_> = lanes.iter().map(|_| Vec::new()).collect();
        for round in 0..self.options.rounds {
            for turn in 0..lanes.len() {
                let place = (round as usize + turn) % lanes.len();
                let lane = &mut lanes[place];
                let what = format!("{} {} {}", lane.case.name, lane.side.name(), load.name());
                let memcached = memcacheds.get_mut(&lane.side.sockets()).expect("all were started");
                let seen = lane
                    .measure(load, self.options.seconds, memcached)
                    .with_context(|| what.clone())?;
                message::tell(&format!("{what} {}/{}: {seen}", round + 1, self.options.rounds));
                turns[place].push(seen);
            }
        }
        Ok(lanes.iter().zip(turns).map(|(lane, turns)| Row::new(lane.side, load, &turns)).collect())
    }
}

/// The clients of one side.
struct Lane<'a> {
    bench: &'a Bench<'a>,
    case: &'a Case,
    side: Side,
    clients: Vec<Client<'a>>,
}

impl<'a> Lane<'a> {
    fn open(bench: &'a Bench<'_>, case: &'a Case, side: Side) -> Result<Self> {
        let echo = side == Side::Reflector;
        let Cpus { workers, clients } = &bench.cpus;
        let workers = &workers[..case.workers];
        let open =
            |(cpu, seed)| Client::open(case, side.address(), echo, workers.contains(cpu), seed);
        let all = || clients.iter().zip(1..=case.clients as u64).map(open).collect::<Result<_>>();
        let clients = bench.net.within(None, all)?;
        Ok(Self { bench, case, side, clients })
    }

    /// All clients at once, each on its CPU.
    fn run(&mut self, load: Load, time: Duration) -> Result<Outcome> {
        let Bench { net, cpus, .. } = self.bench;
        let rate = load.rate().map(|rate| rate / self.clients.len() as f64);
        thread::scope(|scope| {
            let running: Vec<_> = self
                .clients
                .iter_mut()
                .zip(&cpus.clients)
                .map(|(client, cpu)| {
                    scope.spawn(move || net.within(Some(*cpu), || client.run(rate, time)))
                })
                .collect();
            let mut seen = Outcome::default();
            for client in running {
                let done = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                seen.merge(&done?);
            }
            Ok(seen)
        })
    }

    /// Fills the cache by the load itself.
    fn warm_up(&mut self) -> Result<()> {
        if self.case.multi > 1 && self.side.mode().is_some() {
            // Only the reply to a GET of one key becomes an entry.
            let single = Case { multi: 1, ..*self.case };
            Lane::open(self.bench, &single, self.side)?.warm_up()?;
        }
        let mut ratio = -1.0;
        for _ in 0..SPANS {
            let before = self.counters()?;
            let seen = self.run(Load::Saturated, SPAN)?;
            ensure!(seen.answered > 0, "side {}: not one reply", self.side.name());
            let after = self.counters()?;
            let now = report::ratio(after.0 - before.0, after.1 - before.1);
            if self.side.mode().is_none() || (now - ratio).abs() < STABLE {
                break;
            }
            ratio = now;
        }
        Ok(())
    }

    /// The numbers of keys that bmc found and looked up.
    fn counters(&self) -> Result<(u64, u64)> {
        if self.side.mode().is_none() {
            return Ok((0, 0));
        }
        let total = Sample::take(&Instance::open(self.side.name())?.0)?.total();
        Ok((total.get("hits"), total.get("get_keys")))
    }

    fn measure(&mut self, load: Load, time: Duration, memcached: &mut Memcached) -> Result<Turn> {
        self.run(load, WARM_UP)?;
        let before = (self.counters()?, memcached.gets()?);
        let waited = memcached.waited();
        let seen = self.run(load, time)?;
        let waited = seen.waited.max(memcached.waited().saturating_sub(waited));
        let after = (self.counters()?, memcached.gets()?);
        let hits = after.0.0 - before.0.0;
        prove(self.side, &seen, hits, after.1 - before.1)?;
        Ok(Turn {
            rate: seen.rate(),
            latency: seen.latency.percentiles(),
            lookups: after.0.1 - before.0.1,
            hits,
            requests: seen.requests,
            lost: seen.lost,
            waited: waited.as_secs_f64() / seen.time.as_secs_f64(),
        })
    }
}

/// Fails unless the counters explain every answer: bmc answered `hits` keys, memcached `gets`.
fn prove(side: Side, seen: &Outcome, hits: u64, gets: u64) -> Result<()> {
    let Outcome { keys_asked, keys_answered, .. } = *seen;
    let counted = format!(
        "{keys_asked} keys were asked for and {keys_answered} answered; bmc counted {hits} hits \
         and memcached {gets} gets"
    );
    ensure!(hits + gets <= keys_asked, "more answers than questions: {counted}");
    if side == Side::Reflector {
        ensure!(gets == 0, "memcached saw what the reflector answers: {counted}");
    } else {
        ensure!(keys_answered <= hits + gets, "answers of nobody: {counted}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_contradict_are_an_error() {
        let prove = |side, keys_asked, keys_answered, hits, gets| {
            let seen = Outcome { keys_asked, keys_answered, ..Outcome::default() };
            prove(side, &seen, hits, gets).map_err(|err| err.to_string())
        };
        assert_eq!(prove(Side::Native, 100, 100, 90, 10), Ok(()));
        assert_eq!(prove(Side::Native, 100, 98, 90, 10), Ok(()));
        assert_eq!(prove(Side::Reflector, 100, 100, 0, 0), Ok(()));
        for (side, asked, answered, hits, gets, why) in [
            (Side::Native, 100, 100, 101, 0, "more answers"),
            (Side::Native, 100, 100, 100, 1, "more answers"),
            (Side::Native, 100, 100, 89, 10, "answers of nobody"),
            (Side::Without, 100, 100, 0, 99, "answers of nobody"),
            (Side::Reflector, 100, 100, 0, 1, "memcached saw"),
        ] {
            let err = prove(side, asked, answered, hits, gets).expect_err(why);
            assert!(err.starts_with(why), "{err}");
        }
    }
}
