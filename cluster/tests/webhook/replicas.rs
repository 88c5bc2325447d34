//! Own certificates on a real API server: who makes them, who trusts them, and how they change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cluster::webhook::{Own, Source};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::kubernetes::{Cluster, cluster};
use crate::support::*;

/// A release of the chart, as far as the webhook is concerned: names, rights, an empty Secret and a
/// configuration with as many entries as replicas, each called by its address.
struct Release {
    name: String,
    cluster: &'static Cluster,
    admin: Client,
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

impl Release {
    async fn install(cluster: &'static Cluster, name: &str) -> Self {
        let release = Self { name: name.to_owned(), cluster, admin: cluster.client("admin").await };
        release.create_global::<Namespace>(json!({"metadata": {"name": name}})).await;
        let subject =
            json!([{"kind": "User", "name": "webhook", "apiGroup": "rbac.authorization.k8s.io"}]);
        let role = |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
        release
            .create::<Role>(json!({"metadata": {"name": name}, "rules": [{
                "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["tls"], "verbs": ["get", "update"],
            }]}))
            .await;
        release
            .create::<RoleBinding>(
                json!({"metadata": {"name": name}, "roleRef": role("Role"), "subjects": subject}),
            )
            .await;
        release
            .create_global::<ClusterRole>(json!({"metadata": {"name": name}, "rules": [{
                "apiGroups": ["admissionregistration.k8s.io"], "resources": ["mutatingwebhookconfigurations"],
                "resourceNames": [name], "verbs": ["get", "patch"],
            }]}))
            .await;
        release
            .create_global::<ClusterRoleBinding>(
                json!({"metadata": {"name": name}, "roleRef": role("ClusterRole"), "subjects": subject}),
            )
            .await;
        release
    }

    async fn create<K>(&self, value: Value)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Serialize
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.admin.clone(), &self.name);
        api.create(&PostParams::default(), &object(value)).await.unwrap();
    }

    async fn create_global<K>(&self, value: Value)
    where
        K: Resource + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.admin.clone());
        api.create(&PostParams::default(), &object(value)).await.unwrap();
    }

    /// As the chart makes it: without a word about its data.
    async fn create_secret(&self) {
        self.create::<Secret>(json!({"metadata": {"name": "tls"}, "type": "Opaque"})).await;
    }

    async fn configure(&self, replicas: &[&Serving]) {
        let webhooks: Vec<Value> = replicas
            .iter()
            .enumerate()
            .map(|(index, replica)| {
                json!({
                    "name": format!("replica-{index}.inject.warpdrive.io"),
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "failurePolicy": "Fail",
                    "timeoutSeconds": 10,
                    "clientConfig": {"url": format!("https://{}/mutate", replica.address)},
                    "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.name}},
                    "objectSelector": {"matchExpressions": [{"key": "warpdrive.io/inject", "operator": "Exists"}]},
                })
            })
            .collect();
        self.create_global::<MutatingWebhookConfiguration>(
            json!({"metadata": {"name": self.name}, "webhooks": webhooks}),
        )
        .await;
    }

    fn own(&self) -> Own {
        Own {
            namespace: self.name.clone(),
            secret: "tls".to_owned(),
            configurations: vec![self.name.clone()],
            names: vec!["127.0.0.1".to_owned(), format!("warpdrive.{}.svc", self.name)],
            authority: Duration::from_hours(10),
            certificate: Duration::from_mins(50),
            settle: Duration::from_millis(500),
            resync: Duration::from_millis(150),
            kubeconfig: Some(self.cluster.kubeconfig("webhook")),
        }
    }

    async fn replica(&self, own: Own) -> Serving {
        Serving::start(Source::Own(own), None).await
    }

    fn configurations(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.admin.clone())
    }

    /// The bundle that an API server would trust now, one for each entry.
    async fn bundles(&self) -> Vec<String> {
        let configuration = self.configurations().get(&self.name).await.unwrap();
        let webhooks = configuration.webhooks.unwrap_or_default();
        let bundles = webhooks.into_iter().map(|webhook| webhook.client_config.ca_bundle);
        bundles.map(|bundle| String::from_utf8(bundle.unwrap_or_default().0).unwrap()).collect()
    }

    async fn secret(&self, key: &str) -> String {
        let api: Api<Secret> = Api::namespaced(self.admin.clone(), &self.name);
        let data = api.get("tls").await.unwrap().data.unwrap_or_default();
        data.get(key)
            .map(|value| String::from_utf8_lossy(&value.0).into_owned())
            .unwrap_or_default()
    }

    /// Makes a pod as far as admission goes.
    async fn admit(&self, change: impl FnOnce(&mut Value)) -> Result<Pod, kube::Error> {
        let mut pod = json!({
            "metadata": {"generateName": "train-", "labels": {"warpdrive.io/inject": "true"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "train"}]},
        });
        change(&mut pod);
        let api: Api<Pod> = Api::namespaced(self.admin.clone(), &self.name);
        let params = PostParams { dry_run: true, ..PostParams::default() };
        api.create(&params, &object(pod)).await
    }

    /// Waits until the API server, which learns of a configuration a little later, calls with success.
    async fn until_called(&self) {
        until("a pod is injected", || async {
            self.admit(|_| {}).await.is_ok_and(|pod| is_injected(&pod))
        })
        .await;
    }
}

fn is_injected(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().unwrap().init_containers.as_deref().unwrap_or_default();
    containers.iter().filter(|container| container.name == "warpdrive").count() == 1
}

macro_rules! install {
    ($name:literal) => {
        match tokio::task::spawn_blocking(cluster).await.unwrap() {
            Ok(cluster) => Release::install(cluster, $name).await,
            Err(skipped) => {
                skipped.report();
                return;
            }
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_sends_pods_and_prints_what_is_wrong() {
    let release = install!("calls");
    release.create_secret().await;
    let replica = release.replica(release.own()).await;
    let (status, text) = replica.readiness().await;
    assert_eq!(status, 503, "nobody trusts it yet: {text}");
    until("it is told what is missing", || async {
        replica.readiness().await.1.contains("MutatingWebhookConfiguration calls")
    })
    .await;
    release.configure(&[&replica]).await;
    replica.until_ready().await;
    release.until_called().await;

    let pod = release.admit(|_| {}).await.unwrap();
    assert!(is_injected(&pod));
    let plain = release.admit(|pod| pod["metadata"]["labels"] = json!({"a": "b"})).await.unwrap();
    assert!(!is_injected(&plain));
    let unwanted =
        |pod: &mut Value| pod["metadata"]["labels"]["warpdrive.io/inject"] = json!("false");
    assert!(!is_injected(&release.admit(unwanted).await.unwrap()));
    let bad =
        |pod: &mut Value| pod["metadata"]["annotations"] = json!({"warpdrive.io/mode": "fast"});
    let kube::Error::Api(status) = release.admit(bad).await.unwrap_err() else { panic!() };
    assert_eq!(status.code, 422, "{status:?}");
    assert!(status.message.contains("replica-0.inject.warpdrive.io"), "{}", status.message);
    assert!(status.message.contains("warpdrive.io/mode"), "{}", status.message);
    let text = replica.readiness().await.1;
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(replica.metric("warpdrive_webhook_configuration_valid").await > 0.5);
    assert!(replica.metric("warpdrive_webhook_authority_expiry_timestamp_seconds").await > 1e9);
    for key in ["ca.crt", "tls.crt"] {
        assert!(release.secret(key).await.starts_with("-----BEGIN CERTIFICATE-----"), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_agree_on_one_authority() {
    let release = install!("races");
    release.create_secret().await;
    let mut replicas = Vec::new();
    for _ in 0..6 {
        replicas.push(release.replica(release.own()).await);
    }
    release.configure(&replicas.iter().collect::<Vec<_>>()).await;
    for replica in &replicas {
        replica.until_ready().await;
    }
    let bundles: BTreeSet<String> = release.bundles().await.into_iter().collect();
    assert_eq!(bundles.len(), 1);
    let bundle = bundles.into_iter().next().unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1, "one authority, not one each");
    assert_eq!(bundle, release.secret("ca.crt").await);
    let caller = Caller::trusting(&bundle);
    let mut shown = BTreeSet::new();
    for replica in &replicas {
        let stream = caller.connect(replica.address).await.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        shown.insert(chain[0].to_vec());
        assert!(replica.metric("warpdrive_webhook_certificate_changes_total").await >= 1.0);
    }
    assert_eq!(shown.len(), 1, "one certificate");
    release.until_called().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn certificate_and_authority_change_under_load_and_no_call_fails() {
    let release = install!("rotates");
    release.create_secret().await;
    let own = || Own {
        authority: Duration::from_secs(12),
        certificate: Duration::from_secs(3),
        settle: Duration::from_secs(1),
        ..release.own()
    };
    let replicas = [release.replica(own()).await, release.replica(own()).await];
    release.configure(&[&replicas[0], &replicas[1]]).await;
    for replica in &replicas {
        replica.until_ready().await;
    }
    release.until_called().await;

    let begun = Instant::now();
    let load = Duration::from_secs(26);
    let direct = Arc::new(AtomicUsize::new(0));
    // A caller that trusts what it was told a moment ago, as an API server does, on new connections.
    let calls = async {
        let (mut leaves, mut authorities) = (BTreeSet::new(), BTreeSet::new());
        while begun.elapsed() < load {
            let bundles = release.bundles().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            for (bundle, replica) in bundles.iter().zip(&replicas) {
                for part in bundle.split_inclusive("-----END CERTIFICATE-----\n") {
                    authorities.insert(part.to_owned());
                }
                let caller = Caller::trusting(bundle);
                let stream = caller.connect(replica.address).await;
                let stream =
                    stream.unwrap_or_else(|error| panic!("{error} after {:?}", begun.elapsed()));
                leaves.insert(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec());
                let response = caller.review(replica.address, &training_pod("resnet")).await;
                assert_eq!(response["allowed"], true);
                direct.fetch_add(1, Ordering::Relaxed);
            }
        }
        (leaves.len(), authorities.len())
    };
    let pods = async {
        let mut admitted = 0;
        while begun.elapsed() < load {
            let pod = release.admit(|_| {}).await;
            let pod = pod.unwrap_or_else(|error| panic!("{error} after {:?}", begun.elapsed()));
            assert!(is_injected(&pod));
            admitted += 1;
        }
        admitted
    };
    let ((leaves, authorities), admitted) = tokio::join!(calls, pods);
    let direct = direct.load(Ordering::Relaxed);
    println!(
        "{leaves} certificates of {authorities} authorities; {admitted} pods, {direct} calls, none failed"
    );
    assert!(leaves >= 6 && authorities >= 3, "{leaves} certificates, {authorities} authorities");
    assert!(admitted > 20 && direct > 20, "{admitted} pods, {direct} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_somebody_reset_is_put_back() {
    let release = install!("resets");
    release.create_secret().await;
    let replica = release.replica(release.own()).await;
    release.configure(&[&replica]).await;
    replica.until_ready().await;
    release.until_called().await;
    let right = release.bundles().await;
    for bundle in [Value::Null, foreign_bundle()] {
        let patch = json!({"webhooks": [{
            "name": "replica-0.inject.warpdrive.io", "clientConfig": {"caBundle": bundle},
        }]});
        let (api, params) = (release.configurations(), PatchParams::default());
        api.patch(&release.name, &params, &Patch::Strategic(patch)).await.unwrap();
        until("the bundle is back", || async { release.bundles().await == right }).await;
    }
    release.until_called().await;
    let configuration = release.configurations().get(&release.name).await.unwrap();
    let webhook = &configuration.webhooks.unwrap()[0];
    assert_eq!(webhook.timeout_seconds, Some(10), "nothing else was changed");
    assert_eq!(webhook.client_config.url, Some(format!("https://{}/mutate", replica.address)));
}

/// A bundle of nobody: the API server refuses one that holds no certificate.
fn foreign_bundle() -> Value {
    use base64::Engine as _;
    json!(base64::engine::general_purpose::STANDARD.encode(Authority::new().bundle()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_said_and_made_where_it_may_be() {
    let release = install!("missing");
    let replica = release.replica(release.own()).await;
    release.configure(&[&replica]).await;
    // The chart's rights do not allow to create a Secret, only to fill the one that is there.
    until("the right is told", || async {
        let (status, text) = replica.readiness().await;
        status == 503 && text.contains("Secret missing/tls: ") && text.contains("RBAC")
    })
    .await;
    assert!(replica.metric("warpdrive_webhook_kubernetes_errors_total").await >= 1.0);
    release.create_secret().await;
    replica.until_ready().await;

    // Who may create it does.
    let api: Api<Secret> = Api::namespaced(release.admin.clone(), &release.name);
    api.delete("tls", &DeleteParams::default()).await.unwrap();
    let own = Own { kubeconfig: Some(release.cluster.kubeconfig("admin")), ..release.own() };
    let second = release.replica(own).await;
    second.until_ready().await;
    assert!(release.secret("authority.json").await.contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_of_somebody_else_is_left_alone() {
    let release = install!("foreign");
    let data = json!({"tls.crt": "dGhlaXJz", "tls.key": "dGhlaXJz"});
    release
        .create::<Secret>(
            json!({"metadata": {"name": "tls"}, "type": "kubernetes.io/tls", "data": data}),
        )
        .await;
    let replica = release.replica(release.own()).await;
    release.configure(&[&replica]).await;
    until("it is told", || async { replica.readiness().await.1.contains("--tls-cert") }).await;
    assert_eq!(release.secret("tls.crt").await, "theirs");
    assert_eq!(release.secret("authority.json").await, "");
}
