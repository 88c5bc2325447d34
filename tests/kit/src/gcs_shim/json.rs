//! The JSON interface of fake-gcs-server, as the shim uses it.
//!
//! Invariant: an error of the server becomes the XML error of the same status; nothing is retried.

use super::{Answer, xml_error};
use crate::http_client::fetch;
use crate::sigv4::STRICT;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::utf8_percent_encode;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Separates metadata from bytes in an upload; long enough not to occur in test bodies by chance.
const BOUNDARY: &str = "warpdrive-test-kit-4f1c2a9be07d53186ac";

/// The server.
#[derive(Debug)]
pub(super) struct Json {
    server: SocketAddr,
}

/// What is known of an object.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) generation: String,
    /// Quoted, the MD5 of the content where the server tells it.
    pub(super) etag: String,
    /// As RFC 3339.
    pub(super) updated: String,
    pub(super) fields: BTreeMap<String, String>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Resource {
    fn parse(value: &Value) -> Option<Resource> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let generation = text("generation").unwrap_or_default();
        let md5 = text("md5Hash").and_then(|hash| BASE64.decode(hash).ok()).map(hex::encode);
        let mut fields = BTreeMap::new();
        for name in FIELDS.map(|(_, json)| json) {
            if let Some(value) = text(name).filter(|value| !value.is_empty()) {
                fields.insert(name.to_owned(), value);
            }
        }
        let metadata = value.get("metadata").and_then(Value::as_object).map(|map| {
            map.iter()
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect()
        });
        Some(Resource {
            name: text("name")?,
            size: text("size")?.parse().ok()?,
            etag: format!("\"{}\"", md5.unwrap_or_else(|| format!("g{generation}"))),
            generation,
            updated: text("updated")?,
            fields,
            metadata: metadata.unwrap_or_default(),
        })
    }

    /// When it was written, to the second, as HTTP dates are.
    pub(super) fn modified(&self) -> SystemTime {
        OffsetDateTime::parse(&self.updated, &Rfc3339).map_or(SystemTime::UNIX_EPOCH, |at| {
            SystemTime::UNIX_EPOCH
                + std::time::Duration::from_secs(at.unix_timestamp().try_into().unwrap_or(0))
        })
    }
}

/// Content headers and their names in JSON.
pub(super) const FIELDS: [(&str, &str); 5] = [
    ("content-type", "contentType"),
    ("cache-control", "cacheControl"),
    ("content-disposition", "contentDisposition"),
    ("content-encoding", "contentEncoding"),
    ("content-language", "contentLanguage"),
];

impl Json {
    pub(super) fn new(server: SocketAddr) -> Json {
        Json { server }
    }

    /// A request to the JSON interface, unchanged.
    pub(super) async fn pass_on(
        &self,
        method: Method,
        target: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Answer {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.headers_mut() = headers.clone();
        for connection_specific in ["content-length", "transfer-encoding", "connection"] {
            request.headers_mut().remove(connection_specific);
        }
        let uri = format!("http://{}{target}", self.server).parse();
        match uri {
            Ok(uri) => *request.uri_mut() = uri,
            Err(_) => return xml_error(StatusCode::BAD_REQUEST, "InvalidURI", target),
        }
        match fetch(request).await {
            Ok(answer) => {
                let mut answer = answer.map(Full::new);
                answer.headers_mut().remove("transfer-encoding");
                answer
            }
            Err(error) => xml_error(StatusCode::BAD_GATEWAY, "ServiceUnavailable", &error),
        }
    }

    async fn ask(
        &self,
        method: Method,
        target: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Response<Bytes>, Answer> {
        let mut request =
            Request::builder().method(method).uri(format!("http://{}{target}", self.server));
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let request = request.body(Full::new(body)).map_err(|error| {
            xml_error(StatusCode::BAD_REQUEST, "InvalidURI", &error.to_string())
        })?;
        let answer = fetch(request)
            .await
            .map_err(|error| xml_error(StatusCode::BAD_GATEWAY, "ServiceUnavailable", &error))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::NOT_FOUND => Err(xml_error(StatusCode::NOT_FOUND, "NoSuchKey", target)),
            StatusCode::PRECONDITION_FAILED => {
                Err(xml_error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", target))
            }
            status => {
                let text = String::from_utf8_lossy(answer.body()).into_owned();
                Err(xml_error(status, "BackendError", &text))
            }
        }
    }

    pub(super) async fn bucket(&self, bucket: &str) -> Result<(), Answer> {
        let target = format!("/storage/v1/b/{}", encode(bucket));
        match self.ask(Method::GET, &target, None, Bytes::new()).await {
            Ok(_) => Ok(()),
            Err(answer) if answer.status() == StatusCode::NOT_FOUND => {
                Err(xml_error(StatusCode::NOT_FOUND, "NoSuchBucket", bucket))
            }
            Err(answer) => Err(answer),
        }
    }

    pub(super) async fn stat(
        &self,
        bucket: &str,
        key: &str,
        generation: Option<&str>,
    ) -> Result<Resource, Answer> {
        let mut target = object_target(bucket, key);
        if let Some(generation) = generation {
            target.push_str("?generation=");
            target.push_str(&encode(generation));
        }
        let answer = self.ask(Method::GET, &target, None, Bytes::new()).await?;
        parse_resource(answer.body())
    }

    pub(super) async fn read(&self, bucket: &str, key: &str) -> Result<Bytes, Answer> {
        let target = format!("{}?alt=media", object_target(bucket, key));
        Ok(self.ask(Method::GET, &target, None, Bytes::new()).await?.into_body())
    }

    pub(super) async fn write(
        &self,
        bucket: &str,
        key: &str,
        mut description: Value,
        body: &[u8],
    ) -> Result<Resource, Answer> {
        description["name"] = Value::String(key.to_owned());
        let content_type =
            description["contentType"].as_str().unwrap_or("application/octet-stream");
        let mut both = BytesMut::with_capacity(body.len() + 1024);
        both.extend_from_slice(
            format!(
                "--{BOUNDARY}\r\nContent-Type: application/json\r\n\r\n{description}\r\n\
                 --{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n"
            )
            .as_bytes(),
        );
        both.extend_from_slice(body);
        both.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let target = format!(
            "/upload/storage/v1/b/{}/o?uploadType=multipart&name={}",
            encode(bucket),
            encode(key)
        );
        let content_type = format!("multipart/related; boundary={BOUNDARY}");
        let answer = self.ask(Method::POST, &target, Some(&content_type), both.freeze()).await?;
        parse_resource(answer.body())
    }

    pub(super) async fn copy(
        &self,
        from: (&str, &str),
        to: (&str, &str),
    ) -> Result<Resource, Answer> {
        let target = format!(
            "{}/rewriteTo/b/{}/o/{}",
            object_target(from.0, from.1),
            encode(to.0),
            encode(to.1)
        );
        let answer = self
            .ask(Method::POST, &target, Some("application/json"), Bytes::from_static(b"{}"))
            .await?;
        let value: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        Resource::parse(&value["resource"]).ok_or_else(not_understood)
    }

    pub(super) async fn delete(&self, bucket: &str, key: &str) -> Result<(), Answer> {
        self.ask(Method::DELETE, &object_target(bucket, key), None, Bytes::new()).await.map(drop)
    }

    /// Everything under `prefix`, in byte order.
    pub(super) async fn all(&self, bucket: &str, prefix: &str) -> Result<Vec<Resource>, Answer> {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let target = format!(
                "/storage/v1/b/{}/o?prefix={}&pageToken={}",
                encode(bucket),
                encode(prefix),
                encode(&token)
            );
            let answer = match self.ask(Method::GET, &target, None, Bytes::new()).await {
                Ok(answer) => answer,
                Err(answer) if answer.status() == StatusCode::NOT_FOUND => {
                    return Err(xml_error(StatusCode::NOT_FOUND, "NoSuchBucket", bucket));
                }
                Err(answer) => return Err(answer),
            };
            let page: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            found.extend(items.iter().filter_map(Resource::parse));
            match page["nextPageToken"].as_str() {
                Some(next) if !next.is_empty() && next != token => next.clone_into(&mut token),
                _ => break,
            }
        }
        found.sort_by(|one, other| one.name.as_bytes().cmp(other.name.as_bytes()));
        Ok(found)
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, STRICT).to_string()
}

fn object_target(bucket: &str, key: &str) -> String {
    format!("/storage/v1/b/{}/o/{}", encode(bucket), encode(key))
}

fn parse_resource(body: &[u8]) -> Result<Resource, Answer> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    Resource::parse(&value).ok_or_else(not_understood)
}

fn not_understood() -> Answer {
    xml_error(StatusCode::BAD_GATEWAY, "InternalError", "fake-gcs-server sent no object resource")
}
