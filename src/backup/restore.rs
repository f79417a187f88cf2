//! Putting a verified backup into a fresh store.
//!
//! The file is read twice: once to verify all of it, and once more, verified again, to fill the store; the two must be
//! one file. A marker in the data directory says that the store is being filled; while it is there no node starts on it.

use super::frame::Begin;
use super::rebuild::Rebuilt;
use super::verify::{Nothing, Sink, SinkError, Verified, VerifyError, verify};
use crate::certificate::{Body, Entry, Genesis, HeadCertificate, Header, SnapshotManifest};
use crate::core::{HardState, Write};
use crate::ids::{Digest, LogIndex, Term};
use crate::limits::MAX_APPEND_BYTES;
use crate::node::image::{Image, chunks};
use crate::storage::{
    Committer, Filling, OpenError, PinError, RESTORING, RestoreError, STORE_DIR, SnapshotError, Stopped, Store,
};
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The file in a data directory that says that its store is being filled.
pub const MARKER: &str = RESTORING;
/// The backup of the cluster that this member's cluster succeeds, in its data directory, for auditors.
pub const PREDECESSOR: &str = "predecessor.backup";

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreFailure {
    /// The backup.
    #[error("the backup {file}: {source}")]
    Backup {
        /// Which.
        file: PathBuf,
        /// Why.
        source: VerifyError,
    },
    /// A file.
    #[error("{file}: {source}")]
    Io {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store does not open.
    #[error(transparent)]
    Open(#[from] Box<OpenError>),
    /// The store belongs to another cluster.
    #[error(transparent)]
    Pin(#[from] Box<PinError>),
    /// The store is not fresh, or failed.
    #[error(transparent)]
    Store(#[from] RestoreError),
    /// The snapshot cannot be kept.
    #[error("the snapshot cannot be kept: {0}")]
    Snapshot(#[from] SnapshotError),
    /// The log cannot be kept.
    #[error("the log cannot be kept: {0}")]
    Committer(String),
    /// Entries that no certificate covers.
    #[error(
        "the last {beyond} entries of the backup {file} are covered by no certificate, so nothing proves them: a member of the same cluster gets them from the others; use a backup without its tail"
    )]
    Tail {
        /// Which.
        file: PathBuf,
        /// How many.
        beyond: u64,
    },
    /// The file changed between two readings.
    #[error("the backup {file} was changed while it was read")]
    Changed {
        /// Which.
        file: PathBuf,
    },
    /// An earlier attempt.
    #[error(
        "{dir} holds a store that an earlier restore did not finish: make a new data directory with `concordat init` and restore into that"
    )]
    Interrupted {
        /// The data directory.
        dir: PathBuf,
    },
    /// The genesis succeeds none.
    #[error(
        "the genesis given succeeds no cluster; to restore a member of the cluster of the backup leave --genesis away"
    )]
    NoSuccessor,
    /// The genesis succeeds another.
    #[error("the genesis given succeeds cluster {expected}, the backup is of {found}")]
    OtherCluster {
        /// Of the backup.
        found: Digest,
        /// Succeeded.
        expected: Digest,
    },
    /// The backup is not the one that the genesis was made from.
    #[error(
        "the backup leads to another state than the genesis names ({what}): the genesis was made from another backup of that cluster; use that one"
    )]
    OtherState {
        /// What differs.
        what: &'static str,
    },
}

/// Fills a data directory that `init` made with a backup of the cluster that its member is to join, so that it has only
/// the rest of the log to catch up with. Its key stays the fresh one: it votes on nothing before it is admitted.
///
/// # Errors
/// [`RestoreFailure`].
pub fn restore(
    file: &Path,
    data: &Path,
    genesis: Option<&Genesis>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Verified, RestoreFailure> {
    let wrong = |source| RestoreFailure::Backup { file: file.to_owned(), source };
    open_fresh(data)?;
    let (before, Nothing) = verify(open(file)?, genesis, Nothing, &mut progress).map_err(wrong)?;
    let beyond = before.begin.last.0 - before.begin.certified;
    if beyond > 0 {
        return Err(RestoreFailure::Tail { file: file.to_owned(), beyond });
    }
    let dir = data.join(STORE_DIR);
    let marker = Marker::put(data)?;
    let sink = Filler { dir: dir.clone(), base: LogIndex::ZERO, stage: None };
    let (after, filler) = verify(open(file)?, genesis, sink, progress).map_err(wrong)?;
    if after.sum != before.sum {
        return Err(RestoreFailure::Changed { file: file.to_owned() });
    }
    filler.finish()?;
    marker.remove()?;
    Ok(after)
}

/// Places the state with which a successor begins into a data directory that `init` made, and the backup beside it.
///
/// # Errors
/// [`RestoreFailure`].
pub fn restore_successor(
    file: &Path,
    data: &Path,
    genesis: &Genesis,
    progress: impl FnMut(u64, u64),
) -> Result<Verified, RestoreFailure> {
    let succession = genesis.succeeds.as_ref().ok_or(RestoreFailure::NoSuccessor)?;
    open_fresh(data)?;
    let rebuilt = verify(open(file)?, None, Rebuilt::default(), progress);
    let (verified, rebuilt) = rebuilt.map_err(|source| RestoreFailure::Backup { file: file.to_owned(), source })?;
    let (found, expected) = (verified.begin.genesis.id(), succession.genesis_id);
    if found != expected {
        return Err(RestoreFailure::OtherCluster { found, expected });
    }
    let image = rebuilt.into_image();
    let bytes = image.encode();
    let manifest = image.manifest(&bytes);
    for (same, what) in [
        (manifest.index == succession.snapshot.index, "entries"),
        (manifest.root == succession.snapshot.root, "root"),
        (manifest.state == succession.snapshot.state, "state"),
        (manifest == succession.snapshot, "image"),
    ] {
        if !same {
            return Err(RestoreFailure::OtherState { what });
        }
    }
    let marker = Marker::put(data)?;
    keep(file, &data.join(PREDECESSOR))?;
    let store = open_fresh(data)?;
    store.pin_genesis(genesis).map_err(Box::new)?;
    put_image(&store, &manifest, &bytes)?;
    let mut log = Log::start(store);
    let hard = Some(HardState { term: manifest.term, vote: None });
    log.submit(Write { hard, base: Some(Arc::new(image.base())), ..Write::default() })?;
    log.close()?;
    marker.remove()?;
    Ok(verified)
}

fn open(file: &Path) -> Result<BufReader<File>, RestoreFailure> {
    File::open(file).map(BufReader::new).map_err(|source| RestoreFailure::Io { file: file.to_owned(), source })
}

fn open_store(dir: &Path) -> Result<Store, Box<OpenError>> {
    Store::open(dir).map(|(store, _)| store).map_err(Box::new)
}

/// A store that nothing has used.
fn open_fresh(data: &Path) -> Result<Store, RestoreFailure> {
    if data.join(MARKER).exists() && data.join(STORE_DIR).exists() && open_store(&data.join(STORE_DIR)).is_err() {
        return Err(RestoreFailure::Interrupted { dir: data.to_owned() });
    }
    let store = open_store(&data.join(STORE_DIR))?;
    match store.check_fresh() {
        Err(RestoreError::NotFresh { .. }) if data.join(MARKER).exists() => {
            Err(RestoreFailure::Interrupted { dir: data.to_owned() })
        }
        checked => Ok(checked.map(|()| store)?),
    }
}

fn put_image(store: &Store, manifest: &SnapshotManifest, bytes: &[u8]) -> Result<(), SnapshotError> {
    store.stage(manifest)?;
    for (number, chunk) in (0..).zip(chunks(bytes)) {
        store.put_chunk(manifest, number, chunk)?;
    }
    store.complete(manifest)
}

/// Keeps the file under another name: as a link where that is possible, for it may be long.
fn keep(file: &Path, place: &Path) -> Result<(), RestoreFailure> {
    let failed = |source| RestoreFailure::Io { file: place.to_owned(), source };
    let same = fs::canonicalize(file).ok().is_some_and(|file| fs::canonicalize(place).is_ok_and(|place| place == file));
    if same {
        return Ok(());
    }
    match fs::remove_file(place) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    if fs::hard_link(file, place).is_err() {
        fs::copy(file, place).map_err(failed)?;
    }
    File::open(place).and_then(|f| f.sync_all()).map_err(failed)
}

/// See [`MARKER`].
struct Marker(PathBuf);

impl Marker {
    fn put(data: &Path) -> Result<Self, RestoreFailure> {
        let path = data.join(MARKER);
        let failed = |source| RestoreFailure::Io { file: path.clone(), source };
        fs::write(&path, "a restore is under way\n").map_err(failed)?;
        for place in [&path, data] {
            File::open(place).and_then(|f| f.sync_all()).map_err(failed)?;
        }
        Ok(Self(path))
    }

    fn remove(self) -> Result<(), RestoreFailure> {
        let failed = |source| RestoreFailure::Io { file: self.0.clone(), source };
        fs::remove_file(&self.0).map_err(failed)?;
        let dir = self.0.parent().unwrap_or(Path::new("."));
        File::open(dir).and_then(|f| f.sync_all()).map_err(failed)
    }
}

/// Fills a store: first below its base, then, opened again, the log.
struct Filler {
    dir: PathBuf,
    base: LogIndex,
    stage: Option<Stage>,
}

enum Stage {
    Below(Store, Box<Filling>),
    Log(Log),
}

impl Sink for Filler {
    fn begin(&mut self, begin: &Begin) -> Result<(), SinkError> {
        let store = open_store(&self.dir)?;
        store.pin_genesis(&begin.genesis)?;
        let before = begin.genesis.succeeds.as_ref();
        let filling =
            store.fill(begin.edge.clone(), begin.terms.clone(), before.map_or(0, |s| s.snapshot.proposed_at))?;
        self.base = begin.base;
        self.stage = Some(Stage::Below(store, Box::new(filling)));
        Ok(())
    }

    fn image(&mut self, manifest: &SnapshotManifest, _: &Image, bytes: &[u8]) -> Result<(), SinkError> {
        match &self.stage {
            Some(Stage::Below(store, _)) => Ok(put_image(store, manifest, bytes)?),
            _ => Err("a snapshot out of order".into()),
        }
    }

    fn entry(&mut self, header: &Header, body: Option<&Body>) -> Result<(), SinkError> {
        let whole = body.map(|body| Entry { header: header.clone(), body: body.clone() });
        if header.index > self.base {
            let entry = whole.ok_or("a body is missing")?;
            return Ok(self.log()?.append(Arc::new(entry))?);
        }
        match &mut self.stage {
            Some(Stage::Below(_, filling)) => Ok(filling.entry(header, whole.as_ref())?),
            _ => Err("an entry out of order".into()),
        }
    }

    fn certificate(&mut self, certificate: &HeadCertificate) -> Result<(), SinkError> {
        match &mut self.stage {
            Some(Stage::Below(_, filling)) => Ok(filling.certificate(certificate)?),
            Some(Stage::Log(log)) => Ok(log.certificate(Arc::new(certificate.clone()))?),
            None => Err("a certificate out of order".into()),
        }
    }
}

impl Filler {
    fn log(&mut self) -> Result<&mut Log, SinkError> {
        if let Some(Stage::Below(..)) = self.stage
            && let Some(Stage::Below(store, filling)) = self.stage.take()
        {
            filling.finish()?;
            // Opened again, it is read as whatever else a node may find.
            drop(store);
            self.stage = Some(Stage::Log(Log::start(open_store(&self.dir)?)));
        }
        match &mut self.stage {
            Some(Stage::Log(log)) => Ok(log),
            _ => Err("an entry out of order".into()),
        }
    }

    fn finish(mut self) -> Result<(), RestoreFailure> {
        self.log().map_err(|e| RestoreFailure::Committer(e.to_string()))?;
        match self.stage {
            Some(Stage::Log(log)) => log.close(),
            _ => Ok(()),
        }
    }
}

/// Appends through the store's committer, in batches.
struct Log {
    store: Store,
    committer: Committer,
    failure: Arc<Mutex<Option<String>>>,
    seq: u64,
    term: Term,
    batch: Vec<Arc<Entry>>,
    bytes: usize,
}

impl Log {
    fn start(store: Store) -> Self {
        let failure = Arc::new(Mutex::new(None));
        let told = failure.clone();
        let committer = store.start(move |done| {
            if let Err(why) = done {
                *told.lock().expect("no holder of this lock panics") = Some(why.to_string());
            }
        });
        Self { store, committer, failure, seq: 0, term: Term::ZERO, batch: Vec::new(), bytes: 0 }
    }

    fn append(&mut self, entry: Arc<Entry>) -> Result<(), RestoreFailure> {
        self.bytes += entry.body.payload.len() + 512;
        self.batch.push(entry);
        if self.bytes >= MAX_APPEND_BYTES { self.flush(None) } else { Ok(()) }
    }

    fn certificate(&mut self, certificate: Arc<HeadCertificate>) -> Result<(), RestoreFailure> {
        self.flush(Some(certificate))
    }

    fn flush(&mut self, certificate: Option<Arc<HeadCertificate>>) -> Result<(), RestoreFailure> {
        let entries = std::mem::take(&mut self.batch);
        self.bytes = 0;
        // No vote: the key of this store has given none.
        let term = entries.last().map_or(self.term, |e| e.term());
        let hard = (term > self.term).then_some(HardState { term, vote: None });
        self.term = term;
        self.submit(Write { hard, entries, certificate, ..Write::default() })
    }

    fn submit(&mut self, write: Write) -> Result<(), RestoreFailure> {
        self.seq += 1;
        self.committer.submit(self.seq, write).map_err(|Stopped| self.failed())
    }

    fn failed(&self) -> RestoreFailure {
        let why = self.failure.lock().expect("no holder of this lock panics").clone();
        RestoreFailure::Committer(why.unwrap_or_else(|| "the committer stopped".into()))
    }

    fn close(mut self) -> Result<(), RestoreFailure> {
        self.flush(None)?;
        let Self { store, committer, failure, .. } = self;
        committer.close();
        drop(store);
        let why = failure.lock().expect("no holder of this lock panics").take();
        why.map_or(Ok(()), |why| Err(RestoreFailure::Committer(why)))
    }
}
