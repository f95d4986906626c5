// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is bmc attached to the interface, and what keeps it from there?

use super::facts::Interface;
use crate::command::doctor::finding::{Finding, Level};
use crate::command::doctor::subject;
use crate::host::sys::XdpProgram;
use crate::instance::Health;
use crate::instance::conflict::Conflict;

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    judge(interface).iter().map(|verdict| verdict.finding(interface)).collect()
}

enum Verdict<'a> {
    Attached { mode: &'a str },
    Damaged(Health),
    OtherInstance { conflict: &'a Conflict, name: &'a str },
    OtherProgram { conflict: &'a Conflict, program: XdpProgram },
}

fn judge(interface: &Interface) -> Vec<Verdict<'_>> {
    let attached = interface.attached.as_ref().map(|(mode, health)| match health {
        Health::Up => Verdict::Attached { mode },
        other => Verdict::Damaged(*other),
    });
    let conflict = interface.conflict.as_ref().map(|conflict| match conflict {
        Conflict::Instance(name) => Verdict::OtherInstance { conflict, name },
        Conflict::Program { program, .. } => Verdict::OtherProgram { conflict, program: *program },
    });
    attached.into_iter().chain(conflict).collect()
}

impl Verdict<'_> {
    fn finding(&self, interface: &Interface) -> Finding {
        let (name, bmc) = (&interface.link.name, &interface.bmc);
        match self {
            Self::Attached { mode } => {
                Finding::ok(format!("bmc is attached ({mode})"), "/sys/fs/bpf/bmc")
            }
            Self::Damaged(health) => Finding::new(
                Level::Warning,
                format!("bmc is attached, but {health}"),
                "/sys/fs/bpf/bmc: a program is not where it was put",
                &interface.attach_again,
            ),
            Self::OtherInstance { conflict, name: other } => {
                let (level, verb) = if interface.is_wanted {
                    (Level::Blocker, "detach")
                } else {
                    (Level::Note, "doctor")
                };
                Finding::new(
                    level,
                    conflict.to_string(),
                    format!("/sys/fs/bpf/bmc/{other}"),
                    format!("{} {verb} {name}", subject::bmc(other)),
                )
            }
            Self::OtherProgram { conflict, program: XdpProgram { id, mode } } => {
                let removal = match interface.conflict_link {
                    Some(link) => format!("bpftool link detach id {link}"),
                    None => format!("ip link set dev {name} {mode} off"),
                };
                // In tc, bmc works beside it.
                let works = interface.attached.is_some();
                Finding::new(
                    if works { Level::Note } else { Level::Blocker },
                    conflict.to_string(),
                    format!("rtnetlink: IFLA_XDP program {id}, {mode}"),
                    format!(
                        "{removal}   # ask whose it is first, or: {bmc} attach {name} --mode tc"
                    ),
                )
            }
        }
    }
}
