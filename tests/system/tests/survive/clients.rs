//! S3 clients with their ordinary retries ride through restarts of the worker.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::load::HANG;
use system_tests::{DataSet, Home};
use testkit::{Process, Skipped};

use crate::setting::{KIB, MIB, Numbers, SUPERVISED, home_over, kill_worker, tail};

/// boto3 as everybody uses it: `download_fileobj` retries requests and bodies by itself, and nothing
/// here does. Prints a line of JSON: downloads, and how long the longest took.
const BOTO3: &str = r#"
import boto3, hashlib, io, json, os, sys, time
endpoint, expected, until = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3]
from botocore import UNSIGNED
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(signature_version=UNSIGNED))
done, longest = 0, 0.0
while not os.path.exists(until):
    for key, digest in expected.items():
        body, begun = io.BytesIO(), time.monotonic()
        s3.download_fileobj("origin", key, body)
        longest = max(longest, time.monotonic() - begun)
        assert hashlib.sha256(body.getvalue()).hexdigest() == digest, key
        done += 1
        if os.path.exists(until):
            break
print(json.dumps({"done": done, "longest": longest}))
"#;

/// The SHA-256 of every object, as JSON, made by a program that every system has.
fn digests(set: &DataSet, home: &Home) -> String {
    let folder = home.path().join("digests");
    set.write_into(&folder);
    let mut command = Command::new("sha256sum");
    command.args(set.objects.iter().map(|object| &object.key)).current_dir(&folder);
    let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let pairs = said.lines().filter_map(|line| line.split_once("  "));
    let map: serde_json::Map<_, _> =
        pairs.map(|(digest, key)| (key.to_owned(), Value::from(digest))).collect();
    assert_eq!(map.len(), set.objects.len());
    Value::from(map).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_rides_through_kills_with_its_ordinary_retries() {
    const KILLS: u32 = 8;
    let python = testkit::tools_folder().join("py-clients/bin/python");
    if !python.exists() {
        Skipped::new("boto3", "tests/install has not made py-clients").report();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let set = DataSet::new("set", 12, &[100 * KIB, 3 * MIB, 20 * MIB], 1);
    // S3 needs no mount, and so no holder.
    let home = home_over(&set, folder.path(), |config| config["fuse"]["enabled"] = false.into());
    let sidecar = home.start_with(SUPERVISED).await;
    let (expected, until) = (home.path().join("expected"), home.path().join("until"));
    std::fs::write(&expected, digests(&set, &home)).unwrap();
    let mut command = Command::new(python);
    command.args(["-c", BOTO3, sidecar.endpoint()]).arg(expected).arg(&until);
    command
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let output = home.path().join("boto3");
    let client = Process::spawn("boto3", command, &output).unwrap();
    let mut numbers = Numbers(9);
    // It imports for a second or two.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..KILLS {
        // Five attempts with pauses that begin below a second: a crash now and then, not a storm.
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(numbers.between(800, 1600))).await;
        kill_worker(&sidecar, &home);
        sidecar.ready().await;
        assert!(begun.elapsed() < HANG);
    }
    std::fs::write(&until, "").unwrap();
    let status = client.wait(HANG).unwrap_or_else(|| panic!("hangs\n{}", client.log_tail()));
    let said = std::fs::read_to_string(&output).unwrap();
    assert!(status.success(), "{said}\n{}", tail(&home));
    let account: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(account["done"].as_u64() > Some(5), "{said}");
    println!(
        "{KILLS} kills: {} downloads, longest {:.1} s",
        account["done"],
        account["longest"].as_f64().unwrap()
    );
    assert_eq!(sidecar.stop(), Some(0), "{}", tail(&home));
}
