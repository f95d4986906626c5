// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! TCP clients that are as fast as memcached is.

use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;

use super::connect;
use super::key;
use super::set_request;
use crate::common::Namespace;
use crate::common::Rng;

/// Requests that are written at once, and all that memcached answers.
#[derive(Debug, Default)]
pub struct Batch {
    /// What to send.
    pub requests: Vec<u8>,
    /// What must come back.
    pub replies: Vec<u8>,
}

/// Requests for random keys that were all set to their value before and are
/// never set to another, so that each reply is known: `sets` of a hundred are
/// SETs, the others GETs.
pub fn batches(keys: usize, value: &str, sets: usize, depth: usize) -> Vec<Batch> {
    // Few enough to stay in the CPU's cache.
    const REQUESTS: usize = 1024;

    let mut rng = Rng::new(1);
    let mut batch = || {
        let mut batch = Batch::default();
        for _ in 0..depth {
            let key = key(rng.below(keys));
            let (request, reply) = if rng.chance(sets) {
                (set_request(&key, value), "STORED\r\n".to_string())
            } else {
                let reply = format!("VALUE {key} 0 {}\r\n{value}\r\nEND\r\n", value.len());
                (format!("get {key}\r\n"), reply)
            };
            batch.requests.extend(request.into_bytes());
            batch.replies.extend(reply.into_bytes());
        }
        batch
    };
    (0..REQUESTS / depth).map(|_| batch()).collect()
}

struct Connection {
    stream: TcpStream,
    /// The batch that is on its way.
    batch: usize,
    /// How much of its replies has come.
    read: usize,
}

/// TCP connections, each of which sends a batch, waits for all replies and
/// sends the next.
pub struct Clients<'a> {
    connections: Vec<Connection>,
    batches: &'a [Batch],
    epoll: Epoll,
    buffer: Vec<u8>,
}

impl<'a> Clients<'a> {
    /// Opens them inside a namespace.
    pub fn open(
        namespace: &Namespace,
        server: SocketAddr,
        count: usize,
        batches: &'a [Batch],
    ) -> Self {
        let streams = connect(namespace, server, count);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("the kernel has epoll");
        let mut connections = Vec::new();
        for (i, stream) in streams.into_iter().enumerate() {
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, i as u64)).expect("it is new");
            // Each starts somewhere else.
            connections.push(Connection { stream, batch: i * batches.len() / count, read: 0 });
        }
        Self { connections, batches, epoll, buffer: vec![0; 1 << 16] }
    }

    /// Keeps all of them busy for `time`. Returns how many batches were answered
    /// and how long that took; nothing is on its way any more then.
    ///
    /// # Panics
    /// When a reply is not what it must be.
    pub fn run(&mut self, time: Duration) -> (u64, Duration) {
        let start = Instant::now();
        for connection in &mut self.connections {
            connection.send(self.batches);
        }
        let mut busy = self.connections.len();
        let mut done = 0;
        let mut events = [EpollEvent::empty(); 64];
        while busy > 0 {
            let patience = EpollTimeout::from(5_u16 * 1000);
            let ready = match self.epoll.wait(&mut events, patience) {
                Ok(0) => panic!("no reply in five seconds"),
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(error) => panic!("cannot wait: {error}"),
            };
            let goes_on = start.elapsed() < time;
            for event in &events[..ready] {
                let connection = &mut self.connections[event.data() as usize];
                if connection.receive(self.batches, &mut self.buffer) {
                    done += 1;
                    if goes_on {
                        connection.send(self.batches);
                    } else {
                        busy -= 1;
                    }
                }
            }
        }
        (done, start.elapsed())
    }
}

impl Connection {
    /// Sends the next batch.
    fn send(&mut self, batches: &[Batch]) {
        self.batch = (self.batch + 1) % batches.len();
        self.read = 0;
        let requests = &batches[self.batch].requests;
        let sent = self.stream.write(requests).expect("the connection is open");
        assert_eq!(sent, requests.len(), "a batch is far smaller than a socket's buffer");
    }

    /// Reads what has come; whether the batch is answered.
    fn receive(&mut self, batches: &[Batch], buffer: &mut [u8]) -> bool {
        let len = match self.stream.read(buffer) {
            Ok(0) => panic!("memcached hung up"),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => panic!("cannot read: {error}"),
        };
        let expected = &batches[self.batch].replies[self.read..];
        assert!(
            expected.starts_with(&buffer[..len]),
            "{} instead of {}",
            buffer[..len].escape_ascii(),
            expected.escape_ascii()
        );
        self.read += len;
        len == expected.len()
    }
}
