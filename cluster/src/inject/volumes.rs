//! The volumes of an injected pod.
//!
//! Invariant: one volume for each of our names that the mode needs, and none that it does not. A live
//! mount is never in an `emptyDir` of which the server outlives the pod: the kubelet would delete
//! through it.

use serde_json::{Map, Value, json};

use super::shape::{array_mut, text};
use super::{Mode, Plan};
use crate::names::{
    CACHE_VOLUME, CONFIG_KEY, CONFIG_VOLUME, CSI_DRIVER, CSI_ROLE, CSI_ROLE_MOUNT, CSI_ROLE_SOCKET,
    CSI_WORKER_UID, MOUNT_VOLUME, NO_TOKEN_VOLUME, RUN_VOLUME, SOCKET_VOLUME, TOKENS_VOLUME,
    WORKER_ID,
};
use crate::settings::{Cache, Object, quantity};

/// Size of the volume for sockets, the journal of node ids and credentials, in memory.
pub(super) const RUN_BYTES: u64 = 256 << 20;
/// How long a projected token lasts, seconds; the kubelet renews it after four fifths.
const TOKEN_SECONDS: u32 = 3600;
/// Least that is added to the capacity of the disk tier for what is not counted in it: its index, and
/// the file that is being written.
const LEAST_SLACK_BYTES: u64 = 256 << 20;
/// The free space that the disk tier leaves (`cache.min_free`), which a file system of its own needs.
const KEPT_FREE_BYTES: u64 = 1 << 30;

/// The names of all of them.
pub(crate) const NAMES: &[&str] = &[
    MOUNT_VOLUME,
    RUN_VOLUME,
    SOCKET_VOLUME,
    CACHE_VOLUME,
    CONFIG_VOLUME,
    TOKENS_VOLUME,
    NO_TOKEN_VOLUME,
];

/// Whether a volume is one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    NAMES.contains(&name)
}

/// What the disk tier takes of a node's disk at most: an `emptyDir` that grows above its limit costs
/// the pod its life. A twentieth over the capacity, for block sizes of the file system.
pub(super) fn empty_dir_bytes(capacity: u64) -> u64 {
    round_mib(capacity.saturating_add((capacity / 20).max(LEAST_SLACK_BYTES)))
}

/// What a claim for the disk tier asks for: a file system keeps a tenth for itself.
pub(super) fn claim_bytes(capacity: u64) -> u64 {
    round_mib(
        capacity.saturating_add(capacity / 10).saturating_add(KEPT_FREE_BYTES + LEAST_SLACK_BYTES),
    )
}

fn round_mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20).saturating_mul(1 << 20)
}

/// The volumes that the plan needs.
pub(super) fn wanted(plan: &Plan<'_>) -> Vec<Value> {
    let settings = plan.settings;
    let mut volumes = Vec::new();
    match settings.mode {
        Mode::Sidecar => volumes.push(json!({"name": MOUNT_VOLUME, "emptyDir": {}})),
        Mode::Csi => {
            let csi = |role: &str| {
                let attributes = json!({CSI_ROLE: role, CSI_WORKER_UID: WORKER_ID.to_string()});
                json!({"driver": CSI_DRIVER, "volumeAttributes": attributes})
            };
            volumes.push(json!({"name": MOUNT_VOLUME, "csi": csi(CSI_ROLE_MOUNT)}));
            volumes.push(json!({"name": SOCKET_VOLUME, "csi": csi(CSI_ROLE_SOCKET)}));
        }
        Mode::S3 => {}
    }
    let run = quantity::print_bytes(RUN_BYTES);
    volumes.push(json!({"name": RUN_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": run}}));
    let capacity = settings.cache_bytes;
    let cache = match &settings.cache {
        Cache::Memory => None,
        Cache::EmptyDir => Some(
            json!({"emptyDir": {"sizeLimit": quantity::print_bytes(empty_dir_bytes(capacity))}}),
        ),
        Cache::Ephemeral(class) => {
            let mut spec = json!({
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": quantity::print_bytes(claim_bytes(capacity))}},
            });
            if let Some(class) = class {
                spec["storageClassName"] = json!(class);
            }
            Some(json!({"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}))
        }
        Cache::Claim(name) => Some(json!({"persistentVolumeClaim": {"claimName": name}})),
        // Not `DirectoryOrCreate`: that belongs to root, and the worker could not write to it.
        Cache::HostPath(path) => Some(json!({"hostPath": {"path": path, "type": "Directory"}})),
    };
    if let Some(mut cache) = cache {
        cache["name"] = json!(CACHE_VOLUME);
        volumes.push(cache);
    }
    // One key alone: what else is in the object is nobody's business here.
    let items = json!([{"key": settings.config_key, "path": CONFIG_KEY}]);
    volumes.push(match &settings.config {
        Object::ConfigMap(name) => {
            json!({"name": CONFIG_VOLUME, "configMap": {"name": name, "items": items}})
        }
        Object::Secret(name) => {
            json!({"name": CONFIG_VOLUME, "secret": {"secretName": name, "items": items}})
        }
    });
    volumes.push(json!({"name": NO_TOKEN_VOLUME, "emptyDir": {}}));
    if !settings.tokens.is_empty() {
        let token = |(audience, file): &(String, String)| {
            json!({"serviceAccountToken": {
                "audience": audience, "expirationSeconds": TOKEN_SECONDS, "path": file,
            }})
        };
        let sources: Vec<Value> = settings.tokens.iter().map(token).collect();
        volumes.push(json!({"name": TOKENS_VOLUME, "projected": {"sources": sources}}));
    }
    volumes
}

/// What Kubernetes fills in: the rest of a volume of one of our names is never taken over.
fn kept(mut ours: Value, old: &Value) -> Value {
    for (source, field) in [
        ("configMap", "/defaultMode"),
        ("secret", "/defaultMode"),
        ("projected", "/defaultMode"),
        ("ephemeral", "/volumeClaimTemplate/spec/volumeMode"),
    ] {
        let filled = old.get(source).and_then(|source| source.pointer(field));
        let (place, name) = field.rsplit_once('/').expect("it is written above, with a slash");
        let place = ours.get_mut(source).and_then(|source| source.pointer_mut(place));
        if let (Some(filled), Some(place)) = (filled, place)
            && (filled.is_u64() || filled == "Filesystem")
        {
            place[name] = filled.clone();
        }
    }
    ours
}

/// Puts them into the pod, in place of those of an earlier injection.
pub(super) fn put(spec: &mut Map<String, Value>, plan: &Plan<'_>) {
    let mut wanted = wanted(plan);
    let there = array_mut(spec, "volumes");
    // One that is not needed any more goes, and so does a second one of a name.
    there.retain_mut(|volume| {
        let Some(name) = text(volume, "name").filter(|name| is_ours(name)) else { return true };
        let Some(at) = wanted.iter().position(|ours| text(ours, "name") == Some(name)) else {
            return false;
        };
        *volume = kept(wanted.remove(at), volume);
        true
    });
    there.extend(wanted);
}
