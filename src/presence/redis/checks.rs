//! Which sessions' keys to check next: all that are held here, in turn, since others may change them in Redis.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::ids::SessionId;

/// Each session is checked once in this time, or as often as [`BATCH_USERS`] per second allow.
pub const CYCLE: Duration = Duration::from_secs(5);
/// The least time between two batches.
const PAUSE: Duration = Duration::from_secs(1);
/// About the most users, and the most sessions, of a batch: a few milliseconds for Redis.
const BATCH_USERS: usize = 2_000;
const BATCH_SESSIONS: usize = 500;

pub struct Checks {
    waiting: Vec<SessionId>,
    next_cycle: Instant,
    next_batch: Instant,
}

impl Checks {
    pub fn new(now: Instant) -> Self {
        Self {
            waiting: Vec::new(),
            next_cycle: now + CYCLE,
            next_batch: now,
        }
    }

    /// The next batch of sessions, if one is due.
    pub fn take(
        &mut self,
        now: Instant,
        all: impl FnOnce() -> Vec<SessionId>,
        users_of: impl Fn(&SessionId) -> usize,
    ) -> Vec<SessionId> {
        if now < self.next_batch {
            return Vec::new();
        }
        if self.waiting.is_empty() {
            if now < self.next_cycle {
                return Vec::new();
            }
            self.waiting = all();
            self.next_cycle = now + CYCLE;
        }
        self.next_batch = now + PAUSE;
        let (mut batch, mut users) = (Vec::new(), 0);
        while let Some(session_id) = self.waiting.pop() {
            users += users_of(&session_id);
            batch.push(session_id);
            if users >= BATCH_USERS || batch.len() == BATCH_SESSIONS {
                break;
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sessions_are_checked_in_turn_and_few_per_second() {
        let start = Instant::now();
        let mut checks = Checks::new(start);
        let all = || {
            (0..1200)
                .map(|n| SessionId::parse(&format!("s{n}")).unwrap())
                .collect()
        };
        let mut at = |ms: u64| {
            let now = start + Duration::from_millis(ms);
            checks
                .take(now, all, |id| if id.as_str() == "s1100" { 5_000 } else { 1 })
                .len()
        };
        assert_eq!([at(0), at(4999)], [0, 0]);
        assert_eq!(
            [at(5000), at(5500), at(6000), at(7000), at(8000)],
            [100, 0, 500, 500, 100]
        );
        assert_eq!([at(9000), at(9999), at(10_000)], [0, 0, 100]);
    }
}
