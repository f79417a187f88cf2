//! The listener: accepts, bounds and ends connections.

use super::stall::StallGuard;
use super::{Api, routes};
use crate::limits::{HTTP_DRAIN_MS, HTTP_HEAD_MS, MAX_HTTP_CONNECTIONS, MAX_HTTP_HEAD};
use crate::node::Handle;
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Why the interface could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Plaintext without access control beyond this machine.
    #[error(
        "HTTP on {address} would let anyone on the network write: until access control exists it listens on loopback \
         only; use 127.0.0.1:{} or [::1]:{}", address.port(), address.port()
    )]
    NotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Another process listens there.
    #[error("HTTP port {address} is taken by another process; stop it or choose another with --http")]
    InUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The system refused otherwise.
    #[error("cannot listen for HTTP on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A running HTTP interface. Dropping it does not stop it: the shutdown token does.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    tasks: TaskTracker,
}

impl Server {
    /// Where it listens; the port is the one the system chose when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Returns when, after the shutdown token fired, every connection has ended: idle ones and streams at once, answers
    /// under way within [`HTTP_DRAIN_MS`].
    pub async fn finished(&self) {
        self.tasks.wait().await;
    }
}

/// Serves a node's HTTP interface until `shutdown` fires.
///
/// # Errors
/// [`ServeError`]: the address is not a loopback one, is taken, or the system refuses it.
pub async fn serve(handle: Handle, address: SocketAddr, shutdown: CancellationToken) -> Result<Server, ServeError> {
    let listener = listen(address).await?;
    let router = routes::router(Api::new(handle, shutdown.clone()));
    let drain = Duration::from_millis(HTTP_DRAIN_MS);
    run(listener, router, shutdown, drain).map_err(|source| ServeError::Listen { address, source })
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    if !address.ip().is_loopback() {
        return Err(ServeError::NotLoopback { address });
    }
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::InUse { address },
        _ => ServeError::Listen { address, source },
    })
}

/// What every connection shares.
#[derive(Clone)]
struct Shared {
    router: Router,
    shutdown: CancellationToken,
    /// How long an answer under way may take at shutdown.
    drain: Duration,
}

fn run(listener: TcpListener, router: Router, shutdown: CancellationToken, drain: Duration) -> io::Result<Server> {
    let local_addr = listener.local_addr()?;
    let tasks = TaskTracker::new();
    tasks.spawn(accept(listener, Shared { router, shutdown, drain }, tasks.clone()));
    tasks.close();
    Ok(Server { local_addr, tasks })
}

async fn accept(listener: TcpListener, shared: Shared, tasks: TaskTracker) {
    let room = Arc::new(Semaphore::new(MAX_HTTP_CONNECTIONS));
    loop {
        // Cancel-safe: neither a permit nor an accepted socket is lost by dropping these futures.
        let next = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shared.shutdown.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tasks.spawn(async move {
                    connection(stream, shared).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                // Out of descriptors: accepting again at once would fail the same way, in a busy loop.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, Shared { router, shutdown, drain }: Shared) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "an HTTP connection ended before it began");
        return;
    }
    let io = TokioIo::new(StallGuard::new(stream));
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(HTTP_HEAD_MS))
            .max_buf_size(MAX_HTTP_HEAD)
            .serve_connection(io, TowerToHyperService::new(router))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let Ok(ended) = tokio::time::timeout(drain, connection).await else {
                tracing::warn!("an HTTP answer was still under way at shutdown; its connection is closed");
                return;
            };
            ended
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection failed");
    }
}

#[cfg(test)]
pub(super) mod tests;
