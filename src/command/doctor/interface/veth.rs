// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Does the peer of a veth let through what XDP sends?

use super::facts::Interface;
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    judge(interface).iter().map(|verdict| verdict.finding(&interface.attach_again)).collect()
}

enum Verdict {
    Takes,
    /// Replies are lost, or may be, in the present mode.
    Loses {
        certain: bool,
    },
    /// They would be, but bmc answers in tc.
    Avoids {
        certain: bool,
    },
}

/// Nothing is said of other interfaces, or where there will be no native XDP anyway.
fn judge(interface: &Interface) -> Option<Verdict> {
    if !interface.may_have_xdp() || interface.link.kind.as_deref() != Some("veth") {
        return None;
    }
    let is_native = interface.attached.as_ref().is_some_and(|(mode, _)| *mode == "native");
    Some(match interface.drops_replies {
        Some(false) => Verdict::Takes,
        drops if is_native => Verdict::Loses { certain: drops.is_some() },
        drops => Verdict::Avoids { certain: drops.is_some() },
    })
}

impl Verdict {
    fn finding(&self, attach_again: &str) -> Finding {
        let evidence = "rtnetlink: a veth";
        let what = |certain| {
            let drops = if certain { "drops" } else { "may drop" };
            format!("its peer {drops} what XDP sends")
        };
        match *self {
            Self::Takes => {
                Finding::ok("its peer takes what XDP sends", "rtnetlink: it has an XDP program")
            }
            Self::Loses { certain } => Finding::new(
                if certain { Level::Blocker } else { Level::Warning },
                format!("{}: clients get no replies", what(certain)),
                evidence,
                attach_again.replace(" --replace", " --replace --mode tc"),
            ),
            Self::Avoids { certain } => Finding::ok(
                format!("{}: bmc answers as tc, which costs no more there", what(certain)),
                evidence,
            ),
        }
    }
}
