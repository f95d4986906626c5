// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the protocol works on and what it must not do; the steps themselves are
//! in system/protocol.rs.
//!
//! Each step is one access to memory that others share; anything may happen
//! between two. There is one bucket, with one way for each key and one slot for
//! each way. A slot that is used again at once is the worst case: a reader who
//! holds on to an old slot finds new content in it.
//!
//! Left out: the parsing of streams and datagrams, so also what is told apart by
//! sequence numbers; ages; which entry is evicted; memory that is not
//! sequentially consistent; items that never end; that a reply comes later than
//! `BMC_LOST_S` while another write's end is recorded, a matter of microseconds: it takes
//! that one's count, so that a third one may think that it is alone.
//!
//! Time is a step that is possible only when what the protocol assumes holds:
//!
//!   `BMC_APPLY_NS` is over  when every write that counts on it is applied. One
//!                           whose segment was dropped is not waited for: it
//!                           comes again, and is seen again.
//!   `BMC_REPLY_NS` is over  when no reply of the cell is on its way
//!   `BMC_LOST_S` is over    when the replies of all pending writes are lost
//!
//! Ends of items pass once, see system/ends.rs.
//!
//! W only ever grows, and is only compared with what it was. So its present
//! generation is always 1 in a state; a copy that somebody holds has generation
//! 1 if it is still the present one, else 0. Of G the order is kept.
//!
//! The properties:
//!
//!   TORN           a hit mixes two values
//!   NONLIN         the answers of one key are not linearizable. A GET lasts from
//!                  its first step to its last, a write from its first to when
//!                  its reply leaves: whoever measures longer sees no more.
//!   STALE-ACKED    a GET returns what an acknowledged write had replaced before
//!                  the GET began. Part of NONLIN; looked for alone where more
//!                  cannot be had.
//!   OUTLIVES       an entry ends later than its item: it was made to last longer, or as
//!                  long as one of an unknown end although that one was seen
//!   STALE-FOREVER  with nothing under way, an entry is not what memcached has
//!   STUCK-ODD      with nothing under way, the bucket is locked
//!   PEND-LEAK      with nothing under way, more is pending than is waited for
//!   DUP-ENTRY      with nothing under way, a key has two entries

mod ends;
mod protocol;

use std::fmt;

use self::ends::{Candidate, LATER, Line, Outcome, Seen};
use self::protocol::{Found, GEN, LOCK, PEND, is_clean};
use crate::linear::{ABSENT, GETS, Orders, Value, WRITES, Writes};
use crate::search::{Event, Model};

pub(crate) const KEYS: usize = 2;
const CELLS: usize = 2;
const CONNECTIONS: usize = 3;
const MANY: u8 = 0xf;
/// The key of another bucket.
const FOREIGN: u8 = 7;
/// The value of another bucket's key.
const FOREIGN_VALUE: Value = 6;

/// Who asks for what, under which name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) key: u8,
    pub(crate) id: Id,
    /// More than one command or key: two replies, and no lease.
    pub(crate) many: bool,
}

/// The request id of a GET.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Id {
    /// Nobody else's, and its lease is nobody else's: `bmc_senders` and
    /// `bmc_leases` are left out.
    Own,
    /// This one, with its cell of `bmc_senders` and its lease.
    Is { id: u8, cell: u8, lease: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Set,
    /// Stores if there is nothing; its reply says whether it did.
    Add,
    /// Likewise, but its reply does not say it.
    Vivify,
    Delete,
    FlushAll,
    /// A set that nobody can parse.
    Unparsed,
}

#[derive(Clone, Copy)]
pub(crate) struct Write {
    pub(crate) connection: u8,
    pub(crate) key: u8,
    pub(crate) command: Command,
    pub(crate) noreply: bool,
    /// When its item ends, counted from when memcached applies it: 1 is the soonest, the
    /// initial one's is [`END`]. 0: expiry is left out.
    pub(crate) end: u8,
}

/// When the initial item ends, which is recorded.
pub(crate) const END: u8 = 3;

/// What may happen besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum May {
    /// The cache starts with an entry for key 0.
    Cached,
    /// GETs and their replies get lost in the host; leases are overwritten.
    LoseGets,
    /// The last segment of a connection is dropped behind `bmc_rx_tc`.
    DropSegments,
    /// A followed connection closes, or is followed no more.
    LoseConnection,
    /// This connection is not followed from the start.
    Mute(u8),
    /// The reply of a write is lost for good.
    LoseReplies,
    /// `BMC_LOST_S` is over although the reply of a write is still on its way.
    DelayReplies,
    /// `BMC_LOST_S` is over although a write is not applied.
    StallMemcached,
    /// Another bucket takes the slot.
    StealSlot,
    /// Time passes, once: what ends sooner than the initial item has ended then.
    Pass,
    /// Another key takes one of the cells, once.
    LoseCell,
    /// The cache falls asleep, once. Until a GET wakes it, what comes and goes over the
    /// connections is not seen at all. (It is, on its way in: that is for expiry.)
    Sleep,
}

/// What is taken out of the protocol, or done in another order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Without {
    /// A reply needs no lease to fill.
    Lease,
    /// A flag in the bucket, which a GET sets and a write clears, instead of leases.
    FlagForLease,
    /// `write_begin()`
    WriteBegin,
    /// `write_end()`
    WriteEnd,
    /// PEND
    Count,
    /// GEN in `write_end()`, if the write is pending
    GenOfEnd,
    /// `write_end()` of a write that was given up for lost
    EndOfReaped,
    /// A connection remembers one write; others that it sends meanwhile are not ended.
    Ring,
    /// `write_begin()` and `flush_all()`: quarantine, then word
    WriterOrder,
    /// `lease_take()`: word, then quarantine
    ReaderOrder,
    /// `lease_take()`: no lease from a word with LOCK
    LockedNoLease,
    /// `cache_fill()`: clears the way, then unlocks
    ClearBeforeUnlock,
    /// `cache_fill()`: unlocks with a new generation
    GenOfUnlock,
    /// `slot->epoch` is the lease's; without: G when it fills
    EpochOfLease,
    /// `bucket_forget()`
    Forget,
    /// `find()`: the word must not have moved
    WordCheck,
    /// `find()`: the slot's number must not have moved
    SeqCheck,
    /// `sender_ask()`: alone
    Senders,
    /// `lease_return()`: the lease is this request's
    LeaseRequest,
    /// `lease_return()`: the lease is taken back before `sender_answer()`
    LeaseBeforeAnswer,
    /// `write_begin()`: looks at the quarantine after it has moved the word
    OrderOfSole,
    /// `write_tells()`: a write was alone if the word has not moved since
    WordsOfEnd,
    /// `write_out()`: FIRM goes if its CAS fails
    DoubtOfEnd,
    /// `write_expects()`: the end is a candidate when the write begins
    CandidateOfBegin,
    /// A key has several candidates; without: the least
    Candidates,
    /// `write_expects()`: the candidate is open until the write is over
    OpenOfBegin,
    /// `write_candidate()`: how much later the write may have been applied
    LateOfEnd,
    /// `expiry_age()`: only if no other write can be on its way
    AgeOfSole,
    /// `expiry_look()`: what is to be OLD was there before the word moved
    LookOfBegin,
    /// `write_outcome()`: who may have been given up for lost takes nothing away
    AgeOfEnd,
    /// `expiry_close()`: FIRM goes on to the cell of whoever was not alone
    /// only if it was in an OLD one
    FirmOfOld,
    /// `expiry_worth()`, `expiry_close()`: a cell that says the same is not enough
    CellOfEach,
    /// `expiry_put_at()`: FIRM goes before a cell is taken from another key
    DoubtOfTaken,
    /// `expiry_get()`: FIRM is of this epoch
    EpochOfFirm,
    /// The quarantine of a lost connection's writes
    QuarantineOfLost,
    /// The quarantine of a segment that comes again
    QuarantineOfRepeat,
    /// The quarantine of `flush_all()`
    QuarantineOfFlush,
    /// The quarantine of `cache_wake()`
    QuarantineOfWake,
    /// GEN in `cache_wake()`
    GenOfWake,
}

pub(crate) struct System {
    pub(crate) asks: Vec<Ask>,
    pub(crate) writes: Vec<Write>,
    pub(crate) may: Vec<May>,
    pub(crate) without: Vec<Without>,
    /// Look only for answers older than what was acknowledged before the GET.
    pub(crate) only_stale: bool,
}

/// How far the cache's one sleep is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Sleep {
    #[default]
    Before,
    Asleep,
    Wakes,
    Over,
}

impl Sleep {
    /// ASLEEP is set in G.
    fn is_asleep(self) -> bool {
        matches!(self, Self::Asleep | Self::Wakes)
    }
}

/// How far a GET is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
enum GetAt {
    #[default]
    Idle,
    QuarantineFirst,
    Word,
    Epoch,
    Copying,
    Copied,
    Missed,
    Alone,
    NoQuarantine,
    MayLease,
    Passed,
    Read,
    Taken,
    Answered,
    Fill,
    FillEpoch,
    FillEnds,
    Locked,
    Filling,
    Filled,
    Stored,
    Linked,
    Raced,
    Unlock,
    ClearLate,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Reader {
    at: GetAt,
    word: u8,
    epoch: u8,
    seq: u8,
    way: u8,
    /// The two halves of the value, copied one after the other.
    half: [Value; 2],
    /// When the entry is to end, 0: unknown; and whether that is firm.
    end: u8,
    firm: bool,
    leased: bool,
    replies: u8,
    /// What was outdated when it began; `only_stale`.
    outdated: u8,
}

/// How far a write is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
enum WriteAt {
    #[default]
    Idle,
    /// With expiry: what is recorded was looked at.
    Looked,
    /// Without [`Without::OrderOfSole`]
    BeginsLate,
    Quarantined,
    QuarantinedAll,
    Bumped(u8),
    /// With expiry: what `OWED_SOLE` needs is loaded one by one.
    Looks,
    LooksAgain,
    Ages,
    Records,
    /// Without [`Without::WriterOrder`]
    QuarantineLast,
    QuarantineAllLast,
    GoesOn,
    Repeated,
    Applied,
    EndForgets,
    EndCloses,
    EndLooks,
    EndCas,
    EndDoubts,
    EndAgain,
    Ending,
    /// A noreply write, known to be applied.
    Retired,
    Acked,
    ReplyLost,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
struct Writer {
    at: WriteAt,
    /// PEND counts it: it is in its connection's ring.
    pending: bool,
    /// It came while the cache was asleep.
    unseen: bool,
    /// Its quarantine is the bucket's, or everyone's.
    in_bucket: bool,
    in_all: bool,
    dropped: bool,
    was_dropped: bool,
    /// `BMC_APPLY_NS` was over while it was dropped.
    paused: bool,
    /// `write_abandon()` is half done.
    abandoning: bool,
    /// `OWED_SOLE`
    sole: bool,
    /// What becomes of its candidate.
    outcome: Outcome,
    /// Its candidate has a cell of its own.
    own: bool,
    /// It began when time had passed; likewise for when it was applied.
    began_later: bool,
    applied_later: bool,
    /// It was counted out, for all that can be known.
    aged: bool,
    /// It has changed something.
    stored: bool,
    /// The words as loaded.
    word: u8,
    epoch: u8,
    /// What was recorded before it began.
    seen: Seen,
    /// What it will outdate; `only_stale`.
    outdates: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Slot {
    key: u8,
    epoch: u8,
    seq: u8,
    /// When it ends; 0 if the item's end is unknown.
    end: u8,
    half: [Value; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Cell {
    name: u8,
    out: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Lease {
    live: bool,
    id: u8,
    key: u8,
    word: u8,
    epoch: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Connection {
    mute: bool,
    abandons: bool,
    /// A reply went unseen, as the next one's sequence number will tell.
    gap: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Wrong {
    #[default]
    Nothing,
    Torn,
    NonLinear,
    Stale,
    Outlives,
}

/// Everything that anyone can know.
#[derive(Clone, Copy, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct State {
    word: u8,
    epoch: u8,
    quarantine: bool,
    quarantine_all: bool,
    sleep: Sleep,
    /// [`Without::FlagForLease`]
    flag: bool,
    /// 0: empty, else the key plus one
    ways: [u8; KEYS],
    slots: [Slot; KEYS],
    lines: [Line; KEYS],
    /// Time has passed.
    later: bool,
    /// How far another key is that takes a cell of key 0, which, and what was in it.
    taker: u8,
    taken: u8,
    victim: Candidate,
    /// How far the bucket is that takes slot 0.
    thief: u8,
    memcached: [Value; KEYS],
    readers: [Reader; GETS],
    writers: [Writer; WRITES],
    connections: [Connection; CONNECTIONS],
    cells: [Cell; CELLS],
    leases: [Lease; CELLS],
    orders: [Orders; KEYS],
    /// `only_stale`: values that memcached had; those that a later,
    /// acknowledged write replaced.
    had: u8,
    outdated: u8,
    wrong: Wrong,
}

#[derive(Clone, Copy)]
pub(crate) enum Who {
    Get(usize),
    Write(usize),
    Other,
}

#[derive(Clone, Copy)]
pub(crate) struct Step {
    who: Who,
    what: &'static str,
    event: Option<Event>,
}

impl System {
    fn may(&self, what: May) -> bool {
        self.may.contains(&what)
    }

    fn without(&self, what: Without) -> bool {
        self.without.contains(&what)
    }

    fn keys(&self) -> usize {
        let keys = self.asks.iter().map(|ask| ask.key).chain(self.writes.iter().map(|w| w.key));
        1 + keys.max().unwrap_or(0) as usize
    }

    /// Whether G ever changes. If not, nobody needs a step to look at it.
    fn flushes(&self) -> bool {
        let flush = |w: &Write| matches!(w.command, Command::FlushAll | Command::Unparsed);
        let mute = |may: &May| matches!(may, May::Mute(_) | May::LoseConnection);
        self.writes.iter().any(flush)
            || self.may(May::DropSegments) && self.may.iter().any(mute)
            || self.may(May::LoseReplies) && self.expires()
            || self.may(May::Sleep)
    }

    fn expires(&self) -> bool {
        self.writes.iter().any(|w| w.end > 0)
    }

    /// When the item with this value ends.
    fn end_of(&self, s: &State, value: Value) -> u8 {
        let Some(write) = usize::from(value).checked_sub(1) else { return END };
        self.writes[write].end + if s.writers[write].applied_later { LATER } else { 0 }
    }

    /// Whether that could be seen on the wire.
    fn is_end_seen(&self, s: &State, value: Value) -> bool {
        usize::from(value).checked_sub(1).is_none_or(|write| {
            self.writes[write].command != Command::Unparsed && !s.writers[write].unseen
        })
    }

    /// Whether memcached has an item for the key.
    fn is_there(&self, s: &State, key: usize) -> bool {
        let value = s.memcached[key];
        value != ABSENT && !(self.may(May::Pass) && self.end_of(s, value) <= s.now())
    }

    fn changes(&self, s: &State, write: usize, key: usize) -> bool {
        let Write { command, key: its, .. } = self.writes[write];
        match command {
            Command::FlushAll => true,
            Command::Add | Command::Vivify => its as usize == key && s.writers[write].stored,
            _ => its as usize == key,
        }
    }

    fn value_of(&self, write: usize) -> Value {
        match self.writes[write].command {
            Command::Set | Command::Add | Command::Vivify | Command::Unparsed => write as Value + 1,
            Command::Delete | Command::FlushAll => ABSENT,
        }
    }

    fn writes_of(&self, s: &State, key: usize) -> Writes {
        let mut writes = Writes { begun: [false; WRITES], values: [0; WRITES] };
        for write in 0..self.writes.len() {
            writes.begun[write] =
                self.changes(s, write, key) && s.writers[write].at != WriteAt::Idle;
            writes.values[write] = self.value_of(write);
        }
        writes
    }

    /// The client has its answer.
    fn returns(&self, s: &mut State, get: usize, value: Value) {
        let key = self.asks[get].key as usize;
        let outdated = s.readers[get].outdated & 1 << value != 0;
        if self.asks[get].many {
            // Another one's entry was at stake, not what this one is told.
            let replies = s.readers[get].replies;
            let at = if replies > 0 { GetAt::Passed } else { GetAt::Done };
            s.readers[get] = Reader { at, replies: replies.saturating_sub(1), ..Reader::default() };
            return;
        }
        s.readers[get] = Reader { at: GetAt::Done, ..Reader::default() };
        if self.only_stale {
            if outdated {
                s.wrong = Wrong::Stale;
            }
            return;
        }
        let writes = self.writes_of(s, key);
        s.orders[key].get_returns(get, value, &writes);
        if s.orders[key].is_empty() {
            s.wrong = Wrong::NonLinear;
        }
    }

    /// The client knows that the write is done.
    fn acked(&self, s: &mut State, write: usize) {
        s.writers[write].at = WriteAt::Acked;
        s.writers[write].in_bucket = false;
        s.writers[write].in_all = false;
        if self.only_stale {
            s.outdated |= s.writers[write].outdates;
            s.writers[write].outdates = 0;
            return;
        }
        for key in (0..self.keys()).filter(|&key| self.changes(&*s, write, key)).collect::<Vec<_>>()
        {
            let writes = self.writes_of(s, key);
            s.orders[key].write_returns(write, &writes);
            assert!(!s.orders[key].is_empty(), "an unanswered write can be placed");
        }
    }

    /// Nothing is under way but time.
    fn is_quiet(&self, s: &State) -> bool {
        let done = |w: &Writer| {
            matches!(
                w.at,
                WriteAt::Idle
                    | WriteAt::Applied
                    | WriteAt::Retired
                    | WriteAt::Acked
                    | WriteAt::ReplyLost
            )
        };
        let replied = |(w, spec): (&Writer, &Write)| w.at != WriteAt::Applied || spec.noreply;
        s.readers.iter().all(|r| matches!(r.at, GetAt::Idle | GetAt::Done))
            && s.writers.iter().all(done)
            && s.writers.iter().zip(&self.writes).all(replied)
            && !s.connections.iter().any(|c| c.abandons)
            && matches!(s.thief, 0 | 4)
    }

    fn wrong_when_quiet(&self, s: &State) -> Option<&'static str> {
        if s.word & LOCK != 0 {
            return Some("STUCK-ODD: the bucket is locked for ever");
        }
        let pending = s.writers.iter().filter(|w| w.pending).count();
        if !self.without(Without::Count)
            && !self.without(Without::WriteBegin)
            && ((s.word & (GEN - PEND)) / PEND) as usize > pending
        {
            return Some("PEND-LEAK: a write is pending for ever");
        }
        let entries: Vec<_> = (0..self.keys())
            .filter(|&way| {
                let slot = &s.slots[way];
                !s.sleep.is_asleep()
                    && is_clean(s.word)
                    && s.ways[way] == slot.key + 1
                    && slot.epoch == s.epoch
                    && (slot.end == 0 || slot.end > s.now())
            })
            .map(|way| &s.slots[way])
            .collect();
        if entries.iter().any(|slot| slot.half != [s.memcached[slot.key as usize]; 2]) {
            return Some("STALE-FOREVER: an entry is not what memcached has");
        }
        if entries.len() == 2 && entries[0].key == entries[1].key {
            return Some("DUP-ENTRY: a key has two entries");
        }
        None
    }

    /// Generations and numbers: 1 and 2 for the present one, 0 for older ones.
    fn forget_generations(&self, s: &mut State) {
        fn held(copy: u8, present: u8) -> u8 {
            (copy & (GEN - 1)) | if copy / GEN == present / GEN { GEN } else { 0 }
        }
        let word = s.word;
        for r in &mut s.readers {
            r.word = held(r.word, word);
        }
        for lease in &mut s.leases {
            lease.word = held(lease.word, word);
        }
        for w in &mut s.writers {
            w.word = held(w.word, word);
        }
        if self.flushes() {
            rank_epochs(s);
        }
        for (way, slot) in s.slots.iter_mut().enumerate() {
            for r in s.readers.iter_mut().filter(|r| matches!(r.at, GetAt::Copying | GetAt::Copied))
            {
                if r.way as usize == way {
                    r.seq = if r.seq == slot.seq { 2 } else { 0 };
                }
            }
            slot.seq = 2 | slot.seq & 1;
        }
        s.word = held(word, word);
    }
}

/// Epochs are compared with each other as well: the oldest that is held is 1.
/// 0 is nobody's.
fn rank_epochs(s: &mut State) {
    let leases = s.leases.iter_mut().map(|lease| &mut lease.epoch);
    let slots = s.slots.iter_mut().map(|slot| &mut slot.epoch);
    let readers = s.readers.iter_mut().map(|r| &mut r.epoch);
    let lines = s.lines.iter_mut().map(|line| &mut line.epoch);
    let writers = s.writers.iter_mut().map(|w| &mut w.epoch);
    let others = lines.chain(writers).chain([&mut s.epoch]);
    let mut held: Vec<_> = leases.chain(slots).chain(readers).chain(others).collect();
    held.sort_unstable();
    let (mut last, mut rank) = (0, 0);
    for epoch in held {
        rank += u8::from(*epoch != last);
        last = *epoch;
        *epoch = rank;
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} GETs", self.asks.len())?;
        for write in &self.writes {
            let connection = ["A", "B", "C"][write.connection as usize];
            write!(f, ", {connection} {:?}", write.command)?;
            if write.noreply {
                write!(f, " noreply")?;
            }
            write!(f, " {}", write.key)?;
            if write.end > 0 {
                write!(f, " until {}", write.end)?;
            }
        }
        if !self.may.is_empty() {
            write!(f, ", may {:?}", self.may)?;
        }
        if !self.without.is_empty() {
            write!(f, ", without {:?}", self.without)?;
        }
        if self.only_stale { write!(f, ", acknowledged only") } else { Ok(()) }
    }
}

impl Model for System {
    type State = State;
    type Step = Step;

    fn initial(&self) -> State {
        let empty = Slot { key: FOREIGN, seq: 2, ..Slot::default() };
        let mut s = State {
            word: GEN,
            epoch: 1,
            quarantine: false,
            quarantine_all: false,
            sleep: Sleep::default(),
            flag: false,
            ways: [0; KEYS],
            slots: [empty; KEYS],
            lines: [Line::new(END); KEYS],
            later: false,
            taker: 0,
            taken: 0,
            victim: Candidate::default(),
            thief: 0,
            memcached: [0; KEYS],
            readers: [Reader::default(); GETS],
            writers: [Writer::default(); WRITES],
            connections: [Connection::default(); CONNECTIONS],
            cells: [Cell::default(); CELLS],
            leases: [Lease::default(); CELLS],
            orders: [Orders::new(); KEYS],
            had: 0,
            outdated: 0,
            wrong: Wrong::Nothing,
        };
        if self.may(May::Cached) {
            s.ways[0] = 1;
            s.slots[0] = Slot { key: 0, epoch: 1, seq: 2, end: END, half: [0; 2] };
        }
        for (c, connection) in s.connections.iter_mut().enumerate() {
            connection.mute = self.may(May::Mute(c as u8));
        }
        s
    }

    fn steps(&self, s: &State, found: &mut Found) {
        for get in 0..self.asks.len() {
            self.get_steps(s, get, found);
        }
        for write in 0..self.writes.len() {
            self.write_steps(s, write, found);
        }
        self.other_steps(s, found);
        for (_, state) in found {
            self.forget_generations(state);
        }
    }

    /// GETs that ask the same under the same name may change places.
    fn canonical(&self, mut s: State) -> State {
        for last in (1..self.asks.len()).rev() {
            for get in 0..last {
                if self.asks[get] == self.asks[get + 1] && s.readers[get] > s.readers[get + 1] {
                    s.readers.swap(get, get + 1);
                    s.orders[self.asks[get].key as usize].swap(get, get + 1);
                }
            }
        }
        s
    }

    fn violated(&self, s: &State) -> Option<&'static str> {
        match s.wrong {
            Wrong::Torn => Some("TORN: a hit mixes two values"),
            Wrong::NonLinear => Some("NONLIN: no order of the operations explains the answers"),
            Wrong::Stale => Some("STALE-ACKED: older than what was acknowledged before"),
            Wrong::Outlives => Some("OUTLIVES: an entry ends later than its item"),
            Wrong::Nothing if self.is_quiet(s) => self.wrong_when_quiet(s),
            Wrong::Nothing => None,
        }
    }

    fn event(&self, step: Step) -> Option<Event> {
        step.event
    }

    fn describe(&self, step: Step, s: &State) -> String {
        let value = |value: Value| match value {
            ABSENT => "none".to_string(),
            FOREIGN_VALUE => "foreign".to_string(),
            0 => "old".to_string(),
            write => format!("W{write}"),
        };
        let who = match step.who {
            Who::Get(get) => format!("GET {}", ["A", "B", "C", "D"][get]),
            Who::Write(write) => format!("W{}", write + 1),
            Who::Other => String::new(),
        };
        let mut state = format!("pending {}", (s.word & (GEN - PEND)) / PEND);
        if s.word & LOCK != 0 {
            state += ", LOCK";
        }
        if s.sleep.is_asleep() {
            state += ", asleep";
        }
        if s.quarantine || s.quarantine_all {
            state += ", quarantine";
        }
        if s.later {
            state += ", later";
        }
        for key in 0..self.keys() {
            state += &format!("; memcached {}", value(s.memcached[key]));
            if self.expires() {
                state += &format!("; {}", s.lines[key].show());
            }
        }
        for way in (0..self.keys()).filter(|&way| s.ways[way] != 0) {
            let [one, two] = s.slots[way].half.map(value);
            state += &format!("; entry {one}");
            if one != two {
                state += &format!("/{two}");
            }
        }
        format!("{who:5} {:48} | {state}", step.what)
    }
}
