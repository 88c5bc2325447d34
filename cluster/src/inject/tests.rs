//! What injection makes of pods: properties for all of them, and each rule with a pod that needs it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Context, Defaults, Operation, Outcome, inject, patch};

const REQUEST: Context<'static> =
    Context { namespace: "n", uid: "8b5f0d5e-6d0c-4c07-9f0c-2f6a3f9b3f11" };

fn injected(pod: &Value, set: &[&str]) -> Value {
    let mut defaults = Defaults::default();
    for one in set {
        defaults.set(one).unwrap();
    }
    match inject(pod, &REQUEST, &defaults).unwrap() {
        Outcome::Injected { pod, .. } => pod,
        Outcome::Untouched { why } => panic!("{why}"),
    }
}

fn denied(pod: &Value) -> String {
    inject(pod, &REQUEST, &Defaults::default()).unwrap_err().to_string()
}

/// Applies a patch as RFC 6902 says, strictly.
fn applied(mut to: Value, operations: &[Operation]) -> Value {
    for operation in operations {
        let (path, value) = match operation {
            Operation::Add { path, value } | Operation::Replace { path, value } => {
                (path, Some(value))
            }
            Operation::Remove { path } => (path, None),
        };
        if path.is_empty() {
            to = value.unwrap().clone();
            continue;
        }
        let (parent, last) = path.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/").replace("~0", "~");
        match (to.pointer_mut(parent).expect("the parent is there"), operation) {
            (Value::Array(items), Operation::Add { value, .. }) => {
                items.insert(last.parse().unwrap(), value.clone());
            }
            (Value::Array(items), Operation::Replace { value, .. }) => {
                items[last.parse::<usize>().unwrap()] = value.clone();
            }
            (Value::Array(items), Operation::Remove { .. }) => {
                drop(items.remove(last.parse().unwrap()));
            }
            (Value::Object(members), Operation::Add { value, .. }) => {
                drop(members.insert(last, value.clone()));
            }
            (Value::Object(members), Operation::Replace { value, .. }) => {
                assert!(members.insert(last, value.clone()).is_some());
            }
            (Value::Object(members), Operation::Remove { .. }) => {
                assert!(members.remove(&last).is_some());
            }
            (other, _) => panic!("{path} in {other}"),
        }
    }
    to
}

#[allow(clippy::needless_pass_by_value)] // Reads better with `json!` at each call.
fn pod(annotations: Value, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "annotations": annotations}, "spec": {"containers": [{"name": "main"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

#[test]
fn what_is_not_ours_is_left_alone() {
    for (what, word) in [
        (json!({"metadata": {"labels": {"warpdrive.io/inject": "false"}}}), "label"),
        (json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}), "static"),
    ] {
        match inject(&what, &REQUEST, &Defaults::default()).unwrap() {
            Outcome::Untouched { why } => assert!(why.contains(word), "{why}"),
            Outcome::Injected { .. } => panic!("{what}"),
        }
    }
}

#[test]
fn denials_are_one_sentence_that_names_the_cause() {
    let main = |container: Value| {
        let mut container = container;
        container["name"] = json!("main");
        pod(json!({}), json!({"containers": [container]}))
    };
    for (pod, words) in [
        (json!({}), &["no spec"][..]),
        (json!({"spec": {"containers": []}}), &["no containers"]),
        (json!({"spec": {"containers": [1]}}), &["spec.containers is not a list"]),
        (
            json!({"metadata": {"labels": {"warpdrive.io/inject": "yes"}}}),
            &["warpdrive.io/inject", "\"true\""],
        ),
        (
            pod(json!({}), json!({"hostUsers": false})),
            &["warpdrive.io/mode", "hostUsers", "because"],
        ),
        (
            pod(json!({"warpdrive.io/mode": "csi"}), json!({"hostUsers": false})),
            &["hostUsers", "because"],
        ),
        (pod(json!({}), json!({"os": {"name": "windows"}})), &["Windows"]),
        (pod(json!({}), json!({"nodeSelector": {"kubernetes.io/os": "windows"}})), &["Windows"]),
        (
            pod(json!({}), json!({"volumes": [{"name": "warpdrive-run"}]})),
            &["volume `warpdrive-run`", "rename"],
        ),
        (
            pod(json!({}), json!({"initContainers": [{"name": "warpdrive-warm-2"}]})),
            &["container `warpdrive-warm-2`"],
        ),
        (
            pod(json!({}), json!({"containers": [{"name": "warpdrive"}]})),
            &["container `warpdrive`"],
        ),
        (
            pod(json!({"warpdrive.io/containers": "main,other"}), json!({})),
            &["warpdrive.io/containers", "`other`"],
        ),
        (
            pod(json!({"warpdrive.io/metrics": "on"}), json!({"hostNetwork": true})),
            &["warpdrive.io/metrics", "hostNetwork"],
        ),
        (
            main(json!({"volumeMounts": [{"name": "x", "mountPath": "/data/"}]})),
            &["warpdrive.io/mounts", "`main`", "`/data/`"],
        ),
        (
            main(json!({"volumeMounts": [{"name": "x", "mountPath": "/data/x"}]})),
            &["in the way of `/data`"],
        ),
        (
            main(json!({"volumeMounts": [{"name": "warpdrive-mount", "mountPath": "/x"}]})),
            &["`warpdrive-mount`"],
        ),
        (
            main(json!({"volumeMounts": [{"name": "warpdrive-run", "mountPath": "/x"}]})),
            &["`warpdrive-run`", "`main`"],
        ),
        (
            main(json!({"volumeDevices": [{"name": "warpdrive-cache", "devicePath": "/x"}]})),
            &["`warpdrive-cache`", "`main`"],
        ),
        (
            pod(
                json!({"warpdrive.io/cache": "pvc:x"}),
                json!({"volumes": [{"name": "own", "persistentVolumeClaim": {"claimName": "y"}}]}),
            ),
            &["warpdrive.io/cache", "fsGroup", "`own`", "65534"],
        ),
        (
            main(json!({"ports": [{"containerPort": 9000}]})),
            &["warpdrive.io/s3-port", "9000", "`main`"],
        ),
        (main(json!({"ports": [{"containerPort": 9091}]})), &["warpdrive.io/admin-port"]),
        (main(json!({"ports": [{"containerPort": 9090}]})), &["warpdrive.io/metrics", "off"]),
        (main(json!({"env": {}})), &["env of container `main`"]),
    ] {
        let said = denied(&pod);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert!(!said.ends_with('.') && !said.contains('\n'), "{said}");
    }
}

#[test]
fn a_neighbour_of_the_mount_is_not_in_its_way() {
    let mounts = json!([{"name": "x", "mountPath": "/database"}, {"name": "y", "mountPath": "/"}]);
    let after = injected(
        &pod(json!({}), json!({"containers": [{"name": "main", "volumeMounts": mounts}]})),
        &[],
    );
    assert_eq!(after["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().len(), 3);
}

#[test]
fn what_is_added_later_is_served_by_a_second_call() {
    let mut once = injected(
        &pod(json!({"warpdrive.io/warm": "all"}), json!({"initContainers": [{"name": "own"}]})),
        &[],
    );
    // The API server fills in its defaults, and a mesh puts itself behind ours.
    once["spec"]["initContainers"][1]["imagePullPolicy"] = json!("Always");
    once["spec"]["initContainers"][1]["volumeMounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "token", "mountPath": "/t"}));
    once["spec"]["volumes"][3]["configMap"]["defaultMode"] = json!(420);
    once["spec"]["initContainers"].as_array_mut().unwrap().insert(3, json!({"name": "istio-init"}));
    once["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "late"}));
    let twice = injected(&once, &[]);
    assert_eq!(
        names(&twice["spec"]["initContainers"]),
        ["istio-init", "warpdrive-mountd", "warpdrive", "warpdrive-warm", "own"]
    );
    assert_eq!(twice["spec"]["initContainers"][2]["imagePullPolicy"], "Always");
    assert!(
        twice["spec"]["initContainers"][2]["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .any(|mount| mount["name"] == "token")
    );
    assert_eq!(twice["spec"]["volumes"][3]["configMap"]["defaultMode"], 420);
    assert_eq!(twice["spec"]["containers"][1]["volumeMounts"][0]["mountPath"], "/data");
    assert_eq!(twice["spec"]["terminationGracePeriodSeconds"], 50);
    assert_eq!(injected(&twice, &[]), twice);
    assert_eq!(applied(once.clone(), &patch(&once, &twice)), twice);
}

#[test]
fn another_mode_takes_away_what_the_first_one_needed() {
    let before = pod(json!({"warpdrive.io/warm": "a/x,b/y"}), json!({}));
    let mut sidecar = injected(&before, &["mode=sidecar"]);
    sidecar["metadata"]["annotations"].as_object_mut().unwrap().remove("warpdrive.io/warm");
    for mode in ["s3", "csi", "sidecar"] {
        let mut clean = before.clone();
        clean["metadata"]["annotations"].as_object_mut().unwrap().remove("warpdrive.io/warm");
        let set = format!("mode={mode}");
        let (mut changed, mut direct) = (injected(&sidecar, &[&set]), injected(&clean, &[&set]));
        // The order of volumes and of mounts means nothing.
        for pod in [&mut changed, &mut direct] {
            for container in pod["spec"]["initContainers"].as_array_mut().unwrap() {
                container["volumeMounts"]
                    .as_array_mut()
                    .unwrap()
                    .sort_by_key(|mount| mount["name"].to_string());
            }
            pod["spec"]["volumes"]
                .as_array_mut()
                .unwrap()
                .sort_by_key(|volume| volume["name"].to_string());
            if pod["spec"]["containers"][0]["volumeMounts"] == json!([]) {
                pod["spec"]["containers"][0].as_object_mut().unwrap().remove("volumeMounts");
            }
        }
        assert_eq!(changed, direct, "{mode}");
    }
}

#[test]
fn variables_of_the_author_win() {
    let env = |env: Value| {
        let after =
            injected(&pod(json!({}), json!({"containers": [{"name": "main", "env": env}]})), &[]);
        let all = after["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        all.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = [
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    assert_eq!(env(json!([])), all);
    // Another endpoint wants other keys and another region.
    assert_eq!(env(json!([{"name": "AWS_ENDPOINT_URL", "value": "x"}])), ["AWS_ENDPOINT_URL"]);
    assert_eq!(
        env(json!([{"name": "AWS_DEFAULT_REGION", "valueFrom": {}}])),
        ["AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_CONTAINER_CREDENTIALS_FULL_URI"]
    );
    for own in ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"] {
        assert_eq!(env(json!([{"name": own, "value": "x"}])), [own, all[0], all[1], all[2]]);
    }
}

/// The keys of a cloud's role are none of the pod's S3 endpoint.
#[test]
fn a_container_with_a_role_is_not_sent_to_the_endpoint() {
    let after = |pod: &Value, set: &str| {
        let mut defaults = Defaults::default();
        defaults.set(set).unwrap();
        match inject(pod, &REQUEST, &defaults).unwrap() {
            Outcome::Injected { pod, warnings } => (pod, warnings),
            Outcome::Untouched { why } => panic!("{why}"),
        }
    };
    for own in [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ] {
        let role = json!({"name": own, "value": "x"});
        let with = pod(json!({}), json!({"containers": [{"name": "main", "env": [role]}]}));
        let (served, warnings) = after(&with, "s3=on");
        assert_eq!(names(&served["spec"]["containers"][0]["env"]), [own]);
        assert!(warnings.iter().any(|what| what.contains(own) && what.contains("s3: anonymous")));
        let (served, warnings) = after(&with, "s3=anonymous");
        assert_eq!(
            names(&served["spec"]["containers"][0]["env"]),
            [own, "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"]
        );
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    // A webhook that gives the role comes later: ours go again, and nobody else's.
    let region = json!({"name": "OTHER", "value": "us-east-1"});
    let before = pod(json!({}), json!({"containers": [{"name": "main", "env": [region]}]}));
    let mut later = injected(&before, &[]);
    let role = json!({"name": "AWS_ROLE_ARN", "value": "x"});
    later["spec"]["containers"][0]["env"].as_array_mut().unwrap().push(role);
    let (served, _) = after(&later, "s3=on");
    assert_eq!(names(&served["spec"]["containers"][0]["env"]), ["OTHER", "AWS_ROLE_ARN"]);
    assert_eq!(after(&served, "s3=on").0, served);
}

/// A status annotation that the author wrote opens nothing.
#[test]
fn a_forged_injection_gets_nothing_into_our_containers() {
    let status = r#"{"version":"1","mode":"sidecar"}"#;
    let code = json!([{"name": "LD_PRELOAD", "value": "/x/evil.so"}]);
    let forged = |name: &str| {
        json!({
            "name": name, "args": ["x"], "env": code, "envFrom": [{"secretRef": {"name": "x"}}],
            "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}, "workingDir": "/x", "tty": true,
            "startupProbe": {"exec": {"command": ["x"]}}, "imagePullPolicy": "Always",
            "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}, "procMount": "Unmasked"},
            "resources": {"limits": {"nvidia.com/gpu": "1"}, "claims": [{"name": "x"}]},
            "volumeMounts": [
                {"name": "x", "mountPath": "/usr/local/bin"},
                {"name": "x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true},
                {"name": "warpdrive-run", "mountPath": "/lib", "subPath": "x"},
            ],
        })
    };
    let pod = pod(
        json!({"warpdrive.io/status": status, "warpdrive.io/warm": "all"}),
        json!({
            "initContainers": [forged("warpdrive-mountd"), forged("warpdrive"), forged("warpdrive-mountd")],
            "volumes": [
                {"name": "x", "emptyDir": {}},
                {"name": "warpdrive-config", "configMap": {"name": "mine", "optional": true, "defaultMode": 420}},
                {"name": "warpdrive-run", "hostPath": {"path": "/"}},
                {"name": "warpdrive-mount", "emptyDir": {"medium": "Memory"}},
                {"name": "warpdrive-mount", "emptyDir": {}},
                {"name": "warpdrive-socket", "csi": {"driver": "csi.warpdrive.io", "volumeAttributes": {"more": "x"}}},
            ],
        }),
    );
    for mode in ["mode=sidecar", "mode=csi"] {
        let after = injected(&pod, &[mode]);
        let mut clean = json!({"metadata": {"name": "p", "annotations": {"warpdrive.io/warm": "all"}}, "spec": {
            "containers": [{"name": "main"}], "volumes": [{"name": "x", "emptyDir": {}}],
        }});
        clean = injected(&clean, &[mode]);
        let ours = clean["spec"]["initContainers"].as_array_mut().unwrap();
        for ours in ours.iter_mut().filter(|ours| ours["name"] != "warpdrive-warm") {
            ours["imagePullPolicy"] = json!("Always");
            // The worker may have what the author's own containers may have, but for the pod's token.
            if ours["name"] == "warpdrive" {
                let mounts = ours["volumeMounts"].as_array_mut().unwrap();
                mounts.push(json!({"name": "x", "mountPath": "/usr/local/bin"}));
                ours["env"].as_array_mut().unwrap().push(code[0].clone());
            }
        }
        assert_eq!(after["spec"]["initContainers"], clean["spec"]["initContainers"], "{mode}");
        let sorted = |pod: &Value| {
            let mut volumes = pod["spec"]["volumes"].as_array().unwrap().clone();
            volumes.sort_by_key(|volume| volume["name"].to_string());
            volumes
        };
        for (volume, mut wanted) in sorted(&after).into_iter().zip(sorted(&clean)) {
            if wanted["name"] == "warpdrive-config" {
                wanted["configMap"]["defaultMode"] = json!(420);
            }
            assert_eq!(volume, wanted, "{mode}");
        }
        assert_eq!(sorted(&after).len(), sorted(&clean).len());
        // What belongs to the worker alone is not given to the author's containers either.
        for volume in
            ["warpdrive-run", "warpdrive-socket", "warpdrive-tokens", "warpdrive-no-token"]
        {
            let mut greedy = pod.clone();
            greedy["spec"]["containers"][0]["volumeMounts"] =
                json!([{"name": volume, "mountPath": "/x"}]);
            assert!(denied(&greedy).contains(volume));
        }
    }
}

#[test]
fn ports_of_other_protocols_are_free() {
    let ports = json!([{"containerPort": 9000, "protocol": "UDP"}]);
    injected(&pod(json!({}), json!({"containers": [{"name": "main", "ports": ports}]})), &[]);
}

#[test]
fn ports_of_pods_on_the_hosts_network_are_derived_and_kept() {
    let before = pod(json!({}), json!({"hostNetwork": true}));
    let after = |pod: &Value, uid: &str| match inject(
        pod,
        &Context { namespace: "n", uid },
        &Defaults::default(),
    )
    .unwrap()
    {
        Outcome::Injected { pod, warnings } => (pod, warnings),
        Outcome::Untouched { why } => panic!("{why}"),
    };
    let (first, warnings) = after(&before, "one");
    assert!(warnings[0].contains("hostNetwork") && warnings[0].contains("admin"), "{warnings:?}");
    let off = pod(json!({"warpdrive.io/s3": "off"}), json!({"hostNetwork": true}));
    let (_, warnings) = after(&off, "one");
    assert!(warnings[0].contains("hostNetwork") && warnings[0].contains("admin"), "{warnings:?}");
    assert_eq!(after(&first, "two").0, first, "ports are kept");
    let ports = |pod: &Value| {
        let ports = pod["spec"]["initContainers"][1]["ports"].as_array().unwrap().clone();
        ports.iter().map(|port| port["containerPort"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..500 {
        let (pod, _) = after(&before, &format!("pod-{n}"));
        let ports = ports(&pod);
        assert_eq!(ports.len(), 2, "no metrics");
        assert!(ports.iter().all(|port| (20_000..28_192).contains(port)), "{ports:?}");
        seen.insert(ports);
    }
    assert!(seen.len() > 400, "{} of 500 are different", seen.len());
}

#[test]
fn resources_follow_the_sizes_and_keep_the_class_of_the_pod() {
    let worker = |pod: &Value, set: &[&str]| {
        injected(pod, set)["spec"]["initContainers"][1]["resources"].clone()
    };
    let set = ["memory=1Gi", "cache-size=100Gi", "cpu=1500m"];
    assert_eq!(
        worker(&pod(json!({}), json!({})), &set),
        json!({
            "requests": {"cpu": "1500m", "memory": "1280Mi", "ephemeral-storage": "105Gi"},
            "limits": {"memory": "1536Mi"},
        })
    );
    let limits = json!({"cpu": "1", "memory": "1Gi"});
    let guaranteed =
        pod(json!({}), json!({"containers": [{"name": "main", "resources": {"limits": limits}}]}));
    assert_eq!(
        worker(&guaranteed, &set),
        json!({
            "requests": {"cpu": "1500m", "memory": "1536Mi", "ephemeral-storage": "105Gi"},
            "limits": {"cpu": "1500m", "memory": "1536Mi"},
        })
    );
    let limited = json!({"limits": {"ephemeral-storage": "1Gi"}});
    let limited = pod(json!({}), json!({"containers": [{"name": "main", "resources": limited}]}));
    assert_eq!(worker(&limited, &set)["limits"]["ephemeral-storage"], "105Gi");
    let whole = pod(json!({}), json!({"resources": {"limits": {"memory": "8Gi"}}}));
    assert_eq!(worker(&whole, &["cache=memory"]), json!({}));
    let defaults = Defaults::from_yaml(
        "resources: {worker: {requests: {cpu: '3', memory: ''}, limits: {cpu: '9'}}}",
    )
    .unwrap();
    let Ok(Outcome::Injected { pod, .. }) = inject(&pod(json!({}), json!({})), &REQUEST, &defaults)
    else {
        panic!()
    };
    let resources = &pod["spec"]["initContainers"][1]["resources"];
    assert_eq!(
        (&resources["requests"]["cpu"], &resources["limits"]["cpu"]),
        (&json!("3"), &json!("9"))
    );
    assert!(resources["requests"].get("memory").is_none());
}

#[test]
fn the_grace_period_is_raised_once() {
    let grace = |pod: &Value| pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    let mut after = injected(
        &pod(
            json!({"warpdrive.io/flush-seconds": "60"}),
            json!({"terminationGracePeriodSeconds": 5}),
        ),
        &[],
    );
    assert_eq!(grace(&after), 65);
    assert_eq!(grace(&injected(&after, &[])), 65);
    // Its author changes his mind about the result.
    after["spec"]["terminationGracePeriodSeconds"] = json!(100);
    assert_eq!(grace(&injected(&after, &[])), 160);
}

#[test]
fn a_new_file_system_gets_a_group() {
    for (cache, wanted) in
        [("emptyDir", Value::Null), ("pvc:x", json!(65534)), ("ephemeral", json!(65534))]
    {
        let after = injected(&pod(json!({}), json!({})), &[&format!("cache={cache}")]);
        assert_eq!(after["spec"]["securityContext"]["fsGroup"], wanted, "{cache}");
        if !wanted.is_null() {
            let policy = &after["spec"]["securityContext"]["fsGroupChangePolicy"];
            assert_eq!(policy, "OnRootMismatch");
            assert_eq!(injected(&after, &[&format!("cache={cache}")]), after);
        }
    }
    let own = pod(json!({}), json!({"securityContext": {"fsGroup": 7}}));
    assert_eq!(injected(&own, &["cache=pvc:x"])["spec"]["securityContext"]["fsGroup"], 7);
}

/// Long lists with one item more in the middle are no work, and no replacement of the list.
#[test]
fn a_patch_of_long_lists_is_short() {
    let item = |n: usize| json!({"name": format!("{n}-{}", "x".repeat(100)), "value": "v"});
    let before: Vec<Value> = (0..4000).map(item).collect();
    let mut after = before.clone();
    after.insert(2000, item(5000));
    after.remove(1900);
    let (before, after) = (json!(before), json!(after));
    let operations = patch(&before, &after);
    assert_eq!(operations.len(), 2);
    assert_eq!(applied(before, &operations), after);
}

#[test]
fn a_patch_names_only_what_differs() {
    // More digits than a 64-bit number has: serde_json would round it, so it must not be in there.
    let text = r#"{"metadata":{"name":"p"},"spec":{"x":0.10000000000000000000001,"containers":[{"name":"a","y":123456789012345678901234567890,"env":[{"name":"e","value":"v"}]}],"volumes":[]}}"#;
    let before: Value = serde_json::from_str(text).unwrap();
    let printed = serde_json::to_string(&patch(&before, &injected(&before, &[]))).unwrap();
    assert!(
        !printed.contains("\"x\"") && !printed.contains("\"y\"") && !printed.contains("\"e\""),
        "{printed}"
    );
    assert!(printed.contains(r#"{"op":"add","path":"/spec/containers/0/env/1""#), "{printed}");
    let once = injected(&before, &[]);
    assert_eq!(patch(&once, &injected(&once, &[])), []);
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(Value::from),
        "[a-z/~]{0,6}".prop_map(Value::from),
    ]
}

/// Any JSON, with words of pods in it.
fn anything() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        "[a-z~/]{1,4}",
        Just("name".to_owned()),
        Just("env".to_owned()),
        Just("volumeMounts".to_owned()),
        Just("mountPath".to_owned()),
        Just("containers".to_owned()),
        Just("initContainers".to_owned()),
        Just("volumes".to_owned()),
        Just("ports".to_owned()),
        Just("resources".to_owned()),
        Just("limits".to_owned()),
        Just("value".to_owned()),
    ];
    scalar().prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::hash_map(word.clone(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A container as pods have them, with something unknown in it.
fn container() -> impl Strategy<Value = Value> {
    let name = prop_oneof!["[a-c]", Just("istio-init".to_owned()), Just("istio-proxy".to_owned())];
    let variable = prop_oneof![
        Just("AWS_REGION"),
        Just("AWS_PROFILE"),
        Just("AWS_ENDPOINT_URL_S3"),
        Just("OTHER")
    ];
    let env = prop::collection::vec((variable, "[a-z]{0,3}"), 0..3);
    let mounts = prop::collection::vec("/[a-c]{1,2}", 0..3);
    (name, env, mounts, anything(), prop::option::of(1_u16..5)).prop_map(
        |(name, env, mounts, unknown, cpu)| {
            let env: Vec<Value> = env
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            let mounts: Vec<Value> =
                mounts.into_iter().map(|path| json!({"name": "v", "mountPath": path})).collect();
            let mut container = json!({"name": name, "unknown": unknown});
            if !env.is_empty() {
                container["env"] = env.into();
            }
            if !mounts.is_empty() {
                container["volumeMounts"] = mounts.into();
            }
            if let Some(cpu) = cpu {
                container["resources"] =
                    json!({"limits": {"cpu": cpu.to_string(), "memory": "1Gi"}});
            }
            container
        },
    )
}

fn any_pod() -> impl Strategy<Value = Value> {
    let settings = prop::collection::vec(
        prop_oneof![
            Just(("mode", "csi")),
            Just(("mode", "s3")),
            Just(("cache", "memory")),
            Just(("cache", "pvc:x")),
            Just(("warm", "all")),
            Just(("warm", "a/b,c")),
            Just(("s3", "off")),
            Just(("s3", "anonymous")),
            Just(("token-audiences", "a,b")),
            Just(("flush-seconds", "0")),
            Just(("metrics", "off")),
            Just(("memory", "1Gi")),
        ],
        0..4,
    );
    (
        prop::collection::vec(container(), 1..4),
        prop::option::of(prop::collection::vec(container(), 0..4)),
        settings,
        anything(),
        prop::option::of(0_u32..200),
        any::<bool>(),
    )
        .prop_map(|(containers, init, settings, unknown, grace, host)| {
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "other": unknown.clone(),
                                 "spec": {"containers": containers, "unknown": unknown}});
            for (name, value) in settings {
                pod["metadata"]["annotations"][format!("warpdrive.io/{name}")] = json!(value);
            }
            if let Some(init) = init {
                pod["spec"]["initContainers"] = init.into();
            }
            if let Some(grace) = grace {
                pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
            }
            if host {
                pod["spec"]["hostNetwork"] = json!(true);
            }
            pod
        })
}

/// What injection added, taken away again.
fn undone(mut pod: Value, before: &Value) -> Value {
    let ours =
        |value: &Value| value["name"].as_str().is_some_and(|name| name.starts_with("warpdrive"));
    let set = |value: &Value| {
        let text = value["value"].as_str().unwrap_or("");
        text.starts_with("http://127.0.0.1:") || text == "us-east-1"
    };
    let spec = pod["spec"].as_object_mut().unwrap();
    for (name, old) in [
        ("initContainers", &before["spec"]["initContainers"]),
        ("volumes", &before["spec"]["volumes"]),
    ] {
        spec[name].as_array_mut().unwrap().retain(|one| !ours(one));
        if old.is_null() {
            assert_eq!(spec.remove(name), Some(json!([])));
        }
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in
            spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().enumerate()
        {
            let old = &before["spec"][list][index];
            for (part, is_new) in
                [("volumeMounts", &ours as &dyn Fn(&Value) -> bool), ("env", &set)]
            {
                if let Some(items) = container.get_mut(part).and_then(Value::as_array_mut) {
                    items.retain(|one| !is_new(one));
                    if items.is_empty() && old.get(part).is_none() {
                        container.as_object_mut().unwrap().remove(part);
                    }
                }
            }
        }
    }
    match before["spec"].get("terminationGracePeriodSeconds") {
        Some(grace) => drop(spec.insert("terminationGracePeriodSeconds".into(), grace.clone())),
        None => drop(spec.remove("terminationGracePeriodSeconds")),
    }
    spec.remove("securityContext");
    pod["metadata"]["annotations"].as_object_mut().unwrap().remove("warpdrive.io/status");
    if before["metadata"].get("annotations").is_none() {
        pod["metadata"].as_object_mut().unwrap().remove("annotations");
    }
    pod
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_json_panics(pod in anything(), spec in anything()) {
        let _ = inject(&pod, &REQUEST, &Defaults::default());
        let _ = inject(&json!({"spec": spec, "metadata": pod}), &REQUEST, &Defaults::default());
    }

    #[test]
    fn a_patch_leads_to_the_other_value(before in anything(), after in anything()) {
        prop_assert_eq!(&applied(before.clone(), &patch(&before, &after)), &after);
        prop_assert_eq!(patch(&before, &before), []);
    }

    #[test]
    fn a_pod_gains_and_loses_nothing(before in any_pod()) {
        let Ok(Outcome::Injected { pod: once, .. }) = inject(&before, &REQUEST, &Defaults::default()) else {
            return Ok(());
        };
        prop_assert_eq!(&injected(&once, &[]), &once, "a fixed point");
        prop_assert_eq!(&applied(before.clone(), &patch(&before, &once)), &once, "the patch");
        prop_assert_eq!(&undone(once, &before), &before, "nothing else");
    }
}
