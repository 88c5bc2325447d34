//! Real origin servers: what to run, when it is ready, and how to fill it from outside.
//!
//! Invariant: a [`Running`] answers on its endpoint from the moment a caller holds it. A program that
//! is installed and does not get there within the deadline is a panic with its log, never a skip.

use crate::gcs_shim::GcsShim;
use crate::http_client::{fetch, must};
use crate::process::{self, Process};
use crate::sigv4::{Credentials, PATH, STRICT, hmac, sign};
use crate::tools::{Skipped, free_port, tool, tools_folder};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use percent_encoding::utf8_percent_encode;
use rustix::process::Signal;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// moto imports for seconds on a busy machine; the others are up in less than one.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// A free port can be taken by somebody else between its choice and its use.
const TRIES: usize = 4;
/// Azurite's account, given to it in its environment. Any name and any 32 bytes do.
const AZURE_ACCOUNT: &str = "warpdrive";

/// Which program an origin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OriginKind {
    /// versitygw over a folder: S3.
    Versitygw,
    /// MinIO over a folder: S3.
    Minio,
    /// moto's server, in memory: S3, takes every odd key, checks no signature.
    Moto,
    /// Azurite, in memory: Azure Blob.
    Azurite,
    /// fake-gcs-server in memory, behind [`GcsShim`]: the XML and the JSON interface of GCS.
    FakeGcs,
}

impl OriginKind {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            OriginKind::Versitygw => "versitygw",
            OriginKind::Minio => "minio",
            OriginKind::Moto => "moto_server",
            OriginKind::Azurite => "azurite-blob",
            OriginKind::FakeGcs => "fake-gcs-server",
        }
    }

    /// Whether it speaks S3.
    pub fn is_s3(self) -> bool {
        matches!(self, OriginKind::Versitygw | OriginKind::Minio | OriginKind::Moto)
    }

    fn command(
        self,
        program: &Path,
        port: u16,
        folder: &Path,
        credentials: &Credentials,
    ) -> Command {
        let mut command = Command::new(program);
        let stored = folder.join("stored");
        let listen = format!("127.0.0.1:{port}");
        let port = port.to_string();
        match self {
            OriginKind::Versitygw => {
                command
                    .env("ROOT_ACCESS_KEY", &credentials.access_key)
                    .env("ROOT_SECRET_KEY", &credentials.secret_key)
                    .args(["--port", &listen, "--region", &credentials.region, "posix"])
                    .arg(stored);
            }
            OriginKind::Minio => {
                command
                    .env("MINIO_ROOT_USER", &credentials.access_key)
                    .env("MINIO_ROOT_PASSWORD", &credentials.secret_key)
                    .env("MINIO_UPDATE", "off")
                    .env("MINIO_BROWSER", "off")
                    .env("HOME", folder)
                    .args(["server", "--quiet", "--address", &listen])
                    .arg(stored);
            }
            OriginKind::Moto => {
                command.args(["-H", "127.0.0.1", "-p", &port]);
            }
            OriginKind::Azurite => {
                // Its script asks the environment for node, which may be the one in the tools folder.
                let mut path = tools_folder().join("bin").into_os_string();
                path.push(":");
                path.push(std::env::var_os("PATH").unwrap_or_default());
                command
                    .env("PATH", path)
                    .env("AZURITE_ACCOUNTS", format!("{AZURE_ACCOUNT}:{}", credentials.secret_key))
                    .args(["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"])
                    .args(["--silent", "--blobHost", "127.0.0.1", "--blobPort", &port])
                    .current_dir(folder);
            }
            OriginKind::FakeGcs => {
                command
                    .args(["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"])
                    .args(["-port", &port, "-public-host", &listen]);
            }
        }
        command
    }

    fn health_path(self) -> &'static str {
        match self {
            OriginKind::FakeGcs => "/storage/v1/b",
            OriginKind::Moto => "/moto-api/",
            OriginKind::Versitygw | OriginKind::Minio | OriginKind::Azurite => "/",
        }
    }

    fn credentials(self) -> Credentials {
        let secret_key = match self {
            OriginKind::Azurite => BASE64.encode([7_u8; 32]),
            _ => "kit-secret-key-0123456789".to_owned(),
        };
        Credentials {
            access_key: "kitaccesskey".to_owned(),
            secret_key,
            region: "us-east-1".to_owned(),
        }
    }
}

/// Starts origins. Each call starts a server of its own; to share one between the tests of a file,
/// keep it in a `tokio::sync::OnceCell`: it is ended at the exit of the test program.
#[derive(Debug)]
pub struct Origin;

impl Origin {
    /// versitygw over a temporary folder.
    pub async fn versitygw() -> Result<Running, Skipped> {
        Origin::start(OriginKind::Versitygw).await
    }

    /// MinIO over a temporary folder.
    pub async fn minio() -> Result<Running, Skipped> {
        Origin::start(OriginKind::Minio).await
    }

    /// moto's server.
    pub async fn moto() -> Result<Running, Skipped> {
        Origin::start(OriginKind::Moto).await
    }

    /// Azurite's blob service.
    pub async fn azurite() -> Result<Running, Skipped> {
        Origin::start(OriginKind::Azurite).await
    }

    /// fake-gcs-server behind the kit's shim.
    pub async fn fake_gcs() -> Result<Running, Skipped> {
        Origin::start(OriginKind::FakeGcs).await
    }

    /// Any of them by kind.
    ///
    /// # Panics
    /// When the program is installed and does not become ready.
    pub async fn start(kind: OriginKind) -> Result<Running, Skipped> {
        let program = tool(kind.name())?;
        let credentials = kind.credentials();
        let folder = tempfile::Builder::new()
            .prefix("testkit-")
            .tempdir()
            .expect("the temporary folder is writable")
            .keep();
        process::remember_folder(&folder);
        std::fs::create_dir(folder.join("stored")).expect("the folder is new and ours");
        let mut last = String::new();
        for _ in 0..TRIES {
            let port = free_port();
            let server = launch(kind, &program, port, &folder, &credentials);
            match wait_ready(kind, &server, port).await {
                Ok(()) => {
                    let direct = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                    let shim = (kind == OriginKind::FakeGcs).then(|| GcsShim::start(direct));
                    let server = Mutex::new(Some(server));
                    return Ok(Running {
                        kind,
                        program,
                        direct,
                        shim,
                        folder,
                        credentials,
                        server,
                    });
                }
                Err(log) => last = log,
            }
        }
        panic!("{} did not become ready\n{last}", kind.name());
    }
}

fn launch(
    kind: OriginKind,
    program: &Path,
    port: u16,
    folder: &Path,
    credentials: &Credentials,
) -> Process {
    let command = kind.command(program, port, folder, credentials);
    Process::spawn(kind.name(), command, &folder.join("log"))
        .unwrap_or_else(|error| panic!("{} could not be started: {error}", kind.name()))
}

/// Waits until the server answers HTTP; an early end of the process is an error at once.
async fn wait_ready(kind: OriginKind, server: &Process, port: u16) -> Result<(), String> {
    let deadline = Instant::now() + READY_WITHIN;
    while Instant::now() < deadline {
        if !server.is_running() {
            return Err(server.log_tail());
        }
        let endpoint = format!("http://127.0.0.1:{port}");
        let request = if kind == OriginKind::Minio {
            // Its health page says yes while signed requests still get 503 "not initialized".
            let none = HeaderMap::new();
            sign(&kind.credentials(), Method::GET, &endpoint, "/", &[], &none, Bytes::new())
        } else {
            Request::get(format!("{endpoint}{}", kind.health_path()))
                .body(Full::default())
                .expect("a constant path and a number")
        };
        if let Ok(answer) = fetch(request).await
            && answer.status() != StatusCode::SERVICE_UNAVAILABLE
        {
            return Ok(());
        }
        crate::runtime::on_kit(tokio::time::sleep(Duration::from_millis(30))).await;
    }
    Err(server.log_tail())
}

/// An origin that answers. Dropping it ends the server and removes its folder.
#[derive(Debug)]
pub struct Running {
    kind: OriginKind,
    program: PathBuf,
    direct: SocketAddr,
    shim: Option<GcsShim>,
    folder: PathBuf,
    credentials: Credentials,
    server: Mutex<Option<Process>>,
}

impl Running {
    /// Which program this is.
    pub fn kind(&self) -> OriginKind {
        self.kind
    }

    /// Where it answers; for a proxy in front. For GCS this is the shim.
    pub fn address(&self) -> SocketAddr {
        self.shim.as_ref().map_or(self.direct, GcsShim::address)
    }

    /// The URL that a client is configured with: `http://127.0.0.1:port`, for Azure with the
    /// account's name as its path.
    pub fn endpoint(&self) -> String {
        self.endpoint_at(self.address())
    }

    /// The same URL with another address: for a client that goes through a proxy.
    pub fn endpoint_at(&self, address: SocketAddr) -> String {
        match self.kind {
            OriginKind::Azurite => format!("http://{address}/{AZURE_ACCOUNT}"),
            _ => format!("http://{address}"),
        }
    }

    /// Name and secret. For Azure the secret is the account's key in base64; for GCS they mean nothing.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The access key of S3; the account's name of Azure.
    pub fn access_key(&self) -> &str {
        if self.kind == OriginKind::Azurite { AZURE_ACCOUNT } else { &self.credentials.access_key }
    }

    /// The secret key of S3; the account's key of Azure.
    pub fn secret_key(&self) -> &str {
        &self.credentials.secret_key
    }

    /// The region of an S3 origin.
    pub fn region(&self) -> &str {
        &self.credentials.region
    }

    /// The server's own folder (its log, what it stores).
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a bucket or container.
    ///
    /// # Panics
    /// When the origin refuses.
    pub async fn create_bucket(&self, name: &str) {
        must(match self.kind {
            OriginKind::Azurite => self.azure(
                Method::PUT,
                &format!("/{name}"),
                &[("restype", "container")],
                Bytes::new(),
            ),
            OriginKind::FakeGcs => {
                let uri = format!("http://{}/storage/v1/b?project=kit", self.direct);
                let body = serde_json::json!({ "name": name }).to_string();
                Request::post(uri)
                    .header("content-type", "application/json")
                    .body(Full::new(body.into()))
                    .expect("a constant path")
            }
            _ => self.s3(Method::PUT, &format!("/{name}"), Bytes::new()),
        })
        .await;
    }

    /// Writes an object straight into the origin.
    ///
    /// # Panics
    /// When the origin refuses.
    pub async fn put(&self, bucket: &str, key: &str, body: impl Into<Bytes>) {
        let path = format!("/{bucket}/{key}");
        must(match self.kind {
            OriginKind::Azurite => self.azure(Method::PUT, &path, &[], body.into()),
            OriginKind::FakeGcs => {
                let mut request = self.gcs_object(Method::PUT, bucket, key);
                *request.body_mut() = Full::new(body.into());
                request
            }
            _ => self.s3(Method::PUT, &path, body.into()),
        })
        .await;
    }

    /// Removes an object straight from the origin; one that is absent is fine.
    pub async fn delete(&self, bucket: &str, key: &str) {
        let path = format!("/{bucket}/{key}");
        let answer = fetch(match self.kind {
            OriginKind::Azurite => self.azure(Method::DELETE, &path, &[], Bytes::new()),
            OriginKind::FakeGcs => self.gcs_object(Method::DELETE, bucket, key),
            _ => self.s3(Method::DELETE, &path, Bytes::new()),
        })
        .await
        .unwrap_or_else(|error| panic!("{error}"));
        let status = answer.status();
        assert!(status.is_success() || status == StatusCode::NOT_FOUND, "DELETE {path}: {status}");
    }

    /// Reads an object straight from the origin; `None` when it is absent.
    pub async fn get(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let path = format!("/{bucket}/{key}");
        let answer = fetch(match self.kind {
            OriginKind::Azurite => self.azure(Method::GET, &path, &[], Bytes::new()),
            OriginKind::FakeGcs => self.gcs_object(Method::GET, bucket, key),
            _ => self.s3(Method::GET, &path, Bytes::new()),
        })
        .await
        .unwrap_or_else(|error| panic!("{error}"));
        match answer.status() {
            StatusCode::NOT_FOUND => None,
            status if status.is_success() => Some(answer.into_body()),
            status => panic!("GET {path}: {status}"),
        }
    }

    /// Ends the server. The address refuses connections until [`Running::restart`].
    pub fn stop(&self) {
        if let Some(server) = self.server().take() {
            server.stop();
        }
    }

    /// Freezes the server: connections are accepted by the kernel and never answered.
    pub fn pause(&self) {
        if let Some(server) = &*self.server() {
            server.signal(Signal::STOP);
        }
    }

    /// Lets a frozen server go on.
    pub fn resume(&self) {
        if let Some(server) = &*self.server() {
            server.signal(Signal::CONT);
        }
    }

    /// Starts a stopped server again at the same address. What versitygw and MinIO stored is there
    /// again; the others keep everything in memory and come back empty.
    pub async fn restart(&self) {
        self.stop();
        let port = self.direct.port();
        let server = launch(self.kind, &self.program, port, &self.folder, &self.credentials);
        if let Err(log) = wait_ready(self.kind, &server, port).await {
            panic!("{} did not come back\n{log}", self.kind.name());
        }
        *self.server() = Some(server);
    }

    fn server(&self) -> MutexGuard<'_, Option<Process>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn s3(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let endpoint = format!("http://{}", self.direct);
        sign(&self.credentials, method, &endpoint, path, &[], &HeaderMap::new(), body)
    }

    fn gcs_object(&self, method: Method, bucket: &str, key: &str) -> Request<Full<Bytes>> {
        let key = utf8_percent_encode(key, STRICT);
        Request::builder()
            .method(method)
            .uri(format!("http://{}/{bucket}/{key}", self.address()))
            .body(Full::default())
            .expect("every part was encoded")
    }

    /// A request signed with Azure's shared key.
    fn azure(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let date = httpdate::fmt_http_date(std::time::SystemTime::now());
        let content_length = HeaderValue::from(body.len());
        let length = if body.is_empty() { String::new() } else { body.len().to_string() };
        let encoded = utf8_percent_encode(path, PATH).to_string();
        let mut headers: Vec<(&str, &str)> =
            vec![("x-ms-date", &date), ("x-ms-version", "2021-08-06")];
        if method == Method::PUT && query.is_empty() {
            headers.insert(0, ("x-ms-blob-type", "BlockBlob"));
        }
        let mut to_sign = format!("{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n");
        for (name, value) in &headers {
            let _ = writeln!(to_sign, "{name}:{value}");
        }
        // The account stands twice: once as the owner, once as the first part of the path.
        let _ = write!(to_sign, "/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}{encoded}");
        for (name, value) in query {
            let _ = write!(to_sign, "\n{name}:{value}");
        }
        let key = BASE64.decode(&self.credentials.secret_key).expect("encoded by this file");
        let signature = BASE64.encode(hmac(&key, to_sign.as_bytes()));
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let separator = if query.is_empty() { "" } else { "?" };
        let uri = format!(
            "http://{}/{AZURE_ACCOUNT}{encoded}{separator}{}",
            self.direct,
            query.join("&")
        );
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::new(body))
            .expect("every part was encoded");
        if request.method() == Method::PUT {
            // The client leaves it out for an empty body, and Azure wants it.
            request.headers_mut().insert("content-length", content_length);
        }
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a constant name");
            request
                .headers_mut()
                .insert(name, HeaderValue::from_str(value).expect("printable ASCII"));
        }
        request.headers_mut().insert(
            "authorization",
            HeaderValue::from_str(&format!("SharedKey {AZURE_ACCOUNT}:{signature}"))
                .expect("base64 is printable"),
        );
        request
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
        process::forget_folder(&self.folder);
    }
}
