//! Tests that look inside the store: bodies in blocks, and what is printed.

use bytes::Bytes;
use futures::{StreamExt, stream};
use store::StoreExt;
use testkit::{Origin, Running};

use super::*;
use crate::AzureCredential;

fn store(server: &Running) -> AzureStore {
    let config = AzureConfig {
        account: server.access_key().into(),
        container: "bucket".into(),
        prefix: String::new(),
        endpoint: Some(server.endpoint()),
        credential: AzureCredential::Key(server.secret_key().to_owned().into()),
    };
    AzureStore { one_put_bytes: 1000, ..AzureStore::new(&config, &Policy::default()).unwrap() }
}

fn body(size: usize, end: Option<Error>) -> Body {
    let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
    let pieces: Vec<_> = bytes.chunks(777).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let pieces = pieces.into_iter().chain(end.map(Err));
    Body::new(size as u64, stream::iter(pieces.collect::<Vec<_>>()).boxed())
}

#[tokio::test]
async fn large_bodies_go_in_blocks_whole_or_not_at_all() {
    let server = testkit::start!(Origin::azurite());
    server.create_bucket("bucket").await;
    let store = store(&server);
    let key = ObjectKey::new("o").unwrap();
    for size in [1001, 2000, 12_345] {
        let mut options = PutOptions::default();
        options.attributes.content_type = Some("image/png".into());
        let written = store.put(&key, body(size, None), options).await.unwrap();
        let meta = store.head(&key).await.unwrap();
        assert_eq!((meta.size, &meta.etag), (size as u64, &written.etag));
        assert_eq!(meta.attributes.unwrap().content_type.as_deref(), Some("image/png"));
        let expected = body(size, None).collect(1 << 20).await.unwrap();
        assert_eq!(store.get_bytes(&key, ByteRange::Full).await.unwrap(), expected);
    }
    let digest = Error::new(ErrorKind::BadDigest, "crc32 differs");
    let failed = store.put(&key, body(5000, Some(digest)), PutOptions::default()).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::BadDigest);
    let options = PutOptions { condition: Condition::IfAbsent, ..PutOptions::default() };
    let failed = store.put(&key, body(5000, None), options).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    assert_eq!(store.head(&key).await.unwrap().size, 12_345);
}

#[test]
fn nothing_printed_is_secret() {
    let config = |credential, endpoint: Option<&str>| AzureConfig {
        account: "account".into(),
        container: "box".into(),
        prefix: String::new(),
        endpoint: endpoint.map(str::to_owned),
        credential,
    };
    let secret = |text: &str| text.to_owned().into();
    for credential in
        [AzureCredential::Key(secret("aHVzaA==")), AzureCredential::Sas(secret("?sv=1&sig=aHVzaA"))]
    {
        let store = AzureStore::new(&config(credential, None), &Policy::default()).unwrap();
        let printed = format!("{store:?}");
        assert_eq!(printed, "AzureStore(https://account.blob.core.windows.net/box)");
    }
    for (credential, endpoint) in [
        (AzureCredential::Key(secret("hush!")), None),
        (AzureCredential::Sas(secret("hush")), None),
        (AzureCredential::Sas(secret("sv=hush")), None),
        (AzureCredential::Anonymous, Some("https://host/?sig=hush")),
        (AzureCredential::Anonymous, Some("https://me:hush@host/")),
        (AzureCredential::Anonymous, Some("hush:1")),
    ] {
        let config = config(credential, endpoint);
        let error = AzureStore::new(&config, &Policy::default()).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }
}
