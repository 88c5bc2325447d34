//! What the endpoint is built from.
//!
//! Invariant: plain values; whether an address may be served without keys is decided by whoever
//! fills this in.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::auth::Access;

/// Whoever bounds the memory of the whole process. The endpoint asks before it holds an upload's bytes.
pub trait UploadMemory: fmt::Debug + Send + Sync {
    /// Waits until so many bytes may be held; what it gives is dropped when they are not held any more.
    /// Dropping the future gives up.
    fn lease(&self, bytes: u64) -> BoxFuture<'static, Box<dyn Any + Send + Sync>>;
}

/// How to serve. [`GatewayConfig::new`] has the defaults; every field may be changed.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Who may use the endpoint.
    pub access: Access,
    /// `Host` values that are answered besides loopback names and the bound address. A bucket in
    /// front of one of them (`bucket.name`) is understood too.
    pub allowed_hosts: Vec<String>,
    /// The region that clients are told; signatures for any region are accepted.
    pub region: String,
    /// Most bytes of request bodies held at a time, all requests together. Each upload has a
    /// window of 1 MiB in it; uploads beyond that wait, and are asked to slow down after 30 s.
    pub body_memory_bytes: u64,
    /// A bound that uploads share with the rest of the process; `None` leaves them only their own.
    pub upload_memory: Option<Arc<dyn UploadMemory>>,
    /// Most client connections at a time; further ones wait in the listener's backlog.
    pub max_connections: usize,
    /// How long a connection may take to send a request's head, idle time included.
    pub header_timeout: Duration,
    /// How long a request's body may make no progress.
    pub body_timeout: Duration,
    /// How long a client may take none of an answer. Long, because a trainer that pauses while it
    /// holds a stream open is not broken.
    pub send_timeout: Duration,
    /// How long copies and completions work before white space keeps their connection alive.
    pub patience: Duration,
}

impl GatewayConfig {
    /// The defaults for an address and an access rule.
    pub fn new(listen: SocketAddr, access: Access) -> Self {
        Self {
            listen,
            access,
            allowed_hosts: Vec::new(),
            region: "us-east-1".to_owned(),
            body_memory_bytes: 64 << 20,
            upload_memory: None,
            max_connections: 1024,
            header_timeout: Duration::from_mins(1),
            body_timeout: Duration::from_mins(1),
            send_timeout: Duration::from_mins(15),
            patience: Duration::from_secs(10),
        }
    }
}
