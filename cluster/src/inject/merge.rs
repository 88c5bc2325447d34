//! Putting what is ours over what an earlier injection, or somebody since, made of it.
//!
//! Invariant: afterwards everything that we want is there, and what others added to it stays: defaults
//! of the API server, variables of another webhook. Merging twice is merging once.

use serde_json::Value;

/// The field that tells items of a list apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(pub(super) &'static str);

/// Lists of a container and of a volume whose items have an identity.
fn key_of(list: &str) -> Option<Key> {
    match list {
        "env" | "volumes" | "containers" => Some(Key("name")),
        "volumeMounts" => Some(Key("mountPath")),
        "ports" => Some(Key("containerPort")),
        _ => None,
    }
}

/// Makes `there` have everything of `ours`.
pub(super) fn into_value(there: &mut Value, ours: &Value) {
    match (there, ours) {
        (Value::Object(there), Value::Object(ours)) => {
            for (name, wanted) in ours {
                match there.get_mut(name) {
                    None => {
                        there.insert(name.clone(), wanted.clone());
                    }
                    Some(member) => match (key_of(name), member, wanted) {
                        (Some(key), Value::Array(there), Value::Array(ours)) => {
                            into_list(there, ours, key);
                        }
                        (_, member, wanted) => into_value(member, wanted),
                    },
                }
            }
        }
        (Value::Array(there), Value::Array(ours))
            if there.len() == ours.len() && there.iter().all(Value::is_object) =>
        {
            for (there, ours) in there.iter_mut().zip(ours) {
                into_value(there, ours);
            }
        }
        (there, ours) => {
            if there != ours {
                *there = ours.clone();
            }
        }
    }
}

/// The same for a list; what is not there yet is added at the end.
pub(super) fn into_list(there: &mut Vec<Value>, ours: &[Value], key: Key) {
    for wanted in ours {
        let same =
            |item: &&mut Value| item.get(key.0).is_some_and(|id| Some(id) == wanted.get(key.0));
        match there.iter_mut().find(same) {
            Some(item) => into_value(item, wanted),
            None => there.push(wanted.clone()),
        }
    }
}
