// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Ports that the server translates to memcached's, by the tools that administrators do
//! it with: what becomes of writes to them, and what attach, doctor and status say. Root
//! only.

mod common;

use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Command;
use std::process::Output;

use serde_json::Value;

use common::Memcached;
use common::Net;
use common::PATIENCE;
use common::Tcp;
use common::Udp;
use common::can_run_with;
use common::eventually;
use common::run;
use common::total;

const BMC: &str = env!("CARGO_BIN_EXE_bmc");
const DONE: i32 = 0;
const FAILED: i32 = 1;
/// What is translated to memcached's.
const OTHER: u16 = 11212;
const TOOLS: &[&str] = &["nft", "iptables-nft", "iptables-legacy", "ip6tables-legacy"];

/// A network with a memcached, and no bmc yet.
struct Bed {
    net: Net,
    _memcached: Memcached,
}

impl Bed {
    fn new(test: &str) -> Self {
        let net = Net::new(test);
        let memcached = Memcached::start(&net.server, &["-t", "1"]);
        Self { net, _memcached: memcached }
    }

    /// Runs a script where memcached is.
    fn sh(&self, script: &str) -> String {
        run(self.net.server.command("sh").args(["-ec", script]))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.net.server.command(BMC);
        command.args(["--instance", self.net.instance()]).args(args);
        command
    }

    #[track_caller]
    fn bmc(&self, code: i32, args: &[&str]) -> (String, String) {
        let Output { status, stdout, stderr } =
            self.command(args).output().expect("bmc can be run");
        let [out, errors] =
            [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert_eq!(status.code(), Some(code), "{args:?}: {errors}");
        (out, errors)
    }

    #[track_caller]
    fn attach(&self, code: i32, args: &[&str]) -> String {
        let mode = ["attach", Net::DEVICE, "--memory", "16M", "--unknown-ttl", "60s"];
        self.bmc(code, &[&mode[..], args].concat()).1
    }

    fn json(&self, code: i32, args: &[&str]) -> Value {
        serde_json::from_str(&self.bmc(code, args).0).expect("an object")
    }

    fn counter(&self, name: &str) -> u64 {
        total(&self.json(DONE, &["stats", "--json"]), name)
    }

    /// A connection to the port that is translated.
    fn connect(&self, server: IpAddr) -> Tcp {
        let at = SocketAddr::new(server, OTHER);
        let connect = || self.net.client.within(|| TcpStream::connect(at));
        assert!(eventually(PATIENCE, || connect().is_ok()), "{at} is not translated");
        Tcp::on(connect().expect("it was a moment ago"))
    }

    /// Attach refuses, and names what does it.
    #[track_caller]
    fn is_found(&self, what: &str, by: &str, remedy: &str) {
        let errors = self.attach(FAILED, &[]);
        for part in [what, by, remedy] {
            assert!(errors.contains(part), "no {part:?} in {errors}");
        }
    }

    /// Doctor says the same.
    #[track_caller]
    fn blocks(&self, what: &str, by: &str, remedy: &str) {
        let doctor = self.json(FAILED, &["doctor", "--json", Net::DEVICE]);
        let findings = doctor["findings"].as_array().expect("a list");
        let says = |finding: &&Value| finding["what"].as_str().is_some_and(|s| s.contains(what));
        let found = findings.iter().find(says).unwrap_or_else(|| panic!("{doctor:#}"));
        assert_eq!(found["level"], "blocker");
        assert!(found["evidence"].as_str().is_some_and(|s| s.contains(by)), "{found}");
        assert!(found["remedy"].as_str().is_some_and(|s| s.contains(remedy)), "{found}");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.command(&["detach"]).output();
    }
}

/// Undoes what the cases below do.
const CLEAN: &str = "nft flush ruleset
for iptables in iptables-legacy ip6tables-legacy; do
    $iptables -w -t nat -F
    $iptables -w -t nat -X
done";

const REDIRECT: &str = "nft add table inet bmc
nft 'add chain inet bmc pre { type nat hook prerouting priority dstnat; }'
nft add rule inet bmc pre meta l4proto '{ tcp, udp }' th dport 11212 redirect to :11211";

#[test]
fn a_write_to_a_translated_port_is_never_answered_over() {
    let test = "a_write_to_a_translated_port_is_never_answered_over";
    if !can_run_with(test, TOOLS) {
        return;
    }
    for server in [Net::SERVER4, Net::SERVER6] {
        let bed = Bed::new("translated");
        bed.sh(REDIRECT);
        // Refused with one port; what it says mends it.
        let args: &[&str] =
            if bed.command(&["attach", Net::DEVICE]).status().expect("run").success() {
                bed.bmc(DONE, &["detach"]);
                &[]
            } else {
                &["--port", "11211,11212"]
            };
        bed.attach(DONE, args);
        let mut udp = Udp::connect(&bed.net.client, server);
        let mut direct = Tcp::connect(&bed.net.client, server);
        direct.set("k", 0, b"old");
        let hits = |udp: &mut Udp| {
            let hits = bed.counter("hits");
            udp.get("k");
            bed.counter("hits") > hits
        };
        assert!(eventually(PATIENCE, || hits(&mut udp)), "nothing is cached");
        let (flushes, unfollowed) = (bed.counter("flushes"), bed.counter("tcp_unfollowed"));
        let mut translated = bed.connect(server);
        translated.set("k", 0, b"new");
        assert_eq!(udp.get("k").text, b"VALUE k 0 3\r\nnew\r\nEND\r\n");
        // Its socket has another port, so each of its segments counts as any write.
        assert!(bed.counter("tcp_unfollowed") > unfollowed);
        assert!(bed.counter("flushes") > flushes);
        // What is asked there, too, over either protocol.
        assert_eq!(translated.get("k"), b"VALUE k 0 3\r\nnew\r\nEND\r\n");
        let mut other = Udp::connect_to(&bed.net.client, SocketAddr::new(server, OTHER));
        for value in ["1", "2"] {
            direct.set("k", 0, value.as_bytes());
            for _ in 0..3 {
                let expected = format!("VALUE k 0 1\r\n{value}\r\nEND\r\n");
                assert_eq!(other.get("k").text, expected.as_bytes());
            }
        }
    }
}

/// A chain of nftables that packets come to first.
fn nft(rules: &str) -> String {
    let mut script = "nft add table inet bmc
        nft 'add chain inet bmc pre { type nat hook prerouting priority dstnat; }'
        nft 'add chain inet bmc out { type nat hook output priority 0; }'
        nft 'add chain inet bmc service'
        nft 'add chain inet bmc endpoint'\n"
        .to_string();
    for rule in rules.lines() {
        script += &format!("nft 'add rule inet bmc {}'\n", rule.trim());
    }
    script
}

#[test]
fn rules_of_every_tool_are_found_and_named() {
    let test = "rules_of_every_tool_are_found_and_named";
    if !can_run_with(test, TOOLS) {
        return;
    }
    let bed = Bed::new("rules");
    let add = "add --port 11212";
    let tcp = "TCP port 11212 is translated to 11211";
    let udp = "UDP port 11212 is translated to 11211";
    let nft_pre = "nft -a list chain inet bmc pre: handle ";
    let endpoint = "nft -a list chain inet bmc endpoint: handle ";
    let legacy = "iptables-legacy -t nat -S PREROUTING 1";
    for (script, what, by, remedy) in [
        (nft("pre tcp dport 11212 redirect to :11211"), tcp, nft_pre, add),
        (nft("pre tcp sport 9 tcp dport 11212 redirect to :11211"), tcp, nft_pre, add),
        (nft("pre meta l4proto udp dnat ip to 10.11.12.1:11211"), "UDP port 1-11210,11212-65535 is", nft_pre, "fewer ports"),
        (nft("pre udp dport 11210-11213 udp dport != 11210 redirect to :11211"), "UDP port 11212-11213 is", nft_pre, "add --port 11212,11213"),
        (nft("pre tcp dport { 7, 11210-11213 } tcp dport < 100 redirect to :11211"), "TCP port 7 is", nft_pre, "add --port 7"),
        (nft("pre udp dport != { 1-11211, 11213-65535 } redirect to :11211"), udp, nft_pre, add),
        (
            nft("pre dnat ip to tcp dport map { 80 : 10.11.12.1 . 8080, 11212 : 10.11.12.1 . 11211 }"),
            tcp, nft_pre, add,
        ),
        // As kube-proxy's, which choose one of several at random.
        (
            nft("endpoint meta l4proto tcp dnat ip to 10.11.12.1:11211
                 service numgen random mod 1 vmap { 0 : goto endpoint }
                 pre ip daddr . meta l4proto . th dport vmap { 10.96.0.1 . tcp . 11212 : goto service, 10.96.0.2 . udp . 53 : accept }"),
            tcp, endpoint, add,
        ),
        (nft("pre meta l4proto tcp redirect to :tcp dport map { 11212 : 11211 }"), tcp, nft_pre, add),
        (
            "nft add table ip raw
             nft 'add chain ip raw pre { type filter hook prerouting priority raw; }'
             nft add rule ip raw pre tcp dport 11212 tcp dport set 11211".into(),
            tcp, "nft -a list chain ip raw pre: handle ", add,
        ),
        // Stateless, before all else.
        (
            "nft add table netdev bmc
             nft 'add chain netdev bmc in { type filter hook ingress device eth0 priority 0; }'
             nft add rule netdev bmc in udp dport 11212 udp dport set 11211".into(),
            udp, "nft -a list chain netdev bmc in: handle ", add,
        ),
        (
            "iptables-nft -t nat -A PREROUTING -p tcp --dport 11212 -j REDIRECT --to-ports 11211".into(),
            tcp, "nft -a list chain ip nat PREROUTING: handle ", add,
        ),
        (
            "iptables-nft -t nat -A PREROUTING -p udp -m multiport --dports 11211,11212 -j DNAT --to-destination 10.11.12.1:11211".into(),
            udp, "nft -a list chain ip nat PREROUTING: handle ", add,
        ),
        (
            "iptables-legacy -w -t nat -A PREROUTING -p tcp --dport 11212 -j REDIRECT --to-ports 11211".into(),
            tcp, legacy, add,
        ),
        (
            "iptables-legacy -w -t nat -A PREROUTING -p udp -m addrtype --dst-type LOCAL -m multiport ! --dports 1:11211,11213:65535 -j DNAT --to-destination 10.11.12.1:11211".into(),
            udp, legacy, add,
        ),
        // As kube-proxy's.
        (
            "for chain in SERVICES NODEPORTS SVC-1 SEP-1; do iptables-legacy -w -t nat -N KUBE-$chain; done
             iptables-legacy -w -t nat -A PREROUTING -m comment --comment 'service portals' -j KUBE-SERVICES
             iptables-legacy -w -t nat -A KUBE-SERVICES -d 10.96.0.9 -p tcp --dport 11211 -j KUBE-SVC-1
             iptables-legacy -w -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
             iptables-legacy -w -t nat -A KUBE-NODEPORTS -p tcp --dport 31211 -j KUBE-SVC-1
             iptables-legacy -w -t nat -A KUBE-SVC-1 -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
             iptables-legacy -w -t nat -A KUBE-SEP-1 -s 10.11.12.1 -j MARK --set-mark 1
             iptables-legacy -w -t nat -A KUBE-SEP-1 -p tcp -j DNAT --to-destination 10.11.12.1:11211".into(),
            "TCP port 31211 is translated to 11211", "iptables-legacy -t nat -S KUBE-SEP-1 2", "add --port 31211",
        ),
        (
            "ip6tables-legacy -w -t nat -A PREROUTING -p udp --dport 11212 -j DNAT --to-destination '[fd00::1]:11211'".into(),
            udp, "ip6tables-legacy -t nat -S PREROUTING 1", add,
        ),
        (
            nft("pre meta l4proto { tcp, udp } th dport 11211 redirect to :11212"),
            "UDP port 11211 is translated to 11212, and writes that come to 11212 itself", nft_pre, add,
        ),
    ] {
        bed.sh(&script);
        bed.is_found(what, by, remedy);
        bed.sh(CLEAN);
    }
}

#[test]
fn rules_that_hide_no_write_are_let_be() {
    let test = "rules_that_hide_no_write_are_let_be";
    if !can_run_with(test, TOOLS) {
        return;
    }
    let bed = Bed::new("harmless");
    for script in [
        // To the same port, by another address.
        nft("pre ip daddr 10.96.0.1 tcp dport 11211 dnat ip to 10.11.12.1:11211"),
        nft("pre ip daddr 10.96.0.1 dnat ip to 10.11.12.1"),
        // Nothing of memcached's.
        nft("pre tcp dport 80 redirect to :8080"),
        nft("pre tcp dport map { 80 : 8080 } redirect to :8080").replace("tcp dport map { 80 : 8080 } ", "tcp dport { 80 } "),
        // To another host.
        nft("pre tcp dport 11212 dnat ip to 10.11.12.2:11211"),
        "iptables-legacy -w -t nat -A PREROUTING -p tcp --dport 11212 -j DNAT --to-destination 10.11.12.2:11211".into(),
        // What this host sends itself comes by the loopback as it was translated.
        nft("out tcp dport 11212 redirect to :11211"),
        "iptables-legacy -w -t nat -A OUTPUT -p tcp --dport 11212 -j REDIRECT --to-ports 11211".into(),
        // A chain that nothing leads to.
        nft("service tcp dport 11212 redirect to :11211"),
        "iptables-nft -t nat -N UNUSED
         iptables-nft -t nat -A UNUSED -p tcp --dport 11212 -j REDIRECT --to-ports 11211".into(),
        // No packet is both.
        nft("pre tcp dport 11211 jump service
             service tcp dport 11212 redirect to :11211"),
        // A proxy's.
        nft("pre tcp dport 11211 redirect to :15006"),
        "iptables-legacy -w -t nat -A POSTROUTING -p tcp --sport 11212 -j MASQUERADE --to-ports 11211".into(),
    ] {
        bed.sh(&script);
        assert_eq!(bed.attach(DONE, &[]), "", "{script}");
        assert!(bed.json(DONE, &["status", "--json"])["unwatched"].as_array().is_some_and(Vec::is_empty));
        bed.bmc(DONE, &["detach"]);
        bed.sh(CLEAN);
    }
}

#[test]
fn what_is_translated_later_is_told_by_status_and_doctor() {
    let test = "what_is_translated_later_is_told_by_status_and_doctor";
    if !can_run_with(test, TOOLS) {
        return;
    }
    let bed = Bed::new("later");
    bed.attach(DONE, &[]);
    let row = "unwatched   TCP and UDP port 11212 is translated to 11211";
    assert!(!bed.bmc(DONE, &["status"]).0.contains("unwatched"));
    bed.sh(REDIRECT);
    assert!(bed.bmc(DONE, &["status"]).0.contains(row));
    let status = bed.json(DONE, &["status", "--json"]);
    assert_eq!(status["unwatched"][0]["remedy"], "add --port 11212");
    bed.blocks(
        "TCP and UDP port 11212 is translated to 11211",
        "nft -a list chain inet bmc pre: handle ",
        "add --port 11212",
    );
    bed.attach(DONE, &["--replace", "--port", "11211,11212"]);
    assert!(!bed.bmc(DONE, &["status"]).0.contains("unwatched"));
    bed.bmc(DONE, &["doctor", Net::DEVICE]);
}

#[test]
fn a_connection_whose_rule_is_gone_is_found_while_it_lives() {
    let test = "a_connection_whose_rule_is_gone_is_found_while_it_lives";
    if !can_run_with(test, TOOLS) {
        return;
    }
    let bed = Bed::new("connections");
    for server in [Net::SERVER4, Net::SERVER6] {
        bed.sh(REDIRECT);
        let mut translated = bed.connect(server);
        // Without any rule for them, the kernel would not go on with translations.
        let other = "add rule inet bmc pre tcp dport 80 redirect to :8080";
        bed.sh(&format!("nft 'flush chain inet bmc pre; {other}'"));
        translated.set("k", 0, b"x");
        let by = format!("conntrack -L: from {} to ", translated.address());
        bed.is_found("TCP port 11212 is translated to 11211", &by, "add --port 11212");
        // Tracked no more, the entry stays when the connection ends.
        bed.sh("nft flush ruleset");
        drop(translated);
        assert_ne!(bed.sh("cat /proc/net/nf_conntrack"), "");
        bed.sh("ss --tcp --kill state connected sport 11211");
        bed.attach(DONE, &[]);
        bed.bmc(DONE, &["detach"]);
        bed.sh(CLEAN);
    }
}
