use super::{cluster, membership};
use crate::members::Row;
use crate::reads::ReadState;
use crate::world::{Config, World};
use concordat::certificate::Role;
use concordat::core::{Effect, Message, Role as Standing};
use concordat::ids::LogIndex;
use std::collections::BTreeSet;

fn state(world: &World, read: usize) -> ReadState {
    world.reads[read].state
}

#[test]
fn any_node_serves_reads_that_see_what_was_committed() {
    let mut world = World::new(Config { spares: 1, record: true, ..Config::new(3, 1) });
    let leader = world.settle();
    let learner = world.fresh_learner(3);
    world.start(3);
    let mut rows = world.rows(leader);
    rows.push(learner);
    membership::make(&mut world, &rows);
    assert!(world.run_while_not(2_000, World::converged));
    for i in 0..20 {
        world.propose(leader, &i.to_string());
        let reads: Vec<usize> = (0..4).map(|n| world.read(n)).collect();
        world.run(60);
        assert!(reads.iter().all(|r| state(&world, *r) == ReadState::Served), "{:?}", &world.reads[reads[0]..]);
    }
    assert_eq!(rows[3].role, Role::Learner);
    assert!(world.sent().any(|(from, _, m)| from == 3 && matches!(m, Message::ReadIndex { .. })));
}

#[test]
fn a_leader_that_is_alone_confirms_no_read_and_refuses_it_when_it_falls() {
    let mut world = cluster(3, 2);
    let leader = world.settle();
    world.run(300);
    world.isolate(leader);
    let read = world.read(leader);
    world.run(300);
    assert_eq!(state(&world, read), ReadState::Pending);
    world.run(1_500);
    assert_eq!(state(&world, read), ReadState::Refused);
}

#[test]
fn a_deposed_leader_serves_no_stale_read() {
    for seed in 0..10 {
        let mut world = cluster(5, seed);
        let old = world.settle();
        world.run(300);
        // It is still heard by nobody and hears everybody: it goes on thinking that it leads.
        for n in (0..5).filter(|n| *n != old) {
            world.mute(old, n);
        }
        let mut reads = Vec::new();
        for i in 0..40 {
            world.run(50);
            if world.core(old).role() == Standing::Leader {
                reads.push(world.read(old));
            }
            if let Some(next) = world.leader().filter(|l| *l != old) {
                world.propose(next, &i.to_string());
            }
        }
        assert!(reads.iter().all(|r| state(&world, *r) != ReadState::Served), "seed {seed}");
    }
}

#[test]
fn a_new_leader_reads_only_once_it_has_committed_in_its_term() {
    let mut world = cluster(3, 3);
    let old = world.settle();
    world.propose(old, "a");
    world.run(300);
    world.crash(old);
    world.drop_if(|_, _, m| matches!(m, Message::AppendReply { .. } | Message::HeadShare { .. }));
    assert!(world.run_while_not(3_000, |w| w.leader().is_some()));
    let leader = world.leader().unwrap();
    let read = world.read(leader);
    world.run(300);
    assert_eq!(
        state(&world, read),
        ReadState::Pending,
        "heartbeats are answered, but nothing of its term is committed"
    );
    assert!(world.nodes[leader].memory.term_at(world.core(leader).committed()) < world.core(leader).term());
    world.filter = None;
    world.run(300);
    assert_eq!(state(&world, read), ReadState::Served);
}

#[test]
fn answers_to_earlier_heartbeats_confirm_no_read() {
    let mut world = cluster(3, 4);
    let leader = world.settle();
    world.run(300);
    let served = world.read(leader);
    world.run(100);
    assert_eq!(state(&world, served), ReadState::Served);
    let replies = |w: &World| -> Vec<(usize, Message)> {
        let reply = |m: &Message| matches!(m, Message::HeartbeatReply { .. });
        w.sent().filter(|s| s.1 == leader && reply(s.2)).map(|(from, _, m)| (from, m.clone())).collect()
    };
    let earlier = replies(&world);
    world.isolate(leader);
    let read = world.read(leader);
    for (from, reply) in &earlier {
        world.inject(*from, leader, reply.clone());
    }
    assert_eq!(state(&world, read), ReadState::Pending, "what was answered before it began says nothing");
    // A further read is begun while the first is being confirmed: it takes a round of its own.
    let later = world.read(leader);
    let round = earlier.iter().filter_map(|(_, m)| match m {
        Message::HeartbeatReply { round, .. } => Some(*round),
        _ => None,
    });
    let round = round.max().unwrap() + 1;
    let Some((from, Message::HeartbeatReply { term, session, wall, certified, .. })) = earlier.last().cloned() else {
        panic!("answers were sent")
    };
    world.inject(from, leader, Message::HeartbeatReply { term, session, round, wall, certified });
    assert_eq!(state(&world, read), ReadState::Served);
    assert_eq!(state(&world, later), ReadState::Pending);
    world.heal();
    world.run(200);
    assert_eq!(state(&world, later), ReadState::Served);
}

#[test]
fn a_forwarded_read_is_refused_when_its_leader_falls_silent_or_changes() {
    for seed in 0..10 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        world.run(300);
        let follower = world.follower();
        if seed % 2 == 0 {
            world.crash(leader);
        } else {
            world.isolate(leader);
        }
        let read = world.read(follower);
        world.run(600);
        assert_eq!(state(&world, read), ReadState::Refused, "seed {seed}");
        world.run(2_000);
        let next = world.leader().expect("the other two");
        let again = world.read(next);
        world.run(100);
        assert_eq!(state(&world, again), ReadState::Served);
    }
}

#[test]
fn a_node_that_does_not_lead_answers_a_forwarded_read_with_nothing() {
    let mut world = cluster(3, 5);
    let leader = world.settle();
    world.run(300);
    let follower = world.follower();
    let other = (0..3).find(|n| ![leader, follower].contains(n)).unwrap();
    let term = world.core(leader).term();
    world.inject(other, follower, Message::ReadIndex { term, context: 7 });
    let answer = world.sent().find(|(from, _, m)| *from == follower && matches!(m, Message::ReadIndexReply { .. }));
    assert!(matches!(answer, Some((_, _, Message::ReadIndexReply { context: 7, index: None, .. }))));
    // Nor does a leader of another term than the asker's.
    let before = world.recorded.len();
    world.inject(other, leader, Message::ReadIndex { term: term.next(), context: 8 });
    let reply = |r: &(u64, usize, Effect)| {
        matches!(&r.2, Effect::Send { message: Message::ReadIndexReply { context: 8, index: None, .. }, .. })
    };
    assert!(world.recorded[before..].iter().any(reply));
    // And an answer that nobody asked for, or of somebody who does not lead, is not believed.
    world.drop_if(|_, _, m| matches!(m, Message::ReadIndexReply { .. }));
    let read = world.read(follower);
    let context = world.sent().filter_map(|(_, _, m)| match m {
        Message::ReadIndex { context, .. } => Some(*context),
        _ => None,
    });
    let context = context.last().unwrap();
    let index = Some(LogIndex(1));
    world.inject(other, follower, Message::ReadIndexReply { term, context, index });
    assert_eq!(state(&world, read), ReadState::Pending);
}

#[test]
fn finished_reads_leave_nothing_behind_and_waiting_ones_are_bounded() {
    let mut world = cluster(3, 6);
    let leader = world.settle();
    world.run(300);
    let follower = world.follower();
    // More than may wait at a time, a few at a time: finished ones must not count.
    for _ in 0..60 {
        let reads: Vec<usize> = (0..100).flat_map(|_| [world.read(follower), world.read(leader)]).collect();
        world.run(30);
        assert!(reads.iter().all(|r| state(&world, *r) == ReadState::Served));
    }
    for node in [leader, follower] {
        world.isolate(node);
        let read = |w: &mut World| {
            let read = w.read(node);
            state(w, read)
        };
        let refused = (0..5_000).filter(|_| read(&mut world) == ReadState::Refused).count();
        // A leader has one round under way besides.
        assert!((800..=904).contains(&refused), "{refused}");
        world.heal();
        world.run(2_000);
    }
    assert!(world.reads.iter().all(|r| r.state != ReadState::Pending));
}

#[test]
fn no_context_is_used_twice_not_even_across_restarts() {
    let mut world = cluster(3, 7);
    let leader = world.settle();
    world.run(300);
    let follower = world.follower();
    for _ in 0..10 {
        for _ in 0..5 {
            world.read(follower);
        }
        world.crash(follower);
        world.start(follower);
        world.run(200);
        assert_eq!(world.leader(), Some(leader));
    }
    let contexts: Vec<u64> = world
        .sent()
        .filter_map(|(_, _, m)| match m {
            Message::ReadIndex { context, .. } => Some(*context),
            _ => None,
        })
        .collect();
    assert_eq!(contexts.len(), 50);
    assert_eq!(contexts.iter().collect::<BTreeSet<_>>().len(), 50);
    // An answer to a question of an earlier life finds nobody.
    let term = world.core(leader).term();
    let read = world.read(follower);
    world.inject(leader, follower, Message::ReadIndexReply { term, context: contexts[0], index: Some(LogIndex(0)) });
    world.turn(follower);
    world.run(100);
    assert_eq!(state(&world, read), ReadState::Served);
}

#[test]
fn a_leader_that_is_removed_refuses_what_it_cannot_confirm_any_more() {
    let mut world = cluster(3, 8);
    let leader = world.settle();
    assert!(world.run_while_not(1_000, World::converged));
    let rows: Vec<Row> = (0..3).filter(|n| *n != leader).map(Row::voter).collect();
    let change = world.change(leader, &rows);
    let mut reads = Vec::new();
    while world.changes[change].outcome.is_none() {
        world.run(1);
        reads.push(world.read(leader));
    }
    world.run(3_000);
    assert!(reads.iter().all(|r| matches!(state(&world, *r), ReadState::Served | ReadState::Refused)));
    let late = world.read(leader);
    world.run(2_000);
    assert_eq!(state(&world, late), ReadState::Refused);
}
