// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The data path, frame by frame: what comes in, what goes out, what is
//! counted. No memcached; the test plays it. No network but loopback, for TCP.
//! Needs root.
//!
//! Not covered, because a test run cannot do it: tags that the kernel keeps
//! outside the frame, frames in several buffers, `CHECKSUM_COMPLETE`, GSO.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod binary;
mod connection;
mod entries;
mod expiry;
mod fills;
#[path = "../fixture/mod.rs"]
mod fixture;
mod fuzz;
#[path = "../packet/mod.rs"]
mod packet;
mod pipelines;
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
#[path = "../common/random.rs"]
mod random;
mod reads;
mod recovery;
mod scene;
mod sleep;
mod streams;
mod table;
mod writes;
