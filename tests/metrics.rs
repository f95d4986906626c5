// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What monitoring sees: the page for Prometheus, its description in README.md,
//! the dashboard, and the lines for log shippers.

mod common;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Lines;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bmc::kernel::end_with_us;
use bmc::metrics::Family;
use bmc::metrics::families;
use bmc::stats::COUNTERS;
use bmc::stats::GROUPS;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::Memcached;
use common::Net;
use common::PATIENCE;
use common::Process;
use common::Tcp;
use common::Udp;
use common::can_run;
use common::can_run_with;
use common::eventually;
use common::run;
use common::skipped;

const NOT_ATTACHED: i32 = 3;

/// Small, so that attaching is quick.
const MEMORY: [&str; 2] = ["--memory", "16M"];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// bmc, at the server of a network.
struct Bed(Net);

impl Bed {
    fn new(test: &str) -> Self {
        Self(Net::new(test))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.0.server.command(env!("CARGO_BIN_EXE_bmc"));
        command.args(["--instance", self.0.instance()]).args(args);
        command
    }

    fn bmc(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    fn attach(&self, args: &[&str]) {
        self.bmc(&[&["attach", Net::DEVICE], args].concat());
    }

    fn watch(&self) -> Watch {
        let mut child = self
            .command(&["stats", "--watch", "0.1", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bmc can be run");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Watch { child, lines }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.command(&["detach"]).output();
    }
}

/// A page that was read: the values by their series, as written.
#[derive(Default)]
struct Page {
    values: BTreeMap<String, f64>,
    families: Vec<String>,
}

impl Page {
    /// Reads what bmc prints, and fails on what Prometheus would not take.
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut typed = None;
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["#", "HELP", name, _, ..] => {
                    assert!(!page.families.iter().any(|known| known == name), "twice: {line}");
                    page.families.push(name.into());
                    typed = None;
                }
                ["#", "TYPE", name, kind @ ("counter" | "gauge")] => {
                    assert_eq!(page.families.last().map(String::as_str), Some(name), "{line}");
                    assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                    typed = Some(name.to_string());
                }
                [.., value] => {
                    let series = line.rsplit_once(' ').expect("a value").0;
                    let name = series.split('{').next();
                    assert_eq!(name, typed.as_deref(), "not with its family: {line}");
                    let value = value.parse().unwrap_or_else(|err| panic!("{err}: {line}"));
                    assert_eq!(page.values.insert(series.into(), value), None, "twice: {line}");
                }
                _ => panic!("{line}"),
            }
        }
        page
    }

    /// The labels of each series of a family, and its value.
    fn of(&self, family: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let ours = self.values.iter().filter_map(|(series, value)| {
            let labels = series.strip_prefix(family)?.strip_prefix('{')?.strip_suffix('}')?;
            let labels = labels.split("\",").map(|label| {
                let (name, value) = label.split_once("=\"").expect("a label");
                (name.to_string(), value.trim_end_matches('"').to_string())
            });
            Some((labels.collect(), *value))
        });
        ours.collect()
    }

    /// The value of a family with one series.
    #[track_caller]
    fn value(&self, family: &str) -> f64 {
        match self.of(family)[..] {
            [(_, value)] => value,
            ref other => panic!("{family}: {other:?}"),
        }
    }
}

/// Has promtool check metrics, or rules; said to be left out if it is not
/// installed.
#[track_caller]
fn promtool(test: &str, what: &[&str], input: &str) {
    let child = Command::new("promtool")
        .arg("check")
        .args(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        skipped(&format!("{test}, as far as it"), "promtool is not installed");
        return;
    };
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("our child");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // Of metrics it tells what is unusual, too.
    let is_fine = said.is_empty() || what != ["metrics"];
    assert!(output.status.success() && is_fine, "{said}\n{input}");
}

/// Has the kernel measure programs, until dropped; for one test at a time.
struct RunTime {
    before: String,
    _turn: MutexGuard<'static, ()>,
}

impl RunTime {
    const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn measured() -> Self {
        static TURN: Mutex<()> = Mutex::new(());

        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fs::read_to_string(Self::SYSCTL).expect("the kernel has it");
        fs::write(Self::SYSCTL, "1").expect("root may");
        Self { before, _turn: turn }
    }
}

impl Drop for RunTime {
    fn drop(&mut self) {
        let _ = fs::write(Self::SYSCTL, &self.before);
    }
}

#[test]
fn prometheus_takes_the_page_and_finds_all_that_is_documented() {
    const TEST: &str = "prometheus_takes_the_page_and_finds_all_that_is_documented";

    if !can_run(TEST) {
        return;
    }
    let bed = Bed::new("metrics");
    let _memcached = Memcached::start(&bed.0.server, &[]);
    // All that the kernel allows in an interface's name and labels do not.
    let odd = r#"a"b\c{}=,"#;
    let ip = |args: &[&str]| run(Command::new("ip").args(["-n", bed.0.server.name()]).args(args));
    ip(&["link", "add", "peer0", "type", "veth", "peer", "name", odd]);
    bed.attach(&[&[odd, "--mode", "tc", "--unknown-ttl", "60s"], &MEMORY[..]].concat());
    let _measured = RunTime::measured();

    let mut tcp = Tcp::connect(&bed.0.client, Net::SERVER4);
    let mut udp = Udp::connect(&bed.0.client, Net::SERVER4);
    tcp.set("key", 0, b"value");
    let hits = || Page::read(&bed.bmc(&["stats", "--format", "prometheus"]));
    let hit = || {
        udp.get("key");
        hits().value("bmc_hits_total") > 0.0
    };
    assert!(eventually(PATIENCE, hit), "nothing is answered");

    for args in [&[][..], &["--per-cpu"]] {
        let text = bed.bmc(&[&["stats", "--format", "prometheus"], args].concat());
        promtool(TEST, &["metrics"], &text);
        let page = Page::read(&text);
        let names: Vec<_> =
            families().iter().map(|family| format!("bmc_{}", family.name)).collect();
        assert_eq!(page.families, names);
        for Family { name, labels, .. } in families() {
            let counted = COUNTERS.iter().any(|(counter, _)| name == format!("{counter}_total"))
                || GROUPS.iter().any(|(_, group, _)| name == format!("{group}_total"));
            let cpu = (counted && !args.is_empty()).then_some(&"cpu");
            let known: BTreeSet<_> = labels.iter().chain(cpu).chain([&"bmc_instance"]).collect();
            let series = page.of(&format!("bmc_{name}"));
            assert!(!series.is_empty(), "{name}");
            for (found, _) in series {
                // The odd name has what separates labels.
                let found: BTreeSet<_> = found.keys().map(String::as_str).collect();
                assert_eq!(found, known.iter().map(|name| **name).collect(), "{name}");
            }
        }
    }

    let page = hits();
    let status: Value = serde_json::from_str(&bed.bmc(&["status", "--json"])).expect("JSON");
    assert!((page.value("bmc_up") - 1.0).abs() < f64::EPSILON);
    for (family, field) in [
        ("bmc_start_time_seconds", "since"),
        ("bmc_memory_limit_bytes", "memory_bytes"),
        ("bmc_memory_locked_bytes", "memory_locked_bytes"),
    ] {
        assert_eq!(Some(page.value(family)), status[field].as_f64(), "{family}");
    }
    let class = &status["classes"][0];
    let used = class["used"].as_f64().expect("a number") * class["slot_bytes"].as_f64().expect("");
    assert_eq!(Some(page.of("bmc_class_used_bytes")[0].1), Some(used), "the one key's slot");
    assert!(used > 0.0);
    let info = page.of("bmc_info");
    assert_eq!(info[0].0["version"], env!("CARGO_PKG_VERSION"));
    let modes = page.of("bmc_interface_info");
    assert!(modes.iter().all(|(labels, _)| labels["mode"] == "tc"), "{modes:?}");
    let interfaces: BTreeSet<_> = modes.iter().map(|(labels, _)| &*labels["interface"]).collect();
    assert_eq!(interfaces, BTreeSet::from(["eth0", r#"a\"b\\c{}=,"#]));
    for family in ["bmc_program_runs_total", "bmc_program_run_seconds_total"] {
        let ran = |(labels, value): &(BTreeMap<String, String>, f64)| {
            labels["program"] == "bmc_rx_tc" && *value > 0.0
        };
        assert!(page.of(family).iter().any(ran), "{family}");
    }

    // An interface that disappears is told.
    ip(&["link", "delete", "peer0"]);
    let up: BTreeMap<_, _> = hits()
        .of("bmc_interface_up")
        .into_iter()
        .map(|(l, up)| (l["interface"].clone(), up))
        .collect();
    assert_eq!(up, BTreeMap::from([("eth0".into(), 1.0), (r#"a\"b\\c{}=,"#.into(), 0.0)]));
}

#[test]
fn the_readme_describes_every_metric_and_no_other() {
    let row = |Family { name, kind, labels, help }: Family| {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let group = GROUPS.iter().find(|(_, group, _)| name == format!("{group}_total"));
        let reasons = group.map(|(prefix, _, _)| {
            let reasons = COUNTERS.iter().filter_map(|(name, help)| {
                Some(format!("`{}` {help}", name.strip_prefix(prefix)?))
            });
            format!(": {}", reasons.collect::<Vec<_>>().join("; "))
        });
        let reasons = reasons.unwrap_or_default();
        format!("| `bmc_{name}` | {kind} | {} | {help}{reasons} |", labels.join(", "))
    };
    let printed: Vec<_> = families().into_iter().map(row).collect();
    let readme = read("README.md");
    let described: Vec<_> = readme.lines().filter(|line| line.starts_with("| `bmc_")).collect();
    assert_eq!(described, printed, "README.md should have:\n{}\n", printed.join("\n"));
}

fn dashboard() -> Value {
    serde_json::from_str(&read("scripts/deploy/grafana.json")).expect("it is JSON")
}

#[test]
fn the_dashboard_asks_only_for_what_there_is() {
    let dashboard = dashboard();
    let families = families();
    let mut asked = BTreeSet::new();
    let mut rules = Vec::new();
    for panel in dashboard["panels"].as_array().expect("a list") {
        let title = panel["title"].as_str().expect("each has a title");
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().expect("a list");
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expr = target["expr"].as_str().expect("a text");
            let number = rules.len();
            let expr_now = expr.replace("$__rate_interval", "5m");
            rules.push(serde_json::json!({ "record": format!("rule{number}"), "expr": expr_now }));
            let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '$');
            let names: Vec<_> =
                words.clone().filter_map(|word| word.strip_prefix("bmc_")).collect();
            for name in names.iter().filter(|name| **name != "instance") {
                let family = families.iter().find(|family| family.name == *name);
                assert!(family.is_some(), "{title}: no metric bmc_{name}");
                asked.insert((*name).to_string());
            }
            let chosen = r#"{instance=~"$instance", bmc_instance=~"$bmc_instance"}"#;
            assert_eq!(expr.replace(chosen, "").matches('{').count(), 0, "{title}: {expr}");
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            let lists = ["by (", "on (", "group_left ("].map(|list| expr.split(list).skip(1));
            let lists = lists.into_iter().flatten();
            let lists = lists.map(|rest| rest.split(')').next().expect("an end").split(", "));
            let mut lists: Vec<Vec<_>> = lists.map(Iterator::collect).collect();
            let shown = legend.split("{{").skip(1);
            lists.push(shown.map(|rest| rest.split("}}").next().expect("an end")).collect());
            for labels in lists {
                // Prometheus' own is the host: instances of several have one name.
                let names_host = !labels.contains(&"bmc_instance") || labels.contains(&"instance");
                assert!(names_host, "{title}: mixes hosts: {labels:?}");
                for label in labels {
                    let known = ["instance", "bmc_instance"].contains(&label)
                        || families.iter().any(|family| family.labels.contains(&label));
                    assert!(known, "{title}: no label {label}");
                }
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("a list") {
        if variable["type"] == "query" {
            let name = variable["name"].as_str().expect("each has a name");
            let query = variable["query"].as_str().expect("a text");
            let asks =
                query.starts_with("label_values(bmc_up") && query.ends_with(&format!(", {name})"));
            assert!(asks, "{name}: {query}");
        }
    }
    for name in ["up", "hits_total", "misses_total", "passes_total", "class_used_bytes"] {
        assert!(asked.contains(name), "nothing shows {name}");
    }
    // JSON is YAML.
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    promtool(
        "the_dashboard_asks_only_for_what_there_is",
        &["rules", "/dev/stdin"],
        &rules.to_string(),
    );
}

/// Starts a server of the monitoring.
fn serve(bed: &Bed, program: &str, args: &[&str]) -> Process {
    let mut command = bed.0.server.command(program);
    let child = end_with_us(command.args(args)).stdout(Stdio::null()).stderr(Stdio::null());
    Process(child.spawn().expect("nsenter can be run"))
}

/// Each of its questions has an answer, when `node_exporter` reads the page and
/// Prometheus asks `node_exporter`.
#[test]
fn the_dashboard_has_something_to_show_on_a_host_that_is_monitored() {
    const TEST: &str = "the_dashboard_has_something_to_show_on_a_host_that_is_monitored";
    const URL: &str = "http://127.0.0.1:9090";

    if !can_run_with(TEST, &["prometheus", "promtool", "prometheus-node-exporter"]) {
        return;
    }
    let bed = Bed::new("monitored");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("monitored");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("cargo's own directory");
    let path = |name: &str| directory.join(name).to_str().expect("text").to_string();
    let config = serde_json::json!({
        "global": { "scrape_interval": "500ms" },
        "scrape_configs": [{
            "job_name": "node",
            "static_configs": [{ "targets": ["127.0.0.1:9100"] }],
        }],
    });
    fs::write(path("prometheus.yml"), config.to_string()).expect("it is our directory");
    let _exporter = serve(
        &bed,
        "prometheus-node-exporter",
        &[
            "--collector.disable-defaults",
            "--collector.textfile",
            &format!("--collector.textfile.directory={}", directory.display()),
            "--web.listen-address=127.0.0.1:9100",
        ],
    );
    let _prometheus = serve(
        &bed,
        "prometheus",
        &[
            &format!("--config.file={}", path("prometheus.yml")),
            &format!("--storage.tsdb.path={}", path("data")),
            "--web.listen-address=127.0.0.1:9090",
        ],
    );
    let promtool = |args: &[&str]| {
        let output = bed.0.server.command("promtool").arg("query").args(args).output();
        String::from_utf8(output.expect("nsenter can be run").stdout).expect("text")
    };

    let _memcached = Memcached::start(&bed.0.server, &[]);
    bed.attach(&[&["--unknown-ttl", "60s"], &MEMORY[..]].concat());
    let _measured = RunTime::measured();
    let mut tcp = Tcp::connect(&bed.0.client, Net::SERVER4);
    let mut udp = Udp::connect(&bed.0.client, Net::SERVER4);
    tcp.set("key", 0, b"value");
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("a list");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let questions: BTreeSet<_> = targets
        .map(|target| target["expr"].as_str().expect("a text"))
        .map(|expr| {
            // As Grafana does when all are chosen.
            let expr = expr.replace("$__rate_interval", "10s");
            expr.replace("$instance", ".*").replace("$bmc_instance", ".*")
        })
        .collect();
    let mut open = questions.clone();
    let all_are_answered = || {
        udp.get("key");
        udp.get("no key");
        let page = bed.bmc(&["stats", "--format", "prometheus"]);
        fs::write(path("new"), page).expect("it is our directory");
        fs::rename(path("new"), path("bmc.prom")).expect("it is there");
        open.retain(|question| {
            let answer = promtool(&["instant", URL, question]);
            !answer.contains("=>") || answer.contains("NaN")
        });
        open.is_empty()
    };
    assert!(eventually(Duration::from_secs(60), all_are_answered), "no answer to {open:#?}");
    // What the dashboard's lists offer.
    let up = promtool(&["instant", URL, "bmc_up"]);
    let labels = [("instance", "127.0.0.1:9100"), ("bmc_instance", bed.0.instance())];
    for (name, value) in labels {
        assert!(up.contains(&format!("{name}=\"{value}\"")), "{up}");
    }
    let ratio = questions.iter().find(|question| question.contains(" + ")).expect("one is");
    let ratio = promtool(&["instant", URL, ratio]);
    let value = ratio.split("=> ").nth(1).and_then(|rest| rest.split(' ').next());
    let value: f64 = value.and_then(|value| value.parse().ok()).expect("a number");
    assert!((0.3..0.9).contains(&value), "half of the GETs hit: {ratio}");
}

/// A `bmc stats --watch --json` that runs.
struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    /// The next line.
    fn line(&mut self) -> Value {
        let line = self.lines.next().expect("a line").expect("text");
        serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().expect("a pid")), signal).expect("our child");
    }

    /// How it ends, the rest of its lines and what it says.
    fn end(mut self) -> (ExitStatus, Vec<String>, String) {
        let lines = self.lines.collect::<Result<_, _>>().expect("text");
        let mut said = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        (self.child.wait().expect("our child"), lines, said)
    }
}

#[test]
fn watched_lines_come_as_they_are_made_with_the_time() {
    if !can_run("watched_lines_come_as_they_are_made_with_the_time") {
        return;
    }
    let bed = Bed::new("watch-time");
    bed.attach(&MEMORY);
    let mut watch = bed.watch();
    let seconds = |line: &Value| line["time"].as_f64().expect("a number");
    let mut before = seconds(&watch.line());
    for _ in 0..3 {
        let asked = Instant::now();
        let line = watch.line();
        assert!(asked.elapsed() < PATIENCE, "a line is not kept back until there are many");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let late = now.expect("a time").as_secs_f64() - seconds(&line);
        let most = PATIENCE.as_secs_f64();
        assert!((0.0..most).contains(&late), "{late} s late");
        assert!((0.09..most).contains(&(seconds(&line) - before)), "the interval");
        before = seconds(&line);
        assert_eq!(line["since"].as_f64().map(|since| since <= before), Some(true), "{line}");
        assert!(line["totals"]["hits"].is_u64());
    }
    watch.signal(Signal::SIGKILL);
    watch.end();
}

#[test]
fn watching_so_often_ends_with_the_last_line() {
    if !can_run("watching_so_often_ends_with_the_last_line") {
        return;
    }
    let bed = Bed::new("watch-count");
    bed.attach(&MEMORY);
    // A rate takes an interval, an object none.
    for (format, intervals) in [("table", 1), ("json", 0)] {
        let start = Instant::now();
        bed.bmc(&["stats", "--watch", "4", "--count", "1", "--format", format]);
        let took = start.elapsed().as_secs() / 4;
        assert_eq!(took, intervals, "{format}: {:?}", start.elapsed());
    }
}

#[test]
fn watching_goes_on_when_the_instance_is_replaced_and_ends_when_it_is_detached() {
    if !can_run("watching_goes_on_when_the_instance_is_replaced_and_ends_when_it_is_detached") {
        return;
    }
    let bed = Bed::new("watch-replaced");
    bed.attach(&MEMORY);
    let mut watch = bed.watch();
    let since = watch.line()["since"].as_u64().expect("a number");

    // The same cache and counters.
    bed.attach(&[&["--replace", "--max-age", "30s"], &MEMORY[..]].concat());
    for _ in 0..3 {
        assert_eq!(watch.line()["since"], since);
    }
    // Others: the reader can tell.
    let anew = || watch.line()["since"].as_u64() > Some(since);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    bed.attach(&["--replace", "--memory", "32M"]);
    assert!(eventually(PATIENCE, anew), "the counters of the new one");

    bed.bmc(&["detach"]);
    let (status, lines, said) = watch.end();
    assert_eq!(status.code(), Some(NOT_ATTACHED), "{said}");
    let instance = bed.0.instance();
    let start = format!("bmc: nothing is left to watch: instance {instance} is not attached");
    assert!(said.starts_with(&start), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for line in lines {
        assert!(serde_json::from_str::<Value>(&line).is_ok(), "half a line: {line}");
    }
}

#[test]
fn watching_ends_quietly_by_a_signal_and_with_its_reader() {
    if !can_run("watching_ends_quietly_by_a_signal_and_with_its_reader") {
        return;
    }
    let bed = Bed::new("watch-signal");
    bed.attach(&MEMORY);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut watch = bed.watch();
        watch.line();
        watch.signal(signal);
        let (status, lines, said) = watch.end();
        assert_eq!((status.code(), &*said), (Some(0), ""), "{signal}");
        for line in lines {
            assert!(serde_json::from_str::<Value>(&line).is_ok(), "half a line: {line}");
        }
    }
    let mut watch = bed.watch();
    watch.line();
    let Watch { mut child, lines } = watch;
    drop(lines);
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!((child.wait().expect("our child").code(), &*said), (Some(0), ""));
}
