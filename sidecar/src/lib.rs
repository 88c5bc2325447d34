//! The sidecar: configuration -> running process, command line, admin endpoint, drain.
//!
//! Invariant: this crate wires and decides nothing about bytes: what is read and written lies in the
//! crates below. It refuses configurations that do not hold together, before anything is opened.

mod admin;
mod announce;
mod assembly;
mod bench;
mod cgroup;
mod cli;
pub mod config;
mod demo;
mod metrics;
mod run;
mod signals;
mod supervise;
mod termination;
mod trace;
mod warm;

pub use cli::main;
