//! What the machine is, for the report.
//!
//! Invariant: nothing here names the machine or its user; what cannot be found is left out.

use std::path::Path;

use super::scale::GIB;

/// Name and value of each fact.
pub(crate) fn facts(folder: &Path) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            facts.push((name.to_owned(), value));
        }
    };
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let cpu = read("/proc/cpuinfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    add("processor", cpu);
    add("cores", std::thread::available_parallelism().ok().map(|n| n.to_string()));
    let memory = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(format!("{:.1} GiB", kib as f64 * 1024.0 / GIB as f64))
    });
    add("memory", memory);
    add("kernel", read("/proc/sys/kernel/osrelease").map(|text| format!("Linux {}", text.trim())));
    add("file system", file_system(folder));
    let load = read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let load = load.map(|load| {
        // Half of the cores at work for others is more than the spread of repetitions shows.
        let busy = load > cores / 2.0;
        format!("{load}{}", if busy { ": busy, so the figures are of little use" } else { "" })
    });
    add("load at the start", load);
    let build =
        if cfg!(debug_assertions) { "unoptimised: its figures say nothing" } else { "release" };
    add("build", Some(build.to_owned()));
    facts
}

/// The type of the file system that holds a folder.
fn file_system(folder: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    // Of mounts at one point the last one is seen.
    let inside = mounts.filter(|(point, _)| folder.starts_with(point));
    inside.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cores_and_a_file_system() {
        let facts = facts(&std::env::temp_dir());
        let value = |name: &str| facts.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        assert!(value("cores").unwrap().parse::<usize>().unwrap() > 0);
        assert_eq!(file_system(Path::new("/proc/self")).as_deref(), Some("proc"));
        assert!(value("kernel").unwrap().starts_with("Linux "));
    }
}
