//! CORS as browsers need it: wide open in development, listed origins in production.

use crate::support::{Http, RawWs, Response, Server};

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
    assert_eq!(response.header("access-control-max-age"), Some("86400"));
}

/// The list of production.
const ALLOWED_HEADERS: [&str; 16] = [
    "accept",
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "baggage",
    "cache-control",
    "content-type",
    "idempotency-key",
    "origin",
    "sentry-trace",
    "traceparent",
    "tracestate",
    "x-api-key",
    "x-csrf-token",
    "x-request-id",
    "x-requested-with",
];

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
                "content-type",
                "retry-after",
                "www-authenticate"
            ],
            "{path}"
        );
    }
    let response = preflight(&server, "https://other.example");
    assert_preflight(&response);
    assert_eq!(list(&response, "access-control-allow-headers"), ["content-type"]);
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
        assert_eq!(list(&response, "access-control-allow-headers"), ALLOWED_HEADERS);
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

/// A preflight that asks for these headers: those that are allowed.
#[track_caller]
fn allowed_headers(server: &Server, asked_for: &str) -> Vec<String> {
    let headers = [
        ("Origin", "https://a.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", asked_for),
    ];
    let response = Http::request(server.http_addr(), "OPTIONS", STATUS, &headers);
    assert_preflight(&response);
    list(&response, "access-control-allow-headers")
}

#[test]
fn cors_development_allows_any_request_header() {
    let server = Server::start();
    let asked_for = "authorization,x-anything,x-datadog-trace-id";
    assert_eq!(
        allowed_headers(&server, asked_for),
        ["authorization", "x-anything", "x-datadog-trace-id"]
    );
}

#[test]
fn cors_production_allows_the_headers_that_are_configured() {
    let server = production("https://a.example", "true");
    assert_eq!(allowed_headers(&server, "x-anything"), ALLOWED_HEADERS);
    let with = |headers: &str| {
        Server::builder()
            .env("ENVIRONMENT", "production")
            .env("ALLOWED_ORIGINS", "https://a.example")
            .env("ALLOW_CREDENTIALS", "true")
            .env("ALLOWED_HEADERS", headers)
    };
    let server = with("X-Tenant, x-b3-traceid").start();
    let mut expected: Vec<_> = ALLOWED_HEADERS
        .iter()
        .chain(&["x-b3-traceid", "x-tenant"])
        .collect();
    expected.sort_unstable();
    assert_eq!(
        allowed_headers(&server, "x-anything").iter().collect::<Vec<_>>(),
        expected
    );
    let server = with("*").start();
    assert_eq!(
        allowed_headers(&server, "x-anything,authorization"),
        ["authorization", "x-anything"]
    );
    // Only for pages of listed origins.
    let response = preflight(&server, "https://evil.example");
    assert_eq!(response.header("access-control-allow-headers"), None);

    let exit = with("X Tenant").run();
    assert_eq!(exit.code, Some(64), "{exit:?}");
    assert!(exit.stderr.contains("ALLOWED_HEADERS"), "{exit:?}");
}

/// For REST and for WebSockets alike.
#[test]
fn cors_production_accepts_null_any_scheme_and_subdomains() {
    let origins = "null, capacitor://localhost, file://, chrome-extension://abcdefghijklmnop, \
        https://*.example.com, http://*.dev.test:3000";
    let server = production(origins, "false");
    let upgrade = |listed: &str| {
        let ws = RawWs::try_connect(server.http_addr(), "/ws/s/u/agent", &[("Origin", listed)]);
        ws.map_err(|refusal| refusal.status).err()
    };
    for listed in [
        "null",
        "capacitor://localhost",
        "file://",
        "chrome-extension://abcdefghijklmnop",
        "https://a.example.com",
        "https://a.b.example.com",
        "http://x.dev.test:3000",
    ] {
        let response = from(&server, listed, STATUS);
        assert_eq!(origin(&response), Some(listed));
        assert!(varies_by_origin(&response), "{response:?}");
        assert_eq!(origin(&preflight(&server, listed)), Some(listed));
        assert_eq!(upgrade(listed), None, "{listed}");
    }
    for other in [
        "https://example.com",
        "https://evilexample.com",
        "https://a.example.com.evil.test",
        "https://a.example.com:8443",
        "http://a.example.com",
        "https://*.example.com",
        "capacitor://elsewhere",
        "file:///etc",
        "http://x.dev.test",
    ] {
        assert_eq!(origin(&from(&server, other, STATUS)), None, "{other}");
        assert_eq!(upgrade(other), Some(403), "{other}");
    }
}

#[test]
fn cors_production_refuses_invalid_patterns() {
    let refused = |origins: &str, credentials: &str| {
        let server = Server::builder()
            .env("ENVIRONMENT", "production")
            .env("ALLOWED_ORIGINS", origins);
        let exit = server.env("ALLOW_CREDENTIALS", credentials).run();
        assert_eq!(exit.code, Some(64), "{origins}: {exit:?}");
        exit.stderr
    };
    for pattern in [
        "https://*",
        "https://*.com",
        "https://a.*.example.com",
        "*.example.com",
    ] {
        let stderr = refused(&format!("https://a.example,{pattern}"), "false");
        assert!(
            stderr.contains("ALLOWED_ORIGINS") && stderr.contains(pattern),
            "{stderr}"
        );
    }
    assert!(refused("https://a.example,null", "true").contains("ALLOW_CREDENTIALS"));
}
