// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! GETs over UDP and anything over TCP, at given rates, keys by popularity.
//!
//! Every value says its key and how often that was written, so that a reply is
//! known to be wrong, or older than a write that was acknowledged before the
//! request was sent.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::connect;
use super::key;
use super::set_request;
use crate::common::Namespace;
use crate::common::Rng;
use crate::common::Tcp;
use crate::common::Zipf;

const TICK: Duration = Duration::from_millis(1);
const IDS: usize = 1 << 16;
/// GETs over UDP that wait for replies at most: memcached's socket holds some
/// 250 of them when it gets no CPU for a while.
const WINDOW: usize = 128;
/// When a reply is no longer waited for.
const LOST: Duration = Duration::from_millis(500);
const FRAME: usize = 8;
/// Of a version.
const DIGITS: usize = 8;
const REPLY_END: &[u8] = b"\r\nEND\r\n";

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many different keys, the n-th of them asked for n^-0.99 times as
    /// often as the first.
    pub keys: usize,
    /// Bytes of each value.
    pub value: usize,
    /// GETs a second over UDP.
    pub gets: f64,
    /// TCP connections.
    pub connections: usize,
    /// Requests a second of the slowest and of the fastest of them.
    pub requests: (f64, f64),
    /// One of so many requests over TCP is a SET, the others are GETs.
    pub set_each: usize,
    /// Requests over TCP that are sent at once; the next wait for all replies.
    pub depth: usize,
}

impl Load {
    /// Stores all keys, before anything else is done.
    pub fn store(&self, tcp: &mut Tcp) {
        let texts = Texts::new(self);
        for number in 0..self.keys {
            let set = set_request(&key(number), &texts.value(number, 0));
            tcp.send(set.replacen("\r\n", " noreply\r\n", 1).as_bytes());
        }
        tcp.set("last", 0, b"it comes after them");
    }
}

/// What values and replies look like: a version of the key in eight digits, and
/// bytes that are always the same.
struct Texts {
    value_len: usize,
    padding: String,
}

impl Texts {
    fn new(load: &Load) -> Self {
        let padding = load.value - Self::start(0).len() - DIGITS;
        Self { value_len: load.value, padding: "v".repeat(padding) }
    }

    fn start(number: usize) -> String {
        format!("{number:07}.")
    }

    fn value(&self, number: usize, version: u32) -> String {
        format!("{}{version:0DIGITS$}{}", Self::start(number), self.padding)
    }

    /// What is before the version in memcached's answer to a GET.
    fn head(&self, number: usize) -> String {
        format!("VALUE {} 0 {}\r\n{}", key(number), self.value_len, Self::start(number))
    }

    /// How long the answer is.
    fn reply_len(&self) -> usize {
        self.head(0).len() + DIGITS + self.padding.len() + REPLY_END.len()
    }

    /// The version in the answer, if it is sound.
    fn version(&self, number: usize, reply: &[u8]) -> Option<u32> {
        let (digits, rest) =
            reply.strip_prefix(self.head(number).as_bytes())?.split_at_checked(DIGITS)?;
        let is_sound = rest.strip_prefix(self.padding.as_bytes())? == REPLY_END;
        let version = std::str::from_utf8(digits).ok()?.parse().ok()?;
        is_sound.then_some(version)
    }
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, Default)]
struct Item {
    /// How many SETs were sent.
    sent: u32,
    /// Of them, those that are not acknowledged.
    unanswered: u32,
    /// The first of the latest SETs that overlap: any of them may be the last.
    first: u32,
    /// The least version that a GET may find.
    least: u32,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
enum Request {
    Get { key: usize, least: u32 },
    Set { key: usize },
}

struct Connection {
    stream: TcpStream,
    /// Until the next batch.
    due: Duration,
    period: Duration,
    requests: VecDeque<Request>,
    input: Vec<u8>,
}

/// The clients, all of them in one thread.
pub struct Generator {
    load: Load,
    texts: Texts,
    popularity: Zipf,
    items: Vec<Item>,
    rng: Rng,
    udp: UdpSocket,
    /// By id.
    gets: Vec<Option<Request>>,
    /// Ids of those that are waited for, answered ones among them, and since when.
    waiting: Vec<(usize, Duration)>,
    sent: usize,
    answered: usize,
    connections: Vec<Connection>,
    epoll: Epoll,
}

/// What was done over UDP.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    time: Duration,
    sent: usize,
    answered: usize,
}

impl Done {
    /// The share of GETs that were not answered.
    pub fn lost(&self) -> f64 {
        1.0 - self.answered as f64 / self.sent as f64
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.sent as f64 / self.time.as_secs_f64();
        write!(f, "{rate:.0} GETs a second, {:.3} % unanswered", self.lost() * 100.0)
    }
}

impl Generator {
    /// Opens the sockets.
    pub fn new(namespace: &Namespace, server: SocketAddr, load: &Load) -> Self {
        let udp = namespace.within(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        });
        let udp = udp.expect("a UDP socket");
        setsockopt(&udp, RcvBufForce, &(8 << 20)).expect("root may have a large buffer");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("the kernel has epoll");
        let wait_for = |i: usize| EpollEvent::new(EpollFlags::EPOLLIN, i as u64);
        epoll.add(&udp, wait_for(load.connections)).expect("it is new");
        let mut connections = Vec::new();
        for (i, stream) in connect(namespace, server, load.connections).into_iter().enumerate() {
            epoll.add(&stream, wait_for(i)).expect("it is new");
            let (slowest, fastest) = load.requests;
            let part = i as f64 / load.connections as f64;
            let rate = slowest + (fastest - slowest) * part;
            let period = Duration::from_secs_f64(load.depth as f64 / rate);
            // They do not start at once.
            let due = period.mul_f64(part);
            connections.push(Connection {
                stream,
                due,
                period,
                requests: VecDeque::new(),
                input: Vec::new(),
            });
        }
        Self {
            load: *load,
            texts: Texts::new(load),
            popularity: Zipf::new(load.keys, 0.99),
            items: vec![Item::default(); load.keys],
            rng: Rng::new(1),
            udp,
            gets: vec![None; IDS],
            waiting: Vec::with_capacity(WINDOW),
            sent: 0,
            answered: 0,
            connections,
            epoll,
        }
    }

    /// Runs until it is told to stop.
    ///
    /// # Panics
    /// When a reply is wrong, or too old.
    pub fn run(&mut self, stop: &AtomicBool) -> Done {
        let start = Instant::now();
        let mut events = [EpollEvent::empty(); 64];
        while !stop.load(Relaxed) {
            let now = start.elapsed();
            let due = (now.as_secs_f64() * self.load.gets) as usize;
            while self.sent < due && self.may_ask(now) {
                self.ask(now);
            }
            for i in 0..self.connections.len() {
                let connection = &self.connections[i];
                if connection.due <= now && connection.requests.is_empty() {
                    self.send(i, now);
                }
            }
            let wait = u16::try_from(TICK.as_millis()).expect("it is short");
            // Interrupted or not: the loop goes on.
            let ready = self.epoll.wait(&mut events, wait).unwrap_or(0);
            for event in &events[..ready] {
                match self.connections.get_mut(event.data() as usize) {
                    Some(connection) => connection.receive(&mut self.items, &self.texts),
                    None => self.receive(),
                }
            }
        }
        Done { time: start.elapsed(), sent: self.sent, answered: self.answered }
    }

    /// Whether few enough GETs are waiting for their replies.
    fn may_ask(&mut self, now: Duration) -> bool {
        if self.waiting.len() == WINDOW {
            self.waiting.retain(|&(id, since)| self.gets[id].is_some() && now < since + LOST);
        }
        self.waiting.len() < WINDOW
    }

    /// Sends a GET over UDP.
    fn ask(&mut self, now: Duration) {
        let id = self.sent % IDS;
        let (request, line) = self.get();
        let head = [&(id as u16).to_be_bytes()[..], &[0, 0, 0, 1, 0, 0]].concat();
        // A full queue loses it, as a network would.
        let _ = self.udp.send(&[&head[..], line.as_bytes()].concat());
        self.gets[id] = Some(request);
        self.waiting.push((id, now));
        self.sent += 1;
    }

    /// Takes the replies that came over UDP.
    fn receive(&mut self) {
        let mut buffer = [0; 2048];
        while let Ok(len) = self.udp.recv(&mut buffer) {
            let id = u16::from_be_bytes([buffer[0], buffer[1]]);
            // A reply that comes after the id was given anew is none.
            let Some(Request::Get { key, least }) = self.gets[usize::from(id)].take() else {
                panic!("a reply that nobody asked for: {id}");
            };
            self.items[key].check(key, least, &buffer[FRAME..len], &self.texts);
            self.answered += 1;
        }
    }

    /// Sends a batch over TCP.
    fn send(&mut self, connection: usize, now: Duration) {
        let mut text = String::new();
        for _ in 0..self.load.depth {
            let (request, line) =
                if self.rng.below(self.load.set_each) == 0 { self.set() } else { self.get() };
            text += &line;
            self.connections[connection].requests.push_back(request);
        }
        let connection = &mut self.connections[connection];
        connection.due = now.max(connection.due + connection.period);
        connection.stream.write_all(text.as_bytes()).expect("a socket's buffer is far larger");
    }

    fn get(&mut self) -> (Request, String) {
        let number = self.popularity.draw(&mut self.rng);
        let request = Request::Get { key: number, least: self.items[number].least };
        (request, format!("get {}\r\n", key(number)))
    }

    fn set(&mut self) -> (Request, String) {
        let number = self.popularity.draw(&mut self.rng);
        let version = self.items[number].next();
        (
            Request::Set { key: number },
            set_request(&key(number), &self.texts.value(number, version)),
        )
    }
}

impl Connection {
    /// Takes what has come.
    fn receive(&mut self, items: &mut [Item], texts: &Texts) {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => panic!("memcached hung up"),
            Ok(len) => self.input.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("cannot read: {error}"),
        }
        while let Some(&request) = self.requests.front() {
            let len = match request {
                Request::Get { .. } => texts.reply_len(),
                Request::Set { .. } => b"STORED\r\n".len(),
            };
            let Some(reply) = self.input.get(..len) else {
                return;
            };
            match request {
                Request::Get { key, least } => items[key].check(key, least, reply, texts),
                Request::Set { key } => {
                    assert_eq!(reply, b"STORED\r\n", "{}", reply.escape_ascii());
                    items[key].stored();
                }
            }
            self.input.drain(..len);
            self.requests.pop_front();
        }
        assert!(self.input.is_empty(), "nobody asked for {}", self.input.escape_ascii());
    }
}

impl Item {
    /// The version that is written next.
    fn next(&mut self) -> u32 {
        self.sent += 1;
        if self.unanswered == 0 {
            self.first = self.sent;
        }
        self.unanswered += 1;
        self.sent
    }

    /// A SET was acknowledged.
    fn stored(&mut self) {
        self.unanswered -= 1;
        if self.unanswered == 0 {
            self.least = self.first;
        }
    }

    /// A GET that was sent when `least` was the least version has found this.
    fn check(&self, number: usize, least: u32, reply: &[u8], texts: &Texts) {
        let version = texts.version(number, reply);
        assert!(
            version.is_some_and(|version| (least..=self.sent).contains(&version)),
            "not key {number} in a version from {least} to {}: {}",
            self.sent,
            reply.escape_ascii()
        );
    }
}
