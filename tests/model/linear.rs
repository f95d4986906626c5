// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Linearizability of one key, checked while the operations go on: the set of
//! all orders that explain what the clients were told so far.
//!
//! An order is known by its outcome: the value it leaves, the writes it used
//! and, for each GET under way, the values that it may return, which are all
//! that the key had since the GET began. A write takes its place in an order
//! no sooner than an answer makes it necessary, because everything that an
//! earlier place allows is still allowed then.

use std::hash::{Hash, Hasher};

/// Initially 0; the n-th write, counted from 0, stores n + 1.
pub(crate) type Value = u8;

/// The key does not exist.
pub(crate) const ABSENT: Value = 5;

pub(crate) const GETS: usize = 4;
pub(crate) const WRITES: usize = 4;

const ORDERS: usize = 8;
const VALUE: u32 = 0x7; /* bits 0-2 */
const USED: u32 = 3; /* bits 3-6: writes that have a place */
const SEEN: u32 = 7; /* bits 7-30: six for each GET */
const PRESENT: u32 = 1 << 31;

/// The possible orders, sorted, then zeroes; none: not linearizable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orders([u32; ORDERS]);

/// The writes that began, and what they leave.
pub(crate) struct Writes {
    pub(crate) begun: [bool; WRITES],
    pub(crate) values: [Value; WRITES],
}

const fn seen(get: usize, value: Value) -> u32 {
    1 << (SEEN + 6 * get as u32 + value as u32)
}

const fn seen_any(get: usize) -> u32 {
    0x3f << (SEEN + 6 * get as u32)
}

fn value(order: u32) -> Value {
    (order & VALUE) as Value
}

impl Hash for Orders {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.each().for_each(|order| order.hash(state));
        0_u32.hash(state);
    }
}

impl Orders {
    /// One order: nothing happened yet.
    pub(crate) fn new() -> Self {
        let mut orders = [0; ORDERS];
        orders[0] = PRESENT;
        Self(orders)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0[0] == 0
    }

    fn each(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied().take_while(|&order| order != 0)
    }

    fn from(mut found: Vec<u32>) -> Self {
        found.sort_unstable();
        found.dedup();
        // What may return less than another, and is equal otherwise, is no use.
        let all = (1 << SEEN) - 1;
        let kept = found.iter().copied().filter(|&order| {
            !found.iter().any(|&other| {
                other != order && (other ^ order) & all == 0 && other & order == order
            })
        });
        let mut orders = [0; ORDERS];
        for (i, order) in kept.enumerate() {
            orders[i] = order;
        }
        Self(orders)
    }

    pub(crate) fn get_begins(&mut self, get: usize) {
        for order in self.0.iter_mut().filter(|order| **order != 0) {
            *order |= seen(get, value(*order));
        }
        self.0 = Self::from(self.each().collect()).0;
    }

    /// The GET will never be answered, or nobody asks what it returned.
    pub(crate) fn get_forgotten(&mut self, get: usize) {
        *self = Self::from(self.each().map(|order| order & !seen_any(get)).collect());
    }

    pub(crate) fn get_returns(&mut self, get: usize, got: Value, writes: &Writes) {
        let mut found = Vec::new();
        for order in self.each() {
            place(order, writes, &mut found, &|order, _| order & seen(get, got) != 0);
        }
        for order in &mut found {
            *order &= !seen_any(get);
        }
        *self = Self::from(found);
    }

    pub(crate) fn write_returns(&mut self, write: usize, writes: &Writes) {
        let mut found = Vec::new();
        for order in self.each() {
            place(order, writes, &mut found, &|order, _| order & 1 << (USED as usize + write) != 0);
        }
        *self = Self::from(found);
    }

    /// Two GETs change their names.
    pub(crate) fn swap(&mut self, a: usize, b: usize) {
        for order in self.0.iter_mut().filter(|order| **order != 0) {
            let (low_a, low_b) = (SEEN + 6 * a as u32, SEEN + 6 * b as u32);
            let differ = (*order >> low_a ^ *order >> low_b) & 0x3f;
            *order ^= differ << low_a | differ << low_b;
        }
        let used = self.each().count();
        self.0[..used].sort_unstable();
    }
}

/// All ways to go on from `order` with writes under way until it is `enough`.
fn place(order: u32, writes: &Writes, found: &mut Vec<u32>, enough: &dyn Fn(u32, &Writes) -> bool) {
    if enough(order, writes) {
        found.push(order);
        return;
    }
    for write in 0..WRITES {
        let used = 1 << (USED as usize + write);
        if !writes.begun[write] || order & used != 0 {
            continue;
        }
        let mut next = (order & !VALUE) | used | u32::from(writes.values[write]);
        for get in 0..GETS {
            if next & seen_any(get) != 0 {
                next |= seen(get, writes.values[write]);
            }
        }
        place(next, writes, found, enough);
    }
}

/// One write, of value 1, by nobody else.
const ONE: Writes = Writes { begun: [true, false, false, false], values: [1, 2, 3, 4] };

#[test]
fn a_get_during_a_write_may_return_either_value() {
    for value in [0, 1] {
        let mut orders = Orders::new();
        orders.get_begins(0);
        orders.get_returns(0, value, &ONE);
        assert!(!orders.is_empty());
    }
}

#[test]
fn a_get_must_not_return_what_a_write_replaced_before_it_began() {
    let mut orders = Orders::new();
    orders.write_returns(0, &ONE);
    orders.get_begins(0);
    orders.get_returns(0, 0, &ONE);
    assert!(orders.is_empty());
}

#[test]
fn a_get_must_not_return_what_another_one_saw_replaced_before_it_began() {
    let mut orders = Orders::new();
    orders.get_begins(0);
    orders.get_begins(1);
    orders.get_returns(0, 1, &ONE);
    let mut later = orders;
    orders.get_returns(1, 0, &ONE);
    assert!(!orders.is_empty(), "it began before");
    later.get_forgotten(1);
    later.get_begins(2);
    later.get_returns(2, 0, &ONE);
    assert!(later.is_empty());
}

#[test]
fn two_gets_must_agree_on_the_order_of_two_writes() {
    let two = Writes { begun: [true, true, false, false], ..ONE };
    let mut orders = Orders::new();
    for (get, value) in [(0, 1), (1, 2)] {
        orders.get_begins(get);
        orders.get_returns(get, value, &two);
        assert!(!orders.is_empty());
    }
    orders.get_begins(2);
    orders.get_returns(2, 1, &two);
    assert!(orders.is_empty());
}
