//! Secrets: how they are named in the file, and how they are held.
//!
//! Invariant: a secret never prints, and one that stands in the file, whole or in part (not `env:`,
//! `file:` or just a `${VARIABLE}` that is set), is refused unless somebody opted in.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde_yaml::Value;

use super::problem::Problems;
use super::yaml::{At, FromYaml};

/// Largest file that a `file:` reference reads: a service-account key has 2.4 KiB.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// What was typed where a secret belongs: a reference, or the secret itself.
#[derive(Clone)]
pub(crate) struct SecretText(pub(crate) SecretString);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

impl FromYaml for SecretText {
    fn from_yaml(value: &Value, at: &At, problems: &mut Problems) -> Option<Self> {
        String::from_yaml(value, at, problems).map(|text| Self(SecretString::from(text)))
    }
}

/// Where references are looked up, and whether plain secrets are allowed.
pub(crate) struct Lookup<'a> {
    pub(crate) environment: &'a super::Environment,
    pub(crate) variables: &'a super::expand::FromVariables,
    pub(crate) allow_inline: bool,
}

impl Lookup<'_> {
    /// The secret that `text` names. `public` values (key ids, account names) may always be
    /// written in the file.
    pub(crate) fn resolve(
        &self,
        text: &SecretText,
        public: bool,
        at: &At,
        problems: &mut Problems,
    ) -> Option<SecretString> {
        let typed = text.0.expose_secret();
        if let Some(name) = typed.strip_prefix("env:") {
            let value = self.environment.non_empty(name);
            if value.is_none() {
                problems.add(
                    at,
                    format!("variable {name} is not set"),
                    format!("set {name} in the environment of warpdrive"),
                );
            }
            return value.map(SecretString::from);
        }
        if let Some(path) = typed.strip_prefix("file:") {
            return match read(path) {
                Ok(text) => Some(SecretString::from(text)),
                Err(what) => {
                    problems.add(at, what, "name a readable file that holds only the secret");
                    None
                }
            };
        }
        if typed.is_empty() {
            problems.add(at, "is empty", "name the secret as env:NAME or file:/path");
            return None;
        }
        if public || self.allow_inline || self.variables.contains(&at.to_string()) {
            return Some(text.0.clone());
        }
        problems.add(
            at,
            "is a secret written in the file",
            "write env:NAME, file:/path or just ${NAME}, or set `allow_inline_secrets: true`",
        );
        None
    }
}

/// The text of a secret's file, without the newline that editors add.
pub(crate) fn read(path: &str) -> Result<String, String> {
    let refused = |what: &dyn fmt::Display| format!("file {path} cannot be read: {what}");
    let size = std::fs::metadata(path).map_err(|e| refused(&e))?.len();
    if size > MAX_SECRET_BYTES {
        return Err(refused(&format!("has {size} bytes, at most {MAX_SECRET_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| refused(&e))?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() { Err(refused(&"it is empty")) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let secret = SecretText(SecretString::from("hunter2"));
        assert_eq!(format!("{secret:?}"), "[REDACTED]");
    }
}
