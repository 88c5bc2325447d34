//! The FUSE protocol in front of a [`store::Namespace`]: a read-only file system of objects.
//!
//! Invariant: nothing here blocks a FUSE thread on an origin, and an open file is one version of
//! one object for as long as it is open. It refuses every write with EROFS.
//!
//! `fs` is the file system and knows no FUSE; `adapter` translates; `mount` talks to the kernel.

mod adapter;
mod backing;
mod config;
mod errno;
mod fs;
mod guard;
mod holder;
mod journal;
mod metrics;
mod mount;
mod nodes;
mod registrar;

pub use adapter::unbind_thread;
pub use config::{HolderConfig, MountConfig};
pub use guard::guard;
pub use holder::hold;
pub use metrics::Metrics;
pub use mount::{
    HolderStatus, Mount, MountError, MountPointState, check_mount_point, dismiss_worker,
    end_holder, holder_status, holder_status_within, is_own_mount, spawn_holder,
};
