// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Whether every reply is one that memcached could have given: many clients read
//! and write few keys at the same time, through bmc, while the network loses,
//! doubles and reorders packets, bmc comes and goes and memcached is killed.
//! What each key's clients saw must fit one register (`history`). Root only.
//!
//! The number of operations is in `BMC_STRESS_OPS`, 200,000 by default; a
//! thorough run takes 10,000,000, some forty minutes. Rounds are independent:
//! each has keys of its own, so that what is kept of one can be dropped.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]

#[path = "../common/mod.rs"]
mod common;

mod chaos;
mod clients;
mod history;

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use bmc::host::sys;
use bmc::instance::Instance;
use bmc::skel::types::bmc_global;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use nix::sys::signal::Signal;
use serde_json::Value;

use chaos::Chaos;
use chaos::Danger;
use chaos::FAULTS;
use clients::COUNTER;
use clients::KEYS;
use clients::Log;
use clients::World;
use clients::mood;
use common::Bmc;
use common::Memcached;
use common::Namespace;
use common::Net;
use common::Rng;
use common::RngExt as _;
use common::can_run;
use common::run;
use common::total;
use history::Operation;
use history::check;
use history::tell;

const READERS: usize = 4;
const POLITE: usize = 4;
const RUDE: usize = 3;
/// memcached has several workers.
const OPTIONS: &[&str] = &["-t", "4"];
/// Entries live longer than a round, so that a stale one is seen.
const LASTING: [&str; 4] = ["--memory", "16M", "--unknown-ttl", "60s"];
/// Rounds take turns.
const MODES: [&str; 3] = ["native", "tc", "generic"];
/// Packets of a hundred to which something happens.
const PERCENT: u32 = 6;
const NONE: Danger = [[false; 2]; 2];
const UDP: Danger = [[true, false]; 2];
const ALL: Danger = [[true; 2]; 2];

/// The counters that are added up; they start anew with each attach.
const TOTALS: [&str; 10] = [
    "get_keys",
    "hits",
    "leases",
    "fills",
    "fill_refusals.raced",
    "lease_refusals.outstanding",
    "write_requests",
    "write_untracked",
    "flushes",
    "sleeps",
];

#[test]
fn every_history_is_linearizable() {
    let name = "every_history_is_linearizable";
    if !can_run(name) {
        return;
    }
    let wanted: usize =
        std::env::var("BMC_STRESS_OPS").map_or(200_000, |ops| ops.parse().expect("a number"));
    let mut rng = Rng::from_env(name);
    let net = Rc::new(network(name));
    let chaos = Chaos::new(&net);
    let mut memcached = Memcached::start_on_all_cpus(&net.server, OPTIONS);
    let mut done = 0;
    let mut seen = BTreeMap::new();
    let mut totals = BTreeMap::new();
    for number in 1.. {
        let mut round = Round::new(&net, &chaos, number);
        memcached = round.run(&mut rng, memcached);
        check_round(&round.world.keys, &round.history, done);
        done += round.history.len();
        for operation in &round.history {
            *seen.entry(operation.what).or_insert(0) += 1;
        }
        for (name, count) in round.totals {
            *totals.entry(name).or_insert(0) += count;
        }
        if done >= wanted {
            break;
        }
    }
    println!("{name}: {done} operations: {seen:?}; bmc: {totals:?}");

    for (way, faults) in ["UDP to", "TCP to", "UDP from", "TCP from"].iter().zip(chaos.injected().0)
    {
        println!("{way} memcached: {FAULTS:?} {faults:?}");
        assert!(faults.iter().all(|&count| count > 0), "{way} memcached: {FAULTS:?} {faults:?}");
    }
    assert!(chaos.injected().1 > 0, "no address was ever lost");
    let verbs = ["set", "delete", "add", "replace", "cas", "touch", "gat", "gets", "incr"];
    for what in
        verbs.into_iter().chain(["get (UDP)", "get many (UDP)", "get late (UDP)", "restart"])
    {
        assert!(seen.contains_key(what), "no {what} in {seen:?}");
    }
    let total = |name| totals[name];
    // In half of the time nothing can be cached.
    assert!(total("hits") * 20 > total("get_keys"), "few hits: {totals:?}");
    assert!(TOTALS.iter().all(|name| total(name) > 0), "{totals:?}");
}

/// The network of the test: the client has three addresses, and lost segments
/// are soon sent again.
fn network(name: &str) -> Net {
    let net = Net::new(name);
    let ip = |inside: &Namespace, args: &str| {
        run(Command::new("ip").args(["-n", inside.name()]).args(args.split(' ')))
    };
    for address in [clients::STORM_HOME, clients::SLOW_HOME] {
        ip(&net.client, &format!("address add {address}/24 dev {}", Net::DEVICE));
    }
    for inside in [&net.client, &net.server] {
        ip(inside, &format!("route replace 10.11.12.0/24 dev {} rto_min 100ms", Net::DEVICE));
    }
    // So that the client never asks, and the server never learns by its asking.
    let link = ip(&net.server, &format!("-j link show {}", Net::DEVICE));
    let link: Value = serde_json::from_str(&link).expect("ip speaks JSON");
    let address = link[0]["address"].as_str().expect("Ethernet has addresses");
    let server = Net::SERVER4;
    ip(
        &net.client,
        &format!("neigh replace {server} lladdr {address} dev {} nud permanent", Net::DEVICE),
    );
    net
}

/// More than anybody asks for in ten seconds, in the units of bpf/sleep.bpf.h.
const GAIN: i64 = 1 << 40;

/// Has bmc look at once whether it pays to be awake, as if this had been gained since it
/// looked last.
fn weigh(bmc: &Bmc, gain: i64) {
    const TEN_SECONDS: u64 = 10_000_000_000;
    let instance = Instance::find(bmc.instance()).expect("it is attached");
    let map = instance.pins.map("global").expect("it is pinned");
    let global = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).expect("it is readable");
    let lessen = |offset: usize, by: u64| {
        let word = global.as_ref().and_then(|global| global[offset..].first_chunk());
        let word = u64::from_ne_bytes(*word.expect("it has that word"));
        sys::store(&map, offset, word.wrapping_sub(by)).expect("it is ours");
    };
    lessen(offset_of!(bmc_global, balance), gain as u64);
    lessen(offset_of!(bmc_global, looked), TEN_SECONDS);
}

/// Ends the round when a thread is done or panics.
struct EndRound<'a>(&'a AtomicBool, bool);

impl Drop for EndRound<'_> {
    fn drop(&mut self) {
        if self.1 || thread::panicking() {
            self.0.store(true, SeqCst);
        }
    }
}

/// One bmc from before its attach to its detach, and what its clients saw.
struct Round<'a> {
    net: &'a Rc<Net>,
    world: World<'a>,
    history: Vec<Operation>,
    totals: BTreeMap<&'static str, u64>,
    log: Log,
    mode: &'static str,
    /// The cache falls asleep and wakes, which takes long.
    sleeps: bool,
}

impl<'a> Round<'a> {
    fn new(net: &'a Rc<Net>, chaos: &'a Chaos, number: usize) -> Self {
        let world = World {
            client: &net.client,
            server: &net.server,
            chaos,
            keys: (0..KEYS).map(|key| format!("{number}-{}", "k".repeat(key + 1))).collect(),
            origin: Instant::now(),
            phase: AtomicU32::new(0),
            losses: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        };
        let log = Log::new(0);
        let mode = MODES[(number - 1) % MODES.len()];
        let sleeps = number % 4 == 1;
        Self { net, world, history: Vec::new(), totals: BTreeMap::new(), log, mode, sleeps }
    }

    fn run(&mut self, rng: &mut Rng, memcached: Memcached) -> Memcached {
        self.world.chaos.set(0, NONE);
        let Self { net, world, totals, log, mode, sleeps, .. } = self;
        let world = &*world;
        let mut logs = Vec::new();
        let memcached = thread::scope(|scope| {
            type Client = fn(&World<'_>, Log, Rng) -> Log;
            let kinds: [(Client, usize); 5] = [
                (clients::read, READERS),
                (clients::write_politely, POLITE),
                (clients::write_rudely, RUDE),
                (clients::write_for_ages, clients::AGES.len()),
                // It is two clients.
                (clients::oppose, 1),
            ];
            let mut threads = Vec::new();
            let mut rng = || Rng::new(rng.number());
            for (client, count) in kinds {
                for _ in 0..count {
                    let (log, rng) = (Log::new(threads.len() + 1), rng());
                    threads.push(scope.spawn(move || {
                        let _end = EndRound(&world.stop, false);
                        world.client.within(|| client(world, log, rng))
                    }));
                }
            }
            let rng = rng();
            scope.spawn(move || {
                let _end = EndRound(&world.stop, false);
                world.client.within(|| chaos::detour(rng, || world.is_over()));
            });
            let memcached = {
                let _end = EndRound(&world.stop, true);
                Control { net, world, totals, log, mode, sleeps: *sleeps, memcached }.run()
            };
            for client in threads {
                logs.push(client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            memcached
        });
        self.history.append(&mut self.log.operations);
        for mut log in logs {
            self.history.append(&mut log.operations);
        }
        memcached
    }
}

/// Who decides what happens in a round.
struct Control<'a> {
    net: &'a Rc<Net>,
    world: &'a World<'a>,
    totals: &'a mut BTreeMap<&'static str, u64>,
    log: &'a mut Log,
    mode: &'static str,
    sleeps: bool,
    memcached: Memcached,
}

impl Control<'_> {
    fn run(mut self) -> Memcached {
        const CALM: u32 = mood::FOLLOWED | mood::ADVERSARY;
        let args = [&LASTING[..], &["--mode", self.mode]].concat();
        // Connections that are older than the attach.
        self.phase(500, mood::RUDE, NONE);
        let bmc = Bmc::attach(self.net, &args);
        // It learns nothing for a second, nor whom to follow.
        self.phase(1000, mood::RUDE, NONE);
        self.phase(3000, CALM, NONE);
        self.phase(2500, mood::RUDE | mood::ADVERSARY, NONE);
        self.phase(2000, mood::FOLLOWED, UDP);
        self.phase(3000, mood::RUDE, ALL);
        self.phase(3000, CALM, NONE);
        bmc.run(&[&["attach", Net::DEVICE, "--replace"], &args[..]].concat());
        self.phase(500, CALM, NONE);
        bmc.run(&["flush"]);
        self.phase(1600, CALM, NONE);
        if self.sleeps {
            weigh(&bmc, -GAIN);
            self.phase(700, mood::RUDE | mood::ADVERSARY, NONE);
            weigh(&bmc, GAIN);
            // It learns nothing for ten seconds after it woke.
            self.phase(12_000, CALM, NONE);
        }
        for (signal, danger) in [(Signal::SIGKILL, ALL), (Signal::SIGTERM, NONE)] {
            self.lossy(|control| control.restart(signal));
            self.phase(1500, mood::FOLLOWED, danger);
        }
        self.lossy(|control| {
            control.add(&bmc);
            bmc.run(&["detach"]);
            control.world.sleep(Duration::from_millis(200));
            bmc.run(&[&["attach", Net::DEVICE], &args[..]].concat());
        });
        self.phase(1000, mood::RUDE, NONE);
        self.phase(1500, CALM, NONE);
        self.add(&bmc);
        self.memcached
    }

    /// Lets the clients do that for some ms.
    fn phase(&mut self, ms: u64, mood: u32, danger: Danger) {
        let (phase, chaos) = (&self.world.phase, self.world.chaos);
        phase.store(((phase.load(SeqCst) >> 8) + 1) << 8 | mood, SeqCst);
        let time = Duration::from_millis(ms);
        if danger == NONE {
            return self.world.sleep(time);
        }
        self.lossy(|control| {
            chaos.set(PERCENT, danger);
            control.world.sleep(time);
            chaos.set(0, NONE);
        });
    }

    /// Does something by which replies may get lost.
    fn lossy(&mut self, work: impl FnOnce(&mut Self)) {
        self.world.losses.fetch_add(1, SeqCst);
        work(self);
        // What is on a detour comes back first.
        thread::sleep(Duration::from_millis(100));
        self.world.losses.fetch_add(1, SeqCst);
    }

    /// memcached loses everything, at some moment between the two times.
    fn restart(&mut self, signal: Signal) {
        let start = self.world.now();
        self.memcached.signal(signal);
        self.memcached.wait();
        self.memcached = Memcached::start_on_all_cpus(self.world.server, OPTIONS);
        let end = self.world.now();
        for key in 0..KEYS {
            self.log.note("restart", key, true, None, start, end);
        }
    }

    /// Adds up bmc's counters, before they are gone.
    fn add(&mut self, bmc: &Bmc) {
        let stats = bmc.stats();
        for name in TOTALS {
            *self.totals.entry(name).or_insert(0) += total(&stats, name);
        }
    }
}

/// Of what is wrong, tells what was first.
fn check_round(keys: &[String], history: &[Operation], before: usize) {
    let mut first: Option<(u64, String)> = None;
    for (key, name) in keys.iter().enumerate() {
        let of_key: Vec<Operation> =
            history.iter().filter(|operation| operation.key == key).cloned().collect();
        let Err(violation) = check(&of_key, key == COUNTER) else { continue };
        let until = violation.operations.iter().map(|&at| of_key[at].start).max().unwrap_or(0);
        if first.as_ref().is_none_or(|(earliest, _)| until < *earliest) {
            first = Some((until, tell(&of_key, &violation, name)));
        }
    }
    let Some((until, text)) = first else { return };
    let count = history.iter().filter(|operation| operation.start <= until).count();
    panic!(
        "after {} operations of {}, not what one memcached says:\n{text}",
        before + count,
        before + history.len(),
    );
}
