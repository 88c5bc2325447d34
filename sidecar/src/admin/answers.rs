//! One request, one answer.
//!
//! Invariant: every answer is made of what is known here and now; none waits for an origin.
//! It refuses to change anything for a web page.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use prometheus::Registry;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::Admin;
use crate::metrics;
use crate::warm::{Plan, WarmRequest};

/// A list of half a million keys fits.
const MAX_BODY_BYTES: usize = 64 << 20;
/// The longest body crosses loopback in a fraction of this.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

type Answer = Response<Full<Bytes>>;

/// Answers a request. `port` is that of the TCP listener, `None` on a Unix socket.
pub(super) async fn answer(admin: &Admin, port: Option<u16>, request: Request<Incoming>) -> Answer {
    if let Some(port) = port
        && !host_is_ours(&request, port)
    {
        // A name that somebody's DNS points at loopback must not reach this endpoint.
        return text(StatusCode::MISDIRECTED_REQUEST, "this host name is not served here\n");
    }
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    if !get && request.headers().contains_key(ORIGIN) {
        // Browsers send it with what a page of any site posts; no client of this endpoint does.
        return text(StatusCode::FORBIDDEN, "web pages may change nothing here\n");
    }
    match &*path {
        "/warm" if request.method() == Method::POST => start_warm(admin, request).await,
        "/warm" if get => json(StatusCode::OK, &json!(admin.jobs.all())),
        path if path.starts_with("/warm/") => warm_job(admin, path, request.method()),
        _ if !get => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
        "/livez" => text(StatusCode::OK, "alive\n"),
        "/readyz" => match admin.not_ready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(why) => said(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        "/healthz" => json(StatusCode::OK, &health(admin)),
        "/metrics" => exposition(admin.registry()),
        "/status" => json(StatusCode::OK, &status(admin)),
        "/credentials" => credentials(admin, &request),
        "" => text(StatusCode::OK, "warpdrive: /livez /readyz /healthz /metrics /status /warm\n"),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// Answers a request to the metrics listener.
pub(super) fn metrics_only(registry: &Registry, request: &Request<Incoming>) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => exposition(registry),
        (&Method::GET | &Method::HEAD, _) => text(StatusCode::NOT_FOUND, "see /metrics\n"),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
    }
}

/// Answers a probe that comes to the metrics listener.
pub(super) fn health_only(known: Result<(), &'static str>, request: &Request<Incoming>) -> Answer {
    match (request.method(), known) {
        (&Method::GET | &Method::HEAD, Ok(())) => text(StatusCode::OK, "ok\n"),
        (&Method::GET | &Method::HEAD, Err(why)) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
    }
}

fn host_is_ours(request: &Request<Incoming>, port: u16) -> bool {
    let host = request.headers().get(HOST).and_then(|value| value.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(hyper::http::uri::Authority::as_str));
    let Some(host) = host else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, given)) if given.parse() == Ok(port) => name,
        // Port 80 is left out by clients; a bare IPv6 address has colons of its own.
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let loopback = |ip: std::net::IpAddr| ip.to_canonical().is_loopback();
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(loopback)
}

/// `{status, checks}` as the Go project answers it.
fn health(admin: &Admin) -> Value {
    let mut checks = serde_json::Map::new();
    let mut degraded = false;
    for origin in &admin.assembly.origins {
        let problem = origin.opened.problem();
        degraded |= problem.is_some();
        let what = problem.unwrap_or_else(|| "ok".to_owned());
        checks.insert(format!("backend:{}", origin.settings.name), what.into());
    }
    for (tier, problem) in tiers(admin) {
        degraded |= problem.is_some();
        checks.insert(format!("cache:{tier}"), problem.unwrap_or_else(|| "ok".to_owned()).into());
    }
    if let Some(view) = &admin.view {
        let lost = view.lost();
        degraded |= lost.is_some();
        checks.insert("mount".to_owned(), lost.unwrap_or_else(|| "ok".to_owned()).into());
    }
    json!({"status": if degraded { "degraded" } else { "ok" }, "checks": checks})
}

/// Each tier with its problem, if it has one.
fn tiers(admin: &Admin) -> Vec<(&'static str, Option<String>)> {
    let mut tiers = vec![("memory", None)];
    if let Some(state) = admin.assembly.cache.stats().disk_state {
        let reason = || state.reason.unwrap_or_else(|| "is not in use".to_owned());
        tiers.push(("disk", (!state.up).then(reason)));
    }
    tiers
}

pub(super) fn status(admin: &Admin) -> Value {
    let origins: Vec<Value> = admin
        .assembly
        .origins
        .iter()
        .enumerate()
        .map(|(index, origin)| {
            let settings = &origin.settings;
            let buckets: Vec<&str> = admin.assembly.bucket_names(index).collect();
            json!({
                "name": settings.name.as_str(),
                "type": settings.kind,
                "identity": origin.opened.identity(),
                "store_id": origin.store.id(),
                "credential": settings.credential,
                "mount_path": settings.mount_path,
                "buckets": buckets,
                "read_only": settings.read_only,
                "breaker": origin.opened.breaker(),
                "health": origin.opened.problem().unwrap_or_else(|| "ok".to_owned()),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_seconds": admin.started.elapsed().as_secs_f64(),
        "ready": admin.readiness.is_ready(),
        "resident_memory_bytes": metrics::resident_bytes(),
        "backends": origins,
        "cache": admin.assembly.cache.stats(),
        "cache_path": admin.cache_path.as_ref().map(|path| path.display().to_string()),
        "disk_free_bytes": admin.disk_free(),
        "disk_min_free_bytes": admin.cache_path.as_ref().map(|_| admin.min_free_bytes),
        "opens": opens(admin),
        "mount": admin.mount,
        "mount_lost": admin.view.as_ref().and_then(|view| view.lost()),
        "holder": admin.view.as_ref().map(|view| view.holder()),
        "s3": admin.s3,
        "restarts": admin.restarts,
        "warm_jobs": admin.jobs.all().iter().map(|job| json!({"id": job.id, "state": job.state})).collect::<Vec<_>>(),
        "notes": admin.notes,
    })
}

/// Files that were opened through the mount, by mode and reason.
fn opens(admin: &Admin) -> Vec<Value> {
    let counts = metrics::counts(admin.registry(), "warpdrive_fuse_opens_total");
    let one = |(labels, count): (Vec<(String, String)>, u64)| {
        let mut open = serde_json::Map::new();
        open.extend(labels.into_iter().map(|(name, value)| (name, value.into())));
        open.insert("count".to_owned(), count.into());
        open.into()
    };
    counts.into_iter().map(one).collect()
}

async fn start_warm(admin: &Admin, request: Request<Incoming>) -> Answer {
    let bad = |what: &str| json(StatusCode::BAD_REQUEST, &json!({"error": what}));
    let busy = |what: &str| json(StatusCode::TOO_MANY_REQUESTS, &json!({"error": what}));
    // Held until the job is started: many long bodies side by side would take gigabytes.
    let Ok(_permit) = admin.warm_requests.try_acquire() else {
        return busy("other requests for warm jobs are being read; try again in a moment");
    };
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return bad("the body is too long, or was cut"),
        Err(_) => {
            let what = "the body did not come within 30 seconds";
            return json(StatusCode::REQUEST_TIMEOUT, &json!({"error": what}));
        }
    };
    let wanted: WarmRequest = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return bad(&error.to_string()),
    };
    let assembly = &admin.assembly;
    let all: Vec<String> = assembly.origins.iter().map(|o| o.settings.name.to_string()).collect();
    let find =
        |name: &str| assembly.origin(name).map(|origin| std::sync::Arc::clone(&origin.store));
    let plan = match Plan::new(wanted, &all, find) {
        Ok(plan) => plan,
        Err(error) => return bad(&error.to_string()),
    };
    match admin.jobs.start(plan).and_then(|id| admin.jobs.status(id)) {
        Some(job) => json(StatusCode::ACCEPTED, &json!(job)),
        None => busy("as many warm jobs run as may; wait for one to end"),
    }
}

fn warm_job(admin: &Admin, path: &str, method: &Method) -> Answer {
    let missing = || json(StatusCode::NOT_FOUND, &json!({"error": "no such job"}));
    let Some(id) = path.strip_prefix("/warm/").and_then(|id| id.parse().ok()) else {
        return missing();
    };
    if method == Method::DELETE && !admin.jobs.cancel(id) {
        return missing();
    }
    match admin.jobs.status(id) {
        Some(job) => json(StatusCode::OK, &json!(job)),
        None => missing(),
    }
}

fn credentials(admin: &Admin, request: &Request<Incoming>) -> Answer {
    let Some(credentials) = &admin.credentials else {
        return text(StatusCode::NOT_FOUND, "this endpoint has no generated key\n");
    };
    let sent = request.headers().get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let known = |token: &SecretString| same(sent, token.expose_secret().as_bytes());
    if !credentials.token.as_ref().is_none_or(known) {
        return text(
            StatusCode::FORBIDDEN,
            "the authorization token is not the one of this start\n",
        );
    }
    let body = Bytes::from(credentials.key.container_credentials_json());
    with_type(StatusCode::OK, "application/json", body)
}

/// Compares without telling how far two texts agree.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

fn exposition(registry: &Registry) -> Answer {
    let body = Bytes::from(metrics::text(registry));
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

fn text(status: StatusCode, body: &'static str) -> Answer {
    with_type(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn said(status: StatusCode, body: String) -> Answer {
    with_type(status, "text/plain; charset=utf-8", Bytes::from(body))
}

fn json(status: StatusCode, body: &Value) -> Answer {
    with_type(status, "application/json", Bytes::from(format!("{body}\n")))
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    answer
}
