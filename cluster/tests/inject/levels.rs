//! The Pod Security Standards, as published (levels *baseline* and *restricted*, Linux).
//!
//! Invariant: each control of the published page is a line here; a pod with no complaint passes.

use serde_json::{Value, json};

/// Capabilities that *baseline* lets a container add.
const BASELINE_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const RESTRICTED_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];

fn list<'a>(of: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    of.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn containers(pod: &Value) -> Vec<&Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|name| list(&pod["spec"], name))
        .collect()
}

/// A pod with only the containers and volumes whose names are chosen.
pub(crate) fn only(pod: &Value, chosen: impl Fn(&str) -> bool) -> Value {
    let mut pod = pod.clone();
    for name in ["initContainers", "containers", "volumes"] {
        if let Some(items) = pod["spec"].get_mut(name).and_then(Value::as_array_mut) {
            items.retain(|item| item["name"].as_str().is_some_and(&chosen));
        }
    }
    pod
}

/// What *baseline* forbids.
pub(crate) fn baseline(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let spec = &pod["spec"];
    for name in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[name] == json!(true) {
            found.push(name.to_owned());
        }
    }
    for volume in list(spec, "volumes").filter(|volume| volume.get("hostPath").is_some()) {
        found.push(format!("volume {}: hostPath", volume["name"]));
    }
    for sysctl in list(&spec["securityContext"], "sysctls") {
        if !SAFE_SYSCTLS.iter().any(|safe| sysctl["name"] == *safe) {
            found.push(format!("sysctl {}", sysctl["name"]));
        }
    }
    let mut context = |who: &str, context: &Value| {
        if context["seccompProfile"]["type"] == "Unconfined" {
            found.push(format!("{who}: seccomp"));
        }
        if context["appArmorProfile"]["type"] == "Unconfined" {
            found.push(format!("{who}: appArmor"));
        }
        if context["windowsOptions"]["hostProcess"] == json!(true) {
            found.push(format!("{who}: hostProcess"));
        }
        let selinux = &context["seLinuxOptions"];
        let kinds =
            ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
        if !kinds.contains(&selinux["type"].as_str().unwrap_or(""))
            || selinux.get("user").is_some()
            || selinux.get("role").is_some()
        {
            found.push(format!("{who}: seLinux"));
        }
    };
    context("pod", &spec["securityContext"]);
    for container in containers(pod) {
        context("container", &container["securityContext"]);
    }
    for container in containers(pod) {
        let name = container["name"].as_str().unwrap_or("");
        let context = &container["securityContext"];
        if context["privileged"] == json!(true) {
            found.push(format!("container {name}: privileged"));
        }
        for added in list(&context["capabilities"], "add") {
            if !BASELINE_CAPABILITIES.iter().any(|allowed| added == allowed) {
                found.push(format!("container {name}: capability {added}"));
            }
        }
        if list(container, "ports").any(|port| port["hostPort"].as_u64().unwrap_or(0) != 0) {
            found.push(format!("container {name}: hostPort"));
        }
        if !["", "Default"].contains(&context["procMount"].as_str().unwrap_or("")) {
            found.push(format!("container {name}: procMount"));
        }
    }
    found
}

/// What *restricted* forbids, all of *baseline* included.
pub(crate) fn restricted(pod: &Value) -> Vec<String> {
    let mut found = baseline(pod);
    let spec = &pod["spec"];
    for volume in list(spec, "volumes") {
        for kind in volume.as_object().unwrap().keys().filter(|key| *key != "name") {
            if !RESTRICTED_VOLUMES.contains(&kind.as_str()) {
                found.push(format!("volume {}: {kind}", volume["name"]));
            }
        }
    }
    let of_pod = &spec["securityContext"];
    if of_pod["runAsUser"] == json!(0) {
        found.push("pod: runAsUser".to_owned());
    }
    for container in containers(pod) {
        let name = container["name"].as_str().unwrap_or("");
        let context = &container["securityContext"];
        let either = |field: &str| context.get(field).or(of_pod.get(field)).unwrap_or(&Value::Null);
        if context["allowPrivilegeEscalation"] != json!(false) {
            found.push(format!("container {name}: allowPrivilegeEscalation"));
        }
        if *either("runAsNonRoot") != json!(true) {
            found.push(format!("container {name}: runAsNonRoot"));
        }
        if context["runAsUser"] == json!(0) {
            found.push(format!("container {name}: runAsUser"));
        }
        let seccomp = either("seccompProfile")["type"].as_str().unwrap_or("");
        if !["RuntimeDefault", "Localhost"].contains(&seccomp) {
            found.push(format!("container {name}: seccomp"));
        }
        let capabilities = &context["capabilities"];
        let drops_all = list(capabilities, "drop").any(|dropped| dropped == "ALL");
        if !drops_all || list(capabilities, "add").any(|added| added != "NET_BIND_SERVICE") {
            found.push(format!("container {name}: capabilities"));
        }
    }
    found
}
