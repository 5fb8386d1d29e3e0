//! A request's path: as log lines show it, and whether its answer may be stored.

use std::borrow::Cow;

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use percent_encoding::percent_decode_str;

use super::response::Answer;
use crate::protocol::ids::MAX_ID_LEN;

/// How a token begins: `{"` and `{ ` in base64.
const TOKEN_STARTS: [&str; 2] = ["eyJ", "eyA"];

/// A path for a log line, in which segments that may be tokens or are keys are left out: somebody's client may put one
/// there by mistake. What is no id and no word of ours is nobody's business, either.
pub fn in_log(path: &str, is_key: impl Fn(&[u8]) -> bool) -> String {
    let mut shown = String::with_capacity(path.len());
    for (number, segment) in path.split('/').enumerate() {
        if number > 0 {
            shown.push('/');
        }
        let segment = if may_be_secret(segment, &is_key) {
            Cow::Borrowed("[redacted]")
        } else {
            // Escaped, because a path may contain any UTF-8.
            Cow::Owned(segment.escape_debug().to_string())
        };
        shown.push_str(&segment);
    }
    shown
}

fn may_be_secret(segment: &str, is_key: impl Fn(&[u8]) -> bool) -> bool {
    let decoded: Vec<u8> = percent_decode_str(segment).collect();
    decoded.len() > MAX_ID_LEN
        || is_key(&decoded)
        || TOKEN_STARTS
            .iter()
            .any(|start| memchr::memmem::find(&decoded, start.as_bytes()).is_some())
}

/// Keeps browsers and proxies from storing what is for one client: everything below `/api/`, and what depends on
/// credentials.
pub fn forbid_storing(path: &str, answer: &mut Answer) {
    let is_refused = matches!(
        answer.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
    );
    if is_refused || path.starts_with("/api/") {
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_token_is_not_shown() {
        let longest = "x".repeat(MAX_ID_LEN);
        let is_key = |segment: &[u8]| segment == b"key-0123456789abcdef";
        for plain in [
            "/",
            "/health",
            "/ws/session_123/auth0%7C1/customer/",
            "/api/session/018f4e3a-7c1e-7000-8000-00000000000a/messages",
            &format!("/ws/{longest}/u/agent"),
            &format!("/ws/s/{}/agent", "%C3%A9".repeat(MAX_ID_LEN / 2)),
        ] {
            assert_eq!(in_log(plain, is_key), plain);
        }
        for (path, shown) in [
            ("/ws/eyJhbGciOiJIUzI1NiJ9.e30.c2ln/u", "/ws/[redacted]/u"),
            ("/eyAiYWxnIjoxfQ.e30.c2ln", "/[redacted]"),
            ("/ws/livechat.bearer.eyJh/u/", "/ws/[redacted]/u/"),
            ("/ws/%65yJhbGci/u", "/ws/[redacted]/u"),
            (&format!("/ws/{longest}x/u"), "/ws/[redacted]/u"),
            ("/key-0123456789abcdef/users", "/[redacted]/users"),
            ("/x/key-0123456789abcde%66", "/x/[redacted]"),
            ("/a\u{1b}[31m\n", "/a\\u{1b}[31m\\n"),
        ] {
            assert_eq!(in_log(path, is_key), shown);
        }
    }
}
