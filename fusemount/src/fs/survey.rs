//! The survey of a directory: its listing, a page at a time, for those who look names up.
//!
//! Invariant: a survey only adds to what is known, and never says that a name is absent: what it
//! does not show is asked for by name, so that a new object is found at once. The first name of
//! which nothing is known costs what it costs without a survey; every further one within the
//! time-to-live takes the listing some pages further, so that whoever opens the files of a directory in
//! any order costs the origin its listing once, and not two questions for every name. Pages are asked
//! for one after another, each by one caller while others wait. It is given up for the time-to-live
//! where a page fails or is slow, and costs no more pages than [`FREE_PAGES`] and one for every
//! [`LOOKUPS_FOR_A_PAGE`] lookups: in a directory of millions, names are seldom on the next page.

use std::sync::Arc;
use std::time::Duration;

use store::{Bucket, ListPage, ListRequest};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::FileSystem;
use super::known::Known;
use super::listing::{Named, merge};
use crate::nodes::Directory;

/// Pages that one lookup waits for, some 0.1 s each: the more, the fewer names are asked for by
/// themselves before all are known.
const PAGES_FOR_A_LOOKUP: usize = 4;

/// Pages that need not have been worth it: a directory of 64,000 entries, each of 1,000.
const FREE_PAGES: u64 = 64;

/// Lookups in the directory that are worth one page more.
const LOOKUPS_FOR_A_PAGE: u64 = 4;

/// A page that takes longer is no cheaper than asking for names.
const SLOW_PAGE: Duration = Duration::from_secs(1);

/// Where a listing goes on.
#[derive(Debug, Clone, Default)]
enum Next {
    #[default]
    First,
    Page(String),
    /// It has ended, or was given up.
    Nothing,
}

/// How far the listing of a directory has come.
#[derive(Debug)]
pub(crate) struct Survey {
    /// When the first unknown name was asked for.
    began: Option<Instant>,
    next: Next,
    /// Files that the next page decides about: it may show directories of their names.
    held: Vec<Named>,
    pages: u64,
    lookups: u64,
    /// Who has its permit asks for the next page.
    turn: Arc<Semaphore>,
}

impl Default for Survey {
    fn default() -> Self {
        Self {
            began: None,
            next: Next::First,
            held: Vec::new(),
            pages: 0,
            lookups: 0,
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Survey {
    /// A name was looked up, known or not.
    pub(crate) fn looked_up(&mut self) {
        self.lookups += 1;
    }

    /// A name is not known. Who asks for pages has the permit of what this returns; `None` where the
    /// name is to be asked for by itself.
    fn unknown(&mut self, ttl: Duration) -> Option<Arc<Semaphore>> {
        if self.began.is_none_or(|began| began.elapsed() >= ttl) {
            // Pages that are being asked for belong to the survey before.
            *self = Self { began: Some(Instant::now()), ..Self::default() };
            return None;
        }
        self.goes_on().then(|| Arc::clone(&self.turn))
    }

    fn goes_on(&self) -> bool {
        let worth = FREE_PAGES + self.lookups / LOOKUPS_FOR_A_PAGE;
        !matches!(self.next, Next::Nothing) && self.pages < worth
    }

    /// The page to ask for now, with what it decides about.
    fn step(&mut self, turn: &Arc<Semaphore>) -> Option<(Option<String>, Vec<Named>)> {
        if !Arc::ptr_eq(&self.turn, turn) || !self.goes_on() {
            return None;
        }
        self.pages += 1;
        match &self.next {
            Next::First => Some((None, self.held.clone())),
            Next::Page(token) => Some((Some(token.clone()), self.held.clone())),
            Next::Nothing => None,
        }
    }

    /// The page has come.
    fn came(&mut self, turn: &Arc<Semaphore>, next: Next, held: Vec<Named>) {
        if Arc::ptr_eq(&self.turn, turn) {
            self.next = next;
            self.held = held;
        }
    }
}

impl FileSystem {
    /// Looks for a name in what a listing shows next. True where the name may be known now.
    pub(super) async fn look_around(
        &self,
        parent: &Directory,
        bucket: &Bucket,
        name: &str,
    ) -> bool {
        let ttl = self.known.ttl();
        let Some(turn) = self.known.survey(parent.id, |survey| survey.unknown(ttl)) else {
            return false;
        };
        for _ in 0..PAGES_FOR_A_LOOKUP {
            let before = self.known.survey(parent.id, |survey| survey.pages);
            let Ok(Ok(_permit)) = timeout(self.options.patience, turn.acquire()).await else {
                return false;
            };
            if self.known.survey(parent.id, |survey| survey.pages) != before {
                // Others have asked for a page meanwhile.
                if matches!(self.known.get(parent.id, name), Known::Fresh(_)) {
                    return true;
                }
                continue;
            }
            let step = self.known.survey(parent.id, |survey| survey.step(&turn));
            let Some((token, held)) = step else { return false };
            let asked = Instant::now();
            let page = self.page_of(parent, bucket, token).await;
            let Some(page) = page else {
                self.known.survey(parent.id, |s| s.came(&turn, Next::Nothing, Vec::new()));
                return false;
            };
            let (entries, held) = merge(parent, &page, &held);
            let shown = entries.iter().any(|entry| *entry.name == *name);
            let next = match page.next {
                Some(token) if asked.elapsed() < SLOW_PAGE => Next::Page(token),
                _ => Next::Nothing,
            };
            let entries = entries.into_iter().map(|entry| (entry.name, entry.kind));
            self.known.learn_page(parent.id, false, asked, entries);
            self.known.survey(parent.id, |survey| survey.came(&turn, next, held));
            if shown {
                return true;
            }
        }
        false
    }

    /// One page, asked for as a reader of the directory asks, so that both share it in a cache below.
    async fn page_of(
        &self,
        parent: &Directory,
        bucket: &Bucket,
        token: Option<String>,
    ) -> Option<ListPage> {
        let request = ListRequest {
            prefix: parent.prefix.clone(),
            delimiter: Some("/".into()),
            start_after: None,
            token,
            max_keys: self.options.page_entries,
        };
        let answer = timeout(self.options.patience, bucket.store.list(&request)).await;
        let page = answer.ok()?;
        page.inspect_err(|error| tracing::debug!(%error, "names are asked for by themselves")).ok()
    }
}
