// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Whether bmc slows down what comes over TCP, which it only watches.
//!
//! One memcached (one thread, CPU 0), one veth pair, one client process (CPU 1).
//! A round measures with bmc attached, then without it (every other round the
//! other way round), each with connections of its own. Without bmc there is no
//! program on the pair, and no hook of TC is switched on; it was attached just before
//! nevertheless, because what that does to the kernel's memory is felt for a second
//! (by 1 to 3 %). A measurement consists of turns of a twentieth of a second; the
//! half of them counts in which the two processes had to wait least for a CPU. Every
//! byte of every reply is checked. What a run of a program takes is measured apart,
//! because the kernel's count of it costs time itself, some 45 to 75 ns.
//!
//! On veth a frame is received by the CPU that sent it. So `bmc_rx_tc` adds to the
//! client's work and `bmc_tx` to memcached's; the last columns say how much more (or
//! less) CPU time both took together for a request, how long each program ran and how
//! often for a request.
//!
//! `cargo bench --bench tcp [-- ROUNDS] [tc|native|other]`; needs root. `other` is bmc
//! that serves another port: what the kernel's hooks cost by themselves. For `native`
//! the client's end of the pair has an XDP program, with bmc and without.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "shared with other benchmarks")]
mod cost;
mod load;

use std::fs;
use std::net::SocketAddr;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use bmc::bench::net::attach;
use bmc::bench::report::median;
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
/// Turns of a measurement.
const TURNS: usize = 20;
const PROGRAMS: [&str; 2] = ["bmc_rx_tc", "bmc_tx"];
/// A veth pair of its own, by the name that both ends have.
const DEVICE: &str = "tcp0";
const SERVER: &str = "10.11.20.1";

fn main() {
    let mut rounds = 9;
    let mut attached = Attached::Tc;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "tc" => attached = Attached::Tc,
            "native" => attached = Attached::Native,
            "other" => attached = Attached::Other,
            // cargo adds --bench.
            _ => rounds = arg.parse().unwrap_or(rounds),
        }
    }
    if !can_run("tcp") {
        return;
    }
    load::pin(SERVER_CPU);
    let net = Rc::new(Net::new("tcp-bench"));
    let _memcached = Memcached::start(&net.server, &["-t", "1"]);
    load::pin(CLIENT_CPU);
    load::make_device(&net, DEVICE, [SERVER, "10.11.20.2"]);
    let _pass = matches!(attached, Attached::Native)
        .then(|| net.client.within(|| attach(DEVICE, false)).expect("a veth has XDP"));
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    for i in 0..KEYS {
        tcp.set(&load::key(i), 0, VALUE.as_bytes());
    }
    let memcached = tcp.stat("pid");

    load::print_machine();
    print_features(&net);
    println!("{attached}, {rounds} rounds; thousands of requests a second, medians of rounds");
    println!(
        "{:>4} {:>5} {:>5}  {:>6} {:>7}  {:>5} {:>11} {:>4} {:>8}  {:>12} {:>12}",
        "sets",
        "conns",
        "depth",
        "with",
        "without",
        "ratio",
        "quartiles",
        "wait",
        "CPU ns",
        "rx_tc ns",
        "tx ns"
    );
    for sets in [0, 10, 90] {
        for connections in [1, 64] {
            for depth in [1, 16] {
                let batches = load::batches(KEYS, VALUE, sets, depth);
                let case = Case { net: &net, memcached, attached, connections, batches, depth };
                let compared = case.compare(rounds);
                println!("{sets:>3}% {connections:>5} {depth:>5}  {compared}  {}", case.costs());
            }
        }
    }
}

/// What the devices join and split.
fn print_features(net: &Net) {
    for (end, namespace) in [("server", &net.server), ("client", &net.client)] {
        let features = run(namespace.command("ethtool").args(["-k", DEVICE]));
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
}

impl Attached {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Tc => &["--mode", "tc"],
            Self::Native => &["--mode", "native"],
            Self::Other => &["--mode", "tc", "--port", "1"],
        }
    }
}

impl std::fmt::Display for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bmc {}", self.arguments().join(" "))
    }
}

/// For each program: how often it ran since runs are counted, and the nanoseconds of a
/// run.
fn programs(bmc: &Bmc) -> [(f64, f64); 2] {
    let status = bmc.status();
    let programs = status["programs"].as_array().expect("it lists the programs");
    PROGRAMS.map(|name| {
        let program = programs.iter().find(|program| program["name"] == name);
        let number = |field| program.and_then(|program| program[field].as_f64());
        (number("runs").expect("it counts"), number("ns_per_run").unwrap_or_default())
    })
}

/// How a turn went, or the quieter half of the turns of a measurement.
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
    net: &'a Rc<Net>,
    memcached: u64,
    attached: Attached,
    connections: usize,
    batches: Vec<Batch>,
    depth: usize,
}

impl Case<'_> {
    /// Throughput with bmc, without it, and how they compare.
    fn compare(&self, rounds: usize) -> String {
        let mut pairs = vec![];
        for round in 0..rounds {
            let mut pair = [Turn::default(); 2];
            for side in [round % 2, 1 - round % 2] {
                let _bmc = (side == 0).then_some(self.attach());
                thread::sleep(SETTLED);
                pair[side] = self.measure();
            }
            pairs.push(pair);
        }
        let of = |value: &dyn Fn(&[Turn; 2]) -> f64| median(pairs.iter().map(value));
        let mut ratios: Vec<_> = pairs.iter().map(|pair| pair[0].rate / pair[1].rate).collect();
        ratios.sort_by(f64::total_cmp);
        format!(
            "{:>6.1} {:>7.1}  {:>5.3} {:>5.3}-{:<5.3} {:>3.0}% {:>+8.0}",
            of(&|pair| pair[0].rate),
            of(&|pair| pair[1].rate),
            ratios[rounds / 2],
            ratios[rounds / 4],
            ratios[rounds * 3 / 4],
            of(&|pair| (pair[0].waited + pair[1].waited) * 50.0),
            of(&|pair| pair[0].cpu - pair[1].cpu),
        )
    }

    fn measure(&self) -> Turn {
        let mut clients = self.open();
        clients.run(TURN);
        let mut turns: Vec<_> = (0..TURNS).map(|_| self.turn(&mut clients)).collect();
        turns.sort_by(|a, b| a.waited.total_cmp(&b.waited));
        turns.truncate(TURNS / 2);
        let of = |value: fn(&Turn) -> f64| median(turns.iter().map(value));
        Turn {
            rate: of(|turn| turn.rate),
            cpu: of(|turn| turn.cpu),
            waited: of(|turn| turn.waited),
        }
    }

    /// Lets the clients run.
    fn turn(&self, clients: &mut Clients<'_>) -> Turn {
        let before = scheduled(self.memcached);
        let (batches, time) = clients.run(TURN);
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
    fn costs(&self) -> String {
        let bmc = self.attach();
        let mut clients = self.open();
        clients.run(TURN);
        let counting = Counting::start();
        let (batches, _) = clients.run(5 * TURN);
        let programs = programs(&bmc);
        drop(counting);
        let requests = (batches * self.depth as u64) as f64;
        programs
            .map(|(runs, ns)| match runs / requests {
                share if share < 0.001 => format!("{:>12}", "-"),
                share => format!("{ns:>5} x{share:<5.3}"),
            })
            .join(" ")
    }

    fn attach(&self) -> Bmc {
        Bmc::attach_to(self.net, DEVICE, self.attached.arguments())
    }

    fn open(&self) -> Clients<'_> {
        let server = SocketAddr::new(SERVER.parse().expect("it is an address"), PORT);
        Clients::open(&self.net.client, server, self.connections, &self.batches)
    }
}
