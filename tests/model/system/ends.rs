// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The line of bpf/expiry.bpf.h, of one key.
//!
//! Time is coarse: it passes once, from 0 to [`LATER`], when no reply is under way that
//! would be older than `BMC_REPLY_NS` then. So what is past is certainly past,
//! `EXPIRY_SLACK` is 0, and `LATE` only says whether a write was applied before
//! that or after it.

use super::State;

/// The time after it has passed.
pub(super) const LATER: u8 = 2;
/// Cells of the line, and how many a key has before it shares one.
pub(super) const CELLS_OF_LINE: usize = 4;
const OWN: usize = 3;

const END: u8 = 0x0f;
const LATE: u8 = 0x30;
const FIRM: u8 = 0x40;
const OLD: u8 = 0x80;

/// How much later than a cell's end the item may end.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Late {
    Not = 0,
    Once = 1 << 4,
    Ever = 2 << 4,
    Open = 3 << 4,
}

/// A candidate; 0 if there is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Candidate(u8);

impl Candidate {
    pub(super) fn new(end: u8, late: Late) -> Self {
        Self(end | late as u8)
    }

    fn firm(self) -> Self {
        Self(self.0 | FIRM)
    }

    fn end(self) -> u8 {
        self.0 & END
    }

    fn is(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// From when on the item is certainly gone.
    fn past(self) -> u8 {
        match self.0 & LATE {
            0 => self.end(),
            late if late == Late::Once as u8 => self.end() + LATER,
            _ => u8::MAX,
        }
    }

    fn is_free(self, now: u8) -> bool {
        self.end() == 0 || self.past() <= now
    }

    /// `cell_both()`
    fn both(self, other: Self) -> Self {
        let end = self.end().min(other.end());
        let late = match self.past().max(other.past()) {
            u8::MAX => Late::Ever,
            past if past == end => Late::Not,
            past if past - end <= LATER => Late::Once,
            _ => Late::Ever,
        };
        Self((self.0 & FIRM) | (self.0 & other.0 & OLD) | late as u8 | end)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) epoch: u8,
    cells: [Candidate; CELLS_OF_LINE],
}

/// What is kept in mind of a line.
pub(super) type Seen = [Candidate; CELLS_OF_LINE];

/// What becomes of a candidate: `enum expiry_outcome`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) enum Outcome {
    #[default]
    Stays,
    None,
    Last,
    Only,
}

impl Line {
    /// What is known of the initial item.
    pub(super) fn new(end: u8) -> Self {
        let mut cells = [Candidate::default(); CELLS_OF_LINE];
        cells[0] = Candidate::new(end, Late::Not).firm();
        Self { epoch: 1, cells }
    }

    /// `expiry_look()`
    pub(super) fn look(self) -> Seen {
        self.cells
    }

    /// `expiry_age()`
    pub(super) fn age(&mut self, seen: Seen) {
        for (cell, seen) in self.cells.iter_mut().zip(seen) {
            if *cell == seen && cell.end() > 0 {
                cell.0 |= OLD;
            }
        }
    }

    /// `expiry_put()`; whether it has a cell of its own. `same`: a cell that covers it is
    /// as good as any.
    pub(super) fn put(&mut self, new: Candidate, now: u8, same: bool) -> bool {
        let own = self.cells.iter().filter(|cell| !cell.is_free(now)).count();
        let changes = |cell: &&mut Candidate| {
            !cell.is_free(now)
                && (same || cell.end() > new.end() || cell.past() < new.past() || cell.is(OLD))
        };
        let best = |cell: &&mut Candidate| (!cell.is(FIRM), cell.end());
        let shared = self.cells.iter_mut().filter(changes).max_by_key(best);
        if let Some(cell) = shared.filter(|_| own >= OWN) {
            *cell = cell.both(new);
        } else if let Some(free) = self.cells.iter_mut().find(|cell| cell.is_free(now)) {
            *free = new;
            return true;
        } else {
            self.doubt();
        }
        false
    }

    /// Instead of several candidates: the least, and no other one.
    pub(super) fn put_least(&mut self, new: Candidate) {
        let least = self.cells.iter().copied().filter(|cell| cell.end() > 0);
        let least = least.min_by_key(|cell| cell.end()).filter(|cell| cell.end() < new.end());
        self.cells = [Candidate::default(); CELLS_OF_LINE];
        self.cells[0] = least.unwrap_or(new);
    }

    /// `expiry_edit()` of the first cell that is like that.
    fn edit(&mut self, is: impl Fn(Candidate) -> bool, to: Candidate) -> bool {
        let found = self.cells.iter_mut().find(|cell| cell.end() > 0 && is(**cell));
        found.map(|cell| *cell = to).is_some()
    }

    /// `expiry_close()`: what is OLD goes, but for FIRM if it was not alone.
    pub(super) fn forget_old(&mut self, outcome: Outcome, epoch: u8) {
        if outcome == Outcome::Only && self.epoch != epoch {
            self.doubt();
            self.epoch = epoch;
        }
        let goes =
            |cell: &&mut Candidate| cell.is(OLD) && (outcome == Outcome::Only || !cell.is(FIRM));
        self.cells.iter_mut().filter(goes).for_each(|cell| *cell = Candidate::default());
    }

    /// The rest of `expiry_close()`. `same`: if another cell says the same already that
    /// is enough.
    pub(super) fn close(&mut self, own: Candidate, outcome: Outcome, now: u8, same: bool) {
        let open = Candidate::new(own.end(), Late::Open);
        let none = Candidate::default();
        if outcome == Outcome::None {
            self.edit(|cell| cell == open, none);
            return;
        }
        let own = if outcome == Outcome::Only { own.firm() } else { own };
        let last = outcome == Outcome::Last;
        let took = last && self.edit(|cell| cell.is(OLD | FIRM), own.firm());
        let is_there = |cell: Candidate| cell.0 & !FIRM == own.0;
        let there = took || same && self.cells.iter().copied().any(is_there);
        if !self.edit(|cell| cell == open, if there { none } else { own }) && !there {
            self.put(own, now, same);
        }
    }

    /// Makes it FIRM, of this epoch.
    pub(super) fn make_firm(&mut self, own: Candidate, epoch: u8) {
        self.forget_old(Outcome::Only, epoch);
        self.edit(|cell| cell == own, own.firm());
    }

    /// `expiry_doubt()`
    pub(super) fn doubt(&mut self) {
        self.cells.iter_mut().for_each(|cell| cell.0 &= !FIRM);
    }

    /// Another key wants this cell; what it must be then, when it is taken.
    pub(super) fn wants(self, cell: usize) -> Option<Candidate> {
        let cell = self.cells[cell];
        (cell.end() > 0).then_some(Candidate(cell.0 & !FIRM))
    }

    /// Another key takes it.
    pub(super) fn lose(&mut self, cell: usize) {
        self.cells[cell] = Candidate::default();
    }

    /// `expiry_get()`: when the item ends, 0 if that is not known, and whether there can
    /// be no other end.
    pub(super) fn get(self, epoch: u8, now: u8) -> (u8, bool) {
        let candidates = self.cells.iter().filter(|cell| !cell.is_free(now));
        let least = candidates.map(|cell| cell.end()).min().unwrap_or(0);
        let firm = self.cells.iter().any(|cell| cell.end() > 0 && cell.is(FIRM));
        (least, least > 0 && firm && self.epoch == epoch)
    }

    /// To read.
    pub(super) fn show(self) -> String {
        let show = |cell: &Candidate| {
            let mut text = cell.end().to_string();
            text += match cell.0 & LATE {
                0 => "",
                late if late == Late::Once as u8 => "+",
                late if late == Late::Ever as u8 => "++",
                _ => "?",
            };
            text += if cell.is(FIRM) { "F" } else { "" };
            text + if cell.is(OLD) { "O" } else { "" }
        };
        let cells: Vec<_> = self.cells.iter().filter(|cell| cell.end() > 0).map(show).collect();
        format!("ends [{}]", cells.join(" "))
    }
}

impl State {
    pub(super) fn now(&self) -> u8 {
        if self.later { LATER } else { 0 }
    }
}
