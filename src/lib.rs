//! Concordat.

pub mod api;
pub mod certificate;
pub mod core;
pub mod docs;
pub mod ids;
pub mod limits;
pub mod node;
pub mod registry;
pub mod telemetry;
