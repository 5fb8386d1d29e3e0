//! Ids chosen by clients, validated once on input, so that none reaches Redis, Kafka or a log unchecked.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use icu_properties::CodePointMapData;
use icu_properties::props::GeneralCategory;
use serde::Serialize;

/// The longest id, in bytes of UTF-8.
pub const MAX_ID_LEN: usize = 128;

/// The length of a UUID with its hyphens.
const UUID_LEN: usize = 36;

/// A reserved id, which no session may have, and no record.
pub const LOBBY: &str = "@lobby";

/// A session id in its canonical spelling, borrowed if it is already spelled so: looking up a session allocates
/// nothing.
pub enum SessionKey<'a> {
    AsWritten(&'a str),
    /// A UUID that was written with upper-case letters.
    Lowered([u8; UUID_LEN]),
}

impl<'a> SessionKey<'a> {
    /// `[A-Za-z0-9._@+=~-]{1,128}`, not `.`, `..` or [`LOBBY`]; `None` for any other text.
    pub fn parse(id: &'a str) -> Option<Self> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"._@+=~-".contains(&b);
        let is_valid = (1..=MAX_ID_LEN).contains(&id.len())
            && id.bytes().all(is_allowed)
            && !matches!(id, "." | ".." | LOBBY);
        is_valid.then(|| Self::spell(id))
    }

    /// UUIDs are converted to lower case, so that all spellings of one mean the same session.
    fn spell(id: &'a str) -> Self {
        if let Ok(mut lowered) = <[u8; UUID_LEN]>::try_from(id.as_bytes())
            && lowered.iter().any(u8::is_ascii_uppercase)
            && is_uuid(id)
        {
            lowered.make_ascii_lowercase();
            return Self::Lowered(lowered);
        }
        Self::AsWritten(id)
    }
}

impl Deref for SessionKey<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::AsWritten(id) => id,
            // Hexadecimal digits and hyphens.
            Self::Lowered(id) => std::str::from_utf8(id).unwrap_or_default(),
        }
    }
}

/// A session's id, shared by everything that belongs to the session.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Parses a valid id into its canonical spelling; `None` for any other text.
    pub fn parse(id: &str) -> Option<Self> {
        SessionKey::parse(id).map(|key| Self((*key).into()))
    }

    /// [`LOBBY`]: no session, but where agents connect to watch them all.
    pub fn lobby() -> Self {
        Self(LOBBY.into())
    }

    pub fn is_lobby(&self) -> bool {
        *self.0 == *LOBBY
    }
}

/// A session id has only ASCII letters, digits and `._@+=~-`, so it never needs quoting.
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user's id within a session, compared byte for byte. It has no `Display`: choose between [`UserId::as_str`] and
/// [`UserId::in_log`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Parses a valid id; `None` for any other text. An id has 1 to 128 bytes; it contains no control or format
    /// characters, no line or paragraph separators and none of ``/ \ % " < > { } ` ``; it is not `.` or `..`, and does
    /// not start or end with a space.
    pub fn parse(id: &str) -> Option<Self> {
        let is_valid = (1..=MAX_ID_LEN).contains(&id.len())
            && id.chars().all(may_be_in_a_user_id)
            && !matches!(id, "." | "..")
            && !id.starts_with(' ')
            && !id.ends_with(' ');
        is_valid.then(|| Self(id.into()))
    }

    /// The id for text that people read: in quotation marks, which no id contains, if it could be misread.
    pub fn in_log(&self) -> InLog<'_> {
        InLog(&self.0)
    }
}

fn may_be_in_a_user_id(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    if c.is_ascii() {
        return !c.is_ascii_control() && !r#"/\%"<>{}`"#.contains(c);
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(c);
    !matches!(category, Control | Format | LineSeparator | ParagraphSeparator)
}

/// See [`UserId::in_log`].
pub struct InLog<'a>(&'a str);

impl fmt::Display for InLog<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._@+=~|:-".contains(&b);
        if self.0.bytes().all(is_plain) {
            f.write_str(self.0)
        } else {
            write!(f, "\"{}\"", self.0)
        }
    }
}

macro_rules! id_type {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        // `str` hashes as the id does, so a map can be queried without allocating an id.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

id_type!(SessionId);
id_type!(UserId);

/// Whether `id` is a UUID in its hyphenated form, in any case.
pub fn is_uuid(id: &str) -> bool {
    id.len() == UUID_LEN && uuid::Uuid::try_parse(id).is_ok()
}

/// A user's role in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UserType {
    Customer,
    Agent,
    /// An observer: receives everything and is listed, but counts in neither total.
    Admin,
}

impl UserType {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "customer" => Some(Self::Customer),
            "agent" => Some(Self::Agent),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Agent => "agent",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for UserType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(id: &str) -> Option<String> {
        SessionId::parse(id).map(|id| id.to_string())
    }

    fn is_user(id: &str) -> bool {
        UserId::parse(id).is_some_and(|parsed| parsed.as_str() == id)
    }

    #[test]
    fn only_valid_session_ids_are_accepted() {
        let long = "x".repeat(MAX_ID_LEN + 1);
        for good in [
            "session_123",
            "123",
            "a",
            "a.b@c+d=e~f-g",
            "...",
            "@lobby2",
            "@Lobby",
            "018f4e3a-7c1e-7000-8000-000000000000",
            "UPPER",
            "018F4E3A7C1E70008000000000000000",
            &long[1..],
        ] {
            assert_eq!(session(good).as_deref(), Some(good));
        }
        for bad in [
            "", ".", "..", "a/b", "a b", "a\0", "é", "a%2f", "a:b", "{a}", "a\n", "a|b", LOBBY, &long,
        ] {
            assert_eq!(session(bad), None, "{bad:?}");
        }
        assert_eq!(
            session("018F4e3A-7C1E-7abc-8DEF-000000000000").unwrap(),
            "018f4e3a-7c1e-7abc-8def-000000000000"
        );
    }

    #[test]
    fn only_valid_user_ids_are_accepted() {
        let long = "é".repeat(MAX_ID_LEN / 2);
        for good in [
            "auth0|1",
            "user:42",
            "José",
            "Anna Schmidt",
            "...",
            "a*b",
            "@lobby",
            "\u{e000}",
            "\u{a0}",
            "😀",
            &long,
        ] {
            assert!(is_user(good), "{good:?}");
        }
        for bad in [
            "",
            ".",
            "..",
            " a",
            "a ",
            " ",
            "a\tb",
            "\u{7f}",
            "\u{85}",
            "\u{ad}",
            "\u{600}",
            "a\u{200d}b",
            "\u{2028}",
            "\u{2029}",
            "\u{202e}",
            "\u{feff}",
            "\u{e0001}",
        ] {
            assert!(!is_user(bad), "{bad:?}");
        }
        for bad in r#"/\%"<>{}`"#.chars() {
            assert!(!is_user(&format!("a{bad}b")), "{bad:?}");
        }
        assert!(!is_user(&format!("{long}x")));
    }

    #[test]
    fn only_hyphenated_uuids_are_uuids() {
        assert!(is_uuid("018f4e3a-7c1e-7000-8000-000000000000"));
        assert!(is_uuid("018F4E3A-7C1E-7000-8000-000000000000"));
        assert!(!is_uuid("018f4e3a7c1e70008000000000000000"));
        assert!(!is_uuid("018f4e3a-7c1e-7000-8000-00000000000g"));
        assert!(!is_uuid("session_123"));
    }

    #[test]
    fn ids_that_could_be_misread_are_quoted_in_logs() {
        let shown = |id: &str| UserId::parse(id).unwrap().in_log().to_string();
        for plain in ["auth0|1", "user:42", "A.b_c@d+e=f~g-h"] {
            assert_eq!(shown(plain), plain);
        }
        for quoted in ["José", "a b", "a,b", "x=1;y", "(agent)", "'"] {
            assert_eq!(shown(quoted), format!("\"{quoted}\""));
        }
    }

    proptest! {
        /// Compared with the character classes of another library.
        #[test]
        fn user_ids_contain_no_refused_character(
            id in "[^\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}/\\\\%\"<>{}` ]{1,32}",
            inner in "[^\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}/\\\\%\"<>{}`]{0,32}",
            refused in "[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}/\\\\%\"<>{}`]",
            any_id in any::<String>(),
        ) {
            let is_short = |id: &str| id.len() <= MAX_ID_LEN;
            prop_assert_eq!(is_user(&id), is_short(&id) && id != "." && id != "..");
            prop_assert_eq!(is_user(&format!("a{inner}b")), is_short(&format!("a{inner}b")));
            for invalid in [id.clone() + &refused, refused + &id, id.clone() + " ", " ".to_owned() + &id] {
                prop_assert!(!is_user(&invalid));
            }
            for id in [id, any_id] {
                let Some(parsed) = UserId::parse(&id) else { continue };
                // It survives a round trip through JSON and through a path.
                let json = serde_json::to_string(&parsed).unwrap();
                prop_assert_eq!(&serde_json::from_str::<String>(&json).unwrap(), &id);
                let path = percent_encoding::utf8_percent_encode(&id, percent_encoding::NON_ALPHANUMERIC).to_string();
                prop_assert_eq!(percent_encoding::percent_decode_str(&path).decode_utf8().unwrap(), id.as_str());
                let shown = parsed.in_log().to_string();
                prop_assert_eq!(shown.lines().count(), 1);
                prop_assert!(shown == id || shown.trim_matches('"') == id);
            }
        }

        #[test]
        fn a_session_id_never_needs_escaping(id in any::<String>(), likely in "[A-Za-z0-9._@+=~-]{1,40}") {
            prop_assert!(SessionId::parse(&likely).is_some() || matches!(&*likely, "." | ".." | LOBBY));
            for id in [id, likely] {
                if let Some(parsed) = SessionId::parse(&id) {
                    prop_assert_eq!(serde_json::to_string(&parsed).unwrap(), format!("\"{parsed}\""));
                    let special = id.contains([':', '/', '{', '}', '%', '*']);
                    prop_assert!(!special);
                    // It is in its canonical spelling.
                    prop_assert_eq!(SessionId::parse(parsed.as_str()), Some(parsed));
                }
            }
        }

        #[test]
        fn a_uuid_is_one_session_however_it_is_written(bytes in any::<u128>(), capitals in any::<u64>()) {
            let id = uuid::Uuid::from_u128(bytes).to_string();
            let mixed: String = id.chars().enumerate().map(|(at, c)| match capitals >> at & 1 {
                1 => c.to_ascii_uppercase(),
                _ => c,
            }).collect();
            prop_assert_eq!(session(&mixed), Some(id));
        }

        #[test]
        fn an_id_that_is_not_a_uuid_keeps_its_case(id in "[A-F0-9-]{35,37}") {
            prop_assume!(!is_uuid(&id));
            prop_assert_eq!(session(&id), Some(id));
        }
    }
}
