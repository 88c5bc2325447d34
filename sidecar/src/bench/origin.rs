//! The origin: a real S3 server of another project where one is installed, else this program's own.
//!
//! Invariant: everything that is measured against the origin, and every cache in front of it, asks the
//! same server with the same data. It is filled through S3, except for a tree of a hundred thousand
//! files, which is made where the server keeps them (as many PUTs would say nothing more).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::fs::XattrFlags;

use super::data::{Content, Item};
use super::halt::{During, Halt, Trouble};
use super::place::{Place, Process};
use super::sign::Key;
use super::tools::{self, Tools};
use super::wire::{Endpoint, Wire};

/// The bucket that everything is in.
pub(crate) const BUCKET: &str = "data";
/// A server that takes longer does not start.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Connections that fill it.
const FILLERS: usize = 4;

/// A running origin with its data.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Name and version.
    pub(crate) about: String,
    pub(crate) endpoint: Endpoint,
    /// Where the bucket's files are, if they are plain files.
    files: Option<PathBuf>,
    /// Whether the server keeps an ETag beside each file.
    keeps_etags: bool,
    _process: Process,
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_port() -> Result<u16, Trouble> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during("a free port")?;
    Ok(listener.local_addr().during("a free port")?.port())
}

impl Origin {
    /// Starts the first that is installed, without data.
    pub(crate) fn start(place: &Place, tools: &Tools, halt: &Halt) -> Result<Self, Trouble> {
        let folder = place.folder("origin")?;
        let stored = folder.join("stored");
        std::fs::create_dir(&stored).during(stored.display())?;
        let key = Key {
            access: "benchaccesskey".to_owned(),
            secret: format!("bench-{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>()),
            region: "us-east-1".to_owned(),
        };
        let port = free_port()?;
        let listen = format!("127.0.0.1:{port}");
        let mut files = None;
        let mut keeps_etags = false;
        let (about, command) = if let Some(program) = tools.program("versitygw") {
            let mut command = Command::new(&program);
            command.env("ROOT_ACCESS_KEY", &key.access).env("ROOT_SECRET_KEY", &key.secret);
            // A connection for each request is not what S3 is like.
            command.args(["--port", &listen, "--region", &key.region, "--keep-alive", "--quiet"]);
            command.arg("posix").arg(&stored);
            (files, keeps_etags) = (Some(stored.join(BUCKET)), true);
            (named("versitygw", &program), command)
        } else if let Some(program) = tools.program("minio") {
            let mut command = Command::new(&program);
            command.env("MINIO_ROOT_USER", &key.access).env("MINIO_ROOT_PASSWORD", &key.secret);
            command.env("MINIO_UPDATE", "off").env("MINIO_BROWSER", "off").env("HOME", &folder);
            command.args(["server", "--quiet", "--address", &listen]).arg(&stored);
            (named("MinIO", &program), command)
        } else {
            let bucket = stored.join(BUCKET);
            std::fs::create_dir(&bucket).during(bucket.display())?;
            let command = own(&folder, &bucket, port, &key)?;
            files = Some(bucket);
            let about =
                "this program over a local directory (neither versitygw nor minio is installed)";
            (about.to_owned(), command)
        };
        let process = place.spawn(command, &folder)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let endpoint = Endpoint { address, key: Some(key), bucket: BUCKET.to_owned() };
        // Some servers listen before they can answer; a created bucket proves more than a health page.
        let mut last = String::new();
        let ready = halt.wait_for("not ready", READY_WITHIN, || {
            process.check()?;
            let path = format!("/{BUCKET}");
            // A connection each: some servers close one after an answer without a body.
            let ask = |method| Wire::to(address)?.call(&endpoint, method, &path, "", b"");
            let asked = ask("HEAD").or_else(|_| ask("PUT"));
            last = asked.as_ref().err().map_or(String::new(), ToString::to_string);
            Ok(asked.is_ok())
        });
        ready.during(format_args!("{about}: {last}"))?;
        Ok(Self { about, endpoint, files, keeps_etags, _process: process })
    }

    /// Puts objects, over a few connections.
    pub(crate) fn fill(&self, items: &[Item], halt: &Halt) -> Result<(), Trouble> {
        let next = AtomicUsize::new(0);
        let fill = || -> Result<(), Trouble> {
            let mut wire = Wire::to(self.endpoint.address)?;
            while let Some(item) = items.get(next.fetch_add(1, Relaxed)) {
                halt.check()?;
                wire.put(&self.endpoint, &item.key, item.size, &mut Content::of(item))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let fillers: Vec<_> = (0..FILLERS).map(|_| scope.spawn(fill)).collect();
            fillers.into_iter().try_for_each(|filler| joined(filler.join()))
        })
    }

    /// Makes `folders` times `each` files of one byte below `tree/`; false where this server keeps no
    /// plain files.
    pub(crate) fn plant(&self, folders: usize, each: usize, halt: &Halt) -> Result<bool, Trouble> {
        let Some(files) = &self.files else { return Ok(false) };
        let last = format!("tree/d{:03}/f{:04}", folders.saturating_sub(1), each.saturating_sub(1));
        if files.join(last).exists() {
            return Ok(true);
        }
        for folder in 0..folders {
            halt.check()?;
            let folder = files.join(format!("tree/d{folder:03}"));
            std::fs::create_dir_all(&folder).during(folder.display())?;
            for number in 0..each {
                let path = folder.join(format!("f{number:04}"));
                std::fs::write(&path, b"x").during(path.display())?;
                if self.keeps_etags {
                    // What the server itself keeps with a file that it wrote.
                    let etag = b"9dd4e461268c8034f5c8564e155c67a6";
                    rustix::fs::setxattr(&path, "user.etag", etag, XattrFlags::empty())
                        .during(path.display())?;
                }
            }
        }
        Ok(true)
    }
}

/// A program with its version, where it says one.
fn named(name: &str, program: &Path) -> String {
    match tools::version(program, &["--version"]).as_str() {
        "unknown" => name.to_owned(),
        version => format!("{name} ({version})"),
    }
}

/// What a thread came to; its panic goes on in the caller.
pub(crate) fn joined<T>(ended: std::thread::Result<T>) -> T {
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// This program as an origin, with a cache too small to matter.
fn own(folder: &Path, bucket: &Path, port: u16, key: &Key) -> Result<Command, Trouble> {
    let config = serde_json::json!({
        "fuse": {"enabled": false},
        "cache": {"memory": "64MiB"},
        "backends": [{"name": BUCKET, "type": "local", "config": {"path": bucket}}],
        "s3": {
            "listen": format!("127.0.0.1:{port}"),
            "access": "static",
            "keys": [{"access_key_id": key.access, "secret_access_key": "env:BENCH_SECRET_KEY"}],
            "credentials_file": folder.join("credentials"),
        },
        "admin": {"enabled": false},
        "log": {"level": "warn"},
    });
    let file = folder.join("origin.yaml");
    std::fs::write(&file, config.to_string()).during(file.display())?;
    let program = std::env::current_exe().during("this program's own path")?;
    let mut command = Command::new(program);
    command.args(["run", "--no-mount", "-c"]).arg(file);
    command.env("BENCH_SECRET_KEY", &key.secret).env_remove("NOTIFY_SOCKET");
    Ok(command)
}
