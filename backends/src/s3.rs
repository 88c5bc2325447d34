//! A bucket that speaks the protocol of S3, spoken directly: requests, signatures and documents.
//!
//! Invariant: a key reaches the origin as the bytes that it is, or is refused; a condition is sent
//! with the request it guards; an error inside a `200` is an error. It refuses to follow redirects
//! (the region that an origin names is learnt instead) and to guess credentials.

mod chunked;
mod copy;
mod error;
mod objects;
mod sign;
mod uploads;
mod xml;

use std::fmt;
use std::sync::Arc;

use ::http::header::{HOST, IF_MATCH, IF_NONE_MATCH, SERVER};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method};
use ::store::{Attributes, Condition, ETag, Error, ErrorKind, Result, Store};
use ::url::Url;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use reqwest::Response;

use crate::http::{Call, CallBody, Http, headers, url};
use crate::{Policy, S3Config};

/// User metadata of S3.
const USER_PREFIX: &str = "x-amz-meta-";

/// Largest object that `CopyObject` takes; larger ones are copied part by part. A fact of S3.
const MAX_SINGLE_COPY_BYTES: u64 = 5 << 30;

/// Size of the parts of such a copy: 1 GiB, so that 10,000 parts cover the 5 TiB of S3.
const COPY_PART_BYTES: u64 = 1 << 30;

/// Opens a bucket. Contacts nobody. [`ErrorKind::InvalidInput`] says what cannot be used.
pub(crate) fn open(config: &S3Config, policy: &Policy) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(S3Store::new(config, policy)?))
}

/// Stable text of the place, without a secret.
pub(crate) fn identity(config: &S3Config) -> Result<String> {
    let place = Place::new(config)?;
    Ok(format!("s3 {}", place.base(&config.region)?))
}

/// A bucket of S3 without retries, timeouts, metrics or prefix.
pub(crate) struct S3Store {
    http: Http,
    place: Place,
    signer: sign::Signer,
    /// What requests are signed for; replaced when the origin names another.
    region: RwLock<Arc<str>>,
    /// What the origin's program does to keys; known after its first answer.
    folding: Mutex<Folding>,
    /// [`MAX_SINGLE_COPY_BYTES`] and [`COPY_PART_BYTES`]; smaller in tests.
    copy_limits: (u64, u64),
}

/// Whether the origin makes one key of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Folding {
    Unknown,
    /// Keys are kept as they are, or refused.
    No,
    /// versitygw writes `a//b` to `a/b`, and lists control characters as U+FFFD; it says nothing.
    Versitygw,
}

/// Where the bucket is.
#[derive(Debug, Clone)]
struct Place {
    bucket: String,
    /// `None` is AWS, whose host depends on the region.
    endpoint: Option<Url>,
    path_style: bool,
}

impl Place {
    fn new(config: &S3Config) -> Result<Self> {
        let bucket = config.bucket.clone();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if bucket.is_empty() || !bucket.bytes().all(allowed) || bucket.starts_with('.') {
            return Err(invalid(format!("`{bucket}` is no name of an S3 bucket")));
        }
        let endpoint = config.endpoint.as_deref().map(crate::open::endpoint).transpose()?;
        if endpoint.is_none()
            && !config.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(invalid(format!("`{}` is no name of a region", config.region)));
        }
        let path_style =
            config.path_style.unwrap_or_else(|| endpoint.is_some() || bucket.contains('.'));
        Ok(Self { bucket, endpoint, path_style })
    }

    /// The bucket's URL.
    fn base(&self, region: &str) -> Result<Url> {
        let china = if region.starts_with("cn-") { ".cn" } else { "" };
        let aws = || crate::open::endpoint(&format!("https://s3.{region}.amazonaws.com{china}"));
        let mut url = self.endpoint.clone().map_or_else(aws, Ok)?;
        if self.path_style {
            let path = format!("{}/{}", url.path().trim_end_matches('/'), self.bucket);
            url.set_path(&path);
        } else {
            let host = format!("{}.{}", self.bucket, url.host_str().unwrap_or_default());
            url.set_host(Some(&host)).map_err(|error| {
                invalid(format!("`{host}` is no host name; use path style")).with_source(error)
            })?;
        }
        Ok(url)
    }
}

/// One request to the bucket.
struct Ask<'a> {
    /// For messages: `get`, `list`.
    what: &'static str,
    method: Method,
    key: Option<&'a str>,
    query: Vec<(&'a str, String)>,
    headers: HeaderMap,
    body: CallBody,
}

impl<'a> Ask<'a> {
    fn new(what: &'static str, method: Method, key: Option<&'a str>) -> Self {
        let (query, headers) = (Vec::new(), HeaderMap::new());
        Self { what, method, key, query, headers, body: CallBody::Empty }
    }

    fn query(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    fn header(mut self, name: &'static str, value: &str) -> Result<Self> {
        self.headers.insert(HeaderName::from_static(name), headers::header_value(value)?);
        Ok(self)
    }

    fn attributes(mut self, attributes: &Attributes) -> Result<Self> {
        headers::set_attributes(&mut self.headers, attributes, USER_PREFIX)?;
        Ok(self)
    }

    fn condition(mut self, condition: &Condition) -> Result<Self> {
        match condition {
            Condition::None => {}
            Condition::IfMatch(etag) => {
                self.headers.insert(IF_MATCH, headers::header_value(&etag.quoted())?);
            }
            Condition::IfAbsent => {
                self.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            }
        }
        Ok(self)
    }

    fn body(mut self, body: CallBody) -> Self {
        self.body = body;
        self
    }
}

impl S3Store {
    pub(crate) fn new(config: &S3Config, policy: &Policy) -> Result<Self> {
        let place = Place::new(config)?;
        Ok(Self {
            http: Http::new(policy, &place.base(&config.region)?)?,
            place,
            signer: sign::Signer::new(&config.credential),
            region: RwLock::new(config.region.as_str().into()),
            folding: Mutex::new(Folding::Unknown),
            copy_limits: (MAX_SINGLE_COPY_BYTES, COPY_PART_BYTES),
        })
    }

    /// Sends a request; any status but success is an error with the kind that its document names.
    /// Where the origin names another region, that one is learnt, and a request without a stream is
    /// sent once more.
    async fn ask(&self, ask: Ask<'_>) -> Result<Response> {
        if let Some(key) = ask.key {
            self.refuse_folded(key).await?;
        }
        let again = match &ask.body {
            CallBody::Empty => Some(CallBody::Empty),
            CallBody::Bytes(bytes) => Some(CallBody::Bytes(bytes.clone())),
            CallBody::Stream(_) => None,
        };
        let Ask { what, method, key, query, headers, body } = ask;
        let region = Arc::clone(&self.region.read());
        let send = |body, region: Arc<str>| {
            self.send_once(what, &method, key, &query, headers.clone(), body, region)
        };
        let failed = match send(body, Arc::clone(&region)).await? {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        let Some(named) = failed.region.filter(|named| **named != *region) else {
            return Err(failed.error);
        };
        tracing::warn!(
            bucket = self.place.bucket, configured = %region, %named,
            "bucket is in another region than configured; using that one"
        );
        let named: Arc<str> = named.into();
        *self.region.write() = Arc::clone(&named);
        let Some(body) = again else {
            let context = format!(
                "bucket `{}` is in region {named}, not {region}; set its region (the next request \
                 goes there)",
                self.place.bucket
            );
            return Err(Error::new(ErrorKind::Unavailable, context));
        };
        send(body, named).await?.map_err(|failed| failed.error)
    }

    /// Refuses a key that the origin would silently make another one. Asks the origin who it is
    /// only for such a key, and only where no answer has said it.
    async fn refuse_folded(&self, key: &str) -> Result<()> {
        // XML has no other control characters, and carries these only encoded.
        let unlistable = |c: char| c < ' ' && !matches!(c, '\t' | '\n' | '\r');
        if !key.starts_with('/') && !key.contains("//") && !key.contains(unlistable) {
            return Ok(());
        }
        if *self.folding.lock() == Folding::Unknown {
            let query = [("list-type", "2".to_owned()), ("max-keys", "1".to_owned())];
            let region = Arc::clone(&self.region.read());
            let (method, headers) = (Method::GET, HeaderMap::new());
            let asked =
                self.send_once("list", &method, None, &query, headers, CallBody::Empty, region);
            asked.await?.map_err(|failed| failed.error)?;
        }
        if *self.folding.lock() == Folding::Versitygw {
            let context = format!(
                "`{}` has an empty segment or a control character, which versitygw would drop",
                key.escape_debug()
            );
            return Err(Error::new(ErrorKind::UnsupportedKey, context));
        }
        Ok(())
    }

    /// The outer error is one of the exchange, the inner one is the origin's answer.
    #[allow(clippy::too_many_arguments)] // The fields of one `Ask`, whose body alone is moved.
    async fn send_once(
        &self,
        what: &'static str,
        method: &Method,
        key: Option<&str>,
        query: &[(&str, String)],
        mut headers: HeaderMap,
        body: CallBody,
        region: Arc<str>,
    ) -> Result<Result<Response, error::Failed>> {
        let path = key.map(|key| format!("/{}", url::encode_path(key)));
        // Path style without a key is `/bucket`, virtual-host style without one is `/`.
        let path = path.unwrap_or_else(|| if self.place.path_style { "" } else { "/" }.to_owned());
        let query = url::query(query.iter().map(|(name, value)| (*name, value.as_str())));
        let base = self.place.base(&region)?;
        let url = url::join(&base, &path, &query)?;
        headers.insert(HOST, host(&url)?);
        let body = self.signer.sign(method, &url, &mut headers, body, &region)?;
        let call = Call { method: method.clone(), url, headers, body };
        let shown = key.map_or_else(|| what.to_owned(), |key| format!("{what} `{key}`"));
        let response = self.http.send(call).await.map_err(|error| {
            // An error of the body that was to be sent stays as it is.
            let source = std::error::Error::source(&error);
            let exchange = source.is_some_and(<dyn std::error::Error>::is::<reqwest::Error>);
            if exchange { error.in_context(shown.as_str()) } else { error }
        })?;
        let server = response.headers().get(SERVER).map(HeaderValue::as_bytes);
        let folds = server.is_some_and(|name| name.eq_ignore_ascii_case(b"versitygw"));
        *self.folding.lock() = if folds { Folding::Versitygw } else { Folding::No };
        if response.status().is_success() {
            return Ok(Ok(response));
        }
        Ok(Err(error::Failed::read(response, &shown, &self.place.bucket).await))
    }

    /// The document of an answer, or the error that a `200` may hold.
    async fn document(&self, what: &str, response: Response) -> Result<Bytes> {
        let bytes = crate::http::document(response).await?;
        match error::inside_success(&bytes, what) {
            Some(error) => Err(error),
            None => Ok(bytes),
        }
    }
}

/// The `Host` header as the HTTP client would write it: with a port unless it is the default one.
fn host(url: &Url) -> Result<HeaderValue> {
    let host = url.host_str().unwrap_or_default();
    let text = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    headers::header_value(&text)
}

/// The kind of a failed condition on a key that is absent: origins say "not found".
fn absent_fails(condition: &Condition) -> impl FnOnce(Error) -> Error + use<> {
    let named = matches!(condition, Condition::IfMatch(_));
    move |error| {
        if named && error.kind() == ErrorKind::NotFound {
            let context = "object is absent, a version of it was expected";
            return Error::new(ErrorKind::PreconditionFailed, context).with_source(error);
        }
        error
    }
}

fn invalid(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, context)
}

fn missing(what: &str, field: &str) -> Error {
    Error::new(ErrorKind::Corrupted, format!("answer to {what} has no {field}"))
}

/// An `ETag` as answers' documents write it; never empty.
fn tag(what: &str, text: Option<&str>) -> Result<ETag> {
    text.filter(|t| !t.is_empty()).map(ETag::parse).ok_or_else(|| missing(what, "ETag"))
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("place", &self.place).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
