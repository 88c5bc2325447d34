//! Annotations that are understood, and the sentence for each that is not.

use serde_json::json;

use super::{ANNOTATIONS, Cache, Defaults, Mode, Object, S3, Settings, Warm};

fn settings(annotations: &[(&str, &str)]) -> Result<Settings, String> {
    let mut all = serde_json::Map::new();
    for (name, value) in annotations {
        all.insert(format!("warpdrive.io/{name}"), json!(value));
    }
    all.insert("other.io/mode".to_owned(), json!("not ours"));
    let metadata = json!({"annotations": all});
    Settings::of(&metadata, &Defaults::default()).map_err(|denial| denial.to_string())
}

fn refused(annotations: &[(&str, &str)]) -> String {
    settings(annotations).expect_err(&format!("{annotations:?}"))
}

#[test]
fn a_pod_that_says_nothing_gets_the_table() {
    let settings = settings(&[]).unwrap();
    assert_eq!(settings.mode, Mode::Sidecar);
    assert_eq!(settings.config, Object::ConfigMap("warpdrive".to_owned()));
    assert_eq!(settings.config_key, "warpdrive.yaml");
    assert_eq!(settings.mounts, ["/data"]);
    assert_eq!((settings.cache, settings.cache_bytes), (Cache::EmptyDir, 10 << 30));
    assert_eq!(settings.memory_bytes, 256 << 20);
    assert_eq!((settings.s3, settings.flush_seconds, settings.cpu_milli), (S3::On, 20, 250));
    assert!(settings.read_only && settings.containers.is_none() && settings.warm.is_none());
}

#[test]
fn every_annotation_is_read() {
    for one in ANNOTATIONS {
        // A value that nothing allows shows that somebody looked.
        let said = refused(&[(one.name, "\u{1} \u{2}:/..")]);
        assert!(said.contains(&format!("warpdrive.io/{}", one.name)), "{said}");
    }
}

#[test]
fn forms_are_read() {
    let one = |name, value| settings(&[(name, value)]).unwrap();
    assert_eq!(one("config", "secret:a.b/c_d").config, Object::Secret("a.b".to_owned()));
    assert_eq!(one("config", "configMap:a/x.yaml").config_key, "x.yaml");
    assert_eq!(
        one("env-from", "a, configmap:b").env_from,
        [Object::Secret("a".to_owned()), Object::ConfigMap("b".to_owned())]
    );
    assert_eq!(one("mounts", "/a/, /b/c").mounts, ["/a", "/b/c"]);
    assert_eq!(one("cache", "ephemeral").cache, Cache::Ephemeral(None));
    assert_eq!(one("cache", "ephemeral:fast").cache, Cache::Ephemeral(Some("fast".to_owned())));
    assert_eq!(one("cache", "hostPath:/nvme/x").cache, Cache::HostPath("/nvme/x".to_owned()));
    assert_eq!(one("warm", "all").warm, Some(Warm::All));
    let these = vec![("a".to_owned(), String::new()), ("b".to_owned(), "c/d".to_owned())];
    assert_eq!(one("warm", "a,b/c/d").warm, Some(Warm::These(these)));
    let tokens = one("token-audiences", "sts.amazonaws.com, api://X//y").tokens;
    assert_eq!(tokens[0].1, "sts.amazonaws.com");
    assert_eq!(tokens[1].1, "api-X-y");
    assert_eq!(one("token-audiences", "../..").tokens[0].1, "token..-..");
    assert_eq!(
        one("log-level", "info,backends=debug").log_level.as_deref(),
        Some("info,backends=debug")
    );
}

#[test]
fn bad_values_are_refused_with_one_sentence() {
    for (name, value, words) in [
        ("mode", "fuse", &["sidecar, csi or s3"][..]),
        ("config", "Bad_Name", &["secret:NAME"]),
        ("config", "vault:x", &["secret:NAME"]),
        ("config", "a/b/c", &["NAME/KEY"]),
        ("config", "a/..", &["NAME/KEY"]),
        ("env-from", "file:x", &["secret:NAME or configmap:NAME"]),
        ("mounts", "data", &["absolute"]),
        ("mounts", "/a/../b", &["absolute"]),
        ("mounts", "/a:ro", &["absolute"]),
        ("mounts", "/", &["system"]),
        ("mounts", "/dev/shm", &["system"]),
        ("mounts", "/a,/a/b", &["overlap"]),
        ("mounts", "/a,,/b", &["empty item"]),
        ("mounts", "", &["empty"]),
        ("containers", "A", &["name"]),
        ("read-only", "yes", &["true or false"]),
        ("cache", "nvme", &["emptyDir", "hostPath:/PATH"]),
        ("cache", "pvc:", &["pvc:NAME"]),
        ("cache", "hostPath:/", &["hostPath:/PATH"]),
        ("cache-size", "ten", &["50Gi or 200GB"]),
        ("cache-size", "1Mi", &["at least 64Mi"]),
        ("memory", "100m", &["50Gi or 200GB"]),
        ("warm", "all,x", &["all, or BUCKET"]),
        ("warm", "--rate", &["BUCKET/PREFIX"]),
        ("warm", "a,a", &["twice"]),
        ("s3", "yes", &["on, off or anonymous"]),
        ("s3-port", "80", &["1024 to 65535"]),
        ("admin-port", "9000", &["S3 endpoint's port"]),
        ("s3-port", "9090", &["metrics"]),
        ("metrics", "true", &["on or off"]),
        ("flush-seconds", "1m", &["0 to 86400"]),
        ("flush-seconds", "86401", &["0 to 86400"]),
        ("token-audiences", "a b", &["without spaces"]),
        ("token-audiences", "a/b,a//b", &["both be the file `a-b`"]),
        ("cpu", "0", &["500m or 2"]),
        ("log-level", "loud", &["error, warn"]),
        ("cache_size", "1Gi", &["did you mean warpdrive.io/cache-size"]),
        ("colour", "red", &["is not known", "flush-seconds"]),
        ("inject", "true", &["label"]),
    ] {
        let said = refused(&[(name, value)]);
        assert!(said.contains(&format!("annotation warpdrive.io/{name}")), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{name}={value}: {said}");
        assert!(!said.contains('\n') && !said.ends_with('.'), "{said}");
    }
    let long = "x".repeat(100_000);
    assert!(refused(&[("mode", &long)]).len() < 300);
    assert!(refused(&[(&long, "x")]).len() < 600);
}

#[test]
fn what_contradicts_itself_is_refused() {
    for (pod, words) in [
        (&[("mode", "s3"), ("mounts", "/x")][..], "mounts nothing"),
        (&[("mode", "s3"), ("read-only", "true")], "mounts nothing"),
        (&[("mode", "s3"), ("s3", "off")], "leaves nothing"),
        (&[("s3", "off"), ("s3-port", "1234")], "s3 off"),
        (&[("cache", "memory"), ("cache-size", "1Gi")], "warpdrive.io/memory"),
        (&[("s3-port", "5000"), ("admin-port", "5000")], "differ"),
    ] {
        let said = refused(pod);
        assert!(said.contains(words), "{said}");
    }
    assert!(settings(&[("s3-port", "9090"), ("metrics", "off")]).is_ok());
}

#[test]
fn a_default_does_not_contradict_a_pod() {
    let mut defaults = Defaults::default();
    defaults.set("mounts=/shared").unwrap();
    defaults.set("warpdrive.io/cache-size=20Gi").unwrap();
    let pod = json!({"annotations": {"warpdrive.io/mode": "s3", "warpdrive.io/cache": "memory"}});
    assert_eq!(Settings::of(&pod, &defaults).unwrap().mode, Mode::S3);
}

#[test]
fn a_settings_file_is_checked_as_pods_are() {
    assert_eq!(Defaults::from_yaml("").unwrap(), Defaults::default());
    let good = "image: r/w:1\nimage_pull_secrets: [a]\nannotations: {mode: csi, warpdrive.io/memory: 1Gi}\n\
                mesh_containers: [envoy]\nresources: {mountd: {limits: {memory: 32Mi}}}\n";
    let read = Defaults::from_yaml(good).unwrap();
    assert_eq!(read.mesh_containers, ["envoy"]);
    assert_eq!(Settings::of(&json!(null), &read).unwrap().memory_bytes, 1 << 30);
    for (bad, word) in [
        ("img: x", "img"),
        ("image: ''", "REGISTRY/NAME:TAG"),
        ("image_pull_policy: Sometimes", "IfNotPresent"),
        ("annotations: {mode: fuse}", "warpdrive.io/mode"),
        ("annotations: {colour: red}", "not known"),
        ("resources: {worker: {request: {}}}", "request"),
        ("- 1", "sequence"),
        ("image: [", "YAML"),
    ] {
        let said = Defaults::from_yaml(bad).unwrap_err();
        assert!(said.contains(word), "{bad}: {said}");
    }
    assert!(Defaults::default().set("mode").is_err());
}
