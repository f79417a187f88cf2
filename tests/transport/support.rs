//! Nodes, strangers and a captured log for the transport's tests.

#![allow(dead_code, reason = "each test binary uses a part")]

use concordat::certificate::{Request, SignedFor};
use concordat::core::{Ballot, Message};
use concordat::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use concordat::transport::{Identity, Inbox, Incoming, Options, Peer, Sent, Transport};
use concordat::wire::Frame;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::future::Future;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Far beyond what anything here takes; reached only by a failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) identity: Identity,
    pub(crate) transport: Transport,
    pub(crate) inbox: Inbox,
}

pub(crate) fn hello(name: &str) -> Frame {
    Frame::Hello { http: None, version: name.to_owned() }
}

pub(crate) fn identity() -> (tempfile::TempDir, Identity) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let identity = Identity::create(dir.path()).expect("an identity");
    (dir, identity)
}

/// A node that listens and knows nobody yet.
pub(crate) async fn node(options: Options) -> Node {
    let (dir, identity) = identity();
    let (transport, inbox) =
        Transport::bind(&identity, LOOPBACK, Vec::new(), hello("test"), options).await.expect("a free port");
    Node { dir, identity, transport, inbox }
}

impl Node {
    pub(crate) fn id(&self) -> NodeId {
        self.identity.did()
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer { id: self.id(), address: self.transport.local_addr().to_string(), former: false }
    }

    /// The next frame that is no `Hello`.
    pub(crate) async fn recv(&mut self) -> Incoming {
        loop {
            let incoming = within("a frame", self.inbox.recv()).await.expect("the transport is open");
            if !matches!(incoming.frame, Frame::Hello { .. }) {
                return incoming;
            }
        }
    }

    /// Sends as soon as there is a connection.
    pub(crate) async fn send(&self, to: &NodeId, frame: &Frame) {
        within("a connection to send on", async {
            while self.transport.send(*to, frame.clone()) != Sent::Queued {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// Nodes that know each other and are connected both ways.
pub(crate) async fn cluster<const N: usize>(options: &Options) -> [Node; N] {
    let mut nodes = Vec::new();
    for _ in 0..N {
        nodes.push(node(options.clone()).await);
    }
    let peers: Vec<_> = nodes.iter().map(Node::peer).collect();
    nodes.iter().for_each(|n| n.transport.set_members(peers.clone()));
    for n in &nodes {
        eventually("all connections", || {
            let stats = n.transport.stats();
            (stats.outgoing, stats.incoming) == (N - 1, N - 1)
        })
        .await;
    }
    nodes.try_into().unwrap_or_else(|_| unreachable!("N nodes were made"))
}

pub(crate) fn heartbeat(context: u64) -> Frame {
    Frame::Core(Message::Heartbeat {
        term: Term(1),
        session: 1,
        to_keys: vec![concordat::certificate::PublicKey([1; 48])],
        round: 0,
        commit: LogIndex(1),
        committed: LogIndex(0),
        sign_point: LogIndex(0),
        wall: context,
        election: None,
    })
}

/// A frame of the append lane with a payload, numbered by its term.
pub(crate) fn ballot(number: u64, size: usize) -> Frame {
    let origin = NodeId([7; 32]);
    Frame::Core(Message::Ballot {
        term: Term(number),
        ballot: Arc::new(Ballot {
            id: ProposalId { term: Term(1), seq: number, origin },
            kind: concordat::certificate::Kind::Proposal,
            request: Request { client: "c".into(), request_id: "r".into(), deadline_ms: 1 },
            salt: [1; 16],
            payload: vec![0x5a; size],
            required_quorum: 2,
            ttl_ms: 5000,
            under: SignedFor { genesis_id: Digest([2; 32]), epoch: Epoch(0), epoch_hash: Digest([3; 32]) },
        }),
    })
}

pub(crate) fn number_of(frame: &Frame) -> Option<u64> {
    match frame {
        Frame::Core(Message::Ballot { term, .. }) => Some(term.0),
        Frame::Core(Message::Heartbeat { wall, .. }) => Some(*wall),
        Frame::Submit { handle, .. } => Some(*handle),
        _ => None,
    }
}

/// What is logged on this thread while the guard lives.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(crate) fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        (log, guard)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no writer panicked")).into_owned()
    }

    pub(crate) fn count(&self, needle: &str) -> usize {
        self.text().matches(needle).count()
    }
}

/// Takes any server for any DID.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Presents a certificate whether or not the key fits it.
#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// What a client shows of itself.
pub(crate) struct Credentials {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivatePkcs8KeyDer<'static>,
}

/// A certificate over a key with these URI names.
pub(crate) fn certificate(key: &rcgen::KeyPair, names: &[String]) -> CertificateDer<'static> {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names =
        names.iter().map(|n| rcgen::SanType::URI(n.as_str().try_into().expect("ASCII"))).collect();
    params.self_signed(key).expect("a certificate").der().clone()
}

pub(crate) fn ed25519() -> rcgen::KeyPair {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key")
}

pub(crate) fn did_of(key: &rcgen::KeyPair) -> NodeId {
    NodeId(key.public_key_raw().try_into().expect("an Ed25519 key"))
}

impl Credentials {
    /// A certificate over a key, under any names.
    pub(crate) fn new(key: &rcgen::KeyPair, names: &[String]) -> Self {
        Self { chain: vec![certificate(key, names)], key: key.serialize_der().into() }
    }

    /// Those of a real node, read from its identity file as the node itself would.
    pub(crate) fn of(node_dir: &std::path::Path) -> Self {
        let pem = std::fs::read(node_dir.join(concordat::transport::IDENTITY_FILE)).expect("the identity file");
        let der = <PrivatePkcs8KeyDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(&pem).expect("PEM");
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).expect("a key");
        Self::new(&key, &[did_of(&key).to_string()])
    }
}

pub(crate) fn client_config(credentials: Option<Credentials>, alpn: &[&[u8]]) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(Credentials { chain, key }) => {
            let key = provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(key)).expect("a key");
            builder.with_client_cert_resolver(Arc::new(Presents(Arc::new(CertifiedKey::new(chain, key)))))
        }
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).expect("initial keys")))
}

/// A client of its own, outside the code under test.
pub(crate) fn client() -> quinn::Endpoint {
    quinn::Endpoint::client(LOOPBACK).expect("a free port")
}

/// A stream's opening bytes: its lane, then frames.
pub(crate) fn stream_bytes(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = vec![frames.first().expect("at least one frame").lane().tag()];
    frames.iter().for_each(|f| f.encode_into(&mut bytes).expect("a frame"));
    bytes
}

/// Connects, sends what it can of a heartbeat, and returns why the connection ended.
pub(crate) async fn intrude(client: &quinn::Endpoint, config: quinn::ClientConfig, target: SocketAddr) -> String {
    let attempt = async {
        let connection = client.connect_with(config, target, "concordat").expect("a valid address").await?;
        if let Ok(mut stream) = connection.open_uni().await {
            // The server may hang up at any moment; that is the point.
            let _written = stream.write_all(&stream_bytes(&[heartbeat(666)])).await;
            let _finished = stream.finish();
        }
        Err::<(), _>(connection.closed().await)
    };
    match within("the intruder to be thrown out", attempt).await {
        Err(error) => error.to_string(),
        Ok(()) => unreachable!("ends with an error"),
    }
}
