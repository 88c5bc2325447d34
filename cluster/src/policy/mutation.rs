//! The policy that injects: what [`inject`] makes of a sample pod, with expressions where it was given something.
//!
//! Invariant: nothing of the sample is left in the expressions.

use serde_json::{Value, json};

use super::expression::{self, Blanks, cel, text};
use super::{MOST_CONTAINERS, MOST_MOUNTS, NAME, listed, matched, names, other_claims, variables};
use crate::inject::{Context, Defaults, Denial, Outcome, inject};
use crate::names::{ANNOTATION_PREFIX, STATUS_ANNOTATION};
use crate::settings::{Mode, S3, Settings};

/// Sizes of the sample pod: primes of mebibytes, so that no other number looks like them.
const SAMPLE_CACHE: u64 = 104_729 << 20;
const SAMPLE_MEMORY: u64 = 7919 << 20;
/// Grace period of the sample pod, seconds.
const SAMPLE_GRACE: u64 = 7907;
const SAMPLE_NAME: &str = "sample-configuration";
const SAMPLE_KEY: &str = "sample-key.yaml";
const SAMPLE_PATH: &str = "/sample-path";

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

fn add(path: &str, value: &str) -> String {
    format!("JSONPatch{{op: \"add\", path: {path}, value: {value}}}")
}

/// The policy that injects.
pub(super) fn mutating(
    defaults: &Defaults,
    settings: &Settings,
    version: &str,
) -> Result<Value, Denial> {
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
