//! Times on their way into headers, documents and signatures.
//!
//! Invariant: a time of an origin, however odd, becomes a date that can be written: those before
//! 1970 are 1970, those after 9999 are the last second of 9999. It refuses dates of clients that
//! are outside of these years.

use std::time::{Duration, SystemTime};

/// The last second of the year 9999: dates have four digits for the year.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// The nearest time that a date can say.
pub(crate) fn writable(time: SystemTime) -> SystemTime {
    time.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LAST_SECOND)
}

/// True when a date can say the time.
pub(crate) fn is_writable(time: SystemTime) -> bool {
    writable(time) == time
}

/// The time as headers have it.
pub(crate) fn http_date(time: SystemTime) -> String {
    httpdate::fmt_http_date(writable(time))
}

/// The time as documents have it.
pub(crate) fn timestamp(time: SystemTime) -> s3s::dto::Timestamp {
    writable(time).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_times_of_origins_can_be_written() {
        let year_10000 = SystemTime::UNIX_EPOCH + LAST_SECOND + Duration::from_secs(1);
        assert!(!is_writable(year_10000));
        assert_eq!(http_date(year_10000), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(timestamp(year_10000), timestamp(SystemTime::UNIX_EPOCH + LAST_SECOND));
        let year_1969 = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert!(!is_writable(year_1969));
        assert_eq!(http_date(year_1969), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(timestamp(year_1969), timestamp(SystemTime::UNIX_EPOCH));
    }
}
