// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The clients: readers over UDP, polite and rude writers over TCP, and an
//! adversary that arranges what else would need luck. Each notes what it did.

use std::collections::HashMap;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::libc::linger;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt::Linger;

use crate::chaos::Chaos;
use crate::common::Item;
use crate::common::Namespace;
use crate::common::Net;
use crate::common::PATIENCE;
use crate::common::PORT;
use crate::common::Rng;
use crate::common::RngExt as _;
use crate::common::items;
use crate::history::NEVER;
use crate::history::Operation;

/// How many keys there are, and which of them polite writers have to
/// themselves, which anybody writes, and which the adversary.
pub const KEYS: usize = 18;
const POLITE: Range<usize> = 0..4;
const ANYBODY: Range<usize> = 4..8;
const STORM: Range<usize> = 8..10;
const SLOW: usize = 10;
/// A number that is only ever incremented.
pub const COUNTER: usize = 11;
/// Each has one writer, and few writes.
pub const AGES: Range<usize> = 12..18;
/// What readers ask for: the storm's keys must not be filled by others.
const READ: [usize; 10] = [0, 1, 2, 3, 4, 5, 6, 7, SLOW, COUNTER];

/// The largest value; its reply fits one datagram.
const VALUE_MAX: usize = 1300;
/// How long a reader waits for a reply that may be lost.
const LOST: Duration = Duration::from_millis(150);

/// After that long bmc takes a write for lost.
const AGE: Duration = Duration::from_millis(10_300);

/// The client's addresses: most clients', and two that the adversary stalls.
const HOME: Ipv4Addr = Ipv4Addr::new(10, 11, 12, 2);
/// See [`HOME`].
pub const STORM_HOME: Ipv4Addr = Ipv4Addr::new(10, 11, 12, 3);
/// See [`HOME`].
pub const SLOW_HOME: Ipv4Addr = Ipv4Addr::new(10, 11, 12, 4);

/// What clients do in a phase, as bits.
pub mod mood {
    /// Writers that pipeline, want no reply or close their connections.
    pub const RUDE: u32 = 1;
    /// The adversary is at work.
    pub const ADVERSARY: u32 = 2;
    /// Polite writers start so that bmc follows them.
    pub const FOLLOWED: u32 = 4;
}

/// What all clients of a round share.
#[derive(Debug)]
pub struct World<'a> {
    /// Where the clients are.
    pub client: &'a Namespace,
    /// Where memcached is.
    pub server: &'a Namespace,
    /// The network between them.
    pub chaos: &'a Chaos,
    /// The names of the keys.
    pub keys: Vec<String>,
    /// When times start.
    pub origin: Instant,
    /// The mood; the upper bits change with every phase.
    pub phase: AtomicU32,
    /// Odd while replies may get lost; never comes back to an older number.
    pub losses: AtomicU32,
    /// Set at the end of the round, and when a client fails.
    pub stop: AtomicBool,
}

impl World<'_> {
    /// ns since times started.
    pub fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Whether the round is over.
    pub fn is_over(&self) -> bool {
        self.stop.load(SeqCst)
    }

    fn phase(&self) -> u32 {
        self.phase.load(SeqCst)
    }

    /// Whether what was sent at that state of `losses` must have its reply.
    fn must_answer(&self, losses: u32) -> bool {
        losses.is_multiple_of(2) && self.losses.load(SeqCst) == losses && !self.is_over()
    }

    /// Sleeps, but not beyond the round.
    pub fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_over() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}

/// What one client has done.
#[derive(Debug, Default)]
pub struct Log {
    /// All of it.
    pub operations: Vec<Operation>,
    /// Which client it was.
    pub who: usize,
    written: u64,
}

impl Log {
    /// An empty one.
    pub fn new(who: usize) -> Self {
        Self { who, ..Self::default() }
    }

    /// Notes an operation; one without an end may never have been applied.
    pub fn note(
        &mut self,
        what: &'static str,
        key: usize,
        writes: bool,
        value: Option<u64>,
        start: u64,
        end: u64,
    ) {
        let (sure, who) = (end != NEVER, self.who);
        self.operations.push(Operation { key, writes, value, start, end, sure, what, who });
    }

    /// A value that nobody else writes, as flags of 32 bits.
    fn unique(&mut self) -> u64 {
        self.written += 1;
        assert!(self.written < 1 << 24 && self.who < 256, "flags are unique");
        (self.who as u64) << 24 | self.written
    }
}

/// The bytes of a value: those of two values differ all over.
fn bytes(key: usize, value: u64) -> Vec<u8> {
    let mut rng = Rng::new((value << 8) + key as u64);
    let len = rng.small(1, VALUE_MAX);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(rng.number().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Which value an item is.
///
/// # Panics
/// When its bytes are not those of its value.
fn value_of(key: usize, item: &Item) -> u64 {
    if key == COUNTER {
        let number = std::str::from_utf8(&item.data).ok().and_then(|text| text.parse().ok());
        return number.unwrap_or_else(|| panic!("not a number: {}", item.data.escape_ascii()));
    }
    let value = u64::from(item.flags);
    assert!(
        item.data == bytes(key, value),
        "{} has bytes that nobody wrote, flags {value:#x}: {}",
        item.key.escape_ascii(),
        item.data.escape_ascii()
    );
    value
}

/// The request's id, the values and whether all are there.
///
/// # Panics
/// When it is not what memcached would send.
fn parse(datagram: &[u8]) -> (u16, Vec<Item>, bool) {
    assert!(datagram.len() >= 8, "{}", datagram.escape_ascii());
    let field = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
    if datagram.len() == 8 && field(4) == 0 {
        // memcached 1.6 for a missing key before others.
        return (field(0), Vec::new(), false);
    }
    assert_eq!((field(2), field(4), field(6)), (0, 1, 0), "{}", datagram.escape_ascii());
    let text = &datagram[8..];
    let (items, complete) = items(text);
    let mut again = Vec::new();
    for Item { key, flags, data } in &items {
        let key = String::from_utf8_lossy(key);
        again.extend(format!("VALUE {key} {flags} {}\r\n", data.len()).into_bytes());
        again.extend(data);
        again.extend(b"\r\n");
    }
    if complete {
        again.extend(b"END\r\n");
    }
    assert!(again == text, "not a reply of memcached: {}", text.escape_ascii());
    (field(0), items, complete)
}

fn request(id: u16, text: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0], text.as_bytes()].concat()
}

fn udp_from(address: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).expect("a UDP socket");
    socket.connect((Net::SERVER4, PORT)).expect("the server is reachable");
    socket.set_read_timeout(Some(Duration::from_millis(4))).expect("a timeout");
    socket
}

/// The next datagram, if one comes soon. A refusal is a loss.
fn receive<'a>(socket: &UdpSocket, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let len = socket.recv(buffer).ok()?;
    Some(&buffer[..len])
}

/// A request of a reader.
#[derive(Debug)]
struct Asked {
    keys: Vec<usize>,
    at: u64,
    losses: u32,
    since: Instant,
    done: bool,
}

/// Reads until the round is over.
pub fn read(world: &World<'_>, log: Log, rng: Rng) -> Log {
    const WINDOW: usize = 8;
    const REQUESTS: usize = 400;
    let mut reader = Reader { world, log, rng };
    while !world.is_over() {
        let socket = udp_from(HOME);
        let mut asked: HashMap<u16, Asked> = HashMap::new();
        let mut id = reader.rng.number() as u16;
        let mut open = 0;
        while open > 0 || (asked.len() < REQUESTS && !world.is_over()) {
            while open < WINDOW && asked.len() < REQUESTS && !world.is_over() {
                id = id.wrapping_add(1);
                // A refusal of an earlier one may be reported here.
                asked.insert(id, reader.ask(&socket, id));
                open += 1;
            }
            open -= reader.replies(&socket, &mut asked);
            for request in asked.values_mut().filter(|request| !request.done) {
                let age = request.since.elapsed();
                if world.must_answer(request.losses) {
                    assert!(age < PATIENCE, "no reply to {request:?}, and nothing was lost");
                } else if age > LOST {
                    request.done = true;
                    open -= 1;
                }
            }
            thread::sleep(Duration::from_millis(6));
        }
    }
    reader.log
}

#[derive(Debug)]
struct Reader<'a> {
    world: &'a World<'a>,
    log: Log,
    rng: Rng,
}

impl Reader<'_> {
    fn ask(&mut self, socket: &UdpSocket, id: u16) -> Asked {
        let count = if self.rng.chance(90) { 1 } else { 2 + self.rng.below(4) };
        let keys: Vec<usize> = (0..count).map(|_| READ[self.rng.below(READ.len())]).collect();
        let names: Vec<&str> = keys.iter().map(|&key| self.world.keys[key].as_str()).collect();
        let request = request(id, &format!("get {}\r\n", names.join(" ")));
        let losses = self.world.losses.load(SeqCst);
        let at = self.world.now();
        if socket.send(&request).is_err() {
            // It reported a refusal of an earlier one and did not send this.
            let _ = socket.send(&request);
        }
        Asked { keys, at, losses, since: Instant::now(), done: false }
    }

    /// Takes what there is; returns how many requests are done.
    fn replies(&mut self, socket: &UdpSocket, asked: &mut HashMap<u16, Asked>) -> usize {
        let mut buffer = [0; 2048];
        let mut done = 0;
        while asked.values().any(|request| !request.done) {
            let Some(datagram) = receive(socket, &mut buffer) else { break };
            let end = self.world.now();
            let (id, items, complete) = parse(datagram);
            let request = asked.get_mut(&id).expect("a reply has the id of a request");
            let single = request.keys.len() == 1;
            assert!(
                !request.done || !single || !self.world.must_answer(request.losses),
                "{request:?} is answered twice"
            );
            assert!(complete || !single, "{request:?} has half a reply");
            if single && items.is_empty() {
                self.log.note("get (UDP)", request.keys[0], false, None, request.at, end);
            }
            assert!(items.len() <= request.keys.len(), "{request:?} has too many values");
            for item in items {
                let key =
                    request.keys.iter().find(|&&key| self.world.keys[key].as_bytes() == item.key);
                let &key = key.unwrap_or_else(|| panic!("{request:?} has another's value"));
                let value = value_of(key, &item);
                let what = if single { "get (UDP)" } else { "get many (UDP)" };
                self.log.note(what, key, false, Some(value), request.at, end);
            }
            if complete && !request.done {
                request.done = true;
                done += 1;
            }
        }
        done
    }
}

/// A command to send over TCP.
#[derive(Clone, Debug)]
struct Command {
    verb: &'static str,
    key: usize,
    /// What it writes.
    value: u64,
    text: Vec<u8>,
    noreply: bool,
}

/// What memcached says to one.
#[derive(Debug)]
enum Reply {
    Line(String),
    /// An item and its unique number, if that was asked for.
    Value(Option<(Item, u64)>),
}

/// A TCP connection that may break.
#[derive(Debug)]
struct Wire(BufReader<TcpStream>);

impl Wire {
    fn connect(from: Ipv4Addr) -> io::Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let IpAddr::V4(server) = Net::SERVER4 else { panic!("it is IPv4") };
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(server, PORT)))?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// In pieces of one to seven bytes: those of a long value are not all small.
    fn send_tiny(&mut self, bytes: &[u8], rng: &mut Rng) -> io::Result<()> {
        let mut rest = bytes;
        for small in 0.. {
            let most = if small < 20 { 7 } else { 500 };
            let (piece, tail) = rest.split_at(rest.len().min(1 + rng.below(most)));
            self.send(piece)?;
            rest = tail;
            if rest.is_empty() {
                break;
            }
            if rng.chance(20) {
                thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// The reply to a command that is not one to return values.
    fn reply(&mut self, verb: &str) -> io::Result<Reply> {
        let line = self.line()?;
        if !["get", "gets", "gat"].contains(&verb) {
            return Ok(Reply::Line(line));
        }
        if line == "END" {
            return Ok(Reply::Value(None));
        }
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| {
            let word: &str = words.get(at).copied().unwrap_or("0");
            word.parse::<u64>().unwrap_or_else(|_| panic!("not a reply to {verb}: {line}"))
        };
        assert_eq!(words[0], "VALUE", "not a reply to {verb}: {line}");
        let mut data = vec![0; number(3) as usize + 2];
        self.0.read_exact(&mut data)?;
        assert!(data.ends_with(b"\r\n"), "{verb}: {}", data.escape_ascii());
        data.truncate(data.len() - 2);
        let end = self.line()?;
        assert_eq!(end, "END", "not a reply to {verb}");
        let flags = number(2) as u32;
        let item = Item { key: words[1].into(), flags, data };
        Ok(Reply::Value(Some((item, number(4)))))
    }
}

/// A client that writes.
#[derive(Debug)]
struct Writer<'a> {
    world: &'a World<'a>,
    rng: Rng,
    log: Log,
    wire: Option<Wire>,
    from: Ipv4Addr,
    /// Writes without a reply, by their place in the log: the next reply proves
    /// that they are applied.
    unproven: Vec<usize>,
}

impl<'a> Writer<'a> {
    fn new(world: &'a World<'a>, log: Log, rng: Rng, from: Ipv4Addr) -> Self {
        Self { world, rng, log, wire: None, from, unproven: Vec::new() }
    }

    fn command(&mut self, verb: &'static str, key: usize, unique: u64) -> Command {
        let name = &self.world.keys[key];
        let noreply = false;
        let mut value = 0;
        let text = match verb {
            "get" | "gets" => format!("{verb} {name}\r\n").into_bytes(),
            "gat" => format!("gat 0 {name}\r\n").into_bytes(),
            "touch" => format!("touch {name} 0\r\n").into_bytes(),
            "delete" => format!("delete {name}\r\n").into_bytes(),
            "incr" => format!("incr {name} 1\r\n").into_bytes(),
            _ => {
                value = self.log.unique();
                let (mut flags, mut data) = (value, bytes(key, value));
                if key == COUNTER {
                    // Room for as many increments as there can be.
                    (flags, value) = (0, value << 24);
                    data = value.to_string().into_bytes();
                }
                let mut tail = String::new();
                if verb == "cas" {
                    tail = format!(" {unique}");
                }
                let line = format!("{verb} {name} {flags} 0 {}{tail}\r\n", data.len());
                [line.as_bytes(), &data, b"\r\n"].concat()
            }
        };
        Command { verb, key, value, text, noreply }
    }

    /// A `set` or `delete` that wants no reply.
    fn silent(&mut self, key: usize) -> Command {
        let verb = if self.rng.chance(70) { "set" } else { "delete" };
        let mut command = self.command(verb, key, 0);
        let line = command.text.iter().position(|&byte| byte == b'\r').expect("a line has an end");
        command.text.splice(line..line, *b" noreply");
        command.noreply = true;
        command
    }

    fn any(&mut self, keys: Range<usize>) -> Command {
        const VERBS: [&str; 12] = [
            "set", "set", "set", "set", "set", "delete", "add", "replace", "touch", "gat", "get",
            "get",
        ];
        let verb = VERBS[self.rng.below(VERBS.len())];
        let key = keys.start + self.rng.below(keys.len());
        self.command(verb, key, 0)
    }

    /// Sends commands at once and takes the replies; the last one's is returned.
    fn exchange(&mut self, commands: &[Command], tiny: bool) -> io::Result<Option<Reply>> {
        let start = self.world.now();
        let mut sent = Ok(());
        if let Some(wire) = &mut self.wire {
            let bytes: Vec<u8> =
                commands.iter().flat_map(|command| command.text.iter().copied()).collect();
            sent = if tiny { wire.send_tiny(&bytes, &mut self.rng) } else { wire.send(&bytes) };
        }
        self.settle(commands, start, sent)
    }

    /// Takes the replies to what was sent since `start` and notes them.
    fn settle(
        &mut self,
        commands: &[Command],
        start: u64,
        sent: io::Result<()>,
    ) -> io::Result<Option<Reply>> {
        let mut last = sent.map(|()| None);
        for command in commands {
            if command.noreply {
                self.unproven.push(self.log.operations.len());
                self.unanswered(command, start);
                continue;
            }
            if last.is_ok() {
                last = match &mut self.wire {
                    Some(wire) => wire.reply(command.verb).map(Some),
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
            }
            match &last {
                Ok(Some(reply)) => self.answered(command, reply, start),
                _ => self.unanswered(command, start),
            }
        }
        if last.is_err() {
            self.hang_up();
        }
        last
    }

    fn hang_up(&mut self) {
        self.wire = None;
        self.unproven.clear();
    }

    fn unanswered(&mut self, command: &Command, start: u64) {
        let Command { verb, key, value, .. } = *command;
        match verb {
            "delete" => self.log.note(verb, key, true, None, start, NEVER),
            "set" | "add" | "replace" | "cas" => {
                self.log.note(verb, key, true, Some(value), start, NEVER);
            }
            // Of an increment the value is not known.
            _ => {}
        }
    }

    fn answered(&mut self, command: &Command, reply: &Reply, start: u64) {
        let end = self.world.now();
        for at in self.unproven.drain(..) {
            self.log.operations[at].end = end;
            self.log.operations[at].sure = true;
        }
        let Command { verb, key, value, .. } = *command;
        let mut note =
            |writes: bool, value: Option<u64>| self.log.note(verb, key, writes, value, start, end);
        let line = match reply {
            Reply::Value(found) => {
                if let Some((item, _)) = found {
                    assert_eq!(item.key, self.world.keys[key].as_bytes(), "{verb}");
                }
                return note(false, found.as_ref().map(|(item, _)| value_of(key, item)));
            }
            Reply::Line(line) => line.as_str(),
        };
        match (verb, line) {
            ("set" | "add" | "replace" | "cas", "STORED") => note(true, Some(value)),
            ("delete", "DELETED") => note(true, None),
            ("delete" | "touch" | "cas" | "incr", "NOT_FOUND") | ("replace", "NOT_STORED") => {
                note(false, None);
            }
            ("add", "NOT_STORED") | ("cas", "EXISTS") | ("touch", "TOUCHED") => {}
            ("incr", number) if number.parse::<u64>().is_ok() => {
                note(true, number.parse().ok());
            }
            _ => panic!("memcached says {line} to {command:?}"),
        }
    }

    /// Has a connection, or the round is over.
    fn connected(&mut self) -> bool {
        while self.wire.is_none() && !self.world.is_over() {
            match Wire::connect(self.from) {
                Ok(wire) => self.wire = Some(wire),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        self.wire.is_some()
    }
}

/// Writes until the round is over, one command at a time.
pub fn write_politely(world: &World<'_>, log: Log, rng: Rng) -> Log {
    let mut writer = Writer::new(world, log, rng, HOME);
    let mut phase = world.phase();
    while writer.connected() && !world.is_over() {
        let now = world.phase();
        if now != phase || writer.rng.chance(1) {
            phase = now;
            // bmc follows a connection that is new or has paused.
            match writer.rng.below(3) {
                0 if phase & mood::FOLLOWED == 0 => {}
                1 => world.sleep(Duration::from_millis(1100)),
                _ => writer.hang_up(),
            }
            continue;
        }
        let tiny = writer.rng.chance(10);
        let done = match writer.rng.below(100) {
            0..10 => increment(&mut writer, tiny),
            10..20 => compare_and_swap(&mut writer, tiny),
            20..25 => {
                let command = writer.any(ANYBODY);
                writer.exchange(&[command], tiny).map(drop)
            }
            _ => {
                let command = writer.any(POLITE);
                writer.exchange(&[command], tiny).map(drop)
            }
        };
        assert!(
            done.is_ok() || world.losses.load(SeqCst) > 0 || world.is_over(),
            "a connection broke although nothing was lost: {done:?}"
        );
        thread::sleep(Duration::from_micros(writer.rng.below(8000) as u64));
    }
    writer.log
}

fn increment(writer: &mut Writer<'_>, tiny: bool) -> io::Result<()> {
    let command = writer.command("incr", COUNTER, 0);
    if let Some(Reply::Line(line)) = writer.exchange(&[command], tiny)?
        && line == "NOT_FOUND"
    {
        let command = writer.command("add", COUNTER, 0);
        writer.exchange(&[command], tiny)?;
    }
    Ok(())
}

fn compare_and_swap(writer: &mut Writer<'_>, tiny: bool) -> io::Result<()> {
    let key = writer.rng.below(POLITE.len());
    let command = writer.command("gets", key, 0);
    if let Some(Reply::Value(Some((_, unique)))) = writer.exchange(&[command], tiny)? {
        let command = writer.command("cas", key, unique);
        writer.exchange(&[command], tiny)?;
    }
    Ok(())
}

/// Writes when the mood is so: many commands at once, with and without replies,
/// in pieces, and closes the connection in the middle.
pub fn write_rudely(world: &World<'_>, log: Log, rng: Rng) -> Log {
    let mut writer = Writer::new(world, log, rng, HOME);
    while writer.connected() && !world.is_over() {
        if world.phase() & mood::RUDE == 0 {
            world.sleep(Duration::from_millis(20));
            continue;
        }
        let depth = if writer.rng.chance(20) { 1 } else { 2 + writer.rng.below(31) };
        let commands: Vec<Command> = (0..depth)
            .map(|_| {
                if depth == 1 || writer.rng.chance(30) {
                    let key = ANYBODY.start + writer.rng.below(ANYBODY.len());
                    writer.silent(key)
                } else {
                    writer.any(ANYBODY)
                }
            })
            .collect();
        if writer.rng.chance(20) {
            close_in_the_middle(&mut writer, &commands);
        } else {
            let tiny = writer.rng.chance(20);
            // What breaks is connected again.
            let _ = writer.exchange(&commands, tiny);
        }
        let pause = if writer.rng.chance(15) { 1300 } else { writer.rng.below(150) };
        world.sleep(Duration::from_millis(pause as u64));
    }
    writer.log
}

fn close_in_the_middle(writer: &mut Writer<'_>, commands: &[Command]) {
    let start = writer.world.now();
    let bytes: Vec<u8> = commands.iter().flat_map(|command| command.text.clone()).collect();
    let cut = 1 + writer.rng.below(bytes.len());
    if let Some(mut wire) = writer.wire.take() {
        let _ = wire.send(&bytes[..cut]);
        if writer.rng.chance(50) {
            // By RST instead of FIN.
            let now = linger { l_onoff: 1, l_linger: 0 };
            setsockopt(wire.0.get_ref(), Linger, &now).expect("an option of sockets");
        }
        if writer.rng.chance(50) {
            thread::sleep(Duration::from_micros(writer.rng.below(500) as u64));
        }
    }
    for command in commands {
        writer.unanswered(command, start);
    }
    writer.hang_up();
}

/// Arranges what else would need luck, as long as the mood is so: replies that
/// wait in the kernel, between memcached and bmc, because an address of the
/// client is not resolved for some time.
pub fn oppose(world: &World<'_>, log: Log, rng: Rng) -> Log {
    let slow_log = Log::new(log.who + 1);
    let mut adversary = Adversary {
        home: Asker::new(),
        storm: udp_from(STORM_HOME),
        slow: Writer::new(world, slow_log, Rng::new(rng.clone().number()), SLOW_HOME),
        writer: Writer::new(world, log, rng, HOME),
    };
    while !world.is_over() {
        let idle = world.phase() & mood::ADVERSARY == 0;
        // bmc may have lost sight of the connections.
        if idle || adversary.writer.rng.chance(5) {
            adversary.writer.hang_up();
            adversary.slow.hang_up();
        }
        if idle {
            world.sleep(Duration::from_millis(20));
            continue;
        }
        if !adversary.writer.connected() || !adversary.slow.connected() {
            break;
        }
        // A connection that broke is made anew.
        let _ = if adversary.writer.rng.chance(60) {
            adversary.late_reads()
        } else {
            adversary.late_write()
        };
        world.chaos.resume();
        thread::sleep(Duration::from_millis(5));
    }
    let mut log = adversary.writer.log;
    log.operations.append(&mut adversary.slow.log.operations);
    log
}

/// Asks one thing after the other over UDP.
#[derive(Debug)]
struct Asker {
    socket: UdpSocket,
    id: u16,
}

impl Asker {
    fn new() -> Self {
        Self { socket: udp_from(HOME), id: 0 }
    }

    fn get(&mut self, world: &World<'_>, log: &mut Log, key: usize) {
        self.id = self.id.wrapping_add(1);
        let losses = world.losses.load(SeqCst);
        let start = world.now();
        let _ = self.socket.send(&request(self.id, &format!("get {}\r\n", world.keys[key])));
        let since = Instant::now();
        let mut buffer = [0; 2048];
        loop {
            if let Some(datagram) = receive(&self.socket, &mut buffer) {
                let end = world.now();
                let (id, items, _) = parse(datagram);
                if id == self.id {
                    let value = items.first().map(|item| value_of(key, item));
                    log.note("get (UDP)", key, false, value, start, end);
                    return;
                }
            } else if !world.must_answer(losses) && since.elapsed() > LOST {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "no reply, and nothing was lost");
        }
    }
}

/// Writes once, and so slowly that bmc takes the write for lost and learns the
/// old value again: it must forget that when the write is done after all.
pub fn write_for_ages(world: &World<'_>, log: Log, rng: Rng) -> Log {
    let turn = log.who % AGES.len();
    let key = AGES.start + turn;
    let mut writer = Writer::new(world, log, rng, HOME);
    let mut asker = Asker::new();
    let wait = || {
        while world.phase() & mood::ADVERSARY == 0 && !world.is_over() {
            world.sleep(Duration::from_millis(20));
        }
    };
    wait();
    world.sleep(Duration::from_millis(700) * turn as u32);
    let old = writer.command("set", key, 0);
    if !writer.connected() || writer.exchange(&[old], false).is_err() {
        return writer.log;
    }
    // bmc follows a connection that has paused.
    world.sleep(Duration::from_millis(1100));
    let command = writer.command("set", key, 0);
    let (head, data) = in_two(&command.text);
    let start = world.now();
    let mut sent = writer.wire.as_mut().map_or(Ok(()), |wire| wire.send(head));
    world.sleep(AGE);
    wait();
    for _ in 0..60 {
        asker.get(world, &mut writer.log, key);
        world.sleep(Duration::from_millis(20));
    }
    if let (Ok(()), Some(wire)) = (&sent, &mut writer.wire) {
        sent = wire.send(data);
    }
    // It may be the end of the round that broke it.
    let _ = writer.settle(&[command], start, sent);
    for _ in 0..3 {
        asker.get(world, &mut writer.log, key);
    }
    writer.log
}

/// The line of a command and its data.
fn in_two(text: &[u8]) -> (&[u8], &[u8]) {
    let line = text.iter().position(|&byte| byte == b'\n').expect("a line has an end");
    text.split_at(line + 1)
}

#[derive(Debug)]
struct Adversary<'a> {
    writer: Writer<'a>,
    slow: Writer<'a>,
    home: Asker,
    storm: UdpSocket,
}

impl Adversary<'_> {
    /// Old replies are still on their way when younger requests, perhaps under
    /// the same id, have seen a write go by: they must not fill.
    fn late_reads(&mut self) -> io::Result<()> {
        let world = self.writer.world;
        let key = STORM.start + self.writer.rng.below(STORM.len());
        let same = self.writer.rng.chance(50);
        // No more replies than fit memcached's socket while they wait, and so
        // many that some of them share a lease's place.
        let count =
            if same { 1 + self.writer.rng.below(8) } else { 20 + self.writer.rng.below(16) };
        let get = format!("get {}\r\n", world.keys[key]);
        let mut asked: HashMap<u16, u64> = HashMap::new();
        // Nobody is left to answer to the former socket.
        self.storm = udp_from(STORM_HOME);
        let mut id = self.writer.rng.number() as u16;

        self.store(key)?;
        world.chaos.stall(world.server, STORM_HOME);
        for round in 0..2 {
            for _ in 0..count {
                if !same {
                    id = id.wrapping_add(1);
                }
                asked.entry(id).or_insert_with(|| world.now());
                let _ = self.storm.send(&request(id, &get));
            }
            thread::sleep(Duration::from_millis(3));
            if round == 0 {
                self.store(key)?;
            }
        }
        world.chaos.resume();

        let mut buffer = [0; 2048];
        let limit = Instant::now() + LOST;
        for _ in 0..2 * count {
            let Some(datagram) = self.wait(limit, &mut buffer) else { break };
            let end = world.now();
            let (id, items, _) = parse(datagram);
            let &start = asked.get(&id).expect("a reply has the id of a request");
            let value = items.first().map(|item| value_of(key, item));
            self.writer.log.note("get late (UDP)", key, false, value, start, end);
        }
        for _ in 0..3 {
            self.home.get(world, &mut self.writer.log, key);
        }
        Ok(())
    }

    /// A write that comes in two parts, between which it must be taken for
    /// pending, and whose reply is late: others see its value first.
    fn late_write(&mut self) -> io::Result<()> {
        let world = self.writer.world;
        let command = self.slow.command("set", SLOW, 0);
        let (head, data) = in_two(&command.text);
        let start = world.now();
        let mut sent = self.slow.wire.as_mut().map_or(Ok(()), |wire| wire.send(head));
        for _ in 0..3 {
            self.home.get(world, &mut self.writer.log, SLOW);
        }
        world.chaos.stall(world.server, SLOW_HOME);
        if let (Ok(()), Some(wire)) = (&sent, &mut self.slow.wire) {
            sent = wire.send(data);
        }
        for _ in 0..20 {
            let get = self.writer.command("get", SLOW, 0);
            match self.writer.exchange(&[get], false) {
                Ok(Some(Reply::Value(Some((item, _)))))
                    if value_of(SLOW, &item) == command.value =>
                {
                    break;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        for _ in 0..3 {
            self.home.get(world, &mut self.writer.log, SLOW);
        }
        world.chaos.resume();
        self.slow.settle(&[command], start, sent).map(drop)
    }

    fn store(&mut self, key: usize) -> io::Result<()> {
        let command = self.writer.command("set", key, 0);
        self.writer.exchange(&[command], false).map(drop)
    }

    /// The next datagram to the storm's socket.
    fn wait<'b>(&self, limit: Instant, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        loop {
            match self.storm.recv(buffer) {
                Ok(len) => return Some(&buffer[..len]),
                Err(_) if Instant::now() < limit => {}
                Err(_) => return None,
            }
        }
    }
}
