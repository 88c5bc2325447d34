//! Times that origins and files say.
//!
//! Invariant: what comes out can be written as an HTTP date and as RFC 3339. It refuses nothing:
//! what is later than their last second, as damaged or foreign times are, becomes that second.

use std::time::{Duration, SystemTime};

/// 9999-12-31T23:59:59Z: years of five digits have no place in either format.
const LAST: Duration = Duration::from_secs(253_402_300_799);

/// So long after the beginning of 1970, at most [`LAST`].
pub(crate) fn after_1970(time: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + time.min(LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_written() {
        let shown = |time| httpdate::fmt_http_date(after_1970(time));
        assert_eq!(shown(Duration::from_secs(1)), "Thu, 01 Jan 1970 00:00:01 GMT");
        for late in [LAST, LAST + Duration::from_millis(1500), Duration::MAX] {
            assert_eq!(shown(late), "Fri, 31 Dec 9999 23:59:59 GMT");
        }
    }
}
