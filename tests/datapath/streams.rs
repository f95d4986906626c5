// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Random streams of commands and replies over several connections, cut and
//! pipelined at random: whatever a GET is answered is what memcached holds at
//! that moment. `BMC_TEST_SEED` sets which streams.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::connection::Connection;
use crate::fixture::Config;
use crate::fixture::Verdict;
use crate::packet::datagram;
use crate::packet::parse;
use crate::packet::split;
use crate::packet::value;
use crate::packet::values;
use crate::random::Rng;
use crate::random::RngExt as _;
use crate::scene::Scene;
use crate::scene::v4;
use crate::scene::v6;

const ROUNDS: usize = 24;
const STEPS: usize = 4000;
/// Within a second memcached executes whatever it has got: bmc relies on that.
const ROUND_MAX: Duration = Duration::from_millis(800);
const KEYS: usize = 6;

/// What a command does to the store.
#[derive(Clone, Debug)]
enum Effect {
    Nothing,
    Set(usize, Option<Vec<u8>>),
    Flush,
}

/// A command that memcached has got and not executed yet, with its reply.
struct Pending {
    effect: Effect,
    reply: Vec<u8>,
}

/// A client's connection and memcached's end of it.
struct Stream {
    tcp: Connection,
    /// What the client will send.
    unsent: Vec<u8>,
    /// Commands by how many bytes must have been sent for memcached to have them.
    queued: VecDeque<(usize, Pending)>,
    sent: usize,
    /// Executed, and the reply did not leave yet.
    unsaid: Vec<u8>,
}

struct Memcached {
    scene: Scene,
    store: HashMap<usize, Vec<u8>>,
    streams: Vec<Stream>,
    /// A connection on which little is said.
    quiet: Connection,
    /// GETs over UDP that memcached has got and not executed, by request id.
    asked: Vec<(u16, usize)>,
    /// Replies to them that did not leave yet.
    told: Vec<(u16, Vec<u8>)>,
    /// Whether clients make mistakes, and flush.
    errors: bool,
    count: u32,
    hits: u64,
}

#[test]
fn no_stream_of_commands_makes_an_answer_stale() {
    let mut rng = Rng::from_env("no_stream_of_commands_makes_an_answer_stale");
    let (mut hits, mut writes, mut flushes, mut sleeps) = (0, 0, 0, 0);
    for round in 0..ROUNDS {
        let config = Config { seed: rng.number(), ..Config::default() };
        let Some(scene) = Scene::load(&config) else {
            return;
        };
        scene.bmc.attach();
        let stream = |flow| Stream {
            tcp: Connection::open(flow),
            unsent: Vec::new(),
            queued: VecDeque::new(),
            sent: 0,
            unsaid: Vec::new(),
        };
        let streams = [v4(), v6(), v4()].iter().map(stream).collect();
        let mut memcached = Memcached {
            scene,
            store: HashMap::new(),
            streams,
            quiet: Connection::open(&v6()),
            asked: Vec::new(),
            told: Vec::new(),
            errors: round % 3 == 2,
            count: 0,
            hits: 0,
        };
        let start = Instant::now();
        for _ in 0..STEPS {
            if start.elapsed() > ROUND_MAX {
                break;
            }
            memcached.step(&mut rng);
        }
        let counted = memcached.scene.bmc.counters();
        hits += memcached.hits;
        writes += counted.get("invalidations");
        flushes += counted.get("flushes");
        sleeps += counted.get("sleeps");
    }
    println!("{hits} hits, {writes} writes, {flushes} flushes, {sleeps} sleeps");
    // Else the test would not have tested much.
    assert!(hits > 300 && writes > 300 && flushes > 3 && sleeps > 3);
}

impl Memcached {
    fn step(&mut self, rng: &mut Rng) {
        match rng.below(24) {
            0..=6 => self.step_stream(rng),
            7..=15 => self.get(rng),
            16..=19 => self.execute_get(rng),
            _ => self.tell(rng),
        }
        if rng.below(2000) == 0 {
            self.sleep(rng);
        }
    }

    fn step_stream(&mut self, rng: &mut Rng) {
        let nth = rng.below(self.streams.len());
        match rng.below(7) {
            0 => self.compose(nth, rng),
            1 | 2 => self.client_sends(nth, rng),
            3 | 4 => self.execute(nth),
            _ => self.server_sends(nth, rng),
        }
    }

    /// The cache falls asleep, and wakes a while later.
    fn sleep(&mut self, rng: &mut Rng) {
        for gain in [-1_000_000, 1_000_000] {
            self.scene.bmc.look_again(gain);
            self.quiet.exchange("version\r\n", "VERSION 1\r\n");
            for _ in 0..rng.below(60) {
                if rng.chance(50) { self.step_stream(rng) } else { self.get(rng) }
            }
        }
    }

    /// A client thinks of a command.
    fn compose(&mut self, nth: usize, rng: &mut Rng) {
        self.count += 1;
        let key = rng.below(KEYS);
        let data = match rng.below(4) {
            0 => format!("{}\r\nSTORED\r\nEND\r\n", self.count),
            1 => format!("{}\r\ndelete k{}\r\n", self.count, rng.below(KEYS)),
            _ => format!("{}", self.count),
        };
        let len = data.len();
        let set = |data: &str| Effect::Set(key, Some(data.into()));
        let (text, effect, reply) = match rng.below(40) {
            0..8 => (format!("set k{key} 0 0 {len}\r\n{data}\r\n"), set(&data), "STORED\r\n"),
            8..12 => (format!("set k{key} 0 0 {len} noreply\r\n{data}\r\n"), set(&data), ""),
            12..15 => (format!("ms k{key} {len}\r\n{data}\r\n"), set(&data), "HD\r\n"),
            15..18 => {
                let text = format!("ms k{key} {len} q\r\n{data}\r\nmn\r\n");
                (text, set(&data), "MN\r\n")
            }
            18..22 => (format!("delete k{key}\r\n"), Effect::Set(key, None), "DELETED\r\n"),
            22..24 => (format!("md k{key} q\r\n"), Effect::Set(key, None), ""),
            24..28 => ("get none nothing\r\n".into(), Effect::Nothing, "END\r\n"),
            28..30 => {
                let reply = "VALUE none 0 8\r\nSTORED\r\n\r\nEND\r\n";
                ("get none\r\n".into(), Effect::Nothing, reply)
            }
            30..33 => ("version\r\n".into(), Effect::Nothing, "VERSION 1\r\n"),
            33..36 => {
                (format!("gat 100 k{key} k{}\r\n", rng.below(KEYS)), Effect::Nothing, "END\r\n")
            }
            36 => {
                let text = format!("get {}\r\n", "none ".repeat(rng.below(300) + 1));
                (text, Effect::Nothing, "END\r\n")
            }
            37 if self.errors && rng.chance(20) => {
                ("flush_all\r\n".into(), Effect::Flush, "OK\r\n")
            }
            38 if self.errors && rng.chance(20) => {
                ("nonsense\r\n".into(), Effect::Nothing, "ERROR\r\n")
            }
            39 if self.errors && rng.chance(20) => {
                // The data is short, and a command behind it becomes a part.
                let reply = "CLIENT_ERROR bad data chunk\r\n";
                (format!("set k{key} 0 0 1\r\nabc"), Effect::Nothing, reply)
            }
            _ => ("mn\r\n".into(), Effect::Nothing, "MN\r\n"),
        };
        let stream = &mut self.streams[nth];
        stream.unsent.extend(text.bytes());
        let end = stream.sent + stream.unsent.len();
        stream.queued.push_back((end, Pending { effect, reply: reply.into() }));
    }

    fn client_sends(&mut self, nth: usize, rng: &mut Rng) {
        let stream = &mut self.streams[nth];
        let text = take_some(&mut stream.unsent, rng);
        if text.is_empty() {
            return;
        }
        stream.tcp.request(&text);
        stream.sent += text.len();
    }

    fn execute(&mut self, nth: usize) {
        let stream = &mut self.streams[nth];
        if stream.queued.front().is_none_or(|(end, _)| *end > stream.sent) {
            return;
        }
        let (_, pending) = stream.queued.pop_front().unwrap();
        match pending.effect {
            Effect::Nothing => {}
            Effect::Set(key, Some(data)) => drop(self.store.insert(key, data)),
            Effect::Set(key, None) => drop(self.store.remove(&key)),
            Effect::Flush => self.store.clear(),
        }
        stream.unsaid.extend(pending.reply);
    }

    fn server_sends(&mut self, nth: usize, rng: &mut Rng) {
        let stream = &mut self.streams[nth];
        let text = take_some(&mut stream.unsaid, rng);
        if text.is_empty() {
            return;
        }
        stream.tcp.reply(&text);
    }

    /// A GET comes in; an answer must be what the store holds.
    fn get(&mut self, rng: &mut Rng) {
        // Else little would be learnt after an error. Not before every write
        // that came meanwhile was executed.
        if rng.chance(10) && self.streams.iter().all(|stream| stream.queued.is_empty()) {
            self.scene.bmc.end_quarantine();
        }
        let (id, key) = (self.scene.id(), rng.below(KEYS));
        let name = format!("k{key}");
        match self.scene.bmc.receive(&v4().get(id, &[&name])) {
            Verdict::Passed => self.asked.push((id, key)),
            Verdict::Answered(reply) => {
                self.hits += 1;
                let payload = parse(&reply).unwrap().payload;
                let (_, text) = split(&payload).unwrap();
                assert_eq!(
                    text.escape_ascii().to_string(),
                    self.look_up(key).escape_ascii().to_string(),
                    "after {} commands",
                    self.count
                );
            }
            verdict @ Verdict::AnsweredLate(_) => panic!("{verdict:?}"),
        }
    }

    /// The reply to a GET of this key, now.
    fn look_up(&self, key: usize) -> Vec<u8> {
        let item = self.store.get(&key).map(|data| value(format!("k{key}"), 0, data));
        values(&item.into_iter().collect::<Vec<_>>())
    }

    fn execute_get(&mut self, rng: &mut Rng) {
        if !self.asked.is_empty() {
            let (id, key) = self.asked.swap_remove(rng.below(self.asked.len()));
            self.told.push((id, self.look_up(key)));
        }
    }

    fn tell(&mut self, rng: &mut Rng) {
        if !self.told.is_empty() {
            let (id, text) = self.told.swap_remove(rng.below(self.told.len()));
            self.scene.bmc.send(&v4().reversed().udp(&datagram(id, &text)));
        }
    }
}

/// The first of the bytes that wait, or all; none only if none do.
fn take_some(waiting: &mut Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    let all = waiting.len();
    let len = if all > 0 && rng.chance(40) { rng.below(all) + 1 } else { all };
    waiting.drain(..len).collect()
}
