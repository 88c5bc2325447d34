//! The endpoint over real sockets, in front of in-memory buckets.
//!
//! Invariant: each test has its own endpoint on a free loopback port, and ends within seconds.

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
