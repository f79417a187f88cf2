//! Random schedules of faults, a seed each; after them everything heals, and liveness is demanded. See README.md.

use crate::coverage::Coverage;
use crate::storm::{calm, config, storm};
use crate::trace::MESSAGE_NAMES;
use crate::world::{Config, World};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Faults rage for so long, virtual milliseconds.
const STORM_MS: u64 = 60_000;
/// The gate's slice.
const SEEDS: u64 = 60;
/// Storms with real signatures, where a pairing costs a millisecond.
const REAL_STORM_MS: u64 = 4_000;
/// Failing seeds after which a sweep is given up.
const ENOUGH: usize = 20;
/// Between two lines of progress, seconds.
const PROGRESS_S: u64 = 20;

#[derive(Clone, Default)]
struct Report {
    seeds: u64,
    hash: u64,
    events: u64,
    elections: u64,
    committed: u64,
    virtual_ms: u64,
    coverage: Coverage,
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.elections += other.elections;
        self.committed += other.committed;
        self.virtual_ms += other.virtual_ms;
        self.coverage.add(&other.coverage);
    }

    fn line(&self, wall_s: f64) -> String {
        let virtual_s = self.virtual_ms as f64 / 1000.0;
        format!(
            "{} seeds: {virtual_s:.0} virtual s in {wall_s:.1} s ({:.0} x real time), {} events, {} terms with a leader, {} entries committed",
            self.seeds,
            virtual_s / wall_s,
            self.events,
            self.elections,
            self.committed
        )
    }
}

fn run(config: Config, storm_ms: u64) -> Report {
    let mut world = World::new(config);
    storm(&mut world, storm_ms);
    calm(&mut world);
    Report {
        seeds: 1,
        hash: world.trace.hash(),
        events: world.trace.events,
        elections: world.invariants.elections.elections(),
        committed: world.invariants.committed.ledger.last().0,
        virtual_ms: world.now / 1000,
        coverage: world.coverage.clone(),
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().expect("a number"))
}

/// What a seed means here: by the environment with real signatures, and with storms of another length.
fn planned(seed: u64, told: bool) -> (Config, u64) {
    let real_crypto = from_env("SIM_REAL").is_some_and(|n| n > 0);
    let config = Config { real_crypto, told, ..config(seed) };
    (config, from_env("SIM_MS").unwrap_or(if real_crypto { REAL_STORM_MS } else { STORM_MS }))
}

fn run_planned(seed: u64, told: bool) -> Report {
    let (config, ms) = planned(seed, told);
    run(config, ms)
}

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("?").lines().next().unwrap_or_default().to_owned()
}

/// Runs seeds on so many threads, with progress on the standard error; returns what they came to and which of them
/// failed, with why.
fn run_all(from: u64, seeds: u64, threads: u64) -> (Report, Vec<(u64, String)>, f64) {
    #[expect(clippy::disallowed_methods, reason = "tells the speed of the simulator")]
    let began = std::time::Instant::now();
    let next = AtomicU64::new(from);
    let so_far = Mutex::new((Report::default(), Vec::new(), PROGRESS_S));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                return;
            }
            let report = catch_unwind(AssertUnwindSafe(|| run_planned(seed, false)));
            let mut so_far = so_far.lock().unwrap_or_else(PoisonError::into_inner);
            let (all, failed, progress_due) = &mut *so_far;
            match report {
                Ok(report) => all.add(&report),
                Err(panic) => failed.push((seed, reason(&*panic))),
            }
            if failed.len() >= ENOUGH {
                return;
            }
            let elapsed = began.elapsed();
            if elapsed.as_secs() >= *progress_due {
                *progress_due = elapsed.as_secs() + PROGRESS_S;
                eprintln!("{} failed; of {seeds} {}", failed.len(), all.line(elapsed.as_secs_f64()));
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (all, failed, _) = so_far.into_inner().unwrap_or_else(PoisonError::into_inner);
    (all, failed, began.elapsed().as_secs_f64())
}

#[test]
fn sweep() {
    let (from, seeds) = (from_env("SIM_FROM").unwrap_or(0), from_env("SIM_SEEDS").unwrap_or(SEEDS));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let threads = from_env("SIM_THREADS").unwrap_or(cores);
    let (all, failed, wall) = run_all(from, seeds, threads);
    println!("from {from} on {threads} threads, {}\n{}", all.line(wall), all.coverage);
    for (seed, why) in &failed {
        println!("seed {seed} failed: {why}");
    }
    if let Some((seed, _)) = failed.first() {
        println!("seed {seed} once more, with its trace:");
        let again = catch_unwind(|| run_planned(*seed, true));
        resume_unwind(again.err().unwrap_or_else(|| Box::new("the second run of this seed went otherwise")));
    }
    // A few seeds need not have seen everything.
    if seeds >= SEEDS && from_env("SIM_REAL").is_none() && from_env("SIM_MS").is_none() {
        every_kind_occurred(&all.coverage, seeds);
    }
}

fn every_kind_occurred(all: &Coverage, seeds: u64) {
    let faults = [
        "clock jumped",
        "crash",
        "crash after untold writes",
        "crash and restart at once",
        "crash between two effects",
        "crash that lost writes",
        "crash that tore a write",
        "disk lost",
        "disk stalled",
        "event met a paused node",
        "fsync failed",
        "link flapped",
        "message cut off by a partition",
        "message delayed past others",
        "message duplicated",
        "message lost",
        "message to a stopped node",
        "node muted one way",
        "node paused",
        "one-way link",
        "partial partition",
        "partition",
        "partition one way",
        "rot found when it was read",
        "rot found when the store was opened",
        "store behind its watermark",
        "stranger turned away",
        "torn write dropped by its checksum",
        "write refused by a full disk",
        "write to a slow disk",
    ];
    let frames = ["Submit", "Submitted"];
    let proposals = ["aborted", "committed", "expired"];
    let clients = ["refused", "repeat of an applied request", "sent away", "told that it was taken"];
    let votes = ["durable", "refused"];
    let admissions =
        ["appended", "balloted", "duplicate", "request id reused", "not leader", "invalid quorum", "transferring"];
    let events = [
        "answers on record looked up",
        "entries read back for a lagging peer",
        "certificate taken over",
        "key retired",
        "leader stepped down",
        "node asked to close",
        "node stopped by itself",
        "proofs of membership changes fetched",
        "table in force",
    ];
    let asked = ["add", "demote", "foolish", "policy", "promote", "readmit", "remove", "replace", "rotate"];
    let changes = [
        "expired",
        "in flight",
        "interrupted",
        "made",
        "no quorum",
        "not caught up",
        "not leader",
        "not settled",
        "old key",
        "stale",
        "transferring",
        "unchanged",
    ];
    let transfers = ["done", "no target", "not leader", "replaced", "timed out"];
    let snapshots =
        ["asked for one that is gone", "entries pruned", "fetched", "fetching resumed", "installed", "taken"];
    let reads = ["begun", "confirmed", "refused", "served"];
    let registry = ["conflict", "no effect", "read", "set"];
    let kinds = (faults.map(|f| ("fault", f)).into_iter())
        .chain(MESSAGE_NAMES.map(|m| ("message", m)))
        .chain(frames.map(|f| ("frame", f)))
        .chain(proposals.map(|p| ("proposal", p)))
        .chain(clients.map(|c| ("client", c)))
        .chain(votes.map(|v| ("vote", v)))
        .chain(admissions.map(|a| ("admission", a)))
        .chain(events.map(|e| ("event", e)))
        .chain(asked.map(|a| ("change asked", a)))
        .chain(changes.map(|c| ("change", c)))
        .chain(snapshots.map(|s| ("snapshot", s)))
        .chain(transfers.map(|t| ("transfer", t)))
        .chain(reads.map(|r| ("read", r)))
        .chain(registry.map(|r| ("registry", r)));
    // Seldom: a leader that still has the entries takes over while they are being fetched.
    let seldom = [("snapshot", "fetching abandoned")].into_iter().filter(|_| seeds >= 1_000);
    for (kind, what) in kinds.chain(seldom) {
        assert!(all.of(kind, what) > 0, "{kind} never occurred: {what}");
    }
}

/// A few seconds each; fifty seeds by the command in README.md.
#[test]
fn clusters_with_real_signatures_survive_a_storm() {
    let mut coverage = Coverage::default();
    for seed in 0..3 {
        let churn = 60;
        let report = run(Config { real_crypto: true, churn, ..config(seed) }, 2_000);
        assert!(report.coverage.of("event", "certificate taken over") > 0);
        coverage.add(&report.coverage);
    }
    for what in ["verified", "under a head of a joint phase"] {
        assert!(coverage.of("receipt", what) > 0, "{what}\n{coverage}");
    }
}

#[test]
fn a_seed_replays_byte_for_byte() {
    let run = |seed, told| run(Config { told, ..config(seed) }, 20_000);
    let (one, two, other) = (run(7, true), run(7, false), run(8, false));
    assert_eq!((one.hash, one.events), (two.hash, two.events));
    assert_ne!(one.hash, other.hash);
}

#[test]
fn replay() {
    let Some(seed) = from_env("SIM_SEED") else { return };
    let report = run_planned(seed, true);
    println!(
        "trace hash {:016x}, {} virtual ms, {}\n{}",
        report.hash,
        report.virtual_ms,
        report.line(1.0),
        report.coverage
    );
}
