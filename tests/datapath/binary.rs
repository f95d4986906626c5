// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Writes in the binary protocol: as in `writes`.

use std::thread::sleep;
use std::time::Duration;

use crate::fixture::Config;
use crate::scene::Counts;
use crate::scene::DIRTY;
use crate::scene::KEY_DATA;
use crate::scene::QUARANTINED;
use crate::scene::Scene;
use crate::scene::UNMATCHED;
use crate::scene::UNPARSED;
use crate::scene::UNTRACKED;
use crate::scene::WRITE;
use crate::scene::key_reply_of;
use crate::scene::v4;

const GET: u8 = 0x00;
const SET: u8 = 0x01;
const DELETE: u8 = 0x04;
const FLUSH: u8 = 0x08;
const GETQ: u8 = 0x09;
const NOOP: u8 = 0x0a;
const SETQ: u8 = 0x11;
const FLUSHQ: u8 = 0x18;

/// Opcode and length of the extras of each write that has a reply.
const LOUD: &[(u8, usize)] = &[
    (SET, 8),
    (0x02, 8), // add
    (0x03, 8), // replace
    (DELETE, 0),
    (0x05, 20), // incr
    (0x06, 20), // decr
    (0x0e, 0),  // append
    (0x0f, 0),  // prepend
    (0x1c, 4),  // touch
    (0x1d, 4),  // gat
    (0x23, 4),  // gatk
];

/// And of those that only have one if something is wrong, or of value.
const QUIET: &[(u8, usize)] = &[
    (SETQ, 8),
    (0x12, 8),
    (0x13, 8),
    (0x14, 0),
    (0x15, 20),
    (0x16, 20),
    (0x19, 0),
    (0x1a, 0),
    (0x1e, 4),
    (0x24, 4),
];

pub(crate) fn message(
    magic: u8,
    opcode: u8,
    status: u16,
    extras: &[u8],
    key: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![magic, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0]);
    bytes.extend(status.to_be_bytes());
    bytes.extend(((extras.len() + key.len() + data.len()) as u32).to_be_bytes());
    bytes.extend([0; 12]);
    bytes.extend(extras);
    bytes.extend(key);
    bytes.extend(data);
    bytes
}

/// A request; every exptime is 0.
fn ask(opcode: u8, extras: usize, key: &str, data: &str) -> Vec<u8> {
    message(0x80, opcode, 0, &vec![0; extras], key.as_bytes(), data.as_bytes())
}

/// What a write has behind the key: anything, if it may have something.
fn data(opcode: u8) -> &'static str {
    match opcode & 0xf {
        _ if opcode >= 0x1c => "",
        1..=3 | 9 | 0xa | 0xe | 0xf => "12",
        _ => "",
    }
}

fn said(opcode: u8, status: u16, data: &str) -> Vec<u8> {
    message(0x81, opcode, status, &[], &[], data.as_bytes())
}

#[test]
fn binary_writes_invalidate() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    scene.fill(&v4(), "other", 0, KEY_DATA);
    let mut tcp = scene.connect(&v4());
    for (opcode, extras) in LOUD {
        for status in [0, 1] {
            let what = format!("opcode {opcode:#x}, status {status}");
            println!("{what}");
            scene.fill(&v4(), "key", 0, KEY_DATA);
            scene.asks(&mut tcp, ask(*opcode, *extras, "key", data(*opcode)), WRITE);
            scene.is_closed(&what, "key", DIRTY);
            scene.says(&mut tcp, said(*opcode, status, "some text"), &[]);
            scene.is_open(&what, "key");
        }
    }
    scene.hits(&v4(), "other", &key_reply_of("other"));
}

#[test]
fn quiet_binary_writes_wait_for_the_next_reply() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    for (opcode, extras) in QUIET {
        let what = format!("opcode {opcode:#x}");
        println!("{what}");
        scene.fill(&v4(), "key", 0, KEY_DATA);
        scene.asks(&mut tcp, ask(*opcode, *extras, "key", data(*opcode)), WRITE);
        scene.is_closed(&what, "key", DIRTY);
        // One that may or may not have a reply tells nothing.
        scene.asks(&mut tcp, ask(GETQ, 0, "other", ""), &[]);
        scene.says(&mut tcp, said(GETQ, 0, "1234value"), &[]);
        scene.is_closed(&what, "key", DIRTY);
        scene.asks(&mut tcp, ask(NOOP, 0, "", ""), &[]);
        scene.is_closed(&what, "key", DIRTY);
        scene.says(&mut tcp, said(NOOP, 0, ""), &[]);
        scene.is_open(&what, "key");
        // Its own is an error.
        scene.asks(&mut tcp, ask(*opcode, *extras, "key", data(*opcode)), WRITE);
        scene.says(&mut tcp, said(*opcode, 5, "Not stored."), &[]);
        scene.is_open(&what, "key");
    }
}

#[test]
fn replies_end_the_writes_of_a_binary_pipeline_one_by_one() {
    let rows: [(Vec<u8>, Vec<u8>, Option<&str>); 7] = [
        (ask(GET, 0, "a", ""), said(GET, 0, "1234STORED\r\n"), None),
        (ask(SET, 8, "a", "\u{80}\u{1}END\r\n"), said(SET, 0, ""), Some("a")),
        (ask(SETQ, 8, "b", "x"), Vec::new(), Some("b")),
        (ask(DELETE, 0, "c", ""), said(DELETE, 1, "Not found"), Some("c")),
        (ask(GETQ, 0, "d", ""), said(GETQ, 0, "1234\u{81}\u{1}"), None),
        (ask(0x05, 20, "e", ""), said(0x05, 0, "\0\0\0\0\0\0\0\u{5}"), Some("e")),
        (ask(NOOP, 0, "", ""), said(NOOP, 0, ""), None),
    ];
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let commands: Vec<u8> = rows.iter().flat_map(|row| row.0.clone()).collect();
    let replies: Vec<u8> = rows.iter().flat_map(|row| row.1.clone()).collect();
    let all: Counts = &[("write_requests", 4), ("invalidations", 4)];
    let check = |what: &str, sent: usize| {
        let mut start = 0;
        for (_, reply, key) in &rows {
            // A head says it all, to a quiet one the next reply's.
            if let Some(key) = key {
                if sent < start + said(NOOP, 0, "").len() {
                    scene.is_closed(what, key, DIRTY);
                } else {
                    scene.is_open(what, key);
                }
            }
            start += reply.len();
        }
    };
    let mut tcp = scene.connect(&v4());
    for cut in 1..replies.len() {
        scene.asks(&mut tcp, &commands, all);
        check("before the replies", 0);
        scene.says(&mut tcp, &replies[..cut], &[]);
        check(&format!("replies up to {cut}"), cut);
        scene.says(&mut tcp, &replies[cut..], &[]);
        check("after the replies", replies.len());
    }
    for cut in 1..commands.len() {
        tcp.request(&commands[..cut]);
        tcp.request(&commands[cut..]);
        check(&format!("commands cut at {cut}"), 0);
        scene.says(&mut tcp, &replies, &[]);
        check("after the replies", replies.len());
    }
    assert_eq!(scene.bmc.counters().get("flushes"), 0);
}

#[test]
fn a_binary_flush_empties_the_cache() {
    let flush: Counts = &[("write_requests", 1), ("flushes", 1)];
    for (opcode, extras) in [(FLUSH, 0), (FLUSH, 4), (FLUSHQ, 0), (FLUSHQ, 4)] {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, ask(opcode, extras, "", ""), flush);
        scene.is_closed("after the flush", "key", QUARANTINED);
        if opcode == FLUSH {
            scene.says(&mut tcp, said(FLUSH, 0, ""), &[]);
        }
        scene.asks(&mut tcp, ask(DELETE, 0, "key", ""), WRITE);
        scene.says(&mut tcp, said(DELETE, 0, ""), &[]);
    }
}

#[test]
fn what_is_not_understood_of_the_binary_protocol_empties_the_cache() {
    let rows = [
        ("an opcode of the future", ask(0x7e, 0, "key", "")),
        ("a text command", b"delete key\r\nxxxxxxxxxxxx".to_vec()),
        ("extras too short", ask(SET, 4, "key", "x")),
        ("no key", ask(SET, 8, "", "x")),
        ("a long key", ask(SET, 8, &"k".repeat(251), "x")),
        ("a body shorter than its key", {
            let mut bytes = ask(DELETE, 0, "key", "");
            bytes[11] = 2;
            bytes
        }),
    ];
    for (what, request) in rows {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        println!("{what}");
        let mut tcp = scene.connect(&v4());
        tcp.exchange(ask(NOOP, 0, "", ""), said(NOOP, 0, ""));
        scene.asks(&mut tcp, request, UNPARSED);
        scene.is_closed(what, "key", QUARANTINED);
    }
}

#[test]
fn an_unexpected_binary_reply_empties_the_cache() {
    for reply in [
        said(DELETE, 0, ""),
        said(SETQ, 0, ""),
        b"STORED\r\nSTORED\r\nSTORED\r\n".to_vec(),
        [said(SET, 0, ""), said(SET, 0, "")].concat(),
    ] {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, ask(SET, 8, "other", "x"), WRITE);
        scene.says(&mut tcp, reply, UNMATCHED);
        scene.is_closed("after the reply", "key", QUARANTINED);
        scene.asks(&mut tcp, ask(SET, 8, "other", "x"), UNTRACKED);
    }
}

#[test]
fn a_binary_connection_is_followed_after_a_pause() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    tcp.request(ask(0x7e, 0, "key", ""));
    sleep(Duration::from_millis(1100));
    scene.asks(&mut tcp, ask(SET, 8, "key", "x"), WRITE);
    scene.says(&mut tcp, said(SET, 0, ""), &[]);
    scene.is_open("after the reply", "key");
}
