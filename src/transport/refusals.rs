//! Refused attempts: counted all, logged at a bounded rate, so that nobody can fill a disk by knocking.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::time::{Duration, Instant};

/// Lines written at once before the rate below holds.
const BURST: u32 = 20;
/// One more line per this interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// A token bucket that remembers how many lines it held back.
#[derive(Debug)]
struct Limiter {
    left: u32,
    filled: Option<Instant>,
    held_back: u64,
}

impl Limiter {
    const fn new() -> Mutex<Self> {
        Mutex::new(Self { left: BURST, filled: None, held_back: 0 })
    }

    /// Whether a line may be written now, and then how many were held back since the last one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let filled = *self.filled.get_or_insert(now);
        let earned = now.saturating_duration_since(filled).as_secs() / INTERVAL.as_secs();
        if earned > 0 {
            self.left = BURST.min(self.left.saturating_add(u32::try_from(earned).unwrap_or(BURST)));
            self.filled = Some(now);
        }
        if self.left == 0 {
            self.held_back += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

/// Attempts that had no effect but this.
#[derive(Debug)]
pub(super) struct Refusals {
    connections: AtomicU64,
    datagrams: AtomicU64,
    // One limiter each: a flood of garbage must not hide a stranger's handshake.
    connection_lines: Mutex<Limiter>,
    datagram_lines: Mutex<Limiter>,
}

impl Refusals {
    pub(super) const fn new() -> Self {
        Self {
            connections: AtomicU64::new(0),
            datagrams: AtomicU64::new(0),
            connection_lines: Limiter::new(),
            datagram_lines: Limiter::new(),
        }
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn datagrams(&self) -> u64 {
        self.datagrams.load(Ordering::Relaxed)
    }

    /// A connection or attempt at one that was refused.
    pub(super) fn connection(&self, remote: SocketAddr, reason: impl fmt::Display) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        if let Some(held_back) = line(&self.connection_lines) {
            tracing::warn!(%remote, %reason, held_back, "connection refused");
        }
    }

    /// A datagram that belongs to no connection and opens none.
    pub(super) fn datagram(&self, remote: SocketAddr, bytes: usize) {
        self.datagrams.fetch_add(1, Ordering::Relaxed);
        if let Some(held_back) = line(&self.datagram_lines) {
            tracing::warn!(%remote, bytes, held_back, "datagram refused: not QUIC, or of no connection of this node");
        }
    }
}

fn line(limiter: &Mutex<Limiter>) -> Option<u64> {
    limiter.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_what_was_held_back_is_told() {
        let limiter = Limiter::new();
        let mut limiter = limiter.lock().unwrap();
        let start = Instant::now();
        let written = (0..1000).filter(|_| limiter.take(start).is_some()).count();
        assert_eq!(written, BURST as usize);
        let later = start + 2 * INTERVAL;
        assert_eq!(limiter.take(later), Some(1000 - u64::from(BURST)));
        assert_eq!(limiter.take(later), Some(0));
        assert_eq!(limiter.take(later), None);
    }
}
