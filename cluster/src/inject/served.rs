//! The author's containers: the mount and the variables that point to the S3 endpoint.
//!
//! Invariant: a container only gains; what it had stays as it was. A path or port of its own that is
//! in the way is a denial, a variable of its own is respected.

use serde_json::{Map, Value, json};

use super::shape::{array, array_mut, text};
use super::volumes::is_ours;
use super::{Mode, Plan, Ports};
use crate::names::{INJECT_LABEL, MOUNT_SUBDIRECTORY, MOUNT_VOLUME, UNWANTED};
use crate::settings::{Denial, S3, quoted, within};

/// What clients sign for; the endpoint's own default.
const REGION: &str = "us-east-1";
/// Where clients are sent. A container that has one of them has an endpoint of its own.
const ENDPOINTS: &[&str] = &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
const REGIONS: &[&str] = &["AWS_REGION", "AWS_DEFAULT_REGION"];
/// Where clients find credentials. A container that has one of them has credentials of its own.
const CREDENTIALS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Those of a role in a cloud: its keys are of no use at the pod's S3 endpoint, which knows its own.
const ROLES: &[&str] = &[
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Variables of clients of S3, by what they say.
pub(crate) struct Variables {
    pub(crate) endpoints: &'static [&'static str],
    pub(crate) regions: &'static [&'static str],
    pub(crate) credentials: &'static [&'static str],
    /// Those of `credentials` that only an anonymous endpoint goes with.
    pub(crate) roles: &'static [&'static str],
}

/// For the policy, which follows the same rules.
pub(crate) const VARIABLES: Variables =
    Variables { endpoints: ENDPOINTS, regions: REGIONS, credentials: CREDENTIALS, roles: ROLES };

/// Refuses ports that a container of the author's has.
pub(super) fn ports_are_free(spec: &Value, plan: &Plan<'_>) -> Result<(), Denial> {
    let wanted = [
        ("s3-port", plan.ports.s3),
        ("admin-port", Some(plan.ports.admin)),
        ("metrics", plan.ports.metrics),
    ];
    for list in ["containers", "initContainers"] {
        for container in array(spec, list) {
            let name = text(container, "name").unwrap_or("");
            if super::containers::is_ours(name) {
                continue;
            }
            for port in array(container, "ports")
                .iter()
                // Every listener of ours is TCP.
                .filter(|port| text(port, "protocol").is_none_or(|protocol| protocol == "TCP"))
                .filter_map(|port| port.get("containerPort")?.as_u64())
            {
                let taken = wanted.iter().find(|(_, wanted)| wanted.map(u64::from) == Some(port));
                if let Some((annotation, _)) = taken {
                    let name = quoted(name);
                    let instead = match *annotation {
                        "metrics" => "write off, or change the container's port",
                        _ => "choose another port",
                    };
                    return Err(Denial::of(
                        annotation,
                        format_args!("port {port} is used by container {name}, {instead}"),
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Gives mount and variables to every chosen container.
pub(super) fn serve(
    spec: &mut Map<String, Value>,
    plan: &Plan<'_>,
    warnings: &mut Vec<String>,
) -> Result<(), Denial> {
    if let Some(names) = &plan.settings.containers {
        let there: Vec<&str> = ["containers", "initContainers"]
            .into_iter()
            .filter_map(|list| spec.get(list).and_then(Value::as_array))
            .flatten()
            .filter_map(|container| text(container, "name"))
            .collect();
        if let Some(name) = names.iter().find(|name| !there.contains(&name.as_str())) {
            let name = quoted(name);
            return Err(Denial::of(
                "containers",
                format_args!("the pod has no container {name}, write names of its containers"),
            ));
        }
    }
    if plan.host_network {
        let admin = plan.ports.admin;
        warnings.push(match plan.ports.s3 {
            Some(_) => format!(
                "hostNetwork: every process of the node can reach the pod's S3 endpoint and its admin endpoint (port {admin}), which hands out the S3 endpoint's credentials; write warpdrive.io/s3: \"off\" where that is too many"
            ),
            None => format!(
                "hostNetwork: every process of the node can reach the pod's admin endpoint (port {admin}), which tells statistics and fetches ahead"
            ),
        });
    }
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let name = text(container, "name").unwrap_or("").to_owned();
            if super::containers::is_ours(&name) {
                continue;
            }
            let chosen = match &plan.settings.containers {
                Some(names) => names.contains(&name),
                None => !plan.is_foreign(container),
            };
            let container =
                container.as_object_mut().expect("shape::check has seen that it is an object");
            mount(container, plan, &name, chosen)?;
            if chosen {
                if let Some(role) = variables(container, plan) {
                    warnings.push(format!(
                        "container {}: has a role of its own ({role}), whose credentials the pod's S3 endpoint does not know, so it is not sent there; write warpdrive.io/s3: anonymous to send it",
                        quoted(&name)
                    ));
                }
                let from = container.get("envFrom").and_then(Value::as_array);
                if plan.ports.s3.is_some() && from.is_some_and(|from| !from.is_empty()) {
                    warnings.push(format!(
                        "container {}: variables of envFrom are not seen by injection, which sets AWS_* variables over them",
                        quoted(&name)
                    ));
                }
            }
        }
    }
    Ok(())
}

fn in_use(container: &str, volume: &str) -> Denial {
    Denial::new(format!(
        "container {} mounts a volume `{volume}`, a name that injection needs: rename it, or set the label {INJECT_LABEL} to \"{UNWANTED}\"",
        quoted(container)
    ))
}

/// The mount at each wished path, and nowhere else.
fn mount(
    container: &mut Map<String, Value>,
    plan: &Plan<'_>,
    name: &str,
    chosen: bool,
) -> Result<(), Denial> {
    let settings = plan.settings;
    let devices = container.get("volumeDevices").and_then(Value::as_array);
    let device = devices.into_iter().flatten().filter_map(|device| text(device, "name"));
    if let Some(volume) = device.into_iter().find(|volume| is_ours(volume)) {
        return Err(in_use(name, volume));
    }
    let paths: &[String] = if chosen && settings.mode != Mode::S3 { &settings.mounts } else { &[] };
    let bare = |path: &str| path.trim_end_matches('/').to_owned();
    let has = container
        .get("volumeMounts")
        .and_then(Value::as_array)
        .is_some_and(|mounts| !mounts.is_empty());
    if !has && paths.is_empty() {
        return Ok(());
    }
    let mounts = array_mut(container, "volumeMounts");
    let ours = |mount: &Value| text(mount, "name") == Some(MOUNT_VOLUME);
    // Sockets, cache and tokens are the worker's alone; an earlier injection gave out the mount at most.
    let taken = mounts
        .iter()
        .filter_map(|mount| text(mount, "name"))
        .find(|volume| is_ours(volume) && (plan.before.is_none() || *volume != MOUNT_VOLUME));
    if let Some(volume) = taken {
        return Err(in_use(name, volume));
    }
    mounts.retain(|mount| {
        !ours(mount) || text(mount, "mountPath").is_some_and(|path| paths.contains(&bare(path)))
    });
    for path in paths {
        let clash = mounts.iter().filter(|mount| !ours(mount)).find_map(|mount| {
            let theirs = text(mount, "mountPath")?;
            within(&bare(theirs), path).then_some(theirs)
        });
        if let Some(theirs) = clash {
            return Err(Denial::of(
                "mounts",
                format_args!(
                    "container {} has a volume of its own at {}, in the way of {}: choose another path, or other containers",
                    quoted(name),
                    quoted(theirs),
                    quoted(path)
                ),
            ));
        }
        let mut wanted = json!({
            "name": MOUNT_VOLUME,
            "mountPath": path,
            "mountPropagation": "HostToContainer",
            "readOnly": settings.read_only,
        });
        if settings.mode == Mode::Sidecar {
            wanted["subPath"] = json!(MOUNT_SUBDIRECTORY);
        }
        match mounts
            .iter_mut()
            .find(|mount| text(mount, "mountPath").is_some_and(|at| bare(at) == *path))
        {
            Some(there) => *there = wanted,
            None => mounts.push(wanted),
        }
    }
    Ok(())
}

/// What we would set.
fn wanted(plan: &Plan<'_>, ports: Ports) -> Vec<(&'static str, String)> {
    let Some(s3) = ports.s3 else { return Vec::new() };
    let mut all = vec![("AWS_ENDPOINT_URL_S3", format!("http://127.0.0.1:{s3}"))];
    all.extend(REGIONS.iter().map(|name| (*name, REGION.to_owned())));
    if plan.settings.s3 == S3::On {
        let uri = format!("http://127.0.0.1:{}/credentials", ports.admin);
        all.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri));
    }
    all
}

/// Variables for clients of S3, unless the container has its own; the variable of a role for which it
/// gets none.
fn variables(container: &mut Map<String, Value>, plan: &Plan<'_>) -> Option<&'static str> {
    let now = wanted(plan, plan.ports);
    if now.is_empty() {
        return None;
    }
    // What an earlier injection set, with the ports that it chose.
    let before = plan.before.and_then(|before| before.ports).map(|ports| wanted(plan, ports));
    let before = before.unwrap_or_default();
    let is_ours = |name: &str, value: Option<&str>| {
        let same = |(n, v): &(&str, String)| *n == name && Some(v.as_str()) == value;
        now.iter().any(same) || before.iter().any(same)
    };
    let there = container.get("env").and_then(Value::as_array);
    let own = |names: &[&str]| {
        there.is_some_and(|env| {
            env.iter().any(|variable| {
                let name = text(variable, "name").unwrap_or("");
                names.contains(&name) && !is_ours(name, text(variable, "value"))
            })
        })
    };
    // Keys and region of ours mean nothing to another endpoint, and would hide what it needs.
    if own(ENDPOINTS) {
        return None;
    }
    if plan.settings.s3 == S3::On
        && let Some(role) = ROLES.iter().copied().find(|role| own(&[role]))
    {
        // Added by somebody since an earlier injection, which set ours.
        let sent = |(name, value): &(&str, String)| {
            let here = |one: &Value| {
                text(one, "name") == Some(name) && text(one, "value") == Some(value.as_str())
            };
            there.is_some_and(|env| env.iter().any(here))
        };
        if before.first().is_some_and(sent) {
            let is_ours = |variable: &Value| {
                before.iter().any(|(name, value)| {
                    text(variable, "name") == Some(name)
                        && text(variable, "value") == Some(value.as_str())
                })
            };
            array_mut(container, "env").retain(|variable| !is_ours(variable));
        }
        return Some(role);
    }
    let skipped: Vec<&str> =
        [REGIONS, CREDENTIALS].into_iter().filter(|names| own(names)).flatten().copied().collect();
    let set: Vec<_> = now.iter().filter(|(name, _)| !skipped.contains(name)).collect();
    let env = array_mut(container, "env");
    for (name, value) in set {
        match env.iter_mut().find(|variable| text(variable, "name") == Some(name)) {
            Some(variable) => {
                if text(variable, "value") != Some(value) {
                    variable["value"] = json!(value);
                }
            }
            None => env.push(json!({"name": name, "value": value})),
        }
    }
    None
}
