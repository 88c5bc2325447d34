//! Opens that the kernel serves from a local file, past this process.
//!
//! Invariant: an open is counted before it is answered and until it is released, and an answer is
//! in the mode of all others of its node ([`table`]). A registration is released before another of
//! its node is made. Every open that is not in passthrough is counted with its reason. Nothing here
//! waits for an origin; registering may wait a second for the holder, once in [`BACK_OFF`] at most.

mod table;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use store::{LocalCopy, NoCopy};
use tokio::time::Instant;

use crate::Metrics;
use crate::nodes::NodeId;
use crate::registrar::Registrar;
pub(crate) use table::Mode;
use table::{How, ModeTable, Offer, Outcome};

/// Registrations that are kept when nobody has their file open, so that opening it again costs no
/// call: more than the files that a training loop opens in a second, and a few MiB of kernel memory.
const KEPT_REGISTRATIONS: usize = 4096;

/// How long nothing is registered after whoever registers did not answer.
const BACK_OFF: Duration = Duration::from_secs(5);

/// Why an open is not in passthrough, where the cache has a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    OldKernel,
    NoPrivilege,
    StackedFileSystem,
    RegisterFailed,
    InUseCached,
}

impl Refusal {
    fn name(self) -> &'static str {
        match self {
            Self::OldKernel => "old_kernel",
            Self::NoPrivilege => "no_privilege",
            Self::StackedFileSystem => "stacked_file_system",
            Self::RegisterFailed => "register_failed",
            Self::InUseCached => "in_use_cached",
        }
    }

    /// What an error of a registration says, and whether it says it of every file.
    fn of(error: &std::io::Error) -> (Self, bool) {
        match Errno::from_io_error(error) {
            Some(Errno::PERM) => (Self::NoPrivilege, true),
            Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => (Self::OldKernel, true),
            // The cache has one disk, so what is true of one file is true of all.
            Some(Errno::LOOP) => (Self::StackedFileSystem, true),
            _ => (Self::RegisterFailed, false),
        }
    }

    /// What to do about it.
    fn advice(self) -> &'static str {
        match self {
            Self::OldKernel => "Linux 6.9 or later, with CONFIG_FUSE_PASSTHROUGH, has it",
            Self::NoPrivilege => {
                "let `warpdrive mountd` make the mount, or give this process CAP_SYS_ADMIN"
            }
            Self::StackedFileSystem => {
                "put `cache.path` on a plain file system (ext4, xfs; an emptyDir or hostPath)"
            }
            Self::RegisterFailed | Self::InUseCached => "it is tried again",
        }
    }
}

/// A node that must not be opened again: those who have it open read a copy that is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condemned;

#[derive(Debug, Default)]
struct Refused {
    /// True for every file, until the end.
    always: Option<Refusal>,
    /// No use in trying before.
    until: Option<Instant>,
}

/// Every open file, and who registers local files with the kernel.
#[derive(Debug)]
pub(crate) struct Backing {
    registrar: Arc<dyn Registrar>,
    table: Mutex<ModeTable>,
    /// Held while anything is registered or released, so that these happen in the order of `table`.
    registering: Mutex<()>,
    /// True when this session of the kernel knows passthrough.
    negotiated: AtomicBool,
    refused: Mutex<Refused>,
    metrics: Metrics,
}

impl Backing {
    /// Nothing open. No passthrough before [`Self::negotiated`].
    pub(crate) fn new(registrar: Arc<dyn Registrar>, metrics: Metrics) -> Self {
        Self {
            registrar,
            table: Mutex::new(ModeTable::new(KEPT_REGISTRATIONS)),
            registering: Mutex::default(),
            negotiated: AtomicBool::new(false),
            refused: Mutex::default(),
            metrics,
        }
    }

    /// True where it is worth asking the kernel for passthrough.
    pub(crate) fn wants_passthrough(&self) -> bool {
        self.registrar.unavailable().is_none()
    }

    /// What the kernel said to that.
    pub(crate) fn negotiated(&self, passthrough: bool) {
        self.negotiated.store(passthrough, Ordering::Release);
    }

    /// Counts an open of a node and returns its mode. `copy` is what the cache has of it.
    pub(crate) fn open(
        &self,
        node: NodeId,
        copy: Result<LocalCopy, NoCopy>,
    ) -> Result<Mode, Condemned> {
        let (offer, reason) = match &copy {
            Ok(copy) => (Offer::Copy(Arc::clone(&copy.fate)), Refusal::InUseCached.name()),
            Err(none) => (Offer::Nothing, none.name()),
        };
        let outcome = self.table.lock().open(node, offer);
        match (outcome, copy) {
            (Outcome::Register, Ok(copy)) => match self.refusal() {
                Some(refusal) => {
                    let outcome = self.table.lock().open(node, Offer::Nothing);
                    self.opened(outcome, refusal.name())
                }
                None => self.register(node, &copy),
            },
            (outcome, _) => self.opened(outcome, reason),
        }
    }

    /// Releases one open of a node.
    pub(crate) fn release(&self, node: NodeId) {
        let (known, dropped) = {
            let mut table = self.table.lock();
            (table.release(node), table.has_dropped())
        };
        if known {
            self.metrics.open_files.dec();
        }
        if dropped {
            self.settle_if_free();
        }
    }

    /// The kernel has forgotten nodes.
    pub(crate) fn forget(&self, nodes: &[NodeId]) {
        let dropped = {
            let mut table = self.table.lock();
            nodes.iter().for_each(|node| table.forget(*node));
            table.has_dropped()
        };
        if dropped {
            self.settle_if_free();
        }
    }

    /// Gives evicted files their space back: to be called each second. May wait for the holder.
    pub(crate) fn sweep(&self) {
        self.table.lock().sweep();
        let _turn = self.registering.lock();
        self.settle();
    }

    /// Why no open can be in passthrough now, if none can.
    fn refusal(&self) -> Option<Refusal> {
        if self.registrar.unavailable().is_some() {
            return Some(Refusal::NoPrivilege);
        }
        if !self.negotiated.load(Ordering::Acquire) {
            return Some(Refusal::OldKernel);
        }
        let refused = self.refused.lock();
        let waiting = refused.until.is_some_and(|until| Instant::now() < until);
        refused.always.or(waiting.then_some(Refusal::RegisterFailed))
    }

    fn register(&self, node: NodeId, copy: &LocalCopy) -> Result<Mode, Condemned> {
        let _turn = self.registering.lock();
        self.settle();
        // Another open of it may have been faster.
        let outcome = self.table.lock().open(node, Offer::Copy(Arc::clone(&copy.fate)));
        if outcome != Outcome::Register {
            return self.opened(outcome, Refusal::InUseCached.name());
        }
        // That may have dropped a registration that was kept.
        self.settle();
        match self.registrar.register(node.0, copy.file.as_fd()) {
            Ok(id) => {
                let offer = Offer::Registered(id, Arc::clone(&copy.fate));
                let outcome = self.table.lock().open(node, offer);
                self.settle();
                self.opened(outcome, Refusal::InUseCached.name())
            }
            Err(error) => {
                let refusal = self.refused_by(&error);
                let outcome = self.table.lock().open(node, Offer::Nothing);
                self.opened(outcome, refusal.name())
            }
        }
    }

    /// Takes note of an error of a registration, and says it once.
    fn refused_by(&self, error: &std::io::Error) -> Refusal {
        let (refusal, always) = Refusal::of(error);
        let mut refused = self.refused.lock();
        let first = refused.always.is_none() && refused.until.is_none();
        if always {
            refused.always = Some(refusal);
        } else {
            refused.until = Some(Instant::now() + BACK_OFF);
        }
        drop(refused);
        if first {
            let (reason, advice) = (refusal.name(), refusal.advice());
            tracing::warn!(%error, reason, advice, "reads go through this process: the kernel was not given a local file");
        }
        refusal
    }

    fn opened(&self, outcome: Outcome, reason: &'static str) -> Result<Mode, Condemned> {
        // A copy is registered only on the way here.
        let Outcome::Opened(mode, how) = outcome else { return Err(Condemned) };
        self.metrics.open_files.inc();
        match mode {
            Mode::Cached => self.metrics.opened("cached", reason),
            Mode::Passthrough(_) => self.metrics.opened(
                "passthrough",
                match how {
                    How::Chosen => "registered",
                    How::Kept => "kept",
                    How::Joined => "shared",
                },
            ),
        }
        Ok(mode)
    }

    /// Releases what is of no more use, unless something is being registered, which does it too.
    fn settle_if_free(&self) {
        if let Some(_turn) = self.registering.try_lock() {
            self.settle();
        }
    }

    /// To be called with `registering` held.
    fn settle(&self) {
        let dropped = self.table.lock().take_dropped();
        for id in dropped {
            self.registrar.release(id);
        }
    }
}
