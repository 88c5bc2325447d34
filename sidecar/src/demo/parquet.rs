//! Parquet files, as much of the format as a plain table needs: required columns, PLAIN encoding,
//! no compression, one page a column and row group.
//!
//! Invariant: every reader of the format reads them. The format is Apache's, version 2.11:
//! `parquet.thrift` for the structures, and Thrift's compact protocol for their bytes.

// Sizes and counts here are far below the largest of any type: the table is made in memory.
#![allow(clippy::cast_possible_wrap)]

const MAGIC: &[u8; 4] = b"PAR1";

/// The values of a column.
pub(super) enum Column {
    /// 64-bit integers.
    Int64(Vec<i64>),
    /// UTF-8 texts.
    Text(Vec<String>),
    /// 64-bit floating point numbers.
    Double(Vec<f64>),
}

/// A table; its columns have the same number of values.
pub(super) struct Table {
    pub(super) columns: Vec<(&'static str, Column)>,
    pub(super) rows_per_group: usize,
}

/// Where a column of a row group lies in the file.
struct Chunk {
    offset: usize,
    bytes: usize,
    values: usize,
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Self::Int64(values) => values.len(),
            Self::Text(values) => values.len(),
            Self::Double(values) => values.len(),
        }
    }

    /// `Type` of parquet.thrift.
    fn kind(&self) -> i64 {
        match self {
            Self::Int64(_) => 2,
            Self::Double(_) => 5,
            Self::Text(_) => 6,
        }
    }

    fn plain(&self, rows: std::ops::Range<usize>) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Int64(values) => values[rows].iter().for_each(|v| out.extend(v.to_le_bytes())),
            Self::Double(values) => values[rows].iter().for_each(|v| out.extend(v.to_le_bytes())),
            Self::Text(values) => values[rows].iter().for_each(|v| {
                out.extend((v.len() as u32).to_le_bytes());
                out.extend(v.as_bytes());
            }),
        }
        out
    }
}

impl Table {
    /// The file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let rows = self.columns.first().map_or(0, |(_, column)| column.len());
        let mut out = MAGIC.to_vec();
        let mut groups: Vec<(usize, Vec<Chunk>)> = Vec::new();
        let mut from = 0;
        while from < rows {
            let to = (from + self.rows_per_group).min(rows);
            let chunks = self.columns.iter().map(|(_, column)| {
                let page = column.plain(from..to);
                let offset = out.len();
                out.extend(page_header(page.len(), to - from));
                out.extend(page);
                Chunk { offset, bytes: out.len() - offset, values: to - from }
            });
            let chunks = chunks.collect();
            groups.push((to - from, chunks));
            from = to;
        }
        let footer = self.footer(rows, &groups);
        out.extend(&footer);
        out.extend((footer.len() as u32).to_le_bytes());
        out.extend(MAGIC);
        out
    }

    /// `FileMetaData`.
    fn footer(&self, rows: usize, groups: &[(usize, Vec<Chunk>)]) -> Vec<u8> {
        let mut file = Struct::default();
        file.i32(1, 1);
        file.list(2, STRUCT, self.columns.len() + 1, |out| {
            let mut root = Struct::default();
            root.binary(4, b"schema");
            root.i32(5, self.columns.len() as i64);
            out.extend(root.end());
            for (name, column) in &self.columns {
                let mut element = Struct::default();
                element.i32(1, column.kind());
                // REQUIRED: no levels are stored.
                element.i32(3, 0);
                element.binary(4, name.as_bytes());
                if matches!(column, Column::Text(_)) {
                    // ConvertedType UTF8.
                    element.i32(6, 0);
                }
                out.extend(element.end());
            }
        });
        file.i64(3, rows as i64);
        file.list(4, STRUCT, groups.len(), |out| {
            for (rows, chunks) in groups {
                let mut group = Struct::default();
                group.list(1, STRUCT, chunks.len(), |out| {
                    for (chunk, (name, column)) in chunks.iter().zip(&self.columns) {
                        out.extend(column_chunk(chunk, name, column));
                    }
                });
                group.i64(2, chunks.iter().map(|c| c.bytes as i64).sum());
                group.i64(3, *rows as i64);
                out.extend(group.end());
            }
        });
        file.binary(6, b"warpdrive demo");
        file.end()
    }
}

/// `PageHeader` with a `DataPageHeader`.
fn page_header(bytes: usize, values: usize) -> Vec<u8> {
    let mut header = Struct::default();
    header.i32(1, 0);
    header.i32(2, bytes as i64);
    header.i32(3, bytes as i64);
    let mut page = Struct::default();
    page.i32(1, values as i64);
    // PLAIN values; levels would be RLE, if there were any.
    page.i32(2, 0);
    page.i32(3, 3);
    page.i32(4, 3);
    header.nested(5, page);
    header.end()
}

/// `ColumnChunk` with its `ColumnMetaData`.
fn column_chunk(chunk: &Chunk, name: &str, column: &Column) -> Vec<u8> {
    let mut meta = Struct::default();
    meta.i32(1, column.kind());
    // Encodings: PLAIN and RLE.
    meta.list(2, I32, 2, |out| out.extend([zigzag(0), zigzag(3)].concat()));
    meta.list(3, BINARY, 1, |out| {
        out.extend(varint(name.len() as u64));
        out.extend(name.as_bytes());
    });
    // UNCOMPRESSED.
    meta.i32(4, 0);
    meta.i64(5, chunk.values as i64);
    meta.i64(6, chunk.bytes as i64);
    meta.i64(7, chunk.bytes as i64);
    meta.i64(9, chunk.offset as i64);
    let mut out = Struct::default();
    out.i64(2, chunk.offset as i64);
    out.nested(3, meta);
    out.end()
}

/// Types of Thrift's compact protocol.
const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// A Thrift structure in the making; fields in ascending order, less than 16 apart.
#[derive(Default)]
struct Struct {
    out: Vec<u8>,
    last: u8,
}

impl Struct {
    fn field(&mut self, id: u8, kind: u8) {
        self.out.push(((id - self.last) << 4) | kind);
        self.last = id;
    }

    fn i32(&mut self, id: u8, value: i64) {
        self.field(id, I32);
        self.out.extend(zigzag(value));
    }

    fn i64(&mut self, id: u8, value: i64) {
        self.field(id, I64);
        self.out.extend(zigzag(value));
    }

    fn binary(&mut self, id: u8, bytes: &[u8]) {
        self.field(id, BINARY);
        self.out.extend(varint(bytes.len() as u64));
        self.out.extend(bytes);
    }

    fn nested(&mut self, id: u8, inner: Struct) {
        self.field(id, STRUCT);
        self.out.extend(inner.end());
    }

    fn list(&mut self, id: u8, kind: u8, length: usize, items: impl FnOnce(&mut Vec<u8>)) {
        self.field(id, LIST);
        if length < 15 {
            self.out.push(((length as u8) << 4) | kind);
        } else {
            self.out.push(0xf0 | kind);
            self.out.extend(varint(length as u64));
        }
        items(&mut self.out);
    }

    fn end(mut self) -> Vec<u8> {
        self.out.push(0);
        self.out
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn zigzag(value: i64) -> Vec<u8> {
    varint(((value << 1) ^ (value >> 63)).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_thrift() {
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(zigzag(-1), [1]);
        assert_eq!(zigzag(2), [4]);
        assert_eq!(zigzag(i64::MIN).len(), 10);
    }

    #[test]
    fn a_file_has_its_frame() {
        let table =
            Table { columns: vec![("id", Column::Int64((0..10).collect()))], rows_per_group: 4 };
        let file = table.encode();
        assert!(file.starts_with(MAGIC) && file.ends_with(MAGIC));
        let at = file.len() - 8;
        let footer = u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        assert!(footer < file.len() - 12);
        // Ten values of eight bytes lie before the footer.
        assert!(file.len() - footer - 12 > 80);
    }
}
