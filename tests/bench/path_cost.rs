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
//! `cargo bench --bench path_cost [-- ROUNDS]`; needs root.

mod cost;
#[path = "../fixture/mod.rs"]
mod fixture;
#[path = "../packet/mod.rs"]
mod packet;

use std::mem::MaybeUninit;
use std::time::Duration;

use bmc::command::bench::random::Rng;
use bmc::command::bench::report::median;
use cost::Counting;
use cost::cost;
use fixture::Bmc;
use fixture::Config;
use fixture::Verdict;
use libbpf_rs::ProgramInput;
use libbpf_rs::ProgramMut;
use packet::Flow;

const KEYS: usize = 500_000;
const REQUESTS: usize = 20_000;
/// So few that the CPU's cache holds all that belongs to them.
const FEW: usize = 64;
/// How often they are asked for in a round.
const TIMES: usize = 300;
/// How often one frame is repeated.
const AGAIN: u32 = 1 << 20;
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
