// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is there a memcached to serve, and can it be seen?

use super::facts::{Memcacheds, NAME};
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(all: &Memcacheds) -> Vec<Finding> {
    let findings = judge(all).into_iter().map(|verdict| verdict.finding(&all.bmc));
    findings.map(|finding| finding.about(NAME)).collect()
}

enum Verdict<'a> {
    Hidden(&'a [i32]),
    Elsewhere(&'a [i32]),
    None,
}

fn judge(all: &Memcacheds) -> Vec<Verdict<'_>> {
    let hidden = (!all.hidden.is_empty()).then_some(Verdict::Hidden(&all.hidden));
    let elsewhere = (!all.elsewhere.is_empty()).then_some(Verdict::Elsewhere(&all.elsewhere));
    let none = (all.found.is_empty() && all.hidden.is_empty()).then_some(Verdict::None);
    [hidden, elsewhere, none].into_iter().flatten().collect()
}

impl Verdict<'_> {
    fn finding(&self, bmc: &str) -> Finding {
        let list = |pids: &[i32]| pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Hidden(pids) => Finding::new(
                Level::Note,
                format!("cannot see what it listens on: process {}", list(pids)),
                format!("/proc/{}/fd is for its user and root", pids[0]),
                format!("sudo {bmc} doctor"),
            ),
            Self::Elsewhere(pids) => Finding::new(
                Level::Note,
                format!(
                    "is in another network namespace, where bmc has to be attached: process {}",
                    list(pids)
                ),
                format!("/proc/{}/ns/net", pids[0]),
                format!("nsenter --net=/proc/{}/ns/net {bmc} doctor", pids[0]),
            ),
            Self::None => Finding::new(
                Level::Warning,
                "no memcached listens here, so there is nothing to serve",
                "/proc/*/comm, /proc/net/tcp and udp",
                "bmc memcached -U 11211   # starts one",
            ),
        }
    }
}
