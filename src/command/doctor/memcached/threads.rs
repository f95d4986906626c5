// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Do the threads of the memcached wait for each other at a shared UDP socket?

use std::collections::BTreeSet;

use super::facts::{Memcached, Memcacheds};
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(all: &Memcacheds, one: &Memcached) -> Vec<Finding> {
    judge(all, one).iter().map(|verdict| verdict.finding(one)).collect()
}

struct SharesSocket {
    threads: usize,
}

/// Something is said only of a memcached that bmc can serve.
fn judge(all: &Memcacheds, one: &Memcached) -> Option<SharesSocket> {
    let threads = one.setting("num_threads").and_then(|threads| threads.parse().ok()).unwrap_or(1);
    let addresses: BTreeSet<_> = one.udp.iter().collect();
    let is_shared = threads > 1 && addresses.len() == one.udp.len() && one.process.is_some();
    (one.is_servable(&all.watched) && is_shared).then_some(SharesSocket { threads })
}

impl SharesSocket {
    fn finding(&self, one: &Memcached) -> Finding {
        let (threads, sockets) = (self.threads, one.udp.len());
        Finding::new(
            Level::Note,
            format!("its {threads} threads share one UDP socket, and wait for each other there"),
            format!("stats settings: num_threads {threads}; UDP sockets {sockets}"),
            one.restart("bmc memcached --", ""),
        )
    }
}
