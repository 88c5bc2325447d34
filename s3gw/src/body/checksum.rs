//! The checksums that a client can ask to be verified.
//!
//! Invariant: what a client announces is verified or refused, never taken on trust. An algorithm
//! that is not known here is an error.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use http::HeaderMap;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Outcome};

/// A checksum algorithm of S3's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
    /// `Content-MD5`.
    Md5,
    /// `x-amz-content-sha256`, the signed hash of the whole payload.
    Payload,
}

impl Algorithm {
    const HEADERS: [(Self, &'static str); 5] = [
        (Self::Crc32, "x-amz-checksum-crc32"),
        (Self::Crc32c, "x-amz-checksum-crc32c"),
        (Self::Crc64Nvme, "x-amz-checksum-crc64nvme"),
        (Self::Sha1, "x-amz-checksum-sha1"),
        (Self::Sha256, "x-amz-checksum-sha256"),
    ];

    /// All of them, for metrics.
    pub(crate) const ALL: [Self; 7] = [
        Self::Crc32,
        Self::Crc32c,
        Self::Crc64Nvme,
        Self::Sha1,
        Self::Sha256,
        Self::Md5,
        Self::Payload,
    ];

    /// The algorithm that a header name stands for.
    pub(crate) fn of_header(name: &str) -> Option<Self> {
        Self::HEADERS.into_iter().find(|(_, header)| *header == name).map(|(a, _)| a)
    }

    /// The header that carries it.
    pub(crate) fn header(self) -> &'static str {
        match self {
            Self::Md5 => "content-md5",
            Self::Payload => "x-amz-content-sha256",
            _ => Self::HEADERS
                .into_iter()
                .find(|(algorithm, _)| *algorithm == self)
                .map_or("", |(_, header)| header),
        }
    }

    /// Its name for metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "crc32",
            Self::Crc32c => "crc32c",
            Self::Crc64Nvme => "crc64nvme",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
            Self::Payload => "payload",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Payload => 32,
        }
    }

    /// Reads the text of a checksum.
    pub(crate) fn read(self, text: &str) -> Outcome<Vec<u8>> {
        let value = STANDARD.decode(text.trim()).ok().filter(|value| value.len() == self.bytes());
        value.ok_or_else(|| match self {
            Self::Md5 => Failure::new(
                s3s::S3ErrorCode::InvalidDigest,
                "the Content-MD5 you specified is not valid",
            ),
            _ => {
                Failure::invalid_request(format!("Value for {} header is invalid.", self.header()))
            }
        })
    }
}

/// A checksum in progress.
pub(crate) struct Hasher {
    pub(crate) algorithm: Algorithm,
    state: State,
    /// What it must come to; a trailer's is set when it arrives.
    pub(crate) expected: Option<Vec<u8>>,
}

enum State {
    Crc(crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
    Md5(Md5),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm, expected: Option<Vec<u8>>) -> Self {
        let crc = |algorithm| State::Crc(crc_fast::Digest::new(algorithm));
        let state = match algorithm {
            Algorithm::Crc32 => crc(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => crc(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc64Nvme => crc(CrcAlgorithm::Crc64Nvme),
            Algorithm::Sha1 => State::Sha1(Sha1::new()),
            Algorithm::Sha256 | Algorithm::Payload => State::Sha256(Sha256::new()),
            Algorithm::Md5 => State::Md5(Md5::new()),
        };
        Self { algorithm, state, expected }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Crc(digest) => digest.update(bytes),
            State::Sha1(digest) => digest.update(bytes),
            State::Sha256(digest) => digest.update(bytes),
            State::Md5(digest) => digest.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        match self.state {
            State::Crc(digest) => {
                let value = digest.finalize().to_be_bytes();
                value[value.len() - self.algorithm.bytes()..].to_vec()
            }
            State::Sha1(digest) => digest.finalize().to_vec(),
            State::Sha256(digest) => digest.finalize().to_vec(),
            State::Md5(digest) => digest.finalize().to_vec(),
        }
    }
}

/// The text of a checksum as headers carry it.
pub(crate) fn text(value: &[u8]) -> String {
    STANDARD.encode(value)
}

/// What `x-amz-checksum-` headers are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Covers {
    /// The body of the request.
    Body,
    /// The object that a completion makes; its body is a list of parts.
    Object,
}

/// The checksums that a request's head announces: values in headers, and names in `x-amz-trailer`.
pub(crate) fn announced(headers: &HeaderMap, covers: Covers) -> Outcome<Vec<Hasher>> {
    let mut hashers = Vec::new();
    for (name, value) in headers {
        let algorithm = match name.as_str() {
            "content-md5" => Algorithm::Md5,
            name if name.starts_with("x-amz-checksum-") && covers == Covers::Body => {
                match Algorithm::of_header(name) {
                    Some(algorithm) => algorithm,
                    // These two say how a checksum is to be read, and are none themselves.
                    None if matches!(
                        name,
                        "x-amz-checksum-algorithm" | "x-amz-checksum-type" | "x-amz-checksum-mode"
                    ) =>
                    {
                        continue;
                    }
                    None => return Err(unknown(name)),
                }
            }
            _ => continue,
        };
        let text = value.to_str().unwrap_or_default();
        hashers.push(Hasher::new(algorithm, Some(algorithm.read(text)?)));
    }
    for value in headers.get_all("x-amz-trailer") {
        for name in value.to_str().unwrap_or_default().split(',') {
            let name = name.trim().to_ascii_lowercase();
            if name.is_empty() || name == "x-amz-trailer-signature" {
                continue;
            }
            let algorithm = Algorithm::of_header(&name).ok_or_else(|| unknown(&name))?;
            if hashers.iter().any(|h| h.algorithm == algorithm) {
                return Err(Failure::invalid_request(format!(
                    "{name} is both a header and a trailer"
                )));
            }
            hashers.push(Hasher::new(algorithm, None));
        }
    }
    Ok(hashers)
}

fn unknown(name: &str) -> Failure {
    Failure::invalid_request(format!("the checksum `{name}` is not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published check values of "123456789".
    #[test]
    fn check_values() {
        let of = |algorithm| {
            let mut hasher = Hasher::new(algorithm, None);
            hasher.update(b"1234");
            hasher.update(b"56789");
            hex::encode(hasher.finish())
        };
        assert_eq!(of(Algorithm::Crc32), "cbf43926");
        assert_eq!(of(Algorithm::Crc32c), "e3069283");
        assert_eq!(of(Algorithm::Crc64Nvme), "ae8b14860a799888");
        assert_eq!(of(Algorithm::Md5), "25f9e794323b453885f5181f1b624d0b");
        assert_eq!(of(Algorithm::Sha1), "f7c3bc1d808e04732adf679965ccc34ca7ae3441");
        assert_eq!(
            of(Algorithm::Sha256),
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"
        );
    }

    #[test]
    fn announcements() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                map.insert(*name, value.parse().unwrap());
            }
            announced(&map, Covers::Body)
        };
        let found = headers(&[
            ("x-amz-checksum-crc32", "y/Q5Jg=="),
            ("content-md5", "JfnnlDI7RTiF9RgfG2JNCw=="),
            ("x-amz-trailer", "x-amz-checksum-crc64nvme"),
            ("x-amz-checksum-algorithm", "CRC32"),
        ])
        .unwrap();
        let mut names: Vec<_> =
            found.iter().map(|h| (h.algorithm.name(), h.expected.is_some())).collect();
        names.sort_unstable();
        assert_eq!(names, [("crc32", true), ("crc64nvme", false), ("md5", true)]);
        let code = |pairs| headers(pairs).err().unwrap().code().as_str().to_owned();
        assert_eq!(code(&[("content-md5", "short")]), "InvalidDigest");
        assert_eq!(code(&[("x-amz-checksum-crc32", "AAAA")]), "InvalidRequest");
        assert_eq!(code(&[("x-amz-checksum-xxh3", "AAAA")]), "InvalidRequest");
        assert_eq!(code(&[("x-amz-trailer", "x-other")]), "InvalidRequest");
    }
}
