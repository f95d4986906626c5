// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What memory an entry takes, for the sizes of published workloads.
//!
//! The real programs learn items until half of them find no room, and are then asked for
//! all. Of those that are there, printed are the bytes of their replies, what their slots
//! have more, and what `--memory` has more, all told: the index, the records and the TCP
//! connections among it.
//!
//! - ETC and USR: Atikoglu et al., "Workload analysis of a large-scale key-value store",
//!   SIGMETRICS 2012, section 5.
//! - Twitter: as many items of each of its clusters whose replies bmc can cache, by
//!   their mean sizes of keys and values; values are spread evenly between half of that
//!   and one and a half. Yang et al., "A large scale analysis of hundreds of in-memory
//!   cache clusters at Twitter", OSDI 2020, and the table that goes with its traces.
//!
//! `cargo bench --bench density`; needs root.

#[path = "../fixture/mod.rs"]
mod fixture;
#[path = "../packet/mod.rs"]
mod packet;

use std::mem::offset_of;
use std::time::Duration;

use bmc::command::bench::random::Rng;
use bmc::load::layout::Layout;
use bmc::skel::types::bmc_slot;
use fixture::Bmc;
use fixture::Config;
use fixture::Verdict;
use packet::Flow;

const MEMORY: u64 = 256 << 20;
/// Of it, about what goes to maps that do not grow with it.
const FIXED: u64 = 2 << 20;
/// So many items are learnt in a row.
const BATCH: u64 = 10_000;
/// What a slot needs besides its text: its head, but it does not keep "VALUE ".
const HEAD: usize = offset_of!(bmc_slot, key) - "VALUE ".len();
/// The longest text that is cached.
const TEXT_MAX: usize = packet::REPLY_MAX - "END\r\n".len();

/// Lengths of keys and values of Twitter's clusters, on average.
#[rustfmt::skip]
const TWITTER: [(usize, usize); 39] = [
    (10, 120), (18, 37), (18, 102), (18, 115), (19, 120), (19, 212), (19, 246), (20, 273),
    (21, 68), (22, 689), (23, 78), (24, 170), (25, 1), (25, 22), (26, 55), (32, 39), (32, 699),
    (33, 322), (35, 224), (36, 799), (41, 15), (41, 80), (41, 138), (41, 185), (42, 101),
    (44, 70), (44, 155), (44, 171), (44, 221), (44, 252), (44, 267), (44, 304), (44, 928),
    (45, 85), (49, 28), (54, 4), (66, 8), (80, 267), (96, 414),
];

/// Parts in 100,000 of ETC's values that are so short; all others are longer.
#[rustfmt::skip]
const ETC_SHORT: [(usize, usize); 14] = [
    (583, 0), (17_820, 1), (9239, 2), (18, 3), (2740, 4), (65, 5), (606, 6), (23, 7), (837, 8),
    (837, 9), (8989, 10), (92, 11), (326, 12), (1980, 13),
];

/// Lengths of a key and of its value.
type Draw = fn(&mut Rng) -> (usize, usize);

fn main() {
    println!(
        "{:<16} {:>8} {:>12} {:>16} {:>18}",
        "items", "entries", "reply, bytes", "with its slot", "all told"
    );
    let workloads: [(&str, Draw); 4] =
        [("16 and 32 bytes", |_| (16, 32)), ("ETC", etc), ("USR", usr), ("Twitter", twitter)];
    for (name, draw) in workloads {
        if !print(name, draw) {
            return;
        }
    }
}

/// Generalized extreme values for keys, generalized Pareto for values.
fn etc(rng: &mut Rng) -> (usize, usize) {
    let key = 30.7984 + 8.20449 * ((-rng.part().ln()).powf(-0.078_688) - 1.0) / 0.078_688;
    let mut at = rng.below(100_000);
    for (parts, len) in ETC_SHORT {
        match at.checked_sub(parts) {
            Some(rest) => at = rest,
            None => return (key as usize, len),
        }
    }
    let value = 15.0 + 214.476 * ((1.0 - rng.part()).powf(-0.348_238) - 1.0) / 0.348_238;
    (key as usize, value as usize)
}

fn usr(rng: &mut Rng) -> (usize, usize) {
    (if rng.chance(50) { 16 } else { 21 }, 2)
}

fn twitter(rng: &mut Rng) -> (usize, usize) {
    let (key, value) = TWITTER[rng.below(TWITTER.len())];
    (key, value.div_ceil(2) + rng.below(value + 1))
}

/// An item as memcached sends it, if bmc can cache it.
fn item(nth: usize, (klen, vlen): (usize, usize)) -> Option<(String, Vec<u8>)> {
    let key = format!("{nth:0width$x}", width = klen.clamp(8, 250));
    let text = packet::value(&key, 0, &vec![b'v'; vlen]);
    (text.len() <= TEXT_MAX).then_some((key, text))
}

/// False without the right to load the programs.
fn print(name: &str, draw: Draw) -> bool {
    let layout = Layout::new(MEMORY, FIXED).expect("it is within the range");
    let config = Config {
        max_age: Duration::from_secs(36_000),
        unknown_ttl: Duration::from_secs(36_000),
        buckets: layout.buckets,
        slabs: layout.slabs,
        ..Config::default()
    };
    let Some(bmc) = Bmc::load(&config) else {
        return false;
    };
    let flow = Flow::new("10.0.0.2:40000", "10.0.0.1:11211");
    let back = flow.reversed();
    let has = |nth: usize, key: &str| {
        matches!(bmc.receive_late(&flow.get(nth as u16, &[key])), Verdict::AnsweredLate(_))
    };
    let mut rng = Rng::new(1);
    let mut items = Vec::new();
    let mut entries = 0;
    loop {
        for _ in 0..BATCH {
            let nth = items.len();
            let Some((key, text)) = item(nth, draw(&mut rng)) else {
                continue;
            };
            assert!(!has(nth, &key), "it is new");
            items.push((key, text.len()));
            let reply = packet::values(&[text]);
            bmc.send(&back.udp(&packet::datagram(nth as u16, &reply)));
        }
        let counted = bmc.counters();
        let before = entries;
        entries = counted.get("fills") - counted.get("evictions");
        if entries < before + BATCH / 2 {
            break;
        }
    }
    let there = items.iter().enumerate().filter(|(nth, (key, _))| has(*nth, key));
    let texts: Vec<_> = there.map(|(_, (_, text))| *text).collect();
    let bytes: usize = texts.iter().sum();
    let sizes = bmc.slot_sizes();
    let slot = |text: &usize| sizes.iter().find(|size| HEAD + text <= **size);
    let slots: usize = texts.iter().map(|text| slot(text).expect("it is cached")).sum();
    let each = |bytes: f64| bytes / texts.len() as f64;
    let more =
        |all: f64| format!("{:.0} {:>+6.1} %", each(all), (all / bytes as f64 - 1.0) * 100.0);
    println!(
        "{name:<16} {:>8} {:>12.0} {:>16} {:>18}",
        texts.len(),
        each(bytes as f64),
        more(slots as f64),
        more(MEMORY as f64)
    );
    true
}
