//! `warpdrive check`.

use crate::support::{Home, output};

#[test]
fn a_good_file_gets_a_table() {
    let home = Home::new();
    home.configure("fuse: {enabled: false}");
    let (code, stdout, stderr) = output(&mut home.command("check", &[]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let row = stdout.lines().find(|l| l.starts_with("data ")).unwrap();
    assert!(row.contains("local") && row.contains(" ok ") && row.contains(" ms"), "{stdout}");
    assert!(stdout.contains("data write: not asked for"), "{stdout}");
    assert!(!home.path("cache").exists(), "check made the cache directory");
}

#[test]
fn write_is_tried_where_asked_and_leaves_nothing() {
    let home = Home::new();
    home.configure("fuse: {enabled: false}");
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(home.path("origin"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n != ".warpdrive")
            .collect();
        names.sort();
        names
    };
    let before = names();
    let (code, stdout, _) = output(&mut home.command("check", &["--write", "--json"]));
    assert_eq!(code, 0, "{stdout}");
    let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(document["ok"], true);
    assert_eq!(document["backends"][0]["write"]["result"], "ok");
    assert_eq!(names(), before);
}

#[test]
fn what_fails_is_named_and_the_exit_code_says_so() {
    let home = Home::new();
    let dead = testkit::free_port();
    let backends = format!(
        "  - {{name: lost, type: s3, config: {{bucket: b, endpoint: \"http://127.0.0.1:{dead}\"}}, \
         retry: {{max: 0}}, timeouts: {{connect: 500ms, call: 2s}}}}"
    );
    home.configure_with("access: anonymous", &backends, "fuse: {enabled: false}");
    let (code, stdout, _) = output(&mut home.command("check", &[]));
    assert_eq!(code, 1, "{stdout}");
    let row = stdout.lines().find(|l| l.starts_with("lost ")).unwrap();
    assert!(row.contains("FAILED"), "{stdout}");
    assert!(stdout.lines().any(|l| l.starts_with("  lost reach: ")), "{stdout}");
    assert!(stdout.lines().any(|l| l.starts_with("data ") && !l.contains("FAILED")), "{stdout}");
}

#[test]
fn what_the_machine_lacks_is_named() {
    let home = Home::new();
    std::fs::remove_dir(home.path("mnt")).unwrap();
    let (code, stdout, _) = output(&mut home.command("check", &[]));
    assert_eq!(code, 1);
    assert!(stdout.contains("mkdir -p"), "{stdout}");
    home.configure("fuse: {enabled: false}\ntelemetry: {enabled: true}");
    let (code, stdout, _) = output(&mut home.command("check", &[]));
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("note: telemetry.enabled"), "{stdout}");
}
