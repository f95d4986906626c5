// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The steps of bpf/lease.bpf.h, bpf/cache.bpf.h and bpf/expiry.bpf.h. What a
//! step is called starts with the C function that it is part of, so that the
//! two can be read side by side.

use super::ends::{CELLS_OF_LINE, Candidate, LATER, Late, Outcome};
use super::{
    Ask, CELLS, CONNECTIONS, Cell, Command, Connection, FOREIGN, FOREIGN_VALUE, GetAt, Id, KEYS,
    Lease, MANY, May, Reader, Sleep, State, Step, System, Who, Without, Write, WriteAt, Writer,
    Wrong,
};
use crate::linear::ABSENT;
use crate::search::Event;

/// The coherence word as in `enum bmc_word`, with fewer bits.
pub(super) const LOCK: u8 = 1;
pub(super) const PEND: u8 = 1 << 1;
pub(super) const GEN: u8 = 1 << 4;

pub(super) type Found = Vec<(Step, State)>;

/// What is possible in a state, for one of those who take part.
struct Steps<'a> {
    s: &'a State,
    who: Who,
    found: &'a mut Found,
}

impl Steps<'_> {
    fn go(&mut self, what: &'static str, change: impl FnOnce(&mut State)) {
        let mut n = *self.s;
        change(&mut n);
        self.found.push((Step { who: self.who, what, event: None }, n));
    }

    /// The last step is to be counted.
    fn is(&mut self, event: Event) {
        if let Some((step, _)) = self.found.last_mut() {
            step.event = Some(event);
        }
    }
}

pub(super) fn is_clean(word: u8) -> bool {
    word & (GEN - 1) == 0
}

pub(super) fn is_pending(word: u8) -> bool {
    word & (GEN - PEND) != 0
}

fn is_same(word: u8, held: u8) -> bool {
    word / GEN == held / GEN
}

impl Writer {
    /// What it knew of the words is of no use any more.
    fn forget(&mut self, at: WriteAt) {
        let outcome = Outcome::default();
        *self = Self { at, sole: false, outcome, own: false, word: 0, epoch: 0, ..*self };
        self.seen = Default::default();
    }

    /// To memcached; what it knows is for `write_end()`, if that follows.
    fn goes_on(&mut self) {
        if self.pending {
            self.at = WriteAt::GoesOn;
        } else {
            self.forget(WriteAt::GoesOn);
        }
    }
}

/// The GET goes on to memcached, without a lease of its own.
fn pass(n: &mut State, get: usize) {
    let Reader { replies, outdated, .. } = n.readers[get];
    n.readers[get] = Reader { at: GetAt::Passed, replies, outdated, ..Reader::default() };
}

impl System {
    /// A GET: `find()`, `lease_take()`, memcached, `lease_return()`, `cache_fill()`.
    pub(super) fn get_steps(&self, s: &State, get: usize, found: &mut Found) {
        let steps = &mut Steps { s, who: Who::Get(get), found };
        self.find_steps(steps, get);
        self.lease_steps(steps, get);
        self.reply_steps(steps, get);
        self.fill_steps(steps, get);
    }

    fn find_steps(&self, steps: &mut Steps<'_>, get: usize) {
        let ask = self.asks[get];
        let s = steps.s;
        let r = s.readers[get];
        match r.at {
            GetAt::Idle => {
                let begin = |n: &mut State, at| {
                    n.readers[get].at = at;
                    n.readers[get].outdated = n.outdated;
                    if !self.only_stale && !ask.many {
                        n.orders[ask.key as usize].get_begins(get);
                    }
                };
                if ask.many {
                    steps.go("several keys: no find", |n| {
                        begin(n, GetAt::Missed);
                        n.readers[get].replies = 1;
                    });
                } else if self.without(Without::ReaderOrder) {
                    steps.go("loads the quarantine", |n| {
                        begin(n, GetAt::QuarantineFirst);
                        n.readers[get].leased = !n.quarantine;
                    });
                } else {
                    steps.go("find: loads W", |n| {
                        begin(n, GetAt::Word);
                        self.load_word(n, get);
                    });
                }
            }
            GetAt::QuarantineFirst => steps.go("find: loads W", |n| self.load_word(n, get)),
            GetAt::Word => steps.go("find: loads G", |n| {
                n.readers[get].epoch = n.epoch;
                n.readers[get].at = GetAt::Epoch;
                if n.sleep.is_asleep() {
                    // No entry is looked at, and there is no lease.
                    n.readers[get].at = GetAt::Missed;
                    n.readers[get].word |= LOCK;
                }
            }),
            GetAt::Epoch => {
                let way = (0..self.keys()).find(|&way| {
                    let slot = &s.slots[way];
                    s.ways[way] == ask.key + 1
                        && slot.seq & 1 == 0
                        && slot.key == ask.key
                        && slot.epoch == r.epoch
                        && (slot.end == 0 || slot.end > s.now())
                });
                if let Some(way) = way {
                    steps.go("find: entry, copies half of it", |n| {
                        n.readers[get].at = GetAt::Copying;
                        n.readers[get].way = way as u8;
                        n.readers[get].seq = n.slots[way].seq;
                        n.readers[get].half[0] = n.slots[way].half[0];
                    });
                } else {
                    steps.go("find: no entry", |n| n.readers[get].at = GetAt::Missed);
                }
            }
            GetAt::Copying => steps.go("find: copies the other half", |n| {
                n.readers[get].half[1] = n.slots[r.way as usize].half[1];
                n.readers[get].at = GetAt::Copied;
            }),
            GetAt::Copied => {
                let seq = s.slots[r.way as usize].seq == r.seq || self.without(Without::SeqCheck);
                let word = s.word == r.word || self.without(Without::WordCheck);
                if seq && word {
                    steps.go("find: nothing moved, HIT", |n| {
                        self.returns(n, get, r.half[0]);
                        if r.half[0] != r.half[1] {
                            n.wrong = Wrong::Torn;
                        }
                    });
                    steps.is(Event::Hit);
                } else {
                    steps.go("find: something moved, no hit", |n| {
                        n.readers[get].at = GetAt::Missed;
                        n.readers[get].way = 0;
                        n.readers[get].seq = 0;
                        n.readers[get].half = [0; 2];
                    });
                }
            }
            _ => (),
        }
    }

    fn lease_steps(&self, steps: &mut Steps<'_>, get: usize) {
        let ask = self.asks[get];
        let r = steps.s.readers[get];
        match r.at {
            GetAt::Missed => match ask.id {
                Id::Is { id, cell, .. } => steps.go("sender_ask", |n| {
                    let cell = &mut n.cells[cell as usize];
                    let alone = cell.out == 0;
                    *cell = Cell {
                        name: id,
                        out: match cell.out {
                            _ if ask.many => MANY,
                            0 => 1,
                            out if out == MANY || cell.name != id => MANY,
                            out => out + 1,
                        },
                    };
                    let lease = !ask.many && (alone || self.without(Without::Senders));
                    if lease && self.may_lease(n.readers[get].word) {
                        n.readers[get].at = GetAt::Alone;
                    } else {
                        pass(n, get);
                    }
                }),
                Id::Own if ask.many || !self.may_lease(r.word) => {
                    steps.go("goes on", |n| pass(n, get));
                }
                Id::Own => self.test_quarantine(steps, get),
            },
            GetAt::Alone => self.test_quarantine(steps, get),
            GetAt::NoQuarantine => steps.go("lease_take: loads G's quarantine", |n| {
                if n.quarantine_all {
                    pass(n, get);
                } else {
                    self.may_store(n, get);
                }
            }),
            GetAt::MayLease => steps.go("lease_take: stores the lease, goes on", |n| {
                let Id::Is { id, lease, .. } = ask.id else { unreachable!("see may_store()") };
                let Reader { word, epoch, .. } = n.readers[get];
                n.leases[lease as usize] = Lease { live: true, id, key: ask.key, word, epoch };
                pass(n, get);
            }),
            _ => (),
        }
    }

    /// memcached, and its reply at `bmc_tx`.
    fn reply_steps(&self, steps: &mut Steps<'_>, get: usize) {
        match steps.s.readers[get].at {
            GetAt::Passed => {
                let key = self.asks[get].key as usize;
                let ended = steps.s.memcached[key] != ABSENT && !self.is_there(steps.s, key);
                if ended {
                    steps.go("memcached finds that it has ended", |n| self.lost(n, get));
                    return;
                }
                steps.go("memcached reads", |n| {
                    n.readers[get].half[0] = n.memcached[key];
                    n.readers[get].at = GetAt::Read;
                });
                if self.may(May::LoseGets) {
                    steps.go("is lost before memcached", |n| self.lost(n, get));
                }
            }
            GetAt::Read if self.asks[get].id == Id::Own => self.own_reply_steps(steps, get),
            GetAt::Read => {
                if self.without(Without::LeaseBeforeAnswer) {
                    steps.go("sender_answer", |n| {
                        self.answer(n, get);
                        n.readers[get].at = GetAt::Answered;
                    });
                } else {
                    steps.go("lease_return", |n| {
                        self.take_lease(n, get);
                        n.readers[get].at = GetAt::Taken;
                    });
                }
                if self.may(May::LoseGets) {
                    steps.go("its reply is lost", |n| self.lost(n, get));
                }
            }
            GetAt::Taken => steps.go("sender_answer", |n| {
                self.answer(n, get);
                self.returns_or_fills(n, get);
            }),
            GetAt::Answered => steps.go("lease_return", |n| {
                self.take_lease(n, get);
                self.returns_or_fills(n, get);
            }),
            _ => (),
        }
    }

    fn fill_steps(&self, steps: &mut Steps<'_>, get: usize) {
        let ask = self.asks[get];
        let s = steps.s;
        let r = s.readers[get];
        match r.at {
            GetAt::Fill => steps.go("cache_fill: loads G", |n| {
                if n.epoch == r.epoch && !n.sleep.is_asleep() {
                    n.readers[get].at = GetAt::FillEpoch;
                } else {
                    self.returns(n, get, r.half[0]);
                }
            }),
            GetAt::FillEpoch if self.expires() => self.life_step(steps, get),
            GetAt::FillEpoch | GetAt::FillEnds if s.word == r.word => {
                steps.go("cache_fill: CAS W to LOCK", |n| {
                    n.word |= LOCK;
                    n.readers[get].at = GetAt::Locked;
                });
            }
            GetAt::FillEpoch | GetAt::FillEnds => {
                steps.go("cache_fill: CAS W fails, replies", |n| {
                    self.returns(n, get, r.half[0]);
                });
            }
            GetAt::Locked => {
                let keys = self.keys();
                let own = (0..keys)
                    .find(|&way| s.ways[way] == ask.key + 1 && s.slots[way].key == ask.key);
                let empty = (0..keys).find(|&way| {
                    s.ways[way] != s.slots[way].key + 1 || s.slots[way].epoch != r.epoch
                });
                match own.or(empty) {
                    Some(way) if s.slots[way].seq & 1 == 0 => {
                        steps.go("cache_fill: takes a slot, writes half", |n| {
                            let slot = &mut n.slots[way];
                            slot.seq += 1;
                            slot.key = ask.key;
                            slot.epoch =
                                if self.without(Without::EpochOfLease) { n.epoch } else { r.epoch };
                            slot.half[0] = r.half[0];
                            slot.end = r.end;
                            n.readers[get].way = way as u8;
                            n.readers[get].at = GetAt::Filling;
                        });
                    }
                    _ => steps.go("cache_fill: no slot", |n| n.readers[get].at = GetAt::Unlock),
                }
            }
            GetAt::Filling => steps.go("cache_fill: writes the other half", |n| {
                let slot = &mut n.slots[r.way as usize];
                slot.half[1] = r.half[0];
                n.readers[get].at = GetAt::Filled;
            }),
            GetAt::Filled => steps.go("cache_fill: stores the way", |n| {
                n.ways[r.way as usize] = ask.key + 1;
                n.readers[get].at = GetAt::Stored;
            }),
            GetAt::Stored => steps.go("cache_fill: releases the slot", |n| {
                n.slots[r.way as usize].seq += 1;
                n.readers[get].at = GetAt::Linked;
            }),
            GetAt::Linked if s.word == r.word | LOCK => {
                steps.go("cache_fill: CAS W, published, FILL; replies", |n| {
                    n.word = r.word + GEN;
                    self.returns(n, get, r.half[0]);
                    let later = r.end == 0 || r.end > self.end_of(n, r.half[0]);
                    let known = self.is_end_seen(n, r.half[0]) && n.taker != 2;
                    if self.expires() && later && (known || r.firm) {
                        n.wrong = Wrong::Outlives;
                    }
                });
                steps.is(Event::Fill);
            }
            GetAt::Linked => steps.go("cache_fill: CAS W fails", |n| {
                n.readers[get].at = if self.without(Without::ClearBeforeUnlock) {
                    GetAt::Unlock
                } else {
                    GetAt::Raced
                };
            }),
            GetAt::Raced => steps.go("cache_fill: clears the way", |n| {
                n.ways[r.way as usize] = 0;
                n.readers[get].at = GetAt::Unlock;
                n.readers[get].way = 0;
            }),
            GetAt::Unlock => steps.go("cache_fill: adds GEN - LOCK to W, replies", |n| {
                n.word =
                    if self.without(Without::GenOfUnlock) { n.word } else { n.word + GEN } - LOCK;
                if self.without(Without::ClearBeforeUnlock) {
                    n.readers[get].at = GetAt::ClearLate;
                } else {
                    self.returns(n, get, r.half[0]);
                }
            }),
            GetAt::ClearLate => steps.go("clears the way, replies", |n| {
                n.ways[r.way as usize] = 0;
                self.returns(n, get, r.half[0]);
            }),
            _ => (),
        }
    }

    fn life_step(&self, steps: &mut Steps<'_>, get: usize) {
        steps.go("cache_fill: expiry_life", |n| {
            let r = n.readers[get];
            let line = n.lines[self.asks[get].key as usize];
            let any = self.without(Without::EpochOfFirm);
            let (end, firm) = line.get(if any { line.epoch } else { r.epoch }, n.now());
            if end == 0 || end > n.now() {
                n.readers[get].end = end;
                n.readers[get].firm = firm;
                n.readers[get].at = GetAt::FillEnds;
            } else {
                self.returns(n, get, r.half[0]);
            }
        });
    }

    fn load_word(&self, n: &mut State, get: usize) {
        n.readers[get].word = n.word;
        n.readers[get].at = GetAt::Word;
        if !is_clean(n.word) {
            // No entry is looked at; and whether there is a lease is known.
            n.readers[get].at = GetAt::Missed;
            n.readers[get].epoch = n.epoch;
        } else if !self.flushes() {
            n.readers[get].epoch = n.epoch;
            n.readers[get].at = GetAt::Epoch;
        }
    }

    fn may_lease(&self, word: u8) -> bool {
        is_clean(word) || self.without(Without::LockedNoLease) && !is_pending(word)
    }

    fn test_quarantine(&self, steps: &mut Steps<'_>, get: usize) {
        let quarantine = if self.without(Without::ReaderOrder) {
            !steps.s.readers[get].leased
        } else {
            steps.s.quarantine
        };
        if quarantine {
            steps.go("lease_take: quarantine, goes on", |n| pass(n, get));
        } else {
            steps.go("lease_take: no quarantine", |n| {
                if self.flushes() {
                    n.readers[get].at = GetAt::NoQuarantine;
                } else {
                    self.may_store(n, get);
                }
            });
        }
    }

    fn may_store(&self, n: &mut State, get: usize) {
        if self.asks[get].id == Id::Own {
            let Reader { word, epoch, .. } = n.readers[get];
            pass(n, get);
            n.readers[get].word = word;
            n.readers[get].epoch = epoch;
            n.readers[get].leased = true;
            n.flag = self.without(Without::FlagForLease);
        } else {
            n.readers[get].at = GetAt::MayLease;
        }
    }

    /// The same if the lease is nobody else's.
    fn own_reply_steps(&self, steps: &mut Steps<'_>, get: usize) {
        let s = steps.s;
        // Its lease may be there or have been overwritten.
        steps.go("replies, no lease", |n| {
            n.readers[get].leased = false;
            self.returns_or_fills(n, get);
        });
        let any = self.without(Without::Lease) && is_clean(s.word);
        let flag = self.without(Without::FlagForLease);
        if any || flag && s.flag && is_clean(s.word) || !flag && s.readers[get].leased {
            steps.go("lease_return", |n| {
                if any || flag {
                    n.readers[get].word = n.word;
                    n.readers[get].epoch = n.epoch;
                }
                n.flag = false;
                n.readers[get].leased = true;
                self.returns_or_fills(n, get);
            });
        }
    }

    fn answer(&self, n: &mut State, get: usize) {
        let Id::Is { id, cell, .. } = self.asks[get].id else { return };
        let cell = &mut n.cells[cell as usize];
        if cell.out != 0 && cell.out != MANY && cell.name == id {
            cell.out -= 1;
        }
    }

    fn take_lease(&self, n: &mut State, get: usize) {
        let Id::Is { id, lease, .. } = self.asks[get].id else { return };
        let l = n.leases[lease as usize];
        if l.live && (l.id == id || self.without(Without::LeaseRequest)) {
            n.leases[lease as usize] = Lease::default();
            if l.key == self.asks[get].key {
                n.readers[get].leased = true;
                n.readers[get].word = l.word;
                n.readers[get].epoch = l.epoch;
            }
        }
    }

    fn returns_or_fills(&self, n: &mut State, get: usize) {
        let value = n.readers[get].half[0];
        if n.readers[get].leased && value != ABSENT {
            n.readers[get].leased = false;
            n.readers[get].at = if self.flushes() { GetAt::Fill } else { GetAt::FillEpoch };
        } else {
            self.returns(n, get, value);
        }
    }

    fn lost(&self, n: &mut State, get: usize) {
        n.readers[get] = Reader { at: GetAt::Done, ..Reader::default() };
        if !self.only_stale && !self.asks[get].many {
            n.orders[self.asks[get].key as usize].get_forgotten(get);
        }
    }

    /// A write: `write_begin()` or `flush_all()`, memcached, `write_end()`.
    pub(super) fn write_steps(&self, s: &State, write: usize, found: &mut Found) {
        let steps = &mut Steps { s, who: Who::Write(write), found };
        self.begin_steps(steps, write);
        self.memcached_steps(steps, write);
        if s.writers[write].at == WriteAt::Applied {
            self.ack_steps(steps, write);
        }
        self.end_steps(steps, write);
    }

    /// The writes that came earlier on the same connection.
    fn before(&self, write: usize) -> impl Iterator<Item = usize> + '_ {
        let connection = self.writes[write].connection;
        (0..write).filter(move |&earlier| self.writes[earlier].connection == connection)
    }

    fn begin_steps(&self, steps: &mut Steps<'_>, write: usize) {
        let spec = &self.writes[write];
        let key = spec.key as usize;
        let s = steps.s;
        let w = s.writers[write];
        match w.at {
            WriteAt::Idle
                if s.connections[spec.connection as usize].abandons
                    || self
                        .before(write)
                        .any(|earlier| s.writers[earlier].at < WriteAt::GoesOn) => {}
            WriteAt::Idle if s.sleep.is_asleep() => steps.go("comes unseen", |n| {
                let connection = &mut n.connections[spec.connection as usize];
                connection.abandons = !connection.mute;
                connection.mute = true;
                n.writers[write].unseen = true;
                n.writers[write].in_all = n.sleep == Sleep::Wakes;
                n.writers[write].at = WriteAt::GoesOn;
            }),
            WriteAt::Idle if spec.end > 0 && self.is_parsed(write) => {
                steps.go("walk_write: expiry_look", |n| {
                    n.writers[write].seen = n.lines[key].look();
                    n.writers[write].began_later = n.later;
                    n.writers[write].at = WriteAt::Looked;
                });
            }
            WriteAt::Looked if self.without(Without::OrderOfSole) => {
                steps.go("write_begin: loads the quarantine", |n| {
                    n.writers[write].sole = !n.quarantine;
                    n.writers[write].at = WriteAt::BeginsLate;
                });
            }
            WriteAt::Idle | WriteAt::Looked | WriteAt::BeginsLate => {
                let (what, begun) = self.write_begin(s, write);
                steps.go(what, |n| *n = begun);
            }
            WriteAt::Looks => steps.go("write_begin: loads the quarantine", |n| {
                n.writers[write].sole &= self.without(Without::OrderOfSole) || !n.quarantine;
                n.writers[write].at = WriteAt::LooksAgain;
            }),
            WriteAt::LooksAgain => steps.go("write_begin: loads G's quarantine", |n| {
                n.writers[write].sole &= !n.quarantine_all;
                n.writers[write].epoch = n.epoch;
                let ages = n.writers[write].sole || self.without(Without::AgeOfSole);
                n.writers[write].at = if ages { WriteAt::Ages } else { WriteAt::Records };
            }),
            WriteAt::Ages => steps.go("write_expects: expiry_age", |n| {
                let there = n.lines[key].look();
                let seen = if self.without(Without::LookOfBegin) { there } else { w.seen };
                n.lines[key].age(seen);
                n.writers[write].at = WriteAt::Records;
            }),
            WriteAt::Records if self.without(Without::CandidateOfBegin) => {
                steps.go("goes on", |n| n.writers[write].goes_on());
            }
            WriteAt::Records => steps.go("write_expects: expiry_put, goes on", |n| {
                let open = w.pending && !self.without(Without::OpenOfBegin);
                let late = if open { Late::Open } else { Late::Not };
                let new = Candidate::new(spec.end + n.now(), late);
                n.writers[write].own = self.put(n, key, new);
                n.writers[write].goes_on();
            }),
            WriteAt::Quarantined => steps.go("write_begin: adds GEN to W", |n| {
                self.bump(n, write, GEN);
                n.writers[write].at = self.forget_from(0, write);
            }),
            WriteAt::QuarantinedAll => steps.go("flush_all: adds GEN to G, goes on", |n| {
                n.epoch += 1;
                n.writers[write].at = WriteAt::GoesOn;
            }),
            WriteAt::Bumped(way) => steps.go("write_begin: bucket_forget", |n| {
                if n.ways[way as usize] == spec.key + 1 {
                    n.ways[way as usize] = 0;
                }
                n.writers[write].at = self.forget_from(way + 1, write);
                if self.without(Without::WriterOrder)
                    && n.writers[write].at == WriteAt::GoesOn
                    && !n.writers[write].pending
                {
                    n.writers[write].at = WriteAt::QuarantineLast;
                }
            }),
            WriteAt::QuarantineLast => steps.go("stores the quarantine, goes on", |n| {
                n.quarantine = true;
                n.writers[write].at = WriteAt::GoesOn;
            }),
            WriteAt::QuarantineAllLast => steps.go("stores G's quarantine, goes on", |n| {
                n.quarantine_all = true;
                n.writers[write].at = WriteAt::GoesOn;
            }),
            _ => (),
        }
    }

    fn memcached_steps(&self, steps: &mut Steps<'_>, write: usize) {
        let connection = self.writes[write].connection;
        let s = steps.s;
        let w = s.writers[write];
        match w.at {
            WriteAt::GoesOn if w.dropped => steps.go("its segment comes again", |n| {
                let w = &mut n.writers[write];
                w.dropped = false;
                if w.pending || self.without(Without::QuarantineOfRepeat) {
                    return;
                }
                if w.paused {
                    w.at = WriteAt::Repeated;
                }
                w.paused = false;
                w.in_bucket = false;
                w.in_all = true;
                n.quarantine_all = true;
            }),
            WriteAt::GoesOn => {
                if self.before(write).all(|earlier| s.writers[earlier].at >= WriteAt::Applied) {
                    steps.go("memcached applies it", |n| {
                        n.writers[write].at = WriteAt::Applied;
                        n.writers[write].in_bucket = false;
                        n.writers[write].in_all = false;
                        if self.only_stale {
                            n.had |= 1 << n.memcached[0];
                            n.writers[write].outdates = n.had;
                        }
                        let key = self.writes[write].key as usize;
                        n.writers[write].applied_later = n.later;
                        n.writers[write].stored = !self.is_there(n, key);
                        for key in 0..self.keys() {
                            if self.changes(n, write, key) {
                                n.memcached[key] = self.value_of(write);
                            }
                        }
                    });
                }
                let last = (write + 1..self.writes.len()).all(|i| {
                    self.writes[i].connection != connection || s.writers[i].at == WriteAt::Idle
                });
                if self.may(May::DropSegments) && last && !w.was_dropped {
                    steps.go("its segment is dropped", |n| {
                        n.writers[write].dropped = true;
                        n.writers[write].was_dropped = true;
                    });
                }
            }
            WriteAt::Repeated => steps.go("flush_all: adds GEN to G", |n| {
                n.epoch += 1;
                n.writers[write].at = WriteAt::GoesOn;
            }),
            _ => (),
        }
    }

    /// The reply leaves; those on its connection leave in order.
    fn ack_steps(&self, steps: &mut Steps<'_>, write: usize) {
        let spec = &self.writes[write];
        let connection = spec.connection as usize;
        let Connection { mute, gap, .. } = steps.s.connections[connection];
        let writers = &steps.s.writers;
        let answered = |&earlier: &usize| {
            self.writes[earlier].noreply
                || matches!(writers[earlier].at, WriteAt::Acked | WriteAt::ReplyLost)
        };
        if spec.noreply || !self.before(write).all(|earlier| answered(&earlier)) {
            return;
        }
        let ends = |w: &Writer| (WriteAt::EndForgets..=WriteAt::EndAgain).contains(&w.at);
        if writers.iter().any(|w| ends(w) && (w.aged || writers[write].aged)) {
            return; // see system.rs
        }
        if self.may(May::LoseReplies) {
            steps.go("its reply is lost", |n| n.writers[write].at = WriteAt::ReplyLost);
        }
        let waits = |earlier: usize| {
            let at = writers[earlier].at;
            at == WriteAt::ReplyLost || (WriteAt::EndForgets..=WriteAt::Ending).contains(&at)
        };
        if self.before(write).any(waits) {
            return;
        }
        if steps.s.sleep.is_asleep() {
            steps.go("its reply leaves unseen", |n| {
                n.connections[connection].gap = true;
                self.acked(n, write);
            });
            return;
        }
        if gap && !mute {
            steps.go("its reply leaves behind a gap: flow_mute", |n| {
                n.connections[connection] = Connection { mute: true, abandons: true, gap };
                self.acked(n, write);
            });
            return;
        }
        let unanswered = |&earlier: &usize| {
            let w = &writers[earlier];
            self.writes[earlier].noreply && w.pending && !w.abandoning
        };
        let w = writers[write];
        if let Some(silent) = self.before(write).find(unanswered).filter(|_| !mute) {
            steps.go("its reply leaves: write_end of an earlier noreply", |n| {
                self.write_end_first(n, silent, self.writes[silent].command == Command::Set);
                if n.writers[silent].at == WriteAt::Applied {
                    n.writers[silent].at = WriteAt::Retired;
                }
            });
        } else if !w.pending || w.abandoning {
            steps.go("its reply leaves, which nobody waits for", |n| {
                if spec.command == Command::FlushAll && !mute {
                    n.epoch += 1;
                }
                self.acked(n, write);
            });
        } else {
            steps.go("its reply leaves: write_end", |n| {
                self.write_end_first(n, write, spec.command != Command::Vivify);
                if n.writers[write].at == WriteAt::Applied {
                    self.acked(n, write);
                }
            });
        }
    }

    fn end_steps(&self, steps: &mut Steps<'_>, write: usize) {
        let spec = &self.writes[write];
        let key = spec.key as usize;
        let s = steps.s;
        let w = s.writers[write];
        match w.at {
            WriteAt::EndForgets => steps.go("write_tells: expiry_close, OLD ones go", |n| {
                n.lines[key].forget_old(w.outcome, w.epoch);
                n.writers[write].at = WriteAt::EndCloses;
            }),
            WriteAt::EndCloses => steps.go("write_tells: expiry_close", |n| {
                self.close(n, write, w.outcome);
                n.writers[write].at = match w.outcome {
                    Outcome::Only if self.flushes() => WriteAt::EndLooks,
                    _ if is_pending(w.word) => WriteAt::EndCas,
                    _ => WriteAt::EndAgain,
                };
            }),
            WriteAt::EndLooks => steps.go("write_out: looks at G", |n| {
                if n.epoch != w.epoch {
                    n.lines[key].doubt();
                }
                n.writers[write].at = WriteAt::EndCas;
            }),
            WriteAt::EndCas if s.word == w.word => steps.go("write_out: CAS W", |n| {
                n.writers[write].forget(WriteAt::Applied);
                self.write_end(n, write);
                self.ended(n, write);
            }),
            WriteAt::EndCas => steps.go("write_out: CAS W fails", |n| {
                let firm = w.outcome == Outcome::Only && !self.without(Without::DoubtOfEnd);
                n.writers[write].forget(if firm { WriteAt::EndDoubts } else { WriteAt::EndAgain });
            }),
            WriteAt::EndDoubts => steps.go("write_out: expiry_doubt", |n| {
                n.lines[key].doubt();
                n.writers[write].at = WriteAt::EndAgain;
            }),
            WriteAt::EndAgain => steps.go("write_out: CAS W again", |n| {
                n.writers[write].at = WriteAt::Applied;
                self.write_end(n, write);
                self.ended(n, write);
            }),
            WriteAt::Ending => steps.go("write_out: clears all ways", |n| {
                n.ways = [0; KEYS];
                n.writers[write].at = WriteAt::Applied;
                self.ended(n, write);
            }),
            _ => (),
        }
    }

    /// Moves W; the write may be sole if nobody else's is under way.
    fn bump(&self, n: &mut State, write: usize, by: u8) {
        let w = &mut n.writers[write];
        w.sole = is_clean(n.word) && (w.sole || !self.without(Without::OrderOfSole));
        n.word += by;
        if self.expires() {
            w.word = n.word & !(GEN - 1);
        }
    }

    /// Its end can be seen on the wire.
    fn is_parsed(&self, write: usize) -> bool {
        !matches!(self.writes[write].command, Command::FlushAll | Command::Unparsed)
    }

    /// `expiry_put()`
    fn put(&self, n: &mut State, key: usize, new: Candidate) -> bool {
        if self.without(Without::Candidates) {
            n.lines[key].put_least(new);
            return true;
        }
        n.lines[key].put(new, n.now(), self.without(Without::CellOfEach))
    }

    /// `expiry_close()`, but for what is OLD.
    fn close(&self, n: &mut State, write: usize, outcome: Outcome) {
        let (w, key) = (n.writers[write], self.writes[write].key as usize);
        let end = self.writes[write].end + if w.began_later { LATER } else { 0 };
        let late = w.began_later != n.later && !self.without(Without::LateOfEnd);
        let own = Candidate::new(end, if late { Late::Once } else { Late::Not });
        if self.without(Without::Candidates) {
            n.lines[key].put_least(own);
            return;
        }
        let (now, same) = (n.now(), self.without(Without::CellOfEach));
        n.lines[key].close(own, outcome, now, same);
        if outcome == Outcome::Last && self.without(Without::FirmOfOld) {
            n.lines[key].make_firm(own, w.epoch);
        }
    }

    fn forget_from(&self, way: u8, write: usize) -> WriteAt {
        if (way as usize) < self.keys() && !self.without(Without::Forget) {
            WriteAt::Bumped(way)
        } else if self.writes[write].end > 0 {
            WriteAt::Looks
        } else {
            WriteAt::GoesOn
        }
    }

    fn write_begin(&self, s: &State, write: usize) -> (&'static str, State) {
        let spec = &self.writes[write];
        let connection = spec.connection as usize;
        let mut n = *s;
        let w = &mut n.writers[write];
        n.flag = false;
        if matches!(spec.command, Command::FlushAll | Command::Unparsed) {
            if spec.command == Command::Unparsed && !n.connections[connection].mute {
                n.connections[connection].mute = true;
                n.connections[connection].abandons = true;
            }
            w.in_all = !self.without(Without::QuarantineOfFlush);
            if self.without(Without::WriterOrder) {
                w.at = WriteAt::QuarantineAllLast;
                n.epoch += 1;
                return ("flush_all: adds GEN to G", n);
            }
            w.at = WriteAt::QuarantinedAll;
            n.quarantine_all |= w.in_all;
            return ("flush_all: stores G's quarantine", n);
        }
        if n.connections[connection].mute {
            w.in_bucket = true;
            if self.without(Without::WriterOrder) {
                w.at = self.forget_from(0, write);
                n.word += GEN;
                return ("write_begin: adds GEN to W", n);
            }
            w.at = WriteAt::Quarantined;
            n.quarantine = true;
            return ("write_begin: stores the quarantine", n);
        }
        let busy = s
            .writers
            .iter()
            .zip(&self.writes)
            .any(|(w, other)| w.pending && other.connection == spec.connection);
        w.pending = !(self.without(Without::Ring) && busy);
        if self.without(Without::WriteBegin) {
            w.at = WriteAt::GoesOn;
            return ("goes on", n);
        }
        w.at = self.forget_from(0, write);
        if self.without(Without::Count) {
            n.word += GEN;
            return ("write_begin: adds GEN to W", n);
        }
        self.bump(&mut n, write, GEN + PEND);
        ("write_begin: adds GEN + PEND to W", n)
    }

    /// `write_end()`, up to what it decides on. `tells`: its reply says whether the
    /// write did something.
    fn write_end_first(&self, n: &mut State, write: usize, tells: bool) {
        if self.writes[write].end == 0 || !self.is_parsed(write) {
            self.write_end(n, write);
            return;
        }
        let (word, epoch) = (n.word, n.epoch);
        let did = n.writers[write].stored || self.writes[write].command == Command::Set;
        let w = &mut n.writers[write];
        let same = is_same(word, w.word) && epoch == w.epoch;
        let words = same || self.without(Without::WordsOfEnd);
        let alone = is_pending(word) && w.sole && !n.quarantine_all && words;
        let young = !w.aged || self.without(Without::AgeOfEnd);
        w.outcome = match (tells && is_pending(word), did) {
            (true, true) if young && alone => Outcome::Only,
            (true, true) if young => Outcome::Last,
            (true, false) if alone && w.own => Outcome::None,
            _ => Outcome::Stays,
        };
        w.word = word;
        w.epoch = epoch;
        w.at = match w.outcome {
            Outcome::Last | Outcome::Only => WriteAt::EndForgets,
            _ => WriteAt::EndCloses,
        };
    }

    /// If nothing is left to do, its reply leaves.
    fn ended(&self, n: &mut State, write: usize) {
        if n.writers[write].at == WriteAt::Ending {
            return;
        }
        if self.writes[write].noreply {
            n.writers[write].at = WriteAt::Retired;
        } else {
            self.acked(n, write);
        }
    }

    /// The last round of `write_end()`.
    fn write_end(&self, n: &mut State, write: usize) {
        n.writers[write].pending = false;
        n.flag = false;
        if self.without(Without::WriteEnd) {
            return;
        }
        if is_pending(n.word) {
            n.word += if self.without(Without::GenOfEnd) { 0 } else { GEN };
            n.word -= PEND;
        } else if !self.without(Without::EndOfReaped) {
            n.word += GEN;
            n.writers[write].at = WriteAt::Ending;
        }
    }

    /// What is not a step of one GET or write.
    pub(super) fn other_steps(&self, s: &State, found: &mut Found) {
        let steps = &mut Steps { s, who: Who::Other, found };
        self.time_steps(steps);
        self.reap_steps(steps);
        self.loss_steps(steps);
        if self.may(May::Sleep) {
            self.sleep_steps(steps);
        }
        if self.may(May::StealSlot) {
            thief_steps(steps);
        }
        if self.may(May::Pass) && !s.later {
            pass_steps(steps);
        }
        if self.may(May::LoseCell) {
            self.taker_steps(steps);
        }
    }

    /// `expiry_put_at()` of another key that shares the line, and finds no better cell.
    fn taker_steps(&self, steps: &mut Steps<'_>) {
        let s = steps.s;
        match s.taker {
            0 => {
                for cell in 0..CELLS_OF_LINE {
                    let Some(victim) = s.lines[0].wants(cell) else { continue };
                    steps.go("another key: expiry_doubt", |n| {
                        n.taker = 1;
                        n.taken = cell as u8;
                        n.victim = victim;
                        if self.without(Without::DoubtOfTaken) {
                            n.victim = n.lines[0].look()[cell];
                        } else {
                            n.lines[0].doubt();
                        }
                    });
                }
            }
            1 => {
                let cell = s.taken as usize;
                let taken = s.lines[0].look()[cell] == s.victim;
                steps.go("another key: takes the cell, or not", |n| {
                    n.taker = if taken { 2 } else { 3 };
                    n.taken = 0;
                    n.victim = Candidate::default();
                    if taken {
                        n.lines[0].lose(cell);
                    }
                });
            }
            _ => (),
        }
    }

    fn time_steps(&self, steps: &mut Steps<'_>) {
        let s = steps.s;
        let unapplied = |w: &Writer| w.at != WriteAt::Idle && w.at < WriteAt::Applied && !w.dropped;
        // A program does not run for that long.
        let abandoning = s.writers.iter().any(|w| w.abandoning);
        if s.quarantine && !abandoning && !s.writers.iter().any(|w| w.in_bucket && unapplied(w)) {
            steps.go("BMC_APPLY_NS is over", |n| {
                n.quarantine = false;
                for w in n.writers.iter_mut().filter(|w| w.dropped && w.in_bucket) {
                    w.paused = true;
                }
            });
        }
        // Nor does this one, which matters where a write does not move W.
        let finding = |r: &Reader| GetAt::Idle < r.at && r.at < GetAt::Passed;
        let waking =
            s.sleep == Sleep::Wakes || self.may(May::Sleep) && s.readers.iter().any(finding);
        if s.quarantine_all && !waking && !s.writers.iter().any(|w| w.in_all && unapplied(w)) {
            steps.go("BMC_APPLY_NS is over for G", |n| {
                n.quarantine_all = false;
                for w in n.writers.iter_mut().filter(|w| w.dropped && w.in_all) {
                    w.paused = true;
                }
            });
        }
        for cell in 0..CELLS {
            let waits = |(ask, r): (&Ask, &Reader)| {
                matches!(ask.id, Id::Is { cell: c, .. } if c as usize == cell)
                    && ((GetAt::Alone..=GetAt::Taken).contains(&r.at) || r.replies > 0)
            };
            if s.cells[cell].out != 0 && !self.asks.iter().zip(&s.readers).any(waits) {
                steps.go("BMC_REPLY_NS is over", |n| n.cells[cell] = Cell::default());
            }
        }
    }

    fn reap_steps(&self, steps: &mut Steps<'_>) {
        let s = steps.s;
        let reply_lost = |(w, spec): (&Writer, &Write)| {
            !w.pending
                || matches!(w.at, WriteAt::ReplyLost | WriteAt::Acked)
                || spec.noreply && w.at == WriteAt::Applied
        };
        let may_lose = self.may(May::LoseReplies) || self.may(May::Sleep);
        // Nor does a write's last program.
        let ends = |w: &Writer| (WriteAt::EndForgets..WriteAt::EndAgain).contains(&w.at);
        if is_pending(s.word)
            && !s.writers.iter().any(ends)
            && (self.may(May::StallMemcached)
                || self.may(May::DelayReplies)
                    && s.writers.iter().all(|w| !w.pending || w.at >= WriteAt::Applied)
                || may_lose && s.writers.iter().zip(&self.writes).all(reply_lost))
        {
            steps.go("BMC_LOST_S is over: bucket_reap", |n| {
                n.word = (n.word & !(GEN - PEND)) + GEN;
                n.writers.iter_mut().filter(|w| w.pending).for_each(|w| w.aged = true);
            });
        }
    }

    fn loss_steps(&self, steps: &mut Steps<'_>) {
        let s = steps.s;
        if self.may(May::LoseGets) {
            for lease in (0..CELLS).filter(|&lease| s.leases[lease].live) {
                steps.go("another request overwrites a lease", |n| {
                    n.leases[lease] = Lease::default();
                });
            }
        }
        for c in 0..CONNECTIONS {
            let arriving = |(w, spec): (&Writer, &Write)| {
                spec.connection as usize == c && w.at != WriteAt::Idle && w.at < WriteAt::GoesOn
            };
            let connection = s.connections[c];
            let is_used = self.writes.iter().any(|write| write.connection as usize == c);
            if self.may(May::LoseConnection)
                && is_used
                && !connection.mute
                && !s.writers.iter().zip(&self.writes).any(arriving)
            {
                steps.go("a connection is lost", |n| {
                    n.connections[c] = Connection { mute: true, abandons: true, ..connection };
                });
            }
            if connection.abandons {
                self.abandon(steps, c);
            }
        }
    }

    /// `cache_look()` and `cache_wake()`
    fn sleep_steps(&self, steps: &mut Steps<'_>) {
        match steps.s.sleep {
            Sleep::Before => steps.go("cache_look: adds ASLEEP to G", |n| {
                n.sleep = Sleep::Asleep;
            }),
            Sleep::Asleep => steps.go("cache_wake: stores G's quarantine", |n| {
                n.sleep = Sleep::Wakes;
                if !self.without(Without::QuarantineOfWake) {
                    n.quarantine_all = true;
                    n.writers.iter_mut().filter(|w| w.unseen).for_each(|w| w.in_all = true);
                }
            }),
            Sleep::Wakes => steps.go("cache_wake: adds GEN - ASLEEP to G", |n| {
                n.sleep = Sleep::Over;
                n.epoch += u8::from(!self.without(Without::GenOfWake));
            }),
            Sleep::Over => (),
        }
    }

    /// `write_abandon()` of everything that a connection waits for.
    fn abandon(&self, steps: &mut Steps<'_>, connection: usize) {
        let s = steps.s;
        let pending = s.writers.iter().zip(&self.writes).position(|(w, spec)| {
            spec.connection as usize == connection
                && w.pending
                && !(WriteAt::EndForgets..=WriteAt::Ending).contains(&w.at)
        });
        let Some(write) = pending else {
            steps
                .go("all its writes are abandoned", |n| n.connections[connection].abandons = false);
            return;
        };
        if s.writers[write].abandoning || self.without(Without::QuarantineOfLost) {
            steps.go("write_abandon: write_end", |n| {
                let at = n.writers[write].at;
                // Given up for lost before, it takes another one's count now;
                // which is applied in time, as any write.
                for w in n.writers.iter_mut().filter(|w| w.pending && w.at < WriteAt::Applied) {
                    w.in_bucket |= n.quarantine;
                }
                if self.writes[write].end > 0 && self.is_parsed(write) {
                    self.close(n, write, Outcome::Stays);
                }
                self.write_end(n, write);
                n.writers[write].abandoning = false;
                if n.writers[write].at == WriteAt::Ending {
                    // Only after a reap: the ways are cleared at once.
                    n.writers[write].at = at;
                    n.ways = [0; KEYS];
                }
            });
        } else {
            steps.go("write_abandon: stores the quarantine", |n| {
                n.quarantine = true;
                n.writers[write].abandoning = true;
            });
        }
    }
}

/// Another bucket takes slot 0: `slot_victim()` and `cache_fill()`.
fn thief_steps(steps: &mut Steps<'_>) {
    let s = steps.s;
    match s.thief {
        0 if s.slots[0].seq & 1 == 0 => steps.go("another bucket takes the slot", |n| {
            n.slots[0].seq += 1;
            n.thief = 1;
        }),
        1 => steps.go("another bucket unlinks the slot", |n| {
            if n.ways[0] == n.slots[0].key + 1 {
                n.ways[0] = 0;
            }
            n.thief = 2;
        }),
        2 => steps.go("another bucket writes half of the slot", |n| {
            n.slots[0].key = FOREIGN;
            n.slots[0].half[0] = FOREIGN_VALUE;
            n.thief = 3;
        }),
        3 => steps.go("another bucket writes the rest of the slot", |n| {
            n.slots[0].half[1] = FOREIGN_VALUE;
            n.slots[0].seq += 1;
            n.thief = 4;
        }),
        _ => (),
    }
}

/// Much time passes: more than a program runs, a reply is under way, or whoever counts
/// on a quarantine is not applied.
fn pass_steps(steps: &mut Steps<'_>) {
    let s = steps.s;
    let runs = |r: &Reader| !matches!(r.at, GetAt::Idle | GetAt::Passed | GetAt::Done);
    let ends = |w: &Writer| {
        WriteAt::Idle < w.at && w.at < WriteAt::GoesOn
            || (WriteAt::EndForgets..=WriteAt::Ending).contains(&w.at)
            || (w.in_bucket || w.in_all) && w.at < WriteAt::Applied
            || w.abandoning
    };
    if !s.readers.iter().any(runs) && !s.writers.iter().any(ends) {
        steps.go("time passes", |n| n.later = true);
    }
}
