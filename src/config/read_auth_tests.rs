//! Tests of the variables for tokens and API keys.

use std::time::Duration;

use super::tests::{read, wrong};
use crate::auth::Settings;

const SECRET: &str = "hunter2-hunter2-hunter2-hunter2-hunter2";
/// An Ed25519 key, as it is given to anybody, and without its PEM lines.
const PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----\\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\\n-----END PUBLIC KEY-----";
const BARE_PUBLIC: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
const RSA: &str = include_str!("../../tests/e2e/support/rsa.pem");

#[test]
fn tokens_are_off_by_default() {
    let auth = read(&[]).unwrap().auth;
    assert_eq!(auth, Settings::default());
    assert!(!auth.are_tokens_on());
    assert_eq!(
        (auth.leeway, auth.failures_per_minute),
        (Duration::from_secs(30), 30)
    );
}

#[test]
fn each_kind_of_key_turns_them_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let secret = file("secret", &format!("{SECRET}\n"));
    let jwk = r#"{"keys":[{"kty":"oct","k":"aHVudGVyMi1odW50ZXIyLWh1bnRlcjItaHVudGVyMi1odW50ZXIy"}]}"#;
    let set = file("set", jwk);
    for pair in [
        ("JWT_SECRET", SECRET),
        ("JWT_SECRET_FILE", &secret),
        ("JWKS_FILE", &set),
        ("JWKS_URL", "https://id.example.com/.well-known/jwks.json"),
        ("JWKS_URL", "http://127.0.0.1:8080/jwks"),
        ("JWKS_URL", "http://[::1]/jwks"),
        ("JWKS_URL", "http://localhost/jwks"),
    ] {
        let config = read(&[pair, ("JWT_ISSUER", "i"), ("JWT_AUDIENCE", "a")]).unwrap();
        assert!(config.auth.are_tokens_on(), "{pair:?}");
        assert_eq!(config.auth.issuer.as_deref(), Some("i"));
        let shown = format!("{config:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("aHVudGVy"),
            "{shown}"
        );
    }
    let keys = read(&[("API_KEYS", "hunter2-hunter2-1,hunter2-hunter2-2")]).unwrap();
    assert!(keys.auth.api_keys.is_some() && !keys.auth.are_tokens_on());
    assert_eq!(keys.secrets().len(), 1);
}

#[test]
fn a_wrong_key_is_refused_without_showing_it() {
    for (name, value, word) in [
        ("JWT_SECRET", "hunter2", "32 bytes"),
        (
            "JWT_SECRET",
            " hunter2-hunter2-hunter2-hunter2-hunter2",
            "white space",
        ),
        (
            "JWT_SECRET",
            "hunter2-hunter2-hunter2-hunter2-hunter2\t",
            "white space",
        ),
        ("JWT_SECRET", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "random"),
        ("JWT_SECRET", "abababababababababababababababababababab", "random"),
        ("JWT_SECRET", PUBLIC_PEM, "JWT_PUBLIC_KEY"),
        ("JWT_SECRET", BARE_PUBLIC, "JWT_PUBLIC_KEY"),
        ("JWT_SECRET", RSA, "JWT_PUBLIC_KEY"),
        (
            "JWT_SECRET",
            r#"{"keys":[{"kty":"EC","crv":"P-256","x":"hunter2","y":"hunter2"}]}"#,
            "JWKS_FILE",
        ),
        (
            "JWT_SECRET",
            r#" {"kty":"EC","crv":"P-256","x":"hunter2","y":"hunter2"}"#,
            "JWKS_FILE",
        ),
        (
            "JWT_SECRET",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIhunter2 bob@hunter2",
            "JWT_PUBLIC_KEY",
        ),
        ("API_KEYS", "aaaaaaaaaaaaaaaa", "random"),
        ("JWT_PUBLIC_KEY", "hunter2", "PEM"),
        ("JWT_PUBLIC_KEY", RSA, "private key"),
        ("API_KEYS", "hunter2", "16"),
        ("API_KEYS", "hunter2-hunter2-1,hunter2", "key 2"),
        ("JWKS_URL", "http://id.example.com/hunter2", "https://"),
        ("JWKS_URL", "https://bob:hunter2@id.example.com/", "password"),
        ("JWKS_URL", "ftp://id.example.com/", "https://"),
        ("JWKS_URL", "https:///jwks", "https://"),
        ("JWKS_URL", "https://id.example.com:x/jwks", "https://"),
        ("JWKS_URL", "https://id.example.com:/jwks", "https://"),
        ("JWKS_URL", "https://id.example.com:65536/jwks", "https://"),
        ("JWKS_URL", "jwks.json", "https://"),
        ("JWKS_FILE", "/nowhere/jwks.json", "readable file"),
        ("JWT_CLAIM_USER", "exp", "other meaning"),
        ("JWT_CLAIM_USER", "role", "another claim"),
        ("JWT_CLAIM_SESSIONS", "sub", "another claim"),
        ("JWT_LEEWAY", "11m", "10m"),
        ("JWT_LEEWAY", "10s", "needs a key"),
        ("JWT_CLAIM_USER", "uid", "needs a key"),
        ("JWT_CLAIM_ROLE", "kind", "needs a key"),
        ("JWT_CLAIM_SESSIONS", "rooms", "needs a key"),
        ("JWT_ISSUER", "https://id.example.com", "needs a key"),
        ("JWT_AUDIENCE", "chat", "needs a key"),
        ("AUTH_FAILURES_PER_MINUTE", "many", "integer"),
    ] {
        let (names, message) = wrong(&[(name, value)]);
        let expected = if (name, value) == ("JWT_CLAIM_USER", "role") {
            "JWT_CLAIM_ROLE"
        } else {
            name
        };
        assert!(names.contains(&expected.to_owned()), "{message}");
        assert!(message.contains(word), "{name}: {message}");
        let may_show = message.contains("http://id.example.com");
        assert!(may_show || !message.contains("hunter2"), "{message}");
        assert!(!message.contains("MIIE"), "{message}");
    }
}

#[test]
fn a_secret_comes_from_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "hunter2").unwrap();
    let path = &*path.to_string_lossy();
    let (names, message) = wrong(&[("JWT_SECRET_FILE", path)]);
    assert_eq!(names, ["JWT_SECRET_FILE"]);
    assert!(
        message.contains("32 bytes") && !message.contains("hunter2"),
        "{message}"
    );
    let (names, _) = wrong(&[("JWT_SECRET", SECRET), ("JWT_SECRET_FILE", path)]);
    assert_eq!(names, ["JWT_SECRET_FILE"]);
    let (names, _) = wrong(&[("JWKS_FILE", path), ("JWKS_URL", "https://id.example.com/")]);
    assert_eq!(names, ["JWKS_FILE"]);
    // A secret instead of its file's path.
    for name in ["JWT_SECRET_FILE", "API_KEYS_FILE"] {
        let (_, message) = wrong(&[(name, SECRET)]);
        assert!(!message.contains("hunter2"), "{message}");
    }
}
