//! A look at a stopped store tells everything that is wrong with it, and changes nothing.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::{Entry, Kind};
use concordat::core::Write;
use concordat::ids::LogIndex;
use concordat::storage::{Examination, Examine, ExamineError, OpenError, Store, Weight};
use model::{DID, Driver, append, cast, certificate, copy, entries, image, key, take, unproposed, vote};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn history() -> Vec<Arc<Entry>> {
    let mut log = vec![unproposed(1, 1, Kind::Noop)];
    log.extend(entries(2, 298, 1, 0, 30));
    log.extend([unproposed(300, 2, Kind::Noop), unproposed(301, 2, Kind::Epoch), unproposed(302, 2, Kind::EpochFinal)]);
    log.extend(entries(303, 398, 2, 0, 30));
    log
}

/// A stopped store with some of everything: compacted up to 650, certified up to 690, two images.
fn filled() -> (TempDir, PathBuf, Vec<Arc<Entry>>) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let log = history();
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(2, 1)), cast: Some(cast(4)), ..append(log[..10].to_vec()) }).unwrap();
    for block in log[10..].chunks(10) {
        driver.write(append(block.to_vec())).unwrap();
    }
    for size in [300, 690] {
        driver.write(Write { certificate: Some(certificate(&log[..size])), ..Write::default() }).unwrap();
    }
    driver.store.archive(&log[..690]).unwrap();
    take(&driver.store, &image(&log[..650], 1000));
    take(&driver.store, &image(&log[..680], 70_000));
    while driver.store.compact(LogIndex(650)).unwrap().more {}
    driver.close();
    (temp, dir, log)
}

fn quick() -> Examine {
    Examine { quick: true, ..Examine::default() }
}

fn look(dir: &Path) -> Examination {
    Store::examine(dir, &quick(), &mut |_| {}).unwrap()
}

/// Every file and directory, with its contents and its times.
fn all(root: &Path) -> Vec<(PathBuf, Option<Vec<u8>>, std::time::SystemTime)> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let (changed, is_dir) = fs::metadata(&path).map(|m| (m.modified().unwrap(), m.is_dir())).unwrap();
            found.push((path.clone(), (!is_dir).then(|| fs::read(&path).unwrap()), changed));
            if is_dir {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Changes the database of a stopped store.
fn alter(dir: &Path, change: impl FnOnce(&sled::Db)) {
    let db = model::raw(dir);
    change(&db);
    db.flush().unwrap();
}

fn flip(db: &sled::Db, tree: &str, key: &[u8]) {
    let tree = db.open_tree(tree).unwrap();
    let mut value = tree.get(key).unwrap().expect("the record is there").to_vec();
    let middle = value.len() / 2;
    value[middle] ^= 1;
    tree.insert(key, value).unwrap();
}

#[test]
fn a_sound_store_is_told_apart_and_left_as_it_was() {
    let (temp, dir, log) = filled();
    // A start would raise this watermark: an examination may not.
    let before = all(temp.path());
    let seen = look(&dir);
    assert!(all(temp.path()) == before, "every byte and time is as it was, and nothing was added");
    assert!(seen.is_sound() && seen.opens(), "{:?}", seen.findings);
    assert_eq!((seen.did, seen.key), (Some(DID), Some(key().public())));
    assert_eq!((seen.schema, seen.base, seen.last_index), (Some(3), Some(LogIndex(650)), Some(LogIndex(700))));
    assert_eq!((seen.root, seen.certified), (Some(model::tree(&log).root()), Some(690)));
    assert_eq!(seen.vote, vote(2, 1).vote.map(|v| v.candidate));
    assert_eq!(seen.snapshots.iter().map(|m| m.index.0).collect::<Vec<_>>(), [650, 680]);
    let size = |name: &str| seen.trees.iter().find(|t| t.tree == name).unwrap();
    assert_eq!((size("certificates").records, size("kept").records, size("casts").records), (2, 4, 1));
    assert_eq!(size("log").records, 5, "fifty entries in blocks of ten");
    let headers = log[..640].iter().map(|e| e.header.encode().len() as u64 + 2).sum::<u64>();
    assert_eq!(size("headers").value_bytes, headers, "ten whole runs");
    assert!(seen.files.iter().any(|f| f.path == Path::new("db") && f.bytes > 0));
}

#[test]
fn a_store_in_use_or_not_there_is_refused() {
    let (temp, dir, _) = filled();
    let (open, _) = Store::open(&dir).unwrap();
    let refused = Store::examine(&dir, &quick(), &mut |_| {});
    assert!(matches!(refused, Err(ExamineError::Store(OpenError::InUse { .. }))), "{refused:?}");
    drop(open);
    let refused = Store::examine(&temp.path().join("none"), &quick(), &mut |_| {});
    assert!(matches!(refused, Err(ExamineError::Store(OpenError::Missing { .. }))), "{refused:?}");
    let scratch = Some(temp.path().to_owned());
    let refused = Store::examine(&dir, &Examine { scratch, quick: true }, &mut |_| {});
    assert!(matches!(refused, Err(ExamineError::Copy(_))), "a directory that exists is nobody's copy");
    let scratch = Some(temp.path().join("elsewhere"));
    let seen = Store::examine(&dir, &Examine { scratch, quick: true }, &mut |_| {}).unwrap();
    assert!(seen.is_sound() && !temp.path().join("elsewhere").exists());
}

#[test]
fn everything_that_is_wrong_is_found_not_only_the_first() {
    let (_temp, dir, _) = filled();
    let number = |n: u64| n.to_be_bytes();
    let part = |n: u64| [&n.to_be_bytes()[..], &[0; 4]].concat();
    alter(&dir, |db| {
        flip(db, "kept", &number(300));
        flip(db, "headers", &number(65));
        db.open_tree("headers").unwrap().remove(number(129)).unwrap();
        flip(db, "log", &number(671));
        flip(db, "log", &number(691));
        db.open_tree("log").unwrap().remove(number(681)).unwrap();
        flip(db, "snapshots", &part(650));
        db.open_tree("casts").unwrap().insert([7; 64], &[9; 3]).unwrap();
        db.open_tree("certificates").unwrap().insert(number(300), b"no certificate").unwrap();
        db.open_tree("hard").unwrap().remove("commits").unwrap();
        db.open_tree("meta").unwrap().insert("stray", &[1]).unwrap();
    });
    let mut mark = fs::read(dir.join("watermark")).unwrap();
    mark[60] ^= 1;
    fs::write(dir.join("watermark"), mark).unwrap();
    fs::write(dir.join("blobs").join("7"), b"not durable").unwrap();
    let seen = look(&dir);
    assert!(!seen.opens());
    let told: Vec<&str> = seen.findings.iter().map(|f| f.what.as_str()).collect();
    for expected in [
        "the watermark file is unusable",
        "blobs/ is not empty",
        "the record \"commits\" of the tree \"hard\" is missing",
        "the kept entry 300 is missing, damaged or not the one in the tree",
        "the headers and tree hashes of entries 65 to 128",
        "the headers and tree hashes of entries 129 to 192",
        "the log block at index 671 is wrong",
        "the log block at index 691 is wrong",
        "chunks of the snapshot at 650 are missing or damaged",
        "a record of the tree \"casts\" is wrong",
        "a record of the tree \"certificates\" is wrong",
        "a record of the tree \"meta\" under a key",
    ] {
        assert_eq!(told.iter().filter(|what| what.contains(expected)).count(), 1, "{expected}: {told:#?}");
    }
    assert!(seen.notes.iter().any(|note| note.contains("from entry 671 on")), "{:?}", seen.notes);
    assert!(seen.findings.iter().all(|f| !f.means.is_empty() && !f.remedy.is_empty()));
}

#[test]
fn a_store_behind_its_watermark_is_told_so_and_its_watermark_is_not_touched() {
    let (temp, dir, _) = filled();
    let old = temp.path().join("old");
    copy(&dir, &old);
    let before = fs::read(dir.join("watermark")).unwrap();
    let (mut driver, _) = Driver::open(&dir);
    let hard = Some(vote(5, 1));
    driver.write(Write { hard, ..append(entries(701, 9, 5, 0, 10)) }).unwrap();
    driver.close();
    fs::copy(dir.join("watermark"), old.join("watermark")).unwrap();
    let seen = look(&old);
    let told: Vec<&str> = seen.findings.iter().map(|f| f.what.as_str()).collect();
    for expected in ["its term is 2, the watermark says at least 5", "its log ends at 700", "groups of writes"] {
        assert!(told.iter().any(|what| what.contains(expected)), "{expected}: {told:#?}");
    }
    assert_eq!(seen.watermark.unwrap().last_index, LogIndex(709));
    // The other way round there is nothing wrong: a start would raise the watermark, an examination does not.
    fs::write(dir.join("watermark"), &before).unwrap();
    assert!(look(&dir).is_sound());
    assert!(fs::read(dir.join("watermark")).unwrap() == before);
}

#[test]
fn derived_records_are_repaired_and_nothing_else_is() {
    let (_temp, dir, log) = filled();
    let id = log[9].header.proposal_id.unwrap();
    alter(&dir, |db| {
        for tree in ["tiles", "proposals"] {
            db.open_tree(tree).unwrap().clear().unwrap();
        }
        // Headers above the log's base follow from the log; those below follow from nothing.
        db.open_tree("headers").unwrap().remove(65u64.to_be_bytes()).unwrap();
    });
    let seen = look(&dir);
    assert!(!seen.is_sound() && !seen.opens(), "headers below the base are gone: {:?}", seen.findings);
    assert!(Store::repair(&dir).is_err());

    let (_temp, dir, _) = filled();
    alter(&dir, |db| {
        for tree in ["tiles", "proposals"] {
            db.open_tree(tree).unwrap().clear().unwrap();
        }
    });
    let seen = look(&dir);
    assert_eq!(seen.findings.iter().map(|f| f.weight).collect::<Vec<_>>(), [Weight::Flaw], "{:?}", seen.findings);
    assert!(seen.findings[0].what.contains("proposals are missing") && seen.opens());
    assert!(seen.notes.iter().any(|note| note.contains("derived records are not written yet")), "{:?}", seen.notes);
    let (driver, _) = Driver::open(&dir);
    assert_eq!(driver.store.index_of(&id).unwrap(), None, "a start alone does not bring it back");
    driver.close();
    let done = Store::repair(&dir).unwrap();
    assert_eq!(
        (done.proposals, done.images),
        (log[..512].iter().filter(|e| e.header.proposal_id.is_some()).count() as u64, 0)
    );
    assert!(look(&dir).is_sound());
    let (driver, _) = Driver::open(&dir);
    assert_eq!(driver.store.index_of(&id).unwrap(), Some(LogIndex(10)));
}

#[test]
fn an_image_that_the_log_does_not_need_may_be_damaged() {
    let (_temp, dir, _) = filled();
    alter(&dir, |db| flip(db, "snapshots", &[&680u64.to_be_bytes()[..], &[0, 0, 0, 1]].concat()));
    let seen = look(&dir);
    assert!(!seen.is_sound() && seen.opens(), "{:?}", seen.findings);
    assert_eq!(Store::repair(&dir).unwrap().images, 1);
    assert!(look(&dir).is_sound());
    alter(&dir, |db| flip(db, "snapshots", &[&650u64.to_be_bytes()[..], &[0; 4]].concat()));
    let seen = look(&dir);
    assert!(seen.findings.iter().any(|f| f.what.contains("the log begins after 650")), "{:?}", seen.findings);
    assert!(!seen.opens());
}

#[test]
fn a_store_of_an_earlier_version_is_looked_at_as_its_migration_leaves_it_and_not_migrated() {
    let temp = tempfile::tempdir().unwrap();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-v1.tar.gz");
    let done = std::process::Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(temp.path()).status();
    assert!(done.expect("tar, to unpack a fixture").success());
    let dir = temp.path().join("store");
    let before = all(&dir);
    let seen = look(&dir);
    assert!(seen.is_sound(), "{:?}", seen.findings);
    assert_eq!((seen.schema, seen.migrations.len()), (Some(1), 2));
    assert!(all(&dir) == before);
    // Its certificates were made up: only their signatures tell.
    let seen = Store::examine(&dir, &Examine::default(), &mut |_| {}).unwrap();
    assert!(seen.findings.iter().any(|f| f.what.contains("does not verify")), "{:?}", seen.findings);
}

#[test]
fn a_newer_store_is_not_looked_into() {
    let (_temp, dir, _) = filled();
    let mut mark = fs::read(dir.join("watermark")).unwrap();
    mark[8..10].copy_from_slice(&9u16.to_be_bytes());
    fs::write(dir.join("watermark"), mark).unwrap();
    let seen = look(&dir);
    assert_eq!(seen.findings.len(), 1);
    assert!(seen.findings[0].what.contains("version 9") && seen.trees.is_empty());
}

#[test]
fn a_missing_file_is_one_finding_among_others() {
    for file in ["db", "conf", "lock", "watermark"] {
        let (_temp, dir, _) = filled();
        fs::remove_file(dir.join(file)).unwrap();
        let seen = look(&dir);
        assert!(!seen.opens() && !dir.join(file).exists(), "{file}: {:?}", seen.findings);
        assert!(seen.findings.iter().any(|f| f.what.contains(file)), "{file}: {:?}", seen.findings);
        if file != "db" {
            assert_eq!(seen.last_index, Some(LogIndex(700)), "{file}: the rest is looked at all the same");
        }
    }
}
