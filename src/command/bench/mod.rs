// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc bench`: what bmc gains on this machine.
//!
//! One memcached has a network device for each side, to which that side's
//! programs stay attached while a case is measured. The sides take turns by the
//! client asking at one address after the other, so that whatever else the
//! machine does hits all of them, and each cache stays as warm as it was.
//!
//! Every measurement is proved: what was answered must be what bmc's counters
//! and memcached's own say, together.

pub mod cases;
pub mod histogram;
pub mod keys;
pub mod load;
pub mod net;
pub mod random;
pub mod report;
pub mod server;
pub mod texts;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use crate::cli;
use crate::cli::Mode;
use crate::cli::Steer;
use crate::command::attach;
use crate::command::attach::Attached;
use crate::host::facts as system;
use crate::instance::Instance;
use crate::memcached::probe as memcached;
use crate::message;
use crate::view::counters::Sample;
use cases::About;
use cases::CASES;
use cases::Case;
use histogram::PERCENTILES;
use load::Client;
use load::Outcome;
use net::Net;
use report::Machine;
use report::Measured;
use report::Row;
use server::Memcached;
use server::Sockets;

/// The share of what memcached can do without bmc at which latency is measured.
const PACE: f64 = 0.7;

/// After it was attached bmc trusts nothing for a second, and takes connections
/// that are used meanwhile for ones that it has not seen from their start.
pub const SETTLED: Duration = Duration::from_millis(1500);

/// Before each measurement, uncounted.
const WARM_UP: Duration = Duration::from_millis(50);

/// A cache is warm when its hit ratio differs by so little from one of these
/// spans of time to the next, or after so many of them.
const SPAN: Duration = Duration::from_millis(400);
const SPANS: u32 = 30;
const STABLE: f64 = 0.005;

/// By then bmc has seen for ten seconds whether it pays to be awake: if too much goes over
/// TCP, it sleeps.
const DECIDED: Duration = Duration::from_secs(12);

/// Entries outlive the measurements, so that these show what a hit is worth and
/// not how long a turn takes.
const AGE: Duration = Duration::from_secs(3600);

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Without,
    Native,
    Tc,
    Generic,
    Reflector,
    /// Each worker of memcached has a UDP socket.
    Sockets,
    SocketsNative,
    /// The same, chosen by the client and by the CPU.
    ByClient,
    ByCpu,
}

impl Side {
    /// In the order in which they are declared.
    const ALL: [Self; 9] = [
        Self::Without,
        Self::Native,
        Self::Tc,
        Self::Generic,
        Self::Reflector,
        Self::Sockets,
        Self::SocketsNative,
        Self::ByClient,
        Self::ByCpu,
    ];

    /// Those that a case compares.
    fn of(case: &Case) -> Vec<Self> {
        if case.about == About::Sockets {
            return vec![
                Self::Without,
                Self::Native,
                Self::Sockets,
                Self::SocketsNative,
                Self::ByClient,
                Self::ByCpu,
            ];
        }
        let mut sides = vec![Self::Without, Self::Native, Self::Tc, Self::Generic];
        // A reflector cannot speak TCP.
        if !case.uses_tcp() {
            sides.push(Self::Reflector);
        }
        sides
    }

    /// The name of it, of its network device and of its instance of bmc.
    fn name(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::Native => "native",
            Self::Tc => "tc",
            Self::Generic => "generic",
            Self::Reflector => "reflector",
            Self::Sockets => "sockets",
            Self::SocketsNative => "sockets-native",
            Self::ByClient => "by-client",
            Self::ByCpu => "by-cpu",
        }
    }

    fn sockets(self) -> Sockets {
        match self {
            Self::Sockets | Self::SocketsNative => Sockets::Own(Steer::Datagram),
            Self::ByClient => Sockets::Own(Steer::Client),
            Self::ByCpu => Sockets::Own(Steer::Cpu),
            _ => Sockets::Shared,
        }
    }

    /// Where its clients find memcached.
    fn address(self) -> SocketAddr {
        Net::server(self as usize, self.sockets().port())
    }

    fn mode(self) -> Option<Mode> {
        match self {
            Self::Without | Self::Reflector | Self::Sockets | Self::ByClient | Self::ByCpu => None,
            Self::Native | Self::SocketsNative => Some(Mode::Native),
            Self::Tc => Some(Mode::Tc),
            Self::Generic => Some(Mode::Generic),
        }
    }
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Load {
    Saturated,
    /// So many a second.
    Paced(f64),
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Saturated => "saturated",
            Self::Paced(_) => "paced",
        }
    }

    fn rate(self) -> Option<f64> {
        match self {
            Self::Saturated => None,
            Self::Paced(rate) => Some(rate),
        }
    }
}

/// Which CPUs do what.
struct Cpus {
    /// Of memcached's workers.
    workers: Vec<usize>,
    /// Of the clients, in their order.
    clients: Vec<usize>,
}

impl Cpus {
    fn choose() -> Result<Self> {
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

    fn describe(&self) -> String {
        let ([worker, other], [client, second]) = (&self.workers[..], &self.clients[..]) else {
            return format!("memcached and the client share the only CPU, {}", self.workers[0]);
        };
        format!(
            "memcached on CPU {worker} (a second worker on CPU {other}), the client on CPU \
             {client} (a second one on CPU {second})"
        )
    }
}

/// Measures the cases and prints the report.
pub fn run(args: &cli::Bench, out: &mut impl Write) -> Result<()> {
    if args.list {
        return report::list(out);
    }
    system::check_capabilities()?;
    let memcached = memcached::version(&args.memcached, "--memcached")?;
    let cpus = Cpus::choose()?;
    let machine = Machine::look(memcached)?;
    let net = Net::new(&Side::ALL.map(Side::name), Side::Reflector.name())?;
    let bench = Bench { args, net, cpus };
    let cases = if args.cases.is_empty() { CASES.iter().collect() } else { args.cases.clone() };
    let mut measured = Vec::new();
    for case in cases {
        measured.push(bench.measure(case).with_context(|| format!("case {}", case.name))?);
    }
    let settings = report::Settings { args, wiring: bench.cpus.describe() };
    if args.json {
        writeln!(out, "{}", report::json(&machine, &settings, &measured))?;
    } else {
        write!(out, "{}", report::table(&machine, &settings, &measured))?;
    }
    Ok(())
}

struct Bench<'a> {
    args: &'a cli::Bench,
    net: Net,
    cpus: Cpus,
}

impl Bench<'_> {
    fn measure(&self, case: &'static Case) -> Result<Measured> {
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
        Memcached::start(&self.args.memcached, side.sockets(), case.workers, &self.net, at)
    }

    fn attach(&self, case: &Case, side: Side, mode: Mode) -> Result<Attached<'static>> {
        let args = cli::Attach {
            interfaces: vec![side.name().into()],
            ports: vec![side.sockets().port()],
            mode,
            memory: case.memory.unwrap_or(self.args.memory),
            max_age: AGE,
            unknown_ttl: AGE,
            allow: Vec::new(),
            no_loopback: false,
            replace: false,
            foreground: false,
        };
        attach::attach(&args, side.name())
            .with_context(|| format!("cannot attach in mode {}", side.name()))?;
        Ok(Attached(side.name()))
    }

    /// All sides in turns; each round another one begins.
    fn rounds(
        &self,
        load: Load,
        lanes: &mut [Lane<'_>],
        memcacheds: &mut BTreeMap<Sockets, Memcached>,
    ) -> Result<Vec<Row>> {
        let mut turns: Vec<_> = lanes.iter().map(|_| Vec::new()).collect();
        for round in 0..self.args.rounds {
            for turn in 0..lanes.len() {
                let place = (round as usize + turn) % lanes.len();
                let lane = &mut lanes[place];
                let what = format!("{} {} {}", lane.case.name, lane.side.name(), load.name());
                let memcached = memcacheds.get_mut(&lane.side.sockets()).expect("all were started");
                let seen = lane
                    .measure(load, self.args.seconds, memcached)
                    .with_context(|| what.clone())?;
                message::tell(&format!("{what} {}/{}: {seen}", round + 1, self.args.rounds));
                turns[place].push(seen);
            }
        }
        Ok(lanes.iter().zip(turns).map(|(lane, turns)| Row::new(lane.side, load, &turns)).collect())
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Answered requests a second.
    rate: f64,
    /// As [`PERCENTILES`], in microseconds.
    latency: [f64; PERCENTILES.len()],
    /// Keys that bmc looked up and found.
    lookups: u64,
    hits: u64,
    requests: u64,
    lost: u64,
    /// The share of the time in which the client, or memcached if that is more,
    /// was ready to run and the CPU was another's.
    waited: f64,
}

impl std::fmt::Display for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, _, p99, ..] = self.latency;
        write!(f, "{:.0}/s, p50 {p50:.0} us, p99 {p99:.0} us", self.rate)?;
        if self.hits > 0 {
            write!(f, ", hits {:.1} %", report::ratio(self.hits, self.lookups) * 100.0)?;
        }
        if self.lost > 0 {
            write!(f, ", {} of {} lost", self.lost, self.requests)?;
        }
        Ok(())
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

    /// Fills the cache with what the load asks for.
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

    /// Keys that bmc found, and those that it looked up.
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

/// Fails unless each answer has one who gave it: bmc `hits` keys, memcached
/// `gets`.
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
