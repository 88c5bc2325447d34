//! Numbers as Kubernetes and as people write them: `10Gi`, `200GB`, `500m`.
//!
//! Invariant: what is printed is read as the same number by Kubernetes; arithmetic is exact. What is
//! neither a quantity of Kubernetes nor a size of ours is refused rather than guessed.

/// Units of sizes, in lower case, with their bytes. Kubernetes writes `Gi`, everybody else `GiB`; a
/// single letter is decimal, as in Kubernetes.
const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("k", 1_000),
    ("kb", 1_000),
    ("ki", 1 << 10),
    ("kib", 1 << 10),
    ("mb", 1_000_000),
    ("mi", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1_000_000_000),
    ("gb", 1_000_000_000),
    ("gi", 1 << 30),
    ("gib", 1 << 30),
    ("t", 1_000_000_000_000),
    ("tb", 1_000_000_000_000),
    ("ti", 1 << 40),
    ("tib", 1 << 40),
    ("p", 1_000_000_000_000_000),
    ("pb", 1_000_000_000_000_000),
    ("pi", 1 << 50),
    ("pib", 1 << 50),
];

/// Largest size: Kubernetes counts in 63 bits, and what is added to a size must fit as well.
const MOST_BYTES: u128 = 1 << 62;
/// Most processors that are asked for, in thousandths: no machine has a million.
const MOST_MILLI: u128 = 1_000_000_000;
/// Digits that are read; more is no number of bytes.
const MOST_DIGITS: usize = 24;

/// Bytes of a size. A part of a byte is rounded up, as Kubernetes does.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let (mantissa, unit) = split(text)?;
    let factor = match unit {
        // Lower case `m` is a thousandth in Kubernetes: nobody means that with bytes.
        "m" => return None,
        "M" => 1_000_000,
        unit => {
            if let Some(power) = exponent(unit) {
                10_u64.checked_pow(power)?
            } else {
                let unit = unit.to_ascii_lowercase();
                UNITS.iter().find(|(name, _)| *name == unit)?.1
            }
        }
    };
    let bytes = scaled(mantissa, factor)?;
    (bytes <= MOST_BYTES).then(|| u64::try_from(bytes).ok())?
}

/// Thousandths of a processor: `500m`, `2`, `0.5`.
pub(crate) fn milli(text: &str) -> Option<u64> {
    let (mantissa, unit) = split(text)?;
    let milli = match unit {
        "m" => scaled(mantissa, 1)?,
        "" => scaled(mantissa, 1000)?,
        _ => return None,
    };
    (milli <= MOST_MILLI).then(|| u64::try_from(milli).ok())?
}

/// The number and the unit after it.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (mantissa, unit) = text.split_at(end);
    let has_digit = mantissa.bytes().any(|b| b.is_ascii_digit());
    (has_digit && mantissa.len() <= MOST_DIGITS).then(|| (mantissa, unit.trim_start()))
}

/// The power of ten of `e9` or `E9`.
fn exponent(unit: &str) -> Option<u32> {
    let digits = unit.strip_prefix(['e', 'E'])?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// A decimal number times a factor, rounded up.
fn scaled(mantissa: &str, factor: u64) -> Option<u128> {
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if part.contains('.') {
        return None;
    }
    let digits: u128 = format!("0{whole}{part}").parse().ok()?;
    let below = 10_u128.checked_pow(u32::try_from(part.len()).ok()?)?;
    Some(digits.checked_mul(u128::from(factor))?.div_ceil(below))
}

/// A number of bytes as Kubernetes prints it: the largest binary unit that divides it.
pub(crate) fn print_bytes(bytes: u64) -> String {
    let units = [("Ti", 1_u64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Thousandths of a processor as Kubernetes prints them.
pub(crate) fn print_milli(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_of_both_worlds_are_read() {
        for (text, wanted) in [
            ("0", 0),
            ("10Gi", 10 << 30),
            ("10GiB", 10 << 30),
            ("200GB", 200_000_000_000),
            ("200G", 200_000_000_000),
            ("1M", 1_000_000),
            ("1k", 1000),
            ("1e9", 1_000_000_000),
            ("1E3", 1000),
            ("1.5Gi", 3 << 29),
            ("0.1", 1),
            (".5Ki", 512),
            (" 4 MiB ", 4 << 20),
        ] {
            assert_eq!(bytes(text), Some(wanted), "{text}");
        }
        for bad in
            ["", "ten", "10Q", "-1", "1m", "1.2.3", ".", "Gi", "1e", "1e99", "99999999P", "1Gi x"]
        {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn processors_are_read() {
        for (text, wanted) in
            [("2", 2000), ("500m", 500), ("0.5", 500), ("0.0001", 1), ("1.5", 1500)]
        {
            assert_eq!(milli(text), Some(wanted), "{text}");
        }
        for bad in ["", "x", "1k", "1Gi", "m", "99999999"] {
            assert_eq!(milli(bad), None, "{bad}");
        }
        assert_eq!((print_milli(2000), print_milli(1500)), ("2".to_owned(), "1500m".to_owned()));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_as_the_same(number in 0_u64..1 << 62, cpu in 0_u64..1_000_000_000) {
            prop_assert_eq!(bytes(&print_bytes(number)), Some(number));
            prop_assert_eq!(milli(&print_milli(cpu)), Some(cpu));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = (bytes(&text), milli(&text));
        }
    }
}
