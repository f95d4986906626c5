// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is there enough memory for what `bmc attach` locks by default?

use super::facts::Host;
use crate::command::doctor::finding::{Finding, Level};
use crate::host::facts;

pub(super) fn check(host: &Host) -> Vec<Finding> {
    judge(host).iter().map(|verdict| verdict.finding(&host.bmc)).collect()
}

/// All in MiB.
enum Verdict {
    Enough { wanted: u64, available: u64 },
    TooLittle { wanted: u64, available: u64, most: u64 },
}

/// Nothing is said of an instance that is attached: it has its memory.
fn judge(host: &Host) -> Option<Verdict> {
    let bytes = host.memory.filter(|_| !host.is_attached)?;
    let (wanted, available) = (host.memory_wanted >> 20, bytes >> 20);
    let most = facts::memory_to_lock(bytes) >> 20;
    Some(if wanted > most {
        Verdict::TooLittle { wanted, available, most }
    } else {
        Verdict::Enough { wanted, available }
    })
}

impl Verdict {
    fn finding(&self, bmc: &str) -> Finding {
        let evidence = |available| {
            format!("MemAvailable in /proc/meminfo, memory.max of cgroups: {available}M")
        };
        match *self {
            Self::Enough { wanted, available } => {
                Finding::ok(format!("has the {wanted}M that bmc attach locks"), evidence(available))
            }
            Self::TooLittle { wanted, available, most } => Finding::new(
                Level::Blocker,
                format!("there is too little memory for the {wanted}M that bmc attach locks"),
                evidence(available),
                format!("{bmc} attach --memory {}M IFACE", (most / 2).max(16)),
            ),
        }
    }
}
