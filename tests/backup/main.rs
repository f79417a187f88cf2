//! Backups of running clusters, what is restored from them, and clusters that succeed others; all with the real program.

#[path = "../support/nodes.rs"]
mod nodes;
#[path = "../support/ports.rs"]
mod ports;

mod joining;
mod quorum_loss;
mod running;
mod successor;
mod support;
