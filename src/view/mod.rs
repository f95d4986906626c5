// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What an attached instance holds and counts: read from its maps, and shown.

pub mod classes;
pub mod counters;
pub mod entries;
pub mod lookup;
pub mod prometheus;
pub mod state;
