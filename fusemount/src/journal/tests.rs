//! Journals that are cut, broken, shortened, left behind and taken over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use store::ETag;

use super::*;
use crate::backing::Mode;
use crate::nodes::{NodeId, Version};

fn id() -> impl Strategy<Value = NodeId> {
    (2..12u64).prop_map(NodeId)
}

fn record() -> impl Strategy<Value = Record> {
    let mode = prop_oneof![Just(Mode::Cached), (1..5u32).prop_map(Mode::Passthrough)];
    let request = prop::sample::select(vec![Request::Lookup, Request::Open, Request::Release]);
    let modified = (0..4_000_000_000u64, any::<bool>()).prop_map(|(nanos, before)| {
        let by = Duration::from_nanos(nanos * 1000 + 7);
        let epoch = SystemTime::UNIX_EPOCH;
        if before { epoch - by } else { epoch + by }
    });
    prop_oneof![
        (id(), id(), "[a-c/\u{e9}\u{a7}]{0,9}").prop_map(|(id, parent, path)| Record::Directory {
            id,
            parent,
            path
        }),
        (id(), id(), "[a-c\u{e9}]{0,9}", any::<u64>(), "[a-f0-9]{0,9}", modified).prop_map(
            |(id, parent, name, size, etag, modified)| {
                let version = Version { size, etag: ETag::parse(&etag), modified };
                Record::File { id, parent, name, version }
            }
        ),
        (id(), 1..4u64, 0..50u64).prop_map(|(id, lookups, unique)| Record::Looked {
            id,
            lookups,
            unique
        }),
        (id(), 1..4u64).prop_map(|(id, lookups)| Record::Forgotten { id, lookups }),
        id().prop_map(|id| Record::Condemned { id }),
        (id(), mode, 1..3u64, 0..50u64).prop_map(|(id, mode, opens, unique)| Record::Opened {
            id,
            mode,
            opens,
            unique
        }),
        (id(), 0..50u64).prop_map(|(id, unique)| Record::Released { id, unique }),
        (request, id(), 1..50u64).prop_map(|(request, id, unique)| Record::Done {
            request,
            id,
            unique
        }),
    ]
}

fn image_of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Image {
    let mut image = Image::default();
    records.into_iter().for_each(|record| image.apply(record.clone()));
    image.prune();
    image
}

fn decode(pieces: &[&[u8]]) -> (Vec<Record>, Decoder) {
    let (mut decoder, mut records) = (Decoder::default(), Vec::new());
    for piece in pieces {
        decoder.push(piece);
        records.extend(std::iter::from_fn(|| decoder.next(false)));
    }
    records.extend(std::iter::from_fn(|| decoder.next(true)));
    (records, decoder)
}

fn encode(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for record in records {
        record.encode(&mut bytes);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

proptest! {
    /// Cut at every byte, what was whole is there, and nothing else.
    #[test]
    fn what_is_cut_loses_the_last_record_only(records in prop::collection::vec(record(), 0..8)) {
        let (bytes, ends) = encode(&records);
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let middle = cut / 3;
            let (read, decoder) = decode(&[&bytes[..middle], &bytes[middle..cut]]);
            prop_assert_eq!(&read, &records[..whole]);
            prop_assert_eq!(decoder.end() as usize, if whole == 0 { 0 } else { ends[whole - 1] });
        }
    }

    /// Garbage at any place costs the records that it lies in.
    #[test]
    fn what_is_broken_loses_the_records_that_are_broken(
        records in prop::collection::vec(record(), 1..12),
        at in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 1..60),
        insert in any::<bool>(),
    ) {
        let (mut bytes, ends) = encode(&records);
        let at = at.index(bytes.len());
        let to = if insert { at } else { (at + garbage.len()).min(bytes.len()) };
        bytes.splice(at..to, garbage.iter().copied());
        let (read, _) = decode(&[&bytes]);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let expected: Vec<&Record> = starts
            .zip(&ends)
            .zip(&records)
            .filter(|((start, end), _)| **end <= at || *start >= to && *start >= at)
            .map(|(_, record)| record)
            .collect();
        // A record that was overwritten with its own bytes is whole.
        let mut left = read.iter();
        for record in &expected {
            prop_assert!(left.any(|read| read == *record), "{record:?} is lost");
        }
        prop_assert!(read.iter().all(|read| records.contains(read)), "invented");
    }

    #[test]
    fn a_shortened_journal_says_the_same(records in prop::collection::vec(record(), 0..60)) {
        let image = image_of(&records);
        let again: Vec<Record> = image.records().collect();
        prop_assert_eq!(&image_of(&again), &image);
        let (bytes, _) = encode(&again);
        prop_assert_eq!(image_of(&decode(&[&bytes]).0), image);
    }

    /// Any sequence of writing, shortening, dying and damage at the end.
    #[test]
    fn the_next_worker_finds_what_was_written(
        steps in prop::collection::vec(
            prop_oneof![
                6 => record().prop_map(|record| Step::Note(complete(record))),
                3 => Just(Step::Flush),
                1 => Just(Step::Shorten),
                1 => Just(Step::End),
                1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Kill),
            ],
            1..60,
        ),
    ) {
        let mut dir = tempfile::tempdir().unwrap();
        let (mut journal, past) = Journal::open(dir.path(), 7, false).unwrap();
        prop_assert_eq!(past.image, Image::default());
        let began = past.began;
        let (mut written, mut noted) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Note(mut records) => {
                    journal.note(&records);
                    noted.append(&mut records);
                }
                Step::Flush => {
                    journal.flush();
                    written.append(&mut noted);
                }
                Step::Shorten => {
                    journal.flush();
                    written.append(&mut noted);
                    journal.writer.lock().shorten_at = 0;
                    journal.maintain();
                }
                Step::End => {
                    written.append(&mut noted);
                    drop(journal);
                    let past;
                    (journal, past) = Journal::open(dir.path(), 7, false).unwrap();
                    prop_assert_eq!(known(past.image), known(image_of(&written)));
                    prop_assert_eq!(nanos(past.began), nanos(began));
                }
                Step::Kill(torn) => {
                    noted.clear();
                    // What a killed process leaves: the file as it is, and no flush.
                    let next = tempfile::tempdir().unwrap();
                    let mut left = std::fs::read(dir.path().join(NAME)).unwrap();
                    left.extend_from_slice(&torn);
                    std::fs::write(next.path().join(NAME), left).unwrap();
                    std::fs::write(next.path().join("nodes.new.77"), "half a journal").unwrap();
                    let past;
                    (journal, past) = Journal::open(next.path(), 7, false).unwrap();
                    dir = next;
                    prop_assert_eq!(known(past.image), known(image_of(&written)));
                    prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Note(Vec<Record>),
    Flush,
    Shorten,
    /// An orderly end.
    End,
    /// With these bytes of a record that was being written.
    Kill(Vec<u8>),
}

/// A node is named and looked up at once.
fn complete(record: Record) -> Vec<Record> {
    match record {
        Record::Directory { id, .. } | Record::File { id, .. } => {
            vec![record, Record::Looked { id, lookups: 1, unique: 3 }]
        }
        // What was forgotten is named again before anyone is told of it: the table has dropped it.
        Record::Looked { id, .. } => {
            let named = Record::Directory { id, parent: NodeId(2), path: "/d".into() };
            vec![named, record]
        }
        _ => vec![record],
    }
}

/// Without directories that the kernel does not know: they are dropped with their last file.
fn known(mut image: Image) -> Image {
    image.nodes.retain(|_, node| node.lookups > 0);
    image
}

fn nanos(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()
}

fn file(n: u64) -> [Record; 3] {
    let version = Version { size: n, etag: ETag::parse("e"), modified: SystemTime::UNIX_EPOCH };
    let id = NodeId(n);
    [
        Record::Directory { id: NodeId(2), parent: NodeId::ROOT, path: "/d".into() },
        Record::File { id, parent: NodeId(2), name: format!("n{n}"), version },
        Record::Looked { id, lookups: 1, unique: 0 },
    ]
}

#[test]
fn a_journal_of_another_mount_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), 1, false).unwrap();
    journal.note(&file(9));
    drop(journal);
    let (_, past) = Journal::open(dir.path(), 2, false).unwrap();
    assert_eq!(past.image, Image::default());
    let (_, past) = Journal::open(dir.path(), 1, false).unwrap();
    assert_eq!(past.image, Image::default(), "the other one has replaced it");
    for left in [&b""[..], b"wdnodes1", &[0; 100], b"wdnodes1 and something that is no journal...."]
    {
        std::fs::write(dir.path().join(NAME), left).unwrap();
        let (_, past) = Journal::open(dir.path(), 1, false).unwrap();
        assert_eq!(past.image, Image::default());
    }
}

/// A worker that hangs goes on into a file that nobody reads, also when it shortens it.
#[test]
fn a_worker_that_does_not_end_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (old, _) = Journal::open(dir.path(), 1, false).unwrap();
    old.note(&file(9));
    old.flush();
    let (new, past) = Journal::open(dir.path(), 1, false).unwrap();
    assert_eq!(past.image, image_of(&file(9)));
    old.note(&file(10));
    old.flush();
    old.writer.lock().shorten_at = 0;
    old.maintain();
    new.note(&file(11));
    drop(new);
    drop(old);
    let (_, past) = Journal::open(dir.path(), 1, false).unwrap();
    let said: Vec<Record> = file(9).into_iter().chain(file(11)).collect();
    assert_eq!(past.image, image_of(&said));
}

#[test]
fn a_journal_is_shortened_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), 1, false).unwrap();
    let journal = Arc::new(journal);
    let end = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|thread| {
                let (journal, end) = (&journal, &end);
                scope.spawn(move || {
                    let mut round = 0;
                    while !end.load(Ordering::Relaxed) {
                        let id = NodeId(100 + thread);
                        journal.note(&file(id.0));
                        journal.flush();
                        journal.note(&[Record::Forgotten { id, lookups: 1 }]);
                        round += 1;
                    }
                    journal.note(&file(100 + thread));
                    journal.flush();
                    round
                })
            })
            .collect();
        for _ in 0..30 {
            journal.writer.lock().shorten_at = 0;
            journal.maintain();
            std::thread::sleep(Duration::from_millis(2));
        }
        end.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).sum::<u32>()
    });
    assert!(rounds > 100, "{rounds}");
    let path = dir.path().join(NAME);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), journal.writer.lock().size);
    drop(journal);
    let (_, past) = Journal::open(dir.path(), 1, false).unwrap();
    let said: Vec<Record> = (100..103).flat_map(file).collect();
    assert_eq!(past.image, image_of(&said));
}

#[test]
fn a_journal_of_nothing_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), 1, false).unwrap();
    let path = dir.path().join(NAME);
    for round in 0..20 {
        for n in 0..2000 {
            let n = 100 + round * 2000 + n;
            journal.note(&file(n));
            journal.note(&[Record::Forgotten { id: NodeId(n), lookups: 1 }]);
            journal.flush();
        }
        journal.maintain();
        assert!(std::fs::metadata(&path).unwrap().len() < SHORTEN_BYTES + (1 << 20));
    }
}

/// Half of the disk's room is enough to shorten; where there is none, what cannot be written waits,
/// and is written in order once there is.
#[test]
fn a_full_disk_delays_the_journal_and_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("none", dir.path(), "tmpfs", flags, c"size=256k").is_err() {
        eprintln!("skipped: this may not mount a tmpfs");
        return;
    }
    let fill = dir.path().join("fill");
    let (journal, _) = Journal::open(dir.path(), 1, false).unwrap();
    journal.note(&file(100));
    journal.flush();
    let room = std::fs::write(&fill, vec![1; 1 << 20]);
    assert!(room.is_err(), "the disk is full");
    let many: Vec<Record> = (101..1000).flat_map(file).collect();
    for records in many.chunks(7) {
        journal.note(records);
        journal.flush();
    }
    journal.writer.lock().shorten_at = 0;
    journal.maintain();
    assert!(!journal.writer.lock().pending.is_empty());
    std::fs::remove_file(&fill).unwrap();
    std::thread::sleep(RETRY_EVERY);
    journal.maintain();
    assert!(journal.writer.lock().pending.is_empty());
    drop(journal);
    let (journal, past) = Journal::open(dir.path(), 1, false).unwrap();
    let said: Vec<Record> = file(100).into_iter().chain(many).collect();
    assert_eq!(past.image, image_of(&said));

    // And beyond the bound it is given up, once.
    let _ = std::fs::write(&fill, vec![1; 1 << 20]);
    for n in 0..400_000 {
        journal.note(&file(n));
    }
    assert!(journal.writer.lock().given_up);
    assert!(journal.writer.lock().pending.is_empty());
    drop(journal);
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// Prints what one lookup costs: run it with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_a_lookup_costs() {
    const LOOKUPS: u32 = 200_000;
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), 1, false).unwrap();
    for (what, known) in [("new nodes", false), ("known nodes", true)] {
        let began = Instant::now();
        for n in 0..LOOKUPS {
            let records = file(u64::from(n) + 3);
            journal.note(&records[if known { 2 } else { 1 }..]);
            journal.flush();
        }
        println!("{what}: {:?} for each lookup", began.elapsed() / LOOKUPS);
    }
    let began = Instant::now();
    journal.shorten().unwrap();
    println!("shortened {LOOKUPS} nodes in {:?}", began.elapsed());
    drop(journal);
    let began = Instant::now();
    let (_, past) = Journal::open(dir.path(), 1, false).unwrap();
    println!("read {} nodes in {:?}", past.image.nodes.len(), began.elapsed());
}

/// A journal that lacks something says so to every worker of its mount, and that of a new one lacks
/// nothing.
#[test]
fn what_is_missing_is_known_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let complete = |begun| Journal::open(dir.path(), 1, begun).unwrap().1.complete;
    assert!(complete(false));
    assert!(complete(true));

    std::fs::remove_file(&path).unwrap();
    let (journal, past) = Journal::open(dir.path(), 1, true).unwrap();
    assert!(!past.complete);
    journal.note(&file(9));
    journal.flush();
    journal.writer.lock().shorten_at = 0;
    journal.maintain();
    drop(journal);
    let (journal, past) = Journal::open(dir.path(), 1, true).unwrap();
    assert_eq!((past.complete, past.image), (false, image_of(&file(9))));
    drop(journal);

    // Another mount begins with all that there is.
    let (journal, past) = Journal::open(dir.path(), 2, false).unwrap();
    assert!(past.complete);
    for n in [9, 10, 11] {
        journal.note(&file(n));
    }
    drop(journal);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for _ in 0..2 {
        let (journal, past) = Journal::open(dir.path(), 2, true).unwrap();
        assert!(!past.complete);
        journal.writer.lock().shorten_at = 0;
        journal.maintain();
    }
}

#[test]
fn a_journal_that_was_given_up_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), 1, false).unwrap();
    journal.note(&file(9));
    journal.flush();
    {
        let mut writer = journal.writer.lock();
        writer.pending = vec![0; MAX_PENDING_BYTES + 1];
        writer.bound();
    }
    drop(journal);
    let (_, past) = Journal::open(dir.path(), 1, true).unwrap();
    assert_eq!((past.complete, past.image), (false, Image::default()));
}
