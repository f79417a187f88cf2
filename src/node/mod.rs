//! The shell: one owner loop that feeds the core and executes its effects.

mod handle;

pub use handle::{Handle, QueryError};
