//! Every test that the documented semantics name exists here.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

use std::path::Path;

#[test]
fn every_test_that_the_semantics_name_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut source = String::new();
    let mut open = vec![here.join("src"), here.join("tests")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            source += &std::fs::read_to_string(path).unwrap();
        }
    }
    let mut named = 0;
    for file in std::fs::read_dir(here.join("../docs")).unwrap() {
        let file = file.unwrap();
        if !file.file_name().to_str().unwrap().starts_with("semantics") {
            continue;
        }
        let text = std::fs::read_to_string(file.path()).unwrap();
        for name in text.split("`fusemount::").skip(1) {
            let name = name.split('`').next().unwrap();
            assert!(source.contains(&format!("fn {name}(")), "no test `{name}`");
            named += 1;
        }
    }
    assert!(named > 30, "the semantics name {named} tests of this crate");
}
