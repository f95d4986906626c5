// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! From options to programs and maps in the kernel. Nothing here knows of pins or
//! interfaces.

pub mod config;
pub mod layout;
pub mod options;
pub mod programs;
