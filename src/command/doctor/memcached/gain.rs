// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What will bmc gain? memcached does not count UDP apart, so little can be said.

use super::facts::{Memcached, Memcacheds};
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(all: &Memcacheds, one: &Memcached) -> Vec<Finding> {
    judge(all, one).iter().map(|verdict| verdict.finding(one)).collect()
}

enum Verdict<'a> {
    /// bmc answers here, started with this command, so memcached's counters say little.
    CountsTheRest {
        bmc: &'a str,
    },
    NotAsked(Counts),
    TcpOnly(Counts),
    HitRatio(Counts),
}

#[derive(Clone, Copy)]
struct Counts {
    gets: u64,
    hits: u64,
    sets: u64,
}

/// Something is said only of a memcached that bmc can serve, and that tells its counters.
fn judge<'a>(all: &'a Memcacheds, one: &Memcached) -> Option<Verdict<'a>> {
    if !one.is_servable(&all.watched) {
        return None;
    }
    if let Some((bmc, _)) = all.answered.iter().find(|(_, ports)| one.is_at(ports)) {
        return Some(Verdict::CountsTheRest { bmc });
    }
    let count = |name| one.counters.get(name)?.parse().ok();
    let (gets, hits, sets) = (count("cmd_get")?, count("get_hits")?, count("cmd_set")?);
    let counts = Counts { gets, hits, sets };
    Some(match (gets, all.datagrams) {
        (0, _) => Verdict::NotAsked(counts),
        (_, Some(0)) => Verdict::TcpOnly(counts),
        _ => Verdict::HitRatio(counts),
    })
}

impl Verdict<'_> {
    fn finding(&self, one: &Memcached) -> Finding {
        let remedy = "bmc bench   # what it gains on this machine";
        match self {
            Self::CountsTheRest { bmc } => Finding::new(
                Level::Note,
                "counts only what bmc does not answer",
                one.evidence(),
                format!("{bmc} stats   # counts what it answers"),
            ),
            Self::NotAsked(counts) => Finding::new(
                Level::Note,
                "has had no GETs yet: what bmc would gain is unknown",
                counts.evidence(),
                remedy,
            ),
            Self::TcpOnly(counts) => Finding::new(
                Level::Warning,
                "gets requests over TCP only, which bmc does not answer",
                format!(
                    "{}; /proc/net/snmp and snmp6: 0 UDP datagrams received",
                    counts.evidence()
                ),
                "have its clients send GETs over UDP",
            ),
            Self::HitRatio(counts) => {
                let Counts { gets, hits, .. } = counts;
                let percent = *hits as f64 / *gets as f64 * 100.0;
                Finding::new(
                    Level::Note,
                    format!(
                        "found {percent:.0} % of {gets} requested keys; bmc does not answer those \
                         over TCP, which memcached does not count apart"
                    ),
                    counts.evidence(),
                    remedy,
                )
            }
        }
    }
}

impl Counts {
    fn evidence(self) -> String {
        let Self { gets, hits, sets } = self;
        format!("stats: cmd_get {gets}, get_hits {hits}, cmd_set {sets}")
    }
}
