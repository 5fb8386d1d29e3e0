//! Kafka records: what ours look like, and how the old backend's become frames.
//!
//! The header `livechat-frame` alone decides: `1` is native (the value is the frame's payload, delivered
//! verbatim), absent is old (converted once), anything else is poison.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use simd_json::prelude::*;
use simd_json::tape::{Object, Value};

use super::correlation::is_token;
use super::encode;
use super::ids::{LOBBY, SessionId, SessionKey, UserId};
use super::json::{self, Passthrough, Reader};
use super::receipt::{READ_RECEIPT, ReadPosition, ReadUpTo, Receipt};
use super::server;
use super::status::{ConnectionStatus, StatusChange, StatusEvent};

/// The header that marks a native record, and its only value.
pub const FRAME_HEADER: &str = "livechat-frame";
pub const FRAME_NATIVE: &[u8] = b"1";
/// The header with the message's id.
pub const ID_HEADER: &str = "livechat-id";
/// The header by which a repeated message is recognized: see [`client_id`](super::client_id).
pub const CLIENT_ID_HEADER: &str = "livechat-client-id";
/// The header with the publishing node's name and boot id, by which a node recognizes and skips its own records.
pub const NODE_HEADER: &str = "livechat-node";

/// The longest `user_type` and `timestamp` of a typing record, in bytes.
const MAX_LABEL: usize = 128;

/// The four topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    Messages,
    Typing,
    Status,
    /// Who is disconnected and refused: see [`control`](super::control).
    Control,
}

impl Topic {
    pub const ALL: [Topic; 4] = [Topic::Messages, Topic::Typing, Topic::Status, Topic::Control];

    /// The label in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Typing => "typing",
            Self::Status => "status",
            Self::Control => "control",
        }
    }
}

/// The key of a record that is written.
#[derive(Clone, Debug)]
pub enum RecordKey {
    Session(SessionId),
    /// A user in a session.
    User(String),
}

impl RecordKey {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Session(id) => id.as_str(),
            Self::User(key) => key,
        }
    }
}

/// A record's form, according to its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The value is the WebSocket text payload.
    Native,
    /// The old server's JSON: no header.
    Legacy,
    Unknown,
}

impl Form {
    pub fn of_header(value: Option<&[u8]>) -> Self {
        match value {
            None => Self::Legacy,
            Some(FRAME_NATIVE) => Self::Native,
            Some(_) => Self::Unknown,
        }
    }
}

/// A record read from the log.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    pub topic: Topic,
    pub partition: i32,
    pub offset: i64,
    pub form: Form,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// The record's timestamp, in milliseconds since 1970; 0 if it has none.
    pub time: i64,
    /// [`NODE_HEADER`].
    pub node: Option<&'a [u8]>,
    /// [`ID_HEADER`].
    pub message_id: Option<&'a [u8]>,
    /// [`CLIENT_ID_HEADER`].
    pub client_id: Option<&'a [u8]>,
}

/// A record to be appended to the log.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub topic: Topic,
    pub key: RecordKey,
    pub value: Vec<u8>,
    pub form: Form,
    /// [`ID_HEADER`].
    pub message_id: Option<String>,
    /// [`CLIENT_ID_HEADER`].
    pub client_id: Option<String>,
}

impl Outgoing {
    /// What is no message: neither native nor one that clients can name.
    pub fn legacy(topic: Topic, key: RecordKey, value: Vec<u8>) -> Self {
        Self {
            topic,
            key,
            value,
            form: Form::Legacy,
            message_id: None,
            client_id: None,
        }
    }
}

/// Why a record is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Poison {
    Tombstone,
    TooBig,
    NotUtf8,
    NotJson,
    UnknownForm,
    BadKey,
    MissingField,
    /// A bug in the server.
    Internal,
}

impl Poison {
    pub const ALL: [Poison; 8] = [
        Self::Tombstone,
        Self::TooBig,
        Self::NotUtf8,
        Self::NotJson,
        Self::UnknownForm,
        Self::BadKey,
        Self::MissingField,
        Self::Internal,
    ];

    /// The label in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::TooBig => "too_big",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::UnknownForm => "unknown_form",
            Self::BadKey => "bad_key",
            Self::MissingField => "missing_field",
            Self::Internal => "internal",
        }
    }
}

/// The session of a native record: its key, a valid id.
pub fn native_session(key: Option<&[u8]>) -> Result<SessionKey<'_>, Poison> {
    let key = key.and_then(|key| std::str::from_utf8(key).ok());
    key.and_then(SessionKey::parse).ok_or(Poison::BadKey)
}

impl<'a> Incoming<'a> {
    /// The value of a record that is neither a tombstone nor longer than `most` bytes, and has no reserved key.
    ///
    /// # Errors
    ///
    /// Why the record is skipped.
    pub fn checked_value(&self, most: usize) -> Result<&'a [u8], Poison> {
        let value = self.value.ok_or(Poison::Tombstone)?;
        if value.len() > most {
            return Err(Poison::TooBig);
        }
        if is_reserved(self.key) {
            return Err(Poison::BadKey);
        }
        Ok(value)
    }
}

/// Whether a record has the reserved key, which is refused whatever session its value names.
fn is_reserved(key: Option<&[u8]>) -> bool {
    key == Some(LOBBY.as_bytes())
}

/// Reads and converts records of the old form; keeps its buffers.
#[derive(Default)]
pub struct Converter {
    reader: Reader,
    /// simd-json parses in place, and a Kafka payload must not be written to.
    copy: Vec<u8>,
}

/// A record of the typing topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypingRecord {
    pub session_id: SessionId,
    pub user_id: UserId,
    pub user_type: String,
    pub is_typing: bool,
    pub timestamp: String,
}

/// What the typing topic carries: what is worth nothing a moment later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ephemeral {
    Typing(TypingRecord),
    Read(Receipt),
}

impl Converter {
    /// The `new_message` payload of an old chat record of any session; `None` if it can't be converted.
    pub fn payload(&mut self, value: &[u8]) -> Option<Vec<u8>> {
        let (_, payload) = self.message(value, |_| true).ok().flatten()?;
        Some(payload)
    }

    /// The `new_message` payload of an old chat record, where `wanted` says that its session is here.
    pub fn message(
        &mut self,
        value: &[u8],
        wanted: impl FnOnce(&str) -> bool,
    ) -> Result<Option<(SessionId, Vec<u8>)>, Poison> {
        self.read(value, |record| {
            let (mut id, mut session, mut message) = (None, None, None);
            for (key, value) in record.iter() {
                match key {
                    "id" => id = Some(value).filter(|id| id.is_str() || id.is_number()),
                    "session_id" => session = json::text(value),
                    "message" => message = json::text(value),
                    _ => {}
                }
            }
            let (Some(id), Some(session), Some(_)) = (id, session, message) else {
                return Err(Poison::MissingField);
            };
            let session_id = SessionId::parse(session).ok_or(Poison::BadKey)?;
            if !wanted(session_id.as_str()) {
                return Ok(None);
            }
            let message = OldMessage {
                id,
                session_id: &session_id,
                record: &record,
            };
            let payload = server::converted("new_message", message).ok_or(Poison::Internal)?;
            Ok(Some((session_id, payload)))
        })
    }

    /// A record of the typing topic, from a node or another service.
    pub fn typing_topic(&mut self, value: &[u8]) -> Result<Ephemeral, Poison> {
        self.read(value, |record| {
            let text = |name| last(&record, name).and_then(json::text);
            if text("type") == Some(READ_RECEIPT) {
                return receipt(&record).map(Ephemeral::Read);
            }
            let label = |name| label(text(name));
            Ok(Ephemeral::Typing(TypingRecord {
                session_id: text("session_id")
                    .and_then(SessionId::parse)
                    .ok_or(Poison::MissingField)?,
                user_id: text("user_id")
                    .and_then(UserId::parse)
                    .ok_or(Poison::MissingField)?,
                user_type: label("user_type")?.unwrap_or_default().to_owned(),
                is_typing: last(&record, "is_typing")
                    .and_then(|value| value.as_bool())
                    .ok_or(Poison::MissingField)?,
                timestamp: label("timestamp")?.map_or_else(super::timestamp, str::to_owned),
            }))
        })
    }

    /// A record of the status topic: its session and, if another service wrote it, the payload of its frame.
    pub fn status(&mut self, value: &[u8], is_ours: bool) -> Result<(SessionId, Option<Vec<u8>>), Poison> {
        self.read(value, |record| {
            let text = |name| last(&record, name).and_then(json::text);
            let session_id = text("session_id")
                .and_then(SessionId::parse)
                .ok_or(Poison::MissingField)?;
            if is_ours {
                return Ok((session_id, None));
            }
            let status = last(&record, "connection_status")
                .filter(Value::is_object)
                .ok_or(Poison::MissingField)?;
            let at = text("timestamp").map_or_else(super::timestamp, str::to_owned);
            let payload =
                server::foreign_status(&session_id, Passthrough(status), &at).ok_or(Poison::Internal)?;
            Ok((session_id, Some(payload)))
        })
    }

    fn read<T>(
        &mut self,
        value: &[u8],
        convert: impl FnOnce(Object<'_, '_>) -> Result<T, Poison>,
    ) -> Result<T, Poison> {
        if simdutf8::basic::from_utf8(value).is_err() {
            return Err(Poison::NotUtf8);
        }
        self.copy.clear();
        self.copy.extend_from_slice(value);
        let tape = self.reader.parse(&mut self.copy).map_err(|_| Poison::NotJson)?;
        convert(json::object(&tape).ok_or(Poison::NotJson)?)
    }
}

/// A record of [`Receipt::record_value`].
fn receipt(record: &Object<'_, '_>) -> Result<Receipt, Poison> {
    let text = |name| last(record, name).and_then(json::text);
    let label = |name| label(text(name));
    let message_id = text("up_to").ok_or(Poison::MissingField)?;
    if !is_token(message_id) {
        return Err(Poison::TooBig);
    }
    // Another service need not know positions.
    let position = text("position").and_then(ReadPosition::parse);
    let position = position.or_else(|| ReadPosition::of_id(message_id));
    Ok(Receipt {
        session_id: text("session_id")
            .and_then(SessionId::parse)
            .ok_or(Poison::MissingField)?,
        user_id: text("user_id")
            .and_then(UserId::parse)
            .ok_or(Poison::MissingField)?,
        user_type: label("user_type")?.unwrap_or_default().to_owned(),
        up_to: ReadUpTo {
            position: position.unwrap_or_default(),
            message_id: message_id.into(),
        },
        timestamp: label("timestamp")?.map_or_else(super::timestamp, str::to_owned),
    })
}

/// Limits the memory that is kept for each user, whatever another service writes.
fn label(text: Option<&str>) -> Result<Option<&str>, Poison> {
    match text {
        Some(label) if label.len() > MAX_LABEL => Err(Poison::TooBig),
        label => Ok(label),
    }
}

/// The last of duplicate keys (see [`json`]).
fn last<'t, 'i>(record: &Object<'t, 'i>, name: &str) -> Option<Value<'t, 'i>> {
    record
        .iter()
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .last()
}

/// The old record's fields under their new names; unknown ones follow by value.
struct OldMessage<'r, 't, 'i> {
    id: Value<'t, 'i>,
    /// In its canonical spelling.
    session_id: &'r SessionId,
    record: &'r Object<'t, 'i>,
}

/// Old name and new name. What isn't there becomes null, as the old server's frontends know it.
const RENAMED: [(&str, &str); 8] = [
    ("id", "message_id"),
    ("session_id", "session_id"),
    ("sender_id", "sender_id"),
    ("sender_type", "sender_type"),
    ("message", "message"),
    ("message_type", "message_type"),
    ("attachments", "attachments"),
    ("created_at", "timestamp"),
];

impl Serialize for OldMessage<'_, '_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut values = [None; RENAMED.len()];
        for (key, value) in self.record.iter() {
            if let Some(at) = RENAMED.iter().position(|(old, _)| *old == key) {
                values[at] = Some(value);
            }
        }
        values[0] = Some(self.id);
        let mut map = serializer.serialize_map(None)?;
        for ((_, new), value) in RENAMED.iter().zip(values) {
            match *new {
                "session_id" => map.serialize_entry(new, self.session_id)?,
                _ => map.serialize_entry(new, &value.map(Passthrough))?,
            }
        }
        for (key, value) in self.record.iter() {
            let is_mapped = RENAMED.iter().any(|(old, new)| *old == key || *new == key);
            if !is_mapped && key != "read_at" && key != "updated_at" {
                map.serialize_entry(key, &Passthrough(value))?;
            }
        }
        map.end()
    }
}

/// The value of a typing record, as other services read it.
pub fn typing_value(
    session_id: &SessionId,
    user_id: &UserId,
    user_type: &str,
    is_typing: bool,
    at: &str,
) -> Option<Vec<u8>> {
    #[derive(Serialize)]
    struct Record<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        session_id: &'a SessionId,
        user_id: &'a UserId,
        user_type: &'a str,
        is_typing: bool,
        timestamp: &'a str,
    }
    let record = Record {
        kind: "typing_indicator",
        session_id,
        user_id,
        user_type,
        is_typing,
        timestamp: at,
    };
    encode(&record)
}

/// The value of a connection-status record, as other services read it, with the events of this change.
pub fn status_value(
    session_id: &SessionId,
    status: &ConnectionStatus,
    events: &[StatusEvent],
    at: &str,
) -> Option<Vec<u8>> {
    #[derive(Serialize)]
    struct Record<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        #[serde(flatten)]
        change: StatusChange<'a>,
    }
    let change = StatusChange::of(session_id, status, events, at);
    let record = Record {
        kind: "connection_status",
        change,
    };
    encode(&record)
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
