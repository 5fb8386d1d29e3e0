//! Presence: a user who reconnects within `PRESENCE_GRACE` never left. Scenarios for every [`Store`].

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::presence::{Room, STATUS, Store, hear, is_event};
use crate::support::{eventually, eventually_async};

/// Longer than a busy machine needs for a reload.
const LONG: &str = "20s";

/// Waits until the server has so many connections.
pub async fn connections(room: &Room, count: usize) {
    eventually_async("the number of connections", async || {
        room.server.health()["connections"] == count
    })
    .await;
}

pub async fn a_reload_within_the_grace_announces_nothing(store: Store) {
    let room = Room::on(store.builder().env("PRESENCE_GRACE", LONG));
    let mut observer = room.first("observer", "agent").await;
    let mut user = room.join(&mut observer, "cust", "customer").await;
    hear(&mut user, "user_connected", "cust").await;
    let before = room.status();
    let mut fences = Vec::new();
    for round in 0..4 {
        if round % 2 == 0 {
            user.close().await;
        } else {
            drop(user);
        }
        connections(&room, 1 + round).await;
        assert_eq!(without_fences(room.status()), before, "between the two");
        user = room.client("cust", "customer").await;
        let first = user.next(STATUS).await["data"].clone();
        assert_eq!(first["events"], json!([]), "{first}");
        assert!(first.get("event_type").is_none(), "{first}");
        assert_eq!(without_fences(first["connection_status"].clone()), before);
        let name = format!("fence{round}");
        fences.push(room.join(&mut observer, &name, "admin").await);
        hear(&mut user, "user_connected", &name).await;
        assert_eq!(observer.take_all(STATUS), Vec::<Value>::new());
        assert_eq!(user.take_all(STATUS), Vec::<Value>::new(), "exactly one");
    }
}

/// Fences are admins, and so in no total.
fn without_fences(mut status: Value) -> Value {
    let users = status["users"].as_object_mut().expect("users");
    users.retain(|user, _| !user.starts_with("fence"));
    status
}

/// With the default.
pub async fn a_user_who_does_not_return_is_announced_once_after_the_grace(store: Store) {
    let room = store.room();
    let mut observer = room.first("observer", "agent").await;
    let user = room.join(&mut observer, "cust", "customer").await;
    let second = room.client("cust", "customer").await;
    user.close().await;
    let left = Instant::now();
    second.close().await;
    let told = hear(&mut observer, "user_disconnected", "cust").await;
    assert!(
        left.elapsed() >= Duration::from_millis(1900),
        "announced after {:?}",
        left.elapsed()
    );
    assert_eq!(told["data"]["connection_status"]["total_customer"], 0);
    assert_eq!(room.status()["users"].as_object().expect("users").len(), 1);
    // Back behind the grace: a new coming, once.
    let _back = room.join(&mut observer, "cust", "customer").await;
    let _fence = room.join(&mut observer, "fence", "admin").await;
    assert_eq!(observer.take_all(STATUS), Vec::<Value>::new());
}

/// That is no coming and no going; but the totals that others were shown are not true any more.
pub async fn a_user_who_returns_as_another_type_is_shown_to_everyone(store: Store) {
    let room = Room::on(store.builder().env("PRESENCE_GRACE", LONG));
    let mut observer = room.first("observer", "agent").await;
    let user = room.join(&mut observer, "user", "customer").await;
    user.close().await;
    connections(&room, 1).await;
    // The end of that connection is written: what follows is about the next one alone.
    let _before = room.join(&mut observer, "before", "admin").await;
    let mut user = room.client("user", "agent").await;
    for client in [&mut observer, &mut user] {
        let shown = client.next(STATUS).await["data"].clone();
        assert_eq!(shown["events"], json!([]), "{shown}");
        assert!(shown.get("event_type").is_none(), "{shown}");
        assert_eq!(shown["connection_status"], room.status());
        assert_eq!(shown["connection_status"]["users"]["user"]["user_type"], "agent");
        assert_eq!(shown["connection_status"]["total_customer"], 0);
    }
    // Once.
    let _fence = room.join(&mut observer, "fence", "admin").await;
    hear(&mut user, "user_connected", "fence").await;
    for client in [&mut observer, &mut user] {
        assert_eq!(client.take_all(STATUS), Vec::<Value>::new());
    }
}

/// Without any connection the session is still not empty.
pub async fn a_user_alone_in_a_session_can_reload(store: Store) {
    let room = Room::on(store.builder().env("PRESENCE_GRACE", LONG));
    let mut user = room.client("cust", "customer").await;
    hear(&mut user, "user_connected", "cust").await;
    let before = room.status();
    user.close().await;
    connections(&room, 0).await;
    assert_eq!(room.status(), before);
    let mut user = room.client("cust", "customer").await;
    let shown = user.next(STATUS).await["data"].clone();
    assert_eq!(shown["events"], json!([]), "{shown}");
    assert_eq!(room.status(), before);
}

pub async fn a_session_ends_with_the_last_grace(store: Store) {
    let room = Room::on(store.builder().env("PRESENCE_GRACE", "500ms"));
    let users = [("a", "customer"), ("b", "agent")];
    for (user, kind) in users {
        room.client(user, kind).await.close().await;
    }
    eventually("nobody is there", || room.status()["users"] == json!({}));
    eventually("no session either", || room.server.health()["sessions"] == 0);
}

/// Nothing else waits for the grace: the indicator of a typist who has gone stops at once.
pub async fn typing_stops_without_waiting_for_the_grace(store: Store) {
    let room = Room::on(store.builder().env("PRESENCE_GRACE", LONG));
    let mut observer = room.first("observer", "agent").await;
    let mut typist = room.join(&mut observer, "cust", "customer").await;
    typist.send(json!({"type": "typing_start"})).await;
    let is_typing = |frame: &Value| frame["data"]["is_typing"].as_bool();
    assert_eq!(is_typing(&observer.next("typing_indicator").await), Some(true));
    let left = Instant::now();
    typist.close().await;
    assert_eq!(is_typing(&observer.next("typing_indicator").await), Some(false));
    assert!(left.elapsed() < Duration::from_secs(20), "{:?}", left.elapsed());
    assert_eq!(room.status()["total_customer"], 1, "and is still there");
}

/// One user leaves during another's grace, one joins and leaves several times: each is announced once.
pub async fn repeated_visits_within_the_grace_are_announced_once(store: Store) {
    let room = Room::on(store.builder().env("PRESENCE_GRACE", "3s"));
    let mut observer = room.first("observer", "agent").await;
    let mut last = Instant::now();
    for _ in 0..8 {
        let visit = room.client("cust", "customer").await;
        last = Instant::now();
        drop(visit);
    }
    hear(&mut observer, "user_disconnected", "cust").await;
    assert!(
        last.elapsed() >= Duration::from_millis(2900),
        "{:?}",
        last.elapsed()
    );
    let _fence = room.join(&mut observer, "fence", "admin").await;
    let count = |kind: &str| {
        let frames = observer.log.iter();
        frames.filter(|frame| is_event(frame, kind, "cust")).count()
    };
    assert_eq!((count("user_connected"), count("user_disconnected")), (1, 1));
}

/// Without a grace, so that leaves are among the events: they and the joins are announced in order.
pub async fn events_are_in_the_order_in_which_they_happened(store: Store) {
    let room = Room::on(
        store
            .builder()
            .env("PRESENCE_GRACE", "0s")
            .env("PRESENCE_FLUSH", "1s"),
    );
    let mut observer = room.first("observer", "agent").await;
    let mut there = Vec::new();
    for user in ["z", "m", "a", "q"] {
        there.push((user, room.client(user, "customer").await));
    }
    while events(&observer.log).len() < 5 {
        observer.next_any().await;
    }
    let (mut expected, mut came) = (Vec::new(), Vec::new());
    // Ids in no order of theirs, joins and leaves in turn.
    for (comes, goes) in [("k", 2), ("b", 0), ("y", 1), ("c", 0)] {
        came.push(room.client(comes, "customer").await);
        expected.push(("user_connected".to_owned(), comes.to_owned()));
        let (user, leaver) = there.remove(goes);
        leaver.close().await;
        connections(&room, 5).await;
        expected.push(("user_disconnected".to_owned(), user.to_owned()));
    }
    while events(&observer.log).len() < 5 + expected.len() {
        observer.next_any().await;
    }
    assert_eq!(events(&observer.log)[5..], expected);
    for frame in observer.log.iter().filter(|frame| frame["type"] == STATUS) {
        let last = frame["data"]["events"]
            .as_array()
            .expect("events")
            .last()
            .expect("one");
        assert_eq!(last["event_type"], frame["data"]["event_type"]);
        assert_eq!(last["event_user_id"], frame["data"]["event_user_id"]);
    }
}

/// All announced events, in order.
fn events(log: &[Value]) -> Vec<(String, String)> {
    let frames = log.iter().filter(|frame| frame["type"] == STATUS);
    let events = frames.flat_map(|frame| frame["data"]["events"].as_array().expect("events"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    events
        .map(|event| (text(&event["event_type"]), text(&event["event_user_id"])))
        .collect()
}
