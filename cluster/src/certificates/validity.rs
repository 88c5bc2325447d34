//! From when until when a certificate is valid.
//!
//! Invariant: reads the two dates of an X.509 certificate and nothing else; whether the certificate
//! can be trusted is for a verifier. It refuses (`None`) whatever is not that encoding.

use time::{Date, Month, Time, UtcDateTime};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Context tag of the version, which a certificate of version 1 leaves out.
const VERSION: u8 = 0xa0;

/// First and last second (since 1970) at which a DER certificate is valid.
pub(super) fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    let (mut signed, _) = expect(SEQUENCE, expect(SEQUENCE, certificate)?.0)?;
    if let Some((_, rest)) = expect(VERSION, signed) {
        signed = rest;
    }
    // Serial number, algorithm, issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        signed = expect(tag, signed)?.1;
    }
    let (dates, _) = expect(SEQUENCE, signed)?;
    let (first, dates) = date(dates)?;
    let (last, _) = date(dates)?;
    Some((first, last))
}

/// The content of the element that `input` begins with, and what follows it.
fn expect(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = input.split_first()?;
    let (&short, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        // More than four bytes of length is no certificate.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
            (bytes.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// `YYMMDDHHMMSSZ` (1950 to 2049) or `YYYYMMDDHHMMSSZ`; a time before 1970 counts as 1970.
fn date(input: &[u8]) -> Option<(u64, &[u8])> {
    let (text, rest, century) = match expect(UTC_TIME, input) {
        Some((text, rest)) => (text, rest, true),
        None => expect(GENERALIZED_TIME, input).map(|(text, rest)| (text, rest, false))?,
    };
    let digits = text.strip_suffix(b"Z")?;
    if digits.len() != if century { 12 } else { 14 } || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        digits[range].iter().fold(0_u16, |sum, digit| sum * 10 + u16::from(digit - b'0'))
    };
    let (year, at) = match century {
        true if number(0..2) < 50 => (2000 + number(0..2), 2),
        true => (1900 + number(0..2), 2),
        false => (number(0..4), 4),
    };
    let part = |index: usize| number(at + 2 * index..at + 2 * index + 2) as u8;
    let day = Date::from_calendar_date(i32::from(year), Month::try_from(part(0)).ok()?, part(1));
    let time = Time::from_hms(part(2), part(3), part(4));
    let seconds = UtcDateTime::new(day.ok()?, time.ok()?).unix_timestamp();
    Some((u64::try_from(seconds).unwrap_or(0), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::OffsetDateTime;

    fn certificate(first: i64, last: i64) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.b.svc".to_owned()]).unwrap();
        params.not_before = OffsetDateTime::from_unix_timestamp(first).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(last).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn dates_are_those_that_were_written(first in 0_i64..2_000_000_000, life in 0_i64..9_000_000_000) {
            let read = validity(&certificate(first, first + life)).unwrap();
            prop_assert_eq!(read, (first.cast_unsigned(), (first + life).cast_unsigned()));
        }

        #[test]
        fn damage_is_no_panic(at in 0_usize..400, byte: u8, cut in 0_usize..500) {
            let mut damaged = certificate(1_700_000_000, 1_800_000_000);
            let at = at % damaged.len();
            damaged[at] = byte;
            damaged.truncate(cut);
            let _ = validity(&damaged);
        }
    }
}
