//! The parts of passthrough that fuser cannot check: numbers of registrations are taken on trust.
//!
//! Invariant: a registration is answered with and never ended here; who registers ends it.

#![allow(unsafe_code)]

use fuser::{FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};

/// How deep file systems may be stacked: two lets the cache lie on one that is itself stacked, and
/// keeps others from being stacked on the mount.
const MAX_STACK_DEPTH: u32 = 2;

/// Asks the kernel for passthrough; false where it has none.
pub(super) fn negotiate(config: &mut KernelConfig) -> bool {
    config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(MAX_STACK_DEPTH).is_ok()
}

/// Answers an open with a registration.
pub(super) fn opened(reply: ReplyOpen, handle: u64, flags: FopenFlags, id: u32) {
    // SAFETY: the number is registered with the connection of this session, and stays so while the
    // open that is answered here is counted. `into_raw` gives it back unclosed.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(FileHandle(handle), flags, &backing);
    let _ = backing.into_raw();
}
