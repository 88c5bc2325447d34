//! The built `warpdrive`, driven as a user drives it.
//!
//! Invariant: every process that is started here is ended here, every mount is gone afterwards, and
//! everything listens on free loopback ports. Without `/dev/fuse` what needs a mount is skipped with
//! a printed reason.

// Tests say what they do in their names; in their helpers a panic is the failure of a test.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "binary/admin.rs"]
mod admin;
#[path = "binary/bench.rs"]
mod bench;
#[path = "binary/check.rs"]
mod check;
#[path = "binary/csi.rs"]
mod csi;
#[path = "binary/demo.rs"]
mod demo;
#[path = "binary/holder.rs"]
mod holder;
#[path = "binary/pod.rs"]
mod pod;
#[path = "binary/probe.rs"]
mod probe;
#[path = "binary/run.rs"]
mod run;
#[path = "binary/supervise.rs"]
mod supervise;
#[path = "binary/support.rs"]
mod support;
#[path = "binary/warm.rs"]
mod warm;
