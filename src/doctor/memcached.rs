// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The memcacheds of this network namespace: whether bmc can serve each, and
//! whether it would help.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::path::PathBuf;

use procfs::Current as _;
use procfs::net::Snmp;
use procfs::net::Snmp6;
use procfs::net::TcpState;
use procfs::process::FDTarget;
use procfs::process::Process;
use procfs::process::all_processes;
use serde_json::Value;
use serde_json::json;

use super::Finding;
use super::Findings;
use super::Level;
use super::Patient;
use super::bmc;
use crate::cli;
use crate::instance;
use crate::instance::ports;
use crate::memcached;
use crate::memcached::Heard;
use crate::memcached::Problem;
use crate::memcached::Topic;
use crate::system;

/// What processes call themselves.
const NAME: &str = "memcached";

/// The memcacheds of this machine, as far as they can be seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Memcacheds {
    /// How a command about the instance starts.
    bmc: String,
    is_attached: bool,
    found: Vec<Memcached>,
    /// Processes in other network namespaces.
    elsewhere: Vec<i32>,
    /// Processes that we may not look into.
    hidden: Vec<i32>,
    /// The ports that are watched, or that `bmc attach` watches without `--port`.
    watched: Vec<u16>,
    /// Those that each instance watches here, and how a command about it starts.
    answered: Vec<(String, Vec<u16>)>,
    /// UDP datagrams that came to this network namespace, for anybody.
    datagrams: Option<u64>,
}

/// One that listens here.
#[derive(Clone, Debug)]
struct Memcached {
    /// None for whoever listens on a port of `bmc attach`.
    process: Option<i32>,
    /// Its arguments, without its name.
    arguments: Vec<String>,
    tcp: Vec<SocketAddr>,
    /// One for each socket.
    udp: Vec<SocketAddr>,
    unix: Vec<PathBuf>,
    /// What it said of its settings.
    heard: Heard,
    counters: BTreeMap<String, String>,
}

/// The sockets of this network namespace that wait for clients, by inode.
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
    pub(super) fn read(patient: &Patient<'_>) -> Self {
        let sockets = Sockets::read();
        let here = system::network_namespace().ok();
        let mut all = Self {
            bmc: patient.bmc.clone(),
            is_attached: patient.own.is_some(),
            watched: match patient.own.as_ref().and_then(|own| own.config().ok()) {
                Some(config) => ports(&config),
                None => cli::Attach::with(&[]).map_or(Vec::new(), |args| args.ports),
            },
            answered: answered(),
            datagrams: datagrams(),
            ..Default::default()
        };
        let is_memcached = |process: &Process| process.stat().is_ok_and(|stat| stat.comm == NAME);
        for process in all_processes().into_iter().flatten().flatten().filter(is_memcached) {
            // Where we may not look, we may not see its sockets either.
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

    /// Asks all at once.
    fn ask(&mut self) {
        let addresses: Vec<_> = self.found.iter().filter_map(Memcached::address).collect();
        let settings: BTreeMap<_, _> =
            memcached::ask_all(&addresses, Topic::Settings).into_iter().collect();
        let is_open = |at: &SocketAddr| matches!(settings.get(at), Some(Heard::Stats(_)));
        let open: Vec<_> = addresses.into_iter().filter(is_open).collect();
        let counters: BTreeMap<_, _> =
            memcached::ask_all(&open, Topic::Counters).into_iter().collect();
        for found in &mut self.found {
            let Some(at) = found.address() else { continue };
            found.heard = settings.get(&at).cloned().unwrap_or(Heard::Nobody);
            if let Some(Heard::Stats(counters)) = counters.get(&at) {
                found.counters.clone_from(counters);
            }
        }
    }

    pub(super) fn judge(&self) -> Vec<Finding> {
        let mut all = Findings::about(NAME);
        let list = |pids: &[i32]| pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
        if let Some(pid) = self.hidden.first() {
            all.add(
                Level::Note,
                format!("cannot see what it listens on: process {}", list(&self.hidden)),
                format!("/proc/{pid}/fd is for its user and root"),
                format!("sudo {} doctor", self.bmc),
            );
        }
        if let Some(pid) = self.elsewhere.first() {
            all.add(
                Level::Note,
                format!(
                    "is in another network namespace, where bmc has to be attached: process {}",
                    list(&self.elsewhere)
                ),
                format!("/proc/{pid}/ns/net"),
                format!("nsenter --net=/proc/{pid}/ns/net {} doctor", self.bmc),
            );
        }
        if self.found.is_empty() && self.hidden.is_empty() {
            all.add(
                Level::Warning,
                "no memcached listens here, so there is nothing to serve",
                "/proc/*/comm, /proc/net/tcp and udp",
                "bmc memcached -U 11211   # starts one",
            );
        }
        let each = self.found.iter().flat_map(|found| self.judge_one(found));
        all.all.into_iter().chain(each).collect()
    }

    fn judge_one(&self, found: &Memcached) -> Vec<Finding> {
        let mut findings = Findings::about(found.name());
        let Some(at) = found.address() else {
            findings.add(
                Level::Warning,
                "listens on a unix socket only: there is no network for bmc to serve",
                found.evidence(),
                "start it with -p 11211 -U 11211 instead of -s",
            );
            return findings.all;
        };
        let problems = found.problems(&self.watched);
        for problem in &problems {
            let is_blocker = problem.is_fatal() && found.is_at(&self.watched);
            let level = if is_blocker { Level::Blocker } else { Level::Warning };
            let remedy = match problem {
                Problem::NoUdp if found.has_external_storage() => {
                    "start it without external storage, with which memcached has no UDP".into()
                }
                Problem::NoUdp => found.restart(NAME, &format!("-U {}", at.port())),
                problem => problem.remedy(at.port()),
            };
            findings.add(level, problem.what(), found.evidence(), remedy);
        }
        let is_of_use = problems.is_empty();
        if found.heard == Heard::Nobody {
            findings.add(
                Level::Note,
                "does not answer: bmc cannot say whether it can be watched",
                found.evidence(),
                format!("memcached-tool {at} settings"),
            );
        } else if is_of_use {
            findings.ok("bmc can serve it", found.evidence());
            self.judge_use(found, &mut findings);
        }
        findings.all
    }

    /// What bmc is of use for, to one that it can serve.
    fn judge_use(&self, found: &Memcached, findings: &mut Findings) {
        let ports = found.ports();
        if found.tcp.iter().chain(&found.udp).all(|at| at.ip().is_loopback()) {
            findings.add(
                Level::Warning,
                "listens on the loopback only, where bmc answers nothing",
                found.evidence(),
                "start it with -l ADDRESS, of the interface that its clients come in by",
            );
        }
        if ports.iter().any(|port| !self.watched.contains(port)) {
            let (replace, kept) =
                if self.is_attached { (" --replace", &self.watched[..]) } else { ("", &[][..]) };
            let all: BTreeSet<_> = kept.iter().chain(&ports).collect();
            let list: Vec<_> = all.iter().map(ToString::to_string).collect();
            findings.add(
                Level::Note,
                "has other ports than bmc attach watches by itself",
                found.evidence(),
                format!("{} attach IFACE --port {}{replace}", self.bmc, list.join(",")),
            );
        }
        let threads = found.setting("num_threads").and_then(|threads| threads.parse().ok());
        let threads: usize = threads.unwrap_or(1);
        let distinct: BTreeSet<_> = found.udp.iter().collect();
        if threads > 1 && distinct.len() == found.udp.len() && found.process.is_some() {
            findings.add(
                Level::Note,
                format!(
                    "its {threads} threads share one UDP socket, and wait for each other there"
                ),
                format!("stats settings: num_threads {threads}; UDP sockets {}", found.udp.len()),
                found.restart("bmc memcached --", ""),
            );
        }
        if let Some((bmc, _)) = self.answered.iter().find(|(_, ports)| found.is_at(ports)) {
            findings.add(
                Level::Note,
                "counts only what bmc does not answer",
                found.evidence(),
                format!("{bmc} stats   # counts what it answers"),
            );
        } else {
            self.judge_gain(found, findings);
        }
    }

    /// What is known of what bmc will gain. memcached does not count UDP apart.
    fn judge_gain(&self, found: &Memcached, findings: &mut Findings) {
        let count = |name| found.counters.get(name).and_then(|count| count.parse::<u64>().ok());
        let (Some(gets), Some(hits), Some(sets)) =
            (count("cmd_get"), count("get_hits"), count("cmd_set"))
        else {
            return;
        };
        let evidence = format!("stats: cmd_get {gets}, get_hits {hits}, cmd_set {sets}");
        let remedy = "bmc bench   # what it gains on this machine";
        if gets == 0 {
            findings.add(
                Level::Note,
                "was not asked for anything yet: nothing is known of what bmc would gain",
                evidence,
                remedy,
            );
        } else if self.datagrams == Some(0) {
            findings.add(
                Level::Warning,
                "is asked over TCP only, which bmc does not answer",
                format!("{evidence}; /proc/net/snmp and snmp6: 0 UDP datagrams received"),
                "have its clients send GETs over UDP",
            );
        } else {
            let percent = hits as f64 / gets as f64 * 100.0;
            findings.add(
                Level::Note,
                format!(
                    "found {percent:.0} % of {gets} keys that it was asked for; what of them came over \
                     TCP, which memcached does not tell, bmc does not answer"
                ),
                evidence,
                remedy,
            );
        }
    }

    /// Whether one of them listens on all addresses.
    pub(super) fn listen_everywhere(&self) -> bool {
        let mut at = self.found.iter().flat_map(|found| found.tcp.iter().chain(&found.udp));
        at.any(|at| at.ip().is_unspecified())
    }

    pub(super) fn json(&self) -> Value {
        self.found.iter().map(|found| found.json(&self.watched)).collect()
    }
}

impl Memcached {
    /// The memcached of a process; None if we may not look into it.
    fn of(process: &Process, sockets: &Sockets) -> Option<Self> {
        let mut memcached = Self {
            process: Some(process.pid()),
            arguments: process.cmdline().unwrap_or_default().into_iter().skip(1).collect(),
            tcp: Vec::new(),
            udp: Vec::new(),
            unix: Vec::new(),
            heard: Heard::Nobody,
            counters: BTreeMap::new(),
        };
        // It has several descriptors for one socket.
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

    /// Whoever listens at these addresses.
    fn at(tcp: BTreeSet<SocketAddr>, udp: BTreeSet<SocketAddr>) -> Self {
        Self {
            process: None,
            arguments: Vec::new(),
            tcp: tcp.into_iter().collect(),
            udp: udp.into_iter().collect(),
            unix: Vec::new(),
            heard: Heard::Nobody,
            counters: BTreeMap::new(),
        }
    }

    fn is_reachable(&self) -> bool {
        !(self.tcp.is_empty() && self.udp.is_empty() && self.unix.is_empty())
    }

    /// Where to ask it; None if it has no network.
    fn address(&self) -> Option<SocketAddr> {
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

    fn name(&self) -> String {
        match (self.tcp.first().or(self.udp.first()), self.unix.first()) {
            (Some(at), _) => format!("{NAME} {at}"),
            (None, Some(path)) => format!("{NAME} {}", path.display()),
            (None, None) => NAME.into(),
        }
    }

    /// The ports that bmc has to watch for it.
    fn ports(&self) -> Vec<u16> {
        let ports: BTreeSet<_> = self.tcp.iter().chain(&self.udp).map(SocketAddr::port).collect();
        ports.into_iter().collect()
    }

    /// Whether it is one that is meant by these ports.
    fn is_at(&self, ports: &[u16]) -> bool {
        self.ports().iter().any(|port| ports.contains(port))
    }

    /// As `bmc attach` judges it, by the ports that are watched, if it is meant; else
    /// as one that was told its ports would.
    fn problems(&self, watched: &[u16]) -> Vec<Problem> {
        if self.is_at(watched) {
            self.heard.problems(watched)
        } else {
            self.heard.problems(&self.ports())
        }
    }

    fn setting(&self, name: &str) -> Option<&str> {
        match &self.heard {
            Heard::Stats(settings) => settings.get(name).map(String::as_str),
            _ => None,
        }
    }

    fn has_external_storage(&self) -> bool {
        self.counters.keys().any(|name| name.starts_with("extstore_"))
    }

    /// What it is, and where that is from.
    fn evidence(&self) -> String {
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

    /// A command that starts it, with more arguments than it has.
    fn restart(&self, program: &str, more: &str) -> String {
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
            "servable": self.heard != Heard::Nobody && problems.is_empty(),
        })
    }
}

/// An argument as a shell takes it.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.into();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// See [`Memcacheds::answered`].
fn answered() -> Vec<(String, Vec<u16>)> {
    let all = instance::others("").unwrap_or_default();
    let here = all.iter().filter(|instance| instance.dir.is_here());
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
mod tests {
    use super::*;

    const SETTINGS: &str = include_str!("../../tests/settings/udp.txt");

    fn memcached() -> Memcached {
        let at = "0.0.0.0:21977".parse().expect("an address");
        let stats = SETTINGS.lines().filter_map(|line| line.strip_prefix("STAT ")?.split_once(' '));
        let stats: BTreeMap<_, _> = stats.map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Memcached {
            process: Some(1),
            arguments: vec!["-U".into(), "21977".into()],
            tcp: vec![at],
            udp: vec![at],
            unix: Vec::new(),
            heard: Heard::Stats(stats),
            counters: BTreeMap::new(),
        }
    }

    /// What is said of one that differs from a good one by this.
    #[track_caller]
    fn says(level: Level, what: &str, remedy: &str, change: impl Fn(&mut Memcached)) {
        let mut found = memcached();
        change(&mut found);
        let (bmc, watched) = ("bmc".into(), vec![21977]);
        let all = Memcacheds { bmc, watched, found: vec![found], ..Default::default() };
        let findings = all.judge();
        let found = findings.iter().find(|finding| finding.what.contains(what));
        let found = found.unwrap_or_else(|| panic!("{findings:?}"));
        assert_eq!(found.level, level, "{found:?}");
        assert!(found.remedy.as_deref().unwrap_or_default().contains(remedy), "{found:?}");
    }

    #[test]
    fn judges_what_no_memcached_of_this_machine_is() {
        let set = |name: &'static str, value: &'static str| {
            move |m: &mut Memcached| {
                let Heard::Stats(stats) = &mut m.heard else { return };
                stats.insert(name.into(), value.into());
            }
        };
        says(Level::Ok, "bmc can serve it", "", |_| ());
        says(Level::Blocker, "is a proxy", "behind it", set("proxy_enabled", "yes"));
        // A listener that was inherited, and is no part of what we see.
        says(Level::Blocker, "takes writes on TCP port 1 too", "--port 1", set("tcpport", "1"));
        says(Level::Warning, "has UDP port 2", "--port 2", set("udpport", "2"));
        // Attach asks at its ports alone.
        says(Level::Warning, "uses TLS", "turn TLS off", |m| {
            set("ssl_enabled", "yes")(m);
            m.tcp[0].set_port(1);
            m.udp[0].set_port(1);
        });
        says(Level::Blocker, "takes writes on TCP port 1 too", "--port 1", |m| {
            set("tcpport", "1")(m);
            m.tcp[0].set_port(1);
        });
        says(Level::Note, "does not answer", "memcached-tool 127.0.0.1:21977", |m| {
            m.heard = Heard::Nobody;
        });
        says(
            Level::Note,
            "its 4 threads share one UDP socket",
            "bmc memcached -- -U 21977",
            |_| (),
        );
    }

    #[test]
    fn asks_one_that_listens_on_every_address_on_the_loopback() {
        let mut found = memcached();
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
        let mut found = memcached();
        found.arguments = ["-s", "/tmp/it's here", "", "-D", "a;b"].map(String::from).to_vec();
        assert_eq!(
            found.restart("memcached", "-U 1"),
            r"memcached -s '/tmp/it'\''s here' '' -D 'a;b' -U 1"
        );
    }

    #[test]
    fn what_a_memcached_does_not_tell_of_it_has_not() {
        let mut found = memcached();
        let Heard::Stats(stats) = &mut found.heard else { panic!("it was heard") };
        stats.remove("ssl_enabled");
        assert_eq!(found.json(&[21977])["tls"], false);
        found.heard = Heard::Locked;
        let json = found.json(&[21977]);
        assert_eq!((&json["password"], &json["tls"]), (&Value::Bool(true), &Value::Null));
    }

    #[test]
    fn counters_are_not_judged_while_bmc_answers() {
        let mut all =
            Memcacheds { watched: vec![21977], found: vec![memcached()], ..Default::default() };
        let counters = [("cmd_get", "9"), ("get_hits", "0"), ("cmd_set", "1")];
        all.found[0].counters = counters.map(|(k, v)| (k.into(), v.into())).into();
        let says = |all: &Memcacheds, what| all.judge().iter().any(|f| f.what.contains(what));
        assert!(says(&all, "found 0 %") && !says(&all, "counts only"));
        all.answered = vec![("bmc".into(), vec![21977])];
        assert!(!says(&all, "found 0 %") && says(&all, "counts only"));
    }
}
