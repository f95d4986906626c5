// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The commands, one file or folder each. None knows of the command line: each has options
//! of its own, which tests and other commands fill in as the command line does.

pub mod attach;
pub mod bench;
pub mod completions;
pub mod detach;
pub mod doctor;
pub mod entries;
pub mod flush;
pub mod man;
pub mod memcached;
pub mod stats;
pub mod status;
pub mod top;
