//! The contract on fake-gcs-server behind the kit's shim, with the difference that it is known
//! for, and what the contract does not ask: tokens, rewrites and odd keys.

#![allow(clippy::unwrap_used)] // Helpers of tests fail where they cannot go on.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use backends::{GcsConfig, GcsCredential, Metrics, OriginConfig, OriginKind, Policy};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use double::{Answer, Double, Seen};
use store::testing::contract::{self, Differences};
use store::{
    Attributes, Body, ByteRange, Condition, CopyOptions, ETag, ErrorKind, GetOptions, ListRequest,
    ObjectKey, PutOptions, Store, StoreExt,
};
use testkit::{Origin, Skipped};

#[path = "support/double.rs"]
mod double;

fn config(endpoint: String, credential: GcsCredential) -> GcsConfig {
    let (bucket, prefix) = ("bucket".into(), String::new());
    GcsConfig { bucket, prefix, endpoint: Some(endpoint), credential }
}

async fn opened(config: GcsConfig) -> Arc<dyn Store> {
    try_opened(config).await.unwrap()
}

async fn try_opened(config: GcsConfig) -> store::Result<Arc<dyn Store>> {
    let policy = Policy { retries: 0, ..Policy::default() };
    let config = OriginConfig { kind: OriginKind::Gcs(config), policy };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    backends::open("origin", &config, &metrics).await.map(|opened| opened.store)
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

#[tokio::test]
async fn fake_gcs_keeps_the_contract() {
    let server = testkit::start!(Origin::fake_gcs());
    server.create_bucket("bucket").await;
    let store = opened(config(server.endpoint(), GcsCredential::Anonymous)).await;
    let mut report = contract::run(store, Differences::default()).await;
    // fake-gcs-server adds the attributes of a rewrite to those of the source, where the service
    // replaces them. What is sent is the matter of `rewrites_replace_attributes_...` below.
    let known =
        |(name, why): &(&str, String)| *name == "copy" && why.contains("attributes of d/to");
    assert!(report.failed.iter().any(known), "fake-gcs-server replaces attributes now: {report}");
    report.failed.retain(|failed| !known(failed));
    report.assert();
}

#[tokio::test]
async fn a_missing_bucket_is_told_from_a_missing_object() {
    let server = testkit::start!(Origin::fake_gcs());
    let store = opened(config(server.endpoint(), GcsCredential::Anonymous)).await;
    for error in [
        store.list(&ListRequest::default()).await.unwrap_err(),
        store.head(&key("k")).await.unwrap_err(),
        store.get_bytes(&key("k"), ByteRange::Full).await.unwrap_err(),
        store.put_bytes(&key("k"), "x").await.unwrap_err(),
        store.delete(&key("k"), None).await.unwrap_err(),
        store.copy(&key("k"), &key("l"), CopyOptions::default()).await.unwrap_err(),
        store.start_upload(&key("k"), PutOptions::default()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NoSuchBucket, "{error:?}");
    }
}

#[tokio::test]
async fn odd_keys_of_others_never_fail_a_page() {
    let server = testkit::start!(Origin::fake_gcs());
    server.create_bucket("bucket").await;
    let odd = ["a//b", "dir/", "one\u{1}two", "//", "x/../y", "back\\slash", "\u{e9}/\u{1f680}"];
    for name in odd {
        server.put("bucket", name, "bytes").await;
    }
    let store = opened(config(server.endpoint(), GcsCredential::Anonymous)).await;
    let page = store.list(&ListRequest::default()).await.unwrap();
    let listed: Vec<_> = page.entries.iter().map(|e| e.key.to_string()).collect();
    let mut expected = odd.map(str::to_owned);
    expected.sort_unstable();
    assert_eq!(listed, expected);
    for name in odd {
        assert_eq!(store.get_bytes(&key(name), ByteRange::Full).await.unwrap(), "bytes", "{name}");
    }
    for name in [".", ".."] {
        let error = store.head(&key(name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedKey, "{name}");
    }
}

#[tokio::test]
async fn attributes_of_every_kind_come_back() {
    let server = testkit::start!(Origin::fake_gcs());
    server.create_bucket("bucket").await;
    let store = opened(config(server.endpoint(), GcsCredential::Anonymous)).await;
    let user = [("my-owner", "t\u{e9}am"), ("edge", " x "), ("empty", "")];
    let attributes = Attributes {
        content_type: Some("image/png".into()),
        cache_control: Some("max-age=60".into()),
        expires: Some("Thu, 01 Dec 2033 16:00:00 GMT".into()),
        user: user.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Attributes::default()
    };
    let options = PutOptions { attributes: attributes.clone(), condition: Condition::None };
    store.put(&key("put"), Body::from(Bytes::from_static(b"x")), options.clone()).await.unwrap();
    let upload = store.start_upload(&key("parts"), options).await.unwrap();
    let body = Body::from(Bytes::from_static(b"x"));
    let part = store.put_part(&key("parts"), &upload, 1, body).await.unwrap();
    let parts = [(1, part.etag)];
    store.complete_upload(&key("parts"), &upload, &parts, Condition::IfAbsent).await.unwrap();
    store.copy(&key("put"), &key("copy"), CopyOptions::default()).await.unwrap();
    let replaced = CopyOptions { attributes: Some(attributes.clone()), ..CopyOptions::default() };
    store.put_bytes(&key("bare"), "x").await.unwrap();
    store.copy(&key("bare"), &key("replaced"), replaced).await.unwrap();
    for name in ["put", "parts", "copy", "replaced"] {
        let meta = store.head(&key(name)).await.unwrap();
        assert_eq!(*meta.attributes.unwrap(), attributes, "{name}");
        let got = store.get(&key(name), GetOptions::default()).await.unwrap();
        assert_eq!(*got.meta.attributes.unwrap(), attributes, "{name} from get");
    }
}

#[tokio::test]
async fn rewrites_replace_attributes_and_go_on_until_they_are_done() {
    let double = Double::start(|seen| -> Answer {
        let body = if seen.target.contains("rewriteToken=next%2Fone") {
            r#"{"done":true,"resource":{"generation":"8","timeCreated":"2023-11-14T22:13:20Z"}}"#
        } else {
            r#"{"done":false,"rewriteToken":"next/one"}"#
        };
        (200, vec![], body.into())
    })
    .await;
    let store = opened(config(double.endpoint.clone(), GcsCredential::Anonymous)).await;
    let attributes = Attributes { content_type: Some("a/b".into()), ..Attributes::default() };
    let options = CopyOptions {
        attributes: Some(attributes),
        source_if_match: Some(ETag::parse("5-1")),
        condition: Condition::IfAbsent,
    };
    let written = store.copy(&key("d/from"), &key("d/to"), options).await.unwrap();
    assert_eq!(written.etag.as_str(), "8-1");
    let seen = double.seen();
    assert_eq!(seen.len(), 2);
    for request in &seen {
        let path = "/storage/v1/b/bucket/o/d%2Ffrom/rewriteTo/b/bucket/o/d%2Fto?";
        assert!(request.target.starts_with(path), "{}", request.target);
        for pair in ["sourceGeneration=5", "ifSourceGenerationMatch=5", "ifGenerationMatch=0"] {
            assert!(request.target.contains(pair), "{}", request.target);
        }
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body, serde_json::json!({"contentType": "a/b", "metadata": {}}));
    }
}

#[tokio::test]
async fn an_answer_of_another_generation_is_refused() {
    let double = Double::start(|_| -> Answer {
        let headers = vec![
            ("x-goog-generation", "9".to_owned()),
            ("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT".to_owned()),
        ];
        (200, headers, "new bytes".into())
    })
    .await;
    let store = opened(config(double.endpoint.clone(), GcsCredential::Anonymous)).await;
    let options = GetOptions { if_match: Some(ETag::parse("8-1")), ..GetOptions::default() };
    let error = store.get(&key("k"), options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    assert_eq!(double.seen()[0].header("x-goog-if-generation-match"), Some("8"));
}

/// A service account whose key was made for this test.
struct Account {
    folder: tempfile::TempDir,
}

impl Account {
    fn new() -> Result<Self, Skipped> {
        let folder = tempfile::tempdir().unwrap();
        let (key, public) = (folder.path().join("key.pem"), folder.path().join("public.pem"));
        let made = Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
            .arg("-out")
            .arg(&key)
            .output()
            .map_err(|error| Skipped::new("openssl", error.to_string()))?;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made = Command::new("openssl")
            .args(["pkey", "-pubout", "-in"])
            .arg(&key)
            .arg("-out")
            .arg(public)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(Self { folder })
    }

    fn json(&self) -> String {
        let key = std::fs::read_to_string(self.folder.path().join("key.pem")).unwrap();
        serde_json::json!({
            "type": "service_account",
            "client_email": "reader@project.iam.gserviceaccount.com",
            "private_key": key,
            "private_key_id": "key-1",
            "token_uri": "http://127.0.0.1:1/never-asked",
        })
        .to_string()
    }
}

fn is_signed(folder: &Path, message: &str, signature: &[u8]) -> bool {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let at = folder.join(format!("signature-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::write(at.with_extension("txt"), message).unwrap();
    std::fs::write(&at, signature).unwrap();
    let verified = Command::new("openssl")
        .args(["dgst", "-sha256", "-verify"])
        .arg(folder.join("public.pem"))
        .arg("-signature")
        .arg(&at)
        .arg(at.with_extension("txt"))
        .output()
        .unwrap();
    verified.status.success()
}

/// What is wrong with a request's token, as the service would look at it: a self-signed token is
/// for whom it names as its scope, or as its audience.
fn refusal(folder: &Path, seen: &Seen) -> Option<&'static str> {
    let Some(token) = seen.header("authorization").and_then(|h| h.strip_prefix("Bearer ")) else {
        return Some("no bearer token");
    };
    let Some((message, signature)) = token.rsplit_once('.') else { return Some("no token") };
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return Some("no signature") };
    if !is_signed(folder, message, &signature) {
        return Some("wrong signature");
    }
    let mut parts = message.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap_or_default()
    });
    let (header, claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if header["alg"] != "RS256" || header["kid"] != "key-1" {
        return Some("wrong header");
    }
    let email = "reader@project.iam.gserviceaccount.com";
    if claims["iss"] != email || claims["sub"] != email {
        return Some("wrong issuer");
    }
    let scopes = ["devstorage.full_control", "devstorage.read_write", "cloud-platform"];
    let scope = claims["scope"].as_str().unwrap_or_default();
    let known = |scope: &&str| scopes.iter().any(|known| scope.ends_with(known));
    let audience = claims["aud"].as_str().is_some_and(|to| to == "https://storage.googleapis.com/");
    if !audience && !scope.split(' ').any(|scope| known(&scope)) {
        return Some("wrong scope and audience");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (begins, ends) = (claims["iat"].as_u64().unwrap_or(u64::MAX), claims["exp"].as_u64());
    let lasts = |ends: u64| ends > now && ends <= begins.saturating_add(3600);
    if begins > now + 5 || !ends.is_some_and(lasts) {
        return Some("wrong time");
    }
    None
}

#[tokio::test]
async fn a_service_account_signs_its_own_tokens() {
    let (account, stranger) = match (Account::new(), Account::new()) {
        (Ok(account), Ok(stranger)) => (account, stranger),
        (Err(skipped), _) | (_, Err(skipped)) => return skipped.report(),
    };
    let folder = account.folder.path().to_owned();
    let double = Double::start(move |seen| -> Answer {
        match refusal(&folder, seen) {
            Some(why) => {
                let text = format!(
                    "<Error><Code>AuthenticationRequired</Code><Message>{why}</Message></Error>"
                );
                (401, vec![], text)
            }
            None => (200, vec![], "<ListBucketResult></ListBucketResult>".into()),
        }
    })
    .await;
    let json = account.json();
    let credential = GcsCredential::ServiceAccountJson(json.clone().into());
    let store = opened(config(double.endpoint.clone(), credential)).await;
    for _ in 0..3 {
        store.list(&ListRequest::default()).await.unwrap();
    }
    let tokens = double.seen();
    assert_eq!(tokens[0].header("authorization"), tokens[2].header("authorization"));

    let file = account.folder.path().join("account.json");
    std::fs::write(&file, &json).unwrap();
    let credential = GcsCredential::ServiceAccountFile(file);
    let store = opened(config(double.endpoint.clone(), credential)).await;
    store.list(&ListRequest::default()).await.unwrap();
    let printed = format!("{store:?}");
    assert!(!printed.contains("PRIVATE") && !printed.contains("key-1"), "{printed}");

    let credential = GcsCredential::ServiceAccountJson(stranger.json().into());
    let store = opened(config(double.endpoint.clone(), credential)).await;
    let error = store.list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(error.to_string().contains("wrong signature"), "{error}");
    let store = opened(config(double.endpoint.clone(), GcsCredential::Anonymous)).await;
    let error = store.list(&ListRequest::default()).await.unwrap_err();
    assert!(error.to_string().contains("no bearer token"), "{error}");
}

#[tokio::test]
async fn a_key_file_that_is_not_there_is_said_when_it_is_opened() {
    let credential = GcsCredential::ServiceAccountFile("/nonexistent/account.json".into());
    let error = try_opened(config("http://127.0.0.1:1".into(), credential)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("/nonexistent/account.json"), "{error}");
}
