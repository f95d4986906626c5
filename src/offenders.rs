// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Who emptied the cache of late, and until when it stays closed: what
//! `bpf/offender.bpf.h` notes, for `bmc stats`, `bmc status` and `bmc top`.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use serde_json::Value;
use serde_json::json;

use crate::entries::DIRTY;
use crate::instance::Instance;
use crate::kernel;
use crate::output::cut;
use crate::output::grouped;
use crate::output::span;
use crate::skel::types::bmc_flush_reason as Reason;
use crate::skel::types::bmc_global;
use crate::skel::types::bmc_offender;
use crate::skel::types::bmc_offenders;
use crate::skel::types::bmc_peers;
use crate::system;

/// How often a reading is tried, where records are being replaced meanwhile.
const ATTEMPTS: usize = 8;

/// Offenders that `bmc stats` shows, and the columns that it has for them.
const SHOWN: usize = 5;
const WIDTH: usize = 79;

/// For so many nanoseconds after it is due a delayed `flush_all` may still take
/// effect: `CLOCK_LAG` of `bpf/expiry.bpf.h`.
const LAG: u64 = 2_000_000_000;

/// Each reason: its name in JSON, and what it means.
const REASONS: [(Reason, &str, &str); 11] = [
    (Reason::FLUSH_COMMAND, "command", "flush_all"),
    (Reason::FLUSH_UNPARSED, "unparsed", "not understood"),
    (Reason::FLUSH_LOST, "lost", "part of its stream was not seen"),
    (Reason::FLUSH_UNREAD, "unread", "a datagram that cannot be read"),
    (Reason::FLUSH_UNFOLLOWED, "unfollowed", "no room to follow its connection"),
    (Reason::FLUSH_UNMATCHED, "unmatched", "a reply that answers no command"),
    (Reason::FLUSH_UNASKED, "unasked", "a reply on a connection that is not followed"),
    (Reason::FLUSH_ANSWERED, "answered", "the reply to what was not understood"),
    (Reason::FLUSH_GONE, "gone", "memcached stopped listening"),
    (Reason::FLUSH_WOKEN, "woken", "the cache woke up"),
    (Reason::FLUSH_TOOL, "tool", "bmc flush, attach or detach"),
];

/// Why every entry was forgotten, how often and when for the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offender {
    /// The last time was so long ago.
    pub ago: Duration,
    /// Because of it nothing is learnt for so long from now on.
    pub closed: Duration,
    /// How often it happened.
    pub count: u64,
    /// Whose packet it was, if it was one.
    pub client: Option<SocketAddr>,
    /// Which memcached it was for or from.
    pub server: Option<SocketAddr>,
    /// "tcp" or "udp", of a packet.
    pub transport: Option<&'static str>,
    /// Its name, as in JSON.
    pub reason: &'static str,
    /// The start of what was not understood, or of the packet.
    pub text: Vec<u8>,
}

/// What keeps the cache from learning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// An attach or detach was interrupted: until `bmc flush`.
    pub idle: bool,
    /// It sleeps.
    pub asleep: bool,
    /// Nothing is learnt for so long.
    pub learning: Option<Duration>,
    /// Until delayed `flush_all`s take effect; entries live no longer than that.
    pub flushes: Vec<Duration>,
}

/// Both at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The newest first.
    pub offenders: Vec<Offender>,
    /// What is closed.
    pub closed: Closed,
}

impl Report {
    /// Of an instance, as it is now.
    pub fn of(instance: &Instance) -> Result<Self> {
        let global = instance.dir.map("global")?.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        let global = global.and_then(|bytes| kernel::plain_from::<bmc_global>(&bytes));
        let global = global.context("the map global is another version's")?;
        let now = system::monotonic()?;
        Ok(Self {
            offenders: read(&instance.dir.map("offenders")?, now)?,
            closed: Closed::of(&global, now),
        })
    }

    /// Who emptied it last. A reply that only confirms what its client did is passed
    /// over.
    fn last(&self) -> Option<&Offender> {
        self.offenders.iter().find(|offender| offender.reason != "answered")
    }

    /// The same in one line.
    pub fn last_line(&self) -> Option<String> {
        self.last().map(|last| format!("{} ago by {}", span(last.ago), last.summary()))
    }

    /// The same as in `status --json`.
    pub fn last_json(&self) -> Value {
        self.last().map_or(Value::Null, Offender::to_json)
    }

    /// What is closed and who emptied it, in one line for `bmc top`, which shows elsewhere
    /// that a cache idles or sleeps.
    pub fn line(&self) -> Option<String> {
        let learning = self.closed.learning.map(|left| format!("closed for {}", span(left)));
        let flush = self.closed.flushes.iter().min();
        let flush = flush.map(|left| format!("flush_all in {}", span(*left)));
        let last = self.last_line().map(|last| format!("emptied {last}"));
        let parts: Vec<_> = [learning, flush, last].into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// As in `bmc stats`, the newest [`SHOWN`].
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (i, line) in self.closed.lines().iter().enumerate() {
            let title = if i == 0 { "closed" } else { "" };
            text += &format!("{title:<24}{line}\n");
        }
        if !self.offenders.is_empty() {
            text += "emptied by\n";
        }
        for line in self.offenders.iter().take(SHOWN).flat_map(Offender::lines) {
            text += &format!("  {}\n", cut(line, WIDTH - 2));
        }
        text
    }

    /// As in `stats --json`.
    pub fn offenders_json(&self) -> Value {
        self.offenders.iter().map(Offender::to_json).collect()
    }
}

impl Closed {
    fn of(global: &bmc_global, now: u64) -> Self {
        let left = |until: &u64| Duration::from_nanos(until.saturating_sub(now));
        let idle = global.hold.until == u64::MAX;
        Self {
            idle,
            asleep: global.word & DIRTY != 0,
            learning: (!idle && global.hold.until > now).then(|| left(&global.hold.until)),
            flushes: global.due.iter().filter(|due| **due + LAG > now).map(left).collect(),
        }
    }

    /// Each thing in a line.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.idle {
            lines.push("nothing is learnt until bmc flush".into());
        }
        if let Some(left) = self.learning {
            lines.push(format!("nothing is learnt for {}", span(left)));
        }
        if self.asleep {
            lines.push("nothing is learnt while it is asleep".into());
        }
        for left in &self.flushes {
            lines.push(format!("a flush_all takes effect in {}", span(*left)));
        }
        lines
    }

    /// As in `stats --json`.
    pub fn to_json(&self) -> Value {
        json!({
            "idle": self.idle,
            "asleep": self.asleep,
            "left_ms": self.learning.map(millis),
            "flush_all_ms": self.flushes.iter().copied().map(millis).collect::<Value>(),
        })
    }
}

impl Offender {
    fn new(record: &bmc_offender, now: u64) -> Option<Self> {
        let (_, reason, _) = REASONS.iter().find(|(reason, ..)| *reason == record.reason)?;
        let text: Vec<_> = record.text.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let ports = record.peers.ports.to_ne_bytes();
        let address = |address: [u64; 2], port: [u8; 2]| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address[0].to_ne_bytes());
            bytes[8..].copy_from_slice(&address[1].to_ne_bytes());
            let port = u16::from_be_bytes(port);
            (port != 0).then(|| SocketAddr::new(Ipv6Addr::from(bytes).to_canonical(), port))
        };
        Some(Self {
            ago: Duration::from_nanos(now.saturating_sub(record.when)),
            closed: Duration::from_nanos(record.until.saturating_sub(now)),
            count: record.count,
            client: address(record.peers.client, [ports[0], ports[1]]),
            server: address(record.peers.server, [ports[2], ports[3]]),
            transport: match record.protocol {
                6 => Some("tcp"),
                17 => Some("udp"),
                _ => None,
            },
            reason,
            text: text.get(..record.len.into())?.to_vec(),
        })
    }

    /// What it did.
    fn words(&self) -> &'static str {
        REASONS.iter().find(|(_, name, _)| *name == self.reason).map_or("", |(.., words)| words)
    }

    /// The text between quotes, escaped as in Rust.
    fn quoted(&self) -> Option<String> {
        (!self.text.is_empty()).then(|| format!("\"{}\"", self.text.escape_ascii()))
    }

    /// Who did what.
    fn summary(&self) -> String {
        let words = self.words();
        let detail = match (self.quoted(), self.reason) {
            // The command is the reason.
            (None, _) | (_, "command") => words.to_string(),
            (Some(text), _) => format!("{words}: {text}"),
        };
        match (self.client, self.server) {
            (Some(client), _) => format!("{client} ({detail})"),
            (None, Some(server)) => format!("port {} ({detail})", server.port()),
            (None, None) => detail,
        }
    }

    /// Who did what; in a second line to whom, and what it looked like.
    fn lines(&self) -> Vec<String> {
        let mut first = format!("{:<9} ", span(self.ago));
        first += &match (self.client, self.server) {
            (Some(client), _) => format!("{client}: "),
            (None, Some(server)) => format!("port {}: ", server.port()),
            (None, None) => String::new(),
        };
        first += self.words();
        if self.count > 1 {
            first += &format!(", {} times", grouped(self.count));
        }
        let second = self.server.zip(self.transport).map(|(server, transport)| {
            let text = self.quoted().map_or(String::new(), |text| format!(": {text}"));
            format!("{:<9} {server} ({transport}){text}", "")
        });
        std::iter::once(first).chain(second).collect()
    }

    fn to_json(&self) -> Value {
        json!({
            "ago_ms": millis(self.ago),
            "closed_ms": millis(self.closed),
            "client": self.client.map(|client| client.to_string()),
            "server": self.server.map(|server| server.to_string()),
            "transport": self.transport,
            "reason": self.reason,
            "count": self.count,
            "text": self.text.escape_ascii().to_string(),
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What every CPU has noted up to `now`, a time in nanoseconds of `CLOCK_MONOTONIC`:
/// the newest first.
pub fn read(map: &impl MapCore, now: u64) -> Result<Vec<Offender>> {
    let mut newest: HashMap<_, Offender> = HashMap::new();
    for record in records(map)? {
        let Some(mut offender) = Offender::new(&record, now) else { continue };
        let bmc_peers { client, server, ports } = record.peers;
        // One client's packets may come by on several CPUs.
        let whose = (client, server, ports, record.protocol, record.reason.0);
        if let Some(other) = newest.remove(&whose) {
            let count = offender.count + other.count;
            if other.ago < offender.ago {
                offender = other;
            }
            offender.count = count;
        }
        newest.insert(whose, offender);
    }
    let mut all: Vec<_> = newest.into_values().collect();
    all.sort_by_key(|offender| offender.ago);
    Ok(all)
}

/// The records of every CPU, none of them half written.
fn records(map: &impl MapCore) -> Result<Vec<bmc_offender>> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let (before, copy, after) = (copies(map)?, copies(map)?, copies(map)?);
        let records = at_rest(&before, &copy, &after);
        if left == 0 || records.len() == copy.len() {
            return Ok(records.into_iter().filter(|record| record.count != 0).collect());
        }
    }
}

/// The kernel copies a CPU's records in any order while they change. One that has the
/// same even sequence number in the copy before and in the copy after was at rest
/// in between.
fn at_rest(
    before: &[bmc_offender],
    copy: &[bmc_offender],
    after: &[bmc_offender],
) -> Vec<bmc_offender> {
    let rests = |(before, after): (&bmc_offender, &bmc_offender)| {
        before.seq == after.seq && before.seq.is_multiple_of(2)
    };
    let records = copy.iter().zip(before.iter().zip(after));
    records.filter(|(_, around)| rests(*around)).map(|(record, _)| *record).collect()
}

fn copies(map: &impl MapCore) -> Result<Vec<bmc_offender>> {
    let values = map
        .lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY)
        .context("cannot read who emptied the cache")?
        .unwrap_or_default();
    let all = values.iter().map(|bytes| kernel::plain_from::<bmc_offenders>(bytes));
    let all: Option<Vec<_>> = all.collect();
    let all = all.context("the map offenders is another version's")?;
    Ok(all.iter().flat_map(|cpu| cpu.last).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skel::types::bmc_hold;

    const SECOND: u64 = 1_000_000_000;

    fn record() -> bmc_offender {
        let half = |bytes: [u8; 8]| u64::from_ne_bytes(bytes);
        let mapped = |last| half([0, 0, 0xff, 0xff, 10, 0, 0, last]);
        let mut text = [0; 4];
        text[0] = half(*b"no\xffsen\r\n");
        bmc_offender {
            seq: 2,
            when: 7 * SECOND,
            until: 8 * SECOND,
            count: 1,
            peers: bmc_peers {
                client: [0, mapped(2)],
                server: [0, mapped(1)],
                ports: half([0x10, 0x92, 0x2b, 0xcb, 0, 0, 0, 0]),
            },
            text,
            reason: Reason::FLUSH_UNPARSED,
            len: 8,
            protocol: 6,
        }
    }

    #[test]
    fn says_who_did_what() {
        let offender = Offender::new(&record(), 7 * SECOND + SECOND / 2).expect("it is one");
        assert_eq!(offender.ago, Duration::from_millis(500));
        assert_eq!(offender.closed, Duration::from_millis(500));
        assert_eq!(offender.summary(), r#"10.0.0.2:4242 (not understood: "no\xffsen\r\n")"#);
        let lines = offender.lines();
        assert_eq!(lines[0], "500ms     10.0.0.2:4242: not understood");
        assert_eq!(lines[1], r#"          10.0.0.1:11211 (tcp): "no\xffsen\r\n""#);
        let json = offender.to_json();
        assert_eq!(json["client"], "10.0.0.2:4242");
        assert_eq!(json["text"], r"no\xffsen\r\n");
        assert_eq!(json["reason"], "unparsed");
    }

    #[test]
    fn says_so_where_nobody_sent_anything() {
        let nobody = bmc_offender {
            peers: bmc_peers::default(),
            len: 0,
            protocol: 0,
            count: 1234,
            reason: Reason::FLUSH_TOOL,
            ..record()
        };
        let offender = Offender::new(&nobody, 7 * SECOND).expect("it is one");
        assert_eq!(offender.summary(), "bmc flush, attach or detach");
        assert_eq!(offender.lines(), ["0ms       bmc flush, attach or detach, 1,234 times"]);
        assert_eq!(offender.to_json()["client"], Value::Null);
    }

    #[test]
    fn a_table_fits_a_terminal_and_shows_the_newest() {
        let mut record = bmc_offender { len: 32, ..record() };
        record.text = [u64::MAX; 4];
        record.peers.client = [u64::MAX; 2];
        record.peers.server = [u64::MAX; 2];
        let long = Offender::new(&record, 9 * SECOND).expect("it is one");
        let report = Report { offenders: vec![long; SHOWN + 1], ..Report::default() };
        let table = report.table();
        assert_eq!(table.lines().count(), 1 + 2 * SHOWN);
        for line in table.lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
        assert_eq!(Report::default().table(), "");
    }

    #[test]
    fn knows_every_reason_of_the_header() {
        let header = include_str!("../bpf/bmc.h");
        let body = header.split("enum bmc_flush_reason {").nth(1).expect("it is there");
        let names = body.split("};").next().expect("it ends").matches("FLUSH_").count();
        assert_eq!(names, REASONS.len() + 1, "all but FLUSH_NONE");
        let unknown = bmc_offender { reason: Reason(99), ..record() };
        assert_eq!(Offender::new(&unknown, 0), None);
    }

    #[test]
    fn the_readme_explains_every_reason() {
        let readme = include_str!("../README.md");
        for (_, name, words) in REASONS {
            assert!(readme.contains(&format!("`{name}` {words}")), "`{name}` {words}");
        }
    }

    #[test]
    fn passes_over_replies_that_only_confirm() {
        let offender = |reason, when| {
            Offender::new(&bmc_offender { reason, when, ..record() }, 9 * SECOND).expect("is one")
        };
        let mut report = Report::default();
        assert_eq!(report.last_line(), None);
        report.offenders = vec![
            offender(Reason::FLUSH_ANSWERED, 8 * SECOND),
            offender(Reason::FLUSH_COMMAND, 6 * SECOND),
        ];
        assert_eq!(report.last_line().as_deref(), Some("3s ago by 10.0.0.2:4242 (flush_all)"));
    }

    #[test]
    fn takes_only_what_was_at_rest_meanwhile() {
        let one = |seq, count| bmc_offender { seq, count, ..record() };
        for (before, after, rests) in [(2, 2, true), (1, 1, false), (0, 2, false), (2, 3, false)] {
            let kept = at_rest(&[one(before, 1)], &[one(2, 7)], &[one(after, 9)]);
            let kept: Vec<_> = kept.iter().map(|record| record.count).collect();
            assert_eq!(kept, if rests { vec![7] } else { vec![] }, "{before} {after}");
        }
    }

    #[test]
    fn says_what_is_closed_and_for_how_long() {
        let now = 100 * SECOND;
        let open = bmc_global::default();
        assert_eq!(Closed::of(&open, now), Closed::default());
        assert_eq!(Closed::default().lines(), Vec::<String>::new());
        let global = bmc_global {
            word: 1 << 17 | 2,
            hold: bmc_hold { until: now + SECOND / 2, ..open.hold },
            due: [now + 60 * SECOND, now - 3 * SECOND],
            ..open
        };
        let closed = Closed::of(&global, now);
        assert_eq!(closed.learning, Some(Duration::from_millis(500)));
        assert_eq!(closed.flushes, [Duration::from_secs(60)], "the other one is over");
        assert!(closed.asleep && !closed.idle);
        let idle = Closed::of(
            &bmc_global { hold: bmc_hold { until: u64::MAX, ..open.hold }, ..open },
            now,
        );
        assert_eq!(idle, Closed { idle: true, ..Closed::default() });
        let header = include_str!("../bpf/expiry.bpf.h");
        assert!(header.contains(&format!("CLOCK_LAG = {},", LAG / SECOND)));
    }
}
