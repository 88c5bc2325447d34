//! Directories of 100,000 entries, in a process of their own because memory is measured.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.
#![allow(dead_code)] // The harness has more than this test needs.

#[path = "kernel/harness.rs"]
mod harness;

use std::ffi::OsStr;
use std::time::Instant;

use store::testing::Operation;

use harness::{Mounted, run};

const ENTRIES: usize = 100_000;

#[test]
fn a_hundred_thousand_entries_cost_one_listing() {
    let Some(m) = Mounted::with(
        |store| {
            for n in 0..ENTRIES {
                store.insert(&format!("d/{n:06}"), "");
            }
        },
        |config| config.metadata_ttl = std::time::Duration::from_mins(10),
    ) else {
        return;
    };
    let dir = m.path("d");
    std::fs::metadata(&dir).unwrap();
    m.faulty.calls().reset();
    let before = resident_kib();

    let began = Instant::now();
    let listed = run("ls", &[OsStr::new("-f"), dir.as_os_str()]);
    assert_eq!(listed.lines().count(), ENTRIES + 2);
    eprintln!("ls -f: {:?}", began.elapsed());
    assert_eq!(m.faulty.calls().of(Operation::List), (ENTRIES / 1000) as u64);
    assert_eq!(m.faulty.calls().of(Operation::Head), 0);

    m.faulty.calls().reset();
    let began = Instant::now();
    let long = run("ls", &[OsStr::new("-lR"), dir.as_os_str()]);
    // A line for the directory, one for the total.
    assert_eq!(long.lines().count(), ENTRIES + 2);
    eprintln!("ls -lR: {:?}", began.elapsed());
    assert!(began.elapsed().as_secs() < 60);
    assert!(m.faulty.calls().of(Operation::List) <= (ENTRIES / 1000) as u64 + 1);
    // The listing brings the metadata; the kernel asks again only for what it was told more than a
    // second ago, which a busy machine may take for a few.
    assert!(m.faulty.calls().of(Operation::Head) < (ENTRIES / 10) as u64);

    // Names, nodes and what the kernel is told, but not the listing again for every reader.
    let grown = resident_kib().saturating_sub(before);
    eprintln!("grown by {} MiB", grown / 1024);
    assert!(grown < 150 * 1024, "grown by {grown} KiB");

    // Reading after listing costs no listing: at most a HEAD to find each file and one to open it,
    // which the cache below answers.
    m.faulty.calls().reset();
    for n in 0..1000 {
        assert_eq!(std::fs::read(dir.join(format!("{n:06}"))).unwrap(), b"");
    }
    assert_eq!(m.faulty.calls().of(Operation::List), 0);
    assert!((1000..=2000).contains(&m.faulty.calls().of(Operation::Head)));
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
