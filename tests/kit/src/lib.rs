//! The test kit: real origin servers on loopback, and the faults that networks and origins have.
//!
//! Invariant: whatever a test starts through this crate is ended by it, by process id, when its
//! handle is dropped, when the test program exits, and when the test program is killed. Everything
//! listens on 127.0.0.1 on a free port, and every wait has a deadline.
//!
//! It knows nothing of the other crates and refuses to: it must be usable by all of them.
//!
//! A program that is not installed (`tests/install` installs them all) is [`Skipped`], which prints
//! `SKIPPED <name>: <reason>` and lets the test pass, unless `WARPDRIVE_REQUIRE_TOOLS=1` makes it a
//! failure. A program that is installed and does not start is always a failure (a panic).
//!
//! ```ignore
//! #[tokio::test]
//! async fn reads_what_minio_holds() {
//!     let origin = testkit::start!(Origin::minio());
//!     origin.create_bucket("b").await;
//!     origin.put("b", "key", "bytes").await;
//!     let proxy = testkit::FaultyHttp::start(origin.address());
//!     proxy.inject(Rule::every(Fault::CutBody { after_bytes: 10 }).on("GET").times(1));
//!     // ... point a client at proxy.endpoint() ...
//!     assert_eq!(proxy.count("GET"), 2);
//! }
//! ```
//!
//! The servers of this crate itself (shim, proxies) run on a runtime of its own, so they outlive the
//! runtime of the test that started them and are untouched by a paused clock.

mod faulty;
mod gcs_shim;
mod http_client;
mod origin;
mod process;
mod runtime;
mod sigv4;
mod throttle;
mod tools;

pub use faulty::{Fault, FaultyHttp, Rule, SeenRequest};
pub use gcs_shim::GcsShim;
pub use origin::{Origin, OriginKind, Running};
pub use process::Process;
pub use runtime::block_on;
pub use sigv4::{Credentials, sign};
pub use throttle::{Link, Switch, Throttle};
pub use tools::{Skipped, free_port, tool, tools_folder};

/// Starts an origin, or leaves the test (as passed, or as failed where tools are required) when its
/// program is not installed: `let origin = testkit::start!(Origin::minio());`
#[macro_export]
macro_rules! start {
    ($starting:expr) => {
        match $starting.await {
            Ok(running) => running,
            Err(skipped) => {
                skipped.report();
                return;
            }
        }
    };
}
