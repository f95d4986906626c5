// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Checks of the network interfaces.

mod attachment;
mod coverage;
pub(crate) mod facts;
mod foreign;
mod instance;
mod link;
mod listing;
mod loopback;
mod mtu;
mod offloads;
mod queues;
mod stacking;
mod veth;
mod xdp;

use self::facts::{Interface, Interfaces};
use super::finding::Finding;

/// The checks of an interface, in the order in which their findings are printed.
const CHECKS: [fn(&Interface) -> Vec<Finding>; 9] = [
    link::check,
    xdp::check,
    mtu::check,
    offloads::check,
    veth::check,
    queues::check,
    stacking::check,
    attachment::check,
    foreign::check,
];

/// Makes all checks of the interfaces. `everywhere` says whether a memcached listens on all
/// addresses.
pub(crate) fn check(interfaces: &Interfaces, everywhere: bool) -> Vec<Finding> {
    if interfaces.error.is_some() {
        return listing::check(interfaces);
    }
    [
        instance::check(interfaces),
        coverage::check(interfaces, everywhere),
        listing::check(interfaces),
        interfaces.found.iter().flat_map(check_one).collect(),
        loopback::check(interfaces),
    ]
    .concat()
}

fn check_one(interface: &Interface) -> Vec<Finding> {
    let findings = CHECKS.iter().flat_map(|check| check(interface));
    findings.map(|finding| finding.about(&interface.link.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::facts::{Foreign, Master};
    use super::*;
    use crate::command::doctor::finding::Level;
    use crate::host::netlink::Channels;
    use crate::host::sys::Xdp;
    use crate::instance::Health;
    use crate::instance::conflict::Conflict;

    /// What is said of an interface that differs from a good one by this.
    fn said(change: impl Fn(&mut Interface)) -> Vec<Finding> {
        let mut interface = Interface::good();
        change(&mut interface);
        check_one(&interface).into_iter().filter(|finding| finding.level != Level::Ok).collect()
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
        use Level::{Note, Warning};

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
            i.attached = Some(("tc", Health::Gone));
        });
    }

    fn veth_with(drops_replies: Option<bool>, mode: &'static str) -> Interface {
        let mut veth = Interface::good();
        veth.link.kind = Some("veth".into());
        veth.drops_replies = drops_replies;
        veth.attached = (!mode.is_empty()).then_some((mode, Health::Up));
        veth
    }

    #[test]
    fn a_veth_blocks_only_where_replies_are_lost() {
        use Level::{Blocker, Ok, Warning};

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
            let findings = veth::check(&veth_with(drops_replies, mode));
            let [found] = &findings[..] else { panic!("{findings:?}") };
            assert_eq!(found.level, level);
            assert!(found.what.starts_with(what), "{found:?}");
        }
    }

    #[test]
    fn queues_of_drivers_that_keep_half_for_xdp_are_halved() {
        use Level::{Note, Warning};

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
        assert_eq!(said(|i| (above(true)(i), i.attached = Some(("tc", Health::Up))).1), []);

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
