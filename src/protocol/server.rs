//! Text frames that clients receive: `{type, success, data, error?, request_id?}`, each encoded once.

use bytes::Bytes;
use serde::Serialize;

use super::code::WireError;
use super::correlation::{Correlation, RequestId};
use super::encode;
use super::frame;
use super::ids::{SessionId, UserId, UserType};
use super::json::Passthrough;
use super::status::{ConnectionStatus, StatusChange, StatusEvent};

#[derive(Serialize)]
struct Envelope<'a, D: Serialize> {
    #[serde(rename = "type")]
    kind: &'static str,
    success: bool,
    data: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<RequestId<'a>>,
}

/// The payload of a successful frame; `None` if it can't be encoded.
fn payload<D: Serialize>(kind: &'static str, data: D, request_id: Option<RequestId<'_>>) -> Option<Vec<u8>> {
    encode(&Envelope {
        kind,
        success: true,
        data,
        error: None,
        request_id,
    })
}

/// A frame for one client. If it can't be encoded, the client gets an error instead.
fn answer<D: Serialize>(kind: &'static str, data: D, correlation: Correlation<'_>) -> Bytes {
    match payload(kind, data, correlation.request_id) {
        Some(payload) => frame::text(&payload),
        None => error(&WireError::internal(), correlation),
    }
}

/// A frame that is no answer; `None` if it can't be encoded.
pub(super) fn frame_of<D: Serialize>(kind: &'static str, data: D) -> Option<Bytes> {
    payload(kind, data, None).map(|payload| frame::text(&payload))
}

/// A connection's session and user, which several answers contain.
#[derive(Clone, Copy, Serialize)]
pub struct Identity<'a> {
    pub session_id: &'a SessionId,
    pub user_id: &'a UserId,
    pub user_type: UserType,
}

/// The first frame of every connection; without a cursor while the log is not known.
pub fn connection_established(who: Identity<'_>, timestamp: &str, cursor: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    struct Data<'a> {
        #[serde(flatten)]
        who: Identity<'a>,
        timestamp: &'a str,
        message: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<&'a str>,
    }
    let message = "Successfully connected to chat session";
    let data = Data {
        who,
        timestamp,
        message,
        cursor,
    };
    answer("connection_established", data, Correlation::default())
}

/// The answer to `join_session`.
pub fn session_joined(who: Identity<'_>, timestamp: &str, correlation: Correlation<'_>) -> Bytes {
    #[derive(Serialize)]
    struct Data<'a> {
        #[serde(flatten)]
        who: Identity<'a>,
        timestamp: &'a str,
    }
    answer("session_joined", Data { who, timestamp }, correlation)
}

/// The answer to `ping`.
pub fn pong(timestamp: &str, cursor: Option<&str>, correlation: Correlation<'_>) -> Bytes {
    #[derive(Serialize)]
    struct Data<'a> {
        timestamp: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<&'a str>,
    }
    answer("pong", Data { timestamp, cursor }, correlation)
}

/// The answer to `auth`.
pub fn authenticated(expires_at: &str, correlation: Correlation<'_>) -> Bytes {
    answer("authenticated", Expires { expires_at }, correlation)
}

/// The connection's token ends soon.
pub fn token_expiring(expires_at: &str) -> Bytes {
    answer("token_expiring", Expires { expires_at }, Correlation::default())
}

#[derive(Serialize)]
struct Expires<'a> {
    expires_at: &'a str,
}

/// See [`resume::resumed`](super::resume::resumed).
pub(super) fn resumed(data: impl Serialize) -> Bytes {
    answer("resumed", data, Correlation::default())
}

/// The answer to `send_message`, once the log has the record.
pub fn message_sent(message_id: &str, timestamp: &str, correlation: Correlation<'_>) -> Bytes {
    #[derive(Serialize)]
    struct Data<'a> {
        message_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        client_message_id: Option<&'a str>,
        timestamp: &'a str,
    }
    let data = Data {
        message_id,
        client_message_id: correlation.client_message_id,
        timestamp,
    };
    answer("message_sent", data, correlation)
}

/// What a client gets if not even an error can be encoded.
const UNENCODABLE: &str = r#"{"type":"error","success":false,"data":{"code":"internal_error","retryable":false},"error":"Internal error"}"#;

/// The error that answers a refused frame, with the frame's ids as far as they are known.
pub fn error(error: &WireError, correlation: Correlation<'_>) -> Bytes {
    #[derive(Serialize)]
    struct Data<'a> {
        code: &'static str,
        retryable: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        client_message_id: Option<&'a str>,
    }
    let data = Data {
        code: error.code.as_str(),
        retryable: error.code.is_retryable(),
        client_message_id: correlation.client_message_id,
    };
    let envelope = Envelope {
        kind: "error",
        success: false,
        data,
        error: Some(&error.text),
        request_id: correlation.request_id,
    };
    match encode(&envelope) {
        Some(payload) => frame::text(&payload),
        None => frame::text(UNENCODABLE.as_bytes()),
    }
}

/// `data` of `new_message`.
#[derive(Serialize)]
pub struct NewMessage<'a, A: Serialize> {
    pub message_id: &'a str,
    pub session_id: &'a SessionId,
    /// `None`: a backend named nobody.
    pub sender_id: Option<&'a UserId>,
    /// A user type, `ai` or `system`.
    pub sender_type: &'a str,
    pub message: &'a str,
    pub message_type: &'a str,
    pub attachments: A,
    pub timestamp: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_message_id: Option<&'a str>,
}

/// The payload of `new_message`, which is also the value of a native record, byte for byte.
pub fn new_message<A: Serialize>(message: &NewMessage<'_, A>) -> Option<Vec<u8>> {
    payload("new_message", message, None)
}

/// The payload of a frame that a record is converted to.
pub(super) fn converted<D: Serialize>(kind: &'static str, data: D) -> Option<Vec<u8>> {
    payload(kind, data, None)
}

/// `data` of `typing_indicator`.
#[derive(Serialize)]
pub struct TypingIndicator<'a> {
    pub session_id: &'a str,
    pub user_id: &'a str,
    pub sender_type: &'a str,
    pub is_typing: bool,
    pub timestamp: &'a str,
}

pub fn typing_indicator(data: &TypingIndicator<'_>) -> Option<Bytes> {
    payload("typing_indicator", data, None).map(|payload| frame::text(&payload))
}

/// `connection_status_update`: once per window and session, with the window's net changes; or, without events, a
/// snapshot for a connection whose join changed nothing.
pub fn connection_status_update(
    session_id: &SessionId,
    status: &ConnectionStatus,
    events: &[StatusEvent],
    timestamp: &str,
) -> Option<Bytes> {
    let data = StatusChange::of(session_id, status, events, timestamp);
    payload("connection_status_update", data, None).map(|payload| frame::text(&payload))
}

/// The payload for a status record of another service: passed on, without events.
pub(super) fn foreign_status(
    session_id: &SessionId,
    status: Passthrough<'_, '_>,
    timestamp: &str,
) -> Option<Vec<u8>> {
    #[derive(Serialize)]
    struct Data<'a> {
        session_id: &'a SessionId,
        connection_status: Passthrough<'a, 'a>,
        timestamp: &'a str,
        events: [(); 0],
    }
    let data = Data {
        session_id,
        connection_status: status,
        timestamp,
        events: [],
    };
    payload("connection_status_update", data, None)
}

#[cfg(test)]
mod tests {
    use super::super::code::ErrorCode;
    use super::super::status::{ConnectedUser, EventType};
    use super::*;

    fn json(frame: &Bytes) -> serde_json::Value {
        let header = if frame[1] == 126 { 4 } else { 2 };
        serde_json::from_slice(&frame[header..]).unwrap()
    }

    fn ids() -> (SessionId, UserId) {
        (SessionId::parse("s1").unwrap(), UserId::parse("u1").unwrap())
    }

    #[test]
    fn the_greeting_is_that_of_the_old_server() {
        let (session_id, user_id) = ids();
        let who = Identity {
            session_id: &session_id,
            user_id: &user_id,
            user_type: UserType::Agent,
        };
        let frame = connection_established(who, "T", None);
        assert_eq!(
            std::str::from_utf8(&frame[4..]).unwrap(),
            r#"{"type":"connection_established","success":true,"data":{"session_id":"s1","user_id":"u1","user_type":"agent","timestamp":"T","message":"Successfully connected to chat session"}}"#
        );
        assert_eq!(
            json(&connection_established(who, "T", Some("c")))["data"]["cursor"],
            "c"
        );
    }

    #[test]
    fn an_error_has_a_code_a_text_and_the_request_id() {
        let refused = WireError::new(ErrorCode::RateLimited, "Slow down");
        let correlation = Correlation {
            request_id: Some(RequestId::Text("r1")),
            client_message_id: Some("c1"),
        };
        let value = json(&error(&refused, correlation));
        assert_eq!(value["type"], "error");
        assert_eq!(value["success"], false);
        assert_eq!(value["error"], "Slow down");
        assert_eq!(value["request_id"], "r1");
        assert_eq!(
            value["data"],
            serde_json::json!({"code": "rate_limited", "retryable": true, "client_message_id": "c1"})
        );
    }

    /// A value that can't be encoded, as a bug would produce it.
    struct Broken;

    impl Serialize for Broken {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("broken"))
        }
    }

    #[test]
    fn an_unencodable_answer_becomes_an_error_and_never_an_empty_frame() {
        let (session_id, sender_id) = ids();
        let message = NewMessage {
            message_id: "m",
            session_id: &session_id,
            sender_id: Some(&sender_id),
            sender_type: "agent",
            message: "hello",
            message_type: "text",
            attachments: Broken,
            timestamp: "T",
            client_message_id: None,
        };
        assert_eq!(new_message(&message), None);
        assert_eq!(converted("new_message", Broken), None);
        let correlation = Correlation {
            request_id: Some(RequestId::Number(7)),
            client_message_id: Some("c1"),
        };
        let value = json(&answer("pong", Broken, correlation));
        assert_eq!(
            (&value["type"], &value["request_id"]),
            (&"error".into(), &7.into())
        );
        assert_eq!(
            value["data"],
            serde_json::json!({"code": "internal_error", "retryable": false, "client_message_id": "c1"})
        );
        let last: serde_json::Value = serde_json::from_str(UNENCODABLE).unwrap();
        assert_eq!(last["data"]["code"], ErrorCode::Internal.as_str());
    }

    #[test]
    fn a_status_frame_lists_up_to_a_hundred_users() {
        let (session_id, _) = ids();
        let users = |n: usize| {
            ConnectionStatus::of((0..n).map(|i| ConnectedUser {
                user_id: UserId::parse(&format!("u{i}")).unwrap(),
                user_type: UserType::Customer,
                joined_at: "J".into(),
            }))
        };
        let event = |i: usize| StatusEvent {
            event_type: EventType::UserConnected,
            event_user_id: UserId::parse(&format!("u{i}")).unwrap(),
            event_id: None,
        };
        let update = |status: &ConnectionStatus, events: &[StatusEvent]| {
            json(&connection_status_update(&session_id, status, events, "T").unwrap())
        };
        let value = update(&users(100), &[event(3)]);
        assert_eq!(
            value["data"]["connection_status"]["users"]
                .as_object()
                .unwrap()
                .len(),
            100
        );
        assert!(value["data"].get("users_truncated").is_none());
        assert_eq!(value["data"]["event_type"], "user_connected");
        assert_eq!(value["data"]["event_user_id"], "u3");

        let events: Vec<_> = (0..150).map(event).collect();
        let value = update(&users(101), &events);
        assert_eq!(value["data"]["connection_status"]["users"], serde_json::json!({}));
        assert_eq!(value["data"]["connection_status"]["total_customer"], 101);
        assert_eq!(value["data"]["users_truncated"], true);
        assert_eq!(value["data"]["events"].as_array().unwrap().len(), 100);
        assert_eq!(value["data"]["event_user_id"], "u149");

        let value = update(&users(1), &[]);
        assert_eq!(value["data"]["events"], serde_json::json!([]));
        assert!(value["data"].get("event_type").is_none());
    }
}
