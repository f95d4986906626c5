// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What an attached instance holds and counts, read and shown.

pub mod counters;
pub mod entries;
pub mod prometheus;
