// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The parts of the `bmc` tool; a library only so that the tests can use them.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod cli;
pub mod command;
pub mod host;
pub mod instance;
pub mod load;
pub mod memcached;
pub mod message;
pub mod skel;
pub mod view;
