//! Members that begin with a snapshot hold the whole history in the end: fetched from the others, proved piece by piece.

use crate::snapshots::{cluster, fill, proved, prune};
use crate::support::{Cluster, until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use concordat::api::MemberOp;
use concordat::certificate::{Entry, Genesis, HeadCertificate, Signature};
use concordat::ids::{LogIndex, NodeId};
use concordat::limits::TILE;
use concordat::node::{Handle, QueryError};
use concordat::transport::{self, IDENTITY_FILE, Identity, Peer, Transport};
use concordat::wire::{Found, Frame, History, Piece};
use serde_bytes::ByteBuf;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinHandle;

/// Slower than any test waits for: a piece a minute, or so.
const HARDLY: u64 = 50;

async fn filled(node: &Handle) {
    until("the history is filled in", || async { node.status().history_complete.then_some(()) }).await;
    assert_eq!(node.status().history_from, LogIndex(1));
}

/// `concordat audit --data` on a stopped member, from the genesis file alone.
fn audit(data: &Path, genesis: &Genesis) {
    let file = data.join("genesis.json");
    std::fs::write(&file, genesis.to_json()).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_concordat"))
        .args(["audit", "--genesis"])
        .arg(&file)
        .arg("--data")
        .arg(data)
        .output()
        .expect("audit runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A member of number 3 that begins with a snapshot of more than two tiles, and hardly fetches anything before it.
async fn newcomer(cluster: &mut Cluster) -> LogIndex {
    fill(cluster.node(0), "before", 530).await;
    let index = prune(cluster).await;
    assert!(index.0 > 2 * TILE && !index.0.is_multiple_of(TILE));
    let member = cluster.prepare_another();
    let usual = std::mem::replace(&mut cluster.config.snapshots.history_bytes_per_s, HARDLY);
    cluster.start_joining(3).await;
    cluster.config.snapshots.history_bytes_per_s = usual;
    cluster.change(MemberOp::Add { member: member.clone() }).await;
    cluster.change(MemberOp::Promote { id: member.did }).await;
    cluster.settled().await;
    assert_eq!(cluster.node(3).status().first_index, index.next(), "it began with the snapshot");
    index
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_fills_in_its_history_goes_on_after_restarts_and_passes_every_audit() {
    let mut cluster = cluster().await;
    let index = newcomer(&mut cluster).await;
    let node = cluster.node(3);
    let status = node.status();
    assert!(!status.history_complete && status.history_from > LogIndex(TILE));
    assert!(matches!(node.receipt(LogIndex(1)), Err(QueryError::NotHere { from, .. }) if from == status.history_from));
    assert!(node.metrics().contains("concordat_history_complete 0\n"));
    // Quickly enough to fetch something, too slowly to be done before it is stopped.
    let usual = std::mem::replace(&mut cluster.config.snapshots.history_bytes_per_s, 60_000);
    cluster.stop_node(3).await;
    cluster.start_node(3).await;
    let node = cluster.node(3);
    let from = until("a tile is filled in", || async {
        let status = node.status();
        assert!(!status.history_complete, "too fast");
        (status.history_from < LogIndex(2 * TILE)).then_some(status.history_from)
    })
    .await;
    cluster.stop_node(3).await;
    cluster.config.snapshots.history_bytes_per_s = usual;
    cluster.start_node(3).await;
    assert!(cluster.node(3).status().history_from <= from, "what is filled in stays");
    filled(cluster.node(3)).await;
    cluster.settled().await;
    let node = cluster.node(3);
    assert!(node.metrics().contains("concordat_history_from 1\n"));
    proved(&cluster, node, 1);
    let id = node.entries(LogIndex(1), 10).expect("entries").entries.iter().find_map(|e| e.id).expect("a proposal");
    assert!(node.receipt_of(&id).expect("found by its id").body.is_none());
    check_certificates(&cluster, index);
    let data = cluster.data(3);
    cluster.stop_node(3).await;
    audit(&data, &cluster.genesis);
    cluster.close().await;
}

fn certificates(node: &Handle) -> Vec<String> {
    node.certificates(0, 1000).expect("certificates").certificates
}

/// What the newcomer holds below the snapshot is what others gave it, and they hold many.
fn check_certificates(cluster: &Cluster, index: LogIndex) {
    let below = |node: &Handle| {
        let all = certificates(node).into_iter().map(|text| STANDARD.decode(text).expect("base64"));
        let all = all.map(|bytes| HeadCertificate::decode(&bytes).expect("a certificate"));
        all.filter(|c| c.head.size <= index.0).collect::<Vec<_>>()
    };
    let others: Vec<HeadCertificate> = (0..3).flat_map(|n| below(cluster.node(n))).collect();
    let here = below(cluster.node(3));
    assert!(here.iter().all(|c| others.contains(c)));
    assert!(here.len() > 8 && here.iter().any(|c| c.head.size <= TILE), "{} certificates", here.len());
}

/// A member that tells the truth about some pieces, lies about one kind of them, and has nothing else.
struct Liar {
    transport: Transport,
    task: JoinHandle<()>,
    lies: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Certificates,
    Bodies,
    Headers,
}

fn subject(piece: &Piece) -> Option<Subject> {
    match piece {
        Piece::Certificates { .. } => Some(Subject::Certificates),
        Piece::Bodies { .. } => Some(Subject::Bodies),
        Piece::Headers { .. } => Some(Subject::Headers),
        Piece::Tile { .. } | Piece::Chunk { .. } => None,
    }
}

/// What the history is, as an honest node showed it.
#[derive(Clone)]
struct Truth {
    headers: Arc<Vec<Vec<u8>>>,
    bodies: Arc<Vec<Option<Arc<Entry>>>>,
    certificates: Arc<Vec<Arc<HeadCertificate>>>,
}

impl Truth {
    fn of(node: &Handle) -> Self {
        let mut pages = Vec::new();
        let mut from = Some(LogIndex(1));
        while let Some(next) = from {
            let page = node.entries(next, 1000).expect("entries");
            pages.extend(page.entries);
            from = page.next;
        }
        let entry = |text: &String| Arc::new(Entry::decode(&STANDARD.decode(text).expect("base64")).expect("an entry"));
        let certificate = |text: &String| {
            Arc::new(HeadCertificate::decode(&STANDARD.decode(text).expect("base64")).expect("a certificate"))
        };
        Self {
            headers: Arc::new(pages.iter().map(|p| hex::decode(&p.header).expect("hex")).collect()),
            bodies: Arc::new(pages.iter().map(|p| p.entry.as_ref().map(entry)).collect()),
            certificates: Arc::new(certificates(node).iter().map(certificate).collect()),
        }
    }

    fn tell(&self, piece: &Piece, lie: bool) -> Option<Found> {
        Some(match piece {
            Piece::Headers { first } => {
                let from = first.0 as usize - 1;
                let mut headers = self.headers[from..from + TILE as usize].to_vec();
                if lie {
                    // One of them, of another time.
                    let mut other = concordat::certificate::Header::decode(&headers[7]).expect("a header");
                    other.proposed_at += 1;
                    headers[7] = other.encode();
                }
                Found::Headers(headers.into_iter().map(ByteBuf::from).collect())
            }
            Piece::Certificates { above, upto } => {
                let within = |c: &&Arc<HeadCertificate>| *above < c.head.size && c.head.size <= *upto;
                let mut found: Vec<_> = self.certificates.iter().filter(within).cloned().collect();
                if lie {
                    // Everything is right but what is signed: an aggregate of another statement.
                    let other = self.certificates.iter().find(|c| !within(c)).expect("another certificate");
                    let foreign: Signature = other.halves[0].aggregate;
                    let mut forged = (**found.first().expect("one to forge")).clone();
                    forged.halves[0].aggregate = foreign;
                    found[0] = Arc::new(forged);
                }
                Found::Certificates(found)
            }
            Piece::Bodies { indexes } => {
                let at = |i: &LogIndex| self.bodies[i.0 as usize - 1].clone();
                let mut found: Vec<_> = indexes.iter().map_while(at).collect();
                if lie {
                    let mut other = (*found[0]).clone();
                    other.header.proposed_at += 1;
                    found[0] = Arc::new(other);
                }
                Found::Bodies(found)
            }
            Piece::Tile { .. } | Piece::Chunk { .. } => return None,
        })
    }
}

impl Liar {
    async fn start(cluster: &Cluster, n: usize, address: SocketAddr, about: Subject, truth: Truth) -> Self {
        let identity = Identity::load(&cluster.data(n).join(IDENTITY_FILE)).expect("an identity");
        let status_address = cluster.node(3).peer_address().to_string();
        let victim = cluster.ids[3];
        let peers = vec![Peer { id: victim, address: status_address, former: false }];
        let hello = Frame::Hello { http: None, version: "liar".into() };
        let bound = Transport::bind(&identity, address, peers, hello, transport::Options::default()).await;
        let (transport, mut inbox) = bound.expect("its port is free");
        let lies = Arc::new(AtomicUsize::new(0));
        let (told, answers) = (lies.clone(), transport.clone());
        let task = tokio::spawn(async move {
            while let Some(incoming) = inbox.recv().await {
                let Frame::History(History::Ask { id, piece }) = incoming.frame else { continue };
                let asked = subject(&piece);
                let found = match asked {
                    Some(asked) if asked == about => truth.tell(&piece, true),
                    Some(asked) if asked < about => truth.tell(&piece, false),
                    _ => None,
                };
                answers.send(incoming.from, Frame::History(History::Answer { id, found }));
                told.fetch_add(usize::from(asked == Some(about)), Ordering::SeqCst);
            }
        });
        Self { transport, task, lies }
    }

    async fn close(self) {
        self.transport.close().await;
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lying_member_sends_is_refused_and_another_one_asked() {
    let mut cluster = cluster().await;
    let mut liars: Vec<(usize, NodeId, SocketAddr)> = Vec::new();
    let index = newcomer(&mut cluster).await;
    for n in 4..7 {
        let member = cluster.prepare_another();
        liars.push((n, member.did, member.address.parse().expect("an address")));
        cluster.change(MemberOp::Add { member }).await;
    }
    until("the newcomer knows them", || async { (cluster.node(3).status().members.len() == 7).then_some(()) }).await;
    cluster.stop_node(3).await;
    let truth = Truth::of(cluster.node(0));
    for n in 0..3 {
        cluster.stop_node(n).await;
    }
    cluster.start_node(3).await;
    // One after another, each trusted so far: the first about certificates, the next about bodies, the last about headers.
    let mut running = Vec::new();
    for ((n, _, address), about) in liars.into_iter().zip([Subject::Certificates, Subject::Bodies, Subject::Headers]) {
        let liar = Liar::start(&cluster, n, address, about, truth.clone()).await;
        until("it lies", || async { (liar.lies.load(Ordering::SeqCst) > 0).then_some(()) }).await;
        let status = cluster.node(3).status();
        assert!(!status.history_complete && status.history_from > LogIndex(2 * TILE), "{about:?}");
        running.push(liar);
    }
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    filled(cluster.node(3)).await;
    for liar in running {
        liar.close().await;
    }
    cluster.settled().await;
    proved(&cluster, cluster.node(3), 1);
    check_certificates(&cluster, index);
    let data = cluster.data(3);
    cluster.stop_node(3).await;
    audit(&data, &cluster.genesis);
    cluster.close().await;
}
