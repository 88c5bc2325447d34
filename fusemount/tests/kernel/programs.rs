//! Programs that everybody uses read what the store holds.

use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::child::Part;
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

#[test]
fn checksums_of_files_of_every_size() {
    let sizes = [0, 1, 4095, 4096, 4097, 131_072, MIB - 1, MIB, MIB + 1, 3 * MIB + 5];
    let Some(m) = Mounted::new(|store| {
        for size in sizes {
            store.insert(&format!("{size}"), pattern(size, size as u64));
        }
    }) else {
        return;
    };
    let local = tempfile::tempdir().unwrap();
    for size in sizes {
        let copy = local.path().join(size.to_string());
        std::fs::write(&copy, pattern(size, size as u64)).unwrap();
        let sum = |path: &std::path::Path| {
            run("sha256sum", &[path.as_os_str()]).split(' ').next().unwrap().to_owned()
        };
        assert_eq!(sum(&m.path(&size.to_string())), sum(&copy), "{size}");
    }
}

#[test]
fn dd_reads_pieces_also_with_direct_io() {
    let bytes = pattern(4 * MIB, 3);
    let Some(m) = Mounted::new(|store| _ = store.insert("file", bytes.clone())) else { return };
    let out = tempfile::tempdir().unwrap().keep();
    for flag in ["iflag=fullblock", "iflag=direct"] {
        let piece = out.join("piece");
        let (input, output) = (m.path("file"), &piece);
        let args = [
            format!("if={}", input.display()),
            format!("of={}", output.display()),
            "bs=64k".into(),
            "skip=17".into(),
            "count=9".into(),
            flag.to_owned(),
        ];
        run("dd", &args.each_ref().map(OsStr::new));
        let from = 17 * 65536;
        assert!(std::fs::read(&piece).unwrap() == bytes[from..from + 9 * 65536], "{flag}");
    }
    std::fs::remove_dir_all(out).unwrap();
}

#[test]
fn sendfile_and_copy_file_range_give_the_bytes() {
    let bytes = pattern(2 * MIB + 3, 4);
    let Some(m) = Mounted::new(|store| _ = store.insert("file", bytes.clone())) else { return };
    let source = std::fs::File::open(m.path("file")).unwrap();
    let mut sent = tempfile::tempfile().unwrap();
    let mut offset = 0;
    while rustix::fs::sendfile(&sent, &source, Some(&mut offset), MIB).unwrap() > 0 {}
    let mut got = Vec::new();
    sent.rewind().unwrap();
    sent.read_to_end(&mut got).unwrap();
    assert!(got == bytes);

    let target = tempfile::NamedTempFile::new().unwrap();
    // The standard library asks for `copy_file_range` first.
    assert_eq!(std::fs::copy(m.path("file"), target.path()).unwrap(), bytes.len() as u64);
    assert!(std::fs::read(target.path()).unwrap() == bytes);
}

#[test]
fn two_processes_map_one_file_shared() {
    let Some(m) = Mounted::new(|store| _ = store.insert("file", pattern(6 * MIB + 77, 5))) else {
        return;
    };
    let mut parts = [(); 2].map(|()| Part::start("child::maps", &m.path("file")));
    for part in &mut parts {
        part.wait_for("ready");
    }
    for part in &mut parts {
        part.say("go");
    }
    for part in &mut parts {
        part.wait_for("compared");
    }
    parts.into_iter().for_each(Part::finish);
}

#[test]
fn sixteen_readers_of_eight_files_get_the_right_bytes() {
    let Some(m) = Mounted::new(|store| {
        for n in 0..8u64 {
            store.insert(&format!("d/{n}"), pattern(3 * MIB, n));
        }
    }) else {
        return;
    };
    std::thread::scope(|scope| {
        for reader in 0..16u64 {
            let m = &m;
            scope.spawn(move || {
                let n = reader % 8;
                let expected = pattern(3 * MIB, n);
                let file = std::fs::File::open(m.path(&format!("d/{n}"))).unwrap();
                let mut buffer = vec![0; 200_000];
                for step in 0..40u64 {
                    let offset = (reader * 7_919 + step * 104_729 * (reader + 1)) % (3 << 20);
                    let got = file.read_at(&mut buffer, offset).unwrap();
                    let from = offset as usize;
                    assert_eq!(got, buffer.len().min(expected.len() - from));
                    assert!(buffer[..got] == expected[from..from + got], "{n} at {offset}");
                }
            });
        }
    });
    // Every handle is released, if a moment later.
    for _ in 0..1500 {
        if m.metric("warpdrive_fuse_open_files", None) < 0.5 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(m.metric("warpdrive_fuse_open_files", None).abs() < 0.5);
    assert!(m.metric("warpdrive_fuse_operations_total", Some(("operation", "read"))) > 8.0);
    assert!(m.metric("warpdrive_fuse_read_bytes_total", None) > MIB as f64);
}

#[test]
fn pages_stay_across_opens_of_one_version() {
    let Some(m) = Mounted::new(|store| _ = store.insert("file", pattern(MIB, 1))) else { return };
    m.read("file");
    let before = m.faulty.calls().of(store::testing::Operation::Get);
    m.read("file");
    assert_eq!(m.faulty.calls().of(store::testing::Operation::Get), before);
}
