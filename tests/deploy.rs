// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The examples of scripts/deploy and the units of scripts/deb: what they run are
//! command lines of bmc.

use std::fs;
use std::path::Path;

use bmc::cli::Attach;
use bmc::cli::Cli;
use bmc::cli::Command;
use clap::Parser as _;
use yaml_rust2::Yaml;
use yaml_rust2::YamlLoader;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

fn yaml(path: &str) -> Yaml {
    let documents = YamlLoader::load_from_str(&read(path));
    let documents = documents.unwrap_or_else(|err| panic!("{path}: {err}"));
    let [document] = &documents[..] else { panic!("{path} has not one document") };
    document.clone()
}

/// Each list of words that begins with bmc.
fn commands(node: &Yaml, found: &mut Vec<Vec<String>>) {
    match node {
        Yaml::Array(items) => {
            if items.first().and_then(Yaml::as_str) == Some("bmc") {
                let word = |item: &Yaml| item.as_str().expect("words are strings").to_string();
                found.push(items.iter().map(word).collect());
            }
            for item in items {
                commands(item, found);
            }
        }
        Yaml::Hash(entries) => {
            for value in entries.values() {
                commands(value, found);
            }
        }
        _ => {}
    }
}

/// The command line, if bmc takes it.
#[track_caller]
fn accepted<'a>(words: impl IntoIterator<Item = &'a str>) -> Cli {
    let words: Vec<_> = words.into_iter().collect();
    let cli = Cli::try_parse_from(&words).unwrap_or_else(|err| panic!("{words:?}: {err}"));
    assert_eq!(cli.check().map_err(|(_, why)| why), Ok(()), "{words:?}");
    cli
}

#[track_caller]
fn attaches(cli: Cli) -> Attach {
    let Command::Attach(attach) = cli.command else { panic!("{:?} is not attach", cli.command) };
    attach
}

#[test]
fn the_daemon_set_attaches_with_the_least_privileges_and_detaches_at_its_end() {
    let set = yaml("deploy/daemonset.yaml");
    assert_eq!(set["kind"].as_str(), Some("DaemonSet"));
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"].as_bool(), Some(true));
    let container = &pod["containers"][0];
    let list = |of: &Yaml| -> Vec<_> {
        let names = of.as_vec().expect("a list").iter();
        names.map(|name| name.as_str().expect("a name").to_string()).collect()
    };
    let security = &container["securityContext"];
    assert_eq!(list(&security["capabilities"]["add"]), ["BPF", "NET_ADMIN", "PERFMON"]);
    assert_eq!(list(&security["capabilities"]["drop"]), ["ALL"]);
    assert_eq!(security["appArmorProfile"]["type"].as_str(), Some("Unconfined"));
    assert_eq!(container["volumeMounts"][0]["mountPath"].as_str(), Some("/sys/fs/bpf"));
    assert_eq!(pod["volumes"][0]["hostPath"]["path"].as_str(), Some("/sys/fs/bpf"));

    let command = |of: &Yaml| {
        let mut found = Vec::new();
        commands(of, &mut found);
        found.dedup();
        let [words] = &found[..] else { panic!("{found:?}") };
        accepted(words.iter().map(String::as_str))
    };
    assert_eq!(list(&container["command"]), ["sh", "-c", r#"exec "$@" >/dev/null"#, "sh"]);
    let attach = attaches(command(&container["args"]));
    assert!(attach.replace, "what a pod left is taken over");
    assert!(attach.foreground, "it detaches at its end, and ends if somebody else detaches");
    let limit = container["resources"]["limits"]["memory"].as_str().expect("a limit");
    let limit: u64 = limit.strip_suffix("Mi").and_then(|mib| mib.parse().ok()).expect("MiB");
    assert!(attach.memory < limit << 20, "the cache fits into the pod");
    assert!(matches!(command(&container["readinessProbe"]).command, Command::Status { .. }));
}

#[test]
fn the_playbook_sets_options_and_runs_commands_that_bmc_takes() {
    let text = read("deploy/playbook.yaml");
    let play = yaml("deploy/playbook.yaml")[0].clone();
    let vars = play["vars"].as_hash().expect("it has variables");
    let filled = |text: &str| {
        let mut text = text.to_string();
        for (name, value) in vars {
            let (name, value) = (name.as_str().expect("a name"), value.as_str().expect("text"));
            text = text.replace(&format!("{{{{ {name} }}}}"), value);
        }
        assert!(!text.contains("{{"), "no such variable: {text}");
        text
    };
    let mut found = Vec::new();
    commands(&play, &mut found);
    assert_eq!(found.len(), 1);
    let words: Vec<_> = found[0].iter().map(|word| filled(word)).collect();
    assert!(matches!(
        accepted(words.iter().map(String::as_str)).command,
        Command::Status { json: true }
    ));
    let options = text.lines().find_map(|line| line.trim().strip_prefix("BMC_OPTIONS="));
    let options = filled(options.expect("it sets them").trim_matches('"'));
    attaches(accepted(["bmc", "attach", "eth0"].into_iter().chain(options.split(' '))));
}

#[test]
fn the_units_run_commands_that_bmc_takes_with_the_options_that_are_suggested() {
    let unit = read("deb/bmc@.service");
    let default = read("deb/bmc.default");
    let suggested = default.lines().find_map(|line| line.strip_prefix("#BMC_OPTIONS="));
    let suggested = suggested.expect("an example").trim_matches('"');
    let given = default.lines().find_map(|line| line.strip_prefix("BMC_OPTIONS="));
    assert_eq!(given, Some("\"\""), "nothing is changed unasked");
    let mut seen = 0;
    for line in unit.lines() {
        let Some((key, command)) = line.split_once("=/usr/bin/") else { continue };
        let command = command.replace("${BMC_INSTANCE}", "eth0").replace("%i", "eth0");
        for options in ["", suggested] {
            let command = command.replace("$BMC_OPTIONS", options);
            let attach = attaches(accepted(command.split_whitespace()));
            assert!(attach.replace, "{key}");
        }
        seen += 1;
    }
    assert_eq!(seen, 2, "to start and to reload");
    assert!(unit.contains("/usr/bin/bmc --instance \"$$BMC_INSTANCE\" detach"));
    accepted(["bmc", "--instance", "eth0", "detach"]);
    accepted(["bmc", "--instance", "eth0", "stats", "--format", "prometheus"]);
    assert!(
        read("deb/textfile").contains("bmc --instance \"$instance\" stats --format prometheus")
    );
}
