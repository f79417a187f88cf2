//! The auditors' index over a long log: what it costs to build, to keep and to ask.
//!
//! `SEARCH_ENTRIES` (1,000,000 when absent) entries of real shape are archived in batches as a node does it: each of its
//! own request, every fourth with a ballot of five, 10,000 agents in all, three origins. Then the store is opened again,
//! and each kind of word is looked up 10,000 times, at random, over the whole log.

use concordat::certificate::{
    Bitmap, Body, Entry, Header, Kind, Request, SecretKey, Signature, Tally, TallySide, payload_hash,
};
use concordat::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use concordat::registry::Key;
use concordat::storage::{STORE_DIR, Store, Word};
use std::sync::Arc;
use std::time::Duration;

const AGENTS: u64 = 10_000;
const BATCH: u64 = 1024;
const LOOKUPS: usize = 10_000;

/// Numbers that are the same in every run.
fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb)
}

fn request(index: u64) -> Request {
    Request { client: "bench".into(), request_id: format!("r{index}"), deadline_ms: 86_400_000 + index }
}

fn agent(n: u64) -> String {
    format!("agent-{}", n % AGENTS)
}

fn side(members: impl IntoIterator<Item = usize>) -> TallySide {
    let members = Bitmap::of(5, members);
    let aggregate = (members.count() > 0).then_some(Signature([7; 96]));
    TallySide { members, aggregate }
}

fn entry(index: u64) -> Arc<Entry> {
    let salt = [3; 16];
    let payload = format!(r#"{{"op":"set_status","agent_id":"{}","status":"busy"}}"#, agent(mix(index))).into_bytes();
    let voted = || Tally {
        grants: side((0..5).filter(|v| !mix(index + v).is_multiple_of(4)).map(|v| v as usize)),
        denials: side([]),
    };
    let header = Header {
        index: LogIndex(index),
        term: Term(1),
        epoch: Epoch(0),
        kind: Kind::Proposal,
        proposal_id: Some(ProposalId { term: Term(1), seq: index, origin: NodeId([(mix(index) % 3) as u8; 32]) }),
        request_digest: request(index).digest(),
        proposed_at: index,
        required_quorum: 1,
        abort_reason: None,
        tally: index.is_multiple_of(4).then(voted),
        payload_len: payload.len() as u32,
        payload_hash: payload_hash(&salt, &payload),
    };
    Arc::new(Entry::new(header, Body { salt, request: Some(request(index)), payload }).expect("made to match"))
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let done = work();
    (done, start.elapsed())
}

fn percentiles(what: &str, mut times: Vec<Duration>, reads: usize) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 1000];
    let per = reads as f64 / times.len() as f64;
    println!("{what:32} p50 {:>9.1?}  p99 {:>9.1?}  p99.9 {:>9.1?}  {per:.1} rows read", at(500), at(990), at(999));
}

fn look_up(store: &Store, size: u64, what: &str, word: impl Fn(u64) -> Word, all: bool) {
    let (mut times, mut reads) = (Vec::with_capacity(LOOKUPS), 0);
    for n in 0..LOOKUPS as u64 {
        let word = word(mix(n * 7919 + 1));
        let (rows, time) = timed(|| {
            let mut lookup = store.lookup(&word, LogIndex(1), LogIndex(size));
            let (mut at, mut found) = (LogIndex(1), 0);
            while let Some(next) = lookup.next_from(at).expect("the index reads") {
                (at, found) = (next.last.next(), found + 1);
                if !all || found == 100 {
                    break;
                }
            }
            lookup.reads()
        });
        times.push(time);
        reads += rows;
    }
    percentiles(what, times, reads);
}

/// Bytes of all records of a tree.
fn stored(dir: &std::path::Path, tree: &str) -> (u64, u64) {
    let db = sled::Config::new().path(dir).segment_size(8 << 20).open().expect("the store is closed");
    let rows = db.open_tree(tree).expect("it is there").iter().map(|row| row.expect("it reads"));
    rows.fold((0, 0), |(count, bytes), (key, value)| (count + 1, bytes + (key.len() + value.len()) as u64))
}

fn main() {
    // `cargo test --benches` asks for nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let size: u64 = std::env::var("SEARCH_ENTRIES").map_or(1_000_000, |n| n.parse().expect("a number"));
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ is writable");
    let dir = place.path().join(STORE_DIR);
    Store::create(&dir, NodeId([7; 32]), &SecretKey::generate(&[1; 32])).expect("a fresh directory");
    let (store, _) = Store::open(&dir).expect("it was just made");
    let (mut spent, mut batches) = (Duration::ZERO, Vec::new());
    for first in (1..=size).step_by(BATCH as usize) {
        let entries: Vec<_> = (first..=size.min(first + BATCH - 1)).map(entry).collect();
        let ((), time) = timed(|| store.archive(&entries).expect("in order"));
        spent += time;
        batches.push(time);
    }
    println!(
        "{size} entries archived: {:.2} µs each, tree hashes and headers included",
        spent.as_micros() as f64 / size as f64
    );
    percentiles("a batch of 1,024", batches, 0);
    let last = |n: u64| n % size + 1;
    look_up(&store, size, "a request", |n| Word::Request(request(last(n)).key()), false);
    look_up(&store, size, "an unknown request", |n| Word::Request(request(size + 1 + n % size).key()), false);
    look_up(&store, size, "all entries of an agent (to 100)", |n| Word::Key(Key::Agent(agent(n))), true);
    look_up(&store, size, "100 entries of an origin", |n| Word::Origin(NodeId([(n % 3) as u8; 32])), true);
    look_up(&store, size, "100 entries that a voter granted", |n| Word::Granted(Epoch(0), (n % 5) as u8), true);
    look_up(&store, size, "a word of no entry", |_| Word::Key(Key::Config("none".into())), false);
    assert_ne!(store.root_at(size).expect("archived"), Digest::ZERO);
    drop(store);
    for tree in ["postings", "headers", "tiles"] {
        let (rows, bytes) = stored(&dir, tree);
        println!("{tree:9} {rows:>9} records, {:.1} bytes per entry", bytes as f64 / size as f64);
    }
}
