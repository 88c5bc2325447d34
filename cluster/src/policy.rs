//! Injection without a webhook: a `MutatingAdmissionPolicy` that makes the same pods.
//!
//! Invariant: containers, volumes, variables and mounts in the policy are what `inject` makes of a
//! sample pod, with expressions in place of what the sample was given; no part is written twice. What
//! the expressions cannot do (other annotations, the host's network) is denied by a second policy with
//! one sentence, not ignored.

mod expression;
mod mutation;
mod rules;

use serde_json::{Value, json};

use crate::inject::{Defaults, Denial};
use crate::names::{ANNOTATION_PREFIX, INJECT_LABEL, UNWANTED, WANTED};
use crate::settings::Settings;
use crate::settings::annotations::ANNOTATIONS;
use expression::text;

/// Most containers, and mounts of each, that the expressions look at: they know no loops.
const MOST_CONTAINERS: usize = 32;
const MOST_MOUNTS: usize = 4;

/// The policies and their bindings as YAML documents, for an API server that serves
/// `admissionregistration.k8s.io/VERSION` for `MutatingAdmissionPolicy`: `v1` since Kubernetes 1.36.
///
/// # Errors
/// Defaults that no policy can express, in one sentence.
pub fn policy(defaults: &Defaults, version: &str) -> Result<String, Denial> {
    let settings = Settings::of(&Value::Null, defaults)?;
    if settings.containers.is_some() {
        return Err(Denial::of(
            "containers",
            "is not possible with a policy, which serves all containers: leave it out",
        ));
    }
    let documents = [
        mutation::mutating(defaults, &settings, version)?,
        bindings("MutatingAdmissionPolicyBinding", version, "namespace", None),
        bindings("MutatingAdmissionPolicyBinding", version, "pod", None),
        rules::validating(defaults, &settings),
        bindings("ValidatingAdmissionPolicyBinding", "v1", "namespace", Some("Deny")),
        bindings("ValidatingAdmissionPolicyBinding", "v1", "pod", Some("Deny")),
    ];
    let printed: Result<Vec<String>, _> =
        documents.iter().map(crate::inject::yaml::print).collect();
    Ok(printed.map_err(|e| Denial::new(format!("the policy {e}")))?.join("---\n"))
}

const NAME: &str = "warpdrive-inject";

/// Pods that are created, but for those whose label says no.
fn matched() -> Value {
    json!({
        "objectSelector": {"matchExpressions": [
            {"key": INJECT_LABEL, "operator": "NotIn", "values": [UNWANTED]},
        ]},
        "resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
        ],
    })
}

/// One of two bindings: a selector cannot say "or".
fn bindings(kind: &str, version: &str, by: &str, action: Option<&str>) -> Value {
    let selector = |operator: &str| json!({"matchExpressions": [{"key": INJECT_LABEL, "operator": operator, "values": [WANTED]}]});
    let matched = match by {
        "namespace" => json!({"namespaceSelector": selector("In")}),
        _ => json!({"namespaceSelector": selector("NotIn"), "objectSelector": selector("In")}),
    };
    let mut spec = json!({"policyName": NAME, "matchResources": matched});
    if let Some(action) = action {
        spec["validationActions"] = json!([action]);
    }
    json!({
        "apiVersion": format!("admissionregistration.k8s.io/{version}"),
        "kind": kind,
        "metadata": {"name": format!("{NAME}-{by}")},
        "spec": spec,
    })
}

fn names(all: &[impl AsRef<str>]) -> String {
    let all: Vec<String> = all.iter().map(|name| text(name.as_ref())).collect();
    format!("[{}]", all.join(", "))
}

/// What an annotation says, or its default.
fn annotation(defaults: &Defaults, name: &str) -> String {
    let key = text(&format!("{ANNOTATION_PREFIX}{name}"));
    let given = defaults
        .annotations
        .iter()
        .find(|(key, _)| key.strip_prefix(ANNOTATION_PREFIX).unwrap_or(key) == name);
    let default = given.map(|(_, value)| value.trim());
    let default =
        default.or_else(|| ANNOTATIONS.iter().find(|one| one.name == name).map(|one| one.default));
    format!(
        "({key} in variables.annotations ? variables.annotations[{key}].trim() : {})",
        text(default.unwrap_or(""))
    )
}

/// Variables of both policies.
fn variables(settings: &Settings, defaults: &Defaults) -> Vec<(&'static str, String)> {
    let read = |name: &str| annotation(defaults, name);
    let bytes = |name: &str, least: u64| {
        let value = read(name);
        let fallback = match name {
            "memory" => settings.memory_bytes,
            _ => settings.cache_bytes,
        };
        // A bad one is denied by the other policy, with a sentence.
        format!(
            "(isQuantity({value}) && quantity({value}).isInteger() && quantity({value}).asInteger() >= {least}) ? quantity({value}).asInteger() : {fallback}"
        )
    };
    let given = "has(object.metadata.annotations) ? object.metadata.annotations : {}";
    let mut all = vec![("annotations", given.to_owned()), ("config", read("config"))];
    all.push(("isSecret", "variables.config.startsWith(\"secret:\")".to_owned()));
    all.push((
        "configPath",
        "variables.config.contains(\":\") ? variables.config.split(\":\")[1] : variables.config"
            .to_owned(),
    ));
    all.push(("configName", "variables.configPath.split(\"/\")[0]".to_owned()));
    all.push((
        "configKey",
        format!(
            "variables.configPath.contains(\"/\") ? variables.configPath.split(\"/\")[1] : {}",
            text(crate::names::CONFIG_KEY)
        ),
    ));
    all.push(("paths", format!(
        "{}.split(\",\").map(p, p.trim()).map(p, p.endsWith(\"/\") ? p.substring(0, size(p) - 1) : p)",
        read("mounts")
    )));
    all.push(("cacheBytes", bytes("cache-size", 64 << 20)));
    all.push(("memoryBytes", bytes("memory", 16 << 20)));
    all
}

fn listed(variables: Vec<(&'static str, String)>) -> Value {
    variables
        .into_iter()
        .map(|(name, expression)| json!({"name": name, "expression": expression}))
        .collect()
}

/// Whether the pod has files of its author's that a group for the cache would be given to.
fn other_claims() -> String {
    let claims: Vec<String> =
        crate::inject::CLAIMS.iter().map(|kind| format!("has(v.{kind})")).collect();
    format!(
        "(has(object.spec.volumes) && object.spec.volumes.exists(v, v.name != {} && ({})))",
        text(crate::names::CACHE_VOLUME),
        claims.join(" || ")
    )
}

#[cfg(test)]
mod tests;
