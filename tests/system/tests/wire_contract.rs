//! The contract of `store`, run against the sidecar's own S3 endpoint: a store of `backends` that
//! speaks S3 to `s3gw`, which stands on `cache` over a real origin. What holds of every store holds
//! through the whole program.

// The functions that the tests share are tests too; the lint sees only the marked ones.
#![allow(clippy::unwrap_used)]

use backends::{Metrics, OriginConfig, OriginKind, Policy, S3Config, S3Credential};
use serde_json::{Value, json};
use store::testing::contract::{self, Differences};
use system_tests::{Home, s3_backend};
use testkit::Origin;

const ACCESS_KEY: &str = "wireaccesskey";
const SECRET_KEY: &str = "wire-secret-key-0123456789";

async fn keeps_the_contract(backend: Value, differences: Differences) {
    let home = Home::new(&[backend], |config| {
        config["fuse"]["enabled"] = json!(false);
        config["allow_inline_secrets"] = json!(true);
        config["s3"]["access"] = json!("static");
        config["s3"]["keys"] =
            json!([{ "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY }]);
    });
    let sidecar = home.start().await;
    let config = OriginConfig {
        kind: OriginKind::S3(S3Config {
            bucket: "origin".into(),
            prefix: String::new(),
            region: "us-east-1".into(),
            endpoint: Some(sidecar.endpoint().to_owned()),
            path_style: None,
            credential: S3Credential::Static {
                access_key_id: ACCESS_KEY.into(),
                secret_access_key: SECRET_KEY.to_owned().into(),
                session_token: None,
            },
        }),
        policy: Policy { retries: 1, ..Policy::default() },
    };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let opened = backends::open("sidecar", &config, &metrics).await.unwrap();
    let mut report = contract::run(opened.store, differences).await;
    // S3 has no code for "this origin cannot hold such a key": it arrives as an invalid argument.
    report
        .failed
        .retain(|(_, why)| !why.contains("Some(InvalidInput), expected Some(UnsupportedKey)"));
    assert!(report.failed.is_empty(), "{report}\n{}", home.log());
    println!("{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_moto() {
    let origin = testkit::start!(Origin::moto());
    origin.create_bucket("bucket").await;
    let backend = s3_backend("origin", &origin, "bucket", &origin.endpoint());
    let differences = Differences {
        refused_keys: Some(|key| {
            key.contains('\n') || key.split('/').any(|segment| matches!(segment, "." | ".."))
        }),
        min_part_bytes: 5 << 20,
        // It answers 500 to a part of an upload that was aborted.
        forgets_aborts: true,
        ..Differences::default()
    };
    keeps_the_contract(backend, differences).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let backend = json!({ "name": "origin", "type": "local", "config": { "root": folder.path() } });
    // What no file system can hold; docs/origins.md.
    let differences = Differences {
        refused_keys: Some(|key| {
            let segment = |s: &str| matches!(s, "" | "." | "..") || s.len() > 255;
            key.split('/').any(segment)
        }),
        file_hides_directory: true,
        ..Differences::default()
    };
    keeps_the_contract(backend, differences).await;
}
