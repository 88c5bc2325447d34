//! SIGTERM, SIGINT and SIGHUP: the first asks to stop, the second insists. SIGUSR1 asks for a line
//! of the log that says what is going on.
//!
//! Invariant: the handlers are in place before anything is mounted or bound. A SIGHUP that was
//! ignored when the process began (nohup) stays ignored.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Two tokens that the signals cancel, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Signals {
    /// Cancelled by the first signal.
    pub(crate) stop: CancellationToken,
    /// Cancelled by the second.
    pub(crate) now: CancellationToken,
    /// Told by SIGUSR1.
    pub(crate) report: Arc<Notify>,
}

impl Signals {
    /// Installs the handlers; must be called inside a runtime.
    pub(crate) fn install() -> std::io::Result<Self> {
        let signals = Self {
            stop: CancellationToken::new(),
            now: CancellationToken::new(),
            report: Arc::default(),
        };
        let mut ends = vec![
            ("SIGTERM", signal(SignalKind::terminate())?),
            ("SIGINT", signal(SignalKind::interrupt())?),
        ];
        if !is_ignored(HANGUP) {
            ends.push(("SIGHUP", signal(SignalKind::hangup())?));
        }
        let (sender, receiver) = mpsc::channel(ends.len());
        for (name, end) in ends {
            tokio::spawn(forward(name, end, sender.clone()));
        }
        tokio::spawn(watch(receiver, signals.clone()));
        tokio::spawn(reports(signal(SignalKind::user_defined1())?, Arc::clone(&signals.report)));
        Ok(signals)
    }
}

/// The number of SIGHUP on every Linux.
const HANGUP: u32 = 1;

/// Whether this process ignores a signal, as its parent may have told it to.
fn is_ignored(signal: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

async fn forward(name: &'static str, mut from: Signal, to: mpsc::Sender<&'static str>) {
    while from.recv().await.is_some() && to.send(name).await.is_ok() {}
}

async fn reports(mut from: Signal, to: Arc<Notify>) {
    while from.recv().await.is_some() {
        to.notify_one();
    }
}

async fn watch(mut received: mpsc::Receiver<&'static str>, signals: Signals) {
    while let Some(name) = received.recv().await {
        if signals.stop.is_cancelled() {
            tracing::warn!(signal = name, "second signal: exiting without waiting");
            signals.now.cancel();
            return;
        }
        tracing::info!(signal = name, "stopping; a second signal exits at once");
        signals.stop.cancel();
    }
}
