// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What tests draw at random, so that it can be had again.

pub use bmc::command::bench::random::Rng;

/// What only tests draw.
pub trait RngExt {
    /// The generator of the seed in `BMC_TEST_SEED`, or of one of the clock, which
    /// is printed so that a failure can be had again.
    fn from_env(test: &str) -> Self;

    /// A number from a range, small ones far more often than large ones.
    fn small(&mut self, least: usize, most: usize) -> usize;

    /// `len` bytes, any.
    fn bytes(&mut self, len: usize) -> Vec<u8>;
}

impl RngExt for Rng {
    fn from_env(test: &str) -> Self {
        let seed = match std::env::var("BMC_TEST_SEED") {
            Ok(seed) => seed.parse().expect("BMC_TEST_SEED is a number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |since| u64::from(since.subsec_nanos())),
        };
        eprintln!("{test}: BMC_TEST_SEED={seed}");
        Self::new(seed)
    }

    fn small(&mut self, least: usize, most: usize) -> usize {
        let span = most - least + 1;
        let bound = self.below(span) + 1;
        let bound = self.below(bound) + 1;
        least + self.below(bound)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number().to_le_bytes()[7]).collect()
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
        let at = rng.part() * all;
        self.0.partition_point(|&sum| sum <= at).min(self.0.len() - 1)
    }
}
