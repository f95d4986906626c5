// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The rules of nftables, and of the iptables that are built on it (iptables-nft, which
//! most distributions have): as the kernel lists them, so that no tool is needed.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use super::Translation;
use super::rules;
use super::rules::Byte;
use super::rules::Chain;
use super::rules::Chains;
use super::rules::Destination;
use super::rules::Element;
use super::rules::Is;
use super::rules::REGISTERS;
use super::rules::Rule;
use super::rules::SetName;
use super::rules::Step;
use super::rules::Value;
use super::xtables;
use crate::netlink::Attributes;
use crate::netlink::Subsystem;
use crate::netlink::netfilter;

// Families: NFPROTO_*.
const ANY: u8 = 0;
const INET: u8 = 1;
const IPV4: u8 = 2;
const NETDEV: u8 = 5;
const IPV6: u8 = 10;

// Messages: NFT_MSG_*.
const GET_CHAIN: u8 = 4;
const GET_RULE: u8 = 7;
const GET_ELEMENTS: u8 = 13;

pub(super) fn translations() -> io::Result<Vec<Translation>> {
    let ask = |message| netfilter(Subsystem::Nftables, message, ANY, &[]);
    let chains = ask(GET_CHAIN)?;
    if chains.is_empty() {
        return Ok(Vec::new());
    }
    let mut known = BTreeMap::new();
    let mut failed = None;
    let mut sets = |set: &SetName| {
        let elements = known.entry(set.clone()).or_insert_with(|| {
            let elements = elements(set).inspect_err(|err| failed = Some(err.kind()));
            Rc::new(elements.unwrap_or_default())
        });
        Rc::clone(elements)
    };
    let found = rules::translations(&read(&chains, &ask(GET_RULE)?), &mut sets);
    failed.map_or(Ok(found), |kind| Err(kind.into()))
}

fn elements(set: &SetName) -> io::Result<Vec<Element>> {
    const TABLE: u16 = 1; // NFTA_SET_ELEM_LIST_*
    const SET: u16 = 2;

    let [table, name] = [&set.table, &set.name].map(|text| [text.as_bytes(), b"\0"].concat());
    let arguments = [(TABLE, &table[..]), (SET, &name[..])];
    let lists = netfilter(Subsystem::Nftables, GET_ELEMENTS, set.family, &arguments)?;
    Ok(read_elements(set, lists.iter().map(|(_, list)| list)))
}

/// As `nft` writes a chain or another object of a table.
fn name_of(family: u8, table: &str, chain: &str) -> String {
    let family = match family {
        INET => "inet",
        IPV4 => "ip",
        NETDEV => "netdev",
        IPV6 => "ip6",
        _ => "bridge",
    };
    format!("{family} {table} {chain}")
}

/// Puts the rules into their chains.
fn read(chains: &[(u8, Attributes)], rules: &[(u8, Attributes)]) -> Chains {
    const TABLE: u16 = 1; // NFTA_CHAIN_*
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1; // NFTA_HOOK_HOOKNUM
    const RULE_CHAIN: u16 = 2; // NFTA_RULE_*
    const HANDLE: u16 = 3;
    const EXPRESSIONS: u16 = 4;
    const ELEMENT: u16 = 1; // NFTA_LIST_ELEM

    let mut all = Chains::new();
    for (family, chain) in chains {
        let (Some(table), Some(name)) = (chain.text(TABLE), chain.text(NAME)) else { continue };
        let hook = chain.nested(HOOK).big_endian(HOOK_NUMBER);
        let is_entry = hook.is_some_and(|hook| is_way_in(*family, hook));
        all.insert(name_of(*family, &table, &name), Chain { is_entry, rules: Vec::new() });
    }
    for (family, rule) in rules {
        let (Some(table), Some(name)) = (rule.text(TABLE), rule.text(RULE_CHAIN)) else { continue };
        let chain = name_of(*family, &table, &name);
        let handle = rule.first(HANDLE).and_then(|handle| handle.try_into().ok());
        let handle = u64::from_be_bytes(handle.unwrap_or_default());
        let expressions = rule.nested(EXPRESSIONS);
        let mut steps = Vec::new();
        for expression in expressions.lists(ELEMENT) {
            read_expression(*family, &table, &expression, &mut steps);
        }
        let name = format!("nft -a list chain {chain}: handle {handle}");
        if let Some(chain) = all.get_mut(&chain) {
            chain.rules.push(Rule { name, steps });
        }
    }
    all
}

/// Whether packets pass a hook on their way from an interface to a socket.
fn is_way_in(family: u8, hook: u32) -> bool {
    const PREROUTING: u32 = 0; // NF_INET_*, and NF_NETDEV_INGRESS
    const LOCAL_IN: u32 = 1; // NF_NETDEV_EGRESS too
    const INGRESS: u32 = 5;

    hook == PREROUTING || (family != NETDEV && (hook == LOCAL_IN || hook == INGRESS))
}

/// The first byte of a register by its number there; None for the verdict, and for what
/// is no register.
fn register(number: u32) -> Option<usize> {
    let number = number as usize;
    match number {
        1..=4 => Some(16 * (number - 1)),
        8..=23 => Some(4 * (number - 8)),
        _ => None,
    }
}

/// Adds what an expression does. What is not understood has no say in which packets go
/// on, and leaves something unknown in its register.
fn read_expression(family: u8, table: &str, expression: &Attributes, steps: &mut Vec<Step>) {
    const NAME: u16 = 1; // NFTA_EXPR_*
    const DATA: u16 = 2;

    let name = expression.text(NAME).unwrap_or_default();
    let data = expression.nested(DATA);
    let at = |kind| data.big_endian(kind).and_then(register);
    let step = match &name[..] {
        "meta" => read_meta(&data),
        "payload" => read_payload(family, &data),
        "cmp" => read_cmp(&data),
        "range" => read_range(&data),
        "lookup" => read_lookup(family, table, &data),
        "immediate" => read_immediate(family, table, &data),
        "nat" => read_nat(&data),
        "redir" => read_redir(&data),
        "match" => xtables::read_match(&foreign(&data)).map(Step::Only),
        "target" => xtables::read_target(family == IPV4, &foreign(&data)).map(Step::Translate),
        // The destination is the second of these, and of all others the first.
        "bitwise" | "byteorder" | "hash" | "socket" | "tunnel" => at(2).map(unknown),
        _ => at(1).map(unknown),
    };
    steps.extend(step);
}

/// Something that is not followed: as much as an IPv6 address.
fn unknown(to: usize) -> Step {
    Step::Load { to, bytes: vec![Byte::Unknown; 16] }
}

/// A match or target of iptables.
fn foreign(data: &Attributes) -> xtables::Extension {
    const NAME: u16 = 1; // NFTA_MATCH_* and NFTA_TARGET_*
    const REVISION: u16 = 2;
    const INFO: u16 = 3;

    xtables::Extension {
        name: data.text(NAME).unwrap_or_default(),
        revision: data.big_endian(REVISION).unwrap_or_default() as u8,
        info: data.first(INFO).unwrap_or_default().into(),
    }
}

fn read_meta(data: &Attributes) -> Option<Step> {
    const DESTINATION: u16 = 1; // NFTA_META_*
    const KEY: u16 = 2;
    const L4PROTO: u32 = 16; // NFT_META_L4PROTO

    let to = register(data.big_endian(DESTINATION)?)?;
    let is_protocol = data.big_endian(KEY) == Some(L4PROTO);
    Some(if is_protocol { Step::Load { to, bytes: vec![Byte::Protocol] } } else { unknown(to) })
}

fn read_payload(family: u8, data: &Attributes) -> Option<Step> {
    const DESTINATION: u16 = 1; // NFTA_PAYLOAD_*
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LEN: u16 = 4;
    const SOURCE: u16 = 5;
    const NETWORK: u32 = 1; // NFT_PAYLOAD_*_HEADER
    const TRANSPORT: u32 = 2;
    const PORT: usize = 2; // offsets of what is followed
    const PROTOCOL: u32 = 9;
    const NEXT_HEADER: u32 = 6;

    let [base, offset, len] = [BASE, OFFSET, LEN].map(|kind| data.big_endian(kind));
    let (base, start, len) = (base?, offset?, len? as usize);
    let offset = start as usize;
    if let Some(source) = data.big_endian(SOURCE) {
        // It changes the packet: the port, perhaps.
        let is_port = base == TRANSPORT && offset < PORT + 2 && offset + len > PORT;
        let is_whole = offset <= PORT && offset + len >= PORT + 2;
        let at = if is_whole { register(source)? + PORT - offset } else { REGISTERS };
        return is_port.then_some(Step::TranslateBy { addresses: None, ports: (at, at) });
    }
    let to = register(data.big_endian(DESTINATION)?)?;
    let byte = |at| match (base, at) {
        (TRANSPORT, 2) => Byte::PortHigh,
        (TRANSPORT, 3) => Byte::PortLow,
        _ => Byte::Unknown,
    };
    // A single byte there is that in the other family only of what nobody asks for.
    let is_protocol = (base, len) == (NETWORK, 1)
        && match family {
            IPV4 => start == PROTOCOL,
            IPV6 => start == NEXT_HEADER,
            _ => start == PROTOCOL || start == NEXT_HEADER,
        };
    let bytes = if is_protocol {
        vec![Byte::Protocol]
    } else {
        (offset..offset + len.min(REGISTERS)).map(byte).collect()
    };
    Some(Step::Load { to, bytes })
}

/// A value: `NFTA_DATA_VALUE`.
fn value(data: &Attributes, kind: u16) -> Option<Vec<u8>> {
    const VALUE: u16 = 1; // NFTA_DATA_VALUE

    data.nested(kind).first(VALUE).map(Into::into)
}

fn read_cmp(data: &Attributes) -> Option<Step> {
    const SOURCE: u16 = 1; // NFTA_CMP_*
    const OP: u16 = 2;
    const DATA: u16 = 3;

    let at = register(data.big_endian(SOURCE)?)?;
    let all = [Is::Equal, Is::Not, Is::Less, Is::AtMost, Is::More, Is::AtLeast];
    let is = *all.get(data.big_endian(OP)? as usize)?;
    Some(Step::Compare { at, is, data: value(data, DATA)? })
}

fn read_range(data: &Attributes) -> Option<Step> {
    const SOURCE: u16 = 1; // NFTA_RANGE_*
    const OP: u16 = 2;
    const FROM: u16 = 3;
    const TO: u16 = 4;

    Some(Step::Range {
        at: register(data.big_endian(SOURCE)?)?,
        is_inside: data.big_endian(OP) == Some(0),
        first: value(data, FROM)?,
        last: value(data, TO)?,
    })
}

fn read_lookup(family: u8, table: &str, data: &Attributes) -> Option<Step> {
    const SET: u16 = 1; // NFTA_LOOKUP_*
    const SOURCE: u16 = 2;
    const DESTINATION: u16 = 3;
    const FLAGS: u16 = 5;
    const INVERTED: u32 = 1; // NFT_LOOKUP_F_INV

    let to = data.big_endian(DESTINATION);
    Some(Step::Lookup {
        set: SetName { family, table: table.into(), name: data.text(SET)? },
        at: register(data.big_endian(SOURCE)?)?,
        is_inside: data.big_endian(FLAGS).unwrap_or_default() & INVERTED == 0,
        to: to.map(|to| register(to).map_or(Destination::Verdict, Destination::Register)),
    })
}

/// The chain that a verdict leads to.
fn verdict(family: u8, table: &str, data: &Attributes) -> Option<String> {
    const VERDICT: u16 = 2; // NFTA_DATA_VERDICT
    const CHAIN: u16 = 2; // NFTA_VERDICT_CHAIN

    Some(name_of(family, table, &data.nested(VERDICT).text(CHAIN)?))
}

fn read_immediate(family: u8, table: &str, data: &Attributes) -> Option<Step> {
    const DESTINATION: u16 = 1; // NFTA_IMMEDIATE_*
    const DATA: u16 = 2;

    match register(data.big_endian(DESTINATION)?) {
        None => verdict(family, table, &data.nested(DATA)).map(Step::Jump),
        Some(to) => {
            let value = value(data, DATA)?;
            Some(Step::Load { to, bytes: value.into_iter().map(Byte::Known).collect() })
        }
    }
}

fn read_nat(data: &Attributes) -> Option<Step> {
    const TYPE: u16 = 1; // NFTA_NAT_*
    const FAMILY: u16 = 2;
    const ADDRESS_MIN: u16 = 3;
    const ADDRESS_MAX: u16 = 4;
    const PORT_MIN: u16 = 5;
    const PORT_MAX: u16 = 6;
    const DESTINATION: u32 = 1; // NFT_NAT_DNAT

    if data.big_endian(TYPE) != Some(DESTINATION) {
        return None;
    }
    let at = |kind| data.big_endian(kind).and_then(register);
    // Without one the port stays.
    let port = at(PORT_MIN)?;
    let size = if data.big_endian(FAMILY) == Some(IPV4.into()) { 4 } else { 16 };
    Some(Step::TranslateBy {
        addresses: at(ADDRESS_MIN).map(|first| (first, at(ADDRESS_MAX).unwrap_or(first), size)),
        ports: (port, at(PORT_MAX).unwrap_or(port)),
    })
}

fn read_redir(data: &Attributes) -> Option<Step> {
    const PORT_MIN: u16 = 1; // NFTA_REDIR_*
    const PORT_MAX: u16 = 2;

    let at = |kind| data.big_endian(kind).and_then(register);
    let port = at(PORT_MIN)?;
    Some(Step::TranslateBy { addresses: None, ports: (port, at(PORT_MAX).unwrap_or(port)) })
}

/// The elements of a set, of which those of intervals come as two: where one begins, and
/// where it has ended.
fn read_elements<'a>(set: &SetName, lists: impl Iterator<Item = &'a Attributes>) -> Vec<Element> {
    const ELEMENTS: u16 = 3; // NFTA_SET_ELEM_LIST_ELEMENTS
    const ELEMENT: u16 = 1; // NFTA_LIST_ELEM
    const KEY: u16 = 1; // NFTA_SET_ELEM_*
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_END: u16 = 10;
    const INTERVAL_END: u32 = 1; // NFT_SET_ELEM_INTERVAL_END

    let (mut elements, mut ends) = (Vec::new(), Vec::new());
    for list in lists {
        for element in list.nested(ELEMENTS).lists(ELEMENT) {
            // A catch-all has none.
            let first = value(&element, KEY).unwrap_or_default();
            if element.big_endian(FLAGS).unwrap_or_default() & INTERVAL_END != 0 {
                ends.push(first);
                continue;
            }
            let last = value(&element, KEY_END);
            let data = element.nested(DATA);
            let value = match (value(&element, DATA), verdict(set.family, &set.table, &data)) {
                (Some(data), _) => Value::Data(data),
                (None, Some(chain)) => Value::Chain(chain),
                (None, None) => Value::None,
            };
            elements.push((first, last, value));
        }
    }
    ends.sort_unstable();
    let is_of_intervals = !ends.is_empty();
    let elements = elements.into_iter().map(|(first, last, value)| {
        let end = ends.get(ends.partition_point(|end| *end <= first));
        let last = match (last, end) {
            (Some(last), _) => last,
            (None, Some(end)) => before(end),
            (None, None) if is_of_intervals => vec![u8::MAX; first.len()],
            (None, None) => first.clone(),
        };
        Element { first, last, value }
    });
    elements.collect()
}

/// The number before one that is not zero.
fn before(number: &[u8]) -> Vec<u8> {
    let mut number = number.to_vec();
    for byte in number.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != u8::MAX {
            break;
        }
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tests/netfilter/rules.sh came to.
    const RECORDED: &[u8] = include_bytes!("../../tests/netfilter/nftables.bin");

    /// The messages of a kind, with the family that each is of.
    fn recorded(kind: u8) -> Vec<(u8, Attributes)> {
        let (mut rest, mut all) = (RECORDED, Vec::new());
        while let Some(head) = rest.first_chunk::<20>() {
            let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            if head[4] == kind {
                all.push((head[16], Attributes::recorded(&rest[20..len])));
            }
            rest = &rest[len.next_multiple_of(4)..];
        }
        all
    }

    fn recorded_set(set: &SetName) -> Rc<Vec<Element>> {
        let lists = recorded(12); // NFT_MSG_NEWSETELEM
        let is_its = |(family, list): &&(u8, Attributes)| {
            let is_named = list.text(2).as_ref() == Some(&set.name);
            *family == set.family && list.text(1).as_ref() == Some(&set.table) && is_named
        };
        Rc::new(read_elements(set, lists.iter().filter(is_its).map(|(_, list)| list)))
    }

    #[test]
    fn follows_recorded_rules_through_maps_and_chains() {
        let chains = read(&recorded(3), &recorded(6)); // NFT_MSG_NEWCHAIN and NFT_MSG_NEWRULE
        let mut found: Vec<_> = rules::translations(&chains, &mut recorded_set)
            .into_iter()
            .map(|Translation { by, from, to }| {
                let [tcp, udp] = from.0;
                let by = by.split_once(": handle ").expect("a handle").0.to_string();
                let to_address = to.addresses.map(|(first, last)| {
                    assert_eq!(first, last);
                    first.to_string()
                });
                let by = by.replace("nft -a list chain ", "");
                format!("{by}: {tcp}/{udp} to {}:{}", to_address.unwrap_or_default(), to.ports)
            })
            .collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "inet bmc endpoint: 11213/ to 10.0.0.1:11211",
                "inet bmc prerouting: /1-2 to :11211",
                "inet bmc prerouting: /11218 to fd00::1:11211",
                "inet bmc prerouting: /7,11214,11216 to :11211",
                "inet bmc prerouting: 11212/ to 10.0.0.1:11211",
                "inet bmc prerouting: 11217/ to :11211",
                "inet bmc prerouting: 80/ to 10.0.0.1:8080",
                "ip nat PREROUTING: /11222 to 10.0.0.1:11211",
                "ip nat PREROUTING: 80,11220-11221/ to :11211",
                "ip raw prerouting: 11219/ to :11211",
            ]
        );
    }

    #[test]
    fn what_is_not_understood_lets_every_packet_pass() {
        let chain = |steps| {
            let rules = vec![Rule { name: "rule".into(), steps }];
            let chains = Chains::from([("chain".into(), Chain { is_entry: true, rules })]);
            rules::translations(&chains, &mut |_| Rc::new(Vec::new()))
        };
        let port = |at| Step::Load { to: at, bytes: vec![Byte::PortHigh, Byte::PortLow] };
        let compare = |at| Step::Compare { at, is: Is::Equal, data: vec![0x2b, 0xcc] };
        let to = |at| Step::TranslateBy { addresses: None, ports: (at, at) };
        let [known] = &chain(vec![port(0), compare(0), to(4)])[..] else { panic!("one") };
        assert_eq!(known.from.0[0].to_string(), "11212");
        assert_eq!(known.to.ports.count(), 65535, "the target is not known");
        // Something else has come into the register.
        let [any] = &chain(vec![port(0), unknown(0), compare(0), to(4)])[..] else { panic!("one") };
        assert_eq!(any.from.0[0].count(), 65535);
        // The end of the registers is no trap.
        let _ = chain(vec![port(REGISTERS - 1), compare(REGISTERS - 1), to(REGISTERS - 1)]);
        let _ = chain(vec![port(REGISTERS), compare(REGISTERS), to(usize::MAX)]);
    }

    #[test]
    fn intervals_end_before_the_next_one() {
        assert_eq!(before(&[0x2b, 0xcc]), [0x2b, 0xcb]);
        assert_eq!(before(&[0x2c, 0]), [0x2b, 0xff]);
    }
}
