//! The consensus state machine: pure.

mod types;

pub use types::*;

/// Where the core lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {}
impl Core { /** Next time to tick. */ #[must_use] pub fn deadline(&self) -> u64 { 0 } }
