//! The memory that this process' control group allows.
//!
//! Invariant: it only reads. What cannot be read is no limit: a warning that is wrong is worse than
//! none.

use std::path::{Path, PathBuf};

use crate::config::{Settings, about};

/// Above this a limit is none: version 1 writes its largest number of pages.
const NO_LIMIT: u64 = 1 << 60;
/// What a sidecar holds beside its memory tier, where `cache.memory_limit` does not say: see there.
const BESIDE_TIER_BYTES: u64 = 256 << 20;
/// What a container needs beside the worker: the supervisor, probes that are executed in it, and pages
/// of the cache's files that are being written.
const BESIDE_WORKER_BYTES: u64 = 128 << 20;

/// What is to be said of the limit of this process, if it is lower than what the settings allow.
pub(crate) fn note(settings: &Settings) -> Option<String> {
    said(settings, limit(Path::new("/"))?)
}

fn said(settings: &Settings, limit: u64) -> Option<String> {
    let cache = &settings.cache;
    let bound = cache.memory_limit_bytes.unwrap_or(cache.memory_bytes + BESIDE_TIER_BYTES);
    let wanted = bound + BESIDE_WORKER_BYTES;
    (limit < wanted).then(|| {
        format!(
            "the memory limit of this container is {}, and the configuration lets the sidecar hold {} \
             (`cache.memory` {} and what is on its way): raise the limit to {} or more, or lower \
             `cache.memory`; otherwise the kernel may kill it under load",
            about(limit),
            about(bound),
            about(cache.memory_bytes),
            about(wanted),
        )
    })
}

/// The lowest limit of the groups that this process is in, of either version.
fn limit(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounted = root.join("sys/fs/cgroup");
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        if controllers.is_empty() {
            return lowest(&mounted, group, "memory.max");
        }
        let is_memory = controllers.split(',').any(|name| name == "memory");
        let mounted = mounted.join("memory");
        is_memory.then(|| lowest(&mounted, group, "memory.limit_in_bytes")).flatten()
    });
    limits.min()
}

/// The lowest of a group and those above it. In a container the path may be that of the node, of
/// which only the mounted root is to be seen.
fn lowest(mounted: &Path, group: &str, file: &str) -> Option<u64> {
    let mut at: PathBuf = mounted.join(group.trim_start_matches('/'));
    let mut found = None;
    loop {
        let text = std::fs::read_to_string(at.join(file)).unwrap_or_default();
        let limit = text.trim().parse::<u64>().ok().filter(|limit| *limit < NO_LIMIT);
        found = found.into_iter().chain(limit).min();
        if at == mounted || !at.pop() {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn limits_of_both_versions() {
        let found = |files: &[(&str, &str)]| limit(root(files).path());
        // In a container of version 2 the group is the root.
        let two = [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "1073741824\n")];
        assert_eq!(found(&two), Some(1 << 30));
        let above = [
            ("proc/self/cgroup", "0::/pod/worker\n"),
            ("sys/fs/cgroup/pod/memory.max", "500\n"),
            ("sys/fs/cgroup/pod/worker/memory.max", "max\n"),
        ];
        assert_eq!(found(&above), Some(500));
        // Version 1: the node's path is not there, or is.
        let one = [
            ("proc/self/cgroup", "9:cpu,cpuacct:/x\n8:memory:/kubepods/pod1/c\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n"),
        ];
        assert_eq!(found(&one), Some(4096));
        let none = [
            ("proc/self/cgroup", "8:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(found(&none), None);
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("proc/self/cgroup", "nonsense\n0::\n")]), None);
    }

    #[test]
    fn a_limit_that_is_too_low_is_said_with_what_would_do() {
        let with = |cache: &str| {
            let text = format!(
                "backends: [{{name: a, type: local, config: {{path: /a}}}}]\ncache: {{{cache}}}"
            );
            parse(&text, &Environment::from([])).unwrap()
        };
        let settings = with("memory: 512MiB");
        assert_eq!(said(&settings, 896 << 20), None);
        let note = said(&settings, 700 << 20).unwrap();
        for part in ["700.0 MiB", "768.0 MiB", "896.0 MiB", "`cache.memory`"] {
            assert!(note.contains(part), "{part}: {note}");
        }
        let settings = with("memory: 512MiB, memory_limit: 1GiB");
        assert!(said(&settings, 1 << 30).unwrap().contains("1.1 GiB or more"));
    }
}
