//! Our own shim that gives fake-gcs-server the XML interface of Google Cloud Storage.
//!
//! `object_store` reads and writes GCS by XML; fake-gcs-server answers XML PUT and multipart with 400
//! and ignores preconditions on GET and DELETE. This shim takes XML requests and makes JSON requests
//! of them. It is the tests' own work: what passes through it shows that our client speaks the
//! documented protocol, not that Google's servers accept it.
//!
//! Invariants: preconditions are checked and the write made under one lock, so they are atomic among
//! all who use the shim; listings are in byte order whatever the server's order is; a request to the
//! JSON interface (`/storage/`, `/upload/`, `/download/`) is passed on untouched.
//! It refuses (501) what neither `object_store` nor the tests ask for: ACLs, versions, lifecycle.

// An error is the answer itself; it is made once a request and boxing it would only add noise.
#![allow(clippy::result_large_err)]

mod json;
mod object;
mod uploads;

use crate::runtime;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use json::Json;
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use uploads::Upload;

/// What an answer of the shim is.
type Answer = Response<Full<Bytes>>;

/// Uploads open at once; a test that leaks more gets 503.
const UPLOADS: usize = 1_000;

/// A running shim; dropping it closes it.
#[derive(Debug)]
pub struct GcsShim {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

/// What all requests share.
#[derive(Debug)]
struct State {
    json: Json,
    /// Held across a check and the write that depends on it: the only lock of this crate that is
    /// meant to be held while waiting.
    writing: Mutex<()>,
    uploads: Mutex<BTreeMap<String, Upload>>,
}

impl GcsShim {
    /// Listens on a free port in front of the fake-gcs-server at `server`.
    pub fn start(server: SocketAddr) -> GcsShim {
        let (listener, address) = runtime::listen();
        let state = Arc::new(State {
            json: Json::new(server),
            writing: Mutex::default(),
            uploads: Mutex::default(),
        });
        let accepting = runtime::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        let state = state.clone();
                        connections.spawn(async move {
                            let service = service_fn(move |request| serve(state.clone(), request));
                            let _ = hyper::server::conn::http1::Builder::new()
                                .serve_connection(TokioIo::new(stream), service)
                                .await;
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        GcsShim { address, accepting }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL: the `base_url` of a GCS client.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for GcsShim {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An XML request taken apart.
#[derive(Debug)]
struct Asked {
    method: Method,
    bucket: String,
    /// Empty for a request about the bucket.
    key: String,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    body: Bytes,
}

impl Asked {
    fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

async fn serve(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return Ok(xml_error(StatusCode::BAD_REQUEST, "IncompleteBody", "the body ended early"));
    };
    let path = parts.uri.path();
    if ["/storage/", "/upload/", "/download/"].iter().any(|json| path.starts_with(json)) {
        let target = parts.uri.path_and_query().map_or(path, |target| target.as_str());
        return Ok(state.json.pass_on(parts.method, target, &parts.headers, body).await);
    }
    let path = path.trim_start_matches('/');
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let (Some(bucket), Some(key)) = (decode(bucket), decode(key)) else {
        return Ok(xml_error(StatusCode::BAD_REQUEST, "InvalidURI", "the name is not UTF-8"));
    };
    let query = parse_query(parts.uri.query().unwrap_or_default());
    let asked = Asked { method: parts.method, bucket, key, query, headers: parts.headers, body };
    Ok(route(&state, &asked).await.unwrap_or_else(|error| error))
}

async fn route(state: &State, asked: &Asked) -> Result<Answer, Answer> {
    let upload_id = asked.query("uploadId").is_some();
    match (asked.method.as_str(), asked.key.is_empty()) {
        ("GET", true) if asked.query("uploads").is_some() => uploads::list(state, asked).await,
        ("GET", true) => object::list(state, asked).await,
        ("HEAD", true) => object::head_bucket(state, asked).await,
        ("GET", false) if upload_id => uploads::list_parts(state, asked).await,
        ("GET" | "HEAD", false) => object::get(state, asked).await,
        ("PUT", false) if upload_id => uploads::put_part(state, asked).await,
        ("PUT", false) if asked.header("x-goog-copy-source").is_some() => {
            object::copy(state, asked).await
        }
        ("PUT", false) => object::put(state, asked).await,
        ("POST", false) if asked.query("uploads").is_some() => uploads::start(state, asked).await,
        ("POST", false) if upload_id => uploads::complete(state, asked).await,
        ("DELETE", false) if upload_id => uploads::abort(state, asked).await,
        ("DELETE", false) => object::delete(state, asked).await,
        _ => Err(xml_error(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            "the test shim does not serve this request",
        )),
    }
}

fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// Pairs of a query in which `+` is a space, as `reqwest` writes it.
fn parse_query(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?))
        })
        .collect()
}

fn xml_error(status: StatusCode, code: &str, message: &str) -> Answer {
    let mut answer = xml(&format!(
        "<Error><Code>{code}</Code><Message>{}</Message></Error>",
        quick_xml::escape::escape(message)
    ));
    *answer.status_mut() = status;
    answer
}

fn xml(inner: &str) -> Answer {
    let text = format!("<?xml version='1.0' encoding='UTF-8'?>{inner}");
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/xml"));
    answer
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

fn set(answer: &mut Answer, name: &'static str, value: &str) {
    // A value that is no header value (a control character in metadata) is left out, as servers do.
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}
