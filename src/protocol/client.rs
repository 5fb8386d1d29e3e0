//! Text frames that clients send: `{type, data?, request_id?}`. The session and the user are known from the path, so
//! `session_id`, `user_id`, `user_type` and `timestamp` in a body are ignored, as are unknown fields.

use std::borrow::Cow;

use simd_json::prelude::*;
use simd_json::tape::{Object, Tape, Value};

use super::code::{ErrorCode, WireError};
use super::correlation::{self, Correlation, MAX_TOKEN_LEN, RequestId};
use super::json::{self, Passthrough};
use super::surrogates;

/// A client's request.
pub enum Request<'t, 'i> {
    JoinSession,
    /// `typing_start`, `agent_typing` and `typing_stop`.
    Typing {
        is_typing: bool,
    },
    SendMessage(SendMessage<'t, 'i>),
    /// `message_read`.
    MarkRead {
        up_to: Cow<'i, str>,
    },
    Authenticate {
        token: &'i str,
    },
    Ping,
}

/// `data` of `send_message`, and of a backend's message.
pub struct SendMessage<'t, 'i> {
    pub message: &'i str,
    pub message_type: &'i str,
    /// An array, or `None`.
    pub attachments: Option<Passthrough<'t, 'i>>,
    pub client_message_id: Option<&'i str>,
}

/// Reads frames, reusing its buffers.
#[derive(Default)]
pub struct FrameReader {
    reader: json::Reader,
    /// The original of a frame with escapes, since the parser decodes them in place.
    original: Vec<u8>,
}

impl FrameReader {
    /// Parses one frame in its own buffer and passes it to `take`. The client's ids are passed separately, since error
    /// answers repeat them, too.
    pub fn read<T>(
        &mut self,
        text: &mut [u8],
        take: impl for<'t, 'i> FnOnce(Correlation<'i>, Result<Request<'t, 'i>, WireError>) -> T,
    ) -> T {
        let has_escapes = surrogates::replace_unpaired(text);
        if has_escapes {
            self.original.clear();
            self.original.extend_from_slice(text);
        }
        if let Ok(tape) = self.reader.parse_paired(text) {
            let (correlation, request) = parse(&tape);
            return take(correlation, request);
        }
        let readable = if has_escapes { &self.original } else { &*text };
        let error = WireError::new(ErrorCode::InvalidJson, "The frame is not valid JSON");
        take(correlation::salvage(readable).as_ref(), Err(error))
    }
}

fn parse<'t, 'i>(tape: &'t Tape<'i>) -> (Correlation<'i>, Result<Request<'t, 'i>, WireError>) {
    let Some(frame) = json::object(tape) else {
        return (
            Correlation::default(),
            Err(WireError::new(
                ErrorCode::InvalidFrame,
                "A frame must be a JSON object",
            )),
        );
    };
    let (mut kind, mut data, mut request_id) = (None, None, None);
    for (key, value) in frame.iter() {
        match key {
            "type" => kind = Some(value),
            "data" => data = Some(value),
            "request_id" => request_id = Some(value),
            _ => {}
        }
    }
    let (request_id, request) = match read_request_id(request_id) {
        Ok(request_id) => (request_id, read_request(kind, data)),
        Err(error) => (None, Err(error)),
    };
    let client_message_id = match &request {
        Ok(Request::SendMessage(message)) => message.client_message_id,
        _ => data.and_then(find_client_message_id),
    };
    let correlation = Correlation {
        request_id,
        client_message_id,
    };
    (correlation, request)
}

/// The `client_message_id` of a frame that is refused.
fn find_client_message_id<'i>(data: Value<'_, 'i>) -> Option<&'i str> {
    let data = data.as_object()?;
    let ids = data.iter().filter(|(key, _)| *key == "client_message_id");
    let (_, id) = ids.last()?;
    json::text(id).filter(|id| correlation::is_token(id))
}

fn read_request_id<'i>(value: Option<Value<'_, 'i>>) -> Result<Option<RequestId<'i>>, WireError> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    if let Some(text) = json::text(value).filter(|text| correlation::is_request_id(text)) {
        Ok(Some(RequestId::Text(text)))
    } else if let Some(number) = value.as_i64() {
        Ok(Some(RequestId::Number(number)))
    } else {
        Err(invalid(
            "request_id must be a string of at most 128 bytes or an integer",
        ))
    }
}

fn read_request<'t, 'i>(
    kind: Option<Value<'t, 'i>>,
    data: Option<Value<'t, 'i>>,
) -> Result<Request<'t, 'i>, WireError> {
    let Some(kind) = kind.and_then(json::text) else {
        return Err(WireError::new(
            ErrorCode::InvalidFrame,
            "A frame must have a type, a string",
        ));
    };
    match kind {
        "join_session" => Ok(Request::JoinSession),
        "ping" => Ok(Request::Ping),
        "typing_stop" => Ok(Request::Typing { is_typing: false }),
        "typing_start" | "agent_typing" => read_typing(object(data)?),
        "send_message" => read_message(object(data)?.as_ref(), "data.").map(Request::SendMessage),
        "message_read" => read_up_to(object(data)?),
        "auth" => read_auth(object(data)?),
        other => Err(WireError::new(
            ErrorCode::UnknownType,
            format!("Unknown message type: {}", shortened(other)),
        )),
    }
}

/// `data`: an object, null or absent.
fn object<'t, 'i>(data: Option<Value<'t, 'i>>) -> Result<Option<Object<'t, 'i>>, WireError> {
    let Some(data) = data.filter(|data| !data.is_null()) else {
        return Ok(None);
    };
    data.as_object()
        .map(Some)
        .ok_or_else(|| invalid("data must be an object"))
}

fn read_typing<'t, 'i>(data: Option<Object<'t, 'i>>) -> Result<Request<'t, 'i>, WireError> {
    let mut is_typing = true;
    for (_, value) in data
        .iter()
        .flat_map(Object::iter)
        .filter(|(key, _)| *key == "is_typing")
    {
        is_typing = value
            .as_bool()
            .ok_or_else(|| invalid("data.is_typing must be true or false"))?;
    }
    Ok(Request::Typing { is_typing })
}

fn read_up_to<'t, 'i>(data: Option<Object<'t, 'i>>) -> Result<Request<'t, 'i>, WireError> {
    let values = data
        .iter()
        .flat_map(Object::iter)
        .filter(|(key, _)| *key == "up_to");
    let up_to = values.last().map(|(_, value)| value);
    let text = up_to
        .and_then(json::text)
        .filter(|text| correlation::is_token(text));
    // An old message's id may be a number.
    let number = || Some(Cow::Owned(up_to?.as_i64()?.to_string()));
    text.map(Cow::Borrowed)
        .or_else(number)
        .map(|up_to| Request::MarkRead { up_to })
        .ok_or_else(|| invalid("data.up_to must be a message id: a string of 1 to 128 bytes, or an integer"))
}

fn read_auth<'t, 'i>(data: Option<Object<'t, 'i>>) -> Result<Request<'t, 'i>, WireError> {
    let tokens = data
        .iter()
        .flat_map(Object::iter)
        .filter(|(key, _)| *key == "token");
    let token = tokens.last().and_then(|(_, value)| json::text(value));
    token
        .map(|token| Request::Authenticate { token })
        .ok_or_else(|| invalid("data.token must be a string"))
}

/// The fields of a message; errors name them with this prefix.
pub(super) fn read_message<'t, 'i>(
    data: Option<&Object<'t, 'i>>,
    prefix: &str,
) -> Result<SendMessage<'t, 'i>, WireError> {
    let (mut message, mut message_type, mut attachments, mut client_message_id) = (None, None, None, None);
    for (key, value) in data.into_iter().flat_map(Object::iter) {
        let value = Some(value).filter(|value| !value.is_null());
        match key {
            "message" => message = value,
            "message_type" => message_type = value,
            "attachments" => attachments = value,
            "client_message_id" => client_message_id = value,
            _ => {}
        }
    }
    let attachments = match attachments {
        Some(value) if !value.is_array() => {
            return Err(invalid(format!("{prefix}attachments must be an array")));
        }
        other => other,
    };
    let message = message
        .and_then(json::text)
        .ok_or_else(|| invalid(format!("{prefix}message must be a string")))?;
    let has_attachments = attachments
        .and_then(|value| value.as_array())
        .is_some_and(|array| !array.is_empty());
    if message.is_empty() && !has_attachments {
        let text = format!("{prefix}message must not be empty without attachments");
        return Err(invalid(text));
    }
    let token = |value, name: &str| token(value, &format!("{prefix}{name}"));
    Ok(SendMessage {
        message,
        message_type: token(message_type, "message_type")?.unwrap_or("text"),
        attachments: attachments.map(Passthrough),
        client_message_id: token(client_message_id, "client_message_id")?,
    })
}

fn token<'i>(value: Option<Value<'_, 'i>>, name: &str) -> Result<Option<&'i str>, WireError> {
    let Some(value) = value else { return Ok(None) };
    let text = json::text(value).filter(|text| correlation::is_token(text));
    text.map(Some).ok_or_else(|| {
        WireError::new(
            ErrorCode::InvalidField,
            format!("{name} must be a string of 1 to {MAX_TOKEN_LEN} bytes"),
        )
    })
}

pub(super) fn invalid(text: impl Into<Cow<'static, str>>) -> WireError {
    WireError::new(ErrorCode::InvalidField, text)
}

/// An unknown type, cut to 64 characters so that the answer stays small.
fn shortened(text: &str) -> &str {
    text.char_indices().nth(64).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::super::correlation::OwnedCorrelation;
    use super::*;

    fn error_of(text: &str) -> (OwnedCorrelation, WireError) {
        FrameReader::default().read(&mut text.as_bytes().to_vec(), |correlation, request| {
            (correlation.to_owned(), request.err().expect("an error"))
        })
    }

    fn accept(text: &str, check: impl FnOnce(Option<RequestId<'_>>, Request<'_, '_>)) {
        FrameReader::default().read(&mut text.as_bytes().to_vec(), |correlation, request| {
            check(
                correlation.request_id,
                request.unwrap_or_else(|error| panic!("{text}: {error:?}")),
            );
        });
    }

    #[test]
    fn every_type_is_read() {
        accept(r#"{"type":"join_session","extra":1}"#, |_, request| {
            assert!(matches!(request, Request::JoinSession))
        });
        accept(r#"{"data":7,"type":"ping","request_id":9}"#, |id, request| {
            assert_eq!(id, Some(RequestId::Number(9)));
            assert!(matches!(request, Request::Ping));
        });
        for (up_to, expected) in [(r#""m1""#, "m1"), ("17", "17"), ("-1", "-1")] {
            let text = format!(r#"{{"type":"message_read","data":{{"up_to":1.5,"up_to":{up_to}}}}}"#);
            accept(&text, |_, request| match request {
                Request::MarkRead { up_to } => assert_eq!(up_to, expected),
                _ => panic!("{text}"),
            });
        }
        for up_to in [r#""""#, "1.5", "null", "[]", &format!("\"{}\"", "x".repeat(129))] {
            let text = format!(r#"{{"type":"message_read","data":{{"up_to":{up_to}}}}}"#);
            let (_, error) = error_of(&text);
            assert_eq!(error.code, ErrorCode::InvalidField, "{text}");
        }
        for (text, expected) in [
            (r#"{"type":"typing_start"}"#, true),
            (r#"{"type":"typing_start","data":null}"#, true),
            (r#"{"type":"typing_start","data":{"is_typing":false}}"#, false),
            (r#"{"type":"agent_typing","data":{"is_typing":true}}"#, true),
            (r#"{"type":"typing_stop","data":{"is_typing":true}}"#, false),
        ] {
            accept(text, |_, request| match request {
                Request::Typing { is_typing } => assert_eq!(is_typing, expected, "{text}"),
                _ => panic!("{text}"),
            });
        }
        let text =
            r#"{"type":"send_message","request_id":"r","data":{"message":"hi","client_message_id":"c"}}"#;
        accept(text, |id, request| {
            assert_eq!(id, Some(RequestId::Text("r")));
            let Request::SendMessage(message) = request else {
                panic!()
            };
            assert_eq!((message.message, message.message_type), ("hi", "text"));
            assert_eq!(message.client_message_id, Some("c"));
            assert!(message.attachments.is_none());
        });
    }

    #[test]
    fn the_last_of_duplicate_keys_wins() {
        accept(r#"{"type":"nonsense","type":"ping"}"#, |_, request| {
            assert!(matches!(request, Request::Ping))
        });
        accept(
            r#"{"type":"send_message","data":{"message":"a","message":"b"}}"#,
            |_, request| {
                let Request::SendMessage(message) = request else {
                    panic!()
                };
                assert_eq!(message.message, "b");
            },
        );
    }

    #[test]
    fn errors_name_what_is_wrong_and_keep_the_request_id() {
        for (text, code) in [
            ("[]", ErrorCode::InvalidFrame),
            (r#""ping""#, ErrorCode::InvalidFrame),
            ("{}", ErrorCode::InvalidFrame),
            (r#"{"type":7}"#, ErrorCode::InvalidFrame),
            (r#"{"type":"ping","request_id":{}}"#, ErrorCode::InvalidField),
            (r#"{"type":"ping","request_id":1.5}"#, ErrorCode::InvalidField),
            (r#"{"type":"typing_start","data":[]}"#, ErrorCode::InvalidField),
            (
                r#"{"type":"typing_start","data":{"is_typing":"yes"}}"#,
                ErrorCode::InvalidField,
            ),
            (r#"{"type":"auth"}"#, ErrorCode::InvalidField),
            (r#"{"type":"auth","data":{"token":7}}"#, ErrorCode::InvalidField),
            (r#"{"type":"send_message"}"#, ErrorCode::InvalidField),
            (
                r#"{"type":"send_message","data":{"message":7}}"#,
                ErrorCode::InvalidField,
            ),
            (
                r#"{"type":"send_message","data":{"message":""}}"#,
                ErrorCode::InvalidField,
            ),
            (
                r#"{"type":"send_message","data":{"message":"a","attachments":{}}}"#,
                ErrorCode::InvalidField,
            ),
            (
                r#"{"type":"send_message","data":{"message":"a","client_message_id":""}}"#,
                ErrorCode::InvalidField,
            ),
        ] {
            assert_eq!(error_of(text).1.code, code, "{text}");
        }
        let (correlation, error) =
            error_of(r#"{"type":"dance","request_id":"r1","data":{"client_message_id":"c1"}}"#);
        assert_eq!(error.text, "Unknown message type: dance");
        let expected = Correlation {
            request_id: Some(RequestId::Text("r1")),
            client_message_id: Some("c1"),
        };
        assert_eq!(correlation.as_ref(), expected);
        assert_eq!(
            error_of(&format!(r#"{{"type":"{}"}}"#, "é".repeat(500)))
                .1
                .text
                .chars()
                .count(),
            22 + 64
        );
    }
}
