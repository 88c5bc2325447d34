//! Configuration: YAML text -> what was typed -> settings that can be used.
//!
//! Invariant: whatever the text is, the answer is either [`Settings`] or every [`Problem`] of it at
//! once, each with its YAML path and what would fix it; never a panic and never the first of many.
//! It refuses unknown keys, unset variables and secrets in the file that nobody opted into.

mod environment;
mod expand;
mod overrides;
mod problem;
mod secret;
mod settings;
mod size;
mod span;
mod typed;
mod yaml;

#[cfg(test)]
mod tests;

use std::path::Path;

pub use environment::Environment;
pub use overrides::Override;
pub use problem::{Invalid, Problem};
pub use settings::{
    AccessSettings, AdminAddress, BackendSettings, CacheSettings, Freshness, HolderSettings,
    KeyPair, LogFormat, LogSettings, MountSettings, S3Settings, Settings,
};
pub use size::ByteSize;
pub(crate) use size::about;
pub(crate) use span::parse as duration;
pub(crate) use span::parse as parse_span;

/// Largest configuration file that is read. A federation of a thousand backends has about 300 KiB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads and validates a file.
pub fn load(path: &Path, environment: &Environment) -> Result<Settings, Invalid> {
    load_with(path, &[], environment)
}

/// Reads and validates a file, with values of the command line in place of its own.
pub fn load_with(
    path: &Path,
    overrides: &[Override],
    environment: &Environment,
) -> Result<Settings, Invalid> {
    let unreadable = |what: String| {
        Invalid::file(path, what, "name a readable YAML file, for instance `-c warpdrive.yaml`")
    };
    let size = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(unreadable(format!("has {size} bytes, at most {MAX_FILE_BYTES} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))?;
    parse_with(&text, overrides, environment).map_err(|invalid| invalid.in_file(path))
}

/// Validates the text of a file.
pub fn parse(text: &str, environment: &Environment) -> Result<Settings, Invalid> {
    parse_with(text, &[], environment)
}

/// Validates the text of a file with other values in place of its own.
pub fn parse_with(
    text: &str,
    overrides: &[Override],
    environment: &Environment,
) -> Result<Settings, Invalid> {
    let mut problems = problem::Problems::default();
    let mut tree = match yaml::tree(text) {
        Ok(tree) => tree,
        Err(problem) => return Err(Invalid::one(problem)),
    };
    overrides::apply(&mut tree, overrides, &mut problems);
    let (tree, variables) = expand::expand(tree, environment, &mut problems);
    let typed = yaml::FromYaml::from_yaml(&tree, &yaml::At::root(), &mut problems);
    let typed: typed::Typed = typed.unwrap_or_default();
    let mut context = settings::Context { environment, variables: &variables, problems };
    let settings = settings::validate(typed, &mut context);
    if context.problems.is_empty() {
        return Ok(settings);
    }
    overrides::name(&mut context.problems, overrides);
    Err(Invalid::many(context.problems))
}

/// Every section of the file with the keys that the parser knows in it, for the test that compares
/// the documentation with the parser.
#[cfg(test)]
pub(crate) fn known_keys() -> Vec<(&'static str, &'static [&'static str])> {
    typed::known_keys()
}
