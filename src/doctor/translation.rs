// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Ports of this network namespace that are translated to those that bmc watches.

use super::Finding;
use super::Findings;
use super::Level;
use super::Patient;
use crate::translation;
use crate::translation::Seen;

/// What was found of them.
pub(super) struct Translations {
    /// How a command about the instance starts.
    bmc: String,
    watched: Vec<u16>,
    seen: Seen,
}

impl Translations {
    pub(super) fn read(patient: &Patient<'_>) -> Self {
        let watched = patient.watched();
        let seen = translation::look(&watched);
        Self { bmc: patient.bmc.clone(), watched, seen }
    }

    pub(super) fn judge(&self) -> Vec<Finding> {
        let mut findings = Findings::about("ports");
        let Seen { unwatched, hidden } = &self.seen;
        if !hidden.is_empty() {
            findings.add(
                Level::Note,
                "cannot see all that are translated to memcached's",
                hidden.join("; "),
                format!("sudo {} doctor", self.bmc),
            );
        } else if unwatched.is_empty() {
            findings.ok(
                "none is translated to memcached's without being watched",
                "nftables, iptables-legacy, IPVS, conntrack",
            );
        }
        for one in unwatched {
            findings.add(Level::Blocker, one.what(), &one.by, one.remedy(&self.watched));
        }
        findings.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_a_note() {
        let hidden = vec!["nftables: Operation not permitted".into()];
        let seen = Seen { hidden, ..Seen::default() };
        let all = Translations { bmc: "bmc".into(), watched: vec![11211], seen };
        let [finding] = &all.judge()[..] else { panic!("there is one") };
        assert_eq!(finding.level, Level::Note);
        assert_eq!(finding.remedy.as_deref(), Some("sudo bmc doctor"));
    }
}
