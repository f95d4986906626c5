// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Pipelines that owe more replies than a connection's ring has room for: each key
//! opens again as soon as the reply to its write has left.

use std::thread::sleep;
use std::time::Duration;

use crate::binary::ask;
use crate::binary::said;
use crate::connection::Connection;
use crate::fixture::Config;
use crate::scene::Counts;
use crate::scene::DIRTY;
use crate::scene::QUARANTINED;
use crate::scene::Scene;
use crate::scene::UNMATCHED;
use crate::scene::UNTRACKED;
use crate::scene::WRITE;
use crate::scene::v4;
use crate::scene::v6;

/// `BMC_OWED`: what the ring has room for.
const RING: usize = 32;

/// And some more.
const MORE: usize = RING + 20;
const MORE_WRITES: Counts = &[("write_requests", MORE as u64), ("invalidations", MORE as u64)];

fn key(nth: usize) -> String {
    format!("key{nth}")
}

/// A command for each of the keys from `first` on, with its key in place of `{}`.
fn commands(form: &str, first: usize, count: usize) -> String {
    (first..first + count).map(|nth| form.replace("{}", &key(nth))).collect()
}

/// A connection whose ring is full: `RING` deletes are owed.
fn full(scene: &Scene) -> Connection {
    let mut tcp = scene.connect(&v4());
    tcp.request(commands("delete {}\r\n", 0, RING));
    tcp
}

#[test]
fn a_write_beyond_the_ring_is_over_with_its_own_reply() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let rows = [
        ("set {} 0 0 1\r\nx\r\n", "STORED\r\n"),
        ("delete {}\r\n", "NOT_FOUND\r\n"),
        ("incr {} 1\r\n", "5\r\n"),
        ("touch {} 0\r\n", "TOUCHED\r\n"),
        ("ms {} 1\r\nx\r\n", "HD\r\n"),
        ("add {} 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
        ("gat 0 {}\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n"),
        ("set {} 0 0 9\r\n012345678\r\n", "SERVER_ERROR object too large for cache\r\n"),
    ];
    for (form, reply) in rows {
        println!("{form:?}");
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, commands(form, 0, MORE), MORE_WRITES);
        for nth in 0..MORE {
            let why = if nth < RING { DIRTY } else { QUARANTINED };
            scene.is_closed("before its reply", &key(nth), why);
        }
        for nth in 0..MORE {
            let why = if nth < RING { DIRTY } else { QUARANTINED };
            scene.is_closed("just before its reply", &key(nth), why);
            scene.says(&mut tcp, reply, &[]);
            scene.is_open("after its reply", &key(nth));
        }
        scene.asks(&mut tcp, "delete next\r\n", WRITE);
        scene.is_closed("as ever", "next", DIRTY);
        scene.says(&mut tcp, "DELETED\r\n", &[]);
        scene.is_open("as ever", "next");
    }
}

/// As a client library's `set_many` does it.
#[test]
fn any_number_of_writes_may_be_under_way() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v6());
    let count = 5000;
    let all = commands("set {} 0 0 1\r\nx\r\n", 0, count);
    let before = scene.bmc.counters();
    for part in all.as_bytes().chunks(1400) {
        tcp.request(part);
    }
    scene.is_closed("before its reply", &key(count - 1), QUARANTINED);
    for _ in 0..count / 100 {
        scene.says(&mut tcp, "STORED\r\n".repeat(100), &[]);
    }
    let counted = scene.bmc.counters().since(&before);
    assert_eq!(counted.get("invalidations"), count as u64);
    assert_eq!((counted.get("flushes"), counted.get("write_untracked")), (0, 0));
    for nth in [0, RING, 1000, count - 1] {
        scene.is_open("after its reply", &key(nth));
    }
    scene.asks(&mut tcp, "set next 0 0 1\r\nx\r\n", WRITE);
    scene.is_closed("as ever", "next", DIRTY);
}

#[test]
fn noreply_writes_beyond_the_ring_are_over_with_the_next_reply() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let count = 500;
    tcp.request(commands("set {} 0 0 1 noreply\r\nx\r\n", 0, count));
    scene.is_closed("without a reply", &key(0), DIRTY);
    scene.is_closed("without a reply", &key(count - 1), QUARANTINED);
    scene.asks(&mut tcp, "get a\r\n", &[]);
    scene.is_closed("before the reply", &key(count - 1), QUARANTINED);
    scene.says(&mut tcp, "END\r\n", &[]);
    for nth in [0, RING - 1, RING, count - 1] {
        scene.is_open("after the reply", &key(nth));
    }
    scene.asks(&mut tcp, "delete next\r\n", WRITE);
    scene.is_closed("as ever", "next", DIRTY);
}

#[test]
fn quiet_writes_beyond_the_ring_are_over_with_the_noop_behind_them() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let count = 200;
    // All is well, or some of them say that it is not.
    for failing in [0, 3, RING + 5] {
        let mut tcp = scene.connect(&v4());
        tcp.request(commands("ms {} 1 q\r\nx\r\n", 0, count));
        tcp.request("mn\r\n");
        scene.is_closed("without a reply", &key(count - 1), QUARANTINED);
        for _ in 0..failing {
            scene.says(&mut tcp, "NS\r\n", &[]);
        }
        scene.is_closed("before the reply", &key(count - 1), QUARANTINED);
        scene.says(&mut tcp, "MN\r\n", &[]);
        for nth in [0, RING - 1, RING, count - 1] {
            scene.is_open("after the reply", &key(nth));
        }
        let mut tcp = scene.connect(&v4());
        for nth in 0..count {
            tcp.request(ask(0x11, 8, &key(nth), "x"));
        }
        tcp.request(ask(0x0a, 0, "", ""));
        scene.is_closed("without a reply", &key(count - 1), QUARANTINED);
        for _ in 0..failing {
            scene.says(&mut tcp, said(0x11, 5, "Not stored."), &[]);
        }
        scene.is_closed("before the reply", &key(count - 1), QUARANTINED);
        scene.says(&mut tcp, said(0x0a, 0, ""), &[]);
        for nth in [0, RING - 1, RING, count - 1] {
            scene.is_open("after the reply", &key(nth));
        }
    }
}

/// Whether a reply is a quiet command's or the next one's cannot be told then.
#[test]
fn quiet_and_other_meta_commands_beyond_the_ring_are_not_counted() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = full(&scene);
    tcp.request("ms quiet 1 q\r\nx\r\n");
    scene.asks(&mut tcp, "ms loud 1\r\nx\r\n", UNTRACKED);
    tcp.reply("DELETED\r\n".repeat(RING));
    tcp.reply("NS\r\n");
    scene.is_closed("as it may be another's reply", "loud", QUARANTINED);
    tcp.reply("HD\r\n");
    scene.is_closed("as before", "loud", QUARANTINED);
}

#[test]
fn a_flush_all_beyond_the_ring_is_over_with_its_reply() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    scene.fill(&v4(), "other", 0, b"x");
    let mut tcp = full(&scene);
    scene.asks(&mut tcp, "flush_all\r\n", &[("write_requests", 1), ("flushes", 1)]);
    scene.is_closed("before the reply", "other", QUARANTINED);
    tcp.reply("DELETED\r\n".repeat(RING));
    scene.is_closed("before the reply", "other", QUARANTINED);
    scene.says(&mut tcp, "OK\r\n", &[]);
    scene.is_open("after the reply", "other");
}

/// A reply of the wrong kind is noticed there too, where it tells anything.
#[test]
fn what_is_wrong_beyond_the_ring_empties_the_cache() {
    for (command, reply) in [
        // It may have taken a data block for commands.
        ("set a 0 0 1\r\nx\r\n", "ERROR\r\n"),
        ("set a 0 0 1\r\nx\r\n", "CLIENT_ERROR bad data chunk\r\n"),
        // One too many.
        ("set a 0 0 1\r\nx\r\n", "STORED\r\nSTORED\r\n"),
        ("set a 0 0 1\r\nx\r\n", "STORED\r\nSERVER_ERROR out of memory\r\n"),
        // A quiet one's, or the next one's.
        ("ms a 1 q\r\nx\r\nget b\r\n", "SERVER_ERROR out of memory storing object\r\n"),
    ] {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        println!("{command:?} {reply:?}");
        let mut tcp = full(&scene);
        tcp.request(command);
        tcp.reply("DELETED\r\n".repeat(RING));
        scene.says(&mut tcp, reply, UNMATCHED);
    }
}

/// Two connections want the same cell: it has one ticket, the other one waits for as
/// long as a write may take.
#[test]
fn a_second_connection_beyond_its_ring_waits_for_the_time() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let (mut first, mut second) = (full(&scene), full(&scene));
    first.request("set shared 0 0 1\r\nx\r\n");
    second.request("set shared 0 0 1\r\ny\r\n");
    second.reply("DELETED\r\n".repeat(RING));
    second.reply("STORED\r\n");
    scene.is_closed("with the first one's under way", "shared", QUARANTINED);
    first.reply("DELETED\r\n".repeat(RING));
    first.reply("STORED\r\n");
    scene.is_closed("for the time being", "shared", QUARANTINED);
    sleep(Duration::from_millis(10_100));
    scene.is_open("after that", "shared");
}

/// Replies of a connection that took the place of another one do not count.
#[test]
fn the_replies_of_a_later_connection_redeem_no_ticket() {
    let Some(scene) = Scene::load(&Config { flow_sets: 1, ..Config::default() }) else {
        return;
    };
    let mut tcp = full(&scene);
    tcp.request("set last 0 0 1\r\nx\r\n");
    let port = tcp.port();
    tcp.reset();
    // The place is this one's by the same hash.
    let mut next = Connection::open_to(&v4(), port, v4().target);
    for _ in 0..2 * RING {
        next.exchange("get a\r\n", "END\r\n");
    }
    scene.is_closed("by the former connection", "last", QUARANTINED);
}

/// As long as not all is answered that was counted, the ring is not used again: its
/// commands would stand before others that are older.
#[test]
fn the_ring_is_used_again_when_all_is_answered() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = full(&scene);
    tcp.request("delete a\r\n");
    tcp.reply("DELETED\r\n".repeat(RING));
    tcp.request("delete b\r\n");
    scene.is_closed("behind one that was counted", "b", QUARANTINED);
    tcp.reply("DELETED\r\n");
    scene.is_open("after its reply", "a");
    tcp.request("delete c\r\n");
    scene.is_closed("behind one that was counted", "c", QUARANTINED);
    tcp.reply("DELETED\r\nDELETED\r\n");
    scene.is_open("after its reply", "b");
    scene.is_open("after its reply", "c");
    tcp.request("delete d\r\n");
    scene.is_closed("with nothing else", "d", DIRTY);
}
