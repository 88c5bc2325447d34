//! How a request becomes work and an answer: at once, or in a task.
//!
//! Invariant: every reply is used, within the operation timeout, and counted. Nothing here knows one
//! operation from another.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use fuser::Request;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Adapter;
use super::deadline::{Heed, bounded};
use super::replies::Refuse;
use super::seat::{Asker, Kind, Seat};
use super::shared::{Shared, View};
use crate::Metrics;
use crate::config::MountConfig;
use crate::errno::Result;
use crate::fs::{FileSystem, Mutation, Options};
use crate::journal::{Journal, Past};
use crate::registrar::Registrar;

/// How long to wait for an origin to say what is below a name once the rest is known. A listing of
/// one key takes milliseconds; while the origin hangs, what is cached is reached after this time.
const MAX_PATIENCE: Duration = Duration::from_secs(5);

/// The most that origins give in one page of a listing.
const PAGE_ENTRIES: usize = 1000;

/// The longest that the kernel may answer from what it was told of a name. Short, because nothing
/// tells it of a change: what is written through the endpoint of this process is seen on the mount
/// after this time at most. A question after that is answered from memory.
const KERNEL_TTL: Duration = Duration::from_secs(1);

/// How long the space of an evicted file that nobody has open may stay in use.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Adapter {
    /// An adapter that runs its tasks on a runtime, for a mount that nobody has served before.
    pub(crate) fn new(
        namespace: Arc<store::Namespace>,
        config: &MountConfig,
        metrics: Metrics,
        runtime: Handle,
        registrar: Arc<dyn Registrar>,
    ) -> Self {
        Self::with(namespace, config, metrics, runtime, registrar, None)
    }

    /// An adapter for a mount that outlives this process: it goes on where the journal of the mount
    /// ends, and writes it. Where that fails it begins anew, and the second value says what is lost.
    pub(crate) fn resume(
        namespace: Arc<store::Namespace>,
        config: &MountConfig,
        metrics: Metrics,
        runtime: Handle,
        registrar: Arc<dyn Registrar>,
        mount: [u8; 16],
    ) -> (Self, Option<String>) {
        let (journal, note) = match &config.journal {
            None => (
                None,
                Some(
                    "there is no journal: what is open now does not survive this process"
                        .to_owned(),
                ),
            ),
            Some(directory) => {
                match Journal::open(directory, u128::from_le_bytes(mount), registrar.has_begun()) {
                    Ok(journal) => (Some(journal), None),
                    Err(error) => {
                        let shown = directory.display();
                        (
                            None,
                            Some(format!(
                                "cannot write a journal in `{shown}` ({error}): what is open now does not survive this process"
                            )),
                        )
                    }
                }
            }
        };
        (Self::with(namespace, config, metrics, runtime, registrar, journal), note)
    }

    fn with(
        namespace: Arc<store::Namespace>,
        config: &MountConfig,
        metrics: Metrics,
        runtime: Handle,
        registrar: Arc<dyn Registrar>,
        journal: Option<(Journal, Past)>,
    ) -> Self {
        let options = Options {
            metadata_ttl: config.metadata_ttl,
            patience: (config.operation_timeout / 4).min(MAX_PATIENCE),
            page_entries: PAGE_ENTRIES,
        };
        let view = View {
            uid: config.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: config.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
            file_mode: config.file_mode,
            dir_mode: config.dir_mode,
            ttl: config.metadata_ttl.min(KERNEL_TTL),
        };
        let shared = Shared {
            fs: FileSystem::new(namespace, registrar, journal, metrics.clone(), options),
            view,
            metrics,
            timeout: config.operation_timeout,
            debug: config.debug,
            warnings: Mutex::default(),
            asker: Asker::default(),
        };
        if !config.passthrough {
            shared.fs.backing().turn_off();
        }
        let max_readahead = config.read_ahead_kib.saturating_mul(1024).max(128 * 1024);
        let shared = Arc::new(shared);
        runtime.spawn(sweep(Arc::downgrade(&shared)));
        Self { shared, runtime, max_readahead, seat: Seat::default() }
    }

    /// Runs `work` within the operation timeout and then `answer`: here as long as nothing has to
    /// be waited for, then in a task.
    pub(super) fn spawn<
        R: Refuse,
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    >(
        &self,
        operation: &'static str,
        heed: Heed,
        request: &Request,
        reply: R,
        work: impl FnOnce(Arc<Shared>) -> F,
        answer: impl FnOnce(&Shared, R, T) + Send + 'static,
    ) {
        let began = Instant::now();
        let is_data = matches!(operation, "read" | "readdir" | "readdirplus");
        self.sit(request, if is_data { Kind::Data } else { Kind::Short });
        let pid = request.pid();
        let shared = Arc::clone(&self.shared);
        let work = work(Arc::clone(&shared));
        let mut task = Box::pin(async move {
            match bounded(pid, heed, shared.timeout, work).await {
                Ok(value) => {
                    answer(&shared, reply, value);
                    shared.succeeded(operation, began);
                }
                Err(failure) => {
                    reply.refuse(failure.errno);
                    shared.failed(operation, began, &failure);
                }
            }
        });
        // What is in memory is answered here, which saves waking another thread; a task that has
        // to wait moves to the runtime and is polled again there.
        let _entered = self.runtime.enter();
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(task);
        }
    }

    /// Moves this loop to where it should run while it answers a request.
    pub(super) fn sit(&self, request: &Request, kind: Kind) {
        self.seat.take(&self.shared.asker, request.pid(), kind);
    }

    /// Answers at once.
    pub(super) fn answer<R: Refuse, T>(
        &self,
        operation: &'static str,
        reply: R,
        work: impl FnOnce(&Shared) -> Result<T>,
        answer: impl FnOnce(&Shared, R, T),
    ) {
        let began = Instant::now();
        match work(&self.shared) {
            Ok(value) => {
                answer(&self.shared, reply, value);
                self.shared.succeeded(operation, began);
            }
            Err(failure) => {
                reply.refuse(failure.errno);
                self.shared.failed(operation, began, &failure);
            }
        }
    }

    /// Does what would change something, where that may be.
    pub(super) fn mutate<R: Refuse>(&self, mutation: Mutation, reply: R) {
        self.answer(mutation.name(), reply, |shared| shared.fs.mutate(mutation), |_, _, ()| {});
    }
}

/// Gives the files back that nobody uses, for as long as there is a mount.
async fn sweep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        // It may wait for the holder.
        let swept = tokio::task::spawn_blocking(move || shared.fs.backing().sweep());
        if swept.await.is_err() {
            return;
        }
    }
}
