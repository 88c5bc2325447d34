//! Signed requests, made by another implementation (the AWS SDK's signer), and their refusal.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use s3gw::{Access, AccessKey};
use secrecy::ExposeSecret;

use crate::client::{Answer, Endpoint, config, metric, start};

struct Signer {
    key: AccessKey,
    time: SystemTime,
    presign: Option<Duration>,
}

impl Signer {
    fn new(key: &AccessKey) -> Self {
        Self { key: key.clone(), time: SystemTime::now(), presign: None }
    }

    /// The target and headers of a request after signing.
    fn sign(
        &self,
        endpoint: &Endpoint,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: SignableBody<'_>,
    ) -> (String, Vec<(String, String)>) {
        let identity =
            Credentials::from_keys(&self.key.id, self.key.secret.expose_secret(), None).into();
        let mut settings = SigningSettings::default();
        // The rules of S3: a path is encoded once and never normalised.
        settings.percent_encoding_mode = aws_sigv4::http_request::PercentEncodingMode::Single;
        settings.uri_path_normalization_mode =
            aws_sigv4::http_request::UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = aws_sigv4::http_request::PayloadChecksumKind::XAmzSha256;
        if let Some(expires) = self.presign {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(expires);
        }
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region("anywhere")
            .name("s3")
            .time(self.time)
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let uri = format!("http://{}{target}", endpoint.address);
        let request = SignableRequest::new(method, &uri, headers.iter().copied(), body).unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        let mut all: Vec<(String, String)> =
            headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        all.extend(instructions.headers().map(|(n, v)| (n.to_owned(), v.to_owned())));
        let query: Vec<String> = instructions
            .params()
            .iter()
            .map(|(name, value)| {
                let encode = |text: &str| {
                    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
                        .to_string()
                };
                format!("{}={}", encode(name), encode(value))
            })
            .collect();
        let joint = if target.contains('?') { '&' } else { '?' };
        let target = if query.is_empty() {
            target.to_owned()
        } else {
            format!("{target}{joint}{}", query.join("&"))
        };
        (target, all)
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let signable = SignableBody::Bytes(body);
        let (target, headers) = self.sign(endpoint, method, target, headers, signable);
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        endpoint.send(method, &target, &headers, body).await
    }
}

async fn signed() -> (Endpoint, AccessKey) {
    let key = AccessKey::generate();
    let keys = vec![AccessKey::generate(), key.clone()];
    (start(config(Access::Signed(keys))).await, key)
}

#[tokio::test]
async fn an_sdk_is_let_in() {
    let (endpoint, key) = signed().await;
    let signer = Signer::new(&key);
    for target in
        ["/b/plain", "/b/a%20b%2Bc", "/b/a//b/./c/", "/b/%C3%A9%01", "/b/p%3Fq?x-id=PutObject"]
    {
        let put =
            signer.send(&endpoint, "PUT", target, &[("x-amz-meta-a", "1  2")], b"hello").await;
        assert_eq!(put.status, 200, "{target} {}", put.text());
        assert_eq!(signer.send(&endpoint, "GET", target, &[], b"").await.text(), "hello");
    }
    let list =
        signer.send(&endpoint, "GET", "/b?list-type=2&prefix=a%20b&delimiter=", &[], b"").await;
    assert_eq!(list.element("Key"), "a b+c");
}

#[tokio::test]
async fn presigned_urls() {
    let (endpoint, key) = signed().await;
    endpoint.memory.insert("a b", "hello");
    let signer = Signer { presign: Some(Duration::from_secs(60)), ..Signer::new(&key) };
    let unsigned = || SignableBody::UnsignedPayload;
    let (target, _) = signer.sign(&endpoint, "GET", "/b/a%20b", &[], unsigned());
    assert_eq!(endpoint.get(&target).await.text(), "hello");
    assert_eq!(endpoint.ask("PUT", &target, &[]).await.code(), "SignatureDoesNotMatch");
    let moved = target.replace("a%20b", "other");
    assert_eq!(endpoint.get(&moved).await.code(), "SignatureDoesNotMatch");
    let (target, _) = signer.sign(&endpoint, "PUT", "/b/put", &[], unsigned());
    assert_eq!(endpoint.put(&target, b"sent").await.status, 200);
    let past = SystemTime::now() - Duration::from_secs(120);
    let old = Signer { time: past, ..signer };
    let (target, _) = old.sign(&endpoint, "GET", "/b/a%20b", &[], unsigned());
    let expired = endpoint.get(&target).await;
    assert_eq!(
        (expired.code(), expired.element("Message")),
        ("AccessDenied", "Request has expired")
    );
}

#[tokio::test]
async fn refusals() {
    let (endpoint, key) = signed().await;
    let ask = async |signer: &Signer| {
        signer.send(&endpoint, "GET", "/b?list-type=2", &[], b"").await.code().to_owned()
    };
    assert_eq!(endpoint.get("/b").await.code(), "AccessDenied");
    assert_eq!(ask(&Signer::new(&AccessKey::generate())).await, "InvalidAccessKeyId");
    let forged = AccessKey { id: key.id.clone(), secret: "wrong".into() };
    assert_eq!(ask(&Signer::new(&forged)).await, "SignatureDoesNotMatch");
    for (skew, code) in [(14 * 60, ""), (16 * 60, "RequestTimeTooSkewed")] {
        for time in [
            SystemTime::now() - Duration::from_secs(skew),
            SystemTime::now() + Duration::from_secs(skew),
        ] {
            assert_eq!(ask(&Signer { time, ..Signer::new(&key) }).await, code);
        }
    }
    let count = |reason| {
        metric(&endpoint.registry, "warpdrive_s3_auth_failures_total", &[("reason", reason)])
    };
    assert_eq!(count("unsigned"), 1.0);
    assert_eq!(count("unknown_key"), 1.0);
    assert_eq!(count("wrong_signature"), 1.0);
    assert_eq!(count("clock_skew"), 2.0);
}

/// The signature covers the payload: another body under the same head changes nothing.
#[tokio::test]
async fn a_signed_payload_is_verified() {
    let (endpoint, key) = signed().await;
    let signer = Signer::new(&key);
    let (target, headers) =
        signer.sign(&endpoint, "PUT", "/b/k", &[], SignableBody::Bytes(b"hello"));
    let headers: Vec<(&str, &str)> =
        headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let forged = endpoint.send("PUT", &target, &headers, b"jello").await;
    assert_eq!((forged.status, forged.code()), (400, "XAmzContentSHA256Mismatch"));
    assert_eq!(endpoint.send("PUT", &target, &headers, b"hello").await.status, 200);
    let read = signer.send(&endpoint, "GET", "/b/k", &[], b"").await;
    assert_eq!(read.text(), "hello");
}

/// Unsigned requests learn nothing of what is there, and nothing is read from their bodies.
#[tokio::test]
async fn nothing_is_told_before_the_signature() {
    let (endpoint, _) = signed().await;
    endpoint.memory.insert("k", "x");
    for (method, target) in [
        ("GET", "/b/k"),
        ("GET", "/b/none"),
        ("GET", "/nobucket"),
        ("PUT", "/b/k"),
        ("PUT", "/b?policy"),
        ("GET", "/"),
    ] {
        assert_eq!(endpoint.ask(method, target, &[]).await.code(), "AccessDenied", "{target}");
    }
    let expect = endpoint.send("PUT", "/b/k", &[("expect", "100-continue")], b"").await;
    assert_eq!(expect.status, 403);
    assert_eq!(endpoint.faulty.calls().total(), 0);
}

mod chunks {
    //! A signed stream, built from the documented formulas.

    use hmac::{Hmac, KeyInit, Mac};
    use sha2::{Digest, Sha256};

    pub(super) struct Chunks {
        key: [u8; 32],
        date: String,
        previous: String,
    }

    fn hmac(key: &[u8], text: &str) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().into()
    }

    impl Chunks {
        /// After the signed head, whose signature the first chunk builds on.
        pub(super) fn new(secret: &str, date: &str, seed: &str) -> Self {
            let day = hmac(format!("AWS4{secret}").as_bytes(), &date[..8]);
            let key = hmac(&hmac(&hmac(&day, "anywhere"), "s3"), "aws4_request");
            Self { key, date: date.to_owned(), previous: seed.to_owned() }
        }

        fn sign(&mut self, kind: &str, middle: &str, bytes: &[u8]) -> String {
            let digest = hex::encode(Sha256::digest(bytes));
            let (date, previous) = (&self.date, &self.previous);
            let scope = format!("{}/anywhere/s3/aws4_request", &date[..8]);
            let text = format!("{kind}\n{date}\n{scope}\n{previous}\n{middle}{digest}");
            self.previous = hex::encode(hmac(&self.key, &text));
            self.previous.clone()
        }

        pub(super) fn chunk(&mut self, data: &[u8]) -> Vec<u8> {
            let empty = format!("{}\n", hex::encode(Sha256::digest(b"")));
            let signature = self.sign("AWS4-HMAC-SHA256-PAYLOAD", &empty, data);
            let head = format!("{:x};chunk-signature={signature}\r\n", data.len());
            let end: &[u8] = if data.is_empty() { b"" } else { b"\r\n" };
            [head.as_bytes(), data, end].concat()
        }

        pub(super) fn trailer(&mut self, line: &str) -> Vec<u8> {
            let signed = format!("{line}\n");
            let signature = self.sign("AWS4-HMAC-SHA256-TRAILER", "", signed.as_bytes());
            format!("{line}\r\nx-amz-trailer-signature:{signature}\r\n\r\n").into_bytes()
        }
    }
}

/// What S3A sends: signed chunks, with and without a signed trailer; each forgery is refused.
#[tokio::test]
async fn signed_chunks_are_verified() {
    let (endpoint, key) = signed().await;
    let signer = Signer::new(&key);
    for trailer in [false, true] {
        let words = if trailer {
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
        } else {
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
        };
        let mut headers =
            vec![("content-encoding", "aws-chunked"), ("x-amz-decoded-content-length", "10")];
        if trailer {
            headers.push(("x-amz-trailer", "x-amz-checksum-crc32"));
        }
        let body = SignableBody::Precomputed(words.to_owned());
        let (target, head) = signer.sign(&endpoint, "PUT", "/b/k", &headers, body);
        let value =
            |name: &str| head.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).unwrap().1.clone();
        let first = value("authorization").rsplit_once("Signature=").unwrap().1.to_owned();
        let secret = key.secret.expose_secret();
        let mut chunks = chunks::Chunks::new(secret, &value("x-amz-date"), &first);
        let mut wire: Vec<u8> =
            [chunks.chunk(b"hello"), chunks.chunk(b"hello"), chunks.chunk(b"")].concat();
        if trailer {
            wire.extend(chunks.trailer("x-amz-checksum-crc32:9YyXaA=="));
        } else {
            wire.extend(b"\r\n");
        }
        let headers: Vec<(&str, &str)> =
            head.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let send = async |wire: &[u8]| endpoint.send("PUT", &target, &headers, wire).await;
        endpoint.memory.insert("k", "old");
        let text = String::from_utf8(wire.clone()).unwrap();
        // Other data, chunks in another order, the last chunk cut off, a forged trailer.
        let at = text.find("\r\nhello").unwrap();
        let mut forgeries = vec![
            text.replacen("hello", "jello", 1),
            format!("{}{}", &text[at + 9..2 * (at + 9)], &text[..at + 9]) + &text[2 * (at + 9)..],
            text[..text.find("\r\n0;").unwrap() + 2].to_owned(),
        ];
        if trailer {
            forgeries.push(text.replace("trailer-signature:", "trailer-signature:0"));
        }
        for forgery in forgeries {
            let refused = send(forgery.as_bytes()).await;
            assert!((400..500).contains(&refused.status), "{forgery}");
            assert_eq!(endpoint.memory.clone().head_text().await, "old", "{forgery}");
        }
        let right = send(&wire).await;
        assert_eq!(right.status, 200, "{}", right.text());
        assert_eq!(endpoint.memory.clone().head_text().await, "hellohello");
    }
}

trait HeadText {
    async fn head_text(&self) -> String;
}

impl HeadText for store::testing::MemoryStore {
    async fn head_text(&self) -> String {
        use store::StoreExt;
        let key = store::ObjectKey::new("k").unwrap();
        let bytes = self.get_bytes(&key, store::ByteRange::Full).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }
}
