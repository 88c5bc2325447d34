//! The configuration as a whole: files that must be taken as they are, and files that must not.

use std::time::Duration;

use ::cache::{FilesConfig, Retention};
use backends::{AzureCredential, GcsCredential, OriginKind, S3Credential};
use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::*;

fn environment() -> Environment {
    Environment::from([
        ("AWS_SECRET", "from-variable"),
        ("AWS_ACCESS_KEY_ID", "AKIAENV"),
        ("AWS_SECRET_ACCESS_KEY", "env-secret"),
        ("AZURE_KEY", "YXp1cmU="),
    ])
}

fn parsed(text: &str) -> Result<Settings, Invalid> {
    parse(text, &environment())
}

/// A minimal file with something added.
fn with(more: &str) -> Result<Settings, Invalid> {
    parsed(&format!("backends: [{{name: a, type: local, config: {{path: /a}}}}]\n{more}"))
}

fn places(refused: Result<Settings, Invalid>) -> Vec<String> {
    refused.unwrap_err().problems().iter().map(|p| p.path.clone()).collect()
}

#[test]
fn a_file_of_the_go_project_is_taken_as_it_is() {
    let settings = parsed(include_str!("tests/go_project.yaml")).unwrap_or_else(|e| panic!("{e}"));
    let mount = settings.mount.unwrap();
    assert_eq!(mount.point, Path::new("/mnt/warpdrive"));
    assert!(mount.allow_other && !mount.debug);
    let cache = &settings.cache;
    assert_eq!(cache.disk, Some(("/var/cache/warpdrive".into(), 50_000_000_000)));
    assert_eq!((cache.block_bytes, cache.readahead_blocks), (4 << 20, 8));
    assert_eq!((cache.max_parallel_fetch, cache.stale_ttl), (32, Duration::from_mins(5)));
    assert!((cache.evict_high_water - 0.95).abs() < 1e-9);
    let paths: Vec<_> = settings.backends.iter().map(|b| (b.kind, &*b.mount_path)).collect();
    assert_eq!(
        paths,
        [
            ("s3", "/datasets/training"),
            ("s3", "/vast"),
            ("azureblob", "/archive"),
            ("gcs", "/public"),
            ("nfs", "/home"),
            ("local", "/scratch"),
        ]
    );
    let OriginKind::S3(training) = &settings.backends[0].origin.kind else { panic!("not S3") };
    assert_eq!((&*training.bucket, &*training.prefix), ("acme-training", "imagenet/"));
    assert_eq!((&*training.region, training.path_style), ("eu-central-1", None));
    let S3Credential::Static { access_key_id, secret_access_key, session_token } =
        &training.credential
    else {
        panic!("not static")
    };
    assert_eq!(access_key_id, "AKIAEXAMPLE");
    assert_eq!(secret_access_key.expose_secret(), "from-variable");
    assert!(session_token.is_none());
    let OriginKind::S3(vast) = &settings.backends[1].origin.kind else { panic!("not S3") };
    assert_eq!(vast.endpoint.as_deref(), Some("https://vast.example:443"));
    assert_eq!(vast.path_style, Some(true));
    assert_eq!(settings.backends[1].credential, "env AKIA\u{2026}");
    let OriginKind::Azure(archive) = &settings.backends[2].origin.kind else { panic!("not Azure") };
    assert!(
        matches!(&archive.credential, AzureCredential::Key(k) if k.expose_secret() == "YXp1cmU=")
    );
    let OriginKind::Gcs(public) = &settings.backends[3].origin.kind else { panic!("not GCS") };
    assert!(matches!(public.credential, GcsCredential::Anonymous));
    let OriginKind::Local(home) = &settings.backends[4].origin.kind else { panic!("not local") };
    assert!(home.nfs);
    assert_eq!(settings.metrics, Some("0.0.0.0:9090".parse().unwrap()));
    assert_eq!(settings.notes.len(), 2, "{:?}", settings.notes);
    assert!(settings.notes[0].contains("telemetry") && settings.notes[1].contains("control plane"));
}

#[test]
fn everything_that_is_wrong_is_said_in_one_go() {
    let invalid = parsed(include_str!("tests/bad.yaml")).unwrap_err();
    let expected = include_str!("tests/bad.expected");
    if std::env::var_os("WARPDRIVE_BLESS").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/tests/bad.expected");
        std::fs::write(file, format!("{invalid}\n")).unwrap();
    }
    assert_eq!(format!("{invalid}\n"), expected);
    assert!(!invalid.to_string().contains("plain-text-secret"));
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let settings = with("").unwrap();
    let mount = settings.mount.unwrap();
    assert_eq!(mount.point, Path::new("/data"));
    assert_eq!((mount.file_mode, mount.dir_mode), (0o444, 0o555));
    let cache = settings.cache;
    assert_eq!((cache.readahead_blocks, cache.max_parallel_fetch), (4, 16));
    assert_eq!(cache.stale_ttl, Duration::from_mins(1));
    assert_eq!(cache.stale_if_error, Duration::from_hours(1));
    assert!(cache.disk.is_none());
    let s3 = settings.s3.unwrap();
    assert_eq!(s3.listen, "127.0.0.1:9000".parse().unwrap());
    assert!(matches!(s3.access, AccessSettings::Generated));
    assert_eq!(settings.admin, Some(AdminAddress::Tcp("127.0.0.1:9091".parse().unwrap())));
    assert_eq!(settings.metrics, None);
    assert_eq!(settings.backends[0].mount_path, "/a");
}

#[test]
fn an_alias_takes_the_place_of_the_name() {
    let two = "backends: [{name: a, type: local, config: {path: /a}}, \
               {name: b, type: local, config: {path: /b}}]\n";
    let s3 = parsed(&format!("{two}s3: {{buckets: {{train: a, eval: a}}}}")).unwrap().s3.unwrap();
    let shown: Vec<_> =
        s3.buckets.iter().map(|(a, b)| (a.as_str().to_owned(), b.as_str().to_owned())).collect();
    let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(shown, [own("b", "b"), own("eval", "a"), own("train", "a")]);
    assert_eq!(places(parsed(&format!("{two}s3: {{buckets: {{b: a}}}}"))), ["s3.buckets.b"]);
}

#[test]
fn secrets_in_the_file_need_an_opt_in() {
    let file = |flag: &str| {
        parsed(&format!(
            "{flag}\nbackends: [{{name: a, type: s3, config: {{bucket: b, access_key_id: AKIA, \
             secret_access_key: inline}}}}]"
        ))
    };
    assert_eq!(places(file("")), ["backends[0].config.secret_access_key"]);
    let settings = file("allow_inline_secrets: true").unwrap();
    assert!(!format!("{settings:?}").contains("inline\""), "{settings:?}");
}

#[test]
fn a_default_or_a_fragment_is_a_secret_in_the_file() {
    let file = |secret: &str| {
        parsed(&format!(
            "backends: [{{name: a, type: s3, config: {{bucket: b, access_key_id: AKIA, \
             secret_access_key: \"{secret}\"}}}}]"
        ))
    };
    assert!(file("${AWS_SECRET}").is_ok());
    assert!(file("${AWS_SECRET:-unused}").is_ok());
    for inline in ["${NO_SUCH:-hunter2}", "hunter2${AWS_SECRET}", "${AWS_SECRET}hunter2"] {
        let refused = file(inline).unwrap_err();
        assert_eq!(refused.problems()[0].path, "backends[0].config.secret_access_key");
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }
}

#[test]
fn a_password_in_an_endpoint_is_refused_and_not_printed() {
    let file = |endpoint: &str| {
        parsed(&format!(
            "backends: [{{name: a, type: s3, config: {{bucket: b, endpoint: \"{endpoint}\"}}}}]"
        ))
    };
    assert!(file("http://127.0.0.1:10000/account/").is_ok());
    for bad in [
        "https://me:hunter2@minio.example",
        "https://hunter2@minio.example",
        "https://minio.example/?token=hunter2",
        "https://minio.example/#hunter2",
        "me:hunter2@minio.example:9000",
        "s3://me:hunter2@minio.example",
        "https://me:hunter2@:99999",
    ] {
        let refused = file(bad).unwrap_err();
        assert_eq!(refused.problems()[0].path, "backends[0].config.endpoint", "{bad}");
        assert_eq!(refused.problems().len(), 1, "{refused}");
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }
    assert!(file("minio:9000").unwrap_err().to_string().contains("`minio:9000`"));
}

#[test]
fn a_block_size_beyond_all_bounds_is_a_problem() {
    let refused = places(with("cache: {block_size: 18446744073709551615}"));
    assert!(refused.contains(&"cache.block_size".to_owned()), "{refused:?}");
}

#[test]
fn rclone_names_of_a_secret_may_come_from_a_variable() {
    let file = "backends: [{name: a, type: azureblob, config: {account: x, container: c, \
                key: \"${AZURE_KEY}\"}}]";
    assert_eq!(parsed(file).unwrap().backends[0].credential, "static key");
}

#[test]
fn secrets_are_read_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, "[other]\naws_access_key_id=no\n[train]\naws_access_key_id = AKIAF\naws_secret_access_key = s3cr3t\n").unwrap();
    let path = path.display();
    let settings = parsed(&format!(
        "backends: [{{name: a, type: s3, config: {{bucket: b}}, auth: {{method: file, file: {path}, profile: train}}}}]"
    ))
    .unwrap();
    assert_eq!(settings.backends[0].credential, "file AKIA\u{2026}");
    let missing = "backends: [{name: a, type: s3, config: {bucket: b, access_key_id: i, \
                   secret_access_key: \"file:/nowhere/at/all\"}}]";
    assert_eq!(places(parsed(missing)), ["backends[0].config.secret_access_key"]);
}

#[test]
fn a_machine_identity_is_never_used_in_silence() {
    for method in
        ["managed_identity", "service_principal", "oidc_federation", "gcp_wif", "static_keyvault"]
    {
        let refused = parsed(&format!(
            "backends: [{{name: a, type: s3, config: {{bucket: b}}, auth: {{method: {method}, vault_url: x}}}}]"
        ))
        .unwrap_err();
        assert_eq!(refused.problems().len(), 1, "{refused}");
        assert!(refused.to_string().contains("not built yet"), "{refused}");
    }
}

#[test]
fn an_unknown_type_lists_the_known_ones() {
    let refused = parsed("backends: [{name: a, type: webdav}]").unwrap_err();
    assert!(refused.problems()[0].fix.contains("local, nfs, s3, azureblob, gcs"), "{refused}");
}

#[test]
fn service_accounts_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key.json");
    let file = |text: &str| {
        std::fs::write(&path, text).unwrap();
        parsed(&format!(
            "backends: [{{name: g, type: gcs, config: {{bucket: b, service_account_file: {}}}}}]",
            path.display()
        ))
    };
    let good = r#"{"type": "service_account", "client_email": "me@p.iam", "private_key": "k"}"#;
    assert_eq!(file(good).unwrap().backends[0].credential, "me@p.iam");
    let user = r#"{"type": "authorized_user", "client_id": "x"}"#;
    assert!(file(user).unwrap_err().to_string().contains("authorized_user"));
    assert!(file("{}").is_err());
}

#[test]
fn an_sas_url_names_account_and_container() {
    let settings = parsed(
        "allow_inline_secrets: true\nbackends: [{name: a, type: azureblob, config: {sas_url: \
         \"https://acc.blob.core.windows.net/cont?sv=1&sig=abc\"}}]",
    )
    .unwrap();
    let OriginKind::Azure(azure) = &settings.backends[0].origin.kind else { panic!("not Azure") };
    assert_eq!((&*azure.account, &*azure.container), ("acc", "cont"));
    assert!(
        matches!(&azure.credential, AzureCredential::Sas(s) if s.expose_secret() == "sv=1&sig=abc")
    );
}

#[test]
fn anonymous_access_stays_on_loopback() {
    assert_eq!(places(with("s3: {listen: ':9000', access: anonymous}")), ["s3.access"]);
    let open = "s3: {listen: ':9000', access: anonymous, allow_anonymous_on_non_loopback: true}";
    assert!(with(open).is_ok());
    assert_eq!(places(with("admin: {listen: '10.0.0.1:1'}")), ["admin.listen"]);
    assert!(with("admin: {listen: 'unix:/run/w.sock'}").is_ok());
}

#[test]
fn keys_given_twice_or_nowhere_are_problems() {
    assert!(with("log: {level: info}\nlog: {level: debug}").is_err());
    assert_eq!(places(with("s3: {access: static}")), ["s3.keys"]);
    let rclone = "backends: [{name: a, type: s3, config: {bucket: b, path_style: true, force_path_style: true}}]";
    assert_eq!(places(parsed(rclone)), ["backends[0].config.force_path_style"]);
    assert_eq!(places(parsed("")), ["backends"]);
}

#[test]
fn rclone_settings_without_effect_are_said() {
    let notes =
        parsed("backends: [{name: a, type: s3, config: {bucket: b, acl: private}}]").unwrap().notes;
    assert_eq!(notes, ["backends[0].config.acl: has no effect here"]);
}

#[test]
fn tiers_and_retention_are_read() {
    let settings = with(
        "cache: {path: /c, max_size: 10GiB, min_free: 3GiB, block_share: 0.5, retention: keep, \
         files: {enabled: false, min_size: 1MiB, sequential_after: 0, direct_writes: true, \
         scrub_rate: 0}}",
    )
    .unwrap();
    let cache = settings.cache;
    assert_eq!((cache.min_free_bytes, cache.retention), (3 << 30, Retention::Keep));
    assert!((cache.block_share - 0.5).abs() < 1e-9);
    let files = FilesConfig {
        enabled: false,
        min_object_bytes: 1 << 20,
        sequential_bytes: 0,
        direct_writes: true,
        scrub_bytes_per_second: 0,
    };
    assert_eq!(cache.files, files);
    // A backend keeps what the cache says, or its own word.
    assert_eq!(settings.backends[0].retention, Retention::Keep);
    let own = parsed(
        "cache: {retention: keep}\nbackends: [{name: a, type: local, retention: evict, config: \
         {path: /a}}]",
    );
    assert_eq!(own.unwrap().backends[0].retention, Retention::Evict);
    let default = with("").unwrap();
    assert_eq!(default.backends[0].retention, Retention::Auto);
    assert_eq!(default.cache.files, FilesConfig::default());
    let refused = "cache: {retention: lru, block_share: 0, memory: 1GiB, memory_limit: 1GiB, \
                   trace: t}";
    let mut found = places(with(refused));
    found.sort();
    let wanted = ["cache.block_share", "cache.memory_limit", "cache.retention", "cache.trace"];
    assert_eq!(found, wanted);
}

#[test]
fn holders_are_found_made_or_done_without() {
    let mount = |text: &str| with(text).unwrap().mount.unwrap();
    let default = mount("");
    assert_eq!((default.holder, default.passthrough), (HolderSettings::Auto, true));
    assert_eq!(default.holder_patience, Duration::from_mins(1));
    let given = mount("fuse: {holder: /run/m.sock, passthrough: off, holder_patience: 5s}");
    assert_eq!(given.holder, HolderSettings::Socket("/run/m.sock".into()));
    assert_eq!((given.holder_patience, given.passthrough), (Duration::from_secs(5), false));
    assert_eq!(mount("fuse: {holder: none}").holder, HolderSettings::None);
    let wrong = "fuse: {holder: m.sock, passthrough: on, holder_patience: 0}\nstate_dir: x";
    let mut found = places(with(wrong));
    found.sort();
    assert_eq!(found, ["fuse.holder", "fuse.holder_patience", "fuse.passthrough", "state_dir"]);
}

/// Each key the parser knows stands in the documentation, in backquotes, below its section's title.
#[test]
fn the_documentation_has_every_key() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let text = std::fs::read_to_string(file).unwrap();
    let mut missing = Vec::new();
    for (section, keys) in known_keys() {
        let title =
            if section.is_empty() { "## Top level".to_owned() } else { format!("## `{section}`") };
        let Some(at) = text.find(&format!("{title}\n")) else {
            missing.push(title);
            continue;
        };
        let body = &text[at + title.len()..];
        let body = &body[..body.find("\n## ").unwrap_or(body.len())];
        for key in keys {
            let key = yaml::bare(key);
            if !body.contains(&format!("| `{key}` |")) {
                missing.push(format!("{section}: {key}"));
            }
        }
    }
    assert!(missing.is_empty(), "docs/configuration.md lacks {missing:#?}");
}

/// Each YAML example of the documentation is a file that the parser takes.
#[test]
fn the_examples_of_the_documentation_are_taken() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let text = std::fs::read_to_string(file).unwrap();
    let environment = Environment::from([
        ("AZURE_KEY", "YXp1cmU="),
        ("TRAINER_SECRET", "at-least-eight"),
        ("AWS_ACCESS_KEY_ID", "AKIAENV"),
        ("AWS_SECRET_ACCESS_KEY", "env-secret"),
        ("DATASET", "imagenet"),
    ]);
    let mut examples = 0;
    for block in text.split("```yaml\n").skip(1) {
        let block = block.split("```").next().unwrap();
        if !block.contains("backends:") {
            continue;
        }
        examples += 1;
        parse(block, &environment).unwrap_or_else(|e| panic!("{e}\n{block}"));
    }
    assert!(examples >= 3, "{examples} examples");
}

fn yaml_like() -> impl Strategy<Value = String> {
    let keys = known_keys().into_iter().flat_map(|(_, keys)| keys.iter().map(|k| yaml::bare(k)));
    let keys: Vec<&'static str> = keys.collect();
    let leaf = prop_oneof![
        "[a-z0-9:/.${}?-]{0,12}",
        Just("s3".to_owned()),
        Just("azureblob".to_owned()),
        Just("gcs".to_owned()),
        Just("local".to_owned()),
        Just("static".to_owned()),
        Just("true".to_owned()),
        Just("-1".to_owned()),
        Just("18446744073709551615".to_owned()),
        Just(".nan".to_owned()),
        Just("1e400".to_owned()),
        Just("!tag x".to_owned()),
        Just("99999999999GB".to_owned()),
        Just("https://a.b/c?sig=x".to_owned()),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        let key = prop::sample::select(keys.clone());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(", "))),
            prop::collection::btree_map(key, inner, 0..8).prop_map(|m| {
                let pairs: Vec<_> = m.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                format!("{{{}}}", pairs.join(", "))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parsed(&text);
    }

    #[test]
    fn no_yaml_panics(text in yaml_like()) {
        let _ = parsed(&text);
        let _ = parsed(&format!("backends: [{text}]"));
        let _ = parsed(&format!("backends: [{{name: a, type: s3, config: {text}, auth: {text}}}]"));
        let _ = with(&format!("cache: {text}\ns3: {text}\nfuse: {text}"));
    }
}

fn set(overrides: &[&str]) -> Result<Settings, Invalid> {
    let overrides: Vec<Override> = overrides.iter().map(|one| one.parse().unwrap()).collect();
    let file = "backends: [{name: a, type: s3, config: {bucket: b}}]\ncache: {dir: /file}";
    parse_with(file, &overrides, &environment())
}

#[test]
fn the_command_line_goes_before_the_file() {
    let settings = set(&[
        "cache.path=/var/cache/x",
        "cache.max_size=20GiB",
        "metrics.enabled=true",
        "metrics.addr=:9090",
        "drain_timeout=7s",
        "backends[0].config.bucket=other",
        "backends[1].name=c",
        "backends[1].type=local",
        "backends[1].config.path=/c",
    ]);
    let settings = settings.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(settings.cache.disk, Some(("/var/cache/x".into(), 20 << 30)));
    assert_eq!(settings.drain_timeout, Duration::from_secs(7));
    assert_eq!(settings.metrics.unwrap().port(), 9090);
    let OriginKind::S3(origin) = &settings.backends[0].origin.kind else { panic!("not S3") };
    assert_eq!(origin.bucket, "other");
    assert_eq!(settings.backends[1].name.as_str(), "c");
}

#[test]
fn mistakes_of_the_command_line_are_named_as_such() {
    let refused = set(&["cache.max_sise=1GB"]).unwrap_err().to_string();
    assert!(refused.contains("--set cache.max_sise: is not a known key"), "{refused}");
    assert!(refused.contains("fix: write `max_size`"), "{refused}");
    // Of the file, and of the command line.
    let all = places(set(&["cache.max_size=lots", "backends[0].type=s4", "log=5"]));
    assert_eq!(all, ["--set cache.max_size", "--set log", "--set backends[0].type"]);
    assert_eq!(places(parse_with("cash: 1", &[], &environment())), ["cash", "backends"]);
}

#[test]
fn variables_and_secrets_of_the_command_line_keep_the_rules() {
    let auth = ["backends[0].auth.method=static", "backends[0].auth.access_key_id=AK"];
    let with_secret = |secret: &str| {
        let secret = format!("backends[0].auth.secret_access_key={secret}");
        set(&[auth[0], auth[1], &secret])
    };
    let refused = with_secret("hunter2").unwrap_err().to_string();
    assert!(refused.contains("allow_inline_secrets") && !refused.contains("hunter2"), "{refused}");
    assert!(with_secret("${AWS_SECRET}").is_ok());
    assert!(with_secret("env:AWS_SECRET").is_ok());
    // What a variable holds is not looked through for variables.
    let twice = Environment::from([("A", "/x/${B}"), ("B", "no")]);
    let overrides = ["cache.path=${A}".parse().unwrap()];
    let file = "backends: [{name: a, type: local, config: {path: /a}}]";
    let settings = parse_with(file, &overrides, &twice).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(settings.cache.disk.unwrap().0, Path::new("/x/${B}"));
    let unset = set(&["cache.path=${NO_SUCH}"]).unwrap_err().to_string();
    assert!(unset.contains("--set cache.path"), "{unset}");
}
