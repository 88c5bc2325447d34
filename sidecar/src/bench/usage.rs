//! What processes cost: CPU time and memory, from `/proc`.
//!
//! Invariant: a target's cost is that of every process it consists of (a worker, its holder, a server's
//! children), and never that of the reader. It refuses to guess: a process that cannot be read counts
//! nothing.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

/// The variable that marks the processes of a bench; its value is the folder they work in.
pub(crate) const MARK: &str = "WARPDRIVE_BENCH";

/// `/proc/PID/stat` counts in ticks of 10 ms, which the kernel fixes at 100 a second for programs.
const TICK: Duration = Duration::from_millis(10);

/// The processes that work in `folder` or below: those that carry its mark, those whose command line
/// names it and that are this program, those in `known` (a program may overwrite its mark), and all of
/// their children.
pub(crate) fn members(folder: &Path, known: &[u32]) -> Vec<u32> {
    let mark = format!("{MARK}={}", folder.display());
    let named = folder.display().to_string();
    let own = std::env::current_exe().ok();
    let mut found = HashSet::new();
    let mut parents = Vec::new();
    for pid in processes() {
        if pid == std::process::id() {
            continue;
        }
        let at = format!("/proc/{pid}");
        let marked = std::fs::read(format!("{at}/environ")).is_ok_and(|environ| {
            environ.split(|b| *b == 0).any(|one| is_or_is_below(one, mark.as_bytes()))
        });
        let ours = || {
            std::fs::read_link(format!("{at}/exe")).ok() == own
                && std::fs::read(format!("{at}/cmdline"))
                    .is_ok_and(|line| contains(&line, named.as_bytes()))
        };
        if marked || known.contains(&pid) || ours() {
            found.insert(pid);
        }
        parents.push((pid, stat_field(pid, PARENT).unwrap_or(0)));
    }
    // A child of a child is found in the round after its parent.
    loop {
        let before = found.len();
        for (pid, parent) in &parents {
            if found.contains(&(*parent as u32)) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    let mut found: Vec<u32> = found.into_iter().collect();
    found.sort_unstable();
    found
}

/// Whether a text is `mark` itself or `mark` with a path below it.
fn is_or_is_below(text: &[u8], mark: &[u8]) -> bool {
    text.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len().max(1)).any(|window| window == part)
}

fn processes() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

// Positions after the name of the process, counted from its state.
const PARENT: usize = 1;
const GROUP_USER: usize = 11;
const GROUP_SYSTEM: usize = 12;

fn stat_field(pid: u32, index: usize) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(index)?.parse().ok()
}

/// CPU time at one moment, counted in two ways.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    /// Of all threads that ever were, in ticks.
    ticks: Duration,
    processes: u32,
    /// Of the threads that are, exactly.
    exact: Duration,
}

impl Cpu {
    /// The time these processes have used so far.
    pub(crate) fn of(pids: &[u32]) -> Self {
        let mut cpu = Self::default();
        for &pid in pids {
            let fields = [GROUP_USER, GROUP_SYSTEM].iter();
            let ticks: u64 = fields.filter_map(|field| stat_field(pid, *field)).sum();
            cpu.ticks += TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
            cpu.processes += 1;
            let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads.flatten() {
                let text = std::fs::read_to_string(thread.path().join("schedstat"));
                let nanos = text.ok().and_then(|t| t.split(' ').next()?.parse().ok());
                cpu.exact += Duration::from_nanos(nanos.unwrap_or(0));
            }
        }
        cpu
    }

    /// Seconds used since an earlier look: the exact count, unless a thread that ended in between took
    /// more time along than ticks can be wrong by (one for user and one for system, a process).
    pub(crate) fn since(self, earlier: Self) -> f64 {
        let exact = self.exact.as_secs_f64() - earlier.exact.as_secs_f64();
        let ticks = self.ticks.as_secs_f64() - earlier.ticks.as_secs_f64();
        let wrong_by = TICK.as_secs_f64() * 2.0 * f64::from(self.processes.max(1));
        if (ticks - exact).abs() <= wrong_by { exact.max(0.0) } else { ticks.max(0.0) }
    }
}

/// Peak resident memory of these processes, added up.
pub(crate) fn peak_bytes(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| status_bytes(*pid, "VmHWM:")).sum()
}

fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_process_and_its_children_are_found_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 30 & echo started; wait"])
            .env(MARK, folder.path().join("target"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let found = members(folder.path(), &[]);
        assert!(found.contains(&child.id()) && found.len() == 2, "{found:?} of {}", child.id());
        assert!(members(&folder.path().join("targ"), &[]).is_empty());
        assert!(peak_bytes(&found) > 0);
        for pid in found {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        child.wait().unwrap();
    }

    #[test]
    fn work_is_counted_finer_than_ticks() {
        let me = [std::process::id()];
        let before = Cpu::of(&me);
        let begun = std::time::Instant::now();
        let mut sum = 0_u64;
        while begun.elapsed() < Duration::from_millis(30) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(Cpu::of(&me).since(before) > 0.001);
    }
}
