//! Entries and stores for the benches.

// Each bench uses a part of it.
#![allow(dead_code, unreachable_pub)]

use concordat::certificate::{Body, Entry, Header, Kind, Request, SecretKey, payload_hash};
use concordat::core::Write;
use concordat::ids::{Epoch, LogIndex, NodeId, ProposalId, Term};
use concordat::storage::{Committer, Store};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub const DID: NodeId = NodeId([7; 32]);

pub fn entry(index: u64, size: usize) -> Arc<Entry> {
    let request = Request { client: "bench".into(), request_id: index.to_string(), deadline_ms: u64::MAX };
    let (salt, payload) = ([3; 16], vec![index as u8; size]);
    let header = Header {
        index: LogIndex(index),
        term: Term(1),
        epoch: Epoch(0),
        kind: Kind::Proposal,
        proposal_id: Some(ProposalId { term: Term(1), seq: index, origin: DID }),
        request_digest: request.digest(),
        proposed_at: index,
        required_quorum: 1,
        abort_reason: None,
        tally: None,
        payload_len: payload.len() as u32,
        payload_hash: payload_hash(&salt, &payload),
    };
    Arc::new(Entry::new(header, Body { salt, request: Some(request), payload }).expect("made to match"))
}

pub fn entries(from: u64, count: u64, size: usize) -> Vec<Arc<Entry>> {
    (from..from + count).map(|i| entry(i, size)).collect()
}

/// An open store with its committer.
pub struct Log {
    pub store: Store,
    committer: Committer,
    durable: Receiver<u64>,
    submitted: u64,
    done: u64,
}

impl Log {
    pub fn create(dir: &Path) -> Self {
        Store::create(dir, DID, &SecretKey::generate(&[1; 32])).expect("a fresh directory");
        Self::open(dir)
    }

    pub fn open(dir: &Path) -> Self {
        let (store, _) = Store::open(dir).expect("a sound store");
        let (tell, durable) = channel();
        let committer = store.start(move |answer| tell.send(answer.expect("the disk works")).unwrap_or_default());
        Self { store, committer, durable, submitted: 0, done: 0 }
    }

    /// Hands a write over; returns how many are not durable yet.
    pub fn submit(&mut self, write: Write) -> u64 {
        self.submitted += 1;
        self.committer.submit(self.submitted, write).expect("the committer runs");
        self.submitted - self.done
    }

    /// Waits until at most `left` writes are not durable.
    pub fn wait(&mut self, left: u64) {
        while self.submitted - self.done > left {
            self.done = self.durable.recv().expect("the committer runs");
        }
    }

    pub fn commit(&mut self, write: Write) {
        self.submit(write);
        self.wait(0);
    }

    pub fn append(&mut self, entries: Vec<Arc<Entry>>) {
        self.commit(Write { entries, ..Write::default() });
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// A quantile of durations, which are sorted for it.
pub fn quantile(all: &mut [Duration], q: f64) -> Duration {
    all.sort_unstable();
    all.get(((all.len() as f64 - 1.0) * q).round() as usize).copied().unwrap_or_default()
}
