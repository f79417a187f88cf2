//! Metrics (placeholder while the real one is being written).
#![allow(missing_docs)]
use crate::core::Role;
#[derive(Debug, thiserror::Error)]
#[error("telemetry")]
pub struct TelemetryError;
pub enum Outcome { Committed, Aborted, Expired }
pub struct Telemetry;
impl Telemetry {
    pub fn new() -> Result<Self, TelemetryError> { Ok(Self) }
    pub fn proposal(&self, _o: Outcome) {}
    pub fn role_transition(&self, _f: Role, _t: Role) {}
    pub fn commit_latency(&self, _s: f64) {}
    pub fn set_pending(&self, _n: u64) {}
    pub fn set_term(&self, _n: u64) {}
    pub fn set_positions(&self, _l: u64, _d: u64, _c: u64, _a: u64, _z: u64) {}
    pub fn alarm(&self, _k: &'static str) {}
    pub fn render(&self) -> String { String::new() }
}
