// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Ports that this host translates to other ports, as iptables' REDIRECT and DNAT, the
//! rules of a Kubernetes service or IPVS do. bmc's programs see a packet before it is
//! translated: a write to port 11212 that is redirected to memcached's 11211 passes them
//! as one to 11212, which nobody watches.
//!
//! What is read are the rules of nftables and iptables, the connections that are tracked
//! and IPVS' services. The judgement is a function of these alone. What a rule asks that
//! is not understood here is taken to hold, so that a rule may be found that never
//! applies, but none that does is missed.
//!
//! A rule for packets of this host itself does no harm: the loopback carries them as they
//! were translated. Nor does a translation to another host or network namespace: of what
//! is only forwarded nothing is cached.

mod connections;
mod ipvs;
mod nftables;
mod ports;
mod rules;
mod xtables;

use std::fmt;
use std::net::IpAddr;
use std::net::UdpSocket;

use anyhow::Result;
use anyhow::bail;
use nix::ifaddrs::getifaddrs;

use self::ports::Ports;
use crate::cli::PORTS_MAX;
use crate::message;

/// The protocols that memcached speaks, in the order of [`Traffic`].
const PROTOCOLS: [(u8, &str); 2] = [(TCP, "TCP"), (17, "UDP")];
const TCP: u8 = 6;
const UDP: usize = 1;

/// Packets by the port that they are sent to: over TCP, and over UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Traffic([Ports; 2]);

impl Traffic {
    fn all() -> Self {
        Self([Ports::all(), Ports::all()])
    }

    /// Those of a protocol, to any port.
    fn protocol(number: u8) -> Self {
        Self(PROTOCOLS.map(
            |(known, _)| {
                if known == number { Ports::all() } else { Ports::default() }
            },
        ))
    }

    /// Those to these ports, by any protocol.
    fn to(ports: &Ports) -> Self {
        Self([ports.clone(), ports.clone()])
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Ports::is_empty)
    }

    fn and(&self, other: &Self) -> Self {
        Self([0, 1].map(|i| self.0[i].and(&other.0[i])))
    }

    fn or(&self, other: &Self) -> Self {
        Self([0, 1].map(|i| self.0[i].or(&other.0[i])))
    }

    fn except(&self, other: &Self) -> Self {
        Self([0, 1].map(|i| self.0[i].except(&other.0[i])))
    }
}

/// Where packets are translated to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// The first and the last address; None for this host's, or if it is not known.
    addresses: Option<(IpAddr, IpAddr)>,
    ports: Ports,
}

/// A translation that changes the port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Translation {
    /// What does it, as an administrator finds it.
    by: String,
    from: Traffic,
    to: Target,
}

/// Why bmc must not be attached as things are: writes to these ports would not be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwatched {
    /// What does it, as an administrator finds it.
    pub by: String,
    /// Of "TCP", "UDP" and both.
    protocol: String,
    ports: Ports,
    /// The ports at the other end that are watched.
    watched: Ports,
    /// Whether these ports are where the others lead, and not the reverse.
    are_targets: bool,
}

impl Unwatched {
    /// What is wrong.
    pub fn what(&self) -> String {
        let Self { protocol, ports, watched, are_targets, .. } = self;
        if *are_targets {
            format!(
                "{protocol} port {watched} is translated to {ports}, and writes that come to \
                 {ports} itself would not be seen"
            )
        } else {
            format!(
                "{protocol} port {ports} is translated to {watched}, and writes to {ports} would \
                 not be seen"
            )
        }
    }

    /// What can be done about it, where these ports are watched.
    pub fn remedy(&self, watched: &[u16]) -> String {
        if self.ports.count() + watched.len() > PORTS_MAX {
            return "have it translate fewer ports, which can be named by --port, or none".into();
        }
        let ports: Vec<_> = self.ports.iter().map(|port| port.to_string()).collect();
        format!("add --port {}", ports.join(","))
    }
}

impl fmt::Display for Unwatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what(), self.by)
    }
}

/// Fails if writes to memcached would come by ports that are not watched.
pub fn check(watched: &[u16]) -> Result<()> {
    let Seen { unwatched, hidden } = look(watched);
    for why in hidden {
        message::tell(&format!("cannot see all ports that are translated to others: {why}"));
    }
    let Some((first, others)) = unwatched.split_first() else { return Ok(()) };
    for other in others {
        message::tell(&format!("{other}: {}", other.remedy(watched)));
    }
    bail!("{first}: {}", first.remedy(watched));
}

/// What is to be seen of translated ports.
#[derive(Debug, Default)]
pub struct Seen {
    /// Those that are not watched and are translated to ones that are.
    pub unwatched: Vec<Unwatched>,
    /// What could not be looked at, and why.
    pub hidden: Vec<String>,
}

/// Looks at the translations of this network namespace, as they are now.
pub fn look(watched: &[u16]) -> Seen {
    let (mut all, mut hidden) = (ipvs::translations(), Vec::new());
    for (what, found) in [
        ("nftables", nftables::translations()),
        ("iptables-legacy", xtables::translations()),
        ("conntrack", connections::translations(is_local)),
    ] {
        match found {
            Ok(found) => all.extend(found),
            Err(err) => hidden.push(format!("{what}: {err}")),
        }
    }
    Seen { unwatched: judge(&all, &watched.iter().copied().collect(), is_here), hidden }
}

/// Whether an address is one of this network namespace, as far as can be seen: a socket
/// can be bound to no other.
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The same for a range of addresses.
fn is_here(first: IpAddr, last: IpAddr) -> bool {
    if is_local(first) || is_local(last) {
        return true;
    }
    let mut known = getifaddrs().into_iter().flatten().filter_map(|known| {
        let address = known.address?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    });
    known.any(|address: IpAddr| first <= address && address <= last)
}

/// Two ports where one is translated to the other must both be watched or neither: both
/// lead to the same memcached.
fn judge(
    all: &[Translation],
    watched: &Ports,
    is_here: impl Fn(IpAddr, IpAddr) -> bool,
) -> Vec<Unwatched> {
    let mut found: Vec<Unwatched> = Vec::new();
    let mut add = |one: Unwatched| {
        // Many connections may tell the same.
        let same = |other: &Unwatched| {
            (&other.ports, &other.watched, &other.protocol)
                == (&one.ports, &one.watched, &one.protocol)
        };
        if !found.iter().any(same) {
            found.push(one);
        }
    };
    for Translation { by, from, to } in all {
        if !to.addresses.is_none_or(|(first, last)| is_here(first, last)) {
            continue;
        }
        let ends = to.ports.and(watched);
        let hidden = from.except(&Traffic::to(watched));
        if !ends.is_empty() && !hidden.is_empty() {
            let [tcp, udp] = &hidden.0;
            let used = PROTOCOLS.iter().zip([tcp, udp]).filter(|(_, ports)| !ports.is_empty());
            let names: Vec<_> = used.map(|((_, name), _)| *name).collect();
            add(Unwatched {
                by: by.clone(),
                protocol: names.join(" and "),
                ports: tcp.or(udp),
                watched: ends,
                are_targets: false,
            });
        }
        // What is asked over TCP is not cached. Of a target that is not known, there is
        // nothing to say.
        let asked = from.0[UDP].and(watched);
        let others = to.ports.except(watched);
        if !asked.is_empty() && !others.is_empty() && to.ports != Ports::all() {
            add(Unwatched {
                by: by.clone(),
                protocol: PROTOCOLS[UDP].1.into(),
                ports: others,
                watched: asked,
                are_targets: true,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translation(tcp: &[u16], udp: &[u16], to: u16, address: Option<&str>) -> Translation {
        let address = address.map(|text| text.parse().expect("an address"));
        Translation {
            by: "a rule".into(),
            from: Traffic([tcp.iter().copied().collect(), udp.iter().copied().collect()]),
            to: Target {
                addresses: address.map(|address| (address, address)),
                ports: Ports::from_iter([to]),
            },
        }
    }

    /// What is said, where 10.0.0.1 is this host.
    fn says(all: &[Translation], watched: &[u16]) -> Vec<String> {
        let here: IpAddr = "10.0.0.1".parse().expect("an address");
        let ports = watched.iter().copied().collect();
        let found = judge(all, &ports, |first, last| first <= here && here <= last);
        found.iter().map(|found| format!("{found}: {}", found.remedy(watched))).collect()
    }

    #[test]
    fn a_port_that_leads_to_a_watched_one_must_be_watched_too() {
        let all = [translation(&[11212], &[], 11211, None)];
        let what = "TCP port 11212 is translated to 11211, and writes to 11212 would not be seen \
                    (a rule): add --port 11212";
        assert_eq!(says(&all, &[11211]), [what]);
        assert!(says(&all, &[11211, 11212]).is_empty());
        // Neither is watched: it is another's.
        assert!(says(&all, &[11213]).is_empty());
        // Writes come over UDP too.
        let all = [translation(&[11212], &[11213], 11211, None)];
        assert!(says(&all, &[11211])[0].starts_with("TCP and UDP port 11212-11213 is"));
        assert!(says(&all, &[11211, 11212])[0].starts_with("UDP port 11213 is"));
    }

    #[test]
    fn a_port_that_a_watched_one_leads_to_must_be_watched_too_if_its_replies_are_cached() {
        let all = [translation(&[11211], &[11211], 11212, None)];
        assert_eq!(
            says(&all, &[11211]),
            ["UDP port 11211 is translated to 11212, and writes that come to 11212 itself would \
              not be seen (a rule): add --port 11212"]
        );
        // As a proxy's, whose own writes come by the loopback.
        assert!(says(&[translation(&[11211], &[], 15006, None)], &[11211]).is_empty());
    }

    #[test]
    fn only_what_ends_at_this_host_matters() {
        let at = |address| [translation(&[11212], &[11212], 11211, Some(address))];
        assert_eq!(says(&at("10.0.0.1"), &[11211]).len(), 1);
        assert!(says(&at("10.0.0.2"), &[11211]).is_empty());
    }

    #[test]
    fn more_ports_than_can_be_named_are_told_as_ranges() {
        let mut all = [translation(&[], &[], 11211, None)];
        all[0].from = Traffic::protocol(6);
        let [said] = &says(&all, &[11211])[..] else { panic!("nothing is said") };
        assert!(said.contains("TCP port 1-11210,11212-65535 is"), "{said}");
        assert!(
            said.ends_with("have it translate fewer ports, which can be named by --port, or none")
        );
    }

    #[test]
    fn what_many_connections_show_is_told_once() {
        let one = translation(&[11212], &[], 11211, None);
        assert_eq!(says(&[one.clone(), one], &[11211]).len(), 1);
    }

    #[test]
    fn an_address_is_local_if_a_socket_can_have_it() {
        let [here, there] = ["127.0.0.1", "192.0.2.1"].map(|a| a.parse().expect("an address"));
        assert!(is_local(here) && is_here(here, here));
        assert!(!is_local(there) && !is_here(there, there));
        let [first, last] = ["126.0.0.0", "128.0.0.0"].map(|a| a.parse().expect("an address"));
        assert!(is_here(first, last), "the loopback is in between");
    }
}
