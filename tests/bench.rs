// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc bench` with the installed memcached: what it reports, and that nothing
//! of it stays however it ends. Needs root.

mod common;

use std::fs;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::can_run;
use common::eventually;

const PATIENCE: Duration = Duration::from_secs(20);

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bmc"));
    command.arg("bench").args(args);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The row of a case, a side and a load.
fn row<'a>(report: &'a Value, case: &str, side: &str, load: &str) -> &'a Value {
    let cases = report["cases"].as_array().expect("a list of cases");
    let case = cases.iter().find(|c| c["name"] == case).expect("the case was asked for");
    let sides = case["sides"].as_array().expect("a list of sides");
    let row = sides.iter().find(|row| row["side"] == side && row["load"] == load);
    row.unwrap_or_else(|| panic!("no {side} {load} in {case}"))
}

#[test]
fn proves_what_it_reports() {
    if !can_run("proves_what_it_reports") {
        return;
    }
    let before = traces();
    let output = bench(&[
        "--cases",
        "hits,miss,tcp,multi-4,workers-2",
        "--seconds",
        "0.2",
        "--rounds",
        "1",
        "--json",
    ])
    .output()
    .expect("bmc can be run");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(traces(), before);
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");

    for field in ["cpu", "kernel", "memcached", "bmc"] {
        assert!(report["machine"][field].is_string(), "{field}: {}", report["machine"]);
    }
    assert!(report["machine"]["cpus"].as_u64() >= Some(1));
    assert_eq!(report["settings"]["rounds"], 1);
    let modes = ["without", "native", "tc", "generic", "reflector"];
    let sockets = ["without", "native", "sockets", "sockets-native", "by-client", "by-cpu"];
    for (case, sides) in [
        ("hits", &modes[..]),
        ("miss", &modes),
        ("tcp", &modes[..4]),
        ("multi-4", &modes),
        ("workers-2", &sockets),
    ] {
        for side in sides {
            for load in ["saturated", "paced"] {
                let row = row(&report, case, side, load);
                assert!(row["rate"].as_f64() > Some(0.0), "{case}: {row}");
                assert!(row["requests"].as_u64() > Some(0), "{case}: {row}");
                assert!(row["lost"].is_u64(), "{case}: {row}");
                assert_eq!(row["offered"].is_number(), load == "paced", "{case}: {row}");
                let latency = row["latency_us"].as_object().expect("percentiles");
                let names: Vec<_> = latency.keys().map(String::as_str).collect();
                assert_eq!(names, ["p50", "p90", "p99", "p99.9", "max"]);
                let values: Vec<_> = latency.values().map(Value::as_f64).collect();
                assert!(values.is_sorted() && values[0] > Some(0.0), "{case}: {row}");
                let is_bmc =
                    !["without", "reflector", "sockets", "by-client", "by-cpu"].contains(side);
                let hits = row["hit_ratio"].as_f64().expect("a number");
                if is_bmc && ["hits", "multi-4"].contains(&case) {
                    assert!(hits > 0.95, "{case}: {row}");
                } else if is_bmc && case == "workers-2" {
                    assert!(hits > 0.5, "{case}: {row}");
                } else {
                    assert!(hits.abs() < 1e-9, "{case}: {row}");
                }
            }
        }
    }
    for case in report["cases"].as_array().expect("a list of cases") {
        assert!(case["gain"].as_f64() > Some(0.0), "{case}");
    }
}

#[test]
fn leaves_nothing_however_it_ends() {
    if !can_run("leaves_nothing_however_it_ends") {
        return;
    }
    let before = traces();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut child = bench(&["--cases", "hits"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bmc can be run");
        assert!(eventually(PATIENCE, || !memcacheds(&child).is_empty()), "no memcached");
        let started = memcacheds(&child);
        let pid = i32::try_from(child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("our child");
        child.wait().expect("our child");
        assert!(eventually(PATIENCE, || !started.iter().any(|pid| is_alive(pid))), "{signal}");
        assert_eq!(traces(), before, "{signal}");
    }
}

#[test]
fn says_what_is_missing() {
    if !can_run("says_what_is_missing") {
        return;
    }
    for (path, message) in [
        ("/none/memcached", "cannot run /none/memcached (Debian: apt install memcached, or"),
        ("/bin/true", "/bin/true -V does not say that it is memcached"),
    ] {
        let output = bench(&["--memcached", path]).output().expect("bmc can be run");
        assert_eq!(output.status.code(), Some(1), "{path}");
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

/// What a bench could leave on the machine: names of network namespaces and of
/// devices, pins.
fn traces() -> Vec<String> {
    const DEVICES: [&str; 9] = [
        "without",
        "native",
        "tc",
        "generic",
        "reflector",
        "sockets",
        "sockets-native",
        "by-client",
        "by-cpu",
    ];

    let mut all = Vec::new();
    for directory in ["/run/netns", "/sys/class/net", "/sys/fs/bpf/bmc"] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        all.extend(
            names.filter(|name| DEVICES.contains(&name.as_str()) || name.starts_with("bmc-bench")),
        );
    }
    all.sort();
    all
}

/// The memcacheds that a process has started, as they are in /proc.
fn memcacheds(of: &Child) -> Vec<String> {
    let parent = format!("PPid:\t{}", of.id());
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    pids.filter(|pid| {
        let status = fs::read_to_string(Path::new("/proc").join(pid).join("status"));
        status.is_ok_and(|status| {
            status.starts_with("Name:\tmemcached\n") && status.lines().any(|line| line == parent)
        })
    })
    .collect()
}

fn is_alive(pid: &str) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(pid).join("status"));
    status.is_ok_and(|status| {
        status.starts_with("Name:\tmemcached\n") && !status.contains("State:\tZ")
    })
}
