//! The contract on real servers that speak S3, each with the differences that it is known for.

use std::sync::Arc;

use backends::{Metrics, OriginConfig, OriginKind, Policy, S3Config, S3Credential};
use store::testing::contract::{self, Differences};
use testkit::{Origin, Running};

/// An origin over a fresh bucket of a running server.
async fn opened(server: &Running, prefix: &str) -> backends::Opened {
    server.create_bucket("bucket").await;
    let config = OriginConfig { kind: OriginKind::S3(config(server, prefix)), policy: policy() };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    backends::open("origin", &config, &metrics).await.unwrap()
}

fn config(server: &Running, prefix: &str) -> S3Config {
    S3Config {
        bucket: "bucket".into(),
        prefix: prefix.into(),
        region: server.region().into(),
        endpoint: Some(server.endpoint()),
        path_style: None,
        credential: S3Credential::Static {
            access_key_id: server.access_key().into(),
            secret_access_key: server.secret_key().to_owned().into(),
            session_token: None,
        },
    }
}

fn policy() -> Policy {
    Policy { retries: 1, ..Policy::default() }
}

async fn contract(server: &Running, differences: Differences) {
    let opened = opened(server, "").await;
    contract::run(Arc::clone(&opened.store), differences).await.assert();
}

#[tokio::test]
async fn moto_keeps_the_contract() {
    let server = testkit::start!(Origin::moto());
    contract(&server, Differences::default()).await;
}

#[tokio::test]
async fn versitygw_keeps_the_contract() {
    let server = testkit::start!(Origin::versitygw());
    contract(&server, Differences::default()).await;
}

#[tokio::test]
async fn minio_keeps_the_contract() {
    let server = testkit::start!(Origin::minio());
    contract(&server, Differences::default()).await;
}
