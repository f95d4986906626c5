// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Are offloads on that keep a driver from native XDP, or packets from bmc?

use super::facts::Interface;
use crate::command::doctor::finding::{Finding, Level};

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    judge(interface).iter().map(|verdict| verdict.finding(&interface.link.name)).collect()
}

enum Verdict<'a> {
    /// Frames are merged, in the feature that the kernel and ethtool call so.
    Merges { feature: &'a str, offload: &'a str, title: &'a str },
    /// VLAN tags are taken off, and this VLAN needs them.
    TakesTags { vlan: &'a str },
}

/// Nothing is said where there will be no native XDP anyway.
fn judge(interface: &Interface) -> Vec<Verdict<'_>> {
    if !interface.may_have_xdp() {
        return Vec::new();
    }
    let lro = Verdict::Merges { feature: "rx-lro", offload: "lro", title: "LRO" };
    let gro = Verdict::Merges { feature: "rx-gro-hw", offload: "rx-gro-hw", title: "hardware GRO" };
    let is_on = |verdict: &Verdict<'_>| match verdict {
        Verdict::Merges { feature, .. } => interface.has_offload(feature),
        Verdict::TakesTags { .. } => interface.has_offload("rx-vlan-hw-parse"),
    };
    let tags = interface.vlan.as_deref().map(|vlan| Verdict::TakesTags { vlan });
    [lro, gro].into_iter().chain(tags).filter(is_on).collect()
}

impl Verdict<'_> {
    fn finding(&self, name: &str) -> Finding {
        match self {
            Self::Merges { feature, offload, title } => Finding::new(
                Level::Warning,
                format!("{title} is on, with which some drivers refuse native XDP"),
                format!("ethtool -k: {feature} on"),
                format!("ethtool -K {name} {offload} off"),
            ),
            Self::TakesTags { vlan } => Finding::new(
                Level::Note,
                "it takes VLAN tags off, so that XDP does not see them: bmc answers those as tc",
                format!("ethtool -k: rx-vlan-hw-parse on; {vlan} lies on it"),
                format!("ethtool -K {name} rxvlan off"),
            ),
        }
    }
}
