//! Detaching dead mounts that keep ended pods from going: kubelet cannot remove a volume with one.
//!
//! Invariant: a mount is detached only if its file system says that its connection is gone, and only
//! when no process of its pod is left; looking waits for no file system. Live mounts are never
//! touched, whoever serves them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
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

/// Connections that are looked at at once; each that does not answer keeps a thread until it does, and
/// a mount without a worker does so for its holder's patience.
const MAX_LOOKS: usize = 128;

/// How many of them may be of one pod: what does not answer costs its own pod's turn.
const MAX_LOOKS_OF_POD: usize = 8;

/// How long a mount stays dead before it is detached: its `mountd` may be starting, and clears it
/// itself.
const DEAD_FOR: Duration = Duration::from_secs(4);

/// The same where nobody can say whether its pod has processes left: kubelet's back-off between two
/// starts of a container is at most five minutes.
const DEAD_FOR_UNSEEN: Duration = Duration::from_secs(330);

/// Connections (`major:minor`) whose look has not come back, with the pod; at most [`MAX_LOOKS`].
type Looking = HashMap<String, String>;

/// What was seen of dead mounts.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// Since when; of mounts that are there still.
    dead: HashMap<u64, Instant>,
    looking: Arc<Mutex<Looking>>,
}

impl Sweeper {
    /// Detaches what is to go below a directory of pods, `except` leaves to others; how many went.
    pub(super) fn sweep(&mut self, pods: &Path, except: impl Fn(&Path) -> bool) -> usize {
        let Ok(table) = mounts::table() else { return 0 };
        let is_candidate = |entry: &Entry| {
            entry.is_own() && entry.target.starts_with(pods) && !except(&entry.target)
        };
        let own: Vec<_> = table.into_iter().filter(is_candidate).collect();
        let looks = own.iter().filter_map(|entry| {
            let uid = uid_of(&entry.target, pods)?.to_owned();
            Some(Look { device: entry.device.clone(), uid, target: entry.target.clone() })
        });
        let gone = self.gone(looks.collect(), is_gone);
        let dead: Vec<_> = own.into_iter().filter(|entry| gone.contains(&entry.device)).collect();
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

    /// The connections that are gone, of those that answer in time by `ask`. All are asked together,
    /// each once.
    fn gone(&self, mut looks: Vec<Look>, ask: fn(&Path) -> bool) -> HashSet<String> {
        looks.sort_by(|one, other| one.device.cmp(&other.device));
        looks.dedup_by(|one, other| one.device == other.device);
        let until = Instant::now() + LOOK;
        let (answer, answers) = mpsc::channel();
        let (mut gone, mut awaited) = (HashSet::new(), 0_usize);
        loop {
            // What comes back makes room for others of the same pod.
            looks.retain(|look| match self.begin(look, ask, &answer) {
                Begun::Now => {
                    awaited += 1;
                    false
                }
                Begun::Before => false,
                Begun::NoRoom => true,
            });
            if awaited == 0 {
                return gone;
            }
            let left = until.saturating_duration_since(Instant::now());
            match answers.recv_timeout(left) {
                Ok((device, true)) => drop(gone.insert(device)),
                Ok((_, false)) => {}
                Err(_) => return gone,
            }
            awaited -= 1;
        }
    }

    fn begin(&self, look: &Look, ask: fn(&Path) -> bool, answer: &Answer) -> Begun {
        let Look { device, uid, target } = look.clone();
        {
            let mut looking = self.looking.lock();
            if looking.contains_key(&device) {
                return Begun::Before;
            }
            let of_pod = looking.values().filter(|other| **other == uid).count();
            if looking.len() >= MAX_LOOKS || of_pod >= MAX_LOOKS_OF_POD {
                return Begun::NoRoom;
            }
            looking.insert(device.clone(), uid);
        }
        let (looking, answer) = (Arc::clone(&self.looking), answer.clone());
        let thread = std::thread::Builder::new().name("look".into()).spawn(move || {
            let dead = ask(&target);
            looking.lock().remove(&device);
            // The receiver may have given up.
            let _ = answer.send((device, dead));
        });
        if thread.is_err() {
            self.looking.lock().remove(&look.device);
            return Begun::NoRoom;
        }
        Begun::Now
    }
}

/// A connection that is to be looked at, at one of its mounts.
#[derive(Debug, Clone)]
struct Look {
    device: String,
    uid: String,
    target: PathBuf,
}

/// Whether a look was begun.
enum Begun {
    Now,
    /// An earlier one has not come back.
    Before,
    NoRoom,
}

type Answer = mpsc::Sender<(String, bool)>;

/// Whether the connection behind a mount is gone. The kernel says so at once; a file system that does
/// not answer in time is alive.
fn is_gone(target: &Path) -> bool {
    // `stat` would be answered from what the kernel remembers; this is asked anew.
    matches!(rustix::fs::statvfs(target), Err(Errno::NOTCONN))
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

    /// Stands for what hangs, is gone, or answers, by the end of its path.
    fn ask(target: &Path) -> bool {
        if target.ends_with("hangs") {
            std::thread::sleep(Duration::from_secs(5));
        }
        target.ends_with("gone")
    }

    #[test]
    fn one_pods_mounts_that_hang_hide_nobody_elses() {
        let look = |device: String, uid: &str, target: &str| Look {
            device,
            uid: uid.to_owned(),
            target: target.into(),
        };
        let mut looks = Vec::new();
        for number in 0..2 * MAX_LOOKS {
            let device = format!("1:{number}");
            looks.extend((0..4).map(|_| look(device.clone(), "greedy", "/p/hangs")));
        }
        // More than a share, all of which answer.
        let many = 3 * MAX_LOOKS_OF_POD;
        looks.extend((0..many).map(|number| look(format!("2:{number}"), "other", "/p/gone")));
        looks.push(look("3:1".to_owned(), "third", "/p/alive"));
        let sweeper = Sweeper::default();
        let begun = Instant::now();
        for _ in 0..2 {
            let gone = sweeper.gone(looks.clone(), ask);
            assert_eq!(gone.len(), many);
            assert!(gone.iter().all(|device| device.starts_with("2:")), "{gone:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(sweeper.looking.lock().len(), MAX_LOOKS_OF_POD);
    }
}
