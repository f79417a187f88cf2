//! Connections between members: QUIC with mutual TLS 1.3.
//!
//! Every node dials every other and keeps one outgoing connection to each, which carries its own frames and nothing
//! else; so a pair has two connections, and no rule is needed for who dials or which of two wins. A connection has one
//! unidirectional stream per [`Lane`], each with a queue of its own on both sides: heartbeats wait behind nothing.
//!
//! Delivery is best effort: a frame that finds no connection or a full queue is dropped and counted, and Raft sends
//! what matters again. An incoming frame is attributed to the DID that the connection's certificate proved
//! (`tls.rs`), never to anything the frame says.

mod accept;
mod dial;
mod identity;
mod inbox;
mod refusals;
mod socket;
mod tls;

pub use identity::{IDENTITY_FILE, Identity, IdentityError};
pub use inbox::Inbox;
pub use tls::{ALPN, TlsError};

use crate::ids::NodeId;
use crate::limits::{MAX_FRAME, MAX_INFLIGHT_APPENDS};
use crate::wire::{Frame, Lane};
use inbox::Inlets;
use quinn::VarInt;
use refusals::Refusals;
use socket::Dialed;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tls::Credentials;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Bytes that a peer may send on one lane before they are read.
const LANE_WINDOW: u32 = 4 * 1024 * 1024;
const _: () = assert!(LANE_WINDOW as usize >= 2 * MAX_FRAME);
/// Longest wait for the endpoint to say goodbye in [`Transport::close`].
const GOODBYE: Duration = Duration::from_secs(3);

/// Codes with which a connection is closed, for the peer's log.
mod close_code {
    use quinn::VarInt;

    /// The node shuts down, or the peer's row changed.
    pub(super) const GOING_AWAY: VarInt = VarInt::from_u32(0);
    /// The peer stands in no member table in force.
    pub(super) const NOT_A_MEMBER: VarInt = VarInt::from_u32(1);
    /// The same peer has connected again.
    pub(super) const REPLACED: VarInt = VarInt::from_u32(2);
    /// The peer broke the protocol.
    pub(super) const VIOLATION: VarInt = VarInt::from_u32(3);
}

/// Another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub id: NodeId,
    /// Where it listens, `HOST:PORT`; looked up at each attempt to connect.
    pub address: String,
    /// It was a member once and is dialed only when it calls: to be told what changed since.
    pub former: bool,
}

/// A frame from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Who sent it, as its certificate proved.
    pub from: NodeId,
    /// What it sent.
    pub frame: Frame,
}

/// Timeouts and bounds. The defaults suit a data centre and a wide-area network alike.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often a silent connection is probed.
    pub keep_alive: Duration,
    /// Silence after which a connection counts as lost; several times `keep_alive`.
    pub idle_timeout: Duration,
    /// Longest time for an attempt to connect, in either direction.
    pub handshake_timeout: Duration,
    /// Pause after the first failed attempt; doubles with each further one, with jitter.
    pub min_backoff: Duration,
    /// Longest pause between attempts.
    pub max_backoff: Duration,
    /// Incoming handshakes in progress at once; beyond it the oldest is given up.
    pub max_handshakes: usize,
    /// Frames queued on the control lane, to each peer and from all peers together.
    pub control_queue: usize,
    /// Frames queued on the append lane, likewise. Each may hold [`crate::limits::MAX_APPEND_BYTES`], shared with the core's log.
    pub append_queue: usize,
    /// Frames queued on the bulk lane, likewise.
    pub bulk_queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(2),
            min_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            max_handshakes: 64,
            control_queue: 1024,
            append_queue: 2 * MAX_INFLIGHT_APPENDS,
            bulk_queue: 1024,
        }
    }
}

impl Options {
    const fn queue(&self, lane: Lane) -> usize {
        match lane {
            Lane::Control => self.control_queue,
            Lane::Append => self.append_queue,
            Lane::Bulk => self.bulk_queue,
        }
    }

    /// QUIC's parameters for a connection on which the peer may open `streams` streams.
    fn quic(&self, streams: u32) -> quinn::TransportConfig {
        let mut acks = quinn::AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(10)).max_ack_delay(Some(Duration::from_millis(5)));
        let lanes = 3;
        let mut config = quinn::TransportConfig::default();
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(streams))
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(self.idle_timeout.try_into().ok())
            .keep_alive_interval(Some(self.keep_alive))
            // A lane that nobody reads fills its own window; the connection's is large enough for all, so that the
            // control lane still moves.
            .stream_receive_window(VarInt::from_u32(LANE_WINDOW))
            .receive_window(VarInt::from_u32(lanes * LANE_WINDOW))
            .send_window(u64::from(lanes * LANE_WINDOW))
            .initial_rtt(Duration::from_millis(50))
            .ack_frequency_config(Some(acks));
        config
    }
}

/// Why a transport cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is taken.
    #[error("{address} (UDP) is in use by another process; stop it or choose another address with --listen")]
    InUse {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {address} (UDP)")]
    Socket {
        /// What was to be bound.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What became of a frame given to [`Transport::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sent {
    /// On its way; it may still be lost with the connection.
    Queued,
    /// Dropped: the peer takes frames of this lane more slowly than they come.
    QueueFull,
    /// Dropped: no connection to the peer at the moment.
    NotConnected,
    /// Dropped: not a peer.
    NotAMember,
}

/// The transport at a glance. Counts are since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Peers to which frames can be sent now.
    pub outgoing: usize,
    /// Peers from which frames can come now.
    pub incoming: usize,
    /// QUIC connections of any state, those being closed included.
    pub connections: usize,
    /// Tasks of this transport (one for accepting, one per peer, one per incoming connection).
    pub tasks: usize,
    /// Frames handed to connections.
    pub frames_sent: u64,
    /// Frames not sent: no connection, or a full queue.
    pub frames_dropped: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Connections and attempts refused.
    pub connections_refused: u64,
    /// Datagrams that belonged to nothing.
    pub datagrams_refused: u64,
}

/// The queues of an outgoing connection.
#[derive(Debug)]
struct Outlets {
    control: mpsc::Sender<Frame>,
    append: mpsc::Sender<Frame>,
    bulk: mpsc::Sender<Frame>,
}

impl Outlets {
    const fn lane(&self, lane: Lane) -> &mpsc::Sender<Frame> {
        match lane {
            Lane::Control => &self.control,
            Lane::Append => &self.append,
            Lane::Bulk => &self.bulk,
        }
    }
}

/// One peer, and the way to it while there is one.
#[derive(Debug)]
struct Link {
    id: NodeId,
    /// Where to dial next; a connection that stands is kept.
    address: Mutex<String>,
    /// See [`Peer::former`].
    former: AtomicBool,
    outlets: RwLock<Option<Outlets>>,
    /// The peer has just connected to us: worth dialing at once.
    is_up: Notify,
    cancel: CancellationToken,
}

impl Link {
    fn address(&self) -> String {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes another address or standing over.
    fn update(&self, peer: Peer) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = peer.address;
        if self.former.swap(peer.former, Ordering::Relaxed) && !peer.former {
            self.is_up.notify_one();
        }
    }

    fn outlets(&self) -> std::sync::RwLockReadGuard<'_, Option<Outlets>> {
        self.outlets.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_outlets(&self, outlets: Option<Outlets>) {
        *self.outlets.write().unwrap_or_else(PoisonError::into_inner) = outlets;
    }
}

/// Every peer of the tables in force, without this node.
#[derive(Debug, Default)]
struct Members(RwLock<BTreeMap<NodeId, Arc<Link>>>);

impl Members {
    fn get(&self, id: &NodeId) -> Option<Arc<Link>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn contains(&self, id: &NodeId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }
}

/// What all tasks share.
struct Shared {
    local: NodeId,
    options: Options,
    hello: Frame,
    credentials: Credentials,
    members: Arc<Members>,
    /// The newest incoming connection of each peer.
    incoming: Mutex<HashMap<NodeId, quinn::Connection>>,
    inlets: Inlets,
    dialed: Arc<Dialed>,
    refusals: Arc<Refusals>,
    frames_sent: AtomicU64,
    frames_dropped: AtomicU64,
    frames_received: AtomicU64,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
}

impl Shared {
    fn incoming(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, quinn::Connection>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The node's connections to its peers; cheap to clone. Everything ends when [`Transport::close`] is called or the last
/// clone is dropped.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    endpoint: Arc<Mutex<Option<quinn::Endpoint>>>,
    local_addr: SocketAddr,
    released: CancellationToken,
    _shutdown: Arc<DropGuard>,
}

impl Transport {
    /// Binds `listen` (UDP), accepts members and dials them. `hello` is the first frame on every connection.
    /// `members` may include this node's own row, which is skipped. Runs on the current tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    #[expect(clippy::unused_async, reason = "needs a runtime, and callers should not have to know")]
    pub async fn bind(
        identity: &Identity,
        listen: SocketAddr,
        members: Vec<Peer>,
        hello: Frame,
        options: Options,
    ) -> Result<(Self, Inbox), BindError> {
        let shutdown = CancellationToken::new();
        let released = CancellationToken::new();
        let table = Arc::new(Members::default());
        let judge = Arc::clone(&table);
        let credentials = Credentials::new(identity, Arc::new(move |id| judge.contains(id)))?;
        let (dialed, refusals) = (Arc::new(Dialed::default()), Arc::new(Refusals::new()));
        let endpoint = socket::endpoint(socket::Parts {
            identity,
            credentials: &credentials,
            listen,
            incoming: options.quic(3),
            dialed: Arc::clone(&dialed),
            refusals: Arc::clone(&refusals),
            released: released.clone().drop_guard(),
        })?;
        let local_addr = endpoint.local_addr().map_err(|source| BindError::Socket { address: listen, source })?;
        let (inlets, inbox) = inbox::inbox(|lane| options.queue(lane), shutdown.clone());
        let shared = Arc::new(Shared {
            local: identity.did(),
            options,
            hello,
            credentials,
            members: table,
            incoming: Mutex::default(),
            inlets,
            dialed,
            refusals,
            frames_sent: AtomicU64::new(0),
            frames_dropped: AtomicU64::new(0),
            frames_received: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            shutdown: shutdown.clone(),
        });
        shared.tasks.spawn(accept::accept(Arc::clone(&shared), endpoint.clone()));
        let transport = Self {
            shared,
            endpoint: Arc::new(Mutex::new(Some(endpoint))),
            local_addr,
            released,
            _shutdown: Arc::new(shutdown.drop_guard()),
        };
        transport.set_members(members);
        Ok((transport, inbox))
    }

    /// Queues a frame for a peer. Never blocks: without a connection or room in the lane's queue, the frame is dropped
    /// and counted.
    pub fn send(&self, to: NodeId, frame: Frame) -> Sent {
        let lane = frame.lane();
        let link = self.shared.members.get(&to);
        let sent = match link.as_ref().map(|link| link.outlets()) {
            None => Sent::NotAMember,
            Some(outlets) => match outlets.as_ref() {
                None => Sent::NotConnected,
                Some(outlets) => match outlets.lane(lane).try_send(frame) {
                    Ok(()) => return Sent::Queued,
                    Err(mpsc::error::TrySendError::Full(_)) => Sent::QueueFull,
                    Err(mpsc::error::TrySendError::Closed(_)) => Sent::NotConnected,
                },
            },
        };
        self.shared.frames_dropped.fetch_add(1, Ordering::Relaxed);
        sent
    }

    /// Whether frames can be sent to a peer now.
    #[must_use]
    pub fn connected(&self, id: &NodeId) -> bool {
        self.shared.members.get(id).is_some_and(|link| link.outlets().is_some())
    }

    /// Replaces the peers: dials and accepts only these from now on, and closes the connections of all others. A peer
    /// whose address changed is dialed there once the connection that stands has ended.
    pub fn set_members(&self, members: Vec<Peer>) {
        let Some(endpoint) = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        let mut added = Vec::new();
        {
            let mut table = self.shared.members.0.write().unwrap_or_else(PoisonError::into_inner);
            let mut old = std::mem::take(&mut *table);
            for peer in members.into_iter().filter(|p| p.id != self.shared.local) {
                let link = match old.remove(&peer.id) {
                    // A connection that stands is kept: whoever moves, or was just left out, is heard until it ends.
                    Some(link) => {
                        link.update(peer);
                        link
                    }
                    None => {
                        let link = Arc::new(Link {
                            id: peer.id,
                            address: Mutex::new(peer.address),
                            former: AtomicBool::new(peer.former),
                            outlets: RwLock::new(None),
                            is_up: Notify::new(),
                            cancel: self.shared.shutdown.child_token(),
                        });
                        added.push(Arc::clone(&link));
                        link
                    }
                };
                if let Some(twice) = table.insert(link.id, link) {
                    twice.cancel.cancel();
                }
            }
            old.values().for_each(|link| link.cancel.cancel());
        }
        // After the table: a connection admitted under the old one is in the map by now, one judged by the new is not.
        self.shared.incoming().retain(|id, connection| {
            let stays = self.shared.members.contains(id);
            if !stays {
                connection.close(close_code::NOT_A_MEMBER, b"not a member any more");
            }
            stays
        });
        for link in added {
            let dialing = dial::keep_connected(Arc::clone(&self.shared), endpoint.clone(), link);
            self.shared.tasks.spawn_on(dialing, &self.shared.runtime);
        }
    }

    /// The address bound, with the port that the system chose when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Figures for metrics and tests.
    #[must_use]
    pub fn stats(&self) -> Stats {
        // One lock at a time: elsewhere they nest in another order.
        let links: Vec<_> =
            self.shared.members.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let incoming = self.shared.incoming().len();
        Stats {
            outgoing: links.iter().filter(|l| l.outlets().is_some()).count(),
            incoming,
            connections: endpoint.map_or(0, |e| e.open_connections()),
            tasks: self.shared.tasks.len(),
            frames_sent: self.shared.frames_sent.load(Ordering::Relaxed),
            frames_dropped: self.shared.frames_dropped.load(Ordering::Relaxed),
            frames_received: self.shared.frames_received.load(Ordering::Relaxed),
            connections_refused: self.shared.refusals.connections(),
            datagrams_refused: self.shared.refusals.datagrams(),
        }
    }

    /// Tells every peer, ends every task, frees the port, and returns when all that is done. Further calls wait for
    /// the same end.
    pub async fn close(&self) {
        self.shared.shutdown.cancel();
        self.shared.tasks.close();
        let endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shared.tasks.wait().await;
        if let Some(endpoint) = endpoint {
            endpoint.close(close_code::GOING_AWAY, b"shutting down");
            if tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await.is_err() {
                tracing::warn!(address = %self.local_addr, "peers did not acknowledge the end of their connections in time");
            }
        }
        self.released.cancelled().await;
    }
}
