//! `PRESENCE_GRACE`: who is back within it of their last connection's end was never gone.
//!
//! This is the clock of it and nothing else: whose connections have ended, and when their grace is over. The session
//! knows who of them is back meanwhile. It can stand still: while the store is away nobody could see whether
//! somebody is back on another node.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use crate::clock::Moment;
use crate::presence::inbox::Change;
use crate::protocol::ids::{SessionId, UserId};
use crate::session::{Registry, Session};

/// The most ends that are remembered; of more, the oldest count as over.
const MAX_LEAVING: usize = 100_000;

/// The end of a user's last connection here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leaving {
    pub since: Moment,
    pub session_id: SessionId,
    pub user_id: UserId,
}

pub struct Grace {
    period: Duration,
    /// The oldest is on top.
    leaving: BinaryHeap<Reverse<Leaving>>,
    is_stopped: bool,
    /// When the clock began, or went on: nobody's grace is over before a whole one from here.
    began: Option<Moment>,
}

impl Grace {
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            leaving: BinaryHeap::new(),
            is_stopped: false,
            began: None,
        }
    }

    /// A user's last connection here has ended.
    pub fn left(&mut self, leaving: Leaving) {
        self.leaving.push(Reverse(leaving));
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.leaving.is_empty()
    }

    /// The clock stands still.
    pub fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// It goes on: who was waited for has a whole period again, for that is what the other nodes need to say who has
    /// come back to them.
    pub fn resume(&mut self, now: Moment) {
        if std::mem::replace(&mut self.is_stopped, false) {
            self.began = Some(now);
        }
    }

    /// When the next one is over; `None` while there is none or the clock stands still.
    pub fn due(&self) -> Option<Moment> {
        let first = self.leaving.peek().filter(|_| !self.is_stopped)?;
        Some(self.end_of(&first.0))
    }

    /// Takes out one that is over, and when that was.
    pub fn take_over(&mut self, now: Moment) -> Option<(Leaving, Moment)> {
        let first = &self.leaving.peek()?.0;
        let end = self.end_of(first);
        let is_over = !self.is_stopped && end <= now;
        if !is_over && self.leaving.len() <= MAX_LEAVING {
            return None;
        }
        let leaving = self.take_any()?;
        Some((leaving, end.min(now)))
    }

    /// Takes out one that is not over, where nobody is left to wait for anybody.
    pub fn take_any(&mut self) -> Option<Leaving> {
        let Reverse(leaving) = self.leaving.pop()?;
        if self.leaving.is_empty() {
            // When a crowd has gone, its memory goes, too.
            self.leaving.shrink_to_fit();
        }
        Some(leaving)
    }

    /// How long the last one has left.
    pub fn longest(&self, now: Moment) -> Duration {
        let left = |Reverse(leaving): &Reverse<Leaving>| self.end_of(leaving).left(now);
        self.leaving.iter().map(left).max().unwrap_or_default()
    }

    fn end_of(&self, leaving: &Leaving) -> Moment {
        let from = self.began.map_or(leaving.since, |began| began.max(leaving.since));
        from + self.period
    }
}

/// Notes whom the marks of a window have left without a connection.
pub fn note_lingerers<S>(registry: &Registry, grace: &mut Grace, changes: &HashMap<SessionId, Change, S>) {
    for (session_id, change) in changes {
        let left = change.users.iter().filter(|(_, mark)| mark.has_left);
        let mut left = left.map(|(user_id, _)| user_id).peekable();
        if left.peek().is_none() {
            continue;
        }
        let Some(session) = registry.get(session_id.as_str()) else {
            continue;
        };
        for user_id in left {
            if let Some(since) = session.with_users(|users| users.lingers_since(user_id)) {
                note(grace, &session, user_id.clone(), since);
            }
        }
    }
}

/// Notes everyone who is in the grace: a task that begins anew knows none of them.
pub fn find_lingerers(registry: &Registry, grace: &mut Grace) {
    for session in registry.all() {
        for (user_id, since) in session.with_users(|users| users.lingerers()) {
            note(grace, &session, user_id, since);
        }
    }
}

fn note(grace: &mut Grace, session: &Session, user_id: UserId, since: Moment) {
    grace.left(Leaving {
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

    fn leaving(user: u32, since: Moment) -> Leaving {
        Leaving {
            since,
            session_id: SessionId::parse("s").unwrap(),
            user_id: UserId::parse(&format!("u{user}")).unwrap(),
        }
    }

    #[test]
    fn each_ends_a_period_after_its_last_connection() {
        let (mut grace, start) = (Grace::new(PERIOD), Moment::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(grace.due(), None);
        grace.left(leaving(2, at(500)));
        grace.left(leaving(1, at(0)));
        assert_eq!(grace.due(), Some(at(2000)));
        assert_eq!(grace.take_over(at(1999)), None);
        assert_eq!(grace.longest(at(1000)), Duration::from_millis(1500));
        assert_eq!(grace.take_over(at(2600)), Some((leaving(1, at(0)), at(2000))));
        assert_eq!(grace.take_over(at(2600)), Some((leaving(2, at(500)), at(2500))));
        assert!(grace.take_over(at(9000)).is_none() && grace.is_empty());
    }

    #[test]
    fn while_the_clock_stands_still_nobody_s_is_over_and_then_all_have_a_whole_one() {
        let (mut grace, start) = (Grace::new(PERIOD), Moment::now());
        let at = |ms| start + Duration::from_millis(ms);
        grace.left(leaving(1, at(0)));
        grace.stop();
        assert_eq!((grace.due(), grace.take_over(at(60_000))), (None, None));
        grace.left(leaving(2, at(60_000)));
        grace.resume(at(60_500));
        grace.resume(at(61_000));
        grace.left(leaving(3, at(61_000)));
        let ends = [(1, 62_500), (2, 62_500), (3, 63_000)];
        for (user, end) in ends {
            assert_eq!(grace.due(), Some(at(end)));
            let (over, ended) = grace.take_over(at(90_000)).unwrap();
            assert_eq!((over.user_id, ended), (leaving(user, start).user_id, at(end)));
        }
    }

    #[test]
    fn of_too_many_the_oldest_are_over() {
        let (mut grace, start) = (Grace::new(PERIOD), Moment::now());
        grace.stop();
        for user in 0..MAX_LEAVING as u32 + 2 {
            grace.left(leaving(user, start + Duration::from_nanos(user.into())));
        }
        let over: Vec<_> = std::iter::from_fn(|| grace.take_over(start)).collect();
        let oldest = [0, 1].map(|user| leaving(user, start).user_id);
        assert_eq!(
            over.into_iter().map(|(over, _)| over.user_id).collect::<Vec<_>>(),
            oldest
        );
    }

    proptest! {
        /// Whatever comes when: all are over once, in order, none early, and none late while the clock runs.
        #[test]
        fn nobody_s_grace_is_short_or_forgotten(steps in prop::collection::vec((0u8..4, 0u64..1500), 1..100)) {
            let (mut grace, start) = (Grace::new(PERIOD), Moment::now());
            let (mut now, mut waiting, mut user) = (start, Vec::new(), 0);
            let mut is_stopped = false;
            for (what, ms) in steps {
                now = now + Duration::from_millis(ms);
                match what {
                    0 => {
                        grace.stop();
                        is_stopped = true;
                    }
                    1 => {
                        grace.resume(now);
                        is_stopped = false;
                    }
                    _ => {
                        user += 1;
                        grace.left(leaving(user, now));
                        waiting.push(leaving(user, now));
                    }
                }
                while let Some((over, end)) = grace.take_over(now) {
                    prop_assert!(!is_stopped && end <= now && end >= over.since + PERIOD);
                    prop_assert_eq!(&over, &waiting.remove(0));
                }
                if !is_stopped {
                    prop_assert_eq!(grace.is_empty(), waiting.is_empty());
                    prop_assert!(grace.due().is_none_or(|due| due > now && due <= now + PERIOD));
                }
            }
        }
    }
}
