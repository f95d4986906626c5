// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The arguments of `bmc attach`.

use std::str::FromStr as _;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::values::{age, iface, memory};
use crate::command::attach;
use crate::load::options::{Cidr, Mode, Options};

/// Arguments of `bmc attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// Network interfaces through which clients reach memcached
    #[arg(required = true, value_name = "IFACE", value_parser = iface)]
    pub interfaces: Vec<String>,

    /// UDP and TCP port of memcached; up to 16, by repeating or with commas
    #[arg(
        long = "port",
        value_name = "PORT",
        default_value = "11211",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub ports: Vec<u16>,

    /// Where hits are answered
    #[arg(long, value_enum, default_value_t = Mode::default())]
    pub mode: Mode,

    /// Memory to lock for the cache, in total: 16M to 64G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory)]
    pub memory: u64,

    /// Age at which an entry is fetched again: 10ms to 7d
    ///
    /// Hits do not reach memcached, so hot items may look cold to its LRU. With
    /// the default they do not: memcached itself notes the use of an item at
    /// most once in 60s.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = age)]
    pub max_age: Duration,

    /// The same for entries whose expiry is not known: 10ms to 7d
    ///
    /// memcached does not reveal when an item expires. The default is the tick of
    /// memcached's clock. If no item has an expiry, it can be as high as --max-age.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = age)]
    pub unknown_ttl: Duration,

    /// Clients to answer; up to 32 for each of IPv4 and IPv6
    ///
    /// Addresses, or networks as ADDRESS/BITS. All other clients are left to
    /// memcached. By default the private, link-local, loopback and unique-local
    /// networks are answered.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = Cidr::from_str)]
    pub allow: Vec<Cidr>,

    /// Do not watch the loopback interface for writes
    #[arg(long)]
    pub no_loopback: bool,

    /// Replace an attached instance, if there is one
    ///
    /// Programs are exchanged without a gap. The cache is kept unless --memory
    /// or its layout differs.
    #[arg(long)]
    pub replace: bool,

    /// Stay in the foreground, print statistics, and detach on Ctrl-C
    #[arg(long)]
    pub foreground: bool,
}

impl Attach {
    /// The options that these arguments stand for.
    pub fn options(&self) -> attach::Options {
        let mut ports = self.ports.clone();
        ports.sort_unstable();
        ports.dedup();
        let mut cache = Options {
            ports,
            mode: self.mode,
            memory: self.memory,
            max_age: self.max_age,
            unknown_ttl: self.unknown_ttl,
            ..Options::default()
        };
        if !self.allow.is_empty() {
            cache.allow.clone_from(&self.allow);
        }
        attach::Options {
            interfaces: self.interfaces.clone(),
            cache,
            watch_loopback: !self.no_loopback,
            replace: self.replace,
            foreground: self.foreground,
        }
    }
}

impl ValueEnum for Mode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Native, Self::Tc, Self::Generic]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Auto => ("auto", "In the driver (XDP) if possible, else in tc"),
            Self::Native => ("native", "In the driver (XDP), or fail"),
            Self::Tc => ("tc", "In the network stack, behind the driver; no XDP program"),
            Self::Generic => ("generic", "In the network stack as XDP; slower than tc, for tests"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn options(args: &[&str]) -> attach::Options {
        let line = [&["bmc", "attach", "eth0"], args].concat();
        match Cli::try_parse_from(line).map(|cli| cli.command) {
            Ok(Command::Attach(attach)) => attach.options(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_that_help_shows_are_those_of_the_options() {
        let interfaces = vec!["eth0".into()];
        assert_eq!(options(&[]), attach::Options { interfaces, ..Default::default() });
    }

    #[test]
    fn ports_are_sorted_and_each_is_there_once() {
        let given = options(&["--port", "2,1", "--port", "2"]);
        assert_eq!(given.cache.ports, [1, 2]);
    }

    #[test]
    fn networks_that_are_given_replace_the_default_ones() {
        let given = options(&["--allow", "192.0.2.0/24"]);
        assert_eq!(given.cache.allow, ["192.0.2.0/24".parse().expect("valid")]);
    }

    #[test]
    fn refuses_ports_out_of_range() {
        for ports in ["0", "65536", "x", ""] {
            let args = ["bmc", "attach", "eth0", "--port", ports];
            assert!(Cli::try_parse_from(args).is_err(), "{ports}");
        }
    }
}
