//! The vectors of AWS's documentation, and what must be refused.

use proptest::prelude::*;

use super::*;

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn authenticator() -> Authenticator {
    let key = AccessKey { id: ID.into(), secret: SECRET.into() };
    Authenticator::new(Access::Signed(vec![key]))
}

fn at(amz_date: &str) -> SystemTime {
    parse_amz_date(amz_date).unwrap()
}

struct Sent<'a> {
    method: &'a str,
    url: &'a str,
    headers: &'a [(&'a str, &'a str)],
    now: SystemTime,
    host_bucket: Option<&'a str>,
}

impl Sent<'_> {
    fn check(&self) -> Checked<Payload> {
        let (path, raw_query) = self.url.split_once('?').unwrap_or((self.url, ""));
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers {
            headers.append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let query = Query::parse(raw_query).unwrap();
        authenticator().check(&Signed {
            method: &self.method.parse().unwrap(),
            path,
            raw_query,
            query: &query,
            headers: &headers,
            host_bucket: self.host_bucket,
            now: self.now,
        })
    }
}

fn v4(signed: &str, signature: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={ID}/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders={signed},Signature={signature}"
    )
}

/// The four header examples of "Signature Calculations for the Authorization Header".
#[test]
fn documented_headers() {
    let host = ("host", "examplebucket.s3.amazonaws.com");
    let date = ("x-amz-date", "20130524T000000Z");
    let hash = ("x-amz-content-sha256", EMPTY);
    let get = v4(
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    );
    let put = v4(
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    );
    let plain = "host;x-amz-content-sha256;x-amz-date";
    let lifecycle = v4(plain, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
    let list = v4(plain, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
    let put_hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    for (method, url, headers) in [
        (
            "GET",
            "/test.txt",
            vec![host, ("range", "bytes=0-9"), hash, date, ("authorization", &get)],
        ),
        (
            "PUT",
            "/test%24file.text",
            vec![
                ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                host,
                ("x-amz-content-sha256", put_hash),
                date,
                ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                ("authorization", &put),
            ],
        ),
        ("GET", "/?lifecycle", vec![host, hash, date, ("authorization", &lifecycle)]),
        ("GET", "/?max-keys=2&prefix=J", vec![host, hash, date, ("authorization", &list)]),
    ] {
        let sent =
            Sent { method, url, headers: &headers, now: at("20130524T000900Z"), host_bucket: None };
        sent.check().unwrap_or_else(|e| panic!("{method} {url}: {e:?}"));
        // One other character anywhere, and it is refused.
        let other = Sent { url: &format!("{url}x"), ..sent };
        assert_eq!(other.check().unwrap_err().0, Refusal::WrongSignature);
    }
}

#[test]
fn documented_presigned_url() {
    let url = |signature: &str| {
        format!(
            "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={ID}%2F20130524%2F\
             us-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&\
             X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"
        )
    };
    let right = url("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404");
    let sent = |url: &str, now: &str| {
        Sent {
            method: "GET",
            url,
            headers: &[("host", "examplebucket.s3.amazonaws.com")],
            now: at(now),
            host_bucket: None,
        }
        .check()
    };
    sent(&right, "20130524T235959Z").unwrap();
    let late = sent(&right, "20130525T000001Z").unwrap_err();
    assert_eq!((late.0, late.1.message()), (Refusal::Expired, "Request has expired"));
    assert_eq!(sent(&right, "20130523T230000Z").unwrap_err().0, Refusal::ClockSkew);
    let wrong = url(&"0".repeat(64));
    assert_eq!(sent(&wrong, "20130524T000000Z").unwrap_err().0, Refusal::WrongSignature);
}

/// "Signature Calculations ... Transferring Payload in Multiple Chunks".
#[test]
fn documented_chunks() {
    let authorization = v4(
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
         x-amz-decoded-content-length;x-amz-storage-class",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    );
    let payload = Sent {
        method: "PUT",
        url: "/examplebucket/chunkObject.txt",
        headers: &[
            ("host", "s3.amazonaws.com"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("content-length", "66824"),
            ("authorization", &authorization),
        ],
        now: at("20130524T000000Z"),
        host_bucket: None,
    }
    .check()
    .unwrap();
    let mut signer = payload.signer.unwrap();
    let digest = |length: usize| {
        let mut digest = Streaming::default();
        digest.update(&vec![b'a'; length]);
        digest
    };
    for (length, signature) in [
        (65536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
        (1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
        (0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
    ] {
        assert!(signer.chunk(digest(length), signature), "{length}");
    }
    assert!(!signer.chunk(digest(1), &"0".repeat(64)));
}

/// The examples of "Signing and authenticating REST requests" (version 2).
#[test]
fn documented_version_2() {
    let now = httpdate::parse_http_date("Tue, 27 Mar 2007 19:36:42 GMT").unwrap();
    let get = Sent {
        method: "GET",
        url: "/photos/puppy.jpg",
        headers: &[
            ("host", "johnsmith.s3.amazonaws.com"),
            ("date", "Tue, 27 Mar 2007 19:36:42 +0000"),
            ("authorization", &format!("AWS {ID}:bWq2s1WEIj+Ydj0vQ697zp+IXMU=")),
        ],
        now,
        host_bucket: Some("johnsmith"),
    };
    get.check().unwrap();
    assert_eq!(Sent { method: "HEAD", ..get }.check().unwrap_err().0, Refusal::WrongSignature);
    let url = format!(
        "/photos/puppy.jpg?AWSAccessKeyId={ID}&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&\
         Expires=1175139620"
    );
    let presigned = |seconds: u64| {
        Sent {
            method: "GET",
            url: &url,
            headers: &[("host", "johnsmith.s3.amazonaws.com")],
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            host_bucket: Some("johnsmith"),
        }
        .check()
    };
    presigned(1_175_139_619).unwrap();
    assert_eq!(presigned(1_175_139_621).unwrap_err().0, Refusal::Expired);
}

#[test]
fn refusals_have_the_code_that_clients_know() {
    let authorization = v4("host;x-amz-content-sha256;x-amz-date", &"0".repeat(64));
    let unknown = authorization.replace(ID, "AKIAUNKNOWN");
    let check = |authorization: Option<&str>, now: &str| {
        let mut headers = vec![
            ("host", "localhost"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-content-sha256", EMPTY),
        ];
        headers.extend(authorization.map(|text| ("authorization", text)));
        let sent =
            Sent { method: "GET", url: "/", headers: &headers, now: at(now), host_bucket: None };
        sent.check().unwrap_err().1.code().as_str().to_owned()
    };
    let now = "20130524T000000Z";
    assert_eq!(check(None, now), "AccessDenied");
    assert_eq!(check(Some(&authorization), now), "SignatureDoesNotMatch");
    assert_eq!(check(Some(&unknown), now), "InvalidAccessKeyId");
    assert_eq!(check(Some(&authorization), "20130524T001501Z"), "RequestTimeTooSkewed");
    assert_eq!(check(Some("AWS4-HMAC-SHA256 nonsense"), now), "AuthorizationHeaderMalformed");
    assert_eq!(check(Some("Bearer x"), now), "AuthorizationHeaderMalformed");
    assert_eq!(check(Some("AWS nonsense"), now), "AuthorizationHeaderMalformed");
}

#[test]
fn headers_that_are_not_signed_are_refused() {
    let authorization = v4("host;x-amz-date", &"0".repeat(64));
    let refused = Sent {
        method: "GET",
        url: "/",
        headers: &[
            ("host", "localhost"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-content-sha256", EMPTY),
            ("authorization", &authorization),
        ],
        now: at("20130524T000000Z"),
        host_bucket: None,
    }
    .check()
    .unwrap_err();
    assert!(refused.1.message().contains("not signed: x-amz-content-sha256"));
}

#[test]
fn dates() {
    assert!(parse_amz_date("20130524T000000Z").is_some());
    for bad in ["", "20130524T000000", "20131324T000000Z", "2013052aT000000Z", "+0130524T000000Z"] {
        assert!(parse_amz_date(bad).is_none(), "{bad}");
    }
    assert!(parse_date("Fri, 31 Dec 9999 23:59:59 +0000").is_some());
    // In UTC this is of the year 10000.
    assert!(parse_date("Fri, 31 Dec 9999 23:59:59 -0100").is_none());
}

proptest! {
    #[test]
    fn any_authorization_is_parsed_or_refused(text in "\\PC{0,120}") {
        let _ = Authorization::parse(&text);
        let _ = Authorization::parse(&format!("AWS4-HMAC-SHA256 {text}"));
    }

    #[test]
    fn well_formed_authorizations_come_apart(
        id in "[A-Za-z0-9/+=.-]{1,30}", date in "[0-9]{8}", region in "[a-z0-9-]{1,12}",
        signature in "[0-9a-f]{64}", names in proptest::collection::vec("[a-z-]{1,12}", 1..5),
    ) {
        let text = format!(
            "AWS4-HMAC-SHA256 Credential={id}/{date}/{region}/s3/aws4_request, \
             SignedHeaders={}, Signature={signature}", names.join(";"));
        let parsed = Authorization::parse(&text).unwrap();
        prop_assert_eq!(parsed.key_id, id);
        prop_assert_eq!(parsed.date, date);
        prop_assert_eq!(parsed.region, region);
        prop_assert_eq!(parsed.signature, signature);
        prop_assert_eq!(parsed.signed_headers, names);
    }
}

/// The same page's example with trailing headers.
#[test]
fn documented_chunks_with_a_trailer() {
    let authorization = v4(
        "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;\
         x-amz-storage-class;x-amz-trailer",
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
    );
    let payload = Sent {
        method: "PUT",
        url: "/examplebucket/chunkObject.txt",
        headers: &[
            ("host", "s3.amazonaws.com"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("x-amz-trailer", "x-amz-checksum-crc32c"),
            ("content-length", "66824"),
            ("authorization", &authorization),
        ],
        now: at("20130524T000000Z"),
        host_bucket: None,
    }
    .check()
    .unwrap();
    let mut signer = payload.signer.unwrap();
    for (length, signature) in [
        (65536, "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
        (1024, "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
        (0, "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992"),
    ] {
        let mut digest = Streaming::default();
        digest.update(&vec![b'a'; length]);
        assert!(signer.chunk(digest, signature), "{length}");
    }
    let trailers = [("x-amz-checksum-crc32c".to_owned(), "sOO8/Q==".to_owned())];
    assert!(
        signer
            .trailer(&trailers, "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435")
    );
}
