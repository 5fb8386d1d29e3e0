//! Where a client is in the messages topic: the cursor that it gets and gives back.
//!
//! A cursor is signed, for the session that it was made for. Without that, whoever has just learnt a session's id could
//! change the offset in a cursor, and get what was said before.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::error::Unspecified;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// Tells a cursor from a message id.
const PREFIX: &str = "~2.";
/// How cursors began that were not signed.
const UNSIGNED_PREFIX: &str = "~1.";

/// How much of an HMAC-SHA256 a cursor carries. It can only be guessed at over the network, against one session.
const CODE_BYTES: usize = 8;

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

    fn encode(&self, log: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(56);
        bytes.extend_from_slice(&log.to_be_bytes());
        bytes.extend_from_slice(&self.partition.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        bytes.extend_from_slice(&self.time.to_be_bytes());
        if let Some(passed) = self.passed {
            bytes.extend_from_slice(&passed.time.to_be_bytes());
            bytes.extend_from_slice(&passed.partition.to_be_bytes());
            bytes.extend_from_slice(&passed.offset.to_be_bytes());
        }
        bytes
    }
}

/// Which log cursors are of, and the key that signs them. A topic that is made again under its old name is another log.
pub struct CursorKey {
    log: u64,
    key: hmac::Key,
}

impl CursorKey {
    /// The key of a log that all nodes know by this secret, and no client does.
    pub fn of_log(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        // Clients see the log's number: it must not tell the secret or the key.
        let number = hmac::sign(&secret, b"livechat-ws: the log's number");
        let key = hmac::sign(&secret, b"livechat-ws: the key of cursors");
        Self {
            // 0 stands for a log that is not known.
            log: leading_u64(number.as_ref()).max(1),
            key: hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()),
        }
    }

    /// The key of a log that only this process knows.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub fn of_this_process() -> Result<Self, Unspecified> {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret)?;
        Ok(Self::of_log(&secret))
    }

    /// The log's number.
    pub fn log(&self) -> u64 {
        self.log
    }

    /// The cursor of a session that is at this position: at most 100 characters that need no escaping in a URL
    /// (RFC 3986, section 2.3).
    pub fn cursor(&self, session_id: &str, position: &Position) -> String {
        let mut bytes = position.encode(self.log);
        let code = self.code(session_id, &bytes);
        bytes.extend_from_slice(&code.to_be_bytes());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Whether this key has signed a cursor, for this session.
    pub fn has_signed(&self, session_id: &str, cursor: &Cursor) -> bool {
        let code = self.code(session_id, &cursor.position.encode(cursor.log));
        // One comparison of two numbers: its time tells nothing.
        cursor.log == self.log && cursor.code == code
    }

    fn code(&self, session_id: &str, position: &[u8]) -> u64 {
        let mut context = hmac::Context::with_key(&self.key);
        // Positions have two lengths: without the id's, a byte could count as either's.
        context.update(&session_id.len().to_be_bytes());
        context.update(session_id.as_bytes());
        context.update(position);
        leading_u64(context.sign().as_ref())
    }
}

/// The first bytes as a number.
fn leading_u64(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk::<CODE_BYTES>()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// A cursor as a client gives it back: it says nothing before its code is checked ([`CursorKey::has_signed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub log: u64,
    pub position: Position,
    pub code: u64,
}

impl Cursor {
    /// Whether a `since` is meant as a cursor, be it well formed or not.
    pub fn is_meant(since: &str) -> bool {
        since.starts_with(PREFIX) || since.starts_with(UNSIGNED_PREFIX)
    }

    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let (bytes, code) = bytes.split_last_chunk::<CODE_BYTES>()?;
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
            code: u64::from_be_bytes(*code),
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

    const SESSION: &str = "018f4e3a-7c1e-7000-8000-00000000000a";

    fn position(offset: i64) -> Position {
        Position {
            partition: 3,
            offset,
            time: 1_700_000_000_000,
            passed: None,
        }
    }

    #[test]
    fn a_cursor_is_good_for_its_session_and_log_alone() {
        let (key, other) = (CursorKey::of_log(b"topic a"), CursorKey::of_log(b"topic b"));
        assert_ne!(key.log(), other.log());
        let cursor = Cursor::decode(&key.cursor(SESSION, &position(7))).unwrap();
        assert!(key.has_signed(SESSION, &cursor));
        assert!(!key.has_signed("another", &cursor));
        assert!(!other.has_signed(SESSION, &cursor));
        // Of the same log, on another node.
        assert!(CursorKey::of_log(b"topic a").has_signed(SESSION, &cursor));
        let moved = Cursor {
            position: position(6),
            ..cursor
        };
        assert!(!key.has_signed(SESSION, &moved));
        let renumbered = Cursor {
            log: other.log(),
            ..cursor
        };
        assert!(!other.has_signed(SESSION, &renumbered) && !key.has_signed(SESSION, &renumbered));
    }

    /// The 20 bytes by which a position of pages is longer must not count as the beginning of a session's id, nor the
    /// other way round.
    #[test]
    fn a_position_and_a_session_can_not_be_mixed_up() {
        let key = CursorKey::of_log(b"topic");
        let mark = Mark {
            time: i64::from_be_bytes(*b"AAAAAAAA"),
            partition: i32::from_be_bytes(*b"AAAA"),
            offset: i64::from_be_bytes(*b"AAAAAAAA"),
        };
        let short = Cursor::decode(&key.cursor(&("A".repeat(20) + "s"), &position(1))).unwrap();
        let long = Position {
            passed: Some(mark),
            ..position(1)
        };
        let forged = Cursor {
            position: long,
            ..short
        };
        assert!(!key.has_signed("s", &forged));
    }

    #[test]
    fn what_clients_see_does_not_tell_the_secret() {
        let secret = *b"0123456789abcdef";
        let key = CursorKey::of_log(&secret);
        let shown = key.log().to_be_bytes();
        assert!(
            !secret
                .windows(4)
                .any(|part| shown.windows(4).any(|other| other == part))
        );
        assert_ne!(CursorKey::of_log(b"0123456789abcdeg").log(), key.log());
    }

    proptest! {
        #[test]
        fn a_cursor_survives_a_round_trip(secret in any::<[u8; 16]>(), session in "[A-Za-z0-9._@+=~-]{1,128}", partition in 0..i32::MAX, offset in 0..i64::MAX, time in any::<i64>(), passed in any::<Option<(i64, i32, i64)>>()) {
            let passed = passed.map(|(time, partition, offset)| Mark { time, partition, offset });
            let position = Position { partition, offset, time, passed };
            let key = CursorKey::of_log(&secret);
            let text = key.cursor(&session, &position);
            prop_assert!(text.len() <= 100 && Cursor::is_meant(&text));
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b)));
            let cursor = Cursor::decode(&text).unwrap();
            prop_assert_eq!((cursor.log, cursor.position), (key.log(), position));
            prop_assert!(key.has_signed(&session, &cursor));
        }

        /// Whatever is changed in it.
        #[test]
        fn a_changed_cursor_is_not_signed(at in any::<prop::sample::Index>(), by in 1..=255u8, is_page in any::<bool>()) {
            let key = CursorKey::of_log(b"topic");
            let passed = is_page.then_some(Mark { time: 5, partition: 1, offset: 9 });
            let text = key.cursor(SESSION, &Position { passed, ..position(7) });
            let mut bytes = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            let changed = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
            let is_signed = Cursor::decode(&changed).is_some_and(|cursor| key.has_signed(SESSION, &cursor));
            prop_assert!(!is_signed);
        }

        #[test]
        fn other_text_is_no_cursor(text in "(~[12]\\.)?[A-Za-z0-9_~.-]{0,80}") {
            let key = CursorKey::of_log(b"topic");
            if let Some(cursor) = Cursor::decode(&text) {
                prop_assert!(text.starts_with(PREFIX) && !key.has_signed(SESSION, &cursor));
            }
        }
    }
}
