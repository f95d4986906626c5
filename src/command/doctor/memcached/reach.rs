// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Can clients of other machines reach the memcached?

use super::facts::{Memcached, Memcacheds};
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(all: &Memcacheds, one: &Memcached) -> Vec<Finding> {
    judge(all, one).iter().map(|verdict| verdict.finding(one)).collect()
}

struct LoopbackOnly;

/// Something is said only of a memcached that bmc can serve.
fn judge(all: &Memcacheds, one: &Memcached) -> Option<LoopbackOnly> {
    let is_local = one.tcp.iter().chain(&one.udp).all(|at| at.ip().is_loopback());
    (one.is_servable(&all.watched) && is_local).then_some(LoopbackOnly)
}

impl LoopbackOnly {
    fn finding(&self, one: &Memcached) -> Finding {
        let Self = self;
        Finding::new(
            Level::Warning,
            "listens on the loopback only, where bmc answers nothing",
            one.evidence(),
            "start it with -l ADDRESS, of the interface that its clients come in by",
        )
    }
}
