// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Does bmc watch every port of the memcached?

use std::collections::BTreeSet;

use super::facts::{Memcached, Memcacheds};
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(all: &Memcacheds, one: &Memcached) -> Vec<Finding> {
    judge(all, one).iter().map(|verdict| verdict.finding(all, one)).collect()
}

/// Not every port is watched; these would have to be.
struct Unwatched(BTreeSet<u16>);

/// Something is said only of a memcached that bmc can serve.
fn judge(all: &Memcacheds, one: &Memcached) -> Option<Unwatched> {
    let ports = one.ports();
    if !one.is_servable(&all.watched) || ports.iter().all(|port| all.watched.contains(port)) {
        return None;
    }
    let kept = if all.is_attached { &all.watched[..] } else { &[] };
    Some(Unwatched(kept.iter().copied().chain(ports).collect()))
}

impl Unwatched {
    fn finding(&self, all: &Memcacheds, one: &Memcached) -> Finding {
        let ports: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        let replace = if all.is_attached { " --replace" } else { "" };
        Finding::new(
            Level::Note,
            "has other ports than bmc attach watches by itself",
            one.evidence(),
            format!("{} attach IFACE --port {}{replace}", all.bmc, ports.join(",")),
        )
    }
}
