// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Can bmc serve the memcached, with its settings?

use std::net::SocketAddr;

use super::facts::{Memcached, Memcacheds, NAME};
use crate::command::doctor::finding::{Finding, Level};
use crate::memcached::settings::Problem;

pub(super) fn check(all: &Memcacheds, one: &Memcached) -> Vec<Finding> {
    judge(all, one).iter().map(|verdict| verdict.finding(one)).collect()
}

enum Verdict {
    HasNoNetwork,
    /// `is_watched` says whether bmc is to serve this very memcached.
    Has {
        problem: Problem,
        at: SocketAddr,
        is_watched: bool,
    },
    DoesNotAnswer(SocketAddr),
    CanBeServed,
}

fn judge(all: &Memcacheds, one: &Memcached) -> Vec<Verdict> {
    let Some(at) = one.address() else { return vec![Verdict::HasNoNetwork] };
    let is_watched = one.is_at(&all.watched);
    let problems = one.problems(&all.watched);
    let mut verdicts: Vec<_> =
        problems.into_iter().map(|problem| Verdict::Has { problem, at, is_watched }).collect();
    if !one.answers() {
        verdicts.push(Verdict::DoesNotAnswer(at));
    } else if verdicts.is_empty() {
        verdicts.push(Verdict::CanBeServed);
    }
    verdicts
}

impl Verdict {
    fn finding(&self, one: &Memcached) -> Finding {
        match self {
            Self::HasNoNetwork => Finding::new(
                Level::Warning,
                "listens on a unix socket only: there is no network for bmc to serve",
                one.evidence(),
                "start it with -p 11211 -U 11211 instead of -s",
            ),
            Self::Has { problem, at, is_watched } => Finding::new(
                if problem.is_fatal() && *is_watched { Level::Blocker } else { Level::Warning },
                problem.what(),
                one.evidence(),
                match problem {
                    Problem::NoUdp if one.has_external_storage() => {
                        "start it without external storage, with which memcached has no UDP".into()
                    }
                    Problem::NoUdp => one.restart(NAME, &format!("-U {}", at.port())),
                    problem => problem.remedy(at.port()),
                },
            ),
            Self::DoesNotAnswer(at) => Finding::new(
                Level::Note,
                "does not answer: bmc cannot say whether it can be watched",
                one.evidence(),
                format!("memcached-tool {at} settings"),
            ),
            Self::CanBeServed => Finding::ok("bmc can serve it", one.evidence()),
        }
    }
}
