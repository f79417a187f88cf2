use crate::world::{Config, World};
use concordat::api::VoteError;
use concordat::certificate::{AbortReason, Kind, Policy, Tally};
use concordat::core::{Admission, Message};
use concordat::ids::ProposalId;
use concordat::limits::MAX_TTL_MS;

fn manual(nodes: usize, seed: u64) -> World {
    World::new(Config { policies: vec![Policy::Manual; nodes], record: true, ..Config::new(nodes, seed) })
}

fn open(world: &mut World, leader: usize, name: &str, ttl_ms: u64) -> ProposalId {
    let mut submission = world.named(name);
    submission.ttl_ms = ttl_ms;
    match world.submit(leader, submission) {
        Admission::Balloted { id } => id,
        other => panic!("{other:?}"),
    }
}

fn tally_of(world: &World, node: usize, name: &str) -> (Kind, Option<AbortReason>, Tally) {
    let index = world.outcome_at(node, name).expect("an outcome").index;
    let header = &world.nodes[node].memory.get(index).unwrap().entry.header;
    (header.kind, header.abort_reason, header.tally.clone().expect("a balloted entry records the votes"))
}

/// Voters are sorted by identity, which here is by number.
fn members(tally: &Tally, granted: bool) -> Vec<usize> {
    if granted { tally.grants.members.positions().collect() } else { tally.denials.members.positions().collect() }
}

#[test]
fn one_grant_and_two_withheld_abort_after_the_time_to_live_on_every_node() {
    let mut world = manual(3, 1);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", 600);
    world.run(50);
    world.answer(leader, id, true);
    world.run(500);
    assert!((0..3).all(|n| world.outcome_at(n, "a").is_none()), "not before its time");
    world.run(300);
    for node in 0..3 {
        let (kind, reason, tally) = tally_of(&world, node, "a");
        assert_eq!((kind, reason), (Kind::Aborted, Some(AbortReason::Expired)));
        assert_eq!((members(&tally, true), members(&tally, false)), (vec![leader], vec![]));
        assert!(world.nodes[node].asks.is_empty(), "the question is withdrawn");
    }
}

#[test]
fn a_ballot_ends_with_its_requests_deadline_though_its_time_to_live_goes_on() {
    let mut world = manual(3, 10);
    let leader = world.settle();
    let mut submission = world.named("a");
    submission.ttl_ms = 60_000;
    submission.request.deadline_ms = world.wall() + 600;
    let Admission::Balloted { id } = world.submit(leader, submission) else { panic!("no ballot") };
    world.run(50);
    assert!(world.nodes[leader].asks[&id].ttl_ms <= 600, "a member is told how long its answer counts");
    let before = world.core(leader).last_index();
    world.run(500);
    assert_eq!((world.core(leader).open_ballots(), world.core(leader).last_index()), (1, before));
    world.run(300);
    assert_eq!(world.core(leader).open_ballots(), 0);
    let header = &world.nodes[leader].memory.get(before.next()).expect("the abort").entry.header;
    assert_eq!((header.kind, header.abort_reason), (Kind::Aborted, Some(AbortReason::Expired)));
    assert!((0..3).all(|n| world.nodes[n].asks.is_empty()), "the question is withdrawn");
}

#[test]
fn two_denials_of_three_reject_at_once_and_are_on_record() {
    let mut world = manual(3, 2);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", 60_000);
    world.run(50);
    world.answer(0, id, false);
    world.answer(1, id, false);
    world.run(100);
    for node in 0..3 {
        let (kind, reason, tally) = tally_of(&world, node, "a");
        assert_eq!((kind, reason), (Kind::Aborted, Some(AbortReason::Rejected)));
        assert_eq!((members(&tally, true), members(&tally, false)), (vec![], vec![0, 1]));
        let entry = &world.nodes[node].memory.get(world.outcome_at(node, "a").unwrap().index).unwrap().entry;
        assert!(entry.body.payload.is_empty() && entry.body.salt == [0; 16], "what was refused is not published");
    }
}

#[test]
fn the_signers_are_exactly_the_granters() {
    let mut world = manual(5, 3);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", 60_000);
    world.run(50);
    for (node, granted) in [(4, false), (0, true), (3, true)] {
        world.answer(node, id, granted);
        world.run(20);
    }
    assert!(world.outcome_at(leader, "a").is_none(), "two grants of five decide nothing");
    world.answer(1, id, true);
    world.run(100);
    let (kind, _, tally) = tally_of(&world, leader, "a");
    assert_eq!(kind, Kind::Proposal);
    assert_eq!((members(&tally, true), members(&tally, false)), (vec![0, 1, 3], vec![4]));
}

#[test]
fn a_raised_quorum_needs_every_grant_it_names() {
    let mut world = World::new(Config::new(3, 4));
    let leader = world.settle();
    let away = world.follower();
    world.run(200);
    world.isolate(away);
    let mut submission = world.named("a");
    submission.required_quorum = Some(3);
    assert!(matches!(world.submit(leader, submission), Admission::Balloted { .. }));
    world.propose(leader, "b");
    world.run(400);
    assert!(world.outcome_at(leader, "a").is_none());
    assert!(world.outcome_at(leader, "b").is_some(), "a slow ballot holds nothing up");
    world.heal();
    world.run(600);
    let (kind, _, tally) = tally_of(&world, leader, "a");
    assert_eq!((kind, members(&tally, true)), (Kind::Proposal, vec![0, 1, 2]));
}

#[test]
fn a_member_asked_again_after_a_restart_gives_the_answer_it_gave() {
    let mut world = manual(3, 5);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", 60_000);
    let member = world.follower();
    world.drop_if(|_, _, m| matches!(m, Message::Vote { .. }));
    world.run(50);
    world.answer(member, id, false);
    world.run(50);
    world.crash(member);
    world.start(member);
    world.filter = None;
    world.run(1_000);
    let votes: Vec<&Message> = world.sent().map(|s| s.2).filter(|m| matches!(m, Message::Vote { .. })).collect();
    assert!(votes.len() >= 2);
    for vote in votes {
        assert!(matches!(vote, Message::Vote { statement, .. } if !statement.granted));
    }
}

#[test]
fn an_answer_leaves_only_once_it_is_durable() {
    let mut world = manual(3, 6);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", 60_000);
    let member = world.follower();
    world.run(50);
    world.stall(member);
    world.answer(member, id, true);
    world.run(200);
    assert!(!world.sent().any(|s| matches!(s.2, Message::Vote { .. })));
    world.unstall(member);
    world.run(20);
    assert!(world.sent().any(|s| matches!(s.2, Message::Vote { .. })));
}

#[test]
fn a_repeat_of_an_open_ballot_is_recognised() {
    let mut world = manual(3, 7);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", 60_000);
    assert_eq!(world.propose(leader, "a"), Admission::Duplicate { id });
    let other = world.submission("a", b"\"other\"");
    assert_eq!(world.submit(leader, other), Admission::RequestIdReused);
}

#[test]
fn a_fallen_leaders_ballot_is_free_to_be_opened_again() {
    let mut world = manual(3, 8);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", 60_000);
    world.run(50);
    let member = world.follower();
    world.answer(member, id, true);
    world.run(50);
    world.isolate(leader);
    world.run(2_000);
    assert!((0..3).all(|n| world.nodes[n].asks.is_empty()), "a question goes with its leader");
    let next = world.leader().unwrap();
    let second = open(&mut world, next, "a", 60_000);
    assert_ne!(id, second);
    world.run(100);
    // The member that had answered does so again by itself; the other is asked.
    let other = (0..3).find(|n| ![leader, member].contains(n)).unwrap();
    world.answer(other, second, true);
    world.run(200);
    assert_eq!(tally_of(&world, next, "a").0, Kind::Proposal);
}

#[test]
fn endless_times_to_live_are_bounded() {
    let mut world = manual(3, 9);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", u64::MAX);
    world.run(50);
    let ballot = world.nodes[leader].asks[&id].clone();
    let (member, term) = (world.follower(), world.core(leader).term());
    let mut endless = (*ballot).clone();
    endless.ttl_ms = u64::MAX;
    endless.id.seq += 1;
    world.inject(leader, member, Message::Ballot { term, ballot: std::sync::Arc::new(endless) });
    assert_eq!(world.nodes[member].asks.len(), 2);
    world.run(50);
    let latest = world.clock(member).mono + MAX_TTL_MS;
    let open = &world.nodes[member].executor.as_mut().expect("up").devices().ballots;
    assert_eq!(open.len(), 2);
    assert!(open.values().all(|(_, until)| *until <= latest), "the application is not asked for longer than that");
}

#[test]
fn an_application_answers_a_ballot_once() {
    let mut world = manual(3, 11);
    let leader = world.settle();
    let id = open(&mut world, leader, "a", 60_000);
    world.run(50);
    world.stall(leader);
    world.answer(leader, id, true);
    world.run(50);
    assert_eq!(world.nodes[leader].voted, vec![], "nothing is told before it is durable");
    // Before the first answer is durable, and after.
    world.answer(leader, id, false);
    world.unstall(leader);
    world.run(50);
    world.answer(leader, id, false);
    world.run(50);
    let none = Err(VoteError::NoBallot { id });
    assert_eq!(world.nodes[leader].voted, vec![none.clone(), Ok(()), none]);
}
