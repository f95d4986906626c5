// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The command line: its types, its help, and the options that it stands for.

// Doc comments are the help here, and help knows no backticks.
#![allow(clippy::doc_markdown)]

mod attach;
mod bench;
mod memcached;
mod stats;
mod top;
mod values;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

pub use self::attach::Attach;
pub use self::bench::Bench;
pub use self::memcached::Memcached;
pub use self::stats::Stats;
pub use self::top::Top;
pub use self::values::Key;
use self::values::{iface, instance, key};
use crate::command::entries;
use crate::command::stats::Format;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the reason is on stderr
  2  wrong usage
  3  not attached";

/// An in-kernel cache for an unmodified memcached.
///
/// bmc answers memcached's GETs over UDP before they reach the network stack,
/// from a cache in the kernel that it fills from memcached's own replies and
/// invalidates by the writes that it sees. What it does not fully understand
/// passes unchanged.
///
/// Verbs (attach, detach, flush) change something, all other commands never do.
/// Data goes to stdout, messages go to stderr.
#[derive(Debug, Parser)]
#[command(name = "bmc", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// The instance: several can be attached, each to other interfaces
    #[arg(long, global = true, value_name = "NAME", default_value = "default", value_parser = instance)]
    pub instance: String,

    /// Print more: every change, and the full log if the kernel refuses something
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

impl Cli {
    /// Reads the command line; does not return if it is wrong.
    pub fn read() -> Self {
        let cli = Self::parse();
        if let Err((kind, why)) = cli.check() {
            Self::command().error(kind, why).exit();
        }
        cli
    }

    /// Checks what cannot be checked argument by argument.
    pub fn check(&self) -> Result<(), (ErrorKind, String)> {
        match &self.command {
            Command::Attach(attach) => {
                attach.options().cache.check().map_err(|why| (ErrorKind::TooManyValues, why))
            }
            Command::Stats(stats)
                if stats.watch.is_some() && stats.format == Format::Prometheus =>
            {
                let why = "--watch does not go with --format prometheus: a scrape is one page";
                Err((ErrorKind::ArgumentConflict, why.into()))
            }
            _ => Ok(()),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start caching on network interfaces
    ///
    /// Returns as soon as the cache works; it lives in the kernel until `bmc
    /// detach`. If it fails, nothing has changed.
    ///
    /// The loopback interface is watched as well, so that writes of local
    /// clients invalidate entries too. Writes that cross neither the loopback
    /// nor one of the given interfaces (unix sockets, other interfaces) are not
    /// seen: entries may then be stale for up to --max-age.
    Attach(Attach),

    /// Stop caching
    ///
    /// Without arguments on all interfaces, leaving nothing behind; else on the
    /// given ones, which are then no longer watched for writes.
    Detach {
        /// Network interfaces; by default all that are attached
        #[arg(value_name = "IFACE", value_parser = iface)]
        interfaces: Vec<String>,
    },

    /// Remove every entry
    Flush,

    /// Show what is attached where, and how
    ///
    /// The cost of each program is known while the sysctl
    /// kernel.bpf_stats_enabled is 1.
    Status {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },

    /// Show the counters
    ///
    /// They start at 0 when bmc is attached and are never reset.
    Stats(Stats),

    /// Show what is cached
    ///
    /// In the order of the index. Entries may come and go meanwhile.
    Entries(Entries),

    /// Watch an instance live
    ///
    /// Shows rates and their history, the most requested keys, the share of each CPU,
    /// the cost of each program and the use of memory. Press ? for help. If stdout is
    /// not a terminal, it prints a line after each interval.
    ///
    /// Keys are sampled: a hundred times a second it reads which key each CPU looked
    /// up last, without sending or changing anything. Their rates are estimates from
    /// the last ten seconds or so. A GET with several keys counts for its last key.
    /// Keys that are not in the cache are left out.
    Top(Top),

    /// Measure what bmc gains on this machine
    ///
    /// Runs the installed memcached without bmc and with it, in network
    /// namespaces that end with this command; nothing else on the machine is
    /// touched. By default it takes about a minute for each case and keeps two
    /// CPUs busy. Progress goes to stderr.
    Bench(Bench),

    /// Find what would stop bmc from working or helping here
    ///
    /// Checks the kernel, the network interfaces and the memcacheds of this
    /// network namespace without changing anything, and prints what it found
    /// and which command fixes it. Each line starts with a level: ok, note (good
    /// to know), warning (bmc would help less, or not at all) or blocker (bmc
    /// attach would fail, or should not be used). Exits with 1 if there is a
    /// blocker.
    ///
    /// Without root it sees less, and says so.
    Doctor {
        /// Network interfaces; by default all that are up, except the loopback
        #[arg(value_name = "IFACE", value_parser = iface)]
        interfaces: Vec<String>,

        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },

    /// Run memcached with one UDP socket for each of its workers
    ///
    /// The installed memcached has one for all workers, which they use in turn.
    /// This process becomes memcached, so signals, exit codes and supervisors work
    /// as usual. TCP is left as it is.
    Memcached(Memcached),

    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },

    /// Print the manual page
    ///
    /// To read it: bmc man | man -l -
    Man {
        /// The command; by default all of them on one page
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// Arguments of `bmc entries`.
#[derive(Args, Debug)]
pub struct Entries {
    /// Show at most this many entries
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// Show the entries of this key only; bytes as \xNN
    #[arg(long, value_parser = key)]
    pub key: Option<Key>,

    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

impl Entries {
    /// The options that these arguments stand for.
    pub fn options(self) -> entries::Options {
        let Self { limit, key, json } = self;
        entries::Options { limit, key: key.map(|Key(key)| key), json }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_valid_command_line() {
        Cli::command().debug_assert();
    }
}
