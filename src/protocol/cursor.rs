//! Where a client is in the messages topic: the cursor that it gets and gives back.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Tells a cursor from a message id.
const PREFIX: &str = "~1.";

/// A position in the log, as one session sees it: exact in one partition, that of the session's keyed records, and a
/// time for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub partition: i32,
    /// The next offset in that partition.
    pub offset: i64,
    /// Records of other partitions follow from this timestamp on, in milliseconds since 1970.
    pub time: i64,
    /// Set while pages are read: of other partitions, those after this one follow. `time` is then where to go back to
    /// for what came late.
    pub passed: Option<Mark>,
}

/// A record's place among those of several partitions, the same on all nodes: by timestamp first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// In milliseconds since 1970.
    pub time: i64,
    pub partition: i32,
    pub offset: i64,
}

impl Position {
    /// Whether a record follows.
    pub fn is_before(&self, partition: i32, offset: i64, time: i64) -> bool {
        if partition == self.partition {
            return offset >= self.offset;
        }
        match self.passed {
            Some(passed) => {
                passed
                    < Mark {
                        time,
                        partition,
                        offset,
                    }
            }
            None => time >= self.time,
        }
    }
}

/// A position in one log: a topic that is made again under its old name is another log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub log: u64,
    pub position: Position,
}

impl Cursor {
    /// Whether a `since` is meant as a cursor, be it well formed or not.
    pub fn is_meant(since: &str) -> bool {
        since.starts_with(PREFIX)
    }

    /// At most 100 characters that need no escaping in a URL (RFC 3986, section 2.3).
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend_from_slice(&self.log.to_be_bytes());
        bytes.extend_from_slice(&self.position.partition.to_be_bytes());
        bytes.extend_from_slice(&self.position.offset.to_be_bytes());
        bytes.extend_from_slice(&self.position.time.to_be_bytes());
        if let Some(passed) = self.position.passed {
            bytes.extend_from_slice(&passed.time.to_be_bytes());
            bytes.extend_from_slice(&passed.partition.to_be_bytes());
            bytes.extend_from_slice(&passed.offset.to_be_bytes());
        }
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let (log, rest) = bytes.split_first_chunk()?;
        let (partition, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (time, rest) = rest.split_first_chunk()?;
        let passed = if rest.is_empty() {
            None
        } else {
            Some(Mark::decode(rest)?)
        };
        let position = Position {
            partition: i32::from_be_bytes(*partition),
            offset: i64::from_be_bytes(*offset),
            time: i64::from_be_bytes(*time),
            passed,
        };
        let is_valid = position.partition >= 0 && position.offset >= 0;
        is_valid.then_some(Self {
            log: u64::from_be_bytes(*log),
            position,
        })
    }
}

impl Mark {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (time, rest) = bytes.split_first_chunk()?;
        let (partition, rest) = rest.split_first_chunk()?;
        Some(Self {
            time: i64::from_be_bytes(*time),
            partition: i32::from_be_bytes(*partition),
            offset: i64::from_be_bytes(rest.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_survives_a_round_trip(log in any::<u64>(), partition in 0..i32::MAX, offset in 0..i64::MAX, time in any::<i64>(), passed in any::<Option<(i64, i32, i64)>>()) {
            let passed = passed.map(|(time, partition, offset)| Mark { time, partition, offset });
            let cursor = Cursor { log, position: Position { partition, offset, time, passed } };
            let text = cursor.encode();
            prop_assert!(text.len() <= 100 && Cursor::is_meant(&text));
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b)));
            prop_assert_eq!(Cursor::decode(&text), Some(cursor));
        }

        #[test]
        fn other_text_is_no_cursor(text in "(~1\\.)?[A-Za-z0-9_~.-]{0,80}") {
            if let Some(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(cursor.encode(), text);
            }
        }
    }
}
