//! The kit's own runtime: its servers live here, whatever runtime a test uses.
//!
//! Invariant: nothing in this crate runs on the caller's runtime except the wait for an answer.

use std::future::Future;
use std::sync::OnceLock;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            // Enough for a proxy in front of a proxy; test machines have two cores.
            .worker_threads(2)
            .thread_name("testkit")
            .enable_all()
            .build()
            .expect("threads can be started")
    })
}

/// Starts a task on the kit's runtime.
pub(crate) fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    runtime().spawn(future)
}

/// Runs a future on the kit's runtime and gives its output to a caller on any other runtime.
pub(crate) async fn on_kit<F>(future: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match spawn(future).await {
        Ok(output) => output,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// Runs a future to its end from a test that has no runtime. Must not be called from inside one.
pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// Binds a listener on a free loopback port, within the kit's runtime.
pub(crate) fn listen() -> (tokio::net::TcpListener, std::net::SocketAddr) {
    let _inside = runtime().enter();
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    listener.set_nonblocking(true).expect("a socket can be made non-blocking");
    (tokio::net::TcpListener::from_std(listener).expect("the runtime drives sockets"), address)
}
