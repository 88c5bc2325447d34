//! The gRPC services: CSI's Identity and Node, and kubelet's plugin registration.
//!
//! Invariant: a call that was begun is finished, also when its caller has gone: the work is done in a
//! thread of its own. A method that is not served is answered with UNIMPLEMENTED.

use std::convert::Infallible;
use std::future::ready;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::Grpc;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::metrics::{Call, Outcome};
use super::node::Node;
use super::proto::{
    BoolValue, Empty, GetPluginInfoResponse, NodeGetInfoResponse, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, PluginInfo, ProbeResponse, RegistrationStatus,
};
use super::request::{Publish, Target};
use crate::names::CSI_DRIVER;

/// What kubelet asks for in the folder of registrations.
const PLUGIN_TYPE: &str = "CSIPlugin";

/// The versions of CSI, as kubelet compares them.
const CSI_VERSION: &str = "1.0.0";

/// What the services answer from.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) node: Arc<Node>,
    pub(super) node_name: String,
    pub(super) allow_root: bool,
    /// Where kubelet finds [`Side::Driver`].
    pub(super) endpoint: PathBuf,
}

/// Which of the two sockets is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// CSI.
    Driver,
    /// Plugin registration.
    Registration,
}

/// The services of one socket.
#[derive(Debug, Clone)]
pub(super) struct Rpc {
    pub(super) facts: Arc<Facts>,
    pub(super) side: Side,
}

impl Service<http::Request<Body>> for Rpc {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (facts, side) = (Arc::clone(&self.facts), self.side);
        Box::pin(async move { Ok(route(&facts, side, request).await) })
    }
}

async fn route(
    facts: &Arc<Facts>,
    side: Side,
    request: http::Request<Body>,
) -> http::Response<Body> {
    let method = request.uri().path().to_owned();
    match (side, &*method) {
        (Side::Driver, "/csi.v1.Identity/GetPluginInfo") => {
            unary(request, |_: Empty| GetPluginInfoResponse {
                name: CSI_DRIVER.to_owned(),
                vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            })
            .await
        }
        // None, which an empty message says: no controller service, no topology.
        (
            Side::Driver,
            "/csi.v1.Identity/GetPluginCapabilities" | "/csi.v1.Node/NodeGetCapabilities",
        ) => unary(request, |_: Empty| Empty {}).await,
        (Side::Driver, "/csi.v1.Identity/Probe") => {
            unary(request, |_: Empty| ProbeResponse { ready: Some(BoolValue { value: true }) })
                .await
        }
        (Side::Driver, "/csi.v1.Node/NodeGetInfo") => {
            let node_id = facts.node_name.clone();
            unary(request, |_: Empty| NodeGetInfoResponse { node_id, max_volumes_per_node: 0 })
                .await
        }
        (Side::Driver, "/csi.v1.Node/NodePublishVolume") => {
            let facts = Arc::clone(facts);
            blocking(request, move |call| facts.publish(&call)).await
        }
        (Side::Driver, "/csi.v1.Node/NodeUnpublishVolume") => {
            let facts = Arc::clone(facts);
            blocking(request, move |call| facts.unpublish(&call)).await
        }
        (Side::Registration, "/pluginregistration.Registration/GetInfo") => {
            let endpoint = facts.endpoint.display().to_string();
            unary(request, |_: Empty| PluginInfo {
                r#type: PLUGIN_TYPE.to_owned(),
                name: CSI_DRIVER.to_owned(),
                endpoint,
                supported_versions: vec![CSI_VERSION.to_owned()],
            })
            .await
        }
        (Side::Registration, "/pluginregistration.Registration/NotifyRegistrationStatus") => {
            let facts = Arc::clone(facts);
            unary(request, move |status: RegistrationStatus| {
                facts.note(&status);
                Empty {}
            })
            .await
        }
        _ => Status::unimplemented(format!("{method} is not served by {CSI_DRIVER}")).into_http(),
    }
}

impl Facts {
    fn note(&self, status: &RegistrationStatus) {
        self.node.metrics.registered.set(i64::from(status.plugin_registered));
        if status.plugin_registered {
            tracing::info!(driver = CSI_DRIVER, "registered with kubelet");
        } else {
            tracing::warn!(
                error = status.error,
                "kubelet did not register the driver; it tries again"
            );
        }
    }

    fn publish(&self, call: &NodePublishVolumeRequest) -> Result<Empty, Status> {
        let done = Publish::parse(call, &self.node.kubelet_dir, self.allow_root)
            .and_then(|publish| self.node.publish(&publish));
        self.count(Call::Publish, &call.target_path, done)
    }

    fn unpublish(&self, call: &NodeUnpublishVolumeRequest) -> Result<Empty, Status> {
        let done = Target::parse(&call.target_path, &self.node.kubelet_dir)
            .and_then(|target| self.node.unpublish(&target));
        self.count(Call::Unpublish, &call.target_path, done)
    }

    fn count(&self, call: Call, target: &str, done: Result<(), Status>) -> Result<Empty, Status> {
        let outcome = match &done {
            Ok(()) => Outcome::Done,
            Err(status) if matches!(status.code(), Code::InvalidArgument | Code::AlreadyExists) => {
                Outcome::Refused
            }
            Err(_) => Outcome::Failed,
        };
        self.node.metrics.count(call, outcome);
        if let Err(status) = &done {
            tracing::warn!(?call, target, why = status.message(), "a call of kubelet failed");
        }
        done.map(|()| Empty {})
    }
}

/// Answers a call at once.
async fn unary<Q, A, F>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: FnOnce(Q) -> A,
{
    let now = |question| ready(Ok(answer(question)));
    Grpc::new(ProstCodec::<A, Q>::default()).unary(Once::new(now), request).await
}

/// Answers a call with what takes system calls that may wait.
async fn blocking<Q, F>(request: http::Request<Body>, work: F) -> http::Response<Body>
where
    Q: Message + Default + 'static,
    F: FnOnce(Q) -> Result<Empty, Status> + Send + 'static,
{
    let later = |question| async move {
        // It goes on when the caller has gone.
        let done = tokio::task::spawn_blocking(move || work(question)).await;
        done.unwrap_or_else(|error| Err(Status::internal(format!("the call was lost: {error}"))))
    };
    Grpc::new(ProstCodec::<Empty, Q>::default()).unary(Once::new(later), request).await
}

/// A function as the service of one call.
struct Once<F>(Option<F>);

impl<F> Once<F> {
    fn new(answer: F) -> Self {
        Self(Some(answer))
    }
}

impl<F, Q, A, W> Service<Request<Q>> for Once<F>
where
    F: FnOnce(Q) -> W,
    W: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = Response<A>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = self.0.take().expect("tonic calls the service of a unary call once");
        let answered = answer(request.into_inner());
        Box::pin(async move { answered.await.map(Response::new) })
    }
}
