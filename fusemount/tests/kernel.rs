//! The mount as programs see it: real kernel, real programs, a store in memory.
//!
//! Invariant: every test unmounts what it mounted, also when it fails. Without `/dev/fuse` or
//! without root the tests say why they do nothing.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

#[path = "kernel/child.rs"]
mod child;
#[path = "kernel/harness.rs"]
mod harness;
#[path = "kernel/holder.rs"]
mod holder;
#[path = "kernel/journal.rs"]
mod journal;
#[path = "kernel/lifecycle.rs"]
mod lifecycle;
#[path = "kernel/outage.rs"]
mod outage;
#[path = "kernel/passthrough.rs"]
mod passthrough;
#[path = "kernel/programs.rs"]
mod programs;
#[path = "kernel/semantics.rs"]
mod semantics;
