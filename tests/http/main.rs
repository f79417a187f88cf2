//! The HTTP interface and the remote client, against real nodes: real QUIC, real sled, real keys.

mod operations;
#[path = "../support/ports.rs"]
mod ports;
mod proposals;
mod queries;
mod search;
mod served;
mod streams;
#[path = "../cluster/support.rs"]
#[allow(dead_code, unreachable_pub, reason = "each of the tests that share it uses a part")]
mod support;
