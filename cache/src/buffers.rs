//! Memory for blocks and for pieces of bodies, used again instead of returned.
//!
//! Invariant: one buffer has one owner at a time, and what is frozen is only read until its last reader
//! has let go of it. Fresh memory costs a page fault for each 4 KiB, more than receiving the bytes does;
//! this memory lies in huge pages and is faulted in once. At most [`IDLE_BYTES`] of what is not in use
//! stay resident. Refuses to hold small things: those are ordinary allocations of their own size.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use region::{Place, Region};

/// Resident memory of one pool that nobody uses: a few merged GETs, which come and go at once.
const IDLE_BYTES: usize = 16 << 20;

/// Below this a buffer is an allocation: the allocator has such memory at hand.
const SMALLEST_BYTES: usize = 64 << 10;

/// Above this too: such blocks are configured by people who have few of them.
const LARGEST_BYTES: usize = 8 << 20;

/// Buffers of one size.
#[derive(Debug)]
pub(crate) struct Buffers {
    bytes: usize,
    idle: Mutex<Idle>,
    /// Pooled buffers that somebody holds.
    held: AtomicUsize,
}

#[derive(Debug, Default)]
struct Idle {
    /// Resident; the last used is the first to be used again, for its bytes may still be in a cache of
    /// the processor.
    warm: Vec<Place>,
    /// Address space only.
    cold: Vec<Place>,
}

/// Memory that is being filled. Its content is whatever it was used for before.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Own(Vec<u8>),
    Pooled(Pooled),
}

#[derive(Debug)]
struct Pooled {
    /// Taken only when dropped.
    place: Option<Place>,
    pool: Arc<Buffers>,
}

impl Buffers {
    /// A pool of buffers of `bytes`. Costs nothing before the first is taken.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { bytes, idle: Mutex::default(), held: AtomicUsize::new(0) })
    }

    /// Bytes of a buffer.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the buffers of this pool that are being filled or read now.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed) * self.bytes
    }

    /// A buffer of `len` bytes: a pooled one where that wastes next to nothing, for what is kept counts
    /// as its length.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let pooled = (SMALLEST_BYTES..=LARGEST_BYTES).contains(&self.bytes)
            && len <= self.bytes
            && self.bytes - len <= self.bytes / 16;
        let place = if pooled { self.place() } else { None };
        let memory = match place {
            Some(place) => {
                self.held.fetch_add(1, Ordering::Relaxed);
                Memory::Pooled(Pooled { place: Some(place), pool: Arc::clone(self) })
            }
            None => Memory::Own(vec![0; len]),
        };
        Buffer { memory, len }
    }

    fn place(&self) -> Option<Place> {
        let mut idle = self.idle.lock();
        if let Some(place) = idle.warm.pop().or_else(|| idle.cold.pop()) {
            return Some(place);
        }
        // `None` where the kernel gives no more memory in this way: the allocator may know another.
        let mut places = Region::cut(self.bytes)?;
        let first = places.next();
        idle.cold.extend(places);
        first
    }

    fn give_back(&self, place: Place) {
        let mut idle = self.idle.lock();
        if (idle.warm.len() + 1) * self.bytes <= IDLE_BYTES {
            idle.warm.push(place);
            return;
        }
        drop(idle);
        place.cool();
        self.idle.lock().cold.push(place);
    }
}

impl Buffer {
    /// The first `len` bytes, which have been filled, to be shared. The memory is used again when the
    /// last of them is dropped.
    pub(crate) fn freeze(mut self, len: usize) -> Bytes {
        self.len = self.len.min(len);
        match self.memory {
            Memory::Own(mut own) => {
                own.truncate(self.len);
                own.into()
            }
            Memory::Pooled(_) => Bytes::from_owner(self),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Own(own) => &own[..self.len],
            Memory::Pooled(pooled) => {
                &pooled.place.as_ref().map_or(&[][..], Place::bytes)[..self.len]
            }
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Own(own) => &mut own[..self.len],
            Memory::Pooled(pooled) => {
                &mut pooled.place.as_mut().map_or(&mut [][..], Place::bytes_mut)[..self.len]
            }
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.pool.held.fetch_sub(1, Ordering::Relaxed);
            self.pool.give_back(place);
        }
    }
}

/// Memory from the kernel, in huge pages where it has them.
#[allow(unsafe_code)]
mod region {
    use std::ffi::c_void;
    use std::ptr::NonNull;
    use std::sync::Arc;

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    /// Mapped at once: sixteen huge pages, so that few mappings hold many buffers.
    const REGION_BYTES: usize = 32 << 20;

    /// What the kernel calls huge on the machines that we know.
    const HUGE_BYTES: usize = 2 << 20;

    #[derive(Debug)]
    pub(super) struct Region {
        base: NonNull<c_void>,
        mapped: usize,
    }

    // SAFETY: a region only says which addresses are mapped; it reads and writes nothing.
    unsafe impl Send for Region {}
    // SAFETY: as above.
    unsafe impl Sync for Region {}

    /// A part of a region that no other place overlaps.
    #[derive(Debug)]
    pub(super) struct Place {
        at: NonNull<u8>,
        len: usize,
        _region: Arc<Region>,
    }

    // SAFETY: a place is the only way to its bytes, so it moves between threads like a `Vec<u8>`.
    unsafe impl Send for Place {}
    // SAFETY: shared, it only hands out `&[u8]`.
    unsafe impl Sync for Place {}

    impl Region {
        /// A new region, as places of `len` bytes (at most [`REGION_BYTES`]).
        pub(super) fn cut(len: usize) -> Option<impl Iterator<Item = Place>> {
            let mapped = REGION_BYTES + HUGE_BYTES;
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that
            // is in use.
            let base = unsafe {
                mmap_anonymous(std::ptr::null_mut(), mapped, protection, MapFlags::PRIVATE)
            };
            let base = NonNull::new(base.ok()?)?;
            let region = Arc::new(Self { base, mapped });
            let skip = base.as_ptr().cast::<u8>().align_offset(HUGE_BYTES);
            // SAFETY: `skip` is less than `HUGE_BYTES`, so both ends lie within the mapping.
            let start = unsafe { base.cast::<u8>().add(skip) };
            // SAFETY: advice on our own mapping, which changes no content. Without huge pages it works
            // the same, only slower.
            _ = unsafe { madvise(start.cast().as_ptr(), REGION_BYTES, Advice::LinuxHugepage) };
            Some((0..REGION_BYTES / len).map(move |n| Place {
                // SAFETY: `(n + 1) * len` is at most `REGION_BYTES`, all of it after `start` is mapped.
                at: unsafe { start.add(n * len) },
                len,
                _region: Arc::clone(&region),
            }))
        }
    }

    impl Drop for Region {
        fn drop(&mut self) {
            // SAFETY: every place holds the region, so nothing points into it any more.
            _ = unsafe { munmap(self.base.as_ptr(), self.mapped) };
        }
    }

    impl Place {
        pub(super) fn bytes(&self) -> &[u8] {
            // SAFETY: mapped for as long as the region lives, zeroed by the kernel or written since,
            // and not written while `self` is borrowed.
            unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
        }

        pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
            // SAFETY: as above, and no other place overlaps this one.
            unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
        }

        /// Gives the memory back to the kernel and keeps the addresses.
        pub(super) fn cool(&self) {
            // SAFETY: the pages of a private anonymous mapping read as zeros afterwards; nobody
            // depends on the content of a place that is not in use.
            _ = unsafe { madvise(self.at.as_ptr().cast(), self.len, Advice::LinuxDontNeed) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_when_its_last_reader_has_left() {
        let pool = Buffers::new(1 << 20);
        let mut buffer = pool.take(1 << 20);
        buffer.fill(7);
        let at = buffer.as_ptr();
        let bytes = buffer.freeze(1 << 20);
        let part = bytes.slice(1000..2000);
        drop(bytes);
        assert_ne!(pool.take(1 << 20).as_ptr(), at, "a reader still holds it");
        assert!(part.iter().all(|b| *b == 7));
        drop(part);
        assert_eq!(pool.take(1 << 20).as_ptr(), at);
    }

    #[test]
    fn buffers_never_overlap_and_idle_ones_are_bounded() {
        let pool = Buffers::new(1 << 20);
        let mut held: Vec<_> = (0..80).map(|_| pool.take(1 << 20)).collect();
        for (n, buffer) in held.iter_mut().enumerate() {
            assert_eq!(buffer.len(), 1 << 20);
            buffer.fill(n as u8);
        }
        for (n, buffer) in held.iter().enumerate() {
            assert!(buffer.iter().all(|b| *b == n as u8));
        }
        assert_eq!(pool.held_bytes(), 80 << 20);
        drop(held);
        assert_eq!(pool.held_bytes(), 0);
        let idle = pool.idle.lock();
        assert!(idle.warm.len() << 20 <= IDLE_BYTES);
        assert_eq!(idle.warm.len() + idle.cold.len(), 96, "three regions");
    }

    #[test]
    fn what_would_waste_a_buffer_gets_memory_of_its_own() {
        let pool = Buffers::new(1 << 20);
        assert_eq!(pool.take(1000).freeze(900).len(), 900);
        assert_eq!(pool.take(3 << 20).len(), 3 << 20);
        assert_eq!(Buffers::new(1000).take(1000).len(), 1000);
        assert_eq!(Buffers::new(64 << 20).take(64 << 20).len(), 64 << 20);
        assert_eq!(pool.take(700 << 10).freeze(700 << 10).len(), 700 << 10);
        assert_eq!(pool.idle.lock().cold.len(), 0);
    }
}
