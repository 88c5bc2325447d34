//! SIGTERM and SIGINT: the first asks to stop, the second insists.
//!
//! Invariant: the handlers are in place before anything is mounted or bound.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Two tokens that the signals cancel, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Signals {
    /// Cancelled by the first signal.
    pub(crate) stop: CancellationToken,
    /// Cancelled by the second.
    pub(crate) now: CancellationToken,
}

impl Signals {
    /// Installs the handlers; must be called inside a runtime.
    pub(crate) fn install() -> std::io::Result<Self> {
        let signals = Self { stop: CancellationToken::new(), now: CancellationToken::new() };
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(watch(terminate, interrupt, signals.clone()));
        Ok(signals)
    }
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, signals: Signals) {
    loop {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if signals.stop.is_cancelled() {
            tracing::warn!(signal = name, "second signal: exiting without waiting");
            signals.now.cancel();
            return;
        }
        tracing::info!(signal = name, "stopping; a second signal exits at once");
        signals.stop.cancel();
    }
}
