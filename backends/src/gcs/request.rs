//! Requests to one bucket: their URLs, their token and their errors.
//!
//! Invariant: the token is made of the configured service account, or there is none. Nothing here
//! prints a credential. A key's slashes are percent-encoded, so that no URL parser sees segments.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use ::http::header::AUTHORIZATION;
use ::http::{HeaderValue, Method};
use object_store::gcp::{GcpCredentialProvider, GoogleCloudStorageBuilder};
use reqwest::Response;
use secrecy::{ExposeSecret, SecretString};
use store::{Error, ErrorKind, ObjectKey, Result};
use url::Url;

use super::errors;
use crate::cloud::What;
use crate::http::url::{encode_strict, join, query};
use crate::http::{Call, Http, error_document};
use crate::{GcsConfig, GcsCredential, Policy};

/// Where the service is.
const SERVICE: &str = "https://storage.googleapis.com";

/// Who asks for which bucket where.
pub(super) struct Client {
    http: Http,
    base: Url,
    bucket: String,
    /// `None`: requests carry no token.
    credential: Option<GcpCredentialProvider>,
    /// Set when the bucket has answered for one of its objects or with a listing.
    bucket_seen: AtomicBool,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base.as_str().trim_end_matches('/'), self.bucket)
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

/// What a key file must say, without ever repeating what it does say.
fn check_service_account(text: &str) -> Result<()> {
    let file: serde_json::Value = serde_json::from_str(text)
        .map_err(|_| invalid("gcs service account is not JSON; give the key file's content"))?;
    let kind = file.get("type").and_then(serde_json::Value::as_str);
    if kind.is_some_and(|kind| kind != "service_account") {
        return Err(invalid("gcs credential file is not of type `service_account`"));
    }
    if file.get("disable_oauth").and_then(serde_json::Value::as_bool) == Some(true) {
        let what = "gcs service account says `disable_oauth`; configure no credential instead";
        return Err(invalid(what));
    }
    for field in ["client_email", "private_key", "private_key_id"] {
        let value = file.get(field).and_then(serde_json::Value::as_str);
        if value.is_none_or(str::is_empty) {
            return Err(invalid(format!("gcs service account has no `{field}`")));
        }
    }
    Ok(())
}

/// Tokens of a service account: self-signed (RFC 7523, Google's AIP-4111), so that no other host
/// is asked for them. They are made anew before they expire.
fn provider(bucket: &str, account: &SecretString) -> Result<GcpCredentialProvider> {
    check_service_account(account.expose_secret())?;
    let built = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_service_account_key(account.expose_secret())
        .build();
    // The source of this error may quote what it was given.
    let built =
        built.map_err(|_| invalid("gcs service account's `private_key` is no RSA key in PEM"))?;
    Ok(built.credentials().clone())
}

impl Client {
    pub(super) async fn new(config: &GcsConfig, policy: &Policy) -> Result<Self> {
        let base = Url::parse(config.endpoint.as_deref().unwrap_or(SERVICE))
            .map_err(|error| invalid(format!("gcs endpoint is no URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https")
            || base.query().is_some()
            || !base.username().is_empty()
            || base.password().is_some()
        {
            let what = "gcs endpoint must be an http or https URL without user name and query";
            return Err(invalid(what));
        }
        if config.bucket.is_empty() {
            return Err(invalid("gcs origin needs a bucket"));
        }
        let credential = match &config.credential {
            GcsCredential::Anonymous => None,
            GcsCredential::ServiceAccountJson(json) => Some(provider(&config.bucket, json)?),
            GcsCredential::ServiceAccountFile(path) => {
                let text = tokio::fs::read_to_string(path).await.map_err(|error| {
                    invalid(format!("gcs service account file {} cannot be read", path.display()))
                        .with_source(error)
                })?;
                Some(provider(&config.bucket, &SecretString::from(text))?)
            }
        };
        let http = Http::new(policy, &base)?;
        let bucket = config.bucket.clone();
        Ok(Self { http, base, bucket, credential, bucket_seen: AtomicBool::new(false) })
    }

    /// An object's URL in the XML interface.
    pub(super) fn object(&self, key: &ObjectKey, pairs: &[(&str, &str)]) -> Result<Url> {
        let path = format!("/{}/{}", encode_strict(&self.bucket), encode_strict(key.as_str()));
        join(&self.base, &path, &query(pairs.iter().copied()))
    }

    /// The bucket's URL in the XML interface.
    pub(super) fn bucket(&self, pairs: &[(&str, &str)]) -> Result<Url> {
        let path = format!("/{}", encode_strict(&self.bucket));
        join(&self.base, &path, &query(pairs.iter().copied()))
    }

    /// An object's path in the JSON interface, to which a method of it may be added.
    pub(super) fn json_path(&self, key: &ObjectKey) -> String {
        format!("/b/{}/o/{}", encode_strict(&self.bucket), encode_strict(key.as_str()))
    }

    /// A URL in the JSON interface.
    pub(super) fn json(&self, path: &str, pairs: &[(&str, &str)]) -> Result<Url> {
        join(&self.base, &format!("/storage/v1{path}"), &query(pairs.iter().copied()))
    }

    /// Sends with a token; an answer that is no success is an error, said to be one of `what`.
    pub(super) async fn send(&self, mut call: Call, what: What<'_>) -> Result<Response> {
        if let Some(provider) = &self.credential {
            // Signing is local; its errors say nothing that a caller could use, and may say more.
            let refused = || Error::new(ErrorKind::Internal, "no token could be signed");
            let token = provider.get_credential().await.map_err(|_| refused())?;
            let mut value =
                HeaderValue::try_from(format!("Bearer {}", token.bearer)).map_err(|_| refused())?;
            value.set_sensitive(true);
            call.headers.insert(AUTHORIZATION, value);
        }
        let answer = self.http.send(call).await.map_err(|error| self.said(error, what))?;
        if answer.status().is_success() {
            self.bucket_seen.store(true, Ordering::Relaxed);
            return Ok(answer);
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        let document = error_document(answer).await;
        Err(self.said(errors::of_answer(status, &headers, &document), what))
    }

    /// The same for a request about an object: when that is not found, says whether the bucket is
    /// there, as answers to HEAD do not. It is asked once; later misses cost nothing.
    pub(super) async fn send_to(&self, call: Call, what: What<'_>) -> Result<Response> {
        let error = match self.send(call, what).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if error.kind() != ErrorKind::NotFound || self.bucket_seen.load(Ordering::Relaxed) {
            return Err(error);
        }
        let url = self.bucket(&[("list-type", "2"), ("max-keys", "1")])?;
        match self.send(Call::new(Method::GET, url), What::LISTING).await {
            Err(bucket) if bucket.kind() == ErrorKind::NoSuchBucket => Err(bucket),
            // A caller who may not list learns no more than that the object is not found.
            _ => Err(error),
        }
    }

    fn said(&self, error: Error, what: What<'_>) -> Error {
        error.in_context(format_args!("{what} in bucket `{}`", self.bucket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_checked_without_repeating_it() {
        let full = r#"{"type":"service_account","client_email":"a@b","private_key":"hush",
                       "private_key_id":"1"}"#;
        check_service_account(full).unwrap();
        for (bad, says) in [
            ("hush", "not JSON"),
            (r#"{"type":"authorized_user","hush":1}"#, "service_account"),
            (r#"{"client_email":"a@b","private_key":"hush"}"#, "private_key_id"),
            (r#"{"disable_oauth":true,"private_key":"hush"}"#, "disable_oauth"),
        ] {
            let error = check_service_account(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(says), "{error}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
        let error = provider("b", &SecretString::from(full)).map(drop).unwrap_err();
        assert!(error.to_string().contains("RSA"), "{error}");
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }
}
