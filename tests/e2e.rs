// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! bmc in front of a real memcached: two namespaces, UDP and TCP clients in
//! one, memcached and bmc in the other. Every statement is checked in every
//! mode over IPv4 and IPv6, by what the client gets and by the counters of
//! both: who answered is never guessed. Root only.

mod common;
mod packet;

use std::collections::HashMap;
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use nix::sys::signal::Signal;

use common::Bmc;
use common::COUNTERS;
use common::Frames;
use common::Impostor;
use common::Memcached;
use common::Net;
use common::PATIENCE;
use common::PORT;
use common::Reply;
use common::Rng;
use common::RngExt as _;
use common::Tcp;
use common::Udp;
use common::can_run;
use common::eventually;
use common::items;
use common::run;
use common::total;
use packet::Flow;
use packet::datagram;
use packet::part;
use packet::room;

/// Long enough for a packet that should not come.
const A_WHILE: Duration = Duration::from_millis(50);
/// What most tests attach with: entries outlive the test.
const LASTING: &[&str] = &["--unknown-ttl", "60s"];
/// The largest reply text that memcached sends in one datagram.
const REPLY_MAX: usize = 1392;

/// How requests come to memcached.
#[derive(Clone, Copy)]
struct Path {
    mode: &'static str,
    server: IpAddr,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.mode, if self.server.is_ipv4() { 4 } else { 6 })
    }
}

/// Makes each test one of every path.
macro_rules! on_every_path {
    ($($test:ident)*) => {
        on_every_path! { @ native_ipv4 "native" SERVER4 [$($test)*] }
        on_every_path! { @ native_ipv6 "native" SERVER6 [$($test)*] }
        on_every_path! { @ tc_ipv4 "tc" SERVER4 [$($test)*] }
        on_every_path! { @ tc_ipv6 "tc" SERVER6 [$($test)*] }
        on_every_path! { @ generic_ipv4 "generic" SERVER4 [$($test)*] }
        on_every_path! { @ generic_ipv6 "generic" SERVER6 [$($test)*] }
    };
    (@ $path:ident $mode:literal $server:ident [$($test:ident)*]) => {
        mod $path {
            $(
                #[test]
                fn $test() {
                    let path = super::Path { mode: $mode, server: super::Net::$server };
                    let name = format!("{}-{path}", stringify!($test));
                    if super::can_run(&name) {
                        super::$test(&name, path);
                    }
                }
            )*
        }
    };
}

on_every_path! {
    answers_the_second_get_with_the_same_bytes
    answers_where_the_network_computes_no_checksums
    never_answers_what_memcached_splits
    forgets_what_is_written_over_tcp
    forgets_what_is_written_over_loopback
    forgets_what_is_written_without_a_reply
    hands_on_unchanged_what_it_does_not_answer
    answers_several_keys_in_one_datagram
    leaves_tagged_frames_alone
    answers_only_allowed_sources
    keeps_nothing_beyond_its_age
    ends_an_entry_with_its_item
    is_never_wrong_under_random_load
}

/// Who answered a GET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Kernel,
    Memcached,
}
use Origin::Kernel;
use Origin::Memcached as Server;

/// The network, memcached, bmc and a client of each kind.
struct Bed {
    udp: Udp,
    tcp: Tcp,
    /// For memcached's counters: a connection on which nothing is written.
    observer: Tcp,
    bmc: Bmc,
    memcached: Memcached,
    net: Rc<Net>,
    server: IpAddr,
}

impl Bed {
    fn new(name: &str, path: Path, args: &[&str]) -> Self {
        let net = Rc::new(Net::new(name));
        Self::on(net, path, args)
    }

    fn on(net: Rc<Net>, path: Path, args: &[&str]) -> Self {
        let memcached = Memcached::start(&net.server, &["-t", "2"]);
        let bmc = Bmc::attach(&net, &[&["--mode", path.mode, "--memory", "16M"], args].concat());
        let [tcp, observer] = [(); 2].map(|()| Tcp::connect(&net.client, path.server));
        let udp = Udp::connect(&net.client, path.server);
        Self { udp, tcp, observer, bmc, memcached, net, server: path.server }
    }

    /// Waits out what attach does not trust: writes it may not have seen.
    fn warm_up(&mut self) {
        self.tcp.set("warm-up", 0, b"x");
        self.fill("warm-up");
        self.tcp = Tcp::connect(&self.net.client, self.server);
    }

    /// Asks over UDP until the kernel answers.
    fn fill(&mut self, key: &str) {
        let filled = eventually(PATIENCE, || self.ask(key).0 == Kernel);
        assert!(filled, "{key} is never answered in the kernel: {}", self.bmc.stats());
    }

    /// A GET over UDP: who answered, and what. The counters of memcached and
    /// of bmc must tell the same story.
    fn ask(&mut self, keys: &str) -> (Origin, Reply) {
        let count = keys.split(' ').filter(|key| !key.is_empty()).count() as u64;
        let (asked, hits) = (self.observer.stat("cmd_get"), self.bmc.total("hits"));
        let reply = self.udp.get(keys);
        let (asked, hits) = (self.observer.stat("cmd_get") - asked, self.bmc.total("hits") - hits);
        let origin = match (asked, hits) {
            (0, hits) if hits == count => Kernel,
            (asked, 0) if asked == count => Server,
            _ => panic!("get {keys}: memcached counts {asked} and bmc {hits}"),
        };
        if origin == Kernel {
            assert_eq!(reply.datagrams.len(), 1, "the kernel answers by one datagram");
        }
        assert_eq!(self.udp.receive(Duration::from_millis(1)), None, "get {keys} is answered once");
        (origin, reply)
    }

    /// Whether XDP has answered, and not only TC in its stead. Generic XDP does
    /// not where clients leave their checksum to the device.
    fn expect_hooks(&self, xdp: bool) {
        let stats = self.bmc.stats();
        let (hits, late) = (total(&stats, "hits"), total(&stats, "tc_replies"));
        assert_eq!(hits > late, xdp, "{stats}");
    }

    /// As `ask`, and the reply must be memcached's own and come from `origin`.
    #[track_caller]
    fn expect(&mut self, origin: Origin, keys: &str) {
        let (from, reply) = self.ask(keys);
        assert_eq!(from, origin, "get {keys}: {}", self.bmc.stats());
        let own = self.tcp.get(keys);
        assert!(
            reply.text == own,
            "get {keys}:\n{}\nnot\n{}",
            reply.text.escape_ascii(),
            own.escape_ascii()
        );
    }
}

/// A key of a length.
fn key(len: usize) -> String {
    "k".repeat(len)
}

fn answers_the_second_get_with_the_same_bytes(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    let mut rng = Rng::from_env(name);

    let mut values: Vec<Vec<u8>> =
        [0, 1, 2, 7, 32, 113, 114, 500, 1000].map(|len| rng.bytes(len)).to_vec();
    for text in [
        "\r\n",
        "END\r\n",
        "VALUE x 0 1\r\n",
        "\r\nEND\r\n",
        "x\r\nEND",
        "VALUE k 0 1\r\nx\r\nEND\r\n",
    ] {
        values.push(text.into());
    }
    for len in [1, 2, 7, 8, 11, 12, 16, 249, 250] {
        let key = key(len);
        for flags in [0, u32::MAX] {
            values.push(rng.bytes(room(&key, flags)));
            for value in &values {
                // Both flags for some, to save time.
                if flags != 0 && value.len() % 2 == 1 {
                    continue;
                }
                bed.tcp.set(&key, flags, value);
                bed.expect(Server, &key);
                bed.expect(Kernel, &key);
            }
            values.pop();
        }
    }
    bed.expect_hooks(path.mode == "native");
}

fn answers_where_the_network_computes_no_checksums(name: &str, path: Path) {
    let net = Rc::new(Net::new(name));
    for namespace in [&net.client, &net.server] {
        run(namespace.command("ethtool").args(["-K", Net::DEVICE, "tx", "off"]));
    }
    let mut bed = Bed::on(net, path, LASTING);
    bed.warm_up();
    for len in [0, 1, 32, 500] {
        let key = key(len + 1);
        let key = &key[..key.len().min(100)];
        bed.tcp.set(key, 1, &Rng::new(len as u64).bytes(len));
        bed.expect(Server, key);
        bed.expect(Kernel, key);
    }
    bed.expect_hooks(path.mode != "tc");
}

fn never_answers_what_memcached_splits(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    for len in [1, 250] {
        let key = key(len);
        for more in [1, 100, 5000] {
            bed.tcp.set(&key, 0, &Rng::new(1).bytes(room(&key, 0) + more));
            let fills = bed.bmc.total("fills");
            for _ in 0..3 {
                bed.expect(Server, &key);
            }
            assert_eq!(bed.bmc.total("fills"), fills);
        }
    }
}

/// A way to write a key.
type Write<'a> = &'a dyn Fn(&mut Tcp, &str);

fn forgets_what_is_written_over_tcp(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    let mut older = Some(Tcp::connect(&bed.net.client, path.server));
    bed.warm_up();
    let store = |verb: &'static str, expected: &'static str| {
        move |tcp: &mut Tcp, key: &str| assert_eq!(tcp.store(verb, key, 7, 0, b"5", ""), expected)
    };
    let say = |verb: &'static str, tail: &'static str, expected: &'static str| {
        move |tcp: &mut Tcp, key: &str| {
            assert_eq!(tcp.command(&format!("{verb} {key}{tail}")), expected);
        }
    };
    let see = |verb: &'static str| {
        move |tcp: &mut Tcp, key: &str| {
            assert!(tcp.values(&format!("{verb} {key}")).starts_with(b"VALUE"));
        }
    };
    let cas = |tcp: &mut Tcp, key: &str| {
        let tail = format!(" {}", tcp.unique(key));
        assert_eq!(tcp.store("cas", key, 3, 0, b"77", &tail), "STORED");
    };
    let pipelined = |tcp: &mut Tcp, key: &str| {
        tcp.send(
            format!("set x 0 0 1\r\nx\r\nset {key} 0 0 2\r\n12\r\nset x 0 0 1\r\nx\r\n").as_bytes(),
        );
        assert_eq!([tcp.line(), tcp.line(), tcp.line()], ["STORED"; 3]);
    };
    let behind_a_get = |tcp: &mut Tcp, key: &str| {
        tcp.send(format!("get nothing\r\nset {key} 0 0 2\r\n12\r\n").as_bytes());
        assert_eq!([tcp.line(), tcp.line()], ["END", "STORED"]);
    };
    let in_pieces = |tcp: &mut Tcp, key: &str| {
        for piece in [&format!("set {key} 0 0 3\r\n"), "34", "5\r\n"] {
            tcp.send(piece.as_bytes());
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(tcp.line(), "STORED");
    };
    let in_halves = |tcp: &mut Tcp, key: &str| {
        let (half, rest) = key.split_at(key.len() / 2);
        tcp.send(format!("set {half}").as_bytes());
        thread::sleep(Duration::from_millis(20));
        tcp.send(format!("{rest} 0 0 3\r\n345\r\n").as_bytes());
        assert_eq!(tcp.line(), "STORED");
    };
    // The last ones make bmc forget everything.
    let writes: &[(&str, Write<'_>)] = &[
        ("set", &store("set", "STORED")),
        ("add", &store("add", "NOT_STORED")),
        ("replace", &store("replace", "STORED")),
        ("append", &store("append", "STORED")),
        ("prepend", &store("prepend", "STORED")),
        ("cas", &cas),
        ("touch", &say("touch", " 100", "TOUCHED")),
        ("touch-to-the-past", &say("touch", " -1", "TOUCHED")),
        ("gat", &see("gat 100")),
        ("gats", &see("gats 0")),
        ("incr", &say("incr", " 5", "15")),
        ("decr", &say("decr", " 5", "5")),
        ("delete", &say("delete", "", "DELETED")),
        ("meta-set", &say("ms", " 2\r\nab", "HD")),
        ("meta-arithmetic", &say("ma", "", "HD")),
        ("meta-delete", &say("md", "", "HD")),
        ("set-by-an-older-client", &store("set", "STORED")),
        ("set-among-others", &pipelined),
        ("set-behind-a-get", &behind_a_get),
        ("set-in-pieces", &in_pieces),
        ("set-in-halves", &in_halves),
        ("flush_all", &|tcp, _| assert_eq!(tcp.command("flush_all"), "OK")),
    ];
    for &(key, write) in writes {
        bed.tcp.set(key, 0, b"10");
        bed.fill(key);
        let before = bed.bmc.stats();
        let mut tcp = match older.take_if(|_| key.ends_with("older-client")) {
            Some(older) => older,
            None => Tcp::connect(&bed.net.client, path.server),
        };
        write(&mut tcp, key);
        let after = bed.bmc.stats();
        for counter in ["write_requests", "invalidations"] {
            let moved = total(&after, counter) > total(&before, counter);
            let flushes = ["flush_all", "set-in-halves"].contains(&key);
            assert!(moved || flushes, "{key}: {counter}");
        }
        bed.expect(Server, key);
    }
    // It learns them again.
    for (key, _) in writes {
        bed.tcp.set(key, 0, b"11");
        bed.fill(key);
        bed.expect(Kernel, key);
    }
}

fn forgets_what_is_written_over_loopback(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    let local =
        if path.server.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { "::1".parse().unwrap() };
    let other = if path.server.is_ipv4() { Net::SERVER6 } else { Net::SERVER4 };
    for address in [local, path.server, other] {
        let mut tcp = Tcp::connect(&bed.net.server, address);
        for value in [b"one", b"two"] {
            bed.tcp.set("k", 0, b"old");
            bed.fill("k");
            tcp.set("k", 0, value);
            bed.expect(Server, "k");
        }
    }
}

fn forgets_what_is_written_without_a_reply(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    let by_tcp = |bed: &mut Bed| {
        bed.tcp.send(b"set k 0 0 3 noreply\r\nnew\r\n");
        // Its reply proves that the set is done.
        bed.tcp.command("version");
    };
    let by_udp = |bed: &mut Bed| {
        bed.udp.send(b"set k 0 0 3\r\nnew\r\n");
        let reply = bed.udp.receive(PATIENCE).expect("memcached answers a set");
        assert_eq!(&reply[8..], b"STORED\r\n");
    };
    let writes: [&dyn Fn(&mut Bed); 2] = [&by_tcp, &by_udp];
    for (write, is_certain) in writes.into_iter().zip([true, false]) {
        bed.tcp.set("k", 0, b"old");
        bed.fill("k");
        write(&mut bed);
        bed.expect(Server, "k");
        if !is_certain {
            // Until the write must have been done, nothing is learnt.
            bed.expect(Server, "k");
            bed.fill("k");
        }
        bed.expect(Kernel, "k");
    }
}

fn hands_on_unchanged_what_it_does_not_answer(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    for key in ["a", "b"] {
        bed.tcp.set(key, 0, key.as_bytes());
        bed.fill(key);
    }
    let impostor = Impostor::new(&bed.net.server, path.server);
    let sender = bed.udp.address();
    let text = |text: &str| datagram(0x1234, text.as_bytes());

    let reads = [
        text("get missing\r\n"),
        text("get a missing\r\n"),
        text("get missing a\r\n"),
        text("get a b missing a b\r\n"),
        text("gets a\r\n"),
        text("mg a v\r\n"),
        text("version\r\n"),
        text("get a\r\nget b\r\n"),
        text(&format!("get {}\r\n", ["a"; 33].join(" "))),
        text(&format!("get {}\r\n", key(251))),
        // Not one whole request: one of several, less than a frame, no text.
        part(0x1234, 0, 2, b"get a\r\n"),
        part(0x1234, 1, 2, b"get a\r\n"),
        part(0x1234, 0, 0, b"get a\r\n"),
        b"get a\r\n".to_vec(),
        text(""),
    ];
    // bmc does not know what these do, or knows that they write.
    let writes = [
        text("get a\r\n\r\n"),
        text("get a\r\nx"),
        text("get a\r"),
        text("get a"),
        text("get\r\n"),
        text("get \r\n"),
        text("GET a\r\n"),
        text("getx a\r\n"),
        text("get a\tb\r\n"),
        text("gat 0 a\r\n"),
        text("delete a\r\n"),
        text("set a 0 0 1\r\nx\r\n"),
        text("\r\n"),
        text("x"),
        text("\0"),
        text(&format!("get {}\r\n", [key(250).as_str(); 20].join(" "))),
        // A GET of the binary protocol, key "a".
        datagram(
            0x1234,
            &[&b"\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01"[..], &[0; 12], b"a"].concat(),
        ),
    ];
    let arrives = |request: &[u8]| {
        let (got, from) = impostor
            .receive(PATIENCE)
            .unwrap_or_else(|| panic!("{} does not arrive", request.escape_ascii()));
        assert!(got == request, "{} arrives as {}", request.escape_ascii(), got.escape_ascii());
        assert_eq!(from, sender);
    };
    for request in &reads {
        bed.udp.send_raw(request);
        arrives(request);
    }
    // The others were there for the taking: none of these disturbs them.
    let hits = bed.bmc.total("hits");
    assert_eq!(bed.udp.get("a b").text, b"VALUE a 0 1\r\na\r\nVALUE b 0 1\r\nb\r\nEND\r\n");
    assert_eq!(bed.bmc.total("hits"), hits + 2);
    assert_eq!(impostor.receive(A_WHILE), None, "what is answered does not arrive");
    for request in &writes {
        bed.udp.send_raw(request);
        arrives(request);
    }
    assert_eq!(bed.udp.receive(A_WHILE), None, "nobody answers these");
}

fn answers_several_keys_in_one_datagram(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    let keys: Vec<String> = (0..33).map(|i| format!("key-{i}")).collect();
    for (i, key) in keys.iter().enumerate() {
        bed.tcp.set(key, i as u32, &vec![b'v'; i % 5]);
        bed.fill(key);
    }
    for count in [2, 3, 4, 16, 32] {
        bed.expect(Kernel, &keys[..count].join(" "));
    }
    for twice in ["key-1 key-1", "key-2 key-1 key-2"] {
        bed.expect(Kernel, twice);
    }
    // More than bmc looks up.
    let passed = bed.bmc.total("passes.keys");
    bed.expect(Server, &keys.join(" "));
    assert_eq!(bed.bmc.total("passes.keys"), passed + 1);
    // A missing one, wherever it stands.
    for some in ["missing key-1", "key-1 missing", "key-1 missing key-2", "missing gone"] {
        bed.expect(Server, some);
        bed.expect(Server, some);
    }
    // One that was just forgotten.
    bed.tcp.set("key-2", 0, b"new");
    bed.expect(Server, "key-1 key-2 key-3");
    // Each fits, both do not.
    for key in ["large-1", "large-2"] {
        bed.tcp.set(key, 0, &[b'x'; 700]);
        bed.fill(key);
    }
    let passed = bed.bmc.total("passes.size");
    bed.expect(Server, "large-1 large-2");
    assert_eq!(bed.bmc.total("passes.size"), passed + 1);
    bed.expect(Kernel, "large-1 key-1");
}

fn leaves_tagged_frames_alone(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    bed.tcp.set("k", 0, b"v");
    bed.fill("k");
    let sent = Frames::new(&bed.net.client);
    let seen = Frames::new(&bed.net.server);

    let server = SocketAddr::from((path.server, PORT));
    let mut flow =
        Flow::new(&bed.udp.address().to_string(), &server.to_string()).with_mac(seen.address);
    flow.source_mac = sent.address;
    let request = datagram(0x7a67, b"get k\r\n");
    for tagged in [flow.clone().vlan(5), flow.clone().qinq(5, 6)] {
        let frame = tagged.udp(&request);
        let hits = bed.bmc.total("hits");
        sent.send(&frame);
        let mut frames = std::iter::from_fn(|| seen.next());
        let got = frames.find(|frame| frame.ends_with(&request)).expect("the frame comes through");
        // The kernel has taken the outer tag off.
        assert_eq!(got, [&frame[..12], &frame[16..]].concat());
        assert_eq!(bed.udp.receive(A_WHILE), None, "another network's client gets no answer");
        assert_eq!(bed.bmc.total("hits"), hits, "another network's key is another key");
    }
    // It was the tag: without it, the same frame is answered.
    sent.send(&flow.udp(&request));
    let reply = bed.udp.receive(PATIENCE).expect("a reply");
    assert_eq!(reply, datagram(0x7a67, b"VALUE k 0 1\r\nv\r\nEND\r\n"));
    bed.expect(Kernel, "k");
}

fn answers_only_allowed_sources(name: &str, path: Path) {
    let (client, elsewhere) = match path.server {
        IpAddr::V4(_) => (format!("{}/32", Net::CLIENT4), "10.11.12.128/25"),
        IpAddr::V6(_) => (format!("{}/128", Net::CLIENT6), "fd00:0:0:1::/64"),
    };
    let net = Rc::new(Net::new(name));
    let args = [LASTING, &["--allow", elsewhere]].concat();
    let mut bed = Bed::on(Rc::clone(&net), path, &args);
    bed.tcp.set("k", 0, b"v");
    for passed in 1..4 {
        bed.expect(Server, "k");
        assert_eq!(bed.bmc.total("passes.source"), passed);
    }
    assert_eq!(bed.bmc.total("fills"), 0);
    drop(bed);

    let args = [LASTING, &["--allow", elsewhere, "--allow", &client]].concat();
    let mut bed = Bed::on(net, path, &args);
    bed.warm_up();
    assert_eq!(bed.bmc.total("passes.source"), 0);
}

fn keeps_nothing_beyond_its_age(name: &str, path: Path) {
    let net = Rc::new(Net::new(name));
    for limits in [&["--max-age", "1s", "--unknown-ttl", "60s"][..], &["--unknown-ttl", "1s"]] {
        let mut bed = Bed::on(Rc::clone(&net), path, limits);
        bed.warm_up();
        bed.tcp.set("k", 0, b"v");
        // That it has no expiry time is forgotten by this.
        bed.bmc.run(&["flush"]);
        bed.fill("k");
        thread::sleep(Duration::from_secs(1));
        bed.expect(Server, "k");
        bed.fill("k");
    }
}

fn ends_an_entry_with_its_item(name: &str, path: Path) {
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let life: u64 =
        std::env::var("BMC_E2E_LIFE").map_or(4, |seconds| seconds.parse().expect("a number"));
    bed.tcp.command(&format!("set relative 0 {life} 1\r\nv"));
    bed.tcp.command(&format!("set absolute 0 {} 1\r\nv", now + life + 1));
    bed.tcp.command("set touched 0 0 1\r\nv");
    bed.tcp.command(&format!("touch touched {life}"));
    bed.tcp.command("set endless 0 0 1\r\nv");
    let mut left = vec!["relative", "absolute", "touched"];
    for key in &left {
        bed.fill(key);
    }
    bed.fill("endless");
    while !left.is_empty() {
        // Gone for memcached before bmc was asked.
        left.retain(|key| {
            let is_there = bed.tcp.command(&format!("mg {key}")) == "HD";
            let answered = bed.udp.get(key).text != b"END\r\n";
            assert!(is_there || !answered, "{key} is gone, and answered");
            is_there
        });
        thread::sleep(Duration::from_millis(20));
    }
    bed.expect(Kernel, "endless");

    // Nor is one learnt that is about to end, or has ended.
    let refused = bed.bmc.total("fill_refusals.expiry");
    bed.tcp.command("set short 0 2 1\r\nv");
    bed.tcp.command("set ended 0 -1 1\r\nv");
    let mut given = 0;
    for _ in 0..2 {
        // A slow machine asks the second time when it has ended.
        let (origin, reply) = bed.ask("short");
        assert_eq!(origin, Server);
        given += u64::from(reply.text != b"END\r\n");
        bed.expect(Server, "ended");
    }
    assert!(given > 0);
    assert_eq!(bed.bmc.total("fill_refusals.expiry"), refused + given);
}

#[test]
fn flush_forgets_and_entries_shows() {
    let path = Path { mode: "auto", server: Net::SERVER4 };
    let name = "flush_forgets_and_entries_shows";
    if !can_run(name) {
        return;
    }
    let mut bed = Bed::new(name, path, LASTING);
    bed.warm_up();
    bed.tcp.set("shown", 9, b"value");
    bed.fill("shown");

    let stats = bed.bmc.stats();
    for name in COUNTERS {
        assert!(total(&stats, name) > 0 || name == "hit_mispredictions", "{name}: {stats}");
    }
    assert_eq!(total(&stats, "get_keys"), total(&stats, "hits") + total(&stats, "misses"));
    assert!(stats["totals"]["passes"].is_object(), "{stats}");
    assert_eq!(stats["interfaces"][0]["name"], Net::DEVICE, "{stats}");
    assert!(stats["interfaces"][0]["mode"].is_string(), "{stats}");

    assert!(bed.bmc.run(&["entries"]).contains("shown"));
    assert!(bed.bmc.run(&["entries", "--key", "shown", "--json"]).contains("shown"));
    assert!(!bed.bmc.run(&["entries", "--key", "other"]).contains("shown"));

    let shown: serde_json::Value =
        serde_json::from_str(&bed.bmc.run(&["status", "--json"])).unwrap();
    let classes = shown["classes"].as_array().unwrap();
    let class = classes.iter().find(|class| class["slot_bytes"] == 48).unwrap();
    assert!(class["used"].as_u64() >= Some(1) && class["used"].as_u64() <= Some(10), "{class}");
    assert_eq!((&class["slabs"], &class["slots"]), (&1.into(), &5429.into()));
    assert_eq!(class["bytes"], 256 << 10, "{class}");
    let shown = bed.bmc.run(&["status"]);
    assert!(shown.contains(" 48 B: ") && shown.contains(" of 5,429 used, 0.2 MiB"), "{shown}");

    bed.expect(Kernel, "shown");
    bed.bmc.run(&["flush"]);
    assert!(!bed.bmc.run(&["entries"]).contains("shown"));
    bed.expect(Server, "shown");
    bed.fill("shown");
}

/// Ways to end memcached; none by the command of its own.
const ENDS: [Option<Signal>; 3] = [Some(Signal::SIGKILL), Some(Signal::SIGTERM), None];

/// Asks for one key over and over, until `done`: no reply may be older than the
/// generation that there was at least when the request left.
fn ask_for_generations(
    socket: &UdpSocket,
    at: SocketAddr,
    at_least: &AtomicUsize,
    done: &AtomicBool,
) {
    socket.set_read_timeout(Some(A_WHILE)).expect("an option of sockets");
    let mut reply = [0; 2048];
    let mut id = 0_u16;
    while !done.load(SeqCst) {
        id = id.wrapping_add(1);
        let least = at_least.load(SeqCst);
        socket.send_to(&datagram(id, b"get generation\r\n"), at).expect("the network is up");
        while let Ok(len) = socket.recv(&mut reply) {
            if reply[..2] != id.to_be_bytes() {
                continue;
            }
            let (items, _) = items(&reply[8..len]);
            if let Some(item) = items.first() {
                let text = String::from_utf8_lossy(&item.data);
                let generation: usize = text.parse().expect("a number");
                assert!(generation >= least, "generation {generation} after {least} had begun");
            }
            break;
        }
    }
}

#[test]
fn keeps_in_mind_a_flush_all_that_was_ordered_before_the_attach() {
    const DELAY: Duration = Duration::from_secs(12);
    let name = "keeps_in_mind_a_flush_all_that_was_ordered_before_the_attach";
    if !can_run(name) {
        return;
    }
    let net = Rc::new(Net::new(name));
    let _memcached = Memcached::start(&net.server, &["-t", "2"]);
    let ordered = Instant::now();
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    assert_eq!(tcp.command(&format!("flush_all {}", DELAY.as_secs())), "OK");
    let bmc = Bmc::attach(&net, LASTING);
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    let mut udp = Udp::connect(&net.client, Net::SERVER4);
    tcp.set("key", 0, b"flushed");
    let cached = || {
        let reply = udp.get("key");
        assert!(reply.text.starts_with(b"VALUE"), "{}", reply.text.escape_ascii());
        bmc.total("hits") > 0
    };
    assert!(eventually(DELAY / 2, cached), "{}", bmc.stats());
    // memcached's clock may lag, by which it is early or late.
    thread::sleep((DELAY + Duration::from_secs(1)).saturating_sub(ordered.elapsed()));
    assert_eq!(tcp.get("key"), b"END\r\n");
    assert_eq!(udp.get("key").text, b"END\r\n", "{}", bmc.stats());
    // What comes later is cached again.
    tcp.set("key", 0, b"later");
    let hits = bmc.total("hits");
    let cached = || {
        assert!(udp.get("key").text.starts_with(b"VALUE key 0 5"));
        bmc.total("hits") > hits
    };
    assert!(eventually(PATIENCE, cached), "{}", bmc.stats());
}

/// Clients use TCP alone for as long as it takes; then UDP too. Nothing old is in the cache
/// when it wakes, nor later.
#[test]
fn sleeps_while_all_use_tcp_and_is_right_when_it_wakes() {
    let name = "sleeps_while_all_use_tcp_and_is_right_when_it_wakes";
    if !can_run(name) {
        return;
    }
    let net = Rc::new(Net::new(name));
    let _memcached = Memcached::start(&net.server, &["-t", "4"]);
    let bmc = Bmc::attach(&net, LASTING);
    let mut clients: Vec<_> = (0..8).map(|_| Tcp::connect(&net.client, Net::SERVER4)).collect();
    let mut udp = Udp::connect(&net.client, Net::SERVER4);
    let set = |tcp: &mut Tcp, version: u32| tcp.set("key", 0, version.to_string().as_bytes());
    let expected = |version: u32| {
        let version = version.to_string();
        format!("VALUE key 0 {}\r\n{version}\r\nEND\r\n", version.len()).into_bytes()
    };
    set(&mut clients[0], 0);
    let cached = || {
        assert_eq!(udp.get("key").text, expected(0));
        bmc.total("hits") > 0
    };
    assert!(eventually(PATIENCE, cached), "{}", bmc.stats());

    let mut version = 0;
    let mut asleep = || {
        // Several rounds, as bmc goes by how much is asked in ten seconds, and each look
        // at the status starts a process.
        for _ in 0..8 {
            for tcp in &mut clients {
                version += 1;
                set(tcp, version);
                assert_eq!(tcp.get("key"), expected(version));
            }
        }
        bmc.status()["asleep"] == true
    };
    assert!(eventually(Duration::from_secs(40), &mut asleep), "{}", bmc.stats());
    assert!(asleep(), "it woke although nobody asked");
    assert_eq!(bmc.total("sleeps"), 1);
    assert_eq!(bmc.status()["state"], "caching");

    let hits = bmc.total("hits");
    assert!(bmc.total("write_untracked") > 0, "{}", bmc.stats());
    let awake = || {
        assert_eq!(udp.get("key").text, expected(version));
        bmc.status()["asleep"] == false
    };
    assert!(eventually(Duration::from_secs(40), awake), "{}", bmc.stats());
    // The connections are followed again: what one writes is cached at once.
    let mut written = || {
        let (hits, untracked) = (bmc.total("hits"), bmc.total("write_untracked"));
        for tcp in &mut clients {
            version += 1;
            set(tcp, version);
            assert_eq!(udp.get("key").text, expected(version));
            assert_eq!(udp.get("key").text, expected(version));
        }
        let hits = bmc.total("hits") - hits;
        hits as usize == clients.len() && bmc.total("write_untracked") == untracked
    };
    assert!(eventually(Duration::from_secs(40), &mut written), "{}", bmc.stats());
    assert!(bmc.total("hits") > hits);
    assert_eq!(bmc.total("tcp_unmatched"), 0, "{}", bmc.stats());
}

#[test]
fn forgets_everything_when_memcached_ends() {
    for mode in ["native", "tc"] {
        let name = format!("forgets_everything_when_memcached_ends-{mode}");
        if !can_run(&name) {
            return;
        }
        let path = Path { mode, server: Net::SERVER4 };
        let mut bed = Bed::new(&name, path, LASTING);
        let net = Rc::clone(&bed.net);
        let server = SocketAddr::from((path.server, PORT));
        // Not connected: what nobody takes must not come back as an error.
        let any = || UdpSocket::bind((IpAddr::from([0; 4]), 0)).expect("a UDP socket");
        let sockets = [(); 2].map(|()| net.client.within(any));
        let (at_least, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let _ends = Ends(&done);
            for socket in &sockets {
                scope.spawn(|| ask_for_generations(socket, server, &at_least, &done));
            }
            for (generation, end) in ENDS.into_iter().enumerate() {
                bed.tcp.set("generation", 0, generation.to_string().as_bytes());
                at_least.store(generation, SeqCst);
                let hits = bed.bmc.total("hits");
                assert!(
                    eventually(PATIENCE, || bed.bmc.total("hits") > hits + 10),
                    "{generation}: {}",
                    bed.bmc.stats()
                );
                let before = bed.bmc.stats();
                match end {
                    Some(signal) => bed.memcached.signal(signal),
                    None => bed.tcp.send(b"shutdown\r\n"),
                }
                bed.memcached.wait();
                at_least.store(generation + 1, SeqCst);
                // It has a listener for each address family, and counts at nothing else.
                let after = bed.bmc.stats();
                assert_eq!(total(&after, "memcached_gone"), (generation as u64 + 1) * 2, "{end:?}");
                assert!(total(&after, "flushes") >= total(&before, "flushes") + 2, "{end:?}");
                assert!(!bed.bmc.run(&["entries"]).contains("generation"), "{end:?}");
                bed.memcached = Memcached::start(&net.server, &["-t", "2", "-A"]);
                bed.tcp = Tcp::connect(&net.client, path.server);
            }
        });
    }
}

/// Says so when dropped, so also in a panic, that it is over.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// What the random load asks for. The value of a key is a function of the key
/// and a version, and versions only grow: a reply is right when it is a
/// version between the last one acknowledged before the request left and the
/// last one begun before the reply was read.
struct Keys {
    names: Vec<String>,
    begun: Vec<AtomicUsize>,
    acknowledged: Vec<AtomicUsize>,
}

impl Keys {
    const COUNT: usize = 1000;

    fn new(rng: &mut Rng) -> Self {
        let mut names = HashSet::new();
        while names.len() < Self::COUNT {
            let len = if rng.chance(10) { 1 + rng.below(250) } else { rng.small(1, 40) };
            names.insert((0..len).map(|_| char::from(b'!' + rng.below(94) as u8)).collect());
        }
        let zeros = || (0..Self::COUNT).map(|_| AtomicUsize::new(0)).collect();
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort();
        Self { names, begun: zeros(), acknowledged: zeros() }
    }

    /// What version of a key holds; nothing when it is a delete.
    fn value(key: usize, version: usize) -> Option<Vec<u8>> {
        let mut rng = Rng::new((key * 0x1_0001 + version) as u64);
        if version % 8 == 7 {
            return None;
        }
        let len = rng.small(0, REPLY_MAX);
        let mut value = rng.bytes(len);
        for text in ["\r\n", "END\r\n", "VALUE x 0 1\r\n"] {
            if rng.chance(10) && value.len() > text.len() {
                let at = rng.below(value.len() - text.len());
                value[at..at + text.len()].copy_from_slice(text.as_bytes());
            }
        }
        Some(value)
    }

    fn join(&self, keys: &[usize]) -> String {
        let names: Vec<&str> = keys.iter().map(|&key| self.names[key].as_str()).collect();
        names.join(" ")
    }

    fn flags(key: usize) -> u32 {
        [0, 1, 65535, u32::MAX][key % 4]
    }

    /// Writes the next version of a key; each key has one writer.
    fn write(&self, tcp: &mut Tcp, key: usize) {
        let name = &self.names[key];
        let version = self.begun[key].load(SeqCst) + 1;
        self.begun[key].store(version, SeqCst);
        match Self::value(key, version) {
            Some(value) if version % 32 == 5 => {
                let (flags, len) = (Self::flags(key), value.len());
                tcp.send(format!("set {name} {flags} 0 {len} noreply\r\n").as_bytes());
                tcp.send(&[&value, &b"\r\n"[..]].concat());
                // Its reply proves that the set is done.
                tcp.command("version");
            }
            Some(value) => tcp.set(name, Self::flags(key), &value),
            None => assert_eq!(tcp.command(&format!("delete {name}")), "DELETED"),
        }
        self.acknowledged[key].store(version, SeqCst);
    }
}

/// A request of the random load that was not answered yet.
struct Pending {
    keys: Vec<usize>,
    since: Vec<usize>,
    reply: Reply,
}

impl Pending {
    fn check(&self, keys: &Keys) {
        let (items, _) = items(&self.reply.text);
        let mut items = items.into_iter().peekable();
        for (&key, &since) in self.keys.iter().zip(&self.since) {
            let until = keys.begun[key].load(SeqCst);
            let name = keys.names[key].as_bytes();
            let item = items.next_if(|item| item.key == name && item.flags == Keys::flags(key));
            let data = item.map(|item| item.data);
            let right = (since..=until).any(|version| Keys::value(key, version) == data);
            assert!(
                right,
                "{} is not as in versions {since} to {until}: {data:?}",
                keys.names[key]
            );
        }
        assert_eq!(items.next(), None, "a value nobody asked for");
    }
}

/// Asks `count` random GETs over one socket and checks every reply; returns how
/// many keys it asked for.
fn ask_at_random(keys: &Keys, mut udp: Udp, mut rng: Rng, count: usize) -> u64 {
    const WINDOW: usize = 8;
    let mut asked = 0;
    let mut sent = 0;
    let mut pending: HashMap<u16, Pending> = HashMap::new();
    while sent < count || !pending.is_empty() {
        if sent < count && pending.len() < WINDOW {
            let many = if rng.chance(70) { 1 } else { rng.small(1, 32) };
            let mut wanted: Vec<usize> = (0..many).map(|_| rng.small(0, Keys::COUNT - 1)).collect();
            // A fragmented datagram makes bmc forget everything.
            while keys.join(&wanted).len() > 1400 {
                wanted.pop();
            }
            let since = wanted.iter().map(|&key| keys.acknowledged[key].load(SeqCst)).collect();
            let id = udp.send(format!("get {}\r\n", keys.join(&wanted)).as_bytes());
            pending.insert(id, Pending { keys: wanted, since, reply: Reply::default() });
            asked += pending[&id].keys.len() as u64;
            sent += 1;
            continue;
        }
        let datagram = udp.receive(PATIENCE).unwrap_or_else(|| {
            let lost: Vec<_> = pending.values().map(|request| &request.keys).collect();
            panic!("no reply to the gets of {lost:?}")
        });
        let id = u16::from_be_bytes([datagram[0], datagram[1]]);
        let request =
            pending.get_mut(&id).unwrap_or_else(|| panic!("request {id:#x} is answered twice"));
        request.reply.push(&datagram);
        if request.reply.is_complete() {
            request.check(keys);
            pending.remove(&id);
        }
    }
    assert_eq!(udp.receive(A_WHILE), None, "a reply too many");
    asked
}

fn is_never_wrong_under_random_load(name: &str, path: Path) {
    const CLIENTS: usize = 4;
    let count: usize =
        std::env::var("BMC_E2E_GETS").map_or(100_000, |gets| gets.parse().expect("a number"));
    let mut rng = Rng::from_env(name);
    let mut bed = Bed::new(name, path, LASTING);
    let keys = Keys::new(&mut rng);
    for key in 0..Keys::COUNT {
        keys.write(&mut bed.tcp, key);
    }
    bed.warm_up();
    let before = bed.bmc.stats();
    let cmd_get = bed.observer.stat("cmd_get");

    let clients: Vec<(Udp, Rng)> = (0..CLIENTS)
        .map(|_| (Udp::connect(&bed.net.client, path.server), Rng::new(rng.number())))
        .collect();
    // Even keys are written from outside, odd ones from the server itself.
    let writers: Vec<(Tcp, Rng)> = [&bed.net.client, &bed.net.server]
        .map(|from| (Tcp::connect(from, path.server), Rng::new(rng.number())))
        .into();
    let done = AtomicBool::new(false);
    let asked: u64 = thread::scope(|scope| {
        for (which, (mut tcp, mut rng)) in writers.into_iter().enumerate() {
            let (keys, done) = (&keys, &done);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    keys.write(&mut tcp, rng.below(Keys::COUNT / 2) * 2 + which);
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let clients: Vec<_> = clients
            .into_iter()
            .map(|(udp, rng)| scope.spawn(|| ask_at_random(&keys, udp, rng, count / CLIENTS)))
            .collect();
        let asked = clients.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>();
        done.store(true, SeqCst);
        asked
            .into_iter()
            .map(|asked| asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .sum()
    });

    let after = bed.bmc.stats();
    let hits = total(&after, "hits") - total(&before, "hits");
    let cmd_get = bed.observer.stat("cmd_get") - cmd_get;
    assert_eq!(asked, hits + cmd_get, "every key is looked up by one of the two");
    assert!(hits * 5 > asked, "{hits} hits of {asked} keys: {after}");
    let written = total(&after, "write_requests") - total(&before, "write_requests");
    assert!(written > 0);
    println!("{name}: {count} gets of {asked} keys, {hits} in the kernel, {written} writes");
}
