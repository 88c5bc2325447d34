//! `${VAR}`, `${VAR:-default}`, `${VAR:?message}` and `$$` in scalars, after parsing.
//!
//! Invariant: a variable can change the text of one scalar and nothing else: whatever it holds, it
//! adds no key, list item or comment. Keys are never expanded. An unset variable is a problem.

use std::collections::BTreeSet;

use serde_yaml::Value;

use super::environment::Environment;
use super::problem::Problems;
use super::yaml::At;

/// Paths whose text is the value of one variable and nothing else: a secret there is not written
/// in the file. A default is written in the file, and so is what stands beside a variable.
pub(crate) type FromVariables = BTreeSet<String>;

/// The tree with every text expanded.
pub(crate) fn expand(
    tree: Value,
    environment: &Environment,
    problems: &mut Problems,
) -> (Value, FromVariables) {
    let mut found = FromVariables::new();
    let tree = walk(tree, &At::root(), environment, problems, &mut found);
    (tree, found)
}

fn walk(
    value: Value,
    at: &At,
    environment: &Environment,
    problems: &mut Problems,
    found: &mut FromVariables,
) -> Value {
    match value {
        Value::String(text) if text.contains('$') => match text_of(&text, environment) {
            Ok((expanded, whole)) => {
                if whole {
                    found.insert(at.to_string());
                }
                Value::String(expanded)
            }
            Err((what, fix)) => {
                problems.add(at, what, fix);
                Value::Null
            }
        },
        Value::Sequence(items) => {
            let items = items.into_iter().enumerate();
            Value::Sequence(
                items.map(|(i, v)| walk(v, &at.index(i), environment, problems, found)).collect(),
            )
        }
        Value::Mapping(map) => {
            let walked = map.into_iter().map(|(key, value)| {
                let below = match &key {
                    Value::String(name) => at.key(name),
                    _ => at.clone(),
                };
                let value = walk(value, &below, environment, problems, found);
                (key, value)
            });
            Value::Mapping(walked.collect())
        }
        other => other,
    }
}

type Refused = (String, String);

/// One text with its variables replaced, and whether it is a variable's value and nothing else.
fn text_of(text: &str, environment: &Environment) -> Result<(String, bool), Refused> {
    let mut out = String::with_capacity(text.len());
    let mut whole = false;
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(tail) = after.strip_prefix('{') {
            let end = tail.find('}').ok_or_else(|| {
                (
                    "has `${` without `}`".to_owned(),
                    "close the variable with `}`, or write `$$` for a plain dollar".to_owned(),
                )
            })?;
            let (value, from_environment) = variable(&tail[..end], environment)?;
            out.push_str(&value);
            whole = from_environment && text.starts_with("${") && text.len() == end + 3;
            rest = &tail[end + 1..];
        } else {
            // A dollar before anything else is itself: `pa$word` needs no escape.
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok((out, whole))
}

/// What `${inside}` becomes, and whether the environment said so: a default stands in the file.
fn variable(inside: &str, environment: &Environment) -> Result<(String, bool), Refused> {
    let set = |value: &str| (value.to_owned(), true);
    let end = inside.find([':', '-', '?']).unwrap_or(inside.len());
    let (name, rule) = inside.split_at(end);
    let named = name
        .bytes()
        .enumerate()
        .all(|(i, b)| b == b'_' || b.is_ascii_alphabetic() || (i > 0 && b.is_ascii_digit()));
    if name.is_empty() || !named {
        return Err((
            format!("`${{{inside}}}` does not name a variable"),
            "write ${NAME}, ${NAME:-default}, ${NAME:?message}, or $$ for a dollar".to_owned(),
        ));
    }
    if let Some(default) = rule.strip_prefix(":-") {
        return Ok(environment.non_empty(name).map_or_else(|| (default.to_owned(), false), set));
    }
    if let Some(message) = rule.strip_prefix(":?") {
        return environment.non_empty(name).map(set).ok_or_else(|| {
            let fix = if message.is_empty() { format!("set {name}") } else { message.to_owned() };
            (format!("variable {name} is not set"), fix)
        });
    }
    if !rule.is_empty() {
        return Err((
            format!("`${{{inside}}}` has a rule that is not known"),
            "write ${NAME}, ${NAME:-default} or ${NAME:?message}".to_owned(),
        ));
    }
    environment.get(name).map(set).ok_or_else(|| {
        (
            format!("variable {name} is not set"),
            format!("set {name} in the environment, or give a default: ${{{name}:-value}}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn environment() -> Environment {
        Environment::from([("A", "one"), ("EMPTY", ""), ("TRICK", "x\"\ny: [${A}]")])
    }

    fn expanded(text: &str) -> Result<String, String> {
        text_of(text, &environment())
            .map(|(text, _)| text)
            .map_err(|(what, fix)| format!("{what}; {fix}"))
    }

    #[test]
    fn the_four_forms() {
        assert_eq!(expanded("a-${A}-b").unwrap(), "a-one-b");
        assert_eq!(expanded("${A}${A}").unwrap(), "oneone");
        assert_eq!(expanded("${NO:-d:e}").unwrap(), "d:e");
        assert_eq!(expanded("${EMPTY:-d}").unwrap(), "d");
        assert_eq!(expanded("${EMPTY}").unwrap(), "");
        assert_eq!(expanded("${A:?must}").unwrap(), "one");
        assert_eq!(expanded("$$").unwrap(), "$");
        assert_eq!(expanded("$${A}").unwrap(), "${A}");
        assert_eq!(expanded("pa$word$").unwrap(), "pa$word$");
    }

    #[test]
    fn what_cannot_be_expanded_says_why() {
        assert!(expanded("${NO}").unwrap_err().contains("NO is not set"));
        assert!(expanded("${NO:?ask the team}").unwrap_err().contains("ask the team"));
        assert!(expanded("${A").unwrap_err().contains("without"));
        assert!(expanded("${}").unwrap_err().contains("does not name"));
        assert!(expanded("${A+x}").is_err());
    }

    #[test]
    fn a_variable_cannot_change_the_tree() {
        let tree = serde_yaml::from_str("k: ${TRICK}\nl: [\"${A}\"]\n${A}: z").unwrap();
        let mut problems = Problems::default();
        let (tree, found) = expand(tree, &environment(), &mut problems);
        assert!(problems.is_empty());
        assert_eq!(tree["k"], Value::from("x\"\ny: [${A}]"));
        assert_eq!(tree["${A}"], Value::from("z"));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["k", "l[0]"]);
    }

    #[test]
    fn only_a_whole_value_comes_from_a_variable() {
        let whole = |text: &str| text_of(text, &environment()).unwrap().1;
        for text in ["${A}", "${A:-d}", "${A:?must}"] {
            assert!(whole(text), "{text}");
        }
        for text in [
            "${NO:-d}",
            "${EMPTY:-d}",
            "x${A}",
            "${A}x",
            "${A}${A}",
            "$${A}",
            "${EMPTY}x",
            "x",
            " ${A}",
        ] {
            assert!(!whole(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[${}A:?\\-\\PC]{0,30}") {
            let _ = text_of(&text, &environment());
        }
    }
}
