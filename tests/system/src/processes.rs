//! What the kernel tells about processes that a test started, and signals to single ones.
//!
//! Invariant: only descendants of this test are ever signalled, and it is looked whether they still
//! are right before.

use std::path::PathBuf;

use rustix::process::{Pid, Signal};

/// The fields of `/proc/PID/stat` after the name: state, parent, ...
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may contain anything.
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// The state of a process (`R`, `S`, `D`, `T`, `Z`...); `None` when there is none of this number.
pub fn state(pid: u32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The arguments of a process, the program first; empty for one that has ended.
pub fn arguments(pid: u32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = text.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn all() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The children of a process that have not ended.
pub fn children(pid: u32) -> Vec<u32> {
    all().filter(|child| parent(*child) == Some(pid) && state(*child) != Some('Z')).collect()
}

/// Every process whose arguments contain this text: what a test's own folder finds is the test's.
pub fn with_argument(text: &str) -> Vec<u32> {
    all().filter(|pid| arguments(*pid).iter().any(|argument| argument.contains(text))).collect()
}

/// Sends a signal to one process (not its group); false when it is gone.
pub fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}

/// Where each thread of a process stands in the kernel, for messages; needs root.
pub fn kernel_stacks(pid: u32) -> String {
    let mut text = String::new();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks.take(8) {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, at, stack) = (read("comm"), read("wchan"), read("stack"));
        text.extend([name.trim(), " in ", &at, "\n", &stack]);
    }
    text
}

/// The program named `name` that cargo made beside the running test.
///
/// # Panics
/// When it was not built.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let folder = test.ancestors().nth(2).expect("tests lie in target/<profile>/deps");
    let program = folder.join(name);
    assert!(program.exists(), "{} is not built: cargo build --bins", program.display());
    program
}
