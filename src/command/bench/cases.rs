// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The cases: loads to measure.

/// Number of keys in the cases that measure the cost of a request: few enough for any cache.
const KEYS: usize = 4096;

/// Memory of bmc in the cases that have more keys than it holds. It is small, so that memcached
/// can be filled quickly.
const ZIPF_MEMORY: u64 = 16 << 20;

/// The memory that a key of 16 bytes with a value of 32 takes.
const ITEM: u64 = 120;

/// What a case compares with memcached alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// The modes of bmc.
    Modes,
    /// The ways in which memcached's workers get datagrams.
    Sockets,
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it measures.
    pub description: &'static str,
    /// The number of keys.
    pub keys: usize,
    /// Whether memcached has them.
    pub present: bool,
    /// Whether the popularity of keys has a Zipf distribution (0.99); else it is uniform.
    pub zipf: bool,
    /// Bytes of each value.
    pub value: usize,
    /// Keys of each GET.
    pub multi: usize,
    /// Percentage of requests that are SETs. They go over TCP.
    pub sets: u32,
    /// Whether GETs go over TCP too.
    pub tcp: bool,
    /// Clients, each with a CPU of its own.
    pub clients: usize,
    /// UDP sockets of each client: 1 to 64.
    pub flows: usize,
    /// Threads of memcached, each with a CPU of its own.
    pub workers: usize,
    /// What is compared.
    pub about: About,
    /// Bytes of memory for bmc, instead of `--memory`.
    pub memory: Option<u64>,
}

/// GETs over UDP, all of keys that exist.
const HITS: Case = Case {
    name: "hits",
    description: "GETs over UDP that all hit; keys of 16 bytes, values of 32",
    keys: KEYS,
    present: true,
    zipf: false,
    value: 32,
    multi: 1,
    sets: 0,
    tcp: false,
    clients: 1,
    flows: 1,
    workers: 1,
    about: About::Modes,
    memory: None,
};

const fn zipf(name: &'static str, description: &'static str, times: u64) -> Case {
    let keys = (times * ZIPF_MEMORY / ITEM) as usize;
    Case { name, description, keys, zipf: true, memory: Some(ZIPF_MEMORY), ..HITS }
}

const fn sets(name: &'static str, description: &'static str, sets: u32) -> Case {
    Case { name, description, sets, ..HITS }
}

const fn multi(name: &'static str, description: &'static str, multi: usize) -> Case {
    Case { name, description, multi, ..HITS }
}

const fn workers(
    name: &'static str,
    description: &'static str,
    workers: usize,
    flows: usize,
) -> Case {
    Case { workers, flows, about: About::Sockets, clients: 2, ..zipf(name, description, 4) }
}

/// All cases, in the order in which they are measured.
pub static CASES: [Case; 19] = [
    HITS,
    Case { name: "hits-200", description: "the same with values of 200 bytes", value: 200, ..HITS },
    Case {
        name: "hits-1000",
        description: "the same with values of 1000 bytes",
        value: 1000,
        ..HITS
    },
    zipf("zipf-1", "Zipf 0.99 over as many keys as 16M of bmc's memory hold", 1),
    zipf("zipf-4", "Zipf 0.99 over 4 times as many keys", 4),
    zipf("zipf-16", "Zipf 0.99 over 16 times as many keys", 16),
    Case {
        name: "miss",
        description: "GETs over UDP of keys that memcached does not have",
        present: false,
        ..HITS
    },
    Case {
        name: "big",
        description: "values of 8 KB, several datagrams each, which bmc never caches",
        value: 8192,
        keys: 512,
        ..HITS
    },
    Case { name: "tcp", description: "GETs over TCP, which bmc only watches", tcp: true, ..HITS },
    sets("sets-10", "GETs over UDP and SETs over TCP, 90:10", 10),
    sets("sets-50", "GETs over UDP and SETs over TCP, 50:50", 50),
    sets("sets-90", "GETs over UDP and SETs over TCP, 10:90", 90),
    Case { name: "hot-1", description: "one key, one client", keys: 1, ..HITS },
    Case {
        name: "hot-2",
        description: "one key, two clients on two CPUs",
        keys: 1,
        clients: 2,
        ..HITS
    },
    multi("multi-4", "GETs of 4 keys each over UDP, all hits", 4),
    multi("multi-16", "GETs of 16 keys each over UDP, all hits", 16),
    workers("workers-1", "as zipf-4, two clients of 32 sockets, one worker", 1, 32),
    workers("workers-2", "the same with two workers", 2, 32),
    workers("few-flows", "the same with two workers and one socket for each client", 2, 1),
];

/// Finds a case.
pub fn by_name(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

impl Case {
    /// Whether any request goes over TCP.
    pub fn uses_tcp(&self) -> bool {
        self.tcp || self.sets > 0
    }
}
