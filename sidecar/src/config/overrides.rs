//! `--set KEY=VALUE`: values of the command line in place of those of the file.
//!
//! Invariant: a value that is set is treated as if it stood in the file at that path: variables in it
//! are expanded once, the rules for secrets hold, and what is wrong with it is named as `--set PATH`.
//! It refuses to turn what is a value in the file into a section, and to leave gaps in lists.

use std::fmt;
use std::str::FromStr;

use serde_yaml::{Mapping, Value};

use super::problem::Problems;
use super::yaml::At;

/// Steps of a path: the deepest key of the file has five.
const MAX_STEPS: usize = 16;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// One `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    path: Vec<Step>,
    value: Value,
}

impl FromStr for Override {
    type Err = String;

    /// Reads `cache.max_size=20GiB`, `backends[0].name=x` or `backends.0.name=x`; a key with a dot
    /// is written in double quotes.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, value) = split(text)?;
        Ok(Self { path, value: scalar(value) })
    }
}

impl Override {
    /// Where it is set, as problems of the file print paths.
    fn at(&self) -> At {
        self.path.iter().fold(At::root(), |at, step| match step {
            Step::Key(name) => at.key(name),
            Step::Index(index) => at.index(*index),
        })
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--set {}", self.at())
    }
}

/// The steps before the first `=` outside of quotes, and what follows it.
fn split(text: &str) -> Result<(Vec<Step>, &str), String> {
    let bad = || format!("`{text}`: write KEY=VALUE, such as cache.max_size=20GiB");
    let mut path = Vec::new();
    let mut rest = text;
    loop {
        let step;
        if let Some(quoted) = rest.strip_prefix('"') {
            let (name, after) = quoted.split_once('"').ok_or_else(bad)?;
            (step, rest) = (Step::Key(name.to_owned()), after);
        } else if let Some(inside) = rest.strip_prefix('[') {
            let (index, after) = inside.split_once(']').ok_or_else(bad)?;
            (step, rest) = (Step::Index(index.parse().map_err(|_| bad())?), after);
        } else {
            let end = rest.find(['.', '[', '=']).ok_or_else(bad)?;
            let (name, after) = rest.split_at(end);
            if name.is_empty() {
                return Err(bad());
            }
            // No key of the file is a number.
            let named = || Step::Key(name.to_owned());
            (step, rest) = (name.parse().map_or_else(|_| named(), Step::Index), after);
        }
        path.push(step);
        if path.len() > MAX_STEPS {
            return Err(bad());
        }
        if let Some(value) = rest.strip_prefix('=') {
            let begins_with_key = matches!(path.first(), Some(Step::Key(_)));
            return if begins_with_key { Ok((path, value)) } else { Err(bad()) };
        }
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None if rest.starts_with('[') => {}
            None => return Err(bad()),
        }
    }
}

/// A value as YAML reads a scalar, or a list or section in brackets. What is neither is the text
/// itself: no comment, anchor or `key: value` is looked for in it.
fn scalar(text: &str) -> Value {
    let itself = || Value::String(text.to_owned());
    match serde_yaml::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => {
            // `# text` and `~ # text` are nothing to YAML, and not meant so here.
            if text.contains('#') { itself() } else { value }
        }
        Ok(Value::String(read)) if text.starts_with(['"', '\'']) => Value::String(read),
        Ok(value @ Value::Sequence(_)) if text.starts_with('[') => value,
        // `${VARIABLE}` is text, and begins with no brace.
        Ok(value @ Value::Mapping(_)) if text.starts_with('{') => value,
        _ => itself(),
    }
}

/// Other names of a key: a file may have it by one, and the command line by the other.
fn same_key(at: &At, name: &str) -> Option<&'static str> {
    match (at.to_string().as_str(), name) {
        ("cache", "path") => Some("dir"),
        ("cache", "dir") => Some("path"),
        _ => None,
    }
}

/// Puts every value in its place, the later over the earlier.
pub(crate) fn apply(tree: &mut Value, overrides: &[Override], problems: &mut Problems) {
    for one in overrides {
        if let Err((what, fix)) = put(tree, &At::root(), &one.path, &one.value) {
            problems.add(one.at(), what, fix);
        }
    }
}

fn put(into: &mut Value, at: &At, path: &[Step], value: &Value) -> Result<(), (String, String)> {
    let Some((step, below)) = path.split_first() else {
        *into = value.clone();
        return Ok(());
    };
    match step {
        Step::Key(name) => {
            if into.is_null() {
                *into = Value::Mapping(Mapping::new());
            }
            let Value::Mapping(map) = into else { return Err(not_a("section", at, name)) };
            if below.is_empty()
                && let Some(other) = same_key(at, name)
            {
                map.remove(other);
            }
            let slot = map.entry(Value::String(name.clone())).or_insert(Value::Null);
            put(slot, &at.key(name), below, value)
        }
        Step::Index(index) => {
            if into.is_null() {
                *into = Value::Sequence(Vec::new());
            }
            let Value::Sequence(items) = into else {
                return Err(not_a("list", at, &index.to_string()));
            };
            let count = items.len();
            if *index == count {
                items.push(Value::Null);
            }
            let Some(slot) = items.get_mut(*index) else {
                let what = format!("`{at}` has {count} items in the file, counted from 0");
                return Err((what, format!("use an index up to {count}; that one adds an item")));
            };
            put(slot, &at.index(*index), below, value)
        }
    }
}

fn not_a(wanted: &str, at: &At, step: &str) -> (String, String) {
    let place = if at.to_string().is_empty() { "the file".to_owned() } else { format!("`{at}`") };
    let fix = match wanted {
        "section" => format!("give an index before `{step}`, such as {at}[0].{step}"),
        _ => "name a key of that section".to_owned(),
    };
    (format!("{place} is no {wanted}"), fix)
}

/// Names in each problem the option of the command line that it is about, if it is about one.
pub(crate) fn name(problems: &mut Problems, overrides: &[Override]) {
    for problem in problems.all() {
        let about = |one: &&Override| {
            let at = one.at().to_string();
            problem
                .path
                .strip_prefix(&at)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        if overrides.iter().any(|one| about(&one)) {
            problem.path = format!("--set {}", problem.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(file: &str, overrides: &[&str]) -> Result<Value, String> {
        let mut tree: Value = serde_yaml::from_str(file).unwrap();
        let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
        let mut problems = Problems::default();
        apply(&mut tree, &overrides, &mut problems);
        name(&mut problems, &overrides);
        match problems.all().first() {
            Some(problem) => Err(problem.to_string()),
            None => Ok(tree),
        }
    }

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn values_go_to_their_places() {
        let file = "{cache: {max_size: 1GB, dir: /a}, backends: [{name: x}, {name: y}]}";
        let wanted = "{cache: {max_size: 20GiB, path: /b}, backends: [{name: x}, {name: z}, {name: n}], \
                      s3: {listen: '127.0.0.1:9000', enabled: true}}";
        let given = [
            "cache.max_size=20GiB",
            "cache.path=/b",
            "backends[1].name=y2",
            "backends.1.name=z",
            "backends[2].name=n",
            "s3.listen=127.0.0.1:9000",
            "s3.enabled=true",
        ];
        assert_eq!(set(file, &given).unwrap(), yaml(wanted));
        assert_eq!(set("", &["a.\"b.c\".d=1"]).unwrap(), yaml("{a: {b.c: {d: 1}}}"));
        assert_eq!(set("a: {b: 1}", &["a="]).unwrap(), yaml("a:"));
    }

    #[test]
    fn values_are_read_as_scalars_are() {
        for (text, wanted) in [
            ("true", "true"),
            ("5", "5"),
            ("0.9", "0.9"),
            ("", "null"),
            ("\"5\"", "'5'"),
            (":9090", "':9090'"),
            ("a: b", "'a: b'"),
            ("a #b", "'a #b'"),
            ("# b", "'# b'"),
            ("*x", "'*x'"),
            ("!tag x", "'!tag x'"),
            ("${A:-b}", "'${A:-b}'"),
            ("[a, b]", "[a, b]"),
            ("{a: b}", "{a: b}"),
            ("[a", "'[a'"),
            ("k=v", "k=v"),
        ] {
            assert_eq!(scalar(text), yaml(wanted), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_set_says_so() {
        for bad in ["", "a", "=1", "a..b=1", ".a=1", "a.=1", "[0]=1", "a[=1", "a[x]=1", "a]b"] {
            assert!(bad.parse::<Override>().is_err(), "{bad}");
        }
        let long = format!("{}=1", ["a"; MAX_STEPS + 1].join("."));
        assert!(long.parse::<Override>().is_err());
        let list = set("backends: [{}]", &["backends.name=x"]).unwrap_err();
        assert!(list.starts_with("--set backends.name: `backends` is no section"), "{list}");
        assert!(list.contains("backends[0].name"), "{list}");
        let gap = set("backends: [{}]", &["backends[3].name=x"]).unwrap_err();
        assert!(gap.contains("has 1 items") && gap.contains("up to 1"), "{gap}");
        let value = set("cache: {a: 1}", &["cache[0]=x"]).unwrap_err();
        assert!(value.contains("`cache` is no list"), "{value}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-c0-2.\\[\\]=\"${}# :*&!-]{0,24}", file in "[a-c\\[\\]{}: ,]{0,12}") {
            let (Ok(one), Ok(mut tree)) = (text.parse::<Override>(), serde_yaml::from_str(&file)) else {
                return Ok(());
            };
            apply(&mut tree, &[one], &mut Problems::default());
        }
    }
}
