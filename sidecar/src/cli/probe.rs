//! `warpdrive probe`: what a pod's probes run, every few seconds for days.
//!
//! Invariant: it starts no runtime and reads no configuration, every question ends in time whatever
//! the other side does, and only --mount touches a mount. It refuses to run without a question.

mod http;
mod root;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueHint};

use super::{Stop, duration};
use crate::config::AdminAddress;

/// How often it is looked again with --wait: a pod's start waits for it, and a look is some system
/// calls.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The default of `s3.listen`.
const S3: &str = "127.0.0.1:9000";

/// What is asked.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  warpdrive probe --live                                    for a liveness probe: never touches the mount
  warpdrive probe --ready --mount /data --s3 --wait 50s     for a startup probe of the worker
  warpdrive probe --holder /run/warpdrive/mount.sock --wait 20s     for a `mountd` whose worker is elsewhere
  warpdrive probe --ready --admin unix:/run/warpdrive/admin.sock

Exits 0 when everything that was asked for holds, 1 with a sentence on what is missing.")]
#[command(group = clap::ArgGroup::new("question").required(true).multiple(true))]
pub(super) struct ProbeArgs {
    /// The sidecar's process answers (/livez of the admin endpoint).
    #[arg(long, group = "question")]
    live: bool,
    /// The sidecar takes work (/readyz of the admin endpoint).
    #[arg(long, group = "question")]
    ready: bool,
    /// The admin endpoint: `http://127.0.0.1:9091` or `unix:/path`.
    #[arg(
        long,
        value_name = "URL",
        env = "WARPDRIVE_ADMIN",
        default_value = super::client::DEFAULT,
    )]
    admin: String,
    /// A mount of this program is at DIR, as seen from here, and its root answers.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, group = "question")]
    mount: Option<PathBuf>,
    /// The S3 endpoint answers HTTP; at 127.0.0.1:9000 where nothing else is said.
    #[arg(
        long,
        value_name = "ADDRESS",
        num_args = 0..=1,
        default_missing_value = S3,
        group = "question"
    )]
    s3: Option<String>,
    /// The holder of a mount (`warpdrive mountd`) answers at this socket.
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath, group = "question")]
    holder: Option<PathBuf>,
    /// Look again, about every 20 ms, until it holds or this time has passed.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    wait: Duration,
    /// How long one answer may take.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    timeout: Duration,
}

pub(super) fn probe(args: &ProbeArgs) -> Result<(), Stop> {
    let admin = super::client::parse(&args.admin)?;
    let s3 = args.s3.as_deref().map(address).transpose()?;
    let mut root = args.mount.as_deref().map(root::Root::new);
    let until = Instant::now() + args.wait;
    loop {
        // The last look of a long wait gets its whole time too: it began before the end.
        let by = Instant::now() + args.timeout;
        let looked = look(args, &admin, s3.as_ref(), root.as_mut(), by);
        let Err(missing) = looked else { return Ok(()) };
        if Instant::now() + LOOK_EVERY >= until {
            return Err(Stop::Failed(missing));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Everything that was asked for, the cheapest first; what is missing first is said.
fn look(
    args: &ProbeArgs,
    admin: &AdminAddress,
    s3: Option<&AdminAddress>,
    root: Option<&mut root::Root>,
    by: Instant,
) -> Result<(), String> {
    if let Some(socket) = &args.holder
        && fusemount::holder_status_within(socket, by.saturating_duration_since(Instant::now()))
            .is_none()
    {
        let shown = socket.display();
        return Err(format!("no mount holder answers on `{shown}` (or it refuses this user)"));
    }
    if args.live {
        http::ok(admin, "/livez", by)?;
    }
    if args.ready {
        http::ok(admin, "/readyz", by)?;
    }
    if let Some(s3) = s3 {
        http::any(s3, by).map_err(|what| format!("the S3 endpoint: {what}"))?;
    }
    match root {
        Some(root) => root.look(by),
        None => Ok(()),
    }
}

/// An address of a TCP endpoint, as `s3.listen` is written or as a URL.
fn address(text: &str) -> Result<AdminAddress, Stop> {
    let bare = text.trim_start_matches("http://").trim_end_matches('/');
    let local = if let Some(port) = bare.strip_prefix(':') {
        format!("127.0.0.1:{port}")
    } else {
        bare.replacen("localhost:", "127.0.0.1:", 1).replacen("0.0.0.0:", "127.0.0.1:", 1)
    };
    let parsed = local.parse().map(AdminAddress::Tcp);
    parsed.map_err(|_| Stop::Unusable(format!("--s3 `{text}`: write {S3}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_configuration() {
        let tcp = |text: &str| AdminAddress::Tcp(text.parse().unwrap());
        assert_eq!(address(":9000").unwrap(), tcp(S3));
        assert_eq!(address("localhost:1").unwrap(), tcp("127.0.0.1:1"));
        assert_eq!(address("http://[::1]:9/").unwrap(), tcp("[::1]:9"));
        for bad in ["", "9000", "example.org:1", "unix:/x"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
