// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The connections that the kernel tracks, each by what its packets say on the way to
//! this host and what they say behind the translation. So are found those of rules that
//! are gone, and those that neither nftables nor iptables translate, as Open vSwitch.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;

use super::PROTOCOLS;
use super::Ports;
use super::TCP;
use super::Target;
use super::Traffic;
use super::Translation;
use super::rules::address;
use crate::netlink::Attributes;
use crate::netlink::Subsystem;
use crate::netlink::netfilter;

/// There only if connections can be tracked.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// What the connections show that clients have with this host. What this host asks
/// itself, the loopback carries as it was translated; and an entry may stay for days after
/// its connection is gone, where nothing tracks it to its end.
pub(super) fn translations(is_local: impl Fn(IpAddr) -> bool) -> io::Result<Vec<Translation>> {
    const GET: u8 = 1; // IPCTNL_MSG_CT_GET
    const STATUS: u16 = 3; // CTA_*
    const STATUS_MASK: u16 = 26;
    const TRANSLATED: u32 = 1 << 5; // IPS_DST_NAT

    // Nobody needs connections to be tracked for our question.
    if fs::read_to_string(COUNT).map_or(true, |count| count.trim() == "0") {
        return Ok(Vec::new());
    }
    let status = TRANSLATED.to_be_bytes();
    let arguments = [(STATUS, &status[..]), (STATUS_MASK, &status[..])];
    let all = netfilter(Subsystem::Conntrack, GET, 0, &arguments)?;
    let connections = all.iter().filter_map(|(_, connection)| Connection::read(connection));
    let changed: Vec<_> = connections
        .filter(|c| c.asked.port() != c.server.port() && !is_local(c.client.ip()))
        .collect();
    if changed.is_empty() {
        return Ok(Vec::new());
    }
    let sockets = sockets();
    let lives = |c: &&Connection| c.protocol != TCP || sockets.contains(&(c.server, c.peer));
    Ok(changed.iter().filter(lives).map(Connection::translation).collect())
}

/// Both ends of each TCP socket of this network namespace, its own first.
fn sockets() -> BTreeSet<(SocketAddr, SocketAddr)> {
    let all = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    // A socket of IPv6 may have a peer of IPv4.
    let end = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
    all.map(|socket| (end(socket.local_address), end(socket.remote_address))).collect()
}

/// A connection, by what is in its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    protocol: u8,
    client: SocketAddr,
    /// Where the client sends to.
    asked: SocketAddr,
    /// The ends behind the translation.
    server: SocketAddr,
    peer: SocketAddr,
}

impl Connection {
    fn read(connection: &Attributes) -> Option<Self> {
        const ORIGINAL: u16 = 1; // CTA_TUPLE_*
        const REPLY: u16 = 2;

        let (protocol, client, asked) = read_tuple(&connection.nested(ORIGINAL))?;
        let (_, server, peer) = read_tuple(&connection.nested(REPLY))?;
        Some(Self { protocol, client, asked, server, peer })
    }

    fn translation(&self) -> Translation {
        let Self { protocol, client, asked, server, .. } = self;
        let from = Traffic::to(&Ports::from_iter([asked.port()]));
        Translation {
            by: format!("conntrack -L: from {client} to {asked}, now {server}"),
            from: from.and(&Traffic::protocol(*protocol)),
            to: Target {
                addresses: Some((server.ip(), server.ip())),
                ports: Ports::from_iter([server.port()]),
            },
        }
    }
}

/// The protocol, and the ends of a packet: from where it is, and where it goes.
fn read_tuple(tuple: &Attributes) -> Option<(u8, SocketAddr, SocketAddr)> {
    const IP: u16 = 1; // CTA_TUPLE_*
    const PROTO: u16 = 2;
    const V4: [u16; 2] = [1, 2]; // CTA_IP_V4_SRC and CTA_IP_V4_DST
    const V6: [u16; 2] = [3, 4];
    const NUMBER: u16 = 1; // CTA_PROTO_*
    const PORTS: [u16; 2] = [2, 3];

    let (ip, proto) = (tuple.nested(IP), tuple.nested(PROTO));
    let protocol = *proto.first(NUMBER)?.first()?;
    if !PROTOCOLS.iter().any(|(known, _)| *known == protocol) {
        return None;
    }
    let end = |i: usize| {
        let address = address(ip.first(V4[i]).or(ip.first(V6[i]))?)?;
        let port = u16::from_be_bytes(proto.first(PORTS[i])?.try_into().ok()?);
        Some(SocketAddr::new(address, port))
    };
    Some((protocol, end(0)?, end(1)?))
}
