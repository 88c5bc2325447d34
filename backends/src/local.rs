//! A directory as a bucket: files are objects, directories are prefixes, and an empty directory is
//! an empty object whose key ends in a slash.
//!
//! Invariant: nothing outside of the root is ever touched, whatever keys and symbolic links say
//! (every path is resolved by the kernel, beneath the root). An object appears whole, by rename.
//! It refuses keys that a path cannot spell.
//!
//! Symbolic links to files beneath the root are objects; links to directories are neither listed
//! nor followed, and links that leave the root are refused. What it must keep for itself
//! (bodies on their way, uploads, attributes that the file system cannot hold) lies below
//! `.warpdrive/`, which no key can name.

mod attributes;
mod list;
mod marker;
mod read;
mod tree;
mod uploads;
mod write;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use rustix::io::Errno;
use store::{
    Body, Condition, CopyOptions, ETag, Error, ErrorKind, GetOptions, GetResult, ListPage,
    ListRequest, ObjectKey, ObjectMeta, PartEntry, PartList, PutOptions, Result, Store, UploadId,
    UploadList, UploadListRequest, Written,
};

use crate::LocalConfig;
use tree::Tree;

/// A bucket in a directory, without retries, timeouts or metrics. Its clones share one state.
#[derive(Clone)]
pub(crate) struct LocalStore {
    shared: Arc<Shared>,
}

/// What the blocking threads work on.
struct Shared {
    root: PathBuf,
    tree: Tree,
    /// Held while a condition is checked and acted upon: within this process a conditional write
    /// is atomic, and a directory that is empty only for a moment (its first file is about to be
    /// named, its last one was just deleted) is not taken for one that stays so. Other programs
    /// that write into the directory are not kept out.
    commit: Mutex<()>,
    /// Listings whose next page has not been asked for yet.
    walks: list::Suspended,
}

/// Opens a directory and returns its identity. Blocks.
pub(crate) fn open(config: &LocalConfig) -> Result<(Arc<dyn Store>, String)> {
    let store = LocalStore::open(&config.root, config.nfs)?;
    let identity = format!("local {}", store.shared.root.display());
    Ok((Arc::new(store), identity))
}

impl LocalStore {
    pub(crate) fn open(root: &Path, nfs: bool) -> Result<Self> {
        let shown = root.display();
        let real = root.canonicalize().map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NoSuchBucket,
                std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unavailable,
            };
            Error::new(kind, format!("directory `{shown}` cannot be opened")).with_source(error)
        })?;
        if !real.is_dir() {
            let context = format!("`{shown}` is no directory");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let tree = Tree::open(&real, nfs)?;
        tree.remove_old_temporaries();
        let (commit, walks) = <(_, list::Suspended)>::default();
        Ok(Self { shared: Arc::new(Shared { root: real, tree, commit, walks }) })
    }

    /// Runs blocking work on a thread that may block. The work is not interrupted when the caller
    /// leaves; each piece of it is small, or one copy within the file system.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        blocking(move || work(&shared)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(ErrorKind::Cancelled, "blocking work ended early").with_source(error)
    })?
}

/// A failed system call on a key.
fn failed(what: &str, key: &str, errno: Errno) -> Error {
    let kind = match errno {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::NOTDIR | Errno::ISDIR | Errno::NOTEMPTY | Errno::BUSY | Errno::TXTBSY => {
            ErrorKind::Conflict
        }
        Errno::ACCESS | Errno::PERM | Errno::XDEV | Errno::LOOP => ErrorKind::PermissionDenied,
        Errno::ROFS => ErrorKind::ReadOnly,
        Errno::NOSPC | Errno::DQUOT => ErrorKind::StorageFull,
        Errno::NAMETOOLONG => ErrorKind::UnsupportedKey,
        Errno::FBIG => ErrorKind::TooLarge,
        Errno::TIMEDOUT => ErrorKind::Timeout,
        Errno::IO
        | Errno::STALE
        | Errno::MFILE
        | Errno::NFILE
        | Errno::NOMEM
        | Errno::AGAIN
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NOTCONN
        | Errno::NODEV => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let why = match errno {
        Errno::XDEV | Errno::LOOP => {
            "; a symbolic link leads out of the directory or through another"
        }
        _ => "",
    };
    Error::new(kind, format!("{what} `{key}`{why}")).with_source(errno)
}

fn failed_io(what: &str, key: &str, error: std::io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(errno) => failed(what, key, errno),
        None => Error::new(ErrorKind::Internal, format!("{what} `{key}`")).with_source(error),
    }
}

fn not_found(key: &ObjectKey) -> Error {
    Error::new(ErrorKind::NotFound, format!("no object `{key}`"))
}

fn failed_condition(key: &ObjectKey) -> Error {
    Error::new(ErrorKind::PreconditionFailed, format!("`{key}` is not in the expected version"))
}

#[async_trait]
impl Store for LocalStore {
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let key = key.clone();
        self.blocking(move |shared| Ok(shared.open_object(&key)?.meta)).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        self.head(key).await
    }

    async fn get(&self, key: &ObjectKey, options: GetOptions) -> Result<GetResult> {
        let wanted = key.clone();
        let object = self.blocking(move |shared| shared.open_object(&wanted)).await?;
        if options.if_match.as_ref().is_some_and(|wanted| *wanted != object.meta.etag) {
            return Err(failed_condition(key));
        }
        let range = options.range.resolve(object.meta.size)?;
        let meta = object.meta.clone();
        Ok(GetResult { meta, range: range.clone(), body: read::body(object, key.clone(), range) })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let request = request.clone();
        self.blocking(move |shared| shared.list(&request)).await
    }

    async fn put(&self, key: &ObjectKey, body: Body, options: PutOptions) -> Result<Written> {
        self.write_object(key, body, options).await
    }

    async fn start_upload(&self, key: &ObjectKey, options: PutOptions) -> Result<UploadId> {
        let key = key.clone();
        self.blocking(move |shared| shared.begin_upload(&key, options.attributes)).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u16,
        body: Body,
    ) -> Result<PartEntry> {
        self.write_part(key, upload, number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(u16, ETag)],
        condition: Condition,
    ) -> Result<Written> {
        let (key, upload, parts) = (key.clone(), upload.clone(), parts.to_vec());
        self.blocking(move |shared| shared.complete(&key, &upload, &parts, &condition)).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let (key, upload) = (key.clone(), upload.clone());
        self.blocking(move |shared| shared.abort(&key, &upload)).await
    }

    async fn list_parts(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        after: Option<u16>,
        max_parts: usize,
    ) -> Result<PartList> {
        let (key, upload) = (key.clone(), upload.clone());
        self.blocking(move |shared| shared.parts(&key, &upload, after, max_parts)).await
    }

    async fn list_uploads(&self, request: &UploadListRequest) -> Result<UploadList> {
        let request = request.clone();
        self.blocking(move |shared| shared.uploads(&request)).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        let (from, to) = (from.clone(), to.clone());
        self.blocking(move |shared| shared.copy(&from, &to, options)).await
    }

    async fn delete(&self, key: &ObjectKey, if_match: Option<&ETag>) -> Result<()> {
        let (key, if_match) = (key.clone(), if_match.cloned());
        self.blocking(move |shared| shared.delete(&key, if_match.as_ref())).await
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore").field("root", &self.shared.root).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
