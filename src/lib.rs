// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The parts of the `bmc` tool; a library only so that the tests can use them.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod attach;
pub mod bench;
pub mod cli;
pub mod doctor;
pub mod entries;
pub mod hook;
pub mod instance;
pub mod kernel;
pub mod layout;
pub mod memcached;
pub mod message;
pub mod metrics;
pub mod netlink;
pub mod output;
pub mod random;
pub mod skel;
pub mod stats;
pub mod system;
pub mod top;
pub mod workers;
