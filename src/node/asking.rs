//! Pieces of the history, asked of other members one at a time, and what they say given to whoever waits for it.

use super::clock::Clock;
use super::handle::random;
use crate::ids::NodeId;
use crate::transport::{Sent, Transport};
use crate::wire::{Found, Frame, History, Piece};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a member is not asked that did not answer or has not got the piece, milliseconds.
const ABSENT_MS: u64 = 2_000;
/// How long a member is not asked that sent what is not proved, milliseconds.
const UNPROVED_MS: u64 = 60_000;

/// Who was asked, and who waits.
type Waiting = (NodeId, oneshot::Sender<Option<Found>>);

/// The questions of one node. At most one is open at a time for each task that asks.
pub(super) struct Asking {
    transport: Transport,
    clock: Clock,
    waiting: Mutex<HashMap<u64, Waiting>>,
    next: AtomicU64,
    /// Members that are not asked before a time, monotonic milliseconds.
    shunned: Mutex<BTreeMap<NodeId, u64>>,
}

/// Forgets a question however its asker ends.
struct Forget<'a>(&'a Asking, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.0.waiting).remove(&self.1);
    }
}

impl Asking {
    pub(super) fn new(transport: Transport, clock: Clock) -> Self {
        // An answer to a question of this node's former life must not be taken for one to a new question.
        let next = AtomicU64::new(u64::from_be_bytes(random()));
        Self { transport, clock, waiting: Mutex::default(), next, shunned: Mutex::default() }
    }

    /// An answer has come.
    pub(super) fn answered(&self, from: NodeId, id: u64, found: Option<Found>) {
        let mut waiting = lock(&self.waiting);
        if waiting.get(&id).is_some_and(|(asked, _)| *asked == from)
            && let Some((_, waiter)) = waiting.remove(&id)
        {
            // Whoever gave up is no news.
            let _gone = waiter.send(found);
        }
    }

    /// A piece from one of these members, in turn; `None` when none of them can be asked now or gives it.
    pub(super) async fn fetch(&self, members: &[NodeId], piece: &Piece) -> Option<(NodeId, Found)> {
        let start = usize::try_from(self.next.load(Ordering::Relaxed) % 1024).unwrap_or(0);
        for turn in 0..members.len() {
            let member = members[(start + turn) % members.len()];
            if !self.may_be_asked(&member) {
                continue;
            }
            match self.ask(member, piece.clone()).await {
                Some(found) => return Some((member, found)),
                None => self.shun(member, ABSENT_MS),
            }
        }
        None
    }

    async fn ask(&self, member: NodeId, piece: Piece) -> Option<Found> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (waiter, answer) = oneshot::channel();
        lock(&self.waiting).insert(id, (member, waiter));
        let _forget = Forget(self, id);
        if self.transport.send(member, Frame::History(History::Ask { id, piece })) != Sent::Queued {
            return None;
        }
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()?
    }

    /// A member has sent what nothing proves.
    pub(super) fn unproved(&self, member: NodeId, piece: &Piece, why: &dyn std::fmt::Display) {
        tracing::warn!(%member, ?piece, %why, "a member sent a piece of the history that is not proved; it is not asked again for a while");
        self.shun(member, UNPROVED_MS);
    }

    fn may_be_asked(&self, member: &NodeId) -> bool {
        let now = self.clock.now().mono;
        self.transport.connected(member) && lock(&self.shunned).get(member).is_none_or(|until| *until <= now)
    }

    fn shun(&self, member: NodeId, ms: u64) {
        let until = self.clock.now().mono.saturating_add(ms);
        lock(&self.shunned).insert(member, until);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}
