// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Two network namespaces and the veth pair between them.

use std::fs;
use std::fs::File;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use bmc::host::facts;
use bmc::host::sys::prog_info;
use bmc::skel::BmcSkelBuilder;
use libbpf_rs::Link;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sched::CloneFlags;
use nix::sched::setns;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::LinkAddr;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::bind;
use nix::sys::socket::recv;
use nix::sys::socket::send;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::TimeVal;
use nix::sys::time::TimeValLike as _;

use super::bmc::PINS;
use super::run;

const PREFIX: &str = "bmc-test-";

/// A client and a server, each in its namespace.
#[derive(Debug)]
pub struct Net {
    xdp_link: Option<Link>,
    /// Where clients run.
    pub client: Namespace,
    /// Where memcached and bmc run.
    pub server: Namespace,
    name: String,
}

impl Net {
    /// The name of the veth device, in either namespace.
    pub const DEVICE: &str = "eth0";
    /// The server's addresses.
    pub const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 11, 12, 1));
    /// See [`Self::SERVER4`].
    pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    /// The client's addresses.
    pub const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 11, 12, 2));
    /// See [`Self::CLIENT4`].
    pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));

    /// Makes the namespaces of a test.
    ///
    /// # Panics
    /// When the kernel refuses; needs root.
    pub fn new(test: &str) -> Self {
        let client = Namespace::of_test(test, "client");
        let v4 = (Self::SERVER4, Self::CLIENT4);
        Self::to(test, client, Self::DEVICE, v4, (Self::SERVER6, Self::CLIENT6))
    }

    /// Makes a server and joins it to a client by a device of the client's, with
    /// these addresses of the server and the client.
    ///
    /// # Panics
    /// When the kernel refuses; needs root.
    pub fn to(
        test: &str,
        client: Namespace,
        device: &str,
        v4: (IpAddr, IpAddr),
        v6: (IpAddr, IpAddr),
    ) -> Self {
        let server = Namespace::of_test(test, "server");
        // Made now, so that it is undone if a later step fails.
        let mut net = Self { xdp_link: None, client, server, name: name_of(test) };

        ip(
            &["link", "add", Self::DEVICE, "netns", net.server.name(), "type", "veth"],
            &["peer", "name", device, "netns", net.client.name()],
        );
        for (namespace, device, v4, v6) in
            [(&net.server, Self::DEVICE, v4.0, v6.0), (&net.client, device, v4.1, v6.1)]
        {
            let inside = ["-n", namespace.name()];
            ip(&inside, &["link", "set", "lo", "up"]);
            ip(&inside, &["link", "set", device, "up"]);
            ip(&inside, &["address", "add", &format!("{v4}/24"), "dev", device]);
            ip(&inside, &["address", "add", &format!("{v6}/64"), "dev", device, "nodad"]);
        }
        // A veth takes frames that its peer's XDP sends only when it has an XDP
        // program too. bmc's passes everything as long as it has no ports.
        net.xdp_link = Some(net.client.attach_pass(device).0);
        net
    }

    /// A name for an instance of bmc that no other test has.
    pub fn instance(&self) -> &str {
        &self.name
    }
}

/// A network namespace; removed when the last of its clones is dropped.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Made>);

#[derive(Debug)]
struct Made(String);

impl Namespace {
    /// Attaches an XDP program that passes everything to a device: bmc's, without
    /// ports. Returns the program's number as well.
    pub fn attach_pass(&self, device: &str) -> (Link, u32) {
        self.within(|| {
            let mut object = MaybeUninit::uninit();
            let mut skel = BmcSkelBuilder::default().open(&mut object).expect("a sound object");
            skel.progs.bmc_rx_tc.set_autoload(false);
            skel.progs.bmc_tx.set_autoload(false);
            skel.progs.bmc_flush.set_autoload(false);
            let skel = skel.load().expect("the programs load");
            let device = facts::index_of(device).expect("the device exists");
            let id = prog_info(skel.progs.bmc_rx.as_fd()).expect("a program has an id").id;
            (skel.progs.bmc_rx.attach_xdp(device).expect("a veth has XDP"), id)
        })
    }

    /// Makes the one that has this part in a test.
    ///
    /// # Panics
    /// When the kernel refuses; needs root.
    pub fn of_test(test: &str, part: &str) -> Self {
        let name = format!("{}-{part}", name_of(test));
        // The first `ip netns add` of a machine sets the directory up, which
        // must not happen twice at once.
        let _turn = take_turn();
        remove_stale();
        ip(&["netns", "add"], &[&name]);
        Self(Arc::new(Made(name)))
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.0.0
    }

    /// A command that will run inside. Not by `ip netns exec`: that mounts a
    /// new /sys, which hides bpffs.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a closure inside. A socket it returns stays inside.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).expect("the namespace exists");
        // A namespace is a thread's: a thread of its own leaves ours alone.
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.name())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "delete", &self.0]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("cannot remove the namespace {}", self.0);
        }
    }
}

/// Whole Ethernet frames, as they come to and leave a namespace's device.
#[derive(Debug)]
pub struct Frames {
    socket: OwnedFd,
    /// The device's own address.
    pub address: [u8; 6],
}

impl Frames {
    /// Sees every frame of the namespace's device from now on, sent ones
    /// included.
    pub fn new(namespace: &Namespace) -> Self {
        namespace.within(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .expect("root may open a packet socket");
            let device = device_address();
            bind(socket.as_raw_fd(), &device).expect("the device is up");
            setsockopt(&socket, RcvBufForce, &(8 << 20)).expect("root may have a large buffer");
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(300)).expect("a timeout");
            let address = device.addr().expect("Ethernet has addresses");
            Self { socket, address }
        })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .expect("the device takes frames");
        assert_eq!(sent, frame.len());
    }

    /// The next frame; none if there is none for 0.3 s.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 16];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(len) => {
                    frame.truncate(len);
                    return Some(frame);
                }
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR) => {}
                Err(error) => panic!("cannot read frames: {error}"),
            }
        }
    }
}

fn name_of(test: &str) -> String {
    let test = test.replace(|c: char| !c.is_alphanumeric(), "-");
    format!("{PREFIX}{test}-{}", std::process::id())
}

fn device_address() -> LinkAddr {
    getifaddrs()
        .expect("the kernel lists addresses")
        .filter(|entry| entry.interface_name == Net::DEVICE)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .expect("the device exists")
}

fn ip(first: &[&str], rest: &[&str]) {
    run(Command::new("ip").args(first).args(rest));
}

fn take_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what test runs that are no more have left.
fn remove_stale() {
    for name in stale(Path::new("/run/netns")) {
        drop(Made(name));
    }
    for name in stale(Path::new(PINS)) {
        // Another test may be doing the same.
        let _ = fs::remove_dir_all(Path::new(PINS).join(name));
    }
}

fn stale(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_dead = |name: &String| {
        let run = name.trim_end_matches("-server").trim_end_matches("-client");
        let pid = run.rsplit('-').next().and_then(|pid| pid.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    names.filter(|name| name.contains(PREFIX) && is_dead(name)).collect()
}

/// Long enough for anything on one machine.
pub const PATIENCE: Duration = Duration::from_secs(5);
