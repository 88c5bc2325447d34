//! The contract on Azurite with the differences that it and the service are known for, and what
//! the contract does not ask: shared access signatures, odd keys, uploads over a restart.

#![allow(clippy::unwrap_used)] // Helpers of tests fail where they cannot go on.

use std::sync::Arc;

use backends::{AzureConfig, AzureCredential, Metrics, OriginConfig, OriginKind, Policy};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use double::{Answer, Double};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use store::testing::contract::{self, Differences};
use store::{
    Body, ByteRange, Condition, CopyOptions, ErrorKind, ListRequest, ObjectKey, PutOptions, Store,
    StoreExt,
};
use testkit::{Origin, Running};
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;

#[path = "support/double.rs"]
mod double;

fn config(server: &Running, credential: AzureCredential) -> AzureConfig {
    AzureConfig {
        account: server.access_key().into(),
        container: "bucket".into(),
        prefix: String::new(),
        endpoint: Some(server.endpoint()),
        credential,
    }
}

fn key_of(server: &Running) -> AzureCredential {
    AzureCredential::Key(server.secret_key().to_owned().into())
}

async fn opened(config: AzureConfig) -> Arc<dyn Store> {
    let policy = Policy { retries: 0, ..Policy::default() };
    let config = OriginConfig { kind: OriginKind::Azure(config), policy };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    backends::open("origin", &config, &metrics).await.unwrap().store
}

/// Keys that Azure would take for others, and that are refused for it.
fn refused(key: &str) -> bool {
    key.contains(['\\', '\t', '\n', '\u{1}', '\u{7f}'])
        || key.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// How Azure differs: some keys are refused, and names above the Basic Multilingual Plane are
/// listed where UTF-16 has them.
fn differences() -> Differences {
    Differences { refused_keys: Some(refused), utf16_order: true, ..Differences::default() }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

/// A shared access signature for the whole account's blobs, for ten minutes from now.
fn account_sas(server: &Running, permissions: &str) -> String {
    let at = |minutes: i64| {
        let time = OffsetDateTime::now_utc() + time::Duration::minutes(minutes);
        let text = time.replace_nanosecond(0).unwrap().format(&Iso8601::DEFAULT).unwrap();
        format!("{}Z", &text[..19])
    };
    let (start, end, version) = (at(-5), at(10), "2021-08-06");
    let to_sign = format!(
        "{}\n{permissions}\nb\nsco\n{start}\n{end}\n\nhttp,https\n{version}\n\n",
        server.access_key()
    );
    let secret = STANDARD.decode(server.secret_key()).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
    mac.update(to_sign.as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let (start, end) = (start.replace(':', "%3A"), end.replace(':', "%3A"));
    format!(
        "?sv={version}&ss=b&srt=sco&sp={permissions}&st={start}&se={end}&spr=http%2Chttps\
         &sig={signature}"
    )
}

#[tokio::test]
async fn azurite_keeps_the_contract() {
    let server = testkit::start!(Origin::azurite());
    server.create_bucket("bucket").await;
    let store = opened(config(&server, key_of(&server))).await;
    contract::run(store, differences()).await.assert();
}

#[tokio::test]
async fn azurite_keeps_the_contract_under_a_shared_access_signature() {
    let server = testkit::start!(Origin::azurite());
    server.create_bucket("bucket").await;
    let sas = AzureCredential::Sas(account_sas(&server, "rwdlac").into());
    let store = opened(config(&server, sas)).await;
    contract::run(store, differences()).await.assert();
}

#[tokio::test]
async fn credentials_fail_with_their_kinds_and_nothing_else_is_tried() {
    let server = testkit::start!(Origin::azurite());
    server.create_bucket("bucket").await;
    server.put("bucket", "k", "bytes").await;
    let wrong = AzureCredential::Key(STANDARD.encode([1; 32]).into());
    let error = opened(config(&server, wrong)).await.head(&key("k")).await.unwrap_err();
    // The service says `AuthenticationFailed`, Azurite `AuthorizationFailure`.
    let denied = [ErrorKind::Unauthenticated, ErrorKind::PermissionDenied];
    assert!(denied.contains(&error.kind()), "{error:?}");
    let expired = account_sas(&server, "rl").replace("&sig=", "&sig=x");
    let store = opened(config(&server, AzureCredential::Sas(expired.into()))).await;
    let error = store.list(&ListRequest::default()).await.unwrap_err();
    assert!(denied.contains(&error.kind()), "{error:?}");
    assert!(!format!("{error:?}").contains("sig="), "{error:?}");
    let read_only = AzureCredential::Sas(account_sas(&server, "rl").into());
    let store = opened(config(&server, read_only)).await;
    assert_eq!(store.get_bytes(&key("k"), ByteRange::Full).await.unwrap(), "bytes");
    let error = store.put_bytes(&key("new"), "x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    let store = opened(config(&server, AzureCredential::Anonymous)).await;
    let error = store.list(&ListRequest::default()).await.unwrap_err();
    let denied = [ErrorKind::NoSuchBucket, ErrorKind::PermissionDenied, ErrorKind::Unauthenticated];
    assert!(denied.contains(&error.kind()), "{error:?}");
}

#[tokio::test]
async fn a_missing_container_is_told_from_a_missing_blob() {
    let server = testkit::start!(Origin::azurite());
    let store = opened(config(&server, key_of(&server))).await;
    let listed = store.list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(listed.kind(), ErrorKind::NoSuchBucket, "{listed:?}");
    for error in [
        store.head(&key("k")).await.unwrap_err(),
        store.get_bytes(&key("k"), ByteRange::Full).await.unwrap_err(),
        store.put_bytes(&key("k"), "x").await.unwrap_err(),
        store.delete(&key("k"), None).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NoSuchBucket, "{error:?}");
    }
}

#[tokio::test]
async fn odd_keys_of_others_never_fail_a_page() {
    let server = testkit::start!(Origin::azurite());
    server.create_bucket("bucket").await;
    let odd = ["a//b", "dir/", "//", "tail.", "\u{e9}/\u{1f680}"];
    for name in odd {
        server.put("bucket", name, "bytes").await;
    }
    let store = opened(config(&server, key_of(&server))).await;
    let page = store.list(&ListRequest::default()).await.unwrap();
    let mut listed: Vec<_> = page.entries.iter().map(|e| e.key.to_string()).collect();
    listed.sort_unstable();
    let mut expected = odd.map(str::to_owned);
    expected.sort_unstable();
    assert_eq!(listed, expected);
    for name in odd {
        assert_eq!(store.get_bytes(&key(name), ByteRange::Full).await.unwrap(), "bytes", "{name}");
    }
    for name in ["back\\slash", "a/../b", ".", "one\u{1}two"] {
        let error = store.head(&key(name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedKey, "{name}");
    }
}

#[tokio::test]
async fn uploads_outlive_the_process_that_began_them() {
    let server = testkit::start!(Origin::azurite());
    server.create_bucket("bucket").await;
    let (first, second) = (
        opened(config(&server, key_of(&server))).await,
        opened(config(&server, key_of(&server))).await,
    );
    let mut options = PutOptions::default();
    options.attributes.content_type = Some("image/png".into());
    options.attributes.expires = Some("never".into());
    options.attributes.user.insert("my-owner".into(), "t\u{e9}am".into());
    let wanted = options.attributes.clone();
    let upload = first.start_upload(&key("o"), options).await.unwrap();
    let part = |text: &'static str| Body::from(Bytes::from_static(text.as_bytes()));
    let one = first.put_part(&key("o"), &upload, 1, part("one")).await.unwrap();
    let two = second.put_part(&key("o"), &upload, 2, part("")).await.unwrap();
    let three = second.put_part(&key("o"), &upload, 3, part("three")).await.unwrap();
    let listed = second.list_parts(&key("o"), &upload, None, 10).await.unwrap();
    assert_eq!(listed.parts, [one.clone(), two.clone(), three.clone()]);
    let parts = [(1, one.etag), (2, two.etag), (3, three.etag)];
    second.complete_upload(&key("o"), &upload, &parts, Condition::None).await.unwrap();
    assert_eq!(first.get_bytes(&key("o"), ByteRange::Full).await.unwrap(), "onethree");
    assert_eq!(*first.head(&key("o")).await.unwrap().attributes.unwrap(), wanted);
    // Whose answer was lost may ask again, as long as the object is what it made.
    let again = first.complete_upload(&key("o"), &upload, &parts, Condition::None).await.unwrap();
    assert_eq!(again.etag, first.head(&key("o")).await.unwrap().etag);
    let again = first.complete_upload(&key("o"), &upload, &parts, Condition::None).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::NoSuchUpload);
    first.put_bytes(&key("o"), "other").await.unwrap();
    let third = opened(config(&server, key_of(&server))).await;
    let again = third.complete_upload(&key("o"), &upload, &parts, Condition::None).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::NoSuchUpload);

    let upload = first.start_upload(&key("p"), PutOptions::default()).await.unwrap();
    let part = first.put_part(&key("p"), &upload, 1, part("x")).await.unwrap();
    let all = store::UploadListRequest { max_uploads: 10, ..Default::default() };
    let found = second.list_uploads(&all).await.unwrap().uploads;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].key, key("p"));
    let done = [(1, part.etag)];
    let foreign = second.complete_upload(&key("p"), &found[0].upload, &done, Condition::None).await;
    assert_eq!(foreign.unwrap_err().kind(), ErrorKind::Unsupported);
    second.abort_upload(&key("p"), &found[0].upload).await.unwrap();
    let late = first.complete_upload(&key("p"), &upload, &done, Condition::None).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::NoSuchUpload);
    assert_eq!(
        first.list_parts(&key("p"), &upload, None, 10).await.unwrap_err().kind(),
        ErrorKind::NoSuchUpload
    );
}

#[tokio::test]
async fn a_part_that_was_replaced_is_told() {
    let server = testkit::start!(Origin::azurite());
    server.create_bucket("bucket").await;
    let store = opened(config(&server, key_of(&server))).await;
    let upload = store.start_upload(&key("o"), PutOptions::default()).await.unwrap();
    let part = |text: &'static str| Body::from(Bytes::from_static(text.as_bytes()));
    let old = store.put_part(&key("o"), &upload, 1, part("old")).await.unwrap().etag;
    let new = store.put_part(&key("o"), &upload, 1, part("new")).await.unwrap().etag;
    assert_ne!(old, new);
    let stale = store.complete_upload(&key("o"), &upload, &[(1, old)], Condition::None).await;
    assert_eq!(stale.unwrap_err().kind(), ErrorKind::InvalidPart);
    store.complete_upload(&key("o"), &upload, &[(1, new)], Condition::None).await.unwrap();
    assert_eq!(store.get_bytes(&key("o"), ByteRange::Full).await.unwrap(), "new");
}

#[tokio::test]
async fn a_completion_discards_other_uploads_of_its_key_and_they_say_so() {
    let server = testkit::start!(Origin::azurite());
    server.create_bucket("bucket").await;
    let store = opened(config(&server, key_of(&server))).await;
    let mut uploads = Vec::new();
    for text in ["first", "second"] {
        let upload = store.start_upload(&key("o"), PutOptions::default()).await.unwrap();
        let body = Body::from(Bytes::from_static(text.as_bytes()));
        let part = store.put_part(&key("o"), &upload, 1, body).await.unwrap();
        uploads.push((upload, [(1, part.etag)]));
    }
    let complete = |at: usize| {
        let (upload, parts) = uploads[at].clone();
        let store = Arc::clone(&store);
        async move { store.complete_upload(&key("o"), &upload, &parts, Condition::None).await }
    };
    complete(0).await.unwrap();
    assert_eq!(complete(1).await.unwrap_err().kind(), ErrorKind::NoSuchUpload);
    assert_eq!(store.get_bytes(&key("o"), ByteRange::Full).await.unwrap(), "first");
}

fn double_config(double: &Double) -> AzureConfig {
    AzureConfig {
        account: "account".into(),
        container: "bucket".into(),
        prefix: String::new(),
        endpoint: Some(double.endpoint.clone()),
        credential: AzureCredential::Sas("sv=2023-11-03&sig=a%2Bb%2Fc%3D".to_owned().into()),
    }
}

#[tokio::test]
async fn encoded_names_are_decoded_and_directories_are_no_blobs() {
    let double = Double::start(|_| -> Answer {
        let blob = |name: &str, more: &str| {
            format!(
                "<Blob>{name}<Properties><Last-Modified>Tue, 14 Nov 2023 22:13:20 GMT\
                 </Last-Modified><Etag>0x8D1</Etag><Content-Length>3</Content-Length>{more}\
                 </Properties></Blob>"
            )
        };
        let body = format!(
            "\u{feff}<?xml version=\"1.0\"?><EnumerationResults><Blobs>{}{}{}\
             <BlobPrefix><Name>p/</Name></BlobPrefix></Blobs><NextMarker/></EnumerationResults>",
            blob("<Name Encoded=\"true\">one%01%EF%BF%BF</Name>", ""),
            blob("<Name>directory</Name>", "<ResourceType>directory</ResourceType>"),
            blob("<Name> a &amp; b </Name>", "<ResourceType>file</ResourceType>"),
        );
        (200, vec![], body)
    })
    .await;
    let store = opened(double_config(&double)).await;
    let request = ListRequest { delimiter: Some("/".into()), ..ListRequest::default() };
    let page = store.list(&request).await.unwrap();
    let names: Vec<_> = page.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(names, [" a & b ", "one\u{1}\u{ffff}"]);
    assert_eq!(page.entries[0].meta.etag.as_str(), "0x8D1-1");
    assert_eq!(page.common_prefixes, ["p/"]);
    let target = &double.seen()[0].target;
    for pair in ["restype=container", "comp=list", "delimiter=%2F", "sig=a%2Bb%2Fc%3D"] {
        assert!(target.contains(pair), "{target}");
    }
}

#[tokio::test]
async fn a_copy_returns_when_it_is_done() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let double = Double::start(move |seen| -> Answer {
        let status = match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 | 1 => "pending",
            _ => "success",
        };
        let etag = if status == "pending" { "\"0x1\"" } else { "\"0x2\"" };
        let headers = vec![("x-ms-copy-status", status.to_owned()), ("etag", etag.to_owned())];
        (if seen.method == "PUT" { 202 } else { 200 }, headers, String::new())
    })
    .await;
    let store = opened(double_config(&double)).await;
    let written = store.copy(&key("from x"), &key("to"), CopyOptions::default()).await.unwrap();
    assert_eq!(written.etag.as_str(), "0x2-1");
    let seen = double.seen();
    let methods: Vec<_> = seen.iter().map(|request| request.method.as_str()).collect();
    assert_eq!(methods, ["PUT", "HEAD", "HEAD"]);
    assert!(seen.iter().all(|request| request.body.is_empty()));
    let source = format!("{}/bucket/from%20x?sv=2023-11-03&sig=a%2Bb%2Fc%3D", double.endpoint);
    assert_eq!(seen[0].header("x-ms-copy-source"), Some(source.as_str()));
}

#[tokio::test]
async fn a_busy_service_is_throttling_and_its_error_holds_no_signature() {
    let double = Double::start(|_| -> Answer {
        let headers = vec![("x-ms-error-code", "ServerBusy".to_owned())];
        (503, headers, "<Error><Code>ServerBusy</Code><Message>busy</Message></Error>".into())
    })
    .await;
    let store = opened(double_config(&double)).await;
    let error = store.get_bytes(&key("k"), ByteRange::Full).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled, "{error:?}");
    assert!(!format!("{error:?}").contains("a%2Bb") && !format!("{error:?}").contains("sig"));
}
