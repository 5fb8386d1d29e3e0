//! Whether a record has the message with some id: the id is in its JSON, which nothing else here reads.

use std::fmt;

use memchr::memmem;
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::protocol::frame;
use crate::protocol::record::{Converter, Form};

/// How much of a record is read first: in those of our nodes the id comes before all that a client has written, so a
/// search costs the same however long the messages are.
const HEAD: usize = 1_024;

/// Where the id is: in a frame's payload, and in a legacy record.
const IN_FRAME: &[&str] = &["data", "message_id"];
const IN_LEGACY: &[&str] = &["id"];

/// Searches records for one id.
pub struct IdSearch<'i> {
    id: &'i str,
    /// Others may be escaped in JSON.
    is_plain: bool,
    converter: Option<Converter>,
    /// How many bytes of records that do not begin with their id may still be read.
    left: usize,
}

/// Too many bytes would have to be read.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl<'i> IdSearch<'i> {
    /// Without a limit.
    pub fn new(id: &'i str) -> Self {
        Self::within(id, usize::MAX)
    }

    /// Reads at most so many bytes of records that do not begin with their id.
    pub fn within(id: &'i str, most: usize) -> Self {
        Self {
            id,
            is_plain: id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:~".contains(&byte)),
            converter: None,
            left: most,
        }
    }

    /// Whether the message in a record has this id.
    ///
    /// # Errors
    ///
    /// There is no saying within the limit.
    pub fn is_in(&mut self, form: Form, bytes: &[u8]) -> Result<bool, TooLong> {
        let (text, path) = match form {
            Form::Legacy => (bytes, IN_LEGACY),
            Form::Native | Form::Unknown => (frame::payload(bytes), IN_FRAME),
        };
        if let Some(id) = first_id(&text[..text.len().min(HEAD)], path) {
            return Ok(id == self.id);
        }
        self.left = self.left.checked_sub(text.len()).ok_or(TooLong)?;
        let may_have_it = !self.is_plain || memmem::find(text, self.id.as_bytes()).is_some();
        Ok(may_have_it && self.whole(form, text).as_deref() == Some(self.id))
    }

    /// The id of a record, wherever it is.
    fn whole(&mut self, form: Form, text: &[u8]) -> Option<String> {
        let converted;
        let payload = if form == Form::Legacy {
            converted = self.converter.get_or_insert_default().payload(text)?;
            &converted[..]
        } else {
            text
        };
        let raw = find(payload, IN_FRAME)?.get();
        // A legacy id may be a number. Anything else is no id: whoever asks for what follows `null` has seen no message.
        let number = || raw.parse::<serde_json::Number>().is_ok().then(|| raw.to_owned());
        serde_json::from_str::<String>(raw).ok().or_else(number)
    }
}

/// The id in the beginning of a record, if it is a string that ends there: a number may go on.
fn first_id(head: &[u8], path: &[&str]) -> Option<String> {
    serde_json::from_str(find(head, path)?.get()).ok()
}

/// The first value at this path. What follows it is not read.
fn find<'t>(text: &'t [u8], path: &[&str]) -> Option<&'t RawValue> {
    let mut found = None;
    let mut reader = serde_json::Deserializer::from_slice(text);
    // It ends with an error when the value is found.
    let _ = Find {
        path,
        found: &mut found,
    }
    .deserialize(&mut reader);
    found
}

struct Find<'a, 't> {
    path: &'a [&'a str],
    found: &'a mut Option<&'t RawValue>,
}

impl<'t> DeserializeSeed<'t> for Find<'_, 't> {
    type Value = ();

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            *self.found = Some(<&RawValue>::deserialize(deserializer)?);
            return Err(D::Error::custom("found"));
        }
        deserializer.deserialize_map(self)
    }
}

impl<'t> Visitor<'t> for Find<'_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Key(self.path[0]))? {
            if key {
                map.next_value_seed(Find {
                    path: &self.path[1..],
                    found: &mut *self.found,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Compares a key without keeping it.
struct Key<'a>(&'a str);

impl<'t> DeserializeSeed<'t> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_in(form: Form, text: &str, id: &str) -> bool {
        let framed = match form {
            Form::Legacy => text.as_bytes().to_vec(),
            Form::Native | Form::Unknown => frame::text(text.as_bytes()).to_vec(),
        };
        IdSearch::new(id).is_in(form, &framed).unwrap()
    }

    #[test]
    fn an_id_is_found_wherever_it_is() {
        let long = "x".repeat(2 * HEAD);
        for (text, id, expected) in [
            (r#"{"type":"new_message","data":{"message_id":"m1"}}"#, "m1", true),
            (r#"{"type":"new_message","data":{"message_id":"m1"}}"#, "m", false),
            // Only the id counts, not that it occurs.
            (r#"{"data":{"message_id":"m1","message":"m2"}}"#, "m2", false),
            (r#"{"message_id":"m1","data":{"message":"x"}}"#, "m1", false),
            (r#"{"data":{"x":{"message_id":"m1"}}}"#, "m1", false),
            (r#"{"data":{"message_id":"a\nb"}}"#, "a\nb", true),
            (r#"{"data":{"message_id":7}}"#, "7", true),
            (r#"{"data":{"message_id":null}}"#, "null", false),
            (r#"{"data":["message_id","m1"]}"#, "m1", false),
            ("message_id m1", "m1", false),
            // Beyond the beginning.
            (
                &format!(r#"{{"x":"{long}","data":{{"message_id":"m1"}}}}"#),
                "m1",
                true,
            ),
            (
                &format!(r#"{{"x":"{long}","data":{{"message_id":"a\nb"}}}}"#),
                "a\nb",
                true,
            ),
            (
                &format!(r#"{{"x":"{long}","data":{{"message_id":"m1"}}}}"#),
                "x",
                false,
            ),
        ] {
            assert_eq!(is_in(Form::Native, text, id), expected, "{id} in {text}");
        }
    }

    #[test]
    fn a_number_at_the_end_of_the_beginning_may_go_on() {
        let start = r#"{"x":""#;
        let middle = r#"","data":{"message_id":"#;
        for cut in 1..4 {
            let fill = "x".repeat(HEAD - start.len() - middle.len() - cut);
            let text = format!("{start}{fill}{middle}12345}}}}");
            assert!(is_in(Form::Native, &text, "12345"), "{cut}");
            assert!(!is_in(Form::Native, &text, &"12345"[..cut]), "{cut}");
        }
    }

    #[test]
    fn legacy_records_are_searched_as_they_are_delivered() {
        let record = |id: &str| {
            format!(
                r#"{{"id":{id},"session_id":"s","sender_id":"u","sender_type":"agent","message":"hello","message_type":"text",
                "attachments":[],"read_at":null,"created_at":"T","updated_at":"T"}}"#
            )
        };
        assert!(is_in(Form::Legacy, &record(r#""m1""#), "m1"));
        assert!(is_in(Form::Legacy, &record("17"), "17"));
        assert!(!is_in(Form::Legacy, &record("17"), "1"));
        assert!(!is_in(Form::Legacy, &record(r#""m1""#), "hello"));
        // A lone surrogate is delivered as U+FFFD.
        assert!(is_in(Form::Legacy, &record(r#""m\ud800""#), "m\u{fffd}"));
    }

    #[test]
    fn long_records_cost_little_if_they_begin_with_their_id() {
        let ours = format!(
            r#"{{"data":{{"message_id":"m1","message":"{}"}}}}"#,
            "m2 ".repeat(20_000)
        );
        let late = format!(
            r#"{{"data":{{"message":"{}","message_id":"m1"}}}}"#,
            "m2 ".repeat(20_000)
        );
        let (ours, late) = (frame::text(ours.as_bytes()), frame::text(late.as_bytes()));
        let mut search = IdSearch::within("m2", 100_000);
        for _ in 0..1_000 {
            assert_eq!(search.is_in(Form::Native, &ours), Ok(false));
        }
        assert_eq!(search.is_in(Form::Native, &late), Ok(false));
        assert_eq!(search.is_in(Form::Native, &late), Err(TooLong));
    }
}
