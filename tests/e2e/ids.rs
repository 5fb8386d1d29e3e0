//! Ids of identity providers and backends, on their whole path through one node.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::support::raw::HANDSHAKE;
use crate::support::{Client, Http, RawWs, Server, eventually};

/// User ids that must pass unchanged.
pub const USER_IDS: [&str; 19] = [
    "auth0|1",
    "user:42",
    "José",
    "Jose\u{301}",
    "Anna Schmidt",
    "urn:example:user:1",
    "google-oauth2|103547991597142817347",
    "waad|abc_-=",
    "CORP,Users;x=1",
    "o'brien",
    "李小龍",
    "\u{1F600}\u{1F3FD}",
    "a*b?c[d]",
    "$(id)&#!^",
    "a  b",
    "...",
    "ÅNGSTRÖM",
    "a\u{a0}b",
    "Ключ",
];

/// User ids that are refused, decoded.
pub const BAD_USER_IDS: [&str; 24] = [
    "a\tb",
    "a\nb",
    "a\rb",
    "\u{7f}",
    "a\u{85}b",
    "\u{9f}",
    "\u{ad}",
    "a\u{200b}",
    "\u{200d}",
    "\u{202e}evil",
    "\u{2028}",
    "\u{2029}",
    "\u{feff}a",
    "\u{e0041}",
    "a/b",
    "a\\b",
    "100%",
    "\"",
    "<b>",
    "a>b",
    "{a",
    "a}",
    "`",
    " ",
];

fn encoded(id: &str) -> String {
    utf8_percent_encode(id, NON_ALPHANUMERIC).to_string()
}

#[tokio::test]
async fn ids_of_users_pass_unchanged_through_every_frame() {
    let server = Server::start();
    let mut watcher = Client::connect(&server, "s1", "watcher", "agent").await;
    for id in USER_IDS {
        let mut user = Client::connect(&server, "s1", &encoded(id), "customer").await;
        assert_eq!(user.greeting["user_id"], id);
        // A window may have other changes, too.
        let is_of_it = |kind: &'static str| {
            move |frame: &Value| {
                let events = frame["data"]["events"].as_array();
                let is_one = |event: &Value| event["event_type"] == kind && event["event_user_id"] == id;
                events.is_some_and(|events| events.iter().any(is_one))
            }
        };
        let joined = watcher.next_where("the join", is_of_it("user_connected")).await;
        assert_eq!(
            joined["data"]["connection_status"]["users"][id]["user_id"], id,
            "{joined}"
        );
        user.say_acked("hello").await;
        assert_eq!(watcher.next("new_message").await["data"]["sender_id"], id);
        user.send(json!({"type": "typing_start"})).await;
        let is_typing =
            |frame: &Value| frame["type"] == "typing_indicator" && frame["data"]["is_typing"] == true;
        assert_eq!(
            watcher.next_where("typing", is_typing).await["data"]["user_id"],
            id
        );
        assert_eq!(server.connection_status("s1")["users"][id]["user_id"], id);
        user.close().await;
        watcher
            .next_where("the leave", is_of_it("user_disconnected"))
            .await;
    }
}

/// The same letters in another composition or case are another user.
#[tokio::test]
async fn ids_of_users_are_compared_byte_for_byte() {
    let server = Server::start();
    let mut clients = Vec::new();
    let alike = [
        "José",
        "Jose\u{301}",
        "josé",
        "JOSÉ",
        "018F4E3A-7C1E-7000-8000-000000000000",
        "018f4e3a-7c1e-7000-8000-000000000000",
    ];
    for id in alike {
        clients.push(Client::connect(&server, "s1", &encoded(id), "customer").await);
    }
    eventually("all are listed", || {
        server.connection_status("s1")["total_customer"] == alike.len()
    });
}

#[test]
fn ids_of_users_that_are_invalid_are_refused() {
    let server = Server::start();
    let long = "é".repeat(64);
    let path = |id: &str| format!("/ws/s1/{}/customer", encoded(id));
    assert_eq!(
        RawWs::connect_path(server.http_addr(), &path(&long)).read_json()["data"]["user_id"],
        long
    );
    let longer = format!("{long}x");
    for id in BAD_USER_IDS.into_iter().chain([" a", "a ", &longer]) {
        let response = Http::request(server.http_addr(), "GET", &path(id), &HANDSHAKE);
        response.assert_error(400);
        assert_eq!(response.json()["message"], "Invalid user ID", "{id:?}");
    }
    eventually("nobody is there", || server.health()["connections"] == 0);
}

/// As browsers send them: they encode neither `|` nor `:`; some clients encode nothing at all.
#[test]
fn ids_of_users_may_be_unencoded_in_a_path() {
    let server = Server::start();
    for id in [
        "auth0|1",
        "user:42",
        "o'brien",
        "a*b",
        "José",
        "a;b,c=d&e$f!g(h)",
        "a[b]^c",
    ] {
        let mut ws = RawWs::connect_path(server.http_addr(), &format!("/ws/s1/{id}/customer"));
        assert_eq!(ws.read_json()["data"]["user_id"], id);
    }
}

#[tokio::test]
async fn ids_of_sessions_that_are_uuids_are_the_same_in_any_case() {
    let server = Server::start();
    let lower = "018f4e3a-7c1e-7abc-8def-0123456789ab";
    let upper = lower.to_ascii_uppercase();
    let mixed = "018F4e3A-7C1e-7aBc-8DeF-0123456789Ab";
    let mut first = Client::connect(&server, lower, "first", "customer").await;
    for (id, user) in [(upper.as_str(), "second"), (mixed, "third")] {
        let mut client = Client::connect(&server, id, user, "agent").await;
        assert_eq!(client.greeting["session_id"], lower);
        client.send(json!({"type": "join_session"})).await;
        assert_eq!(client.next("session_joined").await["data"]["session_id"], lower);
        client.say_acked(user).await;
        let heard = first.next("new_message").await;
        assert_eq!(
            (&heard["data"]["message"], &heard["data"]["session_id"]),
            (&json!(user), &json!(lower))
        );
        eventually("both are listed", || {
            [lower, &upper, mixed]
                .iter()
                .all(|id| server.connection_status(id)["total_agent"] == 1)
        });
        client.close().await;
    }
    // Others keep their case, whatever they resemble.
    let _plain = Client::connect(&server, "Room-A", "one", "customer").await;
    let _digits = Client::connect(&server, "018F4E3A7C1E7ABC8DEF0123456789AB", "one", "customer").await;
    eventually("it is listed", || {
        server.connection_status("Room-A")["total_customer"] == 1
    });
    assert_eq!(server.connection_status("room-a")["total_customer"], 0);
    assert_eq!(
        server.connection_status("018f4e3a7c1e7abc8def0123456789ab")["total_customer"],
        0
    );
}

/// One line each, in which a user id can't imitate another.
#[tokio::test]
async fn ids_in_the_log_are_quoted_if_ambiguous() {
    let server = Server::builder().env("LOG_LEVEL", "debug").start();
    for (id, shown) in [
        ("auth0|1", "auth0|1"),
        ("user:42", "user:42"),
        ("José", "\"José\""),
        ("bob (agent) to session s9", "\"bob (agent) to session s9\""),
        ("a,b", "\"a,b\""),
    ] {
        let client = Client::connect(&server, "s1", &encoded(id), "customer").await;
        client.close().await;
        server.wait_log(&format!(
            "WebSocket client connected: {shown} (customer) to session s1"
        ));
        server.wait_log(&format!(
            "WebSocket client disconnected: {shown} (customer) from session s1"
        ));
    }
    // What is refused is logged by its path, at debug.
    for path in [
        "/ws/s1/\u{2028}2026 INFO forged/customer",
        "/a\u{202e}b",
        "/a%0a2026%20INFO%20forged",
    ] {
        let path = path.replace(' ', "%20");
        let _ = Http::exchange(
            server.http_addr(),
            format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
        );
    }
    server.get("/live");
    server.wait_log("200 - GET /live");
    for line in server.log() {
        let hidden = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}');
        assert!(!line.contains(hidden), "{line:?}");
        assert!(!line.starts_with("2026 INFO forged"), "{line:?}");
    }
}

/// A user has the type of the first live connection.
#[tokio::test]
async fn ids_a_users_type_is_that_of_the_first_live_connection() {
    let server = Server::start();
    let first = Client::connect(&server, "s1", "u1", "customer").await;
    let mut second = Client::connect(&server, "s1", "u1", "agent").await;
    assert_eq!(second.greeting["user_type"], "customer");
    second.say_acked("who am I?").await;
    assert_eq!(
        second.next("new_message").await["data"]["sender_type"],
        "customer"
    );
    first.close().await;
    eventually("one connection is left", || server.health()["connections"] == 1);
    assert_eq!(
        server.connection_status("s1")["users"]["u1"]["user_type"],
        "customer"
    );
    second.close().await;
    eventually("nobody is listed", || {
        server.connection_status("s1")["users"] == json!({})
    });
    let third = Client::connect(&server, "s1", "u1", "agent").await;
    assert_eq!(third.greeting["user_type"], "agent");
}
