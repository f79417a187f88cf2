//! Stores of earlier schema versions are brought to the present one, whole.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::{Genesis, Member, MemberTable, Policy, QuorumRule, Role, SecretKey};
use concordat::core::Write;
use concordat::ids::LogIndex;
use concordat::storage::{OpenError, Store};
use model::{DID, Driver, append, cast, certificate, copy, entries, image, take, vote};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A copy of a golden store.
fn golden(version: u16) -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/store-v{version}.tar.gz"));
    let done = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(temp.path()).status();
    assert!(done.expect("tar, to unpack a fixture").success());
    let dir = temp.path().join("store");
    (temp, dir)
}

/// All that was put into a golden store is in it.
fn check(dir: &Path) {
    let (mut driver, found) = Driver::open(dir);
    let log = entries(1, 600, 2, 0, 40);
    assert_eq!((found.did, found.bls.to_bytes()), (DID, model::key().to_bytes()));
    assert_eq!(found.next_bls.unwrap().to_bytes(), SecretKey::generate(&[8; 32]).to_bytes());
    assert_eq!(found.genesis, Some(genesis()));
    assert_eq!(found.restored.hard, vote(2, 1));
    assert_eq!(found.restored.certificate, Some(certificate(&log[..590])));
    // Two full spans of the auditors' index, where the log is not compacted; nothing else.
    assert!(found.report.derived <= 2, "{}", found.report.derived);
    let from = found.restored.compacted;
    assert_eq!(found.restored.tail, log[from.0 as usize..]);
    let given = cast(4);
    assert_eq!(driver.store.cast_vote(&given.request_key, &given.content).unwrap(), Some(given));
    assert_eq!(driver.store.root_at(590).unwrap(), model::tree(&log[..590]).root());
    for e in &log {
        assert_eq!(driver.store.header(e.index()).unwrap().as_ref(), Some(&e.header));
    }
    // And it goes on.
    driver.write(append(entries(601, 10, 2, 0, 40))).unwrap();
    driver.close();
    let (driver, found) = Driver::open(dir);
    assert_eq!(found.last_index, LogIndex(610));
    driver.close();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_store_of_version_1_is_migrated_when_it_is_opened() {
    let (_temp, dir) = golden(1);
    let before = std::fs::read(dir.join("watermark")).unwrap();
    check(&dir);
    assert!(Store::migrate(&dir, true).unwrap().is_empty(), "nothing is left to do");
    let copied = std::fs::read(dir.join("migrated-1-2")).unwrap();
    assert!(copied.windows(before.len()).any(|w| w == before), "what was overwritten is kept");
}

#[test]
fn a_store_of_version_2_is_migrated_with_its_snapshot() {
    let (_temp, dir) = golden(2);
    assert_eq!(Store::migrate(&dir, false).unwrap().len(), 1);
    let (driver, found) = Driver::open(&dir);
    assert_eq!((found.report.base, found.snapshot.map(|s| s.index)), (LogIndex(300), Some(LogIndex(300))));
    driver.close();
    check(&dir);
}

#[test]
fn a_store_of_version_3_opens() {
    let (_temp, dir) = golden(3);
    assert!(Store::migrate(&dir, false).unwrap().is_empty());
    check(&dir);
}

#[test]
fn a_dry_run_tells_the_steps_and_touches_nothing() {
    let (_temp, dir) = golden(1);
    let all = |dir: &Path| -> Vec<Vec<u8>> {
        names(dir).iter().filter(|n| *n != "blobs").map(|n| std::fs::read(dir.join(n)).unwrap()).collect()
    };
    let before = (names(&dir), all(&dir));
    let steps = Store::migrate(&dir, true).unwrap();
    assert_eq!(steps.iter().map(|s| (s.from, s.to)).collect::<Vec<_>>(), [(1, 2), (2, 3)]);
    assert!((names(&dir), all(&dir)) == before, "as it was");
    assert_eq!(Store::migrate(&dir, false).unwrap(), steps);
    assert!(Store::migrate(&dir, true).unwrap().is_empty());
    check(&dir);
}

#[test]
fn a_migration_goes_on_wherever_it_was_interrupted() {
    let (temp, old) = golden(2);
    let new = temp.path().join("new");
    copy(&old, &new);
    Store::migrate(&new, false).unwrap();
    // After the copy was written; after the watermark was; after the database was.
    for (database, watermark) in [(&old, &old), (&old, &new), (&new, &new)] {
        let dir = temp.path().join("torn");
        drop(std::fs::remove_dir_all(&dir));
        copy(database, &dir);
        std::fs::copy(watermark.join("watermark"), dir.join("watermark")).unwrap();
        drop(std::fs::remove_file(dir.join("migrated-2-3")));
        std::fs::copy(new.join("migrated-2-3"), dir.join("migrating-2-3")).unwrap();
        assert!(!Store::migrate(&dir, true).unwrap().is_empty(), "it is not over");
        check(&dir);
        assert!(names(&dir).contains(&"migrated-2-3".to_owned()) && Store::migrate(&dir, true).unwrap().is_empty());
    }
    // Before the copy had its name.
    std::fs::write(old.join("migrating-2-3.next"), b"half a co").unwrap();
    check(&old);
}

#[test]
fn a_migrated_store_is_newer_than_the_old_program_before_its_database_is() {
    let (temp, dir) = golden(1);
    let other = temp.path().join("other");
    copy(&dir, &other);
    Store::migrate(&dir, false).unwrap();
    // The version stands behind the magic, where every program looks first.
    let version = |dir: &Path| std::fs::read(dir.join("watermark")).unwrap()[8..10].to_vec();
    assert_eq!((version(&other), version(&dir)), (vec![0, 1], vec![0, 3]));
    let mut newer = std::fs::read(dir.join("watermark")).unwrap();
    newer[9] = 4;
    std::fs::write(dir.join("watermark"), newer).unwrap();
    for refused in [Store::open(&dir).err(), Store::migrate(&dir, false).err()] {
        assert!(matches!(refused, Some(OpenError::Newer { found: 4, known: 3, .. })), "{refused:?}");
    }
}

/// Writes it to `$GOLDEN`, when that is set: once for each schema version, then the file is frozen.
#[test]
fn a_store_like_the_golden_one_can_be_made() {
    let root = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("GOLDEN").map_or_else(|| root.path().join("store"), PathBuf::from);
    let mut driver = Driver::create(&dir);
    driver.store.pin_genesis(&genesis()).unwrap();
    driver.store.add_key(&SecretKey::generate(&[8; 32])).unwrap();
    let log = entries(1, 600, 2, 0, 40);
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log[..250].to_vec()) }).unwrap();
    for part in log[250..].chunks(50) {
        driver.write(append(part.to_vec())).unwrap();
    }
    driver
        .write(Write { cast: Some(cast(4)), certificate: Some(certificate(&log[..250])), ..Write::default() })
        .unwrap();
    driver.write(Write { certificate: Some(certificate(&log[..590])), ..Write::default() }).unwrap();
    driver.store.archive(&log[..590]).unwrap();
    take(&driver.store, &image(&log[..300], 1000));
    while driver.store.compact(LogIndex(300)).unwrap().more {}
    assert_eq!((driver.store.base(), driver.store.last_index()), (LogIndex(300), LogIndex(600)));
    driver.close();
}

fn genesis() -> Genesis {
    let key = model::key();
    let member = Member {
        did: DID,
        bls_key: key.public(),
        possession: key.prove_possession(),
        address: "127.0.0.1:7000".into(),
        role: Role::Voter,
        policy: Policy::Auto,
    };
    Genesis::new("golden", QuorumRule::Majority, MemberTable::new(vec![member]).unwrap()).unwrap()
}
