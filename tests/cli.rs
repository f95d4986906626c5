// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The command line from outside: usage, messages and exit codes. Nothing is
//! attached, so no privileges are needed.

#[path = "common/copy.rs"]
mod copy;

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use bmc::abi::{COUNTERS, Counter, GROUPS};
use copy::Copy;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_ATTACHED: i32 = 3;

/// All but `help`, which clap adds.
const COMMANDS: [&str; 12] = [
    "attach",
    "detach",
    "flush",
    "status",
    "stats",
    "entries",
    "top",
    "bench",
    "doctor",
    "memcached",
    "completions",
    "man",
];

fn bmc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bmc")).args(args).output().expect("bmc can be run")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_usage(args: &[&str], message: &str) {
    let output = bmc(args);
    assert_eq!(output.status.code(), Some(USAGE), "{args:?}: {}", stderr(&output));
    assert!(stderr(&output).contains(message), "{args:?}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "{args:?}");
}

#[test]
fn help_goes_to_stdout_and_tells_the_exit_codes() {
    for args in [&["--help"][..], &["-h"]] {
        let output = bmc(args);
        assert_eq!(output.status.code(), Some(DONE));
        assert_eq!(stderr(&output), "");
        for text in COMMANDS.into_iter().chain(["Exit codes:"]) {
            assert!(stdout(&output).contains(text), "{args:?}: {text}");
        }
    }
}

#[test]
fn every_command_has_help_that_fits_a_terminal() {
    for command in COMMANDS {
        let output = bmc(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(DONE), "{command}");
        assert!(stdout(&output).contains("Usage: bmc "), "{command}");
        for line in stdout(&output).lines() {
            assert!(line.chars().count() <= 100, "{command}: {line}");
        }
    }
}

#[test]
fn tells_its_version() {
    assert_eq!(stdout(&bmc(&["-V"])), concat!("bmc ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    for (args, message) in [
        (&[][..], "Usage: bmc"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["attach"], "<IFACE>"),
        (&["attach", "lo"], "watched anyway"),
        (&["attach", "eth0", "--mode", "fast"], "possible values: auto, native, tc, generic"),
        (&["attach", "eth0", "--memory", "15M"], "not within 16M and 64G"),
        (&["attach", "eth0", "--memory", "65G"], "not within 16M and 64G"),
        (&["attach", "eth0", "--memory", "lots"], "does not start with a whole number"),
        (&["attach", "eth0", "--memory", "64MB"], "not a size"),
        (&["attach", "eth0", "--max-age", "60"], "no unit: 60s"),
        (&["attach", "eth0", "--max-age", "8d"], "not within 10ms and 7d"),
        (&["attach", "eth0", "--unknown-ttl", "1ms"], "not within 10ms and 7d"),
        (&["attach", "eth0", "--allow", "10.0.0.1/8"], "did you mean 10.0.0.0/8?"),
        (&["attach", "eth0", "--allow", "10.0.0.0/33"], "up to 32"),
        (&["attach", "eth0", "--allow", "all"], "not an IPv4 or IPv6 network"),
        (&["attach", "eth0", "--port", "0"], "0 is not in 1..=65535"),
        (&["attach", "eth0", "--port", "65536"], "65536 is not in 1..=65535"),
        (&["--instance", "a.b", "status"], "letters, digits"),
        (&["--instance", "../x", "status"], "letters, digits"),
        (&["stats", "--format", "xml"], "possible values: table, json, csv, prometheus"),
        (&["stats", "--json", "--format", "csv"], "cannot be used with"),
        (&["stats", "--count", "3"], "--watch"),
        (&["stats", "--watch", "--format", "prometheus"], "a scrape is one page"),
        (&["stats", "--watch", "never"], "not a number of seconds"),
        (&["stats", "--watch", "0"], "not within"),
        (&["entries", "--key", ""], "1 to 250 bytes"),
        (&["entries", "--limit", "-1"], "unexpected argument"),
        (&["top", "--interval", "0"], "not within 0.01 and 86400 seconds"),
        (&["top", "--interval", "soon"], "not a number of seconds"),
        (&["top", "--count", "0"], "0 is not in 1.."),
        (&["bench", "--cases", "hits,none"], "no such case (bmc bench --list shows all)"),
        (&["bench", "--rounds", "0"], "0 is not in 1..100"),
        (&["bench", "--seconds", "0"], "not within 0.05 and 3600 seconds"),
        (&["bench", "--seconds", "soon"], "not a number of seconds"),
        (&["bench", "--memory", "1M"], "not within 16M and 64G"),
        (&["bench", "eth0"], "unexpected argument"),
        (&["doctor", "lo"], "watched anyway"),
        (&["doctor", "eth0", "--fix"], "unexpected argument"),
        (&["completions", "tcsh"], "possible values"),
    ] {
        assert_usage(args, message);
    }
}

#[test]
fn takes_16_ports_and_32_networks_of_a_family_and_no_more() {
    let ports = |n: u16| (1..=n).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    let nets = |n: u16| (0..n).map(|i| format!("10.{i}.0.0/16")).collect::<Vec<_>>().join(",");
    assert_usage(&["attach", "eth0", "--port", &ports(17)], "--port is given more than 16 times");
    assert_usage(&["attach", "eth0", "--allow", &nets(33)], "--allow is given more than 32 times");
    // A port given twice is one port. No such interface, so this goes no further.
    let (ports, nets) = (ports(16) + ",1", nets(32) + ",fd00::/8");
    let output = bmc(&["attach", "none-such", "--port", &ports, "--allow", &nets]);
    assert_eq!(output.status.code(), Some(FAILED), "{}", stderr(&output));
}

#[test]
fn what_is_not_attached_exits_with_3() {
    // Those who may not look cannot know.
    let hidden = fs::metadata("/sys/fs/bpf/bmc")
        .err()
        .is_some_and(|err| err.kind() == ErrorKind::PermissionDenied);
    let instance = format!("none-{}", std::process::id());
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["stats"],
        &["stats", "--json"],
        &["stats", "--watch", "--count", "1"],
        &["entries"],
        &["top"],
        &["top", "--json", "--count", "1"],
        &["flush"],
        &["detach"],
        &["detach", "eth0"],
    ] {
        let output = bmc(&[&["--instance", &instance], command].concat());
        let (code, message) =
            if hidden { (FAILED, "run as root") } else { (NOT_ATTACHED, "is not attached") };
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("bmc: "), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(message), "{command:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{command:?}");
    }
}

#[test]
fn nouns_create_nothing() {
    let instance = format!("none-{}-nouns", std::process::id());
    for noun in ["status", "stats", "entries", "top", "doctor"] {
        bmc(&["--instance", &instance, noun]);
        assert!(!Path::new("/sys/fs/bpf/bmc").join(&instance).exists(), "{noun}");
    }
}

#[test]
fn attach_and_bench_without_privileges_name_the_missing_ones() {
    // Where nobody can find it.
    let copy = Copy::new("cli");
    let run = |args: &[&str]| {
        let mut command = Command::new(&copy.0);
        command.args(args).current_dir("/");
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        command.output().expect("bmc can be run")
    };
    let outputs = [run(&["attach", "eth0"]), run(&["bench"])];
    for output in outputs {
        assert_eq!(output.status.code(), Some(FAILED));
        assert_eq!(
            stderr(&output),
            "bmc: no permission: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON missing (run as root)\n"
        );
    }
}

#[test]
fn bench_lists_its_cases_without_privileges() {
    let output = bmc(&["bench", "--list"]);
    assert_eq!(output.status.code(), Some(DONE), "{}", stderr(&output));
    let list = stdout(&output);
    assert_eq!(list.lines().count(), 19, "{list}");
    for case in ["hits", "zipf-16", "miss", "tcp", "sets-50", "hot-2", "multi-4"] {
        assert!(list.lines().any(|line| line.split(' ').next() == Some(case)), "{case}: {list}");
    }
}

#[test]
fn the_manual_page_covers_every_command_and_is_clean_roff() {
    let output = bmc(&["man"]);
    assert_eq!(output.status.code(), Some(DONE));
    let page = stdout(&output);
    assert!(page.contains(".TH bmc 1"), "{page}");
    for command in COMMANDS {
        assert!(page.contains(&format!("bmc {command}")), "{command}");
    }
    assert!(page.contains("EXIT STATUS"));
    assert!(page.contains("unknown\\-ttl"));
    for Counter { name, unit, .. } in COUNTERS {
        let reason = GROUPS.iter().find_map(|group| name.strip_prefix(group.prefix));
        let title = format!("\\fB{}\\fR (\\fI{unit}\\fR)", reason.unwrap_or(name));
        assert!(page.contains(&title), "{title}");
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = bmc(&["completions", shell]);
        assert_eq!(output.status.code(), Some(DONE), "{shell}");
        for word in ["attach", "unknown-ttl", "top", "interval", "doctor"] {
            assert!(stdout(&output).contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn a_reader_that_has_had_enough_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bmc"))
        .args([OsStr::new("completions"), OsStr::new("bash")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bmc can be run");
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut errors).expect("text");
    assert_eq!(child.wait().expect("our child").code(), Some(DONE));
    assert_eq!(errors, "");
}
