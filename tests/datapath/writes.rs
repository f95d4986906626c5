// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Writes: from when one is seen until nothing old can come back.

use std::thread::sleep;
use std::time::Duration;

use crate::fixture::Config;
use crate::fixture::Verdict;
use crate::packet::Connection;
use crate::packet::Flow;
use crate::packet::datagram;
use crate::packet::part;
use crate::packet::value;
use crate::packet::values;
use crate::scene::Counts;
use crate::scene::DESTINATION_OPTIONS;
use crate::scene::KEY_DATA;
use crate::scene::LEASED;
use crate::scene::Scene;
use crate::scene::edit;
use crate::scene::key_reply;
use crate::scene::key_reply_of;
use crate::scene::v4;
use crate::scene::v6;
use crate::scene::with_ipv4_options;
use crate::scene::with_ipv6_extension;

/// How bmc makes sure that nothing from before a write is learnt after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// It recognises the write's reply.
    Reply,
    /// The reply is an error, perhaps not the only one: it waits for a while.
    Error,
    /// It cannot, and waits for a while.
    Later,
    /// It does not know the key either: the same for every key.
    LaterForAll,
}

/// How long that while is, and a little more.
const LATER: Duration = Duration::from_millis(1100);

impl Until {
    fn counts(self) -> Counts {
        match self {
            Self::Reply | Self::Error => &[("write_requests", 1), ("invalidations", 1)],
            Self::Later => &[("write_requests", 1), ("invalidations", 1), ("write_untracked", 1)],
            Self::LaterForAll => &[("tcp_unparsed", 1), ("flushes", 1)],
        }
    }
}

/// A command that changes what a GET of "key" returns, and memcached's reply.
struct Write {
    request: &'static str,
    reply: &'static str,
    until: Until,
}

const fn write(request: &'static str, reply: &'static str, until: Until) -> Write {
    Write { request, reply, until }
}

const WRITES: &[Write] = &[
    write("set key 0 0 5\r\nvalue\r\n", "STORED\r\n", Until::Reply),
    write("set key 4294967295 2592000 0\r\n\r\n", "STORED\r\n", Until::Reply),
    write("set key 0 -1 5\r\nvalue\r\n", "STORED\r\n", Until::Reply),
    write("set key 0 0 2000000\r\n", "SERVER_ERROR object too large for cache\r\n", Until::Error),
    write("add key 0 0 5\r\nvalue\r\n", "NOT_STORED\r\n", Until::Reply),
    write("replace key 0 0 5\r\nvalue\r\n", "STORED\r\n", Until::Reply),
    write("append key 0 0 5\r\nvalue\r\n", "STORED\r\n", Until::Reply),
    write("prepend key 0 0 5\r\nvalue\r\n", "STORED\r\n", Until::Reply),
    write("cas key 0 0 5 77\r\nvalue\r\n", "EXISTS\r\n", Until::Reply),
    write("incr key 1\r\n", "5\r\n", Until::Reply),
    write(
        "decr key 1\r\n",
        "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
        Until::Error,
    ),
    write("delete key\r\n", "DELETED\r\n", Until::Reply),
    write("delete key 0\r\n", "NOT_FOUND\r\n", Until::Reply),
    write("touch key 1\r\n", "TOUCHED\r\n", Until::Reply),
    write("ms key 5\r\nvalue\r\n", "HD\r\n", Until::Reply),
    write("ms key 5 T0 F1 I\r\nvalue\r\n", "HD\r\n", Until::Reply),
    write("md key\r\n", "HD\r\n", Until::Reply),
    write("md key k\r\n", "HD kkey\r\n", Until::Reply),
    // Any number of spaces, and a bare line feed, are fine with memcached.
    write("set  key 0  0 5 \r\nvalue\r\n", "STORED\r\n", Until::Reply),
    write("delete key\n", "DELETED\r\n", Until::Reply),
    write("gat 1 key\r\n", "VALUE key 0 1\r\nx\r\nEND\r\n", Until::Reply),
    write("gats 1 key\r\n", "VALUE key 0 1 7\r\nx\r\nEND\r\n", Until::Reply),
    write("ma key\r\n", "HD\r\n", Until::Reply),
    write("ma key v\r\n", "VA 1\r\n6\r\n", Until::Reply),
    write("mg key v T30\r\n", "VA 1\r\nx\r\n", Until::Reply),
    write("mg key N30 v\r\n", "EN\r\n", Until::Reply),
    write("mg key v R30\r\n", "VA 1 W\r\nx\r\n", Until::Reply),
    // A key in base64.
    write("ms a2V5 5 b\r\nvalue\r\n", "HD\r\n", Until::LaterForAll),
    write("md a2V5 b k\r\n", "HD ka2V5 b\r\n", Until::LaterForAll),
    write("mg a2V5 b T1\r\n", "HD\r\n", Until::LaterForAll),
    // No reply, or none if all is well.
    write("set key 0 0 1 noreply\r\nx\r\n", "", Until::Later),
    write("add key 0 0 1 noreply\r\nx\r\n", "", Until::Later),
    write("cas key 0 0 1 9 noreply\r\nx\r\n", "", Until::Later),
    write("delete key noreply\r\n", "", Until::Later),
    write("incr key 1 noreply\r\n", "", Until::Later),
    write("touch key 1 noreply\r\n", "", Until::Later),
    write("ms key 1 q\r\nx\r\n", "", Until::Later),
    write("md key q\r\n", "", Until::Later),
    // A command that memcached will learn one day.
    write("swap key other\r\n", "ERROR\r\n", Until::LaterForAll),
];

#[test]
fn writes_over_tcp_invalidate() {
    for flow in [v4(), v6(), v4().qinq(5, 6)] {
        for write in WRITES {
            let what = format!("{:?} from {}", write.request, flow.source);
            println!("{what}");
            let Some(scene) = Scene::with_key(std::slice::from_ref(&flow)) else {
                return;
            };
            scene.fill(&flow, "other", 0, KEY_DATA);

            let mut tcp = Connection::new(flow.clone().with_port(50_001));
            scene.passes(&what, &tcp.request(write.request), write.until.counts());
            check_closed(&scene, &flow, &what, write.until);
            if !write.reply.is_empty() {
                scene.replies(&what, &tcp.reply(write.reply), &[]);
            }
            if write.until == Until::LaterForAll {
                assert!(!scene.has(&flow, "other"), "{what}");
            } else {
                scene.hits(&flow, "other", &key_reply_of("other"));
            }
            if write.until == Until::Reply {
                scene.fill(&flow, "key", 0, b"new");
                scene.hits(&flow, "key", &values(&[value("key", 0, b"new")]));
            } else {
                let until = if write.until == Until::Error { Until::Later } else { write.until };
                check_closed(&scene, &flow, &what, until);
            }
        }
    }
}

#[test]
fn learning_resumes_after_a_write_without_reply() {
    for request in ["set key 0 0 1 noreply\r\nx\r\n", "md a2V5 b\r\n", "flush_all\r\n"] {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        let mut tcp = Connection::new(v4().with_port(50_001));
        scene.bmc.receive(&tcp.request(request));
        check_closed(&scene, &v4(), request, Until::Later);
        sleep(LATER);
        scene.fill(&v4(), "key", 0, b"x");
        scene.hits(&v4(), "key", &values(&[value("key", 0, b"x")]));
    }
}

/// While a write is on its way, its key is neither answered nor learnt.
#[track_caller]
fn check_closed(scene: &Scene, flow: &Flow, what: &str, until: Until) {
    let counts: Counts = match until {
        Until::Reply | Until::Error => {
            &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_dirty", 1)]
        }
        Until::Later | Until::LaterForAll => {
            &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_quarantine", 1)]
        }
    };
    let id = scene.id();
    scene.passes(&format!("a GET during {what}"), &flow.get(id, &["key"]), counts);
    scene.replies(
        &format!("its reply during {what}"),
        &flow.reversed().udp(&datagram(id, &key_reply())),
        &[("get_replies", 1), ("fill_unleased", 1)],
    );
}

#[test]
fn a_lease_from_before_a_write_does_not_fill() {
    let requests = [
        ("set key 0 0 3\r\nnew\r\n", "STORED\r\n"),
        ("set key 0 0 3 noreply\r\nnew\r\n", ""),
        ("md a2V5 b\r\n", "HD\r\n"),
        ("flush_all\r\n", "OK\r\n"),
    ];
    for (request, reply) in requests {
        for late in [false, true] {
            let Some(scene) = Scene::load(&Config::default()) else {
                return;
            };
            let mut tcp = Connection::new(v4().with_port(50_001));
            let id = scene.id();
            scene.passes("the GET", &v4().get(id, &["key"]), LEASED);
            scene.bmc.receive(&tcp.request(request));
            if late && !reply.is_empty() {
                scene.bmc.send(&tcp.reply(reply));
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
    let mut tcp = Connection::new(v4().with_port(50_001));
    for len in 1..=250 {
        // Bytes that are no letters, for keys are any bytes but spaces.
        let key: Vec<u8> = (0..len).map(|nth| 0x21 + (nth * 7 + len) as u8 % 0xdf).collect();
        scene.fill(&v4(), &key, 0, KEY_DATA);
        let request = [b"delete ", key.as_slice(), b"\r\n"].concat();
        let what = format!("a key of {len} bytes");
        scene.passes(&what, &tcp.request(request), Until::Reply.counts());
        assert!(!scene.has(&v4(), &key), "{what}");
        scene.replies(&what, &tcp.reply("DELETED\r\n"), &[]);
    }
}

#[test]
fn two_writers_close_the_key_until_both_are_done() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut one = Connection::new(v4().with_port(50_001));
    let mut two = Connection::new(v6().with_port(50_002));
    let counts = Until::Reply.counts();
    scene.passes("one", &one.request("set key 0 0 1\r\n1\r\n"), counts);
    scene.passes("two", &two.request("set key 0 0 1\r\n2\r\n"), counts);
    check_closed(&scene, &v4(), "both", Until::Reply);
    scene.replies("one", &one.reply("STORED\r\n"), &[]);
    check_closed(&scene, &v4(), "the second", Until::Reply);
    scene.replies("two", &two.reply("STORED\r\n"), &[]);
    scene.fill(&v4(), "key", 0, b"2");
}

#[test]
fn a_connection_may_write_again_and_again() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = Connection::new(v6().vlan(7).with_port(50_001));
    for nth in 0..200 {
        scene.fill(&v4(), "key", nth, b"x");
        let set = tcp.request("set key 0 0 1\r\nx\r\n");
        scene.passes("a set", &set, Until::Reply.counts());
        scene.passes("the acknowledgement", &tcp.acknowledge(), &[]);
        scene.replies("its reply", &tcp.reply("STORED\r\n"), &[]);
        let get = tcp.request("get key\r\n");
        scene.passes("a get", &get, &[]);
        scene.replies("its reply", &tcp.reply(key_reply()), &[]);
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
        let mut tcp = Connection::new(v4().with_port(50_001));
        scene.bmc.receive(&tcp.request(format!("{refused}delete key\r\n\r\n")));
        assert!(!scene.has(&v4(), "key"), "{refused:?}");
    }
}

/// A second command before the first one's reply: the next reply is the first's.
#[test]
fn a_reply_ends_only_the_write_that_it_answers() {
    for second in ["set other 0 0 1\r\nx\r\n", "get other\r\n", "mg other v q\r\n"] {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        let mut tcp = Connection::new(v4().with_port(50_001));
        scene.bmc.receive(&tcp.request("set first 0 0 1\r\nx\r\n"));
        scene.bmc.receive(&tcp.request(second));
        scene.bmc.send(&tcp.reply("STORED\r\n"));
        scene.bmc.receive(&tcp.request("set key 0 0 3\r\nnew\r\n"));
        // The reply to the second, and a GET before the third is obeyed.
        scene.bmc.send(&tcp.reply("STORED\r\n"));
        let id = scene.id();
        scene.bmc.receive(&v4().get(id, &["key"]));
        scene.bmc.send(&v4().reversed().udp(&datagram(id, &key_reply())));
        scene.bmc.send(&tcp.reply("STORED\r\n"));
        assert!(!scene.has(&v4(), "key"), "{second:?}");
    }
}

/// A write is not obeyed before the last of its data is there.
#[test]
fn a_write_is_on_its_way_until_its_last_segment() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut tcp = Connection::new(v4().with_port(50_001));
    scene.bmc.receive(&tcp.request("set key 0 0 6 noreply\r\nnew"));
    sleep(LATER);
    let id = scene.id();
    scene.bmc.receive(&v4().get(id, &["key"]));
    scene.bmc.receive(&tcp.request("new\r\n"));
    scene.bmc.send(&v4().reversed().udp(&datagram(id, &key_reply())));
    assert!(!scene.has(&v4(), "key"));
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
    let mut learnt = Vec::new();
    for (request, reply) in rows {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        let mut tcp = Connection::new(v4().with_port(50_001));
        scene.bmc.receive(&tcp.request(request));
        scene.bmc.receive(&tcp.request("set key 0 0 3\r\nnew\r\n"));
        scene.bmc.send(&tcp.reply(reply));
        // memcached answers with the old value, then obeys.
        let id = scene.id();
        scene.bmc.receive(&v4().get(id, &["key"]));
        scene.bmc.send(&v4().reversed().udp(&datagram(id, &key_reply())));
        scene.bmc.send(&tcp.reply("STORED\r\n"));
        if scene.has(&v4(), "key") {
            learnt.push(request);
        }
    }
    assert!(learnt.is_empty(), "{learnt:#?}");
}

/// TCP sends again what is not acknowledged in time.
#[test]
fn a_write_sent_again_is_the_same_write() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = Connection::new(v4().with_port(50_001));
    let set = tcp.request("set key 0 0 3\r\nnew\r\n");
    scene.bmc.receive(&set);
    scene.bmc.receive(&set);
    assert!(!scene.has(&v4(), "key"));
    scene.bmc.send(&tcp.reply("STORED\r\n"));
    sleep(LATER);
    scene.fill(&v4(), "key", 0, b"new");
}

/// The reply to one write, sent again, is not the reply to the next.
#[test]
fn a_reply_sent_again_ends_no_write() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = Connection::new(v4().with_port(50_001));
    scene.bmc.receive(&tcp.request("set key 0 0 3\r\none\r\n"));
    let reply = tcp.reply("STORED\r\n");
    scene.bmc.send(&reply);
    scene.bmc.receive(&tcp.request("set key 0 0 3\r\ntwo\r\n"));
    scene.bmc.send(&reply);
    // memcached has not obeyed yet, and may be asked.
    let id = scene.id();
    scene.bmc.receive(&v4().get(id, &["key"]));
    scene.bmc.send(&v4().reversed().udp(&datagram(id, &key_reply())));
    scene.bmc.send(&tcp.reply("STORED\r\n"));
    assert!(!scene.has(&v4(), "key"));
}

#[test]
fn pipelined_writes_are_each_seen() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for key in ["a", "b", "c", "d", "x"] {
        scene.fill(&v4(), key, 0, KEY_DATA);
    }
    let mut tcp = Connection::new(v4().with_port(50_001));
    scene.passes(
        "three writes and a read",
        &tcp.request("set a 0 0 9\r\nset x 0 0\r\nget b\r\nincr b 1\r\ndelete c\r\n"),
        &[("write_requests", 3), ("invalidations", 3), ("write_untracked", 3)],
    );
    for (key, there) in [("a", false), ("b", false), ("c", false), ("d", true), ("x", true)] {
        assert_eq!(scene.has(&v4(), key), there, "{key}");
    }
    // Replies in two segments, cut anywhere.
    scene.bmc.send(&tcp.reply("STORED\r\nVALUE b 0 1\r\n4\r\nEND\r\n5\r"));
    scene.bmc.send(&tcp.reply("\nDELETED\r\n"));
    sleep(LATER);
    for key in ["a", "b", "c"] {
        scene.fill(&v4(), key, 0, b"new");
    }
}

#[test]
fn gat_touches_each_of_its_keys() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    for key in ["a", "b"] {
        scene.fill(&v4(), key, 0, KEY_DATA);
    }
    let mut tcp = Connection::new(v4().with_port(50_001));
    scene.bmc.receive(&tcp.request("gat 100 a b\r\n"));
    assert!(!scene.has(&v4(), "a"));
    assert!(!scene.has(&v4(), "b"));
}

#[test]
fn a_value_that_looks_like_a_command_is_data() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    scene.fill(&v4(), "other", 0, KEY_DATA);
    let mut tcp = Connection::new(v4().with_port(50_001));
    let data = "\r\nset other 0 0 1\r\nx\r\ndelete other\r\nflush_all\r\n";
    let request = format!("set key 0 0 {}\r\n{data}\r\n", data.len());
    scene.passes("a value of commands", &tcp.request(request), Until::Reply.counts());
    assert!(!scene.has(&v4(), "key"));
    scene.hits(&v4(), "other", &key_reply_of("other"));
}

#[test]
fn a_value_may_come_in_many_segments() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    scene.fill(&v4(), "other", 0, KEY_DATA);
    let mut tcp = Connection::new(v4().with_port(50_001));
    let head = tcp.request("set key 0 0 5000\r\n");
    scene.passes("the line", &head, Until::Reply.counts());
    for _ in 0..5 {
        let part = format!("{:1<1000}", "delete other\r\nflush_all\r\n");
        scene.passes("a part of the value", &tcp.request(part), &[]);
        check_closed(&scene, &v4(), "the value", Until::Reply);
    }
    scene.passes("its end", &tcp.request("\r\n"), &[]);
    check_closed(&scene, &v4(), "the write", Until::Reply);
    scene.replies("its reply", &tcp.reply("STORED\r\n"), &[]);
    scene.hits(&v4(), "other", &key_reply_of("other"));
    scene.fill(&v4(), "key", 0, b"new");
}

#[test]
fn reads_over_tcp_change_nothing() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = Connection::new(v4().with_port(50_001));
    let rows = [
        ("get key\r\n", "VALUE key 0 1\r\nx\r\nEND\r\n"),
        ("gets key other\r\n", "END\r\n"),
        ("mg key v\r\n", "EN\r\n"),
        ("mg key t f s v k q h l\r\n", ""),
        ("mg key OTNRE v\r\n", "VA 1 OTNRE\r\nx\r\n"),
        ("me key\r\n", "EN\r\n"),
        ("mn\r\n", "MN\r\n"),
        ("version\r\n", "VERSION 1.6.18\r\n"),
        ("stats\r\n", "STAT pid 1\r\nEND\r\n"),
        ("stats items\r\n", "END\r\n"),
        ("verbosity 1\r\n", "OK\r\n"),
        ("get key\r\nget key\r\n", "END\r\nEND\r\n"),
        ("quit\r\n", ""),
    ];
    for (request, reply) in rows {
        scene.passes(request, &tcp.request(request), &[]);
        if !reply.is_empty() {
            scene.replies(request, &tcp.reply(reply), &[]);
        }
        scene.hits(&v4(), "key", &key_reply());
    }
}

#[test]
fn flush_all_empties_the_cache() {
    for request in ["flush_all\r\n", "flush_all 0\r\n", "flush_all 10\r\n", "flush_all noreply\r\n"]
    {
        let Some(scene) = Scene::with_key(&[v4(), v6()]) else {
            return;
        };
        let mut tcp = Connection::new(v4().with_port(50_001));
        scene.passes(request, &tcp.request(request), &[("write_requests", 1), ("flushes", 1)]);
        assert!(!scene.has(&v4(), "key"), "{request:?}");
        assert!(!scene.has(&v6(), "key"), "{request:?}");
        scene.bmc.send(&tcp.reply("OK\r\n"));
        assert!(!scene.has(&v4(), "key"), "{request:?}");
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

/// Whatever it looks like and wherever it comes from: memcached obeys it.
#[test]
fn no_write_goes_unseen() {
    let set = "set key 0 0 3\r\nnew\r\n";
    let tcp = |flow: Flow| Connection::new(flow.with_port(50_001)).request(set);
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
        ("the first of a connection", {
            let flow = v4().with_port(50_001);
            flow.tcp(0, 0, 0x18, set.as_bytes())
        }),
        ("the last of a connection", {
            let flow = v4().with_port(50_001);
            flow.tcp(1000, 1, 0x19, set.as_bytes())
        }),
        ("with the handshake", {
            let flow = v4().with_port(50_001);
            flow.tcp(1000, 0, 0x02, set.as_bytes())
        }),
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
            Connection::new(v4().with_port(50_001)).request(text)
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
fn a_segment_that_starts_in_the_middle_may_have_been_a_write() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let mut tcp = Connection::new(v4().with_port(50_001));
    scene.bmc.receive(&tcp.request("y 0 0 3\r\nnew\r\n"));
    scene.bmc.send(&tcp.reply("STORED\r\n"));
    assert!(!scene.has(&v4(), "key"));
}

#[test]
fn a_write_split_over_segments_is_seen() {
    let text = "set key 0 0 3\r\nnew\r\n";
    for at in 1..text.len() {
        let Some(scene) = Scene::with_key(&[v4()]) else {
            return;
        };
        let mut tcp = Connection::new(v4().with_port(50_001));
        scene.bmc.receive(&tcp.request(&text[..at]));
        scene.bmc.receive(&tcp.request(&text[at..]));
        // From here on memcached may have obeyed, and a GET may find the new.
        assert!(!scene.has(&v4(), "key"), "split at {at}, before the reply");
        scene.bmc.send(&tcp.reply("STORED\r\n"));
        assert!(!scene.has(&v4(), "key"), "split at {at}");
    }
}

/// The second half of a command may look like another one.
#[test]
fn half_a_command_makes_the_next_segment_unknown() {
    let rows = [
        ("delete ", "version\r\n", "version"),
        ("touch ", "get 1\r\n", "get"),
        ("set ", "get 0 0 9\r\nversion\r\n\r\n", "get"),
        ("set get 0 0 ", "2\r\nxx\r\n", "get"),
    ];
    for (first, second, key) in rows {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        let mut tcp = Connection::new(v4().with_port(50_001));
        scene.bmc.receive(&tcp.request(first));
        // A slow client: by then learning has resumed.
        sleep(LATER);
        scene.fill(&v4(), key, 0, KEY_DATA);
        scene.bmc.receive(&tcp.request(second));
        assert!(!scene.has(&v4(), key), "{first:?}, {second:?}");
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

    let flow = Flow::new("127.0.0.1:50001", "127.0.0.1:11211").with_mac([0; 6]);
    let mut tcp = Connection::new(flow);
    scene.bmc.receive_loopback(&tcp.request("set key 0 0 1\r\nx\r\n"));
    check_closed(&scene, &v4(), "a write over loopback", Until::Reply);
    scene.bmc.send_loopback(&tcp.reply("STORED\r\n"));
    scene.fill(&v4(), "key", 0, b"x");
}
