//! Who is typing: repeated starts are thinned out, and typing expires if a client never reports its end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::protocol::ids::{SessionId, UserId};

/// Typing expires after this.
const TYPING_TTL: Duration = Duration::from_secs(30);
/// The least time between two starts of a typist that are passed on.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A remote typist's own node says when typing ends; we only do so if that node has died, a little later.
const REMOTE_GRACE: Duration = Duration::from_secs(2);
/// The most typists that are remembered: beyond that, indicators are still passed on, but do not expire.
const MAX_TYPISTS: usize = 100_000;

/// Which node a typist is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    Here,
    Elsewhere,
}

/// A typist whose indicator has expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    pub session_id: SessionId,
    pub user_id: UserId,
    pub user_type: String,
    pub home: Home,
}

struct Typing {
    until: Instant,
    repeat_at: Instant,
    user_type: String,
    home: Home,
}

#[derive(Default)]
pub struct Typists {
    typing: Mutex<HashMap<(SessionId, UserId), Typing, RandomState>>,
}

impl Typists {
    /// Records a start. Returns whether it is to be passed on.
    pub fn start(&self, at: (&SessionId, &UserId), user_type: &str, home: Home, now: Instant) -> bool {
        let mut typing = self.typing.lock();
        let grace = if home == Home::Elsewhere {
            REMOTE_GRACE
        } else {
            Duration::ZERO
        };
        let until = now + TYPING_TTL + grace;
        let key = (at.0.clone(), at.1.clone());
        if let Some(known) = typing.get_mut(&key) {
            known.until = until;
            let is_due = now >= known.repeat_at || home == Home::Elsewhere;
            if is_due {
                (known.repeat_at, known.home) = (now + REPEAT_INTERVAL, home);
            }
            return is_due;
        }
        if typing.len() < MAX_TYPISTS {
            let repeat_at = now + REPEAT_INTERVAL;
            typing.insert(
                key,
                Typing {
                    until,
                    repeat_at,
                    user_type: user_type.to_owned(),
                    home,
                },
            );
        }
        true
    }

    /// Removes a typist. Returns which node they are connected to, if they were typing.
    pub fn stop(&self, session_id: &SessionId, user_id: &UserId) -> Option<Home> {
        self.typing
            .lock()
            .remove(&(session_id.clone(), user_id.clone()))
            .map(|typing| typing.home)
    }

    /// Removes and returns the typists whose indicators have expired.
    pub fn expired(&self, now: Instant) -> Vec<Stopped> {
        let mut stopped = Vec::new();
        self.typing.lock().retain(|(session_id, user_id), typing| {
            let is_over = typing.until <= now;
            if is_over {
                stopped.push(Stopped {
                    session_id: session_id.clone(),
                    user_id: user_id.clone(),
                    user_type: std::mem::take(&mut typing.user_type),
                    home: typing.home,
                });
            }
            !is_over
        });
        stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_repeat_once_a_second_and_expire() {
        let (session, user) = (SessionId::parse("s").unwrap(), UserId::parse("u").unwrap());
        let (typists, start) = (Typists::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(typists.start((&session, &user), "agent", Home::Here, at(0)));
        assert!(!typists.start((&session, &user), "agent", Home::Here, at(500)));
        assert!(typists.start((&session, &user), "agent", Home::Here, at(1000)));
        assert!(typists.expired(at(30_999)).is_empty());
        let stopped = typists.expired(at(31_000));
        assert_eq!(
            (stopped.len(), stopped[0].home, stopped[0].user_type.as_str()),
            (1, Home::Here, "agent")
        );
        assert_eq!(typists.stop(&session, &user), None);
    }

    #[test]
    fn a_remote_typist_expires_two_seconds_later() {
        let (session, user) = (SessionId::parse("s").unwrap(), UserId::parse("u").unwrap());
        let (typists, start) = (Typists::default(), Instant::now());
        assert!(typists.start((&session, &user), "agent", Home::Elsewhere, start));
        assert!(typists.expired(start + TYPING_TTL).is_empty());
        assert_eq!(typists.expired(start + TYPING_TTL + REMOTE_GRACE).len(), 1);
    }
}
