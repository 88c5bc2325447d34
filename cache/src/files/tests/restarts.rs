//! What a process leaves and the next one finds, however the first one ended.

use super::*;
use crate::files::identity::Identity;
use crate::files::journal::{JOURNAL, Journal, Record};
use crate::files::kernel;

/// A journal of many files that nobody has to look at.
fn write_index(dir: &Path, count: u64) {
    let root = dir.join("files");
    std::fs::create_dir_all(&root).unwrap();
    let records = (0..count).map(|n| {
        let name = format!("train/n{:08}/n{:08}_{n}.JPEG", n / 1300, n / 1300);
        let object = version(&name, &format!("{n:032x}"), 110_000 + n);
        let identity = Identity::of(&object).unwrap();
        let sums = vec![n, n + 1].into();
        Record::Whole {
            unique: n,
            identity,
            allocated: 114_688,
            durable: true,
            suspect: false,
            sums,
        }
    });
    Journal::rewrite(&root, BLOCK, kernel::boot_id(), records).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_files_are_found_without_opening_one() {
    let dir = tempfile::tempdir().unwrap();
    write_index(dir.path(), 100_000);
    let tiers = tiers(&on(dir.path(), 2 * MIB, 100 << 30)).await;
    let stats = tiers.files().stats();
    assert_eq!((stats.files, stats.bytes), (100_000, 100_000 * 114_688));
    assert_eq!(tiers.metrics.file_opens.get(), 0);
    let object = version("train/n00000003/n00000003_4321.JPEG", &format!("{:032x}", 4321), 114_321);
    assert!(tiers.blocks.on_disk(&BlockKey::new(&object, 1)));
    assert_eq!(tiers.metrics.file_opens.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn how_long_it_takes_to_find_a_hundred_thousand_files() {
    let dir = tempfile::tempdir().unwrap();
    write_index(dir.path(), 100_000);
    let config = on(dir.path(), 2 * MIB, 100 << 30);
    let disk = config.disk.clone().unwrap();
    let directory = Arc::new(crate::blocks::Directory::open(dir.path()).unwrap());
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let started = std::time::Instant::now();
    let tier = crate::files::FileTier::open(&config, &disk, directory, &metrics).await.unwrap();
    println!("{} files in {:?}", tier.stats().files, started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_instant_keeps_nearly_all_and_gives_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 64 * MIB, 512 * MIB);
    let running = tiers(&config).await;
    let objects: Vec<_> = (0..24u64)
        .map(|n| (version(&format!("k{n}"), "v1", 2 * MIB + n), content(n, 2 * MIB + n)))
        .collect();
    let copies = tempfile::tempdir().unwrap();
    let mut filled = 0;
    for (n, (object, bytes)) in objects.iter().enumerate() {
        running.put_all(object, bytes).await;
        filled += 1;
        if n % 6 != 5 {
            continue;
        }
        // In the middle of a large one, of a compaction, and of publications.
        let big = version(&format!("big{n}"), "v1", 30 * MIB);
        let noise = content(7, 30 * MIB);
        let filling = running.put(&big, &noise, 0..480);
        let snapshot = copies.path().join(n.to_string());
        let copying = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let (from, to) = (dir.path().to_owned(), snapshot.clone());
            let files = Arc::clone(running.files());
            let compacting = tokio::task::spawn_blocking(move || files.compact());
            // Files that were copied after the journal are more than it knows, never less.
            tokio::task::spawn_blocking(move || copy_tree(&from, &to)).await.unwrap();
            compacting.await.unwrap();
        };
        tokio::join!(filling, copying);
        let killed = tiers(&on(&snapshot, 2 * MIB, 512 * MIB)).await;
        let mut kept = 0;
        for (object, bytes) in &objects[..filled] {
            if let Some(whole) = killed.blocks.whole(object) {
                assert!(all_of(&whole.file) == *bytes, "{}", object.key);
                kept += 1;
            }
        }
        assert!(kept + 1 >= filled, "{kept} of {filled}");
        for index in (0..480).step_by(17) {
            killed.load(&big, &noise, index).await;
        }
        assert_eq!(killed.metrics.bad_blocks.get(), 0);
        // What it kept of the large one need not come again, and what it lacks may.
        killed.put_all(&big, &noise).await;
        assert!(all_of(&killed.blocks.whole(&big).unwrap().file) == noise);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_was_recorded_and_not_renamed_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 2 * MIB, 256 * MIB);
    let (object, bytes) = (version("k", "v1", 2 * MIB), content(1, 2 * MIB));
    let first = tiers(&config).await;
    first.put_all(&object, &bytes).await;
    first.blocks.close().await;
    drop(first);
    let path = only_file(dir.path());
    let part = dir.path().join("files/parts").join(path.file_name().unwrap());
    std::fs::rename(&path, &part).unwrap();
    // Nobody's, and swept away.
    let foreign =
        [path.with_file_name("x"), dir.path().join("files/y"), part.with_file_name("0-0")];
    for path in &foreign {
        std::fs::write(path, b"?").unwrap();
    }
    let second = tiers(&config).await;
    assert!(all_of(&second.blocks.whole(&object).unwrap().file) == bytes);
    until("foreign files are gone", || foreign.iter().all(|path| !path.exists())).await;
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_of_the_machine_only_what_was_written_back_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 2 * MIB, 256 * MIB);
    let names = ["safe", "young", "torn"];
    let bytes = content(1, 2 * MIB);
    let object = |name: &str| version(name, "v1", 2 * MIB);
    let first = tiers(&config).await;
    first.put_all(&object("safe"), &bytes).await;
    let safe = only_file(dir.path());
    let files = Arc::clone(first.files());
    tokio::task::spawn_blocking(move || files.write_back()).await.unwrap();
    for name in &names[1..] {
        first.put_all(&object(name), &bytes).await;
    }
    let crashed = tempfile::tempdir().unwrap();
    copy_tree(dir.path(), crashed.path());
    drop(first);
    // Another start of the kernel, which lost pages of one file.
    let torn = super::super::file_name(object("torn").id(), 0);
    let torn = torn.split('-').next().unwrap();
    let path = published(crashed.path())
        .into_iter()
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(torn))
        .unwrap();
    std::fs::write(&path, vec![0; 2 << 20]).unwrap();
    let journal = crashed.path().join("files").join(JOURNAL);
    rewrite_boot(&journal);
    let second = tiers(&on(crashed.path(), 2 * MIB, 256 * MIB)).await;
    assert!(crashed.path().join(safe.strip_prefix(dir.path()).unwrap()).exists());
    assert!(second.is_file(&object("safe")), "written back");
    for name in &names[1..] {
        assert!(!second.is_file(&object(name)), "{name} is looked at first");
    }
    second.blocks.flush().await;
    assert!(all_of(&second.blocks.whole(&object("young")).unwrap().file) == bytes);
    assert!(!second.is_file(&object("torn")));
    assert_eq!(second.metrics.file_bad.get(), 1);
}

/// Gives a journal the boot id of another start.
fn rewrite_boot(path: &Path) {
    let mut raw = std::fs::read(path).unwrap();
    raw[16] ^= 1;
    let seed = u64::from_le_bytes(raw[..8].try_into().unwrap());
    let sum = twox_hash::XxHash3_64::oneshot_with_seed(seed, &raw[..32]);
    raw[32..40].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(path, raw).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_outlived_a_crash_is_looked_at_however_often_it_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 2 * MIB, 256 * MIB);
    let (object, bytes) = (version("k", "v1", 4 * MIB), content(1, 4 * MIB));
    let first = tiers(&config).await;
    first.put(&object, &bytes, 0..32).await;
    first.blocks.close().await;
    drop(first);
    // The machine lost a page of it.
    let part = files_below(&dir.path().join("files/parts")).remove(0);
    let file = std::fs::OpenOptions::new().write(true).open(part).unwrap();
    file.write_all_at(&vec![0; BLOCK as usize], 3 * BLOCK).unwrap();
    rewrite_boot(&dir.path().join("files").join(JOURNAL));
    for _ in 0..2 {
        let found = tiers(&config).await;
        assert_eq!(found.files().stats().parts, 1);
        found.blocks.close().await;
    }
    let last = tiers(&config).await;
    last.put_all(&object, &bytes).await;
    assert!(!last.is_file(&object), "a block of it was bad");
    assert_eq!(last.metrics.file_bad.get(), 1);
    last.put_all(&object, &bytes).await;
    assert!(all_of(&last.blocks.whole(&object).unwrap().file) == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_verified_in_memory_is_not_safe_from_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (object, bytes) = (version("k", "v1", 2 * MIB), content(1, 2 * MIB));
    let first = tiers(&on(dir.path(), 2 * MIB, 256 * MIB)).await;
    first.put_all(&object, &bytes).await;
    first.blocks.suspect(&object);
    first.blocks.flush().await;
    assert!(first.is_file(&object), "verified");
    let crashed = tempfile::tempdir().unwrap();
    copy_tree(dir.path(), crashed.path());
    std::fs::write(only_file(crashed.path()), vec![0; 2 << 20]).unwrap();
    rewrite_boot(&crashed.path().join("files").join(JOURNAL));
    let second = tiers(&on(crashed.path(), 2 * MIB, 256 * MIB)).await;
    assert!(!second.is_file(&object), "it is looked at first");
    second.blocks.flush().await;
    assert_eq!(second.metrics.file_bad.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_versions_the_one_that_was_confirmed_last_is_the_object() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("files");
    std::fs::create_dir_all(&root).unwrap();
    // Many, because each is found in an order that chance decides.
    let records = (0..32u64).flat_map(|n| {
        let whole = |etag: &str, unique: u64, confirmed: u64| {
            let object = version(&format!("k{n}"), etag, 100_000);
            let file = Record::Whole {
                unique,
                identity: Identity::of(&object).unwrap(),
                allocated: 102_400,
                durable: true,
                suspect: false,
                sums: vec![n, n].into(),
            };
            [file, Record::Current { id: object.id(), unique, confirmed }]
        };
        // Within one second, or not.
        let second = if n % 2 == 0 { 1000 } else { 2000 };
        [whole("old", 2 * n, 1000), whole("new", 2 * n + 1, second)].into_iter().flatten()
    });
    Journal::rewrite(&root, BLOCK, kernel::boot_id(), records).unwrap();
    let tiers = tiers(&on(dir.path(), 2 * MIB, 100 << 30)).await;
    let ledger = tiers.files().ledger.lock();
    for n in 0..32 {
        let (identity, _) = ledger.index.current(1, &format!("k{n}")).unwrap();
        assert_eq!(identity.etag(), version("k", "new", 1).etag().as_str(), "k{n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_in_the_middle_of_a_publication_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 2 * MIB, 256 * MIB);
    let (object, bytes) = (version("k", "v1", MIB), content(1, MIB));
    let first = tiers(&config).await;
    first.put(&object, &bytes, 0..15).await;
    first.blocks.flush().await;
    let etag = object.etag().as_str();
    first.files().ledger.lock().index.confirm(1, "k", etag, 1_700_000_000);
    let (files, id) = (Arc::clone(first.files()), object.id());
    let (root, pause) = (dir.path().to_owned(), Duration::from_millis(1));
    let (locked, is_locked) = tokio::sync::oneshot::channel();
    let replacing = tokio::task::spawn_blocking(move || {
        let journal = files.journal.lock();
        locked.send(()).unwrap();
        let began = std::time::Instant::now();
        let in_time = || assert!(began.elapsed() < Duration::from_secs(30), "it is not published");
        let mut ledger = files.ledger.lock();
        while ledger.promised.get(&id) != Some(&0) {
            drop(ledger);
            in_time();
            std::thread::sleep(pause);
            ledger = files.ledger.lock();
        }
        // Only the publication is left; it gets as far as the rename.
        drop(journal);
        while published(&root).is_empty() {
            in_time();
            std::thread::sleep(pause);
        }
        ledger.index.unconfirm(1, "k");
    });
    is_locked.await.unwrap();
    first.put(&object, &bytes, 15..16).await;
    replacing.await.unwrap();
    first.blocks.flush().await;
    assert!(first.is_file(&object));
    first.blocks.close().await;
    drop(first);
    let second = tiers(&config).await;
    assert!(second.is_file(&object));
    assert!(second.files().ledger.lock().index.current(1, "k").is_none(), "it was replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_block_size_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 2 * MIB, 256 * MIB);
    let (object, bytes) = (version("k", "v1", 2 * MIB), content(1, 2 * MIB));
    let first = tiers(&config).await;
    first.put_all(&object, &bytes).await;
    drop(first);
    let other = CacheConfig { block_bytes: 2 * BLOCK, ..config };
    let second = tiers(&other).await;
    assert!(!second.is_file(&object));
    until("old files are swept", || published(dir.path()).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_says_what_its_object_is_and_not_after_it_was_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let config = on(dir.path(), 2 * MIB, 256 * MIB);
    let memory = MemoryStore::new();
    for name in ["kept", "replaced"] {
        memory.insert(name, content(1, 300_000));
    }
    let first = rig(&config, &memory).await;
    for name in ["kept", "replaced"] {
        first.full(name).await;
    }
    first.cache.flush().await;
    first.store.put_bytes(&key("replaced"), content(2, 300_000)).await.unwrap();
    first.cache.close().await;
    drop(first);
    // Nothing is left of the block tier, as after a kill that came early.
    std::fs::remove_dir_all(dir.path().join("blocks")).unwrap();
    let second = rig(&config, &memory).await;
    second.origin.set_down(true);
    assert_eq!(second.full("kept").await, content(1, 300_000));
    let replaced = second.store.get_bytes(&key("replaced"), ByteRange::Full).await;
    assert!(replaced.unwrap_err().kind().is_outage(), "not the old bytes");
}
