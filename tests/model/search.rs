// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Breadth-first search through every state of a model.
//!
//! Not a library, for two reasons: a state here is a hundred bytes without any
//! pointer and its successors cost as little as copying it, and the set of
//! states seen keeps 16 bytes of each, its fingerprint and its parent's. Ten
//! million states are then a matter of seconds and of 300 MB.
//!
//! A fingerprint has 64 bits. That two of ten million states share one, and the
//! second is not explored, has a probability of 3 in a million.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What the search explores.
pub(crate) trait Model {
    type State: Copy + Hash;
    type Step: Copy;

    fn initial(&self) -> Self::State;

    /// Every step possible in `state`, with the state that it leads to.
    fn steps(&self, state: &Self::State, found: &mut Vec<(Self::Step, Self::State)>);

    /// One of the states that differ from this one in nothing but names.
    fn canonical(&self, state: Self::State) -> Self::State;

    /// The property that the state violates.
    fn violated(&self, state: &Self::State) -> Option<&'static str>;

    /// What the step achieves, to be counted.
    fn event(&self, step: Self::Step) -> Option<Event>;

    /// The step, and the state it led to, in one line.
    fn describe(&self, step: Self::Step, after: &Self::State) -> String;
}

/// A run in which these do not happen shows nothing.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Hit,
    Fill,
}

/// What a search found.
pub(crate) struct Outcome {
    pub(crate) states: usize,
    pub(crate) hits: u64,
    pub(crate) fills: u64,
    pub(crate) violation: Option<Violation>,
}

/// The property and a shortest way to violate it.
pub(crate) struct Violation {
    pub(crate) property: &'static str,
    pub(crate) trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.trace.iter().enumerate() {
            writeln!(f, "  {:2}. {step}", i + 1)?;
        }
        write!(f, "  {}", self.property)
    }
}

/// Explores the model until a property is violated or nothing is left.
pub(crate) fn explore<M: Model>(model: &M) -> Outcome {
    let first = model.canonical(model.initial());
    let root = fingerprint(&first);
    let mut parents = HashMap::<u64, u64, BuildHasherDefault<Same>>::default();
    parents.insert(root, root);
    let mut outcome = Outcome { states: 0, hits: 0, fills: 0, violation: None };
    let mut level = vec![first];
    let mut next = Vec::new();
    let mut found = Vec::new();
    while !level.is_empty() {
        for state in &level {
            found.clear();
            model.steps(state, &mut found);
            let from = fingerprint(state);
            for &(step, state) in &found {
                match model.event(step) {
                    Some(Event::Hit) => outcome.hits += 1,
                    Some(Event::Fill) => outcome.fills += 1,
                    None => (),
                }
                let state = model.canonical(state);
                let print = fingerprint(&state);
                if parents.contains_key(&print) {
                    continue;
                }
                parents.insert(print, from);
                if let Some(property) = model.violated(&state) {
                    outcome.states = parents.len();
                    let trace = retrace(model, &parents, root, print);
                    outcome.violation = Some(Violation { property, trace });
                    return outcome;
                }
                next.push(state);
            }
        }
        std::mem::swap(&mut level, &mut next);
        next.clear();
    }
    outcome.states = parents.len();
    outcome
}

/// Runs the model along the fingerprints from `root` to `last`. The states are
/// not made canonical on the way, so that everyone keeps their name.
fn retrace<M: Model>(
    model: &M,
    parents: &HashMap<u64, u64, BuildHasherDefault<Same>>,
    root: u64,
    last: u64,
) -> Vec<String> {
    let mut way = vec![last];
    while way[way.len() - 1] != root {
        way.push(parents[&way[way.len() - 1]]);
    }
    let mut state = model.initial();
    let mut found = Vec::new();
    let mut trace = Vec::new();
    for &print in way.iter().rev().skip(1) {
        found.clear();
        model.steps(&state, &mut found);
        let (step, after) = *found
            .iter()
            .find(|(_, after)| fingerprint(&model.canonical(*after)) == print)
            .expect("equal but for names, so it has equal steps");
        trace.push(model.describe(step, &after));
        state = after;
    }
    trace
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut mix = Mix { sum: 0, word: 0, bytes: 0 };
    state.hash(&mut mix);
    mix.finish()
}

/// Multiplies and folds, eight bytes at a time.
struct Mix {
    sum: u64,
    word: u64,
    bytes: u32,
}

impl Mix {
    fn add(&mut self, word: u64) {
        let product = u128::from(self.sum ^ word ^ 0x9e37_79b9_7f4a_7c15)
            * u128::from(0xd6e8_feb8_6659_fd93_u64 ^ word.rotate_left(32));
        self.sum = (product as u64 ^ (product >> 64) as u64).rotate_left(23).wrapping_add(word);
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u8(byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.word = self.word << 8 | u64::from(byte);
        self.bytes += 1;
        if self.bytes == 8 {
            self.add(self.word);
            self.word = 0;
            self.bytes = 0;
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word));
    }

    /// What the derived `Hash` of an enum calls.
    fn write_isize(&mut self, variant: isize) {
        self.write_u8(variant as u8);
    }

    /// The arrays of a model have one length only.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        let mut last = Mix { ..*self };
        last.add(self.word ^ u64::from(self.bytes) << 60);
        last.add(0);
        last.sum
    }
}

/// A fingerprint needs no more hashing.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
