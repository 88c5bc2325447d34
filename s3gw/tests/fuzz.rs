//! A mutational fuzzer for the parsers of untrusted input: aws-chunked framing, ranges,
//! authorizations and payload words. `WARPDRIVE_FUZZ_SECONDS` (3 by default) is the time for each.
//!
//! Invariant: no input makes a parser panic, hang, or yield bytes that were not sent; what is
//! accepted means the same when it is written again. The seed is printed, and taken from
//! `WARPDRIVE_FUZZ_SEED`, so that a failure can be run again.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use s3gw::wire::{Authorization, ChunkDecoder, Event, PayloadHash, parse_range};
use store::ByteRange;

const CHUNKED: &[&[u8]] = &[
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\nhello\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n",
    b"5\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n",
    b"0\r\nx-amz-checksum-sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\r\nx-amz-trailer-signature:00\r\n\r\n",
    b"ffffffffffffffff\r\nx",
    b"0\r\nx:y\n\r\n",
];

const RANGES: &[&[u8]] = &[
    b"bytes=0-0",
    b"bytes=5-",
    b"bytes=-5",
    b"bytes=0-18446744073709551615",
    b"bytes=0-99999999999999999999999",
    b"bytes = 1 - 2",
    b"bytes=0-1,3-4",
];

const AUTHORIZATIONS: &[&[u8]] = &[
    b"AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;range;x-amz-date,Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    b"AWS4-HMAC-SHA256 Credential=a/b/20130524/r/s3/aws4_request, SignedHeaders=host, Signature=00",
    b"AWS4-HMAC-SHA256 Credential=/////,SignedHeaders=;;,Signature=",
    b"AWS AKIAIOSFODNN7EXAMPLE:bWq2s1WEIj+Ydj0vQ697zp+IXMU=",
];

const WORDS: &[&[u8]] = &[
    b"UNSIGNED-PAYLOAD",
    b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
];

/// Runs `check` on mutations of `corpus` until the time is over; inputs that `check` finds
/// interesting (true) join the corpus.
fn fuzz(name: &str, corpus: &[&[u8]], mut check: impl FnMut(&mut StdRng, &[u8]) -> bool) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seconds = number("WARPDRIVE_FUZZ_SECONDS").unwrap_or(3);
    let seed = number("WARPDRIVE_FUZZ_SEED").unwrap_or_else(rand::random);
    println!("{name}: WARPDRIVE_FUZZ_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut inputs: Vec<Vec<u8>> = corpus.iter().map(|input| input.to_vec()).collect();
    for input in inputs.clone() {
        check(&mut rng, &input);
    }
    let (end, mut runs) = (Instant::now() + Duration::from_secs(seconds), 0u64);
    while Instant::now() < end {
        for _ in 0..256 {
            let input = mutate(&mut rng, &inputs);
            if check(&mut rng, &input) && inputs.len() < 4096 && input.len() < 2048 {
                inputs.push(input);
            }
            runs += 1;
        }
    }
    println!("{name}: {runs} inputs, corpus {}", inputs.len());
    assert!(runs > 1000, "only {runs} inputs in {seconds} s");
}

fn mutate(rng: &mut StdRng, inputs: &[Vec<u8>]) -> Vec<u8> {
    const TOKENS: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"0",
        b";",
        b"=",
        b":",
        b"-",
        b"/",
        b",",
        b"\0",
        b"\xff",
        b"ffffffffffffffff",
        b"0\r\n\r\n",
        b"bytes=",
        b"aws4_request",
        b" ",
    ];
    let mut input = inputs[rng.random_range(0..inputs.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=input.len());
        match rng.random_range(0..7) {
            0 if at < input.len() => input[at] = rng.random(),
            1 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            2 if at < input.len() => {
                input.remove(at);
            }
            3 => input.insert(at, rng.random()),
            4 => {
                let token = TOKENS[rng.random_range(0..TOKENS.len())];
                input.splice(at..at, token.iter().copied());
            }
            5 => input.truncate(at),
            _ => {
                let other = &inputs[rng.random_range(0..inputs.len())];
                let from = rng.random_range(0..=other.len());
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input
}

type Decoded = Option<(Vec<u8>, Vec<(String, String)>)>;

fn decode(pieces: &[&[u8]]) -> Decoded {
    let mut decoder = ChunkDecoder::default();
    // Wider than a chunk's size: the last chunk of a refused input may announce anything.
    let (mut data, mut trailers, mut announced) = (Vec::new(), Vec::new(), 0u128);
    let mut last = 0u64;
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        let mut steps = 0;
        while let Some(event) = decoder.next(&mut input).ok()? {
            steps += 1;
            assert!(steps <= 4 * piece.len() + 16, "the decoder does not advance");
            match event {
                Event::Chunk { size, .. } => {
                    (last, announced) = (size, announced + u128::from(size));
                }
                Event::Data(bytes) => {
                    assert!(!bytes.is_empty());
                    data.extend_from_slice(&bytes);
                }
                Event::Trailer(name, value) => trailers.push((name, value)),
                Event::ChunkEnd | Event::End => {}
            }
        }
        assert!(input.is_empty(), "input was left without an error");
    }
    while let Some(event) = decoder.finish().ok()? {
        if let Event::Trailer(name, value) = event {
            trailers.push((name, value));
        }
    }
    assert_eq!(last, 0, "accepted without a last chunk");
    assert_eq!(announced, data.len() as u128, "other bytes than the chunks announced");
    Some((data, trailers))
}

#[test]
fn chunk_decoder() {
    fuzz("chunk decoder", CHUNKED, |rng, input| {
        let whole = decode(&[input]);
        // However the input is cut, it means the same.
        let mut cuts: Vec<usize> = (0..4).map(|_| rng.random_range(0..=input.len())).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &input[w[0]..w[1]]).collect();
        assert_eq!(decode(&pieces), whole, "cut at {cuts:?}");
        let Some((data, trailers)) = whole else { return false };
        // What was yielded stands in the input, in this order.
        let mut rest = input;
        for byte in &data {
            let at = rest.iter().position(|b| b == byte).expect("a byte that was not sent");
            rest = &rest[at + 1..];
        }
        // Written again, it reads the same.
        let mut again = Vec::new();
        if !data.is_empty() {
            again.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            again.extend_from_slice(&data);
            again.extend_from_slice(b"\r\n");
        }
        again.extend_from_slice(b"0\r\n");
        for (name, value) in &trailers {
            again.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
        }
        again.extend_from_slice(b"\r\n");
        assert_eq!(decode(&[&again]), Some((data, trailers)));
        true
    });
}

#[test]
fn ranges() {
    fuzz("ranges", RANGES, |_, input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Some(range) = parse_range(text) else { return false };
        if let ByteRange::Bounded(start, end) = range {
            assert!(start < end || end == u64::MAX);
        }
        for size in [0, 1, 10, u64::MAX] {
            if let Ok(found) = range.resolve(size) {
                assert!(found.start < found.end && found.end <= size);
            }
        }
        if let Some(header) = range.header() {
            assert_eq!(parse_range(&header), Some(range));
        }
        true
    });
}

#[test]
fn authorizations() {
    fuzz("authorizations", AUTHORIZATIONS, |_, input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Ok(found) = Authorization::parse(text) else { return false };
        assert!(!found.key_id.is_empty() && found.date.len() == 8);
        let again = format!(
            "AWS4-HMAC-SHA256 Credential={}/{}/{}/{}/aws4_request,SignedHeaders={},Signature={}",
            found.key_id,
            found.date,
            found.region,
            found.service,
            found.signed_headers.join(";"),
            found.signature
        );
        assert_eq!(Authorization::parse(&again), Ok(found));
        true
    });
}

#[test]
fn payload_words() {
    fuzz("payload words", WORDS, |_, input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        match PayloadHash::parse(text) {
            Some(PayloadHash::Exact(digest)) => {
                assert_eq!(hex::encode(digest), text.to_ascii_lowercase());
                true
            }
            Some(_) => true,
            None => false,
        }
    });
}
