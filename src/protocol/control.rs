//! Control records: a user is disconnected from a session, and perhaps refused there until some time.
//!
//! The key is `<session_id>/<user_id>`: neither has a slash. The value is
//! `{"id":"…","at":"2026-01-31T09:30:00.000Z","until":"2026-01-31T09:40:00.000Z"}`: a UUID, when it was asked for, and
//! until when the user is refused, or null. The last record of a key is all that counts: a topic of them may be
//! compacted. Without a value (a tombstone), it only ends a refusal.
//!
//! A record that leaves a refusal as it is has a key of its own, `<session_id>/<user_id>/close`, so that compaction
//! never removes a refusal for it. Its `until` is null and means nothing.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::{SessionId, UserId};
use super::record::Poison;
use super::{encode, format_timestamp};

/// What follows the user in the key of a record that only closes connections.
const CLOSE: &str = "/close";

/// What becomes of a user's refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It stays as it is.
    Stays,
    Ends,
    /// It lasts until then, in milliseconds since 1970.
    Until(i64),
}

impl Refusal {
    pub fn until(self) -> Option<i64> {
        match self {
            Self::Until(until) => Some(until),
            Self::Stays | Self::Ends => None,
        }
    }
}

/// A record that asks for this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// By which the node that wrote it recognizes it.
    pub id: Uuid,
    pub session_id: SessionId,
    pub user_id: UserId,
    /// When it was asked for, in milliseconds since 1970; 0: never, it only ends a refusal.
    pub at: i64,
    pub refusal: Refusal,
}

#[derive(Serialize, Deserialize)]
struct Value {
    id: Option<String>,
    at: String,
    until: Option<String>,
}

/// The key of a user in a session.
pub fn key(session_id: &str, user_id: &str) -> String {
    format!("{session_id}/{user_id}")
}

impl Disconnect {
    pub fn new(session_id: &SessionId, user_id: &UserId, at: i64, refusal: Refusal) -> Self {
        Self {
            id: Uuid::now_v7(),
            session_id: session_id.clone(),
            user_id: user_id.clone(),
            at,
            refusal,
        }
    }

    /// Of the record.
    pub fn key(&self) -> String {
        let key = self.user_key();
        match self.refusal {
            Refusal::Stays => key + CLOSE,
            Refusal::Ends | Refusal::Until(_) => key,
        }
    }

    /// Of the user in the session.
    pub fn user_key(&self) -> String {
        key(self.session_id.as_str(), self.user_id.as_str())
    }

    pub fn value(&self) -> Option<Vec<u8>> {
        encode(&Value {
            id: Some(self.id.to_string()),
            at: time_text(self.at),
            until: self.refusal.until().map(time_text),
        })
    }

    /// # Errors
    ///
    /// Why it is no such record.
    pub fn read(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Self, Poison> {
        let key = key.and_then(|key| std::str::from_utf8(key).ok());
        let (session_id, user_id) = key.and_then(|key| key.split_once('/')).ok_or(Poison::BadKey)?;
        let (user_id, closes) = match user_id.strip_suffix(CLOSE) {
            Some(user_id) => (user_id, true),
            None => (user_id, false),
        };
        let (session_id, user_id) = (SessionId::parse(session_id), UserId::parse(user_id));
        let (Some(session_id), Some(user_id)) = (session_id, user_id) else {
            return Err(Poison::BadKey);
        };
        let (mut id, mut at, mut until) = (None, 0, None);
        if let Some(value) = value {
            let value = std::str::from_utf8(value).map_err(|_| Poison::NotUtf8)?;
            let value: Value = serde_json::from_str(value).map_err(|error| match error.classify() {
                serde_json::error::Category::Data => Poison::MissingField,
                _ => Poison::NotJson,
            })?;
            id = value.id.and_then(|id| Uuid::try_parse(&id).ok());
            at = time(&value.at)?;
            until = value.until.as_deref().map(time).transpose()?;
        }
        Ok(Self {
            id: id.unwrap_or_default(),
            session_id,
            user_id,
            at,
            refusal: match until {
                _ if closes => Refusal::Stays,
                Some(until) => Refusal::Until(until),
                None => Refusal::Ends,
            },
        })
    }
}

fn time(text: &str) -> Result<i64, Poison> {
    let at: Timestamp = text.parse().map_err(|_| Poison::MissingField)?;
    Ok(at.as_millisecond())
}

/// Milliseconds since 1970 as the wire shows them.
pub fn time_text(unix_ms: i64) -> String {
    format_timestamp(Timestamp::from_millisecond(unix_ms).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn disconnect(refusal: Refusal) -> Disconnect {
        let (session_id, user_id) = (SessionId::parse("s"), UserId::parse("José a"));
        Disconnect::new(
            &session_id.unwrap(),
            &user_id.unwrap(),
            1_700_000_000_000,
            refusal,
        )
    }

    fn read(key: &str, value: &str) -> Result<Disconnect, Poison> {
        Disconnect::read(Some(key.as_bytes()), Some(value.as_bytes()))
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for (refusal, key) in [
            (Refusal::Ends, "s/José a"),
            (Refusal::Until(1_700_000_600_123), "s/José a"),
            (Refusal::Stays, "s/José a/close"),
        ] {
            let written = disconnect(refusal);
            assert_eq!(
                (written.key(), written.user_key()),
                (key.into(), "s/José a".into())
            );
            let value = written.value().unwrap();
            assert_eq!(
                read(&written.key(), std::str::from_utf8(&value).unwrap()),
                Ok(written)
            );
        }
        let value = disconnect(Refusal::Ends).value().unwrap();
        let text = String::from_utf8(value).unwrap();
        assert!(
            text.ends_with(r#""at":"2023-11-14T22:13:20.000Z","until":null}"#),
            "{text}"
        );
    }

    #[test]
    fn others_may_leave_out_the_id_and_a_tombstone_ends_a_refusal() {
        let theirs = read("s/u", r#"{"at":"2023-11-14T22:13:20Z","by":"another service"}"#).unwrap();
        assert_eq!((theirs.at, theirs.refusal), (1_700_000_000_000, Refusal::Ends));
        let tombstone = Disconnect::read(Some(b"s/u"), None).unwrap();
        assert_eq!((tombstone.at, tombstone.refusal), (0, Refusal::Ends));
        for value in [
            r#"{"at":"2023-11-14T22:13:20Z","until":"2023-11-14T22:13:21Z"}"#,
            r#"{"at":"2023-11-14T22:13:20Z"}"#,
        ] {
            assert_eq!(
                read("s/u/close", value).unwrap().refusal,
                Refusal::Stays,
                "{value}"
            );
        }
    }

    #[test]
    fn anything_else_is_poison() {
        let good = r#"{"at":"2023-11-14T22:13:20Z"}"#;
        for key in [
            "",
            "s",
            "/",
            "s/",
            "/u",
            "s/u/v",
            "s//close",
            "s/u/close/close",
            "a b/u",
            "@lobby/u",
        ] {
            assert_eq!(read(key, good), Err(Poison::BadKey), "{key}");
        }
        assert_eq!(Disconnect::read(None, Some(good.as_bytes())), Err(Poison::BadKey));
        assert_eq!(
            Disconnect::read(Some(b"s/u"), Some(b"\xff")),
            Err(Poison::NotUtf8)
        );
        for (value, poison) in [
            ("", Poison::NotJson),
            ("{} x", Poison::MissingField),
            ("[]", Poison::MissingField),
            ("{}", Poison::MissingField),
            (r#"{"at":7}"#, Poison::MissingField),
            (r#"{"at":"soon"}"#, Poison::MissingField),
            (
                r#"{"at":"2023-11-14T22:13:20Z","until":"later"}"#,
                Poison::MissingField,
            ),
        ] {
            assert_eq!(read("s/u", value), Err(poison), "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(key: Vec<u8>, value: Vec<u8>) {
            let _ = Disconnect::read(Some(&key), Some(&value));
            let _ = Disconnect::read(Some(b"s/u"), Some(&value));
        }
    }
}
