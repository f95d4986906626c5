// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Questions by netlink that libbpf does not ask: the interfaces and filters of
//! rtnetlink, the features and channels of ethtool. Nothing here changes anything.
//!
//! Of the answers, only what is wanted is read: nothing else in them, which may be of
//! a later kernel, can make a question fail.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::DecodeError;
use netlink_packet_core::DefaultNla;
use netlink_packet_core::Emitable as _;
use netlink_packet_core::NLA_F_NESTED;
use netlink_packet_core::NLA_HEADER_SIZE;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_core::NLM_F_MULTIPART;
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_core::NetlinkDeserializable;
use netlink_packet_core::NetlinkHeader;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_core::NetlinkSerializable;
use netlink_packet_core::NlasIterator;
use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::protocols::NETLINK_ROUTE;

/// A message of any family.
struct Message<const HEAD: usize> {
    /// Which message.
    kind: u16,
    /// The family's own header.
    head: [u8; HEAD],
    attributes: Attributes,
}

impl<const HEAD: usize> NetlinkSerializable for Message<HEAD> {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEAD + self.attributes.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&[&self.head[..], &self.attributes.0].concat());
    }
}

impl<const HEAD: usize> NetlinkDeserializable for Message<HEAD> {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (head, rest) = payload.split_first_chunk().ok_or("the message is too short")?;
        Ok(Self { kind: header.message_type, head: *head, attributes: Attributes(rest.into()) })
    }
}

/// Attributes, each with its length and its kind before it.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    /// A single one.
    fn one(kind: u16, value: &[u8]) -> Self {
        let attribute = DefaultNla::new(kind, value.into());
        let mut bytes = vec![0; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        Self(bytes)
    }

    /// The values of all of a kind, up to what is malformed.
    fn all(&self, kind: u16) -> impl Iterator<Item = &[u8]> {
        let attributes = NlasIterator::new(&self.0[..]).map_while(Result::ok);
        attributes.filter(move |attribute| attribute.kind() == kind).map(|attribute| {
            let end = usize::from(attribute.length());
            &attribute.into_inner()[NLA_HEADER_SIZE..end]
        })
    }

    fn nested(&self, kind: u16) -> Self {
        Self(self.all(kind).collect::<Vec<_>>().concat())
    }

    fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.all(kind).next()?.try_into().ok()?))
    }

    /// The index of an interface; 0 stands for none.
    fn index(&self, kind: u16) -> Option<i32> {
        self.number(kind).and_then(|index| index.try_into().ok()).filter(|index| *index != 0)
    }

    fn text(&self, kind: u16) -> Option<String> {
        self.all(kind).next().map(text)
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').into()
}

/// Sends a question and collects the answers to it.
fn ask<const HEAD: usize>(
    protocol: isize,
    flags: u16,
    question: Message<HEAD>,
) -> io::Result<Vec<Message<HEAD>>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let question = NetlinkPayload::InnerMessage(question);
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), question);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        let (packet, _) = socket.recv_from_full()?;
        let mut rest = &packet[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<Message<HEAD>>::deserialize(rest)
                .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err.to_string()))?;
            let len = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(len..).unwrap_or_default();
            let is_last = message.header.flags & NLM_F_MULTIPART == 0;
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(err) if err.code.is_some() => return Err(err.to_io()),
                NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
            if is_last {
                return Ok(answers);
            }
        }
    }
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index in this network namespace.
    pub index: i32,
    /// Its name.
    pub name: String,
    /// Whether it was set up.
    pub is_up: bool,
    /// Whether there is a network at it.
    pub has_carrier: bool,
    /// The largest packet that it takes, without the link-layer header; bytes.
    pub mtu: u32,
    /// What a virtual one is: "veth", "vlan", "bridge" and so on.
    pub kind: Option<String>,
    /// The index of the bond, bridge or the like that it is a part of.
    pub master: Option<i32>,
    /// What makes it a part of that: "bond", "bridge" and so on.
    pub part_of: Option<String>,
    /// The index of what it lies on, or of its peer, if that is in this namespace.
    pub lower: Option<i32>,
    /// The other end of a veth.
    pub peer: Option<Peer>,
    /// The device and its bus, if it is a device's.
    pub device: Option<(String, String)>,
}

/// All interfaces of this network namespace.
pub fn links() -> io::Result<Vec<Link>> {
    Ok(ask_links(NLM_F_DUMP, 0, Attributes::default())?.iter().map(Link::read).collect())
}

/// The interface of this network namespace that has an index.
pub fn link(index: i32) -> io::Result<Link> {
    let answer = ask_links(0, index, Attributes::default())?;
    Ok(Link::read(answer.first().ok_or(io::ErrorKind::InvalidData)?))
}

fn ask_links(
    flags: u16,
    index: i32,
    attributes: Attributes,
) -> io::Result<Vec<Message<IFINFOMSG>>> {
    const GETLINK: u16 = 18; // RTM_GETLINK

    let mut head = [0; IFINFOMSG];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    ask(NETLINK_ROUTE, flags, Message { kind: GETLINK, head, attributes })
}

/// Bytes of a `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

/// Where the other end of a veth is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    index: i32,
    /// As this network namespace numbers it; None if it is this one.
    netns: Option<u32>,
}

impl Peer {
    /// Whether it has an XDP program of its own, in its driver.
    fn has_xdp(self) -> io::Result<bool> {
        const XDP: u16 = 43; // IFLA_*
        const TARGET_NETNSID: u16 = 46;
        const DRV_PROG_ID: u16 = 5; // IFLA_XDP_DRV_PROG_ID

        let netns = self.netns.map(|id| Attributes::one(TARGET_NETNSID, &id.to_ne_bytes()));
        let answer = ask_links(0, self.index, netns.unwrap_or_default())?;
        let answer = answer.first().ok_or(io::ErrorKind::InvalidData)?;
        Ok(answer.attributes.nested(XDP).number(DRV_PROG_ID).is_some())
    }
}

impl Link {
    /// Whether native XDP here would answer and nobody would hear it: the peer of a
    /// veth takes what XDP sends only while it has an XDP program itself. With GRO it
    /// lets it in, but does not look at it. None if that cannot be found out, as of a
    /// peer in a namespace where this process has no rights.
    pub fn drops_replies(&self) -> Option<bool> {
        if self.kind.as_deref() != Some("veth") {
            return Some(false);
        }
        Some(!self.peer?.has_xdp().ok()?)
    }

    fn read(message: &Message<IFINFOMSG>) -> Self {
        const UP: u32 = 1 << 0; // IFF_*
        const LOWER_UP: u32 = 1 << 16;
        const NAME: u16 = 3; // IFLA_IFNAME, and the other IFLA_*
        const MTU: u16 = 4;
        const LINK: u16 = 5;
        const MASTER: u16 = 10;
        const LINKINFO: u16 = 18;
        const LINK_NETNSID: u16 = 37;
        const PARENT_DEV_NAME: u16 = 56;
        const PARENT_DEV_BUS_NAME: u16 = 57;
        const KIND: u16 = 1; // IFLA_INFO_*
        const SLAVE_KIND: u16 = 4;

        let [_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = message.head;
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let attributes = &message.attributes;
        let info = attributes.nested(LINKINFO);
        let (netns, kind) = (attributes.number(LINK_NETNSID), info.text(KIND));
        let below = attributes.index(LINK);
        let is_veth = kind.as_deref() == Some("veth");
        Self {
            index: i32::from_ne_bytes([i0, i1, i2, i3]),
            name: attributes.text(NAME).unwrap_or_default(),
            is_up: flags & UP != 0,
            has_carrier: flags & LOWER_UP != 0,
            mtu: attributes.number(MTU).unwrap_or_default(),
            kind,
            master: attributes.index(MASTER),
            part_of: info.text(SLAVE_KIND),
            lower: below.filter(|_| netns.is_none()),
            peer: below.filter(|_| is_veth).map(|index| Peer { index, netns }),
            device: attributes.text(PARENT_DEV_BUS_NAME).zip(attributes.text(PARENT_DEV_NAME)),
        }
    }
}

/// A filter of an interface's clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// What matches: "bpf", "flower" and so on.
    pub kind: String,
    /// The id of its program, if it is one's.
    pub program: Option<u32>,
}

/// The filters of an interface's clsact qdisc, of anybody, on the side that
/// `parent` names.
pub fn filters(ifindex: i32, parent: u32) -> io::Result<Vec<Filter>> {
    const GETTFILTER: u16 = 46; // RTM_GETTFILTER

    let mut head = [0; TCMSG];
    head[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    head[12..16].copy_from_slice(&parent.to_ne_bytes());
    let question = Message { kind: GETTFILTER, head, attributes: Attributes::default() };
    Ok(ask(NETLINK_ROUTE, NLM_F_DUMP, question)?.iter().filter_map(Filter::read).collect())
}

/// Bytes of a `struct tcmsg`.
const TCMSG: usize = 20;

impl Filter {
    /// None for the head of a list, which has no handle.
    fn read(message: &Message<TCMSG>) -> Option<Self> {
        const KIND: u16 = 1; // TCA_*
        const OPTIONS: u16 = 2;
        const BPF_ID: u16 = 11; // TCA_BPF_ID

        let kind = message.attributes.text(KIND).unwrap_or_default();
        let options = message.attributes.nested(OPTIONS);
        let program = options.number(BPF_ID).filter(|_| kind == "bpf");
        (message.head[8..12] != [0; 4]).then_some(Self { kind, program })
    }
}

/// How many queues an interface works with, and how many it could; a combined
/// one counts as both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Queues that receive.
    pub rx: u32,
    /// The most of them.
    pub rx_max: u32,
    /// Queues that send.
    pub tx: u32,
    /// The most of them.
    pub tx_max: u32,
    /// Whether they come in pairs, as `ethtool -L` sets them.
    pub is_combined: bool,
}

/// Asks a driver for its channels; none if it has no such notion.
pub fn channels(ifindex: i32) -> io::Result<Channels> {
    const CHANNELS_GET: u8 = 17; // ETHTOOL_MSG_CHANNELS_GET

    Ok(Channels::read(&ethtool(CHANNELS_GET, ifindex)?))
}

impl Channels {
    fn read(answer: &Attributes) -> Self {
        const RX_MAX: u16 = 2; // ETHTOOL_A_CHANNELS_*
        const TX_MAX: u16 = 3;
        const COMBINED_MAX: u16 = 5;
        const RX: u16 = 6;
        const TX: u16 = 7;
        const COMBINED: u16 = 9;

        let number = |kind| answer.number(kind).unwrap_or_default();
        // Drivers that have both tell of the same queues twice.
        let combined_max = answer.number(COMBINED_MAX).filter(|max| *max != 0);
        Self {
            rx: number(RX) + number(COMBINED),
            rx_max: combined_max.unwrap_or(number(RX_MAX)),
            tx: number(TX) + number(COMBINED),
            tx_max: combined_max.unwrap_or(number(TX_MAX)),
            is_combined: combined_max.is_some(),
        }
    }
}

/// The offloads that are on, by the names that `ethtool -k` gives those that it
/// does not abbreviate, as in "rx-lro".
pub fn offloads(ifindex: i32) -> io::Result<BTreeSet<String>> {
    const FEATURES_GET: u8 = 11; // ETHTOOL_MSG_FEATURES_GET
    const ACTIVE: u16 = 4; // ETHTOOL_A_FEATURES_ACTIVE
    const BITS: u16 = 3; // ETHTOOL_A_BITSET_BITS
    const BIT: u16 = 1; // ETHTOOL_A_BITSET_BITS_BIT
    const NAME: u16 = 2; // ETHTOOL_A_BITSET_BIT_NAME

    let bits = ethtool(FEATURES_GET, ifindex)?.nested(ACTIVE).nested(BITS).nested(BIT);
    Ok(bits.all(NAME).map(text).collect())
}

/// Asks something about an interface that needs no further arguments.
fn ethtool(command: u8, ifindex: i32) -> io::Result<Attributes> {
    const HEADER: u16 = 1; // ETHTOOL_A_*_HEADER
    const INDEX: u16 = 1; // ETHTOOL_A_HEADER_DEV_INDEX
    const CTRL: u16 = 16; // GENL_ID_CTRL
    const GETFAMILY: u8 = 3; // CTRL_CMD_GETFAMILY
    const FAMILY_ID: u16 = 1; // CTRL_ATTR_*
    const FAMILY_NAME: u16 = 2;

    let family = generic(CTRL, GETFAMILY, Attributes::one(FAMILY_NAME, b"ethtool\0"))?;
    let family = family.all(FAMILY_ID).next().and_then(|id| id.try_into().ok());
    let family = u16::from_ne_bytes(family.ok_or(io::ErrorKind::NotFound)?);
    let header = Attributes::one(INDEX, &ifindex.to_ne_bytes());
    generic(family, command, Attributes::one(HEADER | NLA_F_NESTED, &header.0))
}

/// Asks a family of generic netlink something that has one answer.
fn generic(family: u16, command: u8, attributes: Attributes) -> io::Result<Attributes> {
    const VERSION: u8 = 1;

    let question = Message { kind: family, head: [command, VERSION, 0, 0], attributes };
    let answer = ask(NETLINK_GENERIC, 0, question)?.pop();
    answer.map(|answer| answer.attributes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_an_interface_without_a_device() {
        let links = links().expect("the kernel lists interfaces");
        let lo = links.iter().find(|link| link.name == "lo").expect("there is one");
        assert_eq!((lo.index, lo.mtu), (1, 65536));
        assert_eq!((&lo.kind, lo.master, lo.lower, &lo.device), (&None, None, None, &None));
        assert_eq!(filters(lo.index, 0xffff_fff2).expect("the kernel lists filters"), []);
    }

    #[test]
    fn the_loopback_offloads_checksums_and_has_no_channels() {
        let offloads = offloads(1).expect("the kernel tells");
        assert!(offloads.contains("rx-checksum"), "{offloads:?}");
        assert!(!offloads.contains("rx-lro"), "{offloads:?}");
        assert!(channels(1).is_err());
        assert!(channels(i32::MAX).is_err());
    }

    fn attributes(list: &[(u16, &[u8])]) -> Attributes {
        Attributes(list.iter().flat_map(|(kind, value)| Attributes::one(*kind, value).0).collect())
    }

    #[test]
    fn what_is_odd_in_one_attribute_of_a_link_hides_no_other() {
        // An MTU of two bytes, a kind that nobody knows, half an attribute at the end.
        let mut odd =
            attributes(&[(4, &[1, 2]), (3, b"eth0\0"), (999, &[9; 3]), (10, &[7, 0, 0, 0])]);
        odd.0.extend([200, 0, 5, 0]);
        let mut head = [0; IFINFOMSG];
        (head[4], head[8]) = (3, 1);
        let link = Link::read(&Message { kind: 16, head, attributes: odd });
        let (index, name, master) = (3, "eth0".into(), Some(7));
        assert_eq!(link, Link { index, name, is_up: true, master, ..Default::default() });
    }

    #[test]
    fn channels_that_a_driver_tells_twice_are_counted_once() {
        let read = |list: &[(u16, u8)]| {
            let list: Vec<_> = list.iter().map(|(kind, n)| (*kind, [*n, 0, 0, 0])).collect();
            let list: Vec<_> = list.iter().map(|(kind, n)| (*kind, &n[..])).collect();
            Channels::read(&attributes(&list))
        };
        let both = read(&[(2, 8), (3, 8), (5, 16), (6, 0), (7, 0), (9, 4)]);
        let expected = Channels { rx: 4, rx_max: 16, tx: 4, tx_max: 16, is_combined: true };
        assert_eq!(both, expected);
        let apart = read(&[(2, 8), (3, 6), (5, 0), (6, 2), (7, 1)]);
        let expected = Channels { rx: 2, rx_max: 8, tx: 1, tx_max: 6, is_combined: false };
        assert_eq!(apart, expected);
    }
}
