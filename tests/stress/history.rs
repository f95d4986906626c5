// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What was done to one key, when, and whether a single register can have
//! behaved so: the check for linearizability. It is exact, and takes
//! O(n log n).
//!
//! Values are unique, so that it is known which write a read saw. A write and
//! its reads are a cluster; the cluster's zone lies between the first end and
//! the last start of its operations. If the end comes first, the register held
//! the value all the time between them: a forward zone. Else all of the cluster
//! can have happened at any one moment between the two: a backward zone. Without
//! misses a history is linearizable if and only if no two forward zones overlap
//! and none contains a backward one (Gibbons, Korach: "Testing shared memories",
//! SIAM J. Comput. 26, 1997).
//!
//! Of a miss it is not known which delete it saw. Deletes, too, must not be
//! within a forward zone, nor must misses; what lies between two forward zones
//! is a gap. In a gap a delete at one moment answers misses up to the end of the
//! first backward zone that starts later: that one cannot be put before the
//! delete, all others can. The later the delete, the longer it lasts. So the
//! misses are taken by their ends, each is given the latest moment that it
//! allows, and of the deletes that could be there the one that ends first: any
//! other choice can be exchanged for this one.
//!
//! A write that was never answered may be applied at any later time or never.
//! If nobody read its value it says nothing; if somebody did, that read bounds
//! it. A delete without an answer is there for misses that need it.
//!
//! That `add`, `replace` and `cas` look before they write is memcached's affair
//! and not checked, except that what they did not find is a miss.

use std::collections::BTreeSet;
use std::collections::HashMap;

/// The end of what was never answered.
pub const NEVER: u64 = u64::MAX;

/// What was written or read: a number, or nothing.
pub type Value = Option<u64>;

/// One operation on one key.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Which key.
    pub key: usize,
    /// Whether it wrote the value; else it read it.
    pub writes: bool,
    /// The value; none for a delete and a miss.
    pub value: Value,
    /// Just before it was sent, in ns.
    pub start: u64,
    /// Just after its reply was there.
    pub end: u64,
    /// Whether it was certainly applied.
    pub sure: bool,
    /// Who did what, for people.
    pub what: &'static str,
    /// Which client.
    pub who: usize,
}

/// Why a history cannot be one register's, and which operations show it.
#[derive(Debug)]
pub struct Violation {
    /// The rule that is broken.
    pub why: &'static str,
    /// The operations, by their place in the history.
    pub operations: Vec<usize>,
}

/// A write and its reads.
#[derive(Debug)]
struct Cluster {
    write: Option<usize>,
    reads: Vec<usize>,
    /// The operation that ends first, and when.
    end: (u64, usize),
    /// The operation that starts last, and when.
    start: (u64, usize),
}

/// A time and the operations at its borders.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: u64,
    to: u64,
    operations: [usize; 2],
}

/// Checks the history of one key, which starts without a value. With
/// `anonymous`, values may have been written by a write whose value is not
/// known.
pub fn check(history: &[Operation], anonymous: bool) -> Result<(), Violation> {
    let clusters = clusters(history, anonymous)?;
    let span = |cluster: &Cluster, forward: bool| {
        let [(end, ender), (start, starter)] = [cluster.end, cluster.start];
        if forward {
            Span { from: end, to: start, operations: [ender, starter] }
        } else {
            Span { from: start, to: end, operations: [starter, ender] }
        }
    };
    let (forward, backward): (Vec<_>, Vec<_>) =
        clusters.iter().partition(|cluster| cluster.end.0 < cluster.start.0);
    let mut zones: Vec<Span> = forward.iter().map(|cluster| span(cluster, true)).collect();
    zones.sort_unstable_by_key(|zone| (zone.from, zone.to));
    for pair in zones.windows(2) {
        if pair[1].from < pair[0].to {
            return Err(Violation {
                why: "two values at the same time",
                operations: [pair[0].operations, pair[1].operations].concat(),
            });
        }
    }
    let gaps = Gaps(zones);
    let mut blips: Vec<Span> = backward.iter().map(|cluster| span(cluster, false)).collect();
    blips.sort_unstable_by_key(|blip| blip.from);
    for blip in &blips {
        gaps.admit(blip, "a value in the middle of another's time")?;
    }
    let none = |writes: bool| {
        let wanted =
            move |operation: &&Operation| operation.value.is_none() && operation.writes == writes;
        history.iter().enumerate().filter(move |(_, operation)| wanted(operation)).map(
            |(at, operation)| Span {
                from: operation.start,
                to: operation.end,
                operations: [at; 2],
            },
        )
    };
    let deletes: Vec<Span> = none(true).collect();
    let mut misses: Vec<Span> = none(false).collect();
    for delete in &deletes {
        if history[delete.operations[0]].sure {
            gaps.admit(delete, "a delete in the middle of a value's time")?;
        }
    }
    for miss in &misses {
        gaps.admit(miss, "a miss in the middle of a value's time")?;
    }
    misses.sort_unstable_by_key(|miss| miss.to);
    explain(&misses, deletes, &blips, &gaps)
}

fn clusters(history: &[Operation], anonymous: bool) -> Result<Vec<Cluster>, Violation> {
    let mut clusters: HashMap<u64, Cluster> = HashMap::new();
    for (at, operation) in history.iter().enumerate() {
        let Some(value) = operation.value else { continue };
        let cluster = clusters.entry(value).or_insert(Cluster {
            write: None,
            reads: Vec::new(),
            end: (NEVER, at),
            start: (0, at),
        });
        cluster.end = cluster.end.min((operation.end, at));
        cluster.start = cluster.start.max((operation.start, at));
        if operation.writes {
            let other = cluster.write.replace(at);
            assert!(other.is_none(), "{value:#x} is written twice");
        } else {
            cluster.reads.push(at);
        }
    }
    for cluster in clusters.values() {
        for &read in &cluster.reads {
            match cluster.write {
                None if !anonymous => {
                    let why = "a value that nobody wrote";
                    return Err(Violation { why, operations: vec![read] });
                }
                Some(write) if history[read].end < history[write].start => {
                    let why = "a value before it was written";
                    return Err(Violation { why, operations: vec![read, write] });
                }
                _ => {}
            }
        }
    }
    // What nobody read and nobody answered says nothing.
    let counts = |cluster: &Cluster| {
        !cluster.reads.is_empty() || cluster.write.is_some_and(|write| history[write].sure)
    };
    Ok(clusters.into_values().filter(counts).collect())
}

/// Finds a delete for every miss; all spans but the deletes are in order.
fn explain(
    misses: &[Span],
    mut deletes: Vec<Span>,
    blips: &[Span],
    gaps: &Gaps,
) -> Result<(), Violation> {
    // The first end of all blips from one on.
    let mut first_ends = vec![NEVER; blips.len() + 1];
    for (at, blip) in blips.iter().enumerate().rev() {
        first_ends[at] = first_ends[at + 1].min(blip.to);
    }
    // Until when a delete at a moment explains misses.
    let lasts = |moment: u64| {
        let later = blips.partition_point(|blip| blip.from <= moment);
        gaps.end(moment).min(first_ends[later])
    };

    deletes.sort_unstable_by_key(|delete| delete.from);
    let mut begun = 0;
    // By their ends; those that begun and have no moment yet.
    let mut free: BTreeSet<(u64, usize)> = BTreeSet::new();
    // There is nothing to begin with.
    let mut reach = lasts(0);
    for miss in misses {
        let moment = gaps.latest(miss.to);
        while begun < deletes.len() && deletes[begun].from <= miss.to {
            free.insert((deletes[begun].to, begun));
            begun += 1;
        }
        while let Some(&(end, delete)) = free.first() {
            if end >= miss.to {
                break;
            }
            free.pop_first();
            let latest = gaps.latest(end);
            // One that is not sure may have had no moment.
            if latest >= deletes[delete].from {
                reach = reach.max(lasts(latest));
            }
        }
        if miss.from <= reach {
            continue;
        }
        let Some(&found) = free.iter().find(|&&(_, delete)| deletes[delete].from <= moment) else {
            let why = "a miss although nothing was deleted";
            return Err(Violation { why, operations: vec![miss.operations[0]] });
        };
        free.remove(&found);
        reach = reach.max(lasts(moment));
    }
    Ok(())
}

/// What the forward zones, which are in order, leave free.
#[derive(Debug)]
struct Gaps(Vec<Span>);

impl Gaps {
    /// The first zone that does not start before a moment.
    fn next(&self, moment: u64) -> usize {
        self.0.partition_point(|zone| zone.from < moment)
    }

    /// The zone in the middle of which a moment is.
    fn around(&self, moment: u64) -> Option<&Span> {
        let last = self.next(moment).checked_sub(1)?;
        Some(&self.0[last]).filter(|zone| moment < zone.to)
    }

    /// The last moment up to this one that is not in the middle of a zone.
    fn latest(&self, moment: u64) -> u64 {
        self.around(moment).map_or(moment, |zone| zone.from)
    }

    /// The end of the gap that a moment is in.
    fn end(&self, moment: u64) -> u64 {
        self.0.get(self.next(moment)).map_or(NEVER, |zone| zone.from)
    }

    /// Some moment of the span must not be in the middle of a zone.
    fn admit(&self, span: &Span, why: &'static str) -> Result<(), Violation> {
        match self.around(span.from) {
            Some(zone) if span.to < zone.to => {
                Err(Violation { why, operations: [zone.operations, span.operations].concat() })
            }
            _ => Ok(()),
        }
    }
}

/// The operations of a violation, and those that went on at the same time.
pub fn tell(history: &[Operation], violation: &Violation, key: &str) -> String {
    const AROUND: usize = 30;
    let mut guilty = violation.operations.clone();
    guilty.sort_unstable();
    guilty.dedup();
    let from = guilty.iter().map(|&at| history[at].start).min().unwrap_or(0);
    let to = guilty
        .iter()
        .map(|&at| if history[at].end == NEVER { history[at].start } else { history[at].end })
        .max()
        .unwrap_or(NEVER);
    let mut shown: Vec<usize> = (0..history.len())
        .filter(|&at| history[at].start <= to && history[at].end >= from && !guilty.contains(&at))
        .filter(|&at| history[at].end != NEVER || history[at].start >= from)
        .collect();
    // Writes say more than reads do.
    shown.sort_unstable_by_key(|&at| (!history[at].writes, history[at].start));
    let left_out = shown.len().saturating_sub(AROUND);
    shown.truncate(AROUND);
    shown.extend(&guilty);
    shown.sort_unstable_by_key(|&at| (history[at].start, at));
    let mut text =
        format!("{key}: {}\n  times in us; > marks the operations that show it\n", violation.why);
    for at in shown {
        let operation = &history[at];
        let micros = |time: u64| match time {
            NEVER => "never".to_string(),
            time => format!("{:.1}", (time as f64 - from as f64) / 1000.0),
        };
        text.push_str(&format!(
            "{} {:>10} .. {:>10}  client {:>2} {:<16} {} {}{}\n",
            if guilty.contains(&at) { '>' } else { ' ' },
            micros(operation.start),
            micros(operation.end),
            operation.who,
            operation.what,
            if operation.writes { "writes" } else { "reads" },
            operation.value.map_or("nothing".to_string(), |value| format!("{value:#x}")),
            if operation.sure { "" } else { ", perhaps" },
        ));
    }
    text.push_str(&format!("  and {left_out} more at the same time\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Rng;
    use crate::common::RngExt as _;

    fn operation(writes: bool, value: Value, start: u64, end: u64, sure: bool) -> Operation {
        Operation { key: 0, writes, value, start, end, sure, what: "", who: 0 }
    }

    fn write(value: u64, start: u64, end: u64) -> Operation {
        operation(true, Some(value), start, end, true)
    }

    fn read(value: u64, start: u64, end: u64) -> Operation {
        operation(false, Some(value), start, end, true)
    }

    fn why(history: &[Operation]) -> Option<&'static str> {
        check(history, false).err().map(|violation| violation.why)
    }

    #[test]
    fn a_stale_read_is_found() {
        let mut history = vec![write(1, 0, 1), write(2, 2, 5), read(1, 3, 4)];
        assert_eq!(why(&history), None);
        // Somebody saw the new value first, while its write went on.
        history.extend([read(2, 2, 3), read(1, 4, 6)]);
        assert_eq!(why(&history), Some("a value in the middle of another's time"));
        // Both were seen for some time, and the times overlap.
        history.push(read(2, 5, 6));
        assert_eq!(why(&history), Some("two values at the same time"));
        let history = [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)];
        assert_eq!(why(&history), Some("a value in the middle of another's time"));
        let gone = operation(true, None, 2, 3, true);
        assert_eq!(
            why(&[write(1, 0, 1), gone, read(1, 4, 5)]),
            Some("a delete in the middle of a value's time")
        );
    }

    #[test]
    fn a_write_without_an_answer_may_be_late_or_never() {
        let lost = operation(true, Some(2), 1, NEVER, false);
        let mut history = vec![write(1, 0, 1), lost, read(1, 50, 51)];
        assert_eq!(why(&history), None);
        history.push(read(2, 60, 61));
        assert_eq!(why(&history), None);
        history.push(read(1, 70, 71));
        assert_eq!(why(&history), Some("a value in the middle of another's time"));
    }

    /// By trying every order; histories are small.
    fn has_an_order(history: &[Operation], done: u32, value: Value) -> bool {
        let open = |at: usize| done & (1 << at) == 0;
        let ended = (0..history.len())
            .filter(|&at| open(at) && history[at].sure)
            .map(|at| history[at].end)
            .min();
        let Some(ended) = ended else { return true };
        (0..history.len()).filter(|&at| open(at) && history[at].start <= ended).any(|at| {
            let next = done | 1 << at;
            match &history[at] {
                operation if operation.writes => has_an_order(history, next, operation.value),
                operation => operation.value == value && has_an_order(history, next, value),
            }
        })
    }

    #[test]
    fn the_check_agrees_with_a_search_of_all_orders() {
        let mut rng = Rng::from_env("the_check_agrees_with_a_search_of_all_orders");
        let mut found = [0; 2];
        for _ in 0..60_000 {
            let span = 4 + rng.below(16);
            let mut history = Vec::new();
            let mut written = 0;
            for _ in 0..2 + rng.below(7) {
                let start = 1 + rng.below(span) as u64;
                let end = start + rng.below(span / 2) as u64;
                let writes = rng.chance(50);
                let value = match rng.below(3) {
                    0 => None,
                    _ if writes => {
                        written += 1;
                        Some(written)
                    }
                    _ => Some(1 + rng.below(3) as u64),
                };
                let sure = !writes || rng.chance(80);
                let end = if sure { end } else { NEVER };
                history.push(operation(writes, value, start, end, sure));
            }
            let right = has_an_order(&history, 0, None);
            let checked = check(&history, false);
            assert_eq!(checked.is_ok(), right, "{checked:?} for {history:#?}");
            found[usize::from(right)] += 1;
        }
        assert!(found[0] > 1000 && found[1] > 1000, "{found:?}");
    }
}
