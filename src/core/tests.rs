//! Tests of the parts that clusters exercise only by luck; clusters as a whole are tested in `tests/sim`.

use super::log::Log;
use super::progress::{Flow, Progress};
use super::tables::Tables;
use super::{Base, Core, Effect, HardState, Input, Now, Options, Restored};
use crate::certificate::merkle::Frontier;
use crate::certificate::{
    Body, Edge, Entry, Genesis, Header, Kind, Member, MemberTable, Policy, QuorumRule, Role, SecretKey, TableInForce,
    payload_hash,
};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, Term};
use crate::limits::{LOG_WINDOW_BYTES, LOG_WINDOW_ENTRIES, MAX_INFLIGHT_APPENDS, MAX_INFLIGHT_BYTES};
use std::sync::Arc;

fn entry(index: u64, term: u64) -> Arc<Entry> {
    let payload = vec![u8::try_from(term).unwrap(); 8];
    let header = Header {
        index: LogIndex(index),
        term: Term(term),
        epoch: Epoch::ZERO,
        kind: Kind::Noop,
        proposal_id: None,
        request_digest: Digest::ZERO,
        proposed_at: 1_000 + index,
        required_quorum: 0,
        abort_reason: None,
        tally: None,
        payload_len: 8,
        payload_hash: payload_hash(&[0; 16], &payload),
    };
    Arc::new(Entry::new(header, Body { payload, ..Body::default() }).unwrap())
}

fn log(terms: &[u64]) -> Log {
    let entries = terms.iter().enumerate().map(|(i, t)| entry(i as u64 + 1, *t)).collect();
    Log::new(LogIndex::ZERO, Frontier::default(), Vec::new(), 0, entries)
}

#[test]
fn a_late_write_of_replaced_entries_does_not_vouch_for_what_replaced_them() {
    let mut log = log(&[1]);
    log.append(entry(2, 1));
    log.append(entry(3, 1));
    log.issue(1);
    log.truncate(LogIndex(2));
    log.append(entry(2, 2));
    log.append(entry(3, 2));
    log.issue(2);
    log.persisted(1);
    assert_eq!(log.durable(), LogIndex(1), "the first write held other entries 2 and 3");
    log.persisted(2);
    assert_eq!(log.durable(), LogIndex(3));
}

#[test]
fn durable_falls_with_what_is_truncated() {
    let mut log = log(&[1, 1, 1]);
    assert_eq!(log.durable(), LogIndex(3));
    log.truncate(LogIndex(2));
    log.append(entry(2, 2));
    assert_eq!(log.durable(), LogIndex(1));
    assert_eq!(log.unissued().len(), 1);
}

#[test]
fn roots_and_terms_agree_whatever_path_led_to_a_log() {
    let straight = log(&(0..100).map(|i| 1 + i / 40).collect::<Vec<_>>());
    let mut winding = log(&[1; 90]);
    winding.truncate(LogIndex(41));
    (40..100).for_each(|i| winding.append(entry(i + 1, 1 + i / 40)));
    for index in (0..=100).map(LogIndex) {
        assert_eq!(straight.root_at(index), winding.root_at(index), "{index}");
        assert_eq!(straight.term_at(index), winding.term_at(index), "{index}");
        let part = Log::new(
            LogIndex::ZERO,
            Frontier::default(),
            Vec::new(),
            0,
            straight.range(LogIndex(1), usize::MAX)[..usize::try_from(index.0).unwrap()].to_vec(),
        );
        assert_eq!(straight.root_at(index), Some(part.last_root()), "{index}");
    }
    assert_eq!(straight.term_at(LogIndex(101)), None);
    assert_eq!(winding.last_proposed_at(), 1_100);
}

#[test]
fn hints_skip_whole_terms() {
    let log = log(&[1, 1, 3, 3, 5]);
    let at = |index, term| log.last_at_or_below(LogIndex(index), Term(term)).0;
    assert_eq!([at(5, 5), at(5, 4), at(5, 2), at(4, 9), at(1, 3), at(5, 0), at(99, 99)], [5, 4, 2, 4, 1, 0, 5]);
}

#[test]
fn the_window_forgets_only_what_is_applied_and_still_knows_its_terms() {
    let count = LOG_WINDOW_ENTRIES as u64 + 100;
    let mut log = log(&vec![1; usize::try_from(count).unwrap()]);
    log.trim(LogIndex(10));
    assert_eq!(log.first_in_memory(), LogIndex(11));
    log.trim(LogIndex(count));
    assert_eq!(log.first_in_memory(), LogIndex(101));
    assert!(log.get(LogIndex(100)).is_none() && log.range(LogIndex(100), 1).is_empty());
    assert_eq!(log.term_at(LogIndex(5)), Some(Term(1)));
    assert_eq!((log.root_at(LogIndex(99)), log.root_at(LogIndex(100)).is_some()), (None, true));
}

#[test]
fn bytes_above_counts_every_entry_above() {
    let log = log(&[1, 1, 1, 1]);
    let one = super::log::weight(&entry(1, 1));
    for index in 0..=4 {
        assert_eq!(log.bytes_above(LogIndex(index)), (4 - usize::try_from(index).unwrap()) * one);
    }
}

#[test]
fn a_range_holds_at_least_one_entry_and_no_more_bytes_than_asked() {
    let log = log(&[1; 10]);
    let one = super::log::weight(&entry(1, 1));
    assert_eq!(log.range(LogIndex(3), 1).len(), 1);
    assert_eq!(log.range(LogIndex(3), 3 * one).len(), 3);
    assert_eq!(log.range(LogIndex(11), usize::MAX).len(), 0);
}

#[test]
fn one_probe_is_outstanding_until_it_is_answered() {
    let mut peer = Progress::new(LogIndex(5), 1, Vec::new());
    assert!(peer.may_send());
    peer.sent(LogIndex(9), 100);
    assert!(!peer.may_send());
    assert_eq!(peer.next, LogIndex(5));
    peer.acknowledged(LogIndex(9));
    assert_eq!((peer.flow, peer.next, peer.matched), (Flow::Replicate, LogIndex(10), LogIndex(9)));
}

#[test]
fn appends_in_flight_are_bounded_and_freed_by_acknowledgements() {
    let mut peer = Progress::new(LogIndex(1), 1, Vec::new());
    peer.acknowledged(LogIndex(0));
    for i in 1..=MAX_INFLIGHT_APPENDS as u64 {
        assert!(peer.may_send());
        peer.sent(LogIndex(i), 10);
    }
    assert!(!peer.may_send());
    peer.acknowledged(LogIndex(3));
    assert!(peer.may_send());
    peer.acknowledged(LogIndex(2));
    assert_eq!(peer.matched, LogIndex(3), "a late acknowledgement takes nothing back");
    peer.probe(LogIndex(1));
    assert_eq!(peer.next, LogIndex(4), "nor does a probe");
}

#[test]
fn bytes_in_flight_are_bounded_and_freed_by_acknowledgements() {
    let mut peer = Progress::new(LogIndex(1), 1, Vec::new());
    peer.acknowledged(LogIndex(0));
    let part = MAX_INFLIGHT_BYTES / 4;
    for i in 1..=4 {
        assert!(peer.may_send());
        peer.sent(LogIndex(i), part);
    }
    assert!(!peer.may_send(), "exactly as many as allowed");
    for i in 5..=8 {
        peer.acknowledged(LogIndex(i - 4));
        assert!(peer.may_send());
        peer.sent(LogIndex(i), part);
        assert!(!peer.may_send(), "one was acknowledged, one was sent");
    }
}

#[test]
fn an_append_of_nothing_new_takes_no_place_and_moves_nothing() {
    let mut peer = Progress::new(LogIndex(1), 1, Vec::new());
    peer.acknowledged(LogIndex(0));
    peer.sent(LogIndex(5), 10);
    for _ in 0..=MAX_INFLIGHT_APPENDS {
        peer.sent(LogIndex(4), 0);
    }
    assert_eq!(peer.next, LogIndex(6));
    assert!(peer.may_send());
}

/// What a store gives back that was never written to.
fn nothing() -> Restored {
    Restored {
        hard: HardState::default(),
        certificate: None,
        compacted: LogIndex::ZERO,
        frontier: Frontier::default(),
        terms: Vec::new(),
        last_proposed_at: 0,
        tail: Vec::new(),
        epochs: Vec::new(),
        keys: Vec::new(),
    }
}

fn genesis(members: &[u8]) -> Genesis {
    let TableInForce { table, rule, .. } = table(0, members);
    Genesis { name: "unit".into(), table, rule, succeeds: None }
}

fn table(epoch: u64, members: &[u8]) -> TableInForce {
    let row = |n: &u8| {
        let key = SecretKey::generate(&[*n; 32]);
        Member {
            did: NodeId([*n; 32]),
            bls_key: key.public(),
            possession: key.prove_possession(),
            address: "h:1".into(),
            role: Role::Voter,
            policy: Policy::Auto,
        }
    };
    let table = MemberTable::new(members.iter().map(row).collect()).unwrap();
    TableInForce { epoch: Epoch(epoch), epoch_hash: Digest::ZERO, table, rule: QuorumRule::Majority }
}

#[test]
fn a_quorum_is_counted_in_every_table_and_never_in_their_union() {
    let (current, next) = (Arc::new(table(0, &[1, 2, 3])), Arc::new(table(1, &[3, 4, 5])));
    let tables = Tables::new(Digest::ZERO, current, Some(next));
    let reached = |who: &[u8]| tables.reached(|m| who.contains(&m.did.0[0]));
    assert!(!reached(&[1, 2]) && !reached(&[3, 4, 5]) && !reached(&[1, 2, 3]) && !reached(&[1, 4, 5]));
    assert!(reached(&[1, 3, 4]) && reached(&[1, 2, 4, 5]));
    let committed = |matched: [u64; 5]| tables.committed(|m| LogIndex(matched[usize::from(m.did.0[0]) - 1]));
    assert_eq!(committed([9, 9, 9, 4, 3]), LogIndex(4));
    assert_eq!(committed([9, 2, 1, 9, 9]), LogIndex(2));
}

#[test]
fn the_commit_index_is_the_quorums_highest_common_one() {
    let five = Tables::new(Digest::ZERO, Arc::new(table(0, &[1, 2, 3, 4, 5])), None);
    let committed = |matched: [u64; 5]| five.committed(|m| LogIndex(matched[usize::from(m.did.0[0]) - 1])).0;
    assert_eq!([committed([5, 5, 1, 1, 1]), committed([1, 5, 3, 5, 2]), committed([0, 0, 0, 7, 7])], [1, 3, 0]);
    let four = Tables::new(Digest::ZERO, Arc::new(table(0, &[1, 2, 3, 4])), None);
    let matched = [4, 3, 2, 1];
    assert_eq!(four.committed(|m| LogIndex(matched[usize::from(m.did.0[0]) - 1])), LogIndex(2));
}

#[test]
fn a_table_said_to_be_in_flight_is_nobodys_once_another_is_proved_in_its_place() {
    let (genesis, id) = (genesis(&[1, 2, 3]), NodeId([1; 32]));
    let mut core = Core::new(id, &genesis, nothing(), Options::default(), Now { mono: 0, wall: 0 });
    core.drain();
    let ahead = |core: &mut Core, tables: Vec<TableInForce>, in_flight: Option<TableInForce>| {
        let tables = tables.into_iter().map(Arc::new).collect();
        let told = Input::EpochsVerified { tables, in_flight: in_flight.map(Arc::new) };
        core.step(Now { mono: 1, wall: 1 }, told);
        let membership = core.drain().into_iter().find_map(|e| match e {
            Effect::Membership { ahead, .. } => Some(ahead),
            _ => None,
        });
        membership.map(|tables| tables.iter().map(|t| t.table.members().len()).collect::<Vec<_>>())
    };
    assert_eq!(ahead(&mut core, Vec::new(), Some(table(1, &[1, 2, 3, 4]))), Some(vec![4]));
    assert_eq!(ahead(&mut core, Vec::new(), Some(table(1, &[1, 2, 3, 4]))), None, "no news");
    assert_eq!(ahead(&mut core, vec![table(1, &[1, 2, 3, 4, 5])], None), Some(vec![5]));
    assert_eq!(ahead(&mut core, Vec::new(), Some(table(2, &[1, 2]))), Some(vec![5, 2]));
    assert_eq!(ahead(&mut core, Vec::new(), Some(table(4, &[1]))), None, "what lies between is not known");
}

#[test]
fn writes_of_a_log_do_not_vouch_for_the_one_that_begins_after_a_snapshot() {
    let mut old = log(&[1]);
    old.append(entry(2, 1));
    old.issue(1);
    let mut edge = Edge::default();
    (1..=10).for_each(|i| drop(edge.push(entry(i, 1).header.encode())));
    let base = Base { edge, terms: vec![(LogIndex(1), Term(1))], proposed_at: 1_010, epochs: Vec::new() };
    old.begin_after(&base, LogIndex(1));
    old.issue(2);
    assert_eq!((old.last(), old.durable()), (LogIndex(10), LogIndex(1)));
    old.persisted(1);
    assert_eq!(old.durable(), LogIndex(1), "entry 2 of the log before is another one");
    old.persisted(2);
    assert_eq!(old.durable(), LogIndex(10));
}

#[test]
fn a_cut_right_behind_the_first_entry_of_a_term_keeps_the_term() {
    let mut log = log(&[1, 2, 2]);
    log.truncate(LogIndex(3));
    assert_eq!((log.term_at(LogIndex(1)), log.term_at(LogIndex(2))), (Some(Term(1)), Some(Term(2))));
    assert_eq!(log.last_term(), Term(2));
}

#[test]
fn the_window_is_bounded_by_bytes_and_cut_entries_do_not_count() {
    let quarter = |index: u64| {
        let payload = vec![0; LOG_WINDOW_BYTES / 4 - 512];
        let (payload_len, hash) = (u32::try_from(payload.len()).unwrap(), payload_hash(&[0; 16], &payload));
        let header = Header { payload_len, payload_hash: hash, ..entry(index, 1).header.clone() };
        Arc::new(Entry::new(header, Body { payload, ..Body::default() }).unwrap())
    };
    let mut log = log(&[]);
    (1..=4).for_each(|i| log.append(quarter(i)));
    log.trim(LogIndex(4));
    assert_eq!(log.first_in_memory(), LogIndex(1), "exactly as many bytes as allowed");
    log.truncate(LogIndex(3));
    (3..=4).for_each(|i| log.append(quarter(i)));
    log.trim(LogIndex(4));
    assert_eq!(log.first_in_memory(), LogIndex(1), "what was cut is gone");
    for last in 5..=9 {
        log.append(quarter(last));
        log.trim(LogIndex(last));
        assert_eq!(log.first_in_memory(), LogIndex(last - 3));
    }
}
