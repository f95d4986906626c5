// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What can go wrong on a server, at random and under load: no answer may be
//! wrong, and none may be missing but for what the fault itself takes away. Root
//! only.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]

mod clients;
#[path = "../common/mod.rs"]
mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::rc::Rc;
use std::thread;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use nix::time::clock_gettime;
use nix::time::clock_settime;
use serde_json::Value;

use clients::Client;
use clients::Tally;
use clients::World;
use common::Bmc;
use common::Memcached;
use common::Net;
use common::PATIENCE;
use common::Rng;
use common::RngExt as _;
use common::Tcp;
use common::Udp;
use common::can_run;
use common::eventually;
use common::pins;
use common::run;
use common::skipped;
use common::total;

const CLIENTS: usize = 3;
const ATTACH: [&str; 7] =
    ["attach", Net::DEVICE, "--memory", "16M", "--unknown-ttl", "60s", "--replace"];

/// A network, memcached, bmc, and what the clients are told of their fate.
struct Scene<'a> {
    net: Rc<Net>,
    world: &'a World,
    memcached: Option<Memcached>,
    rng: Rng,
    /// Of all programs and maps that the instance ever had.
    seen: HashSet<(&'static str, u64)>,
}

impl Scene<'_> {
    fn command(&self, instance: &str, args: &[&str]) -> Command {
        let mut command = self.net.server.command(env!("CARGO_BIN_EXE_bmc"));
        command.args(["--instance", instance]).args(args);
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(self.net.instance(), args).output().expect("bmc can be run")
    }

    fn bmc(&self, args: &[&str]) -> String {
        run(&mut self.command(self.net.instance(), args))
    }

    fn attach(&self) {
        self.bmc(&ATTACH);
    }

    fn ip(&self, line: &str) -> Output {
        let words = line.split_whitespace();
        self.net.server.command("ip").args(words).output().expect("ip can be run")
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.bmc(&["status", "--json"])).expect("JSON")
    }

    fn total(&self, name: &str) -> u64 {
        let stats = serde_json::from_str(&self.bmc(&["stats", "--json"])).expect("JSON");
        total(&stats, name)
    }

    fn pause(&mut self) {
        sleep(Duration::from_millis(20 + self.rng.below(200) as u64));
    }

    fn start_memcached(&mut self) {
        let args = ["-t", if self.rng.chance(50) { "1" } else { "2" }];
        self.memcached = Some(Memcached::start(&self.net.server, &args));
    }

    /// Whether clients can reach memcached again.
    fn wait_for_answer(&self) {
        let mut udp = Udp::connect(&self.net.client, Net::SERVER4);
        let answers = || {
            udp.send(b"version\r\n");
            udp.receive(Duration::from_millis(100)).is_some()
        };
        assert!(eventually(PATIENCE, answers), "memcached is not to be reached");
    }

    /// Everything is in its place again, and requests are answered in the kernel.
    fn assert_works(&mut self, after: &str) {
        let status = self.status();
        assert_eq!(status["state"], "caching", "{after}: {status}");
        for interface in status["interfaces"].as_array().expect("a list") {
            assert_eq!(interface["state"], "up", "{after}: {status}");
        }
        let hits = self.total("hits");
        let has_hits = || self.world.failure().is_some() || self.total("hits") > hits;
        assert!(eventually(PATIENCE, has_hits), "no hit after {after}: {status}");
        self.seen.extend(objects(&pins(self.net.instance())));
    }
}

/// The programs and maps that are pinned in a directory.
fn objects(directory: &PathBuf) -> Vec<(&'static str, u64)> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        for kind in ["prog", "map"] {
            let shown = Command::new("bpftool")
                .args(["-j", kind, "show", "pinned"])
                .arg(entry.path())
                .output();
            let object =
                shown.ok().and_then(|shown| serde_json::from_slice::<Value>(&shown.stdout).ok());
            ids.extend(object.and_then(|object| Some((kind, object["id"].as_u64()?))));
        }
    }
    ids
}

fn is_loaded(kind: &str, id: u64) -> bool {
    let shown = Command::new("bpftool").args([kind, "show", "id", &id.to_string()]).output();
    shown.is_ok_and(|shown| shown.status.success())
}

type Fault = (&'static str, fn(&mut Scene<'_>));

const FAULTS: [Fault; 14] = [
    ("the link goes down", |scene| {
        scene.world.lossy(|| {
            scene.ip("link set eth0 down");
            sleep(Duration::from_millis(100));
            scene.ip("link set eth0 up");
            scene.wait_for_answer();
        });
    }),
    ("the interface is renamed", |scene| {
        for (from, to) in [("eth0", "wan0"), ("wan0", "eth0")] {
            scene.world.lossy(|| {
                scene.ip(&format!("link set {from} down"));
                assert!(scene.ip(&format!("link set {from} name {to}")).status.success());
                scene.ip(&format!("link set {to} up"));
                scene.wait_for_answer();
            });
            let status = scene.status();
            let names: Vec<_> = status["interfaces"].as_array().expect("a list").iter().collect();
            assert!(names.iter().any(|interface| interface["name"] == to), "{status}");
        }
    }),
    ("the interface is moved away and back", |scene| {
        let client = scene.net.client.name().to_string();
        scene.world.lossy(|| {
            assert!(scene.ip(&format!("link set eth0 name away0 netns {client}")).status.success());
            let status = scene.status();
            assert_eq!(status["interfaces"][0]["state"], "gone", "{status}");
            let server = scene.net.server.name();
            let mut back = scene.net.client.command("ip");
            run(back.args(["link", "set", "away0", "name", "eth0", "netns", server]));
            scene.ip("link set eth0 up");
            scene.ip(&format!("address add {}/24 dev eth0", Net::SERVER4));
            scene.attach();
            scene.wait_for_answer();
        });
    }),
    ("memcached is killed", |scene| restart(scene, Signal::SIGKILL)),
    ("memcached is stopped", |scene| restart(scene, Signal::SIGTERM)),
    ("somebody takes XDP off", |scene| {
        let output = scene.ip("link set dev eth0 xdp off");
        assert!(!output.status.success(), "who has no link may not take it off");
    }),
    ("the programs are exchanged", |scene| scene.exchange()),
    ("bmc is killed while it exchanges them", |scene| {
        let mut child = scene
            .command(scene.net.instance(), &ATTACH)
            .stderr(Stdio::null())
            .spawn()
            .expect("bmc can be run");
        scene.pause();
        child.kill().expect("our child");
        child.wait().expect("our child");
        scene.attach();
    }),
    ("bmc is killed while it flushes or shows", |scene| {
        for noun in ["flush", "stats", "entries", "status"] {
            let mut child = scene
                .command(scene.net.instance(), &[noun])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("bmc can be run");
            sleep(Duration::from_millis(scene.rng.below(8) as u64));
            child.kill().expect("our child");
            child.wait().expect("our child");
        }
    }),
    ("everything is flushed", |scene| _ = scene.bmc(&["flush"])),
    ("bmc is detached and attached", |scene| {
        scene.bmc(&["detach"]);
        scene.pause();
        scene.attach();
    }),
    ("another instance comes and goes", |scene| {
        assert!(scene.ip("link add eth1 type veth peer name eth2").status.success());
        let other = format!("{}-2", scene.net.instance());
        run(&mut scene.command(&other, &["attach", "eth1", "--memory", "16M"]));
        scene.pause();
        run(&mut scene.command(&other, &["detach"]));
        assert!(scene.ip("link del eth1").status.success());
    }),
    ("bpffs is unmounted", |scene| {
        run(Command::new("umount").arg("/sys/fs/bpf"));
        assert_eq!(scene.output(&["status"]).status.code(), Some(3));
        run(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]));
        // The kernel takes its time to let programs go that lost their pins.
        assert!(eventually(PATIENCE, || scene.output(&ATTACH).status.success()));
    }),
    ("the clock jumps", |scene| {
        // Further than any entry lives, and no further: the machine has others.
        let Some(_jump) = Jump::by(90) else {
            skipped("whatever_goes_wrong, in part", "the clock may not be set");
            return;
        };
        scene.pause();
    }),
];

impl Scene<'_> {
    fn exchange(&mut self) {
        let before = self.status()["programs"].clone();
        self.attach();
        assert_ne!(self.status()["programs"], before, "they are still the same");
    }
}

fn restart(scene: &mut Scene<'_>, signal: Signal) {
    scene.world.lossy(|| {
        let mut memcached = scene.memcached.take().expect("it runs");
        scene.world.death(|| {
            memcached.signal(signal);
            memcached.wait();
        });
        scene.pause();
        scene.start_memcached();
        scene.wait_for_answer();
    });
}

/// A clock that is ahead by so many seconds, until dropped.
struct Jump(TimeSpec);

impl Jump {
    /// None if the clock may not be set.
    fn by(seconds: i64) -> Option<Self> {
        let by = TimeSpec::new(seconds, 0);
        Self::set(by).then_some(Self(by))
    }

    fn set(by: TimeSpec) -> bool {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("there is a clock");
        clock_settime(ClockId::CLOCK_REALTIME, now + by).is_ok()
    }
}

impl Drop for Jump {
    fn drop(&mut self) {
        // What could be set once can be again.
        let _ = Self::set(TimeSpec::new(0, 0) - self.0);
    }
}

/// After a time of faults the counters add up: each request was answered by bmc or
/// passed on to memcached, for a reason that is counted.
fn assert_adds_up(scene: &Scene<'_>) {
    let mut tcp = Tcp::connect(&scene.net.server, "127.0.0.1".parse().expect("an address"));
    let mut udp = Udp::connect(&scene.net.client, Net::SERVER4);
    for nth in 0..50 {
        tcp.set(&format!("sum-{nth}"), 0, b"value");
    }
    let count =
        || -> Value { serde_json::from_str(&scene.bmc(&["stats", "--json"])).expect("JSON") };
    let (before, gets) = (count(), tcp.stat("cmd_get"));
    let mut rng = Rng::new(5);
    for _ in 0..2000 {
        udp.get(&format!("sum-{}", rng.below(60)));
        if rng.chance(5) {
            udp.send(b"version\r\n");
            assert!(udp.receive(PATIENCE).is_some());
        }
    }
    let after = count();
    let by_memcached = tcp.stat("cmd_get") - gets;
    let grown = |name: &str| total(&after, name) - total(&before, name);
    let passes = |stats: &Value| -> u64 {
        let passes = stats["totals"]["passes"].as_object().expect("reasons");
        passes.values().filter_map(Value::as_u64).sum()
    };
    assert_eq!(grown("get_requests"), 2000);
    assert_eq!(grown("hits") + grown("misses"), 2000);
    assert_eq!(grown("misses"), by_memcached, "what bmc passed on is what memcached saw");
    assert!(grown("hits") > 1000, "{}", grown("hits"));
    assert!(passes(&after) > passes(&before), "the other commands");
}

#[test]
fn whatever_goes_wrong_no_answer_is_wrong_or_missing() {
    if !can_run("whatever_goes_wrong") {
        return;
    }
    let seconds = std::env::var("BMC_FAULT_SECONDS").map_or(40, |n| n.parse().expect("a number"));
    // A bpffs that can be unmounted; nobody else sees it.
    unshare(CloneFlags::CLONE_NEWNS).expect("root may");
    run(Command::new("mount").args(["--make-rprivate", "/"]));
    run(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]));
    let net = Rc::new(Net::new("faults"));
    let world = World::default();
    let rng = Rng::from_env("faults");
    let mut scene =
        Scene { net: Rc::clone(&net), world: &world, memcached: None, rng, seen: HashSet::new() };
    scene.start_memcached();
    scene.attach();

    let mut times = [0; FAULTS.len()];
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let namespace = &net.client;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = Client::new(&world, namespace, number, scene.rng.number());
                scope.spawn(move || client.run())
            })
            .collect();
        // Also if a fault panics.
        let stop = Stop(&world);
        scene.assert_works("the start");
        let start = Instant::now();
        let mut begun = 0;
        // Each once, then at random as long as there is time.
        while begun < FAULTS.len() || start.elapsed() < Duration::from_secs(seconds) {
            let nth = if begun < FAULTS.len() { begun } else { scene.rng.below(FAULTS.len()) };
            begun += 1;
            let (name, fault) = FAULTS[nth];
            eprintln!("{:6.2} s: {name}", start.elapsed().as_secs_f64());
            fault(&mut scene);
            if world.failure().is_some() {
                break;
            }
            scene.assert_works(name);
            times[nth] += 1;
        }
        drop(stop);
        for client in clients {
            let done = client.join().expect("a client does not panic");
            tally.gets += done.gets;
            tally.lost += done.lost;
            tally.found += done.found;
            tally.sets += done.sets;
        }
    });
    let faults: Vec<_> = FAULTS.iter().map(|(name, _)| *name).zip(times).collect();
    eprintln!("{tally:?}, {faults:?}");
    if let Some(why) = world.failure() {
        panic!("{why}");
    }
    assert!(tally.found > tally.gets / 4, "{tally:?}");
    assert_adds_up(&scene);
    scene.bmc(&["detach"]);
    assert!(!pins(scene.net.instance()).exists(), "detach leaves pins");
    let gone = || !scene.seen.iter().any(|(kind, id)| is_loaded(kind, *id));
    assert!(scene.seen.len() > 20, "{:?}", scene.seen);
    assert!(eventually(PATIENCE, gone), "something of {:?} is still loaded", scene.seen);
}

#[test]
fn a_full_disk_is_told_and_changes_nothing() {
    if !can_run("a_full_disk") {
        return;
    }
    let net = Rc::new(Net::new("faults-full"));
    let bmc = Bmc::attach(&net, &["--memory", "16M"]);
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["stats"],
        &["stats", "--format", "prometheus"],
        &["stats", "--watch", "--json"],
        &["entries", "--json"],
        &["bench", "--list"],
        &["completions", "bash"],
        &["man"],
    ] {
        let full = fs::File::options().write(true).open("/dev/full").expect("it is there");
        let mut command = net.server.command(env!("CARGO_BIN_EXE_bmc"));
        command.args(["--instance", net.instance()]).args(args).stdout(full);
        let output = command.output().expect("bmc can be run");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {errors}");
        assert!(errors.contains("No space left on device"), "{args:?}: {errors}");
    }
    let status: Value = serde_json::from_str(&bmc.run(&["status", "--json"])).expect("JSON");
    assert_eq!(status["interfaces"][0]["state"], "up", "{status}");
}

/// A memory cgroup with a limit, of either version; removed on drop.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(limit: &str) -> Option<Self> {
        let limits =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        limits.into_iter().find_map(|(root, file)| {
            let group = Self(Path::new(root).join(format!("bmc-test-{}", std::process::id())));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(file), limit).ok()?;
            Some(group)
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // As soon as what was in it has ended.
        if !eventually(PATIENCE, || fs::remove_dir(&self.0).is_ok()) {
            eprintln!("cannot remove {}", self.0.display());
        }
    }
}

#[test]
fn memory_that_a_cgroup_does_not_allow_is_told_and_leaves_nothing() {
    if !can_run("memory_that_a_cgroup_does_not_allow") {
        return;
    }
    let Some(cgroup) = Cgroup::new("64M") else {
        skipped("memory_that_a_cgroup_does_not_allow", "no memory cgroup can be made here");
        return;
    };
    let net = Rc::new(Net::new("faults-memory"));
    let attach = |memory: &str| {
        let mut shell = net.server.command("sh");
        let script = "echo $$ > \"$1\"/cgroup.procs && shift && exec \"$@\"";
        shell.args(["-c", script, "sh"]).arg(&cgroup.0).arg(env!("CARGO_BIN_EXE_bmc"));
        shell.args(["--instance", net.instance(), "attach", Net::DEVICE, "--memory", memory]);
        shell.output().expect("sh can be run")
    };
    let refused = attach("256M");
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    // Version 2 is asked before, version 1 lets the kernel say no.
    let told = ["is more than is available", "not enough memory"];
    assert!(told.iter().any(|told| errors.contains(told)), "{errors}");
    assert!(!pins(net.instance()).exists(), "pins are left");
    assert_eq!(attach("16M").status.code(), Some(0), "what is there can be had");
    run(net.server.command(env!("CARGO_BIN_EXE_bmc")).args([
        "--instance",
        net.instance(),
        "detach",
    ]));
}

/// Stops the clients when dropped.
struct Stop<'a>(&'a World);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
