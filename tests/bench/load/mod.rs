// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the benchmarks with a real memcached share: the machine they ran on, devices
//! of their own, and clients that cost little.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each benchmark uses its own part")]

mod closed;
mod mixed;

pub use bmc::command::bench::measure::SETTLED;
pub use closed::Batch;
pub use closed::Clients;
pub use closed::batches;
pub use mixed::Generator;
pub use mixed::Load;

use std::io;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use bmc::command::bench::net;
use bmc::command::bench::report::Machine;
use bmc::memcached::probe::version;

use crate::common::Namespace;
use crate::common::Net;
use crate::common::run;

/// Where memcached runs (tests/common takes the first CPU it may have).
pub const SERVER_CPU: usize = 0;
/// Where its clients run.
pub const CLIENT_CPU: usize = 1;

/// Keeps this thread, and what it starts from now on, on one CPU.
pub fn pin(cpu: usize) {
    net::pin(&[cpu]).expect("the benchmarks need two CPUs");
}

/// Prints what was measured, and on what.
pub fn print_machine() {
    let memcached = version(Path::new("memcached"), "--memcached");
    let machine = memcached.and_then(Machine::look).expect("the machine can be looked at");
    println!("{machine}, bmc {}", env!("CARGO_PKG_VERSION"));
}

/// What `ip` says to these arguments.
pub fn ip(arguments: &str) -> String {
    run(Command::new("ip").args(arguments.split(' ')))
}

/// Makes a veth pair of that name, with no program on either end; the addresses are
/// the server's and the client's, of networks of 24 bits.
pub fn make_device(net: &Net, device: &str, addresses: [&str; 2]) {
    let ends = [net.server.name(), net.client.name()];
    let [inside, outside] = ends;
    ip(&format!("link add {device} netns {inside} type veth peer name {device} netns {outside}"));
    for (namespace, address) in ends.iter().zip(addresses) {
        ip(&format!("-n {namespace} address add {address}/24 dev {device}"));
        ip(&format!("-n {namespace} link set {device} up"));
    }
}

/// A key of 16 bytes.
pub fn key(number: usize) -> String {
    format!("key-{number:012}")
}

/// A SET of an item that does not expire.
pub fn set_request(key: &str, value: &str) -> String {
    format!("set {key} 0 0 {}\r\n{value}\r\n", value.len())
}

/// Opens connections inside a namespace that never block.
pub fn connect(namespace: &Namespace, server: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let all = || (0..count).map(|_| connect()).collect::<io::Result<_>>();
    namespace.within(all).expect("memcached accepts")
}
