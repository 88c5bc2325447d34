//! `warpdrive demo`: a federation with data in it, made on the spot.
//!
//! Invariant: a temporary directory is gone when the demo ends; a given one keeps what it held and
//! what was made. Nothing of a running sidecar is disturbed: ports that are taken are left alone.

mod files;
mod parquet;
mod png;
mod tar;

use std::fmt::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::announce::{self, Announcement};
use crate::cli::{Stop, put};
use crate::config::{self, Environment, LogFormat, LogSettings};
use crate::run::{self, Options};

/// The usual port where it is free, else one that is.
fn port(usual: u16) -> u16 {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, usual)) {
        Ok(_) => usual,
        // Port 0: the system chooses when the endpoint binds. One that is taken between this look
        // and that moment is replaced then.
        Err(_) => 0,
    }
}

/// Makes the data set, serves it, cleans up.
pub(crate) fn demo(dir: Option<&Path>, seconds: Option<u64>, no_mount: bool) -> Result<(), Stop> {
    crate::trace::start(&LogSettings { level: "warn".to_owned(), format: LogFormat::Text });
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Stop::Failed(format!("{what}: {error}"))
    };
    let (home, _temporary) = if let Some(dir) = dir {
        std::fs::create_dir_all(dir).map_err(failed("--dir"))?;
        (dir.canonicalize().map_err(failed("--dir"))?, None)
    } else {
        let made = tempfile::Builder::new().prefix("warpdrive-demo-").tempdir();
        let made = made.map_err(failed("temporary directory"))?;
        (made.path().to_owned(), Some(made))
    };
    let origin = home.join("origin");
    let data = files::write(&origin).map_err(failed("data set"))?;
    let mount = home.join("mnt");
    std::fs::create_dir_all(&mount).map_err(failed("mount point"))?;
    let file = home.join("warpdrive.yaml");
    std::fs::write(&file, yaml(&home, &mount, no_mount)).map_err(failed("configuration"))?;
    let settings = config::load(&file, &Environment::of_process())?;
    let size = config::about(data.bytes);
    put(&format!("demo data: {} files, {size} in {}\n", data.files, origin.display()));
    let epilogue = move |started: &Announcement| lines(started, &file);
    let options = Options {
        force: true,
        mount_if_possible: true,
        ports_may_move: true,
        stop_after: seconds.map(Duration::from_secs),
        epilogue: Some(Box::new(epilogue)),
        ..Options::default()
    };
    run::run(&settings, &options)
}

/// The configuration of the demo, with a comment on how to go on from it. JSON is YAML.
fn yaml(home: &Path, mount: &Path, no_mount: bool) -> String {
    let value = json!({
        "mount_point": mount,
        // One process that leaves nothing, however it ends.
        "fuse": {"enabled": !no_mount, "holder": "none"},
        "cache": {"path": home.join("cache"), "max_size": "256MiB", "memory": "64MiB"},
        "backends": [{"name": "demo", "type": "local", "config": {"path": home.join("origin")}}],
        "s3": {
            "listen": format!("127.0.0.1:{}", port(9000)),
            "credentials_file": home.join("credentials"),
        },
        "admin": {"listen": format!("127.0.0.1:{}", port(9091))},
        "drain_timeout": "5s",
        "log": {"level": "warn"},
    });
    let text = serde_json::to_string_pretty(&value).expect("a tree of texts can be written");
    format!("# The demo's configuration; every key is in docs/configuration.md.\n{text}\n")
}

/// The three lines to paste. Writing to a String cannot fail.
fn lines(started: &Announcement, file: &Path) -> String {
    let mut out = String::from("\npaste one of these into another terminal:\n");
    if let Some(mount) = &started.mount {
        let demo = announce::quoted(&mount.join("demo").display().to_string());
        let _ = writeln!(out, "  ls -lR {demo} && sha256sum {demo}/shards/*");
    }
    if let Some(s3) = &started.s3 {
        let exports: Vec<String> =
            s3.exports().into_iter().filter(|l| !l.starts_with('#')).collect();
        let exports = exports.join("; ");
        let _ = writeln!(out, "  ({exports}; aws s3 ls --recursive s3://demo/)");
    }
    if let Some(admin) = &started.admin {
        let program = std::env::current_exe().ok();
        let program = program.map_or("warpdrive".to_owned(), |p| p.display().to_string());
        // The file may say port 0; the address is where it really is.
        let program = announce::quoted(&program);
        let _ = writeln!(out, "  {program} stats --admin {admin} --watch");
    }
    let _ = writeln!(out, "\nconfiguration: {}\nCtrl-C ends it", file.display());
    out
}
