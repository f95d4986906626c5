// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! memcached itself: asking it how it is set up, and running it.

pub mod probe;
pub mod reuseport;
pub mod settings;
pub mod stats;
