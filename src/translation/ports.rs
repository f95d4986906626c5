// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Sets of ports.

use std::fmt;
use std::iter::once;

/// A set of ports; 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// The first and the last of each range, in order, with others between them.
    ranges: Vec<(u16, u16)>,
}

impl Ports {
    pub(super) fn all() -> Self {
        Self::range(1, u16::MAX)
    }

    pub(super) fn range(first: u16, last: u16) -> Self {
        let first = first.max(1);
        Self { ranges: (first <= last).then_some((first, last)).into_iter().collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.ranges.iter().map(|(first, last)| usize::from(last - first) + 1).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        self.ranges.iter().flat_map(|(first, last)| *first..=*last)
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        let (mut a, mut b) = (&self.ranges[..], &other.ranges[..]);
        let mut ranges = Vec::new();
        while let ([one, one_rest @ ..], [two, two_rest @ ..]) = (a, b) {
            let (first, last) = (one.0.max(two.0), one.1.min(two.1));
            ranges.extend((first <= last).then_some((first, last)));
            if one.1 == last {
                a = one_rest;
            } else {
                b = two_rest;
            }
        }
        Self { ranges }
    }

    /// All others.
    pub(super) fn not(&self) -> Self {
        let firsts = once(1).chain(self.ranges.iter().map(|(_, last)| u32::from(*last) + 1));
        let lasts = self.ranges.iter().map(|(first, _)| first - 1).chain(once(u16::MAX));
        let gaps = firsts.zip(lasts).filter_map(|(first, last)| {
            u16::try_from(first).ok().filter(|first| *first <= last).map(|first| (first, last))
        });
        Self { ranges: gaps.collect() }
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        self.not().and(&other.not()).not()
    }

    pub(super) fn except(&self, other: &Self) -> Self {
        self.and(&other.not())
    }
}

impl FromIterator<u16> for Ports {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        ports.into_iter().fold(Self::default(), |all, port| all.or(&Self::range(port, port)))
    }
}

/// As in "80,11212-11214".
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.ranges.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_joined_and_split() {
        let some: Ports = [80, 11213, 11212].into_iter().collect();
        assert_eq!(some.to_string(), "80,11212-11213");
        assert_eq!((some.count(), some.iter().collect()), (3, vec![80, 11212, 11213]));
        assert_eq!(some.not().to_string(), "1-79,81-11211,11214-65535");
        assert_eq!(some.not().not(), some);
        assert_eq!(some.except(&Ports::range(1, 100)), Ports::range(11212, 11213));
        assert_eq!(some.or(&some.not()), Ports::all());
        assert!(some.and(&some.not()).is_empty() && Ports::all().not().is_empty());
        assert_eq!(Ports::range(0, 2).to_string(), "1-2");
        assert_eq!(Ports::default().not(), Ports::all());
        assert_eq!(Ports::from_iter([u16::MAX]).not(), Ports::range(1, u16::MAX - 1));
    }
}
