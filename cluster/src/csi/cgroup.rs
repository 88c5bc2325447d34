//! A home of its own for each holder among the control groups.
//!
//! Invariant: a process that was moved is in no control group of the node service's pod, in no
//! hierarchy, so that neither the container runtime nor kubelet, which kill what is in those of a
//! container that ended, find it. It limits nothing and counts nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::holder::{reap, signal_if};
use super::mounts;

/// The group that has those of all holders.
const PARENT: &str = "warpdrive-holders";

/// Files of a `cpuset` hierarchy (cgroup v1) that are empty in a new group; while they are, no
/// process may enter.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// How long a killed process may take to be gone.
const DIES_WITHIN: Duration = Duration::from_secs(1);

/// How often a group is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The roots of the hierarchies that are mounted below a directory: one with cgroup v2, and one for
/// each set of controllers with v1.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies {
    roots: Vec<PathBuf>,
    /// What the names of groups begin with: several nodes may be one machine, in tests at least.
    prefix: String,
}

/// The doors of a group: what is written there moves the writer in.
#[derive(Debug)]
pub(super) struct Doors(pub(super) Vec<File>);

impl Hierarchies {
    /// Finds them below `root`, for the holders of one node: `folder` is where their records are. An
    /// error is a sentence: without a home for holders, mounts would end with the node service's
    /// container.
    pub(super) fn find(root: &Path, folder: &Path) -> Result<Self, String> {
        let of_folder = |error| format!("`{}`: {error}", folder.display());
        let folder = std::fs::metadata(folder).map_err(of_folder)?;
        let prefix = format!("{:x}-{:x}-", folder.dev(), folder.ino());
        let table = mounts::table().map_err(|error| format!("the mount table: {error}"))?;
        let is_one = |entry: &mounts::Entry| {
            ["cgroup", "cgroup2"].contains(&&*entry.kind)
                && entry.target.starts_with(root)
                // A container sees its own part at most, which ends with it.
                && entry.root == Path::new("/")
        };
        let mut roots: Vec<_> = table.into_iter().filter(is_one).map(|e| e.target).collect();
        roots.sort();
        roots.dedup();
        if roots.is_empty() {
            return Err(format!(
                "no control groups of the node at `{}`: mount the node's /sys/fs/cgroup there, \
                 or say where with --cgroup-root",
                root.display()
            ));
        }
        Ok(Self { roots, prefix })
    }

    fn group(&self, root: &Path, uid: &str) -> PathBuf {
        root.join(PARENT).join(format!("{}{uid}", self.prefix))
    }

    /// Makes the group of a pod's holder in each hierarchy and opens its doors.
    pub(super) fn open(&self, uid: &str) -> io::Result<Doors> {
        let door = |root: &PathBuf| {
            let (parent, group) = (root.join(PARENT), self.group(root, uid));
            make(root, &parent)?;
            // The service of another node on this machine may have removed it as empty.
            make(&parent, &group)
                .or_else(|_| make(root, &parent).and_then(|()| make(&parent, &group)))?;
            File::options().write(true).open(group.join("cgroup.procs"))
        };
        self.roots.iter().map(door).collect::<io::Result<_>>().map(Doors)
    }

    /// Kills every process in the group of a pod's holder, known to a record or not, and waits until
    /// it is empty, a second at most.
    pub(super) fn kill(&self, uid: &str) {
        let until = Instant::now() + DIES_WITHIN;
        loop {
            let of_root = |root: &PathBuf| {
                let inside = self.inside(root, uid);
                let root = root.clone();
                inside.into_iter().map(move |pid| (root.clone(), pid))
            };
            let inside: Vec<(PathBuf, Pid)> = self.roots.iter().flat_map(of_root).collect();
            if inside.is_empty() || Instant::now() >= until {
                return;
            }
            for (root, pid) in inside {
                // All at once with cgroup v2.
                if std::fs::write(self.group(&root, uid).join("cgroup.kill"), "1").is_err() {
                    // Its number may be another's by now, who is not in here.
                    signal_if(pid, Signal::KILL, || self.inside(&root, uid).contains(&pid));
                }
                // In case it is a child.
                reap(pid.as_raw_nonzero().get().unsigned_abs());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn inside(&self, root: &Path, uid: &str) -> Vec<Pid> {
        let inside = self.group(root, uid).join("cgroup.procs");
        let inside = std::fs::read_to_string(inside).unwrap_or_default();
        let pids = inside.lines().filter_map(|line| line.parse().ok());
        // 0 is a process that this namespace does not see, 1 the first of all.
        pids.filter(|pid| *pid > 1).filter_map(Pid::from_raw).collect()
    }

    /// Removes the group of a holder that has ended. One with a process in it stays.
    pub(super) fn remove(&self, uid: &str) {
        for root in &self.roots {
            let _ = rustix::fs::rmdir(self.group(root, uid));
        }
    }

    /// Removes what all groups are in, if there are none.
    pub(super) fn remove_empty(&self) {
        for root in &self.roots {
            let _ = rustix::fs::rmdir(root.join(PARENT));
        }
    }

    /// The pods of all groups.
    pub(super) fn uids(&self) -> Vec<String> {
        let mut uids: Vec<_> = self
            .roots
            .iter()
            .filter_map(|root| std::fs::read_dir(root.join(PARENT)).ok())
            .flatten()
            .filter_map(|entry| entry.ok().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix(&self.prefix).map(str::to_owned))
            .collect();
        uids.sort();
        uids.dedup();
        uids
    }
}

fn make(parent: &Path, group: &Path) -> io::Result<()> {
    match std::fs::create_dir(group) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    for file in CPUSET {
        let (from, to) = (parent.join(file), group.join(file));
        // Not there with cgroup v2, or where `cgroup.clone_children` is set.
        let Ok(now) = std::fs::read_to_string(&to) else { continue };
        if now.trim().is_empty()
            && let Ok(wanted) = std::fs::read_to_string(from)
            && !wanted.trim().is_empty()
        {
            std::fs::write(to, wanted)?;
        }
    }
    Ok(())
}

/// Whether a process of a pod is left on this node: one in a control group that names the pod's uid,
/// as kubelet's do. `None` when none of kubelet's groups can be seen from here, so nobody knows.
pub(super) fn pod_is_alive(uid: &str) -> Option<bool> {
    // The systemd driver writes `_` for `-`.
    let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let mut seen = false;
    for entry in std::fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // Gone since.
        let Ok(groups) = std::fs::read_to_string(entry.path().join("cgroup")) else { continue };
        if names.iter().any(|name| groups.contains(name.as_str())) {
            return Some(true);
        }
        seen |= groups.contains("kubepods");
    }
    seen.then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_control_groups_it_says_what_to_mount() {
        let dir = tempfile::tempdir().unwrap();
        let said = Hierarchies::find(dir.path(), dir.path()).unwrap_err();
        assert!(said.contains("--cgroup-root"), "{said}");
    }

    #[test]
    fn a_group_is_made_once_and_its_cpus_are_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cpuset.cpus"), "0-1\n").unwrap();
        let group = dir.path().join("group");
        std::fs::create_dir(&group).unwrap();
        std::fs::write(group.join("cpuset.cpus"), "\n").unwrap();
        make(dir.path(), &group).unwrap();
        assert_eq!(std::fs::read_to_string(group.join("cpuset.cpus")).unwrap(), "0-1\n");
        std::fs::write(group.join("cpuset.cpus"), "1\n").unwrap();
        make(dir.path(), &group).unwrap();
        assert_eq!(std::fs::read_to_string(group.join("cpuset.cpus")).unwrap(), "1\n");
    }
}
