//! The transport over real loopback QUIC.

mod behaviour;
mod hostile;
mod support;
