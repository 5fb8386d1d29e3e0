//! Keys that change while sockets are open: files and key sets.

use std::time::Duration;

use serde_json::Value;

use crate::support::issuer::{Issuer, tls_file};
use crate::support::raw::HANDSHAKE;
use crate::support::tokens::{SECRET, Signer, claims, ed25519, es256, es384, hs, rsa, set};
use crate::support::{Http, RawWs, Server, eventually};

fn bob() -> Value {
    claims("bob", "agent", Value::Null)
}

/// The status of a handshake with this token.
#[track_caller]
fn status(server: &Server, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    let headers = [&HANDSHAKE[..], &[("Authorization", bearer.as_str())]].concat();
    Http::request(server.http_addr(), "GET", "/ws/s/bob/agent", &headers).status
}

#[track_caller]
fn connect(server: &Server, token: &str) -> RawWs {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let mut ws = RawWs::try_connect(server.http_addr(), "/ws/s/bob/agent", &headers).expect("let in");
    ws.read_json();
    ws
}

fn rewrite(path: &std::path::Path, text: &str) {
    // As Kubernetes does: another file takes its place.
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("write");
    std::fs::rename(&new, path).expect("rename");
}

#[test]
fn auth_a_changed_file_of_a_key_counts_for_new_connections() {
    let folder = tempfile::tempdir().unwrap();
    let next = Signer::Secret(b"the next secret of tests, 32 bytes and more".to_vec());
    let (pem_1, pem_2) = (es256(), rsa());
    let (set_1, set_2) = (es384(), ed25519());
    for (variable, first, second, contents) in [
        (
            "JWT_SECRET_FILE",
            &hs(),
            &next,
            [
                SECRET.to_owned(),
                "the next secret of tests, 32 bytes and more\n".to_owned(),
            ],
        ),
        ("JWT_PUBLIC_KEY_FILE", &pem_1, &pem_2, [pem_1.pem(), pem_2.pem()]),
        (
            "JWKS_FILE",
            &set_1,
            &set_2,
            [set(&[set_1.jwk("k")]), set(&[set_2.jwk("k")])],
        ),
    ] {
        let path = folder.path().join(variable);
        rewrite(&path, &contents[0]);
        let server = Server::builder()
            .env(variable, path.display())
            .env("AUTH_FAILURES_PER_MINUTE", 0)
            .env("PING_INTERVAL", "600s")
            .start();
        let [old, new] = [first, second].map(|signer| signer.token_of("k", &bob()));
        assert_eq!(
            (status(&server, &old), status(&server, &new)),
            (101, 401),
            "{variable}"
        );
        let mut open = connect(&server, &old);
        // What can't be used changes nothing.
        rewrite(&path, "no key");
        server.wait_log("changed keys can't be used");
        assert_eq!(status(&server, &old), 101, "{variable}");
        let changed = std::time::Instant::now();
        rewrite(&path, &contents[1]);
        eventually("the new key counts", || status(&server, &new) == 101);
        assert!(
            changed.elapsed() < Duration::from_secs(20),
            "{variable}: {:?}",
            changed.elapsed()
        );
        assert_eq!(status(&server, &old), 401, "{variable}");
        open.expect_alive();
    }
}

#[test]
fn auth_api_keys_are_rotated_by_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    rewrite(&path, "first-key-0123456789\n");
    let server = Server::builder()
        .env("JWT_SECRET", SECRET)
        .env("API_KEYS_FILE", path.display())
        .env("AUTH_FAILURES_PER_MINUTE", 0)
        .start();
    let status = |key: &str| {
        let headers = [("X-API-Key", key)];
        Http::request(
            server.http_addr(),
            "GET",
            "/api/session/s/connection-status",
            &headers,
        )
        .status
    };
    assert_eq!(
        (status("first-key-0123456789"), status("second-key-0123456789")),
        (200, 401)
    );
    rewrite(&path, "first-key-0123456789,second-key-0123456789");
    eventually("both count", || status("second-key-0123456789") == 200);
    assert_eq!(status("first-key-0123456789"), 200);
    rewrite(&path, "second-key-0123456789");
    eventually("the first is gone", || status("first-key-0123456789") == 401);
}

#[test]
fn auth_a_key_set_is_fetched_and_rotated_with_sockets_open() {
    let (first, second) = (es256(), rsa());
    let issuer = Issuer::http(&set(&[first.jwk("k1")]));
    let server = Server::builder()
        .env("JWKS_URL", issuer.url())
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("AUTH_FAILURES_PER_MINUTE", 0)
        .env("PING_INTERVAL", "600s")
        .start();
    let [old, new] = [first.token_of("k1", &bob()), second.token_of("k2", &bob())];
    let mut open = connect(&server, &old);
    assert_eq!(
        issuer.requests(),
        1,
        "ready only with the keys, and a known key needs no fetch"
    );
    issuer.answers(200, &set(&[first.jwk("k1"), second.jwk("k2")]));
    eventually("the next key is fetched for its token", || {
        status(&server, &new) == 101
    });
    assert_eq!(status(&server, &old), 101);
    // Wrong tokens make no flood.
    let before = issuer.requests();
    let start = std::time::Instant::now();
    for number in 0..500 {
        let unknown = es256().token_of(&number.to_string(), &bob());
        let status = status(&server, &unknown);
        assert!(matches!(status, 401 | 503), "{status}");
    }
    let allowed = 1 + start.elapsed().as_secs() as usize / 10;
    assert!(
        issuer.requests() - before <= allowed,
        "{} fetches",
        issuer.requests() - before
    );
    // The issuer fails in every way: the keys stay.
    for (code, body) in [(500, "{}"), (200, "<html>"), (200, "{\"keys\":7}"), (302, "")] {
        issuer.answers(code, body);
        let asked = issuer.requests();
        eventually("it is asked again", || {
            // The issuer does not say whether it has this one.
            let unknown = es256().token_of("x", &bob());
            assert_eq!(status(&server, &unknown), 503);
            std::thread::sleep(Duration::from_millis(200));
            issuer.requests() > asked
        });
        assert_eq!(
            (status(&server, &old), status(&server, &new)),
            (101, 101),
            "{code} {body}"
        );
    }
    eventually("all failures are counted", || {
        server.metric("livechat_key_set_failures_total") >= 4.0
    });
    server.wait_log("the key set can't be fetched");
    issuer.answers(200, &set(&[second.jwk("k2")]));
    eventually("the first key is gone", || status(&server, &old) == 401);
    assert_eq!(status(&server, &new), 101);
    // An issuer that has no keys any more has taken them back.
    issuer.answers(200, "{\"keys\":[]}");
    let failures = server.metric("livechat_key_set_failures_total");
    eventually("the other one is gone, too", || {
        let unknown = es256().token_of("y", &bob());
        assert!(matches!(status(&server, &unknown), 401 | 503));
        status(&server, &new) == 401
    });
    server.wait_log("the key set has no key that can verify tokens");
    assert_eq!(server.metric("livechat_key_set_failures_total"), failures);
    open.expect_alive();
}

#[test]
fn auth_a_key_set_comes_over_tls_from_who_is_trusted() {
    let signer = ed25519();
    let issuer = Issuer::https(&set(&[signer.jwk("k")]));
    let token = signer.token_of("k", &bob());
    let trusting = Server::builder()
        .env("JWKS_URL", issuer.url())
        .env("SSL_CERT_FILE", tls_file("ca.pem").display())
        .start();
    assert_eq!(status(&trusting, &token), 101);
    // Whoever is not trusted gives no keys, and nothing is known about tokens.
    let server = Server::builder().env("JWKS_URL", issuer.url()).start_listening();
    server.wait_log("the key set can't be fetched");
    assert_eq!(server.get("/ready").status, 503);
    let refused = status(&server, &token);
    assert_eq!(refused, 503, "not the client's fault");
    assert_eq!(status(&server, "x"), 401);
}

#[test]
fn auth_an_issuer_that_is_down_at_the_start_is_asked_again() {
    let signer = es256();
    let issuer = Issuer::http(&set(&[signer.jwk("k")]));
    issuer.answers(500, "");
    let server = Server::builder().env("JWKS_URL", issuer.url()).start_listening();
    let token = signer.token_of("k", &bob());
    assert_eq!(status(&server, &token), 503);
    issuer.answers(200, &set(&[signer.jwk("k")]));
    eventually("it is asked again by itself", || {
        server.get("/ready").status == 200
    });
    assert_eq!(status(&server, &token), 101);
}

/// A set's shared secret, which everybody can fetch, verifies nothing.
#[test]
fn auth_a_secret_in_a_fetched_set_is_ignored() {
    let issuer = Issuer::http(&set(&[hs().jwk("h"), es256().jwk("k")]));
    let server = Server::builder().env("JWKS_URL", issuer.url()).start();
    assert_eq!(status(&server, &hs().token(&bob())), 401);
    // Once the set was fetched for this one.
    let of_secret = hs().token_of("h", &bob());
    eventually("it is refused", || {
        let status = status(&server, &of_secret);
        assert!(matches!(status, 401 | 503), "{status}");
        status == 401
    });
}
