// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Frames as a client and memcached put them on the wire, and the checks that
//! their receiver makes. Written from the RFCs and memcached's protocol.txt,
//! not from `bpf/`, so that the two can disagree.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::net::IpAddr;
use std::net::SocketAddr;

/// The largest reply text, END included, of one datagram.
pub(crate) const REPLY_MAX: usize = 1392;
/// memcached's frame header in front of the text of each UDP datagram.
pub(crate) const FRAME_LEN: usize = 8;

pub(crate) const PROTO_TCP: u8 = 6;
pub(crate) const PROTO_UDP: u8 = 17;

const MAC_LEN: usize = 12;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
const TCP_LEN: usize = 32;

const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_VLAN: u16 = 0x8100;
const ETH_QINQ: u16 = 0x88a8;

/// One direction of a conversation: everything but the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) source_mac: [u8; 6],
    pub(crate) target_mac: [u8; 6],
    /// VLAN tags, outermost first: protocol and priority with id.
    pub(crate) tags: Vec<(u16, u16)>,
    pub(crate) source: SocketAddr,
    pub(crate) target: SocketAddr,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
}

impl Flow {
    pub(crate) fn new(source: &str, target: &str) -> Self {
        Self {
            source_mac: [2, 0, 0, 0, 0, 2],
            target_mac: [2, 0, 0, 0, 0, 1],
            tags: Vec::new(),
            source: source.parse().unwrap(),
            target: target.parse().unwrap(),
            tos: 0x28,
            ttl: 57,
        }
    }

    /// Behind an 802.1Q tag.
    pub(crate) fn vlan(mut self, id: u16) -> Self {
        self.tags = vec![(ETH_VLAN, 0x6000 | id)];
        self
    }

    /// Behind an 802.1ad tag and an 802.1Q tag.
    pub(crate) fn qinq(mut self, outer: u16, inner: u16) -> Self {
        self.tags = vec![(ETH_QINQ, outer), (ETH_VLAN, 0x2000 | inner)];
        self
    }

    pub(crate) fn from(mut self, source: &str) -> Self {
        self.source = source.parse().unwrap();
        self
    }

    pub(crate) fn with_port(mut self, port: u16) -> Self {
        self.source.set_port(port);
        self
    }

    pub(crate) fn to(mut self, target: &str) -> Self {
        self.target = target.parse().unwrap();
        self
    }

    pub(crate) fn with_mac(mut self, mac: [u8; 6]) -> Self {
        self.target_mac = mac;
        self
    }

    /// The way back, from a host that sends with a TTL of 64.
    pub(crate) fn reversed(&self) -> Self {
        Self {
            source_mac: self.target_mac,
            target_mac: self.source_mac,
            source: self.target,
            target: self.source,
            ttl: 64,
            ..self.clone()
        }
    }

    /// A frame with this UDP payload.
    pub(crate) fn udp(&self, payload: &[u8]) -> Vec<u8> {
        let mut udp = Vec::with_capacity(UDP_LEN + payload.len());
        udp.extend(self.source.port().to_be_bytes());
        udp.extend(self.target.port().to_be_bytes());
        udp.extend(length(UDP_LEN + payload.len()));
        udp.extend([0, 0]);
        udp.extend(payload);
        self.frame(PROTO_UDP, &udp)
    }

    /// A frame with this TCP segment, with the options Linux sends.
    pub(crate) fn tcp(&self, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(TCP_LEN + payload.len());
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.target.port().to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        tcp.extend([(TCP_LEN as u8 / 4) << 4, flags]);
        tcp.extend([0x01, 0xf6, 0, 0, 0, 0]);
        tcp.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        tcp.extend(payload);
        self.frame(PROTO_TCP, &tcp)
    }

    /// `get <key>*`, as one datagram.
    pub(crate) fn get<K: AsRef<[u8]>>(&self, id: u16, keys: &[K]) -> Vec<u8> {
        self.udp(&datagram(id, &get(keys)))
    }

    fn frame(&self, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(64 + transport.len());
        frame.extend(self.target_mac);
        frame.extend(self.source_mac);
        for (protocol, tci) in &self.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                frame.extend(ETH_IPV4.to_be_bytes());
                frame.extend([0x45, self.tos]);
                frame.extend(length(IPV4_LEN + transport.len()));
                frame.extend([0xbe, 0xef, 0x40, 0, self.ttl, protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(target.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                frame.extend(ETH_IPV6.to_be_bytes());
                frame.extend([0x60 | self.tos >> 4, self.tos << 4 | 0x0a, 0xbc, 0xde]);
                frame.extend(length(transport.len()));
                frame.extend([protocol, self.ttl]);
                frame.extend(source.octets());
                frame.extend(target.octets());
            }
            _ => panic!("a flow between two address families"),
        }
        frame.extend(transport);
        seal(&mut frame);
        frame
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap().to_be_bytes()
}

/// A segment's flags: with data, without, and the last one with data.
pub(crate) const PSH_ACK: u8 = 0x18;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN_ACK: u8 = 0x19;
pub(crate) const SYN: u8 = 0x02;

/// A memcached datagram: the frame header and a text.
pub(crate) fn datagram(id: u16, text: &[u8]) -> Vec<u8> {
    part(id, 0, 1, text)
}

/// One of the datagrams of a message that is cut into `total`.
pub(crate) fn part(id: u16, seq: u16, total: u16, text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME_LEN + text.len());
    for field in [id, seq, total, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(text);
    bytes
}

/// `get <key>*\r\n`
pub(crate) fn get<K: AsRef<[u8]>>(keys: &[K]) -> Vec<u8> {
    let mut text = b"get".to_vec();
    for key in keys {
        text.push(b' ');
        text.extend(key.as_ref());
    }
    text.extend(b"\r\n");
    text
}

/// `VALUE <key> <flags> <bytes>\r\n<data>\r\n`
pub(crate) fn value(key: impl AsRef<[u8]>, flags: u32, data: &[u8]) -> Vec<u8> {
    let mut text = b"VALUE ".to_vec();
    text.extend(key.as_ref());
    text.extend(format!(" {flags} {}\r\n", data.len()).bytes());
    text.extend(data);
    text.extend(b"\r\n");
    text
}

/// The text of a whole reply: the values and `END\r\n`.
pub(crate) fn values<V: AsRef<[u8]>>(values: &[V]) -> Vec<u8> {
    let mut text: Vec<u8> = values.iter().flat_map(AsRef::as_ref).copied().collect();
    text.extend(b"END\r\n");
    text
}

/// How long data may be for a reply with this one key to fit a datagram.
pub(crate) fn room(key: impl AsRef<[u8]>, flags: u32) -> usize {
    let spare = REPLY_MAX - values(&[value(key, flags, &[])]).len();
    // The zero of an empty value becomes three or four digits.
    if spare - 2 < 1000 { spare - 2 } else { spare - 3 }
}

/// Where the IP header starts.
pub(crate) fn network(frame: &[u8]) -> usize {
    let mut at = MAC_LEN;
    while matches!(be16(frame, at), Some(ETH_VLAN | ETH_QINQ)) {
        at += 4;
    }
    at + 2
}

/// Where the UDP or TCP header starts.
pub(crate) fn transport(frame: &[u8]) -> usize {
    let at = network(frame);
    match frame[at] >> 4 {
        4 => at + usize::from(frame[at] & 15) * 4,
        _ => at + IPV6_LEN,
    }
}

/// Where a UDP payload starts.
pub(crate) fn payload(frame: &[u8]) -> usize {
    transport(frame) + UDP_LEN
}

/// Fills in the checksums, as far as the headers make sense.
pub(crate) fn seal(frame: &mut [u8]) {
    seal_network(frame);
    if let Some(field) = clear_checksum(frame) {
        let sum = !fold(pseudo_sum(frame) + sum(&frame[transport(frame)..end(frame)]));
        // RFC 768: a computed zero is sent as all ones.
        let sum = if sum == 0 { 0xffff } else { sum };
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Leaves the transport checksum to the hardware, as Linux does on its own
/// host: the field holds the sum of the pseudo header only.
pub(crate) fn seal_partial(frame: &mut [u8]) {
    seal_network(frame);
    if let Some(field) = clear_checksum(frame) {
        let sum = fold(pseudo_sum(frame));
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Fills in the checksum of an IPv4 header.
pub(crate) fn seal_network(frame: &mut [u8]) {
    let at = network(frame);
    if frame.len() < at + IPV4_LEN || frame[at] >> 4 != 4 {
        return;
    }
    let header = at + usize::from(frame[at] & 15) * 4;
    if header < at + IPV4_LEN || header > frame.len() {
        return;
    }
    frame[at + 10..at + 12].fill(0);
    let sum = !fold(sum(&frame[at..header]));
    frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Zeroes the transport checksum; `None` when there is none.
fn clear_checksum(frame: &mut [u8]) -> Option<usize> {
    let at = network(frame);
    if frame.len() < at + IPV4_LEN || frame[at] >> 4 == 6 && frame.len() < at + IPV6_LEN {
        return None;
    }
    let transport = transport(frame);
    let (field, header) = match protocol(frame) {
        PROTO_UDP => (transport + 6, UDP_LEN),
        PROTO_TCP => (transport + 16, TCP_LEN),
        _ => return None,
    };
    if end(frame) < transport + header {
        return None;
    }
    frame[field..field + 2].fill(0);
    Some(field)
}

fn protocol(frame: &[u8]) -> u8 {
    let at = network(frame);
    match frame[at] >> 4 {
        4 => frame[at + 9],
        _ => frame[at + 6],
    }
}

/// Where the IP packet ends: what follows is padding.
fn end(frame: &[u8]) -> usize {
    let at = network(frame);
    let end = match frame[at] >> 4 {
        4 => at + usize::from(be16(frame, at + 2).unwrap_or(0)),
        _ => at + IPV6_LEN + usize::from(be16(frame, at + 4).unwrap_or(0)),
    };
    end.min(frame.len())
}

/// RFC 768 and RFC 8200: addresses, length and protocol.
fn pseudo_sum(frame: &[u8]) -> u64 {
    let at = network(frame);
    let addresses = match frame[at] >> 4 {
        4 => at + 12..at + IPV4_LEN,
        _ => at + 8..at + IPV6_LEN,
    };
    let length = end(frame).saturating_sub(transport(frame));
    sum(&frame[addresses]) + length as u64 + u64::from(protocol(frame))
}

/// The sum of big-endian words; an odd byte counts as the high one.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

fn be16_or(bytes: &[u8], at: usize) -> Result<u16, &'static str> {
    be16(bytes, at).ok_or("truncated")
}

/// A UDP datagram that a careful receiver accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) flow: Flow,
    pub(crate) payload: Vec<u8>,
    /// Bytes after the IP packet.
    pub(crate) padding: usize,
    pub(crate) checksum: Checksum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Absent,
    Partial,
    Valid,
    Wrong,
}

/// Takes a frame apart: plain Ethernet, at most two tags, IP without options
/// or fragments, UDP. Says what is wrong with one that is anything else.
pub(crate) fn parse(frame: &[u8]) -> Result<Datagram, &'static str> {
    let mut at = MAC_LEN;
    let mut tags = Vec::new();
    let mut kind = be16_or(frame, at)?;
    while matches!(kind, ETH_VLAN | ETH_QINQ) {
        tags.push((kind, be16_or(frame, at + 2)?));
        at += 4;
        kind = be16_or(frame, at)?;
    }
    if tags.len() > 2 {
        return Err("too many tags");
    }
    let ip = frame.get(at + 2..).ok_or("truncated")?;
    let (source, target, tos, ttl, next, header, total): (IpAddr, IpAddr, _, _, _, _, _) =
        match kind {
            ETH_IPV4 => {
                let bytes: &[u8; IPV4_LEN] = ip.first_chunk().ok_or("truncated")?;
                if bytes[0] != 0x45 {
                    return Err("not a plain IPv4 header");
                }
                if be16_or(bytes, 6)? & 0x3fff != 0 {
                    return Err("fragment");
                }
                if fold(sum(bytes)) != 0xffff {
                    return Err("IPv4 header checksum");
                }
                (
                    <[u8; 4]>::try_from(&bytes[12..16]).unwrap().into(),
                    <[u8; 4]>::try_from(&bytes[16..20]).unwrap().into(),
                    bytes[1],
                    bytes[8],
                    bytes[9],
                    IPV4_LEN,
                    usize::from(be16_or(bytes, 2)?),
                )
            }
            ETH_IPV6 => {
                let bytes: &[u8; IPV6_LEN] = ip.first_chunk().ok_or("truncated")?;
                if bytes[0] >> 4 != 6 {
                    return Err("not IPv6");
                }
                (
                    <[u8; 16]>::try_from(&bytes[8..24]).unwrap().into(),
                    <[u8; 16]>::try_from(&bytes[24..40]).unwrap().into(),
                    bytes[0] << 4 | bytes[1] >> 4,
                    bytes[7],
                    bytes[6],
                    IPV6_LEN,
                    IPV6_LEN + usize::from(be16_or(bytes, 4)?),
                )
            }
            _ => return Err("not IP"),
        };
    if next != PROTO_UDP {
        return Err("not UDP");
    }
    let udp = ip.get(header..total).ok_or("IP length")?;
    if udp.len() < UDP_LEN || usize::from(be16_or(udp, 4)?) != udp.len() {
        return Err("UDP length");
    }
    let pseudo = pseudo_sum(frame);
    let checksum = match be16_or(udp, 6)? {
        0 => Checksum::Absent,
        _ if fold(pseudo + sum(udp)) == 0xffff => Checksum::Valid,
        field if field == fold(pseudo) => Checksum::Partial,
        _ => Checksum::Wrong,
    };
    Ok(Datagram {
        flow: Flow {
            target_mac: frame[..6].try_into().unwrap(),
            source_mac: frame[6..12].try_into().unwrap(),
            tags,
            source: SocketAddr::new(source, be16_or(udp, 0)?),
            target: SocketAddr::new(target, be16_or(udp, 2)?),
            tos,
            ttl,
        },
        payload: udp[UDP_LEN..].to_vec(),
        padding: ip.len() - total,
        checksum,
    })
}

/// The frame header's four fields and the text of a datagram.
pub(crate) fn split(payload: &[u8]) -> Option<([u16; 4], &[u8])> {
    let text = payload.get(FRAME_LEN..)?;
    let field = |n: usize| be16(payload, 2 * n).unwrap_or(0);
    Some(([field(0), field(1), field(2), field(3)], text))
}

/// The keys of a text that is one `get`, written the one proper way.
pub(crate) fn parse_get(text: &[u8]) -> Option<Vec<&[u8]>> {
    let keys: Vec<_> =
        text.strip_prefix(b"get ")?.strip_suffix(b"\r\n")?.split(|byte| *byte == b' ').collect();
    keys.iter().all(|key| is_key(key)).then_some(keys)
}

/// The key and the VALUE part of a text that is the reply to a `get` of one
/// key which was there.
pub(crate) fn parse_value(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let value = text.strip_suffix(b"END\r\n")?;
    let line = value.windows(2).position(|pair| pair == b"\r\n")?;
    let mut words = value[..line].strip_prefix(b"VALUE ")?.split(|byte| *byte == b' ');
    let (key, flags, bytes) = (words.next()?, words.next()?, words.next()?);
    let data = value[line + 2..].strip_suffix(b"\r\n")?;
    let well_formed = words.next().is_none()
        && is_key(key)
        && (1..=10).contains(&flags.len())
        && is_key(flags)
        && number(bytes)? == data.len() as u64
        && text.len() <= REPLY_MAX;
    well_formed.then_some((key, value))
}

fn is_key(key: &[u8]) -> bool {
    (1..=250).contains(&key.len()) && key.iter().all(|byte| *byte > b' ')
}

/// A decimal number as printf writes it: no sign, no leading zero.
fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
