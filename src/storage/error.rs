//! What can go wrong with a store, one enum per question.

use super::block::BlockError;
use super::mend::Wound;
use super::watermark::WatermarkError;
use crate::certificate::{EntryError, FormatError, GenesisError, KeyError};
use crate::ids::{Digest, LogIndex, NodeId, Term};
use std::io;
use std::path::PathBuf;

/// What the database answers when it fails; its own error types stay inside this room.
pub(super) fn fault(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(e) => e,
        other => io::Error::other(other),
    }
}

/// Why a store was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Something is there already.
    #[error(
        "{dir} is not empty: a store and its key are created once; name another directory, or remove this one if it holds nothing of value"
    )]
    NotEmpty {
        /// Where.
        dir: PathBuf,
    },
    /// The disk refused.
    #[error("cannot create the store {dir}: {source}; {}, then try again", remedy(.source))]
    Io {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there.
    #[error(
        "there is no store in {dir}; a new member makes one with `concordat init`, one that lost its store with `concordat init --rejoin`"
    )]
    Missing {
        /// Where.
        dir: PathBuf,
    },
    /// Another process has it open.
    #[error("data directory in use by another process: {dir}; stop that one first (one node, one directory)")]
    InUse {
        /// Where.
        dir: PathBuf,
    },
    /// Written by a newer program; nothing was touched.
    #[error(
        "the store in {dir} has schema version {found}, this program knows versions up to {known}; it was left untouched: use the newer program"
    )]
    Newer {
        /// Where.
        dir: PathBuf,
        /// In the store.
        found: u16,
        /// The newest known here.
        known: u16,
    },
    /// The disk refused.
    #[error("cannot open the store {dir}: {source}; {}, then start the node again", remedy(.source))]
    Io {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is stored is not what was written.
    #[error(
        "the store in {dir} is damaged: {damage}; no node may take part with it: look at all of it with `concordat doctor`, check the disk, and begin anew with a fresh key (`concordat init --rejoin` keeps this store aside and says how the member is admitted again)"
    )]
    Damaged {
        /// Where.
        dir: PathBuf,
        /// How.
        damage: Damage,
    },
    /// A few records are not what was written, and what is whole proves what belongs there. Nothing was changed.
    #[error(
        "the store in {dir} is damaged: {damage}; what certificates cover can be mended from other members, which the node does when it starts (`concordat serve`): {}; check the disk", list(.wounds)
    )]
    Mendable {
        /// Where.
        dir: PathBuf,
        /// The first flaw.
        damage: Box<Damage>,
        /// Everything that is to be mended, as far as it can be told yet.
        wounds: Vec<Wound>,
    },
    /// What is stored is intact but older than what this node has already promised.
    #[error(
        "the store in {dir} has lost its memory: {loss}; this node may have voted for or acknowledged what it no longer knows, so it must not take part again with this key: begin anew with a fresh key (`concordat init --rejoin` keeps this store aside and says how the member is admitted again); `concordat doctor` tells everything that is wrong"
    )]
    Quarantined {
        /// Where.
        dir: PathBuf,
        /// What is gone.
        loss: Loss,
    },
}

impl OpenError {
    /// Whether no node may ever take part with this store again: trying once more is of no use.
    #[must_use]
    pub fn bars_the_store(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Quarantined { .. })
    }
}

/// How a store is damaged.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A file is not there.
    #[error("the file {0} is missing")]
    MissingFile(&'static str),
    /// The file that says which database is in force does not read.
    #[error("the file `current`, which names the database in force, is unusable: {0}")]
    Pointer(#[source] FormatError),
    /// The database in force is not there.
    #[error("the database in force lies in `database-{number}`, which is missing")]
    MissingDatabase {
        /// Its number.
        number: u64,
    },
    /// A tree is not there.
    #[error("the tree {0:?} is missing")]
    MissingTree(&'static str),
    /// A record is not there.
    #[error("the record {record:?} of the tree {tree:?} is missing")]
    MissingRecord {
        /// The tree.
        tree: &'static str,
        /// The record.
        record: &'static str,
    },
    /// The database keeps a value in a file of its own, which it does not make durable; this program never writes such.
    #[error("blobs/ is not empty: a value outgrew what the database stores durably")]
    Blobs,
    /// The database does not open or read.
    #[error("the database cannot be read: {0}")]
    Database(#[source] io::Error),
    /// The database gave up.
    #[error("the database gave up while reading: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// The watermark file is unusable.
    #[error("the watermark file is unusable: {0}")]
    Watermark(#[source] WatermarkError),
    /// The watermark is another store's.
    #[error("the watermark belongs to the member {found}, the store to {expected}")]
    ForeignWatermark {
        /// In the watermark.
        found: NodeId,
        /// In the store.
        expected: NodeId,
    },
    /// A record does not decode.
    #[error("a record of the tree {tree:?} is wrong: {source}")]
    Record {
        /// The tree.
        tree: &'static str,
        /// Why.
        source: FormatError,
    },
    /// The secret key does not decode.
    #[error("the secret key is unusable: {0}")]
    Key(#[source] KeyError),
    /// The genesis does not decode.
    #[error("the pinned genesis is unusable: {0}")]
    Genesis(#[source] GenesisError),
    /// A block of the log does not decode.
    #[error("the log block at index {first} is wrong: {source}")]
    Block {
        /// Its first index.
        first: LogIndex,
        /// Why.
        source: BlockError,
    },
    /// A hole or an overlap in the log.
    #[error("the log goes on at index {found} where {expected} must follow")]
    NotContiguous {
        /// What must come.
        expected: LogIndex,
        /// What came.
        found: LogIndex,
    },
    /// Terms or times run backwards.
    #[error("entry {index} is of an earlier term or time than the entry before it")]
    Backwards {
        /// Which.
        index: LogIndex,
    },
    /// A block was written over another history.
    #[error("the log block at index {first} was written over another history than the one before it")]
    OtherHistory {
        /// Its first index.
        first: LogIndex,
    },
    /// The log is not the one that was certified.
    #[error("the tree over the first {size} entries has the root {found}, its head certificate says {certified}")]
    NotCertified {
        /// How many entries.
        size: u64,
        /// Recomputed.
        found: Digest,
        /// In the certificate.
        certified: Digest,
    },
    /// Headers or tree hashes below the log are missing or others than its base says.
    #[error("the headers and tree hashes of entries {first} to {last} are not those that the log rests on")]
    Headers {
        /// The first of them.
        first: LogIndex,
        /// The last of them.
        last: LogIndex,
    },
    /// A kept entry is wrong or missing.
    #[error("the kept entry {index} is missing, damaged or not the one in the tree")]
    Kept {
        /// Which.
        index: LogIndex,
    },
    /// The log begins after a snapshot that is not there.
    #[error("the log begins after {base}, but no complete and undamaged snapshot stands for the entries before")]
    NoSnapshot {
        /// The last entry below the log.
        base: LogIndex,
    },
    /// The term in force is older than an entry's.
    #[error("the term on record is {term}, the last entry is of term {last_term}")]
    TermBehindLog {
        /// On record.
        term: Term,
        /// In the log.
        last_term: Term,
    },
}

/// What a store has forgotten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Term or vote.
    #[error("its term is {found}, the watermark says at least {promised} (or the votes in that term differ)")]
    Vote {
        /// In the store.
        found: Term,
        /// In the watermark.
        promised: Term,
    },
    /// Entries.
    #[error("its log ends at {found}, the watermark says at least {promised}")]
    Entries {
        /// In the store.
        found: LogIndex,
        /// In the watermark.
        promised: LogIndex,
    },
    /// Entries, as a certificate tells.
    #[error("its log ends at {found}, a head certificate stored with it covers {certified}")]
    Certified {
        /// In the store.
        found: LogIndex,
        /// In the certificate.
        certified: LogIndex,
    },
    /// Anything at all.
    #[error("it holds {found} groups of writes, the watermark says at least {promised}")]
    Writes {
        /// In the store.
        found: u64,
        /// In the watermark.
        promised: u64,
    },
    /// Other entries.
    #[error("its log up to {index} is another one than the watermark remembers")]
    History {
        /// Where.
        index: LogIndex,
    },
}

/// Why a genesis was not pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The store belongs to another cluster.
    #[error(
        "this store belongs to the cluster with genesis {pinned}, the genesis given is {given}; start the node with its own genesis file, or make a fresh store for the other cluster"
    )]
    Other {
        /// In the store.
        pinned: Digest,
        /// What was given.
        given: Digest,
    },
    /// Too large to be stored durably.
    #[error("the genesis file is {length} bytes, the store takes at most {bound}")]
    TooLarge {
        /// How large.
        length: usize,
        /// How large it may be.
        bound: usize,
    },
    /// What is pinned does not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Not made durable.
    #[error(transparent)]
    Durability(#[from] DurabilityError),
}

/// Why something was not made durable. The store takes no further writes after any of these.
#[derive(Debug, thiserror::Error)]
pub enum DurabilityError {
    /// The database refused a write.
    #[error("writing to the store failed: {source}; nothing unwritten was acknowledged; {}, then start the node again", remedy(.source))]
    Write {
        /// Why.
        source: io::Error,
    },
    /// fsync failed. What the operating system holds in memory may differ from the disk from now on, and a second fsync
    /// would report success without having written anything: it is never retried.
    #[error("fsync failed: {source}; it is not retried, because a second one may report success without having written; nothing unwritten was acknowledged; {}, and remount the file system (or reboot) before starting the node again, so that it reads what the disk holds", remedy(.source))]
    Sync {
        /// Why.
        source: io::Error,
    },
    /// The watermark file was not replaced.
    #[error("writing the watermark file failed: {source}; nothing unwritten was acknowledged; {}, then start the node again", remedy(.source))]
    Watermark {
        /// Why.
        source: io::Error,
    },
    /// An earlier write or fsync failed.
    #[error(
        "the store takes no more writes because an earlier one failed; start the node again once its cause is removed"
    )]
    Stopped,
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free disk space",
        io::ErrorKind::PermissionDenied => "give the node's user the right to read and write there",
        io::ErrorKind::ReadOnlyFilesystem => "mount the file system for writing",
        _ => "check the disk and the kernel's log",
    }
}

/// Why the committer stopped.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The disk.
    #[error(transparent)]
    Durability(#[from] DurabilityError),
    /// A record that was to be changed does not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Entries do not follow the log.
    #[error("entry {found} was to be written, but {expected} must follow")]
    Gap {
        /// What must come.
        expected: LogIndex,
        /// What came.
        found: LogIndex,
    },
    /// An entry is of an earlier term than the one before.
    #[error("entry {index} is of an earlier term than the one before it")]
    Backwards {
        /// Which.
        index: LogIndex,
    },
    /// An entry is too large to be stored durably.
    #[error("entry {index} is {length} bytes, the store takes at most {bound}")]
    TooLarge {
        /// Which.
        index: LogIndex,
        /// How large.
        length: usize,
        /// How large it may be.
        bound: usize,
    },
    /// A committed entry was to be replaced.
    #[error("entry {index} was to be replaced, but everything up to {committed} is committed")]
    Committed {
        /// Which.
        index: LogIndex,
        /// How far entries are committed.
        committed: LogIndex,
    },
    /// A certificate covers what is not in the log.
    #[error("a head certificate of size {size} was to be stored over a log that ends at {last}")]
    CertificateAhead {
        /// Of the certificate.
        size: u64,
        /// Of the log.
        last: LogIndex,
    },
    /// A certificate says something else than the log.
    #[error("a head certificate of size {size} was to be stored over a log with another root")]
    CertificateMismatch {
        /// Of the certificate.
        size: u64,
    },
    /// The log was to begin after a snapshot that is not complete here.
    #[error("the log was to begin after {index}, but there is no complete snapshot of it here")]
    NoSnapshot {
        /// The snapshot's index.
        index: LogIndex,
    },
    /// The log was to begin after something else than the snapshot says.
    #[error("the log was to begin after {index}, but its {what} is another than the snapshot's manifest says")]
    OtherSnapshot {
        /// The snapshot's index.
        index: LogIndex,
        /// What differs.
        what: &'static str,
    },
    /// The database panicked.
    #[error(
        "the database gave up: {message}; nothing unwritten was acknowledged; check the disk, then start the node again"
    )]
    Panicked {
        /// What it said.
        message: String,
    },
}

/// Why the log was not compacted.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// Nothing would stand for what goes.
    #[error("the log is not compacted up to {upto}: there is no complete snapshot at or above it here")]
    NoSnapshot {
        /// How far was asked for.
        upto: LogIndex,
    },
    /// What goes could still change.
    #[error("the log is not compacted up to {upto}: it is certified up to {certified}")]
    NotCertified {
        /// How far was asked for.
        upto: LogIndex,
        /// How far it is certified.
        certified: LogIndex,
    },
    /// It cannot be read, or not be written.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why the records did not move to a fresh database. Unless it says otherwise, the store goes on with the one it has.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// One at a time.
    #[error("the database is being moved already; wait for that")]
    UnderWay,
    /// This rotation has ended before.
    #[error("this rotation is over; begin another one")]
    Over,
    /// The new database cannot be written or read.
    #[error("the new database cannot be written: {source}; the old one stays in force; {}, then try again", remedy(.source))]
    Next {
        /// Why.
        source: io::Error,
    },
    /// The old database cannot be removed; the new one is in force.
    #[error("the new database is in force, but the old one cannot be removed: {source}; the next start tries again")]
    Former {
        /// Why.
        source: io::Error,
    },
    /// Records are written faster than they are copied.
    #[error(
        "more than {bound} records were written while the database was copied; the old one stays in force: try again under less load, or with a higher `snapshots.rotate_mib_per_s`"
    )]
    Outrun {
        /// How many may be.
        bound: usize,
    },
    /// The copy would fill the disk, which would stop the node.
    #[error(
        "the file system has {available} bytes free, and a copy of the database takes {needed}, what must stay free included; the old one stays in force: make room, then try again"
    )]
    NoRoom {
        /// Bytes free.
        available: u64,
        /// Bytes wanted.
        needed: u64,
    },
    /// What was read back is not what was written.
    #[error(
        "the tree {tree:?} of the new database does not hold what was copied; the old one stays in force: check the disk and the memory"
    )]
    Differs {
        /// Which.
        tree: &'static str,
    },
    /// A value that the database would not keep durably.
    #[error("a value outgrew what the database stores durably; the old one stays in force; please report it")]
    Blobs,
    /// The old database cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store takes no more writes.
    #[error(transparent)]
    Durability(#[from] DurabilityError),
}

impl From<sled::Error> for RotateError {
    fn from(error: sled::Error) -> Self {
        ReadError::from(error).into()
    }
}

/// What can go wrong with a snapshot's image.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A complete image of that index has another manifest.
    #[error(
        "there is a complete snapshot at {index} with another manifest; one of the two states is wrong: compare the nodes with `concordat audit`"
    )]
    Other {
        /// The index.
        index: LogIndex,
    },
    /// The image is not being taken.
    #[error("the snapshot at {index} is not staged here; stage it first")]
    NotStaged {
        /// The index.
        index: LogIndex,
    },
    /// A chunk of the wrong length.
    #[error("chunk {number} is {length} bytes, its manifest says {expected}")]
    Length {
        /// Which chunk.
        number: u32,
        /// How long it is.
        length: usize,
        /// How long it must be; zero when there is no such chunk.
        expected: usize,
    },
    /// Chunks are not there, or were damaged on the disk.
    #[error("{} chunks of the snapshot at {index} are missing or damaged; fetch them again", chunks.len())]
    Missing {
        /// The index.
        index: LogIndex,
        /// Which, ascending.
        chunks: Vec<u32>,
    },
    /// The chunks are not those of the manifest.
    #[error(
        "the chunks of the snapshot at {index} are not those that its manifest names; fetch it again, from another node"
    )]
    Wrong {
        /// The index.
        index: LogIndex,
    },
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be written.
    #[error(transparent)]
    Durability(#[from] DurabilityError),
}

impl From<sled::Error> for SnapshotError {
    fn from(error: sled::Error) -> Self {
        ReadError::from(error).into()
    }
}

fn list(wounds: &[Wound]) -> String {
    wounds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a store was not mended.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// What was given is not what belongs there.
    #[error("what was given for {wound} is not what certificates prove to belong there")]
    Unproved {
        /// What it was given for.
        wound: Wound,
    },
    /// The damage is more than the records that were found to be.
    #[error("the log around the damaged records is not the one that the newest head certificate covers")]
    Other,
    /// It cannot be read or written.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<sled::Error> for MendError {
    fn from(error: sled::Error) -> Self {
        ReadError::from(error).into()
    }
}

impl From<DurabilityError> for MendError {
    fn from(error: DurabilityError) -> Self {
        ReadError::from(error).into()
    }
}

/// Why a piece of the history was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// Nothing that is proved here proves it.
    #[error("the {what} that was to be filled in is not the one that the certified tree proves")]
    Unproved {
        /// What it was to be.
        what: &'static str,
    },
    /// It cannot be read or written.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<sled::Error> for FillError {
    fn from(error: sled::Error) -> Self {
        ReadError::from(error).into()
    }
}

impl From<DurabilityError> for FillError {
    fn from(error: DurabilityError) -> Self {
        ReadError::from(error).into()
    }
}

/// The committer takes no more writes: it was closed, or an earlier write failed (which was reported once).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the committer has stopped")]
pub struct Stopped;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database does not answer.
    #[error("reading the store failed: {0}; check the disk")]
    Io(#[source] io::Error),
    /// The database gave up.
    #[error("the database gave up while reading: {message}; check the disk")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// A record does not decode.
    #[error("a record of the tree {tree:?} is damaged: {source}; stop the node and check the disk")]
    Record {
        /// The tree.
        tree: &'static str,
        /// Why.
        source: FormatError,
    },
    /// A block does not decode.
    #[error("the log block at index {first} is damaged: {source}; stop the node and check the disk")]
    Block {
        /// Its first index.
        first: LogIndex,
        /// Why.
        source: BlockError,
    },
    /// An entry that must be there is not.
    #[error("entry {index} is missing from the log; stop the node and check the disk")]
    Hole {
        /// Which.
        index: LogIndex,
    },
    /// A hash that must be there is not.
    #[error("the tree hash at level {level}, position {position} is missing; start the node again to rebuild it")]
    Tile {
        /// The tile level.
        level: u8,
        /// The tile's position.
        position: u64,
    },
    /// The body is not here any more, or the entry cannot be replicated from here: a snapshot stands for it.
    #[error(
        "entry {index} was compacted: the log here begins after {base}; its header and certificates are kept, or install a snapshot"
    )]
    Compacted {
        /// Which.
        index: LogIndex,
        /// The last entry below the log.
        base: LogIndex,
    },
    /// The header or its hashes lie before what this node has had since it installed a snapshot.
    #[error(
        "entry {index} is not here yet: this node installed a snapshot and has headers from {from} on; ask another node, or ask again once those before are filled in"
    )]
    NotHere {
        /// Which.
        index: LogIndex,
        /// The first one here.
        from: LogIndex,
    },
    /// An entry below the log is damaged.
    #[error("the kept entry {index} is damaged: {source}; stop the node and check the disk")]
    Kept {
        /// Which.
        index: LogIndex,
        /// Why.
        source: EntryError,
    },
    /// A chunk of a snapshot is missing or damaged.
    #[error("chunk {number} of the snapshot at {snapshot} is missing or damaged: {source}; fetch it again")]
    Chunk {
        /// The snapshot's index.
        snapshot: LogIndex,
        /// Which chunk.
        number: u32,
        /// Why.
        source: FormatError,
    },
    /// Asked for more than is committed here.
    #[error("the tree covers {size} entries, not {asked}; ask again once that many are committed here")]
    NotYet {
        /// What was asked.
        asked: u64,
        /// What there is.
        size: u64,
    },
    /// Committed entries were handed over out of order.
    #[error("entry {found} was handed over for indexing, but {expected} must follow")]
    Gap {
        /// What must come.
        expected: LogIndex,
        /// What came.
        found: LogIndex,
    },
    /// Derived records could not be written.
    #[error(transparent)]
    Durability(#[from] DurabilityError),
}

impl From<sled::Error> for ReadError {
    fn from(error: sled::Error) -> Self {
        Self::Io(fault(error))
    }
}
