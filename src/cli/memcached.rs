// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The arguments of `bmc memcached`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::command::memcached::Options;
use crate::memcached::reuseport::Steer;

/// Arguments of `bmc memcached`.
#[derive(Args, Debug)]
pub struct Memcached {
    /// The memcached to run; by default the one on PATH
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,

    /// What chooses the worker that gets a datagram
    #[arg(long, value_name = "BY", value_enum, default_value_t)]
    pub steer: Steer,

    /// Arguments for memcached, including -U PORT
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

impl Memcached {
    /// The options that these arguments stand for.
    pub fn options(self) -> Options {
        let Self { binary, steer, args } = self;
        Options { binary, steer, args }
    }
}

impl ValueEnum for Steer {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Datagram, Self::Client, Self::Cpu]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Datagram => (
                "datagram",
                "Chance, for each datagram: all workers get equal load, however few the clients",
            ),
            Self::Client => {
                ("client", "The client's address and port: each client keeps to one worker")
            }
            Self::Cpu => {
                ("cpu", "The CPU that received it: for a network card with a queue for each CPU")
            }
        };
        Some(PossibleValue::new(name).help(help))
    }
}
