// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The generated skeletons: the maps, programs and types of the BPF objects. Those of
//! `bpf/bmc.bpf.c` are not in a module of their own.

// Generated code is not held to our lints.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    unsafe_code
)]

mod imp {
    include!(concat!(env!("OUT_DIR"), "/bmc.skel.rs"));
}

pub use imp::*;

/// The skeleton of `bpf/gone.bpf.c`.
pub mod gone {
    include!(concat!(env!("OUT_DIR"), "/gone.skel.rs"));
}

/// The skeleton of `bpf/abi.bpf.c`.
pub mod abi {
    include!(concat!(env!("OUT_DIR"), "/abi.skel.rs"));
}

/// The skeleton of `bpf/bench.bpf.c`.
pub mod bench {
    include!(concat!(env!("OUT_DIR"), "/bench.skel.rs"));
}
