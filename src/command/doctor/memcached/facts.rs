// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What is known of the memcacheds of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use procfs::Current as _;
use procfs::net::{Snmp, Snmp6, TcpState};
use procfs::process::{FDTarget, Process, all_processes};
use serde_json::{Value, json};

use crate::command::doctor::subject::{Subject, bmc};
use crate::host::facts;
use crate::instance::Instance;
use crate::load::config::ports;
use crate::load::options::Options;
use crate::memcached::settings::Problem;
use crate::memcached::stats::{Answer, Topic, ask_all};

/// The name of the processes.
pub(crate) const NAME: &str = "memcached";

/// The memcacheds of this machine, as far as this process can see them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memcacheds {
    /// The start of a command line about the instance.
    pub(crate) bmc: String,
    pub(crate) is_attached: bool,
    pub(crate) found: Vec<Memcached>,
    /// Processes in other network namespaces.
    pub(crate) elsewhere: Vec<i32>,
    /// Processes that this process may not inspect.
    pub(crate) hidden: Vec<i32>,
    /// The ports that the instance watches, or that `bmc attach` watches by default.
    pub(crate) watched: Vec<u16>,
    /// The ports of every instance in this namespace, with the start of a command line about it.
    pub(crate) answered: Vec<(String, Vec<u16>)>,
    /// UDP datagrams that this network namespace received, for any process.
    pub(crate) datagrams: Option<u64>,
}

/// A memcached that listens in this network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Memcached {
    /// `None` if only its port is known.
    pub(crate) process: Option<i32>,
    /// Its arguments, without its name.
    pub(crate) arguments: Vec<String>,
    pub(crate) tcp: Vec<SocketAddr>,
    /// One address for each socket.
    pub(crate) udp: Vec<SocketAddr>,
    pub(crate) unix: Vec<PathBuf>,
    /// What it answered when asked for its settings.
    pub(crate) settings_answer: Answer,
    pub(crate) counters: BTreeMap<String, String>,
}

/// The listening sockets of this network namespace, by inode.
struct Sockets {
    tcp: BTreeMap<u64, SocketAddr>,
    udp: BTreeMap<u64, SocketAddr>,
    unix: BTreeMap<u64, PathBuf>,
}

impl Sockets {
    fn read() -> Self {
        let tcp = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
        let udp = [procfs::net::udp(), procfs::net::udp6()].into_iter().flatten().flatten();
        let unix = procfs::net::unix().into_iter().flatten();
        Self {
            tcp: tcp
                .filter(|socket| socket.state == TcpState::Listen)
                .map(|socket| (socket.inode, socket.local_address))
                .collect(),
            udp: udp
                .filter(|socket| socket.remote_address.port() == 0)
                .map(|socket| (socket.inode, socket.local_address))
                .collect(),
            unix: unix.filter_map(|socket| Some((socket.inode, socket.path?))).collect(),
        }
    }
}

impl Memcacheds {
    pub(crate) fn read(subject: &Subject<'_>) -> Self {
        let sockets = Sockets::read();
        let here = facts::network_namespace().ok();
        let mut all = Self {
            bmc: subject.bmc.clone(),
            is_attached: subject.own.is_some(),
            watched: match subject.own.as_ref().and_then(|own| own.config().ok()) {
                Some(config) => ports(&config),
                None => Options::default().ports,
            },
            answered: answered(),
            datagrams: datagrams(),
            ..Default::default()
        };
        let is_memcached = |process: &Process| process.stat().is_ok_and(|stat| stat.comm == NAME);
        for process in all_processes().into_iter().flatten().flatten().filter(is_memcached) {
            // If the namespace cannot be read, neither can the sockets, which is handled below.
            let namespace = fs::read_link(format!("/proc/{}/ns/net", process.pid())).ok();
            if namespace.is_some() && namespace != here {
                all.elsewhere.push(process.pid());
                continue;
            }
            match Memcached::of(&process, &sockets) {
                Some(memcached) if memcached.is_reachable() => all.found.push(memcached),
                Some(_) => {} // it has only just begun
                None => all.hidden.push(process.pid()),
            }
        }
        let known: BTreeSet<_> = all.found.iter().flat_map(|found| found.tcp.clone()).collect();
        for port in &all.watched {
            let at_port = |at: &&SocketAddr| at.port() == *port && !known.contains(at);
            let tcp: BTreeSet<_> = sockets.tcp.values().filter(at_port).copied().collect();
            let udp: BTreeSet<_> = sockets.udp.values().filter(at_port).copied().collect();
            if !tcp.is_empty() {
                all.found.push(Memcached::at(tcp, udp));
            }
        }
        all.ask();
        all
    }

    /// Asks all of them at once for settings and counters.
    fn ask(&mut self) {
        let addresses: Vec<_> = self.found.iter().filter_map(Memcached::address).collect();
        let settings: BTreeMap<_, _> = ask_all(&addresses, Topic::Settings).into_iter().collect();
        let is_open = |at: &SocketAddr| matches!(settings.get(at), Some(Answer::Stats(_)));
        let open: Vec<_> = addresses.into_iter().filter(is_open).collect();
        let counters: BTreeMap<_, _> = ask_all(&open, Topic::Counters).into_iter().collect();
        for found in &mut self.found {
            let Some(at) = found.address() else { continue };
            found.settings_answer = settings.get(&at).cloned().unwrap_or(Answer::NoListener);
            if let Some(Answer::Stats(counters)) = counters.get(&at) {
                found.counters.clone_from(counters);
            }
        }
    }

    /// Whether one of them listens on all addresses.
    pub(crate) fn listen_everywhere(&self) -> bool {
        let mut at = self.found.iter().flat_map(|found| found.tcp.iter().chain(&found.udp));
        at.any(|at| at.ip().is_unspecified())
    }

    pub(crate) fn json(&self) -> Value {
        self.found.iter().map(|found| found.json(&self.watched)).collect()
    }
}

impl Memcached {
    /// The memcached of a process; `None` if this process may not inspect it.
    fn of(process: &Process, sockets: &Sockets) -> Option<Self> {
        let mut memcached = Self {
            process: Some(process.pid()),
            arguments: process.cmdline().unwrap_or_default().into_iter().skip(1).collect(),
            tcp: Vec::new(),
            udp: Vec::new(),
            unix: Vec::new(),
            settings_answer: Answer::NoListener,
            counters: BTreeMap::new(),
        };
        // memcached has several descriptors for the same socket.
        let mut inodes = BTreeSet::new();
        for file in process.fd().ok()? {
            let FDTarget::Socket(inode) = file.ok()?.target else { continue };
            if !inodes.insert(inode) {
                continue;
            }
            memcached.tcp.extend(sockets.tcp.get(&inode));
            memcached.udp.extend(sockets.udp.get(&inode));
            memcached.unix.extend(sockets.unix.get(&inode).cloned());
        }
        memcached.tcp.sort_unstable();
        memcached.udp.sort_unstable();
        Some(memcached)
    }

    /// A memcached of which only the addresses are known.
    fn at(tcp: BTreeSet<SocketAddr>, udp: BTreeSet<SocketAddr>) -> Self {
        Self {
            process: None,
            arguments: Vec::new(),
            tcp: tcp.into_iter().collect(),
            udp: udp.into_iter().collect(),
            unix: Vec::new(),
            settings_answer: Answer::NoListener,
            counters: BTreeMap::new(),
        }
    }

    fn is_reachable(&self) -> bool {
        !(self.tcp.is_empty() && self.udp.is_empty() && self.unix.is_empty())
    }

    /// The address to ask it at; `None` if it has no network.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let mut at = *self.tcp.first().or(self.udp.first())?;
        if at.ip().is_unspecified() {
            let loopback: IpAddr = match at.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            at.set_ip(loopback);
        }
        Some(at)
    }

    pub(crate) fn name(&self) -> String {
        match (self.tcp.first().or(self.udp.first()), self.unix.first()) {
            (Some(at), _) => format!("{NAME} {at}"),
            (None, Some(path)) => format!("{NAME} {}", path.display()),
            (None, None) => NAME.into(),
        }
    }

    /// The ports that bmc would have to watch.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let ports: BTreeSet<_> = self.tcp.iter().chain(&self.udp).map(SocketAddr::port).collect();
        ports.into_iter().collect()
    }

    /// Whether it listens on one of these ports.
    pub(crate) fn is_at(&self, ports: &[u16]) -> bool {
        self.ports().iter().any(|port| ports.contains(port))
    }

    /// The problems that `bmc attach` would find. If none of its ports is watched, they are those
    /// of an attach that is given its ports.
    pub(crate) fn problems(&self, watched: &[u16]) -> Vec<Problem> {
        if self.is_at(watched) {
            self.settings_answer.problems(watched)
        } else {
            self.settings_answer.problems(&self.ports())
        }
    }

    /// Whether it answered when it was asked for its settings.
    pub(crate) fn answers(&self) -> bool {
        self.settings_answer != Answer::NoListener
    }

    /// Whether bmc can serve it, watching these ports.
    pub(crate) fn is_servable(&self, watched: &[u16]) -> bool {
        self.address().is_some() && self.answers() && self.problems(watched).is_empty()
    }

    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        match &self.settings_answer {
            Answer::Stats(settings) => settings.get(name).map(String::as_str),
            _ => None,
        }
    }

    pub(crate) fn has_external_storage(&self) -> bool {
        self.counters.keys().any(|name| name.starts_with("extstore_"))
    }

    /// What is known of it, as evidence for a finding.
    pub(crate) fn evidence(&self) -> String {
        let mut parts = Vec::new();
        if let Some(process) = self.process {
            parts.push(format!("process {process}"));
        }
        parts.extend(self.counters.get("version").map(|version| format!("version {version}")));
        parts.extend(self.setting("num_threads").map(|threads| format!("{threads} threads")));
        let list = |name, addresses: &[SocketAddr]| {
            let distinct: BTreeSet<_> = addresses.iter().collect();
            let list: Vec<_> = distinct.into_iter().map(ToString::to_string).collect();
            (!list.is_empty()).then(|| format!("{name} {}", list.join(" ")))
        };
        parts.extend(list("TCP", &self.tcp));
        parts.extend(list("UDP", &self.udp));
        parts.extend(self.unix.first().map(|path| format!("unix {}", path.display())));
        parts.join(", ")
    }

    /// A command that starts it with additional arguments.
    pub(crate) fn restart(&self, program: &str, more: &str) -> String {
        let arguments = self.arguments.iter().map(|argument| quoted(argument));
        let words = [program.to_string()].into_iter().chain(arguments).chain([more.into()]);
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }

    fn json(&self, watched: &[u16]) -> Value {
        let texts = |addresses: &[SocketAddr]| -> Vec<_> {
            addresses.iter().map(ToString::to_string).collect()
        };
        let problems = self.problems(watched);
        let has = |problem| {
            let has = problems.contains(&problem);
            (has || self.setting("tcpport").is_some()).then_some(has)
        };
        json!({
            "pid": self.process,
            "version": self.counters.get("version"),
            "tcp": texts(&self.tcp),
            "udp": texts(&self.udp),
            "unix": self.unix,
            "threads": self.setting("num_threads").and_then(|n| n.parse::<u32>().ok()),
            "tls": has(Problem::Tls),
            "proxy": has(Problem::Proxy),
            "password": has(Problem::Password),
            "external_storage": (!self.counters.is_empty()).then(|| self.has_external_storage()),
            "servable": self.settings_answer != Answer::NoListener && problems.is_empty(),
        })
    }
}

/// Quotes an argument for a shell.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.into();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// See [`Memcacheds::answered`].
fn answered() -> Vec<(String, Vec<u16>)> {
    let all = Instance::others("").unwrap_or_default();
    let here = all.iter().filter(|instance| instance.pins.is_here());
    here.filter_map(|instance| Some((bmc(&instance.name), ports(&instance.config().ok()?))))
        .collect()
}

/// UDP datagrams that were received in this network namespace, IPv4 and IPv6.
fn datagrams() -> Option<u64> {
    let v4 = Snmp::current().ok()?.udp_in_datagrams;
    let v6 = Snmp6::current().map_or(0, |snmp| snmp.udp_in_datagrams);
    Some(v4 + v6)
}

#[cfg(test)]
impl Memcached {
    /// A memcached that bmc can serve.
    pub(crate) fn good() -> Memcached {
        const SETTINGS: &str = include_str!("../../../../tests/settings/udp.txt");

        let at = "0.0.0.0:21977".parse().expect("an address");
        let stats = SETTINGS.lines().filter_map(|line| line.strip_prefix("STAT ")?.split_once(' '));
        let stats: BTreeMap<_, _> = stats.map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Memcached {
            process: Some(1),
            arguments: vec!["-U".into(), "21977".into()],
            tcp: vec![at],
            udp: vec![at],
            unix: Vec::new(),
            settings_answer: Answer::Stats(stats),
            counters: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_one_that_listens_on_every_address_on_the_loopback() {
        let mut found = Memcached::good();
        assert_eq!(found.address(), "127.0.0.1:21977".parse().ok());
        found.tcp = vec!["[::]:1".parse().expect("an address")];
        assert_eq!(found.address(), "[::1]:1".parse().ok());
        found.tcp.clear();
        assert_eq!(found.address(), "127.0.0.1:21977".parse().ok(), "by its UDP port");
        found.udp.clear();
        assert_eq!(found.address(), None);
    }

    #[test]
    fn quotes_arguments_for_a_shell() {
        let mut found = Memcached::good();
        found.arguments = ["-s", "/tmp/it's here", "", "-D", "a;b"].map(String::from).to_vec();
        assert_eq!(
            found.restart("memcached", "-U 1"),
            r"memcached -s '/tmp/it'\''s here' '' -D 'a;b' -U 1"
        );
    }

    #[test]
    fn what_a_memcached_does_not_tell_of_it_has_not() {
        let mut found = Memcached::good();
        let Answer::Stats(stats) = &mut found.settings_answer else { panic!("it was asked") };
        stats.remove("ssl_enabled");
        assert_eq!(found.json(&[21977])["tls"], false);
        found.settings_answer = Answer::Locked;
        let json = found.json(&[21977]);
        assert_eq!((&json["password"], &json["tls"]), (&Value::Bool(true), &Value::Null));
    }
}
