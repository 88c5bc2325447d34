//! What was typed: the shape of the file, every key optional, nothing decided.
//!
//! Invariant: a field here is a key of the file and nothing else knows the keys; defaults and rules
//! between keys live in `settings`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_yaml::Value;

use super::secret::SecretText;
use super::size::ByteSize;
use super::yaml::typed;

typed!(
    /// The whole file.
    Typed at "" {
        mount_point: String,
        allow_other: bool,
        fuse_debug: bool,
        fuse: TypedFuse,
        cache: TypedCache,
        backends: Vec<TypedBackend>,
        s3: TypedS3,
        admin: TypedAdmin,
        metrics: TypedMetrics,
        log: TypedLog,
        telemetry: TypedTelemetry,
        control_plane: TypedControlPlane,
        allow_inline_secrets: bool,
        drain_timeout: Duration,
        state_dir: String,
    }
);

typed!(TypedFuse at "fuse" {
    enabled: bool,
    uid: u64,
    gid: u64,
    file_mode: String,
    dir_mode: String,
    readahead: ByteSize,
    threads: u64,
    passthrough: String,
    holder: String,
    holder_patience: Duration,
});

typed!(TypedCache at "cache" {
    path: String,
    dir: String,
    max_size: ByteSize,
    memory: ByteSize,
    block_size: ByteSize,
    readahead_blocks: u64,
    max_parallel_fetch: u64,
    max_fetch_size: ByteSize,
    stale_ttl: Duration,
    negative_ttl: Duration,
    stale_if_error: Duration,
    evict_high_water: f64,
    evict_low_water: f64,
    min_free: ByteSize,
    block_share: f64,
    files: TypedFiles,
    retention: String,
    trace: String,
    memory_limit: ByteSize,
});

typed!(TypedFiles at "cache.files" {
    enabled: bool,
    min_size: ByteSize,
    sequential_after: ByteSize,
    direct_writes: bool,
    scrub_rate: ByteSize,
});

typed!(TypedBackend at "backends[]" {
    name: String,
    r#type: String,
    mount_path: String,
    config: Value,
    auth: Value,
    read_only: bool,
    immutable: bool,
    immutable_prefixes: Vec<String>,
    stale_ttl: Duration,
    negative_ttl: Duration,
    stale_if_error: Duration,
    retention: String,
    timeouts: TypedTimeouts,
    retry: TypedRetry,
    breaker: TypedBreaker,
    allow_inline_secrets: bool,
});

typed!(TypedTimeouts at "backends[].timeouts" {
    connect: Duration,
    first_byte: Duration,
    idle: Duration,
    call: Duration,
    completion: Duration,
});

typed!(TypedRetry at "backends[].retry" {
    max: u64,
    budget: u64,
    backoff: Duration,
    backoff_max: Duration,
});

typed!(TypedBreaker at "backends[].breaker" {
    failures: u64,
    cooldown: Duration,
});

typed!(
    /// Types `local` and `nfs`.
    TypedLocal at "backends[].config (local, nfs)" {
        path: String,
        root: String,
        dir: String,
    }
);

typed!(
    /// Type `s3`; the later half are rclone's names.
    TypedS3Origin at "backends[].config (s3)" {
        bucket: String,
        prefix: String,
        region: String,
        endpoint: String,
        path_style: bool,
        access_key: SecretText,
        secret_key: SecretText,
        session_token: SecretText,
        provider: String,
        force_path_style: bool,
        access_key_id: SecretText,
        secret_access_key: SecretText,
        env_auth: bool,
        acl: Value,
        storage_class: Value,
        location_constraint: Value,
        no_check_bucket: Value,
        list_version: Value,
        chunk_size: Value,
        upload_cutoff: Value,
        upload_concurrency: Value,
        disable_http2: Value,
    }
);

/// rclone's settings that are accepted so that a remote can be pasted, and do nothing here.
pub(crate) const S3_WITHOUT_EFFECT: &[&str] = &[
    "acl",
    "storage_class",
    "location_constraint",
    "no_check_bucket",
    "list_version",
    "chunk_size",
    "upload_cutoff",
    "upload_concurrency",
    "disable_http2",
];

typed!(
    /// Type `azureblob`.
    TypedAzure at "backends[].config (azureblob)" {
        account: String,
        container: String,
        prefix: String,
        endpoint: String,
        account_key: SecretText,
        sas_token: SecretText,
        account_name: String,
        container_name: String,
        key: SecretText,
        sas_url: SecretText,
        env_auth: bool,
        access_tier: Value,
        chunk_size: Value,
        upload_concurrency: Value,
        list_chunk: Value,
    }
);

/// As [`S3_WITHOUT_EFFECT`].
pub(crate) const AZURE_WITHOUT_EFFECT: &[&str] =
    &["access_tier", "chunk_size", "upload_concurrency", "list_chunk"];

typed!(
    /// Type `gcs`.
    TypedGcs at "backends[].config (gcs)" {
        bucket: String,
        prefix: String,
        endpoint: String,
        service_account_file: String,
        service_account_json: SecretText,
        service_account_credentials: SecretText,
        anonymous: bool,
        env_auth: bool,
        project_number: Value,
        project_id: Value,
        object_acl: Value,
        bucket_acl: Value,
        bucket_policy_only: Value,
        location: Value,
        storage_class: Value,
    }
);

/// As [`S3_WITHOUT_EFFECT`].
pub(crate) const GCS_WITHOUT_EFFECT: &[&str] = &[
    "project_number",
    "project_id",
    "object_acl",
    "bucket_acl",
    "bucket_policy_only",
    "location",
    "storage_class",
];

typed!(
    /// Every method's keys; which of them a method takes is decided with the backend's type.
    TypedAuth at "backends[].auth" {
        method: String,
        access_key_id: SecretText,
        secret_access_key: SecretText,
        session_token: SecretText,
        account: String,
        account_key: SecretText,
        sas_token: SecretText,
        service_account_file: String,
        service_account_json: SecretText,
        file: String,
        profile: String,
    }
);

typed!(TypedS3 at "s3" {
    enabled: bool,
    listen: String,
    access: String,
    keys: Vec<TypedKey>,
    credentials_file: String,
    credentials_token: bool,
    profile: String,
    region: String,
    buckets: BTreeMap<String, String>,
    allowed_hosts: Vec<String>,
    allow_anonymous_on_non_loopback: bool,
    body_memory: ByteSize,
});

typed!(TypedKey at "s3.keys[]" {
    access_key_id: SecretText,
    secret_access_key: SecretText,
});

typed!(TypedAdmin at "admin" {
    enabled: bool,
    listen: String,
});

typed!(TypedMetrics at "metrics" {
    enabled: bool,
    addr: String,
});

typed!(TypedLog at "log" {
    level: String,
    format: String,
});

typed!(TypedTelemetry at "telemetry" {
    enabled: bool,
    sink: String,
    file_path: String,
    control_plane_addr: String,
    sample_metadata_ops: bool,
    batch_size: u64,
    flush_interval: Duration,
});

typed!(TypedControlPlane at "control_plane" {
    enabled: bool,
    rest_addr: String,
    storage_crawl_interval: Duration,
});

/// Every section with its keys.
#[cfg(test)]
pub(crate) fn known_keys() -> Vec<(&'static str, &'static [&'static str])> {
    macro_rules! of {
        ($($name:ident),*) => { vec![$(($name::PLACE, $name::KEYS)),*] };
    }
    of!(
        Typed,
        TypedFuse,
        TypedCache,
        TypedFiles,
        TypedBackend,
        TypedTimeouts,
        TypedRetry,
        TypedBreaker,
        TypedLocal,
        TypedS3Origin,
        TypedAzure,
        TypedGcs,
        TypedAuth,
        TypedS3,
        TypedKey,
        TypedAdmin,
        TypedMetrics,
        TypedLog,
        TypedTelemetry,
        TypedControlPlane
    )
}
