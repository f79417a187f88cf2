//! Filling a fresh store with history that was verified elsewhere: what lies below the log that is to be appended.
//!
//! The store must be fresh: made by `init`, with its own key, and nothing ever promised with it. What is written here is
//! what compaction would have left: headers and tree, kept entries, certificates; then the ground that names them comes
//! into force by its one record, like any other. Entries above go through the [`super::Committer`] after the store was
//! opened again. Term and vote: the term of the last entry filled in, and no vote, which the store's key never gave.

use super::Store;
use super::disk::Disk;
use super::error::{DurabilityError, ReadError};
use super::ground::Ground;
use super::layout::{HARD_STATE, number_key, write_hard_state};
use super::read::guard;
use super::snapshots::Snapshots;
use super::{archive::Archive, kept};
use crate::certificate::{Edge, Entry, HeadCertificate, Header, Kind};
use crate::core::HardState;
use crate::ids::{Digest, LogIndex, Term};
use std::sync::PoisonError;

/// Bytes written before they are made durable: well below a segment of the database.
const UNSYNCED: usize = 1024 * 1024;

/// Why history was not filled in.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store was used.
    #[error(
        "the store is not fresh (its last entry is {last}, its term {term}): a store's memory is its key, so nothing is ever restored over one; make a new data directory with `concordat init` and restore into that"
    )]
    NotFresh {
        /// Its last entry.
        last: LogIndex,
        /// Its term.
        term: Term,
    },
    /// Not the next entry.
    #[error("entry {found} where {expected} is the next")]
    Gap {
        /// The next one.
        expected: LogIndex,
        /// Given.
        found: LogIndex,
    },
    /// The log would begin after an entry for whose state there is no snapshot.
    #[error("no complete snapshot stands for the entries up to {base}")]
    NoSnapshot {
        /// The last entry below the log.
        base: LogIndex,
    },
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The disk failed.
    #[error(transparent)]
    Durability(#[from] DurabilityError),
}

/// A store that is being filled, from its first entry on.
#[derive(Debug)]
pub struct Filling {
    store: Store,
    archive: Archive,
    ground: Ground,
    unsynced: usize,
}

impl Store {
    /// Begins to fill a fresh store with entries after `edge`: all that the log has, or those after what its genesis
    /// succeeds, for which `terms` says where terms begin and `proposed_at` when the last one was proposed.
    ///
    /// # Errors
    /// [`RestoreError::NotFresh`].
    pub fn fill(&self, edge: Edge, terms: Vec<(LogIndex, Term)>, proposed_at: u64) -> Result<Filling, RestoreError> {
        guard(|| {
            self.check_fresh()?;
            let from = LogIndex(edge.size() - edge.size() % crate::limits::TILE + 1);
            let archive = Archive::over(&self.shared.disk, edge.clone(), from)?;
            let ground = Ground { edge, terms, proposed_at, epochs: Vec::new(), from };
            Ok(Filling { store: self.clone(), archive, ground, unsynced: 0 })
        })
    }

    /// A store that `init` made and nothing has used.
    ///
    /// # Errors
    /// [`RestoreError::NotFresh`].
    pub fn check_fresh(&self) -> Result<(), RestoreError> {
        let tail = self.shared.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tail) = tail.as_ref().filter(|t| {
            t.hard == HardState::default() && t.commits == 0 && self.base() == LogIndex::ZERO && t.frontier.size() == 0
        }) else {
            let term = tail.as_ref().map_or(Term::ZERO, |t| t.hard.term);
            return Err(RestoreError::NotFresh { last: self.last_index(), term });
        };
        debug_assert_eq!(tail.certified, 0);
        Ok(())
    }

    /// The right edge of the tree over the first `size` committed entries.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn edge_at(&self, size: u64) -> Result<Edge, ReadError> {
        guard(|| self.shared.archive().edge_at(&self.shared.disk, size))
    }
}

impl Filling {
    /// The last entry filled in.
    #[must_use]
    pub fn last(&self) -> LogIndex {
        self.ground.index()
    }

    /// The root over everything filled in.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.ground.edge.frontier().root()
    }

    /// The next entry: its header, and the whole of it if it is one whose body is kept for ever.
    ///
    /// # Errors
    /// [`RestoreError::Gap`] and failures of the disk.
    pub fn entry(&mut self, header: &Header, entry: Option<&Entry>) -> Result<(), RestoreError> {
        let (expected, found) = (self.last().next(), header.index);
        if found != expected {
            return Err(RestoreError::Gap { expected, found });
        }
        guard(|| {
            let disk = &self.store.shared.disk;
            let bytes = header.encode();
            self.archive.take(disk, header, bytes.clone(), entry.map(|e| &e.body))?;
            self.ground.edge.push(bytes);
            self.ground.proposed_at = header.proposed_at;
            if self.ground.last_term() != header.term {
                self.ground.terms.push((header.index, header.term));
            }
            if matches!(header.kind, Kind::Epoch | Kind::EpochFinal) {
                self.ground.epochs.push(header.index);
            }
            if let Some(entry) = entry.filter(|_| kept::is_kept(header.kind)) {
                self.unsynced += kept::put(disk, entry)?;
            }
            flush(disk, &mut self.unsynced)
        })
    }

    /// A head certificate of what is filled in so far, verified by the caller.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn certificate(&mut self, certificate: &HeadCertificate) -> Result<(), RestoreError> {
        let disk = &self.store.shared.disk;
        let bytes = certificate.encode();
        self.unsynced += bytes.len();
        disk.insert(&disk.trees.certificates, &number_key(certificate.head.size), &bytes)?;
        flush(disk, &mut self.unsynced)
    }

    /// Puts all of it in force: the log begins after it. The store is to be opened again before it is used.
    ///
    /// # Errors
    /// [`RestoreError::NoSnapshot`] and failures of the disk.
    pub fn finish(mut self) -> Result<(), RestoreError> {
        let base = self.last();
        if base == LogIndex::ZERO {
            return Ok(());
        }
        guard(|| {
            let shared = &*self.store.shared;
            if Snapshots::usable(&shared.snapshots, base).is_empty() {
                return Err(RestoreError::NoSnapshot { base });
            }
            self.archive.make_durable(&shared.disk)?;
            let hard = HardState { term: self.ground.last_term(), vote: None };
            shared.disk.insert(&shared.disk.trees.hard, HARD_STATE.as_bytes(), &write_hard_state(&hard))?;
            shared.disk.make_durable()?;
            self.ground.put(&shared.disk, false)?;
            Ok(self.ground.tidy(&shared.disk)?)
        })
    }
}

fn flush(disk: &Disk, unsynced: &mut usize) -> Result<(), RestoreError> {
    if *unsynced >= UNSYNCED {
        disk.make_durable()?;
        *unsynced = 0;
    }
    Ok(())
}
