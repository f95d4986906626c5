// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How many requests a second a memcached answers with bmc and without, asked by
//! a client that is faster than a process: an XDP program on the other end of a
//! veth pair, which the kernel runs over and over.
//!
//! memcached has one thread and a CPU of its own. The other CPU makes the
//! requests, takes them through the network, or through bmc, and counts the
//! replies; so bmc shares with the client what on a network card it would have
//! for itself. Requests come as fast as they can be made, whether they are
//! answered or not: memcached loses most of them, and answers as many as it can.
//! The sides take turns.
//!
//! `cargo bench --bench peak [-- ROUNDS]`; needs root.

#[path = "../common/mod.rs"]
mod common;
mod load;
#[path = "../packet/mod.rs"]
mod packet;

use std::fs::File;
use std::io::Read as _;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::mem::offset_of;
use std::net::TcpStream;
use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use bmc::command::bench::net::attach;
use bmc::command::bench::report::median;
use bmc::command::bench::report::ratio;
use common::Bmc;
use common::Memcached;
use common::Net;
use common::PORT;
use common::Rng;
use common::Zipf;
use common::can_run;
use libbpf_rs::Link;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::ProgramInput;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder as _;
use load::CLIENT_CPU;
use load::SERVER_CPU;
use load::ip;
use nix::net::if_::if_nametoindex;
use nix::sched::CloneFlags;
use nix::sched::setns;
use nix::time::ClockId;
use nix::time::clock_gettime;
use packet::Flow;

use flood::types::bmc_flood;
use flood::{FloodSkel, FloodSkelBuilder};

/// The skeleton of `bpf/flood.bpf.c`, generated.
mod flood {
    #![allow(clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, unsafe_code)]
    #![allow(dead_code, missing_docs, unreachable_pub)]

    include!(concat!(env!("OUT_DIR"), "/flood.skel.rs"));
}

/// The device, at either end, with its addresses.
const DEVICE: &str = "flood";
const SERVER: &str = "10.11.20.1";
const CLIENT: &str = "10.11.20.2";

/// The keys' list (`FLOOD_KEYS`).
const DRAWS: usize = 1 << 20;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 2;
/// Requests of a flood.
const FLOOD: u32 = 1 << 20;
/// From how many requests bmc learns before, and how many of them a second come.
const LEARN: u32 = 600_000;
const LEARN_RATE: u64 = 100_000;
/// Bytes of a request (`FLOOD_LEN`).
const FRAME: usize = 72;
/// Replies may take so long.
const LATE: Duration = Duration::from_millis(20);
const VALUE: &str = "a value of thirty-two bytes full";
/// Keys that memcached holds: some sixteen times what bmc has room for.
const MANY: usize = 1_500_000;

fn main() {
    let rounds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(5);
    if !can_run("peak") {
        return;
    }
    load::pin(SERVER_CPU);
    let net = Rc::new(Net::new("peak-bench"));
    let _memcached = Memcached::start(&net.server, &["-t", "1", "-m", "1024"]);
    load::pin(CLIENT_CPU);
    load::make_device(&net, DEVICE, [SERVER, CLIENT]);
    load::print_machine();
    println!(
        "GETs over UDP, keys of 16 bytes, values of 32; --memory 16M; medians of {rounds} rounds in turn"
    );
    println!(
        "{:<22} {:<10} {:>11} {:>8} {:>8} {:>8}",
        "keys", "side", "answers k/s", "gain", "% asked", "entries"
    );
    let client = Client::new(&net);
    store(&net, MANY);
    let hits: Vec<_> = (0..DRAWS).map(|i| i % 10_000).collect();
    let (zipf, mut rng) = (Zipf::new(MANY, 0.99), Rng::new(1));
    let zipf: Vec<_> = (0..DRAWS).map(|_| zipf.draw(&mut rng)).collect();
    for (name, draws) in [("10,000 in turn", hits), ("1,500,000, Zipf 0.99", zipf)] {
        client.set_keys(&draws);
        let mut rates = [vec![], vec![], vec![]];
        let mut shares = [vec![], vec![], vec![]];
        let mut entries = vec![];
        for round in 0..rounds {
            for turn in 0..3 {
                let nr = (round + turn) % 3;
                let attached = Attached::new(&net, Side::ALL[nr]);
                if Side::ALL[nr] == Side::Bmc {
                    client.ask(LEARN, 1_000_000_000 / LEARN_RATE);
                    entries.push(attached.entries());
                }
                let ([asked, answered, values], time) = client.ask(FLOOD, 0);
                let is_memcached = Side::ALL[nr] != Side::Reflector;
                assert_eq!(values, if is_memcached { answered } else { 0 }, "every key is there");
                rates[nr].push(answered as f64 / time);
                shares[nr].push(ratio(answered, asked) * 100.0);
            }
        }
        let rates = rates.map(median);
        let mut entries = Some(median(entries));
        for ((side, rate), shares) in Side::ALL.iter().zip(rates).zip(shares) {
            println!(
                "{name:<22} {:<10} {:>11.1} {:>7.2}x {:>8.1} {:>8}",
                side.name(),
                rate / 1e3,
                rate / rates[0],
                median(shares),
                entries.take_if(|_| *side == Side::Bmc).map_or(String::new(), |n| n.to_string()),
            );
        }
    }
}

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Memcached,
    Bmc,
    Reflector,
}

impl Side {
    const ALL: [Self; 3] = [Self::Memcached, Self::Bmc, Self::Reflector];

    fn name(self) -> &'static str {
        match self {
            Self::Memcached => "memcached",
            Self::Bmc => "bmc",
            Self::Reflector => "reflector",
        }
    }
}

/// What the server's end has attached, until this is dropped.
struct Attached {
    bmc: Option<Bmc>,
    _link: Option<Link>,
}

impl Attached {
    fn new(net: &Rc<Net>, side: Side) -> Self {
        if side == Side::Bmc {
            let device = ["--mode", "native", "--memory", "16M"];
            let ages = ["--max-age", "1h", "--unknown-ttl", "1h"];
            let bmc = Bmc::attach_to(net, DEVICE, &[device, ages].concat());
            return Self { bmc: Some(bmc), _link: None };
        }
        let link = net.server.within(|| attach(DEVICE, side == Side::Reflector));
        Self { bmc: None, _link: Some(link.expect("a veth has XDP")) }
    }

    /// How many entries bmc has.
    fn entries(&self) -> f64 {
        let status = self.bmc.as_ref().expect("bmc is attached").status();
        let classes = status["classes"].as_array().expect("it has classes");
        classes.iter().filter_map(|class| class["used"].as_f64()).sum()
    }
}

/// Has memcached hold that many keys.
fn store(net: &Net, keys: usize) {
    let mut stream =
        net.client.within(|| TcpStream::connect((Net::SERVER4, PORT)).expect("it listens"));
    for first in (0..keys).step_by(1000) {
        let sets = (first..first + 1000)
            .map(|key| load::set_request(&load::key(key), VALUE).replacen(" 32", " 32 noreply", 1));
        stream.write_all(sets.collect::<String>().as_bytes()).expect("it takes them");
    }
    stream.write_all(b"version\r\n").expect("it takes that");
    assert!(stream.read(&mut [0; 64]).expect("it answers") > 0, "memcached ended");
}

/// The client in the kernel.
struct Client {
    skel: FloodSkel<'static>,
    device: u32,
    _sink: Link,
}

impl Client {
    /// Moves this thread to the client's namespace for good: the kernel runs
    /// frames on a device of the caller's.
    fn new(net: &Net) -> Self {
        let mac = |namespace: &str| {
            let text = ip(&format!("-n {namespace} -o link show dev {DEVICE}"));
            let mac = text.split("link/ether ").nth(1).expect("it is an Ethernet device");
            let bytes = mac[..17].split(':').map(|byte| u8::from_str_radix(byte, 16));
            let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().expect("it is an address");
            <[u8; 6]>::try_from(bytes).expect("it has six bytes")
        };
        let mut flow = Flow::new(&format!("{CLIENT}:40000"), &format!("{SERVER}:{PORT}"));
        flow.source_mac = mac(net.client.name());
        flow.target_mac = mac(net.server.name());
        let mut frame = flow.get(0, &[load::key(0)]);
        // Its UDP has no checksum.
        frame[40..42].fill(0);

        let namespace = File::open(format!("/run/netns/{}", net.client.name()));
        setns(namespace.expect("it is there"), CloneFlags::CLONE_NEWNET).expect("root may");
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let skel = FloodSkelBuilder::default().open(storage).and_then(OpenSkel::load);
        let skel = skel.expect("the benchmark's programs load");
        let device = if_nametoindex(DEVICE).expect("it was made");
        let sink = skel.progs.bmc_flooded.attach_xdp(i32::try_from(device).expect("it is small"));
        let client = Self { skel, device, _sink: sink.expect("a veth has XDP") };
        let mut data = client.data();
        data[offset_of!(bmc_flood, frame)..][..frame.len()].copy_from_slice(&frame);
        let map = &client.skel.maps.bss;
        map.update(&0_u32.to_ne_bytes(), &data, MapFlags::ANY).expect("it has room");
        client
    }

    fn set_keys(&self, draws: &[usize]) {
        for (i, key) in draws.iter().enumerate() {
            let nr = (i as u32).to_ne_bytes();
            let key = load::key(*key);
            let map = &self.skel.maps.bmc_flood_keys;
            map.update(&nr, key.as_bytes(), MapFlags::ANY).expect("it has room");
        }
    }

    fn data(&self) -> Vec<u8> {
        let data = self.skel.maps.bss.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY);
        data.ok().flatten().expect("it counts")
    }

    /// Requests sent, and answered, and answered with a value.
    fn counts(&self) -> [u64; 3] {
        let data = self.data();
        [offset_of!(bmc_flood, sent), offset_of!(bmc_flood, replies), offset_of!(bmc_flood, values)]
            .map(|at| u64::from_ne_bytes(*data[at..].first_chunk().expect("it is that long")))
    }

    /// From now on, nanoseconds from one request to the next.
    fn set_pace(&self, gap: u64) {
        let mut data = self.data();
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("there is that clock");
        let now = Duration::from(now).as_nanos() as u64;
        for (at, value) in [(offset_of!(bmc_flood, due), now), (offset_of!(bmc_flood, gap), gap)] {
            data[at..][..8].copy_from_slice(&value.to_ne_bytes());
        }
        let map = &self.skel.maps.bss;
        map.update(&0_u32.to_ne_bytes(), &data, MapFlags::ANY).expect("it has room");
    }

    /// Sends that many requests, one in `gap` nanoseconds; 0: as fast as they can
    /// be made. How many were sent, and answered, and with a value, and in how many
    /// seconds.
    fn ask(&self, requests: u32, gap: u64) -> ([u64; 3], f64) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, ...
        let mut context = [0; 24];
        let frame = [0; FRAME];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&self.device.to_ne_bytes());
        self.set_pace(gap);
        let before = self.counts();
        let start = Instant::now();
        self.skel
            .progs
            .bmc_flood
            .test_run(ProgramInput {
                context_in: Some(&mut context),
                data_in: Some(&frame),
                flags: LIVE_FRAMES,
                repeat: requests,
                ..ProgramInput::default()
            })
            .expect("the kernel can run live frames (Linux 5.18)");
        let time = start.elapsed().as_secs_f64();
        sleep(LATE);
        let after = self.counts();
        (std::array::from_fn(|i| after[i] - before[i]), time)
    }
}
