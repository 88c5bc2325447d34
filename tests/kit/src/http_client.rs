//! A plain HTTP client for what the kit asks of the servers it starts.
//!
//! Invariant: request targets are sent as given: no library in between normalises `.`, `..` or `//`,
//! because keys that hold them are what the tests are about.

use crate::runtime;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// No request of the kit itself takes longer against a healthy server on loopback.
const LIMIT: Duration = Duration::from_mins(1);

/// Sends one request on a connection of its own and collects the answer.
pub(crate) async fn fetch(request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
    let what = format!("{} {}", request.method(), request.uri());
    let exchange = async move {
        // One client a request: servers are stopped and restarted under the same address, and a
        // kept connection would fail the first request after that.
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let answer = client.request(request).await.map_err(|error| format!("{error:?}"))?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    runtime::on_kit(async move {
        match tokio::time::timeout(LIMIT, exchange).await {
            Ok(answer) => answer.map_err(|error: String| format!("{what}: {error}")),
            Err(_) => Err(format!("{what}: no answer in {} s", LIMIT.as_secs())),
        }
    })
    .await
}

/// Like [`fetch`], and anything but a success is a panic: for preparing a test.
pub(crate) async fn must(request: Request<Full<Bytes>>) -> Response<Bytes> {
    let what = format!("{} {}", request.method(), request.uri());
    let answer = fetch(request).await.unwrap_or_else(|error| panic!("{error}"));
    let status: StatusCode = answer.status();
    assert!(status.is_success(), "{what}: {status}: {}", String::from_utf8_lossy(answer.body()));
    answer
}
