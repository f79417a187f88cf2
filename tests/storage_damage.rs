//! A store that is damaged or has lost its memory says so: it never panics and never opens shorter.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::{
    Body, Entry, Genesis, HeadCertificate, Header, Kind, Member, MemberTable, Policy, QuorumRule, Role, SecretKey,
    SnapshotManifest,
};
use concordat::core::{CastVote, HardState, Write};
use concordat::ids::{Digest, LogIndex};
use concordat::storage::{Damage, Examine, Loss, OpenError, ReadError, Recovered, Store};
use model::{DID, Dice, Driver, append, cast, certificate, copy, entries, image, take, unproposed, vote};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

/// A closed store with some of everything, and its log.
fn filled(dir: &Path) -> Vec<Arc<Entry>> {
    let log = entries(1, 400, 2, 0, 300);
    let mut driver = Driver::create(dir);
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log[..10].to_vec()) }).unwrap();
    for block in log[10..].chunks(30) {
        driver.write(append(block.to_vec())).unwrap();
    }
    driver.write(Write { certificate: Some(certificate(&log[..390])), ..Write::default() }).unwrap();
    driver.close();
    log
}

fn open_error(dir: &Path) -> OpenError {
    match Store::open(dir) {
        Ok(_) => panic!("it opened"),
        Err(e) => e,
    }
}

fn damage(dir: &Path) -> Damage {
    match open_error(dir) {
        OpenError::Damaged { damage, .. } => damage,
        OpenError::Mendable { damage, .. } => *damage,
        other => panic!("{other}"),
    }
}

fn loss(dir: &Path) -> Loss {
    let error = open_error(dir);
    assert!(error.to_string().contains("fresh key"), "it says what to do: {error}");
    match error {
        OpenError::Quarantined { loss, .. } => loss,
        other => panic!("{other}"),
    }
}

/// A closed store of this schema with everything that one can hold: a log that begins after a snapshot, entries that are
/// kept, two images, certificates, ballot answers, two keys and a cluster.
fn rich(dir: &Path) -> Vec<Arc<Entry>> {
    let mut log = vec![unproposed(1, 1, Kind::Noop)];
    log.extend(entries(2, 298, 1, 0, 200));
    log.extend([unproposed(300, 2, Kind::Epoch), unproposed(301, 2, Kind::EpochFinal)]);
    log.extend(entries(302, 399, 2, 0, 200));
    let mut driver = Driver::create(dir);
    driver.store.pin_genesis(&genesis()).unwrap();
    driver.store.add_key(&SecretKey::generate(&[8; 32])).unwrap();
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log[..10].to_vec()) }).unwrap();
    for block in log[10..].chunks(30) {
        driver.write(append(block.to_vec())).unwrap();
    }
    for n in 0..CASTS {
        driver.write(Write { cast: Some(cast(n)), ..Write::default() }).unwrap();
    }
    for size in [300, 690] {
        driver.write(Write { certificate: Some(certificate(&log[..size])), ..Write::default() }).unwrap();
    }
    driver.store.archive(&log[..690]).unwrap();
    take(&driver.store, &image(&log[..400], 70_000));
    take(&driver.store, &image(&log[..680], 70_000));
    while driver.store.compact(LogIndex(600)).unwrap().more {}
    driver.close();
    log
}

const CASTS: u64 = 40;

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
    Genesis::new("damage", QuorumRule::Majority, MemberTable::new(vec![member]).unwrap()).unwrap()
}

/// What a member has promised or stands for: nothing of it may ever differ, or fail to be read once the store is open.
type Promises = (
    Vec<u8>,
    Option<Genesis>,
    HardState,
    Vec<Option<CastVote>>,
    Vec<(Header, Option<Body>)>,
    Vec<Arc<HeadCertificate>>,
);
/// What can be made or fetched again: it may fail to be read, and then says so.
type Rest = (Vec<(SnapshotManifest, Vec<Vec<u8>>)>, Vec<Option<LogIndex>>, Vec<Vec<Digest>>);

fn promises(store: &Store, found: &Recovered) -> Result<Promises, ReadError> {
    let keys = std::iter::once(&found.bls).chain(&found.next_bls).flat_map(|k| k.to_bytes().to_vec()).collect();
    let casts =
        (0..CASTS).map(|n| store.cast_vote(&cast(n).request_key, &cast(n).content)).collect::<Result<_, _>>()?;
    let records = (1..=store.last_index().0).map(|i| store.record(LogIndex(i)).map(|r| r.expect("it is there")));
    Ok((
        keys,
        found.genesis.clone(),
        found.restored.hard.clone(),
        casts,
        records.collect::<Result<_, _>>()?,
        store.certificates(0, 99)?,
    ))
}

fn rest(store: &Store, log: &[Arc<Entry>]) -> Result<Rest, String> {
    let mut images = Vec::new();
    for manifest in store.snapshots() {
        let chunk = |n| store.chunk(manifest.index, n).map(|c| c.expect("it is there").0);
        images.push((
            manifest.clone(),
            (0..manifest.chunks()).map(chunk).collect::<Result<_, _>>().map_err(|e| e.to_string())?,
        ));
    }
    let ids = log.iter().filter_map(|e| e.header.proposal_id);
    let places = ids.map(|id| store.index_of(&id)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let paths = (0..690).step_by(7).map(|leaf| store.inclusion_path(leaf, 690)).collect::<Result<_, _>>();
    Ok((images, places, paths.map_err(|e| e.to_string())?))
}

/// How damage was noticed.
#[derive(Debug, Default)]
struct Noticed {
    at_open: u32,
    image_set_aside: u32,
    when_read: u32,
    not_in_use: u32,
}

/// Everything that a store held before it was damaged.
struct Whole {
    dir: PathBuf,
    log: Vec<Arc<Entry>>,
    promises: Promises,
    rest: Rest,
    noticed: Noticed,
}

impl Whole {
    fn of(dir: PathBuf) -> Self {
        let log = rich(&dir);
        let (store, found) = Store::open(&dir).unwrap();
        let (promises, rest) = (promises(&store, &found).unwrap(), rest(&store, &log).unwrap());
        assert_eq!((rest.0.len(), promises.4.len(), found.report.base), (2, 700, LogIndex(580)));
        Self { dir, log, promises, rest, noticed: Noticed::default() }
    }

    /// Its files that hold anything, and of the database the places where sled has written.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = fs::read_dir(&self.dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
        let mut files: Vec<_> = files.map(|p| (p.file_name().unwrap().into(), fs::read(&p).unwrap())).collect();
        files.retain(|(_, bytes)| !bytes.is_empty());
        files.sort();
        files
    }

    /// Damages a copy and demands: it is noticed, or nothing differs.
    fn damaged(&mut self, what: &str, thorough: bool, damage: impl FnOnce(&Path)) {
        let bad = self.dir.with_file_name("bad");
        copy(&self.dir, &bad);
        damage(&bad);
        let told = thorough
            .then(|| Store::examine(&bad, &Examine { quick: true, ..Examine::default() }, &mut |_| {}).unwrap());
        match Store::open(&bad) {
            Err(OpenError::Damaged { .. } | OpenError::Quarantined { .. } | OpenError::Mendable { .. }) => {
                self.noticed.at_open += 1;
                assert!(told.is_none_or(|t| !t.opens()), "{what}: refused, but examined as sound");
            }
            Err(other) => panic!("{what}: {other}"),
            Ok((store, found)) => {
                let held = promises(&store, &found).unwrap_or_else(|e| panic!("{what}: opened, then {e}"));
                assert!(held == self.promises, "{what}: opened with something else");
                match rest(&store, &self.log) {
                    Err(_) => self.noticed.when_read += 1,
                    Ok((images, places, paths)) => {
                        assert!(
                            (&places, &paths) == (&self.rest.1, &self.rest.2),
                            "{what}: opened with something else"
                        );
                        let fewer = found.report.broken_snapshots > 0;
                        assert!(
                            images == self.rest.0 || (fewer && images.iter().all(|i| self.rest.0.contains(i))),
                            "{what}"
                        );
                        *(if fewer { &mut self.noticed.image_set_aside } else { &mut self.noticed.not_in_use }) += 1;
                    }
                }
            }
        }
        fs::remove_dir_all(&bad).unwrap();
    }
}

/// How many flips (40 in the gate).
fn flips() -> usize {
    std::env::var("STORAGE_FLIPS").map_or(40, |n| n.parse().unwrap())
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_or_without_effect() {
    let (_temp, dir) = place();
    let mut whole = Whole::of(dir);
    let files = whole.files();
    // Where sled has written: zeros between are not worth a flip.
    let written = |bytes: &[u8]| (0..bytes.len()).filter(|&i| bytes[i] != 0).collect::<Vec<_>>();
    let places: Vec<Vec<usize>> = files.iter().map(|(_, bytes)| written(bytes)).collect();
    let database = files.iter().position(|(name, _)| name == Path::new("db")).unwrap();
    let mut dice = Dice(7);
    for n in 0..flips() {
        let file = if dice.below(4) > 0 { database } else { dice.below(files.len()) };
        let (name, bytes) = &files[file];
        // Now and then where nothing was written, too.
        let at =
            if dice.below(20) > 0 { places[file][dice.below(places[file].len())] } else { dice.below(bytes.len()) };
        let flipped = bytes[at] ^ 1 << dice.below(8);
        whole.damaged(&format!("{} at {at}", name.display()), n.is_multiple_of(8), |bad| {
            let file = fs::File::options().write(true).open(bad.join(name)).unwrap();
            file.write_all_at(&[flipped], at as u64).unwrap();
        });
    }
    println!("{} flips in {} files: {:?}", flips(), files.len(), whole.noticed);
    let unnoticed = whole.noticed.not_in_use as usize;
    assert!(unnoticed < flips() * 3 / 4, "{:?}: the test looks where nothing lives", whole.noticed);
}

#[test]
fn a_file_cut_short_anywhere_is_noticed_or_without_effect() {
    let (_temp, dir) = place();
    let mut whole = Whole::of(dir);
    let files = whole.files();
    let mut dice = Dice(11);
    for n in 0..flips() / 2 {
        let (name, bytes) = &files[n % files.len()];
        let end = bytes.iter().rposition(|b| *b != 0).unwrap_or_default();
        let length = dice.below(end + 1) as u64;
        whole.damaged(&format!("{} cut to {length}", name.display()), n.is_multiple_of(8), |bad| {
            fs::File::options().write(true).open(bad.join(name)).unwrap().set_len(length).unwrap();
        });
    }
    println!("{} cuts of {} files: {:?}", flips() / 2, files.len(), whole.noticed);
}

#[test]
fn a_store_behind_its_watermark_has_lost_its_memory() {
    let (temp, dir) = place();
    let old = temp.path().join("old");
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(3, 1)), ..append(entries(1, 20, 3, 0, 10)) }).unwrap();
    driver.close();
    copy(&dir, &old);
    let (mut driver, _) = Driver::open(&dir);
    driver.write(append(entries(21, 5, 3, 0, 10))).unwrap();
    driver.close();
    fs::copy(dir.join("watermark"), old.join("watermark")).unwrap();
    assert_eq!(loss(&old), Loss::Entries { found: LogIndex(20), promised: LogIndex(25) });

    // Other entries at the end: same length, another history.
    copy(&dir, &temp.path().join("kept"));
    let (mut driver, _) = Driver::open(&dir);
    driver.write(Write { hard: Some(vote(4, 1)), ..append(entries(22, 6, 4, 0, 10)) }).unwrap();
    driver.close();
    let kept = temp.path().join("kept");
    let (mut driver, _) = Driver::open(&kept);
    driver.write(Write { hard: Some(vote(4, 1)), ..append(entries(22, 6, 4, 7, 10)) }).unwrap();
    driver.close();
    fs::copy(dir.join("watermark"), kept.join("watermark")).unwrap();
    assert_eq!(loss(&kept), Loss::History { index: LogIndex(27) });
}

#[test]
fn a_forgotten_term_or_vote_is_a_lost_memory() {
    for later in [vote(4, 1), vote(3, 2)] {
        let (temp, dir) = place();
        let old = temp.path().join("old");
        let mut driver = Driver::create(&dir);
        let first = concordat::core::HardState { vote: None, ..vote(3, 1) };
        driver.write(Write { hard: Some(first), ..Write::default() }).unwrap();
        driver.close();
        copy(&dir, &old);
        let (mut driver, _) = Driver::open(&dir);
        driver.write(Write { hard: Some(later), ..Write::default() }).unwrap();
        driver.close();
        fs::copy(dir.join("watermark"), old.join("watermark")).unwrap();
        assert!(matches!(loss(&old), Loss::Vote { .. }));
        // The other way round is a crash between store and watermark, and no loss.
        fs::copy(old.join("watermark"), temp.path().join("unused")).unwrap();
        assert!(Store::open(&dir).is_ok());
    }
}

#[test]
fn a_watermark_behind_its_store_is_raised_at_open() {
    let (temp, dir) = place();
    let mut driver = Driver::create(&dir);
    let before = fs::read(dir.join("watermark")).unwrap();
    driver.write(Write { hard: Some(vote(1, 1)), ..append(entries(1, 5, 1, 0, 10)) }).unwrap();
    driver.close();
    let after = fs::read(dir.join("watermark")).unwrap();
    assert_ne!(before, after);
    fs::write(dir.join("watermark"), &before).unwrap();
    drop(Store::open(&dir).unwrap());
    assert_eq!(fs::read(dir.join("watermark")).unwrap(), after);
    drop(temp);
}

#[test]
fn every_missing_file_is_named() {
    for file in ["db", "conf", "lock"] {
        let (_temp, dir) = place();
        filled(&dir);
        fs::remove_file(dir.join(file)).unwrap();
        assert!(matches!(damage(&dir), Damage::MissingFile(missing) if missing == file));
        assert!(!dir.join(file).exists(), "nothing is put in its place");
    }
    let (_temp, dir) = place();
    filled(&dir);
    fs::remove_file(dir.join("watermark")).unwrap();
    assert!(matches!(damage(&dir), Damage::Watermark(_)));
}

#[test]
fn a_damaged_or_foreign_watermark_is_refused() {
    let (temp, dir) = place();
    filled(&dir);
    let good = fs::read(dir.join("watermark")).unwrap();
    for at in [0, 20, 60, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(dir.join("watermark"), bad).unwrap();
        assert!(matches!(damage(&dir), Damage::Watermark(_)), "byte {at}");
    }
    let other = temp.path().join("other");
    Store::create(&other, concordat::ids::NodeId([5; 32]), &model::key()).unwrap();
    fs::copy(other.join("watermark"), dir.join("watermark")).unwrap();
    assert!(matches!(damage(&dir), Damage::ForeignWatermark { .. }));
}

#[test]
fn a_newer_store_is_refused_untouched() {
    let (_temp, dir) = place();
    filled(&dir);
    let mut mark = fs::read(dir.join("watermark")).unwrap();
    mark[8..10].copy_from_slice(&7u16.to_be_bytes());
    fs::write(dir.join("watermark"), &mark).unwrap();
    // Things that opening would tidy away.
    fs::write(dir.join("snap.0001.generating"), b"torn").unwrap();
    let contents = || {
        let mut files: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
        files.sort();
        files
            .into_iter()
            .map(|p| (fs::read(&p).unwrap(), fs::metadata(&p).unwrap().modified().unwrap(), p))
            .collect::<Vec<_>>()
    };
    let before = contents();
    let refused = open_error(&dir);
    assert!(matches!(refused, OpenError::Newer { found: 7, .. }), "{refused}");
    assert_eq!(contents(), before);
}

#[test]
fn a_torn_snapshot_of_the_database_is_removed() {
    let (_temp, dir) = place();
    let log = filled(&dir);
    fs::write(dir.join("snap.00000000DEADBEEF.generating"), b"torn").unwrap();
    let (_, found) = Store::open(&dir).unwrap();
    assert_eq!((found.report.torn_snapshots, found.restored.tail.len()), (1, log.len()));
}

#[test]
fn a_value_outside_the_data_file_is_refused() {
    let (_temp, dir) = place();
    filled(&dir);
    fs::write(dir.join("blobs").join("12345"), b"not durable").unwrap();
    assert!(matches!(damage(&dir), Damage::Blobs));
}
