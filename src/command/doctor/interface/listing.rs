// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Could the interfaces be listed, and are those that were named there?

use super::facts::Interfaces;
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interfaces: &Interfaces) -> Vec<Finding> {
    judge(interfaces).iter().map(|verdict| verdict.finding(&interfaces.bmc)).collect()
}

enum Verdict<'a> {
    CannotList(&'a str),
    Missing { name: &'a str, why: &'a str },
}

fn judge(interfaces: &Interfaces) -> Vec<Verdict<'_>> {
    if let Some(error) = &interfaces.error {
        return vec![Verdict::CannotList(error)];
    }
    interfaces.missing.iter().map(|(name, why)| Verdict::Missing { name, why }).collect()
}

impl Verdict<'_> {
    fn finding(&self, bmc: &str) -> Finding {
        match self {
            Self::CannotList(error) => {
                Finding::new(Level::Note, "cannot list the network interfaces", *error, "ip link")
                    .about("interfaces")
            }
            Self::Missing { name, why } => Finding::new(
                Level::Blocker,
                *why,
                "if_nametoindex",
                format!("ip link   # or nsenter --net=/run/netns/NAME {bmc} doctor {name}"),
            )
            .about(*name),
        }
    }
}
