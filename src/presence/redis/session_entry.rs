//! One session in the index in Redis: as scripts answer it, as the index holds it, and its place in the order.

use crate::protocol::ids::SessionId;
use crate::protocol::lobby::{Position, SessionState, Summary, Totals};

/// The fields of a session's meta that [`of_meta`] reads.
pub const META_FIELDS: [&str; 6] = [
    "version",
    "state",
    "since",
    "total_customer",
    "total_agent",
    "total_admin",
];

/// What `apply.lua` has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateAfter {
    /// This call has changed something of it.
    pub is_news: bool,
    pub version: u64,
    /// The session's keys were damaged: users may be missing who are written again soon.
    pub is_suspect: bool,
    /// `Err`: nobody is in the session any more, since that time.
    pub state: Result<Summary, i64>,
}

impl StateAfter {
    /// Reads "news state since customers agents time". A session that is not stored has no version: it has ended by
    /// that time, as versions count.
    pub fn parse(text: &str, version: u64) -> Option<Self> {
        let (news, rest) = text.split_once(' ')?;
        let (state, time) = rest.rsplit_once(' ')?;
        Some(Self {
            is_news: news == "1",
            version: if version == 0 { time.parse().ok()? } else { version },
            is_suspect: false,
            state: parse_state(state)?,
        })
    }

    /// As `index.lua` takes it: state, since, customers, agents.
    pub fn fields(&self) -> (&'static str, i64, Totals) {
        match self.state {
            Ok(summary) => (letter(summary.state), summary.since, summary.totals),
            Err(since) => ("e", since, Totals::default()),
        }
    }
}

/// "state since customers agents".
fn parse_state(text: &str) -> Option<Result<Summary, i64>> {
    let mut parts = text.split(' ');
    let (name, since) = (parts.next()?, parts.next()?.parse().ok()?);
    let (customers, agents) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    if name == "e" {
        return Some(Err(since));
    }
    Some(Ok(Summary {
        state: of_letter(name)?,
        totals: Totals { customers, agents },
        since,
    }))
}

/// An entry of the index: "version state since customers agents", and maybe more.
pub fn parse_entry(entry: &str) -> Option<Result<Summary, i64>> {
    parse_state(entry.split_once(' ')?.1)
}

pub fn letter(state: SessionState) -> &'static str {
    match state {
        SessionState::Waiting => "w",
        SessionState::Active => "a",
        SessionState::Idle => "i",
    }
}

fn of_letter(letter: &str) -> Option<SessionState> {
    SessionState::ALL
        .into_iter()
        .find(|state| self::letter(*state) == letter)
}

/// The place in the order after a position, as the start of a range; without one, the state's first place.
pub fn range_from(state: SessionState, after: Option<&Position>) -> String {
    let letter = letter(state);
    match after {
        Some(Position { since, session_id }) => format!("({letter}:{since:015}:{session_id}"),
        None => format!("[{letter}:"),
    }
}

/// The end of a state's range.
pub fn range_to(state: SessionState) -> String {
    // What follows a colon.
    format!("({};", letter(state))
}

/// A place in the order: "state:since:session".
pub fn parse_place(place: &str) -> Option<(SessionState, Position)> {
    let mut parts = place.splitn(3, ':');
    let state = of_letter(parts.next()?)?;
    let since = parts.next()?.parse().ok()?;
    let session_id = SessionId::parse(parts.next()?)?;
    Some((state, Position { since, session_id }))
}

/// The state of a session by its own keys, which are right if the index is not; `None`: nobody is in it. A node of an
/// older version writes totals and no state.
pub fn of_meta(fields: &[Option<String>]) -> Option<Summary> {
    let field = |at: usize| fields.get(at).and_then(Option::as_deref);
    let total = |at: usize| field(at).and_then(|total| total.parse().ok()).unwrap_or(0);
    let totals = Totals {
        customers: total(3),
        agents: total(4),
    };
    if totals == Totals::default() && total(5) == 0 {
        return None;
    }
    let version: i64 = field(0)?.parse().ok()?;
    let state = SessionState::of(totals);
    let is_known = field(1) == Some(letter(state));
    let since = field(2).filter(|_| is_known).and_then(|since| since.parse().ok());
    // Versions count microseconds.
    let since = since.unwrap_or(version / 1000);
    Some(Summary { state, totals, since })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(state: SessionState, customers: u32, agents: u32) -> Summary {
        let totals = Totals { customers, agents };
        Summary {
            state,
            totals,
            since: 17,
        }
    }

    #[test]
    fn an_answer_says_who_waits() {
        let after = StateAfter::parse("1 w 17 2 0 900", 5).unwrap();
        assert!(after.is_news && after.version == 5);
        assert_eq!(after.state, Ok(summary(SessionState::Waiting, 2, 0)));
        let (letter, since, totals) = after.fields();
        let row = format!("5 {letter} {since} {} {}", totals.customers, totals.agents);
        assert_eq!(parse_entry(&row), Some(after.state));
        let unknown = StateAfter::parse("0 e 17 0 0 900", 0).unwrap();
        assert_eq!((unknown.version, unknown.state), (900, Err(17)));
        for bad in ["", "1", "1 x 17 2 0 900", "1 w x 2 0 900", "1 w 17 2 0"] {
            assert_eq!(StateAfter::parse(bad, 5), None, "{bad}");
        }
    }

    #[test]
    fn places_are_in_the_order_of_positions() {
        let position = |since, id: &str| Position {
            since,
            session_id: SessionId::parse(id).unwrap(),
        };
        let mut positions = Vec::new();
        for since in [0, 9, 10, 1_790_000_000_000] {
            for id in ["+", "-", "A", "a", "ab", "b", "~"] {
                positions.push(position(since, id));
            }
        }
        let places: Vec<_> = positions
            .iter()
            .map(|at| range_from(SessionState::Active, Some(at))[1..].to_owned())
            .collect();
        assert!(positions.is_sorted() && places.is_sorted());
        for (place, at) in places.iter().zip(positions) {
            assert_eq!(parse_place(place), Some((SessionState::Active, at)));
            assert!(range_from(SessionState::Active, None)[1..] < place[..]);
            assert!(place[..] < range_to(SessionState::Active)[1..]);
        }
    }

    #[test]
    fn totals_count_where_the_state_is_not_known() {
        let of =
            |fields: [&str; 6]| of_meta(&fields.map(|field| (!field.is_empty()).then(|| field.to_owned())));
        assert_eq!(
            of(["5000", "w", "17", "2", "0", ""]),
            Some(summary(SessionState::Waiting, 2, 0))
        );
        let old = Summary {
            since: 5,
            ..summary(SessionState::Active, 1, 1)
        };
        assert_eq!(of(["5000", "w", "17", "1", "1", "0"]), Some(old));
        assert_eq!(of(["5000", "", "", "1", "1", ""]), Some(old));
        assert_eq!(
            of(["5000", "i", "17", "", "", "1"]),
            Some(summary(SessionState::Idle, 0, 0))
        );
        assert_eq!(of(["5000", "", "", "0", "", ""]), None);
        assert_eq!(of([""; 6]), None);
    }
}
