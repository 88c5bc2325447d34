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

/// Names of all test functions, Rust and Python, as `file_stem::function`.
fn tests() -> BTreeSet<String> {
    let files = files();
    let mut names = BTreeSet::new();
    for (extension, keyword) in [("rs", "fn "), ("py", "def ")] {
        for path in with_extension(&files, extension) {
            let text = std::fs::read_to_string(path).unwrap();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            for rest in text.split(keyword).skip(1) {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0);
                names.insert(format!("{stem}::{}", &rest[..end]));
            }
        }
    }
    names
}

#[test]
fn every_sentence_of_the_semantics_names_a_test() {
    let text = std::fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let tests = tests();
    let mut sentences = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let named = cells.last().unwrap();
        if named.starts_with("---") || !named.contains('`') {
            assert!(!row.contains(". |"), "a sentence without a test: {row}");
            continue;
        }
        sentences += 1;
        for name in named.split('`').skip(1).step_by(2) {
            assert!(tests.contains(name), "no test `{name}` for: {}", cells[0]);
        }
    }
    assert!(sentences > 30, "only {sentences} sentences were found");
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
