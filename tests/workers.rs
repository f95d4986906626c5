// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc memcached`: a real memcached with one UDP socket for each worker.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use bmc::command::bench::net::cpus;
use bmc::command::bench::net::pin;
use common::Net;
use common::PATIENCE;
use common::Process;
use common::can_run;
use common::eventually;
use common::run;
use common::skipped;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Keeps memcached's own threads still, which would run for as long as a test does.
const IDLE: &str = "no_lru_maintainer,no_lru_crawler";
const BMC: &str = env!("CARGO_BIN_EXE_bmc");
const PORT: u16 = 11311;

/// Requests of one client: many to the noise of a thread's own wake-ups.
const ASKED: u16 = 400;

/// A memcached in a namespace, killed on drop.
struct Server {
    process: Process,
    net: Net,
}

impl Server {
    /// By `bmc memcached`, or as it is; with these arguments besides the ports, those
    /// of `bmc memcached` before a `--`.
    fn start(name: &str, ours: bool, args: &[&str]) -> Self {
        let net = Net::new(name);
        let port = PORT.to_string();
        let mut command = net.server.command("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        command.args(if ours { &[BMC, "memcached"][..] } else { &["memcached"] });
        let split = args.iter().position(|arg| *arg == "--").map_or(0, |at| at + 1);
        let child = command
            .args(&args[..split])
            .args(["-u", "root", "-p", &port, "-U", &port])
            .args(&args[split..])
            .spawn()
            .expect("memcached can be started");
        let server = Self { process: Process(child), net };
        let first = if args.contains(&"::1") { "::1" } else { "127.0.0.1" };
        let address: IpAddr = first.parse().expect("an address");
        let answers = || server.ask(address, 1, 0, b"version\r\n").is_some();
        assert!(eventually(PATIENCE, answers), "memcached does not answer");
        server
    }

    /// The reply to a text, from a socket of its own.
    fn ask(&self, server: IpAddr, times: usize, id: u16, text: &[u8]) -> Option<Vec<u8>> {
        self.client(server).ask(times, id, text)
    }

    fn client(&self, server: IpAddr) -> Client {
        self.net.server.within(|| {
            let any = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.connect(SocketAddr::from((server, PORT))).expect("an address");
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
            Client(socket)
        })
    }

    /// How often each thread began to run. Not every memcached names its workers.
    fn woken(&self) -> Vec<u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.0.id())).expect("it runs");
        let mut tasks: Vec<_> = tasks.flatten().map(|task| task.path()).collect();
        tasks.sort();
        let times = |task: &Path| {
            let times = fs::read_to_string(task.join("schedstat")).ok()?;
            times.split_whitespace().nth(2)?.parse().ok()
        };
        tasks.iter().map(|task| times(task).expect("memcached's threads stay")).collect()
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.process.0.id().try_into().expect("a pid")), signal)
            .expect("it runs");
        self.process.0.wait().expect("our child")
    }
}

/// A client's socket.
struct Client(UdpSocket);

impl Client {
    /// The reply to a text, asked for up to so many times.
    fn ask(&self, times: usize, id: u16, text: &[u8]) -> Option<Vec<u8>> {
        let request = [&id.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0], text].concat();
        let mut buffer = [0; 2000];
        for _ in 0..times {
            if self.0.send(&request).is_ok()
                && let Ok(len) = self.0.recv(&mut buffer)
            {
                return Some(buffer[..len].to_vec());
            }
        }
        None
    }
}

/// Which of the threads began to run how often in between.
fn since(before: &[u64], after: &[u64]) -> Vec<u64> {
    after.iter().zip(before).map(|(after, before)| after - before).collect()
}

/// How many UDP sockets are bound to the port where a process is, over IPv4 and
/// over IPv6.
fn sockets(pid: u32) -> [usize; 2] {
    let port = format!(":{PORT:04X}");
    ["udp", "udp6"].map(|table| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).expect("it runs");
        let local = |line: &str| line.split_whitespace().nth(1).is_some_and(|a| a.ends_with(&port));
        table.lines().filter(|line| local(line)).count()
    })
}

#[test]
fn each_worker_has_a_socket_of_its_own_on_every_address() {
    if !can_run("workers") {
        return;
    }
    for (name, args, expected) in [
        ("all", &["-t", "3"][..], [3, 3]),
        ("one", &["-t", "1"], [1, 1]),
        ("four", &["-t", "4", "-l", "127.0.0.1"], [4, 0]),
        ("six", &["-t", "5", "-l", "::1"], [0, 5]),
    ] {
        let server = Server::start(&format!("workers-{name}"), true, args);
        assert_eq!(sockets(server.process.0.id()), expected, "{args:?}");
    }
    let server = Server::start("workers-plain", false, &["-t", "3"]);
    assert_eq!(sockets(server.process.0.id()), [1, 1], "memcached as it is");
}

#[test]
fn it_answers_every_client_as_memcached_does() {
    if !can_run("workers") {
        return;
    }
    let servers =
        [true, false].map(|ours| Server::start(&format!("workers-is-{ours}"), ours, &["-t", "4"]));
    for (nth, text) in [
        &b"set key 5 0 5\r\nvalue\r\n"[..],
        b"get key\r\n",
        b"get nothing\r\n",
        b"gat 0 key\r\n",
        b"nonsense\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        for address in ["127.0.0.1", "::1"] {
            let address = address.parse().expect("an address");
            // Many ports, so that each worker gets some of them.
            for id in 0..60 {
                let [own, other] = [0, 1].map(|at: usize| servers[at].ask(address, 5, id, text));
                assert!(own.is_some(), "{nth}, {id}: no reply");
                assert_eq!(own, other, "{nth}, {id}");
            }
        }
    }
}

/// How often each thread began to run while one client, that is one socket on a CPU,
/// had asked `ASKED` times.
fn shares(server: &Server, cpu: usize) -> Vec<u64> {
    let before = server.woken();
    // On loopback a datagram is received by the CPU that sent it.
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            pin(&[cpu]).expect("it is ours to use");
            let client = server.client("127.0.0.1".parse().expect("an address"));
            for id in 0..ASKED {
                assert!(client.ask(5, id, b"get key\r\n").is_some());
            }
        });
        client.join().expect("no reply");
    });
    since(&before, &server.woken())
}

/// The threads that did more than a little of the work for [`ASKED`] requests.
fn busy(woken: &[u64]) -> Vec<usize> {
    let is_busy = |(_, times): &(usize, &u64)| **times > u64::from(ASKED) / 10;
    woken.iter().enumerate().filter(is_busy).map(|(thread, _)| thread).collect()
}

#[test]
fn one_client_is_enough_for_every_worker_to_have_work() {
    if !can_run("workers") {
        return;
    }
    let server = Server::start("workers-spread", true, &["-t", "4", "-l", "127.0.0.1", "-o", IDLE]);
    let woken = shares(&server, cpus().expect("there are some")[0]);
    assert_eq!(busy(&woken).len(), 4, "{woken:?}");
    // A socket that is ready wakes its own worker only.
    assert!(woken.iter().sum::<u64>() < u64::from(ASKED) * 3 / 2, "{woken:?}");
}

#[test]
fn steered_by_client_a_client_has_a_worker() {
    if !can_run("workers") {
        return;
    }
    let args = ["--steer", "client", "--", "-t", "4", "-l", "127.0.0.1", "-o", IDLE];
    let server = Server::start("workers-client", true, &args);
    let mut all = BTreeSet::new();
    // That 40 clients have fewer than three workers: less than once in 10^11 times.
    for _ in 0..40 {
        let woken = shares(&server, cpus().expect("there are some")[0]);
        let busy = busy(&woken);
        assert_eq!(busy.len(), 1, "{woken:?}");
        all.extend(busy);
    }
    assert!(all.len() > 2, "all clients have {all:?}");
}

#[test]
fn steered_by_cpu_a_cpu_has_a_worker() {
    if !can_run("workers") {
        return;
    }
    let cpus = cpus().expect("there are some");
    if cpus.len() < 2 {
        skipped("steered_by_cpu_a_cpu_has_a_worker", "it needs two CPUs");
        return;
    }
    let args = ["--steer", "cpu", "--", "-t", "2", "-l", "127.0.0.1", "-o", IDLE];
    let server = Server::start("workers-cpu", true, &args);
    // Of two CPUs with numbers that differ in the last bit.
    let odd = cpus.iter().find(|cpu| *cpu % 2 != cpus[0] % 2).expect("numbers are in turn");
    let [one, other] = [cpus[0], *odd].map(|cpu| {
        let woken = shares(&server, cpu);
        let busy = busy(&woken);
        assert_eq!(busy.len(), 1, "CPU {cpu}: {woken:?}");
        busy[0]
    });
    assert_ne!(one, other, "one worker for both");
}

#[test]
fn it_is_memcached_to_signals_and_exit_codes() {
    if !can_run("workers") {
        return;
    }
    let server = Server::start("workers-signal", true, &["-t", "2"]);
    let comm =
        fs::read_to_string(format!("/proc/{}/comm", server.process.0.id())).expect("it runs");
    assert_eq!(comm.trim(), "memcached");
    let plain = Server::start("workers-signal-plain", false, &["-t", "2"]);
    assert_eq!(server.end(Signal::SIGTERM), plain.end(Signal::SIGTERM));
    let server = Server::start("workers-kill", true, &[]);
    assert_eq!(server.end(Signal::SIGKILL).signal(), Some(Signal::SIGKILL as i32));
    let output = bmc(&["memcached", "-U", "1", "--no-such-option"]);
    let plain = Command::new("memcached").args(["-U", "1", "--no-such-option"]).output();
    assert_eq!(output.status.code(), plain.expect("it runs").status.code());
}

#[test]
fn it_becomes_a_daemon_as_memcached_does() {
    if !can_run("workers") {
        return;
    }
    let net = Net::new("workers-daemon");
    let file = std::env::temp_dir().join(format!("bmc-workers-{}.pid", std::process::id()));
    let port = PORT.to_string();
    let mut command = net.server.command(BMC);
    command.args(["memcached", "-d", "-u", "root", "-t", "3", "-p", &port, "-U", &port, "-P"]);
    run(command.arg(&file));
    let pid = || fs::read_to_string(&file).ok()?.trim().parse::<i32>().ok();
    assert!(eventually(PATIENCE, || pid().is_some()), "no pid file");
    let pid = pid().expect("it was there");
    let stop = || kill(Pid::from_raw(pid), Signal::SIGTERM);
    let bound = || sockets(pid.try_into().expect("a pid")) == [3, 3];
    let has_them = eventually(PATIENCE, bound);
    stop().expect("it runs");
    assert!(eventually(PATIENCE, || stop().is_err()), "it does not end");
    let _ = fs::remove_file(&file);
    assert!(has_them, "not three sockets for each family");
}

#[test]
fn a_busy_port_is_an_error() {
    if !can_run("workers") {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it has one").port().to_string();
    let args = ["memcached", "-u", "root", "-l", "127.0.0.1", "-p", &port, "-U", &port];
    let output = bmc(&args);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Address already in use"), "{said}");
}

fn bmc(args: &[&str]) -> Output {
    Command::new(BMC).args(args).stdin(Stdio::null()).output().expect("bmc can be run")
}

#[track_caller]
fn assert_refused(args: &[&str], expected: &str) {
    let output = bmc(&[&["memcached"], args].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.contains(expected), "{args:?}: {said}");
}

#[test]
fn what_cannot_be_run_is_named() {
    let dir = std::env::temp_dir().join(format!("bmc-workers-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
    fs::copy("/bin/true", file("set-uid")).expect("a copy");
    fs::set_permissions(file("set-uid"), fs::Permissions::from_mode(0o4755)).expect("its mode");
    fs::write(file("script"), "#!/bin/sh\n").expect("a script");
    for (binary, expected) in [
        (file("none"), "cannot read"),
        (file("set-uid"), "is set-uid or set-gid"),
        (file("script"), "is no program of this machine's kind"),
        ("/sbin/ldconfig".into(), "is linked statically"),
        ("/bin/true".into(), "does not say that it is memcached"),
    ] {
        assert_refused(&["--binary", &binary, "--", "-U", "1"], expected);
    }
    fs::remove_dir_all(&dir).expect("our own");
    let output = Command::new(BMC).args(["memcached", "-U", "1"]).env("PATH", "").output();
    let output = output.expect("bmc can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no memcached found on PATH"), "{said}");
}

#[test]
fn udp_must_be_on() {
    if !can_run("workers") {
        return;
    }
    for args in [&["--"][..], &["-p", "11211"], &["-U", "0"], &["-U", "11211", "-U0"]] {
        assert_refused(args, "would not listen on UDP");
    }
}
