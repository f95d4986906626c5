// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Several memcacheds, each behind a bmc of its own, and clients that share the
//! keys out by a client library, as memcached is scaled. One of them is lost and
//! comes back. No answer may be wrong: `fleet/client.py` knows what each may be.
//! Root only.

mod common;

use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use common::Bmc;
use common::Memcached;
use common::Namespace;
use common::Net;
use common::PORT;
use common::PYTHON;
use common::Rng;
use common::RngExt as _;
use common::Tcp;
use common::can_run;
use common::total;

/// How many clients there are at once.
const PROCESSES: usize = 3;
/// How long each phase takes.
const PHASE: Duration = Duration::from_secs(4);

/// A memcached behind a bmc.
struct Node {
    memcached: Memcached,
    bmc: Bmc,
    net: Rc<Net>,
    address: IpAddr,
}

impl Node {
    /// One whose clients all share a namespace.
    fn new(number: u8, client: &Namespace) -> Self {
        let v4 = [1, 2].map(|host| IpAddr::from([10, 11, 20 + number, host]));
        let v6 = [1, 2].map(|host| IpAddr::from([0xfd00, 0, 0, number.into(), 0, 0, 0, host]));
        let device = format!("eth{number}");
        let net = Net::to(
            &format!("fleet-{number}"),
            client.clone(),
            &device,
            (v4[0], v4[1]),
            (v6[0], v6[1]),
        );
        let net = Rc::new(net);
        let memcached = Memcached::start(&net.server, &["-t", "2"]);
        let bmc = Bmc::attach(&net, &["--unknown-ttl", "60s", "--memory", "16M"]);
        Self { memcached, bmc, net, address: v4[0] }
    }

    /// As the library names it.
    fn name(&self) -> String {
        format!("{}:{PORT}", self.address)
    }
}

/// The clients; ended on drop.
struct Clients {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Clients {
    fn start(namespace: &Namespace, seed: u64, nodes: &[Node]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fleet/client.py");
        let mut command = namespace.command("setpriv");
        command.args(["--pdeathsig", "KILL", PYTHON]).arg(script);
        command.args([seed.to_string(), PROCESSES.to_string()]).args(nodes.iter().map(Node::name));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv can be run");
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, stdin, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it can be read");
        line
    }

    /// What is done from now on is counted as this phase's.
    fn phase(&mut self, name: &str) {
        writeln!(self.stdin, "{name}").expect("the clients are there");
        assert_eq!(self.line(), "noted\n", "the clients are there");
    }

    /// Ends them; what they counted. Fails if an answer was wrong.
    fn end(mut self) -> Value {
        self.phase("");
        let line = self.line();
        assert!(self.child.wait().expect("our child").success(), "an answer was wrong: see above");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // Neither matters for a child that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A counter of the clients' for a node, in one phase or all.
fn counted(report: &Value, phase: Option<&str>, node: &Node, name: &str) -> u64 {
    let phases = report.as_object().expect("phases");
    let chosen = phases.iter().filter(|(key, _)| phase.is_none_or(|phase| phase == key.as_str()));
    chosen.filter_map(|(_, nodes)| nodes[&node.name()][name].as_u64()).sum()
}

fn has_library() -> bool {
    let import = Command::new(PYTHON).args(["-c", "import pymemcache"]).output();
    import.is_ok_and(|output| output.status.success())
}

#[test]
fn a_fleet_whose_clients_choose_the_node_is_never_wrong() {
    let name = "a_fleet_whose_clients_choose_the_node_is_never_wrong";
    if !can_run(name) {
        return;
    }
    if !has_library() {
        // Not by eprintln!, which is silent when a test passes.
        let _ = writeln!(std::io::stderr(), "skipped {name}: python3-pymemcache is not installed");
        return;
    }
    let client = Namespace::of_test("fleet", "client");
    let mut nodes = [0, 1, 2].map(|number| Node::new(number, &client));
    let seed = Rng::from_env(name).number() % 1_000_000;
    let mut clients = Clients::start(&client, seed, &nodes);

    clients.phase("whole");
    thread::sleep(PHASE);
    nodes[1].memcached.signal(Signal::SIGKILL);
    nodes[1].memcached.wait();
    clients.phase("lost");
    thread::sleep(PHASE);
    nodes[1].memcached = Memcached::start(&nodes[1].net.server, &["-t", "2"]);
    clients.phase("back");
    thread::sleep(PHASE);
    let report = clients.end();
    let stats = nodes.each_ref().map(|node| node.bmc.stats());
    let count = |phase, node: usize, what| counted(&report, Some(phase), &nodes[node], what);

    // All of it has happened.
    for phase in ["whole", "lost", "back"] {
        for node in [0, 1, 2].into_iter().filter(|node| (phase, *node) != ("lost", 1)) {
            let did = ["answers", "found", "writes"].map(|what| count(phase, node, what));
            assert!(did.iter().all(|&times| times > 10), "{phase} {node}: {report}");
        }
    }
    let moved = |phase| (0..3).map(|node| count(phase, node, "moved")).sum::<u64>();
    assert_eq!(moved("whole"), 0, "{report}");
    assert!(moved("lost") > 10, "the clients take other nodes: {report}");
    assert!(count("lost", 1, "silent") > 0, "{report}");
    // One that was asked when it was just killed, or is not back yet.
    assert!(count("lost", 1, "answers") <= PROCESSES as u64, "{report}");

    for (node, stats) in nodes.iter().zip(&stats) {
        let asked = |what| counted(&report, None, node, what);
        assert!(total(stats, "hits") > 100, "{}: {stats}", node.name());
        assert_eq!(total(stats, "get_requests"), asked("requests"), "{}: {stats}", node.name());
        assert_eq!(total(stats, "get_keys"), asked("keys"), "{}: {stats}", node.name());
        let sum = total(stats, "hits") + total(stats, "misses");
        assert_eq!(total(stats, "get_keys"), sum, "{}: {stats}", node.name());
        assert!(total(stats, "fills") <= total(stats, "leases"), "{}: {stats}", node.name());
        assert_eq!(total(stats, "fill_refusals.user"), 0, "{}: {stats}", node.name());
        // Some keys together are too long for a datagram; nothing else was wrong.
        let mut passes = stats["totals"]["passes"].as_object().expect("reasons").iter();
        assert!(
            passes.all(|(why, count)| why == "size" || *count == 0),
            "{}: {stats}",
            node.name()
        );
    }
    // memcached tells the same, where there was only one.
    for (node, stats) in [(&nodes[0], &stats[0]), (&nodes[2], &stats[2])] {
        assert_eq!(total(stats, "memcached_gone"), 0);
        let asked = Tcp::connect(&client, node.address).stat("cmd_get");
        let sum = total(stats, "misses") + counted(&report, None, node, "tcp_keys");
        assert_eq!(asked, sum, "{}: {stats}", node.name());
    }
    assert!(total(&stats[1], "memcached_gone") > 0, "{}", stats[1]);
}
