//! The termination message of a container: what `kubectl describe pod` shows of how it ended.
//!
//! Invariant: at most [`MOST_BYTES`], whole lines, the first ones first. Writing it never fails what
//! it tells of. Outside of a container there is none, unless a path is given.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::cli::Stop;

/// What kubelet reads of it; it cuts what is longer.
const MOST_BYTES: usize = 4096;
/// Where kubelet puts the file if nothing else is said.
const DEFAULT: &str = "/dev/termination-log";

/// A file that takes the message, where there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct TerminationLog {
    path: Option<PathBuf>,
    /// What was not finished, told once; a failure of the same end is told with it.
    unfinished: Arc<OnceLock<Vec<String>>>,
}

impl TerminationLog {
    /// The file that is given, or that of this container.
    pub(crate) fn find(given: Option<&Path>) -> Self {
        let usual = || {
            let first = 1;
            let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
            let contained = std::process::id() == first
                || parent == Some(first.cast_signed())
                || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
            let path = Path::new(DEFAULT);
            (contained && path.is_file()).then(|| path.to_owned())
        };
        Self { path: given.map(Path::to_owned).or_else(usual), unfinished: Arc::default() }
    }

    /// Writes the message in place of what an earlier process wrote.
    pub(crate) fn write<T: AsRef<str>>(&self, lines: &[T]) {
        let Some(path) = &self.path else { return };
        let text = message(lines);
        if text.is_empty() && std::fs::metadata(path).is_ok_and(|found| found.len() == 0) {
            return;
        }
        let opened = OpenOptions::new().create(true).write(true).truncate(true).open(path);
        if let Err(error) = opened.and_then(|mut file| file.write_all(text.as_bytes())) {
            eprintln!("warpdrive: termination message {}: {error}", path.display());
        }
    }

    /// Writes what this process leaves unfinished.
    pub(crate) fn write_unfinished(&self, lines: Vec<String>) {
        self.write(self.unfinished.get_or_init(|| lines));
    }

    /// Writes why a command failed, where it failed for a reason that is this process' own, and
    /// after it what was left unfinished.
    pub(crate) fn write_failure(&self, outcome: &Result<(), Stop>) {
        if let Err(Stop::Failed(what) | Stop::Unusable(what)) = outcome {
            let unfinished = self.unfinished.get().into_iter().flatten();
            self.write(&what.lines().chain(unfinished.map(String::as_str)).collect::<Vec<_>>());
        }
    }
}

/// As many lines as fit, and how many do not.
fn message<T: AsRef<str>>(lines: &[T]) -> String {
    /// `and 18446744073709551615 more` with its line's end.
    const REST_BYTES: usize = 32;
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let line = line.as_ref();
        let left = lines.len() - index;
        let room = MOST_BYTES - text.len() - if left > 1 { REST_BYTES } else { 1 };
        if line.len() <= room {
            text.push_str(line);
            text.push('\n');
            continue;
        }
        if text.is_empty() {
            let end = (0..=room).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
            text.push_str(&line[..end]);
            text.push('\n');
            if left == 1 {
                break;
            }
        }
        let unsaid = lines.len() - text.lines().count();
        text.extend(["and ", &unsaid.to_string(), " more\n"]);
        break;
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_whole_and_the_rest_is_counted() {
        assert_eq!(message::<&str>(&[]), "");
        assert_eq!(message(&["one", "two"]), "one\ntwo\n");
        let long = "x".repeat(1000);
        let text = message(&vec![long.clone(); 10]);
        assert_eq!(text, format!("{long}\n{long}\n{long}\n{long}\nand 6 more\n"));
        let umlauts = message(&["\u{fc}".repeat(5000)]);
        assert!(umlauts.len() <= MOST_BYTES && umlauts.len() > MOST_BYTES - 4);
        assert!(message(&["y".repeat(9000), "z".to_owned()]).ends_with("y\nand 1 more\n"));
    }

    proptest! {
        #[test]
        fn no_message_is_too_long(lines in prop::collection::vec("\\PC{0,900}", 0..12)) {
            let text = message(&lines);
            prop_assert!(text.len() <= MOST_BYTES);
            if lines.iter().map(|line| line.len() + 1).sum::<usize>() + 32 <= MOST_BYTES {
                prop_assert_eq!(text.lines().count(), lines.len());
            }
        }
    }

    #[test]
    fn a_failure_leaves_what_was_unfinished_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = TerminationLog::find(Some(&path));
        log.clone().write_unfinished(vec!["cut off: a".to_owned(), "left: b".to_owned()]);
        let said = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(said(), "cut off: a\nleft: b\n");
        log.write_failure(&Ok(()));
        assert_eq!(said(), "cut off: a\nleft: b\n");
        log.write_failure(&Err(Stop::Failed("no unmount\nfor two reasons".to_owned())));
        assert_eq!(said(), "no unmount\nfor two reasons\ncut off: a\nleft: b\n");
    }

    #[test]
    fn the_last_message_is_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = TerminationLog::find(Some(&path));
        log.write::<&str>(&[]);
        log.write_failure(&Err(Stop::Unusable("a\n  b".to_owned())));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\n  b\n");
        log.write_failure(&Err(Stop::Silent));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\n  b\n");
        log.write::<&str>(&[]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        TerminationLog::find(Some(Path::new("/no/such/folder/log"))).write(&["lost"]);
    }
}
