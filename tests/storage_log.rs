//! What a store keeps: log, term and vote, ballot answers, certificates, across restarts and cuts.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::Entry;
use concordat::core::Write;
use concordat::ids::{Digest, LogIndex, Term};
use concordat::limits::LOG_WINDOW_ENTRIES;
use concordat::storage::{CommitError, CreateError, OpenError, PinError, Stopped, Store};
use model::{DID, Driver, append, cast, certificate, entries, entry, key, tree, vote};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

fn all(store: &Store) -> Vec<Arc<Entry>> {
    store.read(LogIndex(1), store.last_index(), usize::MAX).unwrap()
}

#[test]
fn a_new_store_knows_who_it_is_and_nothing_else() {
    let (_temp, dir) = place();
    Store::create(&dir, DID, &key()).unwrap();
    let (store, found) = Store::open(&dir).unwrap();
    assert_eq!((found.did, found.last_index, found.genesis.is_none()), (DID, LogIndex(0), true));
    assert_eq!(found.bls.to_bytes(), key().to_bytes());
    assert_eq!(found.restored.hard, Default::default());
    assert_eq!((store.first_index(), store.last_index()), (LogIndex(1), LogIndex(0)));
    assert!(found.restored.tail.is_empty() && store.entry(LogIndex(1)).unwrap().is_none());
}

#[test]
fn a_store_is_created_once_and_only_in_an_empty_place() {
    let (_temp, dir) = place();
    std::fs::create_dir(&dir).unwrap();
    Store::create(&dir, DID, &key()).unwrap();
    assert!(matches!(Store::create(&dir, DID, &key()), Err(CreateError::NotEmpty { .. })));
    assert!(Store::open(&dir).is_ok());
    let nowhere = dir.with_file_name("nowhere");
    assert!(matches!(Store::open(&nowhere), Err(OpenError::Missing { .. })));
    assert!(!nowhere.exists(), "opening makes nothing");
}

#[test]
fn what_an_interrupted_creation_left_is_no_obstacle() {
    let (_temp, dir) = place();
    let beside = dir.with_file_name("store.creating");
    std::fs::create_dir(&beside).unwrap();
    std::fs::write(beside.join("db"), b"half").unwrap();
    Store::create(&dir, DID, &key()).unwrap();
    assert!(Store::open(&dir).is_ok() && !beside.exists());
}

#[test]
fn a_database_that_is_still_letting_go_of_its_file_is_waited_for() {
    let (_temp, dir) = place();
    Driver::create(&dir).close();
    let held = File::open(dir.join("db")).unwrap();
    // The store just closed may hold it for a moment still.
    held.lock().unwrap();
    let (tell, opened) = channel();
    let opener = std::thread::spawn({
        let dir = dir.clone();
        move || tell.send(Store::open(&dir).map(drop))
    });
    let early = opened.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "waits while the file is held: {early:?}");
    drop(held);
    opened.recv_timeout(Duration::from_secs(60)).expect("an answer").expect("the store opens");
    opener.join().unwrap().unwrap();
}

#[test]
fn a_store_in_use_is_refused_and_free_again_when_closed() {
    let (_temp, dir) = place();
    let driver = Driver::create(&dir);
    let Err(refused) = Store::open(&dir) else { panic!("opened twice") };
    assert!(matches!(refused, OpenError::InUse { .. }));
    assert!(refused.to_string().starts_with("data directory in use by another process"), "{refused}");
    driver.close();
    assert!(Store::open(&dir).is_ok());
}

#[test]
fn a_restart_gives_back_term_vote_log_answers_and_certificates() {
    let (_temp, dir) = place();
    let log = entries(1, 300, 2, 0, 100);
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log[..100].to_vec()) }).unwrap();
    driver.write(append(log[100..].to_vec())).unwrap();
    driver
        .write(Write { cast: Some(cast(4)), certificate: Some(certificate(&log[..250])), ..Write::default() })
        .unwrap();
    assert_eq!(all(&driver.store), log);
    driver.close();

    let (store, found) = Store::open(&dir).unwrap();
    assert_eq!(found.restored.hard, vote(2, 1));
    assert_eq!(found.restored.tail, log);
    assert_eq!(found.restored.certificate, Some(certificate(&log[..250])));
    assert_eq!((found.last_index, found.report.entries, found.report.certificates), (LogIndex(300), 300, 1));
    assert_eq!(all(&store), log);
    let given = cast(4);
    assert_eq!(store.cast_vote(&given.request_key, &given.content).unwrap(), Some(given.clone()));
    assert_eq!(store.cast_vote(&given.request_key, &Digest([7; 32])).unwrap(), None, "another payload");
    assert_eq!(store.latest_certificate(), Some(certificate(&log[..250])));
}

#[test]
fn a_cut_keeps_what_lies_before_it_wherever_it_falls_in_a_block() {
    let (_temp, dir) = place();
    let mut log = entries(1, 40, 1, 0, 50);
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(1, 1)), ..Write::default() }).unwrap();
    for block in log.chunks(10) {
        driver.write(append(block.to_vec())).unwrap();
    }
    // In the last block, at a block's first entry, at its last, across several, at a place cut before, at the start.
    for (term, first) in [(2, 35), (3, 31), (4, 30), (5, 12), (6, 12), (7, 1)] {
        log.truncate(first - 1);
        log.extend(entries(first as u64, 8, term, 9, 50));
        driver.write(Write { hard: Some(vote(term, 1)), ..append(log[first - 1..].to_vec()) }).unwrap();
        assert_eq!(all(&driver.store), log, "after the cut at {first}");
        driver.close();
        let (again, found) = Driver::open(&dir);
        assert_eq!(found.restored.tail, log, "reopened after the cut at {first}");
        driver = again;
    }
}

#[test]
fn cuts_and_appends_in_one_group_come_out_in_order() {
    let (_temp, dir) = place();
    let mut driver = Driver::create(&dir);
    let mut log: Vec<Arc<Entry>> = Vec::new();
    let mut seq = 0;
    // Submitted at once, so that most of it lands in few groups.
    for (term, first, count) in [(1, 1, 20), (2, 15, 10), (2, 25, 5), (3, 3, 30), (4, 33, 1), (5, 33, 2)] {
        log.truncate(first as usize - 1);
        log.extend(entries(first, count, term, 0, 20));
        let new = log[first as usize - 1..].to_vec();
        seq = driver.submit(Write { hard: Some(vote(term, 2)), ..append(new) });
    }
    driver.wait(seq).unwrap();
    assert_eq!(all(&driver.store), log);
    driver.close();
    assert_eq!(Store::open(&dir).unwrap().1.restored.tail, log);
}

#[test]
fn many_writes_share_one_fsync() {
    let (_temp, dir) = place();
    let mut driver = Driver::create(&dir);
    let mut seq = 0;
    for i in 1..=500 {
        seq = driver.submit(append(vec![entry(i, 1, 0, 20)]));
    }
    let mut answers = 1;
    while driver.answers.recv().unwrap().unwrap() < seq {
        answers += 1;
    }
    assert!(answers < 250, "{answers} groups for 500 writes");
}

#[test]
fn entries_of_the_largest_size_are_kept() {
    let (_temp, dir) = place();
    let log = entries(1, 40, 1, 0, concordat::limits::MAX_PAYLOAD);
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(1, 1)), ..append(log.clone()) }).unwrap();
    driver.close();
    let (store, _) = Store::open(&dir).unwrap();
    assert_eq!(all(&store), log);
    assert_eq!(std::fs::read_dir(dir.join("blobs")).unwrap().count(), 0);
}

#[test]
fn reading_keeps_to_the_bytes_allowed_but_gives_one() {
    let (_temp, dir) = place();
    let log = entries(1, 30, 1, 0, 1000);
    let mut driver = Driver::create(&dir);
    driver.write(append(log.clone())).unwrap();
    let one = log[0].encode().len();
    let read = |from, to, bytes| driver.store.read(LogIndex(from), LogIndex(to), bytes).unwrap();
    assert_eq!(read(4, 30, 0), log[3..4]);
    assert_eq!(read(4, 30, one * 3 + 5), log[3..6]);
    assert_eq!(read(4, 6, usize::MAX), log[3..6]);
    assert_eq!(read(29, u64::MAX, usize::MAX), log[28..]);
    assert!(read(31, 40, usize::MAX).is_empty() && read(6, 4, usize::MAX).is_empty());
    assert_eq!(driver.store.header(LogIndex(7)).unwrap().as_ref(), Some(&log[6].header));
    assert_eq!(driver.store.header(LogIndex(31)).unwrap(), None);
}

#[test]
fn the_core_gets_a_window_and_what_it_must_know_of_the_log_before_it() {
    let (_temp, dir) = place();
    let mut log = entries(1, 3000, 1, 0, 0);
    log.extend(entries(3001, 2000, 4, 0, 0));
    log.extend(entries(5001, LOG_WINDOW_ENTRIES as u64, 5, 0, 0));
    let mut driver = Driver::create(&dir);
    let hard = Some(vote(5, 1));
    let certificate = Some(certificate(&log));
    driver.write(Write { hard, certificate, ..append(log.clone()) }).unwrap();
    driver.close();
    let restored = Store::open(&dir).unwrap().1.restored;
    let (before, window) = log.split_at(5000);
    assert_eq!(restored.frontier, tree(before));
    assert_eq!(restored.terms, [(LogIndex(1), Term(1)), (LogIndex(3001), Term(4))]);
    assert_eq!(restored.last_proposed_at, before[4999].header.proposed_at);
    assert_eq!(restored.tail, window);
}

#[test]
fn what_no_certificate_covers_is_never_left_out_of_the_window() {
    let (_temp, dir) = place();
    let log = entries(1, LOG_WINDOW_ENTRIES as u64 + 500, 1, 0, 0);
    let mut driver = Driver::create(&dir);
    let hard = Some(vote(1, 1));
    driver.write(Write { hard, certificate: Some(certificate(&log[..100])), ..append(log.clone()) }).unwrap();
    driver.close();
    let restored = Store::open(&dir).unwrap().1.restored;
    assert_eq!(restored.frontier.size(), 100);
    assert_eq!(restored.tail, log[100..]);
}

#[test]
fn certificates_are_found_by_what_they_cover() {
    let (_temp, dir) = place();
    let log = entries(1, 50, 1, 0, 0);
    let mut driver = Driver::create(&dir);
    driver.write(append(log.clone())).unwrap();
    for size in [40, 10, 20] {
        driver.write(Write { certificate: Some(certificate(&log[..size])), ..Write::default() }).unwrap();
    }
    let size = |index| driver.store.certificate_covering(LogIndex(index)).unwrap().map(|c| c.head.size);
    assert_eq!(
        [1, 10, 11, 20, 21, 40, 41].map(size),
        [Some(10), Some(10), Some(20), Some(20), Some(40), Some(40), None]
    );
    let sizes = |above, limit| -> Vec<u64> {
        driver.store.certificates(above, limit).unwrap().iter().map(|c| c.head.size).collect()
    };
    assert_eq!(
        (sizes(0, 9), sizes(10, 1), sizes(40, 9), sizes(u64::MAX, 9)),
        (vec![10, 20, 40], vec![20], vec![], vec![])
    );
    assert_eq!(driver.store.latest_certificate().unwrap().head.size, 40);
}

#[test]
fn ballot_answers_are_forgotten_after_their_deadline_only() {
    let (_temp, dir) = place();
    let mut driver = Driver::create(&dir);
    for n in 0..20 {
        driver.write(Write { cast: Some(cast(n)), ..Write::default() }).unwrap();
    }
    assert_eq!(driver.store.forget_casts(15).unwrap(), 15);
    let known = |n| driver.store.cast_vote(&cast(n).request_key, &cast(n).content).unwrap().is_some();
    assert_eq!([14, 15, 19].map(known), [false, true, true]);
}

/// The write is refused once, with the error expected; after that everything is, and the store is as it was.
fn refused(write: Write, expected: impl Fn(&CommitError) -> bool) {
    let (_temp, dir) = place();
    let log = entries(1, 10, 3, 0, 10);
    let mut driver = Driver::create(&dir);
    let hard = Some(vote(3, 1));
    driver.write(Write { hard, certificate: Some(certificate(&log[..5])), ..append(log.clone()) }).unwrap();
    let error = driver.write(write).unwrap_err();
    assert!(expected(&error), "{error}");
    assert!(driver.answers.recv().is_err(), "one answer, then none");
    assert_eq!(driver.committer.submit(99, append(entries(11, 1, 3, 0, 1))), Err(Stopped));
    // What was to be replaced is shown no more, but it is there.
    assert!(log.starts_with(&all(&driver.store)));
    driver.close();
    assert_eq!(Store::open(&dir).unwrap().1.restored.tail, log);
}

#[test]
fn a_gap_is_refused() {
    refused(append(entries(12, 1, 3, 0, 1)), |e| matches!(e, CommitError::Gap { expected: LogIndex(11), .. }));
}

#[test]
fn a_certified_entry_is_never_replaced() {
    refused(append(entries(5, 1, 4, 0, 1)), |e| matches!(e, CommitError::Committed { committed: LogIndex(5), .. }));
}

#[test]
fn terms_that_run_backwards_are_refused() {
    refused(append(entries(11, 1, 2, 0, 1)), |e| matches!(e, CommitError::Backwards { index: LogIndex(11) }));
}

#[test]
fn a_certificate_of_what_is_not_held_is_refused() {
    let ahead = Write { certificate: Some(certificate(&entries(1, 11, 3, 0, 10))), ..Write::default() };
    refused(ahead, |e| matches!(e, CommitError::CertificateAhead { size: 11, .. }));
    let other = Write { certificate: Some(certificate(&entries(1, 10, 3, 1, 10))), ..Write::default() };
    refused(other, |e| matches!(e, CommitError::CertificateMismatch { size: 10 }));
}

#[test]
fn a_committer_that_was_closed_can_be_followed_by_another() {
    let (_temp, dir) = place();
    let mut driver = Driver::create(&dir);
    driver.write(append(entries(1, 3, 1, 0, 1))).unwrap();
    let store = driver.store.clone();
    driver.close();
    let mut driver = Driver::over(store);
    driver.write(append(entries(4, 3, 1, 0, 1))).unwrap();
    assert_eq!(driver.store.last_index(), LogIndex(6));
}

mod genesis {
    use super::*;
    use concordat::certificate::{Genesis, Member, MemberTable, Policy, QuorumRule, Role};

    fn genesis(name: &str) -> Genesis {
        let member = Member {
            did: DID,
            bls_key: key().public(),
            possession: key().prove_possession(),
            address: "127.0.0.1:7000".into(),
            role: Role::Voter,
            policy: Policy::Auto,
        };
        Genesis::new(name, QuorumRule::Majority, MemberTable::new(vec![member]).unwrap()).unwrap()
    }

    #[test]
    fn a_store_belongs_to_one_cluster_for_ever() {
        let (_temp, dir) = place();
        Store::create(&dir, DID, &key()).unwrap();
        let (mine, other) = (genesis("mine"), genesis("other"));
        let (store, _) = Store::open(&dir).unwrap();
        store.pin_genesis(&mine).unwrap();
        drop(store);
        let (store, found) = Store::open(&dir).unwrap();
        assert_eq!(found.genesis.as_ref(), Some(&mine));
        store.pin_genesis(&mine).unwrap();
        let refused = store.pin_genesis(&other).unwrap_err();
        assert!(matches!(&refused, PinError::Other { pinned, given } if (*pinned, *given) == (mine.id(), other.id())));
        let text = refused.to_string();
        assert!(text.contains(&mine.id().to_string()) && text.contains(&other.id().to_string()), "{text}");
    }
}

#[test]
fn what_a_submitted_write_replaces_is_shown_no_more() {
    let (_temp, dir) = place();
    let mut log = entries(1, 50, 1, 0, 10);
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(1, 1)), ..append(log.clone()) }).unwrap();
    for round in 2..40 {
        log.truncate(30);
        log.extend(entries(31, 20, round, 0, 10));
        let seq = driver.submit(Write { hard: Some(vote(round, 1)), ..append(log[30..].to_vec()) });
        // Durable yet or not: what is shown is never of an earlier round.
        let shown = all(&driver.store);
        assert!(shown.len() == 30 || shown == log, "{} entries shown in round {round}", shown.len());
        driver.wait(seq).unwrap();
        assert_eq!(all(&driver.store), log);
    }
}
