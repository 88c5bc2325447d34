//! From two versions of an object to a JSON patch (RFC 6902) of what differs.
//!
//! Invariant: applied to the first, the patch gives the second, exactly. What both share is not in
//! it, so that nothing the reader of JSON cannot hold (a number of 30 digits) passes through here.

use serde::Serialize;
use serde_json::Value;

/// One step of a patch.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation {
    /// Adds a member, or an item before the one at that index.
    Add {
        /// A JSON pointer.
        path: String,
        /// What is added.
        value: Value,
    },
    /// Puts a value in place of another.
    Replace {
        /// A JSON pointer.
        path: String,
        /// What is there afterwards.
        value: Value,
    },
    /// Takes away a member or an item.
    Remove {
        /// A JSON pointer.
        path: String,
    },
}

/// Fields that tell items of a list apart, the first that an item has.
const KEYS: &[&str] = &["name", "mountPath", "containerPort"];
/// Largest product of two lists' lengths that is compared item by item; Kubernetes' own lists are tens
/// long. Longer ones are replaced.
const MOST_COMPARISONS: usize = 1 << 20;

/// What makes `after` of `before`.
pub fn patch(before: &Value, after: &Value) -> Vec<Operation> {
    let mut operations = Vec::new();
    differ(before, after, &mut String::new(), &mut operations);
    operations
}

fn differ(before: &Value, after: &Value, path: &mut String, operations: &mut Vec<Operation>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for name in before.keys().filter(|name| !after.contains_key(*name)) {
                at(path, name, |path| operations.push(Operation::Remove { path: path.clone() }));
            }
            for (name, value) in after {
                at(path, name, |path| match before.get(name) {
                    None => {
                        operations
                            .push(Operation::Add { path: path.clone(), value: value.clone() });
                    }
                    Some(old) => differ(old, value, path, operations),
                });
            }
        }
        (Value::Array(before), Value::Array(after)) => lists(before, after, path, operations),
        (before, after) if before == after => {}
        (_, after) => {
            operations.push(Operation::Replace { path: path.clone(), value: after.clone() });
        }
    }
}

/// Runs with one more step in the path.
fn at(path: &mut String, step: &str, run: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push('/');
    for c in step.chars() {
        match c {
            '~' => path.push_str("~0"),
            '/' => path.push_str("~1"),
            c => path.push(c),
        }
    }
    run(path);
    path.truncate(length);
}

/// Whether two items are versions of one thing.
fn same(a: &Value, b: &Value) -> bool {
    fn id(item: &Value) -> Option<(&'static str, &Value)> {
        KEYS.iter().find_map(|key| item.get(key).map(|id| (*key, id)))
    }
    match (a, b) {
        (Value::Object(_), Value::Object(_)) => match (id(a), id(b)) {
            (None, None) => a == b,
            (a, b) => a == b,
        },
        _ => a == b,
    }
}

/// Removes from the end what is gone, adds from the start what is new, and looks into the rest.
fn lists(before: &[Value], after: &[Value], path: &mut String, operations: &mut Vec<Operation>) {
    if before == after {
        return;
    }
    let Some(kept) = common(before, after) else {
        operations
            .push(Operation::Replace { path: path.clone(), value: Value::Array(after.to_vec()) });
        return;
    };
    for index in (0..before.len())
        .rev()
        .filter(|index| kept.binary_search_by_key(index, |(old, _)| *old).is_err())
    {
        at(path, &index.to_string(), |path| {
            operations.push(Operation::Remove { path: path.clone() });
        });
    }
    let mut kept = kept.into_iter().peekable();
    for (index, value) in after.iter().enumerate() {
        at(path, &index.to_string(), |path| match kept.next_if(|(_, new)| *new == index) {
            Some((old, _)) => differ(&before[old], value, path, operations),
            None => operations.push(Operation::Add { path: path.clone(), value: value.clone() }),
        });
    }
}

/// The longest sequence of items that both lists have in the same order, as pairs of indices.
fn common(before: &[Value], after: &[Value]) -> Option<Vec<(usize, usize)>> {
    let head = before.iter().zip(after).take_while(|(a, b)| same(a, b)).count();
    let (old, new) = (&before[head..], &after[head..]);
    // What is added is in one place mostly, and what follows it is the same again.
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| same(a, b)).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    if old.len().saturating_mul(new.len()) > MOST_COMPARISONS {
        return None;
    }
    let width = new.len() + 1;
    let mut longest = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i * width + j] = if same(&old[i], &new[j]) {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let mut pairs: Vec<(usize, usize)> = (0..head).map(|i| (i, i)).collect();
    let (mut i, mut j) = (0, 0);
    while i < old.len() && j < new.len() {
        if same(&old[i], &new[j]) {
            pairs.push((head + i, head + j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    let ends = (before.len() - tail, after.len() - tail);
    pairs.extend((0..tail).map(|i| (ends.0 + i, ends.1 + i)));
    Some(pairs)
}
