// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Several memcacheds, each behind a bmc of its own, and clients that share the
//! keys out by a client library, as memcached is scaled. One of them is lost and
//! comes back. No answer may be wrong: `fleet/client.py` knows what each may be.
//! Root only.

mod common;

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
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
use common::items;
use common::skipped;
use common::total;

/// Where the proxy listens, in the clients' namespace.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
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
    process: Process,
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
        Self { process: Process(child), stdin, stdout }
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
        assert!(
            self.process.0.wait().expect("our child").success(),
            "an answer was wrong: see above"
        );
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

/// memcached's own proxy, on a client's loopback, in front of the nodes; ended and
/// its configuration removed on drop.
struct Proxy {
    child: Child,
    config: PathBuf,
}

impl Proxy {
    /// Starts one and waits until it answers.
    fn start(client: &Namespace, nodes: &[Node]) -> Self {
        let config = std::env::temp_dir().join(format!("bmc-fleet-{}.lua", std::process::id()));
        let backends: Vec<_> = nodes
            .iter()
            .map(|node| format!("mcp.backend('{}', '{}', {PORT})", node.name(), node.address))
            .collect();
        let text = format!(
            "function mcp_config_pools() return mcp.pool({{{}}}) end\n\
             function mcp_config_routes(pool)\n\
             local all = mcp.funcgen_new()\n\
             local nodes = all:new_handle(pool)\n\
             all:ready({{ n = 'all', f = function(context)\n\
             return function(request) return context:enqueue_and_wait(request, nodes) end\n\
             end }})\n\
             mcp.attach(mcp.CMD_ANY_STORAGE, all)\n\
             end\n",
            backends.join(", ")
        );
        fs::write(&config, text).expect("the temporary directory is writable");
        let mut command = client.command("setpriv");
        command.args(["--pdeathsig", "KILL", "memcached", "-u", "root", "-l", "127.0.0.1", "-o"]);
        command.arg(format!("proxy_config={}", config.display()));
        let child = command.spawn().expect("memcached can be started");
        let proxy = Self { child, config };
        let answers = || client.within(|| TcpStream::connect((PROXY, PORT)).is_ok());
        assert!(eventually(PATIENCE, answers), "the proxy does not answer");
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // None of it matters for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.config);
    }
}

/// Whether memcached was built with its proxy.
fn has_proxy() -> bool {
    let help = Command::new("memcached").arg("-h").output();
    help.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("proxy_config"))
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
        skipped(name, "python3-pymemcache is not installed");
        return;
    }
    let client = Namespace::of_test("fleet", "client");
    let mut nodes = [0, 1, 2].map(|number| Node::new(number, &client));
    let seed = Rng::from_env(name).number() % 1_000_000;
    let mut clients = Clients::start(&client, seed, &nodes);

    clients.phase("whole");
    thread::sleep(PHASE);
    clients.phase("dying");
    nodes[1].memcached.signal(Signal::SIGKILL);
    nodes[1].memcached.wait();
    clients.phase("lost");
    thread::sleep(PHASE);
    clients.phase("returning");
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
    // Those that were asked as the phase ended.
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
        // Some keys together are too long for a datagram, and one request in 65536
        // is not told from a damaged one. Nothing else was wrong.
        for (why, count) in stats["totals"]["passes"].as_object().expect("reasons") {
            let rare = count.as_u64() < Some(4);
            let fine = *count == 0 || why == "size" || (why == "checksum" && rare);
            assert!(fine, "{}: {stats}", node.name());
        }
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

#[test]
fn a_fleet_behind_memcacheds_proxy_is_never_wrong() {
    let name = "a_fleet_behind_memcacheds_proxy_is_never_wrong";
    if !can_run(name) {
        return;
    }
    if !has_proxy() {
        skipped(name, "this memcached was built without its proxy");
        return;
    }
    let client = Namespace::of_test("proxied", "client");
    let mut nodes = [3, 4, 5].map(|number| Node::new(number, &client));
    let proxy = Proxy::start(&client, &nodes);
    let mut rng = Rng::from_env(name);
    let mut writer = Tcp::connect(&client, PROXY);
    let mut udp = nodes.each_ref().map(|node| Udp::connect(&client, node.address));
    let mut tcp = nodes.each_ref().map(|node| Tcp::connect(&client, node.address));
    // A write that bmc did not see may be on its way until then.
    thread::sleep(Duration::from_millis(1100));
    // Whichever node has a key, each answers what it holds itself.
    let mut held = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..1500 {
        let key = format!("key{}", rng.below(60));
        let expected = match rng.below(6) {
            0 => {
                writer.command(&format!("delete {key}"));
                None
            }
            1 => {
                writer.set(&key, 0, b"7");
                assert_eq!(writer.command(&format!("incr {key} {round}")), (7 + round).to_string());
                Some((7 + round).to_string())
            }
            2 => {
                writer.set(&key, 0, format!("value {round}").as_bytes());
                Some(format!("value {round}"))
            }
            // Only asked for.
            _ => value_of(&writer.get(&key)),
        };
        let mut found = Vec::new();
        for (node, (udp, tcp)) in udp.iter_mut().zip(&mut tcp).enumerate() {
            let own = tcp.get(&key);
            assert_eq!(udp.get(&key).text, own, "{key} of node {node}, round {round}");
            if let Some(value) = value_of(&own) {
                found.push(value);
                held[node].push(key.clone());
            }
        }
        assert_eq!(found, Vec::from_iter(expected), "{key}, round {round}");
    }
    for (node, held) in nodes.iter().zip(&held) {
        let stats = node.bmc.stats();
        assert!(!held.is_empty() && total(&stats, "hits") > 50, "{}: {stats}", node.name());
        let sum = total(&stats, "hits") + total(&stats, "misses");
        assert_eq!((total(&stats, "get_keys"), sum), (1500, 1500), "{}: {stats}", node.name());
    }

    // One is lost: nothing that it held is answered, then or when it is back, empty.
    let lost = &mut nodes[1];
    let hits = lost.bmc.total("hits");
    lost.memcached.signal(Signal::SIGKILL);
    lost.memcached.wait();
    for key in &held[1] {
        let mut udp = Udp::connect(&client, lost.address);
        udp.send(format!("get {key}\r\n").as_bytes());
    }
    assert_eq!(total(&lost.bmc.stats(), "get_keys"), 1500 + held[1].len() as u64);
    lost.memcached = Memcached::start(&lost.net.server, &["-t", "2"]);
    for key in &held[1] {
        assert_eq!(Udp::connect(&client, lost.address).get(key).text, b"END\r\n", "{key}");
    }
    assert_eq!(lost.bmc.total("hits"), hits);
    assert!(lost.bmc.total("memcached_gone") > 0);
    drop(proxy);
}

/// The one value in a reply, if there is one.
fn value_of(text: &[u8]) -> Option<String> {
    let (items, _) = items(text);
    items.first().map(|item| String::from_utf8_lossy(&item.data).into_owned())
}
