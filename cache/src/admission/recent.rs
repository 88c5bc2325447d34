//! Which objects were used a moment ago, so that one use of an object counts once.
//!
//! Invariant: a fixed table; a look is four steps. It may forget too early (five objects that share
//! a bucket), never too late.

use super::Item;
use super::lists::mix;

/// Places. Four times the longest window, so that a bucket rarely has to forget within it.
const PLACES: usize = 256;

/// Places of one bucket: four objects that hash alike are told apart.
const WAYS: usize = 4;

/// The longest window, in counted uses of other objects: as many as the workers of a large loader
/// that read their objects side by side.
const LONGEST: u64 = 64;

/// The shortest: the workers of a usual loader. Of a cycle of fewer objects no repetition is counted, and
/// it is kept like everything of which nothing is known.
const SHORTEST: u64 = 16;

/// Objects used last.
#[derive(Debug)]
pub(super) struct Recent {
    places: Vec<(Item, u64)>,
    counted: u64,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self { places: vec![(Item(0), 0); PLACES], counted: 0 }
    }

    /// True where this use belongs to one that was counted already. `objects` is how many the set has
    /// and `fit` how many fit into the cache: the window is a small part of both, or a repetition would
    /// be taken for the same use.
    pub(super) fn is_same_use(&mut self, item: Item, objects: u64, fit: u64) -> bool {
        let window = (objects / 16).min(fit / 8).clamp(SHORTEST, LONGEST);
        let start = (mix(item.0) as usize % (PLACES / WAYS)) * WAYS;
        let bucket = &mut self.places[start..start + WAYS];
        let (mut oldest, mut turn) = (0, u64::MAX);
        for (at, place) in bucket.iter().enumerate() {
            if place.0 == item && place.1 != 0 {
                if self.counted - place.1 < window {
                    // Not renewed: an object that is hot all the time counts once a window.
                    return true;
                }
                (oldest, turn) = (at, 0);
            } else if place.1 < turn {
                (oldest, turn) = (at, place.1);
            }
        }
        self.counted += 1;
        bucket[oldest] = (item, self.counted);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_repetitions_are_one_use_and_late_ones_are_not() {
        let mut recent = Recent::new();
        assert!(!recent.is_same_use(Item(1), 10_000, 10_000));
        assert!(recent.is_same_use(Item(1), 10_000, 10_000));
        for n in 2..10 {
            assert!(!recent.is_same_use(Item(n), 10_000, 10_000));
            assert!(recent.is_same_use(Item(1), 10_000, 10_000), "{n}");
        }
        for n in 100..200 {
            recent.is_same_use(Item(n), 10_000, 10_000);
        }
        assert!(!recent.is_same_use(Item(1), 10_000, 10_000));
    }

    #[test]
    fn what_is_hot_all_the_time_counts_once_a_window() {
        let mut recent = Recent::new();
        let mut counted = 0;
        for n in 0..6_400 {
            counted += u64::from(!recent.is_same_use(Item(1), 1 << 20, 1 << 20));
            recent.is_same_use(Item(1_000 + n), 1 << 20, 1 << 20);
        }
        assert!((90..=110).contains(&counted), "{counted}");
    }

    #[test]
    fn a_cycle_of_few_objects_is_a_repetition() {
        let mut recent = Recent::new();
        let counted = (0..80).filter(|n| !recent.is_same_use(Item(n % 20), 20, 20)).count();
        assert_eq!(counted, 80);
    }
}
