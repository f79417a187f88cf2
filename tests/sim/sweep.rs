//! Random schedules of faults, a seed each; after them everything heals, and liveness is demanded.
//!
//! `SIM_SEEDS=N SIM_FROM=K cargo test --release --test sim sweep -- --nocapture` runs N seeds from K on;
//! `SIM_SEED=S cargo test --release --test sim sweep::replay -- --nocapture` runs one.

use crate::churn;
use crate::coverage::Coverage;
use crate::net::Network;
use crate::reads::ReadState;
use crate::rng::Rng;
use crate::trace::MESSAGE_NAMES;
use crate::world::{Config, World};
use concordat::certificate::{Policy, QuorumRule};

/// Faults rage for so long, virtual milliseconds.
const STORM_MS: u64 = 20_000;
/// After which, once healed, everything pending must be resolved within so long.
const CALM_MS: u64 = 10_000;
const SEEDS: u64 = 150;

struct Report {
    hash: u64,
    events: u64,
    elections: u64,
    committed: u64,
    virtual_ms: u64,
    coverage: Coverage,
}

fn config(seed: u64) -> Config {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let nodes = [3, 3, 5, 5, 5, 4, 7][rng.below(7)];
    let mut config = Config::new(nodes, seed);
    // Some clusters keep their members, the others change them all the time.
    config.spares = if rng.chance(600) { rng.below(10 - nodes) } else { 0 };
    config.churn = if rng.chance(600) { rng.within((5, 60)) } else { 0 };
    if rng.chance(200) {
        config.rule = QuorumRule::Supermajority;
    }
    if rng.chance(300) {
        // Members that answer by a rule, so that every proposal is balloted.
        for policy in &mut config.policies {
            *policy = [Policy::Rules, Policy::Rules, Policy::Manual, Policy::Auto][rng.below(4)];
        }
    }
    let far = rng.chance(300);
    config.network = Network {
        delay_us: if far { (2_000, 40_000) } else { (200, 5_000) },
        loss: rng.within((0, 80)),
        duplicate: rng.within((0, 80)),
        straggle: rng.within((0, 50)),
    };
    config.disk_us = if rng.chance(300) { (1_000, 40_000) } else { (100, 3_000) };
    config.batch = rng.within((0, 500));
    config.applications = true;
    config.skew_ms = (0..nodes + config.spares).map(|_| rng.within((0, 200)) as i64 - 100).collect();
    // Stragglers take up to two seconds: clocks are compared through that.
    config.options.max_clock_difference_ms = 2_500;
    config
}

fn storm(world: &mut World, ms: u64) {
    let end = world.now + ms * 1000;
    let mut named = 0_u64;
    // Per mille of the steps, about thirty a second, that bring a fault or its end.
    let rage = world.rng.within((40, 250));
    while world.now < end {
        let gap = world.rng.within((1, 60));
        world.run(gap);
        if world.open_calls() < 64 {
            named += 1;
            begin_call(world, named);
        }
        if world.rng.chance(rage) {
            fault(world);
        }
        if world.rng.chance(100) {
            read_somewhere(world);
        }
        if world.rng.chance(world.config.churn) {
            churn::step(world);
        }
        if world.rng.chance(10) {
            hand_over(world);
        }
    }
}

fn read_somewhere(world: &mut World) {
    let node = world.rng.below(world.size());
    if world.is_up(node) {
        world.read(node);
    }
}

fn hand_over(world: &mut World) {
    let node = world.leader().filter(|_| world.rng.chance(900));
    let node = node.unwrap_or_else(|| world.rng.below(world.size()));
    let to = world.rng.below(world.size());
    if world.is_up(node) {
        let named = world.rng.chance(700);
        world.transfer(node, named.then_some(to));
    }
}

fn begin_call(world: &mut World, named: u64) {
    let payload = match world.rng.below(6) {
        // Denied by rule and by applications.
        0 => format!("{{\"op\":\"deregister\",\"agent_id\":\"{named}\"}}"),
        // Never answered by applications.
        1 => format!("\"?{named}\""),
        _ => format!("\"+{named}\""),
    };
    let mut submission = world.submission(&named.to_string(), payload.as_bytes());
    submission.ttl_ms = world.rng.within((200, 3_000));
    if world.rng.chance(60) {
        let most = u16::try_from(world.size()).expect("few");
        submission.required_quorum = Some(most);
    } else if world.rng.chance(20) {
        submission.required_quorum = Some(0);
    }
    if world.rng.chance(20) && named > 1 {
        submission.request.request_id = world.rng.within((1, named - 1)).to_string();
    }
    world.start_call(submission);
}

fn fault(world: &mut World) {
    let (n, other) = (world.rng.below(world.size()), world.rng.below(world.size()));
    match world.rng.below(18) {
        0 | 1 => {
            let side: Vec<usize> = (0..world.size()).filter(|_| world.rng.chance(500)).collect();
            let rest: Vec<usize> = (0..world.size()).filter(|n| !side.contains(n)).collect();
            if !side.is_empty() && !rest.is_empty() {
                world.coverage.count("fault", "partition");
                world.partition(&side, &rest);
            }
        }
        2 if n != other => {
            world.coverage.count("fault", "one-way link");
            world.mute(n, other);
        }
        3 => {
            world.coverage.count("fault", "node muted one way");
            for to in (0..world.size()).filter(|t| *t != n) {
                world.mute(n, to);
            }
        }
        4..=7 => world.heal(),
        8 | 9 => {
            // Leaders make for the more interesting crashes.
            let victim = world.leader().filter(|_| world.rng.chance(600)).unwrap_or(n);
            if world.is_up(victim) {
                world.crash(victim);
            }
        }
        10 | 11 => {
            for down in (0..world.size()).filter(|n| !world.is_up(*n)).collect::<Vec<_>>() {
                world.start(down);
            }
        }
        17 if world.config.churn > 0 && world.can_lose(n) => {
            world.lose_disk(n);
            if world.rng.chance(500) {
                world.start(n);
            }
        }
        12 => {
            if world.is_up(n) {
                world.coverage.count("fault", "crash and restart at once");
                world.crash(n);
                world.start(n);
            }
        }
        13 => {
            world.coverage.count("fault", "disk stalled");
            world.stall(n);
        }
        14 => {
            world.coverage.count("fault", "clock jumped");
            let jump = world.rng.within((0, 10_000)) as i64 - 5_000;
            world.nodes[n].skew_ms = jump;
            world.note(n, format!("the clock is off by {jump} ms"));
        }
        _ => (0..world.size()).for_each(|n| world.unstall(n)),
    }
}

fn calm(world: &mut World) {
    world.heal();
    world.config.network = Network::FAST;
    world.config.disk_us = (100, 1_500);
    for node in 0..world.size() {
        world.nodes[node].skew_ms = 0;
        world.unstall(node);
        if !world.is_up(node) {
            world.start(node);
        }
    }
    churn::settle(world);
    let lively = world.run_while_not(CALM_MS, |w| w.open_calls() == 0 && w.converged());
    let (open, standings) = (world.open_calls(), world.standings());
    assert!(lively, "after healing, {open} calls are open and converged = {}\n{standings}", world.converged());
    reads_are_answered(world);
    world.changes_are_true();
    world.chain_verifies();
    let verdict = world.invariants.outcomes.all_true(&world.invariants.committed.ledger);
    world.demand(verdict);
    for node in 0..world.size() {
        assert_eq!(world.nodes[node].halted, None);
        assert_eq!(world.nodes[node].machine.repeats, 0);
    }
    let all = &world.invariants.committed.ledger;
    assert!(all.links().windows(2).all(|w| w[0].entry.header.proposed_at <= w[1].entry.header.proposed_at));
}

/// In a healthy cluster a read is confirmed soon, wherever it begins, and nothing is left over of older ones.
fn reads_are_answered(world: &mut World) {
    let from = world.reads.len();
    for node in world.members() {
        world.read(node);
    }
    let served = |w: &World| w.reads[from..].iter().all(|r| r.state == ReadState::Served);
    assert!(world.run_while_not(1_000, served), "{:?}", &world.reads[from..]);
}

fn run(seed: u64) -> Report {
    run_in(config(seed), STORM_MS)
}

fn run_in(config: Config, storm_ms: u64) -> Report {
    let mut world = World::new(config);
    storm(&mut world, storm_ms);
    calm(&mut world);
    Report {
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

#[test]
fn sweep() {
    let (from, seeds) = (from_env("SIM_FROM").unwrap_or(0), from_env("SIM_SEEDS").unwrap_or(SEEDS));
    #[expect(clippy::disallowed_methods, reason = "tells the speed of the simulator")]
    let began = std::time::Instant::now();
    let (mut all, mut events, mut elections, mut committed, mut virtual_ms) = (Coverage::default(), 0, 0, 0, 0);
    for seed in from..from + seeds {
        let report = run(seed);
        all.add(&report.coverage);
        events += report.events;
        elections += report.elections;
        committed += report.committed;
        virtual_ms += report.virtual_ms;
    }
    let wall = began.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds from {from}: {} virtual s in {wall:.1} s ({:.0} x real time), {events} events, {elections} terms with a leader, {committed} entries committed\n{all}",
        virtual_ms / 1000,
        virtual_ms as f64 / 1000.0 / wall,
    );
    if seeds >= SEEDS {
        every_kind_occurred(&all);
    }
}

fn every_kind_occurred(all: &Coverage) {
    let faults = [
        "clock jumped",
        "crash",
        "crash that lost writes",
        "crash after untold writes",
        "crash and restart at once",
        "disk lost",
        "disk stalled",
        "message cut off by a partition",
        "message delayed past others",
        "message duplicated",
        "message lost",
        "message to a stopped node",
        "node muted one way",
        "one-way link",
        "partition",
        "stranger turned away",
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
    let reads = ["begun", "confirmed", "refused", "served"];
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
        .chain(transfers.map(|t| ("transfer", t)))
        .chain(reads.map(|r| ("read", r)));
    for (kind, what) in kinds {
        assert!(all.of(kind, what) > 0, "{kind} never occurred: {what}");
    }
}

#[test]
fn clusters_with_real_signatures_survive_a_storm() {
    for seed in 0..3 {
        let report = run_in(Config { real_crypto: true, ..config(seed) }, 1_000);
        assert!(report.coverage.of("event", "certificate taken over") > 0);
    }
}

#[test]
fn a_seed_replays_byte_for_byte() {
    let (one, two, other) = (run(7), run(7), run(8));
    assert_eq!((one.hash, one.events), (two.hash, two.events));
    assert_ne!(one.hash, other.hash);
}

#[test]
fn replay() {
    let report = run(from_env("SIM_SEED").unwrap_or(0));
    println!(
        "trace hash {:016x}, {} events, {} terms with a leader, {} entries committed, {} virtual ms\n{}",
        report.hash, report.events, report.elections, report.committed, report.virtual_ms, report.coverage
    );
}
