//! `POST /api/session/{id}/messages`: a backend publishes a message.

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use serde::Serialize;

use super::Http;
use super::body;
use super::headers::only;
use super::refusal::{RequestRefusal, retry_after};
use super::response::{Answer, Success, error, error_with, json};
use crate::bus::PublishError;
use crate::chat::{Outcome, Unencodable};
use crate::protocol::correlation::is_token;
use crate::protocol::ids::SessionId;
use crate::protocol::publication;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const FAILED: &str = "Failed to publish the message";

#[derive(Serialize)]
struct Published {
    message_id: String,
    timestamp: String,
}

/// Publishes the message in the body; answers when the log has it.
pub async fn publish(http: &Http, session_id: &SessionId, request: &mut Request<Incoming>) -> Answer {
    let bad = |refusal: RequestRefusal| refusal.answer(&http.metrics);
    if http.lifecycle.is_draining() {
        return unavailable("this node is draining");
    }
    if !is_json(request.headers()) {
        return bad(RequestRefusal::ContentType);
    }
    let Ok(key) = idempotency_key(request.headers()) else {
        return bad(RequestRefusal::IdempotencyKey);
    };
    let most = http.config.limits.max_message_bytes;
    let mut body = match body::read(request.body_mut(), most).await {
        Ok(body) => body,
        Err(refusal) => return bad(refusal),
    };
    let published = publication::read(&mut body, |publication| {
        let mut publication = publication.map_err(|error| NotPublished::Bad(error.text.into_owned()))?;
        let message = &mut publication.message;
        match (&key, message.client_message_id) {
            (Some(key), Some(id)) if key != id => return Err(NotPublished::OtherKey),
            (Some(key), None) => message.client_message_id = Some(key),
            _ => {}
        }
        let published = http.chat.publish(session_id, &publication);
        published.map_err(|Unencodable| NotPublished::Unencodable)
    });
    match published {
        // A sender that is dropped without an answer leaves the outcome open.
        Ok(outcome) => answer(outcome.await.unwrap_or(Err(PublishError::Unknown))),
        Err(NotPublished::Bad(why)) => RequestRefusal::Body.naming(&http.metrics, &why),
        Err(NotPublished::OtherKey) => bad(RequestRefusal::IdempotencyKey),
        Err(NotPublished::Unencodable) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            error(status, FAILED, "the message could not be encoded")
        }
    }
}

/// Why a body was not published.
enum NotPublished {
    /// It is no message.
    Bad(String),
    /// `Idempotency-Key` is not its `client_message_id`.
    OtherKey,
    Unencodable,
}

fn answer(outcome: Outcome) -> Answer {
    let sent = match outcome {
        Ok(sent) => sent,
        Err(PublishError::TooLarge) => {
            let detail = "the record is larger than MAX_RECORD_BYTES, or than the log accepts";
            return error(StatusCode::PAYLOAD_TOO_LARGE, FAILED, detail);
        }
        Err(PublishError::Full) => return unavailable("the message log is full"),
        Err(PublishError::Unavailable) => return unavailable("the message log is not available"),
        Err(PublishError::Unknown) => {
            let detail =
                "outcome_unknown: no answer from the message log in time, the message may still appear";
            return error(StatusCode::GATEWAY_TIMEOUT, FAILED, detail);
        }
    };
    json(
        StatusCode::CREATED,
        &Success {
            success: true,
            message: "Message published successfully",
            data: Published {
                message_id: sent.message_id(),
                timestamp: sent.timestamp(),
            },
        },
    )
}

fn unavailable(why: &str) -> Answer {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    error_with(status, FAILED, why, header::RETRY_AFTER, retry_after())
}

/// Whether the body is JSON by its headers: a content type is not required, and no encoding such as gzip is offered.
fn is_json(headers: &HeaderMap) -> bool {
    let is_json = |value: &HeaderValue| {
        let mut parts = value
            .as_bytes()
            .split(|&byte| byte == b';')
            .map(<[u8]>::trim_ascii);
        let is_json = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(b"application/json"));
        // JSON is UTF-8 (RFC 8259, section 8.1); some clients say so.
        is_json && parts.all(|part| !is_other_charset(part))
    };
    let is_plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    headers.get_all(header::CONTENT_TYPE).iter().all(is_json)
        && headers.get_all(header::CONTENT_ENCODING).iter().all(is_plain)
}

fn is_other_charset(parameter: &[u8]) -> bool {
    let text = parameter.to_ascii_lowercase();
    let charset = text.strip_prefix(b"charset=");
    charset.is_some_and(|name| !matches!(name, b"utf-8" | b"\"utf-8\"" | b"utf8"))
}

/// The key by which a repeated request is recognized, taken as it is written; an error if it can't be one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ()> {
    if !headers.contains_key(&IDEMPOTENCY_KEY) {
        return Ok(None);
    }
    let key = only(headers, &IDEMPOTENCY_KEY).and_then(|key| std::str::from_utf8(key.as_bytes()).ok());
    key.filter(|key| is_token(key))
        .map(|key| Some(key.to_owned()))
        .ok_or(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Sent;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_body_is_json_unless_its_headers_say_otherwise() {
        for lines in [
            &[][..],
            &[("content-type", "application/json")],
            &[
                ("content-type", "Application/JSON ; charset=utf-8"),
                ("content-encoding", "identity"),
            ],
        ] {
            assert!(is_json(&headers(lines)), "{lines:?}");
        }
        for lines in [
            &[("content-type", "text/plain")][..],
            &[("content-type", "application/jsonp")],
            &[("content-type", "application/x-www-form-urlencoded")],
            &[("content-type", "")],
            &[("content-encoding", "gzip")],
            &[
                ("content-type", "application/json"),
                ("content-type", "text/plain"),
            ],
        ] {
            assert!(!is_json(&headers(lines)), "{lines:?}");
        }
    }

    #[test]
    fn a_key_is_one_header_of_1_to_128_bytes() {
        let key = |lines: &[_]| idempotency_key(&headers(lines));
        assert_eq!(key(&[]), Ok(None));
        assert_eq!(
            key(&[("idempotency-key", "\"a b\"")]),
            Ok(Some("\"a b\"".to_owned()))
        );
        assert_eq!(key(&[("idempotency-key", "")]), Err(()));
        assert_eq!(
            key(&[("idempotency-key", "a"), ("idempotency-key", "a")]),
            Err(())
        );
        let long = Box::leak("x".repeat(129).into_boxed_str());
        assert_eq!(key(&[("idempotency-key", long)]), Err(()));
    }

    #[test]
    fn every_outcome_has_a_status() {
        let status = |outcome| {
            let answer = answer(outcome);
            let is_later = answer.headers().contains_key(header::RETRY_AFTER);
            (answer.status().as_u16(), is_later)
        };
        assert_eq!(status(Ok(Sent::now())), (201, false));
        assert_eq!(status(Err(PublishError::TooLarge)), (413, false));
        assert_eq!(status(Err(PublishError::Full)), (503, true));
        assert_eq!(status(Err(PublishError::Unavailable)), (503, true));
        assert_eq!(status(Err(PublishError::Unknown)), (504, false));
    }
}
