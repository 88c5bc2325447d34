//! Blocks and their keys as foyer writes them to disk.
//!
//! Invariant: a block's checksum is seeded with its key, written with it, and compared when it is
//! read back: foyer's own checksum covers the entry but is not bound to the key that was asked for.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use foyer::{Code, Error, Result};
use store::{ETag, ObjectKey, ObjectMeta};
use twox_hash::XxHash3_64;

use crate::version::{BlockKey, Version};

/// No block is larger; a length beyond it is garbage, not a reason to allocate.
const MAX_VALUE_BYTES: u64 = 65 << 20;

/// Longest text in a key: an object key of 1,024 bytes, or a tag, with room to spare.
const MAX_TEXT_BYTES: u16 = 8 << 10;

/// Bytes of a value besides its data: checksum and length.
const VALUE_OVERHEAD: usize = 16;

/// A block as it is kept: in memory the bytes, from disk with the checksum found there.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) data: Bytes,
    seal: u64,
    found: Option<u64>,
}

impl Block {
    pub(crate) fn new(key: &BlockKey, data: Bytes) -> Self {
        Self { data, seal: key.seal(), found: None }
    }

    fn checksum(seal: u64, data: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(seal, data)
    }

    /// The block as it belongs under `key`, if its checksum says so.
    pub(crate) fn verified(self, key: &BlockKey) -> Option<Self> {
        match self.found {
            Some(found) if found != Self::checksum(key.seal(), &self.data) => None,
            _ => Some(Self { seal: key.seal(), found: None, ..self }),
        }
    }
}

fn invalid(what: &'static str) -> Error {
    Error::io_error(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
}

fn read_u64(reader: &mut impl Read) -> Result<u64> {
    let mut raw = [0; 8];
    reader.read_exact(&mut raw).map_err(Error::io_error)?;
    Ok(u64::from_le_bytes(raw))
}

impl Code for Block {
    fn encode(&self, writer: &mut impl Write) -> Result<()> {
        let checksum = Self::checksum(self.seal, &self.data);
        let mut head = [0; VALUE_OVERHEAD];
        head[..8].copy_from_slice(&checksum.to_le_bytes());
        head[8..].copy_from_slice(&(self.data.len() as u64).to_le_bytes());
        writer.write_all(&head).map_err(Error::io_error)?;
        writer.write_all(&self.data).map_err(Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> Result<Self> {
        let checksum = read_u64(reader)?;
        let len = read_u64(reader)?;
        if len > MAX_VALUE_BYTES {
            return Err(invalid("block length is out of range"));
        }
        let mut data = Vec::with_capacity(len as usize);
        reader.take(len).read_to_end(&mut data).map_err(Error::io_error)?;
        if data.len() as u64 != len {
            return Err(invalid("block is cut short"));
        }
        Ok(Self { data: data.into(), seal: 0, found: Some(checksum) })
    }

    fn estimated_size(&self) -> usize {
        self.data.len() + VALUE_OVERHEAD
    }
}

fn write_text(writer: &mut impl Write, text: &str) -> Result<()> {
    let len = u16::try_from(text.len()).ok().filter(|len| *len <= MAX_TEXT_BYTES);
    let len = len.ok_or_else(|| invalid("text is too long for a key"))?;
    writer.write_all(&len.to_le_bytes()).map_err(Error::io_error)?;
    writer.write_all(text.as_bytes()).map_err(Error::io_error)
}

fn read_text(reader: &mut impl Read) -> Result<String> {
    let mut len = [0; 2];
    reader.read_exact(&mut len).map_err(Error::io_error)?;
    let len = u16::from_le_bytes(len);
    if len > MAX_TEXT_BYTES {
        return Err(invalid("text of a key is out of range"));
    }
    let mut text = vec![0; usize::from(len)];
    reader.read_exact(&mut text).map_err(Error::io_error)?;
    String::from_utf8(text).map_err(|_| invalid("text of a key is not UTF-8"))
}

impl Code for BlockKey {
    fn encode(&self, writer: &mut impl Write) -> Result<()> {
        writer.write_all(&self.object.store.to_le_bytes()).map_err(Error::io_error)?;
        writer.write_all(&self.index.to_le_bytes()).map_err(Error::io_error)?;
        write_text(writer, self.object.key.as_str())?;
        write_text(writer, self.object.etag().as_str())
    }

    /// Size and time of the version are not part of a key; they come back empty.
    fn decode(reader: &mut impl Read) -> Result<Self> {
        let store = read_u64(reader)?;
        let mut index = [0; 4];
        reader.read_exact(&mut index).map_err(Error::io_error)?;
        let key = ObjectKey::new(read_text(reader)?).map_err(|_| invalid("empty object key"))?;
        let meta = ObjectMeta {
            size: 0,
            etag: ETag::parse(&read_text(reader)?),
            last_modified: SystemTime::UNIX_EPOCH,
            attributes: None,
        };
        let object = Arc::new(Version::new(store, key, meta));
        Ok(Self { object, index: u32::from_le_bytes(index) })
    }

    fn estimated_size(&self) -> usize {
        8 + 4 + 2 + self.object.key.as_str().len() + 2 + self.object.etag().as_str().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(name: &str, etag: &str, index: u32) -> BlockKey {
        let meta = ObjectMeta {
            size: 9,
            etag: ETag::parse(etag),
            last_modified: SystemTime::now(),
            attributes: None,
        };
        BlockKey::new(&Arc::new(Version::new(7, ObjectKey::new(name).unwrap(), meta)), index)
    }

    proptest! {
        #[test]
        fn round_trip(name in ".{1,100}", etag in "[!-~]{0,40}", index: u32, data: Vec<u8>) {
            let key = key(&name, &etag, index);
            let block = Block::new(&key, data.clone().into());
            let (mut k, mut v) = (Vec::new(), Vec::new());
            key.encode(&mut k).unwrap();
            block.encode(&mut v).unwrap();
            prop_assert!(k.len() <= key.estimated_size());
            prop_assert_eq!(v.len(), block.estimated_size());
            let back = BlockKey::decode(&mut &k[..]).unwrap();
            prop_assert!(back == key);
            let block = Block::decode(&mut &v[..]).unwrap().verified(&key);
            prop_assert_eq!(block.unwrap().data, Bytes::from(data));
        }

        #[test]
        fn any_flipped_bit_is_found(data in proptest::collection::vec(any::<u8>(), 1..300), at: usize, bit in 0u8..8) {
            let key = key("k", "e", 3);
            let mut raw = Vec::new();
            Block::new(&key, data.into()).encode(&mut raw).unwrap();
            let at = at % raw.len();
            raw[at] ^= 1 << bit;
            let good = Block::decode(&mut &raw[..]).ok().and_then(|b| b.verified(&key));
            prop_assert!(good.is_none());
        }

        #[test]
        fn garbage_never_panics(raw: Vec<u8>) {
            _ = BlockKey::decode(&mut &raw[..]);
            _ = Block::decode(&mut &raw[..]);
        }
    }

    #[test]
    fn a_block_is_bound_to_its_key() {
        let mut raw = Vec::new();
        Block::new(&key("k", "e", 3), Bytes::from_static(b"x")).encode(&mut raw).unwrap();
        for other in [key("k", "e", 4), key("k", "f", 3), key("l", "e", 3)] {
            assert!(Block::decode(&mut &raw[..]).unwrap().verified(&other).is_none());
        }
    }
}
