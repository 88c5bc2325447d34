//! Copies at the origin, by the JSON interface's rewrite.
//!
//! Invariant: a copy appears whole or not at all, whatever its size: a rewrite goes on under its
//! token until it is done.

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderValue, Method};
use serde::Deserialize;
use serde_json::{Map, Value};
use store::{Attributes, CopyOptions, Error, ErrorKind, ObjectKey, Result, Written};

use super::{GcsStore, generation, kept, listing, other_version, wanted};
use crate::cloud::{self, What};
use crate::http::{Call, CallBody, document, headers};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    done: bool,
    rewrite_token: Option<String>,
    resource: Option<Resource>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    generation: String,
    time_created: Option<String>,
}

/// Attributes as the resource of the copy: it has these and no others.
fn resource(attributes: &Attributes) -> Value {
    let kept = kept(attributes);
    let mut fields = Map::new();
    for (name, value) in [
        ("contentType", &kept.content_type),
        ("cacheControl", &kept.cache_control),
        ("contentDisposition", &kept.content_disposition),
        ("contentEncoding", &kept.content_encoding),
        ("contentLanguage", &kept.content_language),
    ] {
        if let Some(value) = value {
            fields.insert(name.into(), value.as_str().into());
        }
    }
    // As the XML interface would have them, which is where they are read.
    let user = kept
        .user
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(headers::encode_words(value))));
    fields.insert("metadata".into(), Value::Object(user.collect()));
    Value::Object(fields)
}

impl GcsStore {
    pub(super) async fn rewrite(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        options: CopyOptions,
    ) -> Result<Written> {
        let mut fixed = Vec::new();
        if let Some(etag) = &options.source_if_match {
            let generation = generation(etag).ok_or_else(|| other_version(from))?;
            // The first names the bytes, the second fails when they are no longer the newest.
            fixed.push(("sourceGeneration", generation));
            fixed.push(("ifSourceGenerationMatch", generation));
        }
        if let Some(generation) = wanted(to, &options.condition)? {
            fixed.push(("ifGenerationMatch", generation));
        }
        let path =
            format!("{}/rewriteTo{}", self.client.json_path(from), self.client.json_path(to));
        let body = options.attributes.as_ref().map(|a| resource(a).to_string());
        let mut token: Option<String> = None;
        loop {
            let mut pairs = fixed.clone();
            if let Some(token) = &token {
                pairs.push(("rewriteToken", token));
            }
            let mut call = Call::new(Method::POST, self.client.json(&path, &pairs)?);
            if let Some(body) = &body {
                call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                call.body = CallBody::Bytes(body.clone().into());
            }
            let what = What::of("copy", from);
            let answer = self.client.send_to(call, what).await.map_err(|error| {
                // A generation that is gone is not found.
                match (error.kind(), &options.source_if_match) {
                    (ErrorKind::NotFound, Some(_)) => other_version(from),
                    _ => error,
                }
            })?;
            let progress: Progress =
                serde_json::from_slice(&document(answer).await?).map_err(|_| {
                    Error::new(ErrorKind::Corrupted, "answer to a copy is not readable")
                })?;
            match progress {
                Progress { done: true, resource: Some(made), .. } => {
                    return Ok(Written {
                        etag: cloud::opaque(&made.generation),
                        last_modified: made.time_created.as_deref().and_then(listing::time),
                    });
                }
                Progress { done: false, rewrite_token: Some(next), .. } => token = Some(next),
                _ => {
                    let context = "answer to a copy has neither an object nor a token";
                    return Err(Error::new(ErrorKind::Corrupted, context));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_has_what_was_given_and_no_more() {
        let mut given = Attributes {
            content_type: Some("text/plain".into()),
            expires: Some("never".into()),
            ..Attributes::default()
        };
        given.user.insert("owner".into(), "t\u{e9}am".into());
        let expected = serde_json::json!({
            "contentType": "text/plain",
            "metadata": {"owner": "=?UTF-8?B?dMOpYW0=?=", "warpdrive-expires": "never"},
        });
        assert_eq!(resource(&given), expected);
        assert_eq!(resource(&Attributes::default()), serde_json::json!({"metadata": {}}));
    }
}
