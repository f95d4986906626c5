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
use super::Patient;
use super::bmc;
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
use crate::kernel::XdpProgram;
use crate::netlink;
use crate::netlink::Channels;
use crate::netlink::Link;
use crate::system;

/// The largest MTU that any driver takes for programs like bmc's: a page, less
/// 256 bytes of headroom, 320 for what the stack appends, an Ethernet header and
/// two VLAN tags.
const MTU_MAX: u32 = 4096 - 256 - 320 - 14 - 8;

/// The bits of `enum netdev_xdp_act`.
const XDP_FEATURES: [&str; 7] =
    ["basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"];

/// What interfaces are made of others, and what interfaces lie on another.
const GROUPS: [&str; 3] = ["bond", "team", "bridge"];
const LAYERS: [&str; 4] = ["vlan", "macvlan", "macvtap", "ipvlan"];

/// Drivers that give XDP half of the queues, and refuse it while more are in use.
const HALVERS: [&str; 2] = ["ena", "gve"];

/// The interfaces that were asked about, or those that are up.
pub(super) struct Interfaces {
    /// How a command about the instance starts.
    bmc: String,
    instance: String,
    /// Named, but not there, and why.
    missing: Vec<(String, String)>,
    found: Vec<Interface>,
    /// What else is up, for all that was named, and the command that attaches to it too.
    others: Vec<String>,
    attach_others: String,
    loopback_is_up: bool,
    /// Whether the loopback is watched; None if nothing is attached.
    loopback_is_watched: Option<bool>,
    attach_again: String,
    is_elsewhere: bool,
    is_idle: bool,
    /// Why they could not be listed.
    error: Option<String>,
}

/// What is known of an interface; None for what could not be seen.
#[derive(Clone, Debug, Default)]
struct Interface {
    link: Link,
    /// How a command about the instance starts, and the one that attaches it again.
    bmc: String,
    attach_again: String,
    /// Whether it was asked about, so that bmc is to be attached to it.
    is_named: bool,
    driver: Option<String>,
    master: Option<Master>,
    /// Its own parts.
    members: Vec<String>,
    /// A VLAN that lies on it.
    vlan: Option<String>,
    /// What it lies on.
    lower: Option<String>,
    /// Something above it that has an XDP program, and whether that is bmc's.
    xdp_above: Option<(String, bool)>,
    xdp: Option<Xdp>,
    /// See [`Link::drops_replies`].
    drops_replies: Option<bool>,
    /// Whether the kernel tells what the driver can.
    tells_features: bool,
    offloads: Option<BTreeSet<String>>,
    channels: Option<Channels>,
    cpus: u32,
    /// The mode of what is attached under our name, and its state.
    attached: Option<(&'static str, State)>,
    conflict: Option<Conflict>,
    /// Whether what is attached under our name would be moved here.
    is_wanted: bool,
    /// The link by which that program is attached.
    conflict_link: Option<u32>,
    /// What others run on it as tc, by side.
    foreign: Option<Vec<Foreign>>,
}

/// The bond, bridge or the like that an interface is a part of.
#[derive(Clone, Debug, Default)]
struct Master {
    name: String,
    /// Whether both were named.
    is_named: bool,
    /// Whether native XDP will be tried there with some hope.
    may_have_xdp: bool,
}

/// Somebody else's tc program or filter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Foreign {
    side: &'static str,
    /// "tcx" or "filter".
    carrier: &'static str,
    name: String,
    id: Option<u32>,
    /// Whether it sees packets before bmc does, and may keep them.
    is_first: bool,
}

/// The bond, bridge or the like that an interface is a part of.
fn group(link: &Link) -> Option<i32> {
    link.master.filter(|_| link.part_of.as_deref().is_some_and(|kind| GROUPS.contains(&kind)))
}

/// What an interface lies on.
fn lower(link: &Link) -> Option<i32> {
    link.lower.filter(|_| link.kind.as_deref().is_some_and(|kind| LAYERS.contains(&kind)))
}

/// The interface by which the packets of this one come last, or first.
fn root<'a>(mut link: &'a Link, links: &'a [Link]) -> i32 {
    let by = |link: &Link| group(link).or(lower(link));
    while let Some(next) = by(link).and_then(|index| links.iter().find(|l| l.index == index)) {
        link = next;
    }
    link.index
}

/// What is up, and has nothing to do with these interfaces.
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
    pub(super) fn read(asked: &[String], patient: &Patient<'_>) -> Self {
        let links = netlink::links();
        let error = links.as_ref().err().map(ToString::to_string);
        let links = links.unwrap_or_default();
        let (mut named, mut missing) = (BTreeSet::new(), Vec::new());
        for name in asked {
            match system::interface(name) {
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
        let all = instance::others("").unwrap_or_default();
        let ours = all.iter().flat_map(programs_of).collect();
        let found: Vec<_> = links
            .iter()
            .filter(is_asked)
            .map(|link| Interface::read(link, &links, &named, &ours, patient))
            .collect();
        let own = patient.own.as_ref();
        // To whoever has another instance there, that is for its doctor to tell.
        let is_anothers = |i: &Interface| matches!(i.conflict, Some(Conflict::Instance(_)));
        let mut others = if named.is_empty() || found.iter().any(is_anothers) {
            Vec::new()
        } else {
            others(&named, &links)
        };
        others.retain(|name| !patient.attached.iter().any(|attached| attached.name == *name));
        let mut wanted: Vec<_> =
            found.iter().map(|interface| interface.link.name.clone()).collect();
        wanted.extend(others.iter().cloned());
        let when = "if memcached's clients come in there too";
        Self {
            bmc: patient.bmc.clone(),
            instance: patient.name.into(),
            missing,
            found,
            others,
            attach_others: patient.attach(&wanted, Some(when)),
            loopback_is_up: links.iter().any(|link| link.name == "lo" && link.is_up),
            loopback_is_watched: own.and_then(|own| own.watches_loopback().ok()),
            attach_again: patient.attach(&[], Some("without --no-loopback")),
            is_elsewhere: patient.is_elsewhere,
            is_idle: own.is_some_and(|own| own.is_idle().unwrap_or_default()),
            error,
        }
    }

    /// `everywhere` says whether a memcached listens on all addresses.
    pub(super) fn judge(&self, everywhere: bool) -> Vec<Finding> {
        let mut all = Findings::about("interfaces");
        if let Some(error) = &self.error {
            all.add(Level::Note, "cannot list the network interfaces", error, "ip link");
            return all.all;
        }
        let (bmc, name) = (&self.bmc, &self.instance);
        if self.is_elsewhere {
            all.add(
                Level::Blocker,
                format!("bmc's instance {name} is attached in another network namespace"),
                format!("/sys/fs/bpf/bmc/{name}/netns"),
                format!("bmc --instance OTHER attach IFACE   # or {bmc} detach"),
            );
        }
        if self.is_idle {
            all.add(
                Level::Warning,
                "bmc idles: an attach or detach was interrupted",
                format!("/sys/fs/bpf/bmc/{name}/global"),
                format!("{bmc} flush"),
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
        if everywhere && !self.others.is_empty() {
            let list = self.others.join(", ");
            all.add(
                Level::Note,
                format!("what is written to memcached by {list} is not seen"),
                "rtnetlink: up; memcached listens on all addresses",
                &self.attach_others,
            );
        }
        let mut findings = all.all;
        for (name, why) in &self.missing {
            let mut missing = Findings::about(name);
            let remedy =
                format!("ip link   # or nsenter --net=/run/netns/NAME {bmc} doctor {name}");
            missing.add(Level::Blocker, why, "if_nametoindex", remedy);
            findings.extend(missing.all);
        }
        findings.extend(self.found.iter().flat_map(Interface::judge));
        if self.loopback_is_up {
            let mut loopback = Findings::about("lo");
            match self.loopback_is_watched {
                Some(false) => loopback.add(
                    Level::Note,
                    "is not watched: what is written on this machine is not seen",
                    format!("/sys/fs/bpf/bmc/{name}/links"),
                    &self.attach_again,
                ),
                is_watched => {
                    let when = if is_watched.is_some() { "is" } else { "will be" };
                    let what = format!("{when} watched for writes, and never served");
                    loopback.ok(what, "rtnetlink: up");
                }
            }
            findings.extend(loopback.all);
        }
        findings
    }

    pub(super) fn json(&self) -> Value {
        self.found.iter().map(Interface::json).collect()
    }
}

impl Interface {
    fn read(
        link: &Link,
        links: &[Link],
        named: &BTreeSet<i32>,
        ours: &BTreeSet<u32>,
        patient: &Patient<'_>,
    ) -> Self {
        let driver = link.device.as_ref().and_then(|(bus, device)| {
            let driver = fs::read_link(format!("/sys/bus/{bus}/devices/{device}/driver")).ok()?;
            Some(driver.file_name()?.to_string_lossy().into_owned())
        });
        let tells_features = host::tells_xdp_features();
        let is_above = |l: &&Link| link.master == Some(l.index) || lower(l) == Some(link.index);
        let xdp_above = links.iter().filter(is_above).find_map(|above| {
            let programs = kernel::xdp(above.index).ok()?.programs;
            Some((above.name.clone(), ours.contains(&programs.first()?.id)))
        });
        let placed = Self::placed(link, links, named);
        let master_xdp = group(link).and_then(|index| kernel::xdp(index).ok());
        let may_have_xdp = |xdp: Xdp| !tells_features || xdp.features & Xdp::BASIC != 0;
        let mut interface = Self {
            bmc: patient.bmc.clone(),
            attach_again: patient.attach(&[], None),
            driver: driver.or_else(|| link.kind.clone()),
            xdp_above,
            master: placed.master.map(|master| Master {
                may_have_xdp: master_xdp.is_some_and(may_have_xdp),
                ..master
            }),
            xdp: kernel::xdp(link.index).ok(),
            drops_replies: link.drops_replies(),
            tells_features,
            offloads: netlink::offloads(link.index).ok(),
            channels: netlink::channels(link.index).ok(),
            cpus: sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1) as u32,
            ..placed
        };
        interface.read_programs(ours, patient);
        interface
    }

    /// What it has to do with the others.
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

    /// Whose programs are there, if it is for us to ask.
    fn read_programs(&mut self, ours: &BTreeSet<u32>, patient: &Patient<'_>) {
        let Link { name, index, .. } = &self.link;
        let own = patient.own.as_ref();
        let attached = patient.attached.iter().find(|attached| attached.name == *name);
        self.attached = attached.map(|attached| (attached.mode, attached.state));
        self.is_wanted = own.is_some() && self.is_named;
        let device = Device::new(name.clone(), *index);
        self.conflict = [Place::Ingress, Place::Native]
            .into_iter()
            .find_map(|place| attach::conflict(&device, place, patient.name, own).ok().flatten());
        if let Some(Conflict::Program { program, .. }) = &self.conflict {
            self.conflict_link = xdp_link(*index, program.id);
        }
        // Which are bmc's is as hidden as what they are.
        self.foreign = if patient.is_hidden { None } else { foreign(*index, ours) };
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

    /// Whether `--mode auto` will try it.
    fn tries_xdp(&self) -> bool {
        self.may_have_xdp() && self.drops_replies == Some(false)
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
        let (name, bmc) = (&self.link.name, &self.bmc);
        if !self.tells_features || self.xdp.is_none() {
            findings.add(
                Level::Note,
                "it is unknown whether its driver has native XDP; without it bmc answers as tc",
                "Linux tells from 6.3 on",
                format!("{bmc} attach {name} && {bmc} status   # shows the mode that it came to"),
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
                    Some(lower) => format!("{bmc} attach {lower}   # which it lies on"),
                    None => format!("{bmc} attach {name} --mode tc   # is what auto comes to"),
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
                format!(
                    "{} attach {name} --mode tc   # what auto comes to; or, if all hosts of its \
                     network have it: ip link set dev {name} mtu {MTU_MAX}",
                    self.bmc
                ),
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
        if let (Some(vlan), true) = (&self.vlan, self.has_offload("rx-vlan-hw-parse")) {
            findings.add(
                Level::Note,
                "it takes VLAN tags off, so that XDP does not see them: bmc answers those as tc",
                format!("ethtool -k: rx-vlan-hw-parse on; {vlan} lies on it"),
                format!("ethtool -K {name} rxvlan off"),
            );
        }
    }

    fn judge_veth(&self, findings: &mut Findings) {
        if self.link.kind.as_deref() != Some("veth") {
            return;
        }
        let evidence = "rtnetlink: a veth";
        let (does, level) = match self.drops_replies {
            Some(false) => {
                findings.ok("its peer takes what XDP sends", "rtnetlink: it has an XDP program");
                return;
            }
            Some(true) => ("drops", Level::Blocker),
            None => ("may drop", Level::Warning),
        };
        let is_native = self.attached.as_ref().is_some_and(|(mode, _)| *mode == "native");
        let what = format!("its peer {does} what XDP sends");
        if is_native {
            let remedy = self.attach_again.replace(" --replace", " --replace --mode tc");
            findings.add(level, format!("{what}: clients get no replies"), evidence, remedy);
        } else {
            findings.ok(format!("{what}: bmc answers as tc, which costs no more there"), evidence);
        }
    }

    fn judge_queues(&self, findings: &mut Findings) {
        let (Some(channels), name, cpus) = (self.channels, &self.link.name, self.cpus) else {
            return;
        };
        let Channels { rx, rx_max, tx, tx_max, is_combined } = channels;
        let halves = self.driver.as_deref().is_some_and(|driver| HALVERS.contains(&driver));
        let most = if halves { [rx_max.min(tx_max) / 2; 2] } else { [rx_max, tx_max] };
        let [most_rx, most_tx] = most.map(|max| max.min(cpus));
        let evidence = format!("ethtool -l: {rx} of {rx_max} receive, {tx} of {tx_max} send");
        let remedy = if is_combined {
            format!("ethtool -L {name} combined {}", most_rx.max(most_tx))
        } else {
            format!("ethtool -L {name} rx {most_rx} tx {most_tx}")
        };
        if halves && (rx > most[0] || tx > most[1]) {
            findings.add(
                Level::Warning,
                "its driver keeps half of its queues for XDP and refuses it now",
                evidence,
                remedy,
            );
        } else if most_rx > rx || most_tx > tx {
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
        let (Link { name, kind, part_of, .. }, bmc) = (&self.link, &self.bmc);
        let kind = kind.as_deref().unwrap_or_default();
        if let Some(Master { name: master, is_named, may_have_xdp }) = &self.master {
            let part_of = part_of.as_deref().unwrap_or_default();
            let (level, so) = match is_named {
                true if *may_have_xdp && self.tries_xdp() => (
                    Level::Blocker,
                    ", which is named too: only one of them can have native XDP, and what comes by \
                     twice empties the cache",
                ),
                true => {
                    (Level::Warning, ", which is named too: what comes by twice empties the cache")
                }
                false => (Level::Note, ": attach to that, or to all its parts, but not to both"),
            };
            findings.add(
                level,
                format!("is part of the {part_of} {master}{so}"),
                format!("rtnetlink: IFLA_MASTER {master}"),
                format!("{bmc} attach {master}   # without {name}"),
            );
        }
        if !self.members.is_empty() {
            findings.add(
                Level::Note,
                format!(
                    "is made of {}: attach to it, or to them, but not to both",
                    self.members.join(", ")
                ),
                format!("rtnetlink: a {kind}"),
                format!("{bmc} attach {name}   # without {}", self.members.join(" ")),
            );
        }
        if let Some(lower) = &self.lower {
            findings.add(
                Level::Note,
                format!("is a {kind} on {lower}: attach to one of the two, but not to both"),
                format!("rtnetlink: IFLA_LINK {lower}"),
                format!("{bmc} attach {lower}   # without {name}"),
            );
        }
        // Of interfaces that nobody has named, few are meant.
        if let (Some((above, is_ours)), true, None) =
            (&self.xdp_above, self.is_named && self.tries_xdp(), &self.attached)
        {
            findings.add(
                Level::Blocker,
                format!("cannot have XDP while {above}, which is above it, has an XDP program"),
                format!("rtnetlink: IFLA_XDP of {above}"),
                if *is_ours {
                    format!("{bmc} doctor {above}   # instead: bmc is attached there")
                } else {
                    format!("{bmc} attach {name} --mode tc   # or to {above}, without that program")
                },
            );
        }
    }

    /// Whose programs are there.
    fn judge_programs(&self, findings: &mut Findings) {
        let (name, bmc) = (&self.link.name, &self.bmc);
        match &self.attached {
            Some((mode, State::Up)) => {
                findings.ok(format!("bmc is attached ({mode})"), "/sys/fs/bpf/bmc");
            }
            Some((_, state)) => findings.add(
                Level::Warning,
                format!("bmc is attached, but {state}"),
                "/sys/fs/bpf/bmc: a program is not where it was put",
                &self.attach_again,
            ),
            None => {}
        }
        match &self.conflict {
            Some(conflict @ Conflict::Instance(other)) => {
                let (level, verb) = if self.is_wanted {
                    (Level::Blocker, "detach")
                } else {
                    (Level::Note, "doctor")
                };
                findings.add(
                    level,
                    conflict.to_string(),
                    format!("/sys/fs/bpf/bmc/{other}"),
                    format!("{} {verb} {name}", self::bmc(other)),
                );
            }
            Some(conflict @ Conflict::Program { program, .. }) => {
                let removal = match self.conflict_link {
                    Some(link) => format!("bpftool link detach id {link}"),
                    None => format!("ip link set dev {name} {} off", program.mode),
                };
                findings.add(
                    // As tc, bmc works beside it.
                    if self.attached.is_some() { Level::Note } else { Level::Blocker },
                    conflict.to_string(),
                    format!("rtnetlink: IFLA_XDP program {}, {}", program.id, program.mode),
                    format!(
                        "{removal}   # ask whose it is first, or: {bmc} attach {name} --mode tc"
                    ),
                );
            }
            None => {}
        }
        let programs = self.xdp.iter().flat_map(|xdp| &xdp.programs);
        for program in programs.filter(|_| self.foreign.is_none()) {
            findings.add(
                Level::Note,
                format!("has the XDP program {}, which may be another's", program.id),
                "rtnetlink: IFLA_XDP; /sys/fs/bpf/bmc is for root",
                format!("sudo {bmc} doctor {name}"),
            );
        }
        if self.foreign.is_none() {
            findings.add(
                Level::Note,
                "cannot see what is attached as tc, or by bmc",
                "/sys/fs/bpf/bmc and BPF_PROG_QUERY are for root",
                format!("sudo {bmc} doctor {name}"),
            );
        }
        for Foreign { side, carrier, name: program, id, is_first } in self.foreign.iter().flatten()
        {
            let id = id.map(|id| format!(" (id {id})")).unwrap_or_default();
            let query = if *carrier == "tcx" { "BPF_PROG_QUERY" } else { "RTM_GETTFILTER" };
            let (level, so, remedy) = if *is_first {
                (
                    Level::Warning,
                    "it runs before bmc there: unless it returns TCX_NEXT, bmc does not see what \
                     passes",
                    format!("{bmc} stats   # get_replies stays 0 then"),
                )
            } else {
                (
                    Level::Note,
                    "what bmc answers does not get there",
                    format!(
                        "bpftool net show dev {name}   # fine if it does without those packets"
                    ),
                )
            };
            findings.add(
                level,
                format!("has the {carrier} {program}{id} at {side}: {so}"),
                format!("{query} of {name}, {side}"),
                remedy,
            );
        }
    }

    fn json(&self) -> Value {
        let offload = |name: &str| self.offloads.as_ref().map(|offloads| offloads.contains(name));
        let program = |p: &XdpProgram| json!({ "id": p.id, "name": kernel::prog_name(p.id) });
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
                let is_ours = |tcx: &Tcx| ours.contains(&tcx.program);
                // What is attached later comes first at ingress, last at egress.
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
mod tests {
    use super::*;

    fn good() -> Interface {
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
        use Level::Note;
        use Level::Warning;

        says(Warning, "LRO is on", "ethtool -K eth0 lro off", |i| {
            i.offloads = Some(["rx-lro".into()].into());
        });
        says(Warning, "hardware GRO is on", "ethtool -K eth0 rx-gro-hw off", |i| {
            i.offloads = Some(["rx-gro-hw".into()].into());
        });
        says(Note, "takes VLAN tags off", "ethtool -K eth0 rxvlan off", |i| {
            i.offloads = Some(["rx-vlan-hw-parse".into()].into());
            i.vlan = Some("eth0.5".into());
        });
        let tc = "bmc attach eth0 --mode tc   # what auto comes to; or, if all hosts of its \
                  network have it: ip link set dev eth0 mtu 3498";
        says(Warning, "may not fit into a page", tc, |i| i.link.mtu = 3499);
        says(Note, "fewer queues", "ethtool -L eth0 combined 4", |i| {
            i.channels = Some(Channels { rx: 1, rx_max: 8, tx: 1, tx_max: 8, is_combined: true });
        });
        let unknown = "bmc attach eth0 && bmc status   # shows the mode that it came to";
        says(Note, "it is unknown whether", unknown, |i| i.tells_features = false);
        // Native XDP is out of the question, and so is what is in its way.
        let tc = "bmc attach eth0 --mode tc   # is what auto comes to";
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
            i.master = Some(Master { name: "bond0".into(), ..Default::default() });
        });
        says(Warning, "bmc is attached, but gone", "bmc attach eth0 --replace", |i| {
            i.attached = Some(("tc", State::Gone));
        });
    }

    #[test]
    fn a_veth_blocks_only_where_replies_are_lost() {
        use Level::Blocker;
        use Level::Ok;
        use Level::Warning;

        let cases = [
            (Some(false), "native", Ok, "its peer takes what XDP sends"),
            (Some(true), "", Ok, "its peer drops what XDP sends: bmc answers as tc"),
            (Some(true), "tc", Ok, "its peer drops what XDP sends: bmc answers as tc"),
            (
                Some(true),
                "native",
                Blocker,
                "its peer drops what XDP sends: clients get no replies",
            ),
            (None, "", Ok, "its peer may drop what XDP sends: bmc answers as tc"),
            (None, "native", Warning, "its peer may drop what XDP sends: clients get no replies"),
        ];
        for (drops_replies, mode, level, what) in cases {
            let mut veth = good();
            veth.link.kind = Some("veth".into());
            veth.drops_replies = drops_replies;
            veth.attached = (!mode.is_empty()).then_some((mode, State::Up));
            let mut findings = Findings::about("eth0");
            veth.judge_veth(&mut findings);
            let [found] = &findings.all[..] else { panic!("{:?}", findings.all) };
            assert_eq!(found.level, level);
            assert!(found.what.starts_with(what), "{found:?}");
        }
    }

    #[test]
    fn queues_of_drivers_that_keep_half_for_xdp_are_halved() {
        use Level::Note;
        use Level::Warning;

        let with = |driver: &'static str, rx, rx_max, is_combined| {
            move |i: &mut Interface| {
                i.driver = Some(driver.into());
                i.channels = Some(Channels { rx, rx_max, tx: rx, tx_max: rx_max, is_combined });
            }
        };
        let refuses = "keeps half of its queues for XDP and refuses it now";
        says(Warning, refuses, "ethtool -L eth0 combined 4", with("ena", 8, 8, true));
        says(Warning, refuses, "ethtool -L eth0 combined 2", with("ena", 3, 4, true));
        says(Warning, refuses, "ethtool -L eth0 rx 4 tx 4", with("gve", 16, 16, false));
        says(Note, "fewer queues", "ethtool -L eth0 combined 2", with("ena", 1, 4, true));
        assert_eq!(said(with("ena", 2, 4, true)), []);
        assert_eq!(said(with("ice", 8, 8, true)), []);
    }

    #[test]
    fn an_xdp_program_above_or_on_both_keeps_a_part_from_its_own() {
        use Level::Blocker;

        let above = |is_ours| {
            move |i: &mut Interface| {
                i.is_named = true;
                i.xdp_above = Some(("bond0".into(), is_ours));
            }
        };
        let cannot = "cannot have XDP while bond0, which is above it, has an XDP program";
        let doctor = "bmc doctor bond0   # instead: bmc is attached there";
        says(Blocker, cannot, doctor, above(true));
        let tc = "bmc attach eth0 --mode tc   # or to bond0, without that program";
        says(Blocker, cannot, tc, above(false));
        // Nobody means this one, or it is attached as it can be.
        assert_eq!(said(|i| (above(true)(i), i.is_named = false).1), []);
        let deaf = said(|i| (above(true)(i), i.drops_replies = Some(true)).1);
        assert!(deaf.iter().all(|finding| finding.level < Blocker), "{deaf:?}");
        assert_eq!(said(|i| (above(true)(i), i.attached = Some(("tc", State::Up))).1), []);

        let both = |may_have_xdp| {
            move |i: &mut Interface| {
                i.link.part_of = Some("bond".into());
                i.master = Some(Master { name: "bond0".into(), is_named: true, may_have_xdp });
            }
        };
        let bond = "bmc attach bond0   # without eth0";
        says(Level::Warning, "which is named too: what comes by twice", bond, both(false));
        says(Blocker, "only one of them can have native XDP", bond, both(true));
    }

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

    #[test]
    fn what_runs_before_bmc_may_hide_packets_from_it() {
        let foreign = |is_first| Foreign {
            side: "egress",
            carrier: "tcx",
            name: "other".into(),
            id: Some(7),
            is_first,
        };
        let stats = "bmc stats   # get_replies stays 0 then";
        says(Level::Warning, "at egress: it runs before bmc there", stats, |i| {
            i.foreign = Some(vec![foreign(true)]);
        });
        let show = "bpftool net show dev eth0   # fine if it does without those packets";
        says(Level::Note, "other (id 7) at egress: what bmc answers does not", show, |i| {
            i.foreign = Some(vec![foreign(false)]);
        });
    }

    #[test]
    fn another_instance_is_in_the_way_only_of_one_that_is_attached() {
        let other = |is_wanted| {
            move |i: &mut Interface| {
                i.is_wanted = is_wanted;
                i.conflict = Some(Conflict::Instance("eth0".into()));
            }
        };
        let has = "already has bmc's instance eth0";
        says(Level::Note, has, "bmc --instance eth0 doctor eth0", other(false));
        says(Level::Blocker, has, "bmc --instance eth0 detach eth0", other(true));
    }
}
