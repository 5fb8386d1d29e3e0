//! The users of one session on this node: how many connections each has, and what was announced.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use jiff::Timestamp;

use crate::clock::Moment;
use crate::protocol::format_timestamp;
use crate::protocol::ids::{UserId, UserType};
use crate::protocol::lobby::Totals;
use crate::protocol::status::{ConnectedUser, ConnectionStatus, EventType, StatusEvent};

/// One user here.
struct LocalUser {
    /// In milliseconds since 1970: what the wire shows, in half of a timestamp's bytes.
    joined_at: i64,
    came: Moment,
    /// When the last connection ended; once gone, when that was.
    left_at: Moment,
    connections: u32,
    user_type: UserType,
    stage: Stage,
    /// Whether `user_connected` was announced and `user_disconnected` was not: a user who joins and leaves between two
    /// announcements is no change.
    announced: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// With a connection.
    Here,
    /// Without one, but the user may reconnect within `PRESENCE_GRACE`.
    Grace,
    /// Has left, which is still to be announced.
    Gone,
}

/// A user as this node knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserState {
    pub user_type: UserType,
    pub joined_at: Timestamp,
    /// 0: in the grace.
    pub connections: u32,
    pub came: Moment,
}

/// The users who are connected at one moment.
pub struct Connected(Vec<(UserId, UserType, i64)>);

impl Connected {
    /// As the wire shows them.
    pub fn status(self) -> ConnectionStatus {
        ConnectionStatus::of(
            self.0
                .into_iter()
                .map(|(user_id, user_type, joined_at)| ConnectedUser {
                    user_id,
                    user_type,
                    joined_at: format_timestamp(timestamp_of(joined_at)),
                }),
        )
    }
}

#[derive(Default)]
pub struct SessionUsers {
    users: HashMap<UserId, LocalUser, RandomState>,
    /// Whether there is a grace: otherwise users leave with their last connection.
    has_grace: bool,
    /// The type of an announced user has changed.
    is_retyped: bool,
    in_grace: u32,
}

impl SessionUsers {
    /// `has_grace`: users without a connection stay until [`Self::end_grace`].
    pub fn new(has_grace: bool) -> Self {
        Self {
            has_grace,
            ..Self::default()
        }
    }

    /// Adds a connection. A user's type is that of the first open connection, whatever later ones say.
    pub fn join(&mut self, user_id: &UserId, user_type: UserType) -> UserType {
        self.join_at(user_id, user_type, Moment::now())
    }

    fn join_at(&mut self, user_id: &UserId, user_type: UserType, now: Moment) -> UserType {
        if let Some(user) = self.users.get_mut(user_id) {
            if user.connections == 0 {
                self.in_grace -= u32::from(user.stage == Stage::Grace);
                user.stage = Stage::Here;
                // The leave was not announced; as another type the user is new all the same.
                if user.user_type != user_type {
                    (user.user_type, user.joined_at) = (user_type, Timestamp::now().as_millisecond());
                    self.is_retyped |= user.announced;
                }
            }
            user.connections += 1;
            return user.user_type;
        }
        let user = LocalUser {
            joined_at: Timestamp::now().as_millisecond(),
            came: now,
            left_at: now,
            connections: 1,
            user_type,
            stage: Stage::Here,
            announced: false,
        };
        self.users.insert(user_id.clone(), user);
        user_type
    }

    /// Removes a connection. Returns whether it was the user's last.
    pub fn leave(&mut self, user_id: &UserId) -> bool {
        self.leave_at(user_id, Moment::now())
    }

    fn leave_at(&mut self, user_id: &UserId, now: Moment) -> bool {
        let Some(user) = self.users.get_mut(user_id).filter(|user| user.connections > 0) else {
            return false;
        };
        user.connections -= 1;
        if user.connections > 0 {
            return false;
        }
        (user.left_at, user.stage) = (now, Stage::Grace);
        self.in_grace += 1;
        if !self.has_grace {
            self.end_grace(user_id, now, now);
        }
        true
    }

    /// Ends, at `end`, the grace of a user whose last connection closed at `left_at`. Returns false if the user has
    /// reconnected, or has left already.
    pub fn end_grace(&mut self, user_id: &UserId, left_at: Moment, end: Moment) -> bool {
        let in_it = |user: &&mut LocalUser| user.stage == Stage::Grace && user.left_at == left_at;
        let Some(user) = self.users.get_mut(user_id).filter(in_it) else {
            return false;
        };
        (user.left_at, user.stage) = (end, Stage::Gone);
        self.in_grace -= 1;
        if !user.announced {
            self.users.remove(user_id);
        }
        true
    }

    /// Whether somebody is in the grace.
    pub fn has_users_in_grace(&self) -> bool {
        self.in_grace > 0
    }

    /// Who is in the grace, and since when.
    pub fn users_in_grace(&self) -> Vec<(UserId, Moment)> {
        let in_grace = self.users.iter().filter(|(_, user)| user.stage == Stage::Grace);
        in_grace
            .map(|(user_id, user)| (user_id.clone(), user.left_at))
            .collect()
    }

    /// Since when a user is in the grace.
    pub fn in_grace_since(&self, user_id: &UserId) -> Option<Moment> {
        let user = self.users.get(user_id)?;
        (user.stage == Stage::Grace).then_some(user.left_at)
    }

    /// What is held of one user.
    pub fn state_of(&self, user_id: &UserId) -> Option<UserState> {
        let user = self.users.get(user_id).filter(|user| user.stage != Stage::Gone)?;
        Some(UserState {
            user_type: user.user_type,
            joined_at: timestamp_of(user.joined_at),
            connections: user.connections,
            came: user.came,
        })
    }

    /// Everyone who is held.
    pub fn ids(&self) -> Vec<UserId> {
        self.there().map(|(user_id, _)| user_id.clone()).collect()
    }

    /// Everyone who is held and came before.
    pub fn ids_before(&self, moment: Moment) -> Vec<UserId> {
        let came_before = self.there().filter(|(_, user)| user.came < moment);
        came_before.map(|(user_id, _)| user_id.clone()).collect()
    }

    fn there(&self) -> impl Iterator<Item = (&UserId, &LocalUser)> {
        self.users.iter().filter(|(_, user)| user.stage != Stage::Gone)
    }

    /// How many users there are, gone but unannounced ones included.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Everyone who is connected, collected cheaply: the caller holds the session's lock.
    pub fn connected(&self) -> Connected {
        let there = self.there();
        Connected(
            there
                .map(|(user_id, user)| (user_id.clone(), user.user_type, user.joined_at))
                .collect(),
        )
    }

    /// How many of those who are connected count; `None` if nobody is.
    pub fn totals(&self) -> Option<Totals> {
        let mut totals = Totals::default();
        let mut is_empty = true;
        for (_, user) in self.there() {
            is_empty = false;
            match user.user_type {
                UserType::Customer => totals.customers += 1,
                UserType::Agent => totals.agents += 1,
                UserType::Admin => {}
            }
        }
        (!is_empty).then_some(totals)
    }

    /// Whether the type of an announced user has changed since the last call. That is no event, but clients are sent
    /// it.
    pub fn take_retyped(&mut self) -> bool {
        std::mem::take(&mut self.is_retyped)
    }

    /// Up to `limit` of the net changes since the last call, in the order in which they happened; they count as
    /// announced.
    pub fn take_changes(&mut self, limit: usize) -> Vec<StatusEvent> {
        let is_change = |user: &LocalUser| user.announced == (user.stage == Stage::Gone);
        let changed = self.users.iter().filter(|(_, user)| is_change(user));
        let when = |user: &LocalUser| {
            if user.stage == Stage::Gone {
                user.left_at
            } else {
                user.came
            }
        };
        let mut changed: Vec<_> = changed
            .map(|(user_id, user)| (when(user), user_id.clone()))
            .collect();
        changed.sort_unstable();
        changed.truncate(limit);
        let announce = |(_, user_id): (Moment, UserId)| {
            let user = self.users.get_mut(&user_id)?;
            let event_type = match user.stage {
                Stage::Gone => {
                    self.users.remove(&user_id);
                    EventType::UserDisconnected
                }
                Stage::Here | Stage::Grace => {
                    user.announced = true;
                    EventType::UserConnected
                }
            };
            Some(StatusEvent {
                event_type,
                event_user_id: user_id,
                event_id: None,
            })
        };
        changed.into_iter().filter_map(announce).collect()
    }
}

fn timestamp_of(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn user(n: u8) -> UserId {
        UserId::parse(&format!("u{n}")).unwrap()
    }

    fn announced(users: &mut SessionUsers) -> Vec<(bool, String)> {
        let events = users.take_changes(usize::MAX).into_iter();
        let is_join = |event: &StatusEvent| event.event_type == EventType::UserConnected;
        events
            .map(|event| (is_join(&event), event.event_user_id.as_str().to_owned()))
            .collect()
    }

    #[test]
    fn tabs_of_one_user_are_one_user() {
        let mut users = SessionUsers::default();
        users.join(&user(1), UserType::Customer);
        assert_eq!(users.take_changes(usize::MAX).len(), 1);
        assert_eq!(users.join(&user(1), UserType::Agent), UserType::Customer);
        assert!(!users.leave(&user(1)));
        assert!(users.take_changes(usize::MAX).is_empty());
        assert_eq!(users.connected().status().total_customer, 1);
        assert!(users.leave(&user(1)));
        assert_eq!(users.connected().status().total_customer, 0);
        assert_eq!(announced(&mut users), [(false, "u1".to_owned())]);
        assert!(users.is_empty());
    }

    #[test]
    fn a_user_who_joins_and_leaves_within_a_window_produces_no_event() {
        let mut users = SessionUsers::default();
        users.join(&user(1), UserType::Customer);
        users.leave(&user(1));
        assert!(users.take_changes(usize::MAX).is_empty());
        assert!(users.is_empty());
    }

    #[test]
    fn events_are_in_the_order_in_which_they_happened() {
        let mut users = SessionUsers::default();
        for n in [7, 3, 9] {
            users.join(&user(n), UserType::Customer);
        }
        let joins = [7, 3, 9].map(|n| (true, user(n).as_str().to_owned()));
        assert_eq!(announced(&mut users), joins);
        users.join(&user(4), UserType::Agent);
        users.leave(&user(9));
        users.join(&user(1), UserType::Agent);
        // A second tab, and one who is back at once: no event, and no other order.
        users.join(&user(4), UserType::Agent);
        users.leave(&user(7));
        users.join(&user(7), UserType::Customer);
        users.leave(&user(3));
        let mixed = [(true, 4), (false, 9), (true, 1), (false, 3)];
        assert_eq!(
            announced(&mut users),
            mixed.map(|(is_join, n)| (is_join, user(n).as_str().to_owned()))
        );
    }

    #[test]
    fn a_user_who_rejoins_within_the_grace_produces_no_event() {
        let (mut users, start) = (SessionUsers::new(true), Moment::now());
        let at = |ms| start + Duration::from_millis(ms);
        users.join_at(&user(1), UserType::Customer, at(0));
        assert_eq!(announced(&mut users), [(true, "u1".to_owned())]);
        let joined_at = users.state_of(&user(1)).unwrap().joined_at;
        assert!(users.leave_at(&user(1), at(10)));
        assert!(users.has_users_in_grace() && announced(&mut users).is_empty());
        assert_eq!(users.connected().status().total_customer, 1);
        let (customers, agents) = (1, 0);
        assert_eq!(users.totals(), Some(Totals { customers, agents }));
        assert_eq!(users.state_of(&user(1)).unwrap().connections, 0);
        users.join_at(&user(1), UserType::Customer, at(20));
        assert!(!users.has_users_in_grace());
        assert_eq!(users.state_of(&user(1)).unwrap().joined_at, joined_at);
        assert!(!users.end_grace(&user(1), at(10), at(2010)), "that one is back");
        assert!(users.leave_at(&user(1), at(30)));
        assert!(!users.end_grace(&user(1), at(10), at(2010)), "it has left anew");
        // As another type.
        assert_eq!(users.join_at(&user(1), UserType::Agent, at(40)), UserType::Agent);
        assert_eq!(users.connected().status().total_agent, 1);
        assert!(announced(&mut users).is_empty());
        assert!(users.take_retyped() && !users.take_retyped());
        assert!(users.leave_at(&user(1), at(50)));
        assert!(users.end_grace(&user(1), at(50), at(2050)));
        assert!(users.connected().status().users.is_empty());
        assert_eq!(users.totals(), None);
        assert_eq!(announced(&mut users), [(false, "u1".to_owned())]);
        assert!(users.is_empty() && !users.has_users_in_grace());
    }

    proptest! {
        /// Events, applied one after the other, always give the connected users.
        #[test]
        fn events_add_up_to_the_status(
            has_grace in any::<bool>(),
            steps in prop::collection::vec((0u8..6, 0u8..4), 0..200),
        ) {
            let mut users = SessionUsers::new(has_grace);
            let mut counts = [0usize; 6];
            // Since when somebody is in the grace.
            let mut grace = [None; 6];
            let mut announced = std::collections::BTreeSet::new();
            let mut now = Moment::now();
            for (who, what) in steps {
                now = now + Duration::from_millis(1);
                let n = usize::from(who);
                match what {
                    0 => {
                        users.join_at(&user(who), UserType::Customer, now);
                        counts[n] += 1;
                        grace[n] = None;
                    }
                    1 if counts[n] > 0 => {
                        counts[n] -= 1;
                        let is_last = counts[n] == 0;
                        prop_assert_eq!(users.leave_at(&user(who), now), is_last);
                        grace[n] = (is_last && has_grace).then_some(now);
                    }
                    2 => {
                        let is_over = grace[n].take().is_some_and(|since| users.end_grace(&user(who), since, now));
                        prop_assert_eq!(users.in_grace_since(&user(who)), None);
                        prop_assert!(!is_over || counts[n] == 0);
                    }
                    _ => {
                        for event in users.take_changes(usize::MAX) {
                            let changed = match event.event_type {
                                EventType::UserConnected => announced.insert(event.event_user_id),
                                EventType::UserDisconnected => announced.remove(&event.event_user_id),
                            };
                            prop_assert!(changed, "an event that changes nothing");
                        }
                        prop_assert_eq!(&announced, &users.connected().status().users.keys().cloned().collect());
                        let there = counts.iter().zip(&grace).filter(|(count, grace)| **count > 0 || grace.is_some());
                        prop_assert_eq!(users.len(), there.count());
                    }
                }
                prop_assert_eq!(users.users_in_grace().len(), grace.iter().flatten().count());
                prop_assert_eq!(users.has_users_in_grace(), grace.iter().flatten().count() > 0);
            }
        }
    }
}
