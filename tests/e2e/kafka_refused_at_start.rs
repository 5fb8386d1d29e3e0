//! A node that starts lets nobody in whom it will soon know to be refused.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::services::{Topics, start_well, unique};
use crate::support::tokens::{SECRET, claims, hs};
use crate::support::{Client, Http, Server};

const API_KEY: &str = "a-key-of-tests-0123456789";

/// The status of a plain GET; 426: nothing but the handshake is missing.
fn ask(server: &Server, path: &str, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    Http::request(server.http_addr(), "GET", path, &[("Authorization", &bearer)]).status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_a_starting_node_refuses_who_is_refused_from_its_first_answer() {
    let topics = Topics::new();
    let node = |name: &str| {
        topics
            .node(name)
            .env("JWT_SECRET", SECRET)
            .env("API_KEYS", API_KEY)
    };
    let first = start_well(node("node-a"));
    let session = unique("session");
    let token = |user: &str| hs().token(&claims(user, "customer", json!([session])));
    let refused = Http::request(
        first.http_addr(),
        "DELETE",
        &format!("/api/session/{session}/users/cu?for=1h"),
        &[("X-API-Key", API_KEY)],
    );
    assert_eq!(refused.status, 202, "{refused:?}");
    for round in 0..3 {
        let began = Instant::now();
        let mut is_known = false;
        let server = node(&format!("node-{round}")).start_listening();
        let end = Instant::now() + Duration::from_secs(2);
        while !is_known || Instant::now() < end {
            for path in [
                format!("/ws/{session}/cu/customer"),
                format!("/api/session/{session}/messages"),
                format!("/api/session/{session}/connection-status"),
            ] {
                let status = ask(&server, &path, &token("cu"));
                is_known |= status == 403;
                // It waits three seconds for Kafka, which may take longer on a busy machine.
                let is_late = !is_known && began.elapsed() >= Duration::from_secs(3);
                assert!(status == 403 || is_late, "{path}: {status}");
            }
        }
        // Others are let in.
        let bearer = format!("Bearer {}", token("other"));
        let path = format!("/ws/{session}/other/customer");
        let mut other = Client::open(server.http_addr(), &path, &[("Authorization", &bearer)])
            .await
            .expect("let in");
        other.greet().await;
        assert_ne!(other.greeting, Value::Null);
    }
}
