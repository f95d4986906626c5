// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Settings of a memcached with which bmc cannot watch it, or cannot help it.
//!
//! memcached itself turns UDP off with authentication and with external storage, so these
//! show as UDP that is off. With a unix socket it has no network.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::stats::Answer;

impl Answer {
    /// What in these settings is a problem for bmc, if it watches these ports.
    pub fn problems(&self, ports: &[u16]) -> Vec<Problem> {
        match self {
            Self::NoListener => Vec::new(),
            Self::Stats(stats) => Settings::read(stats)
                .map_or_else(|| vec![Problem::Unknown], |settings| settings.problems(ports)),
            Self::Locked => vec![Problem::Password],
            Self::Tls => vec![Problem::Tls],
            Self::Noise => vec![Problem::Unknown],
        }
    }
}

/// The part of `stats settings` that matters to bmc.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    /// `None` if it depends on the address (`-l`).
    tcp: Option<u16>,
    udp: Option<u16>,
    tls: bool,
    proxy: bool,
}

impl Settings {
    /// `None` if these are not settings.
    fn read(stats: &BTreeMap<String, String>) -> Option<Self> {
        let get = |name| stats.get(name).map(String::as_str);
        let is_on = |name| get(name) == Some("yes");
        // -l can give each address a port; then these numbers mean nothing unless they are 0.
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

/// Why bmc must not be attached, or would be useless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// TLS: bmc cannot see the writes in it.
    Tls,
    /// A proxy: bmc cannot see the writes behind it.
    Proxy,
    /// Writes on a port that is not watched.
    OtherTcp(u16),
    /// No TCP port, by which bmc recognizes memcached's replies.
    NoTcp,
    /// No UDP port, so there are no requests to answer.
    NoUdp,
    /// Requests on a port that is not served.
    OtherUdp(u16),
    /// It demands a password, and therefore has no UDP.
    Password,
    /// It does not reveal its settings.
    Unknown,
}

impl Problem {
    /// Whether bmc could serve wrong values.
    pub fn is_fatal(self) -> bool {
        matches!(self, Self::Tls | Self::Proxy | Self::OtherTcp(_))
    }

    /// A message about the memcached at this address.
    pub fn message(self, at: SocketAddr) -> String {
        let subject = match self {
            Self::Unknown => "what listens",
            _ => "memcached",
        };
        format!("{subject} at {at} {} ({})", self.what(), self.remedy(at.port()))
    }

    /// What is wrong with the memcached.
    pub fn what(self) -> String {
        match self {
            Self::Tls => {
                "uses TLS: bmc cannot see the writes in it and would serve stale values".into()
            }
            Self::Proxy => "is a proxy: bmc cannot see what becomes of a write behind it".into(),
            Self::OtherTcp(port) => {
                format!("takes writes on TCP port {port} too, which would not be watched")
            }
            Self::NoTcp => "has no TCP port, by which bmc recognizes its replies, so \
                            nothing will be cached"
                .into(),
            Self::NoUdp => "does not listen on UDP, so nothing will be cached".into(),
            Self::OtherUdp(port) => {
                format!("has UDP port {port}, whose requests will not be answered")
            }
            Self::Password => {
                "demands a password, and so does not listen on UDP: nothing will be cached".into()
            }
            Self::Unknown => {
                "does not reveal its settings in memcached's protocols: bmc cannot say \
                              whether it can be watched"
                    .into()
            }
        }
    }

    /// What can be done about a memcached on this port.
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

    /// The settings of memcached 1.6.18 with `-p 21977` and other options.
    const UDP: &str = include_str!("../../tests/settings/udp.txt");
    const DEFAULT: &str = include_str!("../../tests/settings/default.txt");
    const TLS: &str = include_str!("../../tests/settings/tls.txt");

    fn problems(reply: &str) -> Vec<Problem> {
        Answer::read(reply.replace('\n', "\r\n").as_bytes()).problems(&[21977])
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
        let alert = [0x15, 3, 3, 0, 2, 2, 40];
        assert_eq!(Answer::read(&alert), Answer::Tls);
        let noise =
            ["", "STAT", "STAT pid 1\nEND\n", "ERROR Too many open connections\n", "HTTP/1.1"];
        for noise in noise {
            assert_eq!(problems(noise), [Problem::Unknown], "{noise}");
        }
        assert_eq!(Answer::NoListener.problems(&[1]), []);
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
        assert_eq!(Answer::read(&reply).problems(&[21977]), [Problem::NoUdp]);
        let refused = packet(0x20, "", "Auth failure.");
        assert_eq!(Answer::read(&refused).problems(&[1]), [Problem::Password]);
        // Cut off, or none at all.
        assert_eq!(Answer::read(&reply[..30]), Answer::Noise);
        assert_eq!(Answer::read(&packet(0x81, "", "Unknown command")), Answer::Noise);
    }
}
