//! Auditing a backup as its bytes come, trusting nothing but the genesis.
//!
//! What holds after [`Verifier::finish`]: everything that [`Auditor`] promises of the log in it; the image is the one that
//! a certified manifest in that log names (or the genesis, of a cluster that began with it), and its tree is this log's;
//! every entry that the image does not stand for has its body, so the state can be rebuilt; and the counts and the hash
//! of the whole are those of its last frame.

use super::frame::{Begin, CERTIFICATE, ENTRY, End, FrameError, Frames, HEADER, Kind, digest};
use crate::audit::{AuditError, Auditor, Summary};
use crate::certificate::merkle::{Frontier, leaf_hash};
use crate::certificate::{
    Body, Entry, EntryError, FormatError, Genesis, HeadCertificate, Header, Kind as EntryKind, Reader,
    SnapshotManifest, TableInForce,
};
use crate::ids::{Digest, LogIndex, Term};
use crate::limits::{MAX_BACKUP_FRAME, MAX_ENTRY, MAX_HEADER, SNAPSHOT_CHUNK};
use crate::node::image::{Image, ImageError};
use std::io::Read;

/// A failure of whoever takes what was verified.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Takes the contents of a backup in order: the beginning, the image, then every entry, each followed by the head
/// certificate over exactly the entries up to it, if there is one. Whatever it made of them may be believed only when
/// [`Verifier::finish`] has succeeded.
pub trait Sink {
    /// What the backup is of.
    ///
    /// # Errors
    /// Its own.
    fn begin(&mut self, begin: &Begin) -> Result<(), SinkError> {
        let _ = begin;
        Ok(())
    }
    /// The image of the snapshot, and the same in bytes.
    ///
    /// # Errors
    /// Its own.
    fn image(&mut self, manifest: &SnapshotManifest, image: &Image, bytes: &[u8]) -> Result<(), SinkError> {
        let _ = (manifest, image, bytes);
        Ok(())
    }
    /// The next entry.
    ///
    /// # Errors
    /// Its own.
    fn entry(&mut self, header: &Header, body: Option<&Body>) -> Result<(), SinkError> {
        let _ = (header, body);
        Ok(())
    }
    /// A head certificate over all entries so far.
    ///
    /// # Errors
    /// Its own.
    fn certificate(&mut self, certificate: &HeadCertificate) -> Result<(), SinkError> {
        let _ = certificate;
        Ok(())
    }
}

/// Wants nothing but the verdict.
#[derive(Debug, Default)]
pub struct Nothing;

impl Sink for Nothing {}

/// Why a backup proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file is damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It ends too early.
    #[error("the backup is cut off after {entries} entries")]
    Truncated {
        /// Entries read.
        entries: u64,
    },
    /// Its first frame.
    #[error("its beginning does not read: {0}")]
    Begin(String),
    /// Contents that do not read.
    #[error("its contents do not read: {0}")]
    Format(#[from] FormatError),
    /// An entry that does not read.
    #[error("entry {index}: {source}")]
    Entry {
        /// Which.
        index: LogIndex,
        /// Why.
        source: EntryError,
    },
    /// Of another cluster.
    #[error("it is a backup of cluster {found} ({name:?}), not of {expected}")]
    Cluster {
        /// Of the genesis within.
        found: Digest,
        /// Its name.
        name: String,
        /// Of the genesis given.
        expected: Digest,
    },
    /// The log has a flaw.
    #[error("FLAW: {0}")]
    Audit(#[from] AuditError),
    /// The image is not what its manifest says.
    #[error("its snapshot: {0}")]
    Image(#[from] ImageError),
    /// Parts that do not belong together.
    #[error("inconsistent: {0}")]
    Inconsistent(&'static str),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// What was verified could not be taken.
    #[error("{0}")]
    Sink(SinkError),
}

/// A backup that was verified.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What it is of.
    pub begin: Begin,
    /// What its log holds.
    pub summary: Summary,
    /// How much it holds.
    pub end: End,
    /// The hash of all of it.
    pub sum: Digest,
    /// The root over all entries, those of an uncertified tail included.
    pub root: Digest,
    /// The term of its last entry.
    pub last_term: Term,
    /// The table in force at its end, and the next one when a change of members was in flight.
    pub tables: (TableInForce, Option<TableInForce>),
}

/// See the head of this file.
pub struct Verifier<S> {
    sink: S,
    expected: Option<Digest>,
    frames: Frames,
    reading: Option<Reading>,
    end: Option<End>,
}

struct Reading {
    begin: Begin,
    auditor: Auditor,
    image: Vec<u8>,
    chunks: Frontier,
    counted: End,
    /// The image was whole and is decoded.
    imaged: bool,
    /// An entry names the snapshot, and a certificate covers that entry.
    named: Option<LogIndex>,
    /// The tree over the entries that the image stands for is the image's.
    rooted: bool,
}

impl<S: Sink> Verifier<S> {
    /// Without a genesis, the one in the backup is taken: then it proves only that it is whole, and consistent.
    pub fn new(genesis: Option<&Genesis>, sink: S) -> Self {
        Self { sink, expected: genesis.map(Genesis::id), frames: Frames::new(), reading: None, end: None }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// [`VerifyError`]; the backup is worth nothing then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), VerifyError> {
        self.frames.push(bytes);
        while let Some((kind, body)) = self.frames.next()? {
            match (kind, &mut self.reading, self.end) {
                (_, _, Some(_)) => return Err(VerifyError::Inconsistent("something follows its last frame")),
                (Kind::Begin, None, _) => {
                    let reading = Reading::begin(&body, self.expected)?;
                    self.sink.begin(&reading.begin).map_err(VerifyError::Sink)?;
                    self.reading = Some(reading);
                }
                (Kind::Chunk, Some(reading), _) => reading.chunk(&body, &mut self.sink)?,
                (Kind::Items, Some(reading), _) => reading.items(&body, &mut self.sink)?,
                (Kind::End, Some(reading), _) => {
                    let end = End::decode(&body)?;
                    if end != reading.counted {
                        return Err(VerifyError::Inconsistent("it holds another number of things than it says"));
                    }
                    self.end = Some(end);
                }
                _ => return Err(VerifyError::Inconsistent("its frames are not in order")),
            }
        }
        Ok(())
    }

    /// Entries verified so far, and how many there are to be; zero before the beginning was read.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        self.reading.as_ref().map_or((0, 0), |r| (r.auditor.size(), r.begin.last.0))
    }

    /// The verdict, after all bytes.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn finish(self) -> Result<(Verified, S), VerifyError> {
        let entries = self.progress().0;
        let (Some(end), Some(reading), true) = (self.end, self.reading, self.frames.is_empty()) else {
            return Err(VerifyError::Truncated { entries });
        };
        let verified = reading.finish(end, digest(&self.frames.chain))?;
        Ok((verified, self.sink))
    }
}

impl Reading {
    fn begin(body: &[u8], expected: Option<Digest>) -> Result<Self, VerifyError> {
        let begin = Begin::decode(body).map_err(|e| VerifyError::Begin(e.to_string()))?;
        let (genesis, found) = (&begin.genesis, begin.genesis.id());
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(VerifyError::Cluster { found, name: genesis.name.clone(), expected });
        }
        let start = genesis.begins_after();
        let before = genesis.succeeds.as_ref();
        let last_term = begin.terms.last().map_or(Term::ZERO, |t| t.1);
        let ascend = begin.terms.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1);
        for (kept, rule) in [
            (begin.edge.size() == start, "its edge is not where its cluster begins"),
            (
                before.is_none_or(|s| s.tree == begin.edge.frontier()),
                "its edge is not that of what its genesis succeeds",
            ),
            (
                before.map_or(Term::ZERO, |s| s.snapshot.term) == last_term && ascend,
                "its terms are not those before it",
            ),
            (begin.terms.last().is_none_or(|t| t.0.0 <= start), "its terms are not those before it"),
            (start <= begin.certified && begin.certified <= begin.last.0, "it ends before it begins"),
            (
                start <= begin.base.0 && begin.base.0 <= begin.certified,
                "its bodies begin where its log is not certified",
            ),
            (begin.base == LogIndex::ZERO || begin.snapshot.is_some(), "bodies are missing and no snapshot is here"),
            (
                begin.snapshot.as_ref().is_none_or(|m| (begin.base.0..=begin.certified).contains(&m.index.0)),
                "its snapshot does not stand for the bodies that are missing",
            ),
        ] {
            if !kept {
                return Err(VerifyError::Inconsistent(rule));
            }
        }
        let auditor = Auditor::new(genesis);
        // What a successor began with is named, and rooted, by its genesis.
        let first = before.filter(|s| begin.snapshot.as_ref() == Some(&s.snapshot)).map(|s| s.snapshot.index);
        Ok(Self {
            auditor,
            image: Vec::new(),
            chunks: Frontier::default(),
            counted: End::default(),
            imaged: begin.snapshot.is_none(),
            named: first,
            rooted: begin.snapshot.is_none() || first.is_some(),
            begin,
        })
    }

    fn chunk(&mut self, body: &[u8], sink: &mut impl Sink) -> Result<(), VerifyError> {
        let mut r = Reader::new(body);
        let number = r.u32("chunk.number")?;
        let bytes = r.long(SNAPSHOT_CHUNK, "chunk.bytes")?;
        r.finish("chunk")?;
        let Some(manifest) = self.begin.snapshot.clone().filter(|_| !self.imaged) else {
            return Err(VerifyError::Inconsistent("a chunk of no snapshot"));
        };
        if number != self.counted.chunks || bytes.len() != manifest.chunk_len(number) {
            return Err(VerifyError::Inconsistent("a chunk is not the next one"));
        }
        self.counted.chunks += 1;
        self.chunks.push(leaf_hash(bytes));
        self.image.extend_from_slice(bytes);
        if self.counted.chunks == manifest.chunks() {
            if self.chunks.root() != manifest.chunks_root {
                return Err(VerifyError::Inconsistent("the chunks are not those of its snapshot's manifest"));
            }
            let bytes = std::mem::take(&mut self.image);
            let image = Image::decode(&bytes)?;
            image.check(&manifest)?;
            sink.image(&manifest, &image, &bytes).map_err(VerifyError::Sink)?;
            self.imaged = true;
        }
        Ok(())
    }

    fn items(&mut self, body: &[u8], sink: &mut impl Sink) -> Result<(), VerifyError> {
        if !self.imaged {
            return Err(VerifyError::Inconsistent("its snapshot is not whole"));
        }
        let mut r = Reader::new(body);
        while !r.is_empty() {
            let index = LogIndex(self.auditor.size() + 1);
            let wrong = |source| VerifyError::Entry { index, source };
            match r.u8("item")? {
                HEADER => {
                    let header = Header::decode(r.short(MAX_HEADER, "item.header")?)?;
                    self.entry(&header, None, sink)?;
                }
                ENTRY => {
                    let entry = Entry::decode(r.long(MAX_ENTRY, "item.entry")?).map_err(wrong)?;
                    self.entry(&entry.header, Some(&entry.body), sink)?;
                }
                CERTIFICATE => {
                    let bytes = r.short(MAX_BACKUP_FRAME, "item.certificate")?;
                    self.certificate(&HeadCertificate::decode(bytes)?, sink)?;
                }
                _ => return Err(FormatError::Value { field: "item" }.into()),
            }
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header, body: Option<&Body>, sink: &mut impl Sink) -> Result<(), VerifyError> {
        let index = LogIndex(self.auditor.size() + 1);
        if index > self.begin.last {
            return Err(VerifyError::Inconsistent("it holds more entries than it says"));
        }
        if body.is_none() && index > self.begin.base {
            return Err(VerifyError::Inconsistent("the body of an entry is missing that no snapshot stands for"));
        }
        self.auditor.entry(header, body)?;
        self.counted.entries += 1;
        self.counted.bodies += u64::from(body.is_some());
        if let Some(manifest) = &self.begin.snapshot {
            if manifest.index == index {
                if manifest.root != self.auditor.root() {
                    return Err(VerifyError::Inconsistent("its snapshot is of another log"));
                }
                self.rooted = true;
            }
            let payload = body.map(|b| &b.payload).filter(|_| header.kind == EntryKind::SnapshotManifest);
            if self.named.is_none() && payload.is_some_and(|p| *p == manifest.encode()) {
                self.named = Some(index);
            }
        }
        sink.entry(header, body).map_err(VerifyError::Sink)
    }

    fn certificate(&mut self, certificate: &HeadCertificate, sink: &mut impl Sink) -> Result<(), VerifyError> {
        self.auditor.certificate(certificate)?;
        self.counted.certificates += 1;
        sink.certificate(certificate).map_err(VerifyError::Sink)
    }

    fn finish(self, end: End, sum: Digest) -> Result<Verified, VerifyError> {
        let Self { begin, auditor, named, rooted, .. } = self;
        if auditor.size() != begin.last.0 {
            return Err(VerifyError::Truncated { entries: auditor.size() });
        }
        let (root, last_term) = (auditor.root(), auditor.last_term());
        let tables = auditor.tables();
        let tables = (tables.0.clone(), tables.1.cloned());
        let summary = if begin.certified == begin.genesis.begins_after() {
            // An uncertified tail and nothing else: told by `certified`, and by nobody's signature.
            auditor.unproved()
        } else {
            auditor.finish()?
        };
        if summary.certified_size != begin.certified {
            return Err(VerifyError::Inconsistent("it is not certified as far as it says"));
        }
        if begin.snapshot.is_some() && !(rooted && named.is_some_and(|at| at.0 <= begin.certified)) {
            return Err(VerifyError::Inconsistent("no certified entry names its snapshot"));
        }
        Ok(Verified { begin, summary, end, sum, root, last_term, tables })
    }
}

/// Bytes read at a time.
const BLOCK: usize = 256 * 1024;

/// Reads what a backup is of, and nothing behind that; nothing is verified but that frame.
///
/// # Errors
/// [`VerifyError`].
pub fn peek(mut from: impl Read) -> Result<Begin, VerifyError> {
    let mut frames = Frames::new();
    let mut block = vec![0; BLOCK];
    loop {
        if let Some((kind, body)) = frames.next()? {
            return match kind {
                Kind::Begin => Begin::decode(&body).map_err(|e| VerifyError::Begin(e.to_string())),
                _ => Err(VerifyError::Inconsistent("its frames are not in order")),
            };
        }
        match from.read(&mut block)? {
            0 => return Err(VerifyError::Truncated { entries: 0 }),
            count => frames.push(&block[..count]),
        }
    }
}

/// Verifies a whole backup; `progress` is told how many entries are verified and how many there are.
///
/// # Errors
/// [`VerifyError`].
pub fn verify<S: Sink>(
    mut from: impl Read,
    genesis: Option<&Genesis>,
    sink: S,
    mut progress: impl FnMut(u64, u64),
) -> Result<(Verified, S), VerifyError> {
    let mut verifier = Verifier::new(genesis, sink);
    let mut block = vec![0; BLOCK];
    loop {
        let count = match from.read(&mut block) {
            Ok(0) => return verifier.finish(),
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        verifier.push(&block[..count])?;
        let (done, all) = verifier.progress();
        progress(done, all);
    }
}
