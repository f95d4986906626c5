// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc doctor` on real network namespaces, interfaces and memcacheds. Root only;
//! what it says of a host that this one is not, is said of files that are mounted
//! over the kernel's.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]

mod common;

use std::fs;
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use bmc::instance::Dir;
use bmc::instance::set_idle;
use bmc::kernel;
use bmc::skel::BmcSkelBuilder;
use bmc::system;
use libbpf_rs::Xdp;
use libbpf_rs::XdpFlags;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;
use serde_json::Value;

use common::Copy;
use common::Namespace;
use common::Net;
use common::PATIENCE;
use common::Process;
use common::TLS;
use common::Tcp;
use common::Udp;
use common::can_run;
use common::eventually;
use common::run;
use common::skipped;

const BMC: &str = env!("CARGO_BIN_EXE_bmc");
const DONE: i32 = 0;
const FAILED: i32 = 1;

/// What one run said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    json: Value,
    errors: String,
}

impl Said {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let json = serde_json::from_slice(&output.stdout);
        let json = json.unwrap_or_else(|error| panic!("{error}: {errors}"));
        Self { code: output.status.code(), json, errors }
    }

    fn findings(&self) -> &[Value] {
        self.json["findings"].as_array().expect("a list")
    }

    /// The first finding that says this.
    fn find(&self, what: &str) -> Option<&Value> {
        let says = |finding: &&Value| text(finding, "what").contains(what);
        self.findings().iter().find(says)
    }

    /// Checks a finding; returns its remedy, which is "" for none.
    #[track_caller]
    fn expect(&self, level: &str, about: &str, what: &str, remedy: &str) -> String {
        let found = self.find(what).unwrap_or_else(|| panic!("no {what:?} in {:#}", self.json));
        assert_eq!(text(found, "level"), level, "{found}");
        assert!(text(found, "about").contains(about), "{found}");
        assert_ne!(text(found, "evidence"), "", "{found}");
        assert_eq!(found["remedy"].is_null(), level == "ok", "{found}");
        let mends = found["remedy"].as_str().unwrap_or_default();
        assert!(mends.contains(remedy), "{found}");
        mends.into()
    }

    /// Checks that the exit code goes by the blockers.
    #[track_caller]
    fn assert_code(&self) {
        let is_blocker = |finding: &&Value| finding["level"] == "blocker";
        let blockers = self.findings().iter().filter(is_blocker).count();
        let expected = if blockers == 0 { DONE } else { FAILED };
        assert_eq!(self.code, Some(expected), "{self:?}");
        assert_eq!(self.errors.contains("what mends"), blockers > 0, "{self:?}");
    }
}

fn text<'a>(finding: &'a Value, name: &str) -> &'a str {
    finding[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {finding}"))
}

/// A network, with a doctor for its server.
struct Bed {
    net: Net,
}

impl Bed {
    fn new(test: &str) -> Self {
        Self { net: Net::new(test) }
    }

    fn command(&self, namespace: &Namespace, args: &[&str]) -> Command {
        let mut command = namespace.command(BMC);
        command.args(["--instance", self.net.instance()]).args(args);
        command
    }

    #[track_caller]
    fn doctor(&self, args: &[&str]) -> Said {
        self.doctor_in(&self.net.server, args)
    }

    #[track_caller]
    fn doctor_in(&self, namespace: &Namespace, args: &[&str]) -> Said {
        let said = Said::of(&mut self.command(namespace, &[&["doctor", "--json"], args].concat()));
        said.assert_code();
        said
    }

    fn bmc(&self, args: &[&str]) -> Output {
        self.command(&self.net.server, args).output().expect("bmc can be run")
    }

    /// Runs commands, of which bmc may be one.
    fn sh(&self, script: &str) -> String {
        let ours = Path::new(BMC).parent().expect("it is in a directory").display();
        let path = format!("{ours}:{}", std::env::var("PATH").unwrap_or_default());
        run(self.net.server.command("sh").env("PATH", path).args(["-ec", script]))
    }

    #[track_caller]
    fn attach(&self, args: &[&str]) {
        let attach = self.bmc(&[&["attach", "--memory", "16M"], args].concat());
        assert!(attach.status.success(), "{}", String::from_utf8_lossy(&attach.stderr));
    }

    /// Whether Linux tells what drivers can.
    fn tells_features(&self) -> bool {
        let eth0 = || kernel::xdp(system::index_of(Net::DEVICE).expect("there is one"));
        self.net.server.within(eth0).expect("it has such an interface").features != 0
    }

    /// Whether the kernel can make what this makes.
    fn can(&self, script: &str) -> bool {
        let output = self.net.server.command("sh").args(["-ec", script]).output();
        let is_made = output.expect("a shell").status.success();
        if !is_made {
            skipped("doctor, in part", &format!("the kernel cannot {script}"));
        }
        is_made
    }

    /// What is said of an interface, below one that bmc is attached to, is so.
    #[track_caller]
    fn assert_in_the_way(&self, name: &str) {
        let other = format!("{}-other", self.net.instance());
        let mut command = self.net.server.command(BMC);
        command.args(["--instance", &other, "attach", name, "--memory", "16M"]);
        let output = command.output().expect("bmc can be run");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILED), "{errors}");
        assert!(errors.contains("another XDP program"), "{errors}");
    }

    /// What is said of an interface; once its remedy was run, no longer.
    #[track_caller]
    fn mends(&self, name: &str, level: &str, what: &str, remedy: &str) {
        self.mends_of(&[name], name, level, what, remedy);
    }

    /// The same of anything, when no interface is named.
    #[track_caller]
    fn mends_all(&self, level: &str, what: &str, remedy: &str) {
        self.mends_of(&[], "", level, what, remedy);
    }

    #[track_caller]
    fn mends_of(&self, args: &[&str], about: &str, level: &str, what: &str, remedy: &str) {
        let remedy = self.doctor(args).expect(level, about, what, remedy);
        // The tests' share of memory.
        self.sh(&remedy.replace(" --replace ", " --replace --memory 16M "));
        let said = self.doctor(args);
        assert!(said.find(what).is_none(), "{remedy} mends nothing: {said:?}");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.bmc(&["detach"]);
    }
}

/// Starts a process in a namespace.
fn start(namespace: &Namespace, command: &[&str]) -> Process {
    let mut setpriv = namespace.command("setpriv");
    setpriv.args(["--pdeathsig", "KILL"]).args(command).stdin(Stdio::null());
    Process(setpriv.spawn().expect("setpriv can be run"))
}

/// A memcached as it is, with these arguments; waits until the doctor sees it.
fn memcached(bed: &Bed, args: &[&str]) -> Process {
    let process = start(&bed.net.server, &[&["memcached", "-u", "root"], args].concat());
    let pid = process.0.id();
    let sees = || {
        let said = bed.doctor(&["eth0"]);
        let list = said.json["memcacheds"].as_array().expect("a list").clone();
        list.iter().any(|memcached| memcached["pid"] == pid)
    };
    assert!(eventually(PATIENCE, sees), "memcached {args:?} is not found");
    process
}

#[test]
fn a_sound_server_has_no_blocker_and_stays_as_it_is() {
    if !can_run("a_sound_server_has_no_blocker_and_stays_as_it_is") {
        return;
    }
    let bed = Bed::new("doctor-sound");
    let args = ["-p", "11211", "-U", "11211", "-t", "1"];
    let _memcached = memcached(&bed, &args);
    let state = || bed.sh("ip -d link; tc qdisc; bpftool net; grep -v nsfs /proc/mounts");
    let before = state();
    let said = bed.doctor(&["eth0"]);
    assert_eq!(said.code, Some(DONE), "{said:?}");
    assert_eq!(said.errors, "");
    for (about, what) in [
        ("host", "the kernel is new enough"),
        ("host", "may load and attach BPF programs"),
        ("host", "bpffs is mounted"),
        ("host", "has the 256M that bmc attach locks"),
        ("host", "the kernel takes bmc's programs"),
        ("host", "the kernel tells when memcached is gone"),
        ("eth0", "is up"),
        ("eth0", "its driver has native XDP"),
        ("eth0", "its peer takes what XDP sends"),
        ("lo", "will be watched for writes"),
        ("memcached 0.0.0.0:11211", "bmc can serve it"),
    ] {
        said.expect("ok", about, what, "");
    }
    said.expect("note", "memcached", "was not asked for anything yet", "bmc bench");
    assert_eq!(said.json["version"], env!("CARGO_PKG_VERSION"));
    let eth0 = &said.json["interfaces"][0];
    for (name, value) in [
        ("name", Value::from("eth0")),
        ("up", true.into()),
        ("carrier", true.into()),
        ("mtu", 1500.into()),
        ("driver", "veth".into()),
        ("kind", "veth".into()),
        ("lro", false.into()),
        ("xdp_programs", Value::Array(Vec::new())),
        ("tc_programs", Value::Array(Vec::new())),
        ("attached", Value::Null),
    ] {
        assert_eq!(eth0[name], value, "{name}");
    }
    assert_eq!(eth0["xdp_features"][0], "basic");
    let memcached = &said.json["memcacheds"][0];
    for (name, value) in [
        ("threads", Value::from(1)),
        ("tls", false.into()),
        ("password", false.into()),
        ("external_storage", false.into()),
        ("servable", true.into()),
        ("unix", Value::Array(Vec::new())),
        ("udp", vec!["0.0.0.0:11211", "[::]:11211"].into()),
    ] {
        assert_eq!(memcached[name], value, "{name}");
    }
    assert!(memcached["version"].as_str().is_some_and(|v| v.contains('.')), "{memcached}");
    assert_eq!(state(), before);
    assert!(!Path::new("/sys/fs/bpf/bmc").join(bed.net.instance()).exists());
    // Without names, it is about the same.
    let all = bed.doctor(&[]);
    assert_eq!(all.json["interfaces"].as_array().map(Vec::len), Some(1));
    assert_eq!(all.json["interfaces"][0]["name"], "eth0");
}

#[test]
fn what_is_wrong_with_an_interface_is_mended_by_its_remedy() {
    if !can_run("what_is_wrong_with_an_interface_is_mended_by_its_remedy") {
        return;
    }
    let bed = Bed::new("doctor-interface");
    bed.sh("ip link add v0 type veth peer name v1; ip link set v1 up");
    let pass = bed.net.server.attach_pass("v1");
    bed.mends("v0", "warning", "is down", "ip link set dev v0 up");
    bed.sh("ip link set v1 down");
    bed.doctor(&["v0"]).expect("warning", "v0", "has no carrier", "ip link show dev v0");
    bed.sh("ip link set v1 up");

    bed.doctor(&["v0"]).expect("ok", "v0", "its peer takes what XDP sends", "");
    drop(pass);
    bed.sh("ip link set dev v0 mtu 9000");
    let page = "may not fit into a page";
    let remedy = bed.doctor(&["v0"]).expect("warning", "v0", page, "attach v0 --mode tc   # ");
    bed.sh(remedy.rsplit("network have it: ").next().expect("the other remedy"));
    assert!(bed.doctor(&["v0"]).find(page).is_none());

    let queues = "has fewer queues than it could have";
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
        bed.mends("v0", "note", queues, "ethtool -L v0 rx");
    }
    bed.doctor(&["v0"]).expect("ok", "v0", "has the queues that it can have", "");
}

#[test]
fn a_veth_that_loses_replies_blocks_and_one_that_attach_copes_with_does_not() {
    if !can_run("a_veth_that_loses_replies_blocks_and_one_that_attach_copes_with_does_not") {
        return;
    }
    let bed = Bed::new("doctor-veth");
    bed.sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up");
    let tc = "its peer drops what XDP sends: bmc answers as tc";
    bed.doctor(&["v0"]).expect("ok", "v0", tc, "");
    bed.attach(&["v0"]);
    let said = bed.doctor(&["v0"]);
    said.expect("ok", "v0", tc, "");
    said.expect("ok", "v0", "bmc is attached (tc)", "");

    let pass = bed.net.server.attach_pass("v1");
    bed.attach(&["v0", "--replace"]);
    let said = bed.doctor(&["v0"]);
    said.expect("ok", "v0", "its peer takes what XDP sends", "");
    said.expect("ok", "v0", "bmc is attached (native)", "");
    drop(pass);
    let lost = "its peer drops what XDP sends: clients get no replies";
    let said = bed.doctor(&["v0"]);
    let remedy = said.expect("blocker", "v0", lost, " attach v0 --replace --mode tc   # ");
    assert_eq!(said.code, Some(FAILED));
    bed.sh(&remedy);
    assert_eq!(bed.doctor(&["v0"]).code, Some(DONE));
}

/// What only the kernels of distributions have; scripts/test-kernels.sh runs it on
/// some of them.
#[test]
fn a_real_bond_with_a_part_and_a_real_vlan_are_seen_as_what_they_are() {
    if !can_run("a_real_bond_with_a_part_and_a_real_vlan_are_seen_as_what_they_are") {
        return;
    }
    let bed = Bed::new("doctor-bond");
    bed.sh("ip link add v0 type veth peer name v1; ip link set v1 up");
    let _pass = bed.net.server.attach_pass("v1");
    if bed.can("ip link add v0.5 link v0 type vlan id 5") {
        bed.sh("ip link set v0 up; ip link set v0.5 up");
        let said = bed.doctor(&["v0.5"]);
        said.expect("note", "v0.5", "is a vlan on v0", "attach v0   # without v0.5");
        if bed.tells_features() {
            said.expect("note", "v0.5", "its driver has no native XDP", "attach v0   # which");
        }
        assert_eq!(said.json["interfaces"][0]["lower"], "v0");
        let said = bed.doctor(&["v0"]);
        assert!(said.find("is a v").is_none(), "{said:?}");
        assert_eq!(said.json["interfaces"][0]["lower"], Value::Null, "its peer is not below it");
        bed.sh("ip link delete v0.5");
    }
    if bed.can("ip link add bond0 type bond mode active-backup") {
        bed.sh("ip link set v0 down; ip link set v0 master bond0; ip link set bond0 up");
        let said = bed.doctor(&["v0"]);
        said.expect("note", "v0", "is part of the bond bond0: attach", "attach bond0   # without");
        assert_eq!(said.json["interfaces"][0]["master"], "bond0");
        let said = bed.doctor(&["bond0"]);
        said.expect("note", "bond0", "is made of v0", "attach bond0   # without v0");
        assert_eq!(said.json["interfaces"][0]["members"][0], "v0");
        // Where Linux does not tell, a veth is attached as tc.
        let is_tried = said.find("its driver has native XDP").is_some();
        let level = if is_tried { "blocker" } else { "warning" };
        let both = "is part of the bond bond0, which is named too";
        bed.doctor(&["bond0", "v0"]).expect(level, "v0", both, "attach bond0   # without v0");
        bed.attach(&["bond0"]);
        let mode = bed.doctor(&["bond0"]).json["interfaces"][0]["attached"].clone();
        if is_tried && mode == "native" {
            bed.assert_in_the_way("v0");
            let above = "cannot have XDP while bond0, which is above it, has an XDP program";
            let said = bed.doctor(&["v0"]);
            said.expect("blocker", "v0", above, "doctor bond0   # instead");
        }
        let said = bed.doctor(&[]);
        assert!(said.find("cannot have XDP").is_none(), "nobody means it: {said:?}");
    }
}

#[test]
fn what_an_interface_is_a_part_of_is_told() {
    if !can_run("what_an_interface_is_a_part_of_is_told") {
        return;
    }
    let bed = Bed::new("doctor-part");
    bed.sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up");
    bed.sh("ip link add br0 type bridge; ip link set v0 master br0; ip link set br0 up");
    let said = bed.doctor(&["v0"]);
    said.expect("note", "v0", "is part of the bridge br0", "attach br0 ");
    assert_eq!(said.json["interfaces"][0]["master"], "br0");
    let said = bed.doctor(&["br0"]);
    said.expect("note", "br0", "is made of v0", "attach br0 ");
    if bed.tells_features() {
        said.expect("note", "br0", "its driver has no native XDP", "--mode tc");
    }
    let said = bed.doctor(&["br0", "v0"]);
    said.expect("warning", "v0", "is part of the bridge br0, which is named too", "attach br0 ");
    // Nobody has named both.
    let said = bed.doctor(&[]);
    assert_eq!(said.json["interfaces"].as_array().map(Vec::len), Some(4));
    assert!(said.find("which is named too").is_none(), "{said:?}");

    // The kernel wants no XDP below another's.
    let _pass = bed.net.server.attach_pass("v1");
    if bed.tells_features() {
        bed.attach(&["br0", "--mode", "generic"]);
        let above = "cannot have XDP while br0, which is above it, has an XDP program";
        bed.doctor(&["v0"]).expect("blocker", "v0", above, "doctor br0   # instead");
        assert!(bed.doctor(&[]).find(above).is_none(), "nobody means it");
        bed.assert_in_the_way("v0");
        bed.bmc(&["detach"]);
    }

    bed.sh("ip link set v0 nomaster");
    if bed.can("ip link add m0 link v0 type macvlan; ip link set m0 up") {
        let said = bed.doctor(&["m0"]);
        said.expect("note", "m0", "is a macvlan on v0", "attach v0 ");
        assert_eq!(said.json["interfaces"][0]["lower"], "v0");
    }
}

#[test]
fn an_interface_that_is_not_there_blocks() {
    if !can_run("an_interface_that_is_not_there_blocks") {
        return;
    }
    let bed = Bed::new("doctor-missing");
    let said = bed.doctor(&["eth7"]);
    said.expect("blocker", "eth7", "no such interface: eth7 (there are: eth0)", "ip link");
    assert_eq!(said.code, Some(FAILED));
    // By any of its names.
    bed.sh("ip link property add dev eth0 altname outside");
    let said = bed.doctor(&["outside"]);
    said.expect("ok", "eth0", "is up", "");
    assert_eq!(said.json["interfaces"][0]["name"], "eth0");
    bed.sh("ip link set eth0 down");
    let none = "there is no network interface that is up but lo";
    bed.doctor(&[]).expect("warning", "interfaces", none, "ip link set dev");
    bed.sh("ip link delete eth0");
    let said = bed.doctor(&["eth7"]);
    said.expect("blocker", "eth7", "(there is none but lo)", "nsenter");
}

#[test]
fn what_else_clients_could_come_in_by_is_told() {
    if !can_run("what_else_clients_could_come_in_by_is_told") {
        return;
    }
    let bed = Bed::new("doctor-others");
    bed.sh("ip link add v0 type veth peer name v1; ip link set v0 up");
    let unseen = "what is written to memcached by v0 is not seen";
    {
        let _memcached = memcached(&bed, &["-U", "11211", "-l", "10.11.12.1"]);
        assert!(bed.doctor(&["eth0"]).find(unseen).is_none());
    }
    let _memcached = memcached(&bed, &["-U", "11211"]);
    assert!(bed.doctor(&[]).find(unseen).is_none());
    bed.attach(&["eth0"]);
    let remedy = "attach eth0 v0 --replace   # if memcached's clients come in there too; with the";
    let remedy = bed.doctor(&["eth0"]).expect("note", "interfaces", unseen, remedy);
    bed.sh(&remedy.replace("   #", " --memory 16M   #"));
    assert!(bed.doctor(&["eth0"]).find(unseen).is_none());
}

#[test]
fn programs_of_others_are_named() {
    if !can_run("programs_of_others_are_named") {
        return;
    }
    let bed = Bed::new("doctor-foreign");
    let conflict = "already has the XDP program bmc_rx (id ";
    // The client's is held by a link.
    let said = bed.doctor_in(&bed.net.client, &["eth0"]);
    let remedy = said.expect("blocker", "eth0", conflict, "bpftool link detach id ");
    run(bed.net.client.command("sh").args(["-ec", &remedy]));
    assert!(bed.doctor_in(&bed.net.client, &["eth0"]).find(conflict).is_none());

    let xdp = |flags| {
        bed.net.server.within(|| {
            let mut object = MaybeUninit::uninit();
            let skel = BmcSkelBuilder::default().open(&mut object).expect("a sound object");
            let skel = skel.load().expect("the programs load");
            let index = system::index_of("eth0").expect("there is one");
            let xdp = Xdp::new(skel.progs.bmc_rx.as_fd());
            xdp.attach(index, flags).expect("a veth has XDP");
            [kernel::LinkType::TcxIngress, kernel::LinkType::TcxEgress].map(|side| {
                let link = kernel::link_create(skel.progs.bmc_rx_tc.as_fd(), index, side);
                link.expect("the kernel has tcx")
            })
        })
    };
    drop(xdp(XdpFlags::SKB_MODE));
    bed.mends("eth0", "blocker", conflict, "ip link set dev eth0 xdpgeneric off");
    let links = xdp(XdpFlags::DRV_MODE);
    let said = bed.doctor(&["eth0"]);
    let (first, last) = ("it runs before bmc there: unless it", "what bmc answers does not get");
    let says = |said: &Said, level: &str, at: &str, so: &str, remedy: &str| {
        said.expect(level, "eth0", &format!(" at {at}: {so}"), remedy);
    };
    says(&said, "note", "ingress", last, "bpftool net show dev eth0");
    says(&said, "warning", "egress", first, "stats   # get_replies stays 0");
    let sides: Vec<_> =
        said.json["interfaces"][0]["tc_programs"].as_array().expect("a list").clone();
    let sides: Vec<_> = sides.iter().map(|program| &program["side"]).collect();
    assert_eq!(sides, ["ingress", "egress"]);
    assert_eq!(said.json["interfaces"][0]["xdp_programs"][0]["name"], "bmc_rx");
    // What is said of both is so.
    let failed = bed.bmc(&["attach", "eth0", "--memory", "16M"]);
    assert_eq!(failed.status.code(), Some(FAILED));
    assert!(String::from_utf8_lossy(&failed.stderr).contains(conflict));
    bed.mends("eth0", "blocker", conflict, "ip link set dev eth0 xdpdrv off");
    // Where bmc is attached, it is the order that counts.
    bed.attach(&["eth0"]);
    let said = bed.doctor(&["eth0"]);
    says(&said, "note", "ingress", last, "bpftool");
    says(&said, "warning", "egress", first, "stats");
    drop(links);
    bed.bmc(&["detach"]);
    bed.attach(&["eth0", "--mode", "tc"]);
    let links = xdp(XdpFlags::DRV_MODE);
    let said = bed.doctor(&["eth0"]);
    says(&said, "warning", "ingress", first, "stats");
    says(&said, "note", "egress", last, "bpftool");
    // As tc it works beside the other's XDP.
    bed.mends("eth0", "note", conflict, "ip link set dev eth0 xdpdrv off");
    bed.bmc(&["detach"]);
    drop(links);

    // A filter, as there were before tcx.
    let pin = Path::new(system::BPFFS).join(bed.net.instance());
    let mut object = MaybeUninit::uninit();
    let skel = BmcSkelBuilder::default().open(&mut object).expect("a sound object");
    let skel = skel.load().expect("the programs load");
    kernel::pin(skel.progs.bmc_tx.as_fd(), &pin).expect("bpffs");
    let filter = format!("bpf direct-action pinned {}", pin.display());
    bed.sh(&format!("tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress {filter}"));
    fs::remove_file(pin).expect("our pin");
    let says = "has the filter bmc_tx (id ";
    bed.doctor(&["eth0"]).expect("note", "eth0", says, "bpftool net show dev eth0");
}

#[test]
fn instances_of_bmc_are_known() {
    if !can_run("instances_of_bmc_are_known") {
        return;
    }
    let bed = Bed::new("doctor-instance");
    bed.attach(&["eth0"]);
    let said = bed.doctor(&["eth0"]);
    said.expect("ok", "eth0", "bmc is attached (native)", "");
    said.expect("ok", "lo", "is watched for writes", "");
    assert_eq!(said.json["interfaces"][0]["attached"], "native");
    assert_eq!(said.json["interfaces"][0]["tc_programs"], Value::Array(Vec::new()));
    assert!(said.find("already has").is_none(), "{said:?}");

    // Whoever asks for another instance is told of this one; one that is attached
    // elsewhere cannot come here.
    let name = format!("{}-other", bed.net.instance());
    let other = |args: &[&str]| {
        let mut command = bed.net.server.command(BMC);
        command.args(["--instance", &name]).args(args);
        command
    };
    let has = format!("already has bmc's instance {}", bed.net.instance());
    let ours = format!("bmc --instance {}", bed.net.instance());
    bed.sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up");
    let memcached = memcached(&bed, &["-U", "11211"]);
    let said = Said::of(&mut other(&["doctor", "eth0", "--json"]));
    said.expect("note", "eth0", &has, &format!("{ours} doctor eth0"));
    said.expect("note", "memcached", "counts only what bmc", &format!("{ours} stats"));
    assert!(said.find("is not seen").is_none(), "{said:?}");
    said.assert_code();
    drop(memcached);
    run(&mut other(&["attach", "v0", "--memory", "16M"]));
    let said = Said::of(&mut other(&["doctor", "eth0", "--json"]));
    said.expect("blocker", "eth0", &has, &format!("{ours} detach eth0"));
    let said = Said::of(&mut other(&["doctor", "--json"]));
    said.expect("note", "eth0", &has, &format!("{ours} doctor eth0"));
    run(&mut other(&["detach"]));
    // And from another namespace it cannot be changed.
    let said = bed.doctor_in(&bed.net.client, &["eth0"]);
    said.expect("blocker", "interfaces", "is attached in another network namespace", "detach");

    // An interrupted attach leaves it idle.
    let dir = Dir::of(bed.net.instance());
    set_idle(&dir.map("global").expect("a map")).expect("it can be written");
    bed.mends_all("warning", "bmc idles: an attach or detach was interrupted", " flush");

    bed.attach(&["eth0", "v0", "--replace", "--no-loopback"]);
    let unwatched = "is not watched: what is written on this machine is not seen";
    bed.mends_all("note", unwatched, "attach eth0 v0 --replace   # without --no-loopback");

    let hook = dir.hooks().expect("pins").into_iter().find(|hook| hook.device.first_name == "eth0");
    let (link, _) = hook.expect("it is attached").link(&dir.links()).expect("a link");
    kernel::link_detach(link.as_fd()).expect("it can be detached");
    let again = format!("{ours} attach eth0 v0 --replace   # with the options");
    bed.mends("eth0", "warning", "bmc is attached, but incomplete", &again);
    bed.doctor(&["v0"]).expect("ok", "v0", "bmc is attached", "");
}

/// Runs the doctor where a file of the kernel's reads otherwise.
fn with_file(bed: &Bed, path: &str, content: &str) -> Said {
    let file =
        std::env::temp_dir().join(format!("{}-{}", bed.net.instance(), path.replace('/', "-")));
    fs::write(&file, content).expect("a file");
    let script = format!("mount --bind {} {path}; exec \"$@\"", file.display());
    let said = in_mounts(None, &script);
    fs::remove_file(file).expect("our file");
    said
}

/// Runs the doctor in a mount namespace of its own, after a script.
fn in_mounts(namespace: Option<&Namespace>, script: &str) -> Said {
    let mut command = match namespace {
        Some(namespace) => namespace.command("unshare"),
        None => Command::new("unshare"),
    };
    command.args(["--mount", "--", "sh", "-ec", script, "sh", BMC, "doctor", "--json"]);
    let said = Said::of(&mut command);
    said.assert_code();
    said
}

#[test]
fn what_is_wrong_with_the_host_is_found() {
    if !can_run("what_is_wrong_with_the_host_is_found") {
        return;
    }
    let bed = Bed::new("doctor-host");
    let says = |path: &str, content: &str, level: &str, what: &str, remedy: &str| {
        with_file(&bed, path, content).expect(level, "host", what, remedy);
    };
    says("/proc/sys/kernel/osrelease", "5.10.0\n", "warning", "older than Linux 6.1", "6.1");
    says("/proc/sys/kernel/osrelease", "6.1.0\n", "ok", "bmc uses clsact", "");
    let jit = "/proc/sys/net/core/bpf_jit_enable";
    let remedy = "sysctl -w net.core.bpf_jit_enable=1";
    says(jit, "0\n", "blocker", "BPF programs are not compiled", remedy);
    says(jit, "1\n", "ok", "BPF programs are compiled", "");
    let meminfo = "MemTotal: 200000 kB\nMemAvailable: 131072 kB\n";
    says(
        "/proc/meminfo",
        meminfo,
        "blocker",
        "there is too little memory",
        "bmc attach --memory 60M",
    );
    says(
        "/sys/kernel/btf/vmlinux",
        "",
        "warning",
        "does not tell when memcached is gone",
        "bmc flush",
    );
    let no_btf = with_file(&bed, "/sys/kernel/btf/vmlinux", "");
    let evidence = text(no_btf.find("when memcached is gone").expect("found"), "evidence");
    assert!(evidence.starts_with("no /sys/kernel/btf/vmlinux"), "{evidence}");
    // A cgroup allows less than there is.
    let limited = "mount -t tmpfs none /sys/fs/cgroup; cd /sys/fs/cgroup; mkdir -p a/b; \
                   echo max >memory.max; echo 134217728 >a/memory.max; echo 1073741824 >a/b/memory.max; \
                   echo 0::/a/b >file; mount --bind file /proc/$$/cgroup; exec \"$@\"";
    let remedy = "bmc attach --memory 60M";
    in_mounts(None, limited).expect("blocker", "host", "there is too little memory", remedy);
    for (lockdown, level) in [
        ("none integrity [confidentiality]", "blocker"),
        ("none [integrity] confidentiality", "ok"),
    ] {
        let script = format!(
            "mount -t tmpfs none /sys/kernel/security; echo {lockdown:?} > \
             /sys/kernel/security/lockdown; exec \"$@\""
        );
        in_mounts(None, &script).expect(level, "host", "locked down", "");
    }
}

#[test]
fn what_is_wrong_with_bpffs_is_found() {
    if !can_run("what_is_wrong_with_bpffs_is_found") {
        return;
    }
    let gone = "while mountpoint -q /sys/fs/bpf; do umount /sys/fs/bpf; done";
    in_mounts(None, &format!("{gone}; exec \"$@\"")).expect(
        "blocker",
        "host",
        "has no bpf file system here",
        "nsenter --net=",
    );
    in_mounts(None, "mount -t tmpfs none /sys/fs/bpf; exec \"$@\"").expect(
        "blocker",
        "host",
        "something else is mounted where bpffs belongs",
        "umount /sys/fs/bpf",
    );
    in_mounts(None, "umount -l -R /sys; exec \"$@\"").expect(
        "blocker",
        "host",
        "there is no place for bpffs",
        "mount -t sysfs",
    );
    // Where process 1 is in the same mount namespace, it is fine.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--", "sh", "-ec"]);
    let script = format!("{gone}; \"$@\"; echo done >&2");
    let said = Said::of(command.args([&script, "sh", BMC, "doctor", "--json"]));
    said.expect("note", "host", "bpffs is not mounted", "mount -t bpf bpf /sys/fs/bpf");
}

#[test]
fn without_root_it_says_what_it_could_not_see() {
    if !can_run("without_root_it_says_what_it_could_not_see") {
        return;
    }
    let bed = Bed::new("doctor-nobody");
    let memcached = memcached(&bed, &["-p", "11211", "-U", "11211"]);
    let attach = bed.bmc(&["attach", "eth0", "--memory", "16M"]);
    assert!(attach.status.success(), "{}", String::from_utf8_lossy(&attach.stderr));
    let copy = Copy::new("doctor");
    let mut command = bed.net.server.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy.0);
    let said = Said::of(command.args(["doctor", "eth0", "--json"]).current_dir("/"));
    said.assert_code();
    assert!(said.find("directory for bmc's pins").is_none(), "it lacks more than that");
    let missing = "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON missing";
    said.expect("blocker", "host", missing, "sudo bmc doctor");
    said.expect("note", "host", "cannot see whether BPF programs are compiled", "sysctl");
    said.expect("note", "eth0", "cannot see what is attached as tc, or by bmc", "sudo bmc");
    said.expect("note", "eth0", "which may be another's", "sudo bmc doctor eth0");
    said.expect("ok", "eth0", "its driver has native XDP", "");
    let hidden = "cannot see what it listens on";
    said.expect("note", "memcached", hidden, "sudo bmc doctor");
    let processes = text(said.find(hidden).expect("found"), "what");
    assert!(processes.contains(&memcached.0.id().to_string()), "{processes}");
    // Its port is known all the same.
    said.expect("ok", "memcached 0.0.0.0:11211", "bmc can serve it", "");
    assert_eq!(said.json["memcacheds"].as_array().map(Vec::len), Some(1), "on two addresses");
    assert_eq!(said.json["memcacheds"][0]["udp"][0], "0.0.0.0:11211");

    // Root of a container's own: the capabilities are there, and of no use.
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--"]).arg(&copy.0).args(["doctor", "--json"]);
    let said = Said::of(&mut command);
    said.expect("blocker", "host", "the kernel refuses bmc's programs", "bmc -v attach");
}

/// Ports and other arguments of a memcached; the level of what is said of it, what,
/// and its remedy.
type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a str, &'a str, &'a str);

#[test]
fn doctor_and_attach_are_of_one_mind_about_a_memcached() {
    if !can_run("doctor_and_attach_are_of_one_mind_about_a_memcached") {
        return;
    }
    let bed = Bed::new("doctor-mind");
    let file = |name: &str| std::env::temp_dir().join(format!("{}-{name}", bed.net.instance()));
    let [users, storage] = ["users", "storage"].map(file);
    fs::write(&users, "user:password\n").expect("a file for users");
    let external = format!("ext_path={}:64m", storage.display());
    let users_path = users.to_string_lossy();
    let on = ["-p", "11211", "-U", "11211"];
    let off = ["-p", "11211", "-U", "0"];
    let no_udp = "does not listen on UDP";
    let cases: [Case<'_>; 10] = [
        (&on, &[], "ok", "bmc can serve it", ""),
        (&on, &["-B", "binary"], "ok", "bmc can serve it", ""),
        (&off, &[], "warning", no_udp, "memcached -u root -p 11211 -U 0 -U 11211"),
        (&off, &["-B", "binary"], "warning", no_udp, "-U 11211"),
        (&off, &["-o", &external], "warning", no_udp, "without external storage"),
        (&off, &["-Y", &users_path], "warning", "wants a password", "without the password"),
        (&on, &["-Z", "-o", TLS], "blocker", "uses TLS", "turn TLS off"),
        (&on, &["-l", "notls:0.0.0.0", "-Z", "-o", TLS], "blocker", "uses TLS", "turn TLS off"),
        (&["-p", "0", "-U", "11211"], &[], "warning", "has no TCP port", "-p 11211"),
        (&["-p", "11212", "-U", "11211"], &[], "blocker", "port 11212 too", "add --port 11212"),
    ];
    for (ports, args, level, what, remedy) in cases {
        let _memcached = memcached(&bed, &[ports, args].concat());
        let said = bed.doctor(&["eth0"]);
        said.expect(level, "memcached 0.0.0.0:1121", what, remedy);
        let is_of_use = level == "ok";
        assert_eq!(said.json["memcacheds"][0]["servable"], is_of_use, "{args:?}");
        let attach = bed.bmc(&["attach", "eth0", "--memory", "16M"]);
        let errors = String::from_utf8_lossy(&attach.stderr);
        let code = if level == "blocker" { FAILED } else { DONE };
        assert_eq!(attach.status.code(), Some(code), "{args:?}: {errors}");
        match said.findings().iter().find(|f| f["level"] == level && text(f, "what").contains(what))
        {
            Some(finding) if level != "ok" => {
                assert!(errors.contains(text(finding, "what")), "{errors}");
            }
            _ => assert_eq!(errors, "", "{args:?}"),
        }
        bed.bmc(&["detach"]);
    }
    // One that is not meant keeps nobody from attaching.
    {
        let args = ["-p", "11311", "-U", "0", "-Z", "-o", TLS];
        let _memcached = memcached(&bed, &args);
        let tls = |level: &str| {
            let said = bed.doctor(&["eth0"]);
            said.expect(level, "memcached 0.0.0.0:11311", "uses TLS", "turn TLS off");
            assert_eq!(said.json["memcacheds"][0]["servable"], false);
        };
        tls("warning");
        bed.attach(&["eth0"]);
        tls("warning");
        bed.bmc(&["detach"]);
    }
    for file in [users, storage] {
        fs::remove_file(file).expect("our file");
    }

    // Accounts, of which the binary protocol tells. Not every build has them.
    let accounts = file("accounts");
    fs::create_dir_all(&accounts).expect("a directory");
    fs::write(accounts.join("memcached.conf"), "mech_list: plain\n").expect("a file");
    let path = format!("SASL_CONF_PATH={}", accounts.display());
    let args = ["env", &path, "memcached", "-u", "root", "-S", "-p", "11211", "-U", "0"];
    {
        let mut memcached = start(&bed.net.server, &args);
        let mut ended = || memcached.0.try_wait().expect("our child").is_some();
        let wants = || bed.doctor(&["eth0"]).find("wants a password").is_some();
        if eventually(PATIENCE, || wants() || ended()) && !ended() {
            let said = bed.doctor(&["eth0"]);
            said.expect("warning", "memcached", "wants a password", "without the password");
            let attach = bed.bmc(&["attach", "eth0", "--memory", "16M"]);
            let errors = String::from_utf8_lossy(&attach.stderr);
            assert_eq!(attach.status.code(), Some(DONE), "{errors}");
            assert!(errors.contains("wants a password"), "{errors}");
            bed.bmc(&["detach"]);
        } else {
            assert!(ended(), "it is not found to want a password");
            skipped("doctor, in part", "no SASL in memcached");
        }
    }
    fs::remove_dir_all(accounts).expect("our directory");

    // Whoever listens on its port is taken for one, and may not be.
    let listener = bed.net.server.within(|| TcpListener::bind(("0.0.0.0", 11211)));
    let said = bed.doctor(&["eth0"]);
    said.expect("warning", "memcached 0.0.0.0:11211", "does not tell its settings", "TLS");
    drop(listener);
    let none = "no memcached listens here";
    bed.doctor(&["eth0"]).expect("warning", "memcached", none, "bmc memcached -U 11211");
}

#[test]
fn a_memcached_of_less_use_is_told_what_would_make_it_more() {
    if !can_run("a_memcached_of_less_use_is_told_what_would_make_it_more") {
        return;
    }
    let bed = Bed::new("doctor-use");
    let path = std::env::temp_dir().join(format!("{}.sock", bed.net.instance()));
    let path = path.to_string_lossy();
    {
        let _memcached = memcached(&bed, &["-s", &path]);
        let said = bed.doctor(&["eth0"]);
        said.expect("warning", &path, "listens on a unix socket only", "instead of -s");
        assert_eq!(said.json["memcacheds"][0]["unix"][0], *path);
        assert_eq!(said.json["memcacheds"][0]["servable"], false);
    }
    let _ = fs::remove_file(&*path);
    {
        let args = ["-p", "11300", "-U", "11301", "-l", "127.0.0.1", "-t", "2"];
        let memcached = memcached(&bed, &args);
        let said = bed.doctor(&["eth0"]);
        said.expect("ok", "memcached 127.0.0.1:11300", "bmc can serve it", "");
        said.expect("warning", "memcached", "listens on the loopback only", "start it with -l");
        let ports = "attach IFACE --port 11300,11301";
        said.expect("note", "memcached", "has other ports than bmc attach watches", ports);
        let shared = "its 2 threads share one UDP socket";
        let remedy = said.expect("note", "memcached", shared, "bmc memcached -- ");
        drop(memcached);
        // As it is told to.
        let remedy = remedy.replacen("bmc", BMC, 1);
        let command: Vec<_> = remedy.split(' ').collect();
        let _process = start(&bed.net.server, &command);
        let serves = || bed.doctor(&["eth0"]).find("bmc can serve it").is_some();
        assert!(eventually(PATIENCE, serves));
        let said = bed.doctor(&["eth0"]);
        assert!(said.find("share one UDP socket").is_none(), "{said:?}");
        assert_eq!(said.json["memcacheds"][0]["udp"].as_array().map(Vec::len), Some(2));
    }
    // One of another namespace is not ours.
    let elsewhere = start(&bed.net.client, &["memcached", "-u", "root"]);
    let pid = elsewhere.0.id();
    let what = "is in another network namespace, where bmc has to be attached";
    // Those of other tests may be as well.
    let is_told = || {
        let said = bed.doctor(&["eth0"]);
        let finding = said.find(what).map(|finding| text(finding, "what").to_string());
        finding.is_some_and(|what| what.contains(&pid.to_string()))
    };
    assert!(eventually(PATIENCE, is_told));
    let remedy = bed.doctor(&["eth0"]).expect("note", "memcached", what, "nsenter --net=/proc/");
    let remedy =
        remedy.split('/').map(|part| part.parse::<u32>().map_or(part.into(), |_| pid.to_string()));
    let remedy = remedy.collect::<Vec<_>>().join("/");
    let remedy = format!("{} --json", remedy.replace(" bmc ", &format!(" {BMC} ")));
    let there = Said::of(Command::new("sh").args(["-c", &remedy]));
    there.expect("warning", "memcached", "does not listen on UDP", "-U 11211");
}

#[test]
fn what_bmc_would_gain_is_told_by_what_memcached_counts() {
    if !can_run("what_bmc_would_gain_is_told_by_what_memcached_counts") {
        return;
    }
    let bed = Bed::new("doctor-gain");
    let _memcached = memcached(&bed, &["-p", "11211", "-U", "11211"]);
    let nothing = "was not asked for anything yet";
    bed.doctor(&["eth0"]).expect("note", "memcached", nothing, "bmc bench");
    let server = IpAddr::V4(Ipv4Addr::new(10, 11, 12, 1));
    let mut tcp = Tcp::connect(&bed.net.client, server);
    tcp.set("key", 0, b"value");
    for key in ["key", "key", "key", "none"] {
        tcp.get(key);
    }
    let only = "is asked over TCP only";
    bed.doctor(&["eth0"]).expect("warning", "memcached", only, "GETs over UDP");
    Udp::connect(&bed.net.client, server).get("none");
    let said = bed.doctor(&["eth0"]);
    assert!(said.find(only).is_none(), "{said:?}");
    let found = "found 60 % of 5 keys that it was asked for";
    said.expect("note", "memcached", found, "bmc bench");
    let evidence = text(said.find(found).expect("found"), "evidence");
    assert_eq!(evidence, "stats: cmd_get 5, get_hits 3, cmd_set 1");

    // What bmc answers, memcached does not count.
    bed.attach(&["eth0"]);
    let said = bed.doctor(&["eth0"]);
    assert!(said.find("keys that it was asked for").is_none(), "{said:?}");
    said.expect("note", "memcached", "counts only what bmc does not answer", "stats ");
    // The ports are those that it watches.
    bed.attach(&["eth0", "--replace", "--port", "11211,11300"]);
    let _other = memcached(&bed, &["-p", "11300", "-U", "11300"]);
    assert!(bed.doctor(&["eth0"]).find("has other ports").is_none());
    bed.attach(&["eth0", "--replace", "--port", "11211"]);
    let remedy = "attach IFACE --port 11211,11300 --replace";
    bed.doctor(&["eth0"]).expect("note", "11300", "has other ports", remedy);
}

#[test]
fn its_lines_fit_a_terminal_and_are_coloured_there_alone() {
    if !can_run("its_lines_fit_a_terminal_and_are_coloured_there_alone") {
        return;
    }
    let bed = Bed::new("doctor-terminal");
    let _memcached = memcached(&bed, &["-p", "11211", "-U", "0"]);
    let doctor = [BMC, "--instance", bed.net.instance(), "doctor", "eth0"];
    let plain = bed.bmc(&["doctor", "eth0"]);
    assert_eq!(plain.status.code(), Some(DONE));
    let plain = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(!plain.contains('\x1b'), "{plain:?}");
    assert!(plain.lines().any(|line| line.starts_with("ok       host")), "{plain}");
    let warnings = plain.lines().filter(|line| line.starts_with("warning  ")).count();
    let remedies = plain.lines().filter(|line| line.trim_start().starts_with("-> ")).count();
    assert!(warnings >= 1 && remedies >= warnings, "{plain}");
    assert!(plain.lines().any(|line| line.starts_with("0 blockers, ")), "{plain}");

    let script = format!("stty rows 24 cols 60; {}", doctor.join(" "));
    let on_terminal = |no_colour: bool| {
        let mut command = bed.net.server.command("script");
        if no_colour {
            command.env("NO_COLOR", "1");
        }
        command.args(["-q", "-e", "-c", &script, "/dev/null"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("script can be run");
        let mut text = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
        assert_eq!(child.wait().expect("our child").code(), Some(DONE), "{text}");
        text
    };
    let coloured = on_terminal(false);
    assert!(coloured.contains("\x1b[33mwarning  \x1b[0mmemcached"), "{coloured:?}");
    let text = on_terminal(true);
    assert!(!text.contains('\x1b'), "{text:?}");
    for line in text.lines() {
        let words = line.split_whitespace().count();
        assert!(line.chars().count() <= 60 || words == 1, "{line:?}");
    }
    // Broken, but whole; what is said of others may differ.
    let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines = plain.lines().filter(|line| line.contains(" eth0  ") || line.contains(":11211  "));
    let lines: Vec<_> = lines.collect();
    assert!(lines.len() > 3, "{plain}");
    for line in lines {
        assert!(joined(&text).contains(&joined(line)), "{line}: {text}");
    }
}
