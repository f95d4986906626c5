// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Writes: from when one is seen until nothing old can come back.

use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use crate::connection::Connection;
use crate::fixture::Config;
use crate::fixture::Verdict;
use crate::packet::FIN_ACK;
use crate::packet::Flow;
use crate::packet::PSH_ACK;
use crate::packet::SYN;
use crate::packet::datagram;
use crate::packet::part;
use crate::packet::value;
use crate::packet::values;
use crate::scene::Counts;
use crate::scene::DESTINATION_OPTIONS;
use crate::scene::DIRTY;
use crate::scene::KEY_DATA;
use crate::scene::LEASED;
use crate::scene::QUARANTINED;
use crate::scene::Scene;
use crate::scene::UNCERTAIN;
use crate::scene::UNFOLLOWED;
use crate::scene::UNMATCHED;
use crate::scene::UNPARSED;
use crate::scene::UNTRACKED;
use crate::scene::WRITE;
use crate::scene::check_healing;
use crate::scene::edit;
use crate::scene::key_reply;
use crate::scene::key_reply_of;
use crate::scene::v4;
use crate::scene::v6;
use crate::scene::with_ipv4_options;
use crate::scene::with_ipv6_extension;

/// For how long a key is closed when bmc cannot recognise the write's reply, and
/// a little more.
const LATER: Duration = Duration::from_millis(1100);

/// A command that changes what a GET of "key" returns, and memcached's reply;
/// empty if there is none.
type Write = (&'static str, &'static str);

const WRITES: &[Write] = &[
    ("set key 0 0 5\r\nvalue\r\n", "STORED\r\n"),
    ("set key 4294967295 2592000 0\r\n\r\n", "STORED\r\n"),
    ("set key 0 0 2000000\r\n", "SERVER_ERROR object too large for cache\r\n"),
    ("add key 0 0 5\r\nvalue\r\n", "NOT_STORED\r\n"),
    ("replace key 0 0 5\r\nvalue\r\n", "STORED\r\n"),
    ("append key 0 0 5\r\nvalue\r\n", "STORED\r\n"),
    ("prepend key 0 0 5\r\nvalue\r\n", "STORED\r\n"),
    ("cas key 0 0 5 77\r\nvalue\r\n", "EXISTS\r\n"),
    ("incr key 1\r\n", "5\r\n"),
    ("decr key 1\r\n", "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
    ("delete key\r\n", "DELETED\r\n"),
    ("delete key 0\r\n", "NOT_FOUND\r\n"),
    ("touch key 100\r\n", "TOUCHED\r\n"),
    ("ms key 5\r\nvalue\r\n", "HD\r\n"),
    ("ms key 5 T0 F1 I\r\nvalue\r\n", "HD\r\n"),
    ("md key\r\n", "HD\r\n"),
    ("md key k\r\n", "HD kkey\r\n"),
    // Any number of spaces, and a bare line feed, are fine with memcached.
    ("set  key 0  0 5 \r\nvalue\r\n", "STORED\r\n"),
    ("delete key\n", "DELETED\r\n"),
    ("gat 100 key\r\n", "VALUE key 0 1\r\nx\r\nEND\r\n"),
    ("gats 100 key\r\n", "VALUE key 0 1 7\r\nx\r\nEND\r\n"),
    ("ma key\r\n", "HD\r\n"),
    ("ma key v\r\n", "VA 1\r\n6\r\n"),
    ("mg key v T30\r\n", "VA 1\r\nx\r\n"),
    ("mg key N30 v\r\n", "EN\r\n"),
    ("mg key v R30\r\n", "VA 1 W\r\nx\r\n"),
    ("mg key E9 v\r\n", "EN\r\n"),
    // A key in base64.
    ("ms a2V5 5 b\r\nvalue\r\n", "HD\r\n"),
    ("md a2V5 b k\r\n", "HD ka2V5 b\r\n"),
    ("mg a2V5 b T100\r\n", "HD\r\n"),
    // No reply, or none if all is well.
    ("set key 0 0 1 noreply\r\nx\r\n", ""),
    ("add key 0 0 1 noreply\r\nx\r\n", ""),
    ("cas key 0 0 1 9 noreply\r\nx\r\n", ""),
    ("delete key noreply\r\n", ""),
    ("incr key 1 noreply\r\n", ""),
    ("touch key 100 noreply\r\n", ""),
    ("ms key 1 q\r\nx\r\n", ""),
    ("md key q\r\n", ""),
    ("md a2V5 q b\r\n", ""),
    ("mg key q v T30\r\n", ""),
];

#[test]
fn writes_over_tcp_invalidate() {
    for flow in [v4(), v6()] {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        scene.fill(&v4(), "other", 0, KEY_DATA);
        let mut other = scene.connect(&flow);
        for (request, reply) in WRITES {
            let what = format!("{request:?} from {}", flow.source);
            println!("{what}");
            scene.fill(&v4(), "key", 0, KEY_DATA);
            let mut tcp = scene.connect(&flow);
            scene.asks(&mut tcp, request, WRITE);
            scene.is_closed(&what, "key", DIRTY);
            if reply.is_empty() {
                // Until a later command has its reply.
                for (request, reply) in [("mn\r\n", "MN\r\n"), ("version\r\n", "VERSION 1\r\n")] {
                    scene.asks(&mut tcp, request, &[]);
                    if request.starts_with("mn") {
                        scene.is_closed(&what, "key", DIRTY);
                    }
                    scene.says(&mut tcp, reply, &[]);
                }
            } else {
                scene.says(&mut tcp, reply, &[]);
            }
            scene.fill(&v4(), "key", 0, b"new");
            scene.hits(&v4(), "key", &values(&[value("key", 0, b"new")]));
            scene.hits(&v4(), "other", &key_reply_of("other"));
            // For the next row.
            other.exchange("delete key\r\n", "DELETED\r\n");
        }
    }
}

/// Clients that are done may send quit along with their last command.
#[test]
fn a_write_that_quit_follows_ends_with_its_reply() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let request = "set key 0 0 1\r\nx\r\nquit\r\n";
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, request, WRITE);
    scene.is_closed(request, "key", DIRTY);
    scene.says(&mut tcp, "STORED\r\n", &[]);
    scene.fill(&v4(), "key", 0, KEY_DATA);
    scene.counting("the end", &[], || tcp.finish());
    scene.hits(&v4(), "key", &key_reply());
}

/// What is not understood may have changed any key.
#[test]
fn an_unknown_command_empties_the_cache() {
    for request in [
        "swap key other\r\n",
        "md a2V b\r\n",
        "md a2V$ b\r\n",
        "md a=== b\r\n",
        "md a2V=a2V5 b\r\n",
        "mg a2V5a b T1\r\n",
        "\r\n",
        "set key\r\n",
        "set key 0 0 -1\r\n",
        "GET key\r\n",
        "sat key 0 0 1\r\nx\r\n",
    ] {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        tcp.exchange("get key\r\n", "END\r\n");
        scene.asks(&mut tcp, request, UNPARSED);
        scene.is_closed(request, "key", QUARANTINED);
        scene.says(&mut tcp, "ERROR\r\n", &[("flushes", 1)]);
        scene.is_closed(request, "key", QUARANTINED);
    }
}

/// A key, and how the connection ends that was writing it.
type End = (&'static str, fn(Connection));

#[test]
fn learning_resumes_after_a_write_without_reply() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let set = |key: &str| format!("set {key} 0 0 1\r\nx\r\n");
    let ends: [End; 3] = [
        ("client", Connection::finish),
        ("server", Connection::finish_server),
        ("reset", Connection::reset),
    ];
    for (key, end) in ends {
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, set(key), WRITE);
        scene.is_closed("before the connection ends", key, DIRTY);
        scene.counting(key, &[], || end(tcp));
        scene.is_closed("after the connection ended", key, QUARANTINED);
    }
    sleep(LATER);
    for (key, _) in ends {
        scene.fill(&v4(), key, 0, b"x");
        scene.hits(&v4(), key, &values(&[value(key, 0, b"x")]));
    }
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, "flush_all\r\n", &[("write_requests", 1), ("flushes", 1)]);
    scene.is_closed("after flush_all", "key", QUARANTINED);
    sleep(LATER);
    scene.fill(&v4(), "key", 0, b"x");
}

#[test]
fn a_lease_from_before_a_write_does_not_fill() {
    let requests = [
        ("set key 0 0 3\r\nnew\r\n", "STORED\r\n"),
        ("set key 0 0 3 noreply\r\nnew\r\n", ""),
        ("md a2V5 b\r\n", "HD\r\n"),
        ("flush_all\r\n", "OK\r\n"),
        ("nonsense\r\n", "ERROR\r\n"),
    ];
    for (request, reply) in requests {
        for late in [false, true] {
            let Some(scene) = Scene::load(&Config::default()) else {
                return;
            };
            let mut tcp = scene.connect(&v4());
            let id = scene.id();
            scene.passes("the GET", &v4().get(id, &["key"]), LEASED);
            tcp.request(request);
            if late {
                tcp.reply(reply);
            }
            scene.replies(
                &format!("the old value after {request:?}"),
                &v4().reversed().udp(&datagram(id, &key_reply())),
                &[("get_replies", 1), ("fill_raced", 1)],
            );
            assert!(!scene.has(&v4(), "key"), "{request:?}");
        }
    }
}

#[test]
fn writes_find_keys_of_any_length() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    for len in 1..=250 {
        // Bytes that are no letters, for keys are any bytes but spaces.
        let key: Vec<u8> = (0..len).map(|nth| 0x21 + (nth * 7 + len) as u8 % 0xdf).collect();
        let delete = [b"delete ", key.as_slice(), b"\r\n"].concat();
        let encoded = format!("md {} b\r\n", base64(&key)).into_bytes();
        for (command, reply) in [(delete, "DELETED\r\n"), (encoded, "HD\r\n")] {
            // memcached takes 250 bytes of base64 at most.
            if reply == "HD\r\n" && len > 186 {
                continue;
            }
            scene.fill(&v4(), &key, 0, KEY_DATA);
            scene.asks(&mut tcp, command, WRITE);
            assert!(!scene.has(&v4(), &key), "a key of {len} bytes");
            scene.says(&mut tcp, reply, &[]);
        }
    }
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let four = |three: &[u8]| {
        let bits =
            (0..3).fold(0, |bits, nth| bits << 8 | three.get(nth).map_or(0, |b| u32::from(*b)));
        let letter = |nth: usize| {
            if nth <= three.len() {
                char::from(LETTERS[bits as usize >> (18 - 6 * nth) & 63])
            } else {
                '='
            }
        };
        (0..4).map(letter).collect::<String>()
    };
    bytes.chunks(3).map(four).collect()
}

#[test]
fn two_writers_close_the_key_until_both_are_done() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let (mut one, mut two) = (scene.connect(&v4()), scene.connect(&v6()));
    scene.asks(&mut one, "set key 0 0 1\r\n1\r\n", WRITE);
    scene.asks(&mut two, "set key 0 0 1\r\n2\r\n", WRITE);
    scene.is_closed("both", "key", DIRTY);
    scene.says(&mut one, "STORED\r\n", &[]);
    scene.is_closed("the second", "key", DIRTY);
    scene.says(&mut two, "STORED\r\n", &[]);
    scene.fill(&v4(), "key", 0, b"2");
}

#[test]
fn a_connection_may_write_again_and_again() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v6());
    for nth in 0..200 {
        scene.fill(&v4(), "key", nth, b"x");
        scene.asks(&mut tcp, "set key 0 0 1\r\nx\r\n", WRITE);
        scene.says(&mut tcp, "STORED\r\n", &[]);
        scene.asks(&mut tcp, "get key\r\n", &[]);
        scene.says(&mut tcp, key_reply(), &[]);
    }
}

/// A command that memcached refuses for its form leaves its data to be taken for
/// commands.
#[test]
fn the_data_of_a_refused_command_may_be_a_write() {
    let long = "k".repeat(251);
    for refused in [
        format!("set {long} 0 0 12\r\n"),
        "set other x 0 12\r\n".into(),
        "set other 0 x 12\r\n".into(),
        "cas other 0 0 12 x\r\n".into(),
        "set other 0 0 12 1 2 3\r\n".into(),
        "ms other 12 I I I I I I I I I I I I I I I I I I I I\r\n".into(),
    ] {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        tcp.request(format!("{refused}delete key\r\n\r\n"));
        assert!(!scene.has(&v4(), "key"), "{refused:?}");
    }
}

/// What a client may send at once: commands, their replies, the keys that they
/// change. Data looks like replies and commands.
const PIPELINE: &[(&str, &str, &[&str])] = &[
    ("get a b\r\n", "VALUE a 0 15\r\nSTORED\r\nEND\r\nxx\r\nEND\r\n", &[]),
    ("set a 0 0 23\r\n\r\ndelete z\r\nflush_all\r\n\r\n", "STORED\r\n", &["a"]),
    ("set b 0 0 0\r\n\r\n", "STORED\r\n", &["b"]),
    ("get none\r\n", "END\r\n", &[]),
    ("delete c\r\n", "NOT_FOUND\r\n", &["c"]),
    ("stats\r\n", "STAT pid 1\r\nSTAT x STORED\r\nEND\r\n", &[]),
    ("gat 100 d e f\r\n", "VALUE d 0 5\r\nEND\r\n\r\nEND\r\n", &["d", "e", "f"]),
    ("incr g 1\r\n", "5\r\n", &["g"]),
    ("mg a v\r\n", "VA 4\r\nHD\r\n\r\n", &[]),
    ("md h q\r\n", "", &["h"]),
    ("mn\r\n", "MN\r\n", &[]),
    ("set i 0 0 8 noreply\r\nSTORED\r\n\r\n", "", &["i"]),
    ("verbosity 1\r\n", "OK\r\n", &[]),
];

/// How far a pipeline has come: which of its keys are closed.
#[track_caller]
fn check_pipeline(scene: &Scene, what: &str, commands: usize, replies: usize) {
    let (mut asked, mut said) = (0, 0);
    for (nth, (command, reply, keys)) in PIPELINE.iter().enumerate() {
        asked += command.len();
        said += reply.len();
        // One without a reply waits for the next, which has one.
        let end = if reply.is_empty() { said + PIPELINE[nth + 1].1.len() } else { said };
        for key in *keys {
            if asked <= commands && replies < end {
                scene.is_closed(what, key, DIRTY);
            } else if commands + command.len() <= asked || end <= replies {
                scene.is_open(what, key);
            }
        }
    }
}

#[test]
fn replies_end_the_writes_of_a_pipeline_one_by_one() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let commands: String = PIPELINE.iter().map(|row| row.0).collect();
    let replies: String = PIPELINE.iter().map(|row| row.1).collect();
    let mut tcp = scene.connect(&v4());
    let all: Counts = &[("write_requests", 7), ("invalidations", 9)];
    for cut in 1..replies.len() {
        scene.asks(&mut tcp, &commands, all);
        check_pipeline(&scene, "before the replies", commands.len(), 0);
        scene.says(&mut tcp, &replies[..cut], &[]);
        check_pipeline(&scene, &format!("replies up to {cut}"), commands.len(), cut);
        scene.says(&mut tcp, &replies[cut..], &[]);
        check_pipeline(&scene, "after the replies", commands.len(), replies.len());
    }
    for cut in 1..commands.len() {
        tcp.request(&commands[..cut]);
        check_pipeline(&scene, &format!("commands up to {cut}"), cut, 0);
        tcp.request(&commands[cut..]);
        check_pipeline(&scene, "before the replies", commands.len(), 0);
        scene.says(&mut tcp, &replies, &[]);
        check_pipeline(&scene, "after the replies", commands.len(), replies.len());
    }
    let before = scene.bmc.counters();
    for nth in 0..commands.len() {
        tcp.request(&commands[nth..=nth]);
    }
    for nth in 0..replies.len() {
        tcp.reply(&replies[nth..=nth]);
        check_pipeline(&scene, "byte by byte", commands.len(), nth + 1);
    }
    let counted = scene.bmc.counters().since(&before);
    assert_eq!((counted.get("write_requests"), counted.get("invalidations")), (all[0].1, all[1].1));
    assert_eq!((counted.get("flushes"), counted.get("write_untracked")), (0, 0));
}

/// A second command before the first one's reply: the next reply is the first's.
#[test]
fn a_reply_ends_only_the_write_that_it_answers() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for (second, reply) in [
        ("set other 0 0 1\r\nx\r\n", "STORED\r\n"),
        ("get other\r\n", "END\r\n"),
        ("mg other v q\r\n", ""),
        ("set other 0 0 1 noreply\r\nx\r\n", ""),
    ] {
        let mut tcp = scene.connect(&v4());
        tcp.request("set first 0 0 1\r\nx\r\n");
        tcp.request(second);
        scene.says(&mut tcp, "STORED\r\n", &[]);
        scene.is_open(second, "first");
        scene.asks(&mut tcp, "set key 0 0 3\r\nnew\r\n", WRITE);
        scene.says(&mut tcp, reply, &[]);
        scene.is_closed(second, "key", DIRTY);
        scene.says(&mut tcp, "STORED\r\n", &[]);
        scene.is_open(second, "key");
    }
}

/// A write is not obeyed before the last of its data is there.
#[test]
fn a_write_is_on_its_way_until_its_last_segment() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut followed = scene.connect(&v4());
    followed.request("set followed 0 0 6 noreply\r\nnew");
    let mut mute = scene.connect(&v4());
    make_mute(&scene, &mut mute);
    scene.asks(&mut mute, "set mute 0 0 6 noreply\r\nnew", UNTRACKED);
    sleep(LATER);
    scene.is_closed("in the middle", "followed", DIRTY);
    let id = scene.id();
    scene.passes("a late GET", &v4().get(id, &["mute"]), LEASED);
    scene.asks(&mut followed, "new\r\n", &[]);
    scene.asks(&mut mute, "new\r\n", &[]);
    scene.is_closed("after the end", "followed", DIRTY);
    scene.replies(
        "the old value",
        &v4().reversed().udp(&datagram(id, &key_reply_of("mute"))),
        &[("get_replies", 1), ("fill_raced", 1)],
    );
    scene.is_closed("after the end", "mute", QUARANTINED);
}

/// The reply to an older command does not end the wait for a write's own.
#[test]
fn the_reply_to_another_command_is_not_the_reply_to_a_write() {
    let rows = [
        ("get other\r\n", "END\r\n"),
        ("get other\r\n", "VALUE other 0 1\r\nx\r\nEND\r\n"),
        ("stats\r\n", "STAT pid 1\r\nEND\r\n"),
        ("version\r\n", "VERSION 1.6.18\r\n"),
        ("verbosity 1\r\n", "OK\r\n"),
        ("mn\r\n", "MN\r\n"),
        ("mg other\r\n", "HD\r\n"),
        ("me other\r\n", "ME other exp=-1\r\n"),
        ("ma other\r\n", "HD\r\n"),
        ("mg other T30\r\n", "HD\r\n"),
        ("md b3RoZXI= b\r\n", "HD\r\n"),
        ("delete other\r\n", "DELETED\r\n"),
        ("flush_all\r\n", "OK\r\n"),
        ("nonsense\r\n", "ERROR\r\n"),
    ];
    for (request, reply) in rows {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        tcp.request(request);
        tcp.request("set key 0 0 3\r\nnew\r\n");
        tcp.reply(reply);
        // memcached answers with the old value, then obeys.
        let why = if request.starts_with("nonsense") { QUARANTINED } else { DIRTY };
        scene.is_closed(request, "key", why);
        tcp.reply("STORED\r\n");
        assert!(!scene.has(&v4(), "key"), "{request:?}");
    }
}

/// TCP sends again what is not acknowledged in time.
#[test]
fn a_write_sent_again_is_the_same_write() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let set = "set key 0 0 3\r\nnew\r\n";
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, set, WRITE);
    let again = tcp.frame(-(i32::try_from(set.len()).unwrap()), set);
    scene.counting("the set again", &[], || scene.bmc.receive_loopback(&again));
    scene.says(&mut tcp, "STORED\r\n", &[]);
    scene.counting("and again", &[], || scene.bmc.receive_loopback(&again));
    scene.fill(&v4(), "key", 0, b"new");
}

/// What bmc has seen may get lost behind it. What comes instead, perhaps cut in
/// another way, may be another text.
#[test]
fn a_write_that_was_lost_behind_bmc_may_come_back_as_another() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    scene.fill(&v4(), "other", 0, KEY_DATA);
    let mut tcp = scene.connect(&v4());
    scene.counting("a read that gets lost", &[], || {
        scene.bmc.receive_loopback(&tcp.frame(0, "get xx key\r\n"))
    });
    scene.hits(&v4(), "other", &key_reply_of("other"));
    scene.asks(&mut tcp, "delete key\r\n", UNPARSED);
    assert!(!scene.has(&v4(), "key"));
}

/// One that is missing, and came by another way or was not seen.
#[test]
fn a_gap_in_the_commands_empties_the_cache() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    tcp.exchange("version\r\n", "VERSION 1\r\n");
    scene.counting("a segment ahead", UNPARSED, || {
        scene.bmc.receive_loopback(&tcp.frame(8, "get a\r\n"))
    });
    scene.is_closed("after the gap", "key", QUARANTINED);
}

/// The reply to one write, sent again, is not the reply to the next.
#[test]
fn a_reply_sent_again_ends_no_write() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    tcp.request("set one 0 0 3\r\none\r\n");
    tcp.request("set two 0 0 3\r\ntwo\r\n");
    tcp.reply_twice("STORED\r\n", || scene.is_open("at the first", "one"));
    scene.is_closed("after the first again", "two", DIRTY);
    scene.says(&mut tcp, "STORED\r\n", &[]);
    scene.is_open("at the second", "two");
}

/// A followed connection is one no longer.
fn make_mute(scene: &Scene, tcp: &mut Connection) {
    scene.asks(tcp, "get none\r\n", &[]);
    scene.says(tcp, "STORED\r\n", UNMATCHED);
    scene.bmc.end_quarantine();
}

/// Which of two commands a reply was to may be unclear while another's is to come,
/// and no longer.
#[test]
fn a_doubt_about_a_quiet_command_ends_with_the_last_reply() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    tcp.request("md other q\r\nget other\r\n");
    tcp.reply("EX\r\n");
    tcp.exchange("get other\r\n", "END\r\n");
    tcp.reply("END\r\n");
    assert!(scene.has(&v4(), "key"));
    scene.asks(&mut tcp, "get other\r\n", &[]);
    scene.says(&mut tcp, "STORED\r\n", UNMATCHED);
    assert!(!scene.has(&v4(), "key"));
}

#[test]
fn an_unexpected_reply_empties_the_cache_before_it_leaves() {
    let rows = [
        ("", "STORED\r\n"),
        ("get other\r\n", "STORED\r\n"),
        ("get other\r\n", "HD\r\n"),
        ("set other 0 0 1\r\nx\r\n", "HD\r\n"),
        ("set other 0 0 1\r\nx\r\n", "STORED\r\nSTORED\r\n"),
        ("set other 0 0 1\r\nx\r\n", "ERROR\r\n"),
        ("set other 0 0 1\r\nx\r\n", "CLIENT_ERROR bad data chunk\r\n"),
        ("set other 0 0 1 noreply\r\nx\r\n", "CLIENT_ERROR bad data chunk\r\n"),
        ("set other 0 0 1 noreply\r\nx\r\n", "STORED\r\n"),
        ("mn\r\n", "HD\r\n"),
        ("md other\r\n", "MN\r\n"),
        ("md other\r\n", "STORED\r\n"),
        ("md other q\r\nmn\r\n", "MN\r\nHD\r\n"),
        ("set other 0 0 1\r\nx\r\n", "\u{81}\0\r\nEND\r\n\0\n"),
        ("stats\r\n", "HD\r\n"),
        ("gat 0 other\r\n", "TOUCHED\r\n"),
        ("touch other 0\r\nset other 0 0 1 noreply\r\nx\r\n", "END\r\n"),
    ];
    for (request, reply) in rows {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        println!("{request:?}, {reply:?}");
        let mut tcp = scene.connect(&v4());
        tcp.exchange("version\r\n", "VERSION 1\r\n");
        tcp.request(request);
        scene.hits(&v4(), "key", &key_reply());
        scene.says(&mut tcp, reply, UNMATCHED);
        scene.is_closed(reply, "key", QUARANTINED);
        scene.is_closed(reply, "other", QUARANTINED);
        scene.asks(&mut tcp, "delete key\r\n", UNTRACKED);
    }
}

/// Replies to gets are counted, not looked at.
#[test]
fn a_value_in_reply_to_a_write_leaves_it_pending_until_the_next_reply_tells() {
    let value = "VALUE other 0 1\r\nx\r\nEND\r\n";
    let rows = [
        ("", "END\r\n"),
        ("", value),
        ("get other\r\n", "END\r\nEND\r\n"),
        ("get other\r\n", "END\r\nVALUE other 0 1\r\nx\r\nEND\r\n"),
        ("get other\r\nget other\r\n", "END\r\nEND\r\nEND\r\n"),
    ];
    for (request, reply) in rows {
        for early in [true, false] {
            let Some(scene) = Scene::with_key(&[v4()]) else {
                return;
            };
            println!("{request:?}, {reply:?}, {early}");
            let mut tcp = scene.connect(&v4());
            tcp.exchange("version\r\n", "VERSION 1\r\n");
            tcp.request(request);
            if early {
                scene.says(&mut tcp, reply, &[]);
            }
            scene.asks(&mut tcp, "set other 0 0 1\r\nx\r\n", WRITE);
            scene.is_closed("with the write", "other", DIRTY);
            if !early {
                scene.says(&mut tcp, reply, &[]);
                scene.is_closed("with a value in reply", "other", DIRTY);
            }
            scene.hits(&v4(), "key", &key_reply());
            scene.says(&mut tcp, "STORED\r\n", UNMATCHED);
            scene.is_closed("after its reply", "other", QUARANTINED);
            scene.is_closed("after its reply", "key", QUARANTINED);
            scene.asks(&mut tcp, "delete key\r\n", UNTRACKED);
        }
    }
}

#[test]
fn any_number_of_gets_may_be_under_way() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    for (gets, each) in [(1000, "get other\r\n"), (40, "get a b c d\r\n"), (300, "gets a\r\n")] {
        let text = [&each.repeat(gets), "delete key\r\n", each].concat();
        for part in text.as_bytes().chunks(1400) {
            tcp.request(part);
        }
        for _ in 0..gets {
            tcp.reply("END\r\n");
        }
        scene.is_closed("before its reply", "key", DIRTY);
        scene.says(&mut tcp, "DELETED\r\n", &[]);
        scene.is_open("after its reply", "key");
        scene.says(&mut tcp, "VALUE other 0 1\r\nx\r\nEND\r\n", &[]);
    }
    scene.asks(&mut tcp, "delete key\r\n", WRITE);
}

/// What gat and stats reply ends as what get does.
#[test]
fn replies_that_are_alike_are_told_apart_by_their_order() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let value = "VALUE k 0 1\r\nx\r\nEND\r\n";
    for end in ["END\r\n", value] {
        tcp.exchange("get k\r\n", end);
        tcp.request("get k\r\nget k\r\ngat 0 a\r\nget k\r\nstats\r\ntouch b 0\r\n");
        for reply in [end, end] {
            scene.is_closed("before the gat's", "a", DIRTY);
            scene.says(&mut tcp, reply, &[]);
        }
        scene.is_closed("before the gat's", "a", DIRTY);
        scene.says(&mut tcp, end, &[]);
        scene.is_open("after the gat's", "a");
        scene.says(&mut tcp, end, &[]);
        scene.says(&mut tcp, "STAT pid 1\r\nEND\r\n", &[]);
        scene.is_closed("before the touch's", "b", DIRTY);
        scene.says(&mut tcp, "TOUCHED\r\n", &[]);
        scene.is_open("after the touch's", "b");
        // Nothing is owed that is like that: they are counted again.
        tcp.exchange("get k\r\n".repeat(100), end.repeat(100));
        scene.asks(&mut tcp, "set a 0 0 1 noreply\r\nx\r\n", WRITE);
        scene.is_closed("without a reply", "a", DIRTY);
        scene.asks(&mut tcp, "get k\r\n", &[]);
        scene.says(&mut tcp, end, &[]);
        scene.is_open("after another's reply", "a");
    }
}

#[test]
fn a_reply_to_nothing_that_was_seen_empties_the_cache() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = Connection::open(&v4());
    tcp.request("set key 0 0 1\r\nx\r\n");
    scene.bmc.attach();
    scene.says(&mut tcp, "STORED\r\n", UNMATCHED);
    assert!(!scene.has(&v4(), "key"));
}

#[test]
fn a_connection_is_followed_again_after_an_error() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, "set key 0 0 1\r\nxyz", WRITE);
    scene.says(&mut tcp, "CLIENT_ERROR bad data chunk\r\n", UNMATCHED);
    // memcached took the data for a command.
    scene.bmc.end_quarantine();
    scene.is_closed("after the error", "key", QUARANTINED);
    scene.asks(&mut tcp, "mn\r\n", &[]);
    scene.says(&mut tcp, "ERROR\r\nMN\r\n", UNMATCHED);
    scene.bmc.end_quarantine();
    check_healing(&scene, &mut tcp);
}

#[test]
fn a_mute_connection_stays_mute_for_a_while() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    make_mute(&scene, &mut tcp);
    let start = Instant::now();
    while start.elapsed().as_millis() < 150 {
        let before = scene.bmc.counters();
        tcp.exchange("delete key\r\n", "DELETED\r\n");
        let counted = scene.bmc.counters().since(&before);
        assert!(counted.get("write_untracked") == 1 || start.elapsed().as_millis() > 200);
    }
}

/// A client that always has a command on its way never shows which reply
/// belongs to it.
#[test]
fn a_mute_connection_stays_mute_while_something_is_owed() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    make_mute(&scene, &mut tcp);
    scene.asks(&mut tcp, "delete key\r\n", UNTRACKED);
    for _ in 0..30 {
        scene.asks(&mut tcp, "delete key\r\n", UNTRACKED);
        scene.says(&mut tcp, "DELETED\r\n", &[]);
        sleep(Duration::from_millis(15));
    }
}

#[test]
fn a_connection_from_before_is_followed_after_a_while() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut all: Vec<_> = (0..10).map(|_| Connection::open(&v4())).collect();
    for tcp in &mut all {
        tcp.exchange("version\r\n", "VERSION 1\r\n");
    }
    scene.bmc.attach();
    for tcp in &mut all {
        scene.bmc.flush();
        // Perhaps commands, but nothing that is certain.
        scene.asks(tcp, "set other 0 0 1\r\nx\r\n", UNCERTAIN);
        scene.says(tcp, "STORED\r\n", &[("flushes", 1)]);
        scene.is_closed("after the first segment", "key", QUARANTINED);
    }
    scene.bmc.end_quarantine();
    let mut tcp = all.remove(0);
    check_healing(&scene, &mut tcp);
}

#[test]
fn an_idle_connection_from_before_is_followed_at_once() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = Connection::open(&v4());
    tcp.exchange("version\r\n", "VERSION 1\r\n");
    scene.bmc.attach();
    scene.bmc.flush();
    sleep(LATER);
    scene.fill(&v4(), "key", 0, KEY_DATA);
    scene.asks(&mut tcp, "set key 0 0 1\r\nx\r\n", WRITE);
    scene.is_closed("after the first segment", "key", DIRTY);
    scene.says(&mut tcp, "STORED\r\n", &[]);
    scene.is_open("after its reply", "key");
}

#[test]
fn a_mute_connection_is_followed_after_a_pause() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    make_mute(&scene, &mut tcp);
    scene.asks(&mut tcp, "delete key\r\n", UNTRACKED);
    scene.says(&mut tcp, "DELETED\r\n", &[]);
    sleep(LATER);
    scene.asks(&mut tcp, "delete key\r\n", WRITE);
    scene.says(&mut tcp, "DELETED\r\n", &[]);
    scene.is_open("after the reply", "key");
}

/// A read may name more keys than are looked at in one piece; behind it may be
/// a write.
#[test]
fn a_write_behind_a_long_read_is_seen() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut unseen = Vec::new();
    let mut tcp = scene.connect(&v4());
    for len in (200..2000).step_by(7) {
        let get = format!("get {}\r\n", "k ".repeat(len / 2));
        let set = "set key 0 0 1\r\nx\r\n";
        for cut in [0, 150, 320, get.len() - 1, get.len(), get.len() + 3] {
            scene.fill(&v4(), "key", 0, KEY_DATA);
            let text = format!("{get}{set}");
            let cut = cut.min(text.len() - 1);
            if cut > 0 {
                tcp.request(&text[..cut]);
            }
            tcp.request(&text[cut..]);
            if scene.has(&v4(), "key") {
                unseen.push((len, cut));
                tcp = scene.connect(&v4());
            } else {
                tcp.reply("END\r\nSTORED\r\n");
            }
            if scene.has(&v4(), "key") {
                tcp.exchange("delete key\r\n", "DELETED\r\n");
            }
        }
    }
    assert!(unseen.is_empty(), "{unseen:?}");
    let counted = scene.bmc.counters();
    assert_eq!((counted.get("flushes"), counted.get("write_untracked")), (0, 0));
}

#[test]
fn pipelined_writes_are_each_seen() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for key in ["a", "b", "c", "d", "x"] {
        scene.fill(&v4(), key, 0, KEY_DATA);
    }
    let mut tcp = scene.connect(&v4());
    scene.asks(
        &mut tcp,
        "set a 0 0 9\r\nset x 0 0\r\nget b\r\nincr b 1\r\ndelete c\r\n",
        &[("write_requests", 3), ("invalidations", 3)],
    );
    for (key, there) in [("a", false), ("b", false), ("c", false), ("d", true), ("x", true)] {
        assert_eq!(scene.has(&v4(), key), there, "{key}");
    }
    // Replies in two segments, cut anywhere.
    scene.says(&mut tcp, "STORED\r\nVALUE b 0 1\r\n4\r\nEND\r\n5\r", &[]);
    scene.is_closed("before the end of its reply", "b", DIRTY);
    scene.says(&mut tcp, "\nDELETED\r\n", &[]);
    for key in ["a", "b", "c"] {
        scene.fill(&v4(), key, 0, b"new");
    }
}

#[test]
fn gat_touches_each_of_its_keys() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    for command in ["gat", "gats"] {
        for key in ["a", "b", "c", "d"] {
            scene.fill(&v4(), key, 0, KEY_DATA);
        }
        let counts = &[("write_requests", 1), ("invalidations", 3)];
        scene.asks(&mut tcp, format!("{command} 100 a b  c \r\n"), counts);
        for key in ["a", "b", "c"] {
            scene.is_closed(command, key, DIRTY);
        }
        scene.hits(&v4(), "d", &key_reply_of("d"));
        scene.says(&mut tcp, "VALUE a 0 1\r\nx\r\nVALUE b 0 1\r\nx\r\n", &[]);
        for key in ["a", "b", "c"] {
            scene.is_closed(command, key, DIRTY);
        }
        scene.says(&mut tcp, "END\r\n", &[]);
        for key in ["a", "b", "c"] {
            scene.is_open(command, key);
        }
        tcp.exchange("delete d\r\ndelete a\r\n", "DELETED\r\nDELETED\r\n");
    }
}

#[test]
fn a_value_that_looks_like_a_command_is_data() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    scene.fill(&v4(), "other", 0, KEY_DATA);
    let mut tcp = scene.connect(&v4());
    let data = "\r\nset other 0 0 1\r\nx\r\ndelete other\r\nflush_all\r\n";
    scene.asks(&mut tcp, format!("set key 0 0 {}\r\n{data}\r\n", data.len()), WRITE);
    assert!(!scene.has(&v4(), "key"));
    scene.hits(&v4(), "other", &key_reply_of("other"));
}

#[test]
fn a_value_may_come_in_many_segments() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    scene.fill(&v4(), "other", 0, KEY_DATA);
    let mut tcp = scene.connect(&v4());
    scene.asks(&mut tcp, "set key 0 0 5000\r\n", WRITE);
    for _ in 0..5 {
        let part = format!("{:1<1000}", "delete other\r\nflush_all\r\n");
        scene.asks(&mut tcp, part, &[]);
        scene.is_closed("within the value", "key", DIRTY);
    }
    scene.asks(&mut tcp, "\r\n", &[]);
    scene.is_closed("after the value", "key", DIRTY);
    scene.says(&mut tcp, "STORED\r\n", &[]);
    scene.hits(&v4(), "other", &key_reply_of("other"));
    scene.fill(&v4(), "key", 0, b"new");
}

#[test]
fn reads_over_tcp_change_nothing() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = scene.connect(&v4());
    let long = format!("get {}\r\n", "k ".repeat(1000));
    let rows = [
        ("get key\r\n", "VALUE key 0 1\r\nx\r\nEND\r\n"),
        ("gets key other\r\n", "END\r\n"),
        ("mg key v\r\n", "EN\r\n"),
        ("mg key OTNRE v\r\n", "VA 1 OTNRE\r\nx\r\n"),
        ("mg key t f s v k q h l\r\n", ""),
        ("mn\r\n", "MN\r\n"),
        ("me key\r\n", "EN\r\n"),
        ("version\r\n", "VERSION 1.6.18\r\n"),
        ("stats\r\n", "STAT pid 1\r\nEND\r\n"),
        ("stats items\r\n", "END\r\n"),
        ("verbosity 1\r\n", "OK\r\n"),
        ("get key\r\nget key\r\n", "END\r\nEND\r\n"),
        (&long, "END\r\n"),
        ("quit\r\n", ""),
    ];
    for (request, reply) in rows {
        scene.asks(&mut tcp, request, &[]);
        scene.says(&mut tcp, reply, &[]);
        scene.hits(&v4(), "key", &key_reply());
    }
    scene.counting("the end", &[], || tcp.finish());
    scene.hits(&v4(), "key", &key_reply());
}

/// Again when it is certain to have taken effect.
#[test]
fn flush_all_empties_the_cache() {
    for request in ["flush_all\r\n", "flush_all 0\r\n", "flush_all 10\r\n", "flush_all noreply\r\n"]
    {
        let Some(scene) = Scene::with_key(&[v4(), v6()]) else {
            return;
        };
        let mut tcp = scene.connect(&v4());
        scene.asks(&mut tcp, request, &[("write_requests", 1), ("flushes", 1)]);
        assert!(!scene.has(&v4(), "key"), "{request:?}");
        assert!(!scene.has(&v6(), "key"), "{request:?}");
        scene.is_closed("before the reply", "key", QUARANTINED);
        scene.bmc.end_quarantine();
        let id = scene.id();
        scene.passes("a GET before the reply", &v4().get(id, &["key"]), LEASED);
        if request.contains("noreply") {
            tcp.exchange("mn\r\n", "MN\r\n");
        } else {
            scene.says(&mut tcp, "OK\r\n", &[]);
        }
        scene.replies(
            "the old value",
            &v4().reversed().udp(&datagram(id, &key_reply())),
            &[("get_replies", 1), ("fill_raced", 1)],
        );
        scene.asks(&mut tcp, "delete key\r\n", WRITE);
    }
}

#[test]
fn writes_over_udp_count_as_without_reply() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let rows = ["set a 0 0 1\r\nx\r\n", "delete b\r\n", "incr c 1\r\n", "gat 1 d\r\n", "md e\r\n"];
    for request in rows {
        let word = if request.starts_with("gat") { 2 } else { 1 };
        let key = request.split_whitespace().nth(word).unwrap();
        scene.fill(&v4(), key, 0, KEY_DATA);
        scene.passes(
            request,
            &v4().udp(&datagram(scene.id(), request.as_bytes())),
            &[
                ("pass_command", 1),
                ("write_requests", 1),
                ("invalidations", 1),
                ("write_untracked", 1),
            ],
        );
        scene.passes(
            request,
            &v4().get(scene.id(), &[key]),
            &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_quarantine", 1)],
        );
    }
}

/// Whatever it looks like and wherever it comes from: memcached obeys it. Of the
/// TCP segments' connections bmc knows nothing.
#[test]
fn no_write_goes_unseen() {
    let set = "set key 0 0 3\r\nnew\r\n";
    let tcp = |flow: Flow| flow.tcp(1000, 1, PSH_ACK, set.as_bytes());
    let udp = |flow: Flow, text: &str| flow.udp(&datagram(9, text.as_bytes()));
    let rows = [
        ("a public source", tcp(v4().from("192.0.2.1:1"))),
        ("a public IPv6 source", tcp(v6().from("[2001:db8::1]:1"))),
        ("another address of memcached's", tcp(v4().to("10.9.9.9:11211"))),
        ("over IPv6", tcp(v6())),
        ("over a VLAN", tcp(v4().vlan(9))),
        ("IPv4 options", with_ipv4_options(tcp(v4()))),
        (
            "an IPv6 extension header",
            with_ipv6_extension(tcp(v6()), DESTINATION_OPTIONS.0, DESTINATION_OPTIONS.1),
        ),
        ("a padded frame", edit(tcp(v4()), |frame| frame.resize(frame.len() + 6, 0))),
        ("the last of a connection", v4().tcp(1000, 1, FIN_ACK, set.as_bytes())),
        ("with the handshake", v4().tcp(1000, 0, SYN, set.as_bytes())),
        ("UDP, a public source", udp(v4().from("192.0.2.1:1"), set)),
        ("UDP behind a get", udp(v4(), &format!("get key\r\n{set}"))),
        ("UDP behind a get of another", udp(v4(), &format!("get other\r\n{set}"))),
        ("UDP, IPv4 options", with_ipv4_options(udp(v4(), set))),
        (
            "UDP, an IPv6 extension header",
            with_ipv6_extension(udp(v6(), set), DESTINATION_OPTIONS.0, DESTINATION_OPTIONS.1),
        ),
        ("UDP without a source port", udp(v4().with_port(0), set)),
        ("UDP, multicast", udp(v4().with_mac([1, 0, 0x5e, 1, 0, 1]), set)),
        ("UDP with a sequence number", v4().udp(&part(9, 7, 1, set.as_bytes()))),
        ("binary over UDP", {
            let mut text = b"\x80\x01\0\x03\x08\0\0\0\0\0\0\x0e\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
            text.extend(b"\0\0\0\0\0\0\0\0keynew");
            v4().udp(&datagram(9, &text))
        }),
        ("binary over TCP", {
            let mut text = b"\x80\x01\0\x03\x08\0\0\0\0\0\0\x0e\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
            text.extend(b"\0\0\0\0\0\0\0\0keynew");
            v4().tcp(1000, 1, PSH_ACK, &text)
        }),
    ];
    let mut unseen = Vec::new();
    for (what, frame) in rows {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        scene.hits(&v4(), "key", &key_reply());
        assert_eq!(scene.bmc.receive(&frame), Verdict::Passed, "{what}");
        if scene.has(&v4(), "key") {
            unseen.push(what);
        }
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
}

#[test]
fn a_segment_of_no_known_connection_empties_the_cache() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    scene.passes("a segment", &v4().tcp(1, 1, PSH_ACK, b"get key\r\n"), UNFOLLOWED);
    scene.is_closed("after it", "key", QUARANTINED);
}

/// However memcached listens, and however a client reaches it.
#[test]
fn connections_of_all_kinds_are_followed() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    scene.bmc.attach();
    let local = |source, target| Flow::new(source, target);
    for (what, mut tcp) in [
        ("IPv4", Connection::open(&v4())),
        ("IPv6", Connection::open(&v6())),
        ("IPv4, any address", Connection::open_to(&v4(), 0, "0.0.0.0:11211".parse().unwrap())),
        ("IPv6, any address", Connection::open_to(&v6(), 0, "[::]:11211".parse().unwrap())),
        ("IPv4 to IPv6", Connection::open_to(&v4(), 0, "[::]:11211".parse().unwrap())),
        ("loopback", Connection::open(&local("127.0.0.1:1", "127.0.0.1:11211"))),
        ("IPv6 loopback", Connection::open(&local("[::1]:1", "[::1]:11211"))),
        ("to itself", Connection::open(&local("10.1.0.1:1", "10.1.0.1:11211"))),
    ] {
        scene.fill(&v4(), "key", 0, KEY_DATA);
        scene.asks(&mut tcp, "set key 0 0 1\r\nx\r\n", WRITE);
        scene.is_closed(what, "key", DIRTY);
        scene.says(&mut tcp, "STORED\r\n", &[]);
        scene.is_open(what, "key");
    }
}

#[test]
fn a_write_split_over_segments_is_seen() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let text = "set key 0 0 3\r\nnew\r\n";
    for at in 1..text.len() {
        let what = format!("split at {at}");
        let mut tcp = scene.connect(&v4());
        scene.fill(&v4(), "key", 0, KEY_DATA);
        tcp.request(&text[..at]);
        tcp.request(&text[at..]);
        // From here on memcached may have obeyed, and a GET may find the new.
        scene.is_closed(&what, "key", DIRTY);
        scene.says(&mut tcp, "STORED\r\n", &[]);
        scene.is_open(&what, "key");
    }
}

/// The second half of a command may look like another one.
#[test]
fn half_a_command_is_put_together_with_its_other_half() {
    let rows = [
        ("delete ", "version\r\n", "version"),
        ("touch ", "get 1\r\n", "get"),
        ("set ", "gets 0 0 9\r\nversion\r\n\r\n", "gets"),
        ("set incr 0 0 ", "2\r\nxx\r\n", "incr"),
    ];
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut all: Vec<_> = rows.iter().map(|_| scene.connect(&v4())).collect();
    for (tcp, (first, _, key)) in all.iter_mut().zip(rows) {
        scene.asks(tcp, first, &[]);
        scene.fill(&v4(), key, 0, KEY_DATA);
    }
    // A slow client.
    sleep(LATER);
    for (tcp, (_, second, key)) in all.iter_mut().zip(rows) {
        scene.asks(tcp, second, WRITE);
        scene.is_closed(second, key, DIRTY);
    }
}

#[test]
fn loopback_is_watched_for_writes_only() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let local = v4().from("10.1.0.1:40000").with_mac([0; 6]);
    let get = local.get(1, &["key"]);
    assert_eq!(scene.bmc.receive_loopback(&get), Verdict::Passed);
    let miss = local.get(2, &["none"]);
    assert_eq!(scene.bmc.receive_loopback(&miss), Verdict::Passed);
    let reply = values(&[value("none", 0, b"x")]);
    scene.bmc.send_loopback(&local.reversed().udp(&datagram(2, &reply)));
    assert!(!scene.has(&v4(), "none"));
    scene.hits(&v4(), "key", &key_reply());
}
