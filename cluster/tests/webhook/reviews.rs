//! Reviews and their answers.

use serde_json::{Value, json};

use crate::support::*;

async fn answered(pod: &Value) -> Value {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    Caller::trusting(&authority.bundle()).review(serving.address, pod).await
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_labelled_pod_comes_back_with_what_it_asks_for() {
    let pod = training_pod("resnet");
    let response = answered(&pod).await;
    assert_eq!(response["uid"], UID);
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    let injected = patched(&pod, &response);
    assert_eq!(
        names(&injected["spec"]["initContainers"]),
        ["warpdrive-mountd", "warpdrive", "prepare"]
    );
    assert_eq!(names(&injected["spec"]["containers"]), ["main"]);
    let mounts = injected["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().any(|mount| mount["mountPath"] == "/data"), "{mounts:?}");
    let status = &injected["metadata"]["annotations"][cluster::names::STATUS_ANNOTATION];
    assert!(status.is_string(), "{status}");
    assert_eq!(injected["metadata"]["managedFields"], pod["metadata"]["managedFields"]);
}

#[tokio::test]
async fn an_answer_is_exactly_this() {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    let caller = Caller::trusting(&authority.bundle());
    let mut pod = training_pod("resnet");
    pod["metadata"]["labels"]["warpdrive.io/inject"] = json!("false");
    let (status, body) = caller.send(serving.address, review(&pod).to_string()).await;
    assert_eq!(status, 200);
    let golden = format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{{"allowed":true,"uid":"{UID}"}}}}"#
    );
    assert_eq!(body, golden);
}

#[tokio::test]
async fn a_second_call_for_the_same_pod_changes_nothing() {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    let caller = Caller::trusting(&authority.bundle());
    let pod = training_pod("resnet");
    let injected = patched(&pod, &caller.review(serving.address, &pod).await);
    let again = caller.review(serving.address, &injected).await;
    assert_eq!(again["allowed"], true);
    assert_eq!(again["patch"], Value::Null, "{again}");
}

#[tokio::test]
async fn a_bad_annotation_denies_with_one_sentence_that_names_it() {
    let mut pod = training_pod("resnet");
    pod["metadata"]["annotations"]["warpdrive.io/cache-size"] = json!("plenty");
    let response = answered(&pod).await;
    assert_eq!(response["uid"], UID);
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 422);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("warpdrive.io/cache-size"), "{message}");
    assert!(!message.contains('\n'), "{message}");
    assert_eq!(response["patch"], Value::Null);
}

#[tokio::test]
async fn what_is_no_new_pod_is_allowed_as_it_is() {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    let caller = Caller::trusting(&authority.bundle());
    let changes: [fn(&mut Value); 8] = [
        |request| request["operation"] = json!("UPDATE"),
        |request| request["operation"] = json!("DELETE"),
        |request| request["kind"] = json!({"group": "apps", "version": "v1", "kind": "Deployment"}),
        |request| request["kind"] = json!({"group": "example.io", "version": "v1", "kind": "Pod"}),
        |request| request["kind"] = Value::Null,
        |request| request["subResource"] = json!("ephemeralcontainers"),
        |request| request["object"] = Value::Null,
        |request| request["object"] = json!("a pod"),
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut review = review(&training_pod("resnet"));
        change(&mut review["request"]);
        let (status, body) = caller.send(serving.address, review.to_string()).await;
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, 200);
        let unchanged = json!({"uid": UID, "allowed": true});
        assert_eq!(answer["response"], unchanged, "change {index}");
    }
    assert!(serving.metric("warpdrive_webhook_requests_total{outcome=\"unchanged\"}").await >= 8.0);
}

#[tokio::test]
async fn a_dry_run_is_answered_alike() {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    let caller = Caller::trusting(&authority.bundle());
    let pod = training_pod("resnet");
    let wet = caller.review(serving.address, &pod).await;
    let mut dry = review(&pod);
    dry["request"]["dryRun"] = json!(true);
    let (_, body) = caller.send(serving.address, dry.to_string()).await;
    let dry: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(dry["response"], wet);
}

#[tokio::test]
async fn a_connection_carries_many_reviews() {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    let mut sender = Caller::trusting(&authority.bundle()).open(serving.address).await.unwrap();
    let body = review(&training_pod("resnet")).to_string();
    for _ in 0..50 {
        sender.ready().await.unwrap();
        let answer = sender.send_request(post(body.clone().into())).await.unwrap();
        assert_eq!(collected(answer).await.0, 200);
    }
    let series = "warpdrive_webhook_requests_total{outcome=\"injected\"}";
    assert!((serving.metric(series).await - 50.0).abs() < 0.5);
    assert!(
        (serving.metric("warpdrive_webhook_request_duration_seconds_count").await - 50.0).abs()
            < 0.5
    );
    assert!(serving.metric("warpdrive_webhook_connections").await >= 1.0);
}

#[tokio::test]
async fn health_is_on_both_ports_and_metrics_are_on_one() {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    assert_eq!(get(serving.plain, "/healthz").await, (200, "alive\n".to_owned()));
    let (status, text) = serving.readiness().await;
    assert_eq!(status, 200);
    assert!(text.starts_with("ready\ncertificate: valid until 20"), "{text}");
    assert_eq!(get(serving.plain, "/mutate").await.0, 404);
    let caller = Caller::trusting(&authority.bundle());
    for (path, expected) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 404), ("/", 404)] {
        let mut sender = caller.open(serving.address).await.unwrap();
        let request = hyper::Request::get(path)
            .header("host", "x")
            .body(http_body_util::Full::default())
            .unwrap();
        assert_eq!(
            collected(sender.send_request(request).await.unwrap()).await.0,
            expected,
            "{path}"
        );
    }
}

#[tokio::test]
async fn who_does_not_trust_the_authority_gets_no_connection() {
    let authority = Authority::new();
    let serving = Serving::of(&authority).await;
    let stranger = Caller::trusting(&Authority::new().bundle());
    assert!(stranger.connect(serving.address).await.is_err());
}
