//! What clients have sent lately, as this node has read it from the log: by it, repeats are recognized and answered.
//!
//! A record is a repeat if an earlier one in its partition, at most `DEDUP_WINDOW` older by the records' timestamps, has
//! the same session and the same client id. Repeats are earlier records, too: otherwise nodes that have read back to
//! different records would decide differently, as each would need the record before, and so on without an end. So all
//! nodes decide alike that have read the window before a record. They may answer differently: each with the first record
//! that it has read.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::protocol::{client_id, format_timestamp};

/// The longest message id and timestamp of another producer that an answer repeats, in bytes.
const MAX_LABEL: usize = 256;

/// Session, user and client message id, as a hash.
///
/// It stands for them, so that nothing has to be allocated to keep them: two halves of SipHash with secret keys of this
/// process. Nobody can search for a collision without the keys, and by chance the probability of one among a million
/// messages is below 2⁻⁸⁸.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u64; 2]);

/// A message in the log: what `message_sent` says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A node's message: its UUIDv7 has the timestamp, too.
    Node(Uuid),
    Other(Box<Other>),
}

/// A message of another producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    message_id: Box<str>,
    timestamp: Box<str>,
}

impl Sent {
    /// A message that is sent now.
    pub fn now() -> Self {
        Self::Node(Uuid::now_v7())
    }

    /// A record of a node, if its headers say so: only nodes set both.
    pub fn of_node(node: Option<&[u8]>, message_id: Option<&[u8]>) -> Option<Self> {
        node?;
        let text = std::str::from_utf8(message_id?).ok()?;
        let id = Uuid::try_parse(text).ok()?;
        let mut buffer = Uuid::encode_buffer();
        let is_canonical = id.hyphenated().encode_lower(&mut buffer) == text;
        (is_canonical && id.get_version_num() == 7).then_some(Self::Node(id))
    }

    /// The message in a frame's payload; what can't be read there is taken from the record's headers.
    pub fn of_payload(payload: &[u8], message_id: Option<&[u8]>, time: i64) -> Self {
        #[derive(Default, Deserialize)]
        struct Frame<'a> {
            #[serde(borrow)]
            data: Data<'a>,
        }
        #[derive(Default, Deserialize)]
        struct Data<'a> {
            #[serde(borrow)]
            message_id: Option<&'a RawValue>,
            #[serde(borrow)]
            timestamp: Option<&'a RawValue>,
        }
        let frame: Frame<'_> = serde_json::from_slice(payload).unwrap_or_default();
        // An old message's id may be a number.
        let label = |raw: &RawValue| {
            let raw = raw.get();
            let text = serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned());
            (text.len() <= MAX_LABEL).then_some(text)
        };
        let header = || {
            let text = message_id.and_then(|id| std::str::from_utf8(id).ok());
            text.filter(|text| text.len() <= MAX_LABEL).map(str::to_owned)
        };
        let message_id = frame.data.message_id.and_then(label).or_else(header);
        let timestamp = frame.data.timestamp.and_then(label);
        Self::Other(Box::new(Other {
            message_id: message_id.unwrap_or_default().into(),
            timestamp: timestamp.unwrap_or_else(|| at(time)).into(),
        }))
    }

    pub fn message_id(&self) -> String {
        match self {
            Self::Node(id) => id.to_string(),
            Self::Other(other) => other.message_id.clone().into(),
        }
    }

    pub fn timestamp(&self) -> String {
        match self {
            // The first 48 bits are milliseconds since 1970.
            Self::Node(id) => at((id.as_u128() >> 80) as i64),
            Self::Other(other) => other.timestamp.clone().into(),
        }
    }

    /// Memory besides its entry.
    fn memory(&self) -> usize {
        match self {
            Self::Node(_) => 0,
            Self::Other(other) => size_of::<Other>() + other.message_id.len() + other.timestamp.len(),
        }
    }
}

fn at(unix_ms: i64) -> String {
    format_timestamp(jiff::Timestamp::from_millisecond(unix_ms).unwrap_or_default())
}

/// A record with a client id.
#[derive(Clone, Copy, Debug)]
pub struct SentRecord {
    pub key: Key,
    pub partition: i32,
    /// The record's timestamp, in milliseconds since 1970.
    pub time: i64,
}

/// What a record turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The first record of this message that was read.
    pub first: Sent,
    pub is_repeat: bool,
    /// How many messages were forgotten within their window, because the memory is full.
    pub forgotten: u64,
}

/// What was sent lately. One thread adds what it reads; any may ask.
pub struct SentMessages {
    hashers: [RandomState; 2],
    table: Mutex<SentTable>,
}

impl SentMessages {
    /// At most `bytes` (`DEDUP_BYTES`) of memory, and messages for `window` (`DEDUP_WINDOW`).
    pub fn new(bytes: usize, window: Duration) -> Self {
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            table: Mutex::new(SentTable::new(bytes, window)),
        }
    }

    pub fn key(&self, session_id: &str, user_id: &[u8], client_message_id: &[u8]) -> Key {
        // Slices are hashed with their lengths.
        let message = (session_id.as_bytes(), user_id, client_message_id);
        Key(self.hashers.each_ref().map(|hasher| hasher.hash_one(message)))
    }

    /// The key of a record with this header; `None` if the header is to be ignored.
    pub fn key_of_header(&self, session_id: &str, client_id: &[u8]) -> Option<Key> {
        let [user_id, client_message_id] = client_id::decode(client_id)?;
        Some(self.key(session_id, &user_id, &client_message_id))
    }

    /// Adds a record that was read.
    pub fn read(&self, record: SentRecord, message: impl FnOnce() -> Sent) -> Known {
        self.table.lock().read(record, message)
    }

    /// A message that this node has read, in any partition: the topic may have got more since.
    pub fn find(&self, key: Key, now: i64) -> Option<Sent> {
        self.table.lock().find(key, now)
    }

    /// How many records fit.
    pub fn capacity(&self) -> usize {
        self.table.lock().capacity
    }

    /// Which log is read. Another one than before: nothing is known of it.
    pub fn set_log(&self, log: u64) {
        let mut table = self.table.lock();
        if table.log != 0 && table.log != log {
            table.clear();
        }
        table.log = log;
    }
}

/// What an entry without a message has as its time.
const NEVER: i64 = i64::MIN;

struct Entry {
    key: Key,
    /// The latest timestamp of the message's records.
    time: i64,
    /// The first of them.
    message: Sent,
    partition: i32,
    /// The number of the previous entry in the same bucket.
    previous: u32,
}

/// Records in the order in which they were read, indexed by buckets like the recent log: a bucket has the number of its
/// last entry, and each entry that of the one before it. So nothing has to be removed from the buckets when the oldest
/// entry goes. Numbers wrap; those before the oldest entry are not followed.
///
/// A message is in the entry of its last record, so that it goes by that one's age. The entry that it was in stays
/// without it, until it is the oldest: it is not in its bucket any more, so that many repeats of one message cannot slow
/// down the search for others.
pub struct SentTable {
    window_ms: i64,
    entries: VecDeque<Entry>,
    /// The number of the oldest entry.
    first: u32,
    buckets: Vec<u32>,
    capacity: usize,
    /// Memory of the entries' messages besides the entries.
    others: usize,
    /// See [`SentMessages::set_log`]; 0: not known yet.
    log: u64,
}

impl SentTable {
    pub fn new(bytes: usize, window: Duration) -> Self {
        // One or two entries for each bucket.
        let most = bytes / (size_of::<Entry>() + size_of::<u32>());
        let buckets = ((most + 1).next_power_of_two() / 2).clamp(1, 1 << 30);
        let capacity = (bytes.saturating_sub(buckets * size_of::<u32>()) / size_of::<Entry>()).max(1);
        let capacity = capacity.min(1 << 31);
        Self {
            window_ms: i64::try_from(window.as_millis()).unwrap_or(i64::MAX),
            // All at once: growing would copy it while records wait. What is not used costs no memory.
            entries: VecDeque::with_capacity(capacity),
            first: 1,
            buckets: vec![0; buckets],
            capacity,
            others: 0,
            log: 0,
        }
    }

    /// See [`SentMessages::read`].
    pub fn read(&mut self, record: SentRecord, message: impl FnOnce() -> Sent) -> Known {
        // One that is out of its window will not be needed: the new one is later, and so in the window of all records
        // that could repeat the old one.
        let earlier = self.take(record.key, record.partition);
        let earlier = earlier.filter(|&(time, _)| self.is_in_window(time, record.time));
        let is_repeat = earlier.is_some();
        let (time, first) = match earlier {
            // Timestamps are the producers' and may go back.
            Some((time, first)) => (time.max(record.time), first),
            None => (record.time, message()),
        };
        Known {
            forgotten: self.insert(record, time, first.clone()),
            first,
            is_repeat,
        }
    }

    fn find(&self, key: Key, now: i64) -> Option<Sent> {
        let mut entries = self.of_bucket(key).map(|(_, entry)| entry);
        let found = entries.find(|entry| entry.key == key && self.is_in_window(entry.time, now));
        found.map(|entry| entry.message.clone())
    }

    fn is_in_window(&self, time: i64, now: i64) -> bool {
        time != NEVER && now.saturating_sub(time) <= self.window_ms
    }

    /// The entries in this key's bucket with their places, the last one first.
    fn of_bucket(&self, key: Key) -> impl Iterator<Item = (usize, &Entry)> {
        // Each is older than the one before, also where a number that has wrapped points to a newer entry.
        let older = |number: u32, before: usize| {
            let at = number.wrapping_sub(self.first) as usize;
            self.entries
                .get(at)
                .filter(|_| at < before)
                .map(|entry| (at, entry))
        };
        let last = older(self.buckets[self.bucket(key)], self.entries.len());
        std::iter::successors(last, move |&(at, entry)| older(entry.previous, at))
    }

    /// Takes a message out of its entry, and this out of its bucket.
    fn take(&mut self, key: Key, partition: i32) -> Option<(i64, Sent)> {
        let mut newer = None;
        let found = self.of_bucket(key).find(|&(at, entry)| {
            let is_it = entry.key == key && entry.partition == partition;
            if !is_it {
                newer = Some(at);
            }
            is_it
        });
        let (at, _) = found?;
        let entry = &mut self.entries[at];
        let previous = entry.previous;
        let time = std::mem::replace(&mut entry.time, NEVER);
        let message = std::mem::replace(&mut entry.message, Sent::Node(Uuid::nil()));
        self.others -= message.memory();
        match newer {
            Some(newer) => self.entries[newer].previous = previous,
            None => {
                let bucket = self.bucket(key);
                self.buckets[bucket] = previous;
            }
        }
        Some((time, message))
    }

    fn insert(&mut self, record: SentRecord, time: i64, message: Sent) -> u64 {
        let mut forgotten = 0;
        self.others += message.memory();
        while self.is_full() {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.first = self.first.wrapping_add(1);
            self.others -= oldest.message.memory();
            if self.is_in_window(oldest.time, record.time) {
                forgotten += 1;
            }
        }
        let number = self.first.wrapping_add(self.entries.len() as u32);
        let bucket = self.bucket(record.key);
        self.entries.push_back(Entry {
            key: record.key,
            time,
            message,
            partition: record.partition,
            previous: std::mem::replace(&mut self.buckets[bucket], number),
        });
        forgotten
    }

    /// Whether the oldest entry must go before another one comes.
    fn is_full(&self) -> bool {
        let others = self.others.div_ceil(size_of::<Entry>());
        self.entries.len() + 1 + others > self.capacity
    }

    fn bucket(&self, key: Key) -> usize {
        key.0[0] as usize & (self.buckets.len() - 1)
    }

    fn clear(&mut self) {
        self.first = self.first.wrapping_add(self.entries.len() as u32);
        self.entries.clear();
        self.others = 0;
    }
}

#[cfg(test)]
#[path = "sent_tests.rs"]
mod tests;
