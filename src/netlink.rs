// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Questions by netlink that libbpf does not ask: the interfaces and filters of
//! rtnetlink, the features and channels of ethtool. Nothing here changes anything.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;

use netlink_packet_core::DecodeError;
use netlink_packet_core::DefaultNla;
use netlink_packet_core::Emitable;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_core::NLM_F_MULTIPART;
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_core::NetlinkDeserializable;
use netlink_packet_core::NetlinkHeader;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_core::NetlinkSerializable;
use netlink_packet_core::Nla as _;
use netlink_packet_core::NlasIterator;
use netlink_packet_core::ParseableParametrized;
use netlink_packet_generic::GenlFamily;
use netlink_packet_generic::GenlHeader;
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::GenlCtrl;
use netlink_packet_generic::ctrl::GenlCtrlCmd;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::link::LinkInfo;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::tc::TcAttribute;
use netlink_packet_route::tc::TcFilterBpfOption;
use netlink_packet_route::tc::TcMessage;
use netlink_packet_route::tc::TcOption;
use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::protocols::NETLINK_ROUTE;

/// Sends a question and collects the answers to it.
fn ask<T>(protocol: isize, question: impl Into<NetlinkPayload<T>>, flags: u16) -> io::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), question.into());
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
            let message = NetlinkMessage::<T>::deserialize(rest)
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
    /// The device and its bus, if it is a device's.
    pub device: Option<(String, String)>,
}

/// All interfaces of this network namespace.
pub fn links() -> io::Result<Vec<Link>> {
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = ask(NETLINK_ROUTE, question, NLM_F_DUMP)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(Link::read(message)),
            _ => None,
        })
        .collect())
}

impl Link {
    fn read(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: number(message.header.index),
            is_up: flags.contains(LinkFlags::Up),
            has_carrier: flags.contains(LinkFlags::LowerUp),
            ..Default::default()
        };
        let (mut bus, mut device) = (None, None);
        let mut is_elsewhere = false;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.master = Some(number(index)),
                LinkAttribute::Link(index) if index != 0 => link.lower = Some(number(index)),
                LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
                LinkAttribute::ParentDevName(name) => device = Some(name),
                LinkAttribute::ParentDevBusName(name) => bus = Some(name),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                            LinkInfo::PortKind(kind) => link.part_of = Some(kind.to_string()),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if is_elsewhere {
            link.lower = None;
        }
        link.device = bus.zip(device);
        link
    }
}

/// The number of an interface, in the type that most calls want.
fn number(index: u32) -> i32 {
    i32::try_from(index).unwrap_or_default()
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
    let mut question = TcMessage::with_index(ifindex);
    question.header.parent = parent.into();
    let question = RouteNetlinkMessage::GetTrafficFilter(question);
    let answers = ask(NETLINK_ROUTE, question, NLM_F_DUMP)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(message) => Filter::read(message),
            _ => None,
        })
        .collect())
}

impl Filter {
    /// None for the head of a list, which has no handle.
    fn read(message: TcMessage) -> Option<Self> {
        if u32::from(message.header.handle) == 0 {
            return None;
        }
        let mut filter = Self { kind: String::new(), program: None };
        for attribute in message.attributes {
            match attribute {
                TcAttribute::Kind(kind) => filter.kind = kind,
                TcAttribute::Options(options) => {
                    for option in options {
                        if let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option {
                            filter.program = Some(id);
                        }
                    }
                }
                _ => {}
            }
        }
        Some(filter)
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
    const RX_MAX: u16 = 2; // ETHTOOL_A_CHANNELS_*
    const TX_MAX: u16 = 3;
    const COMBINED_MAX: u16 = 5;
    const RX: u16 = 6;
    const TX: u16 = 7;
    const COMBINED: u16 = 9;

    let answer = ethtool(CHANNELS_GET, ifindex)?;
    let number = |kind| {
        let value = answer.iter().find(|attribute| attribute.kind() == kind).map(value);
        value.and_then(|value| value.try_into().ok()).map_or(0, u32::from_ne_bytes)
    };
    Ok(Channels {
        rx: number(RX) + number(COMBINED),
        rx_max: number(RX_MAX) + number(COMBINED_MAX),
        tx: number(TX) + number(COMBINED),
        tx_max: number(TX_MAX) + number(COMBINED_MAX),
        is_combined: number(COMBINED_MAX) != 0,
    })
}

/// The offloads that are on, by the names that `ethtool -k` gives those that it
/// does not abbreviate, as in "rx-lro".
pub fn offloads(ifindex: i32) -> io::Result<BTreeSet<String>> {
    const FEATURES_GET: u8 = 11; // ETHTOOL_MSG_FEATURES_GET
    const ACTIVE: u16 = 4; // ETHTOOL_A_FEATURES_ACTIVE
    const BITS: u16 = 3; // ETHTOOL_A_BITSET_BITS
    const BIT: u16 = 1; // ETHTOOL_A_BITSET_BITS_BIT
    const NAME: u16 = 2; // ETHTOOL_A_BITSET_BIT_NAME

    let within = |attributes: Vec<DefaultNla>, kind| -> io::Result<Vec<DefaultNla>> {
        let mut inner = Vec::new();
        for attribute in attributes.iter().filter(|attribute| attribute.kind() == kind) {
            inner.extend(attributes_of(&value(attribute)).map_err(io::Error::other)?);
        }
        Ok(inner)
    };
    let bits = within(within(ethtool(FEATURES_GET, ifindex)?, ACTIVE)?, BITS)?;
    let names = within(bits, BIT)?;
    let names = names.iter().filter(|attribute| attribute.kind() == NAME).map(value);
    Ok(names
        .map(|name| String::from_utf8_lossy(&name).trim_end_matches('\0').to_string())
        .collect())
}

/// Asks something about an interface that needs no further arguments.
fn ethtool(command: u8, ifindex: i32) -> io::Result<Vec<DefaultNla>> {
    const HEADER: u16 = 1; // ETHTOOL_A_*_HEADER
    const INDEX: u16 = 1; // ETHTOOL_A_HEADER_DEV_INDEX
    const NESTED: u16 = 1 << 15; // NLA_F_NESTED

    let index = [DefaultNla::new(INDEX, ifindex.to_ne_bytes().into())];
    let mut header = vec![0; index.as_slice().buffer_len()];
    index.as_slice().emit(&mut header);
    let attributes = vec![DefaultNla::new(HEADER | NESTED, header)];
    let mut question = GenlMessage::from_payload(Ethtool { command, attributes });
    question.set_resolved_family_id(family(Ethtool::family_name())?);
    let answer = ask(NETLINK_GENERIC, question, 0)?.pop();
    answer.map(|answer| answer.payload.attributes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The number of a family of generic netlink.
fn family(name: &str) -> io::Result<u16> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.into())],
    });
    let answers = ask(NETLINK_GENERIC, question, 0)?;
    let id = answers.iter().flat_map(|answer| &answer.payload.nlas).find_map(|nla| match nla {
        GenlCtrlAttrs::FamilyId(id) => Some(*id),
        _ => None,
    });
    id.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A message of the family "ethtool".
#[derive(Debug)]
struct Ethtool {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Ethtool {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Ethtool {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Ethtool {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self { command: header.cmd, attributes: attributes_of(bytes)? })
    }
}

fn attributes_of(bytes: &[u8]) -> Result<Vec<DefaultNla>, DecodeError> {
    NlasIterator::new(bytes)
        .map(|nla| nla.map(|nla| DefaultNla::new(nla.kind(), nla.value().to_vec())))
        .collect()
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
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
}
