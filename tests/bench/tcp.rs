// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Whether bmc slows down what comes over TCP, which it only watches.
//!
//! One memcached (one thread, CPU 0), two veth pairs to it, one client process (CPU 1).
//! bmc is attached to one pair; the same requests go over both by turns of a twentieth
//! of a second, the order changing each time, so that what the machine does meanwhile
//! is felt by both. Then bmc is attached to the other pair, and all of it is done again:
//! what one pair has of its own counts once for bmc and once against it. After each
//! attach the kernel is given time: what it does to its memory is felt for a second (by
//! 1 to 3 %), on both pairs. `none` attaches nothing, and shows what the measurement
//! itself is good for. Every byte of every reply is checked. What a run of a program
//! takes is measured apart, because the kernel's count of it costs time itself, some
//! 45 to 75 ns.
//!
//! Nobody asks over UDP, so bmc falls asleep, and then is measured; with `awake` it is
//! told not to.
//!
//! On veth a frame is received by the CPU that sent it. So `bmc_rx_tc` adds to the
//! client's work and `bmc_tx` to memcached's; the last columns say how much more (or
//! less) CPU time both took together for a request, how long each program ran and how
//! often for a request.
//!
//! `cargo bench --bench tcp [-- ROUNDS] [tc|native|other|none] [awake]`; needs root.
//! `other` is bmc that serves another port: what the kernel's hooks cost by themselves.
//! For `native` the client's ends have an XDP program, with bmc and without.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "shared with other benchmarks")]
mod cost;
mod load;

use std::fs;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use bmc::command::bench::net::attach;
use bmc::command::bench::report::median;
use bmc::host::sys;
use bmc::instance::Instance;
use bmc::instance::state::Activity;
use bmc::skel::types::bmc_global;
use common::Bmc;
use common::Memcached;
use common::Net;
use common::PORT;
use common::Tcp;
use common::can_run;
use common::run;
use cost::Counting;
use load::Batch;
use load::CLIENT_CPU;
use load::Clients;
use load::SERVER_CPU;
use load::SETTLED;

const KEYS: usize = 1000;
const VALUE: &str = "a value of thirty-two bytes full";
const TURN: Duration = Duration::from_millis(50);
/// Turns of each side, every time that bmc is attached.
const TURNS: usize = 80;
const PROGRAMS: [&str; 2] = ["bmc_rx_tc", "bmc_tx"];
/// Two veth pairs, by the names that both ends have, with the server's address and the
/// client's.
const PAIRS: [(&str, [&str; 2]); 2] =
    [("tcp0", ["10.11.20.1", "10.11.20.2"]), ("tcp1", ["10.11.21.1", "10.11.21.2"])];

fn main() {
    let mut rounds = 2;
    let mut attached = Attached::Tc;
    let mut awake = false;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "tc" => attached = Attached::Tc,
            "native" => attached = Attached::Native,
            "other" => attached = Attached::Other,
            "none" => attached = Attached::None,
            "awake" => awake = true,
            // cargo adds --bench.
            _ => rounds = arg.parse().unwrap_or(rounds).max(1),
        }
    }
    if !can_run("tcp") {
        return;
    }
    load::pin(SERVER_CPU);
    let net = Rc::new(Net::new("tcp-bench"));
    let _memcached = Memcached::start(&net.server, &["-t", "1"]);
    load::pin(CLIENT_CPU);
    for (device, addresses) in PAIRS {
        load::make_device(&net, device, addresses);
    }
    let pass = |device| net.client.within(|| attach(device, false)).expect("a veth has XDP");
    let is_native = matches!(attached, Attached::Native);
    let _passes = is_native.then(|| PAIRS.map(|(device, _)| pass(device)));
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    for i in 0..KEYS {
        tcp.set(&load::key(i), 0, VALUE.as_bytes());
    }
    let memcached = tcp.stat("pid");

    load::print_machine();
    print_features(&net);
    println!("{attached}{}, {rounds} rounds", if awake { ", awake" } else { "" });
    let bench = Bench { net: &net, memcached, attached, awake };
    let mut cases = vec![];
    for sets in [0, 10, 90] {
        for connections in [1, 64] {
            for depth in [1, 16] {
                let batches = load::batches(KEYS, VALUE, sets, depth);
                cases.push(Case { sets, connections, batches, depth, measured: vec![] });
            }
        }
    }
    for round in 1..=rounds {
        for (pair, (device, _)) in PAIRS.iter().enumerate() {
            eprintln!("round {round} of {rounds}, {device}");
            bench.measure(pair, &mut cases);
        }
    }
    println!("thousands of requests a second");
    println!(
        "{:>4} {:>5} {:>5}  {:>6} {:>7}  {:>5} {:>11} {:>4} {:>6}  {:>12} {:>12}",
        "sets",
        "conns",
        "depth",
        "with",
        "without",
        "ratio",
        "rounds",
        "wait",
        "CPU ns",
        "rx_tc ns",
        "tx ns"
    );
    for case in &cases {
        println!("{case}");
    }
}

/// What the devices join and split.
fn print_features(net: &Net) {
    let (device, _) = PAIRS[0];
    for (end, namespace) in [("server", &net.server), ("client", &net.client)] {
        let features = run(namespace.command("ethtool").args(["-k", device]));
        let shown = ["tcp-segmentation-offload", "generic-receive-offload", "tx-checksumming"]
            .map(|name| features.lines().find(|line| line.starts_with(name)).unwrap_or(name));
        println!("{end}'s end: {}", shown.join(", "));
    }
}

/// How bmc is attached.
#[derive(Clone, Copy, Debug)]
enum Attached {
    Tc,
    Native,
    /// For a port that nobody uses.
    Other,
    /// Not at all.
    None,
}

impl Attached {
    fn arguments(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Tc => Some(&["--mode", "tc"]),
            Self::Native => Some(&["--mode", "native"]),
            Self::Other => Some(&["--mode", "tc", "--port", "1"]),
            Self::None => None,
        }
    }
}

impl std::fmt::Display for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.arguments() {
            Some(arguments) => write!(f, "bmc {}", arguments.join(" ")),
            None => f.write_str("no bmc"),
        }
    }
}

/// For each program: how often it ran while runs were counted, and for how many
/// nanoseconds.
fn programs(instance: &Instance) -> [(f64, f64); 2] {
    let programs = instance.programs().expect("they are pinned");
    PROGRAMS.map(|name| {
        let program = programs.iter().find(|program| program.name == name);
        let program = program.expect("it is one of them");
        (program.runs as f64, program.run_time.as_nanos() as f64)
    })
}

/// For each program: nanoseconds a run, and runs a request.
fn costs(instance: &Instance, clients: &mut Clients<'_>, depth: usize) -> String {
    let before = programs(instance);
    let counting = Counting::start();
    let (batches, _) = clients.run(5 * TURN);
    let after = programs(instance);
    drop(counting);
    let requests = (batches * depth as u64) as f64;
    let costs = before.into_iter().zip(after).map(|(before, after)| {
        let runs = after.0 - before.0;
        match runs / requests {
            share if share < 0.001 => format!("{:>12}", "-"),
            share => format!("{:>5.0} x{share:<5.3}", (after.1 - before.1) / runs),
        }
    });
    costs.collect::<Vec<_>>().join(" ")
}

/// How turns went.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// Thousands of requests a second.
    rate: f64,
    /// Nanoseconds of CPU time that a request took of memcached and the client.
    cpu: f64,
    /// How long they waited for a CPU, as a share of the time.
    waited: f64,
}

impl Turn {
    /// Medians.
    fn of(turns: &[Self]) -> Self {
        let of = |value: fn(&Self) -> f64| median(turns.iter().map(value));
        Self {
            rate: of(|turn| turn.rate),
            cpu: of(|turn| turn.cpu),
            waited: of(|turn| turn.waited),
        }
    }
}

/// With bmc and without it, at the same time.
#[derive(Clone, Debug)]
struct Both {
    with: Turn,
    without: Turn,
    /// Of the rates: the median of the turns' own.
    ratio: f64,
    /// What the programs cost.
    costs: String,
}

/// Nanoseconds that memcached and this process ran and waited for a CPU.
fn scheduled(memcached: u64) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for process in [memcached, u64::from(std::process::id())] {
        let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
        for thread in threads.flatten() {
            let Ok(times) = fs::read_to_string(thread.path().join("schedstat")) else {
                continue; // it is no more
            };
            let mut times = times.split(' ').filter_map(|time| time.parse::<f64>().ok());
            sum.0 += times.next().unwrap_or_default();
            sum.1 += times.next().unwrap_or_default();
        }
    }
    sum
}

/// One kind of load, and how it went: over one pair, over the other, and so on.
struct Case {
    sets: usize,
    connections: usize,
    batches: Vec<Batch>,
    depth: usize,
    measured: Vec<Both>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |value: &dyn Fn(&Both) -> f64| median(self.measured.iter().map(value));
        // What is of the pairs, not of bmc, cancels out.
        let rounds = self.measured.chunks(PAIRS.len());
        let ratios: Vec<_> = rounds.map(|crossed| mean(crossed.iter().map(|b| b.ratio))).collect();
        write!(
            f,
            "{:>3}% {:>5} {:>5}  {:>6.1} {:>7.1}  {:>5.3} {:>5.3}-{:<5.3} {:>3.0}% {:>+6.0}  {}",
            self.sets,
            self.connections,
            self.depth,
            of(&|both| both.with.rate),
            of(&|both| both.without.rate),
            mean(ratios.iter().copied()),
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
            of(&|both| (both.with.waited + both.without.waited) * 50.0),
            of(&|both| both.with.cpu - both.without.cpu),
            self.measured.last().map_or("", |both| &both.costs),
        )
    }
}

/// The geometric one.
fn mean(ratios: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = ratios.len() as f64;
    (ratios.map(f64::ln).sum::<f64>() / count).exp()
}

/// What all cases have in common.
struct Bench<'a> {
    net: &'a Rc<Net>,
    memcached: u64,
    attached: Attached,
    awake: bool,
}

impl Bench<'_> {
    /// Attaches bmc to one pair, and compares it with the other.
    fn measure(&self, pair: usize, cases: &mut [Case]) {
        let (device, _) = PAIRS[pair];
        let arguments = self.attached.arguments();
        let bmc = arguments.map(|arguments| Bmc::attach_to(self.net, device, arguments));
        if self.awake && bmc.is_some() {
            self.stay_awake();
        }
        thread::sleep(2 * SETTLED);
        for case in cases {
            let mut sides = [pair, 1 - pair].map(|pair| self.open(pair, case));
            for side in &mut sides {
                side.run(TURN);
            }
            while self.falls_asleep() && self.instance().activity().ok() != Some(Activity::Asleep) {
                sides[0].run(TURN);
            }
            let mut turns = [vec![], vec![]];
            for turn in 0..TURNS {
                for side in [turn % 2, 1 - turn % 2] {
                    turns[side].push(self.turn(&mut sides[side], case.depth));
                }
            }
            let ratios =
                turns[0].iter().zip(&turns[1]).map(|(with, without)| with.rate / without.rate);
            let ratio = median(ratios);
            let [with, without] = [&turns[0], &turns[1]].map(|turns| Turn::of(turns));
            let costs = bmc.as_ref().map(|_| costs(&self.instance(), &mut sides[0], case.depth));
            let costs = costs.unwrap_or_default();
            case.measured.push(Both { with, without, ratio, costs });
        }
    }

    /// A bmc for another port sees nothing, not even that nobody asks.
    fn falls_asleep(&self) -> bool {
        !self.awake && matches!(self.attached, Attached::Tc | Attached::Native)
    }

    fn instance(&self) -> Instance {
        Instance::find(self.net.instance()).expect("it is attached")
    }

    /// The last time that bmc looked whether it should sleep is far in the future.
    fn stay_awake(&self) {
        let global = self.instance().pins.map("global").expect("it is pinned");
        sys::store(&global, offset_of!(bmc_global, looked), u64::MAX / 4).expect("it is ours");
    }

    /// Lets the clients run.
    fn turn(&self, clients: &mut Clients<'_>, depth: usize) -> Turn {
        let before = scheduled(self.memcached);
        let (batches, time) = clients.run(TURN);
        let after = scheduled(self.memcached);
        let requests = (batches * depth as u64) as f64;
        let seconds = time.as_secs_f64();
        Turn {
            rate: requests / seconds / 1e3,
            cpu: (after.0 - before.0) / requests,
            waited: (after.1 - before.1) / 1e9 / seconds,
        }
    }

    /// Connections over one pair.
    fn open<'b>(&'b self, pair: usize, case: &'b Case) -> Clients<'b> {
        let (_, [server, _]) = PAIRS[pair];
        let server = SocketAddr::new(server.parse().expect("it is an address"), PORT);
        Clients::open(&self.net.client, server, case.connections, &case.batches)
    }
}
