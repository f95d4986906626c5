// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What memcached's replies teach.

use std::thread::sleep;
use std::time::Duration;

use crate::fixture::Config;
use crate::packet::Flow;
use crate::packet::datagram;
use crate::packet::network;
use crate::packet::part;
use crate::packet::payload;
use crate::packet::seal;
use crate::packet::seal_partial;
use crate::packet::transport;
use crate::packet::value;
use crate::packet::values;
use crate::scene::Counts;
use crate::scene::FILLED;
use crate::scene::KEY_DATA;
use crate::scene::LEASED;
use crate::scene::Scene;
use crate::scene::carriers;
use crate::scene::key_reply;
use crate::scene::v4;
use crate::scene::v6;

/// The frame that answers a request id.
type Reply = Box<dyn Fn(u16) -> Vec<u8>>;

#[test]
fn learns_only_from_the_reply_to_its_own_request() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let good = key_reply();
    let said = |text: &[u8]| -> Reply {
        let text = text.to_vec();
        Box::new(move |id| v4().reversed().udp(&datagram(id, &text)))
    };
    let from = |flow: Flow| -> Reply {
        let text = good.clone();
        Box::new(move |id| flow.reversed().udp(&datagram(id, &text)))
    };
    let refused: Counts = &[("get_replies", 1), ("fill_reply", 1)];
    let with_id = |change: fn(u16) -> u16| -> Reply {
        let text = good.clone();
        Box::new(move |id| v4().reversed().udp(&datagram(change(id), &text)))
    };
    let rows: Vec<(&str, Reply, Counts)> = vec![
        // Not the reply to this request.
        ("another request id", with_id(|id| id ^ 0x8000), UNLEASED),
        ("the id's bytes swapped", with_id(u16::swap_bytes), UNLEASED),
        ("to another port", from(v4().with_port(40001)), UNLEASED),
        ("to another client", from(v4().from("10.1.0.3:40000")), UNLEASED),
        ("from another address", from(v4().to("10.1.0.4:11211")), UNLEASED),
        ("into another VLAN", from(v4().vlan(5)), UNLEASED),
        ("over IPv6", from(v6()), UNLEASED),
        // Not a reply that says what a GET would.
        ("another key", said(&values(&[value("kez", 0, KEY_DATA)])), refused),
        ("a longer key", said(&values(&[value("keyy", 0, KEY_DATA)])), refused),
        ("a shorter key", said(&values(&[value("ke", 0, KEY_DATA)])), refused),
        ("a CAS", said(b"VALUE key 0 1 77\r\nx\r\nEND\r\n"), refused),
        ("too few bytes", said(b"VALUE key 0 2\r\nx\r\nEND\r\n"), refused),
        ("too many bytes", said(b"VALUE key 0 1\r\nxy\r\nEND\r\n"), refused),
        ("a count that is huge", said(b"VALUE key 0 4294967297\r\nx\r\nEND\r\n"), refused),
        ("a count that wraps", said(b"VALUE key 0 18446744073709551617\r\nx\r\nEND\r\n"), refused),
        ("a count that is negative", said(b"VALUE key 0 -1\r\nx\r\nEND\r\n"), refused),
        ("no count", said(b"VALUE key 0 \r\nx\r\nEND\r\n"), refused),
        ("no flags", said(b"VALUE key  1\r\nx\r\nEND\r\n"), refused),
        ("no END", said(b"VALUE key 0 1\r\nx\r\n"), refused),
        ("half an END", said(b"VALUE key 0 1\r\nx\r\nEND\r"), refused),
        ("another END", said(b"VALUE key 0 1\r\nx\r\nEMD\r\n"), refused),
        ("bytes after END", said(b"VALUE key 0 1\r\nx\r\nEND\r\n!"), refused),
        ("END twice", said(b"VALUE key 0 1\r\nx\r\nEND\r\nEND\r\n"), refused),
        ("two values", said(&values(&[value("key", 0, b"a"), value("key", 0, b"a")])), refused),
        ("no line end after the data", said(b"VALUE key 0 1\r\nxENDEND\r\n"), refused),
        ("only a line feed", said(b"VALUE key 0 1\nx\r\nEND\r\n"), refused),
        (
            "two datagrams",
            Box::new(|id| v4().reversed().udp(&part(id, 0, 2, &key_reply()))),
            refused,
        ),
    ];
    for (what, reply, counts) in rows {
        let id = scene.id();
        scene.passes(what, &v4().get(id, &["key"]), LEASED);
        scene.replies(what, &reply(id), counts);
        assert!(!scene.has(&v4(), "key"), "{what}: must not be learnt");
    }
    scene.fill(&v4(), "key", 0, KEY_DATA);
}

#[test]
fn a_datagram_behind_the_first_says_nothing() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for (carrier, flow) in carriers() {
        let id = scene.id();
        scene.passes(carrier, &flow.get(id, &["key"]), LEASED);
        let later = flow.reversed().udp(&part(id, 1, 2, &key_reply()));
        scene.replies(carrier, &later, &[]);
        let first = flow.reversed().udp(&datagram(id, &key_reply()));
        scene.replies(carrier, &first, &[("get_replies", 1), ("fills", 1)]);
        scene.bmc.flush();
        scene.bmc.end_quarantine();
    }
}

#[test]
fn learns_nothing_from_a_miss_or_an_error() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for text in ["END\r\n", "SERVER_ERROR out of memory\r\n", "ERROR\r\n"] {
        let id = scene.id();
        scene.passes("a GET", &v4().get(id, &["key"]), LEASED);
        let before = scene.bmc.counters();
        scene.bmc.send(&v4().reversed().udp(&datagram(id, text.as_bytes())));
        let counted = scene.bmc.counters().since(&before);
        assert_eq!(counted.get("fills"), 0, "{text:?}");
        // The lease is used up.
        scene.bmc.send(&v4().reversed().udp(&datagram(id, &key_reply())));
        assert!(!scene.has(&v4(), "key"), "{text:?}");
    }
}

type Change = fn(&mut Vec<u8>);

#[test]
fn learns_from_any_form_of_the_reply() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for (carrier, flow) in carriers() {
        let rows: [(&str, Change); 5] = [
            ("half a checksum", |frame| seal_partial(frame)),
            ("no checksum", |frame| {
                let at = transport(frame) + 6;
                frame[at..at + 2].fill(0);
            }),
            ("another TTL", |frame| {
                let at = network(frame);
                frame[at + 1] ^= 0x40;
                seal(frame);
            }),
            ("padding", |frame| frame.resize(frame.len() + 9, 0)),
            ("a reserved field in use", |frame| {
                let at = payload(frame) + 7;
                frame[at] = 1;
                seal(frame);
            }),
        ];
        for (what, change) in rows {
            let what = format!("{carrier}, {what}");
            let key = what.replace(' ', "_").replace(',', "-");
            let id = scene.id();
            let text = values(&[value(&key, 3, b"data")]);
            scene.passes(&what, &flow.get(id, &[&key]), LEASED);
            let mut reply = flow.reversed().udp(&datagram(id, &text));
            change(&mut reply);
            scene.replies(&what, &reply, FILLED);
            scene.hits(&flow, &key, &text);
        }
    }
}

#[test]
fn one_reply_fills_once() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let id = scene.id();
    let reply = v4().reversed().udp(&datagram(id, &key_reply()));
    scene.passes("the GET", &v4().get(id, &["key"]), LEASED);
    scene.replies("the reply", &reply, FILLED);
    scene.replies("the same reply again", &reply, UNLEASED);
    scene.hits(&v4(), "key", &key_reply());
}

/// Whose reply is whose does not matter while nothing was written: both GETs
/// were asked after the lease was taken.
#[test]
fn a_request_asked_twice_holds_one_lease() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let id = scene.id();
    let frame = v4().get(id, &["key"]);
    let reply = v4().reversed().udp(&datagram(id, &key_reply()));
    scene.passes("the first", &frame, LEASED);
    scene.passes("the second", &frame, OUTSTANDING);
    scene.replies("the first reply", &reply, FILLED);
    scene.replies("the second reply", &reply, UNLEASED);
    scene.hits(&v4(), "key", &key_reply());
}

/// The reply to the first of two must not pass for the reply to the second.
#[test]
fn a_request_asked_again_after_a_write_teaches_nothing() {
    for multi in [false, true] {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        let id = scene.id();
        let frame = v4().get(id, &["key"]);
        let said = |data: &[u8]| {
            let text = values(&[value("key", 0, data)]);
            v4().reversed().udp(&datagram(id, &text))
        };
        let mut raced = UNLEASED;
        if multi {
            scene.bmc.receive(&v4().get(id, &["key", "key"]));
        } else {
            scene.passes("the first", &frame, LEASED);
            raced = &[("get_replies", 1), ("fill_raced", 1)];
        }
        let mut tcp = scene.connect(&v4());
        tcp.request("set key 0 0 3\r\nnew\r\n");
        tcp.reply("STORED\r\n");
        scene.passes("the second", &frame, OUTSTANDING);
        scene.replies("the first reply", &said(b"old"), raced);
        scene.replies("the second reply", &said(b"new"), UNLEASED);
        assert!(!scene.has(&v4(), "key"));
        // Another request id is another matter.
        scene.fill(&v4(), "key", 0, b"new");
        scene.hits(&v4(), "key", &values(&[value("key", 0, b"new")]));
    }
}

/// A reply that was lost does not keep its request id from learning for ever.
#[test]
fn an_unanswered_request_is_forgotten() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let id = scene.id();
    let frame = v4().get(id, &["key"]);
    scene.passes("a GET whose reply is lost", &frame, LEASED);
    scene.passes("the next", &frame, OUTSTANDING);
    sleep(Duration::from_millis(1100));
    scene.passes("one much later", &frame, LEASED);
}

/// A GET whose id has an older request outstanding.
const OUTSTANDING: Counts =
    &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_outstanding", 1)];
const UNLEASED: Counts = &[("get_replies", 1), ("fill_unleased", 1)];
