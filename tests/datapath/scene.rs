// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A loaded bmc with a memcached and its clients around it, and the ways in
//! which the tests make and judge frames.

use std::cell::Cell;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::Duration;

use bmc::bench::net::cpus;
use bmc::bench::net::pin;

use crate::connection::Connection;
use crate::fixture::Bmc;
use crate::fixture::Config;
use crate::fixture::Counters;
use crate::fixture::Verdict;
use crate::fixture::hex;
use crate::packet::Checksum;
use crate::packet::Flow;
use crate::packet::datagram;
use crate::packet::network;
use crate::packet::parse;
use crate::packet::seal;
use crate::packet::value;
use crate::packet::values;

pub(crate) type Counts = &'static [(&'static str, u64)];

/// A GET of one key that went to memcached with a lease.
pub(crate) const LEASED: Counts =
    &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("leases", 1)];
/// A GET of one key that went to memcached while a write of it was pending.
pub(crate) const DIRTY: Counts =
    &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_dirty", 1)];
/// Likewise, not long after a write whose reply cannot be recognised.
pub(crate) const QUARANTINED: Counts =
    &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_quarantine", 1)];
pub(crate) const FILLED: Counts = &[("get_replies", 1), ("fills", 1)];

pub(crate) fn v4() -> Flow {
    Flow::new("10.1.0.2:40000", "10.1.0.1:11211")
}

pub(crate) fn v6() -> Flow {
    Flow::new("[fd00::2]:40000", "[fd00::1]:11211")
}

/// Each way in which a frame may carry IP.
pub(crate) fn carriers() -> Vec<(&'static str, Flow)> {
    vec![
        ("IPv4", v4()),
        ("IPv6", v6()),
        ("IPv4 in a VLAN", v4().vlan(5)),
        ("IPv6 in a VLAN", v6().vlan(4094)),
        ("IPv4 in QinQ", v4().qinq(7, 9)),
        ("IPv6 in QinQ", v6().qinq(4094, 1)),
    ]
}

/// A loaded bmc and what memcached and its clients did so far.
pub(crate) struct Scene {
    pub(crate) bmc: Bmc,
    id: Cell<u16>,
}

impl Scene {
    /// Keeps this thread on one of the CPUs, which have memories of their own: what
    /// is remembered must not depend on where the kernel lets a test run.
    pub(crate) fn load(config: &Config) -> Option<Self> {
        static TURN: AtomicUsize = AtomicUsize::new(0);

        let cpus = cpus().expect("there are some");
        pin(&[cpus[TURN.fetch_add(1, Relaxed) % cpus.len()]]).expect("it is ours to use");
        Some(Self { bmc: Bmc::load(config)?, id: Cell::new(0x1200) })
    }

    /// With an entry "key" for each of the flows.
    pub(crate) fn with_key(flows: &[Flow]) -> Option<Self> {
        let scene = Self::load(&Config::default())?;
        for flow in flows {
            scene.fill(flow, "key", 0, KEY_DATA);
        }
        Some(scene)
    }

    /// A request id that was not used yet.
    pub(crate) fn id(&self) -> u16 {
        self.id.set(self.id.get().wrapping_add(1));
        self.id.get()
    }

    /// What the action counts, and what it returns.
    #[track_caller]
    pub(crate) fn counting<T>(
        &self,
        what: &str,
        expected: Counts,
        action: impl FnOnce() -> T,
    ) -> T {
        let before = self.bmc.counters();
        let result = action();
        let counted = self.bmc.counters().since(&before);
        assert_eq!(counted, Counters::new(expected), "counters of {what}");
        result
    }

    /// The frame goes to the stack as it came and counts just this.
    #[track_caller]
    pub(crate) fn passes(&self, what: &str, frame: &[u8], expected: Counts) {
        let verdict = self.counting(what, expected, || self.bmc.receive(frame));
        assert_eq!(verdict, Verdict::Passed, "{what}");
    }

    /// A frame of memcached goes out and counts just this.
    #[track_caller]
    pub(crate) fn replies(&self, what: &str, frame: &[u8], expected: Counts) {
        self.counting(what, expected, || self.bmc.send(frame));
    }

    /// Asks for a key; memcached answers if bmc does not, which is said.
    #[track_caller]
    pub(crate) fn ask(&self, flow: &Flow, key: &str, data: &[u8]) -> bool {
        let (id, text) = (self.id(), values(&[value(key, 0, data)]));
        let frame = flow.get(id, &[key]);
        match self.bmc.receive(&frame) {
            Verdict::Answered(reply) => {
                check_reply(key, &frame, &reply, &text);
                true
            }
            Verdict::Passed => {
                self.bmc.send(&flow.reversed().udp(&datagram(id, &text)));
                false
            }
            verdict @ Verdict::AnsweredLate(_) => panic!("{verdict:?}"),
        }
    }

    /// Asks memcached for a key that bmc does not have, which learns it.
    #[track_caller]
    pub(crate) fn fill(&self, flow: &Flow, key: impl AsRef<[u8]>, flags: u32, data: &[u8]) {
        let id = self.id();
        let key = key.as_ref();
        let name = String::from_utf8_lossy(key);
        let reply = datagram(id, &values(&[value(key, flags, data)]));
        self.passes(&format!("the GET of {name}"), &flow.get(id, &[key]), LEASED);
        self.replies(
            &format!("the reply with {name}, {} bytes", data.len()),
            &flow.reversed().udp(&reply),
            FILLED,
        );
    }

    /// A new connection, which bmc sees from its first byte.
    pub(crate) fn connect(&self, flow: &Flow) -> Connection {
        self.bmc.attach();
        Connection::open(flow)
    }

    /// The client sends a segment, which counts just this.
    #[track_caller]
    pub(crate) fn asks(&self, tcp: &mut Connection, text: impl AsRef<[u8]>, expected: Counts) {
        let text = text.as_ref();
        self.counting(&text.escape_ascii().to_string(), expected, || tcp.request(text));
    }

    /// memcached sends a segment, which counts just this.
    #[track_caller]
    pub(crate) fn says(&self, tcp: &mut Connection, text: impl AsRef<[u8]>, expected: Counts) {
        let text = text.as_ref();
        self.counting(&text.escape_ascii().to_string(), expected, || tcp.reply(text));
    }

    /// The key is neither answered nor learnt, because of this.
    #[track_caller]
    pub(crate) fn is_closed(&self, what: &str, key: &str, why: Counts) {
        let id = self.id();
        self.passes(&format!("a GET of {key}, {what}"), &v4().get(id, &[key]), why);
        self.replies(
            &format!("the reply with {key}, {what}"),
            &v4().reversed().udp(&datagram(id, &key_reply_of(key))),
            &[("get_replies", 1), ("fill_unleased", 1)],
        );
    }

    /// The key is not there, and may be learnt.
    #[track_caller]
    pub(crate) fn is_open(&self, what: &str, key: &str) {
        let id = self.id();
        self.passes(&format!("a GET of {key}, {what}"), &v4().get(id, &[key]), LEASED);
        self.bmc.send(&v4().reversed().udp(&datagram(id, b"END\r\n")));
    }

    /// Makes sure that the entry "key" is there, whatever happened.
    #[track_caller]
    pub(crate) fn restore(&self, flow: &Flow) {
        self.bmc.end_quarantine();
        if !self.has(flow, "key") {
            self.fill(flow, "key", 0, KEY_DATA);
        }
    }

    /// A GET of one key is answered with this text, from XDP and from TC.
    #[track_caller]
    pub(crate) fn hits(&self, flow: &Flow, key: impl AsRef<[u8]>, text: &[u8]) {
        let what = format!("the GET of {}", String::from_utf8_lossy(key.as_ref()));
        let frame = flow.get(self.id(), &[key]);
        self.answers(&what, &frame, text, HIT, LATE_HIT);
    }

    /// The frame is answered with this text, from XDP and from TC.
    #[track_caller]
    pub(crate) fn answers(
        &self,
        what: &str,
        frame: &[u8],
        text: &[u8],
        early: Counts,
        late: Counts,
    ) {
        match self.counting(what, early, || self.bmc.receive(frame)) {
            Verdict::Answered(reply) => check_reply(what, frame, &reply, text),
            verdict => panic!("{what}: {verdict:?}"),
        }
        match self.counting(what, late, || self.bmc.receive_late(frame)) {
            Verdict::AnsweredLate(reply) => check_reply(what, frame, &reply, text),
            verdict => panic!("{what} at TC: {verdict:?}"),
        }
    }

    /// A GET of one key goes to memcached, with a lease.
    #[track_caller]
    pub(crate) fn misses(&self, flow: &Flow, key: impl AsRef<[u8]>) {
        let what = format!("the GET of {}", String::from_utf8_lossy(key.as_ref()));
        self.passes(&what, &flow.get(self.id(), &[key]), LEASED);
    }

    /// Whether a GET of one key is answered.
    pub(crate) fn has(&self, flow: &Flow, key: impl AsRef<[u8]>) -> bool {
        let id = self.id();
        let passed = self.bmc.receive(&flow.get(id, &[key])) == Verdict::Passed;
        if passed {
            self.bmc.send(&flow.reversed().udp(&datagram(id, b"END\r\n")));
        }
        !passed
    }
}

/// A client that waits for its replies goes on for a while: first a number of
/// exchanges that is not enough, then, after a break, the same again. Then bmc
/// follows its connection.
#[track_caller]
pub(crate) fn check_healing(scene: &Scene, tcp: &mut Connection) {
    for nth in 0..16 {
        if nth == 7 {
            sleep(Duration::from_millis(300));
        }
        let key = format!("healing{nth}");
        let counts = if nth < 8 { UNTRACKED } else { WRITE };
        scene.asks(tcp, format!("delete {key}\r\n"), counts);
        scene.is_closed("before the reply", &key, if nth < 8 { QUARANTINED } else { DIRTY });
        scene.says(tcp, "DELETED\r\n", &[]);
        if nth >= 8 {
            scene.is_open("after the reply", &key);
        }
    }
}

/// A write whose reply bmc will recognise.
pub(crate) const WRITE: Counts = &[("write_requests", 1), ("invalidations", 1)];
/// A write of a connection that it cannot follow.
pub(crate) const UNTRACKED: Counts =
    &[("write_requests", 1), ("invalidations", 1), ("write_untracked", 1)];
/// A command that may have changed any key.
pub(crate) const UNPARSED: Counts = &[("tcp_unparsed", 1), ("flushes", 1)];
/// A segment of a connection that has no place in the table.
pub(crate) const UNFOLLOWED: Counts = &[("tcp_unfollowed", 1), ("flushes", 1)];
/// A write on a connection of which it is not certain that these are commands.
pub(crate) const UNCERTAIN: Counts = &[
    ("write_requests", 1),
    ("invalidations", 1),
    ("write_untracked", 1),
    ("tcp_unparsed", 1),
    ("flushes", 1),
];
/// A reply that was not expected.
pub(crate) const UNMATCHED: Counts = &[("tcp_unmatched", 1), ("flushes", 1)];

pub(crate) const KEY_DATA: &[u8] = b"0123456789abcdef0123456789abcdef";
pub(crate) const HIT: Counts = &[("get_requests", 1), ("get_keys", 1), ("hits", 1)];
pub(crate) const LATE_HIT: Counts =
    &[("get_requests", 1), ("get_keys", 1), ("hits", 1), ("tc_replies", 1)];

/// The reply to "get key".
pub(crate) fn key_reply() -> Vec<u8> {
    values(&[value("key", 0, KEY_DATA)])
}

/// The reply to a GET of this key, when it holds `KEY_DATA`.
pub(crate) fn key_reply_of(key: &str) -> Vec<u8> {
    values(&[value(key, 0, KEY_DATA)])
}

/// A reply is what memcached would have sent: the text, to whom it may
/// concern, in a datagram that its receiver accepts.
#[track_caller]
pub(crate) fn check_reply(what: &str, request: &[u8], reply: &[u8], text: &[u8]) {
    let asked = parse(request).unwrap();
    let got = parse(reply).unwrap_or_else(|error| panic!("{what}: {error}: {}", hex(reply)));
    assert_eq!(got.flow, asked.flow.reversed(), "{what}");
    let id = u16::from_be_bytes([asked.payload[0], asked.payload[1]]);
    let expected = datagram(id, text);
    assert_eq!(
        got.payload.escape_ascii().to_string(),
        expected.escape_ascii().to_string(),
        "{what}"
    );
    // Half a checksum is completed on the way out, like that of a request from
    // this host: what the kernel knows of the frame says so.
    if asked.checksum != Checksum::Partial || got.checksum != Checksum::Partial {
        assert_eq!(got.checksum, Checksum::Valid, "{what}");
    }
    assert_eq!(got.padding, 0, "{what}");
}

pub(crate) fn edit(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut frame);
    frame
}

/// Changes a frame and makes its checksums right again.
pub(crate) fn edit_sealed(frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = edit(frame, change);
    seal(&mut frame);
    frame
}

pub(crate) fn add16(frame: &mut [u8], at: usize, by: i16) {
    let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
    frame[at..at + 2].copy_from_slice(&old.wrapping_add_signed(by).to_be_bytes());
}

/// Puts options behind the IPv4 header.
pub(crate) fn with_ipv4_options(frame: Vec<u8>) -> Vec<u8> {
    edit_sealed(frame, |frame| {
        let at = network(frame);
        frame[at] += 1;
        add16(frame, at + 2, 4);
        frame.splice(at + 20..at + 20, [1, 1, 1, 0]);
    })
}

/// Puts an extension header of eight bytes behind the IPv6 header.
pub(crate) fn with_ipv6_extension(frame: Vec<u8>, kind: u8, body: [u8; 7]) -> Vec<u8> {
    edit(frame, |frame| {
        let at = network(frame);
        let next = std::mem::replace(&mut frame[at + 6], kind);
        add16(frame, at + 4, 8);
        frame.splice(at + 40..at + 40, std::iter::once(next).chain(body));
    })
}

pub(crate) const DESTINATION_OPTIONS: (u8, [u8; 7]) = (60, [0, 1, 4, 0, 0, 0, 0]);
pub(crate) const FIRST_FRAGMENT: (u8, [u8; 7]) = (44, [0, 0, 1, 0, 0, 0, 9]);
pub(crate) const LATER_FRAGMENT: (u8, [u8; 7]) = (44, [0, 1, 0, 0, 0, 0, 9]);
