//! No secret, key or token is in any log line, metric or answer, whatever happens to them.

use serde_json::{Value, json};

use crate::support::issuer::Issuer;
use crate::support::tokens::{Signer, claims, es256, set};
use crate::support::{Client, Http, Server};

const SECRET: &str = "canary-secret-0123456789-0123456789";
const KEY: &str = "canary-key-0123456789";
const WRONG_KEY: &str = "canary-wrong-key-0123456789";

/// Everything that the server has told anybody.
fn told(server: &Server) -> String {
    let metrics = Http::get(server.admin_addr(), "/metrics").text();
    let health = server.get("/health").text();
    let log = server.log().join("\n");
    assert!(log.len() > 100 && metrics.len() > 1000);
    format!("{log}\n{metrics}\n{health}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_secrets_keys_and_tokens_are_told_nowhere() {
    let hs = Signer::Secret(SECRET.as_bytes().to_vec());
    let set_key = es256();
    let issuer = Issuer::http(&set(&[set_key.jwk("k")]));
    for (level, format) in [("trace", "text"), ("trace", "json"), ("info", "text")] {
        let server = Server::builder()
            .env("JWT_SECRET", SECRET)
            .env("JWKS_URL", issuer.url())
            .env("API_KEYS", KEY)
            .env("LOG_LEVEL", level)
            .env("LOG_FORMAT", format)
            .env("ADMIN_ADDR", "127.0.0.1:0")
            .start();
        let mut answers = String::new();
        let good = [
            hs.token(&claims("bob", "agent", Value::Null)),
            set_key.token_of("k", &claims("bob", "agent", Value::Null)),
        ];
        let bad = [
            good[0][..good[0].len() - 2].to_owned(),
            es256().token_of("canary-kid", &claims("canary-user", "agent", Value::Null)),
            "canary.nQtqX7.zPw93k".to_owned(),
            hs.token(&claims("eve", "customer", json!([]))),
            hs.token(&json!({"sub": "bob", "role": "agent", "exp": 1})),
        ];
        // Characters of several bytes, wherever a token is cut.
        let odd = [
            "nQtqX8é.nQtqX8é.nQtqX8é".to_owned(),
            "é.é.nQtqX8é".to_owned(),
            format!("{}é{}", &good[0][..21], &good[0][21..]),
        ];
        for token in &odd {
            let bearer = format!("Bearer {token}");
            let headers = [("Authorization", bearer.as_str())];
            let response = Http::request(server.http_addr(), "GET", "/api/session/s/messages", &headers);
            answers += &format!("{response:?}{}", response.text());
        }
        for token in good.iter().chain(&bad) {
            let bearer = format!("Bearer {token}");
            let protocol = format!("livechat.v1, livechat.bearer.{token}");
            for headers in [
                [("Authorization", bearer.as_str())],
                [("Sec-WebSocket-Protocol", protocol.as_str())],
            ] {
                match Client::open(server.http_addr(), "/ws/s/bob/agent", &headers).await {
                    Ok(mut client) => {
                        client.greet().await;
                        for token in bad.iter().chain(&odd) {
                            client
                                .send(json!({"type": "auth", "data": {"token": token}}))
                                .await;
                        }
                        client
                            .send_text(format!(r#"{{"type":"auth","data":{{"token":"{token}"}},"#))
                            .await;
                        client
                            .send_text(json!({"type": format!("auth {token}")[..20], "data": {}}).to_string())
                            .await;
                        client.fence().await;
                        answers += &format!("{:?}", client.log);
                    }
                    Err(error) => answers += &format!("{error:?}"),
                }
            }
            let mistaken = format!("/api/session/s/{KEY}");
            for path in [
                "/api/session/s/messages",
                "/api/session/s/connection-status",
                &mistaken,
            ] {
                for headers in [
                    [("Authorization", bearer.as_str())],
                    [("X-API-Key", WRONG_KEY)],
                    [("X-API-Key", KEY)],
                ] {
                    let response = Http::request(server.http_addr(), "GET", path, &headers);
                    answers += &format!("{response:?}{}", response.text());
                }
            }
        }
        let told = told(&server) + &answers;
        assert!(!told.contains("panicked"), "{level}");
        for secret in [SECRET, KEY, WRONG_KEY, "canary-kid", "canary-user", "nQtqX8"] {
            assert!(!told.contains(secret), "{secret} at {level}");
        }
        for token in good.iter().chain(&bad) {
            // Not even a part that is its own.
            for part in token.split('.').skip(1) {
                assert!(!told.contains(part), "{part} at {level}");
            }
        }
    }
}

#[test]
fn auth_a_wrong_configuration_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "canary").unwrap();
    for (name, value) in [
        ("JWT_SECRET", "canary"),
        ("JWT_PUBLIC_KEY", "canary"),
        (
            "JWT_PUBLIC_KEY",
            "-----BEGIN PRIVATE KEY-----\ncanary==\n-----END PRIVATE KEY-----",
        ),
        ("API_KEYS", "canary,canary-0123456789"),
        ("JWT_SECRET_FILE", SECRET),
        ("API_KEYS_FILE", KEY),
        ("JWT_SECRET_FILE", &*file.to_string_lossy()),
        ("JWKS_URL", "https://canary:canary@id.example.com/"),
    ] {
        let exit = Server::builder().env(name, value).arg("--check-config").run();
        assert_eq!(exit.code, Some(64), "{name}");
        let told = exit.stdout + &exit.stderr;
        assert!(told.contains(name) && !told.contains("canary"), "{told}");
    }
}
