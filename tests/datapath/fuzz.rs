// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Broken frames: whatever comes in or goes out, nothing is dropped, what is
//! passed is unchanged, and what is answered was asked for properly and is
//! something that memcached said. `BMC_FUZZ_RUNS` sets how many frames,
//! `BMC_TEST_SEED` which.

use std::collections::HashMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::net::SocketAddr;

use crate::fixture::Config;
use crate::fixture::PORT;
use crate::fixture::Verdict;
use crate::fixture::hex;
use crate::packet::Checksum;
use crate::packet::Datagram;
use crate::packet::Flow;
use crate::packet::PSH_ACK;
use crate::packet::REPLY_MAX;
use crate::packet::datagram;
use crate::packet::get;
use crate::packet::network;
use crate::packet::parse;
use crate::packet::parse_get;
use crate::packet::parse_value;
use crate::packet::seal;
use crate::packet::seal_network;
use crate::packet::seal_partial;
use crate::packet::split;
use crate::packet::transport;
use crate::packet::value;
use crate::packet::values;
use crate::random::Rng;
use crate::random::RngExt as _;
use crate::scene::Scene;
use crate::scene::carriers;
use crate::scene::check_reply;

/// Frames between two fresh caches: a write can close an entry for a second.
const ROUND: usize = 10_000;
/// A test run takes no frame shorter than that.
const SHORTEST: usize = 15;

#[test]
fn broken_frames_do_no_harm() {
    let runs = std::env::var("BMC_FUZZ_RUNS").map_or(200_000usize, |runs| runs.parse().unwrap());
    let mut rng = Rng::from_env("broken_frames_do_no_harm");
    let mut total = Tally::default();
    for round in 0..runs.div_ceil(ROUND) {
        let config = Config { seed: rng.number(), ..Config::default() };
        let Some(scene) = Scene::load(&config) else {
            return;
        };
        // Writes empty the cache; most rounds do without.
        let mut fuzz =
            Fuzz { scene, said: HashMap::new(), writes: round % 4 == 3, tally: Tally::default() };
        for _ in 0..ROUND {
            let (flow, key) = (any_flow(&mut rng), any_key(&mut rng));
            if rng.chance(50) {
                fuzz.warm(&flow, &key, &mut rng);
            }
            let frame = fuzz.frame(&flow, &key, &mut rng);
            fuzz.put_through(&frame);
        }
        let counted = fuzz.scene.bmc.counters();
        assert_eq!(counted.get("get_keys"), counted.get("hits") + counted.get("misses"));
        total.answers += fuzz.tally.answers;
        total.late_answers += fuzz.tally.late_answers;
        total.fills += counted.get("fills");
    }
    println!("{runs} frames: {total:?}");
    // Else the test would not have tested much.
    let least = runs as u64 / 100;
    assert!(
        total.answers > least && total.late_answers > least && total.fills > least,
        "{total:?}"
    );
}

#[derive(Debug, Default)]
struct Tally {
    answers: u64,
    late_answers: u64,
    fills: u64,
}

/// A memcached and a key: its address, the VLAN ids, the key.
type Item = (SocketAddr, u32, Vec<u8>);

struct Fuzz {
    scene: Scene,
    /// Every VALUE that memcached said.
    said: HashMap<Item, HashSet<Vec<u8>>>,
    writes: bool,
    tally: Tally,
}

impl Fuzz {
    /// Makes sure that a key is in the cache, if it can be.
    fn warm(&mut self, flow: &Flow, key: &[u8], rng: &mut Rng) {
        let id = self.scene.id();
        self.scene.bmc.end_quarantine();
        let verdict = self.scene.bmc.receive(&flow.get(id, &[key]));
        if verdict == Verdict::Passed {
            let data = any_data(rng);
            let reply = datagram(id, &values(&[value(key, rng.number() as u32, &data)]));
            self.send(&flow.reversed().udp(&reply));
        }
    }

    fn send(&mut self, frame: &[u8]) {
        // The checksums of what this host sends need not be right.
        let mut sealed = frame.to_vec();
        seal_network(&mut sealed);
        if let Ok(reply) = parse(&sealed)
            && let Some((_, text)) = split(&reply.payload)
            && let Some((key, value)) = parse_value(text)
        {
            let item = (reply.flow.source, vlan(&reply.flow), key.to_vec());
            self.said.entry(item).or_default().insert(value.to_vec());
        }
        self.scene.bmc.send(frame);
    }

    /// Through all programs, whichever way the frame was meant to go.
    fn put_through(&mut self, frame: &[u8]) {
        match self.scene.bmc.receive(frame) {
            Verdict::Passed => {}
            Verdict::Answered(reply) => {
                self.tally.answers += 1;
                self.check_answer(frame, &reply);
            }
            Verdict::AnsweredLate(reply) => self.check_answer(frame, &reply),
        }
        if let Verdict::AnsweredLate(reply) = self.scene.bmc.receive_late(frame) {
            self.tally.late_answers += 1;
            self.check_answer(frame, &reply);
        }
        self.send(frame);
    }

    fn check_answer(&self, frame: &[u8], reply: &[u8]) {
        let what = format!("{} answered with {}", hex(frame), hex(reply));
        // Nobody checks the checksum of the IPv4 header.
        let mut frame = frame.to_vec();
        seal_network(&mut frame);
        let asked = parse(&frame).unwrap_or_else(|error| panic!("{error}: {what}"));
        assert!(may_be_answered(&asked), "{what}");
        let ([_, seq, parts, _], text) = split(&asked.payload).expect(&what);
        assert_eq!((seq, parts), (0, 1), "{what}");
        let keys = parse_get(text).expect(&what);
        assert!(keys.len() <= 32, "{what}");

        let answer = parse(reply).unwrap_or_else(|error| panic!("{error}: {what}"));
        let (_, text) = split(&answer.payload).expect(&what);
        check_reply(&what, &frame, reply, text);
        assert!(text.len() <= REPLY_MAX, "{what}");
        let values = text.strip_suffix(b"END\r\n").expect(&what);
        assert!(self.could_say(&asked.flow, &keys, values), "{what}");
    }

    /// Whether memcached said each key's part of the text.
    fn could_say(&self, flow: &Flow, keys: &[&[u8]], text: &[u8]) -> bool {
        let Some((key, rest)) = keys.split_first() else {
            return text.is_empty();
        };
        let item = (flow.target, vlan(flow), key.to_vec());
        self.said.get(&item).is_some_and(|values| {
            values
                .iter()
                .filter_map(|value| text.strip_prefix(value.as_slice()))
                .any(|text| self.could_say(flow, rest, text))
        })
    }

    fn frame(&self, flow: &Flow, key: &[u8], rng: &mut Rng) -> Vec<u8> {
        let mut text = self.text(key, rng);
        if rng.chance(40) {
            break_bytes(&mut text, 0, rng);
        }
        let mut frame = match rng.below(if self.writes { 6 } else { 4 }) {
            // To memcached, or from it.
            0..3 => flow.udp(&datagram(rng.number() as u16, &text)),
            3 => flow.reversed().udp(&datagram(rng.number() as u16, &text)),
            // Of no connection that there is.
            4 => flow.tcp(rng.number() as u32, rng.number() as u32, PSH_ACK, &text),
            _ => flow.reversed().tcp(rng.number() as u32, rng.number() as u32, PSH_ACK, &text),
        };
        if rng.chance(60) {
            for _ in 0..=rng.below(3) {
                break_frame(&mut frame, rng);
            }
            match rng.below(4) {
                0 => seal_partial(&mut frame),
                1 | 2 => seal(&mut frame),
                _ => {}
            }
        }
        frame
    }

    fn text(&self, key: &[u8], rng: &mut Rng) -> Vec<u8> {
        match rng.below(if self.writes { 10 } else { 8 }) {
            0..5 => get(&[key]),
            5 => {
                let keys: Vec<_> = (0..=rng.below(34)).map(|_| any_key(rng)).collect();
                get(&keys)
            }
            6 | 7 => values(&[value(key, rng.number() as u32, &any_data(rng))]),
            8 => {
                let commands =
                    ["set", "add", "append", "cas", "ms", "delete", "gat", "mg", "flush_all"];
                let command = commands[rng.below(commands.len())];
                let data = any_data(rng);
                let key = std::str::from_utf8(key).unwrap();
                let line = format!("{command} {key} 0 0 {}\r\n", data.len());
                [line.as_bytes(), &data, b"\r\n"].concat()
            }
            _ => {
                let replies = ["STORED\r\n", "DELETED\r\n", "END\r\n", "7\r\n", "HD\r\n"];
                replies[rng.below(replies.len())].into()
            }
        }
    }
}

/// What the design says of the frames that bmc may answer.
fn may_be_answered(asked: &Datagram) -> bool {
    let private = match asked.flow.source.ip() {
        IpAddr::V4(source) => source.is_private(),
        IpAddr::V6(source) => source.octets()[0] == 0xfd || source.is_unicast_link_local(),
    };
    let intact = match asked.checksum {
        Checksum::Valid | Checksum::Partial => true,
        Checksum::Absent => asked.flow.source.is_ipv4(),
        Checksum::Wrong => false,
    };
    private
        && intact
        && asked.flow.source.port() != 0
        && asked.flow.target.port() == PORT
        && asked.flow.target_mac[0] & 1 == 0
}

/// Priority tags, with the id 0, are no VLAN.
fn vlan(flow: &Flow) -> u32 {
    let id = |nth: usize| flow.tags.get(nth).map_or(0, |tag| u32::from(tag.1 & 0xfff));
    id(0) | id(1) << 12
}

fn any_flow(rng: &mut Rng) -> Flow {
    let mut carriers = carriers();
    carriers.swap_remove(rng.below(carriers.len())).1
}

/// One of a few keys, of all lengths.
fn any_key(rng: &mut Rng) -> Vec<u8> {
    let lengths = [1, 3, 7, 8, 16, 31, 64, 250];
    let letter = b'a' + rng.below(3) as u8;
    vec![letter; lengths[rng.below(lengths.len())]]
}

fn any_data(rng: &mut Rng) -> Vec<u8> {
    let len = rng.small(0, 1100);
    rng.bytes(len)
}

/// Breaks something at or behind `from`.
fn break_bytes(bytes: &mut Vec<u8>, from: usize, rng: &mut Rng) {
    const TELLING: &[u8] = b"\0\x01\t\n\r !09:AZaz\x7f\x80\xff";
    if bytes.len() <= from {
        bytes.push(rng.number() as u8);
        return;
    }
    let at = from + rng.below(bytes.len() - from);
    match rng.below(7) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.number() as u8,
        2 => bytes[at] = TELLING[rng.below(TELLING.len())],
        3 => bytes.insert(at, TELLING[rng.below(TELLING.len())]),
        4 => drop(bytes.remove(at)),
        5 => bytes.truncate(at),
        _ => {
            let end = at + rng.below(bytes.len() - at);
            let twice = bytes[at..end].to_vec();
            bytes.extend(twice);
        }
    }
    bytes.truncate(1450);
}

fn break_frame(frame: &mut Vec<u8>, rng: &mut Rng) {
    match rng.below(8) {
        // The headers are where it hurts.
        0..3 => {
            let at = rng.below(frame.len().min(90));
            frame[at] ^= 1 << rng.below(8);
        }
        3 => {
            let at = rng.below(frame.len().min(90));
            frame[at] = rng.number() as u8;
        }
        // The lengths of IP and UDP, a little off.
        4 | 5 => {
            let ip = network(frame);
            if frame.len() < ip + 40 {
                return;
            }
            let at = match (rng.chance(50), frame[ip] >> 4) {
                (true, 4) => ip + 2,
                (true, _) => ip + 4,
                (false, _) => transport(frame) + 4,
            };
            if let Some(length) = frame.get_mut(at + 1) {
                *length = length.wrapping_add(rng.below(9) as u8).wrapping_sub(4);
            }
        }
        6 => {
            let padding = rng.below(64);
            let padding = rng.bytes(padding);
            frame.extend(padding);
        }
        _ => break_bytes(frame, SHORTEST, rng),
    }
    while frame.len() < SHORTEST {
        frame.push(0);
    }
}
