//! From configuration to a store that is ready for callers: raw store, prefix, resilience, metrics.
//!
//! Invariant: nothing is contacted here, so that a sidecar starts while an origin is down and
//! serves what it holds. What no origin could ever accept is refused with what would fix it.

use std::sync::Arc;

use store::{Error, ErrorKind, Result, Store};
use url::Url;

use crate::metrics::MeteredStore;
use crate::prefixed::{below, normal};
use crate::resilience::{Health, Resilient};
use crate::{Metrics, OriginConfig, OriginKind, azure, gcs, local, s3};

/// An origin that was opened.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Its bucket, with retries, timeouts, a breaker and metrics.
    pub store: Arc<dyn Store>,
    /// Type, place and prefix: the same text for the same objects, after a restart too, and
    /// without a secret. Two backends of one identity hold the same bytes.
    pub identity: String,
    /// How it does.
    pub health: Arc<Health>,
}

/// Opens an origin. `name` stands in messages and metric labels.
///
/// Network origins are not contacted ([`crate::probe()`] does that); a local directory must exist.
/// [`ErrorKind::InvalidInput`] says what is wrong with the configuration.
pub async fn open(name: &str, config: &OriginConfig, metrics: &Metrics) -> Result<Opened> {
    let opened = match &config.kind {
        OriginKind::Local(local) => {
            let local = local.clone();
            // Directories on network file systems may block for minutes.
            let raw = tokio::task::spawn_blocking(move || local::open(&local)).await;
            let raw = raw.map_err(|error| {
                Error::new(ErrorKind::Internal, "opening a directory failed").with_source(error)
            });
            raw.flatten().map(|(store, identity)| (store, identity, String::new()))
        }
        OriginKind::S3(s3) => {
            let identity = s3::identity(s3)?;
            s3::open(s3, &config.policy).map(|store| (store, identity, s3.prefix.clone()))
        }
        OriginKind::Azure(azure) => {
            let endpoint = azure.endpoint.clone();
            let default = || format!("https://{}.blob.core.windows.net", azure.account);
            let base = shown(&endpoint.unwrap_or_else(default))?;
            let identity = format!("azure {base}/{}", azure.container);
            let store = azure::open(azure, &config.policy).await;
            store.map(|store| (store, identity, azure.prefix.clone()))
        }
        OriginKind::Gcs(gcs) => {
            let base = gcs.endpoint.as_deref().unwrap_or("https://storage.googleapis.com");
            let identity = format!("gcs {}/{}", shown(base)?, gcs.bucket);
            let store = gcs::open(gcs, &config.policy).await;
            store.map(|store| (store, identity, gcs.prefix.clone()))
        }
    };
    let (raw, place, prefix) =
        opened.map_err(|error| error.in_context(format_args!("backend `{name}`")))?;
    let place = place.trim_end_matches('/');
    let identity = match normal(&prefix) {
        prefix if prefix.is_empty() => place.to_owned(),
        prefix => format!("{place}/{prefix}"),
    };
    let resilient = Resilient::new(below(raw, &prefix), name, &config.policy, metrics);
    let health = resilient.health();
    let store = Arc::new(MeteredStore::new(Arc::new(resilient), name, metrics));
    Ok(Opened { store, identity, health })
}

/// The URL of a service. [`ErrorKind::InvalidInput`] unless it has `http` or `https`, a host, and
/// nothing that belongs elsewhere.
pub(crate) fn endpoint(text: &str) -> Result<Url> {
    let wrong = |why: &str| {
        let context = format!("endpoint {why}; expected something like https://host:9000");
        Err(Error::new(ErrorKind::InvalidInput, context))
    };
    let Ok(url) = Url::parse(text) else {
        return wrong("is no URL");
    };
    if !matches!(url.scheme(), "http" | "https") {
        return wrong(&format!("has scheme `{}`", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("holds a credential, which belongs to `auth`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("has a query or a fragment");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return wrong("has no host");
    }
    Ok(url)
}

fn shown(text: &str) -> Result<String> {
    Ok(endpoint(text)?.as_str().trim_end_matches('/').to_owned())
}
