//! Where an event loop runs: on the processor of the one thread that asks, while only one asks.
//!
//! Invariant: a loop is bound to one processor only while all requests of the mount that tell who asks
//! come from one thread and none moves data; the first other request that it reads frees it before
//! that is answered. Who asks waits meanwhile, so its processor is free; waking another one costs
//! more than the answer, in a virtual machine several times as much. Binding is never needed: what
//! the kernel refuses is not tried again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Requests in a row before one thread counts as the only one: a handful of files opened in turn.
const ALONE_AFTER: u32 = 16;

/// Requests between two looks at where the thread is; a look costs a few microseconds.
const LOOK_EVERY: u32 = 64;

/// No processor.
const ANYWHERE: u64 = u64::MAX;

/// Who asks in a mount; shared by its loops.
#[derive(Debug)]
pub(super) struct Asker {
    /// The thread in the upper half; in the lower half its requests since any other's, which stop
    /// at [`u32::MAX`].
    run: AtomicU64,
    /// Where it was seen, or [`ANYWHERE`].
    processor: AtomicU64,
    refused: AtomicBool,
}

impl Default for Asker {
    fn default() -> Self {
        Self {
            run: AtomicU64::new(0),
            processor: AtomicU64::new(ANYWHERE),
            refused: AtomicBool::new(false),
        }
    }
}

impl Asker {
    /// A request of a thread, 0 where it is not told. `locate` says on which processor one is.
    fn heard(&self, thread: u32, locate: impl FnOnce(u32) -> Option<u32>) {
        // The kernel's own requests, such as RELEASE, and threads that cannot be seen from here.
        if thread == 0 {
            return;
        }
        // Loops may overwrite each other's count: then it is reached later.
        let run = self.run.load(Ordering::Relaxed);
        let (last, count) = ((run >> 32) as u32, run as u32);
        if last != thread {
            self.run.store(u64::from(thread) << 32 | 1, Ordering::Relaxed);
            self.processor.store(ANYWHERE, Ordering::Relaxed);
            return;
        }
        let count = count.saturating_add(1);
        self.run.store(u64::from(thread) << 32 | u64::from(count), Ordering::Relaxed);
        if count >= ALONE_AFTER && (count - ALONE_AFTER).is_multiple_of(LOOK_EVERY) {
            let processor = locate(thread).map_or(ANYWHERE, u64::from);
            self.processor.store(processor, Ordering::Relaxed);
        }
    }

    /// Data moves: whoever asks works while it does, and so may others.
    fn moves_data(&self) {
        self.run.store(0, Ordering::Relaxed);
        self.processor.store(ANYWHERE, Ordering::Relaxed);
    }

    fn processor(&self) -> Option<u32> {
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        u32::try_from(self.processor.load(Ordering::Relaxed)).ok()
    }
}

/// What a request says of where its loop should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its thread waits for a short answer.
    Short,
    /// Its answer is data.
    Data,
}

/// Where one loop runs. A clone is the seat of another loop.
#[derive(Debug, Default)]
pub(super) struct Seat {
    bound: Mutex<Option<Bound>>,
}

#[derive(Debug)]
struct Bound {
    processor: u32,
    /// Where the loop might run before.
    before: CpuSet,
}

impl Clone for Seat {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Seat {
    /// To be called by the loop that read a request, before the answer.
    pub(super) fn take(&self, asker: &Asker, thread: u32, kind: Kind) {
        match kind {
            Kind::Short => asker.heard(thread, processor_of),
            Kind::Data => asker.moves_data(),
        }
        let wanted = asker.processor();
        let mut bound = self.bound.lock();
        if bound.as_ref().map(|bound| bound.processor) == wanted {
            return;
        }
        let before = match bound.take() {
            Some(bound) => Ok(bound.before),
            None => sched_getaffinity(None),
        };
        let moved = before.and_then(|before| {
            let Some(processor) = wanted.filter(|at| is_set(&before, *at)) else {
                return sched_setaffinity(None, &before);
            };
            let mut only = CpuSet::new();
            only.set(processor as usize);
            *bound = Some(Bound { processor, before });
            sched_setaffinity(None, &only)
        });
        if let Err(error) = moved {
            tracing::debug!(%error, "event loops stay where the kernel puts them");
            asker.refused.store(true, Ordering::Relaxed);
        }
    }
}

/// Lets the calling thread run wherever the process may: a thread that a bound loop began is bound as
/// well, so each thread that may be begun by one calls this first.
pub fn unbind_thread() {
    let process = rustix::process::getpid();
    // Of the first thread, which is no loop. Without it the thread is slower, and right.
    let _ = sched_getaffinity(Some(process)).and_then(|all| sched_setaffinity(None, &all));
}

fn is_set(set: &CpuSet, processor: u32) -> bool {
    (processor as usize) < CpuSet::MAX_CPU && set.is_set(processor as usize)
}

/// The processor that a thread was on last; `None` where it cannot be seen.
fn processor_of(thread: u32) -> Option<u32> {
    // Of the thread alone: the file of its process adds up all threads.
    let stat = std::fs::read_to_string(format!("/proc/{thread}/task/{thread}/stat")).ok()?;
    parse(&stat)
}

fn parse(stat: &str) -> Option<u32> {
    // The name may hold anything; the third field follows it, and the processor is the 39th.
    stat.rsplit_once(") ")?.1.split(' ').nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(asker: &Asker, thread: u32, times: u32, at: u32) {
        for _ in 0..times {
            asker.heard(thread, |_| Some(at));
        }
    }

    #[test]
    fn only_one_that_asks_alone_is_followed() {
        let asker = Asker::default();
        hear(&asker, 7, ALONE_AFTER - 1, 3);
        assert_eq!(asker.processor(), None);
        asker.heard(0, |_| panic!("looked for nobody"));
        hear(&asker, 7, 1, 3);
        assert_eq!(asker.processor(), Some(3));
        hear(&asker, 7, LOOK_EVERY - 1, 5);
        assert_eq!(asker.processor(), Some(3), "looked too often");
        hear(&asker, 7, 1, 5);
        assert_eq!(asker.processor(), Some(5));
        hear(&asker, 8, 1, 5);
        assert_eq!(asker.processor(), None);
        for _ in 0..100 {
            hear(&asker, 7, 1, 3);
            hear(&asker, 8, 1, 3);
            assert_eq!(asker.processor(), None);
        }
        hear(&asker, 8, ALONE_AFTER, 4);
        assert_eq!(asker.processor(), Some(4));
        asker.moves_data();
        assert_eq!(asker.processor(), None);
        hear(&asker, 8, ALONE_AFTER - 1, 4);
        assert_eq!(asker.processor(), None);
    }

    #[test]
    fn a_loop_is_bound_and_freed() {
        // In a thread of its own, which is thrown away.
        let loops = std::thread::spawn(|| {
            let all = sched_getaffinity(None).unwrap();
            let (asker, seat) = (Asker::default(), Seat::default());
            let own = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
            for _ in 0..ALONE_AFTER {
                seat.take(&asker, own, Kind::Short);
            }
            let bound = sched_getaffinity(None).unwrap();
            assert_eq!(bound.count(), 1);
            assert!(is_set(&all, asker.processor().unwrap()));
            // A loop beside it follows with its next request, whoever asks for that.
            let (asker, other) = (&asker, seat.clone());
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    other.take(asker, 0, Kind::Short);
                    assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
                });
            });
            seat.take(asker, own, Kind::Data);
            assert!(sched_getaffinity(None).unwrap() == all);
            // Where the kernel does not let it, it stays.
            asker.processor.store(CpuSet::MAX_CPU as u64 + 1, Ordering::Relaxed);
            seat.take(asker, 0, Kind::Short);
            assert!(sched_getaffinity(None).unwrap() == all);
        });
        loops.join().unwrap();
    }

    #[test]
    fn the_processor_of_a_thread_is_read() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("12 (a ) b) S {}\n", fields.join(" "));
        assert_eq!(parse(&stat), Some(39));
        assert_eq!(parse("12 (a) S 1"), None);
        assert_eq!(processor_of(u32::MAX), None);
    }
}
