//! Looking at parts of a pod that may be anything.
//!
//! Invariant: after [`check`], every list that injection walks is a list of objects, and every object
//! that it enters is one or is absent. No JSON makes it panic.

use serde_json::{Map, Value};

use crate::settings::{Denial, quoted};

/// Most containers or volumes of a pod that are walked; Kubernetes' own objects end near 1.5 MiB.
const MOST_ITEMS: usize = 4096;

static NOTHING: Vec<Value> = Vec::new();

/// The items of a list, none where it is absent.
pub(super) fn array<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of.get(name).and_then(Value::as_array).unwrap_or(&NOTHING)
}

/// A text, where there is one.
pub(super) fn text<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    of.get(name).and_then(Value::as_str)
}

/// A member that is an object, made where it is absent or null. `of` was checked to be an object.
pub(super) fn object_mut<'a>(of: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !of.is_object() {
        *of = Value::Object(Map::new());
    }
    entry_object(of.as_object_mut().expect("it was made an object"), name)
}

/// The same of a map.
pub(super) fn entry_object<'a>(
    of: &'a mut Map<String, Value>,
    name: &str,
) -> &'a mut Map<String, Value> {
    let member = of.entry(name).or_insert(Value::Null);
    if !member.is_object() {
        *member = Value::Object(Map::new());
    }
    member.as_object_mut().expect("it was made an object")
}

/// A member that is a list, made where it is absent or null.
pub(super) fn array_mut<'a>(of: &'a mut Map<String, Value>, name: &str) -> &'a mut Vec<Value> {
    let member = of.entry(name).or_insert(Value::Null);
    if !member.is_array() {
        *member = Value::Array(Vec::new());
    }
    member.as_array_mut().expect("it was made a list")
}

/// Refuses a spec whose lists are something else: the API server would have, too.
pub(super) fn check(spec: &Value) -> Result<(), Denial> {
    for list in
        ["containers", "initContainers", "ephemeralContainers", "volumes", "imagePullSecrets"]
    {
        objects(spec, list, &format!("spec.{list}"))?;
    }
    for list in ["containers", "initContainers"] {
        for container in array(spec, list) {
            let name = text(container, "name").unwrap_or("");
            for part in ["env", "envFrom", "volumeMounts", "ports"] {
                objects(container, part, &format!("{part} of container {}", quoted(name)))?;
            }
        }
    }
    if array(spec, "containers").is_empty() {
        return Err(Denial::new("the pod has no containers"));
    }
    if spec.get("securityContext").is_some_and(|it| !it.is_object() && !it.is_null()) {
        return Err(Denial::new("spec.securityContext is not an object"));
    }
    Ok(())
}

fn objects(of: &Value, name: &str, said: &str) -> Result<(), Denial> {
    match of.get(name) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(items)) if items.len() > MOST_ITEMS => {
            Err(Denial::new(format!("{said} has more than {MOST_ITEMS} items")))
        }
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => Ok(()),
        Some(_) => Err(Denial::new(format!("{said} is not a list of objects"))),
    }
}
