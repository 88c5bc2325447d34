//! What the node service remembers of a pod, in a small file that its successor reads.
//!
//! Invariant: a file is whole or absent, and is written before what it tells of is begun, so that
//! nothing is mounted that no file names. A process is known by its number, when it began and the
//! boot of the machine, so that another with its number is never taken for it.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::request::is_uid;

/// A process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// When it began, in clock ticks since the machine did.
    pub(super) start_ticks: u64,
}

impl Process {
    /// The process that has a number now; `None` where none has, or only the remains of one that
    /// has ended.
    pub(super) fn find(pid: u32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name comes second, in brackets, and may hold anything.
        let after = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&stat[after + 1..]).ok()?.split_ascii_whitespace();
        if matches!(fields.next()?, "Z" | "X" | "x") {
            return None;
        }
        // Field 22 of proc(5); the one just read is the third.
        Some(Self { pid, start_ticks: fields.nth(18)?.parse().ok()? })
    }

    /// Whether it still runs.
    pub(super) fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }
}

/// The mount of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mount {
    pub(super) target: PathBuf,
    /// The user that may be the worker.
    pub(super) worker: u32,
    /// `None` between deciding to start it and having done so.
    pub(super) holder: Option<Process>,
}

/// What there is of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) uid: String,
    /// `namespace/name`.
    pub(super) pod: String,
    /// The boot in which [`Mount::holder`] began.
    boot: String,
    pub(super) mount: Option<Mount>,
    /// Where the folder with the holder's socket is shown.
    pub(super) socket: Option<PathBuf>,
}

impl Record {
    /// Of a pod that has nothing yet.
    pub(super) fn new(uid: String, pod: String) -> Self {
        Self { uid, pod, boot: boot(), mount: None, socket: None }
    }

    /// Where the pod's volumes are.
    pub(super) fn targets(&self) -> impl Iterator<Item = &PathBuf> {
        self.mount.iter().map(|mount| &mount.target).chain(&self.socket)
    }

    /// Whether nothing is left of the pod.
    pub(super) fn is_empty(&self) -> bool {
        self.mount.is_none() && self.socket.is_none()
    }

    /// Writes it into a directory, in the place of what was there.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let (path, new) = (path(dir, &self.uid), dir.join(format!("{}.new", self.uid)));
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, path)
    }

    /// Removes what was written of a pod.
    pub(super) fn remove(dir: &Path, uid: &str) -> io::Result<()> {
        match std::fs::remove_file(path(dir, uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All that was written into a directory. What cannot be read is named and left out; the second
    /// list has the pods of such records. Another release of this service may have written them.
    pub(super) fn read_all(dir: &Path) -> io::Result<(Vec<Self>, Vec<String>)> {
        let boot = boot();
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read =
                std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Self>(&bytes)?));
            match read {
                Ok(record) if is_uid(&record.uid) && path == self::path(dir, &record.uid) => {
                    found.push(record.in_boot(&boot));
                }
                Ok(_) => {
                    tracing::warn!(path = %path.display(), "a record of another pod; left out");
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a record that cannot be read");
                    let uid = path.file_stem().and_then(|stem| stem.to_str());
                    unreadable.extend(uid.filter(|uid| is_uid(uid)).map(str::to_owned));
                }
            }
        }
        Ok((found, unreadable))
    }

    /// Forgets processes of an earlier boot.
    fn in_boot(mut self, boot: &str) -> Self {
        if self.boot != boot {
            boot.clone_into(&mut self.boot);
            if let Some(mount) = &mut self.mount {
                mount.holder = None;
            }
        }
        self
    }
}

fn path(dir: &Path, uid: &str) -> PathBuf {
    dir.join(format!("{uid}.json"))
}

/// The random name of this boot; empty where the kernel does not say, which is the same name always.
fn boot() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str, holder: Option<Process>) -> Record {
        let mount = Mount { target: "/t".into(), worker: 65534, holder };
        Record { mount: Some(mount), ..Record::new(uid.to_owned(), "ml/trainer".to_owned()) }
    }

    #[test]
    fn what_is_written_is_read_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let own = Process::find(std::process::id());
        let (one, two) = (record("one", own), record("two", None));
        one.write(dir.path()).unwrap();
        two.write(dir.path()).unwrap();
        two.write(dir.path()).unwrap();
        std::fs::write(dir.path().join("three.json"), "{").unwrap();
        std::fs::write(dir.path().join("four.json"), serde_json::to_vec(&one).unwrap()).unwrap();
        std::fs::write(dir.path().join("two.new"), "").unwrap();
        let (mut found, unreadable) = Record::read_all(dir.path()).unwrap();
        assert_eq!(unreadable, ["three"]);
        found.sort_by(|a, b| a.uid.cmp(&b.uid));
        assert_eq!(found, [one, two]);
        Record::remove(dir.path(), "one").unwrap();
        Record::remove(dir.path(), "one").unwrap();
        assert_eq!(Record::read_all(dir.path()).unwrap().0.len(), 1);
    }

    #[test]
    fn a_process_is_no_other_with_its_number() {
        let own = Process::find(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { start_ticks: own.start_ticks + 1, ..own }.is_alive());
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        // It stays as a zombie until it is waited for.
        while Process::find(child.id()).is_some() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(Process::find(child.id()), None);
        child.wait().unwrap();
    }

    #[test]
    fn holders_do_not_outlive_a_boot() {
        let own = Process::find(std::process::id());
        let before = Record { boot: "another".to_owned(), ..record("one", own) };
        assert_eq!(before.clone().in_boot("another").mount.unwrap().holder, own);
        assert_eq!(before.in_boot("this").mount.unwrap().holder, None);
    }
}
