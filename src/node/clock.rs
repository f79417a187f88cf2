//! The one place where clocks enter.

use crate::core::Now;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Reads both clocks; monotonic time counts from the clock's creation.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts counting now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place where the monotonic clock enters")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { mono: u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX), wall: wall_ms() }
    }

    /// Monotonic time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The instant of a monotonic reading, for timers.
    #[must_use]
    pub fn instant(&self, mono_ms: u64) -> Instant {
        self.start + Duration::from_millis(mono_ms)
    }
}

/// Milliseconds since the Unix epoch; zero for a clock set before it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place where the wall clock enters")]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
