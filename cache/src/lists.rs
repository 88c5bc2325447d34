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

    /// Up to `count` objects that follow `key` in its directory and have the same extension, as far as
    /// listings have shown.
    pub(crate) fn following(&self, key: &ObjectKey, count: usize) -> Vec<(ObjectKey, ObjectMeta)> {
        let (directory, name) = split(key.as_str());
        let extension = name.rsplit_once('.').map(|(_, e)| e);
        let pages = self.pages.lock();
        let mut found: Vec<(ObjectKey, ObjectMeta)> = Vec::new();
        let mut after = key.clone();
        while found.len() < count {
            // The page that names the next key: the one that holds this one, or begins behind it.
            let place = |held: &Held| {
                let entries = &held.page.entries;
                let next = entries.partition_point(|e| e.key.as_str() <= after.as_str());
                entries.get(next).map(|e| (e.key.clone(), Arc::clone(&held.page), next))
            };
            let nearest = pages.held.values().filter_map(place).min_by(|a, b| a.0.cmp(&b.0));
            let Some((_, page, next)) = nearest else { break };
            let mut left = false;
            for entry in &page.entries[next..] {
                let (its_directory, its_name) = split(entry.key.as_str());
                if its_directory != directory {
                    left = true;
                    break;
                }
                if its_name.rsplit_once('.').map(|(_, e)| e) == extension {
                    found.push((entry.key.clone(), entry.meta.clone()));
                    if found.len() == count {
                        break;
                    }
                }
                after = entry.key.clone();
            }
            if left {
                break;
            }
        }
        found
    }

    /// Objects of the key's directory on the page that names the key, those in directories below
    /// included; 0 where no listing has shown it.
    pub(crate) fn siblings(&self, key: &ObjectKey) -> usize {
        let (_, name) = split(key.as_str());
        let prefix = &key.as_str()[..key.as_str().len() - name.len()];
        let pages = self.pages.lock();
        let within = |held: &Held| {
            let entries = &held.page.entries;
            entries.binary_search_by(|e| e.key.as_str().cmp(key.as_str())).ok()?;
            let from = entries.partition_point(|e| e.key.as_str() < prefix);
            Some(entries[from..].partition_point(|e| e.key.as_str().starts_with(prefix)))
        };
        pages.held.values().find_map(within).unwrap_or(0)
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
    async fn what_follows_is_in_the_same_directory_and_of_the_same_kind() {
        let lists = ListCache::new(100);
        let keys = ["d/0.tar", "d/1.tar", "d/2.idx", "d/3.tar"];
        lists.put(&ListRequest::default(), 0, Instant::now(), page(&keys));
        let request = ListRequest { prefix: "next".into(), ..ListRequest::default() };
        lists.put(&request, 0, Instant::now(), page(&["d/4.tar", "d/5.tar", "e/0.tar"]));
        let after = |key: &str, count: usize| -> Vec<String> {
            let found = lists.following(&ObjectKey::new(key).unwrap(), count);
            found.into_iter().map(|(key, _)| key.to_string()).collect()
        };
        assert_eq!(after("d/0.tar", 1), ["d/1.tar"]);
        assert_eq!(after("d/1.tar", 2), ["d/3.tar", "d/4.tar"], "over the end of a page");
        assert_eq!(after("d/3.tar", 9), ["d/4.tar", "d/5.tar"]);
        assert_eq!(after("e/0.tar", 1), [""; 0]);
        assert_eq!(after("x", 1), [""; 0]);
    }
}
