// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Which entries the cache keeps: hit ratios of the real programs, next to what
//! other rules would have kept in as many slots.
//!
//! Requests of one key each, drawn from traces that can be had again, go through
//! `bmc_rx_tc`, and memcached's replies to the misses through `bmc_tx`, by
//! `BPF_PROG_TEST_RUN`. Nothing expires. The first half of each trace warms up,
//! the second half is counted:
//!
//! - `lfu`: whoever knows how often each key will be asked for from now on keeps
//!   those asked for most. No rule can do better on a steady trace.
//! - `lru`: the least recently used makes room.
//! - `direct`: one place for each key by its hash, the newcomer always takes it,
//!   as in the cache of the NSDI'21 paper.
//!
//! `cargo bench --bench eviction [-- THOUSANDS_OF_REQUESTS]`; needs root.

#[path = "../fixture/mod.rs"]
mod fixture;
#[path = "../packet/mod.rs"]
mod packet;
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
#[path = "../common/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::time::Duration;

use fixture::Bmc;
use fixture::Config;
use fixture::Verdict;
use packet::Flow;
use random::Rng;
use random::Zipf;

/// Slabs of 256 KiB; so few that none is kept for sizes that nobody stores here.
const SLABS: u32 = 10;
/// Their slots of 80 bytes: as many entries fit.
const ITEMS: usize = SLABS as usize * 3258;
const VALUE: [u8; 32] = [b'v'; 32];

fn main() {
    let thousands = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(4000);
    println!("{ITEMS} entries, {thousands},000 requests each; hit ratios of the second half");
    println!(
        "{:<36} {:>6} {:>6} {:>6} {:>6}  {:>7} {:>7}",
        "trace", "bmc", "lfu", "lru", "direct", "bmc/lfu", "bmc/lru"
    );
    for (name, trace) in traces(thousands * 1000) {
        let Some(bmc) = run(&trace) else {
            return;
        };
        let (lfu, lru, direct) = (lfu(&trace), lru(&trace), direct(&trace));
        println!(
            "{name:<36} {bmc:>6.3} {lfu:>6.3} {lru:>6.3} {direct:>6.3}  {:>7.3} {:>7.3}",
            bmc / lfu,
            bmc / lru
        );
    }
}

/// What is asked for.
struct Request {
    key: u32,
    /// No more keys are asked for as often at that time as there are entries.
    popular: bool,
}

type Trace = Vec<Request>;

fn draw(zipf: &Zipf, rng: &mut Rng) -> Request {
    let rank = zipf.draw(rng);
    Request { key: rank as u32, popular: rank < ITEMS }
}

fn traces(requests: usize) -> Vec<(String, Trace)> {
    let mut all = Vec::new();
    for (skew, times) in [(0.7, 16), (0.99, 4), (0.99, 16), (0.99, 64), (1.2, 16)] {
        let (zipf, mut rng) = (Zipf::new(times * ITEMS, skew), Rng::new(1));
        let trace = (0..requests).map(|_| draw(&zipf, &mut rng)).collect();
        all.push((format!("Zipf {skew}, {times} times the entries"), trace));
    }
    let keys = 16 * ITEMS;
    let zipf = Zipf::new(keys, 0.99);
    let once = |nth| Request { key: (keys + nth) as u32, popular: false };

    let mut rng = Rng::new(2);
    let scans = (0..requests).map(|nth| {
        // A tenth of the time somebody walks through keys that nobody knows.
        let scan = nth % 100_000 >= 90_000;
        if scan { once(nth) } else { draw(&zipf, &mut rng) }
    });
    all.push(("Zipf 0.99 and scans".into(), scans.collect()));

    let mut rng = Rng::new(3);
    let strange = (0..requests).map(|nth| {
        let strange = rng.chance(30);
        if strange { once(nth) } else { draw(&zipf, &mut rng) }
    });
    all.push(("Zipf 0.99, 30 % asked for once".into(), strange.collect()));

    let mut rng = Rng::new(4);
    let shifting = (0..requests).map(|nth| {
        let Request { key, popular } = draw(&zipf, &mut rng);
        let shift = nth * 10 / requests * keys / 10;
        Request { key: (key + shift as u32) % keys as u32, popular }
    });
    all.push(("Zipf 0.99, ten hot sets in turn".into(), shifting.collect()));
    all
}

/// The hit ratio of the programs; `None` without the right to load them.
fn run(trace: &Trace) -> Option<f64> {
    let config = Config {
        max_age: Duration::from_secs(36_000),
        unknown_ttl: Duration::from_secs(36_000),
        // Seven eighths full, as with any --memory.
        buckets: (ITEMS as u32).div_ceil(7),
        slabs: SLABS,
        ..Config::default()
    };
    let bmc = Bmc::load(&config)?;
    let flow = Flow::new("10.0.0.2:40000", "10.0.0.1:11211");
    let back = flow.reversed();
    let mut hits = 0;
    for (nth, Request { key, .. }) in trace.iter().enumerate() {
        let key = format!("key-{key:012}");
        let hit = match bmc.receive_late(&flow.get(nth as u16, &[&key])) {
            Verdict::AnsweredLate(_) => true,
            Verdict::Passed => false,
            Verdict::Answered(_) => unreachable!("there is no XDP program"),
        };
        if !hit {
            let reply = packet::values(&[packet::value(&key, 0, &VALUE)]);
            bmc.send(&back.udp(&packet::datagram(nth as u16, &reply)));
        }
        hits += usize::from(hit && nth >= trace.len() / 2);
    }
    let counted = bmc.counters();
    assert_eq!(counted.get("get_keys"), trace.len() as u64);
    // Every miss is learnt, but for those that are not admitted and the very few
    // that cannot be told from something else.
    let refused =
        ["fill_admission", "fill_unleased"].map(|why| counted.get(why)).iter().sum::<u64>();
    assert_eq!(counted.get("misses"), counted.get("fills") + refused, "{counted:?}");
    Some(ratio(hits, trace))
}

fn ratio(hits: usize, trace: &Trace) -> f64 {
    hits as f64 / (trace.len() - trace.len() / 2) as f64
}

fn lfu(trace: &Trace) -> f64 {
    let counted = trace.iter().skip(trace.len() / 2);
    ratio(counted.filter(|request| request.popular).count(), trace)
}

fn lru(trace: &Trace) -> f64 {
    let mut used = HashMap::new();
    let mut order = BTreeMap::new();
    let mut hits = 0;
    for (nth, Request { key, .. }) in trace.iter().enumerate() {
        if let Some(last) = used.insert(key, nth) {
            order.remove(&last);
            hits += usize::from(nth >= trace.len() / 2);
        }
        order.insert(nth, key);
        if order.len() > ITEMS
            && let Some((_, oldest)) = order.pop_first()
        {
            used.remove(oldest);
        }
    }
    ratio(hits, trace)
}

fn direct(trace: &Trace) -> f64 {
    let mut places = vec![u32::MAX; ITEMS];
    let mut hits = 0;
    for (nth, Request { key, .. }) in trace.iter().enumerate() {
        let mixed = (u64::from(*key) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = &mut places[(mixed >> 32) as usize % ITEMS];
        hits += usize::from(*place == *key && nth >= trace.len() / 2);
        *place = *key;
    }
    ratio(hits, trace)
}
