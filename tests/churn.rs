// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Memory that goes from one size to another while several CPUs read, fill and
//! write it: no reply may have a byte of another entry. Root only.
//!
//! `BMC_CHURN_SECONDS` is how long each size is asked for.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]

mod common;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use common::Bmc;
use common::Memcached;
use common::Net;
use common::PATIENCE;
use common::Rng;
use common::RngExt as _;
use common::Tcp;
use common::Udp;
use common::can_run;

const CLIENTS: u64 = 3;

/// Bytes of values, in the order in which they are asked for.
const SIZES: [usize; 4] = [40, 1000, 300, 90];

/// Bytes of all values of one size: the memory does not hold those of two.
const BYTES: usize = 4_000_000;

/// Requests of a client on their way.
const WINDOW: usize = 16;

/// Writes to each hundred reads.
const WRITES: usize = 5;

/// Requests of a hundred that are for any size: what had the memory is asked for too.
const OTHERS: usize = 20;

fn key(size: usize, nth: usize) -> String {
    format!("{size}-{nth}")
}

/// The value of a key as it was written by somebody at some time: it tells so in each
/// of its parts.
fn value(key: &str, size: usize, writer: u32) -> Vec<u8> {
    format!("{key}:{writer}|").bytes().cycle().take(size).collect()
}

/// Whether it is a value of the key, from its first byte to its last.
fn is_value(data: &[u8], key: &str, size: usize) -> bool {
    let writer = data.strip_prefix(format!("{key}:").as_bytes()).unwrap_or_default();
    let writer = writer.split(|byte| *byte == b'|').next().unwrap_or_default();
    let writer = std::str::from_utf8(writer).ok().and_then(|text| text.parse().ok());
    writer.is_some_and(|writer| data == value(key, size, writer))
}

#[derive(Default)]
struct Tally {
    gets: u64,
    sets: u64,
}

/// Asks for and writes keys of a size until a time; panics at the first wrong reply.
fn work(udp: &mut Udp, tcp: &mut Tcp, rng: &mut Rng, size: usize, until: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < until {
        let mut asked = BTreeMap::new();
        for _ in 0..WINDOW {
            let size = if rng.chance(OTHERS) { SIZES[rng.below(SIZES.len())] } else { size };
            let key = key(size, rng.below(BYTES / size));
            if rng.chance(WRITES) {
                tcp.set(&key, 0, &value(&key, size, rng.number() as u32));
                tally.sets += 1;
            }
            asked.insert(udp.send(format!("get {key}\r\n").as_bytes()), (key, size));
        }
        while !asked.is_empty() {
            let reply = udp.receive(PATIENCE).expect("every request is answered");
            let id = u16::from_be_bytes([reply[0], reply[1]]);
            let (key, size) = asked.remove(&id).expect("an answer to what was asked");
            let head = format!("VALUE {key} 0 {size}\r\n");
            let data = reply[8..].strip_prefix(head.as_bytes());
            let data = data.and_then(|data| data.strip_suffix(b"\r\nEND\r\n"));
            assert!(
                data.is_some_and(|data| is_value(data, &key, size)),
                "{key}: {}",
                reply.escape_ascii()
            );
            tally.gets += 1;
        }
    }
    tally
}

/// Slabs by the bytes of their slots.
fn slabs(bmc: &Bmc) -> BTreeMap<u64, u64> {
    let status: Value = serde_json::from_str(&bmc.run(&["status", "--json"])).expect("JSON");
    let classes = status["classes"].as_array().expect("a list").iter();
    let number = |class: &Value, name: &str| class[name].as_u64().expect("a number");
    classes.map(|class| (number(class, "slot_bytes"), number(class, "slabs"))).collect()
}

#[test]
fn no_reply_has_a_byte_of_another_entry_while_memory_changes_hands() {
    if !can_run("churn") {
        return;
    }
    let seconds = std::env::var("BMC_CHURN_SECONDS").map_or(12, |n| n.parse().expect("a number"));
    let net = Rc::new(Net::new("churn"));
    let _memcached = Memcached::start_on_all_cpus(&net.server, &["-t", "2", "-m", "256"]);
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    for size in SIZES {
        for nth in 0..BYTES / size {
            let key = key(size, nth);
            tcp.send(format!("set {key} 0 0 {size} noreply\r\n").as_bytes());
            tcp.send(&value(&key, size, 0));
            tcp.send(b"\r\n");
        }
        assert_eq!(tcp.command("mn"), "MN");
    }
    drop(tcp);
    let bmc = Bmc::attach(&net, &["--memory", "16M", "--unknown-ttl", "60s"]);
    let mut rng = Rng::from_env("churn");
    let mut phases = Vec::new();
    for size in SIZES {
        let until = Instant::now() + Duration::from_secs(seconds);
        let before = bmc.stats();
        let tally = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let mut udp = Udp::connect(&net.client, Net::SERVER4);
                    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
                    let mut rng = Rng::new(rng.number());
                    scope.spawn(move || work(&mut udp, &mut tcp, &mut rng, size, until))
                })
                .collect();
            clients.into_iter().fold(Tally::default(), |sum, client| {
                let done = client.join().expect("a wrong reply");
                Tally { gets: sum.gets + done.gets, sets: sum.sets + done.sets }
            })
        });
        let after = bmc.stats();
        let grown = |name: &str| common::total(&after, name) - common::total(&before, name);
        phases.push(slabs(&bmc));
        eprintln!(
            "{size} bytes: {} GETs, {} hits, {} fills, {} evictions; {} SETs; slabs by size {:?}",
            tally.gets,
            grown("hits"),
            grown("fills"),
            grown("evictions"),
            tally.sets,
            phases.last()
        );
        assert_eq!(grown("hits") + grown("misses"), tally.gets);
        assert!(grown("hits") > tally.gets / 20, "{after}");
        assert!(grown("invalidations") >= tally.sets, "{after}");
    }
    let has_moved = |pair: &[BTreeMap<u64, u64>]| {
        pair[0].iter().any(|(size, slabs)| pair[1].get(size) < Some(slabs))
    };
    assert!(phases.windows(2).any(has_moved), "no memory has moved: {phases:?}");
}
