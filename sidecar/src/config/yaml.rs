//! From YAML values to Rust types, collecting every mistake on the way.
//!
//! Invariant: a value of the wrong shape is one problem with its path, and the walk goes on. Unknown
//! keys are problems, with the nearest key that is known.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_yaml::Value;

use super::problem::{Problem, Problems};
use super::size::ByteSize;
use super::span;

/// Where a value stands, printed as `backends[1].config.bucket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At(String);

impl At {
    pub(crate) fn root() -> Self {
        Self(String::new())
    }

    pub(crate) fn key(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    pub(crate) fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The tree of a text, with anchors and merge keys resolved. An empty file is an empty mapping.
pub(crate) fn tree(text: &str) -> Result<Value, Problem> {
    let refused = |error: serde_yaml::Error| Problem {
        path: String::new(),
        what: format!("is not YAML: {error}"),
        fix: "correct the syntax at that line; see docs/configuration.md for an example".to_owned(),
    };
    let mut tree: Value = serde_yaml::from_str(text).map_err(refused)?;
    tree.apply_merge().map_err(refused)?;
    Ok(tree)
}

/// A type that can be read from a value.
pub(crate) trait FromYaml: Sized {
    /// The value, or `None` and a problem.
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self>;
}

fn shape(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a section with keys",
        Value::Tagged(_) => "a value with a YAML tag",
    }
}

fn wrong(value: &Value, wanted: &str, fix: &str, at: &At, problems: &mut Problems) {
    problems.add(at, format!("is {}, expected {wanted}", shape(value)), fix);
}

/// The mapping of a section with its known keys checked. `None` where it is not a mapping.
pub(crate) fn section<'a>(
    value: &'a Value,
    at: &At,
    known: &[&str],
    problems: &mut Problems,
) -> Option<BTreeMap<&'a str, &'a Value>> {
    let map = match value {
        Value::Mapping(map) => map,
        Value::Null => return Some(BTreeMap::new()),
        other => {
            let listed = known.iter().map(|k| bare(k)).collect::<Vec<_>>().join(", ");
            wrong(
                other,
                "a section with keys",
                &format!("give it keys of: {listed}"),
                at,
                problems,
            );
            return None;
        }
    };
    let mut found = BTreeMap::new();
    for (key, value) in map {
        match key {
            Value::String(name) if known.iter().any(|k| bare(k) == name) => {
                found.insert(name.as_str(), value);
            }
            Value::String(name) => {
                problems.add(at.key(name), "is not a known key", nearest(name, known));
            }
            other => wrong(other, "a key in words", "quote the key, or correct it", at, problems),
        }
    }
    Some(found)
}

/// Field names that are Rust keywords are written `r#type`.
pub(crate) fn bare(name: &str) -> &str {
    name.strip_prefix("r#").unwrap_or(name)
}

/// What may have been meant by a name that is not among the known ones.
pub(crate) fn nearest(name: &str, known: &[&str]) -> String {
    // Below this likeness (Jaro-Winkler, 0 to 1) a proposal confuses more than it helps.
    const LIKE: f64 = 0.78;
    let like = |k: &&str| strsim::jaro_winkler(&name.to_ascii_lowercase(), k);
    let best = known.iter().map(|k| bare(k)).max_by(|a, b| like(a).total_cmp(&like(b)));
    match best {
        Some(best) if like(&best) >= LIKE => format!("write `{best}`, or remove it"),
        _ => {
            let listed = known.iter().map(|k| bare(k)).collect::<Vec<_>>().join(", ");
            format!("use one of: {listed}")
        }
    }
}

impl FromYaml for String {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        if let Value::String(text) = value {
            return Some(text.clone());
        }
        // `0123` and `1e3` are numbers to YAML and lose their spelling.
        wrong(value, "text", "put it in quotes", at, problems);
        None
    }
}

impl FromYaml for bool {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        match value {
            Value::Bool(flag) => return Some(*flag),
            Value::String(text) => match &*text.to_ascii_lowercase() {
                "true" => return Some(true),
                "false" => return Some(false),
                _ => {}
            },
            _ => {}
        }
        wrong(value, "true or false", "write true or false", at, problems);
        None
    }
}

impl FromYaml for u64 {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        let number = match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        if number.is_none() {
            wrong(value, "a whole number", "write a whole number, 0 or more", at, problems);
        }
        number
    }
}

impl FromYaml for f64 {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        if number.is_none() {
            wrong(value, "a number", "write a number such as 0.9", at, problems);
        }
        number
    }
}

impl FromYaml for ByteSize {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        const FIX: &str = "write a size such as 50GB (decimal) or 4MiB (binary)";
        match value {
            Value::Number(number) if number.as_u64().is_some() => number.as_u64().map(ByteSize),
            Value::String(text) => {
                text.parse().map_err(|what: String| problems.add(at, what, FIX)).ok()
            }
            other => {
                wrong(other, "a size", FIX, at, problems);
                None
            }
        }
    }
}

impl FromYaml for Duration {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        const FIX: &str = "write a duration with its unit, such as 500ms, 5s, 1m30s or 24h";
        match value {
            Value::Number(number) if number.as_u64() == Some(0) => Some(Duration::ZERO),
            Value::String(text) => {
                span::parse(text).map_err(|what| problems.add(at, what, FIX)).ok()
            }
            other => {
                wrong(other, "a duration", FIX, at, problems);
                None
            }
        }
    }
}

impl FromYaml for Value {
    fn from_yaml(value: &Value, _: &At, _: &mut Problems) -> Option<Self> {
        Some(value.clone())
    }
}

impl<T: FromYaml> FromYaml for Vec<T> {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        let Value::Sequence(items) = value else {
            wrong(value, "a list", "write a list, one `- item` a line", at, problems);
            return None;
        };
        let read = |(i, v)| T::from_yaml(v, &at.index(i), problems);
        // Items that are wrong are problems already; the others keep their own indexes only where
        // nothing is missing, and with a problem nothing is used.
        Some(items.iter().enumerate().filter_map(read).collect())
    }
}

impl<T: FromYaml> FromYaml for BTreeMap<String, T> {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        let Value::Mapping(map) = value else {
            wrong(value, "a section of names", "write one `name: value` a line", at, problems);
            return None;
        };
        let mut read = BTreeMap::new();
        for (key, value) in map {
            let Value::String(name) = key else {
                wrong(key, "a name", "put the name in quotes", at, problems);
                continue;
            };
            if let Some(value) = T::from_yaml(value, &at.key(name), problems) {
                read.insert(name.clone(), value);
            }
        }
        Some(read)
    }
}

/// A section: a struct of what was typed, every field optional, and the list of its keys.
macro_rules! typed {
    ($(#[$meta:meta])* $name:ident at $place:literal { $($field:ident : $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default, Clone)]
        #[allow(dead_code)] // keys without effect are looked for in the tree, to say so
        pub(crate) struct $name { $(pub(crate) $field: Option<$type>),* }

        impl $name {
            pub(crate) const KEYS: &'static [&'static str] = &[$(stringify!($field)),*];
            #[cfg(test)]
            pub(crate) const PLACE: &'static str = $place;
        }

        impl $crate::config::yaml::FromYaml for $name {
            fn from_yaml(
                value: &serde_yaml::Value,
                at: &$crate::config::yaml::At,
                problems: &mut $crate::config::problem::Problems,
            ) -> Option<Self> {
                use $crate::config::yaml::{bare, section};
                let found = section(value, at, Self::KEYS, problems)?;
                Some(Self { $($field: {
                    let name = bare(stringify!($field));
                    match found.get(name) {
                        // `key:` with nothing after it is the same as no key.
                        None | Some(serde_yaml::Value::Null) => None,
                        Some(value) => <$type as $crate::config::yaml::FromYaml>::from_yaml(
                            value, &at.key(name), problems),
                    }
                }),* })
            }
        }
    };
}
pub(crate) use typed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_proposed() {
        assert_eq!(
            nearest("mountpoint", &["mount_point", "cache"]),
            "write `mount_point`, or remove it"
        );
        assert_eq!(nearest("buckett", &["bucket", "region"]), "write `bucket`, or remove it");
        assert_eq!(nearest("zzz", &["bucket", "region"]), "use one of: bucket, region");
    }

    #[test]
    fn paths_read_like_the_file() {
        let at = At::root().key("backends").index(1).key("config").key("bucket");
        assert_eq!(at.to_string(), "backends[1].config.bucket");
    }
}
