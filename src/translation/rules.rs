// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Which packets reach the rules that translate them. A rule is a list of steps after
//! nftables' expressions, which load parts of a packet into registers and compare them;
//! those of iptables are put in the same words.
//!
//! Of a packet only the protocol and the port that it is sent to are followed. All else
//! is unknown, and a comparison with it may have come out either way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::Ports;
use super::Target;
use super::Traffic;
use super::Translation;

/// Bytes of nftables' registers.
pub(super) const REGISTERS: usize = 64;

/// What is known of a byte in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    Unknown,
    Known(u8),
    /// The transport protocol's number.
    Protocol,
    /// The first byte of the port that the packet is sent to, and the second.
    PortHigh,
    PortLow,
}

/// How a register is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Is {
    Equal,
    Not,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// A part of a rule. Registers are numbered by their first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The packet is one of these.
    Only(Traffic),
    Load {
        to: usize,
        bytes: Vec<Byte>,
    },
    Compare {
        at: usize,
        is: Is,
        data: Vec<u8>,
    },
    Range {
        at: usize,
        is_inside: bool,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    /// The registers are in a set; of a map, what it has for them goes on.
    Lookup {
        set: SetName,
        at: usize,
        is_inside: bool,
        to: Option<Destination>,
    },
    /// To the chain of this name, to come back or not.
    Jump(String),
    Translate(Target),
    /// To what is in registers: the addresses, their size in bytes, and the ports; the
    /// first and the last of each.
    TranslateBy {
        addresses: Option<(usize, usize, usize)>,
        ports: (usize, usize),
    },
}

/// Where a map's value goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Register(usize),
    /// It says which chain is next.
    Verdict,
}

/// A set of nftables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetName {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) name: String,
}

/// A range of keys in a set; of a catch-all they are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
    pub(super) value: Value,
}

/// What a map has for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing: it is a set, or the value ends the chain.
    None,
    Data(Vec<u8>),
    /// The name of a chain.
    Chain(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    /// What it is, as an administrator finds it.
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Whether packets that come in by an interface come here by themselves.
    pub(super) is_entry: bool,
    pub(super) rules: Vec<Rule>,
}

/// Chains by their names.
pub(super) type Chains = BTreeMap<String, Chain>;

/// Tells the elements of a set.
pub(super) type Sets<'a> = dyn FnMut(&SetName) -> Rc<Vec<Element>> + 'a;

/// Follows all that come in, from chain to chain.
pub(super) fn translations(chains: &Chains, sets: &mut Sets<'_>) -> Vec<Translation> {
    let mut reached: BTreeMap<&str, Traffic> = BTreeMap::new();
    let mut found: BTreeMap<&str, Vec<Translation>> = BTreeMap::new();
    let mut due: Vec<(String, Traffic)> = chains
        .iter()
        .filter(|(_, chain)| chain.is_entry)
        .map(|(name, _)| (name.clone(), Traffic::all()))
        .collect();
    while let Some((name, more)) = due.pop() {
        let Some((name, chain)) = chains.get_key_value(&name) else { continue };
        let known = reached.entry(name).or_default();
        let traffic = known.or(&more);
        if traffic == *known {
            continue;
        }
        known.clone_from(&traffic);
        let mut all = Vec::new();
        for rule in &chain.rules {
            let state = State { traffic: traffic.clone(), registers: [Byte::Unknown; REGISTERS] };
            state.run(&rule.steps, sets, &mut |effect| match effect {
                Effect::Jump(chain, traffic) => due.push((chain, traffic)),
                Effect::Translate(from, to) => {
                    all.push(Translation { by: rule.name.clone(), from, to });
                }
            });
        }
        found.insert(name, all);
    }
    found.into_values().flatten().collect()
}

/// What becomes of packets.
enum Effect {
    Jump(String, Traffic),
    Translate(Traffic, Target),
}

/// The packets that have got to a step, and what its registers have of each.
#[derive(Clone, Debug)]
struct State {
    traffic: Traffic,
    registers: [Byte; REGISTERS],
}

impl State {
    fn run(mut self, steps: &[Step], sets: &mut Sets<'_>, tell: &mut dyn FnMut(Effect)) {
        for (i, step) in steps.iter().enumerate() {
            if self.traffic.is_empty() {
                return;
            }
            match step {
                Step::Only(traffic) => self.traffic = self.traffic.and(traffic),
                Step::Load { to, bytes } => self.load(*to, bytes.iter().copied()),
                Step::Compare { at, is, data } => self.compare(*at, *is, data),
                Step::Range { at, is_inside, first, last } => {
                    let inside = self.between(*at, first, last);
                    self.narrow(*at, first.len(), *is_inside, &inside);
                }
                Step::Lookup { set, at, is_inside, to: None } => {
                    if self.knows(*at) {
                        self.look_up(*at, *is_inside, &sets(set));
                    }
                }
                Step::Lookup { set, at, to: Some(to), .. } => {
                    for element in sets(set).iter() {
                        let mut one = self.clone();
                        let inside = one.between(*at, &element.first, &element.last);
                        one.traffic = one.traffic.and(&inside);
                        match (&element.value, to) {
                            (Value::Data(data), Destination::Register(to)) => {
                                one.load(*to, data.iter().map(|byte| Byte::Known(*byte)));
                            }
                            (Value::Chain(chain), _) if !one.traffic.is_empty() => {
                                tell(Effect::Jump(chain.clone(), one.traffic.clone()));
                            }
                            _ => {}
                        }
                        if let Destination::Register(_) = to {
                            one.run(&steps[i + 1..], sets, tell);
                        }
                    }
                    if let Destination::Register(_) = to {
                        return;
                    }
                }
                Step::Jump(chain) => tell(Effect::Jump(chain.clone(), self.traffic.clone())),
                Step::Translate(target) => {
                    tell(Effect::Translate(self.traffic.clone(), target.clone()));
                }
                Step::TranslateBy { addresses, ports } => {
                    let target = Target {
                        addresses: addresses.and_then(|(first, last, size)| {
                            Some((self.address(first, size)?, self.address(last, size)?))
                        }),
                        ports: match (self.port(ports.0), self.port(ports.1)) {
                            (Some(first), Some(last)) => Ports::range(first, last),
                            _ => Ports::all(),
                        },
                    };
                    tell(Effect::Translate(self.traffic.clone(), target));
                }
            }
        }
    }

    /// What a register of four bytes has no more of is zero, or unknown.
    fn load(&mut self, to: usize, bytes: impl Iterator<Item = Byte>) {
        let mut end = to;
        for byte in bytes {
            let Some(at) = self.registers.get_mut(end) else { return };
            *at = byte;
            end += 1;
        }
        let whole = end.next_multiple_of(4).min(REGISTERS);
        self.registers[end..whole].fill(Byte::Unknown);
    }

    fn bytes(&self, at: usize, len: usize) -> &[Byte] {
        self.registers.get(at..).map_or(&[], |rest| &rest[..len.min(rest.len())])
    }

    /// Whether what a set may be asked for here has something that is followed.
    fn knows(&self, at: usize) -> bool {
        let is_followed = |byte: &Byte| !matches!(byte, Byte::Unknown | Byte::Known(_));
        self.bytes(at, REGISTERS).iter().any(is_followed)
    }

    /// Whether these bytes are a port or a protocol and nothing else, so that those that
    /// do not match are known as well.
    fn is_all(&self, at: usize, len: usize) -> bool {
        let bytes = self.bytes(at, len);
        bytes == [Byte::Protocol] || bytes == [Byte::PortHigh, Byte::PortLow]
    }

    /// Those that may be within these bounds, field by field.
    fn between(&self, at: usize, first: &[u8], last: &[u8]) -> Traffic {
        let mut traffic = Traffic::all();
        let bytes = self.bytes(at, first.len().min(last.len()));
        for i in 0..bytes.len() {
            let known = match bytes[i..] {
                [Byte::PortHigh, Byte::PortLow, ..] => {
                    let port = |data: &[u8]| u16::from_be_bytes([data[i], data[i + 1]]);
                    Traffic::to(&Ports::range(port(first), port(last)))
                }
                [Byte::Protocol, ..] if first[i] == last[i] => Traffic::protocol(first[i]),
                _ => continue,
            };
            traffic = traffic.and(&known);
        }
        traffic
    }

    fn narrow(&mut self, at: usize, len: usize, is_inside: bool, inside: &Traffic) {
        if is_inside {
            self.traffic = self.traffic.and(inside);
        } else if self.is_all(at, len) {
            self.traffic = self.traffic.except(inside);
        }
    }

    fn compare(&mut self, at: usize, is: Is, data: &[u8]) {
        if matches!(is, Is::Equal | Is::Not) {
            let equal = self.between(at, data, data);
            return self.narrow(at, data.len(), is == Is::Equal, &equal);
        }
        let (Some(Byte::PortHigh), [high, low]) = (self.registers.get(at), data) else { return };
        let port = u16::from_be_bytes([*high, *low]);
        let ports = match is {
            Is::Less => Ports::range(port, u16::MAX).not(),
            Is::AtMost => Ports::range(1, port),
            Is::More => Ports::range(1, port).not(),
            _ => Ports::range(port, u16::MAX),
        };
        self.traffic = self.traffic.and(&Traffic::to(&ports));
    }

    fn look_up(&mut self, at: usize, is_inside: bool, elements: &[Element]) {
        let Some(len) = elements.iter().map(|element| element.first.len()).min() else {
            if is_inside {
                self.traffic = Traffic::default();
            }
            return;
        };
        let each = elements.iter().map(|element| self.between(at, &element.first, &element.last));
        let inside = each.fold(Traffic::default(), |all, one| all.or(&one));
        self.narrow(at, len, is_inside, &inside);
    }

    fn known(&self, at: usize, len: usize) -> Option<Vec<u8>> {
        let known = |byte: &Byte| if let Byte::Known(byte) = byte { Some(*byte) } else { None };
        self.bytes(at, len).iter().map(known).collect::<Option<Vec<_>>>().filter(|b| b.len() == len)
    }

    fn port(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.known(at, 2)?.try_into().ok()?))
    }

    fn address(&self, at: usize, size: usize) -> Option<IpAddr> {
        address(&self.known(at, size)?)
    }
}

/// An address of either family, by its size.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
