// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A histogram of latencies, whose buckets grow wider with the latency.

use std::time::Duration;

/// Each power of two is split into 64 buckets, so a bucket is at most a 64th of its values wide.
const BITS: u32 = 6;
const SPLIT: u64 = 1 << BITS;
const BUCKETS: usize = (SPLIT as usize) * (64 - BITS as usize + 1);

/// The percentiles that are reported. The last is the maximum, which is exact.
pub const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];

/// A histogram. Percentiles may be up to a 64th too large, but never too small.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.max = self.max.max(ns);
    }

    /// The number of times that were added.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// Adds the times of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// The percentile for `percent` from 0 to 100, in microseconds.
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (self.total as f64 * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                return last_of(bucket).min(self.max) as f64 / 1e3;
            }
        }
        self.max as f64 / 1e3
    }

    /// All of [`PERCENTILES`], in microseconds.
    pub fn percentiles(&self) -> [f64; 5] {
        PERCENTILES.map(|(_, percent)| self.percentile(percent))
    }
}

fn bucket(ns: u64) -> usize {
    if ns < SPLIT {
        return ns as usize;
    }
    let shift = ns.ilog2() - BITS;
    (u64::from(shift) * SPLIT + (ns >> shift)) as usize
}

/// The largest value of a bucket.
fn last_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * SPLIT {
        return bucket;
    }
    let shift = bucket / SPLIT - 1;
    let first = (bucket % SPLIT + SPLIT) << shift;
    first + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_a_64th_wide_at_most() {
        let powers = (0..64).flat_map(|shift| [(1_u64 << shift) - 1, 1 << shift, 3 << shift >> 1]);
        for ns in powers.chain([u64::MAX, 1_234_567, 999]) {
            let last = last_of(bucket(ns));
            assert!(last >= ns && last - ns <= ns / 64, "{ns}: {last}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_ranks() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50.0).to_bits(), 0_f64.to_bits());
        for us in 1..=1000 {
            histogram.add(Duration::from_micros(us));
        }
        for (percent, exact) in [(50.0, 500.0), (90.0, 900.0), (99.0, 990.0), (99.9, 999.0)] {
            let value = histogram.percentile(percent);
            assert!(value >= exact && value <= exact * (1.0 + 1.0 / 64.0), "{percent}: {value}");
        }
        assert_eq!(histogram.percentile(100.0).to_bits(), 1000_f64.to_bits());
    }

    #[test]
    fn adds_up() {
        let [mut a, mut b] = [Histogram::default(), Histogram::default()];
        a.add(Duration::from_nanos(10));
        b.add(Duration::from_nanos(30));
        a.merge(&b);
        assert_eq!(a.percentiles()[0].to_bits(), 0.01_f64.to_bits());
        assert_eq!(a.percentiles()[4].to_bits(), 0.03_f64.to_bits());
    }
}
