//! What a node does while its disk or its state machine stands still: whole nodes, with the devices held from inside.

use super::*;
use crate::api::{ProposalState, ProposalStatus, Propose, ProposeError, Wait};
use crate::certificate::{Member, MemberTable, Policy, QuorumRule, Role, SecretKey};
use futures::StreamExt;
use serde_json::json;
use std::time::Duration;

/// How long any condition may take before a test fails: far beyond what a loaded machine needs.
const DEADLINE: Duration = Duration::from_secs(60);

struct Nodes {
    handles: Vec<Handle>,
    _root: tempfile::TempDir,
}

impl Nodes {
    /// One member per policy, on ports of their own, with a leader.
    async fn start(policies: &[Policy]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (mut listens, mut members) = (Vec::new(), Vec::new());
        for (n, policy) in policies.iter().enumerate() {
            let dir = root.path().join(n.to_string());
            std::fs::create_dir(&dir).unwrap();
            let identity = Identity::create(&dir).unwrap();
            let key = SecretKey::generate(&identity.did().0);
            Store::create(&dir.join(STORE_DIR), identity.did(), &key).unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let listen = socket.local_addr().unwrap();
            listens.push((dir, listen, socket));
            members.push(Member {
                did: identity.did(),
                bls_key: key.public(),
                possession: key.prove_possession(),
                address: listen.to_string(),
                role: Role::Voter,
                policy: *policy,
            });
        }
        let genesis = Genesis::new("test", QuorumRule::Majority, MemberTable::new(members).unwrap()).unwrap();
        let mut handles = Vec::new();
        for (data, listen, socket) in listens {
            drop(socket);
            let options = Options { data, genesis: genesis.clone(), listen, http: None, config: Config::default() };
            handles.push(start(options).await.unwrap());
        }
        let nodes = Self { handles, _root: root };
        until("a leader", || nodes.handles.iter().all(|n| n.shared.view().leader.is_some())).await;
        nodes
    }

    /// The leader, and the others.
    fn leader(&self) -> (&Handle, Vec<&Handle>) {
        let leader = self.handles[0].shared.view().leader.unwrap();
        let (mut leads, others): (Vec<_>, Vec<_>) = self.handles.iter().partition(|n| n.id() == leader);
        (leads.pop().unwrap(), others)
    }

    async fn close(self) {
        for node in &self.handles {
            node.close().await;
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        while !condition() {
            tick.tick().await;
        }
    };
    within(what, poll).await;
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("within {DEADLINE:?}: {what}"))
}

fn named(name: &str) -> Propose {
    Propose {
        request_id: Some(name.into()),
        ttl_ms: Some(300_000),
        wait_ms: Some(300_000),
        ..Propose::new(json!({ "named": name }))
    }
}

type Answer = tokio::task::JoinHandle<Result<ProposalStatus, ProposeError>>;

fn submit(node: &Handle, propose: Propose) -> Answer {
    let node = node.clone();
    tokio::spawn(async move { node.submit(propose).await })
}

async fn answer(of: Answer) -> ProposalStatus {
    within("the answer", of).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_between_commit_and_apply_is_answered_and_leaves_nothing_pending() {
    let nodes = Nodes::start(&[Policy::Auto]).await;
    let node = &nodes.handles[0];
    until("what was committed is applied", || {
        let status = node.status();
        status.applied_index == status.last_index && status.last_index > LogIndex(0)
    })
    .await;
    let stalled = node.shared.store.stall_archive();
    let first = submit(node, named("a"));
    until("it is committed and not applied", || {
        let status = node.status();
        status.snapshot.commit_index > status.applied_index && status.snapshot.pending_proposals == 0
    })
    .await;
    let repeats = [Wait::Accepted, Wait::Committed].map(|wait| Propose { wait, ..named("a") });
    let mut repeats = repeats.map(|repeat| Box::pin(node.submit(repeat)));
    for repeat in &mut repeats {
        assert!(futures::poll!(repeat).is_pending(), "handed over, and not answered yet");
    }
    // The owner takes events in order: once this one is taken, so were the repeats.
    let another = answer(submit(node, Propose { wait: Wait::Accepted, ..named("b") })).await;
    drop(stalled);
    let first = answer(first).await;
    for repeat in repeats {
        let repeat = within("the repeat's answer", repeat).await.unwrap();
        assert_eq!((repeat.id, repeat.index), (first.id, first.index));
    }
    assert_ne!(another.id, first.id);
    until("nothing is pending", || node.consensus_snapshot().pending_proposals == 0).await;
    nodes.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_announced_only_when_it_is_durable_and_what_it_covers_is_applied() {
    let nodes = Nodes::start(&[Policy::Auto]).await;
    let node = &nodes.handles[0];
    let shared = node.shared.clone();
    let mut announced = shared.certificate.subscribe();
    let watch = async {
        let mut seen = 0;
        while seen < 50 {
            announced.changed().await.unwrap();
            let size = announced.borrow_and_update().as_ref().map_or(0, |c| c.head.size);
            let durable = shared.store.latest_certificate().map_or(0, |c| c.head.size);
            assert!(size <= durable, "announced {size}, durable {durable}");
            assert!(size <= shared.applied.borrow().0, "announced {size} before it was applied");
            node.receipt(LogIndex(size)).expect("what is announced has a receipt");
            seen += 1;
        }
    };
    let load = async {
        for n in 0.. {
            answer(submit(node, named(&n.to_string()))).await;
        }
    };
    within("fifty certificates", async { tokio::select! { () = watch => {}, () = load => {} } }).await;
    nodes.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_as_certified_is_proved_and_streamed_while_entries_are_applied_late() {
    let nodes = Nodes::start(&[Policy::Auto; 3]).await;
    let (leader, others) = nodes.leader();
    let mut commits = leader.commits(LogIndex(1));
    let stalled = leader.shared.store.stall_archive();
    let mine = submit(leader, named("a"));
    answer(submit(others[0], named("b"))).await;
    let status = leader.status();
    assert!(status.certified_index <= status.applied_index, "{status:?}");
    drop(stalled);
    let mine = answer(mine).await;
    assert_eq!(mine.state, ProposalState::Certified);
    leader.receipt(mine.index.unwrap()).expect("what is answered as certified has a receipt");
    for _ in 0..2 {
        within("the commit", commits.next()).await.expect("no end").expect("no error");
    }
    nodes.close().await;
}
