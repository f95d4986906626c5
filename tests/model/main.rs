// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The coherence protocol of bmc, explored exhaustively: every order in which a
//! few GETs and writes may meet, in the CPUs that run bmc, on the way to
//! memcached and back.
//!
//! cases.rs says which GETs and writes, and what happens if something is taken
//! out of the protocol; system.rs what the properties are; system/protocol.rs
//! has the steps, as the C code has them; linear.rs and search.rs know nothing
//! of bmc.
//!
//! Whoever changes the protocol changes system/protocol.rs alike, and is told.
//!
//! `cargo test --test model -- --nocapture` shows the number of states and how
//! the broken variants fail. With `BMC_MODEL=full` there are more GETs: see
//! `few()` in cases.rs.

mod cases;
mod linear;
mod search;
mod system;
