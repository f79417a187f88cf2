//! What the owner loop, the state machine's thread and every [`Handle`](super::Handle) see of one node.

use super::Ended;
use super::applied::Replica;
use super::clock::Clock;
use super::crypto::Signer;
use super::executor::{Event, View};
use super::handle::Finish;
use super::snapshotter::Jobs;
use crate::api::{OpenBallot, ProposeError};
use crate::certificate::{Genesis, HeadCertificate, Kind, MemberTable, PublicKey};
use crate::core::{Ballot, Tables};
use crate::ids::{Digest, LogIndex, NodeId, ProposalId};
use crate::storage::{Rotated, Store, Wound};
use crate::telemetry::Telemetry;
use crate::transport::Transport;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{mpsc, oneshot, watch};

pub(super) struct Shared {
    pub(super) id: NodeId,
    pub(super) genesis: Genesis,
    pub(super) genesis_id: Digest,
    tables: RwLock<Arc<Tables>>,
    pub(super) store: Store,
    pub(super) signer: Arc<Signer>,
    pub(super) transport: Transport,
    pub(super) telemetry: Telemetry,
    pub(super) clock: Clock,
    pub(super) events: mpsc::Sender<Event>,
    replica: RwLock<Replica>,
    waiters: Mutex<HashMap<Digest, Vec<oneshot::Sender<Finish>>>>,
    pub(super) applied: watch::Sender<LogIndex>,
    pub(super) certificate: watch::Sender<Option<Arc<HeadCertificate>>>,
    pub(super) ended: watch::Sender<Option<Ended>>,
    view: Mutex<View>,
    ballots: Mutex<BTreeMap<ProposalId, (Arc<Ballot>, u64)>>,
    http: Mutex<BTreeMap<NodeId, String>>,
    /// Held while keys are made or erased.
    rotation: Mutex<()>,
    /// The way to the snapshot thread, while it runs.
    jobs: Mutex<Option<Jobs>>,
    moving: Mutex<Moving>,
    /// How many damaged records were mended before the store could be opened.
    pub(super) mended: u64,
    /// Whether nothing is missing from where the history begins here on; until that was looked at, it is not known.
    pub(super) history_whole: AtomicBool,
}

/// What is known of the database's moves to a fresh one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moving {
    /// Bytes of records copied and read back so far, while one is under way.
    pub(super) moved: Option<u64>,
    /// What the last one brought.
    pub(super) last: Option<Rotated>,
}

/// What a node is made of, before anything runs.
pub(super) struct Parts {
    pub(super) id: NodeId,
    pub(super) genesis: Genesis,
    pub(super) store: Store,
    pub(super) signer: Arc<Signer>,
    pub(super) transport: Transport,
    pub(super) telemetry: Telemetry,
    pub(super) clock: Clock,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) replica: Replica,
    pub(super) certificate: Option<Arc<HeadCertificate>>,
    pub(super) http: Option<String>,
    /// What was mended before the store could be opened.
    pub(super) mended: Vec<Wound>,
}

impl Shared {
    pub(super) fn new(parts: Parts) -> Self {
        let applied = parts.replica.state.applied();
        let http = parts.http.map(|h| (parts.id, h)).into_iter().collect();
        parts.mended.iter().for_each(|wound| parts.telemetry.mended(wound.kind()));
        Self {
            id: parts.id,
            genesis_id: parts.genesis.id(),
            tables: RwLock::new(Arc::new(Tables::new(parts.genesis.id(), parts.genesis.in_force().into(), None))),
            genesis: parts.genesis,
            store: parts.store,
            signer: parts.signer,
            transport: parts.transport,
            telemetry: parts.telemetry,
            clock: parts.clock,
            events: parts.events,
            replica: RwLock::new(parts.replica),
            waiters: Mutex::default(),
            applied: watch::Sender::new(applied),
            certificate: watch::Sender::new(parts.certificate),
            ended: watch::Sender::new(None),
            view: Mutex::default(),
            ballots: Mutex::default(),
            http: Mutex::new(http),
            rotation: Mutex::default(),
            jobs: Mutex::default(),
            moving: Mutex::default(),
            mended: parts.mended.len() as u64,
            history_whole: AtomicBool::new(false),
        }
    }

    pub(super) fn replica(&self) -> RwLockReadGuard<'_, Replica> {
        self.replica.read().expect("the state machine's thread does not panic")
    }

    pub(super) fn replica_mut(&self) -> RwLockWriteGuard<'_, Replica> {
        self.replica.write().expect("the state machine's thread does not panic")
    }

    /// In force at the end of this node's log.
    pub(super) fn tables(&self) -> Arc<Tables> {
        self.tables.read().expect("no holder of this lock panics").clone()
    }

    pub(super) fn set_tables(&self, tables: Arc<Tables>) {
        *self.tables.write().expect("no holder of this lock panics") = tables;
    }

    /// One at a time makes or erases keys, in the store and at the signer.
    pub(super) fn rotation(&self) -> MutexGuard<'_, ()> {
        lock(&self.rotation)
    }

    pub(super) fn jobs(&self) -> Option<Jobs> {
        lock(&self.jobs).clone()
    }

    pub(super) fn set_jobs(&self, jobs: Option<Jobs>) {
        *lock(&self.jobs) = jobs;
    }

    pub(super) fn moving(&self) -> Moving {
        *lock(&self.moving)
    }

    pub(super) fn set_moving(&self, moving: Moving) {
        *lock(&self.moving) = moving;
    }

    /// Whether this node's store holds a key.
    pub(super) fn holds(&self, key: &PublicKey) -> bool {
        self.signer.public_keys().contains(key)
    }

    pub(super) fn view(&self) -> View {
        lock(&self.view).clone()
    }

    pub(super) fn set_view(&self, view: View) {
        *lock(&self.view) = view;
    }

    /// Resolves with its index once an entry with this request key is applied. Register first, then look whether one is
    /// already.
    pub(super) fn wait_for(&self, key: Digest) -> oneshot::Receiver<Finish> {
        let (done, wait) = oneshot::channel();
        let mut waiters = lock(&self.waiters);
        let list = waiters.entry(key).or_default();
        list.retain(|w| !w.is_closed());
        list.push(done);
        wait
    }

    /// Forgets waiters that gave up.
    pub(super) fn forget_waiters(&self, key: &Digest) {
        let mut waiters = lock(&self.waiters);
        if let Some(list) = waiters.get_mut(key) {
            list.retain(|w| !w.is_closed());
            if list.is_empty() {
                waiters.remove(key);
            }
        }
    }

    pub(super) fn wake(&self, applied: &[(Digest, LogIndex)]) {
        let mut waiters = lock(&self.waiters);
        for (key, index) in applied {
            finish(waiters.remove(key), &Ok(*index));
        }
    }

    /// A snapshot's state took the place of the applied one: whoever waits for what it knows is told.
    pub(super) fn wake_answered(&self) {
        let keys: Vec<Digest> = lock(&self.waiters).keys().copied().collect();
        let replica = self.replica();
        let found = keys.iter().filter_map(|key| Some((*key, replica.state.answered(key)?.index)));
        let found: Vec<(Digest, LogIndex)> = found.collect();
        drop(replica);
        self.wake(&found);
    }

    /// A request that a leader had taken will not come to be applied by this node's doing.
    pub(super) fn give_up(&self, key: &Digest, why: ProposeError) {
        finish(lock(&self.waiters).remove(key), &Err(why));
    }

    /// From where on this node holds the history, and whether nothing is missing from the first entry on.
    pub(super) fn history(&self) -> (LogIndex, bool) {
        let from = self.store.headers_from();
        (from, from <= self.store.history_begins() && self.history_whole.load(Ordering::Relaxed))
    }

    pub(super) fn certified_size(&self) -> u64 {
        self.certificate.borrow().as_ref().map_or(0, |c| c.head.size)
    }

    pub(super) fn open_ballot(&self, ballot: Arc<Ballot>, until: u64) {
        lock(&self.ballots).insert(ballot.id, (ballot, until));
    }

    pub(super) fn withdraw(&self, id: &ProposalId) {
        lock(&self.ballots).remove(id);
    }

    pub(super) fn ballot(&self, id: &ProposalId) -> Option<Arc<Ballot>> {
        lock(&self.ballots).get(id).map(|b| b.0.clone())
    }

    pub(super) fn ballots(&self) -> Vec<OpenBallot> {
        let now = self.clock.now().mono;
        lock(&self.ballots)
            .values()
            .map(|(ballot, until)| OpenBallot {
                id: ballot.id,
                client: ballot.request.client.clone(),
                request_id: ballot.request.request_id.clone(),
                kind: ballot.kind,
                payload: asked(ballot),
                required_quorum: ballot.required_quorum,
                ttl_ms: until.saturating_sub(now),
            })
            .collect()
    }

    pub(super) fn note_http(&self, id: NodeId, address: Option<String>) {
        let mut http = lock(&self.http);
        match address {
            Some(address) => http.insert(id, address),
            None => http.remove(&id),
        };
    }

    pub(super) fn http_address(&self, id: &NodeId) -> Option<String> {
        lock(&self.http).get(id).cloned()
    }
}

fn finish(waiters: Option<Vec<oneshot::Sender<Finish>>>, how: &Finish) {
    for waiter in waiters.into_iter().flatten() {
        // A waiter that gave up is no news.
        let _gone = waiter.send(how.clone());
    }
}

/// What a ballot asks about, as JSON.
fn asked(ballot: &Ballot) -> serde_json::Value {
    match ballot.kind {
        Kind::Epoch => MemberTable::decode_granted(&ballot.payload)
            .map_or(serde_json::Value::Null, |table| serde_json::json!({ "members": table.members() })),
        _ => json(&ballot.payload),
    }
}

/// A payload as JSON. Admission takes nothing else, but a faulty leader's bytes must not stop a reader.
pub(super) fn json(payload: &[u8]) -> serde_json::Value {
    serde_json::from_slice(payload).unwrap_or_else(|_| serde_json::Value::String(hex::encode(payload)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}
