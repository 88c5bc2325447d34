//! Settings that can be used: every default filled in, every rule between keys held.
//!
//! Invariant: building a sidecar from settings can fail only for reasons outside of the file (a port
//! that is taken, a directory that is not there). Validation reports everything that is wrong.

mod backends;
mod cache;
mod endpoint;
mod origin;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::expand::FromVariables;
use super::problem::Problems;
use super::typed::{Typed, TypedControlPlane, TypedFuse, TypedLog, TypedMetrics, TypedTelemetry};
use super::yaml::At;

pub use backends::{BackendSettings, Freshness};
pub use cache::CacheSettings;
pub use endpoint::{AccessSettings, AdminAddress, KeyPair, S3Settings};

/// What validation reads besides the file, and what it found.
pub(crate) struct Context<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) variables: &'a FromVariables,
    pub(crate) problems: Problems,
}

/// A configuration that holds together.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the federation appears as files; `None` for S3 only.
    pub mount: Option<MountSettings>,
    /// Memory, disk and fetching.
    pub cache: CacheSettings,
    /// The origins, in the file's order; at least one.
    pub backends: Vec<BackendSettings>,
    /// The S3 endpoint; `None` for files only.
    pub s3: Option<S3Settings>,
    /// The admin endpoint; `None` for none.
    pub admin: Option<AdminAddress>,
    /// The listener for metrics besides the admin endpoint.
    pub metrics: Option<SocketAddr>,
    /// What is logged and how.
    pub log: LogSettings,
    /// Longest time that a stopping sidecar waits for requests in flight.
    pub drain_timeout: Duration,
    /// Where the holder's socket and the journal of the mount live; `None` leaves the choice to the
    /// run, which knows its user and its mount point.
    pub state_dir: Option<PathBuf>,
    /// What the file asks for and does not get; said once at start and by `check`.
    pub notes: Vec<String>,
}

/// The mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSettings {
    /// The directory that is mounted over.
    pub point: PathBuf,
    /// True when users other than the one who mounts may look.
    pub allow_other: bool,
    /// True to log each request of the kernel.
    pub debug: bool,
    /// Owner of everything; `None` is the user of this process.
    pub uid: Option<u32>,
    /// Group of everything; `None` is the group of this process.
    pub gid: Option<u32>,
    /// Permission bits of files.
    pub file_mode: u16,
    /// Permission bits of directories.
    pub dir_mode: u16,
    /// What the kernel reads ahead; `None` leaves the choice to the mount.
    pub readahead_bytes: Option<u64>,
    /// Event loops; `None` leaves the choice to the mount.
    pub threads: Option<u32>,
    /// True where the kernel may read cached files itself.
    pub passthrough: bool,
    /// Who holds the mount.
    pub holder: HolderSettings,
    /// How long readers wait for a worker, when there is none, before they get EIO. For a holder
    /// that this sidecar starts.
    pub holder_patience: Duration,
}

/// Who holds the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HolderSettings {
    /// A holder of its own where this process may mount, none where it may not.
    Auto,
    /// The worker itself: the mount ends with it.
    None,
    /// The `warpdrive mountd` that listens at this socket.
    Socket(PathBuf),
}

impl std::str::FromStr for HolderSettings {
    type Err = String;

    /// `auto`, `none` or the absolute path of a socket; the error says what is wrong.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            // The kernel's limit of a socket's path, less its final NUL.
            path if path.starts_with('/') && path.len() <= 107 => Ok(Self::Socket(path.into())),
            other => Err(format!("`{other}` is no holder")),
        }
    }
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// A filter such as `info` or `info,backends=debug`.
    pub level: String,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The Go project's default.
const DEFAULT_MOUNT_POINT: &str = "/data";
/// The Go project's default: every interface, where Prometheus looks for it.
const DEFAULT_METRICS_ADDR: &str = ":9090";
/// Kubernetes gives a pod 30 s; this leaves time to unmount and to close the cache.
const DEFAULT_DRAIN: Duration = Duration::from_secs(20);

/// Long enough for a restart by any supervisor, short enough that nobody takes it for a hang.
const DEFAULT_HOLDER_PATIENCE: Duration = Duration::from_mins(1);
/// A socket's path has at most 107 bytes, and the names in the directory have their part.
const MAX_STATE_DIR: usize = 90;

/// Checks everything that was typed. Usable only where no problems were added.
pub(crate) fn validate(typed: Typed, context: &mut Context<'_>) -> Settings {
    let mut notes = Vec::new();
    let inline = typed.allow_inline_secrets.unwrap_or(false);
    let fuse = typed.fuse.unwrap_or_default();
    let point = typed.mount_point;
    let flags = (typed.allow_other.unwrap_or(false), typed.fuse_debug.unwrap_or(false));
    let mount = mount(point, flags, fuse, &mut context.problems);
    let cache = cache::validate(typed.cache.unwrap_or_default(), &mut notes, &mut context.problems);
    let (backends, names) =
        backends::validate(typed.backends.unwrap_or_default(), inline, &cache, &mut notes, context);
    let s3 = endpoint::s3(typed.s3.unwrap_or_default(), &backends, &names, inline, context);
    let admin = endpoint::admin(typed.admin.unwrap_or_default(), &mut context.problems);
    let metrics = metrics(typed.metrics.unwrap_or_default(), &mut context.problems);
    let log = log(typed.log.unwrap_or_default(), &mut context.problems);
    if let Some(telemetry) = typed.telemetry {
        self::telemetry(&telemetry, &mut notes, &mut context.problems);
    }
    if let Some(plane) = typed.control_plane {
        control_plane(&plane, &mut notes, &mut context.problems);
    }
    if mount.is_none() && s3.is_none() && context.problems.is_empty() {
        context.problems.add(
            "s3.enabled",
            "neither the mount nor the S3 endpoint is enabled",
            "remove `fuse.enabled: false` or `s3.enabled: false`",
        );
    }
    let drain_timeout = typed.drain_timeout.unwrap_or(DEFAULT_DRAIN);
    let state_dir = typed.state_dir.map(PathBuf::from);
    if let Some(dir) = &state_dir
        && (!dir.is_absolute() || dir.as_os_str().len() > MAX_STATE_DIR)
    {
        context.problems.add(
            "state_dir",
            format!("`{}` is not a directory for sockets", dir.display()),
            format!(
                "write a whole path of at most {MAX_STATE_DIR} bytes, such as /run/warpdrive/x"
            ),
        );
    }
    Settings { mount, cache, backends, s3, admin, metrics, log, drain_timeout, state_dir, notes }
}

fn mount(
    point: Option<String>,
    (allow_other, debug): (bool, bool),
    fuse: TypedFuse,
    problems: &mut Problems,
) -> Option<MountSettings> {
    let at = At::root().key("fuse");
    let point = PathBuf::from(point.unwrap_or_else(|| DEFAULT_MOUNT_POINT.to_owned()));
    if !point.is_absolute() || point.parent().is_none() {
        problems.add(
            "mount_point",
            format!("`{}` is not an absolute path below /", point.display()),
            "name an empty directory with its whole path, such as /data",
        );
    }
    let id = |name: &str, value: Option<u64>, problems: &mut Problems| {
        let value = value?;
        let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        if id.is_none() {
            problems.add(at.key(name), format!("{value} is not an id"), "write 0 to 4294967294");
        }
        id
    };
    let uid = id("uid", fuse.uid, problems);
    let gid = id("gid", fuse.gid, problems);
    let mut mode = |name: &str, text: Option<String>, default: u16| {
        let Some(text) = text else { return default };
        let mode = u16::from_str_radix(text.trim_start_matches("0o"), 8).ok();
        mode.filter(|m| *m <= 0o777).unwrap_or_else(|| {
            problems.add(
                at.key(name),
                format!("`{text}` is not a mode"),
                "write permission bits in octal and in quotes, such as \"0444\"",
            );
            default
        })
    };
    // Read-only files that everyone who may enter can read, and directories that can be entered.
    let file_mode = mode("file_mode", fuse.file_mode, 0o444);
    let dir_mode = mode("dir_mode", fuse.dir_mode, 0o555);
    // The kernel takes no more than 64 loops of any use; one a core is plenty.
    let threads = fuse.threads.and_then(|n| {
        let fits = (1..=64).contains(&n);
        if !fits {
            problems.add(at.key("threads"), format!("{n} is out of range"), "write 1 to 64");
        }
        u32::try_from(n).ok().filter(|_| fits)
    });
    let readahead_bytes = fuse.readahead.map(|size| size.0);
    let passthrough = match fuse.passthrough.as_deref() {
        None | Some("auto") => true,
        Some("off") => false,
        Some(other) => {
            let what = format!("`{other}` is not a choice");
            problems.add(at.key("passthrough"), what, "write auto or off");
            true
        }
    };
    let holder = fuse.holder.as_deref().unwrap_or("auto").parse();
    let holder = holder.unwrap_or_else(|what| {
        let fix = "write auto, none, or the socket of a `warpdrive mountd` with its whole path";
        problems.add(at.key("holder"), what, fix);
        HolderSettings::Auto
    });
    let holder_patience = fuse.holder_patience.unwrap_or(DEFAULT_HOLDER_PATIENCE);
    if !(Duration::from_secs(1)..=Duration::from_hours(24)).contains(&holder_patience) {
        let what = format!("{holder_patience:?} is out of range");
        problems.add(at.key("holder_patience"), what, "write 1s to 24h");
    }
    fuse.enabled.unwrap_or(true).then_some(MountSettings {
        point,
        allow_other,
        debug,
        uid,
        gid,
        file_mode,
        dir_mode,
        readahead_bytes,
        threads,
        passthrough,
        holder,
        holder_patience,
    })
}

fn metrics(typed: TypedMetrics, problems: &mut Problems) -> Option<SocketAddr> {
    let text = typed.addr.unwrap_or_else(|| DEFAULT_METRICS_ADDR.to_owned());
    let address = endpoint::address(&text, &At::root().key("metrics").key("addr"), problems);
    // An address alone does not enable it, as in the Go project.
    address.filter(|_| typed.enabled.unwrap_or(false))
}

/// Of foyer an operator wants to hear only what went wrong. The end of a session, which is how a
/// worker leaves a mount to the next one, is an error to fuser.
const DEFAULT_LOG: &str = "info,foyer=warn,foyer_storage=warn,fuser::request=off";

fn log(typed: TypedLog, problems: &mut Problems) -> LogSettings {
    let level = typed.level.unwrap_or_else(|| DEFAULT_LOG.to_owned());
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&level) {
        problems.add(
            "log.level",
            format!("`{level}` is not a filter: {error}"),
            "write error, warn, info, debug or trace, or a filter such as info,backends=debug",
        );
    }
    let format = match typed.format.as_deref() {
        None | Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => {
            problems.add("log.format", format!("`{other}` is not a format"), "write text or json");
            LogFormat::Text
        }
    };
    LogSettings { level, format }
}

/// The Go project's sinks.
const SINKS: &[&str] = &["stdout", "file", "control_plane", "nop"];

fn telemetry(typed: &TypedTelemetry, notes: &mut Vec<String>, problems: &mut Problems) {
    let at = At::root().key("telemetry");
    let sink = typed.sink.as_deref().unwrap_or("stdout");
    if !SINKS.contains(&sink) {
        let fix = format!("write one of {}", SINKS.join(", "));
        problems.add(at.key("sink"), format!("`{sink}` is not a sink"), fix);
    }
    let enabled = typed.enabled.unwrap_or(false);
    if enabled && sink == "file" && typed.file_path.is_none() {
        problems.add(at.key("file_path"), "is missing", "name the file that the sink writes");
    }
    if enabled && sink == "control_plane" && typed.control_plane_addr.is_none() {
        problems.add(at.key("control_plane_addr"), "is missing", "name host:port of the service");
    }
    if typed.batch_size == Some(0) {
        problems.add(at.key("batch_size"), "is 0", "write 1 or more");
    }
    if typed.flush_interval == Some(Duration::ZERO) {
        problems.add(at.key("flush_interval"), "is 0", "write a duration such as 5s");
    }
    // Read so that a file of the Go project is checked whole, although nothing samples yet.
    let _ = typed.sample_metadata_ops;
    if enabled {
        notes.push("telemetry.enabled: telemetry is not built; nothing is recorded or sent".into());
    }
}

fn control_plane(typed: &TypedControlPlane, notes: &mut Vec<String>, problems: &mut Problems) {
    let at = At::root().key("control_plane");
    if let Some(address) = &typed.rest_addr {
        endpoint::address(address, &at.key("rest_addr"), problems);
    }
    if typed.storage_crawl_interval == Some(Duration::ZERO) {
        problems.add(at.key("storage_crawl_interval"), "is 0", "write a duration such as 24h");
    }
    if typed.enabled.unwrap_or(true) {
        notes.push("control_plane: the control plane is not built; nothing listens for it".into());
    }
}
