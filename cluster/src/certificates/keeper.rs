//! Keeps our authority in a Secret and its bundle in the webhook's configuration.
//!
//! Invariant: nothing is shown that is not in the Secret, and a bundle is only ever replaced by the
//! one of a Secret that was read after it: every write names the version that it replaces, and
//! configurations are read before the Secret. Replicas need no leader: who comes second reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::authority::{Kept, Plan};
use super::{Shown, date, unix_seconds};
use crate::webhook::Health;

/// Attempts at a write that others may win, in one round; then the next round.
const ATTEMPTS: usize = 5;
/// The first pause after a round that failed; it doubles up to the pause between rounds.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What is kept where.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Namespace of the Secret.
    pub(crate) namespace: String,
    /// Name of the Secret.
    pub(crate) secret: String,
    /// Names of the configurations whose bundle is ours.
    pub(crate) configurations: Vec<String>,
    /// Pause between rounds: how soon a bundle that somebody reset is back.
    pub(crate) resync: Duration,
}

/// Runs rounds; see the module.
pub(crate) struct Keeper {
    place: Place,
    plan: Plan,
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    shown: Arc<Shown>,
    health: Arc<Health>,
    /// The newest authority, and since when every configuration has held it.
    held: Option<(String, Instant)>,
}

/// Why a round ended early.
enum Halt {
    /// Somebody else wrote first: look again.
    Overtaken,
    /// For the log.
    Failed(String),
}

impl Keeper {
    pub(crate) fn new(
        client: &Client,
        place: Place,
        plan: Plan,
        shown: Arc<Shown>,
        health: Arc<Health>,
    ) -> Self {
        let secrets = Api::namespaced(client.clone(), &place.namespace);
        let configurations = Api::all(client.clone());
        Self { place, plan, secrets, configurations, shown, health, held: None }
    }

    /// Rounds until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.round() => outcome,
            };
            pause = match &outcome {
                Ok(()) => FIRST_PAUSE,
                Err(_) => pause * 2,
            };
            let rest =
                if outcome.is_ok() { self.place.resync } else { pause.min(self.place.resync) };
            if outcome.is_err() {
                self.health.metrics.kubernetes_errors.inc();
            }
            self.health.kubernetes.tell(outcome.err());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// One look at everything, and what follows from it.
    async fn round(&mut self) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Halt::Overtaken) => {}
                Err(Halt::Failed(what)) => return Err(what),
            }
        }
        Err(format!("others changed the same objects {ATTEMPTS} times; trying again"))
    }

    async fn attempt(&mut self) -> Result<(), Halt> {
        // The order is the invariant: see the module. Certificates do not depend on a configuration
        // that cannot be read, so that is told last.
        let configurations = self.read_configurations().await;
        let (secret, mut kept) = self.read_secret().await?;
        let settled = self.is_settled(kept.newest());
        let now = unix_seconds(SystemTime::now());
        if kept.advance(now, &self.plan, settled).map_err(Halt::Failed)? {
            self.write_secret(secret, &kept).await?;
        }
        let pair = kept.pair().map_err(Halt::Failed)?;
        let ends = pair.not_after;
        if self.shown.show(pair) {
            self.health.metrics.shows(ends);
            tracing::info!(valid_until = %date(ends), "certificate of our own authority is shown");
        }
        self.health.metrics.authority_expiry.set(seconds(kept.authority_ends()));
        let held = match configurations {
            Ok(configurations) => self.write_bundles(configurations, &kept).await,
            Err(halt) => Err(halt),
        };
        self.note_held(held.is_ok().then(|| kept.newest()).flatten());
        self.health.metrics.configuration_valid.set(i64::from(held.is_ok()));
        held
    }

    fn is_settled(&self, newest: Option<&str>) -> bool {
        self.held.as_ref().is_some_and(|(held, since)| {
            Some(held.as_str()) == newest && since.elapsed() >= self.plan.settle
        })
    }

    /// Notes which newest authority every configuration holds, if they do.
    fn note_held(&mut self, newest: Option<&str>) {
        match newest {
            None => self.held = None,
            Some(newest) if self.held.as_ref().is_some_and(|(held, _)| held == newest) => {}
            Some(newest) => {
                self.held = Some((newest.to_owned(), Instant::now()));
                self.health.trusted();
            }
        }
    }

    async fn read_configurations(&self) -> Result<Vec<MutatingWebhookConfiguration>, Halt> {
        let mut read = Vec::with_capacity(self.place.configurations.len());
        for name in &self.place.configurations {
            let found = self.configurations.get(name).await;
            read.push(found.map_err(|error| halt("MutatingWebhookConfiguration", name, &error))?);
        }
        Ok(read)
    }

    async fn read_secret(&self) -> Result<(Option<Secret>, Kept), Halt> {
        let Place { namespace, secret: name, .. } = &self.place;
        let whole = format!("{namespace}/{name}");
        let found = self.secrets.get_opt(name).await;
        let secret = found.map_err(|error| halt("Secret", &whole, &error))?;
        let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
        let kept = Kept::from_data(data.unwrap_or(&BTreeMap::new()))
            .map_err(|what| Halt::Failed(format!("Secret {whole}: {what}")))?;
        Ok((secret, kept))
    }

    async fn write_secret(&self, secret: Option<Secret>, kept: &Kept) -> Result<(), Halt> {
        let Place { namespace, secret: name, .. } = &self.place;
        let params = PostParams::default();
        let data: BTreeMap<String, ByteString> = kept.to_data();
        // With the version that was read: a write in between makes this one fail.
        let written = if let Some(mut secret) = secret {
            secret.data.get_or_insert_default().extend(data);
            self.secrets.replace(name, &params, &secret).await
        } else {
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            };
            let secret = Secret { metadata, data: Some(data), ..Secret::default() };
            self.secrets.create(&params, &secret).await
        };
        written.map_err(|error| halt("Secret", &format!("{namespace}/{name}"), &error))?;
        tracing::info!(secret = %format!("{namespace}/{name}"), "certificates were renewed");
        Ok(())
    }

    /// Puts the bundle where it is missing. `Ok`: every configuration holds it.
    async fn write_bundles(
        &self,
        configurations: Vec<MutatingWebhookConfiguration>,
        kept: &Kept,
    ) -> Result<(), Halt> {
        let bundle = kept.bundle();
        for configuration in configurations {
            let name = configuration.metadata.name.unwrap_or_default();
            let webhooks = configuration.webhooks.unwrap_or_default();
            let stale = webhooks.iter().filter(|webhook| {
                let held = webhook.client_config.ca_bundle.as_ref();
                held.is_none_or(|held| held.0 != bundle.as_bytes())
            });
            let stale: Vec<_> = stale
                .map(|webhook| {
                    let bundle = BASE64.encode(&bundle);
                    json!({ "name": webhook.name, "clientConfig": { "caBundle": bundle } })
                })
                .collect();
            if stale.is_empty() {
                continue;
            }
            let patch = json!({
                "metadata": { "resourceVersion": configuration.metadata.resource_version },
                "webhooks": stale,
            });
            self.configurations
                .patch(&name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
                .map_err(|error| halt("MutatingWebhookConfiguration", &name, &error))?;
            tracing::info!(configuration = %name, "caBundle was written");
        }
        Ok(())
    }
}

/// What an answer of the API server means for us.
fn halt(kind: &str, name: &str, error: &Error) -> Halt {
    let Error::Api(status) = error else {
        return Halt::Failed(format!("{kind} {name}: {}", causes(error)));
    };
    match status.code {
        409 => Halt::Overtaken,
        403 => Halt::Failed(format!("{kind} {name}: {} (see the chart's RBAC)", status.message)),
        404 => Halt::Failed(format!("{kind} {name} does not exist")),
        _ => Halt::Failed(format!("{kind} {name}: {}", status.message)),
    }
}

/// An error with what it was caused by, which is where the reason is.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn seconds(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}
