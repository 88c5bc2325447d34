//! From annotations to settings.
//!
//! Invariant: the pod's own annotation wins over the administrator's default, and only what the pod
//! itself says can contradict it. Refuses what [`super`] says.

use std::collections::BTreeMap;

use serde_json::Value;

use super::annotations::{ANNOTATIONS, near};
use super::defaults::short;
use super::{Cache, Defaults, Denial, Mode, Object, S3, Settings, Warm, quantity};
use crate::names::{
    ADMIN_PORT, ANNOTATION_PREFIX, CONFIG_KEY, INJECT_LABEL, METRICS_PORT, S3_PORT,
    STATUS_ANNOTATION,
};

/// Longest list in an annotation: more mounts or prefixes than that belong into the configuration.
const MOST_ITEMS: usize = 32;
/// Longest grace that is added, seconds: a day.
const MOST_FLUSH_SECONDS: u32 = 86_400;
/// Smallest disk tier: less does not hold one block of each reader.
const LEAST_CACHE_BYTES: u64 = 64 << 20;
/// Smallest memory tier: below, not even one fetch fits.
const LEAST_MEMORY_BYTES: u64 = 16 << 20;
/// Paths that a container cannot live without, or that the runtime has its own mounts in.
const SYSTEM_PATHS: &[&str] = &["/", "/proc", "/sys", "/dev", "/etc", "/bin", "/usr", "/lib"];

/// The annotations of one pod over the defaults.
struct Reader<'a> {
    /// What the pod itself says.
    own: BTreeMap<&'a str, &'a str>,
    defaults: BTreeMap<&'a str, &'a str>,
}

impl<'a> Reader<'a> {
    fn new(metadata: &'a Value, defaults: &'a Defaults) -> Result<Self, Denial> {
        let mut own = BTreeMap::new();
        match metadata.get("annotations") {
            None | Some(Value::Null) => {}
            Some(Value::Object(annotations)) => {
                for (key, value) in annotations {
                    let Some(name) = key.strip_prefix(ANNOTATION_PREFIX) else { continue };
                    if key == STATUS_ANNOTATION {
                        continue;
                    }
                    known(key, name)?;
                    let text = value
                        .as_str()
                        .ok_or_else(|| Denial::of(name, "is not text, write it in quotes"))?;
                    own.insert(name, text.trim());
                }
            }
            Some(_) => return Err(Denial::new("metadata.annotations is not an object of texts")),
        }
        let mut given = BTreeMap::new();
        for (key, value) in &defaults.annotations {
            known(key, short(key))?;
            given.insert(short(key), value.trim());
        }
        Ok(Self { own, defaults: given })
    }

    /// What holds for an annotation, if anything.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.own.get(name).or_else(|| self.defaults.get(name)).copied()
    }

    /// The same, or the table's default.
    fn text(&self, name: &str) -> &'a str {
        self.get(name).unwrap_or_else(|| {
            ANNOTATIONS.iter().find(|one| one.name == name).map_or("", |one| one.default)
        })
    }

    /// Refuses an annotation of the pod's own that means nothing beside another.
    fn pointless(&self, names: &[&str], why: &str) -> Result<(), Denial> {
        match names.iter().find(|name| self.own.contains_key(**name)) {
            Some(name) => Err(Denial::of(name, why)),
            None => Ok(()),
        }
    }

    fn list(&self, name: &str) -> Result<Vec<&'a str>, Denial> {
        let text = self.text(name);
        if text.is_empty() {
            if self.own.contains_key(name) {
                return Err(Denial::of(name, "is empty, name something or leave it out"));
            }
            return Ok(Vec::new());
        }
        let items: Vec<&str> = text.split(',').map(str::trim).collect();
        if items.len() > MOST_ITEMS {
            return Err(Denial::of(
                name,
                format_args!("has {} items, at most {MOST_ITEMS} are allowed", items.len()),
            ));
        }
        if items.iter().any(|item| item.is_empty()) {
            return Err(Denial::of(
                name,
                "has an empty item, write items with one comma between two",
            ));
        }
        for (at, item) in items.iter().enumerate() {
            if items[..at].contains(item) {
                return Err(Denial::of(
                    name,
                    format_args!("names {} twice, once is enough", quoted(item)),
                ));
            }
        }
        Ok(items)
    }

    fn size(&self, name: &str, least: u64) -> Result<u64, Denial> {
        let text = self.text(name);
        let least_printed = quantity::print_bytes(least);
        match quantity::bytes(text) {
            None => Err(Denial::of(
                name,
                format_args!("{} is not a size, write 50Gi or 200GB", quoted(text)),
            )),
            Some(bytes) if bytes < least => Err(Denial::of(
                name,
                format_args!("{} is too small, at least {least_printed} is needed", quoted(text)),
            )),
            Some(bytes) => Ok(bytes),
        }
    }

    fn port(&self, name: &str) -> Result<Option<u16>, Denial> {
        let Some(text) = self.get(name) else { return Ok(None) };
        // Lower ports take a capability that the worker does not have.
        match text.parse::<u16>() {
            Ok(port) if port >= 1024 => Ok(Some(port)),
            _ => Err(Denial::of(
                name,
                format_args!("{} is not a port from 1024 to 65535", quoted(text)),
            )),
        }
    }

    fn flag(&self, name: &str, [no, yes]: [&str; 2]) -> Result<bool, Denial> {
        match self.text(name) {
            text if text == no => Ok(false),
            text if text == yes => Ok(true),
            text => Err(Denial::of(
                name,
                format_args!("{} is not allowed, write {yes} or {no}", quoted(text)),
            )),
        }
    }
}

/// Text of a pod in a message, of bounded length.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push_str("...");
    }
    format!("`{short}`")
}

fn known(key: &str, name: &str) -> Result<(), Denial> {
    if ANNOTATIONS.iter().any(|one| one.name == name) {
        return Ok(());
    }
    if key == INJECT_LABEL || name == "inject" {
        return Err(Denial::of("inject", "is a label, write it below metadata.labels"));
    }
    let shown = quoted(name);
    let shown = shown.trim_matches('`');
    let begin = format!("annotation {ANNOTATION_PREFIX}{shown} is not known");
    if let Some(near) = near(shown) {
        return Err(Denial::new(format!("{begin}, did you mean {ANNOTATION_PREFIX}{near}")));
    }
    let all: Vec<_> = ANNOTATIONS.iter().map(|one| one.name).collect();
    Err(Denial::new(format!("{begin}, these are: {}", all.join(", "))))
}

/// Whether a text is a DNS subdomain, as names of objects are.
fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// Whether a text may be a key of a `ConfigMap`.
fn is_key(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(plain)
        && !text.starts_with("..")
        && text != "."
}

/// An absolute path as the kernel would print it, without a trailing slash.
fn absolute(text: &str) -> Option<String> {
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    if text == "/" {
        return Some(String::new());
    }
    let rest = trimmed.strip_prefix('/')?;
    let good = |part: &str| !part.is_empty() && part != "." && part != "..";
    // A colon ends a path for container runtimes.
    let plain = !rest.contains([':', '\0']) && !rest.chars().any(char::is_control);
    (rest.split('/').all(good) && plain && text.len() <= 1024).then(|| trimmed.to_owned())
}

/// Whether one path is the other or lies in it.
pub(crate) fn within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn mode(reader: &Reader<'_>) -> Result<Mode, Denial> {
    match reader.text("mode") {
        "sidecar" => Ok(Mode::Sidecar),
        "csi" => Ok(Mode::Csi),
        "s3" => Ok(Mode::S3),
        text => Err(Denial::of(
            "mode",
            format_args!("{} is not a mode, write sidecar, csi or s3", quoted(text)),
        )),
    }
}

fn config(reader: &Reader<'_>) -> Result<(Object, String), Denial> {
    let text = reader.text("config");
    let bad = || {
        Denial::of(
            "config",
            format_args!(
                "{} names no object, write NAME, NAME/KEY, secret:NAME or secret:NAME/KEY",
                quoted(text)
            ),
        )
    };
    let (kind, rest) = text.split_once(':').unwrap_or(("configmap", text));
    let (name, key) = rest.split_once('/').unwrap_or((rest, CONFIG_KEY));
    if !is_name(name) || !is_key(key) {
        return Err(bad());
    }
    let object = match kind.to_ascii_lowercase().as_str() {
        "configmap" => Object::ConfigMap(name.to_owned()),
        "secret" => Object::Secret(name.to_owned()),
        _ => return Err(bad()),
    };
    Ok((object, key.to_owned()))
}

fn env_from(reader: &Reader<'_>) -> Result<Vec<Object>, Denial> {
    let object = |text: &str| {
        let (kind, name) = text.split_once(':').unwrap_or(("secret", text));
        match kind.to_ascii_lowercase().as_str() {
            "secret" if is_name(name) => Ok(Object::Secret(name.to_owned())),
            "configmap" if is_name(name) => Ok(Object::ConfigMap(name.to_owned())),
            _ => Err(Denial::of(
                "env-from",
                format_args!(
                    "{} names no object, write secret:NAME or configmap:NAME",
                    quoted(text)
                ),
            )),
        }
    };
    reader.list("env-from")?.into_iter().map(object).collect()
}

fn mounts(reader: &Reader<'_>) -> Result<Vec<String>, Denial> {
    let mut paths: Vec<String> = Vec::new();
    for text in reader.list("mounts")? {
        let path = absolute(text).ok_or_else(|| {
            Denial::of(
                "mounts",
                format_args!(
                    "{} is not an absolute path such as /data, without `..`, `//` and `:`",
                    quoted(text)
                ),
            )
        })?;
        // What a container's root has to have; `/usr/share/data` is fine.
        if path.is_empty()
            || SYSTEM_PATHS.contains(&path.as_str())
            || ["/proc", "/sys", "/dev"].iter().any(|system| within(&path, system))
        {
            return Err(Denial::of(
                "mounts",
                format_args!("{} belongs to the system, choose a path such as /data", quoted(text)),
            ));
        }
        if let Some(other) = paths.iter().find(|other| within(&path, other) || within(other, &path))
        {
            return Err(Denial::of(
                "mounts",
                format_args!(
                    "{} and {} overlap, the same data is in both: choose paths beside each other",
                    quoted(&path),
                    quoted(other)
                ),
            ));
        }
        paths.push(path);
    }
    Ok(paths)
}

fn containers(reader: &Reader<'_>) -> Result<Option<Vec<String>>, Denial> {
    let names = reader.list("containers")?;
    if let Some(bad) =
        names.iter().find(|name| !is_name(name) || name.contains('.') || name.len() > 63)
    {
        return Err(Denial::of(
            "containers",
            format_args!("{} is not a container's name", quoted(bad)),
        ));
    }
    Ok((!names.is_empty()).then(|| names.into_iter().map(str::to_owned).collect()))
}

fn cache(reader: &Reader<'_>) -> Result<Cache, Denial> {
    let text = reader.text("cache");
    let bad = || {
        Denial::of(
            "cache",
            format_args!(
                "{} is not a cache, write emptyDir, memory, ephemeral, ephemeral:CLASS, pvc:NAME or hostPath:/PATH",
                quoted(text)
            ),
        )
    };
    Ok(match text.split_once(':') {
        None if text.eq_ignore_ascii_case("emptydir") => Cache::EmptyDir,
        None if text == "memory" => Cache::Memory,
        None if text == "ephemeral" => Cache::Ephemeral(None),
        Some(("ephemeral", class)) if is_name(class) => Cache::Ephemeral(Some(class.to_owned())),
        Some(("pvc", name)) if is_name(name) => Cache::Claim(name.to_owned()),
        Some((kind, path)) if kind.eq_ignore_ascii_case("hostpath") => match absolute(path) {
            Some(path) if !path.is_empty() => Cache::HostPath(path),
            _ => return Err(bad()),
        },
        _ => return Err(bad()),
    })
}

fn warm(reader: &Reader<'_>) -> Result<Option<Warm>, Denial> {
    let items = reader.list("warm")?;
    if items.is_empty() {
        return Ok(None);
    }
    if items == ["all"] {
        return Ok(Some(Warm::All));
    }
    let mut these = Vec::new();
    for item in items {
        let (bucket, prefix) = item.split_once('/').unwrap_or((item, ""));
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        // A name that begins with a dash would be an option.
        if item == "all"
            || bucket.is_empty()
            || bucket.starts_with('-')
            || !bucket.bytes().all(plain)
        {
            return Err(Denial::of(
                "warm",
                format_args!(
                    "{} is not allowed, write all, or BUCKET or BUCKET/PREFIX separated by commas",
                    quoted(item)
                ),
            ));
        }
        these.push((bucket.to_owned(), prefix.to_owned()));
    }
    Ok(Some(Warm::These(these)))
}

fn s3(reader: &Reader<'_>) -> Result<S3, Denial> {
    match reader.text("s3") {
        "on" => Ok(S3::On),
        "off" => Ok(S3::Off),
        "anonymous" => Ok(S3::Anonymous),
        text => Err(Denial::of(
            "s3",
            format_args!("{} is not allowed, write on, off or anonymous", quoted(text)),
        )),
    }
}

fn tokens(reader: &Reader<'_>) -> Result<Vec<(String, String)>, Denial> {
    let mut tokens: Vec<(String, String)> = Vec::new();
    for audience in reader.list("token-audiences")? {
        if audience.len() > 512 || audience.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Denial::of(
                "token-audiences",
                format_args!(
                    "{} is not an audience, write a name or URL without spaces",
                    quoted(audience)
                ),
            ));
        }
        let file = token_file(audience);
        if let Some((other, _)) = tokens.iter().find(|(_, name)| *name == file) {
            return Err(Denial::of(
                "token-audiences",
                format_args!(
                    "{} and {} would both be the file `{file}`, leave one out",
                    quoted(other),
                    quoted(audience)
                ),
            ));
        }
        tokens.push((audience.to_owned(), file));
    }
    Ok(tokens)
}

/// The file name of an audience's token: what is not a letter, digit, `.` or `_` becomes one dash.
fn token_file(audience: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let name: String = audience.chars().map(kept).collect();
    let parts: Vec<&str> = name.split('-').filter(|part| !part.is_empty()).collect();
    let mut file = parts.join("-");
    file.truncate(200);
    if file.is_empty() || file.starts_with('.') { format!("token{file}") } else { file }
}

fn log_level(reader: &Reader<'_>) -> Result<Option<String>, Denial> {
    let Some(text) = reader.get("log-level") else { return Ok(None) };
    let level =
        |level: &str| matches!(level, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let target = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
    };
    let part = |part: &str| match part.split_once('=') {
        Some((name, end)) => target(name) && level(end),
        None => level(part),
    };
    if text.len() <= 256 && text.split(',').all(part) {
        return Ok(Some(text.to_owned()));
    }
    Err(Denial::of(
        "log-level",
        format_args!(
            "{} is not a level, write error, warn, info, debug, trace, or a filter such as info,backends=debug",
            quoted(text)
        ),
    ))
}

fn flush_seconds(reader: &Reader<'_>) -> Result<u32, Denial> {
    let text = reader.text("flush-seconds");
    match text.parse::<u32>() {
        Ok(seconds) if seconds <= MOST_FLUSH_SECONDS => Ok(seconds),
        _ => Err(Denial::of(
            "flush-seconds",
            format_args!(
                "{} is not a whole number of seconds from 0 to {MOST_FLUSH_SECONDS}",
                quoted(text)
            ),
        )),
    }
}

impl Settings {
    /// What the annotations in a pod's metadata say, over the defaults.
    pub(crate) fn of(metadata: &Value, defaults: &Defaults) -> Result<Self, Denial> {
        let reader = Reader::new(metadata, defaults)?;
        let mode = mode(&reader)?;
        let (config, config_key) = config(&reader)?;
        let s3 = s3(&reader)?;
        let cache = cache(&reader)?;
        let cpu = reader.text("cpu");
        let settings = Self {
            mode,
            config,
            config_key,
            env_from: env_from(&reader)?,
            mounts: mounts(&reader)?,
            containers: containers(&reader)?,
            read_only: reader.flag("read-only", ["false", "true"])?,
            cache_bytes: reader.size("cache-size", LEAST_CACHE_BYTES)?,
            memory_bytes: reader.size("memory", LEAST_MEMORY_BYTES)?,
            cache,
            warm: warm(&reader)?,
            s3,
            s3_port: reader.port("s3-port")?,
            admin_port: reader.port("admin-port")?,
            metrics: reader
                .get("metrics")
                .map(|_| reader.flag("metrics", ["off", "on"]))
                .transpose()?,
            flush_seconds: flush_seconds(&reader)?,
            tokens: tokens(&reader)?,
            cpu_milli: quantity::milli(cpu).filter(|milli| *milli > 0).ok_or_else(|| {
                Denial::of(
                    "cpu",
                    format_args!("{} is not a number of processors, write 500m or 2", quoted(cpu)),
                )
            })?,
            log_level: log_level(&reader)?,
        };
        settings.together(&reader)?;
        Ok(settings)
    }

    /// Refuses what is possible each for itself, but not together.
    fn together(&self, reader: &Reader<'_>) -> Result<(), Denial> {
        if self.mode == Mode::S3 {
            reader.pointless(&["mounts", "read-only"], "has no meaning in mode s3, which mounts nothing: leave it out, or choose mode sidecar or csi")?;
            if self.s3 == S3::Off {
                return Err(Denial::of(
                    "s3",
                    "`off` leaves nothing in mode s3: write on or anonymous, or choose mode sidecar or csi",
                ));
            }
        }
        if self.s3 == S3::Off {
            reader.pointless(&["s3-port"], "has no meaning with s3 off: leave one of them out")?;
        }
        if self.cache == Cache::Memory {
            reader.pointless(&["cache-size"], "has no meaning with cache `memory`, whose size is the annotation warpdrive.io/memory")?;
        }
        let s3 = self.s3_port.unwrap_or(S3_PORT);
        let admin = self.admin_port.unwrap_or(ADMIN_PORT);
        if self.s3 != S3::Off && s3 == admin {
            return Err(Denial::of(
                "admin-port",
                format_args!("{admin} is the S3 endpoint's port too, choose two that differ"),
            ));
        }
        if self.metrics != Some(false) {
            for (name, port) in [("s3-port", s3), ("admin-port", admin)] {
                if port == METRICS_PORT {
                    return Err(Denial::of(
                        name,
                        format_args!(
                            "{port} is the port of the metrics, choose another or write metrics off"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}
