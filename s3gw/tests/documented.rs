//! Every promise of `docs/semantics-s3.md` names tests, and these exist.
//!
//! Invariant: a promise without a test, or a test that was renamed, fails here.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::path::Path;

fn source(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The files in which a test of that path may be.
fn candidates(root: &Path, modules: &[&str]) -> Vec<String> {
    let joined = modules.join("/");
    let inner = joined.strip_suffix("/tests").unwrap_or(&joined);
    vec![
        source(&root.join(format!("tests/wire/{joined}.rs"))),
        source(&root.join(format!("tests/{joined}.rs"))),
        source(&root.join(format!("src/{inner}.rs"))),
        source(&root.join(format!("src/{joined}.rs"))),
    ]
}

#[test]
fn promises_have_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = ["semantics-s3.md", "semantics.md"]
        .into_iter()
        .map(|name| root.join("../docs").join(name))
        .find(|path| path.exists())
        .expect("the page of promises");
    let mut promises = 0;
    for line in source(&page).lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [promise, tests] = cells[..] else { panic!("a row has not two cells: {line}") };
        if matches!(tests.trim(), "test" | "---") || tests.contains("fusemount::") {
            continue;
        }
        promises += 1;
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test for: {promise}");
        for name in names {
            let path = name.strip_prefix("s3gw::").unwrap_or(name);
            let mut modules: Vec<&str> = path.split("::").collect();
            let function = modules.pop().unwrap_or_default();
            let wanted = format!("fn {function}(");
            let found = candidates(root, &modules).iter().any(|text| text.contains(&wanted));
            assert!(found, "there is no test `{name}`");
        }
    }
    assert!(promises > 30, "only {promises} promises were found");
}
