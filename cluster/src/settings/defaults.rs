//! What the administrator decides: the webhook's settings file.
//!
//! Invariant: defaults that exist make settings of a pod without annotations. Unknown keys are
//! refused; so is what would be denied in a pod.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Denial, Settings};
use crate::names::ANNOTATION_PREFIX;

/// Containers of service meshes that come before ours: the network is theirs.
const MESH_CONTAINERS: &[&str] = &[
    "istio-init",
    "istio-validation",
    "istio-proxy",
    "linkerd-init",
    "linkerd-network-validator",
    "linkerd-proxy",
    "kuma-init",
    "kuma-validation",
    "kuma-sidecar",
    "consul-connect-inject-init",
    "consul-dataplane",
];

/// What pods get that do not say otherwise. As a file:
///
/// ```yaml
/// image: registry.example/warpdrive:0.1.0
/// image_pull_policy: IfNotPresent
/// image_pull_secrets: [registry]
/// annotations: {cache-size: 50Gi, mode: csi}
/// mesh_containers: [istio-init, istio-proxy]
/// resources: {worker: {requests: {cpu: "1"}}}
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// The image of every container that is added.
    #[serde(default = "image")]
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; without, Kubernetes decides from the tag.
    #[serde(default)]
    pub image_pull_policy: Option<String>,
    /// Names of Secrets in the pod's namespace, added to the pod's own.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// Values of annotations that a pod does not set; with or without `warpdrive.io/`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Init containers that stay before ours, and containers that get nothing.
    #[serde(default = "mesh_containers")]
    pub mesh_containers: Vec<String>,
    /// Over what is computed.
    #[serde(default)]
    pub resources: ResourceOverrides,
}

/// Resources in place of what is computed, for each container that is added.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceOverrides {
    /// Of the worker.
    #[serde(default)]
    pub worker: Quantities,
    /// Of the holder of the mount.
    #[serde(default)]
    pub mountd: Quantities,
    /// Of the container that fetches ahead.
    #[serde(default)]
    pub warm: Quantities,
}

/// Requests and limits, as Kubernetes has them; an empty value takes one away.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantities {
    /// What is reserved.
    #[serde(default)]
    pub requests: BTreeMap<String, String>,
    /// What is allowed.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
}

fn image() -> String {
    concat!("warpdrive:", env!("CARGO_PKG_VERSION")).to_owned()
}

fn mesh_containers() -> Vec<String> {
    MESH_CONTAINERS.iter().map(|name| (*name).to_owned()).collect()
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            image: image(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            annotations: BTreeMap::new(),
            mesh_containers: mesh_containers(),
            resources: ResourceOverrides::default(),
        }
    }
}

impl Defaults {
    /// Reads a settings file, YAML or JSON.
    ///
    /// # Errors
    /// What is wrong with it: a key that is not known, a value that no pod could have.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        // An empty file is null to YAML, and all defaults to people.
        let value: serde_yaml::Value =
            serde_yaml::from_str(text).map_err(|e| format!("is not YAML: {e}"))?;
        if value.is_null() {
            return Ok(Self::default());
        }
        let defaults: Self = serde_yaml::from_value(value).map_err(|e| e.to_string())?;
        defaults.check().map_err(|denial| denial.to_string())?;
        Ok(defaults)
    }

    /// Whether a pod without annotations can be injected with them.
    pub fn check(&self) -> Result<(), Denial> {
        if self.image.is_empty() || self.image.contains(char::is_whitespace) {
            return Err(Denial::new("image: write REGISTRY/NAME:TAG, without spaces"));
        }
        let policy = self.image_pull_policy.as_deref();
        if !matches!(policy, None | Some("Always" | "IfNotPresent" | "Never")) {
            return Err(Denial::new("image_pull_policy: write Always, IfNotPresent or Never"));
        }
        Settings::of(&serde_json::Value::Null, self).map(|_| ())
    }

    /// Adds `annotation=value`, as the command line has it.
    ///
    /// # Errors
    /// Without a `=`.
    pub fn set(&mut self, assignment: &str) -> Result<(), String> {
        let (name, value) = assignment.split_once('=').ok_or_else(|| {
            format!("`{assignment}`: write ANNOTATION=VALUE, such as cache-size=50Gi")
        })?;
        self.annotations.remove(name.trim());
        self.annotations.insert(short(name.trim()).to_owned(), value.trim().to_owned());
        Ok(())
    }
}

/// A name without its prefix.
pub(super) fn short(name: &str) -> &str {
    name.strip_prefix(ANNOTATION_PREFIX).unwrap_or(name)
}
