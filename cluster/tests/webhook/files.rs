//! Files that change while the webhook serves, and its end.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::*;

/// Replaces a whole folder as kubelet does with a mounted `ConfigMap` or Secret: files are links into
/// `..data`, which is a link that is renamed over.
fn publish(folder: &Path, version: &str, files: &[(&str, &str)]) {
    let version = format!("..{version}");
    std::fs::create_dir(folder.join(&version)).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(&version).join(name), text).unwrap();
        let link = folder.join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(format!("..data/{name}"), link).unwrap();
        }
    }
    let new = folder.join("..data_tmp");
    std::os::unix::fs::symlink(&version, &new).unwrap();
    std::fs::rename(new, folder.join("..data")).unwrap();
}

fn image(pod: &Value) -> &str {
    let containers = pod["spec"]["initContainers"].as_array().unwrap();
    let worker = containers.iter().find(|container| container["name"] == "warpdrive").unwrap();
    worker["image"].as_str().unwrap()
}

#[tokio::test]
async fn settings_are_read_again_and_a_bad_file_changes_nothing() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    publish(folder.path(), "1", &[("settings.yaml", "image: registry.example/warpdrive:1\n")]);
    let settings = folder.path().join("settings.yaml");
    let serving = Serving::start(authority.source(), Some(&settings)).await;
    serving.until_ready().await;
    let caller = Caller::trusting(&authority.bundle());
    let pod = training_pod("resnet");
    let injected = || async { patched(&pod, &caller.review(serving.address, &pod).await) };
    assert_eq!(image(&injected().await), "registry.example/warpdrive:1");

    publish(folder.path(), "2", &[("settings.yaml", "image: registry.example/warpdrive:2\n")]);
    until("the second file is used", || async {
        image(&injected().await) == "registry.example/warpdrive:2"
    })
    .await;

    publish(folder.path(), "3", &[("settings.yaml", "image: x\ncolour: blue\n")]);
    until("the third file is told", || async {
        (serving.metric("warpdrive_webhook_settings_valid").await).abs() < 0.5
    })
    .await;
    assert_eq!(image(&injected().await), "registry.example/warpdrive:2");
    let (status, text) = serving.readiness().await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("settings: ") && text.contains("colour"), "{text}");

    publish(folder.path(), "4", &[("settings.yaml", "image: registry.example/warpdrive:4\n")]);
    until("the fourth file is used", || async {
        image(&injected().await) == "registry.example/warpdrive:4"
    })
    .await;
    assert!(!serving.readiness().await.1.contains("settings"));
    assert!(serving.metric("warpdrive_webhook_settings_valid").await > 0.5);
}

#[tokio::test]
async fn a_bad_settings_file_at_the_start_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("settings.yaml");
    std::fs::write(&settings, "colour: blue\n").unwrap();
    let options = cluster::webhook::Options {
        listen: loopback(),
        metrics: None,
        settings: Some(settings.clone()),
        source: Authority::new().source(),
        shutdown_delay: Duration::ZERO,
    };
    let error = cluster::webhook::Webhook::open(options).await.err().unwrap();
    assert!(error.contains(settings.to_str().unwrap()) && error.contains("colour"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_read_again_and_a_bad_one_is_not_shown() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let put = |version: &str, certificate: &str, key: &str| {
        publish(folder.path(), version, &[("tls.crt", certificate), ("tls.key", key)]);
    };
    let (first, first_key) = authority.pair(-60, 600);
    put("1", &first, &first_key);
    let source = cluster::webhook::Source::Files {
        certificate: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
    };
    let serving = Serving::start(source, None).await;
    serving.until_ready().await;
    let caller = Caller::trusting(&authority.bundle());
    let expiry = "warpdrive_webhook_certificate_expiry_timestamp_seconds";
    let changes = "warpdrive_webhook_certificate_changes_total";
    let before = serving.metric(expiry).await;

    // A key that does not fit, then nothing at all, then a whole new pair.
    put("2", &first, &authority.pair(-60, 600).1);
    until("the wrong key is told", || async { serving.readiness().await.1.contains("do not fit") })
        .await;
    assert_eq!(caller.review(serving.address, &training_pod("resnet")).await["allowed"], true);
    put("3", "", "");
    until("the empty file is told", || async { serving.readiness().await.1.contains("PEM") }).await;
    let (expired, expired_key) = authority.pair(-7200, -3600);
    put("expired", &expired, &expired_key);
    until("the expired one is told", || async {
        serving.readiness().await.1.contains("not valid now")
    })
    .await;
    assert_eq!(serving.readiness().await.0, 200);
    assert!((serving.metric(changes).await - 1.0).abs() < 0.5);

    let (second, second_key) = authority.pair(-60, 7200);
    put("4", &second, &second_key);
    until("the new one is shown", || async { serving.metric(expiry).await > before + 6000.0 })
        .await;
    assert_eq!(caller.review(serving.address, &training_pod("resnet")).await["allowed"], true);
    assert_eq!(serving.readiness().await.1.lines().count(), 2, "nothing is wrong any more");
}

#[tokio::test]
async fn not_ready_without_a_valid_certificate() {
    let authority = Authority::new();
    authority.issue(-3600, 2);
    let serving = Serving::start(authority.source(), None).await;
    serving.until_ready().await;
    until("it expires", || async { serving.readiness().await.0 == 503 }).await;
    assert!(serving.readiness().await.1.starts_with("not ready: the certificate has expired\n"));
    assert_eq!(get(serving.plain, "/healthz").await.0, 200, "a restart would not help");
    authority.issue(-60, 600);
    serving.until_ready().await;

    authority.issue(3000, 3600);
    let early = Serving::start(authority.source(), None).await;
    until("it is read", || async { early.readiness().await.1.contains("not valid yet") }).await;

    let missing = Authority::new();
    std::fs::remove_file(missing.key()).unwrap();
    let serving = Serving::start(missing.source(), None).await;
    until("it is looked for", || async { serving.readiness().await.1.contains("tls.key") }).await;
    let (status, text) = serving.readiness().await;
    assert_eq!(status, 503);
    assert!(text.starts_with("not ready: there is no certificate yet\n"), "{text}");
}

#[tokio::test]
async fn it_leaves_without_a_caller_noticing() {
    let authority = Authority::new();
    let delay = Duration::from_millis(1500);
    let mut serving = Serving::start_with(authority.source(), None, delay).await;
    serving.until_ready().await;
    let caller = Caller::trusting(&authority.bundle());
    let body = review(&training_pod("resnet")).to_string();

    // As an API server: connections are kept, and opened again when the other side said so.
    let (address, stop) = (serving.address, serving.stop.clone());
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (caller, body, stop) = (caller.clone(), body.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut sender, mut told) = (caller.open(address).await.unwrap(), false);
                let mut served = 0;
                loop {
                    // Endpoints have moved by half of the delay.
                    if stop.is_cancelled() && told {
                        return served;
                    }
                    if sender.ready().await.is_err() {
                        sender = caller.open(address).await.unwrap();
                    }
                    let answer = sender.send_request(post(body.clone().into())).await.unwrap();
                    let closing = answer.headers().get("connection").is_some();
                    assert_eq!(collected(answer).await.0, 200);
                    served += 1;
                    if closing {
                        told = true;
                        sender = caller.open(address).await.unwrap();
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    serving.stop.cancel();
    until("it is not ready", || async { serving.readiness().await.0 == 503 }).await;
    assert!(serving.readiness().await.1.starts_with("not ready: stopping\n"));
    assert_eq!(caller.review(serving.address, &training_pod("late")).await["allowed"], true);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    let ended = tokio::time::timeout(LIMIT, &mut serving.task).await.expect("it ends").unwrap();
    assert_eq!(ended, Ok(()));
    assert!(begun.elapsed() >= delay);
    assert!(caller.connect(serving.address).await.is_err());
}

#[tokio::test]
async fn lifetimes_that_cannot_overlap_are_refused() {
    let options = cluster::webhook::Options {
        listen: loopback(),
        metrics: None,
        settings: None,
        source: cluster::webhook::Source::Own(cluster::webhook::Own {
            namespace: "system".to_owned(),
            secret: "tls".to_owned(),
            configurations: vec!["warpdrive".to_owned()],
            names: vec!["127.0.0.1".to_owned()],
            authority: Duration::from_secs(100),
            certificate: Duration::from_secs(50),
            settle: Duration::from_secs(1),
            resync: Duration::from_secs(1),
            kubeconfig: None,
        }),
        shutdown_delay: Duration::ZERO,
    };
    let error = cluster::webhook::Webhook::open(options).await.err().unwrap();
    assert!(error.contains("three times"), "{error}");
}
