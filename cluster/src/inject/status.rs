//! The status annotation: what an injection did, so that the next one does the same.
//!
//! Invariant: what cannot be read is as if it were not there. It holds no secret, and nothing in it
//! gives a pod more than its annotations could.

use serde_json::{Value, json};

use super::Ports;
use crate::names::{ADMIN_PORT, METRICS_PORT, S3_PORT, STATUS_ANNOTATION};
use crate::settings::{Denial, S3, Settings};

/// First port of pods on the host's network: below `NodePort`s (30000) and the ephemeral ports of Linux
/// (32768), above what services of a node commonly use.
const FIRST_HOST_PORT: u16 = 20_000;
/// Pairs of ports to choose from.
const HOST_PORT_PAIRS: u16 = 4096;

/// What an injection did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) mode: String,
    pub(super) ports: Option<Ports>,
    /// Grace period, seconds: before and after.
    pub(super) grace: Option<(u64, u64)>,
}

impl Status {
    pub(super) fn of(metadata: &Value) -> Option<Self> {
        let text = metadata.get("annotations")?.get(STATUS_ANNOTATION)?.as_str()?;
        let status: Value = serde_json::from_str(text).ok()?;
        let port = |name: &str| {
            let port = status.get("ports")?.get(name)?.as_u64()?;
            u16::try_from(port).ok().filter(|port| *port >= 1024)
        };
        let grace = status.get("graceSeconds");
        let grace = |name: &str| grace?.get(name)?.as_u64();
        Some(Self {
            version: status.get("version")?.as_str()?.to_owned(),
            mode: status.get("mode")?.as_str()?.to_owned(),
            ports: port("admin").map(|admin| Ports {
                s3: port("s3"),
                admin,
                metrics: port("metrics"),
            }),
            grace: grace("from").zip(grace("to")),
        })
    }

    pub(super) fn print(&self) -> String {
        let mut status = json!({"version": self.version, "mode": self.mode});
        if let Some(ports) = self.ports {
            let mut printed = json!({"admin": ports.admin});
            for (name, port) in [("s3", ports.s3), ("metrics", ports.metrics)] {
                if let Some(port) = port {
                    printed[name] = json!(port);
                }
            }
            status["ports"] = printed;
        }
        if let Some((from, to)) = self.grace {
            status["graceSeconds"] = json!({"from": from, "to": to});
        }
        status.to_string()
    }
}

/// Where the worker of a pod listens.
pub(super) fn ports(
    settings: &Settings,
    host_network: bool,
    uid: &str,
    before: Option<&Status>,
) -> Result<Ports, Denial> {
    let (s3, admin, metrics) = if host_network {
        if settings.metrics == Some(true) {
            return Err(Denial::of(
                "metrics",
                "`on` is not possible with hostNetwork, where two pods of a node would want one port: \
                 leave it out",
            ));
        }
        let derived = (FIRST_HOST_PORT, FIRST_HOST_PORT + 2 * HOST_PORT_PAIRS);
        let kept = before.and_then(|before| before.ports);
        let kept = kept.filter(|ports| (derived.0..derived.1).contains(&ports.admin));
        let admin = kept.map_or_else(|| host_port(uid), |ports| ports.admin);
        // The S3 endpoint's is the even one before it.
        (admin & !1, admin | 1, None)
    } else {
        (S3_PORT, ADMIN_PORT, (settings.metrics != Some(false)).then_some(METRICS_PORT))
    };
    Ok(Ports {
        s3: (settings.s3 != S3::Off).then(|| settings.s3_port.unwrap_or(s3)),
        admin: settings.admin_port.unwrap_or(admin),
        metrics,
    })
}

/// A port that is another for most other pods: FNV-1a over the request's uid.
fn host_port(uid: &str) -> u16 {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let pair = u16::try_from((hash ^ (hash >> 32)) % u64::from(HOST_PORT_PAIRS)).unwrap_or(0);
    FIRST_HOST_PORT + 2 * pair + 1
}
