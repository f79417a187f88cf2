//! An operator who changes the members all the time, sensibly and not.

use crate::members::Row;
use crate::world::World;
use concordat::certificate::{Policy, Role};
use concordat::ids::Epoch;

/// Within so long after everything healed the members are what they are to be, virtual milliseconds.
const SETTLED_MS: u64 = 20_000;

/// Asks whoever leads (or thinks so) for some change.
pub(crate) fn step(world: &mut World) {
    let asked = world.leader().filter(|_| world.rng.chance(950));
    let asked = asked.unwrap_or_else(|| world.rng.below(world.size()));
    if !world.is_up(asked) {
        return;
    }
    let mut rows = world.rows(asked);
    let base = world.core(asked).tables().current().epoch;
    let node = world.rng.below(world.size());
    let at = world.rng.below(rows.len());
    let row = rows.iter().position(|r| r.node == node);
    let op = match (world.rng.below(12), row) {
        // Whoever lost its store comes back with a fresh key, whatever else was planned.
        (_, Some(row)) if !world.holds(&rows[row]) => readmit(world, &mut rows, row),
        (0..=3, None) => add(world, &mut rows, node),
        (4, Some(row)) => {
            rows.remove(row);
            "remove"
        }
        (5, _) if rows.len() > 1 => {
            rows.remove(at);
            if let Some(learner) = rows.iter_mut().find(|r| r.role == Role::Learner) {
                learner.role = Role::Voter;
            }
            "replace"
        }
        (6, _) => {
            rows[at].role = Role::Learner;
            "demote"
        }
        (7, _) => rotate(world, &mut rows, at),
        (8, _) => {
            rows[at].policy = if rows[at].policy == Policy::Auto { Policy::Rules } else { Policy::Auto };
            "policy"
        }
        (9, _) => foolish(world, &mut rows),
        _ => {
            rows.iter_mut().for_each(|r| r.role = Role::Voter);
            "promote"
        }
    };
    if !rows.iter().any(|r| r.role == Role::Voter) || world.is_doomed(asked, &rows) {
        return;
    }
    world.coverage.count("change asked", op);
    let base = if op == "foolish" && world.rng.chance(300) { Epoch(base.0 + 1) } else { base };
    world.change_from(asked, base, &rows);
}

fn add(world: &mut World, rows: &mut Vec<Row>, node: usize) -> &'static str {
    let row = world.fresh_learner(node);
    if !world.is_up(node) {
        world.start(node);
    }
    rows.push(row);
    "add"
}

fn readmit(world: &mut World, rows: &mut [Row], at: usize) -> &'static str {
    let policy = rows[at].policy;
    rows[at] = Row { policy, ..world.fresh_learner(rows[at].node) };
    "readmit"
}

fn rotate(world: &mut World, rows: &mut [Row], at: usize) -> &'static str {
    let row = rows[at];
    if world.holds(&row) && row.role == Role::Voter {
        let fresh = world.fresh_learner(row.node).generation;
        rows[at].generation = fresh;
        return "rotate";
    }
    "unchanged"
}

/// What no operator should ask for, and the core must refuse or survive.
fn foolish(world: &mut World, rows: &mut Vec<Row>) -> &'static str {
    match world.rng.below(3) {
        0 if rows.iter().any(|r| r.generation > 0) => {
            let row = rows.iter_mut().find(|r| r.generation > 0).expect("just seen");
            row.generation -= 1;
        }
        1 => {
            let strangers: Vec<usize> = (0..world.size()).filter(|n| rows.iter().all(|r| r.node != *n)).collect();
            if let Some(&node) = strangers.first() {
                rows.push(Row { role: Role::Voter, ..world.fresh_learner(node) });
            }
        }
        _ => {}
    }
    "foolish"
}

/// After a storm the operator takes out whoever lost its store and did not come back, and waits until nothing is in
/// flight.
pub(crate) fn settle(world: &mut World) {
    let until = world.now + SETTLED_MS * 1000;
    loop {
        let settled = |w: &World| {
            w.leader().is_some_and(|l| {
                let tables = w.core(l).tables();
                !tables.is_joint() && w.rows(l).iter().all(|r| w.holds(r))
            })
        };
        if settled(world) {
            return;
        }
        let standings = world.standings();
        assert!(world.now < until, "{SETTLED_MS} ms after healing a membership change is still in flight\n{standings}");
        if let Some(leader) = world.leader().filter(|l| !world.core(*l).tables().is_joint()) {
            let rows: Vec<Row> = world.rows(leader).into_iter().filter(|r| world.holds(r)).collect();
            world.coverage.count("change asked", "take out");
            world.change(leader, &rows);
        }
        world.run_until_seen(300, settled);
    }
}
