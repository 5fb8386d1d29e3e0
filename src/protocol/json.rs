//! The JSON reader for both client frames and Kafka records, so that the same rules apply to both.
//!
//! - Text is UTF-8, nested at most [`MAX_DEPTH`] deep. Numbers beyond the range of `f64` or of 64-bit integers are
//!   errors, and so is anything after the value (RFC 8259; section 9 allows such limits).
//! - An unpaired surrogate is read as U+FFFD.
//! - Of duplicate keys in what we interpret, the last one wins. Values that are only passed on keep them all.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use simd_json::prelude::*;
use simd_json::tape::{Object, Tape, Value};

use super::surrogates;

/// How deep objects and arrays may nest. The libraries' limits differ (simd-json: 1,024, serde_json: 128).
const MAX_DEPTH: usize = 32;

/// The text is not JSON by our rules. The parser's message is for logs: it may change between versions.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// A parser that reuses its buffers.
pub struct Reader {
    buffers: simd_json::Buffers,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            buffers: simd_json::Buffers::with_max_depth(1024, MAX_DEPTH),
        }
    }
}

impl Reader {
    /// Parses `text` in place: strings in the tape point into it.
    pub fn parse<'a>(&mut self, text: &'a mut [u8]) -> Result<Tape<'a>, JsonError> {
        surrogates::replace_unpaired(text);
        self.parse_paired(text)
    }

    /// [`Reader::parse`] for a text on which [`surrogates::replace_unpaired`] has been called. It changes only strings
    /// with escapes, even when it fails.
    pub fn parse_paired<'a>(&mut self, text: &'a mut [u8]) -> Result<Tape<'a>, JsonError> {
        simd_json::to_tape_with_buffers(text, &mut self.buffers).map_err(|error| JsonError(error.to_string()))
    }
}

/// The top-level object of a tape; `None` for every other type.
pub fn object<'t, 'i>(tape: &'t Tape<'i>) -> Option<Object<'t, 'i>> {
    tape.as_value().as_object()
}

/// A value's string, which lives as long as the parsed text; `None` for every other type.
pub fn text<'i>(value: Value<'_, 'i>) -> Option<&'i str> {
    value.into_string()
}

/// A value that is passed on by value: it means the same, though its white space and number spelling may change.
#[derive(Clone, Copy)]
pub struct Passthrough<'t, 'i>(pub Value<'t, 'i>);

impl Serialize for Passthrough<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = self.0;
        if let Some(text) = value.as_str() {
            serializer.serialize_str(text)
        } else if let Some(object) = value.as_object() {
            let mut map = serializer.serialize_map(Some(object.len()))?;
            for (key, value) in object.iter() {
                map.serialize_entry(key, &Passthrough(value))?;
            }
            map.end()
        } else if let Some(array) = value.as_array() {
            let mut seq = serializer.serialize_seq(Some(array.len()))?;
            for value in array.iter() {
                seq.serialize_element(&Passthrough(value))?;
            }
            seq.end()
        } else if let Some(flag) = value.as_bool() {
            serializer.serialize_bool(flag)
        } else if let Some(number) = value.as_i64() {
            serializer.serialize_i64(number)
        } else if let Some(number) = value.as_u64() {
            serializer.serialize_u64(number)
        } else if let Some(number) = value.as_f64() {
            serializer.serialize_f64(number)
        } else {
            serializer.serialize_unit()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<String, JsonError> {
        let mut buffer = text.as_bytes().to_vec();
        let tape = Reader::default().parse(&mut buffer)?;
        Ok(serde_json::to_string(&Passthrough(tape.as_value())).unwrap())
    }

    #[test]
    fn values_pass_unchanged() {
        for text in [
            r#"{"a":[1,-2,18446744073709551615,1.5,true,false,null],"b":{"c":"\u0000\"\\ü😀"}}"#,
            r#"{"a":1,"a":2}"#,
            "[]",
            "{}",
        ] {
            assert_eq!(read(text).unwrap(), text);
        }
        assert_eq!(read(r#" { "a" : "\ud83d\ude00" } "#).unwrap(), r#"{"a":"😀"}"#);
        assert_eq!(
            read(r#"{"\ud83d":"\uDE00\uD83D","a":"\ud83d\u0041"}"#).unwrap(),
            "{\"\u{FFFD}\":\"\u{FFFD}\u{FFFD}\",\"a\":\"\u{FFFD}A\"}"
        );
    }

    #[test]
    fn invalid_or_excessive_json_is_refused() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(read(&deep(MAX_DEPTH)).is_ok());
        assert!(read(&deep(MAX_DEPTH + 1)).is_err());
        assert!(read(&deep(10_000)).is_err());
        for text in [
            "",
            " ",
            "{",
            r#"{"a":1}}"#,
            r#"{"a":1} x"#,
            "1e999",
            "-1e999",
            "{'a':1}",
            r#""\ud80""#,
            r#""\ud800\u""#,
            "123456789012345678901234567890",
            "01",
            "NaN",
            "\"\u{1}\"",
            r#"{"a":1,}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(Reader::default().parse(&mut [b'"', 0xFF, b'"']).is_err());
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
                prop::collection::hash_map(any::<String>(), inner, 0..8)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(value in json()) {
            let passed: serde_json::Value = serde_json::from_str(&read(&value.to_string()).unwrap()).unwrap();
            prop_assert_eq!(passed, value);
        }

        #[test]
        fn never_panics(mut text in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Reader::default().parse(&mut text);
        }

        #[test]
        fn never_panics_on_json_like_text(text in r#"[\[\]{}:,"\\u0-9a-fe+. -]{0,64}"#) {
            let _ = Reader::default().parse(&mut text.into_bytes());
        }
    }
}
