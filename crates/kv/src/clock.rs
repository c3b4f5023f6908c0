//! What time it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tells the time: of the last use of a block, of the day's budget, of the next try after a
/// failure. It may jump.
pub trait Clock: Send + Sync {
    /// Time since 1970, in UTC.
    fn unix_time(&self) -> Duration;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// The clock's time in nanoseconds; good until 2554.
pub(crate) fn unix_ns(clock: &dyn Clock) -> u64 {
    as_ns(clock.unix_time())
}

pub(crate) fn as_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
