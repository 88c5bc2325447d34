//! Bringing blocks near: one fetch for each block, whoever wants it.
//!
//! Invariant: a block that is wanted by many is read from disk or origin once. Work runs in detached
//! tasks, so a caller that leaves strands nobody; every flight lands, with bytes or with an error.

mod assembly;
mod fetcher;
mod flight;
mod gate;

pub(crate) use assembly::{FILL_PATIENCE, STALL};
pub(crate) use fetcher::{DISK_READ_LIMIT, Fetcher, Origin, PIECE_BYTES, Probe, Want, Wanted};
pub(crate) use flight::Flight;
pub(crate) use gate::{Gate, Priority, Urgency};
