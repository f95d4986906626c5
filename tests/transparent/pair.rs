// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Two memcacheds that are told the same in lockstep, one of them behind bmc.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::TcpStream;
use std::rc::Rc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::common::Bmc;
use crate::common::Memcached;
use crate::common::Net;
use crate::common::PORT;
use crate::common::Udp;
use crate::differs::is_same_over_udp;
use crate::differs::without_use;

/// After that long without a byte, what memcached may hold back is held back.
const A_WHILE: Duration = Duration::from_millis(300);
/// After that long, what should come does not; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same for what one connection lacks and memcached has sent.
const LACKING: Duration = Duration::from_secs(3);
/// When a fence is taken for swallowed.
const FENCE_WAIT: Duration = Duration::from_millis(60);
/// The request id of questions of ours: bmc would not learn from the answer to
/// a GET with the same one.
const OWN_ID: u16 = 0xfeff;
/// The request ids of fences, and how many of them may be swallowed.
const FENCE_ID: u16 = 0xff00;
const FENCES: u16 = 100;
/// Segments that do not come all at once are longer.
const BULK: usize = 16 << 10;
/// What a failure shows of the connection's past.
const HISTORY: usize = 20;
/// One thread reads all datagrams and connections, in the order they come in;
/// no other thread removes items in its own time.
const OPTIONS: &[&str] = &["-t", "1", "-m", "1024", "-o", "no_lru_maintainer,no_lru_crawler"];

/// From where a client connects, and to which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Outside(IpAddr),
    Loopback,
}

/// How closely answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    Exactly,
    /// See `without_use`.
    WithoutUse,
}

impl Compared {
    fn is_same(self, alone: &[u8], behind: &[u8]) -> bool {
        match self {
            Self::Exactly => alone == behind,
            Self::WithoutUse => without_use(alone) == without_use(behind),
        }
    }
}

/// What was said on a connection lately.
#[derive(Debug, Default)]
struct History(VecDeque<String>);

impl History {
    fn note(&mut self, step: usize, place: &str, bytes: &[u8]) {
        if self.0.len() == HISTORY {
            self.0.pop_front();
        }
        self.0.push_back(format!("{step}, {place}: {}", show(bytes)));
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Bytes to read; the middle of many is left out.
pub(crate) fn show(bytes: &[u8]) -> String {
    const ENDS: usize = 700;
    if bytes.len() <= 2 * ENDS {
        return bytes.escape_ascii().to_string();
    }
    let (head, tail) = (&bytes[..ENDS], &bytes[bytes.len() - ENDS..]);
    format!("{} ({} bytes in all) {}", head.escape_ascii(), bytes.len(), tail.escape_ascii())
}

/// A datagram that has its answer when all that was sent before is read. After
/// the first they are long: fewer do for what may be missing of a value.
fn fence(id: u16) -> Vec<u8> {
    let padding = vec![b' '; if id == FENCE_ID { 0 } else { 1000 }];
    let frame = [id, 0, 1, 0].map(u16::to_be_bytes).concat();
    [&frame, &b"mn"[..], &padding, b"\r\n"].concat()
}

/// One of the two: a memcached in a network of its own.
struct Side {
    udp: Vec<Udp>,
    memcached: Option<Memcached>,
    net: Rc<Net>,
}

impl Side {
    fn new(name: &str, addresses: &[IpAddr]) -> Self {
        let net = Rc::new(Net::new(name));
        let memcached = Some(Memcached::start(&net.server, OPTIONS));
        let udp = addresses.iter().map(|&server| Udp::connect(&net.client, server)).collect();
        Self { udp, memcached, net }
    }

    /// How many connections memcached has had so far.
    fn connections(&self) -> u64 {
        let frame = [OWN_ID, 0, 1, 0].map(u16::to_be_bytes).concat();
        self.udp[0].send_raw(&[&frame, &b"stats\r\n"[..]].concat());
        self.udp[0].send_raw(&fence(FENCE_ID));
        let mut answer = Vec::new();
        assert!(self.fenced(0, FENCE_ID, PATIENCE, &mut answer), "memcached answers");
        let text: Vec<u8> = answer.iter().flat_map(|datagram| &datagram[8..]).copied().collect();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find_map(|line| line.strip_prefix("STAT total_connections "));
        line.and_then(|number| number.parse().ok()).expect("it counts connections")
    }

    /// What comes before the answer to a fence is added to `answer`; false if
    /// the fence is not answered in time.
    fn fenced(
        &self,
        socket: usize,
        fence: u16,
        limit: Duration,
        answer: &mut Vec<Vec<u8>>,
    ) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            let Some(datagram) = self.udp[socket].receive(left) else {
                return false;
            };
            let id = u16::from_be_bytes([datagram[0], datagram[1]]);
            if id == fence {
                return true;
            }
            if id < FENCE_ID {
                answer.push(datagram);
            }
        }
    }
}

/// A TCP connection to each.
pub(crate) struct Connection {
    streams: [TcpStream; 2],
    answers: [Vec<u8>; 2],
    /// By memcached, or by the client, which says no more.
    pub(crate) closed: [bool; 2],
    /// Bytes sent since the last answer.
    sent: usize,
    /// Which it is.
    place: String,
    history: History,
}

impl Connection {
    /// Reads what is there; whether that is anything new.
    fn drain(&mut self) -> bool {
        let mut buffer = [0; 1 << 14];
        let mut news = false;
        for side in 0..2 {
            while !self.closed[side] {
                match self.streams[side].read(&mut buffer) {
                    Ok(len) if len > 0 => self.answers[side].extend_from_slice(&buffer[..len]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // An end or a reset: which, depends on what memcached had
                    // still to read.
                    _ => self.closed[side] = true,
                }
                news = true;
            }
        }
        news
    }

    /// Whether the one has only not yet all of the other's answer.
    fn lacks_the_end(&self) -> bool {
        let [alone, behind] = &self.answers;
        let begins = alone.starts_with(behind) || behind.starts_with(alone);
        begins && self.closed[0] == self.closed[1]
    }

    fn write(&mut self, bytes: &[u8]) {
        for side in 0..2 {
            let mut rest = bytes;
            let start = Instant::now();
            while !rest.is_empty() && !self.closed[side] {
                match self.streams[side].write(rest) {
                    Ok(len) => rest = &rest[len..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        assert!(
                            start.elapsed() < PATIENCE,
                            "{}memcached reads no more",
                            self.history
                        );
                        self.drain();
                        thread::sleep(Duration::from_millis(1));
                    }
                    // Closed; reading tells so, after what was sent before.
                    Err(_) => break,
                }
            }
        }
    }
}

/// Both of them.
pub(crate) struct Pair {
    /// Detached while the network is still there.
    pub(crate) bmc: Bmc,
    /// The one alone, and the one behind bmc.
    sides: [Side; 2],
    addresses: Vec<IpAddr>,
    next_id: u16,
    connected: usize,
    /// Of each UDP socket, and of all there is.
    udp_history: Vec<History>,
    history: History,
    name: String,
    /// Requests sent to both.
    pub(crate) step: usize,
    /// Keys asked for by GETs over UDP.
    pub(crate) asked: u64,
    /// Answers that came later than the same ones of the other.
    pub(crate) held_back: u64,
}

impl Pair {
    /// `addresses` are those of the UDP sockets that clients have; fences go
    /// by the first.
    pub(crate) fn new(name: &str, addresses: &[IpAddr], args: &[&str]) -> Self {
        let sides = ["alone", "behind"].map(|side| Side::new(&format!("{name}-{side}"), addresses));
        let bmc = Bmc::attach(&sides[1].net, &[&["--memory", "16M"], args].concat());
        Self {
            bmc,
            sides,
            addresses: addresses.to_vec(),
            next_id: 0,
            connected: 0,
            udp_history: addresses.iter().map(|_| History::default()).collect(),
            history: History::default(),
            name: name.to_string(),
            step: 0,
            asked: 0,
            held_back: 0,
        }
    }

    pub(crate) fn sockets(&self) -> usize {
        self.addresses.len()
    }

    /// Connects to both and waits until memcached's thread has taken the
    /// connection over from the one that accepts.
    pub(crate) fn connect(&mut self, from: From) -> Connection {
        self.connected += 1;
        let streams = [0, 1].map(|side| {
            let connections = self.sides[side].connections();
            let net = &self.sides[side].net;
            let (namespace, server) = match from {
                From::Outside(server) => (&net.client, server),
                From::Loopback => (&net.server, IpAddr::from([127, 0, 0, 1])),
            };
            let stream =
                namespace.within(|| TcpStream::connect((server, PORT))).expect("memcached accepts");
            stream.set_nodelay(true).expect("an option of TCP");
            stream.set_nonblocking(true).expect("an option of sockets");
            while self.sides[side].connections() == connections {}
            stream
        });
        let answers = [Vec::new(), Vec::new()];
        Connection {
            streams,
            answers,
            closed: [false; 2],
            sent: 0,
            place: format!("TCP {} {from:?}", self.connected),
            history: History::default(),
        }
    }

    /// Sends bytes to both.
    pub(crate) fn send(&mut self, connection: &mut Connection, bytes: &[u8]) {
        self.step += 1;
        connection.history.note(self.step, &connection.place, bytes);
        self.history.note(self.step, &connection.place, bytes);
        connection.sent += bytes.len();
        connection.write(bytes);
    }

    /// What both answer to all that was sent, which must be the same; so must
    /// be whether the connection is then closed.
    #[track_caller]
    pub(crate) fn answer(&mut self, connection: &mut Connection, compared: Compared) -> Vec<u8> {
        if !self.settle(connection, compared, LACKING) {
            self.differ_on(connection);
        }
        connection.answers[1].clear();
        std::mem::take(&mut connection.answers[0])
    }

    /// The same after what may be broken or only part of a command. memcached
    /// may then hold back what it has to answer to earlier ones, depending on
    /// whether it has read them and the rest at once: it must come with the next
    /// answer, or goes under if memcached closes the connection.
    #[track_caller]
    pub(crate) fn answer_so_far(&mut self, connection: &mut Connection, compared: Compared) {
        if self.settle(connection, compared, A_WHILE) {
            connection.answers.iter_mut().for_each(Vec::clear);
        } else if connection.lacks_the_end() {
            self.held_back += 1;
        } else if self.settle(connection, compared, LACKING) {
            connection.answers.iter_mut().for_each(Vec::clear);
        } else {
            self.differ_on(connection);
        }
    }

    /// Waits until memcached has read all that was sent, and for `lacking` if
    /// the answers are not the same; whether they are.
    ///
    /// No timeout tells that nothing more comes: memcached's one thread has
    /// read what was sent when it has answered what came later.
    fn settle(
        &mut self,
        connection: &mut Connection,
        compared: Compared,
        lacking: Duration,
    ) -> bool {
        let mut quiet_since = Instant::now();
        let mut quiet = 0;
        loop {
            self.ask_nothing();
            if connection.drain() {
                quiet_since = Instant::now();
                quiet = 0;
                continue;
            }
            quiet += 1;
            let [alone, behind] = &connection.answers;
            let same =
                compared.is_same(alone, behind) && connection.closed[0] == connection.closed[1];
            // Much data takes its time, all the more if a segment is lost.
            let settled = if connection.sent > BULK || alone.len() > BULK {
                quiet >= 50 && (!alone.is_empty() || quiet_since.elapsed() > A_WHILE)
            } else {
                quiet >= 2
            };
            if (same && settled) || (!same && quiet_since.elapsed() > lacking) {
                connection.sent = 0;
                return same;
            }
        }
    }

    #[track_caller]
    fn differ_on(&self, connection: &Connection) -> ! {
        let shown = [0, 1].map(|side| {
            let end = if connection.closed[side] { " (closed)" } else { "" };
            show(&connection.answers[side]) + end
        });
        self.differ(&connection.place, &connection.history, shown)
    }

    /// Sends and waits for the answer.
    #[track_caller]
    pub(crate) fn tell(&mut self, connection: &mut Connection, bytes: &[u8]) -> Vec<u8> {
        self.send(connection, bytes);
        self.answer(connection, Compared::Exactly)
    }

    /// A request id, and the datagram of a request in one part.
    pub(crate) fn datagram(&mut self, text: &[u8]) -> Vec<u8> {
        self.frame(0, 1, 0, text)
    }

    /// The same, with any frame.
    pub(crate) fn frame(&mut self, seq: u16, total: u16, rest: u16, text: &[u8]) -> Vec<u8> {
        let id = self.next_id;
        self.next_id = (id + 1) % OWN_ID;
        let frame = [id, seq, total, rest].map(u16::to_be_bytes).concat();
        [&frame, text].concat()
    }

    /// A GET over UDP to both; the text of the answer, which must be the same.
    #[track_caller]
    pub(crate) fn get(&mut self, socket: usize, keys: &[&[u8]]) -> Vec<u8> {
        self.asked += keys.len() as u64;
        let request = self.datagram(&[b"get ", &keys.join(&b' ')[..], b"\r\n"].concat());
        let answer = self.ask(socket, &request, Compared::Exactly);
        answer.iter().flat_map(|datagram| &datagram[8..]).copied().collect()
    }

    /// One datagram to both; the answer of the one alone. The other's must be
    /// the same.
    #[track_caller]
    pub(crate) fn ask(
        &mut self,
        socket: usize,
        request: &[u8],
        compared: Compared,
    ) -> Vec<Vec<u8>> {
        self.step += 1;
        let place = format!("UDP {socket} {}", self.addresses[socket]);
        self.udp_history[socket].note(self.step, &place, request);
        self.history.note(self.step, &place, request);
        for side in &self.sides {
            side.udp[socket].send_raw(request);
        }
        let [alone, behind] = self.fence(socket);
        let is_same = match compared {
            Compared::Exactly => is_same_over_udp(&alone, &behind),
            // Longer numbers come in more datagrams.
            Compared::WithoutUse => {
                let [alone, behind] = [&alone, &behind].map(|datagrams| {
                    datagrams
                        .iter()
                        .flat_map(|datagram| &datagram[8..])
                        .copied()
                        .collect::<Vec<_>>()
                });
                compared.is_same(&alone, &behind)
            }
        };
        if !is_same {
            let shown = [&alone, &behind]
                .map(|all| all.iter().map(|one| show(one)).collect::<Vec<_>>().join("\n        "));
            self.differ(&place, &self.udp_history[socket], shown);
        }
        alone
    }

    fn ask_nothing(&mut self) {
        let answers = self.fence(0);
        assert!(
            answers.iter().all(Vec::is_empty),
            "{}: answers to nothing: {answers:?}",
            self.name
        );
    }

    /// What came over UDP until both have read all that was sent before.
    ///
    /// A set whose data is not all in its datagram makes memcached take the
    /// next datagram, whoever sends it, for the rest. This way it is a fence.
    fn fence(&self, socket: usize) -> [Vec<Vec<u8>>; 2] {
        let mut answers = [Vec::new(), Vec::new()];
        let [alone, behind] = &self.sides;
        for id in FENCE_ID..FENCE_ID + FENCES {
            for side in &self.sides {
                side.udp[socket].send_raw(&fence(id));
            }
            if alone.fenced(socket, id, FENCE_WAIT, &mut answers[0]) {
                let answered = behind.fenced(socket, id, PATIENCE, &mut answers[1]);
                assert!(
                    answered,
                    "{}, step {}: only memcached alone answers after\n{}",
                    self.name, self.step, self.history
                );
                return answers;
            }
        }
        panic!("{}, step {}: memcached is stuck after\n{}", self.name, self.step, self.history);
    }

    #[track_caller]
    fn differ(&self, place: &str, history: &History, [alone, behind]: [String; 2]) -> ! {
        panic!(
            "{}, step {}, {place}: the answers differ\nalone:  {alone}\nbehind: {behind}\n\
             last said there:\n{history}last said anywhere:\n{}{}",
            self.name,
            self.step,
            self.history,
            self.bmc.stats()["totals"]
        );
    }

    /// What the memcached behind bmc answers over UDP to one GET.
    pub(crate) fn get_behind(&mut self, socket: usize, key: &[u8]) -> Vec<u8> {
        let request = self.datagram(&[b"get ", key, b"\r\n"].concat());
        let side = &self.sides[1];
        side.udp[socket].send_raw(&request);
        let datagram = side.udp[socket].receive(PATIENCE).expect("a get is answered");
        assert_eq!(datagram[..2], request[..2], "the answer to this get");
        datagram[8..].to_vec()
    }

    /// The memcached behind bmc, over TCP.
    pub(crate) fn server_behind(&self) -> &Net {
        &self.sides[1].net
    }

    /// Kills both and starts them anew.
    pub(crate) fn restart(&mut self) {
        for side in &mut self.sides {
            drop(side.memcached.take());
        }
        for side in &mut self.sides {
            side.memcached = Some(Memcached::start(&side.net.server, OPTIONS));
        }
    }
}
