//! Opening a store: nothing is believed that was not checked.
//!
//! In order: the lock; the watermark, whose header tells the schema version before anything is touched; what sled
//! leaves behind when it is torn; sled itself; an fsync, because what the last process wrote and this one reads may
//! still be in memory only; then every record, the whole log against its checksums and its tree, the tree against the
//! certificates and the watermark; and last the watermark, raised to what was found.

use super::archive::Archive;
use super::below::{self, Fault};
use super::block::{self, Block};
use super::committer::{Tail, wipe};
use super::disk::{BLOBS, CONF, DATA, Disk, LOCK, Trees, open_database};
use super::error::{Damage, DurabilityError, Loss, OpenError, ReadError, SnapshotError, fault};
use super::ground::Ground;
use super::layout::{
    self, CERTIFICATES, COMMITS, HARD, HARD_STATE, META, META_BASE, META_BLS, META_DID, META_GENESIS, META_NEXT_BLS,
    META_SCHEMA, SCHEMA,
};
use super::read::{certificate, panic_message};
use super::snapshots::Snapshots;
use super::watermark::{NEXT, Watermark, WatermarkError};
use super::{Shared, Step, Store, migrate};
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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
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
    /// Unfinished database snapshots that were removed.
    pub torn_snapshots: u64,
}

/// Why opening failed, before the directory is named.
pub(super) enum Failure {
    Io(io::Error),
    Damage(Damage),
    Loss(Loss),
    Newer(u16),
    InUse,
    Missing,
}

impl From<Damage> for Failure {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl From<Loss> for Failure {
    fn from(loss: Loss) -> Self {
        Self::Loss(loss)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What the operating system refuses (no room, no permission, an unreadable sector) says nothing about what is stored;
/// what sled cannot make sense of does.
pub(super) fn database(error: io::Error) -> Failure {
    if error.raw_os_error().is_some() { Failure::Io(error) } else { Damage::Database(error).into() }
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        database(fault(error))
    }
}

impl From<DurabilityError> for Failure {
    fn from(error: DurabilityError) -> Self {
        Self::Io(match error {
            DurabilityError::Write { source }
            | DurabilityError::Sync { source }
            | DurabilityError::Watermark { source } => source,
            DurabilityError::Stopped => io::Error::other(DurabilityError::Stopped),
        })
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Headers(first, last) => Damage::Headers { first, last }.into(),
            Fault::Kept(index) => Damage::Kept { index }.into(),
            Fault::Read(e) => e.into(),
        }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Read(e) => e.into(),
            SnapshotError::Durability(e) => e.into(),
            other => Damage::Database(io::Error::other(other)).into(),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Durability(e) => e.into(),
            ReadError::Io(e) => database(e),
            ReadError::Record { tree, source } => Damage::Record { tree, source }.into(),
            other => Damage::Database(io::Error::other(other)).into(),
        }
    }
}

pub(super) fn open(path: &Path) -> Result<(Store, Recovered), OpenError> {
    explained(path, || open_unguarded(path))
}

/// Brings a store to the present schema version, or only says what that takes.
pub(super) fn migrate(path: &Path, dry_run: bool) -> Result<Vec<Step>, OpenError> {
    explained(path, || {
        let _lock = lock(path)?;
        let mark = load_mark(path)?;
        let steps = migrate::needed(path, &mark);
        if !dry_run && !steps.is_empty() {
            tidy(path)?;
            let db = open_database(path).map_err(database)?;
            migrate::on_open(path, &db, mark)?;
        }
        Ok(steps)
    })
}

fn load_mark(dir: &Path) -> Result<Watermark, Failure> {
    Watermark::load(dir).map_err(|e| match e {
        WatermarkError::Newer { found } => Failure::Newer(found),
        other => Damage::Watermark(other).into(),
    })
}

fn explained<T>(path: &Path, step: impl FnOnce() -> Result<T, Failure>) -> Result<T, OpenError> {
    // sled panics on much of what a bad disk can give it.
    let result = catch_unwind(AssertUnwindSafe(step))
        .unwrap_or_else(|p| Err(Damage::Panicked { message: panic_message(p.as_ref()) }.into()));
    let dir = path.to_owned();
    result.map_err(|failure| match failure {
        Failure::Io(source) => OpenError::Io { dir, source },
        Failure::Damage(damage) => OpenError::Damaged { dir, damage },
        Failure::Loss(loss) => OpenError::Quarantined { dir, loss },
        Failure::Newer(found) => OpenError::Newer { dir, found, known: SCHEMA },
        Failure::InUse => OpenError::InUse { dir },
        Failure::Missing => OpenError::Missing { dir },
    })
}

fn open_unguarded(dir: &Path) -> Result<(Store, Recovered), Failure> {
    let lock = lock(dir)?;
    let mark = load_mark(dir)?;
    let torn_snapshots = tidy(dir)?;
    let db = open_database(dir).map_err(database)?;
    let mark = migrate::on_open(dir, &db, mark)?;
    let names = db.tree_names();
    if let Some(missing) = layout::trees().find(|name| !names.iter().any(|n| n == name.as_bytes())) {
        return Err(Damage::MissingTree(missing).into());
    }
    let trees = Trees::open(&db).map_err(database)?;
    let disk = Disk::new(dir, db, trees, lock)?;
    let identity = read_identity(&disk)?;
    let hard = read_hard_state(&disk, &identity, &mark)?;
    let commits = layout::read_number_key(&record(&disk.trees.hard, HARD, COMMITS)?)
        .map_err(|source| Damage::Record { tree: HARD, source })?;
    let missing = Damage::MissingRecord { tree: META, record: META_BASE };
    let (ground, wiping) = Ground::load(&disk)?.ok_or(missing)?;
    if wiping {
        wipe(&disk, &ground)?;
    }
    ground.tidy(&disk)?;
    let scan = Scan::of(&disk, &mark, &ground)?;
    if commits < mark.commits {
        return Err(Loss::Writes { found: commits, promised: mark.commits }.into());
    }
    let snapshots = Snapshots::load(&disk)?;
    let (snapshot, broken) = pick_snapshot(&disk, &snapshots, &ground, LogIndex(scan.frontier.size()))?;
    if hard.term < scan.last_term {
        return Err(Damage::TermBehindLog { term: hard.term, last_term: scan.last_term }.into());
    }
    // What was read may have been written by a process that was killed before its fsync. The core will vouch for it as
    // durable, so it is made durable first, and only then the watermark says so.
    File::open(dir.join(CONF))?.sync_all()?;
    disk.make_durable()?;
    disk.dir_handle.sync_all()?;
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
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.join(DATA).exists() => {
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
pub(super) fn tidy(dir: &Path) -> Result<u64, Failure> {
    for file in [DATA, CONF] {
        // sled would begin an empty database in their place.
        if !dir.join(file).is_file() {
            return Err(Damage::MissingFile(file).into());
        }
    }
    let blobs = dir.join(BLOBS);
    if blobs.is_dir() && fs::read_dir(&blobs)?.next().is_some() {
        return Err(Damage::Blobs.into());
    }
    let mut torn = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // A torn one of these fails every later open; a whole one is only a cache of the log.
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
            torn += 1;
        } else if name == NEXT {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(torn)
}

struct Identity {
    did: NodeId,
    bls: SecretKey,
    next_bls: Option<SecretKey>,
    genesis: Option<Genesis>,
}

fn record(tree: &sled::Tree, name: &'static str, record: &'static str) -> Result<sled::IVec, Failure> {
    tree.get(record)?.ok_or_else(|| Damage::MissingRecord { tree: name, record }.into())
}

fn read_identity(disk: &Disk) -> Result<Identity, Failure> {
    let meta = &disk.trees.meta;
    let wrong = |source| Damage::Record { tree: META, source };
    let schema = layout::read_schema(&record(meta, META, META_SCHEMA)?).map_err(wrong)?;
    if schema > SCHEMA {
        return Err(Failure::Newer(schema));
    }
    let did = NodeId(layout::read_32(&record(meta, META, META_DID)?, META_DID).map_err(wrong)?);
    let bls = SecretKey::from_bytes(&record(meta, META, META_BLS)?).map_err(Damage::Key)?;
    let next_bls = meta.get(META_NEXT_BLS)?.map(|key| SecretKey::from_bytes(&key)).transpose().map_err(Damage::Key)?;
    let genesis = match meta.get(META_GENESIS)? {
        None => None,
        Some(json) => {
            let text = std::str::from_utf8(&json).map_err(|_| wrong(FormatError::Value { field: META_GENESIS }))?;
            Some(Genesis::from_json(text).map_err(|e: GenesisError| Damage::Genesis(e))?)
        }
    };
    Ok(Identity { did, bls, next_bls, genesis })
}

fn read_hard_state(disk: &Disk, identity: &Identity, mark: &Watermark) -> Result<HardState, Failure> {
    if mark.did != identity.did {
        return Err(Damage::ForeignWatermark { found: mark.did, expected: identity.did }.into());
    }
    let hard = layout::read_hard_state(&record(&disk.trees.hard, HARD, HARD_STATE)?)
        .map_err(|source| Damage::Record { tree: HARD, source })?;
    let promised = &mark.hard;
    // The store is written before the watermark, so it may know a newer vote, never an older one and never another.
    let forgot_vote = promised.term == hard.term && promised.vote.is_some() && promised.vote != hard.vote;
    if hard.term < promised.term || forgot_vote {
        return Err(Loss::Vote { found: hard.term, promised: promised.term }.into());
    }
    Ok(hard)
}

/// The one pass over the log.
struct Scan<'a> {
    disk: &'a Disk,
    mark: &'a Watermark,
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
struct Scanned {
    frontier: Frontier,
    last_term: Term,
    last_time: u64,
    certificate: Option<Arc<HeadCertificate>>,
    archive: Archive,
    window: Window,
    report: Report,
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
    fn of(disk: &'a Disk, mark: &'a Watermark, ground: &Ground) -> Result<Scanned, Failure> {
        let base = ground.index();
        let frontier = ground.edge.frontier();
        if base == mark.last && frontier.root() != mark.root {
            return Err(Loss::History { index: base }.into());
        }
        let written = below::check_tree(disk, ground)?;
        let mut archive = Archive::over(disk, ground.edge.clone(), ground.from)?;
        archive.written += written;
        let epochs = below::check_kept(disk, ground, &archive)?;
        let mut certificates = Certificates::of(disk);
        if let Some(c) = certificates.pass(base)? {
            let (size, certified) = (c.head.size, c.head.root);
            if let Some(found) = below::root_of(disk, &archive, &c)?.filter(|found| *found != certified) {
                return Err(Damage::NotCertified { size, found, certified }.into());
            }
        }
        let newest = match disk.trees.certificates.last()? {
            None => None,
            Some((key, value)) => Some(Certificates::read(&key, &value)?),
        };
        let mut scan = Self {
            disk,
            mark,
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
            scan.take_block(&key, &value, &mut certificates)?;
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
            return Err(Loss::History { index }.into());
        }
        certificates.compare(&self.frontier)?;
        if index.0 <= self.certified {
            self.archive.take(self.disk, header, header_bytes)?;
        }
        self.window.push(entry, leaf, bytes, self.certified);
        Ok(())
    }

    fn end(self, mut certificates: Certificates, newest: Option<Arc<HeadCertificate>>) -> Result<Scanned, Failure> {
        let Self { frontier, last_term, last_time, archive, window, mut report, mark, certified, .. } = self;
        let found = LogIndex(frontier.size());
        if found < mark.last {
            return Err(Loss::Entries { found, promised: mark.last }.into());
        }
        if found.0 < certified {
            return Err(Loss::Certified { found, certified: LogIndex(certified) }.into());
        }
        report.certificates = certificates.finish()?;
        report.derived = archive.written;
        Ok(Scanned { frontier, last_term, last_time, certificate: newest, archive, window, report })
    }
}

/// All head certificates in the order of their sizes, compared with the tree as it grows.
struct Certificates {
    rows: sled::Iter,
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

    fn advance(&mut self) -> Result<(), Failure> {
        self.next = match self.rows.next() {
            None => None,
            Some(row) => {
                let (key, value) = row?;
                Some(Self::read(&key, &value)?)
            }
        };
        Ok(())
    }

    /// Goes past those of heads below the log; returns the last of them.
    fn pass(&mut self, base: LogIndex) -> Result<Option<Arc<HeadCertificate>>, Failure> {
        self.advance()?;
        let mut last = None;
        while let Some(c) = self.next.take_if(|c| c.head.size <= base.0) {
            last = Some(c);
            self.compared += 1;
            self.advance()?;
        }
        Ok(last)
    }

    fn compare(&mut self, tree: &Frontier) -> Result<(), Failure> {
        let Some(c) = self.next.as_ref().filter(|c| c.head.size == tree.size()) else { return Ok(()) };
        let (size, found, certified) = (c.head.size, tree.root(), c.head.root);
        if found != certified {
            return Err(Damage::NotCertified { size, found, certified }.into());
        }
        self.compared += 1;
        self.advance()
    }

    /// How many there were. Called when the log reaches the newest: none is left.
    fn finish(&mut self) -> Result<u64, Failure> {
        debug_assert!(self.next.is_none());
        Ok(self.compared)
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
    let Scanned { frontier, last_term, last_time, certificate, archive, window, mut report } = scan;
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
        tail: Mutex::new(Some(tail)),
    };
    let Identity { did, bls, next_bls, genesis } = identity;
    let snapshot = images.snapshot;
    let recovered = Recovered { did, bls, next_bls, genesis, restored, last_index: last, snapshot, report };
    (Store { shared: Arc::new(shared) }, recovered)
}
