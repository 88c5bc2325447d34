//! Objects whose every byte can be told from name and offset, so that whoever reads any range of any
//! of them can verify it without having the origin at hand.
//!
//! Invariant: the bytes of an object follow from its seed and its size alone. Eight bytes at a
//! time are a mixture of seed and offset: bytes of another object, another version, another offset
//! or a hole are told from the right ones.

use std::path::Path;

use bytes::Bytes;
use testkit::Running;

/// Bytes that are made at once from one offset.
const WORD: u64 = 8;
/// PUTs in flight while an origin is filled.
const PUTS_AT_ONCE: usize = 8;

/// One object, with what it takes to verify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its key, which is also its path below the backend's directory of the mount.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// Tells its bytes from those of every other object.
    pub seed: u64,
}

impl Object {
    /// The whole object.
    pub fn body(&self) -> Bytes {
        let mut body = vec![0; self.bytes as usize];
        for (index, word) in (0..).zip(body.chunks_mut(WORD as usize)) {
            word.copy_from_slice(&mixture(self.seed, index)[..word.len()]);
        }
        body.into()
    }

    /// The first offset in the object at which `found`, which was read from offset `at` on, is wrong.
    pub fn difference(&self, at: u64, found: &[u8]) -> Option<u64> {
        let mut position = at;
        let mut rest = found;
        if at.is_multiple_of(WORD) {
            // Nearly all there is to verify: whole words.
            let same = (at / WORD..)
                .zip(rest.chunks_exact(WORD as usize))
                .take_while(|(index, word)| *word == mixture(self.seed, *index));
            let whole = same.count();
            position += whole as u64 * WORD;
            rest = &rest[whole * WORD as usize..];
        }
        while !rest.is_empty() {
            let within = (position % WORD) as usize;
            let count = (WORD as usize - within).min(rest.len());
            let expected = mixture(self.seed, position / WORD);
            if rest[..count] != expected[within..within + count] {
                let wrong = (0..count).find(|&i| rest[i] != expected[within + i])?;
                return Some(position + wrong as u64);
            }
            position += count as u64;
            rest = &rest[count..];
        }
        (position > self.bytes).then_some(self.bytes)
    }

    /// Panics unless `found` are the bytes of this object from offset `at` on.
    ///
    /// # Panics
    /// Where the first wrong byte lies, and what is there.
    pub fn verify(&self, at: u64, found: &[u8]) {
        if let Some(offset) = self.difference(at, found) {
            panic!("{}: {}", self.key, self.describe(at, offset, found));
        }
    }

    /// What stands at a wrong offset, for a message.
    pub fn describe(&self, at: u64, offset: u64, found: &[u8]) -> String {
        let from = (offset - at) as usize;
        let shown = &found[from.min(found.len())..found.len().min(from + 16)];
        let zeros =
            if !shown.is_empty() && shown.iter().all(|b| *b == 0) { " (a hole?)" } else { "" };
        format!(
            "wrong from offset {offset} of {} on, in a read of {} bytes at {at}: {shown:02x?}{zeros}",
            self.bytes,
            found.len()
        )
    }
}

/// The eight bytes at offset `8 * index` (the finaliser of splitmix64).
fn mixture(seed: u64, index: u64) -> [u8; 8] {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index);
    word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ (word >> 31)).to_le_bytes()
}

/// Some objects.
#[derive(Debug, Clone, Default)]
pub struct DataSet {
    /// In the order of their keys.
    pub objects: Vec<Object>,
}

impl DataSet {
    /// `count` objects below `folder`, in folders of 16. Sizes go round `sizes`, a few bytes off, so
    /// that the last block and the last page of a file are seldom whole.
    pub fn new(folder: &str, count: u64, sizes: &[u64], first_seed: u64) -> DataSet {
        let objects = (0..count).map(|number| Object {
            key: format!("{folder}/{:03}/object-{number:05}", number / 16),
            bytes: sizes[number as usize % sizes.len()] + number * 7 % 23,
            seed: first_seed + number,
        });
        DataSet { objects: objects.collect() }
    }

    /// The length of all together.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }

    /// Both.
    #[must_use]
    pub fn and(&self, other: &DataSet) -> DataSet {
        let mut objects = [&self.objects[..], &other.objects[..]].concat();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        DataSet { objects }
    }

    /// Writes every object into a bucket of an origin.
    pub async fn put_into(&self, origin: &Running, bucket: &str) {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let next = AtomicUsize::new(0);
        let put = || async {
            while let Some(object) = self.objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                origin.put(bucket, &object.key, object.body()).await;
            }
        };
        // One task with several requests in flight: `origin` need not be shared between threads.
        let all = std::pin::pin!(async {
            let mut puts: Vec<_> = (0..PUTS_AT_ONCE).map(|_| Box::pin(put())).collect();
            std::future::poll_fn(|context| {
                puts.retain_mut(|put| put.as_mut().poll(context).is_pending());
                if puts.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
        });
        all.await;
    }

    /// Writes every object into a directory, for an origin of type `local`.
    ///
    /// # Panics
    /// When the directory cannot be written.
    pub fn write_into(&self, folder: &Path) {
        for object in &self.objects {
            let path = folder.join(&object.key);
            std::fs::create_dir_all(path.parent().expect("keys lie below the folder"))
                .expect("the folder is writable");
            std::fs::write(path, object.body()).expect("the folder is writable");
        }
    }

    /// Writes the list that [`DataSet::read_list`] reads: a line for each object.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write_list(&self, path: &Path) {
        let lines = self.objects.iter().map(|o| format!("{} {} {}\n", o.seed, o.bytes, o.key));
        std::fs::write(path, lines.collect::<String>()).expect("the folder of lists is writable");
    }

    /// The objects of a list.
    ///
    /// # Panics
    /// When the file is no list.
    pub fn read_list(path: &Path) -> DataSet {
        let text = std::fs::read_to_string(path).expect("the list is readable");
        let object = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let mut number = || words.next()?.parse().ok();
            let (seed, bytes) = (number()?, number()?);
            Some(Object { seed, bytes, key: words.next()?.to_owned() })
        };
        let objects = text.lines().map(|line| object(line).expect("seed, size and key in a line"));
        DataSet { objects: objects.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(bytes: u64, seed: u64) -> Object {
        Object { key: "a key".into(), bytes, seed }
    }

    #[test]
    fn any_range_is_verified_and_any_wrong_byte_is_found() {
        let object = object(10_007, 3);
        let body = object.body();
        assert_eq!(body.len(), 10_007);
        for (from, to) in [(0, 10_007), (1, 2), (7, 9), (8, 16), (4093, 9999), (10_006, 10_007)] {
            assert_eq!(object.difference(from as u64, &body[from..to]), None);
            let mut wrong = body[from..to].to_vec();
            let last = wrong.len() - 1;
            wrong[last] ^= 1;
            assert_eq!(object.difference(from as u64, &wrong), Some(to as u64 - 1));
        }
        assert_eq!(object.difference(8, &body[0..8]), Some(8), "bytes of another offset");
        assert!(object.difference(0, &[0; 64]).is_some(), "a hole");
        let long = [&body[..], &[0; 9]].concat();
        assert!(object.difference(0, &long).is_some(), "more than there is");
    }

    #[test]
    fn other_seeds_are_other_bytes() {
        for seed in 1..200 {
            let (one, other) = (object(64, seed).body(), object(64, seed + 1));
            // A single byte may be the same by chance.
            assert!(other.difference(0, &one).is_some_and(|at| at < 8));
            for at in (0..64).step_by(8) {
                assert!(other.difference(at as u64, &one[at..at + 8]).is_some());
            }
        }
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let set = DataSet::new("some dir", 40, &[1, 4096], 9);
        set.write_list(&folder.path().join("list"));
        assert_eq!(DataSet::read_list(&folder.path().join("list")).objects, set.objects);
    }
}
