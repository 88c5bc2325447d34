//! What docs/semantics.md promises to POSIX programs.

#![allow(unsafe_code)] // System calls that the standard library does not have.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::testing::{FaultyStore, MemoryStore, Operation};
use store::{BucketName, Namespace};

use crate::harness::{Mounted, bucket, pattern};

const MIB: usize = 1 << 20;

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().expect("an error of the kernel"))
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn every_write_is_refused_with_erofs() {
    let Some(m) = Mounted::new(|store| {
        store.insert("file", "x");
        store.insert("dir/file", "x");
    }) else {
        return;
    };
    let (file, dir, new) = (m.path("file"), m.path("dir"), m.path("new"));
    let (c_file, c_new) = (c_path(&file), c_path(&new));
    let name = c"user.x";
    let open = |options: &mut OpenOptions, path: &Path| errno(options.open(path));
    // SAFETY: each call gets valid NUL-terminated strings and nothing else.
    let results = unsafe {
        [
            ("create", errno(File::create(&new))),
            ("write", open(OpenOptions::new().write(true), &file)),
            ("read and write", open(OpenOptions::new().read(true).write(true), &file)),
            ("append", open(OpenOptions::new().append(true), &file)),
            ("truncate on open", open(OpenOptions::new().write(true).truncate(true), &file)),
            ("O_TMPFILE", open(OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE), &dir)),
            ("mkdir", errno(std::fs::create_dir(&new))),
            ("rmdir", errno(std::fs::remove_dir(&dir))),
            ("unlink", errno(std::fs::remove_file(&file))),
            ("rename", errno(std::fs::rename(&file, &new))),
            ("symlink", errno(std::os::unix::fs::symlink("x", &new))),
            ("link", errno(std::fs::hard_link(&file, &new))),
            ("truncate", errno(check(libc::truncate(c_file.as_ptr(), 0)))),
            ("chmod", errno(check(libc::chmod(c_file.as_ptr(), 0o600)))),
            ("chown", errno(check(libc::chown(c_file.as_ptr(), 1, 1)))),
            ("utimes", errno(check(libc::utimes(c_file.as_ptr(), std::ptr::null())))),
            ("mkfifo", errno(check(libc::mkfifo(c_new.as_ptr(), 0o600)))),
            ("mknod", errno(check(libc::mknod(c_new.as_ptr(), libc::S_IFREG, 0)))),
            (
                "setxattr",
                errno(check(libc::setxattr(
                    c_file.as_ptr(),
                    name.as_ptr(),
                    c"v".as_ptr().cast(),
                    1,
                    0,
                ))),
            ),
            ("removexattr", errno(check(libc::removexattr(c_file.as_ptr(), name.as_ptr())))),
            ("access for writing", errno(check(libc::access(c_file.as_ptr(), libc::W_OK)))),
        ]
    };
    for (call, result) in results {
        assert_eq!(result, Some(libc::EROFS), "{call}");
    }
    // Also where the kernel lets writes through.
    let remounted = crate::harness::attempt(
        "mount",
        &["-o", "remount,rw"]
            .map(OsStr::new)
            .into_iter()
            .chain([m.root.as_os_str()])
            .collect::<Vec<_>>(),
    );
    if remounted.status.success() {
        assert_eq!(errno(std::fs::create_dir(&new)), Some(libc::EROFS));
        assert_eq!(errno(File::create(&new)), Some(libc::EROFS));
        assert_eq!(errno(std::fs::remove_file(&file)), Some(libc::EROFS));
        assert_eq!(open(OpenOptions::new().write(true), &file), Some(libc::EROFS));
    }
    assert_eq!(m.read("file"), b"x");
    assert_eq!(m.faulty.calls().of(Operation::Put), 0);
    assert_eq!(m.faulty.calls().of(Operation::Delete), 0);
}

#[test]
fn an_open_file_is_one_version() {
    let (old, new) = (pattern(8 * MIB, 1), pattern(9 * MIB, 2));
    let Some(m) = Mounted::with(
        |store| _ = store.insert("file", old.clone()),
        // Names are believed for longer than this test takes.
        |config| config.metadata_ttl = Duration::from_mins(10),
    ) else {
        return;
    };
    let open = File::open(m.path("file")).unwrap();
    let mut buffer = vec![0; 4096];
    open.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == old[..4096]);

    m.store.insert("file", new.clone());
    // What is cached by the kernel is of the old version, what is not fails: never a mixture.
    open.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == old[..4096]);
    assert_eq!(errno(open.read_at(&mut buffer, 6 << 20)), Some(libc::ESTALE));
    assert_eq!(open.metadata().unwrap().len(), old.len() as u64);

    // A new open is the new version, although the name was believed.
    let again = File::open(m.path("file")).unwrap();
    let (before, after) = (open.metadata().unwrap(), again.metadata().unwrap());
    assert_ne!(before.ino(), after.ino());
    assert_eq!(after.len(), new.len() as u64);
    assert!(m.read("file") == new);
    assert_eq!(errno(open.read_at(&mut buffer, 6 << 20)), Some(libc::ESTALE));

    // The same bytes again are the same version.
    m.store.insert("file", new.clone());
    again.read_exact_at(&mut buffer, 8 << 20).unwrap();
    assert!(buffer == new[8 << 20..(8 << 20) + 4096]);
}

#[test]
fn readers_of_an_object_that_keeps_changing_never_see_a_mixture() {
    let versions = [pattern(3 * MIB, 1), pattern(2 * MIB + 5, 2), pattern(3 * MIB, 3)];
    let Some(m) = Mounted::new(|store| _ = store.insert("file", versions[0].clone())) else {
        return;
    };
    let until = Instant::now() + Duration::from_secs(2);
    let whole: usize = std::thread::scope(|scope| {
        let (m, versions) = (&m, &versions);
        scope.spawn(move || {
            for n in 0.. {
                if Instant::now() > until {
                    break;
                }
                m.store.insert("file", versions[n % 3].clone());
                std::thread::sleep(Duration::from_millis(7));
            }
        });
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    let mut whole = 0;
                    while Instant::now() < until {
                        match std::fs::read(m.path("file")) {
                            Ok(bytes) => {
                                assert!(versions.contains(&bytes), "{} bytes", bytes.len());
                                whole += 1;
                            }
                            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE)),
                        }
                    }
                    whole
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(whole > 0, "no reader ever saw a whole version");
    // When it has come to rest, everybody sees the last version.
    m.store.insert("file", versions[1].clone());
    assert!(m.read("file") == versions[1]);
}

#[test]
fn what_is_deleted_is_estale_when_open_and_enoent_when_opened() {
    let Some(m) = Mounted::new(|store| _ = store.insert("d/file", pattern(4 * MIB, 1))) else {
        return;
    };
    let open = File::open(m.path("d/file")).unwrap();
    m.store.remove("d/file");
    let mut buffer = vec![0; 4096];
    assert_eq!(errno(open.read_at(&mut buffer, 3 << 20)), Some(libc::ESTALE));
    assert_eq!(errno(File::open(m.path("d/file"))), Some(libc::ENOENT));
    m.wait_for_ttl();
    assert_eq!(errno(std::fs::metadata(m.path("d"))), Some(libc::ENOENT));
}

#[test]
fn a_change_through_the_store_below_is_seen_by_stat_within_a_second() {
    let Some(m) = Mounted::with(
        |store| {
            store.insert("d/file", "old");
            store.insert("d/other", "x");
        },
        |config| config.metadata_ttl = Duration::from_mins(1),
    ) else {
        return;
    };
    let file = m.path("d/file");
    assert_eq!(m.names("d"), ["file", "other"]);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 3);
    m.faulty.calls().reset();
    let soon = Duration::from_millis(1100);
    m.store.insert("d/file", "newer");
    std::thread::sleep(soon);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 5);
    assert_eq!(m.faulty.calls().of(Operation::List), 0);
    m.store.remove("d/file");
    std::thread::sleep(soon);
    assert_eq!(errno(std::fs::metadata(&file)), Some(libc::ENOENT));
    m.store.insert("d/file", "again!");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 6);
}

#[test]
fn a_new_object_is_seen_at_once_and_a_new_version_within_the_ttl() {
    let Some(m) = Mounted::new(|store| _ = store.insert("file", "old")) else { return };
    assert_eq!(errno(std::fs::metadata(m.path("new"))), Some(libc::ENOENT));
    m.store.insert("new", "x");
    assert_eq!(std::fs::metadata(m.path("new")).unwrap().len(), 1);
    assert_eq!(m.names(""), ["file", "new"]);
    std::fs::metadata(m.path("file")).unwrap();
    m.store.insert("file", "newer");
    m.wait_for_ttl();
    assert_eq!(std::fs::metadata(m.path("file")).unwrap().len(), 5);
}

#[test]
fn a_directory_wins_over_a_file_of_the_same_name() {
    let Some(m) = Mounted::new(|store| {
        store.insert("a", "unreachable");
        store.insert("a/b", "below");
        store.insert("a-c", "sorts between");
        store.insert("file", "x");
    }) else {
        return;
    };
    assert!(std::fs::metadata(m.path("a")).unwrap().is_dir());
    assert_eq!(m.names(""), ["a-c", "a/", "file"]);
    assert_eq!(m.read("a/b"), b"below");
    assert_eq!(errno(std::fs::read(m.path("a"))), Some(libc::EISDIR));
    // Where the directory goes, the file appears.
    m.store.remove("a/b");
    m.wait_for_ttl();
    assert_eq!(m.read("a"), b"unreachable");
}

#[test]
fn keys_that_are_no_paths_are_hidden_and_markers_are_directories() {
    let Some(m) = Mounted::new(|store| {
        for key in ["a//b", "./c", "d/../e", "/f", "marker/", "g/", "g/file", "h\0i"] {
            store.insert(key, "x");
        }
        store.insert(&"n".repeat(256), "x");
        store.insert("seen", "x");
    }) else {
        return;
    };
    assert_eq!(m.names(""), ["a/", "d/", "g/", "marker/", "seen"]);
    assert!(m.names("marker").is_empty());
    assert!(m.names("a").is_empty());
    assert!(m.names("d").is_empty());
    assert_eq!(m.names("g"), ["file"]);
}

#[test]
fn odd_names_are_the_keys_byte_for_byte() {
    let long = "l".repeat(255);
    let keys = [
        "with space",
        "plus+and%25percent",
        "-dash",
        ".hidden",
        "quote'\"",
        "back\\slash",
        "new\nline",
        "tab\t",
        "\u{e9}t\u{e9}",     // composed
        "e\u{301}te\u{301}", // decomposed: another name
        "\u{65e5}\u{672c}\u{8a9e}/\u{1f600}",
        "*?[x]",
        "...",
        &long,
    ];
    let Some(m) = Mounted::new(|store| {
        for key in keys {
            store.insert(key, key.to_owned());
        }
        store.insert(&format!("{}/end", ["s".repeat(200), "t".repeat(200)].join("/")), "deep");
    }) else {
        return;
    };
    for key in keys {
        assert_eq!(m.read(key), key.as_bytes(), "{key:?}");
    }
    let mut expected: Vec<String> = keys
        .iter()
        .map(|key| key.split_once('/').map_or((*key).to_owned(), |(name, _)| format!("{name}/")))
        .chain([format!("{}/", "s".repeat(200))])
        .collect();
    expected.sort();
    assert_eq!(m.names(""), expected);
    assert_eq!(m.read(&format!("{}/{}/end", "s".repeat(200), "t".repeat(200))), b"deep");
    let invalid = m.root.join("data").join(OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(errno(std::fs::metadata(invalid)), Some(libc::ENOENT));
    assert_eq!(errno(std::fs::metadata(m.path(&"x".repeat(256)))), Some(libc::ENAMETOOLONG));
}

#[test]
fn the_longest_mount_path_wins() {
    let (outer, inner) = (MemoryStore::new(), MemoryStore::new());
    outer.insert("deep/b/hidden", "outer");
    outer.insert("deep/c", "outer");
    inner.insert("sub/x", "inner");
    let faulty = FaultyStore::new(Arc::new(outer.clone()));
    let [a, b] = ["a", "b"].map(|name| BucketName::new(name).unwrap());
    let namespace = Namespace::builder()
        .bucket(bucket("a", Arc::new(faulty.clone())))
        .unwrap()
        .bucket(bucket("b", Arc::new(inner)))
        .unwrap()
        .mount("/data", &a, "")
        .unwrap()
        .mount("/data/deep/b", &b, "sub/")
        .unwrap()
        .mount("/data/deep/empty/way", &b, "none/")
        .unwrap()
        .build();
    let Some(m) = Mounted::of(outer, faulty, namespace, |_| {}) else { return };
    assert_eq!(m.names("deep"), ["b/", "c", "empty/"]);
    assert_eq!(m.names("deep/b"), ["x"]);
    assert_eq!(m.names("deep/empty"), ["way/"]);
    assert!(m.names("deep/empty/way").is_empty());
    assert_eq!(m.read("deep/b/x"), b"inner");
    assert_eq!(errno(std::fs::metadata(m.path("deep/b/hidden"))), Some(libc::ENOENT));
}

fn xattr(path: &Path, name: &str) -> io::Result<String> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    let mut value = [0u8; 256];
    // SAFETY: strings end in NUL, and the length is that of the buffer.
    let size = unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    let size = usize::try_from(size).map_err(|_| io::Error::last_os_error())?;
    Ok(String::from_utf8(value[..size].to_vec()).unwrap())
}

#[test]
fn extended_attributes_name_version_and_object() {
    let Some(m) = Mounted::new(|store| _ = store.insert("d/file", "x")) else { return };
    let file = m.path("d/file");
    let etag = m.store.insert("d/file", "x");
    assert_eq!(xattr(&file, "user.warpdrive.etag").unwrap(), etag.as_str());
    assert_eq!(xattr(&file, "user.warpdrive.object").unwrap(), "main/d/file");
    // The store of this test is no cache, so it has nothing to say.
    assert_eq!(errno(xattr(&file, "user.warpdrive.residency")), Some(libc::ENODATA));
    assert_eq!(errno(xattr(&file, "security.selinux")), Some(libc::EOPNOTSUPP));
    assert_eq!(errno(xattr(&file, "user.other")), Some(libc::ENODATA));
    assert_eq!(errno(xattr(&m.path("d"), "user.warpdrive.etag")), Some(libc::ENODATA));
    let path = c_path(&file);
    let mut list = [0u8; 256];
    // SAFETY: as above; a size of 0 asks for the size.
    let (size, short) = unsafe {
        let short = libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), 3);
        let short = (short, io::Error::last_os_error().raw_os_error());
        let size = libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0);
        assert_eq!(size, libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()));
        (size.cast_unsigned(), short)
    };
    assert_eq!(short, (-1, Some(libc::ERANGE)));
    let names: Vec<&[u8]> = list[..size].split(|byte| *byte == 0).collect();
    assert!(names.contains(&&b"user.warpdrive.etag"[..]));
}

#[test]
fn owner_modes_and_sizes_are_as_configured() {
    let Some(m) = Mounted::with(
        |store| _ = store.insert("d/file", "12345"),
        |config| {
            config.uid = Some(1234);
            config.gid = Some(2345);
            config.file_mode = 0o640;
            config.dir_mode = 0o750;
        },
    ) else {
        return;
    };
    let file = std::fs::metadata(m.path("d/file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode()), (1234, 2345, libc::S_IFREG | 0o640));
    assert_eq!((file.len(), file.blocks(), file.nlink()), (5, 1, 1));
    let dir = std::fs::metadata(m.path("d")).unwrap();
    assert_eq!((dir.uid(), dir.gid(), dir.mode()), (1234, 2345, libc::S_IFDIR | 0o750));
    let fs = rustix::fs::statvfs(&m.root).unwrap();
    assert!(fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    assert!(fs.f_blocks > 0 && fs.f_bavail == fs.f_blocks && fs.f_namemax == 255);
}

#[test]
fn seeking_finds_data_and_the_end() {
    let Some(m) = Mounted::new(|store| _ = store.insert("file", "12345")) else { return };
    let file = File::open(m.path("file")).unwrap();
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(2)).unwrap(), 2);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(2)).unwrap(), 5);
    let past = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(5));
    assert_eq!(past, Err(rustix::io::Errno::NXIO));
    let mut buffer = [0; 16];
    assert_eq!(file.read_at(&mut buffer, 3).unwrap(), 2);
    assert_eq!(file.read_at(&mut buffer, 5).unwrap(), 0);
    assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
}

#[test]
fn listed_inode_numbers_are_those_of_stat() {
    use std::os::unix::fs::DirEntryExt;
    let Some(m) = Mounted::new(|store| {
        store.insert("a", "x");
        store.insert("d/x", "x");
    }) else {
        return;
    };
    for entry in std::fs::read_dir(m.root.join("data")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), std::fs::metadata(entry.path()).unwrap().ino());
    }
}
