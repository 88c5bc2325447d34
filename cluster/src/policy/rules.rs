//! The policy that denies what the first one cannot do, each with one sentence.
//!
//! Invariant: what no expression can do is denied, never ignored.

use serde_json::{Value, json};

use super::expression::text;
use super::{MOST_CONTAINERS, MOST_MOUNTS, NAME, listed, matched, names, other_claims, variables};
use crate::inject::Defaults;
use crate::names::{ANNOTATION_PREFIX, INJECT_LABEL, STATUS_ANNOTATION};
use crate::settings::{Mode, S3, Settings};

/// Annotations that the policy's expressions read; the rest is fixed by the administrator's defaults.
const SUPPORTED: &[&str] = &["config", "mounts", "cache-size", "memory"];

/// What has to hold, and the sentence where it does not.
type Rule = (String, String);

/// What holds for each container `c`, and for each init container but `ours`.
fn everywhere(ours: &str, holds: &str) -> String {
    format!(
        "object.spec.containers.all(c, {holds}) && (!has(object.spec.initContainers) || object.spec.initContainers.all(c, {ours} || {holds}))"
    )
}

/// Rules of the annotations.
fn rules_of_annotations(settings: &Settings) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut rule = |expression: String, sentence: String| rules.push((expression, sentence));
    let supported: Vec<String> = SUPPORTED
        .iter()
        .filter(|name| settings.mode != Mode::S3 || **name != "mounts")
        .filter(|name| settings.cache != crate::settings::Cache::Memory || **name != "cache-size")
        .map(|name| format!("{ANNOTATION_PREFIX}{name}"))
        .collect();
    let mut allowed = supported.clone();
    allowed.push(STATUS_ANNOTATION.to_owned());
    rule(
        format!(
            "variables.annotations.all(a, !a.startsWith({}) || a in {})",
            text(ANNOTATION_PREFIX),
            names(&allowed)
        ),
        format!(
            "annotations {ANNOTATION_PREFIX}...: with injection by policy, only these are possible: {}",
            supported.join(", ")
        ),
    );
    let key = |name: &str| text(&format!("{ANNOTATION_PREFIX}{name}"));
    let given = |name: &str, condition: &str| {
        let key = key(name);
        format!(
            "!({key} in variables.annotations) || [variables.annotations[{key}].trim()].all(v, {condition})"
        )
    };
    for (name, least, printed) in
        [("cache-size", 64_u64 << 20, "64Mi"), ("memory", 16 << 20, "16Mi")]
    {
        rule(
            given(
                name,
                &format!(
                    "isQuantity(v) && quantity(v).isInteger() && quantity(v).asInteger() >= {least}"
                ),
            ),
            format!(
                "annotation {ANNOTATION_PREFIX}{name}: write a quantity of Kubernetes of at least {printed}, such as 50Gi"
            ),
        );
    }
    rule(
        given(
            "config",
            "v.matches(\"^((secret|configmap):)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9_-][-._A-Za-z0-9]*)?$\")",
        ),
        format!(
            "annotation {ANNOTATION_PREFIX}config: write NAME, NAME/KEY, secret:NAME or secret:NAME/KEY"
        ),
    );
    rule(
        given(
            "mounts",
            &format!(
                "size(v.split(\",\")) <= {MOST_MOUNTS} && v.split(\",\").all(p, p.trim().matches(\"^(/[^/:,]+)+/?$\") && !p.trim().matches(\"/[.][.]?(/|$)\") && !p.trim().matches(\"^/(proc|sys|dev)(/|$)|^/(etc|bin|usr|lib)/?$\"))"
            ),
        ),
        format!(
            "annotation {ANNOTATION_PREFIX}mounts: write at most {MOST_MOUNTS} absolute paths such as /data, separated by commas, without `..`, `//` and `:`"
        ),
    );
    rules
}

/// Rules of the pod beside them.
fn rules_of_pods(settings: &Settings) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut rule = |expression: String, sentence: String| rules.push((expression, sentence));
    let os = "(has(object.spec.os) && object.spec.os.name == \"windows\")";
    rule(
        format!("!{os}"),
        format!("label {INJECT_LABEL}: this is a pod for Windows, only Linux is supported"),
    );
    if settings.mode != Mode::S3 {
        rule(
            "!has(object.spec.hostUsers) || object.spec.hostUsers".to_owned(),
            format!(
                "mode {} is not possible with hostUsers: false, because mounting takes privileges on the node: remove hostUsers",
                settings.mode.name()
            ),
        );
    }
    rule(
        "!has(object.spec.hostNetwork) || !object.spec.hostNetwork".to_owned(),
        format!(
            "label {INJECT_LABEL}: hostNetwork is not possible with injection by policy, use the webhook or remove it"
        ),
    );
    rule(
        "!has(object.spec.resources)".to_owned(),
        format!(
            "label {INJECT_LABEL}: resources of a whole pod are not possible with injection by policy, use the webhook or give them to its containers"
        ),
    );
    rule(
        format!(
            "size(object.spec.containers) <= {MOST_CONTAINERS} && (!has(object.spec.initContainers) || size(object.spec.initContainers) <= {MOST_CONTAINERS})"
        ),
        format!(
            "label {INJECT_LABEL}: at most {MOST_CONTAINERS} containers are possible with injection by policy"
        ),
    );
    if settings.mode != Mode::S3 {
        let ours = text(crate::names::MOUNT_VOLUME);
        let free = format!(
            "!has(c.volumeMounts) || c.volumeMounts.all(m, m.name == {ours} || !variables.paths.exists(p, m.mountPath.startsWith(p + \"/\")))"
        );
        let theirs = text(crate::names::WORKER_CONTAINER);
        rule(
            everywhere(&format!("c.name.startsWith({theirs})"), &free),
            format!(
                "annotation {ANNOTATION_PREFIX}mounts: a container has a volume of its own below one of the paths, choose another path"
            ),
        );
    }
    let mut ports = vec![settings.admin_port.unwrap_or(crate::names::ADMIN_PORT).to_string()];
    if settings.s3 != S3::Off {
        ports.push(settings.s3_port.unwrap_or(crate::names::S3_PORT).to_string());
    }
    if settings.metrics != Some(false) {
        ports.push(crate::names::METRICS_PORT.to_string());
    }
    let ports = ports.join(", ");
    let free = format!(
        "!has(c.ports) || c.ports.all(p, !(p.containerPort in [{ports}]) || (has(p.protocol) && p.protocol != \"TCP\"))"
    );
    let worker = text(crate::names::WORKER_CONTAINER);
    rule(
        everywhere(&format!("c.name == {worker}"), &free),
        format!(
            "label {INJECT_LABEL}: one of the ports {ports} is used by a container, choose another there"
        ),
    );
    rules
}

/// Rules of volumes: those of ours, and those that a group would be given to.
fn rules_of_volumes(settings: &Settings) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut rule = |expression: String, sentence: String| rules.push((expression, sentence));
    let mount = text(crate::names::MOUNT_VOLUME);
    let theirs = text(crate::names::WORKER_CONTAINER);
    let free = format!(
        "(!has(c.volumeMounts) || c.volumeMounts.all(m, m.name == {mount} || !(m.name in {})))",
        names(crate::inject::VOLUMES)
    );
    rule(
        everywhere(&format!("c.name.startsWith({theirs})"), &free),
        format!(
            "label {INJECT_LABEL}: a container mounts a volume of the worker's: rename the volume, or remove the mount"
        ),
    );
    if matches!(
        settings.cache,
        crate::settings::Cache::Ephemeral(_) | crate::settings::Cache::Claim(_)
    ) {
        rule(
            format!(
                "(has(object.spec.securityContext) && has(object.spec.securityContext.fsGroup)) || !{}",
                other_claims()
            ),
            format!(
                "annotation {ANNOTATION_PREFIX}cache: this one needs a securityContext.fsGroup, which the pod has to choose, as it has claims of its own"
            ),
        );
    }
    rules
}

/// The last rule: the other policy was there.
fn rule_of_injection() -> Rule {
    let expression = format!("{} in variables.annotations", text(STATUS_ANNOTATION));
    let sentence = format!(
        "label {INJECT_LABEL}: the pod was not injected, does the MutatingAdmissionPolicy {NAME} exist"
    );
    (expression, sentence)
}

/// The policy that denies what the first one cannot do.
pub(super) fn validating(defaults: &Defaults, settings: &Settings) -> Value {
    let mut rules = rules_of_annotations(settings);
    rules.extend(rules_of_pods(settings));
    rules.extend(rules_of_volumes(settings));
    rules.push(rule_of_injection());
    let validations: Vec<Value> = rules
        .into_iter()
        .map(|(expression, message)| json!({"expression": expression, "message": message}))
        .collect();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": NAME},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": matched(),
            "variables": listed(variables(settings, defaults)),
            "validations": validations,
        },
    })
}
