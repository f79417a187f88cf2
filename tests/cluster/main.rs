//! Whole nodes in one process: real QUIC with mutual TLS on loopback, real sled with fsync, real keys. Each test starts a
//! cluster of its own and talks to it through public surfaces.

mod ballots;
mod failover;
mod history;
mod lifecycle;
mod members;
mod mending;
#[path = "../support/ports.rs"]
mod ports;
mod proposals;
mod snapshots;
mod support;
