//! The journal at every byte that it can end at.

use std::sync::Arc;
use std::time::SystemTime;

use store::{ETag, ObjectKey, ObjectMeta};

use super::*;
use crate::version::Version;

fn identity(n: u64) -> Identity {
    let meta = ObjectMeta {
        size: n * 1000,
        etag: ETag::parse("v1"),
        last_modified: SystemTime::UNIX_EPOCH,
        attributes: None,
    };
    let key = ObjectKey::new(format!("k{n}")).unwrap();
    Identity::of(&Arc::new(Version::new(1, key, meta))).unwrap()
}

/// One record of each kind.
fn records() -> Vec<Record> {
    vec![
        Record::Begin { unique: 7, identity: identity(1), suspect: true },
        Record::Begin { unique: 6, identity: identity(3), suspect: false },
        Record::Blocks { id: 3, unique: 7, blocks: vec![(0, 11), (5, 12)] },
        Record::Whole {
            unique: 8,
            identity: identity(2),
            allocated: 4096,
            durable: true,
            suspect: false,
            sums: vec![1, 2, 3].into(),
        },
        Record::Gone { id: 3, unique: 7 },
        Record::Durable { upto: 99 },
        Record::Verified { id: 4, unique: 8 },
        Record::Current { id: 4, unique: 8, confirmed: 1_700_000_000 },
    ]
}

fn read(dir: &Path) -> Option<(Vec<Record>, u64)> {
    let mut found = Vec::new();
    let read = replay(dir, 1000, |_, record| found.push(record)).unwrap();
    read.map(|(_, len)| (found, len))
}

#[test]
fn every_record_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::rewrite(dir.path(), 1000, 5, std::iter::empty()).unwrap();
    for record in records() {
        journal.append(&record).unwrap();
    }
    assert_eq!(read(dir.path()), Some((records(), journal.len())));
    let (boot, _) = replay(dir.path(), 1000, |_, _| {}).unwrap().unwrap();
    assert_eq!(boot, 5);
    assert!(replay(dir.path(), 1001, |_, _| {}).unwrap().is_none(), "another block size");
    journal.compact(records().into_iter().take(2)).unwrap();
    journal.append(&Record::Durable { upto: 1 }).unwrap();
    let mut expected = records()[..2].to_vec();
    expected.push(Record::Durable { upto: 1 });
    assert_eq!(read(dir.path()), Some((expected, journal.len())));
}

#[test]
fn torn_at_any_byte_it_ends_with_the_last_whole_record_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::rewrite(dir.path(), 1000, 5, std::iter::empty()).unwrap();
    let mut ends = vec![journal.len()];
    for record in records() {
        journal.append(&record).unwrap();
        ends.push(journal.len());
    }
    let raw = fs::read(dir.path().join(JOURNAL)).unwrap();
    for cut in 0..raw.len() {
        fs::write(dir.path().join(JOURNAL), &raw[..cut]).unwrap();
        let found = read(dir.path());
        if cut < HEADER_BYTES as usize {
            assert_eq!(found, None, "{cut}");
            continue;
        }
        let whole = ends.iter().filter(|end| **end <= cut as u64).count() - 1;
        assert_eq!(found, Some((records()[..whole].to_vec(), ends[whole])), "{cut}");
        let mut journal = Journal::reopen(dir.path(), 1000, 5, ends[whole]).unwrap();
        journal.append(&Record::Durable { upto: 4 }).unwrap();
        let mut expected = records()[..whole].to_vec();
        expected.push(Record::Durable { upto: 4 });
        assert_eq!(read(dir.path()), Some((expected, journal.len())), "{cut}");
    }
}

#[test]
fn any_flipped_bit_costs_records_and_makes_none_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::rewrite(dir.path(), 1000, 5, std::iter::empty()).unwrap();
    for record in records() {
        journal.append(&record).unwrap();
    }
    let raw = fs::read(dir.path().join(JOURNAL)).unwrap();
    for at in 0..raw.len() {
        let mut bad = raw.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(dir.path().join(JOURNAL), &bad).unwrap();
        if let Some((found, _)) = read(dir.path()) {
            let known = records();
            assert!(found.iter().all(|record| known.contains(record)), "{at}");
        }
    }
}

#[test]
fn a_kill_in_a_compaction_leaves_one_whole_journal() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::rewrite(dir.path(), 1000, 5, std::iter::empty()).unwrap();
    for record in records() {
        journal.append(&record).unwrap();
    }
    let old = fs::read(dir.path().join(JOURNAL)).unwrap();
    journal.compact(records().into_iter().take(1)).unwrap();
    let new = fs::read(dir.path().join(JOURNAL)).unwrap();
    // Before the rename, whatever of the new one there is.
    for cut in 0..=new.len() {
        fs::write(dir.path().join(JOURNAL), &old).unwrap();
        fs::write(dir.path().join(JOURNAL_NEW), &new[..cut]).unwrap();
        assert_eq!(read(dir.path()).unwrap().0, records());
        let journal = Journal::rewrite(dir.path(), 1000, 5, records().into_iter().skip(1)).unwrap();
        assert_eq!(read(dir.path()), Some((records()[1..].to_vec(), journal.len())));
        assert!(!dir.path().join(JOURNAL_NEW).exists());
    }
}

proptest::proptest! {
    #[test]
    fn garbage_never_panics(raw: Vec<u8>) {
        _ = Record::decode(&raw);
        let dir = tempfile::tempdir().unwrap();
        let mut whole = header(1000, 5).to_vec();
        whole.extend_from_slice(&raw);
        fs::write(dir.path().join(JOURNAL), &whole).unwrap();
        proptest::prop_assert!(read(dir.path()).unwrap().0.is_empty());
    }
}
