//! What lies before an installed snapshot is filled in from the newest entry down, and believed piece by piece.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::{Entry, HeadCertificate, Kind, merkle};
use concordat::core::Write;
use concordat::ids::{Digest, LogIndex};
use concordat::limits::TILE;
use concordat::storage::{FillError, Missing, ReadError, Store};
use model::{Driver, append, base, certificate, copy, entries, image, take, tree, unproposed, vote};
use std::path::Path;
use std::sync::Arc;

/// More than a tile of tiles, so that there are tiles of three levels.
const LAST: u64 = 66_000;
const BASE: u64 = 65_900;
const CERTIFIED: [u64; 7] = [100, 256, 300, 5_000, 60_000, 65_850, 65_900];

fn history() -> Vec<Arc<Entry>> {
    let mut log = vec![unproposed(1, 1, Kind::Noop)];
    log.extend(entries(2, 298, 1, 0, 5));
    log.extend([unproposed(300, 2, Kind::Noop), unproposed(301, 2, Kind::Epoch), unproposed(302, 2, Kind::EpochFinal)]);
    log.extend(entries(303, BASE - 303, 2, 0, 5));
    log.push(unproposed(BASE, 2, Kind::SnapshotMark));
    log.extend(entries(BASE + 1, LAST - BASE, 2, 0, 5));
    log
}

/// A store that holds everything.
fn whole(dir: &Path, log: &[Arc<Entry>]) -> Driver {
    let mut driver = Driver::create(dir);
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log[..1000].to_vec()) }).unwrap();
    for block in log[1000..].chunks(5000) {
        driver.write(append(block.to_vec())).unwrap();
    }
    for size in CERTIFIED {
        driver.write(Write { certificate: Some(certificate(&log[..size as usize])), ..Write::default() }).unwrap();
    }
    driver.store.archive(log).unwrap();
    driver
}

/// One that began with a snapshot.
fn installed(dir: &Path, log: &[Arc<Entry>]) -> Driver {
    let mut driver = Driver::create(dir);
    take(&driver.store, &image(&log[..BASE as usize], 100));
    let base = Some(base(&log[..BASE as usize]));
    driver.write(Write { hard: Some(vote(2, 1)), base, ..append(log[BASE as usize..].to_vec()) }).unwrap();
    driver.store.archive(log).unwrap();
    driver
}

fn unproved(result: Result<(), FillError>) {
    assert!(matches!(result, Err(FillError::Unproved { .. })), "{result:?}");
}

fn forged(certificate: &HeadCertificate, forge: impl FnOnce(&mut HeadCertificate)) -> Arc<HeadCertificate> {
    let mut forged = certificate.clone();
    forge(&mut forged);
    Arc::new(forged)
}

/// Fills one piece in, after every lie about it was refused; `None` when nothing is missing.
fn step(log: &[Arc<Entry>], source: &Store, target: &Store) -> Option<Missing> {
    let missing = target.missing_history().unwrap()?;
    match &missing {
        Missing::Tile { level, position } => {
            let truth = source.history_tile(*level, *position).unwrap().unwrap();
            let mut lie = truth.clone();
            lie[17] = Digest([1; 32]);
            unproved(target.fill_tile(*level, *position, &lie));
            unproved(target.fill_tile(*level, *position, &truth[1..]));
            assert_eq!(target.missing_history().unwrap().as_ref(), Some(&missing));
            target.fill_tile(*level, *position, &truth).unwrap();
        }
        Missing::Headers { first } => {
            let truth = source.history_headers(*first).unwrap().unwrap();
            let mut lie = truth.clone();
            lie.swap(3, 4);
            unproved(target.fill_headers(*first, &lie));
            let mut other = log[first.0 as usize].header.clone();
            other.proposed_at += 1;
            lie.clone_from(&truth);
            lie[1] = other.encode();
            unproved(target.fill_headers(*first, &lie));
            unproved(target.fill_headers(*first, &truth[..255]));
            unproved(target.fill_headers(LogIndex(first.0 + TILE), &truth));
            assert_eq!(target.missing_history().unwrap().as_ref(), Some(&missing));
            target.fill_headers(*first, &truth).unwrap();
        }
        Missing::Certificates { above, upto } => {
            let mut truth = source.certificates(*above, 300).unwrap();
            truth.retain(|c| c.head.size <= *upto);
            // Trees over many entries take their time: lies are told where there is a certificate, and about the first ones.
            let made = || (*upto < 1000).then(|| certificate(&log[..*upto as usize]));
            if let Some(one) = truth.first().cloned().or_else(made) {
                unproved(target.fill_certificates(*above, *upto, &[forged(&one, |c| c.head.root = Digest([4; 32]))]));
                unproved(target.fill_certificates(
                    *above,
                    *upto,
                    &[forged(&one, |c| c.head.term = c.head.term.next())],
                ));
                unproved(target.fill_certificates(*above, one.head.size - 1, std::slice::from_ref(&one)));
                unproved(target.fill_certificates(one.head.size, *upto + 1, std::slice::from_ref(&one)));
                unproved(target.fill_certificates(*above, *upto, &[one.clone(), one]));
                assert_eq!(target.missing_history().unwrap().as_ref(), Some(&missing));
            }
            target.fill_certificates(*above, *upto, &truth).unwrap();
        }
        Missing::Bodies { indexes } => {
            let truth = source.history_bodies(indexes, 1).unwrap().unwrap();
            assert_eq!(truth.len(), 1, "one at a time, when there is no room for more");
            let lie = unproposed(truth[0].index().0, 9, truth[0].header.kind);
            unproved(target.fill_bodies(&[lie]));
            assert_eq!(target.missing_history().unwrap().as_ref(), Some(&missing));
            target.fill_bodies(&truth).unwrap();
        }
    }
    Some(missing)
}

fn check_whole(store: &Store, log: &[Arc<Entry>]) {
    assert_eq!((store.headers_from(), store.missing_history().unwrap()), (LogIndex(1), None));
    store.archive(log).unwrap();
    for index in (1..=LAST).step_by(37).chain([256, 257, 300, 301, 302, BASE]) {
        let entry = &log[index as usize - 1];
        let kept = index > BASE || entry.header.kind != Kind::Proposal;
        let record = store.record(LogIndex(index)).unwrap().unwrap();
        assert_eq!(record, (entry.header.clone(), kept.then(|| entry.body.clone())), "{index}");
        if let Some(id) = entry.header.proposal_id.filter(|_| index <= BASE) {
            assert_eq!(store.index_of(&id).unwrap(), Some(LogIndex(index)), "{index}");
        }
    }
    let sizes: Vec<u64> = store.certificates(0, 99).unwrap().iter().map(|c| c.head.size).collect();
    assert_eq!(sizes, CERTIFIED);
    for size in [1, 255, 256, 300, 511, 5_000, 65_536, 65_537, BASE, LAST] {
        let root = tree(&log[..size as usize]).root();
        assert_eq!(store.root_at(size).unwrap(), root, "{size}");
        let path = store.inclusion_path(0, size).unwrap();
        assert_eq!(merkle::root_from_path(log[0].header.leaf_hash(), 0, size, &path), Some(root));
    }
}

#[test]
fn every_piece_is_proved_when_it_comes_and_filling_goes_on_after_any_interruption() {
    let temp = tempfile::tempdir().unwrap();
    let log = history();
    let source = whole(&temp.path().join("source"), &log);
    let dir = temp.path().join("target");
    let mut target = installed(&dir, &log);
    let from = LogIndex(BASE - BASE % TILE + 1);
    assert_eq!(target.store.headers_from(), from);
    assert!(matches!(target.store.header(from.prev()), Err(ReadError::NotHere { .. })));
    let (mut steps, mut pieces) = (0, [0; 4]);
    let mut lowest = from;
    while let Some(piece) = step(&log, &source.store, &target.store) {
        pieces[match piece {
            Missing::Tile { .. } => 0,
            Missing::Headers { .. } => 1,
            Missing::Certificates { .. } => 2,
            Missing::Bodies { .. } => 3,
        }] += 1;
        steps += 1;
        if [1, 2, 3, 4, 5, 6, 7, 100, 301, 512].contains(&steps) {
            // As it would be found if the process were gone now.
            let crashed = temp.path().join("crashed");
            copy(&dir, &crashed);
            let (found, _) = Driver::open(&crashed);
            let begins = found.store.headers_from();
            assert!(begins.0 % TILE == 1 && begins >= target.store.headers_from() && begins <= from, "{begins}");
            assert!(step(&log, &source.store, &found.store).is_some());
            found.close();
            std::fs::remove_dir_all(&crashed).unwrap();
            target.close();
            target = Driver::open(&dir).0;
            assert!(target.store.headers_from() <= lowest, "what was filled in stays");
        }
        lowest = target.store.headers_from();
    }
    // Bodies: the mark at the base, the changes that the snapshot brought excepted; 300 and 1.
    assert_eq!((pieces[0], pieces[1], pieces[3]), (1, 257, 3), "{pieces:?}");
    check_whole(&target.store, &log);
    target.close();
    let (target, found) = Driver::open(&dir);
    assert_eq!(found.report.derived, 0, "nothing had to be made again");
    check_whole(&target.store, &log);
    drop(source);
}

#[test]
fn headers_that_are_here_from_before_are_not_fetched_again() {
    let temp = tempfile::tempdir().unwrap();
    let log = history();
    let source = whole(&temp.path().join("source"), &log);
    let mut target = Driver::create(&temp.path().join("target"));
    target.write(Write { hard: Some(vote(2, 1)), ..append(log[..2000].to_vec()) }).unwrap();
    target.write(Write { certificate: Some(certificate(&log[..300])), ..Write::default() }).unwrap();
    target.store.archive(&log[..2000]).unwrap();
    take(&target.store, &image(&log[..BASE as usize], 100));
    let base = Some(base(&log[..BASE as usize]));
    target.write(Write { base, ..append(log[BASE as usize..].to_vec()) }).unwrap();
    target.store.archive(&log).unwrap();
    let mut headers = 0;
    while let Some(piece) = step(&log, &source.store, &target.store) {
        headers += u64::from(matches!(piece, Missing::Headers { .. }));
    }
    assert_eq!(headers, BASE / TILE - 2000 / TILE);
    check_whole(&target.store, &log);
}

#[test]
fn a_snapshot_installed_into_the_tile_that_was_whole_is_filled_in_anew() {
    let temp = tempfile::tempdir().unwrap();
    let mut log = vec![unproposed(1, 2, Kind::Noop)];
    log.extend(entries(2, 148, 2, 0, 5));
    log.push(unproposed(150, 2, Kind::Noop));
    log.extend(entries(151, 100, 2, 0, 5));
    let mut target = Driver::create(&temp.path().join("target"));
    assert_eq!(target.store.missing_history().unwrap(), None, "nothing of nothing");
    for (base_at, kept) in [(100, 1), (200, 150)] {
        let (below, index) = (&log[..base_at], LogIndex(kept));
        take(&target.store, &image(below, 100));
        let hard = Some(vote(2, 1));
        target.write(Write { hard, base: Some(base(below)), ..Write::default() }).unwrap();
        let above = match target.store.missing_history().unwrap() {
            Some(Missing::Certificates { above, upto }) if upto == base_at as u64 => above,
            other => panic!("{other:?} after a snapshot at {base_at}"),
        };
        target.store.fill_certificates(above, base_at as u64, &[certificate(below)]).unwrap();
        let Some(Missing::Bodies { indexes }) = target.store.missing_history().unwrap() else { panic!("bodies") };
        assert!(indexes.contains(&index), "{indexes:?}");
        let bodies: Vec<_> = indexes.iter().map(|index| log[index.0 as usize - 1].clone()).collect();
        target.store.fill_bodies(&bodies).unwrap();
        assert_eq!(target.store.missing_history().unwrap(), None);
    }
}

#[test]
fn a_snapshot_installed_meanwhile_moves_the_beginning_up_again() {
    let temp = tempfile::tempdir().unwrap();
    let mut log = history();
    let source = whole(&temp.path().join("source"), &log);
    let dir = temp.path().join("target");
    let mut target = installed(&dir, &log);
    for _ in 0..9 {
        step(&log, &source.store, &target.store).unwrap();
    }
    assert!(target.store.headers_from().0 < BASE - TILE);
    log.extend(entries(LAST + 1, 1000, 2, 0, 5));
    take(&target.store, &image(&log[..67_000], 100));
    target.write(Write { base: Some(base(&log[..67_000])), ..Write::default() }).unwrap();
    assert_eq!(target.store.headers_from(), LogIndex(67_000 - 67_000 % TILE + 1));
    let wanted = target.store.missing_history().unwrap();
    assert!(wanted.is_some());
    target.close();
    let (target, _) = Driver::open(&dir);
    assert_eq!(target.store.missing_history().unwrap(), wanted);
}
