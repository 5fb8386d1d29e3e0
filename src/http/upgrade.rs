//! The WebSocket handshake (RFC 6455, section 4.2): every refusal is an HTTP response instead of the 101.
//!
//! The upgrade's headers are checked last: a browser can't see why its handshake failed, but can send a plain GET to
//! the same path; 426 then means that nothing else was wrong.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::net::TcpStream;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Http;
use super::access;
use super::framing_guard::FramingGuard;
use super::headers::{self, has_token, only};
use super::limits::{Exceeded, Ticket};
use super::refusal::{AccessRefusal, UpgradeRefusal};
use super::response::{Answer, empty};
use crate::metrics::refusals::Asked;
use crate::protocol::ids::UserType;
use crate::ws::connection::{ConnectParams, Connection};

/// Appended to a key before it is hashed (RFC 6455, section 1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The only subprotocol that is accepted. Another one, `livechat.bearer.…`, carries a token, which is neither echoed
/// nor logged.
const SUBPROTOCOL: &str = "livechat.v1";

/// A client whose handshake is accepted: it joins once hyper hands over the socket.
pub struct PendingUpgrade {
    params: ConnectParams,
    upgraded: OnUpgrade,
    ticket: Ticket,
    /// Held from now on, so that a drain waits for it.
    token: TaskTrackerToken,
}

/// Checks the handshake and answers it; a 101 leaves a pending upgrade.
pub async fn upgrade(
    http: &Http,
    mut params: ConnectParams,
    request: &mut Request<Incoming>,
    pending: &mut Option<PendingUpgrade>,
) -> Answer {
    if !http.cors.allows_upgrade(request.headers()) {
        return UpgradeRefusal::Origin.answer(&http.metrics);
    }
    match access::connect(http, request.headers(), &params).await {
        Ok((expires_at, scope)) => (params.expires_at, params.scope) = (expires_at, scope),
        Err(refused) => return refused.answer(http, Asked::Upgrade),
    }
    if params.session_id.is_lobby() && params.user_type == UserType::Customer {
        return UpgradeRefusal::Lobby.answer(&http.metrics);
    }
    if access::is_refused(http, &params.session_id, Some(params.user_id.as_str())).await {
        return AccessRefusal::UserRefused.answer(&http.metrics, Asked::Upgrade);
    }
    match admit(http, &params, request) {
        Ok(admitted) => switch_protocols(admitted, params, request, pending),
        Err(Refused { why, retry_after }) => {
            let mut answer = why.answer(&http.metrics);
            if let Some(after) = retry_after {
                // Rounded up: a client that waits that long is admitted.
                let seconds = after.as_secs() + 1;
                answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            answer
        }
    }
}

/// Why a client is not admitted.
struct Refused {
    why: UpgradeRefusal,
    /// When it may retry, if that is known.
    retry_after: Option<Duration>,
}

impl From<UpgradeRefusal> for Refused {
    fn from(why: UpgradeRefusal) -> Self {
        Self {
            why,
            retry_after: None,
        }
    }
}

/// What an admitted client holds.
struct Admitted {
    ticket: Ticket,
    token: TaskTrackerToken,
    accept: HeaderValue,
}

/// Runs the checks that follow those of who asks, in order. Until the last one has passed, nothing may happen that a plain GET should not cause: if it
/// fails, the ticket is returned.
fn admit(http: &Http, params: &ConnectParams, request: &Request<Incoming>) -> Result<Admitted, Refused> {
    // Before the check: a drain that begins after it waits for this upgrade.
    let token = http.tracker.token();
    if http.lifecycle.is_draining() {
        return Err(UpgradeRefusal::Draining.into());
    }
    let admitted = http.limits.admit(
        params.client,
        (&params.session_id, &params.user_id, params.user_type),
    );
    let ticket = admitted.map_err(|exceeded| match exceeded {
        Exceeded::Process => UpgradeRefusal::Capacity.into(),
        Exceeded::Address => UpgradeRefusal::PerIp.into(),
        Exceeded::User(after) => Refused {
            why: UpgradeRefusal::PerUser,
            retry_after: Some(after),
        },
    })?;
    let accept = check_headers(request)?;
    Ok(Admitted {
        ticket,
        token,
        accept,
    })
}

fn switch_protocols(
    admitted: Admitted,
    params: ConnectParams,
    request: &mut Request<Incoming>,
    pending: &mut Option<PendingUpgrade>,
) -> Answer {
    let Admitted {
        ticket,
        token,
        accept,
    } = admitted;
    let is_offered = headers::items(request.headers(), &header::SEC_WEBSOCKET_PROTOCOL)
        .any(|item| item == SUBPROTOCOL.as_bytes());
    *pending = Some(PendingUpgrade {
        params,
        upgraded: hyper::upgrade::on(request),
        ticket,
        token,
    });
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if is_offered {
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
    }
    answer
}

impl PendingUpgrade {
    /// Joins, and serves the connection in a new task: hyper's, which is larger, ends.
    pub async fn join(self, http: &Http) {
        let Some((socket, answer, early)) = take_socket(self.upgraded).await else {
            return;
        };
        http.metrics.connections_opened.inc();
        let connection = Connection::join(socket, answer, early, self.params, Arc::clone(&http.connections));
        self.ticket.arrived(connection.writer());
        tokio::spawn(connection.run((self.ticket, self.token)));
    }
}

/// The socket taken back from hyper, the response that was held back, and what the client sent right after its
/// handshake.
async fn take_socket(upgraded: OnUpgrade) -> Option<(TcpStream, Bytes, Bytes)> {
    let parts = upgraded.await.ok()?.downcast::<TokioIo<FramingGuard>>().ok()?;
    let (socket, answer) = parts.io.into_inner().into_parts();
    Some((socket, answer, parts.read_buf))
}

/// The accept key, or why this request is not a handshake.
fn check_headers(request: &Request<Incoming>) -> Result<HeaderValue, UpgradeRefusal> {
    let headers = request.headers();
    let is_upgrade = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_token(headers, &header::CONNECTION, "upgrade")
        && has_token(headers, &header::UPGRADE, "websocket");
    if !is_upgrade {
        return Err(UpgradeRefusal::NoUpgrade);
    }
    if only(headers, &header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(UpgradeRefusal::Version);
    }
    if has_body(headers) {
        return Err(UpgradeRefusal::Body);
    }
    match only(headers, &header::SEC_WEBSOCKET_KEY) {
        Some(key) if is_key(key.as_bytes()) => Ok(accept_key(key.as_bytes())),
        _ => Err(UpgradeRefusal::Key),
    }
}

/// Whether there is a body; a length of zero means none (RFC 9112, section 6).
fn has_body(headers: &HeaderMap) -> bool {
    let is_zero = |length: &HeaderValue| length.as_bytes().iter().all(|&digit| digit == b'0');
    headers.contains_key(header::TRANSFER_ENCODING)
        || !headers.get_all(header::CONTENT_LENGTH).iter().all(is_zero)
}

fn is_key(key: &[u8]) -> bool {
    key.len() == 24 && STANDARD.decode(key).is_ok_and(|key| key.len() == 16)
}

fn accept_key(key: &[u8]) -> HeaderValue {
    let hash = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    // Every base64 character is allowed in a header value.
    HeaderValue::from_str(&STANDARD.encode(hash)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_of_rfc_6455_section_1_3() {
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(
            accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        for bad in [
            "",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZ!==",
            "AAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert!(!is_key(bad.as_bytes()), "{bad}");
        }
    }
}
