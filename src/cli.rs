// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The command line: its types, its help, and how its values are read.

// Doc comments are the help here, which knows no backticks.
#![allow(clippy::doc_markdown)]

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use clap::CommandFactory as _;
use clap::FromArgMatches as _;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use clap::error::ErrorKind;
use clap_complete::Shell;

use crate::bench::cases;
use crate::bench::cases::Case;
use crate::layout;

/// How many `struct bmc_config` has room for.
const PORTS_MAX: usize = 16;
const ALLOW_MAX: usize = 32; // for each address family

const INSTANCE_MAX: usize = 128;

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

    /// Which bmc: several may be attached side by side, to different interfaces
    #[arg(long, global = true, value_name = "NAME", default_value = "default", value_parser = instance)]
    pub instance: String,

    /// Say more: what changes, and the whole of the kernel's refusals
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

    /// What is wrong beyond what single arguments can be asked.
    pub fn check(&self) -> Result<(), (ErrorKind, String)> {
        match &self.command {
            Command::Attach(attach) => {
                attach.check().map_err(|why| (ErrorKind::TooManyValues, why))
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
    /// Start to cache on network interfaces
    ///
    /// Returns as soon as the cache works; it lives in the kernel until `bmc
    /// detach`. On any error nothing has changed.
    ///
    /// The loopback interface is watched as well, so that writes of local
    /// clients invalidate what they change. Writes that cross neither it nor
    /// one of the interfaces given (unix sockets, other interfaces) are not
    /// seen: an entry may then be as old as --max-age.
    Attach(Attach),

    /// Stop to cache
    ///
    /// Leaves nothing behind. Without arguments on all interfaces; with them on
    /// these, which are no longer watched for writes then.
    Detach {
        /// Network interfaces; all that are attached when omitted
        #[arg(value_name = "IFACE", value_parser = iface)]
        interfaces: Vec<String>,
    },

    /// Forget every entry
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
    /// They count from the attachment on and are never reset.
    Stats(Stats),

    /// Show what is cached
    ///
    /// The order is that of the index; entries come and go meanwhile.
    Entries {
        /// Show at most this many entries
        #[arg(long, value_name = "N")]
        limit: Option<usize>,

        /// Show the entries of this key only; bytes as \xNN
        #[arg(long, value_parser = key)]
        key: Option<Key>,

        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },

    /// Watch what is attached, live
    ///
    /// Rates and their history, the keys that are asked for most, each CPU's share,
    /// what a run of each program costs, what became of the memory. Press ? for its
    /// keys. Where stdout is no terminal, it prints a line after each interval.
    ///
    /// The keys are found by looking, a hundred times a second, at what each CPU was
    /// asked for last; nothing is sent or changed. Their rates are estimates, from the
    /// last ten seconds or so; of a GET with several keys, the last stands for it.
    /// Keys that are not in the cache are left out.
    Top(Top),

    /// Measure what bmc gains on this machine
    ///
    /// Runs the installed memcached without bmc and with it, in network
    /// namespaces that end with this command; nothing else on the machine is
    /// touched. It takes about a minute for each case with the defaults and keeps
    /// two CPUs busy. Progress goes to stderr.
    Bench(Bench),

    /// Find what would stop bmc from working or helping here
    ///
    /// Looks at the kernel, the network interfaces and the memcacheds of this
    /// network namespace, changes nothing, and tells what it found with the
    /// command that mends it. Each line starts with a level: ok, note (good to
    /// know), warning (bmc would be of less use or none) or blocker (bmc attach
    /// would fail, or should not be used). Exits with 1 if there is a blocker.
    ///
    /// Without root it sees less, and says what.
    Doctor {
        /// Network interfaces; all that are up when omitted, but the loopback
        #[arg(value_name = "IFACE", value_parser = iface)]
        interfaces: Vec<String>,

        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },

    /// Run memcached with one UDP socket for each of its workers
    ///
    /// The installed memcached has one for all of them, which they take turns at.
    /// This process becomes memcached: signals, exit codes and what supervises it
    /// see nothing else. TCP is left as it is.
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
        /// Of one command alone; of all when omitted
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// Arguments of `bmc attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// Network interfaces that memcached's clients come in by
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
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,

    /// Memory to lock for the cache, all told: 16M to 64G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory)]
    pub memory: u64,

    /// Age at which an entry is fetched anew: 10ms to 7d
    ///
    /// Hits do not reach memcached, which therefore takes hot items for cold.
    /// Its own bookkeeping of use is as coarse as the default.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = age)]
    pub max_age: Duration,

    /// The same for entries whose expiry is not known: 10ms to 7d
    ///
    /// memcached does not tell when an item expires. The default is the tick of
    /// memcached's clock; where no item has an expiry it can be as high as
    /// --max-age.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = age)]
    pub unknown_ttl: Duration,

    /// Clients to answer; up to 32 for each of IPv4 and IPv6
    ///
    /// An address, or a network as ADDRESS/BITS. All others are left to
    /// memcached. By default the private, link-local, loopback and unique-local
    /// networks.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = Cidr::from_str)]
    pub allow: Vec<Cidr>,

    /// Do not watch the loopback interface for writes
    #[arg(long)]
    pub no_loopback: bool,

    /// Change what is attached to what is given here, or attach
    ///
    /// Programs are exchanged without a gap. The cache is kept unless --memory
    /// or its layout is another.
    #[arg(long)]
    pub replace: bool,

    /// Stay, print statistics, and detach at the end (Ctrl-C)
    #[arg(long)]
    pub foreground: bool,
}

impl Attach {
    /// What `bmc attach IFACE` means with these options.
    pub fn with(options: &[&str]) -> Result<Self, clap::Error> {
        let command = Self::augment_args(clap::Command::new("attach").no_binary_name(true));
        Self::from_arg_matches(&command.try_get_matches_from([&["IFACE"], options].concat())?)
    }

    /// The ports, each once.
    pub fn ports(&self) -> Vec<u16> {
        let mut ports = self.ports.clone();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    fn check(&self) -> Result<(), String> {
        if self.ports().len() > PORTS_MAX {
            return Err(format!("--port is given more than {PORTS_MAX} times"));
        }
        let (v4, v6): (Vec<Cidr>, Vec<Cidr>) =
            self.allow.iter().partition(|cidr| cidr.addr.is_ipv4());
        if v4.len().max(v6.len()) > ALLOW_MAX {
            return Err(format!("--allow is given more than {ALLOW_MAX} times for a family"));
        }
        Ok(())
    }
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// In the driver (XDP) where it can, else as tc
    Auto,
    /// In the driver (XDP), or fail
    Native,
    /// In the network stack, behind the driver; no XDP program
    Tc,
    /// In the network stack as XDP; slower than tc, for tests
    Generic,
}

/// Arguments of `bmc stats`.
#[derive(Args, Debug)]
pub struct Stats {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,

    /// Show each CPU as well
    #[arg(long)]
    pub per_cpu: bool,

    /// Print again and again, every so many seconds
    ///
    /// Until the instance is detached (exit code 3) or a signal ends it (0).
    /// Counters that a replaced instance does not keep start at 0 again; "since"
    /// in JSON tells that.
    #[arg(
        long,
        value_name = "SECS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = seconds
    )]
    pub watch: Option<Duration>,

    /// Stop after printing this often
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// An object a line
    Json,
    /// Comma-separated, a header first
    Csv,
    /// Prometheus' text format
    Prometheus,
}

/// Arguments of `bmc top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Show anew every so many seconds: 0.01 to 86400
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = seconds)]
    pub interval: Duration,

    /// Stop after so many intervals
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Print a JSON object after each interval, on a terminal too
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bmc bench`.
#[derive(Args, Debug)]
pub struct Bench {
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,

    /// Length of each measurement: 0.05 to 3600
    #[arg(long, value_name = "N", default_value = "2", value_parser = turn)]
    pub seconds: Duration,

    /// How often each is repeated, all sides taking turns: 1 to 99
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..100))]
    pub rounds: u32,

    /// What to measure, by repeating or with commas; everything when omitted
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = cases::by_name)]
    pub cases: Vec<&'static Case>,

    /// List the cases and measure nothing
    #[arg(long)]
    pub list: bool,

    /// The memcached to run
    #[arg(long, value_name = "PATH", default_value = "memcached")]
    pub memcached: PathBuf,

    /// Memory for bmc: 16M to 64G; the zipf cases always have 16M
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = memory)]
    pub memory: u64,
}

/// What chooses the worker that gets a datagram.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Steer {
    /// Chance, for each anew: all get as much to do, however few the clients are
    #[default]
    Datagram,
    /// The client's address and port: a client keeps to one worker
    Client,
    /// The CPU that received it: for a network card with a queue for each CPU
    Cpu,
}

/// Arguments of `bmc memcached`.
#[derive(Args, Debug)]
pub struct Memcached {
    /// The memcached to run; without it, the one on PATH
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,

    /// What chooses the worker that gets a datagram
    #[arg(long, value_name = "BY", value_enum, default_value_t)]
    pub steer: Steer,

    /// Arguments for memcached, -U PORT among them
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// A network, by its first address and the number of its fixed bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The first address.
    pub addr: IpAddr,
    /// Leading bits that do not vary.
    pub bits: u8,
}

impl Cidr {
    /// The bits that do not vary, of 128 (IPv4: the first 32 of them).
    fn mask(bits: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
    }

    fn masked(self) -> IpAddr {
        match self.addr {
            IpAddr::V4(addr) => {
                IpAddr::V4((addr.to_bits() & (Self::mask(self.bits) >> 96) as u32).into())
            }
            IpAddr::V6(addr) => IpAddr::V6((addr.to_bits() & Self::mask(self.bits)).into()),
        }
    }

    /// First address and mask, in network byte order; IPv4 in the first four.
    pub fn bytes(self) -> ([u8; 16], [u8; 16]) {
        let mut addr = [0; 16];
        match self.addr {
            IpAddr::V4(v4) => addr[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => addr = v6.octets(),
        }
        (addr, Self::mask(self.bits).to_be_bytes())
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let addr: IpAddr = addr
            .parse()
            .map_err(|_| "not an IPv4 or IPv6 network, as in 10.0.0.0/8 or fd00::/8")?;
        let most = if addr.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| format!("not a number of bits up to {most} behind the /"))?,
        };
        let cidr = Self { addr, bits };
        let masked = Self { addr: cidr.masked(), bits };
        if cidr != masked {
            return Err(format!("has bits set behind the first {bits} (did you mean {masked}?)"));
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

/// A key, any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(pub Vec<u8>);

fn instance(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || text.len() > INSTANCE_MAX || !text.chars().all(valid) {
        return Err("up to 128 letters, digits, '-' and '_'".into());
    }
    Ok(text.into())
}

fn iface(text: &str) -> Result<String, String> {
    match text {
        "lo" => Err("the loopback interface is watched anyway, and never served".into()),
        "" => Err("an interface has a name".into()),
        _ => Ok(text.into()),
    }
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if !layout::MEMORY.contains(&bytes) {
        return Err(layout::not_within());
    }
    Ok(bytes)
}

/// A number of bytes: digits and perhaps K, M, G or T, or KiB and so on.
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_number(text)?;
    let shift = match unit.strip_suffix("iB").unwrap_or(unit).to_ascii_uppercase().as_str() {
        "" if unit.is_empty() => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("not a size: bytes, or a number with K, M, G or T".into()),
    };
    digits.checked_mul(1 << shift).ok_or_else(|| "too much".into())
}

fn age(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if !(Duration::from_millis(10)..=Duration::from_secs(7 * 86400)).contains(&time) {
        return Err("not within 10ms and 7d".into());
    }
    Ok(time)
}

/// A time: a number with ms, s, m, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text)?;
    let ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(format!("no unit: {text}s, {text}ms, or with m, h or d")),
        _ => return Err("not a time: a number with ms, s, m, h or d".into()),
    };
    let ms = number.checked_mul(ms).ok_or("too long")?;
    Ok(Duration::from_millis(ms))
}

/// Splits "64M" in two.
fn split_number(text: &str) -> Result<(u64, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err("does not start with a whole number".into());
    }
    Ok((digits.parse().map_err(|_| "too large a number")?, unit))
}

fn seconds(text: &str) -> Result<Duration, String> {
    seconds_within(text, 0.01, 86400.0)
}

/// The length of a measurement.
fn turn(text: &str) -> Result<Duration, String> {
    seconds_within(text, 0.05, 3600.0)
}

fn seconds_within(text: &str, least: f64, most: f64) -> Result<Duration, String> {
    let secs: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if !(least..=most).contains(&secs) {
        return Err(format!("not within {least} and {most} seconds"));
    }
    Ok(Duration::from_secs_f64(secs))
}

fn key(text: &str) -> Result<Key, String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend(before.bytes());
        let byte = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.ok_or("\\x is not followed by two hexadecimal digits")?);
        rest = &after[2..];
    }
    bytes.extend(rest.bytes());
    if bytes.is_empty() || bytes.len() > 250 {
        return Err("a key has 1 to 250 bytes".into());
    }
    Ok(Key(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_valid_command_line() {
        Cli::command().debug_assert();
    }

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [
            ("16777216", 16 << 20),
            ("256M", 256 << 20),
            ("256m", 256 << 20),
            ("256MiB", 256 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("20480K", 20 << 20),
        ] {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for (text, why) in [
            ("", "does not start with a whole number"),
            ("M", "does not start with a whole number"),
            ("-1M", "does not start with a whole number"),
            ("1.5G", "not a size: bytes, or a number with K, M, G or T"),
            ("256 M", "not a size: bytes, or a number with K, M, G or T"),
            ("256iB", "not a size: bytes, or a number with K, M, G or T"),
            ("256MB", "not a size: bytes, or a number with K, M, G or T"),
            ("99999999999999999999", "too large a number"),
            ("99999999999999T", "too much"),
            ("15M", "not within 16M and 64G"),
            ("65G", "not within 16M and 64G"),
        ] {
            assert_eq!(memory(text), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn reads_times() {
        for (text, ms) in [
            ("10ms", 10),
            ("500ms", 500),
            ("60s", 60_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(age(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_time() {
        for (text, why) in [
            ("60", "no unit: 60s, 60ms, or with m, h or d"),
            ("s", "does not start with a whole number"),
            ("1.5s", "not a time: a number with ms, s, m, h or d"),
            ("1w", "not a time: a number with ms, s, m, h or d"),
            ("9ms", "not within 10ms and 7d"),
            ("8d", "not within 10ms and 7d"),
            ("99999999999999999d", "too long"),
        ] {
            assert_eq!(age(text), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn reads_networks() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().map(|c| c.to_string()), Ok(shown.into()), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_network() {
        for (text, why) in [
            ("10.0.0.1/8", "has bits set behind the first 8 (did you mean 10.0.0.0/8?)"),
            ("fd00::1/64", "has bits set behind the first 64 (did you mean fd00::/64?)"),
            ("10.0.0.0/33", "not a number of bits up to 32 behind the /"),
            ("fd00::/129", "not a number of bits up to 128 behind the /"),
            ("10.0.0.0/", "not a number of bits up to 32 behind the /"),
            ("10.0.0/8", "not an IPv4 or IPv6 network, as in 10.0.0.0/8 or fd00::/8"),
            ("example.org", "not an IPv4 or IPv6 network, as in 10.0.0.0/8 or fd00::/8"),
        ] {
            assert_eq!(text.parse::<Cidr>(), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn turns_networks_into_bytes_as_on_the_wire() {
        let (addr, mask) = "172.16.0.0/12".parse::<Cidr>().expect("valid").bytes();
        assert_eq!(addr[..4], [172, 16, 0, 0]);
        assert_eq!(mask[..4], [255, 240, 0, 0]);
        let (addr, mask) = "fe80::/10".parse::<Cidr>().expect("valid").bytes();
        assert_eq!(addr[..2], [0xfe, 0x80]);
        assert_eq!(mask[..3], [0xff, 0xc0, 0]);
        assert_eq!("::/0".parse::<Cidr>().expect("valid").bytes().1, [0; 16]);
    }

    #[test]
    fn reads_keys_with_escapes() {
        assert_eq!(key("a\\x00b\\xff"), Ok(Key(b"a\0b\xff".to_vec())));
        assert_eq!(key("a\\b"), Ok(Key(b"a\\b".to_vec())));
        assert!(key("\\x0").is_err());
        assert!(key("\\xé").is_err());
        assert!(key("").is_err());
        assert!(key(&"k".repeat(251)).is_err());
    }

    #[test]
    fn refuses_instances_that_bpffs_or_bmc_could_mistake() {
        for text in ["", ".", "..", "a.b", "a/b", "new~default", "a b", &"x".repeat(129)] {
            assert!(instance(text).is_err(), "{text}");
        }
        assert_eq!(instance("web-1_a"), Ok("web-1_a".into()));
    }

    #[test]
    fn refuses_ports_out_of_range() {
        for ports in ["0", "65536", "x", ""] {
            let args = ["bmc", "attach", "eth0", "--port", ports];
            assert!(Cli::try_parse_from(args).is_err(), "{ports}");
        }
    }
}
