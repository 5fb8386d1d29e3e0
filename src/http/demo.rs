//! The console at `/demo`: its files, which are in the binary, and the figures that it shows.
//!
//! The page may only use what this server serves: its policy allows no inline script or style, no other host and no
//! frame around it.

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};
use serde::Serialize;

use super::Http;
use super::response::{Answer, json, with_body};
use super::rest::Dependency;
use crate::metrics::figures::Figures;

/// What is asked for.
#[derive(Clone, Copy)]
pub enum Page {
    Console,
    Stats,
    /// One of [`FILES`].
    File(&'static File),
}

pub struct File {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($name:literal: $content_type:expr, $path:literal;)*) => {
        &[$(File {
            name: $name,
            content_type: $content_type,
            content: include_bytes!(concat!("../../client/", $path)),
        }),*]
    };
}

static CONSOLE: &[u8] = include_bytes!("../../client/console/index.html");

static FILES: &[File] = files! {
    "console.css": "text/css; charset=utf-8", "console/console.css";
    "console.js": SCRIPT, "console/console.js";
    "conversation.js": SCRIPT, "console/conversation.js";
    "customer.js": SCRIPT, "console/customer.js";
    "desk.js": SCRIPT, "console/desk.js";
    "network.js": SCRIPT, "console/network.js";
    "operations.js": SCRIPT, "console/operations.js";
    "tokens.js": SCRIPT, "console/tokens.js";
    "ui.js": SCRIPT, "console/ui.js";
    "words.js": SCRIPT, "console/words.js";
    "livechat.mjs": SCRIPT, "dist/livechat.mjs";
    "icon.svg": "image/svg+xml", "console/icon.svg";
};

/// `'self'` covers the WebSocket of the same host and port (CSP 3, section 6.7.2.8).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

impl Page {
    pub fn file(name: &str) -> Option<Self> {
        FILES.iter().find(|file| file.name == name).map(Self::File)
    }
}

/// Neither users nor sessions nor addresses: anybody may ask.
#[derive(Serialize)]
struct Stats {
    version: &'static str,
    environment: &'static str,
    uptime_ms: u64,
    is_draining: bool,
    needs_token: bool,
    connections: usize,
    sessions: usize,
    nodes: i64,
    kafka: Dependency,
    redis: Dependency,
    totals: Figures,
}

pub fn answer(http: &Http, page: Page) -> Answer {
    let mut answer = match page {
        Page::Console => with_body(StatusCode::OK, HTML, Bytes::from_static(CONSOLE)),
        Page::File(file) => with_body(
            StatusCode::OK,
            file.content_type,
            Bytes::from_static(file.content),
        ),
        Page::Stats => json(StatusCode::OK, &stats(http)),
    };
    for (name, value) in HEADERS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn stats(http: &Http) -> Stats {
    Stats {
        version: env!("CARGO_PKG_VERSION"),
        environment: http.config.environment.as_str(),
        uptime_ms: u64::try_from(http.lifecycle.uptime().as_millis()).unwrap_or(u64::MAX),
        is_draining: http.lifecycle.is_draining(),
        needs_token: http.config.auth.are_tokens_on(),
        connections: http.limits.connections(),
        sessions: http.chat.registry.len(),
        nodes: http.metrics.nodes.get(),
        kafka: Dependency::new(http.chat.bus.health()),
        redis: Dependency::new(http.chat.presence.health()),
        totals: http.metrics.figures(),
    }
}
