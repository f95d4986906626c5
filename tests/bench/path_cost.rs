// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the programs take for a request on each of its ways: a hit, of one key
//! and of so many that no CPU cache holds them, a miss, its lease, its fill.
//!
//! Frames go through the programs one by one, by `BPF_PROG_TEST_RUN`, each with a
//! few system calls before it: the caches are as a busy machine leaves them, not
//! as a loop does, but for the one miss that is repeated. The kernel counts the
//! time, and its own part of it is what the least program there is takes in the
//! same way. A few keys, forgotten before they are asked for again, are missed, leased
//! and filled with all that belongs to them in the CPU's cache.
//!
//! Before that, what a miss costs all told, of one key that is asked for over and over:
//! live frames come in by a device, in batches as from a network card, through
//! `bmc_rx` and `bmc_rx_tc`, until a program behind them takes them instead of
//! memcached. By turns they go through the least programs instead.
//!
//! `cargo bench --bench path_cost [-- ROUNDS]`; needs root.

mod cost;
#[path = "../fixture/mod.rs"]
mod fixture;
#[path = "../packet/mod.rs"]
mod packet;

use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::time::Duration;
use std::time::Instant;

use bmc::bench::report::median;
use bmc::kernel::LinkType;
use bmc::kernel::link_create;
use bmc::random::Rng;
use cost::Counting;
use cost::cost;
use cost::run_live;
use fixture::Bmc;
use fixture::Config;
use fixture::IFINDEX;
use fixture::Verdict;
use libbpf_rs::ProgramInput;
use libbpf_rs::ProgramMut;
use libbpf_rs::skel::OpenSkel as _;
use packet::Flow;

const KEYS: usize = 500_000;
const REQUESTS: usize = 20_000;
/// So few that the CPU's cache holds all that belongs to them.
const FEW: usize = 64;
/// How often they are asked for in a round.
const TIMES: usize = 300;
/// How often one frame is repeated.
const AGAIN: u32 = 1 << 20;
/// Frames that come in of one that is missed, and how often in a round.
const FRAMES: u32 = 1 << 17;
const TURNS: usize = 8;
const VALUE: [u8; 32] = [b'v'; 32];

fn main() {
    let rounds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let config = Config {
        max_age: Duration::from_secs(36_000),
        unknown_ttl: Duration::from_secs(36_000),
        buckets: KEYS as u32 / 4,
        slabs: 256,
        ..Config::default()
    };
    if !missed(rounds) {
        return;
    }
    let Some(bmc) = Bmc::load(&config) else {
        return;
    };
    let mut storage = MaybeUninit::uninit();
    let bench = cost::load(&mut storage);
    let flow = Flow::new("10.0.0.2:40000", "10.0.0.1:11211");
    let mut client = Client { bmc: &bmc, flow, id: 0, rng: Rng::new(1) };
    let _counting = Counting::start();

    let least = |client: &mut Client<'_>| {
        let frame = client.request(0);
        let input = ProgramInput { data_in: Some(&frame), ..ProgramInput::default() };
        bench.progs.bmc_pass.test_run(input).expect("it runs");
        bmc.counters();
    };
    let [rx, rx_tc, tx] = [bmc.rx(), bmc.rx_tc(), bmc.tx()];
    let free = cost(tx, || (0..KEYS).for_each(|key| client.learn(key)));
    let absent = client.request(KEYS * 2);
    let again = |of: &ProgramMut<'_>| {
        cost(of, || {
            let input =
                ProgramInput { data_in: Some(&absent), repeat: AGAIN, ..ProgramInput::default() };
            of.test_run(input).expect("it runs");
        })
    };
    let mut costs: [Vec<f64>; 7] = Default::default();
    for round in 0..rounds {
        let mut run = |of: &ProgramMut<'_>, what: &mut dyn FnMut(&mut Client<'_>)| {
            cost(of, || (0..REQUESTS).for_each(|_| what(&mut client)))
        };
        costs[0].push(run(&bench.progs.bmc_pass, &mut |client| least(client)));
        costs[1].push(run(rx, &mut |client| client.hit(7)));
        costs[2].push(run(rx, &mut |client| {
            let key = client.rng.below(KEYS);
            client.hit(key);
        }));
        // Keys that nobody has asked for.
        let mut new = KEYS * 2 + round * 3 * REQUESTS;
        let mut miss = |client: &mut Client<'_>| {
            new += 1;
            client.miss(new);
        };
        costs[3].push(run(rx, &mut miss));
        costs[4].push(run(rx_tc, &mut miss));
        let mut new = KEYS + round * REQUESTS;
        costs[5].push(run(tx, &mut |client| {
            new += 1;
            client.learn(new);
        }));
        costs[6].push(again(rx) - again(&bench.progs.bmc_pass));
    }
    let [base, hit, cold, passed, with_lease, fill, repeated] = costs.map(median);
    let [hot_lease, hot_fill] = few(&mut client, rounds);
    println!(
        "medians of {rounds} rounds of {REQUESTS} requests; ns a run, less the {base:.0} of the least program"
    );
    for (name, ns) in [
        ("bmc_rx: hit, always the same key", hit),
        ("bmc_rx: hit, one of 500,000 keys", cold),
        ("bmc_rx: miss, over and over", repeated + base),
        ("bmc_rx: miss, one of as many", passed),
        ("bmc_rx_tc: the same, and a lease", with_lease),
        ("bmc_tx: fill of a free slot", free),
        ("bmc_tx: another one's fill, or none", fill),
        ("bmc_rx_tc: miss and lease, few keys", hot_lease),
        ("bmc_tx: fill, few keys", hot_fill),
    ] {
        println!("{name:<40} {:>6.0}", ns - base);
    }
}

/// Prints what a miss costs more than programs that only pass it; false without the
/// right to load them.
fn missed(rounds: usize) -> bool {
    let Some(bmc) = Bmc::load(&Config { senders: 8, ..Config::default() }) else {
        return false;
    };
    let device = i32::try_from(IFINDEX).expect("it is small");
    let mut storage = MaybeUninit::uninit();
    let mut open = cost::open(&mut storage);
    open.maps.bmc_senders.reuse_fd(bmc.senders().as_fd()).expect("it is alike");
    let bench = open.load().expect("the benchmark's programs load");
    let frame = Flow::new("10.0.0.2:40000", "10.0.0.1:11211").get(7, &["key-000000000000"]);

    // ns a run of the one in XDP, of the one in TC, and ns a frame.
    let mut costs: [[Vec<f64>; 3]; 2] = Default::default();
    for turn in 0..rounds * TURNS * 2 {
        let nr = (turn / 2 + turn) % 2;
        let [xdp, tc] =
            [[&bench.progs.bmc_pass, &bench.progs.bmc_pass_tc], [bmc.rx(), bmc.rx_tc()]][nr];
        let _xdp = xdp.attach_xdp(device).expect("a veth has XDP");
        // Each before those that are there.
        let links = [&bench.progs.bmc_swallow, tc]
            .map(|tc| link_create(tc.as_fd(), device, LinkType::TcxIngress));
        assert!(links.iter().all(Result::is_ok), "the kernel has tcx (Linux 6.6)");
        run_live(xdp, IFINDEX, &frame, FRAMES / 16);

        let before = bmc.counters();
        let counting = Counting::start();
        let mut later = 0.0;
        let early = cost(xdp, || later = cost(tc, || run_live(xdp, IFINDEX, &frame, FRAMES)));
        drop(counting);
        let start = Instant::now();
        run_live(xdp, IFINDEX, &frame, FRAMES);
        let all = start.elapsed().as_nanos() as f64 / f64::from(FRAMES);
        let counts = bmc.counters().since(&before);
        let expected = if nr == 1 { 2 * u64::from(FRAMES) } else { 0 };
        for counter in ["misses", "leases"] {
            assert_eq!(counts.get(counter), expected, "{counter}");
        }
        for (costs, ns) in costs[nr].iter_mut().zip([early, later, all]) {
            costs.push(ns);
        }
    }
    let [least, bmc] = costs.map(|costs| costs.map(median));
    println!("a miss over and over, live frames: medians of {} turns", rounds * TURNS);
    println!("{:<28} {:>8} {:>10} {:>6} {:>9}", "ns", "XDP run", "TC run", "both", "frame");
    for (name, ns) in [("programs that pass", least), ("bmc_rx and bmc_rx_tc", bmc)] {
        println!("{name:<28} {:>8.1} {:>10.1} {:>6.1} {:>9.1}", ns[0], ns[1], ns[0] + ns[1], ns[2]);
    }
    let more: [f64; 3] = std::array::from_fn(|i| bmc[i] - least[i]);
    let both = more[0] + more[1];
    println!("{:<28} {:>8.1} {:>10.1} {both:>6.1} {:>9.1}\n", "more", more[0], more[1], more[2]);
    true
}

/// What `bmc_rx_tc` and `bmc_tx` take for a few keys that are never there, and leaves
/// them there.
fn few(client: &mut Client<'_>, rounds: usize) -> [f64; 2] {
    let bmc = client.bmc;
    let mut costs: [Vec<f64>; 2] = Default::default();
    for _ in 0..rounds * TIMES {
        bmc.flush();
        bmc.end_quarantine();
        let before = bmc.counters().get("fills");
        let mut fill = 0.0;
        let lease = cost(bmc.rx_tc(), || {
            fill = cost(bmc.tx(), || (0..FEW).for_each(|key| client.learn(key)));
        });
        assert_eq!(bmc.counters().get("fills") - before, FEW as u64, "all were filled");
        costs[0].push(lease);
        costs[1].push(fill);
    }
    costs.map(median)
}

/// Who asks for keys, and memcached.
struct Client<'a> {
    bmc: &'a Bmc,
    flow: Flow,
    id: u16,
    rng: Rng,
}

impl Client<'_> {
    fn request(&mut self, key: usize) -> Vec<u8> {
        self.id = self.id.wrapping_add(1);
        self.flow.get(self.id, &[format!("key-{key:012}")])
    }

    fn hit(&mut self, key: usize) {
        let frame = self.request(key);
        // The few that found no place are asked for too.
        if self.bmc.receive(&frame) == Verdict::Passed {
            self.reply(b"END\r\n");
        }
    }

    fn miss(&mut self, key: usize) {
        let frame = self.request(key);
        assert_eq!(self.bmc.receive(&frame), Verdict::Passed, "nobody has that key");
        self.reply(b"END\r\n");
    }

    fn learn(&mut self, key: usize) {
        let frame = self.request(key);
        let text = packet::values(&[packet::value(format!("key-{key:012}"), 0, &VALUE)]);
        if self.bmc.receive_late(&frame) == Verdict::Passed {
            self.reply(&text);
        }
    }

    fn reply(&self, text: &[u8]) {
        self.bmc.send(&self.flow.reversed().udp(&packet::datagram(self.id, text)));
    }
}
