// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The machine: system calls, netlink, and facts about it.

pub mod facts;
pub mod netlink;
pub mod sys;
