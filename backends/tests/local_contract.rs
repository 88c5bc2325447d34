//! The contract on a directory, through everything that `open` adds.

// What a test sets up must work; clippy knows only functions marked as tests as such.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use backends::{LocalConfig, Metrics, OriginConfig, OriginKind, Policy};
use store::testing::contract::{self, Differences};

#[tokio::test]
async fn directories_keep_the_contract() {
    for nfs in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let kind = OriginKind::Local(LocalConfig { root: root.path().into(), nfs });
        let config = OriginConfig { kind, policy: Policy::default() };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let opened = backends::open("files", &config, &metrics).await.unwrap();
        assert_eq!(
            opened.identity,
            format!("local {}", root.path().canonicalize().unwrap().display())
        );
        let differences = Differences {
            refused_keys: Some(|key| {
                let segment = |s: &str| matches!(s, "" | "." | "..") || s.len() > 255;
                key.split('/').any(segment)
            }),
            file_hides_directory: true,
            ..Differences::default()
        };
        contract::run(Arc::clone(&opened.store), differences).await.assert();
        let report = backends::probe(&opened, true).await;
        assert!(report.is_ok(), "{report:?}");
    }
}
