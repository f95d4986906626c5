// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the table of commands in bpf/proto.h says of memcached, said by a real
//! one; and that bmc keeps what it has while clients say it. Root only.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod forms;

use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use common::Bmc;
use common::Memcached;
use common::Net;
use common::PATIENCE;
use common::Tcp;
use common::Udp;
use common::can_run;
use common::eventually;
use common::total;
use forms::HARMLESS;
use forms::ODD_WRITES;
use forms::STREAMS;

/// What tests attach with: entries outlive them.
const LASTING: &[&str] = &["--unknown-ttl", "60s"];
/// Long enough for a datagram that may come.
const A_WHILE: Duration = Duration::from_millis(20);

/// How many replies these are.
fn replies(text: &str) -> usize {
    if text.ends_with("END\r\n") { 1 } else { text.lines().count() }
}

/// All that memcached replies before it has said MN. What the command left over of
/// its line may be one more, which it does not know.
fn answer(tcp: &mut Tcp, request: &[u8]) -> String {
    tcp.send(&[request, b"mn\r\n"].concat());
    let mut text = String::new();
    loop {
        match tcp.line().as_str() {
            "MN" => return text,
            line => text.push_str(&format!("{line}\r\n")),
        }
    }
}

/// What memcached holds of these two keys, and when they end.
fn state(tcp: &mut Tcp) -> Vec<String> {
    ["mg key s v f t c\r\n", "mg other s v f t c\r\n"]
        .map(|request| answer(tcp, request.as_bytes()))
        .to_vec()
}

/// Puts them there.
fn store(tcp: &mut Tcp) {
    for key in ["key", "other"] {
        tcp.set(key, 7, b"5");
    }
}

#[test]
fn memcached_replies_to_a_harmless_command_and_changes_nothing() {
    let name = "grammar_harmless";
    if !can_run(name) {
        return;
    }
    let net = Net::new(name);
    let _memcached = Memcached::start(&net.server, &[]);
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    store(&mut tcp);
    let before = state(&mut tcp);
    for (request, reply) in HARMLESS {
        let said = answer(&mut tcp, request);
        let reply = String::from_utf8_lossy(reply);
        assert_eq!(replies(&said), replies(&reply), "{}: {said:?}", request.escape_ascii());
        assert_eq!(state(&mut tcp), before, "{}", request.escape_ascii());
    }
    // Each on a connection of its own, which memcached may use for nothing else.
    for (request, _) in STREAMS {
        let mut stream = Tcp::connect(&net.client, Net::SERVER4);
        stream.send(request);
        sleep(A_WHILE);
        drop(stream);
        assert_eq!(state(&mut tcp), before, "{}", request.escape_ascii());
    }
}

/// The data block is skipped, or else it would be a command and have a reply.
#[test]
fn memcached_takes_as_much_of_a_write_of_an_odd_form_as_bmc() {
    let name = "grammar_odd";
    if !can_run(name) {
        return;
    }
    let net = Net::new(name);
    let _memcached = Memcached::start(&net.server, &[]);
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    for (request, reply) in ODD_WRITES {
        store(&mut tcp);
        let other = state(&mut tcp)[1].clone();
        let said = answer(&mut tcp, request.as_bytes());
        assert_eq!(replies(&said), replies(reply), "{request:?}: {said:?}");
        assert_eq!(state(&mut tcp)[1], other, "{request:?}");
    }
}

/// bmc in front of a memcached, with `KEYS` in its cache.
struct Bed {
    udp: Udp,
    tcp: Tcp,
    /// Detached while the network is still there.
    bmc: Bmc,
    _memcached: Memcached,
    net: Rc<Net>,
    before: Value,
    asked: u64,
}

const KEYS: [&str; 4] = ["key", "other", "third", "fourth"];

impl Bed {
    fn new(name: &str) -> Option<Self> {
        if !can_run(name) {
            return None;
        }
        let net = Rc::new(Net::new(name));
        let memcached = Memcached::start(&net.server, &[]);
        let bmc = Bmc::attach(&net, LASTING);
        let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
        let mut udp = Udp::connect(&net.client, Net::SERVER4);
        for key in KEYS {
            tcp.set(key, 7, b"5");
            // The first of them fill.
            let there = || {
                let hits = bmc.total("hits");
                (0..5).for_each(|_| drop(udp.get(key)));
                bmc.total("hits") > hits
            };
            assert!(eventually(PATIENCE, there), "{key} is not cached: {}", bmc.stats());
        }
        let before = bmc.stats();
        Some(Self { udp, tcp, bmc, _memcached: memcached, net, before, asked: 0 })
    }

    /// Asks for each key.
    fn ask(&mut self) {
        for key in KEYS {
            assert_eq!(
                self.udp.get(key).text,
                format!("VALUE {key} 7 1\r\n5\r\nEND\r\n").as_bytes()
            );
            self.asked += 1;
        }
    }

    /// Says it in a datagram, and returns the reply, if there should be one.
    #[track_caller]
    fn say(&mut self, other: &mut Udp, request: &[u8], answered: bool) -> Option<Vec<u8>> {
        other.send(request);
        let reply = other.receive(if answered { PATIENCE } else { A_WHILE });
        assert_eq!(reply.is_some(), answered, "{}", request.escape_ascii());
        // Statistics come in several.
        while other.receive(Duration::from_millis(1)).is_some() {}
        self.ask();
        reply
    }

    fn since(&self, name: &str) -> u64 {
        total(&self.bmc.stats(), name) - total(&self.before, name)
    }

    /// Each GET was answered by the kernel.
    #[track_caller]
    fn expect_hits(&self) {
        let stats = self.bmc.stats();
        for (name, count) in [
            ("hits", self.asked),
            ("flushes", 0),
            ("udp_unparsed", 0),
            ("tcp_unparsed", 0),
            ("tcp_unmatched", 0),
        ] {
            assert_eq!(self.since(name), count, "{name}: {stats}");
        }
    }
}

#[test]
fn hits_go_on_while_harmless_commands_are_said_over_tcp() {
    let Some(mut bed) = Bed::new("grammar_tcp") else { return };
    for (request, _) in HARMLESS {
        println!("{}", request.escape_ascii());
        answer(&mut bed.tcp, request);
        bed.ask();
    }
    bed.expect_hits();
    // The connection is still followed.
    bed.tcp.set("none", 0, b"x");
    assert_eq!(bed.since("write_untracked"), 0);
    for (request, _) in STREAMS {
        let mut stream = Tcp::connect(&bed.net.client, Net::SERVER4);
        stream.send(request);
        bed.ask();
    }
    bed.expect_hits();
}

#[test]
fn hits_go_on_while_harmless_commands_are_said_over_udp() {
    let Some(mut bed) = Bed::new("grammar_udp") else { return };
    let mut other = Udp::connect(&bed.net.client, Net::SERVER4);
    for (request, reply) in HARMLESS {
        println!("{}", request.escape_ascii());
        bed.say(&mut other, request, !reply.is_empty());
    }
    // A line without an end is forgotten: the next datagram does not go on with it.
    for (begin, end) in
        [("set key 0 0 1", "\r\nx\r\n"), ("delete key", "\r\n"), ("flush_all", "\r\n")]
    {
        bed.say(&mut other, begin.as_bytes(), false);
        let reply = bed.say(&mut other, end.as_bytes(), true).unwrap();
        assert_eq!(reply[8..], *b"ERROR\r\n", "{begin}");
    }
    bed.expect_hits();
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
fn hits_go_on_while_another_client_reads_in_binary_over_udp() {
    let Some(mut bed) = Bed::new("grammar_binary") else { return };
    let mut other = Udp::connect(&bed.net.client, Net::SERVER4);
    let reads = [
        ("get", binary(0x00, 0, "key", "")),
        ("getk", binary(0x0c, 0, "key", "")),
        ("getq", binary(0x09, 0, "key", "")),
        ("noop", binary(0x0a, 0, "", "")),
        ("version", binary(0x0b, 0, "", "")),
        ("stat", binary(0x10, 0, "", "")),
    ];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        for (what, request) in &reads {
            let reply = bed.say(&mut other, request, true).unwrap();
            assert_eq!((reply[8], reply[9]), (0x81, request[1]), "{what}");
        }
    }
    bed.expect_hits();
}

#[test]
fn a_binary_write_over_udp_is_obeyed_and_seen() {
    let Some(mut bed) = Bed::new("grammar_binary_write") else { return };
    let mut other = Udp::connect(&bed.net.client, Net::SERVER4);
    let get = |key: &str, data: &str| {
        let value = format!("VALUE {key} 0 {}\r\n{data}\r\nEND\r\n", data.len());
        if data.is_empty() { "END\r\n".to_string() } else { value }
    };
    let noop = binary(0x0a, 0, "", "");
    // What memcached then holds, and how many replies come.
    let writes = [
        ("set", binary(0x01, 8, "key", "x"), "x", 1),
        ("append", binary(0x0e, 0, "key", "y"), "xy", 1),
        ("noop and set", [&noop[..], &binary(0x01, 8, "key", "z")].concat(), "z", 2),
        ("delete", binary(0x04, 0, "key", ""), "", 1),
        ("addq and noop", [&binary(0x12, 8, "key", "q")[..], &noop].concat(), "q", 1),
    ];
    for (what, request, data, replies) in writes {
        other.send(&request);
        for _ in 0..replies {
            assert!(other.receive(PATIENCE).is_some(), "{what}");
        }
        for _ in 0..3 {
            let said = bed.udp.get("key").text;
            assert_eq!(String::from_utf8_lossy(&said), get("key", data), "{what}");
        }
    }
    for key in ["other", "third"] {
        bed.udp.get(key);
        bed.asked += 1;
    }
    bed.expect_hits();
}

/// As a load generator makes them: bytes of any kind but those that end a key.
#[test]
fn keys_with_control_characters_take_no_hits_from_others() {
    let Some(mut bed) = Bed::new("grammar_control") else { return };
    for nth in 0..50_u8 {
        let odd = |at: u8| [1, 2, 9, 0x10, 0x11, 0x1b, 0x1f, 0x0b][usize::from(nth + at) % 8];
        let key = [&[odd(0), b'a' + nth % 26, odd(1)][..], b"key", &[odd(2)]].concat();
        bed.tcp.send(&[b"set ", &key[..], b" 0 0 1\r\nx\r\n"].concat());
        assert_eq!(bed.tcp.line(), "STORED");
        bed.tcp.send(&[b"get ", &key[..], b"\r\n"].concat());
        let lines = [bed.tcp.line(), bed.tcp.line(), bed.tcp.line()];
        assert_eq!(lines[1..], ["x", "END"], "{lines:?}");
        let mut other = Udp::connect(&bed.net.client, Net::SERVER4);
        let reply = bed.say(&mut other, &[b"get ", &key[..], b"\r\n"].concat(), true).unwrap();
        assert_eq!(reply[8..14], *b"VALUE ");
        bed.say(&mut other, &[b"set ", &key[..], b" 0 0 1\r\ny\r\n"].concat(), true);
    }
    bed.expect_hits();
    assert_eq!(bed.since("passes.key"), 50);
}
