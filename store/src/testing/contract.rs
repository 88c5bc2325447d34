//! The contract of [`Store`], as checks that run against any implementation.
//!
//! Invariant: a check that an origin cannot pass is switched off by a named field of
//! [`Differences`], never by weakening the check; where a difference says "refused", the check
//! asserts the refusal. Every check works below a prefix of its own, so that a store may be
//! shared and a run repeated.

mod lists;
mod reads;
mod uploads;
mod writes;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::FutureExt;

use crate::{Body, ErrorKind, ObjectKey, ObjectMeta, PutOptions, Result, Store, Written};

// Each field is one independent fact about an origin, named where a test sets it.
#[allow(clippy::struct_excessive_bools)]
/// How an origin is known to differ. The default is the full contract.
#[derive(Debug, Clone, Default)]
pub struct Differences {
    /// True for keys that this origin cannot express, and must refuse with
    /// [`ErrorKind::UnsupportedKey`]. `None`: it expresses all.
    pub refused_keys: Option<fn(&str) -> bool>,
    /// An object `x` and objects below `x/` cannot exist together; the second is refused with
    /// [`ErrorKind::Conflict`].
    pub file_hides_directory: bool,
    /// An object `x` keeps objects below `x/` out of listings, although each can be read.
    pub file_hides_listing: bool,
    /// User metadata is not kept.
    pub no_user_metadata: bool,
    /// Content headers other than the type are not kept.
    pub only_content_type: bool,
    /// Not even the content type is kept.
    pub no_attributes: bool,
    /// `Condition::IfMatch` is refused with [`ErrorKind::Unsupported`], or is not looked at.
    pub no_put_if_match: bool,
    /// `Condition::IfAbsent` likewise.
    pub no_put_if_absent: bool,
    /// `delete` with a version likewise.
    pub no_delete_if_match: bool,
    /// The conditions of `complete_upload` likewise.
    pub no_complete_condition: bool,
    /// The conditions of `copy` (on source or destination) likewise.
    pub no_copy_condition: bool,
    /// Uploads in progress cannot be listed: [`ErrorKind::Unsupported`].
    pub no_list_uploads: bool,
    /// Uploads are listed only where the prefix is a whole key.
    pub lists_uploads_by_key: bool,
    /// A copy with attributes replaces the content type and user metadata and keeps other headers.
    pub copy_keeps_headers: bool,
    /// Parts cannot be listed: [`ErrorKind::Unsupported`].
    pub no_list_parts: bool,
    /// The origin does not tell an upload that was aborted from one in progress.
    pub forgets_aborts: bool,
    /// A completion that names a part's wrong tag is accepted.
    pub no_part_tags: bool,
    /// Names are listed in the order of their UTF-16, which differs from byte order where a
    /// character above U+FFFF meets one of U+E000 to U+FFFF.
    pub utf16_order: bool,
    /// Bytes that a part other than the last must have; 0 means any.
    pub min_part_bytes: usize,
}

/// What a run of the contract found.
#[derive(Debug, Default)]
pub struct Report {
    /// Checks that held.
    pub passed: Vec<&'static str>,
    /// Checks that did not, each with what was seen.
    pub failed: Vec<(&'static str, String)>,
}

impl Report {
    /// Panics, naming every failed check, unless all held.
    pub fn assert(&self) {
        assert!(self.failed.is_empty(), "{self}");
        println!("{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "contract: {} held, {} failed", self.passed.len(), self.failed.len())?;
        self.failed.iter().try_for_each(|(name, why)| writeln!(f, "  {name}: {why}"))
    }
}

/// A failed check says what it saw.
type Checked = std::result::Result<(), String>;

type Check = for<'a> fn(&'a Subject) -> Pin<Box<dyn Future<Output = Checked> + Send + 'a>>;

macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds { return Err(format!($($why)+)); }
    };
}
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($why:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            let why = format!($($why)+);
            return Err(format!("{why}: found {left:?}, expected {right:?}"));
        }
    }};
}
use {ensure, ensure_eq};

/// Longest time for one check, so that a hanging origin fails the check instead of the suite.
const CHECK_LIMIT: Duration = Duration::from_mins(2);

/// What a check works on: a store, and a prefix that nobody else uses.
struct Subject {
    store: Arc<dyn Store>,
    differences: Differences,
    prefix: String,
}

impl Subject {
    fn key(&self, rest: &str) -> ObjectKey {
        ObjectKey::new(format!("{}{rest}", self.prefix)).expect("checks use valid keys")
    }

    async fn put(&self, rest: &str, bytes: impl Into<Bytes>) -> Result<Written> {
        self.store.put(&self.key(rest), Body::from(bytes.into()), PutOptions::default()).await
    }

    async fn head(&self, rest: &str) -> Result<ObjectMeta> {
        self.store.head(&self.key(rest)).await
    }
}

/// Bytes in which every position can be told from its neighbours.
fn pattern(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        // xorshift64: cheap, and without a period that a block size could hide.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

fn said(what: &'static str) -> impl FnOnce(crate::Error) -> String {
    move |error| format!("{what} failed: {error:?}")
}

fn kind_of<T>(result: &Result<T>) -> Option<ErrorKind> {
    result.as_ref().err().map(crate::Error::kind)
}

/// Runs every check and reports. The store's runtime must be the caller's.
pub async fn run(store: Arc<dyn Store>, differences: Differences) -> Report {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let nonce = format!("{:x}{run:x}", since.as_millis());
    let mut report = Report::default();
    let all: Vec<(&'static str, Check)> =
        [reads::CHECKS, lists::CHECKS, writes::CHECKS, uploads::CHECKS].concat();
    for (name, check) in all {
        let prefix = format!("c{nonce}/{name}/");
        let subject =
            Subject { store: Arc::clone(&store), differences: differences.clone(), prefix };
        let checked = tokio::time::timeout(CHECK_LIMIT, check(&subject).boxed()).await;
        match checked.unwrap_or_else(|_| Err(format!("no end within {CHECK_LIMIT:?}"))) {
            Ok(()) => report.passed.push(name),
            Err(why) => report.failed.push((name, why)),
        }
    }
    report
}
