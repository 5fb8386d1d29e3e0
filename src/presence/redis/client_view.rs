//! What has been announced to this node's clients about a session. They are sent the difference to that, so that each
//! join and leave is announced once, however often it is reported.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use super::session_entry::StateAfter;
use crate::presence::status_frames::{Changes, NextFrame, Throttle};
use crate::protocol::ids::UserId;
use crate::protocol::status::{ConnectionStatus, EventType, StatusEvent};
use crate::writer::ConnectionWriter;

pub struct ClientView {
    version: u64,
    /// Users whom clients believe to be connected, according to the events they were sent.
    announced: BTreeSet<UserId>,
    pub status: ConnectionStatus,
    /// New connections that have not been sent anything yet.
    pub joiners: Vec<Arc<ConnectionWriter>>,
    /// Events not published to other nodes yet, because no snapshot was requested.
    pub unpublished: Option<Vec<StatusEvent>>,
    /// Tells the session's keys in Redis from recreated ones; empty if unknown.
    pub birth: String,
    /// Who waited for whom when the session was last seen in Redis.
    pub state: Option<StateAfter>,
    /// Since when one of the session's values has been unreadable.
    pub unreadable_since: Option<Instant>,
    /// A user's type differs from what was announced.
    is_retyped: bool,
    throttle: Throttle,
}

impl ClientView {
    /// Nothing was sent before: users who were connected already are not announced, those who `joined` are.
    pub fn initial(status: &ConnectionStatus, joined: &[UserId], now: Instant) -> Self {
        let mut announced: BTreeSet<_> = status.users.keys().cloned().collect();
        for user_id in joined {
            announced.remove(user_id);
        }
        Self {
            version: 0,
            announced,
            status: ConnectionStatus::default(),
            joiners: Vec::new(),
            unpublished: None,
            birth: String::new(),
            state: None,
            unreadable_since: None,
            is_retyped: false,
            throttle: Throttle::new(now),
        }
    }

    /// Whether a snapshot would be sent at once, and so is worth requesting.
    pub fn wants_snapshot(&self, now: Instant) -> bool {
        self.throttle.allows(now)
    }

    pub fn next_frame(&self) -> Instant {
        self.throttle.next_frame()
    }

    /// Applies a snapshot, unless it is older than the current one. Users missing from a suspect one are kept: their
    /// nodes may not have rewritten them yet.
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
            let is_missing = |id: &UserId| self.announced.contains(id) && !self.status.users.contains_key(id);
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

    /// Whether this user's join was announced to clients here.
    pub fn has_announced(&self, user_id: &UserId) -> bool {
        self.announced.contains(user_id)
    }

    /// Redis has lost data: its versions may start again.
    pub fn reset_versions(&mut self) {
        self.version = 0;
    }

    /// The next frame, which counts as sent. Its events are in the order of `latest`, the users of the latest changes.
    /// A user who rejoins before the leave is announced produces no event.
    pub fn next(&mut self, now: Instant, latest: &[UserId]) -> NextFrame {
        let users = &self.status.users;
        let left = self.announced.iter().filter(|id| !users.contains_key(*id));
        let joined = users.keys().filter(|id| !self.announced.contains(*id));
        let event = |event_type| {
            move |user_id: &UserId| StatusEvent {
                event_type,
                event_user_id: user_id.clone(),
                event_id: None,
            }
        };
        let mut events: Vec<_> = left
            .map(event(EventType::UserDisconnected))
            .chain(joined.map(event(EventType::UserConnected)))
            .collect();
        if events.len() > 1 {
            let places: HashMap<_, _> = latest
                .iter()
                .enumerate()
                .map(|(at, user_id)| (user_id, at))
                .collect();
            // Older changes come first.
            events.sort_by_key(|event| places.get(&event.event_user_id).copied());
        }
        let changes = Changes {
            events,
            is_retyped: self.is_retyped,
            has_joiners: !self.joiners.is_empty(),
            is_large: self.status.is_large(),
        };
        let next = self.throttle.next(now, changes);
        if let NextFrame::Everyone(events) = &next {
            self.is_retyped = false;
            for event in events {
                match event.event_type {
                    EventType::UserConnected => drop(self.announced.insert(event.event_user_id.clone())),
                    EventType::UserDisconnected => drop(self.announced.remove(&event.event_user_id)),
                }
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::presence::status_frames::LARGE_SESSION_INTERVAL;
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
    fn users_who_were_there_already_are_not_announced() {
        let now = Instant::now();
        let mut view = ClientView::initial(&status([1, 2]), &[UserId::parse("u2").unwrap()], now);
        view.update(5, status([1, 2]), false);
        let NextFrame::Everyone(events) = view.next(now, &[]) else {
            panic!()
        };
        assert_eq!((events.len(), events[0].event_user_id.as_str()), (1, "u2"));
        view.update(4, status([]), false);
        assert_eq!(view.next(now, &[]), NextFrame::Nothing, "an older snapshot");
        view.reset_versions();
        view.update(4, status([]), false);
        let NextFrame::Everyone(events) = view.next(now, &[]) else {
            panic!()
        };
        assert_eq!(events.len(), 2, "older, but Redis has started again");
    }

    #[test]
    fn events_are_in_the_order_of_the_latest_changes() {
        let now = Instant::now();
        let user = |n: usize| UserId::parse(&format!("u{n}")).unwrap();
        let mut view = ClientView::initial(&status([1, 2, 3]), &[], now);
        view.update(1, status([2, 4, 5, 6]), false);
        // u6 joined before all changes that are still known.
        let latest = [5, 3, 2, 4, 1, 5].map(user);
        let NextFrame::Everyone(events) = view.next(now, &latest) else {
            panic!()
        };
        let order: Vec<_> = events.into_iter().map(|event| event.event_user_id).collect();
        assert_eq!(order, [6, 3, 4, 1, 5].map(user));
    }

    #[test]
    fn users_missing_from_damaged_keys_are_kept() {
        let now = Instant::now();
        let mut view = ClientView::initial(&status([1, 2]), &[], now);
        view.update(1, status([1, 2]), false);
        view.update(2, status([3]), true);
        assert_eq!(view.status, status([1, 2, 3]));
        assert!(matches!(view.next(now, &[]), NextFrame::Everyone(events) if events.len() == 1));
        view.update(3, status([1, 3]), false);
        let NextFrame::Everyone(events) = view.next(now, &[]) else {
            panic!()
        };
        assert_eq!((events.len(), events[0].event_user_id.as_str()), (1, "u2"));
    }

    #[test]
    fn a_changed_type_is_sent_to_everyone_once() {
        let now = Instant::now();
        let mut view = ClientView::initial(&status([1, 2]), &[], now);
        view.update(1, status([1, 2]), false);
        let mut as_agent = status([1, 2]);
        let user = as_agent.users.get_mut(&UserId::parse("u2").unwrap()).unwrap();
        user.user_type = UserType::Agent;
        view.update(2, as_agent.clone(), false);
        assert_eq!(view.next(now, &[]), NextFrame::Everyone(Vec::new()));
        view.update(3, as_agent, false);
        assert_eq!(view.next(now, &[]), NextFrame::Nothing);
    }

    #[test]
    fn a_large_session_gets_one_frame_a_second_and_every_event() {
        let now = Instant::now();
        let mut view = ClientView::initial(&status([]), &[], now);
        view.update(1, status(0..250), false);
        let mut announced = 0;
        for step in 0..3 {
            let now = now + LARGE_SESSION_INTERVAL * step;
            let NextFrame::Everyone(events) = view.next(now, &[]) else {
                panic!()
            };
            announced += events.len();
            if step < 2 {
                assert_eq!(view.next(now, &[]), NextFrame::Later);
            }
        }
        assert_eq!(announced, 250);
    }

    proptest! {
        /// Events, applied one after the other, always add up to the snapshot.
        #[test]
        fn events_add_up_to_the_users(snapshots in prop::collection::vec(prop::collection::btree_set(0usize..8, 0..8), 1..20), sends in any::<u32>()) {
            let now = Instant::now();
            let mut view = ClientView::initial(&status([]), &[], now);
            let mut announced = BTreeSet::new();
            let last = snapshots.last().cloned().unwrap();
            let count = snapshots.len();
            for (version, users) in snapshots.into_iter().enumerate() {
                view.update(version as u64 + 1, status(users), false);
                if sends >> (version % 32) & 1 == 0 && version + 1 < count {
                    continue;
                }
                if let NextFrame::Everyone(events) = view.next(now, &[]) {
                    for event in events {
                        let is_news = match event.event_type {
                            EventType::UserConnected => announced.insert(event.event_user_id),
                            EventType::UserDisconnected => announced.remove(&event.event_user_id),
                        };
                        prop_assert!(is_news);
                    }
                }
            }
            let expected: BTreeSet<_> = status(last).users.into_keys().collect();
            prop_assert_eq!(announced, expected);
        }
    }
}
