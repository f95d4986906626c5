// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is the interface a part of another one, made of others, or on top of one?
//!
//! bmc belongs on one level only: what it sees twice empties the cache.

use super::facts::{Interface, Master};
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    judge(interface).iter().map(|verdict| verdict.finding(interface)).collect()
}

enum Verdict<'a> {
    /// Part of this one.
    Part { of: &'a str, both_named: BothNamed },
    /// Made of these.
    MadeOf(&'a [String]),
    /// On top of this one.
    On(&'a str),
    /// Below this one, whose XDP program excludes one here.
    Below { above: &'a str, is_ours: bool },
}

/// Whether bmc is to be attached to both a part and the whole.
enum BothNamed {
    No,
    Yes,
    /// And both would get native XDP, which only one of them can have.
    AndBothWantXdp,
}

fn judge(interface: &Interface) -> Vec<Verdict<'_>> {
    let part = interface.master.as_ref().map(|Master { name, is_named, may_have_xdp }| {
        let both_named = match is_named {
            true if *may_have_xdp && interface.tries_xdp() => BothNamed::AndBothWantXdp,
            true => BothNamed::Yes,
            false => BothNamed::No,
        };
        Verdict::Part { of: name, both_named }
    });
    let members = &interface.members[..];
    let made_of = (!members.is_empty()).then_some(Verdict::MadeOf(members));
    let on = interface.lower.as_deref().map(Verdict::On);
    // Few of the interfaces that nobody named are meant for bmc, and one that is attached
    // works as it can.
    let wants_xdp = interface.is_named && interface.tries_xdp() && interface.attached.is_none();
    let below = interface.xdp_above.as_ref().filter(|_| wants_xdp);
    let below = below.map(|(above, is_ours)| Verdict::Below { above, is_ours: *is_ours });
    [part, made_of, on, below].into_iter().flatten().collect()
}

impl Verdict<'_> {
    fn finding(&self, interface: &Interface) -> Finding {
        let (name, bmc) = (&interface.link.name, &interface.bmc);
        let kind = interface.link.kind.as_deref().unwrap_or_default();
        match self {
            Self::Part { of, both_named } => {
                let (level, so) = match both_named {
                    BothNamed::AndBothWantXdp => (
                        Level::Blocker,
                        ", which is named too: only one of them can have native XDP, and what \
                         comes by twice empties the cache",
                    ),
                    BothNamed::Yes => (
                        Level::Warning,
                        ", which is named too: what comes by twice empties the cache",
                    ),
                    BothNamed::No => {
                        (Level::Note, ": attach to that, or to all its parts, but not to both")
                    }
                };
                let part_of = interface.link.part_of.as_deref().unwrap_or_default();
                Finding::new(
                    level,
                    format!("is part of the {part_of} {of}{so}"),
                    format!("rtnetlink: IFLA_MASTER {of}"),
                    format!("{bmc} attach {of}   # without {name}"),
                )
            }
            Self::MadeOf(members) => Finding::new(
                Level::Note,
                format!(
                    "is made of {}: attach to it, or to them, but not to both",
                    members.join(", ")
                ),
                format!("rtnetlink: a {kind}"),
                format!("{bmc} attach {name}   # without {}", members.join(" ")),
            ),
            Self::On(lower) => Finding::new(
                Level::Note,
                format!("is a {kind} on {lower}: attach to one of the two, but not to both"),
                format!("rtnetlink: IFLA_LINK {lower}"),
                format!("{bmc} attach {lower}   # without {name}"),
            ),
            Self::Below { above, is_ours } => Finding::new(
                Level::Blocker,
                format!("cannot have XDP while {above}, which is above it, has an XDP program"),
                format!("rtnetlink: IFLA_XDP of {above}"),
                if *is_ours {
                    format!("{bmc} doctor {above}   # instead: bmc is attached there")
                } else {
                    format!("{bmc} attach {name} --mode tc   # or to {above}, without that program")
                },
            ),
        }
    }
}
