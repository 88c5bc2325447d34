//! Pages of listings, so that a directory that was listed is listed again without the origin.
//!
//! Invariant: a page is used only in the epoch in which it was asked for; any write through the
//! store ends the epoch of all its pages. Bounded by the objects in the pages, oldest first out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use store::{ListPage, ListRequest, ObjectKey, ObjectMeta};
use tokio::time::Instant;

use crate::metadata::OUTAGE_BACKOFF;

/// A page counts as this many entries more than it has, so that empty pages are bounded too.
const PAGE_COST: usize = 8;

#[derive(Debug, Clone)]
struct Held {
    page: Arc<ListPage>,
    asked: Instant,
    epoch: u64,
    /// The origin gave no answer: not asked again before.
    retry_at: Option<Instant>,
}

/// A page that is held.
#[derive(Debug, Clone)]
pub(crate) struct HeldPage {
    pub(crate) page: Arc<ListPage>,
    /// Since the origin was asked.
    pub(crate) age: Duration,
    /// The origin gave no answer a moment ago.
    pub(crate) backing_off: bool,
}

#[derive(Debug, Default)]
struct Pages {
    held: HashMap<ListRequest, Held>,
    order: VecDeque<ListRequest>,
    entries: usize,
}

#[derive(Debug)]
pub(crate) struct ListCache {
    pages: Mutex<Pages>,
    limit: usize,
}

fn cost(page: &ListPage) -> usize {
    page.entries.len() + page.common_prefixes.len() + PAGE_COST
}

impl ListCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { pages: Mutex::default(), limit }
    }

    /// The page, if it was asked for in this epoch.
    pub(crate) fn get(&self, request: &ListRequest, epoch: u64) -> Option<HeldPage> {
        let pages = self.pages.lock();
        let held = pages.held.get(request).filter(|held| held.epoch == epoch)?;
        Some(HeldPage {
            page: Arc::clone(&held.page),
            age: held.asked.elapsed(),
            backing_off: held.retry_at.is_some_and(|at| Instant::now() < at),
        })
    }

    /// The origin gave no answer about this page: do not ask again for a moment.
    pub(crate) fn back_off(&self, request: &ListRequest) {
        if let Some(held) = self.pages.lock().held.get_mut(request) {
            held.retry_at = Some(Instant::now() + OUTAGE_BACKOFF);
        }
    }

    pub(crate) fn put(
        &self,
        request: &ListRequest,
        epoch: u64,
        asked: Instant,
        page: Arc<ListPage>,
    ) {
        let new = cost(&page);
        if new > self.limit {
            return;
        }
        let mut pages = self.pages.lock();
        pages.entries += new;
        match pages.held.insert(request.clone(), Held { page, asked, epoch, retry_at: None }) {
            Some(old) => pages.entries -= cost(&old.page),
            None => pages.order.push_back(request.clone()),
        }
        while pages.entries > self.limit {
            let Some(oldest) = pages.order.pop_front() else { break };
            if let Some(old) = pages.held.remove(&oldest) {
                pages.entries -= cost(&old.page);
            }
        }
    }

    /// The object that follows `key` in its directory and has the same extension, as far as
    /// listings have shown.
    pub(crate) fn successor(&self, key: &ObjectKey) -> Option<(ObjectKey, ObjectMeta)> {
        let (directory, name) = split(key.as_str());
        let extension = name.rsplit_once('.').map(|(_, e)| e);
        let pages = self.pages.lock();
        pages.held.values().find_map(|held| {
            let entries = &held.page.entries;
            let at = entries.binary_search_by(|e| e.key.as_str().cmp(key.as_str())).ok()?;
            let next = entries.get(at + 1)?;
            let (next_directory, next_name) = split(next.key.as_str());
            let alike = next_directory == directory
                && next_name.rsplit_once('.').map(|(_, e)| e) == extension;
            alike.then(|| (next.key.clone(), next.meta.clone()))
        })
    }
}

fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{ETag, ListEntry};

    fn page(keys: &[&str]) -> Arc<ListPage> {
        let entries = keys.iter().map(|key| ListEntry {
            key: ObjectKey::new(*key).unwrap(),
            meta: ObjectMeta {
                size: 1,
                etag: ETag::parse("x"),
                last_modified: std::time::SystemTime::UNIX_EPOCH,
                attributes: None,
            },
        });
        Arc::new(ListPage { entries: entries.collect(), ..ListPage::default() })
    }

    #[tokio::test]
    async fn pages_end_with_their_epoch_and_are_bounded() {
        let lists = ListCache::new(100);
        let request = |n: usize| ListRequest { prefix: format!("p{n}"), ..ListRequest::default() };
        for n in 0..50 {
            lists.put(&request(n), 0, Instant::now(), page(&["a", "b"]));
        }
        assert!(lists.get(&request(49), 0).is_some());
        assert!(lists.get(&request(49), 1).is_none());
        assert!(lists.get(&request(0), 0).is_none());
        let pages = lists.pages.lock();
        assert!(pages.held.len() <= 10 && pages.order.len() == pages.held.len());
    }

    #[tokio::test]
    async fn the_next_shard_is_in_the_same_directory_and_of_the_same_kind() {
        let lists = ListCache::new(100);
        let keys = ["d/0.tar", "d/1.tar", "d/2.idx", "d/3.tar", "e/0.tar"];
        lists.put(&ListRequest::default(), 0, Instant::now(), page(&keys));
        let after =
            |key: &str| lists.successor(&ObjectKey::new(key).unwrap()).map(|(k, _)| k.to_string());
        assert_eq!(after("d/0.tar").as_deref(), Some("d/1.tar"));
        assert_eq!(after("d/1.tar"), None);
        assert_eq!(after("d/3.tar"), None);
        assert_eq!(after("x"), None);
    }
}
