// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How long entries live by what was seen of their items' exptime.

use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::binary::message;
use crate::connection::Connection;
use crate::fixture::Config;
use crate::packet::datagram;
use crate::packet::value;
use crate::packet::values;
use crate::scene::KEY_DATA;
use crate::scene::LEASED;
use crate::scene::QUARANTINED;
use crate::scene::Scene;
use crate::scene::v4;

const MAX_AGE: u64 = 60;
const UNKNOWN_TTL: u64 = 5;
/// By how many seconds memcached's clock may be behind.
const CLOCK_LAG: u64 = 2;

/// How long an entry may live that is filled now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// As long as any.
    Full,
    /// As long as one of an unknown end.
    Unknown,
    /// So many seconds less memcached's lag, and at most one less than that.
    Seconds(u64),
    /// Not at all.
    None,
}
use Life::Full;
use Life::Seconds;
use Life::Unknown;

fn load() -> Option<Scene> {
    Scene::load(&Config {
        max_age: Duration::from_secs(MAX_AGE),
        unknown_ttl: Duration::from_secs(UNKNOWN_TTL),
        ..Config::default()
    })
}

/// Sleeps until so many milliseconds have passed since then.
fn sleep_until(start: Instant, millis: u64) {
    sleep(Duration::from_millis(millis).saturating_sub(start.elapsed()));
}

/// Fills the cache with the key, and looks how long it will live.
#[track_caller]
fn check_life(scene: &Scene, what: &str, key: &str, expected: Life) {
    let start = Instant::now();
    if expected == Life::None {
        let id = scene.id();
        scene.passes(what, &v4().get(id, &[key]), LEASED);
        scene.replies(
            what,
            &v4().reversed().udp(&datagram(id, &values(&[value(key, 0, KEY_DATA)]))),
            &[("get_replies", 1), ("fill_expiry", 1)],
        );
        assert!(!scene.has(&v4(), key), "{what}");
        return;
    }
    scene.fill(&v4(), key, 0, KEY_DATA);
    let life = scene.bmc.life(key.as_bytes()).unwrap();
    let most = Duration::from_secs(match expected {
        Full => MAX_AGE,
        Unknown => UNKNOWN_TTL,
        Seconds(seconds) => seconds - 2,
        Life::None => 0,
    });
    let slack = Duration::from_millis(100) + start.elapsed();
    let least = match expected {
        Seconds(_) => most.saturating_sub(Duration::from_secs(1)),
        _ => most,
    };
    assert!(life <= most + Duration::from_millis(20), "{what}: {life:?}, expected {expected:?}");
    assert!(life + slack >= least, "{what}: {life:?}, expected {expected:?}");
}

#[test]
fn entries_live_as_long_as_the_last_write_says() {
    let rows = [
        ("get key\r\n", "END\r\n", Unknown),
        ("set key 0 0 1\r\nx\r\n", "STORED\r\n", Full),
        ("set key 0 10 1\r\nx\r\n", "STORED\r\n", Seconds(10)),
        ("set key 0 1 1\r\nx\r\n", "STORED\r\n", Life::None),
        ("set key 0 2 1\r\nx\r\n", "STORED\r\n", Life::None),
        // What is there long after its end has got another one.
        ("set key 0 -1 1\r\nx\r\n", "STORED\r\n", Unknown),
        ("set key 0 3000000 1\r\nx\r\n", "STORED\r\n", Unknown),
        ("set key 0 2147483647 1\r\nx\r\n", "STORED\r\n", Full),
        ("set key 0 2592000 1\r\nx\r\n", "STORED\r\n", Full),
        // No end, but one of unknown success.
        ("add key 0 0 1\r\nx\r\n", "STORED\r\n", Full),
        ("add key 0 10 1\r\nx\r\n", "STORED\r\n", Seconds(10)),
        ("add key 0 0 1\r\nx\r\n", "NOT_STORED\r\n", Unknown),
        ("add key 0 10 1\r\nx\r\n", "NOT_STORED\r\n", Unknown),
        ("replace key 0 10 1\r\nx\r\n", "STORED\r\n", Seconds(10)),
        ("replace key 0 0 1\r\nx\r\n", "NOT_STORED\r\n", Unknown),
        ("cas key 0 10 1 7\r\nx\r\n", "STORED\r\n", Seconds(10)),
        ("cas key 0 0 1 7\r\nx\r\n", "EXISTS\r\n", Unknown),
        ("cas key 0 0 1 7\r\nx\r\n", "NOT_FOUND\r\n", Unknown),
        ("touch key 10\r\n", "TOUCHED\r\n", Seconds(10)),
        ("touch key 0\r\n", "TOUCHED\r\n", Full),
        ("touch key 0\r\n", "NOT_FOUND\r\n", Unknown),
        ("set key 0 0 1\r\nx\r\n", "SERVER_ERROR out of memory storing object\r\n", Unknown),
        ("append key 0 10 1\r\nx\r\n", "STORED\r\n", Unknown),
        ("incr key 1\r\n", "5\r\n", Unknown),
        ("delete key\r\n", "DELETED\r\n", Unknown),
        ("ms key 1\r\nx\r\n", "HD\r\n", Full),
        ("ms key 1 T10\r\nx\r\n", "HD\r\n", Seconds(10)),
        ("ms key 1 T10 I\r\nx\r\n", "HD\r\n", Unknown),
        ("ms key 1 I\r\nx\r\n", "NS\r\n", Unknown),
        ("mg key T10\r\n", "HD\r\n", Seconds(10)),
        ("mg key T0\r\n", "EN\r\n", Unknown),
        ("ms a2V5 1 b T10\r\nx\r\n", "HD\r\n", Seconds(10)),
        // What there is keeps its end.
        ("set key 0 10 1\r\nx\r\nappend key 0 0 1\r\nx\r\n", "STORED\r\nSTORED\r\n", Seconds(10)),
        ("set key 0 10 1\r\nx\r\nincr key 1\r\n", "STORED\r\n5\r\n", Seconds(10)),
        // gat may find the item, or not.
        ("set key 0 0 1\r\nx\r\ngat 10 key\r\n", "STORED\r\nEND\r\n", Seconds(10)),
        ("set key 0 10 1\r\nx\r\ngat 0 key\r\n", "STORED\r\nEND\r\n", Seconds(10)),
        // Without a reply.
        ("set key 0 0 1 noreply\r\nx\r\nmn\r\n", "MN\r\n", Full),
        ("set key 0 10 1 noreply\r\nx\r\nmn\r\n", "MN\r\n", Seconds(10)),
        ("set key 0 0 1 noreply\r\nxxxmn\r\n", "MN\r\n", Unknown),
        ("add key 0 0 1 noreply\r\nx\r\nmn\r\n", "MN\r\n", Unknown),
        ("touch key 0 noreply\r\nmn\r\n", "MN\r\n", Unknown),
        ("ms key 1 q\r\nx\r\nmn\r\n", "MN\r\n", Full),
    ];
    let Some(scene) = load() else {
        return;
    };
    for (request, reply, life) in rows {
        println!("{request:?}, {reply:?}");
        // Forgets what the row before taught.
        scene.bmc.flush();
        scene.bmc.end_quarantine();
        let mut tcp = scene.connect(&v4());
        for (nth, text) in halves(request).into_iter().enumerate() {
            tcp.exchange(text, halves(reply)[nth]);
        }
        check_life(&scene, request, "key", life);
    }
}

/// Two commands with a reply each, or one.
fn halves(text: &str) -> Vec<&str> {
    for second in ["append", "incr", "gat", "STORED\r\n5", "STORED\r\nSTORED", "STORED\r\nEND"] {
        let skip = if second.starts_with("STORED") { "STORED\r\n".len() } else { 0 };
        if let Some(at) = text.find(second).map(|at| at + skip)
            && at > 0
        {
            return vec![&text[..at], &text[at..]];
        }
    }
    vec![text]
}

#[test]
fn a_write_that_failed_leaves_the_end_as_it_was() {
    let Some(scene) = load() else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    for failing in [
        "add key 0 0 1\r\nx\r\n",
        "add key 0 1 1\r\nx\r\n",
        "add key 0 7 1\r\nx\r\n",
        "add key 0 20 1\r\nx\r\n",
    ] {
        tcp.exchange("set key 0 10 1\r\nx\r\n", "STORED\r\n");
        tcp.exchange(failing, "NOT_STORED\r\n");
        check_life(&scene, failing, "key", Seconds(10));
    }
    // An error does not say how far the command got.
    tcp.exchange("touch key 7\r\n", "SERVER_ERROR\r\n");
    check_life(&scene, "after an error", "key", Seconds(7));
}

/// Fills the cache with the key, which then ends so many seconds after the start, less
/// memcached's lag, and at most a second sooner.
#[track_caller]
fn check_end(scene: &Scene, key: &str, start: Instant, seconds: u64) {
    let end = Duration::from_secs(seconds - CLOCK_LAG);
    let most = end.saturating_sub(start.elapsed());
    scene.fill(&v4(), key, 0, KEY_DATA);
    let life = scene.bmc.life(key.as_bytes()).unwrap();
    let least = end.saturating_sub(start.elapsed() + Duration::from_millis(1100));
    assert!(life <= most + Duration::from_millis(20), "{key}: {life:?}, at most {most:?}");
    assert!(life >= least, "{key}: {life:?}, at least {least:?}");
}

/// The same with a long `--unknown-ttl`, which must not be what counts.
fn load_with_unknown_of(seconds: u64) -> Option<Scene> {
    Scene::load(&Config {
        max_age: Duration::from_secs(MAX_AGE),
        unknown_ttl: Duration::from_secs(seconds),
        ..Config::default()
    })
}

/// A binary request about a key, and memcached's reply.
fn binary(opcode: u8, extras: &[u32], key: &str, status: u16) -> [Vec<u8>; 2] {
    let extras = extras.iter().copied().flat_map(u32::to_be_bytes).collect::<Vec<_>>();
    let data: &[u8] = if opcode & 0xf == 2 { b"x" } else { b"" };
    let quiet = opcode > 0x10 && status == 0;
    let reply = if quiet { Vec::new() } else { message(0x81, opcode, status, &[], b"", b"") };
    [message(0x80, opcode, 0, &extras, key.as_bytes(), data), reply]
}

/// Each is said after "set <key> 0 20 1", and memcached's reply. The item still ends
/// then, or after what else the command says of it.
fn may_end_sooner() -> Vec<(&'static str, Vec<[Vec<u8>; 2]>)> {
    let text = |request: &str, reply: &str| [request.into(), reply.into()];
    let one = |name: &'static str, request: &str, reply: &str| {
        (name, vec![text(&request.replace('$', name), reply)])
    };
    vec![
        one("add", "add $ 0 1 1\r\nx\r\n", "NOT_STORED\r\n"),
        one("cas", "cas $ 0 1 1 7\r\nx\r\n", "EXISTS\r\n"),
        one("md", "md $ I T1 C7\r\n", "EX\r\n"),
        one("ms-add", "ms $ 1 ME T1\r\nx\r\n", "NS\r\n"),
        one("error", "touch $ 1\r\n", "SERVER_ERROR\r\n"),
        one("noreply", "add $ 0 1 1 noreply\r\nx\r\nmn\r\n", "MN\r\n"),
        one("quiet", "ma $ N1 q\r\nmn\r\n", "MN\r\n"),
        one("ma", "ma $ N1 v\r\n", "VA 1\r\n5\r\n"),
        one("mg", "mg $ N1 v\r\n", "VA 1\r\nx\r\n"),
        one("append", "ms $ 1 MA T1\r\nx\r\n", "HD\r\n"),
        one("append-vivify", "ms $ 1 MA N1\r\nx\r\n", "HD\r\n"),
        one("ms-both", "ms $ 1 T20 N1\r\nx\r\n", "HD\r\n"),
        one("gat", "gat 1 $\r\n", "END\r\n"),
        one("touched", "set $ 0 1 1\r\nx\r\ntouch $ 20\r\n", "STORED\r\nTOUCHED\r\n"),
        one("set", "touch $ 1\r\nset $ 0 20 1\r\nx\r\n", "TOUCHED\r\nSTORED\r\n"),
        (
            "one-after-the-other",
            vec![
                text("set one-after-the-other 0 1 1\r\nx\r\n", "STORED\r\n"),
                text("touch one-after-the-other 20\r\n", "TOUCHED\r\n"),
            ],
        ),
        ("addq", vec![binary(0x12, &[0, 1], "addq", 2)]),
        ("addq-without", vec![binary(0x12, &[0, 1], "addq-without", 0), binary(0x0a, &[], "", 0)]),
        ("incr", vec![binary(0x05, &[0, 1, 0, 5, 1], "incr", 0)]),
    ]
}

/// An end that is past is not the item's if the item is there; it has another one then,
/// of those that were seen.
#[test]
fn an_end_that_is_past_leaves_the_other_one() {
    let Some(scene) = load_with_unknown_of(MAX_AGE) else {
        return;
    };
    let start = Instant::now();
    let rows = may_end_sooner();
    let mut keys: Vec<_> = rows.iter().map(|&(key, _)| key).collect();
    for (key, exchanges) in &rows {
        let set = format!("set {key} 0 20 1\r\nx\r\n");
        scene.connect(&v4()).exchange(set, "STORED\r\n");
        let mut tcp = scene.connect(&v4());
        for [request, reply] in exchanges {
            tcp.exchange(request, reply);
        }
    }
    // Two connections: who came last, nobody knows.
    for ends in [[1, 20], [20, 1]] {
        let key = ["at-once", "at-once-too"][usize::from(ends[0] == 1)];
        let mut writers = [scene.connect(&v4()), scene.connect(&v4())];
        for (tcp, end) in writers.iter_mut().zip(ends) {
            tcp.request(format!("set {key} 0 {end} 1\r\nx\r\n"));
        }
        for tcp in &mut writers {
            tcp.reply("STORED\r\n");
        }
        keys.push(key);
    }
    // Of those with two exptimes it is not known where in between the item ends.
    let vague = [("mg", "N1 T20 v"), ("ma", "T20 N1 v"), ("mg", "N-1 T20 v")];
    for (nth, (verb, flags)) in vague.iter().enumerate() {
        let mut tcp = scene.connect(&v4());
        tcp.exchange(format!("set vague{nth} 0 20 1\r\nx\r\n"), "STORED\r\n");
        tcp.exchange(format!("{verb} vague{nth} {flags}\r\n"), "VA 1\r\nx\r\n");
    }
    let written = start.elapsed();
    sleep_until(start, 8500 + written.as_millis() as u64);
    for key in keys {
        scene.fill(&v4(), key, 0, KEY_DATA);
        let life = scene.bmc.life(key.as_bytes()).unwrap();
        let left = Duration::from_secs(20 - CLOCK_LAG).saturating_sub(start.elapsed());
        assert!(life <= left + written, "{key}: {life:?}, of {left:?}");
        assert!(life + Duration::from_secs(2) + written >= left, "{key}: {life:?}, of {left:?}");
    }
    for nth in 0..vague.len() {
        check_life(&scene, "of two exptimes", &format!("vague{nth}"), Life::None);
    }
}

#[test]
fn an_end_from_before_a_flush_does_not_hide_the_one_from_after_it() {
    let Some(scene) = load_with_unknown_of(MAX_AGE) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let start = Instant::now();
    tcp.exchange("set key 0 1 1\r\nx\r\n", "STORED\r\n");
    sleep_until(start, 7500);
    scene.bmc.flush();
    let start = Instant::now();
    // No write is alone now, for what bmc knows.
    tcp.exchange("set key 0 6 1\r\nx\r\n", "STORED\r\n");
    scene.bmc.end_quarantine();
    check_life(&scene, "soon after a flush", "key", Seconds(6));
    sleep_until(start, 5200);
    check_life(&scene, "about when it ends", "key", Life::None);
}

/// What clients do who set again what has expired, all at once.
#[test]
fn an_end_that_just_passed_does_not_hide_those_of_two_who_set_it_again() {
    let Some(scene) = load_with_unknown_of(MAX_AGE) else {
        return;
    };
    let (mut one, mut two) = (scene.connect(&v4()), scene.connect(&v4()));
    let start = Instant::now();
    for key in ["pipelined", "at-once"] {
        one.exchange(format!("set {key} 0 2 1\r\nx\r\n"), "STORED\r\n");
    }
    sleep_until(start, 4200);
    let set = |key: &str| format!("set {key} 0 4 1\r\nx\r\n");
    let start = Instant::now();
    one.exchange(set("pipelined").repeat(2), "STORED\r\nSTORED\r\n");
    check_life(&scene, "two in one segment", "pipelined", Seconds(4));
    one.request(set("at-once"));
    two.request(set("at-once"));
    one.reply("STORED\r\n");
    two.reply("STORED\r\n");
    check_life(&scene, "two at once", "at-once", Seconds(4));
    sleep_until(start, 4000);
    for key in ["pipelined", "at-once"] {
        check_life(&scene, "when it ends", key, Life::None);
    }
}

/// Nobody knows whether a datagram got there; a reply that is lost says nothing.
#[test]
fn ends_of_writes_without_a_reply_are_all_kept() {
    let Some(scene) = load_with_unknown_of(MAX_AGE) else {
        return;
    };
    let start = Instant::now();
    let set = |end: u64| {
        let set = format!("set key 0 {end} 1\r\nx\r\n");
        scene.bmc.receive(&v4().udp(&datagram(scene.id(), set.as_bytes())));
    };
    set(1);
    set(20);
    sleep_until(start, 1500);
    check_life(&scene, "while the lesser one is near", "key", Life::None);
    // That one may have been a second late.
    sleep_until(start, 9500);
    check_end(&scene, "key", start, 20);
    // Of more than a few it is not known which there are, only from when to when.
    (14..=50).for_each(set);
    sleep_until(start, 11000);
    check_end(&scene, "key", start, 20);
}

/// memcached reckons the end from when it reads the line, and stores the item when it has
/// got the data.
#[test]
fn an_end_counts_again_when_the_data_of_its_write_comes_late() {
    let Some(scene) = load_with_unknown_of(MAX_AGE) else {
        return;
    };
    let (mut slow, mut other) = (scene.connect(&v4()), scene.connect(&v4()));
    // Its replies are not followed any more.
    slow.exchange("get other\r\n", "STORED\r\n");
    scene.bmc.end_quarantine();
    slow.request("set key 0 20 1\r\n");
    sleep(Duration::from_millis(2500));
    other.exchange("set key 0 0 1\r\nx\r\n", "STORED\r\n");
    check_life(&scene, "of the other one", "key", Full);
    slow.request("x\r\n");
    slow.reply("STORED\r\n");
    sleep(Duration::from_millis(1100));
    scene.bmc.end_quarantine();
    scene.fill(&v4(), "key", 0, KEY_DATA);
    let life = scene.bmc.life(b"key").unwrap();
    assert!((12..=15).contains(&life.as_secs()), "{life:?}");
}

/// A key that many others take the cells of has an end that is not known, never one
/// that is later than those that are left.
#[test]
fn who_loses_an_end_to_other_keys_has_an_unknown_one() {
    let Some(scene) = Scene::load(&Config {
        max_age: Duration::from_secs(MAX_AGE),
        unknown_ttl: Duration::from_secs(UNKNOWN_TTL),
        buckets: 2,
        ..Config::default()
    }) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    tcp.exchange("set key 0 40 1\r\nx\r\n", "STORED\r\n");
    tcp.exchange("gat 20 key\r\n", "END\r\n");
    check_life(&scene, "alone in its line", "key", Seconds(20));
    let mut unknown = 0;
    for nth in 0..40 {
        tcp.exchange(format!("set other{nth} 0 30 1\r\nx\r\n"), "STORED\r\n");
        // Forgets the entry, and nothing else.
        tcp.exchange("delete key\r\n", "DELETED\r\n");
        scene.fill(&v4(), "key", 0, KEY_DATA);
        let life = scene.bmc.life(b"key").unwrap().as_secs();
        assert!(life <= 18, "one of both is left: {life}");
        unknown += u32::from(life <= UNKNOWN_TTL);
    }
    assert!(unknown > 20, "{unknown}");
    // What says never gives way first.
    for nth in 0..40 {
        tcp.exchange(format!("set never{nth} 0 0 1\r\nx\r\n"), "STORED\r\n");
    }
    tcp.exchange("set key 0 20 1\r\nx\r\n", "STORED\r\n");
    for nth in 0..40 {
        tcp.exchange(format!("set never{nth} 0 0 1\r\nx\r\n"), "STORED\r\n");
    }
    check_life(&scene, "among those that never end", "key", Seconds(20));
}

#[test]
fn of_two_writers_at_once_the_lesser_end_counts() {
    let Some(scene) = load() else {
        return;
    };
    let (mut one, mut two) = (scene.connect(&v4()), scene.connect(&v4()));
    let both = |one: &mut Connection, two: &mut Connection, ends: [u32; 2]| {
        one.request(format!("set key 0 {} 1\r\nx\r\n", ends[0]));
        two.request(format!("set key 0 {} 1\r\nx\r\n", ends[1]));
        one.reply("STORED\r\n");
        two.reply("STORED\r\n");
    };
    both(&mut one, &mut two, [0, 0]);
    check_life(&scene, "two at once", "key", Unknown);
    for ends in [[0, 20], [20, 0]] {
        one.exchange("set key 0 0 1\r\nx\r\n", "STORED\r\n");
        both(&mut one, &mut two, ends);
        check_life(&scene, "two at once after one", "key", Seconds(20));
    }
    // A later one is alone again.
    two.exchange("set key 0 0 1\r\nx\r\n", "STORED\r\n");
    check_life(&scene, "one after two", "key", Full);
}

#[test]
fn a_flush_makes_all_ends_unknown() {
    let Some(scene) = load() else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    for key in ["a", "b"] {
        tcp.exchange(format!("set {key} 0 0 1\r\nx\r\n"), "STORED\r\n");
    }
    scene.bmc.flush();
    scene.bmc.end_quarantine();
    check_life(&scene, "after the tool's flush", "a", Unknown);
    for key in ["a", "b"] {
        tcp.exchange(format!("set {key} 0 0 1\r\nx\r\n"), "STORED\r\n");
    }
    tcp.exchange("flush_all\r\n", "OK\r\n");
    scene.bmc.end_quarantine();
    check_life(&scene, "after flush_all", "b", Unknown);
}

#[test]
fn a_delayed_flush_all_ends_entries_before_it() {
    let Some(scene) = load() else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let start = Instant::now();
    tcp.exchange("flush_all 5\r\n", "OK\r\n");
    scene.bmc.end_quarantine();
    tcp.exchange("set key 0 0 1\r\nx\r\n", "STORED\r\n");
    // It takes effect four seconds after what memcached's clock says, which is now or
    // up to two seconds less.
    scene.fill(&v4(), "key", 0, KEY_DATA);
    let life = scene.bmc.life(b"key").unwrap();
    assert!(life <= Duration::from_millis(2020), "{life:?}");
    assert!(life + start.elapsed() >= Duration::from_millis(900), "{life:?}");
    sleep_until(start, 3000);
    assert!(!scene.has(&v4(), "key"));
    check_life(&scene, "shortly before", "key", Life::None);
    sleep_until(start, 5000);
    check_life(&scene, "when it is due", "key", Life::None);
    sleep_until(start, 8000);
    check_life(&scene, "after it", "key", Full);
}

#[test]
fn nothing_is_cached_before_a_delayed_flush_all_that_finds_no_room() {
    let Some(scene) = load() else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let start = Instant::now();
    // Of three memcacheds, for what bmc knows.
    for delay in [3, 30, 50] {
        tcp.exchange(format!("flush_all {delay}\r\n"), "OK\r\n");
    }
    for after in [1500, 3500] {
        sleep_until(start, after);
        scene.passes("before one is over", &v4().get(scene.id(), &["key"]), QUARANTINED);
        // Nor does the tool's flush end that.
        scene.bmc.flush();
    }
    sleep_until(start, 6500);
    tcp.exchange("set key 0 0 1\r\nx\r\n", "STORED\r\n");
    scene.fill(&v4(), "key", 0, KEY_DATA);
    let life = scene.bmc.life(b"key").unwrap();
    assert!((17..=21).contains(&life.as_secs()), "up to the second one: {life:?}");
}

#[test]
fn an_absolute_end_holds_whenever_the_clock_was_set() {
    const HOUR: i64 = 3600;

    for clock_set in [0, -HOUR, HOUR] {
        let Some(scene) = Scene::load(&Config {
            max_age: Duration::from_secs(MAX_AGE),
            clock_set,
            ..Config::default()
        }) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        // Of a memcached that was started with the clock as it is now, or with the
        // other one: the clock that is ahead.
        let day = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let end = day.saturating_add_signed(clock_set.max(0)) + 30;
        tcp.exchange(format!("set key 0 {end} 1\r\nx\r\n"), "STORED\r\n");
        scene.fill(&v4(), "key", 0, KEY_DATA);
        let life = scene.bmc.life(b"key").unwrap();
        // Less memcached's lag, and what was rounded.
        assert!((25..=29).contains(&life.as_secs()), "set by {clock_set} s: {life:?}");
    }
}
