use super::cluster;
use crate::chain::Chain;
use crate::invariants::planted::{noop, proposal};
use crate::members::{id_of, secret_of};
use crate::world::{Config, World};
use concordat::certificate::Entry;
use concordat::core::{Admission, AppendResult, Crypto, Effect, Message, Role};
use concordat::ids::{LogIndex, Term};
use std::sync::Arc;

/// Stops everyone and gives every disk this log, in this term.
fn with_logs(world: &mut World, term: u64, logs: &[Vec<Arc<Entry>>]) {
    for (node, log) in logs.iter().enumerate() {
        world.crash(node);
        let mut chain = Chain::default();
        log.iter().for_each(|e| chain.push(e.clone()));
        let disk = &mut world.nodes[node].disk;
        disk.log = chain;
        disk.hard.term = Term(term);
    }
}

/// The log of a node whose entries have these terms.
fn log(terms: &[u64]) -> Vec<Arc<Entry>> {
    terms.iter().enumerate().map(|(i, t)| noop(i as u64 + 1, *t)).collect()
}

#[test]
fn entries_of_an_earlier_term_are_not_committed_by_counting() {
    let mut world = cluster(3, 1);
    // Figure 8 of the Raft paper: the entry of term 2 can still be replaced by the third node's of term 3.
    with_logs(&mut world, 3, &[log(&[1, 2]), log(&[1]), log(&[1, 3])]);
    world.start(0);
    world.start(1);
    world.drop_if(|from, _, m| {
        let ack = matches!(m, Message::AppendReply { result: AppendResult::Durable(_), .. });
        from == 1 && (ack || matches!(m, Message::HeadShare { .. }))
    });
    assert!(world.run_while_not(5_000, |w| w.core(0).role() == Role::Leader));
    world.run(300);
    let term = world.core(0).term();
    assert_eq!(world.core(0).durable(), LogIndex(3));
    assert_eq!(world.core(1).durable(), LogIndex(3));
    let session = world
        .sent()
        .find_map(|(from, _, m)| match m {
            Message::Append { term: t, session, .. } if from == 0 && *t == term => Some(*session),
            _ => None,
        })
        .expect("the leader replicates");
    let ack = |upto| Message::AppendReply { term, session, result: AppendResult::Durable(LogIndex(upto)) };
    world.inject(1, 0, ack(2));
    assert_eq!(world.core(0).matched(&id_of(1)), Some(LogIndex(2)));
    assert_eq!(world.core(0).committed(), LogIndex::ZERO, "two of three hold entry 2, but it is of an earlier term");
    world.inject(1, 0, ack(3));
    assert_eq!(world.core(0).committed(), LogIndex(3), "an entry of the leader's own term commits those before it");
}

#[test]
fn the_logs_of_figure_7_converge_to_the_leaders() {
    let logs = [
        log(&[1, 1, 1, 4, 4, 5, 5, 6, 6, 6]),
        log(&[1, 1, 1, 4, 4, 5, 5, 6, 6]),
        log(&[1, 1, 1, 4]),
        log(&[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]),
        log(&[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]),
        log(&[1, 1, 1, 4, 4, 4, 4]),
        log(&[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),
    ];
    for seed in 0..10 {
        let mut world = cluster(7, seed);
        with_logs(&mut world, 7, &logs);
        // Those whose logs beat the leader's come up when it leads.
        for n in [0, 1, 2, 5, 6] {
            world.start(n);
        }
        assert!(world.run_while_not(10_000, |w| w.leader().is_some()));
        for n in [3, 4] {
            world.start(n);
        }
        assert!(world.run_while_not(10_000, World::converged), "seed {seed}");
    }
}

#[test]
fn a_lost_append_is_sent_again_though_nothing_follows_it() {
    for seed in 0..20 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        world.run(500);
        let follower = world.follower();
        world.drop_if(move |_, to, m| to == follower && matches!(m, Message::Append { .. }));
        for i in 0..5 {
            world.propose(leader, &i.to_string());
        }
        // Long enough for everything to be quiet: nothing new will ever be sent.
        world.run(200);
        assert!(world.core(follower).last_index() < world.core(leader).last_index());
        world.filter = None;
        assert!(world.run_while_not(500, World::converged), "seed {seed}");
    }
}

#[test]
fn a_lost_acknowledgement_is_recovered() {
    let mut world = cluster(3, 2);
    let leader = world.settle();
    world.run(500);
    let follower = world.follower();
    let silent = (0..3).find(|n| ![leader, follower].contains(n)).unwrap();
    world.crash(silent);
    // Shares tell of durability too, and a certificate of a commit.
    world.drop_if(|_, _, m| matches!(m, Message::AppendReply { .. } | Message::HeadShare { .. }));
    world.propose(leader, "a");
    world.run(100);
    assert!(world.outcome_at(leader, "a").is_none());
    world.filter = None;
    world.run(300);
    assert!(world.outcome_at(leader, "a").is_some());
}

#[test]
fn a_lagging_follower_beyond_the_memory_window_is_served_from_the_disk() {
    let mut world = World::new(Config::new(3, 3));
    let leader = world.settle();
    let lagging = world.follower();
    world.crash(lagging);
    for i in 0..620 {
        let submission = world.submission(&i.to_string(), &vec![7; 60_000]);
        assert!(matches!(world.submit(leader, submission), Admission::Appended { .. }));
        world.run(5);
    }
    world.run(500);
    assert!(world.core(leader).entry(LogIndex(1)).is_none(), "the window has moved on");
    world.start(lagging);
    assert!(world.run_while_not(20_000, World::converged));
    assert!(world.coverage.of("event", "entries read back for a lagging peer") > 0);
}

#[test]
fn stale_and_strange_acknowledgements_never_count() {
    let mut world = cluster(3, 4);
    let leader = world.settle();
    world.run(300);
    let follower = world.follower();
    let other = (0..3).find(|n| ![leader, follower].contains(n)).unwrap();
    world.stall(follower);
    world.stall(other);
    world.propose(leader, "a");
    world.run(20);
    let (term, last, matched) =
        (world.core(leader).term(), world.core(leader).last_index(), world.core(leader).matched(&id_of(follower)));
    let ack = |term, session, upto| Message::AppendReply { term, session, result: AppendResult::Durable(upto) };
    world.inject(follower, leader, ack(Term(term.0 - 1), 1, last));
    world.inject(follower, leader, ack(term, 77, last));
    world.inject(follower, leader, ack(term, 1, LogIndex(last.0 + 1)));
    assert_eq!(world.core(leader).matched(&id_of(follower)), matched);
    assert!(world.core(leader).committed() < last);
}

#[test]
fn a_delayed_refusal_never_rewinds() {
    let mut world = cluster(3, 5);
    let leader = world.settle();
    world.propose(leader, "a");
    world.run(300);
    let (follower, term) = (world.follower(), world.core(leader).term());
    let matched = world.core(leader).matched(&id_of(follower)).unwrap();
    let refusal = |refused: u64| Message::AppendReply {
        term,
        session: 1,
        result: AppendResult::Mismatch {
            refused: LogIndex(refused),
            hint_index: LogIndex::ZERO,
            hint_term: Term::ZERO,
        },
    };
    let before = world.recorded.len();
    for refused in 0..=matched.0 {
        world.inject(follower, leader, refusal(refused));
    }
    world.run(200);
    assert_eq!(world.core(leader).matched(&id_of(follower)), Some(matched));
    let resent = world.recorded[before..].iter().any(|r| match &r.2 {
        Effect::Send { message: Message::Append { entries, .. }, .. } => !entries.is_empty(),
        _ => false,
    });
    assert!(!resent, "what was acknowledged is not sent again");
}

#[test]
fn a_leader_that_overwrites_its_own_term_halts_its_follower() {
    let mut world = cluster(3, 6);
    let leader = world.settle();
    world.propose(leader, "a");
    world.run(300);
    let (follower, term) = (world.follower(), world.core(leader).term());
    let last = world.core(follower).last_index();
    let append = Message::Append {
        term,
        session: 1,
        to_keys: vec![secret_of(follower).public()],
        prev_index: last.prev(),
        prev_term: world.nodes[follower].memory.term_at(last.prev()),
        prev_root: Some(concordat::ids::Digest([5; 32])),
        entries: vec![proposal(last.0, term.0, "other")],
        commit: last,
        sign_point: LogIndex::ZERO,
        election: None,
    };
    world.inject(leader, follower, append);
    assert!(world.nodes[follower].halted.is_some(), "another root at the same index and term");
}

#[test]
fn malformed_appends_are_refused_and_reported() {
    let mut world = cluster(3, 7);
    let leader = world.settle();
    world.run(300);
    let (follower, term) = (world.follower(), world.core(leader).term());
    let last = world.core(follower).last_index();
    let append = |entries| Message::Append {
        term,
        session: 1,
        to_keys: vec![secret_of(follower).public()],
        prev_index: last,
        prev_term: term,
        prev_root: None,
        entries,
        commit: last,
        sign_point: LogIndex::ZERO,
        election: None,
    };
    let (next, t) = (last.0 + 1, term.0);
    let wrong = [
        vec![noop(next + 1, t)],
        vec![proposal(next, t, "a"), proposal(next, t, "b")],
        vec![noop(next, t + 1)],
        // A no-op of this term that does not carry the leader's certificate, and clocks that run backwards.
        vec![noop(next, t)],
        vec![proposal(next, t, "a")],
    ];
    for (i, entries) in wrong.into_iter().enumerate() {
        world.inject(leader, follower, append(entries));
        assert_eq!(world.core(follower).last_index(), last, "case {i}");
        assert_eq!(world.nodes[follower].alarms.len(), i + 1, "case {i}");
    }
}

#[test]
fn an_append_vouches_for_commits_and_signs_only_what_it_covers() {
    let mut world = cluster(3, 8);
    with_logs(&mut world, 3, &[log(&[1, 1, 3, 3, 3]), log(&[1, 1, 2, 2, 2, 2]), log(&[1])]);
    world.start(0);
    world.start(1);
    // The follower learns who leads, and nothing else.
    world.drop_if(|from, _, m| from == 0 && matches!(m, Message::Append { .. }));
    assert!(world.run_while_not(5_000, |w| w.core(0).role() == Role::Leader));
    assert!(world.run_while_not(1_000, |w| w.core(1).leader() == Some(id_of(0))));
    let term = world.core(0).term();
    let before = world.recorded.len();
    let append = Message::Append {
        term,
        session: 1,
        to_keys: vec![secret_of(1).public()],
        prev_index: LogIndex(2),
        prev_term: Term(1),
        prev_root: None,
        entries: Vec::new(),
        commit: LogIndex(5),
        sign_point: LogIndex(6),
        election: None,
    };
    // Entries 1 and 2 stand on two disks, so that they may be called committed.
    world.inject(0, 1, append);
    world.run(30);
    assert_eq!(world.core(1).last_index(), LogIndex(6), "what does not conflict is not deleted");
    assert_eq!(world.core(1).committed(), LogIndex(2));
    let mut acks = world.recorded[before..].iter().filter_map(|r| match &r.2 {
        Effect::Send { message: Message::AppendReply { result: AppendResult::Durable(upto), .. }, .. } => Some(*upto),
        _ => None,
    });
    assert_eq!((acks.next(), acks.next()), (Some(LogIndex(2)), None));
    let signs = |r: &&(u64, usize, Effect)| r.1 == 1 && matches!(r.2, Effect::Crypto(Crypto::SignHead { .. }));
    assert_eq!(world.recorded[before..].iter().filter(signs).count(), 0);
}
