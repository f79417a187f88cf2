//! The shell: one owner loop that feeds the core and executes its effects.

pub mod clock;
mod crypto;
mod handle;
mod mailbox;

pub use crypto::Signer;
pub use handle::{Handle, QueryError};
