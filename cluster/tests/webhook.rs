//! The webhook, called as an API server calls it: over TLS, on real sockets.
//!
//! Invariant: everything listens on loopback on free ports and ends with its test. What needs a real
//! API server is skipped, with a printed reason, where its programs are not installed.

// Tests say what they do in their names; in their helpers a panic is the failure of a test.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "webhook/files.rs"]
mod files;
#[path = "webhook/hostile.rs"]
mod hostile;
#[path = "webhook/kubernetes.rs"]
mod kubernetes;
#[path = "webhook/replicas.rs"]
mod replicas;
#[path = "webhook/reviews.rs"]
mod reviews;
#[path = "webhook/support.rs"]
mod support;
