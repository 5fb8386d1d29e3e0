//! `PRESENCE_GRACE`: a user who reconnects within it, counted from the end of the last connection, never left.
//!
//! This is only the clock: whose last connection has closed, and when their grace expires. The session knows who has
//! reconnected meanwhile. The clock can be paused: while the store is unavailable nobody can see whether a user has
//! reconnected to another node.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use crate::clock::Moment;
use crate::presence::dirty_sessions::SessionChange;
use crate::protocol::ids::{SessionId, UserId};
use crate::session::{Registry, Session};

/// At most so many users are remembered; beyond that, the oldest count as expired.
const MAX_USERS: usize = 100_000;

/// A user whose last connection here has closed, and who may reconnect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserInGrace {
    pub since: Moment,
    pub session_id: SessionId,
    pub user_id: UserId,
}

pub struct GraceClock {
    period: Duration,
    /// The oldest is at the top.
    users: BinaryHeap<Reverse<UserInGrace>>,
    is_paused: bool,
    /// When the clock was resumed last: everyone has a full grace from then.
    resumed_at: Option<Moment>,
}

impl GraceClock {
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            users: BinaryHeap::new(),
            is_paused: false,
            resumed_at: None,
        }
    }

    /// A user's last connection here has closed.
    pub fn add(&mut self, user: UserInGrace) {
        self.users.push(Reverse(user));
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Pauses the clock.
    pub fn pause(&mut self) {
        self.is_paused = true;
    }

    /// Resumes the clock. Everyone gets a full grace again: the other nodes need that to report who has reconnected to
    /// them.
    pub fn resume(&mut self, now: Moment) {
        if std::mem::replace(&mut self.is_paused, false) {
            self.resumed_at = Some(now);
        }
    }

    /// When the next grace expires; `None` while there is none, or the clock is paused.
    pub fn due(&self) -> Option<Moment> {
        let first = self.users.peek().filter(|_| !self.is_paused)?;
        Some(self.expiry_of(&first.0))
    }

    /// Removes a user whose grace has expired; also says when that was.
    pub fn take_expired(&mut self, now: Moment) -> Option<(UserInGrace, Moment)> {
        let first = &self.users.peek()?.0;
        let end = self.expiry_of(first);
        let is_expired = !self.is_paused && end <= now;
        if !is_expired && self.users.len() <= MAX_USERS {
            return None;
        }
        let user = self.take_oldest()?;
        Some((user, end.min(now)))
    }

    /// Removes the oldest user, expired or not: for when nobody is left to wait.
    pub fn take_oldest(&mut self) -> Option<UserInGrace> {
        let Reverse(user) = self.users.pop()?;
        if self.users.is_empty() {
            // Memory that a crowd has needed is given back.
            self.users.shrink_to_fit();
        }
        Some(user)
    }

    /// How long until the last grace expires.
    pub fn longest_remaining(&self, now: Moment) -> Duration {
        let remaining = |Reverse(user): &Reverse<UserInGrace>| self.expiry_of(user).remaining(now);
        self.users.iter().map(remaining).max().unwrap_or_default()
    }

    fn expiry_of(&self, user: &UserInGrace) -> Moment {
        let from = self
            .resumed_at
            .map_or(user.since, |resumed_at| resumed_at.max(user.since));
        from + self.period
    }
}

/// Adds the users whose last connection closed in a window.
pub fn add_users_in_grace<S>(
    registry: &Registry,
    grace: &mut GraceClock,
    changes: &HashMap<SessionId, SessionChange, S>,
) {
    for (session_id, change) in changes {
        let disconnected = change.users.iter().filter(|(_, mark)| mark.was_disconnected);
        let mut disconnected = disconnected.map(|(user_id, _)| user_id).peekable();
        if disconnected.peek().is_none() {
            continue;
        }
        let Some(session) = registry.get(session_id.as_str()) else {
            continue;
        };
        for user_id in disconnected {
            if let Some(since) = session.with_users(|users| users.in_grace_since(user_id)) {
                add(grace, &session, user_id.clone(), since);
            }
        }
    }
}

/// Adds everyone who is in their grace: a restarted task knows none of them.
pub fn add_all_users_in_grace(registry: &Registry, grace: &mut GraceClock) {
    for session in registry.all() {
        for (user_id, since) in session.with_users(|users| users.users_in_grace()) {
            add(grace, &session, user_id, since);
        }
    }
}

fn add(grace: &mut GraceClock, session: &Session, user_id: UserId, since: Moment) {
    grace.add(UserInGrace {
        since,
        session_id: session.id.clone(),
        user_id,
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(2);

    fn in_grace(user: u32, since: Moment) -> UserInGrace {
        UserInGrace {
            since,
            session_id: SessionId::parse("s").unwrap(),
            user_id: UserId::parse(&format!("u{user:06}")).unwrap(),
        }
    }

    #[test]
    fn a_grace_expires_one_period_after_the_last_connection() {
        let (mut grace, start) = (GraceClock::new(PERIOD), Moment::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(grace.due(), None);
        grace.add(in_grace(2, at(500)));
        grace.add(in_grace(1, at(0)));
        assert_eq!(grace.due(), Some(at(2000)));
        assert_eq!(grace.take_expired(at(1999)), None);
        assert_eq!(grace.longest_remaining(at(1000)), Duration::from_millis(1500));
        assert_eq!(grace.take_expired(at(2600)), Some((in_grace(1, at(0)), at(2000))));
        assert_eq!(
            grace.take_expired(at(2600)),
            Some((in_grace(2, at(500)), at(2500)))
        );
        assert!(grace.take_expired(at(9000)).is_none() && grace.is_empty());
    }

    #[test]
    fn a_paused_clock_expires_nobody_and_gives_everyone_a_full_grace_when_resumed() {
        let (mut grace, start) = (GraceClock::new(PERIOD), Moment::now());
        let at = |ms| start + Duration::from_millis(ms);
        grace.add(in_grace(1, at(0)));
        grace.pause();
        assert_eq!((grace.due(), grace.take_expired(at(60_000))), (None, None));
        grace.add(in_grace(2, at(60_000)));
        grace.resume(at(60_500));
        grace.resume(at(61_000));
        grace.add(in_grace(3, at(61_000)));
        let ends = [(1, 62_500), (2, 62_500), (3, 63_000)];
        for (user, end) in ends {
            assert_eq!(grace.due(), Some(at(end)));
            let (expired, ended) = grace.take_expired(at(90_000)).unwrap();
            assert_eq!((expired.user_id, ended), (in_grace(user, start).user_id, at(end)));
        }
    }

    #[test]
    fn beyond_the_limit_the_oldest_expire() {
        let (mut grace, start) = (GraceClock::new(PERIOD), Moment::now());
        grace.pause();
        for user in 0..MAX_USERS as u32 + 2 {
            grace.add(in_grace(user, start + Duration::from_nanos(user.into())));
        }
        let expired: Vec<_> = std::iter::from_fn(|| grace.take_expired(start)).collect();
        let oldest = [0, 1].map(|user| in_grace(user, start).user_id);
        assert_eq!(
            expired
                .into_iter()
                .map(|(expired, _)| expired.user_id)
                .collect::<Vec<_>>(),
            oldest
        );
    }

    proptest! {
        /// Whatever happens when: every grace expires once, in order, never early, and never late while the clock runs.
        #[test]
        fn every_grace_expires_once_and_on_time(steps in prop::collection::vec((0u8..4, 0u64..1500), 1..100)) {
            let (mut grace, start) = (GraceClock::new(PERIOD), Moment::now());
            let (mut now, mut waiting, mut user) = (start, Vec::new(), 0);
            let mut is_paused = false;
            for (what, ms) in steps {
                now = now + Duration::from_millis(ms);
                match what {
                    0 => {
                        grace.pause();
                        is_paused = true;
                    }
                    1 => {
                        grace.resume(now);
                        is_paused = false;
                    }
                    _ => {
                        user += 1;
                        grace.add(in_grace(user, now));
                        waiting.push(in_grace(user, now));
                    }
                }
                while let Some((expired, end)) = grace.take_expired(now) {
                    prop_assert!(!is_paused && end <= now && end >= expired.since + PERIOD);
                    prop_assert_eq!(&expired, &waiting.remove(0));
                }
                if !is_paused {
                    prop_assert_eq!(grace.is_empty(), waiting.is_empty());
                    prop_assert!(grace.due().is_none_or(|due| due > now && due <= now + PERIOD));
                }
            }
        }
    }
}
