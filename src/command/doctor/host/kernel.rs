// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is the kernel new enough?

use super::facts::{Host, Programs};
use crate::command::doctor::finding::{Finding, Level};
use crate::host::facts;

/// The oldest kernel that bmc is tested on, and the first with tcx.
const OLDEST: [u32; 2] = [6, 1];
const TCX: [u32; 2] = [6, 6];

pub(super) fn check(host: &Host) -> Vec<Finding> {
    vec![judge(host).finding()]
}

enum Verdict<'a> {
    Unknown,
    TooOld { release: &'a str, takes_programs: bool },
    HasNoTcx { release: &'a str },
    New { release: &'a str },
}

fn judge(host: &Host) -> Verdict<'_> {
    let Some(release) = host.release.as_deref() else { return Verdict::Unknown };
    let takes_programs = matches!(host.programs, Programs::Loaded { .. });
    match facts::version(release) {
        Some(version) if version < OLDEST => Verdict::TooOld { release, takes_programs },
        Some(version) if version < TCX => Verdict::HasNoTcx { release },
        _ => Verdict::New { release },
    }
}

impl Verdict<'_> {
    fn finding(&self) -> Finding {
        let evidence = |release: &str| format!("/proc/sys/kernel/osrelease: {release}");
        match self {
            Self::Unknown => Finding::new(
                Level::Note,
                "cannot see which kernel this is",
                "no /proc/sys/kernel/osrelease",
                "uname -r   # 6.1 or newer will do",
            ),
            Self::TooOld { release, takes_programs } => Finding::new(
                if *takes_programs { Level::Warning } else { Level::Blocker },
                "the kernel is older than Linux 6.1: bmc is not tested on it",
                evidence(release),
                "boot Linux 6.1 or newer   # Debian 12 has it",
            ),
            Self::HasNoTcx { release } => Finding::ok(
                "the kernel is new enough; without tcx, bmc uses clsact",
                evidence(release),
            ),
            Self::New { release } => {
                Finding::ok("the kernel is new enough, and has tcx", evidence(release))
            }
        }
    }
}
