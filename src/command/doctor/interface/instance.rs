// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is the instance attached here, and does it work?

use super::facts::Interfaces;
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interfaces: &Interfaces) -> Vec<Finding> {
    let Interfaces { bmc, instance, .. } = interfaces;
    let findings = judge(interfaces).into_iter().map(|verdict| verdict.finding(bmc, instance));
    findings.map(|finding| finding.about("interfaces")).collect()
}

enum Verdict {
    IsElsewhere,
    Idles,
}

fn judge(interfaces: &Interfaces) -> Vec<Verdict> {
    let is_elsewhere = interfaces.is_elsewhere.then_some(Verdict::IsElsewhere);
    is_elsewhere.into_iter().chain(interfaces.is_idle.then_some(Verdict::Idles)).collect()
}

impl Verdict {
    fn finding(&self, bmc: &str, instance: &str) -> Finding {
        match self {
            Self::IsElsewhere => Finding::new(
                Level::Blocker,
                format!("bmc's instance {instance} is attached in another network namespace"),
                format!("/sys/fs/bpf/bmc/{instance}/netns"),
                format!("bmc --instance OTHER attach IFACE   # or {bmc} detach"),
            ),
            Self::Idles => Finding::new(
                Level::Warning,
                "bmc idles: an attach or detach was interrupted",
                format!("/sys/fs/bpf/bmc/{instance}/global"),
                format!("{bmc} flush"),
            ),
        }
    }
}
