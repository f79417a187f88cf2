//! Changing members, rotating keys, handing leadership over, and linearizable reads, on real nodes.

use crate::support::{Cluster, certify, set_config, until, within};
use concordat::api::{
    ChangeError, ChangeMembers, Consistency, MemberOp, Propose, ReadError, Role, Standing, TransferError,
};
use concordat::certificate::{Policy, Role as MemberRole};
use concordat::core::ChangeRefusal;
use concordat::ids::{Epoch, LogIndex};
use concordat::node::Handle;
use concordat::registry::State;

const AUTO: [Policy; 3] = [Policy::Auto; 3];

/// Every entry of a node's log is proved by a receipt, from the genesis alone.
fn every_entry_is_proved(cluster: &Cluster, node: &Handle) {
    for index in 1..=node.status().certified_index.0 {
        let receipt = node.receipt(LogIndex(index)).unwrap_or_else(|e| panic!("receipt {index}: {e}"));
        receipt.verify(&cluster.genesis).unwrap_or_else(|e| panic!("entry {index}: {e}"));
    }
}

fn one(op: MemberOp) -> ChangeMembers {
    ChangeMembers { changes: vec![op], base_epoch: None, dry_run: false, ttl_ms: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_added_promoted_and_takes_the_place_of_one_that_is_removed() {
    let mut cluster = Cluster::start(&AUTO).await;
    certify(cluster.node(0), Propose::new(set_config("before", "1"))).await;
    let newcomer = cluster.prepare_another();
    cluster.start_joining(3).await;
    assert_eq!(cluster.node(3).status().standing, Standing::Waiting);

    let leader = cluster.leader().await;
    let early = MemberOp::Promote { id: newcomer.did };
    let refused = cluster.node(leader).change_members(one(early)).await;
    assert!(matches!(refused, Err(ChangeError::DoesNotApply { .. })), "{refused:?}");

    let added = cluster.change(MemberOp::Add { member: newcomer.clone() }).await;
    assert_eq!(added.epoch, 1);
    assert_eq!(added.members.iter().find(|m| m.did == newcomer.did).map(|m| m.role), Some(MemberRole::Learner));
    until("the learner holds the log", || async {
        let (learner, leader) = (cluster.node(3).status(), cluster.node(leader).status());
        (learner.standing == Standing::Learner && learner.applied_index == leader.applied_index).then_some(())
    })
    .await;
    assert_eq!(cluster.change(MemberOp::Promote { id: newcomer.did }).await.epoch, 2);
    let leader = cluster.leader().await;
    let gone = (0..3).find(|n| *n != leader).expect("a follower");
    let removed = cluster.change(MemberOp::Remove { id: cluster.ids[gone] }).await;
    assert_eq!((removed.epoch, removed.quorum), (3, 2));
    until("the removed member knows", || async { cluster.node(gone).status().safe_to_stop.then_some(()) }).await;
    cluster.stop_node(gone).await;

    certify(cluster.node(3), Propose::new(set_config("after", "1"))).await;
    cluster.settled().await;
    let hashes: Vec<_> = cluster.running().map(|n| n.registry(State::state_hash)).collect();
    assert!(hashes.windows(2).all(|w| w[0] == w[1]));
    for node in cluster.running() {
        every_entry_is_proved(&cluster, node);
    }
    let chain = cluster.node(3).epoch_chain(Epoch::ZERO).expect("a chain");
    assert_eq!(chain.verify(&cluster.genesis).expect("verifies").len(), 4, "the genesis table and three more");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_survive_a_restart_of_every_node() {
    let mut cluster = Cluster::start(&AUTO).await;
    let newcomer = cluster.prepare_another();
    cluster.start_joining(3).await;
    cluster.change(MemberOp::Add { member: newcomer.clone() }).await;
    cluster.change(MemberOp::Promote { id: newcomer.did }).await;
    cluster.settled().await;
    for n in 0..4 {
        cluster.stop_node(n).await;
    }
    for n in 0..4 {
        cluster.start_node(n).await;
    }
    let leader = cluster.leader().await;
    assert_eq!(cluster.node(leader).status().epoch, 2);
    // A quorum of four is three: two of the first three do not suffice, so the newcomer counts.
    let away = (0..3).find(|n| *n != leader).expect("a follower");
    cluster.stop_node(away).await;
    certify(cluster.node(3), Propose::new(set_config("k", "v"))).await;
    every_entry_is_proved(&cluster, cluster.node(3));
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_disk_was_lost_comes_back_with_a_fresh_key_as_a_learner() {
    let mut cluster = Cluster::start(&AUTO).await;
    certify(cluster.node(0), Propose::new(set_config("k", "v"))).await;
    cluster.settled().await;
    let lost = cluster.follower().await;
    cluster.stop_node(lost).await;
    let reborn = cluster.lose_disk(lost);
    // Without being told to wait it refuses: a store without memory must not pass for the one that it replaces.
    let refused = concordat::node::start(cluster.options(lost)).await.err();
    assert!(matches!(refused, Some(concordat::node::StartError::ForeignKey { .. })), "{refused:?}");
    cluster.start_joining(lost).await;
    assert_eq!(cluster.node(lost).status().standing, Standing::Waiting);
    let empty = cluster.node(lost).status();
    assert_eq!((empty.last_index, empty.leader), (LogIndex::ZERO, None), "it takes nothing and follows nobody");
    let changed = cluster.change(MemberOp::Add { member: reborn.clone() }).await;
    assert_eq!(changed.quorum, 2);
    cluster.change(MemberOp::Promote { id: reborn.did }).await;
    until("it votes again", || async { (cluster.node(lost).status().standing == Standing::Voter).then_some(()) }).await;
    cluster.settled().await;
    every_entry_is_proved(&cluster, cluster.node(lost));
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_rotated_and_the_old_one_is_erased() {
    let mut cluster = Cluster::start(&AUTO).await;
    let member = cluster.follower().await;
    let old = cluster.genesis.table.get(&cluster.ids[member]).expect("a row").bls_key;
    let key = cluster.node(member).make_key().await.expect("a key");
    assert_ne!(key.bls_key, old);
    assert_eq!(cluster.node(member).make_key().await.expect("a key"), key, "one that may be in use is not made anew");
    let rotate = MemberOp::RotateKey { id: key.id, bls_key: key.bls_key, possession: key.possession };
    assert_eq!(cluster.change(rotate).await.epoch, 1);
    certify(cluster.node(member), Propose::new(set_config("k", "v"))).await;
    cluster.settled().await;
    // Only this member and one other: its new key must sign.
    let leader = cluster.leader().await;
    let other = (0..3).find(|n| ![leader, member].contains(n));
    if let Some(other) = other {
        cluster.stop_node(other).await;
    }
    certify(cluster.node(member), Propose::new(set_config("k", "w"))).await;
    every_entry_is_proved(&cluster, cluster.node(member));
    cluster.stop_node(member).await;
    let (_, recovered) =
        concordat::storage::Store::open(&cluster.data(member).join(concordat::storage::STORE_DIR)).expect("opens");
    assert_eq!((recovered.bls.public(), recovered.next_bls.is_none()), (key.bls_key, true));
    // Back to the old key, or a copy of it for another: refused for ever.
    cluster.start_node(member).await;
    let leader = cluster.leader().await;
    let row = cluster.genesis.table.get(&key.id).expect("a row");
    let back = MemberOp::RotateKey { id: key.id, bls_key: row.bls_key, possession: row.possession };
    let refused = until("the leader has settled", || async {
        match cluster.node(leader).change_members(one(back.clone())).await {
            Err(ChangeError::Refused { refusal: ChangeRefusal::NotSettled }) => None,
            other => Some(other),
        }
    })
    .await;
    assert!(
        matches!(&refused, Err(ChangeError::Refused { refusal: ChangeRefusal::OldKey(id) }) if *id == key.id),
        "{refused:?}"
    );
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_would_harm_are_refused_and_change_nothing() {
    let mut cluster = Cluster::start(&AUTO).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let node = cluster.node(leader);
    certify(node, Propose::new(set_config("k", "v"))).await;
    let refusal = |result| match result {
        Err(ChangeError::Refused { refusal }) => refusal,
        other => panic!("{other:?}"),
    };
    let set = |address: &str| MemberOp::Set { id: cluster.ids[0], address: Some(address.into()), policy: None };
    let stale = ChangeMembers { base_epoch: Some(7), ..one(set("h:1")) };
    assert_eq!(refusal(node.change_members(stale).await), ChangeRefusal::Stale { current: Epoch::ZERO });
    let same = cluster.genesis.table.get(&cluster.ids[0]).expect("a row").address.clone();
    assert_eq!(refusal(node.change_members(one(set(&same))).await), ChangeRefusal::Unchanged);
    let invalid = node.change_members(one(set("nowhere"))).await;
    assert!(matches!(invalid, Err(ChangeError::InvalidTable { .. })), "{invalid:?}");
    let unknown = MemberOp::Remove { id: concordat::ids::NodeId([9; 32]) };
    let unknown = node.change_members(one(unknown)).await;
    assert!(matches!(unknown, Err(ChangeError::DoesNotApply { .. })), "{unknown:?}");
    let dry = ChangeMembers { dry_run: true, ..one(set("h:1")) };
    assert_eq!(node.change_members(dry).await.expect("could be made").epoch, 1);
    let elsewhere = cluster.node(follower).change_members(one(set("h:1"))).await;
    assert!(matches!(elsewhere, Err(ChangeError::NotLeader { leader: Some(_) })), "{elsewhere:?}");
    assert_eq!(node.status().epoch, 0);
    // A new table whose voters are mostly silent.
    let away = (0..3).find(|n| ![leader, follower].contains(n)).expect("a third");
    cluster.stop_node(away).await;
    let remove = one(MemberOp::Remove { id: cluster.ids[follower] });
    let silent = until("the silence is noticed", || async {
        let dry = ChangeMembers { dry_run: true, ..remove.clone() };
        match cluster.node(leader).change_members(dry).await {
            Err(ChangeError::Refused { refusal: ChangeRefusal::NoQuorum { silent, .. } }) => Some(silent),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    })
    .await;
    assert_eq!(silent, [cluster.ids[away]]);
    let refused = cluster.node(leader).change_members(remove).await;
    assert!(matches!(refused, Err(ChangeError::Refused { refusal: ChangeRefusal::NoQuorum { .. } })), "{refused:?}");
    assert_eq!(cluster.node(leader).status().epoch, 0);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_on_request_and_when_a_leader_is_closed() {
    let mut cluster = Cluster::start(&AUTO).await;
    let leader = cluster.leader().await;
    let target = (0..3).find(|n| *n != leader).expect("a follower");
    let to = Some(cluster.ids[target]);
    let elsewhere = cluster.node(target).transfer_leadership(to).await;
    assert!(matches!(elsewhere, Err(TransferError::NotLeader { .. })), "{elsewhere:?}");
    let itself = cluster.node(leader).transfer_leadership(Some(cluster.ids[leader])).await;
    assert_eq!(itself.map(|t| t.leader), Ok(Some(cluster.ids[leader])), "it leads already");
    let term = cluster.node(leader).status().snapshot.term;
    within("the transfer", cluster.node(leader).transfer_leadership(to)).await.expect("handed over");
    assert_eq!(cluster.leader().await, target);
    assert_eq!(cluster.node(target).status().snapshot.term, term.next(), "one election, and no split vote");
    certify(cluster.node(leader), Propose::new(set_config("k", "v"))).await;
    cluster.stop_node(target).await;
    let next = cluster.leader().await;
    assert_eq!(cluster.node(next).status().snapshot.term, term.next().next(), "nobody waited for a timeout");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linearizable_read_anywhere_sees_what_was_acknowledged_before() {
    let mut cluster = Cluster::start(&AUTO).await;
    let leader = cluster.leader().await;
    for round in 0..20 {
        let written = certify(cluster.node(leader), Propose::new(set_config("k", &round.to_string()))).await;
        for node in cluster.running() {
            node.fresh(Consistency::Linearizable, LogIndex::ZERO).await.expect("confirmed");
            let seen = node.registry(|state| state.config("k").map(|c| c.revision));
            assert!(seen.is_some() && seen >= written.index, "{seen:?} of {written:?}");
        }
    }
    let stale = cluster.node(leader).fresh(Consistency::Stale, LogIndex::ZERO).await.expect("at once");
    assert!(stale.age_ms.is_some_and(|age| age < 60_000), "{stale:?}");
    for away in (0..3).filter(|n| *n != leader) {
        cluster.stop_node(away).await;
    }
    let alone = cluster.node(leader).fresh(Consistency::Linearizable, LogIndex::ZERO).await;
    assert_eq!(alone, Err(ReadError::Unconfirmed), "a leader that nobody hears knows nothing of others");
    cluster.node(leader).fresh(Consistency::Stale, LogIndex::ZERO).await.expect("what it has, it still says");
    let beyond = LogIndex(1_000_000);
    let early = cluster.node(leader).fresh(Consistency::Stale, beyond).await;
    assert!(matches!(early, Err(ReadError::NotApplied { wanted, .. }) if wanted == beyond), "{early:?}");
    assert_ne!(cluster.node(leader).status().snapshot.role, Role::Leader);
    cluster.close().await;
}
