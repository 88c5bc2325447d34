//! The `backends` section: each origin with its name, its place in the mount and its policy.
//!
//! Invariant: names and mount paths are unique, so a namespace can be built of them.

use std::collections::BTreeMap;
use std::time::Duration;

use ::cache::Retention;
use backends::{OriginConfig, Policy};
use store::BucketName;

use super::cache::{self, CacheSettings};
use super::{Context, origin};
use crate::config::problem::Problems;
use crate::config::typed::TypedBackend;
use crate::config::yaml::At;

/// One origin.
#[derive(Debug, Clone)]
pub struct BackendSettings {
    /// Its name, which is also the name of its bucket unless aliases are given.
    pub name: BucketName,
    /// The type as it was typed: `local`, `nfs`, `s3`, `azureblob` or `gcs`.
    pub kind: &'static str,
    /// Where it appears below the mount point; begins with a slash.
    pub mount_path: String,
    /// What is opened, with its credential and policy.
    pub origin: OriginConfig,
    /// How the credential was named, for people: `static key AKIA...`, `anonymous`.
    pub credential: String,
    /// True when writes are refused before they reach the origin.
    pub read_only: bool,
    /// What is believed without asking, and for how long.
    pub freshness: Freshness,
    /// Whether its objects make room for new ones.
    pub retention: Retention,
}

/// What is believed without asking the origin, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    /// Age at which metadata is checked again.
    pub stale_ttl: Duration,
    /// How long it is believed that an object is not there.
    pub negative_ttl: Duration,
    /// How long past `stale_ttl` cached data is served while the origin cannot be reached.
    pub stale_if_error: Duration,
    /// True when no object of this origin ever changes.
    pub immutable: bool,
    /// Prefixes below which no object ever changes.
    pub immutable_prefixes: Vec<String>,
}

/// The backends that hold together, and the names of all of them.
pub(crate) fn validate(
    typed: Vec<TypedBackend>,
    allow_inline: bool,
    cache: &CacheSettings,
    notes: &mut Vec<String>,
    context: &mut Context<'_>,
) -> (Vec<BackendSettings>, Vec<String>) {
    if typed.is_empty() {
        context.problems.add(
            "backends",
            "names no origin",
            "add one, such as `backends: [{name: train, type: local, config: {path: /srv/train}}]`",
        );
    }
    let mut names: BTreeMap<String, At> = BTreeMap::new();
    let mut paths: BTreeMap<String, At> = BTreeMap::new();
    let mut read = Vec::new();
    for (index, backend) in typed.into_iter().enumerate() {
        let at = At::root().key("backends").index(index);
        // Names are compared before the rest is looked at, so that a backend with another mistake
        // still counts.
        if let Some(name) = &backend.name
            && let Some(other) = names.insert(name.clone(), at.clone())
        {
            context.problems.add(
                at.key("name"),
                format!("`{name}` is also the name of {other}"),
                "give each backend its own name",
            );
        }
        let Some(backend) = one(&backend, &at, allow_inline, cache, notes, context) else {
            continue;
        };
        if let Some(other) = paths.insert(backend.mount_path.clone(), at.clone()) {
            context.problems.add(
                at.key("mount_path"),
                format!("`{}` is also the mount path of {other}", backend.mount_path),
                "give each backend its own mount_path",
            );
        }
        read.push(backend);
    }
    (read, names.into_keys().collect())
}

fn one(
    typed: &TypedBackend,
    at: &At,
    allow_inline: bool,
    cache: &CacheSettings,
    notes: &mut Vec<String>,
    context: &mut Context<'_>,
) -> Option<BackendSettings> {
    let name = name(typed.name.as_deref(), at, &mut context.problems);
    let freshness = Freshness {
        stale_ttl: typed.stale_ttl.unwrap_or(cache.stale_ttl),
        negative_ttl: typed.negative_ttl.unwrap_or(cache.negative_ttl),
        stale_if_error: typed.stale_if_error.unwrap_or(cache.stale_if_error),
        immutable: typed.immutable.unwrap_or(false),
        immutable_prefixes: typed.immutable_prefixes.clone().unwrap_or_default(),
    };
    let shown = name.as_ref().map_or("name", BucketName::as_str);
    let path = typed.mount_path.clone().unwrap_or_else(|| format!("/{shown}"));
    let mount_path = mount_path(&path, at, &mut context.problems);
    let policy = policy(typed, at, &mut context.problems);
    let read_only = typed.read_only.unwrap_or(false);
    let retention = typed.retention.as_deref();
    let retention = cache::retention(retention, &at.key("retention"), &mut context.problems);
    let allow_inline = typed.allow_inline_secrets.unwrap_or(allow_inline);
    let origin = origin::validate(typed, at, allow_inline, notes, context);
    let (name, mount_path, origin) = (name?, mount_path?, origin?);
    Some(BackendSettings {
        name,
        kind: origin.label,
        mount_path,
        origin: OriginConfig { kind: origin.kind, policy },
        credential: origin.credential,
        read_only,
        freshness,
        retention: retention.unwrap_or(cache.retention),
    })
}

fn name(typed: Option<&str>, at: &At, problems: &mut Problems) -> Option<BucketName> {
    let Some(typed) = typed else {
        problems.add(at.key("name"), "is missing", "give the backend a name, such as `train`");
        return None;
    };
    BucketName::new(typed)
        .map_err(|error| {
            let fix = "write 1 to 63 letters, digits, `.`, `_` or `-`: clients see it as a bucket";
            problems.add(at.key("name"), error.to_string(), fix);
        })
        .ok()
}

/// The path without a trailing slash; `/` stays.
fn mount_path(typed: &str, at: &At, problems: &mut Problems) -> Option<String> {
    let trimmed = typed.strip_suffix('/').unwrap_or(typed);
    let good = typed == "/"
        || trimmed.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|s| !matches!(s, "" | "." | "..") && !s.contains('\0'))
        });
    if !good {
        problems.add(
            at.key("mount_path"),
            format!("`{typed}` is not a path below the mount point"),
            "begin with a slash and leave out empty, `.` and `..` parts, such as /train",
        );
        return None;
    }
    Some(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

fn policy(typed: &TypedBackend, at: &At, problems: &mut Problems) -> Policy {
    let default = Policy::default();
    let times = typed.timeouts.clone().unwrap_or_default();
    let retry = typed.retry.clone().unwrap_or_default();
    let breaker = typed.breaker.clone().unwrap_or_default();
    let mut positive = |section: &str, key: &str, given: Option<Duration>, default: Duration| {
        if given.is_some_and(|d| d.is_zero()) {
            let place = at.key(section).key(key);
            problems.add(place, "is 0", "write a duration such as 5s, or leave it out");
        }
        given.unwrap_or(default)
    };
    let connect_timeout = positive("timeouts", "connect", times.connect, default.connect_timeout);
    let first_byte_timeout =
        positive("timeouts", "first_byte", times.first_byte, default.first_byte_timeout);
    let idle_timeout = positive("timeouts", "idle", times.idle, default.idle_timeout);
    let call_timeout = positive("timeouts", "call", times.call, default.call_timeout);
    let completion_timeout =
        positive("timeouts", "completion", times.completion, default.completion_timeout);
    let backoff_base = positive("retry", "backoff", retry.backoff, default.backoff_base);
    let backoff_max = positive("retry", "backoff_max", retry.backoff_max, default.backoff_max);
    let breaker_cooldown =
        positive("breaker", "cooldown", breaker.cooldown, default.breaker_cooldown);
    if backoff_max < backoff_base {
        let fix = "write a longer one, such as 5s";
        problems.add(at.key("retry").key("backoff_max"), "is below retry.backoff", fix);
    }
    let mut count = |section: &str, key: &str, given: Option<u64>, default: u32, most: u32| {
        let Some(given) = given else { return default };
        u32::try_from(given).ok().filter(|n| *n <= most).unwrap_or_else(|| {
            let place = at.key(section).key(key);
            problems.add(place, format!("{given} is out of range"), format!("write 0 to {most}"));
            default
        })
    };
    Policy {
        connect_timeout,
        first_byte_timeout,
        idle_timeout,
        call_timeout,
        completion_timeout,
        retries: count("retry", "max", retry.max, default.retries, 100),
        backoff_base,
        backoff_max,
        retry_budget: count("retry", "budget", retry.budget, default.retry_budget, 100_000),
        breaker_failures: count(
            "breaker",
            "failures",
            breaker.failures,
            default.breaker_failures,
            100_000,
        ),
        breaker_cooldown,
    }
}
