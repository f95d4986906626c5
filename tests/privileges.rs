// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What bmc does with few privileges, on a bpf file system of its own. Needs root
//! to take them away.

mod common;

use std::io::BufRead as _;
use std::io::BufReader;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use bmc::kernel::end_with_us;
use serde_json::Value;

use common::Net;
use common::can_run;
use common::run;

const DONE: i32 = 0;
const FAILED: i32 = 1;

/// What README.md says is enough.
const ENOUGH: [&str; 3] = ["bpf", "net_admin", "perfmon"];

/// A network, a bpf file system that only its server has, and bmc where anybody
/// may run it.
struct Bed {
    net: Net,
    /// Keeps the mounts.
    keeper: Child,
}

impl Bed {
    fn new(test: &str) -> Self {
        let net = Net::new(test);
        let mut command = net.server.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]).arg(
            "mount -t tmpfs -o mode=755 tmpfs /mnt
             install -m 755 \"$0\" /mnt/bmc
             mount -t bpf -o mode=0700 bpf /sys/fs/bpf
             echo ready
             exec sleep infinity",
        );
        let mut keeper = end_with_us(command.arg(env!("CARGO_BIN_EXE_bmc")))
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare can be run");
        let mut ready = String::new();
        let stdout = keeper.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut ready).expect("text");
        assert_eq!(ready, "ready\n");
        Self { net, keeper }
    }

    fn root(&self, program: &str, args: &[&str]) -> String {
        run(self.command(program).args(args))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.net.server.command("nsenter");
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.keeper.id());
        command.args([&mounts, "--", program]);
        command
    }

    /// Runs bmc as another user with these capabilities and no more.
    fn bmc(&self, capabilities: &[&str], args: &[&str], tc: &str) -> Output {
        let set = format!("-all,+{}", capabilities.join(",+"));
        self.command("setpriv")
            .env("BMC_TC", tc)
            .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"])
            .args(["--inh-caps", &set, "--ambient-caps", &set, "--bounding-set", &set])
            .arg("/mnt/bmc")
            .args(args)
            .output()
            .expect("setpriv can be run")
    }

    #[track_caller]
    fn expect(&self, code: i32, capabilities: &[&str], args: &[&str]) -> String {
        let output = self.bmc(capabilities, args, "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{capabilities:?} {args:?}: {said}");
        said
    }

    /// The remedy of the blocker that says this, if doctor finds one.
    #[track_caller]
    fn blocker(&self, what: &str) -> Option<String> {
        let output = self.bmc(&ENOUGH, &["doctor", Net::DEVICE, "--json"], "");
        let said: Value = serde_json::from_slice(&output.stdout).expect("an object");
        let findings = said["findings"].as_array().expect("a list");
        let says = |finding: &&Value| finding["what"].as_str().is_some_and(|s| s.contains(what));
        let found = findings.iter().find(says)?;
        assert_eq!((&found["level"], output.status.code()), (&"blocker".into(), Some(FAILED)));
        found["remedy"].as_str().map(String::from)
    }

    /// By the commands of README.md.
    fn let_nobody_in(&self) {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(readme).expect("it is there");
        let section = readme.split("## Without root\n").nth(1).expect("has the section");
        let section = section.split("\n## ").next().expect("has an end");
        let commands: Vec<_> =
            section.lines().filter(|line| line.starts_with("    ")).map(str::trim).collect();
        assert_eq!(commands.len(), 2, "{commands:?}");
        self.root("sh", &["-ec", &commands.join("\n").replace("USER", "nobody")]);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Its mounts end with it, and what is pinned there.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[test]
fn attaching_looking_and_detaching_take_three_capabilities_and_no_root() {
    if !can_run("attaching_looking_and_detaching_take_three_capabilities_and_no_root") {
        return;
    }
    let bed = Bed::new("few");
    bed.let_nobody_in();
    for mode in ["native", "generic", "tc"] {
        for tc in ["", "clsact"] {
            let attach = ["attach", Net::DEVICE, "--memory", "16M", "--mode", mode];
            let commands = [
                &attach[..],
                &[&attach[..], &["--replace"]].concat(),
                &["status"],
                &["stats", "--format", "prometheus"],
                &["entries"],
                &["top", "--count", "1", "--interval", "0.1"],
                &["doctor", Net::DEVICE],
                &["flush"],
                &["detach"],
            ];
            for command in commands {
                let output = bed.bmc(&ENOUGH, command, tc);
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{mode} {tc} {command:?}: {said}");
                assert_eq!(said, "", "{mode} {tc} {command:?}");
            }
        }
    }
}

#[test]
fn a_capability_that_is_missing_is_named() {
    if !can_run("a_capability_that_is_missing_is_named") {
        return;
    }
    let bed = Bed::new("missing");
    bed.let_nobody_in();
    let attach = ["attach", Net::DEVICE, "--memory", "16M"];
    for without in ENOUGH {
        let others: Vec<_> = ENOUGH.into_iter().filter(|name| *name != without).collect();
        let name = format!("CAP_{}", without.to_uppercase());
        let said = bed.expect(FAILED, &others, &attach);
        assert_eq!(said, format!("bmc: no permission: {name} missing (run as root)\n"));
    }
    // Whoever may not look is told the same, and no other state than it has.
    bed.expect(DONE, &ENOUGH, &attach);
    for noun in [&["status"][..], &["stats", "--format", "prometheus"]] {
        let said = bed.expect(FAILED, &["bpf", "perfmon"], noun);
        assert!(said.ends_with("(CAP_NET_ADMIN missing: run as root)\n"), "{said}");
    }
    bed.root("chmod", &["700", "/sys/fs/bpf"]);
    let said = bed.expect(FAILED, &["net_admin"], &["stats"]);
    assert!(said.ends_with("(CAP_BPF, CAP_PERFMON missing: run as root)\n"), "{said}");
}

#[test]
fn what_is_not_a_capability_is_told_from_one() {
    if !can_run("what_is_not_a_capability_is_told_from_one") {
        return;
    }
    let bed = Bed::new("pins");
    let attach = ["attach", Net::DEVICE, "--memory", "16M"];
    let hint = "(the capabilities are there; is /sys/fs/bpf/bmc this user's?)\n";
    for command in [&attach[..], &["stats"]] {
        let said = bed.expect(FAILED, &ENOUGH, command);
        assert!(said.ends_with(hint), "{said}");
    }
    let no_pins = "but not the directory for bmc's pins";
    let remedy = bed.blocker(no_pins).expect("doctor and attach are of one mind");
    // Another's is no better than none.
    bed.root("sh", &["-ec", &remedy.replace("-o 65534", "-o root")]);
    assert!(bed.blocker(no_pins).is_some());
    bed.root("rmdir", &["/sys/fs/bpf/bmc"]);
    bed.root("sh", &["-ec", &remedy]);
    assert_eq!(bed.blocker(no_pins), None);
    bed.expect(DONE, &ENOUGH, &attach);
    bed.expect(DONE, &ENOUGH, &["detach"]);
    // As if it had never been mounted.
    bed.root("mount", &["--bind", "/sys/fs", "/sys/fs/bpf"]);
    let said = bed.expect(FAILED, &ENOUGH, &[&attach[..], &["--foreground"]].concat());
    assert!(said.contains("CAP_SYS_ADMIN to mount it is missing (as root: mount -t"), "{said}");
    let remedy = bed.blocker("CAP_SYS_ADMIN to mount it is missing");
    assert_eq!(remedy.as_deref(), Some("mount -t bpf bpf /sys/fs/bpf   # as root"));
}
