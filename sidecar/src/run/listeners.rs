//! The sockets of a sidecar: metrics, administration, S3.
//!
//! Invariant: a port that somebody else has is an error that names it, or another port where the caller
//! may do with one; what a predecessor is about to give back is waited for, and S3 clients keep the
//! socket that they know.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use s3gw::{Gateway, GatewayConfig};
use tokio::net::TcpListener;

use super::credentials::{self, Keeping};
use super::uploads::Uploads;
use super::{Fronts, PREDECESSOR_ENDS_WITHIN, Start, TRY_EVERY};
use crate::admin;
use crate::announce;
use crate::cli::Stop;
use crate::config::{AdminAddress, S3Settings};

/// A gateway that is bound, and what its clients need.
pub(super) struct BoundGateway {
    pub(super) gateway: Gateway,
    pub(super) announced: announce::Endpoint,
    pub(super) credentials: Option<admin::Credentials>,
    pub(super) written: Option<credentials::KeyFile>,
}

/// What the supervisor keeps the socket of S3 clients for.
const S3_ROLE: &str = "s3";

impl Start<'_> {
    pub(super) async fn bind_admin(&self, address: &AdminAddress) -> Result<admin::Listener, Stop> {
        let mut bound = self.patiently(|| admin::Listener::bind(address), is_taken).await;
        if let AdminAddress::Tcp(tcp) = address
            && self.options.ports_may_move
            && bound.as_ref().is_err_and(is_taken)
        {
            bound = admin::Listener::bind(&AdminAddress::Tcp(free_port(*tcp))).await;
        }
        bound.map_err(|error| taken(address, &error))
    }

    pub(super) async fn bind_metrics(
        &self,
        fronts: &mut Fronts,
        address: SocketAddr,
    ) -> Result<SocketAddr, Stop> {
        let bound = self.patiently(|| TcpListener::bind(address), is_taken).await;
        let listener = bound.map_err(|e| taken(&address, &e))?;
        let bound = listener.local_addr().unwrap_or(address);
        let (registry, stop) = (self.assembly.registry.clone(), fronts.others_stop.clone());
        fronts.others.push(tokio::spawn(admin::serve_metrics(listener, registry, stop)));
        Ok(bound)
    }

    pub(super) async fn bind_gateway(
        &self,
        s3: &S3Settings,
        admin: Option<&AdminAddress>,
        keeping: &Keeping,
    ) -> Result<BoundGateway, Stop> {
        let access = credentials::prepare(s3, admin, keeping)?;
        let metrics = s3gw::Metrics::register(&self.assembly.registry);
        let metrics = metrics.map_err(|e| Stop::Failed(format!("metrics: {e}")))?;
        let config = GatewayConfig {
            allowed_hosts: s3.allowed_hosts.clone(),
            region: s3.region.clone(),
            body_memory_bytes: s3.body_memory_bytes,
            upload_memory: Some(Arc::new(Uploads(Arc::clone(self.assembly.cache.governor())))),
            ..GatewayConfig::new(s3.listen, access.access)
        };
        let listener = self.listener(s3.listen).await;
        let listener =
            listener.map_err(|e| Stop::Failed(format!("s3.listen {}: {e}", s3.listen)))?;
        if let Some(link) = self.options.supervisor.as_ref() {
            link.keep(S3_ROLE, listener.as_fd());
        }
        let namespace = Arc::clone(&self.assembly.namespace);
        let gateway = Gateway::on(listener, config, namespace, metrics)
            .map_err(|e| Stop::Failed(format!("s3.listen {}: {e}", s3.listen)))?;
        let address = gateway.local_addr();
        let announced = announce::Endpoint {
            url: format!("http://{}", reachable(address)),
            listen: address,
            region: s3.region.clone(),
            access: access.announced,
        };
        Ok(BoundGateway {
            gateway,
            announced,
            credentials: access.credentials,
            written: access.written,
        })
    }

    /// Listens for S3 clients: at the socket of the worker before this one, so that no client was
    /// refused in between, or at one of its own.
    async fn listener(&self, address: SocketAddr) -> std::io::Result<TcpListener> {
        let link = self.options.supervisor.as_ref();
        if let Some(kept) = link.and_then(|link| link.listener(S3_ROLE, address)) {
            return TcpListener::from_std(kept);
        }
        let mut listener = self.patiently(|| TcpListener::bind(address), is_taken).await;
        if self.options.ports_may_move && listener.as_ref().is_err_and(is_taken) {
            listener = TcpListener::bind(free_port(address)).await;
        }
        listener
    }

    /// What `bind` comes to; what a predecessor has not given back yet is tried again.
    async fn patiently<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        mut bind: impl FnMut() -> F,
        is_taken: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let until = tokio::time::Instant::now() + PREDECESSOR_ENDS_WITHIN;
        loop {
            match bind().await {
                Err(error)
                    if self.goes_on
                        && is_taken(&error)
                        && !self.signals.stop.is_cancelled()
                        && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(TRY_EVERY).await;
                }
                bound => return bound,
            }
        }
    }
}

fn is_taken(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrInUse
}

/// The same interface, at a port that the system chooses.
fn free_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

/// The address that a client on this machine uses.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        return SocketAddr::new(loopback, address.port());
    }
    address
}

fn taken(address: &dyn std::fmt::Display, error: &std::io::Error) -> Stop {
    Stop::Failed(format!("{address}: {error}; is another sidecar running? port 0 takes a free one"))
}
