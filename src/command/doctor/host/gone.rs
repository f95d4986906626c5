// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Will bmc notice when memcached stops listening?

use super::facts::{Host, Programs};
use crate::command::doctor::finding::{Finding, Level};
use crate::host::facts::BTF;

pub(super) fn check(host: &Host) -> Vec<Finding> {
    vec![judge(host).finding(&host.bmc)]
}

enum Verdict {
    Notices,
    HasNoBtf,
    IsRefused,
}

fn judge(host: &Host) -> Verdict {
    match host.programs {
        _ if !host.has_btf => Verdict::HasNoBtf,
        Programs::Loaded { notices_the_end: false } => Verdict::IsRefused,
        _ => Verdict::Notices,
    }
}

impl Verdict {
    fn finding(&self, bmc: &str) -> Finding {
        let evidence = match self {
            Self::Notices => return Finding::ok("the kernel reports when memcached stops", BTF),
            Self::HasNoBtf => format!("no {BTF}: CONFIG_DEBUG_INFO_BTF is off"),
            Self::IsRefused => "bmc_gone could not be loaded".into(),
        };
        Finding::new(
            Level::Warning,
            "the kernel does not report when memcached stops: stale values are served after a \
             restart, for up to --max-age",
            evidence,
            format!("{bmc} flush   # after each restart of memcached"),
        )
    }
}
