//! The program as its users run it: arguments in, exit code, stdout and stderr out.

#[path = "../support/certificates.rs"]
mod certificates;
mod failover;
mod imports;
#[path = "../support/nodes.rs"]
mod nodes;
mod offline;
mod online;
#[path = "../support/ports.rs"]
mod ports;
mod support;
mod walk;
