//! Serves in-memory buckets on a loopback port, so that any S3 client can be tried against the
//! endpoint without an origin.
//!
//! `serve_memory [ADDRESS] [anonymous]`, by default `127.0.0.1:9000` with a generated key. Invariant:
//! nothing survives the process. It is an example and refuses to be anything else.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use s3gw::{Access, AccessKey, Gateway, GatewayConfig, Metrics};
use secrecy::ExposeSecret;
use store::testing::MemoryStore;
use store::{Bucket, BucketName, Namespace};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:9000".to_owned()).parse()?;
    let key = AccessKey::generate();
    let access = match arguments.next().as_deref() {
        Some("anonymous") => Access::Anonymous,
        _ => Access::Signed(vec![key.clone()]),
    };
    let mut namespace = Namespace::builder();
    for name in ["bucket", "other"] {
        namespace = namespace.bucket(Bucket {
            name: BucketName::new(name)?,
            store: Arc::new(MemoryStore::new()),
            residency: None,
            read_only: false,
            created: SystemTime::now(),
        })?;
    }
    let metrics = Metrics::register(&prometheus::Registry::new())?;
    let config = GatewayConfig::new(listen, access);
    let gateway = Gateway::bind(config, Arc::new(namespace.build()), metrics).await?;
    println!("export AWS_ENDPOINT_URL=http://{}", gateway.local_addr());
    println!("export AWS_ACCESS_KEY_ID={}", key.id);
    println!("export AWS_SECRET_ACCESS_KEY={}", key.secret.expose_secret());
    println!("export AWS_DEFAULT_REGION=us-east-1");
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopper.cancel();
        }
    });
    let drained = gateway.serve(stop, Duration::from_secs(5)).await;
    eprintln!("{drained:?}");
    Ok(())
}
