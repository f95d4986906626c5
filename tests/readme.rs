// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What README.md says of the tool is true of the tool.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use bmc::cli::Cli;
use clap::CommandFactory as _;
use serde_json::Value;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// What stands between backquotes in the README's text.
fn quoted() -> Vec<String> {
    let readme = read("README.md");
    let text: String = readme.split("```").step_by(2).collect();
    text.split('`').skip(1).step_by(2).map(String::from).collect()
}

#[test]
fn names_every_command_and_no_other() {
    let commands: BTreeSet<_> =
        Cli::command().get_subcommands().map(|command| command.get_name().to_string()).collect();
    let table: BTreeSet<_> = quoted()
        .iter()
        .filter_map(|quoted| quoted.strip_prefix("bmc "))
        .filter_map(|rest| rest.split(' ').next())
        .filter(|word| !word.starts_with(['<', '-']))
        .map(String::from)
        .collect();
    assert_eq!(table, commands);
}

#[test]
fn names_only_options_that_exist() {
    let cli = Cli::command();
    let known: BTreeSet<_> = std::iter::once(&cli)
        .chain(cli.get_subcommands())
        .flat_map(clap::Command::get_arguments)
        .filter_map(|arg| arg.get_long().map(|long| format!("--{long}")))
        .chain(["--help", "--release", "--net", "--test", "--bench"].map(String::from))
        .collect();
    let readme = read("README.md");
    let mut seen = 0;
    for word in readme.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        let option = word.trim_end_matches('-');
        if option.starts_with("--") && option.len() > 2 {
            seen += 1;
            assert!(known.contains(option), "{option}");
        }
    }
    assert!(seen > 20, "only {seen} options found");
}

#[test]
fn explains_messages_that_the_tool_prints() {
    let sources: String = [
        "attach",
        "doctor/host",
        "doctor/interface",
        "doctor/memcached",
        "hook",
        "instance",
        "memcached",
        "message",
        "output",
        "system",
        "workers",
    ]
    .map(|name| read(&format!("src/{name}.rs")))
    .concat()
    // Long messages are broken over lines.
    .split("\\\n")
    .map(str::trim_start)
    .collect();
    let readme = read("README.md");
    let table = readme.split("## Troubleshooting").nth(1).expect("has the section");
    let table = table.split("## ").next().expect("has an end");
    let mut seen = 0;
    for row in table.lines().filter(|row| row.starts_with("| `")) {
        let message = row.split('`').nth(1).expect("starts with a quote");
        assert!(sources.contains(message), "nothing prints {message:?}");
        seen += 1;
    }
    assert!(seen >= 7, "only {seen} messages found");
}

#[test]
fn names_only_counters_and_files_that_exist() {
    let header = read("bpf/bmc.h");
    for quoted in quoted() {
        if ["pass_", "lease_", "fill_", "tcp_"].iter().any(|start| quoted.starts_with(start)) {
            assert!(header.contains(&format!("{quoted};")), "no counter {quoted}");
        }
        if ["bpf/", "src/", "tests/", "scripts/", "vmlinux/"]
            .iter()
            .any(|dir| quoted.starts_with(dir))
        {
            // A command may have arguments.
            let file = quoted.split(' ').next().expect("has a first word");
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            assert!(path.exists(), "no file {file}");
        }
    }
}

#[test]
fn the_plot_shows_every_row_of_the_results() {
    let results: Value = serde_json::from_str(&read("tests/bench/results.json")).expect("JSON");
    let mut command = Command::new("python3");
    command.args(["scripts/plot.py", "tests/bench/results.json"]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("python3 runs");
    let drawn = String::from_utf8(output.stdout).expect("text");
    assert_eq!(drawn, read("tests/bench/results.svg"), "{:?}", output.status);
    let mut rows = 0;
    for case in results["cases"].as_array().expect("cases") {
        for row in case["sides"].as_array().expect("sides") {
            let [case, side, load] = [&case["name"], &row["side"], &row["load"]]
                .map(|name| name.as_str().expect("text"));
            assert!(drawn.contains(&format!("<title>{case}, {side}, {load}: ")), "{case}, {side}");
            rows += 1;
        }
    }
    assert!(rows > 100, "only {rows} rows");
}
