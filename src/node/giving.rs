//! Pieces of the history, given to members that ask for them: read beside the owner loop, a few at a time.

use super::shared::Shared;
use crate::ids::NodeId;
use crate::limits::{MAX_APPEND_BYTES, MAX_PIECES_GIVEN, MAX_PIECES_OPEN, TILE};
use crate::storage::{ReadError, SnapshotError};
use crate::wire::{Found, Frame, History, Piece};
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// What is being looked up for others.
pub(super) struct Giving {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Questions of each member that are not answered yet.
    open: Arc<Mutex<BTreeMap<NodeId, usize>>>,
    turns: Arc<Semaphore>,
}

impl Giving {
    pub(super) fn new(shared: Arc<Shared>, tasks: TaskTracker) -> Self {
        let turns = Arc::new(Semaphore::new(MAX_PIECES_GIVEN));
        Self { shared, tasks, open: Arc::default(), turns }
    }

    /// A member asks. A question beyond its share is dropped: an honest asker has one open for each task that asks.
    pub(super) fn asked(&self, from: NodeId, id: u64, piece: Piece) {
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let count = open.entry(from).or_default();
            if *count >= MAX_PIECES_OPEN {
                return;
            }
            *count += 1;
        }
        let (shared, open, turns) = (self.shared.clone(), self.open.clone(), self.turns.clone());
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move {
            // Closed never: this node's own field.
            let _turn = turns.acquire_owned().await;
            let giver = shared.clone();
            let read = tasks.spawn_blocking(move || look_up(&giver, &piece)).await;
            let found = match read {
                Ok(Ok(found)) => found,
                Ok(Err(why)) => {
                    tracing::error!(%from, %why, "a piece of the history that a member asked for cannot be read");
                    None
                }
                Err(_) => None,
            };
            shared.transport.send(from, Frame::History(History::Answer { id, found }));
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = open.get_mut(&from) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&from);
                }
            }
        });
    }
}

/// Why a piece cannot be read.
#[derive(Debug, thiserror::Error)]
enum LookUpError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

fn look_up(shared: &Shared, piece: &Piece) -> Result<Option<Found>, LookUpError> {
    let store = &shared.store;
    Ok(match piece {
        Piece::Tile { level, position } => store.history_tile(*level, *position)?.map(Found::Tile),
        Piece::Headers { first } => {
            let headers = store.history_headers(*first)?;
            headers.map(|all| Found::Headers(all.into_iter().map(ByteBuf::from).collect()))
        }
        Piece::Certificates { above, upto } => {
            let certified = store.latest_certificate().map_or(0, |c| c.head.size);
            let mut found = Vec::new();
            if *upto <= certified.min(above.saturating_add(TILE)) {
                found = store.certificates(*above, TILE as usize)?;
                found.retain(|c| c.head.size <= *upto);
            }
            // Judged after they were read, and by what is here then: a node that is still filling has not all of them
            // before the tile after the one in which its history begins, and the one who asks cannot tell.
            let (from, is_complete) = shared.history();
            let is_here = *upto <= certified.min(above.saturating_add(TILE))
                && (is_complete || from.0.saturating_add(TILE) <= above.saturating_add(1));
            is_here.then_some(Found::Certificates(found))
        }
        Piece::Bodies { indexes } => store.history_bodies(indexes, MAX_APPEND_BYTES)?.map(Found::Bodies),
        Piece::Chunk { snapshot, number } => {
            let chunk = store.chunk(*snapshot, *number)?;
            chunk.map(|(bytes, path)| Found::Chunk { bytes: ByteBuf::from(bytes), path })
        }
    })
}
