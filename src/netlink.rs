// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The one rtnetlink question that libbpf does not ask.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::recv;
use nix::sys::socket::send;
use nix::sys::socket::socket;

const HEADER: usize = 16; // struct nlmsghdr
const TCMSG: usize = 20; // struct tcmsg

/// Whether an interface's clsact qdisc has a filter, of anybody, on the side
/// that `parent` names.
pub fn has_filter(ifindex: i32, parent: u32) -> io::Result<bool> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut request = Vec::new();
    request.extend(((HEADER + TCMSG) as u32).to_ne_bytes());
    request.extend(libc::RTM_GETTFILTER.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request.extend([0; 8]); // sequence number, port
    request.extend([0; 4]); // family, padding
    request.extend(ifindex.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes()); // handle: all
    request.extend(parent.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes()); // priority and protocol: all
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;

    let mut answer = vec![0; 1 << 16];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // Filters come before the end of the list, so the first message tells.
    let field = |at: usize| answer[..len].get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    match field(4) {
        Some(libc::RTM_NEWTFILTER) => Ok(true),
        Some(kind) if i32::from(kind) == libc::NLMSG_DONE => Ok(false),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
