// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Who emptied the cache: what is noted of whatever has every entry forgotten.

use std::mem::offset_of;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::thread::sleep;
use std::time::Duration;

use bmc::bench::net::pin;
use bmc::offenders::Offender;
use bmc::offenders::read;
use bmc::skel::types::bmc_offender;
use bmc::skel::types::bmc_offenders;
use bmc::system::monotonic;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use nix::sched::CpuSet;

use crate::connection::Connection;
use crate::fixture::Config;
use crate::fixture::FLOW_WAYS;
use crate::packet::Flow;
use crate::packet::datagram;
use crate::packet::part;
use crate::scene::Counts;
use crate::scene::LEASED;
use crate::scene::Scene;
use crate::scene::UNFOLLOWED;
use crate::scene::UNMATCHED;
use crate::scene::UNPARSED;
use crate::scene::WRITE;
use crate::scene::v4;
use crate::scene::v6;
use crate::scene::with_ipv4_options;

/// What an unknown command over UDP counts.
const UNPARSED_DATAGRAM: Counts = &[("pass_command", 1), ("tcp_unparsed", 1), ("flushes", 1)];
/// What `flush_all` counts.
const FLUSHED: Counts = &[("write_requests", 1), ("flushes", 1)];
/// Longer than a client has to be quiet until its text is noted anew.
const LATER: Duration = Duration::from_millis(1100);

impl Scene {
    fn offenders(&self) -> Vec<Offender> {
        read(&self.bmc.offenders(), monotonic().unwrap()).unwrap()
    }

    /// The newest offender; what is known of it, but for the times.
    #[track_caller]
    fn check_last(&self, reason: &str, transport: &str, flow: &Flow, count: u64, text: &[u8]) {
        let all = self.offenders();
        let last = all.first().unwrap_or_else(|| panic!("nobody is noted for {reason}"));
        let expected = Offender {
            ago: last.ago,
            closed: last.closed,
            count,
            client: Some(flow.source),
            server: Some(flow.target),
            transport: Some(if transport == "tcp" { "tcp" } else { "udp" }),
            reason: last.reason,
            text: text.to_vec(),
        };
        assert_eq!((last.reason, last), (reason, &expected), "of {all:#?}");
        assert!(last.ago < Duration::from_secs(1), "{last:?}");
    }
}

fn flow_of(tcp: &Connection, flow: &Flow) -> Flow {
    flow.clone().with_port(tcp.port())
}

#[test]
fn a_command_that_is_not_understood_leaves_its_peer_and_first_bytes() {
    for flow in [v4(), v6()] {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        assert_eq!(scene.offenders(), []);
        let mut tcp = scene.connect(&flow);
        let client = flow_of(&tcp, &flow);
        scene.asks(&mut tcp, b"get key\r\nnonsense \xff\r\nget key\r\n", UNPARSED);
        scene.check_last("unparsed", "tcp", &client, 1, b"nonsense \xff\r\nget key\r\n");
        let closed = scene.offenders()[0].closed;
        assert!((1..=1000).contains(&closed.as_millis()), "for a second: {closed:?}");

        // What the client gets for it is another matter.
        scene.says(&mut tcp, "END\r\nERROR\r\nEND\r\n", &[("flushes", 1)]);
        scene.check_last("answered", "tcp", &client, 1, b"END\r\nERROR\r\nEND\r\n");
        assert_eq!(scene.offenders().len(), 2);
        assert_eq!(scene.offenders()[0].closed, Duration::ZERO);
    }
}

#[test]
fn a_long_command_is_cut() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let client = flow_of(&tcp, &v4());
    let text = format!("nonsense {}\r\n", "x".repeat(1000));
    scene.asks(&mut tcp, &text, UNPARSED);
    scene.check_last("unparsed", "tcp", &client, 1, &text.as_bytes()[..32]);
}

#[test]
fn a_datagram_is_noted_likewise() {
    for flow in [v4(), v6().vlan(7)] {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        let frame = |text: &[u8]| flow.udp(&datagram(1, text));
        scene.passes("nonsense", &frame(b"nonsense\r\n"), UNPARSED_DATAGRAM);
        scene.check_last("unparsed", "udp", &flow, 1, b"nonsense\r\n");
        let flushed = &[("pass_command", 1), ("write_requests", 1), ("flushes", 1)];
        scene.passes("flush_all", &frame(b"flush_all 5\r\n"), flushed);
        scene.check_last("command", "udp", &flow, 1, b"flush_all 5\r\n");
        assert_eq!(scene.offenders().len(), 2);
    }
}

#[test]
fn a_datagram_that_cannot_be_read_is_noted_with_what_it_starts_with() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let frame = with_ipv4_options(v4().udp(&datagram(1, b"delete key\r\n")));
    // What the window holds of the datagram before is not this one's.
    scene.passes("nonsense", &v4().udp(&datagram(1, b"nonsense\r\n")), UNPARSED_DATAGRAM);
    scene.passes("IP options", &frame, &[("pass_header", 1), ("flushes", 1)]);
    scene.check_last("unread", "udp", &v4(), 1, b"delete key\r\n");
    // Neither memcached nor bmc reads that.
    scene.passes("a part", &v4().udp(&part(1, 0, 2, b"delete key\r\n")), &[("pass_frame", 1)]);
    assert_eq!(scene.offenders().len(), 2);
}

#[test]
fn every_way_in_which_tcp_empties_the_cache_has_its_reason() {
    let Some(scene) = Scene::load(&Config { flow_sets: 1, ..Config::default() }) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let client = flow_of(&tcp, &v4());
    scene.asks(&mut tcp, "flush_all noreply\r\nget key\r\n", FLUSHED);
    scene.check_last("command", "tcp", &client, 1, b"flush_all noreply\r\nget key\r\n");
    scene.says(&mut tcp, "STORED\r\n", UNMATCHED);
    scene.check_last("unmatched", "tcp", &client, 1, b"STORED\r\n");

    let mut tcp = scene.connect(&v4());
    let client = flow_of(&tcp, &v4());
    tcp.exchange("version\r\n", "VERSION 1\r\n");
    scene.counting("a segment ahead", UNPARSED, || {
        scene.bmc.receive_loopback(&tcp.frame(8, "get a\r\n"))
    });
    scene.check_last("lost", "tcp", &client, 1, b"get a\r\n");

    let mut all: Vec<_> = (2..FLOW_WAYS).map(|_| scene.connect(&v4())).collect();
    for tcp in &mut all {
        scene.asks(tcp, "delete key\r\n", WRITE);
    }
    let mut tcp = scene.connect(&v6());
    let client = flow_of(&tcp, &v6());
    scene.asks(&mut tcp, "get key\r\n", UNFOLLOWED);
    scene.check_last("unfollowed", "tcp", &client, 1, b"get key\r\n");
    scene.says(&mut tcp, "END\r\n", UNMATCHED);
    scene.check_last("unasked", "tcp", &client, 1, b"END\r\n");
}

#[test]
fn what_is_nobodys_packet_names_nobody() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    scene.counting("the tool", &[("flushes", 1)], || scene.bmc.flush());
    let mut tcp = scene.connect(&v4());
    tcp.exchange("version\r\n", "VERSION 1\r\n");
    scene.bmc.look_again(-20_000);
    scene.asks(&mut tcp, "version\r\n", &[("sleeps", 1)]);
    assert_eq!(scene.offenders().len(), 1, "it only fell asleep");
    scene.bmc.look_again(40_000);
    scene.asks(&mut tcp, "version\r\n", &[]);
    let all = scene.offenders();
    let reasons: Vec<_> = all.iter().map(|offender| offender.reason).collect();
    assert_eq!(reasons, ["woken", "tool"]);
    for offender in all {
        assert_eq!((offender.client, offender.server, offender.transport), (None, None, None));
        assert_eq!((offender.count, offender.text), (1, Vec::new()));
        assert!(offender.closed > Duration::ZERO);
    }
}

#[test]
fn a_storm_of_one_client_is_one_record() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let frame = |text: &str| v4().udp(&datagram(1, text.as_bytes()));
    scene.bmc.receive(&frame("nonsense first\r\n"));
    for nth in 1..1000 {
        scene.bmc.receive(&frame(&format!("nonsense {nth}\r\n")));
    }
    // Another client's is another.
    let other = v4().with_port(40_001);
    scene.bmc.receive(&other.udp(&datagram(1, b"nonsense\r\n")));
    let all = scene.offenders();
    assert_eq!(scene.bmc.counters().get("flushes"), 1001);
    assert_eq!(all.len(), 2, "{all:#?}");
    assert_eq!(all.iter().map(|offender| offender.count).max(), Some(1000));

    // After a pause it says anew what is not understood.
    sleep(LATER);
    scene.bmc.receive(&frame("nonsense now\r\n"));
    let last = &scene.offenders()[0];
    assert_eq!((&*last.text, last.count), (&b"nonsense now\r\n"[..], 1001));
}

#[test]
fn the_latest_offenders_of_a_cpu_are_kept() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let port = |nth: u16| 41_000 + nth;
    for nth in 0..20 {
        let flow = v4().with_port(port(nth));
        scene.passes("nonsense", &flow.udp(&datagram(1, b"nonsense\r\n")), UNPARSED_DATAGRAM);
        // A tick: no more are replaced within one than there is room for.
        sleep(Duration::from_millis(12));
        // The first one does not let itself be forgotten.
        let first = v4().with_port(port(0));
        scene.passes("again", &first.udp(&datagram(1, b"nonsense\r\n")), UNPARSED_DATAGRAM);
        sleep(Duration::from_millis(12));
    }
    let all = scene.offenders();
    let ports: Vec<_> = all.iter().map(|offender| offender.client.unwrap().port()).collect();
    let kept: Vec<_> = std::iter::once(port(0)).chain((13..20).rev().map(port)).collect();
    assert_eq!(ports, kept);
    assert_eq!(all[0].count, 21);
}

/// Many clients at once, each of which names itself in what it sends: what is read
/// meanwhile is of one of them.
#[test]
fn what_is_read_in_a_storm_of_many_is_not_torn() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let map = scene.bmc.offenders();
    let stop = AtomicBool::new(false);
    let read = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            // Not on the CPU that the programs run on, if there is another.
            pin(&(0..CpuSet::count()).collect::<Vec<_>>()).unwrap();
            let mut seen = 0;
            while !stop.load(Relaxed) {
                for offender in read(&map, monotonic().unwrap()).unwrap() {
                    let client = offender.client.unwrap();
                    let text = format!("nonsense of {client}\\r\\n");
                    assert_eq!(offender.text.escape_ascii().to_string(), text);
                    assert!(offender.count > 0);
                    seen += 1;
                }
            }
            seen
        });
        for nth in 0..30_000_u32 {
            let flow = v4().with_port(40_000 + (nth % 997) as u16);
            let text = format!("nonsense of {}\r\n", flow.source);
            scene.bmc.receive_late(&flow.udp(&datagram(1, text.as_bytes())));
        }
        stop.store(true, Relaxed);
        reader.join().unwrap()
    });
    assert!(read > 100, "only {read} were read");
    assert_eq!(scene.bmc.counters().get("flushes"), 30_000);
}

/// The records are being written, by what a packet interrupts: it waits for nobody, and
/// changes none of them. Nor does the tool show one.
#[test]
fn a_record_that_is_being_written_is_left_alone() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let (map, key) = (scene.bmc.offenders(), 0_u32.to_ne_bytes());
    let size = size_of::<bmc_offender>();
    let records = offset_of!(bmc_offenders, last);
    let mut cpus = map.lookup_percpu(&key, MapFlags::ANY).unwrap().unwrap();
    for record in cpus.iter_mut().flat_map(|cpu| cpu[records..].chunks_mut(size)) {
        record[offset_of!(bmc_offender, seq)..][..8].copy_from_slice(&1_u64.to_ne_bytes());
        record[offset_of!(bmc_offender, count)..][..8].copy_from_slice(&1_u64.to_ne_bytes());
    }
    map.update_percpu(&key, &cpus, MapFlags::ANY).unwrap();
    scene.passes("nonsense", &v4().udp(&datagram(1, b"nonsense\r\n")), UNPARSED_DATAGRAM);
    let after = map.lookup_percpu(&key, MapFlags::ANY).unwrap().unwrap();
    for (before, after) in cpus.iter().zip(&after) {
        assert_eq!(before[records..], after[records..]);
    }
    assert_eq!(scene.offenders(), []);
}

/// Nothing is noted where nothing is forgotten, or only what one bucket holds.
#[test]
fn a_write_of_one_key_is_no_offence() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, "delete key\r\n", WRITE);
    scene.passes(
        "a write over UDP",
        &v4().udp(&datagram(1, b"delete other\r\n")),
        &[("pass_command", 1), ("write_requests", 1), ("invalidations", 1), ("write_untracked", 1)],
    );
    scene.passes("a GET", &v4().get(2, &["none"]), LEASED);
    assert_eq!(scene.offenders(), []);
}
