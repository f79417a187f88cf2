//! A storm: random calls, reads, changes and faults; and the calm after it, in which liveness is demanded.

use crate::churn;
use crate::disk::Rot;
use crate::net::Network;
use crate::reads::ReadState;
use crate::rng::Rng;
use crate::world::{Config, World};
use concordat::certificate::{Policy, QuorumRule};
use concordat::ids::LogIndex;
use concordat::node::executor::{self, SnapshotSettings};

/// Once everything healed, all that is pending must be resolved within so long, virtual milliseconds.
const CALM_MS: u64 = 10_000;
/// A storm's last faults take effect for so long, virtual milliseconds.
const LAST_EFFECTS_MS: u64 = 4_000;
/// Config keys that clients write and read.
const KEYS: usize = 6;

pub(crate) fn config(seed: u64) -> Config {
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
    if rng.chance(700) {
        config.snapshots = SnapshotSettings { every: Some(rng.within((20, 200))), retain: rng.within((0, 60)) };
        config.image_us = if rng.chance(300) { (100_000, 3_000_000) } else { (500, 20_000) };
        config.options.snapshot_bytes_per_s = rng.within((500_000, 5_000_000));
    }
    config.batch = rng.within((0, 500));
    config.applications = true;
    config.skew_ms = (0..nodes + config.spares).map(|_| rng.within((0, 200)) as i64 - 100).collect();
    config.drift = (0..nodes + config.spares).map(|_| rng.within((0, 20)) as i64 - 10).collect();
    // Stragglers take up to two seconds: clocks are compared through that.
    config.options.max_clock_difference_ms = 2_500;
    config
}

pub(crate) fn storm(world: &mut World, ms: u64) {
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
        if world.rng.chance(150) {
            read_somewhere(world);
        }
        if world.rng.chance(world.config.churn) {
            churn::step(world);
        }
        if world.rng.chance(10) {
            hand_over(world);
        }
        if world.rng.chance(3) {
            mark_somewhere(world);
        }
    }
}

fn read_somewhere(world: &mut World) {
    let node = world.rng.below(world.size());
    if world.is_up(node) {
        let key = world.rng.below(KEYS);
        world.read_config(node, key);
    }
}

fn mark_somewhere(world: &mut World) {
    let node = world.rng.below(world.size());
    if world.is_up(node) {
        // Whatever it says: most of them do not lead.
        drop(world.mark(node));
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
    let name = named.to_string();
    if world.rng.chance(250) {
        let key = world.rng.below(KEYS);
        // Under ids that nobody uses for anything else: whoever does may be told so though the first has an effect yet.
        world.start_write(key, &format!("w{name}"));
        return;
    }
    let payload = match world.rng.below(6) {
        // Denied by rule and by applications.
        0 => format!("{{\"op\":\"deregister\",\"agent_id\":\"{named}\"}}"),
        // Never answered by applications.
        1 => format!("\"?{named}\""),
        // So that images have several chunks.
        2 if world.rng.chance(100) => {
            let (key, bytes) = (named % 16, world.rng.below(60_000));
            format!("{{\"op\":\"set_config\",\"key\":\"big {key}\",\"value\":\"{}\"}}", "x".repeat(bytes))
        }
        _ => format!("\"+{named}\""),
    };
    let mut submission = world.submission(&name, payload.as_bytes());
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
    match world.rng.below(20) {
        0..=4 => link_fault(world),
        5..=7 => world.heal(),
        8..=11 => node_fault(world),
        12..=14 => {
            for down in (0..world.size()).filter(|n| !world.is_up(*n)).collect::<Vec<_>>() {
                world.start(down);
            }
        }
        15..=17 => disk_fault(world),
        _ => (0..world.size()).for_each(|n| world.mend(n)),
    }
}

fn link_fault(world: &mut World) {
    let (n, other) = (world.rng.below(world.size()), world.rng.below(world.size()));
    let (side, rest): (Vec<usize>, Vec<usize>) = (0..world.size()).partition(|_| world.rng.chance(500));
    let split = !side.is_empty() && !rest.is_empty();
    match world.rng.below(7) {
        0 | 1 if split => {
            world.coverage.count("fault", "partition");
            world.partition(&side, &rest);
        }
        2 if split => {
            world.coverage.count("fault", "partition one way");
            world.partition_one_way(&side, &rest);
        }
        3 => {
            world.coverage.count("fault", "partial partition");
            let pairs = (0..world.size()).flat_map(|a| (0..a).map(move |b| (a, b)));
            let cut: Vec<(usize, usize)> = pairs.filter(|_| world.rng.chance(350)).collect();
            world.partition_partially(&cut);
        }
        4 if n != other => {
            world.coverage.count("fault", "one-way link");
            world.mute(n, other);
        }
        5 => {
            world.coverage.count("fault", "node muted one way");
            (0..world.size()).filter(|t| *t != n).for_each(|to| world.mute(n, to));
        }
        6 if n != other => {
            let times = world.rng.within((3, 30));
            world.flap_link(n, other, u32::try_from(times).expect("few"));
        }
        _ => {}
    }
}

fn node_fault(world: &mut World) {
    let n = world.rng.below(world.size());
    // Leaders make for the more interesting victims.
    let victim = world.leader().filter(|_| world.rng.chance(600)).unwrap_or(n);
    match world.rng.below(9) {
        0 | 1 if world.is_up(victim) => world.crash(victim),
        2 | 3 if world.is_up(victim) => {
            let effects = world.rng.within((0, 60));
            world.crash_within(victim, u32::try_from(effects).expect("few"));
        }
        4 if world.is_up(victim) => {
            world.coverage.count("fault", "crash and restart at once");
            world.crash(victim);
            world.start(victim);
        }
        5 if world.is_up(victim) => {
            world.coverage.count("event", "node asked to close");
            world.event(victim, executor::Event::Close);
        }
        6 | 7 if world.is_up(victim) => {
            world.coverage.count("fault", "node paused");
            let ms = world.rng.within((20, 3_000));
            world.pause(victim, ms);
        }
        _ => {
            world.coverage.count("fault", "clock jumped");
            let jump = world.rng.within((0, 10_000)) as i64 - 5_000;
            world.nodes[n].skew_ms = jump;
            world.note(n, || format!("the clock is off by {jump} ms"));
        }
    }
}

fn disk_fault(world: &mut World) {
    let n = world.rng.below(world.size());
    match world.rng.below(10) {
        0 | 1 => {
            world.coverage.count("fault", "disk stalled");
            world.stall(n);
        }
        2 => {
            let ms = world.rng.within((100, 5_000));
            world.slow_down(n, ms);
        }
        3 | 4 if world.is_up(n) => world.fail_fsync(n),
        5 if world.is_up(n) => world.fill(n, true),
        // Without changes of members nobody who lost a store comes back.
        6 if world.config.churn > 0 && world.can_lose(n) => {
            world.lose_disk(n);
            if world.rng.chance(500) {
                world.start(n);
            }
        }
        7 | 8 if world.config.churn > 0 && world.can_lose(n) => {
            let back = world.rng.below(100) as u64;
            let at = LogIndex(world.nodes[n].disk.log.last().0.saturating_sub(back));
            let what = if world.rng.chance(500) { Rot::Answers } else { Rot::Entry(at) };
            world.rot(n, what);
        }
        9 if world.config.churn > 0 && world.can_lose(n) => {
            if world.is_up(n) {
                world.crash(n);
            }
            world.forget_acknowledged(n);
        }
        _ => {}
    }
}

/// Heals everything and demands that all which is pending is resolved, and that whatever was told is true.
pub(crate) fn calm(world: &mut World) {
    world.heal();
    world.config.network = Network::FAST;
    world.config.disk_us = (100, 1_500);
    for node in 0..world.size() {
        world.nodes[node].skew_ms = 0;
        world.nodes[node].dies_after = None;
        world.mend(node);
    }
    // Until the last pause is over and whoever was asked to close has.
    world.run(LAST_EFFECTS_MS);
    for node in 0..world.size() {
        if world.is_up(node) && world.nodes[node].disk.is_damaged() {
            world.crash(node);
        }
        // A store that is found to be damaged is lost: then the node starts on an empty one.
        while !world.is_up(node) {
            world.start(node);
        }
    }
    churn::settle(world);
    let lively = world.run_until_seen(CALM_MS, |w| w.open_calls() == 0 && w.converged());
    let (open, standings) = (world.open_calls(), world.standings());
    assert!(lively, "after healing, {open} calls are open and converged = {}\n{standings}", world.converged());
    reads_are_answered(world);
    world.changes_are_true();
    world.chain_verifies();
    world.receipts_verify();
    let verdict = world.invariants.outcomes.all_true(&world.invariants.committed.ledger);
    world.demand(verdict);
    world.demand(world.history.is_linearizable());
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
        (0..KEYS).for_each(|key| world.read_config(node, key));
    }
    let served = |w: &World| w.reads[from..].iter().all(|r| r.state == ReadState::Served);
    assert!(world.run_until_seen(1_000, served), "{:?}", &world.reads[from..]);
}
