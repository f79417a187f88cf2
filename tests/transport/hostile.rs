//! What everyone else gets: a log line, and nothing more.

use crate::support::*;
use concordat::core::Message;
use concordat::ids::{NodeId, Term};
use concordat::transport::{ALPN, Options, Peer};
use concordat::wire::{Frame, LENGTH_PREFIX, PROTOCOL_VERSION};
use std::net::UdpSocket;

/// Two members that are connected, as seen from the one under attack.
struct Scene {
    target: Node,
    other: Node,
    log: Log,
    client: quinn::Endpoint,
    _guard: tracing::subscriber::DefaultGuard,
}

async fn scene() -> Scene {
    let (log, guard) = Log::capture();
    let [mut target, other] = cluster(&Options::default()).await;
    within("the greeting", target.inbox.recv()).await;
    Scene { target, other, log, client: client(), _guard: guard }
}

impl Scene {
    async fn intrude(&self, config: quinn::ClientConfig) -> String {
        intrude(&self.client, config, self.target.transport.local_addr()).await
    }

    /// Refused, told to the operator, without any effect, and the members' own connection is as it was.
    async fn assert_refused(&mut self, times: u64, reason: &str) {
        let transport = self.target.transport.clone();
        eventually("the refusal to be counted", || transport.stats().connections_refused >= times).await;
        let text = self.log.text();
        let line = text.lines().find(|l| l.contains("WARN") && l.contains("connection refused") && l.contains(reason));
        let line = line.unwrap_or_else(|| panic!("no line about {reason:?} in:\n{text}"));
        assert!(line.contains("remote=127.0.0.1:"), "{line}");
        assert_eq!(transport.stats().connections_refused, times, "{text}");
        assert_eq!(self.target.inbox.try_recv(), None, "nothing got through");
        assert_eq!(transport.stats().incoming, 1);
        self.other.send(&self.target.id(), &heartbeat(1)).await;
        assert_eq!(self.target.recv().await.frame, heartbeat(1));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_strangers_certificate_is_refused() {
    let mut scene = scene().await;
    let key = ed25519();
    let did = did_of(&key).to_string();
    let seen = scene.intrude(client_config(Some(Credentials::new(&key, std::slice::from_ref(&did))), &[ALPN])).await;
    assert!(seen.contains("is not a member"), "the stranger is told why: {seen}");
    scene.assert_refused(1, &format!("{did} is not a member")).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_members_did_over_another_key_is_refused() {
    let mut scene = scene().await;
    let key = ed25519();
    let stolen = scene.other.id().to_string();
    scene.intrude(client_config(Some(Credentials::new(&key, std::slice::from_ref(&stolen))), &[ALPN])).await;
    scene.assert_refused(1, &format!("the certificate is for {}, but its name says \"{stolen}\"", did_of(&key))).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_did_that_is_not_the_only_name_is_refused() {
    let mut scene = scene().await;
    let member = Credentials::of(scene.other.dir.path());
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&member.key, &rcgen::PKCS_ED25519).expect("a key");
    let own = scene.other.id().to_string();
    let cases =
        [vec![], vec!["did:key:z6Mk".to_owned()], vec![own.clone(), "urn:x".to_owned()], vec!["urn:x".to_owned(), own]];
    for (times, names) in (1..).zip(cases) {
        scene.intrude(client_config(Some(Credentials::new(&key, &names)), &[ALPN])).await;
        scene.assert_refused(times, "but its name says").await;
    }
}

/// Certificates are no secret: the member shows its own to whoever connects.
#[tokio::test(flavor = "current_thread")]
async fn a_members_copied_certificate_without_its_key_is_refused() {
    let mut scene = scene().await;
    let lured = scene
        .client
        .connect_with(client_config(None, &[ALPN]), scene.other.transport.local_addr(), "concordat")
        .expect("a valid address");
    let connection = within("the member's certificate", lured).await.expect("a client sees the server first");
    let shown = connection.peer_identity().expect("a certificate").downcast::<Vec<_>>().expect("certificates");
    let copied = Credentials { chain: *shown, key: ed25519().serialize_der().into() };
    scene.intrude(client_config(Some(copied), &[ALPN])).await;
    scene.assert_refused(1, "BadSignature").await;
}

#[tokio::test(flavor = "current_thread")]
async fn another_kind_of_key_is_refused() {
    let mut scene = scene().await;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let chain = vec![certificate(&key, &[scene.other.id().to_string()])];
    let credentials = Credentials { chain, key: ed25519().serialize_der().into() };
    scene.intrude(client_config(Some(credentials), &[ALPN])).await;
    scene.assert_refused(1, "not Ed25519").await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_chain_of_certificates_is_refused() {
    let mut scene = scene().await;
    let mut member = Credentials::of(scene.other.dir.path());
    member.chain.push(certificate(&ed25519(), &["urn:authority".to_owned()]));
    scene.intrude(client_config(Some(member), &[ALPN])).await;
    scene.assert_refused(1, "2 certificates where exactly one").await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_without_a_certificate_is_refused() {
    let mut scene = scene().await;
    scene.intrude(client_config(None, &[ALPN])).await;
    scene.assert_refused(1, "sent no certificates").await;
}

#[tokio::test(flavor = "current_thread")]
async fn another_application_protocol_is_refused_even_from_a_member() {
    let mut scene = scene().await;
    for (times, alpn) in (1..).zip([&[b"h3".as_slice()][..], &[b"concordat/2"], &[]]) {
        let member = Credentials::of(scene.other.dir.path());
        scene.intrude(client_config(Some(member), alpn)).await;
        scene.assert_refused(times, "any known protocol").await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_node_does_not_accept_itself() {
    let mut scene = scene().await;
    let own = Credentials::of(scene.target.dir.path());
    scene.intrude(client_config(Some(own), &[ALPN])).await;
    scene.assert_refused(1, "is not a member").await;
}

/// The address of one member leads to another: a mistake in the table, or someone in between.
#[tokio::test(flavor = "current_thread")]
async fn a_member_that_answers_in_place_of_another_is_refused_by_the_dialer() {
    let (log, _guard) = Log::capture();
    let [a, b, mut c] = cluster(&Options::default()).await;
    let misled = Peer { id: b.id(), address: c.transport.local_addr().to_string(), former: false };
    // The connection that stands would be kept.
    a.transport.set_members(vec![c.peer()]);
    a.transport.set_members(vec![misled, c.peer()]);
    let told = format!("{} answers where {} was dialed", c.id(), b.id());
    eventually("the refusal to be logged", || log.text().lines().any(|l| l.contains("WARN") && l.contains(&told)))
        .await;
    assert!(!a.transport.connected(&b.id()));
    while let Some(incoming) = c.inbox.try_recv() {
        assert!(matches!(incoming.frame, Frame::Hello { .. }));
    }
    assert!(a.transport.connected(&c.id()), "the rightful connection is untouched");
}

#[tokio::test(flavor = "current_thread")]
async fn garbage_datagrams_are_logged_and_change_nothing() {
    let mut scene = scene().await;
    let socket = UdpSocket::bind(LOOPBACK).expect("a port");
    let mut initial = vec![0; 1200];
    initial[..6].copy_from_slice(&[0xc0, 0, 0, 0, 99, 8]);
    let cases: [&[u8]; 7] =
        [b"x", b"GET / HTTP/1.1\r\n\r\n", &[0; 1200], &[0xff; 1500], &[0x40; 64], &[0x80; 5], &initial];
    for datagram in cases {
        socket.send_to(datagram, scene.target.transport.local_addr()).expect("loopback takes it");
    }
    let transport = scene.target.transport.clone();
    eventually("the garbage to be counted", || transport.stats().datagrams_refused == cases.len() as u64).await;
    assert_eq!(scene.log.count("datagram refused"), cases.len());
    assert!(scene.log.text().contains(&format!("remote={}", socket.local_addr().expect("bound"))));
    assert_eq!(transport.stats().connections_refused, 0);
    assert_eq!(scene.target.inbox.try_recv(), None);
    scene.other.send(&scene.target.id(), &heartbeat(1)).await;
    assert_eq!(scene.target.recv().await.frame, heartbeat(1));
    assert_eq!(transport.stats().datagrams_refused, cases.len() as u64, "real traffic is not taken for garbage");
}

/// Members that turn bad: each offence ends the offender's connection and no other.
#[tokio::test(flavor = "current_thread")]
async fn a_member_that_breaks_the_protocol_loses_its_connection_only() {
    let (log, _guard) = Log::capture();
    let [mut target, honest] = cluster(&Options::default()).await;
    let (dir, bad) = identity();
    let nowhere = UdpSocket::bind(LOOPBACK).expect("a port").local_addr().expect("bound").to_string();
    target.transport.set_members(vec![honest.peer(), Peer { id: bad.did(), address: nowhere, former: false }]);
    let valid = stream_bytes(&[heartbeat(1)]);
    let mut other_version = valid.clone();
    other_version[1 + LENGTH_PREFIX] = 9;
    let mut trailing = valid.clone();
    trailing.push(0);
    trailing[LENGTH_PREFIX] += 1;
    let too_long = [vec![0], u32::MAX.to_be_bytes().to_vec()].concat();
    let just_too_long =
        [vec![1], u32::try_from(concordat::limits::MAX_FRAME + 1).expect("small").to_be_bytes().to_vec()].concat();
    let offences: [(Vec<u8>, &str); 8] = [
        (too_long, "a frame of 4294967295 bytes is announced"),
        (just_too_long, "a frame of 2097153 bytes is announced"),
        (vec![0, 0, 0, 0, 0], "a frame of 0 bytes is announced"),
        (vec![0, 0, 0, 0, 3, PROTOCOL_VERSION, 0xc1, 0xc1], "does not decode"),
        (other_version, "protocol version 9"),
        (trailing, "1 bytes follow"),
        (vec![77], "0x4d, which names no lane"),
        (
            [vec![0], stream_bytes(&[ballot(1, 1)])[1..].to_vec()].concat(),
            "a frame of the Append lane came on the Control lane",
        ),
    ];
    let client = client();
    for (bytes, reason) in offences {
        let config = client_config(Some(Credentials::of(dir.path())), &[ALPN]);
        let connection = within(
            "the member's handshake",
            client.connect_with(config, target.transport.local_addr(), "x").expect("valid"),
        )
        .await
        .expect("a member is accepted");
        let mut stream = within("a stream", connection.open_uni()).await.expect("a member may open streams");
        let _written = stream.write_all(&bytes).await;
        let ended = within("the offender to be cut off", connection.closed()).await.to_string();
        assert!(ended.contains(reason), "{ended} instead of {reason}");
        assert!(log.text().contains(reason), "{reason} in {}", log.text());
    }
    eventually("the offender to be gone", || target.transport.stats().incoming == 1).await;
    honest.send(&target.id(), &heartbeat(2)).await;
    assert_eq!(target.recv().await, concordat::transport::Incoming { from: honest.id(), frame: heartbeat(2) });
    assert_eq!(target.inbox.try_recv(), None);
}

/// What a frame says of its sender counts for nothing.
#[tokio::test(flavor = "current_thread")]
async fn a_frame_is_attributed_to_the_certificate_that_brought_it() {
    let [mut target, other] = cluster(&Options::default()).await;
    within("the greeting", target.inbox.recv()).await;
    let claim = concordat::certificate::ElectionClaim {
        term: Term(9),
        candidate: NodeId([9; 32]),
        last_term: Term(8),
        last_size: 1,
        last_root: concordat::ids::Digest::ZERO,
    };
    other.send(&target.id(), &Frame::Core(Message::RequestVote { claim, under: Vec::new(), transfer: false })).await;
    assert_eq!(target.recv().await.from, other.id());
}
