//! The client's ids on a frame, by which it recognizes the answer: `request_id`, and `client_message_id` in `data`.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The longest `request_id`, `client_message_id` and `message_type`, in bytes, since they are echoed and kept.
pub const MAX_TOKEN_LEN: usize = 128;

/// A string of at most 128 bytes or an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RequestId<'i> {
    Text(&'i str),
    Number(i64),
}

/// The ids of a frame that its answer, or `error`, repeats, as far as they could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Correlation<'i> {
    pub request_id: Option<RequestId<'i>>,
    pub client_message_id: Option<&'i str>,
}

/// [`RequestId`], kept until a later answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum OwnedRequestId {
    Text(Box<str>),
    Number(i64),
}

/// [`Correlation`], kept until a later answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedCorrelation {
    request_id: Option<OwnedRequestId>,
    client_message_id: Option<Box<str>>,
}

impl Correlation<'_> {
    pub fn to_owned(self) -> OwnedCorrelation {
        OwnedCorrelation {
            request_id: self.request_id.map(|id| match id {
                RequestId::Text(text) => OwnedRequestId::Text(text.into()),
                RequestId::Number(number) => OwnedRequestId::Number(number),
            }),
            client_message_id: self.client_message_id.map(Into::into),
        }
    }
}

impl OwnedCorrelation {
    pub fn as_ref(&self) -> Correlation<'_> {
        Correlation {
            request_id: self.request_id.as_ref().map(|id| match id {
                OwnedRequestId::Text(text) => RequestId::Text(text),
                OwnedRequestId::Number(number) => RequestId::Number(*number),
            }),
            client_message_id: self.client_message_id.as_deref(),
        }
    }
}

/// Whether a `request_id` is short enough.
pub fn is_request_id(text: &str) -> bool {
    text.len() <= MAX_TOKEN_LEN
}

/// Whether a `client_message_id` or `message_type` is neither empty nor too long.
pub fn is_token(text: &str) -> bool {
    (1..=MAX_TOKEN_LEN).contains(&text.len())
}

/// Reads the ids of a frame that is not JSON by our rules, up to the first syntax error, without limits on depth or
/// numbers. Ids and duplicate keys are treated as in every other frame.
pub fn salvage(text: &[u8]) -> OwnedCorrelation {
    let mut found = OwnedCorrelation::default();
    // An error is expected: what was read before it is kept.
    let _ = serde_json::Deserializer::from_slice(text).deserialize_map(Frame(&mut found));
    found
}

struct Frame<'a>(&'a mut OwnedCorrelation);

impl<'de> Visitor<'de> for Frame<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "request_id" => {
                    let id = serde_json::from_str(map.next_value::<&RawValue>()?.get()).ok();
                    let is_id = |id: &OwnedRequestId| match id {
                        OwnedRequestId::Text(text) => is_request_id(text),
                        OwnedRequestId::Number(_) => true,
                    };
                    self.0.request_id = id.filter(is_id);
                }
                "data" => {
                    self.0.client_message_id = None;
                    map.next_value_seed(Data(&mut self.0.client_message_id))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct Data<'a>(&'a mut Option<Box<str>>);

impl<'de> DeserializeSeed<'de> for Data<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Values that are not objects have no ids and are skipped.
impl<'de> Visitor<'de> for Data<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame's data")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "client_message_id" {
                let id = serde_json::from_str::<Box<str>>(map.next_value::<&RawValue>()?.get()).ok();
                *self.0 = id.filter(|id| is_token(id));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_before_the_syntax_error_are_read() {
        let (r, c) = (Some(RequestId::Text("r\n")), Some("c"));
        let whole = r#"{"request_id":"r\n","x":[[]],"data":{"y":1e999,"client_message_id":"c"}} "#;
        let (after_request, after_client) = (whole.find(",\"x").unwrap(), whole.find("}} ").unwrap());
        for end in 0..whole.len() {
            let found = salvage(&whole.as_bytes()[..end]);
            let expected = Correlation {
                request_id: r.filter(|_| end >= after_request),
                client_message_id: c.filter(|_| end >= after_client),
            };
            assert_eq!(found.as_ref(), expected, "{}", &whole[..end]);
        }
        for number in ["-7", "9223372036854775807"] {
            let found = salvage(format!(r#"{{"request_id":{number},"#).as_bytes());
            let number = number.parse().unwrap();
            assert_eq!(found.as_ref().request_id, Some(RequestId::Number(number)));
        }
    }

    #[test]
    fn values_that_are_not_ids_are_ignored() {
        let long = "x".repeat(MAX_TOKEN_LEN + 1);
        for id in [
            "{}",
            "[1]",
            "true",
            "null",
            "1.5",
            "1e999",
            "9223372036854775808",
            &format!("\"{long}\""),
        ] {
            let text = format!(
                r#"{{"request_id":"r","request_id":{id},"data":{{"client_message_id":"c","client_message_id":{id},"x":"#
            );
            assert_eq!(salvage(text.as_bytes()), OwnedCorrelation::default(), "{id}");
        }
        for text in [
            "",
            "[1]",
            "\"request_id\"",
            "{",
            r#"{'request_id':"r"}"#,
            r#"{"data":[{"client_message_id":"c"}]}"#,
        ] {
            assert_eq!(salvage(text.as_bytes()), OwnedCorrelation::default(), "{text}");
        }
        for data in [
            "null",
            "true",
            "-1",
            "1",
            "0.5",
            "\"c\"",
            "[[],{}]",
            "{}",
            "{\"c\":1e999}",
        ] {
            let text = format!(r#"{{"data":{data},"request_id":"r","x":tru"#);
            let found = salvage(text.as_bytes());
            assert_eq!(found.as_ref().request_id, Some(RequestId::Text("r")), "{text}");
        }
        let deep = format!(
            r#"{{"x":{},"request_id":"r","#,
            "[".repeat(50_000) + &"]".repeat(50_000)
        );
        assert_eq!(
            salvage(deep.as_bytes()).as_ref().request_id,
            Some(RequestId::Text("r"))
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in r#"[\[\]{}:,"\\u0-9a-f. -]{0,64}"#, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            salvage(text.as_bytes());
            salvage(&bytes);
        }
    }
}
