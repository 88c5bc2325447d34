//! When to stop: Ctrl-C, SIGTERM, or the end of the time that the bench was given.
//!
//! Invariant: whoever loops asks [`Halt::check`] at least once a second, and the first reason to stop
//! stays the reason. It ends nothing itself: that is what [`super::place::Place`] does.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Why a measurement has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The user asked to stop.
    Interrupted,
    /// The time that the bench was given is over.
    OutOfTime,
    /// It cannot be measured; for the user.
    Failed(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted => write!(f, "interrupted"),
            Self::OutOfTime => write!(f, "the time was over"),
            Self::Failed(what) => write!(f, "{what}"),
        }
    }
}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

/// Puts what was being done before an error of the system.
pub(crate) trait During<T> {
    /// The error with `what` in front of it.
    fn during(self, what: impl fmt::Display) -> Result<T, Trouble>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl fmt::Display) -> Result<T, Trouble> {
        self.map_err(|error| Trouble::Failed(format!("{what}: {error}")))
    }
}

/// Shared by everything that may take long; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Halt {
    interrupted: Arc<AtomicBool>,
    deadline: Instant,
}

impl Halt {
    /// Out of time after `limit`.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { interrupted: Arc::default(), deadline: Instant::now() + limit }
    }

    /// The user asked to stop.
    pub(crate) fn interrupt(&self) {
        self.interrupted.store(true, SeqCst);
    }

    /// Whether the user asked to stop.
    pub(crate) fn interrupted(&self) -> bool {
        self.interrupted.load(SeqCst)
    }

    /// The time that is left.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// An error as soon as there is a reason to stop.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        if self.interrupted() {
            return Err(Trouble::Interrupted);
        }
        if self.left().is_zero() { Err(Trouble::OutOfTime) } else { Ok(()) }
    }

    /// Sleeps, unless there is a reason to stop.
    pub(crate) fn sleep(&self, time: Duration) -> Result<(), Trouble> {
        let until = Instant::now() + time;
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Asks `ready` again and again, for at most `limit`.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Result<bool, Trouble>,
    ) -> Result<(), Trouble> {
        let until = Instant::now() + limit;
        while !ready()? {
            if Instant::now() > until {
                let what = format!("{what} within {} s", limit.as_secs());
                return Err(Trouble::Failed(what));
            }
            self.sleep(Duration::from_millis(20))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_told_before_the_end_of_time() {
        let halt = Halt::new(Duration::ZERO);
        assert_eq!(halt.check(), Err(Trouble::OutOfTime));
        halt.interrupt();
        assert_eq!(halt.check(), Err(Trouble::Interrupted));
        assert_eq!(halt.sleep(Duration::from_mins(1)), Err(Trouble::Interrupted));
    }

    #[test]
    fn waiting_ends_with_the_answer_or_the_limit() {
        let halt = Halt::new(Duration::from_mins(1));
        let mut asked = 0;
        let ready = || {
            asked += 1;
            Ok(asked == 3)
        };
        assert_eq!(halt.wait_for("nothing", Duration::from_mins(1), ready), Ok(()));
        let never = halt.wait_for("no answer", Duration::ZERO, || Ok(false));
        assert_eq!(never, Err(Trouble::Failed("no answer within 0 s".to_owned())));
    }
}
