//! Requests to one container: their URLs, their signatures and their errors.
//!
//! Invariant: what is signed is what is sent. Nothing here prints a credential, nor a URL after a
//! shared access signature was added to it.

use std::fmt;

use ::http::HeaderValue;
use ::http::header::CONTENT_LENGTH;
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential as Credential};
use object_store::client::HttpRequestBody;
use reqwest::Response;
use secrecy::ExposeSecret;
use store::{Error, ErrorKind, ObjectKey, Result};
use url::Url;

use super::errors;
use crate::cloud::What;
use crate::http::url::{encode_path, encode_strict, join, query};
use crate::http::{Call, CallBody, Http, error_document};
use crate::{AzureConfig, AzureCredential, Policy};

/// The version of the protocol that is spoken, as `object_store` signs it. Needed where nothing
/// is signed.
const VERSION: &str = "2023-11-03";

/// Who asks for which container where.
pub(super) struct Client {
    http: Http,
    /// The account's URL.
    base: Url,
    account: String,
    container: String,
    /// `None`: requests are not signed.
    credential: Option<Credential>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base.as_str().trim_end_matches('/'), self.container)
    }
}

impl Client {
    pub(super) fn new(config: &AzureConfig, policy: &Policy) -> Result<Self> {
        let invalid = |what: String| Error::new(ErrorKind::InvalidInput, what);
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("https://{}.blob.core.windows.net", config.account),
        };
        let base = Url::parse(&endpoint)
            .map_err(|error| invalid(format!("azure endpoint is no URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.query().is_some() {
            let what = "azure endpoint must be an http or https URL without a query; a shared \
                        access signature is a credential of its own";
            return Err(invalid(what.into()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(invalid("azure endpoint must not hold a user name or password".into()));
        }
        if config.account.is_empty() || config.container.is_empty() {
            return Err(invalid("azure origin needs an account and a container".into()));
        }
        // The sources of these errors may quote what they were given.
        let credential = match &config.credential {
            AzureCredential::Anonymous => None,
            AzureCredential::Key(key) => {
                let key = AzureAccessKey::try_new(key.expose_secret().trim())
                    .map_err(|_| invalid("azure account key is not base64".into()))?;
                Some(Credential::AccessKey(key))
            }
            AzureCredential::Sas(sas) => {
                let pairs = object_store::azure::split_sas(sas.expose_secret().trim())
                    .map_err(|_| invalid("azure shared access signature is no query".into()))?;
                if !pairs.iter().any(|(name, _)| name == "sig") {
                    let what = "azure shared access signature has no `sig`; give the whole query \
                                string, not a connection string";
                    return Err(invalid(what.into()));
                }
                Some(Credential::SASToken(pairs))
            }
        };
        let http = Http::new(policy, &base)?;
        let (account, container) = (config.account.clone(), config.container.clone());
        Ok(Self { http, base, account, container, credential })
    }

    /// The URL of a blob. [`ErrorKind::UnsupportedKey`] for keys that the service would change.
    pub(super) fn blob(&self, key: &ObjectKey, pairs: &[(&str, &str)]) -> Result<Url> {
        let refused = |why: &str| Error::new(ErrorKind::UnsupportedKey, format!("{key:?} {why}"));
        if key.as_str().contains('\\') {
            return Err(refused("has a backslash, which Azure turns into a slash"));
        }
        let unlisted = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
        if key.as_str().contains(unlisted) {
            return Err(refused("has a control character, which Azure does not allow"));
        }
        let path = format!("/{}/{}", encode_strict(&self.container), encode_path(key.as_str()));
        join(&self.base, &path, &query(pairs.iter().copied()))
    }

    /// The URL of the container.
    pub(super) fn container(&self, pairs: &[(&str, &str)]) -> Result<Url> {
        let path = format!("/{}", encode_strict(&self.container));
        join(&self.base, &path, &query(pairs.iter().copied()))
    }

    /// A blob's URL as another request may name it: with the signature where that is how we ask.
    pub(super) fn source(&self, key: &ObjectKey) -> Result<HeaderValue> {
        let mut url = self.blob(key, &[])?;
        if let Some(Credential::SASToken(pairs)) = &self.credential {
            let pairs = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            url.set_query(Some(&query(pairs)));
        }
        let mut value = ascii_value(url.as_str())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Signs and sends; an answer that is no success is an error, said to be one of `what`.
    pub(super) async fn send(&self, call: Call, what: What<'_>) -> Result<Response> {
        let call = self.sign(call)?;
        let answer = self.http.send(call).await.map_err(|error| self.said(&error, what))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        let document = error_document(answer).await;
        Err(self.said(&errors::of_answer(status, &headers, &document), what))
    }

    fn said(&self, error: &Error, what: What<'_>) -> Error {
        error.clone().in_context(format_args!("{what} in container `{}`", self.container))
    }

    fn sign(&self, mut call: Call) -> Result<Call> {
        let length = match &call.body {
            CallBody::Empty => 0,
            CallBody::Bytes(bytes) => bytes.len() as u64,
            CallBody::Stream(body) => body.size,
        };
        if length > 0 {
            call.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let Some(credential) = &self.credential else {
            call.headers.insert("x-ms-version", HeaderValue::from_static(VERSION));
            return Ok(call);
        };
        let refused = |_| Error::new(ErrorKind::Internal, "a request could not be signed");
        let mut request = ::http::Request::builder()
            .method(call.method.clone())
            .uri(call.url.as_str())
            .body(HttpRequestBody::empty())
            .map_err(|_| Error::new(ErrorKind::Internal, "a URL could not be signed"))?;
        *request.headers_mut() = std::mem::take(&mut call.headers);
        AzureAuthorizer::new(credential, &self.account)
            .try_authorize(&mut request)
            .map_err(refused)?;
        let (parts, _) = request.into_parts();
        call.headers = parts.headers;
        if let Some(value) = call.headers.get_mut("authorization") {
            value.set_sensitive(true);
        }
        // Only a shared access signature changes the URL, and only its query.
        let signed = parts.uri.query().filter(|q| !q.is_empty());
        call.url.set_query(signed);
        Ok(call)
    }
}

/// A header's value. [`ErrorKind::InvalidInput`] for what is not printable ASCII: the service
/// takes nothing else, and the signature is over text.
pub(super) fn ascii_value(text: &str) -> Result<HeaderValue> {
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("`{}` is not printable ASCII, which Azure asks for", text.escape_debug()),
        ));
    }
    HeaderValue::from_str(text)
        .map_err(|_| Error::new(ErrorKind::Internal, "printable ASCII is no header value"))
}
