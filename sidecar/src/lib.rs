//! The sidecar: configuration -> running process, command line, admin endpoint, drain.
//!
//! Invariant: this crate wires and decides nothing about bytes: what is read and written lies in the
//! crates below. It refuses configurations that do not hold together, before anything is opened.

pub mod config;
