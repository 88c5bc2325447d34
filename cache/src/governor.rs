//! One bound for the bytes of this process that lie in no tier: fetches on their way, what is fetched
//! ahead, bodies of answers, bodies of uploads.
//!
//! Invariant: leases of all kinds together never exceed the total. Demand is served first and in
//! order; a quarter is kept for it, which nobody who can do without, or who waits for a client, may
//! take. So whatever holds leases, a reader's fetch waits only for other readers' fetches, and those
//! end. It refuses to know what the bytes are.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The part of the total that is kept for demand.
const RESERVED_PART: u64 = 4;

/// Who waits for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// A reader waits for the bytes.
    Demand,
    /// A client sends bytes, as slowly as it likes.
    Upload,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    granted: oneshot::Sender<Lease>,
}

#[derive(Debug, Default)]
struct State {
    leased: u64,
    demand: VecDeque<Waiter>,
    uploads: VecDeque<Waiter>,
}

/// Hands out leases of memory. Waiters are bounded by what asks: permits of origins, connections.
#[derive(Debug)]
pub struct Governor {
    total: u64,
    state: Mutex<State>,
}

/// Bytes that may be held; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    governor: Arc<Governor>,
    bytes: u64,
}

impl Governor {
    /// A bound of so many bytes.
    pub fn new(total_bytes: u64) -> Arc<Self> {
        Arc::new(Self { total: total_bytes.max(1), state: Mutex::default() })
    }

    /// Most bytes that can be leased at once.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Bytes that are leased now.
    pub fn leased_bytes(&self) -> u64 {
        self.state.lock().leased
    }

    /// A lease for a fetch that a reader waits for. One that is larger than the total is cut to it.
    pub(crate) async fn demand(self: &Arc<Self>, bytes: u64) -> Lease {
        self.wait(Claim::Demand, bytes).await
    }

    /// A lease for the window of an upload; waits while there is none. Dropping the future gives up.
    pub async fn upload(self: &Arc<Self>, bytes: u64) -> Lease {
        self.wait(Claim::Upload, bytes.min(self.open_to_all())).await
    }

    /// A lease for what can be done without: fetching ahead, a wider window of a body. `None` where that
    /// would touch what is kept for demand, or go before somebody who waits.
    pub(crate) fn extra(self: &Arc<Self>, bytes: u64) -> Option<Lease> {
        let mut state = self.state.lock();
        let waited_for = !state.demand.is_empty() || !state.uploads.is_empty();
        if waited_for || state.leased.saturating_add(bytes) > self.open_to_all() {
            return None;
        }
        state.leased += bytes;
        Some(Lease { governor: Arc::clone(self), bytes })
    }

    /// Bytes that an extra lease could take now.
    pub(crate) fn extra_bytes(&self) -> u64 {
        self.open_to_all().saturating_sub(self.state.lock().leased)
    }

    fn open_to_all(&self) -> u64 {
        self.total - self.total / RESERVED_PART
    }

    async fn wait(self: &Arc<Self>, claim: Claim, bytes: u64) -> Lease {
        let bytes = bytes.min(self.total);
        let (granted, wait) = oneshot::channel();
        {
            let mut state = self.state.lock();
            let queue = match claim {
                Claim::Demand => &mut state.demand,
                Claim::Upload => &mut state.uploads,
            };
            queue.push_back(Waiter { bytes, granted });
        }
        self.grant();
        wait.await.expect("the governor keeps every sender until it sends")
    }

    /// Hands out what is free, demand first.
    fn grant(self: &Arc<Self>) {
        loop {
            let (waiter, lease) = {
                let mut state = self.state.lock();
                // Those who gave up hold nothing back.
                while state.demand.front().is_some_and(|w| w.granted.is_closed()) {
                    state.demand.pop_front();
                }
                while state.uploads.front().is_some_and(|w| w.granted.is_closed()) {
                    state.uploads.pop_front();
                }
                let leased = state.leased;
                let fits =
                    |waiter: &Waiter, limit: u64| leased.saturating_add(waiter.bytes) <= limit;
                let next = match (state.demand.front(), state.uploads.front()) {
                    (Some(waiter), _) if fits(waiter, self.total) => state.demand.pop_front(),
                    (None, Some(waiter)) if fits(waiter, self.open_to_all()) => {
                        state.uploads.pop_front()
                    }
                    _ => return,
                };
                let Some(waiter) = next else { return };
                state.leased += waiter.bytes;
                let lease = Lease { governor: Arc::clone(self), bytes: waiter.bytes };
                (waiter, lease)
            };
            // One that left just now drops the lease here, outside the lock.
            drop(waiter.granted.send(lease));
        }
    }
}

impl Lease {
    /// Gives back a part of it.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        drop(self.split(bytes));
    }

    /// A lease of its own for a part of it.
    pub(crate) fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { governor: Arc::clone(&self.governor), bytes }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.governor.state.lock().leased -= self.bytes;
            self.governor.grant();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    #[test]
    fn demand_goes_first_and_a_quarter_is_kept_for_it() {
        let governor = Governor::new(100);
        let ahead = governor.extra(75).unwrap();
        assert!(governor.extra(1).is_none(), "the rest is for demand");
        let first = governor.demand(25).now_or_never().expect("what is kept is there");
        let mut upload = Box::pin(governor.upload(10));
        assert!(upload.as_mut().now_or_never().is_none());
        let mut second = Box::pin(governor.demand(30));
        assert!(second.as_mut().now_or_never().is_none());
        drop(ahead);
        let second = second.now_or_never().expect("room for it");
        let upload = upload.now_or_never().expect("and then for the upload");
        assert_eq!(governor.leased_bytes(), 65);
        drop((first, second, upload));
        assert_eq!(governor.leased_bytes(), 0);
    }

    #[test]
    fn whoever_gives_up_or_asks_for_too_much_blocks_nobody() {
        let governor = Governor::new(100);
        let held = governor.demand(1000).now_or_never().expect("cut to the total");
        let mut left = Box::pin(governor.demand(50));
        assert!(left.as_mut().now_or_never().is_none());
        let mut stays = Box::pin(governor.demand(60));
        assert!(stays.as_mut().now_or_never().is_none());
        assert!(governor.extra(0).is_none(), "nothing goes before those who wait");
        drop(left);
        drop(held);
        let mut stays = stays.now_or_never().expect("the one before it has left");
        stays.shrink(20);
        assert_eq!((governor.leased_bytes(), governor.extra_bytes()), (40, 35));
    }

    proptest! {
        #[test]
        fn never_more_than_the_total(calls in proptest::collection::vec((0u8..4, 1u64..200), 1..200)) {
            let governor = Governor::new(256);
            let mut held: Vec<Lease> = Vec::new();
            let mut waiting = Vec::new();
            for (call, bytes) in calls {
                match call {
                    0 => waiting.push(Box::pin({
                        let governor = Arc::clone(&governor);
                        async move { governor.demand(bytes).await }
                    }) as futures::future::BoxFuture<'static, Lease>),
                    1 => waiting.push(Box::pin({
                        let governor = Arc::clone(&governor);
                        async move { governor.upload(bytes).await }
                    })),
                    2 => held.extend(governor.extra(bytes)),
                    _ => drop((!held.is_empty()).then(|| held.remove(0))),
                }
                let mut still = Vec::new();
                for mut wait in waiting {
                    match wait.as_mut().now_or_never() {
                        Some(lease) => held.push(lease),
                        None => still.push(wait),
                    }
                }
                waiting = still;
                prop_assert!(governor.leased_bytes() <= 256);
            }
            // With everything given back, everyone who waits is served in the end.
            for _ in 0..400 {
                held.clear();
                let mut still = Vec::new();
                for mut wait in waiting {
                    match wait.as_mut().now_or_never() {
                        Some(lease) => held.push(lease),
                        None => still.push(wait),
                    }
                }
                waiting = still;
                if waiting.is_empty() {
                    break;
                }
            }
            prop_assert!(waiting.is_empty());
        }
    }
}
