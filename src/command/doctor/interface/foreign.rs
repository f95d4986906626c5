// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Do others have programs on the interface that could hide packets from bmc, or miss those
//! that it answers?

use super::facts::{Foreign, Interface};
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    judge(interface).iter().map(|verdict| verdict.finding(interface)).collect()
}

enum Verdict<'a> {
    /// This XDP program may be bmc's or another's.
    UnknownXdp {
        id: u32,
    },
    CannotSee,
    RunsBefore(&'a Foreign),
    RunsBehind(&'a Foreign),
}

fn judge(interface: &Interface) -> Vec<Verdict<'_>> {
    let Some(foreign) = &interface.foreign else {
        let programs = interface.xdp.iter().flat_map(|xdp| &xdp.programs);
        let unknown = programs.map(|program| Verdict::UnknownXdp { id: program.id });
        return unknown.chain([Verdict::CannotSee]).collect();
    };
    foreign
        .iter()
        .map(|foreign| {
            if foreign.is_first {
                Verdict::RunsBefore(foreign)
            } else {
                Verdict::RunsBehind(foreign)
            }
        })
        .collect()
}

impl Verdict<'_> {
    fn finding(&self, interface: &Interface) -> Finding {
        let (name, bmc) = (&interface.link.name, &interface.bmc);
        match self {
            Self::UnknownXdp { id } => Finding::new(
                Level::Note,
                format!("has the XDP program {id}, which may be another's"),
                "rtnetlink: IFLA_XDP; /sys/fs/bpf/bmc is for root",
                format!("sudo {bmc} doctor {name}"),
            ),
            Self::CannotSee => Finding::new(
                Level::Note,
                "cannot see what is attached as tc, or by bmc",
                "/sys/fs/bpf/bmc and BPF_PROG_QUERY are for root",
                format!("sudo {bmc} doctor {name}"),
            ),
            Self::RunsBefore(foreign) => Finding::new(
                Level::Warning,
                format!(
                    "{}: it runs before bmc there: unless it returns TCX_NEXT, bmc does not see \
                     what passes",
                    has(foreign)
                ),
                evidence(foreign, name),
                format!("{bmc} stats   # get_replies stays 0 then"),
            ),
            Self::RunsBehind(foreign) => Finding::new(
                Level::Note,
                format!("{}: what bmc answers does not get there", has(foreign)),
                evidence(foreign, name),
                format!("bpftool net show dev {name}   # fine if it does without those packets"),
            ),
        }
    }
}

fn has(Foreign { side, carrier, name, id, .. }: &Foreign) -> String {
    let id = id.map(|id| format!(" (id {id})")).unwrap_or_default();
    format!("has the {carrier} {name}{id} at {side}")
}

fn evidence(foreign: &Foreign, interface: &str) -> String {
    let query = if foreign.carrier == "tcx" { "BPF_PROG_QUERY" } else { "RTM_GETTFILTER" };
    format!("{query} of {interface}, {}", foreign.side)
}
