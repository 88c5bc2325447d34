//! The data set: which objects there are, what is in them, and the plain copy beside the origin.
//!
//! Invariant: an object's bytes follow from its key and nothing else, do not compress, and no two
//! blocks of them are equal, so that neither a file system nor a program can serve one for another.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use super::halt::{During, Halt, Trouble};

/// A random source (splitmix64, Steele, Lea and Flood 2014) that gives both sides of a comparison the
/// same order.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below a bound that is not 0; the bias of the remainder is below 2^-32 here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Puts a list in a random order (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// An object, or a file of the plain copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: String,
    pub(crate) size: u64,
}

/// Objects of equal size with a common purpose.
pub(crate) fn items(prefix: &str, count: usize, size: u64) -> Vec<Item> {
    (0..count).map(|n| Item { key: format!("{prefix}/o{n:05}"), size }).collect()
}

/// The bytes of an object, from its beginning.
#[derive(Debug)]
pub(crate) struct Content {
    dice: Dice,
    left: u64,
}

impl Content {
    pub(crate) fn of(item: &Item) -> Self {
        // FNV-1a: keys differ in a few characters, their contents in everything.
        let seed = item.key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { dice: Dice::new(seed), left: item.size }
    }
}

impl Read for Content {
    /// Fills the buffer but at the end; buffers must be multiples of 8 bytes long.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = (buffer.len() as u64).min(self.left) as usize;
        for word in buffer[..length].chunks_mut(8) {
            let bytes = self.dice.next().to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
        self.left -= length as u64;
        Ok(length)
    }
}

/// Written at once: large, so that the page cache takes the file in large folios, as a cache that writes
/// well does too.
pub(crate) const WRITE_BYTES: usize = 8 << 20;

/// Writes the plain copy of some objects, sequentially, and leaves it clean in the page cache.
pub(crate) fn write_plain(root: &Path, items: &[Item], halt: &Halt) -> Result<(), Trouble> {
    let largest = items.iter().map(|item| item.size).max().unwrap_or(0);
    let mut buffer = vec![0; (largest as usize).next_multiple_of(8).min(WRITE_BYTES)];
    for item in items {
        halt.check()?;
        let path = root.join(&item.key);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).during(parent.display())?;
        }
        let mut file = File::create(&path).during(path.display())?;
        let mut content = Content::of(item);
        loop {
            let read = content.read(&mut buffer).during(path.display())?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read]).during(path.display())?;
        }
        // Dirty pages would be written in the middle of a measurement.
        if item.size >= 1 << 20 {
            file.sync_data().during(path.display())?;
        }
    }
    rustix::fs::sync();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn contents_depend_on_the_key_and_have_the_stated_length() {
        let halt = Halt::new(Duration::from_mins(1));
        let folder = tempfile::tempdir().unwrap();
        let mut all = items("some", 3, 100_001);
        all.push(Item { key: "empty".to_owned(), size: 0 });
        write_plain(folder.path(), &all, &halt).unwrap();
        let read = |item: &Item| std::fs::read(folder.path().join(&item.key)).unwrap();
        assert_eq!(read(&all[0]).len(), 100_001);
        assert_ne!(read(&all[0]), read(&all[1]));
        assert_eq!(read(&all[3]), b"");
        let mut again = Vec::new();
        Content::of(&all[0]).read_to_end(&mut again).unwrap();
        assert_eq!(again.len(), 100_001);
    }

    #[test]
    fn a_shuffled_list_has_what_it_had() {
        let mut list: Vec<u32> = (0..100).collect();
        Dice::new(1).shuffle(&mut list);
        assert_ne!(list, (0..100).collect::<Vec<_>>());
        list.sort_unstable();
        assert_eq!(list, (0..100).collect::<Vec<_>>());
    }
}
