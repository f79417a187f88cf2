//! Reading a backup out of a store, frame by frame.

use super::frame::{Begin, CERTIFICATE, Chain, ENTRY, End, HEADER, Kind, TAG, digest};
use crate::certificate::{Body, Entry, Genesis, HeadCertificate, Header, Kind as EntryKind, SnapshotManifest, Writer};
use crate::ids::{Digest, LogIndex};
use crate::limits::{MAX_APPEND_BYTES, MAX_PAGE};
use crate::storage::{Hold, ReadError, SnapshotError, Store};
use std::collections::VecDeque;
use std::sync::Arc;

/// About how many bytes of items go into one frame.
const FRAME: usize = 256 * 1024;

/// Why a store gives no backup.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing to keep.
    #[error("nothing is certified here yet; ask again once the cluster has committed something")]
    Empty,
    /// The store belongs to no cluster yet.
    #[error("this store belongs to no cluster yet")]
    NoGenesis,
    /// The node began with a snapshot.
    #[error(
        "this node began with a snapshot and holds the log from entry {from} on, not from {first}: a backup is whole; ask another node"
    )]
    Partial {
        /// The first entry whose header is here.
        from: LogIndex,
        /// The first of the cluster.
        first: LogIndex,
    },
    /// Compacted, and nothing certified to stand for it.
    #[error(
        "the log begins after {base}, and no snapshot here is certified for what lies before; ask again in a moment"
    )]
    NoSnapshot {
        /// The last entry below the log.
        base: LogIndex,
    },
    /// The log was replaced while it was read.
    #[error("entry {index} went while it was read: a snapshot of the leader took the log's place; ask again")]
    Replaced {
        /// Which.
        index: LogIndex,
    },
    /// The store failed.
    #[error("the store failed: {0}")]
    Read(#[from] ReadError),
    /// A snapshot failed.
    #[error("the snapshot cannot be read: {0}")]
    Snapshot(#[from] SnapshotError),
}

/// A backup, as it comes. Blocking; holds one frame in memory, and holds compaction back while it lives.
#[derive(Debug)]
pub struct Source {
    store: Store,
    hold: Hold,
    begin: Option<Begin>,
    snapshot: Option<SnapshotManifest>,
    certified: u64,
    last: LogIndex,
    /// The next chunk, and the next entry.
    chunk: u32,
    next: LogIndex,
    /// Entries and certificates read and not yet given.
    entries: VecDeque<(Header, Option<Body>)>,
    certificates: VecDeque<Arc<HeadCertificate>>,
    asked: u64,
    chain: Chain,
    end: End,
    tag: bool,
    done: bool,
}

impl Source {
    /// Begins a backup of everything that is certified now and, with `tail`, of the entries beyond it, which nobody has
    /// certified: for recovery from the loss of a quorum.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn open(store: &Store, tail: bool) -> Result<Self, SourceError> {
        let genesis = store.genesis()?.ok_or(SourceError::NoGenesis)?;
        let start = genesis.begins_after();
        // First the hold, then everything else: what is found from here on stays.
        let hold = store.hold();
        let from = store.headers_from();
        if from.prev().0 > start {
            return Err(SourceError::Partial { from, first: LogIndex(start).next() });
        }
        let certified = store.latest_certificate().map_or(start, |c| c.head.size);
        let last = if tail { store.last_index() } else { LogIndex(certified) };
        if last.0 == start {
            return Err(SourceError::Empty);
        }
        let snapshot = certified_snapshot(store, &hold, &genesis, LogIndex(certified))?;
        if snapshot.is_none() && hold.base() > LogIndex::ZERO {
            return Err(SourceError::NoSnapshot { base: hold.base() });
        }
        // The log of a successor never begins earlier than with its predecessor's last entry, so its terms are known here.
        let (edge, mut terms) = (store.edge_at(start)?, hold.terms().to_vec());
        terms.retain(|(first, _)| first.0 <= start);
        let begin = Begin { genesis, edge, terms, certified, last, base: hold.base(), snapshot: snapshot.clone() };
        Ok(Self {
            store: store.clone(),
            hold,
            begin: Some(begin),
            snapshot,
            certified,
            last,
            chunk: 0,
            next: LogIndex(start).next(),
            entries: VecDeque::new(),
            certificates: VecDeque::new(),
            asked: start,
            chain: Chain::new(),
            end: End::default(),
            tag: false,
            done: false,
        })
    }

    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// [`SourceError`]; what was given so far is no backup then.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, SourceError> {
        if self.done {
            return Ok(None);
        }
        if !self.tag {
            self.tag = true;
            return Ok(Some(TAG.to_vec()));
        }
        if let Some(begin) = self.begin.take() {
            return Ok(Some(self.chain.frame(Kind::Begin, &begin.encode())));
        }
        if let Some(manifest) = self.snapshot.take_if(|m| self.chunk < m.chunks()) {
            let found = self.store.chunk(manifest.index, self.chunk)?;
            let (bytes, _) = found.ok_or(SourceError::Replaced { index: manifest.index })?;
            let mut w = Writer::default();
            w.u32(self.chunk).long(&bytes);
            self.chunk += 1;
            self.end.chunks += 1;
            self.snapshot = Some(manifest);
            return Ok(Some(self.chain.frame(Kind::Chunk, &w.0)));
        }
        if self.next <= self.last {
            let items = self.items()?;
            return Ok(Some(self.chain.frame(Kind::Items, &items)));
        }
        self.done = true;
        Ok(Some(self.chain.frame(Kind::End, &self.end.encode())))
    }

    /// What was given, and the hash of it, once all was.
    #[must_use]
    pub fn ended(&self) -> Option<(End, Digest)> {
        self.done.then(|| (self.end, digest(&self.chain)))
    }

    fn items(&mut self) -> Result<Vec<u8>, SourceError> {
        let mut w = Writer::default();
        while w.0.len() < FRAME && self.next <= self.last {
            let (header, body) = self.entry()?;
            self.end.entries += 1;
            match body {
                None => drop(w.u8(HEADER).short(&header.encode())),
                Some(body) => {
                    self.end.bodies += 1;
                    w.u8(ENTRY).long(&Entry { header, body }.encode());
                }
            }
            if let Some(certificate) = self.certificate(self.next)? {
                self.end.certificates += 1;
                w.u8(CERTIFICATE).short(&certificate.encode());
            }
            self.next = self.next.next();
        }
        Ok(w.0)
    }

    fn entry(&mut self) -> Result<(Header, Option<Body>), SourceError> {
        let index = self.next;
        if index <= self.hold.base() {
            let (header, body) = self.store.record(index)?.ok_or(SourceError::Replaced { index })?;
            // A snapshot brings the headers of its unfinished tile, and no bodies; compaction leaves those of such kinds.
            if body.is_none() && !matches!(header.kind, EntryKind::Proposal | EntryKind::Aborted) {
                return Err(SourceError::Partial { from: self.hold.base().next(), first: index });
            }
            return Ok((header, body));
        }
        if self.entries.is_empty() {
            let read = match self.store.read(index, self.last, MAX_APPEND_BYTES) {
                // Compaction does not go beyond the hold: a snapshot was installed.
                Err(ReadError::Compacted { .. }) => return Err(SourceError::Replaced { index }),
                read => read?,
            };
            self.entries.extend(read.iter().map(|e| (e.header.clone(), Some(e.body.clone()))));
        }
        self.entries.pop_front().ok_or(SourceError::Replaced { index })
    }

    /// The certificate that covers exactly the entries up to here.
    fn certificate(&mut self, index: LogIndex) -> Result<Option<Arc<HeadCertificate>>, SourceError> {
        if self.certificates.is_empty() && self.asked < self.certified {
            let page = self.store.certificates(self.asked, MAX_PAGE)?;
            self.asked = page.last().map_or(self.certified, |c| c.head.size);
            self.certificates.extend(page.into_iter().filter(|c| c.head.size <= self.certified));
        }
        Ok(self.certificates.pop_front_if(|c| c.head.size == index.0))
    }
}

/// The newest snapshot here that a `SnapshotManifest` entry names which a head certificate covers, or the one that the
/// cluster began with.
fn certified_snapshot(
    store: &Store,
    hold: &Hold,
    genesis: &Genesis,
    certified: LogIndex,
) -> Result<Option<SnapshotManifest>, SourceError> {
    for manifest in hold.snapshots().iter().rev().filter(|m| m.index <= certified) {
        let first = genesis.succeeds.as_ref().is_some_and(|s| s.snapshot == *manifest);
        if first || names(store, manifest, certified)? {
            return Ok(Some(manifest.clone()));
        }
    }
    Ok(None)
}

/// Whether an entry names this snapshot. It is usually one of the first behind the mark.
fn names(store: &Store, manifest: &SnapshotManifest, certified: LogIndex) -> Result<bool, SourceError> {
    let payload = manifest.encode();
    let mut next = manifest.index.next();
    while next <= certified {
        let entries = store.read(next, certified, MAX_APPEND_BYTES)?;
        let Some(last) = entries.last().map(|e| e.index()) else { return Ok(false) };
        if entries.iter().any(|e| e.header.kind == EntryKind::SnapshotManifest && e.body.payload == payload) {
            return Ok(true);
        }
        next = last.next();
    }
    Ok(false)
}
