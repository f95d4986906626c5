// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Items that end by themselves. The clocks of two memcacheds do not tick at
//! the same moment; so here one is asked twice, first memcached itself, over
//! TCP, and then, over UDP, who answers first. What is gone stays gone.
//!
//! bmc is told that items whose expiry it does not know live long: what it must
//! go by is what it has seen on the wire.

use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::LASTING;
use crate::commands::base64;
use crate::commands::binary;
use crate::common::Net;
use crate::common::Tcp;
use crate::common::can_run;
use crate::lane::DISTRUST;
use crate::pair::Compared;
use crate::pair::From;
use crate::pair::Pair;

/// The longest time of expiry here, two ticks, and some more.
const WATCHED: Duration = Duration::from_millis(4500);
const EVERY: Duration = Duration::from_millis(70);

/// Commands that do not change when an item ends, some of them because they
/// fail.
const KEEP: &[(&str, &str)] = &[
    ("append", "append {} 0 0 1\r\n2\r\n"),
    ("prepend", "prepend {} 0 0 1\r\n2\r\n"),
    ("incr", "incr {} 1\r\n"),
    ("decr-noreply", "decr {} 1 noreply\r\n"),
    ("failing-add", "add {} 0 0 1\r\n2\r\n"),
    ("failing-cas", "cas {} 0 0 1 18446744073709551\r\n2\r\n"),
    ("failing-touch", "touch {} x\r\n"),
    ("failing-gat", "gat x {}\r\n"),
    ("failing-set", "set {} x 0 1\r\n2\r\n"),
    ("meta-append", "ms {} 1 MA T0\r\n2\r\n"),
    ("meta-failing-add", "ms {} 1 ME T0\r\n2\r\n"),
    ("meta-failing-cas", "ms {} 1 C18446744073709551 T0\r\n2\r\n"),
    ("meta-stale", "md {} I\r\n"),
    ("meta-failing-delete", "md {} I T0 C18446744073709551\r\n"),
    ("meta-incr", "ma {}\r\n"),
    ("meta-incr-vivify", "ma {} N0\r\n"),
    ("meta-get-vivify", "mg {} N0\r\n"),
    ("meta-get", "mg {} v t\r\n"),
];

/// Watches keys until all that may end has ended: those in `mortal` must be
/// gone by then, those in `lasting` still there.
fn watch(pair: &mut Pair, mortal: &[String], lasting: &[&str]) {
    let mut tcp = Tcp::connect(&pair.server_behind().client, Net::SERVER4);
    let start = Instant::now();
    let mut stale = Vec::new();
    let mut gone = vec![false; mortal.len()];
    while start.elapsed() < WATCHED {
        for (key, gone) in mortal.iter().zip(&mut gone) {
            *gone |= tcp.get(key) == b"END\r\n";
            let answer = pair.get_behind(0, key.as_bytes());
            let is_value = answer.starts_with(format!("VALUE {key} ").as_bytes());
            assert!(is_value || answer == b"END\r\n", "{key}: {}", answer.escape_ascii());
            if *gone && is_value && !stale.contains(key) {
                stale.push(key.clone());
            }
        }
        thread::sleep(EVERY);
    }
    assert!(stale.is_empty(), "served after their end: {stale:?}");
    assert!(gone.iter().all(|&gone| gone), "{mortal:?} have ended: {gone:?}");
    for key in lasting {
        let hits = pair.bmc.total("hits");
        for _ in 0..2 {
            assert!(pair.get(0, &[key.as_bytes()]).starts_with(b"VALUE"), "{key} is there");
        }
        assert!(pair.bmc.total("hits") > hits, "{key} is answered in the kernel");
    }
}

/// STRICT: fails as long as entries do not end with the expiry that was seen
/// on the wire.
#[test]
fn serves_nothing_that_has_expired() {
    let name = "serves_nothing_that_has_expired";
    if !can_run(name) {
        return;
    }
    let mut pair = Pair::new(name, &[Net::SERVER4], LASTING);
    thread::sleep(DISTRUST);
    let tcp = &mut pair.connect(From::Outside(Net::SERVER4));
    let mut mortal = Vec::new();
    for seconds in 1..=3_u32 {
        let date = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs() + u64::from(seconds));
        let ways: &[(&str, String)] = &[
            ("set", format!("set {{}} 0 {seconds} 1\r\n1\r\n")),
            ("date", format!("set {{}} 0 {date} 1\r\n1\r\n")),
            ("add", format!("delete {{}}\r\nadd {{}} 0 {seconds} 1\r\n1\r\n")),
            ("replace", format!("replace {{}} 0 {seconds} 1\r\n1\r\n")),
            ("touch", format!("touch {{}} {seconds}\r\n")),
            ("touch-noreply", format!("touch {{}} {seconds} noreply\r\n")),
            ("gat", format!("gat {seconds} {{}}\r\n")),
            ("gats", format!("gats {seconds} {{}}\r\n")),
            ("ms", format!("ms {{}} 1 T{seconds}\r\n1\r\n")),
            ("ma", format!("ma {{}} T{seconds}\r\n")),
            ("ma-vivify", format!("md {{}}\r\nma {{}} N{seconds}\r\n")),
            ("mg", format!("mg {{}} T{seconds}\r\n")),
            ("mg-vivify", format!("md {{}}\r\nmg {{}} N{seconds} v\r\n")),
            ("md-stale", format!("md {{}} I T{seconds}\r\n")),
            ("ms-quiet", format!("ms {{}} 1 T{seconds} q\r\n1\r\n")),
            ("set-noreply", format!("set {{}} 0 {seconds} 1 noreply\r\n1\r\n")),
            ("set-twice", format!("set {{}} 0 0 1\r\n1\r\nset {{}} 0 {seconds} 1\r\n1\r\n")),
        ];
        // What leaves the time as it was, one way or another; not when one clock
        // may tick before it and the other after it.
        let kept: &[(&str, &str)] = if seconds == 1 { &[] } else { KEEP };
        let kept =
            kept.iter().map(|&(way, then)| (way, format!("set {{}} 0 {seconds} 1\r\n1\r\n{then}")));
        for (way, said) in ways.iter().cloned().chain(kept) {
            for apart in [false, true] {
                let key = format!("{way}-{seconds}-{apart}");
                pair.tell(tcp, format!("set {key} 0 0 1\r\n1\r\n").as_bytes());
                let said = said.replace("{}", &key);
                if apart {
                    // A command line, or a value, at a time.
                    for line in said.split_inclusive('\n') {
                        pair.tell(tcp, line.as_bytes());
                    }
                } else {
                    pair.tell(tcp, said.as_bytes());
                }
                mortal.push(key);
            }
        }
        let key = format!("udp-{seconds}");
        let request = pair.datagram(format!("set {key} 0 {seconds} 1\r\n1\r\n").as_bytes());
        pair.ask(0, &request, Compared::Exactly);
        mortal.push(key);
        let key = format!("base64-{seconds}");
        let name = base64(key.as_bytes());
        let name = String::from_utf8(name).expect("letters");
        pair.tell(tcp, format!("ms {name} 1 b T{seconds}\r\n1\r\n").as_bytes());
        mortal.push(key);
        let key = format!("binary-{seconds}");
        let extras = [0, seconds].map(u32::to_be_bytes).concat();
        let mut other = pair.connect(From::Outside(Net::SERVER4));
        pair.tell(&mut other, &binary(1, &extras, key.as_bytes(), b"1", 0, 0));
        mortal.push(key);
        let key = format!("binary-touch-{seconds}");
        pair.tell(tcp, format!("set {key} 0 0 1\r\n1\r\n").as_bytes());
        pair.tell(&mut other, &binary(0x1c, &seconds.to_be_bytes(), key.as_bytes(), b"", 0, 0));
        mortal.push(key);
    }
    // Where bmc follows what it sees: it is known which of the two ends counts.
    thread::sleep(DISTRUST);
    let tcp = &mut pair.connect(From::Outside(Net::SERVER4));
    pair.tell(tcp, b"set long 0 1000 1\r\n1\r\n");
    pair.tell(tcp, b"set ever 0 0 1\r\n1\r\n");
    pair.tell(tcp, b"set saved 0 2 1\r\n1\r\n");
    pair.tell(tcp, b"touch saved 0\r\n");
    watch(&mut pair, &mortal, &["long", "ever", "saved"]);
}

/// STRICT: fails as long as a delayed flush is taken for one at once.
#[test]
fn serves_nothing_after_a_delayed_flush() {
    let name = "serves_nothing_after_a_delayed_flush";
    if !can_run(name) {
        return;
    }
    let mut pair = Pair::new(name, &[Net::SERVER4], LASTING);
    thread::sleep(DISTRUST);
    let by_udp = |pair: &mut Pair, text: &[u8]| {
        let request = pair.datagram(text);
        pair.ask(0, &request, Compared::Exactly);
    };
    for how in 0..4 {
        let tcp = &mut pair.connect(From::Outside(Net::SERVER4));
        let mortal = ["before", "after"].map(String::from);
        pair.tell(tcp, b"set before 0 0 1\r\n1\r\n");
        match how {
            0 => drop(pair.tell(tcp, b"flush_all 3\r\n")),
            1 => drop(pair.tell(tcp, b"flush_all 3 noreply\r\n")),
            2 => by_udp(&mut pair, b"flush_all 3\r\n"),
            _ => {
                let mut other = pair.connect(From::Outside(Net::SERVER4));
                pair.tell(&mut other, &binary(8, &3_u32.to_be_bytes(), b"", b"", 0, 0));
            }
        }
        pair.tell(tcp, b"set after 0 0 1\r\n1\r\n");
        watch(&mut pair, &mortal, &[]);
        let tcp = &mut pair.connect(From::Outside(Net::SERVER4));
        pair.tell(tcp, b"set later 0 0 1\r\n1\r\n");
        assert!(pair.get(0, &[b"later"]).starts_with(b"VALUE"), "what is set later stays");
    }
}
