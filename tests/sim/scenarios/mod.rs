//! Behaviours by name, each in a cluster brought into the state in question.

mod admission;
mod ballot_bounds;
mod ballots;
mod certificates;
mod clocks;
mod closing;
mod durability;
mod elections;
mod epoch_bounds;
mod faults;
mod forwarding;
mod leadership_bounds;
mod membership;
mod reads;
mod regressions;
mod replication;
mod snapshot_bounds;
mod snapshots;
mod transfer;

use crate::world::{Config, World};

/// A cluster that keeps all effects for the test to read.
fn cluster(nodes: usize, seed: u64) -> World {
    World::new(Config { record: true, ..Config::new(nodes, seed) })
}
