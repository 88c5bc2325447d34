//! The documents, held against the repository: links lead somewhere, every sentence of the
//! semantics names a test that exists, the architecture stays short, and nothing names a machine.

// Helpers outside of #[test] functions are test code too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Two printed pages at some 55 lines each.
const TWO_PAGES_LINES: usize = 110;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every file that git tracks, or would: the repository without what it ignores.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| root().join(line)).filter(|path| path.exists()).collect()
}

fn with_extension<'a>(files: &'a [PathBuf], wanted: &'a str) -> impl Iterator<Item = &'a PathBuf> {
    files.iter().filter(move |path| path.extension().is_some_and(|e| e == wanted))
}

#[test]
fn links_lead_somewhere() {
    let files = files();
    let mut seen = 0;
    for page in with_extension(&files, "md") {
        let text = std::fs::read_to_string(page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            seen += 1;
            assert!(page.parent().unwrap().join(path).exists(), "{}: {target}", page.display());
        }
    }
    assert!(seen > 10, "only {seen} links were found");
}

#[test]
fn the_architecture_fits_two_pages() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let lines = text.lines().count();
    assert!(lines <= TWO_PAGES_LINES, "{lines} lines");
}

/// Names of all functions, Rust and Python.
fn functions() -> BTreeSet<String> {
    let files = files();
    let mut names = BTreeSet::new();
    for (extension, keyword) in [("rs", "fn "), ("py", "def ")] {
        for path in with_extension(&files, extension) {
            let text = std::fs::read_to_string(path).unwrap();
            for rest in text.split(keyword).skip(1) {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0);
                names.insert(rest[..end].to_owned());
            }
        }
    }
    names
}

#[test]
fn every_sentence_of_the_semantics_names_a_test() {
    let functions = functions();
    for page in ["semantics.md", "semantics-posix.md", "semantics-s3.md"] {
        let text = std::fs::read_to_string(root().join("docs").join(page)).unwrap();
        let mut sentences = 0;
        for row in text.lines().filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            if matches!(cells[0], "promise" | "---") {
                continue;
            }
            let named: Vec<&str> = cells.last().unwrap().split('`').skip(1).step_by(2).collect();
            assert!(cells.len() >= 2 && !named.is_empty(), "{page}: no test for: {row}");
            for name in named {
                let function = name.rsplit("::").next().unwrap();
                assert!(functions.contains(function), "{page}: no test `{name}`");
            }
            sentences += 1;
        }
        assert!(sentences > 15, "only {sentences} sentences were found in {page}");
    }
}

#[test]
fn nothing_names_a_machine() {
    // In two pieces, so that this file does not name them either.
    let forbidden =
        [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat(), ["artifac", "tory"].concat()];
    for path in files() {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for name in &forbidden {
            let shown = path.display();
            assert!(!text.contains(name.as_str()), "{shown} names `{name}`");
        }
    }
}
