// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is the kernel locked down against what bmc's programs do?

use super::facts::Host;
use crate::command::doctor::finding::{Finding, Level};
use crate::host::facts::LOCKDOWN;

pub(super) fn check(host: &Host) -> Vec<Finding> {
    judge(host).iter().map(Verdict::finding).collect()
}

enum Verdict<'a> {
    Open { setting: &'a str },
    Locked { setting: &'a str },
}

fn judge(host: &Host) -> Option<Verdict<'_>> {
    let setting = host.lockdown.as_deref()?;
    Some(if setting.contains("[confidentiality]") {
        Verdict::Locked { setting }
    } else {
        Verdict::Open { setting }
    })
}

impl Verdict<'_> {
    fn finding(&self) -> Finding {
        let evidence = |setting: &str| format!("{LOCKDOWN}: {setting}");
        match self {
            Self::Open { setting } => {
                Finding::ok("the kernel is not locked down against BPF", evidence(setting))
            }
            Self::Locked { setting } => Finding::new(
                Level::Blocker,
                "the kernel is locked down, and refuses helpers that bmc's programs need",
                evidence(setting),
                "boot without lockdown=confidentiality   # lockdown=integrity will do",
            ),
        }
    }
}
