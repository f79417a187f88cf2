//! Roots, proofs and the index of proposals over committed entries.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::merkle::{self, Frontier};
use concordat::core::Write;
use concordat::ids::{LogIndex, ProposalId, Term};
use concordat::storage::{ReadError, Store};
use model::{DID, Driver, append, certificate, entries, vote};
use std::path::PathBuf;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

#[test]
fn every_root_and_path_is_that_of_the_log() {
    let (_temp, dir) = place();
    let log = entries(1, 1100, 1, 0, 0);
    let mut driver = Driver::create(&dir);
    driver.write(append(log.clone())).unwrap();
    let mut roots = vec![Frontier::default().root()];
    let mut tree = Frontier::default();
    for (i, e) in log.iter().enumerate() {
        // In uneven pieces, some given twice.
        if i % 37 == 0 {
            driver.store.archive(&log[i.saturating_sub(40)..(i + 37).min(log.len())]).unwrap();
        }
        tree.push(e.header.leaf_hash());
        roots.push(tree.root());
        assert_eq!(driver.store.root_at(i as u64 + 1).unwrap(), tree.root());
    }
    let sizes = [1, 2, 255, 256, 257, 511, 512, 513, 700, 1024, 1100];
    for size in sizes {
        for leaf in (0..size).step_by(13).chain([size - 1]) {
            let path = driver.store.inclusion_path(leaf, size).unwrap();
            let leaf_hash = log[leaf as usize].header.leaf_hash();
            assert_eq!(
                merkle::root_from_path(leaf_hash, leaf, size, &path),
                Some(roots[size as usize]),
                "{leaf} of {size}"
            );
        }
        for old in sizes.into_iter().filter(|old| *old <= size) {
            let path = driver.store.consistency_path(old, size).unwrap();
            assert!(
                merkle::verify_consistency(old, roots[old as usize], size, roots[size as usize], &path),
                "{old} to {size}"
            );
        }
    }
    assert!(matches!(driver.store.root_at(1101), Err(ReadError::NotYet { asked: 1101, size: 1100 })));
    assert!(matches!(driver.store.inclusion_path(7, 7), Err(ReadError::NotYet { .. })));
}

#[test]
fn tiles_of_tiles_give_the_same_roots() {
    let (_temp, dir) = place();
    let log = entries(1, 66_000, 1, 0, 0);
    let mut driver = Driver::create(&dir);
    for part in log.chunks(8192) {
        driver.write(append(part.to_vec())).unwrap();
        driver.store.archive(part).unwrap();
    }
    driver.write(Write { hard: Some(vote(1, 1)), certificate: Some(certificate(&log)), ..Write::default() }).unwrap();
    let check = |store: &Store| {
        for (leaf, size) in [(0, 65_536), (65_535, 65_536), (65_536, 65_537), (1000, 66_000), (65_999, 66_000)] {
            let path = store.inclusion_path(leaf, size).unwrap();
            let root = model::tree(&log[..size as usize]).root();
            assert_eq!(store.root_at(size).unwrap(), root);
            let leaf_hash = log[leaf as usize].header.leaf_hash();
            assert_eq!(merkle::root_from_path(leaf_hash, leaf, size, &path), Some(root), "{leaf} of {size}");
        }
        for index in [1, 64, 65, 300, 65_536, 65_999] {
            assert_eq!(store.header(LogIndex(index)).unwrap().as_ref(), Some(&log[index as usize - 1].header));
        }
    };
    check(&driver.store);
    driver.close();
    let (store, found) = Store::open(&dir).unwrap();
    assert_eq!(found.report.derived, 0, "nothing had to be derived again");
    check(&store);
}

#[test]
fn derived_records_that_are_missing_are_made_again_at_open() {
    let (_temp, dir) = place();
    let log = entries(1, 600, 1, 0, 10);
    let mut driver = Driver::create(&dir);
    let hard = Some(vote(1, 1));
    // Certified, but never archived: as after a crash that took the derived records.
    driver.write(Write { hard, certificate: Some(certificate(&log[..590])), ..append(log.clone()) }).unwrap();
    driver.close();
    let (store, found) = Store::open(&dir).unwrap();
    assert!(found.report.derived > 0);
    assert_eq!(store.archived(), 590);
    assert_eq!(store.root_at(590).unwrap(), model::tree(&log[..590]).root());
    store.archive(&log[580..]).unwrap();
    assert_eq!(store.root_at(600).unwrap(), model::tree(&log).root());
    for e in &log {
        assert_eq!(store.index_of(&e.header.proposal_id.unwrap()).unwrap(), Some(e.index()));
    }
}

#[test]
fn a_proposal_is_found_by_its_whole_id() {
    let (_temp, dir) = place();
    let mut log = entries(1, 400, 1, 0, 0);
    log.extend(entries(401, 300, 2, 0, 0));
    let mut driver = Driver::create(&dir);
    driver.write(append(log.clone())).unwrap();
    driver.store.archive(&log[..650]).unwrap();
    for e in &log[..650] {
        assert_eq!(driver.store.index_of(&e.header.proposal_id.unwrap()).unwrap(), Some(e.index()));
    }
    let id = |term, seq, origin| ProposalId { term: Term(term), seq, origin };
    for id in
        [id(1, 401, DID), id(3, 1, DID), id(1, 0, DID), id(1, 7, concordat::ids::NodeId([1; 32])), id(2, 651, DID)]
    {
        assert_eq!(driver.store.index_of(&id).unwrap(), None, "{id}");
    }
}

#[test]
fn entries_out_of_order_are_not_derived_from() {
    let (_temp, dir) = place();
    let log = entries(1, 10, 1, 0, 0);
    let driver = Driver::create(&dir);
    driver.store.archive(&log[..5]).unwrap();
    assert!(matches!(
        driver.store.archive(&log[6..]),
        Err(ReadError::Gap { expected: LogIndex(6), found: LogIndex(7) })
    ));
    assert_eq!(driver.store.archived(), 5);
}
