//! What a name in a directory is: a mount path, a directory, a file or nothing.
//!
//! Invariant: a directory exists where keys lie below it or a mount path does; where a key is also
//! the name of a directory, the directory wins (docs/semantics.md). A name that is known to be a
//! file costs one question for its metadata and no listing. That question is always asked: below
//! is a cache that hears of every write through this process, and answers from memory. Names of
//! which nothing is known are looked for in a listing that goes on with every one of them (see
//! `survey`); what that does not show is asked for by name, so that nothing is absent for it.

use std::pin::pin;
use std::sync::Arc;

use futures::future::{Either, select};
use rustix::io::Errno;
use store::{Bucket, Error, ErrorKind, ListRequest, ObjectMeta, Store};
use tokio::time::timeout;

use super::known::Known;
use super::{FileSystem, key_of};
use crate::errno::Result;
use crate::nodes::{Directory, EntryKind, Version};

/// The longest name of a file in bytes, on Linux.
const MAX_NAME_BYTES: usize = 255;

impl FileSystem {
    /// What a name stands for now; a directory, and whatever the store below gives no answer about,
    /// may be what it stood for within the time-to-live.
    pub(super) async fn resolve(&self, parent: &Arc<Directory>, name: &str) -> Result<EntryKind> {
        if parent.is_mount(name) {
            return Ok(EntryKind::Directory);
        }
        let Some(bucket) = &parent.bucket else { return Err(Errno::NOENT.into()) };
        if name.len() > MAX_NAME_BYTES {
            return Err(Errno::NAMETOOLONG.into());
        }
        let key = key_of(parent, name)?;
        let mut known = self.known.get(parent.id, name);
        if !matches!(known, Known::Fresh(_)) && self.look_around(parent, bucket, name).await {
            known = self.known.get(parent.id, name);
        }
        let found = match known {
            Known::Fresh(EntryKind::Directory) => return Ok(EntryKind::Directory),
            Known::Fresh(seen) => {
                match timeout(self.options.patience, bucket.store.stat(&key)).await {
                    Ok(Ok(meta)) if file(&meta) == seen => return Ok(seen),
                    Ok(Ok(meta)) => Some(file(&meta)),
                    Ok(Err(error)) if is_absent(&error) => self.ask(parent, bucket, name).await?,
                    // What was seen within the time-to-live may be answered.
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "a known file is believed without its metadata");
                        return Ok(seen);
                    }
                    Err(_) => return Ok(seen),
                }
            }
            Known::Hint(EntryKind::File(_)) => match bucket.store.stat(&key).await {
                Ok(meta) => Some(file(&meta)),
                Err(error) if is_absent(&error) => self.ask(parent, bucket, name).await?,
                Err(error) => return Err(error.into()),
            },
            Known::Hint(EntryKind::Directory) | Known::Nothing => {
                self.ask(parent, bucket, name).await?
            }
        };
        if let Some(kind) = found {
            self.known.learn(parent.id, &name.into(), kind.clone());
            Ok(kind)
        } else {
            self.known.unlearn(parent.id, name);
            Err(Errno::NOENT.into())
        }
    }

    /// Asks the origin: for the object, and for keys below it, at once.
    async fn ask(
        &self,
        parent: &Directory,
        bucket: &Bucket,
        name: &str,
    ) -> Result<Option<EntryKind>> {
        let key = key_of(parent, name)?;
        let below = has_keys_below(&*bucket.store, format!("{key}/"));
        if self.nodes.holds_directory(parent, name) {
            // While the origin is away, a directory that was there is there: what is cached below
            // it can still be reached.
            return match timeout(self.options.patience, below).await {
                Ok(Ok(true)) | Err(_) => Ok(Some(EntryKind::Directory)),
                Ok(Err(error)) if error.kind().is_outage() => Ok(Some(EntryKind::Directory)),
                Ok(Err(error)) => Err(error.into()),
                Ok(Ok(false)) => file_or_nothing(bucket.store.stat(&key).await),
            };
        }
        match select(pin!(bucket.store.stat(&key)), pin!(below)).await {
            Either::Right((Ok(true), _)) => Ok(Some(EntryKind::Directory)),
            Either::Right((Ok(false), head)) => file_or_nothing(head.await),
            Either::Right((Err(error), head)) => match head.await {
                Ok(meta) => Ok(Some(file_despite(&error, &meta))),
                Err(other) if is_absent(&other) => Err(error.into()),
                Err(other) => Err(other.into()),
            },
            Either::Left((Ok(meta), below)) => {
                Ok(match timeout(self.options.patience, below).await {
                    Ok(Ok(true)) => Some(EntryKind::Directory),
                    Ok(Ok(false)) | Err(_) => Some(file(&meta)),
                    Ok(Err(error)) => Some(file_despite(&error, &meta)),
                })
            }
            Either::Left((Err(error), below)) => match below.await {
                Ok(true) => Ok(Some(EntryKind::Directory)),
                Ok(false) => file_or_nothing(Err(error)),
                Err(other) if is_absent(&error) => Err(other.into()),
                Err(_) => Err(error.into()),
            },
        }
    }
}

fn file(meta: &ObjectMeta) -> EntryKind {
    EntryKind::File(Version::from(meta))
}

/// A file is served from the cache, or with a credential that may not list, where a listing fails.
fn file_despite(error: &Error, meta: &ObjectMeta) -> EntryKind {
    tracing::debug!(%error, "cannot tell whether keys lie below a file");
    file(meta)
}

fn file_or_nothing(head: store::Result<ObjectMeta>) -> Result<Option<EntryKind>> {
    match head {
        Ok(meta) => Ok(Some(file(&meta))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// True where the origin has no such object, and where it could not have one.
fn is_absent(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnsupportedKey)
}

/// True when any key begins with `prefix`, also one that cannot be shown.
async fn has_keys_below(store: &dyn Store, prefix: String) -> store::Result<bool> {
    let mut request = ListRequest { prefix, max_keys: 1, ..ListRequest::default() };
    loop {
        let page = store.list(&request).await?;
        if !page.entries.is_empty() || page.skipped > 0 {
            return Ok(true);
        }
        // A page may be empty and still not be the last.
        let Some(token) = page.next else { return Ok(false) };
        request.token = Some(token);
    }
}
