//! Opening a store: nothing is believed that was not checked.
//!
//! In order: the lock; the watermark, whose header tells the schema version before anything is touched; what sled
//! leaves behind when it is torn; sled itself; an fsync, because what the last process wrote and this one reads may
//! still be in memory only; then every record, the whole log against its checksums and its tree, the tree against the
//! certificates and the watermark; and last the watermark, raised to what was found.

use super::archive::Archive;
use super::below;
use super::block::{self, Block};
use super::committer::{Tail, wipe};
use super::disk::{CONF, DATA, Database, Disk, LOCK, Rows, Tree, Trees, open_database};
use super::error::{Damage, Loss, OpenError, SnapshotError};
use super::failure::{Failure, Findings, database, explained};
use super::generation::Place;
use super::ground::Ground;
use super::layout::{
    self, CASTS, CERTIFICATES, COMMITS, HARD, HARD_STATE, META, META_BASE, META_BLS, META_DID, META_GENESIS,
    META_NEXT_BLS, META_RETIRED, META_SCHEMA, SCHEMA,
};
use super::read::certificate;
use super::snapshots::Snapshots;
use super::watermark::{self, NEXT, Watermark, WatermarkError};
use super::{Shared, Step, Store, mend, migrate};
use crate::certificate::merkle::{self, Frontier};
use crate::certificate::{
    Entry, FormatError, Genesis, GenesisError, HeadCertificate, Kind, SecretKey, SnapshotManifest,
};
use crate::core::{HardState, Restored};
use crate::ids::{Digest, LogIndex, NodeId, Term};
use crate::limits::{LOG_WINDOW_BYTES, LOG_WINDOW_ENTRIES};
use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

/// What a store held when it was opened.
pub struct Recovered {
    /// Whose store it is.
    pub did: NodeId,
    /// Its BLS key.
    pub bls: SecretKey,
    /// The key that is to replace it, while a rotation is under way.
    pub next_bls: Option<SecretKey>,
    /// The cluster it is bound to, if it is yet.
    pub genesis: Option<Genesis>,
    /// Whether it has ended ([`Store::retire`]).
    pub retired: bool,
    /// What the core goes on from.
    pub restored: Restored,
    /// The last index of the log; that of its base when it is empty.
    pub last_index: LogIndex,
    /// The newest complete and undamaged snapshot to start from; there is one whenever the log begins after a base.
    pub snapshot: Option<SnapshotManifest>,
    /// What opening found, for the log.
    pub report: Report,
}

/// What opening found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries in the log.
    pub entries: u64,
    /// The last entry below the log; zero when it begins at 1.
    pub base: LogIndex,
    /// Snapshots that said they were complete and are not: they are to be fetched again.
    pub broken_snapshots: u64,
    /// Blocks that hold them.
    pub blocks: u64,
    /// Bytes of those blocks.
    pub bytes: u64,
    /// Head certificates.
    pub certificates: u64,
    /// Index up to which the watermark vouched for the log.
    pub watermark: LogIndex,
    /// Derived records that were missing or wrong and have been written anew.
    pub derived: u64,
    /// The first entry from which on requests and registry keys can be looked up; 1 unless the node began with a snapshot,
    /// or bodies were pruned whose part of the index is damaged or was never made.
    pub searchable: LogIndex,
    /// Unfinished database snapshots that were removed.
    pub torn_snapshots: u64,
}

pub(super) fn open(path: &Path) -> Result<(Store, Recovered), OpenError> {
    explained(path, || open_unguarded(path)).map_err(|error| mend::judge(path, error))
}

/// Brings a store to the present schema version, or only says what that takes.
pub(super) fn migrate(path: &Path, dry_run: bool) -> Result<Vec<Step>, OpenError> {
    explained(path, || {
        let _lock = lock(path)?;
        let mark = load_mark(path)?;
        let steps = migrate::needed(path, &mark);
        if !dry_run && !steps.is_empty() {
            let place = Place::current(path)?;
            tidy(path, &place, &mut Findings::First)?;
            let db = open_database(place.dir()).map_err(database)?;
            migrate::on_open(path, &place, &db, mark)?;
        }
        Ok(steps)
    })
}

pub(super) fn load_mark(dir: &Path) -> Result<Watermark, Failure> {
    Watermark::load(dir).map_err(|e| match e {
        WatermarkError::Newer { found } => Failure::Newer(found),
        other => Damage::Watermark(other).into(),
    })
}

fn open_unguarded(dir: &Path) -> Result<(Store, Recovered), Failure> {
    let lock = lock(dir)?;
    let mark = load_mark(dir)?;
    let place = Place::current(dir)?;
    let torn_snapshots = tidy(dir, &place, &mut Findings::First)?;
    let db = open_database(place.dir()).map_err(database)?;
    let mark = migrate::on_open(dir, &place, &db, mark)?;
    let disk = open_trees(dir, &place, db, lock, &mut Findings::First)?;
    let identity = read_identity(&disk)?;
    check_owner(identity.did, &mark)?;
    let hard = read_hard_state(&disk)?;
    check_votes(&hard, &mark)?;
    let commits = read_commits(&disk)?;
    let (ground, wiping) = load_ground(&disk)?;
    if wiping {
        wipe(&disk, &ground)?;
    }
    ground.tidy(&disk)?;
    let scan = Scan::of(&disk, &mark, &ground, &mut Findings::First)?;
    check_commits(commits, &mark)?;
    check_casts(&disk, &mut Findings::First)?;
    let snapshots = Snapshots::load(&disk)?;
    let (snapshot, broken) = pick_snapshot(&disk, &snapshots, &ground, LogIndex(scan.frontier.size()))?;
    check_term(&hard, scan.last_term)?;
    // What was read may have been written by a process that was killed before its fsync. The core will vouch for it as
    // durable, so it is made durable first, and only then the watermark says so.
    File::open(place.dir().join(CONF))?.sync_all()?;
    disk.make_durable()?;
    disk.dir_handle.sync_all()?;
    // Only now: which database is in force is durable, and it holds what it must.
    place.clear_others(dir, &disk.dir_handle)?;
    let found = Watermark {
        did: identity.did,
        last: LogIndex(scan.frontier.size()),
        root: scan.frontier.root(),
        hard,
        commits,
        schema: SCHEMA,
    };
    if found != mark {
        // The core will speak by what was found, without writing it again.
        found.store(&disk.dir, &disk.dir_handle)?;
    }
    let images = Images { snapshots, snapshot, broken };
    Ok(finish(disk, identity, found, scan, ground, images, torn_snapshots))
}

/// The images, which one to start from, and how many were found broken.
struct Images {
    snapshots: Snapshots,
    snapshot: Option<SnapshotManifest>,
    broken: u64,
}

/// The newest image from which this node can start. Those that turn out to be broken are complete no more.
fn pick_snapshot(
    disk: &Disk,
    snapshots: &Snapshots,
    ground: &Ground,
    last: LogIndex,
) -> Result<(Option<SnapshotManifest>, u64), Failure> {
    let mut broken = Vec::new();
    let mut found = None;
    for manifest in snapshots.complete(ground.index(), last) {
        match snapshots.check(disk, &manifest) {
            Ok(_) => {
                found = Some(manifest);
                break;
            }
            Err(SnapshotError::Missing { .. } | SnapshotError::Wrong { .. }) => broken.push(manifest),
            Err(e) => return Err(e.into()),
        }
    }
    if found.is_none() && ground.index() > LogIndex::ZERO {
        // Left as it was found.
        return Err(Damage::NoSnapshot { base: ground.index() }.into());
    }
    broken.iter().try_for_each(|manifest| snapshots.demote(disk, manifest))?;
    Ok((found, broken.len() as u64))
}

/// Looks at a lock that is held, and the pause between two: half a second in all.
const LOCK_LOOKS: u32 = 100;
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(5);

pub(super) fn lock(dir: &Path) -> Result<File, Failure> {
    let file = match File::options().read(true).write(true).open(dir.join(LOCK)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.join(watermark::FILE).exists() => {
            return Err(Damage::MissingFile(LOCK).into());
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Failure::Missing),
        Err(e) => return Err(e.into()),
    };
    // Whoever closes a store says so a moment before the last handle on it is gone; a store that is really in use stays so.
    for _ in 0..LOCK_LOOKS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_LOOK_EVERY),
            Err(TryLockError::Error(e)) => return Err(e.into()),
        }
    }
    Err(Failure::InUse)
}

/// Removes what an interrupted write left, and refuses what sled would paper over or not keep.
pub(super) fn tidy(dir: &Path, place: &Place, found: &mut Findings) -> Result<u64, Failure> {
    for file in [DATA, CONF] {
        // sled would begin an empty database in their place.
        if !place.dir().join(file).is_file() {
            found.hear(Damage::MissingFile(file))?;
        }
    }
    if place.has_blobs()? {
        found.hear(Damage::Blobs)?;
    }
    match fs::remove_file(dir.join(NEXT)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let mut torn = 0;
    for entry in fs::read_dir(place.dir())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // A torn one of these fails every later open; a whole one is only a cache of the log.
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
            torn += 1;
        }
    }
    Ok(torn)
}

/// The trees of a database that was opened; none of them may have been missing.
pub(super) fn open_trees(
    dir: &Path,
    place: &Place,
    db: sled::Db,
    lock: File,
    found: &mut Findings,
) -> Result<Disk, Failure> {
    let names = db.tree_names();
    for missing in layout::trees().filter(|name| !names.iter().any(|n| n == name.as_bytes())) {
        found.hear(Damage::MissingTree(missing))?;
    }
    let trees = Trees::open(&db).map_err(database)?;
    Ok(Disk::new(dir, Database::new(place.clone(), db)?, trees, lock)?)
}

struct Identity {
    did: NodeId,
    bls: SecretKey,
    next_bls: Option<SecretKey>,
    genesis: Option<Genesis>,
    retired: bool,
}

fn record(tree: &Tree, name: &'static str, record: &'static str) -> Result<sled::IVec, Failure> {
    tree.get(record)?.ok_or_else(|| Damage::MissingRecord { tree: name, record }.into())
}

fn wrong(tree: &'static str) -> impl Fn(FormatError) -> Damage {
    move |source| Damage::Record { tree, source }
}

fn read_identity(disk: &Disk) -> Result<Identity, Failure> {
    read_schema(disk)?;
    let did = read_did(disk)?;
    let (bls, next_bls) = read_keys(disk)?;
    let retired = disk.trees.meta.get(META_RETIRED)?.is_some();
    Ok(Identity { did, bls, next_bls, genesis: read_genesis(disk)?, retired })
}

/// The version that the database says it has.
pub(super) fn read_schema(disk: &Disk) -> Result<u16, Failure> {
    let schema = layout::read_schema(&record(&disk.trees.meta, META, META_SCHEMA)?).map_err(wrong(META))?;
    if schema > SCHEMA { Err(Failure::Newer(schema)) } else { Ok(schema) }
}

pub(super) fn read_did(disk: &Disk) -> Result<NodeId, Failure> {
    let did = record(&disk.trees.meta, META, META_DID)?;
    Ok(NodeId(layout::read_32(&did, META_DID).map_err(wrong(META))?))
}

/// The key in force, and the one that is to replace it.
pub(super) fn read_keys(disk: &Disk) -> Result<(SecretKey, Option<SecretKey>), Failure> {
    let meta = &disk.trees.meta;
    let bls = SecretKey::from_bytes(&record(meta, META, META_BLS)?).map_err(Damage::Key)?;
    let next = meta.get(META_NEXT_BLS)?.map(|key| SecretKey::from_bytes(&key)).transpose().map_err(Damage::Key)?;
    Ok((bls, next))
}

pub(super) fn read_genesis(disk: &Disk) -> Result<Option<Genesis>, Failure> {
    let Some(json) = disk.trees.meta.get(META_GENESIS)? else { return Ok(None) };
    let text = std::str::from_utf8(&json).map_err(|_| wrong(META)(FormatError::Value { field: META_GENESIS }))?;
    Ok(Some(Genesis::from_json(text).map_err(|e: GenesisError| Damage::Genesis(e))?))
}

pub(super) fn check_owner(did: NodeId, mark: &Watermark) -> Result<(), Failure> {
    if mark.did == did { Ok(()) } else { Err(Damage::ForeignWatermark { found: mark.did, expected: did }.into()) }
}

pub(super) fn read_hard_state(disk: &Disk) -> Result<HardState, Failure> {
    Ok(layout::read_hard_state(&record(&disk.trees.hard, HARD, HARD_STATE)?).map_err(wrong(HARD))?)
}

pub(super) fn check_votes(hard: &HardState, mark: &Watermark) -> Result<(), Failure> {
    let promised = &mark.hard;
    // The store is written before the watermark, so it may know a newer vote, never an older one and never another.
    let forgot_vote = promised.term == hard.term && promised.vote.is_some() && promised.vote != hard.vote;
    if hard.term < promised.term || forgot_vote {
        return Err(Loss::Vote { found: hard.term, promised: promised.term }.into());
    }
    Ok(())
}

/// How many groups were made durable.
pub(super) fn read_commits(disk: &Disk) -> Result<u64, Failure> {
    Ok(layout::read_number_key(&record(&disk.trees.hard, HARD, COMMITS)?).map_err(wrong(HARD))?)
}

pub(super) fn check_commits(commits: u64, mark: &Watermark) -> Result<(), Failure> {
    if commits < mark.commits { Err(Loss::Writes { found: commits, promised: mark.commits }.into()) } else { Ok(()) }
}

/// What the log rests on, and whether a replaced log is still to be wiped.
pub(super) fn load_ground(disk: &Disk) -> Result<(Ground, bool), Failure> {
    Ground::load(disk)?.ok_or_else(|| Damage::MissingRecord { tree: META, record: META_BASE }.into())
}

/// Reads every answer to a ballot: one that does not read could be given otherwise when it is asked for again.
pub(super) fn check_casts(disk: &Disk, found: &mut Findings) -> Result<(), Failure> {
    for row in disk.trees.casts.iter() {
        let (key, value) = row?;
        found.take(layout::read_cast(&key, &value).map_err(wrong(CASTS)))?;
    }
    Ok(())
}

pub(super) fn check_term(hard: &HardState, last_term: Term) -> Result<(), Failure> {
    if hard.term < last_term { Err(Damage::TermBehindLog { term: hard.term, last_term }.into()) } else { Ok(()) }
}

/// The one pass over the log.
pub(super) struct Scan<'a> {
    disk: &'a Disk,
    mark: &'a Watermark,
    found: &'a mut Findings,
    /// The tree over everything read so far.
    frontier: Frontier,
    last_term: Term,
    last_time: u64,
    /// Size of the newest certified head.
    certified: u64,
    archive: Archive,
    window: Window,
    report: Report,
}

/// What a scan leaves for the store and the core.
pub(super) struct Scanned {
    pub(super) frontier: Frontier,
    pub(super) last_term: Term,
    last_time: u64,
    pub(super) certificate: Option<Arc<HeadCertificate>>,
    pub(super) archive: Archive,
    window: Window,
    pub(super) report: Report,
    /// Where the log breaks: nothing behind it could be held against the tree. Never so in a store that is opened.
    pub(super) broken: Option<LogIndex>,
}

/// The last entries, and what the core needs to know of those before.
#[derive(Default)]
struct Window {
    entries: VecDeque<(Arc<Entry>, Digest, usize)>,
    bytes: usize,
    before: Frontier,
    terms: Vec<(LogIndex, Term)>,
    last_time: u64,
    /// The membership changes before them.
    epochs: Vec<Arc<Entry>>,
}

impl Window {
    /// Takes the next entry and lets go of the oldest beyond the bounds; but what no certificate covers stays, because
    /// only the core can tell whether it is committed.
    fn push(&mut self, entry: Arc<Entry>, leaf: Digest, bytes: usize, certified: u64) {
        self.bytes += bytes;
        self.entries.push_back((entry, leaf, bytes));
        while self.entries.len() > LOG_WINDOW_ENTRIES || self.bytes > LOG_WINDOW_BYTES {
            match self.entries.front() {
                Some((oldest, ..)) if oldest.index().0 <= certified => {}
                _ => return,
            }
            let Some((oldest, leaf, bytes)) = self.entries.pop_front() else { return };
            self.bytes -= bytes;
            self.before.push(leaf);
            self.last_time = oldest.header.proposed_at;
            if self.terms.last().is_none_or(|last| last.1 != oldest.term()) {
                self.terms.push((oldest.index(), oldest.term()));
            }
            if matches!(oldest.header.kind, Kind::Epoch | Kind::EpochFinal) {
                self.epochs.push(oldest);
            }
        }
    }
}

impl<'a> Scan<'a> {
    pub(super) fn of(
        disk: &'a Disk,
        mark: &'a Watermark,
        ground: &Ground,
        found: &'a mut Findings,
    ) -> Result<Scanned, Failure> {
        let base = ground.index();
        let frontier = ground.edge.frontier();
        if base == mark.last && frontier.root() != mark.root {
            found.hear(Loss::History { index: base })?;
        }
        let written = below::check_tree(disk, ground, found)?;
        let mut archive = Archive::over(disk, ground.edge.clone(), ground.from)?;
        archive.written += written;
        archive.postings.load(disk, base)?;
        let epochs = below::check_kept(disk, ground, &archive, found)?;
        let mut certificates = Certificates::of(disk);
        if let Some(c) = certificates.pass(base, found)? {
            let (size, certified) = (c.head.size, c.head.root);
            let root = found.take(below::root_of(disk, &archive, &c))?.flatten();
            if let Some(root) = root.filter(|root| *root != certified) {
                found.hear(Damage::NotCertified { size, found: root, certified })?;
            }
        }
        let newest = match disk.trees.certificates.last()? {
            None => None,
            Some((key, value)) => found.take(Certificates::read(&key, &value))?,
        };
        let mut scan = Self {
            disk,
            mark,
            found,
            window: Window {
                before: frontier.clone(),
                terms: ground.terms.clone(),
                last_time: ground.proposed_at,
                epochs,
                ..Window::default()
            },
            frontier,
            last_term: ground.last_term(),
            last_time: ground.proposed_at,
            certified: newest.as_ref().map_or(0, |c| c.head.size),
            archive,
            report: Report { base, watermark: mark.last, ..Report::default() },
        };
        // Blocks below are what compaction has not deleted yet.
        for row in disk.trees.log.range(layout::number_key(base.next().0)..) {
            let (key, value) = row?;
            let taken = scan.take_block(&key, &value, &mut certificates);
            if scan.found.take(taken)?.is_none() {
                return scan.break_off(newest);
            }
        }
        scan.end(certificates, newest)
    }

    fn take_block(&mut self, key: &[u8], value: &[u8], certificates: &mut Certificates) -> Result<(), Failure> {
        let number = LogIndex(layout::read_number_key(key).unwrap_or_default());
        let wrong = |source| Damage::Block { first: number, source };
        let stored = Block::read(key, value).map_err(wrong)?;
        let expected = LogIndex(self.frontier.size() + 1);
        if stored.first != expected {
            return Err(Damage::NotContiguous { expected, found: stored.first }.into());
        }
        if stored.root_before != self.frontier.root() {
            return Err(Damage::OtherHistory { first: stored.first }.into());
        }
        self.report.blocks += 1;
        self.report.bytes += value.len() as u64;
        for (index, bytes) in stored.raw_from(stored.first) {
            let entry = block::decode(index, bytes).map_err(wrong)?;
            self.take_entry(entry, bytes.len(), certificates)?;
        }
        Ok(())
    }

    fn take_entry(&mut self, entry: Arc<Entry>, bytes: usize, certificates: &mut Certificates) -> Result<(), Failure> {
        let header = &entry.header;
        let index = header.index;
        if header.term < self.last_term || header.proposed_at < self.last_time {
            return Err(Damage::Backwards { index }.into());
        }
        self.last_term = header.term;
        self.last_time = header.proposed_at;
        let header_bytes = header.encode();
        let leaf = merkle::leaf_hash(&header_bytes);
        self.frontier.push(leaf);
        self.report.entries += 1;
        if index == self.mark.last && self.frontier.root() != self.mark.root {
            self.found.hear(Loss::History { index })?;
        }
        certificates.compare(&self.frontier, self.found)?;
        if index.0 <= self.certified {
            self.archive.take(self.disk, header, header_bytes, Some(&entry.body))?;
        }
        self.window.push(entry, leaf, bytes, self.certified);
        Ok(())
    }

    fn end(self, certificates: Certificates, newest: Option<Arc<HeadCertificate>>) -> Result<Scanned, Failure> {
        let (found, certified) = (LogIndex(self.frontier.size()), self.certified);
        if found < self.mark.last {
            self.found.hear(Loss::Entries { found, promised: self.mark.last })?;
        }
        if found.0 < certified {
            self.found.hear(Loss::Certified { found, certified: LogIndex(certified) })?;
        }
        Ok(self.scanned(newest, certificates.finish(), None))
    }

    /// A block that is not what must follow: an examination goes on elsewhere.
    fn break_off(self, newest: Option<Arc<HeadCertificate>>) -> Result<Scanned, Failure> {
        let next = LogIndex(self.frontier.size() + 1);
        Ok(self.scanned(newest, 0, Some(next)))
    }

    fn scanned(self, certificate: Option<Arc<HeadCertificate>>, compared: u64, broken: Option<LogIndex>) -> Scanned {
        let Self { frontier, last_term, last_time, archive, window, mut report, .. } = self;
        report.certificates = compared;
        report.derived = archive.written();
        report.searchable = archive.searchable_from();
        Scanned { frontier, last_term, last_time, certificate, archive, window, report, broken }
    }
}

/// All head certificates in the order of their sizes, compared with the tree as it grows.
struct Certificates {
    rows: Rows,
    next: Option<Arc<HeadCertificate>>,
    compared: u64,
}

impl Certificates {
    fn of(disk: &Disk) -> Self {
        Self { rows: disk.trees.certificates.iter(), next: None, compared: 0 }
    }

    fn read(key: &[u8], value: &[u8]) -> Result<Arc<HeadCertificate>, Failure> {
        let read = certificate(key, value).map_err(|source| Damage::Record { tree: CERTIFICATES, source })?;
        if read.head.size == 0 {
            let source = FormatError::Value { field: "certificate.size" };
            return Err(Damage::Record { tree: CERTIFICATES, source }.into());
        }
        Ok(read)
    }

    fn advance(&mut self, found: &mut Findings) -> Result<(), Failure> {
        self.next = None;
        for row in self.rows.by_ref() {
            let (key, value) = row?;
            self.next = found.take(Self::read(&key, &value))?;
            if self.next.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Goes past those of heads below the log; returns the last of them.
    fn pass(&mut self, base: LogIndex, found: &mut Findings) -> Result<Option<Arc<HeadCertificate>>, Failure> {
        self.advance(found)?;
        let mut last = None;
        while let Some(c) = self.next.take_if(|c| c.head.size <= base.0) {
            last = Some(c);
            self.compared += 1;
            self.advance(found)?;
        }
        Ok(last)
    }

    fn compare(&mut self, tree: &Frontier, found: &mut Findings) -> Result<(), Failure> {
        let Some(c) = self.next.as_ref().filter(|c| c.head.size == tree.size()) else { return Ok(()) };
        let (size, root, certified) = (c.head.size, tree.root(), c.head.root);
        if root != certified {
            found.hear(Damage::NotCertified { size, found: root, certified })?;
        }
        self.compared += 1;
        self.advance(found)
    }

    /// How many there were.
    fn finish(&self) -> u64 {
        self.compared
    }
}

fn finish(
    disk: Disk,
    identity: Identity,
    mark: Watermark,
    scan: Scanned,
    ground: Ground,
    images: Images,
    torn_snapshots: u64,
) -> (Store, Recovered) {
    let Scanned { frontier, last_term, last_time, certificate, archive, window, mut report, .. } = scan;
    report.torn_snapshots = torn_snapshots;
    report.broken_snapshots = images.broken;
    let base = ground.index();
    let last = mark.last;
    let tail = Tail {
        frontier,
        // What a cut can reach lies behind the newest certified head, and all of that is in the window.
        checkpoints: VecDeque::from([window.before.clone()]),
        last_term,
        last_time,
        hard: mark.hard.clone(),
        certified: certificate.as_ref().map_or(0, |c| c.head.size).max(base.0),
        commits: mark.commits,
        mark,
    };
    let restored = Restored {
        compacted: base,
        hard: tail.hard.clone(),
        certificate: certificate.clone(),
        frontier: window.before,
        terms: window.terms,
        last_proposed_at: window.last_time,
        tail: window.entries.into_iter().map(|(entry, ..)| entry).collect(),
        epochs: window.epochs,
        keys: std::iter::once(&identity.bls).chain(&identity.next_bls).map(SecretKey::public).collect(),
    };
    let shared = Shared {
        disk,
        last: last.0.into(),
        shown: Mutex::default(),
        certificate: RwLock::new(certificate),
        cutting: RwLock::new(()),
        casting: RwLock::new(()),
        archive: Mutex::new(archive),
        ground: RwLock::new(Arc::new(ground)),
        grounding: Mutex::new(()),
        snapshots: images.snapshots,
        filling: Mutex::default(),
        before: AtomicU64::new(identity.genesis.as_ref().map_or(0, Genesis::begins_after)),
        holds: Default::default(),
        tail: Mutex::new(Some(tail)),
    };
    let Identity { did, bls, next_bls, genesis, retired } = identity;
    let snapshot = images.snapshot;
    let recovered = Recovered { did, bls, next_bls, genesis, retired, restored, last_index: last, snapshot, report };
    (Store { shared: Arc::new(shared) }, recovered)
}
