//! From a request to its answer. The order of checks is the contract's: path 404, method 405, ids and type 400,
//! upgrade headers 426 or 400, Origin 403, capacity 503.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, StatusCode, Uri, Version};
use percent_encoding::percent_decode_str;

use super::Http;
use super::response::{Answer, empty, error, error_with, with_body};
use super::rest;
use super::upgrade::{self, Arrival};
use crate::config::SessionIdFormat;
use crate::protocol::ids::{SessionId, UserId, UserType, is_uuid};
use crate::ws::connection::Hello;

/// The longest request target in bytes.
const MAX_URI: usize = 8 * 1024;
const ALLOWED_METHODS: &str = "GET, HEAD, OPTIONS";
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which listener a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Public,
    Admin,
}

/// What a path asks for; ids are still as they came.
enum Route<'a> {
    Health,
    Live,
    Ready,
    Metrics,
    ConnectionStatus {
        session_id: &'a str,
    },
    WebSocket {
        session_id: &'a str,
        user_id: &'a str,
        user_type: &'a str,
    },
}

impl<'a> Route<'a> {
    fn of(door: Door, path: &'a str) -> Option<Self> {
        // Room for one more segment than any route has: a longer path is no route.
        let mut segments = [""; 6];
        let mut count = 0;
        for segment in path.strip_prefix('/')?.split('/') {
            *segments.get_mut(count)? = segment;
            count += 1;
        }
        match (door, &segments[..count]) {
            (_, ["live"]) => Some(Self::Live),
            (_, ["ready"]) => Some(Self::Ready),
            (Door::Admin, ["metrics"]) => Some(Self::Metrics),
            (Door::Public, ["health"]) => Some(Self::Health),
            (Door::Public, ["api", "session", session_id, "connection-status"]) => {
                Some(Self::ConnectionStatus { session_id })
            }
            (Door::Public, ["ws", session_id, user_id, user_type]) => Some(Self::WebSocket {
                session_id,
                user_id,
                user_type,
            }),
            _ => None,
        }
    }
}

/// Answers one request; behind a 101 there is an arrival.
pub async fn route(
    http: &Arc<Http>,
    door: Door,
    peer: IpAddr,
    mut request: Request<Incoming>,
    arrival: &mut Option<Arrival>,
) -> Answer {
    if target_len(request.uri()) > MAX_URI {
        return error(
            StatusCode::URI_TOO_LONG,
            "URI too long",
            "the request target is longer than 8192 bytes",
        );
    }
    // RFC 9112, section 3.2.
    if request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1 {
        return error(
            StatusCode::BAD_REQUEST,
            "Bad request",
            "a request has exactly one Host header",
        );
    }
    let mut answer = dispatch(http, door, peer, &mut request, arrival).await;
    if door == Door::Public {
        let is_preflight = request.method() == Method::OPTIONS;
        http.cors
            .decorate(request.headers(), is_preflight, answer.headers_mut());
    }
    // What follows a body is not watched for its framing: see `watched`.
    if has_body(request.headers()) {
        answer
            .headers_mut()
            .insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    answer
}

/// How long the request target was, as far as the parser kept it: a fragment is none of it.
fn target_len(uri: &Uri) -> usize {
    let scheme = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    scheme + authority + path
}

/// Whether a request says that it has a body. None of our routes takes one.
pub fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING)
}

async fn dispatch(
    http: &Arc<Http>,
    door: Door,
    peer: IpAddr,
    request: &mut Request<Incoming>,
    arrival: &mut Option<Arrival>,
) -> Answer {
    let Some(route) = Route::of(door, request.uri().path()) else {
        return error(StatusCode::NOT_FOUND, "Not found", "there is no such path");
    };
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => {
            let mut answer = empty(StatusCode::NO_CONTENT);
            answer
                .headers_mut()
                .insert(header::ALLOW, header::HeaderValue::from_static(ALLOWED_METHODS));
            return answer;
        }
        _ => {
            let detail = "this path answers GET, HEAD and OPTIONS";
            let status = StatusCode::METHOD_NOT_ALLOWED;
            return error_with(
                status,
                "Method not allowed",
                detail,
                header::ALLOW,
                ALLOWED_METHODS,
            );
        }
    }
    match route {
        Route::Health => rest::health(http),
        Route::Live => rest::live(),
        Route::Ready => rest::ready(http),
        Route::Metrics => {
            http.metrics.connections.set(http.limits.connections() as i64);
            http.metrics.sessions.set(http.chat.registry.len() as i64);
            with_body(StatusCode::OK, METRICS_TYPE, http.metrics.page().into())
        }
        Route::ConnectionStatus { session_id } => match parse_session(http, session_id) {
            Some(session_id) => rest::connection_status(http, &session_id).await,
            None => bad_session(),
        },
        Route::WebSocket {
            session_id,
            user_id,
            user_type,
        } => {
            let Some(session_id) = parse_session(http, session_id) else {
                return bad_session();
            };
            let Some(user_id) = UserId::parse(&decode(user_id)) else {
                return error(StatusCode::BAD_REQUEST, "Invalid user ID", ID_RULE);
            };
            let Some(user_type) = UserType::parse(&decode(user_type)) else {
                let detail = "the user type must be customer, agent or admin";
                return error(StatusCode::BAD_REQUEST, "Invalid user type", detail);
            };
            let hello = Hello {
                session_id,
                user_id,
                user_type,
            };
            upgrade::upgrade(http, peer, hello, request, arrival)
        }
    }
}

const ID_RULE: &str = "an id is 1 to 128 of the characters A-Z a-z 0-9 . _ @ + = ~ - and neither . nor ..";

/// Percent-decoded once; what doesn't decode keeps its `%`, which no id may have.
fn decode(segment: &str) -> Cow<'_, str> {
    percent_decode_str(segment)
        .decode_utf8()
        .unwrap_or(Cow::Borrowed("%"))
}

fn parse_session(http: &Http, segment: &str) -> Option<SessionId> {
    let id = decode(segment);
    let is_accepted = http.config.session_id_format == SessionIdFormat::Any || is_uuid(&id);
    SessionId::parse(&id).filter(|_| is_accepted)
}

fn bad_session() -> Answer {
    error(StatusCode::BAD_REQUEST, "Invalid session ID", ID_RULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_exactly_their_segments() {
        let is_route = |path| Route::of(Door::Public, path).is_some();
        for path in [
            "/health",
            "/live",
            "/ready",
            "/api/session/s/connection-status",
            "/ws/s/u/t",
            "/ws///",
        ] {
            assert!(is_route(path), "{path}");
        }
        for path in [
            "",
            "/",
            "/health/",
            "/ws/s/u",
            "/ws/s/u/t/",
            "/api/session/s",
            "/metrics",
            "*",
            "/a/b/c/d/e/f/g",
        ] {
            assert!(!is_route(path), "{path}");
        }
        assert!(Route::of(Door::Admin, "/metrics").is_some());
        assert!(Route::of(Door::Admin, "/health").is_none());
    }

    #[test]
    fn segments_are_decoded_once() {
        assert_eq!(decode("a%40b"), "a@b");
        assert_eq!(decode("a%2540b"), "a%40b");
        for bad in [
            "%zz", "%", "%00", "%2f", "%ff", "%c3%a9", "%252e", "%2e%2e", "..", "",
        ] {
            assert!(SessionId::parse(&decode(bad)).is_none(), "{bad}");
        }
    }
}
