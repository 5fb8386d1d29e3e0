//! `MAX_CONNECTIONS_PER_USER`: the newest connection replaces the user's oldest.

use crate::presence::{STATUS, Store, hear};
use crate::support::{Client, RawWs, Server, eventually};

fn server() -> Server {
    Server::builder()
        .env("MAX_CONNECTIONS_PER_USER", 2)
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .start()
}

#[test]
fn limits_per_user_the_oldest_is_closed_with_4009() {
    let server = server();
    let mut one = RawWs::connect(&server, "s1", "u1", "agent");
    let mut two = RawWs::connect(&server, "s1", "u1", "agent");
    let mut other = RawWs::connect(&server, "s1", "u2", "agent");
    let mut elsewhere = RawWs::connect(&server, "s2", "u1", "agent");
    let mut three = RawWs::connect(&server, "s1", "u1", "agent");
    assert_eq!(one.expect_close(), 4009);
    for ws in [&mut two, &mut other, &mut elsewhere, &mut three] {
        ws.expect_alive();
    }
    // Below the limit, no connection is closed.
    drop(two);
    eventually("it is gone", || server.health()["connections"] == 3);
    let mut four = RawWs::connect(&server, "s1", "u1", "agent");
    three.expect_alive();
    let _five = RawWs::connect(&server, "s1", "u1", "agent");
    assert_eq!(three.expect_close(), 4009);
    four.expect_alive();
    let closed = "livechat_connections_closed_total{reason=\"replaced\"} 2";
    eventually("both are counted", || {
        crate::support::Http::get(server.admin_addr(), "/metrics")
            .text()
            .contains(closed)
    });
}

/// A vanished phone reads nothing and answers nothing, but its user can connect again.
#[test]
fn limits_per_user_a_lost_connection_does_not_lock_its_user_out() {
    let server = server();
    let _vanished = [(); 2].map(|()| RawWs::connect(&server, "s1", "u1", "agent"));
    let mut back = [(); 2].map(|()| RawWs::connect(&server, "s1", "u1", "agent"));
    back.iter_mut().for_each(|ws| drop(ws.expect_alive()));
}

#[test]
fn limits_per_user_more_than_ten_replacements_a_minute_are_429() {
    let server = server();
    let mut open: Vec<_> = (0..12)
        .map(|_| RawWs::connect(&server, "s1", "u1", "agent"))
        .collect();
    let refusal = RawWs::try_connect(server.http_addr(), "/ws/s1/u1/agent", &[])
        .err()
        .expect("a refusal");
    refusal.assert_error(429);
    let after: u64 = refusal
        .header("retry-after")
        .and_then(|value| value.parse().ok())
        .expect("Retry-After in seconds");
    assert!((1..=60).contains(&after), "{after}");
    open.drain(10..).for_each(|mut ws| drop(ws.expect_alive()));
    let _another = RawWs::connect(&server, "s1", "u2", "agent");
    assert!(server.metric("livechat_upgrades_refused_total") >= 1.0);
}

/// A replacement is no leave, even without a grace: the new connection joins before the old one leaves.
#[tokio::test]
async fn limits_per_user_a_replacement_is_no_leave() {
    let server = Store::Embedded
        .builder()
        .env("MAX_CONNECTIONS_PER_USER", 1)
        .env("PRESENCE_GRACE", "0s")
        .start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    hear(&mut agent, "user_connected", "agent").await;
    let mut customer = Client::connect(&server, "s1", "cust", "customer").await;
    hear(&mut agent, "user_connected", "cust").await;
    for _ in 0..5 {
        let newer = Client::connect(&server, "s1", "cust", "customer").await;
        assert_eq!(customer.expect_close().await, 4009);
        customer = newer;
    }
    let _fence = Client::connect(&server, "s1", "fence", "admin").await;
    hear(&mut agent, "user_connected", "fence").await;
    assert_eq!(agent.take_all(STATUS), Vec::<serde_json::Value>::new());
}
