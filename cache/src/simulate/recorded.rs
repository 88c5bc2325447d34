//! Reads recorded traces: a line for each use, `bucket key bytes`.
//!
//! Invariant: a trace is read whole or refused with the line that is wrong. Between the first and the
//! last space of a line is the key, in which `%`, carriage return and line feed are written as `%25`,
//! `%0D` and `%0A`; `bytes` is the size of the object. Empty lines and lines that begin with `#` say
//! nothing.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufRead;

use super::{Object, Trace};
use crate::admission::{Item, SetId};

/// Uses in one trace: 4 bytes each, and about 150 for each object.
const MOST_USES: usize = 100_000_000;

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A line is not what it should be.
    #[error("line {line} is not `bucket key bytes`")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// Nothing was used.
    #[error("the trace has no uses")]
    Empty,
    /// More than can be held.
    #[error("the trace has more than {MOST_USES} uses")]
    TooLong,
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A recorded trace, on a cache of so many bytes. Hits are counted from its first use on.
pub fn recorded(name: &str, lines: impl BufRead, capacity_bytes: u64) -> Result<Trace, TraceError> {
    let mut numbers: HashMap<u64, u32> = HashMap::new();
    let mut objects: Vec<Object> = Vec::new();
    let mut uses = Vec::new();
    for (at, line) in lines.lines().enumerate() {
        let line = line?;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = parse(&line).ok_or(TraceError::Line { line: at + 1 })?;
        if uses.len() == MOST_USES {
            return Err(TraceError::TooLong);
        }
        let number = *numbers.entry(parsed.identity()).or_insert_with(|| {
            objects.push(parsed.object());
            objects.len() as u32 - 1
        });
        uses.push(number);
    }
    if uses.is_empty() {
        return Err(TraceError::Empty);
    }
    Ok(Trace {
        name: name.to_owned(),
        objects,
        uses,
        counted_from: 0,
        capacity_bytes,
        jobs: Vec::new(),
    })
}

/// One use of a recorded trace.
#[derive(Debug, PartialEq)]
struct Line<'a> {
    bucket: &'a str,
    key: Cow<'a, str>,
    bytes: u64,
}

fn parse(line: &str) -> Option<Line<'_>> {
    let (bucket, rest) = line.split_once(' ')?;
    let (key, bytes) = rest.rsplit_once(' ')?;
    let bytes = bytes.parse().ok()?;
    (!bucket.is_empty() && !key.is_empty()).then(|| Line { bucket, key: unescaped(key), bytes })
}

impl Line<'_> {
    /// An object of another size is another version.
    fn identity(&self) -> u64 {
        hash(&(self.bucket, &self.key, self.bytes))
    }

    fn object(&self) -> Object {
        Object {
            set: SetId::of(hash(&self.bucket), &self.key),
            item: Item(self.identity()),
            bytes: self.bytes,
            job: 0,
        }
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A key as it is written into a trace.
pub(super) fn escaped(key: &str) -> Cow<'_, str> {
    if !key.contains(['%', '\r', '\n']) {
        return Cow::Borrowed(key);
    }
    Cow::Owned(key.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A"))
}

fn unescaped(key: &str) -> Cow<'_, str> {
    if !key.contains('%') {
        return Cow::Borrowed(key);
    }
    let mut out = String::with_capacity(key.len());
    let mut rest = key;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let (sign, left) = match after.get(..2) {
            Some("25") => ('%', &after[2..]),
            Some("0D") => ('\r', &after[2..]),
            Some("0A") => ('\n', &after[2..]),
            _ => ('%', after),
        };
        out.push(sign);
        rest = left;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_bucket_key_bytes() {
        let line = |key: &str| Line { bucket: "b", key: key.to_owned().into(), bytes: 7 };
        assert_eq!(parse("b a/b.jpg 7"), Some(line("a/b.jpg")));
        assert_eq!(parse("b with space  7"), Some(line("with space ")));
        assert_eq!(parse("b 100%25%0A 7"), Some(line("100%\n")));
        assert_eq!(parse("b %250A 7"), Some(line("%0A")));
        for wrong in ["b k", "b k x", " k 7", "b  7", "b k -1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        for key in ["plain", "%0A", "a\r\nb%", "%%25"] {
            assert_eq!(unescaped(&escaped(key)), key);
        }
    }

    #[test]
    fn objects_are_told_apart_by_name_and_size() {
        let text = "# warpdrive trace\n\nb k 7\nb k 7\nb k 8\nc k 7\n";
        let trace = recorded("t", text.as_bytes(), 100).unwrap();
        assert_eq!((trace.objects(), trace.uses(), trace.bytes()), (3, 4, 22));
        let error = recorded("t", "b k 7\nwrong\n".as_bytes(), 1).unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not `bucket key bytes`");
        assert!(matches!(recorded("t", "#\n".as_bytes(), 1), Err(TraceError::Empty)));
    }
}
