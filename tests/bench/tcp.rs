// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Whether bmc slows down what comes over TCP, which it only watches.
//!
//! One memcached (one thread, CPU 0) has two network devices. What is measured
//! is attached to one of them, what it is compared with to the other, and one
//! client process (CPU 1) keeps them busy in turns of a twentieth of a second, so
//! that whatever else the machine does hits both; of the pairs of turns the half
//! is taken in which the two processes had to wait least for a CPU. Each round
//! the two devices change roles and all connections are new. Every byte of every
//! reply is checked. What a run of a program takes is measured apart, because the
//! kernel's count of it costs time itself, some 45 ns here.
//!
//! On veth a frame is received by the CPU that sent it. So `bmc_rx_tc` adds to the
//! client's work and `bmc_tx` to memcached's; the last columns say how much more (or
//! less) CPU time both took together for a request, how long each program ran and how
//! often for a request.
//!
//! `cargo bench --bench tcp [-- ROUNDS] [WHAT] [AGAINST]`; needs root. WHAT and
//! AGAINST are `tc` (bmc in that mode; a veth whose peer has no XDP program has no
//! other), `pass`, which is the least XDP program there is, or `nothing`: tc against
//! nothing, if not said. Even that has the kernel's hooks switched on, as they are
//! for all devices or for none. `threaded` gives each end of a device its
//! packets on its own CPU.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "shared with other benchmarks")]
mod cost;
mod load;

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bmc::bench::net::attach;
use bmc::bench::report::median;
use common::Memcached;
use common::Net;
use common::PORT;
use common::Tcp;
use common::can_run;
use common::run;
use cost::Counting;
use libbpf_rs::Link;
use load::Batch;
use load::CLIENT_CPU;
use load::Clients;
use load::SERVER_CPU;
use load::bmc;

const KEYS: usize = 1000;
const VALUE: &str = "a value of thirty-two bytes full";
const TURN: Duration = Duration::from_millis(50);
/// Turns of a round, each way.
const TURNS: usize = 20;
const PROGRAMS: [&str; 2] = ["bmc_rx_tc", "bmc_tx"];

fn main() {
    let mut rounds = 9;
    let mut threaded = false;
    let mut sides = Vec::new();
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "tc" => sides.push(Side::Bmc),
            "pass" => sides.push(Side::Pass),
            "nothing" => sides.push(Side::Nothing),
            "threaded" => threaded = true,
            // cargo adds --bench.
            _ => rounds = arg.parse().unwrap_or(rounds),
        }
    }
    let what = sides.first().copied().unwrap_or(Side::Bmc);
    let against = sides.get(1).copied().unwrap_or(Side::Nothing);
    if !can_run("tcp") {
        return;
    }
    load::pin(SERVER_CPU);
    let net = Net::new("tcp-bench");
    let _memcached = Memcached::start(&net.server, &["-t", "1"]);
    load::pin(CLIENT_CPU);
    let lanes = [Lane::new(&net, 0, threaded), Lane::new(&net, 1, threaded)];
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    for i in 0..KEYS {
        tcp.set(&load::key(i), 0, VALUE.as_bytes());
    }

    let pid = tcp.stat("pid");

    load::print_machine();
    lanes[0].print_features(&net);
    println!("{what} against {against}, {rounds} rounds; thousands of requests a second, medians");
    println!(
        "{:>4} {:>5} {:>5}  {:>6} {:>7}  {:>5} {:>5} {:>11} {:>4} {:>8}  {:>12} {:>12}",
        "sets",
        "conns",
        "depth",
        "with",
        "without",
        "ratio",
        "pairs",
        "of rounds",
        "wait",
        "CPU ns",
        "rx_tc ns",
        "tx ns"
    );
    for sets in [0, 10] {
        for connections in [1, 64] {
            for depth in [1, 16] {
                let batches = load::batches(KEYS, VALUE, sets, depth);
                let case =
                    Case { net: &net, memcached: pid, lanes: &lanes, connections, batches, depth };
                let compared = case.compare(rounds, what, against);
                let costs = if let Side::Bmc = what { case.costs(what) } else { String::new() };
                println!("{sets:>3}% {connections:>5} {depth:>5}  {compared}  {costs}");
            }
        }
    }
}

/// What a device has attached.
#[derive(Clone, Copy, Debug)]
enum Side {
    Nothing,
    Pass,
    Bmc,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => write!(f, "nothing"),
            Self::Pass => write!(f, "an XDP program that passes everything"),
            Self::Bmc => write!(f, "bmc --mode tc"),
        }
    }
}

/// A veth pair of its own, with no program on either end.
struct Lane {
    device: String,
    server: SocketAddr,
}

impl Lane {
    fn new(net: &Net, number: u8, threaded: bool) -> Self {
        // Nobody else's, as kernel threads are named after it.
        let device = format!("lane{number}-{}", std::process::id());
        let [server, client] = [1, 2].map(|host| format!("10.11.{}.{host}", 20 + number));
        load::make_device(net, &device, [&server, &client]);
        if threaded {
            for (namespace, cpu) in [(&net.server, SERVER_CPU), (&net.client, CLIENT_CPU)] {
                run(namespace.command("ethtool").args(["-K", &device, "gro", "on"]));
                let before = napi_threads(&device);
                let file = format!("/sys/class/net/{device}/threaded");
                let write = format!("echo 1 >{file}");
                run(Command::new("ip").args([
                    "netns",
                    "exec",
                    namespace.name(),
                    "sh",
                    "-c",
                    &write,
                ]));
                for thread in napi_threads(&device) {
                    if !before.contains(&thread) {
                        run(Command::new("taskset").args(["-cp", &cpu.to_string(), &thread]));
                    }
                }
            }
        }
        let server = server.parse().expect("it is an address");
        Self { device, server: SocketAddr::new(server, PORT) }
    }

    /// What the device joins and splits.
    fn print_features(&self, net: &Net) {
        for (end, namespace) in [("server", &net.server), ("client", &net.client)] {
            let features = run(namespace.command("ethtool").args(["-k", &self.device]));
            let shown = ["tcp-segmentation-offload", "generic-receive-offload", "tx-checksumming"]
                .map(|name| features.lines().find(|line| line.starts_with(name)).unwrap_or(name));
            println!("{end}'s end: {}", shown.join(", "));
        }
    }
}

fn napi_threads(device: &str) -> Vec<String> {
    let name = format!("napi/{device}");
    let name = &name[..name.len().min(15)];
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    processes
        .filter(|entry| {
            let comm = fs::read_to_string(entry.path().join("comm"));
            comm.is_ok_and(|comm| comm.starts_with(name))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What is attached to a device, until this is dropped.
struct Attached<'a> {
    net: &'a Net,
    is_bmc: bool,
    _pass: Option<Link>,
}

impl<'a> Attached<'a> {
    fn new(net: &'a Net, lane: &Lane, side: Side) -> Self {
        let mut pass = None;
        match side {
            Side::Nothing => {}
            Side::Pass => {
                let attached = net.server.within(|| attach(&lane.device, false));
                pass = Some(attached.expect("a veth has XDP"));
            }
            Side::Bmc => {
                bmc(net, &["attach", &lane.device, "--mode", "tc"]);
            }
        }
        Self { net, is_bmc: matches!(side, Side::Bmc), _pass: pass }
    }

    /// For each program: how often it ran since runs are counted, and the
    /// nanoseconds of a run.
    fn programs(&self) -> [(f64, f64); 2] {
        let status = load::status(self.net);
        let programs = status["programs"].as_array().expect("it lists the programs");
        PROGRAMS.map(|name| {
            let program = programs.iter().find(|program| program["name"] == name);
            let number = |field| program.and_then(|program| program[field].as_f64());
            (number("runs").expect("it counts"), number("ns_per_run").unwrap_or_default())
        })
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if self.is_bmc {
            bmc(self.net, &["detach"]);
        }
    }
}

/// How a twentieth of a second went.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// Thousands of requests a second.
    rate: f64,
    /// Nanoseconds of CPU time that a request took of memcached and the client.
    cpu: f64,
    /// How long they waited for a CPU, as a share of the time.
    waited: f64,
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

/// One kind of load.
struct Case<'a> {
    net: &'a Net,
    memcached: u64,
    lanes: &'a [Lane; 2],
    connections: usize,
    batches: Vec<Batch>,
    depth: usize,
}

impl Case<'_> {
    /// Throughput with one side, with the other, and how they compare.
    fn compare(&self, rounds: usize, what: Side, against: Side) -> String {
        let mut pairs = vec![];
        for round in 0..rounds {
            let lanes = [&self.lanes[round % 2], &self.lanes[1 - round % 2]];
            let _attached =
                [(lanes[0], what), (lanes[1], against)].map(|(l, s)| Attached::new(self.net, l, s));
            let mut clients = lanes.map(|lane| self.open(lane));
            for client in &mut clients {
                client.run(TURN);
            }
            for turn in 0..TURNS {
                let mut turns = [Turn::default(); 2];
                for side in [turn % 2, 1 - turn % 2] {
                    turns[side] = self.turn(&mut clients[side]);
                }
                pairs.push((round, turns));
            }
        }
        let waited = |turns: &[Turn; 2]| turns[0].waited + turns[1].waited;
        pairs.sort_by(|(_, a), (_, b)| waited(a).total_cmp(&waited(b)));
        pairs.truncate(pairs.len().div_ceil(2));
        let of =
            |value: &dyn Fn(&[Turn; 2]) -> f64| median(pairs.iter().map(|(_, turns)| value(turns)));
        let ratio = |turns: &[Turn; 2]| turns[0].rate / turns[1].rate;
        let mut of_rounds = vec![];
        for round in 0..rounds {
            let pairs = pairs.iter().filter(|(of, _)| *of == round);
            let ratios: Vec<_> = pairs.map(|(_, turns)| ratio(turns)).collect();
            if !ratios.is_empty() {
                of_rounds.push(median(ratios));
            }
        }
        let least = of_rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = of_rounds.iter().copied().fold(0.0, f64::max);
        let (with, without) = (of(&|turns| turns[0].rate), of(&|turns| turns[1].rate));
        format!(
            "{with:>6.1} {without:>7.1}  {:>5.3} {:>5.3} {least:>5.3}-{most:<5.3} {:>3.0}% {:>+8.0}",
            with / without,
            of(&ratio),
            of(&|turns| waited(turns) * 50.0),
            of(&|turns| turns[0].cpu - turns[1].cpu),
        )
    }

    /// Lets one side's clients run.
    fn turn(&self, client: &mut Clients<'_>) -> Turn {
        let before = scheduled(self.memcached);
        let (batches, time) = client.run(TURN);
        let after = scheduled(self.memcached);
        let requests = (batches * self.depth as u64) as f64;
        let seconds = time.as_secs_f64();
        Turn {
            rate: requests / seconds / 1e3,
            cpu: (after.0 - before.0) / requests,
            waited: (after.1 - before.1) / 1e9 / seconds,
        }
    }

    /// For each program: nanoseconds a run, and runs a request.
    fn costs(&self, what: Side) -> String {
        let attached = Attached::new(self.net, &self.lanes[0], what);
        let mut client = self.open(&self.lanes[0]);
        client.run(TURN);
        let counting = Counting::start();
        let (batches, _) = client.run(5 * TURN);
        let programs = attached.programs();
        drop(counting);
        let requests = (batches * self.depth as u64) as f64;
        programs
            .map(|(runs, ns)| match runs / requests {
                share if share < 0.001 => format!("{:>12}", "-"),
                share => format!("{ns:>5} x{share:<5.3}"),
            })
            .join(" ")
    }

    fn open(&self, lane: &Lane) -> Clients<'_> {
        Clients::open(&self.net.client, lane.server, self.connections, &self.batches)
    }
}
