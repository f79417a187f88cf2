//! Connections from peers: accept, judge, read.

use super::{Incoming, Shared, close_code, tls};
use crate::ids::NodeId;
use crate::wire::{DecodeError, Frame, Lane, split_frame};
use bytes::{Buf, BytesMut};
use quinn::{Connection, RecvStream};
use rustls::pki_types::CertificateDer;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::{AbortHandle, JoinSet};

/// Connections of any state beyond which new ones are ignored: those of refused strangers linger for a moment while
/// they are being closed, and a flood of them must not add up.
const MAX_CONNECTIONS: usize = 1024;
const _: () = assert!(MAX_CONNECTIONS > 4 * crate::limits::MAX_MEMBERS);
/// Read from a stream at once, bytes.
const READ: usize = 256 * 1024;

/// Why a peer's connection is ended.
#[derive(Debug, thiserror::Error)]
enum Violation {
    #[error(transparent)]
    Frame(#[from] DecodeError),
    #[error("a stream opens with {0:#04x}, which names no lane")]
    UnknownLane(u8),
    #[error("a frame of the {actual:?} lane came on the {stream:?} lane")]
    WrongLane { stream: Lane, actual: Lane },
}

/// How reading a stream ended.
enum Ended {
    /// By the peer, by the network or by our own shutdown.
    Lost,
    Violation(Violation),
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// Accepts connections until the transport is closed.
pub(super) async fn accept(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    let shutdown = shared.shutdown.clone();
    if shutdown.run_until_cancelled(accept_each(&shared, &endpoint)).await.is_some() {
        // QUIC's own task ends early only when the socket fails for good.
        tracing::error!("the UDP socket failed; no peer can be reached until this node is restarted");
        shutdown.cancel();
    }
}

async fn accept_each(shared: &Arc<Shared>, endpoint: &quinn::Endpoint) {
    let bound = shared.options.max_handshakes.max(1);
    let mut handshakes = JoinSet::new();
    let mut oldest: VecDeque<(SocketAddr, AbortHandle)> = VecDeque::new();
    loop {
        let incoming = tokio::select! {
            Some(_) = handshakes.join_next() => continue,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        oldest.retain(|(_, handshake)| !handshake.is_finished());
        let remote = incoming.remote_address();
        if endpoint.open_connections() >= MAX_CONNECTIONS {
            shared.refusals.connection(remote, "too many connections");
            incoming.ignore();
            continue;
        }
        if handshakes.len() > bound / 2 && incoming.may_retry() {
            // Under pressure the other side must first show that its address is its own. Cannot fail: it may retry.
            let _retried = incoming.retry();
            continue;
        }
        while handshakes.len() >= bound {
            // Giving up the oldest, not refusing the newest: an honest handshake takes a round trip, and whoever wants
            // to keep members out has to win that race every time.
            if let Some((late, handshake)) = oldest.pop_front() {
                handshake.abort();
                shared.refusals.connection(late, "given up for newer attempts, too many are in progress");
            }
            handshakes.join_next().await;
        }
        oldest.push_back((remote, handshakes.spawn(handshake(Arc::clone(shared), incoming, remote))));
    }
}

async fn handshake(shared: Arc<Shared>, incoming: quinn::Incoming, remote: SocketAddr) {
    let limit = shared.options.handshake_timeout;
    let connecting = async { incoming.accept()?.await };
    match tokio::time::timeout(limit, connecting).await {
        Err(_) => shared.refusals.connection(remote, format_args!("the handshake took longer than {limit:?}")),
        Ok(Err(error)) => shared.refusals.connection(remote, error),
        Ok(Ok(connection)) => match proved_did(&connection) {
            Some(peer) => admit(&shared, peer, connection),
            None => {
                connection.close(close_code::NOT_A_MEMBER, b"no certificate");
                shared.refusals.connection(remote, "no certificate");
            }
        },
    }
}

/// The DID of the certificate that the handshake was signed with.
fn proved_did(connection: &Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let (end_entity, others) = chain.split_first()?;
    tls::certified_did(end_entity, others).ok()
}

/// Takes a peer's connection in; an earlier one of the same peer is closed (the peer lost it, or never had it).
fn admit(shared: &Arc<Shared>, peer: NodeId, connection: Connection) {
    let link = {
        let mut incoming = shared.incoming();
        // Judged again under the lock: the table may have changed since the handshake.
        let Some(link) = shared.members.get(&peer) else {
            connection.close(close_code::NOT_A_MEMBER, b"not a member any more");
            return;
        };
        if let Some(earlier) = incoming.insert(peer, connection.clone()) {
            earlier.close(close_code::REPLACED, b"connected again");
        }
        link
    };
    link.is_up.notify_one();
    shared.tasks.spawn(receive(Arc::clone(shared), peer, connection));
}

async fn receive(shared: Arc<Shared>, peer: NodeId, connection: Connection) {
    let shutdown = shared.shutdown.clone();
    match shutdown.run_until_cancelled(read_all(&shared, peer, &connection)).await {
        None => connection.close(close_code::GOING_AWAY, b"shutting down"),
        Some(Ended::Lost) => {}
        Some(Ended::Violation(violation)) => {
            let reason = violation.to_string();
            connection.close(close_code::VIOLATION, reason.as_bytes());
            shared.refusals.connection(connection.remote_address(), format_args!("{peer}: {reason}"));
        }
    }
    let mut incoming = shared.incoming();
    if incoming.get(&peer).is_some_and(|c| c.stable_id() == connection.stable_id()) {
        incoming.remove(&peer);
    }
}

async fn read_all(shared: &Arc<Shared>, peer: NodeId, connection: &Connection) -> Ended {
    // An empty stream tells the dialer that it is accepted.
    match connection.open_uni().await {
        // On a lost connection the reads below end at once.
        Ok(mut accepted) => drop(accepted.finish()),
        Err(_) => return Ended::Lost,
    }
    let mut readers = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    readers.spawn(read_lane(Arc::clone(shared), peer, stream));
                }
                Err(_) => return Ended::Lost,
            },
            Some(ended) = readers.join_next() => return ended.unwrap_or(Ended::Lost),
        }
    }
}

/// Reads one stream to its end. Waits when the inbox is full, and QUIC then lets the peer wait.
async fn read_lane(shared: Arc<Shared>, peer: NodeId, mut stream: RecvStream) -> Ended {
    let mut tag = [0];
    if stream.read_exact(&mut tag).await.is_err() {
        return Ended::Lost;
    }
    let [tag] = tag;
    let Some(lane) = Lane::from_tag(tag) else { return Violation::UnknownLane(tag).into() };
    let inlet = shared.inlets.lane(lane);
    let mut frames = Frames { stream, buffer: BytesMut::new() };
    loop {
        match frames.next(lane).await {
            Err(ended) => return ended,
            Ok(frame) => {
                shared.frames_received.fetch_add(1, Ordering::Relaxed);
                if inlet.send(Incoming { from: peer, frame }).await.is_err() {
                    return Ended::Lost;
                }
            }
        }
    }
}

/// The frames of a stream.
struct Frames {
    stream: RecvStream,
    buffer: BytesMut,
}

impl Frames {
    async fn next(&mut self, lane: Lane) -> Result<Frame, Ended> {
        loop {
            if let Some(frame) = self.split(lane)? {
                return Ok(frame);
            }
            // The buffer grows with what arrives, never by what a length announces.
            match self.stream.read_chunk(READ, true).await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk.bytes),
                Ok(None) | Err(_) => return Err(Ended::Lost),
            }
        }
    }

    fn split(&mut self, lane: Lane) -> Result<Option<Frame>, Violation> {
        let Some((value, taken)) = split_frame(&self.buffer)? else { return Ok(None) };
        let frame = Frame::decode(value)?;
        if frame.lane() != lane {
            return Err(Violation::WrongLane { stream: lane, actual: frame.lane() });
        }
        self.buffer.advance(taken);
        if self.buffer.is_empty() && self.buffer.capacity() > READ {
            // One large frame must not hold its memory for as long as the connection lasts.
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame))
    }
}
