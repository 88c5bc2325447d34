//! What is wrong with a configuration, where, and what would fix it.
//!
//! Invariant: a problem always names a place and a fix. It never repeats the value of a secret.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The YAML path, such as `backends[1].config.bucket`; empty for the file as a whole.
    pub path: String,
    /// What is wrong there.
    pub what: String,
    /// What would fix it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "(file)" } else { &self.path };
        write!(f, "{path}: {}\n    fix: {}", self.what, self.fix)
    }
}

/// The problems found so far.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(
        &mut self,
        path: impl fmt::Display,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let problem = Problem { path: path.to_string(), what: what.into(), fix: fix.into() };
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every one, to be told better.
    pub(crate) fn all(&mut self) -> &mut [Problem] {
        &mut self.0
    }
}

/// A configuration that cannot be used, with everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    file: Option<PathBuf>,
    problems: Vec<Problem>,
}

impl Invalid {
    pub(crate) fn one(problem: Problem) -> Self {
        Self { file: None, problems: vec![problem] }
    }

    pub(crate) fn many(problems: Problems) -> Self {
        Self { file: None, problems: problems.0 }
    }

    pub(crate) fn file(path: &Path, what: String, fix: &str) -> Self {
        Self::one(Problem { path: String::new(), what, fix: fix.to_owned() }).in_file(path)
    }

    pub(crate) fn in_file(self, path: &Path) -> Self {
        Self { file: Some(path.to_owned()), ..self }
    }

    /// Everything that is wrong, in the order of the file's sections.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_ref().map_or("configuration".into(), |p| p.display().to_string());
        let many = if self.problems.len() == 1 { "" } else { "s" };
        writeln!(f, "{file}: {} problem{many}", self.problems.len())?;
        let lines: Vec<String> = self.problems.iter().map(|p| format!("  {p}")).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Invalid {}
