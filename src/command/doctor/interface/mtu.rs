// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Do the frames of an interface fit into a page, as most drivers want for native XDP?

use super::facts::Interface;
use crate::command::doctor::finding::{Finding, Level};

/// The largest MTU that any driver accepts with a program like bmc's: a page, less 256 bytes
/// of headroom, 320 that the stack appends, an Ethernet header and two VLAN tags.
const MTU_MAX: u32 = 4096 - 256 - 320 - 14 - 8;

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    judge(interface).iter().map(|verdict| verdict.finding(interface)).collect()
}

struct TooLarge(u32);

/// Nothing is said where there will be no native XDP anyway.
fn judge(interface: &Interface) -> Option<TooLarge> {
    let mtu = interface.link.mtu;
    (interface.may_have_xdp() && mtu > MTU_MAX).then_some(TooLarge(mtu))
}

impl TooLarge {
    fn finding(&self, interface: &Interface) -> Finding {
        let (name, bmc) = (&interface.link.name, &interface.bmc);
        Finding::new(
            Level::Warning,
            "its frames may not fit into a page, as native XDP wants them: most drivers refuse, \
             and bmc answers as tc",
            format!("rtnetlink: MTU {}", self.0),
            format!(
                "{bmc} attach {name} --mode tc   # what auto comes to; or, if all hosts of its \
                 network have it: ip link set dev {name} mtu {MTU_MAX}"
            ),
        )
    }
}
