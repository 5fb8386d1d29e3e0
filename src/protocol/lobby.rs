//! The sessions with somebody connected, as the agents' desk sees them: in `GET /api/sessions` and in the lobby.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Serialize, Serializer};

use super::format_timestamp;
use super::ids::SessionId;
use super::server;

/// The most sessions of one page, and of a `lobby_snapshot`.
pub const MAX_PAGE: usize = 1000;

/// Who waits for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// A customer, and no agent.
    Waiting,
    /// Both.
    Active,
    /// No customer.
    Idle,
}

impl SessionState {
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Active, Self::Idle];

    pub fn of(totals: Totals) -> Self {
        match totals {
            Totals { customers: 0, .. } => Self::Idle,
            Totals { agents: 0, .. } => Self::Waiting,
            _ => Self::Active,
        }
    }
}

/// How many users of a session count; admins are neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub customers: u32,
    pub agents: u32,
}

/// One session at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub state: SessionState,
    pub totals: Totals,
    /// Since when it has been in this state, in milliseconds since 1970.
    pub since: i64,
}

impl Summary {
    /// Nobody is connected any more.
    pub fn ended(since: i64) -> Self {
        Self {
            state: SessionState::Idle,
            totals: Totals::default(),
            since,
        }
    }
}

/// A session as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedSession {
    pub session_id: SessionId,
    pub state: SessionState,
    pub total_customer: u32,
    pub total_agent: u32,
    #[serde(serialize_with = "as_timestamp")]
    pub since: i64,
}

impl ListedSession {
    pub fn new(session_id: SessionId, summary: Summary) -> Self {
        Self {
            session_id,
            state: summary.state,
            total_customer: summary.totals.customers,
            total_agent: summary.totals.agents,
            since: summary.since,
        }
    }

    pub fn position(&self) -> Position {
        Position {
            since: self.since,
            session_id: self.session_id.clone(),
        }
    }
}

fn as_timestamp<S: Serializer>(milliseconds: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    let at = jiff::Timestamp::from_millisecond(*milliseconds).unwrap_or_default();
    serializer.serialize_str(&format_timestamp(at))
}

/// Which sessions are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFilter {
    Waiting,
    Active,
    All,
    /// Those with a customer.
    Desk,
}

impl StateFilter {
    /// As the query names it.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "waiting" => Some(Self::Waiting),
            "active" => Some(Self::Active),
            "all" => Some(Self::All),
            _ => None,
        }
    }

    pub fn states(self) -> &'static [SessionState] {
        match self {
            Self::Waiting => &[SessionState::Waiting],
            Self::Active => &[SessionState::Active],
            Self::Desk => &[SessionState::Waiting, SessionState::Active],
            Self::All => &SessionState::ALL,
        }
    }
}

/// A session's place in the order of pages: the longest in its state comes first. A session that stays in its state
/// stays there, whatever the others do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub since: i64,
    pub session_id: SessionId,
}

impl Position {
    /// The cursor: opaque, and safe in a URL.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{} {}", self.since, self.session_id))
    }

    pub fn decode(cursor: &str) -> Option<Self> {
        let decoded = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (since, session_id) = std::str::from_utf8(&decoded).ok()?.split_once(' ')?;
        Some(Self {
            since: since.parse().ok().filter(|since| *since >= 0)?,
            session_id: SessionId::parse(session_id)?,
        })
    }
}

/// One page of sessions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SessionPage {
    pub sessions: Vec<ListedSession>,
    /// After which session the next page begins, if there may be one.
    pub next: Option<Position>,
}

/// What has become of a session, as the lobby announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LobbyEvent {
    Waiting,
    Active,
    /// No customer is left.
    Ended,
}

impl LobbyEvent {
    /// The event that leads to this state; a session that nobody is in any more has ended, too.
    pub fn of(state: SessionState) -> Self {
        match state {
            SessionState::Waiting => Self::Waiting,
            SessionState::Active => Self::Active,
            SessionState::Idle => Self::Ended,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Waiting => "session_waiting",
            Self::Active => "session_active",
            Self::Ended => "session_ended",
        }
    }
}

/// The sessions that the lobby begins with.
pub fn snapshot(sessions: &[ListedSession], has_more: bool) -> Option<Bytes> {
    #[derive(Serialize)]
    struct Data<'a> {
        sessions: &'a [ListedSession],
        has_more: bool,
    }
    server::frame_of("lobby_snapshot", Data { sessions, has_more })
}

/// `session_waiting`, `session_active` or `session_ended`.
pub fn event(session: &ListedSession) -> Option<Bytes> {
    server::frame_of(LobbyEvent::of(session.state).kind(), session)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame;
    use super::*;

    fn listed(customers: u32, agents: u32) -> ListedSession {
        let totals = Totals { customers, agents };
        let summary = Summary {
            state: SessionState::of(totals),
            totals,
            since: 1_700_000_000_000,
        };
        ListedSession::new(SessionId::parse("s1").unwrap(), summary)
    }

    #[test]
    fn a_session_waits_is_active_or_idle() {
        let kinds = [(1, 0), (2, 3), (0, 2), (0, 0)].map(|(customers, agents)| {
            let frame = event(&listed(customers, agents)).unwrap();
            serde_json::from_slice::<serde_json::Value>(frame::payload(&frame)).unwrap()["type"].take()
        });
        assert_eq!(
            kinds,
            [
                "session_waiting",
                "session_active",
                "session_ended",
                "session_ended"
            ]
        );
    }

    #[test]
    fn frames_have_five_fields_of_each_session() {
        let text =
            |frame: Option<Bytes>| String::from_utf8(frame::payload(&frame.unwrap()).to_vec()).unwrap();
        let session = r#"{"session_id":"s1","state":"waiting","total_customer":1,"total_agent":0,"since":"2023-11-14T22:13:20.000Z"}"#;
        let event = text(event(&listed(1, 0)));
        assert_eq!(
            event,
            format!(r#"{{"type":"session_waiting","success":true,"data":{session}}}"#)
        );
        let snapshot = text(snapshot(&[listed(1, 0)], true));
        assert_eq!(
            snapshot,
            format!(
                r#"{{"type":"lobby_snapshot","success":true,"data":{{"sessions":[{session}],"has_more":true}}}}"#
            )
        );
    }

    #[test]
    fn other_cursors_are_refused() {
        let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for bad in [
            String::new(),
            "~".into(),
            encoded("1"),
            encoded("x s"),
            encoded("-1 s"),
            encoded("1 @lobby"),
            encoded("1 a b"),
        ] {
            assert_eq!(Position::decode(&bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_is_read_as_written(since in 0i64..i64::MAX, id in "[A-Za-z0-9._@+=~-]{3,128}") {
            prop_assume!(id != "@lobby");
            let position = Position { since, session_id: SessionId::parse(&id).unwrap() };
            let cursor = position.encode();
            prop_assert!(cursor.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
            prop_assert_eq!(Position::decode(&cursor), Some(position));
        }

        #[test]
        fn any_text_is_a_cursor_or_none(text in ".{0,300}") {
            let _ = Position::decode(&text);
        }
    }
}
