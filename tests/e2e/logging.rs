//! Whoever reads the log may be slow, or go, or its disk be full: nothing waits for that. And what the lines of
//! connections say.

use serde_json::Value;

use crate::support::{Client, Frame, Opcode, PATIENCE, RawWs, Server, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_log_does_not_stop_the_server() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    let mut ann = Client::connect(&server, "s", "ann", "customer").await;
    server.close_log(|| drop(RawWs::connect(&server, "other", "eve", "customer")));

    let mut bob = Client::connect(&server, "s", "bob", "agent").await;
    bob.say("still here", "1").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.next("new_message").await["data"]["message"], "still here");
    }
    drop(bob);
    eventually("he is gone for all", || {
        server.connection_status("s")["total_agent"] == 0
    });
    eventually("lost lines are counted", || {
        server.metric("livechat_log_lines_lost_total") >= 1.0
    });
    server.signal("TERM");
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
}

/// Standard error is a pipe that is not read. It holds 64 KiB, about what 340 connections write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_log_does_not_stop_the_server() {
    let server = Server::builder().env("LOG_LEVEL", "debug").start();
    let mut ann = Client::connect(&server, "s", "ann", "customer").await;
    server.stall_log();
    for _ in 0..1_000 {
        drop(RawWs::connect(&server, "other", "eve", "customer"));
    }

    assert_eq!(server.health()["status"], "ok");
    let mut bob = Client::connect(&server, "s", "bob", "agent").await;
    bob.say("still here", "1").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.next("new_message").await["data"]["message"], "still here");
    }
    server.signal("TERM");
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
}

#[test]
fn logging_catches_up_when_it_is_read_again() {
    let server = Server::start();
    server.stall_log();
    for number in 0..1_000 {
        drop(RawWs::connect(&server, "s", &format!("u{number}"), "customer"));
    }
    server.resume_log();
    // Connections end in any order.
    for number in 0..1_000 {
        server.wait_log(&format!(" disconnected: u{number} "));
    }
    let log = server.log();
    let position = |what: &str| log.iter().position(|line| line.contains(what));
    for number in 0..1_000 {
        let connected = position(&format!(" connected: u{number} "));
        let disconnected = position(&format!(" disconnected: u{number} "));
        assert!(connected.is_some() && connected < disconnected, "u{number}");
    }
}

#[test]
fn logging_of_connections_keeps_the_old_servers_text() {
    let server = Server::start();
    drop(RawWs::connect(&server, "s", "ann", "customer"));
    for sentence in [
        "WebSocket client connected: ann (customer) to session s",
        "WebSocket client disconnected: ann (customer) from session s",
    ] {
        let line = server.wait_log(sentence);
        assert!(line.ends_with(sentence), "{line}");
    }
}

#[test]
fn logging_of_connections_has_fields_in_json() {
    let server = Server::builder()
        .env("LOG_FORMAT", "json")
        .env("TRUSTED_PROXIES", "127.0.0.1")
        .start();
    let end = |user: &str, end: &dyn Fn(&mut RawWs)| -> Value {
        let path = format!("/ws/s/{user}/customer");
        let forwarded = [("X-Forwarded-For", "203.0.113.7")];
        let mut ws = RawWs::try_connect(server.http_addr(), &path, &forwarded).expect("an upgrade");
        end(&mut ws);
        drop(ws);
        let line = server.wait_log(&format!("disconnected: {user} "));
        serde_json::from_str(&line).expect("a JSON object")
    };

    let closed = end("ann", &|ws| {
        ws.send(Frame::close(1000, ""));
        while ws.read_frame().is_some() {}
    });
    assert_eq!(closed["session_id"], "s");
    assert_eq!(closed["user_id"], "ann");
    assert_eq!(closed["user_type"], "customer");
    assert_eq!(closed["client_address"], "203.0.113.7");
    assert_eq!(closed["close_code"], 1000);
    assert!(
        closed["duration_seconds"]
            .as_f64()
            .is_some_and(|s| (0.0..600.0).contains(&s)),
        "{closed}"
    );
    let sentence = "WebSocket client disconnected: ann (customer) from session s";
    assert_eq!(closed["message"], sentence);
    let connected: Value = serde_json::from_str(&server.wait_log(" connected: ann ")).expect("a JSON object");
    assert_eq!(connected["user_id"], "ann");
    assert_eq!(connected["client_address"], "203.0.113.7");

    let lost = end("bob", &|_| {});
    assert_eq!(lost["close_code"], 1006, "no close frame");
    let wrong = end("eve", &|ws| {
        ws.send(Frame::new(Opcode::Binary, b"x"));
        while ws.read_frame().is_some() {}
    });
    assert_eq!(wrong["close_code"], 1003, "ours");
}
