//! Finding what `tests/install` installed, and saying what is absent.
//!
//! Invariant: a missing tool is never silent: it is printed past the test harness's capture, or it
//! fails the test when `WARPDRIVE_REQUIRE_TOOLS=1`.

use std::fmt;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

/// Why a real program could not be used.
#[derive(Debug, Clone)]
pub struct Skipped {
    name: String,
    reason: String,
}

impl Skipped {
    /// A skip of `name` (a program or a test) because of `reason`.
    pub fn new(name: impl Into<String>, reason: impl Into<String>) -> Skipped {
        Skipped { name: name.into(), reason: reason.into() }
    }

    /// Prints `SKIPPED <name>: <reason>` on standard error, past the capture of the test harness.
    ///
    /// # Panics
    /// When `WARPDRIVE_REQUIRE_TOOLS=1`: then a missing tool is a failure.
    pub fn report(&self) {
        assert!(
            std::env::var_os("WARPDRIVE_REQUIRE_TOOLS").is_none_or(|value| value != "1"),
            "required but not available: {self}"
        );
        self.say();
    }

    /// Prints the same line and never fails: for what a machine may lack for good (`/dev/fuse`, root).
    pub fn say(&self) {
        // `eprintln!` is captured by the harness, a direct write is not.
        let _ = writeln!(std::io::stderr(), "SKIPPED {}: {}", self.name, self.reason);
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.name, self.reason)
    }
}

impl std::error::Error for Skipped {}

/// The folder of `tests/install`: `$WARPDRIVE_TOOLS`, else `warpdrive-tools` in the cache folder.
pub fn tools_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("WARPDRIVE_TOOLS") {
        return folder.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("warpdrive-tools")
}

/// The path of an installed program: from the tools folder only, so that a machine's own copy of
/// another version is never what was tested.
pub fn tool(name: &str) -> Result<PathBuf, Skipped> {
    let path = tools_folder().join("bin").join(name);
    if path.exists() {
        Ok(path)
    } else {
        Err(Skipped::new(name, "not installed (tests/install installs it)"))
    }
}

/// A TCP port on 127.0.0.1 that was free a moment ago. Somebody else may take it before the caller
/// does: whoever starts a server on it must be ready to try another.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
        .port()
}
