// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Interfaces and activity, as several commands print them in JSON.

use serde_json::{Value, json};

use crate::instance::AttachedInterface;
use crate::instance::state::Activity;

/// Has the kernel measure the run time of BPF programs.
pub const MEASURE: &str = "sysctl kernel.bpf_stats_enabled=1";

/// The state of a cache. A sleeping one counts as caching: that it sleeps is a field of its
/// own.
pub fn state_name(activity: Activity) -> &'static str {
    match activity {
        Activity::Caching | Activity::Asleep => "caching",
        Activity::Idle => "idle",
    }
}

/// What is attached where.
pub fn interfaces_json(interfaces: &[AttachedInterface]) -> Value {
    let object = |i: &AttachedInterface| json!({ "name": i.name, "mode": i.mode, "state": i.health.to_string() });
    interfaces.iter().map(object).collect()
}
