//! Pods as controllers and meshes make them, before and after injection, as files.
//!
//! Invariant: what is in `inject/expected` is what injection makes of `inject/cases`, byte by byte;
//! `WARPDRIVE_BLESS=1` writes it anew, to be read in the change. Every result is a fixed point, and
//! passes or fails the Pod Security levels exactly as its mode promises.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

#[path = "inject/levels.rs"]
mod levels;

use std::fs;
use std::path::{Path, PathBuf};

use cluster::inject::{Context, Defaults, Outcome, inject, manifests};
use serde_json::{Value, json};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject").join(name)
}

fn defaults(mode: &str) -> Defaults {
    let mut defaults =
        Defaults::from_yaml("image: registry.example/warpdrive:1\nimage_pull_policy: IfNotPresent")
            .unwrap();
    defaults.set(&format!("mode={mode}")).unwrap();
    defaults
}

/// Every case with each mode that its first line names; JSON cannot say it and has one.
fn cases() -> Vec<(String, String, String)> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let modes =
            text.lines().next().and_then(|line| line.strip_prefix("# modes: ")).unwrap_or("s3");
        for mode in modes.split_whitespace() {
            cases.push((name.clone(), mode.to_owned(), text.clone()));
        }
    }
    cases
}

fn pods(value: &Value, found: &mut Vec<Value>) {
    let status =
        value.pointer("/metadata/annotations").and_then(|all| all.get("warpdrive.io/status"));
    if status.is_some() && value.pointer("/spec/containers").is_some() {
        found.push(value.clone());
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| pods(item, found)),
        Value::Object(members) => members.values().for_each(|member| pods(member, found)),
        _ => {}
    }
}

#[test]
fn pods_of_every_controller_become_what_the_files_say() {
    let bless = std::env::var_os("WARPDRIVE_BLESS").is_some();
    let all = cases();
    assert!(all.len() >= 12, "{} cases", all.len());
    let mut different = Vec::new();
    for (name, mode, text) in all {
        let result = manifests(&text, &[], &defaults(&mode))
            .unwrap_or_else(|e| panic!("{name} {mode}: {e}"));
        assert!(!result.injected.is_empty(), "{name}");
        let again = manifests(&result.text, &[], &defaults(&mode)).unwrap();
        assert_eq!(again.text, result.text, "{name} {mode}: a second injection changes something");
        let (stem, end) = name.rsplit_once('.').unwrap();
        let file = folder("expected").join(format!("{stem}.{mode}.{end}"));
        if bless {
            fs::write(&file, &result.text).unwrap();
        }
        if fs::read_to_string(&file).ok().as_deref() != Some(&result.text) {
            different.push(file);
        }
    }
    assert!(different.is_empty(), "not as written, see WARPDRIVE_BLESS: {different:?}");
}

#[test]
fn nothing_of_an_input_is_lost() {
    for (name, mode, text) in cases() {
        let result = manifests(&text, &[], &defaults(&mode)).unwrap();
        let before: Value = serde_yaml::from_str(&text).unwrap();
        let after: Value = serde_yaml::from_str(&result.text).unwrap();
        contains(&after, &before, &name);
    }
}

/// Everything of `part` is in `whole`, in the same order, but for the grace period.
fn contains(whole: &Value, part: &Value, at: &str) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                if key != "terminationGracePeriodSeconds" {
                    contains(whole.get(key).unwrap_or(&Value::Null), value, &format!("{at}.{key}"));
                }
            }
        }
        (Value::Array(whole), Value::Array(part)) => {
            let id = |value: &Value| {
                value
                    .pointer("/metadata/name")
                    .or(value.get("name"))
                    .or(value.get("groupName"))
                    .or(value.get("mountPath"))
                    .unwrap_or(value)
                    .clone()
            };
            let mut rest = whole.iter();
            for value in part {
                let found = rest.find(|there| id(there) == id(value));
                contains(found.unwrap_or_else(|| panic!("{at}: {value} is gone")), value, at);
            }
        }
        (whole, part) => assert_eq!(whole, part, "{at}"),
    }
}

#[test]
fn each_mode_passes_the_level_that_it_promises() {
    let mut seen = 0;
    for (name, mode, text) in cases() {
        let result = manifests(&text, &[], &defaults(&mode)).unwrap();
        let documents: Value = serde_yaml::from_str(&result.text).unwrap();
        let mut found = Vec::new();
        pods(&documents, &mut found);
        for pod in found {
            // What the author asks for himself is his own.
            let ours = levels::only(&pod, |name| name.starts_with("warpdrive"));
            let restricted = levels::restricted(&ours);
            let baseline = levels::baseline(&ours);
            if mode == "sidecar" {
                let wanted = ["container warpdrive-mountd: privileged"];
                assert_eq!(baseline, wanted, "{name}");
            } else if !name.starts_with("host-network") {
                assert!(restricted.is_empty(), "{name} {mode}: {restricted:?}");
            } else {
                assert!(baseline.iter().all(|what| what.contains("host")), "{name}: {baseline:?}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 12, "{seen}");
}

/// The strictest pod there is stays admissible in a namespace that enforces *restricted*.
#[test]
fn a_restricted_pod_stays_restricted() {
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "main", "image": "i", "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        }}],
    }});
    assert!(levels::restricted(&pod).is_empty());
    for mode in ["csi", "s3"] {
        for cache in ["emptyDir", "memory", "ephemeral", "pvc:x"] {
            let mut defaults = defaults(mode);
            for set in [format!("cache={cache}"), "warm=all".into(), "token-audiences=a,b".into()] {
                defaults.set(&set).unwrap();
            }
            let request = Context { namespace: "n", uid: "u" };
            let Ok(Outcome::Injected { pod, .. }) = inject(&pod, &request, &defaults) else {
                panic!()
            };
            assert_eq!(levels::restricted(&pod), Vec::<String>::new(), "{mode} {cache}");
        }
    }
}

#[test]
fn the_helper_finds_what_the_levels_forbid() {
    let with = |spec: Value| json!({"spec": spec});
    let container =
        |context: Value| with(json!({"containers": [{"name": "c", "securityContext": context}]}));
    for (pod, word) in [
        (with(json!({"hostNetwork": true, "containers": []})), "hostNetwork"),
        (
            with(json!({"containers": [], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
            "hostPath",
        ),
        (
            with(
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 1}]}]}),
            ),
            "hostPort",
        ),
        (container(json!({"privileged": true})), "privileged"),
        (container(json!({"capabilities": {"add": ["SYS_ADMIN"]}})), "SYS_ADMIN"),
        (container(json!({"seccompProfile": {"type": "Unconfined"}})), "seccomp"),
        (container(json!({"procMount": "Unmasked"})), "procMount"),
    ] {
        assert!(levels::baseline(&pod).iter().any(|what| what.contains(word)), "{word}");
    }
    for word in ["allowPrivilegeEscalation", "runAsNonRoot", "seccomp", "capabilities"] {
        let what = levels::restricted(&container(json!({})));
        assert!(what.iter().any(|what| what.contains(word)), "{word}: {what:?}");
    }
    let nfs = with(json!({"containers": [], "volumes": [{"name": "v", "nfs": {}}]}));
    assert!(levels::restricted(&nfs).iter().any(|what| what.contains("nfs")));
    let root = container(json!({"runAsUser": 0}));
    assert!(levels::restricted(&root).iter().any(|what| what.contains("runAsUser")));
}

/// The one of a list of pods that is injected into, and what is said of the others.
#[test]
fn only_pods_that_do_not_run_are_injected() {
    let text = "
apiVersion: monitoring.coreos.com/v1
kind: Prometheus
metadata: {name: p}
spec: {containers: [{name: prometheus}], image: x}
---
apiVersion: v1
kind: Pod
metadata: {name: old}
spec: {containers: [{name: main}]}
status: {startTime: '2026-01-01T00:00:00Z'}
---
apiVersion: v1
kind: Pod
metadata: {name: new}
spec: {containers: [{name: main}]}
";
    let result = manifests(text, &[], &defaults("sidecar")).unwrap();
    assert_eq!(result.injected, ["Pod/new"]);
    assert_eq!(result.notes.len(), 2);
    assert!(result.notes[0].starts_with("Prometheus/p: "), "{:?}", result.notes);
    assert!(result.notes[1].starts_with("Pod/old: ") && result.notes[1].contains("runs already"));
    // The webhook knows that a pod is new: a status in it is a copy of another pod's.
    let pod = json!({"spec": {"containers": [{"name": "main"}]}, "status": {"startTime": "2026-01-01T00:00:00Z"}});
    let request = Context { namespace: "n", uid: "u" };
    let outcome = inject(&pod, &request, &defaults("sidecar")).unwrap();
    assert!(matches!(outcome, Outcome::Injected { .. }));
}

#[test]
fn pods_of_one_template_on_the_hosts_network_are_told_of_their_ports() {
    let text = "
kind: Deployment
metadata: {name: d}
spec: {template: {spec: {hostNetwork: true, containers: [{name: main}]}}}
";
    let notes = manifests(text, &[], &defaults("s3")).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("same ports")), "{notes:?}");
}

/// kubectl reads YAML 1.1, where these are no texts.
#[test]
fn texts_stay_texts_for_kubectl() {
    let text = r#"
kind: Pod
metadata: {name: p, annotations: {warpdrive.io/s3: "on", a: "1_000", b: "y"}}
spec: {containers: [{name: main, args: ["no", "1:30", "10"]}]}
"#;
    let printed = manifests(text, &[], &defaults("s3")).unwrap().text;
    for one in ["warpdrive.io/s3: 'on'", "a: '1_000'", "b: 'y'", "- 'no'", "- '1:30'", "- '10'"] {
        assert!(printed.contains(one), "{one}: {printed}");
    }
}

/// The table in docs/kubernetes.md is the table of the program.
#[test]
fn the_document_names_every_annotation() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes.md");
    let text = fs::read_to_string(file).unwrap();
    let table = text.split("## Annotations").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    let wanted: Vec<String> = cluster::settings::ANNOTATIONS
        .iter()
        .map(|one| {
            let default =
                if one.default.is_empty() { String::new() } else { format!("`{}`", one.default) };
            format!("| `{}` | {} | {default} | {} |", one.name, one.values, one.meaning)
        })
        .collect();
    assert_eq!(rows, wanted);
    let settings = table.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    Defaults::from_yaml(settings).expect("the example is a settings file");
}
