// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The commands, one file or folder each.

pub mod attach;
pub mod bench;
pub mod doctor;
pub mod status;
pub mod top;
