//! The data set: shards of samples as WebDataset has them, a table, images, a text.
//!
//! Invariant: the same bytes at every run. Existing files of the same names are replaced, others
//! are left alone.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::parquet::{Column, Table};
use super::png;
use super::tar::Archive;

const SHARDS: u64 = 4;
const SAMPLES: u64 = 64;
/// 64 pixels: an image of 12 KiB, so that a shard has about 1 MiB.
const SIDE: u32 = 64;
const IMAGES: u64 = 8;
const ROWS: u64 = 4096;
const CLASSES: [&str; 4] = ["stripes", "rings", "checks", "noise"];

/// What was made.
pub(super) struct Made {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Writes everything below `root`.
pub(super) fn write(root: &Path) -> io::Result<Made> {
    let mut made = Made { files: 0, bytes: 0 };
    let mut file = |name: &str, bytes: &[u8]| -> io::Result<()> {
        let path = root.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, bytes)?;
        made.files += 1;
        made.bytes += bytes.len() as u64;
        Ok(())
    };
    for shard in 0..SHARDS {
        file(&format!("shards/train-{shard:06}.tar"), &self::shard(shard))?;
    }
    for image in 0..IMAGES {
        let class = (image % CLASSES.len() as u64) as usize;
        file(&format!("images/{}-{image:03}.png", CLASSES[class]), &picture(image, 256))?;
    }
    file("tables/samples.parquet", &table())?;
    file("README.txt", readme().as_bytes())?;
    Ok(made)
}

fn shard(shard: u64) -> Vec<u8> {
    let mut archive = Archive::default();
    for index in 0..SAMPLES {
        let sample = shard * SAMPLES + index;
        let class = (sample % CLASSES.len() as u64) as usize;
        let json = format!("{{\"id\": {sample}, \"class\": \"{}\"}}\n", CLASSES[class]);
        archive.file(&format!("{sample:08}.png"), &picture(sample, SIDE));
        archive.file(&format!("{sample:08}.cls"), class.to_string().as_bytes());
        archive.file(&format!("{sample:08}.json"), json.as_bytes());
    }
    archive.finish()
}

/// A picture of the class that its number says.
fn picture(number: u64, side: u32) -> Vec<u8> {
    let mut noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = 4 + (number / 4 % 13) as u32;
    png::rgb(side, side, |x, y| {
        let on = match number % 4 {
            0 => (x / step).is_multiple_of(2),
            1 => {
                let (dx, dy) =
                    (i64::from(x) - i64::from(side / 2), i64::from(y) - i64::from(side / 2));
                (dx * dx + dy * dy).unsigned_abs().isqrt() / u64::from(step) % 2 == 0
            }
            2 => (x / step + y / step).is_multiple_of(2),
            _ => {
                // xorshift64 (Marsaglia 2003), for bytes that do not repeat.
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise.is_multiple_of(2)
            }
        };
        let shade = (number * 37 % 200) as u8;
        if on { [255 - shade, 200, shade] } else { [shade / 2, 30, 60] }
    })
}

fn table() -> Vec<u8> {
    let ids: Vec<i64> = (0..ROWS.cast_signed()).collect();
    let classes = (0..ROWS).map(|i| CLASSES[(i % 4) as usize].to_owned()).collect();
    let weights = (0..ROWS).map(|i| (i as f64 * 0.1).sin()).collect();
    Table {
        columns: vec![
            ("id", Column::Int64(ids)),
            ("class", Column::Text(classes)),
            ("weight", Column::Double(weights)),
        ],
        rows_per_group: 1024,
    }
    .encode()
}

fn readme() -> String {
    let mut text = String::from(
        "A small data set, made by `warpdrive demo`.\n\n\
         shards/   WebDataset shards: NNNNNNNN.png, .cls and .json of each sample\n\
         tables/   samples.parquet: id, class, weight\n\
         images/   larger pictures of the same classes\n\nclasses:",
    );
    for (number, class) in CLASSES.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, " {number} {class}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_set_is_the_same_at_every_run() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let made = write(a.path()).unwrap();
        write(b.path()).unwrap();
        assert_eq!(made.files, SHARDS + IMAGES + 2);
        for name in ["shards/train-000003.tar", "tables/samples.parquet", "images/noise-003.png"] {
            let read = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(name)).unwrap();
            assert_eq!(read(&a), read(&b), "{name}");
            assert!(read(&a).len() > 10_000, "{name}");
        }
    }
}
