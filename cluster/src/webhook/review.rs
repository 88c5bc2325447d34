//! An `AdmissionReview` and the answer to it, without a network.
//!
//! Invariant: every review is answered with its own `uid`, or refused as something that is none; what
//! is not a new pod is allowed as it is. Works on plain JSON: nothing of a pod is lost that this program does not
//! know.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::metrics::Outcome;
use crate::inject::{self, Context, Defaults};

/// What goes back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// A review as JSON when `status` is 200, else a line of text.
    pub(super) body: Bytes,
    pub(super) outcome: Outcome,
}

impl Answer {
    /// Something that is no review.
    pub(super) fn refusal(status: StatusCode, what: &str) -> Self {
        Self { status, body: Bytes::from(format!("{what}\n")), outcome: Outcome::Refused }
    }
}

/// Answers one review.
pub(super) fn answer(body: &[u8], defaults: &Defaults) -> Answer {
    let bad = |what: &str| Answer::refusal(StatusCode::BAD_REQUEST, what);
    let mut review: Value = match serde_json::from_slice(body) {
        Ok(review) => review,
        Err(error) => return bad(&format!("the body is not JSON: {error}")),
    };
    if review["apiVersion"] != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
        return bad("the body is not an AdmissionReview of admission.k8s.io/v1");
    }
    let request = &mut review["request"];
    let Some(uid) = request["uid"].as_str().filter(|uid| !uid.is_empty()).map(str::to_owned) else {
        return bad("the review has no `request.uid`");
    };
    let (response, outcome) = decide(request, &uid, defaults);
    let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
    Answer { status: StatusCode::OK, body: Bytes::from(review.to_string()), outcome }
}

fn decide(request: &mut Value, uid: &str, defaults: &Defaults) -> (Value, Outcome) {
    let unchanged = || (json!({ "uid": uid, "allowed": true }), Outcome::Unchanged);
    if !is_new_pod(request) {
        return unchanged();
    }
    let pod = request["object"].take();
    let namespace = request["namespace"].as_str().unwrap_or_default();
    let injected = inject::inject(&pod, &Context { namespace, uid }, defaults);
    let meta = &pod["metadata"];
    let name = meta["name"].as_str().or(meta["generateName"].as_str()).unwrap_or_default();
    let dry_run = request["dryRun"] == true;
    match injected {
        Ok(inject::Outcome::Untouched { why }) => {
            tracing::debug!(namespace, pod = name, dry_run, why, "untouched");
            unchanged()
        }
        Ok(inject::Outcome::Injected { pod: wanted, warnings }) => {
            let mut response = json!({ "uid": uid, "allowed": true });
            if !warnings.is_empty() {
                response["warnings"] = json!(warnings);
            }
            let patch = inject::patch(&pod, &wanted);
            if patch.is_empty() {
                return (response, Outcome::Unchanged);
            }
            tracing::debug!(namespace, pod = name, dry_run, "injected");
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(BASE64.encode(json!(patch).to_string()));
            (response, Outcome::Injected)
        }
        Err(denial) => {
            tracing::info!(namespace, pod = name, dry_run, %denial, "denied");
            let status = json!({
                "status": "Failure",
                "code": StatusCode::UNPROCESSABLE_ENTITY.as_u16(),
                "reason": "Invalid",
                "message": denial.to_string(),
            });
            (json!({ "uid": uid, "allowed": false, "status": status }), Outcome::Denied)
        }
    }
}

/// Whether the review is about a pod that is being made, and not about a part of one.
fn is_new_pod(request: &Value) -> bool {
    let is_pod = |kind: &Value| {
        kind["group"].as_str().unwrap_or_default().is_empty()
            && kind["version"] == "v1"
            && kind["kind"] == "Pod"
    };
    let is_whole = request["subResource"].as_str().is_none_or(str::is_empty);
    request["operation"] == "CREATE"
        && is_pod(&request["kind"])
        && is_whole
        && request["object"].is_object()
}
