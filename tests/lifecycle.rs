// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Attach, replace and detach, with everything that can come in between. Root
//! only; each test has an instance and network namespaces of its own.

mod common;

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Instant;

use bmc::host::facts;
use bmc::host::sys;
use bmc::host::sys::LinkType;
use bmc::instance::hook::Place;
use bmc::instance::pins::Pins;
use bmc::instance::state::idle;
use bmc::instance::state::set_idle;
use libbpf_rs::Link;
use libbpf_rs::MapHandle;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::COUNTERS;
use common::Memcached;
use common::Namespace;
use common::Net;
use common::PATIENCE;
use common::PINS;
use common::PORT;
use common::TLS;
use common::can_run;
use common::eventually;
use common::run;
use common::skipped;
use common::total;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const NOT_ATTACHED: i32 = 3;

/// What `BMC_TC` chooses: what the kernel has, or filters although it has tcx.
const TCX: &str = "";
const CLSACT: &str = "clsact";

/// Small, so that attaching is quick.
const MEMORY: [&str; 2] = ["--memory", "16M"];

/// What `lo` and the server's device look like to the kernel.
#[derive(Debug, PartialEq, Eq)]
struct Hooks {
    programs: Value,
    qdiscs: Value,
}

/// A network, and bmc run at its server.
struct Bed {
    net: Net,
    before: Hooks,
    /// `BMC_TC`.
    tc: &'static str,
}

impl Bed {
    fn new(test: &str, tc: &'static str) -> Self {
        let net = Net::new(test);
        let before = hooks(&net);
        Self { net, before, tc }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.net.server.command(env!("CARGO_BIN_EXE_bmc"));
        command.env("BMC_TC", self.tc).args(["--instance", self.net.instance()]).args(args);
        command
    }

    fn bmc(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("bmc can be run")
    }

    #[track_caller]
    fn expect(&self, code: i32, args: &[&str]) -> String {
        let output = self.bmc(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
        errors
    }

    #[track_caller]
    fn attach(&self, args: &[&str]) -> String {
        self.expect(DONE, &[&["attach", Net::DEVICE], &MEMORY[..], args].concat())
    }

    fn status(&self) -> Value {
        let output = self.bmc(&["status", "--json"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{err}: {errors}"))
    }

    fn pins(&self) -> PathBuf {
        common::pins(self.net.instance())
    }

    /// Another veth pair, eth1 and eth2. As long as what is returned lives, eth2 takes
    /// what XDP sends.
    fn add_pair(&self) -> Link {
        let run = |line: &str| {
            let (program, args) = line.split_once(' ').expect("arguments");
            run(self.net.server.command(program).args(args.split(' ')));
        };
        run("ip link add eth1 type veth peer name eth2");
        for device in ["eth1", "eth2"] {
            run(&format!("ip link set {device} up"));
        }
        self.net.server.attach_pass("eth2").0
    }

    fn leftover(&self) -> PathBuf {
        common::pins(&format!("new~{}", self.net.instance()))
    }

    /// The id of a pinned map.
    fn map(&self, name: &str) -> u64 {
        bpftool(&["map", "show", "pinned", &self.pins().join(name).to_string_lossy()])["id"]
            .as_u64()
            .expect("a map has an id")
    }

    /// The ids of all programs, in the order of their names.
    fn programs(&self) -> Vec<u64> {
        let status = self.status();
        let programs = status["programs"].as_array().expect("a list");
        programs.iter().map(|program| program["id"].as_u64().expect("an id")).collect()
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert!(!self.pins().exists(), "pins are left");
        assert!(!self.leftover().exists(), "a leftover is left");
        assert_eq!(hooks(&self.net), self.before, "at once, not when the kernel comes to it");
    }

    /// Whether everything is in its place and the cache works.
    #[track_caller]
    fn assert_works(&self, mode: &str) {
        let status = self.status();
        assert_eq!(status["state"], "caching", "{status}");
        for iface in status["interfaces"].as_array().expect("a list") {
            assert_eq!(iface["state"], "up", "{status}");
            assert_eq!(iface["mode"], mode, "{status}");
        }
        assert!(!self.leftover().exists(), "a leftover is left");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.bmc(&["detach"]);
    }
}

fn bpftool(args: &[&str]) -> Value {
    let text = run(Command::new("bpftool").arg("-j").args(args));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{args:?}: {err}: {text}"))
}

fn hooks(net: &Net) -> Hooks {
    let json = |program: &str, args: &[&str]| {
        let text = run(net.server.command(program).args(args));
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("{err}: {text}"))
    };
    let mut programs: Value = json("ip", &["-j", "link"]);
    for link in programs.as_array_mut().expect("a list") {
        *link = serde_json::json!([link["ifname"], link["xdp"]]);
    }
    for device in ["lo", Net::DEVICE] {
        for side in ["ingress", "egress"] {
            let filters = json("tc", &["-j", "filter", "show", "dev", device, side]);
            programs.as_array_mut().expect("a list").push(filters);
        }
        for side in [LinkType::TcxIngress, LinkType::TcxEgress] {
            let links = net.server.within(|| {
                let index = facts::index_of(device).ok()?;
                let tcx = match sys::tcx(index, side) {
                    // It has none: Linux before 6.6.
                    Err(err) if err.raw_os_error() == Some(Errno::EINVAL as i32) => Vec::new(),
                    tcx => tcx.expect("the kernel lists programs"),
                };
                Some(tcx.iter().map(|tcx| tcx.link).collect::<Vec<_>>())
            });
            programs.as_array_mut().expect("a list").push(links.into());
        }
    }
    Hooks { programs, qdiscs: json("tc", &["-j", "qdisc", "show"]) }
}

#[test]
fn detach_leaves_nothing() {
    if !can_run("detach_leaves_nothing") {
        return;
    }
    for mode in ["native", "generic", "tc"] {
        let bed = Bed::new("nothing-left", TCX);
        bed.attach(&["--mode", mode]);
        bed.assert_works(mode);
        assert_ne!(hooks(&bed.net), bed.before);
        // Nor because somebody looks at the links just then.
        let dir = Pins::of(bed.net.instance());
        let names = dir.hooks().expect("pins").into_iter().map(|hook| hook.name());
        let held: Vec<_> =
            names.map(|name| sys::pinned(&dir.links().join(name)).expect("a link")).collect();
        bed.expect(DONE, &["detach"]);
        bed.assert_clean();
        drop(held);
        bed.expect(NOT_ATTACHED, &["detach"]);
    }
}

#[test]
fn without_tcx_detach_leaves_nothing_of_ours_and_everything_of_others() {
    if !can_run("without_tcx_detach_leaves_nothing_of_ours_and_everything_of_others") {
        return;
    }
    let mut bed = Bed::new("filters", CLSACT);
    bed.attach(&[]);
    bed.assert_works("native");
    bed.expect(DONE, &["detach"]);
    bed.assert_clean();

    // A qdisc that was there stays, also an empty one.
    let tc = |args: &[&str]| run(bed.net.server.command("tc").args(args));
    tc(&["qdisc", "add", "dev", Net::DEVICE, "clsact"]);
    let before = hooks(&bed.net);
    bed.attach(&[]);
    bed.expect(DONE, &["detach"]);
    assert_eq!(hooks(&bed.net), before);
    tc(&["qdisc", "del", "dev", Net::DEVICE, "clsact"]);

    // One of ours stays if somebody has put a filter there.
    bed.attach(&[]);
    let pin = bed.pins().join("tx").display().to_string();
    let foreign = ["pref", "10", "bpf", "direct-action", "pinned", &pin];
    tc(&[&["filter", "add", "dev", Net::DEVICE, "egress"], &foreign[..]].concat());
    bed.expect(DONE, &["detach"]);
    let filters = tc(&["filter", "show", "dev", Net::DEVICE, "egress"]);
    assert!(filters.contains("pref 10"), "{filters}");
    assert!(!filters.contains("pref 1 "), "{filters}");
    tc(&["qdisc", "del", "dev", Net::DEVICE, "clsact"]);
    bed.before = hooks(&bed.net);
    bed.assert_clean();
}

#[test]
fn the_pins_are_for_root_alone() {
    if !can_run("the_pins_are_for_root_alone") {
        return;
    }
    let bed = Bed::new("root-alone", TCX);
    bed.attach(&[]);
    for dir in [bed.pins(), bed.pins().join("links"), PINS.into()] {
        let mode = fs::metadata(&dir).expect("the directory is there").mode();
        assert_eq!(mode & 0o777, 0o700, "{}", dir.display());
    }
}

#[test]
fn attaching_twice_fails_and_changes_nothing() {
    if !can_run("attaching_twice_fails_and_changes_nothing") {
        return;
    }
    let bed = Bed::new("twice", TCX);
    bed.attach(&[]);
    let (before, programs) = (hooks(&bed.net), bed.programs());
    let errors = bed.expect(FAILED, &["attach", Net::DEVICE]);
    assert!(errors.contains("already attached to eth0 (use --replace"), "{errors}");
    assert_eq!((hooks(&bed.net), bed.programs()), (before, programs));
}

#[test]
fn a_missing_interface_is_named_with_those_that_are_there() {
    if !can_run("a_missing_interface_is_named_with_those_that_are_there") {
        return;
    }
    let bed = Bed::new("missing", TCX);
    let errors = bed.expect(FAILED, &["attach", Net::DEVICE, "eth7"]);
    assert_eq!(errors, "bmc: no such interface: eth7 (there are: eth0)\n");
    bed.assert_clean();
}

#[test]
fn a_foreign_xdp_program_is_named_and_stays() {
    if !can_run("a_foreign_xdp_program_is_named_and_stays") {
        return;
    }
    let mut bed = Bed::new("foreign", TCX);
    let (_link, id) = bed.net.server.attach_pass(Net::DEVICE);
    bed.before = hooks(&bed.net);
    for mode in ["auto", "native", "generic"] {
        let errors = bed.expect(FAILED, &["attach", Net::DEVICE, "--mode", mode]);
        let message = format!("eth0 already has the XDP program bmc_rx (id {id})");
        assert!(errors.contains(&message), "{errors}");
        bed.assert_clean();
    }
    bed.attach(&["--mode", "tc"]);
    bed.assert_works("tc");
    // Nor is it replaced later, and a failing --replace leaves what there is.
    let attached = hooks(&bed.net);
    bed.expect(FAILED, &["attach", Net::DEVICE, "--replace"]);
    assert_eq!(hooks(&bed.net), attached);
    bed.assert_works("tc");
    bed.expect(DONE, &["detach"]);
    bed.assert_clean();
}

#[test]
fn another_instance_on_the_interface_is_named() {
    if !can_run("another_instance_on_the_interface_is_named") {
        return;
    }
    for (tc, mode) in [(TCX, "native"), (TCX, "tc"), (CLSACT, "tc")] {
        let bed = Bed::new("instances", tc);
        bed.attach(&["--mode", mode]);
        let other = format!("{}-other", bed.net.instance());
        let output = bed.bmc(&["attach", Net::DEVICE, "--instance", &other, "--mode", mode]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILED), "{errors}");
        let message = format!("eth0 already has bmc's instance {}", bed.net.instance());
        assert!(errors.contains(&message), "{errors}");
        bed.assert_works(mode);
    }
}

#[test]
fn memory_that_cannot_be_had_is_refused_before_it_is_taken() {
    if !can_run("memory_that_cannot_be_had_is_refused_before_it_is_taken") {
        return;
    }
    if facts::memory_available().expect("it can be read") > 64 << 30 {
        skipped(
            "memory_that_cannot_be_had_is_refused_before_it_is_taken",
            "this machine has as much as bmc takes at most",
        );
        return;
    }
    let bed = Bed::new("memory", TCX);
    let errors = bed.expect(FAILED, &["attach", Net::DEVICE, "--memory", "64G"]);
    assert!(errors.contains("--memory 65536M is more than is available"), "{errors}");
    bed.assert_clean();
}

#[test]
fn locks_the_memory_that_was_asked_for() {
    if !can_run("locks_the_memory_that_was_asked_for") {
        return;
    }
    let release = facts::release().expect("the kernel has one");
    let guesses = facts::version(&release).expect("it is a number") < [6, 4];
    let bed = Bed::new("locked", TCX);
    for memory in [16_u64 << 20, 50_000_000, 256 << 20] {
        bed.expect(DONE, &["attach", Net::DEVICE, "--memory", &memory.to_string(), "--replace"]);
        let mut locked = 0;
        for pin in fs::read_dir(bed.pins()).expect("pins").map(|pin| pin.expect("a pin").path()) {
            // Programs, links and notes are none.
            let show = Command::new("bpftool")
                .args(["-j", "map", "show", "pinned"])
                .arg(pin)
                .output()
                .expect("bpftool can be run");
            let map: Value = serde_json::from_slice(&show.stdout).unwrap_or_default();
            locked += map["bytes_memlock"].as_u64().unwrap_or_default();
        }
        assert_eq!(bed.status()["memory_locked_bytes"], locked);
        // Before 6.4 the kernel says what it guesses: a key for each element of an
        // array too.
        let more = if guesses { memory / 100 * 7 } else { 0 };
        assert!(locked <= memory + more, "{locked} of {memory}");
        assert!(locked >= memory / 100 * 98, "{locked} of {memory}");
    }
}

#[test]
fn replace_exchanges_the_programs_and_keeps_the_maps() {
    if !can_run("replace_exchanges_the_programs_and_keeps_the_maps") {
        return;
    }
    for tc in [TCX, CLSACT] {
        let bed = Bed::new("replace", tc);
        bed.attach(&[]);
        let maps = ["index", "slabs", "stats", "leases"];
        let (ids, programs) = (maps.map(|name| bed.map(name)), bed.programs());
        let since = bed.status()["since"].clone();
        for args in [&["--replace"][..], &["--replace", "--max-age", "5s"]] {
            assert_eq!(bed.attach(args), "");
            assert_eq!(maps.map(|name| bed.map(name)), ids);
            assert_ne!(bed.programs(), programs);
            assert_eq!(bed.status()["since"], since);
            bed.assert_works("native");
        }
        assert_eq!(bed.status()["max_age_ms"], 5000);
        // Every hook runs what is pinned, nothing else.
        let attached = hooks(&bed.net).programs.to_string();
        for program in programs {
            assert!(!attached.contains(&format!("\"id\":{program},")), "{program} in {attached}");
        }
        let errors = bed.expect(DONE, &["attach", Net::DEVICE, "--memory", "32M", "--replace"]);
        assert!(errors.contains("starting with an empty one"), "{errors}");
        assert_ne!(maps.map(|name| bed.map(name)), ids);
        bed.assert_works("native");
        bed.expect(DONE, &["detach"]);
        bed.assert_clean();
    }
}

#[test]
fn replace_attaches_what_is_not_attached() {
    if !can_run("replace_attaches_what_is_not_attached") {
        return;
    }
    let bed = Bed::new("replace-none", TCX);
    bed.attach(&["--replace"]);
    bed.assert_works("native");
}

#[test]
fn replace_changes_mode_and_interfaces() {
    if !can_run("replace_changes_mode_and_interfaces") {
        return;
    }
    for tc in [TCX, CLSACT] {
        let mut bed = Bed::new("modes", tc);
        let _pair = bed.add_pair();
        run(bed.net.server.command("ip").args(["link", "set", "eth1", "down"]));
        run(bed.net.server.command("ip").args(["link", "set", "eth1", "name", "eth1.5", "up"]));
        bed.before = hooks(&bed.net);
        bed.attach(&[]);
        for mode in ["generic", "tc", "native"] {
            bed.attach(&["eth1.5", "--mode", mode, "--replace"]);
            bed.assert_works(mode);
            let interfaces = bed.status()["interfaces"].clone();
            let names: Vec<_> = interfaces.as_array().expect("a list").iter().collect();
            assert_eq!(names.len(), 2, "{interfaces}");
            assert_eq!(names[1]["name"], "eth1.5", "{interfaces}");
        }
        bed.expect(DONE, &["attach", "eth1.5", "--memory", "16M", "--replace", "--no-loopback"]);
        assert_eq!(bed.status()["interfaces"].as_array().map(Vec::len), Some(1));
        assert_eq!(bed.status()["loopback"], false);
        bed.expect(NOT_ATTACHED, &["detach", Net::DEVICE]);
        bed.expect(DONE, &["detach", "eth1.5"]);
        bed.assert_clean();
    }
}

#[test]
fn detaching_one_of_several_interfaces_leaves_the_others() {
    if !can_run("detaching_one_of_several_interfaces_leaves_the_others") {
        return;
    }
    for tc in [TCX, CLSACT] {
        let mut bed = Bed::new("several", tc);
        drop(bed.add_pair());
        bed.before = hooks(&bed.net);
        bed.attach(&["eth1", "eth2"]);
        bed.expect(DONE, &["detach", "eth1"]);
        let status = bed.status();
        let eth0 = serde_json::json!({ "name": "eth0", "mode": "native", "state": "up" });
        let eth2 = serde_json::json!({ "name": "eth2", "mode": "tc", "state": "up" });
        assert_eq!(status["interfaces"], Value::from(vec![eth0, eth2]));
        assert_eq!(status["state"], "caching");
        assert_eq!(status["loopback"], true);
        bed.expect(DONE, &["detach", "eth2", Net::DEVICE]);
        bed.assert_clean();
    }
}

#[test]
fn an_interface_that_disappears_is_noticed_and_detached() {
    if !can_run("an_interface_that_disappears_is_noticed_and_detached") {
        return;
    }
    for tc in [TCX, CLSACT] {
        let mut bed = Bed::new("gone", tc);
        let ip = |args: &[&str]| run(bed.net.server.command("ip").args(args));
        let _pair = bed.add_pair();
        bed.attach(&["eth1"]);
        ip(&["link", "del", "eth1"]);
        let status = bed.status();
        assert_eq!(status["interfaces"][0]["state"], "up", "{status}");
        assert_eq!(status["interfaces"][1]["state"], "gone", "{status}");
        assert_eq!(status["interfaces"][1]["name"], "eth1", "{status}");
        // One of the same name is another interface.
        let _pair = bed.add_pair();
        assert_ne!(bed.status()["interfaces"][1]["state"], "up");
        bed.attach(&["eth1", "--replace"]);
        bed.assert_works("native");
        ip(&["link", "del", "eth1"]);
        bed.before = Hooks { qdiscs: bed.before.qdiscs.take(), programs: Value::Null };
        bed.expect(DONE, &["detach"]);
        assert!(!bed.pins().exists());
        assert_eq!(hooks(&bed.net).qdiscs, bed.before.qdiscs);
    }
}

#[test]
fn an_interface_that_is_renamed_stays_the_same() {
    if !can_run("an_interface_that_is_renamed_stays_the_same") {
        return;
    }
    for tc in [TCX, CLSACT] {
        let mut bed = Bed::new("renamed", tc);
        bed.attach(&[]);
        let rename = |from: &str, to: &str| {
            for args in [&["down"][..], &["name", to], &["up"]] {
                let device = if args == ["up"] { to } else { from };
                run(bed.net.server.command("ip").args(["link", "set", device]).args(args));
            }
        };
        rename(Net::DEVICE, "wan.0");
        bed.assert_works("native");
        assert_eq!(bed.status()["interfaces"][0]["name"], "wan.0");
        let programs = bed.programs();
        bed.expect(DONE, &[&["attach", "wan.0", "--replace"], &MEMORY[..]].concat());
        bed.assert_works("native");
        assert_ne!(bed.programs(), programs, "they were exchanged");
        assert_eq!(bed.status()["interfaces"].as_array().map(Vec::len), Some(1));
        bed.expect(NOT_ATTACHED, &["detach", Net::DEVICE]);
        bed.expect(DONE, &["detach", "wan.0"]);
        rename("wan.0", Net::DEVICE);
        bed.before.qdiscs = hooks(&bed.net).qdiscs; // going down made them anew
        bed.assert_clean();
    }
}

#[test]
fn what_a_container_would_lose_is_not_attached_there() {
    if !can_run("what_a_container_would_lose_is_not_attached_there") {
        return;
    }
    let bed = Bed::new("mount", TCX);
    // As `ip netns exec` does: a new /sys, without bpffs. Where init's mount
    // namespace must not be looked at, the parent's is what counts.
    let script = "mount -t sysfs sysfs /sys && exec \"$@\"";
    let mut shell = bed.net.server.command("unshare");
    shell.args(["--mount", "--", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_bmc")]);
    shell.args(["--instance", bed.net.instance(), "attach", Net::DEVICE]);
    let output = shell.output().expect("unshare can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FAILED), "{errors}");
    assert!(errors.contains("nsenter --net=/run/netns/NAME"), "{errors}");
    bed.assert_clean();
}

#[test]
fn a_driver_that_refuses_xdp_is_worked_around_or_told() {
    if !can_run("a_driver_that_refuses_xdp_is_worked_around_or_told") {
        return;
    }
    let bed = Bed::new("refused", TCX);
    // A veth takes no program whose packets its peer may make larger than a page.
    let mtu = ["link", "set", Net::DEVICE, "mtu", "9000"];
    run(bed.net.client.command("ip").args(mtu));
    let errors = bed.expect(FAILED, &["attach", Net::DEVICE, "--mode", "native"]);
    assert!(errors.contains("cannot attach to eth0: its driver refuses native XDP"), "{errors}");
    bed.assert_clean();
    let said = bed.attach(&["-v"]);
    assert!(said.contains("eth0 has no native XDP"), "{said}");
    bed.assert_works("tc");
    bed.attach(&["--replace", "--mode", "generic"]);
    bed.assert_works("generic");
    // A --replace that fails has changed nothing, whatever it was to change.
    for args in [&["--port", "1"][..], &["--memory", "20M"], &["--max-age", "10s"], &[]] {
        let (maps, programs) = (bed.map("index"), bed.programs());
        let verb = ["attach", Net::DEVICE, "--replace", "--mode", "native"];
        bed.expect(
            FAILED,
            &[&verb, &MEMORY[..if args.contains(&"--memory") { 0 } else { 2 }], args].concat(),
        );
        bed.assert_works("generic");
        assert_eq!((bed.map("index"), bed.programs()), (maps, programs.clone()));
        assert_eq!(bed.status()["ports"], serde_json::json!([11211]));
        let attached = hooks(&bed.net).programs.to_string();
        assert!(attached.contains(&format!("\"id\":{},", programs[0])), "{attached}");
    }
    bed.expect(DONE, &["detach"]);
    bed.assert_clean();
}

#[test]
fn a_veth_whose_peer_drops_what_xdp_sends_is_attached_by_tc() {
    let test = "a_veth_whose_peer_drops_what_xdp_sends_is_attached_by_tc";
    if !can_run(test) {
        return;
    }
    let bed = Bed::new("deaf", TCX);
    let pair = bed.add_pair();
    bed.expect(DONE, &[&["attach", "eth1"], &MEMORY[..]].concat());
    bed.assert_works("native");
    drop(pair);
    // GRO lets in what XDP sends; only its own XDP makes the peer look at it.
    for gro in ["off", "on"] {
        run(bed.net.server.command("ethtool").args(["-K", "eth2", "gro", gro]));
        bed.expect(DONE, &[&["attach", "eth1", "--replace"], &MEMORY[..]].concat());
        bed.assert_works("tc");
        let native = [&["attach", "eth1", "--mode", "native", "--replace"], &MEMORY[..]].concat();
        let errors = bed.expect(FAILED, &native);
        assert!(
            errors.contains("cannot attach to eth1: its peer drops what XDP sends"),
            "{errors}"
        );
        bed.assert_works("tc");
    }
    // A peer in another namespace is looked at there.
    let client = bed.net.client.name().to_string();
    run(bed.net.server.command("ip").args(["link", "set", "eth2", "netns", &client]));
    run(bed.net.client.command("ip").args(["link", "set", "eth2", "up"]));
    bed.expect(DONE, &[&["attach", "eth1", "--replace"], &MEMORY[..]].concat());
    bed.assert_works("tc");
    let _pass = bed.net.client.attach_pass("eth2");
    bed.expect(DONE, &[&["attach", "eth1", "--replace"], &MEMORY[..]].concat());
    bed.assert_works("native");
}

#[test]
fn a_cache_left_idle_is_shown_and_woken_by_flush_and_replace() {
    if !can_run("a_cache_left_idle_is_shown_and_woken_by_flush_and_replace") {
        return;
    }
    let bed = Bed::new("idle", TCX);
    bed.attach(&[]);
    for verb in [&["flush"][..], &["attach", Net::DEVICE, "--memory", "16M", "--replace"]] {
        // As an attach does that is killed just before its end.
        let global = MapHandle::from_pinned_path(bed.pins().join("global")).expect("a map");
        set_idle(&global).expect("the map can be written");
        assert_eq!(bed.status()["state"], "idle");
        bed.expect(DONE, verb);
        bed.assert_works("native");
    }
}

#[test]
fn what_a_killed_replace_exchanged_is_put_back() {
    if !can_run("what_a_killed_replace_exchanged_is_put_back") {
        return;
    }
    for tc in [TCX, CLSACT] {
        let bed = Bed::new("put-back", tc);
        bed.attach(&[]);
        let dir = Pins::of(bed.net.instance());
        let hooks = dir.hooks().expect("pins").into_iter();
        let mut ours = hooks.filter(|hook| hook.device.first_name == Net::DEVICE);
        let hook = ours.find(|hook| hook.place == Place::Ingress).expect("it is attached");
        let program = || bed.net.server.within(|| hook.program_id(dir.owner(), &dir.links()));
        let before = program();
        assert!(before.is_some());
        // Idle and exchange one program, as far as a killed --replace may come.
        let other = Bed::new("put-back-other", tc);
        other.attach(&[]);
        let prog = sys::pinned(&other.pins().join("rx_tc")).expect("a program");
        idle(&dir).expect("the cache can idle");
        bed.net.server.within(|| {
            hook.exchange(&dir.links(), prog.as_fd(), dir.owner()).expect("an exchange");
        });
        assert_ne!(program(), before);
        // The next verb, of whatever instance and whatever it is to do.
        dir.unfinished().create().expect("bpffs has room");
        bed.expect(FAILED, &["attach", Net::DEVICE]);
        assert_eq!(program(), before);
        bed.assert_works("native");
    }
}

/// A listener of this port that comes and goes.
fn listen(namespace: &Namespace, port: u16) {
    namespace.within(|| TcpListener::bind(("0.0.0.0", port)).map(drop)).expect("a free port");
}

#[test]
fn a_listener_that_ends_is_noticed_until_detach() {
    if !can_run("a_listener_that_ends_is_noticed_until_detach") {
        return;
    }
    let bed = Bed::new("listener", TCX);
    let expect = |count: u64| {
        let stats = bed.bmc(&["stats", "--json"]).stdout;
        let stats = serde_json::from_slice(&stats).expect("JSON");
        assert_eq!(total(&stats, "memcached_gone"), count, "{stats}");
    };
    let link = || {
        let pin = bed.pins().join("watch").display().to_string();
        bpftool(&["link", "show", "pinned", &pin])["id"].as_u64().expect("a link has an id")
    };
    let is_there = |link: u64| {
        let mut show = Command::new("bpftool");
        show.args(["link", "show", "id", &link.to_string()])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    let with = |port: u16, args: &[&str]| {
        assert_eq!(bed.attach(&[&["--port", &port.to_string(), "--replace"], args].concat()), "");
    };
    with(PORT, &[]);
    listen(&bed.net.server, PORT + 1);
    // Another's, in another network namespace.
    listen(&bed.net.client, PORT);
    expect(0);
    listen(&bed.net.server, PORT);
    expect(1);
    // Exchanged, with the maps that were there, it counts once.
    let mut links = vec![link()];
    with(PORT, &["--max-age", "5s"]);
    listen(&bed.net.server, PORT);
    expect(2);
    links.push(link());
    with(PORT + 1, &[]);
    listen(&bed.net.server, PORT);
    expect(2);
    listen(&bed.net.server, PORT + 1);
    expect(3);
    links.push(link());
    assert!(is_there(links[2]));
    bed.expect(DONE, &["detach"]);
    bed.assert_clean();
    assert!(eventually(PATIENCE, || !links.iter().any(|link| is_there(*link))), "{links:?}");
}

#[test]
fn an_idle_cache_stays_idle_when_a_listener_ends() {
    if !can_run("an_idle_cache_stays_idle_when_a_listener_ends") {
        return;
    }
    let bed = Bed::new("idle-listener", TCX);
    bed.attach(&[]);
    idle(&Pins::of(bed.net.instance())).expect("the cache can idle");
    listen(&bed.net.server, PORT);
    assert_eq!(bed.status()["state"], "idle");
    bed.expect(DONE, &["flush"]);
    bed.assert_works("native");
}

#[test]
fn a_kernel_that_does_not_tell_when_memcached_ends_is_told() {
    if !can_run("a_kernel_that_does_not_tell_when_memcached_ends_is_told") {
        return;
    }
    let bed = Bed::new("no-btf", TCX);
    let has_gone = || bed.status()["programs"].to_string().contains("bmc_gone");
    // As a kernel without BTF: in a mount namespace of its own, the file is empty.
    let script = "mount --bind /dev/null /sys/kernel/btf/vmlinux && exec \"$@\"";
    for replace in [&[][..], &["--replace"]] {
        let mut shell = bed.net.server.command("unshare");
        shell.args(["--mount", "--", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_bmc")]);
        shell.args(["--instance", bed.net.instance(), "attach", Net::DEVICE]);
        let output = shell.args(MEMORY).args(replace).output().expect("unshare can be run");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(DONE), "{errors}");
        assert!(errors.contains("run bmc flush after each restart of memcached"), "{errors}");
        bed.assert_works("native");
        assert!(!has_gone());
        // Where it can be had, it is.
        assert_eq!(bed.attach(&["--replace"]), "");
        bed.assert_works("native");
        assert!(has_gone());
    }
    bed.expect(DONE, &["detach"]);
    bed.assert_clean();
}

#[test]
fn a_memcached_that_cannot_be_watched_is_refused_and_one_of_no_use_told() {
    if !can_run("a_memcached_that_cannot_be_watched_is_refused_and_one_of_no_use_told") {
        return;
    }
    let bed = Bed::new("settings", TCX);
    let (own, other) = (PORT.to_string(), (PORT + 1).to_string());
    let file = |name: &str| std::env::temp_dir().join(format!("{}-{name}", bed.net.instance()));
    let [users, storage] = ["users", "storage"].map(file);
    fs::write(&users, "user:password\n").expect("a file for users");
    let external = format!("ext_path={}:64m", storage.display());
    let no_udp = "does not listen on UDP, so nothing will be cached";
    let says = |args: &[&str], watched: &str, code: i32, message: &str| {
        let _memcached = Memcached::start(&bed.net.server, args);
        let attach = ["attach", Net::DEVICE, "--port", watched];
        let said = bed.expect(code, &[&attach[..], &MEMORY].concat());
        assert!(said.contains(message), "{args:?}: {said}");
        assert_eq!(said.lines().count(), usize::from(!message.is_empty()), "{args:?}: {said}");
        if code == FAILED {
            bed.assert_clean();
            return;
        }
        bed.assert_works("native");
        bed.expect(DONE, &["detach"]);
    };
    says(&[], &own, DONE, "");
    says(&[], &other, DONE, "");
    says(&["-U", "0"], &own, DONE, no_udp);
    says(&["-U", "0", "-o", &external], &own, DONE, no_udp);
    says(&["-U", "0", "-Y", &users.to_string_lossy()], &own, DONE, "demands a password");
    says(&["-B", "binary"], &own, DONE, "");
    says(&["-B", "binary", "-U", "0"], &own, DONE, no_udp);
    says(&["-U", &other], &own, DONE, &format!("has UDP port {other}"));
    says(&["-U", &other], &format!("{own},{other}"), DONE, "");
    says(&["-U", &other], &other, FAILED, &format!("takes writes on TCP port {own} too"));
    says(&["-Z", "-o", TLS], &own, FAILED, "uses TLS");
    says(&["-l", "notls:0.0.0.0", "-Z", "-o", TLS], &own, FAILED, "uses TLS");
    for file in [users, storage] {
        fs::remove_file(file).expect("our file");
    }

    // What is attached stays as it is.
    bed.attach(&["--port", &own]);
    let programs = bed.programs();
    let memcached = Memcached::start(&bed.net.server, &["-Z", "-o", TLS]);
    bed.expect(FAILED, &["attach", Net::DEVICE, "--port", &own, "--replace"]);
    assert_eq!(bed.programs(), programs);
    bed.assert_works("native");
    drop(memcached);

    // UDP alone.
    let mut child = bed
        .net
        .server
        .command("setpriv")
        .args(["--pdeathsig", "KILL", "memcached", "-u", "root", "-p", "0", "-U", &own])
        .spawn()
        .expect("memcached can be started");
    let is_told = || {
        let said = bed.attach(&["--port", &own, "--replace"]);
        said.contains("has no TCP port, by which bmc recognizes its replies")
    };
    assert!(eventually(PATIENCE, is_told));
    child.kill().expect("our child");
    child.wait().expect("our child");

    // One that never answers holds nothing up.
    let listener = bed.net.server.within(|| TcpListener::bind(("0.0.0.0", PORT)));
    let start = Instant::now();
    let said = bed.attach(&["--port", &own, "--replace"]);
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert!(said.contains("does not reveal its settings"), "{said}");
    drop(listener);
}

#[test]
fn nouns_print_what_they_promise() {
    if !can_run("nouns_print_what_they_promise") {
        return;
    }
    let bed = Bed::new("nouns", TCX);
    bed.attach(&[]);
    let print = |args: &[&str]| {
        let output = bed.bmc(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let json = |args: &[&str]| -> Value { serde_json::from_str(&print(args)).expect("JSON") };

    let stats = json(&["stats", "--json", "--per-cpu"]);
    assert_eq!(stats["interfaces"], json(&["status", "--json"])["interfaces"]);
    let cpus = stats["per_cpu"].as_array().expect("a list");
    assert!(!cpus.is_empty());
    for counters in cpus.iter().chain([&stats["totals"]]) {
        for name in COUNTERS {
            assert!(counters[name].is_u64(), "{name} in {counters}");
        }
        for group in ["passes", "lease_refusals", "fill_refusals"] {
            let reasons = counters[group].as_object().expect("an object");
            assert!(!reasons.is_empty() && reasons.values().all(Value::is_u64), "{counters}");
        }
    }
    assert!(json(&["stats", "--json"]).get("per_cpu").is_none());

    let watched = print(&["stats", "--json", "--watch", "0.1", "--count", "3"]);
    assert_eq!(watched.lines().count(), 3);
    for line in watched.lines() {
        let object: Value = serde_json::from_str(line).expect("an object a line");
        assert!(object["totals"]["hits"].is_u64());
    }
    let csv = print(&["stats", "--format", "csv", "--watch", "0.1", "--count", "2", "--per-cpu"]);
    let fields: Vec<_> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(fields, vec![fields[0]; 1 + 2 * (1 + cpus.len())]);

    assert_eq!(json(&["entries", "--json"]), serde_json::json!({ "entries": [] }));
    for noun in ["status", "stats", "entries"] {
        for line in print(&[noun]).lines() {
            assert!(line.chars().count() < 80, "{noun}: {line}");
        }
    }
}

#[test]
fn asking_memcached_for_its_settings_does_not_empty_the_cache_that_is_replaced() {
    if !can_run("asking_memcached_for_its_settings_does_not_empty_the_cache_that_is_replaced") {
        return;
    }
    let bed = Bed::new("asked", TCX);
    // Nobody finds a socket for this one over the loopback.
    let add = ["address", "add", "fe80::1/64", "dev", Net::DEVICE, "nodad"];
    run(Command::new("ip").args(["-n", bed.net.server.name()]).args(add));
    let _memcached = Memcached::start(&bed.net.server, &[]);
    bed.attach(&[]);
    let stats = || -> Value {
        let output = bed.bmc(&["stats", "--json"]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let before = total(&stats(), "flushes");
    bed.attach(&["--replace"]);
    let after = stats();
    assert_eq!(total(&after, "flushes"), before, "{after}");
}

#[test]
fn what_is_not_attached_tells_what_is() {
    if !can_run("what_is_not_attached_tells_what_is") {
        return;
    }
    let bed = Bed::new("another", TCX);
    bed.attach(&[]);
    let mut command = bed.net.server.command(env!("CARGO_BIN_EXE_bmc"));
    let output = command.args(["--instance", "none", "status"]).output().expect("bmc can be run");
    assert_eq!(output.status.code(), Some(NOT_ATTACHED));
    let said = String::from_utf8_lossy(&output.stderr);
    let start = "bmc: instance none is not attached (attached are: ";
    assert!(said.starts_with(start) && said.ends_with("; --instance chooses)\n"), "{said}");
    assert!(said.contains(bed.net.instance()), "{said}");
}

#[test]
fn foreground_ends_with_a_signal_and_leaves_nothing() {
    if !can_run("foreground_ends_with_a_signal_and_leaves_nothing") {
        return;
    }
    let bed = Bed::new("foreground", TCX);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut child = bed
            .command(&["attach", Net::DEVICE, "--foreground"])
            .args(MEMORY)
            .stdout(Stdio::piped())
            .spawn()
            .expect("bmc can be run");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut line = || lines.next().expect("a line").expect("text");
        assert!(line().contains("hits/s"));
        assert_eq!(line().split_whitespace().count(), 7);
        bed.assert_works("native");
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), signal).expect("our child");
        let status = child.wait().expect("our child");
        assert!(status.success(), "{signal}: {status}");
        bed.assert_clean();
    }
}

#[test]
fn an_instance_of_another_namespace_is_not_replaced() {
    if !can_run("an_instance_of_another_namespace_is_not_replaced") {
        return;
    }
    let bed = Bed::new("elsewhere", CLSACT);
    bed.attach(&[]);
    let there = |args: &[&str]| {
        let mut command = bed.net.client.command(env!("CARGO_BIN_EXE_bmc"));
        let output = command.args(["--instance", bed.net.instance()]).args(args).output();
        let output = output.expect("bmc can be run");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, errors) = there(&["attach", Net::DEVICE, "--replace", "--mode", "tc"]);
    assert_eq!(code, Some(FAILED), "{errors}");
    assert!(errors.contains("attached in another network namespace"), "{errors}");
    // Filters can only be removed where they are.
    let (code, errors) = there(&["detach"]);
    assert_eq!(code, Some(FAILED), "{errors}");
    bed.assert_works("native");
}

/// Kills `verb` `$BMC_KILLS` (10) times, from at once to after its usual end, two
/// times out of three while it changes something, that is while there is a leftover.
/// After each kill, the next attach must work and the next detach leave nothing.
fn survives_kills(test: &str, tc: &'static str, prepare: Option<&[&str]>, verb: &[&str]) {
    if !can_run(test) {
        return;
    }
    let kills = std::env::var("BMC_KILLS").map_or(10, |n| n.parse().expect("a number"));
    let bed = Bed::new(test, tc);
    let spawn = || -> Child {
        let mut command = bed.command(verb);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bmc can be run")
    };
    let prepare = || _ = prepare.map(|args| bed.attach(args));
    let wait_for = |child: &mut Child, there: bool| {
        while bed.leftover().exists() != there && child.try_wait().expect("our child").is_none() {}
    };
    prepare();
    let start = Instant::now();
    let mut child = spawn();
    wait_for(&mut child, true);
    let begun = Instant::now();
    wait_for(&mut child, false);
    let window = begun.elapsed();
    assert!(child.wait().expect("our child").success(), "{verb:?}");
    let whole = start.elapsed();
    bed.bmc(&["detach"]);
    bed.assert_clean();

    let mut killed_within = 0;
    for i in 0..kills {
        prepare();
        let mut child = spawn();
        match i % 3 {
            0 => sleep(whole * i / kills),
            1 => wait_for(&mut child, true),
            _ => {
                wait_for(&mut child, true);
                sleep(window * i / kills);
            }
        }
        child.kill().expect("our child");
        let was_killed = child.wait().expect("our child").code().is_none();
        killed_within += u32::from(was_killed && i % 3 != 0);
        // Old or new: attached, perhaps, and if so with every program.
        let output = bed.bmc(&["status", "--json"]);
        match output.status.code() {
            Some(DONE) => {
                let status = String::from_utf8_lossy(&output.stdout);
                let parsed: Value = serde_json::from_str(&status).expect("JSON");
                for iface in parsed["interfaces"].as_array().expect("a list") {
                    assert_eq!(iface["state"], "up", "kill {i}: {status}");
                }
            }
            code => assert_eq!(code, Some(NOT_ATTACHED), "kill {i}"),
        }
        // Whatever comes next cleans up, be it detach or attach.
        if i % 2 == 0 {
            bed.attach(&["--replace"]);
            bed.assert_works("native");
        }
        bed.bmc(&["detach"]);
        bed.assert_clean();
    }
    assert!(killed_within > 0, "no kill of {kills} came in {window:?} of {whole:?}");
}

#[test]
fn attach_can_be_killed_at_any_time() {
    let verb = [&["attach", Net::DEVICE], &MEMORY[..]].concat();
    survives_kills("kill-attach", TCX, None, &verb);
}

#[test]
fn attach_with_filters_can_be_killed_at_any_time() {
    let verb = [&["attach", Net::DEVICE], &MEMORY[..]].concat();
    survives_kills("kill-filters", CLSACT, None, &verb);
}

#[test]
fn replace_can_be_killed_at_any_time() {
    let verb = [&["attach", Net::DEVICE, "--replace", "--port", "1"], &MEMORY[..]].concat();
    survives_kills("kill-replace", TCX, Some(&[]), &verb);
}

#[test]
fn replace_with_filters_can_be_killed_at_any_time() {
    let verb = ["attach", Net::DEVICE, "--replace", "--memory", "20M"];
    survives_kills("kill-refilter", CLSACT, Some(&[]), &verb);
}

#[test]
fn detach_can_be_killed_at_any_time() {
    survives_kills("kill-detach", TCX, Some(&[]), &["detach"]);
}

#[test]
fn detach_of_filters_can_be_killed_at_any_time() {
    survives_kills("kill-unfilter", CLSACT, Some(&[]), &["detach"]);
}
