//! The mount holder: a small process that has the mount, so that the worker may die.

pub(crate) mod device;
pub(crate) mod registrations;
