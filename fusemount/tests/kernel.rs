//! The mount as programs see it: real kernel, real programs, a store in memory.
//!
//! Invariant: every test unmounts what it mounted, also when it fails. Without `/dev/fuse` or
//! without root the tests say why they do nothing.

#![allow(missing_docs)] // A test binary has no public items to document.

#[path = "kernel/harness.rs"]
mod harness;
#[path = "kernel/programs.rs"]
mod programs;
