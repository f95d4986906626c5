// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What memcached says about itself: its version, and settings with which bmc
//! cannot watch it or be of use to it.
//! `bmc attach` and `bmc doctor` go by the same answers.
//!
//! memcached itself refuses UDP with authentication and with external storage,
//! so that these show as UDP that is off. With a unix socket it has no network.

use std::collections::BTreeMap;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use nix::ifaddrs::getifaddrs;

use self::binary::Packet;
use crate::host::facts as system;
use crate::message;

/// For each step of a conversation with this very machine.
const LIMIT: Duration = Duration::from_millis(300);

/// More than memcached has to say.
const REPLY_MAX: usize = 1 << 16;

/// Bytes before the text of a datagram.
const FRAME: usize = 8;

/// What `-V` of a memcached says: `1.6.18`. Fails if it cannot be run or is
/// something else, and then names the option that chooses another one.
pub fn version(path: &Path, option: &str) -> Result<String> {
    let name = path.display();
    let output = Command::new(path).arg("-V").stdin(Stdio::null()).output();
    let output = output.with_context(|| {
        format!("cannot run {name} (Debian: apt install memcached, or {option} PATH)")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(version) = text.trim().strip_prefix("memcached ") else {
        bail!("{name} -V does not say that it is memcached (try {option} PATH)");
    };
    Ok(version.into())
}

/// Which of its statistics memcached is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// How it is set up.
    Settings,
    /// What it counts.
    Counters,
}

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Counters => "",
        }
    }

    /// Long enough for the binary protocol to see that it is none of its
    /// requests; the last line is for a connection that wants a password.
    fn text(self) -> Vec<u8> {
        format!("{}\r\nquit\r\nquit\r\n", self.command()).into()
    }

    fn command(self) -> String {
        format!("stats {}", self.name()).trim_end().into()
    }

    /// The same over UDP, which closes nothing.
    fn datagram(self) -> Vec<u8> {
        [b"\0\0\0\0\0\x01\0\0", self.command().as_bytes(), b"\r\n"].concat()
    }

    /// The same in the binary protocol.
    fn binary(self) -> Vec<u8> {
        let request = |opcode, key: &str| {
            let mut head = [0; binary::HEAD];
            (head[0], head[1]) = (binary::REQUEST, opcode);
            (head[3], head[11]) = (key.len() as u8, key.len() as u8);
            [&head, key.as_bytes()].concat()
        };
        [request(binary::STAT, self.name()), request(binary::QUIT, "")].concat()
    }
}

/// The binary protocol, as far as it is used here.
mod binary {
    pub(super) const HEAD: usize = 24;
    pub(super) const REQUEST: u8 = 0x80;
    pub(super) const REPLY: u8 = 0x81;
    pub(super) const QUIT: u8 = 0x07;
    pub(super) const STAT: u8 = 0x10;
    pub(super) const UNAUTHENTICATED: [u8; 2] = [0, 0x20];

    /// A reply, or the first part of one.
    pub(super) struct Packet<'a> {
        pub(super) status: [u8; 2],
        pub(super) key: &'a [u8],
        pub(super) value: &'a [u8],
        /// What follows it.
        pub(super) rest: &'a [u8],
    }

    /// The first packet; None if it is none, or not all there.
    pub(super) fn packet(bytes: &[u8]) -> Option<Packet<'_>> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        if head[0] != REPLY {
            return None;
        }
        let key = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let extras = usize::from(head[4]);
        let body = u32::from_be_bytes(*head[8..].first_chunk()?) as usize;
        let (body, rest) = rest.split_at_checked(body)?;
        let (key, value) = body.get(extras..)?.split_at_checked(key)?;
        Some(Packet { status: [head[6], head[7]], key, value, rest })
    }
}

/// Asks whoever listens on these ports of the interfaces and of the loopback.
/// Fails if bmc would serve old values, and tells what makes it useless.
pub fn check(interfaces: &[String], ports: &[u16]) -> Result<()> {
    let mut problems = Vec::new();
    for (at, heard) in ask_all(&all_addresses(interfaces, ports), Topic::Settings) {
        for problem in heard.problems(ports) {
            let same = |(other, known): &(SocketAddr, Problem)| {
                (other.port(), known) == (at.port(), &problem)
            };
            if !problems.iter().any(same) {
                problems.push((at, problem));
            }
        }
    }
    if let Some((at, problem)) = problems.iter().find(|(_, problem)| problem.is_fatal()) {
        bail!("{}", problem.message(*at));
    }
    for (at, problem) in problems {
        message::tell(&problem.message(at));
    }
    Ok(())
}

/// memcached counts seconds from so long before its start (`ITEM_UPDATE_INTERVAL`).
const BEFORE_START: i64 = 60;

/// The delayed `flush_all`s that are still ahead of whoever listens on these ports of the
/// interfaces and of the loopback: each memcached knows of one. In seconds of
/// `CLOCK_MONOTONIC`, up to two too early or too late, as memcached's clock lags.
///
/// Fails if the clock cannot be read.
pub fn pending_flushes(interfaces: &[String], ports: &[u16]) -> Result<Vec<u64>> {
    // Of one without TCP nothing is cached; and bmc counts datagrams by now.
    let ask = |at, topic| Heard::ask_by_stream(at, topic).unwrap_or(Heard::Nobody);
    let addresses = all_addresses(interfaces, ports);
    let heard = at_once(&addresses, |at| ask(at, Topic::Settings));
    let number = |stats: &BTreeMap<String, String>, name| stats.get(name)?.parse::<i64>().ok();
    let flushed: BTreeMap<_, _> = heard
        .into_iter()
        .filter_map(|(at, heard)| match heard {
            Heard::Stats(stats) => Some((at, number(&stats, "oldest").filter(|time| *time > 0)?)),
            _ => None,
        })
        .collect();
    let addresses: Vec<_> = flushed.keys().copied().collect();
    let now = system::uptime()?;
    let mut pending = BTreeMap::new();
    for (at, heard) in at_once(&addresses, |at| ask(at, Topic::Counters)) {
        let Heard::Stats(stats) = heard else { continue };
        let Some(uptime) = number(&stats, "uptime") else { continue };
        let left = flushed[&at] - (uptime + BEFORE_START);
        if left > 0 {
            // One process may be found at several addresses.
            pending.insert(number(&stats, "pid"), now.saturating_add_signed(left));
        }
    }
    Ok(pending.into_values().collect())
}

fn all_addresses(interfaces: &[String], ports: &[u16]) -> Vec<SocketAddr> {
    let addresses = addresses(interfaces);
    ports.iter().flat_map(|port| addresses.iter().map(|addr| with_port(*addr, *port))).collect()
}

/// The addresses of interfaces and the loopback, in this order. Not the link-local
/// ones of IPv6: a connection to those from this machine crosses the loopback, where
/// the kernel finds no socket for them, so it would empty a cache that is replaced.
fn addresses(interfaces: &[String]) -> Vec<SocketAddr> {
    let known: Vec<_> = getifaddrs().map(Iterator::collect).unwrap_or_default();
    let mut addresses = Vec::new();
    for iface in interfaces.iter().map(String::as_str).chain(["lo"]) {
        for address in known.iter().filter(|known| known.interface_name == iface) {
            let Some(address) = &address.address else { continue };
            addresses.extend(address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into())));
            let v6 = address.as_sockaddr_in6().filter(|v6| !v6.ip().is_unicast_link_local());
            addresses.extend(v6.map(|v6| SocketAddr::V6((*v6).into())));
        }
    }
    addresses
}

fn with_port(mut addr: SocketAddr, port: u16) -> SocketAddr {
    addr.set_port(port);
    addr
}

/// Asks all by whatever means they answer.
pub fn ask_all(addresses: &[SocketAddr], topic: Topic) -> Vec<(SocketAddr, Heard)> {
    at_once(addresses, |at| Heard::ask(at, topic))
}

/// Asks all at once, so that it takes no longer than one.
fn at_once(
    addresses: &[SocketAddr],
    ask: impl Fn(SocketAddr) -> Heard + Sync,
) -> Vec<(SocketAddr, Heard)> {
    let ask = &ask;
    thread::scope(|scope| {
        let asked: Vec<_> = addresses
            .iter()
            .filter_map(|at| {
                let asked = thread::Builder::new().spawn_scoped(scope, move || ask(*at));
                Some((*at, asked.ok()?))
            })
            .collect();
        asked.into_iter().filter_map(|(at, asked)| Some((at, asked.join().ok()?))).collect()
    })
}

/// What came back from an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: nobody listens.
    Nobody,
    /// What was asked for, by name.
    Stats(BTreeMap<String, String>),
    /// memcached, but it wants a password first.
    Locked,
    /// TLS.
    Tls,
    /// Somebody who does not speak memcached's protocols.
    Noise,
}

impl Heard {
    /// Asks, by whatever means it is answered.
    pub fn ask(at: SocketAddr, topic: Topic) -> Self {
        Self::ask_by_stream(at, topic).unwrap_or_else(|| {
            match ask_by_datagram(at, topic).map(|reply| Self::read(&reply)) {
                Ok(Self::Stats(stats)) => Self::Stats(stats),
                _ => Self::Nobody,
            }
        })
    }

    /// None if nobody listens over TCP.
    fn ask_by_stream(at: SocketAddr, topic: Topic) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&at, LIMIT).ok()?;
        let again = |question: &[u8]| {
            let reply = TcpStream::connect_timeout(&at, LIMIT).map(|s| talk(s, question));
            Self::read(&reply.unwrap_or_default())
        };
        let mut heard = Self::read(&talk(stream, &topic.text()));
        for question in [topic.binary(), client_hello()] {
            if heard == Self::Noise {
                heard = again(&question);
            }
        }
        Some(heard)
    }

    fn read(reply: &[u8]) -> Self {
        match reply {
            [ALERT | HANDSHAKE, 3, ..] => return Self::Tls,
            [binary::REPLY, binary::STAT, ..] => return Self::read_binary(reply),
            _ => {}
        }
        let text = String::from_utf8_lossy(reply);
        if text.starts_with("CLIENT_ERROR unauthenticated") {
            return Self::Locked;
        }
        let stats = text.lines().filter_map(|line| line.strip_prefix("STAT ")?.split_once(' '));
        Self::stats(stats.map(|(name, value)| (name.into(), value.into())))
    }

    fn read_binary(mut reply: &[u8]) -> Self {
        let mut stats = Vec::new();
        while let Some(Packet { status, key, value, rest }) = binary::packet(reply) {
            if status == binary::UNAUTHENTICATED {
                return Self::Locked;
            }
            let [key, value] = [key, value].map(|text| String::from_utf8_lossy(text).into_owned());
            if !key.is_empty() {
                stats.push((key, value));
            }
            reply = rest;
        }
        Self::stats(stats.into_iter())
    }

    fn stats(stats: impl Iterator<Item = (String, String)>) -> Self {
        let stats: BTreeMap<_, _> = stats.collect();
        if stats.is_empty() { Self::Noise } else { Self::Stats(stats) }
    }

    /// What bmc, watching these ports, would make of its settings.
    pub fn problems(&self, ports: &[u16]) -> Vec<Problem> {
        match self {
            Self::Nobody => Vec::new(),
            Self::Stats(stats) => Settings::read(stats)
                .map_or_else(|| vec![Problem::Unknown], |settings| settings.problems(ports)),
            Self::Locked => vec![Problem::Password],
            Self::Tls => vec![Problem::Tls],
            Self::Noise => vec![Problem::Unknown],
        }
    }
}

/// Sends a request and returns what comes back, as far as it does in time.
fn talk(mut stream: TcpStream, request: &[u8]) -> Vec<u8> {
    let end = Instant::now() + LIMIT;
    let mut reply = Vec::new();
    let mut part = [0; 4096];
    let _ = stream.set_write_timeout(Some(LIMIT));
    if stream.write_all(request).is_err() {
        return reply;
    }
    while reply.len() < REPLY_MAX && !is_whole(&reply) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break;
        }
        match stream.read(&mut part) {
            Ok(len) if len > 0 => reply.extend_from_slice(&part[..len]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    reply
}

/// Whether nothing more is to be waited for.
fn is_whole(reply: &[u8]) -> bool {
    let is_text = reply.starts_with(b"STAT ");
    reply.ends_with(b"END\r\n") || (!is_text && reply.ends_with(b"\r\n"))
}

/// The first datagram is enough: it tells the ports.
fn ask_by_datagram(at: SocketAddr, topic: Topic) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(&topic.datagram())?;
    let mut reply = vec![0; REPLY_MAX];
    let len = socket.recv(&mut reply)?;
    Ok(reply.get(FRAME..len).unwrap_or_default().to_vec())
}

/// Types of TLS records.
const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;

/// A TLS 1.2 client's first message, which every TLS server answers, be it by an
/// alert: a record with a `ClientHello` of two ciphers and no extension.
fn client_hello() -> Vec<u8> {
    let head = b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03";
    let tail = b"\0\0\x04\xc0\x2f\xc0\x30\x01\0";
    [&head[..], &[0; 32], tail].concat()
}

/// What concerns us of `stats settings`.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    /// None if it depends on the address (`-l`).
    tcp: Option<u16>,
    udp: Option<u16>,
    tls: bool,
    proxy: bool,
}

impl Settings {
    /// None if these are other statistics.
    fn read(stats: &BTreeMap<String, String>) -> Option<Self> {
        let get = |name| stats.get(name).map(String::as_str);
        let is_on = |name| get(name) == Some("yes");
        // -l can give each address a port; then these are not the ports but for 0.
        let has_ports = get("inter").is_some_and(|list| list.contains(':'));
        let port = |name| {
            let port = get(name)?.parse().ok()?;
            Some((port == 0 || !has_ports).then_some(port))
        };
        Some(Self {
            tcp: port("tcpport")?,
            udp: port("udpport")?,
            tls: is_on("ssl_enabled"),
            proxy: is_on("proxy_enabled"),
        })
    }

    fn problems(&self, ports: &[u16]) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.tls {
            problems.push(Problem::Tls);
        }
        if self.proxy {
            problems.push(Problem::Proxy);
        }
        match self.tcp {
            Some(0) => problems.push(Problem::NoTcp),
            Some(port) if !ports.contains(&port) => problems.push(Problem::OtherTcp(port)),
            _ => {}
        }
        match self.udp {
            Some(0) => problems.push(Problem::NoUdp),
            Some(port) if !ports.contains(&port) => problems.push(Problem::OtherUdp(port)),
            _ => {}
        }
        problems
    }
}

/// Why bmc must not or need not be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Writes within TLS cannot be seen.
    Tls,
    /// What becomes of a write behind a proxy cannot be seen.
    Proxy,
    /// Writes on a port that is not watched.
    OtherTcp(u16),
    /// Nothing tells of its end.
    NoTcp,
    /// Nothing to answer.
    NoUdp,
    /// Requests on a port that is not served.
    OtherUdp(u16),
    /// It wants a password, and then has no UDP.
    Password,
    /// It does not tell.
    Unknown,
}

impl Problem {
    /// Whether what is served could be wrong.
    pub fn is_fatal(self) -> bool {
        matches!(self, Self::Tls | Self::Proxy | Self::OtherTcp(_))
    }

    fn message(self, at: SocketAddr) -> String {
        let subject = match self {
            Self::Unknown => "what listens",
            _ => "memcached",
        };
        format!("{subject} at {at} {} ({})", self.what(), self.remedy(at.port()))
    }

    /// What is said of the memcached.
    pub fn what(self) -> String {
        match self {
            Self::Tls => {
                "uses TLS: bmc cannot see the writes in it and would serve old values".into()
            }
            Self::Proxy => "is a proxy: bmc cannot see what becomes of a write behind it".into(),
            Self::OtherTcp(port) => {
                format!("takes writes on TCP port {port} too, which would not be watched")
            }
            Self::NoTcp => {
                "has no TCP port, by which its replies are told from those of others, so \
                            nothing will be cached"
                    .into()
            }
            Self::NoUdp => "does not listen on UDP, so nothing will be cached".into(),
            Self::OtherUdp(port) => {
                format!("has UDP port {port}, whose requests will not be answered")
            }
            Self::Password => {
                "wants a password, with which it does not listen on UDP, so nothing will be cached"
                    .into()
            }
            Self::Unknown => "does not tell its settings in memcached's protocols: bmc cannot say \
                              whether it can be watched"
                .into(),
        }
    }

    /// What can be done about one on this port.
    pub fn remedy(self, port: u16) -> String {
        match self {
            Self::Tls => "turn TLS off there, or do without bmc".into(),
            Self::Proxy => "attach where the memcacheds behind it are".into(),
            Self::OtherTcp(port) | Self::OtherUdp(port) => format!("add --port {port}"),
            Self::NoTcp => format!("start it with -p {port}"),
            Self::NoUdp => format!("start it with -U {port}"),
            Self::Password => "do without the password, or without bmc".into(),
            Self::Unknown => "make sure that it is no memcached with TLS".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What memcached 1.6.18 says about itself with `-p 21977` and a bit more.
    const UDP: &str = include_str!("../../tests/settings/udp.txt");
    const DEFAULT: &str = include_str!("../../tests/settings/default.txt");
    const TLS: &str = include_str!("../../tests/settings/tls.txt");

    fn problems(reply: &str) -> Vec<Problem> {
        Heard::read(reply.replace('\n', "\r\n").as_bytes()).problems(&[21977])
    }

    #[test]
    fn finds_what_keeps_memcached_from_being_cached() {
        assert_eq!(problems(UDP), []);
        assert_eq!(problems(DEFAULT), [Problem::NoUdp]);
        assert_eq!(problems(TLS), [Problem::Tls]);
        assert_eq!(problems("CLIENT_ERROR unauthenticated\n"), [Problem::Password]);
        // As later versions with a proxy say it.
        assert_eq!(problems(&format!("{UDP}STAT proxy_enabled yes\n")), [Problem::Proxy]);
        assert_eq!(problems(&format!("{UDP}STAT proxy_enabled no\n")), []);
    }

    #[test]
    fn finds_ports_that_are_not_watched() {
        let ports = |tcp, udp, inter| {
            problems(&format!("STAT tcpport {tcp}\nSTAT udpport {udp}\nSTAT inter {inter}\nEND\n"))
        };
        assert_eq!(ports(21977, 21977, "NULL"), []);
        assert_eq!(ports(1, 21977, "NULL"), [Problem::OtherTcp(1)]);
        assert_eq!(ports(21977, 1, "10.0.0.1"), [Problem::OtherUdp(1)]);
        assert_eq!(ports(0, 21977, "NULL"), [Problem::NoTcp]);
        // Here the ports are those of the list, but for UDP that is off.
        assert_eq!(ports(1, 2, "10.0.0.1:21977"), []);
        assert_eq!(ports(1, 0, "10.0.0.1:21977"), [Problem::NoUdp]);
    }

    #[test]
    fn tells_what_is_not_memcached() {
        let alert = [ALERT, 3, 3, 0, 2, 2, 40];
        assert_eq!(Heard::read(&alert), Heard::Tls);
        let noise =
            ["", "STAT", "STAT pid 1\nEND\n", "ERROR Too many open connections\n", "HTTP/1.1"];
        for noise in noise {
            assert_eq!(problems(noise), [Problem::Unknown], "{noise}");
        }
        assert_eq!(Heard::Nobody.problems(&[1]), []);
    }

    /// A reply of the binary protocol to a question for statistics.
    fn packet(status: u8, key: &str, value: &str) -> Vec<u8> {
        let mut head = vec![0x81, 0x10, 0, key.len() as u8, 0, 0, 0, status, 0, 0, 0];
        head.push((key.len() + value.len()) as u8);
        head.resize(24, 0);
        [&head, key.as_bytes(), value.as_bytes()].concat()
    }

    #[test]
    fn reads_the_binary_protocol_too() {
        let settings = [("tcpport", "21977"), ("udpport", "0"), ("inter", "NULL")];
        let mut reply: Vec<_> = settings.iter().flat_map(|(k, v)| packet(0, k, v)).collect();
        reply.extend(packet(0, "", ""));
        assert_eq!(Heard::read(&reply).problems(&[21977]), [Problem::NoUdp]);
        let refused = packet(0x20, "", "Auth failure.");
        assert_eq!(Heard::read(&refused).problems(&[1]), [Problem::Password]);
        // Cut off, or none at all.
        assert_eq!(Heard::read(&reply[..30]), Heard::Noise);
        assert_eq!(Heard::read(&packet(0x81, "", "Unknown command")), Heard::Noise);
        let request = Topic::Settings.binary();
        assert_eq!(request[..4], [0x80, 0x10, 0, 8]);
        assert_eq!(request[24..32], *b"settings");
        assert_eq!(request[32..34], [0x80, 0x07]);
    }

    #[test]
    fn waits_for_the_end_of_a_reply_and_no_longer() {
        for whole in ["STAT a 1\r\nEND\r\n", "CLIENT_ERROR unauthenticated\r\n", "ERROR\r\n"] {
            assert!(is_whole(whole.as_bytes()), "{whole}");
        }
        for part in ["", "STAT a 1\r\n", "STAT a 1\r\nEND\r", "CLIENT_ERROR"] {
            assert!(!is_whole(part.as_bytes()), "{part}");
        }
    }

    #[test]
    fn a_client_hello_has_the_lengths_that_it_tells() {
        let hello = client_hello();
        assert_eq!(usize::from(hello[4]), hello.len() - 5);
        assert_eq!(usize::from(hello[8]), hello.len() - 9);
    }
}
