//! YAML that every reader understands alike.
//!
//! Invariant: a text stays a text for readers of YAML 1.1 and of 1.2. The printer below knows 1.2 alone,
//! where `on` and `1_000` are texts; kubectl and others read them as a boolean and a number.

use std::fmt::Display;

use serde::Serialize;
use serde_yaml::Value;

/// Words that are a boolean, null, or a sign of YAML 1.1, in lower case.
const WORDS: &[&str] =
    &["y", "yes", "n", "no", "on", "off", "true", "false", "null", "~", "", "=", "<<"];

/// Whether a reader of YAML 1.1 could take it for something else than a text. Rather too often: what
/// consists of the characters of numbers, of times and of sexagesimals is quoted.
fn is_ambiguous(text: &str) -> bool {
    let is_number_like = |c: char| c.is_ascii_hexdigit() || "_.:+- xXoOTtZz".contains(c);
    WORDS.contains(&text.to_ascii_lowercase().as_str())
        || [".inf", ".nan"]
            .contains(&text.trim_start_matches(['+', '-']).to_ascii_lowercase().as_str())
        || (text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
            && text.contains(|c: char| c.is_ascii_digit())
            && text.chars().all(is_number_like))
}

/// Marks in place of texts that have to be quoted.
struct Marks {
    /// Begins every mark; in no text.
    begin: String,
    texts: Vec<String>,
}

/// Ends every mark.
const END: &str = "-end";

impl Marks {
    fn of(&mut self, value: Value) -> Value {
        match value {
            Value::String(text) if is_ambiguous(&text) => {
                let mark = format!("{}{}{END}", self.begin, self.texts.len());
                self.texts.push(text);
                Value::String(mark)
            }
            Value::Sequence(items) => {
                Value::Sequence(items.into_iter().map(|item| self.of(item)).collect())
            }
            Value::Mapping(members) => Value::Mapping(
                members.into_iter().map(|(key, member)| (self.of(key), self.of(member))).collect(),
            ),
            Value::Tagged(mut tagged) => {
                tagged.value = self.of(std::mem::take(&mut tagged.value));
                Value::Tagged(tagged)
            }
            other => other,
        }
    }

    /// The printed text, with the texts again.
    fn filled(&self, printed: &str) -> String {
        let mut parts = printed.split(self.begin.as_str());
        let mut filled = parts.next().unwrap_or("").to_owned();
        for part in parts {
            let found = part.split_once(END).and_then(|(index, rest)| {
                let index: usize = index.parse().ok()?;
                Some((self.texts.get(index)?, rest))
            });
            if let Some((text, rest)) = found {
                // None of them has a quote or the end of a line in it.
                filled.extend(["'", text, "'", rest]);
            }
        }
        filled
    }
}

/// Prints a document.
///
/// # Errors
/// What has no form in YAML.
pub(crate) fn print(document: &impl Serialize) -> Result<String, String> {
    let said = |error: &dyn Display| format!("cannot be printed as YAML: {error}");
    let value = serde_yaml::to_value(document).map_err(|e| said(&e))?;
    let plain = serde_yaml::to_string(&value).map_err(|e| said(&e))?;
    let mut begin = "warpdrive-quoted-".to_owned();
    while plain.contains(&begin) {
        begin.push('-');
    }
    let mut marks = Marks { begin, texts: Vec::new() };
    let marked = marks.of(value);
    if marks.texts.is_empty() {
        return Ok(plain);
    }
    Ok(marks.filled(&serde_yaml::to_string(&marked).map_err(|e| said(&e))?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    #[test]
    fn what_yaml_1_1_reads_as_something_else_is_quoted() {
        // Of the types' definitions for YAML 1.1: bool, int, float, null, merge, value, timestamp.
        for one in [
            "y",
            "Y",
            "yes",
            "Yes",
            "YES",
            "n",
            "N",
            "no",
            "NO",
            "on",
            "On",
            "ON",
            "off",
            "OFF",
            "true",
            "False",
            "~",
            "null",
            "Null",
            "",
            "=",
            "<<",
            "1_000",
            "1__0",
            "+1_0",
            "0b1010_0111",
            "0x_0A",
            "0o17",
            "017",
            "1:30",
            "190:20:30",
            "20:30.15",
            "1e3",
            "685.230_15e+03",
            "._1",
            ".5",
            ".inf",
            "-.INF",
            ".NaN",
            "2001-12-14",
            "2001-12-14t21:59:43.10-05:00",
            "2001-12-14 21:59:43.10 -5",
        ] {
            assert_eq!(print(&text(one)).unwrap(), format!("'{one}'\n"));
            let member = Value::Mapping([(text(one), text(one))].into_iter().collect());
            assert_eq!(print(&vec![member]).unwrap(), format!("- '{one}': '{one}'\n"));
        }
        for one in ["only", "yess", "a: b", "10Gi", "http://127.0.0.1:9000", "/data", "-c"] {
            let printed = print(&text(one)).unwrap();
            assert_eq!(printed, serde_yaml::to_string(&text(one)).unwrap(), "{one}");
        }
        for (one, printed) in [(Value::Bool(true), "true\n"), (Value::from(10), "10\n")] {
            assert_eq!(print(&one).unwrap(), printed);
        }
    }

    #[test]
    fn marks_are_none_of_the_texts() {
        let all = vec![text("warpdrive-quoted-0-end"), text("on"), text("warpdrive-quoted--0-end")];
        let printed = print(&all).unwrap();
        assert!(printed.contains("'on'"), "{printed}");
        assert_eq!(serde_yaml::from_str::<Vec<Value>>(&printed).unwrap(), all);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(
            texts in prop::collection::vec("([0-9+.-][0-9a-fxo_:. -]{0,6}|[a-z~='\n\" :#-]{0,8}|.{0,6})", 0..6),
        ) {
            let all: Vec<Value> = texts.iter().map(|one| text(one)).collect();
            let document = Value::Mapping(
                texts.iter().map(|one| (text(one), Value::Sequence(all.clone()))).collect(),
            );
            let printed = print(&document).unwrap();
            prop_assert_eq!(serde_yaml::from_str::<Value>(&printed).unwrap(), document);
        }
    }
}
