//! The task that fills in what lies before an installed snapshot, in the background: piece by piece from whichever member
//! gives it, within a rate, until this node holds the whole history.

use super::asking::Asking;
use super::shared::Shared;
use crate::certificate::HeadCertificate;
use crate::ids::{LogIndex, NodeId};
use crate::storage::{FillError, Missing, ReadError};
use crate::wire::{Found, Piece};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often a node that lacks nothing looks whether it installed a snapshot, and one whom nobody gives anything asks again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why filling stops.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("a thread panicked")]
    Panicked,
}

pub(super) struct Filling {
    pub(super) shared: Arc<Shared>,
    pub(super) asking: Arc<Asking>,
    pub(super) tasks: TaskTracker,
    pub(super) bytes_per_s: u64,
}

impl Filling {
    /// Runs until `closing`.
    pub(super) async fn run(self, closing: CancellationToken) {
        closing.run_until_cancelled(self.fill()).await;
    }

    async fn fill(self) {
        let mut is_filling = false;
        loop {
            let step = self.step().await;
            let (from, is_complete) = self.shared.history();
            match step {
                Ok(true) => {
                    if !std::mem::replace(&mut is_filling, true) {
                        tracing::info!(%from, "what lies before the snapshot is being filled in");
                    }
                    continue;
                }
                Ok(false) if is_complete && is_filling => {
                    is_filling = false;
                    tracing::info!("the history is here from the first entry on");
                }
                Ok(false) => {}
                // The consensus does not need it, and whoever asks for it is told what is wrong.
                Err(why) => tracing::error!(%from, %why, "the history cannot be filled in now"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// One piece; `false` when nothing is missing or nobody gives it.
    async fn step(&self) -> Result<bool, Failure> {
        let store = self.shared.store.clone();
        if *self.shared.applied.borrow() < store.base() {
            // A snapshot was installed, and who the members were is known only once its image is read.
            return Ok(false);
        }
        let missing = self.blocking(move || store.missing_history()).await??;
        self.shared.history_whole.store(missing.is_none(), Ordering::Relaxed);
        let Some(missing) = missing else { return Ok(false) };
        let piece = piece_of(&missing);
        let tables = self.shared.tables();
        let members: Vec<NodeId> = tables.members().into_iter().filter(|m| *m != self.shared.id).collect();
        let Some((member, found)) = self.asking.fetch(&members, &piece).await else { return Ok(false) };
        let weight = found.weight() as u64;
        let shared = self.shared.clone();
        match self.blocking(move || take(&shared, &missing, found)).await? {
            Ok(()) => {}
            Err(FillError::Read(why)) => return Err(why.into()),
            Err(why @ FillError::Unproved { .. }) => self.asking.unproved(member, &piece, &why),
        }
        tokio::time::sleep(Duration::from_micros(weight.saturating_mul(1_000_000) / self.bytes_per_s.max(1))).await;
        Ok(true)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        // Tracked, so that the store is not closed under it.
        self.tasks.spawn_blocking(work).await.map_err(|_| Failure::Panicked)
    }
}

fn piece_of(missing: &Missing) -> Piece {
    match missing.clone() {
        Missing::Tile { level, position } => Piece::Tile { level, position },
        Missing::Headers { first } => Piece::Headers { first },
        Missing::Certificates { above, upto } => Piece::Certificates { above, upto },
        Missing::Bodies { indexes } => Piece::Bodies { indexes },
    }
}

/// Proves a piece and keeps it.
fn take(shared: &Shared, missing: &Missing, found: Found) -> Result<(), FillError> {
    let store = &shared.store;
    match (missing, found) {
        (Missing::Tile { level, position }, Found::Tile(hashes)) => store.fill_tile(*level, *position, &hashes),
        (Missing::Headers { first }, Found::Headers(headers)) => {
            let headers: Vec<Vec<u8>> = headers.into_iter().map(|h| h.into_vec()).collect();
            store.fill_headers(*first, &headers)
        }
        (Missing::Certificates { above, upto }, Found::Certificates(all)) => {
            for certificate in &all {
                check_signed(shared, *above, *upto, certificate)?;
            }
            store.fill_certificates(*above, *upto, &all)
        }
        (Missing::Bodies { indexes }, Found::Bodies(entries)) => {
            let asked = entries.iter().zip(indexes).all(|(entry, index)| entry.index() == *index);
            if !asked || entries.is_empty() || entries.len() > indexes.len() {
                return Err(FillError::Unproved { what: "entry" });
            }
            store.fill_bodies(&entries)
        }
        _ => Err(FillError::Unproved { what: "answer" }),
    }
}

/// A head certificate is signed by the members of the epoch of its last entry, and by those of the next one while a change
/// was in flight: as an audit demands it.
fn check_signed(shared: &Shared, above: u64, upto: u64, certificate: &HeadCertificate) -> Result<(), FillError> {
    let unproved = || FillError::Unproved { what: "head certificate" };
    let size = certificate.head.size;
    if size <= above || size > upto {
        return Err(unproved());
    }
    let epoch = shared.store.filled_header(LogIndex(size))?.epoch;
    let (current, next) = {
        let replica = shared.replica();
        let next = replica.epochs.opened(epoch).filter(|opened| opened.0 <= size);
        let next = next.and_then(|_| replica.epochs.table(epoch.next()).cloned());
        (replica.epochs.table(epoch).cloned(), next)
    };
    let current = current.ok_or_else(unproved)?;
    certificate.verify(&shared.genesis_id, &current, next.as_deref()).map_err(|_| unproved())
}
