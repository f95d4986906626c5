// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A client that keeps memcached busy and checks every byte that it receives.
//!
//! A saturating client keeps [`WINDOW`] requests in flight: each reply makes room for the next
//! request. A paced client sends at a fixed rate, whatever happens, and measures the latency of a
//! request from the time at which it was due. So a pause of the server or of the client adds to
//! the latency of every request that was due meanwhile.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt};

use super::cases::Case;
use super::histogram::Histogram;
use super::keys::Popularity;
use super::random::Rng;
use super::texts::Texts;

/// Requests that a saturating client keeps in flight. The buffer of memcached's UDP socket holds
/// about 250.
pub const WINDOW: usize = 64;

/// The time after which a request over UDP counts as lost.
pub const LOST: Duration = Duration::from_millis(100);

/// TCP connections of a client, if it uses TCP.
pub const CONNECTIONS: usize = 16;

/// How long the id of a lost request is not reused, because its reply may be late.
const QUARANTINE: Duration = Duration::from_secs(1);

/// The time without any reply after which a TCP connection counts as broken.
const STALLED: Duration = Duration::from_secs(10);

const IDS: u16 = 1024;
const BATCH: usize = WINDOW;
const FLOWS_MOST: usize = 64;
const TCP_MOST: usize = 256;
const FRAME: usize = 8;
const DATAGRAM: usize = 2048;

/// The result of a measurement.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests that were sent or due.
    pub requests: u64,
    /// Requests without a reply in time.
    pub lost: u64,
    /// Requests that were answered before the end.
    pub answered: u64,
    /// Keys that GETs asked for.
    pub keys_asked: u64,
    /// Keys of GETs that were answered.
    pub keys_answered: u64,
    /// The latencies of all answered requests.
    pub latency: Histogram,
    /// The time during which requests were sent.
    pub time: Duration,
    /// The time that the client was ready to run but waited for its CPU.
    pub waited: Duration,
}

impl Outcome {
    /// Adds the result of another client in the same time.
    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.lost += other.lost;
        self.answered += other.answered;
        self.keys_asked += other.keys_asked;
        self.keys_answered += other.keys_answered;
        self.latency.merge(&other.latency);
        self.time = self.time.max(other.time);
        self.waited = self.waited.max(other.waited);
    }

    /// Answered requests per second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// Sent at this time.
    Waiting(Instant),
    Lost,
}

/// The state of a request id.
struct Slot {
    state: State,
    due: Instant,
    request: Vec<u8>,
    expected: Vec<u8>,
    /// The length of the part that has arrived.
    at: usize,
}

struct Pending {
    due: Instant,
    keys: u64,
    expected: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    pending: VecDeque<Pending>,
    /// The length of the part of the first pending reply that has arrived.
    at: usize,
    output: Vec<u8>,
}

/// A client, for one thread.
pub struct Client<'a> {
    case: &'a Case,
    /// Whether the replies are the requests themselves, from a reflector.
    echo: bool,
    /// Whether to yield the CPU instead of polling, because memcached needs it.
    yields: bool,
    texts: Texts,
    popularity: Popularity,
    rng: Rng,
    /// The sockets, used in turn, each for as many requests as are ready.
    flows: Vec<UdpSocket>,
    flow: usize,
    flows_ready: Epoll,
    slots: Vec<Slot>,
    free: VecDeque<u16>,
    /// Ids in the order in which requests were made, including answered ones.
    order: VecDeque<(u16, Instant)>,
    unsent: VecDeque<u16>,
    quarantine: VecDeque<(u16, Instant)>,
    waiting: usize,
    connections: Vec<Connection>,
    next: usize,
    tcp_waiting: usize,
    heard: Instant,
    epoll: Epoll,
    input: Vec<[u8; DATAGRAM]>,
    stream_input: Vec<u8>,
}

impl<'a> Client<'a> {
    /// Opens its sockets in the network namespace of this thread. `echo` says that replies are the
    /// requests themselves, `yields` that memcached shares the CPU. The sequence of keys depends
    /// on `seed`.
    pub fn open(
        case: &'a Case,
        server: SocketAddr,
        echo: bool,
        yields: bool,
        seed: u64,
    ) -> Result<Self> {
        let epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot use epoll");
        let (epoll, flows_ready) = (epoll()?, epoll()?);
        let mut flows = Vec::new();
        for i in 0..case.flows {
            let udp = UdpSocket::bind(("0.0.0.0", 0)).context("cannot open a UDP socket")?;
            udp.connect(server)?;
            udp.set_nonblocking(true)?;
            setsockopt(&udp, RcvBufForce, &(8 << 20)).context("cannot have a large buffer")?;
            flows_ready.add(&udp, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
            flows.push(udp);
        }
        let mut connections = Vec::new();
        for i in 0..if case.uses_tcp() { CONNECTIONS } else { 0 } {
            let stream = TcpStream::connect(server).context("cannot connect to memcached")?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
            let pending = VecDeque::new();
            connections.push(Connection { stream, pending, at: 0, output: Vec::new() });
        }
        let now = Instant::now();
        let slot = || Slot {
            state: State::Free,
            due: now,
            request: Vec::new(),
            expected: Vec::new(),
            at: 0,
        };
        Ok(Self {
            case,
            echo,
            yields,
            texts: Texts::new(case.value),
            popularity: Popularity::new(case.keys, case.zipf),
            rng: Rng::new(seed),
            flows,
            flow: 0,
            flows_ready,
            slots: (0..IDS).map(|_| slot()).collect(),
            free: (0..IDS).collect(),
            order: VecDeque::new(),
            unsent: VecDeque::new(),
            quarantine: VecDeque::new(),
            waiting: 0,
            connections,
            next: 0,
            tcp_waiting: 0,
            heard: now,
            epoll,
            input: vec![[0; DATAGRAM]; BATCH],
            stream_input: vec![0; 1 << 16],
        })
    }

    /// Sends requests for `time`: `rate` per second, or as many as are answered. Returns when every
    /// request was answered or is lost.
    pub fn run(&mut self, rate: Option<f64>, time: Duration) -> Result<Outcome> {
        let mut headers = MultiHeaders::preallocate(BATCH, None);
        let mut seen = Outcome::default();
        let before = cpu_wait(Path::new("/proc/thread-self"));
        let start = Instant::now();
        self.heard = start;
        let due_by = |time: Duration| rate.map(|rate| (time.as_secs_f64() * rate) as u64);
        loop {
            let now = Instant::now();
            let elapsed = now - start;
            let is_over = elapsed >= time;
            if !is_over {
                let under_way = (self.waiting + self.tcp_waiting) as u64;
                let wanted = match due_by(elapsed) {
                    // The first is due at once.
                    Some(due) => (due + 1).saturating_sub(seen.requests),
                    None => (WINDOW as u64).saturating_sub(under_way),
                };
                for _ in 0..wanted.min(BATCH as u64) {
                    if self.free.is_empty() || self.tcp_waiting >= TCP_MOST {
                        break;
                    }
                    let due = rate.map_or(now, |rate| {
                        start + Duration::from_secs_f64(seen.requests as f64 / rate)
                    });
                    seen.keys_asked += self.ask(now, due);
                    seen.requests += 1;
                }
                seen.time = elapsed;
            } else if self.waiting + self.tcp_waiting == 0 {
                break;
            }
            let answered = seen.latency.count();
            self.send(&mut headers)?;
            let is_drained = self.receive(&mut headers, &mut seen)?;
            self.receive_streams(&mut seen)?;
            let progress = seen.latency.count() - answered;
            if !is_over {
                seen.answered += progress;
            }
            if is_drained {
                seen.lost += self.expire(now);
            }
            if progress == 0 && self.yields {
                yield_now();
            }
        }
        seen.time = seen.time.max(time);
        seen.waited = cpu_wait(Path::new("/proc/thread-self")).saturating_sub(before);
        // Requests that could not even be sent in time are lost as well.
        let unsent = due_by(time).unwrap_or(0).saturating_sub(seen.requests);
        seen.requests += unsent;
        seen.lost += unsent;
        Ok(seen)
    }

    /// Prepares a request and returns the number of its keys.
    fn ask(&mut self, now: Instant, due: Instant) -> u64 {
        let Case { keys, present, multi, sets, .. } = *self.case;
        let first = self.popularity.pick(&mut self.rng);
        // The numbers of absent keys are above those of keys that may exist.
        let offset = if present { 0 } else { keys };
        let numbers = (0..multi).map(|i| (first + i) % keys + offset);
        let is_set = sets > 0 && self.rng.chance(sets as usize);
        let expect = |texts: &Texts, to: &mut Vec<u8>| {
            if present {
                texts.items(numbers.clone(), to);
            }
            to.extend(b"END\r\n");
        };
        if is_set || self.case.tcp {
            let connection = &mut self.connections[self.next % CONNECTIONS];
            self.next += 1;
            self.tcp_waiting += 1;
            let mut expected = Vec::new();
            if is_set {
                self.texts.set(first, false, &mut connection.output);
                expected.extend(b"STORED\r\n");
            } else {
                Texts::get(numbers.clone(), &mut connection.output);
                expect(&self.texts, &mut expected);
            }
            let keys = if is_set { 0 } else { multi as u64 };
            connection.pending.push_back(Pending { due, keys, expected });
            return keys;
        }
        let Some(id) = self.free.pop_front() else { return 0 };
        let slot = &mut self.slots[usize::from(id)];
        (slot.state, slot.due, slot.at) = (State::Waiting(now), due, 0);
        slot.request.clear();
        slot.request.extend(id.to_be_bytes());
        slot.request.extend([0, 0, 0, 1, 0, 0]);
        Texts::get(numbers.clone(), &mut slot.request);
        slot.expected.clear();
        if self.echo {
            slot.expected.extend(&slot.request[FRAME..]);
        } else {
            expect(&self.texts, &mut slot.expected);
        }
        self.order.push_back((id, now));
        self.unsent.push_back(id);
        self.waiting += 1;
        multi as u64
    }

    /// Sends as much as the sockets accept.
    fn send(&mut self, headers: &mut MultiHeaders<()>) -> Result<()> {
        while !self.unsent.is_empty() {
            self.flow = (self.flow + 1) % self.flows.len();
            let slices: Vec<_> = self
                .unsent
                .iter()
                .take(BATCH)
                .map(|id| [IoSlice::new(&self.slots[usize::from(*id)].request)])
                .collect();
            let sent = sendmmsg(
                self.flows[self.flow].as_raw_fd(),
                headers,
                &slices,
                [None; BATCH],
                [],
                MsgFlags::empty(),
            );
            match sent.map(Iterator::count) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => break,
                Err(err) => return Err(io::Error::from(err)).context("cannot send over UDP"),
            }
        }
        for connection in &mut self.connections {
            if connection.output.is_empty() {
                continue;
            }
            match connection.stream.write(&connection.output) {
                Ok(sent) => drop(connection.output.drain(..sent)),
                Err(err) if is_temporary(&err) => {}
                Err(err) => return Err(err).context("cannot send over TCP"),
            }
        }
        Ok(())
    }

    /// Receives replies over UDP. Returns whether the sockets are empty.
    fn receive(&mut self, headers: &mut MultiHeaders<()>, seen: &mut Outcome) -> Result<bool> {
        if self.waiting == 0 && self.quarantine.is_empty() {
            return Ok(true);
        }
        let mut events = [EpollEvent::empty(); FLOWS_MOST];
        let ready = match self.flows.len() {
            1 => 1, // and there is nothing to ask
            _ => match self.flows_ready.wait(&mut events, EpollTimeout::ZERO) {
                Err(Errno::EINTR) => 0,
                ready => ready.context("cannot wait for replies")?,
            },
        };
        let mut is_drained = true;
        for event in &events[..ready] {
            is_drained &= self.receive_flow(event.data() as usize, headers, seen)?;
        }
        Ok(is_drained)
    }

    /// The same for one socket.
    fn receive_flow(
        &mut self,
        flow: usize,
        headers: &mut MultiHeaders<()>,
        seen: &mut Outcome,
    ) -> Result<bool> {
        let mut lengths = [0; BATCH];
        let received = {
            let mut slices: Vec<_> =
                self.input.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let fd = self.flows[flow].as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT;
            match recvmmsg(fd, headers, slices.iter_mut(), flags, None) {
                Ok(messages) => {
                    let mut received = 0;
                    for (length, message) in lengths.iter_mut().zip(messages) {
                        *length = message.bytes;
                        received += 1;
                    }
                    received
                }
                Err(Errno::EAGAIN | Errno::EINTR) => 0,
                Err(err) => return Err(io::Error::from(err)).context("cannot receive over UDP"),
            }
        };
        let now = Instant::now();
        for (i, length) in lengths.iter().take(received).enumerate() {
            self.take(i, *length, now, seen)?;
        }
        Ok(received < BATCH)
    }

    /// Handles a datagram.
    fn take(&mut self, i: usize, length: usize, now: Instant, seen: &mut Outcome) -> Result<()> {
        let datagram = &self.input[i][..length];
        let Some((frame, text)) = datagram.split_at_checked(FRAME) else {
            bail!("a reply of {length} bytes");
        };
        let id = u16::from_be_bytes([frame[0], frame[1]]);
        let Some(slot) = self.slots.get_mut(usize::from(id)) else {
            bail!("a reply to nothing that was asked: {}", datagram.escape_ascii());
        };
        match slot.state {
            State::Lost => return Ok(()), // late
            State::Free => bail!("a second reply: {}", datagram.escape_ascii()),
            State::Waiting(_) => {}
        }
        if !slot.expected[slot.at..].starts_with(text) {
            let mut parts = slot.expected[slot.at..].windows(text.len().max(1));
            if text.is_empty() || !parts.any(|part| part == text) {
                bail!(
                    "a wrong reply to {}: {}",
                    slot.request[FRAME..].trim_ascii_end().escape_ascii(),
                    datagram.escape_ascii()
                );
            }
            // Another datagram of this reply was lost, so this one is useless.
            return Ok(());
        }
        slot.at += text.len();
        if slot.at == slot.expected.len() {
            slot.state = State::Free;
            seen.latency.add(now - slot.due);
            seen.keys_answered += self.case.multi as u64;
            self.free.push_back(id);
            self.waiting -= 1;
        }
        Ok(())
    }

    /// Receives replies over TCP.
    fn receive_streams(&mut self, seen: &mut Outcome) -> Result<()> {
        if self.tcp_waiting == 0 {
            return Ok(());
        }
        let mut events = [EpollEvent::empty(); CONNECTIONS];
        let ready = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Err(Errno::EINTR) => 0,
            ready => ready.context("cannot wait for replies")?,
        };
        let now = Instant::now();
        for event in &events[..ready] {
            let connection = &mut self.connections[event.data() as usize];
            let length = match connection.stream.read(&mut self.stream_input) {
                Ok(0) => bail!("memcached hung up"),
                Err(err) if is_temporary(&err) => continue,
                length => length.context("cannot receive over TCP")?,
            };
            self.heard = now;
            let mut rest = &self.stream_input[..length];
            while !rest.is_empty() {
                let Some(first) = connection.pending.front() else {
                    bail!("nobody asked for {}", rest.escape_ascii());
                };
                let expected = &first.expected[connection.at..];
                let part = rest.len().min(expected.len());
                if rest[..part] != expected[..part] {
                    bail!("{} instead of {}", rest.escape_ascii(), expected.escape_ascii());
                }
                rest = &rest[part..];
                connection.at += part;
                if connection.at == first.expected.len() {
                    seen.latency.add(now - first.due);
                    seen.keys_answered += first.keys;
                    connection.pending.pop_front();
                    connection.at = 0;
                    self.tcp_waiting -= 1;
                }
            }
        }
        if now - self.heard > STALLED {
            bail!("memcached does not answer over TCP");
        }
        Ok(())
    }

    /// Gives up requests that have waited too long, and returns their number.
    fn expire(&mut self, now: Instant) -> u64 {
        let mut lost = 0;
        while let Some(&(id, since)) = self.order.front() {
            let slot = &mut self.slots[usize::from(id)];
            if slot.state == State::Waiting(since) {
                if now - since < LOST {
                    break;
                }
                slot.state = State::Lost;
                self.unsent.retain(|unsent| *unsent != id);
                self.quarantine.push_back((id, now));
                self.waiting -= 1;
                lost += 1;
            }
            self.order.pop_front();
        }
        while let Some(&(id, since)) = self.quarantine.front() {
            if now - since < QUARANTINE {
                break;
            }
            self.quarantine.pop_front();
            self.slots[usize::from(id)].state = State::Free;
            self.free.push_back(id);
        }
        lost
    }
}

/// How long a thread, given by its directory in /proc, was ready to run but waited for a CPU; zero
/// if the kernel does not report it.
pub fn cpu_wait(thread: &Path) -> Duration {
    let text = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    let nanos = text.split_whitespace().nth(1).and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

fn is_temporary(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
