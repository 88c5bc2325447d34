//! Bodies that are read from whole files, good and bad ones.

use std::fs::File;
use std::io::Write;

use store::CopyFate;
use store::testing::Operation;

use super::*;
use crate::files::WholeFile;

const MIB: usize = 1 << 20;

struct Kept {
    rig: Rig,
    blocks: Arc<MapBlocks>,
    fate: Arc<CopyFate>,
    bytes: Bytes,
    path: tempfile::NamedTempFile,
}

/// An object of which a file holds what `file` makes of it.
async fn kept(len: usize, file: impl FnOnce(&[u8]) -> Vec<u8>) -> Kept {
    let (rig, blocks) = rig_over_map_with(CacheConfig::default());
    let bytes = content(1, len);
    let etag = rig.memory.insert("k", bytes.clone());
    rig.store.head(&key("k")).await.unwrap();
    rig.calls();
    let mut path = tempfile::NamedTempFile::new().unwrap();
    path.write_all(&file(&bytes)).unwrap();
    let fate = Arc::<CopyFate>::default();
    let whole =
        WholeFile { file: Arc::new(File::open(path.path()).unwrap()), fate: Arc::clone(&fate) };
    let object = rig.store.version_of(&key("k"), &etag, len as u64);
    blocks.files.lock().insert(object.id(), Arc::new(whole));
    Kept { rig, blocks, fate, bytes, path }
}

impl Kept {
    fn files(&self) -> usize {
        self.blocks.files.lock().len()
    }
}

#[tokio::test]
async fn ranges_of_all_sizes_come_from_the_file_and_ask_nothing() {
    let kept = kept(3 * MIB + 77, <[u8]>::to_vec).await;
    let size = kept.bytes.len();
    let cuts = [0, 1, 4096, 32_769, 262_144, MIB - 1, MIB, MIB + 300_000, size - 1, size];
    for a in cuts {
        for b in cuts.into_iter().filter(|b| *b > a) {
            let got = kept.rig.read("k", ByteRange::Bounded(a as u64, b as u64)).await.unwrap();
            assert!(got == kept.bytes[a..b], "{a}..{b}");
        }
    }
    assert_eq!(kept.rig.full("k").await.unwrap(), kept.bytes);
    assert_eq!(kept.rig.calls(), 0);
    assert_eq!(kept.blocks.len(), 0, "the page cache holds it already");
    assert!(kept.rig.stats().hits > 0 && kept.rig.stats().misses == 0);
}

#[tokio::test]
async fn what_is_not_in_memory_is_read_from_the_disk() {
    let kept = kept(8 * MIB, <[u8]>::to_vec).await;
    let file = File::open(kept.path.path()).unwrap();
    file.sync_all().unwrap();
    for at in [0, 5 * MIB, 2 * MIB + 17] {
        _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let range = ByteRange::From(at as u64);
        assert!(kept.rig.read("k", range).await.unwrap() == kept.bytes[at..]);
    }
    assert_eq!(kept.rig.calls(), 0);
}

#[tokio::test]
async fn a_file_that_is_cut_short_is_doubted_and_the_origin_has_the_rest() {
    for keep in [0, 100_000, MIB, 2 * MIB + 5] {
        let kept = kept(3 * MIB, |bytes| bytes[..keep].to_vec()).await;
        assert_eq!(kept.rig.full("k").await.unwrap(), kept.bytes, "of a file of {keep} bytes");
        assert_eq!(kept.files(), 0, "doubted");
        let fetched = kept.rig.origin.calls().bytes_read();
        assert!(fetched as usize >= 3 * MIB - keep && fetched as usize <= 3 * MIB);
    }
}

#[tokio::test]
async fn a_file_that_is_cut_short_under_a_reader_is_no_error() {
    let kept = kept(8 * MIB, <[u8]>::to_vec).await;
    let mut got = kept.rig.store.get(&key("k"), GetOptions::default()).await.unwrap();
    let mut all = got.body.try_next().await.unwrap().unwrap().to_vec();
    kept.path.as_file().set_len(MIB as u64 + 1).unwrap();
    while let Some(piece) = got.body.try_next().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    assert!(all == kept.bytes);
    assert_eq!(kept.files(), 0);
}

#[tokio::test]
async fn a_condemned_file_is_read_no_further() {
    let kept = kept(8 * MIB, <[u8]>::to_vec).await;
    let mut got = kept.rig.store.get(&key("k"), GetOptions::default()).await.unwrap();
    let mut all = got.body.try_next().await.unwrap().unwrap().to_vec();
    kept.fate.condemn();
    while let Some(piece) = got.body.try_next().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    assert!(all == kept.bytes);
    assert!(kept.rig.origin.calls().of(Operation::Get) > 0);
}

#[tokio::test]
async fn an_evicted_file_is_read_to_its_end() {
    let kept = kept(4 * MIB, <[u8]>::to_vec).await;
    let got = kept.rig.store.get(&key("k"), GetOptions::default()).await.unwrap();
    kept.fate.evict();
    std::fs::remove_file(kept.path.path()).unwrap();
    let pieces: Vec<Bytes> = got.body.try_collect().await.unwrap();
    assert!(pieces.concat() == kept.bytes);
    assert_eq!(kept.rig.calls(), 0);
}

#[tokio::test]
async fn a_file_that_fails_while_the_object_changed_is_an_error_and_never_a_mixture() {
    let kept = kept(4 * MIB, |bytes| bytes[..MIB].to_vec()).await;
    kept.rig.memory.insert("k", content(2, 4 * MIB));
    let mut got = kept.rig.store.get(&key("k"), GetOptions::default()).await.unwrap();
    let mut all = Vec::new();
    let end = loop {
        match got.body.try_next().await {
            Ok(Some(piece)) => all.extend_from_slice(&piece),
            other => break other,
        }
    };
    assert_eq!(end.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    assert!(all == kept.bytes[..MIB]);
}

#[tokio::test]
async fn a_file_that_is_bad_from_the_start_of_a_changed_object_is_followed() {
    let kept = kept(4 * MIB, |_| Vec::new()).await;
    let now = content(2, 4 * MIB);
    kept.rig.memory.insert("k", now.clone());
    assert_eq!(kept.rig.full("k").await.unwrap(), now, "nothing had been sent yet");
}
