// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Looks for memcacheds on this machine before bmc is attached.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::ifaddrs::getifaddrs;

use super::settings::Problem;
use super::stats::{Answer, Topic, ask_all, at_once};
use crate::host::facts;
use crate::message;

/// The version of a memcached, as in "1.6.18". If the program cannot be run or is not
/// memcached, the error names the option that chooses another one.
pub fn version(path: &Path, option: &str) -> Result<String> {
    let name = path.display();
    let output = Command::new(path).arg("-V").stdin(Stdio::null()).output();
    let output = output.with_context(|| {
        format!("cannot run {name} (Debian: apt install memcached, or {option} PATH)")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(version) = text.trim().strip_prefix("memcached ") else {
        bail!("{name} -V does not say that it is memcached (try {option} PATH)");
    };
    Ok(version.into())
}

/// Asks every memcached on these ports of the interfaces and the loopback for its settings. Fails
/// if bmc would serve stale values, and prints what else would make bmc useless.
pub fn check(interfaces: &[String], ports: &[u16]) -> Result<()> {
    let mut problems = Vec::new();
    for (at, heard) in ask_all(&all_addresses(interfaces, ports), Topic::Settings) {
        for problem in heard.problems(ports) {
            let same = |(other, known): &(SocketAddr, Problem)| {
                (other.port(), known) == (at.port(), &problem)
            };
            if !problems.iter().any(same) {
                problems.push((at, problem));
            }
        }
    }
    if let Some((at, problem)) = problems.iter().find(|(_, problem)| problem.is_fatal()) {
        bail!("{}", problem.message(*at));
    }
    for (at, problem) in problems {
        message::tell(&problem.message(at));
    }
    Ok(())
}

/// memcached's clock is at this many seconds when it starts (`ITEM_UPDATE_INTERVAL`).
const BEFORE_START: i64 = 60;

/// The delayed `flush_all`s that are still to come, at most one per memcached, on these ports of
/// the interfaces and the loopback. In seconds of `CLOCK_MONOTONIC`; up to two seconds off,
/// because memcached's clock lags.
///
/// Fails if the clock cannot be read.
pub fn pending_flushes(interfaces: &[String], ports: &[u16]) -> Result<Vec<u64>> {
    // Only over TCP: without TCP nothing is cached, and bmc already counts datagrams.
    let ask = |at, topic| Answer::ask_by_stream(at, topic).unwrap_or(Answer::NoListener);
    let addresses = all_addresses(interfaces, ports);
    let heard = at_once(&addresses, |at| ask(at, Topic::Settings));
    let number = |stats: &BTreeMap<String, String>, name| stats.get(name)?.parse::<i64>().ok();
    let flushed: BTreeMap<_, _> = heard
        .into_iter()
        .filter_map(|(at, heard)| match heard {
            Answer::Stats(stats) => Some((at, number(&stats, "oldest").filter(|time| *time > 0)?)),
            _ => None,
        })
        .collect();
    let addresses: Vec<_> = flushed.keys().copied().collect();
    let now = facts::uptime()?;
    let mut pending = BTreeMap::new();
    for (at, heard) in at_once(&addresses, |at| ask(at, Topic::Counters)) {
        let Answer::Stats(stats) = heard else { continue };
        let Some(uptime) = number(&stats, "uptime") else { continue };
        let left = flushed[&at] - (uptime + BEFORE_START);
        if left > 0 {
            // One process may listen on several addresses.
            pending.insert(number(&stats, "pid"), now.saturating_add_signed(left));
        }
    }
    Ok(pending.into_values().collect())
}

fn all_addresses(interfaces: &[String], ports: &[u16]) -> Vec<SocketAddr> {
    let addresses = addresses(interfaces);
    ports.iter().flat_map(|port| addresses.iter().map(|addr| with_port(*addr, *port))).collect()
}

/// The addresses of these interfaces, then those of the loopback. IPv6 link-local ones are left
/// out: a local connection to such an address crosses the loopback, where the kernel finds no socket
/// for it, and an attached bmc that is about to be replaced would empty its cache.
fn addresses(interfaces: &[String]) -> Vec<SocketAddr> {
    let known: Vec<_> = getifaddrs().map(Iterator::collect).unwrap_or_default();
    let mut addresses = Vec::new();
    for iface in interfaces.iter().map(String::as_str).chain(["lo"]) {
        for address in known.iter().filter(|known| known.interface_name == iface) {
            let Some(address) = &address.address else { continue };
            addresses.extend(address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into())));
            let v6 = address.as_sockaddr_in6().filter(|v6| !v6.ip().is_unicast_link_local());
            addresses.extend(v6.map(|v6| SocketAddr::V6((*v6).into())));
        }
    }
    addresses
}

fn with_port(mut addr: SocketAddr, port: u16) -> SocketAddr {
    addr.set_port(port);
    addr
}
