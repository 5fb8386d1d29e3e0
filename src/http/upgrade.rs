//! The WebSocket handshake (RFC 6455, section 4.2): every refusal is an HTTP answer, before the 101.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::net::TcpStream;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Http;
use super::limits::{Exceeded, Ticket};
use super::response::{Answer, empty, error, error_with};
use super::router::has_body;
use super::watched::Watched;
use crate::ws::connection::{Connection, Hello};

/// What a key is hashed with (RFC 6455, section 1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A client whose handshake is accepted: it joins when hyper gives up the socket.
pub struct Arrival {
    hello: Hello,
    upgraded: OnUpgrade,
    ticket: Ticket,
    /// Counted from now on, so that a drain waits for it.
    token: TaskTrackerToken,
}

/// Checks the handshake and answers it; behind a 101 there is an arrival.
pub fn upgrade(
    http: &Http,
    peer: IpAddr,
    hello: Hello,
    request: &mut Request<Incoming>,
    arrival: &mut Option<Arrival>,
) -> Answer {
    let accept = match check_headers(request) {
        Ok(accept) => accept,
        Err(refusal) => return refusal,
    };
    let headers = request.headers();
    if !http.cors.allows_upgrade(headers) {
        http.metrics.refused("origin");
        return error(
            StatusCode::FORBIDDEN,
            "Origin not allowed",
            "this origin is not in ALLOWED_ORIGINS",
        );
    }
    // Before the question: a drain that begins after it waits for this arrival.
    let token = http.tracker.token();
    if http.life.is_draining() {
        http.metrics.refused("draining");
        return later(
            StatusCode::SERVICE_UNAVAILABLE,
            "Service unavailable",
            "this node is draining",
        );
    }
    let ip = http.limits.client_ip(peer, headers);
    let ticket = match http.limits.admit(ip, (&hello.session_id, &hello.user_id)) {
        Ok(ticket) => ticket,
        Err(exceeded) => return refuse(http, exceeded),
    };
    *arrival = Some(Arrival {
        hello,
        upgraded: hyper::upgrade::on(request),
        ticket,
        token,
    });
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

impl Arrival {
    /// Joins, and serves the connection in a task of its own: hyper's, which is larger, ends.
    pub async fn join(self, http: &Http) {
        let Some((socket, answer, early)) = take_socket(self.upgraded).await else {
            return;
        };
        http.metrics.connections_opened.inc();
        let connection = Connection::join(socket, answer, early, self.hello, Arc::clone(&http.connections));
        tokio::spawn(serve(connection, self.ticket, self.token));
    }
}

#[allow(
    clippy::manual_async_fn,
    reason = "an async fn holds its arguments twice: once as they come and once as they are used"
)]
fn serve(connection: Connection, ticket: Ticket, token: TaskTrackerToken) -> impl Future<Output = ()> + Send {
    async move {
        let _held = (&ticket, &token);
        connection.run().await;
    }
}

/// The socket from under hyper, the answer that was held, and what the client sent right behind its handshake.
async fn take_socket(upgraded: OnUpgrade) -> Option<(TcpStream, Bytes, Bytes)> {
    let parts = upgraded.await.ok()?.downcast::<TokioIo<Watched>>().ok()?;
    let (socket, answer) = parts.io.into_inner().into_parts();
    Some((socket, answer, parts.read_buf))
}

/// The accept key, or why this request is no handshake.
#[allow(
    clippy::result_large_err,
    reason = "a refusal is an answer, made once and returned"
)]
fn check_headers(request: &Request<Incoming>) -> Result<HeaderValue, Answer> {
    let headers = request.headers();
    let is_upgrade = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_token(headers, &header::CONNECTION, "upgrade")
        && has_token(headers, &header::UPGRADE, "websocket");
    if !is_upgrade {
        return Err(upgrade_required(
            "send a WebSocket handshake (RFC 6455)",
            header::UPGRADE,
            "websocket",
        ));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        let name = header::SEC_WEBSOCKET_VERSION;
        return Err(upgrade_required("the WebSocket version must be 13", name, "13"));
    }
    if has_body(headers) {
        return Err(error(
            StatusCode::BAD_REQUEST,
            "Bad request",
            "a WebSocket handshake has no body",
        ));
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if is_key(key.as_bytes()) => Ok(accept_key(key.as_bytes())),
        _ => Err(error(
            StatusCode::BAD_REQUEST,
            "Bad request",
            "Sec-WebSocket-Key must be 16 bytes in base64",
        )),
    }
}

/// A 426 names the protocol to upgrade to (RFC 9110, section 15.5.22).
fn upgrade_required(detail: &str, name: HeaderName, value: &'static str) -> Answer {
    let mut answer = error_with(
        StatusCode::UPGRADE_REQUIRED,
        "Upgrade required",
        detail,
        name,
        value,
    );
    answer
        .headers_mut()
        .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer
}

fn refuse(http: &Http, exceeded: Exceeded) -> Answer {
    let (reason, status, message, detail) = match exceeded {
        Exceeded::Process => (
            "capacity",
            StatusCode::SERVICE_UNAVAILABLE,
            "Service unavailable",
            "this node is at its MAX_CONNECTIONS",
        ),
        Exceeded::Address => (
            "per_ip",
            StatusCode::TOO_MANY_REQUESTS,
            "Too many connections",
            "too many connections from this address",
        ),
        Exceeded::User => (
            "per_user",
            StatusCode::TOO_MANY_REQUESTS,
            "Too many connections",
            "too many connections of this user",
        ),
    };
    http.metrics.refused(reason);
    later(status, message, detail)
}

fn later(status: StatusCode, message: &str, detail: &str) -> Answer {
    // Spread, so that those who are refused together don't come back together.
    let seconds = ["1", "2", "3", "4", "5"][fastrand::usize(..5)];
    error_with(status, message, detail, header::RETRY_AFTER, seconds)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

fn is_key(key: &[u8]) -> bool {
    key.len() == 24 && STANDARD.decode(key).is_ok_and(|key| key.len() == 16)
}

fn accept_key(key: &[u8]) -> HeaderValue {
    let hash = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    // Base64 has only characters that a header value may have.
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
