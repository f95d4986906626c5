// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A real memcached, and clients that speak its text protocol.

use std::collections::HashMap;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use nix::sched::CpuSet;
use nix::sched::sched_getaffinity;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::bind;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::sockopt::ReuseAddr;
use nix::unistd::Pid;

use super::Namespace;
use super::Process;
use super::eventually;
use super::net::PATIENCE;

/// The port memcached listens on, TCP and UDP.
pub const PORT: u16 = 11211;

/// What `-o` needs for TLS (`-Z`): a certificate for tests.
pub const TLS: &str = concat!(
    "ssl_chain_cert=",
    env!("CARGO_MANIFEST_DIR"),
    "/tests/tls/cert.pem,ssl_key=",
    env!("CARGO_MANIFEST_DIR"),
    "/tests/tls/key.pem"
);

/// A memcached on every address of a namespace; killed on drop.
#[derive(Debug)]
pub struct Memcached(Process);

impl Memcached {
    /// Starts one, on one CPU so that the datagrams of a reply keep their order,
    /// and waits until it answers.
    pub fn start(namespace: &Namespace, args: &[&str]) -> Self {
        let mut command = namespace.command("taskset");
        command.args(["--cpu-list", &a_cpu().to_string(), "setpriv"]);
        Self::start_by(command, namespace, args)
    }

    /// The same on all CPUs. What it says, as of each connection that is reset,
    /// is not shown.
    pub fn start_on_all_cpus(namespace: &Namespace, args: &[&str]) -> Self {
        let mut command = namespace.command("setpriv");
        command.stderr(Stdio::null());
        Self::start_by(command, namespace, args)
    }

    fn start_by(mut setpriv: Command, namespace: &Namespace, args: &[&str]) -> Self {
        let port = PORT.to_string();
        // It dies with the thread that made it, should the test be killed; changing
        // the user would undo that, so it stays root.
        let child = setpriv
            .args(["--pdeathsig", "KILL", "memcached", "-u", "root", "-p", &port, "-U", &port])
            .args(args)
            .spawn()
            .expect("memcached can be started");
        let memcached = Self(Process(child));
        let answers = || {
            let address = (IpAddr::from([127, 0, 0, 1]), PORT);
            namespace.within(|| TcpStream::connect(address).is_ok())
        };
        assert!(eventually(PATIENCE, answers), "memcached does not answer");
        memcached
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.0.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("our child");
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) {
        self.0.0.wait().expect("our child");
    }
}

/// A UDP socket on memcached's port that is more specific than memcached's own
/// and so gets, unread by anybody, what would have reached memcached.
#[derive(Debug)]
pub struct Impostor(UdpSocket);

impl Impostor {
    /// Opens one in front of the memcached of a namespace.
    pub fn new(namespace: &Namespace, server: IpAddr) -> Self {
        let address = SocketAddr::from((server, PORT));
        let socket = namespace.within(|| {
            let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
                .expect("a UDP socket");
            setsockopt(&socket, ReuseAddr, &true).expect("an option of sockets");
            bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
                .expect("memcached shares its port");
            UdpSocket::from(socket)
        });
        Self(socket)
    }

    /// The next datagram that comes in before `limit` is over, and its sender.
    pub fn receive(&self, limit: Duration) -> Option<(Vec<u8>, SocketAddr)> {
        receive(&self.0, limit)
    }
}

/// One value of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: Vec<u8>,
    /// The client's flags.
    pub flags: u32,
    /// The value.
    pub data: Vec<u8>,
}

/// The values of a GET's reply text and whether it is complete.
///
/// # Panics
/// When it is not the beginning of a GET's reply.
pub fn items(text: &[u8]) -> (Vec<Item>, bool) {
    let mut items = Vec::new();
    let mut rest = text;
    loop {
        if rest == b"END\r\n" {
            return (items, true);
        }
        let Some(line) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            return (items, false);
        };
        let words: Vec<&[u8]> = rest[..line].split(|&byte| byte == b' ').collect();
        let [b"VALUE", key, flags, len] = words[..] else {
            panic!("not a reply to a GET: {}", rest.escape_ascii());
        };
        let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<u32>().ok();
        let flags = number(flags).expect("flags are a number");
        let len = number(len).expect("a length is a number") as usize;
        let start = line + 2;
        let Some(data) = rest.get(start..start + len) else {
            return (items, false);
        };
        let Some(end) = rest.get(start + len..start + len + 2) else {
            return (items, false);
        };
        assert_eq!(end, b"\r\n", "a value ends with its line");
        items.push(Item { key: key.to_vec(), flags, data: data.to_vec() });
        rest = &rest[start + len + 2..];
    }
}

/// A TCP connection.
#[derive(Debug)]
pub struct Tcp(BufReader<TcpStream>);

impl Tcp {
    /// Connects from inside a namespace.
    pub fn connect(namespace: &Namespace, server: IpAddr) -> Self {
        let stream =
            namespace.within(|| TcpStream::connect((server, PORT))).expect("memcached accepts");
        stream.set_nodelay(true).expect("an option of TCP");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option of sockets");
        Self(BufReader::new(stream))
    }

    /// The client's end.
    pub fn address(&self) -> SocketAddr {
        self.0.get_ref().local_addr().expect("a connected socket")
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("the connection is open");
    }

    /// Reads one line, without its end.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).expect("memcached answers");
        assert!(line.ends_with(b"\r\n"), "a whole line, not {}", line.escape_ascii());
        String::from_utf8_lossy(&line[..line.len() - 2]).into_owned()
    }

    /// Sends one command that is answered by one line.
    pub fn command(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n").as_bytes());
        self.line()
    }

    /// Sends a command with a data block; `verb` and `tail` are what stands
    /// before the key and after the length.
    pub fn store(
        &mut self,
        verb: &str,
        key: &str,
        flags: u32,
        exptime: i32,
        data: &[u8],
        tail: &str,
    ) -> String {
        let mut request =
            format!("{verb} {key} {flags} {exptime} {}{tail}\r\n", data.len()).into_bytes();
        request.extend_from_slice(data);
        request.extend_from_slice(b"\r\n");
        self.send(&request);
        self.line()
    }

    /// Stores a value that does not expire.
    pub fn set(&mut self, key: &str, flags: u32, data: &[u8]) {
        assert_eq!(self.store("set", key, flags, 0, data, ""), "STORED");
    }

    /// The whole text memcached answers to a `get`.
    pub fn get(&mut self, keys: &str) -> Vec<u8> {
        self.values(&format!("get {keys}"))
    }

    /// The whole text memcached answers to a command that returns values.
    pub fn values(&mut self, command: &str) -> Vec<u8> {
        self.send(format!("{command}\r\n").as_bytes());
        let mut text = Vec::new();
        loop {
            let start = text.len();
            self.0.read_until(b'\n', &mut text).expect("memcached answers");
            let line = String::from_utf8_lossy(&text[start..]).into_owned();
            if line == "END\r\n" {
                return text;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words.first(), Some(&"VALUE"), "{line}");
            let len: usize = words[3].parse().expect("a length is a number");
            let start = text.len();
            text.resize(start + len + 2, 0);
            self.0.read_exact(&mut text[start..]).expect("memcached answers");
        }
    }

    /// The unique number of an item, as `cas` wants it.
    pub fn unique(&mut self, key: &str) -> u64 {
        let text = self.values(&format!("gets {key}"));
        let line = text.split(|&byte| byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        line.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("gets tells the number")
    }

    /// memcached's own counters.
    pub fn stats(&mut self) -> HashMap<String, String> {
        self.send(b"stats\r\n");
        let mut stats = HashMap::new();
        loop {
            let line = self.line();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["STAT", name, value] => stats.insert(name.to_string(), value.to_string()),
                ["END"] => return stats,
                _ => panic!("not a statistic: {line}"),
            };
        }
    }

    /// One of them that is a number.
    pub fn stat(&mut self, name: &str) -> u64 {
        self.stats()[name].parse().expect("a counter is a number")
    }
}

/// What came back for one request.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The datagrams, frame included, in the order they came in.
    pub datagrams: Vec<Vec<u8>>,
    /// Their text. memcached 1.6 answers each key by a message of its own.
    pub text: Vec<u8>,
}

impl Reply {
    /// Adds a datagram.
    ///
    /// # Panics
    /// When it is not the next one of a message.
    pub fn push(&mut self, datagram: &[u8]) {
        let field = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
        let (sequence, total) = (field(2), field(4));
        if (sequence, total, datagram.len()) == (0, 0, 8) {
            // memcached 1.6 for a missing key before others.
            return;
        }
        let expected = self.datagrams.last().map_or(0, |last| {
            let next = u16::from_be_bytes([last[2], last[3]]) + 1;
            if next == u16::from_be_bytes([last[4], last[5]]) { 0 } else { next }
        });
        assert_eq!(sequence, expected, "datagram {sequence} of {total} is out of order");
        assert!(sequence < total, "datagram {sequence} of {total}");
        assert_eq!(field(6), 0, "the reserved field is zero");
        self.text.extend_from_slice(&datagram[8..]);
        self.datagrams.push(datagram.to_vec());
    }

    /// Whether the text is all there.
    pub fn is_complete(&self) -> bool {
        items(&self.text).1
    }
}

/// A UDP socket whose requests carry ids of their own.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    next_id: u16,
}

impl Udp {
    /// Opens one inside a namespace.
    pub fn connect(namespace: &Namespace, server: IpAddr) -> Self {
        let any: IpAddr = match server {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0_u16; 8]),
        };
        let socket = namespace
            .within(|| {
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect((server, PORT))?;
                io::Result::Ok(socket)
            })
            .expect("a UDP socket");
        setsockopt(&socket, RcvBufForce, &(8 << 20)).expect("root may have a large buffer");
        Self { socket, next_id: 0x0d00 }
    }

    /// The client's end.
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("a bound socket")
    }

    /// Sends a request and returns its id.
    pub fn send(&mut self, text: &[u8]) -> u16 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.send_raw(&[&id.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0], text].concat());
        id
    }

    /// Sends a datagram as it is.
    pub fn send_raw(&self, datagram: &[u8]) {
        self.socket.send(datagram).expect("the network is up");
    }

    /// The next datagram that comes in before `limit` is over.
    pub fn receive(&self, limit: Duration) -> Option<Vec<u8>> {
        let (datagram, _) = receive(&self.socket, limit)?;
        assert!(datagram.len() >= 8, "a reply of {} bytes", datagram.len());
        Some(datagram)
    }

    /// Asks for keys and returns the whole reply.
    ///
    /// # Panics
    /// When there is none, or one to another request.
    pub fn get(&mut self, keys: &str) -> Reply {
        let id = self.send(format!("get {keys}\r\n").as_bytes());
        let mut reply = Reply::default();
        while !reply.is_complete() {
            let datagram =
                self.receive(PATIENCE).unwrap_or_else(|| panic!("no reply to get {keys}"));
            assert_eq!(datagram[..2], id.to_be_bytes(), "a reply to another request");
            reply.push(&datagram);
        }
        reply
    }
}

fn a_cpu() -> usize {
    let allowed = sched_getaffinity(Pid::this()).expect("a thread may ask where it runs");
    (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu) == Ok(true)).expect("it runs somewhere")
}

fn receive(socket: &UdpSocket, limit: Duration) -> Option<(Vec<u8>, SocketAddr)> {
    socket.set_read_timeout(Some(limit)).expect("a timeout that is not zero");
    let mut buffer = vec![0; 1 << 16];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((len, sender)) => {
                buffer.truncate(len);
                return Some((buffer, sender));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            // Nobody listened when the request came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("cannot receive: {error}"),
        }
    }
}
