// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What is known of the network interfaces: what each can do, what it is a part of, and what
//! others have attached to it.

use std::collections::BTreeSet;
use std::fs;

use libbpf_rs::query::{LinkInfoIter, LinkTypeInfo};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::{Value, json};

use crate::command::doctor::subject::Subject;
use crate::host::facts;
use crate::host::netlink::{self, Channels, Link};
use crate::host::sys::{self, LinkType, Tcx, Xdp, XdpProgram};
use crate::instance::conflict::Conflict;
use crate::instance::hook::{self, Device, Place};
use crate::instance::{Health, Instance};

/// The bits of `enum netdev_xdp_act`.
const XDP_FEATURES: [&str; 7] =
    ["basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"];

/// Kinds of interfaces that are made of others, and kinds that are on top of another.
const GROUPS: [&str; 3] = ["bond", "team", "bridge"];
const LAYERS: [&str; 4] = ["vlan", "macvlan", "macvtap", "ipvlan"];

/// The interfaces that were asked about, or those that are up.
pub(crate) struct Interfaces {
    /// The start of a command line about the instance.
    pub(crate) bmc: String,
    pub(crate) instance: String,
    /// Interfaces that were named but do not exist, and the error.
    pub(crate) missing: Vec<(String, String)>,
    pub(crate) found: Vec<Interface>,
    /// Other interfaces that are up, and the command that attaches to them as well.
    pub(crate) others: Vec<String>,
    pub(crate) attach_others: String,
    pub(crate) loopback_is_up: bool,
    /// Whether the loopback is watched; `None` if the instance is not attached.
    pub(crate) loopback_is_watched: Option<bool>,
    pub(crate) attach_again: String,
    pub(crate) is_elsewhere: bool,
    pub(crate) is_idle: bool,
    /// Why the interfaces could not be listed.
    pub(crate) error: Option<String>,
}

/// What is known of an interface; `None` for what could not be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interface {
    pub(crate) link: Link,
    /// The start of a command line about the instance, and the command that attaches it again.
    pub(crate) bmc: String,
    pub(crate) attach_again: String,
    /// Whether it was asked about, so that bmc is to be attached to it.
    pub(crate) is_named: bool,
    pub(crate) driver: Option<String>,
    pub(crate) master: Option<Master>,
    /// The interfaces that it is made of.
    pub(crate) members: Vec<String>,
    /// A VLAN on top of it.
    pub(crate) vlan: Option<String>,
    /// The interface below it.
    pub(crate) lower: Option<String>,
    /// An interface above it that has an XDP program, and whether that program is bmc's.
    pub(crate) xdp_above: Option<(String, bool)>,
    pub(crate) xdp: Option<Xdp>,
    /// See [`Link::drops_replies`].
    pub(crate) drops_replies: Option<bool>,
    /// Whether the kernel reports what drivers support.
    pub(crate) tells_features: bool,
    pub(crate) offloads: Option<BTreeSet<String>>,
    pub(crate) channels: Option<Channels>,
    pub(crate) cpus: u32,
    /// The mode and the health of the instance here, if it is attached here.
    pub(crate) attached: Option<(&'static str, Health)>,
    pub(crate) conflict: Option<Conflict>,
    /// Whether the instance is attached and would get this interface too.
    pub(crate) is_wanted: bool,
    /// The link that attaches the conflicting program.
    pub(crate) conflict_link: Option<u32>,
    /// The tc programs and filters of others.
    pub(crate) foreign: Option<Vec<Foreign>>,
}

/// The bond, bridge or the like that an interface belongs to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Master {
    pub(crate) name: String,
    /// Whether both were named.
    pub(crate) is_named: bool,
    /// Whether native XDP may work there.
    pub(crate) may_have_xdp: bool,
}

/// Somebody else's tc program or filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) side: &'static str,
    /// "tcx" or "filter".
    pub(crate) carrier: &'static str,
    pub(crate) name: String,
    pub(crate) id: Option<u32>,
    /// Whether it runs before bmc, and may hide packets from it.
    pub(crate) is_first: bool,
}

/// The index of the bond, bridge or the like that an interface belongs to.
fn group(link: &Link) -> Option<i32> {
    link.master.filter(|_| link.part_of.as_deref().is_some_and(|kind| GROUPS.contains(&kind)))
}

/// The index of the interface below.
fn lower(link: &Link) -> Option<i32> {
    link.lower.filter(|_| link.kind.as_deref().is_some_and(|kind| LAYERS.contains(&kind)))
}

/// The lowest interface that the packets of an interface pass.
fn root<'a>(mut link: &'a Link, links: &'a [Link]) -> i32 {
    let by = |link: &Link| group(link).or(lower(link));
    while let Some(next) = by(link).and_then(|index| links.iter().find(|l| l.index == index)) {
        link = next;
    }
    link.index
}

/// The interfaces that are up and unrelated to the named ones.
fn others(named: &BTreeSet<i32>, links: &[Link]) -> Vec<String> {
    let is_named = |link: &&Link| named.contains(&link.index);
    let theirs = |link: &Link| [Some(root(link, links)), link.master];
    let known: Vec<_> = links.iter().filter(is_named).flat_map(theirs).flatten().collect();
    let is_other = |link: &&Link| {
        let is_root = root(link, links) == link.index;
        link.is_up && link.name != "lo" && is_root && !known.contains(&link.index)
    };
    links.iter().filter(is_other).map(|link| link.name.clone()).collect()
}

impl Interfaces {
    pub(crate) fn read(asked: &[String], subject: &Subject<'_>) -> Self {
        let links = netlink::links();
        let error = links.as_ref().err().map(ToString::to_string);
        let links = links.unwrap_or_default();
        let (mut named, mut missing) = (BTreeSet::new(), Vec::new());
        for name in asked {
            match facts::interface(name) {
                Ok(index) => _ = named.insert(index),
                Err(err) => missing.push((name.clone(), err.to_string())),
            }
        }
        let is_asked = |link: &&Link| {
            if asked.is_empty() {
                link.is_up && link.name != "lo"
            } else {
                named.contains(&link.index)
            }
        };
        let all = Instance::others("").unwrap_or_default();
        let ours = all.iter().flat_map(Instance::running).collect();
        let found: Vec<_> = links
            .iter()
            .filter(is_asked)
            .map(|link| Interface::read(link, &links, &named, &ours, subject))
            .collect();
        let own = subject.own.as_ref();
        // If another instance is attached there, its own doctor tells.
        let is_anothers = |i: &Interface| matches!(i.conflict, Some(Conflict::Instance(_)));
        let mut others = if named.is_empty() || found.iter().any(is_anothers) {
            Vec::new()
        } else {
            others(&named, &links)
        };
        others.retain(|name| !subject.attached.iter().any(|attached| attached.name == *name));
        let mut wanted: Vec<_> =
            found.iter().map(|interface| interface.link.name.clone()).collect();
        wanted.extend(others.iter().cloned());
        let when = "if memcached's clients come in there too";
        Self {
            bmc: subject.bmc.clone(),
            instance: subject.name.into(),
            missing,
            found,
            others,
            attach_others: subject.attach(&wanted, Some(when)),
            loopback_is_up: links.iter().any(|link| link.name == "lo" && link.is_up),
            loopback_is_watched: own.and_then(|own| own.watches_loopback().ok()),
            attach_again: subject.attach(&[], Some("without --no-loopback")),
            is_elsewhere: subject.is_elsewhere,
            is_idle: own.is_some_and(|own| own.is_idle().unwrap_or_default()),
            error,
        }
    }

    pub(crate) fn json(&self) -> Value {
        self.found.iter().map(Interface::json).collect()
    }
}

impl Interface {
    fn read(
        link: &Link,
        links: &[Link],
        named: &BTreeSet<i32>,
        ours: &BTreeSet<u32>,
        subject: &Subject<'_>,
    ) -> Self {
        let driver = link.device.as_ref().and_then(|(bus, device)| {
            let driver = fs::read_link(format!("/sys/bus/{bus}/devices/{device}/driver")).ok()?;
            Some(driver.file_name()?.to_string_lossy().into_owned())
        });
        let tells_features = tells_xdp_features();
        let is_above = |l: &&Link| link.master == Some(l.index) || lower(l) == Some(link.index);
        let xdp_above = links.iter().filter(is_above).find_map(|above| {
            let programs = sys::xdp(above.index).ok()?.programs;
            Some((above.name.clone(), ours.contains(&programs.first()?.id)))
        });
        let placed = Self::placed(link, links, named);
        let master_xdp = group(link).and_then(|index| sys::xdp(index).ok());
        let may_have_xdp = |xdp: Xdp| !tells_features || xdp.features & Xdp::BASIC != 0;
        let mut interface = Self {
            bmc: subject.bmc.clone(),
            attach_again: subject.attach(&[], None),
            driver: driver.or_else(|| link.kind.clone()),
            xdp_above,
            master: placed.master.map(|master| Master {
                may_have_xdp: master_xdp.is_some_and(may_have_xdp),
                ..master
            }),
            xdp: sys::xdp(link.index).ok(),
            drops_replies: link.drops_replies(),
            tells_features,
            offloads: netlink::offloads(link.index).ok(),
            channels: netlink::channels(link.index).ok(),
            cpus: sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1) as u32,
            ..placed
        };
        interface.read_programs(ours, subject);
        interface
    }

    /// How it relates to the other interfaces.
    fn placed(link: &Link, links: &[Link], named: &BTreeSet<i32>) -> Self {
        let name_of = |index: i32| links.iter().find(|l| l.index == index).map(|l| l.name.clone());
        let is_named = named.contains(&link.index);
        let members = links.iter().filter(|l| group(l) == Some(link.index));
        let mut uppers = links.iter().filter(|l| lower(l) == Some(link.index));
        let group = group(link);
        Self {
            link: link.clone(),
            is_named,
            master: group.and_then(|index| {
                let is_named = is_named && named.contains(&index);
                Some(Master { name: name_of(index)?, is_named, may_have_xdp: false })
            }),
            members: members.map(|l| l.name.clone()).collect(),
            vlan: uppers.find(|l| l.kind.as_deref() == Some("vlan")).map(|l| l.name.clone()),
            lower: lower(link).and_then(name_of),
            ..Default::default()
        }
    }

    /// Reads whose programs are attached, as far as this process may ask.
    fn read_programs(&mut self, ours: &BTreeSet<u32>, subject: &Subject<'_>) {
        let Link { name, index, .. } = &self.link;
        let own = subject.own.as_ref();
        let attached = subject.attached.iter().find(|attached| attached.name == *name);
        self.attached = attached.map(|attached| (attached.mode, attached.health));
        self.is_wanted = own.is_some() && self.is_named;
        let device = Device::new(name.clone(), *index);
        self.conflict = [Place::Ingress, Place::Native]
            .into_iter()
            .find_map(|place| Conflict::find(&device, place, subject.name, own).ok().flatten());
        if let Some(Conflict::Program { program, .. }) = &self.conflict {
            self.conflict_link = xdp_link(*index, program.id);
        }
        // Without access to the pins, bmc's programs cannot be told from those of others.
        self.foreign = if subject.is_hidden { None } else { foreign(*index, ours) };
    }

    /// Whether native XDP may work here.
    pub(crate) fn may_have_xdp(&self) -> bool {
        !self.tells_features || self.has_feature(Xdp::BASIC)
    }

    /// Whether `--mode auto` will try native XDP.
    pub(crate) fn tries_xdp(&self) -> bool {
        self.may_have_xdp() && self.drops_replies == Some(false)
    }

    pub(crate) fn has_feature(&self, feature: u64) -> bool {
        self.xdp.as_ref().is_some_and(|xdp| xdp.features & feature != 0)
    }

    pub(crate) fn features(&self) -> Vec<&'static str> {
        let features = self.xdp.as_ref().map_or(0, |xdp| xdp.features);
        let has = |(bit, name)| (features & (1_u64 << bit) != 0).then_some(name);
        XDP_FEATURES.into_iter().enumerate().filter_map(has).collect()
    }

    pub(crate) fn has_offload(&self, offload: &str) -> bool {
        self.offloads.as_ref().is_some_and(|offloads| offloads.contains(offload))
    }

    fn json(&self) -> Value {
        let offload = |name: &str| self.offloads.as_ref().map(|offloads| offloads.contains(name));
        let program = |p: &XdpProgram| json!({ "id": p.id, "name": sys::prog_name(p.id) });
        json!({
            "name": self.link.name,
            "index": self.link.index,
            "up": self.link.is_up,
            "carrier": self.link.has_carrier,
            "mtu": self.link.mtu,
            "driver": self.driver,
            "kind": self.link.kind,
            "master": self.master.as_ref().map(|master| &master.name),
            "members": self.members,
            "lower": self.lower,
            "xdp_features": (self.tells_features && self.xdp.is_some()).then(|| self.features()),
            "xdp_programs": self.xdp.as_ref().map(|xdp| xdp.programs.iter().map(program).collect::<Vec<_>>()),
            "tc_programs": self.foreign.as_ref().map(|foreign| foreign.iter().map(|f| json!({
                "side": f.side, "carrier": f.carrier, "name": f.name, "id": f.id,
            })).collect::<Vec<_>>()),
            "lro": offload("rx-lro"),
            "gro": offload("rx-gro"),
            "gro_hw": offload("rx-gro-hw"),
            "rx_queues": self.channels.map(|channels| channels.rx),
            "tx_queues": self.channels.map(|channels| channels.tx),
            "attached": self.attached.as_ref().map(|(mode, _)| mode),
        })
    }
}

/// Whether the kernel tells what drivers can do: from Linux 6.3 on.
fn tells_xdp_features() -> bool {
    facts::release()
        .ok()
        .and_then(|release| facts::version(&release))
        .is_some_and(|version| version >= [6, 3])
}

/// The link that holds an XDP program on an interface, if one does.
fn xdp_link(ifindex: i32, program: u32) -> Option<u32> {
    let is_it = |info: &LinkTypeInfo| matches!(info, LinkTypeInfo::Xdp(xdp) if xdp.ifindex == ifindex as u32);
    LinkInfoIter::default().find(|link| link.prog_id == program && is_it(&link.info)).map(|l| l.id)
}

/// The tc programs and filters on an interface that are not bmc's; `None` if this process may not
/// ask.
fn foreign(ifindex: i32, ours: &BTreeSet<u32>) -> Option<Vec<Foreign>> {
    let mut all = Vec::new();
    for (side, link_type, parent) in [
        ("ingress", LinkType::TcxIngress, hook::INGRESS),
        ("egress", LinkType::TcxEgress, hook::EGRESS),
    ] {
        let name = |id| sys::prog_name(id).unwrap_or_else(|| "of unknown name".into());
        match sys::tcx(ifindex, link_type) {
            Ok(tcx) => {
                let is_ours = |tcx: &Tcx| ours.contains(&tcx.program);
                // bmc attaches before all others at ingress, behind them at egress.
                let later = if side == "egress" { tcx.len() } else { 0 };
                let at = tcx.iter().position(is_ours).unwrap_or(later);
                for (i, Tcx { program, .. }) in tcx.iter().enumerate() {
                    if !is_ours(&tcx[i]) {
                        let (name, id) = (name(*program), Some(*program));
                        all.push(Foreign { side, carrier: "tcx", name, id, is_first: i < at });
                    }
                }
            }
            Err(err) if err.kind() == std::io::ErrorKind::PermissionDenied => return None,
            Err(_) => {} // the kernel has no tcx
        }
        for filter in netlink::filters(ifindex, parent).ok()? {
            if !filter.program.is_some_and(|id| ours.contains(&id)) {
                let name = filter.program.map_or(filter.kind, name);
                let (carrier, id, is_first) = ("filter", filter.program, false);
                all.push(Foreign { side, carrier, name, id, is_first });
            }
        }
    }
    Some(all)
}

#[cfg(test)]
impl Interface {
    /// An interface with which nothing is wrong.
    pub(crate) fn good() -> Interface {
        Interface {
            bmc: "bmc".into(),
            attach_again: "bmc attach eth0 --replace".into(),
            link: Link {
                name: "eth0".into(),
                is_up: true,
                has_carrier: true,
                mtu: 1500,
                ..Default::default()
            },
            xdp: Some(Xdp { features: Xdp::BASIC, ..Default::default() }),
            drops_replies: Some(false),
            tells_features: true,
            offloads: Some(BTreeSet::new()),
            channels: Some(Channels { rx: 4, rx_max: 4, tx: 4, tx_max: 4, is_combined: true }),
            cpus: 4,
            foreign: Some(Vec::new()),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: i32, name: &str, kind: &str) -> Link {
        let kind = (!kind.is_empty()).then(|| kind.into());
        Link { index, name: name.into(), kind, is_up: true, ..Default::default() }
    }

    fn part(index: i32, name: &str, of: (i32, &str)) -> Link {
        Link { master: Some(of.0), part_of: Some(of.1.into()), ..link(index, name, "") }
    }

    fn on(lower: i32, link: Link) -> Link {
        Link { lower: Some(lower), ..link }
    }

    /// A bond of eth0 and eth1 with a VLAN, a VRF with eth2, a tunnel over eth3, two
    /// ends of a veth.
    fn links() -> Vec<Link> {
        vec![
            link(1, "lo", ""),
            part(2, "eth0", (10, "bond")),
            part(3, "eth1", (10, "bond")),
            part(4, "eth2", (11, "vrf")),
            link(5, "eth3", ""),
            link(10, "bond0", "bond"),
            link(11, "vrf0", "vrf"),
            on(10, link(12, "bond0.5", "vlan")),
            on(5, link(13, "gre1", "gre")),
            on(15, link(14, "veth0", "veth")),
            on(14, link(15, "veth1", "veth")),
        ]
    }

    #[test]
    fn only_true_parts_and_layers_are_told_from_what_is_by_itself() {
        let links = links();
        let placed = |name: &str| {
            let link = links.iter().find(|link| link.name == name).expect("one of them");
            let Interface { master, members, lower, vlan, .. } =
                Interface::placed(link, &links, &[2, 10].into());
            let master = master.map(|master| format!("{} {}", master.name, master.is_named));
            [master, Some(members.join(" ")), lower, vlan].map(Option::unwrap_or_default)
        };
        for (name, expected) in [
            ("eth0", ["bond0 true", "", "", ""]),
            ("eth1", ["bond0 false", "", "", ""]),
            ("bond0", ["", "eth0 eth1", "", "bond0.5"]),
            ("bond0.5", ["", "", "bond0", ""]),
            ("eth2", [""; 4]),
            ("vrf0", [""; 4]),
            ("gre1", [""; 4]),
            ("veth0", [""; 4]),
        ] {
            assert_eq!(placed(name), expected, "{name}");
        }
    }

    #[test]
    fn other_interfaces_are_those_that_share_nothing_with_the_named_ones() {
        let links = links();
        for (named, expected) in [
            (&[5][..], "eth2 bond0 vrf0 gre1 veth0 veth1"),
            (&[2], "eth2 eth3 vrf0 gre1 veth0 veth1"),
            (&[4], "eth3 bond0 gre1 veth0 veth1"),
            (&[12], "eth2 eth3 vrf0 gre1 veth0 veth1"),
            (&[4, 5, 10, 11, 13, 14, 15], ""),
        ] {
            let named = named.iter().copied().collect();
            assert_eq!(others(&named, &links).join(" "), expected, "{named:?}");
        }
    }
}
