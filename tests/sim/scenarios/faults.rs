//! What becomes of a node whose disk fails, fills up, rots, tears or lied, which does not run for a while, or which dies
//! between two of its effects.

use super::{cluster, membership};
use crate::disk::Rot;
use crate::members::Row;
use crate::world::{Config, World};
use concordat::certificate::{Policy, Role as MemberRole};
use concordat::core::{AppendResult, Effect, Message, Role};
use concordat::ids::LogIndex;
use concordat::node::Ended;

/// The highest index that a node ever said is durable there.
fn acknowledged(world: &World, node: usize) -> LogIndex {
    let index = |(from, _, message): (usize, usize, &Message)| match message {
        Message::AppendReply { result: AppendResult::Durable(index), .. } if from == node => Some(*index),
        _ => None,
    };
    world.sent().filter_map(index).max().expect("it follows")
}

fn writes(world: &World, node: usize) -> usize {
    world.recorded.iter().filter(|r| r.1 == node && matches!(r.2, Effect::Persist { .. })).count()
}

fn why(world: &World, node: usize) -> String {
    match &world.nodes[node].ended {
        Some(Ended::Halted(why)) => why.clone(),
        other => panic!("{other:?}"),
    }
}

fn settled(nodes: usize, seed: u64) -> (World, usize, usize) {
    let mut world = cluster(nodes, seed);
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let follower = world.follower();
    (world, leader, follower)
}

#[test]
fn a_node_whose_fsync_fails_stops_at_once_and_acknowledges_nothing_of_it() {
    for seed in 0..10 {
        let (mut world, leader, follower) = settled(3, seed);
        let (told, durable) = (acknowledged(&world, follower), world.core(follower).durable());
        world.fail_fsync(follower);
        world.propose(leader, "a");
        assert!(world.run_while_not(200, |w| !w.is_up(follower)));
        assert!(why(&world, follower).contains("fsync"));
        assert_eq!(acknowledged(&world, follower), told, "nothing of that write was acknowledged");
        let before = writes(&world, follower);
        world.run(500);
        assert_eq!(writes(&world, follower), before, "nor is it tried again");
        assert!(world.outcome_at(leader, "a").is_some(), "two of three go on");
        // It comes back with what its disk really kept: the write or not, and nothing less than before.
        world.start(follower);
        assert!(world.core(follower).last_index() >= durable);
        assert!(world.run_while_not(2_000, World::converged));
    }
}

#[test]
fn a_leader_whose_fsync_fails_stops_and_what_it_had_not_replicated_is_not_committed() {
    let (mut world, leader, _) = settled(3, 3);
    let last = world.core(leader).last_index();
    world.isolate(leader);
    world.fail_fsync(leader);
    world.propose(leader, "alone");
    assert!(world.run_while_not(200, |w| !w.is_up(leader)));
    world.heal();
    assert!(world.run_while_not(3_000, |w| w.leader().is_some_and(|l| l != leader)));
    world.start(leader);
    assert!(world.run_while_not(3_000, World::converged));
    let next = world.leader().expect("converged");
    assert!(world.outcome_at(next, "alone").is_none_or(|o| o.index > last), "it may have survived on that disk only");
}

#[test]
fn a_node_whose_disk_is_full_stops_and_loses_nothing_once_there_is_room() {
    let (mut world, leader, follower) = settled(3, 4);
    let (told, durable) = (acknowledged(&world, follower), world.core(follower).durable());
    world.fill(follower, true);
    world.propose(leader, "a");
    assert!(world.run_while_not(200, |w| !w.is_up(follower)));
    assert!(why(&world, follower).contains("no space"));
    assert_eq!(acknowledged(&world, follower), told);
    // Restarted too early it stops again.
    world.start(follower);
    assert!(world.core(follower).last_index() >= durable);
    assert!(world.run_while_not(2_000, |w| !w.is_up(follower)));
    world.fill(follower, false);
    world.start(follower);
    assert!(world.run_while_not(2_000, World::converged));
}

#[test]
fn a_torn_write_is_dropped_by_its_checksum() {
    let mut seen = 0;
    for seed in 0..20 {
        let (mut world, leader, follower) = settled(3, seed);
        let durable = world.core(follower).durable();
        world.stall(follower);
        world.propose(leader, "a");
        world.run(20);
        world.crash(follower);
        let (torn, whole) = (world.nodes[follower].disk.torn, world.nodes[follower].disk.log.last());
        seen += u64::from(torn);
        world.unstall(follower);
        world.start(follower);
        assert!(world.core(follower).last_index() >= durable);
        assert_eq!(world.core(follower).last_index(), whole, "what is torn is as if it had never been written");
        assert_eq!(world.coverage.of("fault", "torn write dropped by its checksum"), u64::from(torn));
        assert!(world.run_while_not(2_000, World::converged));
    }
    assert!(seen > 0);
}

/// A cluster of three with enough in its log that the watermark has moved.
fn written(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(Config { spares: 1, record: true, ..Config::new(3, seed) });
    let leader = world.settle();
    for i in 0..20 {
        world.propose(leader, &i.to_string());
        world.run(10);
    }
    assert!(world.run_while_not(2_000, World::converged));
    let follower = world.follower();
    (world, leader, follower)
}

/// The node has lost its store: it says nothing with the old key, and comes back with a new one by a change of members.
fn comes_back_as_new(world: &mut World, node: usize) {
    assert!(!world.is_up(node), "the store is refused");
    assert_eq!(world.nodes[node].disk.log.last(), LogIndex::ZERO, "it has another, empty one");
    assert!(!world.nodes[node].disk.keys.contains(&0), "without the key of the old one");
    world.start(node);
    let from = world.recorded.len();
    world.run(2_000);
    let spoke = world.recorded[from..].iter().any(|r| {
        let votes = |m: &Message| {
            matches!(
                m,
                Message::RequestVoteReply { granted: true, .. }
                    | Message::AppendReply { .. }
                    | Message::HeadShare { .. }
            )
        };
        r.1 == node && matches!(&r.2, Effect::Send { message, .. } if votes(message))
    });
    assert!(!spoke, "it neither votes nor acknowledges nor signs for the old key");
    let leader = world.leader().expect("two of three lead on");
    let fresh = world.fresh_learner(node);
    let rows: Vec<Row> = world.rows(leader).into_iter().map(|r| if r.node == node { fresh } else { r }).collect();
    membership::make(world, &rows);
    assert!(world.run_while_not(3_000, World::converged));
    let leader = world.leader().expect("converged");
    assert!(world.rows(leader).iter().any(|r| r.node == node && r.role == MemberRole::Learner && r.generation > 0));
}

#[test]
fn a_store_behind_its_watermark_is_a_lost_disk() {
    let (mut world, _, follower) = written(5);
    world.crash(follower);
    assert!(world.forget_acknowledged(follower), "there was something to lose");
    world.start(follower);
    assert_eq!(world.coverage.of("fault", "store behind its watermark"), 1);
    comes_back_as_new(&mut world, follower);
}

#[test]
fn rot_that_is_found_when_a_store_is_opened_makes_it_a_lost_disk() {
    let (mut world, _, follower) = written(6);
    world.rot(follower, Rot::Entry(LogIndex(5)));
    world.run(1_000);
    assert!(world.is_up(follower), "nobody reads it");
    world.crash(follower);
    world.start(follower);
    assert_eq!(world.coverage.of("fault", "rot found when the store was opened"), 1);
    comes_back_as_new(&mut world, follower);
}

#[test]
fn a_node_that_reads_rot_stops_and_its_store_is_a_lost_disk() {
    let policies = vec![Policy::Manual; 3];
    let mut world = World::new(Config { policies, applications: true, record: true, ..Config::new(3, 7) });
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let follower = world.follower();
    world.rot(follower, Rot::Answers);
    world.run(1_000);
    assert!(world.is_up(follower), "nobody reads it");
    // Whether this was answered before is on record.
    world.propose(leader, "a");
    assert!(world.run_while_not(200, |w| !w.is_up(follower)));
    assert!(why(&world, follower).contains("checksum"));
    assert!(world.run_while_not(500, |w| w.outcome_at(leader, "a").is_some()), "two of three go on");
    world.start(follower);
    comes_back_as_new(&mut world, follower);
}

#[test]
fn a_leader_that_wakes_up_is_one_no_more_and_serves_nothing_stale() {
    for seed in 0..10 {
        let (mut world, leader, _) = settled(3, seed);
        world.pause(leader, 3_000);
        assert!(world.run_while_not(2_500, |w| w.leader().is_some_and(|l| l != leader)
            || (0..3).any(|n| n != leader && w.core(n).role() == Role::Leader)));
        let next = (0..3).find(|n| *n != leader && world.core(*n).role() == Role::Leader).expect("just seen");
        world.propose(next, "meanwhile");
        assert!(world.run_while_not(500, |w| w.outcome_at(next, "meanwhile").is_some()));
        // Asked while it sleeps, the read is looked at when it wakes: it must see what was committed before it was asked.
        let read = world.read(leader);
        assert!(world.run_while_not(5_000, World::converged));
        assert_ne!(world.reads[read].state, crate::reads::ReadState::Pending);
        assert_eq!(world.core(leader).role(), Role::Follower);
    }
}

#[test]
fn a_node_can_die_before_any_of_its_effects() {
    for effects in 0..120 {
        let (mut world, leader, _) = settled(3, u64::from(effects));
        world.crash_within(leader, effects);
        for i in 0..10 {
            let submission = world.named(&i.to_string());
            world.start_call(submission);
            world.run(10);
        }
        world.run(100);
        assert!(!world.is_up(leader), "ten proposals take more effects than that");
        world.start(leader);
        assert!(world.run_while_not(5_000, |w| w.open_calls() == 0 && w.converged()));
    }
}

#[test]
fn a_link_that_flaps_stops_nothing() {
    let (mut world, leader, follower) = settled(3, 8);
    world.flap_link(leader, follower, 40);
    world.flap_link(follower, leader, 40);
    for i in 0..20 {
        let submission = world.named(&i.to_string());
        world.start_call(submission);
        world.run(200);
    }
    assert!(world.run_while_not(20_000, |w| w.open_calls() == 0 && w.links.flapping.is_empty()));
    assert!(world.run_while_not(3_000, World::converged));
}

#[test]
fn a_leader_is_found_though_two_members_cannot_talk_to_each_other() {
    for seed in 0..10 {
        let (mut world, leader, follower) = settled(3, seed);
        let middle = (0..3).find(|n| ![leader, follower].contains(n)).expect("of three");
        world.partition_partially(&[(leader, follower)]);
        world.run(2_000);
        let leads = world.leader().expect("somebody reaches a quorum");
        world.propose(leads, "a");
        assert!(world.run_while_not(2_000, |w| w.outcome_at(middle, "a").is_some()), "the middle hears of everything");
        world.heal();
        assert!(world.run_while_not(3_000, World::converged));
    }
}
