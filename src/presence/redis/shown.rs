//! What this node's clients have been shown of a session: what they are told next is the difference to that, so
//! that each coming and going is told once, whoever repeats it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use crate::presence::LARGE_SESSION_INTERVAL;
use crate::protocol::ids::UserId;
use crate::protocol::status::{ConnectionStatus, EventType, MAX_LISTED_EVENTS, StatusEvent};
use crate::writer::ConnectionWriter;

pub struct Shown {
    version: u64,
    /// Whom clients believe to be here, by the events they were told.
    told: BTreeSet<UserId>,
    pub status: ConnectionStatus,
    /// Connections that have come and have been shown nothing yet.
    pub joiners: Vec<Arc<ConnectionWriter>>,
    /// Events other nodes have not been told, because the snapshot was not asked for.
    pub unpublished: Option<Vec<StatusEvent>>,
    /// What tells the session's keys in Redis from ones that are made anew; empty: nothing is expected.
    pub birth: String,
    /// Since when there has been a value among the session's that can't be read.
    pub unreadable_since: Option<Instant>,
    /// Somebody's type is another than clients were shown.
    is_retyped: bool,
    next_frame: Instant,
}

/// What is to be sent now.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// To everyone, with these events; none where only somebody's type has changed.
    Everyone(Vec<StatusEvent>),
    /// To those who have come.
    Joiners,
    /// Something, at [`Shown::next_frame`].
    Later,
    Nothing,
}

impl Shown {
    /// Nothing was shown before: whoever was there already is no news, `came` is.
    pub fn before(status: &ConnectionStatus, came: &[UserId], now: Instant) -> Self {
        let mut told: BTreeSet<_> = status.users.keys().cloned().collect();
        for user_id in came {
            told.remove(user_id);
        }
        Self {
            version: 0,
            told,
            status: ConnectionStatus::default(),
            joiners: Vec::new(),
            unpublished: None,
            birth: String::new(),
            unreadable_since: None,
            is_retyped: false,
            next_frame: now,
        }
    }

    /// Whether a snapshot would be shown at once, and so is worth asking for.
    pub fn wants_snapshot(&self, now: Instant) -> bool {
        now >= self.next_frame
    }

    pub fn next_frame(&self) -> Instant {
        self.next_frame
    }

    /// Takes over a snapshot; one older than what is shown is none. Whom a suspect one does not have is still there:
    /// whoever holds them may not have written them again yet.
    pub fn update(&mut self, version: u64, status: ConnectionStatus, is_suspect: bool) {
        if version < self.version {
            return;
        }
        self.version = version;
        let before = std::mem::replace(&mut self.status, status);
        let of_now = &self.status.users;
        self.is_retyped |= before.users.values().any(|user| {
            let now = of_now.get(&user.user_id);
            now.is_some_and(|now| now.user_type != user.user_type)
        });
        if is_suspect {
            let is_missing = |id: &UserId| self.told.contains(id) && !self.status.users.contains_key(id);
            let missing: Vec<_> = before
                .users
                .into_values()
                .filter(|user| is_missing(&user.user_id))
                .collect();
            if !missing.is_empty() {
                let found = std::mem::take(&mut self.status.users).into_values();
                self.status = ConnectionStatus::of(found.chain(missing));
            }
        }
    }

    /// Whether clients were told that this user is here.
    pub fn has_told(&self, user_id: &UserId) -> bool {
        self.told.contains(user_id)
    }

    /// Redis has lost what it knew: its versions may begin anew.
    pub fn distrust(&mut self) {
        self.version = 0;
    }

    /// What to send, and to count as sent, in the order of `latest`, the users of the latest changes. Who went and is
    /// back before that was told was never away.
    pub fn next(&mut self, now: Instant, latest: &[UserId]) -> Next {
        let users = &self.status.users;
        let gone = self.told.iter().filter(|id| !users.contains_key(*id));
        let came = users.keys().filter(|id| !self.told.contains(*id));
        let event = |event_type| {
            move |user_id: &UserId| StatusEvent {
                event_type,
                event_user_id: user_id.clone(),
                event_id: None,
            }
        };
        let mut events: Vec<_> = gone
            .map(event(EventType::UserDisconnected))
            .chain(came.map(event(EventType::UserConnected)))
            .collect();
        if events.len() > 1 {
            let places: HashMap<_, _> = latest
                .iter()
                .enumerate()
                .map(|(at, user_id)| (user_id, at))
                .collect();
            // What is not among the latest was before them.
            events.sort_by_key(|event| places.get(&event.event_user_id).copied());
        }
        events.truncate(MAX_LISTED_EVENTS);
        if events.is_empty() && self.joiners.is_empty() && !self.is_retyped {
            return Next::Nothing;
        }
        if now < self.next_frame {
            return Next::Later;
        }
        // A full frame has a pause after it in any session: a crowd that leaves is told as slowly as one that comes.
        if self.status.is_large() || events.len() == MAX_LISTED_EVENTS {
            self.next_frame = now + LARGE_SESSION_INTERVAL;
        }
        if events.is_empty() && !self.is_retyped {
            return Next::Joiners;
        }
        self.is_retyped = false;
        self.joiners.clear();
        for event in &events {
            match event.event_type {
                EventType::UserConnected => drop(self.told.insert(event.event_user_id.clone())),
                EventType::UserDisconnected => drop(self.told.remove(&event.event_user_id)),
            }
        }
        Next::Everyone(events)
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
        shown.update(5, status([1, 2]), false);
        let Next::Everyone(events) = shown.next(now, &[]) else {
            panic!()
        };
        assert_eq!((events.len(), events[0].event_user_id.as_str()), (1, "u2"));
        shown.update(4, status([]), false);
        assert_eq!(shown.next(now, &[]), Next::Nothing, "an older snapshot");
        shown.distrust();
        shown.update(4, status([]), false);
        let Next::Everyone(events) = shown.next(now, &[]) else {
            panic!()
        };
        assert_eq!(events.len(), 2, "older, but Redis has begun anew");
    }

    #[test]
    fn events_are_in_the_order_of_the_latest_changes() {
        let now = Instant::now();
        let user = |n: usize| UserId::parse(&format!("u{n}")).unwrap();
        let mut shown = Shown::before(&status([1, 2, 3]), &[], now);
        shown.update(1, status([2, 4, 5, 6]), false);
        // u6 came before all that is still known.
        let latest = [5, 3, 2, 4, 1, 5].map(user);
        let Next::Everyone(events) = shown.next(now, &latest) else {
            panic!()
        };
        let order: Vec<_> = events.into_iter().map(|event| event.event_user_id).collect();
        assert_eq!(order, [6, 3, 4, 1, 5].map(user));
    }

    #[test]
    fn whom_damaged_keys_do_not_have_is_still_there() {
        let now = Instant::now();
        let mut shown = Shown::before(&status([1, 2]), &[], now);
        shown.update(1, status([1, 2]), false);
        shown.update(2, status([3]), true);
        assert_eq!(shown.status, status([1, 2, 3]));
        assert!(matches!(shown.next(now, &[]), Next::Everyone(events) if events.len() == 1));
        shown.update(3, status([1, 3]), false);
        let Next::Everyone(events) = shown.next(now, &[]) else {
            panic!()
        };
        assert_eq!((events.len(), events[0].event_user_id.as_str()), (1, "u2"));
    }

    #[test]
    fn another_type_is_shown_to_everyone_once() {
        let now = Instant::now();
        let mut shown = Shown::before(&status([1, 2]), &[], now);
        shown.update(1, status([1, 2]), false);
        let mut as_agent = status([1, 2]);
        let user = as_agent.users.get_mut(&UserId::parse("u2").unwrap()).unwrap();
        user.user_type = UserType::Agent;
        shown.update(2, as_agent.clone(), false);
        assert_eq!(shown.next(now, &[]), Next::Everyone(Vec::new()));
        shown.update(3, as_agent, false);
        assert_eq!(shown.next(now, &[]), Next::Nothing);
    }

    #[test]
    fn a_large_session_is_told_once_a_second_and_of_everything() {
        let now = Instant::now();
        let mut shown = Shown::before(&status([]), &[], now);
        shown.update(1, status(0..250), false);
        let mut told = 0;
        for step in 0..3 {
            let now = now + LARGE_SESSION_INTERVAL * step;
            let Next::Everyone(events) = shown.next(now, &[]) else {
                panic!()
            };
            told += events.len();
            if step < 2 {
                assert_eq!(shown.next(now, &[]), Next::Later);
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
                shown.update(version as u64 + 1, status(users), false);
                if sends >> (version % 32) & 1 == 0 && version + 1 < count {
                    continue;
                }
                if let Next::Everyone(events) = shown.next(now, &[]) {
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
