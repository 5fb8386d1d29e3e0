//! Who is connected: the snapshot in REST answers and in `connection_status_update`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ids::{SessionId, UserId, UserType};

/// With more users than this, a status frame carries totals without a list, and is sent at most once a second.
pub const MAX_LISTED_USERS: usize = 100;

/// The most entries of `events` in one status frame.
pub const MAX_LISTED_EVENTS: usize = 100;

/// A connected user. Readers of Redis rely on these field names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectedUser {
    pub user_id: UserId,
    pub user_type: UserType,
    /// RFC 3339, UTC.
    pub joined_at: String,
}

/// Everyone connected to a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConnectionStatus {
    pub users: BTreeMap<UserId, ConnectedUser>,
    pub customer_connected: bool,
    pub agent_connected: bool,
    pub total_customer: usize,
    pub total_agent: usize,
}

impl ConnectionStatus {
    /// Whether the list of users is left out.
    pub fn is_large(&self) -> bool {
        self.users.len() > MAX_LISTED_USERS
    }

    pub fn of(users: impl IntoIterator<Item = ConnectedUser>) -> Self {
        let users: BTreeMap<_, _> = users
            .into_iter()
            .map(|user| (user.user_id.clone(), user))
            .collect();
        let count = |kind| users.values().filter(|user| user.user_type == kind).count();
        let (total_customer, total_agent) = (count(UserType::Customer), count(UserType::Agent));
        Self {
            customer_connected: total_customer > 0,
            agent_connected: total_agent > 0,
            total_customer,
            total_agent,
            users,
        }
    }
}

/// A session's status and its net changes, as frames and records carry them. A long list of users is left out.
#[derive(Serialize)]
pub(super) struct StatusChange<'a> {
    session_id: &'a SessionId,
    connection_status: Listed<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    users_truncated: bool,
    timestamp: &'a str,
    #[serde(flatten)]
    last: Option<&'a StatusEvent>,
    events: &'a [StatusEvent],
}

#[derive(Serialize)]
struct Listed<'a> {
    users: &'a BTreeMap<UserId, ConnectedUser>,
    customer_connected: bool,
    agent_connected: bool,
    total_customer: usize,
    total_agent: usize,
}

impl<'a> StatusChange<'a> {
    pub fn of(
        session_id: &'a SessionId,
        status: &'a ConnectionStatus,
        events: &'a [StatusEvent],
        timestamp: &'a str,
    ) -> Self {
        static NONE: BTreeMap<UserId, ConnectedUser> = BTreeMap::new();
        let users_truncated = status.is_large();
        let connection_status = Listed {
            users: if users_truncated { &NONE } else { &status.users },
            customer_connected: status.customer_connected,
            agent_connected: status.agent_connected,
            total_customer: status.total_customer,
            total_agent: status.total_agent,
        };
        Self {
            session_id,
            connection_status,
            users_truncated,
            timestamp,
            last: events.last(),
            // The newest are kept; `event_*` repeat the last one.
            events: &events[events.len().saturating_sub(MAX_LISTED_EVENTS)..],
        }
    }
}

/// Whether a user connected or disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    UserConnected,
    UserDisconnected,
}

/// A net change within a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusEvent {
    pub event_type: EventType,
    pub event_user_id: UserId,
    /// In records only, so that readers recognize duplicates. Unique within the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_count_customers_and_agents_only() {
        let user = |id: &str, user_type| ConnectedUser {
            user_id: UserId::parse(id).unwrap(),
            user_type,
            joined_at: "2026-01-01T00:00:00.000Z".into(),
        };
        let users = [
            user("a", UserType::Admin),
            user("c", UserType::Customer),
            user("d", UserType::Customer),
        ];
        let status = ConnectionStatus::of(users);
        assert_eq!((status.total_customer, status.total_agent), (2, 0));
        assert!(status.customer_connected && !status.agent_connected);
        assert_eq!(status.users.len(), 3);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["users"]["a"]["user_type"], "admin");
        let empty = serde_json::to_string(&ConnectionStatus::default()).unwrap();
        assert_eq!(
            empty,
            r#"{"users":{},"customer_connected":false,"agent_connected":false,"total_customer":0,"total_agent":0}"#
        );
    }
}
