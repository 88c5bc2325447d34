//! The endpoint over real sockets, in front of in-memory buckets.
//!
//! Invariant: each test has its own endpoint on a free loopback port, and ends within seconds.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.
#![allow(clippy::float_cmp)] // Counters are whole numbers.
#![allow(clippy::format_push_string, clippy::format_collect)] // Requests of a few lines.
#![allow(clippy::duration_suboptimal_units)] // Seconds beside seconds.

#[path = "wire/client.rs"]
mod client;
#[path = "wire/conduct.rs"]
mod conduct;
#[path = "wire/listing.rs"]
mod listing;
#[path = "wire/multipart.rs"]
mod multipart;
#[path = "wire/reads.rs"]
mod reads;
#[path = "wire/signing.rs"]
mod signing;
#[path = "wire/writes.rs"]
mod writes;
