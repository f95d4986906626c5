// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Clients that write and read while things go wrong, and know what each answer
//! may be.

use std::collections::HashMap;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use crate::common::Namespace;
use crate::common::Net;
use crate::common::PORT;
use crate::common::Rng;
use crate::common::items;

/// A UDP request is lost without an answer for so long, on a machine that has other
/// work too.
const LOST: Duration = Duration::from_secs(2);
/// A TCP connection is given up. Its segments are sent again within that time.
const STALLED: Duration = Duration::from_secs(5);
const KEYS: usize = 40;

/// What the faults and the clients tell each other.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// Grows when a memcached begins to end, which makes it odd, and when it ended.
    life: AtomicU64,
    /// Grows when requests may begin to get lost, which makes it odd, and when they
    /// may not any more.
    loss: AtomicU64,
    /// What went wrong that must not; the clients stop.
    failed: Mutex<Option<String>>,
    stopped: AtomicU64,
}

/// A moment of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    life: u64,
    loss: u64,
}

impl Moment {
    /// Whether nothing may get lost.
    fn is_calm(self) -> bool {
        self.loss.is_multiple_of(2)
    }
}

impl World {
    /// Requests may get lost while this runs.
    pub(crate) fn lossy<T>(&self, fault: impl FnOnce() -> T) -> T {
        self.loss.fetch_add(1, SeqCst);
        let result = fault();
        self.loss.fetch_add(1, SeqCst);
        result
    }

    /// Ends a memcached, and with it all that it knew.
    pub(crate) fn death<T>(&self, end: impl FnOnce() -> T) -> T {
        self.life.fetch_add(1, SeqCst);
        let result = end();
        self.life.fetch_add(1, SeqCst);
        result
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(1, SeqCst);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, why: String) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.stop();
    }

    fn now(&self) -> Moment {
        Moment { life: self.life.load(SeqCst), loss: self.loss.load(SeqCst) }
    }
}

/// What a client did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) gets: u64,
    pub(crate) lost: u64,
    pub(crate) found: u64,
    pub(crate) sets: u64,
}

/// One client, with keys that nobody else writes.
pub(crate) struct Client<'a> {
    world: &'a World,
    namespace: &'a Namespace,
    number: usize,
    rng: Rng,
    udp: UdpSocket,
    /// A connection, and when it was made.
    tcp: Option<(BufReader<TcpStream>, Moment)>,
    /// How often each key got a new name, because a connection that was given up may
    /// still write the one before.
    eras: [u32; KEYS],
    /// The values that memcached acknowledged, and in which life.
    values: HashMap<String, (Vec<u8>, u64)>,
    next_id: u16,
    tally: Tally,
}

impl<'a> Client<'a> {
    pub(crate) fn new(
        world: &'a World,
        namespace: &'a Namespace,
        number: usize,
        seed: u64,
    ) -> Self {
        let udp = namespace.within(|| {
            let udp = UdpSocket::bind("0.0.0.0:0").expect("a UDP socket");
            udp.connect((Net::SERVER4, PORT)).expect("a route");
            udp
        });
        udp.set_read_timeout(Some(Duration::from_millis(100))).expect("a time");
        Self {
            world,
            namespace,
            number,
            rng: Rng::new(seed),
            udp,
            tcp: None,
            eras: [0; KEYS],
            values: HashMap::new(),
            next_id: 0,
            tally: Tally::default(),
        }
    }

    /// Writes and reads until the world stops.
    pub(crate) fn run(mut self) -> Tally {
        while self.world.stopped.load(SeqCst) == 0 {
            let nth = self.rng.below(KEYS);
            let key = format!("k{}-{nth}-{}", self.number, self.eras[nth]);
            let done = if self.rng.chance(8) { self.set(nth, &key) } else { self.get(&key) };
            if let Err(why) = done {
                self.world.fail(format!("client {}: {key}: {why}", self.number));
            }
        }
        self.tally
    }

    fn get(&mut self, key: &str) -> Result<(), String> {
        let before = self.world.now();
        let sent = Instant::now();
        self.tally.gets += 1;
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id.to_be_bytes();
        let request = [&id[..], &[0, 0, 0, 1, 0, 0], b"get ", key.as_bytes(), b"\r\n"].concat();
        let mut buffer = [0; 2000];
        let mut length = None;
        let mut is_sent = false;
        // If it may have been lost there is no use to wait.
        while length.is_none() && sent.elapsed() < LOST && self.world.now().loss == before.loss {
            // The first error may be about an earlier one, which nobody received.
            is_sent = is_sent || self.udp.send(&request).is_ok();
            match self.udp.recv(&mut buffer) {
                Ok(len) if buffer[..2] == id => length = Some(len),
                Ok(_) => {} // a late one
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => sleep(Duration::from_millis(5)),
            }
        }
        let after = self.world.now();
        let Some(text) = length.map(|length| &buffer[8..length]) else {
            self.tally.lost += 1;
            if before.is_calm() && before.loss == after.loss {
                return Err(format!("no answer within {LOST:?}"));
            }
            return Ok(());
        };
        let (found, is_whole) = items(text);
        if !is_whole || found.len() > 1 || found.iter().any(|item| item.key != key.as_bytes()) {
            return Err(format!("answered by {}", text.escape_ascii()));
        }
        let found = found.into_iter().next().map(|item| item.data);
        self.tally.found += u64::from(found.is_some());
        let (value, life) = match self.values.get(key) {
            Some((value, life)) => (Some(value), *life),
            None => (None, after.life),
        };
        let is_right = if life == after.life {
            found.as_ref() == value
        } else if life < before.life && before.life.is_multiple_of(2) {
            found.is_none()
        } else {
            found.is_none() || found.as_ref() == value
        };
        if is_right {
            return Ok(());
        }
        let show = |value: Option<&Vec<u8>>| value.map(|value| value.escape_ascii().to_string());
        Err(format!(
            "answered by {:?}, but life {life} had {:?}; {before:?}, {after:?}",
            show(found.as_ref()),
            show(value),
        ))
    }

    fn set(&mut self, nth: usize, key: &str) -> Result<(), String> {
        let before = self.world.now();
        let number = self.rng.number();
        let length = 20 + self.rng.below(400);
        let mut value = format!("{key} {number} ").into_bytes();
        value.resize(value.len().max(length), b'x');
        let result = self.store(key, &value);
        let after = self.world.now();
        self.tally.sets += 1;
        match result {
            Ok(()) if before.life == after.life && before.life.is_multiple_of(2) => {
                self.values.insert(key.into(), (value, before.life));
                Ok(())
            }
            Err(err) if before.is_calm() && self.tcp.as_ref().is_none_or(|t| t.1 == after) => {
                Err(format!("cannot be stored: {err}"))
            }
            _ => {
                self.tcp = None;
                self.eras[nth] += 1;
                Ok(())
            }
        }
    }

    fn store(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let tcp = match &mut self.tcp {
            Some((tcp, _)) => tcp,
            none => &mut none.insert((connect(self.namespace)?, self.world.now())).0,
        };
        let request =
            [format!("set {key} 0 0 {}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat();
        tcp.get_mut().write_all(&request)?;
        let mut line = String::new();
        tcp.read_line(&mut line)?;
        if line == "STORED\r\n" { Ok(()) } else { Err(io::Error::other(format!("{line:?}"))) }
    }
}

fn connect(namespace: &Namespace) -> io::Result<BufReader<TcpStream>> {
    let server = SocketAddr::from((Net::SERVER4, PORT));
    let stream = namespace.within(|| TcpStream::connect_timeout(&server, STALLED))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALLED))?;
    stream.set_write_timeout(Some(STALLED))?;
    Ok(BufReader::new(stream))
}
