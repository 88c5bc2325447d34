//! When an origin is left alone.
//!
//! Invariant: closed until so many calls in a row found the origin gone, then open for a while,
//! then one call tries it: its outcome closes or opens. Answers that name the caller's mistake
//! (404, 412, 403) are answers; being throttled says neither.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGauge;
use store::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::Policy;

/// What an origin's breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets them through.
    Closed,
    /// Lets one through, to see whether the origin is back.
    HalfOpen,
    /// Fails them at once.
    Open,
}

impl BreakerState {
    /// `closed`, `half_open` or `open`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// How an origin does, for health endpoints. It is never asked anything for this.
pub struct Health {
    backend: String,
    failures_to_open: u32,
    cooldown: Duration,
    gauge: IntGauge,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    last_error: Option<Arc<str>>,
    /// Set while open or half open.
    try_at: Option<Instant>,
    /// True while one call tries the origin.
    trying: bool,
}

impl Health {
    pub(crate) fn new(backend: &str, policy: &Policy, gauge: IntGauge) -> Self {
        Self {
            backend: backend.to_owned(),
            failures_to_open: policy.breaker_failures,
            cooldown: policy.breaker_cooldown,
            gauge,
            state: Mutex::default(),
        }
    }

    /// What the breaker would do with a call now.
    pub fn state(&self) -> BreakerState {
        match self.state.lock().try_at {
            None => BreakerState::Closed,
            Some(at) if at <= Instant::now() => BreakerState::HalfOpen,
            Some(_) => BreakerState::Open,
        }
    }

    /// True unless the origin's latest calls found it gone so often that it is left alone.
    pub fn is_ok(&self) -> bool {
        self.state() == BreakerState::Closed
    }

    pub(crate) fn is_open(&self) -> bool {
        let state = self.state.lock();
        state.try_at.is_some_and(|at| at > Instant::now() || state.trying)
    }

    /// Calls in a row that found the origin gone, and what the latest of them said. The text is
    /// kept until a call succeeds.
    pub fn failures(&self) -> (u32, Option<Arc<str>>) {
        let state = self.state.lock();
        (state.failures, state.last_error.clone())
    }

    /// One line for people: `ok`, or why calls fail and when the origin is tried next.
    pub fn describe(&self) -> String {
        let state = self.state.lock();
        match state.try_at {
            None => "ok".to_owned(),
            Some(at) => self.refusal(&state, at),
        }
    }

    /// Lets a call through, or says why not.
    pub(super) fn permit(&self) -> Result<Permit<'_>> {
        let mut state = self.state.lock();
        let trial = match state.try_at {
            None => false,
            Some(at) if at > Instant::now() || state.trying => {
                return Err(Error::new(ErrorKind::Unavailable, self.refusal(&state, at)));
            }
            Some(_) => {
                state.trying = true;
                self.gauge.set(1);
                true
            }
        };
        Ok(Permit { health: self, trial, noted: false })
    }

    fn refusal(&self, state: &State, at: Instant) -> String {
        let left = at.saturating_duration_since(Instant::now());
        let next = if left.is_zero() {
            "it is being tried again now".to_owned()
        } else {
            format!("it is tried again in {:.1} s", left.as_secs_f64())
        };
        format!(
            "origin `{}` failed {} times in a row (last: {}); {next}",
            self.backend,
            state.failures,
            state.last_error.as_deref().unwrap_or("unknown"),
        )
    }

    fn succeeded(&self) {
        let mut state = self.state.lock();
        // A call that began before the breaker opened proves as much as the one that tries.
        let was_open = state.try_at.is_some();
        *state = State::default();
        if was_open {
            self.gauge.set(0);
            tracing::info!(backend = self.backend, "origin answers again");
        }
    }

    fn failed(&self, trial: bool, error: &Error) {
        let mut state = self.state.lock();
        if trial {
            state.trying = false;
        }
        if !matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable) {
            if error.kind() == ErrorKind::Throttled {
                // The origin lives; a trial that was throttled has found it.
                if trial {
                    *state = State::default();
                    self.gauge.set(0);
                }
                return;
            }
            drop(state);
            self.succeeded();
            return;
        }
        state.failures = state.failures.saturating_add(1);
        state.last_error = Some(error.to_string().into());
        let opens = self.failures_to_open > 0 && state.failures >= self.failures_to_open;
        if opens && (trial || state.try_at.is_none()) {
            if state.try_at.is_none() {
                tracing::warn!(
                    backend = self.backend, failures = state.failures, %error,
                    "origin does not answer; calls fail at once until it does"
                );
            }
            state.try_at = Some(Instant::now() + self.cooldown);
            self.gauge.set(2);
        }
    }

    /// A trial that was dropped proved nothing: the next call tries.
    fn abandoned(&self) {
        self.state.lock().trying = false;
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("backend", &self.backend)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// A call that was let through; it must say how it went, or counts as not made.
pub(super) struct Permit<'a> {
    health: &'a Health,
    trial: bool,
    noted: bool,
}

impl Permit<'_> {
    pub(super) fn succeeded(mut self) {
        self.noted = true;
        self.health.succeeded();
    }

    pub(super) fn failed(mut self, error: &Error) {
        self.noted = true;
        self.health.failed(self.trial, error);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.trial && !self.noted {
            self.health.abandoned();
        }
    }
}
