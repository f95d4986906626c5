// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Misses on their way from XDP to TC. A test run cannot give an skb metadata: these
//! frames come over a veth pair, through the programs that are attached to its end.

use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use bmc::kernel::LinkType;
use bmc::kernel::link_create;
use bmc::skel::bench::BenchSkel;
use bmc::skel::bench::BenchSkelBuilder;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::bind;
use nix::sys::socket::send;
use nix::sys::socket::socket;

use crate::fixture::Config;
use crate::fixture::IFINDEX;
use crate::packet::Flow;
use crate::packet::datagram;
use crate::scene::Counts;
use crate::scene::FILLED;
use crate::scene::LEASED;
use crate::scene::QUARANTINED;
use crate::scene::Scene;
use crate::scene::carriers;
use crate::scene::edit;
use crate::scene::key_reply;
use crate::scene::key_reply_of;
use crate::scene::v4;
use crate::scene::v6;

/// A GET that the cache did not even look up, with several keys.
const TWO_KEYS: Counts = &[("get_requests", 1), ("get_keys", 2), ("misses", 2)];
const UDP_WRITE: Counts =
    &[("pass_command", 1), ("write_requests", 1), ("invalidations", 1), ("write_untracked", 1)];

/// What is in front of a frame, and who puts it there.
enum Early {
    /// `bmc_rx`, run by the driver or by the stack.
    Bmc(LinkType),
    /// Another program, with these words.
    Forged([u64; 4]),
    Nobody,
}

/// The device with bmc attached, and the wire to it. Behind bmc the frames end.
struct Wire<'a> {
    scene: &'a Scene,
    bench: BenchSkel<'static>,
    socket: OwnedFd,
    _links: Vec<OwnedFd>,
}

impl<'a> Wire<'a> {
    fn attach(scene: &'a Scene, early: &Early) -> Self {
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let bench = BenchSkelBuilder::default().open(storage).unwrap().load().unwrap();
        let device = i32::try_from(IFINDEX).unwrap();
        let mut links: Vec<_> = [bench.progs.bmc_swallow.as_fd(), scene.bmc.rx_tc().as_fd()]
            .map(|tc| link_create(tc, device, LinkType::TcxIngress).unwrap())
            .into();
        match early {
            Early::Bmc(mode) => {
                links.push(link_create(scene.bmc.rx().as_fd(), device, *mode).unwrap());
            }
            Early::Forged(words) => {
                let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let (map, key) = (&bench.maps.bmc_forged, 0u32.to_ne_bytes());
                map.update(&key, &words, MapFlags::ANY).unwrap();
                let forge = bench.progs.bmc_forge.as_fd();
                links.push(link_create(forge, device, LinkType::XdpNative).unwrap());
            }
            Early::Nobody => {}
        }
        let (family, kind) = (AddressFamily::Packet, SockType::Raw);
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
        let peer = getifaddrs().unwrap().find_map(|address| {
            let link = address.address.as_ref()?.as_link_addr().copied();
            link.filter(|_| address.interface_name == "bmc1")
        });
        bind(socket.as_raw_fd(), &peer.unwrap()).unwrap();
        Self { scene, bench, socket, _links: links }
    }

    /// How many frames went by bmc, and how many of them had metadata.
    fn seen(&self) -> [u64; 2] {
        let seen = self.bench.maps.bmc_swallowed.lookup(&0u32.to_ne_bytes(), MapFlags::ANY);
        let seen = seen.unwrap().unwrap();
        [0, 8].map(|at| u64::from_ne_bytes(*seen[at..].first_chunk().unwrap()))
    }

    /// The frame comes in, passes and counts just this; says whether it had metadata.
    #[track_caller]
    fn passes(&self, what: &str, frame: &[u8], expected: Counts) -> bool {
        let before = self.seen();
        self.scene.counting(what, expected, || {
            let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
            assert_eq!(sent, frame.len());
            let start = Instant::now();
            while self.seen()[0] == before[0] {
                assert!(start.elapsed() < Duration::from_secs(5), "{what} does not come");
                sleep(Duration::from_millis(1));
            }
        });
        self.seen()[1] != before[1]
    }

    /// The same of a GET of one key.
    #[track_caller]
    fn misses(&self, flow: &Flow, id: u16, key: &str) -> bool {
        self.passes(&format!("the GET of {key}"), &flow.get(id, &[key]), LEASED)
    }
}

#[test]
fn what_misses_in_xdp_is_not_looked_up_again() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for (mode, name) in [(LinkType::XdpNative, "native"), (LinkType::XdpGeneric, "generic")] {
        let wire = Wire::attach(&scene, &Early::Bmc(mode));
        for (family, flow) in [("IPv4", v4()), ("IPv6", v6())] {
            let (id, key) = (scene.id(), format!("{name}-{family}"));
            assert!(wire.misses(&flow, id, &key), "{key} is handed over");
            // Its lease is the request's: nobody else's reply fills.
            let reply = datagram(id, &key_reply_of(&key));
            let other = flow.clone().with_port(40001).reversed().udp(&reply);
            let unleased: Counts = &[("get_replies", 1), ("fill_unleased", 1)];
            scene.replies(&format!("another's reply with {key}"), &other, unleased);
            scene.replies(&format!("the reply with {key}"), &flow.reversed().udp(&reply), FILLED);
            scene.hits(&flow, &key, &key_reply_of(&key));
        }
    }
}

#[test]
fn only_a_get_of_one_key_that_misses_is_handed_over() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let wire = Wire::attach(&scene, &Early::Bmc(LinkType::XdpNative));
    for (carrier, flow) in carriers() {
        let plain = flow.tags.is_empty();
        assert_eq!(wire.misses(&flow, scene.id(), "key"), plain, "{carrier}");
    }
    let two = v4().get(scene.id(), &["one", "two"]);
    assert!(!wire.passes("a GET of two keys", &two, TWO_KEYS));

    // A write is seen by TC alone; after it XDP's words are as good as TC's.
    let write = v4().udp(&datagram(scene.id(), b"set key 0 0 1\r\nx\r\n"));
    assert!(!wire.passes("a write", &write, UDP_WRITE));
    let get = v4().get(scene.id(), &["key"]);
    assert!(wire.passes("a GET after it", &get, QUARANTINED));
}

#[test]
fn a_write_behind_a_miss_that_was_handed_over_keeps_it_from_filling() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let wire = Wire::attach(&scene, &Early::Bmc(LinkType::XdpNative));
    let id = scene.id();
    assert!(wire.misses(&v4(), id, "key"));
    let write = v4().udp(&datagram(scene.id(), b"delete key\r\n"));
    assert!(!wire.passes("a write", &write, UDP_WRITE));
    let raced: Counts = &[("get_replies", 1), ("fill_raced", 1)];
    scene.replies("the reply", &v4().reversed().udp(&datagram(id, &key_reply())), raced);
}

#[test]
fn a_request_that_was_handed_over_counts_as_outstanding() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let wire = Wire::attach(&scene, &Early::Bmc(LinkType::XdpNative));
    let id = scene.id();
    assert!(wire.misses(&v4(), id, "key"));
    let outstanding: Counts =
        &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_outstanding", 1)];
    // The first reply may answer either.
    assert!(wire.passes("the GET again", &v4().get(id, &["key"]), outstanding));
    // TC sees the same name where XDP is not asked.
    scene.passes("and again", &v4().get(id, &["key"]), outstanding);
}

#[test]
fn metadata_of_others_is_not_believed() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let secret = scene.bmc.secret();
    let words = |secret: u64| [secret, 0x1234_5678_9abc_def0, 3, 0];
    for (nth, secret) in [0, 1, secret ^ 1, !secret].into_iter().enumerate() {
        let wire = Wire::attach(&scene, &Early::Forged(words(secret)));
        let (id, key) = (scene.id(), format!("forged-{nth}"));
        assert!(wire.misses(&v4(), id, &key), "it has metadata");
        let reply = v4().reversed().udp(&datagram(id, &key_reply_of(&key)));
        scene.replies(&format!("the reply with {key}"), &reply, FILLED);
        // What is there, TC finds.
        let hit = v4().get(scene.id(), &[&key]);
        let late: Counts = &[("get_requests", 1), ("get_keys", 1), ("hits", 1), ("tc_replies", 1)];
        scene.counting("a hit", late, || {
            send(wire.socket.as_raw_fd(), &hit, MsgFlags::empty()).unwrap();
            sleep(Duration::from_millis(100));
        });
    }
    // Nor is bmc's own, of another key's frame, more than it says: it fills nothing.
    let wire = Wire::attach(&scene, &Early::Forged(words(secret)));
    let id = scene.id();
    assert!(wire.misses(&v4(), id, "key"));
    let refused: Counts = &[("get_replies", 1), ("fill_reply", 1)];
    scene.replies("the reply", &v4().reversed().udp(&datagram(id, &key_reply())), refused);
    // Nor that the frame is a GET with plain headers, which it is for TC to see.
    for (what, at, byte) in [
        ("no IP", 12, 0x88),
        ("another version of IP", 14, 0x55),
        ("a later fragment", 21, 1),
        ("another protocol", 23, 132),
        ("another port", 37, 1),
    ] {
        let frame = edit(v4().get(scene.id(), &["key"]), |frame| frame[at] = byte);
        assert!(wire.passes(what, &frame, &[]), "{what}");
    }
    for (carrier, flow) in carriers() {
        if flow.tags.is_empty() {
            continue;
        }
        let id = scene.id();
        assert!(wire.misses(&flow, id, "key"), "{carrier}");
        let reply = flow.reversed().udp(&datagram(id, &key_reply()));
        scene.replies(&format!("the reply, {carrier}"), &reply, FILLED);
    }
}

#[test]
fn without_xdp_tc_looks_up_by_itself() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let wire = Wire::attach(&scene, &Early::Nobody);
    for flow in [v4(), v6()] {
        let id = scene.id();
        assert!(!wire.misses(&flow, id, "key"), "there is no metadata");
        let reply = flow.reversed().udp(&datagram(id, &key_reply()));
        scene.replies("the reply", &reply, FILLED);
        scene.hits(&flow, "key", &key_reply_of("key"));
    }
}
