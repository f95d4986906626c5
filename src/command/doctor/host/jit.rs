// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Does the kernel compile BPF programs?

use super::facts::{Host, Programs};
use crate::command::doctor::finding::{Finding, Level};
use crate::host::facts::JIT;

pub(super) fn check(host: &Host) -> Vec<Finding> {
    judge(host).iter().map(Verdict::finding).collect()
}

enum Verdict<'a> {
    Compiled { setting: &'a str },
    Interpreted,
    Unknown,
}

fn judge(host: &Host) -> Option<Verdict<'_>> {
    match host.jit.as_deref() {
        Some("0") => Some(Verdict::Interpreted),
        Some(setting) => Some(Verdict::Compiled { setting }),
        // Programs that load are compiled.
        None if matches!(host.programs, Programs::Loaded { .. }) => None,
        None => Some(Verdict::Unknown),
    }
}

impl Verdict<'_> {
    fn finding(&self) -> Finding {
        match self {
            Self::Compiled { setting } => {
                Finding::ok("BPF programs are compiled", format!("{JIT}: {setting}"))
            }
            Self::Interpreted => Finding::new(
                Level::Blocker,
                "BPF programs are not compiled, and bmc's cannot be interpreted",
                format!("{JIT}: 0"),
                "sysctl -w net.core.bpf_jit_enable=1",
            ),
            Self::Unknown => Finding::new(
                Level::Note,
                "cannot see whether BPF programs are compiled",
                format!("{JIT} is for root in the initial network namespace"),
                "sysctl net.core.bpf_jit_enable   # 1 will do",
            ),
        }
    }
}
