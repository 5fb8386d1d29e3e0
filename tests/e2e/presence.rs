//! The presence contract: who is listed, what is announced to whom, and when. One suite for every store;
//! `presence_embedded` and `redis_presence` make its tests, so that a name says what it needs.
//!
//! A scenario is a function of a [`Store`], in `presence_notifications`, `presence_grace`, `presence_status` or
//! `presence_lobby`; [`contract`] lists them all.

use serde_json::{Value, json};

use crate::services::{redis_url, unique};
use crate::support::{Client, RawWs, Server, ServerBuilder};

pub const STATUS: &str = "connection_status_update";

/// Where presence is kept.
#[derive(Clone, Copy)]
pub enum Store {
    Embedded,
    /// The Redis that all tests share. The bus is in the process: presence is all that differs.
    Redis,
}

impl Store {
    pub fn builder(self) -> ServerBuilder {
        // Many clients of these tests answer no pings.
        let builder = Server::builder().env("PING_INTERVAL", "10m");
        match self {
            Self::Embedded => builder,
            Self::Redis => builder.env("REDIS_URL", redis_url()),
        }
    }

    /// A server and a session nobody knows.
    #[track_caller]
    pub fn room(self) -> Room {
        Room::on(self.builder())
    }
}

/// A session on a server of a test's own.
pub struct Room {
    pub server: Server,
    pub session: String,
}

impl Room {
    #[track_caller]
    pub fn on(builder: ServerBuilder) -> Self {
        Self {
            server: builder.start(),
            session: unique("session"),
        }
    }

    pub async fn client(&self, user: &str, user_type: &str) -> Client {
        Client::connect(&self.server, &self.session, user, user_type).await
    }

    /// Connects as the first one, and waits until its own join is announced: later frames are about others.
    pub async fn first(&self, user: &str, user_type: &str) -> Client {
        let mut client = self.client(user, user_type).await;
        hear(&mut client, "user_connected", user).await;
        client
    }

    /// Connects, and waits until `observer` has heard of it.
    pub async fn join(&self, observer: &mut Client, user: &str, user_type: &str) -> Client {
        let client = self.client(user, user_type).await;
        hear(observer, "user_connected", user).await;
        client
    }

    #[track_caller]
    pub fn raw(&self, user: &str, user_type: &str) -> RawWs {
        RawWs::connect(&self.server, &self.session, user, user_type)
    }

    /// What REST says.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.server.connection_status(&self.session)
    }
}

/// Whether the frame tells of this change, among others or alone.
pub fn is_event(frame: &Value, event_type: &str, user: &str) -> bool {
    let events = frame["data"]["events"].as_array();
    events.is_some_and(|events| events.contains(&json!({"event_type": event_type, "event_user_id": user})))
}

/// Takes the status frame that tells of this change.
pub async fn hear(client: &mut Client, event_type: &str, user: &str) -> Value {
    client
        .next_where(&format!("{event_type} of {user}"), |frame| {
            is_event(frame, event_type, user)
        })
        .await
}

/// A test of each scenario, over one store.
macro_rules! contract {
    ($store:ident) => {
        $crate::presence::contract! { $store, presence_notifications:
            each_change_is_announced_once_to_everyone,
            each_of_many_joins_and_leaves_is_announced_exactly_once,
            a_second_tab_gets_one_snapshot_and_announces_nothing,
            a_user_who_rejoins_within_a_window_gets_one_snapshot,
            a_lost_connection_is_announced_as_a_leave,
            a_large_session_gets_totals_once_a_second,
            a_user_who_rejoins_at_once_is_listed,
            events_of_random_tabs_add_up_to_the_users,
        }
        $crate::presence::contract! { $store, presence_grace:
            a_reload_within_the_grace_announces_nothing,
            a_user_who_does_not_return_is_announced_once_after_the_grace,
            a_user_who_returns_as_another_type_is_shown_to_everyone,
            a_user_alone_in_a_session_can_reload,
            a_session_ends_with_the_last_grace,
            typing_stops_without_waiting_for_the_grace,
            repeated_visits_within_the_grace_are_announced_once,
            events_are_in_the_order_in_which_they_happened,
        }
        $crate::presence::contract! { $store, presence_status:
            an_unknown_session_is_empty,
            a_session_that_has_ended_is_empty_again,
            an_invalid_session_id_is_rejected,
            a_users_type_is_that_of_the_first_connection,
            a_user_who_rejoins_as_another_type_has_that_type,
            a_user_who_rejoins_at_once_as_another_type_has_that_type,
            joined_at_is_that_of_the_first_tab_even_after_it_closes,
            a_user_who_rejoins_has_a_new_joined_at,
            an_admin_is_listed_and_counted_in_neither_total,
            a_user_in_two_sessions_is_present_in_each,
            rest_and_the_last_frame_agree,
        }
        $crate::presence::contract! { $store, presence_lobby:
            the_lobby_is_told_of_each_change_of_state_once,
            a_reload_is_no_change_of_state,
            sessions_are_listed_by_state_longest_first,
            an_agent_with_a_list_sees_only_those_sessions,
            the_limits_of_connections_hold_in_the_lobby,
            the_lobby_is_no_session,
        }
    };
    ($store:ident, $scenarios:ident: $($scenario:ident,)+) => {$(
        #[tokio::test]
        async fn $scenario() {
            $crate::$scenarios::$scenario($crate::presence::Store::$store).await;
        }
    )+};
}
pub(crate) use contract;
