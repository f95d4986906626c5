// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How entries end: flushed, too old, evicted.

use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use crate::fixture::Config;
use crate::fixture::Verdict;
use crate::fixture::skipped;
use crate::packet::datagram;
use crate::packet::value;
use crate::packet::values;
use crate::random::Rng;
use crate::scene::KEY_DATA;
use crate::scene::LEASED;
use crate::scene::Scene;
use crate::scene::check_reply;
use crate::scene::key_reply_of;
use crate::scene::v4;
use crate::scene::v6;

#[test]
fn flushing_forgets_everything() {
    let Some(scene) = Scene::with_key(&[v4(), v6(), v4().vlan(5)]) else {
        return;
    };
    let id = scene.id();
    scene.passes("a GET before", &v4().get(id, &["late"]), LEASED);
    scene.bmc.flush();
    for flow in [v4(), v6(), v4().vlan(5)] {
        assert!(!scene.has(&flow, "key"));
    }
    scene.bmc.send(&v4().reversed().udp(&datagram(id, &key_reply_of("late"))));
    assert!(!scene.has(&v4(), "late"), "a lease from before the flush");
    sleep(Duration::from_millis(1100));
    scene.fill(&v4(), "key", 0, b"again");
    scene.hits(&v4(), "key", &values(&[value("key", 0, b"again")]));
}

#[test]
fn entries_expire() {
    let soon = Duration::from_millis(300);
    let late = Duration::from_secs(60);
    for (max_age, unknown_ttl) in [(soon, late), (late, soon)] {
        let config = Config { max_age, unknown_ttl, ..Config::default() };
        let Some(scene) = Scene::load(&config) else {
            return;
        };
        let start = Instant::now();
        scene.fill(&v4(), "key", 0, KEY_DATA);
        let there = scene.has(&v4(), "key");
        // On a machine too slow to ask in time, the answer says nothing.
        assert!(there || start.elapsed() > soon / 2);
        sleep(soon + Duration::from_millis(50));
        scene.misses(&v4(), "key");
        scene.fill(&v4(), "key", 0, b"new");
    }
}

/// Slots lie side by side, and some texts fill theirs to the last byte.
#[test]
fn writing_a_slot_leaves_its_neighbours_alone() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let data = vec![b'v'; 1400];
    let mut keys = Vec::new();
    // Around the end of each size class, four slots in a row for each length.
    let sizes = [64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 544, 640, 768, 928, 1152];
    for end in sizes {
        for len in end - 58..end - 44 {
            keys.extend((0..4).map(|nth| (format!("{nth}-{len:04}"), len)));
        }
    }
    let reply = |key: &String, len: &usize| values(&[value(key, 0, &data[..*len])]);
    for (key, len) in &keys {
        scene.fill(&v4(), key, 0, &data[..*len]);
    }
    scene.bmc.flush();
    scene.bmc.end_quarantine();
    for (key, len) in keys.iter().rev() {
        scene.fill(&v4(), key, 0, &data[..*len]);
    }
    for (key, len) in &keys {
        scene.hits(&v4(), key, &reply(key, len));
    }
}

/// Less slabs than sizes: what has none of its own takes the place of larger ones.
#[test]
fn entries_of_every_size_find_a_place_in_little_memory() {
    let config = Config { slabs: 6, ..Config::default() };
    let Some(scene) = Scene::load(&config) else {
        return;
    };
    let data = vec![b'v'; 1300];
    for len in (20..1300).rev().step_by(40) {
        scene.fill(&v4(), format!("key-{len}"), 0, &data[..len]);
    }
    let refused = scene.bmc.counters().get("fill_admission");
    assert_eq!(refused, 0);
}

/// Sizes that nobody stores have no more than a sixteenth of the memory kept free.
#[test]
fn entries_of_one_size_may_have_most_of_the_memory() {
    let config = Config { buckets: 1 << 16, slabs: 16, ..Config::default() };
    let Some(scene) = Scene::load(&config) else {
        return;
    };
    // A slab holds 3258 of them.
    for nth in 0..15 * 3258 {
        scene.fill(&v4(), format!("key-{nth:012}"), 0, &[b'v'; 32]);
    }
    assert_eq!(scene.bmc.counters().get("evictions"), 0);
    scene.fill(&v4(), "large", 0, &[b'v'; 1000]);
}

/// Asks memcached once for each of that many keys. Says how many were learnt.
fn ask_once(scene: &Scene, what: &str, keys: usize, data: &[u8]) -> u64 {
    let before = scene.bmc.counters().get("fills");
    for nth in 0..keys {
        scene.ask(&v4(), &format!("{what}-{nth}"), data);
    }
    scene.bmc.counters().get("fills") - before
}

/// Sixteen places, and what was asked for twice in all of them.
fn full_of_hot_entries() -> Option<Scene> {
    let scene = Scene::load(&Config { buckets: 2, ..Config::default() })?;
    assert_eq!(ask_once(&scene, "hot", 100, LARGE), 16);
    let before = scene.bmc.counters();
    ask_once(&scene, "hot", 100, LARGE);
    let counted = scene.bmc.counters().since(&before);
    assert_eq!((counted.get("hits"), counted.get("evictions")), (16, 0));
    Some(scene)
}

/// Of these a slab holds few, so that eras are short.
const LARGE: &[u8] = &[b'v'; 1300];

#[test]
fn a_newcomer_stays_if_it_is_asked_for_more_often_than_what_is_there() {
    let Some(scene) = full_of_hot_entries() else {
        return;
    };
    let ask = |expected| {
        let before = scene.bmc.counters();
        scene.ask(&v4(), "newcomer", LARGE);
        let counted = scene.bmc.counters().since(&before);
        let names = ["hits", "fills", "fill_admission", "evictions"];
        assert_eq!(names.map(|name| counted.get(name)), expected);
    };
    ask([0, 0, 1, 0]);
    ask([0, 0, 1, 0]);
    ask([0, 1, 0, 1]);
    ask([1, 0, 0, 0]);
}

#[test]
fn what_was_asked_for_long_ago_makes_room() {
    let Some(scene) = full_of_hot_entries() else {
        return;
    };
    // An era is seven times the 186 slots of a slab each.
    assert_eq!(ask_once(&scene, "soon", 1000, LARGE), 0);
    assert!(ask_once(&scene, "late", 2500, LARGE) >= 16);
    let hits = scene.bmc.counters().get("hits");
    ask_once(&scene, "hot", 100, LARGE);
    assert_eq!(scene.bmc.counters().get("hits"), hits);
}

/// Slabs that were full of small values, of which nobody asks for any again.
fn full_of_small_values() -> Option<Scene> {
    let scene = Scene::load(&Config { buckets: 1 << 15, slabs: 32, ..Config::default() })?;
    let learnt = ask_once(&scene, "small", 110_000, &[b's'; 32]);
    // A slab holds 3258 of them; two are left to others.
    assert!((90_000..98_000).contains(&learnt), "{learnt} small ones");
    scene.bmc.flush();
    scene.bmc.end_quarantine();
    Some(scene)
}

/// What is asked for is larger than it was: the memory goes over to it.
#[test]
fn memory_follows_the_sizes_that_are_asked_for() {
    let Some(scene) = full_of_small_values() else {
        return;
    };
    // A slab holds 227 or 247 of them.
    let large =
        |nth: usize| scene.ask(&v4(), &format!("large-{nth}"), &vec![b'l'; 1000 + nth % 100]);
    let hits = || (0..4000).filter(|nth| large(*nth)).count();
    for _ in 0..30 {
        hits();
        scene.bmc.end_rest();
    }
    let last = hits();
    assert!(last > 3900, "{last} hits");
}

/// As in slab.bpf.h.
const REST: Duration = Duration::from_secs(10);

/// Whoever has the address of an emptied slot must be gone before it is used.
#[test]
fn an_emptied_slab_rests() {
    let Some(scene) = full_of_small_values() else {
        return;
    };
    let (data, from) = ([b'l'; 1000], Instant::now());
    for _ in 0..8 {
        ask_once(&scene, "large", 4000, &data);
    }
    let hits = (0..4000).filter(|nth| scene.ask(&v4(), &format!("large-{nth}"), &data)).count();
    if from.elapsed() > REST {
        skipped("an_emptied_slab_rests", "this machine takes longer than slabs rest");
        return;
    }
    assert!(hits < 500, "{hits}, and the two slabs that were free hold 494");
}

/// To and fro: whatever is answered is checked to the last byte.
#[test]
fn memory_that_changes_hands_keeps_no_old_text() {
    let Some(scene) = Scene::load(&Config { buckets: 1 << 12, slabs: 16, ..Config::default() })
    else {
        return;
    };
    let text = |size, nth| -> Vec<u8> {
        (0..size + nth % 20).map(|at| b'a' + ((nth + at) % 26) as u8).collect()
    };
    let mut random = Rng::new(7);
    let (mut before, mut hits) = (1300, 0);
    for phase in 0..8 {
        let size = [1300, 40, 600, 150][phase % 4];
        let keys = 5_000_000 / size;
        for round in 0..30_000 {
            if round % 5000 == 0 {
                scene.bmc.end_rest();
            }
            let nth = random.below(keys);
            let data = text(size, nth);
            hits += usize::from(scene.ask(&v4(), &format!("{size}-{nth}"), &data));
        }
        // Of what was there before, nothing may lead to what is there now.
        for nth in 0..(5_000_000 / before).min(10_000) {
            let delete = format!("delete {before}-{nth}\r\n");
            scene.bmc.receive(&v4().udp(&datagram(scene.id(), delete.as_bytes())));
        }
        for nth in 0..keys.min(10_000) {
            let data = text(size, nth);
            hits += usize::from(scene.ask(&v4(), &format!("{size}-{nth}"), &data));
        }
        scene.bmc.flush();
        scene.bmc.end_quarantine();
        before = size;
    }
    assert!(hits > 10_000, "{hits} hits");
}

/// Many keys in few buckets and slabs: entries go, answers stay right.
#[test]
fn a_full_cache_still_answers_right() {
    let config = Config { buckets: 16, slabs: 8, ..Config::default() };
    let Some(scene) = Scene::load(&config) else {
        return;
    };
    let mut random = Rng::new(5);
    let mut hits = 0;
    for _ in 0..20_000 {
        let nth = random.below(400);
        let key = format!("key{nth}");
        let text = values(&[value(&key, nth as u32, &vec![b'v'; nth])]);
        let id = scene.id();
        let frame = v4().get(id, &[&key]);
        match scene.bmc.receive(&frame) {
            Verdict::Answered(reply) => {
                hits += 1;
                check_reply(&key, &frame, &reply, &text);
            }
            Verdict::Passed => scene.bmc.send(&v4().reversed().udp(&datagram(id, &text))),
            verdict @ Verdict::AnsweredLate(_) => panic!("{verdict:?}"),
        }
    }
    assert!(hits > 1000, "{hits} hits");
    let counted = scene.bmc.counters();
    assert_eq!(counted.get("get_keys"), counted.get("hits") + counted.get("misses"));
}
