//! Opens that the kernel serves from a local file, past this process.
//!
//! Invariant: an open is counted before it is answered and until it is released, and an answer is
//! in the mode of all others of its node ([`table`]). A registration is released before another of
//! its node is made. Every open that is not in passthrough is counted with its reason. Nothing here
//! waits for an origin; registering may wait a second for the holder, once in [`BACK_OFF`] at most.

mod table;

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use store::{LocalCopy, NoCopy};
use tokio::time::Instant;

use crate::Metrics;
use crate::journal::{Image, Journal, Record};
use crate::nodes::NodeId;
use crate::registrar::Registrar;
pub(crate) use table::Mode;
use table::{How, ModeTable, Offer, Outcome};

/// Registrations that are kept when nobody has their file open, so that opening it again costs no
/// call. Each keeps a file and its inode in the kernel's memory, some 1.5 KiB, so all of them 24 MiB;
/// the holder has room for twice as many.
const KEPT_REGISTRATIONS: usize = 16_384;

/// How long nothing is registered after whoever registers did not answer.
const BACK_OFF: Duration = Duration::from_secs(5);

/// Why an open is not in passthrough, where the cache has a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    TurnedOff,
    OldKernel,
    NoPrivilege,
    StackedFileSystem,
    RegisterFailed,
    OpensUnknown,
    InUseCached,
}

impl Refusal {
    fn name(self) -> &'static str {
        match self {
            Self::TurnedOff => "turned_off",
            Self::OldKernel => "old_kernel",
            Self::NoPrivilege => "no_privilege",
            Self::StackedFileSystem => "stacked_file_system",
            Self::RegisterFailed => "register_failed",
            Self::OpensUnknown => "opens_unknown",
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
            Self::TurnedOff => "the configuration says so",
            Self::OldKernel => "Linux 6.9 or later, with CONFIG_FUSE_PASSTHROUGH, has it",
            Self::NoPrivilege => {
                "let `warpdrive mountd` make the mount, or give this process CAP_SYS_ADMIN"
            }
            Self::StackedFileSystem => {
                "put `cache.path` on a plain file system (ext4, xfs; an emptyDir or hostPath)"
            }
            Self::OpensUnknown => "the journal of nodes was lost: it is so until the next mount",
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
    /// False where a worker before may have opened what this one does not know to be open.
    opens_known: bool,
    /// True when this session of the kernel knows passthrough.
    negotiated: AtomicBool,
    refused: Mutex<Refused>,
    journal: Option<Arc<Journal>>,
    metrics: Metrics,
}

impl Backing {
    /// What a worker before has left open; `opens_known` where that is all there is. No passthrough
    /// before [`Self::negotiated`].
    pub(crate) fn new(
        registrar: Arc<dyn Registrar>,
        journal: Option<Arc<Journal>>,
        past: &Image,
        opens_known: bool,
        metrics: Metrics,
    ) -> Self {
        let mut table = ModeTable::new(KEPT_REGISTRATIONS);
        let inherited = registrar.inherited();
        let registered: HashSet<(u64, u32)> = inherited.iter().copied().collect();
        for (node, (mode, opens)) in &past.opens {
            let gone = match mode {
                Mode::Cached => false,
                Mode::Passthrough(id) => !registered.contains(&(node.0, *id)),
            };
            table.restore(*node, *mode, *opens, gone);
        }
        for (node, id) in inherited {
            table.inherit(NodeId(node), id, opens_known);
        }
        metrics.open_files.set(table.open_count().try_into().unwrap_or(i64::MAX));
        Self {
            registrar,
            table: Mutex::new(table),
            journal,
            opens_known,
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
        unique: u64,
    ) -> Result<Mode, Condemned> {
        let (offer, reason) = match &copy {
            Ok(copy) => (Offer::Copy(Arc::clone(&copy.fate)), Refusal::InUseCached.name()),
            Err(reason) => (Offer::Nothing, reason.name()),
        };
        let (outcome, reason) = match (self.enter(node, offer, unique), copy) {
            (Outcome::Register, Ok(copy)) => match self.refusal() {
                Some(refusal) => (self.enter(node, Offer::Nothing, unique), refusal.name()),
                None => self.register(node, &copy, unique),
            },
            (outcome, _) => (outcome, reason),
        };
        self.flush();
        self.opened(outcome, reason)
    }

    /// The mode of an open that a worker before has counted, and not answered.
    pub(crate) fn repeat(&self, node: NodeId) -> Result<Mode, Condemned> {
        self.table.lock().repeat(node).ok_or(Condemned)
    }

    /// Releases one open of a node.
    pub(crate) fn release(&self, node: NodeId, unique: u64) {
        let (known, dropped) = {
            let mut table = self.table.lock();
            let known = table.release(node);
            if known {
                self.note(Record::Released { id: node, unique });
            }
            (known, table.has_dropped())
        };
        if known {
            self.flush();
            self.metrics.open_files.dec();
        }
        if dropped {
            self.settle_if_free();
        }
    }

    /// The kernel has forgotten a node. What that frees is released in the next sweep, or before.
    pub(crate) fn forget(&self, node: NodeId) {
        self.table.lock().forget(node);
    }

    /// Gives evicted files their space back, and keeps the journal short: to be called each second.
    /// May wait for the holder and for the disk.
    pub(crate) fn sweep(&self) {
        if let Some(journal) = &self.journal {
            journal.maintain();
        }
        self.table.lock().sweep();
        let _turn = self.registering.lock();
        let _ = self.settle();
    }

    /// Opens that are not released.
    #[cfg(test)]
    pub(crate) fn open_count(&self) -> u64 {
        self.table.lock().open_count()
    }

    /// Has this process answer every read. What an earlier worker has left open in passthrough stays
    /// so until it is closed: opens of one node are of one mode.
    pub(crate) fn turn_off(&self) {
        self.refused.lock().always = Some(Refusal::TurnedOff);
    }

    /// Why no open can be in passthrough now, if none can.
    fn refusal(&self) -> Option<Refusal> {
        if self.refused.lock().always == Some(Refusal::TurnedOff) {
            return Some(Refusal::TurnedOff);
        }
        if self.registrar.unavailable().is_some() {
            return Some(Refusal::NoPrivilege);
        }
        if !self.negotiated.load(Ordering::Acquire) {
            return Some(Refusal::OldKernel);
        }
        if !self.opens_known {
            // A program may have it open in the other mode.
            return Some(Refusal::OpensUnknown);
        }
        let refused = self.refused.lock();
        let waiting = refused.until.is_some_and(|until| Instant::now() < until);
        refused.always.or(waiting.then_some(Refusal::RegisterFailed))
    }

    /// Opens in the table, and notes it in the same order.
    fn enter(&self, node: NodeId, offer: Offer, unique: u64) -> Outcome {
        let mut table = self.table.lock();
        let outcome = table.open(node, offer);
        if let Outcome::Opened(mode, _) = outcome {
            self.note(Record::Opened { id: node, mode, opens: 1, unique });
        }
        outcome
    }

    fn register(&self, node: NodeId, copy: &LocalCopy, unique: u64) -> (Outcome, &'static str) {
        let _turn = self.registering.lock();
        // While this one waited for its turn, whoever registers may have stopped to answer.
        if let Some(refusal) = self.settle() {
            return (self.enter(node, Offer::Nothing, unique), refusal.name());
        }
        // Another open of it may have been faster.
        let outcome = self.enter(node, Offer::Copy(Arc::clone(&copy.fate)), unique);
        if outcome != Outcome::Register {
            return (outcome, Refusal::InUseCached.name());
        }
        // That may have dropped a registration that was kept.
        if let Some(refusal) = self.settle() {
            return (self.enter(node, Offer::Nothing, unique), refusal.name());
        }
        match self.registrar.register(node.0, copy.file.as_fd()) {
            Ok(id) => {
                let offer = Offer::Registered(id, Arc::clone(&copy.fate));
                let outcome = self.enter(node, offer, unique);
                let _ = self.settle();
                (outcome, Refusal::InUseCached.name())
            }
            Err(error) => {
                let refusal = self.refused_by(&error);
                (self.enter(node, Offer::Nothing, unique), refusal.name())
            }
        }
    }

    fn note(&self, record: Record) {
        if let Some(journal) = &self.journal {
            journal.note(&[record]);
        }
    }

    fn flush(&self) {
        if let Some(journal) = &self.journal {
            journal.flush();
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
            let _ = self.settle();
        }
    }

    /// To be called with `registering` held. Waits for an answer that does not come once; the rest
    /// is left for later, and nothing can be registered before. Why that is so, if it is.
    fn settle(&self) -> Option<Refusal> {
        let waits = || self.refused.lock().until.is_some_and(|until| Instant::now() < until);
        if !waits() {
            let dropped = self.table.lock().take_dropped();
            for (at, id) in dropped.iter().enumerate() {
                let Err(error) = self.registrar.release(*id) else { continue };
                // Without its holder a mount has no registrations.
                if Errno::from_io_error(&error) != Some(Errno::NOTCONN) {
                    self.refused_by(&error);
                    self.table.lock().put_back(&dropped[at..]);
                    break;
                }
            }
        }
        self.refusal()
    }
}
