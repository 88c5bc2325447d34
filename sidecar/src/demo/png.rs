//! PNG images, uncompressed.
//!
//! Invariant: every decoder reads them; the pixels are stored, not compressed, so no library is
//! needed.

/// Most bytes that one stored block of deflate (RFC 1951, 3.2.4) holds.
const STORED_BLOCK: usize = 0xffff;

/// An image with eight bits each of red, green and blue.
pub(super) fn rgb(width: u32, height: u32, mut pixel: impl FnMut(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let mut rows = Vec::with_capacity((width as usize * 3 + 1) * height as usize);
    for y in 0..height {
        // Filter type 0: the row as it is.
        rows.push(0);
        for x in 0..width {
            rows.extend_from_slice(&pixel(x, y));
        }
    }
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = Vec::with_capacity(13);
    header.extend_from_slice(&width.to_be_bytes());
    header.extend_from_slice(&height.to_be_bytes());
    // Eight bits, true colour, and the only methods of compression, filter and no interlace.
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    chunk(&mut out, *b"IHDR", &header);
    chunk(&mut out, *b"IDAT", &zlib(&rows));
    chunk(&mut out, *b"IEND", &[]);
    out
}

fn chunk(out: &mut Vec<u8>, kind: [u8; 4], body: &[u8]) {
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    let from = out.len();
    out.extend_from_slice(&kind);
    out.extend_from_slice(body);
    let sum = crc32(&out[from..]);
    out.extend_from_slice(&sum.to_be_bytes());
}

/// RFC 1950, with stored blocks.
fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let blocks = bytes.chunks(STORED_BLOCK);
    let last = blocks.len().saturating_sub(1);
    for (index, block) in blocks.enumerate() {
        let length = block.len() as u16;
        out.push(u8::from(index == last));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    // Adler-32, RFC 1950 section 9.
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    out.extend_from_slice(&((b << 16) | a).to_be_bytes());
    out
}

/// The CRC of PNG's annex D, bit by bit: a few hundred kilobytes take no time.
fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { 0xedb8_8320 ^ (sum >> 1) } else { sum >> 1 }
        })
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b"IEND"), 0xae42_6082);
        assert_eq!(&zlib(b"Wikipedia")[2 + 5 + 9..], &0x11e6_0398_u32.to_be_bytes());
    }

    #[test]
    fn an_image_has_its_parts() {
        let image = rgb(300, 100, |x, y| [x as u8, y as u8, 0]);
        assert_eq!(&image[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&image[12..24], &[b'I', b'H', b'D', b'R', 0, 0, 1, 44, 0, 0, 0, 100]);
        assert_eq!(&image[image.len() - 8..image.len() - 4], b"IEND");
        // Two stored blocks: 90,100 bytes of rows.
        assert_eq!(image.len(), 8 + 25 + 12 + 12 + 2 + 2 * 5 + 90_100 + 4);
    }
}
