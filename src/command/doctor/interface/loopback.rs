// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Are the writes of local clients seen?

use super::facts::Interfaces;
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interfaces: &Interfaces) -> Vec<Finding> {
    let finding = judge(interfaces).map(|verdict| verdict.finding(interfaces).about("lo"));
    finding.into_iter().collect()
}

enum Verdict {
    NotWatched,
    Watched,
    WillBeWatched,
}

/// Nothing is said if the loopback is down.
fn judge(interfaces: &Interfaces) -> Option<Verdict> {
    interfaces.loopback_is_up.then_some(match interfaces.loopback_is_watched {
        Some(false) => Verdict::NotWatched,
        Some(true) => Verdict::Watched,
        None => Verdict::WillBeWatched,
    })
}

impl Verdict {
    fn finding(&self, Interfaces { instance, attach_again, .. }: &Interfaces) -> Finding {
        let when = match self {
            Self::NotWatched => {
                return Finding::new(
                    Level::Note,
                    "is not watched: what is written on this machine is not seen",
                    format!("/sys/fs/bpf/bmc/{instance}/links"),
                    attach_again,
                );
            }
            Self::Watched => "is",
            Self::WillBeWatched => "will be",
        };
        Finding::ok(format!("{when} watched for writes, and never served"), "rtnetlink: up")
    }
}
