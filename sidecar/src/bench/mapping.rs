//! A file mapped for reading, as a loader of weights maps it.
//!
//! Invariant: what is copied out lies inside the file as it was when it was mapped. The bench owns the
//! files and makes none of them shorter while they are mapped.

use std::fs::File;
use std::io;
use std::path::Path;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Mapping {
    at: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps a file; an empty one is refused by the kernel.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len() as usize;
        // SAFETY: the kernel chooses a place that nothing else uses, and the mapping is only read.
        let at = unsafe {
            mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, &file, 0)?
        };
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { at, length })
    }

    /// Copies bytes from `offset` on; how many, or `None` at the end. Reads the pages in, also where
    /// nobody looks at the copy.
    #[allow(unsafe_code)]
    pub(crate) fn copy(&self, offset: u64, buffer: &mut [u8]) -> Option<usize> {
        let offset = usize::try_from(offset).ok().filter(|offset| *offset < self.length)?;
        let count = buffer.len().min(self.length - offset);
        // SAFETY: `offset + count` is at most the length of the mapping, which lives as long as
        // `self`; the buffer is memory of its own.
        unsafe {
            std::ptr::copy_nonoverlapping(self.at.as_ptr().add(offset), buffer.as_mut_ptr(), count);
        }
        // Nobody looks at the buffer: without this the compiler leaves the copy out.
        std::hint::black_box(&mut *buffer);
        Some(count)
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open`, is whole, and nothing refers to it any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.length) };
    }
}
