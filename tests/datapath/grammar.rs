// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Forms of memcached's commands: what each may change, and that nothing else
//! goes. `tests/grammar.rs` asks a real memcached about the same ones.

use crate::fixture::Config;
use crate::forms::HARMLESS;
use crate::forms::ODD_WRITES;
use crate::forms::STREAMS;
use crate::packet::datagram;
use crate::packet::value;
use crate::packet::values;
use crate::scene::Counts;
use crate::scene::DIRTY;
use crate::scene::KEY_DATA;
use crate::scene::QUARANTINED;
use crate::scene::Scene;
use crate::scene::UNPARSED;
use crate::scene::UNTRACKED;
use crate::scene::WRITE;
use crate::scene::key_reply;
use crate::scene::key_reply_of;
use crate::scene::v4;

#[test]
fn a_command_that_changes_nothing_leaves_the_cache_alone() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    for (request, reply) in HARMLESS {
        println!("{}", request.escape_ascii());
        scene.asks(&mut tcp, request, &[]);
        scene.says(&mut tcp, reply, &[]);
        scene.hits(&v4(), "key", &key_reply());
        // Whose reply is whose is still known.
        scene.asks(&mut tcp, "delete other\r\n", WRITE);
        scene.is_closed("before its reply", "other", DIRTY);
        scene.says(&mut tcp, "DELETED\r\n", &[]);
        scene.is_open("after its reply", "other");
    }
}

#[test]
fn a_command_that_changes_nothing_may_be_answered_by_anything() {
    for (request, reply) in STREAMS {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        tcp.exchange("get key\r\n", "END\r\n");
        scene.asks(&mut tcp, request, &[]);
        scene.says(&mut tcp, reply, &[]);
        scene.hits(&v4(), "key", &key_reply());
        // From then on its writes are quarantined.
        scene.asks(&mut tcp, "delete other\r\n", UNTRACKED);
        scene.says(&mut tcp, "DELETED\r\n", &[]);
        scene.hits(&v4(), "key", &key_reply());
    }
}

#[test]
fn a_command_that_changes_nothing_leaves_the_cache_alone_over_udp() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let passed: Counts = &[("pass_command", 1)];
    for (request, _) in HARMLESS.iter().chain(STREAMS) {
        let what = request.escape_ascii().to_string();
        scene.passes(&what, &v4().udp(&datagram(scene.id(), request)), passed);
        scene.hits(&v4(), "key", &key_reply());
    }
    // memcached waits for the end of a line, and forgets it at the next datagram.
    for request in ["set key 0 0 1", "delete key", "flush_all", "nonsense", "\u{80}\u{1}"] {
        scene.passes(request, &v4().udp(&datagram(scene.id(), request.as_bytes())), passed);
        scene.hits(&v4(), "key", &key_reply());
    }
}

#[test]
fn a_write_of_an_odd_form_takes_its_key_and_no_other() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    scene.fill(&v4(), "other", 0, KEY_DATA);
    for (request, reply) in ODD_WRITES {
        scene.restore(&v4());
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, request, WRITE);
        scene.is_closed(request, "key", DIRTY);
        if reply.is_empty() {
            tcp.exchange("mn\r\n", "MN\r\n");
        } else {
            scene.says(&mut tcp, reply, &[]);
        }
        scene.is_open(request, "key");
        scene.hits(&v4(), "other", &key_reply_of("other"));
    }
    // Whether there will be a reply is uncertain.
    for (key, request) in
        [("a", "delete a 1 2 noreply\r\n"), ("b", "incr b 1 2 noreply\r\n"), ("c", " delete c\r\n")]
    {
        scene.fill(&v4(), key, 0, KEY_DATA);
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, request, UNTRACKED);
        scene.is_closed(request, key, QUARANTINED);
        scene.hits(&v4(), "other", &key_reply_of("other"));
    }
    for request in ["delete noreply\r\n", "incr noreply\r\n"] {
        let mut tcp = scene.connect(&v4());
        let before = scene.bmc.counters();
        tcp.request(request);
        assert_eq!(scene.bmc.counters().since(&before).get("flushes"), 0, "{request}");
        scene.asks(&mut tcp, "delete another\r\n", UNTRACKED);
    }
}

/// A token ends at a space. What else ends a key for bmc makes it one that is never
/// cached.
#[test]
fn a_key_with_control_characters_is_a_key() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let passed: Counts = &[("pass_key", 1)];
    for key in ["\u{10}\u{11}abc", "k\u{1}y", "key\t", "\tkey", "k\ry", "\u{1f}", "key\u{b}key"] {
        let set = format!("set {key} 0 0 1\r\nx\r\n");
        scene.asks(&mut tcp, &set, WRITE);
        scene.says(&mut tcp, "STORED\r\n", &[]);
        scene.asks(&mut tcp, format!("get {key}\r\n"), &[]);
        scene.says(&mut tcp, values(&[value(key, 7, b"x")]), &[]);
        scene.asks(&mut tcp, format!("gets {key} other\r\n"), &[]);
        scene.says(&mut tcp, format!("VALUE {key} 0 1 77\r\nx\r\nEND\r\n"), &[]);
        for request in [
            format!("set {key} 0 0 1 noreply\r\nx\r\n"),
            format!("delete {key}\r\n"),
            format!("incr {key} 1\r\n"),
            format!("touch {key} 100\r\n"),
            format!("gat 100 {key}\r\n"),
            format!("md {key}\r\n"),
            format!("ms {key} 1\r\nx\r\n"),
        ] {
            let before = scene.bmc.counters();
            scene.bmc.receive(&v4().udp(&datagram(scene.id(), request.as_bytes())));
            let counted = scene.bmc.counters().since(&before);
            assert_eq!(
                (counted.get("write_requests"), counted.get("flushes")),
                (1, 0),
                "{request:?}"
            );
        }
        for keys in [&[key][..], &["key", key], &[key, "key"]] {
            scene.passes(key, &v4().get(scene.id(), keys), passed);
        }
        scene.hits(&v4(), "key", &key_reply());
    }
}

/// What memcached does with it depends on its version: up to 1.6.39 a byte 0 ends
/// the line.
#[test]
fn a_byte_zero_in_a_line_may_mean_any_key() {
    for request in ["delete key\0x\r\n", "set k\0 0 0 1\r\nx\r\n", "md a\0 q\r\n"] {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, request, UNPARSED);
        scene.is_closed(request, "key", QUARANTINED);
    }
}

/// A request of the binary protocol, with `extras` zeroes.
fn binary(opcode: u8, extras: usize, key: &str, data: &str) -> Vec<u8> {
    let body = (extras + key.len() + data.len()) as u32;
    let mut bytes = vec![0x80, opcode, 0, key.len() as u8, extras as u8, 0, 0, 0];
    bytes.extend(body.to_be_bytes());
    bytes.extend(vec![0; 12 + extras]);
    bytes.extend(key.bytes().chain(data.bytes()));
    bytes
}

#[test]
fn binary_reads_over_udp_change_nothing() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let get = binary(0x00, 0, "key", "");
    let all = [get.clone(), binary(0x09, 0, "other", ""), binary(0x0a, 0, "", "")].concat();
    for (what, request) in [
        ("get", get.clone()),
        ("getk", binary(0x0c, 0, "key", "")),
        ("getq", binary(0x09, 0, "key", "")),
        ("getkq", binary(0x0d, 0, "key", "")),
        ("noop", binary(0x0a, 0, "", "")),
        ("version", binary(0x0b, 0, "", "")),
        ("stat", binary(0x10, 0, "", "")),
        ("stat items", binary(0x10, 0, "items", "")),
        ("several", all),
        ("half a header", get[..20].to_vec()),
        ("a get and half of one", [&get[..], &get[..10]].concat()),
    ] {
        scene.passes(what, &v4().udp(&datagram(scene.id(), &request)), &[("pass_command", 1)]);
        scene.hits(&v4(), "key", &key_reply());
    }
}

#[test]
fn binary_writes_over_udp_take_their_keys_and_no_other() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    scene.fill(&v4(), "other", 0, KEY_DATA);
    let write: Counts =
        &[("pass_command", 1), ("write_requests", 1), ("invalidations", 1), ("write_untracked", 1)];
    for (opcode, extras, data) in [
        (0x01, 8, "x"),
        (0x11, 8, "x"),
        (0x02, 8, "x"),
        (0x03, 8, "x"),
        (0x04, 0, ""),
        (0x14, 0, ""),
        (0x05, 20, ""),
        (0x06, 20, ""),
        (0x0e, 0, "x"),
        (0x0f, 0, "x"),
        (0x1c, 4, ""),
        (0x1d, 4, ""),
        (0x1e, 4, ""),
    ] {
        let what = format!("opcode {opcode:#x}");
        for (key, before) in
            [(format!("a{opcode}"), Vec::new()), (format!("b{opcode}"), binary(0x0a, 0, "", ""))]
        {
            scene.fill(&v4(), &key, 0, KEY_DATA);
            let request = [before, binary(opcode, extras, &key, data)].concat();
            scene.passes(&what, &v4().udp(&datagram(scene.id(), &request)), write);
            scene.is_closed(&what, &key, QUARANTINED);
            scene.hits(&v4(), "other", &key_reply_of("other"));
        }
    }
}

#[test]
fn a_datagram_that_is_not_understood_empties_the_cache() {
    let unparsed: Counts = &[("pass_command", 1), ("udp_unparsed", 1), ("flushes", 1)];
    for (what, request) in [
        ("an unknown command", b"swap key other\r\n".to_vec()),
        ("binary, an unknown opcode", binary(0x7e, 0, "key", "")),
        (
            "text behind binary",
            [&binary(0x0a, 0, "", "")[..], b"delete key\r\nxxxxxxxxxxxxxx"].concat(),
        ),
        ("binary behind text", [b"mn\r\n", &binary(0x04, 0, "key", "")[..], b"\n"].concat()),
        ("a line that is too long", [&b"gat 0 "[..], &b"k ".repeat(200), b"\r\n"].concat()),
    ] {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        scene.passes(what, &v4().udp(&datagram(scene.id(), &request)), unparsed);
        scene.is_closed(what, "key", QUARANTINED);
    }
    // memcached takes the rest of the data from what comes next, whatever it is.
    let set = binary(0x01, 8, "other", "0123456789");
    for request in [b"set other 0 0 100\r\nx\r\n", &set[..set.len() - 4]] {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        scene.passes(
            "data that is not all there",
            &v4().udp(&datagram(scene.id(), request)),
            &[
                ("pass_command", 1),
                ("write_requests", 1),
                ("invalidations", 1),
                ("write_untracked", 1),
                ("udp_unparsed", 1),
                ("flushes", 1),
            ],
        );
        scene.is_closed("after it", "key", QUARANTINED);
    }
}
