//! Listings: order, pages, delimiters, encoding; and the operations on buckets.

use crate::client::{Endpoint, anonymous, config, start};

const KEYS: [&str; 10] =
    ["a", "a/", "a/1", "a/b/2", "a/b/3", "b c", "d/4", "d+e", "\u{e9}", "\u{1f600}/x"];

async fn filled() -> Endpoint {
    let endpoint = anonymous().await;
    for key in KEYS {
        endpoint.memory.insert(key, "x");
    }
    endpoint
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

/// All names of a listing, page by page, keys and prefixes as they come.
async fn walk(endpoint: &Endpoint, version: u8, query: &str, page_size: usize) -> Vec<String> {
    let (mut names, mut position) = (Vec::new(), String::new());
    for _ in 0..50 {
        let kind = if version == 2 { "list-type=2&" } else { "" };
        let page = endpoint
            .get(&format!("/b?{kind}encoding-type=url&max-keys={page_size}&{query}{position}"))
            .await;
        assert_eq!(page.status, 200, "{}", page.text());
        assert_eq!(page.element("EncodingType"), "url");
        let mut found: Vec<String> = page.elements("Key").into_iter().map(decoded).collect();
        for prefix in page.elements("CommonPrefixes") {
            let prefix = prefix.trim_start_matches("<Prefix>").trim_end_matches("</Prefix>");
            found.push(decoded(prefix));
        }
        assert!(found.len() <= page_size);
        if version == 2 {
            assert_eq!(page.element("KeyCount"), found.len().to_string());
        }
        names.extend(found);
        if page.element("IsTruncated") == "false" {
            names.sort();
            return names;
        }
        position = if version == 2 {
            format!("&continuation-token={}", page.element("NextContinuationToken"))
        } else {
            format!("&marker={}", page.element("NextMarker"))
        };
    }
    panic!("the listing does not end");
}

#[tokio::test]
async fn pages_of_every_size_and_both_versions_agree() {
    let endpoint = filled().await;
    let mut all = KEYS.map(str::to_owned).to_vec();
    all.sort();
    let rolled = ["a", "a/", "b c", "d+e", "d/", "\u{e9}", "\u{1f600}/"];
    for version in [1, 2] {
        for size in [1, 2, 3, 1000] {
            assert_eq!(walk(&endpoint, version, "", size).await, all, "v{version} {size}");
            assert_eq!(walk(&endpoint, version, "delimiter=", size).await, all);
            let top = walk(&endpoint, version, "delimiter=/", size).await;
            assert_eq!(top, rolled, "v{version} {size}");
            let below = walk(&endpoint, version, "delimiter=/&prefix=a/", size).await;
            assert_eq!(below, ["a/", "a/1", "a/b/"], "v{version} {size}");
            let other = walk(&endpoint, version, "delimiter=b/&prefix=a", size).await;
            assert_eq!(other, ["a", "a/", "a/1", "a/b/"]);
        }
    }
}

#[tokio::test]
async fn markers_and_starts() {
    let endpoint = filled().await;
    // A marker that is a common prefix stands for everything below it.
    let page = endpoint.get("/b?delimiter=/&marker=a/").await;
    assert_eq!(page.elements("Prefix")[1..], ["d/", "\u{1f600}/"]);
    let after = endpoint.get("/b?list-type=2&start-after=d").await;
    assert_eq!(after.elements("Key"), ["d+e", "d/4", "\u{e9}", "\u{1f600}/x"]);
    assert_eq!(after.element("StartAfter"), "d");
    for bad in ["continuation-token=!", "continuation-token=", "max-keys=x", "encoding-type=x"] {
        let answer = endpoint.get(&format!("/b?list-type=2&{bad}")).await;
        assert_eq!(answer.code(), "InvalidArgument", "{bad}");
    }
}

#[tokio::test]
async fn limits_owners_and_tags() {
    let endpoint = filled().await;
    let none = endpoint.get("/b?list-type=2&max-keys=0").await;
    assert_eq!((none.element("KeyCount"), none.element("IsTruncated")), ("0", "false"));
    let clamped = endpoint.get("/b?list-type=2&max-keys=5000").await;
    assert_eq!(clamped.element("MaxKeys"), "1000");
    assert!(clamped.elements("Owner").is_empty());
    let owned = endpoint.get("/b?list-type=2&fetch-owner=true").await;
    assert_eq!(owned.elements("Owner").len(), KEYS.len());
    assert_eq!(endpoint.get("/b").await.elements("Owner").len(), KEYS.len());
    let tag = endpoint.get("/b/a").await.header("etag").unwrap().to_owned();
    assert_eq!(clamped.element("ETag").replace("&quot;", "\""), tag);
    let time = clamped.element("LastModified");
    assert!(time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000Z".len(), "{time}");
    let versions = endpoint.get("/b?versions&max-keys=2").await;
    assert_eq!(versions.elements("VersionId"), ["null", "null"]);
    assert_eq!(versions.element("NextKeyMarker"), "a/");
}

#[tokio::test]
async fn control_characters_in_names() {
    let endpoint = anonymous().await;
    endpoint.memory.insert("a\u{1}\r\nb", "x");
    let plain = endpoint.get("/b?list-type=2").await;
    assert_eq!(plain.element("Key"), "a&#1;&#13;&#10;b");
    let encoded = endpoint.get("/b?list-type=2&encoding-type=url").await;
    assert_eq!(encoded.element("Key"), "a%01%0D%0Ab");
}

#[tokio::test]
async fn buckets() {
    let mut config = config(s3gw::Access::Anonymous);
    config.region = "eu-north-1".into();
    let endpoint = start(config).await;
    let list = endpoint.get("/").await;
    assert_eq!(list.elements("Name"), ["b", "frozen", "other"]);
    let page = endpoint.get("/?max-buckets=1&prefix=").await;
    assert_eq!((page.elements("Name"), page.element("ContinuationToken")), (vec!["b"], "b"));
    for target in ["/b", "/b/"] {
        let head = endpoint.ask("HEAD", target, &[]).await;
        assert_eq!((head.status, head.header("x-amz-bucket-region")), (200, Some("eu-north-1")));
        assert_eq!(endpoint.ask("PUT", target, &[]).await.status, 200);
    }
    assert!(endpoint.get("/b?location").await.text().contains("eu-north-1"));
    assert_eq!(endpoint.get("/b?versioning").await.elements("Status").len(), 0);
    assert_eq!(endpoint.get("/b?acl").await.element("Permission"), "FULL_CONTROL");
    assert_eq!(endpoint.get("/b?policyStatus").await.element("IsPublic"), "false");
    assert_eq!(endpoint.get("/b?tagging").await.code(), "NoSuchTagSet");
    let create = endpoint.ask("PUT", "/new", &[]).await;
    assert_eq!((create.status, create.code()), (403, "AccessDenied"));
    assert!(create.element("Message").contains("configur"));
    for target in ["/none?location", "/none", "/none?uploads"] {
        assert_eq!(endpoint.get(target).await.code(), "NoSuchBucket", "{target}");
    }
    for (method, target, name) in [
        ("DELETE", "/b", "DeleteBucket"),
        ("PUT", "/b?policy", "PutBucketPolicy"),
        ("GET", "/b?lifecycle", "GetBucketLifecycleConfiguration"),
        ("PATCH", "/b/k", "PATCH of an object"),
    ] {
        let answer = endpoint.ask(method, target, &[]).await;
        assert_eq!((answer.status, answer.code()), (501, "NotImplemented"));
        assert!(answer.element("Message").contains(name), "{}", answer.text());
    }
}
