// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The parts of the `bmc` tool. It is a library so that tests can use them.
//!
//! Each may use those below it, and none above: see `tests/layers.rs`.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod abi;
pub mod cli;
pub mod command;
pub mod format;
pub mod host;
pub mod instance;
pub mod load;
pub mod memcached;
pub mod message;
pub mod skel;
pub mod view;
