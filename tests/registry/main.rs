//! The replicated state, through its public surface: behaviours one by one, a naive model beside it, and the real
//! updates replayed.

mod behaviours;
mod log;
mod malformed;
mod model;
mod replay;
