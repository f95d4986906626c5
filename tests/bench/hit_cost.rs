// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What `bmc_rx` costs, next to a program that only sends the frame back.
//!
//! `BPF_PROG_TEST_RUN` puts live frames through the attached program, on one
//! CPU; at the other end of a veth pair a sink turns each reply into the request
//! again. The two programs take turns; medians of the rounds are printed, as
//! nanoseconds a run (the kernel's own count) and replies a second (with that
//! count off). Every answer is proved by the counters and by the length of what
//! the sink saw.
//!
//! `cargo bench --bench hit_cost [-- ROUNDS]`; needs root.

mod cost;
#[path = "../fixture/mod.rs"]
mod fixture;
#[path = "../packet/mod.rs"]
mod packet;

use std::mem::MaybeUninit;
use std::time::Duration;
use std::time::Instant;

use bmc::command::bench::net::pin;
use bmc::command::bench::report::median;
use bmc::skel::bench::BenchSkel;
use bmc::skel::bench::types;
use cost::Counting;
use cost::cost;
use fixture::Bmc;
use fixture::Config;
use fixture::IFINDEX;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::ProgramInput;
use libbpf_rs::ProgramMut;
use nix::net::if_::if_nametoindex;
use packet::Flow;

const FRAMES: u32 = 1 << 19;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 2;

/// One thing to measure.
struct Case {
    name: String,
    request: Vec<u8>,
    /// Length of the frame that comes back.
    reply: usize,
}

fn main() {
    let rounds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(5);
    pin(&[0]).expect("this process runs on CPU 0");
    let config = Config {
        max_age: Duration::from_secs(3600),
        unknown_ttl: Duration::from_secs(3600),
        ..Config::default()
    };
    let Some(bmc) = Bmc::load(&config) else {
        return;
    };
    let mut storage = MaybeUninit::uninit();
    let bench = cost::load(&mut storage);
    let peer = if_nametoindex("bmc1").expect("the fixture made it");
    let peer = i32::try_from(peer).expect("the kernel's own type");
    let _sink = bench.progs.bmc_sink.attach_xdp(peer).expect("the sink attaches");

    let flow = Flow::new("10.0.0.2:40000", "10.0.0.1:11211");
    let mut cases = Vec::new();
    for (klen, vlen) in [(16, 32), (16, 200), (16, 1000), (8, 32), (64, 32), (250, 32)] {
        let key = format!("{vlen:0klen$}").into_bytes();
        cases.push(case(&bmc, &flow, &format!("hit, key {klen}, value {vlen}"), &[key], vlen));
    }
    for count in [4, 16] {
        let keys: Vec<_> = (0..count).map(|i| format!("key-{i:012}").into_bytes()).collect();
        cases.push(case(&bmc, &flow, &format!("hit, {count} keys of 16, values 32"), &keys, 32));
    }

    println!(
        "{:<32} {:>8} {:>9} {:>8} {:>9}",
        "median of rounds in turn", "ns/run", "/reflect", "Mpps", "/reflect"
    );
    for case in &cases {
        let mut runs = [vec![], vec![]];
        let mut rates = [vec![], vec![]];
        for round in 0..rounds {
            for turn in [round % 2, 1 - round % 2] {
                let program: &ProgramMut<'_> =
                    if turn == 0 { &bench.progs.bmc_reflect } else { bmc.rx() };
                let before = bmc.counters().get("hits");
                let (ns, mpps) = measure(program, &bench, case, turn == 1);
                let hits = bmc.counters().get("hits") - before;
                let expected = if turn == 1 { 2 * u64::from(FRAMES) } else { 0 };
                assert!(hits >= expected, "{}: {hits} hits of {expected}", case.name);
                runs[turn].push(ns);
                rates[turn].push(mpps);
            }
        }
        let [reflect_ns, ns] = runs.map(median);
        let [reflect_mpps, mpps] = rates.map(median);
        println!(
            "{:<32} {ns:>8.1} {:>8.2}x {mpps:>8.2} {:>8.2}x",
            case.name,
            ns / reflect_ns,
            mpps / reflect_mpps
        );
        if case.name.ends_with("key 16, value 32") {
            println!("{:<32} {reflect_ns:>8.1} {:>9} {reflect_mpps:>8.2}", "reflector", "");
        }
    }
}

/// Puts the keys into the cache and works out the frame of the answer.
fn case(bmc: &Bmc, flow: &Flow, name: &str, keys: &[Vec<u8>], vlen: usize) -> Case {
    let mut values = Vec::new();
    for (id, key) in keys.iter().enumerate() {
        let value = packet::value(key, 0, &vec![b'v'; vlen]);
        let id = id as u16;
        bmc.receive(&flow.get(id, &[key]));
        let mut reply = value.clone();
        reply.extend(b"END\r\n");
        bmc.send(&flow.reversed().udp(&packet::datagram(id, &reply)));
        values.extend(value);
    }
    values.extend(b"END\r\n");
    let request = flow.get(7, keys);
    let reply = packet::payload(&request) + packet::FRAME_LEN + values.len();
    Case { name: name.to_string(), request, reply }
}

/// Nanoseconds a run and millions of frames a second of the attached program.
fn measure(
    program: &ProgramMut<'_>,
    bench: &BenchSkel<'_>,
    case: &Case,
    answers: bool,
) -> (f64, f64) {
    let device = i32::try_from(IFINDEX).expect("it is small");
    let _link = program.attach_xdp(device).expect("the program attaches");
    let grown = case.reply - case.request.len();
    if answers {
        // bmc grows a frame at its head while the room there lasts.
        set_sink(bench, case.reply, if grown <= 192 { grown } else { 0 }, &case.request);
    } else {
        set_sink(bench, case.request.len(), 0, &case.request);
    }
    run(program, &case.request, 4096);

    let counting = Counting::start();
    let per_run = cost(program, || run(program, &case.request, FRAMES));
    drop(counting);

    let replies = sink_replies(bench);
    let start = Instant::now();
    run(program, &case.request, FRAMES);
    let elapsed = start.elapsed().as_secs_f64();
    let replies = sink_replies(bench) - replies;
    // The queue to the sink overflows now and then; what arrived counts.
    assert!(replies >= u64::from(FRAMES) / 2, "{}: {replies} replies", case.name);
    (per_run, replies as f64 / elapsed / 1e6)
}

fn run(program: &ProgramMut<'_>, frame: &[u8], frames: u32) {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, ...
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&IFINDEX.to_ne_bytes());
    program
        .test_run(ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(frame),
            flags: LIVE_FRAMES,
            repeat: frames,
            ..ProgramInput::default()
        })
        .expect("the kernel can run live frames (Linux 5.18)");
}

/// What replies the sink expects, and where in them it puts the request.
fn set_sink(bench: &BenchSkel<'_>, expect: usize, at: usize, request: &[u8]) {
    let mut sink = types::bmc_sink {
        expect: expect as u32,
        at: at as u32,
        len: request.len() as u32,
        ..types::bmc_sink::default()
    };
    sink.request[..request.len()].copy_from_slice(request);
    let words = [
        [sink.frames, sink.replies].map(u64::to_ne_bytes).concat(),
        [sink.expect, sink.at, sink.len, sink.pad].map(u32::to_ne_bytes).concat(),
        sink.request.to_vec(),
    ];
    bench
        .maps
        .bss
        .update(&0u32.to_ne_bytes(), &words.concat(), MapFlags::ANY)
        .expect("the sink takes its request");
}

fn sink_replies(bench: &BenchSkel<'_>) -> u64 {
    let sink = bench.maps.bss.lookup(&0u32.to_ne_bytes(), MapFlags::ANY);
    let sink = sink.ok().flatten().expect("the sink counts");
    u64::from_ne_bytes(*sink[8..].first_chunk().expect("it has two counters"))
}
