// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Does the kernel take bmc's programs?

use super::facts::{Host, Programs};
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(host: &Host) -> Vec<Finding> {
    judge(host).iter().map(|verdict| verdict.finding(&host.bmc)).collect()
}

enum Verdict<'a> {
    Takes,
    Refuses(&'a str),
}

/// Nothing is said if they could not be tried for lack of privileges.
fn judge(host: &Host) -> Option<Verdict<'_>> {
    match &host.programs {
        Programs::NotTried => None,
        Programs::Loaded { .. } => Some(Verdict::Takes),
        Programs::Refused(why) => Some(Verdict::Refuses(why)),
    }
}

impl Verdict<'_> {
    fn finding(&self, bmc: &str) -> Finding {
        match self {
            Self::Takes => Finding::ok(
                "the kernel takes bmc's programs",
                "loaded with 16M, not attached, and let go of again",
            ),
            Self::Refuses(why) => Finding::new(
                Level::Blocker,
                "the kernel refuses bmc's programs",
                why.replace('\n', "; "),
                format!("{bmc} -v attach --memory 16M IFACE   # prints all the kernel says"),
            ),
        }
    }
}
