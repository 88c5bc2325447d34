//! What is published on this node: for each pod one holder, its mount and the folder of its socket.
//!
//! Invariant: calls for one pod happen one after the other, and what is being done is in the pod's
//! record before it is begun. Nothing here looks into a mount, deletes a tree, or removes a file but
//! its own. A call that fails may be made again, and one that was done is done again.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tonic::Status;

use super::cgroup::Hierarchies;
use super::holder::{self, Starter};
use super::metrics::CsiMetrics;
use super::mounts::{self, Entry};
use super::record::{Mount, Process, Record};
use super::request::{Publish, Role, Target, is_uid};
use crate::names::HOLDER_SOCKET;

/// Pods at once; kubelet runs 110 by default and no more than some hundreds.
const MAX_PODS: usize = 2048;

/// What there is of a pod, and what was said of it.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) record: Record,
    /// The end of its holder was noticed.
    pub(super) is_told: bool,
    /// How often a holder was started in the place of one that had died.
    pub(super) revivals: u32,
    /// Nothing is left of it, and whoever waited for its lock has to look again.
    is_gone: bool,
}

/// The folders of the node service, all on a disk of the node.
#[derive(Debug)]
struct Folders {
    /// Of each pod, a folder with its holder's socket and nothing else: it is shown to the pod.
    pods: PathBuf,
    records: PathBuf,
    logs: PathBuf,
}

impl Pod {
    fn of(record: Record) -> Self {
        Self { record, is_told: false, revivals: 0, is_gone: false }
    }
}

impl Folders {
    fn make(plugin_dir: &Path) -> io::Result<Self> {
        let folders = Self {
            pods: plugin_dir.join("pods"),
            records: plugin_dir.join("records"),
            logs: plugin_dir.join("logs"),
        };
        for folder in [&folders.pods, &folders.records, &folders.logs] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        Ok(folders)
    }

    fn socket(&self, uid: &str) -> PathBuf {
        self.pods.join(uid).join(HOLDER_SOCKET)
    }

    fn log(&self, uid: &str) -> PathBuf {
        self.logs.join(format!("{uid}.log"))
    }
}

/// What is published on this node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kubelet_dir: PathBuf,
    folders: Folders,
    starter: Starter,
    hierarchies: Hierarchies,
    pub(super) metrics: CsiMetrics,
    /// Pods of records that can neither be read nor made anew; what they have is left alone for as
    /// long as kubelet has the pod.
    unreadable: HashSet<String>,
    /// At most [`MAX_PODS`].
    pods: Mutex<HashMap<String, Arc<Mutex<Pod>>>>,
}

impl Node {
    /// Reads what a predecessor left, and finds its holders.
    pub(super) fn open(
        kubelet_dir: PathBuf,
        plugin_dir: &Path,
        starter: Starter,
        hierarchies: Hierarchies,
        metrics: CsiMetrics,
    ) -> io::Result<Self> {
        let folders = Folders::make(plugin_dir)?;
        let (mut records, lost) = Record::read_all(&folders.records)?;
        let (unreadable, pods) = (HashSet::new(), Mutex::default());
        let mut node =
            Self { kubelet_dir, folders, starter, hierarchies, metrics, unreadable, pods };
        for uid in lost {
            match node.found_again(&uid) {
                Some(record) => {
                    record.write(&node.folders.records)?;
                    tracing::info!(uid, "the record of a pod was made anew from its holder");
                    records.push(record);
                }
                None => drop(node.unreadable.insert(uid)),
            }
        }
        let count = records.len();
        let mut holders = 0;
        for mut record in records {
            node.find_holder(&mut record);
            for target in record.targets() {
                if !node.is_target_of(target, &record.uid) {
                    let (path, pod) = (target.display(), &record.pod);
                    tracing::warn!(%path, pod, "a volume that is not in --kubelet-dir; left as it is");
                }
            }
            holders += usize::from(record.mount.as_ref().is_some_and(has_holder));
            let uid = record.uid.clone();
            node.pods.lock().insert(uid, Arc::new(Mutex::new(Pod::of(record))));
        }
        tracing::info!(pods = count, holders, "found what is published on this node");
        node.count_holders();
        Ok(node)
    }

    /// What the holder and the mount table tell of a pod whose record cannot be read.
    fn found_again(&self, uid: &str) -> Option<Record> {
        let answer = (self.starter.ask)(&self.folders.socket(uid))?;
        if !self.is_target_of(&answer.mount_point, uid) {
            return None;
        }
        let holder = Process::find(answer.pid?)?;
        let worker = holder::worker_of(holder)?;
        let mut record = Record::new(uid.to_owned(), format!("with uid {uid}"));
        record.mount = Some(Mount { target: answer.mount_point, worker, holder: Some(holder) });
        let is_socket =
            |entry: &Entry| is_folder_of(entry, uid) && self.is_target_of(&entry.target, uid);
        let shown = mounts::table().ok()?.into_iter().find(is_socket);
        record.socket = shown.map(|entry| entry.target);
        Some(record)
    }

    /// Whether a path is where this node's kubelet has a volume of a pod.
    pub(super) fn is_target_of(&self, path: &Path, uid: &str) -> bool {
        let target = path.to_str().and_then(|path| Target::parse(path, &self.kubelet_dir).ok());
        target.is_some_and(|target| target.uid == uid)
    }

    /// Looks whether the recorded holder is the one that answers for the mount.
    fn find_holder(&self, record: &mut Record) {
        let socket = self.folders.socket(&record.uid);
        let Some(mount) = &mut record.mount else { return };
        let answers = self.starter.find(&mount.target, &socket);
        // One that was started and not recorded answers; one that does not answer in time is busy.
        mount.holder = answers.or_else(|| mount.holder.filter(|process| process.is_alive()));
        if mount.holder.is_none() {
            // One that never came to answer.
            self.hierarchies.kill(&record.uid);
        }
    }

    /// Serves a publish call.
    pub(super) fn publish(&self, call: &Publish) -> Result<(), Status> {
        let pod = self.pod(&call.target.uid, &call.pod)?;
        let mut pod = locked(&pod).ok_or_else(again)?;
        let done = match call.role {
            Role::Mount { worker } => self.publish_mount(&mut pod, &call.target, worker),
            Role::Socket => self.publish_socket(&mut pod, &call.target),
        };
        if done.is_err() && pod.record.is_empty() {
            self.forget(&mut pod);
        }
        drop(pod);
        self.count_holders();
        done
    }

    /// The entry of a pod, which may be new.
    fn pod(&self, uid: &str, name: &str) -> Result<Arc<Mutex<Pod>>, Status> {
        let mut pods = self.pods.lock();
        if let Some(pod) = pods.get(uid) {
            return Ok(Arc::clone(pod));
        }
        if pods.len() >= MAX_PODS {
            let what = format!("this node has {MAX_PODS} pods with volumes of WarpDrive already");
            return Err(Status::resource_exhausted(what));
        }
        let record = Record::new(uid.to_owned(), name.to_owned());
        let pod = Arc::new(Mutex::new(Pod::of(record)));
        pods.insert(uid.to_owned(), Arc::clone(&pod));
        Ok(pod)
    }

    fn publish_mount(&self, pod: &mut Pod, target: &Target, worker: u32) -> Result<(), Status> {
        if let Some(mount) = &pod.record.mount {
            if mount.target != target.path {
                return Err(Status::invalid_argument(
                    "this pod has a volume with `role: mount` already; one is all it can have",
                ));
            }
            if has_holder(mount) {
                return if mount.worker == worker {
                    Ok(())
                } else {
                    Err(Status::already_exists("this volume is published for another workerUid"))
                };
            }
        }
        let (record, uid) = (&mut pod.record, target.uid.as_str());
        record.mount = Some(Mount { target: target.path.clone(), worker, holder: None });
        let started = self.start(record, &target.path, worker);
        let Err(why) = started else {
            pod.is_told = false;
            tracing::info!(pod = record.pod, uid, "published the mount");
            return Ok(());
        };
        if let Err(error) = self.take_mount(record) {
            // The record stays, for the unpublish that follows.
            tracing::warn!(pod = record.pod, uid, %error, "what was begun cannot be undone");
        }
        Err(Status::internal(format!("mounting for pod {} failed: {why}", record.pod)))
    }

    /// Starts a holder in the place of one that has died: containers that are started again have a
    /// mount then, and the worker attaches to it. Those that run keep the dead one, and see it.
    pub(super) fn revive(&self, pod: &mut Pod) -> Result<(), String> {
        let record = &mut pod.record;
        let Some(mount) = &mut record.mount else { return Ok(()) };
        mount.holder = None;
        let (target, worker) = (mount.target.clone(), mount.worker);
        self.hierarchies.kill(&record.uid);
        let started = self.start(record, &target, worker);
        if started.is_err() {
            // One that did not come to answer.
            self.hierarchies.kill(&record.uid);
        }
        started
    }

    /// Starts the holder of a pod, and returns when it has mounted.
    fn start(&self, record: &mut Record, target: &Path, worker: u32) -> Result<(), String> {
        let say = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let (uid, folders) = (record.uid.clone(), &self.folders);
        record.write(&folders.records).map_err(say("its record"))?;
        make_directory(target, 0o750).map_err(say("the directory of the volume"))?;
        // A dead mount of an earlier holder, or a live one that no record names.
        mounts::clear(target, Entry::is_own).map_err(say("the directory of the volume"))?;
        let folder = folders.pods.join(&uid);
        // The worker goes through it to the socket, which only it may connect to.
        make_directory(&folder, 0o755).map_err(say("the folder of its socket"))?;
        let (socket, log) = (folders.socket(&uid), folders.log(&uid));
        let doors = self.hierarchies.open(&uid).map_err(say("its control group"))?;
        let holder = self
            .starter
            .spawn(target, &socket, worker, &log, doors)
            .map_err(say("starting the mount holder"))?;
        if let Some(mount) = &mut record.mount {
            mount.holder = Some(holder);
        }
        record.write(&folders.records).map_err(say("its record"))?;
        self.starter.await_answer(holder, target, &socket, &log)
    }

    fn publish_socket(&self, pod: &mut Pod, target: &Target) -> Result<(), Status> {
        let (record, uid) = (&mut pod.record, target.uid.as_str());
        if record.socket.as_ref().is_some_and(|other| *other != target.path) {
            return Err(Status::invalid_argument(
                "this pod has a volume with `role: socket` already; one is all it can have",
            ));
        }
        let is_new = record.socket.replace(target.path.clone()).is_none();
        let shown = self.show_socket(record, &target.path);
        let Err(why) = shown else {
            if is_new {
                tracing::info!(pod = record.pod, uid, "published the socket");
            }
            return Ok(());
        };
        if let Err(error) = self.take_socket(record) {
            tracing::warn!(pod = record.pod, uid, %error, "what was begun cannot be undone");
        }
        Err(Status::internal(format!("the socket for pod {} failed: {why}", record.pod)))
    }

    fn show_socket(&self, record: &Record, target: &Path) -> io::Result<()> {
        record.write(&self.folders.records)?;
        let folder = self.folders.pods.join(&record.uid);
        make_directory(&folder, 0o755)?;
        make_directory(target, 0o750)?;
        let is_shown = |entry: Entry| is_folder_of(&entry, &record.uid) && !is_deleted(&entry);
        if mounts::at(target)?.is_some_and(is_shown) {
            return Ok(());
        }
        mounts::clear(target, |entry| is_folder_of(entry, &record.uid))?;
        mounts::bind_read_only(&folder, target)
    }

    /// Serves an unpublish call. What is not known is looked for in the mount table.
    pub(super) fn unpublish(&self, target: &Target) -> Result<(), Status> {
        let pod = self.pods.lock().get(&target.uid).cloned();
        let taken = match pod.as_ref().map(locked) {
            Some(None) => return Err(again()),
            Some(Some(mut pod)) => self.take(&mut pod, &target.path),
            None => {
                // Whoever has it is not on record, and nothing is left that would use it.
                self.hierarchies.kill(&target.uid);
                self.hierarchies.remove(&target.uid);
                take_unknown(target)
            }
        };
        self.count_holders();
        taken.map_err(|error| {
            let path = target.path.display();
            Status::internal(format!("unpublishing `{path}` failed: {error}"))
        })
    }

    /// Takes one volume of a pod away, and with the last one all that there was of the pod.
    pub(super) fn take(&self, pod: &mut Pod, target: &Path) -> io::Result<()> {
        let record = &mut pod.record;
        if record.mount.as_ref().is_some_and(|mount| mount.target == target) {
            self.take_mount(record)?;
            tracing::info!(pod = record.pod, uid = record.uid, "unpublished the mount");
        } else if record.socket.as_ref().is_some_and(|socket| socket == target) {
            self.take_socket(record)?;
            tracing::info!(pod = record.pod, uid = record.uid, "unpublished the socket");
        } else {
            let uid = record.uid.clone();
            take_unknown(&Target { path: target.to_owned(), uid })?;
        }
        if pod.record.is_empty() {
            self.forget(pod);
        }
        Ok(())
    }

    fn take_mount(&self, record: &mut Record) -> io::Result<()> {
        let Some(mount) = &record.mount else { return Ok(()) };
        if mount.holder.is_some_and(|process| !holder::end(process)) {
            tracing::warn!(pod = record.pod, uid = record.uid, "the mount holder cannot be killed");
        }
        // One that was started and not recorded.
        self.hierarchies.kill(&record.uid);
        mounts::clear(&mount.target, Entry::is_own)?;
        mounts::remove_directory(&mount.target)?;
        self.hierarchies.remove(&record.uid);
        remove_socket(&self.folders.socket(&record.uid))?;
        record.mount = None;
        record.write(&self.folders.records)
    }

    fn take_socket(&self, record: &mut Record) -> io::Result<()> {
        let Some(target) = &record.socket else { return Ok(()) };
        mounts::clear(target, |entry| is_folder_of(entry, &record.uid))?;
        mounts::remove_directory(target)?;
        record.socket = None;
        record.write(&self.folders.records)
    }

    /// Removes the last traces of a pod that has no volume.
    fn forget(&self, pod: &mut Pod) {
        pod.is_gone = true;
        let uid = pod.record.uid.as_str();
        self.remove_traces(uid);
        if let Err(error) = Record::remove(&self.folders.records, uid) {
            tracing::warn!(uid, %error, "the record of a pod that is gone cannot be removed");
        }
        self.pods.lock().remove(uid);
    }

    fn remove_traces(&self, uid: &str) {
        let removed = remove_socket(&self.folders.socket(uid))
            .and_then(|()| mounts::remove_directory(&self.folders.pods.join(uid)));
        if let Err(error) = removed {
            tracing::warn!(uid, %error, "the folder of a pod that is gone cannot be removed");
        }
        // It may never have been.
        let _ = std::fs::remove_file(self.folders.log(uid));
        self.hierarchies.remove(uid);
    }

    /// The pods that nobody is busy with now.
    pub(super) fn idle<T>(&self, mut with: impl FnMut(&mut Pod) -> T) -> Vec<T> {
        let pods: Vec<_> = self.pods.lock().values().cloned().collect();
        let each = |pod: &Arc<Mutex<Pod>>| {
            let mut pod = pod.try_lock().filter(|pod| !pod.is_gone)?;
            Some(with(&mut pod))
        };
        pods.iter().filter_map(each).collect()
    }

    /// Removes folders, logs and control groups that no record names: a predecessor that was killed
    /// may have left them.
    pub(super) fn remove_strangers(&self) {
        let names = |folder: &Path| {
            let entries = std::fs::read_dir(folder).ok().into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.collect::<Vec<_>>()
        };
        let logs = names(&self.folders.logs);
        let logs = logs.iter().filter_map(|name| name.strip_suffix(".log")).map(str::to_owned);
        let mut uids: Vec<_> = names(&self.folders.pods).into_iter().chain(logs).collect();
        uids.extend(self.hierarchies.uids());
        uids.extend(self.unreadable.iter().cloned());
        for uid in uids.iter().filter(|uid| is_uid(uid)) {
            if self.unreadable.contains(uid) {
                let pod = self.kubelet_dir.join("pods").join(uid);
                if !matches!(pod.try_exists(), Ok(false)) {
                    continue;
                }
                let _ = Record::remove(&self.folders.records, uid);
            }
            // Held, so that none begins meanwhile.
            let pods = self.pods.lock();
            if !pods.contains_key(uid) {
                self.hierarchies.kill(uid);
                self.remove_traces(uid);
            }
        }
    }

    /// Removes what nobody needs while no node service runs.
    pub(super) fn close(&self) {
        self.hierarchies.remove_empty();
    }

    pub(super) fn log_of(&self, uid: &str) -> PathBuf {
        self.folders.log(uid)
    }

    pub(super) fn count_holders(&self) {
        let idle = self.idle(|pod| pod.record.mount.as_ref().is_some_and(has_holder));
        let without = idle.into_iter().filter(|alive| !alive).count();
        // A pod that somebody is busy with is getting its holder, or losing it.
        let holders = self.pods.lock().len().saturating_sub(without);
        self.metrics.holders.set(i64::try_from(holders).unwrap_or(i64::MAX));
    }
}

/// Locks a pod that is not gone.
fn locked(pod: &Arc<Mutex<Pod>>) -> Option<MutexGuard<'_, Pod>> {
    Some(pod.lock()).filter(|pod| !pod.is_gone)
}

/// The pod went while its call waited; kubelet tries again in any case.
fn again() -> Status {
    Status::aborted("another call for this pod has just ended; try again")
}

pub(super) fn has_holder(mount: &Mount) -> bool {
    mount.holder.is_some_and(Process::is_alive)
}

/// What the kernel appends to the name of a folder that was removed.
const DELETED: &str = "//deleted";

fn is_deleted(entry: &Entry) -> bool {
    entry.root.to_str().is_some_and(|root| root.ends_with(DELETED))
}

/// Whether a mount is the folder of a pod's socket; also after the folder was removed.
fn is_folder_of(entry: &Entry, uid: &str) -> bool {
    let Some(root) = entry.root.to_str() else { return false };
    let root = root.strip_suffix(DELETED).unwrap_or(root);
    !entry.is_own() && Path::new(root).ends_with(Path::new("pods").join(uid))
}

/// Takes away what is at a target that no record names, if it is ours.
fn take_unknown(target: &Target) -> io::Result<()> {
    let is_ours = |entry: &Entry| entry.is_own() || is_folder_of(entry, &target.uid);
    let cleared = mounts::clear(&target.path, is_ours)?;
    if cleared > 0 {
        let path = target.path.display();
        tracing::warn!(%path, cleared, "detached mounts that no record names");
    }
    mounts::remove_directory(&target.path).map(drop)
}

/// Makes a directory; one that is there is left as it is, and not looked at, since it may be a mount.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match std::fs::create_dir(path) {
        // What the process masks is not masked here.
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the socket that a killed holder left; nothing else that has its name.
fn remove_socket(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::other("there is something other than a socket in its place")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
