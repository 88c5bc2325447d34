//! The `Range` header, and the range of a part copy.
//!
//! Invariant: an unknown or broken range is no range, as RFC 9110 section 14.2 wants and S3 does;
//! it is never an error. Several ranges in one header are no range either: S3 does not serve them.

use store::ByteRange;

/// The range that a `Range` header asks for, `None` where the header is to be ignored.
pub fn parse(header: &str) -> Option<ByteRange> {
    let set = strip_unit(header)?;
    let (first, last) = set.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    match (number(first), number(last)) {
        (Some(start), None) if last.is_empty() => Some(ByteRange::From(start)),
        (None, Some(length)) if first.is_empty() => Some(ByteRange::Suffix(length)),
        // The end is inclusive on the wire; the last byte that u64 can name is beyond any object.
        (Some(start), Some(end)) if start <= end => {
            Some(ByteRange::Bounded(start, end.saturating_add(1)))
        }
        _ => None,
    }
}

/// The range of `x-amz-copy-source-range`: both ends are required and nothing is ignored.
pub(crate) fn parse_strict(header: &str) -> Option<(u64, u64)> {
    let (first, last) = strip_unit(header)?.split_once('-')?;
    let (start, end) = (number(first)?, number(last)?);
    (start <= end).then_some((start, end.checked_add(1)?))
}

fn strip_unit(header: &str) -> Option<&str> {
    let (unit, set) = header.trim().split_once('=')?;
    unit.trim().eq_ignore_ascii_case("bytes").then_some(set.trim())
}

/// Decimal digits only; what overflows is beyond any object and clamps.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        assert_eq!(parse("bytes=0-0"), Some(ByteRange::Bounded(0, 1)));
        assert_eq!(parse("bytes=5-"), Some(ByteRange::From(5)));
        assert_eq!(parse("bytes=-5"), Some(ByteRange::Suffix(5)));
        assert_eq!(parse("Bytes = 1-2"), Some(ByteRange::Bounded(1, 3)));
        assert_eq!(parse("bytes=0-99999999999999999999999"), Some(ByteRange::Bounded(0, u64::MAX)));
        for ignored in [
            "",
            "bytes=",
            "bytes=-",
            "bytes=2-1",
            "bytes=0-1,3-4",
            "items=0-1",
            "bytes=a-b",
            "bytes=+1-2",
        ] {
            assert_eq!(parse(ignored), None, "{ignored}");
        }
        assert_eq!(parse_strict("bytes=0-9"), Some((0, 10)));
        assert_eq!(parse_strict("bytes=5-"), None);
    }

    proptest! {
        #[test]
        fn what_we_send_is_what_we_read(start: u64, length in 1u64..1 << 40) {
            let end = start.saturating_add(length);
            prop_assume!(start < end);
            for range in [ByteRange::Bounded(start, end), ByteRange::From(start), ByteRange::Suffix(length)] {
                prop_assert_eq!(parse(&range.header().unwrap()), Some(range));
            }
        }

        #[test]
        fn any_text_is_taken_or_ignored(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
