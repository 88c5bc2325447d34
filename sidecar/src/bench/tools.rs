//! Where the programs are that a bench can use.
//!
//! Invariant: a program is looked for in `--tools`, then in the folder that the project's own tests install
//! into, then in `PATH`; nothing is ever installed or fetched.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Folders in the order they are looked through.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    folders: Vec<PathBuf>,
}

impl Tools {
    /// With what the environment says.
    pub(crate) fn find(given: Option<&Path>) -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
        let tests = var("WARPDRIVE_TOOLS").or_else(|| Some(cache?.join("warpdrive-tools")));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let given = given.into_iter().flat_map(|dir| [dir.to_owned(), dir.join("bin")]);
        let tests = tests.into_iter().map(|dir| dir.join("bin"));
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        let folders =
            given.chain(tests).chain(std::env::split_paths(&path)).chain(system).collect();
        Self { folders }
    }

    /// The first executable file of this name.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        self.folders.iter().map(|folder| folder.join(name)).find(|path| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
    }
}

/// The first line that says a version, of what a program prints.
pub(crate) fn version(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let Ok(output) = output else { return "unknown".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let says = |line: &&str| line.bytes().any(|byte| byte.is_ascii_digit());
    let line = text.lines().find(says).unwrap_or("unknown").trim();
    line.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_given_comes_first_and_must_be_executable() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        let (plain, program) = (folder.path().join("sh"), folder.path().join("bin/sh"));
        std::fs::write(&plain, "").unwrap();
        std::fs::write(&program, "#!/bin/sh\necho no digits; echo version 1.2 >&2\n").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let tools = Tools::find(Some(folder.path()));
        assert_eq!(tools.program("sh"), Some(program.clone()));
        assert_ne!(Tools::find(None).program("sh"), Some(program.clone()));
        assert_eq!(tools.program("no such program"), None);
        assert_eq!(version(&program, &[]), "version 1.2");
        assert_eq!(version(Path::new("/no/such/program"), &[]), "unknown");
    }
}
