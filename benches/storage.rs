//! Group commits to the store, beside a plain append and fdatasync of the same bytes in the same run.
//!
//! `fsync=on` is on the disk of `target/`, `fsync=off` the same code on a file system in memory, where fdatasync returns
//! at once: what the store itself costs. Throughput is entries per second.

use concordat::certificate::{Body, Entry, Header, Kind, Request, SecretKey, payload_hash};
use concordat::core::{HardState, Write};
use concordat::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use concordat::storage::{Committer, Store};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

const DID: NodeId = NodeId([7; 32]);

fn entry(index: u64, size: usize) -> Arc<Entry> {
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

/// A fresh store in `dir`, and its next index and write number.
struct Log {
    committer: Committer,
    durable: Receiver<u64>,
    next: u64,
    seq: u64,
}

impl Log {
    fn create(dir: &Path) -> Self {
        Store::create(dir, DID, &SecretKey::generate(&[1; 32])).expect("a fresh directory");
        let (store, _) = Store::open(dir).expect("it was just made");
        let (tell, durable) = channel();
        let committer = store.start(move |answer| tell.send(answer.expect("the disk works")).unwrap_or_default());
        Self { committer, durable, next: 1, seq: 0 }
    }

    fn batch(&mut self, count: u64, size: usize) -> Write {
        let entries = (self.next..self.next + count).map(|i| entry(i, size)).collect();
        self.next += count;
        Write { entries, ..Write::default() }
    }

    fn commit(&mut self, write: Write) {
        self.seq += 1;
        self.committer.submit(self.seq, write).expect("the committer runs");
        assert_eq!(self.durable.recv(), Ok(self.seq));
    }
}

fn places() -> Vec<(&'static str, tempfile::TempDir)> {
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ is writable");
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    [Some(("on", disk)), memory.map(|m| ("off", m))].into_iter().flatten().collect()
}

fn commit(c: &mut Criterion) {
    let size = 256;
    for (fsync, place) in places() {
        for batch in [1, 16, 128, 1024] {
            for kind in ["raw", "commit"] {
                let mut group = c.benchmark_group(kind);
                group.throughput(Throughput::Elements(batch));
                let id = BenchmarkId::from_parameter(format!("fsync={fsync}/batch={batch}/size={size}"));
                if kind == "raw" {
                    let mut file = File::create(place.path().join("raw")).expect("a file");
                    let bytes: Vec<u8> = (1..=batch).flat_map(|i| entry(i, size).encode()).collect();
                    group.bench_function(id, |b| {
                        b.iter(|| {
                            file.write_all(&bytes).expect("the disk works");
                            file.sync_data().expect("the disk works");
                        });
                    });
                } else {
                    let mut log = Log::create(&place.path().join(format!("store-{batch}")));
                    group.bench_function(id, |b| {
                        b.iter_custom(|rounds| {
                            let mut spent = std::time::Duration::ZERO;
                            for _ in 0..rounds {
                                // Making entries is the core's work, not the store's.
                                let write = log.batch(batch, size);
                                spent += timed(|| log.commit(write));
                            }
                            spent
                        });
                    });
                }
                group.finish();
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn timed(work: impl FnOnce()) -> std::time::Duration {
    let start = std::time::Instant::now();
    work();
    start.elapsed()
}

fn vote(c: &mut Criterion) {
    let (_, place) = places().swap_remove(0);
    let mut log = Log::create(&place.path().join("store"));
    let mut term = 0;
    c.bench_function("vote/fsync=on", |b| {
        b.iter(|| {
            term += 1;
            log.commit(Write { hard: Some(HardState { term: Term(term), vote: None }), ..Write::default() });
        });
    });
}

fn read(c: &mut Criterion) {
    let (_, place) = places().swap_remove(0);
    let dir = place.path().join("store");
    Store::create(&dir, DID, &SecretKey::generate(&[1; 32])).expect("a fresh directory");
    let (store, _) = Store::open(&dir).expect("it was just made");
    let (tell, durable) = channel();
    let committer = store.start(move |answer| tell.send(answer.expect("the disk works")).unwrap_or_default());
    let entries: Vec<_> = (1..=20_000).map(|i| entry(i, 256)).collect();
    let mut seq = 0;
    for part in entries.chunks(128) {
        seq += 1;
        committer.submit(seq, Write { entries: part.to_vec(), ..Write::default() }).expect("the committer runs");
    }
    while durable.recv().expect("an answer") < seq {}
    store.archive(&entries).expect("in order");
    let mut at = 0;
    let mut next = || {
        at = (at + 7919) % 20_000;
        at
    };
    c.bench_function("read/entry", |b| b.iter(|| store.entry(LogIndex(next() + 1)).expect("it is there")));
    c.bench_function("read/inclusion_path", |b| b.iter(|| store.inclusion_path(next(), 20_000).expect("it is there")));
    assert_ne!(store.root_at(20_000).expect("archived"), Digest::ZERO);
}

criterion_group!(benches, commit, vote, read);
criterion_main!(benches);
