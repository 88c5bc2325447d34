//! Every way in which a program can get at the bytes of a file, verified.
//!
//! Invariant: each way reads the whole object, and a wrong byte, a short file or an error is a panic
//! that says which way it was.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::Object;

/// What `O_DIRECT` wants offsets, lengths and addresses to be a multiple of, on any disk.
const DIRECT_ALIGNMENT: usize = 4096;
/// Reads an object at a path; the folder is for files in between.
type Way = fn(&Object, &Path, &Path) -> io::Result<Vec<u8>>;
/// What is read at once.
const PIECE_BYTES: usize = 512 << 10;

/// Reads `object` at `path` with `read`, `O_DIRECT`, `sendfile`, `copy_file_range`, `splice` (into a
/// pipe) and a shared mapping, each through an open of its own.
///
/// # Panics
/// At a wrong byte or an error.
pub fn read_in_every_way(object: &Object, path: &Path, scratch: &Path) {
    let ways: [(&str, Way); 6] = [
        ("read", plain),
        ("O_DIRECT", direct),
        ("sendfile", sendfile),
        ("copy_file_range", copied),
        ("splice", spliced),
        ("mmap", mapped),
    ];
    for (name, way) in ways {
        let found = way(object, path, scratch).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found.len() as u64, object.bytes, "{name} of {}", object.key);
        let wrong = object.difference(0, &found);
        assert!(
            wrong.is_none(),
            "{name} of {}: {}",
            object.key,
            object.describe(0, wrong.unwrap_or(0), &found)
        );
    }
}

fn plain(_: &Object, path: &Path, _: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

fn direct(object: &Object, path: &Path, _: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut buffer = vec![0; PIECE_BYTES + DIRECT_ALIGNMENT];
    let from = buffer.as_ptr().align_offset(DIRECT_ALIGNMENT);
    let mut found = Vec::with_capacity(object.bytes as usize);
    loop {
        // After the short read at the end the offset is no multiple any more: that is the end.
        let count = file.read_at(&mut buffer[from..from + PIECE_BYTES], found.len() as u64)?;
        found.extend_from_slice(&buffer[from..from + count]);
        if count < PIECE_BYTES {
            return Ok(found);
        }
    }
}

/// Moves all bytes of `from` into a new file with `step(from, to, bytes)`, and reads that.
fn through_a_file(
    object: &Object,
    path: &Path,
    scratch: &Path,
    step: impl Fn(i32, i32, usize) -> isize,
) -> io::Result<Vec<u8>> {
    let from = File::open(path)?;
    let target = scratch.join("moved");
    let to = File::create(&target)?;
    let mut left = object.bytes as usize;
    while left > 0 {
        match step(from.as_raw_fd(), to.as_raw_fd(), left.min(PIECE_BYTES)) {
            0 => break,
            count if count < 0 => return Err(io::Error::last_os_error()),
            count => left -= count.unsigned_abs(),
        }
    }
    std::fs::read(target)
}

#[allow(unsafe_code)]
fn sendfile(object: &Object, path: &Path, scratch: &Path) -> io::Result<Vec<u8>> {
    // SAFETY: a system call on numbers.
    let step = |from, to, count| unsafe { libc::sendfile(to, from, std::ptr::null_mut(), count) };
    through_a_file(object, path, scratch, step)
}

#[allow(unsafe_code)]
fn copied(object: &Object, path: &Path, scratch: &Path) -> io::Result<Vec<u8>> {
    let none = std::ptr::null_mut;
    // SAFETY: a system call on numbers.
    let step =
        |from, to, count| unsafe { libc::copy_file_range(from, none(), to, none(), count, 0) };
    match through_a_file(object, path, scratch, step) {
        // Between two file systems the kernel leaves the copying to the program; whoever has it do
        // so falls back as the standard library does.
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
            std::fs::copy(path, scratch.join("copied"))?;
            std::fs::read(scratch.join("copied"))
        }
        done => done,
    }
}

#[allow(unsafe_code)]
fn spliced(object: &Object, path: &Path, _: &Path) -> io::Result<Vec<u8>> {
    let from = File::open(path)?;
    let (mut reader, writer) = io::pipe()?;
    let collect = std::thread::spawn(move || {
        let mut found = Vec::new();
        reader.read_to_end(&mut found).map(|_| found)
    });
    let mut left = object.bytes as usize;
    while left > 0 {
        let none = std::ptr::null_mut;
        let count = left.min(PIECE_BYTES);
        // SAFETY: a system call on numbers.
        let moved =
            unsafe { libc::splice(from.as_raw_fd(), none(), writer.as_raw_fd(), none(), count, 0) };
        match moved {
            0 => break,
            count if count < 0 => return Err(io::Error::last_os_error()),
            count => left -= count.unsigned_abs(),
        }
    }
    drop(writer);
    collect.join().expect("the reading thread only reads")
}

#[allow(unsafe_code)]
fn mapped(object: &Object, path: &Path, _: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let bytes = object.bytes as usize;
    // SAFETY: a new read-only mapping, copied from and unmapped again before anything else.
    unsafe {
        let (kind, protection) = (libc::MAP_SHARED, libc::PROT_READ);
        let at = libc::mmap(std::ptr::null_mut(), bytes, protection, kind, file.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let found = std::slice::from_raw_parts(at.cast::<u8>(), bytes).to_vec();
        libc::munmap(at, bytes);
        Ok(found)
    }
}
