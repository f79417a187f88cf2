//! A look at a store that no node has open: everything that is wrong with it, not only the first thing.
//!
//! sled writes when it opens a database: it cuts off a torn tail, removes and makes files. So all of this works on a
//! private copy, and the store itself is only read, under its lock. On the copy, the checks of [`super::recovery`] run
//! as they do when a store is opened, but go on after what they find; before them every record of every tree is read by
//! itself, and after them what opening has no time for: every certificate's signatures, every image, every proposal.

mod copy;
mod finding;
mod records;
mod signatures;

pub use copy::CopyError;
pub use finding::{Finding, Weight};

use super::archive::Archive;
use super::disk::{DATA, Disk, open_database};
use super::error::{Damage, OpenError};
use super::failure::{Failure, Findings, database, explained};
use super::generation::Place;
use super::ground::Ground;
use super::layout::SCHEMA;
use super::read::panic_message;
use super::recovery::{self, Scan};
use super::snapshots::Snapshots;
use super::watermark::Watermark;
use super::{Step, committer, migrate};
use crate::certificate::{Genesis, PublicKey, SnapshotManifest};
use crate::core::HardState;
use crate::ids::{Digest, LogIndex, NodeId, Term};
use finding::{Flaw, Noted};
use records::Records;
use serde::Serialize;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// How a store is examined.
#[derive(Clone, Debug, Default)]
pub struct Examine {
    /// Where the private copy is made (a directory that does not exist); beside the store when absent.
    pub scratch: Option<PathBuf>,
    /// Certificates are compared with the tree, but their signatures are not verified.
    pub quick: bool,
}

/// How far an examination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: &'static str,
    /// How much of it is done: bytes of the copy, else records.
    pub done: u64,
    /// Of how much, where that is known.
    pub total: Option<u64>,
}

/// Why a store was not examined.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// It is in use, or not there, or cannot be read.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// There is no private copy to work on.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// A file of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileSize {
    /// Its path in the store's directory.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
}

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TreeSize {
    /// Its name.
    pub tree: &'static str,
    /// Records.
    pub records: u64,
    /// Bytes of their keys.
    pub key_bytes: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
}

/// What the watermark says was durable at least.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Promised {
    /// The term.
    pub term: Term,
    /// Whom this member voted for in it.
    pub vote: Option<NodeId>,
    /// The last entry.
    pub last_index: LogIndex,
    /// The root over everything up to it.
    pub root: Digest,
    /// How many groups of writes were made durable.
    pub writes: u64,
}

/// What a store was found to hold. What could not be read is absent.
#[derive(Debug, Default, Serialize)]
pub struct Examination {
    /// Whose store it is.
    pub did: Option<NodeId>,
    /// The public half of its BLS key.
    pub key: Option<PublicKey>,
    /// That of the key which is to replace it.
    pub next_key: Option<PublicKey>,
    /// The cluster that it is bound to.
    pub cluster: Option<String>,
    /// That cluster's genesis.
    pub genesis: Option<Digest>,
    /// Its schema version.
    pub schema: Option<u16>,
    /// What the next start of a node (or `migrate`) changes in it.
    pub migrations: Vec<Step>,
    /// What its watermark says.
    pub watermark: Option<Promised>,
    /// Its term.
    pub term: Option<Term>,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// Groups of writes made durable.
    pub writes: Option<u64>,
    /// The last entry below the log.
    pub base: Option<LogIndex>,
    /// The first entry whose header is here.
    pub headers_from: Option<LogIndex>,
    /// The last entry that could be held against the tree.
    pub last_index: Option<LogIndex>,
    /// The root over everything up to it.
    pub root: Option<Digest>,
    /// Entries that the newest head certificate covers.
    pub certified: Option<u64>,
    /// Head certificates whose signatures were verified.
    pub verified: u64,
    /// Its files.
    pub files: Vec<FileSize>,
    /// Its trees.
    pub trees: Vec<TreeSize>,
    /// Complete and undamaged images, ascending.
    pub snapshots: Vec<SnapshotManifest>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How many more findings there were than are told.
    pub more: u64,
    /// What is not wrong, but worth knowing.
    pub notes: Vec<String>,
}

impl Examination {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.more == 0
    }

    /// Whether a node may go on with this store: what was found, if anything, mends itself.
    #[must_use]
    pub fn opens(&self) -> bool {
        self.more == 0 && self.findings.iter().all(|f| f.weight == Weight::Flaw)
    }
}

pub(super) fn examine(
    dir: &Path,
    how: &Examine,
    progress: &mut dyn FnMut(Progress),
) -> Result<Examination, ExamineError> {
    let mut doctor = Doctor { seen: Examination::default(), found: Findings::all(), flaws: Vec::new(), progress };
    let lock = explained(dir, || match recovery::lock(dir) {
        Err(Failure::Damage(damage)) => doctor.found.hear(damage).map(|()| None),
        other => other.map(Some),
    })?;
    let mark = explained(dir, || {
        doctor.seen.files = copy::files(dir)?;
        doctor.found.take(recovery::load_mark(dir))
    })?;
    // What a newer program wrote, this one can only misunderstand.
    if !doctor.found.are_newer() {
        let copy = copy::Copy::of(dir, &doctor.seen.files, how.scratch.as_deref(), doctor.progress)?;
        doctor.look(copy.path(), mark, how.quick);
    }
    drop(lock);
    Ok(doctor.report())
}

/// What an examination has seen so far.
struct Doctor<'a> {
    seen: Examination,
    found: Findings,
    flaws: Vec<Flaw>,
    progress: &'a mut dyn FnMut(Progress),
}

impl Doctor<'_> {
    /// A part of the examination, after which the others go on whatever becomes of it.
    fn part<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Option<T> {
        let done = catch_unwind(AssertUnwindSafe(|| step(self)));
        let done = done.unwrap_or_else(|p| Err(Damage::Panicked { message: panic_message(p.as_ref()) }.into()));
        // These findings hear everything, so that taking from them fails never.
        self.found.take(done).unwrap_or_default()
    }

    fn tell(&mut self, stage: &'static str, done: u64) {
        (self.progress)(Progress { stage, done, total: None });
    }

    fn note(&mut self, note: impl Into<String>) {
        self.seen.notes.push(note.into());
    }

    /// Looks at everything in the copy.
    fn look(&mut self, dir: &Path, mark: Option<Watermark>, quick: bool) {
        // What sled does when it is dropped after it gave up is caught, too.
        self.part(|doctor| {
            if let Some(disk) = doctor.part(|doctor| doctor.open(dir, mark.as_ref())) {
                doctor.look_inside(&disk, mark, quick);
            }
            Ok(())
        });
    }

    fn open(&mut self, dir: &Path, mark: Option<&Watermark>) -> Result<Disk, Failure> {
        self.tell("opening", 0);
        let place = Place::current(dir)?;
        let torn = recovery::tidy(dir, &place, &mut self.found)?;
        if torn > 0 {
            self.note(format!("{torn} unfinished snapshots of the database, which the next start removes"));
        }
        if !place.dir().join(DATA).is_file() {
            return Err(Damage::MissingFile(DATA).into());
        }
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join(super::disk::LOCK))?;
        let db = open_database(place.dir()).map_err(database)?;
        if let Some(mark) = mark {
            self.seen.schema = Some(mark.schema);
            self.seen.migrations = migrate::needed(dir, mark);
            // The rest is judged as the next start will find it.
            migrate::on_open(dir, &place, &db, mark.clone())?;
        }
        recovery::open_trees(dir, &place, db, lock, &mut self.found)
    }

    fn look_inside(&mut self, disk: &Disk, mark: Option<Watermark>, quick: bool) {
        let genesis = self.identity(disk);
        let mark = self.promises(mark);
        let hard = self.part(|_| recovery::read_hard_state(disk));
        let writes = self.part(|_| recovery::read_commits(disk));
        if let Some(hard) = &hard {
            (self.seen.term, self.seen.vote) = (Some(hard.term), hard.vote.as_ref().map(|v| v.candidate));
            self.part(|_| recovery::check_votes(hard, &mark));
        }
        let ground = self.part(|doctor| doctor.ground(disk));
        let records = self.records(disk, ground.as_ref());
        let scanned = ground.as_ref().and_then(|ground| self.scan(disk, &mark, ground));
        if let Some(writes) = writes {
            self.seen.writes = Some(writes);
            self.part(|_| recovery::check_commits(writes, &mark));
        }
        match (&ground, scanned) {
            (Some(ground), Some((archive, last_term))) => {
                if let Some(hard) = &hard {
                    self.part(|_| recovery::check_term(hard, last_term));
                }
                self.part(|doctor| doctor.proposals(disk, &archive));
                self.part(|doctor| doctor.images(disk, ground));
                self.part(|doctor| doctor.certificates(disk, &archive, genesis.as_ref(), &records, quick));
            }
            _ => self.note("tree, certificates and images were not checked: what the log rests on cannot be read"),
        }
    }

    /// Identity, keys and cluster.
    fn identity(&mut self, disk: &Disk) -> Option<Genesis> {
        self.part(|_| recovery::read_schema(disk));
        self.seen.did = self.part(|_| recovery::read_did(disk));
        if let Some((key, next)) = self.part(|_| recovery::read_keys(disk)) {
            (self.seen.key, self.seen.next_key) = (Some(key.public()), next.map(|key| key.public()));
        }
        let genesis = self.part(|_| recovery::read_genesis(disk)).flatten();
        if let Some(genesis) = &genesis {
            (self.seen.cluster, self.seen.genesis) = (Some(genesis.name.clone()), Some(genesis.id()));
        }
        genesis
    }

    /// What the watermark promises: nothing when it cannot be read, which is a finding of its own.
    fn promises(&mut self, mark: Option<Watermark>) -> Watermark {
        let Some(mark) = mark else {
            return Watermark::nothing(self.seen.did.unwrap_or(NodeId([0; 32])));
        };
        self.seen.watermark = Some(Promised {
            term: mark.hard.term,
            vote: mark.hard.vote.as_ref().map(|v| v.candidate),
            last_index: mark.last,
            root: mark.root,
            writes: mark.commits,
        });
        if let Some(did) = self.seen.did {
            self.part(|_| recovery::check_owner(did, &mark));
        }
        mark
    }

    fn ground(&mut self, disk: &Disk) -> Result<Ground, Failure> {
        let (ground, wiping) = recovery::load_ground(disk)?;
        (self.seen.base, self.seen.headers_from) = (Some(ground.index()), Some(ground.from));
        if wiping {
            self.note("a log that a snapshot replaced is still to be deleted; the next start does so");
            committer::wipe(disk, &ground)?;
        }
        Ok(ground)
    }

    /// Every record by itself.
    fn records(&mut self, disk: &Disk, ground: Option<&Ground>) -> Records {
        let mut records = Records::over(ground.map_or(LogIndex::ZERO, Ground::index));
        for (name, tree) in disk.trees.all() {
            let mut size = TreeSize { tree: name, ..TreeSize::default() };
            self.tell(name, 0);
            self.part(|doctor| {
                for row in tree.iter() {
                    let (key, value) = row?;
                    size.records += 1;
                    size.key_bytes += key.len() as u64;
                    size.value_bytes += value.len() as u64;
                    match records.judge(name, &key, &value) {
                        Ok(()) => {}
                        Err(Noted::Damage(damage)) => doctor.found.hear(damage)?,
                        Err(Noted::Flaw(flaw)) => doctor.flaw(flaw),
                    }
                    if size.records.is_multiple_of(1000) {
                        doctor.tell(name, size.records);
                    }
                }
                Ok(())
            });
            self.seen.trees.push(size);
        }
        records
    }

    /// The log against its tree, and that against certificates and watermark, as when a store is opened.
    fn scan(&mut self, disk: &Disk, mark: &Watermark, ground: &Ground) -> Option<(Archive, Term)> {
        self.tell("the log and its tree", 0);
        let scanned = self.part(|doctor| Scan::of(disk, mark, ground, &mut doctor.found))?;
        self.seen.last_index = Some(LogIndex(scanned.frontier.size()));
        self.seen.root = Some(scanned.frontier.root());
        self.seen.certified = Some(scanned.certificate.as_ref().map_or(0, |c| c.head.size));
        if let Some(index) = scanned.broken {
            self.note(format!("from entry {index} on nothing could be held against the tree: the log breaks there"));
        }
        if scanned.archive.written > 0 {
            let records = scanned.archive.written;
            self.note(format!("{records} derived records are not written yet; the next start writes them"));
        }
        Some((scanned.archive, scanned.last_term))
    }

    fn proposals(&mut self, disk: &Disk, archive: &Archive) -> Result<(), Failure> {
        self.tell("the index of proposals", 0);
        let missing = archive.mend_proposals(disk, false)?;
        if missing > 0 {
            self.flaw(Flaw::Proposals { missing });
        }
        Ok(())
    }

    /// Every chunk of every image that says it is complete.
    fn images(&mut self, disk: &Disk, ground: &Ground) -> Result<(), Failure> {
        let snapshots = Snapshots::load(disk)?;
        let mut usable = false;
        for manifest in snapshots.complete(LogIndex::ZERO, LogIndex(u64::MAX)) {
            self.tell("images of the state", manifest.index.0);
            let checked = self.part(|_| Ok(snapshots.check(disk, &manifest).map(drop)));
            match checked {
                Some(Ok(())) => {
                    usable |= manifest.index >= ground.index() && Some(manifest.index) <= self.seen.last_index;
                    self.seen.snapshots.insert(0, manifest);
                }
                Some(Err(why)) => self.flaw(Flaw::Image(why)),
                None => {}
            }
        }
        if !usable && ground.index() > LogIndex::ZERO {
            self.part(|_| Err::<(), _>(Damage::NoSnapshot { base: ground.index() }.into()));
        }
        Ok(())
    }

    fn flaw(&mut self, flaw: Flaw) {
        match &mut self.found {
            Findings::All { more, .. } if self.flaws.len() >= finding::MAX_FLAWS => *more += 1,
            _ => self.flaws.push(flaw),
        }
    }

    fn report(self) -> Examination {
        let Self { mut seen, found, flaws, .. } = self;
        let Findings::All { found, more } = found else { return seen };
        seen.more = more;
        let all = found.iter().map(Finding::of).chain(flaws.iter().map(Finding::of_flaw));
        for finding in all {
            // Read by itself and read in its place, a record is found twice.
            if !seen.findings.contains(&finding) {
                seen.findings.push(finding);
            }
        }
        seen
    }
}

/// What a repair did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Tree hashes, runs of headers and the like that were written anew.
    pub derived: u64,
    /// Proposals that were missing in their index.
    pub proposals: u64,
    /// Images that were not whole: they are complete no more, and are taken or fetched again.
    pub images: u64,
}

pub(super) fn repair(dir: &Path) -> Result<Repaired, OpenError> {
    let (store, recovered) = recovery::open(dir)?;
    explained(dir, || {
        let archive = store.shared.archive();
        let proposals = archive.mend_proposals(&store.shared.disk, true)?;
        let report = recovered.report;
        Ok(Repaired { derived: report.derived, proposals, images: report.broken_snapshots })
    })
}

impl Watermark {
    /// One that vouches for nothing.
    fn nothing(did: NodeId) -> Self {
        Self {
            did,
            hard: HardState::default(),
            last: LogIndex::ZERO,
            root: crate::certificate::merkle::empty_root(),
            commits: 0,
            schema: SCHEMA,
        }
    }
}
