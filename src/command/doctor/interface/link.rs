// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is the interface up?

use super::facts::Interface;
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    vec![judge(interface).finding(interface)]
}

enum Verdict {
    Up,
    Down,
    NoCarrier,
}

fn judge(interface: &Interface) -> Verdict {
    match (interface.link.is_up, interface.link.has_carrier) {
        (true, true) => Verdict::Up,
        (true, false) => Verdict::NoCarrier,
        (false, _) => Verdict::Down,
    }
}

impl Verdict {
    fn finding(&self, Interface { link, driver, .. }: &Interface) -> Finding {
        let name = &link.name;
        match self {
            Self::Up => {
                let driver = driver.as_deref().unwrap_or("unknown");
                Finding::ok("is up", format!("rtnetlink: driver {driver}, MTU {}", link.mtu))
            }
            Self::Down => Finding::new(
                Level::Warning,
                "is down",
                "rtnetlink: no IFF_UP",
                format!("ip link set dev {name} up"),
            ),
            Self::NoCarrier => Finding::new(
                Level::Warning,
                "has no carrier",
                "rtnetlink: no IFF_LOWER_UP",
                format!("ip link show dev {name}   # see to its cable or peer"),
            ),
        }
    }
}
