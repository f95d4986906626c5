// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Ends of items at random: commands of every kind that say something of an
//! exptime, or fail, one after the other, in one segment and at once. memcached is
//! asked over a port that bmc does not watch; what it has not any more, without a
//! write since then, nobody answers.
//!
//! bmc is told that items of an unknown end live long: there are none here.
//! `BMC_ENDS_SECONDS` says how long it goes on.

use std::collections::VecDeque;
use std::fmt;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::TcpStream;
use std::rc::Rc;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::LASTING;
use crate::commands::binary;
use crate::common::Bmc;
use crate::common::Memcached;
use crate::common::Namespace;
use crate::common::Net;
use crate::common::PORT;
use crate::common::Rng;
use crate::common::RngExt as _;
use crate::common::Udp;
use crate::common::can_run;
use crate::common::items;
use crate::lane::DISTRUST;
use crate::pair::show;

/// Where memcached listens besides.
const UNWATCHED: u16 = PORT + 1;
const WORKERS: usize = 4;
/// Of each worker, whose keys nobody else writes.
const KEYS: usize = 24;
const CONNECTIONS: usize = 4;
/// Between two rounds of a worker.
const PAUSE: Duration = Duration::from_millis(3);
const BETWEEN_FLUSHES: Duration = Duration::from_secs(9);
const PATIENCE: Duration = Duration::from_secs(10);
/// What a failure shows of a key's past.
const HISTORY: usize = 24;

/// What memcached sends in return.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    One,
    /// None, or an error: asked for by another command that has one.
    Silence,
}

/// A TCP connection, text or binary.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn connect(namespace: &Namespace, port: u16) -> Self {
        let stream = namespace
            .within(|| TcpStream::connect((Net::SERVER4, port)))
            .expect("memcached accepts");
        stream.set_nodelay(true).expect("an option of TCP");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option of sockets");
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("the connection is open");
    }

    fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).expect("memcached answers");
        assert!(line.ends_with(b"\r\n"), "a whole line, not {}", line.escape_ascii());
        line
    }

    /// The reply to one text command.
    fn reply(&mut self) -> Vec<u8> {
        let mut text = self.line();
        if text.starts_with(b"VA ") {
            text.extend(self.line());
        }
        while text.starts_with(b"VALUE ") && !text.ends_with(b"END\r\n") {
            text.extend(self.line());
        }
        text
    }

    /// All up to the reply to "mn".
    fn replies(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        while !text.ends_with(b"MN\r\n") {
            text.extend(self.line());
        }
        text
    }

    /// All up to the reply to a binary noop.
    fn binary_replies(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut head = [0; 24];
            self.0.read_exact(&mut head).expect("memcached answers");
            let [.., a, b, c, d] = *head.first_chunk::<12>().expect("24 bytes");
            let mut body = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
            self.0.read_exact(&mut body).expect("memcached answers");
            all.extend_from_slice(&head[..8]);
            if head[1] == 0x0a {
                return all;
            }
        }
    }

    /// The item's value, asked for where nobody watches.
    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        self.send(format!("get {key}\r\n").as_bytes());
        let text = self.reply();
        items(&text).0.pop().map(|item| item.data)
    }
}

/// What was said about a key lately, and answered.
#[derive(Default)]
struct History(VecDeque<String>);

impl History {
    fn note(&mut self, start: Instant, what: &str, bytes: &[u8]) {
        if self.0.len() == HISTORY {
            self.0.pop_front();
        }
        self.0.push_back(format!("{:9.4} {what} {}", start.elapsed().as_secs_f64(), show(bytes)));
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// What a worker knows of a key.
#[derive(Default)]
struct Key {
    name: String,
    history: History,
    /// How often it was answered since the last write.
    answered: u32,
    /// Its unique number, or what it once was.
    unique: u64,
}

#[derive(Debug, Default)]
struct Tally {
    commands: u64,
    asked: u64,
    answered: u64,
    /// Entries, or what is most likely one: keys that were answered several times
    /// and ended then, without a write.
    ended: u64,
    stale: u64,
}

struct Worker {
    start: Instant,
    rng: Rng,
    keys: Vec<Key>,
    texts: Vec<Stream>,
    binary: Stream,
    udp: Udp,
    unwatched: Stream,
    tally: Tally,
}

impl Worker {
    fn new(nr: usize, namespace: &Namespace, seed: u64) -> Self {
        let key = |n| Key { name: format!("key-{nr}-{n}"), ..Key::default() };
        Self {
            start: Instant::now(),
            rng: Rng::new(seed),
            keys: (0..KEYS).map(key).collect(),
            texts: (0..CONNECTIONS).map(|_| Stream::connect(namespace, PORT)).collect(),
            binary: Stream::connect(namespace, PORT),
            udp: Udp::connect(namespace, Net::SERVER4),
            unwatched: Stream::connect(namespace, UNWATCHED),
            tally: Tally::default(),
        }
    }

    fn run(mut self, end: Instant) -> Tally {
        while Instant::now() < end {
            let key = self.rng.below(KEYS);
            // Most keys are left alone most of the time, to end.
            match self.rng.below(160) {
                0 => self.one_after_the_other(key),
                1 => self.in_one_segment(key),
                2 => self.at_once(key),
                3 if self.rng.chance(30) => self.over_udp(key),
                4 if self.rng.chance(10) => self.in_binary(key),
                5 => {
                    let text = self.texts[0].get(&self.keys[key].name);
                    self.keys[key].history.note(
                        self.start,
                        "get, watched:",
                        &text.unwrap_or_default(),
                    );
                }
                6 => self.keys[key].unique = self.unique(key),
                7 if self.rng.chance(1) => self.lose_track(),
                _ => self.check(key),
            }
            if self.rng.chance(50) {
                self.check(key);
            }
            thread::sleep(PAUSE);
        }
        self.tally
    }

    /// First memcached, then who answers first.
    fn check(&mut self, nr: usize) {
        let key = &mut self.keys[nr];
        let there = self.unwatched.get(&key.name);
        let text = self.udp.get(&key.name).text;
        let answer = items(&text).0.pop().map(|item| item.data);
        self.tally.asked += 1;
        let is_stale = match (&there, &answer) {
            (Some(there), Some(answer)) => there != answer,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if is_stale {
            self.tally.stale += 1;
            let shown = |data: Option<Vec<u8>>| data.map_or("nothing".into(), |data| show(&data));
            panic!(
                "{} at {:.4} s: memcached has {}, the answer is {}; said about it lately:\n{}",
                key.name,
                self.start.elapsed().as_secs_f64(),
                shown(there),
                shown(answer),
                key.history
            );
        }
        if answer.is_some() {
            key.answered += 1;
            self.tally.answered += 1;
        } else if there.is_none() {
            self.tally.ended += u64::from(key.answered > 2);
            key.answered = 0;
        }
    }

    fn unique(&mut self, key: usize) -> u64 {
        self.unwatched.send(format!("gets {}\r\n", self.keys[key].name).as_bytes());
        let text = self.unwatched.reply();
        let line = String::from_utf8_lossy(&text);
        let word = line.lines().next().and_then(|line| line.split(' ').nth(4));
        word.and_then(|word| word.parse().ok()).unwrap_or(1)
    }

    fn exptime(&mut self) -> i64 {
        let soon = [1, 2, 3, 4, 5, 6][self.rng.below(6)];
        match self.rng.below(16) {
            0 | 1 => 0,
            2 => -1,
            3 => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
                now.as_secs().cast_signed() + soon
            }
            _ => soon,
        }
    }

    fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.rng.below(all.len())]
    }

    /// A text command, and what comes in return.
    fn text(&mut self, nr: usize) -> (Vec<u8>, Answer) {
        let key = self.keys[nr].name.clone();
        let end = self.exptime();
        let other = self.exptime();
        let unique = if self.rng.chance(50) { self.keys[nr].unique } else { 1 };
        let value = self.rng.below(1000);
        let len = value.to_string().len();
        let noreply = self.rng.chance(20);
        let tail = if noreply { " noreply" } else { "" };
        let silence = if noreply { Answer::Silence } else { Answer::One };
        let quiet = self.rng.chance(15);
        let q = if quiet { " q" } else { "" };
        let quiet = if quiet { Answer::Silence } else { Answer::One };
        let (text, answer) = match self.rng.below(18) {
            0..=3 => (format!("set {key} 0 {end} {len}{tail}\r\n{value}\r\n"), silence),
            4 | 5 => {
                let verb = self.pick(&["add", "add", "replace", "append", "prepend"]);
                (format!("{verb} {key} 0 {end} {len}{tail}\r\n{value}\r\n"), silence)
            }
            6 => (format!("cas {key} 0 {end} {len} {unique}{tail}\r\n{value}\r\n"), silence),
            7 | 8 => (format!("touch {key} {end}{tail}\r\n"), silence),
            9 => {
                let verb = self.pick(&["gat", "gats"]);
                let second = self.keys[(nr + 1) % KEYS].name.clone();
                let keys = if self.rng.chance(25) { format!("{key} {second}") } else { key };
                (format!("{verb} {end} {keys}\r\n"), Answer::One)
            }
            10 => {
                let verb = self.pick(&["incr", "decr"]);
                (format!("{verb} {key} 1{tail}\r\n"), silence)
            }
            11 | 12 => {
                let mode = self.pick(&["", "", " MS", " ME", " MA", " MP", " MR"]);
                let condition = match self.rng.below(6) {
                    0 => format!(" N{other}"),
                    1 => format!(" C{unique}"),
                    2 => format!(" C{unique} I"),
                    _ => String::new(),
                };
                let t = if self.rng.chance(15) { String::new() } else { format!(" T{end}") };
                (format!("ms {key} {len}{t}{mode}{condition}{q}\r\n{value}\r\n"), quiet)
            }
            13 | 14 => {
                let verb = self.pick(&["ma", "mg", "mg"]);
                let flags = self.pick(&["T", "N", "NT", "TN"]);
                // Times of day and others in one command are not understood.
                let other = if (end > 100) == (other > 100) { other } else { end };
                let flags = match flags {
                    "T" => format!("T{end}"),
                    "N" => format!("N{end}"),
                    "NT" => format!("N{other} T{end}"),
                    _ => format!("T{end} N{other}"),
                };
                (format!("{verb} {key} v {flags}{q}\r\n"), quiet)
            }
            15 => {
                let flags = self.pick(&["", " I", " x", " x I"]);
                let unique = if self.rng.chance(30) { " C1" } else { "" };
                (format!("md {key}{flags} T{end}{unique}{q}\r\n"), quiet)
            }
            16 if self.rng.chance(30) => (format!("delete {key}{tail}\r\n"), silence),
            // Not understood, which empties the cache.
            16 if self.rng.chance(3) => (format!("touch {key} x\r\n"), Answer::One),
            _ => (format!("mg {key} v t\r\n"), Answer::One),
        };
        (text.into_bytes(), answer)
    }

    fn written(&mut self, nr: usize, how: &str, said: &[u8], answer: &[u8]) {
        self.tally.commands += 1;
        // A gat may name the next one as well.
        for nr in [nr, (nr + 1) % KEYS] {
            let key = &mut self.keys[nr];
            key.answered = 0;
            key.history.note(self.start, how, said);
            key.history.note(self.start, "   answer:", answer);
        }
    }

    fn one_after_the_other(&mut self, nr: usize) {
        for _ in 0..self.rng.small(1, 3) {
            let at = self.rng.below(CONNECTIONS);
            let (said, answer) = self.text(nr);
            self.texts[at].send(&said);
            let got = if answer == Answer::One {
                self.texts[at].reply()
            } else {
                self.texts[at].send(b"mn\r\n");
                self.texts[at].replies()
            };
            self.written(nr, &format!("TCP {at}:"), &said, &got);
        }
    }

    fn in_one_segment(&mut self, nr: usize) {
        let at = self.rng.below(CONNECTIONS);
        let mut said = Vec::new();
        for _ in 0..self.rng.small(2, 5) {
            said.extend(self.text(nr).0);
        }
        said.extend(b"mn\r\n");
        self.texts[at].send(&said);
        let got = self.texts[at].replies();
        self.written(nr, &format!("TCP {at}:"), &said, &got);
    }

    fn at_once(&mut self, nr: usize) {
        let count = 2 + self.rng.below(CONNECTIONS - 1);
        let alike = self.rng.chance(50);
        let first = self.text(nr).0;
        let said: Vec<_> = (0..count)
            .map(|_| {
                let one = if alike { first.clone() } else { self.text(nr).0 };
                [&one[..], b"mn\r\n"].concat()
            })
            .collect();
        for (stream, said) in self.texts.iter_mut().zip(&said) {
            stream.send(said);
        }
        for (at, said) in said.iter().enumerate() {
            let got = self.texts[at].replies();
            self.written(nr, &format!("TCP {at}, at once:"), said, &got);
        }
    }

    fn over_udp(&mut self, nr: usize) {
        let (said, _) = loop {
            let (said, answer) = self.text(nr);
            if answer == Answer::One {
                break (said, answer);
            }
        };
        let id = self.udp.send(&said);
        let mut got = Vec::new();
        while let Some(datagram) = self.udp.receive(Duration::from_millis(60)) {
            assert_eq!(datagram[..2], id.to_be_bytes(), "the answer to this one");
            got.extend_from_slice(&datagram[8..]);
        }
        self.written(nr, "UDP:", &said, &got);
    }

    fn in_binary(&mut self, nr: usize) {
        let key = self.keys[nr].name.clone();
        let end = self.exptime().max(0) as u32;
        let unique = if self.rng.chance(25) { self.keys[nr].unique } else { 0 };
        let store = [0, end].map(u32::to_be_bytes).concat();
        let count = [0, 1, 0, 10, if self.rng.chance(25) { u32::MAX } else { end }];
        let count = count.map(u32::to_be_bytes).concat();
        let touch = end.to_be_bytes().to_vec();
        let (opcode, extras, value) = match self.rng.below(6) {
            0 => ([0x01, 0x11][self.rng.below(2)], store, &b"5"[..]),
            1 => ([0x02, 0x12][self.rng.below(2)], store, &b"6"[..]),
            2 => ([0x03, 0x13][self.rng.below(2)], store, &b"7"[..]),
            3 => ([0x05, 0x06, 0x15, 0x16][self.rng.below(4)], count, &b""[..]),
            4 => ([0x0e, 0x19][self.rng.below(2)], Vec::new(), &b"8"[..]),
            _ => ([0x1c, 0x1d, 0x1e, 0x23, 0x24][self.rng.below(5)], touch, &b""[..]),
        };
        let said = binary(opcode, &extras, key.as_bytes(), value, 0, unique);
        let noop = binary(0x0a, b"", b"", b"", 0, 0);
        self.binary.send(&said);
        self.binary.send(&noop);
        let got = self.binary.binary_replies();
        self.written(nr, "binary:", &said, &got);
    }

    /// Makes bmc lose track of a connection.
    fn lose_track(&mut self) {
        let at = self.rng.below(CONNECTIONS);
        self.texts[at].send(b"nonsense\r\nmn\r\n");
        self.texts[at].replies();
    }
}

/// STRICT: whoever knows an end that a write on the wire may have given an item does not
/// answer after it.
#[test]
fn nothing_is_answered_after_its_end_whatever_was_written() {
    let name = "nothing_is_answered_after_its_end_whatever_was_written";
    if !can_run(name) {
        return;
    }
    let seconds = std::env::var("BMC_ENDS_SECONDS")
        .map_or(25, |seconds| seconds.parse().expect("a number of seconds"));
    let net = Rc::new(Net::new("ends"));
    let any = IpAddr::from([0; 4]);
    let listen = format!("{any}:{PORT},{any}:{UNWATCHED}");
    let _memcached = Memcached::start(&net.server, &["-l", &listen]);
    let bmc = Bmc::attach(&net, &[&["--memory", "16M"], LASTING].concat());
    thread::sleep(DISTRUST);
    let mut rng = Rng::from_env(name);
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    let mut sum = Tally::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|nr| {
                let (client, seed) = (net.client.clone(), rng.number());
                scope.spawn(move || Worker::new(nr, &client, seed).run(end))
            })
            .collect();
        let mut flushed = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            if flushed.elapsed() > BETWEEN_FLUSHES {
                bmc.run(&["flush"]);
                flushed = Instant::now();
            }
        }
        for worker in workers {
            let tally = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sum.commands += tally.commands;
            sum.asked += tally.asked;
            sum.answered += tally.answered;
            sum.ended += tally.ended;
            sum.stale += tally.stale;
        }
    });
    let hits = bmc.total("hits");
    println!("{sum:?}, {hits} hits, {} refused", bmc.total("fill_refusals.expiry"));
    assert!(hits * 10 > sum.answered, "few were answered by the kernel: {hits} of {sum:?}");
    assert!(sum.ended > seconds, "few have ended: {sum:?}");
    assert_eq!(sum.stale, 0);
}
