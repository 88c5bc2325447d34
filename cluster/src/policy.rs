//! Injection without a webhook: a `MutatingAdmissionPolicy` that makes the same pods.
//!
//! Invariant: containers, volumes, variables and mounts in the policy are what [`inject`] makes of a
//! sample pod, with expressions in place of what the sample was given; no part is written twice. What
//! the expressions cannot do (other annotations, the host's network) is denied by a second policy with
//! one sentence, not ignored.

mod expression;

use serde_json::{Value, json};

use crate::inject::{Context, Defaults, Denial, Outcome, inject};
use crate::names::{ANNOTATION_PREFIX, INJECT_LABEL, STATUS_ANNOTATION, UNWANTED, WANTED};
use crate::settings::annotations::ANNOTATIONS;
use crate::settings::{Mode, S3, Settings};
use expression::{Blanks, cel, text};

/// Annotations that the policy's expressions read; the rest is fixed by the administrator's defaults.
const SUPPORTED: &[&str] = &["config", "mounts", "cache-size", "memory"];
/// Most containers, and mounts of each, that the expressions look at: they know no loops.
const MOST_CONTAINERS: usize = 32;
const MOST_MOUNTS: usize = 4;
/// Sizes of the sample pod: primes of mebibytes, so that no other number looks like them.
const SAMPLE_CACHE: u64 = 104_729 << 20;
const SAMPLE_MEMORY: u64 = 7919 << 20;
/// Grace period of the sample pod, seconds.
const SAMPLE_GRACE: u64 = 7907;
const SAMPLE_NAME: &str = "sample-configuration";
const SAMPLE_KEY: &str = "sample-key.yaml";
const SAMPLE_PATH: &str = "/sample-path";

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
        mutating(defaults, &settings, version)?,
        bindings("MutatingAdmissionPolicyBinding", version, "namespace", None),
        bindings("MutatingAdmissionPolicyBinding", version, "pod", None),
        validating(defaults, &settings),
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

/// The sample pod after injection, with these resources of its only container.
fn sample(
    defaults: &Defaults,
    settings: &Settings,
    config: &str,
    limits: &Value,
) -> Result<Value, Denial> {
    let mut annotations = json!({
        format!("{ANNOTATION_PREFIX}config"): format!("{config}:{SAMPLE_NAME}/{SAMPLE_KEY}"),
        format!("{ANNOTATION_PREFIX}memory"): SAMPLE_MEMORY.to_string(),
    });
    if settings.cache != crate::settings::Cache::Memory {
        annotations[format!("{ANNOTATION_PREFIX}cache-size")] = json!(SAMPLE_CACHE.to_string());
    }
    if settings.mode != Mode::S3 {
        annotations[format!("{ANNOTATION_PREFIX}mounts")] = json!(SAMPLE_PATH);
    }
    let pod = json!({
        "metadata": {"annotations": annotations},
        "spec": {
            "terminationGracePeriodSeconds": SAMPLE_GRACE,
            "containers": [{"name": "sample", "resources": {"limits": limits}}],
        },
    });
    match inject(&pod, &Context { namespace: "", uid: "" }, defaults)? {
        Outcome::Injected { pod, .. } => Ok(pod),
        Outcome::Untouched { why } => Err(Denial::new(why)),
    }
}

/// What stands in the sample, and the expression that belongs there. Longer texts are looked for
/// first, so that a number within another one is not mistaken.
fn blanks(settings: &Settings) -> Blanks {
    use crate::settings::quantity::print_bytes;
    let mut blanks = Blanks::default();
    let size = |bytes: u64, expression: &str| (print_bytes(bytes), expression::size(expression));
    let cache = "variables.cacheBytes";
    let memory = "variables.memoryBytes";
    let ours = crate::inject::sizes(SAMPLE_CACHE, SAMPLE_MEMORY);
    for (bytes, expression) in [
        (ours.empty_dir, format!("({})", expression::empty_dir(cache))),
        (ours.claim, format!("({})", expression::claim(cache))),
        (ours.worker_request, format!("({memory} + {})", ours.worker_request - SAMPLE_MEMORY)),
        (ours.worker_limit, format!("({memory} + {})", ours.worker_limit - SAMPLE_MEMORY)),
    ] {
        let (printed, expression) = size(bytes, &expression);
        blanks.add(printed, expression);
    }
    blanks.add(SAMPLE_CACHE.to_string(), format!("string({cache})"));
    blanks.add(SAMPLE_MEMORY.to_string(), format!("string({memory})"));
    blanks.add(SAMPLE_NAME, "variables.configName");
    blanks.add(SAMPLE_KEY, "variables.configKey");
    let flush = u64::from(settings.flush_seconds);
    blanks.add((SAMPLE_GRACE + flush).to_string(), format!("string(variables.grace + {flush})"));
    blanks.add(SAMPLE_GRACE.to_string(), "string(variables.grace)");
    blanks
}

/// `[0, 1, ...]`: what a comprehension runs over, for want of a range.
fn indices() -> String {
    let all: Vec<String> = (0..MOST_CONTAINERS).map(|index| index.to_string()).collect();
    format!("[{}]", all.join(", "))
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

/// The variables of the mutation alone.
fn pod_variables(defaults: &Defaults) -> Vec<(&'static str, String)> {
    let (argo_label, argo_names) = crate::inject::ARGO;
    let mesh = names(&defaults.mesh_containers);
    let foreign = format!(
        "{mesh} + ((has(object.metadata.labels) && {} in object.metadata.labels) ? {} : [])",
        text(argo_label),
        names(argo_names)
    );
    let all = indices();
    let limits = |name: &str| {
        format!(
            "has(c.resources) && has(c.resources.limits) && {} in c.resources.limits",
            text(name)
        )
    };
    let whole = |name: &str| {
        let name_text = text(name);
        format!(
            "({} && (!has(c.resources.requests) || !({name_text} in c.resources.requests) || c.resources.requests[{name_text}] == c.resources.limits[{name_text}]))",
            limits(name)
        )
    };
    let guaranteed = format!("{} && {}", whole("cpu"), whole("memory"));
    let storage = limits("ephemeral-storage");
    vec![
        ("grace", "has(object.spec.terminationGracePeriodSeconds) ? object.spec.terminationGracePeriodSeconds : 30".to_owned()),
        ("foreign", foreign),
        ("inits", "has(object.spec.initContainers) ? size(object.spec.initContainers) : 0".to_owned()),
        ("mains", format!("{all}.filter(i, i < size(object.spec.containers) && !(object.spec.containers[i].name in variables.foreign))")),
        ("starts", format!("{all}.filter(i, i < variables.inits && !(object.spec.initContainers[i].name in variables.foreign))")),
        ("mesh", format!("size({all}.filter(i, i < variables.inits && {all}.filter(j, j <= i).all(j, object.spec.initContainers[j].name in {mesh})))")),
        ("guaranteed", format!(
            "object.spec.containers.all(c, {guaranteed}) && (variables.inits == 0 || object.spec.initContainers.all(c, {guaranteed}))"
        )),
        ("limited", format!(
            "object.spec.containers.exists(c, {storage}) || (variables.inits > 0 && object.spec.initContainers.exists(c, {storage}))"
        )),
    ]
}

fn listed(variables: Vec<(&'static str, String)>) -> Value {
    variables
        .into_iter()
        .map(|(name, expression)| json!({"name": name, "expression": expression}))
        .collect()
}

fn add(path: &str, value: &str) -> String {
    format!("JSONPatch{{op: \"add\", path: {path}, value: {value}}}")
}

fn mutating(defaults: &Defaults, settings: &Settings, version: &str) -> Result<Value, Denial> {
    let mut parts = Vec::new();
    serving(defaults, settings, &mut parts)?;
    own(defaults, settings, &mut parts)?;
    let mut all = variables(settings, defaults);
    all.extend(pod_variables(defaults));
    let done = text(STATUS_ANNOTATION);
    Ok(json!({
        "apiVersion": format!("admissionregistration.k8s.io/{version}"),
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": NAME},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": matched(),
            "matchConditions": [{
                "name": "not-yet",
                "expression": format!("!has(object.metadata.annotations) || !({done} in object.metadata.annotations)"),
            }],
            "variables": listed(all),
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": parts.join(" +\n")}}],
        },
    }))
}

/// Mount and variables of the author's containers, before ours change the indices.
fn serving(
    defaults: &Defaults,
    settings: &Settings,
    parts: &mut Vec<String>,
) -> Result<(), Denial> {
    let pod = sample(defaults, settings, "configmap", &json!({}))?;
    let container = &pod["spec"]["containers"][0];
    let env = container["env"].as_array().cloned().unwrap_or_default();
    let pairs: Vec<String> = env
        .iter()
        .map(|one| {
            format!(
                "{}: {}",
                text(one["name"].as_str().unwrap_or("")),
                text(one["value"].as_str().unwrap_or(""))
            )
        })
        .collect();
    let pairs = format!("{{{}}}", pairs.join(", "));
    for (list, chosen) in
        [("containers", "variables.mains"), ("initContainers", "variables.starts")]
    {
        let place = |part: &str| format!("\"/spec/{list}/\" + string(i) + \"/{part}\"");
        let it = format!("object.spec.{list}[i]");
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            parts.push(format!(
                "{chosen}.filter(i, !has({it}.volumeMounts)).map(i, {})",
                add(&place("volumeMounts"), "[]")
            ));
            for index in 0..MOST_MOUNTS {
                let mut blanks = Blanks::default();
                blanks.add(SAMPLE_PATH, format!("variables.paths[{index}]"));
                let value = cel(mount, &format!("Object.spec.{list}.volumeMounts"), &blanks);
                parts.push(format!(
                    "(size(variables.paths) > {index} ? {chosen}.map(i, {}) : [])",
                    add(&place("volumeMounts/-"), &value)
                ));
            }
        }
        if env.is_empty() {
            continue;
        }
        let own = |names: &str| {
            format!(
                "(has({it}.env) && {it}.env.exists(e, e.name in {names} && !(e.name in {pairs} && has(e.value) && e.value == {pairs}[e.name])))"
            )
        };
        let groups = crate::inject::VARIABLES;
        let mut elsewhere = own(&names(groups.endpoints));
        if settings.s3 == S3::On {
            elsewhere = format!("({elsewhere} || {})", own(&names(groups.roles)));
        }
        let served = format!("{chosen}.filter(i, !{elsewhere})");
        parts.push(format!(
            "{served}.filter(i, !has({it}.env)).map(i, {})",
            add(&place("env"), "[]")
        ));
        for one in &env {
            let name = one["name"].as_str().unwrap_or("");
            let mut condition =
                format!("!(has({it}.env) && {it}.env.exists(e, e.name == {}))", text(name));
            for group in [groups.regions, groups.credentials] {
                if group.contains(&name) {
                    condition = format!("{condition} && !{}", own(&names(group)));
                }
            }
            let value = cel(one, &format!("Object.spec.{list}.env"), &Blanks::default());
            parts.push(format!(
                "{served}.filter(i, {condition}).map(i, {})",
                add(&place("env/-"), &value)
            ));
        }
    }
    Ok(())
}

/// Our volumes and containers, and what concerns the pod as a whole.
fn own(defaults: &Defaults, settings: &Settings, parts: &mut Vec<String>) -> Result<(), Denial> {
    let blanks = blanks(settings);
    let of_map = sample(defaults, settings, "configmap", &json!({}))?;
    let of_secret = sample(defaults, settings, "secret", &json!({}))?;
    let missing = |part: &str| {
        format!("(has(object.spec.{part}) ? [] : [{}])", add(&format!("\"/spec/{part}\""), "[]"))
    };
    let none = Vec::new();
    let items = |pod: &Value, part: &str| pod["spec"][part].as_array().unwrap_or(&none).clone();
    parts.push(missing("volumes"));
    for (map, secret) in items(&of_map, "volumes").iter().zip(&items(&of_secret, "volumes")) {
        let value = |volume: &Value| cel(volume, "Object.spec.volumes", &blanks);
        let value = if map == secret {
            value(map)
        } else {
            format!("(variables.isSecret ? {} : {})", value(secret), value(map))
        };
        parts.push(format!("[{}]", add("\"/spec/volumes/-\"", &value)));
    }
    // Every class of pod has other resources; the rest of the containers is the same.
    let limited = json!({"ephemeral-storage": "1"});
    let whole = json!({"cpu": "1", "memory": "1"});
    let both = json!({"cpu": "1", "memory": "1", "ephemeral-storage": "1"});
    let variants: Result<Vec<Vec<Value>>, Denial> = [&json!({}), &limited, &whole, &both]
        .into_iter()
        .map(|limits| {
            sample(defaults, settings, "configmap", limits).map(|pod| items(&pod, "initContainers"))
        })
        .collect();
    let variants = variants?;
    parts.push(missing("initContainers"));
    let at = "\"/spec/initContainers/\" + string(variables.mesh)";
    for index in (0..variants[0].len()).rev() {
        let resources: Vec<String> = variants
            .iter()
            .map(|variant| {
                cel(&variant[index]["resources"], "Object.spec.initContainers.resources", &blanks)
            })
            .collect();
        let chosen = format!(
            "(variables.guaranteed ? (variables.limited ? {} : {}) : (variables.limited ? {} : {}))",
            resources[3], resources[2], resources[1], resources[0]
        );
        let mut container = variants[0][index].clone();
        container["resources"] = json!(expression::MARK);
        let mut blanks = blanks.clone();
        blanks.add(expression::MARK, chosen);
        let value = cel(&container, "Object.spec.initContainers", &blanks);
        parts.push(format!("[{}]", add(at, &value)));
    }
    for secret in items(&of_map, "imagePullSecrets") {
        if !parts.contains(&missing("imagePullSecrets")) {
            parts.push(missing("imagePullSecrets"));
        }
        let name = text(secret["name"].as_str().unwrap_or(""));
        let value = cel(&secret, "Object.spec.imagePullSecrets", &blanks);
        parts.push(format!(
            "((has(object.spec.imagePullSecrets) && object.spec.imagePullSecrets.exists(s, s.name == {name})) ? [] : [{}])",
            add("\"/spec/imagePullSecrets/-\"", &value)
        ));
    }
    if let Some(group) = of_map["spec"]["securityContext"].get("fsGroup") {
        parts.push(format!(
            "(has(object.spec.securityContext) ? [] : [{}])",
            add("\"/spec/securityContext\"", "Object.spec.securityContext{}")
        ));
        let fixed = "has(object.spec.securityContext) && has(object.spec.securityContext.fsGroup)";
        let policy = "has(object.spec.securityContext) && has(object.spec.securityContext.fsGroupChangePolicy)";
        let free = format!("({fixed}) || {}", other_claims());
        parts.push(format!(
            "(({free}) ? [] : [{}])",
            add("\"/spec/securityContext/fsGroup\"", &group.to_string())
        ));
        parts.push(format!(
            "(({free} || ({policy})) ? [] : [{}])",
            add("\"/spec/securityContext/fsGroupChangePolicy\"", &text("OnRootMismatch"))
        ));
    }
    let flush = settings.flush_seconds;
    parts.push(format!(
        "[{}]",
        add("\"/spec/terminationGracePeriodSeconds\"", &format!("variables.grace + {flush}"))
    ));
    parts.push(format!(
        "(has(object.metadata.annotations) ? [] : [{}])",
        add("\"/metadata/annotations\"", "Object.metadata.annotations{}")
    ));
    let status = &of_map["metadata"]["annotations"][STATUS_ANNOTATION];
    let escaped = STATUS_ANNOTATION.replace('~', "~0").replace('/', "~1");
    let status = cel(status, "", &blanks);
    parts.push(format!("[{}]", add(&text(&format!("/metadata/annotations/{escaped}")), &status)));
    Ok(())
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

/// What has to hold, and the sentence where it does not.
type Rule = (String, String);

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
            format!(
                "object.spec.containers.all(c, {free}) && (!has(object.spec.initContainers) || object.spec.initContainers.all(c, c.name.startsWith({theirs}) || {free}))"
            ),
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
        format!(
            "object.spec.containers.all(c, {free}) && (!has(object.spec.initContainers) || object.spec.initContainers.all(c, c.name == {worker} || {free}))"
        ),
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
    let ours: Vec<&str> = crate::inject::VOLUMES.to_vec();
    let mount = text(crate::names::MOUNT_VOLUME);
    let theirs = text(crate::names::WORKER_CONTAINER);
    let free = format!(
        "(!has(c.volumeMounts) || c.volumeMounts.all(m, m.name == {mount} || !(m.name in {})))",
        names(&ours)
    );
    rule(
        format!(
            "object.spec.containers.all(c, {free}) && (!has(object.spec.initContainers) || object.spec.initContainers.all(c, c.name.startsWith({theirs}) || {free}))"
        ),
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
fn validating(defaults: &Defaults, settings: &Settings) -> Value {
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

#[cfg(test)]
mod tests;
