//! Presence: which joins and leaves are announced to whom. Scenarios for every [`Store`].

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};

use crate::http_routes::is_utc;
use crate::presence::{Room, STATUS, Store, hear, is_event};
use crate::presence_watcher::Watcher;
use crate::support::{Client, Frame, RawWs, eventually, eventually_async};

pub async fn each_change_is_announced_once_to_everyone(store: Store) {
    let room = store.room();
    let mut agent = room.client("agent", "agent").await;
    let own = hear(&mut agent, "user_connected", "agent").await;
    assert_eq!(own["data"]["connection_status"]["total_agent"], 1);

    let mut customer = room.client("cust", "customer").await;
    let mut frame = hear(&mut agent, "user_connected", "cust").await;
    for user in ["agent", "cust"] {
        assert!(is_utc(
            &frame["data"]["connection_status"]["users"][user]["joined_at"].take()
        ));
    }
    assert!(is_utc(&frame["data"]["timestamp"].take()));
    let user = |id: &str, user_type: &str| json!({"user_id": id, "user_type": user_type, "joined_at": null});
    let expected = json!({
        "type": STATUS,
        "success": true,
        "data": {
            "session_id": room.session,
            "connection_status": {
                "users": {"agent": user("agent", "agent"), "cust": user("cust", "customer")},
                "customer_connected": true,
                "agent_connected": true,
                "total_customer": 1,
                "total_agent": 1,
            },
            "timestamp": null,
            "event_type": "user_connected",
            "event_user_id": "cust",
            "events": [{"event_type": "user_connected", "event_user_id": "cust"}],
        },
    });
    assert_eq!(frame, expected);
    hear(&mut customer, "user_connected", "cust").await;

    customer.close().await;
    let left = hear(&mut agent, "user_disconnected", "cust").await["data"].clone();
    assert_eq!(
        (&left["event_type"], &left["event_user_id"]),
        (&json!("user_disconnected"), &json!("cust"))
    );
    assert_eq!(left["connection_status"]["customer_connected"], false);
    assert_eq!(left["connection_status"]["total_customer"], 0);
    assert!(left["connection_status"]["users"].get("cust").is_none(), "{left}");

    // The next change comes on the same way: nothing else came before it.
    let _next = room.join(&mut agent, "next", "customer").await;
    assert_eq!(agent.take_all(STATUS), Vec::<Value>::new());
}

pub async fn each_of_many_joins_and_leaves_is_announced_exactly_once(store: Store) {
    let room = store.room();
    let mut observer = room.first("observer", "admin").await;
    let mut users = Vec::new();
    for number in 0..30 {
        users.push(room.client(&format!("u{number}"), "customer").await);
    }
    for number in 0..30 {
        hear_once(&mut observer, "user_connected", &format!("u{number}")).await;
    }
    drop(users);
    for number in 0..30 {
        hear_once(&mut observer, "user_disconnected", &format!("u{number}")).await;
    }
    let _last = room.client("last", "customer").await;
    hear_once(&mut observer, "user_connected", "last").await;
    let frames: Vec<_> = observer
        .log
        .iter()
        .filter(|frame| frame["type"] == STATUS)
        .collect();
    let mut events: Vec<_> = frames
        .iter()
        .flat_map(|frame| frame["data"]["events"].as_array().unwrap())
        .map(Value::to_string)
        .collect();
    let all = events.len();
    events.sort_unstable();
    events.dedup();
    assert_eq!(
        (events.len(), all),
        (62, 62),
        "30 came and went, the observer and the last came"
    );
    for frame in frames {
        let last = frame["data"]["events"]
            .as_array()
            .unwrap()
            .last()
            .expect("an event")
            .clone();
        let told = json!({"event_type": frame["data"]["event_type"], "event_user_id": frame["data"]["event_user_id"]});
        assert_eq!(told, last, "event_* are the last of events");
    }
    assert_eq!(room.status()["users"].as_object().unwrap().len(), 2);
}

/// Waits until the log has the event, wherever it stands: one frame may tell of several.
async fn hear_once(client: &mut Client, event_type: &str, user: &str) {
    while !client.log.iter().any(|frame| is_event(frame, event_type, user)) {
        client.next_any().await;
    }
}

pub async fn a_second_tab_gets_one_snapshot_and_announces_nothing(store: Store) {
    let room = store.room();
    let mut agent = room.first("agent", "agent").await;
    let mut first = room.join(&mut agent, "cust", "customer").await;
    hear(&mut first, "user_connected", "cust").await;

    let mut second = room.client("cust", "customer").await;
    let snapshot = second.next(STATUS).await["data"].clone();
    assert_eq!(snapshot["events"], json!([]));
    assert!(
        snapshot.get("event_type").is_none() && snapshot.get("event_user_id").is_none(),
        "{snapshot}"
    );
    assert_eq!(snapshot["connection_status"]["total_customer"], 1);
    assert_eq!(
        snapshot["connection_status"]["users"].as_object().unwrap().len(),
        2
    );

    // One tab of two goes: nobody hears of it.
    first.close().await;
    let mut fence = room.join(&mut agent, "fence", "agent").await;
    hear(&mut second, "user_connected", "fence").await;
    assert_eq!(agent.take_all(STATUS), Vec::<Value>::new());
    assert_eq!(second.take_all(STATUS), Vec::<Value>::new());
    assert_eq!(room.status()["total_customer"], 1);

    // The last one goes: they do.
    second.close().await;
    hear(&mut agent, "user_disconnected", "cust").await;
    hear(&mut fence, "user_disconnected", "cust").await;
    assert_eq!(room.status()["total_customer"], 0);
}

pub async fn a_user_who_rejoins_within_a_window_gets_one_snapshot(store: Store) {
    let builder = store.builder().env("PRESENCE_GRACE", "0s");
    let room = Room::on(builder.env("PRESENCE_FLUSH", "500ms"));
    let mut observer = room.first("observer", "agent").await;
    let mut user = room.join(&mut observer, "cust", "customer").await;
    hear(&mut user, "user_connected", "cust").await;
    let mut quick = 0;
    for round in 0..6 {
        // A page is loaded again, once properly and once abruptly: no net change within the window.
        if round % 2 == 0 {
            user.close().await;
        } else {
            drop(user);
        }
        user = room.client("cust", "customer").await;
        let first = user.next(STATUS).await["data"].clone();
        // Whatever else the reload caused is announced before a later join.
        let fence = room.join(&mut observer, &format!("fence{round}"), "agent").await;
        hear(&mut user, "user_connected", &format!("fence{round}")).await;
        let heard = observer.take_all(STATUS);
        if heard.is_empty() {
            quick += 1;
            assert_eq!(first["connection_status"]["total_customer"], 1, "{first}");
            assert_eq!(first["events"], json!([]), "{first}");
            assert!(first.get("event_type").is_none(), "{first}");
            assert_eq!(user.take_all(STATUS), Vec::<Value>::new(), "exactly one");
        } else {
            // A busy machine took longer than the window: then both are announced, and this round proves nothing.
            let left = |frame: &Value| is_event(frame, "user_disconnected", "cust");
            assert!(heard.iter().any(left), "{heard:?}");
            user.take_all(STATUS);
        }
        fence.close().await;
        hear(&mut observer, "user_disconnected", &format!("fence{round}")).await;
        hear(&mut user, "user_disconnected", &format!("fence{round}")).await;
    }
    assert!(quick > 0, "no round was within a window");
}

pub async fn a_lost_connection_is_announced_as_a_leave(store: Store) {
    let room = store.room();
    let mut agent = room.client("agent", "agent").await;
    let reset = room.raw("reset", "customer");
    hear(&mut agent, "user_connected", "reset").await;
    reset.reset();
    hear(&mut agent, "user_disconnected", "reset").await;
    let half = room.raw("half", "customer");
    hear(&mut agent, "user_connected", "half").await;
    half.shutdown_write();
    hear(&mut agent, "user_disconnected", "half").await;
    drop(half);
}

pub async fn a_large_session_gets_totals_once_a_second(store: Store) {
    const CUSTOMERS: usize = 120;
    let room = store.room();
    let mut observer = room.client("observer", "admin").await;
    let mut customers = Vec::new();
    for number in 0..CUSTOMERS {
        customers.push(room.client(&format!("u{number}"), "customer").await);
    }
    let total = |frame: &Value| frame["data"]["connection_status"]["total_customer"].as_u64();
    let all = |frame: &Value| total(frame) == Some(CUSTOMERS as u64);
    let frame = observer.next_where("all customers", all).await;
    assert_eq!(frame["data"]["connection_status"]["users"], json!({}));
    assert_eq!(frame["data"]["users_truncated"], true);
    assert_eq!(frame["data"]["connection_status"]["customer_connected"], true);

    // From here on the session stays above a hundred: many changes, few frames.
    observer.take_all(STATUS);
    let (before, started) = (observer.log.len(), Instant::now());
    for number in 0..60 {
        customers.push(room.client(&format!("v{number}"), "agent").await);
        if started.elapsed().as_millis() < 50 * number {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await; // spread over some seconds
        }
    }
    drop(customers.drain(..10));
    let settled = |frame: &Value| {
        let status = &frame["data"]["connection_status"];
        status["total_agent"] == 60 && status["total_customer"] == CUSTOMERS - 10
    };
    observer.next_where("the exact totals", settled).await;
    let frames: Vec<_> = observer.log[before..]
        .iter()
        .filter(|frame| frame["type"] == STATUS)
        .collect();
    let most = started.elapsed().as_secs() as usize + 2;
    assert!(
        frames.len() <= most,
        "{} frames in {:?}",
        frames.len(),
        started.elapsed()
    );
    let mut joined = 0;
    for frame in &frames {
        assert_eq!(frame["data"]["connection_status"]["users"], json!({}));
        assert_eq!(frame["data"]["users_truncated"], true);
        let events = frame["data"]["events"].as_array().unwrap();
        assert!((1..=100).contains(&events.len()), "{} events", events.len());
        joined += events
            .iter()
            // The customers' joins may take one frame more than their totals.
            .filter(|event| event["event_type"] == "user_connected")
            .filter(|event| {
                event["event_user_id"]
                    .as_str()
                    .is_some_and(|id| id.starts_with('v'))
            })
            .count();
    }
    assert_eq!(joined, 60, "each join once, also in windows of a second");
    // REST is never truncated.
    let status = room.status();
    assert_eq!(
        status["users"].as_object().unwrap().len(),
        CUSTOMERS - 10 + 60 + 1
    );
    assert!(status.get("users_truncated").is_none());

    // New connections are notified, too: of a new user with the next frame, of a second tab with its own snapshot.
    let mut late = room.client("late", "admin").await;
    assert_eq!(late.next(STATUS).await["data"]["users_truncated"], true);
    let mut tab = room.client("late", "admin").await;
    let snapshot = tab.next(STATUS).await["data"].clone();
    assert_eq!(
        (&snapshot["users_truncated"], &snapshot["events"]),
        (&json!(true), &json!([]))
    );
    assert!(snapshot.get("event_type").is_none(), "{snapshot}");
    assert_eq!(snapshot["connection_status"]["total_agent"], 60);
    late.close().await;
    tab.close().await;

    // Below the limit again, the list is back.
    drop(customers.drain(..100));
    let listed = |frame: &Value| {
        frame["data"]["connection_status"]["users"]
            .as_object()
            .is_some_and(|users| users.len() == 71)
    };
    let frame = observer.next_where("a list again", listed).await;
    assert!(frame["data"].get("users_truncated").is_none(), "{frame}");
}

pub async fn a_user_who_rejoins_at_once_is_listed(store: Store) {
    let room = store.room();
    let mut agent = room.client("agent", "agent").await;
    for _ in 0..30 {
        drop(room.client("cust", "customer").await);
    }
    let _stays = room.client("cust", "customer").await;
    eventually_async("there is one connection of the customer", async || {
        room.server.health()["connections"] == 2
    })
    .await;
    eventually("the customer is listed", || room.status()["total_customer"] == 1);
    // What the agent has heard adds up to the same.
    let _fence = room.join(&mut agent, "fence", "agent").await;
    let there = agent
        .log
        .iter()
        .rev()
        .find(|frame| frame["type"] == STATUS)
        .unwrap();
    assert_eq!(there["data"]["connection_status"]["total_customer"], 1);
    let events = agent
        .log
        .iter()
        .filter_map(|frame| frame["data"]["events"].as_array())
        .flatten();
    let sum = events.filter(|event| event["event_user_id"] == "cust");
    let sum: i32 = sum
        .map(|event| {
            if event["event_type"] == "user_connected" {
                1
            } else {
                -1
            }
        })
        .sum();
    assert_eq!(sum, 1, "connects less disconnects");
}

/// Five users open and close tabs; one watcher is there from the beginning, and sees that each event is news.
pub async fn events_of_random_tabs_add_up_to_the_users(store: Store) {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let room = store.room();
    let watcher = Watcher::start("the watcher".to_owned(), room.raw("watcher", "admin"));
    let mut tabs: Vec<(String, RawWs)> = Vec::new();
    let agree = |tabs: &[(String, RawWs)]| {
        let open = tabs.iter().map(|(user, _)| user.clone());
        let expected: BTreeSet<_> = open.chain(["watcher".to_owned()]).collect();
        eventually(&format!("REST has {expected:?} (seed {seed})"), || {
            let status = room.status();
            let users = status["users"].as_object().expect("users");
            status["total_customer"] == expected.len() - 1 && users.keys().eq(&expected)
        });
        eventually(&format!("the watcher knows {expected:?} (seed {seed})"), || {
            watcher.there().as_ref() == Some(&expected)
        });
        watcher.check();
    };
    for step in 1..=300 {
        if tabs.is_empty() || (tabs.len() < 12 && rng.bool()) {
            let user = format!("user-{}", rng.u8(..5));
            let tab = room.raw(&user, "customer");
            tabs.push((user, tab));
        } else {
            let (_, mut tab) = tabs.swap_remove(rng.usize(..tabs.len()));
            match rng.u8(..3) {
                0 => {
                    tab.send(Frame::close(1000, ""));
                    assert!(tab.read_close().is_some(), "an echo of the close");
                }
                1 => tab.reset(),
                _ => drop(tab),
            }
        }
        if step % 50 == 0 {
            agree(&tabs);
        }
    }
    tabs.clear();
    agree(&tabs);
    watcher.close();
    assert!(watcher.end() > 10, "events");
}
