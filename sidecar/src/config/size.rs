//! Sizes in bytes as people write them.
//!
//! Invariant: what is printed parses to the same number of bytes. `GB` is 10^9 and `GiB` is 2^30,
//! always; a unit that is not in the table is refused rather than guessed.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

/// Unit names in lower case. Kubernetes writes `Gi`, everybody else `GiB`; a single letter is
/// decimal, as in Kubernetes.
const UNITS: &[(&[&str], u64)] = &[
    (&["", "b"], 1),
    (&["k", "kb"], 1_000),
    (&["ki", "kib"], 1 << 10),
    (&["m", "mb"], 1_000_000),
    (&["mi", "mib"], 1 << 20),
    (&["g", "gb"], 1_000_000_000),
    (&["gi", "gib"], 1 << 30),
    (&["t", "tb"], 1_000_000_000_000),
    (&["ti", "tib"], 1 << 40),
    (&["p", "pb"], 1_000_000_000_000_000),
    (&["pi", "pib"], 1 << 50),
];

impl ByteSize {
    /// A number of binary megabytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is not a size");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let (_, factor) =
            UNITS.iter().find(|(names, _)| names.contains(&&*unit)).ok_or_else(refused)?;
        if let Ok(whole) = number.parse::<u64>() {
            let bytes = whole.checked_mul(*factor);
            return bytes.map(Self).ok_or_else(|| format!("`{text}` is more than 2^64 bytes"));
        }
        let part: f64 = number.parse().map_err(|_| refused())?;
        let bytes = part * *factor as f64;
        // Above 2^53 a fraction of a byte cannot be told; nobody has such a disk.
        if !bytes.is_finite() || !(0.0..9.0e15).contains(&bytes) {
            return Err(refused());
        }
        #[allow(clippy::cast_sign_loss)] // checked to be positive just above
        Ok(Self(bytes.round() as u64))
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides the number, binary before decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const EXACT: &[(&str, u64)] = &[
            ("TiB", 1 << 40),
            ("TB", 1_000_000_000_000),
            ("GiB", 1 << 30),
            ("GB", 1_000_000_000),
            ("MiB", 1 << 20),
            ("MB", 1_000_000),
            ("KiB", 1 << 10),
            ("KB", 1_000),
        ];
        let exact = EXACT.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match exact {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A number of bytes for people: three digits or so, binary units.
pub(crate) fn about(bytes: u64) -> String {
    const UNITS: &[&str] = &["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decimal_and_binary_units_differ() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("50GB", 50_000_000_000),
            ("4MiB", 4 << 20),
            ("4 mib", 4 << 20),
            ("1.5GiB", 3 << 29),
            ("10Gi", 10 << 30),
            ("2T", 2_000_000_000_000),
            ("64KB", 64_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GB", "4 Mio", "-1GB", "1e3", "1..2GB", "99999999999TB", "4MiBs", "NaN"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(about(17), "17 B");
        assert_eq!(about(1536), "1.5 KiB");
        assert_eq!(about(5 << 30), "5.0 GiB");
        assert_eq!(about(u64::MAX), "16.0 EiB");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
