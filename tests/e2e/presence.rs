//! Who is there: status frames, each change once, and what a second tab does and does not.

use std::time::Instant;

use serde_json::{Value, json};

use crate::http_routes::is_utc;
use crate::support::{Client, RawWs, Server, eventually, eventually_async};

const STATUS: &str = "connection_status_update";

/// Whether the frame tells of this change, among others or alone.
pub fn is_event(frame: &Value, event_type: &str, user: &str) -> bool {
    let events = frame["data"]["events"].as_array();
    events.is_some_and(|events| events.contains(&json!({"event_type": event_type, "event_user_id": user})))
}

/// Takes the status frame that tells of this change.
async fn hear(client: &mut Client, event_type: &str, user: &str) -> Value {
    client
        .next_where(&format!("{event_type} of {user}"), |frame| {
            is_event(frame, event_type, user)
        })
        .await
}

/// Connects, and waits until `observer` has heard of it.
async fn join(server: &Server, observer: &mut Client, user: &str, user_type: &str) -> Client {
    let client = Client::connect(server, "s1", user, user_type).await;
    hear(observer, "user_connected", user).await;
    client
}

#[tokio::test]
async fn presence_each_change_is_told_once_to_everyone() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let own = hear(&mut agent, "user_connected", "agent").await;
    assert_eq!(own["data"]["connection_status"]["total_agent"], 1);

    let mut customer = Client::connect(&server, "s1", "cust", "customer").await;
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
            "session_id": "s1",
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
    let _next = join(&server, &mut agent, "next", "customer").await;
    assert_eq!(agent.take_all(STATUS), Vec::<Value>::new());
}

#[tokio::test]
async fn presence_every_event_of_many_joins_and_leaves_comes_exactly_once() {
    let server = Server::start();
    let mut observer = Client::connect(&server, "s1", "observer", "admin").await;
    let mut users = Vec::new();
    for number in 0..30 {
        users.push(Client::connect(&server, "s1", &format!("u{number}"), "customer").await);
    }
    for number in 0..30 {
        hear_once(&mut observer, "user_connected", &format!("u{number}")).await;
    }
    drop(users);
    for number in 0..30 {
        hear_once(&mut observer, "user_disconnected", &format!("u{number}")).await;
    }
    let _last = Client::connect(&server, "s1", "last", "customer").await;
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
    assert_eq!(
        server.connection_status("s1")["users"].as_object().unwrap().len(),
        2
    );
}

/// Waits until the log has the event, wherever it stands: one frame may tell of several.
async fn hear_once(client: &mut Client, event_type: &str, user: &str) {
    while !client.log.iter().any(|frame| is_event(frame, event_type, user)) {
        client.next_any().await;
    }
}

#[tokio::test]
async fn presence_a_second_tab_changes_nothing_and_gets_one_snapshot() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    hear(&mut agent, "user_connected", "agent").await;
    let mut first = join(&server, &mut agent, "cust", "customer").await;
    hear(&mut first, "user_connected", "cust").await;

    let mut second = Client::connect(&server, "s1", "cust", "customer").await;
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
    let mut fence = join(&server, &mut agent, "fence", "agent").await;
    hear(&mut second, "user_connected", "fence").await;
    assert_eq!(agent.take_all(STATUS), Vec::<Value>::new());
    assert_eq!(second.take_all(STATUS), Vec::<Value>::new());
    assert_eq!(server.connection_status("s1")["total_customer"], 1);

    // The last one goes: they do.
    second.close().await;
    hear(&mut agent, "user_disconnected", "cust").await;
    hear(&mut fence, "user_disconnected", "cust").await;
    assert_eq!(server.connection_status("s1")["total_customer"], 0);
}

#[tokio::test]
async fn presence_who_leaves_and_is_back_within_a_window_gets_one_snapshot() {
    let server = Server::builder().env("PRESENCE_FLUSH", "500ms").start();
    let mut observer = Client::connect(&server, "s1", "observer", "agent").await;
    hear(&mut observer, "user_connected", "observer").await;
    let mut user = join(&server, &mut observer, "cust", "customer").await;
    hear(&mut user, "user_connected", "cust").await;
    let mut quick = 0;
    for round in 0..12 {
        // A page is loaded again, once properly and once abruptly: no net change within the window.
        if round % 2 == 0 {
            user.close().await;
        } else {
            drop(user);
        }
        user = Client::connect(&server, "s1", "cust", "customer").await;
        let first = user.next(STATUS).await["data"].clone();
        // Whatever else the reload caused is told before somebody who comes later.
        let fence = join(&server, &mut observer, &format!("fence{round}"), "agent").await;
        hear(&mut user, "user_connected", &format!("fence{round}")).await;
        let heard = observer.take_all(STATUS);
        if heard.is_empty() {
            quick += 1;
            assert_eq!(first["connection_status"]["total_customer"], 1, "{first}");
            assert_eq!(first["events"], json!([]), "{first}");
            assert!(first.get("event_type").is_none(), "{first}");
            assert_eq!(user.take_all(STATUS), Vec::<Value>::new(), "exactly one");
        } else {
            // A busy machine took longer than the window: then both are told, and this round proves nothing.
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

#[tokio::test]
async fn presence_a_users_type_is_that_of_the_first_connection() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let _first = join(&server, &mut agent, "cust", "customer").await;
    let mut second = Client::connect(&server, "s1", "cust", "agent").await;
    let snapshot = second.next(STATUS).await["data"]["connection_status"].clone();
    for status in [snapshot, server.connection_status("s1")] {
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

#[tokio::test]
async fn presence_an_admin_is_listed_and_counted_in_neither_total() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let mut admin = Client::connect(&server, "s1", "boss", "admin").await;
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

#[tokio::test]
async fn presence_a_lost_connection_leaves_too() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let reset = RawWs::connect(&server, "s1", "reset", "customer");
    hear(&mut agent, "user_connected", "reset").await;
    reset.reset();
    hear(&mut agent, "user_disconnected", "reset").await;
    let half = RawWs::connect(&server, "s1", "half", "customer");
    hear(&mut agent, "user_connected", "half").await;
    half.shutdown_write();
    hear(&mut agent, "user_disconnected", "half").await;
    drop(half);
}

#[tokio::test]
async fn presence_the_same_user_in_two_sessions_is_two_presences() {
    let server = Server::start();
    let one = Client::connect(&server, "s1", "agent", "agent").await;
    let _two = Client::connect(&server, "s2", "agent", "agent").await;
    eventually("listed in both", || {
        ["s1", "s2"]
            .iter()
            .all(|session| server.connection_status(session)["total_agent"] == 1)
    });
    one.close().await;
    eventually("gone from one", || {
        server.connection_status("s1")["total_agent"] == 0
    });
    assert_eq!(server.connection_status("s2")["total_agent"], 1);
}

#[tokio::test]
async fn presence_of_a_large_session_is_told_in_totals_once_a_second() {
    const CUSTOMERS: usize = 120;
    let server = Server::start();
    let mut observer = Client::connect(&server, "s1", "observer", "admin").await;
    let mut customers = Vec::new();
    for number in 0..CUSTOMERS {
        customers.push(Client::connect(&server, "s1", &format!("u{number}"), "customer").await);
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
        customers.push(Client::connect(&server, "s1", &format!("v{number}"), "agent").await);
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
            .filter(|event| event["event_type"] == "user_connected")
            .count();
    }
    assert_eq!(joined, 60, "each join once, also in windows of a second");
    // REST is never truncated.
    let status = server.connection_status("s1");
    assert_eq!(
        status["users"].as_object().unwrap().len(),
        CUSTOMERS - 10 + 60 + 1
    );
    assert!(status.get("users_truncated").is_none());

    // Whoever comes is told, too: a new user by the next frame, a second tab by a snapshot of its own.
    let mut late = Client::connect(&server, "s1", "late", "admin").await;
    assert_eq!(late.next(STATUS).await["data"]["users_truncated"], true);
    let mut tab = Client::connect(&server, "s1", "late", "admin").await;
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

#[tokio::test]
async fn presence_a_user_who_comes_back_at_once_is_there() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    for _ in 0..30 {
        drop(Client::connect(&server, "s1", "cust", "customer").await);
    }
    let _stays = Client::connect(&server, "s1", "cust", "customer").await;
    eventually_async("there is one connection of the customer", async || {
        server.health()["connections"] == 2
    })
    .await;
    eventually("the customer is listed", || {
        server.connection_status("s1")["total_customer"] == 1
    });
    // What the agent has heard adds up to the same.
    let _fence = join(&server, &mut agent, "fence", "agent").await;
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
