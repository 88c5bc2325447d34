//! This program as a target: a sidecar of its own, with a cache of its own.
//!
//! Invariant: the sidecar is the same executable as the bench, started as a user starts it, with a
//! configuration that the report shows.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::halt::{During, Halt, Trouble};
use super::origin::free_port;
use super::place::{Place, Process};
use super::wire::{Endpoint, Wire};

/// A debug build on a busy machine.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// What a socket's path may be long, by the configuration's own rule.
const MAX_STATE_DIR: usize = 90;
/// On a small disk the usual floor would keep the cache empty.
const MIN_FREE: &str = "256MiB";

/// How a sidecar is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it comes.
    Usual,
    /// The process answers every read.
    Cached,
    /// The worker holds the mount itself.
    Alone,
    /// S3 only.
    EndpointOnly,
}

/// What a cache is given.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Where the origin is reached, directly or through a link.
    pub(crate) origin: Endpoint,
    pub(crate) cache_bytes: u64,
    pub(crate) memory_bytes: u64,
}

/// A sidecar that is ready.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) folder: PathBuf,
    pub(crate) mount: PathBuf,
    pub(crate) s3: SocketAddr,
    pub(crate) process: Process,
    admin: PathBuf,
    config: PathBuf,
    secret: Option<String>,
    supervised: bool,
}

impl Own {
    /// Starts one with an empty cache.
    pub(crate) fn start(
        place: &Place,
        name: &str,
        mode: Mode,
        wish: &Wish,
        supervised: bool,
        halt: &Halt,
    ) -> Result<Self, Trouble> {
        let folder = place.folder(name)?;
        let mount = folder.join("mnt");
        std::fs::create_dir(&mount).during(mount.display())?;
        let port = free_port()?;
        let admin = folder.join("admin.sock");
        let config = folder.join("warpdrive.yaml");
        let value = configuration(&folder, mode, wish, port);
        let text = serde_json::to_string_pretty(&value).during("configuration")?;
        std::fs::write(&config, text).during(config.display())?;
        let secret = wish.origin.key.as_ref().map(|key| key.secret.clone());
        let process = launch(place, &folder, &config, secret.as_deref(), supervised)?;
        let s3 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let own = Self { folder, mount, s3, process, admin, config, secret, supervised };
        own.wait(halt)?;
        Ok(own)
    }

    fn wait(&self, halt: &Halt) -> Result<(), Trouble> {
        halt.wait_for("warpdrive: not ready", READY_WITHIN, || {
            self.process.check()?;
            let answer = Wire::to_unix(&self.admin).and_then(|mut wire| wire.get_text("/readyz"));
            Ok(answer.is_ok_and(|(status, _)| status == 200))
        })
    }

    /// Starts the worker again with the cache that it left.
    pub(crate) fn start_again(&mut self, place: &Place, halt: &Halt) -> Result<(), Trouble> {
        let secret = self.secret.as_deref();
        self.process = launch(place, &self.folder, &self.config, secret, self.supervised)?;
        self.wait(halt)
    }

    /// What `warpdrive stats --json` says.
    fn status(&self) -> Result<Value, Trouble> {
        let (_, text) = Wire::to_unix(&self.admin)?.get_text("/status")?;
        serde_json::from_str(&text).during("/status")
    }

    /// What it tells Prometheus.
    pub(crate) fn metrics(&self) -> Result<String, Trouble> {
        Ok(Wire::to_unix(&self.admin)?.get_text("/metrics")?.1)
    }

    /// The process that serves, which a supervisor may stand above.
    pub(crate) fn worker(&self) -> Result<u32, Trouble> {
        let pid = self.status()?["pid"].as_u64();
        Ok(pid.ok_or_else(|| "/status names no process".to_owned())? as u32)
    }

    /// Its configuration as it was written, in lines.
    pub(crate) fn settings(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.config).unwrap_or_default();
        serde_json::from_str::<Value>(&text).map_or_else(|_| vec![text], |value| lines(&value))
    }
}

fn launch(
    place: &Place,
    folder: &Path,
    config: &Path,
    secret: Option<&str>,
    supervised: bool,
) -> Result<Process, Trouble> {
    let program = std::env::current_exe().during("this program's own path")?;
    let mut command = Command::new(program);
    command.args(["run", "-c"]).arg(config).env("BENCH_SECRET_KEY", secret.unwrap_or_default());
    command.env_remove("NOTIFY_SOCKET").env_remove("WARPDRIVE_LOG").env_remove("WARPDRIVE_ADMIN");
    if supervised {
        command.arg("--supervise");
    }
    place.spawn(command, folder)
}

/// The configuration: JSON is YAML.
fn configuration(folder: &Path, mode: Mode, wish: &Wish, port: u16) -> Value {
    let origin = &wish.origin;
    let auth = match &origin.key {
        None => json!({"method": "none"}),
        Some(key) => json!({
            "method": "static",
            "access_key_id": key.access,
            "secret_access_key": "env:BENCH_SECRET_KEY",
        }),
    };
    let mut fuse = json!({"enabled": mode != Mode::EndpointOnly});
    if mode == Mode::Cached {
        fuse["passthrough"] = "off".into();
    }
    if mode == Mode::Alone {
        fuse["holder"] = "none".into();
    }
    let mut config = json!({
        "mount_point": folder.join("mnt"),
        "fuse": fuse,
        "cache": {
            "path": folder.join("cache"),
            "max_size": wish.cache_bytes,
            "memory": wish.memory_bytes,
            "min_free": MIN_FREE,
            // What the cache may hold is what it is told to: by default a tenth is kept clear.
            "evict_high_water": 0.99,
            "evict_low_water": 0.95,
        },
        "backends": [{
            "name": origin.bucket,
            "type": "s3",
            "config": {
                "endpoint": origin.url(),
                "region": origin.key.as_ref().map_or("us-east-1", |key| &key.region),
                "bucket": origin.bucket,
                "path_style": true,
            },
            "auth": auth,
        }],
        "s3": {"listen": format!("127.0.0.1:{port}"), "access": "anonymous"},
        "admin": {"listen": format!("unix:{}", folder.join("admin.sock").display())},
        "drain_timeout": "5s",
        "log": {"level": "warn"},
    });
    let state = folder.join("state");
    if state.as_os_str().len() <= MAX_STATE_DIR {
        config["state_dir"] = json!(state);
    }
    config
}

/// `a.b: value` of every leaf.
fn lines(value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    leaves("", value, &mut out);
    out
}

fn leaves(at: &str, value: &Value, out: &mut Vec<String>) {
    let below = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| leaves(&below(name), value, out)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| leaves(&format!("{at}[{i}]"), v, out));
        }
        Value::String(text) => out.push(format!("{at}: {text}")),
        other => out.push(format!("{at}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sign::Key;
    use super::*;
    use crate::config::{self, Environment};

    #[test]
    fn every_mode_is_a_configuration_that_can_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key { access: "a".into(), secret: "s".into(), region: "eu-1".into() };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let origin = Endpoint { address, key: Some(key), bucket: "data".into() };
        let wish = Wish { origin, cache_bytes: 1 << 30, memory_bytes: 64 << 20 };
        for mode in [Mode::Usual, Mode::Cached, Mode::Alone, Mode::EndpointOnly] {
            let file = folder.path().join("warpdrive.yaml");
            let value = configuration(folder.path(), mode, &wish, 1);
            std::fs::write(&file, value.to_string()).unwrap();
            let environment = Environment::from([("BENCH_SECRET_KEY", "s")]);
            let settings = config::load(&file, &environment).unwrap();
            assert_eq!(settings.mount.is_some(), mode != Mode::EndpointOnly);
            assert!(lines(&value).contains(&"backends[0].config.region: eu-1".to_owned()));
        }
    }
}
