//! Reference pages, rendered with the crate's documentation.

#[doc = include_str!("formats.md")]
pub mod formats {}
