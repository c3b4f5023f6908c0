//! Bytes written to the drive, by day: flash wears out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bytes of its file at most.
pub(crate) const WEAR_BYTES_MAX: usize = 128;

const DAY_S: u64 = 24 * 60 * 60;

/// Bytes of blocks written to a folder, by all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Wear {
    /// Days since 1970, in UTC.
    day: u64,
    today_bytes: u64,
    pub(crate) total_bytes: u64,
}

impl Wear {
    /// Reads a file; `None` if it makes no sense.
    pub(crate) fn decode(text: &[u8]) -> Option<Wear> {
        serde_json::from_slice(text).ok()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let Wear { day, today_bytes, total_bytes } = self;
        format!("{{\"day\":{day},\"today_bytes\":{today_bytes},\"total_bytes\":{total_bytes}}}\n")
            .into_bytes()
    }

    /// Bytes written on the day of `unix_time`.
    pub(crate) fn today_bytes(&self, unix_time: Duration) -> u64 {
        // A clock that was set back starts a new day too: one that was once wrong by years must
        // not use up the budget for years.
        if self.day == unix_time.as_secs() / DAY_S { self.today_bytes } else { 0 }
    }

    /// With so many bytes more.
    pub(crate) fn plus(&self, bytes: u64, unix_time: Duration) -> Wear {
        Wear {
            day: unix_time.as_secs() / DAY_S,
            today_bytes: self.today_bytes(unix_time).saturating_add(bytes),
            total_bytes: self.total_bytes.saturating_add(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_day() {
        let at = |day: u64, s| Duration::from_secs(day * DAY_S + s);
        let wear = Wear::default().plus(5, at(10, 0)).plus(6, at(10, DAY_S - 1));
        assert_eq!(wear, Wear { day: 10, today_bytes: 11, total_bytes: 11 });
        assert_eq!((wear.today_bytes(at(10, 7)), wear.today_bytes(at(11, 0))), (11, 0));
        assert_eq!(wear.today_bytes(at(9, 0)), 0);
        let wear = wear.plus(1, at(11, 0));
        assert_eq!(wear, Wear { day: 11, today_bytes: 1, total_bytes: 12 });
    }

    #[test]
    fn survives_its_file_which_stays_small() {
        let wear = Wear { day: u64::MAX, today_bytes: u64::MAX, total_bytes: u64::MAX };
        let text = wear.encode();
        assert!(text.len() <= WEAR_BYTES_MAX, "{}", text.len());
        assert_eq!(Wear::decode(&text), Some(wear));
        for wrong in ["", "{", "{}", "7", "{\"day\":-1,\"today_bytes\":0,\"total_bytes\":0}"] {
            assert_eq!(Wear::decode(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
