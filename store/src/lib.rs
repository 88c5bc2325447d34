//! The vocabulary of WarpDrive: names, metadata, ranges, one error type, the [`Store`] trait and
//! the [`Namespace`] that joins stores into what the front ends show.
//!
//! Invariant: nothing in this crate does I/O or names a runtime; a key that enters is the key that
//! comes out, byte for byte. It refuses to normalise keys and to know any protocol.

mod contract;
mod error;
mod ext;
mod local_copy;
mod meta;
mod names;
mod namespace;

mod range;
#[cfg(feature = "testing")]
pub mod testing;

pub use contract::{
    Body, ByteStream, Condition, CopyOptions, GetOptions, GetResult, ListEntry, ListPage,
    ListRequest, PartEntry, PartList, PutOptions, ReaderId, Store, UploadEntry, UploadId,
    UploadList, UploadListRequest, Written,
};
pub use error::{Error, ErrorKind, Result};
pub use ext::StoreExt;
pub use local_copy::{CopyFate, CopyState, LocalCopy, NoCopy};
pub use meta::{Attributes, ObjectMeta};
pub use names::{BucketName, ETag, InvalidName, ObjectKey, ObjectPath};
pub use namespace::{
    Bucket, InvalidNamespace, Located, Namespace, NamespaceBuilder, Residency, Resident,
};
pub use range::{ByteRange, Unsatisfiable};
