//! Read receipts: how far a user has read, as clients, records and Redis show it.

use bytes::Bytes;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::correlation::is_token;
use super::encode;
use super::frame;
use super::ids::{SessionId, UserId};
use super::server;

/// The most users in one `read_state`.
pub const MAX_LISTED_READERS: usize = 100;
/// The type of a receipt, in frames and records.
pub(super) const READ_RECEIPT: &str = "read_receipt";

/// Where a message is in its session's order.
///
/// For a UUIDv7 (RFC 9562, section 5.7) it is the id itself, which starts with the time; for other ids it is made from
/// the record's timestamp and offset. So positions of both kinds can be compared, as far as the clocks agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadPosition(u128);

impl ReadPosition {
    /// The position of a message whose id is a UUIDv7.
    pub fn of_id(id: &str) -> Option<Self> {
        // Only as it is in messages: other spellings of the same UUID are other ids.
        if id.len() != uuid::fmt::Hyphenated::LENGTH {
            return None;
        }
        let id = uuid::Uuid::try_parse(id).ok()?;
        (id.get_version_num() == 7).then(|| Self(id.as_u128()))
    }

    /// The position of another message: its record's timestamp, in milliseconds since 1970, and offset.
    pub fn of_record(time: i64, offset: i64) -> Self {
        // Below the version digit of a UUIDv7 of the same millisecond.
        const MAX_OFFSET: i64 = (1 << 60) - 1;
        let unsigned = |number: i64| u128::from(number.max(0).unsigned_abs());
        Self((unsigned(time) << 80) | (unsigned(offset.min(MAX_OFFSET)) << 16))
    }

    /// In milliseconds since 1970.
    pub fn time(self) -> i64 {
        (self.0 >> 80) as i64
    }

    /// See [`fmt::Display`](std::fmt::Display).
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok()?;
        is_hex.then_some(Self(number))
    }
}

impl std::fmt::Display for ReadPosition {
    /// 32 digits, so that texts compare as positions do.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// How far a user has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadUpTo {
    pub position: ReadPosition,
    /// The id of the newest message that was read.
    pub message_id: Box<str>,
}

impl ReadUpTo {
    pub fn is_after(&self, other: &Self) -> bool {
        self.position > other.position
    }
}

/// A user has read up to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub session_id: SessionId,
    pub user_id: UserId,
    pub user_type: String,
    pub up_to: ReadUpTo,
    pub timestamp: String,
}

/// What frame and record have in common.
#[derive(Serialize)]
struct Data<'a> {
    session_id: &'a SessionId,
    user_id: &'a UserId,
    user_type: &'a str,
    up_to: &'a str,
    timestamp: &'a str,
}

impl Receipt {
    fn data(&self) -> Data<'_> {
        Data {
            session_id: &self.session_id,
            user_id: &self.user_id,
            user_type: &self.user_type,
            up_to: &self.up_to.message_id,
            timestamp: &self.timestamp,
        }
    }

    /// As it is kept in Redis: position, user type, time and message id.
    pub fn stored(&self) -> String {
        let ReadUpTo { position, message_id } = &self.up_to;
        format!("{position} {} {} {message_id}", self.user_type, self.timestamp)
    }

    /// What [`Self::stored`] has kept of a user.
    pub fn of_stored(session_id: &SessionId, user_id: UserId, text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        let position = ReadPosition::parse(parts.next()?)?;
        let (user_type, timestamp) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let message_id = parts.next().filter(|id| is_token(id))?.into();
        Some(Self {
            session_id: session_id.clone(),
            user_id,
            user_type,
            up_to: ReadUpTo { position, message_id },
            timestamp,
        })
    }

    /// The frame `read_receipt`.
    pub fn frame(&self) -> Option<Bytes> {
        server::converted(READ_RECEIPT, self.data()).map(|payload| frame::text(&payload))
    }

    /// The value of the record by which other nodes learn of it.
    pub fn record_value(&self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Record<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            #[serde(flatten)]
            data: Data<'a>,
            position: String,
        }
        encode(&Record {
            kind: READ_RECEIPT,
            data: self.data(),
            position: self.up_to.position.to_string(),
        })
    }
}

/// The frame `read_state`: how far each user has read.
pub fn read_state(session_id: &SessionId, read: &[(UserId, ReadUpTo)]) -> Option<Bytes> {
    struct Read<'a>(&'a [(UserId, ReadUpTo)]);
    impl Serialize for Read<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.0.len()))?;
            for (user_id, up_to) in self.0 {
                map.serialize_entry(user_id.as_str(), &up_to.message_id)?;
            }
            map.end()
        }
    }
    #[derive(Serialize)]
    struct State<'a> {
        session_id: &'a SessionId,
        read: Read<'a>,
    }
    let read = Read(read);
    server::converted("read_state", State { session_id, read }).map(|payload| frame::text(&payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::record::{Converter, Ephemeral, Poison};

    fn receipt(message_id: &str, position: ReadPosition) -> Receipt {
        Receipt {
            session_id: SessionId::parse("s").unwrap(),
            user_id: UserId::parse("u").unwrap(),
            user_type: "agent".into(),
            up_to: ReadUpTo {
                position,
                message_id: message_id.into(),
            },
            timestamp: "2026-01-31T09:30:00.000Z".into(),
        }
    }

    #[test]
    fn ids_with_a_time_and_records_share_one_order() {
        let of = |id| ReadPosition::of_id(id).unwrap();
        let older = of("018f4e3a-7c1e-7000-8000-000000000000");
        let newer = of("018f4e3a-7c1f-7000-8000-000000000000");
        assert!(older < newer);
        assert_eq!(older.time(), 0x018f_4e3a_7c1e);
        assert!(ReadPosition::of_record(newer.time(), i64::MAX) < newer);
        assert!(ReadPosition::of_record(newer.time(), 0) > older);
        assert!(ReadPosition::of_record(5, 7) < ReadPosition::of_record(5, 8));
        assert!(ReadPosition::of_record(-1, -1) == ReadPosition::default());
        assert_eq!(ReadPosition::of_id("7b7b8d3e-6f5c-4d0a-9c3b-3a2f1e0d4c5b"), None);
        for spelling in [
            "018f4e3a7c1e70008000000000000000",
            "urn:uuid:018f4e3a-7c1e-7000-8000-000000000000",
        ] {
            assert_eq!(ReadPosition::of_id(spelling), None);
        }
    }

    #[test]
    fn a_receipt_is_the_same_after_its_record_was_read() {
        let receipt = receipt("17", ReadPosition::of_record(5, 8));
        let read = Converter::default().typing_topic(&receipt.record_value().unwrap());
        assert_eq!(read.unwrap(), Ephemeral::Read(receipt));
    }

    #[test]
    fn a_receipt_of_another_service_needs_no_position() {
        let id = "018f4e3a-7c1e-7000-8000-000000000000";
        let read = |json: String| Converter::default().typing_topic(json.as_bytes());
        let written = |id: &str| {
            read(format!(
                r#"{{"type":"read_receipt","session_id":"s","user_id":"u","up_to":"{id}"}}"#
            ))
        };
        let Ok(Ephemeral::Read(receipt)) = written(id) else {
            panic!()
        };
        assert_eq!(receipt.up_to.position, ReadPosition::of_id(id).unwrap());
        assert!(matches!(written(""), Err(Poison::TooBig)));
        assert!(matches!(written(&"a".repeat(129)), Err(Poison::TooBig)));
    }

    proptest! {
        #[test]
        fn texts_compare_as_positions_do(one in any::<u128>(), other in any::<u128>(), id in "[ -~]{1,128}") {
            let (a, b) = (ReadPosition(one), ReadPosition(other));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
            let receipt = receipt(&id, a);
            let stored = receipt.stored();
            prop_assert!(stored.starts_with(&a.to_string()));
            let read = Receipt::of_stored(&receipt.session_id, receipt.user_id.clone(), &stored);
            prop_assert_eq!(read, Some(receipt));
        }

        #[test]
        fn other_texts_are_no_state(text in ".{0,60}") {
            let empty = receipt("m", ReadPosition::default());
            let read = Receipt::of_stored(&empty.session_id, empty.user_id, &text);
            prop_assert!(read.is_none_or(|read| read.stored().eq_ignore_ascii_case(&text)));
        }
    }
}
