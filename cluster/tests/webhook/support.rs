//! A webhook in this process, an authority for it, and callers that verify what they are shown.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::webhook::{Options, Source, Webhook};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// No answer of a healthy webhook on loopback takes longer, on a machine that does much else.
pub const LIMIT: Duration = Duration::from_secs(20);

pub fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// An authority of the test's own, and a folder with a certificate of it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, folder: tempfile::tempdir().unwrap() };
        authority.issue(-60, 3600);
        authority
    }

    pub fn bundle(&self) -> String {
        self.issuer.pem()
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("tls.crt")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.path().join("tls.key")
    }

    /// Writes a certificate that is valid between two moments, in seconds from now.
    pub fn issue(&self, from: i64, until: i64) {
        let (certificate, key) = self.pair(from, until);
        std::fs::write(self.key(), key).unwrap();
        std::fs::write(self.certificate(), certificate).unwrap();
    }

    pub fn pair(&self, from: i64, until: i64) -> (String, String) {
        let names = vec!["127.0.0.1".to_owned(), "warpdrive.system.svc".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::seconds(from);
        params.not_after = now + time::Duration::seconds(until);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn source(&self) -> Source {
        Source::Files { certificate: self.certificate(), key: self.key() }
    }
}

/// A webhook that serves on loopback.
pub struct Serving {
    pub address: SocketAddr,
    pub plain: SocketAddr,
    pub stop: CancellationToken,
    now: CancellationToken,
    pub task: JoinHandle<Result<(), String>>,
}

impl Serving {
    pub async fn start(source: Source, settings: Option<&Path>) -> Self {
        Self::start_with(source, settings, Duration::from_millis(300)).await
    }

    pub async fn start_with(source: Source, settings: Option<&Path>, delay: Duration) -> Self {
        let webhook = Webhook::open(Options {
            listen: loopback(),
            metrics: Some(loopback()),
            settings: settings.map(Path::to_owned),
            source,
            shutdown_delay: delay,
        })
        .await
        .unwrap();
        let (address, plain) = (webhook.address().unwrap(), webhook.metrics_address().unwrap());
        let (stop, now) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(webhook.run(stop.clone(), now.clone()));
        Self { address, plain, stop, now, task }
    }

    /// With a certificate of `authority`, ready.
    pub async fn of(authority: &Authority) -> Self {
        let serving = Self::start(authority.source(), None).await;
        serving.until_ready().await;
        serving
    }

    pub async fn until_ready(&self) {
        until("the webhook is ready", || async { self.readiness().await.0 == 200 }).await;
    }

    pub async fn readiness(&self) -> (u16, String) {
        get(self.plain, "/readyz").await
    }

    /// The value of a series without labels, or with them as they are printed.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, text) = get(self.plain, "/metrics").await;
        let line =
            text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == series));
        let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.now.cancel();
    }
}

/// Waits for something that must become true.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < LIMIT, "{what}: not within {} s", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whoever trusts a bundle.
#[derive(Clone)]
pub struct Caller(Arc<ClientConfig>);

impl Caller {
    pub fn trusting(bundle: &str) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Each connection verifies.
        config.resumption = rustls::client::Resumption::disabled();
        Self(Arc::new(config))
    }

    /// A connection with TLS, as far as bytes go.
    pub async fn connect(
        &self,
        address: SocketAddr,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(address.ip());
        TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await
    }

    /// A connection that requests are sent on.
    pub async fn open(&self, address: SocketAddr) -> std::io::Result<SendRequest<Full<Bytes>>> {
        let stream = TokioIo::new(self.connect(address).await?);
        let (sender, connection) = handshake(stream).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// One review on a connection of its own: the status and the body.
    pub async fn send(&self, address: SocketAddr, body: impl Into<Bytes>) -> (u16, Bytes) {
        let mut sender = self.open(address).await.unwrap();
        let answer = tokio::time::timeout(LIMIT, sender.send_request(post(body.into()))).await;
        collected(answer.expect("an answer comes").unwrap()).await
    }

    /// The `response` to the review of a pod.
    pub async fn review(&self, address: SocketAddr, pod: &Value) -> Value {
        let (status, body) = self.send(address, review(pod).to_string()).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        answer["response"].clone()
    }
}

pub async fn collected(answer: Response<hyper::body::Incoming>) -> (u16, Bytes) {
    let status = answer.status().as_u16();
    (status, answer.into_body().collect().await.unwrap().to_bytes())
}

pub fn post(body: Bytes) -> Request<Full<Bytes>> {
    Request::post("/mutate?timeout=5s")
        .header("host", "warpdrive.system.svc:443")
        .header("content-type", "application/json")
        .header("accept", "application/json, */*")
        .body(Full::new(body))
        .unwrap()
}

/// A plain GET.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::get(path).header("host", "webhook").body(Full::<Bytes>::default()).unwrap();
    let (status, body) = collected(sender.send_request(request).await.unwrap()).await;
    (status, String::from_utf8(body.to_vec()).unwrap())
}

pub const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";

/// A review of a new pod, as an API server writes it.
pub fn review(pod: &Value) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": UID,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "name": pod["metadata"]["name"],
            "namespace": "training",
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:job-controller",
                "uid": "0a9d2f3e-6f0e-4a4a-9e55-fd0d6e2c7c11",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
            },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

/// A pod as a Job's controller makes it, with what a training pod carries.
pub fn training_pod(name: &str) -> Value {
    let variables: Vec<_> = (0..24)
        .map(|index| {
            json!({"name": format!("TRAINING_SETTING_{index}"), "value": format!("value-{index}-of-a-usual-length")})
        })
        .collect();
    let fields: Value = (0..40)
        .map(|index| {
            (
                format!("k:{{\"name\":\"TRAINING_SETTING_{index}\"}}"),
                json!({".": {}, "f:name": {}, "f:value": {}}),
            )
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{name}-"),
            "name": name,
            "namespace": "training",
            "labels": {
                "warpdrive.io/inject": "true",
                "batch.kubernetes.io/controller-uid": "d5a5b6a7-1f3a-4b8b-9d6c-0c2e4c9f1e2a",
                "batch.kubernetes.io/job-name": "resnet",
                "app.kubernetes.io/name": "resnet",
            },
            "annotations": {"warpdrive.io/mounts": "/data", "warpdrive.io/cache-size": "20Gi", "team.example/cost-centre": "4711"},
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": "resnet",
                "uid": "d5a5b6a7-1f3a-4b8b-9d6c-0c2e4c9f1e2a", "controller": true, "blockOwnerDeletion": true,
            }],
            "managedFields": [{
                "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {"f:env": fields}}}},
            }],
        },
        "spec": {
            "volumes": [
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
                {"name": "scripts", "configMap": {"name": "training-scripts", "defaultMode": 420}},
                {"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
                ]}},
            ],
            "initContainers": [{
                "name": "prepare", "image": "registry.example/prepare:3", "command": ["prepare"],
                "resources": {}, "imagePullPolicy": "IfNotPresent",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "containers": [{
                "name": "main",
                "image": "registry.example/train:7",
                "command": ["python", "train.py", "--data", "/data/imagenet", "--epochs", "90"],
                "env": variables,
                "resources": {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}, "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}},
                "volumeMounts": [
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                    {"name": "scripts", "mountPath": "/scripts"},
                    {"name": "kube-api-access-x7k2p", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
                ],
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "serviceAccount": "default",
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
            "priority": 0,
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {},
    })
}

/// Applies a JSON patch in base64, as the API server does.
pub fn patched(pod: &Value, response: &Value) -> Value {
    use base64::Engine as _;
    let encoded = response["patch"].as_str().expect("there is a patch");
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    let steps: Vec<Value> = serde_json::from_slice(&decoded).unwrap();
    let mut pod = pod.clone();
    for step in steps {
        let path = step["path"].as_str().unwrap();
        let (parent, last) = path.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/").replace("~0", "~");
        let parent = pod.pointer_mut(parent).unwrap_or_else(|| panic!("{path}: no parent"));
        let value = step["value"].clone();
        match (step["op"].as_str().unwrap(), parent) {
            ("add" | "replace", Value::Object(object)) => {
                object.insert(last, value);
            }
            ("remove", Value::Object(object)) => {
                object.remove(&last).expect("what is removed is there");
            }
            ("add", Value::Array(array)) if last == "-" => array.push(value),
            ("add", Value::Array(array)) => array.insert(last.parse().unwrap(), value),
            ("replace", Value::Array(array)) => array[last.parse::<usize>().unwrap()] = value,
            ("remove", Value::Array(array)) => {
                array.remove(last.parse().unwrap());
            }
            (op, parent) => panic!("{op} in {parent}"),
        }
    }
    pod
}
