//! Presence: the agents' desk, which sees who waits for whom. Scenarios for every [`Store`]; others use the same Redis at
//! the same time, so each looks at sessions of its own only.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::http_routes::is_utc;
use crate::presence::Store;
use crate::services::unique;
use crate::support::tokens::{SECRET, claims, hs, now};
use crate::support::{Client, Http, Server, eventually};

const EVENTS: [&str; 3] = ["session_waiting", "session_active", "session_ended"];

/// An agent in the lobby, with the token of these claims, if any.
pub async fn enter(server: &Server, claims: Option<&Value>) -> Client {
    let bearer = claims.map(|claims| format!("Bearer {}", hs().token(claims)));
    let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", &**bearer)).collect();
    let path = "/ws/@lobby/bob/agent";
    let mut client = Client::open(server.http_addr(), path, &headers)
        .await
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    client.greet().await;
    client
}

/// Takes the next event about a session: its type without `session_`, and its data.
pub async fn event(lobby: &mut Client, session: &str) -> (String, Value) {
    let is_event = |frame: &Value| {
        EVENTS.iter().any(|kind| frame["type"] == *kind) && frame["data"]["session_id"] == session
    };
    let mut frame = lobby
        .next_where(&format!("an event of {session}"), is_event)
        .await;
    assert_eq!(frame["success"], true, "{frame}");
    let kind = frame["type"].as_str().expect("a type").replace("session_", "");
    (kind, frame["data"].take())
}

/// The entry of a session in a list.
pub fn entry<'a>(sessions: &'a Value, session: &str) -> Option<&'a Value> {
    let sessions = sessions.as_array().expect("a list");
    let mut of_session = sessions.iter().filter(|entry| entry["session_id"] == session);
    let entry = of_session.next();
    assert!(
        of_session.next().is_none(),
        "{session} is listed twice: {sessions:?}"
    );
    entry
}

/// All sessions with these ids, by pages of this size, once the presence store can be asked.
pub fn listed(server: &Server, state: &str, limit: usize, ours: &str) -> Vec<Value> {
    let mut all = None;
    eventually("the presence store answers", || {
        all = try_listed(server, state, limit, ours);
        all.is_some()
    });
    all.unwrap_or_default()
}

/// The same; None if the presence store can't be asked.
pub fn try_listed(server: &Server, state: &str, limit: usize, ours: &str) -> Option<Vec<Value>> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/sessions?state={state}&limit={limit}&cursor={cursor}");
        let answer = server.get(&path);
        if answer.status == 503 {
            return None;
        }
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let mut answer = answer.json();
        assert_eq!(answer["success"], true, "{answer}");
        assert!(answer["message"].is_string(), "{answer}");
        let sessions = answer["data"]["sessions"].take();
        let sessions = sessions.as_array().expect("a list");
        assert!(sessions.len() <= limit);
        all.extend(sessions.iter().cloned());
        match &answer["data"]["next_cursor"] {
            Value::Null => break,
            next => cursor = next.as_str().expect("a cursor").to_owned(),
        }
    }
    let since = |entry: &Value| entry["since"].as_str().expect("a time").to_owned();
    assert!(all.is_sorted_by_key(since), "{all:?}");
    all.retain(|entry| {
        entry["session_id"]
            .as_str()
            .is_some_and(|id| id.starts_with(ours))
    });
    Some(all)
}

fn fields(entry: &Value) -> (&Value, &Value, &Value) {
    assert_eq!(entry.as_object().map(serde_json::Map::len), Some(5), "{entry}");
    assert!(is_utc(&entry["since"]), "{entry}");
    (&entry["state"], &entry["total_customer"], &entry["total_agent"])
}

fn is(entry: &Value, state: &str, customers: usize, agents: usize) -> bool {
    fields(entry) == (&json!(state), &json!(customers), &json!(agents))
}

pub async fn the_lobby_is_told_of_each_change_of_state_once(store: Store) {
    let server = store.builder().env("PRESENCE_GRACE", "300ms").start();
    let session = unique("desk");
    let mut lobby = enter(&server, None).await;
    assert_eq!(lobby.greeting["session_id"], "@lobby");
    let snapshot = lobby.next("lobby_snapshot").await;
    assert_eq!(snapshot["data"]["has_more"], false, "{snapshot}");
    assert_eq!(entry(&snapshot["data"]["sessions"], &session), None);

    let customer = Client::connect(&server, &session, "ann", "customer").await;
    let (kind, waiting) = event(&mut lobby, &session).await;
    assert!(
        kind == "waiting" && is(&waiting, "waiting", 1, 0),
        "{kind}: {waiting}"
    );
    // Who counts as neither, and more of the same, are no change.
    let admin = Client::connect(&server, &session, "eve", "admin").await;
    let second = Client::connect(&server, &session, "cid", "customer").await;
    let agent = Client::connect(&server, &session, "bob", "agent").await;
    let (kind, active) = event(&mut lobby, &session).await;
    assert!(
        kind == "active" && is(&active, "active", 2, 1),
        "{kind}: {active}"
    );
    assert!(active["since"].as_str() > waiting["since"].as_str());
    let mut late = enter(&server, None).await;
    let snapshot = late.next("lobby_snapshot").await;
    assert_eq!(entry(&snapshot["data"]["sessions"], &session), Some(&active));

    let left = Instant::now();
    agent.close().await;
    let (kind, waiting) = event(&mut lobby, &session).await;
    assert!(
        kind == "waiting" && is(&waiting, "waiting", 2, 0),
        "{kind}: {waiting}"
    );
    assert!(
        left.elapsed() >= Duration::from_millis(250),
        "before the grace was over"
    );
    assert_eq!(event(&mut late, &session).await, (kind, waiting));
    customer.close().await;
    second.close().await;
    let (kind, ended) = event(&mut lobby, &session).await;
    assert!(kind == "ended" && is(&ended, "idle", 0, 0), "{kind}: {ended}");
    let page = listed(&server, "all", 100, &session);
    assert!(matches!(&page[..], [idle] if is(idle, "idle", 0, 0)), "{page:?}");
    admin.close().await;
    eventually("the end of the session", || {
        listed(&server, "all", 100, &session).is_empty()
    });
    // That was no change for the lobby; and nothing came twice.
    let customer = Client::connect(&server, &session, "ann", "customer").await;
    let (kind, _) = event(&mut lobby, &session).await;
    assert_eq!(kind, "waiting");
    let events = |client: &Client| {
        let of_session = client
            .log
            .iter()
            .filter(|frame| frame["data"]["session_id"] == session.as_str());
        of_session
            .filter(|frame| frame["type"] != "connection_established")
            .count()
    };
    assert_eq!(events(&lobby), 5);
    drop(customer);
}

pub async fn a_reload_is_no_change_of_state(store: Store) {
    let server = store.builder().env("PRESENCE_GRACE", "20s").start();
    let session = unique("desk");
    let mut lobby = enter(&server, None).await;
    lobby.next("lobby_snapshot").await;
    let mut customer = Client::connect(&server, &session, "ann", "customer").await;
    let (_, waiting) = event(&mut lobby, &session).await;
    for _ in 0..3 {
        customer.close().await;
        customer = Client::connect(&server, &session, "ann", "customer").await;
    }
    let agent = Client::connect(&server, &session, "bob", "agent").await;
    let (kind, _) = event(&mut lobby, &session).await;
    assert_eq!(kind, "active", "nothing in between");
    drop((customer, agent, waiting));
}

pub async fn sessions_are_listed_by_state_longest_first(store: Store) {
    let server = store.builder().env("PRESENCE_GRACE", "0s").start();
    let ours = unique("desk");
    let name = |number: usize| format!("{ours}-{number}");
    let mut clients = Vec::new();
    for number in 0..9 {
        for user_type in [&["customer"][..], &["customer", "agent"], &["agent"]][number % 3] {
            clients.push(Client::connect(&server, &name(number), user_type, user_type).await);
        }
        eventually("the session's state", || {
            let listed = listed(&server, "all", 1000, &name(number));
            let state = ["waiting", "active", "idle"][number % 3];
            matches!(&listed[..], [entry] if entry["state"] == state)
        });
    }
    for (state, expected) in [
        ("waiting", &[0, 3, 6][..]),
        ("active", &[1, 4, 7]),
        ("all", &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ] {
        for limit in [1, 2, 3, 1000] {
            let ids: Vec<_> = listed(&server, state, limit, &ours)
                .into_iter()
                .map(|mut entry| entry["session_id"].take())
                .collect();
            let expected: Vec<_> = expected.iter().map(|number| json!(name(*number))).collect();
            assert_eq!(ids, expected, "{state}, {limit} at a time");
        }
    }
    let all = listed(&server, "all", 4, &ours);
    assert!(is(&all[0], "waiting", 1, 0) && is(&all[1], "active", 1, 1) && is(&all[2], "idle", 0, 1));
    for bad in [
        "state=idle",
        "state=",
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=x",
        "cursor=~",
    ] {
        server.get(&format!("/api/sessions?{bad}")).assert_error(400);
    }
}

pub async fn an_agent_with_a_list_sees_only_those_sessions(store: Store) {
    let server = store
        .builder()
        .env("JWT_SECRET", SECRET)
        .env("PRESENCE_GRACE", "0s")
        .start();
    let [mine, other, later] = ["mine", "other", "later"].map(unique);
    let customer = async |session: &str| {
        let token = hs().token(&claims("ann", "customer", json!([session])));
        let path = format!("/ws/{session}/ann/customer");
        let mut client = Client::open(
            server.http_addr(),
            &path,
            &[("Authorization", &format!("Bearer {token}"))],
        )
        .await
        .expect("a customer's token");
        client.greet().await;
        client
    };
    let first = [customer(&mine).await, customer(&other).await];
    let listed_for = |sessions: Value| {
        let bearer = format!("Bearer {}", hs().token(&claims("bob", "agent", sessions)));
        let headers = [("Authorization", bearer.as_str())];
        let ask = || Http::request(server.http_addr(), "GET", "/api/sessions?limit=1000", &headers);
        let mut answer = ask();
        eventually("the presence store answers", || {
            if answer.status == 503 {
                answer = ask();
            }
            answer.status != 503
        });
        let sessions = answer.json()["data"]["sessions"].take();
        [&mine, &other, &later].map(|session| entry(&sessions, session).is_some())
    };
    eventually("both sessions", || listed_for(Value::Null) == [true, true, false]);
    assert_eq!(listed_for(json!([mine, later])), [true, false, false]);
    assert_eq!(listed_for(json!([])), [false; 3]);

    let of_list = claims("bob", "agent", json!([mine, later]));
    let mut lobby = enter(&server, Some(&of_list)).await;
    let snapshot = lobby.next("lobby_snapshot").await;
    let sessions = &snapshot["data"]["sessions"];
    assert_eq!(sessions.as_array().map(Vec::len), Some(1), "{snapshot}");
    assert!(is(
        entry(sessions, &mine).expect("its own session"),
        "waiting",
        1,
        0
    ));
    let third = customer(&later).await;
    assert_eq!(event(&mut lobby, &later).await.0, "waiting");
    let [first, second] = first;
    second.close().await;
    first.close().await;
    assert_eq!(event(&mut lobby, &mine).await.0, "ended");
    lobby.fence().await;
    assert!(
        lobby
            .take(|frame| frame["data"]["session_id"] == other.as_str())
            .is_empty()
    );

    // Another list: what it covers follows, and nothing else does.
    let token = hs().token(&claims("bob", "agent", json!([other])));
    lobby
        .send(json!({"type": "auth", "data": {"token": token}}))
        .await;
    lobby.next("authenticated").await;
    assert_eq!(lobby.next("lobby_snapshot").await["data"]["sessions"], json!([]));
    third.close().await;
    let fourth = customer(&other).await;
    assert_eq!(event(&mut lobby, &other).await.0, "waiting");
    assert!(
        lobby
            .take(|frame| frame["data"]["session_id"] == later.as_str())
            .is_empty()
    );
    drop(fourth);
}

pub async fn the_limits_of_connections_hold_in_the_lobby(store: Store) {
    let server = store
        .builder()
        .env("JWT_SECRET", SECRET)
        .env("JWT_LEEWAY", "0s")
        .env("MAX_CONNECTIONS_PER_USER", 1)
        .start();
    let mut claims = claims("bob", "agent", Value::Null);
    let mut first = enter(&server, Some(&claims)).await;
    first.next("lobby_snapshot").await;
    claims["exp"] = (now() + 8).into();
    let mut second = enter(&server, Some(&claims)).await;
    assert_eq!(first.expect_close().await, 4009);
    second.next("token_expiring").await;
    second.next("lobby_snapshot").await;
    assert_eq!(second.expect_close().await, 4401);
    let token = hs().token(&claims);
    let refused = Http::request(
        server.http_addr(),
        "GET",
        "/api/sessions",
        &[("Authorization", &format!("Bearer {token}"))],
    );
    refused.assert_error(401);
}

pub async fn the_lobby_is_no_session(store: Store) {
    let server = store
        .builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("SESSION_ID_FORMAT", "uuid")
        .start();
    let before = server.health()["sessions"].clone();
    let mut lobby = enter(&server, None).await;
    lobby.next("lobby_snapshot").await;
    for frame in [
        json!({"type": "send_message", "data": {"message": "hello", "client_message_id": "c"}}),
        json!({"type": "typing_start"}),
        json!({"type": "message_read", "data": {"up_to": "01a20537-1c69-7310-8394-ed2e23394d07"}}),
        json!({"type": "agent_typing", "data": {"is_typing": false}}),
        json!({"type": "typing_stop"}),
    ] {
        let mut frame = frame;
        frame["request_id"] = "asked".into();
        lobby.send(frame.clone()).await;
        let answer = lobby.next("error").await;
        assert_eq!(
            (
                &answer["data"]["code"],
                &answer["data"]["retryable"],
                &answer["request_id"]
            ),
            (&json!("not_allowed"), &json!(false), &json!("asked")),
            "{frame}"
        );
    }
    lobby.send(json!({"type": "join_session"})).await;
    assert_eq!(lobby.next("session_joined").await["data"]["session_id"], "@lobby");
    lobby.send(json!({"type": "ping"})).await;
    assert!(lobby.next("pong").await["data"].get("cursor").is_none());
    lobby.expect_none("connection_status_update").await;
    assert!(lobby.greeting.get("cursor").is_none());
    assert_eq!(server.health()["sessions"], before);
    let all = json!(listed(&server, "all", 1000, ""));
    assert_eq!(entry(&all, "@lobby"), None);
    server
        .get("/api/session/@lobby/connection-status")
        .assert_error(400);
    server.get("/api/session/@lobby/messages").assert_error(400);

    let refused = Client::open(server.http_addr(), "/ws/%40lobby/ann/customer", &[]).await;
    let status = match refused {
        Err(Error::Http(response)) => response.status().as_u16(),
        _ => panic!("customers don't see the lobby"),
    };
    assert_eq!(status, 403);
    let page = Http::get(server.admin_addr(), "/metrics").text();
    let counted = "livechat_upgrades_refused_total{reason=\"lobby\"} 1\n";
    assert!(page.contains(counted), "{page}");
    // What is not asked for there is ignored.
    let path = "/ws/%40lobby/ann/admin?since=x&rewind=5";
    let mut admin = Client::open(server.http_addr(), path, &[])
        .await
        .expect("an admin");
    admin.greet().await;
    admin.next("lobby_snapshot").await;
    admin.expect_none("resumed").await;
    server.signal("TERM");
    assert_eq!(admin.expect_close().await, 1001);
    assert_eq!(lobby.expect_close().await, 1001);
}
