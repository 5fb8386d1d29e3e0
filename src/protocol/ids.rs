//! Ids that clients choose: checked once at the door, so that none reaches Redis or Kafka unchecked.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// The longest id in bytes (all allowed characters are one byte).
pub const MAX_ID_LEN: usize = 128;

/// Whether `id` is a session or user id: `[A-Za-z0-9._@+=~-]{1,128}`, and neither `.` nor `..`.
pub fn is_valid_id(id: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._@+=~-".contains(&b);
    (1..=MAX_ID_LEN).contains(&id.len()) && id.bytes().all(allowed) && id != "." && id != ".."
}

/// A session's id, shared by everything that belongs to the session.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SessionId(Arc<str>);

/// A user's id within a session.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct UserId(Arc<str>);

macro_rules! id_type {
    ($name:ident) => {
        impl $name {
            /// Takes a valid id; `None` for any other text.
            pub fn parse(id: &str) -> Option<Self> {
                is_valid_id(id).then(|| Self(id.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        // `str` hashes as the id does, so that a map is asked without making an id.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
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

/// Whether `id` is a UUID in its hyphenated form, as `SESSION_ID_FORMAT=uuid` asks.
pub fn is_uuid(id: &str) -> bool {
    id.len() == 36 && uuid::Uuid::try_parse(id).is_ok()
}

/// What a user is in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UserType {
    Customer,
    Agent,
    /// An observer: receives everything, is listed, counted in neither total.
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

    #[test]
    fn ids_as_the_contract_writes_them() {
        for good in [
            "session_123",
            "123",
            "a",
            "a.b@c+d=e~f-g",
            "...",
            "018f4e3a-7c1e-7000-8000-000000000000",
        ] {
            assert!(is_valid_id(good), "{good}");
        }
        let long = "x".repeat(MAX_ID_LEN + 1);
        for bad in [
            "", ".", "..", "a/b", "a b", "a\0", "é", "a%2f", "a:b", "{a}", "a\n", &long,
        ] {
            assert!(!is_valid_id(bad), "{bad:?}");
        }
        assert!(is_valid_id(&long[1..]));
    }

    #[test]
    fn only_hyphenated_uuids_are_uuids() {
        assert!(is_uuid("018f4e3a-7c1e-7000-8000-000000000000"));
        assert!(!is_uuid("018f4e3a7c1e70008000000000000000"));
        assert!(!is_uuid("session_123"));
    }

    proptest! {
        #[test]
        fn an_id_never_needs_escaping(id in any::<String>()) {
            if is_valid_id(&id) {
                prop_assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
                let special = id.contains([':', '/', '{', '}', '%', '*']);
                prop_assert!(!special);
            }
        }
    }
}
