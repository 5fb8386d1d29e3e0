//! CORS as browsers need it: wide open in development, listed origins in production.

use crate::support::{Http, Response, Server};

const STATUS: &str = "/api/session/s1/connection-status";

fn production(origins: &str, credentials: &str) -> Server {
    let server = Server::builder()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", origins);
    server.env("ALLOW_CREDENTIALS", credentials).start()
}

#[track_caller]
fn from(server: &Server, origin: &str, path: &str) -> Response {
    Http::request(server.http_addr(), "GET", path, &[("Origin", origin)])
}

#[track_caller]
fn preflight(server: &Server, origin: &str) -> Response {
    let headers = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "content-type"),
    ];
    Http::request(server.http_addr(), "OPTIONS", STATUS, &headers)
}

fn origin(response: &Response) -> Option<&str> {
    response.header("access-control-allow-origin")
}

fn list(response: &Response, name: &str) -> Vec<String> {
    let value = response
        .header(name)
        .unwrap_or_else(|| panic!("no {name}: {response:?}"));
    let mut names: Vec<_> = value
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    names.sort_unstable();
    names
}

#[track_caller]
fn assert_preflight(response: &Response) {
    assert_eq!(response.status, 204, "{response:?}");
    assert!(response.body.is_empty());
    assert_eq!(
        list(response, "access-control-allow-methods"),
        ["delete", "get", "head", "options", "patch", "post", "put"]
    );
    assert_eq!(
        list(response, "access-control-allow-headers"),
        [
            "accept",
            "access-control-request-headers",
            "access-control-request-method",
            "authorization",
            "content-type",
            "origin",
            "x-requested-with"
        ]
    );
    assert_eq!(response.header("access-control-max-age"), Some("86400"));
}

fn varies_by_origin(response: &Response) -> bool {
    let vary = response.headers.iter().filter(|(name, _)| name == "vary");
    vary.flat_map(|(_, value)| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("origin"))
}

#[test]
fn cors_development_allows_everyone_and_never_credentials() {
    let server = Server::builder()
        .env("ALLOW_CREDENTIALS", "true")
        .env("ALLOWED_ORIGINS", "https://a.example")
        .start();
    for path in [
        "/health",
        STATUS,
        "/nothing",
        "/api/session/%00/connection-status",
    ] {
        let response = from(&server, "https://other.example", path);
        assert_eq!(origin(&response), Some("*"), "{path}: {response:?}");
        assert_eq!(
            response.header("access-control-allow-credentials"),
            None,
            "{path}"
        );
        assert_eq!(
            list(&response, "access-control-expose-headers"),
            [
                "access-control-allow-headers",
                "access-control-allow-origin",
                "content-length",
                "content-type"
            ],
            "{path}"
        );
    }
    let response = preflight(&server, "https://other.example");
    assert_preflight(&response);
    assert_eq!(origin(&response), Some("*"));
    assert_eq!(response.header("access-control-allow-credentials"), None);
}

#[test]
fn cors_production_echoes_listed_origins_only() {
    let server = production("https://a.example, https://b.example:8443", "false");
    for listed in ["https://a.example", "https://b.example:8443"] {
        let response = from(&server, listed, STATUS);
        assert_eq!(response.status, 200);
        assert_eq!(origin(&response), Some(listed));
        assert!(varies_by_origin(&response), "{response:?}");
        assert_eq!(response.header("access-control-allow-credentials"), None);
        let response = preflight(&server, listed);
        assert_preflight(&response);
        assert_eq!(origin(&response), Some(listed));
        assert!(varies_by_origin(&response), "{response:?}");
    }
    for other in [
        "https://evil.example",
        "http://a.example",
        "https://a.example.evil",
        "https://a.example:8443",
        "https://b.example",
        "https://eva.example",
        "null",
        "*",
    ] {
        let response = from(&server, other, STATUS);
        assert_eq!(origin(&response), None, "{other}: {response:?}");
        assert!(
            varies_by_origin(&response),
            "a cache must not serve {other} what it served a listed origin"
        );
        assert_eq!(origin(&preflight(&server, other)), None, "{other}");
    }
    // No browser: no CORS, but the answer depends on the origin still.
    let response = server.get(STATUS);
    assert_eq!((response.status, origin(&response)), (200, None));
    assert!(varies_by_origin(&response));
}

#[test]
fn cors_production_sends_credentials_as_set() {
    let server = production("https://a.example", "true");
    for response in [
        from(&server, "https://a.example", STATUS),
        preflight(&server, "https://a.example"),
    ] {
        assert_eq!(origin(&response), Some("https://a.example"));
        assert_eq!(response.header("access-control-allow-credentials"), Some("true"));
    }
    let response = from(&server, "https://evil.example", STATUS);
    assert_eq!(response.header("access-control-allow-credentials"), None);
    assert_eq!(origin(&response), None);
}

#[test]
fn cors_production_star_allows_any_origin() {
    let server = production("*", "false");
    for any in ["https://a.example", "http://localhost:3000"] {
        let response = from(&server, any, STATUS);
        assert!(
            matches!(origin(&response), Some("*")) || origin(&response) == Some(any),
            "{response:?}"
        );
        assert_eq!(response.header("access-control-allow-credentials"), None);
        assert_preflight(&preflight(&server, any));
    }
}

#[test]
fn cors_production_star_with_credentials_does_not_start() {
    let server = Server::builder()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "*");
    let exit = server.env("ALLOW_CREDENTIALS", "true").run();
    assert_eq!(exit.code, Some(64), "{exit:?}");
    assert!(exit.stderr.contains("ALLOW_CREDENTIALS"), "{exit:?}");
}
