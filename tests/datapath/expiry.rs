// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How long entries live by what was seen of their items' exptime.

use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

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
fn a_write_that_failed_leaves_no_longer_life() {
    let Some(scene) = load() else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    tcp.exchange("set key 0 10 1\r\nx\r\n", "STORED\r\n");
    tcp.exchange("add key 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    check_life(&scene, "a failed add", "key", Seconds(10));
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
