//! The structure that ARCHITECTURE.md draws, held against `cargo metadata`: which crate may name
//! which, where each large dependency is named, and under which licences the rest comes.

// Helpers outside of #[test] functions are test code too.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Who may depend on whom among our own crates, outside of tests.
const ARROWS: &[(&str, &[&str])] = &[
    ("store", &[]),
    ("backends", &["store"]),
    ("cache", &["store"]),
    ("s3gw", &["store"]),
    ("fusemount", &["store"]),
    ("cluster", &[]),
    ("sidecar", &["backends", "cache", "cluster", "fusemount", "s3gw", "store"]),
];

/// Crates that exist for the tests; they may be dev-dependencies of any crate.
const TEST_CRATES: &[&str] = &["testkit", "system-tests"];

/// Dependencies that one crate hides from all others.
const HIDDEN: &[(&str, &str)] = &[
    ("foyer", "cache"),
    ("object_store", "backends"),
    ("s3s", "s3gw"),
    ("fuser", "fusemount"),
    ("kube", "cluster"),
    ("tonic", "cluster"),
];

fn metadata() -> Value {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Our packages with the names of what they depend on: (always, only in their tests).
fn ours(metadata: &Value) -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let members: Vec<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .filter(|p| members.contains(&p["id"].as_str().unwrap()))
        .map(|package| {
            let (mut always, mut tests) = (BTreeSet::new(), BTreeSet::new());
            for dependency in package["dependencies"].as_array().unwrap() {
                let name = dependency["name"].as_str().unwrap().to_owned();
                let set = if dependency["kind"] == "dev" { &mut tests } else { &mut always };
                set.insert(name);
            }
            (package["name"].as_str().unwrap().to_owned(), (always, tests))
        })
        .collect()
}

#[test]
fn only_the_drawn_arrows_exist() {
    let ours = ours(&metadata());
    let drawn: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let all: BTreeSet<&str> = ours.keys().map(String::as_str).collect();
    let expected: BTreeSet<&str> =
        drawn.keys().copied().chain(TEST_CRATES.iter().copied()).collect();
    assert_eq!(all, expected, "a crate came or went: draw it in ARCHITECTURE.md and here");
    for (name, allowed) in drawn {
        let (always, tests) = &ours[name];
        let found: Vec<&str> =
            always.iter().map(String::as_str).filter(|d| all.contains(d)).collect();
        assert!(found.iter().all(|d| allowed.contains(d)), "{name} depends on {found:?}");
        let found: Vec<&str> =
            tests.iter().map(String::as_str).filter(|d| all.contains(d)).collect();
        let fine = |d: &&str| *d == "store" || *d == "testkit" || allowed.contains(d);
        assert!(found.iter().all(fine), "the tests of {name} depend on {found:?}");
    }
}

#[test]
fn each_large_dependency_has_one_home() {
    let ours = ours(&metadata());
    for (dependency, home) in HIDDEN {
        for (name, (always, tests)) in &ours {
            let named = always.contains(*dependency) || tests.contains(*dependency);
            assert_eq!(named, name == home, "{name} and {dependency}");
        }
    }
}

#[test]
fn store_has_no_runtime_and_no_io() {
    let ours = ours(&metadata());
    let (always, _) = &ours["store"];
    let testing = ["md-5", "hex", "tokio", "parking_lot"];
    let rest: Vec<_> = always.iter().filter(|d| !testing.contains(&d.as_str())).collect();
    assert_eq!(rest, ["async-trait", "bytes", "futures", "thiserror"]);
}

/// The licences that deny.toml allows, read from its one list.
fn allowed_licences() -> Vec<String> {
    let text = include_str!("../../../deny.toml");
    let list = text.split_once("allow = [").unwrap().1.split_once(']').unwrap().0;
    list.lines()
        .filter_map(|l| l.trim().strip_prefix('"')?.split('"').next())
        .map(str::to_owned)
        .collect()
}

/// Whether an SPDX expression can be met with the allowed licences: any side of OR, every side of
/// AND. Parentheses are resolved innermost first.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let mut text = expression.replace(" / ", " OR ").replace('/', " OR ");
    while let Some(close) = text.find(')') {
        let open = text[..close].rfind('(').unwrap();
        let inner = if is_met(&text[open + 1..close], allowed) { "MIT" } else { "none" };
        text.replace_range(open..=close, inner);
    }
    let all_met = |conjunction: &str| {
        conjunction.split(" AND ").all(|one| allowed.iter().any(|a| a == one.trim()))
    };
    text.split(" OR ").any(all_met)
}

#[test]
fn licences_of_all_dependencies_are_allowed() {
    let allowed = allowed_licences();
    assert!(allowed.iter().any(|a| a == "MIT"), "deny.toml could not be read: {allowed:?}");
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "only {} packages", packages.len());
    for package in packages {
        let expression = package["license"].as_str().unwrap_or("none");
        assert!(is_met(expression, &allowed), "{}: {expression}", package["name"]);
    }
}

#[test]
fn licence_expressions_are_read_right() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned()];
    for met in ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "ISC AND (GPL-3.0 OR MIT)"] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "ISC AND (GPL-3.0 OR X)", "none"] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}
