//! Programs that everybody uses read what the store holds.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;

use crate::harness::{Mounted, pattern, run};

const MIB: usize = 1 << 20;

#[test]
fn ls_cat_cp_and_find() {
    let big = pattern(5 * MIB + 17, 1);
    let Some(m) = Mounted::new(|store| {
        store.insert("hello.txt", "hello\n");
        store.insert("empty", "");
        store.insert("dir/big.bin", big.clone());
        store.insert("dir/deeper/x", "x");
    }) else {
        return;
    };
    let data = m.root.join("data");
    assert_eq!(run("ls", &[m.root.as_os_str()]), "data\n");
    assert_eq!(run("ls", &[data.as_os_str()]), "dir\nempty\nhello.txt\n");
    assert_eq!(run("cat", &[m.path("hello.txt").as_os_str()]), "hello\n");
    assert_eq!(m.read("empty"), b"");
    assert_eq!(m.read("dir/big.bin"), big);

    let out = tempfile::tempdir().unwrap();
    run("cp", &[OsStr::new("-r"), data.as_os_str(), out.path().as_os_str()]);
    assert_eq!(std::fs::read(out.path().join("data/dir/big.bin")).unwrap(), big);
    run("diff", &[OsStr::new("-r"), data.as_os_str(), out.path().join("data").as_os_str()]);

    let found = run("find", &[data.as_os_str(), OsStr::new("-type"), OsStr::new("f")]);
    assert_eq!(found.lines().count(), 4);
    let long = run("ls", &[OsStr::new("-lR"), data.as_os_str()]);
    assert!(long.contains("5242897"), "{long}");

    let meta = std::fs::metadata(m.path("dir/big.bin")).unwrap();
    assert_eq!(meta.len(), big.len() as u64);
    assert_eq!(meta.mode() & 0o7777, 0o444);
    assert_eq!(meta.blocks(), big.len().div_ceil(512) as u64);
    assert!(meta.modified().unwrap().elapsed().unwrap().as_secs() < 600);
    assert_eq!(std::fs::metadata(&data).unwrap().mode() & 0o7777, 0o555);
}
