//! Who asks, by the request's credentials, and whether the table of rights lets them.

use std::net::IpAddr;
use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Http;
use super::headers::{items, only};
use super::refusal::AccessRefusal;
use super::response::Answer;
use crate::address::counted;
use crate::auth::{Action, Denied, Principal, Refusal, Sessions, Who};
use crate::metrics::refusals::Asked;
use crate::protocol::ids::SessionId;
use crate::protocol::resume::{Asked as AskedFor, Resume};
use crate::ws::connection::ConnectParams;

/// A subprotocol that carries a token, since browsers can't set headers of a handshake. It is never answered.
const BEARER_SUBPROTOCOL: &[u8] = b"livechat.bearer.";

/// How often a request looks whether it is known who is refused.
const REFUSALS_INTERVAL: Duration = Duration::from_millis(20);

static API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Why a request is refused.
pub struct Refused {
    why: AccessRefusal,
    /// When another attempt may be made, if that is known.
    retry_after: Option<Duration>,
}

impl From<AccessRefusal> for Refused {
    fn from(why: AccessRefusal) -> Self {
        Self {
            why,
            retry_after: None,
        }
    }
}

impl Refused {
    /// Counts the refusal and makes its response.
    pub fn answer(self, http: &Http, asked: Asked) -> Answer {
        let mut answer = self.why.answer(&http.metrics, asked);
        if let Some(after) = self.retry_after {
            // Rounded up: who waits that long may try again.
            let seconds = after.as_secs() + 1;
            answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        answer
    }
}

/// Whether a request may do this, in a session if it is about one. `client` is its address, for the count of failures.
pub async fn check(
    http: &Http,
    headers: &HeaderMap,
    client: impl Fn() -> IpAddr,
    action: Action,
    session_id: Option<&SessionId>,
) -> Result<Who, Refused> {
    if matches!(action, Action::Publish | Action::Disconnect) && !http.auth.has_api_keys() {
        return Err(AccessRefusal::NoApiKeys.into());
    }
    let who = who(http, headers, client, action).await?;
    match http.auth.decide(&who, action, session_id) {
        Ok(()) => Ok(who),
        Err(Denied::Unauthorized) => Err(AccessRefusal::TokenMissing.into()),
        Err(Denied::Forbidden) if who == Who::AnyoneInProduction => Err(AccessRefusal::TokensOff.into()),
        Err(Denied::Forbidden) => Err(AccessRefusal::Forbidden.into()),
    }
}

/// Whether a client may connect as whom its path names. Returns when its token expires, if there is one, and which
/// sessions it covers.
pub async fn connect(
    http: &Http,
    headers: &HeaderMap,
    params: &ConnectParams,
) -> Result<(Option<i64>, Sessions), Refused> {
    let rewinds = match params.resume.as_deref() {
        Some(Resume::Rewind(_) | Resume::Invalid(AskedFor::Rewind(_) | AskedFor::BadRewind(_))) => true,
        Some(Resume::Message { .. } | Resume::Cursor { .. } | Resume::Invalid(AskedFor::Since(_))) | None => {
            false
        }
    };
    let action = match params.session_id.is_lobby() {
        true => Action::Lobby,
        false if rewinds => Action::Rewind,
        false => Action::Connect,
    };
    match check(http, headers, || params.client, action, Some(&params.session_id)).await? {
        Who::Bearer(principal) if principal.is(&params.user_id, params.user_type) => {
            Ok((Some(principal.expires_at), principal.sessions))
        }
        Who::Bearer(_) => Err(AccessRefusal::Forbidden.into()),
        _ => Ok((None, Sessions::All)),
    }
}

/// The sessions that who asks may see.
pub fn scope(who: Who) -> Sessions {
    match who {
        Who::Bearer(Principal { sessions, .. }) => sessions,
        _ => Sessions::All,
    }
}

/// Whether a backend has disconnected a user from a session, for a time that is not over. A starting node does not know
/// that yet: who asks waits until it does, unless what it reads it from is down.
pub async fn is_refused(http: &Http, session_id: &SessionId, user_id: Option<&str>) -> bool {
    let Some(user_id) = user_id else { return false };
    let (bus, presence) = (&http.chat.bus, &http.chat.presence);
    while bus.awaits_refusals() || presence.awaits_refusals(http.lifecycle.uptime()) {
        tokio::time::sleep(REFUSALS_INTERVAL).await;
    }
    http.chat.disconnects.is_refused(session_id, user_id)
}

async fn who(
    http: &Http,
    headers: &HeaderMap,
    client: impl Fn() -> IpAddr,
    action: Action,
) -> Result<Who, Refused> {
    let auth = &http.auth;
    let is_upgrade = matches!(action, Action::Connect | Action::Rewind | Action::Lobby);
    let failed = |why: AccessRefusal| match auth.count_failure(counted(client())) {
        None => Refused::from(why),
        retry_after => Refused {
            why: AccessRefusal::AuthFailures,
            retry_after,
        },
    };
    // Other routes are none of a backend's: there its key says nothing.
    let is_backends = matches!(
        action,
        Action::Publish | Action::Disconnect | Action::ReadStatus | Action::ReadMessages
    );
    if is_backends && auth.has_api_keys() && headers.contains_key(&API_KEY) {
        let is_valid = only(headers, &API_KEY).is_some_and(|key| auth.is_api_key(key.as_bytes()));
        return if is_valid {
            Ok(Who::Backend)
        } else {
            // As if there were none.
            Err(failed(AccessRefusal::TokenMissing))
        };
    }
    if !auth.is_on() {
        return Ok(auth.anonymous());
    }
    let Some(token) = token(headers, is_upgrade) else {
        return Ok(auth.anonymous());
    };
    match auth.verify(token, counted(client())).await {
        Ok(principal) => Ok(Who::Bearer(principal)),
        Err(Refusal::Invalid) => Err(failed(AccessRefusal::TokenInvalid)),
        Err(Refusal::Expired) => Err(failed(AccessRefusal::TokenExpired)),
        Err(Refusal::NoKeys) => Err(AccessRefusal::KeysUnavailable.into()),
        Err(Refusal::Busy) => Err(AccessRefusal::Busy.into()),
        // Not the client's fault, as far as is known: it does not count.
        Err(Refusal::KeyPending(after)) => Err(Refused {
            why: AccessRefusal::KeysUnavailable,
            retry_after: Some(after),
        }),
    }
}

/// The token of a request: `Authorization: Bearer`, or the subprotocol of a handshake. Two that differ are no token that
/// could be valid: which of them counts would be a guess.
fn token(headers: &HeaderMap, is_upgrade: bool) -> Option<&str> {
    const INVALID: &str = "";
    let in_header = headers.get_all(header::AUTHORIZATION).iter().filter_map(bearer);
    let offered = items(headers, &header::SEC_WEBSOCKET_PROTOCOL)
        .filter(|_| is_upgrade)
        .filter_map(|item| item.strip_prefix(BEARER_SUBPROTOCOL));
    let mut tokens = in_header.chain(offered);
    let token = tokens.next()?;
    if tokens.any(|other| other != token) {
        return Some(INVALID);
    }
    Some(std::str::from_utf8(token).unwrap_or(INVALID))
}

/// The token of a header with the scheme Bearer, in any case (RFC 6750, section 2.1); other schemes are a proxy's.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes().trim_ascii();
    let end = value.iter().position(|&byte| byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at(end);
    scheme.eq_ignore_ascii_case(b"bearer").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_token_is_in_the_header_or_in_the_subprotocol() {
        for (lines, expected) in [
            (&[][..], None),
            (&[("authorization", "Bearer a.b.c")], Some("a.b.c")),
            (&[("authorization", "bEARER  a.b.c ")], Some("a.b.c")),
            (&[("authorization", "Basic a.b.c")], None),
            (&[("authorization", "Bearer")], Some("")),
            (&[("authorization", "Bearera.b.c")], None),
            (
                &[("sec-websocket-protocol", "livechat.v1, livechat.bearer.a.b.c")],
                Some("a.b.c"),
            ),
            (&[("sec-websocket-protocol", "livechat.v1")], None),
            (
                &[
                    ("sec-websocket-protocol", "livechat.v1"),
                    ("sec-websocket-protocol", "livechat.bearer.a.b.c"),
                ],
                Some("a.b.c"),
            ),
            (
                &[
                    ("authorization", "Basic eA=="),
                    ("sec-websocket-protocol", "livechat.bearer.a.b.c"),
                ],
                Some("a.b.c"),
            ),
            (
                &[
                    ("authorization", "Bearer a.b.c"),
                    ("sec-websocket-protocol", "livechat.bearer.a.b.c"),
                ],
                Some("a.b.c"),
            ),
            // Which of the two counts?
            (
                &[
                    ("authorization", "Bearer a.b.c"),
                    ("sec-websocket-protocol", "livechat.bearer.a.b.d"),
                ],
                Some(""),
            ),
            (
                &[
                    ("authorization", "Bearer a.b.c"),
                    ("authorization", "Bearer a.b.d"),
                ],
                Some(""),
            ),
            (
                &[("sec-websocket-protocol", "livechat.bearer.a, livechat.bearer.b")],
                Some(""),
            ),
        ] {
            assert_eq!(token(&headers(lines), true), expected, "{lines:?}");
        }
        let offered = headers(&[("sec-websocket-protocol", "livechat.bearer.a.b.c")]);
        assert_eq!(token(&offered, false), None, "not on other routes");
    }
}
