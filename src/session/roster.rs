//! The users of one session on this node: how many connections each has, and what others were told of it.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use jiff::Timestamp;

use crate::protocol::format_timestamp;
use crate::protocol::ids::{UserId, UserType};
use crate::protocol::status::{ConnectedUser, ConnectionStatus, EventType, StatusEvent};

/// One user here.
struct LocalUser {
    user_type: UserType,
    joined_at: Timestamp,
    connections: usize,
    /// Whether `user_connected` was announced and `user_disconnected` was not: who comes and goes between two
    /// announcements is no change.
    announced: bool,
}

/// The connected users of a moment.
pub struct Connected(Vec<(UserId, UserType, Timestamp)>);

impl Connected {
    /// As the wire shows them.
    pub fn status(self) -> ConnectionStatus {
        ConnectionStatus::of(
            self.0
                .into_iter()
                .map(|(user_id, user_type, joined_at)| ConnectedUser {
                    user_id,
                    user_type,
                    joined_at: format_timestamp(joined_at),
                }),
        )
    }
}

#[derive(Default)]
pub struct Roster {
    users: HashMap<UserId, LocalUser, RandomState>,
}

impl Roster {
    /// Counts a connection in. A user's type is that of the first live connection, whatever a later one says.
    pub fn join(&mut self, user_id: &UserId, user_type: UserType) -> UserType {
        let user = self.users.entry(user_id.clone()).or_insert(LocalUser {
            user_type,
            joined_at: Timestamp::UNIX_EPOCH,
            connections: 0,
            announced: false,
        });
        if user.connections == 0 {
            (user.user_type, user.joined_at) = (user_type, Timestamp::now());
        }
        user.connections += 1;
        user.user_type
    }

    /// Counts a connection out; true when it was the user's last.
    pub fn leave(&mut self, user_id: &UserId) -> bool {
        let Some(user) = self.users.get_mut(user_id) else {
            return false;
        };
        user.connections = user.connections.saturating_sub(1);
        let is_last = user.connections == 0;
        if is_last && !user.announced {
            self.users.remove(user_id);
        }
        is_last
    }

    pub fn connections(&self, user_id: &UserId) -> usize {
        self.users.get(user_id).map_or(0, |user| user.connections)
    }

    /// What is held of one user: type, since when, connections.
    pub fn held(&self, user_id: &UserId) -> Option<(UserType, Timestamp, usize)> {
        let user = self.users.get(user_id).filter(|user| user.connections > 0)?;
        Some((user.user_type, user.joined_at, user.connections))
    }

    /// Everyone who is held.
    pub fn ids(&self) -> Vec<UserId> {
        self.users.keys().cloned().collect()
    }

    /// How many users there are, gone but unannounced ones included.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Everyone who is connected, as cheaply as can be: the caller holds the session's lock.
    pub fn connected(&self) -> Connected {
        let connected = self.users.iter().filter(|(_, user)| user.connections > 0);
        Connected(
            connected
                .map(|(user_id, user)| (user_id.clone(), user.user_type, user.joined_at))
                .collect(),
        )
    }

    /// Up to `limit` of the net changes since the last call, leaves before joins; they count as announced.
    pub fn take_changes(&mut self, limit: usize) -> Vec<StatusEvent> {
        let mut events = Vec::new();
        self.users.retain(|user_id, user| {
            let has_left = user.connections == 0;
            if has_left && user.announced {
                if events.len() == limit {
                    return true;
                }
                let event_type = EventType::UserDisconnected;
                events.push(StatusEvent {
                    event_type,
                    event_user_id: user_id.clone(),
                    event_id: None,
                });
            }
            !has_left
        });
        let room = limit - events.len();
        for (user_id, user) in self
            .users
            .iter_mut()
            .filter(|(_, user)| !user.announced)
            .take(room)
        {
            user.announced = true;
            events.push(StatusEvent {
                event_type: EventType::UserConnected,
                event_user_id: user_id.clone(),
                event_id: None,
            });
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(n: u8) -> UserId {
        UserId::parse(&format!("u{n}")).unwrap()
    }

    #[test]
    fn tabs_of_one_user_are_one_user() {
        let mut roster = Roster::default();
        roster.join(&user(1), UserType::Customer);
        assert_eq!(roster.take_changes(usize::MAX).len(), 1);
        assert_eq!(roster.join(&user(1), UserType::Agent), UserType::Customer);
        assert!(!roster.leave(&user(1)));
        assert!(roster.take_changes(usize::MAX).is_empty());
        assert_eq!(roster.connected().status().total_customer, 1);
        assert!(roster.leave(&user(1)));
        assert_eq!(roster.connected().status().total_customer, 0);
        assert_eq!(
            roster.take_changes(usize::MAX)[0].event_type,
            EventType::UserDisconnected
        );
        assert!(roster.is_empty());
    }

    #[test]
    fn who_comes_and_goes_within_a_window_is_no_event() {
        let mut roster = Roster::default();
        roster.join(&user(1), UserType::Customer);
        roster.leave(&user(1));
        assert!(roster.take_changes(usize::MAX).is_empty());
        assert!(roster.is_empty());
    }

    proptest! {
        /// Events, applied one after the other, always give the connected users.
        #[test]
        fn events_add_up_to_the_status(steps in prop::collection::vec((0u8..6, 0u8..3), 0..200)) {
            let mut roster = Roster::default();
            let mut counts = [0usize; 6];
            let mut announced = std::collections::BTreeSet::new();
            for (who, what) in steps {
                match what {
                    0 => {
                        roster.join(&user(who), UserType::Customer);
                        counts[usize::from(who)] += 1;
                    }
                    1 if counts[usize::from(who)] > 0 => {
                        counts[usize::from(who)] -= 1;
                        prop_assert_eq!(roster.leave(&user(who)), counts[usize::from(who)] == 0);
                    }
                    _ => {
                        for event in roster.take_changes(usize::MAX) {
                            let changed = match event.event_type {
                                EventType::UserConnected => announced.insert(event.event_user_id),
                                EventType::UserDisconnected => announced.remove(&event.event_user_id),
                            };
                            prop_assert!(changed, "an event that changes nothing");
                        }
                        prop_assert_eq!(&announced, &roster.connected().status().users.keys().cloned().collect());
                        prop_assert_eq!(roster.len(), counts.iter().filter(|&&count| count > 0).count());
                    }
                }
            }
        }
    }
}
