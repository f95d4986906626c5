// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The network interfaces: what each can, what it is a part of, and who else is
//! at it.

use std::collections::BTreeSet;
use std::fs;

use libbpf_rs::query::LinkInfoIter;
use libbpf_rs::query::LinkTypeInfo;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;
use serde_json::Value;
use serde_json::json;

use super::Finding;
use super::Findings;
use super::Level;
use super::host;
use crate::attach;
use crate::attach::Conflict;
use crate::hook;
use crate::hook::Device;
use crate::hook::Place;
use crate::instance;
use crate::instance::Instance;
use crate::instance::State;
use crate::kernel;
use crate::kernel::LinkType;
use crate::kernel::Tcx;
use crate::kernel::Xdp;
use crate::netlink;
use crate::netlink::Channels;
use crate::netlink::Link;

/// The largest MTU that any driver takes for programs like bmc's: a page, less
/// 256 bytes of headroom, 320 for what the stack appends, an Ethernet header and
/// two VLAN tags.
const MTU_MAX: u32 = 4096 - 256 - 320 - 14 - 8;

/// The bits of `enum netdev_xdp_act`.
const XDP_FEATURES: [&str; 7] =
    ["basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"];

/// The interfaces that were asked about, or those that are up.
pub(super) struct Interfaces {
    /// Named, but not there.
    missing: Vec<String>,
    /// All there are but the loopback.
    names: Vec<String>,
    found: Vec<Interface>,
    loopback_is_up: bool,
    /// An instance is attached in another network namespace under our name.
    is_elsewhere: Option<String>,
    /// Why they could not be listed.
    error: Option<String>,
}

/// What is known of an interface; None for what could not be seen.
#[derive(Clone, Debug, Default)]
struct Interface {
    link: Link,
    /// Whether it was asked about, so that bmc is to be attached to it.
    is_named: bool,
    driver: Option<String>,
    /// The bond, bridge or the like that it is a part of, and whether that was
    /// named as well.
    master: Option<(String, bool)>,
    /// Its own parts.
    members: Vec<String>,
    /// What lies on it: VLANs and macvlans.
    uppers: Vec<(String, String)>,
    /// What it lies on, or its peer.
    lower: Option<String>,
    xdp: Option<Xdp>,
    /// Whether the kernel tells what the driver can.
    tells_features: bool,
    offloads: Option<BTreeSet<String>>,
    channels: Option<Channels>,
    cpus: u32,
    /// The mode of what is attached under our name, and its state.
    attached: Option<(String, State)>,
    conflict: Option<Conflict>,
    /// The link by which that program is attached.
    conflict_link: Option<u32>,
    /// What others run on it as tc, by side.
    foreign: Option<Vec<Foreign>>,
    /// Whether instances could not be looked at.
    is_hidden: bool,
}

/// Somebody else's tc program or filter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Foreign {
    side: &'static str,
    /// "tcx" or "filter".
    carrier: &'static str,
    name: String,
    id: Option<u32>,
}

impl Interfaces {
    pub(super) fn read(
        named: &[String],
        instance: &str,
        own: Option<&Instance>,
        is_hidden: bool,
    ) -> Self {
        let links = netlink::links();
        let error = links.as_ref().err().map(ToString::to_string);
        let links = links.unwrap_or_default();
        let is_asked = |link: &&Link| {
            if named.is_empty() {
                link.is_up && link.name != "lo"
            } else {
                named.contains(&link.name)
            }
        };
        let all = instance::others("").unwrap_or_default();
        let ours = all.iter().flat_map(programs_of).collect();
        let read = |link: &Link| {
            let mut interface = Interface::read(link, &links, named);
            interface.read_programs(instance, own, &ours);
            Interface { is_hidden, ..interface }
        };
        let is_missing = |name: &&String| !links.iter().any(|link| link.name == **name);
        let is_elsewhere = own.is_some_and(|own| !own.dir.is_here());
        Self {
            missing: named.iter().filter(is_missing).cloned().collect(),
            names: links.iter().map(|l| l.name.clone()).filter(|name| name != "lo").collect(),
            found: links.iter().filter(is_asked).map(read).collect(),
            loopback_is_up: links.iter().any(|link| link.name == "lo" && link.is_up),
            is_elsewhere: is_elsewhere.then(|| instance.into()),
            error,
        }
    }

    pub(super) fn judge(&self) -> Vec<Finding> {
        let mut all = Findings::about("interfaces");
        if let Some(error) = &self.error {
            all.add(Level::Note, "cannot list the network interfaces", error, "ip link");
            return all.all;
        }
        if let Some(name) = &self.is_elsewhere {
            all.add(
                Level::Blocker,
                format!("bmc's instance {name} is attached in another network namespace"),
                format!("/sys/fs/bpf/bmc/{name}/netns"),
                format!("bmc --instance OTHER attach IFACE   # or bmc --instance {name} detach"),
            );
        }
        if self.found.is_empty() && self.missing.is_empty() {
            all.add(
                Level::Warning,
                "there is no network interface that is up but lo",
                "rtnetlink",
                "ip link set dev IFACE up",
            );
        }
        let mut findings = all.all;
        for name in &self.missing {
            let mut missing = Findings::about(name);
            let (there, remedy) = match &self.names[..] {
                [] => ("there is none but lo".into(), "nsenter --net=/run/netns/NAME bmc doctor"),
                names => (format!("there are: {}", names.join(", ")), "ip link   # lists them"),
            };
            missing.add(Level::Blocker, "no such interface", there, remedy);
            findings.extend(missing.all);
        }
        findings.extend(self.found.iter().flat_map(Interface::judge));
        if self.loopback_is_up {
            let mut loopback = Findings::about("lo");
            loopback.ok("will be watched for writes, and never served", "rtnetlink: up");
            findings.extend(loopback.all);
        }
        findings
    }

    pub(super) fn json(&self) -> Value {
        self.found.iter().map(Interface::json).collect()
    }
}

impl Interface {
    fn read(link: &Link, links: &[Link], named: &[String]) -> Self {
        let name_of = |index: i32| links.iter().find(|l| l.index == index).map(|l| l.name.clone());
        let members = links.iter().filter(|l| l.master == Some(link.index));
        let uppers = links.iter().filter(|l| l.lower == Some(link.index));
        let driver = link.device.as_ref().and_then(|(bus, device)| {
            let driver = fs::read_link(format!("/sys/bus/{bus}/devices/{device}/driver")).ok()?;
            Some(driver.file_name()?.to_string_lossy().into_owned())
        });
        Self {
            link: link.clone(),
            is_named: named.contains(&link.name),
            driver: driver.or_else(|| link.kind.clone()),
            master: link
                .master
                .and_then(name_of)
                .map(|name| (name.clone(), named.contains(&name) && named.contains(&link.name))),
            members: members.map(|l| l.name.clone()).collect(),
            uppers: uppers.filter_map(|l| Some((l.name.clone(), l.kind.clone()?))).collect(),
            lower: link.lower.and_then(name_of),
            xdp: kernel::xdp(link.index).ok(),
            tells_features: host::tells_xdp_features(),
            offloads: netlink::offloads(link.index).ok(),
            channels: netlink::channels(link.index).ok(),
            cpus: sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1) as u32,
            ..Default::default()
        }
    }

    /// Whose programs are there, if it is for us to ask.
    fn read_programs(&mut self, instance: &str, own: Option<&Instance>, ours: &BTreeSet<u32>) {
        let Link { name, index, .. } = &self.link;
        let own = own.filter(|own| own.dir.is_here());
        self.attached = own.and_then(|own| {
            let attached = own.interfaces().ok()?.into_iter().find(|i| i.name == *name)?;
            Some((attached.mode.to_string(), attached.state))
        });
        let device = Device::new(name.clone(), *index);
        self.conflict = [Place::Ingress, Place::Native]
            .into_iter()
            .find_map(|place| attach::conflict(&device, place, instance, own).ok().flatten());
        if let Some(Conflict::Program { id, .. }) = self.conflict {
            self.conflict_link = xdp_link(*index, id);
        }
        self.foreign = foreign(*index, ours);
    }

    fn judge(&self) -> Vec<Finding> {
        let mut findings = Findings::about(&self.link.name);
        self.judge_state(&mut findings);
        self.judge_xdp(&mut findings);
        if self.may_have_xdp() {
            self.judge_frames(&mut findings);
            self.judge_veth(&mut findings);
        }
        self.judge_queues(&mut findings);
        self.judge_place(&mut findings);
        self.judge_programs(&mut findings);
        findings.all
    }

    fn judge_state(&self, findings: &mut Findings) {
        let name = &self.link.name;
        let driver = self.driver.as_deref().unwrap_or("unknown");
        if !self.link.is_up {
            findings.add(
                Level::Warning,
                "is down",
                "rtnetlink: no IFF_UP",
                format!("ip link set dev {name} up"),
            );
        } else if !self.link.has_carrier {
            findings.add(
                Level::Warning,
                "has no carrier",
                "rtnetlink: no IFF_LOWER_UP",
                format!("ip link show dev {name}   # see to its cable or peer"),
            );
        } else {
            findings.ok("is up", format!("rtnetlink: driver {driver}, MTU {}", self.link.mtu));
        }
    }

    /// Whether native XDP will be tried with some hope.
    fn may_have_xdp(&self) -> bool {
        !self.tells_features || self.has_feature(Xdp::BASIC)
    }

    fn has_feature(&self, feature: u64) -> bool {
        self.xdp.as_ref().is_some_and(|xdp| xdp.features & feature != 0)
    }

    fn features(&self) -> Vec<&'static str> {
        let features = self.xdp.as_ref().map_or(0, |xdp| xdp.features);
        let has = |(bit, name)| (features & (1_u64 << bit) != 0).then_some(name);
        XDP_FEATURES.into_iter().enumerate().filter_map(has).collect()
    }

    fn judge_xdp(&self, findings: &mut Findings) {
        let name = &self.link.name;
        if !self.tells_features || self.xdp.is_none() {
            findings.add(
                Level::Note,
                "it is unknown whether its driver has native XDP; without it bmc answers as tc",
                "Linux tells from 6.3 on",
                format!("bmc attach {name} && bmc status   # shows the mode that it came to"),
            );
        } else if self.has_feature(Xdp::BASIC) {
            findings.ok(
                "its driver has native XDP",
                format!("netdev xdp-features: {}", self.features().join(" ")),
            );
        } else {
            findings.add(
                Level::Note,
                "its driver has no native XDP: bmc will answer as tc, behind the driver",
                format!(
                    "netdev xdp-features of {}: no basic",
                    self.driver.as_deref().unwrap_or("it")
                ),
                match &self.lower {
                    Some(lower) if self.link.kind.as_deref() != Some("veth") => {
                        format!("bmc attach {lower}   # which it lies on")
                    }
                    _ => format!("bmc attach {name} --mode tc   # is what --mode auto comes to"),
                },
            );
        }
    }

    fn has_offload(&self, offload: &str) -> bool {
        self.offloads.as_ref().is_some_and(|offloads| offloads.contains(offload))
    }

    /// What keeps drivers from XDP although they have it.
    fn judge_frames(&self, findings: &mut Findings) {
        let Link { name, mtu, .. } = &self.link;
        if *mtu > MTU_MAX {
            findings.add(
                Level::Warning,
                "its frames may not fit into a page, as native XDP wants them: most drivers refuse, \
                 and bmc answers as tc",
                format!("rtnetlink: MTU {mtu}"),
                format!("ip link set dev {name} mtu {MTU_MAX}"),
            );
        }
        for (feature, offload, title) in
            [("rx-lro", "lro", "LRO"), ("rx-gro-hw", "rx-gro-hw", "hardware GRO")]
        {
            if self.has_offload(feature) {
                findings.add(
                    Level::Warning,
                    format!("{title} is on, with which some drivers refuse native XDP"),
                    format!("ethtool -k: {feature} on"),
                    format!("ethtool -K {name} {offload} off"),
                );
            }
        }
        let has_vlan = self.uppers.iter().any(|(_, kind)| kind == "vlan");
        if has_vlan && self.has_offload("rx-vlan-hw-parse") {
            findings.add(
                Level::Warning,
                "it takes VLAN tags off before XDP sees them: what bmc answers to them goes out \
                 without",
                "ethtool -k: rx-vlan-hw-parse on",
                format!("ethtool -K {name} rxvlan off"),
            );
        }
    }

    /// A veth's peer drops what XDP sends it unless it has XDP or GRO itself.
    fn judge_veth(&self, findings: &mut Findings) {
        if self.link.kind.as_deref() != Some("veth") {
            return;
        }
        let name = &self.link.name;
        let remedy =
            format!("bmc attach {name} --mode tc   # or, at its peer: ethtool -K PEER gro on");
        if !self.tells_features {
            findings.add(
                Level::Warning,
                "is a veth: its peer may drop what XDP sends, and Linux tells from 6.3 on only",
                "rtnetlink: a veth",
                remedy,
            );
        } else if self.has_feature(Xdp::TRANSMIT) {
            findings.ok("its peer takes what XDP sends", "netdev xdp-features: ndo-xmit");
        } else {
            // Of the many veths of a host with containers, few are meant.
            findings.add(
                if self.is_named { Level::Blocker } else { Level::Warning },
                "its peer drops what XDP sends: clients would get no replies",
                "netdev xdp-features: no ndo-xmit, of a veth",
                remedy,
            );
        }
    }

    fn judge_queues(&self, findings: &mut Findings) {
        let (Some(channels), name) = (self.channels, &self.link.name) else { return };
        let Channels { rx, rx_max, tx, tx_max, is_combined } = channels;
        let cpus = self.cpus;
        let evidence = format!("ethtool -l: {rx} of {rx_max} receive, {tx} of {tx_max} send");
        let [could_rx, could_tx] = [(rx, rx_max), (tx, tx_max)].map(|(is, max)| max.min(cpus) > is);
        let wanted = |max: u32| max.min(cpus);
        if could_rx || could_tx {
            let remedy = if is_combined {
                format!("ethtool -L {name} combined {}", wanted(rx_max.max(tx_max)))
            } else {
                format!("ethtool -L {name} rx {} tx {}", wanted(rx_max), wanted(tx_max))
            };
            let what = format!(
                "has fewer queues than it could have for {cpus} CPUs: bmc answers on as many CPUs \
                 as queues receive"
            );
            findings.add(Level::Note, what, evidence, remedy);
        } else {
            findings.ok(format!("has the queues that it can have for {cpus} CPUs"), evidence);
        }
    }

    /// What it is a part of, or made of.
    fn judge_place(&self, findings: &mut Findings) {
        let Link { name, kind, part_of, .. } = &self.link;
        let part_of = part_of.as_deref().unwrap_or("group");
        if let Some((master, is_named_too)) = &self.master {
            let evidence = format!("rtnetlink: IFLA_MASTER {master}");
            let remedy = format!("bmc attach {master}   # without {name}");
            if *is_named_too {
                findings.add(
                    Level::Warning,
                    format!(
                        "is part of the {part_of} {master}, which is named too: what comes by \
                             twice empties the cache"
                    ),
                    evidence,
                    remedy,
                );
            } else {
                findings.add(
                    Level::Note,
                    format!(
                        "is part of the {part_of} {master}: attach to that, or to all its \
                             parts, but not to both"
                    ),
                    evidence,
                    remedy,
                );
            }
        }
        let kind = kind.as_deref().unwrap_or_default();
        if !self.members.is_empty() {
            findings.add(
                Level::Note,
                format!(
                    "is made of {}: attach to it, or to them, but not to both",
                    self.members.join(", ")
                ),
                format!("rtnetlink: a {kind}"),
                format!("bmc attach {name}   # without {}", self.members.join(" ")),
            );
        }
        if let (Some(lower), true) = (&self.lower, kind != "veth" && !kind.is_empty()) {
            findings.add(
                Level::Note,
                format!("is a {kind} on {lower}: attach to one of the two, but not to both"),
                format!("rtnetlink: IFLA_LINK {lower}"),
                format!("bmc attach {lower}   # without {name}"),
            );
        }
    }

    /// Whose programs are there.
    fn judge_programs(&self, findings: &mut Findings) {
        let name = &self.link.name;
        match &self.attached {
            Some((mode, State::Up)) => {
                findings.ok(format!("bmc is attached ({mode})"), "/sys/fs/bpf/bmc");
            }
            Some((_, state)) => findings.add(
                Level::Warning,
                format!("bmc is attached, but {state}"),
                "/sys/fs/bpf/bmc: a program is not where it was put",
                format!("bmc attach {name} --replace"),
            ),
            None => {}
        }
        match &self.conflict {
            Some(conflict @ Conflict::Instance(other)) => findings.add(
                Level::Blocker,
                conflict.to_string(),
                format!("/sys/fs/bpf/bmc/{other}"),
                format!("bmc --instance {other} detach {name}"),
            ),
            Some(conflict @ Conflict::Program { id, .. }) => {
                let removal = match self.conflict_link {
                    Some(link) => format!("bpftool link detach id {link}"),
                    None => format!("ip link set dev {name} xdp off"),
                };
                findings.add(
                    Level::Blocker,
                    conflict.to_string(),
                    format!("rtnetlink: IFLA_XDP program {id}"),
                    format!("{removal}   # ask whose it is first, or: bmc attach {name} --mode tc"),
                );
            }
            None => {}
        }
        let programs = self.xdp.iter().flat_map(|xdp| &xdp.programs);
        for id in programs.filter(|_| self.is_hidden) {
            findings.add(
                Level::Note,
                format!("has the XDP program {id}, which may be another's"),
                "rtnetlink: IFLA_XDP; /sys/fs/bpf/bmc is for root",
                format!("sudo bmc doctor {name}"),
            );
        }
        if self.is_hidden || self.foreign.is_none() {
            findings.add(
                Level::Note,
                "cannot see what is attached as tc, or by bmc",
                "/sys/fs/bpf/bmc and BPF_PROG_QUERY are for root",
                format!("sudo bmc doctor {name}"),
            );
        }
        for Foreign { side, carrier, name: program, id } in self.foreign.iter().flatten() {
            let id = id.map(|id| format!(" (id {id})")).unwrap_or_default();
            findings.add(
                Level::Note,
                format!(
                    "has the {carrier} {program}{id} at {side}: what bmc answers does not get there"
                ),
                format!(
                    "{} of {name}, {side}",
                    if *carrier == "tcx" { "BPF_PROG_QUERY" } else { "RTM_GETTFILTER" }
                ),
                format!("bpftool net show dev {name}   # fine if it does without those packets"),
            );
        }
    }

    fn json(&self) -> Value {
        let offload = |name: &str| self.offloads.as_ref().map(|offloads| offloads.contains(name));
        let program = |id: &u32| json!({ "id": id, "name": kernel::prog_name(*id) });
        json!({
            "name": self.link.name,
            "index": self.link.index,
            "up": self.link.is_up,
            "carrier": self.link.has_carrier,
            "mtu": self.link.mtu,
            "driver": self.driver,
            "kind": self.link.kind,
            "master": self.master.as_ref().map(|(name, _)| name),
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

/// The programs that an instance runs.
fn programs_of(instance: &Instance) -> Vec<u32> {
    let (owner, links) = (instance.dir.owner(), instance.dir.links());
    let hooks = instance.hooks().unwrap_or_default();
    hooks.iter().filter_map(|hook| hook.program_id(owner, &links)).collect()
}

/// The link that holds an XDP program on an interface, if one does.
fn xdp_link(ifindex: i32, program: u32) -> Option<u32> {
    let is_it = |info: &LinkTypeInfo| matches!(info, LinkTypeInfo::Xdp(xdp) if xdp.ifindex == ifindex as u32);
    LinkInfoIter::default().find(|link| link.prog_id == program && is_it(&link.info)).map(|l| l.id)
}

/// What runs on an interface as tc and is no bmc's; None if we may not ask.
fn foreign(ifindex: i32, ours: &BTreeSet<u32>) -> Option<Vec<Foreign>> {
    let mut all = Vec::new();
    for (side, link_type, parent) in [
        ("ingress", LinkType::TcxIngress, hook::INGRESS),
        ("egress", LinkType::TcxEgress, hook::EGRESS),
    ] {
        let name = |id| kernel::prog_name(id).unwrap_or_else(|| "of unknown name".into());
        match kernel::tcx(ifindex, link_type) {
            Ok(tcx) => {
                for Tcx { program, .. } in tcx.iter().filter(|tcx| !ours.contains(&tcx.program)) {
                    let (name, id) = (name(*program), Some(*program));
                    all.push(Foreign { side, carrier: "tcx", name, id });
                }
            }
            Err(err) if err.kind() == std::io::ErrorKind::PermissionDenied => return None,
            Err(_) => {} // the kernel has no tcx
        }
        for filter in netlink::filters(ifindex, parent).ok()? {
            if !filter.program.is_some_and(|id| ours.contains(&id)) {
                let name = filter.program.map_or(filter.kind, name);
                all.push(Foreign { side, carrier: "filter", name, id: filter.program });
            }
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Interface {
        Interface {
            link: Link {
                name: "eth0".into(),
                is_up: true,
                has_carrier: true,
                mtu: 1500,
                ..Default::default()
            },
            xdp: Some(Xdp { features: Xdp::BASIC, ..Default::default() }),
            tells_features: true,
            offloads: Some(BTreeSet::new()),
            channels: Some(Channels { rx: 4, rx_max: 4, tx: 4, tx_max: 4, is_combined: true }),
            cpus: 4,
            foreign: Some(Vec::new()),
            ..Default::default()
        }
    }

    /// What is said of an interface that differs from a good one by this.
    fn said(change: impl Fn(&mut Interface)) -> Vec<Finding> {
        let mut interface = good();
        change(&mut interface);
        interface.judge().into_iter().filter(|finding| finding.level != Level::Ok).collect()
    }

    #[track_caller]
    fn says(level: Level, what: &str, remedy: &str, change: impl Fn(&mut Interface)) {
        let said = said(change);
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(said[0].level, level, "{said:?}");
        assert!(said[0].what.contains(what), "{said:?}");
        assert_eq!(said[0].remedy.as_deref(), Some(remedy), "{said:?}");
    }

    #[test]
    fn nothing_is_wrong_with_a_good_interface() {
        assert_eq!(said(|_| ()), []);
        assert_eq!(said(|i| i.link.mtu = 3498), []);
        // More queues than CPUs are of no more use.
        assert_eq!(
            said(|i| i.channels =
                Some(Channels { rx_max: 8, tx_max: 8, ..i.channels.unwrap_or_default() })),
            []
        );
        assert_eq!(said(|i| i.channels = None), []);
        // Nobody needs the tags.
        assert_eq!(said(|i| i.offloads = Some(["rx-vlan-hw-parse".into()].into())), []);
    }

    #[test]
    fn judges_what_no_interface_of_this_machine_is() {
        use Level::Blocker;
        use Level::Note;
        use Level::Warning;

        says(Warning, "LRO is on", "ethtool -K eth0 lro off", |i| {
            i.offloads = Some(["rx-lro".into()].into());
        });
        says(Warning, "hardware GRO is on", "ethtool -K eth0 rx-gro-hw off", |i| {
            i.offloads = Some(["rx-gro-hw".into()].into());
        });
        says(Warning, "takes VLAN tags off", "ethtool -K eth0 rxvlan off", |i| {
            i.offloads = Some(["rx-vlan-hw-parse".into()].into());
            i.uppers = vec![("eth0.5".into(), "vlan".into())];
        });
        says(Warning, "may not fit into a page", "ip link set dev eth0 mtu 3498", |i| {
            i.link.mtu = 3499;
        });
        says(Note, "fewer queues", "ethtool -L eth0 combined 4", |i| {
            i.channels = Some(Channels { rx: 1, rx_max: 8, tx: 1, tx_max: 8, is_combined: true });
        });
        let unknown = "bmc attach eth0 && bmc status   # shows the mode that it came to";
        says(Note, "it is unknown whether", unknown, |i| i.tells_features = false);
        // Native XDP is out of the question, and so is what is in its way.
        let tc = "bmc attach eth0 --mode tc   # is what --mode auto comes to";
        says(Note, "has no native XDP", tc, |i| {
            i.xdp = Some(Xdp::default());
            i.link.mtu = 9000;
        });
        says(Note, "is a vlan on eth1", "bmc attach eth1   # without eth0", |i| {
            i.link.kind = Some("vlan".into());
            i.lower = Some("eth1".into());
        });
        says(Note, "is part of the bond bond0", "bmc attach bond0   # without eth0", |i| {
            i.link.part_of = Some("bond".into());
            i.master = Some(("bond0".into(), false));
        });
        let veth = |i: &mut Interface| i.link.kind = Some("veth".into());
        let tc = "bmc attach eth0 --mode tc   # or, at its peer: ethtool -K PEER gro on";
        says(Warning, "its peer drops what XDP sends", tc, veth);
        says(Blocker, "its peer drops what XDP sends", tc, |i| {
            veth(i);
            i.is_named = true;
        });
        assert!(said(|i| (veth(i), i.tells_features = false).1).iter().any(|finding| {
            finding.level == Warning && finding.what.contains("its peer may drop")
        }));
    }
}
