//! What WarpDrive is to Kubernetes: injection into pods, the admission webhook that does it, and
//! the node service that mounts for pods which may not.
//!
//! Invariant: this crate knows pods and no bytes; what it puts into a pod is the same binary with
//! other arguments. It refuses a setting that it does not understand, and drops nothing of a pod
//! that it does not know.

mod certificates;
pub mod csi;
pub mod inject;
pub mod names;
pub mod policy;
pub mod settings;
pub mod webhook;
