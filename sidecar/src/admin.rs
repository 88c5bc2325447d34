//! The admin endpoint: health, readiness, metrics, status, warm jobs, credentials of the endpoint.
//!
//! Invariant: it listens on loopback or on a Unix socket of its owner only, answers only requests
//! whose `Host` names it, changes nothing for a web page, and gives credentials only to who has the
//! token. It never changes what is served.

mod answers;
mod free;
mod server;
mod standing;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Instant;

use prometheus::Registry;
use s3gw::AccessKey;
use secrecy::SecretString;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::assembly::Assembly;
use crate::run::MountView;
use crate::warm::Jobs;

pub(crate) use free::Free;
pub(crate) use server::{Listener, serve, serve_metrics, serve_metrics_and};
pub(crate) use standing::Standing;

const STARTING: u8 = 0;
const READY: u8 = 1;
const ENDING: u8 = 2;

/// Whether this sidecar takes work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<AtomicU8>);

impl Readiness {
    /// It does from now on, or not any more.
    pub(crate) fn set(&self, ready: bool) {
        self.0.store(if ready { READY } else { ENDING }, Relaxed);
    }

    /// Whether it does.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.load(Relaxed) == READY
    }

    fn why_not(&self) -> Option<&'static str> {
        match self.0.load(Relaxed) {
            READY => None,
            STARTING => Some("it starts"),
            _ => Some("it was told to end, and lets what is in flight finish"),
        }
    }
}

/// Key pair of the S3 endpoint as AWS clients fetch it, and the token that they must send.
#[derive(Clone)]
pub(crate) struct Credentials {
    /// The key pair.
    pub(crate) key: AccessKey,
    /// The value of `Authorization`; `None` where everyone who can connect may have the key.
    pub(crate) token: Option<SecretString>,
}

/// What requests are answered from.
pub(crate) struct Admin {
    pub(crate) assembly: Arc<Assembly>,
    pub(crate) readiness: Readiness,
    pub(crate) started: Instant,
    pub(crate) jobs: Jobs,
    /// Requests for warm jobs that are read and looked through at once.
    pub(crate) warm_requests: Semaphore,
    pub(crate) credentials: Option<Credentials>,
    /// Mount point, where there is a mount.
    pub(crate) mount: Option<String>,
    /// URL of the S3 endpoint, where there is one.
    pub(crate) s3: Option<String>,
    /// Directory of the cache's disk tier.
    pub(crate) cache_path: Option<PathBuf>,
    /// What its file system has left.
    pub(crate) free: Option<Free>,
    /// What stays free of its file system.
    pub(crate) min_free_bytes: u64,
    /// What the file asked for and did not get, and what the mount could not do.
    pub(crate) notes: Vec<String>,
    /// What became of the mount, where there is one.
    pub(crate) view: Option<Arc<MountView>>,
    /// How often the supervisor has started this sidecar again; `None` without one.
    pub(crate) restarts: Option<u32>,
}

impl Admin {
    /// Permits of [`Self::warm_requests`]. A request may have 64 MiB, several times that when it is
    /// parsed; a second one is let in so that a slow sender does not keep everybody out.
    pub(crate) const WARM_REQUESTS: usize = 2;

    /// What `/status` answers.
    pub(crate) fn status(&self) -> serde_json::Value {
        answers::status(self)
    }

    /// Why it takes no work, where it does not. A mount that was lost counts: who reads it fails.
    fn not_ready(&self) -> Option<String> {
        let lost = || self.view.as_ref().and_then(|view| view.lost());
        self.readiness.why_not().map(str::to_owned).or_else(lost)
    }

    /// What the file system of the cache has left.
    fn disk_free(&self) -> Option<u64> {
        self.free.as_ref().and_then(Free::bytes)
    }

    fn registry(&self) -> &Registry {
        &self.assembly.registry
    }
}

/// Ends servers of this module.
pub(crate) type Stop = CancellationToken;
