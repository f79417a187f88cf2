//! Deterministic contents for stores under test: what entry stands where is a function of index, term and tag, so that
//! a verifier can tell without having seen it written.
#![allow(dead_code, reason = "each test target uses its part")]

use concordat::certificate::merkle::{Frontier, leaf_hash};
use concordat::certificate::{
    Bitmap, Body, ElectionClaim, Entry, Half, Head, HeadCertificate, Header, Kind, Request, SecretKey, Signature,
    SnapshotManifest, payload_hash,
};
use concordat::core::{Base, CastVote, HardState, Write};
use concordat::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use concordat::limits::SNAPSHOT_CHUNK;
use concordat::storage::{CommitError, Committer, Recovered, Store};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// The member under test.
pub(crate) const DID: NodeId = NodeId([42; 32]);

/// Its key.
pub(crate) fn key() -> SecretKey {
    SecretKey::generate(&[9; 32])
}

/// The entry at `index` in `term`; `tag` tells entries of the same place apart and makes up the payload.
pub(crate) fn entry(index: u64, term: u64, tag: u64, payload: usize) -> Arc<Entry> {
    let request =
        Request { client: "crash".into(), request_id: format!("{index}-{term}-{tag}"), deadline_ms: u64::MAX };
    let mut salt = [0; 16];
    salt[..8].copy_from_slice(&index.to_be_bytes());
    salt[8..].copy_from_slice(&(tag ^ term << 40).to_be_bytes());
    let payload: Vec<u8> = salt.iter().copied().cycle().take(payload).collect();
    let header = Header {
        index: LogIndex(index),
        term: Term(term),
        epoch: Epoch(0),
        kind: Kind::Proposal,
        proposal_id: Some(ProposalId { term: Term(term), seq: index, origin: DID }),
        request_digest: request.digest(),
        proposed_at: term * 1_000_000_000 + index,
        required_quorum: 1,
        abort_reason: None,
        tally: None,
        payload_len: payload.len() as u32,
        payload_hash: payload_hash(&salt, &payload),
    };
    Arc::new(Entry::new(header, Body { salt, request: Some(request), payload }).expect("made to match"))
}

/// Entries from `first`, `count` of them.
pub(crate) fn entries(first: u64, count: u64, term: u64, tag: u64, payload: usize) -> Vec<Arc<Entry>> {
    (first..first + count).map(|i| entry(i, term, tag, payload)).collect()
}

/// The tree over these entries.
pub(crate) fn tree(log: &[Arc<Entry>]) -> Frontier {
    let mut tree = Frontier::default();
    for e in log {
        tree.push(e.header.leaf_hash());
    }
    tree
}

/// A certificate (of made-up signatures: a store does not verify them) over these entries.
pub(crate) fn certificate(log: &[Arc<Entry>]) -> Arc<HeadCertificate> {
    let head = Head { term: log.last().map_or(Term(0), |e| e.term()), size: log.len() as u64, root: tree(log).root() };
    let half = Half {
        epoch: Epoch(0),
        epoch_hash: Digest([1; 32]),
        signers: Bitmap::of(3, [0, 1]),
        aggregate: Signature([7; 96]),
    };
    Arc::new(HeadCertificate { head, halves: vec![half] })
}

/// A term with a vote for the candidate of this number.
pub(crate) fn vote(term: u64, candidate: u8) -> HardState {
    let claim = ElectionClaim {
        term: Term(term),
        candidate: NodeId([candidate; 32]),
        last_term: Term(term.saturating_sub(1)),
        last_size: 5,
        last_root: Digest([3; 32]),
    };
    HardState { term: Term(term), vote: Some(claim) }
}

/// A ballot answer, by number.
pub(crate) fn cast(n: u64) -> CastVote {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    CastVote { request_key: Digest(key), content: Digest([6; 32]), granted: n.is_multiple_of(2), keep_until: n }
}

/// A write of entries.
pub(crate) fn append(entries: Vec<Arc<Entry>>) -> Write {
    Write { entries, ..Write::default() }
}

/// Numbers that are the same in every run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `n`, which is not zero.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A store with its committer, driven synchronously.
pub(crate) struct Driver {
    pub(crate) store: Store,
    pub(crate) committer: Committer,
    pub(crate) answers: Receiver<Result<u64, CommitError>>,
    next: u64,
}

impl Driver {
    pub(crate) fn open(dir: &Path) -> (Self, Recovered) {
        let (store, recovered) = Store::open(dir).expect("the store opens");
        (Self::over(store), recovered)
    }

    pub(crate) fn over(store: Store) -> Self {
        let (tell, answers) = channel();
        let committer = store.start(move |answer| drop(tell.send(answer)));
        Self { store, committer, answers, next: 0 }
    }

    /// A fresh store.
    pub(crate) fn create(dir: &Path) -> Self {
        Store::create(dir, DID, &key()).expect("the store is made");
        Self::open(dir).0
    }

    /// Submits one write and returns its number.
    pub(crate) fn submit(&mut self, write: Write) -> u64 {
        self.next += 1;
        self.committer.submit(self.next, write).expect("the committer runs");
        self.next
    }

    /// Submits one write and waits until it is durable or refused.
    pub(crate) fn write(&mut self, write: Write) -> Result<(), CommitError> {
        let seq = self.submit(write);
        self.wait(seq)
    }

    /// Waits for an answer to everything up to `seq`.
    pub(crate) fn wait(&self, seq: u64) -> Result<(), CommitError> {
        loop {
            if self.answers.recv().expect("the committer answers")? >= seq {
                return Ok(());
            }
        }
    }

    /// Closes committer and store.
    pub(crate) fn close(self) {
        self.committer.close();
    }
}

/// An image of this many bytes for the state after these entries: its manifest and its chunks.
pub(crate) fn image(log: &[Arc<Entry>], bytes: usize) -> (SnapshotManifest, Vec<Vec<u8>>) {
    let last = &log.last().expect("a snapshot is of something").header;
    let all: Vec<u8> = (0..bytes as u64).map(|i| ((i * 31 + i / 251) ^ last.index.0) as u8).collect();
    let chunks: Vec<Vec<u8>> = all.chunks(SNAPSHOT_CHUNK).map(<[u8]>::to_vec).collect();
    let mut over = Frontier::default();
    chunks.iter().for_each(|c| over.push(leaf_hash(c)));
    let manifest = SnapshotManifest {
        index: last.index,
        term: last.term,
        epoch: last.epoch,
        proposed_at: last.proposed_at,
        root: tree(log).root(),
        state: Digest([5; 32]),
        bytes: bytes as u64,
        chunks_root: over.root(),
    };
    (manifest, chunks)
}

/// What a log that begins after these entries rests on.
pub(crate) fn base(log: &[Arc<Entry>]) -> Arc<Base> {
    let mut base = Base::default();
    for e in log {
        base.edge.push(e.header.encode());
        base.proposed_at = e.header.proposed_at;
        if base.terms.last().is_none_or(|(_, term)| *term != e.term()) {
            base.terms.push((e.index(), e.term()));
        }
        if matches!(e.header.kind, Kind::Epoch | Kind::EpochFinal) {
            base.epochs.push(e.clone());
        }
    }
    Arc::new(base)
}

/// An entry of a kind that nobody proposes.
pub(crate) fn unproposed(index: u64, term: u64, kind: Kind) -> Arc<Entry> {
    let (salt, payload) = ([3; 16], vec![index as u8; 50]);
    let header = Header {
        kind,
        proposal_id: None,
        request_digest: Digest::ZERO,
        required_quorum: 0,
        payload_len: payload.len() as u32,
        payload_hash: payload_hash(&salt, &payload),
        ..entry(index, term, 0, 0).header.clone()
    };
    Arc::new(Entry::new(header, Body { salt, request: None, payload }).expect("made to match"))
}

/// Takes a whole image.
pub(crate) fn take(store: &Store, (manifest, chunks): &(SnapshotManifest, Vec<Vec<u8>>)) {
    store.stage(manifest).expect("staged");
    for (number, chunk) in (0..).zip(chunks) {
        store.put_chunk(manifest, number, chunk).expect("kept");
    }
    store.complete(manifest).expect("complete");
}

/// The database of a store that is closed. The threads of one that was dropped hold its lock for a moment.
pub(crate) fn raw(dir: &Path) -> sled::Db {
    let open = || sled::Config::new().path(dir).segment_size(8 << 20).open();
    let opened = (0..10_000_000).find_map(|_| open().inspect_err(|_| std::thread::yield_now()).ok());
    opened.expect("its lock is let go")
}

/// Copies a directory as it is.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
