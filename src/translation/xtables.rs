// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The rules of the older iptables (iptables-legacy), and the matches and targets of
//! iptables, which the newer one has in its rules too.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use super::Ports;
use super::Target;
use super::Traffic;
use super::Translation;
use super::rules;
use super::rules::Chain;
use super::rules::Chains;
use super::rules::Rule;
use super::rules::Step;
use super::rules::address;
use crate::kernel;

/// A match or target: its arguments are a structure of the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extension {
    pub(super) name: String,
    pub(super) revision: u8,
    pub(super) info: Vec<u8>,
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

/// A number as this machine writes it.
fn half(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_ne_bytes)
}

fn word(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}

/// Which packets a match lets pass; None if it is not understood.
pub(super) fn read_match(of: &Extension) -> Option<Traffic> {
    let info = &of.info[..];
    // Structures xt_tcp, xt_udp and xt_multiport_v1.
    match (&of.name[..], of.revision) {
        ("tcp", 0) => read_ports(info, *info.get(11)?).map(|to| to.and(&Traffic::protocol(6))),
        ("udp", 0) => read_ports(info, *info.get(8)?).map(|to| to.and(&Traffic::protocol(17))),
        ("multiport", 1) => read_multiport(info),
        _ => None,
    }
}

fn inverted(ports: Ports, is_inverted: bool) -> Traffic {
    Traffic::to(&if is_inverted { ports.not() } else { ports })
}

fn read_ports(info: &[u8], flags: u8) -> Option<Traffic> {
    const INVERTED: u8 = 2; // XT_TCP_INV_DSTPT and XT_UDP_INV_DSTPT

    let ports = Ports::range(half(info, 4)?, half(info, 6)?);
    Some(inverted(ports, flags & INVERTED != 0))
}

fn read_multiport(info: &[u8]) -> Option<Traffic> {
    const DESTINATION: u8 = 1; // XT_MULTIPORT_DESTINATION
    const PORTS: usize = 2; // offsets
    const IS_RANGE: usize = 32;
    const INVERTED: usize = 47;

    let (kind, count) = (*info.first()?, usize::from(*info.get(1)?));
    if kind != DESTINATION {
        return None;
    }
    let (mut ports, mut i) = (Ports::default(), 0);
    while i < count {
        let first = half(info, PORTS + 2 * i)?;
        let is_range = *info.get(IS_RANGE + i)? != 0;
        i += usize::from(is_range);
        ports = ports.or(&Ports::range(first, half(info, PORTS + 2 * i)?));
        i += 1;
    }
    Some(inverted(ports, *info.get(INVERTED)? != 0))
}

/// Where a target translates to, if it changes the port.
pub(super) fn read_target(is_v4: bool, of: &Extension) -> Option<Target> {
    const ADDRESSES: u32 = 1; // NF_NAT_RANGE_*
    const PORTS: u32 = 2;

    if !["DNAT", "REDIRECT", "NETMAP"].contains(&&of.name[..]) {
        return None;
    }
    // A struct nf_nat_ipv4_multi_range_compat with one range, or a struct nf_nat_range.
    let is_compat = is_v4 && of.revision == 0;
    let (flags, first, size) = if is_compat { (4, 8, 4) } else { (0, 4, 16) };
    let info = &of.info[..];
    let last = first + size;
    let ports = last + size;
    let flags = word(info, flags)?;
    if flags & PORTS == 0 {
        return None;
    }
    let size = if is_v4 { 4 } else { 16 };
    let address = |at| address(info.get(at..at + size)?);
    let port = |at| bytes(info, at).map(u16::from_be_bytes);
    Some(Target {
        addresses: address(first).zip(address(last)).filter(|_| flags & ADDRESSES != 0),
        ports: Ports::range(port(ports)?, port(ports + 2)?),
    })
}

/// What the two address families have differently.
struct Family {
    command: &'static str,
    /// The tables that there are: to ask for one makes it.
    tables: &'static str,
    level: i32,
    any: &'static str,
    is_v4: bool,
    /// Offsets in a `struct ipt_entry` or `ip6t_entry`, and its size: the protocol, the flags
    /// that invert, where the target begins.
    protocol: usize,
    inverted: usize,
    target: usize,
    size: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        command: "iptables-legacy",
        tables: "/proc/thread-self/net/ip_tables_names",
        level: 0, // SOL_IP
        any: "0.0.0.0:0",
        is_v4: true,
        protocol: 80,
        inverted: 83,
        target: 88,
        size: 112,
    },
    Family {
        command: "ip6tables-legacy",
        tables: "/proc/thread-self/net/ip6_tables_names",
        level: 41, // SOL_IPV6
        any: "[::]:0",
        is_v4: false,
        protocol: 128,
        inverted: 132,
        target: 140,
        size: 168,
    },
];

const NAT: &str = "nat";

/// The hooks by which packets come in have these numbers.
const PREROUTING: usize = 0;
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

pub(super) fn translations() -> io::Result<Vec<Translation>> {
    let mut all = Vec::new();
    for family in &FAMILIES {
        let tables = match fs::read_to_string(family.tables) {
            Ok(tables) => tables,
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            Err(err) => return Err(err),
        };
        if !tables.lines().any(|table| table == NAT) {
            continue;
        }
        let (hooks, entries) = family.ask()?;
        let chains = family.read(hooks, &entries);
        all.extend(rules::translations(&chains, &mut |_| Rc::default()));
    }
    Ok(all)
}

impl Family {
    /// The table: where each hook begins, and its entries.
    fn ask(&self) -> io::Result<([u32; HOOKS.len()], Vec<u8>)> {
        const GET_INFO: i32 = 64; // IPT_SO_GET_*, and those of ip6tables
        const GET_ENTRIES: i32 = 65;
        const NAME: usize = 32; // XT_TABLE_MAXNAMELEN
        const INFO: usize = 84; // size of a struct ipt_getinfo
        const ENTRIES: usize = 40; // and of a struct ipt_get_entries, without the entries
        const TRIES: usize = 5;

        let socket = UdpSocket::bind(self.any)?;
        let named = |size| {
            let mut buffer = vec![0; size];
            buffer[..NAT.len()].copy_from_slice(NAT.as_bytes());
            buffer
        };
        for _ in 0..TRIES {
            let mut info = named(INFO);
            kernel::socket_option(socket.as_fd(), self.level, GET_INFO, &mut info)?;
            let at = |at| word(&info, at).ok_or(io::ErrorKind::InvalidData);
            let mut hooks = [0; HOOKS.len()];
            for (i, hook) in hooks.iter_mut().enumerate() {
                *hook = at(NAME + 4 + 4 * i)?;
            }
            let size = at(INFO - 4)?;
            let mut entries = named(ENTRIES + size as usize);
            entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
            match kernel::socket_option(socket.as_fd(), self.level, GET_ENTRIES, &mut entries) {
                Ok(_) => return Ok((hooks, entries.split_off(ENTRIES))),
                // It has changed meanwhile.
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Err(err),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Puts the entries into chains, by the offsets at which these begin. The hooks'
    /// chains have fixed names, and others begin behind an entry that has theirs.
    fn read(&self, hooks: [u32; HOOKS.len()], entries: &[u8]) -> Chains {
        const ERROR: &str = "ERROR";

        let mut all = Chains::new();
        let (mut at, mut key, mut chain) = (0, String::new(), String::new());
        while let Some(entry) = entries.get(at..).filter(|rest| !rest.is_empty()) {
            let (Some(target), Some(next)) =
                (half(entry, self.target), half(entry, self.target + 2))
            else {
                break;
            };
            let Some(entry) = entry.get(..usize::from(next)).filter(|entry| !entry.is_empty())
            else {
                break;
            };
            let hook = hooks.iter().position(|hook| *hook as usize == at);
            let steps = self.read_entry(entry, usize::from(target));
            at += entry.len();
            let jump = entry.get(usize::from(target)..).and_then(read_extension);
            if let Some(name) = jump.filter(|target| target.name == ERROR) {
                // What follows is a chain of this name.
                (key, chain) = (at.to_string(), c_text(&name.info));
                continue;
            }
            if let Some(hook) = hook {
                (key, chain) = ((at - entry.len()).to_string(), HOOKS[hook].into());
            }
            let is_entry = hook == Some(PREROUTING);
            let entered =
                all.entry(key.clone()).or_insert_with(|| Chain { is_entry, rules: Vec::new() });
            let number = entered.rules.len() + 1;
            let name = format!("{} -t {NAT} -S {chain} {number}", self.command);
            entered.rules.push(Rule { name, steps });
        }
        all
    }

    fn read_entry(&self, entry: &[u8], target: usize) -> Vec<Step> {
        const NOT_THE_PROTOCOL: u8 = 0x40; // IPT_INV_PROTO and IP6T_INV_PROTO

        let mut steps = Vec::new();
        if let Some(number) = half(entry, self.protocol).filter(|number| *number != 0) {
            let same = Traffic::protocol(number as u8);
            let inverted = entry.get(self.inverted).copied().unwrap_or_default();
            let others = inverted & NOT_THE_PROTOCOL != 0;
            steps.push(Step::Only(if others { Traffic::all().except(&same) } else { same }));
        }
        let mut at = self.size;
        while at < target {
            let Some((of, size)) = entry
                .get(at..target)
                .and_then(|rest| Some((read_extension(rest)?, usize::from(half(rest, 0)?))))
            else {
                break;
            };
            steps.extend(read_match(&of).map(Step::Only));
            at += size.max(1);
        }
        let Some(of) = entry.get(target..).and_then(read_extension) else { return steps };
        // The target without a name goes to another entry, or ends the chain.
        let jump = word(&of.info, 0).filter(|jump| of.name.is_empty() && *jump < 1 << 31);
        steps.extend(jump.map(|to| Step::Jump(to.to_string())));
        steps.extend(read_target(self.is_v4, &of).map(Step::Translate));
        steps
    }
}

/// A `struct xt_entry_match` or `xt_entry_target`.
fn read_extension(from: &[u8]) -> Option<Extension> {
    const NAME: usize = 2; // offsets
    const REVISION: usize = 31;
    const INFO: usize = 32;

    let size = usize::from(half(from, 0)?);
    Some(Extension {
        name: c_text(from.get(NAME..REVISION)?),
        revision: *from.get(REVISION)?,
        info: from.get(INFO..size)?.into(),
    })
}

fn c_text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tests/netfilter/rules.sh came to.
    const RECORDED: [&[u8]; 2] = [
        include_bytes!("../../tests/netfilter/iptables.bin"),
        include_bytes!("../../tests/netfilter/ip6tables.bin"),
    ];

    fn found(family: usize, entries: &[u8]) -> Vec<String> {
        let (heads, entries) = entries.split_at(4 * HOOKS.len());
        let hooks = std::array::from_fn(|i| word(heads, 4 * i).expect("a hook"));
        let chains = FAMILIES[family].read(hooks, entries);
        let found = rules::translations(&chains, &mut |_| Rc::default());
        let text = |Translation { by, from, to }: Translation| {
            let [tcp, udp] = from.0;
            format!("{by}: {tcp}/{udp} to {:?}:{}", to.addresses, to.ports)
        };
        found.into_iter().map(text).collect()
    }

    #[test]
    fn follows_recorded_rules_through_chains() {
        assert_eq!(
            found(0, RECORDED[0]),
            [
                "iptables-legacy -t nat -S PREROUTING 3: /1-2 to None:11211",
                "iptables-legacy -t nat -S KUBE-SVC 2: 31211/ to Some((10.0.0.1, 10.0.0.3)):11211",
            ]
        );
        assert_eq!(
            found(1, RECORDED[1]),
            [
                "ip6tables-legacy -t nat -S PREROUTING 1: 11212/ to Some((fd00::1, \
                 fd00::1)):11211-11212",
                "ip6tables-legacy -t nat -S PREROUTING 2: /1-65535 to None:11211",
            ]
        );
    }

    #[test]
    fn what_is_cut_off_or_odd_is_no_trap() {
        for (family, recorded) in RECORDED.into_iter().enumerate() {
            for end in (20..recorded.len()).step_by(7) {
                let _ = found(family, &recorded[..end]);
            }
            for at in 20..recorded.len() {
                let mut odd = recorded.to_vec();
                odd[at] = !odd[at];
                let _ = found(family, &odd);
            }
        }
        let info = [0xff; 48];
        for name in ["tcp", "udp", "multiport", "DNAT", "REDIRECT"] {
            for len in 0..info.len() {
                let of = Extension { name: name.into(), revision: 1, info: info[..len].into() };
                let _ = (read_match(&of), read_target(true, &of), read_target(false, &of));
            }
        }
    }
}
