//! Readers of a mount, each a process of its own, that verify what they read.
//!
//! Invariant: a reader that was started has ended, with its account taken or itself killed, when its
//! handle is gone. One that cannot end (the kernel holds it) is a panic that shows where it stands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::Process;

use crate::DataSet;
use crate::processes::{kernel_stacks, state};

/// The longest that one operation may take before it is called a hang.
pub const HANG: Duration = Duration::from_secs(30);

/// How a reader reads; what each does is in `src/bin/system-reader.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Whole files, one after the other.
    Sequential,
    /// Pieces from anywhere in a few open files.
    Random,
    /// Pages of shared mappings.
    Mapped,
    /// Listings and attributes.
    Walk,
    /// All files at once, a thread for each.
    Many,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Sequential => "sequential",
            Kind::Random => "random",
            Kind::Mapped => "mapped",
            Kind::Walk => "walk",
            Kind::Many => "many",
        }
    }
}

/// A reader at work.
#[derive(Debug)]
pub struct Reader {
    kind: Kind,
    process: Process,
    until: PathBuf,
    output: PathBuf,
}

/// What a reader saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Calls that were made, those that failed included.
    pub operations: u64,
    /// Bytes that were read and verified.
    pub bytes: u64,
    /// Times that the whole list was read.
    pub passes: u64,
    /// Calls that worked since the last that failed.
    pub since_error: u64,
    /// How often each errno was seen.
    pub errors: BTreeMap<String, u64>,
    /// Reads with wrong bytes, listings that lack a name, files that end too early.
    pub wrong: u64,
    /// Reads that ended before they had to: an error that came behind bytes that were read.
    pub short: u64,
    /// The first few errors and wrong bytes.
    pub shown: Vec<String>,
    /// The longest that a call took, and which call it was.
    pub longest: (Duration, String),
}

impl Reader {
    /// Starts a reader of the objects of `set` below `folder`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(kind: Kind, set: &DataSet, folder: &Path, scratch: &Path) -> Reader {
        Reader::start_with(kind, set, folder, scratch, &[])
    }

    /// A reader that ends at its first error.
    pub fn start_until_error(kind: Kind, set: &DataSet, folder: &Path, scratch: &Path) -> Reader {
        Reader::start_with(kind, set, folder, scratch, &["--stop-at-error"])
    }

    fn start_with(
        kind: Kind,
        set: &DataSet,
        folder: &Path,
        scratch: &Path,
        arguments: &[&str],
    ) -> Reader {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |what: &str| scratch.join(format!("reader-{number}-{}.{what}", kind.name()));
        let (list, until, output) = (name("list"), name("until"), name("out"));
        set.write_list(&list);
        let mut command = Command::new(crate::built("system-reader"));
        command.arg(kind.name()).arg(list).arg(folder).arg(&until).args(arguments);
        let process = Process::spawn("reader", command, &output).expect("readers can be started");
        Reader { kind, process, until, output }
    }

    /// The reader's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Waits for a reader that ends by itself (at its first error); what it saw.
    ///
    /// # Panics
    /// When it does not end in time. (One that a fault has ended has seen an error.)
    pub fn ended(self, limit: Duration) -> Seen {
        let begun = Instant::now();
        let Some(status) = self.process.wait(limit) else {
            let pid = self.pid();
            let stacks = kernel_stacks(pid);
            let state = state(pid);
            self.process.kill();
            panic!(
                "a {} reader does not end: state {state:?} after {:?}\n{stacks}",
                self.kind.name(),
                begun.elapsed()
            );
        };
        let text = std::fs::read_to_string(&self.output).unwrap_or_default();
        let account = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        match (status.success(), account) {
            (true, Some(account)) => Seen::parse(&account),
            // A page of a mapping that cannot be had is SIGBUS, and no account.
            _ => Seen {
                errors: BTreeMap::from([(status.to_string(), 1)]),
                shown: vec![format!("ended with {status}: {}", text.trim())],
                ..Seen::default()
            },
        }
    }

    /// Has it end, and returns what it saw.
    ///
    /// # Panics
    /// When a call of it hangs.
    pub fn end(self) -> Seen {
        self.tell_to_end();
        self.ended(HANG)
    }

    fn tell_to_end(&self) {
        std::fs::write(&self.until, "").expect("the scratch folder is writable");
    }

    /// Ends several and prints a line for each; what each kind of them saw.
    pub fn end_all(readers: Vec<Reader>) -> Vec<(Kind, Seen)> {
        readers.iter().for_each(Reader::tell_to_end);
        let ended = readers.into_iter().map(|reader| (reader.kind, reader.end()));
        let mut ended: Vec<_> = ended.collect();
        ended.sort_by_key(|(kind, _)| *kind);
        for (kind, seen) in &ended {
            println!("{:>10}: {}", kind.name(), seen.summary());
        }
        ended
    }
}

impl Seen {
    fn parse(account: &Value) -> Seen {
        let number = |name: &str| account[name].as_u64().unwrap_or_default();
        let errors = account["errors"].as_object().into_iter().flatten();
        let shown = account["shown"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let longest = account["longest_ms"].as_f64().unwrap_or_default() / 1000.0;
        Seen {
            operations: number("operations"),
            bytes: number("bytes"),
            passes: number("passes"),
            since_error: number("since_error"),
            errors: errors.map(|(n, c)| (n.clone(), c.as_u64().unwrap_or_default())).collect(),
            wrong: number("wrong"),
            short: number("short"),
            shown: shown.map(text).collect(),
            longest: (Duration::from_secs_f64(longest), text(&account["longest_what"])),
        }
    }

    /// How often an errno was seen.
    pub fn errors_of(&self, errno: i32) -> u64 {
        self.errors.get(&errno.to_string()).copied().unwrap_or_default()
    }

    /// Every error that was seen.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// True without an error, a wrong byte or a read that was cut.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.wrong == 0 && self.short == 0
    }

    /// One line.
    pub fn summary(&self) -> String {
        let (longest, what) = &self.longest;
        let mut text = format!(
            "{} calls, {} MiB, {} passes, {} errors, {} wrong, {} short, longest {:.0} ms ({what})",
            self.operations,
            self.bytes >> 20,
            self.passes,
            self.error_count(),
            self.wrong,
            self.short,
            longest.as_secs_f64() * 1000.0,
        );
        for line in &self.shown {
            text.push_str("\n    ");
            text.push_str(line);
        }
        text
    }
}
