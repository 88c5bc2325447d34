//! The S3 protocol in front of a [`store::Namespace`].
//!
//! Invariant: what a client is told happened, happened; a body that is not what its sender
//! announced changes nothing. The endpoint knows no origin and no cache, only stores. The name of
//! what is not served is in the answer.

mod auth;
mod body;
mod conditions;
mod config;
mod dates;
mod failure;
mod front;
mod gateway;
mod hosts;
mod ledger;
mod metrics;
mod operation;
mod ops;
mod range_header;
mod reply;
mod socket;
mod target;
mod unread;

pub use auth::{Access, AccessKey};
pub use config::{GatewayConfig, UploadMemory};
pub use gateway::{Drained, Gateway};
pub use ledger::Unfinished;
pub use metrics::Metrics;

/// The parsers of untrusted input, public so that fuzzing can reach them without a socket.
pub mod wire {
    pub use crate::auth::{Authorization, PayloadHash};
    pub use crate::body::chunked::{ChunkDecoder, ChunkError, Event};
    pub use crate::range_header::parse as parse_range;
}
