// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A TCP connection over loopback; the test is the client and memcached.

use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::recv;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt::Linger;

use crate::packet::Flow;
use crate::packet::PSH_ACK;
use crate::packet::SYN;
use crate::packet::transport;

/// Longer than anything takes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An established connection. Whatever one side sends is one segment, and has
/// reached the other side's socket when the call returns.
pub(crate) struct Connection {
    client: TcpStream,
    server: TcpStream,
    flow: Flow,
    /// The next sequence number of the client.
    sent: u32,
    /// And of memcached.
    received: u32,
}

impl Connection {
    /// From the flow's source, any port of it, to its target.
    pub(crate) fn open(flow: &Flow) -> Self {
        Self::open_to(flow, 0, flow.target)
    }

    /// Likewise, from a port of the client's (0: any), to a memcached that listens
    /// on another address.
    pub(crate) fn open_to(flow: &Flow, port: u16, listen: SocketAddr) -> Self {
        let wire = Wire::open();
        let listener = listener(listen);
        let family = if flow.source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let source = SocketAddr::new(flow.source.ip(), port);
        bind(client.as_raw_fd(), &SockaddrStorage::from(source)).unwrap();
        connect(client.as_raw_fd(), &SockaddrStorage::from(flow.target)).unwrap();
        let client = TcpStream::from(client);
        let (server, _) = listener.accept().unwrap();
        for socket in [&client, &server] {
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.set_write_timeout(Some(TIMEOUT)).unwrap();
        }
        let flow = flow.clone().with_port(client.local_addr().unwrap().port()).with_mac([0; 6]);
        let sent = wire.first_sequence(flow.source.port()).wrapping_add(1);
        let received = wire.first_sequence(flow.target.port()).wrapping_add(1);
        Self { client, server, flow, sent, received }
    }

    /// The client's port.
    pub(crate) fn port(&self) -> u16 {
        self.flow.source.port()
    }

    /// The client sends.
    pub(crate) fn request(&mut self, text: impl AsRef<[u8]>) {
        self.sent = self.sent.wrapping_add(text.as_ref().len() as u32);
        transfer(&mut self.client, &mut self.server, text.as_ref());
    }

    /// memcached sends.
    pub(crate) fn reply(&mut self, text: impl AsRef<[u8]>) {
        self.received = self.received.wrapping_add(text.as_ref().len() as u32);
        transfer(&mut self.server, &mut self.client, text.as_ref());
    }

    /// A command and its reply.
    pub(crate) fn exchange(&mut self, request: impl AsRef<[u8]>, reply: impl AsRef<[u8]>) {
        self.request(request);
        self.reply(reply);
    }

    /// A frame of the client's with this text, so many bytes after what it sent
    /// last; on no wire yet.
    pub(crate) fn frame(&self, ahead: i32, text: impl AsRef<[u8]>) -> Vec<u8> {
        let seq = self.sent.wrapping_add_signed(ahead);
        self.flow.tcp(seq, self.received, PSH_ACK, text.as_ref())
    }

    /// memcached sends what the wire loses, and a while later sends it again.
    pub(crate) fn reply_twice(&mut self, text: &str, meanwhile: impl FnOnce()) {
        let status =
            |command: &str| Command::new("tc").args(command.split(' ')).status().unwrap().success();
        assert!(status("qdisc replace dev lo root pfifo limit 0"));
        self.server.write_all(text.as_bytes()).unwrap();
        meanwhile();
        assert!(status("qdisc delete dev lo root"));
        let mut got = vec![0; text.len()];
        self.client.read_exact(&mut got).unwrap();
        self.received = self.received.wrapping_add(text.len() as u32);
    }

    /// The client ends the connection.
    pub(crate) fn finish(mut self) {
        self.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.server.read(&mut [0]).unwrap(), 0);
    }

    /// memcached ends the connection.
    pub(crate) fn finish_server(mut self) {
        self.server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.client.read(&mut [0]).unwrap(), 0);
    }

    /// The client tears the connection down.
    pub(crate) fn reset(self) {
        let Self { client, mut server, .. } = self;
        setsockopt(&client, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        drop(client);
        assert!(server.read(&mut [0]).is_err());
    }
}

/// A process that another test starts may hold the last listener for a moment.
fn listener(address: SocketAddr) -> TcpListener {
    for _ in 0..1000 {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => sleep(Duration::from_millis(5)),
            listener => return listener.unwrap(),
        }
    }
    panic!("{address} stays in use");
}

fn transfer(from: &mut TcpStream, to: &mut TcpStream, text: &[u8]) {
    from.write_all(text).unwrap();
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
}

/// What goes over the loopback device.
struct Wire(OwnedFd);

impl Wire {
    fn open() -> Self {
        let (family, kind) = (AddressFamily::Packet, SockType::Raw);
        Self(socket(family, kind, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll).unwrap())
    }

    /// The sequence number of the next SYN from a port.
    fn first_sequence(&self, port: u16) -> u32 {
        loop {
            let mut frame = [0; 2048];
            let len = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()).unwrap();
            let frame = &frame[..len];
            let tcp = &frame[transport(frame)..];
            if len > 60 && tcp[..2] == port.to_be_bytes() && tcp[13] & SYN != 0 {
                return u32::from_be_bytes(*tcp[4..].first_chunk().unwrap());
            }
        }
    }
}
