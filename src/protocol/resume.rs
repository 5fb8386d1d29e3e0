//! What a client asks for when it comes back, and the frame that answers it.

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::cursor::Cursor;
use super::server;

/// The longest `since`, in bytes.
const MAX_SINCE: usize = 128;
const MAX_REWIND: usize = 100;

/// Which of a session's messages a client lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Everything after a message, by its id and its time in milliseconds since 1970, if that is known.
    Message { id: String, time: Option<i64> },
    /// Everything after a cursor.
    Cursor { text: String, cursor: Cursor },
    /// The last messages.
    Rewind(usize),
    /// It can't be understood; the text is shown to the client.
    Invalid(Asked),
}

/// What was asked for, as the answer repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    Since(String),
    Rewind(usize),
    #[serde(rename = "rewind")]
    BadRewind(String),
}

impl Resume {
    /// Reads `since`, `since_time` and `rewind` from a query; others are ignored. `since` wins over `rewind`.
    pub fn of_query(query: &str) -> Option<Self> {
        if let Some(since) = Self::since_of_query(query) {
            return Some(since);
        }
        let rewind = query_value(query, "rewind")?;
        Some(match rewind.parse() {
            Ok(count @ 1..=MAX_REWIND) => Self::Rewind(count),
            _ => Self::Invalid(Asked::BadRewind(shortened(rewind))),
        })
    }

    /// Reads only `since` and `since_time`.
    pub fn since_of_query(query: &str) -> Option<Self> {
        let since = query_value(query, "since")?;
        Some(Self::since(since, query_value(query, "since_time").as_deref()))
    }

    /// See [`Resume::of_query`].
    pub fn since(since: String, since_time: Option<&str>) -> Self {
        if since.is_empty() || since.len() > MAX_SINCE || since.chars().any(char::is_control) {
            return Self::Invalid(Asked::Since(shortened(since)));
        }
        if Cursor::is_meant(&since) {
            // Unsigned ones of earlier versions are refused like malformed ones.
            return match Cursor::decode(&since) {
                Some(cursor) => Self::Cursor { text: since, cursor },
                None => Self::Invalid(Asked::Since(since)),
            };
        }
        let time = time_of_id(&since).or_else(|| since_time.and_then(milliseconds));
        Self::Message { id: since, time }
    }

    pub fn asked(&self) -> Asked {
        match self {
            Self::Message { id, .. } => Asked::Since(id.clone()),
            Self::Cursor { text, .. } => Asked::Since(text.clone()),
            Self::Rewind(count) => Asked::Rewind(*count),
            Self::Invalid(asked) => asked.clone(),
        }
    }
}

/// The first value of a name in a query.
pub fn query_value(query: &str, name: &str) -> Option<String> {
    let mut pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    // A plus sign is meant as such: time zones have one.
    let value = percent_decode_str(value).decode_utf8();
    Some(value.unwrap_or_default().into_owned())
}

fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_SINCE));
    text
}

/// When a message id was made, if it is a UUIDv7 (RFC 9562, section 5.7), in milliseconds since 1970.
pub fn time_of_id(id: &str) -> Option<i64> {
    let id = uuid::Uuid::try_parse(id).ok()?;
    (id.get_version_num() == 7).then(|| (id.as_u128() >> 80) as i64)
}

/// A timestamp of RFC 3339, or without a zone, which then is UTC.
fn milliseconds(text: &str) -> Option<i64> {
    let with_zone = text.parse::<jiff::Timestamp>();
    let at = with_zone.or_else(|_| {
        let civil = text.parse::<jiff::civil::DateTime>()?;
        civil
            .to_zoned(jiff::tz::TimeZone::UTC)
            .map(|zoned| zoned.timestamp())
    });
    at.ok().map(jiff::Timestamp::as_millisecond)
}

/// Why nothing is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotResumed {
    Invalid,
    UnknownMessage,
    TooOld,
    TooMany,
    Unavailable,
    Busy,
}

impl NotResumed {
    pub const ALL: [Self; 6] = [
        Self::Invalid,
        Self::UnknownMessage,
        Self::TooOld,
        Self::TooMany,
        Self::Unavailable,
        Self::Busy,
    ];

    /// The `reason` that clients see, and the label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::UnknownMessage => "unknown_message",
            Self::TooOld => "too_old",
            Self::TooMany => "too_many",
            Self::Unavailable => "unavailable",
            Self::Busy => "busy",
        }
    }
}

/// `resumed`: the replay's end, or why there is none.
pub fn resumed(asked: &Asked, outcome: Result<usize, NotResumed>, cursor: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    struct Data<'a> {
        #[serde(flatten)]
        asked: &'a Asked,
        recovered: bool,
        replayed: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<&'a str>,
    }
    server::resumed(Data {
        asked,
        recovered: outcome.is_ok(),
        replayed: outcome.unwrap_or(0),
        reason: outcome.err().map(NotResumed::name),
        cursor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Option<Resume> {
        Resume::of_query(query)
    }

    #[test]
    fn queries_are_read() {
        let id = "018f4e3a-7c1e-7000-8000-000000000000";
        let message = |id: &str, time| Some(Resume::Message { id: id.into(), time });
        assert_eq!(
            asked(&format!("a=b&since={id}")),
            message(id, Some(0x018f_4e3a_7c1e))
        );
        assert_eq!(asked("since=7"), message("7", None));
        let time = Some(1_700_000_000_000);
        for given in [
            "2023-11-14T22:13:20Z",
            "2023-11-14T23:13:20.000+01:00",
            "2023-11-14T22:13:20.000",
        ] {
            assert_eq!(
                asked(&format!("since=a%20b&since_time={given}")),
                message("a b", time),
                "{given}"
            );
        }
        assert_eq!(asked("since=7&since_time=yesterday"), message("7", None));
        assert_eq!(asked("rewind=100"), Some(Resume::Rewind(100)));
        assert_eq!(asked("rewind=5&since=7"), message("7", None));
        for none in ["", "since_time=7", "Since=7", "x=since=7"] {
            assert_eq!(asked(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_malformed_is_shown_to_the_client() {
        let long = "x".repeat(MAX_SINCE + 1);
        for (query, shown) in [
            ("since=", Asked::Since(String::new())),
            ("since", Asked::Since(String::new())),
            ("since=a%00", Asked::Since("a\0".into())),
            ("since=~2.AAAA", Asked::Since("~2.AAAA".into())),
            (
                "since=~1.b0gS5hXlYt8AAAAAAAAAAAAAAAAAAAGiBTb3kQ",
                Asked::Since("~1.b0gS5hXlYt8AAAAAAAAAAAAAAAAAAAGiBTb3kQ".into()),
            ),
            (&format!("since={long}"), Asked::Since(long[1..].into())),
            ("rewind=0", Asked::BadRewind("0".into())),
            ("rewind=101", Asked::BadRewind("101".into())),
            ("rewind=-1", Asked::BadRewind("-1".into())),
            ("rewind=", Asked::BadRewind(String::new())),
        ] {
            assert_eq!(asked(query), Some(Resume::Invalid(shown)), "{query}");
        }
    }

    #[test]
    fn the_answer_says_what_was_asked_and_what_came_of_it() {
        let text =
            |frame: Bytes| String::from_utf8(frame[if frame[1] == 126 { 4 } else { 2 }..].to_vec()).unwrap();
        assert_eq!(
            text(resumed(&Asked::Since("7".into()), Ok(3), Some("c"))),
            r#"{"type":"resumed","success":true,"data":{"since":"7","recovered":true,"replayed":3,"cursor":"c"}}"#
        );
        assert_eq!(
            text(resumed(&Asked::Rewind(5), Err(NotResumed::TooOld), None)),
            r#"{"type":"resumed","success":true,"data":{"rewind":5,"recovered":false,"replayed":0,"reason":"too_old"}}"#
        );
        assert!(text(resumed(&Asked::BadRewind("x".into()), Ok(0), None)).contains(r#""rewind":"x""#));
    }
}
