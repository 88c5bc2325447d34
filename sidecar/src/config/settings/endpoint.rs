//! The `s3` and `admin` sections, and addresses.
//!
//! Invariant: nothing that needs no credential listens beyond loopback unless the file says so in
//! so many words.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use store::BucketName;

use super::{BackendSettings, Context};
use crate::config::problem::Problems;
use crate::config::secret::Lookup;
use crate::config::size::ByteSize;
use crate::config::typed::{TypedAdmin, TypedKey, TypedS3};
use crate::config::yaml::{At, nearest};

/// The S3 endpoint.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who may ask.
    pub access: AccessSettings,
    /// Where the generated or static key is written for clients; `None` picks a place at start.
    pub credentials_file: Option<PathBuf>,
    /// Whether `/credentials` of the admin endpoint gives a generated key only to who knows the token.
    pub credentials_token: bool,
    /// The profile's name in that file.
    pub profile: String,
    /// The region that clients sign for and are told.
    pub region: String,
    /// Bucket names and the backends that they show, complete: aliases, and the names of backends
    /// without one.
    pub buckets: BTreeMap<BucketName, BucketName>,
    /// Host names, besides the addresses, that requests may name.
    pub allowed_hosts: Vec<String>,
    /// Memory that bodies of writes may take together.
    pub body_memory_bytes: u64,
}

/// Who may ask the S3 endpoint.
#[derive(Debug, Clone)]
pub enum AccessSettings {
    /// One key pair, made at each start.
    Generated,
    /// These key pairs.
    Static(Vec<KeyPair>),
    /// Everyone who can connect.
    Anonymous,
}

/// A key pair of a client.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// The public half.
    pub id: String,
    /// The secret half.
    pub secret: SecretString,
}

/// Where the admin endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket, reachable for its owner only.
    Unix(PathBuf),
}

impl std::fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

const DEFAULT_S3_LISTEN: &str = "127.0.0.1:9000";
const DEFAULT_ADMIN_LISTEN: &str = "127.0.0.1:9091";
/// A window of 1 MiB for each of 64 writes at once.
const DEFAULT_BODY_MEMORY: ByteSize = ByteSize::mib(64);

/// An address such as `127.0.0.1:9000`, `[::1]:9000`, `localhost:9000` or `:9000` (every interface).
pub(crate) fn address(text: &str, at: &At, problems: &mut Problems) -> Option<SocketAddr> {
    let parsed = match text.rsplit_once(':') {
        Some(("", port)) => port.parse().ok().map(|p| SocketAddr::from((Ipv4Addr::UNSPECIFIED, p))),
        Some(("localhost", port)) => {
            port.parse().ok().map(|p| SocketAddr::from((Ipv4Addr::LOCALHOST, p)))
        }
        _ => text.parse().ok(),
    };
    if parsed.is_none() {
        problems.add(
            at,
            format!("`{text}` is not an address"),
            "write address:port, such as 127.0.0.1:9000 or [::1]:9000 (port 0 takes a free one)",
        );
    }
    parsed
}

pub(crate) fn s3(
    typed: TypedS3,
    backends: &[BackendSettings],
    names: &[String],
    allow_inline: bool,
    context: &mut Context<'_>,
) -> Option<S3Settings> {
    let at = At::root().key("s3");
    let listen = typed.listen.as_deref().unwrap_or(DEFAULT_S3_LISTEN);
    let listen = address(listen, &at.key("listen"), &mut context.problems);
    let keys = keys(typed.keys.unwrap_or_default(), &at, allow_inline, context);
    let problems = &mut context.problems;
    let access = match typed.access.as_deref() {
        None | Some("generated") => AccessSettings::Generated,
        Some("static") => AccessSettings::Static(keys.clone()),
        Some("anonymous") => AccessSettings::Anonymous,
        Some(other) => {
            problems.add(
                at.key("access"),
                format!("`{other}` is not a way of access"),
                "write generated, static or anonymous",
            );
            AccessSettings::Generated
        }
    };
    match &access {
        AccessSettings::Static(keys) if keys.is_empty() => problems.add(
            at.key("keys"),
            "names no key, and `access` is static",
            "add `keys: [{access_key_id: me, secret_access_key: env:NAME}]`",
        ),
        AccessSettings::Static(_) => {}
        _ if !keys.is_empty() => problems.add(
            at.key("keys"),
            "has keys that `access` does not use",
            "write `access: static`, or remove the keys",
        ),
        _ => {}
    }
    let open = typed.allow_anonymous_on_non_loopback.unwrap_or(false);
    if let (AccessSettings::Anonymous, Some(listen)) = (&access, listen)
        && !listen.ip().is_loopback()
        && !open
    {
        problems.add(
            at.key("access"),
            format!("is anonymous, and {listen} can be reached from other machines"),
            "listen on 127.0.0.1, use access generated or static, or set \
             `allow_anonymous_on_non_loopback: true`",
        );
    }
    let buckets = buckets(typed.buckets.unwrap_or_default(), backends, names, &at, problems);
    let profile = typed.profile.unwrap_or_else(|| "default".to_owned());
    if profile.is_empty() || profile.contains(['[', ']', '\n', '\r']) {
        problems.add(at.key("profile"), "is not the name of a profile", "write a plain word");
    }
    let region = typed.region.unwrap_or_else(|| "us-east-1".to_owned());
    if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        problems.add(at.key("region"), "is not a region", "write one such as us-east-1");
    }
    let body_memory_bytes = typed.body_memory.unwrap_or(DEFAULT_BODY_MEMORY).0;
    if body_memory_bytes < ByteSize::mib(16).0 {
        problems.add(at.key("body_memory"), "is too small", "write 16MiB or more");
    }
    let listen = listen?;
    typed.enabled.unwrap_or(true).then(|| S3Settings {
        listen,
        access,
        credentials_file: typed.credentials_file.map(PathBuf::from),
        credentials_token: typed.credentials_token.unwrap_or(true),
        profile,
        region,
        buckets,
        allowed_hosts: typed.allowed_hosts.unwrap_or_default(),
        body_memory_bytes,
    })
}

fn keys(
    typed: Vec<TypedKey>,
    at: &At,
    allow_inline: bool,
    context: &mut Context<'_>,
) -> Vec<KeyPair> {
    let lookup =
        Lookup { environment: context.environment, variables: context.variables, allow_inline };
    let problems = &mut context.problems;
    let mut pairs: Vec<KeyPair> = Vec::new();
    for (index, key) in typed.into_iter().enumerate() {
        let at = at.key("keys").index(index);
        let (Some(id), Some(secret)) = (&key.access_key_id, &key.secret_access_key) else {
            let fix = "give each key an access_key_id and a secret_access_key";
            problems.add(&at, "is half of a key", fix);
            continue;
        };
        let id = lookup.resolve(id, true, &at.key("access_key_id"), problems);
        let secret = lookup.resolve(secret, false, &at.key("secret_access_key"), problems);
        let (Some(id), Some(secret)) = (id, secret) else { continue };
        let id = id.expose_secret().to_owned();
        // Eight characters can be guessed at the rate that a loopback endpoint answers.
        if secret.expose_secret().len() < 8 {
            let fix = "write 8 characters or more; AWS uses 40";
            problems.add(at.key("secret_access_key"), "is too short", fix);
        }
        if pairs.iter().any(|pair| pair.id == id) {
            problems.add(at.key("access_key_id"), "is named twice", "give each key its own id");
        }
        pairs.push(KeyPair { id, secret });
    }
    pairs
}

fn buckets(
    typed: BTreeMap<String, String>,
    backends: &[BackendSettings],
    names: &[String],
    at: &At,
    problems: &mut Problems,
) -> BTreeMap<BucketName, BucketName> {
    let at = at.key("buckets");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut buckets = BTreeMap::new();
    for (alias, backend) in typed {
        let place = at.key(&alias);
        if !names.contains(&&*backend) {
            problems.add(
                &place,
                format!("`{backend}` is not a backend"),
                nearest(&backend, &names),
            );
            continue;
        }
        match (BucketName::new(&alias), BucketName::new(&backend)) {
            (Ok(alias), Ok(backend)) => {
                buckets.insert(alias, backend);
            }
            (Err(error), _) | (_, Err(error)) => {
                problems.add(
                    &place,
                    error.to_string(),
                    "write 1 to 63 letters, digits, `.` or `-`",
                );
            }
        }
    }
    for backend in backends {
        if buckets.values().any(|shown| *shown == backend.name) {
            continue;
        }
        if let Some(other) = buckets.insert(backend.name.clone(), backend.name.clone()) {
            problems.add(
                at.key(backend.name.as_str()),
                format!("is an alias of `{other}`, and the name of a backend without an alias"),
                "choose another alias, or give that backend one too",
            );
        }
    }
    buckets
}

pub(crate) fn admin(typed: TypedAdmin, problems: &mut Problems) -> Option<AdminAddress> {
    let at = At::root().key("admin").key("listen");
    let text = typed.listen.unwrap_or_else(|| DEFAULT_ADMIN_LISTEN.to_owned());
    let address = if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        // The kernel's limit of a socket's path, less its final NUL.
        if !path.is_absolute() || path.as_os_str().len() > 107 {
            let what = format!("`{}` is not a path for a socket", path.display());
            problems.add(&at, what, "write unix:/run/warpdrive/admin.sock, at most 107 bytes");
        }
        Some(AdminAddress::Unix(path))
    } else {
        let address = self::address(&text, &at, problems);
        if let Some(address) = address
            && !is_loopback(address.ip())
        {
            problems.add(
                &at,
                format!("{address} can be reached from other machines"),
                "listen on 127.0.0.1 or unix:/path; metrics.addr may be on any address",
            );
        }
        address.map(AdminAddress::Tcp)
    };
    address.filter(|_| typed.enabled.unwrap_or(true))
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
