//! The UDP socket and QUIC endpoint under all connections.

use super::BindError;
use super::identity::Identity;
use super::refusals::Refusals;
use super::tls::Credentials;
use crate::ids::NodeId;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Runtime, TokioRuntime, UdpPoller};
use quinn_proto::InvalidCid;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{HashMap, HashSet};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use tokio_util::sync::DropGuard;

/// QUIC version 1 (RFC 9000), the only one spoken.
const QUIC_V1: u32 = 1;
/// Smallest datagram that may open a connection (RFC 9000, section 14.1).
const MIN_INITIAL: usize = 1200;
/// Kernel buffers asked for, bytes; the kernel gives what its limits allow. A burst of appends is larger than its
/// usual default, and what does not fit is lost and sent again.
const KERNEL_BUFFER: usize = 4 * 1024 * 1024;
/// Handshakes that QUIC holds before they are looked at.
const MAX_INCOMING: usize = 256;
/// Bytes it buffers for all of those.
const MAX_INCOMING_BYTES: u64 = 1024 * 1024;
const NONCE: usize = 8;
const TAG: usize = 8;

/// Connection ids that this node recognises as its own, also after a restart: a nonce and a keyed tag on it. Packets
/// of a life before are answered with a stateless reset, so that peers redial at once instead of waiting for a timeout.
struct MarkedIds {
    mark: Mark,
    random: StdRng,
}

/// The key of the tag.
#[derive(Clone, Debug)]
struct Mark(hmac::Key);

impl Mark {
    fn tag(&self, nonce: &[u8]) -> [u8; TAG] {
        let mut tag = [0; TAG];
        for (to, from) in tag.iter_mut().zip(hmac::sign(&self.0, nonce).as_ref()) {
            *to = *from;
        }
        tag
    }

    fn are_ours(&self, id: &[u8]) -> bool {
        id.split_first_chunk::<NONCE>().is_some_and(|(nonce, tag)| self.tag(nonce) == tag)
    }
}

impl ConnectionIdGenerator for MarkedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; NONCE + TAG];
        let (nonce, tag) = id.split_at_mut(NONCE);
        self.random.fill_bytes(nonce);
        tag.copy_from_slice(&self.mark.tag(nonce));
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if self.mark.are_ours(id) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        NONCE + TAG
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// Addresses that members are dialed at.
#[derive(Debug, Default)]
pub(super) struct Dialed(RwLock<(HashMap<NodeId, SocketAddr>, HashSet<SocketAddr>)>);

impl Dialed {
    /// Notes where a member is dialed now; `None` when no longer.
    pub(super) fn set(&self, member: NodeId, address: Option<SocketAddr>) {
        let mut guard = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (members, addresses) = &mut *guard;
        match address {
            Some(a) => members.insert(member, canonical(a)),
            None => members.remove(&member),
        };
        *addresses = members.values().copied().collect();
    }

    fn contains(&self, address: SocketAddr) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).1.contains(&canonical(address))
    }
}

/// An IPv4 address as itself, also when an IPv6 socket shows it mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The socket that QUIC uses, with an eye on what arrives: QUIC drops foreign datagrams silently, an operator wants to
/// know of them. Nothing is withheld from QUIC.
#[derive(Debug)]
struct WatchedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    mark: Mark,
    dialed: Arc<Dialed>,
    refusals: Arc<Refusals>,
    /// Dropped last: by then the port is free.
    _released: DropGuard,
}

impl WatchedSocket {
    fn look_at(&self, datagrams: &[u8], meta: &RecvMeta) {
        // Members are trusted to speak QUIC, and their stateless resets look like noise by design.
        if meta.stride == 0 || self.dialed.contains(meta.addr) {
            return;
        }
        for datagram in datagrams.chunks(meta.stride) {
            if !self.is_plausible(datagram) {
                self.refusals.datagram(meta.addr, datagram.len());
            }
        }
    }

    /// Whether a datagram opens a QUIC connection or bears one of our connection ids (RFC 8999, RFC 9000 section 17).
    fn is_plausible(&self, datagram: &[u8]) -> bool {
        let Some((&first, rest)) = datagram.split_first() else { return false };
        if first & 0x80 == 0 {
            return rest.get(..NONCE + TAG).is_some_and(|id| self.mark.are_ours(id));
        }
        let Some((version, rest)) = rest.split_first_chunk::<4>() else { return false };
        let Some((&length, rest)) = rest.split_first() else { return false };
        let Some(id) = rest.get(..usize::from(length)) else { return false };
        let is_initial = first & 0x30 == 0;
        u32::from_be_bytes(*version) == QUIC_V1
            && ((is_initial && datagram.len() >= MIN_INITIAL) || self.mark.are_ours(id))
    }
}

impl AsyncUdpSocket for WatchedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let poller = Arc::clone(&self.inner).create_io_poller();
        Box::pin(Poller { poller, _socket: self })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, buffers, metas))?;
        for (buffer, meta) in buffers.iter().zip(metas.iter()).take(count) {
            if let Some(datagrams) = buffer.get(..meta.len) {
                self.look_at(datagrams, meta);
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// A poller that keeps its socket's release from being announced early.
#[derive(Debug)]
struct Poller {
    poller: Pin<Box<dyn UdpPoller>>,
    _socket: Arc<WatchedSocket>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poller.as_mut().poll_writable(cx)
    }
}

/// What an endpoint is made of.
pub(super) struct Parts<'a> {
    pub(super) identity: &'a Identity,
    pub(super) credentials: &'a Credentials,
    pub(super) listen: SocketAddr,
    pub(super) incoming: quinn::TransportConfig,
    pub(super) dialed: Arc<Dialed>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) released: DropGuard,
}

/// Binds the one socket over which this node both dials and is dialed.
pub(super) fn endpoint(parts: Parts<'_>) -> Result<quinn::Endpoint, BindError> {
    let listen = parts.listen;
    let failed = |source| BindError::Socket { address: listen, source };
    let socket = bind(listen).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address: listen },
        _ => failed(e),
    })?;
    let runtime = Arc::new(TokioRuntime);
    let mark = Mark(hmac::Key::new(hmac::HMAC_SHA256, &parts.identity.derive(b"connection ids")));
    let resets = hmac::Key::new(hmac::HMAC_SHA256, &parts.identity.derive(b"stateless resets"));
    let watched = WatchedSocket {
        inner: runtime.wrap_udp_socket(socket).map_err(failed)?,
        mark: mark.clone(),
        dialed: parts.dialed,
        refusals: parts.refusals,
        _released: parts.released,
    };
    let mut config = quinn::EndpointConfig::new(Arc::new(resets));
    config.supported_versions(vec![QUIC_V1]);
    config.cid_generator(move || Box::new(MarkedIds { mark: mark.clone(), random: StdRng::from_os_rng() }));
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(parts.credentials.server()?));
    server.transport_config(Arc::new(parts.incoming));
    server.max_incoming(MAX_INCOMING);
    server.incoming_buffer_size(MAX_INCOMING_BYTES / 16);
    server.incoming_buffer_size_total(MAX_INCOMING_BYTES);
    quinn::Endpoint::new_with_abstract_socket(config, Some(server), Arc::new(watched), runtime).map_err(failed)
}

fn bind(listen: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    socket.set_send_buffer_size(KERNEL_BUFFER)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}
