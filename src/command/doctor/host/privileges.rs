// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! May this process load and attach BPF programs?

use super::facts::Host;
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(host: &Host) -> Vec<Finding> {
    vec![judge(host).finding(&host.bmc)]
}

enum Verdict<'a> {
    May,
    Lacks(&'a [&'static str]),
}

fn judge(host: &Host) -> Verdict<'_> {
    match &host.missing_capabilities[..] {
        [] => Verdict::May,
        missing => Verdict::Lacks(missing),
    }
}

impl Verdict<'_> {
    fn finding(&self, bmc: &str) -> Finding {
        let evidence = "/proc/self/status: CapEff";
        match self {
            Self::May => Finding::ok("may load and attach BPF programs", evidence),
            Self::Lacks(missing) => Finding::new(
                Level::Blocker,
                format!("may not load or attach BPF programs: {} missing", missing.join(", ")),
                evidence,
                format!("sudo {bmc} doctor   # sees more, and so does attach"),
            ),
        }
    }
}
