//! Places in a YAML tree, and a JSON patch applied to one.
//!
//! Invariant: what the patch does not name keeps its order and its exact form.

use serde_yaml::{Mapping, Value};

use crate::inject::Operation;

/// One step from an object or list to a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// A path for people: `spec.templates[2]`.
pub(super) fn pointer(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key]),
            Step::Index(index) => text.extend(["[", &index.to_string(), "]"]),
        }
    }
    text
}

pub(super) fn at<'a>(tree: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(tree, |value, step| match step {
        Step::Key(key) => value.get(key.as_str()),
        Step::Index(index) => value.get(*index),
    })
}

pub(super) fn at_mut<'a>(tree: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter().try_fold(tree, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(index) => value.get_mut(*index),
    })
}

/// Members that people look for first, where they come.
const FIRST: &[&str] = &["name", "image", "command", "restartPolicy"];

/// What is added, with the members that say what it is before all others.
fn readable(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Object(members) => {
            let first = FIRST.iter().filter_map(|key| members.get_key_value(*key));
            let rest = members.iter().filter(|(key, _)| !FIRST.contains(&key.as_str()));
            let all = first
                .chain(rest)
                .map(|(key, member)| (Value::String(key.clone()), readable(member)));
            Value::Mapping(all.collect())
        }
        serde_json::Value::Array(items) => Value::Sequence(items.iter().map(readable).collect()),
        serde_json::Value::String(text) => Value::String(text.clone()),
        serde_json::Value::Bool(flag) => Value::Bool(*flag),
        serde_json::Value::Number(number) => number
            .as_u64()
            .map(Into::into)
            .or_else(|| number.as_i64().map(Into::into))
            .or_else(|| number.as_f64().map(Into::into))
            .unwrap_or(Value::Null),
        serde_json::Value::Null => Value::Null,
    }
}

/// Applies a patch whose paths begin here.
pub(super) fn apply(tree: &mut Value, operations: &[Operation]) -> Result<(), String> {
    operations.iter().try_for_each(|operation| one(tree, operation))
}

fn one(tree: &mut Value, operation: &Operation) -> Result<(), String> {
    let (path, value) = match operation {
        Operation::Add { path, value } | Operation::Replace { path, value } => (path, Some(value)),
        Operation::Remove { path } => (path, None),
    };
    let gone = || format!("{path} is not there");
    let value = value.map(readable);
    let mut steps: Vec<String> =
        path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let Some(last) = steps.pop() else {
        *tree = value.ok_or_else(gone)?;
        return Ok(());
    };
    let parent = steps.iter().try_fold(tree, |value, step| match value {
        Value::Sequence(items) => items.get_mut(step.parse::<usize>().ok()?),
        other => other.get_mut(step.as_str()),
    });
    match (parent.ok_or_else(gone)?, operation, value) {
        (Value::Sequence(items), _, value) => {
            let index: usize = last.parse().map_err(|_| gone())?;
            match (operation, value) {
                (Operation::Add { .. }, Some(value)) if index <= items.len() => {
                    items.insert(index, value);
                }
                (Operation::Replace { .. }, Some(value)) if index < items.len() => {
                    items[index] = value;
                }
                (Operation::Remove { .. }, _) if index < items.len() => drop(items.remove(index)),
                _ => return Err(gone()),
            }
        }
        (parent, Operation::Add { .. } | Operation::Replace { .. }, Some(value)) => {
            if parent.is_null() {
                *parent = Value::Mapping(Mapping::new());
            }
            let map = parent.as_mapping_mut().ok_or_else(gone)?;
            map.insert(Value::String(last), value);
        }
        (parent, _, _) => {
            let map = parent.as_mapping_mut().ok_or_else(gone)?;
            map.shift_remove(last.as_str()).ok_or_else(gone)?;
        }
    }
    Ok(())
}
