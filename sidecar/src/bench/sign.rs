//! AWS Signature Version 4 in headers, over an unsigned payload: enough to ask any S3 origin.
//!
//! Invariant: names are encoded once, byte by byte. It signs plain HTTP on loopback only; nothing here is
//! fit to protect a body.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Who asks. The secret is a throw-away of this run.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) access: String,
    pub(crate) secret: String,
    pub(crate) region: String,
}

/// What the body's hash is replaced by.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// The headers to add to a request. `path` and `query` are encoded and sorted already.
pub(crate) fn headers(
    key: &Key,
    method: &str,
    host: &str,
    path: &str,
    query: &str,
    now: SystemTime,
) -> Vec<(&'static str, String)> {
    let stamp = stamp(now);
    let day = &stamp[..8];
    let canonical = format!(
        "{method}\n{path}\n{query}\nhost:{host}\nx-amz-content-sha256:{UNSIGNED}\nx-amz-date:{stamp}\n\n\
         host;x-amz-content-sha256;x-amz-date\n{UNSIGNED}"
    );
    let scope = format!("{day}/{}/s3/aws4_request", key.region);
    let hash = hex(&Sha256::digest(canonical.as_bytes()));
    let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hash}");
    let first = hmac(format!("AWS4{}", key.secret).as_bytes(), day.as_bytes());
    let derived = [key.region.as_str(), "s3", "aws4_request"]
        .iter()
        .fold(first, |key, part| hmac(&key, part.as_bytes()));
    let signature = hex(&hmac(&derived, to_sign.as_bytes()));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, \
         SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature}",
        key.access
    );
    vec![
        ("x-amz-date", stamp),
        ("x-amz-content-sha256", UNSIGNED.to_owned()),
        ("authorization", authorization),
    ]
}

/// Percent-encodes all but unreserved characters; `/` stays where `slash` says so.
pub(crate) fn encode(text: &str, slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if plain || (slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// `20260102T030405Z`.
fn stamp(now: SystemTime) -> String {
    let (date, time) = utc(now);
    format!("{:04}{:02}{:02}T{:02}{:02}{:02}Z", date.0, date.1, date.2, time.0, time.1, time.2)
}

/// Year, month, day and hour, minute, second of a moment after 1970.
pub(crate) fn utc(now: SystemTime) -> ((i64, i64, i64), (i64, i64, i64)) {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = ((seconds / 86_400).cast_signed(), (seconds % 86_400).cast_signed());
    // Days to a date of the Gregorian calendar, counted in years that begin in March so that the
    // leap day comes last, and in eras of 400 years (146,097 days).
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    ((year, month, day), (rest / 3600, rest % 3600 / 60, rest % 60))
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key length will do");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_written_as_the_calendar_has_it() {
        let at = |seconds| stamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(951_782_399), "20000228T235959Z");
        assert_eq!(at(951_782_400), "20000229T000000Z");
        assert_eq!(at(4_107_542_400), "21000301T000000Z");
    }

    #[test]
    fn names_are_encoded_byte_by_byte() {
        assert_eq!(encode("a b/ü", true), "a%20b/%C3%BC");
        assert_eq!(encode("a/b", false), "a%2Fb");
    }

    #[test]
    fn the_second_vector_of_rfc_4231_comes_out() {
        let mac = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(hex(&mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
