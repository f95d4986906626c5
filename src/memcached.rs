// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What memcached says about itself: its version, and settings with which bmc
//! cannot watch it or be of use to it.
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

use crate::message;

/// For each step of a conversation with this very machine.
const LIMIT: Duration = Duration::from_millis(300);

/// More than memcached has to say.
const REPLY_MAX: usize = 1 << 16;

/// What it is asked. Long enough for the binary protocol to see that it is none
/// of its requests; the last line is for a connection that wants a password.
const QUESTION: &[u8] = b"stats settings\r\nquit\r\nquit\r\n";

/// The same over UDP, which closes nothing.
const DATAGRAM: &[u8] = b"\0\0\0\0\0\x01\0\0stats settings\r\n";

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

/// Asks whoever listens on these ports of the interfaces and of the loopback.
/// Fails if bmc would serve old values, and tells what makes it useless.
pub fn check(interfaces: &[String], ports: &[u16]) -> Result<()> {
    let addresses: Vec<_> = ports
        .iter()
        .flat_map(|port| addresses(interfaces).into_iter().map(move |addr| with_port(addr, *port)))
        .collect();
    let mut problems = Vec::new();
    for (at, heard) in ask_all(&addresses) {
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

/// Asks all at once, so that it takes no longer than one.
fn ask_all(addresses: &[SocketAddr]) -> Vec<(SocketAddr, Heard)> {
    thread::scope(|scope| {
        let asked: Vec<_> = addresses
            .iter()
            .filter_map(|at| {
                let asked = thread::Builder::new().spawn_scoped(scope, || Heard::from(*at));
                Some((*at, asked.ok()?))
            })
            .collect();
        asked.into_iter().filter_map(|(at, asked)| Some((at, asked.join().ok()?))).collect()
    })
}

/// What came back from an address.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Nobody,
    Settings(Settings),
    /// memcached, but it wants a password first.
    Locked,
    Tls,
    /// Somebody who does not speak memcached's text protocol.
    Noise,
}

impl Heard {
    fn from(at: SocketAddr) -> Self {
        match TcpStream::connect_timeout(&at, LIMIT) {
            Ok(stream) => match Self::read(&talk(stream, QUESTION)) {
                Self::Noise => {
                    let hello = TcpStream::connect_timeout(&at, LIMIT)
                        .map(|stream| talk(stream, &client_hello()));
                    Self::read(&hello.unwrap_or_default())
                }
                heard => heard,
            },
            Err(_) => match ask_by_datagram(at).map(|reply| Self::read(&reply)) {
                Ok(Self::Settings(settings)) => Self::Settings(settings),
                _ => Self::Nobody,
            },
        }
    }

    fn read(reply: &[u8]) -> Self {
        if let [ALERT | HANDSHAKE, 3, ..] = reply {
            return Self::Tls;
        }
        let text = String::from_utf8_lossy(reply);
        if text.starts_with("CLIENT_ERROR unauthenticated") {
            return Self::Locked;
        }
        Settings::parse(&text).map_or(Self::Noise, Self::Settings)
    }

    fn problems(&self, ports: &[u16]) -> Vec<Problem> {
        match self {
            Self::Nobody => Vec::new(),
            Self::Settings(settings) => settings.problems(ports),
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
fn ask_by_datagram(at: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(DATAGRAM)?;
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
    /// None if it is no such text.
    fn parse(text: &str) -> Option<Self> {
        let stats: BTreeMap<_, _> =
            text.lines().filter_map(|line| line.strip_prefix("STAT ")?.split_once(' ')).collect();
        let is_on = |name| stats.get(name) == Some(&"yes");
        // -l can give each address a port; then these are not the ports but for 0.
        let has_ports = stats.get("inter").is_some_and(|list| list.contains(':'));
        let port = |name| {
            let port = stats.get(name)?.parse().ok()?;
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
enum Problem {
    Tls,
    Proxy,
    OtherTcp(u16),
    NoTcp,
    NoUdp,
    OtherUdp(u16),
    Password,
    Unknown,
}

impl Problem {
    /// Whether what is served could be wrong.
    fn is_fatal(self) -> bool {
        matches!(self, Self::Tls | Self::Proxy | Self::OtherTcp(_))
    }

    fn message(self, at: SocketAddr) -> String {
        match self {
            Self::Tls => format!(
                "memcached at {at} uses TLS: bmc cannot see the writes in it and would serve old \
                 values (turn TLS off there, or do without bmc)"
            ),
            Self::Proxy => format!(
                "memcached at {at} is a proxy: bmc cannot see what becomes of a write behind it \
                 (attach where the memcacheds behind it are)"
            ),
            Self::OtherTcp(port) => format!(
                "memcached at {at} takes writes on TCP port {port} too, which would not be watched \
                 (add --port {port})"
            ),
            Self::NoTcp => format!(
                "memcached at {at} has no TCP port, by which a restart would be noticed: run bmc \
                 flush after each, or old values are served for up to --max-age"
            ),
            Self::NoUdp => format!(
                "memcached at {at} does not listen on UDP, so nothing will be cached (start it \
                 with -U {})",
                at.port()
            ),
            Self::OtherUdp(port) => format!(
                "memcached at {at} has UDP port {port}, whose requests will not be answered (add \
                 --port {port})"
            ),
            Self::Password => format!(
                "memcached at {at} wants a password, with which it does not listen on UDP, so \
                 nothing will be cached"
            ),
            Self::Unknown => format!(
                "what listens at {at} does not tell its settings in memcached's text protocol: bmc \
                 cannot say whether it can be watched"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What memcached 1.6.18 says about itself with `-p 21977` and a bit more.
    const UDP: &str = include_str!("../tests/settings/udp.txt");
    const DEFAULT: &str = include_str!("../tests/settings/default.txt");
    const TLS: &str = include_str!("../tests/settings/tls.txt");

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
