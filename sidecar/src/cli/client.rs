//! Talks to the admin endpoint of a running sidecar.
//!
//! Invariant: every request is answered or fails within [`ANSWER_WITHIN`]. It speaks to loopback
//! and Unix sockets only.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use url::Url;

use super::{Stop, Where};
use crate::config::{AdminAddress, Settings};

/// Nothing that is asked here waits for an origin.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The default of `admin.listen`.
pub(super) const DEFAULT: &str = "http://127.0.0.1:9091";

/// An admin endpoint.
#[derive(Debug, Clone)]
pub(super) struct Client {
    address: AdminAddress,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// Nobody listens there.
    Absent(String),
    /// It answered with an error, or not as a sidecar does.
    Refused(String),
}

impl From<NoAnswer> for Stop {
    fn from(error: NoAnswer) -> Self {
        match error {
            NoAnswer::Absent(what) | NoAnswer::Refused(what) => Self::Failed(what),
        }
    }
}

/// The endpoint that the command line means, and the settings of its file where it names one.
pub(super) fn find(place: &Where) -> Result<(Option<Client>, Option<Settings>), Stop> {
    if place.config.is_none() && !place.overrides.set.is_empty() {
        return Err(Stop::Unusable("--set changes a file: name it with -c FILE".to_owned()));
    }
    let load = |path| super::load(path, &place.overrides);
    let settings = place.config.as_deref().map(load).transpose()?;
    let address = match (&place.admin, &settings) {
        (Some(url), _) => Some(parse(url)?),
        (None, Some(settings)) => settings.admin.clone(),
        (None, None) => Some(parse(DEFAULT)?),
    };
    Ok((address.map(|address| Client { address }), settings))
}

/// The address of an admin endpoint as `--admin` names it.
pub(super) fn parse(text: &str) -> Result<AdminAddress, Stop> {
    let bad = || {
        let what = format!("--admin `{text}`: write http://127.0.0.1:9091 or unix:/path");
        Stop::Unusable(what)
    };
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(AdminAddress::Unix(PathBuf::from(path)));
    }
    let url = Url::parse(text).map_err(|_| bad())?;
    let host = url.host_str().filter(|_| url.scheme() == "http").ok_or_else(bad)?;
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let port = url.port_or_known_default().ok_or_else(bad)?;
    format!("{host}:{port}").parse().map(AdminAddress::Tcp).map_err(|_| bad())
}

impl Client {
    /// Where it is.
    pub(super) fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// A document.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, NoAnswer> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Sends a document, answers with another.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Bytes,
    ) -> Result<T, NoAnswer> {
        self.ask(Method::POST, path, body).await
    }

    /// Ends something.
    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, NoAnswer> {
        self.ask(Method::DELETE, path, Bytes::new()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, NoAnswer> {
        let exchange = async {
            match &self.address {
                AdminAddress::Tcp(address) => {
                    let stream = TcpStream::connect(address).await.map_err(|e| self.absent(&e))?;
                    exchange(stream, &address.to_string(), method, path, body).await
                }
                AdminAddress::Unix(socket) => {
                    let stream = UnixStream::connect(socket).await.map_err(|e| self.absent(&e))?;
                    exchange(stream, "localhost", method, path, body).await
                }
            }
        };
        let answered = tokio::time::timeout(ANSWER_WITHIN, exchange).await;
        let (status, body) = answered.unwrap_or_else(|_| {
            Err(NoAnswer::Refused(format!("{} does not answer", self.address)))
        })?;
        if !status.is_success() {
            let document: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
            let what = document.as_ref().and_then(|d| d.get("error")?.as_str());
            let text = String::from_utf8_lossy(&body);
            let what = what.unwrap_or_else(|| text.trim());
            return Err(NoAnswer::Refused(format!("{}: {status}: {what}", self.address)));
        }
        serde_json::from_slice(&body).map_err(|error| {
            NoAnswer::Refused(format!("{} answers like no sidecar: {error}", self.address))
        })
    }

    fn absent(&self, error: &std::io::Error) -> NoAnswer {
        NoAnswer::Absent(format!("no sidecar answers at {}: {error}", self.address))
    }
}

async fn exchange<S>(
    stream: S,
    host: &str,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| NoAnswer::Refused(format!("{host}: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .body(Full::new(body))
        .map_err(|error| NoAnswer::Refused(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
    driver.abort();
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_or_sockets() {
        let tcp = |text: &str| AdminAddress::Tcp(text.parse().unwrap());
        assert_eq!(parse("http://localhost:9091").unwrap(), tcp("127.0.0.1:9091"));
        assert_eq!(parse("http://[::1]:9091/").unwrap(), tcp("[::1]:9091"));
        assert_eq!(parse("unix:/run/x").unwrap(), AdminAddress::Unix("/run/x".into()));
        for bad in ["", "https://127.0.0.1:1", "127.0.0.1:9091", "http://example.org:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
