//! The contract on fake-gcs-server behind the kit's shim, with the differences that those are
//! known for, and what the contract does not ask: tokens and odd keys.

use std::sync::Arc;

use backends::{GcsConfig, GcsCredential, Metrics, OriginConfig, OriginKind, Policy};
use store::testing::contract::{self, Differences};
use store::{ByteRange, ErrorKind, ListRequest, ObjectKey, Store, StoreExt};
use testkit::Origin;

fn config(endpoint: String, credential: GcsCredential) -> GcsConfig {
    let (bucket, prefix) = ("bucket".into(), String::new());
    GcsConfig { bucket, prefix, endpoint: Some(endpoint), credential }
}

async fn opened(config: GcsConfig) -> Arc<dyn Store> {
    let policy = Policy { retries: 0, ..Policy::default() };
    let config = OriginConfig { kind: OriginKind::Gcs(config), policy };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    backends::open("origin", &config, &metrics).await.unwrap().store
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

#[tokio::test]
async fn fake_gcs_keeps_the_contract() {
    let server = testkit::start!(Origin::fake_gcs());
    server.create_bucket("bucket").await;
    let store = opened(config(server.endpoint(), GcsCredential::Anonymous)).await;
    let report = contract::run(store, Differences::default()).await;
    report.assert();
}
