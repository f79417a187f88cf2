//! What a long reader needs stays while it reads.
//!
//! A backup takes as long as whoever receives it is slow, and meanwhile snapshots are certified and the log is compacted.
//! While a [`Hold`] lives, compaction does not go beyond the log's base as it was ([`super::compact`] asks for the lowest),
//! and the snapshots that there were are not dropped ([`super::snapshots`] asks which). It lives in memory only: a hold
//! cannot outlast its process, and what it put off is done when the next snapshot is certified.

use super::Store;
use super::snapshots::Snapshots;
use crate::certificate::SnapshotManifest;
use crate::ids::{LogIndex, Term};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Every hold: its number, the base that it holds, the snapshots.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<BTreeMap<u64, (LogIndex, Vec<LogIndex>)>>);

/// Entries held for a reader.
pub(super) type Held<'a> = MutexGuard<'a, BTreeMap<u64, (LogIndex, Vec<LogIndex>)>>;

impl Holds {
    pub(super) fn lock(&self) -> Held<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log must not begin after any later entry than this.
    pub(super) fn lowest(&self) -> Option<LogIndex> {
        self.lock().values().map(|(base, _)| *base).min()
    }
}

/// See the head of this file. Dropping it lets go.
#[derive(Debug)]
pub struct Hold {
    store: Store,
    number: u64,
    base: LogIndex,
    terms: Vec<(LogIndex, Term)>,
    snapshots: Vec<SnapshotManifest>,
}

impl Hold {
    /// The last entry below the log; every later one has its body while this lives.
    #[must_use]
    pub fn base(&self) -> LogIndex {
        self.base
    }

    /// Where terms begin below the log: (first index, term), ascending.
    #[must_use]
    pub fn terms(&self) -> &[(LogIndex, Term)] {
        &self.terms
    }

    /// The complete snapshots from which the log after [`Hold::base`] leads on, oldest first.
    #[must_use]
    pub fn snapshots(&self) -> &[SnapshotManifest] {
        &self.snapshots
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.store.shared.holds.lock().remove(&self.number);
    }
}

impl Store {
    /// Keeps the log where it begins now, and the snapshots that there are now, until the hold is dropped.
    #[must_use]
    pub fn hold(&self) -> Hold {
        let shared = &*self.shared;
        // A step of compaction that is under way ends first; every later one asks for holds under this same lock.
        let _grounding = shared.grounding.lock().unwrap_or_else(PoisonError::into_inner);
        let ground = shared.ground();
        let base = ground.index();
        // Before the catalog's own lock, as whoever drops snapshots takes them.
        let mut holds = shared.holds.lock();
        let snapshots = Snapshots::usable(&shared.snapshots, base);
        let number = holds.keys().next_back().map_or(0, |last| last + 1);
        holds.insert(number, (base, snapshots.iter().map(|m| m.index).collect()));
        drop(holds);
        Hold { store: self.clone(), number, base, terms: ground.terms.clone(), snapshots }
    }
}
