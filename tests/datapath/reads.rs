// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! GETs: which are answered, how, and which go to memcached.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use bmc::bench::net::cpus;
use bmc::bench::net::pin;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;

use crate::fixture::Config;
use crate::fixture::Counters;
use crate::fixture::MAC;
use crate::fixture::Verdict;
use crate::fixture::skipped;
use crate::packet::ACK;
use crate::packet::Flow;
use crate::packet::PSH_ACK;
use crate::packet::REPLY_MAX;
use crate::packet::datagram;
use crate::packet::network;
use crate::packet::part;
use crate::packet::payload;
use crate::packet::room;
use crate::packet::seal_partial;
use crate::packet::transport;
use crate::packet::value;
use crate::packet::values;
use crate::random::Rng;
use crate::scene::Counts;
use crate::scene::DESTINATION_OPTIONS;
use crate::scene::FIRST_FRAGMENT;
use crate::scene::HIT;
use crate::scene::LATE_HIT;
use crate::scene::LATER_FRAGMENT;
use crate::scene::LEASED;
use crate::scene::Scene;
use crate::scene::add16;
use crate::scene::carriers;
use crate::scene::check_reply;
use crate::scene::edit;
use crate::scene::edit_sealed;
use crate::scene::key_reply;
use crate::scene::v4;
use crate::scene::v6;
use crate::scene::with_ipv4_options;
use crate::scene::with_ipv6_extension;

/// `BMC_GEN`: what is added to a bucket's word when something changes.
const GENERATION: u64 = 1 << 17;

#[test]
fn learns_and_answers_every_size_in_every_carrier() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let flags = [0, 1, 10, 65_535, u32::MAX];
    for (carrier, flow) in carriers() {
        for (nth, klen) in [1, 2, 7, 8, 9, 11, 12, 250].into_iter().enumerate() {
            for (letter, size) in ('a'..).zip([0, 1, 113, 114, 500, 1000, usize::MAX]) {
                let key = format!("{letter:x<klen$}");
                let flags = flags[nth % flags.len()];
                let size = size.min(room(&key, flags));
                let data: Vec<u8> = (0..size).map(|at| (at * 7 + klen) as u8).collect();
                println!("{carrier}: key of {klen}, value of {size}, flags {flags}");
                scene.fill(&flow, &key, flags, &data);
                scene.hits(&flow, &key, &values(&[value(&key, flags, &data)]));
            }
        }
    }
}

/// Else a hot key would not be answered faster by several CPUs than by one.
#[test]
fn a_hot_key_is_answered_without_a_change_in_what_cpus_share() {
    let config = Config { buckets: 64, slabs: 4, ..Config::default() };
    let Some(scene) = Scene::load(&config) else {
        return;
    };
    let text = values(&[value("hot", 0, b"data")]);
    scene.fill(&v4(), "hot", 0, b"data");
    let ask = |times| {
        for _ in 0..times {
            scene.hits(&v4(), "hot", &text);
        }
    };
    let warming = scene.bmc.shared_memory();
    ask(8);
    let before = scene.bmc.shared_memory();
    assert_ne!(warming["bmc_slabs"], before["bmc_slabs"], "it is counted until that is full");
    ask(100);
    let after = scene.bmc.shared_memory();
    assert!(after.len() > 10, "{:?}", after.keys());
    for (name, contents) in before {
        assert!(after[&name] == contents, "{name} has changed");
    }
}

/// Ends a thread's work, also that of one whose test has failed.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// XDP writes the text straight into the frame. If the bucket's word moves meanwhile, as
/// with a write, the text counts for nothing: the request must be there again.
#[test]
fn a_get_whose_entry_changes_under_way_goes_on_as_it_came() {
    const EACH: u32 = 30;
    const TRIES: u32 = 200_000;
    const BUCKETS: u32 = 4;

    let allowed = cpus().expect("there are some");
    if allowed.len() < 2 {
        return skipped("a_get_whose_entry_changes_under_way…", "it needs two CPUs");
    }
    let Some(scene) = Scene::load(&Config { buckets: BUCKETS, ..Config::default() }) else {
        return;
    };
    let mut gets = Vec::new();
    for (nth, (carrier, flow)) in carriers().into_iter().enumerate() {
        for size in [32, 1000] {
            let key = format!("{nth}{}", "k".repeat(size % 97));
            let data = vec![b'v'; size];
            scene.fill(&flow, &key, 0, &data);
            let text = values(&[value(&key, 0, &data)]);
            gets.push((format!("{carrier}, value of {size}"), flow.get(1, &[key]), text));
        }
    }
    let (index, over) = (scene.bmc.index(), AtomicBool::new(false));
    let move_words = || {
        pin(&allowed).expect("they are ours to use");
        let keys: Vec<_> = (0..BUCKETS).map(u32::to_ne_bytes).collect();
        let bucket = |key| index.lookup(key, MapFlags::ANY).unwrap().unwrap();
        let mut buckets: Vec<_> = keys.iter().map(|key| bucket(key)).collect();
        while !over.load(Relaxed) {
            for (key, bucket) in keys.iter().zip(&mut buckets) {
                let word: [u8; 8] = std::array::from_fn(|i| bucket[i]);
                let word = u64::from_ne_bytes(word) + GENERATION;
                bucket[..8].copy_from_slice(&word.to_ne_bytes());
                index.update(key, bucket, MapFlags::ANY).unwrap();
            }
        }
    };
    std::thread::scope(|threads| {
        threads.spawn(move_words);
        let _end = AtEnd(&over);
        for (what, request, text) in gets {
            let (mut answered, mut passed) = (0, 0);
            for _ in 0..TRIES {
                match scene.bmc.receive_early(&request) {
                    Verdict::Answered(reply) => {
                        check_reply(&what, &request, &reply, &text);
                        answered += 1;
                    }
                    _ => passed += 1,
                }
                if answered >= EACH && passed >= EACH {
                    break;
                }
            }
            println!("{what}: {answered} answered, {passed} passed");
            assert!(answered >= EACH && passed >= EACH, "{what}: {answered}, {passed}");
        }
    });
}

#[test]
fn learns_the_largest_reply_that_fits_and_no_larger() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for key in ["k", "key", &"k".repeat(250)] {
        let data = vec![b'v'; room(key, 0) + 1];
        let text = values(&[value(key, 0, &data[1..])]);
        assert_eq!(text.len(), REPLY_MAX);
        let id = scene.id();
        let too_large = datagram(id, &values(&[value(key, 0, &data)]));
        scene.passes("the GET", &v4().get(id, &[key]), LEASED);
        scene.replies(
            "a reply one byte too large",
            &v4().reversed().udp(&too_large),
            &[("get_replies", 1), ("fill_reply", 1)],
        );
        scene.fill(&v4(), key, 0, &data[1..]);
        scene.hits(&v4(), key, &text);
    }
}

#[test]
fn keeps_values_as_they_are() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let every_byte: Vec<u8> = (0..=255).collect();
    let data: [&[u8]; 9] = [
        b"\r\n",
        b"END\r\n",
        b"\r\nEND\r\n",
        b"VALUE key 0 1\r\nx\r\nEND\r\n",
        b"get key\r\n",
        b"\0",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        &[0xff; 64],
        &every_byte,
    ];
    for (nth, data) in data.into_iter().enumerate() {
        let key = format!("key{nth}");
        scene.fill(&v6(), &key, 7, data);
        scene.hits(&v6(), &key, &values(&[value(&key, 7, data)]));
    }
}

#[test]
fn keeps_keys_of_any_bytes() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let keys: [&[u8]; 5] =
        [b"!", b"\x7f\x80\xff", &[0xff; 8], &[0x80; 16], "schl\u{fc}ssel".as_bytes()];
    for key in keys {
        scene.fill(&v4(), key, 0, b"value");
        scene.hits(&v4(), key, &values(&[value(key, 0, b"value")]));
    }
}

#[test]
fn checksums_hold_for_any_text() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut random = Rng::new(0xc5);
    for nth in 0..500 {
        let key = format!("{nth}{}", "k".repeat(random.below(20)));
        let flags = random.number() as u32 >> random.below(32);
        let size = random.below(room(&key, flags));
        let data: Vec<u8> = (0..size).map(|_| random.number() as u8).collect();
        let flow = if nth % 2 == 0 { v4() } else { v6() };
        scene.fill(&flow, &key, flags, &data);
        scene.hits(&flow, &key, &values(&[value(&key, flags, &data)]));
    }
}

/// Keys k0, k1, ... with a value of this size, in the cache.
fn fill_many(scene: &Scene, count: usize, size: usize) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|nth| {
            let key = format!("k{nth}");
            let data = vec![b'a' + (nth % 26) as u8; size];
            scene.fill(&v4(), &key, nth as u32, &data);
            let text = value(&key, nth as u32, &data);
            (key, text)
        })
        .collect()
}

fn multi_get(scene: &Scene, keys: &[&str]) -> Vec<u8> {
    v4().get(scene.id(), keys)
}

#[test]
fn answers_multi_gets_of_1_to_32_keys() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let items = fill_many(&scene, 32, 3);
    for count in 1..=32 {
        // Not always from the first, so that every key is the last once.
        let (keys, texts): (Vec<&str>, Vec<&Vec<u8>>) = (0..count)
            .map(|nth| &items[(nth * 5 + count) % 32])
            .map(|(key, text)| (key.as_str(), text))
            .unzip();
        let frame = multi_get(&scene, &keys);
        let before = scene.bmc.counters();
        let verdict = scene.bmc.receive(&frame);
        let Verdict::Answered(reply) = verdict else {
            panic!("{count} keys: {verdict:?}");
        };
        check_reply(&format!("{count} keys"), &frame, &reply, &values(&texts));
        let verdict = scene.bmc.receive_late(&frame);
        let Verdict::AnsweredLate(reply) = verdict else {
            panic!("{count} keys at TC: {verdict:?}");
        };
        check_reply(&format!("{count} keys at TC"), &frame, &reply, &values(&texts));
        let counted = scene.bmc.counters().since(&before);
        let twice = 2 * count as u64;
        assert_eq!(
            counted,
            Counters::new(&[
                ("get_requests", 2),
                ("get_keys", twice),
                ("hits", twice),
                ("tc_replies", 1),
            ])
        );
    }
}

#[test]
fn answers_a_key_as_often_as_it_is_asked_for() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let items = fill_many(&scene, 2, 9);
    let (a, b) = (&items[0], &items[1]);
    scene.answers(
        "a, b, a, a",
        &multi_get(&scene, &[&a.0, &b.0, &a.0, &a.0]),
        &values(&[&a.1, &b.1, &a.1, &a.1]),
        &[("get_requests", 1), ("get_keys", 4), ("hits", 4)],
        &[("get_requests", 1), ("get_keys", 4), ("hits", 4), ("tc_replies", 1)],
    );
    scene.answers(
        "32 times a",
        &multi_get(&scene, &[a.0.as_str(); 32]),
        &values(&[&a.1; 32]),
        &[("get_requests", 1), ("get_keys", 32), ("hits", 32)],
        &[("get_requests", 1), ("get_keys", 32), ("hits", 32), ("tc_replies", 1)],
    );
}

#[test]
fn passes_multi_gets_unless_every_key_is_there() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    fill_many(&scene, 32, 1);
    let rows: [(&[&str], Counts); 5] = [
        (&["k0", "none"], &[("get_requests", 1), ("get_keys", 2), ("misses", 2)]),
        (&["none", "k0"], &[("get_requests", 1), ("get_keys", 2), ("misses", 2)]),
        (&["k0", "k1", "none", "k2", "k3"], &[("get_requests", 1), ("get_keys", 5), ("misses", 5)]),
        (&["none", "nothing"], &[("get_requests", 1), ("get_keys", 2), ("misses", 2)]),
        (&["none", "none"], &[("get_requests", 1), ("get_keys", 2), ("misses", 2)]),
    ];
    for (keys, counts) in rows {
        scene.passes(&keys.join(" "), &multi_get(&scene, keys), counts);
    }
    scene.passes("33 keys", &multi_get(&scene, &["k0"; 33]), &[("pass_keys", 1)]);
    scene.passes("300 keys", &multi_get(&scene, &["k0"; 300]), &[("pass_keys", 1)]);
}

#[test]
fn answers_what_fits_one_datagram_and_passes_one_byte_more() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let texts = [("a", 620), ("b", 620), ("c", 97), ("d", 98)].map(|(key, size)| {
        scene.fill(&v4(), key, 0, &vec![b'v'; size]);
        value(key, 0, &vec![b'v'; size])
    });
    let [a, b, c, _] = &texts;
    let text = values(&[a, b, c]);
    assert_eq!(text.len(), REPLY_MAX);
    scene.answers(
        "1392 bytes",
        &multi_get(&scene, &["a", "b", "c"]),
        &text,
        &[("get_requests", 1), ("get_keys", 3), ("hits", 3)],
        &[("get_requests", 1), ("get_keys", 3), ("hits", 3), ("tc_replies", 1)],
    );
    let too_large: Counts =
        &[("get_requests", 1), ("get_keys", 3), ("misses", 3), ("pass_size", 1)];
    scene.passes("1393 bytes", &multi_get(&scene, &["a", "b", "d"]), too_large);
    scene.passes("three large ones", &multi_get(&scene, &["a", "b", "a"]), too_large);
}

#[test]
fn passes_where_the_device_has_no_room() {
    let config = Config { mtu: 576, ..Config::default() };
    let Some(scene) = Scene::load(&config) else {
        return;
    };
    scene.fill(&v4(), "key", 0, &[0; 1000]);
    let frame = v4().get(scene.id(), &["key"]);
    let verdict = scene.counting(
        "a reply longer than the device's frames",
        &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("pass_room", 1)],
        || scene.bmc.receive_late(&frame),
    );
    assert_eq!(verdict, Verdict::Passed);
}

#[test]
fn answers_frames_in_any_proper_form() {
    let Some(scene) = Scene::with_key(&[v4(), v6(), v4().vlan(5)]) else {
        return;
    };
    let get = |flow: Flow| flow.get(0xabcd, &["key"]);
    let rows = [
        ("padded to 60 bytes", edit(get(v4()), |frame| frame.resize(60, 0))),
        ("padded with what was there", edit(get(v4()), |frame| frame.resize(64, b'\n'))),
        ("padded far too much", edit(get(v6()), |frame| frame.resize(300, 0xff))),
        ("padded VLAN frame", edit(get(v4().vlan(5)), |frame| frame.resize(64, 0))),
        (
            "IPv4 without UDP checksum",
            edit(get(v4()), |frame| {
                let at = transport(frame) + 6;
                frame[at..at + 2].fill(0);
            }),
        ),
        ("IPv4 with half a checksum", edit(get(v4()), |frame| seal_partial(frame))),
        ("IPv6 with half a checksum", edit(get(v6()), |frame| seal_partial(frame))),
        (
            "IPv4 that may be split",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame) + 6;
                frame[at] = 0;
            }),
        ),
        (
            "a TTL of one",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame) + 8;
                frame[at] = 1;
            }),
        ),
        ("another traffic class", get(Flow { tos: 0xb8, ..v6() })),
        ("another client", get(v4().from("10.255.255.254:1"))),
        ("another client", get(v6().from("[fdff::1:2]:65535"))),
        ("a link-local client", get(v6().from("[fe80::1]:999"))),
        ("a VLAN priority", {
            let mut flow = v4().vlan(5);
            flow.tags[0].1 = 0xf005;
            get(flow)
        }),
        ("another request id", v4().get(0, &["key"])),
        ("another request id", v4().get(0xffff, &["key"])),
        (
            "a reserved field in use",
            edit_sealed(get(v4()), |frame| {
                let at = payload(frame) + 6;
                frame[at..at + 2].fill(0xff);
            }),
        ),
    ];
    for (what, frame) in rows {
        scene.answers(what, &frame, &key_reply(), HIT, LATE_HIT);
    }
}

#[test]
fn entries_belong_to_one_memcached() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let others = [v4().to("10.1.0.3:11211"), v4().vlan(5), v4().qinq(5, 5), v6(), v6().vlan(5)];
    for flow in &others {
        scene.misses(flow, "key");
    }
    scene.hits(&v4(), "key", &key_reply());

    // Each may have its own value.
    for (nth, flow) in others.iter().enumerate() {
        scene.fill(flow, "key", nth as u32, b"other");
    }
    for (nth, flow) in others.iter().enumerate() {
        scene.hits(flow, "key", &values(&[value("key", nth as u32, b"other")]));
    }
    scene.hits(&v4(), "key", &key_reply());
}

/// Every key was there, but the request may not be what its sender sent.
const UNCHECKED: Counts =
    &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("pass_checksum", 1)];

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn passes_what_it_must_not_answer() {
    let flows = [v4(), v6(), v4().vlan(5)];
    let Some(scene) = Scene::with_key(&flows) else {
        return;
    };
    let get = |flow: Flow| flow.get(0xabcd, &["key"]);
    let said = |text: &[u8]| v4().udp(&datagram(1, text));
    let long = "k".repeat(251);
    let rows: Vec<(&str, Vec<u8>, Counts)> = vec![
        // From whom, to whom.
        ("a public IPv4 source", get(v4().from("192.0.2.1:40000")), &[("pass_source", 1)]),
        ("just above 10/8", get(v4().from("11.0.0.0:40000")), &[("pass_source", 1)]),
        ("just below 10/8", get(v4().from("9.255.255.255:40000")), &[("pass_source", 1)]),
        ("a public IPv6 source", get(v6().from("[2001:db8::1]:40000")), &[("pass_source", 1)]),
        ("just above fd00::/8", get(v6().from("[fe00::]:40000")), &[("pass_source", 1)]),
        ("just below fd00::/8", get(v6().from("[fcff::ffff]:40000")), &[("pass_source", 1)]),
        ("no source port", get(v4().with_port(0)), &[("pass_address", 1)]),
        ("Ethernet broadcast", get(v4().with_mac([0xff; 6])), &[("pass_address", 1)]),
        ("Ethernet multicast", get(v4().with_mac([1, 0, 0x5e, 1, 0, 1])), &[("pass_address", 1)]),
        (
            "IPv6 multicast frame",
            get(v6().with_mac([0x33, 0x33, 0, 0, 0, 1])),
            &[("pass_address", 1)],
        ),
        // IP.
        (
            "the first IPv4 fragment",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame) + 6;
                frame[at] = 0x20;
            }),
            &[("pass_fragment", 1)],
        ),
        (
            "the first IPv6 fragment",
            with_ipv6_extension(get(v6()), FIRST_FRAGMENT.0, FIRST_FRAGMENT.1),
            &[("pass_fragment", 1)],
        ),
        ("IPv4 options", with_ipv4_options(get(v4())), &[("pass_header", 1)]),
        (
            "an IPv6 extension header",
            with_ipv6_extension(get(v6()), DESTINATION_OPTIONS.0, DESTINATION_OPTIONS.1),
            &[("pass_header", 1)],
        ),
        // Lengths.
        (
            "a frame cut short",
            edit(get(v4()), |frame| frame.truncate(frame.len() - 1)),
            &[("pass_length", 1)],
        ),
        (
            "an IPv6 frame cut short",
            edit(get(v6()), |frame| frame.truncate(frame.len() - 3)),
            &[("pass_length", 1)],
        ),
        (
            "a UDP length that goes beyond IP's",
            edit(get(v4()), |frame| {
                let at = transport(frame) + 4;
                add16(frame, at, 1);
            }),
            &[("pass_length", 1)],
        ),
        (
            "a UDP length short of IP's",
            edit(get(v6()), |frame| {
                let at = transport(frame) + 4;
                add16(frame, at, -1);
            }),
            &[("pass_length", 1)],
        ),
        (
            "a UDP length of zero",
            edit(get(v6()), |frame| {
                let at = transport(frame) + 4;
                frame[at..at + 2].fill(0);
            }),
            &[("pass_length", 1)],
        ),
        (
            "an IPv4 length that cuts the text",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame) + 2;
                add16(frame, at, -2);
            }),
            &[("pass_length", 1)],
        ),
        (
            "an IPv4 length that ends in the UDP header",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame) + 2;
                frame[at..at + 2].copy_from_slice(&27u16.to_be_bytes());
            }),
            &[("pass_length", 1)],
        ),
        (
            "an IPv4 length of zero",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame) + 2;
                frame[at..at + 2].fill(0);
            }),
            &[("pass_length", 1)],
        ),
        // Checksums.
        (
            "a wrong UDP checksum",
            edit(get(v4()), |frame| {
                let at = transport(frame) + 6;
                add16(frame, at, 1);
            }),
            UNCHECKED,
        ),
        (
            "a wrong UDP checksum in IPv6",
            edit(get(v6()), |frame| {
                let at = transport(frame) + 7;
                frame[at] ^= 0x10;
            }),
            UNCHECKED,
        ),
        (
            "a wrong UDP checksum in a VLAN",
            edit(get(v4().vlan(5)), |frame| {
                let at = payload(frame) + 1;
                frame[at] ^= 0x80;
            }),
            UNCHECKED,
        ),
        (
            "no UDP checksum in IPv6",
            edit(get(v6()), |frame| {
                let at = transport(frame) + 6;
                frame[at..at + 2].fill(0);
            }),
            UNCHECKED,
        ),
        // memcached's frame header.
        ("no payload", v4().udp(&[]), &[("pass_frame", 1)]),
        ("half a frame header", v4().udp(&[0, 1, 0, 0, 0, 1, 0]), &[("pass_frame", 1)]),
        ("no text", said(b""), &[("pass_frame", 1)]),
        ("zero datagrams", v4().udp(&part(1, 0, 0, b"get key\r\n")), &[("pass_frame", 1)]),
        ("two datagrams", v4().udp(&part(1, 0, 2, b"get key\r\n")), &[("pass_frame", 1)]),
        ("256 datagrams", v4().udp(&part(1, 0, 256, b"get key\r\n")), &[("pass_frame", 1)]),
        ("the second of two", v4().udp(&part(1, 1, 2, b"get key\r\n")), &[("pass_frame", 1)]),
        ("the second of one", v4().udp(&part(1, 1, 1, b"get key\r\n")), &[("pass_frame", 1)]),
        (
            "a sequence number of 256",
            v4().udp(&part(1, 256, 1, b"get key\r\n")),
            &[("pass_frame", 1)],
        ),
        // The command.
        ("gets", said(b"gets key\r\n"), &[("pass_command", 1)]),
        ("upper case", said(b"GET key\r\n"), &[("pass_command", 1)]),
        ("another command", said(b"getx key\r\n"), &[("pass_command", 1)]),
        ("a leading space", said(b" get key\r\n"), &[("pass_command", 1)]),
        ("get without a key", said(b"get\r\n"), &[("pass_command", 1)]),
        ("one byte", said(b"g"), &[("pass_command", 1)]),
        ("an empty line", said(b"\r\n"), &[("pass_command", 1)]),
        ("version", said(b"version\r\n"), &[("pass_command", 1)]),
        ("a meta get that reads", said(b"mg key v\r\n"), &[("pass_command", 1)]),
        (
            "a binary get",
            said(b"\x80\x00\x00\x03\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0key"),
            &[("pass_command", 1)],
        ),
        // Keys.
        ("251 bytes", v4().get(1, &[&long]), &[("pass_key", 1)]),
        ("251 bytes behind a good key", v4().get(1, &["key", &long]), &[("pass_key", 1)]),
        ("1000 bytes", v4().get(1, &["k".repeat(1000)]), &[("pass_key", 1)]),
        ("a tab", said(b"get key\tkey\r\n"), &[("pass_key", 1)]),
        ("a control character", said(b"get k\x01y\r\n"), &[("pass_key", 1)]),
        ("a zero byte", said(b"get key\0\r\n"), &[("pass_key", 1)]),
        ("no key", said(b"get \r\n"), &[("pass_line", 1)]),
        ("two spaces in front", said(b"get  key\r\n"), &[("pass_line", 1)]),
        ("two spaces between", said(b"get key  key\r\n"), &[("pass_line", 1)]),
        ("a space at the end", said(b"get key \r\n"), &[("pass_line", 1)]),
        // The line.
        ("only a line feed", said(b"get key\n"), &[("pass_line", 1)]),
        ("no line end", said(b"get key"), &[("pass_line", 1)]),
        ("half a line end", said(b"get key\r"), &[("pass_line", 1)]),
        ("the line end reversed", said(b"get key\n\r"), &[("pass_line", 1)]),
        ("bytes after the line", said(b"get key\r\nx"), &[("pass_line", 1)]),
        ("an empty line after it", said(b"get key\r\n\r\n"), &[("pass_line", 1)]),
        ("a line feed after it", said(b"get key\r\n\n"), &[("pass_line", 1)]),
        ("a zero byte after it", said(b"get key\r\n\0"), &[("pass_line", 1)]),
        ("two commands", said(b"get key\r\nget key\r\n"), &[("pass_line", 1)]),
        ("two commands, one to write", said(b"get key\r\ngets key\r\n"), &[("pass_line", 1)]),
        ("a bare line feed between two", said(b"get key\nget key\r\n"), &[("pass_line", 1)]),
        ("a carriage return in the key", said(b"get k\ry\r\n"), &[("pass_line", 1)]),
    ];
    for (what, frame, counts) in rows {
        for flow in &flows {
            scene.restore(flow);
        }
        let before = scene.bmc.counters();
        assert_eq!(scene.bmc.receive(&frame), Verdict::Passed, "{what}");
        // Some of them might have been writes, which `writes` looks at.
        let counted =
            scene.bmc.counters().since(&before).without("tcp_unparsed").without("flushes");
        assert_eq!(counted, Counters::new(counts), "{what}");
    }
}

/// Frames that anyone can send, or that only ask, must not empty the cache.
#[test]
fn passing_a_read_changes_nothing() {
    let Some(scene) = Scene::with_key(&[v4(), v6()]) else {
        return;
    };
    let get = |flow: Flow| flow.get(0xabcd, &["key"]);
    let said = |text: &[u8]| v4().udp(&datagram(1, text));
    let wrong = |flow: Flow| {
        edit(get(flow), |frame| {
            let at = transport(frame) + 7;
            frame[at] ^= 1;
        })
    };
    let rows = [
        ("a public IPv4 source", get(v4().from("192.0.2.1:40000"))),
        ("a public IPv6 source", get(v6().from("[2001:db8::1]:40000"))),
        ("no source port", get(v4().with_port(0))),
        ("Ethernet broadcast", get(v4().with_mac([0xff; 6]))),
        ("a wrong checksum", wrong(v4())),
        ("a wrong checksum in IPv6", wrong(v6())),
        ("another memcached's reply", v4().reversed().udp(&datagram(1, &key_reply()))),
        ("no payload", v4().udp(&[])),
        ("no text", said(b"")),
        ("two datagrams", v4().udp(&part(1, 0, 2, b"get key\r\n"))),
        ("gets", said(b"gets key\r\n")),
        ("version", said(b"version\r\n")),
        ("stats", said(b"stats\r\n")),
        ("a meta get", said(b"mg key v\r\n")),
        ("two commands", said(b"get key\r\nget key\r\n")),
        ("only a line feed", said(b"get key\n")),
        ("two spaces", said(b"get  key\r\n")),
        ("a space at the end", said(b"get key \r\n")),
        ("33 keys", v4().get(1, &["key"; 33])),
        ("300 keys", v4().get(1, &["key"; 300])),
        ("a long key", v4().get(1, &["k".repeat(251)])),
    ];
    let mut emptied = Vec::new();
    for (what, frame) in rows {
        scene.restore(&v4());
        assert_eq!(scene.bmc.receive(&frame), Verdict::Passed, "{what}");
        if !scene.has(&v4(), "key") {
            emptied.push(what);
        }
    }
    assert!(emptied.is_empty(), "{emptied:#?}");
}

#[test]
fn passes_frames_for_other_hosts() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    // XDP cannot know: that is TC's to see, and TC is where leases begin.
    let frame = v4().with_mac([2, 0, 0, 0, 0, 9]).get(1, &["key"]);
    let verdict = scene.counting("a frame for another host", &[("pass_address", 1)], || {
        scene.bmc.receive_late(&frame)
    });
    assert_eq!(verdict, Verdict::Passed);
    let frame = v4().with_mac([2, 0, 0, 0, 0, 9]).get(1, &["none"]);
    scene.passes("a miss for another host", &frame, &[("pass_address", 1)]);
}

#[test]
fn leaves_everything_else_alone() {
    let Some(scene) = Scene::with_key(&[v4(), v6()]) else {
        return;
    };
    let get = |flow: Flow| flow.get(1, &["key"]);
    let arp = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
    let rows = [
        ("ARP", arp),
        ("an unknown protocol", edit(get(v4()), |frame| frame[12] = 0x99)),
        ("another UDP port", get(v4().to("10.1.0.1:53"))),
        ("another TCP port", v4().to("10.1.0.1:80").tcp(1, 1, 0x18, b"set key 0 0 1\r\nx\r\n")),
        (
            "ICMP",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame) + 9;
                frame[at] = 1;
            }),
        ),
        (
            "a later IPv4 fragment",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame) + 7;
                frame[at] = 1;
            }),
        ),
        (
            "a later IPv6 fragment",
            with_ipv6_extension(get(v6()), LATER_FRAGMENT.0, LATER_FRAGMENT.1),
        ),
        (
            "IPv5",
            edit_sealed(get(v4()), |frame| {
                let at = network(frame);
                frame[at] = 0x55;
            }),
        ),
        (
            "IPv4 addresses mapped into IPv6",
            get(v6().from("[::ffff:10.1.0.2]:40000").to("[::ffff:10.1.0.1]:11211")),
        ),
        (
            "IPv7",
            edit(get(v6()), |frame| {
                let at = network(frame);
                frame[at] |= 0x10;
            }),
        ),
        (
            "an IPv4 header of 16 bytes",
            edit(get(v4()), |frame| {
                let at = network(frame);
                frame[at] = 0x44;
            }),
        ),
        ("three tags", get(Flow { tags: vec![(0x88a8, 1), (0x8100, 2), (0x8100, 3)], ..v4() })),
        ("no IP header", edit(get(v4()), |frame| frame.truncate(15))),
        ("half an IPv4 header", edit(get(v4()), |frame| frame.truncate(30))),
        ("half an IPv6 header", edit(get(v6()), |frame| frame.truncate(50))),
        ("half a UDP header", edit(get(v4()), |frame| frame.truncate(40))),
        ("half a tag", edit(get(v4().vlan(5)), |frame| frame.truncate(17))),
        ("a TCP handshake", v4().tcp(1, 0, 0x02, &[])),
        ("a TCP acknowledgement", v4().tcp(1, 1, ACK, &[])),
    ];
    for (what, frame) in rows {
        scene.passes(what, &frame, &[]);
        scene.replies(what, &frame, &[]);
    }
    let reply = v4().reversed().udp(&datagram(1, &key_reply()));
    scene.passes("another memcached's reply", &reply, &[]);
    let reply = v4().reversed().tcp(1, 1, PSH_ACK, b"set key 0 0 1\r\nx\r\n");
    scene.passes("another memcached's reply over TCP", &reply, &[]);
    scene.hits(&v4(), "key", &key_reply());
    scene.hits(&v6(), "key", &key_reply());
}
