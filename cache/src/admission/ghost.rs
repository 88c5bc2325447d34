//! Which objects were evicted not long ago: fingerprints, not names.
//!
//! Invariant: at most [`MOST`] fingerprints of 8 bytes. It may say "evicted lately" of an object that
//! was not (one in a thousand million) and forget one that was; both cost a place in a queue, never
//! a wrong answer.

use super::Item;
use super::lists::mix;

/// The most fingerprints: 2 MiB. More resident objects than this remember fewer than their number.
const MOST: usize = 1 << 18;

/// The fewest, so that a small tier remembers something.
const FEWEST: usize = 1 << 8;

/// Fingerprints that share a bucket; one more pushes out the oldest.
const WAYS: usize = 4;

/// Fingerprints of what was evicted, each with its turn.
#[derive(Debug)]
pub(super) struct Ghost {
    places: Vec<(u32, u32)>,
    turn: u32,
}

impl Ghost {
    pub(super) fn new() -> Self {
        Self { places: vec![(0, 0); FEWEST * 2], turn: 0 }
    }

    fn bucket(&self, item: Item) -> (usize, u32) {
        let hash = mix(item.0 ^ 0x5bf0_3635);
        let buckets = self.places.len() / WAYS;
        ((hash as usize % buckets) * WAYS, (hash >> 32) as u32)
    }

    /// Remembers an object. `resident`: how many objects the queues hold; that many are kept.
    pub(super) fn remember(&mut self, item: Item, resident: usize) {
        let wanted = (resident.clamp(FEWEST, MOST / 2) * 2).next_power_of_two();
        if wanted > self.places.len() {
            // Growing forgets: rare (the size doubles), and cheaper than keeping the names.
            self.places = vec![(0, 0); wanted];
            self.turn = 0;
        }
        // Wraps after four thousand million evictions; `held` then forgets everything once.
        self.turn = self.turn.wrapping_add(1).max(1);
        let (start, print) = self.bucket(item);
        let turn = self.turn;
        let oldest = self.places[start..start + WAYS].iter_mut().min_by_key(|place| place.1);
        if let Some(place) = oldest {
            *place = (print, turn);
        }
    }

    /// Whether an object is among the last `resident` that were remembered; forgets it.
    pub(super) fn take(&mut self, item: Item, resident: usize) -> bool {
        let (start, print) = self.bucket(item);
        let window = u32::try_from(resident).unwrap_or(u32::MAX);
        let turn = self.turn;
        for place in &mut self.places[start..start + WAYS] {
            if place.1 != 0 && place.0 == print && turn.wrapping_sub(place.1) < window {
                *place = (0, 0);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_about_as_many_as_are_resident() {
        let mut ghost = Ghost::new();
        for n in 0..100_000 {
            ghost.remember(Item(n), 4_000);
        }
        let late = (96_000..100_000).filter(|n| ghost.take(Item(*n), 4_000)).count();
        let early = (0..90_000).filter(|n| ghost.take(Item(*n), 4_000)).count();
        assert!(late > 3_400, "{late}");
        assert_eq!(early, 0);
        assert!(!ghost.take(Item(99_999), 4_000), "taken once");
    }

    #[test]
    fn is_bounded() {
        let mut ghost = Ghost::new();
        for n in 0..1_000_000 {
            ghost.remember(Item(n), usize::MAX);
        }
        assert_eq!(ghost.places.len(), MOST);
    }
}
