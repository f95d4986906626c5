// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Will bmc see the writes of every interface that memcached can be reached by?

use super::facts::Interfaces;
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interfaces: &Interfaces, everywhere: bool) -> Vec<Finding> {
    let findings = judge(interfaces, everywhere).into_iter().map(|verdict| verdict.finding());
    findings.map(|finding| finding.about("interfaces")).collect()
}

enum Verdict<'a> {
    NothingIsUp,
    Unseen { others: &'a [String], attach_them: &'a str },
}

fn judge(interfaces: &Interfaces, everywhere: bool) -> Vec<Verdict<'_>> {
    let Interfaces { found, missing, others, attach_others, .. } = interfaces;
    let nothing = (found.is_empty() && missing.is_empty()).then_some(Verdict::NothingIsUp);
    let unseen = (everywhere && !others.is_empty())
        .then_some(Verdict::Unseen { others, attach_them: attach_others });
    nothing.into_iter().chain(unseen).collect()
}

impl Verdict<'_> {
    fn finding(&self) -> Finding {
        match self {
            Self::NothingIsUp => Finding::new(
                Level::Warning,
                "there is no network interface that is up but lo",
                "rtnetlink",
                "ip link set dev IFACE up",
            ),
            Self::Unseen { others, attach_them } => Finding::new(
                Level::Note,
                format!("what is written to memcached by {} is not seen", others.join(", ")),
                "rtnetlink: up; memcached listens on all addresses",
                *attach_them,
            ),
        }
    }
}
