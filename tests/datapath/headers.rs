// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What may carry a write to memcached besides a plain packet: a row for each line
//! of the table in `bpf/chain.bpf.h`.

use crate::fixture::Config;
use crate::fixture::Counters;
use crate::fixture::Verdict;
use crate::packet::FIN_ACK;
use crate::packet::Flow;
use crate::packet::PSH_ACK;
use crate::packet::datagram;
use crate::packet::network;
use crate::packet::part;
use crate::packet::seal_network;
use crate::packet::transport;
use crate::packet::value;
use crate::packet::values;
use crate::packet::with_ipv6_extension;
use crate::scene::Counts;
use crate::scene::DESTINATION_OPTIONS;
use crate::scene::FILLED;
use crate::scene::FIRST_FRAGMENT;
use crate::scene::KEY_DATA;
use crate::scene::LATER_FRAGMENT;
use crate::scene::LEASED;
use crate::scene::Scene;
use crate::scene::UNFOLLOWED;
use crate::scene::add16;
use crate::scene::edit;
use crate::scene::edit_sealed;
use crate::scene::key_reply;
use crate::scene::v4;
use crate::scene::v6;
use crate::scene::with_ipv4_options;

/// Extension headers: what they are, and the seven bytes behind the next one's number.
type Extension = (u8, [u8; 7]);
const HOP_BY_HOP: Extension = (0, [0, 1, 4, 0, 0, 0, 0]);
const ROUTING: Extension = (43, [0, 4, 0, 0, 0, 0, 0]);
/// Neither the first of several nor one of several.
const ATOMIC_FRAGMENT: Extension = (44, [0, 0, 0, 0, 0, 0, 9]);
/// An authentication header is longer: see [`with_ah`].
const AH: u8 = 51;

const DELETE: &str = "delete key\r\n";
const GET: &str = "get key\r\n";

fn delete(key: &str) -> String {
    format!("delete {key}\r\n")
}

fn udp(flow: &Flow, text: &str) -> Vec<u8> {
    flow.udp(&datagram(9, text.as_bytes()))
}

fn tcp(flow: &Flow, text: &str) -> Vec<u8> {
    flow.tcp(1000, 1, PSH_ACK, text.as_bytes())
}

/// Extension headers, the outermost first.
fn behind(frame: Vec<u8>, extensions: &[Extension]) -> Vec<u8> {
    let put = |frame, (kind, body): &Extension| with_ipv6_extension(frame, *kind, *body);
    extensions.iter().rev().fold(frame, put)
}

/// Puts an authentication header of 24 bytes (RFC 4302) behind the IP header.
fn with_ah(frame: Vec<u8>) -> Vec<u8> {
    edit(frame, |frame| {
        let (at, l4) = (network(frame), transport(frame));
        let is_ipv4 = frame[at] >> 4 == 4;
        let (next, length) = if is_ipv4 { (at + 9, at + 2) } else { (at + 6, at + 4) };
        let inner = std::mem::replace(&mut frame[next], AH);
        add16(frame, length, 24);
        let mut header = [0xa5; 24];
        header[..2].copy_from_slice(&[inner, 4]);
        frame.splice(l4..l4, header);
        if is_ipv4 {
            seal_network(frame);
        }
    })
}

/// An IP packet of another protocol.
fn of_protocol(flow: &Flow, protocol: u8) -> Vec<u8> {
    edit(udp(flow, DELETE), |frame| {
        let at = network(frame);
        let field = if frame[at] >> 4 == 4 { at + 9 } else { at + 6 };
        frame[field] = protocol;
        seal_network(frame);
    })
}

fn with_tags(mut flow: Flow, count: u16) -> Flow {
    flow.tags = (1..=count).map(|id| (if id == count { 0x8100 } else { 0x88a8 }, id)).collect();
    flow
}

/// An IPv4 fragment: where its bytes belong, and whether more follow.
fn ipv4_fragment(frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    edit(frame, |frame| {
        let at = network(frame);
        let field = (offset / 8) | (u16::from(more) << 13);
        frame[at + 6..at + 8].copy_from_slice(&field.to_be_bytes());
        seal_network(frame);
    })
}

const WALKED: Counts =
    &[("pass_header", 1), ("write_requests", 1), ("invalidations", 1), ("write_untracked", 1)];
const UNKNOWN: Counts = &[("packet_unparsed", 1), ("flushes", 1)];
const FRAGMENT: Counts = &[("pass_fragment", 1), ("flushes", 1)];
const JUMBO: Counts = &[("pass_length", 1), ("flushes", 1)];

/// A frame with a write of the key, and what it counts. Of TCP's connection nothing is known.
#[allow(clippy::too_many_lines, reason = "a table")]
fn writes(key: &str) -> Vec<(&'static str, Vec<u8>, Counts)> {
    let delete = &delete(key)[..];
    let many = |count| vec![DESTINATION_OPTIONS; count];
    let to_esp = |flow: Flow, payload: &[u8]| flow.udp(payload);
    let jumbo = edit(behind(udp(&v6(), delete), &[(0, [0, 0xc2, 4, 0, 1, 0, 1])]), |frame| {
        let at = network(frame) + 4;
        frame[at..at + 2].fill(0);
    });
    let big = edit(tcp(&v6(), delete), |frame| {
        let at = network(frame) + 4;
        frame[at..at + 2].fill(0);
    });
    vec![
        ("three tags", udp(&with_tags(v4(), 3), delete), WALKED),
        ("three tags, TCP", tcp(&with_tags(v6(), 3), delete), UNFOLLOWED),
        ("eight tags", udp(&with_tags(v6(), 8), delete), WALKED),
        ("eleven tags", udp(&with_tags(v4(), 11), delete), UNKNOWN),
        ("IPv4 options", with_ipv4_options(udp(&v4(), delete)), WALKED),
        ("IPv4 options, TCP", with_ipv4_options(tcp(&v4(), delete)), UNFOLLOWED),
        ("two extensions", behind(udp(&v6(), delete), &[HOP_BY_HOP, DESTINATION_OPTIONS]), WALKED),
        (
            "two extensions, TCP",
            behind(tcp(&v6(), delete), &[HOP_BY_HOP, DESTINATION_OPTIONS]),
            UNFOLLOWED,
        ),
        (
            "every extension",
            behind(
                udp(&v6(), delete),
                &[HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, DESTINATION_OPTIONS],
            ),
            WALKED,
        ),
        ("eight extensions", behind(udp(&v6(), delete), &many(8)), WALKED),
        ("nine extensions", behind(udp(&v6(), delete), &many(9)), UNKNOWN),
        (
            "an extension in a VLAN",
            behind(tcp(&v6().vlan(5), delete), &[ROUTING, DESTINATION_OPTIONS]),
            UNFOLLOWED,
        ),
        ("AH", with_ah(udp(&v4(), delete)), WALKED),
        ("AH, IPv6", with_ah(udp(&v6(), delete)), WALKED),
        ("AH, TCP", with_ah(tcp(&v4(), delete)), UNFOLLOWED),
        ("hop-by-hop and AH", behind(with_ah(tcp(&v6(), delete)), &[HOP_BY_HOP]), UNFOLLOWED),
        ("ESP", of_protocol(&v4(), 50), UNKNOWN),
        ("ESP, IPv6", of_protocol(&v6(), 50), UNKNOWN),
        ("an extension and ESP", behind(of_protocol(&v6(), 50), &[HOP_BY_HOP]), UNKNOWN),
        ("IPComp", of_protocol(&v4(), 108), UNKNOWN),
        ("ESP in UDP", to_esp(v4().to("10.1.0.1:4500"), &[7; 40]), UNKNOWN),
        ("ESP in UDP, IPv6", to_esp(v6().to("[fd00::1]:4500"), &[7; 40]), UNKNOWN),
        ("SRv6 around IPv6", behind(of_protocol(&v6(), 41), &[ROUTING]), UNKNOWN),
        ("SRv6 around IPv4", behind(of_protocol(&v6(), 4), &[ROUTING]), UNKNOWN),
        ("an IPv4 fragment", ipv4_fragment(udp(&v4(), delete), 0, true), FRAGMENT),
        ("an IPv4 fragment, TCP", ipv4_fragment(tcp(&v4(), delete), 0, true), FRAGMENT),
        ("an IPv6 fragment", behind(udp(&v6(), delete), &[FIRST_FRAGMENT]), FRAGMENT),
        (
            "hop-by-hop and a fragment",
            behind(udp(&v6(), delete), &[HOP_BY_HOP, FIRST_FRAGMENT]),
            FRAGMENT,
        ),
        (
            "a fragment and options, TCP",
            behind(tcp(&v6(), delete), &[FIRST_FRAGMENT, DESTINATION_OPTIONS]),
            FRAGMENT,
        ),
        ("a fragment that is whole", behind(udp(&v6(), delete), &[ATOMIC_FRAGMENT]), FRAGMENT),
        (
            "a fragment whose headers go on in the next",
            edit(behind(udp(&v6(), delete), &[FIRST_FRAGMENT, DESTINATION_OPTIONS]), |frame| {
                let at = network(frame);
                frame.truncate(at + 40 + 8 + 8);
                frame[at + 40 + 8 + 1] = 9;
                frame[at + 4..at + 6].copy_from_slice(&16_u16.to_be_bytes());
            }),
            UNKNOWN,
        ),
        ("a UDP jumbogram", jumbo, JUMBO),
        ("BIG TCP", big, UNFOLLOWED),
        ("to an IPv4 address in IPv6", udp(&v6().to("[::ffff:10.1.0.1]:11211"), delete), UNKNOWN),
        (
            "the last of a connection behind options",
            behind(v6().tcp(1000, 1, FIN_ACK, delete.as_bytes()), &[DESTINATION_OPTIONS; 3]),
            UNFOLLOWED,
        ),
    ]
}

#[test]
fn a_write_behind_any_headers_is_seen() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut unseen = Vec::new();
    for nth in 0..writes("").len() {
        // After some writes a key stays closed for a while.
        let key = format!("key{nth}");
        let (what, frame, counts) = writes(&key).swap_remove(nth);
        scene.bmc.end_quarantine();
        scene.fill(&v4(), &key, 0, KEY_DATA);
        let before = scene.bmc.counters();
        assert_eq!(scene.bmc.receive(&frame), Verdict::Passed, "{what}");
        let counted = scene.bmc.counters().since(&before);
        if scene.has(&v4(), &key) || counted != Counters::new(counts) {
            unseen.push((what, counted));
        }
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
}

/// What cannot be for a memcached, whatever its headers are, does not empty the cache;
/// nor does a GET that can be walked.
#[test]
fn what_is_no_write_changes_nothing_whatever_its_headers() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let other = |flow: Flow| {
        let target = std::net::SocketAddr::new(flow.target.ip(), 53);
        flow.to(&target.to_string())
    };
    let header: Counts = &[("pass_header", 1)];
    let rows: Vec<(&str, Vec<u8>, Counts)> = vec![
        ("a GET behind options", with_ipv4_options(udp(&v4(), GET)), header),
        ("a GET behind extensions", behind(udp(&v6(), GET), &[HOP_BY_HOP, ROUTING]), header),
        ("a GET in three VLANs", udp(&with_tags(v4(), 3), GET), header),
        ("a GET behind AH", with_ah(udp(&v4(), GET)), header),
        ("another port, options", with_ipv4_options(udp(&other(v4()), DELETE)), &[]),
        ("another port, extensions", behind(tcp(&other(v6()), DELETE), &[HOP_BY_HOP; 2]), &[]),
        ("another port, three VLANs", tcp(&other(with_tags(v6(), 3)), DELETE), &[]),
        ("another port, AH", with_ah(udp(&other(v4()), DELETE)), &[]),
        ("another port, a fragment", ipv4_fragment(udp(&other(v4()), DELETE), 0, true), &[]),
        ("a later fragment", ipv4_fragment(udp(&v4(), DELETE), 1480, false), &[]),
        ("a later IPv6 fragment", behind(udp(&v6(), DELETE), &[LATER_FRAGMENT]), &[]),
        ("ICMP", of_protocol(&v4(), 1), &[]),
        ("multicast listener reports", behind(of_protocol(&v6(), 58), &[HOP_BY_HOP]), &[]),
        ("IPIP", of_protocol(&v4(), 4), &[]),
        ("SIT", of_protocol(&v4(), 41), &[]),
        ("GRE", of_protocol(&v4(), 47), &[]),
        ("IPv6 in IPv6", of_protocol(&v6(), 41), &[]),
        ("VXLAN", udp(&v4().to("10.1.0.1:4789"), DELETE), &[]),
        ("IKE", v4().to("10.1.0.1:4500").udp(&[0; 40]), &[]),
        ("ESP in UDP, kept alive", v4().to("10.1.0.1:4500").udp(&[0xff]), &[]),
        ("no next header", behind(of_protocol(&v6(), 59), &[DESTINATION_OPTIONS]), &[]),
        ("from an IPv4 address in IPv6", udp(&v6().from("[::ffff:10.1.0.9]:9"), DELETE), &[]),
        (
            "an extension that is cut short",
            edit(behind(udp(&v6(), DELETE), &[HOP_BY_HOP]), |frame| {
                let at = network(frame);
                frame[at + 41] = 0xff;
            }),
            &[],
        ),
        (
            "MPLS",
            edit(udp(&v4(), DELETE), |frame| {
                frame[12..14].copy_from_slice(&[0x88, 0x47]);
                frame.splice(14..14, [0, 1, 0x01, 64]);
            }),
            &[],
        ),
        (
            "PPPoE",
            edit(udp(&v4(), DELETE), |frame| {
                frame[12..14].copy_from_slice(&[0x88, 0x64]);
                frame.splice(14..14, [0x11, 0, 0, 1, 0, 60, 0, 0x21]);
            }),
            &[],
        ),
    ];
    for (what, frame, counts) in rows {
        scene.passes(what, &frame, counts);
        scene.hits(&v4(), "key", &key_reply());
    }
}

/// memcached gets a datagram with the last of its fragments, half a minute after the
/// first one perhaps.
#[test]
fn each_fragment_of_a_datagram_to_memcached_empties_the_cache() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let frame = udp(&v4(), DELETE);
    let first = ipv4_fragment(frame.clone(), 0, true);
    let later = ipv4_fragment(frame.clone(), 1480, false);
    scene.passes("a later fragment, before the first", &later, &[]);
    scene.hits(&v4(), "key", &key_reply());
    scene.passes("the first fragment", &first, FRAGMENT);
    scene.restore(&v4());
    scene.passes("a later fragment", &later, FRAGMENT);
    assert!(!scene.has(&v4(), "key"));
    scene.restore(&v4());
    for (what, other) in [
        (
            "of another datagram",
            edit(later.clone(), |frame| {
                let at = network(frame) + 4;
                frame[at] ^= 1;
            }),
        ),
        ("of another client", ipv4_fragment(udp(&v4().from("10.1.0.9:1"), DELETE), 8, true)),
    ] {
        let other = edit(other, |frame| seal_network(frame));
        scene.passes(what, &other, &[]);
        scene.hits(&v4(), "key", &key_reply());
    }

    let v6_later = behind(udp(&v6(), DELETE), &[LATER_FRAGMENT]);
    scene.passes("a later one over IPv6", &v6_later, &[]);
    let first = behind(tcp(&v6(), DELETE), &[HOP_BY_HOP, FIRST_FRAGMENT]);
    scene.passes("the first one over IPv6", &first, FRAGMENT);
    scene.restore(&v4());
    scene.passes("a later one over IPv6", &v6_later, FRAGMENT);
    assert!(!scene.has(&v4(), "key"));
}

/// One packet with these datagrams, as UDP GSO and GRO make them, and the size of each.
fn packet_of(flow: &Flow, datagrams: &[Vec<u8>]) -> (Vec<u8>, u32) {
    (flow.udp(&datagrams.concat()), datagrams[0].len() as u32)
}

/// A packet's datagrams, what they count, and whether the key is still there then.
type Several = (&'static str, Vec<Vec<u8>>, Counts, bool);

/// The key has three letters: all datagrams but the last have one size.
#[allow(clippy::too_many_lines, reason = "a table")]
fn several(key: &str) -> Vec<Several> {
    let (get, delete) = (&format!("get {key}\r\n")[..], &delete(key)[..]);
    let write: Counts =
        &[("pass_gso", 2), ("write_requests", 1), ("invalidations", 1), ("write_untracked", 1)];
    let lost: Counts = &[("pass_gso", 2), ("tcp_unparsed", 1), ("flushes", 1)];
    let say = |id: u16, text: &str| datagram(id, text.as_bytes());
    vec![
        ("two GETs", vec![say(1, get), say(2, get)], &[("pass_gso", 2)], true),
        (
            "a GET, a shorter one",
            vec![say(1, "get other\r\n"), say(2, get)],
            &[("pass_gso", 2)],
            true,
        ),
        ("a GET and a write", vec![say(1, "get others\r\n"), say(2, delete)], write, false),
        ("a write and a GET", vec![say(1, delete), say(2, get)], write, false),
        (
            "no line end before a write",
            vec![say(1, &format!("get {key} more")), say(2, delete)],
            &[
                ("pass_gso", 2),
                ("write_requests", 1),
                ("invalidations", 1),
                ("write_untracked", 1),
                ("tcp_unparsed", 1),
                ("flushes", 1),
            ],
            false,
        ),
        // "mn" as it stands in a text would be a command.
        ("an id like a command", vec![say(1, "get others\r\n"), say(0x6d6e, delete)], write, false),
        (
            "a data block up to the next",
            vec![say(1, "set a 0 0 99\r\n"), say(2, delete)],
            &[
                ("pass_gso", 2),
                ("write_requests", 2),
                ("invalidations", 2),
                ("write_untracked", 2),
                ("tcp_unparsed", 1),
                ("flushes", 1),
            ],
            false,
        ),
        // As one text it is a GET of bmc's kind.
        (
            "what looks like one GET",
            vec![say(1, &format!("get {key}")), b"0123456789\r\n".to_vec()],
            &[("pass_gso", 2), ("pass_frame", 1), ("tcp_unparsed", 1), ("flushes", 2)],
            false,
        ),
        // Unless it is one long datagram, memcached does not read the second.
        (
            "a request of two datagrams behind a GET",
            vec![say(1, "get others\r\n"), part(2, 0, 2, delete.as_bytes())],
            &[("pass_gso", 2), ("pass_frame", 1), ("flushes", 1)],
            false,
        ),
        (
            "a request of two datagrams before a GET",
            vec![part(2, 0, 2, delete.as_bytes()), say(1, get)],
            &[("pass_gso", 2), ("pass_frame", 1)],
            true,
        ),
        ("nonsense", vec![say(1, "nonsense\r\n"), say(2, get)], lost, false),
    ]
}

#[test]
fn each_datagram_of_a_packet_is_walked() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let mut wrong = Vec::new();
    for nth in 0..several("").len() {
        let key = format!("{nth:03}");
        let (what, datagrams, counts, stays) = several(&key).swap_remove(nth);
        scene.bmc.end_quarantine();
        scene.fill(&v4(), &key, 0, KEY_DATA);
        let (frame, size) = packet_of(&v4(), &datagrams);
        let before = scene.bmc.counters();
        let verdict = scene.bmc.receive_several(&frame, size);
        assert_eq!(verdict, Verdict::Passed, "{what}");
        let counted = scene.bmc.counters().since(&before);
        if scene.has(&v4(), &key) != stays || counted != Counters::new(counts) {
            wrong.push((what, counted));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// As many as there are; and each is one that memcached will answer.
#[test]
fn many_datagrams_of_a_packet_are_noted_each() {
    let Some(scene) = Scene::with_key(&[v4()]) else {
        return;
    };
    let datagrams: Vec<_> = (0..100).map(|id| datagram(id, b"get a\r\n")).collect();
    let (frame, size) = packet_of(&v4(), &datagrams);
    let verdict = scene
        .counting("100 GETs", &[("pass_gso", 100)], || scene.bmc.receive_several(&frame, size));
    assert_eq!(verdict, Verdict::Passed);
    for id in [0, 99] {
        scene.passes(
            "a GET whose id is in use",
            &v4().get(id, &["b"]),
            &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_outstanding", 1)],
        );
    }
    scene.passes("a GET of its own", &v4().get(100, &["b"]), LEASED);
    scene.hits(&v4(), "key", &key_reply());
    // More than any kernel puts together.
    let datagrams: Vec<_> = (0..130).map(|id| datagram(id, b"get a\r\n")).collect();
    let (frame, size) = packet_of(&v4(), &datagrams);
    scene.counting("130 GETs", &[("pass_gso", 128), ("flushes", 1)], || {
        scene.bmc.receive_several(&frame, size)
    });
    assert!(!scene.has(&v4(), "key"));
}

/// memcached sends its datagrams one by one.
#[test]
fn several_datagrams_in_one_packet_fill_nothing() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let id = scene.id();
    scene.passes("the GET", &v4().get(id, &["key"]), LEASED);
    let reply = datagram(id, &values(&[value("key", 0, KEY_DATA)]));
    let frame = v4().reversed().udp(&reply);
    scene.counting("two datagrams", &[("get_replies", 1), ("fill_reply", 1)], || {
        scene.bmc.send_several(&frame, 20);
    });
    assert!(!scene.has(&v4(), "key"));
    let id = scene.id();
    scene.passes("the GET", &v4().get(id, &["key"]), LEASED);
    scene.replies("one", &v4().reversed().udp(&datagram(id, &key_reply())), FILLED);
    assert!(scene.has(&v4(), "key"));
}

/// A GET behind headers that only the walk goes behind is one that memcached answers.
#[test]
fn a_get_behind_options_is_noted() {
    let Some(scene) = Scene::load(&Config::default()) else {
        return;
    };
    let frame = edit_sealed(v4().get(77, &["key"]), |_| ());
    scene.passes("behind options", &with_ipv4_options(frame), &[("pass_header", 1)]);
    scene.passes(
        "the same id",
        &v4().get(77, &["key"]),
        &[("get_requests", 1), ("get_keys", 1), ("misses", 1), ("lease_outstanding", 1)],
    );
}
