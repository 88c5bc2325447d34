//! The log: lines to standard error, so that standard output stays for what was asked for.
//!
//! Invariant: started once a process. `WARPDRIVE_LOG` takes precedence over the file.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// Starts logging.
pub(crate) fn start(settings: &LogSettings) {
    let from_variable = std::env::var("WARPDRIVE_LOG").ok().filter(|text| !text.is_empty());
    let wanted = from_variable.as_deref().unwrap_or(&settings.level);
    let filter = EnvFilter::try_new(wanted).unwrap_or_else(|_| EnvFilter::new(&settings.level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start (tests) keeps the first subscriber.
    let _ = match settings.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}
