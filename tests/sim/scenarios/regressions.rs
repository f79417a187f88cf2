//! Rules of the Raft paper and failures found in other systems that no other file here shows by name; README.md beside
//! the simulator maps every line of the list to its test.

use super::cluster;
use crate::disk::Rot;
use crate::members::id_of;
use crate::world::{Config, World};
use concordat::core::{Admission, AppendResult, Effect, Message, Role};
use concordat::ids::{Epoch, LogIndex, Term};
use concordat::node::Ended;

fn settled(nodes: usize, seed: u64) -> (World, usize, usize) {
    let mut world = cluster(nodes, seed);
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let follower = world.follower();
    (world, leader, follower)
}

/// Answers of every kind, of some term and session.
fn answers(term: Term, session: u64, wall: u64) -> Vec<Message> {
    vec![
        Message::AppendReply { term, session, result: AppendResult::Durable(LogIndex(1)) },
        Message::HeartbeatReply { term, session, round: 0, wall, certified: 0 },
        Message::RequestVoteReply { term, granted: false, signatures: Vec::new() },
        Message::RequestVoteReply { term, granted: true, signatures: Vec::new() },
        Message::PreVoteReply { term, granted: false, wall },
    ]
}

#[test]
fn everybody_starts_as_a_follower_also_after_having_led() {
    let mut world = cluster(3, 1);
    assert!((0..3).all(|n| world.core(n).role() == Role::Follower && world.core(n).term() == Term(0)));
    let leader = world.settle();
    let term = world.core(leader).term();
    world.crash(leader);
    world.start(leader);
    assert_eq!((world.core(leader).role(), world.core(leader).term()), (Role::Follower, term));
}

#[test]
fn a_higher_term_in_any_answer_makes_a_leader_a_follower_of_that_term() {
    for kind in 0..answers(Term(1), 1, 0).len() {
        let (mut world, leader, follower) = settled(3, 2);
        let higher = Term(world.core(leader).term().0 + 3);
        let answer = answers(higher, 1, world.wall()).swap_remove(kind);
        world.inject(follower, leader, answer);
        assert_eq!((world.core(leader).role(), world.core(leader).term()), (Role::Follower, higher), "{kind}");
        assert!(world.run_while_not(3_000, World::converged));
    }
}

#[test]
fn answers_of_a_lower_term_change_nothing() {
    let (mut world, leader, follower) = settled(3, 3);
    let (term, matched) = (world.core(leader).term(), world.core(leader).matched(&id_of(follower)));
    for answer in answers(Term(term.0 - 1), 1, world.wall()) {
        world.inject(follower, leader, answer);
        assert_eq!((world.core(leader).role(), world.core(leader).term()), (Role::Leader, term));
        assert_eq!(world.core(leader).matched(&id_of(follower)), matched);
    }
}

#[test]
fn a_heartbeat_goes_to_every_peer_at_every_interval() {
    let (mut world, leader, _) = settled(5, 4);
    let from = world.recorded.len();
    world.run(520);
    for peer in (0..5).filter(|n| *n != leader) {
        let beats = world.recorded[from..].iter().filter(|r| {
            let to_it = matches!(&r.2, Effect::Send { to, message: Message::Heartbeat { .. } } if *to == id_of(peer));
            r.1 == leader && to_it
        });
        assert!((9..=12).contains(&beats.count()), "every fifty milliseconds");
    }
}

#[test]
fn a_candidate_that_is_not_elected_stands_again_in_a_new_term() {
    let mut world = cluster(3, 5);
    world.drop_if(|_, _, m| matches!(m, Message::RequestVoteReply { .. }));
    world.run(4_000);
    assert!(world.leader().is_none());
    let highest = |w: &World| (0..3).map(|n| w.core(n).term()).max().expect("three");
    assert!(highest(&world) >= Term(3), "term after term");
    world.filter = None;
    // Rounds of pre-votes and votes that overlapped leave nobody stuck.
    assert!(world.run_while_not(3_000, |w| w.leader().is_some()));
    assert!(world.run_while_not(3_000, World::converged));
}

#[test]
fn a_pre_vote_changes_no_term_and_a_grant_of_one_elects_nobody() {
    let (mut world, leader, follower) = settled(3, 6);
    let term = world.core(leader).term();
    for node in [leader, follower] {
        let from = (0..3).find(|n| *n != node && *n != leader).expect("of three");
        let (last_index, last_term) = (LogIndex(99), Term(term.0 + 4));
        let asked =
            Message::PreVote { term: Term(term.0 + 5), last_index, last_term, epoch: Epoch(0), keys: Vec::new() };
        world.inject(from, node, asked);
        assert_eq!(world.core(node).term(), term);
    }
    // A candidate takes no pre-vote for a vote.
    let candidate = follower;
    world.isolate(candidate);
    let wall = world.wall();
    for step in 0..40 {
        world.run(50);
        let ahead = Term(world.core(candidate).term().0 + step % 2);
        for from in (0..3).filter(|n| *n != candidate) {
            world.inject(from, candidate, Message::PreVoteReply { term: ahead, granted: true, wall });
        }
        assert_ne!(world.core(candidate).role(), Role::Leader);
    }
    assert!(world.core(candidate).term() > term, "the grants let it stand");
}

#[test]
fn a_grant_without_a_signature_or_of_another_term_elects_nobody() {
    let mut world = cluster(3, 7);
    world.drop_if(|_, _, m| matches!(m, Message::RequestVoteReply { .. }));
    assert!(world.run_while_not(3_000, |w| (0..3).any(|n| w.core(n).role() == Role::Candidate)));
    let candidate = (0..3).find(|n| world.core(*n).role() == Role::Candidate).expect("just seen");
    let term = world.core(candidate).term();
    for from in (0..3).filter(|n| *n != candidate) {
        for t in [Term(term.0 - 1), term] {
            world.inject(from, candidate, Message::RequestVoteReply { term: t, granted: true, signatures: Vec::new() });
        }
    }
    world.run(10);
    assert_ne!(world.core(candidate).role(), Role::Leader);
    // A higher term seen is no grant either.
    let from = (0..3).find(|n| *n != candidate).expect("of three");
    let higher = Message::RequestVoteReply { term: term.next(), granted: true, signatures: Vec::new() };
    world.inject(from, candidate, higher);
    assert_eq!((world.core(candidate).role(), world.core(candidate).term()), (Role::Follower, term.next()));
}

#[test]
fn a_late_vote_of_a_lost_election_counts_for_nothing() {
    let mut world = cluster(3, 8);
    world.isolate(0);
    let leader = world.run_while_not(3_000, |w| w.leader().is_some()).then(|| world.leader().expect("just seen"));
    let leader = leader.expect("two of three elect one");
    let other = (1..3).find(|n| *n != leader).expect("of two");
    assert!(world.run_while_not(1_000, |w| w.leader_of(other) == Some(leader)));
    world.run(100);
    // The follower stands, and its own vote takes long to become durable.
    world.stall(other);
    let term = world.core(leader).term();
    world.inject(leader, other, Message::TimeoutNow { term });
    assert_eq!(world.core(other).role(), Role::Candidate);
    let stood = world.core(other).term();
    let news = Message::RequestVoteReply { term: stood.next(), granted: false, signatures: Vec::new() };
    world.inject(leader, other, news);
    world.unstall(other);
    world.run(30);
    assert_ne!(world.core(other).role(), Role::Leader);
    assert!(!world.sent().any(|(from, _, m)| {
        from == other && matches!(m, Message::RequestVote { claim, .. } if claim.term == stood)
    }));
    world.heal();
    assert!(world.run_while_not(5_000, World::converged));
}

#[test]
fn a_node_of_a_lower_term_with_the_longer_log_is_elected() {
    for seed in 0..10 {
        let (mut world, leader, ahead) = settled(3, seed);
        let behind = (0..3).find(|n| ![leader, ahead].contains(n)).expect("of three");
        // One is alone in a higher term, and lacks what the others commit meanwhile.
        world.isolate(ahead);
        let higher = Term(world.core(ahead).term().0 + 4);
        world.inject(leader, ahead, Message::RequestVoteReply { term: higher, granted: false, signatures: Vec::new() });
        assert_eq!(world.core(ahead).term(), higher);
        world.propose(leader, "a");
        assert!(world.run_while_not(500, |w| w.outcome_at(behind, "a").is_some()));
        world.crash(leader);
        world.heal();
        assert!(world.run_while_not(5_000, |w| w.leader() == Some(behind)), "{}", world.standings());
        assert!(world.run_while_not(2_000, |w| w.outcome_at(ahead, "a").is_some()));
    }
}

#[test]
fn a_leader_that_restarts_at_once_leaves_nobody_without_one_for_long() {
    for seed in 0..20 {
        let (mut world, leader, _) = settled(3, seed);
        world.crash(leader);
        world.start(leader);
        // Whoever leads then: nobody refuses it because it is the leader of old.
        assert!(world.run_while_not(1_500, |w| w.leader().is_some()), "seed {seed}");
        assert!(world.run_while_not(3_000, World::converged));
    }
}

#[test]
fn a_follower_that_is_catching_up_does_not_stand() {
    let (mut world, leader, follower) = settled(3, 9);
    world.crash(follower);
    for i in 0..300 {
        world.propose(leader, &i.to_string());
        world.run(3);
    }
    world.slow_down(follower, 3_000);
    world.start(follower);
    let term = world.core(leader).term();
    world.run(3_000);
    assert!(!world.sent().any(|(from, _, m)| from == follower && matches!(m, Message::RequestVote { .. })));
    assert_eq!((world.leader(), world.core(leader).term()), (Some(leader), term));
    assert!(world.run_while_not(3_000, World::converged));
}

#[test]
fn a_deposed_leader_appends_nothing_under_the_new_term() {
    let (mut world, leader, follower) = settled(3, 10);
    let (term, last) = (world.core(leader).term(), world.core(leader).last_index());
    // Before its next turn it learns of the new term and is asked to append.
    world.config.batch = 1_000;
    let news = Message::HeartbeatReply { term: term.next(), session: 1, round: 0, wall: world.wall(), certified: 0 };
    world.inject(follower, leader, news);
    let submission = world.named("a");
    let admission = world.ask(leader, submission);
    world.config.batch = 0;
    world.turn(leader);
    assert_eq!((world.core(leader).term(), world.core(leader).last_index()), (term.next(), last));
    assert!(world.told(admission).is_none_or(|told| told.is_err()), "not taken here");
}

#[test]
fn the_hint_of_a_refusal_is_no_match() {
    let (mut world, leader, follower) = settled(3, 11);
    let other = (0..3).find(|n| ![leader, follower].contains(n)).expect("of three");
    world.isolate(other);
    world.stall(follower);
    world.propose(leader, "a");
    world.run(20);
    let (term, last) = (world.core(leader).term(), world.core(leader).last_index());
    let matched = world.core(leader).matched(&id_of(follower));
    for refused in [last, last.next()] {
        let result = AppendResult::Mismatch { refused, hint_index: last, hint_term: term };
        world.inject(follower, leader, Message::AppendReply { term, session: 1, result });
    }
    assert_eq!(world.core(leader).matched(&id_of(follower)), matched);
    assert!(world.core(leader).committed() < last, "nobody else holds it durably");
}

#[test]
fn two_stores_that_lost_their_memory_do_not_outvote_the_good_one() {
    let mut world = cluster(3, 12);
    let leader = world.settle();
    for i in 0..20 {
        world.propose(leader, &i.to_string());
        world.run(10);
    }
    assert!(world.run_while_not(2_000, World::converged));
    let (last, root) = (world.core(leader).last_index(), world.core(leader).root_at(world.core(leader).last_index()));
    for damaged in (0..3).filter(|n| *n != leader).collect::<Vec<_>>() {
        world.crash(damaged);
        assert!(world.forget_acknowledged(damaged));
        world.start(damaged);
        assert!(!world.is_up(damaged), "refused");
        world.start(damaged);
    }
    world.run(10_000);
    assert!(world.leader().is_none(), "no quorum is left, and none is made up");
    assert!(world.core(leader).last_index() >= last);
    assert_eq!(world.core(leader).root_at(last), root, "nothing of the good log is cut off");
    assert!(world.core(leader).committed() >= last);
}

#[test]
fn a_leader_that_cannot_read_its_log_back_sends_nothing_instead_and_stops() {
    let mut world = World::new(Config { record: true, ..Config::new(3, 13) });
    let leader = world.settle();
    let lagging = world.follower();
    world.crash(lagging);
    for i in 0..620 {
        let submission = world.submission(&i.to_string(), &vec![7; 60_000]);
        assert!(matches!(world.submit(leader, submission), Admission::Appended { .. }));
        world.run(5);
    }
    world.run(500);
    world.recorded.clear();
    world.rot(leader, Rot::Entry(LogIndex(1)));
    world.start(lagging);
    assert!(world.run_while_not(5_000, |w| !w.is_up(leader)));
    assert!(matches!(&world.nodes[leader].ended, Some(Ended::Halted(why)) if why.contains("checksum")));
    let sent = world.sent().any(|(from, to, m)| {
        let of_old =
            matches!(m, Message::Append { entries, .. } if entries.first().is_some_and(|e| e.index() < LogIndex(9)));
        from == leader && to == lagging && of_old
    });
    assert!(!sent);
    assert!(world.nodes[lagging].halted.is_none() && world.is_up(lagging));
}

#[test]
fn a_repeat_in_the_tail_of_the_log_is_applied_once() {
    for seed in 0..10 {
        let (mut world, leader, follower) = settled(3, seed);
        // Appended, and nobody may apply it yet.
        world.drop_if(|_, _, m| matches!(m, Message::AppendReply { .. } | Message::HeadShare { .. }));
        world.propose(leader, "a");
        world.run(30);
        assert!(world.outcome_at(leader, "a").is_none());
        let index = world.core(leader).last_index();
        assert!((0..3).all(|n| world.core(n).last_index() == index), "it is in every log");
        world.crash(leader);
        world.filter = None;
        // The next leader restarts too: it knows the request from its log alone.
        world.crash(follower);
        world.start(follower);
        assert!(world.run_while_not(5_000, |w| w.leader().is_some()));
        let next = world.leader().expect("just seen");
        assert!(world.outcome_at(next, "a").is_none(), "it is in the log and not applied");
        assert!(matches!(world.propose(next, "a"), Admission::Duplicate { .. }));
        world.start(leader);
        assert!(world.run_while_not(3_000, World::converged));
        for node in 0..3 {
            assert_eq!(world.outcome_at(node, "a").map(|o| o.index), Some(index));
            assert_eq!(world.nodes[node].machine.repeats, 0);
        }
    }
}
