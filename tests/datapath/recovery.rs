// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What looks like a change of any key and is none, and how a stream of commands is
//! found again.

use std::thread::sleep;
use std::time::Duration;

use crate::connection::Connection;
use crate::fixture::Config;
use crate::fixture::Counters;
use crate::packet::PSH_ACK;
use crate::scene::DIRTY;
use crate::scene::QUARANTINED;
use crate::scene::Scene;
use crate::scene::UNFOLLOWED;
use crate::scene::UNMATCHED;
use crate::scene::WRITE;
use crate::scene::key_reply;
use crate::scene::v4;
use crate::scene::v6;

/// What memcached says to a connection above its limit, before it closes it.
const REFUSED: &str = "ERROR Too many open connections\r\n";

#[test]
fn a_connection_that_memcached_refuses_changes_nothing() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    for flow in [v4(), v6()] {
        // Its client has not asked anything.
        let mut tcp = scene.connect(&flow);
        scene.says(&mut tcp, REFUSED, &[]);
        tcp.finish_server();
        // Or it has, before it knew.
        for command in
            ["get key\r\n", "set other 0 0 1\r\nx\r\n", "set other 0 0 1 noreply\r\nx\r\n"]
        {
            let mut tcp = scene.connect(&flow);
            tcp.request(command);
            scene.says(&mut tcp, REFUSED, &[]);
            tcp.finish_server();
        }
    }
    scene.hits(&v4(), "key", &key_reply());
}

/// Its other errors tell of a command.
#[test]
fn an_error_in_reply_to_nothing_that_was_seen_empties_the_cache() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = Connection::open(&v4());
    tcp.request("set key 0 0 1\r\nx\r\n");
    scene.bmc.attach();
    scene.says(&mut tcp, REFUSED, UNMATCHED);
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, "set key 0 0 1\r\nx\r\n", WRITE);
    scene.says(&mut tcp, "ERROR\r\n", UNMATCHED);
}

#[test]
fn an_error_behind_a_noreply_write_is_the_next_commands() {
    let rows = [
        (
            "set a 0 0 1 noreply\r\nx\r\n",
            "set b 0 0 1\r\nx\r\n",
            "SERVER_ERROR object too large\r\n",
        ),
        ("delete a noreply\r\n", "set b 0 0 1\r\nx\r\n", "SERVER_ERROR out of memory\r\n"),
        ("set a 0 0 1 noreply\r\nx\r\n", "incr b 1\r\n", "CLIENT_ERROR non-numeric value\r\n"),
        ("touch a 0 noreply\r\n", "get b\r\n", "CLIENT_ERROR bad command line format\r\n"),
    ];
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    for (quiet, loud, reply) in rows {
        println!("{quiet:?} {loud:?} {reply:?}");
        tcp.request(quiet);
        tcp.request(loud);
        scene.is_closed("without a reply", "a", DIRTY);
        scene.says(&mut tcp, reply, &[]);
        scene.is_open("after the next reply", "a");
        scene.is_open("after its reply", "b");
        scene.hits(&v4(), "key", &key_reply());
    }
    // Nothing is owed that it could be the reply to.
    tcp.request("set a 0 0 1 noreply\r\nx\r\n");
    scene.says(&mut tcp, "SERVER_ERROR object too large\r\n", UNMATCHED);
}

#[test]
fn what_reaches_a_connection_that_memcached_has_closed_changes_nothing() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    for flow in [v4(), v6()] {
        let mut tcp = scene.connect(&flow);
        tcp.exchange("get a\r\n", "END\r\n");
        let (late, again) = (tcp.frame(0, "set key 0 0 1\r\nx\r\n"), tcp.frame(17, "rubbish"));
        tcp.finish_server();
        for frame in [&late, &again, &late] {
            let verdict = scene.counting("a late segment", &[], || scene.bmc.receive(frame));
            assert_eq!(verdict, crate::fixture::Verdict::Passed);
        }
    }
    scene.hits(&v4(), "key", &key_reply());
    // A connection that nobody has heard of may be memcached's under another name.
    let frame = v4().with_port(9).tcp(1, 1, PSH_ACK, b"set key 0 0 1\r\nx\r\n");
    scene.passes("a segment of no connection", &frame, UNFOLLOWED);
}

/// The same ports again, while the closed connection still has its place.
#[test]
fn a_connection_in_the_place_of_a_closed_one_is_followed() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut old = scene.connect(&v4());
    old.exchange("get a\r\n", "END\r\n");
    let port = old.port();
    // memcached refuses it, and so it is closed for bmc; then the client is gone.
    old.reply(REFUSED);
    old.reset();
    let mut new = Connection::open_to(&v4(), port, v4().target);
    scene.asks(&mut new, "delete key\r\n", WRITE);
    scene.is_closed("before the reply", "key", DIRTY);
    scene.says(&mut new, "DELETED\r\n", &[]);
    scene.is_open("after the reply", "key");
}

/// Sets one after the other, without a reply, from the client's buffer in segments that
/// begin anywhere.
fn one_way(bytes: usize) -> (Vec<u8>, usize) {
    let mut text = Vec::new();
    let mut count = 0;
    while text.len() < bytes {
        let data = "get \r\nset x 0 0 9\r\n".repeat(1000);
        text.extend(format!("set way{count} 0 0 {} noreply\r\n{data}\r\n", data.len()).bytes());
        count += 1;
    }
    (text, count)
}

#[test]
fn a_one_way_stream_that_was_lost_is_found_again() {
    const SEGMENT: usize = 32_000;
    // So many that the key's is hardly one that the stream writes.
    let Some(scene) = Scene::load(&Config { buckets: 1 << 14, ..Config::default() }) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, "what is this\r\n", &[("tcp_unparsed", 1), ("flushes", 1)]);
    let (text, _) = one_way(4 << 20);
    let mut flushed = 0;
    let mut last = 0;
    for (nth, part) in text.chunks(SEGMENT).enumerate() {
        let before = scene.bmc.counters();
        tcp.request(part);
        let counted = scene.bmc.counters().since(&before);
        if counted.get("flushes") > 0 {
            flushed += 1;
            last = nth;
        }
    }
    // A data block may be 1 MiB long, and look like commands: two of them are certain.
    assert!(
        (flushed + 1) * SEGMENT >= 2 << 20,
        "{flushed} segments flushed: too soon to be certain"
    );
    assert!(last * SEGMENT < (2 << 20) + 4 * SEGMENT, "segment {last} still flushed");
    // From then on it is known which keys are written.
    sleep(Duration::from_millis(1100));
    scene.fill(&v4(), "key", 0, b"x");
    let rest = text.len() % SEGMENT;
    assert_ne!(rest, 0);
    tcp.request("set key 0 0 1 noreply\r\ny\r\n");
    assert!(!scene.has(&v4(), "key"));
    scene.is_closed("by the write", "key", DIRTY);
}

/// A value may hold what looks like a stream of commands; that it goes on for long is
/// no proof, unless it is longer than a value may be.
#[test]
fn a_value_full_of_commands_is_not_taken_for_the_stream() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, "what is this\r\n", &[("tcp_unparsed", 1), ("flushes", 1)]);
    let (mut data, _) = one_way(900 << 10);
    // The last one of them reaches beyond the value, over the write that follows.
    data.extend(b"set last 0 0 1000 noreply\r\n");
    let head = format!("set value 0 0 {} noreply\r\n", data.len());
    let before = scene.bmc.counters();
    // Its first segment is cut where nothing can be seen of the command's line.
    tcp.request(&head[..9]);
    tcp.request(&head[9..]);
    for part in data.chunks(32_000) {
        tcp.request(part);
    }
    tcp.request("\r\n");
    tcp.request("delete key\r\n");
    let counted: Counters = scene.bmc.counters().since(&before);
    assert!(counted.get("flushes") > 28, "it is not certain where commands start");
    scene.is_closed("by what may have been a write", "key", QUARANTINED);
}
