//! Tar archives, as much of POSIX ustar as samples need.
//!
//! Invariant: names are shorter than 100 bytes and sizes below 8 GiB, which is all that is made here.

const BLOCK: usize = 512;

/// An archive in memory.
#[derive(Default)]
pub(super) struct Archive(Vec<u8>);

impl Archive {
    /// Adds a file with mode 0644, owner root and a modification time of 2024-01-01.
    pub(super) fn file(&mut self, name: &str, bytes: &[u8]) {
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", bytes.len()));
        put(136, &format!("{:011o}\0", 1_704_067_200));
        // The checksum is taken with spaces in its own place.
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        put(265, "root\0");
        put(297, "root\0");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(bytes);
        self.pad(BLOCK);
    }

    /// The archive with its end: two empty blocks, and as many as fill a record of 20.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.pad(20 * BLOCK);
        self.0
    }

    fn pad(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_read_by_tar() {
        let mut archive = Archive::default();
        archive.file("a.txt", b"hello");
        archive.file("b.bin", &[7; 1000]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        std::fs::write(&path, archive.finish()).unwrap();
        let listed = std::process::Command::new("tar").arg("-tvf").arg(&path).output();
        let Ok(listed) = listed else {
            println!("SKIPPED archives_are_read_by_tar: no tar on this machine");
            return;
        };
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        assert!(text.contains("5 ") && text.contains("a.txt") && text.contains("b.bin"), "{text}");
    }
}
