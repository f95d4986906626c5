// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Random commands of memcached's three protocols, sound and broken.
//!
//! Times of expiry are either over at once or far away: the clocks of two
//! processes do not tick together (see expiry.rs). Never said is what would
//! stop memcached from answering anybody: a value over UDP that is too large,
//! for which it discards all datagrams that come.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::common::Rng;
use crate::common::RngExt as _;

/// What is sent, and what it is about.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) bytes: Vec<u8>,
    /// The keys it names, at least those that it may change.
    pub(crate) keys: Vec<Vec<u8>>,
    /// The answer tells of time or use.
    pub(crate) tells_use: bool,
}

impl Command {
    fn new(bytes: impl Into<Vec<u8>>, keys: &[&[u8]]) -> Self {
        let keys = keys.iter().map(|key| key.to_vec()).collect();
        Self { bytes: bytes.into(), keys, tells_use: false }
    }

    fn telling_use(mut self) -> Self {
        self.tells_use = true;
        self
    }

    /// Several, one behind the other.
    pub(crate) fn batch(commands: &[Self]) -> Self {
        Self {
            bytes: commands.iter().flat_map(|command| &command.bytes).copied().collect(),
            keys: commands.iter().flat_map(|command| &command.keys).cloned().collect(),
            tells_use: commands.iter().any(|command| command.tells_use),
        }
    }
}

/// The longest key of memcached.
const KEY_MAX: usize = 250;
/// The largest item of memcached, key and all.
const ITEM_MAX: usize = 1 << 20;

/// Commands that few clients send, or that are none. `{}` is the key.
#[rustfmt::skip]
const ODD: &[&str] = &[
    "", "\r\n", "\n", " \r\n", "\0\r\n", "get\r\n", "get \r\n", "gets\r\n", "get {}\n",
    "get {}\r\r\n", " get {}\r\n", "get  {}  {}\r\n", "get {}\tx\r\n", "GET {}\r\n",
    "getx {}\r\n", "get {} noreply\r\n", "set\r\n", "set {}\r\n", "Set {} 0 0 1\r\nx\r\n",
    "set {} 0 0 1\nx\r\n", "set {} 0 0 1\r\nx\n", "set {} 0 0 1\r\nx", "set {} 0 0 2\r\nx\r\n",
    "set {} 0 0 1\r\nxy\r\n", "set {} 0 0\r\nx\r\n", "set {} x 0 1\r\nx\r\n",
    "set {} -1 0 1\r\nx\r\n", "set {} 4294967296 0 1\r\nx\r\n",
    "set {} 99999999999999999999 0 1\r\nx\r\n", "set {} 0 x 1\r\nx\r\n",
    "set {} 0 99999999999 1\r\nx\r\n", "set {} 0 -2147483649 1\r\nx\r\n",
    "set {} 0 0 -1\r\nx\r\n", "set {} 0 0 x\r\nx\r\n", "set {} 0 0 +1\r\nx\r\n",
    "set {} 0 0 01\r\nx\r\n", "set {} 0 0 1 noreply x\r\nx\r\n", "set {} 0 0 1 norep\r\nx\r\n",
    "set  {}  7  0  1 \r\nx\r\n", "set {} 0 0 1 noreply\r\nxy\r\n",
    "set {} x 0 1 noreply\r\nx\r\n", "cas {} 0 0 1\r\nx\r\n", "cas {} 0 0 1 x\r\nx\r\n",
    "append {} 0 0 1\nx\r\n", "delete\r\n", "delete {}\n", "delete {} 0\r\n", "delete {} 5\r\n",
    "delete {} 0 noreply\r\n", "delete {} x noreply\r\n", "incr {}\r\n", "incr {} x\r\n",
    "incr {} -1\r\n", "incr {} 18446744073709551616\r\n",
    "set {} 0 0 2\r\n10\r\nincr {} 18446744073709551615\r\n", "decr {} 1 2\r\n", "incr {} 1\n",
    "set {} x 0 12\r\ndelete {}\r\n", "set {} 0 0 -1\r\ndelete {}\r\n",
    "set {} 0 0\r\ndelete {}\r\n", "set {} 0 0 1\r\nxxxx\r\ndelete {}\r\n",
    "set {} 0 0 9 x\r\ndelete {}\r\n", "ms {} x\r\ndelete {}\r\n", "ms {} 5 Z\r\ndelete {}\r\n",
    "cas {} 0 0 9\r\ndelete {}\r\n", "append {} 0 0 2\r\nx\ndelete {}\r\n",
    "touch {}\r\n", "touch {} x\r\n", "touch {} 0\n", "gat\r\n", "gat 0\r\n", "gat x {}\r\n",
    "gat 0 {} {}\r\n", "gats 0 {} none {}\r\n", "gat 1000 none {}\r\n", "mn\r\n", "mn x\r\n",
    "mg\r\n", "mg {}\r\n", "mg {} Z\r\n", "mg {} v v\r\n", "mg {} N\r\n", "mg {} E7 N0 v c\r\n",
    "ms {}\r\n", "ms {} x\r\n", "ms {} 1 Z\r\nx\r\n", "ms {} 1\r\nxy\r\n", "ms {} -1\r\nx\r\n",
    "ms {} 1 T\r\nx\r\n", "ms {} 1 E7\r\nx\r\n", "ms {} S1\r\nx\r\n", "md {} x\r\n",
    "md {} I I\r\n", "ma {} Nx\r\n", "ma {} D-1\r\n", "ma {} Mx\r\n", "ms {} 1 b\r\nx\r\n",
    "mg {} b v\r\n", "md {} b\r\n", "me\r\n", "me {} b\r\n", "bogus\r\n", "bogus {}\r\n",
    "version\r\n", "version x\r\n", "verbosity\r\n", "verbosity 0\r\n", "verbosity 0 noreply\r\n",
    "verbosity x\r\n", "stats bogus\r\n", "stats reset\r\n", "stats detail\r\n", "shutdown\r\n",
    "slabs\r\n", "slabs automove 0\r\n", "lru\r\n", "lru_crawler\r\n", "cache_memlimit 1024\r\n",
    "cache_memlimit\r\n", "extstore x\r\n", "watch bogus\r\n", "quit\r\n", "quit noreply\r\n",
    "quit x\r\n",
];

/// Those whose answers tell of time or use.
#[rustfmt::skip]
const TELLING_USE: &[&str] = &[
    "stats\r\n", "stats items\r\n", "stats slabs\r\n", "stats sizes\r\n", "me {}\r\n",
    "mg {} t h l v\r\n",
];

/// Those that are broken on purpose.
#[rustfmt::skip]
const SOUND: &[&str] = &[
    "set {} 0 0 5\r\nhello\r\n", "add {} 7 0 2\r\n12\r\n", "replace {} 0 0 0\r\n\r\n",
    "append {} 0 0 1\r\n9\r\n", "prepend {} 0 0 1\r\n9\r\n", "set {} 0 0 4 noreply\r\nabcd\r\n",
    "cas {} 0 0 1 7\r\nc\r\n", "incr {} 7\r\n", "decr {} 7 noreply\r\n", "delete {}\r\n",
    "delete {} noreply\r\n", "gat 0 {}\r\n", "get {}\r\n", "gets {} {}\r\n",
    "ms {} 5 F7\r\nhello\r\n", "ms {} 2 q\r\nab\r\n", "md {} q\r\n", "ma {} D7 v\r\n",
    "mg {} s v\r\n",
];

/// Makes commands.
pub(crate) struct Commands {
    pub(crate) rng: Rng,
    /// Those asked for again and again.
    common: Vec<Vec<u8>>,
    names: usize,
    /// Of the item that `gets` told of last.
    pub(crate) unique: u64,
}

impl Commands {
    pub(crate) fn new(seed: u64) -> Self {
        let mut commands = Self { rng: Rng::new(seed), common: Vec::new(), names: 0, unique: 1 };
        commands.common = (0..20).map(|_| commands.fresh_key()).collect();
        for len in [1, 2, 249, KEY_MAX] {
            commands.common.push(vec![b'k'; len]);
        }
        commands
    }

    fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.rng.below(all.len())]
    }

    /// A key that was never used.
    pub(crate) fn fresh_key(&mut self) -> Vec<u8> {
        self.names += 1;
        let mut key = format!("{:x}-", self.names).into_bytes();
        let most = if self.rng.chance(10) { KEY_MAX } else { 40 };
        let len = self.rng.small(key.len(), most);
        while key.len() < len {
            let byte = b'!' + self.rng.below(94) as u8;
            key.push(if self.rng.chance(3) { byte | 0x80 } else { byte });
        }
        key
    }

    pub(crate) fn key(&mut self) -> Vec<u8> {
        if self.rng.chance(25) {
            let i = self.rng.below(self.common.len());
            return self.common[i].clone();
        }
        self.fresh_key()
    }

    /// What is counted with, so small that no sum comes near 2^63: beyond it,
    /// what memcached says depends on the memory behind the value.
    fn number(&mut self) -> &'static str {
        self.pick(&["0", "1", "5", "10", "99", "007", "4294967295"])
    }

    /// A value; what looks like commands and replies is among it.
    fn value(&mut self) -> Vec<u8> {
        match self.rng.below(10) {
            0..3 => self.number().into(),
            3 => {
                let i = self.rng.below(self.common.len());
                let key = self.common[i].clone();
                let crafted = self.pick(&[
                    "\r\nset {} 0 0 1\r\nx\r\n",
                    "x\r\ndelete {}\r\n",
                    "END\r\n",
                    "\r\nEND",
                ]);
                let [before, after] = match crafted.split_once("{}") {
                    Some((before, after)) => [before, after],
                    None => ["VALUE k 0 1\r\nx\r\n", crafted],
                };
                [before.as_bytes(), &key, after.as_bytes()].concat()
            }
            4 => {
                let len = 1300 + self.rng.below(1500);
                self.rng.bytes(len)
            }
            _ => {
                let len = self.rng.small(0, 1300);
                self.rng.bytes(len)
            }
        }
    }

    fn expiry(&mut self) -> String {
        let soon =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()) + 5000;
        match self.rng.below(12) {
            0 => "-1".into(),
            1 => "1000".into(),
            2 => "2592000".into(),
            // Beyond thirty days it is a date: long ago, or not yet.
            3 => "2592001".into(),
            4 => soon().to_string(),
            5 => "2147483647".into(),
            _ => "0".into(),
        }
    }

    fn flags(&mut self) -> &'static str {
        self.pick(&["0", "0", "0", "1", "42", "65535", "4294967295"])
    }

    /// A set that any client may send.
    pub(crate) fn set(&mut self, key: &[u8]) -> Command {
        let value = self.value();
        let flags = self.flags();
        store("set", key, flags, "0", &value, "")
    }

    /// A command of the text protocol, as a client would send it.
    pub(crate) fn text(&mut self, key: &[u8], quiet: bool) -> Command {
        let tail = if quiet { " noreply" } else { "" };
        let line = |words: &[&[u8]]| {
            let line = [&words.join(&b' ')[..], tail.as_bytes(), b"\r\n"].concat();
            Command::new(line, &[key])
        };
        let expiry = self.expiry();
        match self.rng.below(if quiet { 12 } else { 17 }) {
            0..5 => {
                let verb = self.pick(&["set", "set", "add", "replace", "append", "prepend"]);
                let (flags, value) = (self.flags(), self.value());
                store(verb, key, flags, &expiry, &value, tail)
            }
            5 => {
                let unique = self.unique + self.rng.below(4) as u64 / 3;
                let (flags, value) = (self.flags(), self.value());
                store("cas", key, flags, &expiry, &value, &format!(" {unique}{tail}"))
            }
            6..9 => {
                let verb = self.pick(&["incr", "decr"]);
                let by = self.number();
                line(&[verb.as_bytes(), key, by.as_bytes()])
            }
            9..11 => line(&[b"delete", key]),
            11 => line(&[b"touch", key, expiry.as_bytes()]),
            12 => {
                let verb = self.pick(&["gat", "gats"]);
                line(&[verb.as_bytes(), expiry.as_bytes(), key])
            }
            13 => line(&[b"gets", key]),
            14 => line(&[b"get", key, key]),
            _ => {
                let other = self.key();
                Command::new([b"get ", key, b" ", &other, b"\r\n"].concat(), &[key, &other])
            }
        }
    }

    /// A meta command; with its key encoded, quiet, neither or both.
    pub(crate) fn meta(&mut self, key: &[u8], encoded: bool, quiet: bool) -> Command {
        let name = if encoded { base64(key) } else { key.to_vec() };
        let verb = self.pick(&["mg", "mg", "ms", "ms", "md", "ma", "ma"]);
        let all: &[&str] = match verb {
            "mg" => &[
                "v", "v", "f", "s", "k", "c", "t", "h", "l", "N0", "N1000", "R30", "R5000",
                "T1000", "T0", "T-1",
            ],
            "ms" => &[
                "F5",
                "F4294967295",
                "T0",
                "T1000",
                "T-1",
                "c",
                "k",
                "I",
                "C1",
                "MS",
                "MA",
                "MP",
                "ME",
                "MR",
                "Mset",
                "Mappend",
            ],
            "md" => &["k", "I", "T1000", "C1", "T0"],
            _ => &[
                "v",
                "c",
                "k",
                "t",
                "N0",
                "N1000",
                "J13",
                "D1",
                "D4294967296",
                "MI",
                "MD",
                "M+",
                "M-",
                "Mdecr",
                "T1000",
                "C1",
            ],
        };
        let mut line = [verb.as_bytes(), b" ", &name].concat();
        let value = self.value();
        if verb == "ms" {
            line.extend_from_slice(format!(" {}", value.len()).as_bytes());
        }
        let mut tells_use = false;
        for _ in 0..self.rng.below(5) {
            let mut flag = self.pick(all).to_string();
            if flag == "C1" {
                flag = format!("C{}", self.unique);
            }
            tells_use |= ["t", "h", "l"].contains(&flag.as_str());
            line.extend_from_slice(format!(" {flag}").as_bytes());
        }
        for (wanted, flag) in [(encoded, " b"), (quiet, " q"), (self.rng.chance(20), " O1a2b")] {
            if wanted {
                line.extend_from_slice(flag.as_bytes());
            }
        }
        line.extend_from_slice(b"\r\n");
        if verb == "ms" {
            line.extend_from_slice(&value);
            line.extend_from_slice(b"\r\n");
        }
        Command { bytes: line, keys: vec![key.to_vec()], tells_use }
    }

    /// One command that is answered.
    pub(crate) fn answered(&mut self, key: &[u8]) -> Command {
        if self.rng.chance(30) { self.meta(key, false, false) } else { self.text(key, false) }
    }

    /// One command that is answered at most in case of an error.
    pub(crate) fn quiet(&mut self, key: &[u8]) -> Command {
        if self.rng.chance(30) { self.meta(key, false, true) } else { self.text(key, true) }
    }

    /// What changes or may change every key.
    pub(crate) fn flush(&mut self) -> Command {
        // The delayed ones take back what came before: an odd thing to do.
        let line = self.pick(&[
            "flush_all\r\n",
            "flush_all\r\n",
            "flush_all\n",
            "flush_all noreply\r\n",
            "flush_all 0\r\n",
            "flush_all -1\r\n",
            "flush_all  0 noreply\r\n",
            "flush_all 1000000\r\n",
            "flush_all abc\r\n",
        ]);
        Command::new(line, &[])
    }

    /// Commands that few clients send, or that are none.
    pub(crate) fn odd(&mut self, key: &[u8]) -> Command {
        if self.rng.chance(20) {
            return Self::fill_in(self.pick(TELLING_USE), key).telling_use();
        }
        Self::fill_in(self.pick(ODD), key)
    }

    fn fill_in(line: &str, key: &[u8]) -> Command {
        let parts: Vec<&[u8]> = line.split("{}").map(str::as_bytes).collect();
        Command::new(parts.join(key), &[key])
    }

    /// Several keys touched, most of the time to end at once.
    pub(crate) fn touch_several(&mut self, key: &[u8]) -> Command {
        let verb = self.pick(&["gat", "gats"]);
        let expiry = self.pick(&["-1", "-1", "1000"]);
        let mut keys = vec![self.key(), key.to_vec()];
        if self.rng.chance(30) {
            keys.swap(0, 1);
        }
        let line = format!("{verb} {expiry} ");
        let bytes = [line.as_bytes(), &keys.join(&b' ')[..], b"\r\n"].concat();
        Command { bytes, keys, tells_use: false }
    }

    /// A GET that memcached refuses for one of its keys.
    pub(crate) fn too_long(&mut self, key: &[u8]) -> Command {
        let long = vec![b'l'; KEY_MAX + 1];
        let keys: &[&[u8]] = if self.rng.chance(50) { &[key, &long] } else { &[&long, key] };
        Command::new([b"get ", &keys.join(&b' ')[..], b"\r\n"].concat(), &[key])
    }

    /// What only TCP can carry: large values, long lines.
    pub(crate) fn large(&mut self, key: &[u8]) -> Command {
        match self.rng.below(6) {
            0 | 1 => {
                // Just too large for memcached, or just not, or far.
                let slack = [0, 48, 60, 70, 80, 100, 4000][self.rng.below(7)];
                let len = ITEM_MAX + 30 - key.len() - slack;
                let quiet = self.pick(&["", " noreply"]);
                store("set", key, "0", "0", &vec![b'x'; len], quiet)
            }
            2 => {
                let len = 5000 + self.rng.below(200_000);
                let value = self.rng.bytes(len);
                store("set", key, "3", "0", &value, "")
            }
            3 => Self::fill_in("set {} 0 0 2147483647\r\nx\r\n", key),
            4 => {
                let keys: Vec<&[u8]> = (0..150).map(|_| key).collect();
                Command::new([b"get ", &keys.join(&b' ')[..], b"\r\n"].concat(), &[key])
            }
            // A line without an end.
            _ => {
                let word = self.pick(&["get ", "gets ", "set ", "x", "mg "]);
                let len = 1000 + self.rng.below(9000);
                Command::new([word.as_bytes(), &vec![b'y'; len]].concat(), &[key])
            }
        }
    }

    /// A sound command with one thing wrong. The sound ones have no digits of
    /// which one that is lost or a space would make a time of expiry.
    pub(crate) fn broken(&mut self, key: &[u8]) -> Command {
        let line = self.pick(SOUND);
        let mut command = Self::fill_in(line, key);
        let bytes = &mut command.bytes;
        let at = self.rng.below(bytes.len());
        let line_end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(0);
        match self.rng.below(9) {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, b' '),
            2 => bytes.insert(at, [0, 1, b'\t', b'\r', b'\n', 0x7f, 0x80, b'x'][self.rng.below(8)]),
            3 => bytes[at] = [0, 1, b'\t', b' ', 0xff, b'q'][self.rng.below(6)],
            4 => bytes.truncate(at),
            5 => drop(bytes.remove(line_end - 1)),
            6 => drop(bytes.remove(line_end)),
            7 => {
                // 251 bytes of key, or many more.
                let len = [KEY_MAX + 1, 300, 320, 500][self.rng.below(4)];
                let long = vec![b'l'; len];
                command = Self::fill_in(line, &long);
                command.keys = vec![key.to_vec()];
            }
            _ => bytes.extend_from_slice(b"\r\n"),
        }
        command
    }

    /// A request of the binary protocol: any opcode, quiet ones included.
    pub(crate) fn binary(&mut self, key: &[u8]) -> Command {
        let opcode = match self.rng.below(10) {
            0 => self.rng.below(0x42) as u8,
            _ => [
                0, 1, 2, 3, 4, 5, 6, 9, 0xa, 0xc, 0xd, 0xe, 0xf, 0x11, 0x12, 0x13, 0x14, 0x15,
                0x16, 0x19, 0x1a, 0x1c, 0x1d, 0x1e, 0x23, 0x24,
            ][self.rng.below(26)],
        };
        let expiry = [0_u32, 0, 1000, u32::MAX - 1][self.rng.below(4)].to_be_bytes();
        let (extras, key_, value): (Vec<u8>, &[u8], Vec<u8>) = match opcode {
            1..=3 | 0x11..=0x13 => {
                let flags = [0_u32, 1, u32::MAX][self.rng.below(3)].to_be_bytes();
                ([flags, expiry].concat(), key, self.value())
            }
            5 | 6 | 0x15 | 0x16 => {
                let by = [0, 1, 5, 1_u64 << 32][self.rng.below(4)].to_be_bytes();
                let initial = [0, 10_u64][self.rng.below(2)].to_be_bytes();
                let expiry = [0, u32::MAX][self.rng.below(2)].to_be_bytes();
                ([&by[..], &initial, &expiry].concat(), key, Vec::new())
            }
            0xe | 0xf | 0x19 | 0x1a => (Vec::new(), key, self.value()),
            0x1c..=0x1e | 0x23 | 0x24 => (expiry.to_vec(), key, Vec::new()),
            7 | 8 | 0xa | 0xb | 0x17 | 0x18 => (Vec::new(), b"", Vec::new()),
            // Statistics differ: none are asked for.
            0x10 => (Vec::new(), b"reset", Vec::new()),
            _ => (Vec::new(), key, Vec::new()),
        };
        let unique = if self.rng.chance(10) { self.unique } else { 0 };
        let opaque = self.rng.number() as u32;
        let bytes = binary(opcode, &extras, key_, &value, opaque, unique);
        Command::new(bytes, &[key])
    }

    /// One with a wrong header, or not all there.
    pub(crate) fn broken_binary(&mut self, key: &[u8]) -> Command {
        let mut command = self.binary(key);
        let bytes = &mut command.bytes;
        match self.rng.below(9) {
            0 => bytes[0] = [0, 0x81, b'g', 0xff][self.rng.below(4)],
            1 => bytes[3] = bytes[3].wrapping_add([1, 0xff, 4][self.rng.below(3)]),
            2 => bytes[2] = 1,
            3 => bytes[4] = bytes[4].wrapping_add([1, 0xff, 4, 8][self.rng.below(4)]),
            4 => bytes[11] = bytes[11].wrapping_add([1, 0xff, 4][self.rng.below(3)]),
            5 => bytes[5] = 1,
            6 => bytes[6] = 1,
            7 => {
                let len = self.rng.below(bytes.len());
                bytes.truncate(len);
            }
            _ => bytes.extend_from_slice(&[0x80, 0xa, 0]),
        }
        command
    }
}

/// A command with a data block; `tail` is what stands behind its length.
fn store(verb: &str, key: &[u8], flags: &str, expiry: &str, value: &[u8], tail: &str) -> Command {
    let line = format!(" {flags} {expiry} {}{tail}\r\n", value.len());
    Command::new([verb.as_bytes(), b" ", key, line.as_bytes(), value, b"\r\n"].concat(), &[key])
}

/// A request of the binary protocol.
pub(crate) fn binary(
    opcode: u8,
    extras: &[u8],
    key: &[u8],
    value: &[u8],
    opaque: u32,
    unique: u64,
) -> Vec<u8> {
    let body = extras.len() + key.len() + value.len();
    let mut bytes = vec![0x80, opcode];
    bytes.extend_from_slice(&(key.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[extras.len() as u8, 0, 0, 0]);
    bytes.extend_from_slice(&(body as u32).to_be_bytes());
    bytes.extend_from_slice(&opaque.to_be_bytes());
    bytes.extend_from_slice(&unique.to_be_bytes());
    [&bytes, extras, key, value].concat()
}

/// As the b flag of the meta commands wants it.
pub(crate) fn base64(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::new();
    for three in bytes.chunks(3) {
        let word = [0, 1, 2].map(|i| u32::from(three.get(i).copied().unwrap_or(0)));
        let word = word[0] << 16 | word[1] << 8 | word[2];
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= three.len() { letter } else { b'=' });
        }
    }
    text
}
