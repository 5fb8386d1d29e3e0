//! Unpaired surrogates in JSON text: half a character, as `"cut 😀".slice(0, 5)` leaves behind in JavaScript.
//!
//! No UTF-8 string can contain one, so parsers reject the whole text. Go's `encoding/json`, which the old server used,
//! reads U+FFFD instead, and so does this server. The escape is as long as `\ufffd` and is replaced in place.

const REPLACEMENT: &[u8; 6] = b"\\ufffd";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    High,
    Low,
}

/// Replaces the escape of each unpaired surrogate. Returns whether the text has any escapes; one without costs only a
/// search for a backslash.
pub fn replace_unpaired(text: &mut [u8]) -> bool {
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        at += found;
        at += match surrogate(&text[at..]) {
            // At least two bytes: the second backslash of `\\` does not start an escape.
            None => 2,
            Some(Half::High) if surrogate(&text[at + REPLACEMENT.len()..]) == Some(Half::Low) => 12,
            Some(_) => {
                text[at..at + REPLACEMENT.len()].copy_from_slice(REPLACEMENT);
                REPLACEMENT.len()
            }
        };
    }
    at > 0
}

/// The surrogate whose escape `text` starts with.
fn surrogate(text: &[u8]) -> Option<Half> {
    let [b'\\', b'u', b'd' | b'D', kind, third, fourth, ..] = text else {
        return None;
    };
    if !third.is_ascii_hexdigit() || !fourth.is_ascii_hexdigit() {
        return None;
    }
    match kind {
        b'8' | b'9' | b'a' | b'b' | b'A' | b'B' => Some(Half::High),
        b'c'..=b'f' | b'C'..=b'F' => Some(Half::Low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replaced(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        assert_eq!(replace_unpaired(&mut bytes), text.contains('\\'), "{text}");
        assert_eq!(bytes.len(), text.len());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_unpaired_surrogates_are_replaced() {
        for (text, expected) in [
            ("", ""),
            ("ud83d", "ud83d"),
            (r"\ud83d", r"\ufffd"),
            (r"\uDFFF", r"\ufffd"),
            (r"\uD83d\uDe00", r"\uD83d\uDe00"),
            (r"\ude00\ud83d", r"\ufffd\ufffd"),
            (r"\ud83d\ud83d\ude00", r"\ufffd\ud83d\ude00"),
            (r"\ud83d\\ude00", r"\ufffd\\ude00"),
            (r"\\ud83d", r"\\ud83d"),
            (r"\\\ud83d", r"\\\ufffd"),
            // Not valid escapes: the parser will report an error.
            (r"\ud83", r"\ud83"),
            (r"\ud8 d", r"\ud8 d"),
            (r"\uD83d\ude0", r"\ufffd\ude0"),
            (r"\Ud83d", r"\Ud83d"),
            (r"\", r"\"),
            (r"\u", r"\u"),
        ] {
            assert_eq!(replaced(text), expected, "{text}");
        }
    }

    /// A piece of a JSON string, and the UTF-16 that it stands for.
    fn piece() -> impl Strategy<Value = (String, Vec<u16>)> {
        let escaped = |unit: u16, is_upper: bool| {
            let text = if is_upper {
                format!("\\u{unit:04X}")
            } else {
                format!("\\u{unit:04x}")
            };
            (text, vec![unit])
        };
        let plain = |text: &'static str, meaning: &'static str| {
            Just((text.to_owned(), meaning.encode_utf16().collect::<Vec<_>>()))
        };
        prop_oneof![
            8 => (0xD800u16..0xE000, any::<bool>()).prop_map(move |(unit, upper)| escaped(unit, upper)),
            2 => (any::<u16>(), any::<bool>()).prop_map(move |(unit, upper)| escaped(unit, upper)),
            1 => any::<char>().prop_filter("it would need an escape", |c| *c >= ' ' && !"\"\\".contains(*c))
                .prop_map(|c| (c.to_string(), c.encode_utf16(&mut [0; 2]).to_vec())),
            1 => plain("\\\\", "\\"),
            1 => plain("\\\"", "\""),
            1 => plain("\\n", "\n"),
            1 => plain("ud83d", "ud83d"),
        ]
    }

    proptest! {
        /// The reference is UTF-16 with unpaired surrogates replaced, as in Go: in a value, a key, and nested.
        #[test]
        fn unpaired_surrogates_are_read_as_in_go(pieces in prop::collection::vec(piece(), 0..12)) {
            let text: String = pieces.iter().map(|(text, _)| text.as_str()).collect();
            let units: Vec<u16> = pieces.iter().flat_map(|(_, units)| units.iter().copied()).collect();
            let meaning = String::from_utf16_lossy(&units);
            let json = replaced(&format!(r#"{{"{text}":["{text}",{{"a":"{text}"}}]}}"#));
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read, serde_json::json!({meaning.as_str(): [meaning.as_str(), {"a": meaning.as_str()}]}));
        }

        /// Text that is invalid for another reason stays invalid, and nothing else is changed.
        #[test]
        fn nothing_else_is_changed(text in r#"[\\udD8eE0"a{}]{0,40}"#) {
            let after = replaced(&text);
            let is_lone = |at: usize| after.get(at..at + 6) == Some("\\ufffd");
            let mut at = 0;
            while at < text.len() {
                if text.as_bytes()[at] == after.as_bytes()[at] {
                    at += 1;
                } else {
                    // The first two bytes of an escape are the same.
                    prop_assert!(at >= 2 && is_lone(at - 2), "{} {}", text, after);
                    at += 4;
                }
            }
            if let Ok(before) = serde_json::from_str::<serde_json::Value>(&text) {
                prop_assert_eq!(before, serde_json::from_str::<serde_json::Value>(&after).unwrap());
            }
        }
    }
}
