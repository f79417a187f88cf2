//! Concordat.

pub mod api;
pub mod audit;
pub mod certificate;
pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod docs;
pub mod http;
pub mod ids;
pub mod limits;
pub mod node;
pub mod registry;
pub mod storage;
pub mod telemetry;
pub mod transport;
pub mod wire;
