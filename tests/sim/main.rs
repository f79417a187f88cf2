//! A deterministic simulator of whole clusters: the real core under the very effect executor that nodes run, in
//! virtual time, over a simulated network, disk and pool of signers. See README.md beside this file.

mod chain;
mod churn;
mod client;
mod coverage;
mod crypto;
mod devices;
mod disk;
mod faults;
mod hash;
mod history;
mod invariants;
mod machine;
mod members;
mod membership;
mod net;
mod queue;
mod reads;
mod receipts;
mod rng;
mod scenarios;
mod shell;
mod snapshots;
mod storm;
mod sweep;
mod trace;
mod world;
