//! Detaching dead mounts that keep ended pods from going: kubelet cannot remove a volume with one.
//!
//! Invariant: a mount is detached only if its file system says that its connection is gone, and only
//! when no process of its pod is left; looking waits for no file system. Live mounts are never
//! touched, whoever serves them.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::cgroup;
use super::mounts::{self, Entry};
use super::request::is_uid;

/// How long a file system has to answer before it counts as alive.
const LOOK: Duration = Duration::from_millis(500);

/// Mounts that are looked at at once; each that does not answer keeps a thread until it does, and a
/// mount without a worker does so for its holder's patience.
const MAX_LOOKS: usize = 128;

/// How long a mount stays dead before it is detached: its `mountd` may be starting, and clears it
/// itself.
const DEAD_FOR: Duration = Duration::from_secs(4);

/// The same where nobody can say whether its pod has processes left: kubelet's back-off between two
/// starts of a container is at most five minutes.
const DEAD_FOR_UNSEEN: Duration = Duration::from_secs(330);

/// What was seen of dead mounts.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// Since when; of mounts that are there still.
    dead: HashMap<u64, Instant>,
    /// Mounts whose look has not come back, at most [`MAX_LOOKS`].
    looking: Arc<Mutex<HashSet<u64>>>,
}

impl Sweeper {
    /// Detaches what is to go below a directory of pods, `except` leaves to others; how many went.
    pub(super) fn sweep(&mut self, pods: &Path, except: impl Fn(&Path) -> bool) -> usize {
        let Ok(table) = mounts::table() else { return 0 };
        let is_candidate = |entry: &Entry| {
            entry.is_own() && entry.target.starts_with(pods) && !except(&entry.target)
        };
        let own: Vec<_> = table.into_iter().filter(is_candidate).collect();
        let dead: Vec<_> = own.into_iter().filter(|entry| self.is_dead(entry)).collect();
        let now = Instant::now();
        self.dead.retain(|id, _| dead.iter().any(|entry| entry.id == *id));
        let mut swept = 0;
        for entry in dead {
            let since = *self.dead.entry(entry.id).or_insert(now);
            let Some(uid) = uid_of(&entry.target, pods) else { continue };
            let wanted = match cgroup::pod_is_alive(uid) {
                Some(true) => continue,
                Some(false) => DEAD_FOR,
                None => DEAD_FOR_UNSEEN,
            };
            if now.duration_since(since) < wanted {
                continue;
            }
            // It may have been replaced since.
            if !matches!(mounts::at(&entry.target), Ok(Some(there)) if there.id == entry.id) {
                continue;
            }
            let path = entry.target.display();
            match mounts::detach(&entry, false) {
                Ok(()) => {
                    tracing::warn!(%path, uid, "detached a dead mount of a pod that has ended");
                    self.dead.remove(&entry.id);
                    swept += 1;
                }
                Err(error) => tracing::warn!(%path, uid, %error, "a dead mount cannot be detached"),
            }
        }
        swept
    }

    /// Whether the connection behind a mount is gone. The kernel says so at once; a file system that
    /// does not answer in time is alive.
    fn is_dead(&self, entry: &Entry) -> bool {
        let id = entry.id;
        {
            let mut looking = self.looking.lock();
            if looking.len() >= MAX_LOOKS || !looking.insert(id) {
                return false;
            }
        }
        let (target, looking) = (entry.target.clone(), Arc::clone(&self.looking));
        let (answer, answered) = mpsc::channel();
        let look = move || {
            // `stat` would be answered from what the kernel remembers; this is asked anew.
            let dead = matches!(rustix::fs::statvfs(&target), Err(Errno::NOTCONN));
            looking.lock().remove(&id);
            // The receiver may have given up.
            let _ = answer.send(dead);
        };
        if std::thread::Builder::new().name("look".into()).spawn(look).is_err() {
            self.looking.lock().remove(&id);
            return false;
        }
        answered.recv_timeout(LOOK).unwrap_or(false)
    }
}

/// The pod that a path below the directory of pods belongs to.
fn uid_of<'a>(target: &'a Path, pods: &Path) -> Option<&'a str> {
    let name = target.strip_prefix(pods).ok()?.components().next()?;
    name.as_os_str().to_str().filter(|uid| is_uid(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_belongs_to_the_pod_whose_directory_it_is_in() {
        let pods = Path::new("/var/lib/kubelet/pods");
        let of = |path| uid_of(Path::new(path), pods);
        assert_eq!(of("/var/lib/kubelet/pods/a-1/volumes/x/data"), Some("a-1"));
        assert_eq!(of("/var/lib/kubelet/pods"), None);
        assert_eq!(of("/var/lib/kubelet/plugins/a"), None);
        assert_eq!(of("/var/lib/kubelet/pods/../x"), None);
    }

    #[test]
    fn nothing_is_swept_where_nothing_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Sweeper::default().sweep(dir.path(), |_| false), 0);
    }
}
