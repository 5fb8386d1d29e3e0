//! The header `livechat-client-id`: by which id its sender knows a message.
//!
//! Its value is `<user_id>/<client_message_id>`. A user id contains no `/`, so that the first one separates them. Control
//! characters, `%` and what is not ASCII are percent-encoded; readers decode both parts, so that whatever else a producer
//! encodes makes no difference.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};

/// The longest value that is read, in bytes; ours have at most 769.
const MAX_LEN: usize = 1024;

const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The value for a user's message.
pub fn encode(user_id: &str, client_message_id: &str) -> String {
    format!(
        "{}/{}",
        utf8_percent_encode(user_id, ENCODED),
        utf8_percent_encode(client_message_id, ENCODED)
    )
}

/// User id and client message id; `None` for a value that is too long or has no client message id, which is ignored.
pub fn decode(value: &[u8]) -> Option<[Cow<'_, [u8]>; 2]> {
    if value.len() > MAX_LEN {
        return None;
    }
    let slash = memchr::memchr(b'/', value)?;
    let (user_id, client_message_id) = (&value[..slash], &value[slash + 1..]);
    // Without a percent sign, they are borrowed.
    (!client_message_id.is_empty())
        .then(|| [user_id, client_message_id].map(|part| percent_decode(part).into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_slash_separates() {
        assert_eq!(encode("auth0|1", "a/b c"), "auth0|1/a/b c");
        assert_eq!(encode("José", "100%\n\u{7f}"), "Jos%C3%A9/100%25%0A%7F");
        assert_eq!(encode("", "key"), "/key");
        let decoded = decode(b"u/a/b%2Fc%zz").unwrap();
        assert_eq!((&*decoded[0], &*decoded[1]), (&b"u"[..], &b"a/b/c%zz"[..]));
        assert!(matches!(
            decode(b"u/a/b"),
            Some([Cow::Borrowed(_), Cow::Borrowed(_)])
        ));
    }

    #[test]
    fn what_names_no_message_is_ignored() {
        for value in ["", "u", "u/", "/"] {
            assert_eq!(decode(value.as_bytes()), None, "{value}");
        }
        let long = format!("u/{}", "x".repeat(MAX_LEN - 2));
        assert!(decode(long.as_bytes()).is_some());
        assert_eq!(decode(format!("{long}x").as_bytes()), None);
    }

    proptest! {
        #[test]
        fn a_value_is_read_as_it_was_written(user in "[^/]{0,40}", id in ".{1,40}") {
            let value = encode(&user, &id);
            prop_assert!(value.bytes().all(|byte| (b' '..0x7f).contains(&byte)), "{value}");
            let decoded = decode(value.as_bytes()).unwrap();
            prop_assert_eq!((&*decoded[0], &*decoded[1]), (user.as_bytes(), id.as_bytes()));
        }
    }
}
