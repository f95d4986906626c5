// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The program under test, attached to the server's end of a network.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::rc::Rc;
use std::thread;

use serde_json::Value;

use super::Net;
use super::PATIENCE;
use super::eventually;
use super::run;

/// Counters of `bmc stats`, not split by reasons, that ordinary traffic moves.
pub const COUNTERS: [&str; 9] = [
    "get_requests",
    "get_keys",
    "hits",
    "misses",
    "hit_mispredictions",
    "get_replies",
    "fills",
    "write_requests",
    "invalidations",
];

/// An attached instance; detached on drop, which must leave nothing.
#[derive(Debug)]
pub struct Bmc {
    net: Rc<Net>,
}

impl Bmc {
    /// Attaches to the server's device.
    pub fn attach(net: &Rc<Net>, args: &[&str]) -> Self {
        Self::attach_to(net, Net::DEVICE, args)
    }

    /// The same for another device.
    pub fn attach_to(net: &Rc<Net>, device: &str, args: &[&str]) -> Self {
        let bmc = Self { net: Rc::clone(net) };
        bmc.run(&[&["attach", device], args].concat());
        bmc
    }

    /// The instance's name.
    pub fn instance(&self) -> &str {
        self.net.instance()
    }

    /// Runs one of its commands, which must succeed, and returns its output.
    pub fn run(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    /// Runs one of its commands.
    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("bmc can be run")
    }

    /// `bmc stats --json`.
    pub fn stats(&self) -> Value {
        self.json("stats")
    }

    /// `bmc status --json`.
    pub fn status(&self) -> Value {
        self.json("status")
    }

    fn json(&self, noun: &str) -> Value {
        let text = self.run(&[noun, "--json"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// One of the totals; `passes.size` is one of the passes.
    pub fn total(&self, name: &str) -> u64 {
        total(&self.stats(), name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.net.server.command(env!("CARGO_BIN_EXE_bmc"));
        command.args(["--instance", self.net.instance()]).args(args);
        command
    }
}

impl Drop for Bmc {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.output(&["detach"]);
            let _ = fs::remove_dir_all(pins(self.net.instance()));
            return;
        }
        let programs = programs(&pins(self.net.instance()));
        assert!(!programs.is_empty(), "what is attached has programs");
        self.run(&["detach"]);
        let pins = pins(self.net.instance());
        assert!(!pins.exists(), "detach leaves {}", pins.display());
        // The kernel takes its time, but it keeps none that is still attached.
        let gone = || !programs.iter().any(|&id| is_loaded(id));
        assert!(eventually(PATIENCE, gone), "detach leaves a program of {programs:?}");
    }
}

/// One of the totals of `bmc stats --json`; `passes.size` is one of the passes.
pub fn total(stats: &Value, name: &str) -> u64 {
    let path = format!("/totals/{}", name.replace('.', "/"));
    stats.pointer(&path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {name} in {stats}"))
}

/// The ids of the programs that are pinned in a directory.
fn programs(directory: &Path) -> Vec<u64> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let show = Command::new("bpftool")
            .args(["-j", "prog", "show", "pinned"])
            .arg(entry.path())
            .output();
        let program =
            show.ok().and_then(|shown| serde_json::from_slice::<Value>(&shown.stdout).ok());
        ids.extend(program.and_then(|program| program["id"].as_u64()));
    }
    ids
}

fn is_loaded(program: u64) -> bool {
    let show = Command::new("bpftool").args(["prog", "show", "id", &program.to_string()]).output();
    show.is_ok_and(|shown| shown.status.success())
}

/// Where instances are pinned.
pub const PINS: &str = "/sys/fs/bpf/bmc";

/// Where one of them is pinned.
pub fn pins(instance: &str) -> PathBuf {
    Path::new(PINS).join(instance)
}
