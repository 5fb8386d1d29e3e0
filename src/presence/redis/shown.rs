//! What this node's clients have been shown of a session: what they are told next is the difference to that, so
//! that each coming and going is told once, whoever repeats it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::ids::UserId;
use crate::protocol::status::{ConnectionStatus, EventType, MAX_LISTED_EVENTS, StatusEvent};
use crate::ws::Outbox;

/// A large session gets at most one frame in this time: else n joins cost n squared bytes.
pub const LARGE_SESSION_INTERVAL: Duration = Duration::from_secs(1);

pub struct Shown {
    version: u64,
    users: BTreeSet<UserId>,
    pub status: ConnectionStatus,
    /// Changes that no frame has told yet.
    unsent: Vec<StatusEvent>,
    /// Connections that have come and have been shown nothing yet.
    pub joiners: Vec<Arc<Outbox>>,
    next_frame: Instant,
}

/// What is to be sent now.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// To everyone, with these events.
    Everyone(Vec<StatusEvent>),
    /// To those who have come.
    Joiners,
    /// Something, at this time.
    Later(Instant),
    Nothing,
}

impl Shown {
    /// Nothing was shown before: whoever was there already is no news, `came` is.
    pub fn before(status: &ConnectionStatus, came: &[UserId], now: Instant) -> Self {
        let mut users: BTreeSet<_> = status.users.keys().cloned().collect();
        for user_id in came {
            users.remove(user_id);
        }
        Self {
            version: 0,
            users,
            status: ConnectionStatus::default(),
            unsent: Vec::new(),
            joiners: Vec::new(),
            next_frame: now,
        }
    }

    /// Whether a snapshot would be shown at once, and so is worth asking for.
    pub fn wants_snapshot(&self, now: Instant) -> bool {
        !self.status.is_large() || now >= self.next_frame
    }

    pub fn next_frame(&self) -> Instant {
        self.next_frame
    }

    /// Takes over a snapshot; one older than what is shown is none.
    pub fn update(&mut self, version: u64, status: ConnectionStatus) {
        if version < self.version {
            return;
        }
        self.version = version;
        let users: BTreeSet<_> = status.users.keys().cloned().collect();
        for (event_type, changed) in [
            (EventType::UserDisconnected, self.users.difference(&users)),
            (EventType::UserConnected, users.difference(&self.users)),
        ] {
            for user_id in changed {
                // Who is back before it was told that he went was never away.
                let untold = self
                    .unsent
                    .iter()
                    .position(|event| event.event_user_id == *user_id);
                match untold {
                    Some(at) => drop(self.unsent.remove(at)),
                    None => self.unsent.push(StatusEvent {
                        event_type,
                        event_user_id: user_id.clone(),
                    }),
                }
            }
        }
        self.users = users;
        self.status = status;
    }

    /// What to send, and to count as sent.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.unsent.is_empty() && self.joiners.is_empty() {
            return Next::Nothing;
        }
        if self.status.is_large() {
            if now < self.next_frame {
                return Next::Later(self.next_frame);
            }
            self.next_frame = now + LARGE_SESSION_INTERVAL;
        }
        if self.unsent.is_empty() {
            return Next::Joiners;
        }
        self.joiners.clear();
        let rest = self.unsent.split_off(self.unsent.len().min(MAX_LISTED_EVENTS));
        Next::Everyone(std::mem::replace(&mut self.unsent, rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::ids::UserType;
    use crate::protocol::status::ConnectedUser;

    fn status(users: impl IntoIterator<Item = usize>) -> ConnectionStatus {
        ConnectionStatus::of(users.into_iter().map(|n| ConnectedUser {
            user_id: UserId::parse(&format!("u{n}")).unwrap(),
            user_type: UserType::Customer,
            joined_at: "J".into(),
        }))
    }

    #[test]
    fn who_was_there_is_no_news() {
        let now = Instant::now();
        let mut shown = Shown::before(&status([1, 2]), &[UserId::parse("u2").unwrap()], now);
        shown.update(5, status([1, 2]));
        let Next::Everyone(events) = shown.next(now) else {
            panic!()
        };
        assert_eq!((events.len(), events[0].event_user_id.as_str()), (1, "u2"));
        shown.update(4, status([]));
        assert_eq!(shown.next(now), Next::Nothing, "an older snapshot");
    }

    #[test]
    fn a_large_session_is_told_once_a_second_and_of_everything() {
        let now = Instant::now();
        let mut shown = Shown::before(&status([]), &[], now);
        shown.update(1, status(0..250));
        let mut told = 0;
        for step in 0..3 {
            let now = now + LARGE_SESSION_INTERVAL * step;
            let Next::Everyone(events) = shown.next(now) else {
                panic!()
            };
            told += events.len();
            if step < 2 {
                assert_eq!(shown.next(now), Next::Later(now + LARGE_SESSION_INTERVAL));
            }
        }
        assert_eq!(told, 250);
    }

    proptest! {
        /// Events, applied one after the other, always give what is shown.
        #[test]
        fn events_add_up(snapshots in prop::collection::vec(prop::collection::btree_set(0usize..8, 0..8), 1..20), sends in any::<u32>()) {
            let now = Instant::now();
            let mut shown = Shown::before(&status([]), &[], now);
            let mut told = BTreeSet::new();
            let last = snapshots.last().cloned().unwrap();
            let count = snapshots.len();
            for (version, users) in snapshots.into_iter().enumerate() {
                shown.update(version as u64 + 1, status(users));
                if sends >> (version % 32) & 1 == 0 && version + 1 < count {
                    continue;
                }
                if let Next::Everyone(events) = shown.next(now) {
                    for event in events {
                        let is_news = match event.event_type {
                            EventType::UserConnected => told.insert(event.event_user_id),
                            EventType::UserDisconnected => told.remove(&event.event_user_id),
                        };
                        prop_assert!(is_news);
                    }
                }
            }
            let expected: BTreeSet<_> = status(last).users.into_keys().collect();
            prop_assert_eq!(told, expected);
        }
    }
}
