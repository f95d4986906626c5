// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The skeleton of `bpf/bmc.bpf.c`: its maps, programs and types, generated.

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

/// The skeleton of `bpf/flood.bpf.c`.
pub mod flood {
    include!(concat!(env!("OUT_DIR"), "/flood.skel.rs"));
}

/// The skeleton of `bpf/chaos.bpf.c`.
pub mod chaos {
    include!(concat!(env!("OUT_DIR"), "/chaos.skel.rs"));
}
