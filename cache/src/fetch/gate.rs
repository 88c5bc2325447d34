//! Permits to ask an origin: demand before prefetch.
//!
//! Invariant: at most `limit` permits are out, at most `limit - reserved` of them granted to
//! prefetches, and no prefetch is granted one while demand waits. What began as a prefetch and is
//! then demanded moves to the front at once. Waiters are bounded by what asks for them: windows of
//! readers and the prefetch budget.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Who waits for a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A reader.
    Demand,
    /// Nobody yet.
    Prefetch,
}

/// How urgent one fetch is; it can only become more so.
#[derive(Debug, Clone)]
pub(crate) struct Urgency(Arc<AtomicBool>);

impl Urgency {
    pub(crate) fn new(priority: Priority) -> Self {
        Self(Arc::new(AtomicBool::new(priority == Priority::Demand)))
    }

    pub(crate) fn is_demand(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Someone waits now. True when nobody did before.
    pub(crate) fn demand(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

#[derive(Debug)]
struct Waiter {
    urgency: Urgency,
    granted: oneshot::Sender<Permit>,
}

#[derive(Debug)]
struct State {
    free: usize,
    prefetches: usize,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    prefetch_limit: usize,
}

/// The right to ask; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    prefetch: bool,
}

impl Gate {
    /// A gate of `limit` permits. A quarter of them, at least one where there are two, is kept from
    /// prefetches.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let reserved = (limit / 4).max(usize::from(limit > 1));
        let state = State { free: limit, prefetches: 0, waiting: VecDeque::new() };
        Arc::new(Self { state: Mutex::new(state), prefetch_limit: limit - reserved })
    }

    pub(crate) async fn enter(self: &Arc<Self>, urgency: &Urgency) -> Permit {
        let (granted, wait) = oneshot::channel();
        self.state.lock().waiting.push_back(Waiter { urgency: urgency.clone(), granted });
        self.grant();
        wait.await.expect("the gate keeps every sender until it sends")
    }

    /// Hands out what is free; called when a permit comes back and when urgencies change.
    pub(crate) fn grant(self: &Arc<Self>) {
        loop {
            let (waiter, permit) = {
                let mut state = self.state.lock();
                if state.free == 0 {
                    return;
                }
                let demand = state.waiting.iter().position(|w| w.urgency.is_demand());
                let next = match demand {
                    Some(at) => at,
                    None if state.prefetches < self.prefetch_limit => 0,
                    None => return,
                };
                let Some(waiter) = state.waiting.remove(next) else { return };
                let prefetch = demand.is_none();
                state.free -= 1;
                state.prefetches += usize::from(prefetch);
                (waiter, Permit { gate: Arc::clone(self), prefetch })
            };
            // A waiter that left drops the permit here, outside the lock.
            drop(waiter.granted.send(permit));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.gate.state.lock();
            state.free += 1;
            state.prefetches -= usize::from(self.prefetch);
        }
        self.gate.grant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn demand_goes_first_and_prefetch_never_holds_all() {
        let gate = Gate::new(4);
        let prefetch = || Urgency::new(Priority::Prefetch);
        let demand = Urgency::new(Priority::Demand);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(gate.enter(&prefetch()).await);
        }
        let (fourth, promoted) = (prefetch(), prefetch());
        let mut fourth = Box::pin(gate.enter(&fourth));
        let mut fifth = Box::pin(gate.enter(&promoted));
        assert!(fourth.as_mut().now_or_never().is_none());
        assert!(fifth.as_mut().now_or_never().is_none());
        let urgent = gate.enter(&demand).now_or_never().expect("one permit is kept for demand");
        drop(urgent);
        // Promotion overtakes an older prefetch.
        assert!(promoted.demand());
        gate.grant();
        let fifth = fifth.now_or_never().expect("promoted");
        assert!(fourth.as_mut().now_or_never().is_none());
        drop(fifth);
        held.pop();
        assert!(fourth.now_or_never().is_some());
    }

    #[tokio::test]
    async fn waiters_that_left_leak_nothing() {
        let gate = Gate::new(1);
        let demand = Urgency::new(Priority::Demand);
        let permit = gate.enter(&demand).await;
        for _ in 0..100 {
            assert!(gate.enter(&demand).now_or_never().is_none());
        }
        drop(permit);
        assert!(gate.enter(&demand).now_or_never().is_some());
        assert_eq!(gate.state.lock().free, 1);
        assert!(gate.state.lock().waiting.is_empty());
    }
}
