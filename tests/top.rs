// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc top` of a real instance at work, in a real terminal: that of tmux, whose
//! screen is read. Root only.

mod common;

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::thread::JoinHandle;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::Bmc;
use common::Memcached;
use common::Net;
use common::Tcp;
use common::Udp;
use common::can_run_with;
use common::eventually;
use common::run;

const BMC: &str = env!("CARGO_BIN_EXE_bmc");
const ATTACH: [&str; 4] = ["--memory", "16M", "--unknown-ttl", "60s"];

/// Long enough for several refreshes, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(20);
const INTERVAL: &str = "0.3";

/// What the shell in the terminal asks with.
const PROMPT: &str = "the-shell>";

/// The keys of the load, the hottest first, and the lengths of their values.
const KEYS: [(&str, usize); 3] = [("hot", 5), ("warm", 50), ("big", 900)];

/// A client at work: asks for [`KEYS`], each four times as often as the next, and for
/// one that is not there, writes one now and then and sends what bmc leaves alone.
struct Load {
    stop: Arc<AtomicBool>,
    client: Option<JoinHandle<()>>,
}

impl Load {
    fn start(net: &Net) -> Self {
        let mut udp = Udp::connect(&net.client, Net::SERVER4);
        let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let client = thread::spawn(move || {
            for (key, len) in KEYS {
                tcp.set(key, 0, &vec![b'x'; len]);
            }
            for round in 0_u64.. {
                if stopped.load(Relaxed) {
                    return;
                }
                for (rank, (key, _)) in KEYS.into_iter().enumerate() {
                    if round % 4_u64.pow(rank as u32) == 0 {
                        udp.get(key);
                    }
                }
                match round % 50 {
                    10 => assert!(udp.get("absent").is_complete()),
                    20 => tcp.set("warm", 0, &vec![b'y'; KEYS[1].1]),
                    30 => {
                        udp.send(b"gets hot\r\n");
                        udp.receive(common::PATIENCE).expect("memcached answers");
                    }
                    _ => {}
                }
                sleep(Duration::from_millis(1));
            }
        });
        Self { stop, client: Some(client) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let ended = self.client.take().expect("taken here only").join();
        assert!(ended.is_ok() || thread::panicking(), "the client failed");
    }
}

/// A terminal with a shell in it, at the server; gone on drop.
struct Terminal<'a> {
    net: &'a Net,
    directory: PathBuf,
    commands: AtomicUsize,
}

impl<'a> Terminal<'a> {
    fn open(net: &'a Net, columns: u16, rows: u16) -> Self {
        let directory = std::env::temp_dir().join(format!("{}-tmux", net.instance()));
        fs::create_dir_all(&directory).expect("a temporary directory");
        let terminal = Self { net, directory, commands: AtomicUsize::new(0) };
        let size = [columns, rows].map(|n| n.to_string());
        let mut command = net.server.command("env");
        command.args([
            &format!("PS1={PROMPT} "),
            "HISTFILE=",
            "tmux",
            "-u",
            "-f",
            "/dev/null",
            "-S",
        ]);
        command.arg(terminal.socket()).args(["new-session", "-d", "-x", &size[0], "-y", &size[1]]);
        run(command.args(["bash", "--norc", "--noprofile"]));
        terminal.expect(|screen| screen.contains(PROMPT));
        terminal
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn tmux(&self, args: &[&str]) -> String {
        run(Command::new("tmux").arg("-S").arg(self.socket()).args(args))
    }

    /// Presses a key, by the name that tmux has for it.
    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Types a line.
    fn enter(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press("Enter");
    }

    /// Starts `bmc top` with a short interval.
    fn start_top(&self) {
        self.enter(&format!("{BMC} --instance {} top --interval {INTERVAL}", self.net.instance()));
        self.expect(|screen| screen.contains("q quit"));
    }

    /// The screen as it is.
    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen, once it is as it should be.
    #[track_caller]
    fn expect(&self, mut what: impl FnMut(&str) -> bool) -> String {
        let mut screen = String::new();
        let is_there = eventually(PATIENCE, || {
            screen = self.screen();
            what(&screen)
        });
        assert!(is_there, "not within {PATIENCE:?}; the screen is\n{screen}");
        screen
    }

    /// What a command prints in the shell, which must be back.
    #[track_caller]
    fn prints(&self, command: &str) -> String {
        let end = format!("end-{}", self.commands.fetch_add(1, Relaxed));
        self.enter(&format!("clear; {command}; echo {end}"));
        let screen = self.expect(|screen| screen.lines().any(|line| line == end));
        screen.split(&end).next().unwrap_or_default().to_string()
    }

    /// Checks how the last command ended.
    #[track_caller]
    fn exited_with(&self, code: i32) {
        self.enter("echo exit=$?");
        let screen = self.expect(|screen| screen.lines().any(|line| line.starts_with("exit=")));
        let line = screen.lines().rfind(|line| line.starts_with("exit="));
        assert_eq!(line, Some(format!("exit={code}").as_str()), "{screen}");
    }

    /// The process that runs in the shell.
    fn process(&self) -> Pid {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        let child = children.expect("the shell runs");
        Pid::from_raw(child.trim().parse().expect("the shell has one child"))
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let mut kill = Command::new("tmux");
        kill.arg("-S").arg(self.socket()).arg("kill-server").stderr(Stdio::null());
        let _ = kill.status();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A network with a memcached, bmc and a client at work.
struct Bed {
    _load: Load,
    bmc: Bmc,
    _memcached: Memcached,
    net: Rc<Net>,
}

impl Bed {
    /// None where such tests cannot run.
    fn new(test: &str) -> Option<Self> {
        if !can_run_with(test, &["tmux"]) {
            return None;
        }
        let net = Rc::new(Net::new(test));
        let memcached = Memcached::start(&net.server, &[]);
        let bmc = Bmc::attach(&net, &ATTACH);
        let load = Load::start(&net);
        Some(Self { _load: load, bmc, _memcached: memcached, net })
    }
}

/// The number in a row of the screen that starts with a word.
fn figure(screen: &str, title: &str) -> Option<f64> {
    let row = screen.lines().find(|line| line.starts_with(title))?;
    let number = row[title.len()..].split_whitespace().next()?;
    number.trim_end_matches("/s").replace(',', "").parse().ok()
}

/// The keys below their title, in their order.
fn keys(screen: &str) -> Vec<&str> {
    let rows = screen.lines().skip_while(|line| !line.contains("hottest key")).skip(1);
    rows.take_while(|row| !row.contains("q quit"))
        .filter_map(|row| row.split_whitespace().last())
        .collect()
}

/// What is shown, without the line with the time.
fn figures(screen: &str) -> String {
    screen.lines().skip(1).collect::<Vec<_>>().join("\n")
}

#[test]
fn shows_what_goes_on_and_the_hottest_key_first() {
    let Some(bed) = Bed::new("top-shows") else { return };
    let terminal = Terminal::open(&bed.net, 80, 24);
    terminal.start_top();
    let names = KEYS.map(|(key, _)| key);
    let is_busy = |screen: &str| {
        ["requests", "hits", "misses", "fills", "invalidations", "hit ratio"]
            .iter()
            .all(|title| figure(screen, title).is_some_and(|rate| rate > 0.0))
    };
    // What is rare does not happen in each interval.
    let screen = terminal
        .expect(|screen| is_busy(screen) && screen.contains("command") && keys(screen) == names);

    let status: Value =
        serde_json::from_str(&bed.bmc.run(&["status", "--json"])).expect("status is JSON");
    assert!(screen.starts_with(&format!("bmc {}: caching", bed.net.instance())), "{screen}");
    assert!(screen.contains("every 300ms"), "{screen}");
    assert!(screen.contains("eth0 native up, lo watched"), "{screen}");
    for program in status["programs"].as_array().expect("a list") {
        let name = program["name"].as_str().expect("a name");
        assert!(screen.contains(name), "{name}: {screen}");
    }
    for class in status["classes"].as_array().expect("a list") {
        let row = format!("{:>6}", class["slot_bytes"].as_u64().expect("a number"));
        assert!(screen.lines().any(|line| line.contains(&row)), "{row}: {screen}");
    }
    // The last column of the CPUs, which come first.
    let mut rows = screen.lines().skip_while(|line| !line.contains("gets/s  share")).skip(1);
    let shares = rows.by_ref().map_while(|row| row.get(..21)?.trim().strip_suffix(" %"));
    let shares = shares.filter_map(|row| row.split_whitespace().last()?.parse::<f64>().ok());
    let sum: f64 = shares.sum();
    assert!((98.0..=102.0).contains(&sum), "the CPUs' shares make {sum}: {screen}");
    let is_measured =
        fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|on| on.trim() == "1");
    assert_eq!(screen.contains("sysctl kernel.bpf_stats_enabled=1"), !is_measured, "{screen}");
    let screen =
        terminal.expect(|screen| ['▁', '▂', '▃', '▄', '▅'].iter().any(|bar| screen.contains(*bar)));
    assert!(figure(&screen, "hits") <= figure(&screen, "requests"), "{screen}");
}

#[test]
fn keys_pause_sort_and_change_the_interval() {
    let Some(bed) = Bed::new("top-keys") else { return };
    let terminal = Terminal::open(&bed.net, 80, 24);
    terminal.start_top();
    terminal.expect(|screen| keys(screen) == ["hot", "warm", "big"]);

    for (key, mark, first) in [
        ("s", "▾heat", None),
        ("s", "▾bytes", Some("big")),
        ("Left", "▾heat", None),
        ("Left", "▾gets/s", Some("hot")),
        ("Left", "▾hottest key", Some("big")),
        ("Right", "▾gets/s", Some("hot")),
    ] {
        terminal.press(key);
        let screen = terminal.expect(|screen| screen.contains(mark));
        assert_eq!(screen.matches('▾').count(), 1, "{screen}");
        assert!(first.is_none_or(|key| keys(&screen).first() == Some(&key)), "{key}: {screen}");
    }

    for (hold, go_on) in [("p", "p"), ("Space", "Space")] {
        terminal.press(hold);
        let held = terminal.expect(|screen| screen.contains(" paused"));
        sleep(Duration::from_secs(1));
        assert_eq!(figures(&terminal.screen()), figures(&held), "figures that are held stay");
        terminal.press(go_on);
        terminal.expect(|screen| !screen.contains(" paused") && figures(screen) != figures(&held));
    }

    terminal.press("+");
    terminal.expect(|screen| screen.contains("every 500ms"));
    terminal.press("-");
    terminal.press("-");
    terminal.expect(|screen| screen.contains("every 100ms"));
    terminal.press("?");
    terminal.expect(|screen| screen.contains("hold the figures") && !screen.contains("hits"));
    terminal.press("?");
    terminal.expect(|screen| screen.contains("hits") && !screen.contains("hold the figures"));
}

#[test]
fn gives_the_terminal_back_however_it_ends() {
    let Some(bed) = Bed::new("top-restores") else { return };
    let terminal = Terminal::open(&bed.net, 80, 24);
    let modes = terminal.prints("stty -a");
    assert!(modes.contains(" icanon") && modes.contains(" echo "), "{modes}");
    let restored = |how: &str| {
        // Where the shell had been, not below bmc's screen.
        let screen = terminal.expect(|screen| screen.contains("written before"));
        assert!(!screen.contains("q quit"), "{how}: {screen}");
        terminal.exited_with(0);
        assert_eq!(terminal.prints("stty -a"), modes, "{how}");
        terminal.prints("true");
    };
    for key in ["q", "Escape", "C-c"] {
        terminal.enter("echo 'written 'before");
        terminal.start_top();
        terminal.press(key);
        restored(key);
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        terminal.enter("echo 'written 'before");
        terminal.start_top();
        kill(terminal.process(), signal).expect("it runs");
        restored(signal.as_str());
    }
    terminal.enter("echo 'written 'before");
    terminal
        .enter(&format!("{BMC} --instance {} top --interval 0.1 --count 3", bed.net.instance()));
    terminal.expect(|screen| screen.contains("q quit"));
    restored("--count");
}

/// Not a test by itself: the next one runs it, in its terminal.
#[test]
fn panics_where_it_is_told_to() {
    if std::env::var_os("BMC_TEST_PANIC").is_some() {
        let _ = bmc::top::on_terminal(|_| -> anyhow::Result<()> { panic!("for a test") });
    }
}

#[test]
fn gives_the_terminal_back_before_it_tells_of_a_panic() {
    if !can_run_with("top-panics", &["tmux"]) {
        return;
    }
    let net = Net::new("top-panics");
    let terminal = Terminal::open(&net, 80, 24);
    let modes = terminal.prints("stty -a");
    let tests = std::env::current_exe().expect("this program has a path");
    terminal.enter(&format!(
        "clear; BMC_TEST_PANIC=1 RUST_BACKTRACE=0 {} --exact panics_where_it_is_told_to --nocapture",
        tests.display()
    ));
    let is_told = |screen: &str| screen.contains("for a test") && screen.contains(PROMPT);
    terminal.expect(|screen| is_told(screen) && screen.contains("1 failed"));
    terminal.exited_with(101);
    assert!(is_told(&terminal.screen()), "the message stays: {}", terminal.screen());
    assert_eq!(terminal.prints("stty -a"), modes);
}

#[test]
fn follows_the_size_of_the_terminal() {
    let Some(bed) = Bed::new("top-sizes") else { return };
    let terminal = Terminal::open(&bed.net, 80, 24);
    terminal.start_top();
    let process = terminal.process();
    for (columns, rows, what) in [
        ("40", "10", "hottest key"),
        ("120", "40", "memcached"),
        ("12", "3", "bmc"),
        ("1", "1", "b"),
        ("80", "24", "bmc_rx_tc"),
    ] {
        terminal.tmux(&["resize-window", "-x", columns, "-y", rows]);
        terminal.expect(|screen| screen.contains(what));
        assert_eq!(terminal.process(), process, "it ended at {columns}x{rows}");
    }
}

#[test]
fn says_so_and_exits_with_3_when_it_is_detached_meanwhile() {
    let Some(bed) = Bed::new("top-detached") else { return };
    let other = format!("{}-2", bed.net.instance());
    let second =
        |args: &[&str]| run(bed.net.server.command(BMC).args(["--instance", &other]).args(args));
    let attach = ["attach", "second", "--port", "11212", "--memory", "16M", "--no-loopback"];
    run(bed.net.server.command("ip").args(["link", "add", "second", "type", "veth"]));
    let message = format!("bmc: it was detached meanwhile: instance {other} is not attached");

    let terminal = Terminal::open(&bed.net, 100, 24);
    let modes = terminal.prints("stty -a");
    second(&attach);
    terminal.enter(&format!("{BMC} --instance {other} top --interval 3600"));
    terminal.expect(|screen| screen.contains("q quit"));
    second(&["detach"]);
    let screen = terminal.expect(|screen| screen.contains(&message));
    assert!(!screen.contains("q quit"), "{screen}");
    terminal.exited_with(3);
    assert_eq!(terminal.prints("stty -a"), modes);

    second(&attach);
    let mut piped = bed
        .net
        .server
        .command(BMC)
        .args(["--instance", &other, "top", "--interval", INTERVAL])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bmc can be run");
    let mut title = [0];
    piped.stdout.as_mut().expect("piped").read_exact(&mut title).expect("it prints");
    second(&["detach"]);
    let output = piped.wait_with_output().expect("our child");
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with(&message), "{said}");
}

#[test]
fn goes_on_when_it_is_replaced_meanwhile() {
    let Some(bed) = Bed::new("top-replaced") else { return };
    let mut command = bed.net.server.command(BMC);
    command.args(["--instance", bed.net.instance(), "top", "--interval", INTERVAL, "--json"]);
    let mut top = command.stdout(Stdio::piped()).spawn().expect("bmc can be run");
    let lines = BufReader::new(top.stdout.take().expect("piped")).lines();
    let mut objects = lines.map(|line| -> Value {
        serde_json::from_str(&line.expect("text")).expect("an object a line")
    });
    let is_hot = |object: &Value| object["keys"][0]["key"] == "hot";
    let limit = Instant::now() + PATIENCE;
    let mut expect = |what: &dyn Fn(&Value) -> bool| {
        let found = objects.by_ref().take_while(|_| Instant::now() < limit).find(what);
        assert!(found.is_some(), "not within {PATIENCE:?}");
    };
    expect(&|object| object["memory_bytes"] == 16 << 20 && is_hot(object));
    bed.bmc.run(&["attach", Net::DEVICE, "--memory", "32M", "--unknown-ttl", "60s", "--replace"]);
    expect(&|object| object["memory_bytes"] == 32 << 20 && is_hot(object));
    top.kill().expect("our child");
    top.wait().expect("our child");
}

#[test]
fn ends_with_its_terminal() {
    let Some(bed) = Bed::new("top-ends") else { return };
    let instance = bed.net.instance();
    let exit = std::env::temp_dir().join(format!("{instance}-exit"));
    // The shell passes SIGHUP on, unless it has a trap for it. Then bmc must see for itself.
    for shell in ["true", "trap : HUP"] {
        let terminal = Terminal::open(&bed.net, 80, 24);
        terminal.enter(&format!(
            "{shell}; sh -c 'trap : HUP; {BMC} --instance {instance} top --interval 3600; \
             echo $? >{}'",
            exit.display()
        ));
        terminal.expect(|screen| screen.contains("q quit"));
        drop(terminal);
        let code = || fs::read_to_string(&exit).unwrap_or_default();
        assert!(eventually(PATIENCE, || code().ends_with('\n')), "it goes on without a terminal");
        // From 128 on it is a signal, as of an abort.
        let code: u8 = code().trim().parse().expect("a code");
        assert!(code < 128, "{shell}: {code}");
        fs::remove_file(&exit).expect("it was read");
    }
}

#[test]
fn of_a_get_with_several_keys_the_last_stands_for_it() {
    if !can_run_with("of_a_get_with_several_keys_the_last_stands_for_it", &[]) {
        return;
    }
    let net = Rc::new(Net::new("top-multi"));
    let _memcached = Memcached::start(&net.server, &[]);
    let bmc = Bmc::attach(&net, &ATTACH);
    let keys: Vec<_> = (0..16).map(|key| format!("key{key}")).collect();
    let mut tcp = Tcp::connect(&net.client, Net::SERVER4);
    let mut udp = Udp::connect(&net.client, Net::SERVER4);
    for key in &keys {
        tcp.set(key, 0, b"value");
        let is_hit = || {
            let before = bmc.total("hits");
            udp.get(key);
            bmc.total("hits") > before
        };
        assert!(eventually(PATIENCE, is_hit), "{key}");
    }
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Relaxed) {
                udp.send(format!("get {}\r\n", keys.join(" ")).as_bytes());
                udp.receive(common::PATIENCE).expect("an answer");
                sleep(Duration::from_millis(1));
            }
        });
        let text = bmc.run(&["top", "--interval", "2", "--count", "1", "--json"]);
        end.store(true, Relaxed);
        let object: Value = serde_json::from_str(&text).expect("an object");
        let hottest = &object["keys"][0];
        assert_eq!(hottest["key"], "key15", "{object}");
        let asked = hottest["requests"].as_f64().expect("a number");
        let requests = object["rates"]["get_requests"].as_f64().expect("a number");
        assert!((0.2..5.0).contains(&(asked / requests)), "{asked} of {requests}: {object}");
    });
}

#[test]
fn prints_lines_and_objects_where_there_is_no_terminal() {
    let Some(bed) = Bed::new("top-lines") else { return };
    // Nothing is cached in the first second.
    assert!(eventually(PATIENCE, || bed.bmc.total("hits") > 0), "{}", bed.bmc.stats());
    let top = |args: &[&str]| bed.bmc.run(&[&["top", "--interval", "1"], args].concat());
    let number = |text: &str| text.replace(',', "").parse::<f64>().expect("a number");

    let text = top(&["--count", "3"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].contains("gets/s") && lines[0].contains("hottest key"), "{text}");
    for line in &lines[1..] {
        let cells: Vec<_> = line.split_whitespace().collect();
        assert!(number(cells[0]) > 0.0 && number(cells[1]) > 0.0, "{text}");
        assert_eq!(cells.last(), Some(&"hot"), "{text}");
    }
    assert!(!text.contains('\x1b'), "{text}");

    let text = top(&["--count", "2", "--json"]);
    let objects: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(objects.len(), 2, "{text}");
    for object in &objects {
        let rates = &object["rates"];
        assert!(object["seconds"].as_f64().is_some_and(|seconds| seconds > 0.9), "{object}");
        for rate in ["get_requests", "hits", "misses", "invalidations"] {
            assert!(rates[rate].as_f64().is_some_and(|rate| rate > 0.0), "{rate}: {object}");
        }
        assert!(rates["passes"]["command"].as_f64().is_some_and(|rate| rate > 0.0), "{object}");
        let hot = &object["keys"][0];
        assert_eq!((&hot["key"], &hot["bytes"]), (&"hot".into(), &5.into()), "{object}");
        // It is asked for three times in four, about.
        let share = hot["share"].as_f64().expect("a number");
        assert!((45.0..95.0).contains(&share), "{object}");
        let asked = hot["requests"].as_f64().expect("a number") / share * 100.0;
        let requests = rates["get_requests"].as_f64().expect("a number");
        assert!((0.2..5.0).contains(&(asked / requests)), "{asked} of {requests}: {object}");
        let cpus = object["per_cpu"].as_array().expect("a list");
        let sum: f64 = cpus.iter().filter_map(|cpu| cpu["get_requests"].as_f64()).sum();
        assert!((sum - requests).abs() < 1.0, "{object}");
        assert_eq!(object["interfaces"][0]["mode"], "native");
        assert_eq!(object["programs"][0]["name"], "bmc_rx");
    }
}
