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
/// The most typists that are remembered: beyond that, indicators are still passed on, but do not expire, and who joins
/// later does not get them.
const MAX_TYPISTS: usize = 100_000;

/// How many of a session's typists are told to who joins, as of its readers.
const MAX_TOLD: usize = 100;

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
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// No session is without typists.
    sessions: HashMap<SessionId, HashMap<UserId, Typing, RandomState>, RandomState>,
    count: usize,
}

impl Typists {
    /// Records a start. Returns whether it is to be passed on.
    pub fn start(&self, at: (&SessionId, &UserId), user_type: &str, home: Home, now: Instant) -> bool {
        let mut table = self.table.lock();
        let grace = if home == Home::Elsewhere {
            REMOTE_GRACE
        } else {
            Duration::ZERO
        };
        let until = now + TYPING_TTL + grace;
        let known = table
            .sessions
            .get_mut(at.0)
            .and_then(|session| session.get_mut(at.1));
        if let Some(known) = known {
            known.until = until;
            let is_due = now >= known.repeat_at || home == Home::Elsewhere;
            if is_due {
                (known.repeat_at, known.home) = (now + REPEAT_INTERVAL, home);
            }
            return is_due;
        }
        if table.count < MAX_TYPISTS {
            table.count += 1;
            let session = table.sessions.entry(at.0.clone()).or_default();
            session.insert(
                at.1.clone(),
                Typing {
                    until,
                    repeat_at: now + REPEAT_INTERVAL,
                    user_type: user_type.to_owned(),
                    home,
                },
            );
        }
        true
    }

    /// Removes a typist. Returns which node they are connected to, if they were typing.
    pub fn stop(&self, session_id: &SessionId, user_id: &UserId) -> Option<Home> {
        let mut table = self.table.lock();
        let session = table.sessions.get_mut(session_id)?;
        let stopped = session.remove(user_id)?;
        if session.is_empty() {
            table.sessions.remove(session_id);
        }
        table.count -= 1;
        Some(stopped.home)
    }

    /// Calls `visit` with each typist of a session and their type, with at most [`MAX_TOLD`]. Nobody starts or stops meanwhile: an indicator that
    /// is sent here comes before the one that ends it.
    pub fn with_typing(&self, session_id: &SessionId, mut visit: impl FnMut(&UserId, &str)) {
        let table = self.table.lock();
        let typists = table.sessions.get(session_id).into_iter().flatten();
        for (user_id, typing) in typists.take(MAX_TOLD) {
            visit(user_id, &typing.user_type);
        }
    }

    /// Removes and returns the typists whose indicators have expired.
    pub fn expired(&self, now: Instant) -> Vec<Stopped> {
        let mut stopped = Vec::new();
        let mut table = self.table.lock();
        table.sessions.retain(|session_id, session| {
            let expired = session.extract_if(|_, typing| typing.until <= now);
            stopped.extend(expired.map(|(user_id, typing)| Stopped {
                session_id: session_id.clone(),
                user_id,
                user_type: typing.user_type,
                home: typing.home,
            }));
            !session.is_empty()
        });
        table.count -= stopped.len();
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
    fn those_who_type_at_the_moment_are_listed_by_session() {
        let id = |id| SessionId::parse(id).unwrap();
        let user = |id| UserId::parse(id).unwrap();
        let (typists, now) = (Typists::default(), Instant::now());
        for (session, typist, user_type) in [
            ("s", "u1", "agent"),
            ("s", "u2", "customer"),
            ("t", "u3", "agent"),
        ] {
            assert!(typists.start((&id(session), &user(typist)), user_type, Home::Here, now));
        }
        let listed = |session| {
            let mut listed = Vec::new();
            typists.with_typing(&id(session), |user_id, user_type| {
                listed.push(format!("{} {user_type}", user_id.as_str()));
            });
            listed.sort();
            listed
        };
        assert_eq!(listed("s"), ["u1 agent", "u2 customer"]);
        for typist in 0..2 * MAX_TOLD {
            let name = typist.to_string();
            let typist = UserId::parse(&name).unwrap();
            typists.start((&id("large"), &typist), "customer", Home::Here, now);
        }
        assert_eq!(listed("large").len(), MAX_TOLD);
        assert_eq!(typists.stop(&id("s"), &user("u1")), Some(Home::Here));
        assert_eq!(listed("s"), ["u2 customer"]);
        assert_eq!(typists.expired(now + TYPING_TTL).len(), 2 + 2 * MAX_TOLD);
        assert!(listed("s").is_empty() && listed("t").is_empty());
        let table = typists.table.lock();
        assert!(table.sessions.is_empty() && table.count == 0);
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
