//! What an origin is told: its type, its place, its credential and its policy.
//!
//! Invariant: plain data without I/O; printing any of it shows no secret. It refuses nothing:
//! [`crate::open()`] says what cannot be used.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

/// One origin: a directory, a bucket or a container.
#[derive(Debug, Clone)]
pub struct OriginConfig {
    /// What it is and where.
    pub kind: OriginKind,
    /// How long to wait, how often to try again, when to stop asking.
    pub policy: Policy,
}

/// The types of origin that can be opened.
#[derive(Debug, Clone)]
pub enum OriginKind {
    /// A directory of this machine, or of a mounted network file system.
    Local(LocalConfig),
    /// A bucket of S3, or of anything that speaks its protocol.
    S3(S3Config),
    /// A container of Azure Blob Storage.
    Azure(AzureConfig),
    /// A bucket of Google Cloud Storage.
    Gcs(GcsConfig),
}

/// A directory as a bucket: files are objects, directories are prefixes.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The directory; it must exist. Nothing outside of it is ever touched.
    pub root: PathBuf,
    /// Set for NFS. Attributes are then kept in files below `.warpdrive/` instead of extended
    /// attributes (NFS has none before 4.2), directories are synchronised after each rename, and
    /// a stale handle (`ESTALE`) is opened again up to three times.
    pub nfs: bool,
}

/// A bucket that speaks the protocol of S3.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// Its name at the origin.
    pub bucket: String,
    /// Only keys below this are seen; a missing slash at its end is added, one at its beginning
    /// removed. Empty for the whole bucket.
    pub prefix: String,
    /// The region that requests are signed for, such as `us-east-1`. When it is not the bucket's,
    /// the origin's answer says which is, and that one is used from then on.
    pub region: String,
    /// The service, such as `https://minio.example:9000`; `None` is AWS in `region`.
    pub endpoint: Option<String>,
    /// True: the bucket is the first segment of the path. False: it is part of the host name.
    /// `None`: path style where an endpoint is given or the bucket's name has a dot.
    pub path_style: Option<bool>,
    /// Who asks.
    pub credential: S3Credential,
}

/// Who asks an S3 origin.
#[derive(Debug, Clone)]
pub enum S3Credential {
    /// Requests are not signed: for public buckets.
    Anonymous,
    /// A key pair.
    Static {
        /// The public half; not a secret.
        access_key_id: String,
        /// The secret half.
        secret_access_key: SecretString,
        /// The token that belongs to temporary keys.
        session_token: Option<SecretString>,
    },
}

/// A container of Azure Blob Storage.
#[derive(Debug, Clone)]
pub struct AzureConfig {
    /// The storage account.
    pub account: String,
    /// The container.
    pub container: String,
    /// As [`S3Config::prefix`].
    pub prefix: String,
    /// The account's URL; `None` is `https://<account>.blob.core.windows.net`. An emulator's has
    /// the account as its path: `http://127.0.0.1:10000/devstoreaccount1`.
    pub endpoint: Option<String>,
    /// Who asks.
    pub credential: AzureCredential,
}

/// Who asks an Azure origin.
#[derive(Debug, Clone)]
pub enum AzureCredential {
    /// Requests are not signed: for public containers.
    Anonymous,
    /// The account's key in base64.
    Key(SecretString),
    /// A shared access signature: a query string, with or without its question mark.
    Sas(SecretString),
}

/// A bucket of Google Cloud Storage.
#[derive(Debug, Clone)]
pub struct GcsConfig {
    /// Its name at the origin.
    pub bucket: String,
    /// As [`S3Config::prefix`].
    pub prefix: String,
    /// The service; `None` is `https://storage.googleapis.com`.
    pub endpoint: Option<String>,
    /// Who asks.
    pub credential: GcsCredential,
}

/// Who asks a GCS origin.
#[derive(Debug, Clone)]
pub enum GcsCredential {
    /// Requests carry no token: for public buckets.
    Anonymous,
    /// A service account's key file.
    ServiceAccountFile(PathBuf),
    /// The content of such a file.
    ServiceAccountJson(SecretString),
}

/// How long to wait, how often to try again, when to stop asking.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Longest time to a connection, TLS included. Default 5 s: ten round trips around the earth.
    pub connect_timeout: Duration,
    /// Longest time from a request without a body to the head of the answer, and of one with a
    /// body until the origin takes its first byte. Default 30 s: object stores answer slower than
    /// this only when they fail.
    pub first_byte_timeout: Duration,
    /// Longest time without a byte in a body that the origin sends or takes. Default 30 s.
    pub idle_timeout: Duration,
    /// Longest time of a call without a body, all its retries included: `head`, `list`, `delete`
    /// and those of uploads. Default 60 s, so that `ls` returns within a minute of an outage.
    pub call_timeout: Duration,
    /// Longest time of `complete_upload` and `copy`, which move bytes at the origin, and of the
    /// answer to a body that was sent whole, which the origin first makes durable. Default 15 min:
    /// S3 may take minutes for the largest objects, and so may a disk for what it has to write.
    pub completion_timeout: Duration,
    /// Most times that one call is sent again, and that one body is resumed. Default 4. Zero is
    /// never again.
    pub retries: u32,
    /// Shortest upper bound of the random wait before a retry; it doubles with each. Default 100 ms.
    pub backoff_base: Duration,
    /// Longest upper bound of that wait. Default 5 s.
    pub backoff_max: Duration,
    /// Most retries that an origin can be owed at once, all calls together: a retry takes one, a
    /// success gives a tenth back. Default 50, so that an outage costs at most fifty requests more
    /// than there are calls, and a steady state at most a tenth more.
    pub retry_budget: u32,
    /// Failures in a row (no answer, throttled or broken) after which the origin is left alone.
    /// Default 10. Zero never leaves it alone.
    pub breaker_failures: u32,
    /// How long it is left alone before one call tries it again. Default 5 s.
    pub breaker_cooldown: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_mins(1),
            completion_timeout: Duration::from_mins(15),
            retries: 4,
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            retry_budget: 50,
            breaker_failures: 10,
            breaker_cooldown: Duration::from_secs(5),
        }
    }
}
