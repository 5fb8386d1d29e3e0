//! Presence: what REST and a frame's `connection_status` say. Scenarios for every [`Store`].

use jiff::Timestamp;
use serde_json::json;

use crate::http_routes::is_utc;
use crate::presence::{Room, STATUS, Store, hear};
use crate::presence_grace::connections;
use crate::redis_cluster::ask_status;
use crate::services::unique;
use crate::support::{Client, eventually};

/// The whole answer about a session that nobody is in.
fn assert_empty(room: &Room) {
    let mut answer = ask_status(&room.server, &room.session);
    eventually("the presence store answers", || {
        if answer.status == 503 {
            answer = ask_status(&room.server, &room.session);
        }
        answer.status != 503
    });
    assert_eq!(answer.status, 200, "{answer:?}");
    let expected = json!({
        "success": true,
        "message": "Connection status retrieved successfully",
        "data": {
            "users": {},
            "customer_connected": false,
            "agent_connected": false,
            "total_customer": 0,
            "total_agent": 0,
        },
    });
    assert_eq!(answer.json(), expected);
}

/// When a user has joined, as REST says.
fn joined_at(room: &Room, user: &str) -> Timestamp {
    let joined_at = room.status()["users"][user]["joined_at"].take();
    assert!(is_utc(&joined_at), "{joined_at}");
    joined_at.as_str().expect("a text").parse().expect("a time")
}

pub async fn an_unknown_session_is_empty(store: Store) {
    assert_empty(&store.room());
}

pub async fn a_session_that_has_ended_is_empty_again(store: Store) {
    let room = store.room();
    let mut agent = room.first("agent", "agent").await;
    let customer = room.join(&mut agent, "cust", "customer").await;
    assert_eq!(room.status()["users"].as_object().expect("users").len(), 2);
    customer.close().await;
    agent.close().await;
    eventually("nobody is there", || room.status()["users"] == json!({}));
    assert_empty(&room);
}

pub async fn an_invalid_session_id_is_rejected(store: Store) {
    let room = store.room();
    let long = "x".repeat(129);
    for bad in [
        "..", "%2e%2e", "a%2fb", "a%00", "a%20b", "%7bx%7d", "%2a", "%zz", "%252e", &long,
    ] {
        let answer = ask_status(&room.server, bad);
        answer.assert_error(400);
        assert_eq!(answer.json()["message"], "Invalid session ID", "{bad}");
    }
}

/// All tabs have gone: who comes then is the first again.
pub async fn a_user_who_rejoins_as_another_type_has_that_type(store: Store) {
    let room = store.room();
    let mut admin = room.client("boss", "admin").await;
    let first = room.join(&mut admin, "ann", "customer").await;
    let mut second = room.client("ann", "agent").await;
    second.next(STATUS).await;
    first.close().await;
    second.close().await;
    hear(&mut admin, "user_disconnected", "ann").await;
    let back = room.client("ann", "agent").await;
    let shown = hear(&mut admin, "user_connected", "ann").await["data"]["connection_status"].clone();
    for status in [shown, room.status()] {
        assert_eq!(status["users"]["ann"]["user_type"], "agent", "{status}");
        assert_eq!(
            (&status["total_customer"], &status["total_agent"]),
            (&json!(0), &json!(1)),
            "{status}"
        );
    }
    drop(back);
}

/// As above, so soon that the leave was not announced.
pub async fn a_user_who_rejoins_at_once_as_another_type_has_that_type(store: Store) {
    let room = Room::on(store.builder().env("PRESENCE_FLUSH", "500ms"));
    let mut admin = room.client("boss", "admin").await;
    let mut ann = room.join(&mut admin, "ann", "customer").await;
    for user_type in ["agent", "customer", "agent"] {
        let joined = joined_at(&room, "ann");
        ann.close().await;
        connections(&room, 1).await;
        ann = room.client("ann", user_type).await;
        ann.next(STATUS).await;
        // The next change comes behind this one.
        let fence = room.client("fence", "admin").await;
        let shown = hear(&mut admin, "user_connected", "fence").await["data"]["connection_status"].clone();
        let agents = u8::from(user_type == "agent");
        for status in [shown, room.status()] {
            assert_eq!(status["users"]["ann"]["user_type"], user_type, "{status}");
            let totals = (&status["total_customer"], &status["total_agent"]);
            assert_eq!(totals, (&json!(1 - agents), &json!(agents)), "{status}");
        }
        assert!(joined_at(&room, "ann") > joined, "she has joined anew");
        ann.say_acked("who am I?").await;
        assert_eq!(admin.next("new_message").await["data"]["sender_type"], user_type);
        fence.close().await;
        hear(&mut admin, "user_disconnected", "fence").await;
    }
}

pub async fn joined_at_is_that_of_the_first_tab_even_after_it_closes(store: Store) {
    let room = store.room();
    let mut agent = room.client("agent", "agent").await;
    let first = room.join(&mut agent, "ann", "customer").await;
    let joined = joined_at(&room, "ann");
    let mut second = room.client("ann", "customer").await;
    second.next(STATUS).await;
    assert_eq!(joined_at(&room, "ann"), joined, "with a second tab");
    first.close().await;
    // Whatever the first tab's end has changed is written before somebody who comes later.
    let _fence = room.join(&mut agent, "fence", "admin").await;
    assert_eq!(joined_at(&room, "ann"), joined, "without the first tab");
    let mut third = room.client("ann", "customer").await;
    third.next(STATUS).await;
    second.close().await;
    let _fence = room.join(&mut agent, "fence-2", "admin").await;
    assert_eq!(joined_at(&room, "ann"), joined, "with a third tab alone");
    drop(third);
}

pub async fn a_user_who_rejoins_has_a_new_joined_at(store: Store) {
    let room = store.room();
    let mut agent = room.client("agent", "agent").await;
    let ann = room.join(&mut agent, "ann", "customer").await;
    let (joined, before) = (joined_at(&room, "ann"), joined_at(&room, "agent"));
    assert!(joined >= before, "{joined}, and the agent {before}");
    ann.close().await;
    hear(&mut agent, "user_disconnected", "ann").await;
    let _ann = room.join(&mut agent, "ann", "customer").await;
    let anew = joined_at(&room, "ann");
    assert!(anew > joined, "{anew} is not after {joined}");
    assert_eq!(joined_at(&room, "agent"), before, "who stays");
}

pub async fn rest_and_the_last_frame_agree(store: Store) {
    let room = store.room();
    let mut agent = room.client("agent", "agent").await;
    let _boss = room.join(&mut agent, "boss", "admin").await;
    let ann = room.join(&mut agent, "ann", "customer").await;
    let frame = room.client("ann", "agent").await.next(STATUS).await;
    assert_eq!(
        frame["data"]["connection_status"],
        room.status(),
        "a second tab's snapshot"
    );
    let _ben = room.client("ben", "customer").await;
    let frame = hear(&mut agent, "user_connected", "ben").await;
    assert_eq!(frame["data"]["connection_status"], room.status(), "after a join");
    ann.close().await;
    let frame = hear(&mut agent, "user_disconnected", "ann").await;
    assert_eq!(frame["data"]["connection_status"], room.status(), "after a leave");
}

pub async fn a_users_type_is_that_of_the_first_connection(store: Store) {
    let room = store.room();
    let mut agent = room.client("agent", "agent").await;
    let _first = room.join(&mut agent, "cust", "customer").await;
    let mut second = room.client("cust", "agent").await;
    let snapshot = second.next(STATUS).await["data"]["connection_status"].clone();
    for status in [snapshot, room.status()] {
        assert_eq!(status["users"]["cust"]["user_type"], "customer", "{status}");
        assert_eq!(
            (&status["total_customer"], &status["total_agent"]),
            (&json!(1), &json!(1)),
            "{status}"
        );
    }
    second.say_acked("who am I?").await;
    assert_eq!(agent.next("new_message").await["data"]["sender_type"], "customer");
}

pub async fn an_admin_is_listed_and_counted_in_neither_total(store: Store) {
    let room = store.room();
    let mut agent = room.client("agent", "agent").await;
    let mut admin = room.client("boss", "admin").await;
    let status = hear(&mut agent, "user_connected", "boss").await["data"]["connection_status"].clone();
    assert_eq!(status["users"]["boss"]["user_type"], "admin");
    assert_eq!(
        (&status["total_customer"], &status["total_agent"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(status["customer_connected"], false);
    agent.say_acked("hello").await;
    assert_eq!(admin.next("new_message").await["data"]["message"], "hello");
    agent.close().await;
    let status = hear(&mut admin, "user_disconnected", "agent").await["data"]["connection_status"].clone();
    assert_eq!(
        (&status["agent_connected"], &status["total_agent"]),
        (&json!(false), &json!(0))
    );
}

pub async fn a_user_in_two_sessions_is_present_in_each(store: Store) {
    let room = store.room();
    let other = unique("session");
    let one = room.client("agent", "agent").await;
    let _two = Client::connect(&room.server, &other, "agent", "agent").await;
    eventually("listed in both", || {
        [&room.session, &other]
            .iter()
            .all(|session| room.server.connection_status(session)["total_agent"] == 1)
    });
    one.close().await;
    eventually("gone from one", || room.status()["total_agent"] == 0);
    assert_eq!(room.server.connection_status(&other)["total_agent"], 1);
}
