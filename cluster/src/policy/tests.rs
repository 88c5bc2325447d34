//! What the printed policy holds, without an API server; `tests/k8s/test_policy.py` compares pods on one.

use serde_json::{Value, json};

use super::policy;
use crate::inject::Defaults;

fn documents(set: &[&str]) -> Vec<Value> {
    let mut defaults = Defaults::default();
    for one in set {
        defaults.set(one).unwrap();
    }
    let text = policy(&defaults, "v1").unwrap();
    text.split("---\n").map(|one| serde_yaml::from_str(one).unwrap()).collect()
}

#[test]
fn no_sample_is_left_in_the_expressions() {
    for mode in ["mode=sidecar", "mode=csi", "mode=s3"] {
        for cache in ["cache=emptyDir", "cache=memory", "cache=ephemeral:x"] {
            let all = documents(&[mode, cache, "warm=all"]);
            assert_eq!(all.len(), 6);
            let expression =
                all[0]["spec"]["mutations"][0]["jsonPatch"]["expression"].as_str().unwrap();
            for sample in
                ["sample", "104729", "7919", "7907", "109966", "116482", "8175", "8431", "\\u0001"]
            {
                assert!(!expression.contains(sample), "{mode} {cache}: {sample}");
            }
            // The parser of the API server reads 100,000 characters.
            assert!(expression.len() < 90_000, "{}", expression.len());
        }
    }
}

#[test]
fn what_the_policy_cannot_do_is_denied() {
    let mut defaults = Defaults::default();
    defaults.set("containers=main").unwrap();
    assert!(policy(&defaults, "v1").unwrap_err().to_string().contains("warpdrive.io/containers"));
    let all = documents(&[]);
    assert_eq!(all[3]["kind"], "ValidatingAdmissionPolicy");
    assert_eq!(all[3]["spec"]["failurePolicy"], "Fail");
    for rule in all[3]["spec"]["validations"].as_array().unwrap() {
        let message = rule["message"].as_str().unwrap();
        assert!(!message.ends_with('.') && message.len() < 200, "{message}");
    }
}

#[test]
fn two_bindings_say_or() {
    let all = documents(&[]);
    for at in [1, 2, 4, 5] {
        assert_eq!(all[at]["spec"]["policyName"], all[0]["metadata"]["name"]);
    }
    let selector = |at: usize, which: &str| {
        all[at]["spec"]["matchResources"][which]["matchExpressions"][0]["operator"].clone()
    };
    assert_eq!(
        (selector(1, "namespaceSelector"), selector(1, "objectSelector")),
        (json!("In"), Value::Null)
    );
    assert_eq!(
        (selector(2, "namespaceSelector"), selector(2, "objectSelector")),
        (json!("NotIn"), json!("In"))
    );
}
