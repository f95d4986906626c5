// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How soon bmc is of use when the TCP clients were there before it.
//!
//! 200 TCP connections that never pause for long write and read what is asked
//! for over UDP at the same time. In one run they are opened after bmc was
//! attached, so that it has seen all of them from the start; in the other they
//! are busy when it is attached. Within five seconds the latter should have nine
//! tenths of the hits of the former.
//!
//! `cargo bench --bench adoption [-- SECONDS]`; needs root.

#[path = "../common/mod.rs"]
mod common;
mod load;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use bmc::command::bench::report::median;
use common::Bmc;
use common::Memcached;
use common::Net;
use common::PORT;
use common::Tcp;
use common::can_run;
use common::total;
use load::CLIENT_CPU;
use load::Generator;
use load::Load;
use load::SERVER_CPU;

const STEP: Duration = Duration::from_millis(500);
/// Until when the hits should be there.
const SOON: Duration = Duration::from_secs(5);
/// What is their share of what could be.
const ENOUGH: f64 = 0.9;

fn main() {
    let seconds: usize = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(10);
    // Of fewer there would be no median after SOON.
    assert!(seconds as u64 >= SOON.as_secs(), "at least {} seconds", SOON.as_secs());
    if !can_run("adoption") {
        return;
    }
    load::print_machine();
    for depth in [1, 8] {
        let load = Load {
            keys: 10_000,
            value: 32,
            gets: 20_000.0,
            connections: 200,
            requests: (20.0, 100.0),
            set_each: 31,
            depth,
        };
        println!("{load:?}\n  hits % in each half second:");
        let fresh = measure(&load, 2 * seconds, true);
        let busy = measure(&load, 2 * seconds, false);
        let late = fresh.iter().filter(|(at, _)| *at >= SOON).map(|step| step.1);
        let goal = ENOUGH * median(late);
        let reached = busy.iter().find(|(_, percent)| *percent >= goal).map(|step| step.0);
        let when =
            reached.map_or("never".to_string(), |at| format!("after {:.1} s", at.as_secs_f64()));
        let verdict = if reached.is_some_and(|at| at <= SOON) { "met" } else { "MISSED" };
        println!("  {goal:.1} % are reached {when}: {verdict}");
    }
}

/// The share of hits, step by step, from when bmc is attached and clients run.
fn measure(load: &Load, steps: usize, fresh: bool) -> Vec<(Duration, f64)> {
    load::pin(SERVER_CPU);
    let net = Rc::new(Net::new("adoption"));
    let _memcached = Memcached::start(&net.server, &["-t", "1"]);
    load::pin(CLIENT_CPU);
    load.store(&mut Tcp::connect(&net.client, Net::SERVER4));
    let server = SocketAddr::new(Net::SERVER4, PORT);
    let attach = || Bmc::attach(&net, &["--unknown-ttl", "60s"]);
    let early = fresh.then(attach);
    if fresh {
        thread::sleep(load::SETTLED);
    }
    let mut generator = Generator::new(&net.client, server, load);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = scope.spawn(|| generator.run(&stop));
        let bmc = early.unwrap_or_else(|| {
            thread::sleep(2 * STEP);
            attach()
        });
        let start = Instant::now();
        let counts = || {
            let stats = bmc.stats();
            (total(&stats, "hits"), total(&stats, "get_keys"))
        };
        let mut before = counts();
        let mut shares = Vec::new();
        for _ in 0..steps {
            thread::sleep(STEP);
            let now = counts();
            let percent = (now.0 - before.0) as f64 * 100.0 / (now.1 - before.1) as f64;
            shares.push((start.elapsed(), percent));
            before = now;
        }
        let stats = bmc.stats();
        let [writes, untracked, flushes] =
            ["write_requests", "write_untracked", "flushes"].map(|name| total(&stats, name));
        stop.store(true, Relaxed);
        let done = clients.join().expect("every reply is right");
        assert!(done.lost() < 0.01, "UDP loses little on one machine: {done}");
        let shown: Vec<_> = shares.iter().map(|(_, percent)| format!("{percent:>4.1}")).collect();
        println!("  {:>5}: {}", if fresh { "fresh" } else { "busy" }, shown.join(" "));
        println!(
            "         {done}; {writes} writes, {untracked} of them untracked, {flushes} flushes"
        );
        shares
    })
}
