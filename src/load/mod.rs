// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! From options to programs that the kernel has taken.

pub mod layout;
