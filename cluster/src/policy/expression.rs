//! JSON as an expression of CEL, with blanks filled in.
//!
//! Invariant: without blanks, the expression evaluates to the JSON that it was made of.

use serde_json::Value;

/// A text that stands for a whole value: it is a control character, which no pod has.
pub(super) const MARK: &str = "\u{1}";
/// Members that are maps with keys of the author's, not objects with a type.
const MAPS: &[&str] = &["requests", "limits", "volumeAttributes"];

/// Texts of a sample, and the expressions that belong in their place.
#[derive(Debug, Clone, Default)]
pub(super) struct Blanks(Vec<(String, String)>);

impl Blanks {
    pub(super) fn add(&mut self, sample: impl Into<String>, expression: impl Into<String>) {
        self.0.push((sample.into(), expression.into()));
        // The longest first: one may be a part of another.
        self.0.sort_by_key(|(sample, _)| std::cmp::Reverse(sample.len()));
    }
}

/// A text as CEL writes it.
pub(super) fn text(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// A value as an expression; objects get the type of their place, such as `Object.spec.volumes`.
pub(super) fn cel(value: &Value, place: &str, blanks: &Blanks) -> String {
    match value {
        Value::String(string) => filled(string, blanks),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| cel(item, place, blanks)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(members) => {
            let is_map = MAPS.iter().any(|map| place.ends_with(&format!(".{map}")));
            let member = |(name, member): (&String, &Value)| {
                let value = cel(member, &format!("{place}.{name}"), blanks);
                if is_map { format!("{}: {value}", text(name)) } else { format!("{name}: {value}") }
            };
            let members: Vec<String> = members.iter().map(member).collect();
            if is_map {
                format!("{{{}}}", members.join(", "))
            } else {
                format!("{place}{{{}}}", members.join(", "))
            }
        }
        other => other.to_string(),
    }
}

/// A text with expressions in place of samples.
fn filled(string: &str, blanks: &Blanks) -> String {
    let found = blanks.0.iter().find_map(|(sample, expression)| {
        string.split_once(sample.as_str()).map(|(before, after)| (before, expression, after))
    });
    let Some((before, expression, after)) = found else { return text(string) };
    let mut parts = Vec::new();
    if !before.is_empty() {
        parts.push(filled(before, blanks));
    }
    parts.push(expression.clone());
    if !after.is_empty() {
        parts.push(filled(after, blanks));
    }
    parts.join(" + ")
}

/// [`crate::settings::quantity::print_bytes`] of an expression.
pub(super) fn size(bytes: &str) -> String {
    let units = [("Ti", 1_u64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let choices = units.map(|(name, unit)| {
        format!("{bytes} % {unit} == 0 ? string({bytes} / {unit}) + \"{name}\" : ")
    });
    format!("({}string({bytes}))", choices.concat())
}

/// [`crate::inject::sizes`]' `empty_dir` of an expression.
pub(super) fn empty_dir(bytes: &str) -> String {
    let slack = 256_u64 << 20;
    let twentieth = format!("{bytes} / 20");
    mib(&format!("({bytes} + ({twentieth} > {slack} ? {twentieth} : {slack}))"))
}

/// [`crate::inject::sizes`]' `claim` of an expression.
pub(super) fn claim(bytes: &str) -> String {
    mib(&format!("({bytes} + {bytes} / 10 + {})", (1_u64 << 30) + (256 << 20)))
}

fn mib(bytes: &str) -> String {
    let unit = 1_u64 << 20;
    format!("({bytes} + {}) / {unit} * {unit}", unit - 1)
}
