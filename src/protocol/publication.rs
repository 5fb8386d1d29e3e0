//! A message that a backend publishes: the body of `POST /api/session/{id}/messages`, with the fields of a client's
//! `send_message` and its sender. As there, unknown fields are ignored, and the last of duplicate ones wins.

use simd_json::prelude::*;
use simd_json::tape::Value;

use super::client::{SendMessage, invalid, read_message};
use super::code::{ErrorCode, WireError};
use super::ids::UserId;
use super::json::{self, Reader};

/// Who may be named as the sender.
const SENDER_TYPES: [&str; 5] = ["customer", "agent", "admin", "ai", "system"];
const DEFAULT_SENDER: &str = "system";

pub struct Publication<'t, 'i> {
    pub message: SendMessage<'t, 'i>,
    pub sender_type: &'static str,
    pub sender_id: Option<UserId>,
}

/// Parses a body in place and passes it to `take`.
pub fn read<T>(
    body: &mut [u8],
    take: impl for<'t, 'i> FnOnce(Result<Publication<'t, 'i>, WireError>) -> T,
) -> T {
    let mut reader = Reader::default();
    let Ok(tape) = reader.parse(body) else {
        let error = WireError::new(ErrorCode::InvalidJson, "the body is not valid JSON");
        return take(Err(error));
    };
    let Some(fields) = json::object(&tape) else {
        return take(Err(invalid("the body must be a JSON object")));
    };
    take(read_message(Some(&fields), "").and_then(|message| {
        let (mut sender_type, mut sender_id) = (None, None);
        for (key, value) in fields.iter() {
            match key {
                "sender_type" => sender_type = Some(value),
                "sender_id" => sender_id = Some(value),
                _ => {}
            }
        }
        Ok(Publication {
            message,
            sender_type: read_sender_type(sender_type)?,
            sender_id: read_sender_id(sender_id)?,
        })
    }))
}

fn read_sender_type(value: Option<Value<'_, '_>>) -> Result<&'static str, WireError> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(DEFAULT_SENDER);
    };
    let named = json::text(value);
    let known = SENDER_TYPES.into_iter().find(|known| Some(*known) == named);
    known.ok_or_else(|| invalid("sender_type must be customer, agent, admin, ai or system"))
}

fn read_sender_id(value: Option<Value<'_, '_>>) -> Result<Option<UserId>, WireError> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let id = json::text(value).and_then(UserId::parse);
    id.map(Some).ok_or_else(|| {
        invalid(
            "sender_id must be null or a user ID: 1 to 128 bytes of UTF-8 without control and format characters and \
             / \\ % \" < > { } `",
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Message, message type, sender type, sender id, client message id.
    type Fields = (String, String, &'static str, Option<String>, Option<String>);

    fn fields(body: &[u8]) -> Result<Fields, String> {
        read(&mut body.to_vec(), |publication| {
            let publication = publication.map_err(|error| error.text.into_owned())?;
            let message = publication.message;
            Ok((
                message.message.to_owned(),
                message.message_type.to_owned(),
                publication.sender_type,
                publication.sender_id.map(|id| id.as_str().to_owned()),
                message.client_message_id.map(str::to_owned),
            ))
        })
    }

    #[test]
    fn what_is_left_out_has_defaults_and_the_last_of_duplicates_wins() {
        let expected = ("a".to_owned(), "text".to_owned(), "system", None, None);
        for body in [
            r#"{"message":"a"}"#,
            r#" {"message":"b","extra":{"x":[1]},"message":"a"} "#,
            r#"{"message":"a","sender_id":null,"sender_type":null,"message_type":null,"client_message_id":null}"#,
            r#"{"sender_type":"no","sender_id":7,"message":"a","sender_type":"system","sender_id":null}"#,
        ] {
            assert_eq!(fields(body.as_bytes()).unwrap(), expected, "{body}");
        }
        let body = r#"{"message":"a","message_type":"note","sender_type":"ai","sender_id":"José a","client_message_id":"c"}"#;
        let (id, client_id) = (Some("José a".to_owned()), Some("c".to_owned()));
        assert_eq!(
            fields(body.as_bytes()).unwrap(),
            ("a".into(), "note".into(), "ai", id, client_id)
        );
        let lone = br#"{"message":"\ud83d"}"#;
        assert_eq!(fields(lone).unwrap().0, "\u{FFFD}");
    }

    #[test]
    fn errors_name_the_field() {
        let mut bad: Vec<_> = [
            ("", "JSON"),
            ("{", "JSON"),
            (r#"{"message":"a"} x"#, "JSON"),
            (r#"{"message":"a"}{}"#, "JSON"),
            ("[]", "object"),
            ("\"a\"", "object"),
            ("{}", "message"),
            (r#"{"message":7}"#, "message"),
            (r#"{"message":""}"#, "message"),
            (r#"{"message":"","attachments":[]}"#, "message"),
            (r#"{"message":"a","attachments":{}}"#, "attachments"),
            (r#"{"message":"a","message_type":""}"#, "message_type"),
            (r#"{"message":"a","message_type":1}"#, "message_type"),
            (r#"{"message":"a","client_message_id":""}"#, "client_message_id"),
            (r#"{"message":"a","sender_type":"bot"}"#, "sender_type"),
            (r#"{"message":"a","sender_type":1}"#, "sender_type"),
            (r#"{"message":"a","sender_type":""}"#, "sender_type"),
            (r#"{"message":"a","sender_id":1}"#, "sender_id"),
            (r#"{"message":"a","sender_id":""}"#, "sender_id"),
            (r#"{"message":"a","sender_id":"a/b"}"#, "sender_id"),
        ]
        .map(|(body, named)| (body.to_owned(), named))
        .into();
        let long = format!(r#"{{"message":"a","client_message_id":"{}"}}"#, "x".repeat(129));
        bad.push((long, "client_message_id"));
        for (body, named) in bad {
            let error = fields(body.as_bytes()).unwrap_err();
            assert!(
                error.contains(named) && !error.contains("data."),
                "{body}: {error}"
            );
        }
        assert!(fields(b"{\"message\":\"\xff\"}").is_err(), "not UTF-8");
    }

    proptest! {
        #[test]
        fn any_text_comes_through_and_any_bytes_are_read(text in "\\PC{1,40}", noise: Vec<u8>) {
            let body = serde_json::json!({"message": text}).to_string();
            prop_assert_eq!(fields(body.as_bytes()).unwrap().0, text);
            let _ = fields(&noise);
        }
    }
}
