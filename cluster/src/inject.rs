//! From a pod to the same pod with a cache beside it.
//!
//! Invariant: a pure function, and a fixed point of itself: injecting a second time, also after the
//! API server has filled in its defaults or another webhook has added containers, changes only what
//! is not served yet. Nothing that it does not know is dropped or rewritten; what the pod's author
//! wrote is never overwritten, but for the grace period, which is raised. What cannot work is denied
//! with one sentence.

mod containers;
mod manifests;
mod patch;
mod served;
mod shape;
mod status;
mod volumes;
pub(crate) mod yaml;

use serde_json::{Map, Value, json};

pub use crate::settings::{Defaults, Denial};
pub use manifests::{Manifests, manifests};
pub use patch::{Operation, patch};

use crate::names::{INJECT_LABEL, STATUS_ANNOTATION, UNWANTED, WANTED};
use crate::settings::{Cache, Mode, Settings};
pub(crate) use served::VARIABLES;
pub(crate) use volumes::NAMES as VOLUMES;

use shape::{array, array_mut, object_mut, text};
use status::Status;

/// Kubernetes' grace period of a pod that names none, seconds.
const DEFAULT_GRACE_SECONDS: u64 = 30;
/// Annotation of the kubelet's own pods, which the API server only mirrors.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Sizes in an injected pod that follow from those in its settings, bytes.
pub(crate) struct Sizes {
    pub(crate) empty_dir: u64,
    pub(crate) claim: u64,
    pub(crate) worker_request: u64,
    pub(crate) worker_limit: u64,
}

/// What follows from the capacities of the disk tier and of the memory tier.
pub(crate) fn sizes(cache_bytes: u64, memory_bytes: u64) -> Sizes {
    let (worker_request, worker_limit) = containers::worker_bytes(memory_bytes);
    Sizes {
        empty_dir: volumes::empty_dir_bytes(cache_bytes),
        claim: volumes::claim_bytes(cache_bytes),
        worker_request,
        worker_limit,
    }
}

/// Label of the pods of an Argo workflow, and its own containers in them: they carry artifacts to and
/// from a store of their own, with credentials of their own.
const ARGO_LABEL: &str = "workflows.argoproj.io/workflow";
const ARGO_CONTAINERS: &[&str] = &["init", "wait"];
/// Both, for the policy.
pub(crate) const ARGO: (&str, &[&str]) = (ARGO_LABEL, ARGO_CONTAINERS);

/// Who asks, where the pod itself does not say it.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The pod's namespace, empty where it is not known.
    pub namespace: &'a str,
    /// Of the request, or anything else that is another for another pod: ports of `hostNetwork` pods
    /// are derived from it.
    pub uid: &'a str,
}

/// What came of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It stays as it is.
    Untouched {
        /// Why, for logs.
        why: &'static str,
    },
    /// It is served.
    Injected {
        /// The pod as it should be.
        pod: Value,
        /// What its author should know: the API server prints them.
        warnings: Vec<String>,
    },
}

/// Injects a pod that is asked to be, by its label or by its namespace's.
///
/// # Errors
/// One sentence for the pod's author: a setting that cannot be used, or something of the pod's own
/// that is in the way.
pub fn inject(pod: &Value, request: &Context<'_>, defaults: &Defaults) -> Result<Outcome, Denial> {
    if let Some(why) = left_alone(pod)? {
        return Ok(Outcome::Untouched { why });
    }
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    let settings = Settings::of(metadata, defaults)?;
    let status = Status::of(metadata);
    let spec = pod.get("spec").filter(|spec| spec.is_object());
    let spec = spec.ok_or_else(|| Denial::new("the pod has no spec"))?;
    shape::check(spec)?;
    possible(spec, &settings)?;
    group_is_free(spec, &settings)?;
    let plan = Plan::new((metadata, spec), request, defaults, &settings, status.as_ref())?;
    foreign_names(spec, status.is_some())?;

    let mut injected = pod.clone();
    let mut warnings = Vec::new();
    let into = object_mut(&mut injected, "spec");
    volumes::put(into, &plan);
    served::serve(into, &plan, &mut warnings)?;
    containers::put(into, &plan);
    pod_level(into, &plan);
    let metadata = object_mut(&mut injected, "metadata");
    let annotations = shape::entry_object(metadata, "annotations");
    annotations.insert(STATUS_ANNOTATION.to_owned(), Value::String(plan.status().print()));
    Ok(Outcome::Injected { pod: injected, warnings })
}

/// Everything that is decided before the pod is changed.
struct Plan<'a> {
    settings: &'a Settings,
    defaults: &'a Defaults,
    /// What an earlier injection wrote.
    before: Option<&'a Status>,
    ports: Ports,
    host_network: bool,
    /// Grace period: of the author, and raised.
    grace: (u64, u64),
    /// Names of the containers that warm, in order, with their arguments.
    warm: Vec<(String, Vec<String>)>,
    budget: containers::Budget,
    /// Containers of the engine that made the pod, which speak to storage of their own.
    engine: &'static [&'static str],
}

/// Where the worker listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    s3: Option<u16>,
    admin: u16,
    metrics: Option<u16>,
}

impl<'a> Plan<'a> {
    fn new(
        (metadata, spec): (&Value, &'a Value),
        request: &Context<'_>,
        defaults: &'a Defaults,
        settings: &'a Settings,
        before: Option<&'a Status>,
    ) -> Result<Self, Denial> {
        let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
        let ports = status::ports(settings, host_network, request.uid, before)?;
        let now = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64);
        let now = now.unwrap_or(DEFAULT_GRACE_SECONDS);
        // An author who changed it since has another wish.
        let wished = match before.and_then(|before| before.grace) {
            Some((from, to)) if to == now => from,
            _ => now,
        };
        let labels = metadata.get("labels");
        let is_argo = labels.is_some_and(|labels| labels.get(ARGO_LABEL).is_some());
        let plan = Self {
            settings,
            defaults,
            before,
            ports,
            host_network,
            grace: (wished, wished.saturating_add(u64::from(settings.flush_seconds))),
            warm: containers::warm(settings, ports.admin),
            budget: containers::Budget::of(spec),
            engine: if is_argo { ARGO_CONTAINERS } else { &[] },
        };
        served::ports_are_free(spec, &plan)?;
        Ok(plan)
    }

    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: self.settings.mode.name().to_owned(),
            ports: Some(self.ports),
            grace: Some(self.grace),
        }
    }

    /// Whether a container is a mesh's.
    fn is_mesh(&self, container: &Value) -> bool {
        let mesh = &self.defaults.mesh_containers;
        text(container, "name").is_some_and(|name| mesh.iter().any(|one| one == name))
    }

    /// Whether a container is a mesh's or the engine's that made the pod.
    fn is_foreign(&self, container: &Value) -> bool {
        self.is_mesh(container)
            || text(container, "name").is_some_and(|name| self.engine.contains(&name))
    }
}

/// Why a pod is none of ours.
fn left_alone(pod: &Value) -> Result<Option<&'static str>, Denial> {
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    match metadata.get("labels").and_then(|labels| labels.get(INJECT_LABEL)) {
        None => {}
        Some(Value::String(value)) if value == UNWANTED => return Ok(Some("its label says so")),
        Some(Value::String(value)) if value == WANTED => {}
        Some(_) => {
            return Err(Denial::new(format!(
                "label {INJECT_LABEL}: write \"{WANTED}\" or \"{UNWANTED}\", in quotes"
            )));
        }
    }
    if metadata.get("annotations").is_some_and(|all| all.get(MIRROR_ANNOTATION).is_some()) {
        return Ok(Some("it is a static pod, which only its node can change"));
    }
    Ok(None)
}

/// Refuses what no settings can make work.
fn possible(spec: &Value, settings: &Settings) -> Result<(), Denial> {
    let os = spec.get("os").and_then(|os| text(os, "name"));
    let selected = spec.get("nodeSelector").and_then(|labels| text(labels, "kubernetes.io/os"));
    if os == Some("windows") || selected == Some("windows") {
        return Err(Denial::new(format!(
            "label {INJECT_LABEL}: this is a pod for Windows, only Linux is supported"
        )));
    }
    let own_users = spec.get("hostUsers").and_then(Value::as_bool) == Some(false);
    match settings.mode {
        Mode::Sidecar if own_users => Err(Denial::of(
            "mode",
            "sidecar is not possible with hostUsers: false, because mounting takes privileges on the \
             node that a user namespace does not have: write s3, or remove hostUsers",
        )),
        Mode::Csi if own_users => Err(Denial::of(
            "mode",
            "csi is not possible with hostUsers: false, because the node knows the worker by a user \
             that a user namespace hides: write s3, or remove hostUsers",
        )),
        _ => Ok(()),
    }
}

/// Volumes whose files kubelet gives to the group of the pod.
pub(crate) const CLAIMS: &[&str] = &["persistentVolumeClaim", "ephemeral"];

/// Refuses to choose a group for files of the author's: kubelet would change each of them.
fn group_is_free(spec: &Value, settings: &Settings) -> Result<(), Denial> {
    let kind = match &settings.cache {
        Cache::Ephemeral(_) => "ephemeral",
        Cache::Claim(_) => "pvc",
        _ => return Ok(()),
    };
    let security = spec.get("securityContext").unwrap_or(&Value::Null);
    if security.get("fsGroup").is_some_and(|group| !group.is_null()) {
        return Ok(());
    }
    let theirs = array(spec, "volumes").iter().find(|volume| {
        let is_claim = CLAIMS.iter().any(|kind| volume.get(kind).is_some_and(Value::is_object));
        is_claim && !text(volume, "name").is_some_and(volumes::is_ours)
    });
    let Some(name) = theirs.map(|volume| text(volume, "name").unwrap_or("")) else {
        return Ok(());
    };
    Err(Denial::of(
        "cache",
        format_args!(
            "`{kind}` needs a securityContext.fsGroup, which would also become the group of the files on volume {}: write the group that its files have, or {} with fsGroupChangePolicy: OnRootMismatch",
            crate::settings::quoted(name),
            crate::names::WORKER_ID
        ),
    ))
}

/// Refuses containers and volumes of the author's that have one of our names.
fn foreign_names(spec: &Value, injected: bool) -> Result<(), Denial> {
    let taken = |kind: &str, name: &str| {
        Denial::new(format!(
            "the pod has a {kind} `{name}` of its own, a name that injection needs: rename it, or set \
             the label {INJECT_LABEL} to \"{UNWANTED}\""
        ))
    };
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        if injected && list == "initContainers" {
            continue;
        }
        let ours = array(spec, list).iter().filter_map(|container| text(container, "name"));
        if let Some(name) = ours.into_iter().find(|name| containers::is_ours(name)) {
            return Err(taken("container", name));
        }
    }
    if !injected {
        let volumes = array(spec, "volumes").iter().filter_map(|volume| text(volume, "name"));
        if let Some(name) = volumes.into_iter().find(|name| volumes::is_ours(name)) {
            return Err(taken("volume", name));
        }
    }
    Ok(())
}

/// What concerns the pod as a whole.
fn pod_level(spec: &mut Map<String, Value>, plan: &Plan<'_>) {
    let (_, grace) = plan.grace;
    let now = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64);
    if now != Some(grace) && (now.is_some() || grace != DEFAULT_GRACE_SECONDS) {
        spec.insert("terminationGracePeriodSeconds".to_owned(), json!(grace));
    }
    // A new file system belongs to root; kubelet gives it to this group, at its first use.
    if matches!(plan.settings.cache, Cache::Ephemeral(_) | Cache::Claim(_)) {
        let security = shape::entry_object(spec, "securityContext");
        if security.get("fsGroup").is_none_or(Value::is_null) {
            security.insert("fsGroup".to_owned(), json!(crate::names::WORKER_ID));
            security.entry("fsGroupChangePolicy").or_insert_with(|| json!("OnRootMismatch"));
        }
    }
    let secrets = &plan.defaults.image_pull_secrets;
    if !secrets.is_empty() {
        let there = array_mut(spec, "imagePullSecrets");
        for name in secrets {
            if !there.iter().any(|secret| text(secret, "name") == Some(name)) {
                there.push(json!({"name": name}));
            }
        }
    }
}

#[cfg(test)]
mod tests;
