// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The bad network between clients and server: `bpf/chaos.bpf.c` at the
//! client's device and the detour that delays frames.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use bmc::host::facts;
use bmc::host::sys::LinkType;
use bmc::host::sys::link_create;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::skel::SkelBuilder as _;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::bind;
use nix::sys::socket::recv;
use nix::sys::socket::send;
use nix::sys::socket::socket;

use crate::common::Namespace;
use crate::common::Net;
use crate::common::Rng;
use crate::common::run;

use skeleton::ChaosSkelBuilder;

/// The skeleton of `bpf/chaos.bpf.c`, generated.
mod skeleton {
    #![allow(clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, unsafe_code)]
    #![allow(dead_code, missing_docs, unreachable_pub)]

    include!(concat!(env!("OUT_DIR"), "/chaos.skel.rs"));
}

/// What can happen to a packet, as in `bpf/chaos.bpf.c`.
pub const FAULTS: [&str; 3] = ["loss", "copy", "detour"];
const DETOUR: &str = "detour0";
const DETOUR_END: &str = "detour1";
/// How long a frame's detour takes, in us.
const DELAY: std::ops::Range<usize> = 100..20_000;

/// Which packets are in danger: to memcached and from it, each of UDP and TCP.
pub type Danger = [[bool; 2]; 2];

/// The programs at the client's device; gone on drop.
#[derive(Debug)]
pub struct Chaos {
    faults: MapHandle,
    stalled: MapHandle,
    injected: MapHandle,
    devices: [u32; 2],
    _links: Vec<OwnedFd>,
}

impl Chaos {
    /// Attaches them, without faults.
    pub fn new(net: &Net) -> Self {
        let client = net.client.name();
        let ip = |args: &[&str]| {
            run(std::process::Command::new("ip").args(["-n", client]).args(args));
        };
        ip(&["link", "add", DETOUR, "type", "veth", "peer", "name", DETOUR_END]);
        for end in [DETOUR, DETOUR_END] {
            ip(&["link", "set", end, "up"]);
        }
        // What is put back must be whole: segments and checksums.
        let offloads = ["tx", "off", "tso", "off", "gso", "off"];
        run(net.client.command("ethtool").args(["-K", DETOUR]).args(offloads));
        // The server asks for a lost address often and for long.
        net.server.within(|| {
            let directory = format!("/proc/sys/net/ipv4/neigh/{}", Net::DEVICE);
            for (name, value) in [("retrans_time_ms", "10"), ("mcast_solicit", "300")] {
                fs::write(format!("{directory}/{name}"), value).expect("a setting of the kernel");
            }
        });
        net.client.within(|| {
            let mut object = MaybeUninit::uninit();
            let skel = ChaosSkelBuilder::default()
                .open(&mut object)
                .and_then(libbpf_rs::skel::OpenSkel::load)
                .expect("the programs load");
            let index = |name| facts::index_of(name).expect("the device exists");
            let [device, detour] = [Net::DEVICE, DETOUR].map(index);
            let links = [
                (&skel.progs.bmc_out, device, LinkType::TcxEgress),
                (&skel.progs.bmc_in, device, LinkType::TcxIngress),
                (&skel.progs.bmc_back, detour, LinkType::TcxIngress),
            ]
            .map(|(program, device, side)| {
                link_create(program.as_fd(), device, side).expect("the program attaches")
            });
            let map = |map| MapHandle::try_from(map).expect("a map can be had twice");
            Self {
                faults: map(&skel.maps.bmc_faults),
                stalled: map(&skel.maps.bmc_stalled),
                injected: map(&skel.maps.bmc_injected),
                devices: [device, detour].map(|device| device as u32),
                _links: links.into(),
            }
        })
    }

    /// Puts packets in danger: so many of a hundred, of each fault a third.
    pub fn set(&self, percent: u32, danger: Danger) {
        let rate = percent * 65536 / 100 / FAULTS.len() as u32;
        let rates = danger
            .as_flattened()
            .iter()
            .flat_map(|&danger| [if danger { rate } else { 0 }; FAULTS.len()]);
        store(&self.faults, rates.chain(self.devices));
    }

    /// From now on the server cannot resolve this address of the client: what it
    /// sends there waits in the kernel, before bmc sees it.
    pub fn stall(&self, server: &Namespace, address: Ipv4Addr) {
        store(&self.stalled, [u32::from_ne_bytes(address.octets())]);
        let gone = std::process::Command::new("ip")
            .args(["-n", server.name(), "neigh", "del", &address.to_string(), "dev", Net::DEVICE])
            .output();
        // There was none if nothing was sent there yet.
        drop(gone.expect("ip is installed"));
    }

    /// It can again, within 10 ms.
    pub fn resume(&self) {
        store(&self.stalled, [0]);
    }

    /// How often each fault came over the network: to memcached by UDP and TCP,
    /// then from it; and how often an address was not resolved.
    pub fn injected(&self) -> ([[u64; 3]; 4], u64) {
        let bytes = self
            .injected
            .lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .ok()
            .flatten()
            .expect("the programs count");
        let count = |at: usize| {
            u64::from_ne_bytes(*bytes[at * 8..].first_chunk().expect("as many as there are"))
        };
        (std::array::from_fn(|way| std::array::from_fn(|fault| count(way * 3 + fault))), count(12))
    }
}

fn store(map: &MapHandle, words: impl IntoIterator<Item = u32>) {
    let value: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    map.update(&0_u32.to_ne_bytes(), &value, MapFlags::ANY).expect("the programs take it");
}

/// Takes frames from the detour and gives them back a random time later, until
/// it is told to stop. To run in the client's namespace.
pub fn detour(mut rng: Rng, stop: impl Fn() -> bool) {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            .expect("root may open a packet socket");
    let device = getifaddrs()
        .expect("the kernel lists addresses")
        .filter(|entry| entry.interface_name == DETOUR_END)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .expect("the device exists");
    bind(socket.as_raw_fd(), &device).expect("the device is up");

    let mut held: BinaryHeap<Reverse<(Instant, Vec<u8>)>> = BinaryHeap::new();
    let mut frame = vec![0; 1 << 16];
    while !stop() {
        while let Ok(len) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            let delay = DELAY.start + rng.below(DELAY.len());
            let due = Instant::now() + Duration::from_micros(delay as u64);
            held.push(Reverse((due, frame[..len].to_vec())));
        }
        while held.peek().is_some_and(|Reverse((due, _))| *due <= Instant::now()) {
            let Some(Reverse((_, frame))) = held.pop() else { break };
            // One that does not go is one more lost.
            let _ = send(socket.as_raw_fd(), &frame, MsgFlags::empty());
        }
        thread::sleep(Duration::from_micros(if held.is_empty() { 2000 } else { 200 }));
    }
}
