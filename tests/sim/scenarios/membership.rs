use super::cluster;
use crate::invariants::tables::in_force;
use crate::members::{Row, id_of, public};
use crate::world::{Config, World};
use concordat::certificate::{Kind, Policy, QuorumRule, Role};
use concordat::core::{Admission, AppendResult, ChangeRefusal, Effect, Message, Role as Standing};
use concordat::ids::{Epoch, LogIndex};

fn with_spares(nodes: usize, spares: usize, seed: u64) -> World {
    World::new(Config { spares, record: true, ..Config::new(nodes, seed) })
}

/// Has a change made, and waits until it is in force.
pub(super) fn make(world: &mut World, rows: &[Row]) -> Epoch {
    let until = world.now + 3_000_000;
    loop {
        let leader = world.leader().expect("a leader");
        let change = world.change(leader, rows);
        assert!(world.run_while_not(3_000, |w| w.changes[change].outcome.is_some()), "{}", world.standings());
        match world.changes[change].outcome.clone().unwrap() {
            // A leader that has just been elected has not heard of everybody yet.
            Err(ChangeRefusal::NoQuorum { .. } | ChangeRefusal::NotSettled) if world.now < until => world.run(50),
            outcome => return outcome.expect("made"),
        }
    }
}

/// Adds nodes as learners, waits until they hold the log, and makes them voters.
pub(super) fn add_voters(world: &mut World, nodes: &[usize]) {
    let leader = world.leader().expect("a leader");
    let mut rows = world.rows(leader);
    for &node in nodes {
        let row = world.fresh_learner(node);
        if !world.is_up(node) {
            world.start(node);
        }
        rows.push(row);
    }
    make(world, &rows);
    assert!(world.run_while_not(3_000, World::caught_up), "{}", world.standings());
    rows.iter_mut().for_each(|r| r.role = Role::Voter);
    make(world, &rows);
    assert!(world.run_while_not(3_000, World::caught_up), "{}", world.standings());
}

fn refusal(world: &mut World, node: usize, rows: &[Row]) -> ChangeRefusal {
    let change = world.change(node, rows);
    world.run_while_not(3_000, |w| w.changes[change].outcome.is_some());
    world.changes[change].outcome.clone().expect("answered").expect_err("refused")
}

fn is_joint(world: &World, node: usize) -> bool {
    world.is_up(node) && world.core(node).tables().is_joint()
}

/// A change whose `Epoch` entry is committed and whose `EpochFinal` cannot come: heads are not signed.
fn held_open(world: &mut World, rows: &[Row]) -> (usize, usize) {
    assert!(world.run_while_not(3_000, World::converged));
    let leader = world.leader().unwrap();
    world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. }));
    let change = world.change(leader, rows);
    assert!(
        world
            .run_while_not(2_000, |w| is_joint(w, leader) && w.core(leader).committed() == w.core(leader).last_index())
    );
    assert!(world.changes[change].outcome.is_none());
    (leader, change)
}

/// Nodes 0, 1, 2 in force and a change to 0, 3, 4 held open; node 0 leads.
fn from_three_to_three_others(seed: u64) -> World {
    let mut world = with_spares(3, 2, seed);
    world.settle();
    add_voters(&mut world, &[3, 4]);
    let mut rows: Vec<Row> = (0..5).map(Row::voter).collect();
    rows[3].role = Role::Learner;
    rows[4].role = Role::Learner;
    make(&mut world, &rows);
    lead(&mut world, 0);
    let next = [Row::voter(0), Row::learner(1), Row::learner(2), Row::voter(3), Row::voter(4)];
    assert_eq!(held_open(&mut world, &next).0, 0);
    world
}

fn lead(world: &mut World, node: usize) {
    assert!(world.run_while_not(5_000, World::caught_up), "{}", world.standings());
    let leader = world.leader().unwrap();
    if leader != node {
        world.transfer(leader, Some(node));
    }
    assert!(world.run_while_not(3_000, |w| w.core(node).role() == Standing::Leader), "{}", world.standings());
    assert!(world.run_while_not(3_000, World::caught_up));
}

#[test]
fn a_cluster_is_replaced_member_by_member_and_every_step_is_proved() {
    for (seed, real_crypto) in [(1, true), (2, false), (3, false)] {
        let mut world = World::new(Config { spares: 3, real_crypto, ..Config::new(3, seed) });
        world.settle();
        for (new, old) in [(3, 0), (4, 1), (5, 2)] {
            add_voters(&mut world, &[new]);
            let leader = world.leader().unwrap();
            let mut rows = world.rows(leader);
            rows.retain(|r| r.node != old);
            make(&mut world, &rows);
            let told = world.run_while_not(3_000, |w| w.core(old).is_retired());
            assert!(told, "whoever is removed is told that it is safe to stop: {}", world.standings());
            world.crash(old);
            assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
            let leader = world.leader().unwrap();
            world.propose(leader, &format!("after {old}"));
            world.run(200);
        }
        assert_eq!(world.members(), [3, 4, 5]);
        assert_eq!(world.invariants.committed.ledger.steps().len(), 2 * 9);
        world.chain_verifies();
        world.changes_are_true();
    }
}

#[test]
fn whoever_knows_none_of_todays_members_is_brought_up_to_date() {
    let mut world = with_spares(3, 4, 4);
    world.settle();
    lead(&mut world, 0);
    world.crash(2);
    add_voters(&mut world, &[3]);
    add_voters(&mut world, &[4, 5]);
    lead(&mut world, 3);
    make(&mut world, &[Row::voter(2), Row::voter(3), Row::voter(4), Row::voter(5)]);
    assert!(world.run_while_not(2_000, |w| (0..2).all(|n| w.core(n).is_retired())));
    world.crash(0);
    world.crash(1);
    // One slept through five changes; the other has nothing but the genesis.
    world.start(2);
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
    add_voters(&mut world, &[6]);
    assert_eq!(world.members(), [2, 3, 4, 5, 6]);
}

#[test]
fn whoever_slept_is_told_by_any_member_it_knows_though_it_does_not_hear_the_leader() {
    let mut world = with_spares(3, 2, 5);
    world.settle();
    lead(&mut world, 0);
    world.crash(2);
    add_voters(&mut world, &[3, 4]);
    lead(&mut world, 3);
    make(&mut world, &[Row::voter(1), Row::voter(2), Row::voter(3), Row::voter(4)]);
    world.drop_if(|from, to, _| (from, to) == (3, 2));
    world.start(2);
    assert!(world.run_while_not(3_000, |w| {
        w.sent().any(|(from, to, m)| from == 1 && to == 2 && matches!(m, Message::Epochs { .. }))
    }));
    world.filter = None;
    assert!(world.run_while_not(3_000, World::converged), "{}", world.standings());
}

#[test]
fn restarts_lose_nothing_of_a_finished_change_even_in_its_leaders_own_term() {
    let mut world = with_spares(3, 1, 6);
    let leader = world.settle();
    add_voters(&mut world, &[3]);
    assert_eq!(world.leader(), Some(leader));
    for node in (0..4).filter(|n| *n != leader) {
        world.crash(node);
        world.start(node);
        // The leader was elected by a table that is replaced for good, and is the leader all the same.
        assert!(world.run_while_not(1_000, World::converged), "n{node}: {}", world.standings());
        assert_eq!(world.leader(), Some(leader));
        assert_eq!(world.core(node).tables().current().epoch, Epoch(2));
    }
}

#[test]
fn a_change_in_flight_is_in_the_log_alone_and_survives_restarts_everywhere() {
    for seed in 0..5 {
        let mut world = from_three_to_three_others(seed);
        for node in 0..5 {
            world.crash(node);
        }
        for node in 0..5 {
            world.start(node);
            // The log says so, whatever was known of commits before.
            let log = &world.nodes[node].memory;
            assert_eq!(is_joint(&world, node), in_force(&world.genesis_table, log, log.last()).len() == 2);
        }
        assert!((0..5).filter(|n| is_joint(&world, *n)).count() >= 3);
        world.filter = None;
        let done = |w: &World| w.converged() && (0..5).all(|n| !is_joint(w, n));
        assert!(world.run_while_not(10_000, done), "seed {seed}: {}", world.standings());
        assert_eq!(world.core(0).tables().current().epoch, Epoch(4));
    }
}

#[test]
fn a_change_whose_leader_dies_is_finished_by_the_next() {
    for seed in 0..5 {
        let mut world = from_three_to_three_others(seed);
        world.crash(0);
        world.filter = None;
        let done = |w: &World| w.leader().is_some_and(|l| l != 0 && w.core(l).tables().current().epoch == Epoch(4));
        assert!(world.run_while_not(5_000, done), "seed {seed}: {}", world.standings());
        world.start(0);
        assert!(world.run_while_not(5_000, World::converged));
        world.chain_verifies();
    }
}

#[test]
fn nothing_is_committed_without_a_quorum_of_each_table() {
    for cut in [[1, 2], [3, 4]] {
        let mut world = from_three_to_three_others(7);
        let filter = move |_: usize, to: usize, m: &Message| {
            matches!(m, Message::HeadShare { .. }) || (cut.contains(&to) && matches!(m, Message::Append { .. }))
        };
        world.drop_if(filter);
        let committed = world.core(0).committed();
        world.propose(0, "a");
        world.run(400);
        let last = world.core(0).last_index();
        assert!(last > committed, "granted and appended");
        let holders = (0..5).filter(|n| world.nodes[*n].disk.log.last() == last).count();
        assert_eq!(holders, 3, "three of the five of the union");
        assert_eq!(world.core(0).committed(), committed, "without {cut:?}");
        world.filter = None;
        assert!(world.run_while_not(3_000, World::converged));
    }
}

#[test]
fn nobody_is_elected_without_a_quorum_of_each_table() {
    for (side, elects) in [([1, 3, 4], false), ([0, 1, 2], false), ([0, 1, 3], true), ([2, 3, 4], false)] {
        let mut world = from_three_to_three_others(8);
        let rest: Vec<usize> = (0..5).filter(|n| !side.contains(n)).collect();
        for node in 0..5 {
            world.crash(node);
        }
        world.partition(&side, &rest);
        (0..5).for_each(|n| world.start(n));
        world.run(5_000);
        assert_eq!(world.leader().is_some(), elects, "{side:?} are three of the union: {}", world.standings());
        world.heal();
        world.filter = None;
        assert!(world.run_while_not(5_000, World::converged));
    }
}

#[test]
fn a_read_needs_a_quorum_of_each_table() {
    use crate::reads::ReadState;
    for cut in [[1, 2], [3, 4]] {
        let mut world = from_three_to_three_others(9);
        world.drop_if(move |from, _, m| {
            matches!(m, Message::HeadShare { .. })
                || (cut.contains(&from) && matches!(m, Message::HeartbeatReply { .. }))
        });
        let read = world.read(0);
        world.run(300);
        assert_eq!(world.reads[read].state, ReadState::Pending);
        world.filter = None;
        world.run(500);
        assert_eq!(world.reads[read].state, ReadState::Served);
    }
}

#[test]
fn an_overwritten_change_proves_nothing_and_another_takes_its_number() {
    let mut world = with_spares(3, 2, 10);
    let old = world.settle();
    add_voters(&mut world, &[3, 4]);
    lead(&mut world, old);
    let epoch = |e: &concordat::certificate::Entry| e.header.kind == Kind::Epoch && e.header.epoch == Epoch(2);
    world.drop_if(move |from, _, m| {
        from == old && matches!(m, Message::Append { entries, .. } if entries.iter().any(|e| epoch(e)))
    });
    let rows: Vec<Row> = (0..5).filter(|n| *n != 4).map(Row::voter).collect();
    let lost = world.change(old, &rows);
    assert!(world.run_while_not(1_000, |w| is_joint(w, old)));
    let hash = world.core(old).tables().newest().epoch_hash;
    world.isolate(old);
    assert!(
        world.run_while_not(5_000, |w| w.leader().is_some_and(|l| l != old && w.core(old).role() != Standing::Leader))
    );
    assert_eq!(world.changes[lost].outcome, Some(Err(ChangeRefusal::Interrupted)));
    let rows: Vec<Row> = (0..5).filter(|n| *n != 3).map(Row::voter).collect();
    assert!(world.run_while_not(1_000, |w| {
        w.leader().is_some_and(|l| w.nodes[l].memory.term_at(w.core(l).committed()) == w.core(l).term())
    }));
    assert_eq!(make(&mut world, &rows), Epoch(3));
    world.filter = None;
    world.heal();
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
    let in_force = world.core(old).tables().current();
    assert_eq!(in_force.epoch, Epoch(3));
    assert_ne!(in_force.epoch_hash, hash);
    world.chain_verifies();
}

#[test]
fn a_leader_that_is_removed_closes_the_change_and_then_gives_way() {
    for seed in 0..5 {
        let mut world = cluster(4, seed);
        let leader = world.settle();
        assert!(world.run_while_not(1_000, World::converged));
        let term = world.core(leader).term();
        let rows: Vec<Row> = (0..4).filter(|n| *n != leader).map(Row::voter).collect();
        assert_eq!(make(&mut world, &rows), Epoch(1), "it answers before it goes");
        assert_ne!(world.core(leader).role(), Standing::Leader);
        assert!(world.run_while_not(300, |w| w.leader().is_some()), "its successor need not wait for a timeout");
        let next = world.leader().unwrap();
        assert!(world.run_while_not(2_000, |w| w.core(leader).is_retired() && w.converged()));
        assert!(world.core(next).term() > term);
        let term = world.core(next).term();
        world.run(5_000);
        assert_eq!((world.leader(), world.core(next).term()), (Some(next), term), "and disturbs nobody");
    }
}

#[test]
fn a_leader_on_its_way_out_does_not_count_itself() {
    let mut world = cluster(3, 11);
    let leader = world.settle();
    let rest: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    held_open(&mut world, &[Row::voter(rest[0]), Row::voter(rest[1])]);
    let committed = world.core(leader).committed();
    let away = rest[1];
    world.drop_if(move |_, to, m| {
        matches!(m, Message::HeadShare { .. }) || (to == away && matches!(m, Message::Append { .. }))
    });
    world.propose(leader, "a");
    world.run(400);
    assert!(world.core(leader).last_index() > committed);
    assert_eq!(world.core(leader).committed(), committed, "one of the two that stay lacks it");
    world.filter = None;
    assert!(world.run_while_not(3_000, World::converged));
}

#[test]
fn closing_a_change_commits_what_the_smaller_quorum_holds() {
    let mut world = cluster(5, 12);
    world.settle();
    lead(&mut world, 0);
    held_open(&mut world, &[Row::voter(0), Row::voter(1), Row::voter(2)]);
    world
        .drop_if(|_, to, m| matches!(m, Message::HeadShare { .. }) || (to >= 2 && matches!(m, Message::Append { .. })));
    world.propose(0, "a");
    world.run(300);
    let pending = world.core(0).last_index();
    assert!(world.core(0).committed() < pending);
    // Heads up to the change are signed by all; what comes after it still reaches one follower only.
    world.drop_if(|_, to, m| to >= 2 && matches!(m, Message::Append { .. }));
    world.run(300);
    assert!(!is_joint(&world, 0));
    assert!(world.core(0).committed() >= pending, "two of the three that stay hold it");
    world.filter = None;
    assert!(world.run_while_not(3_000, World::converged));
}

#[test]
fn certificates_never_wait_for_members_that_left() {
    let mut world = cluster(6, 13);
    world.settle();
    lead(&mut world, 0);
    // The certificate of the change waits for the leader's own disk; meanwhile a further head is to be signed by both
    // tables.
    world.stall(0);
    let change = world.change(0, &[Row::voter(0), Row::voter(1), Row::voter(2)]);
    assert!(world.run_while_not(1_000, |w| is_joint(w, 0)));
    world.run(100);
    assert!(is_joint(&world, 0));
    let last = world.core(0).last_index();
    let admission = world.propose(0, "a");
    assert!(world.run_while_not(500, |w| w.core(0).last_index() > last), "{admission:?}");
    for node in 3..6 {
        world.crash(node);
    }
    world.unstall(0);
    assert!(world.run_while_not(2_000, World::converged), "{}", world.standings());
    assert_eq!(world.changes[change].outcome, Some(Ok(Epoch(1))));
}

#[test]
fn a_learner_that_is_a_voter_without_knowing_votes() {
    let mut world = with_spares(3, 1, 14);
    let leader = world.settle();
    let learner = world.fresh_learner(3);
    world.start(3);
    let mut rows = world.rows(leader);
    rows.push(learner);
    make(&mut world, &rows);
    assert!(world.run_while_not(2_000, World::converged));
    world.drop_if(|_, to, m| to == 3 && matches!(m, Message::Append { .. }));
    rows[3].role = Role::Voter;
    make(&mut world, &rows);
    world.crash(leader);
    let knows = |w: &World| w.core(3).tables().newest().table.voter_position(&id_of(3)).is_some();
    assert!(!knows(&world));
    assert!(world.run_while_not(5_000, |w| w.leader().is_some()), "three of four are needed: {}", world.standings());
    world.filter = None;
    world.start(leader);
    assert!(world.run_while_not(5_000, World::converged));
    assert!(knows(&world));
}

#[test]
fn a_member_that_slept_through_its_removal_learns_it_and_disrupts_nobody() {
    let mut world = cluster(4, 15);
    let leader = world.settle();
    let away = world.follower();
    world.crash(away);
    let rows: Vec<Row> = (0..4).filter(|n| *n != away).map(Row::voter).collect();
    make(&mut world, &rows);
    let term = world.core(leader).term();
    world.nodes[away].disk.hard.term.0 += 3;
    world.start(away);
    assert!(world.run_while_not(3_000, |w| w.core(away).is_retired()), "{}", world.standings());
    world.run(5_000);
    assert_eq!((world.leader(), world.core(leader).term()), (Some(leader), term));
    let before = world.recorded.len();
    world.run(3_000);
    let stands = |r: &&(u64, usize, Effect)| {
        r.1 == away && matches!(&r.2, Effect::Send { message: Message::PreVote { .. }, .. })
    };
    assert_eq!(world.recorded[before..].iter().filter(stands).count(), 0, "it stands no more");
}

#[test]
fn a_lost_disk_neither_votes_nor_acknowledges_nor_counts_until_it_is_admitted_anew() {
    for seed in 0..5 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        for i in 0..10 {
            world.propose(leader, &i.to_string());
        }
        assert!(world.run_while_not(2_000, World::converged));
        let lost = world.follower();
        let other = (0..3).find(|n| ![leader, lost].contains(n)).unwrap();
        let before = world.recorded.len();
        world.lose_disk(lost);
        world.start(lost);
        world.run(2_000);
        // With the other gone too nobody may lead: what this one held is gone.
        world.crash(other);
        world.run(3_000);
        assert_eq!(world.leader(), None, "seed {seed}");
        world.start(other);
        world.crash(leader);
        world.run(3_000);
        assert_eq!(world.leader(), None, "seed {seed}");
        let promises = |r: &&(u64, usize, Effect)| {
            let Effect::Send { message, .. } = &r.2 else { return false };
            r.1 == lost
                && matches!(
                    message,
                    Message::RequestVoteReply { granted: true, .. }
                        | Message::PreVoteReply { granted: true, .. }
                        | Message::AppendReply { .. }
                        | Message::HeadShare { .. }
                        | Message::Vote { .. }
                )
        };
        assert_eq!(world.recorded[before..].iter().filter(promises).count(), 0);
        world.start(leader);
        let leader = world.run_while_not(5_000, |w| w.leader().is_some()).then(|| world.leader().unwrap()).unwrap();
        world.run(500);
        let row = world.fresh_learner(lost);
        let mut rows = world.rows(leader);
        rows[lost] = row;
        make(&mut world, &rows);
        assert!(world.run_while_not(3_000, World::converged), "{}", world.standings());
        rows[lost].role = Role::Voter;
        make(&mut world, &rows);
        let leader = world.leader().unwrap();
        world.crash((0..3).find(|n| ![leader, lost].contains(n)).unwrap());
        let Admission::Appended { index, .. } = world.propose(leader, "after") else { panic!("appended") };
        assert!(world.run_while_not(2_000, |w| w.core(leader).committed() >= index), "it counts again");
        world.chain_verifies();
    }
}

#[test]
fn a_member_removed_and_added_again_in_one_term_starts_from_nothing() {
    let mut world = cluster(4, 16);
    let leader = world.settle();
    assert!(world.run_while_not(1_000, World::converged));
    let term = world.core(leader).term();
    let back = world.follower();
    let all = world.rows(leader);
    let rest: Vec<Row> = all.iter().copied().filter(|r| r.node != back).collect();
    make(&mut world, &rest);
    assert!(world.run_while_not(300, |w| w.core(leader).matched(&id_of(back)).is_none()), "it was told and let go");
    let row = world.fresh_learner(back);
    world.isolate(back);
    let mut rows = rest.clone();
    rows.push(row);
    make(&mut world, &rows);
    assert_eq!((world.leader(), world.core(leader).term()), (Some(leader), term), "still the same term");
    assert_eq!(world.core(leader).matched(&id_of(back)), Some(LogIndex::ZERO));
    // An acknowledgement of its earlier life arrives now.
    let old = Message::AppendReply { term, session: 1, result: AppendResult::Durable(world.core(leader).last_index()) };
    world.inject(back, leader, old);
    assert_eq!(world.core(leader).matched(&id_of(back)), Some(LogIndex::ZERO));
    world.heal();
    assert!(world.run_while_not(3_000, World::converged), "{}", world.standings());
}

#[test]
fn a_rotated_key_signs_from_then_on_and_the_old_one_is_erased() {
    for real_crypto in [false, true] {
        let mut world = World::new(Config { real_crypto, record: true, ..Config::new(3, 17) });
        let leader = world.settle();
        assert!(world.run_while_not(1_000, World::converged));
        let mut rows = world.rows(leader);
        for node in [world.follower(), leader] {
            rows[node].generation = world.new_key(node);
            make(&mut world, &rows);
            assert!(world.run_while_not(1_000, |w| w.nodes[node].disk.keys == [1] && w.converged()));
        }
        assert_eq!(world.leader(), Some(leader), "nobody had to make way");
        let third = (0..3).find(|n| rows[*n].generation == 0).unwrap();
        world.crash(third);
        let Admission::Appended { index, .. } = world.propose(leader, "by new keys") else { panic!("appended") };
        assert!(world.run_while_not(1_000, |w| w.core(leader).certificate().is_some_and(|c| c.head.size >= index.0)));
        rows[leader].generation = 0;
        assert_eq!(refusal(&mut world, leader, &rows), ChangeRefusal::OldKey(id_of(leader)));
        world.chain_verifies();
    }
}

#[test]
fn a_leader_without_an_entry_of_its_own_term_committed_changes_nothing() {
    let mut world = cluster(3, 18);
    world.drop_if(|_, _, m| matches!(m, Message::AppendReply { .. } | Message::HeadShare { .. }));
    assert!(world.run_while_not(5_000, |w| w.leader().is_some()));
    world.run(100);
    let leader = world.leader().unwrap();
    let rows: Vec<Row> = (0..3).filter(|n| *n != world.follower()).map(Row::voter).collect();
    assert_eq!(refusal(&mut world, leader, &rows), ChangeRefusal::NotSettled);
    world.filter = None;
    world.run(300);
    make(&mut world, &rows);
}

#[test]
fn changes_are_made_one_at_a_time_and_on_what_is_in_force() {
    let mut world = with_spares(4, 1, 19);
    let leader = world.settle();
    let three: Vec<Row> = (0..4).filter(|n| *n != world.follower()).map(Row::voter).collect();
    held_open(&mut world, &three);
    assert_eq!(refusal(&mut world, leader, &three[1..]), ChangeRefusal::InFlight);
    world.filter = None;
    assert!(world.run_while_not(2_000, World::converged));
    let stale = world.change_from(leader, Epoch(0), &three[..2]);
    assert_eq!(world.changes[stale].outcome, Some(Err(ChangeRefusal::Stale { current: Epoch(1) })));
    assert_eq!(refusal(&mut world, leader, &three), ChangeRefusal::Unchanged);
    let follower = world.follower();
    assert_eq!(refusal(&mut world, follower, &three[..2]), ChangeRefusal::NotLeader { leader: Some(id_of(leader)) });
    let mut four = three.clone();
    four.push(Row::voter(4));
    assert_eq!(refusal(&mut world, leader, &four), ChangeRefusal::NotCaughtUp { behind: vec![id_of(4)] });
    four[3].role = Role::Learner;
    four[3].generation = 1;
    world.nodes[4].made.push(0);
    let mut twice = three.clone();
    twice[0].generation = 1;
    world.nodes[twice[0].node].made.push(0);
    // Two changes asked for at once: one ballot is open, so the other is refused.
    let (one, two) = (world.change(leader, &four), world.change(leader, &three[..2]));
    assert_eq!(world.changes[two].outcome, Some(Err(ChangeRefusal::InFlight)));
    world.run(1_000);
    assert_eq!(world.changes[one].outcome, Some(Ok(Epoch(2))));
    // A learner that lies down is not promoted.
    four[3].role = Role::Voter;
    assert_eq!(refusal(&mut world, leader, &four), ChangeRefusal::NotCaughtUp { behind: vec![id_of(4)] });
    assert_ne!(public(4, 0), public(4, 1));
}

#[test]
fn a_change_that_would_lose_the_quorum_is_refused_also_by_a_new_leader() {
    let mut world = cluster(5, 20);
    world.settle();
    lead(&mut world, 0);
    world.crash(3);
    world.crash(4);
    world.run(1_000);
    let without_2: Vec<Row> = [0, 1, 3, 4].map(Row::voter).to_vec();
    let silent = vec![id_of(3), id_of(4)];
    let no_quorum = ChangeRefusal::NoQuorum { quorum: 3, silent };
    assert_eq!(refusal(&mut world, 0, &without_2), no_quorum);
    let moved = world.transfer(0, Some(1));
    let settled = |w: &World| {
        w.core(1).role() == Standing::Leader && w.nodes[1].memory.term_at(w.core(1).committed()) == w.core(1).term()
    };
    assert!(world.run_while_not(1_000, settled));
    assert!(world.transfers[moved].outcome.is_some());
    world.run(60);
    assert_eq!(refusal(&mut world, 1, &without_2), no_quorum, "silence before the election tells nothing either");
    make(&mut world, &[0, 1, 2].map(Row::voter));
}

#[test]
fn voters_can_reject_a_change_and_silence_ends_it() {
    let policies = vec![Policy::Manual; 3];
    let mut world = World::new(Config { policies, spares: 1, record: true, ..Config::new(3, 21) });
    let leader = world.settle();
    world.run(500);
    let mut rows = world.rows(leader);
    rows[0].policy = Policy::Auto;
    let change = world.change(leader, &rows);
    world.run(50);
    let id = *world.nodes[leader].asks.first_key_value().expect("asked").0;
    let deniers: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    deniers.iter().for_each(|n| world.answer(*n, id, false));
    world.run(200);
    let denied = deniers.iter().map(|n| id_of(*n)).collect();
    assert_eq!(world.changes[change].outcome, Some(Err(ChangeRefusal::Rejected { denied })));
    assert_eq!(refusal(&mut world, leader, &rows), ChangeRefusal::Expired);
    assert!(!is_joint(&world, leader));
}

#[test]
fn proposals_during_a_change_are_voted_on_and_prove_it() {
    let mut world = World::new(Config { real_crypto: true, record: true, ..Config::new(4, 22) });
    let leader = world.settle();
    let three: Vec<Row> = (0..4).filter(|n| *n != world.follower()).map(Row::voter).collect();
    held_open(&mut world, &three);
    assert!(matches!(world.propose(leader, "a"), Admission::Balloted { .. }));
    world.run(500);
    let index = world.outcome_at(leader, "a").expect("committed while the change is in flight").index;
    let header = world.nodes[leader].memory.get(index).unwrap().entry.header.clone();
    assert_eq!((header.kind, header.epoch), (Kind::Proposal, Epoch(0)));
    let tally = header.tally.clone().expect("voted on");
    assert!(tally.grants.members.positions().count() >= 3);
    world.filter = None;
    assert!(world.run_while_not(2_000, World::converged));
    assert!(matches!(world.propose(leader, "b"), Admission::Appended { .. }));
    world.run(300);
    world.chain_verifies();
}

#[test]
fn ballots_are_counted_anew_under_the_next_table() {
    let policies = vec![Policy::Manual, Policy::Rules, Policy::Rules];
    let mut world = World::new(Config { policies, spares: 1, record: true, ..Config::new(3, 23) });
    let leader = world.settle();
    world.run(500);
    let mut submission = world.submission("a", b"\"+\"");
    (submission.required_quorum, submission.ttl_ms) = (Some(3), 60_000);
    let Admission::Balloted { id } = world.submit(leader, submission) else { panic!("balloted") };
    world.run(300);
    let mut rows = world.rows(leader);
    rows.push(world.fresh_learner(3));
    world.start(3);
    make(&mut world, &rows);
    assert!(world.outcome_at(leader, "a").is_none());
    world.run(500);
    world.answer(0, id, true);
    assert!(world.run_while_not(1_000, |w| w.outcome_at(leader, "a").is_some()));
    let index = world.outcome_at(leader, "a").unwrap().index;
    let header = &world.nodes[leader].memory.get(index).unwrap().entry.header;
    assert_eq!((header.kind, header.epoch), (Kind::Proposal, Epoch(1)));
    let asked = world.sent().filter_map(|(_, to, m)| match m {
        Message::Ballot { ballot, .. } if ballot.id == id && to != 3 => Some(ballot.under.epoch),
        _ => None,
    });
    let mut epochs: Vec<Epoch> = asked.collect();
    epochs.dedup();
    assert_eq!(epochs, [Epoch(0), Epoch(1)], "every vote was asked for again");
}

#[test]
fn a_supermajority_elects_commits_certifies_and_changes() {
    let config = Config { rule: QuorumRule::Supermajority, spares: 3, real_crypto: true, ..Config::new(4, 24) };
    let mut world = World::new(config);
    world.settle();
    lead(&mut world, 0);
    world.crash(3);
    world.run(100);
    let Admission::Appended { index, .. } = world.propose(0, "three of four") else { panic!("appended") };
    assert!(world.run_while_not(1_000, |w| w.core(0).certificate().is_some_and(|c| c.head.size >= index.0)));
    let committed = world.core(0).committed();
    world.crash(2);
    world.propose(0, "two of four");
    world.run(300);
    assert_eq!(world.core(0).committed(), committed);
    world.run(3_000);
    assert_eq!(world.leader(), None);
    world.start(2);
    world.start(3);
    assert!(world.run_while_not(5_000, World::converged));
    add_voters(&mut world, &[4, 5, 6]);
    let table = world.core(0).tables().current().clone();
    assert_eq!((table.table.voters().count(), table.quorum()), (7, 5));
    assert!(world.run_while_not(2_000, World::converged));
    world.chain_verifies();
}

#[test]
fn single_member_clusters_grow_and_shrink() {
    let mut world = with_spares(1, 2, 25);
    world.settle();
    add_voters(&mut world, &[1, 2]);
    lead(&mut world, 2);
    make(&mut world, &[Row::voter(2)]);
    assert!(world.run_while_not(2_000, |w| w.core(0).is_retired() && w.core(1).is_retired() && w.converged()));
    world.propose(2, "alone");
    assert!(world.run_while_not(1_000, World::converged));
}

#[test]
fn a_leader_left_out_that_alone_holds_the_end_of_the_change_is_elected_once_more() {
    for seed in 0..5 {
        let mut world = cluster(2, seed);
        let leader = world.settle();
        assert!(world.run_while_not(1_000, World::converged));
        let stays = 1 - leader;
        let closes = |e: &concordat::certificate::Entry| e.header.kind == Kind::EpochFinal;
        world.drop_if(move |from, _, m| {
            from == leader && matches!(m, Message::Append { entries, .. } if entries.iter().any(|e| closes(e)))
        });
        world.change(leader, &[Row::voter(stays)]);
        let closed = |w: &World| w.nodes[leader].disk.log.steps().len() == 2;
        assert!(world.run_while_not(1_000, closed));
        world.crash(leader);
        world.start(leader);
        world.filter = None;
        // The other needs its vote by the old table, and has the shorter log.
        let done = |w: &World| w.leader() == Some(stays) && w.core(leader).is_retired() && w.converged();
        assert!(world.run_while_not(5_000, done), "seed {seed}: {}", world.standings());
        let term = world.core(stays).term();
        world.run(3_000);
        assert_eq!(world.core(stays).term(), term);
    }
}

#[test]
fn a_lost_disk_admitted_anew_starts_from_nothing_in_the_same_term() {
    let mut world = cluster(3, 27);
    let leader = world.settle();
    world.propose(leader, "a");
    assert!(world.run_while_not(1_000, World::converged));
    let (lost, term) = (world.follower(), world.core(leader).term());
    world.lose_disk(lost);
    let mut rows = world.rows(leader);
    rows[lost] = world.fresh_learner(lost);
    world.change(leader, &rows);
    assert!(world.run_while_not(1_000, |w| is_joint(w, leader)));
    assert_eq!(world.core(leader).matched(&id_of(lost)), Some(LogIndex::ZERO), "what its old store held is gone");
    assert_eq!(world.core(leader).term(), term);
    world.start(lost);
    assert!(world.run_while_not(3_000, World::converged), "{}", world.standings());
}

#[test]
fn a_store_without_the_key_asked_for_grants_no_vote() {
    use concordat::certificate::ElectionClaim;
    use concordat::ids::{Digest, Term};
    let mut world = cluster(3, 28);
    for n in 0..3 {
        world.isolate(n);
    }
    world.lose_disk(0);
    world.start(0);
    let (candidate, last_root) = (id_of(1), Digest([0; 32]));
    let claim = ElectionClaim { term: Term(1), candidate, last_term: Term(0), last_size: 0, last_root };
    world.inject(1, 0, world.vote_wanted(0, claim));
    world.run(20);
    let answers: Vec<&Message> =
        world.sent().filter(|s| s.0 == 0 && matches!(s.2, Message::RequestVoteReply { .. })).map(|s| s.2).collect();
    assert!(matches!(answers[..], [Message::RequestVoteReply { granted: false, .. }]), "{answers:?}");
    assert_eq!(world.core(0).vote(), None);
}

#[test]
fn whoever_left_and_did_not_hear_the_end_of_it_asks_and_is_told() {
    let mut world = cluster(4, 29);
    let leader = world.settle();
    assert!(world.run_while_not(1_000, World::converged));
    let leaves = world.follower();
    let rows: Vec<Row> = (0..4).filter(|n| *n != leaves).map(Row::voter).collect();
    world.change(leader, &rows);
    assert!(world.run_while_not(1_000, |w| w.nodes[leaves].memory.steps().len() == 2));
    world.drop_if(move |_, to, m| {
        let tells = matches!(m, Message::Append { .. } | Message::Heartbeat { .. } | Message::Certificate(_));
        to == leaves && tells
    });
    assert!(!world.core(leaves).is_retired(), "the end of the change may not be committed");
    assert!(world.run_while_not(3_000, |w| w.core(leaves).is_retired()), "{}", world.standings());
    let term = world.core(leader).term();
    world.run(3_000);
    assert_eq!((world.leader(), world.core(leader).term()), (Some(leader), term));
}

#[test]
fn a_key_that_its_member_does_not_hold_comes_into_no_table() {
    for own in [false, true] {
        let mut world = cluster(3, 31);
        let leader = world.settle();
        assert!(world.run_while_not(1_000, World::converged));
        let member = if own { leader } else { world.follower() };
        let mut rows = world.rows(leader);
        rows[member].generation = 7;
        let refused = world.change(leader, &rows);
        assert!(world.run_while_not(2_000, |w| w.changes[refused].outcome.is_some()));
        let denied = vec![id_of(member)];
        assert_eq!(world.changes[refused].outcome, Some(Err(ChangeRefusal::Rejected { denied })));
        // With one that it holds it goes on as if nothing had been.
        rows[member].generation = world.new_key(member);
        make(&mut world, &rows);
        assert!(world.run_while_not(2_000, World::converged));
    }
}

#[test]
fn a_rotation_waits_for_the_word_of_the_member_whose_key_it_is() {
    let mut world = cluster(3, 32);
    let leader = world.settle();
    assert!(world.run_while_not(1_000, World::converged));
    let member = world.follower();
    let mut rows = world.rows(leader);
    rows[member].generation = world.new_key(member);
    world.drop_if(move |from, _, m| from == member && matches!(m, Message::Vote { .. }));
    let change = world.change(leader, &rows);
    world.run(500);
    let changed = is_joint(&world, leader) || world.core(leader).tables().current().epoch > Epoch(0);
    assert!(!changed, "a quorum granted it, and it did not");
    world.filter = None;
    assert!(world.run_while_not(2_000, |w| w.changes[change].outcome == Some(Ok(Epoch(1)))), "{}", world.standings());
}

#[test]
fn a_store_that_lacks_the_new_key_of_a_rotation_does_not_count_by_it() {
    let mut world = cluster(3, 30);
    let leader = world.settle();
    assert!(world.run_while_not(1_000, World::converged));
    let (member, other) = (world.follower(), (0..3).rfind(|n| *n != leader).unwrap());
    assert_ne!(member, other);
    // It held the key when it was asked, and its store was set back to a copy without it since.
    let mut rows = world.rows(leader);
    rows[member].generation = world.new_key(member);
    world.run(10);
    world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. }));
    world.change(leader, &rows);
    assert!(world.run_while_not(1_000, |w| is_joint(w, leader)));
    world.nodes[member].disk.keys.pop();
    world.crash(member);
    world.start(member);
    let before = world.recorded.len();
    world.crash(other);
    world.run(300);
    let acknowledges = |r: &&(u64, usize, Effect)| {
        r.1 == member && matches!(&r.2, Effect::Send { message: Message::AppendReply { .. }, .. })
    };
    assert_eq!(world.recorded[before..].iter().filter(acknowledges).count(), 0);
    assert!(world.core(leader).committed() < world.core(leader).last_index());
    // With the others the change is made all the same, and its row can be set right.
    world.filter = None;
    world.start(other);
    let closed =
        |w: &World| w.leader().is_some_and(|l| w.core(l).tables().current().epoch == Epoch(1) && w.caught_up());
    assert!(world.run_while_not(5_000, closed), "{}", world.standings());
}
