// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Has the driver native XDP?

use super::facts::Interface;
use crate::command::doctor::finding::{Finding, Level};
use crate::host::sys::Xdp;

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    vec![judge(interface).finding(interface)]
}

enum Verdict {
    Unknown,
    Native,
    TcOnly,
}

fn judge(interface: &Interface) -> Verdict {
    if !interface.tells_features || interface.xdp.is_none() {
        Verdict::Unknown
    } else if interface.has_feature(Xdp::BASIC) {
        Verdict::Native
    } else {
        Verdict::TcOnly
    }
}

impl Verdict {
    fn finding(&self, interface: &Interface) -> Finding {
        let (name, bmc) = (&interface.link.name, &interface.bmc);
        match self {
            Self::Unknown => Finding::new(
                Level::Note,
                "it is unknown whether its driver has native XDP; without it bmc answers as tc",
                "Linux tells from 6.3 on",
                format!("{bmc} attach {name} && {bmc} status   # shows the mode that it came to"),
            ),
            Self::Native => Finding::ok(
                "its driver has native XDP",
                format!("netdev xdp-features: {}", interface.features().join(" ")),
            ),
            Self::TcOnly => {
                let driver = interface.driver.as_deref().unwrap_or("it");
                Finding::new(
                    Level::Note,
                    "its driver has no native XDP: bmc will answer as tc, behind the driver",
                    format!("netdev xdp-features of {driver}: no basic"),
                    match &interface.lower {
                        Some(lower) => format!("{bmc} attach {lower}   # which it lies on"),
                        None => format!("{bmc} attach {name} --mode tc   # is what auto comes to"),
                    },
                )
            }
        }
    }
}
