// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The Debian package: installed, upgraded under traffic and removed on a machine
//! of its own, a copy of this one with a systemd that is really run (boot.sh).
//! Root only.

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::sleep;
use std::time::Duration;

use bmc::cli::Cli;
use bmc::host::sys::die_with_parent;
use clap::CommandFactory as _;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::Memcached;
use common::Net;
use common::Tcp;
use common::Udp;
use common::eventually;
use common::run;

/// systemd's patience is longer than a test's.
const LONG: Duration = Duration::from_secs(30);

const UNIT: &str = "bmc@eth0.service";
const PAGES: &str = "/var/lib/prometheus/node-exporter";
const INTERFACE_UP: &str = "bmc_interface_up{bmc_instance=\"eth0\",interface=\"eth0\"} 1";
const INSTANCE: [&str; 2] = ["--instance", "eth0"];

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether this can run here; prints why when not.
fn can_run(test: &str) -> bool {
    let mut tools = vec!["systemctl", "systemd-analyze", "dpkg", "unshare"];
    tools.extend(std::env::var_os("BMC_NO_INSTALL").map(|_| "cargo-deb"));
    common::can_run_with(test, &tools)
}

const VERSIONS: [&str; 2] =
    [concat!(env!("CARGO_PKG_VERSION"), "-1"), concat!(env!("CARGO_PKG_VERSION"), "-2")];

/// Both packages and the playbook, in a directory of their own.
fn packages() -> &'static Path {
    static PACKAGES: LazyLock<PathBuf> = LazyLock::new(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("cargo's own directory");
        for version in VERSIONS {
            let printed = run(Command::new(project("scripts/package.sh")).arg(version));
            // README.md installs what is printed, so that is nothing else.
            let built = project(printed.trim_end());
            fs::copy(&built, package_in(&directory, version)).expect("the package is there");
        }
        let playbook = directory.join("playbook.yaml");
        fs::copy(project("scripts/deploy/playbook.yaml"), playbook).expect("it is there");
        directory
    });
    &PACKAGES
}

fn package_in(directory: &Path, version: &str) -> PathBuf {
    directory.join(format!("bmc_{version}.deb"))
}

/// A network, and a machine at its server with a systemd of its own.
struct Machine {
    net: Net,
    boot: Child,
    systemd: Pid,
}

impl Machine {
    fn boot(test: &str) -> Self {
        let net = Net::new(test);
        let mut command = net.server.command("bash");
        command.arg(project("tests/package/boot.sh")).arg(net.instance()).arg(packages());
        let boot = die_with_parent(&mut command)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash can be run");
        let mut systemd = None;
        let is_there = || {
            systemd = descendant(boot.id(), "systemd");
            systemd.is_some()
        };
        assert!(eventually(LONG, is_there), "systemd does not start");
        let machine = Self { net, boot, systemd: systemd.expect("seen above") };
        let is_up = || {
            let state = machine.output("systemctl", &["is-system-running"]);
            ["running\n", "degraded\n"].map(str::as_bytes).contains(&&*state.stdout)
        };
        assert!(eventually(LONG, is_up), "systemd does not come up");
        machine
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.systemd.to_string();
        command.args(["--all", "--target", &pid, "--", program]).args(args);
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    fn output(&self, program: &str, args: &[&str]) -> Output {
        self.command(program, args).output().expect("nsenter can be run")
    }

    /// Runs a command in it, which must succeed, and returns what it prints.
    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.output(program, args);
        assert!(output.status.success(), "{program} {args:?}: {}\n{}", text(&output), self.log());
        text(&output)
    }

    fn shell(&self, script: &str) -> String {
        self.run("sh", &["-ec", script])
    }

    fn has(&self, path: &str) -> bool {
        self.output("test", &["-e", path]).status.success()
    }

    fn log(&self) -> String {
        text(&self.output("journalctl", &["--no-pager", "--lines", "20"]))
    }

    fn install(&self, version: &str) -> String {
        let package = package_in(Path::new("/packages"), version);
        self.run("dpkg", &["--install", package.to_str().expect("text")])
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.run("bmc", &[&INSTANCE, args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("{err}: {text}"))
    }

    /// The numbers of the programs that are attached.
    fn programs(&self) -> Vec<u64> {
        let status = self.json(&["status"]);
        let programs = status["programs"].as_array().expect("a list");
        programs.iter().map(|program| program["id"].as_u64().expect("a number")).collect()
    }

    fn assert_nothing_is_attached(&self) {
        assert!(!self.has("/sys/fs/bpf/bmc"), "pins are left");
        let link = self.run("ip", &["-details", "link", "show", "dev", "eth0"]);
        assert!(!link.contains("xdp"), "{link}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All else in it ends with it.
        let _ = kill(self.systemd, Signal::SIGKILL);
        let _ = self.boot.wait();
    }
}

fn text(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// A process of that name below another one.
fn descendant(of: u32, name: &str) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find_map(|pid: u32| {
        let is_it =
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        if is_it { Some(Pid::from_raw(pid.try_into().ok()?)) } else { descendant(pid, name) }
    })
}

#[test]
fn the_package_has_manual_pages_completions_and_units() {
    if !can_run("the_package_has_manual_pages_completions_and_units") {
        return;
    }
    let package = package_in(packages(), VERSIONS[0]);
    let list = run(Command::new("dpkg").arg("--contents").arg(&package));
    let cli = Cli::command();
    let commands = cli.get_subcommands().map(clap::Command::get_name);
    let pages: Vec<_> = commands.map(|name| format!("man1/bmc-{name}.1.gz")).collect();
    for file in pages.iter().map(String::as_str).chain([
        "/usr/bin/bmc",
        "/usr/lib/bmc/textfile",
        "/usr/lib/systemd/system/bmc@.service",
        "/usr/lib/systemd/system/bmc-metrics.service",
        "/usr/lib/systemd/system/bmc-metrics.timer",
        "/usr/share/man/man1/bmc.1.gz",
        "/usr/share/bash-completion/completions/bmc",
        "/usr/share/zsh/vendor-completions/_bmc",
        "/usr/share/fish/vendor_completions.d/bmc.fish",
        "/etc/default/bmc",
        "/usr/share/doc/bmc/LICENSE-BSD-2-Clause",
        "/usr/share/doc/bmc/LICENSE-LGPL-2.1",
    ]) {
        assert!(list.lines().any(|line| line.ends_with(file)), "no {file} in {list}");
    }
}

#[test]
fn an_upgrade_under_traffic_loses_no_request_and_keeps_the_cache() {
    const KEYS: usize = 50;

    if !can_run("an_upgrade_under_traffic_loses_no_request_and_keeps_the_cache") {
        return;
    }
    let machine = Machine::boot("upgrade");
    machine.install(VERSIONS[0]);
    assert_eq!(
        machine.run("systemd-analyze", &["verify", "--man=no", UNIT, "bmc-metrics.timer"]),
        ""
    );
    machine.shell(
        "echo 'BMC_OPTIONS=\"--memory 16M --max-age 1h --unknown-ttl 1h\"' >/etc/default/bmc",
    );
    let _memcached = Memcached::start(&machine.net.server, &[]);
    machine.run("systemctl", &["start", UNIT]);

    // Everything is in the cache.
    let mut tcp = Tcp::connect(&machine.net.client, Net::SERVER4);
    let mut udp = Udp::connect(&machine.net.client, Net::SERVER4);
    for key in 0..KEYS {
        tcp.set(&format!("key{key}"), 0, b"value");
    }
    let mut key = 0;
    let mut ask = move |udp: &mut Udp| {
        key = (key + 1) % KEYS;
        let asked = udp.send(format!("get key{key}\r\n").as_bytes());
        let answer = udp.receive(common::PATIENCE);
        answer.is_some_and(|answer| answer[..2] == asked.to_be_bytes() && answer.len() > 30)
    };
    let mut stat = || tcp.stat("cmd_get");
    let all_hit = || {
        let before = stat();
        (0..KEYS).for_each(|_| assert!(ask(&mut udp)));
        stat() == before
    };
    assert!(eventually(LONG, all_hit), "memcached is still asked");
    let entries = || machine.json(&["entries"])["entries"].as_array().map(Vec::len);
    let hits = || machine.json(&["stats"])["totals"]["hits"].as_u64().expect("a number");
    let (entries_before, hits_before) = (entries(), hits());
    let (since, programs) = (machine.json(&["stats"])["since"].clone(), machine.programs());
    let before = stat();
    assert!(entries_before >= Some(KEYS));

    let (end, asked, lost) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                if !ask(&mut udp) {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        sleep(Duration::from_millis(300));
        let said = machine.install(VERSIONS[1]);
        sleep(Duration::from_millis(300));
        end.store(true, Ordering::Relaxed);
        assert!(!said.contains("goes on"), "{said}");
    });

    let (asked, lost) = (asked.into_inner(), lost.into_inner());
    assert!(asked > 1000, "only {asked} requests");
    assert_eq!(lost, 0, "of {asked} requests");
    assert_eq!(stat(), before, "memcached was asked for none of {asked}");
    assert_eq!(hits(), hits_before + asked);
    assert_eq!(entries(), entries_before);
    assert_eq!(machine.json(&["stats"])["since"], since);
    let new = machine.programs();
    assert!(programs.iter().all(|id| !new.contains(id)), "the programs are the old ones");
    let version = machine.run("dpkg-query", &["--show", "--showformat", "${Version}", "bmc"]);
    assert_eq!(version, VERSIONS[1]);
    assert_eq!(machine.run("systemctl", &["is-active", UNIT]), "active\n");
    let options = machine.shell("cat /etc/default/bmc");
    assert!(options.contains("--max-age 1h"), "a changed conffile is kept: {options}");

    machine.run("dpkg", &["--remove", "bmc"]);
    machine.assert_nothing_is_attached();
    assert!(machine.has("/etc/default/bmc"));
    machine.run("dpkg", &["--purge", "bmc"]);
    assert!(!machine.has("/etc/default/bmc"));
    assert!((0..KEYS).all(|_| ask(&mut udp)), "memcached answers");
    assert_eq!(stat(), before + KEYS as u64);
}

#[test]
fn a_removal_detaches_what_no_unit_has_attached_and_never_fails() {
    if !can_run("a_removal_detaches_what_no_unit_has_attached_and_never_fails") {
        return;
    }
    let machine = Machine::boot("removal");
    machine.install(VERSIONS[0]);
    machine.run("bmc", &["attach", "eth0", "--memory", "16M", "--instance", "eth0"]);
    // Nobody knows its options, so an upgrade leaves it as it is.
    let programs = machine.programs();
    machine.install(VERSIONS[1]);
    assert_eq!(machine.programs(), programs);
    machine.run("dpkg", &["--remove", "bmc"]);
    machine.assert_nothing_is_attached();

    machine.install(VERSIONS[0]);
    machine.run("systemctl", &["start", UNIT]);
    machine.shell("printf '#!/bin/sh\\nexit 1\\n' >/usr/bin/bmc");
    machine.run("dpkg", &["--remove", "bmc"]);
    assert!(!machine.has("/usr/bin/bmc"));
}

#[test]
fn an_upgrade_of_what_cannot_be_replaced_goes_on_with_the_former_version() {
    if !can_run("an_upgrade_of_what_cannot_be_replaced_goes_on_with_the_former_version") {
        return;
    }
    let machine = Machine::boot("upgrade-fails");
    machine.install(VERSIONS[0]);
    machine.run("systemctl", &["start", UNIT]);
    let programs = machine.programs();
    machine.shell("echo 'BMC_OPTIONS=--no-such-option' >/etc/default/bmc");
    let said = machine.install(VERSIONS[1]);
    assert!(said.contains("bmc: the former version goes on caching"), "{said}");
    assert_eq!(machine.programs(), programs);
    assert_eq!(machine.run("systemctl", &["is-active", UNIT]), "active\n");
}

#[test]
fn the_unit_starts_reloads_and_stops_with_its_capabilities_and_none_less() {
    if !can_run("the_unit_starts_reloads_and_stops_with_its_capabilities_and_none_less") {
        return;
    }
    let machine = Machine::boot("unit");
    machine.install(VERSIONS[0]);
    // Options of one interface go before those of all.
    machine.shell("echo 'BMC_OPTIONS=--memory 32M' >/etc/default/bmc; mkdir -p /etc/bmc");
    machine.shell("echo 'BMC_OPTIONS=--memory 16M' >/etc/bmc/eth0.conf");
    machine.run("systemctl", &["start", UNIT]);
    assert_eq!(machine.json(&["status"])["memory_bytes"], 16 << 20);
    assert_eq!(machine.json(&["status"])["interfaces"][0]["mode"], "native");
    let programs = machine.json(&["status"])["programs"].clone();
    assert!(programs.to_string().contains("bmc_gone"), "{programs}");
    machine.run("systemctl", &["reload", UNIT]);
    assert_ne!(machine.json(&["status"])["programs"], programs);
    machine.run("systemctl", &["stop", UNIT]);
    machine.assert_nothing_is_attached();
    // What was detached by hand is no failure to stop.
    machine.run("systemctl", &["start", UNIT]);
    machine.run("bmc", &[&INSTANCE[..], &["detach"]].concat());
    machine.run("systemctl", &["stop", UNIT]);
    assert_eq!(text(&machine.output("systemctl", &["is-failed", UNIT])), "inactive\n");

    // Instances have no dots in their names.
    machine.shell(
        "ip link add eth0.100 type veth peer name peer
         echo BMC_INSTANCE=eth0_100 >/etc/bmc/eth0.100.conf
         systemctl start bmc@eth0.100.service
         bmc --instance eth0_100 status
         systemctl stop bmc@eth0.100.service",
    );

    for capability in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"] {
        machine.shell(&format!(
            "mkdir -p /run/systemd/system/bmc@.service.d; cd /run/systemd/system/bmc@.service.d
             printf '[Service]\\nCapabilityBoundingSet=~{capability}\\n' >less.conf
             systemctl daemon-reload"
        ));
        assert!(!machine.output("systemctl", &["start", UNIT]).status.success());
        let log = machine.log();
        let told = format!("no permission: {capability} missing");
        assert!(log.contains(&told), "{log}");
        machine.assert_nothing_is_attached();
        machine.run("systemctl", &["reset-failed", UNIT]);
    }

    // Lower is better; 10 is no protection at all.
    for (unit, most) in [(UNIT, 2.7), ("bmc-metrics.service", 2.6)] {
        let report =
            machine.run("systemd-analyze", &["security", "--offline=true", "--no-pager", unit]);
        let level =
            report.split("exposure level for").nth(1).and_then(|rest| rest.split(' ').nth(2));
        let level: f64 = level.and_then(|level| level.parse().ok()).expect("a level");
        assert!(level <= most, "{unit}: {level}");
    }
}

#[test]
fn the_timer_keeps_a_page_for_each_instance_that_is_attached() {
    if !can_run("the_timer_keeps_a_page_for_each_instance_that_is_attached") {
        return;
    }
    let machine = Machine::boot("textfile");
    machine.install(VERSIONS[0]);
    // node_exporter's own directory.
    machine.shell(&format!("install -d -m 755 -o nobody -g nogroup {PAGES}"));
    let readme = fs::read_to_string(project("README.md")).expect("it is there");
    let commands = readme.lines().filter_map(|line| line.strip_prefix("    systemctl "));
    let commands: Vec<_> = commands.filter(|command| command.contains("bmc")).collect();
    assert_eq!(commands.len(), 4, "{commands:?}");
    for command in commands {
        machine.shell(&format!("systemctl {command}"));
    }
    for unit in [UNIT, "bmc-metrics.timer"] {
        assert_eq!(machine.run("systemctl", &["is-active", unit]), "active\n");
        assert_eq!(machine.run("systemctl", &["is-enabled", unit]), "enabled\n");
    }
    let page = format!("{PAGES}/bmc-eth0.prom");
    assert!(eventually(LONG, || machine.has(&page)), "{}", machine.log());
    let list = || machine.run("ls", &["-A", PAGES]);
    assert!(eventually(LONG, || list() == "bmc-eth0.prom\n"), "{}", list());
    let text = machine.run("setpriv", &["--reuid", "nobody", "--clear-groups", "cat", &page]);
    for line in ["bmc_up{bmc_instance=\"eth0\"} 1", INTERFACE_UP] {
        assert!(text.lines().any(|other| other == line), "no {line} in {text}");
    }

    // While it is written anew, whoever reads sees the whole of it.
    let lines = text.lines().count();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..20 {
                machine.run("/usr/lib/bmc/textfile", &[PAGES]);
            }
        });
        while !writer.is_finished() {
            assert_eq!(machine.run("cat", &[&page]).lines().count(), lines);
        }
    });
    // What is not attached any more has no page.
    machine.run("systemctl", &["stop", UNIT]);
    machine.run("systemctl", &["start", "bmc-metrics.service"]);
    assert!(eventually(LONG, || list().is_empty()), "{}", list());

    // Nor has what a removal detaches.
    machine.run("systemctl", &["start", UNIT]);
    assert!(eventually(LONG, || machine.has(&page)), "{}", machine.log());
    machine.run("dpkg", &["--purge", "bmc"]);
    assert_eq!(list(), "");
    let enabled = machine.shell("ls /etc/systemd/system/*.wants");
    assert!(!enabled.contains("bmc"), "{enabled}");
}

/// `scripts/deploy/playbook.yaml`, played on the machine itself, as often as it may be.
#[test]
fn the_playbook_installs_attaches_reloads_and_upgrades_what_is_not_yet_so() {
    let test = "the_playbook_installs_attaches_reloads_and_upgrades_what_is_not_yet_so";
    if !can_run(test) || !common::can_run_with(test, &["ansible-playbook"]) {
        return;
    }
    let machine = Machine::boot("playbook");
    let _memcached = Memcached::start(&machine.net.server, &[]);
    machine.shell(
        "echo '[memcached]' >/packages/hosts
         echo 'here ansible_connection=local ansible_python_interpreter=/usr/bin/python3' \
             >>/packages/hosts",
    );
    // The tasks that change something, in their order.
    let play = |version: &str, options: &str| -> Vec<String> {
        let package = format!("bmc_package=bmc_{version}.deb");
        let options = format!("bmc_options='{options}'");
        let printed = machine.run(
            "env",
            &[
                "HOME=/tmp",
                "LC_ALL=C.UTF-8",
                "ansible-playbook",
                "--inventory=/packages/hosts",
                "--extra-vars",
                &package,
                "--extra-vars",
                &options,
                "/packages/playbook.yaml",
            ],
        );
        let mut task = "";
        let mut changed = Vec::new();
        for line in printed.lines() {
            let head = line.strip_prefix("TASK [").or(line.strip_prefix("RUNNING HANDLER ["));
            task = head.and_then(|rest| rest.split(']').next()).unwrap_or(task);
            if line.starts_with("changed:") {
                changed.push(task.to_string());
            }
        }
        changed
    };

    let changed = play(VERSIONS[0], "--memory 16M");
    let all = [
        "Set the options",
        "Copy the package",
        "Install the package",
        "Attach, now and at each boot",
        "Write metrics for node_exporter",
        "Reload bmc",
    ];
    assert_eq!(changed, all);
    assert_eq!(machine.run("systemctl", &["is-enabled", UNIT]), "enabled\n");
    assert_eq!(machine.json(&["status"])["memory_bytes"], 16 << 20);
    let programs = machine.programs();

    assert_eq!(play(VERSIONS[0], "--memory 16M"), [""; 0]);
    assert_eq!(machine.programs(), programs);

    assert_eq!(play(VERSIONS[0], "--memory 16M --max-age 1h"), ["Set the options", "Reload bmc"]);
    assert_eq!(machine.json(&["status"])["memory_bytes"], 16 << 20);
    assert_ne!(machine.programs(), programs);

    let changed = play(VERSIONS[1], "--memory 16M --max-age 1h");
    assert_eq!(changed, ["Copy the package", "Install the package"]);
    let version = machine.run("dpkg-query", &["--show", "--showformat", "${Version}", "bmc"]);
    assert_eq!(version, VERSIONS[1]);
}
