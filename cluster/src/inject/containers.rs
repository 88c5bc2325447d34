//! The containers that injection adds.
//!
//! Invariant: everything about them that Kubernetes would fill in and that matters is written out;
//! only the holder of the mount in `sidecar` mode has privileges, and all others pass the
//! *restricted* level. What a container of one of our names says is never taken over, but for what
//! [`kept`] names: anybody can write a container and a status annotation.

use serde_json::{Map, Value, json};

use super::shape::{array, array_mut, text};
use super::volumes::{RUN_BYTES, empty_dir_bytes};
use super::{Mode, Plan};
use crate::names::{
    API_TOKEN_DIRECTORY, CACHE_DIRECTORY, CACHE_VOLUME, CONFIG_DIRECTORY, CONFIG_KEY,
    CONFIG_VOLUME, HOLDER_SOCKET, MOUNT_DIRECTORY, MOUNT_SUBDIRECTORY, MOUNT_VOLUME,
    MOUNTD_CONTAINER, NO_TOKEN_VOLUME, PROGRAM, RUN_DIRECTORY, RUN_VOLUME, SOCKET_DIRECTORY,
    SOCKET_VOLUME, STATE_SUBDIRECTORY, TOKENS_DIRECTORY, TOKENS_VOLUME, WARM_CONTAINER,
    WORKER_CONTAINER, WORKER_ID,
};
use crate::settings::{Cache, Object, Quantities, S3, Settings, Warm, quantity};

/// What the worker uses besides its memory tier: fetches, read-ahead, bodies.
const WORKER_BYTES: u64 = 256 << 20;
/// A holder takes a few MiB; its limit also holds 32,768 registrations.
const HOLDER_BYTES: (u64, u64) = (16 << 20, 64 << 20);
/// A client of the admin endpoint.
const WARM_BYTES: (u64, u64) = (16 << 20, 64 << 20);
/// Processor of the small containers, thousandths: they do nothing most of the time.
const SMALL_MILLI: u64 = 10;
/// How long readers wait without a worker: above the kubelet's longest restart back-off, 5 min.
const PATIENCE: &str = "6m";
/// How long the holder waits for programs at its end: the main containers are gone by then.
const HOLDER_GRACE: &str = "1s";
/// Seconds that a probe waits inside for what it proves, and then some for its start: reading its index
/// takes a worker that long on a slow disk.
const WORKER_PROBE: (u32, u32) = (50, 60);

/// Whether a container is one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    let numbered = |rest: &str| {
        rest.is_empty()
            || rest
                .strip_prefix('-')
                .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    name == MOUNTD_CONTAINER
        || name == WORKER_CONTAINER
        || name.strip_prefix(WARM_CONTAINER).is_some_and(numbered)
}

/// What the pod's own resources leave to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Budget {
    /// All of the author's containers have limits that are their requests: so do ours, or the pod
    /// would lose its class.
    guaranteed: bool,
    /// A container has a limit of local storage: then the sum of all limits bounds the pod's volumes,
    /// and the cache has to be in it.
    storage_is_limited: bool,
    /// The pod as a whole has its own budget of memory and processors, which ours are part of.
    pod_level: bool,
}

impl Budget {
    pub(super) fn of(spec: &Value) -> Self {
        let user = |container: &&Value| !text(container, "name").is_some_and(is_ours);
        let all = || {
            ["containers", "initContainers"]
                .into_iter()
                .flat_map(|list| array(spec, list))
                .filter(user)
        };
        let limit = |container: &Value, name: &str| -> Option<Value> {
            container.get("resources")?.get("limits")?.get(name).cloned()
        };
        let request = |container: &Value, name: &str| -> Option<Value> {
            container.get("resources")?.get("requests")?.get(name).cloned()
        };
        let whole = |container: &Value| {
            ["cpu", "memory"].into_iter().all(|name| {
                let limit = limit(container, name);
                limit.is_some()
                    && request(container, name).is_none_or(|request| Some(request) == limit)
            })
        };
        let pod_level = |part: &str| {
            let part = spec.get("resources").and_then(|resources| resources.get(part));
            part.and_then(Value::as_object).is_some_and(|part| !part.is_empty())
        };
        Self {
            guaranteed: all().all(whole),
            storage_is_limited: all().any(|one| limit(one, "ephemeral-storage").is_some()),
            pod_level: pod_level("limits") || pod_level("requests"),
        }
    }

    /// `resources` of one of our containers.
    fn resources(
        self,
        cpu_milli: u64,
        (request, limit): (u64, u64),
        storage_bytes: Option<u64>,
        over: &Quantities,
    ) -> Value {
        let mut requests = Map::new();
        let mut limits = Map::new();
        if !self.pod_level {
            let cpu = json!(quantity::print_milli(cpu_milli));
            if self.guaranteed {
                limits.insert("cpu".to_owned(), cpu.clone());
            }
            requests.insert("cpu".to_owned(), cpu);
            let request = if self.guaranteed { limit } else { request };
            requests.insert("memory".to_owned(), json!(quantity::print_bytes(request)));
            limits.insert("memory".to_owned(), json!(quantity::print_bytes(limit)));
        }
        if let Some(bytes) = storage_bytes {
            let storage = json!(quantity::print_bytes(bytes));
            if self.storage_is_limited {
                limits.insert("ephemeral-storage".to_owned(), storage.clone());
            }
            requests.insert("ephemeral-storage".to_owned(), storage);
        }
        for (computed, over) in [(&mut requests, &over.requests), (&mut limits, &over.limits)] {
            for (name, amount) in over {
                if amount.is_empty() {
                    computed.remove(name);
                } else {
                    computed.insert(name.clone(), json!(amount));
                }
            }
        }
        let mut resources = Map::new();
        for (name, part) in [("requests", requests), ("limits", limits)] {
            if !part.is_empty() {
                resources.insert(name.to_owned(), Value::Object(part));
            }
        }
        Value::Object(resources)
    }
}

/// Memory of the worker: what is reserved, and its limit, in which the volume of sockets counts.
pub(super) fn worker_bytes(memory_tier: u64) -> (u64, u64) {
    let request = memory_tier.saturating_add(WORKER_BYTES);
    (request, request.saturating_add(RUN_BYTES))
}

/// Names and arguments of the containers that warm. One command warms whole buckets, or one prefix.
pub(super) fn warm(settings: &Settings, admin: u16) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<Vec<String>> = Vec::new();
    match &settings.warm {
        None => {}
        Some(Warm::All) => commands.push(Vec::new()),
        Some(Warm::These(these)) => {
            let whole = these.iter().filter(|(_, prefix)| prefix.is_empty());
            let whole: Vec<String> =
                whole.flat_map(|(bucket, _)| ["--bucket".to_owned(), bucket.clone()]).collect();
            if !whole.is_empty() {
                commands.push(whole);
            }
            for (bucket, prefix) in these.iter().filter(|(_, prefix)| !prefix.is_empty()) {
                // With `=`, so that a prefix that begins with a dash is no option.
                commands.push(vec![
                    "--bucket".to_owned(),
                    bucket.clone(),
                    format!("--prefix={prefix}"),
                ]);
            }
        }
    }
    let named = |(at, arguments): (usize, Vec<String>)| {
        let name = match at {
            0 => WARM_CONTAINER.to_owned(),
            at => format!("{WARM_CONTAINER}-{}", at + 1),
        };
        let begin = ["warm".to_owned(), "--admin".to_owned(), format!("http://127.0.0.1:{admin}")];
        (name, begin.into_iter().chain(arguments).collect())
    };
    commands.into_iter().enumerate().map(named).collect()
}

fn command<S: AsRef<str>>(arguments: impl IntoIterator<Item = S>) -> Value {
    let mut all = vec![json!(PROGRAM)];
    all.extend(arguments.into_iter().map(|one| json!(one.as_ref())));
    Value::Array(all)
}

fn exec_probe<S: AsRef<str>>(
    arguments: impl IntoIterator<Item = S>,
    timeout: u32,
    failures: u32,
) -> Value {
    json!({
        "exec": {"command": command(arguments)},
        // The probe waits inside, so that what it waits for is seen at once.
        "periodSeconds": 1, "timeoutSeconds": timeout, "successThreshold": 1, "failureThreshold": failures,
    })
}

/// What the *restricted* level asks for, and a root file system that cannot be written.
fn restricted() -> Value {
    json!({
        "runAsUser": WORKER_ID,
        "runAsGroup": WORKER_ID,
        "runAsNonRoot": true,
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn container(plan: &Plan<'_>, name: &str, body: Value) -> Value {
    let mut container = body;
    container["name"] = json!(name);
    container["image"] = json!(plan.defaults.image);
    if let Some(policy) = &plan.defaults.image_pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    container["terminationMessagePath"] = json!("/dev/termination-log");
    container["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    // The pod's own identity is not for us, and the holder is privileged.
    array_mut(
        container.as_object_mut().expect("a container is written as an object"),
        "volumeMounts",
    )
    .push(json!({"name": NO_TOKEN_VOLUME, "mountPath": API_TOKEN_DIRECTORY, "readOnly": true}));
    container
}

/// The holder of the mount.
fn mountd(plan: &Plan<'_>) -> Value {
    let socket = format!("{RUN_DIRECTORY}/{HOLDER_SOCKET}");
    let point = format!("{MOUNT_DIRECTORY}/{MOUNT_SUBDIRECTORY}");
    let uid = WORKER_ID.to_string();
    let arguments = [
        "mountd",
        "--mount-point",
        &point,
        "--socket",
        &socket,
        "--allow-other",
        "--allow-uid",
        &uid,
        "--patience",
        PATIENCE,
        "--grace",
        HOLDER_GRACE,
        // Also where the pod shares its process namespace, and this is not the first process.
        "--guard",
    ];
    container(
        plan,
        MOUNTD_CONTAINER,
        json!({
            "command": command(arguments),
            "restartPolicy": "Always",
            "securityContext": {
                "privileged": true,
                "runAsUser": 0,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "readOnlyRootFilesystem": true,
            },
            "resources": plan.budget.resources(SMALL_MILLI, HOLDER_BYTES, None, &plan.defaults.resources.mountd),
            "volumeMounts": [
                {"name": MOUNT_VOLUME, "mountPath": MOUNT_DIRECTORY, "mountPropagation": "Bidirectional"},
                {"name": RUN_VOLUME, "mountPath": RUN_DIRECTORY},
            ],
            // No probe of its own: it would cost a second of every start, kubelet's tick, and the worker
            // waits for the holder and proves the mount.
        }),
    )
}

/// Arguments of the worker.
fn worker_arguments(plan: &Plan<'_>) -> Vec<String> {
    let settings = plan.settings;
    let config = format!("{CONFIG_DIRECTORY}/{CONFIG_KEY}");
    let mut arguments: Vec<String> =
        ["run", "--supervise", "-c", &config].into_iter().map(str::to_owned).collect();
    let state = format!("{RUN_DIRECTORY}/{STATE_SUBDIRECTORY}");
    let holder = match settings.mode {
        Mode::Sidecar => Some(format!("{RUN_DIRECTORY}/{HOLDER_SOCKET}")),
        Mode::Csi => Some(format!("{SOCKET_DIRECTORY}/{HOLDER_SOCKET}")),
        Mode::S3 => None,
    };
    match holder {
        Some(socket) => arguments.extend([
            "--holder".to_owned(),
            socket,
            "--mount-point".to_owned(),
            format!("{MOUNT_DIRECTORY}/{MOUNT_SUBDIRECTORY}"),
        ]),
        None => arguments.push("--no-mount".to_owned()),
    }
    let mut set = vec![format!("state_dir={state}")];
    if settings.mode != Mode::S3 {
        set.push("allow_other=true".to_owned());
    }
    if settings.cache == Cache::Memory {
        // Nothing after `=` unsets what the file says: there is no disk to write to.
        set.push("cache.path=".to_owned());
    } else {
        set.push(format!("cache.path={CACHE_DIRECTORY}"));
        set.push(format!("cache.max_size={}", settings.cache_bytes));
    }
    set.push(format!("cache.memory={}", settings.memory_bytes));
    match plan.ports.s3 {
        Some(port) => {
            set.push("s3.enabled=true".to_owned());
            set.push(format!("s3.listen=127.0.0.1:{port}"));
        }
        None => set.push("s3.enabled=false".to_owned()),
    }
    match settings.s3 {
        S3::Anonymous => set.push("s3.access=anonymous".to_owned()),
        S3::On => {
            set.push(format!("s3.credentials_file={state}/credentials"));
            // Loopback is the pod's own, and its containers cannot know the token of a start.
            set.push("s3.credentials_token=false".to_owned());
        }
        S3::Off => {}
    }
    set.push("admin.enabled=true".to_owned());
    set.push(format!("admin.listen=127.0.0.1:{}", plan.ports.admin));
    match plan.ports.metrics {
        Some(port) => {
            set.push("metrics.enabled=true".to_owned());
            set.push(format!("metrics.addr=:{port}"));
        }
        None => set.push("metrics.enabled=false".to_owned()),
    }
    set.push(format!("drain_timeout={}s", settings.flush_seconds));
    if let Some(level) = &settings.log_level {
        set.push(format!("log.level={level}"));
    }
    arguments.extend(set.into_iter().flat_map(|one| ["--set".to_owned(), one]));
    arguments
}

/// The worker.
fn worker(plan: &Plan<'_>) -> Value {
    let settings = plan.settings;
    let mut mounts = vec![json!({"name": RUN_VOLUME, "mountPath": RUN_DIRECTORY})];
    let (wait, timeout) = WORKER_PROBE;
    let wait = format!("{wait}s");
    let point = format!("{MOUNT_DIRECTORY}/{MOUNT_SUBDIRECTORY}");
    let s3 = plan.ports.s3.map(|port| format!("127.0.0.1:{port}"));
    let mut ready = vec!["probe", "--ready"];
    match settings.mode {
        Mode::Sidecar => {
            mounts.push(json!({
                "name": MOUNT_VOLUME, "mountPath": MOUNT_DIRECTORY, "mountPropagation": "HostToContainer",
            }));
            ready.extend(["--mount", &point]);
        }
        Mode::Csi => mounts.push(json!({"name": SOCKET_VOLUME, "mountPath": SOCKET_DIRECTORY})),
        Mode::S3 => {}
    }
    if let Some(address) = &s3 {
        ready.extend(["--s3", address]);
    }
    ready.extend(["--wait", &wait]);
    if settings.cache != Cache::Memory {
        mounts.push(json!({"name": CACHE_VOLUME, "mountPath": CACHE_DIRECTORY}));
    }
    mounts.push(json!({"name": CONFIG_VOLUME, "mountPath": CONFIG_DIRECTORY, "readOnly": true}));
    if !settings.tokens.is_empty() {
        mounts
            .push(json!({"name": TOKENS_VOLUME, "mountPath": TOKENS_DIRECTORY, "readOnly": true}));
    }
    let storage =
        (settings.cache == Cache::EmptyDir).then(|| empty_dir_bytes(settings.cache_bytes));
    let memory = worker_bytes(settings.memory_bytes);
    let over = &plan.defaults.resources.worker;
    let mut body = json!({
        "command": command(worker_arguments(plan)),
        "restartPolicy": "Always",
        "securityContext": restricted(),
        // Where `warpdrive probe` and `warpdrive stats` in this container ask.
        "env": [{"name": "WARPDRIVE_ADMIN", "value": format!("http://127.0.0.1:{}", plan.ports.admin)}],
        "resources": plan.budget.resources(settings.cpu_milli, memory, storage, over),
        "volumeMounts": mounts,
        "startupProbe": exec_probe(ready, timeout, 6),
        // The admin endpoint alone: an origin that hangs must not restart a healthy worker.
        "livenessProbe": {
            "exec": {"command": command(["probe", "--live"])},
            "periodSeconds": 10, "timeoutSeconds": 5, "successThreshold": 1, "failureThreshold": 6,
        },
    });
    let mut ports = Vec::new();
    if plan.host_network {
        // Declared, so that the scheduler puts no two pods with the same ports on one node.
        for (name, port) in
            [("warpdrive-s3", plan.ports.s3), ("warpdrive-admin", Some(plan.ports.admin))]
        {
            if let Some(port) = port {
                ports.push(json!({"name": name, "containerPort": port, "hostPort": port, "protocol": "TCP"}));
            }
        }
    }
    if let Some(port) = plan.ports.metrics {
        ports.push(json!({"name": METRICS_PORT_NAME, "containerPort": port, "protocol": "TCP"}));
    }
    if !ports.is_empty() {
        body["ports"] = Value::Array(ports);
    }
    if !settings.env_from.is_empty() {
        let from = |object: &Object| match object {
            Object::ConfigMap(name) => json!({"configMapRef": {"name": name}}),
            Object::Secret(name) => json!({"secretRef": {"name": name}}),
        };
        body["envFrom"] = settings.env_from.iter().map(from).collect();
    }
    container(plan, WORKER_CONTAINER, body)
}

/// Name of the port that a `PodMonitor` asks for.
const METRICS_PORT_NAME: &str = "wd-metrics";

fn warmer(plan: &Plan<'_>, name: &str, arguments: &[String]) -> Value {
    container(
        plan,
        name,
        json!({
            "command": command(arguments),
            "securityContext": restricted(),
            "resources": plan.budget.resources(SMALL_MILLI, WARM_BYTES, None, &plan.defaults.resources.warm),
        }),
    )
}

/// The containers that the plan needs, in order.
pub(super) fn wanted(plan: &Plan<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    if plan.settings.mode == Mode::Sidecar {
        all.push(mountd(plan));
    }
    all.push(worker(plan));
    all.extend(plan.warm.iter().map(|(name, arguments)| warmer(plan, name, arguments)));
    all
}

/// Variables and mounts that others gave to one of ours: those that clouds hand identities to, by
/// webhooks that may run after this one. The holder gets none: it is privileged.
fn added(ours: &mut Value, old: &Value, list: &str, key: &str) {
    let wanted: Vec<Value> = array(ours, list).to_vec();
    let others = array(old, list).iter().filter(|item| {
        let name = text(item, "name").unwrap_or("");
        let is_new = !wanted.iter().any(|one| one.get(key) == item.get(key));
        is_new && !name.starts_with("WARPDRIVE_") && !super::volumes::is_ours(name)
    });
    let others: Vec<Value> = others.cloned().collect();
    if let (false, Some(ours)) = (others.is_empty(), ours.as_object_mut()) {
        array_mut(ours, list).extend(others);
    }
}

/// What an earlier form of one of our containers keeps: what Kubernetes itself filled in, and, where
/// it has no privileges, what [`added`] says.
fn kept(mut ours: Value, old: &Value) -> Value {
    if let (None, Some(policy)) = (text(&ours, "imagePullPolicy"), text(old, "imagePullPolicy")) {
        ours["imagePullPolicy"] = json!(policy);
    }
    // A request that is missing becomes its limit, and a namespace may have defaults.
    for part in ["requests", "limits"] {
        for name in ["cpu", "memory"] {
            let amount = old.get("resources").and_then(|all| all.get(part)?.get(name));
            if let Some(amount) = amount.filter(|amount| amount.is_string())
                && ours["resources"][part].get(name).is_none()
            {
                ours["resources"][part][name] = amount.clone();
            }
        }
    }
    if text(&ours, "name") != Some(MOUNTD_CONTAINER) {
        added(&mut ours, old, "env", "name");
        added(&mut ours, old, "volumeMounts", "mountPath");
    }
    ours
}

/// Puts them behind the leading containers of a mesh and before everybody else's.
pub(super) fn put(spec: &mut Map<String, Value>, plan: &Plan<'_>) {
    let there = array_mut(spec, "initContainers");
    let (mut old, mut others): (Vec<Value>, Vec<Value>) =
        there.drain(..).partition(|container| text(container, "name").is_some_and(is_ours));
    let mesh = others.iter().take_while(|container| plan.is_mesh(container)).count();
    let ours: Vec<Value> = wanted(plan)
        .into_iter()
        .map(|wanted| match old.iter().position(|old| text(old, "name") == text(&wanted, "name")) {
            Some(at) => kept(wanted, &old.swap_remove(at)),
            None => wanted,
        })
        .collect();
    let rest = others.split_off(mesh);
    there.extend(others.into_iter().chain(ours).chain(rest));
}
