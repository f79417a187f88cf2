//! Snapshots: marks, manifests that members compare, and catching up by an image in place of entries.

use super::membership::{add_voters, make};
use crate::members::id_of;
use crate::world::{Config, World};
use concordat::certificate::{Kind, Role, SnapshotManifest};
use concordat::core::{Alarm, Effect, MarkRefusal, Message, Role as Standing};
use concordat::ids::{Digest, LogIndex};
use std::sync::Arc;

pub(super) fn with_spares(nodes: usize, spares: usize, seed: u64) -> World {
    World::new(Config { spares, record: true, ..Config::new(nodes, seed) })
}

/// Has so many entries committed, each with a payload of this size.
pub(super) fn fill(world: &mut World, count: usize, bytes: usize) {
    for i in 0..count {
        let name = format!("{}-{i}", world.now);
        let payload = format!("{{\"op\":\"set_config\",\"key\":\"{name}\",\"value\":\"{}\"}}", "x".repeat(bytes));
        let submission = world.submission(&name, payload.as_bytes());
        world.start_call(submission);
    }
    assert!(world.run_while_not(5_000, |w| w.open_calls() == 0 && w.caught_up()), "{}", world.standings());
}

/// Has a mark appended, and waits until its manifest is certified everywhere; tells the mark's index.
pub(super) fn snapshot(world: &mut World) -> LogIndex {
    let leader = world.leader().expect("a leader");
    let mut told = world.mark(leader);
    let index = told.try_recv().expect("answered at once").expect("marked");
    let offered = |w: &World| {
        let holds = |n: usize| w.core(n).snapshot_offer().is_some_and(|o| o.manifest.index >= index);
        w.members().into_iter().all(|n| !w.is_up(n) || holds(n))
    };
    assert!(world.run_while_not(5_000, offered), "{}", world.standings());
    assert!(world.run_while_not(1_000, |w| w.core(leader).compacted() >= index));
    index
}

/// Three nodes, the last one down since before everything up to the mark was pruned.
pub(super) fn one_left_behind(seed: u64, bytes: usize) -> (World, LogIndex) {
    let mut world = with_spares(3, 2, seed);
    world.settle();
    fill(&mut world, 5, 10);
    world.run(100);
    lead_elsewhere(&mut world, 2);
    world.crash(2);
    fill(&mut world, 30, bytes);
    let index = snapshot(&mut world);
    (world, index)
}

fn lead_elsewhere(world: &mut World, than: usize) {
    while world.leader() == Some(than) {
        world.transfer(than, None);
        world.run(200);
        world.settle();
    }
}

fn chunks_sent(world: &World) -> usize {
    world.sent().filter(|(_, _, m)| matches!(m, Message::SnapshotChunk { .. })).count()
}

#[test]
fn every_member_makes_the_same_image_at_a_mark_and_a_quorum_certifies_it() {
    let mut world = with_spares(3, 0, 1);
    world.settle();
    fill(&mut world, 20, 100);
    let index = snapshot(&mut world);
    assert!(world.run_while_not(2_000, World::converged));
    let taken: Vec<SnapshotManifest> = (0..3).map(|n| (**world.core(n).snapshot_taken().unwrap()).clone()).collect();
    assert!(taken.iter().all(|t| *t == taken[0] && t.index == index));
    let log = &world.nodes[0].memory;
    let of_kind = |kind| log.links().iter().filter(move |l| l.entry.header.kind == kind).collect::<Vec<_>>();
    let (marks, manifests) = (of_kind(Kind::SnapshotMark), of_kind(Kind::SnapshotManifest));
    assert_eq!((marks.len(), manifests.len()), (1, 1));
    assert_eq!(marks[0].entry.index(), index);
    let manifest = &manifests[0].entry;
    assert_eq!(SnapshotManifest::decode(&manifest.body.payload).as_ref(), Ok(&taken[0]));
    assert!(manifest.header.tally.as_ref().unwrap().grants.members.count() >= 2);
}

#[test]
fn a_member_that_was_down_while_entries_were_pruned_catches_up_by_a_snapshot() {
    let (mut world, index) = one_left_behind(2, 8_000);
    world.start(2);
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
    assert_eq!(world.coverage.of("snapshot", "installed"), 1);
    assert!(chunks_sent(&world) > 2, "the image has several chunks");
    assert_eq!(world.nodes[2].disk.images.compacted, index);
    assert_eq!(world.nodes[2].executor.as_mut().unwrap().devices().state.applied(), world.core(2).last_index());
    // It goes on from there like anyone: after a restart, as a leader, and as a source.
    fill(&mut world, 3, 10);
    world.crash(2);
    world.start(2);
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
    let leader = world.leader().unwrap();
    world.transfer(leader, Some(2));
    assert!(world.run_while_not(2_000, |w| w.leader() == Some(2)), "{}", world.standings());
    world.settle();
    fill(&mut world, 3, 10);
    world.crash(0);
    fill(&mut world, 30, 10);
    snapshot(&mut world);
    world.start(0);
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
}

#[test]
fn a_new_member_begins_with_a_snapshot_that_holds_membership_changes() {
    let mut world = with_spares(3, 2, 3);
    world.settle();
    add_voters(&mut world, &[3]);
    fill(&mut world, 20, 10);
    snapshot(&mut world);
    let leader = world.leader().unwrap();
    let mut rows = world.rows(leader);
    rows.push(world.fresh_learner(4));
    world.start(4);
    make(&mut world, &rows);
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
    assert_eq!(world.coverage.of("snapshot", "installed"), 1);
    rows.iter_mut().for_each(|r| r.role = Role::Voter);
    make(&mut world, &rows);
    world.transfer(leader, Some(4));
    assert!(world.run_while_not(2_000, |w| w.leader() == Some(4)), "{}", world.standings());
    world.settle();
    fill(&mut world, 3, 10);
    world.chain_verifies();
}

#[test]
fn fetching_goes_on_where_it_stopped_after_a_restart_and_under_another_leader() {
    let (mut world, index) = one_left_behind(4, 30_000);
    // Each chunk takes its time.
    world.config.options.snapshot_bytes_per_s = 2_000_000;
    world.start(2);
    let half = |w: &World| w.core(2).installing().is_some_and(|(m, here)| here >= m.chunks() / 2);
    assert!(world.run_while_not(5_000, half), "{}", world.standings());
    world.crash(2);
    world.start(2);
    assert!(world.run_while_not(5_000, half), "{}", world.standings());
    assert!(world.coverage.of("snapshot", "fetching resumed") >= 1);
    let chunks = world.core(2).installing().unwrap().0.chunks() as usize;
    let (leader, sent) = (world.leader().unwrap(), chunks_sent(&world));
    world.transfer(leader, Some(1 - leader));
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
    assert_eq!(world.leader(), Some(1 - leader));
    assert_eq!(world.nodes[2].disk.images.compacted, index);
    assert!(chunks_sent(&world) - sent < chunks, "what was here was not fetched again");
}

#[test]
fn a_snapshot_is_fetched_no_faster_than_the_node_was_told() {
    let (mut world, _) = one_left_behind(13, 30_000);
    world.config.options.snapshot_bytes_per_s = 500_000;
    world.start(2);
    assert!(world.run_while_not(5_000, |w| w.core(2).installing().is_some()), "{}", world.standings());
    let (began, bytes) = (world.now, world.core(2).installing().unwrap().0.bytes);
    assert!(world.run_while_not(30_000, |w| w.coverage.of("snapshot", "installed") == 1), "{}", world.standings());
    // The first chunk is asked for at once, the last one when all before it are paid for.
    let least_ms = (bytes - 2 * 65_536) * 1000 / 500_000;
    assert!(world.now - began >= least_ms * 1000, "{bytes} bytes in {} us", world.now - began);
}

#[test]
fn lost_offers_and_lost_chunks_are_made_good() {
    let (mut world, _) = one_left_behind(5, 8_000);
    world.config.network.loss = 300;
    world.start(2);
    assert!(world.run_while_not(60_000, |w| w.coverage.of("snapshot", "installed") == 1), "{}", world.standings());
    world.config.network.loss = 0;
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
}

#[test]
fn power_loss_before_the_snapshot_is_begun_with_leaves_the_old_log_and_it_is_fetched_again() {
    let (mut world, index) = one_left_behind(6, 10);
    let before = world.nodes[2].disk.log.last();
    world.start(2);
    assert!(world.run_while_not(5_000, |w| w.core(2).compacted() == index), "{}", world.standings());
    assert!(world.nodes[2].disk.log.last() == before, "not durable yet");
    assert!(world.core(2).durable() <= before, "what is not durable is not called so");
    let acknowledged = |w: &World| {
        w.sent().any(|(from, _, m)| {
            from == 2
                && matches!(m, Message::AppendReply { result: concordat::core::AppendResult::Durable(i), .. } if *i >= index)
        })
    };
    assert!(!acknowledged(&world), "nothing is acknowledged before it is durable");
    world.nodes[2].disk.pending.clear();
    world.crash(2);
    assert_eq!(world.nodes[2].disk.log.last(), before);
    world.start(2);
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
    assert!(acknowledged(&world));
}

#[test]
fn a_tail_that_contradicts_the_snapshot_is_replaced_by_it() {
    let mut world = with_spares(3, 0, 7);
    world.settle();
    fill(&mut world, 5, 10);
    let old = world.leader().unwrap();
    world.isolate(old);
    for i in 0..5 {
        world.propose(old, &format!("lost {i}"));
    }
    world.run(100);
    let tail = world.core(old).last_index();
    assert!(tail > world.core(old).committed());
    assert!(world.run_while_not(3_000, |w| w.leader().is_some_and(|l| l != old)));
    let leader = world.leader().unwrap();
    assert!(world.run_while_not(3_000, |w| w.core(old).role() != Standing::Leader));
    world.crash(old);
    fill(&mut world, 10, 10);
    let index = snapshot(&mut world);
    assert!(index > tail);
    world.heal();
    world.start(old);
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
    assert_eq!(world.leader(), Some(leader));
    assert_eq!(world.coverage.of("snapshot", "installed"), 1);
    let held = |w: &World, name: &str| w.outcome_at(old, name).is_some();
    assert!(!held(&world, "lost 0"));
}

#[test]
fn a_snapshot_of_what_the_log_holds_is_acknowledged_and_not_fetched() {
    let mut world = with_spares(3, 0, 8);
    world.settle();
    fill(&mut world, 20, 10);
    let index = snapshot(&mut world);
    let leader = world.leader().unwrap();
    let follower = world.follower();
    let offer = world.core(leader).snapshot_offer().unwrap().clone();
    let (term, session) = world
        .sent()
        .filter_map(|(from, to, m)| match m {
            Message::Append { term, session, .. } if from == leader && to == follower => Some((*term, *session)),
            _ => None,
        })
        .last()
        .unwrap();
    let (installed, last) = (world.coverage.of("snapshot", "installed"), world.core(follower).last_index());
    let to_keys = world.public_keys(follower);
    world.recorded.clear();
    world.inject(leader, follower, Message::SnapshotOffer { term, session, to_keys, offer, election: None });
    world.run(50);
    let acknowledged = world.sent().any(|(from, _, m)| {
        let result = concordat::core::AppendResult::Durable(index);
        from == follower && matches!(m, Message::AppendReply { result: r, .. } if *r == result)
    });
    assert!(acknowledged);
    assert_eq!(world.coverage.of("snapshot", "installed"), installed);
    assert!(world.core(follower).last_index() >= last && world.core(follower).installing().is_none());
}

#[test]
fn a_leader_whose_state_a_quorum_denies_yields_and_the_quorums_is_certified() {
    let mut world = with_spares(3, 0, 9);
    world.settle();
    fill(&mut world, 10, 10);
    let leader = world.leader().unwrap();
    // Its state went bad, so it says something else of the same mark.
    let index = world.mark(leader).try_recv().unwrap().unwrap();
    let taken = |w: &World, n: usize| w.nodes[n].disk.images.complete.contains_key(&index);
    world.spoil_images = Some((leader, Digest([9; 32])));
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    assert!(world.run_while_not(3_000, |w| (0..3).all(|n| taken(w, n))));
    let denied = |w: &World| {
        w.nodes[leader].alarms.iter().any(|a| matches!(a, Alarm::SnapshotDenied { denied, .. } if !denied.is_empty()))
    };
    assert!(world.run_while_not(3_000, denied), "{}", world.standings());
    assert!(world.core(leader).snapshot_taken().is_none(), "nor does it ask about that image again");
    let certified =
        |w: &World| others.iter().all(|n| w.core(*n).snapshot_offer().is_some_and(|o| o.manifest.index == index));
    assert!(world.run_while_not(5_000, certified), "{}", world.standings());
    assert_ne!(world.leader(), Some(leader));
    assert!(world.core(leader).snapshot_offer().is_none(), "a diverged replica offers nothing");
}

#[test]
fn no_image_yet_no_answer_yet() {
    let mut world = with_spares(3, 0, 10);
    world.settle();
    fill(&mut world, 5, 10);
    let leader = world.leader().unwrap();
    let slow: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    for n in &slow {
        world.slow_images.insert(*n, 3_000_000);
    }
    let index = world.mark(leader).try_recv().unwrap().unwrap();
    world.run(1_500);
    let balloted = world.recorded.iter().any(|(_, n, e)| {
        slow.contains(n) && matches!(e, Effect::Ask { ballot } if ballot.kind == Kind::SnapshotManifest)
    });
    assert!(balloted, "they are asked");
    let voted = |w: &World| w.sent().any(|(from, _, m)| slow.contains(&from) && matches!(m, Message::Vote { .. }));
    assert!(!voted(&world), "and do not answer");
    let done = |w: &World| w.core(leader).snapshot_offer().is_some_and(|o| o.manifest.index == index);
    assert!(world.run_while_not(5_000, done), "{}", world.standings());
    assert!(voted(&world));
}

#[test]
fn marks_are_refused_while_members_change_and_by_those_who_do_not_lead() {
    let mut world = with_spares(3, 1, 11);
    world.settle();
    fill(&mut world, 2, 10);
    let follower = world.follower();
    let refused = world.mark(follower).try_recv().unwrap();
    assert_eq!(refused, Err(MarkRefusal::NotLeader { leader: world.leader().map(id_of) }));
    let leader = world.leader().unwrap();
    let mut rows = world.rows(leader);
    rows.push(world.fresh_learner(3));
    world.start(3);
    world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. }));
    world.change(leader, &rows);
    assert!(world.run_while_not(2_000, |w| w.core(leader).tables().is_joint()));
    assert_eq!(world.mark(leader).try_recv().unwrap(), Err(MarkRefusal::InFlight));
    world.filter = None;
    assert!(world.run_while_not(5_000, World::converged));
    assert!(world.mark(leader).try_recv().unwrap().is_ok());
}

#[test]
fn false_offers_and_false_chunks_change_nothing() {
    let (mut world, index) = one_left_behind(12, 8_000);
    let leader = world.leader().unwrap();
    let mut offer = (**world.core(leader).snapshot_offer().unwrap()).clone();
    let mut certificate = (*offer.certificate).clone();
    certificate.halves[0].aggregate = offer.entry.header.tally.as_ref().unwrap().grants.aggregate.unwrap();
    offer.certificate = Arc::new(certificate);
    world.drop_if(|_, _, m| matches!(m, Message::SnapshotOffer { .. }));
    world.start(2);
    assert!(world.run_while_not(2_000, |w| w.core(2).leader() == Some(id_of(leader))));
    let (term, to_keys) = (world.core(leader).term(), world.public_keys(2));
    let offer = Arc::new(offer);
    world.inject(leader, 2, Message::SnapshotOffer { term, session: 1, to_keys, offer, election: None });
    world.run(50);
    assert!(world.nodes[2].alarms.iter().any(|a| matches!(a, Alarm::SnapshotFailed { .. })));
    assert!(world.core(2).installing().is_none());
    // The true offer, and a chunk that is another.
    world.drop_if(|_, _, m| matches!(m, Message::SnapshotChunk { .. }));
    assert!(world.run_while_not(5_000, |w| w.core(2).installing().is_some()), "{}", world.standings());
    world.run(100);
    let bytes = Arc::new(vec![7; 65_536]);
    world.inject(leader, 2, Message::SnapshotChunk { term, index, chunk: 0, bytes, path: vec![Digest::ZERO; 3] });
    world.run(100);
    assert_eq!(world.core(2).installing().unwrap().1, 0, "it is not kept");
    world.filter = None;
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
}
