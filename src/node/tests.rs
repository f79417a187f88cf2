//! What a node does while its disk or its state machine stands still: whole nodes, with the devices held from inside.

use super::executor::Event;
use super::*;
use crate::api::{ProposalState, ProposalStatus, Propose, ProposeError, VoteError, Wait};
use crate::certificate::{Head, HeadCertificate, Member, MemberTable, Policy, QuorumRule, Role, SecretKey};
use crate::core::Message;
use crate::ids::{Digest, Term};
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
            let options = Options {
                data,
                genesis: genesis.clone(),
                listen,
                http: None,
                config: Config::default(),
                join: false,
                epochs: EpochChain::default(),
            };
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
    // Several at a time, so that the owner always has something else to do while a certificate is being written.
    let load = futures::future::join_all((0..16).map(|client| async move {
        for n in 0.. {
            answer(submit(node, named(&format!("{client}:{n}")))).await;
        }
    }));
    within("fifty certificates", async {
        tokio::select! { () = watch => {}, _ = load => {} }
    })
    .await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_hangs_with_a_vote_goes_on_leading() {
    let nodes = Nodes::start(&[Policy::Manual; 3]).await;
    let (leader, others) = nodes.leader();
    let term = leader.status().snapshot.term;
    let open = |node: &Handle, name: &str| node.ballots().into_iter().find(|b| b.request_id == name).map(|b| b.id);
    let first = submit(leader, Propose { wait: Wait::Accepted, ..named("first") });
    answer(first).await;
    until("the leader is asked", || open(leader, "first").is_some()).await;
    // So that the vote is the next that goes to the disk.
    until("all else is written", || leader.status().certified_index == leader.status().last_index).await;
    let stalled = leader.shared.store.stall_disk();
    let id = open(leader, "first").unwrap();
    let voting = leader.clone();
    let hanging = tokio::spawn(async move { voting.cast_vote(id, true).await });
    until("the vote waits for the disk", || open(leader, "first").is_none()).await;
    // Each of these asks the leader's member too, whose record cannot be read while its disk hangs.
    for n in 0..20 {
        let name = n.to_string();
        let proposal = submit(others[0], Propose { wait: Wait::Committed, ..named(&name) });
        for node in &others {
            until("a follower is asked", || open(node, &name).is_some()).await;
            node.cast_vote(open(node, &name).unwrap(), true).await.unwrap();
        }
        // Without the leader's disk nothing is certified, but a quorum's disks commit.
        assert_eq!(answer(proposal).await.state, ProposalState::Committed);
    }
    for node in others {
        let status = node.status();
        assert_eq!((status.snapshot.term, status.leader), (term, Some(leader.id())), "nobody else was elected");
    }
    drop(stalled);
    within("the vote", hanging).await.unwrap().unwrap();
    nodes.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_asked_about_under_two_ids_gets_one_answer() {
    let nodes = Nodes::start(&[Policy::Manual; 3]).await;
    let (leader, others) = nodes.leader();
    let (member, term) = (others[0], leader.status().snapshot.term);
    for n in 0..20 {
        let proposal = submit(leader, Propose { wait: Wait::Accepted, ..named(&n.to_string()) });
        let id = answer(proposal).await.id.unwrap();
        until("the member is asked", || member.shared.ballot(&id).is_some()).await;
        let mut again = (*member.shared.ballot(&id).unwrap()).clone();
        again.id.seq += 1_000_000;
        let other = again.id;
        let message = Message::Ballot { term, ballot: Arc::new(again) };
        let asked = Event::Inject(core::Input::Receive { from: leader.id(), message });
        assert!(member.shared.events.send(asked).await.is_ok());
        until("the member is asked again", || member.shared.ballot(&other).is_some()).await;
        let (grant, deny) = tokio::join!(member.cast_vote(id, true), member.cast_vote(other, false));
        assert_eq!((grant, deny), (Ok(()), Err(VoteError::AlreadyCast { id: other, granted: true })));
    }
    nodes.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_waits_for_a_certificate_that_is_announced_before_it_can_be_read() {
    let nodes = Nodes::start(&[Policy::Auto; 3]).await;
    let (leader, others) = nodes.leader();
    let stalled = leader.shared.store.stall_disk();
    let status = answer(submit(others[0], Propose { wait: Wait::Committed, ..named("a") })).await;
    let index = status.index.unwrap();
    let head = Head { term: Term(1), size: index.0, root: Digest::ZERO };
    let early = HeadCertificate { head, halves: Vec::new() };
    others[0].shared.certificate.send_replace(Some(Arc::new(early)));
    let mut commits = others[0].commits(index);
    let mut event = Box::pin(commits.next());
    // Without the leader's disk there is no certificate yet. Reading ends soon, one way or the other, so a stream that
    // does not wait shows within a few looks.
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    for _ in 0..40 {
        assert!(futures::poll!(&mut event).is_pending(), "the stream waits");
        tick.tick().await;
    }
    drop(stalled);
    let event = within("the commit", event).await.expect("no end").expect("no error");
    assert_eq!((event.index, event.id), (index, status.id.unwrap()));
    nodes.close().await;
}
