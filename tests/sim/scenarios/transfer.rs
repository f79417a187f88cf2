use super::{cluster, membership};
use crate::members::Row;
use crate::world::{Config, World};
use concordat::certificate::Role;
use concordat::core::{Admission, ChangeRefusal, Message, Role as Standing, Transfer};

fn outcome(world: &World, transfer: usize) -> Option<Transfer> {
    world.transfers[transfer].outcome
}

fn ready(nodes: usize, seed: u64) -> (World, usize, usize) {
    let mut world = cluster(nodes, seed);
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let target = world.follower();
    (world, leader, target)
}

#[test]
fn leadership_goes_to_the_member_named_at_once_in_the_next_term() {
    for seed in 0..10 {
        let (mut world, leader, target) = ready(5, seed);
        let term = world.core(leader).term();
        let transfer = world.transfer(leader, Some(target));
        assert!(world.run_while_not(100, |w| w.core(target).role() == Standing::Leader), "no timeout is waited for");
        assert_eq!(world.core(target).term(), term.next());
        world.run(50);
        assert_eq!(outcome(&world, transfer), Some(Transfer::Done));
        assert_eq!(world.core(leader).role(), Standing::Follower);
        assert!(world.run_while_not(500, World::converged));
    }
}

#[test]
fn leadership_goes_to_the_furthest_when_nobody_is_named() {
    let (mut world, leader, slow) = ready(3, 1);
    world.drop_if(move |_, to, m| to == slow && matches!(m, Message::Append { .. }));
    world.propose(leader, "a");
    world.run(100);
    let transfer = world.transfer(leader, None);
    world.run(200);
    assert_eq!(outcome(&world, transfer), Some(Transfer::Done));
    assert!(world.leader().is_some_and(|l| ![leader, slow].contains(&l)));
}

#[test]
fn a_slow_target_is_brought_up_to_date_first() {
    let (mut world, leader, slow) = ready(3, 2);
    world.stall(slow);
    for i in 0..5 {
        world.propose(leader, &i.to_string());
    }
    world.run(100);
    let transfer = world.transfer(leader, Some(slow));
    world.run(100);
    assert!(
        !world.sent().any(|(_, _, m)| matches!(m, Message::TimeoutNow { .. })),
        "not before its disk has everything"
    );
    world.unstall(slow);
    world.run(200);
    assert_eq!(outcome(&world, transfer), Some(Transfer::Done));
    assert_eq!(world.leader(), Some(slow));
}

#[test]
fn nobody_takes_over_who_is_no_other_voter() {
    let mut world = World::new(Config { spares: 2, record: true, ..Config::new(4, 3) });
    let leader = world.settle();
    let removed = world.follower();
    let learner = world.fresh_learner(4);
    world.start(4);
    let mut rows: Vec<Row> = world.rows(leader);
    rows.retain(|r| r.node != removed);
    rows.push(learner);
    membership::make(&mut world, &rows);
    assert!(world.run_while_not(2_000, World::converged));
    for to in [leader, removed, 4, 5] {
        let transfer = world.transfer(leader, Some(to));
        assert_eq!(outcome(&world, transfer), Some(Transfer::NoTarget), "n{to}");
    }
    assert!(matches!(world.propose(leader, "a"), Admission::Appended { .. }), "and nothing is held up");
    let follower = world.follower();
    let transfer = world.transfer(follower, Some(leader));
    assert_eq!(outcome(&world, transfer), Some(Transfer::NotLeader));
    // A learner that is told to stand does not.
    let term = world.core(leader).term();
    world.inject(leader, 4, Message::TimeoutNow { term });
    assert_eq!((world.core(4).role(), world.core(4).term()), (Standing::Follower, term));
    assert_eq!(learner.role, Role::Learner);
}

#[test]
fn a_transfer_that_comes_to_nothing_is_given_up_and_work_goes_on() {
    let (mut world, leader, target) = ready(3, 4);
    let term = world.core(leader).term();
    world.isolate(target);
    let transfer = world.transfer(leader, Some(target));
    world.run(300);
    assert_eq!(world.propose(leader, "meanwhile"), Admission::Transferring);
    let rows: Vec<Row> = (0..3).filter(|n| *n != target).map(Row::voter).collect();
    let change = world.change(leader, &rows);
    assert_eq!(world.changes[change].outcome, Some(Err(ChangeRefusal::Transferring)));
    world.run(300);
    assert_eq!(outcome(&world, transfer), Some(Transfer::TimedOut));
    assert!(matches!(world.propose(leader, "afterwards"), Admission::Appended { .. }));
    world.run(100);
    assert!(world.outcome_at(leader, "afterwards").is_some());
    assert_eq!((world.leader(), world.core(leader).term()), (Some(leader), term));
}

#[test]
fn a_lost_word_to_the_target_is_sent_again() {
    let (mut world, leader, target) = ready(3, 5);
    world.drop_if(|_, _, m| matches!(m, Message::TimeoutNow { .. }));
    let transfer = world.transfer(leader, Some(target));
    world.run(30);
    assert!(world.sent().any(|(_, _, m)| matches!(m, Message::TimeoutNow { .. })));
    world.filter = None;
    world.run(200);
    assert_eq!(outcome(&world, transfer), Some(Transfer::Done));
    assert_eq!(world.leader(), Some(target));
}

#[test]
fn a_second_transfer_takes_the_place_of_the_first() {
    let (mut world, leader, first) = ready(3, 6);
    let second = (0..3).find(|n| ![leader, first].contains(n)).unwrap();
    world.isolate(first);
    let one = world.transfer(leader, Some(first));
    world.run(50);
    let two = world.transfer(leader, Some(second));
    assert_eq!(outcome(&world, one), Some(Transfer::Replaced));
    world.run(200);
    assert_eq!(outcome(&world, two), Some(Transfer::Done));
    assert_eq!(world.leader(), Some(second));
}

#[test]
fn the_target_stands_only_once_its_log_and_its_vote_are_on_its_disk() {
    let (mut world, leader, target) = ready(3, 7);
    world.stall(target);
    world.propose(leader, "a");
    world.run(30);
    let term = world.core(leader).term();
    world.inject(leader, target, Message::TimeoutNow { term });
    world.run(100);
    assert_eq!(world.core(target).role(), Standing::Candidate);
    assert!(!world.sent().any(|(from, _, m)| from == target && matches!(m, Message::RequestVote { .. })));
    world.unstall(target);
    assert!(world.run_while_not(500, |w| w.core(target).role() == Standing::Leader));
    assert!(world.run_while_not(500, World::converged));
}

#[test]
fn only_the_leader_of_the_term_tells_anyone_to_stand() {
    let (mut world, leader, target) = ready(3, 8);
    let other = (0..3).find(|n| ![leader, target].contains(n)).unwrap();
    let term = world.core(leader).term();
    world.inject(other, target, Message::TimeoutNow { term });
    world.inject(leader, target, Message::TimeoutNow { term: term.next() });
    world.run(300);
    assert_eq!((world.leader(), world.core(leader).term()), (Some(leader), term));
}

#[test]
fn a_leader_that_falls_meanwhile_says_so() {
    let (mut world, leader, target) = ready(5, 9);
    world.drop_if(|_, _, m| matches!(m, Message::TimeoutNow { .. }));
    let transfer = world.transfer(leader, Some(target));
    // Short before the transfer is given up another leads a newer term.
    let term = world.core(leader).term();
    let news = Message::HeartbeatReply { term: term.next(), session: 0, round: 0, wall: world.wall(), certified: 0 };
    world.inject(target, leader, news);
    assert_eq!(outcome(&world, transfer), Some(Transfer::Done), "leadership went on");
    world.filter = None;
    world.run(2_000);
    assert!(world.leader().is_some());
}
