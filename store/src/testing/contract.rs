//! The contract of [`crate::Store`], as checks that run against any implementation.
//!
//! Invariant: a check that an origin cannot pass is switched off by a named difference in
//! [`Differences`], never by weakening the check.
