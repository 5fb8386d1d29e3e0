//! Client addresses behind proxies, by which `MAX_CONNECTIONS_PER_IP` counts.

use crate::support::raw::HANDSHAKE;
use crate::support::{Http, RawWs, Response, Server, eventually};

/// A server that trusts this machine, and allows one connection per address.
fn behind_a_proxy() -> Server {
    Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("MAX_CONNECTIONS_PER_IP", 1)
        .env("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8, 2001:db8:ffff::/48")
        .start()
}

type Headers<'a> = &'a [(&'a str, &'a str)];

fn open(server: &Server, headers: Headers<'_>) -> Result<RawWs, Response> {
    RawWs::try_connect(server.http_addr(), "/ws/s1/u1/agent", headers)
}

/// Asserts that all of these are the same client's, and that `other` is another client's.
#[track_caller]
fn same_client(server: &Server, all: &[Headers<'_>], other: Headers<'_>) {
    let first =
        open(server, all[0]).unwrap_or_else(|refusal| panic!("{:?} was refused: {refusal:?}", all[0]));
    for headers in all {
        let refusal = open(server, headers)
            .err()
            .unwrap_or_else(|| panic!("{headers:?} counts as another client than {:?}", all[0]));
        refusal.assert_error(429);
    }
    let second = open(server, other);
    assert!(
        second.is_ok(),
        "{other:?} counts as the same client as {:?}",
        all[0]
    );
    drop((first, second));
    eventually("the places are free", || server.health()["connections"] == 0);
}

#[test]
fn addresses_may_have_ports() {
    let server = behind_a_proxy();
    let clients: Vec<_> = (1..=8)
        .map(|n| {
            let address = format!("203.0.113.{n}:{}", 50_000 + n);
            open(&server, &[("X-Forwarded-For", &address)]).unwrap_or_else(|_| panic!("{address}"))
        })
        .collect();
    assert_eq!(server.health()["connections"], clients.len());
}

#[test]
fn addresses_in_x_forwarded_for_are_read_in_all_spellings() {
    let server = behind_a_proxy();
    const NAME: &str = "X-Forwarded-For";
    same_client(
        &server,
        &[
            &[(NAME, "203.0.113.7")],
            &[(NAME, "203.0.113.7:51234")],
            &[(NAME, "  203.0.113.7:1  ")],
            &[(NAME, "\"203.0.113.7:51234\"")],
            &[(NAME, "::ffff:203.0.113.7")],
            &[(NAME, "[::ffff:203.0.113.7]:443")],
            // What the client wrote precedes what the proxy added.
            &[(NAME, "198.51.100.1, 203.0.113.7:9")],
            &[(NAME, "unknown, nonsense, 203.0.113.7")],
            &[(NAME, "198.51.100.1"), (NAME, "203.0.113.7:9")],
            // Trusted proxies on the way, and empty elements.
            &[(NAME, "203.0.113.7, 10.1.2.3:80, ,127.0.0.9,")],
            &[(NAME, "203.0.113.7"), (NAME, "10.1.2.3"), (NAME, "")],
            // Of the two headers this one wins.
            &[("Forwarded", "for=198.51.100.1"), (NAME, "203.0.113.7")],
        ],
        &[(NAME, "203.0.113.8:51234")],
    );
    // IPv6 addresses count by /64, which is what one customer typically has.
    same_client(
        &server,
        &[
            &[(NAME, "2001:db8:1:2::1")],
            &[(NAME, "[2001:db8:1:2::2]")],
            &[(NAME, "[2001:db8:1:2:ffff::1]:443")],
            &[(NAME, "\"[2001:db8:1:2::3]:443\"")],
            &[(NAME, "2001:db8:1:2::4, 2001:db8:ffff::1")],
        ],
        &[(NAME, "2001:db8:1:3::1")],
    );
    assert_eq!(server.metric("livechat_client_addresses_unread_total"), 0.0);
}

#[test]
fn addresses_in_forwarded_are_read() {
    let server = behind_a_proxy();
    const NAME: &str = "Forwarded";
    same_client(
        &server,
        &[
            &[(NAME, "for=203.0.113.7")],
            &[(NAME, "For=\"203.0.113.7:51234\"")],
            &[(
                NAME,
                "proto=https;by=10.0.0.1;FOR=203.0.113.7;host=\"a, b; for=1.1.1.1\"",
            )],
            &[(NAME, "for=198.51.100.1, for=203.0.113.7")],
            &[(NAME, "for=\"broken, for=203.0.113.7")],
            &[(NAME, "for=203.0.113.7;proto=http, for=10.0.0.2")],
            &[(NAME, "for=\"203.0.113.7:_port\"")],
            &[(NAME, "for=203.0.113.7"), (NAME, "for=10.0.0.2")],
        ],
        &[(NAME, "for=203.0.113.8")],
    );
    same_client(
        &server,
        &[
            &[(NAME, "for=\"[2001:db8:1:2::1]\"")],
            &[(NAME, "for=\"[2001:db8:1:2::2]:443\"")],
        ],
        &[(NAME, "for=\"[2001:db8:1:3::1]\"")],
    );
    assert_eq!(server.metric("livechat_client_addresses_unread_total"), 0.0);
}

/// An unreadable address counts as the last readable hop, and is logged.
#[test]
fn unreadable_addresses_are_counted_and_logged() {
    let server = behind_a_proxy();
    let unread: [Headers<'_>; 8] = [
        &[("X-Forwarded-For", "unknown")],
        &[("X-Forwarded-For", "203.0.113.7, nonsense")],
        &[("X-Forwarded-For", "203.0.113.7:99999")],
        &[("X-Forwarded-For", "[2001:db8::1")],
        &[("Forwarded", "for=unknown")],
        &[("Forwarded", "for=_hidden")],
        &[("Forwarded", "proto=https")],
        &[],
    ];
    let peer = open(&server, unread[0]).expect("the proxy's own place");
    for (number, headers) in unread.iter().enumerate().skip(1) {
        open(&server, headers)
            .err()
            .expect("the proxy's place is taken")
            .assert_error(429);
        assert_eq!(
            server.metric("livechat_client_addresses_unread_total"),
            number as f64 + 1.0,
            "{headers:?}"
        );
    }
    server.wait_log("client address");
    drop(peer);
    eventually("the place is free", || server.health()["connections"] == 0);
    // Behind a readable proxy it is that one's place.
    let far = open(&server, &[("X-Forwarded-For", "unknown, 10.0.0.5")]).expect("the far proxy's place");
    open(&server, &[("X-Forwarded-For", "nonsense, 10.0.0.5:1")])
        .err()
        .expect("the far proxy's place is taken");
    let near = open(&server, &[("X-Forwarded-For", "unknown")]).expect("the near proxy's place");
    drop((far, near));
    let warnings = server
        .log()
        .iter()
        .filter(|line| line.contains("client address"))
        .count();
    assert_eq!(warnings, 1, "the warning is rate limited");
}

/// Only a trusted proxy is believed; headers of others are ignored without a warning.
#[test]
fn addresses_from_untrusted_peers_are_ignored() {
    let server = Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("MAX_CONNECTIONS_PER_IP", 1)
        .env("TRUSTED_PROXIES", "10.0.0.0/8")
        .start();
    let _one = open(&server, &[]).expect("a place");
    for headers in [
        [("X-Forwarded-For", "203.0.113.7")],
        [("Forwarded", "for=203.0.113.7")],
        [("X-Forwarded-For", "nonsense")],
    ] {
        open(&server, &headers)
            .err()
            .expect("a refusal")
            .assert_error(429);
    }
    assert_eq!(server.metric("livechat_client_addresses_unread_total"), 0.0);
    // Plain requests need no address.
    assert_eq!(
        Http::request(server.http_addr(), "GET", "/live", &HANDSHAKE).status,
        200
    );
}
