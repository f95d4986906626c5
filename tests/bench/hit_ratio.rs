// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What share of a mixed load bmc answers, and why not more.
//!
//! 30 GETs over UDP for each SET over TCP, keys by popularity (Zipf, 0.99), no
//! expiry; with memory enough and with a sixteenth of it, with the default
//! --unknown-ttl and with a long one. Every reply is checked, also for being
//! older than a write that was acknowledged.
//!
//! `cargo bench --bench hit_ratio [-- SECONDS]`; needs root.

#[path = "../common/mod.rs"]
mod common;
mod load;

use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

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

const GETS: f64 = 40_000.0;
const CONNECTIONS: usize = 8;
const LOAD: Load = Load {
    keys: 100_000,
    value: 1000,
    gets: GETS,
    connections: CONNECTIONS,
    requests: (GETS / 30.0 / CONNECTIONS as f64, GETS / 30.0 / CONNECTIONS as f64),
    set_each: 1,
    depth: 1,
};

fn main() {
    let seconds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(15);
    if !can_run("hit_ratio") {
        return;
    }
    load::print_machine();
    println!("{LOAD:?}");
    for memory in ["256M", "16M"] {
        for ttl in ["1s", "60s"] {
            println!("--memory {memory} --unknown-ttl {ttl}");
            measure(seconds, &["--memory", memory, "--unknown-ttl", ttl]);
        }
    }
}

fn measure(seconds: u32, args: &[&str]) {
    load::pin(SERVER_CPU);
    let net = Rc::new(Net::new("hit-ratio"));
    let _memcached = Memcached::start(&net.server, &["-t", "1", "-m", "1024"]);
    load::pin(CLIENT_CPU);
    LOAD.store(&mut Tcp::connect(&net.client, Net::SERVER4));
    let bmc = Bmc::attach(&net, args);
    thread::sleep(load::SETTLED);
    let mut generator = Generator::new(&net.client, SocketAddr::new(Net::SERVER4, PORT), &LOAD);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = scope.spawn(|| generator.run(&stop));
        let mut before = (0, 0);
        print!("  hits %, each second:");
        for _ in 0..seconds {
            thread::sleep(Duration::from_secs(1));
            let stats = bmc.stats();
            let now = (total(&stats, "hits"), total(&stats, "get_keys"));
            print!(" {:.1}", percent(now.0 - before.0, now.1 - before.1));
            let _ = io::stdout().flush();
            before = now;
        }
        stop.store(true, Relaxed);
        let done = clients.join().expect("every reply is right");
        println!("\n  {done}");
        assert!(done.lost() < 0.01, "UDP loses little on one machine");
    });
    // Nothing is on its way any more, so the counters agree with each other.
    let stats = bmc.stats();
    let misses = total(&stats, "misses");
    println!(
        "  {:.1} % hits in all; of {misses} misses, %:",
        percent(total(&stats, "hits"), total(&stats, "get_keys"))
    );
    let writes = total(&stats, "write_requests");
    let untracked = total(&stats, "write_untracked");
    println!("    {writes} writes, of which {:.2} % untracked", percent(untracked, writes));
    for group in ["leases", "lease_refusals", "fills", "fill_refusals", "evictions", "flushes"] {
        print!("   ");
        match &stats["totals"][group] {
            serde_json::Value::Object(reasons) => {
                for (reason, count) in reasons {
                    let count = count.as_u64().expect("a counter is a number");
                    print!(" {group}.{reason} {:.2}", percent(count, misses));
                }
            }
            count => print!(" {group} {:.2}", percent(count.as_u64().expect("a number"), misses)),
        }
        println!();
    }
}

fn percent(part: u64, of: u64) -> f64 {
    part as f64 * 100.0 / of as f64
}
