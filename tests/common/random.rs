// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Random numbers that can be had again: xorshift64*, seeded.

/// A generator; equal seeds give equal sequences.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        // Zero is the one state it cannot leave.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The seed in `BMC_TEST_SEED`, or one of the clock; printed, so that a
    /// failure can be had again.
    pub fn from_env(test: &str) -> Self {
        let seed = match std::env::var("BMC_TEST_SEED") {
            Ok(seed) => seed.parse().expect("BMC_TEST_SEED is a number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |since| u64::from(since.subsec_nanos())),
        };
        eprintln!("{test}: BMC_TEST_SEED={seed}");
        Self::new(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 33) % bound as u64).expect("below a usize")
    }

    /// True `percent` times out of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A number from a range, small ones far more often than large ones.
    pub fn small(&mut self, least: usize, most: usize) -> usize {
        let span = most - least + 1;
        let bound = self.below(span) + 1;
        let bound = self.below(bound) + 1;
        least + self.below(bound)
    }

    /// `len` bytes, any.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[7]).collect()
    }
}

/// Keys by popularity (Zipf): the nth most frequent is n^-skew as frequent as the
/// first.
#[derive(Clone, Debug)]
pub struct Zipf(Vec<f64>);

impl Zipf {
    /// For that many keys.
    pub fn new(keys: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=keys).map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        });
        Self(sums.collect())
    }

    /// How popular the next key is, from 0 for the most popular.
    pub fn draw(&self, rng: &mut Rng) -> usize {
        let all = *self.0.last().expect("there are keys");
        let at = (rng.next() >> 11) as f64 / (1_u64 << 53) as f64 * all;
        self.0.partition_point(|&sum| sum <= at).min(self.0.len() - 1)
    }
}
