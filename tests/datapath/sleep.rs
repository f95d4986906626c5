// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The cache asleep: while nobody asks over UDP, nothing is cached and no reply looked
//! at; and what it knows when it wakes.

use std::cell::RefCell;
use std::thread::sleep;
use std::time::Duration;

use crate::connection::Connection;
use crate::fixture::Config;
use crate::fixture::FLOW_WAYS;
use crate::packet::datagram;
use crate::scene::DIRTY;
use crate::scene::KEY_DATA;
use crate::scene::LEASED;
use crate::scene::QUARANTINED;
use crate::scene::Scene;
use crate::scene::UNTRACKED;
use crate::scene::WRITE;
use crate::scene::check_healing;
use crate::scene::key_reply;
use crate::scene::key_reply_of;
use crate::scene::v4;

/// More than what has to be lost or saved within ten seconds.
const MUCH: i64 = 20_000;

/// Much is asked over TCP, and little over UDP.
#[track_caller]
fn fall_asleep(scene: &Scene, tcp: &mut Connection) {
    tcp.exchange("version\r\n", "VERSION 1\r\n");
    scene.bmc.look_again(-MUCH);
    scene.asks(tcp, "version\r\n", &[("sleeps", 1)]);
    scene.says(tcp, "VERSION 1\r\n", &[]);
}

/// Much is asked over UDP; what the cache holds then may be filled.
#[track_caller]
fn wake(scene: &Scene) {
    scene.is_closed("ten seconds are not over", "waking", DIRTY);
    scene.bmc.look_again(MUCH);
    scene.is_closed("which wakes it", "waking", QUARANTINED);
    scene.is_closed("shortly after that", "other", QUARANTINED);
    scene.bmc.end_quarantine();
}

#[test]
fn a_cache_sleeps_until_it_pays_to_be_awake() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    fall_asleep(&scene, &mut tcp);
    // No segment looks at what is said, nor whether it should sleep more.
    scene.says(&mut tcp, "STORED\r\n", &[]);
    scene.bmc.look_again(-MUCH);
    scene.asks(&mut tcp, "get any\r\n", &[]);
    scene.says(&mut tcp, "END\r\n", &[]);
    scene.is_closed("after another look", "key", DIRTY);
    wake(&scene);
    assert!(!scene.has(&v4(), "key"), "an entry from before is there");
    scene.fill(&v4(), "key", 0, KEY_DATA);
    scene.hits(&v4(), "key", &key_reply());
}

#[test]
fn a_cache_wakes_with_a_segment_as_well() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    fall_asleep(&scene, &mut tcp);
    scene.bmc.look_again(MUCH);
    tcp.exchange("version\r\n", "VERSION 1\r\n");
    scene.is_closed("just awake", "key", QUARANTINED);
}

/// What the requests of ten seconds come to, in such units; and whether the cache falls
/// asleep.
#[test]
fn it_pays_to_be_awake_for_one_key_in_twenty_requests() {
    const LIMIT: i64 = -16_384;

    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let other = RefCell::new(scene.connect(&v4()));
    tcp.exchange("version\r\n", "VERSION 1\r\n");
    let mut check = |what: &str, sum: i64, act: &dyn Fn(&mut Connection)| {
        println!("{what}: {sum}");
        // The last look was at the segment before; the next one is before it counts.
        for (more, counts) in [(1, &[][..]), (0, &[("sleeps", 1)])] {
            scene.bmc.look_again(0);
            tcp.exchange("version\r\n", "VERSION 1\r\n");
            act(&mut tcp);
            scene.bmc.look_again(LIMIT - (sum - 1) + more);
            scene.asks(&mut tcp, "version\r\n", counts);
            scene.says(&mut tcp, "VERSION 1\r\n", &[]);
        }
        scene.bmc.look_again(MUCH);
        scene.asks(&mut tcp, "version\r\n", &[]);
        scene.says(&mut tcp, "VERSION 1\r\n", &[]);
    };
    check("a GET over UDP", 20, &|_| assert!(!scene.has(&v4(), "none")));
    check("a GET of two keys", 40, &|_| {
        scene.bmc.receive(&v4().get(scene.id(), &["key", "none"]));
    });
    check("a GET over TCP", -1, &|tcp| tcp.exchange("get any\r\n", "END\r\n"));
    check("two of them", -2, &|tcp| tcp.exchange("get a\r\nget b\r\n", "END\r\nEND\r\n"));
    check("a SET", -4, &|tcp| tcp.exchange("set any 0 0 1\r\nx\r\n", "STORED\r\n"));
    check("one that is not understood", -3, &|_| other.borrow_mut().request("nonsense\r\n"));
    check("a SET without a reply", -3, &|tcp| tcp.request("set a 0 0 1 noreply\r\nx\r\n"));
}

#[test]
fn a_lease_from_before_a_sleep_fills_nothing() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let id = scene.id();
    scene.passes("the GET", &v4().get(id, &["key"]), LEASED);
    fall_asleep(&scene, &mut tcp);
    wake(&scene);
    scene.replies(
        "its reply",
        &v4().reversed().udp(&datagram(id, &key_reply_of("key"))),
        &[("get_replies", 1), ("fill_raced", 1)],
    );
}

/// Of replies over UDP it takes notice.
#[test]
fn what_was_asked_in_its_sleep_is_answered() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let id = scene.id();
    let (get, reply) = (v4().get(id, &["key"]), datagram(id, &key_reply_of("key")));
    let reply = v4().reversed().udp(&reply);
    scene.passes("the GET", &get, LEASED);
    fall_asleep(&scene, &mut tcp);
    scene.bmc.send(&reply);
    for _ in 0..3 {
        scene.passes("the same, asleep", &get, DIRTY);
        scene.bmc.send(&reply);
    }
    wake(&scene);
    scene.passes("the same, awake", &get, LEASED);
}

#[test]
fn a_write_in_its_sleep_closes_its_key() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    fall_asleep(&scene, &mut tcp);
    scene.asks(&mut tcp, "set key 0 0 1\r\nx\r\n", UNTRACKED);
    scene.asks(&mut tcp, "get any\r\ndelete gone\r\n", UNTRACKED);
    wake(&scene);
    scene.is_closed("as on a mute connection", "key", QUARANTINED);
    scene.is_closed("as on a mute connection", "gone", QUARANTINED);
}

/// Nobody knows how long memcached needs for what it has got meanwhile.
#[test]
fn a_connection_that_slept_may_have_much_under_way() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    fall_asleep(&scene, &mut tcp);
    tcp.exchange("get any\r\n", "END\r\n");
    scene.bmc.look_again(MUCH);
    scene.asks(&mut tcp, "delete key\r\n", UNTRACKED);
    sleep(Duration::from_millis(1100));
    scene.is_closed("after a second", "other", QUARANTINED);
    scene.bmc.end_quarantine();
    scene.is_closed("after a second", "key", QUARANTINED);
}

/// More connections than there is room for, one after the other.
#[test]
fn a_connection_that_ends_in_its_sleep_makes_room() {
    let Some(scene) = Scene::load(&Config { flow_sets: 1, ..Config::default() }) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    fall_asleep(&scene, &mut tcp);
    for _ in 0..2 * FLOW_WAYS {
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, "get any\r\n", &[]);
        tcp.finish();
    }
}

#[test]
fn a_delayed_flush_all_in_its_sleep_is_kept_in_mind() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    fall_asleep(&scene, &mut tcp);
    tcp.exchange("flush_all 9\r\n", "OK\r\n");
    wake(&scene);
    scene.fill(&v4(), "key", 0, KEY_DATA);
    let life = scene.bmc.life(b"key").unwrap();
    assert!(life < Duration::from_secs(9), "{life:?}");
}

#[test]
fn a_connection_is_followed_again_after_a_sleep() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut from_before = scene.connect(&v4());
    fall_asleep(&scene, &mut from_before);
    let mut new = scene.connect(&v4());
    for tcp in [&mut from_before, &mut new] {
        for _ in 0..20 {
            tcp.exchange("get any\r\n", "END\r\n");
        }
    }
    wake(&scene);
    for tcp in [&mut from_before, &mut new] {
        check_healing(&scene, tcp);
    }
}

#[test]
fn an_idle_connection_is_followed_at_once_after_a_sleep() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    fall_asleep(&scene, &mut tcp);
    tcp.exchange("set key 0 0 1\r\nx\r\n", "STORED\r\n");
    wake(&scene);
    sleep(Duration::from_millis(1100));
    scene.asks(&mut tcp, "set key 0 0 1\r\nx\r\n", WRITE);
    scene.is_closed("before the reply", "key", DIRTY);
    scene.says(&mut tcp, "STORED\r\n", &[]);
    scene.is_open("after the reply", "key");
}

/// Its connection says nothing while the cache sleeps: only the next reply shows it.
#[test]
fn a_reply_that_was_not_seen_is_missed() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let mut other = scene.connect(&v4());
    scene.asks(&mut tcp, "set key 0 0 1\r\nx\r\n", WRITE);
    fall_asleep(&scene, &mut other);
    scene.says(&mut tcp, "STORED\r\n", &[]);
    wake(&scene);
    scene.is_closed("without its reply", "key", DIRTY);
    scene.asks(&mut tcp, "delete gone\r\n", WRITE);
    scene.says(&mut tcp, "DELETED\r\n", &[]);
    scene.is_closed("given up", "key", QUARANTINED);
    scene.is_closed("given up", "gone", QUARANTINED);
    check_healing(&scene, &mut tcp);
}

/// Of what memcached says to it then nothing may be taken for a reply to something else.
#[test]
fn a_reply_to_what_came_in_its_sleep_ends_nothing() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    fall_asleep(&scene, &mut tcp);
    scene.asks(&mut tcp, "set key 0 0 1\r\nx\r\n", UNTRACKED);
    wake(&scene);
    scene.says(&mut tcp, "STORED\r\n", &[]);
    scene.is_closed("after the reply", "key", QUARANTINED);
    check_healing(&scene, &mut tcp);
}
