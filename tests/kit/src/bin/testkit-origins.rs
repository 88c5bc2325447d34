//! Starts origins for tests that are not written in Rust, and serves them a small control endpoint.
//!
//! `testkit-origins [--throttle LATENCY_MS:MIB_PER_S] KIND...` starts one server of each kind
//! (`versitygw`, `minio`, `moto`, `azurite`, `fake-gcs`), makes a bucket called `bucket` in each,
//! prints one line of JSON and serves until its standard input ends. Invariant: with the end of the
//! input (or of the parent) every server is gone. A kind whose program is not installed is listed
//! under `skipped` with its reason.
//!
//! Control: `GET|PUT|DELETE /<kind>/<bucket>/<key>` acts straight on the origin, past the program
//! under test; `POST /<kind>/stop|restart|pause|resume` does what it says; `GET /<kind>?traffic`
//! tells what went through the throttle.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use testkit::{Link, Origin, OriginKind, Running, Throttle};

/// The bucket that exists from the start.
const BUCKET: &str = "bucket";

struct Served {
    origin: Running,
    throttle: Option<Throttle>,
}

type Origins = BTreeMap<String, Served>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let Arguments { link, kinds } = arguments().unwrap_or_else(|problem| {
        eprintln!("testkit-origins: {problem}");
        std::process::exit(2);
    });
    let mut starting = tokio::task::JoinSet::new();
    for (name, kind) in kinds {
        starting.spawn(async move { (name, Origin::start(kind).await) });
    }
    let (mut origins, mut skipped) = (Origins::new(), serde_json::Map::new());
    while let Some(started) = starting.join_next().await {
        match started {
            Ok((name, Ok(origin))) => {
                origin.create_bucket(BUCKET).await;
                let throttle = link.map(|link| Throttle::start(origin.address(), link));
                origins.insert(name, Served { origin, throttle });
            }
            Ok((name, Err(reason))) => drop(skipped.insert(name, reason.to_string().into())),
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let control = listener.local_addr().expect("a bound socket has an address");
    println!(
        "{}",
        json!({
            "control": format!("http://{control}"),
            "origins": origins.iter().map(|(name, served)| (name.clone(), describe(served))).collect::<serde_json::Map<_, _>>(),
            "skipped": skipped,
        })
    );
    let origins = Arc::new(origins);
    let serving = tokio::spawn(serve(listener, origins.clone()));
    let ended = tokio::task::spawn_blocking(|| {
        let mut ignored = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut ignored);
    });
    let _ = ended.await;
    serving.abort();
}

struct Arguments {
    link: Option<Link>,
    kinds: Vec<(String, OriginKind)>,
}

fn arguments() -> Result<Arguments, String> {
    let mut link = None;
    let mut kinds = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--throttle" {
            let text = arguments.next().unwrap_or_default();
            let (latency, rate) = text.split_once(':').ok_or("--throttle LATENCY_MS:MIB_PER_S")?;
            let number =
                |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
            let rate = number(rate)?;
            link = Some(Link {
                latency: Duration::from_millis(number(latency)?),
                // Zero is no limit.
                bytes_per_second: (rate > 0).then_some(rate << 20),
            });
            continue;
        }
        let kind = match argument.as_str() {
            "versitygw" => OriginKind::Versitygw,
            "minio" => OriginKind::Minio,
            "moto" => OriginKind::Moto,
            "azurite" => OriginKind::Azurite,
            "fake-gcs" => OriginKind::FakeGcs,
            other => return Err(format!("unknown kind {other}")),
        };
        kinds.push((argument, kind));
    }
    Ok(Arguments { link, kinds })
}

fn describe(served: &Served) -> Value {
    let origin = &served.origin;
    let endpoint = match &served.throttle {
        Some(throttle) => origin.endpoint_at(throttle.address()),
        None => origin.endpoint(),
    };
    json!({
        "endpoint": endpoint,
        "bucket": BUCKET,
        "access_key": origin.access_key(),
        "secret_key": origin.secret_key(),
        "region": origin.region(),
        "s3": origin.kind().is_s3(),
    })
}

async fn serve(listener: tokio::net::TcpListener, origins: Arc<Origins>) {
    while let Ok((stream, _)) = listener.accept().await {
        let origins = origins.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let origins = origins.clone();
                async move { Ok::<_, Infallible>(control(&origins, request).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn control(origins: &Origins, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_start_matches('/');
    let mut names = path.splitn(3, '/').map(|part| percent_decode_str(part).decode_utf8_lossy());
    let mut next = || names.next().unwrap_or_default().into_owned();
    let (kind, bucket, key) = (next(), next(), next());
    let Some(Served { origin, throttle }) = origins.get(&kind) else {
        return respond(StatusCode::NOT_FOUND, format!("no origin {kind}"));
    };
    match (parts.method, bucket.as_str()) {
        (Method::POST, "stop") => origin.stop(),
        (Method::POST, "restart") => origin.restart().await,
        (Method::POST, "pause") => origin.pause(),
        (Method::POST, "resume") => origin.resume(),
        (Method::GET, "") => {
            let (down, up, connections) = throttle.as_ref().map_or((0, 0, 0), |throttle| {
                (throttle.bytes_from_origin(), throttle.bytes_to_origin(), throttle.connections())
            });
            let text = json!({"from_origin": down, "to_origin": up, "connections": connections});
            return respond(StatusCode::OK, text.to_string());
        }
        (Method::GET, bucket) => {
            return match origin.get(bucket, &key).await {
                Some(bytes) => respond(StatusCode::OK, bytes),
                None => respond(StatusCode::NOT_FOUND, key),
            };
        }
        (Method::PUT, bucket) => match body.collect().await {
            Ok(body) => origin.put(bucket, &key, body.to_bytes()).await,
            Err(error) => return respond(StatusCode::BAD_REQUEST, error.to_string()),
        },
        (Method::DELETE, bucket) => origin.delete(bucket, &key).await,
        (method, _) => return respond(StatusCode::METHOD_NOT_ALLOWED, method.to_string()),
    }
    respond(StatusCode::OK, "")
}

fn respond(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}
