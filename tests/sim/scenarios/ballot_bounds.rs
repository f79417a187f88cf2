//! Which questions a member looks at, for how long, and which answers a leader counts.

use crate::members::{id_of, secret_of};
use crate::world::{Config, World};
use concordat::certificate::{Bitmap, Kind, Policy, Request, SignedFor, Tally, TallySide, VoteStatement, payload_hash};
use concordat::core::{Admission, Ballot, Effect, Input, Message};
use concordat::ids::{Digest, Epoch, ProposalId, Term};
use concordat::limits::{MAX_BALLOTS, MAX_PAYLOAD, MAX_TTL_MS};
use std::sync::Arc;

fn manual(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(Config { policies: vec![Policy::Manual; 3], record: true, ..Config::new(3, seed) });
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let follower = world.follower();
    (world, leader, follower)
}

/// A question as the leader would put it.
fn question(world: &World, leader: usize, seq: u64) -> Ballot {
    Ballot {
        id: ProposalId { term: world.core(leader).term(), seq, origin: id_of(leader) },
        kind: Kind::Proposal,
        request: Request {
            client: "c".into(),
            request_id: format!("question {seq}"),
            deadline_ms: world.wall() + 2 * MAX_TTL_MS,
        },
        salt: [1; 16],
        payload: b"{}".to_vec(),
        required_quorum: 2,
        ttl_ms: 400,
        under: world.genesis_table.signed_for(&world.genesis_id),
    }
}

fn asked(world: &World, node: usize) -> Vec<Arc<Ballot>> {
    let ask = |r: &(u64, usize, Effect)| match &r.2 {
        Effect::Ask { ballot } if r.1 == node => Some(ballot.clone()),
        _ => None,
    };
    world.recorded.iter().filter_map(ask).collect()
}

#[test]
fn questions_of_others_of_other_terms_and_beyond_bounds_are_not_looked_at() {
    let (mut world, leader, follower) = manual(1);
    let other = 3 - leader - follower;
    let term = world.core(leader).term();
    let right = question(&world, leader, 100);
    let of_table = |epoch| SignedFor { epoch: Epoch(epoch), ..right.under };
    let wrong = [
        (other, term, right.clone()),
        (leader, Term(term.0 - 1), right.clone()),
        (
            leader,
            term,
            Ballot { request: Request { request_id: "x".repeat(4096), ..right.request.clone() }, ..right.clone() },
        ),
        (leader, term, Ballot { payload: vec![b' '; MAX_PAYLOAD + 1], ..right.clone() }),
        (leader, term, Ballot { under: of_table(7), ..right.clone() }),
    ];
    for (i, (from, term, ballot)) in wrong.into_iter().enumerate() {
        world.inject(from, follower, Message::Ballot { term, ballot: Arc::new(ballot) });
        assert!(asked(&world, follower).is_empty(), "{i}");
    }
    world.input_later(follower, 1, Input::Keys(Vec::new()));
    world.run(2);
    world.inject(leader, follower, Message::Ballot { term, ballot: Arc::new(right.clone()) });
    assert!(asked(&world, follower).is_empty(), "it could not sign");
    world.input_later(follower, 1, Input::Keys(vec![secret_of(follower).public()]));
    world.run(2);
    world.inject(leader, follower, Message::Ballot { term, ballot: Arc::new(right) });
    assert_eq!(asked(&world, follower).len(), 1);
}

#[test]
fn a_question_is_withdrawn_when_its_time_is_over_and_none_lives_longer_than_the_bound() {
    let (mut world, leader, follower) = manual(2);
    let term = world.core(leader).term();
    let short = question(&world, leader, 100);
    let long = Ballot { ttl_ms: u64::MAX, ..question(&world, leader, 101) };
    let id = short.id;
    for ballot in [short, long] {
        world.inject(leader, follower, Message::Ballot { term, ballot: Arc::new(ballot) });
    }
    assert_eq!(asked(&world, follower).iter().map(|b| b.ttl_ms).collect::<Vec<_>>(), [400, MAX_TTL_MS]);
    let withdrawn =
        |w: &World| w.recorded.iter().any(|r| r.1 == follower && matches!(r.2, Effect::Withdraw { id: i } if i == id));
    world.run(300);
    assert!(!withdrawn(&world));
    world.run(200);
    assert!(withdrawn(&world));
    assert!(!world.core(follower).is_answered(&id));
}

#[test]
fn open_questions_are_bounded_and_leave_room_for_a_change_of_members() {
    let (mut world, leader, follower) = manual(3);
    let term = world.core(leader).term();
    for seq in 0..MAX_BALLOTS as u64 + 3 {
        let ballot = Arc::new(Ballot { ttl_ms: 60_000, ..question(&world, leader, 100 + seq) });
        world.inject(leader, follower, Message::Ballot { term, ballot });
    }
    assert_eq!(asked(&world, follower).len(), MAX_BALLOTS);
    let change = Ballot { kind: Kind::Epoch, ..question(&world, leader, 10_000) };
    world.inject(leader, follower, Message::Ballot { term, ballot: Arc::new(change) });
    assert_eq!(asked(&world, follower).len(), MAX_BALLOTS + 1);
}

#[test]
fn a_question_asked_again_says_how_long_it_still_counts() {
    let (mut world, leader, follower) = manual(4);
    let mut submission = world.named("a");
    submission.ttl_ms = 2_000;
    let Admission::Balloted { id } = world.submit(leader, submission) else { panic!("no ballot") };
    world.run(1_000);
    let left: Vec<u64> = world
        .sent()
        .filter_map(|(from, to, m)| match m {
            Message::Ballot { ballot, .. } if (from, to) == (leader, follower) && ballot.id == id => {
                Some(ballot.ttl_ms)
            }
            _ => None,
        })
        .collect();
    assert!((3..=6).contains(&left.len()), "every quarter of a second: {left:?}");
    assert!(left[0] <= 2_000 && left.windows(2).all(|w| w[1] + 200 <= w[0]), "{left:?}");
}

#[test]
fn only_answers_of_voters_to_the_question_as_it_stands_are_counted() {
    let (mut world, leader, follower) = manual(5);
    let submission = world.named("a");
    let payload = payload_hash(&submission.salt, &submission.payload);
    let request_digest = submission.request.digest();
    let Admission::Balloted { id } = world.submit(leader, submission) else { panic!("no ballot") };
    world.run(20);
    world.answer(leader, id, true);
    world.run(50);
    let under = world.genesis_table.signed_for(&world.genesis_id);
    let right = VoteStatement { request_digest, payload_hash: payload, required_quorum: 2, granted: true };
    let tallied = |w: &World| {
        let tallies = |r: &&(u64, usize, Effect)| {
            matches!(&r.2, Effect::Crypto(concordat::core::Crypto::Tally { .. })) && r.1 == leader
        };
        w.recorded.iter().filter(tallies).count()
    };
    let earlier = SignedFor { epoch: Epoch(7), ..under };
    let other = VoteStatement { payload_hash: Digest([9; 32]), ..right };
    for (from, statement, under) in [(5, right, under), (follower, right, earlier), (follower, other, under)] {
        let signature = secret_of(from).sign(&statement.signed_bytes(&under));
        world.input_later(leader, 1, Input::BallotVerified { from: id_of(from), id, statement, under, signature });
        world.run(2);
        assert_eq!((tallied(&world), world.core(leader).open_ballots()), (0, 1));
    }
    // Nor does a count of an earlier table close what is open.
    let nobody = || TallySide { members: Bitmap::of(3, []), aggregate: None };
    for epoch in [Epoch(0), Epoch(7)] {
        let tally = Tally { grants: nobody(), denials: nobody() };
        world.input_later(leader, 1, Input::Tallied { id, tally, epoch });
        world.run(2);
        assert_eq!(world.core(leader).open_ballots(), 1);
    }
    let signature = secret_of(follower).sign(&right.signed_bytes(&under));
    let vote = Input::BallotVerified { from: id_of(follower), id, statement: right, under, signature };
    world.input_later(leader, 1, vote);
    world.run(50);
    assert_eq!((tallied(&world), world.core(leader).open_ballots()), (1, 0));
}
