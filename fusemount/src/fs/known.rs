//! What has been seen of names, so that a lookup after a listing costs no listing.
//!
//! Invariant: what is older than the time-to-live is a hint and never an answer; only names that
//! exist are held, so that a new object is visible at once. At most [`MAX_KNOWN`] names are held;
//! beyond that the directories that were learned first are dropped whole.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::survey::Survey;
use crate::nodes::{EntryKind, NodeId};

/// Names held at once, some 35 MiB: twice the directories of 100,000 entries that are promised to
/// cost one listing.
const MAX_KNOWN: usize = 200_000;

/// What is known of a name.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// Seen within the time-to-live; a file may have another version by now.
    Fresh(EntryKind),
    /// Seen before that.
    Hint(EntryKind),
    /// Never seen, or not held any more.
    Nothing,
}

#[derive(Debug)]
struct Seen {
    kind: EntryKind,
    at: Instant,
}

#[derive(Debug, Default)]
struct Names {
    /// Which entry of `order` is this one.
    turn: u64,
    seen: HashMap<Arc<str>, Seen>,
    survey: Survey,
}

#[derive(Debug, Default)]
struct State {
    directories: HashMap<NodeId, Names>,
    /// Directories in the order in which they were learned first. Entries whose turn is not that
    /// of the directory are left over, and are cleared when they are more than the others.
    order: VecDeque<(u64, NodeId)>,
    turns: u64,
    count: usize,
}

/// Names that were seen.
#[derive(Debug)]
pub(crate) struct KnownNames {
    ttl: Duration,
    limit: usize,
    state: Mutex<State>,
}

impl KnownNames {
    /// Nothing known yet.
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, limit: MAX_KNOWN, state: Mutex::default() }
    }

    /// What is known of a name.
    pub(crate) fn get(&self, directory: NodeId, name: &str) -> Known {
        let mut state = self.state.lock();
        let known = state.directories.get_mut(&directory);
        let seen = known.and_then(|known| {
            known.survey.looked_up();
            known.seen.get(name)
        });
        match seen {
            None => Known::Nothing,
            Some(seen) if seen.at.elapsed() < self.ttl => Known::Fresh(seen.kind.clone()),
            Some(seen) => Known::Hint(seen.kind.clone()),
        }
    }

    /// Remembers a name.
    pub(crate) fn learn(&self, directory: NodeId, name: &Arc<str>, kind: EntryKind) {
        let entry = [(Arc::clone(name), kind)];
        self.state.lock().learn(directory, Instant::now(), entry, self.limit);
    }

    /// Remembers names of a listing that was asked for at `at`; its first page replaces all that
    /// was known.
    pub(crate) fn learn_page(
        &self,
        directory: NodeId,
        first: bool,
        at: Instant,
        entries: impl IntoIterator<Item = (Arc<str>, EntryKind)>,
    ) {
        let mut state = self.state.lock();
        if first {
            state.forget(directory);
        }
        state.learn(directory, at, entries, self.limit);
    }

    /// The survey of a directory, changed or looked at.
    pub(crate) fn survey<T>(&self, directory: NodeId, with: impl FnOnce(&mut Survey) -> T) -> T {
        with(&mut self.state.lock().names(directory).survey)
    }

    /// How long a name is believed.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Drops a name that is gone.
    pub(crate) fn unlearn(&self, directory: NodeId, name: &str) {
        let mut state = self.state.lock();
        let known = state.directories.get_mut(&directory);
        if known.and_then(|known| known.seen.remove(name)).is_some() {
            state.count -= 1;
        }
    }

    /// Drops a directory that nobody knows any more.
    pub(crate) fn forget(&self, directory: NodeId) {
        self.state.lock().forget(directory);
    }
}

impl State {
    fn names(&mut self, directory: NodeId) -> &mut Names {
        let (order, turns) = (&mut self.order, &mut self.turns);
        self.directories.entry(directory).or_insert_with(|| {
            *turns += 1;
            order.push_back((*turns, directory));
            Names { turn: *turns, ..Names::default() }
        })
    }

    fn learn(
        &mut self,
        directory: NodeId,
        at: Instant,
        entries: impl IntoIterator<Item = (Arc<str>, EntryKind)>,
        limit: usize,
    ) {
        let mut added = 0;
        let known = self.names(directory);
        for (name, kind) in entries {
            if known.seen.insert(name, Seen { kind, at }).is_none() {
                added += 1;
            }
        }
        self.count += added;
        while self.count > limit {
            let Some((turn, oldest)) = self.order.pop_front() else { break };
            if self.directories.get(&oldest).is_some_and(|known| known.turn == turn) {
                self.forget(oldest);
            }
        }
        if self.order.len() > 2 * self.directories.len() + 64 {
            let directories = &self.directories;
            self.order.retain(|(turn, id)| directories.get(id).is_some_and(|k| k.turn == *turn));
        }
    }

    fn forget(&mut self, directory: NodeId) {
        let known = self.directories.remove(&directory);
        self.count -= known.map_or(0, |known| known.seen.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(range: std::ops::Range<usize>) -> impl Iterator<Item = (Arc<str>, EntryKind)> {
        range.map(|i| (format!("n{i}").into(), EntryKind::Directory))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_becomes_a_hint() {
        let known = KnownNames::new(Duration::from_secs(5));
        known.learn_page(NodeId(7), true, Instant::now(), names(0..2));
        assert!(matches!(known.get(NodeId(7), "n1"), Known::Fresh(_)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(matches!(known.get(NodeId(7), "n1"), Known::Hint(_)));
        known.unlearn(NodeId(7), "n1");
        assert!(matches!(known.get(NodeId(7), "n1"), Known::Nothing));
        known.learn_page(NodeId(7), true, Instant::now(), names(5..6));
        assert!(matches!(known.get(NodeId(7), "n0"), Known::Nothing));
        assert_eq!(known.state.lock().count, 1);
    }

    #[tokio::test]
    async fn the_oldest_directories_make_room() {
        let known = KnownNames { limit: 10, ..KnownNames::new(Duration::from_secs(5)) };
        for directory in 2..6 {
            known.learn_page(NodeId(directory), true, Instant::now(), names(0..4));
        }
        assert!(matches!(known.get(NodeId(2), "n0"), Known::Nothing));
        assert!(matches!(known.get(NodeId(5), "n0"), Known::Fresh(_)));
        assert_eq!(known.state.lock().count, 8);
        // One directory larger than the bound holds nothing rather than too much.
        known.learn_page(NodeId(9), true, Instant::now(), names(0..11));
        assert_eq!(known.state.lock().count, 0);
        for round in 0..1000 {
            known.learn_page(NodeId(round), true, Instant::now(), names(0..1));
            known.forget(NodeId(round));
            known.learn_page(NodeId(4), true, Instant::now(), names(0..1));
        }
        assert!(known.state.lock().order.len() < 100);
        assert_eq!(known.state.lock().count, 1);
    }
}
