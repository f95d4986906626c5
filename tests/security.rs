// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What README.md says under "Security", against a real memcached: each threat is
//! tried. Root only.
//!
//! What is not here is elsewhere:
//!
//! | threat | tests |
//! |---|---|
//! | a source that is not allowed | `answers_only_allowed_sources` (e2e), `passes_what_it_must_not_answer` (datapath/reads) |
//! | multicast, broadcast, no source port | `passes_what_it_must_not_answer` |
//! | a malformed frame | `broken_frames_do_no_harm` (datapath/fuzz), `scripts/fuzz.sh` |
//! | a reply that answers another request | `learns_only_from_the_reply_to_its_own_request` (datapath/fills) |
//! | a reply of another memcached, a tag, a port | `entries_belong_to_one_memcached` (datapath/reads) |
//! | a table full of connections | `a_full_table_takes_no_more_and_is_safe` (datapath/table) |
//! | a process that listens and stops | `a_listener_that_ends_is_noticed_until_detach` (lifecycle) |
//! | the pins | `the_pins_are_for_root_alone` (lifecycle) |

mod common;
mod packet;

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use nix::sys::signal::Signal;

use common::Bmc;
use common::Frames;
use common::Memcached;
use common::Net;
use common::PATIENCE;
use common::PORT;
use common::PYTHON;
use common::Process;
use common::Rng;
use common::RngExt as _;
use common::Tcp;
use common::Udp;
use common::can_run;
use common::eventually;
use common::pins;
use common::run;
use common::total;
use packet::Datagram;
use packet::Flow;
use packet::PSH_ACK;
use packet::datagram;
use packet::parse;
use packet::room;
use packet::transport;
use packet::value;
use packet::values;

/// What is forged must not outlive the test by expiry.
const LASTING: &[&str] = &["--unknown-ttl", "60s", "--memory", "16M"];
/// A user who is not memcached's, which the tests run as root.
const NOBODY: u32 = 65534;
/// What the forger of `security/forger.py` answers.
const FORGED: &[u8] = b"VALUE k 0 6\r\nforged\r\nEND\r\n";

/// A memcached with bmc in front, and its clients.
struct Bed {
    udp: Udp,
    tcp: Tcp,
    bmc: Bmc,
    memcached: Memcached,
    net: Rc<Net>,
}

impl Bed {
    /// None where it cannot run.
    fn new(test: &str, args: &[&str]) -> Option<Self> {
        can_run(test).then(|| Self::at(test, Net::SERVER4, args))
    }

    fn at(test: &str, server: IpAddr, args: &[&str]) -> Self {
        let net = Rc::new(Net::new(test));
        let memcached = Memcached::start(&net.server, &["-t", "2"]);
        let bmc = Bmc::attach(&net, &[LASTING, args].concat());
        let tcp = Tcp::connect(&net.client, server);
        let udp = Udp::connect(&net.client, server);
        let mut bed = Self { udp, tcp, bmc, memcached, net };
        bed.fill("warm-up", b"x");
        bed
    }

    /// Stores a value and has it cached.
    fn fill(&mut self, key: &str, data: &[u8]) {
        self.tcp.set(key, 0, data);
        self.cache(key, data);
    }

    /// Asks over UDP until the kernel answers. No answer may be another value.
    fn cache(&mut self, key: &str, data: &[u8]) {
        let expected = values(&[value(key, 0, data)]);
        let cached = eventually(PATIENCE, || {
            let hits = self.bmc.total("hits");
            assert_eq!(self.udp.get(key).text, expected, "get {key}");
            self.bmc.total("hits") > hits
        });
        assert!(cached, "{key} is never answered in the kernel: {}", self.bmc.stats());
    }
}

/// From the client's device to the server's, at the addresses that they have.
fn between(net: &Net, client: &Frames) -> Flow {
    let mut flow = Flow::new(
        &SocketAddr::from((Net::CLIENT4, 40000)).to_string(),
        &SocketAddr::from((Net::SERVER4, PORT)).to_string(),
    );
    flow.source_mac = client.address;
    flow.target_mac = Frames::new(&net.server).address;
    flow
}

/// The datagrams from memcached's port that come to the client within a while.
fn replies(frames: &Frames) -> Vec<(Datagram, usize)> {
    let mut replies = Vec::new();
    while let Some(frame) = frames.next() {
        if frame[..6] == frames.address || frame[0] & 1 == 1 {
            let reply = parse(&frame).ok();
            let reply = reply.filter(|reply| reply.flow.source.port() == PORT);
            replies.extend(reply.map(|reply| (reply, frame.len())));
        }
    }
    replies
}

#[test]
fn a_forged_source_is_sent_at_most_one_datagram_for_each_of_its_own() {
    // Whoever allows everybody is no worse off.
    let everybody = &["--allow", "0.0.0.0/0", "--allow", "::/0"];
    let Some(mut bed) = Bed::new("amplify", everybody) else { return };
    // The shortest key, the longest reply.
    let data = vec![b'v'; room("k", 0)];
    bed.fill("k", &data);
    let client = Frames::new(&bed.net.client);
    let plain = between(&bed.net, &client);
    let cached = values(&[value("k", 0, &data)]);

    // Answered by the kernel: one datagram, to where the request came from.
    for source in ["192.0.2.9:40000", "10.11.12.77:1", "10.11.12.77:11211"] {
        let hits = bed.bmc.total("hits");
        let request = plain.clone().from(source).get(7, &["k"]);
        client.send(&request);
        let got = replies(&client);
        assert_eq!(bed.bmc.total("hits"), hits + 1, "{source}");
        assert_eq!(got.len(), 1, "{source}: {got:?}");
        assert_eq!(got[0].0.payload, datagram(7, &cached), "{source}");
        assert_eq!(got[0].0.flow.target.to_string(), source);
        assert!(got[0].1 <= 26 * request.len(), "{source}: {} bytes", got[0].1);
    }

    // Not even to those whom `--allow` names: groups, and nobody.
    let mut from_all = plain.clone();
    from_all.source_mac = [0xff; 6];
    let mut from_group = plain.clone();
    from_group.source_mac = [1, 0, 0x5e, 0, 0, 1];
    let to_v6 = SocketAddr::from((Net::SERVER6, PORT)).to_string();
    let v6 = plain.clone().from("[ff02::1]:40000").to(&to_v6);
    for (what, flow, counter) in [
        ("multicast", plain.clone().from("224.0.0.1:40000"), "passes.source"),
        ("the last multicast address", plain.clone().from("239.255.255.255:1"), "passes.source"),
        ("broadcast", plain.clone().from("255.255.255.255:40000"), "passes.source"),
        ("IPv6 multicast", v6, "passes.source"),
        ("source port 0", plain.clone().with_port(0), "passes.address"),
        ("a frame from everybody", from_all, "passes.address"),
        ("a frame from a group", from_group, "passes.address"),
        ("a frame to everybody", plain.clone().with_mac([0xff; 6]), "passes.address"),
    ] {
        let before = bed.bmc.stats();
        client.send(&flow.get(7, &["k"]));
        let got = replies(&client);
        let after = bed.bmc.stats();
        assert_eq!(total(&after, "hits"), total(&before, "hits"), "{what}");
        assert_eq!(total(&after, counter), total(&before, counter) + 1, "{what}: {after}");
        // memcached may answer a client's datagram; nothing goes to a group.
        assert!(got.iter().all(|(reply, _)| reply.flow.target_mac[0] & 1 == 0), "{what}: {got:?}");
    }
    assert_eq!(bed.udp.get("k").text, cached);
}

#[test]
fn a_reply_is_never_answered() {
    let Some(mut bed) = Bed::new("reflect", &[]) else { return };
    bed.fill("k", b"v");
    let client = Frames::new(&bed.net.client);
    let flow = between(&bed.net, &client).with_port(PORT);
    client.send(&flow.get(7, &["k"]));
    let got = replies(&client);
    assert_eq!(got.len(), 1);

    // As another memcached's bmc would see it.
    let before = bed.bmc.stats();
    client.send(&flow.udp(&got[0].0.payload));
    assert!(eventually(PATIENCE, || bed.bmc.total("passes.command") > 0));
    let after = bed.bmc.stats();
    for counter in ["hits", "misses", "leases", "fills"] {
        assert_eq!(total(&after, counter), total(&before, counter), "{counter}");
    }
}

#[test]
fn a_reply_that_comes_in_is_not_learnt() {
    let Some(mut bed) = Bed::new("from-outside", &[]) else { return };
    // The most forgiving router there is: such a frame comes in and leaves again.
    for setting in
        ["ip_forward", "conf.all.accept_local", "conf.all.route_localnet", "conf.eth0.accept_local"]
    {
        let path = format!("/proc/sys/net/ipv4/{}", setting.replace('.', "/"));
        run(bed.net.server.command("sh").args(["-c", &format!("echo 1 > {path}")]));
    }
    for device in ["all", "eth0"] {
        let path = format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
        run(bed.net.server.command("sh").args(["-c", &format!("echo 0 > {path}")]));
    }
    let client = Frames::new(&bed.net.client);
    let to_server = between(&bed.net, &client);
    let mut forged = to_server.reversed();
    (forged.source_mac, forged.target_mac) = (to_server.source_mac, to_server.target_mac);
    bed.tcp.set("k", 0, b"true");
    let fills = bed.bmc.total("fills");
    let mut forwarded = 0;
    for id in 0..20 {
        // The request is let through and memcached answers it, before or after.
        forged.target.set_port(40000 + id);
        let mut request = to_server.clone();
        request.source.set_port(40000 + id);
        client.send(&forged.udp(&datagram(id, FORGED)));
        client.send(&request.get(id, &["k"]));
        client.send(&forged.udp(&datagram(id, FORGED)));
        forwarded += replies(&client).iter().filter(|(got, _)| got.payload[8..] == *FORGED).count();
        bed.cache("k", b"true");
        bed.tcp.set("k", 0, b"true");
    }
    assert!(forwarded > 0, "the server forwards what is forged");
    assert!(bed.bmc.total("fills") > fills);
}

/// A process on memcached's port of a user who is not memcached's.
/// None if the kernel does not let it have the port.
fn start_forger(net: &Net, address: &str, option: &str) -> Option<Process> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/security/forger.py");
    let mut command = net.server.command("setpriv");
    command.args(["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string()]);
    command.args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    command.args(["--pdeathsig", "KILL", PYTHON, "-c"]);
    command.arg(fs::read_to_string(script).expect("our own file"));
    command.args([address, &PORT.to_string(), option]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("setpriv can be run");
    let mut line = String::new();
    let said = BufReader::new(child.stdout.as_mut().expect("it is piped")).read_line(&mut line);
    said.expect("it can be read");
    let forger = Process(child);
    (line == "bound\n").then_some(forger)
}

/// On every address, as memcached is, and on one that is more specific.
const FORGERS: [(IpAddr, &str, &str); 4] = [
    (Net::SERVER4, "0.0.0.0", "SO_REUSEADDR"),
    (Net::SERVER4, "10.11.12.1", "SO_REUSEADDR"),
    (Net::SERVER6, "::", "SO_REUSEADDR"),
    (Net::SERVER6, "fd00::1", "SO_REUSEADDR"),
];

#[test]
fn another_users_process_on_the_port_fills_nothing() {
    if !can_run("another_users_process_on_the_port_fills_nothing") {
        return;
    }
    for (server, address, option) in FORGERS {
        for mode in ["native", "tc"] {
            let what = format!("{address} {option} {mode}");
            let mut bed = Bed::at("forger", server, &["--mode", mode]);
            bed.tcp.set("k", 0, b"true");
            let refused = bed.bmc.total("fill_refusals.user");
            assert_eq!(refused, 0, "{what}: memcached is not taken for another");

            let forger = start_forger(&bed.net, address, option);
            let forger = forger.unwrap_or_else(|| panic!("{what}: it can have the port"));
            for asked in 1..=5 {
                // It has taken the port from memcached; nobody can help that.
                assert_eq!(bed.udp.get("k").text, FORGED, "{what}");
                assert_eq!(bed.bmc.total("fill_refusals.user"), asked, "{what}");
            }
            drop(forger);

            // But nothing of it stays, and memcached's own reply counts.
            bed.cache("k", b"true");
            assert_eq!(bed.bmc.total("fill_refusals.user"), 5, "{what}");

            // Nor does anything while memcached is gone.
            bed.memcached.signal(Signal::SIGKILL);
            bed.memcached.wait();
            let fills = bed.bmc.total("fills");
            let forger = start_forger(&bed.net, address, option).expect("it had the port before");
            std::thread::sleep(Duration::from_millis(1100));
            for _ in 0..3 {
                assert_eq!(bed.udp.get("k").text, FORGED, "{what}");
            }
            assert_eq!(bed.bmc.total("fills"), fills, "{what}");
            drop(forger);
            bed.memcached = Memcached::start(&bed.net.server, &["-t", "2"]);
            assert_eq!(bed.udp.get("k").text, b"END\r\n", "{what}");
        }
    }
}

#[test]
fn a_memcached_that_gave_up_root_fills() {
    if !can_run("a_memcached_that_gave_up_root_fills") {
        return;
    }
    let net = Rc::new(Net::new("gave-up-root"));
    let _memcached = Memcached::start(&net.server, &["-u", "nobody"]);
    let bmc = Bmc::attach(&net, LASTING);
    for server in [Net::SERVER4, Net::SERVER6] {
        Tcp::connect(&net.client, server).set("k", 0, b"v");
        let mut udp = Udp::connect(&net.client, server);
        let hits = bmc.total("hits");
        let filled = eventually(PATIENCE, || {
            udp.get("k");
            bmc.total("hits") > hits
        });
        assert!(filled, "{server}: {}", bmc.stats());
    }
    assert_eq!(bmc.total("fill_refusals.user"), 0);
}

#[test]
fn a_port_that_memcached_does_not_share_is_not_to_be_had() {
    let Some(bed) = Bed::new("reuseport", &[]) else { return };
    assert!(start_forger(&bed.net, "10.11.12.1", "SO_REUSEPORT").is_none());
    // Whoever listens over TCP is whom bmc goes by.
    let listen = "import socket, sys\n\
                  sock = socket.socket()\n\
                  for option in socket.SO_REUSEADDR, socket.SO_REUSEPORT:\n\
                  \x20sock.setsockopt(socket.SOL_SOCKET, option, 1)\n\
                  sock.bind((sys.argv[1], 11211))\n\
                  sock.listen()";
    for address in ["0.0.0.0", "10.11.12.1"] {
        let mut command = bed.net.server.command("setpriv");
        command.args(["--reuid", &NOBODY.to_string(), "--clear-groups", PYTHON, "-c", listen]);
        let output = command.arg(address).output().expect("setpriv can be run");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("Address already in use"), "{address}: {errors}");
    }
    assert_eq!(bed.bmc.total("memcached_gone"), 0);
}

/// Which buckets of the index hold something.
fn buckets(instance: &str) -> Vec<usize> {
    let index = MapHandle::from_pinned_path(pins(instance).join("index")).expect("it is pinned");
    let used = |number: &usize| {
        let key = u32::try_from(*number).unwrap().to_ne_bytes();
        let bucket = index.lookup(&key, MapFlags::ANY).unwrap().expect("an array has all");
        bucket[8..].iter().any(|byte| *byte != 0)
    };
    (0..index.max_entries() as usize).filter(used).collect()
}

#[test]
fn which_keys_collide_cannot_be_known() {
    let mut found = BTreeMap::new();
    for round in 0..3 {
        let Some(mut bed) = Bed::new("seed", &[]) else { return };
        bed.bmc.run(&["flush"]);
        for key in ["a", "b", "c", "d"] {
            bed.fill(key, b"v");
        }
        let before = buckets(bed.net.instance());
        assert!((4..=5).contains(&before.len()), "{before:?}");
        // The hash is the same as long as the cache is.
        bed.bmc.run(&["attach", "--replace", Net::DEVICE, "--memory", "16M"]);
        assert_eq!(buckets(bed.net.instance()), before);
        found.insert(before, round);
    }
    assert_eq!(found.len(), 3, "instances file the same keys alike: {found:?}");
}

#[test]
fn the_cache_is_shown_to_root_alone() {
    let Some(mut bed) = Bed::new("nobody", &[]) else { return };
    bed.fill("secret", b"value");
    assert!(bed.bmc.run(&["entries"]).contains("secret"));
    let dir = std::env::temp_dir().join(format!("bmc-security-{}", std::process::id()));
    // Where nobody can find it.
    run(Command::new("install")
        .args(["-D", "-m", "755", env!("CARGO_BIN_EXE_bmc")])
        .arg(dir.join("bmc")));
    run(Command::new("chmod").arg("755").arg(&dir));
    for noun in ["entries", "stats", "status"] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &NOBODY.to_string(), "--clear-groups"]).arg(dir.join("bmc"));
        let output = command.args(["--instance", bed.net.instance(), noun]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{noun}: {output:?}");
        assert!(output.stdout.is_empty(), "{noun}: {output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("ermission"), "{noun}: {errors}");
    }
    fs::remove_dir_all(&dir).expect("our own directory");
}

/// The sequence number behind a text that the client's port has sent.
fn behind(frames: &Frames, port: u16, text: &[u8]) -> u32 {
    loop {
        let frame = frames.next().expect("the segment has been sent");
        let at = transport(&frame);
        if frame[at - 20 + 9] == 6 && frame[at..at + 2] == port.to_be_bytes() {
            let data = at + usize::from(frame[at + 12] >> 4) * 4;
            if &frame[data..] == text {
                let seq = frame[at + 4..at + 8].try_into().expect("four bytes");
                return u32::from_be_bytes(seq).wrapping_add(text.len() as u32);
            }
        }
    }
}

#[test]
fn forged_segments_make_no_answer_wrong() {
    let name = "forged_segments_make_no_answer_wrong";
    let Some(mut bed) = Bed::new(name, &[]) else { return };
    // What the kernel puts together and cuts would not be as it was sent.
    run(bed.net.client.command("ethtool").args(["-K", Net::DEVICE, "tso", "off", "gso", "off"]));
    let mut rng = Rng::from_env(name);
    bed.fill("k", b"0");
    let client = Frames::new(&bed.net.client);
    let flow = between(&bed.net, &client);
    let writer = bed.tcp.address().port();
    let texts: [&[u8]; 6] = [
        b"set k 0 0 6\r\nforged\r\n",
        b"set other 0 0 100000\r\nforged",
        b"delete k\r\n",
        b"flush_all\r\n",
        b"get k\r\n",
        b"\x80\x01\0\x01",
    ];
    let text = |rng: &mut Rng| texts[rng.below(texts.len())];
    let mut hits = 0;
    for written in 1..241 {
        let data = format!("{written}-{:08x}", rng.number() as u32);
        let sent = format!("set k 0 0 {}\r\n{data}\r\n", data.len());
        bed.tcp.set("k", 0, data.as_bytes());
        let next = behind(&client, writer, sent.as_bytes());
        let expected = values(&[value("k", 0, data.as_bytes())]);
        let before = bed.bmc.total("hits");
        for _ in 0..3 {
            assert_eq!(bed.udp.get("k").text, expected, "after write {written}");
        }
        hits += bed.bmc.total("hits") - before;
        match written % 60 {
            // By somebody who cannot see the connection: any port and number.
            10 => {
                let [seq, ack] = [(); 2].map(|()| rng.number() as u32);
                for port in [writer, 1 + rng.below(60000) as u16] {
                    let text = text(&mut rng);
                    client.send(&flow.clone().with_port(port).tcp(seq, ack, PSH_ACK, text));
                }
            }
            // By somebody who can, and whose segments memcached does not take: the
            // very next bytes, or some that are near.
            30 | 50 => {
                let seq = next.wrapping_add([0, 0, 5, 64_000][rng.below(4)]);
                let mut frame = flow.clone().with_port(writer).tcp(seq, 0, PSH_ACK, text(&mut rng));
                let at = transport(&frame) + 16;
                frame[at] ^= 0x55;
                client.send(&frame);
            }
            // Time to forget.
            0 | 20 | 40 => std::thread::sleep(Duration::from_millis(1100)),
            _ => {}
        }
    }
    let stats = bed.bmc.stats();
    assert!(hits > 30, "{hits} hits: {stats}");
    assert!(total(&stats, "tcp_unfollowed") >= 4, "{stats}");
    assert!(total(&stats, "tcp_unparsed") > 3, "{stats}");
    // Once that is over, it is as before.
    bed.fill("k", b"last");
}

#[test]
fn what_a_client_may_do_to_memcached_is_all_that_it_may_do() {
    let Some(mut bed) = Bed::new("hostile", &[]) else { return };
    let mut hostile = Udp::connect(&bed.net.client, Net::SERVER4);
    for (command, after) in [
        ("set k 0 0 3\r\nbad\r\n", &values(&[value("k", 0, b"bad")])[..]),
        ("append k 0 0 1\r\n!\r\n", &values(&[value("k", 0, b"good!")])),
        ("delete k\r\n", b"END\r\n"),
        ("flush_all\r\n", b"END\r\n"),
    ] {
        bed.fill("k", b"good");
        hostile.send(command.as_bytes());
        assert!(hostile.receive(PATIENCE).is_some(), "{command}");
        for _ in 0..3 {
            assert_eq!(bed.udp.get("k").text, after, "{command}");
            assert_eq!(bed.tcp.get("k"), after, "{command}");
        }
        if command.starts_with("flush") {
            // memcached's own clock: what is stored in this second is gone too.
            std::thread::sleep(Duration::from_millis(1100));
        }
    }
}

#[test]
fn two_networks_share_nothing() {
    if !can_run("two_networks_share_nothing") {
        return;
    }
    // The same addresses, ports and keys.
    let mut beds = ["one", "two"].map(|name| Bed::at(&format!("tenant-{name}"), Net::SERVER4, &[]));
    for (bed, data) in beds.iter_mut().zip([b"first", b"other"]) {
        bed.fill("k", data);
    }
    beds[0].fill("only", b"here");
    assert_eq!(beds[1].udp.get("only").text, b"END\r\n");
    for (bed, data) in beds.iter_mut().zip([b"first", b"other"]) {
        bed.cache("k", data);
    }
    // Nor do writes, flushes and the end of a memcached concern the other.
    let before = beds[1].bmc.stats();
    beds[0].tcp.command("flush_all");
    beds[0].bmc.run(&["flush"]);
    beds[0].memcached.signal(Signal::SIGKILL);
    beds[0].memcached.wait();
    assert!(eventually(PATIENCE, || beds[0].bmc.total("memcached_gone") > 0));
    let after = beds[1].bmc.stats();
    for counter in ["flushes", "invalidations", "memcached_gone"] {
        assert_eq!(total(&after, counter), total(&before, counter), "{counter}");
    }
    let hits = total(&after, "hits");
    assert_eq!(beds[1].udp.get("k").text, values(&[value("k", 0, b"other")]));
    assert_eq!(beds[1].bmc.total("hits"), hits + 1);
}
