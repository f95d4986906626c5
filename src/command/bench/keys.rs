// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Chooses the keys of requests.

use super::random::Rng;

const THETA: f64 = 0.99;

/// The popularity of keys.
pub struct Popularity {
    keys: usize,
    zipf: Option<Zipf>,
}

/// A Zipf distribution: the n-th key is n^-0.99 times as frequent as the first. It is sampled by
/// the method of Gray et al., "Quickly generating billion-record synthetic databases", 1994.
struct Zipf {
    zeta: f64,
    eta: f64,
}

impl Popularity {
    /// A uniform distribution, or a Zipf distribution.
    pub fn new(keys: usize, zipf: bool) -> Self {
        let zeta = |n: usize| (1..=n).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let zipf = zipf.then(|| {
            let all = zeta(keys);
            let eta = (1.0 - (2.0 / keys as f64).powf(1.0 - THETA)) / (1.0 - zeta(2) / all);
            Zipf { zeta: all, eta }
        });
        Self { keys, zipf }
    }

    /// Picks the number of a key, from 0.
    pub fn pick(&self, rng: &mut Rng) -> usize {
        let Some(Zipf { zeta, eta }) = self.zipf else { return rng.below(self.keys) };
        let part = rng.part();
        if part * zeta < 1.0 {
            return 0;
        }
        if part * zeta < 1.0 + 0.5_f64.powf(THETA) {
            return 1;
        }
        let rank = self.keys as f64 * (eta * part - eta + 1.0).powf(1.0 / (1.0 - THETA));
        (rank as usize).min(self.keys - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_is_as_steep_as_it_says() {
        let mut rng = Rng::new(1);
        let keys = 100_000;
        let zipf = Popularity::new(keys, true);
        let mut counts = vec![0_u32; keys];
        for _ in 0..1_000_000 {
            counts[zipf.pick(&mut rng)] += 1;
        }
        let zeta: f64 = (1..=keys).map(|rank| (rank as f64).powf(-THETA)).sum();
        let share = |from: usize, to: usize| f64::from(counts[from..to].iter().sum::<u32>()) / 1e6;
        for to in [1, 2, 100, 10_000] {
            let exact = (1..=to).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>() / zeta;
            assert!((share(0, to) - exact).abs() < 0.03, "{to}: {} {exact}", share(0, to));
        }
    }
}
