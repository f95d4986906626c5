// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A random stream of commands, and GETs that check what became of it.
//!
//! Each command meets keys that bmc has learnt, or it would prove little. Sound
//! commands leave all other keys learnt. What bmc does not follow makes it
//! forget everything and learn nothing for a second: such commands come in
//! short outbursts, after which the lane rests.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::LASTING;
use crate::commands::Command;
use crate::commands::Commands;
use crate::common::Net;
use crate::common::RngExt as _;
use crate::common::total;
use crate::pair::Compared;
use crate::pair::Connection;
use crate::pair::From;
use crate::pair::Pair;

/// How long bmc distrusts its view after what it has not followed.
pub(crate) const DISTRUST: Duration = Duration::from_millis(1050);
/// Keys with a story of their own between two outbursts.
const STORIES: usize = 70;
/// Keys that are learnt and have none.
const INNOCENT: usize = 5;
/// Keys that an outburst meets, and how many commands it has at most.
const WITNESSES: usize = 6;
const OUTBURST: usize = 5;

/// What a datagram, or a segment, holds.
const DATAGRAM: usize = 1400;

/// What a lane has done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) commands: usize,
    /// Keys asked for over UDP, and how many of them the kernel answered.
    pub(crate) asked: u64,
    pub(crate) hits: u64,
    pub(crate) held_back: u64,
    pub(crate) fills: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.commands += other.commands;
        self.asked += other.asked;
        self.hits += other.hits;
        self.held_back += other.held_back;
        self.fills += other.fills;
        self.writes += other.writes;
        self.flushes += other.flushes;
    }
}

/// One bmc and its stream.
pub(crate) struct Lane {
    pair: Pair,
    commands: Commands,
    /// Says nothing but sound sets.
    teacher: Connection,
    /// For commands that are sent whole, one at a time, and are answered.
    orderly: Connection,
    /// Keys that were learnt and that nothing should happen to.
    innocent: Vec<Vec<u8>>,
    server: IpAddr,
    told: usize,
}

impl Lane {
    pub(crate) fn new(name: &str, mode: &str, server: IpAddr, seed: u64) -> Self {
        let other = if server.is_ipv4() { Net::SERVER6 } else { Net::SERVER4 };
        let args = [&["--mode", mode], LASTING].concat();
        let mut pair = Pair::new(&format!("{name}-{mode}"), &[server, server, other], &args);
        let [teacher, orderly] = [(); 2].map(|()| pair.connect(From::Outside(server)));
        let commands = Commands::new(seed);
        Self { pair, commands, teacher, orderly, innocent: Vec::new(), server, told: 0 }
    }

    /// Tells `count` commands.
    pub(crate) fn run(mut self, count: usize) -> Tally {
        while self.told < count {
            self.rest();
            self.teacher = self.connect();
            self.innocent = (0..INNOCENT).map(|_| self.commands.fresh_key()).collect();
            for key in self.innocent.clone() {
                self.teach(&key);
            }
            let untidy = &mut self.connect();
            for _ in 0..STORIES {
                if self.chance(3) {
                    *untidy = self.connect();
                }
                self.story(untidy);
            }
            self.outburst();
        }
        let stats = self.pair.bmc.stats();
        let [hits, fills, writes, flushes] =
            ["hits", "fills", "write_requests", "flushes"].map(|name| total(&stats, name));
        let (asked, held_back) = (self.pair.asked, self.pair.held_back);
        Tally { commands: self.told, asked, hits, held_back, fills, writes, flushes }
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.commands.rng.chance(percent)
    }

    fn connect(&mut self) -> Connection {
        let other = if self.server.is_ipv4() { Net::SERVER6 } else { Net::SERVER4 };
        let from = match self.commands.rng.below(8) {
            0 => From::Outside(other),
            1 => From::Loopback,
            _ => From::Outside(self.server),
        };
        self.pair.connect(from)
    }

    fn socket(&mut self) -> usize {
        let sockets = self.pair.sockets();
        self.commands.rng.small(0, sockets - 1)
    }

    /// GETs of some keys over UDP, each and together.
    fn look(&mut self, keys: &[Vec<u8>]) {
        for key in keys {
            let socket = self.socket();
            self.pair.get(socket, &[key]);
        }
        if keys.len() > 1 && self.chance(50) {
            // Sometimes more than bmc looks up, or than one datagram holds.
            let count = if self.chance(20) { self.commands.rng.small(2, 40) } else { 4 };
            let mut all: Vec<&[u8]> = keys.iter().cycle().take(count).map(Vec::as_slice).collect();
            while all.concat().len() + all.len() > 1300 {
                all.pop();
            }
            let socket = self.socket();
            self.pair.get(socket, &all);
        }
    }

    /// Stores a key and lets bmc learn it.
    fn teach(&mut self, key: &[u8]) {
        let set = self.commands.set(key);
        self.told += 1;
        let answer = self.pair.tell(&mut self.teacher, &set.bytes);
        assert_eq!(answer, b"STORED\r\n", "a sound set");
        for _ in 0..2 {
            let socket = self.socket();
            self.pair.get(socket, &[key]);
        }
        if self.chance(10) {
            let request = [b"gets ", key, b"\r\n"].concat();
            let answer = self.pair.tell(&mut self.orderly, &request);
            self.told += 1;
            let line = answer.split(|&byte| byte == b'\r').next().unwrap_or_default();
            let unique = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
            let unique = std::str::from_utf8(unique).ok().and_then(|text| text.parse().ok());
            self.commands.unique = unique.expect("gets tells the unique number");
        }
    }

    /// A key is learnt, something happens to it, and then it is asked for.
    fn story(&mut self, untidy: &mut Connection) {
        let key = self.commands.key();
        if self.chance(90) {
            self.teach(&key);
        }
        let told = match self.commands.rng.below(20) {
            0..13 => {
                if self.chance(25) {
                    self.orderly = self.connect();
                }
                let command = self.commands.answered(&key);
                self.whole(&command);
                command
            }
            13 => {
                let command = self.commands.quiet(&key);
                self.tell(untidy, &command, &[], true);
                command
            }
            14 | 15 => {
                let command =
                    if self.chance(40) { self.batch(&key, DATAGRAM) } else { self.any(&key) };
                self.by_datagram(&command);
                command
            }
            16 => {
                let command = self.batch(&key, DATAGRAM);
                let pieces = self.pieces(command.bytes.len());
                self.tell(untidy, &command, &pieces, true);
                command
            }
            _ => {
                // Cut somewhere; nothing has happened before it is all there.
                let command = self.any(&key);
                let pieces = self.pieces(command.bytes.len());
                let mut connection = self.connect();
                self.tell(&mut connection, &command, &pieces, true);
                command
            }
        };
        let mut keys = told.keys;
        keys.sort();
        keys.dedup();
        for _ in 0..=self.commands.rng.below(3) {
            self.look(&keys);
        }
        let mut others: Vec<_> =
            (0..2).map(|_| self.innocent[self.commands.rng.below(INNOCENT)].clone()).collect();
        if self.chance(20) {
            others[0] = self.commands.key();
        }
        self.look(&others);
    }

    fn any(&mut self, key: &[u8]) -> Command {
        if self.chance(70) { self.commands.answered(key) } else { self.commands.quiet(key) }
    }

    /// Several commands, at most `size` bytes, to keys that are all learnt.
    fn batch(&mut self, key: &[u8], size: usize) -> Command {
        let mut keys = vec![key.to_vec()];
        for _ in 0..2 {
            let other = self.commands.fresh_key();
            self.teach(&other);
            keys.push(other);
        }
        let mut batch: Vec<Command> = Vec::new();
        for _ in 0..2 + self.commands.rng.below(6) {
            let key = keys[self.commands.rng.below(keys.len())].clone();
            batch.push(self.any(&key));
            if batch.iter().map(|command| command.bytes.len()).sum::<usize>() > size {
                batch.pop();
            }
        }
        self.told += batch.len().saturating_sub(1);
        Command::batch(&batch)
    }

    /// Where to cut so many bytes, if at all.
    fn pieces(&mut self, len: usize) -> Vec<usize> {
        let cuts = [0, 1, 1, 2, 3][self.commands.rng.below(5)];
        let mut cuts: Vec<usize> = (0..cuts).map(|_| self.commands.rng.below(len + 1)).collect();
        cuts.sort_unstable();
        cuts
    }

    fn whole(&mut self, command: &Command) {
        self.told += 1;
        self.pair.send(&mut self.orderly, &command.bytes);
        self.pair.answer(&mut self.orderly, compared(command));
    }

    /// By TCP, in pieces; between them the keys are asked for. Whether it is
    /// sound to its end must be known.
    ///
    /// Several commands in pieces are never hurried, nor more than a segment:
    /// whether memcached has sent one answer before it reads the next command
    /// shows. It pads a shorter number with spaces, but not that of an item
    /// that it has still to send.
    fn tell(
        &mut self,
        connection: &mut Connection,
        command: &Command,
        cuts: &[usize],
        sound: bool,
    ) {
        self.told += 1;
        let mut start = 0;
        for &cut in cuts {
            self.pair.send(connection, &command.bytes[start..cut]);
            start = cut;
            if command.keys.len() > 1 || self.chance(50) {
                self.pair.answer_so_far(connection, compared(command));
                let keys: Vec<_> = command.keys.iter().take(2).cloned().collect();
                self.look(&keys);
            }
        }
        self.pair.send(connection, &command.bytes[start..]);
        if sound {
            self.pair.answer(connection, compared(command));
        } else {
            self.pair.answer_so_far(connection, compared(command));
        }
    }

    /// By UDP, in a sound frame, if it fits.
    fn by_datagram(&mut self, command: &Command) {
        if command.bytes.len() > DATAGRAM {
            return;
        }
        self.told += 1;
        let request = self.pair.datagram(&command.bytes);
        let socket = self.socket();
        self.pair.ask(socket, &request, compared(command));
    }

    /// Things that bmc need not understand, said to keys that it has learnt.
    fn outburst(&mut self) {
        let witnesses: Vec<Vec<u8>> = (0..WITNESSES).map(|_| self.commands.key()).collect();
        for key in &witnesses {
            self.teach(key);
        }
        let mut connection = self.connect();
        let mut binary = self.connect();
        for _ in 0..=self.commands.rng.below(OUTBURST) {
            let key = witnesses[self.commands.rng.below(WITNESSES)].clone();
            match self.commands.rng.below(20) {
                0..4 => self.outburst_by_datagram(&key),
                4..9 => {
                    let mut command = if self.chance(80) {
                        self.commands.binary(&key)
                    } else {
                        self.commands.broken_binary(&key)
                    };
                    if self.chance(30) {
                        let other = self.commands.binary(&key);
                        command = Command::batch(&[command, other]);
                    }
                    let pieces = self.pieces(command.bytes.len());
                    self.tell(&mut binary, &command, &pieces, false);
                }
                _ => {
                    let mut command = self.outcry(&key);
                    if self.chance(20) {
                        let [before, after] = [self.any(&key), self.any(&key)];
                        command = Command::batch(&[before, command, after]);
                    }
                    let pieces =
                        if self.chance(30) { self.pieces(command.bytes.len()) } else { Vec::new() };
                    self.tell(&mut connection, &command, &pieces, false);
                }
            }
            self.look(&witnesses);
            // What a broken command has left behind is the next one's, often.
            if connection.closed[0] || self.chance(30) {
                connection = self.connect();
            }
            if binary.closed[0] || self.chance(10) {
                binary = self.connect();
            }
        }
        // Said to the end, or hung up in the middle.
        if self.chance(50) {
            let command = self.any(&witnesses[0]);
            let half = self.commands.rng.below(command.bytes.len());
            self.pair.send(&mut connection, &command.bytes[..half]);
            self.pair.answer_so_far(&mut connection, compared(&command));
        }
        drop(connection);
        self.look(&witnesses);
        self.innocent = witnesses;
    }

    /// Until bmc learns again; what it has not forgotten stays right meanwhile.
    fn rest(&mut self) {
        let end = Instant::now() + DISTRUST;
        while self.chance(70) {
            thread::sleep(Duration::from_millis(100));
            self.look(&self.innocent.clone());
        }
        thread::sleep(end.saturating_duration_since(Instant::now()));
    }

    fn outcry(&mut self, key: &[u8]) -> Command {
        match self.commands.rng.below(11) {
            0 | 1 => self.commands.flush(),
            2 | 3 => {
                let quiet = self.chance(30);
                self.commands.meta(key, true, quiet)
            }
            4 | 5 => self.commands.touch_several(key),
            6 | 7 => self.commands.odd(key),
            8 | 9 => self.commands.broken(key),
            _ => self.commands.large(key),
        }
    }

    fn outburst_by_datagram(&mut self, key: &[u8]) {
        let command = match self.commands.rng.below(9) {
            0 => self.commands.flush(),
            1 => self.commands.meta(key, true, false),
            2 => self.commands.odd(key),
            3 => self.commands.broken(key),
            4 => self.commands.binary(key),
            5 => self.commands.broken_binary(key),
            6 => self.batch(key, DATAGRAM),
            7 => self.commands.too_long(key),
            _ => self.any(key),
        };
        let text = &command.bytes;
        let request = match self.commands.rng.below(16) {
            0 => self.pair.frame(1, 1, 0, text),
            1 => self.pair.frame(0, 2, 0, text),
            2 => self.pair.frame(1, 2, 0, text),
            3 => self.pair.frame(0, 0, 0, text),
            4 => self.pair.frame(0, 1, 7, text),
            5 => self.pair.frame(0, 257, 0, text),
            6 => self.pair.datagram(b""),
            7 => text[..text.len().min(8)].to_vec(),
            _ => self.pair.datagram(text),
        };
        self.told += 1;
        let socket = self.socket();
        self.pair.ask(socket, &request, compared(&command));
    }
}

fn compared(command: &Command) -> Compared {
    if command.tells_use { Compared::WithoutUse } else { Compared::Exactly }
}
