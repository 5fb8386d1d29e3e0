//! `GET /api/session/{id}/messages`, from a node without Kafka.

use serde_json::{Value, json};

use crate::resume::{open, replayed, say, texts};
use crate::support::{Client, Http, Response, Server};

#[track_caller]
fn request(server: &Server, method: &str, session: &str, query: &str) -> Response {
    let path = format!("/api/session/{session}/messages{query}");
    Http::request(server.http_addr(), method, &path, &[])
}

/// The `data` of a response that must be 200.
#[track_caller]
pub fn page(server: &Server, session: &str, query: &str) -> Value {
    let response = request(server, "GET", session, query);
    assert_eq!(response.status, 200, "{query}: {}", response.text());
    let body = response.json();
    assert_eq!(body["success"], true, "{body}");
    assert_eq!(body["message"], "Messages retrieved successfully");
    body["data"].clone()
}

pub fn of(page: &Value) -> Vec<String> {
    texts(page["messages"].as_array().expect("messages"))
}

/// All messages from a cursor on, a page at a time, from these nodes in turn.
#[track_caller]
pub fn all_pages(servers: &[&Server], session: &str, since: &str, limit: usize) -> (Vec<Value>, String) {
    let (mut all, mut since) = (Vec::new(), since.to_owned());
    for number in 0.. {
        let query = format!("?since={since}&limit={limit}");
        let page = page(servers[number % servers.len()], session, &query);
        assert_eq!(page["recovered"], true, "{page}");
        let messages = page["messages"].as_array().expect("messages");
        assert!(messages.len() <= limit, "{page}");
        all.extend(messages.iter().cloned());
        since = page["cursor"].as_str().expect("a cursor").to_owned();
        if page["has_more"] == false {
            break;
        }
        assert!(number < 1000, "the pages have no end: {page}");
    }
    (all, since)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_loaded_page_by_page_as_they_were_delivered() {
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 0).start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let mut other = Client::connect(&server, "t", "agent", "agent").await;
    let start = agent.greeting["cursor"].as_str().unwrap().to_owned();
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.extend(say(&mut agent, &[&n.to_string()]).await);
        say(&mut other, &["of another session"]).await;
    }
    // The last ones, the oldest of them first.
    let last = page(&server, "s", "?limit=3");
    assert_eq!(of(&last), ["7", "8", "9"]);
    assert_eq!(
        (&last["recovered"], &last["has_more"]),
        (&json!(true), &json!(true))
    );
    assert!(last.get("reason").is_none(), "{last}");
    let all = page(&server, "s", "");
    assert_eq!((of(&all).len(), &all["has_more"]), (10, &json!(false)));
    assert_eq!(page(&server, "s", "?limit=10")["has_more"], false);
    // As frames went out.
    let delivered = agent
        .log
        .iter()
        .find(|frame| frame["type"] == "new_message" && frame["data"]["message_id"] == *ids[0]);
    assert_eq!(Some(&all["messages"][0]), delivered);
    // What follows a message, or a cursor.
    let after = page(&server, "s", &format!("?since={}&limit=2", ids[3]));
    assert_eq!(
        (of(&after), &after["has_more"]),
        (vec!["4".into(), "5".into()], &json!(true))
    );
    for limit in [1, 3, 10, 1000] {
        let (messages, end) = all_pages(&[&server], "s", &start, limit);
        assert_eq!(messages, *all["messages"].as_array().unwrap(), "{limit}");
        assert_eq!(of(&page(&server, "s", &format!("?since={end}"))).len(), 0);
    }
    // A client goes on live where its last page ended.
    let cursor = last["cursor"].as_str().unwrap().to_owned();
    say(&mut agent, &["10"]).await;
    let mut client = open(&server, "s", "u", &format!("since={cursor}")).await;
    assert_eq!(replayed(&mut client).await.0, ["10"]);
    assert_eq!(of(&page(&server, "s", &format!("?since={cursor}"))), ["10"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_session_that_nobody_knows_are_none() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    say(&mut agent, &["a"]).await;
    let empty = page(&server, "nobody", "");
    assert_eq!(
        (&empty["messages"], &empty["recovered"], &empty["has_more"]),
        (&json!([]), &json!(true), &json!(false))
    );
    let cursor = empty["cursor"].as_str().unwrap();
    assert_eq!(
        page(&server, "nobody", &format!("?since={cursor}"))["messages"],
        json!([])
    );
    assert_eq!(server.health()["sessions"], 1, "asking makes no session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_cannot_be_found_have_a_reason() {
    let server = Server::builder().env("RESUME_TIMEOUT", "300ms").start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let mut other = Client::connect(&server, "t", "agent", "agent").await;
    say(&mut agent, &["a"]).await;
    let foreign = say(&mut other, &["f"]).await.remove(0);
    let of_another = Server::start();
    let stranger = Client::connect(&of_another, "s", "u", "customer").await;
    let cursor = stranger.greeting["cursor"].as_str().unwrap();
    for (since, reason) in [
        ("", "invalid"),
        ("~2.x", "invalid"),
        (&*foreign, "unknown_message"),
        ("7", "unknown_message"),
        (cursor, "unknown_message"),
    ] {
        let page = page(&server, "s", &format!("?since={since}"));
        assert_eq!(
            (
                &page["messages"],
                &page["recovered"],
                &page["reason"],
                &page["has_more"]
            ),
            (&json!([]), &json!(false), &json!(reason), &json!(false)),
            "{since}"
        );
        let go_on = self::page(
            &server,
            "s",
            &format!("?since={}", page["cursor"].as_str().unwrap()),
        );
        assert_eq!(
            (&go_on["recovered"], of(&go_on).len()),
            (&json!(true), 0),
            "{since}"
        );
    }
    // `rewind` belongs to the WebSocket.
    assert_eq!(of(&page(&server, "s", "?rewind=0")), ["a"]);
}

#[test]
fn messages_is_a_route_as_others_are() {
    let key = ("X-API-Key", "a-key-of-tests-0123456789");
    let request = |server: &Server, method: &str, id: &str, rest: &str| {
        let path = format!("/api/session/{id}/messages{rest}");
        Http::request(server.http_addr(), method, &path, &[key])
    };
    let server = Server::builder()
        // Without tokens and keys, production does not offer it.
        .env("API_KEYS", key.1)
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "https://a.example")
        .start();
    for limit in ["", "0", "1001", "-1", "ten", "1.0", "99999999999999999999"] {
        let response = request(&server, "GET", "s", &format!("?limit={limit}"));
        response.assert_error(400);
        assert_eq!(response.json()["message"], "Invalid limit", "{limit}");
    }
    // The id is checked first, and the method before it.
    let bad = request(&server, "GET", "a%00", "?limit=0");
    assert_eq!(bad.json()["message"], "Invalid session ID");
    let response = request(&server, "PUT", "a%00", "?limit=0");
    response.assert_error(405);
    assert_eq!(response.header("allow"), Some("GET, HEAD, POST, OPTIONS"));
    assert_eq!(request(&server, "OPTIONS", "s", "").status, 204);
    request(&server, "GET", "s/x", "").assert_error(404);
    assert_eq!(request(&server, "GET", "s", "/").status, 200, "a trailing slash");
    assert_eq!(request(&server, "GET", "s", "/?limit=5").status, 200);

    let get = request(&server, "GET", "s", "");
    let mut http = Http::connect(server.http_addr());
    http.send("HEAD", "/api/session/s/messages", &[key]);
    let head = http.read_for("HEAD").expect("an answer to HEAD");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), get.header("content-type"));
    assert!(http.still_answers(), "bytes of a body followed a HEAD");

    let from = |origin| {
        let headers = [("Origin", origin), key];
        Http::request(server.http_addr(), "GET", "/api/session/s/messages", &headers)
    };
    let allowed = from("https://a.example");
    let origin = allowed.header("access-control-allow-origin");
    assert_eq!(origin, Some("https://a.example"));
    assert_eq!(
        from("https://b.example").header("access-control-allow-origin"),
        None
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_have_at_most_as_many_bytes_as_a_replay() {
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("RESUME_MAX_BYTES", 20_000)
        .start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let start = agent.greeting["cursor"].as_str().unwrap().to_owned();
    let long = "x".repeat(6_000);
    // One of them is longer than that.
    let longest = "y".repeat(30_000);
    say(&mut agent, &["1", &long, &long, &long, &longest, &long]).await;
    let response = request(&server, "GET", "s", "?limit=1000");
    assert!(response.body.len() < 20_500, "{}", response.body.len());
    let body = response.json();
    assert_eq!(
        (of(&body["data"]).len(), &body["data"]["has_more"]),
        (1, &json!(true))
    );
    let first = page(&server, "s", &format!("?since={start}"));
    assert_eq!((of(&first).len(), &first["has_more"]), (4, &json!(true)));
    let (messages, _) = all_pages(&[&server], "s", &start, 1000);
    assert_eq!(texts(&messages), ["1", &long, &long, &long, &longest, &long]);
}
