//! What other crates test with: an in-memory reference store, a decorator that fails on demand,
//! and the contract suite that every store runs.
//!
//! Invariant: `MemoryStore` passes the whole contract with every difference switched off; it is
//! the model that others are compared with. Never part of a released binary.

pub mod contract;
mod faulty;
mod memory;

pub use faulty::{Calls, Fault, FaultyStore, Operation};
pub use memory::MemoryStore;
