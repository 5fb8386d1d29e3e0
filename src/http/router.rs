//! Routes a request to its response. Checks run in the order that docs/PROTOCOL.md promises: path 404, method 405, ids
//! and type 400, then those of [`upgrade`].

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, StatusCode, Uri, Version};
use percent_encoding::percent_decode_str;

use super::Http;
use super::headers::only;
use super::refusal::{AccessRefusal, RequestRefusal, UpgradeRefusal};
use super::response::{Answer, empty};
use super::upgrade::{self, PendingUpgrade};
use super::{access, demo, disconnect, messages, publish, request_path, rest, sessions, specification};
use crate::auth::{Action, Sessions, Who};
use crate::config::SessionIdFormat;
use crate::metrics::refusals::Asked;
use crate::protocol::ids::{LOBBY, SessionId, UserId, UserType, is_uuid};
use crate::protocol::resume::Resume;
use crate::ws::connection::ConnectParams;

/// The longest request target, in bytes.
const MAX_URI: usize = 8 * 1024;

/// The listener that accepted the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    Public,
    Admin,
}

/// What a path asks for; ids are still percent-encoded.
enum Route<'a> {
    Health,
    Live,
    Ready,
    Metrics,
    OpenApi,
    AsyncApi,
    ConnectionStatus {
        session_id: &'a str,
    },
    Messages {
        session_id: &'a str,
    },
    Sessions,
    /// The console, if it is served.
    Demo(demo::Page),
    User {
        session_id: &'a str,
        user_id: &'a str,
    },
    WebSocket {
        session_id: &'a str,
        user_id: &'a str,
        user_type: &'a str,
    },
}

impl<'a> Route<'a> {
    /// A trailing slash is ignored, unless the path is a route with it: then the last id is empty.
    fn of(kind: ListenerKind, path: &'a str) -> Option<Self> {
        Self::of_exactly(kind, path).or_else(|| Self::of_exactly(kind, path.strip_suffix('/')?))
    }

    fn of_exactly(kind: ListenerKind, path: &'a str) -> Option<Self> {
        // Room for one more segment than any route has: a longer path matches none.
        let mut segments = [""; 6];
        let mut count = 0;
        for segment in path.strip_prefix('/')?.split('/') {
            *segments.get_mut(count)? = segment;
            count += 1;
        }
        match (kind, &segments[..count]) {
            (_, ["live"]) => Some(Self::Live),
            (_, ["ready"]) => Some(Self::Ready),
            (ListenerKind::Admin, ["metrics"]) => Some(Self::Metrics),
            (ListenerKind::Public, ["health"]) => Some(Self::Health),
            (ListenerKind::Public, ["openapi.json"]) => Some(Self::OpenApi),
            (ListenerKind::Public, ["asyncapi.json"]) => Some(Self::AsyncApi),
            (ListenerKind::Public, ["api", "session", session_id, "connection-status"]) => {
                Some(Self::ConnectionStatus { session_id })
            }
            (ListenerKind::Public, ["api", "session", session_id, "messages"]) => {
                Some(Self::Messages { session_id })
            }
            (ListenerKind::Public, ["api", "sessions"]) => Some(Self::Sessions),
            (ListenerKind::Public, ["demo"]) => Some(Self::Demo(demo::Page::Console)),
            (ListenerKind::Public, ["demo", "stats.json"]) => Some(Self::Demo(demo::Page::Stats)),
            (ListenerKind::Public, ["demo", file]) => demo::Page::file(file).map(Self::Demo),
            (ListenerKind::Public, ["api", "session", session_id, "users", user_id]) => {
                Some(Self::User { session_id, user_id })
            }
            (ListenerKind::Public, ["ws", session_id, user_id, user_type]) => Some(Self::WebSocket {
                session_id,
                user_id,
                user_type,
            }),
            _ => None,
        }
    }
}

impl Route<'_> {
    /// The methods that it answers.
    fn allowed(&self) -> &'static str {
        match self {
            Self::Messages { .. } => "GET, HEAD, POST, OPTIONS",
            Self::User { .. } => "DELETE, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }
}

/// Answers one request; a 101 leaves a pending upgrade.
pub async fn route(
    http: &Arc<Http>,
    kind: ListenerKind,
    peer: IpAddr,
    mut request: Request<Incoming>,
    pending: &mut Option<PendingUpgrade>,
) -> Answer {
    let mut answer = if target_len(request.uri()) > MAX_URI {
        RequestRefusal::UriTooLong.answer(&http.metrics)
    } else if request.version() == Version::HTTP_11 && only(request.headers(), &header::HOST).is_none() {
        // RFC 9112, section 3.2.
        RequestRefusal::Host.answer(&http.metrics)
    } else {
        dispatch(http, kind, peer, &mut request, pending).await
    };
    request_path::forbid_storing(request.uri().path(), &mut answer);
    if kind == ListenerKind::Public {
        let is_preflight = request.method() == Method::OPTIONS;
        http.cors
            .decorate(request.headers(), is_preflight, answer.headers_mut());
    }
    answer
}

/// The length of the request target, without a fragment, which the parser drops.
fn target_len(uri: &Uri) -> usize {
    let scheme = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    scheme + authority + path
}

async fn dispatch(
    http: &Arc<Http>,
    kind: ListenerKind,
    peer: IpAddr,
    request: &mut Request<Incoming>,
    pending: &mut Option<PendingUpgrade>,
) -> Answer {
    let route = Route::of(kind, request.uri().path());
    // Without the console its paths are unknown ones.
    let Some(route) = route.filter(|route| http.config.demo || !matches!(route, Route::Demo(_))) else {
        return RequestRefusal::NotFound.answer(&http.metrics);
    };
    let allowed = route.allowed();
    if request.method() == Method::OPTIONS {
        let mut answer = empty(StatusCode::NO_CONTENT);
        let value = header::HeaderValue::from_static(allowed);
        answer.headers_mut().insert(header::ALLOW, value);
        return answer;
    }
    if !allowed
        .split(", ")
        .any(|method| method == request.method().as_str())
    {
        return RequestRefusal::method(&http.metrics, allowed);
    }
    match route {
        Route::Health => rest::health(http),
        Route::Live => rest::live(),
        Route::Ready => rest::ready(http),
        Route::Demo(page) => demo::answer(http, page),
        Route::Metrics => rest::metrics(http, request.headers()).await,
        Route::OpenApi => specification::specification(&specification::OPENAPI, request.headers()),
        Route::AsyncApi => specification::specification(&specification::ASYNCAPI, request.headers()),
        Route::ConnectionStatus { session_id } => {
            match session_for(http, peer, request.headers(), Action::ReadStatus, session_id).await {
                Ok(session_id) => rest::connection_status(http, &session_id).await,
                Err(refused) => refused,
            }
        }
        Route::Messages { session_id } if request.method() == Method::POST => {
            match session_for(http, peer, request.headers(), Action::Publish, session_id).await {
                Ok(session_id) => publish::publish(http, &session_id, request).await,
                Err(refused) => refused,
            }
        }
        Route::Messages { session_id } => {
            match session_for(http, peer, request.headers(), Action::ReadMessages, session_id).await {
                Ok(session_id) => messages::messages(http, &session_id, request.uri().query()).await,
                Err(refused) => refused,
            }
        }
        Route::Sessions => {
            let client = || http.addresses.client(peer, request.headers());
            match access::check(http, request.headers(), client, Action::ListSessions, None).await {
                Ok(who) => sessions::sessions(http, &access::scope(who), request.uri().query()).await,
                Err(refused) => refused.answer(http, Asked::Request),
            }
        }
        Route::User { session_id, user_id } => {
            // Both ids before the key.
            let is_session = parse_session(http, session_id).is_some();
            let user_id = UserId::parse(&decode(user_id));
            let (true, Some(user_id)) = (is_session, user_id) else {
                let refusal = if is_session {
                    RequestRefusal::UserId
                } else {
                    RequestRefusal::SessionId
                };
                return refusal.answer(&http.metrics);
            };
            match session_for(http, peer, request.headers(), Action::Disconnect, session_id).await {
                Ok(session_id) => {
                    disconnect::disconnect(http, &session_id, &user_id, request.uri().query()).await
                }
                Err(refused) => refused,
            }
        }
        Route::WebSocket {
            session_id,
            user_id,
            user_type,
        } => {
            let Some(session_id) = parse_place(http, session_id) else {
                return UpgradeRefusal::SessionId.answer(&http.metrics);
            };
            let Some(user_id) = UserId::parse(&decode(user_id)) else {
                return UpgradeRefusal::UserId.answer(&http.metrics);
            };
            let Some(user_type) = UserType::parse(&decode(user_type)) else {
                return UpgradeRefusal::UserType.answer(&http.metrics);
            };
            // The lobby has no messages.
            let query = request.uri().query().filter(|_| !session_id.is_lobby());
            let params = ConnectParams {
                session_id,
                user_id,
                user_type,
                client: http.addresses.client(peer, request.headers()),
                resume: query.and_then(Resume::of_query).map(Box::new),
                expires_at: None,
                scope: Sessions::All,
            };
            upgrade::upgrade(http, params, request, pending).await
        }
    }
}

/// The session of a route about one, if the request may do this there; else its refusal.
async fn session_for(
    http: &Http,
    peer: IpAddr,
    headers: &HeaderMap,
    action: Action,
    segment: &str,
) -> Result<SessionId, Answer> {
    let Some(session_id) = parse_session(http, segment) else {
        return Err(RequestRefusal::SessionId.answer(&http.metrics));
    };
    let client = || http.addresses.client(peer, headers);
    match access::check(http, headers, client, action, Some(&session_id)).await {
        Ok(Who::Bearer(principal)) => {
            match access::is_refused(http, &session_id, principal.user.as_deref()).await {
                true => Err(AccessRefusal::UserRefused.answer(&http.metrics, Asked::Request)),
                false => Ok(session_id),
            }
        }
        Ok(_) => Ok(session_id),
        Err(refused) => Err(refused.answer(http, Asked::Request)),
    }
}

/// Percent-decodes once. An invalid escape keeps its `%`, and what is not UTF-8 becomes one: no id may contain it.
fn decode(segment: &str) -> Cow<'_, str> {
    percent_decode_str(segment)
        .decode_utf8()
        .unwrap_or(Cow::Borrowed("%"))
}

/// A session, or the lobby.
fn parse_place(http: &Http, segment: &str) -> Option<SessionId> {
    match decode(segment) == LOBBY {
        true => Some(SessionId::lobby()),
        false => parse_session(http, segment),
    }
}

fn parse_session(http: &Http, segment: &str) -> Option<SessionId> {
    let id = decode(segment);
    let is_accepted = http.config.session_id_format == SessionIdFormat::Any || is_uuid(&id);
    SessionId::parse(&id).filter(|_| is_accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_exactly_their_segments() {
        let is_route = |path| Route::of(ListenerKind::Public, path).is_some();
        for path in [
            "/health",
            "/live",
            "/ready",
            "/api/session/s/connection-status",
            "/ws/s/u/t",
            "/ws///",
            "/health/",
            "/ws/s/u/t/",
            "/ws////",
            "/api/session/s/connection-status/",
            "/api/session/s/messages",
            "/api/session/s/messages/",
            "/api/sessions",
            "/api/sessions/",
            "/api/session/s/users/u",
            "/api/session/s/users/u/",
            "/api/session/s/users//",
            "/demo",
            "/demo/",
            "/demo/console.js",
            "/demo/stats.json",
            "/openapi.json",
            "/asyncapi.json/",
        ] {
            assert!(is_route(path), "{path}");
        }
        for path in [
            "",
            "/",
            "/health//",
            "//health",
            "/ws/s/u",
            "/ws/s/u/t//",
            "/api/session/s",
            "/api/session/s/",
            "/api/session/s/users",
            "/api/session/s/users/u/v",
            "/metrics",
            "/demo//",
            "/demo/nothing.js",
            "/demo/index.html/x",
            "/openapi",
            "/schemas.json",
            "*",
            "/a/b/c/d/e/f/g",
        ] {
            assert!(!is_route(path), "{path}");
        }
        // Here the slash belongs to the path and leaves an empty id, which is refused otherwise.
        for path in ["/ws/s/u/", "/ws/s/u//"] {
            let route = Route::of(ListenerKind::Public, path);
            assert!(
                matches!(route, Some(Route::WebSocket { user_type: "", .. })),
                "{path}"
            );
        }
        assert!(Route::of(ListenerKind::Admin, "/metrics").is_some());
        assert!(Route::of(ListenerKind::Admin, "/metrics/").is_some());
        assert!(Route::of(ListenerKind::Admin, "/health").is_none());
        assert!(Route::of(ListenerKind::Admin, "/openapi.json").is_none());
    }

    #[test]
    fn segments_are_decoded_once() {
        assert_eq!(decode("a%40b"), "a@b");
        assert_eq!(decode("a%2540b"), "a%40b");
        for bad in ["%zz", "%", "%00", "%2f", "%ff", "%252e", "%2e%2e", "..", ""] {
            assert!(SessionId::parse(&decode(bad)).is_none(), "{bad}");
            assert!(UserId::parse(&decode(bad)).is_none(), "{bad}");
        }
        assert_eq!(
            UserId::parse(&decode("Jos%C3%A9%20a")).unwrap().as_str(),
            "José a"
        );
    }
}
