//! The two sockets that kubelet looks for, and the lock that lets one node service have them.
//!
//! Invariant: whoever holds the lock may replace what is at the paths of the sockets; nobody else
//! touches them. A socket that somebody removes is made again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::codegen::tokio_stream::StreamExt;
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::authority;
use super::rpc::Rpc;

/// How often the lock is tried; a predecessor that stops holds it for less than its grace period.
const TRY_EVERY: Duration = Duration::from_millis(200);

/// How often a socket is looked for at its path.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long calls that were begun may take once it is told to stop; what they began goes on.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

/// Calls at once on one connection; kubelet makes one for each.
const MAX_CALLS: usize = 64;

/// The longest path that the address of a socket takes.
const MAX_PATH_BYTES: usize = 107;

/// Waits until no other node service of this folder runs. `None` when it is told to stop before.
pub(super) async fn lock(path: &Path, stop: &CancellationToken) -> io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    let mut told = false;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        if !told {
            tracing::info!(lock = %path.display(), "another node service runs; waiting for its end");
            told = true;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(TRY_EVERY) => {}
        }
    }
}

/// Serves at a path until it is told to stop, and removes the socket then.
pub(super) async fn serve(path: PathBuf, rpc: Rpc, stop: CancellationToken) -> io::Result<()> {
    loop {
        let listener = bind(&path)?;
        let inode = inode(&path);
        let done = CancellationToken::new();
        let gone = async {
            while self::inode(&path) == inode {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let serving = Server::builder()
            .concurrency_limit_per_connection(MAX_CALLS)
            .serve_with_incoming_shutdown(
                rpc.clone(),
                UnixListenerStream::new(listener).map(|stream| stream.map(authority::accept)),
                done.clone().cancelled_owned(),
            );
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => {
                ended.map_err(io::Error::other)?;
                return Err(io::Error::other("the server ended by itself"));
            }
            () = gone => {
                tracing::warn!(socket = %path.display(), "the socket was removed; making it again");
            }
            // Nobody new may find it while calls end.
            () = stop.cancelled() => if self::inode(&path) == inode {
                let _ = std::fs::remove_file(&path);
            }
        }
        done.cancel();
        let _ = tokio::time::timeout(STOPS_WITHIN, &mut serving).await;
        if stop.is_cancelled() {
            return Ok(());
        }
    }
}

/// Listens at a path for root; a socket that a predecessor left is replaced.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let shown = path.display();
    let named = |error: io::Error| io::Error::new(error.kind(), format!("`{shown}`: {error}"));
    if path.as_os_str().len() > MAX_PATH_BYTES {
        let what =
            format!("`{shown}` is longer than the {MAX_PATH_BYTES} bytes of a socket's path");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    match path.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(named)?,
        Ok(_) => return Err(io::Error::other(format!("`{shown}` is there and not a socket"))),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(named)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(named)?;
    Ok(listener)
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()))
}
