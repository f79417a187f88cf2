//! A long log on one node's store: filling it, opening it, receipts from it, compacting it while it goes on, and what all
//! that takes in memory and on the disk. Each part runs in a process of its own, so that memory is its own.
//!
//! `LONG_ENTRIES` (default 1,000,000), of 256 bytes each; a head certificate over every thousand.

mod support;

use concordat::certificate::merkle::{Frontier, leaf_hash};
use concordat::certificate::{Bitmap, Half, Head, HeadCertificate, Signature, SnapshotManifest};
use concordat::core::{HardState, Write};
use concordat::ids::{Digest, Epoch, LogIndex, Term};
use concordat::limits::SNAPSHOT_CHUNK;
use concordat::storage::Store;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Log, entries, entry, quantile, timed};

const SIZE: usize = 256;
const GROUP: u64 = 128;
const CERTIFY: u64 = 1000;
/// Entries that compaction leaves.
const RETAIN: u64 = 100_000;
/// Receipts looked up.
const RECEIPTS: u64 = 20_000;
const IMAGE: usize = 64 * 1024 * 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let total: u64 =
        std::env::var("LONG_ENTRIES").ok().map_or(1_000_000, |s| s.parse().expect("LONG_ENTRIES is a number"));
    assert!(total > 2 * RETAIN && total.is_multiple_of(CERTIFY), "LONG_ENTRIES: thousands, more than {}", 2 * RETAIN);
    if let [_, part, dir, ..] = &arguments[..]
        && let Some((_, run)) = PARTS.iter().find(|(name, _)| name == part)
    {
        return run(Path::new(dir), total);
    }
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ is writable");
    let dir = place.path().join("store");
    println!("{total} entries of {SIZE} bytes");
    for part in ["fill", "open", "compact", "open"] {
        let me = std::env::current_exe().expect("this program");
        let (done, took) = timed(|| Command::new(me).arg(part).arg(&dir).status().expect("it runs"));
        assert!(done.success(), "{part} failed");
        println!("{part}: {:.1} s in all, {} on disk", took.as_secs_f64(), mib(size_of(&dir)));
    }
}

type Part = (&'static str, fn(&Path, u64));

const PARTS: [Part; 3] = [("fill", fill), ("open", open), ("compact", compact)];

/// A certificate with made-up signatures, which a store does not verify.
fn certificate(tree: &Frontier) -> Arc<HeadCertificate> {
    let half = Half {
        epoch: Epoch(0),
        epoch_hash: Digest([1; 32]),
        signers: Bitmap::of(5, [0, 1, 2]),
        aggregate: Signature([7; 96]),
    };
    Arc::new(HeadCertificate { head: Head { term: Term(1), size: tree.size(), root: tree.root() }, halves: vec![half] })
}

/// What goes on at the end of a log.
struct Writer {
    log: Log,
    tree: Frontier,
    next: u64,
}

impl Writer {
    fn group(&mut self, count: u64) -> Write {
        let entries = entries(self.next, count, SIZE);
        self.next += count;
        entries.iter().for_each(|e| self.tree.push(e.header.leaf_hash()));
        let due = self.tree.size().is_multiple_of(CERTIFY);
        Write { certificate: due.then(|| certificate(&self.tree)), entries, ..Write::default() }
    }
}

fn fill(dir: &Path, total: u64) {
    let mut writer = Writer { log: Log::create(dir), tree: Frontier::default(), next: 1 };
    let hard = HardState { term: Term(1), vote: None };
    writer.log.commit(Write { hard: Some(hard), ..Write::default() });
    let ((), took) = timed(|| {
        while writer.next <= total {
            let upto = writer.next.next_multiple_of(CERTIFY);
            let count = GROUP.min(upto + 1 - writer.next).min(CERTIFY);
            let write = writer.group(count);
            let entries = write.entries.clone();
            if writer.log.submit(write) > 64 {
                writer.log.wait(32);
            }
            writer.log.store.archive(&entries).expect("in order");
        }
        writer.log.wait(0);
    });
    println!(
        "  filled at {:.0} entries/s, durable, with tree and index; peak memory {}",
        total as f64 / took.as_secs_f64(),
        peak()
    );
}

fn open(dir: &Path, _: u64) {
    let ((store, found), took) = timed(|| Store::open(dir).expect("a sound store"));
    println!(
        "  opened and checked in {:.2} s: {} entries in the log, {} below; peak memory {}, at rest {}",
        took.as_secs_f64(),
        found.report.entries,
        found.report.base,
        peak(),
        resident()
    );
    let last = store.latest_certificate().expect("certified").head.size;
    drop(found);
    // As every start of a node does.
    let (_, took) = timed(|| {
        while store.archived() < last {
            let from = LogIndex(store.archived()).next();
            store.archive(&store.read(from, LogIndex(last), 1 << 20).expect("it reads")).expect("in order");
        }
    });
    println!("  indexed in {:.2} s; at rest {}", took.as_secs_f64(), resident());
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for times in [&mut cold, &mut warm] {
        for n in 0..RECEIPTS {
            let index = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % last + 1;
            times.push(timed(|| receipt(&store, LogIndex(index))).1);
        }
    }
    for (name, times) in [("first", &mut cold), ("again", &mut warm)] {
        println!(
            "  receipts, {name}: p50 {}, p99 {}, longest {}; at rest {}",
            us(quantile(times, 0.5)),
            us(quantile(times, 0.99)),
            us(quantile(times, 1.0)),
            resident()
        );
    }
}

/// All that a receipt is made of.
fn receipt(store: &Store, index: LogIndex) {
    let (header, _) = store.record(index).expect("it reads").expect("it is there");
    let head = store.certificate_covering(index).expect("it reads").expect("certified").head;
    store.header(LogIndex(head.size)).expect("it reads").expect("it is there");
    let path = store.inclusion_path(index.0 - 1, head.size).expect("it reads");
    let last = store.inclusion_path(head.size - 1, head.size).expect("it reads");
    assert!(header.index == index && path.len() + last.len() > 0);
}

fn compact(dir: &Path, total: u64) {
    let mut writer = Writer { log: Log::open(dir), tree: Frontier::default(), next: total + 1 };
    let store = writer.log.store.clone();
    (1..=total)
        .for_each(|i| writer.tree.push(store.header(LogIndex(i)).expect("it reads").expect("it is there").leaf_hash()));
    take(&store, total);
    println!("  with an image of {}: at rest {}", mib(IMAGE as u64), resident());
    let mut alone = pace(&mut writer, |rounds| rounds < 500);
    let over = AtomicBool::new(false);
    let (mut beside, took) = std::thread::scope(|scope| {
        let compacting = scope.spawn(|| {
            let ((), took) = timed(|| while store.compact(LogIndex(total - RETAIN)).expect("it works").more {});
            over.store(true, Ordering::Release);
            took
        });
        let beside = pace(&mut writer, |_| !over.load(Ordering::Acquire));
        (beside, compacting.join().expect("it works"))
    });
    println!("  compacted to {} in {:.1} s; peak memory {}", store.base(), took.as_secs_f64(), peak());
    for (name, times) in [("alone", &mut alone), ("beside compaction", &mut beside)] {
        println!(
            "  groups of 16 committed {name}: {}, p50 {}, p99 {}, longest {}",
            times.len(),
            us(quantile(times, 0.5)),
            us(quantile(times, 0.99)),
            us(quantile(times, 1.0))
        );
    }
}

/// Commits groups one after another.
fn pace(writer: &mut Writer, mut go: impl FnMut(usize) -> bool) -> Vec<Duration> {
    let mut times = Vec::new();
    while go(times.len()) {
        let write = writer.group(16);
        let entries = write.entries.clone();
        times.push(timed(|| writer.log.commit(write)).1);
        writer.log.store.archive(&entries).expect("in order");
    }
    times
}

fn take(store: &Store, index: u64) {
    let last = &entry(index, SIZE).header;
    let bytes: Vec<u8> = (0..IMAGE as u64).map(|i| (i * 31 + i / 251) as u8).collect();
    let mut over = Frontier::default();
    bytes.chunks(SNAPSHOT_CHUNK).for_each(|c| over.push(leaf_hash(c)));
    let manifest = SnapshotManifest {
        index: last.index,
        term: last.term,
        epoch: last.epoch,
        proposed_at: last.proposed_at,
        root: store.root_at(index).expect("archived"),
        state: Digest([5; 32]),
        bytes: IMAGE as u64,
        chunks_root: over.root(),
    };
    store.stage(&manifest).expect("staged");
    for (number, chunk) in (0..).zip(bytes.chunks(SNAPSHOT_CHUNK)) {
        store.put_chunk(&manifest, number, chunk).expect("kept");
    }
    store.complete(&manifest).expect("complete");
}

fn us(d: Duration) -> String {
    format!("{:.0} µs", d.as_secs_f64() * 1e6)
}

fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

fn memory(field: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap_or("unknown");
    line.trim().trim_end_matches(" kB").parse().map_or_else(|_| line.to_owned(), |kib: u64| mib(kib * 1024))
}

fn peak() -> String {
    memory("VmHWM:")
}

fn resident() -> String {
    memory("VmRSS:")
}

fn size_of(dir: &Path) -> u64 {
    let of = |e: std::fs::DirEntry| {
        let meta = e.metadata().expect("it is there");
        if meta.is_dir() { size_of(&e.path()) } else { meta.len() }
    };
    std::fs::read_dir(dir).expect("a directory").map(|e| of(e.expect("it reads"))).sum()
}
