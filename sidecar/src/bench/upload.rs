//! A checkpoint written in parts through the endpoint, beside the origin.
//!
//! Invariant: both sides get the same bytes in the same parts over as many connections, and what was
//! written is deleted again.

use std::fmt::Write;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::catalogue::CPU_PER_GIB;
use super::data::{Content, Item};
use super::halt::{Halt, Trouble};
use super::origin::joined;
use super::report::Row;
use super::scale::{GIB, MIB};
use super::served::Served;
use super::session::Session;
use super::wire::{Endpoint, Wire};

/// What clients use for large objects.
const PART_BYTES: u64 = 8 * MIB;
const AT_ONCE: usize = 4;
const KEY: &str = "checkpoint.bin";

/// Parts written through S3, and directly.
pub(crate) fn measure(session: &Session) -> Result<(), Trouble> {
    if !session.wants("write") {
        return Ok(());
    }
    session.skip("write mount", "the mount is read-only: not built");
    session.attempt("write s3", || {
        let served = Served::start(session, &session.wish(&session.origin.endpoint))?;
        let (size, halt) = (session.scale.upload_bytes, &session.halt);
        let (mut direct, mut through, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        let rate = |seconds: f64| size as f64 / MIB as f64 / seconds;
        for _ in 0..session.scale.repetitions {
            direct.push(rate(upload(&session.origin.endpoint, size, halt)?));
            let before = served.cpu();
            through.push(rate(upload(&served.endpoint(), size, halt)?));
            cpu.push(served.cpu().since(before) / (size as f64 / GIB as f64));
        }
        let row = Row::paired("write", "s3", "MiB/s", &through, ("origin", &direct));
        session.record(row.map(|row| row.with(CPU_PER_GIB, &cpu)));
        Ok(())
    })
}

/// Seconds from the creation of an upload to its completion.
fn upload(endpoint: &Endpoint, size: u64, halt: &Halt) -> Result<f64, Trouble> {
    let mut body = vec![0; PART_BYTES as usize];
    // The same bytes for every part: an endpoint must move them all the same.
    let whole = Content::of(&Item { key: KEY.to_owned(), size: PART_BYTES }).read(&mut body);
    whole.map_err(|error| error.to_string())?;
    let path = endpoint.path(KEY);
    let begun = Instant::now();
    let mut wire = Wire::to(endpoint.address)?;
    let (_, created) = wire.call(endpoint, "POST", &path, "uploads=", b"")?;
    let id = between(&created, "<UploadId>", "</UploadId>");
    let id = id.ok_or_else(|| format!("no upload id in {created}"))?;
    let query = super::sign::encode(id, false);
    let (next, tags) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let parts = size.div_ceil(PART_BYTES);
    let work = || -> Result<(), Trouble> {
        let mut wire = Wire::to(endpoint.address)?;
        loop {
            halt.check()?;
            let part = next.fetch_add(1, Relaxed);
            if part >= parts {
                return Ok(());
            }
            let length = PART_BYTES.min(size - part * PART_BYTES) as usize;
            let query = format!("partNumber={}&uploadId={query}", part + 1);
            let (answer, _) = wire.call(endpoint, "PUT", &path, &query, &body[..length])?;
            let tag = answer.etag.ok_or_else(|| "a part without an ETag".to_owned())?;
            tags.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((part + 1, tag));
        }
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        writers.into_iter().try_for_each(|writer| joined(writer.join()))
    })?;
    let mut tags = tags.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    tags.sort();
    let mut list = String::new();
    for (number, tag) in &tags {
        // Writing to a String cannot fail.
        let _ = write!(list, "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>");
    }
    let complete = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
    let query = format!("uploadId={query}");
    let (_, done) = wire.call(endpoint, "POST", &path, &query, complete.as_bytes())?;
    if !done.contains("<ETag>") {
        return Err(Trouble::Failed(format!("the upload was not completed: {done}")));
    }
    let seconds = begun.elapsed().as_secs_f64();
    Wire::to(endpoint.address)?.call(endpoint, "DELETE", &path, "", b"")?;
    Ok(seconds)
}

/// The text between two marks.
pub(crate) fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let rest = &text[text.find(from)? + from.len()..];
    Some(&rest[..rest.find(to)?])
}
