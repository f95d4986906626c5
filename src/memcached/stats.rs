// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Asks a memcached for its statistics, in whatever protocol it speaks.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use self::binary::Packet;

/// The limit of each step of a conversation. memcached is on this very machine.
const LIMIT: Duration = Duration::from_millis(300);

/// An upper bound of what memcached replies.
const REPLY_MAX: usize = 1 << 16;

/// Bytes of the frame before the text of a datagram.
const FRAME: usize = 8;

/// Which statistics to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The settings of memcached.
    Settings,
    /// The counters of memcached.
    Counters,
}

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Counters => "",
        }
    }

    /// The request in the text protocol. It is long enough for a memcached that speaks the
    /// binary protocol only to reject it; the last line serves a connection that wants a
    /// password.
    fn text(self) -> Vec<u8> {
        format!("{}\r\nquit\r\nquit\r\n", self.command()).into()
    }

    fn command(self) -> String {
        format!("stats {}", self.name()).trim_end().into()
    }

    /// The same over UDP, where nothing has to be closed.
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

    /// The first packet; `None` if it is not one, or incomplete.
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

/// Asks all addresses at once, in whatever protocol each answers.
pub fn ask_all(addresses: &[SocketAddr], topic: Topic) -> Vec<(SocketAddr, Answer)> {
    at_once(addresses, |at| Answer::ask(at, topic))
}

/// Asks all addresses at once, so that it takes no longer than asking one.
pub fn at_once(
    addresses: &[SocketAddr],
    ask: impl Fn(SocketAddr) -> Answer + Sync,
) -> Vec<(SocketAddr, Answer)> {
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

/// What an address answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: nobody listens.
    NoListener,
    /// The statistics, by name.
    Stats(BTreeMap<String, String>),
    /// memcached demands a password first.
    Locked,
    /// TLS.
    Tls,
    /// Something that is not memcached's protocol.
    Noise,
}

impl Answer {
    /// Asks over TCP, or over UDP if nothing listens over TCP.
    pub fn ask(at: SocketAddr, topic: Topic) -> Self {
        Self::ask_by_stream(at, topic).unwrap_or_else(|| {
            match ask_by_datagram(at, topic).map(|reply| Self::read(&reply)) {
                Ok(Self::Stats(stats)) => Self::Stats(stats),
                _ => Self::NoListener,
            }
        })
    }

    /// Asks over TCP; `None` if nothing listens.
    pub fn ask_by_stream(at: SocketAddr, topic: Topic) -> Option<Self> {
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

    pub(super) fn read(reply: &[u8]) -> Self {
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
}

/// Sends a request and returns what is replied within the time limit.
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

/// Whether a reply is complete.
fn is_whole(reply: &[u8]) -> bool {
    let is_text = reply.starts_with(b"STAT ");
    reply.ends_with(b"END\r\n") || (!is_text && reply.ends_with(b"\r\n"))
}

/// Asks over UDP. Only the first datagram of the reply is read: it has the ports.
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

/// The first message of a TLS 1.2 client, which every TLS server answers, if only by an alert: a
/// record with a `ClientHello` of two ciphers and no extensions.
fn client_hello() -> Vec<u8> {
    let head = b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03";
    let tail = b"\0\0\x04\xc0\x2f\xc0\x30\x01\0";
    [&head[..], &[0; 32], tail].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn asks_in_the_binary_protocol_as_it_is_defined() {
        let request = Topic::Settings.binary();
        assert_eq!(request[..4], [0x80, 0x10, 0, 8]);
        assert_eq!(request[24..32], *b"settings");
        assert_eq!(request[32..34], [0x80, 0x07]);
    }
}
