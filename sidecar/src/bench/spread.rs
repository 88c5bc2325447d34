//! Medians and ratios of repeated measurements.
//!
//! Invariant: what is said of a series is its median with its smallest and its largest value, never a
//! mean; the ratio of two interleaved series is taken pair by pair, so that what slowed both down
//! at one moment cancels out. It refuses empty series.

use serde::{Deserialize, Serialize};

/// A series of measurements of one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// In the order they were taken.
    pub(crate) samples: Vec<f64>,
}

impl Spread {
    /// `None` of nothing, and of what is not a number.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        if samples.is_empty() || samples.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[half - 1], sorted[half])
        } else {
            sorted[half]
        };
        Some(Self {
            median,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            samples: samples.to_vec(),
        })
    }

    /// `over[i] / under[i]`, of as many pairs as there are.
    pub(crate) fn ratio(over: &[f64], under: &[f64]) -> Option<Self> {
        let pairs: Vec<f64> = over.iter().zip(under).map(|(o, u)| o / u).collect();
        Self::of(&pairs)
    }

    /// The median with the smallest and the largest, in three digits.
    pub(crate) fn text(&self) -> String {
        let median = digits(self.median);
        if self.samples.len() < 2 {
            return median;
        }
        format!("{median} ({} to {})", digits(self.min), digits(self.max))
    }
}

/// Three digits that say something.
pub(crate) fn digits(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 {
        let whole = format!("{value:.0}");
        let (sign, whole) = whole.strip_prefix('-').map_or(("", whole.as_str()), |w| ("-", w));
        let mut out = String::from(sign);
        for (at, digit) in whole.chars().enumerate() {
            if at > 0 && (whole.len() - at).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        out
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 || size == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        let odd = Spread::of(&[9.0, 1.0, 4.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (4.0, 1.0, 9.0));
        assert_eq!(odd.samples, [9.0, 1.0, 4.0]);
        let even = Spread::of(&[1.0, 4.0, 2.0, 9.0]).unwrap();
        assert!((even.median - 3.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_and_what_is_no_number_have_no_spread() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
        assert_eq!(Spread::ratio(&[1.0], &[0.0]), None);
        assert_eq!(Spread::ratio(&[1.0], &[]), None);
    }

    #[test]
    fn a_ratio_is_taken_pair_by_pair() {
        // A slow moment in the middle hit both sides; the ratio does not see it.
        let ratio = Spread::ratio(&[9.0, 0.9, 9.0], &[10.0, 1.0, 10.0]).unwrap();
        assert!((ratio.min - 0.9).abs() < 1e-9 && (ratio.max - 0.9).abs() < 1e-9);
    }

    #[test]
    fn three_digits_are_shown() {
        let shown = [0.0, 0.00214, 0.123, 4.567, 45.67, 456.7, 4567.0, 1_234_567.0].map(digits);
        let expected = ["0.00", "0.0021", "0.12", "4.57", "45.7", "457", "4,567", "1,234,567"];
        assert_eq!(shown, expected);
        assert_eq!(digits(-1234.0), "-1,234");
    }
}
