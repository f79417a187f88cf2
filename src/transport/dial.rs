//! The way to one peer: dial, send, dial again.

use super::socket::Dialed;
use super::tls::SERVER_NAME;
use super::{Link, Outlets, Shared, TlsError, close_code};
use crate::ids::NodeId;
use crate::wire::{Frame, Lane};
use bytes::Bytes;
use quinn::{Connection, SendStream, VarInt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Queued frames are written together up to this many bytes.
const COALESCE: usize = 256 * 1024;
/// An attempt older than this is begun again when the peer proves, by connecting to us, that it is up: its packets may
/// have been lost on a host that was down, and QUIC sends them again ever more rarely.
const STALE: Duration = Duration::from_millis(250);

/// Why an attempt to connect failed.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("its address {address} cannot be looked up: {source}")]
    Lookup { address: String, source: io::Error },
    #[error("its address {address} has no IPv4 address, and this node listens on IPv4 only")]
    NoAddress { address: String },
    #[error(transparent)]
    Connect(#[from] quinn::ConnectError),
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// Closes a connection however its owner ends.
struct Closing {
    connection: Connection,
    code: VarInt,
    reason: &'static [u8],
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.connection.close(self.code, self.reason);
    }
}

/// Forgets where a member was dialed.
struct Forget<'a>(&'a Dialed, NodeId);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.set(self.1, None);
    }
}

/// Keeps one outgoing connection to a peer until the peer is no longer one.
pub(super) async fn keep_connected(shared: Arc<Shared>, endpoint: quinn::Endpoint, link: Arc<Link>) {
    let cancel = link.cancel.clone();
    cancel.run_until_cancelled(redial(&shared, &endpoint, &link)).await;
}

async fn redial(shared: &Arc<Shared>, endpoint: &quinn::Endpoint, link: &Arc<Link>) {
    let id = link.id;
    let config = match client_config(shared, id) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(peer = %id, %error, "this peer cannot be dialed");
            return;
        }
    };
    let _forget = Forget(&shared.dialed, id);
    let mut pause = shared.options.min_backoff;
    let mut random = StdRng::from_os_rng();
    let mut attempt = 0;
    let mut last_failure = String::new();
    loop {
        if link.former.load(Ordering::Relaxed) && !shared.incoming().contains_key(&id) {
            link.is_up.notified().await;
        }
        let limit = shared.options.handshake_timeout;
        let dialing = tokio::time::timeout(limit, dial(shared, endpoint, link, &config, attempt));
        let in_vain = async {
            tokio::time::sleep(STALE).await;
            link.is_up.notified().await;
        };
        let dialed = tokio::select! {
            dialed = dialing => dialed.unwrap_or(Err(DialError::Timeout(limit))),
            () = in_vain => continue,
        };
        match dialed {
            Ok(connection) => {
                last_failure.clear();
                let since = Instant::now();
                send_all(shared, link, connection).await;
                // A peer that hangs up at once is not redialed at full speed.
                if since.elapsed() >= shared.options.max_backoff {
                    pause = shared.options.min_backoff;
                }
            }
            Err(error) => {
                let reason = error.to_string();
                // One line per cause, not per attempt.
                if reason == last_failure {
                    tracing::debug!(peer = %id, address = link.address(), reason, "cannot connect");
                } else {
                    tracing::warn!(peer = %id, address = link.address(), reason, "cannot connect; retrying");
                    last_failure = reason;
                }
            }
        }
        attempt += 1;
        let jittered = pause.mul_f64(random.random_range(0.5..1.5));
        pause = (pause * 2).min(shared.options.max_backoff);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = link.is_up.notified() => {}
        }
    }
}

fn client_config(shared: &Shared, id: NodeId) -> Result<quinn::ClientConfig, TlsError> {
    let mut config = quinn::ClientConfig::new(Arc::new(shared.credentials.client(id)?));
    // One stream: the peer's word that it has accepted us.
    config.transport_config(Arc::new(shared.options.quic(1)));
    Ok(config)
}

async fn dial(
    shared: &Shared,
    endpoint: &quinn::Endpoint,
    link: &Link,
    config: &quinn::ClientConfig,
    attempt: usize,
) -> Result<Connection, DialError> {
    let address = resolve(endpoint, &link.address(), attempt).await?;
    shared.dialed.set(link.id, Some(address));
    let connection = endpoint.connect_with(config.clone(), address, SERVER_NAME)?.await?;
    // TLS 1.3 tells the dialer that the handshake is done before the other side has judged its certificate. Only the
    // stream that the peer opens says that it did.
    connection.accept_uni().await?;
    Ok(connection)
}

/// One of the addresses behind a name, another at each attempt.
async fn resolve(endpoint: &quinn::Endpoint, address: &str, attempt: usize) -> Result<SocketAddr, DialError> {
    let lookup = |source| DialError::Lookup { address: address.to_owned(), source };
    let v4_only = endpoint.local_addr().map_err(lookup)?.is_ipv4();
    let found: Vec<_> =
        tokio::net::lookup_host(address).await.map_err(lookup)?.filter(|a| a.is_ipv4() || !v4_only).collect();
    let chosen = attempt.checked_rem(found.len()).and_then(|i| found.get(i));
    chosen.copied().ok_or_else(|| DialError::NoAddress { address: address.to_owned() })
}

/// Sends what is queued until the connection ends.
async fn send_all(shared: &Arc<Shared>, link: &Arc<Link>, connection: Connection) {
    let peer = link.id;
    let closing = Closing { connection, code: close_code::GOING_AWAY, reason: b"closed by the sender" };
    let connection = &closing.connection;
    let mut writers = JoinSet::new();
    let mut senders = Vec::with_capacity(Lane::ALL.len());
    for lane in Lane::ALL {
        let (sender, queue) = mpsc::channel(shared.options.queue(lane));
        let stream = match connection.open_uni().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::info!(%peer, %error, "connection lost");
                return;
            }
        };
        if lane == Lane::Control {
            // The queue is new and holds at least one frame, so this cannot fail.
            let _queued = sender.try_send(shared.hello.clone());
        }
        senders.push(sender);
        writers.spawn(write_lane(Arc::clone(shared), lane, stream, queue));
    }
    let Ok([control, append, bulk]) = <[_; 3]>::try_from(senders) else { return };
    tracing::info!(%peer, remote = %connection.remote_address(), "connected");
    let _unpublish = Publish::new(link, Outlets { control, append, bulk });
    let reason = tokio::select! {
        reason = connection.closed() => reason.to_string(),
        Some(ended) = writers.join_next() => match ended {
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(())) => "its queue ended".to_owned(),
            Err(panic) => panic.to_string(),
        },
    };
    tracing::info!(%peer, reason, "connection lost");
}

/// Offers a connection's queues to [`super::Transport::send`] for as long as it lives.
struct Publish<'a>(&'a Link);

impl<'a> Publish<'a> {
    fn new(link: &'a Link, outlets: Outlets) -> Self {
        link.set_outlets(Some(outlets));
        Self(link)
    }
}

impl Drop for Publish<'_> {
    fn drop(&mut self) {
        self.0.set_outlets(None);
    }
}

/// Writes one lane's frames: at once when there is one, together when there are more. Encoding happens here, so that
/// it costs neither the caller of `send` nor the other lanes any time.
async fn write_lane(
    shared: Arc<Shared>,
    lane: Lane,
    mut stream: SendStream,
    mut queue: mpsc::Receiver<Frame>,
) -> Result<(), quinn::WriteError> {
    // The most urgent lane goes first whenever a packet has room; on a closed stream the first write says so.
    let _closed = stream.set_priority(-i32::from(lane.tag()));
    let mut batch = vec![lane.tag()];
    while let Some(first) = queue.recv().await {
        let mut frames = 0;
        let mut next = Some(first);
        while let Some(frame) = next {
            match frame.encode_into(&mut batch) {
                Ok(()) => frames += 1,
                Err(error) => {
                    tracing::error!(?lane, %error, "a frame was not sent; please report this defect");
                    shared.frames_dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            next = if batch.len() < COALESCE { queue.try_recv().ok() } else { None };
        }
        stream.write_chunk(Bytes::from(std::mem::take(&mut batch))).await?;
        shared.frames_sent.fetch_add(frames, Ordering::Relaxed);
    }
    Ok(())
}
